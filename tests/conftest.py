"""What the tests share: the tiny random models that diffusers' numbers were made with."""

from collections.abc import Callable
from pathlib import Path

import pytest

import mflux  # noqa: F401  (first: it loads the BLAS before mlx)
from mflux import Flux1

ORACLE = Path(__file__).parent / "data" / "oracle"


@pytest.fixture(scope="session")
def oracle_model() -> Callable[[str], Path]:
    """Folder of a tiny random model: dev, schnell or fill."""
    return lambda name: ORACLE / "models" / name


@pytest.fixture(scope="session")
def random_flux(oracle_model: Callable[[str], Path]) -> Callable[[str], Flux1]:
    """A tiny random Flux1, opened once a session: dev, schnell or fill."""
    opened: dict[str, Flux1] = {}

    def open_one(name: str) -> Flux1:
        return opened.setdefault(name, Flux1(str(oracle_model(name))))

    return open_one
