"""What a training run is: train.json as tables whose fields say what they accept.

Every key of mflux 0.8 keeps its name and meaning; the new ones have defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mflux.engine.request import MAX_SEED, MAX_SIDE
from mflux.images.sizes import floor_to_cell, of_area
from mflux.training.fields import checked, choice, flag, flag_or_whole, listed, number, part, text, whole
from mflux.weights.catalog import BITS

MANY = 10**9
KINDS = ("t2i", "kontext", "fill_spatial", "fill_edit")
PAIRS = KINDS[1:]  # kinds whose items have an input picture
LOGS = ("jsonl", "tensorboard")
OPTIMIZERS = ("AdamW", "Adam", "Adafactor", "Lion", "Prodigy")
ADAPTERS = ("lora", "dora", "lokr")
EXPORTS = ("diffusers", "kohya", "comfyui")
TIMESTEPS = ("schedule", "uniform", "logit_normal", "shift", "flux_shift")
# Layer types of a block -> diffusers' names in it; mflux 0.8's names come first.
JOINT = {
    **{name: name for name in ("attn.to_q", "attn.to_k", "attn.to_v")},
    **{f"attn.add_{one}_proj": f"attn.add_{one}_proj" for one in "qkv"},
    "attn.to_out": "attn.to_out.0",
    "attn.to_add_out": "attn.to_add_out",
    **{f"{ff}.linear1": f"{ff}.net.0.proj" for ff in ("ff", "ff_context")},
    **{f"{ff}.linear2": f"{ff}.net.2" for ff in ("ff", "ff_context")},
    "norm1.linear": "norm1.linear",
    "norm1_context.linear": "norm1_context.linear",
}
SINGLE = {name: name for name in ("proj_out", "proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v", "norm.linear")}
FAMILIES = {"transformer_blocks": JOINT, "single_transformer_blocks": SINGLE}
OUTSIDE = ("x_embedder", "context_embedder", "proj_out")  # layers of the network that no block holds


@dataclass(frozen=True)
class BlockRange:
    """Blocks from `start` up to, not including, `end`; or those of a list, which then counts."""

    start: int | None = whole(0, MANY, None)
    end: int | None = whole(1, MANY, None)
    indices: tuple[int, ...] | None = listed(whole(0, MANY), None)


@dataclass(frozen=True)
class Layers:
    """Adapters of one block family.  alpha: the change is scaled by alpha / rank; None: 1.  dropout: the share of its
    inputs that an adapter does not see in an update."""

    block_range: BlockRange = part(BlockRange)
    layer_types: tuple[str, ...] = listed(text())
    lora_rank: int = whole(1, 4096)
    alpha: float | None = number(0, 1e6, None, above=True)
    dropout: float = number(0, 1, 0.0, below=True)
    type: str = choice(ADAPTERS, "lora")


@dataclass(frozen=True)
class Outside:
    """Adapters of layers outside the blocks."""

    layer_types: tuple[str, ...] = listed(choice(OUTSIDE))
    lora_rank: int = whole(1, 4096)
    alpha: float | None = number(0, 1e6, None, above=True)
    dropout: float = number(0, 1, 0.0, below=True)
    type: str = choice(ADAPTERS, "lora")


@dataclass(frozen=True)
class Module:
    """Adapters of one layer in some blocks.  module_path: `transformer_blocks.{block}.attn.to_q`, or one outside."""

    module_path: str = text()
    rank: int = whole(1, 4096)
    blocks: BlockRange | None = part(BlockRange, None)
    alpha: float | None = number(0, 1e6, None, above=True)
    dropout: float = number(0, 1, 0.0, below=True)
    type: str = choice(ADAPTERS, "lora")

    @property
    def place(self) -> tuple[str, str]:
        """Block family and layer, by diffusers' names; no family for a layer outside.  Both empty if there is none."""
        family, _, name = self.module_path.rpartition(".{block}.")
        name = FAMILIES.get(family, {}).get(name, name)
        known = name in OUTSIDE if not family else name in FAMILIES.get(family, {}).values()
        return (family, name) if known else ("", "")


@dataclass(frozen=True)
class LoraLayers:
    transformer_blocks: Layers | None = part(Layers, None)
    single_transformer_blocks: Layers | None = part(Layers, None)
    outside_blocks: Outside | None = part(Outside, None)
    targets: tuple[Module, ...] = listed(part(Module), ())


@dataclass(frozen=True)
class Timestep:
    """How noise levels are drawn.

    schedule: the run's own levels, evenly (mflux 0.8); uniform; logit_normal: sigmoid(N(mean, std)); shift: uniform,
    then shifted by `value`; flux_shift: logit-normal, then the model's own shift.  low, high: levels stay within them.
    """

    mode: str = choice(TIMESTEPS, "schedule")
    mean: float = number(-10, 10, 0.0)
    std: float = number(0, 10, 1.0, above=True)
    value: float = number(0, 100, 3.0, above=True)
    low: float = number(0, 1, 0.0, below=True)
    high: float = number(0, 1, 1.0, above=True)


@dataclass(frozen=True)
class Loss:
    """region: which part of the picture counts: all, the right half (side-by-side), or an item's mask.  weighting: of
    noise levels; they all count the same."""

    weighting: str = choice(("none",), "none")
    region: str = choice(("all", "right", "mask"), "all")


@dataclass(frozen=True)
class Item:
    """One example.  Paths are relative to `examples.path`."""

    image: str = text()
    prompt: str | None = text(None)
    prompt_file: str | None = text(None)
    input_image: str | None = text(None)
    mask: str | None = text(None)
    weight: float = number(0, 1e3, 1.0)
    repeats: int = whole(1, 10**6, 1)


@dataclass(frozen=True)
class Prior:
    """Pictures of the subject's class, trained beside it so that the class stays what it was.

    class_prompt, num: in place of images, the model draws so many of them before it learns.  weight: of their mean
    loss.  Source: DreamBooth, arXiv 2208.12242.
    """

    images: tuple[Item, ...] = listed(part(Item), ())
    path: str = text(".")
    class_prompt: str | None = text(None)
    num: int = whole(1, 10**5, 50)
    weight: float = number(0, 1e3, 1.0)


@dataclass(frozen=True)
class Ema:
    decay: float = number(0, 1, below=True)


@dataclass(frozen=True)
class TrainingLoop:
    """batch_size: examples of an update and accumulation step.  batching: `exact` sums one backward pass an example in
    a fixed order, the same bits however they are spread; `fast` runs those of one size at once (1e-6).
    gradient_checkpointing: compute what is inside a block again in the backward pass, in all blocks or in every n-th.
    """

    num_epochs: int = whole(1, MANY)
    batch_size: int = whole(1, 4096)
    max_steps: int | None = whole(1, MANY, None)
    gradient_accumulation_steps: int = whole(1, 4096, 1)
    gradient_checkpointing: bool | int = flag_or_whole(1, 1000, True)
    batching: str = choice(("exact", "fast"), "exact")
    timestep: Timestep = part(Timestep, Timestep())
    loss: Loss = part(Loss, Loss())
    ema: Ema | None = part(Ema, None)
    prior: Prior | None = part(Prior, None)


@dataclass(frozen=True)
class RateSchedule:
    """The learning rate over the updates: a linear warm-up, then constant or a cosine down to zero."""

    name: str = choice(("constant", "cosine"), "constant")
    warmup_steps: int = whole(0, MANY, 0)
    total_steps: int | None = whole(1, MANY, None)


@dataclass(frozen=True)
class Optimizer:
    """Unlike mflux 0.8: moments are corrected for their start, without which first updates are six times too large."""

    name: str = choice(OPTIMIZERS)
    learning_rate: float = number(0, 1e3, above=True)
    betas: tuple[float, ...] = listed(number(0, 1, below=True), (0.9, 0.999))
    eps: float = number(0, 1, 1e-8, above=True)
    weight_decay: float = number(0, 10, 0.01)
    bias_correction: bool = flag(True)
    max_grad_norm: float | None = number(0, 1e6, 1.0, True, above=True)
    schedule: RateSchedule = part(RateSchedule, RateSchedule())


@dataclass(frozen=True)
class Save:
    """Frequencies are in updates; keep_last: older checkpoints are removed; export: layouts of the finished adapter."""

    output_path: str = text()
    checkpoint_frequency: int = whole(1, MANY)
    keep_last: int | None = whole(1, MANY, None)
    export: tuple[str, ...] = listed(choice(EXPORTS), ("diffusers",))
    export_dtype: str = choice(("float32", "bfloat16", "float16"), "float32")


@dataclass(frozen=True)
class Validation:
    """Held-out examples whose loss is measured at fixed noise levels with fixed noise."""

    images: tuple[Item, ...] = listed(part(Item))
    path: str = text(".")
    sigmas: tuple[float, ...] = listed(number(0, 1, above=True), (0.1, 0.3, 0.5, 0.7, 0.9))
    noises: int = whole(1, 100, 1)
    frequency: int | None = whole(1, MANY, None)


@dataclass(frozen=True)
class Instrumentation:
    """log: where the numbers of each update go; tensorboard's events need the package tensorboardX."""

    plot_frequency: int = whole(1, MANY, 10)
    generate_image_frequency: int = whole(1, MANY, 100)
    validation_prompt: str | None = text(None)
    preview_prompts: tuple[str, ...] | None = listed(text(), None)
    log: tuple[str, ...] = listed(choice(LOGS), ("jsonl",))
    validation: Validation | None = part(Validation, None)


@dataclass(frozen=True)
class Examples:
    """resize: to the run's size by `crop`, keeping the aspect, or by `stretch` (mflux 0.8); `bucket`: crop, to a size
    of each picture's own proportion, which `resolution` does anyway.  caption_dropout: the share of draws that see an
    empty prompt.  flip: half of the draws see the mirrored picture.  trigger: a word that stands before every caption
    that lacks it.  cache: folder of encoded examples, `_cache` of the run without one.
    """

    images: tuple[Item, ...] = listed(part(Item))
    path: str = text(".")
    resize: str = choice(("crop", "stretch", "bucket"), "crop")
    caption_dropout: float = number(0, 1, 0.0)
    flip: bool = flag(False)
    trigger: str | None = text(None)
    cache: str | None = text(None)


@dataclass(frozen=True)
class Spec:
    """One training run.  width, height: px, floored to multiples of 16; steps: noise levels of the schedule.

    resolution: in place of them, each picture keeps its proportion and gets the area of a square of so many px a side;
    of several, the largest that does not enlarge it.
    """

    model: str = text()
    seed: int = whole(0, MAX_SEED)
    steps: int = whole(1, 1000)
    guidance: float | None = number(0, 100, null=True)
    training_loop: TrainingLoop = part(TrainingLoop)
    optimizer: Optimizer = part(Optimizer)
    save: Save = part(Save)
    lora_layers: LoraLayers = part(LoraLayers)
    examples: Examples = part(Examples)
    width: int | None = whole(64, MAX_SIDE, None)
    height: int | None = whole(64, MAX_SIDE, None)
    resolution: tuple[int, ...] | None = listed(whole(64, MAX_SIDE), None, alone=True)
    quantize: int | None = choice(BITS, None)
    instrumentation: Instrumentation | None = part(Instrumentation, None)
    kind: str = choice(KINDS, "t2i")
    version: int = choice((1,), 1)
    statistics: Any = checked(lambda value, path, problems: value, None)  # of mflux's checkpoints; not read

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px of the largest trained picture, where that is a square or all are the same."""
        return self.size_of(MAX_SIDE, MAX_SIDE)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in px that a picture of this size is trained at."""
        if self.resolution is None:
            assert self.height and self.width
            return floor_to_cell(self.height), floor_to_cell(self.width)
        kept = [side for side in self.resolution if side**2 <= height * width]
        return of_area(max(kept, default=min(self.resolution)) ** 2, height, width)


@dataclass(frozen=True)
class Target:
    """One layer that gets an adapter: its path in the transformer, the rank, and the scale of the change."""

    path: str
    rank: int
    scale: float
    type: str = "lora"
    dropout: float = 0.0


def targets_of(spec: Spec) -> list[Target]:
    """The layers that are trained, in the order of the network; of one that is named twice, the last."""
    wanted, found = spec.lora_layers, dict[str, Target]()

    def take(family: str, blocks: BlockRange | None, names: Sequence[str], layers: Layers | Outside | Module) -> None:
        rank = layers.rank if isinstance(layers, Module) else layers.lora_rank
        scale = 1.0 if layers.alpha is None else layers.alpha / rank
        for name in names:
            name = FAMILIES.get(family, {}).get(name, name)
            for path in [f"{family}.{index}.{name}" for index in indices_of(blocks)] if blocks else [name]:
                found[path] = Target(path, rank, scale, layers.type, layers.dropout)

    for family in FAMILIES:
        if layers := getattr(wanted, family):
            take(family, layers.block_range, layers.layer_types, layers)
    if wanted.outside_blocks:
        take("", None, wanted.outside_blocks.layer_types, wanted.outside_blocks)
    for module in wanted.targets:
        family, name = module.place
        take(family, module.blocks, [name] if name else [], module)
    return sorted(found.values(), key=place_in_network)


def indices_of(blocks: BlockRange) -> list[int]:
    listed = blocks.indices if blocks.indices is not None else range(blocks.start or 0, blocks.end or 0)
    return sorted(set(listed))


def place_in_network(target: Target) -> tuple[int, int, int]:
    family, _, rest = target.path.partition(".")
    if family not in FAMILIES:
        return len(FAMILIES), 0, OUTSIDE.index(target.path)
    index, _, name = rest.partition(".")
    return [*FAMILIES].index(family), int(index), [*FAMILIES[family].values()].index(name)
