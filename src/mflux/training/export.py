"""Adapters as tensors of a file: as checkpoints keep them, and as other programs read them.

Black Forest Labs' names, which kohya's trainer and ComfyUI use, keep some of our layers in one matrix.  A LoRA of such
a matrix is that of its layers put block by block along the diagonal: the same change, its rank the sum of theirs.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from mflux.engine.parts import PRECISION
from mflux.errors import UsageError
from mflux.models.lora import Factors
from mflux.models.transformer import FluxTransformer
from mflux.training.adapters import attach, factors_of, old_name
from mflux.training.config import sizes_of
from mflux.training.spec import Spec, targets_of
from mflux.weights.layouts import BFL, blocks_in, numbered
from mflux.weights.lora_files import output_width

WEIGHTS = ("lora_A", "lora_B")  # whose names end in `.weight` elsewhere
# Layout -> prefix, whether dots stay, and the names of the two factors.
FUSED = {
    "kohya": ("lora_unet_", False, "lora_down.weight", "lora_up.weight"),
    "comfyui": ("diffusion_model.", True, "lora_A.weight", "lora_B.weight"),
}
Scales = Mapping[str, float]  # layer -> what its change is multiplied by


def in_checkpoint(factors: Factors, scales: Scales) -> Factors:
    """Under mflux 0.8's names."""
    tensors = {f"transformer.{old_name(name)}": value for name, value in factors.items()}
    return tensors | {f"transformer.{old_name(f'{path}.alpha')}": alpha for path, alpha in alphas(factors, scales)}


def in_layout(layout: str, factors: Factors, scales: Scales, heights: Mapping[str, int]) -> Factors:
    """Under the names of `diffusers`, `kohya` or `comfyui`.  heights: outputs of every layer of the network."""
    if layout in FUSED:
        return fused(layout, factors, scales, heights)
    tensors = {f"transformer.{name}{'.weight' * name.endswith(WEIGHTS)}": value for name, value in factors.items()}
    return tensors | {f"transformer.{path}.alpha": alpha for path, alpha in alphas(factors, scales)}


def alphas(factors: Factors, scales: Scales) -> list[tuple[str, mx.array]]:
    """The scale of a layer times its rank, where the scale is not 1."""
    ranks = {path: factors.get(f"{path}.lora_A", factors.get(f"{path}.lokr_w2_b")) for path in scales}
    return [
        (path, mx.array(scale * ranks[path].shape[0]))  # type: ignore[union-attr]
        for path, scale in scales.items()
        if scale != 1
    ]


def fused(layout: str, factors: Factors, scales: Scales, heights: Mapping[str, int]) -> Factors:
    prefix, dotted, down, up = FUSED[layout]
    tensors = {}
    for theirs, rule in numbered(BFL, blocks_in(scales)).items():
        present = [path for path in rule.ours if path in scales]
        if not present:
            continue
        name = prefix + (theirs if dotted else theirs.replace(".", "_"))
        first = mx.concatenate([factors[f"{path}.lora_A"] for path in present])
        columns = []
        for path in present:
            own = scales[path] * factors[f"{path}.lora_B"]
            columns.append(
                mx.concatenate([own if other == path else zeros(heights[other], own) for other in rule.ours])
            )
        tensors[f"{name}.{down}"], tensors[f"{name}.{up}"] = first, mx.concatenate(columns, axis=1)
        tensors[f"{name}.alpha"] = mx.array(float(first.shape[0]))
    return tensors


def zeros(height: int, like: mx.array) -> mx.array:
    return mx.zeros((height, like.shape[1]))


def by_our_names(tensors: Mapping[str, mx.array], like: Factors) -> Factors:
    """The factors in a checkpoint's file.  Raises UsageError where layers or shapes are not those of `like`."""
    found = {}
    for name, own in like.items():
        value = tensors.get(f"transformer.{old_name(name)}")
        if value is None or value.shape != own.shape:
            shape = "nothing" if value is None else str(value.shape)
            problem = f"`{name}` should be {own.shape}, and the checkpoint has {shape}"
            raise UsageError(problem, "keep `lora_layers` as it was", "resume")
        found[name] = value
    return found


def of_checkpoint(spec: Spec, tensors: Mapping[str, mx.array]) -> Factors:
    """The factors in a checkpoint's file, without the model's weights."""
    return by_our_names(tensors, factors_of(attach(FluxTransformer(sizes_of(spec.model)), targets_of(spec), 0)))


def in_layouts(spec: Spec, factors: Factors) -> dict[str, Factors]:
    """The tensors of each layout that `save.export` names."""
    scales = {target.path: target.scale for target in targets_of(spec)}
    linears = FluxTransformer(sizes_of(spec.model)).named_modules()
    heights = {name: output_width(each) for name, each in linears if isinstance(each, nn.Linear)}
    dtype = PRECISION[spec.save.export_dtype]
    found = {layout: in_layout(layout, factors, scales, heights) for layout in spec.save.export}
    return {layout: {name: each.astype(dtype) for name, each in tensors.items()} for layout, tensors in found.items()}
