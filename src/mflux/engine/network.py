"""The transformer of one run: tokens and positions put together, branches, guidance."""

from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mflux.engine.denoise import At
from mflux.engine.latents import blended, cut, grid_ids
from mflux.engine.request import StepCacheChoice
from mflux.engine.slots import Branch, Hooks, Inputs, Plan
from mflux.engine.step_cache import make_step_cache
from mflux.models.transformer import BlockHooks, FluxBlocks, ModulationTable, StreamModulation, rope_table


class Network:
    """Velocity of latents under a text, with the seed-free inputs of the conditions.

    A ControlNet's texts, positions and modulations are the same, so its condition makes one too.
    """

    def __init__(self, transformer: FluxBlocks, height: int, width: int, inputs: Inputs):
        self.transformer, self.inputs = transformer, inputs
        self.dtype = transformer.dtype
        self._target_ids = grid_ids(height, width)
        self._rope: dict[int, mx.array] = {}
        self._tables: dict[tuple[int, float], ModulationTable] = {}

    def rope(self, text_tokens: int) -> mx.array:
        """Positions of the text tokens (zeros), the drawn tokens and the references, in this order."""
        if text_tokens not in self._rope:
            ids = [np.zeros((text_tokens, 3)), self._target_ids, *(ids for _, ids in self.inputs.tokens)]
            self._rope[text_tokens] = rope_table(np.concatenate(ids), self.transformer.config.axes_dims_rope)
        return self._rope[text_tokens]

    def tabulate(self, branch: Branch, sigmas: tuple[float, ...]) -> None:
        """Compute the modulations of all noise levels of a run at once; they depend on nothing that changes."""
        levels = mx.array(sigmas)
        table = self.modulate(branch, levels)
        mx.eval(table)
        for index, sigma in enumerate(sigmas):
            self._tables[id(branch), sigma] = row(table, index)

    def modulate_text(self, branch: Branch, sigmas: list[float]) -> dict[float, list[StreamModulation]]:
        """The text's modulations in the joint blocks alone, evaluated, for each noise level."""
        blocks = self.modulate(branch, mx.array(sigmas)).text
        mx.eval(blocks)
        return {sigma: row(blocks, index) for index, sigma in enumerate(sigmas)}

    def modulate(self, branch: Branch, sigma: mx.array) -> ModulationTable:
        """Modulations for noise levels (B,)."""
        guidance = None if branch.guidance is None else mx.full(sigma.shape, branch.guidance)
        own = branch.pooled if self.inputs.pooled_scale == 1 else branch.pooled * self.inputs.pooled_scale
        pooled = mx.broadcast_to(own, (sigma.shape[0], branch.pooled.shape[1]))
        return self.transformer.modulate(sigma, guidance, pooled.astype(self.dtype))

    def velocity(
        self,
        branch: Branch,
        latents: mx.array,
        sigma: mx.array | float,
        hooks: BlockHooks | None = None,
        cells: mx.array | None = None,
        text_modulation: list[StreamModulation] | None = None,
    ) -> mx.array:
        """d latents / d sigma, float32.  latents: (B, S, 64); sigma: a tabulated level, or levels (B,).

        cells: which of the picture's tokens the latents are; None: all.  text_modulation: in place of the text's own,
        in the joint blocks.
        """
        batch, count = latents.shape[:2]
        table = self.table(branch, sigma)
        table = table if text_modulation is None else table._replace(text=text_modulation)
        tokens = latents.astype(self.dtype)
        if self.inputs.channels is not None:
            channels = self.inputs.channels if cells is None else self.inputs.channels[:, cells]
            tokens = mx.concatenate([tokens, self.widened(channels, batch)], axis=-1)
        references = [self.widened(reference, batch) for reference, _ in self.inputs.tokens]
        tokens = mx.concatenate([tokens, *references], axis=1) if references else tokens
        text = self.text(branch, batch)
        out = self.transformer(tokens, text, table, self.rope(text.shape[1]), hooks or BlockHooks())
        return out[:, :count].astype(mx.float32)

    def table(self, branch: Branch, sigma: mx.array | float) -> ModulationTable:
        """Modulations of a tabulated level, or of levels (B,)."""
        return self._tables[id(branch), sigma] if isinstance(sigma, float) else self.modulate(branch, sigma)

    def text(self, branch: Branch, batch: int) -> mx.array:
        """A branch's text tokens, those of the conditions after them: (batch, T, width)."""
        own = branch.text if self.inputs.prompt_scale == 1 else branch.text * self.inputs.prompt_scale
        text = mx.concatenate([own, *self.inputs.text], axis=1) if self.inputs.text else own
        return self.widened(text, batch)

    def widened(self, array: mx.array, batch: int) -> mx.array:
        """A batch-1 input for the whole batch, in the network's dtype."""
        return mx.broadcast_to(array, (batch, *array.shape[1:])).astype(self.dtype)


def row(tree: Any, index: int) -> Any:
    """One row of every array, still in a batch."""
    return tree_map(lambda rows: rows[index : index + 1], tree)


class GuidedVelocity:
    """The velocity of one run: branches, true CFG, then what the conditions steer."""

    def __init__(self, network: Network, branches: tuple[Branch, ...], plan: Plan, hooks: Hooks):
        self.network, self.branches, self.hooks, self.true_cfg = network, branches, hooks, plan.true_cfg
        choice = plan.request.config.step_cache
        self.caches = [make_step_cache(StepCacheChoice.read(choice), plan.row.task) for _ in branches] if choice else []
        self.last = len(plan.sigmas) - 2
        self.tiles = cut(plan.height, plan.width, plan.tile) if plan.tile else ()
        for branch in branches:
            network.tabulate(branch, plan.sigmas[plan.first : -1])

    def __call__(self, latents: mx.array, at: At) -> mx.array:
        if self.tiles:
            velocity = blended(lambda part, cells: self.guided(part, at, cells), latents, self.tiles)
        else:
            velocity = self.guided(latents, at)
        for steer in self.hooks.steer:
            velocity = steer(velocity, latents, at)
        return velocity

    def counts(self, place: int, pixels: np.ndarray) -> dict[str, Any]:
        """How many steps ran all blocks, for each branch with a step cache."""
        return {"full_steps": [cache.computed for cache in self.caches if cache]}

    def guided(self, latents: mx.array, at: At, cells: mx.array | None = None) -> mx.array:
        """The velocity of a picture or one of its tiles, true CFG included."""
        hooks = self.hooks
        residuals = [found for make in hooks.residuals if (found := make(latents, at, cells))]

        def ask(index: int, branch: Branch) -> mx.array:
            edit = hooks.edit_attention(at, index) if hooks.edit_attention else None
            watches = [watch for hook in hooks.watch_attention if (watch := hook(at, index))]
            modulation = hooks.text_modulation(at, index) if hooks.text_modulation else None
            cache = self.caches[index] if self.caches else None
            if cache and (edit or watches or residuals or modulation):
                cache.forget()  # what such a step adds is not what a plain one would
                cache = None
            shortcut = partial(cache, step=at.index, last=at.index == self.last) if cache else None
            inside = BlockHooks(edit, watches, residuals, latents.shape[1], shortcut)
            return self.network.velocity(branch, latents, at.sigma, inside, cells, modulation)

        velocity, *negative = (ask(*pair) for pair in enumerate(self.branches))
        if negative:
            velocity = negative[0] + self.true_cfg * (velocity - negative[0])
        return velocity
