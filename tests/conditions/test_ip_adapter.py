"""IP-Adapter: what it looks at, how much, in which pass; the numbers are in tests/parity."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mflux import Config, Flux1, ModelError, UsageError
from mflux.conditions import IPAdapter
from mflux.conditions.ip_adapter import clip_pixels
from mflux.engine.slots import request_from_json
from mflux.weights.load import load_network, read_config
from mflux.weights.resolve import Side

CONFIG = Config(num_inference_steps=2, max_sequence_length=16, height=48, width=64)
RANDOM = np.random.default_rng(4)
VECTOR, OTHER = RANDOM.normal(size=24).astype(np.float32), RANDOM.normal(size=24).astype(np.float32)


def picture() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.fixture
def file(oracle_model) -> str:
    return str(oracle_model("../cases/ip-adapter/ip_adapter.safetensors"))


@pytest.fixture
def encoder(oracle_model) -> str:
    return str(oracle_model("clip-vision"))


@pytest.fixture
def latents(random_flux):
    def draw(*conditions, config=CONFIG, **rest) -> np.ndarray:
        images = random_flux("dev").generate_image(1, "x", config, conditions=conditions, **rest)
        return np.array(images.artifacts["latents"])

    return draw


def test_a_picture_and_its_vector_draw_the_same(latents, file, encoder):
    network = load_network("clip_vision", Path(encoder))
    vector = network(mx.array(clip_pixels(picture(), 56)))
    drawn = latents(IPAdapter(file, picture(), encoder=encoder))
    assert np.array_equal(drawn, latents(IPAdapter(file, embeds=vector)))
    assert np.abs(drawn - latents(IPAdapter(file, embeds=OTHER))).max() > 1e-3


def test_two_pictures_are_not_one(latents, file):
    both = latents(IPAdapter(file, embeds=np.stack([VECTOR, OTHER])))
    swapped = latents(IPAdapter(file, embeds=np.stack([OTHER, VECTOR])))
    assert np.abs(both - latents(IPAdapter(file, embeds=VECTOR))).max() > 1e-3
    assert np.abs(both - swapped).max() <= 1e-5  # tokens without positions: their order does not matter


def test_the_negative_pass_sees_the_same_picture_unless_told_otherwise(latents, file):
    guided = Config(num_inference_steps=2, max_sequence_length=16, height=48, width=64, true_cfg=3.0)
    rest = {"config": guided, "negative_prompt": "snow"}
    same = latents(IPAdapter(file, embeds=VECTOR), **rest)
    assert np.array_equal(same, latents(IPAdapter(file, embeds=VECTOR, negative_embeds=VECTOR), **rest))
    assert np.abs(same - latents(IPAdapter(file, embeds=VECTOR, negative_embeds=OTHER), **rest)).max() > 1e-3


def test_scales_of_blocks_that_are_all_the_same_are_one_scale(latents, file):
    assert np.array_equal(
        latents(IPAdapter(file, embeds=VECTOR, scale=0.7)), latents(IPAdapter(file, embeds=VECTOR, scale=[0.7, 0.7]))
    )
    assert (
        np.abs(
            latents(IPAdapter(file, embeds=VECTOR, scale=[0.7, 0.0]))
            - latents(IPAdapter(file, embeds=VECTOR, scale=0.7))
        ).max()
        > 1e-4
    )


def test_the_vectors_survive_json(random_flux, file):
    request = random_flux("dev").plan(1, "x", CONFIG, conditions=[IPAdapter(file, embeds=mx.array(VECTOR))]).request
    again = request_from_json(json.loads(json.dumps(request.to_json())))
    assert np.array_equal(np.float32(again.conditions[0].embeds[0]), VECTOR)


def test_other_converters_names_are_read_too(latents, file, tmp_path):
    renamed = {}
    for name, value in load_file(file).items():
        name = name.replace("ip_adapter_proj_model", "image_proj").replace("double_blocks.", "ip_adapter.")
        name = name.replace("processor.ip_adapter_double_stream_k_proj", "to_k_ip")
        renamed[name.replace("processor.ip_adapter_double_stream_v_proj", "to_v_ip")] = value
    save_file(renamed, tmp_path / "ip_adapter.safetensors")
    drawn = latents(IPAdapter(str(tmp_path), embeds=VECTOR))  # a folder with the usual name in it
    assert np.array_equal(drawn, latents(IPAdapter(file, embeds=VECTOR)))


def test_sixteen_tokens_are_read_from_the_shapes(file, tmp_path):
    tensors = load_file(file)
    for name in ("weight", "bias"):
        tensors[f"ip_adapter_proj_model.proj.{name}"] = np.repeat(
            tensors[f"ip_adapter_proj_model.proj.{name}"], 4, axis=0
        )
    save_file(tensors, tmp_path / "sixteen.safetensors")
    assert read_config("ip_adapter", tmp_path / "sixteen.safetensors").tokens == 16


def test_the_shorter_side_fits_and_the_middle_is_taken():
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    pixels = clip_pixels(wide, 20)
    assert pixels.shape == (1, 3, 20, 20)
    assert pixels[0, 0, :, 2:-2].min() > 1.9  # white, normalised: (1 - 0.48) / 0.27


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embeds": None}, "there is no picture"),
        ({"image": np.zeros((9, 9, 3), np.uint8)}, "both `image` and `embeds`"),
        ({"scale": 2.5}, "2.5 is out of range"),
        ({"scale": float("nan")}, "nan is not a number"),
        ({"scale": [0.1, 0.2, 0.3]}, "3 scales for 2 joint blocks"),
        ({"embeds": np.zeros(25)}, "the vectors have width 25, but the adapter takes 24"),
        ({"file": "adapter.bin"}, "is a pickle"),
        ({"file": "no-such.safetensors"}, "there is no folder `no-such"),
    ],
)
def test_what_cannot_be_meant_is_refused(random_flux, file, values, message):
    adapter = IPAdapter(**{"file": file, "embeds": VECTOR, **values})
    with pytest.raises(UsageError, match=message):
        random_flux("dev").plan(1, "x", CONFIG, conditions=[adapter])


@pytest.mark.parametrize("embeds", ["red", [], [float("inf")], {"a": 1}, 3.0])
def test_what_is_no_vector_is_refused(file, embeds):
    with pytest.raises(UsageError, match="vectors"):
        IPAdapter(file, embeds=embeds)


def test_an_adapter_for_another_model_is_refused_with_both_sizes(random_flux, file, oracle_model, tmp_path):
    tensors = load_file(file)
    deeper = {name.replace("double_blocks.1.", "double_blocks.2."): value for name, value in tensors.items()}
    save_file(tensors | deeper, tmp_path / "deeper.safetensors")
    with pytest.raises(UsageError, match="is for joint blocks 3, but the transformer has 2"):
        adapter = IPAdapter(str(tmp_path / "deeper.safetensors"), embeds=VECTOR)
        random_flux("dev").plan(1, "x", CONFIG, conditions=[adapter])
    lora = oracle_model("../cases/lora-attn-a-peft")
    with pytest.raises(ModelError, match="is no IP-Adapter of FLUX"):
        adapter = IPAdapter(str(next(lora.glob("lora*.safetensors"))), embeds=VECTOR)
        random_flux("dev").plan(1, "x", CONFIG, conditions=[adapter])


def test_an_encoder_of_another_width_is_refused(random_flux, file, encoder, tmp_path):
    import shutil

    import hostile

    other = shutil.copytree(encoder, tmp_path / "other")
    hostile.edit_json(other / "config.json", projection_dim=16)
    with pytest.raises(UsageError, match="have width 16, but the adapter takes 24"):
        adapter = IPAdapter(file, picture(), encoder=str(other))
        random_flux("dev").plan(1, "x", CONFIG, conditions=[adapter])


def test_with_scale_zero_the_adapter_takes_no_part(oracle_model, file):
    flux = Flux1(str(oracle_model("dev")))
    flux.generate_image(1, "x", CONFIG, conditions=[IPAdapter(file, embeds=VECTOR, scale=0)])
    assert not any(isinstance(part, Side) for part in flux.parts._networks)


def test_the_size_of_clip_s_picture_does_not_depend_on_its_shape():
    tall = np.asarray(Image.fromarray(picture()).resize((31, 200)))
    assert clip_pixels(tall, 56).shape == clip_pixels(picture(), 56).shape == (1, 3, 56, 56)
