"""Pictures, masks and model folders that cannot be used: refused before a prompt is encoded, with a hint."""

import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest
from PIL import Image

UNREADABLE = "it may be damaged or of another format; PNG, JPEG and WebP work"
MASK_HINT = "make a mask of the image's size: white where to paint, black where to keep"
# Pictures of each command, with what else it needs: other pictures' flags, or whole words.  Tools have no model.
ROLES = {
    ("mflux-generate", "dev", "--image-path"): (),
    ("mflux-generate", "dev", "--mask-path"): ("--image-path",),
    ("mflux-generate-fill", "fill", "--image-path"): ("--masked-image-path",),
    ("mflux-generate-fill", "fill", "--masked-image-path"): ("--image-path",),
    ("mflux-generate-kontext", "kontext", "--image-path"): (),
    ("mflux-generate-masked-edit", "kontext", "--image-path"): ("--mask-path",),
    ("mflux-generate-masked-edit", "kontext", "--mask-path"): ("--image-path",),
    ("mflux-generate-masked-edit", "kontext", "--reference-image"): ("--image-path", "--mask-path"),
    ("mflux-generate-in-context", "dev", "--image-path"): (),
    ("mflux-generate-in-context-catvton", "fill", "--person-image"): ("--person-mask", "--garment-image"),
    ("mflux-generate-in-context-catvton", "fill", "--person-mask"): ("--person-image", "--garment-image"),
    ("mflux-generate-in-context-catvton", "fill", "--garment-image"): ("--person-image", "--person-mask"),
    ("mflux-generate-in-context-edit", "fill", "--reference-image"): (),
    ("mflux-generate", "dev", "--ip-adapter-image"): ("--ip-adapter=adapter.safetensors",),
    ("mflux-generate-redux", "dev", "--redux-image-paths"): (),
    ("mflux-generate-canny", "control", "--image-path"): (),
    ("mflux-generate-canny", "control", "--canny-image-path"): (),
    ("mflux-generate-depth", "control", "--image-path"): (),
    ("mflux-generate-depth", "control", "--depth-image-path"): (),
    ("mflux-generate-controlnet", "dev", "--controlnet-image-path"): (),
    ("mflux-generate-controlnet", "dev", "--control-map"): (),
    ("mflux-upscale", "dev", "--controlnet-image-path"): (),
    ("mflux-save-depth", "", "--image-path"): (),
    ("mflux-outpaint-canvas", "", "IMAGE"): ("--image-outpaint-padding=0,25%,0,25%",),
    ("mflux-mask", "", "IMAGE"): ("--port=49152",),
}


@pytest.fixture(params=ROLES, ids=" ".join)
def role(request, blind, files, refused):
    """Run a command with something wrong in the place of one of its pictures."""
    command, model, flag = request.param
    words = [*blind(model)] if model else []
    for other in ROLES[request.param]:
        words += [other] if "=" in other else [other, files["mask" in other]]
    if flag.startswith("--"):
        words.append(flag)

    def run(path: str | Path) -> list[str]:
        return refused(*words, path, command=command)

    run.flag = flag
    return run


def test_a_missing_picture_is_refused(role):
    assert role("/no/such.png") == [f"`{role.flag}`: there is no file `/no/such.png`", "check the path"]


def test_a_folder_is_no_picture(role, tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert role(folder) == [f"`{role.flag}`: `{folder}` is a folder", "give a picture file"]


def test_a_picture_cut_in_the_middle_is_refused(role, files, tmp_path):
    path = hostile.truncated(tmp_path / "half.png", files[0])
    error, hint = role(path)
    assert error.startswith(f"`{role.flag}`: `{path}` cannot be read as a picture (") and hint == UNREADABLE


@pytest.mark.parametrize("kind", hostile.BROKEN_PICTURES)
def test_a_file_that_is_no_picture_is_refused(refused, blind, tmp_path, kind):
    path = tmp_path / "broken.png"
    path.write_bytes(hostile.BROKEN_PICTURES[kind])
    error, hint = refused(*blind("dev"), "--image-path", path)
    if kind.endswith("px a side"):
        assert error.startswith(f"`--image-path`: `{path}` is ") and hint == "sides up to 16384 px"
    else:
        assert error.startswith(f"`--image-path`: `{path}` cannot be read as a picture (") and hint == UNREADABLE


@pytest.mark.parametrize("size", [(16400, 16), (16, 16400), (20000, 16000)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header_alone(refused, blind, tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(hostile.png(*size, rows=1))  # decoding it would fail, and show another error
    said = refused(*blind("dev"), "--image-path", path)
    assert said == [f"`--image-path`: `{path}` is {size[0]} x {size[1]} px", "sides up to 16384 px"]


def test_a_mask_of_too_many_pixels_is_refused_by_its_header_alone(refused, blind, files, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(hostile.png(20000, 16000, rows=1))
    error, _ = refused(*blind("dev"), "--image-path", files[0], "--mask-path", path)
    assert "20000 x 16000 px" in error


@pytest.mark.parametrize(
    ("command", "model", "pictures", "flag"),
    [
        ("mflux-generate", "dev", ("--image-path",), "--mask-path"),
        ("mflux-generate-fill", "fill", ("--image-path",), "--masked-image-path"),
        ("mflux-generate-masked-edit", "kontext", ("--image-path",), "--mask-path"),
        ("mflux-generate-in-context-catvton", "fill", ("--garment-image", "--person-image"), "--person-mask"),
    ],
)
def test_a_mask_of_another_size_or_all_black_is_refused(
    refused, blind, files, tmp_path, command, model, pictures, flag
):
    flags = (*blind(model), *(word for picture in pictures for word in (picture, files[0])), flag)
    other = hostile.mask(tmp_path / "other.png", 63, 48)
    error = f"`{flag}`: the mask is 63 x 48 px, but its image 64 x 48"
    assert refused(*flags, other, command=command) == [error, MASK_HINT]
    black = hostile.mask(tmp_path / "black.png", white=127)
    error = f"`{flag}`: the mask is black everywhere, so there is nothing to paint"
    assert refused(*flags, black, command=command) == [error, "paint its area white"]


def test_a_fill_without_its_picture_or_mask_is_refused(refused, blind, files):
    fill = {"command": "mflux-generate-fill"}
    hint = "give the picture and a mask of its size, white where to paint"
    assert refused(*blind("fill"), **fill) == ["`--image-path` is missing", hint]
    words = ("--prompt", "x", "--image-path", files[0])
    assert refused(*words, **fill) == ["`--masked-image-path` is missing", hint]


@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "inf"])
def test_an_image_strength_out_of_range_is_refused(refused, blind, files, value):
    error, hint = refused(*blind("dev"), "--image-path", files[0], f"--image-strength={value}")
    assert error.startswith("`--image-strength`: ") and hint == "give a number from 0 to below 1"


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_a_moving_picture_is_refused_with_its_frames(role, tmp_path, ending):
    path = tmp_path / f"moving.{ending}"
    frames = [Image.new("RGB", (64, 48), (level, 0, 0)) for level in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert role(path) == [f"`{role.flag}`: `{path}` moves: it has 3 frames", "save one of them as a picture of its own"]


def test_a_picture_that_no_memory_holds_is_refused_with_both_numbers(refused, blind):
    error, hint = refused(*blind("dev"), "--height", "16384", "--width", "16384")
    assert "16384 x 16384 px" in error and " needs about " in error and ", and this machine has " in error
    assert "`--height`" in hint and "`--width`" in hint


def test_a_batch_that_no_memory_holds_is_refused(refused, blind):
    size = ("--height", "4096", "--width", "4096")
    error, _ = refused(*blind("dev"), *size, "--batch-size", "1000", "--seed", *map(str, range(1000)))
    assert " needs about " in error


def test_the_wrong_model_for_a_task_is_refused_with_both_channel_counts(refused, blind, files):
    both = ("--image-path", files[0], "--mask-path", files[1])
    error, hint = refused(*blind("dev"), *both, command="mflux-generate-fill")
    assert error.endswith("takes 64 channels per token, but Fill needs 384") and "`--model fill`" in hint
    error, hint = refused(*blind("fill"))
    assert (
        error.endswith("takes 384 channels per token, but a plain picture needs 64") and "`mflux-generate-fill`" in hint
    )


OTHERS = {
    "mflux-generate": ("fill", 384, 64),
    "mflux-generate-fill": ("dev", 64, 384),
    "mflux-generate-depth": ("black-forest-labs/FLUX.1-dev", 64, 128),
    "mflux-generate-canny": ("fill", 384, 128),
    "mflux-generate-kontext": ("depth", 128, 64),
    "mflux-generate-masked-edit": ("fill", 384, 64),
    "mflux-generate-redux": ("canny", 128, 64),
    "mflux-generate-controlnet": ("fill", 384, 64),
    "mflux-upscale": ("depth", 128, 64),
    "mflux-generate-in-context": ("fill", 384, 64),
    "mflux-generate-in-context-catvton": ("dev", 64, 384),
    "mflux-generate-in-context-edit": ("dev", 64, 384),
}
PICTURES = {  # flags of each command's pictures
    "mflux-generate": ("--image-path",),
    "mflux-generate-fill": ("--image-path", "--mask-path"),
    "mflux-generate-masked-edit": ("--image-path", "--mask-path"),
    "mflux-generate-redux": ("--redux-image-paths",),
    "mflux-generate-controlnet": ("--controlnet-image-path",),
    "mflux-upscale": ("--controlnet-image-path",),
    "mflux-generate-in-context-catvton": ("--person-image", "--person-mask", "--garment-image"),
}


def with_pictures(command: str, *paths: Path) -> list[str | Path]:
    flags = PICTURES.get(command, ("--image-path",))
    return [word for flag in flags for word in (flag, paths["mask" in flag])]


@pytest.mark.parametrize("command", OTHERS)
def test_a_named_model_of_another_task_is_refused_before_it_is_downloaded(refused, files, command):
    name, has, needs = OTHERS[command]
    error, hint = refused("--prompt", "x", "--model", name, *with_pictures(command, *files), command=command)
    assert error == f"`--model`: `{name}` takes {has} channels per token, but {command} needs {needs}"
    assert "`--model " in hint


@pytest.mark.parametrize("command", OTHERS)
def test_a_missing_picture_is_refused_before_a_model_is_downloaded(refused, files, command):
    """Without a model's name FLUX.1's own would be downloaded."""
    missing = Path("no.png")
    model = ("--model", "dev") if command == "mflux-generate" else ()
    error, hint = refused("--prompt", "x", *model, *with_pictures(command, missing, files[1]), command=command)
    assert error.endswith("there is no file `no.png`") and hint == "check the path"


CHANNELS = {  # who says how many channels are needed, and other counts
    "mflux-generate": ("a plain picture needs 64", (128, 384)),
    "mflux-generate-fill": ("Fill needs 384", (64, 128)),
    "mflux-generate-canny": ("Control needs 128", (64, 384)),
    "mflux-generate-depth": ("Control needs 128", (64, 384)),
    "mflux-generate-kontext": ("a plain picture needs 64", (128, 384)),
    "mflux-generate-masked-edit": ("a plain picture needs 64", (128, 384)),
    "mflux-generate-redux": ("a plain picture needs 64", (128, 384)),
    "mflux-generate-in-context": ("a plain picture needs 64", (128, 384)),
    "mflux-generate-in-context-catvton": ("TryOn needs 384", (64, 128)),
    "mflux-generate-in-context-edit": ("InContextEdit needs 384", (64, 128)),
    "mflux-generate-controlnet": ("a plain picture needs 64", (128, 384)),
    "mflux-upscale": ("a plain picture needs 64", (128, 384)),
}


@pytest.mark.parametrize(
    ("command", "needs", "has"),
    [
        pytest.param(command, needs, has, id=f"{command} {has}")
        for command, (needs, counts) in CHANNELS.items()
        for has in counts
    ],
)
def test_weights_for_another_task_are_refused_with_both_channel_counts(
    refused, blind, files, oracle_model, tmp_path, command, needs, has
):
    """Folders of one's own: only their sizes tell what they are for."""
    words = blind("dev")
    model = Path(words[1])
    hostile.edit_json(model / "transformer" / "config.json", in_channels=has, out_channels=64)
    for part in ("image_encoder", "image_embedder"):  # Redux' own
        hostile.copy_model(oracle_model("redux") / part, model / part)
    if command in ("mflux-generate-controlnet", "mflux-upscale"):
        words = (*words, "--controlnet-model", oracle_model("controlnet"))
    pictures = [] if command == "mflux-generate" else with_pictures(command, *files)
    error, hint = refused(*words, *pictures, command=command)
    assert error == f"`--model`: `{model}` takes {has} channels per token, but {needs}"
    assert "`--model " in hint


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_that_is_not_a_model_is_refused_with_the_part_it_lacks(refused, tmp_path, oracle_model, part):
    model = hostile.copy_model(oracle_model("dev"), tmp_path / "model")
    shutil.rmtree(model / part)
    error, _ = refused("--prompt", "x", "--model", model)
    assert error == f"`--model`: `{model}` is not a FLUX.1 model: it has no folder `{part}`"


def test_a_file_is_no_model_folder(refused, files):
    error, _ = refused("--prompt", "x", "--model", files[0])
    assert error == f"`--model`: `{files[0]}` is no checkpoint"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_are_drawn_on(cli, oracle_model, tmp_path, mode):
    image = Image.open(hostile.picture(tmp_path / "rgb.png"))
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    (Image.fromarray(deep) if mode == "I;16" else image.convert(mode)).save(path)
    flags = ("--prompt", "x", "--steps", "1", "--max-sequence-length", "8", "--model", oracle_model("dev"))
    outcome = cli(*flags, "--image-path", path, "--mask-path", path)
    assert (outcome.code, outcome.out) == (0, "image.png\n"), outcome
    assert Image.open("image.png").size == (64, 48)
