"""How much memory a training run takes, before anything is loaded.

Activations are counted in streams (tokens times width) and in scores (heads times tokens^2, of one attention).  Source:
fitted to `benchmarks/training_memory.py`, a network of FLUX's shape with adapters beside every layer (docs/log.md).
"""

from dataclasses import replace

from mflux.engine.latents import TOKEN_PIXELS
from mflux.models.transformer import TransformerConfig
from mflux.runtime import on_cpu
from mflux.training.config import sizes_of
from mflux.training.spec import PAIRS, Spec, targets_of
from mflux.weights.catalog import find

KEPT_JOINT, KEPT_SINGLE, KEPT_OUTSIDE = 35, 31, 22  # streams without checkpointing
LAST_SCORES = 1.1  # of the block that the backward pass is in
ONE_BLOCK, ONE_SCORES = 54, 2  # streams and scores of a block that is computed again
BYTES_A_FACTOR = 16  # itself, its gradient, two moments, float32
FULL_WIDTH_WEIGHTS = 11.9e9 / 3072**2 / (19 * 2 + 38)  # weights a block and width^2, joint blocks counting twice


def forecast(spec: Spec, bytes_each: int | None = None) -> int:
    """Bytes at the worst moment of an update.  bytes_each: of an activation; this machine's by default."""
    sizes, loop, row = sizes_of(spec.model), spec.training_loop, find(spec.model)
    bytes_each = bytes_each or (4 if on_cpu() else 2)
    height, width = spec.size
    image_tokens = height * width // TOKEN_PIXELS**2 * (2 if spec.kind in PAIRS and spec.kind != "fill_edit" else 1)
    tokens = image_tokens + (row.text_tokens if row else 512)
    activations = activation_bytes(learning_blocks(spec, sizes), tokens, loop.gradient_checkpointing, bytes_each)
    weights = FULL_WIDTH_WEIGHTS * sizes.width**2 * (2 * sizes.num_layers + sizes.num_single_layers)
    bits = spec.quantize + 0.5 if spec.quantize else 8 * bytes_each
    factors = sum(target.rank for target in targets_of(spec)) * 4 * sizes.width  # wide layers are the rule's average
    batch = loop.batch_size if loop.batching == "fast" else 1
    return int(weights * bits / 8 + BYTES_A_FACTOR * factors + batch * activations)


def learning_blocks(spec: Spec, sizes: TransformerConfig) -> TransformerConfig:
    """The sizes with only those blocks that the backward pass goes through: from the first one with an adapter on."""
    first = {"transformer_blocks": sizes.num_layers, "single_transformer_blocks": sizes.num_single_layers}
    for target in targets_of(spec):
        family, _, rest = target.path.partition(".")
        if family in first:
            first[family] = min(first[family], int(rest.split(".")[0]))
        elif family != "proj_out":  # an embedder, before all blocks
            first = dict.fromkeys(first, 0)
    joint = sizes.num_layers - first["transformer_blocks"]
    single = sizes.num_single_layers - (0 if joint else first["single_transformer_blocks"])
    return replace(sizes, num_layers=joint, num_single_layers=single)


def activation_bytes(sizes: TransformerConfig, tokens: int, checkpointed: bool | int, bytes_each: int) -> int:
    """What the forward pass of one example keeps for the backward pass, at its worst moment.  tokens: text's too.

    checkpointed: all blocks, or every n-th.
    """
    stream, scores = tokens * sizes.width, sizes.num_attention_heads * tokens**2
    joint, single = sizes.num_layers, sizes.num_single_layers
    share = 1 / checkpointed if checkpointed else 0  # of the blocks
    kept = (KEPT_SINGLE * single + KEPT_JOINT * joint + KEPT_OUTSIDE) * stream + (joint + single + LAST_SCORES) * scores
    again = (joint + single + ONE_BLOCK) * stream + ONE_SCORES * scores
    return int(bytes_each * (share * again + (1 - share) * kept))
