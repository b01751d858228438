"""FLUX.1 at full size on this machine: save, load and draw a synthetic 12B checkpoint, with peaks of memory.

    python benchmarks/full_size.py --work /tmp/full-size [--bits 3 4 6 8] [--keep] [--peer /tmp/peer/bin/python]

Writes a checkpoint of FLUX.1-dev's sizes in bfloat16 (random numbers, 34 GB, shard by shard; kept for the next run with
--keep), then in a process each: `mflux-save` to each number of bits (time, peak, size on disk), loading the 4-bit
transformer (peak against the result), and one step at 64 x 64 px with 16 text tokens (resident memory while denoising,
peak overall, time).  --peer, the Python of an environment with mflux from PyPI, also opens the 4-bit save there: which
of its tensors the other mflux has a place for, and which places stay empty.  Needs 34 GB of disk and as much again as
the largest save.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mflux  # noqa: F401  first: it loads the BLAS before mlx

import mlx.core as mx
import numpy as np

from mflux.weights.catalog import BUILT_IN
from mflux.weights.kinds import KINDS
from mflux.weights.load import expected_shapes
from mflux.weights.resolve import NETWORKS
from mflux.weights.save import CLASSES, STEMS, write_json

LIMITS = {3: 7.5, 4: 9.6, 6: 13.8, 8: 18.0}  # GB on disk
OPTIONS = {"transformer": {"guidance_embeds": True}}
SHARD = 1 << 30
BLOCK = 1 << 24
SIZES = {"vae": {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}}
SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0}
LOAD = """
import mflux, sys, mlx.core as mx
from pathlib import Path
from mlx.utils import tree_flatten
from mflux.weights.load import load_network
mx.reset_peak_memory()
network = load_network("transformer", Path(sys.argv[1]) / "transformer")
held = sum(value.nbytes for _, value in tree_flatten(network.parameters()))
print(held, mx.get_peak_memory())
"""
DRAW = """
import os, sys, time
from mflux import Config, Flux1
resident = []
def on_step(progress):
    resident.append(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
flux = Flux1(sys.argv[1], low_ram=True)
started = time.perf_counter()
config = Config(num_inference_steps=1, height=64, width=64, max_sequence_length=16)
flux.generate_image(1, "a large red circle", config, on_step=on_step)
print(max(resident), time.perf_counter() - started)
"""
PEER = """
import sys
from importlib.metadata import version
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mflux.models.common.config import ModelConfig
from mflux.models.flux.variants.txt2img.flux import Flux1
flux = Flux1(model_path=sys.argv[1], model_config=ModelConfig.dev())
modules = flux.transformer, flux.t5_text_encoder, flux.clip_text_encoder, flux.vae
for part, module in zip(("transformer", "text_encoder_2", "text_encoder", "vae"), modules, strict=True):
    places = {name: value.shape for name, value in tree_flatten(module.parameters())}
    files = Path(sys.argv[1], part).glob("*.safetensors")
    stored = {name: value.shape for file in files for name, value in mx.load(str(file)).items()}
    fits = sum(places.get(name) == shape for name, shape in stored.items())
    empty = [name for name in places if name not in stored]
    counts = f"{fits} of {len(stored)} tensors fit, {len(empty)} places stay empty {empty[:3]}"
    print(f"mflux {version('mflux')}  {part}: {counts}")
"""


def write_checkpoint(folder: Path) -> None:
    """A diffusers layout of FLUX.1-dev's sizes; finished parts are kept."""
    block = mx.array(np.random.default_rng(0).standard_normal(BLOCK, np.float32) * 0.02).astype(mx.bfloat16)
    for part in NETWORKS:
        if (folder / part / "config.json").is_file():
            continue
        config = KINDS[part].config(**OPTIONS.get(part, {}))
        shards, weights = list(grouped(expected_shapes(KINDS[part].build(config)))), {}
        (folder / part).mkdir(parents=True, exist_ok=True)
        stem = STEMS.get(part, "model")
        for index, names in enumerate(shards):
            file = f"{stem}-{index + 1:05d}-of-{len(shards):05d}.safetensors"
            tensors = {name: filled(block, shape) for name, shape in names.items()}
            mx.save_safetensors(str(folder / part / file), tensors)
            weights |= dict.fromkeys(names, file)
        write_json(folder / part / f"{stem}.safetensors.index.json", {"weight_map": weights})
        write_json(folder / part / "config.json", CLASSES[part] | SIZES.get(part, {}) | vars(config))
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(BUILT_IN / "base" / part, folder / part, dirs_exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)


def grouped(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors for one shard after another."""
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if shard and sum(2 * np.prod(each) for each in shard.values()) + 2 * np.prod(shape) > SHARD:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def filled(block: mx.array, shape: tuple[int, ...]) -> mx.array:
    count = int(np.prod(shape))
    return mx.concatenate([block] * -(-count // BLOCK))[:count].reshape(shape)


def measured(*words: str, python: str = sys.executable) -> tuple[str, float, float]:
    """Output, seconds and peak resident memory in GB of a process."""
    started = time.perf_counter()
    with subprocess.Popen([python, "-c", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"error: {words[0][:60]}... ended with {process.returncode}")
    return out, time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def size_of(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint for the next run")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with mflux from PyPI")
    options = parser.parse_args()
    whole = options.work / "whole"
    started = time.perf_counter()
    write_checkpoint(whole)
    print(f"checkpoint    {size_of(whole):.2f} GB, written in {time.perf_counter() - started:.0f} s", flush=True)
    command = "import sys; sys.argv[0] = 'mflux-save'; from mflux.cli.main import named; raise SystemExit(named())"
    for bits in options.bits:
        target = options.work / f"q{bits}"
        shutil.rmtree(target, ignore_errors=True)
        words = ("--model", str(whole), "--path", str(target), "--quantize", str(bits), "--base-model", "dev")
        _, seconds, peak = measured(command, *words)
        limit = f" (at most {LIMITS[bits]})" if bits in LIMITS else ""
        line = {"bits": bits, "gb": round(size_of(target), 2), "seconds": round(seconds), "peak_gb": round(peak, 2)}
        print(
            f"save {bits} bit    {line['gb']} GB{limit}, {seconds:.0f} s, peak {peak:.2f} GB (at most 3.5)", flush=True
        )
        if bits == 4:
            out, seconds, peak = measured(LOAD, str(target))
            held, most = (int(number) / 1e9 for number in out.split())
            print(f"load          {held:.2f} GB held, {most:.2f} GB at most (1 GB more), {seconds:.0f} s", flush=True)
            out, seconds, peak = measured(DRAW, str(target))
            resident, drawn = (float(number) for number in out.split())
            print(f"one step      {resident / 1e9:.2f} GB resident (at most 8), peak {peak:.2f} GB (at most 10), "
                  f"{drawn:.0f} s of {seconds:.0f} s", flush=True)  # fmt: skip
            if options.peer:
                print(measured(PEER, str(target), python=options.peer)[0], flush=True)
            line |= {"held_gb": held, "load_peak_gb": most, "resident_gb": resident / 1e9, "draw_peak_gb": peak}
        print(json.dumps(line), flush=True)
        shutil.rmtree(target)
    if not options.keep:
        shutil.rmtree(whole)


if __name__ == "__main__":
    main()
