"""The transformer of one run: tokens and positions put together, branches, guidance."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mflux.engine.denoise import At
from mflux.engine.latents import grid_ids
from mflux.engine.slots import Branch, Hooks, Inputs, Plan
from mflux.models.transformer import BlockHooks, FluxTransformer, ModulationTable, StreamModulation, rope_table


class Network:
    """Velocity of latents under a text, with the seed-free inputs of the conditions."""

    def __init__(self, transformer: FluxTransformer, height: int, width: int, inputs: Inputs):
        self.transformer, self.inputs = transformer, inputs
        self.dtype = transformer.proj_out.bias.dtype
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
            self._tables[id(branch), sigma] = tree_map(lambda rows, i=index: rows[i : i + 1], table)

    def modulate(self, branch: Branch, sigma: mx.array) -> ModulationTable:
        """Modulations for noise levels (B,)."""
        return self.transformer.modulate(sigma, *self._asked(branch, sigma))

    def modulate_text(self, branch: Branch, sigmas: Sequence[float]) -> dict[float, list[StreamModulation]]:
        """The text's modulations in the joint blocks alone, evaluated, for each noise level."""
        levels = mx.array(sigmas)
        blocks = self.transformer.modulate_text(levels, *self._asked(branch, levels))
        mx.eval(blocks)
        return {sigma: tree_map(lambda rows, i=index: rows[i : i + 1], blocks) for index, sigma in enumerate(sigmas)}

    def _asked(self, branch: Branch, sigma: mx.array) -> tuple[mx.array | None, mx.array]:
        """Guidance (B,) and pooled text (B, P) of a branch, for noise levels (B,)."""
        guidance = None if branch.guidance is None else mx.full(sigma.shape, branch.guidance)
        own = branch.pooled if self.inputs.pooled_scale == 1 else branch.pooled * self.inputs.pooled_scale
        pooled = mx.broadcast_to(own, (sigma.shape[0], branch.pooled.shape[1]))
        return guidance, pooled.astype(self.dtype)

    def velocity(
        self,
        branch: Branch,
        latents: mx.array,
        sigma: mx.array | float,
        hooks: BlockHooks | None = None,
        text_modulation: list[StreamModulation] | None = None,
    ) -> mx.array:
        """d latents / d sigma, float32.  latents: (B, S, 64); sigma: a tabulated level, or levels (B,).

        text_modulation: in place of the text's own, in the joint blocks.
        """
        batch, count = latents.shape[:2]
        table = self._tables[id(branch), sigma] if isinstance(sigma, float) else self.modulate(branch, sigma)
        table = table if text_modulation is None else table._replace(text=text_modulation)
        tokens = latents.astype(self.dtype)
        if self.inputs.channels is not None:
            tokens = mx.concatenate([tokens, self.widened(self.inputs.channels, batch)], axis=-1)
        references = [self.widened(reference, batch) for reference, _ in self.inputs.tokens]
        tokens = mx.concatenate([tokens, *references], axis=1) if references else tokens
        own = branch.text if self.inputs.prompt_scale == 1 else branch.text * self.inputs.prompt_scale
        text = mx.concatenate([own, *self.inputs.text], axis=1) if self.inputs.text else own
        out = self.transformer(
            tokens, self.widened(text, batch), table, self.rope(text.shape[1]), hooks or BlockHooks()
        )
        return out[:, :count].astype(mx.float32)

    def widened(self, array: mx.array, batch: int) -> mx.array:
        """A batch-1 input for the whole batch, in the network's dtype."""
        return mx.broadcast_to(array, (batch, *array.shape[1:])).astype(self.dtype)


class GuidedVelocity:
    """The velocity of one run: branches, true CFG, then what the conditions steer."""

    def __init__(self, network: Network, branches: tuple[Branch, ...], plan: Plan, hooks: Hooks):
        self.network, self.branches, self.hooks, self.true_cfg = network, branches, hooks, plan.true_cfg
        self.target_tokens = plan.tokens
        for branch in branches:
            network.tabulate(branch, plan.sigmas[plan.first : -1])

    def __call__(self, latents: mx.array, at: At) -> mx.array:
        positive, *negative = self.branches
        velocity = self.pass_of(positive, latents, at)
        if negative:
            away = self.pass_of(negative[0], latents, at)
            velocity = away + self.true_cfg * (velocity - away)
        for steer in self.hooks.steer:
            velocity = steer(velocity, latents, at)
        return velocity

    def pass_of(self, branch: Branch, latents: mx.array, at: At) -> mx.array:
        """One pass of the network, with what the conditions do in this one."""
        hooks = self.hooks
        edit = hooks.edit_attention(at, branch) if hooks.edit_attention else None
        watches = [watch for hook in hooks.watch_attention if (watch := hook(at, branch))]
        modulation = hooks.text_modulation(at, branch) if hooks.text_modulation else None
        inside = BlockHooks(edit, watches, hooks.residuals, self.target_tokens)
        return self.network.velocity(branch, latents, at.sigma, inside, modulation)
