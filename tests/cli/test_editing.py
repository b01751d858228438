"""The editing commands: what they draw and write, and what they refuse."""

import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest
from PIL import Image

from mflux import Flux1
from mflux.engine.slots import request_from_json
from mflux.images.metadata import read_metadata

QUICK = ("--steps", "1", "--seed", "1", "--max-sequence-length", "8")
SMALL = ("--height", "16", "--width", "32")
WORDS = ("--prompt", "x", "--model", "no-such-model")  # an error about the model would come later


@pytest.fixture
def on(cli, oracle_model):
    """Run an editing command on a tiny random model."""
    return lambda command, model, *flags: cli("--model", oracle_model(model), *QUICK, *flags, command=command)


def pixels(name):
    return np.asarray(Image.open(name))


def test_kontext_draws_with_one_picture_or_more(on, files):
    kontext = ("mflux-generate-kontext", "kontext", "--prompt", "a star", *SMALL, "--fit", "own")
    assert on(*kontext, "--image-path", files[0]).out == "image.png\n"
    assert on(*kontext, "--image-path", *files, "--output", "both.png").out == "both.png\n"
    assert pixels("image.png").shape == (16, 32, 3)
    assert not np.array_equal(pixels("image.png"), pixels("both.png"))
    assert read_metadata("image.png")["image_path"] == str(files[0])
    assert read_metadata("both.png")["image_path"] == [str(each) for each in files]


def test_turns_write_a_picture_each_and_each_replays_the_chain(on, files):
    Path("turns.txt").write_text("make it red\n\n  add a star \n")
    turns = ("--image-path", files[0], "--turns", "turns.txt", "--fit", "own", *SMALL)
    outcome = on("mflux-generate-kontext", "kontext", *turns, "--seed", "5")
    names = [f"image_seed_{seed}_turn_{turn}.png" for seed in (1, 5) for turn in (1, 2)]
    assert outcome.out.split() == names
    request = request_from_json(read_metadata(names[-1])["request"])
    assert (request.prompt, request.conditions[0].turns) == ("add a star", ("make it red",))
    again = Flux1(request.model, task="kontext").generate_image(
        request.seeds[0], request.prompt, request.config, conditions=request.conditions
    )
    assert np.array_equal(np.asarray(again.image), pixels(names[-1]))


def test_a_picture_that_kept_no_pixels_keeps_none_when_it_is_drawn_again_from_another(cli, files):
    fill = ("--model", "tiny", "--prompt", "x", *QUICK, "--no-composite", "--image-path", files[0])
    Image.new("L", Image.open(files[0]).size, 255).save("mask.png")
    assert cli(*fill, "--mask-path", "mask.png", command="mflux-generate-fill").code == 0
    again = cli("-C", "image.png", "--image-path", files[1], "--output", "b.png", command="mflux-generate-fill")
    assert again.code == 0
    assert read_metadata("b.png")["request"]["conditions"][0]["composite"] is False


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        ((), "`--image-path` is missing", "give the picture to edit, and perhaps more to take from"),
        (
            ("--image-path", "a.png", "--turns", "t.txt"),
            "`--turns`: the file holds the prompts",
            "give `--turns` alone, or one prompt without it",
        ),
    ],
)
def test_kontext_flags_that_cannot_be_meant_are_refused(refused, flags, error, hint):
    assert refused(*WORDS, *flags, command="mflux-generate-kontext") == [error, hint]


def test_a_file_of_turns_has_to_hold_some(refused, blind, files, tmp_path):
    flags = (*[word for word in blind("kontext") if word not in ("--prompt", "a red fox")], "--image-path", files[0])
    path = tmp_path / "turns.txt"
    error, _ = refused(*flags, "--turns", path, command="mflux-generate-kontext")
    assert error == f"`--turns`: there is no file `{path}`"
    path.write_text(" \n\n")
    error, _ = refused(*flags, "--turns", path, command="mflux-generate-kontext")
    assert error == f"`--turns`: `{path}` is empty"


def test_the_built_in_kontext_says_when_it_is_not_there(refused, files, monkeypatch, tmp_path):
    import mflux.weights.resolve

    monkeypatch.setattr(mflux.weights.resolve, "BUILT_IN", tmp_path)
    flags = ("--prompt", "x", "--model", "tiny", "--image-path", files[0])
    error, hint = refused(*flags, code=1, command="mflux-generate-kontext")
    assert error == "`tiny/kontext` is not trained yet"
    assert hint == "this version has no weights for it; use another model"


def test_masked_edit_keeps_the_picture_and_tells_its_files(on, files):
    edit = ("mflux-generate-masked-edit", "kontext", "--prompt", "a star", "--image-path", files[0])
    outcome = on(*edit, "--mask-path", files[1], "--reference-image", files[1], "--fit", "own", "--feather", "2")
    source, paint = pixels(files[0]), pixels(files[1])
    assert np.array_equal(pixels(outcome.out.strip())[paint == 0], source[paint == 0])
    told = read_metadata("image.png")
    assert (told["image_path"], told["masked_image_path"]) == (str(files[0]), str(files[1]))
    assert told["request"]["conditions"][0]["feather"] == 2


def test_fluxspace_writes_a_picture_its_masks_and_a_strip(on):
    flags = ("mflux-generate-fluxspace", "dev", "--prompt", "a star", *SMALL, "--edit-prompt", "red", "3", "0.5")
    outcome = on(*flags, "blue", "--edit-prompt", "dot", "--edit-start", "0", "--save-edit-masks")
    assert outcome.out.split() == ["image.png", "image_mask_01.png", "image_mask_02.png"]
    told = read_metadata("image.png")["request"]["conditions"][0]
    assert told["edits"] == [["red", 3.0, 0.5, "blue"], ["dot", None, None, ""]] and told["start"] == 0
    strip = on(*flags, "--edit-start", "0", "--sweep", "lambda-fine=0,4", "--output", "strip.png")
    assert strip.out == "strip.png\n" and pixels("strip.png").shape[1] == 64


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ((), "`--edit-prompt` is missing"),
        (("--edit-prompt", "1", "2"), "`--edit-prompt`: `1 2` is no edit"),
        (("--edit-prompt", "red", "--sweep", "colour=1,2"), "`--sweep`: `colour=1,2` is no sweep"),
        (("--edit-prompt", "red", "--sweep", "lambda-fine=a"), "`--sweep`: `lambda-fine=a` is no sweep"),
        (("--edit-prompt", "red", "--edit-start", "x"), "`--edit-start`: 'x' is not a whole number"),
    ],
)
def test_fluxspace_flags_that_cannot_be_meant_are_refused(refused, flags, error):
    assert refused(*WORDS, *flags, command="mflux-generate-fluxspace")[0] == error


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--edit-prompt", ""), "`--edit-prompt`: '' is no text to edit with"),
        (("--edit-prompt", "red", "--lambda-coarse", "2"), "`--lambda-coarse`: 2.0 is out of range"),
        (("--edit-prompt", "red", "--mask-threshold", "2"), "`--mask-threshold`: 2.0 is out of range"),
        (
            ("--edit-prompt", "red", "--edit-start", "3", "--edit-stop", "3"),
            "`--edit-stop`: steps 3 to below 3 are none",
        ),
        (("--edit-prompt", "red", "--sweep", "seed=1"), "`seed` is nothing that an edit has"),
    ],
)
def test_fluxspace_refuses_before_it_reads_weights(refused, blind, flags, error):
    assert error in refused(*blind("dev"), *SMALL, *flags, command="mflux-generate-fluxspace")[0]


def test_rf_inversion_draws_and_names_its_picture(on, files):
    outcome = on("mflux-generate-rf-inversion", "dev", "--prompt", "a star", "--image-path", files[0], "--eta", "0.5")
    assert outcome.out == "image.png\n"
    height, width = pixels(files[0]).shape[:2]
    assert pixels("image.png").shape == (height // 16 * 16, width // 16 * 16, 3)
    assert read_metadata("image.png")["image_path"] == str(files[0])


def test_fluxspace_edits_a_picture_of_one_s_own(on, files):
    flags = ("--prompt", "", "--edit-prompt", "red", "--image-path", files[0], "--gamma", "0.3", "--edit-start", "0")
    assert on("mflux-generate-fluxspace", "dev", *flags).out == "image.png\n"
    kinds = [each["condition"] for each in read_metadata("image.png")["request"]["conditions"]]
    assert kinds == ["FluxSpace", "RFInversion"]


def test_concepts_are_written_beside_the_picture(on):
    flags = ("mflux-concept", "dev", "--prompt", "a star", *SMALL)
    one = on(*flags, "--concept", "star", "--heatmap-layer-indices", "0", "--heatmap-timesteps", "0").out.split()
    assert one == ["image.png", "image_heatmap.png", "image_overlay.png", "image_segmentation.png", "image_maps.npz"]
    kept = np.load("image_maps.npz")
    assert kept["maps"].shape == (1, 2, 2) and kept["names"].tolist() == ["star", "background"]
    two = on(*flags, "--concepts", "star", "red", "--output", "two.png").out.split()
    assert {"two_heatmap_01.png", "two_heatmap_02.png", "two_overlay_02.png"} < set(two)


def test_concepts_of_a_picture_need_no_prompt(on, files):
    outcome = on("mflux-concept-from-image", "dev", "--input-image-path", files[0], "--concepts", "star", "red")
    assert outcome.out.split()[0] == "image.png" and len(outcome.files) == 7
    assert read_metadata("image.png")["image_path"] == str(files[0])


@pytest.mark.parametrize(
    ("command", "flags", "error"),
    [
        ("mflux-generate-rf-inversion", (), "`--image-path` is missing"),
        ("mflux-generate-fluxspace", ("--edit-prompt", "red", "--eta", "1"), "`--image-path` is missing"),
        ("mflux-concept", (), "`--concepts` is missing"),
        ("mflux-concept", ("--concept", "a", "--concepts", "b"), "`--concepts` is given twice"),
        ("mflux-concept-from-image", ("--concepts", "a"), "`--input-image-path` is missing"),
    ],
)
def test_inversions_and_concepts_need_their_words(refused, command, flags, error):
    assert refused(*WORDS, *flags, command=command)[0] == error


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--heatmap-layer-indices", "15"), "`--heatmap-layer-indices`: 15 is out of range"),
        (("--heatmap-timesteps", "1"), "`--heatmap-timesteps`: 1 is out of range"),
        (("--space", "value"), "`--space`: 'value' is unknown"),
    ],
)
def test_maps_that_are_not_there_are_refused_before_weights_are_read(refused, blind, flags, error):
    assert refused(*blind("dev"), *SMALL, "--concepts", "star", *flags, command="mflux-concept")[0] == error


@pytest.mark.parametrize("command", ["mflux-generate-rf-inversion", "mflux-generate-fluxspace"])
def test_a_picture_of_another_aspect_is_not_inverted(refused, blind, tmp_path, command):
    wide = hostile.picture(tmp_path / "wide.png", 128, 32)
    edit = ("--edit-prompt", "red") if "fluxspace" in command else ()
    size = ("--height", "64", "--width", "64")
    error, hint = refused(*blind("dev"), *size, *edit, "--image-path", wide, command=command)
    assert error == "`--image-path`: 128 x 32 px would be stretched to 64 x 64 px"
    assert hint.startswith("give a `--height` and `--width` in its proportions, or neither")


def test_a_window_beyond_the_run_warns_and_draws_the_plain_picture(on):
    words = ("--prompt", "a star", *SMALL)
    edited = on("mflux-generate-fluxspace", "dev", *words, "--edit-prompt", "red", "--edit-start", "9")
    assert "note: FluxSpace begins at step 9, but the run has 1: it does nothing" in edited.words
    plain = on("mflux-generate", "dev", *words, "--output", "plain.png")
    assert np.array_equal(pixels(edited.out.strip()), pixels(plain.out.strip()))
    told = on("mflux-generate-fluxspace", "schnell", *words, "--edit-prompt", "red", "--output", "quick.png")
    assert told.code == 0 and "FluxSpace was made for models with guidance; this one has none" in told.words


PICTURE_AND_MASK = "give the picture and a mask of its size, white where to paint"


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (("--mask-path", "m.png"), "`--image-path` is missing", PICTURE_AND_MASK),
        (("--image-path", "a.png"), "`--mask-path` is missing", PICTURE_AND_MASK),
        (
            ("--image-path", "a.png", "--mask-path", "m.png", "--composite", "none", "--feather", "3"),
            "`--feather`: only `--composite pixel` has an edge to feather",
            "leave one of the two out",
        ),
        (
            ("--image-path", "a.png", "--mask-path", "m.png", "--fit", "pad"),
            "`--fit`: there is no reference for it",
            "give `--reference-image` too",
        ),
    ],
)
def test_masked_edit_flags_that_cannot_be_meant_are_refused(refused, flags, error, hint):
    assert refused(*WORDS, *flags, command="mflux-generate-masked-edit") == [error, hint]


@pytest.mark.parametrize(
    ("value", "problem"), [("0", "0.0 is out of range"), ("1.5", "1.5 is out of range"), ("nan", "nan is not a number")]
)
def test_a_masked_edit_s_strength_is_above_0_and_at_most_1(refused, blind, files, value, problem):
    flags = ("--image-path", files[0], "--mask-path", files[1], "--strength", value)
    error, hint = refused(*blind("kontext"), *flags, command="mflux-generate-masked-edit")
    assert error.startswith(f"`--strength`: {problem}") and hint == "give a number from above 0 to 1"


@pytest.fixture
def with_redux(oracle_model, tmp_path):
    """A folder that holds a whole model and Redux' parts."""
    folder = hostile.copy_model(oracle_model("dev"), tmp_path / "dev")
    shutil.copytree(oracle_model("redux"), folder, dirs_exist_ok=True)
    return folder


def test_redux_draws_with_a_prompt_or_without(cli, files, with_redux):
    redux = ("--model", with_redux, *QUICK, *SMALL, "--redux-image-paths", *files, "--redux-image-strengths", "0.5")
    assert cli(*redux, command="mflux-generate-redux").out == "image.png\n"
    assert cli(*redux, "--prompt", "a fox", command="mflux-generate-redux").out == "image_1.png\n"
    assert not np.array_equal(pixels("image.png"), pixels("image_1.png"))
    told = read_metadata("image.png")
    assert told["redux_image_paths"] == [str(each) for each in files] and told["redux_image_strengths"] == [0.5]
    assert told["prompt"] == ""


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (
            ("--redux-image-strengths", "1", "1", "1"),
            "`--redux-image-strengths`: there are 3 strengths for 1 pictures",
            "give one strength a picture, or fewer",
        ),
        (
            ("--redux-image-strengths", "2.5"),
            "`--redux-image-strengths`: 2.5 is out of range",
            "give a number from 0 to 2",
        ),
        (("--redux-combine", "mean"), "`--redux-combine`: 'mean' is unknown", "choose one of `concat`, `sum`"),
    ],
)
def test_redux_flags_that_cannot_be_meant_are_refused(refused, files, with_redux, flags, error, hint):
    given = ("--model", with_redux, *QUICK, "--redux-image-paths", files[0], *flags)
    assert refused(*given, command="mflux-generate-redux") == [error, hint]


def test_redux_needs_a_picture_and_a_model_that_has_its_parts(refused, files, oracle_model):
    hint = "give one picture or more to draw like"
    assert refused(*WORDS, command="mflux-generate-redux") == ["`--redux-image-paths` is missing", hint]
    fill = ("--model", oracle_model("fill"), *QUICK, "--redux-image-paths", files[0])
    error, hint = refused(*fill, "--prompt", "x", command="mflux-generate-redux")
    assert error.endswith("fill` has no `image_encoder`") and "`--model redux`" in hint


def test_fill_edits_and_paints_around(on, files):
    fill = ("mflux-generate-fill", "fill", "--prompt", "a star", "--image-path", files[0])
    assert on(*fill, "--edit-mode", "channels", "--output", "a.png").out == "a.png\n"
    assert on(*fill, "--edit-mode", "spatial", "--output", "b.png").out == "b.png\n"
    assert pixels("a.png").shape == pixels("b.png").shape == (48, 64, 3)
    for flag in ("--outpaint-padding", "--image-outpaint-padding"):
        name = on(*fill, flag, "0,25%,0,8").out.strip()
        assert np.array_equal(pixels(name)[:, 8:72], pixels(files[0])) and pixels(name).shape == (48, 88, 3)


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (
            ("--outpaint-padding", "0,0,0,0,0"),
            "`--outpaint-padding`: '0,0,0,0,0' has 5 parts, not 1 to 4",
            "give top, right, bottom, left in px or per cent, for example `0,25%,0,25%`",
        ),
        (("--edit-mode", "beside"), "`--edit-mode`: 'beside' is unknown", "choose one of `channels`, `spatial`"),
        (
            ("--edit-mode", "channels", "--outpaint-padding", "1,1,1,1"),
            "`--edit-mode`: an edit mode draws the whole picture",
            "leave `--masked-image-path` and `--outpaint-padding` out",
        ),
        (
            ("--edit-mode", "channels", "--no-composite"),
            "`--no-composite`: an edit mode keeps no pixels anyway",
            "leave one of the two out",
        ),
    ],
)
def test_fill_flags_that_cannot_be_meant_are_refused(refused, blind, files, flags, error, hint):
    said = refused(*blind("fill"), "--image-path", files[0], *flags, command="mflux-generate-fill")
    assert said == [error, hint]


@pytest.mark.parametrize(("layout", "size"), [("lr", (16, 64, 3)), ("tb", (32, 32, 3))])
def test_in_context_writes_the_new_picture_and_both_on_request(on, files, layout, size):
    command = ("mflux-generate-in-context", "dev", "--prompt", "two", *SMALL, "--layout", layout)
    for flag in ("--image-path", "--reference-image"):
        outcome = on(*command, flag, files[0], "--save-full-image")
        one, both = outcome.out.split()
        assert both == one.replace(".png", "_full.png")
        assert pixels(one).shape == (16, 32, 3) and pixels(both).shape == size
    assert read_metadata("image.png")["image_path"] == str(files[0])


def test_try_on_needs_no_prompt(on, files):
    command = ("mflux-generate-in-context-catvton", "fill", *SMALL)
    wear = ("--person-image", files[0], "--person-mask", files[1], "--garment-image", files[0])
    assert on(*command, *wear, "--save-full-image").out.split() == ["image.png", "image_full.png"]
    assert pixels("image_full.png").shape == (16, 64, 3)
    assert read_metadata("image.png")["prompt"].startswith("The pair of images highlights a clothing")


def test_in_context_edit_takes_an_instruction_or_a_prompt(on, tmp_path):
    command = ("mflux-generate-in-context-edit", "fill", "--edit-lora", "")
    wide = hostile.picture(tmp_path / "wide.png", 512, 16)
    assert on(*command, "--reference-image", wide, "--instruction", "make it red").out == "image.png\n"
    assert on(*command, "--image-path", wide, "--prompt", "two panels").out == "image_1.png\n"
    assert pixels("image.png").shape == (16, 512, 3)
    assert read_metadata("image.png")["prompt"].endswith("exactly the same as on the left but make it red")
    assert read_metadata("image_1.png")["prompt"] == "two panels"


@pytest.mark.parametrize(
    ("command", "flags", "error"),
    [
        ("in-context", (), "`--image-path` is missing"),
        ("in-context-catvton", ("--person-image", "p.png"), "`--person-mask` is missing"),
        ("in-context-catvton", ("--person-image", "p.png", "--person-mask", "m.png"), "`--garment-image` is missing"),
        ("in-context-edit", (), "`--reference-image` is missing"),
    ],
)
def test_a_panel_that_is_missing_is_told(refused, command, flags, error):
    assert refused(*WORDS, *flags, command=f"mflux-generate-{command}")[0] == error


def test_an_unknown_style_is_refused_with_all_of_them(refused, blind, files):
    flags = (*blind("dev"), "--image-path", files[0], "--lora-style", "cubism")
    error, hint = refused(*flags, command="mflux-generate-in-context")
    assert error == "`--lora-style`: 'cubism' is unknown"
    assert hint.startswith("choose one of `couple`, `storyboard`, ") and hint.count("`") == 20


@pytest.mark.parametrize("given", [(), ("--instruction", "x", "--prompt", "y")])
def test_in_context_edit_takes_just_one_text(refused, oracle_model, files, given):
    flags = ("--model", oracle_model("fill"), *QUICK, "--reference-image", files[0], *given)
    error, hint = refused(*flags, command="mflux-generate-in-context-edit")
    assert error.startswith("`--instruction`: ") and hint.startswith("give `--instruction`, or a prompt")


@pytest.mark.parametrize("command", ["in-context-catvton", "in-context-edit"])
def test_a_model_without_the_fill_channels_is_refused_with_both_counts(refused, blind, files, command):
    panels = {
        "in-context-catvton": ("--person-image", files[0], "--person-mask", files[1], "--garment-image", files[0]),
        "in-context-edit": ("--reference-image", files[0]),
    }
    error, hint = refused(*blind("dev"), *panels[command], command=f"mflux-generate-{command}")
    assert "takes 64 channels per token, but " in error and error.endswith(" needs 384")
    assert ("`--model try-on`" if "catvton" in command else "`--model ic-edit`") in hint


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_can_be_edited(on, tmp_path, mode):
    image = Image.open(hostile.picture(tmp_path / "rgb.png"))
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    (Image.fromarray(deep) if mode == "I;16" else image.convert(mode)).save(path)
    words = ("kontext", "--prompt", "x", "--fit", "own", "--image-path", path)
    assert on("mflux-generate-kontext", *words, *SMALL).code == 0
    masked = on("mflux-generate-masked-edit", *words, "--mask-path", path, "--reference-image", path)
    assert Image.open(masked.out.strip()).size == (64, 48)


def test_a_picture_of_one_pixel_can_be_edited(on, tmp_path):
    dot = hostile.picture(tmp_path / "dot.png", 1, 1)
    white = hostile.picture(tmp_path / "white.png", 1, 1)
    Image.new("L", (1, 1), 255).save(white)
    words = ("kontext", "--prompt", "x", "--fit", "own", "--image-path", dot)
    assert on("mflux-generate-kontext", *words, *SMALL).code == 0
    masked = on("mflux-generate-masked-edit", *words, "--mask-path", white, "--reference-image", dot)
    assert Image.open(masked.out.strip()).size == (1, 1)


@pytest.mark.parametrize("kind", hostile.BROKEN_PICTURES)
def test_a_reference_that_is_no_picture_is_refused(refused, blind, tmp_path, kind):
    path = tmp_path / "broken.png"
    path.write_bytes(hostile.BROKEN_PICTURES[kind])
    error, _ = refused(*blind("kontext"), "--image-path", path, command="mflux-generate-kontext")
    assert error.startswith(f"`--image-path`: `{path}` ")
