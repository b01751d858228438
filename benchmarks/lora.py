"""How long LoRA names take to be mapped, for a LoRA on every Linear of FLUX.1-dev's blocks (more than 1,000 tensors).

    python benchmarks/lora.py

Mapping: header, grouping and the place of every layer, as `read_lora` finds them (at most 0.1 s for 1,000 tensors).
Reading: all of it, numbers included, rank 4.  The networks have full size, but hold no numbers.
"""

import tempfile
from pathlib import Path

import mflux  # noqa: F401  first: it loads the BLAS before mlx

import mlx.core as mx
import mlx.nn as nn

from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.weights.files import read_header
from mflux.weights.lora_files import grouped, locate, read_lora, spelled_modules
from timing import interleaved

RANK = 4
SPELLINGS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", "."),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "_"),
}


def write_lora(path: Path, network: nn.Module, spelling: str) -> int:
    down, up, dot = SPELLINGS[spelling]
    tensors = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in name:
            outputs, inputs = module.weight.shape
            tensors[down.format(name.replace(".", dot))] = mx.zeros((RANK, inputs), mx.bfloat16)
            tensors[up.format(name.replace(".", dot))] = mx.zeros((outputs, RANK), mx.bfloat16)
    mx.save_safetensors(str(path), tensors)
    return len(tensors)


def main() -> None:
    parts = {"transformer": FluxTransformer(TransformerConfig(guidance_embeds=True))}
    with tempfile.TemporaryDirectory() as folder:
        for spelling in SPELLINGS:
            path = Path(folder, f"{spelling}.safetensors")
            count = write_lora(path, parts["transformer"], spelling)

            def mapping(path: Path = path) -> list[object]:
                spelled = {part: spelled_modules(part, network) for part, network in parts.items()}
                return [locate(name, spelled) for name in grouped(path, read_header(path))]

            def reading(path: Path = path) -> object:
                return read_lora(path, 1.0, parts)

            times = interleaved({"mapping": mapping, "reading": reading}, rounds=5)
            mapped = times["mapping"]
            print(f"{spelling:10} {count} tensors: mapped in {mapped:.3f} s, read in {times['reading']:.2f} s")


if __name__ == "__main__":
    main()
