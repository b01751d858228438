"""Flux1: the model a Python program holds.  A request becomes a plan, then arrays, then pictures."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux import runtime
from mflux.engine.denoise import integrate
from mflux.engine.latents import LATENT_CHANNELS, TOKEN_CHANNELS, fit_colours, pack_latents, unpack_latents
from mflux.engine.latents import noise as start_noise_of
from mflux.engine.network import GuidedVelocity, Network
from mflux.engine.parts import TEXT_ENCODERS, TOKENIZERS, LoadOptions, Parts
from mflux.engine.picture import GeneratedImage
from mflux.engine.plan import batch_that_fits, check_memory, forecast, gigabytes, make_plan
from mflux.engine.request import DEFAULTS, Config, Request, check_choice, check_number, check_tile
from mflux.engine.slots import (
    Branch,
    EncodedText,
    Hooks,
    Inputs,
    Plan,
    Prepared,
    Run,
    Stage,
    artifacts_of,
    condition_class,
    merge,
)
from mflux.engine.tokens import PromptTokenizer
from mflux.errors import ModelError, UsageError
from mflux.images.picture import from_pixels
from mflux.ranks import Ranks, launched
from mflux.weights.catalog import BITS
from mflux.weights.files import Kept, home
from mflux.weights.lora_files import find_lora
from mflux.weights.resolve import SIDE_PARTS, ModelSource, resolve

log = logging.getLogger("mflux")
MAX_LORA_SCALE = 100
PROMPTS_KEPT = 64  # encoded prompts, in memory and on disk
PROMPTS_ON_DISK_FROM = 2**30  # bytes of text encoders


class Progress(NamedTuple):
    """What `on_step` receives after each step: which seeds, step `done` of `total`, and the latents (B, S, 64)."""

    seeds: tuple[int, ...]
    done: int
    total: int
    sigma: float
    latents: mx.array


class Flux1:
    """FLUX.1: text encoders, transformer, autoencoder.  Networks are loaded when they are first needed."""

    def __init__(
        self,
        model_config: str | ModelSource,
        quantize: int | None = None,
        lora_paths: Sequence[str] | None = None,
        lora_scales: Sequence[float] | None = None,
        base_model: str | None = None,
        task: str = "base",
        vae_tiling: bool = False,
        force: bool = False,
        low_ram: bool = False,
        allow_partial_lora: bool = False,
        bake_lora: bool = False,
        split_image: bool = False,
        vae_tile_size: int | None = None,
    ):
        """model_config: alias, hub id or folder (or a ModelSource); other arguments as in `from_name`, and:

        task: whose row a family's bare name means.  vae_tiling: encode and decode in tiles; vae_tile_size: of so many
        px, a multiple of 16 from 128 on, in place of the autoencoder's own size.  force: draw even if the memory
        forecast says no.  low_ram: drop every part after its use.  allow_partial_lora: leave out what a LoRA has for
        layers that this model lacks.  bake_lora: put LoRAs into the weights (quantized ones lose a little).
        split_image: every process that `mlx.launch` started takes its share of the transformer's work; each of them
        calls the same methods and gets the same pictures.
        """
        if quantize is not None:
            check_choice("quantize", quantize, BITS)
        check_tile(vae_tile_size)
        self.loras = paired(lora_paths or (), lora_scales or ())
        found = model_config
        if not isinstance(found, ModelSource):
            found = resolve(str(found), task, base_model)
        options = LoadOptions(low_ram, allow_partial_lora, bake_lora, started_together() if split_image else None)
        self.parts = Parts(found, quantize, [(find_lora(path), scale) for path, scale in self.loras], options)
        self.quantize, self.base_model, self.force = quantize, base_model, force
        self.vae_tile = vae_tile_size or vae_tiling * self.parts.vae_config.sample_size
        # Normal noise for the posteriors by role (`image`, `masked`), for comparisons with diffusers, which samples
        # them; without it, and for every user, a picture's latents are its posterior's mode.
        self.posterior_noise: dict[str, mx.array] = {}
        self._prompts: dict[tuple[str, str, int], tuple[mx.array, mx.array]] = {}

    @classmethod
    def from_name(
        cls,
        model_name: str,
        quantize: int | None = None,
        lora_paths: Sequence[str] | None = None,
        lora_scales: Sequence[float] | None = None,
        base_model: str | None = None,
    ) -> "Flux1":
        """Open a model.  model_name: alias (`dev`, `schnell`, `tiny`, ...), hub id, or folder.

        quantize: 3, 4, 5, 6 or 8 bits.  lora_paths: files in any layout, kept beside the weights; lora_scales: one
        each, 1 if missing.  base_model: alias whose defaults a third-party model uses.
        Raises UsageError for an unknown name, ModelError for a model that is incomplete or cannot be downloaded.
        """
        return cls(model_name, quantize, lora_paths, lora_scales, base_model)

    def plan(self, seed: int | Sequence[int], prompt: str, config: Config = DEFAULTS, **rest: Any) -> Plan:
        """What `generate_image` would do with the same arguments; reads no weights.  Raises UsageError."""
        rest = {name: value for name, value in rest.items() if name not in ("latents", "on_step")}
        return self.planned(self._request(seed, prompt, config, **rest))

    def planned(self, request: Request) -> Plan:
        """The plan of a whole request for this model.  Raises UsageError."""
        return make_plan(request, self.parts, self.vae_tile, self.force)

    def generate_image(
        self,
        seed: int | Sequence[int],
        prompt: str,
        config: Config = DEFAULTS,
        *,
        prompt_2: str | None = None,
        negative_prompt: str | None = None,
        negative_prompt_2: str | None = None,
        conditions: Sequence[Any] = (),
        latents: mx.array | np.ndarray | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> Any:
        """Draw: a GeneratedImage for one seed, a list of them for a sequence of seeds.

        prompt_2: another text for T5 (CLIP gets `prompt`).  negative_prompt: used where config.true_cfg > 1.
        conditions: from `mflux.conditions`.  latents: start noise in place of the seeds', packed (B, H*W/256, 64) or
        not (B, 16, H/8, W/8).  on_step: called after each step with a Progress.  Raises MfluxError.
        """
        request = self._request(
            seed,
            prompt,
            config,
            prompt_2=prompt_2,
            negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2,
            conditions=conditions,
        )
        plan = self.planned(request)
        for note in plan.notes:
            log.warning(note)
        images = list(self.draw(plan, latents, on_step))
        return images if isinstance(seed, Sequence | np.ndarray) else images[0]

    def draw(
        self,
        plan: Plan,
        latents: mx.array | np.ndarray | None = None,
        on_step: Callable[[Progress], None] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[GeneratedImage]:
        """The pictures of a plan, one after another; each batch of seeds is denoised in one pass."""
        started = time.perf_counter()
        start_noise = None if latents is None else check_latents(latents, plan)
        seeds = plan.request.seeds
        size = min(batch_size or batch_that_fits(self.parts, plan), len(seeds))
        if not self.force:
            check_memory(plan, forecast(self.parts, plan, size))
        branches, prepared = self._prepare(plan)
        for first in range(0, len(seeds), size):
            group = seeds[first : first + size]
            noise = (
                start_noise_of(plan.request.config.noise, group, plan.height, plan.width)
                if start_noise is None
                else start_noise[first : first + size]
            )
            final, hooks = self._denoise(plan, group, noise, branches, prepared, on_step)
            if self.parts.options.low_ram or group[-1:] == seeds[-1:]:
                self.parts.release("transformer")
            decoded = self._decode(plan, final)
            seconds = (time.perf_counter() - started) / len(group)
            log.debug(f"seeds {group}: {seconds:.2f} s a picture; memory's peak {gigabytes(mx.get_peak_memory())}")
            for index, one in enumerate(group):
                pixels = decoded[index]
                made = {"latents": final[index], **artifacts_of(hooks, index, pixels)}
                yield self._picture(plan, one, pixels, made, prepared, seconds)
            started = time.perf_counter()

    def _request(self, seed: int | Sequence[int], prompt: str, config: Config, **rest: Any) -> Request:
        given: Any = seed if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str) else [seed]
        seeds = tuple(given)
        config, conditions = image_as_condition(config, tuple(rest.pop("conditions", ())))
        return Request(
            model=self.parts.source.name,
            prompt=prompt,
            seeds=seeds,
            config=config,
            quantize=self.quantize,
            base_model=self.base_model,
            loras=self.loras,
            conditions=conditions,
            **rest,
        )

    def _prepare(self, plan: Plan) -> tuple[tuple[Branch, ...], list[Prepared]]:
        """Encode the texts, let each condition make its arrays, and free what is not needed any more."""
        self.parts.set_precision(plan.request.config.precision)
        if self.parts.adapt(plan.loras):
            self._prompts.clear()  # they may have been encoded with another adapter
        if advice := runtime.blas_advice():
            log.warning(advice)
        branches = tuple(self._branches(plan))
        self.parts.release(*TEXT_ENCODERS)
        stage = self.stage(plan)
        prepared = [condition.prepare(stage) for condition in plan.request.conditions]
        mx.eval([[each.inputs.channels, each.inputs.tokens, each.inputs.text] for each in prepared])
        if plan.encodes:
            self.parts.release("vae")
        self.parts.release(*SIDE_PARTS, *plan.sides)  # one that stays is held by its condition's functions
        return branches, prepared

    def stage(self, plan: Plan) -> Stage:
        """What the conditions of a plan prepare with."""
        return Stage(
            plan,
            encode=lambda pixels, role: self._encode(pixels, role, plan.vae_tile),
            network=self.parts.get,
            text=lambda text: self._encoded(text, plan.text_tokens),
        )

    def _branches(self, plan: Plan) -> Iterator[Branch]:
        request = plan.request
        states, pooled = self.encode_prompt(plan.prompt, request.prompt_2, plan.text_tokens)
        yield Branch(states, pooled, plan.guidance)
        if plan.true_cfg > 1:
            negative = request.negative_prompt or ""
            states, pooled = self.encode_prompt(negative, request.negative_prompt_2, plan.text_tokens)
            yield Branch(states, pooled, plan.guidance)
        for text in plan.texts:
            self.encode_prompt(text, None, plan.text_tokens)

    def encode_prompt(self, prompt: str, prompt_2: str | None, text_tokens: int) -> tuple[mx.array, mx.array]:
        """T5 states (1, text_tokens, width) of prompt_2 (or prompt), and CLIP's pooled vector (1, P) of prompt."""
        second = prompt_2 or prompt
        key = (prompt, second, text_tokens)
        if key not in self._prompts:
            long, short = self.parts.t5_tokenizer, self.parts.clip_tokenizer
            if (count := long.count(second)) > text_tokens:
                log.warning(f"the prompt has {count} text tokens; the last {count - text_tokens} are not seen")

            def encoded() -> dict[str, mx.array]:
                clip, t5 = self.parts.get("text_encoder"), self.parts.get("text_encoder_2")
                clip_ids = known_ids(short, prompt, clip.config.max_position_embeddings, clip.config.vocab_size)
                t5_ids = known_ids(long, second, text_tokens, t5.config.vocab_size)
                return {"pooled": clip(clip_ids)[1], "states": t5(t5_ids)}

            found = self._kept_prompts().of(encoded, *key)
            self._prompts = dict([*self._prompts.items()][-PROMPTS_KEPT + 1 :])
            self._prompts[key] = (found["states"], found["pooled"])
        return self._prompts[key]

    def _kept_prompts(self) -> Kept:
        """Encoded prompts on disk, where the text encoders take long to load."""
        if sum(self.parts.weight_bytes(part, None) for part in TEXT_ENCODERS) < PROMPTS_ON_DISK_FROM:
            return Kept(None)
        return Kept(home() / "prompts", *self.parts.stamp(*TEXT_ENCODERS, *TOKENIZERS), most=PROMPTS_KEPT)

    def _encoded(self, text: str, text_tokens: int) -> EncodedText:
        own = min(self.parts.t5_tokenizer.count(text), text_tokens) - 1
        return EncodedText(*self.encode_prompt(text, None, text_tokens), own)

    def _encode(self, pixels: mx.array, role: str, tile: int) -> mx.array:
        return self.parts.get("vae").encode(pixels, self.posterior_noise.get(role), tile)

    def _denoise(
        self,
        plan: Plan,
        seeds: tuple[int, ...],
        noise: mx.array,
        branches: tuple[Branch, ...],
        prepared: list[Prepared],
        on_step: Callable[[Progress], None] | None,
    ) -> tuple[mx.array, Hooks]:
        """From noise to the final latents (B, S, 64)."""

        def latents_of(request: Request) -> mx.array:
            earlier = make_plan(request, self.parts, self.vae_tile, force=True)
            return self._denoise(earlier, seeds, noise, *self._prepare(earlier), None)[0]

        inputs = all_inputs(prepared)

        @cache
        def own_network() -> Network:
            return Network(self.parts.get("transformer"), *plan.seen, inputs)

        begun = noise
        run = Run(plan, noise, branches, inputs, latents_of, seeds, own_network, lambda: begun)
        hooks = merge([each.bind(run) for each in prepared])
        network = own_network()
        network.inputs = replace(inputs, tokens=[*hooks.tokens, *inputs.tokens])
        velocity = GuidedVelocity(network, branches, plan, hooks)
        if velocity.caches:
            hooks = replace(hooks, artifacts=[*hooks.artifacts, velocity.counts])
        if self.parts.options.low_ram:
            network.transformer.drop_modulation()
            runtime.free_memory()
        for done, step in enumerate(hooks.start or (), 1):
            begun = step.latents
            if on_step and done <= plan.start_steps:
                on_step(Progress(seeds, done, plan.total, step.at.sigma_next, begun))
        latents = begun
        for step in integrate(velocity, latents, plan.sigmas, plan.first, hooks.after_step, hooks.keep):
            latents = step.latents
            if on_step:
                done = plan.start_steps + step.at.index + 1 - plan.first
                on_step(Progress(seeds, done, plan.total, step.at.sigma_next, latents))
        if not mx.isfinite(latents).all():
            problem = "the model's numbers overflowed: its latents are not finite"
            raise ModelError(problem, "its weights are damaged, or `precision` is too small for them")
        return latents, hooks

    def decoded(self, latents: mx.array, plan: Plan) -> Image.Image:
        """The picture of one run's latents (1, S, 64), at any of its steps; the autoencoder works in tiles."""
        return Image.fromarray(
            self._decode(replace(plan, vae_tile=plan.vae_tile or self.parts.vae_config.sample_size), latents)[0]
        )

    def colours(self) -> np.ndarray:
        """A linear map (17, 3) from a latent cell's channels and 1 to its colour, for `preview`.  Loads the VAE."""
        found = fit_colours(lambda pixels: self._encode(mx.array(pixels), "preview", 0))
        self.parts.release("vae")
        return found

    def preview(self, latents: mx.array, plan: Plan, colours: np.ndarray) -> list[Image.Image]:
        """Small pictures of latents (B, S, 64), a pixel for each cell of 8 x 8 px.  No network runs."""
        grids = np.array(unpack_latents(latents, plan.height, plan.width).astype(mx.float32))
        pixels = np.einsum("bchw,cd->bdhw", grids, colours[:-1]) + colours[-1][:, None, None]
        return [Image.fromarray(each) for each in from_pixels(pixels)]

    def _decode(self, plan: Plan, latents: mx.array) -> np.ndarray:
        """(B, S, 64) -> (B, H, W, 3) uint8."""
        grid = unpack_latents(latents, plan.height, plan.width)
        pixels = np.array(self.parts.get("vae").decode(grid, plan.vae_tile).astype(mx.float32))
        if not np.isfinite(pixels).all():
            raise ModelError("the autoencoder's numbers are not finite", "its weights are damaged")
        return from_pixels(pixels)

    def _picture(
        self, plan: Plan, seed: int, pixels: np.ndarray, made: dict[str, Any], prepared: list[Prepared], seconds: float
    ) -> GeneratedImage:
        if any(each.keeps_canvas for each in prepared):
            made["full"] = Image.fromarray(pixels)
        for each in prepared:
            pixels = each.finish(pixels)
        request = replace(plan.request, seeds=(seed,))
        created = datetime.now().isoformat(timespec="seconds")
        extra = {"generation_time_seconds": round(seconds, 3), "created_at": created}
        icc = next((each.icc for each in prepared if each.icc), None)
        return GeneratedImage(Image.fromarray(pixels), replace(plan, request=request), extra, made, icc)


def started_together() -> Ranks:
    ranks = launched()
    if ranks.count == 1:
        hint = "start several: `mlx.launch -n 2 -- mflux-generate --split-image ...`"
        raise UsageError("there is one process, and nothing to share", hint, "split_image")
    return ranks


def known_ids(tokenizer: PromptTokenizer, prompt: str, length: int, vocabulary: int) -> mx.array:
    """Ids (1, length) that the text encoder has rows for: MLX does not check, and would read foreign memory."""
    ids = tokenizer.ids([prompt], length)
    if ids.min() < 0 or ids.max() >= vocabulary:
        problem = f"`{tokenizer.folder}` makes the id {ids.max()}, but its text encoder knows {vocabulary}"
        raise ModelError(problem, "tokenizer and text encoder do not belong together")
    return mx.array(ids.astype(np.int32))


def image_as_condition(config: Config, conditions: tuple[Any, ...]) -> tuple[Config, tuple[Any, ...]]:
    """The config's image, in mflux 0.8's way of saying it, as the condition that it is."""
    if config.image_path is None:
        if config.image_strength is not None:
            raise UsageError("there is no image for it", "give `image_path` too", "image_strength")
        return config, conditions
    values = {"image": config.image_path, "image_strength": config.image_strength}
    rest = replace(config, image_path=None, image_strength=None)
    return rest, (condition_class("ImageToImage")(**values), *conditions)


def paired(paths: Sequence[str], scales: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """LoRA paths with their scales; missing ones are 1."""
    if len(scales) > len(paths):
        problem = f"there are {len(scales)} scales for {len(paths)} LoRAs"
        raise UsageError(problem, "give one scale a LoRA, or fewer", "lora_scales")
    for scale in scales:
        check_number("lora_scales", scale, -MAX_LORA_SCALE, MAX_LORA_SCALE)
    return tuple(zip(map(str, paths), [*scales, *[1.0] * (len(paths) - len(scales))], strict=True))


def all_inputs(prepared: list[Prepared]) -> Inputs:
    """The inputs of all conditions, in their order; the plan has refused two that add channels."""
    return Inputs(
        channels=next((each.inputs.channels for each in prepared if each.inputs.channels is not None), None),
        tokens=[token for each in prepared for token in each.inputs.tokens],
        text=[text for each in prepared for text in each.inputs.text],
        prompt_scale=math.prod(each.inputs.prompt_scale for each in prepared),
        pooled_scale=math.prod(each.inputs.pooled_scale for each in prepared),
    )


def check_latents(latents: mx.array | np.ndarray, plan: Plan) -> mx.array:
    """Start noise as packed tokens (B, S, 64), one for each seed.  Raises UsageError for another shape."""
    array = mx.array(latents).astype(mx.float32)
    batch, seeds = (array.shape[0] if array.ndim else 0), len(plan.request.seeds)
    grid = (LATENT_CHANNELS, plan.height // 8, plan.width // 8)
    if array.shape[1:] == grid:
        array = pack_latents(array)
    if array.shape != (seeds, plan.tokens, TOKEN_CHANNELS) or batch != seeds:
        raise UsageError(
            f"start noise of shape {tuple(array.shape)} does not fit {seeds} seeds of {plan.width} x {plan.height} px",
            f"give ({seeds}, {plan.tokens}, 64) or {(seeds, *grid)}",
            "latents",
        )
    return array
