"""Where every command starts: words to values, errors to words.

Paths of written files go to stdout, everything else to stderr.  What a command does is imported when it is known that
its words can be meant, so that help and usage errors cost next to nothing.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from mflux.cli.commands import BY_NAME, SHORT
from mflux.cli.options import Command
from mflux.cli.parse import parse
from mflux.cli.say import Stderr, for_programs, set_up_log, show
from mflux.errors import MfluxError


def named() -> int:
    """The command by whose name the program was started."""
    return main(BY_NAME[Path(sys.argv[0]).stem])


def umbrella() -> int:
    """`mflux WORD ...`: the command that the word stands for."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in SHORT:
        return main(BY_NAME[SHORT[word]], sys.argv[2:])
    if word in ("--help", "-h", "help"):
        width = max(map(len, SHORT))
        print("usage: mflux COMMAND [flags]; `mflux COMMAND --help` lists its flags\n")
        print("\n".join(f"  {short:{width}}  {BY_NAME[name].summary}" for short, name in SHORT.items()))
        return 0
    from difflib import get_close_matches

    near = get_close_matches(word, SHORT, n=2)
    hint = f"did you mean {' or '.join(f'`mflux {each}`' for each in near)}?" if near else "`mflux --help` lists them"
    print(f"error: `{word}` is no command of mflux\n\nhint: {hint}", file=sys.stderr)
    return 2


def main(command: Command, argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.  The one place that turns exceptions into words."""
    open_streams()
    words = sys.argv[1:] if argv is None else argv
    as_json = for_programs(words)
    set_up_log(as_json)
    try:
        values = parse(command, words)
        if command.run:
            module, _, name = command.run.partition(":")
            getattr(import_module(module), name)(values)
        else:
            draw = import_module("mflux.cli.draw").draw
            if "jobs" in values:
                draw = partial(import_module("mflux.cli.jobs").draw_lines, draw=draw)
            draw(command, values)
        sys.stdout.flush()
        return 0
    except MfluxError as error:
        failure = error
    except KeyboardInterrupt:
        if not as_json:
            print(file=sys.stderr)  # behind the terminal's ^C
        failure = MfluxError("interrupted")
        failure.exit_code = 130
    except BrokenPipeError:
        from mflux.cli.watch import drop_stdout

        drop_stdout()  # whoever read it has gone
        return 1
    except Exception as error:
        if os.environ.get("MFLUX_DEBUG"):
            raise
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "alloc" in told.lower():
            failure = MfluxError(f"out of memory ({told})", "draw smaller or fewer pictures at once, or quantize")
        else:
            failure = MfluxError(f"unexpected {told}", "`MFLUX_DEBUG=1` shows where; please report it")
    show(failure, command, as_json)
    return failure.exit_code


def open_streams() -> None:
    """stdout and stderr that take any path: closed ones become nowhere, names go out as the bytes that they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    if not isinstance(sys.stderr, Stderr):
        setattr(sys, "stderr", Stderr(sys.stderr))  # noqa: B010
