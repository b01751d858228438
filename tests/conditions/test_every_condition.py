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
from safetensors.numpy import save_file

from mflux import Config, Flux1, UsageError
from mflux.conditions import (
    HOMES,
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
CLIP_VISION, DEPTH_PRO = str(MODELS / "clip-vision"), str(MODELS / "depth-pro")
EMBEDS = np.random.default_rng(4).normal(size=(2, 24))  # what CLIP would see in two pictures
WHITE = np.full((48, 64), 255, np.uint8)
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


def make_lora(folder: Path) -> str:
    """An adapter of the tiny fill network."""
    random, layer = np.random.default_rng(0), "transformer.transformer_blocks.0.attn.to_q"
    factors = {f"{layer}.lora_A.weight": (4, 32), f"{layer}.lora_B.weight": (32, 4)}
    path = folder / "lora.safetensors"
    save_file({name: random.standard_normal(shape, np.float32) for name, shape in factors.items()}, path)
    return str(path)


@dataclass(frozen=True)
class Row:
    """One condition, the model it runs on, and how to turn it off (None: it cannot be)."""

    name: str
    model: str
    make: Callable[[Path, Path], Sequence[Condition]]
    off: Callable[[Path, Path], Sequence[Condition]] | None = None
    plain: Callable[[Path, Path], Sequence[Condition]] = lambda picture, mask: []  # what it is when it is off
    given: bool = False  # the picture is a given one, whatever the texts say
    tiled: bool = False  # it draws in tiles, which what sees the whole picture refuses


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
        off=lambda picture, mask: [Inpaint(picture, WHITE)],
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
    Row(
        "in-context edit, by a LoRA",
        "ic-edit",
        lambda picture, mask: [InContextEdit(picture, lora=make_lora(picture.parent))],
    ),
    Row("try-on", "fill", lambda picture, mask: [TryOn(picture, mask, picture)]),
    Row("try-on, on top", "fill", lambda picture, mask: [TryOn(picture, mask, picture, layout="tb")]),
    Row("in-context edit, on top", "ic-edit", lambda picture, mask: [InContextEdit(picture, lora="", layout="tb")]),
    Row("fill, edit in channels", "fill", lambda picture, mask: [Fill(picture, edit_mode="channels")]),
    Row("fill, edit beside", "fill", lambda picture, mask: [Fill(picture, edit_mode="spatial")]),
    Row("fill, outpaint", "fill", lambda picture, mask: [Fill(picture, mask, outpaint=[0, 16, 0, 0])]),
    Row("redux, added up", "redux", lambda picture, mask: [Redux([picture, mask], combine="sum")]),
    Row(
        "masked edit",
        "kontext",
        lambda picture, mask: [MaskedEdit(picture, mask, strength=0.7)],
        off=lambda picture, mask: [MaskedEdit(picture, WHITE, feather=0)],
        plain=lambda picture, mask: [Kontext(picture, fit="own")],
    ),
    Row("masked edit, a crop", "kontext", lambda picture, mask: [MaskedEdit(picture, mask, crop=4)]),
    Row("masked edit, latents", "kontext", lambda picture, mask: [MaskedEdit(picture, mask, composite="latent")]),
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
    Row("control from depth", "control", lambda picture, mask: [Control(source=picture, depth_model=DEPTH_PRO)]),
    Row(
        "controlnet from depth",
        "dev",
        lambda picture, mask: [ControlNet(source=picture, model=UNION, mode="depth", depth_model=DEPTH_PRO)],
    ),
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
        "upscale in tiles",
        "dev, 32 px",
        lambda picture, mask: [Upscale(picture, model=CONTROLNET)],
        off=lambda picture, mask: [Upscale(picture, strength=0, model=CONTROLNET)],
        tiled=True,
    ),
    Row(
        "ip-adapter",
        "dev",
        lambda picture, mask: [IPAdapter(ADAPTER, picture, encoder=CLIP_VISION)],
        off=lambda picture, mask: [IPAdapter(ADAPTER, picture, scale=0.0, encoder=CLIP_VISION)],
    ),
    Row(
        "ip-adapter by embeds + image-to-image",
        "dev",
        lambda picture, mask: [IPAdapter(ADAPTER, embeds=EMBEDS), ImageToImage(picture, 0.3)],
        off=lambda picture, mask: [IPAdapter(ADAPTER, embeds=EMBEDS, scale=0.0), ImageToImage(picture, 0.0)],
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
WHOLE = [row for row in ROWS if not row.tiled]


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


def test_every_condition_is_asked(files):
    asked = {type(condition).__name__ for row in ROWS for condition in row.make(*files)}
    assert asked == set(HOMES)


@pytest.mark.parametrize("row", OFF, ids=lambda row: row.name)
def test_off_is_the_plain_picture_bit_for_bit(row, files, random_flux):
    flux = random_flux(row.model)
    plain, off = draw(flux, row.plain(*files)), draw(flux, row.off(*files))
    assert np.array_equal(latents(plain), latents(off))
    assert np.array_equal(np.asarray(plain.image), np.asarray(off.image))


@pytest.mark.parametrize("row", OFF, ids=lambda row: row.name)
def test_on_is_another_picture_than_the_plain_one(row, files, random_flux):
    flux = random_flux(row.model)
    plain, on = draw(flux, row.plain(*files)), draw(flux, row.make(*files))
    assert np.abs(latents(plain) - latents(on)).max() > 0.1


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


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: row.name)
def test_looking_for_concepts_changes_no_bit(row, files, random_flux):
    flux = random_flux(row.model)
    others = [condition for condition in row.make(*files) if not isinstance(condition, Concepts)]
    plain, seen = draw(flux, others), draw(flux, [*others, Concepts(["red", "star"])])
    assert "segmentation" in seen.artifacts
    assert np.array_equal(latents(plain), latents(seen))
    assert np.array_equal(np.asarray(plain.image), np.asarray(seen.image))


@pytest.mark.parametrize(
    ("row", "true_cfg"),
    [*(pytest.param(row, 1.0, id=row.name) for row in WHOLE), pytest.param(WHOLE[0], 2.0, id="true CFG")],
)
def test_a_step_cache_that_leaves_nothing_out_changes_no_bit(row, files, random_flux, true_cfg):
    flux, conditions, config = random_flux(row.model), row.make(*files), replace(CONFIG, true_cfg=true_cfg)
    plain = latents(draw(flux, conditions, config=config))
    for cache in ("fb:0", "fb:1e-6"):  # off, and one that always finds too much of a change
        cached = draw(flux, conditions, config=replace(config, step_cache=cache))
        assert np.array_equal(plain, latents(cached))


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


PIXELS = np.random.default_rng(6).integers(0, 256, (96, 128, 4), np.uint8)  # what no row resizes
HOLES = np.where(PIXELS[..., 3:] < 128, 0, 255).astype(np.uint8)
GREY = PIXELS[..., 0].astype(np.uint16)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees
# A picture, how it is saved, and what of it is seen.
KINDS = {
    "CMYK": (Image.fromarray(PIXELS, "CMYK"), {}, Image.fromarray(PIXELS, "CMYK").convert("RGB")),
    "16 bits": (Image.fromarray(GREY * 257), {}, Image.fromarray(PIXELS[..., 0])),
    "alpha": (
        Image.fromarray(np.concatenate([PIXELS[..., :3], HOLES], axis=2)),
        {},
        Image.fromarray(np.maximum(PIXELS[..., :3], 255 - HOLES)),  # laid on white
    ),
    "one pixel": (
        Image.fromarray(PIXELS[:1, :1, :3]),
        {},
        Image.new("RGB", (16, 16), tuple(map(int, PIXELS[0, 0, :3]))),
    ),
    "turned": (
        Image.fromarray(PIXELS[..., :3]).transpose(Image.Transpose.ROTATE_90),
        {"exif": TURNED},
        Image.fromarray(PIXELS[..., :3]),
    ),
}
TAKEN = ("fill", "redux", "in-context", "in-context edit", "try-on", "control from edges", "control from depth")
TAKEN += ("controlnet", "upscale", "ip-adapter")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        pytest.param(row, kind, id=f"{row.name}, {kind}")
        for row in ROWS
        for kind in KINDS
        if row.name in TAKEN and (row.name, kind) != ("control from depth", "one pixel")  # whose depth is one number
    ],
)
def test_a_picture_of_any_kind_draws_what_its_plain_pixels_draw(row, kind, random_flux, tmp_path):
    picture, saving, plain = KINDS[kind]
    flux, drawn = random_flux(row.model), []
    config = Config(num_inference_steps=1, max_sequence_length=16, height=96, width=128)
    for name, image, how in (("given", picture, saving), ("plain", plain, {})):
        place, mask = tmp_path / f"{name}.{'tif' if image.mode == 'CMYK' else 'png'}", tmp_path / f"{name}_mask.png"
        image.save(place, **how)
        paint = np.full(image.size if how else image.size[::-1], 255, np.uint8)
        paint[:, 64:] = 0
        Image.fromarray(paint).save(mask)
        drawn.append(latents(draw(flux, row.make(place, mask), config=config)))
    assert np.array_equal(*drawn)


def test_two_conditions_that_need_the_same_slot_are_refused(files, random_flux):
    with pytest.raises(UsageError, match="both make the first latents"):
        draw(random_flux("dev"), [ImageToImage(files[0]), Inpaint(*files)])
    with pytest.raises(UsageError, match="both need the network's extra channels"):
        draw(random_flux("fill"), [Fill(*files), Fill(*files)])
