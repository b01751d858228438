"""Examples as arrays: latents of the picture, encoded texts, and the inputs of the run's kind.

Each kind of training is the plan and the preparation of the condition that later draws with the adapter, so a trained
edit sees what a drawn one sees.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.conditions import Fill, Kontext
from mflux.conditions.side_by_side import Panels
from mflux.engine.latents import pack_latents
from mflux.engine.network import Branch
from mflux.engine.parts import Parts
from mflux.engine.request import CELL, Config
from mflux.engine.slots import Inputs, Plan, Stage
from mflux.errors import UsageError
from mflux.images.masks import open_mask
from mflux.images.picture import open_grey, open_picture, to_pixels
from mflux.images.sizes import fit
from mflux.training.config import SpecError, placed
from mflux.training.spec import Item, Spec
from mflux.weights.files import Arrays, Kept, digest

log = logging.getLogger("mflux")
SMALLEST_SIDE = 64
SAME_PROPORTION = 1.02  # of an input picture and its edit, at most
# Kind -> the condition that draws so, of an input picture (H, W, 3).
CONDITIONS: dict[str, Any] = {
    "t2i": None,
    "kontext": lambda picture: Kontext([picture], fit="stretch"),
    "fill_edit": lambda picture: Fill(picture, edit_mode="channels", composite=False),
    "fill_spatial": lambda picture: Fill(picture, edit_mode="spatial", composite=False),
}


class Model(Protocol):
    """What training needs of a Flux1."""

    parts: Parts

    def encode_prompt(self, prompt: str, prompt_2: str | None, text_tokens: int) -> tuple[mx.array, mx.array]: ...
    def plan(self, seed: int, prompt: str, config: Config, *, conditions: Sequence[Any]) -> Plan: ...
    def stage(self, plan: Plan) -> Stage: ...
    def generate_image(self, seed: int, prompt: str, config: Config, *, conditions: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Source:
    """One example of the file, its words and pictures found.  prior: it keeps the class, and is not the subject.

    size: height and width in px that it is trained at.
    """

    item: Item
    prompt: str
    image: Path
    input_image: Path | None
    mask: Path | None
    size: tuple[int, int]
    digest: str  # of everything that its arrays follow from
    prior: bool = False
    mirrored: bool = False


@dataclass(frozen=True)
class Example:
    """One example as arrays: x0 (1, S, 64) float32, its text, the text of a dropped caption, inputs, loss weights."""

    source: Source
    plan: Plan
    x0: mx.array
    branch: Branch
    unconditional: Branch | None
    inputs: Inputs
    region: mx.array | None
    mirror: "Example | None" = None  # the same example mirrored, for draws that see it so


def find_sources(spec: Spec, folder: Path, name: str) -> tuple[list[Source], list[Source]]:
    """The run's examples with those of the prior, and the held-out ones.  Opens every picture.

    Raises SpecError with everything that is wrong with them.
    """
    problems: list[str] = []
    loop, validation = spec.training_loop, spec.instrumentation and spec.instrumentation.validation

    def group(items: Sequence[Item], path: str, where: str, prior: bool = False) -> list[Source]:
        found = []
        for index, item in enumerate(items):
            try:
                found += [read_source(spec, item, folder, path, prior)] * item.repeats
            except (UsageError, OSError, UnicodeDecodeError) as error:
                told = error.problem if isinstance(error, UsageError) else str(error)
                problems.append(f"`{where}.images[{index}]`: {told}")
        return found

    sources = group(spec.examples.images, spec.examples.path, "examples")
    if loop.prior:
        sources += group(loop.prior.images, loop.prior.path, "training_loop.prior", prior=True)
    held_out = group(validation.images, validation.path, "instrumentation.validation") if validation else []
    if problems:
        raise SpecError(name, problems)
    note_twins(sources)
    return sources, held_out


def note_twins(sources: Sequence[Source]) -> None:
    """Warn where two files hold the same picture: it would count twice."""
    names: dict[str, str] = {}
    for source in dict.fromkeys(source.image for source in sources):
        first = names.setdefault(hashlib.sha256(source.read_bytes()).hexdigest(), source.name)
        if first != source.name:
            log.warning(f"`{first}` and `{source.name}` are the same picture; `repeats` says so with less")


def read_source(spec: Spec, item: Item, folder: Path, path: str, prior: bool) -> Source:
    files = [placed(folder, path, each) if each else None for each in (item.image, item.input_image, item.mask)]
    pictures = [open_picture(file, "image") for file in files[:2] if file is not None]
    sides = [f"{picture.width} x {picture.height} px" for picture in pictures]
    for picture, told in zip(pictures, sides, strict=True):
        if min(picture.height, picture.width) < SMALLEST_SIDE:
            raise UsageError(f"a picture of {told} is too small; give at least {SMALLEST_SIDE} px a side")
    proportions = [picture.width / picture.height for picture in pictures]
    if max(proportions) > SAME_PROPORTION * min(proportions):
        raise UsageError(f"`{item.image}` and `{item.input_image}` differ in proportion: {' and '.join(sides)}")
    if files[2] is not None:
        open_mask(files[2], pictures[0], "mask")
    prompt = item.prompt
    if item.prompt_file:
        prompt = placed(folder, path, item.prompt_file).read_text(encoding="utf-8-sig").strip()
    if not prompt:
        raise UsageError(f"`{item.prompt_file}` is empty")
    if spec.examples.trigger and spec.examples.trigger not in prompt:
        prompt = f"{spec.examples.trigger} {prompt}"
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() if file else "" for file in files]
    size = spec.size_of(pictures[0].height, pictures[0].width)
    whole = digest(prompt, *hashes, spec.kind, *size, spec.examples.resize, spec.training_loop.loss.region)
    image, input_image, mask_file = files
    assert image is not None
    return Source(item, prompt, image, input_image, mask_file, size, whole, prior)


def encode(spec: Spec, flux: Model, sources: Sequence[Source], cache: Kept) -> list[Example]:
    """Examples as arrays; the text encoders and the autoencoder are dropped where the model is large."""
    once = {source.digest: source for source in sources}
    if spec.examples.flip:
        turned = [replace(source, digest=f"{source.digest} mirrored", mirrored=True) for source in once.values()]
        once |= {source.digest: source for source in turned}
    plans = {name: plan_of(spec, flux, source) for name, source in once.items()}
    prompts = {source.prompt: plans[name].text_tokens for name, source in once.items()}
    if spec.examples.caption_dropout and prompts:
        prompts[""] = max(prompts.values())
    texts = {prompt: text_of(flux, prompt, tokens, cache) for prompt, tokens in prompts.items()}
    flux.parts.release("text_encoder", "text_encoder_2")
    encoded = {name: example(spec, flux, source, plans[name], texts, cache) for name, source in once.items()}
    flux.parts.release("vae")
    return [replace(encoded[source.digest], mirror=encoded.get(f"{source.digest} mirrored")) for source in sources]


def text_of(flux: Model, prompt: str, tokens: int, cache: Kept) -> tuple[mx.array, mx.array]:

    def made() -> Arrays:
        return dict(zip(("states", "pooled"), flux.encode_prompt(prompt, None, tokens), strict=True))

    arrays = cache.of(made, "text", prompt, tokens)
    return arrays["states"], arrays["pooled"]


def plan_of(spec: Spec, flux: Model, source: Source) -> Plan:
    """The plan of drawing this example's prompt, with its input picture."""
    height, width = source.size
    make = CONDITIONS[spec.kind]
    conditions = () if make is None else (make(sized(spec, source, source.input_image)),)
    config = Config(num_inference_steps=spec.steps, height=height, width=width, guidance=spec.guidance)
    return flux.plan(spec.seed, source.prompt, config, conditions=conditions)


def example(
    spec: Spec, flux: Model, source: Source, plan: Plan, texts: dict[str, tuple[mx.array, mx.array]], cache: Kept
) -> Example:
    stage = flux.stage(plan)

    def made() -> Arrays:
        rgb, inputs = sized(spec, source, source.image), Inputs()
        for condition in plan.request.conditions:
            inputs = condition.prepare(stage).inputs
        if spec.kind == "fill_spatial":
            rgb = Panels.of(plan).join(sized(spec, source, source.input_image), rgb)
        arrays = {"x0": pack_latents(stage.encode(mx.array(to_pixels(rgb)), "image")).astype(mx.float32)}
        if inputs.channels is not None:
            arrays["channels"] = inputs.channels
        for tokens, ids in inputs.tokens:
            arrays |= {"tokens": tokens, "ids": mx.array(ids.astype(np.float32))}
        return arrays

    arrays = cache.of(made, "example", source.digest)
    references = [(arrays["tokens"], np.array(arrays["ids"]))] if "tokens" in arrays else []
    inputs, x0, region = Inputs(arrays.get("channels"), references), arrays["x0"], region_of(spec, source)
    branches = {words: Branch(states, pooled, plan.guidance) for words, (states, pooled) in texts.items()}
    return Example(source, plan, x0, branches[source.prompt], branches.get(""), inputs, region)


def sized(spec: Spec, source: Source, path: Path | None) -> np.ndarray:
    """A picture (H, W, 3) uint8 at the example's size."""
    assert path is not None
    return fitted(spec, source, Image.fromarray(open_picture(path, "image").rgb))


def fitted(spec: Spec, source: Source, image: Image.Image) -> np.ndarray:
    if spec.examples.resize == "stretch":
        image = image.resize(source.size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(fit(image, *source.size, cover=True))
    return pixels[:, ::-1] if source.mirrored else pixels


def region_of(spec: Spec, source: Source) -> mx.array | None:
    """Weights of the tokens (1, S, 1), mean 1; None: all count the same."""
    height, width = (side // CELL for side in source.size)
    if spec.training_loop.loss.region == "all":
        return None
    if spec.training_loop.loss.region == "right":
        columns = 2 * width if spec.kind == "fill_spatial" else width
        weights = np.broadcast_to(np.arange(columns) >= columns // 2, (height, columns)).astype(np.float32)
    else:
        assert source.mask is not None
        mask = fitted(spec, source, open_grey(source.mask, "mask")).astype(np.float32)
        weights = mask.reshape(height, CELL, width, CELL).mean(axis=(1, 3))
        if spec.kind == "fill_spatial":
            weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
    return mx.array((weights / weights.mean()).reshape(1, -1, 1))
