"""How much memory an update takes: forecast and measured, with and without gradient checkpointing.

    .venv/bin/python benchmarks/training_memory.py [--joint 3 --single 6 --width 256 --tokens 1024]
    .venv/bin/python benchmarks/training_memory.py --table      (forecasts for FLUX.1-dev on a GPU, as Markdown)

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
from mflux.training.memory import activation_bytes, forecast
from mflux.training.config import read_tables
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


def table() -> None:
    """Bytes of a run with FLUX.1-dev in bfloat16, rank 16 beside every layer of every block."""
    layers = {"lora_rank": 16}
    families = {
        family: layers | {"block_range": {"start": 0, "end": count}, "layer_types": list(known)}
        for (family, known), count in zip(FAMILIES.items(), (19, 38), strict=True)
    }
    run = {"model": "dev", "seed": 0, "steps": 20, "guidance": 1.0, "lora_layers": families}
    run |= {"optimizer": {"name": "AdamW", "learning_rate": 1e-4}, "save": {"output_path": "x"}}
    run["save"]["checkpoint_frequency"] = 100
    run["examples"] = {"images": [{"image": "x", "prompt": "x"}]}
    print("| px | bf16 | 8 bit | 4 bit | 4 bit, Kontext | bf16, no checkpointing |\n|---|---|---|---|---|---|")
    for side in (512, 768, 1024):
        cells = []
        for bits, kind, checkpointing in (
            (None, "t2i", True),
            (8, "t2i", True),
            (4, "t2i", True),
            (4, "kontext", True),
            (None, "t2i", False),
        ):
            loop = {"num_epochs": 1, "batch_size": 1, "gradient_checkpointing": checkpointing}
            spec = run | {"width": side, "height": side, "quantize": bits, "kind": kind, "training_loop": loop}
            cells.append(f"{forecast(read_tables(spec, 'table'), 2) / 1e9:.1f} GB")
        print(f"| {side} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", type=int, default=3)
    parser.add_argument("--single", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024, help="of picture and text together")
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
        return
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
