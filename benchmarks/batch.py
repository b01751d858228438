"""What one more seed costs in a batch: the built-in model, 128 px.

    .venv/bin/python benchmarks/batch.py [--most 8]

Marginal cost: (time of a batch of N - time of one) / (N - 1), against the time of one (at most 0.6 x for N = 8); the
prompt is encoded before.
"""

import argparse
from functools import partial

from mflux import Config, Flux1
from timing import interleaved, print_row

PROMPT = "a large red circle on the left, on a white background"


def draw(flux: Flux1, seeds: int) -> None:
    flux.generate_image(list(range(seeds)), PROMPT, Config(num_inference_steps=8, height=128, width=128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    flux = Flux1.from_name("tiny")
    sizes = sorted({1, 2, options.most // 2, options.most})
    seconds = interleaved({str(size): partial(draw, flux, size) for size in sizes}, options.rounds)
    for size in sizes:
        whole, one = seconds[str(size)], seconds["1"]
        if size > 1:
            print_row("batch", f"one more of {size} seeds", {"mflux": (whole - one) / (size - 1), "one": one}, "one")


if __name__ == "__main__":
    main()
