"""FLUX.1's transformer: joint (double-stream) blocks, then single-stream blocks.

Unusual here: modulation comes into a block as a value, so that it can be computed once for all steps, replaced by a
method, or handed through gradient checkpointing; every array that needs a gradient is an argument of a block.  Module
names are those of diffusers' FluxTransformer2DModel, the most common layout.  Rotary tables are complex numbers: a pair
of channels is one of them, and the rotation one multiplication.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mflux.models.layers import RMSNorm, attention, gelu_tanh, merge_heads, silu, split_heads

SINUSOID_CHANNELS = 256
ROPE_THETA = 10000
LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one transformer; field names are those of diffusers' config.json."""

    in_channels: int = 64
    out_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class QKV(NamedTuple):
    """Queries, keys and values after their norms, before rope: (B, heads, N, head_dim) each."""

    queries: mx.array
    keys: mx.array
    values: mx.array


class Modulation(NamedTuple):
    """Adaptive norm of one branch: x * (1 + scale) + shift before it, gate * out after it.  (B or 1, 1, D) each."""

    shift: mx.array
    scale: mx.array
    gate: mx.array


class StreamModulation(NamedTuple):
    """One stream of one joint block."""

    attention: Modulation
    feed_forward: Modulation


class ModulationTable(NamedTuple):
    """All modulations of one network call: a function of (sigma, guidance, pooled text) only."""

    image: list[StreamModulation]  # a joint block each
    text: list[StreamModulation]
    single: list[Modulation]
    head: tuple[mx.array, ...]  # scale, shift; none in a network without head


@dataclass(frozen=True)
class JointView:
    """What a method may read inside one joint block; `image_attended` is before the output projection."""

    index: int
    block: "JointBlock"
    image: QKV
    image_attended: mx.array  # (B, S, D), heads concatenated
    text_modulation: StreamModulation
    rope: mx.array  # of text and image tokens together
    target_tokens: int  # image tokens that are being drawn; reference tokens follow them


Residuals = Callable[[str, int, mx.array], mx.array | None]
EditAttention = Callable[[JointView, mx.array], mx.array]  # the image's attention output (B, S, D) -> another


@dataclass(frozen=True)
class BlockPass:
    """One pass through the blocks, for who would leave some of them out."""

    image: mx.array  # (B, S, D): embedded tokens
    modulated: Callable[[], mx.array]  # (B, S, D): what the first joint block's attention reads of them
    first: Callable[[], tuple[mx.array, mx.array]]  # image and text after the first joint block
    rest: Callable[[mx.array, mx.array], mx.array]  # image and text there -> image before the head

    def all(self) -> mx.array:
        return self.rest(*self.first())


@dataclass(frozen=True)
class BlockHooks:
    """Where a method can look into the blocks, or add to them.  Empty: the plain network."""

    edit_attention: EditAttention | None = None
    watch_attention: Sequence[Callable[[JointView], None]] = ()
    residuals: Sequence[Residuals] = ()  # (`joint` or `single`, index, image) -> what is added after that block
    target_tokens: int = 0  # 0: all
    shortcut: Callable[[BlockPass], mx.array] | None = None  # -> image tokens before the head (B, S, D)
    call: Callable[..., Any] = lambda block, *arrays: block(*arrays)  # how a block is called, with all its arrays


NO_HOOKS = BlockHooks()


def rope_table(ids: np.ndarray, axes: Sequence[int]) -> mx.array:
    """Rotary embedding of token ids (N, 3): complex64 (1, 1, N, sum(axes) / 2), cos + i sin of each angle.

    Angles in float64, as in diffusers' FluxPosEmbed: in float32 large positions lose 1e-4.
    """
    angles = []
    for axis, size in enumerate(axes):
        frequencies = ROPE_THETA ** -(np.arange(0, size, 2, dtype=np.float64) / size)
        angles.append(ids[:, axis, None].astype(np.float64) * frequencies)
    table = np.exp(1j * np.concatenate(angles, axis=-1)).astype(np.complex64)
    return mx.array(table)[None, None]


@mx.custom_function
def _rotate(x: mx.array, rope: mx.array) -> mx.array:
    return mx.view(mx.view(x, mx.complex64) * rope, mx.float32)


@_rotate.vjp
def _rotate_gradient(primals, cotangent, output):  # type: ignore[no-untyped-def]
    rope = primals[1]
    return mx.view(mx.view(cotangent, mx.complex64) * mx.conjugate(rope), mx.float32), mx.zeros_like(rope)


def rotate(x: mx.array, rope: mx.array) -> mx.array:
    """Rotate interleaved channel pairs of (B, heads, N, head_dim) by `rope` (1, 1, N, head_dim / 2), in float32."""
    turned: mx.array = _rotate(mx.contiguous(x.astype(mx.float32)), rope)  # type: ignore[assignment]
    return turned.astype(x.dtype)


def sinusoid(values: mx.array) -> mx.array:
    """Embed numbers (B,) as (B, 256): cosines, then sines, in float32.  Source: diffusers' get_timestep_embedding."""
    half = SINUSOID_CHANNELS // 2
    exponents = np.float32(-np.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = values.astype(mx.float32)[:, None] * mx.array(frequencies)[None]
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def layer_norm(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """LN(x) * (1 + scale) + shift; scale and shift are (B or 1, 1, D)."""
    if scale.shape[0] == 1:
        return mx.fast.layer_norm(x, 1 + scale.reshape(-1), shift.reshape(-1), LAYER_NORM_EPS)
    return mx.fast.layer_norm(x, None, None, LAYER_NORM_EPS) * (1 + scale) + shift


class TwoLinears(nn.Module):
    """Linear, SiLU, Linear: how time, guidance and pooled text become width D."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(size, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(x)))


class TimeTextEmbedding(nn.Module):
    """The conditioning vector (B, D) of sigma, guidance and pooled text."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.timestep_embedder = TwoLinears(SINUSOID_CHANNELS, config.width)
        if config.guidance_embeds:
            self.guidance_embedder = TwoLinears(SINUSOID_CHANNELS, config.width)
        self.text_embedder = TwoLinears(config.pooled_projection_dim, config.width)

    def __call__(self, sigma: mx.array, guidance: mx.array | None, pooled: mx.array) -> mx.array:
        # Unlike diffusers: sigma and guidance are embedded in float32 whatever the weights are (3500, not 3504).
        vector = self.timestep_embedder(sinusoid(sigma * 1000).astype(pooled.dtype))
        if guidance is not None:
            vector = vector + self.guidance_embedder(sinusoid(guidance * 1000).astype(pooled.dtype))
        return vector + self.text_embedder(pooled)


class ModulationLinear(nn.Module):
    """The Linear behind an adaptive norm; (B, D) -> `parts` arrays (B, 1, D)."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self.parts = parts

    def __call__(self, activated: mx.array) -> list[mx.array]:
        return list(mx.split(self.linear(activated)[:, None], self.parts, axis=-1))


def stream_modulation(linear: ModulationLinear, activated: mx.array) -> StreamModulation:
    parts = linear(activated)
    return StreamModulation(Modulation(*parts[:3]), Modulation(*parts[3:]))


class Projection(nn.Module):
    """The first Linear of a feed-forward, named as in diffusers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, width: int):
        super().__init__()
        self.net = [Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.net[2](gelu_tanh(self.net[0].proj(x)))


class JointAttention(nn.Module):
    """The projections of both streams."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, head = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = (RMSNorm(head) for _ in range(4))
        self.to_out = [nn.Linear(width, width)]
        self.to_add_out = nn.Linear(width, width)

    def image_qkv(self, x: mx.array) -> QKV:
        q, k, v = (split_heads(linear(x), self.heads) for linear in (self.to_q, self.to_k, self.to_v))
        return QKV(self.norm_q(q), self.norm_k(k), v)

    def text_qkv(self, x: mx.array) -> QKV:
        linears = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        q, k, v = (split_heads(linear(x), self.heads) for linear in linears)
        return QKV(self.norm_added_q(q), self.norm_added_k(k), v)


def attend(qkv: QKV, rope: mx.array) -> mx.array:
    """Attention of one sequence with itself, positions by `rope`: (B, N, D)."""
    queries, keys = rotate(qkv.queries, rope), rotate(qkv.keys, rope)
    return merge_heads(attention(queries, keys, qkv.values, scale=queries.shape[-1] ** -0.5))


class JointBlock(nn.Module):
    """One double-stream block: image and text attend to each other, each with its own weights."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm1 = ModulationLinear(config.width, 6)
        self.norm1_context = ModulationLinear(config.width, 6)
        self.attn = JointAttention(config)
        self.ff = FeedForward(config.width)
        self.ff_context = FeedForward(config.width)

    def __call__(
        self,
        image: mx.array,
        text: mx.array,
        image_mod: StreamModulation,
        text_mod: StreamModulation,
        rope: mx.array,
        index: int = 0,
        hooks: BlockHooks = NO_HOOKS,
    ) -> tuple[mx.array, mx.array]:
        """image: (B, S, D), text: (B, T, D), rope: (1, 1, T + S, head_dim / 2).  Returns the pair after the block."""
        image_qkv = self.attn.image_qkv(layer_norm(image, image_mod.attention.scale, image_mod.attention.shift))
        text_qkv = self.attn.text_qkv(layer_norm(text, text_mod.attention.scale, text_mod.attention.shift))
        both = QKV(*(mx.concatenate(list(pair), axis=2) for pair in zip(text_qkv, image_qkv, strict=True)))
        text_attended, image_attended = mx.split(attend(both, rope), [text.shape[1]], axis=1)

        image_out = self.attn.to_out[0](image_attended)
        if hooks.edit_attention or hooks.watch_attention:
            tokens = hooks.target_tokens or image.shape[1]
            view = JointView(index, self, image_qkv, image_attended, text_mod, rope, tokens)
            for watch in hooks.watch_attention:
                watch(view)
            image_out = hooks.edit_attention(view, image_out) if hooks.edit_attention else image_out

        image = image + image_mod.attention.gate * image_out
        text = text + text_mod.attention.gate * self.attn.to_add_out(text_attended)
        image = feed_forward(image, self.ff, image_mod.feed_forward)
        text = feed_forward(text, self.ff_context, text_mod.feed_forward)
        return image, text


class SideText(NamedTuple):
    """What a text beside the prompt's found in one joint block: it reads the image, and nothing there reads it."""

    after: mx.array  # (B, T, D): the text after the block
    qkv: QKV
    attended: mx.array  # (B, T, D), before the output projection
    image_attended: mx.array  # (B, target tokens or 0, D): what the image would have read from it


def beside(view: JointView, text: mx.array, modulation: StreamModulation, image_reads: bool) -> SideText:
    """Take a side text (B, T, D) through a joint block; the image's queries, keys and values are the block's own.

    image_reads: also compute what the drawn tokens would attend to if this text stood in the prompt's place.  Positions
    of text are zeros, so only the image's are rotated.
    """
    block, image, count = view.block, view.image, text.shape[1]
    qkv = block.attn.text_qkv(layer_norm(text, modulation.attention.scale, modulation.attention.shift))
    rope = view.rope[:, :, -image.keys.shape[2] :]
    queries, keys = qkv.queries, mx.concatenate([qkv.keys, rotate(image.keys, rope)], axis=2)
    if image_reads:
        drawn = slice(view.target_tokens)
        queries = mx.concatenate([queries, rotate(image.queries[:, :, drawn], rope[:, :, drawn])], axis=2)
    values = mx.concatenate([qkv.values, image.values], axis=2)
    out = merge_heads(attention(queries, keys, values, scale=queries.shape[-1] ** -0.5))
    attended, image_attended = mx.split(out, [count], axis=1)
    text = text + modulation.attention.gate * block.attn.to_add_out(attended)
    after = feed_forward(text, block.ff_context, modulation.feed_forward)
    return SideText(after, qkv, attended, image_attended)


def feed_forward(x: mx.array, network: FeedForward, modulation: Modulation) -> mx.array:
    return x + modulation.gate * network(layer_norm(x, modulation.scale, modulation.shift))


class SingleAttention(nn.Module):
    """Projections of the merged sequence; the output projection is the block's."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(config.width, config.width) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(config.attention_head_dim) for _ in range(2))

    def qkv(self, x: mx.array) -> QKV:
        q, k, v = (split_heads(linear(x), self.heads) for linear in (self.to_q, self.to_k, self.to_v))
        return QKV(self.norm_q(q), self.norm_k(k), v)


class SingleBlock(nn.Module):
    """One single-stream block: attention and feed-forward side by side on text and image tokens together."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm = ModulationLinear(config.width, 3)
        self.attn = SingleAttention(config)
        self.proj_mlp = nn.Linear(config.width, 4 * config.width)
        self.proj_out = nn.Linear(5 * config.width, config.width)

    def __call__(self, x: mx.array, modulation: Modulation, rope: mx.array) -> mx.array:
        """x: (B, T + S, D), text first."""
        normed = layer_norm(x, modulation.scale, modulation.shift)
        attended = attend(self.attn.qkv(normed), rope)
        hidden = gelu_tanh(self.proj_mlp(normed))
        return x + modulation.gate * self.proj_out(mx.concatenate([attended, hidden], axis=-1))


class FluxBlocks(nn.Module):
    """The embedders and blocks that FLUX.1's velocity network and its ControlNets have in common."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.in_channels, config.width)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.width)
        self.time_text_embed = TimeTextEmbedding(config)
        self.transformer_blocks = [JointBlock(config) for _ in range(config.num_layers)]
        self.single_transformer_blocks = [SingleBlock(config) for _ in range(config.num_single_layers)]

    @property
    def dtype(self) -> mx.Dtype:
        """What the activations are computed in; adapters may stand in for any Linear, but for no norm."""
        return (*self.transformer_blocks, *self.single_transformer_blocks)[0].attn.norm_q.weight.dtype

    def drop_modulation(self) -> None:
        """Forget the weights of all blocks' modulations, 27 % of FLUX.1; `modulate` cannot be called again."""
        for joint in self.transformer_blocks:
            del joint.norm1, joint.norm1_context
        for single in self.single_transformer_blocks:
            del single.norm

    def modulate(self, sigma: mx.array, guidance: mx.array | None, pooled: mx.array) -> ModulationTable:
        """All modulations for noise levels sigma (B,), guidance (B,) or None, pooled text (B, P); B may be 1."""
        activated = silu(self.time_text_embed(sigma, guidance, pooled))
        head = self.norm_out(activated) if "norm_out" in self else ()
        return ModulationTable(
            image=[stream_modulation(block.norm1, activated) for block in self.transformer_blocks],
            text=[stream_modulation(block.norm1_context, activated) for block in self.transformer_blocks],
            single=[Modulation(*block.norm(activated)) for block in self.single_transformer_blocks],
            head=tuple(head),
        )


class FluxTransformer(FluxBlocks):
    """FLUX.1's velocity network."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.norm_out = ModulationLinear(config.width, 2)
        self.proj_out = nn.Linear(config.width, config.out_channels)

    def __call__(
        self, tokens: mx.array, text: mx.array, table: ModulationTable, rope: mx.array, hooks: BlockHooks = NO_HOOKS
    ) -> mx.array:
        """Velocity of image tokens (B, S, in_channels) given text states (B, T, joint_attention_dim).

        `rope` covers the T text tokens, then the S image tokens.  Returns (B, S, out_channels).
        Source: diffusers' FluxTransformer2DModel.forward.
        """
        image, text = self.x_embedder(tokens), self.context_embedder(text)

        def joint(image: mx.array, text: mx.array, blocks: range) -> tuple[mx.array, mx.array]:
            for index in blocks:
                block = self.transformer_blocks[index]
                arrays = (image, text, table.image[index], table.text[index], rope)
                image, text = hooks.call(block, *arrays, index, hooks)
                image = add_residuals(hooks.residuals, "joint", index, image)
            return image, text

        def rest(image: mx.array, text: mx.array) -> mx.array:
            image, text = joint(image, text, range(1, len(self.transformer_blocks)))
            count = text.shape[1]
            both = mx.concatenate([text, image], axis=1)
            for index, single in enumerate(self.single_transformer_blocks):
                both = hooks.call(single, both, table.single[index], rope)
                if hooks.residuals:
                    text, image = mx.split(both, [count], axis=1)
                    both = mx.concatenate([text, add_residuals(hooks.residuals, "single", index, image)], axis=1)
            return both[:, count:]

        reads = table.image[0].attention
        blocks = BlockPass(
            image,
            modulated=lambda: layer_norm(image, reads.scale, reads.shift),
            first=cache(lambda: joint(image, text, range(1))),
            rest=rest,
        )
        scale, shift = table.head
        drawn = hooks.shortcut(blocks) if hooks.shortcut else blocks.all()
        return self.proj_out(layer_norm(drawn, scale, shift))


def add_residuals(residuals: Sequence[Residuals], kind: str, index: int, image: mx.array) -> mx.array:
    """The image stream plus what each method adds after this block."""
    additions = [addition for hook in residuals if (addition := hook(kind, index, image)) is not None]
    return sum(additions, image)
