"""One pass of 1 joint + 2 single blocks at full width, against diffusers in the same run.

    .venv/bin/python benchmarks/blocks.py [--bits 4]     (needs the `parity` extra; two threads each)

3072 wide, 256 text + 256 image tokens, float32, the same random weights on both sides.  --bits: also our quantized
form of the blocks.
"""

import argparse

from mflux import runtime
from timing import interleaved

import mlx.core as mx
import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from mflux.models.transformer import FluxTransformer, TransformerConfig, rope_table
from mflux.weights.load import put, quantize_module
from mlx.utils import tree_flatten, tree_unflatten

TEXT, SIDE_TOKENS = 256, 16
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
    parser.add_argument("--bits", type=int, choices=(3, 4, 5, 6, 8))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    reference = FluxTransformer2DModel(**SIZES).eval()
    network = ours_from(reference)
    random = np.random.default_rng(0)
    image = random.standard_normal((1, SIDE_TOKENS**2, 64), np.float32)
    text = random.standard_normal((1, TEXT, 4096), np.float32)
    pooled = random.standard_normal((1, 768), np.float32)
    rows, columns = np.mgrid[:SIDE_TOKENS, :SIDE_TOKENS]
    ids = np.stack([np.zeros(rows.size), rows.ravel(), columns.ravel()], axis=-1)
    text_ids = np.zeros((TEXT, 3))
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
    contenders = {"mflux float32": ours, "diffusers float32": theirs}
    if options.bits:
        packed = quantized(ours_from(reference), options.bits)
        contenders[f"mflux {options.bits} bit"] = lambda: ours(packed)
    seconds = interleaved(contenders, options.rounds)
    print(f"BLAS {runtime._blas}; torch {torch.__version__}, 2 threads; medians of {options.rounds}")
    print(f"largest difference  {difference:.2e}")
    for name, value in seconds.items():
        print(f"{name:20s}{value:8.3f} s   {value / seconds['diffusers float32']:5.2f} x diffusers")


if __name__ == "__main__":
    main()
