"""A finished picture with everything that made it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mflux
from mflux.engine.slots import Plan
from mflux.images.metadata import save_json, save_picture, write_file

# Flat metadata keys of mflux 0.24, for tools that read them; those without a value here are null.
CONDITION_KEYS = {
    ("Fill", "image"): "image_path",
    ("Fill", "mask"): "masked_image_path",
    ("Inpaint", "image"): "image_path",
    ("Inpaint", "mask"): "masked_image_path",
    ("Inpaint", "image_strength"): "image_strength",
    ("ImageToImage", "image"): "image_path",
    ("ImageToImage", "image_strength"): "image_strength",
    ("Control", "source"): "image_path",
    ("ControlNet", "source"): "controlnet_image_path",
    ("ControlNet", "strength"): "controlnet_strength",
    ("Upscale", "image"): "controlnet_image_path",
    ("Upscale", "strength"): "controlnet_strength",
    ("InContext", "image"): "image_path",
    ("InContextEdit", "image"): "image_path",
    ("Kontext", "images"): "image_path",
    ("MaskedEdit", "image"): "image_path",
    ("MaskedEdit", "mask"): "masked_image_path",
    ("RFInversion", "image"): "image_path",
    ("Concepts", "image"): "image_path",
    ("Redux", "images"): "redux_image_paths",
    ("Redux", "strengths"): "redux_image_strengths",
}


def paths_in(value: Any) -> Any:
    """The paths of described pictures, one alone without its list; other values as they are."""
    if isinstance(value, list):
        return paths_in(value[0]) if len(value) == 1 else [paths_in(each) for each in value]
    return value.get("path") if isinstance(value, dict) else value


@dataclass(frozen=True)
class GeneratedImage:
    """image: PIL.  artifacts: what the run made besides (name -> PIL image or array), `latents` (S, 64) among them."""

    image: Image.Image
    plan: Plan
    timing: Mapping[str, Any]
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    icc: bytes | None = None

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Flat keys of mflux 0.24, and under `request` what draws this picture again."""
        request, plan = self.plan.request, self.plan
        config = request.config
        flat = {
            "mflux_version": mflux.__version__,
            "model": plan.row.repo or request.model,
            "base_model": request.base_model,
            "seed": request.seeds[0],
            "steps": len(plan.sigmas) - 1,
            "guidance": plan.guidance,
            "height": self.image.height,
            "width": self.image.width,
            "precision": config.precision,
            "quantize": request.quantize,
            "lora_paths": [path for path, _ in request.loras] or None,
            "lora_scales": [scale for _, scale in request.loras] or None,
            "image_path": None,
            "image_strength": None,
            "masked_image_path": None,
            "prompt": plan.prompt,
            "negative_prompt": request.negative_prompt,
        }
        described = request.to_json()
        for condition in described["conditions"]:
            for name, value in condition.items():
                if key := CONDITION_KEYS.get((condition["condition"], name)):
                    flat[key] = paths_in(value)
        return {**flat, **self.timing, "request": described}

    def save(
        self,
        path: str | os.PathLike[str] = "image.png",
        overwrite: bool = False,
        export_json_metadata: bool = False,
        embed_metadata: bool = True,
    ) -> Path:
        """Write the picture and return the path written: `path`, numbered where that exists.

        PNG, JPEG or WebP by its ending.  export_json_metadata: also `<stem>.json` beside it.
        """
        written = save_picture(self.image, path, self.metadata if embed_metadata else None, overwrite, self.icc)
        if export_json_metadata:
            self.save_metadata(written.with_suffix(".json"), overwrite)
        return written

    def save_artifacts(self, name: str, beside: Path, overwrite: bool = False) -> list[Path]:
        """Write what the run made besides under this name, as `<stem>_<name>.png` or .npz; returns the paths."""
        made = {key: value for key, value in self.artifacts.items() if key.rstrip("_0123456789") == name}
        return [self._save_artifact(value, beside, f"{beside.stem}_{key}", overwrite) for key, value in made.items()]

    def _save_artifact(self, value: Any, beside: Path, stem: str, overwrite: bool) -> Path:
        if isinstance(value, Image.Image):
            return save_picture(value, beside.with_name(f"{stem}.png"), None, overwrite, None)

        def write(file: Any) -> None:
            np.savez(file, maps=np.stack([*value.values()], axis=-1), names=np.array([*value]))

        return write_file(beside.with_name(f"{stem}.npz"), write, overwrite)

    def save_metadata(self, path: Path, overwrite: bool = False) -> Path:
        """Write the metadata alone, as JSON; returns the path written."""
        return save_json(self.metadata, path, overwrite)
