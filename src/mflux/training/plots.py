"""The loss over the updates as a picture."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 1280, 720, 70
INK, TRAIN, SMOOTH, HELD_OUT = (60, 60, 60), (190, 205, 230), (40, 90, 180), (220, 110, 30)
WINDOW = 20  # updates of the running mean
Points = Sequence[tuple[float, float]]  # step, loss


def draw_losses(train: Points, held_out: Points, path: Path) -> None:
    """Write a plot (PDF or an image by the ending): each update's loss, its running mean, the held-out loss."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    everything = [*train, *held_out]
    last = max(step for step, _ in everything)
    top = 1.2 * max(loss for _, loss in everything) or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        across = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        return across, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * loss / top

    draw.line([place(0, top), place(0, 0), place(last, 0)], INK, 2)
    for share in (0.25, 0.5, 0.75, 1.0):
        draw.text((10, place(0, share * top)[1] - 6), f"{share * top:.3g}", INK)
        draw.text((place(share * last, 0)[0] - 12, HEIGHT - MARGIN + 12), f"{share * last:.0f}", INK)
    means = [loss for _, loss in train]
    running = [
        sum(means[max(0, i + 1 - WINDOW) : i + 1]) / len(means[max(0, i + 1 - WINDOW) : i + 1])
        for i in range(len(means))
    ]
    smooth = [(step, mean) for (step, _), mean in zip(train, running, strict=True)]
    for points, colour, width in ((train, TRAIN, 1), (smooth, SMOOTH, 3), (held_out, HELD_OUT, 3)):
        if len(points) > 1:
            draw.line([place(*point) for point in points], colour, width)
    words = f"training loss: last {means[-1]:.4f}, lowest {min(means):.4f}, mean {sum(means) / len(means):.4f}"
    draw.text((MARGIN + 10, MARGIN - 40), words, SMOOTH)
    if held_out:
        draw.text((MARGIN + 10, MARGIN - 22), f"held-out loss: last {held_out[-1][1]:.4f}", HELD_OUT)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
