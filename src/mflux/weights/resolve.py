"""From what the user calls a model to the folders of its parts: alias, hub id, or a local folder.

Offline first: a finished download is used without asking the network.  Nothing falls back silently.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mflux.errors import ModelError, UsageError
from mflux.weights.catalog import BUILT_IN, BY_NAME, TASK_CHANNELS, Row, by_repo, find, nearest, require
from mflux.weights.files import read_json

NETWORKS = ("transformer", "text_encoder", "text_encoder_2", "vae")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler")
PATTERNS = [f"{part}/*{end}" for part in PARTS for end in (".json", ".safetensors", ".txt", ".model")]


@dataclass(frozen=True)
class ModelSource:
    """A model that was found: its row of defaults and the folder of each part."""

    name: str
    row: Row
    folders: dict[str, Path]


def resolve(name: str, task: str = "base", base_model: str | None = None) -> ModelSource:
    """Find a model.  name: alias, hub id (`owner/name`), or folder in the diffusers layout.

    base_model: the alias whose defaults a third-party model uses.  Raises UsageError for a name that means nothing,
    ModelError for a model that is incomplete or cannot be downloaded.
    """
    given = require(base_model, "base_model") if base_model else None
    row = find(name, task)
    if row and row.folder:
        return built_in(row)
    folder = Path(name).expanduser()
    if row:
        return in_folder(name, given or row, download(row.repo))
    if folder.is_dir():
        return in_folder(name, given, folder)
    if folder.is_file():
        raise UsageError(f"`{name}` is a file", "give the folder of a model in the diffusers layout", "model")
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or not all(name.split("/")):
        looks_like_path = os.sep in name
        problem = f"there is no folder `{name}`" if looks_like_path else f"unknown model `{name}`"
        raise UsageError(problem, nearest(name), "model")
    return in_folder(name, given or by_repo(name), download(name))


def built_in(row: Row) -> ModelSource:
    """A model that ships inside the package."""
    folders = {part: BUILT_IN / row.folder / part for part in PARTS}
    if row.companion:
        companion = BUILT_IN / BY_NAME[row.companion].folder
        folders = {part: path if path.is_dir() else companion / part for part, path in folders.items()}
    return ModelSource(row.name, row, folders)


def in_folder(name: str, row: Row | None, folder: Path) -> ModelSource:
    """A model in the diffusers layout; without a row, its transformer's config tells the family and task."""
    folders = {part: folder / part for part in PARTS}
    missing = [part for part in NETWORKS if not folders[part].is_dir()]
    if missing:
        raise UsageError(
            f"`{folder}` is not a FLUX.1 model: it has no folder `{missing[0]}`",
            "give a folder in the diffusers layout, with `transformer`, `vae`, `text_encoder`, `text_encoder_2`",
            "model",
        )
    return ModelSource(name, row or guess_row(folders["transformer"]), folders)


def guess_row(transformer: Path) -> Row:
    """The row whose defaults fit a transformer, by its input channels and guidance embedding."""
    config = read_json(transformer / "config.json")
    if config.get("in_channels") == TASK_CHANNELS["fill"]:
        return BY_NAME["fill"]
    if config.get("in_channels") == TASK_CHANNELS["depth"]:
        return BY_NAME["depth"]
    return BY_NAME["dev" if config.get("guidance_embeds") else "schnell"]


def download(repo: str) -> Path:
    """The local snapshot of a hub repository, downloaded if it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    def snapshot(offline: bool) -> Path:
        return Path(snapshot_download(repo, allow_patterns=PATTERNS, local_files_only=offline))

    try:
        found = snapshot(offline=True)
        if all((found / part).is_dir() for part in NETWORKS):
            return found
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # not downloaded yet
    try:
        return snapshot(offline=False)
    except GatedRepoError:
        raise ModelError(
            f"`{repo}` asks you to accept its licence first",
            f"open https://huggingface.co/{repo}, accept, then `hf auth login`",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"the hub has no model `{repo}`, or it is private", "check the name; `hf auth login`"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"`{repo}` is not on this machine and cannot be downloaded ({str(error).splitlines()[0]})",
            "connect to the network, give a local folder, or try the built-in `--model tiny`",
        ) from None
