"""The rows that benchmarks wrote (MFLUX_BENCHMARKS=FILE) as a picture and a table: our time as a share of each peer's.

    .venv/bin/python benchmarks/plot.py benchmarks/rows.jsonl docs/images/benchmarks.png

The newest row of each measurement counts.  A bar that ends left of the line is faster than the peer.  The table,
Markdown, goes to stdout.
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, ROW, MARGIN, NAMES, MOST = 960, 30, 24, 360, 2.0
INK, LINE, FASTER, SLOWER = (50, 50, 50), (150, 150, 150), (40, 120, 180), (215, 120, 40)


def plot(rows: dict[tuple[str, str], dict[str, object]]) -> Image.Image:
    image = Image.new("RGB", (WIDTH, 3 * MARGIN + ROW * len(rows)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def across(ratio: float) -> float:
        return NAMES + (WIDTH - NAMES - 4 * MARGIN) * min(ratio, MOST) / MOST

    for index, ((benchmark, what), row) in enumerate(sorted(rows.items())):
        ratio, top = float(row["ratio"]), MARGIN + ROW * index
        peer = next(name for name in row["seconds"] if name != "mflux")
        draw.text((MARGIN, top + 4), f"{benchmark}: {what}", INK, font)
        draw.rectangle((NAMES, top + 3, across(ratio), top + ROW - 6), FASTER if ratio <= 1 else SLOWER)
        draw.text((across(ratio) + 6, top + 4), f"{ratio:.2f} x {peer}", INK, font)
    draw.line((across(1), MARGIN / 2, across(1), image.height - 2 * MARGIN), LINE, 2)
    cores = {(row["machine"], row["cores"]) for row in rows.values()}
    told = "; ".join(f"{machine}, {count} cores" for machine, count in sorted(cores))
    draw.text((MARGIN, image.height - 2 * MARGIN + 8), f"our time, 1 = the peer's, medians. {told}", INK, font)
    return image


def table(rows: dict[tuple[str, str], dict[str, object]]) -> str:
    lines = ["| benchmark | what | mflux, s | peer, s | ratio |", "|---|---|---|---|---|"]
    for (benchmark, what), row in sorted(rows.items()):
        (peer, seconds), *_ = ((name, value) for name, value in row["seconds"].items() if name != "mflux")
        own = row["seconds"]["mflux"]
        lines.append(f"| {benchmark} | {what} | {own:.3g} | {seconds:.3g} ({peer}) | {row['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    written = [json.loads(line) for line in options.rows.read_text().splitlines()]
    rows = {(row["benchmark"], row["what"]): row for row in written}
    plot(rows).save(options.picture, optimize=True)
    print(table(rows))


if __name__ == "__main__":
    main()
