"""The training loop: a generator of updates.  Progress, logs, plots, previews and Ctrl-C are its caller's `for`.

Where a run stands is its number of updates: order, noise levels and noise follow from that number and the seed alone.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux.engine.network import Branch, Network
from mflux.engine.parts import TEXT_ENCODERS, TOKENIZERS
from mflux.errors import MfluxError, UsageError
from mflux.models.lora import Factors
from mflux.ranks import Ranks
from mflux.training import checkpoint as files
from mflux.training.adapters import attach, detach, factors_of, old_name
from mflux.training.checkpoint import Checkpoint
from mflux.training.dataset import Example, Model, Source, encode
from mflux.training.draws import key_of, shuffled, uniform
from mflux.training.export import by_our_names, in_checkpoint, in_layouts
from mflux.training.levels import noise_level
from mflux.training.loss import (
    checkpointing,
    clipped,
    put_factors,
    sample_losses,
    shares,
    tree_sum,
    value_and_gradients,
)
from mflux.training.optimizer import Updates
from mflux.training.outputs import Update
from mflux.training.spec import Spec, targets_of
from mflux.weights.files import Kept

log = logging.getLogger("mflux")
ALONE = Ranks()
MAX_SKIPPED = 3  # updates in a row whose loss is not finite


@dataclass(frozen=True)
class Slot:
    """One example's place in an update, with what is drawn for it.  share: of its loss in the update's; draws: what its
    random numbers are made of."""

    example: Example
    branch: Branch
    noise: mx.array  # (1, S, 64)
    sigma: mx.array  # (1,)
    share: float
    draws: tuple[int, ...]


class Trainer:
    """One run of a spec: its layers, its optimizer, the examples as arrays."""

    def __init__(
        self,
        spec: Spec,
        config: Any,
        flux: Model,
        sources: Sequence[Source],
        held_out: Sequence[Source] = (),
        cache: Path | None = None,
        ranks: Ranks = ALONE,
    ):
        """config: the JSON that the spec was read from, for the checkpoints.  cache: a folder for encoded examples.
        Loads and encodes; takes minutes for large models.
        """
        self.spec, self.config, self.flux, self.ranks = spec, config, flux, ranks
        self.facts = files.facts(spec.model, spec.quantize, [source.digest for source in (*sources, *held_out)])
        stamp = flux.parts.stamp(*TEXT_ENCODERS, *TOKENIZERS, "vae")
        encoded = encode(spec, flux, [*sources, *held_out], Kept(cache, *stamp))
        self.subjects = [each for each in encoded[: len(sources)] if not each.source.prior]
        self.priors = [each for each in encoded[: len(sources)] if each.source.prior]
        self.held_out = encoded[len(sources) :]
        self.transformer = flux.parts.get("transformer")
        self.layers = attach(self.transformer, targets_of(spec), spec.seed)
        self.scales = {target.path: target.scale for target in targets_of(spec)}
        self.factors: Factors = factors_of(self.layers)
        mx.eval(self.factors)
        self.average: Factors | None = self.factors if spec.training_loop.ema else None
        self.updates = Updates(spec.optimizer, self.factors)
        self.step = 0
        self.losses: list[dict[str, float]] = []
        self._networks: dict[str, Network] = {}

    @property
    def per_epoch(self) -> int:
        """Updates of an epoch; the last one may have fewer examples."""
        loop = self.spec.training_loop
        return math.ceil(len(self.subjects) / (loop.batch_size * loop.gradient_accumulation_steps))

    @property
    def total(self) -> int:
        loop = self.spec.training_loop
        whole = loop.num_epochs * self.per_epoch
        return min(whole, loop.max_steps or whole)

    def run(self) -> Iterator[Update]:
        """Train from where the run stands to its end.  Raises MfluxError where losses stay not finite."""
        skipped = 0
        while self.step < self.total:
            slots = list(self.slots(self.step))
            summed, gradients = self.ranks.sum(self.gradients(self.ranks.share(slots)))
            gradients, length = clipped(gradients, self.spec.optimizer.max_grad_norm)
            mx.eval(gradients, length)
            rate, loss, norm = self.updates.rate(self.step), scalar(summed), scalar(length)
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                self.apply(gradients, rate)
            skipped = 0 if finite else skipped + 1
            if skipped:
                names = ", ".join(f"`{slot.example.source.image.name}`" for slot in slots)
                log.warning(f"update {self.step + 1} is skipped: its loss is not finite ({names})")
            if skipped == MAX_SKIPPED:
                hint = "lower `optimizer.learning_rate`; the last checkpoint is good"
                raise MfluxError(f"{MAX_SKIPPED} updates in a row have no finite loss, the last with {names}", hint)
            self.step += 1
            self.losses.append({"step": self.step, "loss": loss})
            yield Update(self.step, self.total, (self.step - 1) // self.per_epoch, loss, norm, rate)

    def apply(self, gradients: Factors, rate: float) -> None:
        self.factors = self.updates.step(self.factors, gradients, rate)
        put_factors(self.layers, self.factors)
        if self.average is not None and self.spec.training_loop.ema:
            decay = self.spec.training_loop.ema.decay
            self.average = {n: decay * old + (1 - decay) * self.factors[n] for n, old in self.average.items()}
            mx.eval(self.average)

    def chosen(self, step: int) -> list[tuple[Example, int]]:
        """The examples of an update with their numbers; where there is a class, as many of it, in its own order."""
        spec, loop = self.spec, self.spec.training_loop
        epoch, index = divmod(step, self.per_epoch)
        size = loop.batch_size * loop.gradient_accumulation_steps
        order = shuffled(len(self.subjects), spec.seed, "shuffle", epoch)[index * size : (index + 1) * size]
        found = [(self.subjects[each], each) for each in order]
        for place in range(step * size, step * size + len(order)) if self.priors else ():
            turn, position = divmod(place, len(self.priors))
            each = shuffled(len(self.priors), spec.seed, "prior", turn)[position]
            found.append((self.priors[each], len(self.subjects) + each))
        return found

    def slots(self, step: int) -> Iterator[Slot]:
        """The examples of an update, with their noise.  A function of its number and the seed."""
        spec, loop, chosen = self.spec, self.spec.training_loop, self.chosen(step)
        weights = [example.source.item.weight for example, _ in chosen]
        of_class = [example.source.prior for example, _ in chosen]
        counts = shares(weights, of_class, loop.prior.weight if loop.prior else 0.0)
        for slot, ((example, each), share) in enumerate(zip(chosen, counts, strict=True)):
            what = (spec.seed, step // self.per_epoch, each, step, slot)
            u, tokens = uniform(*what, "noise level"), example.x0.shape[1]
            level = noise_level(loop.timestep, self.flux.parts.schedule, spec.steps, tokens, u)
            if example.mirror and uniform(*what, "flip") < 0.5:
                example = example.mirror
            dropped = uniform(*what, "caption") < spec.examples.caption_dropout
            branch = example.unconditional if dropped and example.unconditional else example.branch
            noise = mx.random.normal(example.x0.shape, key=key_of(*what, "noise"))
            yield Slot(example, branch, noise, mx.array([level]), share, what)

    def gradients(self, slots: Sequence[Slot]) -> tuple[mx.array, Factors]:
        """Loss and gradients of some slots of an update, evaluated."""
        if not slots:
            return mx.array(0.0), {name: mx.zeros_like(value) for name, value in self.factors.items()}
        batches = [[slot] for slot in slots]
        if self.spec.training_loop.batching == "fast":
            batches = alike(slots, self.spec.training_loop.batch_size)
        return tree_sum(batches, self.of_batch)

    def of_batch(self, batch: Sequence[Slot]) -> tuple[mx.array, Factors]:
        """Loss and gradients of one pass; its first slot decides what adapters do not see."""
        dropping = {path: layer for path, layer in self.layers.items() if layer.dropout}
        for path, layer in dropping.items():
            layer.drop_by(key_of(*batch[0].draws, "dropout", path))
        try:
            return value_and_gradients(self.layers, self.factors, self.loss_of(batch))
        finally:
            for layer in dropping.values():
                layer.drop_by(None)

    def loss_of(self, batch: Sequence[Slot]) -> Any:
        """A function without arguments: the batch's part of the update's loss."""
        hooks = checkpointing(self.transformer, self.spec.training_loop.gradient_checkpointing)
        first, shares_of = batch[0], mx.array([slot.share for slot in batch])
        rows = [(each.example.x0, each.noise, each.sigma, each.branch.text, each.branch.pooled) for each in batch]
        x0, noise, sigma, text, pooled = (mx.concatenate(list(arrays)) for arrays in zip(*rows, strict=True))
        branch = Branch(text, pooled, first.branch.guidance)
        network, region = self.network(first.example), first.example.region

        def loss() -> mx.array:
            return (sample_losses(network, branch, x0, noise, sigma, region, hooks)[0] * shares_of).sum()

        return loss

    def network(self, example: Example) -> Network:
        digest = example.source.digest
        if digest not in self._networks:
            plan = example.plan
            self._networks[digest] = Network(self.transformer, plan.height, plan.width, example.inputs)
        return self._networks[digest]

    def validate(self) -> float:
        """The mean loss of the held-out examples at fixed noise levels with fixed noise."""
        assert self.spec.instrumentation and self.spec.instrumentation.validation
        validation, losses = self.spec.instrumentation.validation, []
        for index, example in enumerate(self.held_out):
            for turn in range(validation.noises):
                noise = mx.random.normal(example.x0.shape, key=key_of(self.spec.seed, "validation", index, turn))
                for sigma in validation.sigmas:
                    parts = (example.branch, example.x0, noise, mx.array([sigma]), example.region)
                    losses.append(scalar(sample_losses(self.network(example), *parts)[0]))
        return sum(losses) / len(losses)

    def save(self, output: Path) -> Path:
        """Write a checkpoint of where the run stands; older ones are removed beyond `keep_last`."""
        epoch, position = divmod(self.step, self.per_epoch)
        loop = self.spec.training_loop
        iterator = {"num_iterations": self.step, "epoch": epoch, "position": position}
        iterator |= {"batch_size": loop.batch_size, "num_epochs": loop.num_epochs}
        state = Checkpoint(
            step=self.step,
            adapter=in_checkpoint(self.factors, self.scales),
            optimizer={old_name(name): value for name, value in self.updates.arrays().items()},
            losses=self.losses,
            config=self.config,
            run=self.facts,
            ema=None if self.average is None else in_checkpoint(self.average, self.scales),
        )
        folder = output / "_checkpoints"
        written = files.write(state, folder, iterator)
        if self.spec.save.keep_last:
            for old in sorted(folder.glob("*_checkpoint.zip"))[: -self.spec.save.keep_last]:
                old.unlink()
        return written

    def restore(self, saved: Checkpoint, allow_mismatch: bool = False) -> None:
        """Go on from a checkpoint.  Raises UsageError for one of another run, or of a finished one."""
        if not saved.run:
            log.warning("this is a checkpoint of mflux 0.9: the run goes on with other random numbers than it had")
        changed = files.mismatches(saved.run, self.facts)
        if changed and not allow_mismatch:
            hint = "`--allow-mismatch` goes on all the same, to other bits"
            raise UsageError(f"this is not the run that was saved: {'; '.join(changed)}", hint, "resume")
        for words in changed:
            log.warning(f"{words}: the run will not have the bits that it would have had")
        if saved.step >= self.total:
            loop = self.spec.training_loop
            more = f"--set training_loop.num_epochs={loop.num_epochs * 2}"
            if loop.max_steps == self.total:
                more = f"--max-steps {loop.max_steps * 2}"
            hint = f"train on with `{more}`"
            raise UsageError(f"this run is complete: {saved.step} of {self.total} updates are done", hint, "resume")
        self.factors = by_our_names(saved.adapter, self.factors)
        put_factors(self.layers, self.factors)
        ours = {old_name(name): name for name in self.updates.arrays()}
        optimizer = {name.removeprefix("transformer."): value for name, value in saved.optimizer.items()}
        if set(ours) != set(optimizer):
            raise UsageError("the optimizer's state is of another optimizer", "keep `optimizer.name`", "resume")
        self.updates.restore({ours[name]: value for name, value in optimizer.items()})
        if self.average is not None:
            self.average = self.factors if saved.ema is None else by_our_names(saved.ema, self.factors)
        self.step, self.losses = saved.step, list(saved.losses)

    @property
    def checkpoint_bytes(self) -> int:
        arrays = (*self.factors.values(), *self.updates.arrays().values(), *(self.average or {}).values())
        return sum(array.nbytes for array in arrays)

    def exported(self) -> dict[str, Factors]:
        """The adapter in each layout of `save.export`; the average where one is kept."""
        return in_layouts(self.spec, self.average or self.factors)

    def close(self) -> None:
        """Take the LoRA off the model."""
        detach(self.transformer, self.layers)


def alike(slots: Sequence[Slot], most: int) -> list[list[Slot]]:
    """Slots that can go through the network together: of one size, without inputs or weights of their own."""
    batches: list[list[Slot]] = []
    for slot in slots:
        example, last = slot.example, batches[-1] if batches else []
        plain = example.region is None and not example.plan.request.conditions
        same = last and plain and last[0].example.x0.shape == example.x0.shape and len(last) < most
        if same and last[0].branch.text.shape == slot.branch.text.shape:
            last.append(slot)
        else:
            batches.append([slot])
    return batches


def scalar(array: mx.array) -> float:
    return float(array.item())  # type: ignore[arg-type]
