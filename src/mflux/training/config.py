"""A train.json read, changed and checked: it becomes a `Spec`, or an error with every problem and its path."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mflux.engine.request import short
from mflux.errors import UsageError
from mflux.models.transformer import TransformerConfig
from mflux.paths import expand
from mflux.training.fields import Problems, read
from mflux.training.spec import (
    FAMILIES,
    OUTSIDE,
    PAIRS,
    BlockRange,
    Examples,
    Module,
    Prior,
    Spec,
    Validation,
    targets_of,
)
from mflux.weights.catalog import TASK_CHANNELS, check_name, find
from mflux.weights.kinds import read_config
from mflux.weights.resolve import resolve

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
GROUPS = (("examples",), ("training_loop", "prior"), ("instrumentation", "validation"))  # where items are listed


class SpecError(UsageError):
    """Everything that is wrong with a train.json, one line each in `problems`."""

    def __init__(self, name: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        hint = f"mend `{name}`; `mflux-train --config {name} --dry-run` checks it again"
        super().__init__(f"{count} in `{name}`: {'; '.join(problems)}", hint)


def read_json_file(path: Path) -> Any:
    """The content of a JSON file.  Raises UsageError with line and column."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"there is no file `{path}`", "`mflux-train --init-config` prints a template") from None
    except json.JSONDecodeError as error:
        problem = f"`{path}` is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise UsageError(problem, "mend that line") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"`{path}` cannot be read ({error})", "give a text file with JSON") from None


def read_spec(value: Any, name: str, folder: Path) -> Spec:
    """The spec of a JSON value.  folder: what relative paths start from.  Raises SpecError with all problems."""
    spec = read_tables(value, name)
    problems: Problems = []
    problems += model_problems(spec) or target_problems(spec)
    problems += pair_problems(spec) + file_problems(spec, folder)
    if problems:
        raise SpecError(name, problems)
    return spec


def read_tables(value: Any, name: str) -> Spec:
    """The spec, its values checked one by one only."""
    problems: Problems = []
    spec = read(Spec, value, "", problems)
    if spec is None:
        raise SpecError(name, problems)
    return spec


def sizes_of(model: str) -> TransformerConfig:
    """The sizes of a model's transformer, without downloading it: FLUX.1's own for one on the hub."""
    row = find(model)
    if (row and row.folder) or expand(model).exists():
        return read_config("transformer", resolve(model).folders["transformer"])
    channels = TASK_CHANNELS.get(row.task, TASK_CHANNELS["base"]) if row else TASK_CHANNELS["base"]
    return TransformerConfig(in_channels=channels, guidance_embeds=row is None or row.guidance is not None)


def model_problems(spec: Spec) -> Problems:
    try:
        check_name(spec.model)
        sizes_of(spec.model)
    except UsageError as error:
        return [f"`model`: {error.problem}; {error.hint}"]
    return []


def target_problems(spec: Spec) -> Problems:
    problems: Problems = []
    sizes = sizes_of(spec.model)
    wanted = TASK_CHANNELS["fill" if spec.kind.startswith("fill") else "base"]
    if sizes.in_channels != wanted:
        told = f"needs a model of {wanted} channels a token, and `{spec.model}` takes {sizes.in_channels}"
        problems.append(f"`kind`: `{spec.kind}` {told}; for edits with a Fill model `fill_edit` or `fill_spatial`")
    counts = {"transformer_blocks": sizes.num_layers, "single_transformer_blocks": sizes.num_single_layers}
    for family, known in FAMILIES.items():
        layers = getattr(spec.lora_layers, family)
        path = f"lora_layers.{family}"
        if layers is None:
            continue
        problems += block_problems(layers.block_range, f"{path}.block_range", counts[family], spec.model)
        for name in layers.layer_types:
            if name not in known and name not in known.values():
                problems.append(f"`{path}.layer_types`: {short(name)} is unknown; choose from {', '.join(known)}")
        if layers.lora_rank > sizes.width:
            problems.append(f"`{path}.lora_rank`: {layers.lora_rank} is above the layers' width {sizes.width}")
    narrow = dict(zip(OUTSIDE, (sizes.in_channels, sizes.joint_attention_dim, sizes.out_channels), strict=True))
    if outside := spec.lora_layers.outside_blocks:
        problems += [
            f"`lora_layers.outside_blocks.lora_rank`: {outside.lora_rank} is above the {narrow[name]} sides of `{name}`"
            for name in outside.layer_types
            if outside.lora_rank > min(narrow[name], sizes.width)
        ]
    for index, module in enumerate(spec.lora_layers.targets):
        problems += module_problems(
            module, f"lora_layers.targets[{index}]", counts, narrow | {"": sizes.width}, spec.model
        )
    if {"kohya", "comfyui"} & set(spec.save.export) and any(target.type != "lora" for target in targets_of(spec)):
        problems.append("`save.export`: only adapters of type `lora` can be written for kohya and ComfyUI")
    if not problems and not targets_of(spec):
        problems.append("`lora_layers`: it selects no layer; give `transformer_blocks` or `single_transformer_blocks`")
    return problems


def module_problems(
    module: Module, path: str, counts: Mapping[str, int], sides: Mapping[str, int], model: str
) -> Problems:
    """sides: the narrower side of the layers outside the blocks, and of those inside under no name."""
    family, name = module.place
    if not name:
        known = "`transformer_blocks.{block}.attn.to_q`, `single_transformer_blocks.{block}.proj_mlp` or `x_embedder`"
        return [f"`{path}.module_path`: {short(module.module_path)} is no layer of FLUX.1; they are called {known}"]
    problems = []
    if module.rank > (most := min(sides[""], sides[name if not family else ""])):
        problems.append(f"`{path}.rank`: {module.rank} is above the {most} sides of `{name}`")
    if family:
        blocks = module.blocks or BlockRange()
        return problems + block_problems(blocks, f"{path}.blocks", counts[family], model)
    return problems + ([f"`{path}.blocks`: `{name}` is in no block"] if module.blocks else [])


def block_problems(blocks: BlockRange, path: str, count: int, model: str) -> Problems:
    have = f"`{model}` has blocks 0 to {count - 1}"
    if blocks.indices is not None:
        return [f"`{path}.indices`: there is no block {each}; {have}" for each in blocks.indices if each >= count]
    if blocks.start is None or blocks.end is None:
        return [f"`{path}`: give `start` and `end`, or `indices`"]
    if blocks.start >= blocks.end:
        return [f"`{path}`: start {blocks.start} is not below end {blocks.end}"]
    return [f"`{path}.end`: {blocks.end} is above {count}; {have}"] if blocks.end > count else []


def pair_problems(spec: Spec) -> Problems:
    problems: Problems = []
    loop, needs_pair = spec.training_loop, spec.kind in PAIRS
    for index, item in enumerate(spec.examples.images):
        if needs_pair and not item.input_image:
            problems.append(f"`examples.images[{index}]`: kind `{spec.kind}` needs an `input_image`")
        if not needs_pair and item.input_image:
            problems.append(f"`examples.images[{index}].input_image`: kind `t2i` uses none; did you mean `kontext`?")
        if loop.loss.region == "mask" and not item.mask:
            problems.append(f"`examples.images[{index}]`: `loss.region` is `mask`, so it needs a `mask`")
    if (spec.width is None or spec.height is None) and spec.resolution is None:
        problems.append("`width`, `height`: missing; give both, or a `resolution`")
    if (spec.width or spec.height) and spec.resolution:
        problems.append("`resolution`: `width` or `height` is there too; give one or the other")
    if loop.prior and bool(loop.prior.images) == bool(loop.prior.class_prompt):
        problems.append("`training_loop.prior`: give `images`, a `path` with them, or a `class_prompt`")
    if loop.prior and loop.prior.class_prompt and needs_pair:
        problems.append(f"`training_loop.prior.class_prompt`: kind `{spec.kind}` learns from pairs; give `images`")
    if spec.examples.resize == "bucket" and spec.resolution is None:
        problems.append("`examples.resize`: `bucket` needs a `resolution` in place of `width` and `height`")
    count = sum(item.repeats for item in spec.examples.images)
    if loop.batch_size > count:
        problems.append(f"`training_loop.batch_size`: {loop.batch_size} is above the {count} examples")
    if loop.timestep.low >= loop.timestep.high:
        problems.append(f"`training_loop.timestep`: low {loop.timestep.low} is not below high {loop.timestep.high}")
    if spec.instrumentation and "tensorboard" in spec.instrumentation.log and find_spec("tensorboardX") is None:
        problems.append("`instrumentation.log`: tensorboard needs a package: `pip install tensorboardX`")
    if len(spec.optimizer.betas) != 2:
        problems.append(f"`optimizer.betas`: there are {len(spec.optimizer.betas)}, not two")
    return problems


def file_problems(spec: Spec, folder: Path) -> Problems:
    """Files that are not there; what is in them is checked when they are opened."""
    problems: Problems = []
    validation = spec.instrumentation and spec.instrumentation.validation
    groups: tuple[tuple[str, Examples | Prior | Validation | None], ...] = (
        ("examples", spec.examples),
        ("training_loop.prior", spec.training_loop.prior),
        ("instrumentation.validation", validation or None),
    )
    for name, group in groups:
        for index, item in enumerate(group.images if group else ()):
            path = f"{name}.images[{index}]"
            for field in ("image", "prompt_file", "input_image", "mask"):
                given = getattr(item, field)
                if group and given and not (place := placed(folder, group.path, given)).is_file():
                    problems.append(f"`{path}.{field}`: there is no file `{place}`")
            if (item.prompt is None) == (item.prompt_file is None):
                problems.append(f"`{path}`: give a `prompt` or a `prompt_file`")
    return problems


def placed(folder: Path, path: str, name: str) -> Path:
    """An item's file: relative to the group's path, which is relative to the file that names it."""
    return folder / expand(path) / expand(name)


def with_settings(value: Any, settings: Mapping[str, Any]) -> Any:
    """The JSON value with some of its keys, named with dots, replaced."""
    changed = json.loads(json.dumps(value))
    for name, new in settings.items():
        place, *rest = changed, *name.split(".")
        for key in rest[:-1]:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise UsageError(f"`{name}` cannot be set: `{rest[-2]}` is no object", "name a key as `a.b=value`", "set")
        place[rest[-1]] = new
    return changed


def with_items(value: Any, folder: Path) -> Any:
    """The JSON value with the items of every group listed, and their path absolute, so that a checkpoint finds them.

    A group can be a folder (`x.png` with `x.txt`) or a .jsonl file, or name one as its `path`.
    """
    changed = json.loads(json.dumps(value))
    for *outer, name in GROUPS:
        owner = changed
        for key in outer:
            owner = owner.get(key) if isinstance(owner, dict) else None
        group = owner.get(name) if isinstance(owner, dict) else None
        group = {"path": group} if isinstance(group, str) else group
        if isinstance(group, dict) and isinstance(group.get("path", "."), str):
            place = (folder / expand(group.get("path", "."))).absolute()
            listed_here = "images" in group or "path" not in group
            owner[name] = group | ({"path": str(place)} if listed_here else items_of(place, name))
    return changed


def items_of(place: Path, field: str) -> dict[str, Any]:
    """The items of a folder or a .jsonl file, as a group."""
    if place.suffix == ".jsonl" and place.is_file():
        lines = place.read_text(encoding="utf-8").splitlines()
        try:
            return {"path": str(place.parent), "images": [json.loads(line) for line in lines if line.strip()]}
        except json.JSONDecodeError as error:
            raise UsageError(f"`{place}` is not JSON line by line: {error.msg}", "one object a line", field) from None
    if not place.is_dir():
        raise UsageError(f"there is no folder or .jsonl file `{place}`", "name one, or list the images", field)
    pictures = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURES)
    images = [{"image": path.name, "prompt_file": path.with_suffix(".txt").name} for path in pictures]
    return {"path": str(place), "images": images}
