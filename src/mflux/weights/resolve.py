"""From what the user calls a model, or a network beside it, to folders: alias, hub id, local folder, or single file.

Offline first: a finished download is used without asking the network.  Nothing falls back silently.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mflux.errors import ModelError, UsageError
from mflux.paths import expand
from mflux.weights.catalog import (
    BUILT_IN,
    BY_NAME,
    SIDES,
    TASK_CHANNELS,
    Row,
    by_repo,
    check_name,
    check_repo,
    find,
    of_task,
    require,
)
from mflux.weights.files import MANIFEST, read_header, read_json, tensors_in
from mflux.weights.hub import download_snapshot
from mflux.weights.kinds import FILE_PREFIXES, config_from_shapes, read_config

NETWORKS = ("transformer", "text_encoder", "text_encoder_2", "vae")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler")
SIDE_PARTS = ("image_encoder", "image_embedder")  # that only some models have
TOKENIZER_FILES = {"tokenizer": ("vocab.json", "tokenizer.json"), "tokenizer_2": ("tokenizer.json", "spiece.model")}
ENDINGS = (".json", ".safetensors", ".txt", ".model")
PATTERNS = [MANIFEST, *(f"{part}/*{end}" for part in PARTS for end in ENDINGS)]
SIDE_PATTERNS = ["*.json", "*.safetensors"]
RUNS_CODE = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found: its row of defaults and the folder of each part."""

    name: str
    row: Row
    folders: dict[str, Path]


class Side(NamedTuple):
    """A network beside the model: its kind, a key of KINDS, and its folder.  stays: it works in every step of a run."""

    kind: str
    place: Path
    stays: bool = False


def resolve(name: str, task: str = "base", base_model: str | None = None) -> ModelSource:
    """Find a model.  name: alias, hub id (`owner/name`), or folder in the diffusers layout.

    base_model: the alias whose defaults a third-party model uses.  Raises UsageError for a name that means nothing,
    ModelError for a model that is incomplete or cannot be downloaded.
    """
    return with_side_parts(resolve_networks(name, task, base_model), task)


def resolve_networks(name: str, task: str, base_model: str | None) -> ModelSource:
    """The model alone, without what its task needs besides."""
    check_name(name)
    given = require(base_model, "base_model") if base_model else None
    row = find(name, task)
    if row and row.folder:
        if given and given != row:
            problem = f"`{name}` is built in and belongs to its own family, not to `{given.name}`"
            raise UsageError(problem, "leave it out", "base_model")
        return built_in(row)
    if row and row.holds:
        return with_companion(name, row, given)
    if row:
        return in_folder(name, given or row, download(row.repo))
    place = expand(name, "model")
    if place.is_dir():
        return in_folder(name, given, place, task)
    if place.is_file():
        return single_file(name, given, place, task)
    row = by_repo(name)
    if row and row.holds:
        return with_companion(name, row, given)
    return in_folder(name, given or row, download(name), task)


def with_companion(name: str, row: Row, given: Row | None) -> ModelSource:
    """A repository that holds some parts, with the others of its companion."""
    family = resolve_networks(row.companion, "base", None)
    return ModelSource(name, given or row, family.folders | downloaded_parts(row))


def with_side_parts(source: ModelSource, task: str) -> ModelSource:
    """The model with the parts that its family has for a task, as far as it lacks them."""
    row = of_task(source.row.family, task)
    if row is None or not row.holds or all(part in source.folders for part, _ in row.holds):
        return source
    if TASK_CHANNELS[source.row.task] != TASK_CHANNELS[task]:
        return source  # no download for a model that cannot serve
    return replace(source, folders=downloaded_parts(row) | source.folders)


def downloaded_parts(row: Row) -> dict[str, Path]:
    """The folders of what a repository holds that is no whole model."""
    root = download(row.repo, dict(row.holds))
    return {part: root / folder for part, folder in row.holds}


def single_file(name: str, row: Row | None, path: Path, task: str = "base") -> ModelSource:
    """A transformer in one file, perhaps with other parts; what it lacks is its family's.

    An `ae.safetensors` beside it is the autoencoder.
    """
    if path.suffix not in (".safetensors", ".gguf"):
        raise UsageError(
            f"`{name}` is no checkpoint", "safetensors and GGUF files are read, nothing that runs code", "model"
        )
    config = config_from_shapes(path)
    row = row or row_for(config.in_channels, config.guidance_embeds, task)
    family = own_model(row)
    autoencoder = path.parent / "ae.safetensors"
    folders = {**family.folders, "transformer": path} | ({"vae": autoencoder} if autoencoder.is_file() else {})
    for part in ("text_encoder", "text_encoder_2", "vae"):  # all-in-one files hold these too
        if any(tensor.startswith(FILE_PREFIXES[part]) for tensor in read_header(path)):
            folders[part] = path
    return ModelSource(name, row, folders)


def own_model(row: Row) -> ModelSource:
    """The model that a row names, which lends a file of its family the parts that it lacks."""
    return built_in(row) if row.folder else in_folder(row.name, row, download(row.repo))


def built_in(row: Row) -> ModelSource:
    """A model that ships inside the package.  Raises ModelError for one that this version does not have."""
    if not (BUILT_IN / row.folder).is_dir():
        raise ModelError(f"`{row.name}` is not trained yet", "this version has no weights for it; use another model")
    folders = {part: BUILT_IN / row.folder / part for part in PARTS} | side_folders(BUILT_IN / row.folder)
    if row.companion:
        companion = built_in(BY_NAME[row.companion]).folders
        folders = {part: path if path.is_dir() else companion[part] for part, path in folders.items()}
    return ModelSource(row.name, row, folders)


def in_folder(name: str, row: Row | None, folder: Path, task: str = "base") -> ModelSource:
    """A model in the layout of diffusers or mflux.

    Without a row, its manifest or its transformer's sizes tell the family and task.
    """
    folders = {part: folder / part for part in PARTS} | side_folders(folder)
    missing = [part for part in NETWORKS if not folders[part].is_dir()]
    if missing and row and "transformer" not in missing:  # a fine-tune of the transformer alone
        family = own_model(row)
        folders = {part: path if path.is_dir() else family.folders[part] for part, path in folders.items()}
    elif missing:
        raise UsageError(
            f"`{folder}` is not a FLUX.1 model: it has no folder `{missing[0]}`",
            "give a folder with `transformer`, `vae`, `text_encoder` and `text_encoder_2`; for a transformer alone, "
            "name its family with `base_model`",
            "model",
        )
    if row is None and (folder / MANIFEST).is_file():
        row = BY_NAME.get(str(read_json(folder / MANIFEST).get("base_model")))
    if row is None:
        config = read_config("transformer", folders["transformer"])
        row = row_for(config.in_channels, config.guidance_embeds, task)
    return ModelSource(name, row, folders)


def side_folders(folder: Path) -> dict[str, Path]:
    return {part: folder / part for part in SIDE_PARTS if (folder / part).is_dir()}


def row_for(in_channels: int, guidance_embeds: bool, wanted: str = "base") -> Row:
    """The row whose defaults fit a transformer, by its input channels, guidance embedding, and the task it is for."""
    if wanted in BY_NAME and TASK_CHANNELS[wanted] == in_channels:
        return BY_NAME[wanted]
    task = {TASK_CHANNELS["fill"]: "fill", TASK_CHANNELS["depth"]: "depth"}.get(in_channels)
    return BY_NAME[task or ("dev" if guidance_embeds else "schnell")]


def download(repo: str, holds: dict[str, str] | None = None) -> Path:
    """The local snapshot of a hub repository, downloaded if it is not there yet.

    holds: the parts that it has and their folders, where it is no whole model.
    """
    wanted = PATTERNS
    if holds:
        wanted = [(f"{folder}/" if folder else "") + f"*{end}" for folder in holds.values() for end in ENDINGS]
    return download_snapshot(repo, wanted, partial(check_whole, holds=holds))


def check_whole(folder: Path, holds: dict[str, str] | None = None) -> None:
    """Raise ModelError where a download lacks something: an interrupted one is not taken for a model."""
    if holds:
        for place in holds.values():
            tensors_in(folder / place)
        return
    for part in NETWORKS:
        tensors_in(folder / part)
    for part, names in TOKENIZER_FILES.items():
        if not any((folder / part / name).is_file() for name in names):
            raise ModelError(f"`{folder / part}` has none of {', '.join(names)}", "download the model again")


def find_side(kind: str, name: str, field: str, stays: bool = False) -> Side:
    """Find a network by hub id, folder, or a safetensors file with its config.json beside it.

    Raises UsageError for a name that means none, and for a file that could run code; ModelError where it is incomplete
    or cannot be downloaded.
    """
    place = expand(name, field)
    if place.suffix in RUNS_CODE:
        problem = f"`{name}` is a pickle, which runs code when it is opened; it was not opened"
        raise UsageError(problem, "give the safetensors form, a folder or hub id", field)
    folder = place.parent if place.is_file() else place
    if not folder.is_dir():
        check_repo(name, field)
        folder = download_snapshot(name, SIDE_PATTERNS, tensors_in)
    if not (folder / "config.json").is_file():
        raise UsageError(f"`{folder}` has no config.json", "give the folder of the network, or its hub id", field)
    return Side(kind, folder, stays)


def default_side(kind: str, role: str, family: str, field: str, stays: bool = False) -> Side:
    """The network that a method uses in this role unless it is told otherwise."""
    if (role, family) in SIDES and family == "tiny":
        folder = BUILT_IN / SIDES[role, family]
        if not folder.is_dir():
            problem = f"the built-in model has no {role} in this version"
            raise ModelError(problem, "name one of your own, or use FLUX.1, for example `--model dev`")
        return Side(kind, folder, stays)
    return find_side(kind, SIDES[role, "dev"], field, stays)
