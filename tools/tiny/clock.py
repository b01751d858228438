"""Training by the clock: a stage lasts so many minutes, whatever the machine, and survives being cut.

Learning rates are functions of the share of the minutes that has passed; a resumed run goes on where its checkpoint
stood, so the time between two runs does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

WORK = Path(__file__).resolve().parents[2] / ".tiny"  # ignored by git: checkpoints, latents, logs
CHECKPOINT_SECONDS = 180.0


class Clock:
    """How far a stage of `minutes` has come. `deadline` (seconds since 1970) may end it earlier."""

    def __init__(self, minutes: float, spent: float = 0.0, deadline: float = float("inf")) -> None:
        self.total = 60.0 * minutes
        self._start = time.time() - spent
        if deadline < self._start + self.total:
            self.total = max(1.0, deadline - self._start)

    @property
    def spent(self) -> float:
        """Seconds of training so far, those of earlier runs included."""
        return time.time() - self._start

    @property
    def share(self) -> float:
        """0 at the start, 1 when the time is over."""
        return min(1.0, self.spent / self.total)

    @property
    def over(self) -> bool:
        return self.spent >= self.total


def decay(share: float, flat: float = 0.4, last: float = 0.02) -> float:
    """Factor of the learning rate: 1 up to `flat` of the time, then a straight line down to `last`."""
    if share <= flat:
        return 1.0
    return 1.0 + (last - 1.0) * (share - flat) / (1.0 - flat)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside the old checkpoint, then replace it: a cut in the middle loses nothing."""
    import torch  # here, so that the product can be evaluated without torch

    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)


def half_is_fast() -> bool:
    """Whether the processor multiplies bfloat16; others imitate it, six times slower than float32."""
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def mixed() -> AbstractContextManager[Any]:
    """bfloat16 where that is fast."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=half_is_fast())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    import torch

    return torch.load(path, weights_only=True) if path.exists() else None


def log(stage: str, **values: float | int | str) -> None:
    """One line of JSON in .tiny/log.jsonl and on stdout."""
    line = json.dumps({"stage": stage, "at": time.strftime("%H:%M:%S"), **values})
    print(line, flush=True)
    WORK.mkdir(exist_ok=True)
    with (WORK / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; one more, `--threads`, leaves a core to a training."""
    parser.add_argument("--threads", type=int, help="of torch; 1 leaves a core to a training")
    options = parser.parse_args()
    if options.threads:
        import torch  # here, so that the product can be evaluated without torch

        torch.set_num_threads(options.threads)
    return options
