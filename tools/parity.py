"""Run every case of an oracle folder through mflux and compare with diffusers' numbers.

    python tools/parity.py ../shared/oracle/core --out /tmp/out [--only 'fill*']

Writes OUT/<case>.safetensors with the tensors named as the case expects, prints one line a case with the largest
difference against its tolerance, and ends with `N passed, N failed, N not supported yet`.  Exit status 0 if nothing
failed.  It knows computations (`pipeline` in case.json), never cases.
"""

import argparse
import fnmatch
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mflux import Config, Flux1, MfluxError  # first: it loads the BLAS before mlx

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save_file

from mflux.conditions import (
    Control,
    ControlNet,
    Fill,
    ImageToImage,
    Inpaint,
    IPAdapter,
    Kontext,
    MaskedEdit,
    Redux,
)
from mflux.conditions.redux import siglip_pixels
from mflux.engine.latents import grid_ids, pack_latents
from mflux.engine.network import Branch, Network
from mflux.engine.schedule import read_schedule, strength_start
from mflux.engine.slots import Condition, Inputs
from mflux.engine.tokens import open_clip, open_t5
from mflux.images.canny import canny
from mflux.images.masks import PAINT_FROM
from mflux.images.picture import from_pixels, open_grey, open_picture, to_pixels
from mflux.images.sizes import floor_to_cell, of_area, preferred
from mflux.models.lora import Factors, TrainedLinear
from mflux.models.transformer import rope_table
from mflux.training.adapters import attach as attach_trained
from mflux.training.adapters import factors_of
from mflux.training.loss import (
    CHECKPOINTED,
    clipped,
    put_factors,
    sample_losses,
    shares,
    tree_sum,
    value_and_gradients,
)
from mflux.training.optimizer import Updates
from mflux.training.spec import Optimizer, Target
from mflux.weights.catalog import MEGAPIXEL
from mflux.weights.files import read_header, read_tensor
from mflux.conditions.depth import normalised
from mflux.conditions.ip_adapter import clip_pixels
from mflux.models.depth_pro import DepthPro, resize_bilinear
from mflux.weights.kinds import read_config
from mflux.weights.load import check, load_network
from mflux.weights.load import fill as fill_network
from mflux.weights.lora_files import ADAPTABLE, attach, read_lora
from mflux.weights.resolve import SIDE_PARTS, resolve

Tensors = dict[str, Any]
DIFFUSERS_SIDE, DIFFUSERS_TEXT = 1024, 512
GREY_WEIGHTS, GREY_SCALE = np.array([9798, 19235, 3735]), 1 << 15  # cv2.COLOR_RGB2GRAY of 8-bit pixels
ENCODED = ("input_ids", "last_hidden_state", "pooled")
MANDATORY = {
    "transformer": ("sample",),
    "checkpoint": ("velocity",),
    "lora": ("velocity",),
    "lora-text": ("pooled_prompt_embeds", "clip_last_hidden_state", "prompt_embeds"),
    "clip": ENCODED,
    "t5": ENCODED,
    "vae-encode": ("latents", "mean", "logvar"),
    "vae-decode": ("pixels", "image"),
    "text-to-image": ("latents", "image"),
    "true-cfg": ("latents", "image"),
    "image-to-image": ("latents", "image"),
    "inpaint": ("latents", "image"),
    "fill": ("latents", "image"),
    "depth-pro": ("canonical_inverse_depth.every4", "field_of_view", "focal_length", "depth", "normalised"),
    "control": ("latents", "image"),
    "control-image-to-image": ("latents", "image"),
    "controlnet": ("latents", "image"),
    "ip-adapter": ("latents", "image"),
    "controlnet-image-to-image": ("latents", "image"),
    "controlnet-inpaint": ("latents", "image"),
    "kontext": ("latents", "image"),
    "kontext-inpaint": ("latents", "image"),
    "redux": ("latents", "image"),
    "siglip": ("last_hidden_state", "pixel_values"),
}


@dataclass(frozen=True)
class Case:
    """One folder of `cases/`."""

    oracle: Path
    folder: Path

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text(encoding="utf-8"))

    @property
    def args(self) -> dict[str, Any]:
        return self.spec["args"]

    def model(self, name: str | None = None) -> Path:
        return self.oracle / "models" / (name or self.spec["model"])

    def path(self, name: str) -> Path:
        return self.folder / self.spec["inputs"][name]

    def paths(self, name: str) -> list[Path]:
        """The files of an input that may be a list."""
        names = self.spec["inputs"][name]
        return [self.folder / each for each in ([names] if isinstance(names, str) else names)]

    def tensor(self, name: str) -> mx.array | None:
        """A tensor input; None where the case has none of this name."""
        return mx.array(load_file(self.path(name))[name]) if name in self.spec["inputs"] else None

    def needed(self, name: str) -> mx.array:
        value = self.tensor(name)
        assert value is not None, f"{self.folder.name} has no input {name}"
        return value


def tokenizer(case: Case) -> Tensors:
    opened = (open_t5 if case.args["tokenizer"] == "tokenizer_2" else open_clip)(case.model() / case.args["tokenizer"])
    return {"input_ids": opened.ids(case.args["prompts"], case.args["max_length"])}


def clip(case: Case) -> Tensors:
    encoder = load_network("text_encoder", case.model() / "text_encoder")
    ids = case.tensor("input_ids")
    if ids is None:
        length = encoder.config.max_position_embeddings
        ids = mx.array(open_clip(case.model() / "tokenizer").ids(case.args["prompts"], length))
    states, pooled = encoder(ids)
    return {"input_ids": ids, "last_hidden_state": states, "pooled": pooled}


def t5(case: Case) -> Tensors:
    ids = open_t5(case.model() / "tokenizer_2").ids(case.args["prompts"], case.args.get("max_sequence_length", 512))
    states = np.array(load_network("text_encoder_2", case.model() / "text_encoder_2")(mx.array(ids)))
    keep = case.args.get("keep_tokens")
    return {"input_ids": ids, "last_hidden_state": states if keep is None else states[:, keep]}


def vae_encode(case: Case) -> Tensors:
    vae, pixels = load_network("vae", case.model() / "vae"), case.needed("pixels")
    tile = vae.config.sample_size * case.args.get("tiling", False)
    mean, logvar = vae.posterior(pixels, tile)
    out = {"mean": mean, "logvar": logvar, "latents": vae.encode(pixels, tile=tile)}
    noise = case.tensor("vae_noise")
    return out if noise is None else out | {"sampled_latents": vae.encode(pixels, noise, tile)}


def vae_decode(case: Case) -> Tensors:
    vae = load_network("vae", case.model() / "vae")
    pixels = np.array(vae.decode(case.needed("latents"), vae.config.sample_size * case.args.get("tiling", False)))
    return {"pixels": pixels, "image": from_pixels(pixels)}


def transformer(case: Case) -> Tensors:
    return {"sample": velocity(case, load_network("transformer", case.model() / "transformer"))}


def velocity(case: Case, network: Any) -> mx.array:
    """One call of a transformer with the case's inputs."""
    table = network.modulate(case.needed("timestep"), case.tensor("guidance"), case.needed("pooled_projections"))
    ids = np.concatenate([np.array(case.needed("txt_ids")), np.array(case.needed("img_ids"))])
    rope = rope_table(ids, network.config.axes_dims_rope)
    return network(case.needed("hidden_states"), case.needed("encoder_hidden_states"), table, rope)


def adapted(case: Case) -> dict[str, Any]:
    """The networks of a model with the case's LoRA files beside them."""
    names = [part for part in ADAPTABLE if (case.model() / part).is_dir()]
    parts = {part: load_network(part, case.model() / part) for part in names}
    given = case.spec["inputs"]["lora"]
    paths = [case.folder / name for name in ([given] if isinstance(given, str) else given)]
    files = [read_lora(path, scale, parts) for path, scale in zip(paths, case.args["lora_scales"], strict=True)]
    attach(files, parts)
    return parts


def checkpoint(case: Case) -> Tensors:
    sizes = read_config("transformer", case.model() / "transformer")
    sizes = replace(sizes, guidance_embeds=case.args.get("guidance_embeds", sizes.guidance_embeds))
    network = load_network("transformer", case.path("checkpoint"), mx.float32, config=sizes)
    return {"velocity": velocity(case, network)}


def gguf_tensors(case: Case) -> Tensors:
    return {name: read_tensor(info) for name, info in read_header(case.path("tensors")).items()}


def lora(case: Case) -> Tensors:
    return {"velocity": velocity(case, adapted(case)["transformer"])}


def lora_text(case: Case) -> Tensors:
    parts = adapted(case)
    states, pooled = parts["text_encoder"](case.needed("clip_input_ids"))
    long = parts["text_encoder_2"](case.needed("t5_input_ids"))
    return {"pooled_prompt_embeds": pooled, "clip_last_hidden_state": states, "prompt_embeds": long}


def schedule(case: Case) -> Tensors:
    out: Tensors = {}
    for index, row in enumerate(case.args["table"]):
        chosen = read_schedule(case.model(row["model"]) / "scheduler")
        tokens = floor_to_cell(row["height"]) * floor_to_cell(row["width"]) // 256
        own = row.get("sigmas")
        steps = len(own) if own else row["num_inference_steps"]
        sigmas = chosen.sigmas(steps, tokens, own)[strength_start(steps, row.get("strength", 1.0)) :]
        out[f"mu.{index}"] = np.float32(chosen.mu(tokens))
        out[f"sigmas.{index}"] = np.float32(sigmas)
        out[f"timesteps.{index}"] = np.float32(sigmas[:-1]) * np.float32(1000)
    return out


def pack(case: Case) -> Tensors:
    latents = case.needed("latents")
    height, width = latents.shape[2] * 8, latents.shape[3] * 8
    return {"packed": pack_latents(latents), "image_ids": grid_ids(height, width).astype(np.float32)}


def preprocess(case: Case) -> Tensors:
    height, width = floor_to_cell(case.args["height"]), floor_to_cell(case.args["width"])
    picture = open_picture(case.path("image"), "image").resized(height, width)
    mask = np.asarray(open_grey(case.path("mask"), "mask").resize((width, height), 1)) >= PAINT_FROM
    return {"pixels": to_pixels(picture.rgb), "mask": mask[None, None].astype(np.float32)}


def text_to_image(case: Case) -> Tensors:
    return draw(case, [], {})


def image_to_image(case: Case) -> Tensors:
    strength = case.args.get("strength", 0.6)
    return draw(case, [ImageToImage(case.path("image"), strength=strength)], {"guidance": 7.0})


def inpaint(case: Case) -> Tensors:
    return draw(case, [repaint(case)], {"guidance": 7.0})


def repaint(case: Case) -> Inpaint:
    return Inpaint(
        case.path("image"),
        case.path("mask"),
        strength=case.args.get("strength", 0.6),
        composite=False,
        latent_mask="nearest",
        crop=case.args.get("padding_mask_crop"),
    )


def fill(case: Case) -> Tensors:
    conditions: list[Condition] = [Fill(case.path("image"), case.path("mask"), composite=False)]
    if "strength" in case.args:
        conditions.insert(0, ImageToImage(case.path("image"), strength=case.args["strength"]))
    return draw(case, conditions, {"guidance": 30.0, "num_inference_steps": 50})


def canny_edges(case: Case) -> Tensors:
    rgb, (low, high) = open_picture(case.path("image"), "image").rgb, (case.args["low"], case.args["high"])
    grey = ((rgb.astype(np.int64) @ GREY_WEIGHTS + GREY_SCALE // 2) // GREY_SCALE).astype(np.uint8)
    found = {"grey": grey, "edges": canny(rgb, low, high), "edges_grey": canny(grey, low, high)}
    return found | {"edges_50_200": canny(rgb, 50, 200), "edges_grey_50_200": canny(grey, 50, 200)}


def depth_pro(case: Case) -> Tensors:
    network = DepthPro(read_config("depth_pro", case.model()), field_of_view=True)
    network = fill_network(network, check("depth_pro", case.model(), network), None, None)
    pixels, size = mx.array(to_pixels(open_picture(case.path("image"), "image").rgb)), network.config.image_size
    found, (height, width) = network(pixels), case.args["target_size"]
    assert found.field_of_view is not None
    focal = focal_length(found.field_of_view, width)
    inverse = metric_inverse(found.canonical, width, focal, height)
    return {
        "canonical_inverse_depth.every4": found.canonical[None, ::4, ::4],
        "pixel_values.every8": resize_bilinear(pixels.transpose(0, 2, 3, 1), size, size).transpose(0, 3, 1, 2)[
            ..., ::8, ::8
        ],
        "field_of_view": found.field_of_view,
        "focal_length": focal,
        "depth": 1 / inverse,
        "normalised": normalised(np.array(inverse)),
    }


def depth_pro_postprocess(case: Case) -> Tensors:
    canonical, (height, width) = case.needed("canonical_inverse_depth"), case.args["target_size"]
    focal = focal_length(case.needed("field_of_view"), width)
    pairs = zip(canonical, focal, strict=True)
    own = mx.array([1.0]) * width  # a focal length of the width changes nothing
    return {
        "focal_length": focal,
        "inverse_depth": mx.stack([metric_inverse(each, width, length, height) for each, length in pairs]),
        "inverse_depth_without_fov": mx.stack([metric_inverse(each, width, own, height) for each in canonical]),
    }


def focal_length(field_of_view: mx.array, width: int) -> mx.array:
    """In px of a picture of this width.  field_of_view: degrees."""
    return 0.5 * width / mx.tan(mx.radians(field_of_view) / 2)


def metric_inverse(canonical: mx.array, width: int, focal: mx.array, height: int) -> mx.array:
    """Inverse depth in 1/m, (height, width), clipped as in transformers."""
    inverse = resize_bilinear((canonical * (width / focal))[None, :, :, None], height, width)[0, :, :, 0]
    return mx.clip(inverse, 1e-4, 1e4)


def control(case: Case) -> Tensors:
    return draw(case, [Control(case.path("control_image"))], {})


def control_image_to_image(case: Case) -> Tensors:
    start = ImageToImage(case.path("image"), strength=case.args.get("strength", 0.6))
    return draw(case, [start, Control(case.path("control_image"))], {"guidance": 7.0})


def controlnets(case: Case) -> list[Condition]:
    """The ControlNets of a case; one of them with several pictures is that one several times, as in diffusers."""
    args, pictures = case.args, case.paths("control_image")
    names = [args["controlnet"]] if isinstance(args["controlnet"], str) else args["controlnet"]
    defaults = {"controlnet_conditioning_scale": 1.0, "control_guidance_start": 0.0, "control_guidance_end": 1.0}

    def value(name: str, index: int) -> Any:
        return each(args.get(name, defaults.get(name)), index)

    return [
        ControlNet(
            picture,
            str(case.model(names[min(index, len(names) - 1)])),
            strength=value("controlnet_conditioning_scale", index),
            mode=value("control_mode", index),
            start=value("control_guidance_start", index),
            end=value("control_guidance_end", index),
        )
        for index, picture in enumerate(pictures)
    ]


def controlnet(case: Case) -> Tensors:
    return draw(case, controlnets(case), {"guidance": 7.0})


def controlnet_image_to_image(case: Case) -> Tensors:
    start = ImageToImage(case.path("image"), strength=case.args.get("strength", 0.6))
    return draw(case, [start, *controlnets(case)], {"guidance": 7.0})


def controlnet_inpaint(case: Case) -> Tensors:
    return draw(case, [repaint(case), *controlnets(case)], {"guidance": 7.0})


def controlnet_forward(case: Case) -> Tensors:
    network = load_network("controlnet", case.model())
    table = network.modulate(case.needed("timestep"), case.tensor("guidance"), case.needed("pooled_projections"))
    mode = case.args.get("control_mode")
    texts = [np.zeros((1, 3))] * (mode is not None) + [np.array(case.needed("txt_ids"))]
    rope = rope_table(np.concatenate([*texts, np.array(case.needed("img_ids"))]), network.config.axes_dims_rope)
    tokens = (case.needed(name) for name in ("hidden_states", "controlnet_cond", "encoder_hidden_states"))
    found = network(*tokens, table, rope, mode)
    scale = case.args.get("conditioning_scale", 1.0)
    joint = {f"block.{index}": scale * residual for index, residual in enumerate(found.joint)}
    return joint | {f"single_block.{index}": scale * residual for index, residual in enumerate(found.single)}


def clip_vision(case: Case) -> Tensors:
    network = load_network("clip_vision", case.model())
    pixels = clip_pixels(open_picture(case.path("image"), "image").rgb, network.config.image_size)
    return {"pixel_values": pixels, "image_embeds": network(mx.array(pixels))}


def ip_adapter(case: Case) -> Tensors:
    adapter = IPAdapter(
        case.path("ip_adapter"),
        embeds=case.needed("ip_embeds"),
        negative_embeds=case.needed("negative_ip_embeds"),
        scale=case.args.get("ip_adapter_scale", 1.0),
    )
    return draw(case, [adapter], {})


def kontext(case: Case) -> Tensors:
    images = [case.path("image")] if "image" in case.spec["inputs"] else []
    area = case.args.get("max_area", DIFFUSERS_SIDE**2)
    return draw(case, [Kontext(images, max_area=area, fit=reference_fit(case))], {})


def kontext_inpaint(case: Case) -> Tensors:
    """The drawn picture has the size that a reference of the source's size would get."""
    fit, source = reference_fit(case), open_picture(case.path("image"), "image")
    own = floor_to_cell(source.height), floor_to_cell(source.width)
    height, width = own if fit == "own" else preferred(MEGAPIXEL, source.height, source.width)
    condition = MaskedEdit(
        case.path("image"),
        case.path("mask"),
        reference=case.path("reference") if "reference" in case.spec["inputs"] else None,
        strength=case.args.get("strength", 1.0),
        composite="latent",
        latent_mask="nearest",
        fit=fit,
    )
    return draw(case, [condition], {}, {"height": height, "width": width})


def redux(case: Case) -> Tensors:
    """The prior's sums of texts, which have no other name here, take the place of an empty prompt's."""
    args, given = case.args, case.spec["inputs"]["image"]
    paths = [case.folder / name for name in ([given] if isinstance(given, str) else given)]
    count, length = len(paths), args.get("max_sequence_length", DIFFUSERS_TEXT)

    def listed(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value] * count

    strengths, pooled_scales = (listed(args.get(f"{name}embeds_scale", 1.0)) for name in ("prompt_", "pooled_prompt_"))
    source, extra = resolve(str(case.model())), case.model(args["redux"])
    flux = Flux1(replace(source, folders=source.folders | {part: extra / part for part in SIDE_PARTS}))
    texts = [flux.encode_prompt(prompt or "", None, length) for prompt in listed(args["prompt"])]
    states = sum(scale * text[0] for scale, text in zip(strengths, texts, strict=True)) / sum(strengths)
    pooled = sum(scale * text[1] for scale, text in zip(pooled_scales, texts, strict=True)) / count
    seen = 0.0 if args["prompt"] is None else 1.0  # a prior without text encoders gives zeros
    flux._prompts["", "", length] = (seen * states, seen * pooled)
    return draw(case, [Redux(paths, strengths, combine="sum")], {}, {"prompt": "", "max_sequence_length": length}, flux)


def siglip(case: Case) -> Tensors:
    encoder = load_network("image_encoder", case.model())
    pixels = case.tensor("pixel_values")
    if pixels is None:
        pixels = mx.array(siglip_pixels(case.path("image"), case.args["size"]))
    return {"pixel_values": pixels, "last_hidden_state": encoder(pixels)}


def training_loss(case: Case) -> Tensors:
    """Loss and velocity of a batch; where the case has a LoRA, its gradients too."""
    network, layers = trained(case)
    prior = case.args.get("prior_weight")
    noise, x0, sigma = (case.needed(name) for name in ("noise", "x0", "sigma"))
    branch = Branch(case.needed("encoder_hidden_states"), case.needed("pooled_projections"), guidance_of(case))
    losses, velocity = sample_losses(network, branch, x0, noise, sigma)
    count = x0.shape[0]
    weights = list(
        shares([1.0] * count, [prior is not None and slot >= count // 2 for slot in range(count)], prior or 0)
    )
    out = {"sample_losses": losses, "loss": (losses * mx.array(weights)).sum()[None], "velocity": velocity}
    if layers:

        def loss() -> mx.array:
            return (sample_losses(network, branch, x0, noise, sigma, hooks=CHECKPOINTED)[0] * mx.array(weights)).sum()

        _, gradients = value_and_gradients(layers, factors_of(layers), loss)
        out |= {f"grad.transformer.{name}.weight": value for name, value in gradients.items()}
    return out


def training_trajectory(case: Case) -> Tensors:
    """Some AdamW steps from the case's noise, noise levels and order."""
    network, layers = trained(case)
    args, factors = case.args, factors_of(layers)
    optimizer = Updates(
        Optimizer("AdamW", args["learning_rate"], tuple(args["betas"]), args["eps"], args["weight_decay"]), factors
    )
    x0, order, noise, sigma = (case.needed(name) for name in ("x0", "order", "noise", "sigma"))
    losses, norms = [], []
    for step in range(args["steps"]):

        def gradients_of(slot: int, step: int = step, factors: Factors = factors) -> tuple[mx.array, Factors]:
            row, drawn = order[step, slot].item(), (noise[step, slot][None], sigma[step, slot][None])
            chosen = slice(row, row + 1)
            texts = (case.needed(name)[chosen] for name in ("encoder_hidden_states", "pooled_projections"))
            branch = Branch(*texts, guidance_of(case))

            def loss() -> mx.array:
                return sample_losses(network, branch, x0[chosen], *drawn)[0].sum() / args["batch"]

            return value_and_gradients(layers, factors, loss)

        total, gradients = tree_sum(range(order.shape[1]), gradients_of)
        gradients, norm = clipped(gradients, args["clip"])
        factors = optimizer.step(factors, gradients)
        put_factors(layers, factors)
        losses.append(total)
        norms.append(norm)
    final = {f"final.transformer.{name}.weight": value for name, value in factors.items()}
    return {"losses": mx.stack(losses), "gradient_norms": mx.stack(norms), **final}


def trained(case: Case) -> tuple[Network, dict[str, TrainedLinear]]:
    """The case's model with what its kind adds to the inputs, and its LoRA as layers that learn."""
    transformer = load_network("transformer", case.model() / "transformer")
    layers = {}
    if "lora" in case.spec["inputs"]:
        targets = [
            Target(path, case.args["rank"], case.args["lora_alpha"] / case.args["rank"]) for path in case.args["layers"]
        ]
        layers = attach_trained(transformer, targets, 0)
        given = load_file(case.folder / case.spec["inputs"]["lora"][0])
        put_factors(layers, {name: mx.array(given[f"transformer.{name}.weight"]) for name in factors_of(layers)})
    height, width = (16 * (int(side) + 1) for side in np.array(case.needed("img_ids")).max(axis=0)[1:])
    channels, context = case.tensor("condition"), case.tensor("context")
    tokens = [] if context is None else [(context, np.array(case.needed("context_ids")))]
    return Network(transformer, height, width, Inputs(channels, tokens)), layers


def guidance_of(case: Case) -> float:
    """The guidance of a batch, which is the same for all its samples."""
    (value,) = set(np.array(case.needed("guidance")).tolist())
    return value


def adamw(case: Case) -> Tensors:
    """Two parameters after 1, 10 and 200 updates."""
    args, names = case.args, ("p1", "p2")
    given = {name: case.needed(name) for name in names}
    optimizer = Updates(Optimizer("AdamW", args["lr"], tuple(args["betas"]), args["eps"], args["weight_decay"]), given)
    rates, out = case.tensor("learning_rates"), {}
    for step in range(args["steps"]):
        if "hessian" in case.spec["inputs"]:
            gradients = {
                "p1": case.needed("hessian") @ (given["p1"] - case.needed("target1")),
                "p2": case.needed("curvature") * (given["p2"] - case.needed("target2")),
            }
        else:
            gradients = {"p1": case.needed("g1")[step], "p2": case.needed("g2")[step]}
        gradients, _ = clipped(gradients, args.get("clip"))
        given = optimizer.step(given, gradients, None if rates is None else rates[step].item())
        if step + 1 in (1, 10, 200):
            out |= {f"{name}_{step + 1}": given[name] for name in names}
    return out


def reference_fit(case: Case) -> str:
    return "preferred" if case.args.get("_auto_resize", True) else "own"


def kontext_sizes(case: Case) -> Tensors:
    return {
        "output_sizes": np.int32([of_area(area, height, width) for height, width, area in case.args["outputs"]]),
        "reference_sizes": np.int32([preferred(MEGAPIXEL, *size) for size in case.args["references"]]),
    }


def draw(
    case: Case,
    conditions: list[Condition],
    defaults: dict[str, Any],
    fixed: dict[str, Any] | None = None,
    flux: Flux1 | None = None,
) -> Tensors:
    """A whole pipeline: diffusers' arguments in, latents and pictures out."""
    args = {"height": DIFFUSERS_SIDE, "width": DIFFUSERS_SIDE, "num_inference_steps": 28, "guidance": 3.5}
    args |= {"max_sequence_length": DIFFUSERS_TEXT, **defaults, **case.args, **(fixed or {})}
    negative = args.get("negative_prompt") if args.get("true_cfg_scale", 1.0) > 1 else None
    names = ("height", "width", "num_inference_steps", "guidance", "max_sequence_length", "sigmas")
    config = Config(
        **{name: args[name] for name in names if args.get(name) is not None},
        true_cfg=1.0 if negative is None else args["true_cfg_scale"],
    )
    flux = flux or Flux1(str(case.model()))
    if args.get("posterior") == "sample":
        roles = {"image": "vae_noise", "masked": "masked_vae_noise", "control": "control_vae_noise"}
        roles = {role: case.tensor(name) for role, name in roles.items()}
        flux.posterior_noise = {role: noise for role, noise in roles.items() if noise is not None}
    noise = case.tensor("noise") if "noise" in case.spec["inputs"] else case.tensor("latents")
    prompts = args["prompt"] if isinstance(args["prompt"], list) else [args["prompt"]]
    count, images = args.get("num_images_per_prompt", 1), []
    for index, prompt in enumerate(prompts):
        images += flux.generate_image(
            seed=list(range(count)),
            prompt=prompt,
            config=config,
            prompt_2=each(args.get("prompt_2"), index),
            negative_prompt=each(negative, index),
            negative_prompt_2=each(args.get("negative_prompt_2"), index),
            conditions=conditions,
            latents=noise[index * count : (index + 1) * count],
        )
    latents = np.stack([np.array(image.artifacts["latents"]) for image in images])
    return {"latents": latents, "image": np.stack([np.asarray(image.image) for image in images])}


def each(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) else value


RUNNERS: dict[str, Callable[[Case], Tensors]] = {
    "tokenizer": tokenizer,
    "clip": clip,
    "t5": t5,
    "vae-encode": vae_encode,
    "vae-decode": vae_decode,
    "transformer": transformer,
    "checkpoint": checkpoint,
    "gguf-tensors": gguf_tensors,
    "lora": lora,
    "lora-refused": lora,
    "lora-text": lora_text,
    "schedule": schedule,
    "pack": pack,
    "preprocess": preprocess,
    "text-to-image": text_to_image,
    "true-cfg": text_to_image,
    "image-to-image": image_to_image,
    "inpaint": inpaint,
    "fill": fill,
    "canny": canny_edges,
    "depth-pro": depth_pro,
    "depth-pro-postprocess": depth_pro_postprocess,
    "control": control,
    "control-image-to-image": control_image_to_image,
    "controlnet": controlnet,
    "controlnet-image-to-image": controlnet_image_to_image,
    "controlnet-inpaint": controlnet_inpaint,
    "controlnet-forward": controlnet_forward,
    "clip-vision": clip_vision,
    "ip-adapter": ip_adapter,
    "kontext": kontext,
    "kontext-inpaint": kontext_inpaint,
    "kontext-sizes": kontext_sizes,
    "redux": redux,
    "siglip": siglip,
    "train-loss": training_loss,
    "train-gradients": training_loss,
    "train-trajectory": training_trajectory,
    "adamw": adamw,
}


def run(case: Case) -> dict[str, np.ndarray]:
    """The case's tensors; `refused` where its files are refused, as they should be."""
    try:
        out = RUNNERS[case.spec["pipeline"]](case)
    except MfluxError as error:
        print(f"  {case.folder.name}: {error.problem}", file=sys.stderr)
        return {"refused": np.ones(1, np.float32)}
    return {name: np.ascontiguousarray(np.array(value)) for name, value in out.items() if name in case.spec["expected"]}


def compare(case: Case, out: dict[str, np.ndarray]) -> tuple[bool, str]:
    """Whether every mandatory tensor is there and within its tolerance, and the worst of them in words."""
    if case.spec.get("refuse") or "refused" in out:
        return bool(case.spec.get("refuse")) and "refused" in out, "refused" if "refused" in out else "not refused"
    wanted = load_file(case.folder / "expected.safetensors")
    mandatory = set(MANDATORY.get(case.spec["pipeline"], wanted)) & set(wanted)
    absent = mandatory - set(out)
    if absent:
        return False, f"absent: {', '.join(sorted(absent))}"
    worst, words = -1.0, ""
    for name, value in out.items():
        allowed = case.spec["expected"][name]
        if value.shape != wanted[name].shape:
            return False, f"{name} has shape {value.shape}, expected {wanted[name].shape}"
        difference = float(np.abs(value.astype(np.float64) - wanted[name].astype(np.float64)).max(initial=0))
        share = difference / allowed if allowed else difference * np.inf if difference else 0.0
        if not share <= worst:  # a nan is the worst
            worst, words = share, f"{name} {difference:.3g} (allowed {allowed:g})"
    return worst <= 1, words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="*", help="cases whose name matches this pattern")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mflux").setLevel(logging.ERROR)
    counts = {"passed": 0, "failed": 0, "not supported yet": 0}
    for folder in sorted((options.oracle / "cases").iterdir()):
        if not fnmatch.fnmatch(folder.name, options.only):
            continue
        case = Case(options.oracle, folder)
        if case.spec["pipeline"] not in RUNNERS:
            verdict, words = "not supported yet", case.spec["pipeline"]
        else:
            out = run(case)
            save_file(out, options.out / f"{folder.name}.safetensors")
            good, words = compare(case, out)
            verdict = "passed" if good else "failed"
        counts[verdict] += 1
        print(f"{verdict:18s} {folder.name:36s} {words}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
