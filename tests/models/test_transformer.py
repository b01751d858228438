"""The transformer beyond parity: dtypes, batches, gradients, and the places where methods look in."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mflux  # noqa: F401
from mflux.models.transformer import BlockHooks, FluxTransformer, TransformerConfig, rope_table, rotate, sinusoid

SIZES = TransformerConfig(
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)
IDS = np.concatenate([np.zeros((5, 3)), [[0, row, column] for row in range(3) for column in range(4)]])
ROPE = rope_table(IDS, SIZES.axes_dims_rope)


def random(shape, seed):
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.fixture
def network():
    """Random weights of deviation 0.15 and never zero gates, or everything is equal to everything."""
    made = FluxTransformer(SIZES)
    keys = iter(range(10_000))
    made.update(tree_map(lambda array: 0.15 * random(array.shape, next(keys)), made.parameters()))
    return made


def inputs(batch=1, dtype=mx.float32):
    return random((batch, 12, 64), 1).astype(dtype), random((batch, 5, 24), 2).astype(dtype)


def table_of(network, dtype=mx.float32):
    return network.modulate(mx.array([0.7]), mx.array([3.5]), random((1, 20), 3).astype(dtype))


def test_known_values_of_the_sinusoid():
    out = sinusoid(mx.array([1000.0]))[0]
    assert np.allclose(np.array(out[:2]), [0.5623791, 0.7896267], atol=1e-6)
    assert np.allclose(np.array(out[128:130]), [0.8268796, 0.6135877], atol=1e-6)


def test_known_values_of_the_rope_table():
    table = np.array(rope_table(np.array([[1, 0, 0]]), (4, 4, 8)))[0, 0, 0]
    assert np.allclose([table[0].real, table[0].imag], [0.5403023, 0.8414710], atol=1e-7)
    assert np.allclose(table[2:], 1)


def test_rope_keeps_lengths_and_depends_on_distance_only():
    x, y = random((1, 1, 17, 16), 4), random((1, 1, 17, 16), 5)
    shifted = rope_table(IDS + np.array([0, 3, 7]), SIZES.axes_dims_rope)
    scores = [rotate(x, rope) @ rotate(y, rope).swapaxes(-1, -2) for rope in (ROPE, shifted)]
    norms = [mx.linalg.norm(each, axis=-1) for each in (x, rotate(x, ROPE))]
    assert float(mx.abs(norms[0] - norms[1]).max()) < 1e-5
    image = [each[..., 5:, 5:] for each in scores]
    assert float(mx.abs(image[0] - image[1]).max()) < 1e-4


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_block_outputs_keep_the_weights_dtype(network, dtype):
    network.set_dtype(dtype)
    tokens, text = inputs(dtype=dtype)
    table = table_of(network, dtype)
    image, states = network.transformer_blocks[0](
        network.x_embedder(tokens), network.context_embedder(text), table.image[0], table.text[0], ROPE
    )
    single = network.single_transformer_blocks[0](mx.concatenate([states, image], axis=1), table.single[0], ROPE)
    assert {image.dtype, states.dtype, single.dtype, network(tokens, text, table, ROPE).dtype} == {dtype}


def test_half_precision_is_close_to_single(network):
    tokens, text = inputs()
    wanted = network(tokens, text, table_of(network), ROPE)
    network.set_dtype(mx.bfloat16)
    got = network(*inputs(dtype=mx.bfloat16), table_of(network, mx.bfloat16), ROPE).astype(mx.float32)
    assert float(mx.abs(got - wanted).max() / mx.abs(wanted).max()) < 0.05


def test_modulations_of_many_levels_are_those_of_each(network):
    pooled = mx.broadcast_to(random((1, 20), 3), (3, 20))
    levels = mx.array([1.0, 0.6, 0.2])
    together = network.modulate(levels, mx.full((3,), 3.5), pooled)
    alone = network.modulate(levels[1:2], mx.array([3.5]), pooled[:1])
    pairs = zip(tree_flatten(together), tree_flatten(alone), strict=True)
    assert max(float(mx.abs(many[1:2] - one).max()) for (_, many), (_, one) in pairs) < 1e-5


def test_a_view_sees_what_the_block_computes_and_an_edit_replaces_it(network):
    tokens, text = inputs()
    table, seen = table_of(network), []
    plain = network(tokens, text, table, ROPE)
    watched = network(tokens, text, table, ROPE, BlockHooks(watch_attention=[seen.append]))
    same = network(tokens, text, table, ROPE, BlockHooks(edit_attention=lambda view, out: out))
    none = network(tokens, text, table, ROPE, BlockHooks(edit_attention=lambda view, out: 0 * out))
    assert [view.index for view in seen] == [0, 1]
    assert seen[0].image_attended.shape == (1, 12, 32) and seen[0].target_tokens == 12
    assert mx.array_equal(plain, watched) and mx.array_equal(plain, same)
    assert float(mx.abs(plain - none).max()) > 1e-3


def test_residuals_are_added_after_their_block_to_the_image_only(network):
    tokens, text = inputs()
    table, asked = table_of(network), []

    def residual(kind, index, image):
        asked.append((kind, index, image.shape))
        return None if (kind, index) != ("single", 1) else mx.ones(image.shape)

    plain = network(tokens, text, table, ROPE)
    added = network(tokens, text, table, ROPE, BlockHooks(residuals=[residual]))
    assert asked == [(kind, index, (1, 12, 32)) for kind in ("joint", "single") for index in (0, 1)]
    assert float(mx.abs(plain - added).max()) > 0 or network.proj_out.weight.sum() == 0


def test_gradients_reach_every_weight_and_are_those_of_finite_differences(network):
    tokens, text = inputs()

    def loss(network):
        table = network.modulate(mx.array([0.7]), mx.array([3.5]), random((1, 20), 3))
        return mx.square(network(tokens, text, table, ROPE)).mean()

    value, gradients = nn.value_and_grad(network, loss)(network)
    unread = {"transformer_blocks.1.ff_context", "transformer_blocks.1.attn.to_add_out"}
    for name, gradient in tree_flatten(gradients):
        if not any(name.startswith(each) for each in unread) and "to_k.bias" not in name:
            assert float(mx.abs(gradient).max()) > 0, name
    direction = tree_map(lambda array: random(array.shape, 7), network.parameters())
    slope = sum(
        float((g * d).sum()) for (_, g), (_, d) in zip(tree_flatten(gradients), tree_flatten(direction), strict=True)
    )
    weights, step = network.parameters(), 1e-4
    network.update(tree_map(lambda w, d: w + step * d, weights, direction))
    above = float(loss(network))
    network.update(tree_map(lambda w, d: w - step * d, weights, direction))
    below = float(loss(network))
    assert abs((above - below) / (2 * step) - slope) <= 0.02 * abs(slope)
    assert np.isfinite(float(value))
