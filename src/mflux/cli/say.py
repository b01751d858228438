"""Notes and errors on stderr: texts for people or, with `--progress json`, an object a line for programs.

`{"event": "note", "note": "..."}`, and where a run fails `{"event": "error", "error": "...", "hint": "...",
"exit_code": 2}`; the error of a line of `--jobs` has its `line` too, and other lines follow.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from mflux.cli.options import Command
from mflux.errors import MfluxError


def for_programs(argv: Sequence[str]) -> bool:
    """Whether these words ask for JSON; known before they are parsed, since that can be what fails."""
    return "--progress=json" in argv or ("--progress", "json") in pairwise(argv)


def event(kind: str, **values: Any) -> None:
    """An object on a line of its own."""
    print(json.dumps({"event": kind, **values}), file=sys.stderr, flush=True)


class Stderr:
    """A stderr that may take nothing any more, a full disk or a reader that went away: no reason to lose a picture."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unless_full(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._unless_full(self._stream.flush)

    def _unless_full(self, call: Callable[..., Any], *args: str) -> None:
        try:
            call(*args)
        except OSError:  # from now on all goes to nowhere, also what the stream holds back
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class Notes(logging.Handler):
    """Notes of the engine on stderr, each once."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json, self._seen = as_json, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text in self._seen:
            return
        self._seen.add(text)
        if self._as_json:
            event("note", note=text)
        else:
            line = visible(text if text.startswith("mflux:") else f"note: {text}")
            bars = sys.modules.get("tqdm")  # where one stands on the line, it moves down
            (bars.tqdm.write if bars else print)(line, file=sys.stderr)


def set_up_log(as_json: bool) -> None:
    """Have notes said.  as_json: Python's warnings too, and nothing of the hub's."""
    log = logging.getLogger("mflux")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged EXIF, for programmers
    log.handlers[:] = [Notes(as_json)]
    log.setLevel(logging.WARNING)
    log.propagate = False
    if as_json:
        os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
        warnings.showwarning = lambda message, *_, **__: log.warning(str(message))


def show(error: MfluxError, command: Command, as_json: bool, line: int | None = None) -> None:
    """Print an error as people read it: what is wrong, a blank line, what to do; or as an object.

    line: the one of `--jobs` that it is about; then it takes one line, and the run goes on.
    """
    problem, hint = worded(error, command), error.hint
    for option in command.options:  # the library's hints name fields; here they are flags
        hint = hint.replace(f"`{option.name}`", f"`{option.flag}`")
    if as_json:
        where = {} if line is None else {"line": line}
        event("error", **where, error=problem, hint=hint, exit_code=error.exit_code)
    elif line is not None:
        print(f"line {line}: {visible(problem)}; {visible(hint)}", file=sys.stderr)
    else:
        print(f"error: {visible(problem)}" + (f"\n\nhint: {visible(hint)}" if hint else ""), file=sys.stderr)


def worded(error: MfluxError, command: Command) -> str:
    """What is wrong, with the flag that it is about."""
    subject = f"`{command.flag_of(error.field) or error.field}`: " if error.field else ""
    return subject + error.problem


def visible(text: str) -> str:
    """The text on one line: control characters as escapes."""
    return "".join(each if each.isprintable() or each == " " else repr(each)[1:-1] for each in text)
