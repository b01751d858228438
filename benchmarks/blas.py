"""A 1024 x 1024 float32 matmul with our BLAS and with the wheel's own: `.venv/bin/python benchmarks/blas.py`.

Each contender needs a process of its own, because a BLAS is chosen before mlx is imported; they take turns.
"""

import os
import statistics
import subprocess
import sys

SIDE = 1024
MEASURE = f"""
import time
import mflux
import mlx.core as mx
a, b = mx.random.normal(({SIDE}, {SIDE})), mx.random.normal(({SIDE}, {SIDE}))
mx.eval(a, b, a @ b)
times = []
for _ in range(5):
    started = time.perf_counter()
    mx.eval(a @ b)
    times.append(time.perf_counter() - started)
print(min(times), mflux.runtime._blas)
"""


def measure(blas: str | None) -> tuple[float, str]:
    """Seconds of one matmul, and the library that ran it."""
    environment = {**os.environ} | ({"MFLUX_BLAS": blas} if blas else {})
    words = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    seconds, library = words.stdout.split()
    return float(seconds), library


def main() -> None:
    runs = [(measure(None), measure("off")) for _ in range(5)]
    ours, wheel = (statistics.median(run[side][0] for run in runs) for side in (0, 1))
    work = 2 * SIDE**3 / 1e9
    print(f"BLAS found           {runs[0][0][1]}")
    print(f"with it              {ours * 1e3:8.1f} ms  {work / ours:6.1f} GFLOP/s")
    print(f"wheel as installed   {wheel * 1e3:8.1f} ms  {work / wheel:6.1f} GFLOP/s")
    print(f"ratio                {wheel / ours:8.1f}")


if __name__ == "__main__":
    main()
