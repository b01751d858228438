"""argv to values by field name, and back.  Errors are our own kind, not argparse's."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from mflux.cli.options import Command, Option, Values
from mflux.errors import UsageError
from mflux.weights.catalog import LORA_REPO


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        _, _, rest = message.partition("argument ")
        flag, _, problem = rest.partition(": ")
        flag, hint = flag.split("/")[0], f"`{self.prog} --help` lists every flag"
        if problem == "expected one argument":
            hint = f"give it a value; one that starts with `-` goes as `{flag}=VALUE`"
        raise UsageError(f"`{flag}`: {problem}" if problem else message, hint)


class Once(argparse.Action):
    """A flag that may be given once: a second value would replace the first in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise UsageError(f"`{option_string}` is given twice", "give it once")
        setattr(namespace, self.dest, values)


def build_parser(command: Command) -> Parser:
    parser = Parser(prog=command.name, description=command.summary, allow_abbrev=False)
    for option in command.options:
        if not option.is_flag:
            parser.add_argument(option.name, metavar=option.flags, help=help_of(option), **option.parse)
            continue
        parser.add_argument(
            *option.flags.split(),
            dest=option.name,
            help=help_of(option),
            default=argparse.SUPPRESS,
            **settings(option.flag, option.parse),
        )
    return parser


def help_of(option: Option) -> str:
    return option.help.replace("%", "%%")  # argparse formats it


def settings(flag: str, parse: dict[str, Any]) -> dict[str, Any]:
    if parse.get("action") in ("store_true", "store_false", "append_const"):  # they take no value
        return parse
    return {"metavar": flag.strip("-").upper().replace("-", "_"), "action": Once, **parse}


def parse(command: Command, argv: Sequence[str]) -> dict[str, Any]:
    """Values by field name, of the flags that were given.  Raises UsageError."""
    parser = build_parser(command)
    for word in argv:  # argparse drops this value, and the flag with it
        if word.startswith("-") and word.endswith("=--"):
            parser.error(f"argument {word[:-3]}: expected one argument")
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for option in command.options if option.is_flag for flag in option.flags.split()]
        from difflib import get_close_matches

        close = get_close_matches(unknown[0].split("=")[0], flags, n=2, cutoff=0.6)
        hint = " or ".join(f"`{each}`" for each in close)
        help_hint = f"`{command.name} --help` lists every flag"
        raise UsageError(
            f"`{unknown[0][:60]}` is not known to `{command.name}`", f"did you mean {hint}?" if close else help_hint
        )
    return vars(known)


def spelled(command: Command, values: Values) -> Iterator[str]:
    """The flags that `parse` reads these values from."""
    for option in command.options:
        value, action = values.get(option.name), option.parse.get("action")
        if value is None or (action == "append_const" and option.parse["const"] not in value):
            continue
        if not option.is_flag or action in ("store_true", "store_false", "append_const"):
            yield option.flag if option.is_flag else str(value)
            continue
        for words in value if action == "append" else [value]:
            if isinstance(words, list | tuple):
                yield from (option.flag, *map(str, words))
            else:  # a text that starts with a dash would be read as a flag
                yield from (f"{option.flag}={words}",) if str(words).startswith("-") else (option.flag, str(words))


def choose_loras(values: Values) -> dict[str, Any]:
    """`lora_paths` and `lora_scales` from the three ways to name LoRAs.  Raises UsageError where they are mixed."""
    paths, scales = list(values.get("lora_paths", ())), list(values.get("lora_scales", ()))
    pairs, name, repo = values.get("adapters", ()), values.get("lora_name"), values.get("lora_repo_id")
    if pairs and (paths or scales):
        raise UsageError("`--lora` and `--lora-paths` are both given", "use `--lora PATH SCALE` for each of them")
    for words in pairs:
        if len(words) > 2:
            problem = f"`--lora {' '.join(words)}` has {len(words)} words"
            raise UsageError(problem, "give `--lora PATH SCALE` for each LoRA")
        paths.append(words[0])
        scales.append(lora_scale(words[1]) if len(words) == 2 else 1.0)
    if name or repo:
        paths.insert(0, f"{repo or LORA_REPO}" + (f":{name.removesuffix('.safetensors')}.safetensors" if name else ""))
        scales = [1.0, *scales] if scales else []
    return {"lora_paths": paths, "lora_scales": scales}


def lora_scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"the scale {text!r} is not a number", "give `--lora PATH SCALE`", "adapters") from None
