"""One pass of 1 joint + 2 single blocks at full width, by one process and by two that share its heads and columns.

    .venv/bin/python benchmarks/split.py [--tokens 1024] [--rounds 5]

3072 wide, 512 text tokens, float32, each process on one thread of this machine; then what the same split would take for
all of FLUX.1's blocks where the sums go through a network: half of the work, and for each sum the bytes and the
latency of the link.  The outputs of one and of two processes are compared.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mflux import runtime
from timing import print_row

import mlx.core as mx
import numpy as np

from mflux.engine.latents import TOKEN_PIXELS, grid_ids
from mflux.models.transformer import FluxTransformer, TransformerConfig, rope_table
from mflux.ranks import Ranks, launched, split

TEXT = 512
BLOCKS = (1, 2), (19, 38)  # joint and single: measured, and FLUX.1's
SUMS = 4, 1  # in a joint and in a single block
LINKS = {"1 Gbit/s": (125e6, 100e-6), "10 Gbit/s": (1.25e9, 30e-6), "Thunderbolt 5": (8e9, 10e-6)}  # bytes/s, latency


class Timed(Ranks):
    """Ranks that know how long their sums took."""

    seconds = 0.0

    def added(self, part: mx.array) -> mx.array:
        mx.eval(part)
        started = time.perf_counter()
        total = super().added(part)
        self.seconds += time.perf_counter() - started
        return total


def passes(tokens: int, rounds: int) -> dict[str, object]:
    """Median seconds of a pass and of its sums, and a few numbers of the output."""
    ranks = Timed(launched().group)
    joint, single = BLOCKS[0]
    mx.random.seed(0)
    network = FluxTransformer(TransformerConfig(num_layers=joint, num_single_layers=single, guidance_embeds=True))
    inputs = [mx.random.normal(shape) * 0.5 for shape in ((1, tokens, 64), (1, TEXT, 4096), (1, 768))]
    mx.eval(network.parameters(), inputs)
    if ranks.count > 1:
        split(network, ranks)
    side = TOKEN_PIXELS * int(tokens**0.5)
    ids = np.concatenate([np.zeros((TEXT, 3)), grid_ids(side, side)])
    rope = rope_table(ids, network.config.axes_dims_rope)
    table = network.modulate(mx.array([0.5]), mx.array([3.5]), inputs[2])
    mx.eval(table, rope)
    seconds, summing = [], []
    for _ in range(rounds + 1):
        ranks.seconds, started = 0.0, time.perf_counter()
        out = network(inputs[0], inputs[1], table, rope)
        mx.eval(out)
        seconds.append(time.perf_counter() - started)
        summing.append(ranks.seconds)
    return {"seconds": median(seconds[1:]), "sums": median(summing[1:]), "out": np.array(out[0, ::97, :4]).tolist()}


def run(count: int, options: argparse.Namespace) -> dict[str, object]:
    """What the first of some processes measured, each on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port.getsockname()[1]}"] for port in ports]))
        for port in ports:
            port.close()
        wish = [sys.executable, __file__, "--tokens", str(options.tokens), "--rounds", str(options.rounds), "--worker"]
        plain = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MLX_HOSTFILE": str(hosts)}
        started = [
            subprocess.Popen(wish, env=plain | ({"MLX_RANK": str(rank)} if count > 1 else {}), stdout=subprocess.PIPE)
            for rank in range(count)
        ]
        told = [process.communicate()[0] for process in started]
    return json.loads(told[0])


def simulated(alone: float, tokens: int, count: int, link: tuple[float, float]) -> float:
    """Seconds a step of all blocks: the work of one process shared, and the sums of a ring of `count`."""
    speed, latency = link
    joint, single = BLOCKS[1]
    work = alone * (joint + single) / sum(BLOCKS[0]) / count
    sent = 2 * (count - 1) / count * 3072 * 2  # bytes a token: bfloat16, there and back
    streams = joint * 2 * (tokens + TEXT) + single * (tokens + TEXT)
    sums = joint * SUMS[0] + single * SUMS[1]
    return work + streams * sent / speed + sums * 2 * (count - 1) * latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="of the picture, a square number")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(passes(options.tokens, options.rounds)))
        return
    print(f"BLAS {runtime._blas}; one thread a process, medians of {options.rounds}")
    one, two = run(1, options), run(2, options)
    off = np.abs(np.array(one["out"]) - np.array(two["out"])).max() / np.abs(one["out"]).max()
    print_row("split", f"512 + {options.tokens} tokens", {"mflux": two["seconds"], "one": one["seconds"]}, "one")
    print(f"of it {two['sums']:.3f} s in sums and waiting; outputs differ by {off:.1e} of the largest")
    for name, link in LINKS.items():
        shares = [simulated(one["seconds"], options.tokens, count, link) for count in (1, 2, 4)]
        print(f"simulated, all blocks, {name:14s} 1, 2, 4 machines: " + "  ".join(f"{each:7.1f} s" for each in shares))


if __name__ == "__main__":
    main()
