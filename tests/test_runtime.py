"""Which BLAS is loaded, and what is said about it."""

import ctypes
import os
import subprocess
import sys

import pytest

from mflux import runtime

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS has Accelerate")


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a few words of Python in a process of its own: a BLAS is chosen once."""
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )


@LINUX
@pytest.mark.skipif(not [*runtime.candidates()], reason="this machine has no optimised BLAS")
def test_the_first_candidate_is_loaded_and_its_matmul_is_right():
    code = """
import mflux, numpy as np, mlx.core as mx
a, b = np.random.default_rng(0).standard_normal((2, 300, 300)).astype(np.float32)
print(mflux.runtime._blas, np.abs(np.array(mx.array(a) @ mx.array(b)) - a @ b).max() < 1e-3)
"""
    library, right = fresh(code).stdout.split()
    assert library == next(runtime.candidates()) and right == "True"


@pytest.mark.skipif(not runtime._blas, reason="no optimised BLAS was loaded")
def test_products_side_by_side_take_a_core_each_and_give_the_others_back():
    library = ctypes.CDLL(runtime._blas)
    count = next(getattr(library, get) for get, _ in runtime.BLAS_THREADS if hasattr(library, get))
    before = count()
    with pytest.raises(ZeroDivisionError), runtime.one_thread_a_product():
        assert count() == 1
        1 / 0  # noqa: B018
    assert count() == before


@LINUX
def test_off_keeps_the_wheel_s_own():
    done = fresh("import mflux; print(mflux.runtime._blas, mflux.runtime.blas_advice())", MFLUX_BLAS="off")
    assert done.stdout.split() == ["None", "None"] and not done.stderr


@LINUX
def test_a_library_that_cannot_be_loaded_is_named():
    done = fresh("import mflux", MFLUX_BLAS="/no/such/libblas.so")
    assert done.stderr.startswith("mflux: `MFLUX_BLAS=/no/such/libblas.so` cannot be loaded")
    assert done.stderr.count("\n") == 1


@LINUX
def test_mlx_before_mflux_is_told_in_one_line():
    done = fresh("import mlx.core, mflux")
    assert "`import mflux` before mlx" in done.stderr and done.stderr.count("\n") == 1


@LINUX
def test_without_one_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(runtime, "_blas", None)
    monkeypatch.delenv("MFLUX_BLAS", raising=False)
    if runtime.on_cpu():
        assert "pip install" in (runtime.blas_advice() or "")


TWO_LARGE_ARRAYS = """
import mflux, mlx.core as mx, resource
from pathlib import Path
def held(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = mx.ones((10_000_000,)); mx.eval(x)
for _ in range(3):
    before = faults(); mx.eval(mx.concatenate([x, x])); last = faults() - before
before = held(); mflux.runtime.free_memory(); print(last, before - held())
"""


@LINUX
def test_a_large_array_takes_the_pages_of_the_last_one_until_memory_is_freed():
    faults, freed = map(float, fresh(TWO_LARGE_ARRAYS).stdout.split())
    assert faults < 1000  # of 19,500 pages
    assert freed > 60  # MB of 80


@LINUX
def test_malloc_stays_as_the_user_set_it():
    faults, freed = map(float, fresh(TWO_LARGE_ARRAYS, MALLOC_MMAP_MAX_="65536").stdout.split())
    assert faults > 10_000 and freed < 10


def test_importing_mflux_is_cheap():
    heavy = fresh("import mflux, sys; print([m for m in ('mlx.core', 'numpy', 'PIL') if m in sys.modules])").stdout
    assert heavy.strip() == "[]"
