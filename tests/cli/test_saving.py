"""mflux-save, mflux-info, mflux-check and mflux-lora-library, and LoRAs on the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

DRAW = ("--prompt", "x", "--steps", "1", "--seed", "1")


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """A library with two LoRAs for `tiny`; the second one has a layer that no FLUX.1 has."""
    folder, random = tmp_path / "library" / "inks", np.random.default_rng(0)
    folder.mkdir(parents=True)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": random.standard_normal((4, 128), np.float32)}
    tensors[f"{layer}.lora_B.weight"] = random.standard_normal((128, 4), np.float32)
    save_file(tensors, folder / "ink.safetensors")
    more = {name.replace("blocks.0", "blocks.99"): value for name, value in tensors.items()}
    save_file(tensors | more, folder / "odd.safetensors")
    save_file(tensors, folder / "0.safetensors")  # a shard of a saved model
    monkeypatch.setenv("LORA_LIBRARY_PATH", str(tmp_path / "library"))
    return folder


def test_a_model_is_saved_checked_described_and_drawn_with(cli):
    done = cli("--model", "tiny", "--path", "small", "--quantize", "4", command="mflux-save")
    assert (done.code, done.out) == (0, "small\n")
    done = cli("small", command="mflux-check")
    assert done.code == 0 and done.out.startswith("small: ") and "as they were saved" in done.out
    said = cli("small", command="mflux-info").out
    assert "quantized to 4 bits" in said and "3 joint, 6 single" in said and "tiny" in said
    assert cli("--model", "small", *DRAW).out == "image.png\n"
    assert cli("--path", "small", "--model", "tiny", *DRAW).out == "image_1.png\n", "as mflux 0.8 is called"
    done = cli("--model", "small", "--quantize", "8", *DRAW)
    assert done.code == 0 and "quantize 8 is not used: the model is saved with 4 bits" in done.err


def test_a_damaged_save_is_told_with_its_file(cli):
    cli("--model", "tiny", "--path", "small", command="mflux-save")
    path = Path("small/vae/0.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    done = cli("small", command="mflux-check")
    assert done.code == 1 and "`vae/0.safetensors` is damaged" in done.words and "hint: " in done.words
    shutil.rmtree("small/vae")
    done = cli("small", command="mflux-check")
    assert done.code == 2 and "`vae`" in done.words


def test_a_model_without_a_manifest_is_checked_by_its_tensors(cli, oracle_model):
    done = cli(oracle_model("dev"), command="mflux-check")
    assert done.code == 0 and "no manifest" in done.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "`--model` is missing"),
        (("--model", "tiny"), "`--path` is missing"),
        (("--model", "tiny", "--path", "x", "--layout", "bfl"), "'bfl' is unknown"),
        (("--model", "tiny", "--path", "x", "--quantize", "7"), "7 is unknown"),
        (("--model", "tiny", "--path", "x", "--layout", "diffusers", "-q", "4"), "holds whole weights"),
        (("--model", "tiny", "--path", "."), "is there already"),
        (("--model", "nothing", "--path", "x"), "unknown model `nothing`"),
        (("--model", "tiny", "--path", "x", "--lora", "none"), "there is no LoRA `none`"),
    ],
)
def test_a_save_that_cannot_be_is_refused(refused, flags, words):
    Path("there").mkdir(exist_ok=True)
    problem, hint = refused(*flags, command="mflux-save") if "." not in flags else refuse_full_folder(refused, flags)
    assert words in problem and hint


def refuse_full_folder(refused, flags):
    Path("note.txt").write_text("x")
    return refused(*flags, command="mflux-save")


def test_pictures_tell_how_they_were_drawn(cli):
    cli("--model", "tiny", *DRAW)
    done = cli("image.png", command="mflux-info")
    assert done.code == 0 and '"seed": 1' in done.out and '"prompt": "x"' in done.out


@pytest.mark.parametrize("name", ["none.png", "notes.txt", "model.ckpt", "plain.png"])
def test_what_info_cannot_read_is_refused(cli, name):
    from PIL import Image

    Path("notes.txt").write_text("x")
    Path("model.ckpt").write_bytes(b"\x80\x04")
    Image.new("RGB", (16, 16)).save("plain.png")
    done = cli(name, command="mflux-info")
    assert done.code == 2 and name in done.words and "hint: " in done.words


def test_info_knows_loras(cli, loras, oracle_model):
    said = cli(loras / "odd.safetensors", command="mflux-info").out
    assert "LoRA (2 layers)" in said and "diffusers, PEFT (2)" in said and "4 (2)" in said
    kohya = oracle_model("../cases/lora-attn-c-kohya/lora.safetensors")
    assert "kohya, with Black Forest Labs' names" in cli(kohya, command="mflux-info").out
    checkpoint = oracle_model("../cases/checkpoint-bfl/flux.safetensors")
    assert "checkpoint" in cli(checkpoint, command="mflux-info").out


def test_the_library_lists_names_that_can_be_used(cli, loras):
    done = cli(command="mflux-lora-library")
    assert done.out == f"ink  {loras / 'ink.safetensors'}\nodd  {loras / 'odd.safetensors'}\n"
    assert cli("list", "--paths", loras, command="mflux-lora-library").out == done.out
    assert cli("--model", "tiny", *DRAW, "--lora", "ink", "0.5").code == 0


def test_an_empty_library_says_how_to_fill_it(cli, monkeypatch):
    monkeypatch.delenv("LORA_LIBRARY_PATH", raising=False)
    done = cli(command="mflux-lora-library")
    assert done.code == 2 and "LORA_LIBRARY_PATH" in done.words


def pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path))


def test_the_ways_to_name_loras_draw_the_same(cli, loras):
    file = loras / "ink.safetensors"
    for flags in (
        ("--lora", file, "0.3", "--lora", "ink"),
        ("--lora-paths", file, "ink", "--lora-scales", "0.3"),
        ("--lora", "ink", "1.3"),
    ):
        done = cli("--model", "tiny", *DRAW, *flags)
        assert done.code == 0 and "2 tensors are applied to 1 layers" in done.err
    assert np.array_equal(pixels("image.png"), pixels("image_1.png"))
    assert np.abs(pixels("image.png").astype(int) - pixels("image_2.png")).max() <= 1
    cli("--model", "tiny", *DRAW)
    assert not np.array_equal(pixels("image.png"), pixels("image_3.png"))


def test_baked_loras_draw_what_side_paths_draw(cli, loras):
    for flags in ((), ("--bake-lora",), ("--no-bake-lora",)):
        assert cli("--model", "tiny", *DRAW, "--lora", "ink", "0.3", *flags).code == 0
    assert np.abs(pixels("image.png").astype(int) - pixels("image_1.png")).max() <= 1
    assert np.array_equal(pixels("image.png"), pixels("image_2.png"))


def test_half_a_lora_is_refused_unless_it_is_allowed(cli, refused, loras):
    problem, hint = refused("--model", "tiny", *DRAW, "--lora", "odd")
    assert "1 of its 2 layers are not in this model" in problem and "`--allow-partial-lora`" in hint
    done = cli("--model", "tiny", *DRAW, "--lora", "odd", "--allow-partial-lora")
    assert done.code == 0 and "2 tensors are applied to 1 layers; 1 of its layers are not" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lora", "ink", "strong"), "the scale 'strong' is not a number"),
        (("--lora", "ink", "nan"), "nan"),
        (("--lora", "ink", "1", "2"), "has 3 words"),
        (("--lora", "ink", "--lora-paths", "odd"), "are both given"),
        (("--lora", "ink", "--bake-lora", "--no-bake-lora"), "are both given"),
        (("--lora", "inc"), "there is no LoRA `inc`"),
        (("--lora-paths", "ink", "--lora-scales", "1", "2"), "2 scales for 1 LoRAs"),
    ],
)
def test_wrong_loras_are_refused(refused, loras, flags, words):
    problem, hint = refused("--model", "tiny", *DRAW, *flags)
    assert words in problem and hint


def test_low_ram_draws_the_same_and_lets_go(cli):
    from mflux import Config, Flux1

    lean, plain = Flux1("tiny", low_ram=True), Flux1("tiny")
    config = Config(num_inference_steps=2)
    for seeds in (3, [3, 4]):
        one, other = (flux.generate_image(seeds, "a red circle", config) for flux in (lean, plain))
        one, other = ([each] if seeds == 3 else each for each in (one, other))
        assert all(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    assert set(plain.parts._networks) > set(lean.parts._networks)
    cli("--model", "tiny", *DRAW, "--low-ram")
    cli("--model", "tiny", *DRAW)
    assert np.array_equal(pixels("image.png"), pixels("image_1.png"))


def test_a_saved_lora_needs_no_file_any_more(cli, loras):
    assert cli("--model", "tiny", "--path", "inked", "--lora", "ink", "0.3", command="mflux-save").code == 0
    assert "ink.safetensors x 0.3" in cli("inked", command="mflux-info").out
    shutil.rmtree(loras)
    assert cli("--model", "inked", *DRAW).code == 0
