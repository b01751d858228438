"""Seconds of a training step at full width, against diffusers and peft in the same run.

    .venv/bin/python benchmarks/training.py [--rounds 5]     (needs the `parity` extra; two threads each)

1 joint + 2 single blocks, 3072 wide, 512 text + 256 image tokens, float32, LoRAs of rank 16 beside the attention's and
the feed-forwards' layers; loss and all gradients, both sides with gradient checkpointing or both without.
"""

import argparse

from mflux import runtime
from blocks import SIZES, ours_from
from timing import interleaved, print_row

import mlx.core as mx
import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

from mflux.engine.network import Branch, Network
from mflux.engine.slots import Inputs
from mflux.models.transformer import NO_HOOKS
from mflux.training.adapters import attach, factors_of
from mflux.training.loss import CHECKPOINTED, put_factors, sample_losses, value_and_gradients
from mflux.training.spec import FAMILIES, Target

TEXT, SIDE_TOKENS, RANK = 512, 16, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-checkpointing", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    reference = FluxTransformer2DModel(**SIZES)
    network = ours_from(reference)
    paths = [
        f"{family}.{index}.{name}"
        for family, known in FAMILIES.items()
        for index in range(len(getattr(network, family)))
        for name in known.values()
        if "norm" not in name
    ]
    layers = attach(network, [Target(path, RANK, 1.0) for path in paths], 0)
    reference.requires_grad_(False)
    reference.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=paths, init_lora_weights="gaussian"))
    theirs = {name: value for name, value in reference.named_parameters() if value.requires_grad}
    random = np.random.default_rng(0)
    factors = {}
    for name, value in factors_of(layers).items():
        array = random.standard_normal(value.shape, np.float32) / 50
        factors[name] = mx.array(array)
        theirs[f"{name}.default.weight"].data = torch.from_numpy(array)
    put_factors(layers, factors)
    if not options.no_checkpointing:
        reference.enable_gradient_checkpointing()
    reference.train()

    image, noise = (random.standard_normal((1, SIDE_TOKENS**2, 64), np.float32) for _ in range(2))
    text = random.standard_normal((1, TEXT, 4096), np.float32)
    pooled = random.standard_normal((1, 768), np.float32)
    rows, columns = np.mgrid[:SIDE_TOKENS, :SIDE_TOKENS]
    ids = np.stack([np.zeros(rows.size), rows.ravel(), columns.ravel()], axis=-1).astype(np.float32)
    run = Network(network, 16 * SIDE_TOKENS, 16 * SIDE_TOKENS, Inputs())
    branch = Branch(mx.array(text), mx.array(pooled), 3.5)
    arrays = mx.array(image), mx.array(noise), mx.array([0.5])
    hooks = NO_HOOKS if options.no_checkpointing else CHECKPOINTED

    def ours() -> dict[str, mx.array]:
        return value_and_gradients(layers, factors, lambda: sample_losses(run, branch, *arrays, hooks=hooks)[0].sum())[
            1
        ]

    def with_peft() -> dict[str, torch.Tensor]:
        reference.zero_grad()
        x0, e = torch.from_numpy(image), torch.from_numpy(noise)
        velocity = reference(
            hidden_states=0.5 * x0 + 0.5 * e,
            encoder_hidden_states=torch.from_numpy(text),
            pooled_projections=torch.from_numpy(pooled),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.from_numpy(ids),
            txt_ids=torch.zeros((TEXT, 3)),
            return_dict=False,
        )[0]
        torch.mean((velocity - (e - x0)) ** 2).backward()
        return {name: value.grad for name, value in theirs.items()}

    own, wanted = ours(), with_peft()
    worst = max(
        float(np.abs(np.array(value) - wanted[f"{name}.default.weight"].numpy()).max())
        / float(wanted[f"{name}.default.weight"].abs().max())
        for name, value in own.items()
    )
    seconds = interleaved({"mflux": ours, "diffusers + peft": with_peft}, options.rounds)
    print(f"BLAS {runtime._blas}; torch {torch.__version__}, 2 threads; medians of {options.rounds}")
    print(f"largest difference of a gradient, relative to its tensor's largest  {worst:.1e}")
    print_row("training", "LoRA step", seconds, "diffusers + peft")


if __name__ == "__main__":
    main()
