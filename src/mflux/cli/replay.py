"""`-C FILE`: what a picture was drawn with, below the flags that are given now.

Reads our own metadata (the whole request) and the flat keys of mflux 0.9 to 0.24, in a picture or a JSON file.  A flag
that is given replaces the file's value; it never adds to it.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mflux.cli.options import Command, Option
from mflux.errors import UsageError
from mflux.paths import FORMATS, expand

MAX_BYTES = 10_000_000
# Keys that say something about a picture, but nothing to draw it by; `request` is read before them.
TELLING = {
    "mflux_version",
    "generation_time_seconds",
    "created_at",
    "precision",
    "request",
    "model_path",
    "image_paths",
    "depth_image_path",
}
NOT_CONDITIONS = {"Run", "Request", "Config", "Flux1"}  # what the other flags fill
log = logging.getLogger("mflux")


def replayed(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the flags, with the file's below them.  Raises UsageError for a file that holds nothing to draw."""
    if "config_from_metadata" not in values:
        return dict(values)
    path = expand(values["config_from_metadata"], "config_from_metadata")
    found = told_values(command, read(path), path)
    if {"prompt", "prompt_file", "turns"} & set(values):
        found.pop("prompt", None)
    if "auto_seeds" in values:
        found.pop("seed", None)
    if "start_image" in values:
        found.pop("image", None)
        found.pop("image_strength", None)
    if {"path", "model"} & set(values):
        found.pop("base_model", None)
    if "path" in values:
        found.pop("model", None)
    if {"lora_paths", "adapters", "lora_name", "lora_repo_id"} & set(values):
        found.pop("lora_paths", None)
        found.pop("lora_scales", None)
    return {**found, **values}


def told_values(command: Command, told: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values by field name from a metadata object; path: where it comes from.  Raises UsageError."""
    try:
        request = told.get("request")
        if not isinstance(request, dict):
            return from_keys(command, told, path)
        return from_request(command, request, path) | ({"sweep": str(told["sweep"])} if "sweep" in told else {})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise damaged(path, f"its request cannot be read ({error})") from None


def conditions_of(command: Command, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The conditions: the file's own, unless flags change them."""
    stored = values.get("stored_conditions")
    if stored is None or values["stored_fields"] != {name: values.get(name) for name in values["stored_fields"]}:
        return command.conditions(values)
    from mflux import conditions  # noqa: F401  (registers their classes)
    from mflux.engine.slots import condition_from_json

    try:
        return tuple(condition_from_json(each) for each in stored)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise damaged(Path(values.get("config_from_metadata", "it")), f"its request cannot be read ({error})") from None


def read(path: Path) -> dict[str, Any]:
    """The metadata object of a picture or a JSON file."""
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", "give a picture or a .json file", "config_from_metadata")
    if path.suffix.lower() in FORMATS:
        from mflux.images.metadata import read_metadata

        try:
            found = read_metadata(path)
        except OSError as error:
            raise damaged(path, f"it is no picture ({error})") from None
        if found is None:
            raise damaged(path, "it holds no metadata of mflux")
        return found
    try:
        if path.stat().st_size > MAX_BYTES:
            raise damaged(path, f"it is longer than {MAX_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise damaged(path, f"it holds a {type(found).__name__}, no JSON object")
    return found


def damaged(path: Path, problem: str) -> UsageError:
    hint = "give a picture that mflux drew, or its JSON file (`--metadata`)"
    return UsageError(f"`{path}`: {problem}", hint, "config_from_metadata")


def from_request(command: Command, request: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values by field name from our own request."""
    values = {
        name: request[name]
        for name in ("model", "prompt", "negative_prompt", "quantize", "base_model")
        if name in request
    }
    values["seed"] = [int(seed) for seed in request["seeds"]]
    if not values["seed"]:
        raise damaged(path, "it names no seed")
    values |= dict(request.get("config", {}))
    for option in command.options:
        if values.get(option.name) is not None:
            values[option.name] = checked(option, option.name, values[option.name], path)
    if request.get("loras"):
        values["lora_paths"] = [str(name) for name, _ in request["loras"]]
        values["lora_scales"] = [float(scale) for _, scale in request["loras"]]
    stored = list(request.get("conditions", []))
    owners = {option.name: {reads.split(".")[0] for reads in option.reads.split()} for option in command.options}
    own = set().union(*owners.values())
    foreign = [each["condition"] for each in stored if each["condition"] not in own]
    if foreign:
        problem = f"it was drawn with {foreign[0]}, which `{command.name}` does not have"
        raise UsageError(f"`{path}`: {problem}", "use the command that drew it", "config_from_metadata")
    fields: dict[str, Any] = {}
    for each in stored:
        for option, value in told_by(command, each):
            if option.parse.get("action") == "append" and "nargs" not in option.parse:
                fields.setdefault(option.name, []).append(value)
            else:
                fields[option.name] = value
    told = {name: fields.get(name) for name, classes in owners.items() if classes - NOT_CONDITIONS}
    return {**values, **fields, "stored_conditions": stored, "stored_fields": told}


def told_by(command: Command, condition: Mapping[str, Any]) -> Iterator[tuple[Option, Any]]:
    """The flags that fill the fields of a stored condition, with their values."""
    for option in command.options:
        for reads in option.reads.split():
            owner, field = reads.split(".")
            if owner == condition["condition"] and field in condition:
                yield option, paths(condition[field])


def paths(value: Any) -> Any:
    """A described picture as its path."""
    if isinstance(value, list):
        return [paths(each) for each in value]
    return value["path"] if isinstance(value, dict) and "path" in value else value


def from_keys(command: Command, told: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values by field name from the flat keys of other versions, or of a file written by hand."""
    values: dict[str, Any] = {}
    for key, value in told.items():
        option = option_of(command, key)
        if value in (None, "None", [], "") or key in TELLING:
            continue  # "not given"; mflux 0.9 writes "None"
        if option is None:
            log.warning(f"`{path}`: the key `{key}` is unknown to `{command.name}` and not used")
            continue
        values[option.name] = checked(option, key, value, path)
    if not values:
        raise damaged(path, "it holds nothing to draw by")
    return values


def option_of(command: Command, key: str) -> Option | None:
    """The flag that a key of other versions is spelled like."""
    flag = f"--{key.replace('_', '-')}"
    return next((option for option in command.options if flag in option.flags.split()), None)


def checked(option: Option, key: str, value: Any, path: Path) -> Any:
    """A value as its flag would have given it."""
    if option.parse.get("action") in ("store_true", "store_false"):
        if not isinstance(value, bool):
            raise damaged(path, f"`{key}` is {json.dumps(value)[:60]}, which is neither true nor false")
        return value if option.parse["action"] == "store_true" else not value
    convert = option.parse.get("type", str)
    listed = value if isinstance(value, list) else as_list(value) if "nargs" in option.parse else [value]
    kinds = (str,) if convert is str else (int, float)
    single = "nargs" not in option.parse and option.parse.get("action") != "append"
    fits = all(isinstance(each, kinds) and not isinstance(each, bool) for each in listed)
    if not fits or (single and isinstance(value, list)):
        raise damaged(path, f"`{key}` is {json.dumps(value)[:60]}, which `{option.flag}` does not take")
    try:
        done = [convert(str(each)) if convert is not str else each for each in listed]
    except argparse.ArgumentTypeError as error:
        raise damaged(path, f"`{key}`: {error}") from None
    if option.parse.get("action") == "append":  # one that may be given several times
        return [done] if "nargs" in option.parse else done
    return done if "nargs" in option.parse else done[0]


def as_list(value: Any) -> list[Any]:
    """A list, also where mflux 0.9 wrote one as a text: \"['a.png', 'b.png']\"."""
    if isinstance(value, str) and value.startswith("["):
        return list(json.loads(value.replace("'", '"')))
    return [value]
