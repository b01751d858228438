"""The commands that steer with maps: what they write, and what they refuse before a model is looked at."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflux.images.canny import canny

DEPTH, SAVE_DEPTH = "mflux-generate-depth", "mflux-save-depth"
CANNY, CONTROLNET = "mflux-generate-canny", "mflux-generate-controlnet"


@pytest.fixture
def net(oracle_model) -> str:
    return str(oracle_model("controlnet"))


@pytest.fixture
def small(oracle_model):
    """Flags of the quickest picture with a model."""

    def flags(name: str) -> tuple[str, ...]:
        size = ("--height", "48", "--width", "64", "--steps", "1", "--max-sequence-length", "8", "--seed", "1")
        return ("--model", str(oracle_model(name)), "--prompt", "x", *size)

    return flags


def edges(path: Path, low: int, high: int) -> np.ndarray:
    return np.repeat(canny(np.asarray(Image.open(path).convert("RGB")), low, high)[..., None], 3, axis=2)


def test_canny_writes_the_picture_and_with_save_canny_the_edges(cli, small, files):
    done = cli(*small("control"), "--image-path", files[0], "--save-canny", "--metadata", command=CANNY)
    assert done.code == 0, done.err
    assert done.out.split() == ["image.png", "image_canny.png", "image.json"]
    assert np.array_equal(np.asarray(Image.open("image_canny.png")), edges(files[0], 50, 200))
    assert json.loads(Path("image.json").read_text())["image_path"] == str(files[0])


def test_a_map_of_one_s_own_draws_the_same_as_the_picture_that_it_was_made_from(cli, small, files):
    cli(*small("control"), "--image-path", files[0], "--save-canny", command=CANNY)
    done = cli(*small("control"), "--canny-image-path", "image_canny.png", "--output", "own.png", command=CANNY)
    assert done.code == 0
    assert np.array_equal(np.asarray(Image.open("own.png")), np.asarray(Image.open("image.png")))


def test_controlnet_draws_along_the_edges_with_mflux_own_thresholds(cli, small, net, files):
    flags = ("--controlnet-image-path", files[0], "--controlnet-model", net, "--controlnet-save-canny")
    done = cli(*small("dev"), *flags, command=CONTROLNET)
    assert done.out.split() == ["image.png", "image_canny.png"], done.err
    assert np.array_equal(np.asarray(Image.open("image_canny.png")), edges(files[0], 100, 200))
    cli(*small("dev"), "--output", "plain.png")
    assert not np.array_equal(np.asarray(Image.open("image.png")), np.asarray(Image.open("plain.png")))


def test_several_controlnets_each_with_its_own_values(cli, small, net, oracle_model, files):
    union = str(oracle_model("controlnet-union"))
    pictures = ("--controlnet-image-path", files[0], "--controlnet-image-path", files[1])
    models = ("--controlnet-model", net, "--controlnet-model", net, "--controlnet-model", union)
    values = ("--control-map", files[0], "--control-mode", "canny", "--control-end", "0.8", "--controlnet-strength")
    rest = ("0.3", "--controlnet-save-canny", "--metadata", "--steps", "2")
    flags = [flag for flag in small("dev") if flag != "--steps" and flag != "1"]
    done = cli(*flags, "1", *pictures, *models, *values, *rest, command=CONTROLNET)
    assert done.out.split() == ["image.png", "image_canny.png", "image_canny_2.png", "image.json"], done.err
    told = json.loads(Path("image.json").read_text())["request"]["conditions"]
    assert [each.get("model") for each in told] == [net, net, union]
    assert [each["strength"] for each in told] == [0.3] * 3
    assert ["source" in each for each in told] == [True, True, False]


def test_depth_writes_the_picture_and_with_save_depth_map_the_map(cli, small, files, oracle_model):
    estimator = ("--depth-model", oracle_model("depth-pro"))
    flags = ("--image-path", files[0], *estimator, "--save-depth-map")
    done = cli(*small("control"), *flags, command=DEPTH)
    assert done.out.split() == ["image.png", "image_depth.png"], done.err
    own = cli(*small("control"), "--depth-image-path", "image_depth.png", "--output", "own.png", command=DEPTH)
    assert own.code == 0
    assert np.array_equal(np.asarray(Image.open("own.png")), np.asarray(Image.open("image.png")))


def test_save_depth_writes_where_output_says_and_else_beside_the_picture(cli, files, oracle_model):
    flags = ("--image-path", files[0], "--model", oracle_model("depth-pro"))
    beside = files[0].with_name("picture_depth.png")
    assert cli(*flags, command=SAVE_DEPTH).out == f"{beside}\n"
    assert cli(*flags, "--output", "here.webp", command=SAVE_DEPTH).out == "here.webp\n"
    assert cli(*flags, command=SAVE_DEPTH).out == f"{beside.with_name('picture_depth_1.png')}\n"  # never overwritten
    depth = np.asarray(Image.open(beside))
    assert depth.shape == (48, 64) and (depth.min(), depth.max()) == (0, 255)
    assert np.array_equal(depth, np.asarray(Image.open("here.webp").convert("L")))


def test_save_depth_refuses_a_pickle_and_what_is_no_picture(refused, files, tmp_path):
    bomb = tmp_path / "depth_pro.pt"
    bomb.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert refused("--image-path", files[0], "--model", bomb, command=SAVE_DEPTH) == [
        f"`--model`: `{bomb}` is a pickle, which runs code when it is opened; it was not opened",
        "give the safetensors form, a folder or hub id",
    ]
    assert refused(command=SAVE_DEPTH)[0] == "`--image-path` is missing"
    assert refused("--image-path", "no.png", command=SAVE_DEPTH)[0] == "`--image-path`: there is no file `no.png`"
    assert refused("--image-path", files[0], "-q", "7", command=SAVE_DEPTH)[0] == "`--quantize`: 7 is unknown"
    assert refused("--image-path", files[0], "--output", "map.gif", command=SAVE_DEPTH)[0].startswith("`--output`: ")


@pytest.mark.parametrize(
    ("command", "flags", "problem", "hint"),
    [
        (
            DEPTH,
            (),
            "there is no control image",
            "give `--image-path`, a picture to make the map from, or `--depth-image-path`, a map",
        ),
        (
            CANNY,
            (),
            "there is no control image",
            "give `--image-path`, a picture to make the map from, or `--canny-image-path`, a map",
        ),
        (
            CANNY,
            ("--image-path", "a.png", "--canny-image-path", "b.png"),
            "both kinds of control image are given",
            "give `--image-path`, a picture to make the map from, or `--canny-image-path`, a map",
        ),
        (
            DEPTH,
            ("--image-path", "a.png", "--depth-image-path", "b.png"),
            "both kinds of control image are given",
            "give `--image-path`, a picture to make the map from, or `--depth-image-path`, a map",
        ),
        (
            CANNY,
            ("--canny-image-path", "b.png", "--save-canny"),
            "`--save-canny`: the map is yours already",
            "leave it out, or give `--image-path` to have one made",
        ),
        (
            CANNY,
            ("--canny-image-path", "b.png", "--canny-low", "3"),
            "`--canny-low`: the map is yours already",
            "leave it out, or give `--image-path` to have one made",
        ),
        (
            DEPTH,
            ("--depth-image-path", "b.png", "--depth-model", "x"),
            "`--depth-model`: the map is yours already",
            "leave it out, or give `--image-path` to have one made",
        ),
        (
            CONTROLNET,
            (),
            "there is no control image",
            "give `--controlnet-image-path`, a picture whose edges to use, or `--control-map`, a map",
        ),
        (
            CONTROLNET,
            ("--control-map", "b.png", "--controlnet-save-canny"),
            "`--controlnet-save-canny`: the map is yours already",
            "leave it out, or give `--controlnet-image-path` to have one made",
        ),
        (
            CONTROLNET,
            ("--controlnet-image-path", "b.png", "--control-mode", "depth", "--canny-high", "9"),
            "`--canny-high`: no canny map is made",
            "leave it out, or give `--controlnet-image-path` to have one made",
        ),
        (
            CONTROLNET,
            ("--controlnet-image-path", "b.png", "--depth-model", "x"),
            "`--depth-model`: no depth map is made",
            "leave it out, or give `--controlnet-image-path` to have one made",
        ),
        (
            CONTROLNET,
            ("--control-map", "b.png", "--canny-low", "3"),
            "`--canny-low`: the map is yours already",
            "leave it out, or give `--controlnet-image-path` to have one made",
        ),
        (
            CONTROLNET,
            ("--control-map", "a.png", "--controlnet-strength", "1", "--controlnet-strength", "2"),
            "`--controlnet-strength`: 2 values for 1 control images",
            "give one for all, or one for each",
        ),
        (
            CONTROLNET,
            ("--control-map", "a.png", "--controlnet-strength", "strong"),
            "`--controlnet-strength`: 'strong' is not a number",
            f"`{CONTROLNET} --help` lists every flag",
        ),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_a_model_is_looked_at(refused, command, flags, problem, hint):
    assert refused("--prompt", "x", "--model", "no-such-model", *flags, command=command) == [problem, hint]


@pytest.mark.parametrize(
    ("flags", "problem", "hint"),
    [
        (
            ("--control-start", "0.5", "--control-end", "0.5"),
            "`--control-start`: the window from 0.5 to 0.5 holds no step",
            "give a `--control-start` below `--control-end`, both from 0 to 1",
        ),
        (
            ("--control-start", "0.8", "--control-end", "0.2"),
            "`--control-start`: the window from 0.8 to 0.2 holds no step",
            "give a `--control-start` below `--control-end`, both from 0 to 1",
        ),
        (
            ("--controlnet-strength", "2.5"),
            "`--controlnet-strength`: 2.5 is out of range",
            "give a number from 0 to 2",
        ),
        (
            ("--canny-low", "nan"),
            "`--canny-low`: nan is not a number from 0 to 3000",
            "give a number from 0 to 3000",
        ),
        (
            ("--controlnet-model", "weights.pt"),
            "`--controlnet-model`: `weights.pt` is a pickle, which runs code when it is opened; it was not opened",
            "give the safetensors form, a folder or hub id",
        ),
        (
            ("--controlnet-model", "no/such/folder"),
            "`--controlnet-model`: there is no folder `no/such/folder`",
            "give a folder with config.json and safetensors, or a hub id `owner/name`",
        ),
    ],
)
def test_values_that_cannot_be_meant_are_refused_before_weights_are_read(refused, blind, files, flags, problem, hint):
    picture = ("--controlnet-image-path", files[0])
    assert refused(*blind("dev"), *picture, *flags, command=CONTROLNET) == [problem, hint]


PICKLE = "is a pickle, which runs code when it is opened; it was not opened"


@pytest.mark.parametrize(
    ("command", "model", "picture", "flags", "problem", "hint"),
    [
        (
            "mflux-upscale",
            "dev",
            "--controlnet-image-path",
            ("--controlnet-strength", "3"),
            "`--controlnet-strength`: 3.0 is out of range",
            "give a number from 0 to 2",
        ),
        (
            DEPTH,
            "control",
            "--image-path",
            ("--depth-model", "x.pt"),
            f"`--depth-model`: `x.pt` {PICKLE}",
            "give the safetensors form, a folder or hub id",
        ),
    ],
)
def test_other_commands_name_their_own_flags(refused, blind, files, command, model, picture, flags, problem, hint):
    assert refused(*blind(model), picture, files[0], *flags, command=command) == [problem, hint]


def test_an_unknown_mode_is_refused_with_the_list(refused, blind, files, oracle_model):
    union = (
        "--control-map",
        files[0],
        "--controlnet-model",
        oracle_model("controlnet-union"),
        "--control-mode",
        "sketch",
    )
    assert refused(*blind("dev"), *union, command=CONTROLNET) == [
        "`--control-mode`: 'sketch' is no mode of this ControlNet",
        "choose one of `canny` (0), `tile` (1), `depth` (2), `blur` (3), `pose` (4)",
    ]


def test_another_size_than_the_transformer_s_is_refused_with_both(refused, blind, files, net, tmp_path):
    import shutil

    import hostile

    other = Path(shutil.copytree(net, tmp_path / "other"))
    hostile.edit_json(other / "config.json", num_attention_heads=2)
    assert refused(*blind("dev"), "--control-map", files[0], "--controlnet-model", other, command=CONTROLNET) == [
        f"`--controlnet-model`: `{other}` has width 32, but the transformer 48",
        "use a ControlNet that was made for this model",
    ]


def test_generate_looks_at_a_picture_through_an_ip_adapter(cli, small, files, oracle_model):
    adapter = (
        "--ip-adapter",
        oracle_model("../cases/ip-adapter/ip_adapter.safetensors"),
        "--ip-adapter-image",
        files[0],
    )
    rest = ("--ip-adapter-encoder", oracle_model("clip-vision"), "--ip-adapter-scale")
    for name, scale in (("on.png", "1.5"), ("off.png", "0")):
        done = cli(*small("dev"), *adapter, *rest, scale, "--output", name)
        assert done.out == f"{name}\n", done.err
    cli(*small("dev"), "--output", "plain.png")
    on, off, plain = (np.asarray(Image.open(name), int) for name in ("on.png", "off.png", "plain.png"))
    assert np.array_equal(off, plain) and np.abs(on - plain).max() > 2


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--ip-adapter", "a.safetensors"), "`--ip-adapter-image` is missing"),
        (("--ip-adapter-image", "a.png"), "`--ip-adapter` is missing"),
        (("--ip-adapter-scale", "1"), "`--ip-adapter` is missing"),
    ],
)
def test_half_an_ip_adapter_is_refused(refused, flags, problem):
    words = ("--prompt", "x", "--model", "no-such-model")
    assert refused(*words, *flags) == [problem, "give the adapter's file and a picture for it"]


def test_values_of_an_ip_adapter_are_told_by_their_flags(refused, blind, files, oracle_model):
    file = ("--ip-adapter", oracle_model("../cases/ip-adapter/ip_adapter.safetensors"))
    adapter = (*file, "--ip-adapter-image", files[0], "--ip-adapter-encoder", oracle_model("clip-vision"))
    scaled = refused(*blind("dev"), *adapter, "--ip-adapter-scale", "3")
    assert scaled == ["`--ip-adapter-scale`: 3.0 is out of range", "give a number from 0 to 2"]


def test_upscale_enlarges_without_a_prompt(cli, files, net, oracle_model):
    model = ("--model", str(oracle_model("dev")), "--steps", "1", "--max-sequence-length", "8", "--seed", "1")
    flags = ("--controlnet-image-path", files[0], "--controlnet-model", net, "--scale", "2")
    assert cli(*model, *flags, command="mflux-upscale").out == "image.png\n"
    assert Image.open("image.png").size == (128, 96)


def test_upscale_without_a_picture_is_refused(refused):
    words = ("--model", "no-such-model")
    assert refused(*words, command="mflux-upscale") == [
        "`--controlnet-image-path` is missing",
        "give the picture to enlarge",
    ]
