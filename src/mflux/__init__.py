"""mflux: FLUX.1 on Apple's MLX.  `from mflux import Flux1, Config`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mflux import runtime

runtime.load_blas()  # has to come before the first `import mlx.core`
runtime.keep_memory()

if TYPE_CHECKING:
    from mflux.engine.flux import Flux1
    from mflux.engine.picture import GeneratedImage
    from mflux.engine.request import Config
    from mflux.errors import MfluxError, ModelError, UsageError

__version__ = "1.0.0.dev0"
__all__ = ["Config", "Flux1", "GeneratedImage", "MfluxError", "ModelError", "UsageError"]

_HOMES = {
    "Config": "mflux.engine.request",
    "Flux1": "mflux.engine.flux",
    "GeneratedImage": "mflux.engine.picture",
    "MfluxError": "mflux.errors",
    "ModelError": "mflux.errors",
    "UsageError": "mflux.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `mflux-generate --help` must not pay for mlx."""
    if name not in _HOMES:
        raise AttributeError(f"module `mflux` has no `{name}`")
    if name == "Flux1":
        import_module("mflux.conditions")  # registers the methods that a request can name
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
