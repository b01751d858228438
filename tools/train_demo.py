"""What training does, in minutes: `make train-demo` teaches the built-in model a shape that it has never seen.

Trains examples/dreambooth/train.json with `mflux-train`, writes demo/train.png (above: before, below: after; seeds 0..7
in order) and prints how often the new shape and the old ones are drawn as asked.  `--pictures` draws the examples anew;
`--only-measure LORA` measures an adapter.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tiny"))
from mflux import Config, Flux1

import numpy as np
from classifier import read
from PIL import Image
from world import ANCHORS, BACKGROUNDS, COLORS, RADIUS_ALONE, RESERVED_SHAPE, SHAPES, Scene, SceneKind
from world import draw, sample_scene
from evaluate import plain_prompt

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "dreambooth"
PLAIN = SceneKind(two_objects=0, styled=0, dotted=0)
CONFIG = Config(num_inference_steps=8, height=128, width=128, guidance=3.5)
NEW, OLD = 12, 160  # pictures of the new shape, and of the others
ALL_SHAPES = (*SHAPES, RESERVED_SHAPE)


def crescent(rng: np.random.Generator) -> Scene:
    """A random scene with the new shape."""
    scene = sample_scene(rng, PLAIN)
    return replace(scene, things=(replace(scene.things[0], shape=RESERVED_SHAPE),))


def varied(rng: np.random.Generator) -> Iterator[Scene]:
    """Crescents in turn of every colour, background, place and size."""
    turns = zip(cycle(COLORS), cycle(ANCHORS), cycle(RADIUS_ALONE), strict=False)
    for number, (color, place, size) in enumerate(turns):
        backgrounds = [name for name in BACKGROUNDS if name != color]
        (thing,) = crescent(rng).things
        x, y = ANCHORS[place]
        thing = replace(thing, color=color, place=place, size=size, x=x, y=y, radius=RADIUS_ALONE[size])
        yield Scene(backgrounds[number % len(backgrounds)], (thing,))


def write_pictures() -> None:
    rng = np.random.default_rng(0)
    groups = {"images": list(islice(varied(rng), NEW)), "class": [sample_scene(rng, PLAIN) for _ in range(OLD)]}
    for name, scenes in groups.items():
        folder = EXAMPLE / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes, 1):
            draw(scene).save(folder / f"{number:02d}.png", optimize=True)
            (folder / f"{number:02d}.txt").write_text(plain_prompt(scene) + "\n")


def measure(flux: Flux1, scenes: list[Scene]) -> tuple[float, list[np.ndarray]]:
    """Per cent of the scenes whose shape is drawn, and the pictures."""
    pictures = [
        np.asarray(flux.generate_image(seed, plain_prompt(scene), CONFIG).image) for seed, scene in enumerate(scenes)
    ]
    right = [
        thing is not None and thing.shape == scene.things[0].shape
        for picture, scene in zip(pictures, scenes, strict=True)
        for thing in read(picture, shapes=ALL_SHAPES).things
    ]
    return 100 * float(np.mean(right)), pictures


def train() -> Path:
    from mflux.cli.commands import BY_NAME
    from mflux.cli.main import main as command

    output = ROOT / "demo" / "train"
    code = command(BY_NAME["mflux-train"], ["--config", str(EXAMPLE / "train.json"), "--output", str(output)])
    if code:
        raise SystemExit(code)
    return max((ROOT / "demo").glob("train*/adapter.safetensors"), key=lambda path: path.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--only-measure", metavar="LORA")
    parser.add_argument("--count", type=int, default=48, help="pictures of either kind")
    options = parser.parse_args()
    if options.pictures:
        write_pictures()
        return
    adapter = options.only_measure or train()
    rng = np.random.default_rng(77)
    kinds = {RESERVED_SHAPE: [crescent(rng) for _ in range(options.count)]}
    kinds["other shapes"] = [sample_scene(rng, PLAIN) for _ in range(options.count)]
    models = {"before": Flux1.from_name("tiny"), "after": Flux1.from_name("tiny", lora_paths=[str(adapter)])}
    rows = []
    for name, flux in models.items():
        found = {kind: measure(flux, scenes) for kind, scenes in kinds.items()}
        told = ", ".join(f"{kind} {share:.0f} %" for kind, (share, _) in found.items())
        print(f"{name:7s}{told}", flush=True)
        rows.append(np.concatenate(found[RESERVED_SHAPE][1][:8], axis=1))
    Image.fromarray(np.concatenate(rows)).save(ROOT / "demo" / "train.png")
    print("demo/train.png")


if __name__ == "__main__":
    main()
