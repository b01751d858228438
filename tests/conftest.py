"""What the tests share: the tiny random models that diffusers' numbers were made with."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mflux  # noqa: F401  (first: it loads the BLAS before mlx)
from mflux import Flux1
from mflux.weights.catalog import BY_NAME
from mflux.weights.resolve import SIDE_PARTS, resolve

ORACLE = Path(__file__).parent / "data" / "oracle"


@pytest.fixture(scope="session")
def oracle_model() -> Callable[[str], Path]:
    """Folder of a tiny random model: dev, schnell or fill."""
    return lambda name: ORACLE / "models" / name


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Also in the background of a shell, which has its children ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test keeps, no other finds."""
    monkeypatch.setenv("MFLUX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def random_flux(oracle_model: Callable[[str], Path]) -> Callable[[str], Flux1]:
    """A tiny random Flux1, opened once a session: dev, schnell, fill, kontext; redux is dev with Redux' parts, ic-edit
    is fill with the built-in model's small panels, and `dev, 32 px` draws larger pictures in tiles of that size."""
    opened: dict[str, Flux1] = {}

    def open_one(name: str) -> Flux1:
        if name not in opened:
            opened[name] = VARIANTS[name](oracle_model) if name in VARIANTS else Flux1(str(oracle_model(name)))
        return opened[name]

    return open_one


def with_redux(oracle_model: Callable[[str], Path]) -> Flux1:
    source = resolve(str(oracle_model("dev")))
    parts = {part: oracle_model("redux") / part for part in SIDE_PARTS}
    return Flux1(replace(source, folders=source.folders | parts))


def with_small_panels(oracle_model: Callable[[str], Path]) -> Flux1:
    return Flux1(replace(resolve(str(oracle_model("fill"))), row=BY_NAME["tiny/ic-edit"]))


def with_small_tiles(oracle_model: Callable[[str], Path]) -> Flux1:
    source = resolve(str(oracle_model("dev")))
    return Flux1(replace(source, row=replace(source.row, side=32)))


VARIANTS = {"redux": with_redux, "ic-edit": with_small_panels, "dev, 32 px": with_small_tiles}
