"""Methods with two panels: the canvas, what is held or hidden in it, prompts, adapters and noise levels."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mflux import Config, Flux1, ModelError, UsageError
from mflux.conditions import ImageToImage, InContext, InContextEdit, TryOn
from mflux.conditions.fill import mask_tokens
from mflux.conditions.ic_edit import TEMPLATES
from mflux.conditions.try_on import PROMPT
from mflux.engine.latents import pack_latents
from mflux.images.picture import to_pixels
from mflux.weights.catalog import BY_NAME, METHOD_LORAS, STYLES

STEPS = {"num_inference_steps": 3, "max_sequence_length": 16}
SIZE = {"height": 48, "width": 64}
CONFIG = Config(**STEPS, **SIZE)
FILES = {
    "couple": "couple-profile",
    "storyboard": "film-storyboard",
    "font": "font-design",
    "home": "home-decoration",
    "illustration": "portrait-illustration",
    "portrait": "portrait-photography",
    "ppt": "ppt-templates",
    "sandstorm": "sandstorm-visual-effect",
    "sparklers": "sparklers-visual-effect",
    "identity": "visual-identity-design",
}


def picture(height=48, width=64, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def mask(height=48, width=64):
    values = np.zeros((height, width), np.uint8)
    values[10:37, 21:50] = 255
    return values


def draw(flux, condition, config=CONFIG, prompt="a fox", **rest):
    return flux.generate_image(seed=3, prompt=prompt, config=config, conditions=[condition], **rest)


def plan(flux, condition, prompt="a fox", **config):
    return flux.plan(3, prompt, Config(**STEPS, **config), conditions=[condition])


def channels(flux, condition, prompt="a fox", **config):
    """What the network sees beside the noise, (rows, columns of tokens, 320)."""
    chosen = plan(flux, condition, prompt, **config)
    seen = np.array(flux._prepare(chosen)[1][0].inputs.channels)[0]
    return seen.reshape(chosen.height // 16, chosen.width // 16, 320)


def encoded(flux, pixels):
    return np.array(pack_latents(flux._encode(mx.array(pixels), "masked", False)))[0]


def test_each_style_names_its_file_on_the_hub():
    assert FILES == STYLES
    assert {style: METHOD_LORAS[style] for style in FILES} == {
        style: f"ali-vilab/In-Context-LoRA:{file}.safetensors" for style, file in FILES.items()
    }


@pytest.mark.parametrize("style", FILES)
def test_a_style_plans_its_lora(random_flux, monkeypatch, tmp_path, style):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--ali-vilab--In-Context-LoRA"
    (repo / "snapshots" / "1").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("1")
    for file in FILES.values():
        (repo / "snapshots" / "1" / f"{file}.safetensors").touch()
    (planned,) = plan(random_flux("dev"), InContext(picture(), style=style)).loras
    assert planned == repo / "snapshots" / "1" / f"{FILES[style]}.safetensors"
    assert plan(random_flux("dev"), InContext(picture())).loras == ()


def test_an_unknown_style_is_refused_with_the_list(random_flux):
    with pytest.raises(UsageError, match="`style`: 'cubism' is unknown") as error:
        plan(random_flux("dev"), InContext(picture(), style="cubism"))
    assert all(f"`{style}`" in error.value.hint for style in FILES)


@pytest.mark.parametrize("layout", ["lr", "tb"])
def test_the_first_panel_holds_the_picture_at_each_noise_level(random_flux, layout):
    flux, seen = random_flux("dev"), []
    draw(
        flux,
        InContext(picture(), layout=layout),
        on_step=lambda progress: seen.append((progress.sigma, np.array(progress.latents[0]))),
    )
    noise = np.array(mx.random.normal((1, 24, 64), key=mx.random.key(3)))[0]
    shape = (3, 8, 64) if layout == "lr" else (6, 4, 64)

    def first(tokens):
        grid = tokens.reshape(shape)
        return grid[:, :4] if layout == "lr" else grid[:3]

    clean = encoded(flux, to_pixels(picture())).reshape(3, 4, 64)
    assert len(seen) == 3 and seen[-1][0] == 0
    for sigma, tokens in seen:
        expected = np.float32(sigma) * first(noise) + np.float32(1 - sigma) * clean
        assert np.abs(first(tokens) - expected).max() <= 1e-6
    assert np.array_equal(first(seen[-1][1]), clean)


@pytest.mark.parametrize(("layout", "full"), [("lr", (128, 48)), ("tb", (64, 96))])
def test_the_result_is_the_second_panel_in_the_asked_size(random_flux, layout, full):
    image = draw(random_flux("dev"), InContext(picture(40, 40), layout=layout))
    whole = image.artifacts["full"]
    assert (image.image.size, whole.size) == ((64, 48), full)
    kept = np.asarray(whole)[:, 64:] if layout == "lr" else np.asarray(whole)[48:]
    assert np.array_equal(np.asarray(image.image), kept)


@pytest.mark.parametrize(
    ("model", "condition", "prompt"),
    [
        ("fill", TryOn(picture(), mask(), picture(), layout="tb"), "x"),
        ("ic-edit", InContextEdit(picture(), "make it red", lora="", layout="tb"), ""),
    ],
)
def test_one_on_top_of_the_other_the_painted_panel_is_the_lower_one(random_flux, model, condition, prompt):
    flux = random_flux(model)
    found = flux.plan(3, prompt, Config(**STEPS), conditions=[condition])
    assert found.height == 2 * (found.width * 48 // 64 // 16 * 16)
    channels = np.array(condition.prepare(flux.stage(found)).inputs.channels)[0]
    masks = channels[:, 64:].reshape(found.height // 16, -1)
    assert not masks[: len(masks) // 2].any() and masks[len(masks) // 2 :].any()


def test_without_a_size_a_panel_has_the_preferred_one_of_the_picture_s_proportion(random_flux):
    chosen = plan(random_flux("dev"), InContext(picture(80, 160)))
    assert (chosen.height, chosen.width) == (720, 2 * 1456)


def test_the_noise_levels_are_shifted_for_all_tokens_that_are_denoised(random_flux):
    flux = random_flux("dev")
    wide = flux.plan(3, "x", Config(**STEPS, height=48, width=128))
    assert plan(flux, InContext(picture()), **SIZE).sigmas == wide.sigmas
    assert plan(flux, InContext(picture()), **SIZE).sigmas != flux.plan(3, "x", CONFIG).sigmas


def test_the_template_is_iced_it_s_own_and_takes_the_trimmed_instruction(random_flux):
    assert TEMPLATES["lr"] == (
        "A diptych with two side-by-side images of the same scene. On the right, the scene is exactly the same as on "
        "the left but {}"
    )
    chosen = plan(random_flux("fill"), InContextEdit(picture(), "  make it {night}\n", lora=""), prompt="")
    assert chosen.prompt == TEMPLATES["lr"].replace("{}", "make it {night}")
    image = draw(random_flux("fill"), InContextEdit(picture(64, 512), "make it night", lora=""), prompt="")
    assert image.metadata["prompt"] == TEMPLATES["lr"].format("make it night")
    assert image.metadata["request"]["prompt"] == ""


def test_a_prompt_of_one_s_own_goes_past_the_template(random_flux):
    assert plan(random_flux("fill"), InContextEdit(picture(), lora=""), prompt="two foxes").prompt == "two foxes"


@pytest.mark.parametrize("size", [(600, 800), (512, 512), (700, 300), (9, 1000), (1, 1)])
def test_in_context_edit_is_512_px_wide_and_floors_its_height(random_flux, size):
    chosen = plan(random_flux("fill"), InContextEdit(np.zeros((*size, 3), np.uint8), lora=""))
    assert chosen.width == 2 * 512
    assert chosen.height == max(16, 512 * size[0] // size[1] // 16 * 16)


def test_in_context_edit_says_that_it_uses_no_other_size(random_flux):
    (note,) = plan(random_flux("fill"), InContextEdit(picture(480, 640), lora=""), **SIZE).notes
    assert note == "in-context edit was trained at a width of 512 px: 512 x 384 px are drawn"


def test_in_context_edit_shows_the_picture_on_the_left_and_paints_the_right(random_flux):
    flux, source = random_flux("fill"), picture(64, 512)
    seen = channels(flux, InContextEdit(source, lora=""))
    assert (seen[:, :32, 64:] == 0).all() and (seen[:, 32:, 64:] == 1).all()
    canvas = np.concatenate([to_pixels(source), np.zeros((1, 3, 64, 512), np.float32)], axis=3)
    assert np.array_equal(seen[..., :64].reshape(-1, 64), encoded(flux, canvas))


def test_try_on_shows_the_garment_whole_and_hides_only_what_the_mask_covers(random_flux):
    flux, person, garment = random_flux("fill"), picture(), picture(seed=5)
    seen = channels(flux, TryOn(person, mask(), garment), **SIZE)
    assert (seen[:, :4, 64:] == 0).all()
    assert seen[..., 64:].sum() == (mask() > 0).sum()
    assert np.array_equal(seen[:, 4:, 64:].reshape(12, 256), np.array(mask_tokens(mask() > 0))[0])
    canvas = np.concatenate([to_pixels(garment), to_pixels(person) * (mask() == 0)], axis=3)
    assert np.array_equal(seen[..., :64].reshape(-1, 64), encoded(flux, canvas))


def test_try_on_has_a_prompt_of_its_own_and_takes_another(random_flux):
    condition = TryOn(picture(), mask(), picture())
    assert plan(random_flux("fill"), condition, prompt="").prompt == PROMPT
    assert plan(random_flux("fill"), condition, prompt="a coat").prompt == "a coat"


def test_try_on_is_576_px_wide_in_the_person_s_proportion(random_flux):
    tall = TryOn(np.zeros((800, 600, 3), np.uint8), np.full((800, 600), 255, np.uint8), picture())
    chosen = plan(random_flux("fill"), tall)
    assert (chosen.height, chosen.width) == (768, 2 * 576)
    assert (BY_NAME["try-on"].panel, BY_NAME["ic-edit"].panel, BY_NAME["tiny/ic-edit"].panel) == (576, 512, 128)


@pytest.fixture
def lora(tmp_path):
    """Make a small LoRA for the tiny fill network."""

    def make(name, seed):
        chance, layer = np.random.default_rng(seed), "transformer.transformer_blocks.0.attn.to_q"
        width = 32
        tensors = {
            f"{layer}.lora_A.weight": chance.standard_normal((4, width), np.float32),
            f"{layer}.lora_B.weight": chance.standard_normal((width, 4), np.float32),
        }
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        return str(path)

    return make


def latents(image):
    return np.array(image.artifacts["latents"])


def test_the_method_s_lora_comes_first_and_the_user_s_after_it_with_their_scales(oracle_model, lora):
    method, user, source = lora("method", 0), lora("user", 1), picture(64, 512)
    apart = Flux1(str(oracle_model("fill")), lora_paths=[user], lora_scales=[0.5])
    by_method = draw(apart, InContextEdit(source, lora=method))
    assert [file.path.stem for file in apart.parts.lora_files] == ["method", "user"]
    together = Flux1(str(oracle_model("fill")), lora_paths=[method, user], lora_scales=[1.0, 0.5])
    assert np.array_equal(latents(by_method), latents(draw(together, InContextEdit(source, lora=""))))


def test_the_method_s_lora_is_gone_with_the_method(oracle_model, lora):
    flux, source = Flux1(str(oracle_model("fill"))), picture(64, 512)
    before = latents(draw(flux, InContextEdit(source, lora="")))
    changed = latents(draw(flux, InContextEdit(source, lora=lora("method", 0))))
    assert np.abs(before - changed).max() > 1e-3
    assert np.array_equal(before, latents(draw(flux, InContextEdit(source, lora=""))))


def test_a_method_s_lora_of_a_text_encoder_leaves_no_prompt_behind(oracle_model, tmp_path):
    flux = Flux1(str(oracle_model("fill")))
    encoder = flux.parts.get("text_encoder").text_model.encoder.layers[0].self_attn.q_proj
    width, layer = encoder.weight.shape[0], "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    chance = np.random.default_rng(0)
    tensors = {
        f"{layer}.lora_A.weight": chance.standard_normal((4, width), np.float32),
        f"{layer}.lora_B.weight": chance.standard_normal((width, 4), np.float32),
    }
    save_file(tensors, tmp_path / "words.safetensors")
    source = picture(64, 512)
    plain = latents(draw(flux, InContextEdit(source, lora="")))
    assert (
        np.abs(plain - latents(draw(flux, InContextEdit(source, lora=str(tmp_path / "words.safetensors"))))).max()
        > 1e-5
    )
    assert np.array_equal(plain, latents(draw(flux, InContextEdit(source, lora=""))))


def test_a_lora_of_scale_0_is_none(oracle_model, lora):
    source = picture(64, 512)
    plain, off = (
        Flux1(str(oracle_model("fill"))),
        Flux1(str(oracle_model("fill")), lora_paths=[lora("user", 1)], lora_scales=[0.0]),
    )
    condition = InContextEdit(source, lora="")
    assert np.array_equal(latents(draw(plain, condition)), latents(draw(off, condition)))


def test_a_method_s_lora_that_is_damaged_is_refused_before_weights_are_read(oracle_model, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\0" * 7)
    flux = Flux1(str(oracle_model("fill")))
    with pytest.raises((UsageError, ModelError), match="broken"):
        draw(flux, InContextEdit(picture(), lora=str(broken)))
    assert not flux.parts._networks


@pytest.mark.parametrize(
    ("model", "condition", "prompt", "message"),
    [
        ("dev", InContext(picture(), layout="grid"), "x", "'grid' is unknown"),
        ("fill", InContextEdit(picture(), "make it red", lora="", layout="rl"), "", "'rl' is unknown"),
        ("fill", TryOn(picture(), mask(), picture(), layout="rl"), "x", "'rl' is unknown"),
        ("dev", InContext("/no/such.png"), "x", "`image`: there is no file"),
        ("fill", InContextEdit(picture(), lora=""), "", "neither a prompt nor an instruction"),
        ("fill", InContextEdit(picture(), "make it red", lora=""), "x", "both are given"),
        ("fill", InContextEdit(picture(), " ", lora=""), "", "the instruction is empty"),
        ("fill", InContextEdit(picture(), lora="/no/such/lora"), "x", "there is no LoRA `/no/such/lora`"),
        ("fill", TryOn("/no/such.png", mask(), picture()), "x", "`person`: there is no file"),
        ("fill", TryOn(picture(), mask(), "/no/such.png"), "x", "`garment`: there is no file"),
        ("fill", TryOn(picture(), mask(16, 16), picture()), "x", "the mask is 16 x 16 px, but its image 64 x 48"),
        ("fill", TryOn(picture(), np.zeros((48, 64), np.uint8), picture()), "x", "black everywhere"),
        ("dev", TryOn(picture(), mask(), picture()), "x", "takes 64 channels per token, but TryOn needs 384"),
        ("dev", InContextEdit(picture(), lora=""), "x", "takes 64 channels per token, but InContextEdit needs 384"),
        ("fill", InContext(picture()), "x", "takes 384 channels per token, but a plain picture needs 64"),
    ],
)
def test_what_cannot_be_meant_is_refused(random_flux, model, condition, prompt, message):
    with pytest.raises(UsageError, match=message):
        plan(random_flux(model), condition, prompt)


def test_a_condition_that_sets_the_size_cannot_stand_before_it(random_flux):
    with pytest.raises(UsageError, match="draws on a canvas of its own"):
        random_flux("dev").plan(3, "x", CONFIG, conditions=[ImageToImage(picture()), InContext(picture())])


@pytest.mark.parametrize("row", ["tiny/in-context", "tiny/ic-edit", "tiny/try-on"])
def test_built_in_rows_have_the_demonstration_s_defaults_and_room_for_the_words_of_two_panels(row):
    assert (BY_NAME[row].steps, BY_NAME[row].side, BY_NAME[row].text_tokens) == (8, 128, 64)
