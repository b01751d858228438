"""Train `tiny`: `.venv/bin/python tools/tiny/train.py base --minutes 80`, then `distill`; from that `fill` and
`kontext`, each with a `-distill` of its own.

Needs .tiny/latents.pt (`latents.py`), for `fill` .tiny/holes.pt (`holes.py`), for `kontext` .tiny/pairs.pt
(`pairs.py`), for `redux` .tiny/looks.pt (`looks.py`), for maps .tiny/maps.pt (`maps.py`), for panels
.tiny/<task>.panels.pt (`panel_latents.py`). A cut run goes on from .tiny/<stage>.pt; `--start FOLDER` begins from
shipped weights (a diffusers layout) instead of the stage before. Each stage lasts the given minutes, and its learning
rate follows the clock.

base: rectified flow, both text encoders and the transformer together. A training-only head tells from a middle state
which shape and colour each image token belongs to: shapes bind to words much earlier.
distill: the target becomes the base's guided velocity, its strength read from the guidance embedding.
fill: 320 more input channels (masked picture, mask); text encoders frozen, so that only the transformer ships.
kontext: reference pictures as more tokens; the text encoders learn the words of instructions and ship with it.
redux: a picture's tokens beside the text's; only the picture encoder and its embedder train, which `see.py` taught
before, where it ran.
control: a map as 64 more input channels, of edges or of depth: one transformer reads both kinds.
controlnet, upscaler: a ControlNet reads edges, or the coarse picture; it alone trains.
in-context, ic-edit, try-on: adapters (LoRA) for pictures of two panels, of the base and of fill.
fill-distill: the same as distill, for the variant.
kontext-distill, in-context-distill (with `--added`): their own guidance, by words and by pictures.
inside: once more the base, so that what works inside its joint blocks does (`inside.py`).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from batches import (
    GUIDANCE_HIGH,
    GUIDANCE_LOW,
    PAD_LENGTHS,
    Batch,
    control_batch,
    draw_batch,
    draw_texts,
    drop_captions,
    fill_batch,
    kontext_batch,
    noise_levels,
    random_guidance,
    random_length,
    random_times,
    redux_batch,
    repad,
    swap_word,
)
from clock import CHECKPOINT_SECONDS, WORK, Clock, decay, load_checkpoint, log, mixed, save_checkpoint
from copying import look_at_reference, look_beside
from evaluate import SHIPPED
from holes import HOLES_FILE
from inside import Words, concept_loss, find_pairs, inside_batch, leave_untold
from latents import LATENTS_FILE, UNLABELLED, load, token_ids
from looks import LOOKS_FILE
from maps import MAPS_FILE
from muon import Muon
from networks import BESIDE_AFTER, GLIMPSE_AFTER, IN_CHANNELS, PARTS, TEXT_PARTS, Networks
from pairs import PAIRS_FILE
from panel_latents import panels_file
from panels import PANEL_LENGTHS
from torch import Tensor, nn
from world import SIDE

SEE_FILE = WORK / "see.pt"  # of `see.py`
MUON_RATE, ADAM_RATE = 2e-3, 1.2e-3
GLIMPSE_WEIGHT, PLACE_WEIGHT, SPILL_WEIGHT, CONCEPT_WEIGHT = 0.1, 0.3, 3.0, 0.1
BESIDE_WEIGHT = 0.3  # of what an adapter for panels knows
# How far a guided edit goes towards the words, towards the references, and towards the panel beside.
BOLDER, TRUER, TRUER_BESIDE = 0.7, 0.5, 1.0
DISTANCES, DISTANCE_FACTOR = "relative_attention_bias", 25.0  # "the next place word" takes biases of several units
TEXTS = 192  # captions without pictures in each step
SHOWN = {"control": ("canny", "depth"), "controlnet": ("canny",), "upscaler": ("coarse",)}  # maps of a variant
Texts = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Stage:
    """A row of the training plan.

    after: the stage whose weights it starts from · rate, flat, warm_up: of the learning rate · keep: of the running
    average · frozen: the networks that do not train · guided: guidance distillation · guidance_high: up to where
    guidance is drawn; where it stays off, the answer to guidance that the distilled weights have learnt is left as it
    is · added: what trains alone beside the networks: lora or controlnet · text_tokens: their number, where it does not
    vary · noisy: share of times near pure noise, where the words and the references alone decide · words: the shipped
    variant whose text encoders it takes and ships again.
    """

    after: str | None
    minutes: float
    variant: str = "base"
    rate: float = 1.0
    flat: float = 0.4
    keep: float = 0.995
    warm_up: int = 150
    extra_channels: int = 0
    frozen: tuple[str, ...] = ()
    guided: bool = False
    guidance_high: float = GUIDANCE_HIGH
    added: str = ""
    text_tokens: int | None = None
    noisy: float = 0.2
    words: str = ""


FILL = Stage(
    after="distill",
    minutes=24,
    variant="fill",
    rate=0.5,
    flat=0.3,
    warm_up=50,
    extra_channels=320,
    frozen=TEXT_PARTS,
)
KONTEXT = Stage(
    after="distill",
    minutes=50,
    variant="kontext",
    rate=0.7,
    flat=0.6,
    keep=0.99,
    warm_up=50,
    guidance_high=GUIDANCE_LOW,
    noisy=0.35,
)
PANELS = Stage(
    after="fill-distill",
    minutes=12,
    variant="ic-edit",
    keep=0.99,
    warm_up=50,
    extra_channels=320,
    guidance_high=GUIDANCE_LOW,
    added="lora",
    text_tokens=PANEL_LENGTHS[0],
)
IN_CONTEXT = replace(PANELS, after="distill", variant="in-context", extra_channels=0)
CONTROL = replace(FILL, minutes=20, variant="control", extra_channels=64)
CONTROLNET = Stage(
    after="distill", minutes=15, variant="controlnet", keep=0.99, warm_up=50, frozen=PARTS, added="controlnet"
)
BRIEF = {"rate": 0.3, "flat": 0.2, "keep": 0.99, "warm_up": 30, "guided": True, "guidance_high": GUIDANCE_HIGH}
BRIEF_BESIDE = BRIEF | {"rate": 0.6, "keep": 0.97, "warm_up": 10}
STAGES = {
    "base": Stage(after=None, minutes=80),
    "distill": Stage(after="base", minutes=14, **BRIEF),
    "inside": Stage(after="distill", minutes=30, frozen=TEXT_PARTS, **BRIEF),
    "fill": FILL,
    "fill-distill": replace(FILL, after="fill", minutes=8, **BRIEF),
    "kontext": KONTEXT,
    "kontext-distill": replace(KONTEXT, after="kontext", minutes=8, frozen=TEXT_PARTS, **BRIEF),
    "redux": replace(KONTEXT, minutes=15, rate=1.0, variant="redux", frozen=PARTS),
    "control": CONTROL,
    "controlnet": CONTROLNET,
    "upscaler": replace(CONTROLNET, variant="upscaler"),
    "in-context": IN_CONTEXT,
    "in-context-distill": replace(IN_CONTEXT, **BRIEF_BESIDE),
    "ic-edit": replace(PANELS, words="kontext"),
    "try-on": replace(PANELS, variant="try-on"),
}


# --- objectives ------------------------------------------------------------------------------------------------------


class FlowLoss(nn.Module):
    """Distance to the velocity `target` (B, 64, 64), and how badly the middle state knows shapes, or the
    attention whose each token is."""

    def __init__(self, networks: Networks, stage: Stage) -> None:
        super().__init__()
        self.networks = networks
        panels = stage.added == "lora"
        self.after, self.glimpse_weight = (BESIDE_AFTER, BESIDE_WEIGHT) if panels else (GLIMPSE_AFTER, GLIMPSE_WEIGHT)
        if stage.guided:  # a teacher's states know it, and a new head would bend them
            self.glimpse_weight = 0.0

    def forward(
        self, x: Tensor, time: Tensor, guidance: Tensor, batch: Batch, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        text, pooled = self.networks.describe(batch.t5_ids, batch.clip_ids, batch.pictures)
        later, seen = None, []
        if batch.later is not None:
            later, pooled = self.networks.describe(*batch.later)
        size = SIDE // 16, x.shape[1] // (SIDE // 16)
        beside = batch.references, batch.control, later, seen
        velocity, middle = self.networks.velocity(x, time, guidance, text, pooled, *size, *beside, self.after)
        error = (velocity.float() - target).square().mean(dim=2)
        shape, color, fine = (part.float() for part in self.networks.glimpse_logits(middle))
        weights = F.pad(batch.weights, (0, batch.shapes.shape[1] - x.shape[1]), value=1.0)
        weights = weights / weights.mean()
        shape_loss = (weights * named_loss(shape, batch.shapes)).mean()
        color_loss = (weights * named_loss(color, batch.colors)).mean()
        knows, glimpse = shape_loss, shape_loss + color_loss + F.binary_cross_entropy_with_logits(fine, batch.fine)
        loss = (error * batch.weights).mean() + self.glimpse_weight * glimpse
        if batch.concepts is not None:
            knows = concept_loss(self.networks, seen, (time, guidance, pooled), batch)
            loss = loss + CONCEPT_WEIGHT * knows
        return loss, error.mean().detach(), knows.detach()


def named_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each token (B, S); 0 for what has no name."""
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=UNLABELLED, reduction="none")


def guided_target(
    teacher: Networks, x: Tensor, time: Tensor, guidance: Tensor, batch: Batch, empty: tuple[Tensor, Tensor]
) -> Tensor:
    """v("") + s (v(prompt) - v("")) with s = min(4, 1 + log2(g) / 2): g = 1 is off, 3.5 gives 1.9, 30 gives 3.5.

    The teacher's own guidance is off.
    """
    with torch.no_grad():
        text, pooled = told_and_untold(teacher, batch, empty)
        twice = x.repeat(2, 1, 1), time.repeat(2), torch.ones_like(guidance).repeat(2)
        both, _ = teacher.velocity(*twice, text, pooled)
    said, unsaid = both.float().chunk(2)
    strength = (1 + guidance.log2() / 2).clamp(max=4)[:, None, None]
    return unsaid + strength * (said - unsaid)


def edited_target(
    teacher: Networks, x: Tensor, time: Tensor, guidance: Tensor, batch: Batch, empty: tuple[Tensor, Tensor]
) -> Tensor:
    """v + 0.7 (v - v("")) + 0.5 (v - v(references half in noise)): the edit is done, and what it leaves is kept.

    In-context: 1 (v - v(the known panel as pure noise)). The teacher's guidance is the student's.
    """
    inputs, seen, truer = x.repeat(3, 1, 1), None, TRUER_BESIDE
    if batch.references is None:
        inputs[-len(x) :] = torch.where(batch.known[..., None], torch.randn_like(x), x)
    else:
        dim = torch.lerp(batch.references, torch.randn_like(batch.references), 0.5)
        seen, truer = torch.cat([batch.references, batch.references, dim]), TRUER
    with torch.no_grad():
        text, pooled = (torch.cat([said, said[: len(x)]]) for said in told_and_untold(teacher, batch, empty))
        thrice, size = (inputs, time.repeat(3), guidance.repeat(3)), (SIDE // 16, x.shape[1] // (SIDE // 16))
        velocities, _ = teacher.velocity(*thrice, text, pooled, *size, references=seen)
    said, unsaid, unseen = velocities.float().chunk(3)
    return said + BOLDER * (said - unsaid) + truer * (said - unseen)


def told_and_untold(teacher: Networks, batch: Batch, empty: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Text states (2 B, T, WIDTH) and pooled vectors (2 B, WIDTH): of the batch's words, then of as many ""."""
    count, length = batch.t5_ids.shape
    t5_ids = torch.cat([batch.t5_ids, repad(empty[0][None], length).expand(count, -1)])
    return teacher.describe(t5_ids, torch.cat([batch.clip_ids, empty[1].expand(count, -1)]))


# --- the loop --------------------------------------------------------------------------------------------------------


class Trainer:
    """One stage's networks, running average, optimizers and progress."""

    def __init__(self, name: str, start: Path | None, added: Path | None = None, gentle: float = 1.0) -> None:
        self.name, self.stage = name, replace(STAGES[name], rate=STAGES[name].rate * gentle)
        self.networks = new_networks(self.stage)
        self.step, self.spent = 0, 0.0
        state = load_checkpoint(WORK / f"{name}.pt")
        if state is None:
            self._begin(start)
        self.networks.add(self.stage.added)
        if state is None and added is not None:
            self.networks.load_added(self.stage.added, added)
        if state is not None:
            self.networks.load_state_dict(state["networks"])
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.teacher: Networks | None = self._teacher(start, added) if self.stage.guided else None
        self.optimizers = self._optimizers()
        if state is not None:
            self._resume(state)

    def _begin(self, start: Path | None) -> None:
        if start is not None:
            self.networks.load_parts(start)
        elif self.stage.after is not None:
            load_average(self.networks, self.stage.after)
        if self.stage.words:
            self.networks.load_words(SHIPPED / self.stage.words)
        if self.stage.variant == "redux":
            load_taught(self.networks)

    def _resume(self, state: dict[str, object]) -> None:
        self.average.load_state_dict(state["average"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step, self.spent = state["step"], state["spent"]

    def _teacher(self, start: Path | None, added: Path | None) -> Networks:
        teacher = new_networks(self.stage)
        if start is not None:
            teacher.load_parts(start)
        else:
            load_average(teacher, self.stage.after)
        if added is not None:
            teacher.add(self.stage.added)
            teacher.load_added(self.stage.added, added)
        return teacher.requires_grad_(False)

    def _optimizers(self) -> tuple[Muon, torch.optim.AdamW]:
        for part in self.stage.frozen:
            getattr(self.networks, part).requires_grad_(False)
        return optimizers_of(self.networks)

    def set_rates(self, share: float) -> None:
        factor = self.stage.rate * decay(share, self.stage.flat) * min(1.0, (self.step + 1) / self.stage.warm_up)
        set_rates(self.optimizers, factor)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1.0 - min(self.stage.keep, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.networks.parameters()), weight)

    def save(self, spent: float) -> None:
        state = {
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "spent": spent,
        }
        save_checkpoint(WORK / f"{self.name}.pt", state)


def optimizers_of(networks: Networks) -> tuple[Muon, torch.optim.AdamW]:
    """For what trains: Muon for the matrices inside blocks, AdamW for embeddings, norms, biases and heads."""
    named = [(name, p) for name, p in networks.named_parameters() if p.requires_grad]
    inside = [p for name, p in named if is_block_matrix(name, p)]
    others = [p for name, p in named if not is_block_matrix(name, p) and DISTANCES not in name]
    groups = [{"params": others, "factor": 1.0}]
    groups += [{"params": [p], "factor": DISTANCE_FACTOR} for name, p in named if DISTANCES in name]
    adam = torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    return Muon(inside, lr=MUON_RATE), adam


def set_rates(optimizers: tuple[Muon, torch.optim.AdamW], factor: float) -> None:
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor * group.get("factor", 1.0)


def load_taught(networks: Networks) -> None:
    """The picture encoder and its embedder as `see.py` left them, where it ran."""
    for part, state in (load_checkpoint(SEE_FILE) or {}).items():
        getattr(networks, part).load_state_dict(state)


def new_networks(stage: Stage) -> Networks:
    return Networks(IN_CHANNELS + stage.extra_channels, redux=stage.variant == "redux")


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and ("blocks." in name or ".layers." in name or ".block." in name) and "bias" not in name


def load_average(networks: Networks, stage: str | None) -> None:
    """Start from the running average of a stage's checkpoint."""
    state = load_checkpoint(WORK / f"{stage}.pt")
    if state is None:
        raise SystemExit(f"error: no checkpoint of the stage `{stage}`; train it, or name a folder with --start")
    parts = state["average"]
    prefix = "transformer."
    networks.load_transformer({k.removeprefix(prefix): v for k, v in parts.items() if k.startswith(prefix)})
    networks.load_state_dict({k: v for k, v in parts.items() if not k.startswith(prefix)}, strict=False)


def train(trainer: Trainer, next_batch: Callable[[], Batch], texts: Texts | None, clock: Clock, compiled: bool) -> None:
    """Until the time is over. Unusual pad lengths run uncompiled: each would cost minutes of compiling."""
    objective = FlowLoss(trainer.networks, trainer.stage)
    fast = torch.compile(objective, dynamic=False) if compiled else objective
    empty = empty_ids(trainer.stage)
    saved, seen, since = clock.spent, 0, time.time()
    while not clock.over:
        trainer.set_rates(clock.share)
        batch = next_batch()
        drop_captions(batch, empty, hiding=not trainer.stage.guided)
        length = trainer.stage.text_tokens or random_length()
        batch.t5_ids = repad(batch.t5_ids, length)
        if batch.concepts is not None:
            leave_untold(batch)
        usual = length == (trainer.stage.text_tokens or PAD_LENGTHS[0])
        run = fast if usual else objective
        loss, error, shape_loss = flow_step(run, trainer.teacher, batch, empty, trainer.stage)
        if texts is not None:
            place_loss, spill = text_step(trainer.networks, *texts())
        trainer.update()
        seen += len(batch.clean)
        if trainer.step % 50 == 0:
            numbers = {"loss": loss.item(), "error": error.item(), "shape": shape_loss.item()}
            numbers |= {"place": place_loss.item(), "spill": spill.item()} if texts is not None else {}
            numbers |= {"spent": clock.spent, "speed": seen / (time.time() - since)}
            log(trainer.name, step=trainer.step, **{name: round(value, 4) for name, value in numbers.items()})
            seen, since = 0, time.time()
        if clock.spent - saved > CHECKPOINT_SECONDS:
            saved = clock.spent
            trainer.save(saved)
    trainer.save(clock.spent)


def text_step(networks: Networks, t5_ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Captions alone, many and cheap: which object stands where is a matter of the words, and of each word alone.

    What one word says of an object must not spill over into the states of other words: a state of "blue" that knows
    its shape is a state never met when the pair is new.
    """
    swapped, where = swap_word(t5_ids)
    with mixed():
        text = networks.text_encoder_2(input_ids=torch.cat([t5_ids, swapped])).last_hidden_state
        said, other = text.float().chunk(2)
        place_loss = networks.place_loss(said, places)
    spill = ((said - other).square() * ~where[..., None]).mean() / said.detach().square().mean()
    (PLACE_WEIGHT * place_loss + SPILL_WEIGHT * spill).backward()
    return place_loss.detach(), spill.detach()


def flow_step(
    objective: nn.Module, teacher: Networks | None, batch: Batch, empty: tuple[Tensor, Tensor], stage: Stage
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise the batch, compare velocities, leave the gradients; returns loss, plain error and shape loss."""
    size = len(batch.clean)
    times, guidance = random_times(size, stage.noisy), random_guidance(size, stage.guidance_high)
    inputs, noise = noised(batch, times)
    with mixed():
        target = noise - batch.clean
        if teacher is not None:
            guide = guided_target if batch.references is None and batch.known is None else edited_target
            target = guide(teacher, inputs, times, guidance, batch, empty)
        losses = objective(inputs, times, guidance, batch, target)
    losses[0].backward()
    return losses


def noised(batch: Batch, times: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer sees of a batch at these times, and the noise in it."""
    noise = torch.randn_like(batch.clean)
    return torch.cat([torch.lerp(batch.clean, noise, noise_levels(times, batch)), batch.extra], dim=2), noise


def empty_ids(stage: Stage) -> tuple[Tensor, Tensor]:
    """T5 and CLIP ids of "", (32,) both, for panels (64,) and (77,)."""
    t5_ids, clip_ids = token_ids([""]) if stage.text_tokens is None else token_ids([""], *PANEL_LENGTHS)
    return t5_ids[0], clip_ids[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--minutes", type=float, help="length of the whole stage, earlier runs included")
    parser.add_argument("--until", metavar="HH:MM", help="end the stage at this time of today, if that is earlier")
    parser.add_argument("--start", type=Path, help="a folder of shipped weights to begin from")
    parser.add_argument(
        "--added", type=Path, help="a shipped folder whose adapter, ControlNet or picture encoder goes on"
    )
    parser.add_argument(
        "--copying", action="store_true", help="let heads look at one exact place (kontext, ic-edit), once"
    )
    parser.add_argument(
        "--gentle", type=float, default=1.0, help="factor of the learning rate, to go on from what is there"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(time.time_ns() % 2**31)

    trainer = Trainer(options.stage, options.start, options.added, options.gentle)
    minutes = options.minutes or trainer.stage.minutes
    clock = Clock(minutes, trainer.spent, deadline(options.until))
    next_batch, texts = batches(options.stage, options.batch, trainer.networks)
    if options.copying:
        begin_copying(trainer, next_batch())
    train(trainer, next_batch, texts, clock, compiled=not options.eager)


@torch.no_grad()
def begin_copying(trainer: Trainer, batch: Batch) -> None:
    """Some heads look at one exact place from now on; the running average begins again."""
    networks = trainer.networks
    if trainer.stage.added == "lora":
        size, times = len(batch.clean), random_times(len(batch.clean), trainer.stage.noisy)
        side, states = SIDE // 16, networks.describe(batch.t5_ids, batch.clip_ids)
        seen, _ = noised(batch, times)
        look_beside(networks, side, seen, times, random_guidance(size), *states, side, 2 * side)
    else:
        look_at_reference(networks)
    trainer.average.load_state_dict(networks.state_dict())


def batches(stage: str, size: int, networks: Networks) -> tuple[Callable[[], Batch], Texts | None]:
    """What draws the next batch of a stage, and captions alone while the text encoders train."""
    plan = STAGES[stage]
    if plan.variant == "fill" or plan.added == "lora":
        file = panels_file(plan.variant) if plan.added else HOLES_FILE
        return partial(fill_batch, torch.load(file, weights_only=True), size, plan.extra_channels), None
    if plan.variant == "kontext":
        pairs = torch.load(PAIRS_FILE, weights_only=True)
        texts = partial(draw_texts, pairs["t5_ids"], pairs["roles"], TEXTS // 2)
        return partial(kontext_batch, pairs, size), None if "text_encoder_2" in plan.frozen else texts
    data = load(LATENTS_FILE)
    if stage == "inside":
        return partial(inside_batch, data, find_pairs(data), Words(networks), size), None
    if plan.variant in SHOWN:
        encoded = torch.load(MAPS_FILE, weights_only=True)
        maps = [encoded[kind] for kind in SHOWN[plan.variant]]
        beside, wordless = bool(plan.extra_channels), 0.5 if plan.variant == "upscaler" else 0.0
        return partial(control_batch, data, maps, size, beside, wordless, empty_ids(plan)), None
    if plan.variant == "redux":
        return partial(redux_batch, data, torch.load(LOOKS_FILE, weights_only=True), size, empty_ids(plan)), None
    return partial(draw_batch, data, size), partial(draw_texts, data.t5_ids, data.places, TEXTS)


def deadline(until: str | None) -> float:
    if until is None:
        return float("inf")
    today = time.strftime("%Y-%m-%d ")
    return time.mktime(time.strptime(today + until, "%Y-%m-%d %H:%M"))


if __name__ == "__main__":
    main()
