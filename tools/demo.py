"""What a newcomer sees first: `make demo` draws with the built-in model and repaints a part of the picture.

Writes demo/drawn.png and demo/fill.png (before | mask | after), prints their paths.  Uses the commands themselves.
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path("demo")
PROMPT = "a large red circle on the left, on a blue background"
FILL_PROMPT = "a large yellow star on the left, on a blue background"
HOLE = (0, 20, 78, 104)  # around the circle: left, top, right, bottom


def command(name: str, *words: str) -> Path:
    """Run one of our commands; returns the path that it printed."""
    program = Path(sys.executable).with_name(name)
    done = subprocess.run([program, "--model", "tiny", *words], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def fresh(name: str) -> str:
    """A name in the demo folder, free of what an earlier demo left there."""
    path = FOLDER / name
    path.unlink(missing_ok=True)
    return str(path)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    drawn = command("mflux-generate", "--prompt", PROMPT, "--seed", "1", "--output", fresh("drawn.png"))
    before = Image.open(drawn)
    mask = Image.new("L", before.size)
    ImageDraw.Draw(mask).rectangle(HOLE, fill=255)
    mask_path = FOLDER / "mask.png"
    mask.save(mask_path)
    words = ("--prompt", FILL_PROMPT, "--image-path", str(drawn), "--masked-image-path", str(mask_path), "--seed", "1")
    filled = command("mflux-generate-fill", *words, "--output", fresh("after.png"))
    strip = Image.new("RGB", (3 * before.width, before.height))
    for index, image in enumerate((before, mask, Image.open(filled))):
        strip.paste(image.convert("RGB"), (index * before.width, 0))
    strip.save(FOLDER / "fill.png")
    print(drawn)
    print(FOLDER / "fill.png")


if __name__ == "__main__":
    main()
