"""One pass of 1 joint + 2 single blocks at full width, against diffusers in the same run.

    .venv/bin/python benchmarks/blocks.py [--bits 4 3] [--tokens 512 1024]     (needs the `parity` extra; two threads)

3072 wide, float32, the same random weights on both sides.  --bits: also our quantized forms, against our float32.
"""

import argparse
from functools import partial

from mflux import runtime
from timing import interleaved, print_row

import mlx.core as mx
import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from mflux.models.transformer import FluxTransformer, TransformerConfig, rope_table
from mflux.weights.load import put, quantize_module
from mlx.utils import tree_flatten, tree_unflatten

SIZES = {"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True}


def ours_from(reference: FluxTransformer2DModel) -> FluxTransformer:
    """Our transformer with the reference's weights."""
    network = FluxTransformer(TransformerConfig(**SIZES))
    tensors = {name: mx.array(value.numpy()) for name, value in reference.state_dict().items()}
    network.update(tree_unflatten([(name, tensors[name]) for name, _ in tree_flatten(network.parameters())]))
    mx.eval(network.parameters())
    return network


def quantized(network: FluxTransformer, bits: int) -> FluxTransformer:
    for path, module in list(network.named_modules()):
        packed = quantize_module(module, bits)
        if packed is not None:
            put(network, path, packed)
    mx.eval(network.parameters())
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", choices=(3, 4, 5, 6, 8), default=())
    parser.add_argument("--tokens", type=int, nargs=2, default=(256, 256), help="of text, and of the picture: a square")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    reference = FluxTransformer2DModel(**SIZES).eval()
    network = ours_from(reference)
    random = np.random.default_rng(0)
    text_tokens, image_tokens = options.tokens
    image = random.standard_normal((1, image_tokens, 64), np.float32)
    text = random.standard_normal((1, text_tokens, 4096), np.float32)
    pooled = random.standard_normal((1, 768), np.float32)
    side = int(image_tokens**0.5)
    rows, columns = np.mgrid[:side, :side]
    ids = np.stack([np.zeros(rows.size), rows.ravel(), columns.ravel()], axis=-1)
    text_ids = np.zeros((text_tokens, 3))
    rope = rope_table(np.concatenate([text_ids, ids]), network.config.axes_dims_rope)
    inputs = [mx.array(image), mx.array(text), mx.array(pooled)]

    def ours(model: FluxTransformer = network) -> mx.array:
        table = model.modulate(mx.array([0.5]), mx.array([3.5]), inputs[2])
        out = model(inputs[0], inputs[1], table, rope)
        mx.eval(out)
        return out

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        tensors = [torch.from_numpy(array) for array in (image, text, pooled)]
        return reference(
            hidden_states=tensors[0],
            encoder_hidden_states=tensors[1],
            pooled_projections=tensors[2],
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.from_numpy(ids.astype(np.float32)),
            txt_ids=torch.from_numpy(text_ids.astype(np.float32)),
            return_dict=False,
        )[0]

    difference = float(np.abs(np.array(ours()) - theirs().numpy()).max())
    contenders = {"mflux": ours, "diffusers": theirs}
    for bits in options.bits:
        contenders[f"{bits} bit"] = partial(ours, quantized(ours_from(reference), bits))
    seconds = interleaved(contenders, options.rounds)
    print(f"BLAS {runtime._blas}; torch {torch.__version__}, 2 threads; medians of {options.rounds}")
    print(f"largest difference  {difference:.2e}")
    sizes = f"1 + 2 blocks, {text_tokens} + {image_tokens} tokens"
    print_row("blocks", sizes, {name: seconds[name] for name in ("mflux", "diffusers")})
    for bits in options.bits:
        print_row(
            "blocks", f"{sizes}, {bits} bit", {"mflux": seconds[f"{bits} bit"], "float32": seconds["mflux"]}, "float32"
        )


if __name__ == "__main__":
    main()
