"""Editing and steering methods, one file each, imported when they are first named."""

from importlib import import_module
from typing import Any

from mflux.engine.slots import ROOMS

HOMES = {
    "Concepts": "concepts",
    "Control": "control",
    "ControlNet": "controlnet",
    "Fill": "fill",
    "FluxSpace": "fluxspace",
    "ImageToImage": "image_to_image",
    "InContext": "in_context",
    "InContextEdit": "ic_edit",
    "Inpaint": "inpaint",
    "IPAdapter": "ip_adapter",
    "Kontext": "kontext",
    "MaskedEdit": "masked_edit",
    "RFInversion": "rf_inversion",
    "Redux": "redux",
    "TryOn": "try_on",
    "Upscale": "upscale",
}
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module `mflux.conditions` has no `{name}`")
    return getattr(import_module(f"mflux.conditions.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])


ROOMS.append((frozenset(HOMES), __getattr__))
