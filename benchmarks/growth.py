"""How time and memory grow with pixels, text, seeds, LoRAs and pictures: `.venv/bin/python benchmarks/growth.py`.

The built-in model, 8 steps; everything loaded and the prompt encoded before.  Each row has one number larger than the
first row's.  Medians of --rounds; peak is MLX's memory above the weights.
"""

import argparse
import importlib.resources
from functools import partial

from mflux import Config, Flux1
from mflux.conditions import Kontext
from timing import interleaved

import mlx.core as mx
from PIL import Image

PROMPT = "a large red circle on the left, on a white background"
INSTRUCTION = "make the circle blue"
LORA = str(importlib.resources.files("mflux") / "tiny" / "in-context" / "pytorch_lora_weights.safetensors")
PICTURE = Image.new("RGB", (128, 128), "orange")
FIRST = {"px": 128, "text tokens": 32, "seeds": 1, "LoRAs": 0, "pictures": 0}
ROWS: list[dict[str, int]] = [
    {},
    *({"px": side} for side in (256, 512, 768)),
    *({"text tokens": tokens} for tokens in (128, 512)),
    *({"seeds": seeds} for seeds in (2, 4, 8)),
    *({"LoRAs": count} for count in (1, 2, 4)),
    *({"pictures": count} for count in (1, 2, 4)),
]


def drawing(row: dict[str, int]) -> partial[object]:
    """A call that draws what a row says."""
    flux = Flux1.from_name("tiny/kontext" if row["pictures"] else "tiny", lora_paths=[LORA] * row["LoRAs"])
    config = Config(num_inference_steps=8, height=row["px"], width=row["px"], max_sequence_length=row["text tokens"])
    conditions = [Kontext([PICTURE] * row["pictures"], fit="own")] if row["pictures"] else []
    prompt = INSTRUCTION if conditions else PROMPT
    return partial(flux.generate_image, [*range(row["seeds"])], prompt, config, conditions=conditions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    names = [*FIRST, "seconds", "peak, MB"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for change in ROWS:
        row = FIRST | change
        draw = drawing(row)
        draw()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        seconds = interleaved({"draw": draw}, options.rounds)["draw"]
        numbers = [*map(str, row.values()), f"{seconds:.2f}", f"{(mx.get_peak_memory() - held) / 1e6:.0f}"]
        print(f"| {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
