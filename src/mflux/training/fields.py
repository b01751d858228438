"""Tables of a JSON file as dataclasses whose fields know what they accept.

`read` walks such a class and a JSON object together and collects every problem with its path, so that a user sees all
of them at once.  No mlx here: a typing mistake has to be cheap.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from mflux.engine.request import check_number, short
from mflux.errors import UsageError

Problems = list[str]
Check = Callable[[Any, str, Problems], Any]  # value, path, problems -> the value to keep
Table = TypeVar("Table")


def checked(check: Check, default: Any = MISSING, null: bool = False) -> Any:
    """A field with its check.  null: JSON's null is accepted too."""

    def check_or_null(value: Any, path: str, problems: Problems) -> Any:
        return None if value is None and (null or default is None) else check(value, path, problems)

    return field(default=default, metadata={"check": check_or_null})


def number(low: float, high: float, default: Any = MISSING, null: bool = False, **ends: bool) -> Any:
    def check(value: Any, path: str, problems: Problems) -> Any:
        try:
            return check_number(path, value, low, high, **ends)
        except UsageError as error:
            problems.append(f"`{path}`: {error.problem}; {error.hint}")

    return checked(check, default, null)


def whole(low: int, high: int, default: Any = MISSING, null: bool = False) -> Any:
    return number(low, high, default, null, whole=True)


def flag(default: bool) -> Any:
    def check(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, bool):
            problems.append(f"`{path}`: {short(value)} is not true or false")
        return value

    return checked(check, default)


def flag_or_whole(low: int, high: int, default: bool) -> Any:
    def check(value: Any, path: str, problems: Problems) -> Any:
        if isinstance(value, bool):
            return value
        try:
            return check_number(path, value, low, high, whole=True)
        except UsageError as error:
            problems.append(f"`{path}`: {error.problem}; {error.hint}, or true or false")

    return checked(check, default)


def text(default: Any = MISSING) -> Any:
    def check(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, str) or not value.strip():
            problems.append(f"`{path}`: {short(value)} is not a text")
        return value

    return checked(check, default)


def choice(names: tuple[Any, ...], default: Any = MISSING) -> Any:
    def check(value: Any, path: str, problems: Problems) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int) or value not in names:
            problems.append(f"`{path}`: {short(value)} is unknown; choose one of {', '.join(map(str, names))}")
        return value

    return checked(check, default)


def part(owner: type, default: Any = MISSING) -> Any:
    return checked(lambda value, path, problems: read(owner, value, path, problems), default)


def listed(one: Any, default: Any = MISSING, alone: bool = False) -> Any:
    """A list whose entries pass the check of the field `one`.  alone: one entry may stand without its list."""

    def check(value: Any, path: str, problems: Problems) -> Any:
        value = [value] if alone and not isinstance(value, list) else value
        if not isinstance(value, list) or not value:
            problems.append(f"`{path}`: {short(value)} is not a list with something in it")
            return ()
        accept = one.metadata["check"]
        return tuple(accept(each, f"{path}[{index}]", problems) for index, each in enumerate(value))

    return checked(check, default)


def read(owner: type[Table], value: Any, path: str, problems: Problems) -> Table | None:
    """The table that a JSON object describes.  Problems are added to the list; then the result is not usable.

    Keys that begin with `//` are comments.
    """
    if not isinstance(value, Mapping):
        problems.append(f"`{path or 'the file'}`: {short(value)} is not an object {{...}}")
        return None
    known = {each.name: each for each in fields(owner)}  # type: ignore[arg-type]
    before = len(problems)
    prefix = f"{path}." if path else ""
    for name in value:
        if name not in known and not str(name).startswith("//"):
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"
            problems.append(f"`{prefix}{name}`: unknown key; {hint}")
    values = {name: entry(each, value, prefix, problems) for name, each in known.items()}
    return owner(**values) if len(problems) == before else None


def entry(each: Field, value: Mapping[str, Any], prefix: str, problems: Problems) -> Any:
    if each.name in value:
        return each.metadata["check"](value[each.name], f"{prefix}{each.name}", problems)
    if each.default is MISSING:
        problems.append(f"`{prefix}{each.name}`: missing")
        return None
    return each.default
