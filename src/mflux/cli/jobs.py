"""`--jobs FILE|-`: many requests in one run, a line each, with models that stay loaded.

A line is a JSON object of flags without their dashes (`{"prompt": "a fox", "seed": [1, 2], "output": "fox.png"}`), the
metadata of a picture, or else a prompt.  The command's own flags hold for every line that does not say otherwise.  A
line that cannot be drawn is told and left out; the exit code is that of the first.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mflux.cli.options import Command, Values
from mflux.cli.replay import told_values
from mflux.cli.say import show
from mflux.errors import MfluxError, StoppedError, UsageError
from mflux.paths import expand, reading
from mflux.runtime import one_of_several

MAX_LINE = 1_000_000  # bytes
OF_ONE_RUN = ("prompt", "prompt_file", "turns", "config_from_metadata")


def draw_lines(command: Command, values: Values, draw: Callable[..., None]) -> None:
    """Draw every line.  Raises an MfluxError after the last, where some could not be drawn."""
    for name in OF_ONE_RUN:
        if name in values:
            raise UsageError("the lines of `--jobs` say what to draw", "leave one of the two out", name)
    shared = {name: value for name, value in values.items() if name != "jobs"}
    models, failed, count, ranks = Models(), [], 0, None
    if one_of_several() and not values.get("split_image"):
        from mflux.ranks import launched

        ranks = launched()
    for number, text in lines(str(values["jobs"])):
        count += 1
        if ranks is not None and (count - 1) % ranks.count != ranks.rank:
            continue  # another process draws it
        try:
            draw(command, shared | job(command, text, f"line {number}"), models)
        except StoppedError as error:
            hint = f"the rest begins at line {number} of `{values['jobs']}`; {error.hint or 'it is drawn already'}"
            stop = StoppedError(f"line {number}: {error.problem}", hint)
            stop.exit_code = error.exit_code
            raise stop from None
        except MfluxError as error:
            failed.append(error.exit_code)
            show(error, command, values.get("progress") == "json", number)
    if count == 0:
        raise UsageError("there are no lines to draw", "give a prompt or a JSON object a line", "jobs")
    if failed:
        total = MfluxError(f"{len(failed)} of {count} lines were not drawn", "mend the lines that are named above")
        total.exit_code = failed[0]
        raise total


class Models:
    """Opens models, and keeps those of earlier lines while all of them together take less than half of the memory."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Any, int]] = {}  # with the bytes of its weights, the newest last

    def __call__(self, model: str, **wish: Any) -> Any:
        key = json.dumps([model, wish], sort_keys=True)
        self._open[key] = self._open.pop(key) if key in self._open else opened(model, wish)
        while len(self._open) > 1 and sum(size for _, size in self._open.values()) > room():
            self._open.pop(next(iter(self._open)))
        return self._open[key][0]


def opened(model: str, wish: Values) -> tuple[Any, int]:
    from mflux.engine.flux import Flux1
    from mflux.weights.resolve import NETWORKS

    flux = Flux1(model, **wish)
    return flux, sum(flux.parts.weight_bytes(part, None) for part in NETWORKS)


def room() -> float:
    from mflux.engine.parts import STAYS_BELOW
    from mflux.runtime import physical_memory

    return STAYS_BELOW * physical_memory()


def lines(name: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty, as they come.  Raises UsageError."""
    if name == "-":
        if sys.stdin is None:
            raise UsageError("stdin is closed", "pipe the lines in, or name a file", "jobs")
        yield from numbered(sys.stdin.buffer, "stdin")
        return
    path = expand(name, "jobs")
    with reading(path, "jobs") as file:
        yield from numbered(file, f"`{path}`")


def numbered(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        try:
            text = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            text = "\0"
        if len(raw) > MAX_LINE or "\0" in text:
            problem = f"is longer than {MAX_LINE} bytes" if len(raw) > MAX_LINE else "is no UTF-8 text"
            raise UsageError(f"line {number} of {name} {problem}", "give a prompt or a JSON object a line", "jobs")
        if text:
            yield number, text


def job(command: Command, text: str, name: str) -> dict[str, Any]:
    """Values by field name of one line.  Raises UsageError."""
    hint = 'give a prompt, or flags as an object: {"prompt": "a fox", "seed": 3}'
    try:
        told = json.loads(text) if text.startswith("{") else {"prompt": text}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is no JSON ({error})", hint) from None
    try:
        found = told_values(command, told, Path(name))
    except UsageError as error:
        raise UsageError(error.problem.removeprefix(f"`{name}`: "), hint) from None
    if "jobs" in found or found.get("prompt") == "-":
        raise UsageError("a line cannot name other lines, or stdin", hint)
    return found
