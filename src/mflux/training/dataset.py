"""Examples as arrays: latents of the picture, encoded texts, and the inputs of the run's kind.

Each kind of training is the plan and the preparation of the condition that later draws with the adapter, so a trained
edit sees what a drawn one sees.  Encoded examples are kept as files by what went into them, never by their position.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.conditions import Fill, Kontext
from mflux.conditions.side_by_side import Panels
from mflux.engine.flux import Flux1
from mflux.engine.latents import pack_latents
from mflux.engine.network import Branch
from mflux.engine.plan import make_plan
from mflux.engine.request import Config, Request
from mflux.engine.slots import Inputs, Plan, Stage
from mflux.errors import UsageError
from mflux.images.masks import painted
from mflux.images.picture import open_grey, open_picture, to_pixels
from mflux.images.sizes import fit
from mflux.training.spec import Item, Spec, SpecError, placed

SMALLEST_SIDE = 64
# Kind -> the condition that draws so, of an input picture (H, W, 3).
CONDITIONS: dict[str, Any] = {
    "t2i": None,
    "kontext": lambda picture: Kontext([picture], fit="stretch"),
    "fill_edit": lambda picture: Fill(picture, edit_mode="channels", composite=False),
    "fill_spatial": lambda picture: Fill(picture, edit_mode="spatial", composite=False),
}


@dataclass(frozen=True)
class Source:
    """One example of the file, its words and pictures found.  prior: it keeps the class, and is not the subject."""

    item: Item
    prompt: str
    image: Path
    input_image: Path | None
    mask: Path | None
    digest: str  # of everything that its arrays follow from
    prior: bool = False


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
    return sources, held_out


def read_source(spec: Spec, item: Item, folder: Path, path: str, prior: bool) -> Source:
    files = [placed(folder, path, each) if each else None for each in (item.image, item.input_image, item.mask)]
    sizes = []
    for file in files[:2]:
        if file is not None:
            picture = open_picture(file, "image")
            sizes.append((picture.height, picture.width))
            if min(sizes[-1]) < SMALLEST_SIDE:
                raise UsageError(f"`{file}` is {picture.width} x {picture.height} px, below {SMALLEST_SIDE}")
    if len(sizes) == 2 and abs(sizes[0][0] * sizes[1][1] / (sizes[0][1] * sizes[1][0]) - 1) > 0.02:
        raise UsageError(f"`{item.image}` and `{item.input_image}` differ in proportion: {sizes[0]} and {sizes[1]}")
    if files[2] is not None:
        mask = open_grey(files[2], "mask")
        if (mask.height, mask.width) != sizes[0]:
            raise UsageError(f"`{files[2]}` is {mask.width} x {mask.height} px, its picture is not")
        if not painted(np.asarray(mask)).any():
            raise UsageError(f"`{files[2]}` is all black: nothing would be learnt")
    prompt = item.prompt
    if item.prompt_file:
        prompt = placed(folder, path, item.prompt_file).read_text(encoding="utf-8-sig").strip()
    if not prompt:
        raise UsageError(f"`{item.prompt_file}` is empty")
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() if file else "" for file in files]
    words = [prompt, *hashes, spec.kind, *map(str, spec.size), spec.examples.resize, spec.training_loop.loss.region]
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()
    image, input_image, mask_file = files
    assert image is not None
    return Source(item, prompt, image, input_image, mask_file, digest, prior)


def encode(spec: Spec, flux: Flux1, sources: Sequence[Source]) -> list[Example]:
    """Examples as arrays; the text encoders and the autoencoder are dropped where the model is large."""
    once = {source.digest: source for source in sources}
    plans = {digest: plan_of(spec, flux, source) for digest, source in once.items()}
    tokens = {digest: plan.text_tokens for digest, plan in plans.items()}
    texts = {source.prompt: flux.encode_prompt(source.prompt, None, tokens[d]) for d, source in once.items()}
    if spec.examples.caption_dropout and tokens:
        texts[""] = flux.encode_prompt("", None, max(tokens.values()))
    flux.parts.release("text_encoder", "text_encoder_2")
    encoded = {digest: example(spec, flux, source, plans[digest], texts) for digest, source in once.items()}
    flux.parts.release("vae")
    return [encoded[source.digest] for source in sources]


def plan_of(spec: Spec, flux: Flux1, source: Source) -> Plan:
    """The plan of drawing this example's prompt, with its input picture."""
    height, width = spec.size
    make = CONDITIONS[spec.kind]
    conditions = () if make is None else (make(sized(spec, source.input_image)),)
    config = Config(num_inference_steps=spec.steps, height=height, width=width, guidance=spec.guidance)
    request = Request(flux.parts.source.name, source.prompt, (0,), config, conditions=conditions)
    return make_plan(request, flux.parts, force=True)


def example(spec: Spec, flux: Flux1, source: Source, plan: Plan, texts: dict[str, Any]) -> Example:
    stage = Stage(plan, lambda pixels, role: latents_of(flux, pixels), flux.parts.get)
    rgb, inputs, region = sized(spec, source.image), Inputs(), region_of(spec, source)
    for condition in plan.request.conditions:
        inputs = condition.prepare(stage).inputs
    if spec.kind == "fill_spatial":
        rgb = Panels.of(plan).join(sized(spec, source.input_image), rgb)
    x0 = pack_latents(latents_of(flux, mx.array(to_pixels(rgb)))).astype(mx.float32)
    mx.eval(x0, inputs.channels, [array for array, _ in inputs.tokens])
    branch = Branch(*texts[source.prompt], plan.guidance)
    unconditional = Branch(*texts[""], plan.guidance) if "" in texts else None
    return Example(source, plan, x0, branch, unconditional, inputs, region)


def latents_of(flux: Flux1, pixels: mx.array) -> mx.array:
    return flux.parts.get("vae").encode(pixels, None, False)


def sized(spec: Spec, path: Path | None) -> np.ndarray:
    """A picture (H, W, 3) uint8 at the run's size."""
    assert path is not None
    picture = open_picture(path, "image")
    if spec.examples.resize == "stretch":
        return picture.resized(*spec.size).rgb
    return np.asarray(fit(Image.fromarray(picture.rgb), *spec.size, cover=True))


def region_of(spec: Spec, source: Source) -> mx.array | None:
    """Weights of the tokens (1, S, 1), mean 1; None: all count the same."""
    height, width = (side // 16 for side in spec.size)
    if spec.training_loop.loss.region == "all":
        return None
    if spec.training_loop.loss.region == "right":
        columns = 2 * width if spec.kind == "fill_spatial" else width
        weights = np.broadcast_to(np.arange(columns) >= columns // 2, (height, columns)).astype(np.float32)
    else:
        assert source.mask is not None
        mask = fit(open_grey(source.mask, "mask"), *spec.size, cover=True)
        weights = np.asarray(mask, np.float32).reshape(height, 16, width, 16).mean(axis=(1, 3))
    return mx.array((weights / weights.mean()).reshape(1, -1, 1))
