"""How much memory an update takes: forecast and measured, with and without gradient checkpointing.

    .venv/bin/python benchmarks/training_memory.py [--joint 3 --single 6 --width 256 --tokens 1024]

A random network of FLUX's shape, LoRAs of rank 4 beside every layer; peaks are above what is held before the update.
"""

import argparse
import subprocess
import sys

from mflux import runtime

import mlx.core as mx

from mflux.engine.network import Branch, Network
from mflux.engine.slots import Inputs
from mflux.models.transformer import NO_HOOKS, FluxTransformer, TransformerConfig
from mflux.training.adapters import attach, factors_of
from mflux.training.loss import CHECKPOINTED, sample_losses, value_and_gradients
from mflux.training.memory import activation_bytes
from mflux.training.spec import FAMILIES, Target

TEXT = 256
MODES = ("plain", "checkpointed")


def measure(config: TransformerConfig, tokens: int, mode: str) -> int:
    """Bytes of an update's peak above what is there before."""
    network = FluxTransformer(config)
    targets = [
        Target(f"{family}.{index}.{name}", 4, 1.0)
        for family, known in FAMILIES.items()
        for index in range(len(getattr(network, family)))
        for name in known.values()
    ]
    layers = attach(network, targets, 0)
    factors = factors_of(layers)
    side = 16 * tokens
    run = Network(network, 16, side - 16 * TEXT, Inputs())
    image = mx.random.normal((1, tokens - TEXT, 64))
    text = mx.random.normal((1, TEXT, config.joint_attention_dim))
    branch = Branch(text, mx.random.normal((1, config.pooled_projection_dim)), 3.5)
    mx.eval(network.parameters(), factors, image, text, branch.pooled)
    hooks = CHECKPOINTED if mode == "checkpointed" else NO_HOOKS

    def loss() -> mx.array:
        return sample_losses(run, branch, image, image[:, ::-1], mx.array([0.5]), hooks=hooks)[0].sum()

    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    value_and_gradients(layers, factors, loss)
    return mx.get_peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", type=int, default=3)
    parser.add_argument("--single", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024, help="of picture and text together")
    parser.add_argument("--mode", choices=MODES)
    options = parser.parse_args()
    config = TransformerConfig(
        num_layers=options.joint,
        num_single_layers=options.single,
        num_attention_heads=options.width // 128,
        joint_attention_dim=options.width,
        pooled_projection_dim=options.width,
        guidance_embeds=True,
    )
    if options.mode:
        print(measure(config, options.tokens, options.mode))
        return
    unit = 4 * options.tokens * options.width
    print(f"{options.joint} + {options.single} blocks, width {options.width}, {options.tokens} tokens, {runtime._blas}")
    peaks = {}
    for mode in MODES:  # a process each, so that neither finds the other's memory
        command = [sys.executable, __file__, *sys.argv[1:], "--mode", mode]
        peaks[mode] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        told = activation_bytes(config, options.tokens, mode == "checkpointed", 4)
        print(
            f"{mode:14s}{peaks[mode] / 2**20:8.1f} MiB = {peaks[mode] / unit:6.1f} streams; "
            f"forecast {told / 2**20:8.1f} MiB ({told / peaks[mode]:.2f} x)"
        )
    print(f"checkpointed / plain {peaks['checkpointed'] / peaks['plain']:.3f}")


if __name__ == "__main__":
    main()
