"""The same questions to every condition.  A new method is one more row."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, Flux1, UsageError
from mflux.conditions import (
    Concepts,
    Control,
    ControlNet,
    Fill,
    FluxSpace,
    ImageToImage,
    InContext,
    InContextEdit,
    Inpaint,
    IPAdapter,
    Kontext,
    MaskedEdit,
    Redux,
    RFInversion,
    TryOn,
    Upscale,
)
from mflux.engine.slots import Condition, request_from_json

MODELS = Path(__file__).parents[1] / "data" / "oracle" / "models"
CONTROLNET, UNION = str(MODELS / "controlnet"), str(MODELS / "controlnet-union")  # of different depths
ADAPTER = str(MODELS.parent / "cases" / "ip-adapter" / "ip_adapter.safetensors")
CLIP_VISION = str(MODELS / "clip-vision")
SIZE = {"height": 48, "width": 64}
CONFIG = Config(num_inference_steps=3, max_sequence_length=16, **SIZE)


def make_picture(folder: Path) -> Path:
    random = np.random.default_rng(3)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    path = folder / "picture.png"
    coarse.resize((64, 48), Image.Resampling.BICUBIC).save(path)
    return path


def make_mask(folder: Path) -> Path:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:37, 21:50] = 255
    path = folder / "mask.png"
    Image.fromarray(mask).save(path)
    return path


@dataclass(frozen=True)
class Row:
    """One condition, the model it runs on, and how to turn it off (None: it cannot be)."""

    name: str
    model: str
    make: Callable[[Path, Path], Sequence[Condition]]
    off: Callable[[Path, Path], Sequence[Condition]] | None = None
    given: bool = False  # the picture is a given one, whatever the texts say


ROWS = [
    Row(
        "image-to-image",
        "dev",
        lambda picture, mask: [ImageToImage(picture, image_strength=0.4)],
        off=lambda picture, mask: [ImageToImage(picture, image_strength=0.0)],
    ),
    Row(
        "inpaint",
        "dev",
        lambda picture, mask: [Inpaint(picture, mask, strength=0.7)],
        off=lambda picture, mask: [Inpaint(picture, np.full((48, 64), 255, np.uint8))],
    ),
    Row("fill", "fill", lambda picture, mask: [Fill(picture, mask)]),
    Row(
        "kontext",
        "kontext",
        lambda picture, mask: [Kontext([picture, mask], fit="own")],
        off=lambda picture, mask: [Kontext([])],
    ),
    Row(
        "kontext, after two turns",
        "kontext",
        lambda picture, mask: [Kontext(picture, fit="own", turns=("a red fox",) * 2)],
    ),
    Row(
        "redux",
        "redux",
        lambda picture, mask: [Redux([picture, mask], strengths=[1.0, 0.5])],
        off=lambda picture, mask: [Redux([picture, mask], strengths=[0, 0])],
    ),
    Row("in-context", "dev", lambda picture, mask: [InContext(picture)]),
    Row("in-context, on top", "dev", lambda picture, mask: [InContext(picture, layout="tb")]),
    Row("in-context edit", "ic-edit", lambda picture, mask: [InContextEdit(picture, lora="")]),
    Row("try-on", "fill", lambda picture, mask: [TryOn(picture, mask, picture)]),
    Row("fill, edit in channels", "fill", lambda picture, mask: [Fill(picture, edit_mode="channels")]),
    Row("fill, edit beside", "fill", lambda picture, mask: [Fill(picture, edit_mode="spatial")]),
    Row("fill, outpaint", "fill", lambda picture, mask: [Fill(picture, mask, outpaint=[0, 16, 0, 0])]),
    Row("redux, added up", "redux", lambda picture, mask: [Redux([picture, mask], combine="sum")]),
    Row("masked edit", "kontext", lambda picture, mask: [MaskedEdit(picture, mask, strength=0.7)]),
    Row("masked edit, reference", "kontext", lambda picture, mask: [MaskedEdit(picture, mask, mask, fit="own")]),
    Row(
        "fluxspace + image-to-image",
        "dev",
        lambda picture, mask: [ImageToImage(picture, 0.4), FluxSpace(["red", "a star"], lambda_coarse=0.5, start=0)],
        off=lambda picture, mask: [ImageToImage(picture, 0.0), FluxSpace("red", lambda_fine=0)],
    ),
    Row("rf-inversion", "dev", lambda picture, mask: [RFInversion(picture)]),
    Row(
        "rf-inversion + fluxspace",
        "dev",
        lambda picture, mask: [RFInversion(picture, eta=0.7, sde=True, start=1), FluxSpace("red", start=1)],
    ),
    Row(
        "concepts + image-to-image",
        "dev",
        lambda picture, mask: [ImageToImage(picture, 0.4), Concepts(["red", "star"])],
        off=lambda picture, mask: [ImageToImage(picture, 0.0), Concepts(["red", "star"])],
    ),
    Row("concepts of a picture", "dev", lambda picture, mask: [Concepts(["red", "star"], image=picture)], given=True),
    Row("inpaint + rf-inversion", "dev", lambda picture, mask: [Inpaint(picture, mask), RFInversion(picture, eta=0.3)]),
    Row(
        "redux + fluxspace + concepts",
        "redux",
        lambda picture, mask: [Redux(picture), FluxSpace("red", start=0), Concepts(["red", "star"])],
    ),
    Row(
        "kontext + fluxspace + concepts",
        "kontext",
        lambda picture, mask: [Kontext(picture, fit="own"), FluxSpace("red", start=0), Concepts(["red", "star"])],
    ),
    Row("fill + image-to-image", "fill", lambda picture, mask: [ImageToImage(picture, 0.4), Fill(picture, mask)]),
    Row("control", "control", lambda picture, mask: [Control(picture)]),
    Row("control from edges", "control", lambda picture, mask: [Control(source=picture, kind="canny")]),
    Row(
        "controlnet",
        "dev",
        lambda picture, mask: [ControlNet(source=picture, model=CONTROLNET)],
        off=lambda picture, mask: [ControlNet(picture, CONTROLNET, strength=0)],
    ),
    Row(
        "controlnets of different depth",
        "dev",
        lambda picture, mask: [ControlNet(picture, CONTROLNET), ControlNet(picture, UNION, mode="depth", end=0.7)],
    ),
    Row(
        "upscale",
        "dev",
        lambda picture, mask: [Upscale(picture, model=CONTROLNET)],
        off=lambda picture, mask: [Upscale(picture, strength=0, model=CONTROLNET)],
    ),
    Row(
        "ip-adapter",
        "dev",
        lambda picture, mask: [IPAdapter(ADAPTER, picture, encoder=CLIP_VISION)],
        off=lambda picture, mask: [IPAdapter(ADAPTER, picture, scale=0.0, encoder=CLIP_VISION)],
    ),
    Row(
        "ip-adapter + controlnet + image-to-image",
        "dev",
        lambda picture, mask: [
            IPAdapter(ADAPTER, picture, scale=(0.5, 1.5), encoder=CLIP_VISION),
            ControlNet(picture, CONTROLNET),
            ImageToImage(picture, 0.3),
        ],
    ),
    Row(
        "controlnet + inpaint",
        "dev",
        lambda picture, mask: [ControlNet(picture, CONTROLNET), Inpaint(picture, mask, strength=0.7)],
    ),
    Row(
        "kontext + controlnet + ip-adapter",
        "dev",
        lambda picture, mask: [
            Kontext(picture, fit="own"),
            ControlNet(picture, CONTROLNET),
            IPAdapter(ADAPTER, picture, encoder=CLIP_VISION),
        ],
    ),
    Row("redux + controlnet", "redux", lambda picture, mask: [Redux(picture), ControlNet(picture, CONTROLNET)]),
]
OFF = [row for row in ROWS if row.off]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: Any) -> Row:
    return request.param


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make_picture(tmp_path), make_mask(tmp_path)


def draw(flux: Flux1, conditions: Sequence[Condition], seed: Any = 5, config: Config = CONFIG, **rest: Any) -> Any:
    return flux.generate_image(seed=seed, prompt="a red fox", config=config, conditions=conditions, **rest)


def latents(image: Any) -> np.ndarray:
    return np.array(image.artifacts["latents"])


@pytest.mark.parametrize("row", OFF, ids=lambda row: row.name)
def test_off_is_the_plain_picture_bit_for_bit(row, files, random_flux):
    flux = random_flux(row.model)
    plain, off = draw(flux, []), draw(flux, row.off(*files))
    assert np.array_equal(latents(plain), latents(off))
    assert np.array_equal(np.asarray(plain.image), np.asarray(off.image))


@pytest.mark.parametrize("row", OFF, ids=lambda row: row.name)
def test_on_is_another_picture_than_the_plain_one(row, files, random_flux):
    flux = random_flux(row.model)
    assert np.abs(latents(draw(flux, [])) - latents(draw(flux, row.make(*files)))).max() > 0.1


def test_a_batch_of_seeds_draws_what_each_draws_alone(row, files, random_flux):
    flux, conditions = random_flux(row.model), row.make(*files)
    batch = draw(flux, conditions, seed=[5, 9, 2**63])
    for image, seed in zip(batch, [5, 9, 2**63], strict=True):
        alone = draw(flux, conditions, seed=seed)
        assert np.abs(latents(image) - latents(alone)).max() <= 1e-5  # measured: 3e-6
        grey = np.abs(np.asarray(image.image, np.int16) - np.asarray(alone.image, np.int16))
        assert grey.max() <= 1


def test_the_same_object_used_twice_gives_the_same_picture(row, files, random_flux):
    flux, conditions = random_flux(row.model), row.make(*files)
    first, second = draw(flux, conditions), draw(flux, conditions)
    assert np.array_equal(latents(first), latents(second))


def test_it_composes_with_true_cfg(row, files, random_flux):
    flux, conditions = random_flux(row.model), row.make(*files)
    guided = replace(CONFIG, true_cfg=2.0)
    plain = latents(draw(flux, conditions))
    same = latents(draw(flux, conditions, config=guided, negative_prompt="a red fox"))
    other = latents(draw(flux, conditions, config=guided, negative_prompt="snow"))
    assert np.abs(plain - same).max() <= 1e-4  # v + 2 (v - v): guidance away from the prompt itself changes nothing
    assert row.given or np.abs(plain - other).max() > 1e-3


def test_the_request_survives_json(row, files, random_flux):
    request = random_flux(row.model).plan(5, "a red fox", CONFIG, conditions=row.make(*files)).request
    again = request_from_json(json.loads(json.dumps(request.to_json())))
    assert again.to_json() == request.to_json()
    assert [type(each) for each in again.conditions] == [type(each) for each in request.conditions]


def test_it_refuses_before_weights_are_read(row, files, random_flux):
    fresh = Flux1(random_flux(row.model).parts.source)
    files[0].write_bytes(files[0].read_bytes()[:60])
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        draw(fresh, row.make(*files))
    assert not fresh.parts._networks


def test_it_does_not_change_the_noise(row, files, random_flux):
    """The start noise of a seed is the same whatever conditions are there: own latents of that noise agree."""
    flux, conditions = random_flux(row.model), row.make(*files)
    tokens = flux.plan(5, "x", CONFIG, conditions=conditions).tokens
    noise = mx.random.normal((1, tokens, 64), key=mx.random.key(5))
    assert np.array_equal(latents(draw(flux, conditions)), latents(draw(flux, conditions, latents=noise)))


def test_two_conditions_that_need_the_same_slot_are_refused(files, random_flux):
    with pytest.raises(UsageError, match="both make the first latents"):
        draw(random_flux("dev"), [ImageToImage(files[0]), Inpaint(*files)])
    with pytest.raises(UsageError, match="both need the network's extra channels"):
        draw(random_flux("fill"), [Fill(*files), Fill(*files)])
