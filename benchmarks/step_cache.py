"""Step caches on the built-in model: how many block evaluations are saved, and what that costs in the picture.

    python benchmarks/step_cache.py [--pictures 16] [--steps 20]

For each cache: evaluations of a block that a run without it needs for one with it, mean PSNR to the picture without it,
and the lowest.  Scenes and seeds are fixed; nothing is timed.
"""

import argparse

import numpy as np

from mflux import Config, Flux1

CHOICES = (
    *(f"fb:{threshold:g}" for threshold in (0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3)),
    *(f"tea:{threshold:g}" for threshold in (0.25, 0.4, 0.6, 0.8)),
    *(f"taylor:{interval}{form}" for interval in (2, 3, 4) for form in ("", ":2:newton")),
)
ALWAYS = {"fb": 1, "tea": 0, "taylor": 0}  # blocks that run in a step that is left out
PROMPTS = (
    "a large red circle on the left, on a white background",
    "a small blue square at the top, on a yellow background",
    "a large striped green heart, on a black background",
    "a small pink star on the left and a large orange ring on the right, on a gray background",
)


def psnr(picture: np.ndarray, wanted: np.ndarray) -> float:
    error = float(np.square(picture.astype(np.float64) - wanted).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    flux = Flux1.from_name("tiny")
    sizes = flux.parts.transformer_config
    blocks = sizes.num_layers + sizes.num_single_layers

    def drawn(seed: int, choice: str | None) -> tuple[np.ndarray, int]:
        config = Config(num_inference_steps=options.steps, step_cache=choice)
        picture = flux.generate_image(seed, PROMPTS[seed % len(PROMPTS)], config)
        return np.asarray(picture.image), picture.artifacts.get("full_steps", [options.steps])[0]

    whole = [drawn(seed, None)[0] for seed in range(options.pictures)]
    print("| cache | full steps | block evaluations saved | PSNR mean, dB | lowest |\n|---|---|---|---|---|")
    for choice in CHOICES:
        rows = []
        for seed in range(options.pictures):
            picture, full = drawn(seed, choice)
            rows.append((psnr(picture, whole[seed]), full))
        quality, full_steps = np.array(rows).T
        full = float(full_steps.mean())
        ran = full * blocks + (options.steps - full) * ALWAYS[choice.split(":")[0]]
        saved = options.steps * blocks / ran
        print(f"| {choice} | {full:.1f} | {saved:.2f} x | {quality.mean():.1f} | {quality.min():.1f} |", flush=True)


if __name__ == "__main__":
    main()
