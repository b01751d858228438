"""Files of the Hugging Face hub: what is on this machine first, then the network; every refusal says what to do.

`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured by huggingface_hub.  A connection that is cut is
taken up where it broke; after a run that failed, files that were whole are not fetched again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mflux.errors import MfluxError, ModelError, UsageError
from mflux.weights.catalog import nearest

Found = TypeVar("Found")
GATED, TOO_MANY = (401, 403), 429


def download_snapshot(repo: str, patterns: list[str], check: Callable[[Path], object]) -> Path:
    """The local folder of a repository, downloaded if it is not there whole.  check: raises ModelError if it is not."""
    from huggingface_hub import snapshot_download

    def snapshot(offline: bool) -> Path:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=offline))

    try:
        found = snapshot(offline=True)
        check(found)
        return found
    except (ModelError, OSError, ValueError):
        pass  # not downloaded yet, or not to the end
    found = ask(repo, lambda: snapshot(offline=False), "model")
    try:
        check(found)
    except ModelError as error:
        raise ModelError(f"the download of `{repo}` is incomplete: {error.problem}", "run the command again") from None
    return found


def download_file(repo: str, name: str | None, field: str) -> Path:
    """One file of a repository; without a name its only safetensors file.  Raises UsageError for several."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    if name is None:
        try:
            folder = Path(snapshot_download(repo, local_files_only=True))
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
        except (OSError, ValueError):
            names = ask(repo, lambda: HfApi().list_repo_files(repo), field)
            names = [each for each in names if each.endswith(".safetensors")]
        if len(names) != 1:
            problem = f"`{repo}` holds {len(names) or 'no'} safetensors files"
            listed = ", ".join(f"`{repo}:{each}`" for each in sorted(names)[:8])
            raise UsageError(problem, f"name one: {listed}" if names else "check the name", field)
        name = names[0]
    try:
        return Path(hf_hub_download(repo, name, local_files_only=True))
    except (OSError, ValueError):
        return Path(ask(repo, lambda: hf_hub_download(repo, name), field))


def ask(repo: str, call: Callable[[], Found], field: str) -> Found:
    """A call of the hub, its errors in words.  Raises UsageError for a name, ModelError for everything else."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return call()
    except HFValidationError:
        raise UsageError(f"unknown model `{repo}`", nearest(repo), field) from None
    except GatedRepoError:
        raise gated(repo) from None
    except RepositoryNotFoundError:
        problem = f"the hub has no model `{repo}`, or it is private"
        raise ModelError(problem, "check the name; `hf auth login`") from None
    except Exception as error:  # those of its HTTP library too: a connection that was refused or cut, a time-out
        status = status_of(error)
        if status in GATED:
            raise gated(repo) from None
        if status == TOO_MANY:
            problem = "the hub answers that it was asked too often (429)"
            raise ModelError(problem, "wait a few minutes, then run it again") from None
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UsageError(f"`{repo}` has no such file", "check its name on the hub", field) from None
        raise not_reached(repo, error) from None


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of the hub's library, which wraps some in others."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def gated(repo: str) -> MfluxError:
    return ModelError(
        f"`{repo}` asks you to accept its licence first",
        f"open https://huggingface.co/{repo}, accept, then `hf auth login`",
    )


def not_reached(repo: str, error: Exception) -> MfluxError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"`{repo}` is not on this machine and cannot be downloaded ({reason})",
        "connect to the network and run it again (what was fetched is kept), give a local folder, or try the built-in "
        "`--model tiny`",
    )
