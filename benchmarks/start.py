"""What it costs to start: `.venv/bin/python benchmarks/start.py`.

Wall time and processor time of `--help` and of a usage error, above those of `python -c pass`, and of a whole run from
the command line to the PNG with the built-in model.  Each is the best of seven.
"""

import resource
import subprocess
import sys
import tempfile
import time

COMMAND = "import sys; sys.argv[0] = 'mflux-generate'; from mflux.cli.main import named; sys.exit(named())"
DRAW = ["--model", "tiny", "--prompt", "a red circle", "--steps", "4", "--seed", "1", "--overwrite"]
RUNS = {
    "python -c pass": ["pass"],
    "mflux-generate --help": [COMMAND, "--help"],
    "mflux-generate --steps 0": [COMMAND, "--prompt", "x", "--steps", "0"],
    "mflux-generate --model tiny": [COMMAND, *DRAW],
}


def cost(words: list[str], folder: str) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *words], cwd=folder, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, spent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        costs = {name: [cost(words, folder) for words in [RUNS[name]] * 7] for name in RUNS}
    base_wall, base_spent = (min(column) for column in zip(*costs["python -c pass"], strict=True))
    for name, measured in costs.items():
        wall, spent = (min(column) for column in zip(*measured, strict=True))
        more = f"(+{wall - base_wall:.3f}), {spent:6.3f} s processor (+{spent - base_spent:.3f})"
        print(f"{name:28s} {wall:6.3f} s wall {more}")


if __name__ == "__main__":
    main()
