"""`-C`: what a picture tells about itself draws it again, for every command."""

import json
import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from mflux.cli.commands import COMMANDS
from mflux.images.metadata import read_metadata

SMALL = ("--height", "32", "--width", "32", "--steps", "2", "--max-sequence-length", "8", "--seed", "7")


@pytest.fixture
def runs(oracle_model, files, tmp_path):
    """Model and flags of a run of each drawing command."""
    picture, mask = files
    redux = hostile.copy_model(oracle_model("dev"), tmp_path / "with-redux")
    shutil.copytree(oracle_model("redux"), redux, dirs_exist_ok=True)
    wide = hostile.picture(tmp_path / "wide.png", 512, 32)
    net, eyes = oracle_model("controlnet"), oracle_model("clip-vision")
    adapter = oracle_model("../cases/ip-adapter/ip_adapter.safetensors")
    prompt = ("--prompt", "a fox, “größer” 狐 🦊")
    return {
        "mflux-generate": [
            ("dev", *prompt, "--guidance", "2", "--noise", "torch"),
            ("dev", *prompt, "--negative-prompt", "rain", "--true-cfg", "1.5"),
            ("dev", *prompt, "--image-path", picture, "--image-strength", "0.5"),
            ("dev", *prompt, "--image-path", picture, "--mask-path", mask),
            ("dev", *prompt, "--ip-adapter", adapter, "--ip-adapter-image", picture, "--ip-adapter-encoder", eyes),
            ("schnell", *prompt),
        ],
        "mflux-generate-fill": [
            ("fill", *prompt, "--image-path", picture, "--masked-image-path", mask),
            ("fill", *prompt, "--image-path", picture, "--outpaint-padding", "0,25%,0,0"),
        ],
        "mflux-generate-canny": [("control", *prompt, "--image-path", picture, "--canny-low", "80")],
        "mflux-generate-depth": [("control", *prompt, "--depth-image-path", picture)],
        "mflux-generate-controlnet": [
            ("dev", *prompt, "--controlnet-image-path", picture, "--controlnet-model", net, "--control-end", "0.8"),
        ],
        "mflux-upscale": [("dev", "--controlnet-image-path", picture, "--controlnet-model", net)],
        "mflux-generate-kontext": [("kontext", *prompt, "--image-path", picture, mask, "--fit", "own")],
        "mflux-generate-masked-edit": [
            ("kontext", *prompt, "--image-path", picture, "--mask-path", mask, "--feather", "2", "--fit", "own",
             "--reference-image", picture),
        ],
        "mflux-generate-redux": [(redux, "--redux-image-paths", picture, "--redux-image-strengths", "0.5")],
        "mflux-generate-in-context": [("dev", *prompt, "--image-path", picture, "--layout", "tb")],
        "mflux-generate-in-context-catvton": [
            ("fill", "--person-image", picture, "--person-mask", mask, "--garment-image", picture)
        ],
        "mflux-generate-fluxspace": [
            ("dev", *prompt, "--edit-prompt", "red", "3", "--edit-prompt", "dot", "8", "0.5", "x", "--edit-stop", "2"),
            ("dev", *prompt, "--edit-prompt", "red", "--edit-start", "0", "--sweep", "lambda-fine=0,8"),
            ("dev", *prompt, "--edit-prompt", "red", "--edit-start", "1", "--image-path", picture, "--gamma", "0.3"),
        ],
        "mflux-generate-rf-inversion": [
            ("dev", *prompt, "--image-path", picture, "--eta-stop", "1", "--start", "1"),
            ("dev", *prompt, "--image-path", picture, "--sde", "--eta-stop", "0.5", "--eta", "0.4"),
        ],
        "mflux-concept": [
            ("dev", *prompt, "--concepts", "star", "red"),
            ("dev", *prompt, "--concept", "star", "--image-path", picture, "--heatmap-timesteps", "1"),
        ],
        "mflux-concept-from-image": [("dev", "--concepts", "star", "--input-image-path", picture)],
        "mflux-generate-in-context-edit": [
            ("fill", "--edit-lora", "", "--reference-image", wide, "--instruction", "make it red")
        ],
    }  # fmt: skip


def pixels(name):
    return np.asarray(Image.open(name))


@pytest.mark.parametrize("command", [each.name for each in COMMANDS if not each.run])
def test_a_picture_draws_itself_again(cli, runs, oracle_model, command):
    for index, (model, *flags) in enumerate(runs[command]):
        place = model if isinstance(model, Path) else oracle_model(model)
        name = f"{index}.png"
        done = cli("--model", place, *SMALL, *flags, "--output", name, "--metadata", command=command)
        assert done.code == 0, done.err
        for source in (name, f"{index}.json"):
            again = cli("-C", source, "--output", f"again{index}.png", command=command)
            assert again.code == 0, again.err
            written = again.out.split()[0]
            assert np.array_equal(pixels(name), pixels(written)), (flags, source)
            assert read_metadata(written)["request"] == read_metadata(name)["request"]


def test_flags_change_what_is_drawn_again(cli, runs, oracle_model, files):
    cli("--model", oracle_model("dev"), *SMALL, *runs["mflux-generate"][2][1:], "--output", "first.png")
    told = read_metadata("first.png")["request"]
    done = cli("-C", "first.png", "--seed", "8", "--steps", "3", "--image-strength", "0.25", "--output", "other.png")
    assert done.code == 0, done.err
    other = read_metadata("other.png")["request"]
    assert (other["seeds"], other["config"]["num_inference_steps"]) == ([8], 3)
    assert other["conditions"][0]["image_strength"] == 0.25 and other["conditions"][0]["image"]["path"] == str(files[0])
    assert other["prompt"] == told["prompt"] and other["config"]["height"] == 32


def test_a_flag_changes_an_edit_that_is_drawn_again(cli, runs, oracle_model):
    model, *flags = runs["mflux-generate-fluxspace"][0]
    cli("--model", oracle_model(model), *SMALL, *flags, command="mflux-generate-fluxspace")
    again = ("-C", "image.png", "--lambda-fine", "7", "--output", "other.png")
    done = cli(*again, command="mflux-generate-fluxspace")
    assert done.code == 0, done.err
    first, other = (read_metadata(name)["request"]["conditions"][0] for name in ("image.png", "other.png"))
    assert other == first | {"lambda_fine": 7.0}
    done = cli(*again, "--edit-prompt", "blue", command="mflux-generate-fluxspace")
    edits = read_metadata(done.out.strip())["request"]["conditions"][0]["edits"]
    assert edits == [["blue", None, None, ""]]


def test_a_flag_that_the_picture_was_drawn_without_counts_too(cli, runs, oracle_model, files):
    cli("--model", oracle_model("dev"), *SMALL, *runs["mflux-generate"][0][1:], "--output", "first.png")
    done = cli("-C", "first.png", "--image-path", files[0], "--output", "other.png")
    assert done.code == 0, done.err
    assert read_metadata("other.png")["request"]["conditions"][0]["condition"] == "ImageToImage"


def test_loras_are_taken_up_or_replaced_never_added(cli, oracle_model, tmp_path):
    random = np.random.default_rng(0)
    for name in ("ink", "film"):
        layer = "transformer.transformer_blocks.0.attn.to_q"
        tensors = {f"{layer}.lora_A.weight": random.standard_normal((4, 48), np.float32)}
        tensors[f"{layer}.lora_B.weight"] = random.standard_normal((48, 4), np.float32)
        save_file(tensors, f"{name}.safetensors")
    cli(
        "--model", oracle_model("dev"), "--prompt", "x", *SMALL, "--lora", "ink.safetensors", "0.5", "--output", "a.png"
    )
    cli("-C", "a.png", "--output", "b.png")
    assert read_metadata("b.png")["request"]["loras"] == [["ink.safetensors", 0.5]]
    cli("-C", "a.png", "--output", "c.png", "--lora", "film.safetensors")
    assert read_metadata("c.png")["request"]["loras"] == [["film.safetensors", 1.0]]


def test_a_picture_of_another_command_is_refused_with_its_method(cli, runs, oracle_model):
    cli("--model", oracle_model("fill"), *SMALL, *runs["mflux-generate-fill"][0][1:], command="mflux-generate-fill")
    done = cli("-C", "image.png")
    assert done.code == 2 and "drawn with Fill" in done.words and "use the command that drew it" in done.words


def test_a_source_that_changed_is_noticed(cli, runs, oracle_model, files):
    cli("--model", oracle_model("fill"), *SMALL, *runs["mflux-generate-fill"][0][1:], command="mflux-generate-fill")
    hostile.picture(files[0], seed=9)
    done = cli("-C", "image.png", command="mflux-generate-fill")
    assert done.code == 2 and str(files[0]) in done.words


OLD = {  # mflux 0.9: texts where later versions write lists, the text "None" where there is nothing
    "mflux_version": "0.9.6", "base_model": "None", "seed": 3, "steps": 2, "guidance": 2.5,
    "precision": "mlx.core.bfloat16", "quantize": None, "generation_time_seconds": 1.5, "lora_paths": None,
    "lora_scales": None, "image_path": None, "image_strength": None, "controlnet_image_path": None,
    "masked_image_path": None, "redux_image_paths": None, "prompt": "a fox",
}  # fmt: skip
NEW = OLD | {
    "mflux_version": "0.24.0", "base_model": None, "model_path": None, "height": 32, "width": 48, "image_paths": None,
    "created_at": "2026-11-21T06:08:43", "negative_prompt": None,
}  # fmt: skip


@pytest.mark.parametrize("told", [OLD, NEW], ids=["0.9", "0.24"])
def test_files_of_older_versions_draw(cli, oracle_model, told):
    Path("old.json").write_text(json.dumps(told | {"model": str(oracle_model("dev"))}))
    size = () if "height" in told else ("--height", "32", "--width", "48")
    done = cli("-C", "old.json", *size, "--max-sequence-length", "8")
    assert done.code == 0, done.err
    found = read_metadata("image.png")
    assert (found["seed"], found["steps"], found["guidance"], found["prompt"]) == (3, 2, 2.5, "a fox")
    assert (found["height"], found["width"]) == (32, 48) and "unknown" not in done.err


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_whose_exif_was_dropped_draws_itself_again_from_its_xmp(cli, dev, ending):
    assert cli(*dev, "--seed", "2", "--output", "a{seed}.png", "--guidance", "2").code == 0
    with Image.open("a2.png") as image:
        text = image.info["XML:com.adobe.xmp"]
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    Image.new("RGB", (9, 9)).save(f"kept.{ending}", pnginfo=info, xmp=text.encode())
    done = cli("-C", f"kept.{ending}", "--output", "b.png")
    assert done.code == 0, done.err
    assert np.array_equal(pixels("a2.png"), pixels("b.png"))
    assert read_metadata("b.png")["request"] == read_metadata("a2.png")["request"]


def test_old_lists_that_are_texts_are_read(cli, runs, files):
    redux = str(runs["mflux-generate-redux"][0][0])
    told = OLD | {
        "model": redux,
        "redux_image_paths": f"['{files[0]}', '{files[1]}']",
        "redux_image_strengths": "[0.5, 1.0]",
    }
    Path("old.json").write_text(json.dumps(told))
    done = cli(
        "-C",
        "old.json",
        "--height",
        "32",
        "--width",
        "32",
        "--max-sequence-length",
        "8",
        command="mflux-generate-redux",
    )
    assert done.code == 0, done.err
    assert read_metadata("image.png")["redux_image_strengths"] == [0.5, 1.0]


def test_unknown_keys_of_a_hand_written_file_warn(cli, oracle_model):
    Path("mine.json").write_text(json.dumps({"model": str(oracle_model("dev")), "prompt": "x", "stpes": 3}))
    done = cli("-C", "mine.json", *SMALL)
    assert done.code == 0 and "the key `stpes` is unknown to `mflux-generate`" in done.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("[1]", "holds a list"),
        ("{}", "nothing to draw by"),
        ('{"seed": "x"}', '`seed` is "x"'),
        ('{"steps": 2.5}', "2.5"),
        ('{"prompt": 3}', "`prompt` is 3"),
        ('{"steps": [2, 3]}', "`steps` is [2, 3]"),
        ('{"request": {"seeds": [1], "model": ["a"]}}', '`model` is ["a"], which `--model` does not take'),
        ('{"request": {"seeds": [1], "config": {"height": "x"}}}', '`height` is "x", which `--height` does not take'),
        ('{"request": {"seeds": []}}', "seed"),
        ('{"request": {"seeds": 3}}', "cannot be read"),
        ('{"request": {"seeds": [1], "conditions": [{"condition": "Magic"}]}}', "Magic"),
        ('{"request": {"seeds": [1], "conditions": [{}]}}', "cannot be read"),
    ],
)
def test_files_that_tell_nothing_are_refused(cli, oracle_model, text, words):
    Path("mine.json").write_text(text)
    done = cli("-C", "mine.json", "--model", oracle_model("dev"), "--prompt", "x")
    assert done.code == 2 and words in done.words and "hint: " in done.words, done.words
    assert done.files == frozenset()


def test_pictures_that_tell_nothing_are_refused(refused):
    Image.new("RGB", (16, 16)).save("plain.png")
    assert "holds no metadata" in refused("-C", "plain.png")[0]
    assert "there is no file `none.png`" in refused("-C", "none.png")[0]
    Path("text.png").write_text("x")
    assert "it is no picture" in refused("-C", "text.png")[0]
