"""Rename pictures by what was drawn: the keywords of the prompt in their metadata, and the seed.

python tools/rename_images.py PATH [PATH ...] [--words 5] [--dry-run]

`image_3.png`, drawn from "a red fox in the snow, oil painting" with seed 42, becomes
`red_fox_snow_oil_painting_42.png`; files of the same stem (`image_3.json`, `image_3_canny.png`) move with it.  PATH:
pictures, or folders of them.  Nothing is ever overwritten; pictures without metadata of mflux are left alone and told
on stderr.  stdout: the new paths.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mflux import MfluxError
from mflux.images.metadata import read_metadata
from mflux.paths import FORMATS

MAX_STEM_BYTES = 120
# English words that say nothing about a picture.
PLAIN = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be been but by can do does for from had has have her his how i if in into is it its just
        my near no not of on onto or our out over she so some such than that the their them then there these they this
        to under up very was we were what when where which while who will with you your""",
    )
)


def keywords(prompt: str, count: int) -> list[str]:
    """The first `count` different words that mean something, in the prompt's order, lower case."""
    words = [word.strip("'").lower() for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", prompt)]
    return list(dict.fromkeys(word for word in words if word and word not in PLAIN))[:count]


def new_stem(metadata: dict[str, Any], count: int) -> str:
    """Keywords and seed; empty where the metadata has no prompt."""
    words = keywords(str(metadata.get("prompt") or ""), count)
    seed = metadata.get("seed")
    name = "_".join([*words, *([str(seed)] if seed is not None else [])]) if words else ""
    return name.encode()[:MAX_STEM_BYTES].decode(errors="ignore")


def pictures(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        yield from (each for each in inside if each.suffix.lower() in FORMATS and each.is_file())


def companions(picture: Path) -> dict[Path, str]:
    """The files that belong to a picture, with what follows its stem in their names."""
    own = {picture: picture.suffix, picture.with_suffix(".json"): ".json"}
    for kind in ("canny", "depth", "heatmap", "full"):
        own[picture.with_name(f"{picture.stem}_{kind}.png")] = f"_{kind}.png"
    return {path: ending for path, ending in own.items() if path.is_file()}


def free_stem(folder: Path, stem: str, endings: list[str]) -> str:
    """The stem, numbered until none of its files is there."""
    number, name = 0, stem
    while any((folder / f"{name}{ending}").exists() for ending in endings):
        number += 1
        name = f"{stem}_{number}"
    return name


def rename(picture: Path, count: int, dry_run: bool) -> Path | None:
    """The picture's new path; None where it stays."""
    try:
        metadata = read_metadata(picture)
    except (MfluxError, OSError, ValueError) as error:
        print(f"{picture}: cannot be read ({error})", file=sys.stderr)
        return None
    stem = new_stem(metadata or {}, count)
    if not stem:
        print(f"{picture}: no prompt in its metadata", file=sys.stderr)
        return None
    if re.fullmatch(re.escape(stem) + r"(_\d+)?", picture.stem):
        return None  # renamed already
    own = companions(picture)
    stem = free_stem(picture.parent, stem, list(own.values()))
    for path, ending in own.items():
        if not dry_run:
            path.rename(path.with_name(stem + ending))
    return picture.with_name(stem + picture.suffix)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    parser.add_argument("--words", type=int, default=5, help="keywords in a name (default 5)")
    parser.add_argument("--dry-run", action="store_true", help="only print the new names")
    options = parser.parse_args()
    if options.words < 1:
        parser.error(f"--words: {options.words} is below 1")
    absent = [path for path in options.paths if not path.exists()]
    if absent:
        parser.error(f"there is no file `{absent[0]}`")
    for picture in pictures(options.paths):
        if renamed := rename(picture, options.words, options.dry_run):
            print(renamed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
