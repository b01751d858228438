"""The machine: which BLAS, which device, how much memory.

MLX's Linux CPU wheel links the reference BLAS (about 7 GFLOP/s on two cores).  Loading an optimised library with global
symbols BEFORE the first `import mlx.core` makes the same wheel use it (about 200 GFLOP/s), so `mflux/__init__` calls
`load_blas` first of all.  This module imports nothing heavy.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MULTIARCH = ("x86_64-linux-gnu", "aarch64-linux-gnu", ".")
SYSTEM_FOLDERS = ("/usr/lib", "/usr/local/lib", "/usr/lib64", "/opt/OpenBLAS/lib")
SYSTEM_NAMES = (
    "openblas-pthread/libopenblas.so.0",
    "openblas-openmp/libopenblas.so.0",
    "libopenblas.so.0",
    "libopenblas.so",
)
# Libraries with plain symbol names inside wheels; those of numpy and scipy carry prefixed names and do not serve.
WHEEL_PATTERNS = ("../../libmkl_rt.so.*", "opencv_python_headless.libs/libopenblas*", "opencv_python.libs/libopenblas*")

BLAS_THREADS = (  # functions of OpenBLAS and MKL that get and set the number of threads
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
)
# How many operations MLX keeps in sight when it orders them: with its own 20, what two cores could do is done in turn.
GRAPH_WIDTH = "32"
MALLOC_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # of who set them himself
M_TRIM_THRESHOLD, M_MMAP_MAX, NEVER = -1, -4, -1  # glibc's mallopt
STARTERS = ("MLX_RANK", "OMPI_COMM_WORLD_SIZE")  # what `mlx.launch` tells each of its processes
_blas: str | None = None


def one_of_several() -> bool:
    """Whether `mlx.launch` started this process beside others."""
    return any(name in os.environ for name in STARTERS)


def load_blas() -> str | None:
    """Load an optimised BLAS for MLX's CPU backend and return its path; None where none is found or needed.

    `MFLUX_BLAS` names a library to load, or is `off` for the wheel's own.  Linux only: macOS has Accelerate.
    """
    global _blas
    wish = os.environ.get("MFLUX_BLAS", "")
    if _blas or wish == "off" or not sys.platform.startswith("linux"):
        return _blas
    if "mlx.core" in sys.modules:
        print("mflux: mlx was imported first, so it keeps its slow BLAS; `import mflux` before mlx", file=sys.stderr)
        return None
    for path in [wish] if wish else candidates():
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            if wish:
                print(f"mflux: `MFLUX_BLAS={wish}` cannot be loaded ({error}); give a path or `off`", file=sys.stderr)
            continue
        _blas = path
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", GRAPH_WIDTH)
        return path
    return None


def keep_memory() -> None:
    """Let large arrays reuse the pages of earlier ones, until `free_memory`.

    glibc maps pages of their own for what is larger than 32 MB and gives them back with it, so each operation of a
    full-size block would pay for fresh zeroed ones: joining two arrays to 94 MB takes 15 ms in place of 56.
    """
    mallopt = of_glibc("mallopt")
    if mallopt and not any(name in os.environ for name in MALLOC_SETTINGS):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def free_memory() -> None:
    """Give back what freed arrays held."""
    import mlx.core as mx

    mx.clear_cache()
    malloc_trim = of_glibc("malloc_trim")
    if malloc_trim:
        malloc_trim(0)


def of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def candidates() -> Iterator[str]:
    """Paths of optimised BLAS libraries on this machine, the fastest first."""
    for folder in SYSTEM_FOLDERS:
        for name in SYSTEM_NAMES:
            for arch in MULTIARCH:
                path = os.path.join(folder, arch, name)
                if os.path.exists(path):
                    yield path
    for pattern in WHEEL_PATTERNS:
        for folder in sys.path:
            base, _, rest = pattern.rpartition("/")
            yield from sorted(map(str, Path(folder, base).glob(rest))) if folder else ()


def blas_advice() -> str | None:
    """One line on how to get a fast BLAS, where MLX runs on a Linux CPU without one; else None."""
    if _blas or not sys.platform.startswith("linux") or os.environ.get("MFLUX_BLAS") or not on_cpu():
        return None
    return (
        "mflux: no optimised BLAS found, drawing will be about 20 times slower; "
        "`pip install mkl` (x86), `pip install opencv-python-headless`, or Debian's libopenblas0-pthread brings one"
    )


def on_cpu() -> bool:
    """True where MLX's default device is the CPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


@cache
def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_a_product() -> Iterator[None]:
    """BLAS takes one core for each product while it lasts: for where many products run side by side."""
    library = ctypes.CDLL(_blas) if _blas and on_cpu() else None
    counts = next(((get, put) for get, put in BLAS_THREADS if hasattr(library, put)), None)
    if counts is None:
        yield
        return
    get, put = (getattr(library, name) for name in counts)
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


@cache
def physical_memory() -> int:
    """Bytes of memory in this machine (unified memory on a Mac)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
