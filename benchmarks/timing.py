"""How the benchmarks measure: calls of each contender in turn, so that both see the same machine; medians."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

RESULTS = os.environ.get("MFLUX_BENCHMARKS")  # a file that gets one JSON object a row
PACKAGES = ("mflux", "mlx", "torch", "diffusers", "transformers")


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each contender over `rounds`, called in turn after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if round_number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def print_row(benchmark: str, what: str, seconds: dict[str, float], peer: str = "diffusers") -> None:
    """A line with the seconds of each and our share of the peer's, and a JSON row with machine and versions."""
    times = "   ".join(f"{name} {value:8.4f} s" for name, value in seconds.items())
    ratio = seconds["mflux"] / seconds[peer]
    print(f"{what:32s}{times}   {ratio:5.2f} x {peer}", flush=True)
    if RESULTS:
        row = {"benchmark": benchmark, "what": what, "seconds": seconds, "ratio": ratio, **machine()}
        with Path(RESULTS).open("a") as file:
            file.write(json.dumps(row) + "\n")


def machine() -> dict[str, object]:
    """What a number depends on besides the code."""
    found = {each.name: each.version for each in distributions()}
    versions = {name: found[name] for name in PACKAGES if name in found}
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(), "versions": versions}
