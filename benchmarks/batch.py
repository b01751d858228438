"""What one more seed costs in a batch, and how cost grows with pixels and text: the built-in model.

    .venv/bin/python benchmarks/batch.py [--most 8] [--growth]

Marginal cost: (time of a batch of N - time of one) / (N - 1), against the time of one (at most 0.6 x for N = 8); the
prompt is encoded before.  --growth: seconds and peak memory for sizes, text lengths and batches.
"""

import argparse
from functools import partial

from mflux import Config, Flux1
from timing import interleaved, print_row

import mlx.core as mx

PROMPT = "a large red circle on the left, on a white background"


def draw(flux: Flux1, seeds: int, **settings: int) -> None:
    flux.generate_image(list(range(seeds)), PROMPT, Config(num_inference_steps=8, **settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    flux = Flux1.from_name("tiny")
    sizes = sorted({1, 2, options.most // 2, options.most})
    seconds = interleaved({str(size): partial(draw, flux, size) for size in sizes}, options.rounds)
    for size in sizes:
        whole, one = seconds[str(size)], seconds["1"]
        if size > 1:
            print_row("batch", f"one more of {size} seeds", {"mflux": (whole - one) / (size - 1), "one": one}, "one")
    if options.growth:
        print("\n| px | text tokens | seeds | seconds | peak, MB |\n|---|---|---|---|---|")
        rows = [(side, 32, 1) for side in (128, 256, 512, 768)] + [(128, 128, 1), (128, 512, 1), (128, 32, 8)]
        for side, tokens, seeds in rows:
            run = partial(draw, flux, seeds, height=side, width=side, max_sequence_length=tokens)
            mx.reset_peak_memory()
            taken = interleaved({"run": run}, 3)["run"]
            print(f"| {side} | {tokens} | {seeds} | {taken:.2f} | {mx.get_peak_memory() / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
