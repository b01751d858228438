"""Teaching an edit both ways of InFluxEdit: `.venv/bin/python tools/train_edit.py [--mode channels spatial]`.

The built-in Fill model learns "add a dot" from pairs of pictures: the input in the extra channels, or in a panel beside
the drawn one.  On scenes that training never showed it prints how often the edit is done and all else is named as
before, and how much changes outside the object.  Writes demo/edit_MODE.png: inputs above, edits below, seeds 0..7.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "tiny"))
from mflux import Config, Flux1
from mflux.cli.commands import BY_NAME
from mflux.cli.main import main as command
from mflux.conditions import Fill

import numpy as np
from classifier import read
from PIL import Image
from world import SIDE, Scene, SceneKind, box, draw, sample_scene

ROOT = Path(__file__).parent.parent
PLAIN = SceneKind(two_objects=0, styled=0, dotted=0)
PROMPTS = {shape: f"add a dot to the {shape}" for shape in ("circle", "square", "triangle", "star", "heart")}
KINDS = {"channels": "fill_edit", "spatial": "fill_spatial"}
UPDATES = {"channels": 500, "spatial": 1100}  # a panel beside the drawn one is learnt more slowly
PAIRS, RATE = 256, 0.003


def scenes(seed: int, count: int) -> list[Scene]:
    """Random scenes with a large object whose dot can be seen."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = sample_scene(rng, PLAIN)
        (thing,) = scene.things
        if thing.shape in PROMPTS and thing.size == "large" and (thing.color, scene.background) != ("white", "black"):
            found.append(scene)
    return found


def dotted(scene: Scene) -> Scene:
    return replace(scene, things=(replace(scene.things[0], dot=True),))


def write_run(folder: Path, mode: str, updates: int, embedder: bool) -> Path:
    """Pairs and a train.json."""
    items = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes(0, PAIRS)):
        draw(scene).save(folder / f"{number}_in.png")
        draw(dotted(scene)).save(folder / f"{number}.png")
        prompt = PROMPTS[scene.things[0].shape]
        items.append({"image": f"{number}.png", "input_image": f"{number}_in.png", "prompt": prompt})
    base = json.loads((ROOT / "examples" / "dreambooth" / "train.json").read_text())
    loop = {"num_epochs": 10**6, "max_steps": updates, "batch_size": 4, "gradient_checkpointing": False}
    loop["timestep"] = {"mode": "flux_shift"}
    if mode == "spatial":
        loop["loss"] = {"region": "right"}
    layers = base["lora_layers"]
    if embedder:
        layers["outside_blocks"] = {"layer_types": ["x_embedder"], "lora_rank": 64}
    changed = {"model": "tiny/fill", "kind": KINDS[mode], "training_loop": loop, "lora_layers": layers}
    changed["examples"] = {"path": str(folder), "images": items}
    schedule = {"name": "cosine", "warmup_steps": 20, "total_steps": updates}
    changed["optimizer"] = base["optimizer"] | {"learning_rate": RATE, "schedule": schedule}
    path = folder / "train.json"
    path.write_text(json.dumps(base | changed))
    return path


def measure(adapter: Path, mode: str, count: int, picture: Path) -> dict[str, float]:
    """Per cent of new scenes with the edit done and all else named as before; grey levels changed elsewhere."""
    flux = Flux1("tiny/fill", lora_paths=[str(adapter)])
    config = Config(num_inference_steps=8, height=SIDE, width=SIDE)
    done, kept, changed, strips = [], [], [], []
    for seed, scene in enumerate(scenes(1, count)):
        (thing,), source = scene.things, draw(scene)
        conditions = [Fill(source, edit_mode=mode)]
        drawn = np.asarray(flux.generate_image(seed, PROMPTS[thing.shape], config, conditions=conditions).image)
        (seen,) = read(drawn).things
        names = ("shape", "color", "place", "size")
        done.append(seen is not None and seen.dot)
        same = seen is not None and all(getattr(seen, name) == getattr(thing, name) for name in names)
        kept.append(same and read(drawn).background == scene.background)
        outside = np.ones((SIDE, SIDE), bool)
        left, top, right, bottom = (round(edge * SIDE) for edge in box(thing, 0.03))
        outside[max(top, 0) : bottom, max(left, 0) : right] = False
        changed.append(np.abs(drawn.astype(float) - np.asarray(source))[outside].mean())
        if seed < 8:
            strips.append(np.concatenate([np.asarray(source), drawn]))
    Image.fromarray(np.concatenate(strips, axis=1)).save(picture)
    both = [one and other for one, other in zip(done, kept, strict=True)]
    means: dict[str, Any] = {"edited": done, "all else kept": kept, "both": both}
    return {name: 100 * float(np.mean(values)) for name, values in means.items()} | {"outside": float(np.mean(changed))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--updates", type=int, help="500 for channels, 1100 for spatial where left out")
    parser.add_argument("--count", type=int, default=48, help="new scenes")
    parser.add_argument("--no-embedder", action="store_true", help="leave the first layer as it is")
    options = parser.parse_args()
    (ROOT / "demo").mkdir(exist_ok=True)
    for mode in options.mode:
        folder = ROOT / "demo" / f"edit_{mode}"
        path = write_run(folder / "pairs", mode, options.updates or UPDATES[mode], not options.no_embedder)
        code = command(BY_NAME["mflux-train"], ["--config", str(path), "--output", str(folder / "run")])
        if code:
            raise SystemExit(code)
        runs = sorted(folder.glob("run*/adapter.safetensors"), key=lambda found: found.stat().st_mtime)
        found = measure(runs[-1], mode, options.count, ROOT / "demo" / f"edit_{mode}.png")
        told = ", ".join(f"{name} {value:.0f} %" for name, value in found.items() if name != "outside")
        print(f"{mode:9s}{told}; {found['outside']:.1f} grey levels elsewhere", flush=True)


if __name__ == "__main__":
    main()
