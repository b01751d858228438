"""From a request to a plan: everything that can be known, and refused, before a weight is read."""

from dataclasses import replace

from mflux.engine.latents import TOKEN_PIXELS
from mflux.engine.parts import Parts
from mflux.engine.request import CELL, MAX_SIDE, Request
from mflux.engine.slots import Draft, Plan, check_channels, check_tiles
from mflux.errors import UsageError
from mflux.images.sizes import floor_to_cell
from mflux.models.layers import piece_size
from mflux.models.transformer import TransformerConfig
from mflux.models.vae import VaeConfig
from mflux.runtime import on_cpu, physical_memory
from mflux.weights.lora_files import find_lora

TILED_VAE_FROM = 2048 * 2048  # px from which the autoencoder works in tiles anyway
# Arrays alive at the worst moment, measured with the built-in model at 1024 x 1024 px on a CPU.
LIVE_STREAMS = 30  # of token width, in a block
LIVE_SCORES = 3
LIVE_PLANES = 20  # of the first level's channels, in the autoencoder
LIVE_PIXELS = 12  # numbers a pixel: four copies of the picture
BATCH_BELOW = 0.7  # share of the physical memory
TOLD_FROM = 2**30  # bytes; smaller forecasts are not worth a line
MAX_BATCH = 8  # so that finished pictures keep coming


def make_plan(request: Request, parts: Parts, vae_tile: int = 0, force: bool = False) -> Plan:
    """The plan of a request.  Raises UsageError for what cannot be drawn, ModelError for a damaged model.

    vae_tile: px of the autoencoder's tiles, 0: the whole picture, unless that is large.  force: go on where the memory
    forecast is above the machine's.
    """
    row, config = parts.source.row, request.config
    steps = len(config.sigmas) if config.sigmas else config.num_inference_steps or row.steps
    draft = Draft(request, row, parts.transformer_config, steps, parts.side_config)
    if config.sigmas and config.num_inference_steps not in (None, steps):
        draft = draft.noted(f"{steps} sigmas were given, so {steps} steps run, not {config.num_inference_steps}")
    for name in ("height", "width"):
        asked = getattr(config, name)
        if asked and asked % CELL:
            draft = draft.noted(f"{name} {asked} is not a multiple of 16: {floor_to_cell(asked)} is used")
    for condition in request.conditions:
        if parts.options.split and condition.reads_heads:
            problem = f"{type(condition).__name__} looks at all heads, and each process has its own"
            raise UsageError(problem, "leave `--split-image` out, and spread seeds instead", "split_image")
        draft = condition.plan(draft)
    draft = draft.sized(floor_to_cell(config.height or row.side), floor_to_cell(config.width or row.side))
    check_sides(draft)
    check_channels(draft)
    check_tiles(draft)
    if draft.tile and config.step_cache:
        problem = f"the picture is drawn in tiles, which step_cache {config.step_cache} cannot tell apart"
        raise UsageError(problem, "leave the step cache out, or draw a smaller picture", "step_cache")
    parts.check()
    plan = finish(note_guidance(draft), parts, vae_tile)
    plan = replace(plan, memory_bytes=forecast(parts, plan), notes=(*plan.notes, *parts.notes()))
    if plan.memory_bytes > TOLD_FROM:
        told = f"about {gigabytes(plan.memory_bytes)} of this machine's {gigabytes(physical_memory())} will be used"
        plan = replace(plan, notes=(*plan.notes, told))
    if not force:
        check_memory(plan, plan.memory_bytes)
    return plan


def check_sides(draft: Draft) -> None:
    """Refuse sides that a condition derived from a picture and that are beyond what may be asked for."""
    if max(draft.height or 0, draft.width or 0) > MAX_SIDE:
        problem = f"{draft.width} x {draft.height} px would be drawn"
        raise UsageError(problem, f"sides up to {MAX_SIDE} px: use a picture of other proportions, or give a size")


def check_memory(plan: Plan, needed: int) -> None:
    if needed > physical_memory():
        raise UsageError(
            f"{plan.width} x {plan.height} px with `{plan.request.model}` needs about {gigabytes(needed)}, "
            f"and this machine has {gigabytes(physical_memory())}",
            "draw a smaller picture or fewer at once (`height`, `width`, `batch_size`), quantize the model, or "
            "`--force` it",
        )


def note_guidance(draft: Draft) -> Draft:
    """Notes on settings that this model or run does not use."""
    request = draft.request
    if request.config.guidance and not draft.transformer.guidance_embeds:
        draft = draft.noted(f"`{request.model}` takes no guidance: guidance {request.config.guidance:g} is not used")
    if request.negative_prompt is not None and request.config.true_cfg == 1:
        draft = draft.noted("the negative prompt is not used: true_cfg is 1 (off)")
    return draft


def finish(draft: Draft, parts: Parts, vae_tile: int) -> Plan:
    """The plan of a draft that every condition has seen."""
    request, row, config = draft.request, draft.row, draft.request.config
    assert draft.height and draft.width
    text_tokens = config.max_sequence_length or row.text_tokens
    seen = draft.tile or (draft.height, draft.width)
    sigmas = parts.schedule.sigmas(draft.steps, seen[0] * seen[1] // TOKEN_PIXELS**2, config.sigmas)
    guidance = row.guidance if config.guidance is None else config.guidance
    tokens = draft.height * draft.width // TOKEN_PIXELS**2
    if max(tokens, draft.encodes) * CELL**2 > TILED_VAE_FROM:
        vae_tile = vae_tile or parts.vae_config.sample_size
    return Plan(
        request=request,
        row=row,
        transformer=draft.transformer,
        height=draft.height,
        width=draft.width,
        own_size=draft.own_size,
        tile=draft.tile,
        sigmas=tuple(draft.levels(sigmas)) if draft.levels else sigmas,
        first=draft.first,
        start_steps=draft.start_steps,
        guidance=(guidance or 0.0) if draft.transformer.guidance_embeds else None,
        true_cfg=config.true_cfg,
        text_tokens=text_tokens,
        encodes=draft.encodes,
        vae_tile=vae_tile,
        extra_tokens=draft.extra_tokens,
        sides=draft.sides,
        prompt=request.prompt if draft.prompt is None else draft.prompt,
        texts=draft.texts,
        loras=tuple(find_lora(name) for name in draft.loras),
        memory_bytes=0,
        notes=draft.notes,
    )


def forecast(parts: Parts, plan: Plan, batch: int = 1) -> int:
    """Bytes at the worst moment of a run: the weights that are loaded then, and the arrays that are alive."""
    precision = plan.request.config.precision
    text, text_2, transformer, vae = (
        parts.weight_bytes(part, precision) for part in ("text_encoder", "text_encoder_2", "transformer", "vae")
    )
    seen = plan.seen[0] * plan.seen[1] // TOKEN_PIXELS**2
    drawing = transformer_bytes(plan.transformer, seen, plan.text_tokens + plan.extra_tokens, batch)
    decoding = vae_bytes(parts.vae_config, max(plan.tokens, plan.encodes), plan.vae_tile)
    sides = {side: parts.weight_bytes(side, precision) for side in plan.sides}
    if parts.all_stay(precision):
        return text + text_2 + transformer + vae + sum(sides.values()) + max(drawing, decoding)
    beside = sum(size for side, size in sides.items() if side.stays)
    stays = transformer if len(plan.request.seeds) > batch else 0  # for the next seeds
    return max(
        text + text_2, vae + sum(sides.values()), beside + transformer + drawing, beside + stays + vae + decoding
    )


def transformer_bytes(config: TransformerConfig, tokens: int, other_tokens: int, batch: int) -> int:
    """Arrays alive in one block, in float32; on the CPU also a piece of the attention scores and its copies."""
    length = tokens + other_tokens
    scores = piece_size(batch * config.num_attention_heads * length**2) * LIVE_SCORES if on_cpu() else 0
    return 4 * (batch * length * config.width * LIVE_STREAMS + scores)


def vae_bytes(config: VaeConfig, tokens: int, tile: int) -> int:
    """Arrays alive at the autoencoder's full resolution, in float32, and copies of the picture."""
    pixels = tokens * CELL**2
    worked = min(pixels, tile**2) if tile else pixels
    return 4 * (worked * config.block_out_channels[0] * LIVE_PLANES + pixels * LIVE_PIXELS)


def batch_that_fits(parts: Parts, plan: Plan) -> int:
    """How many seeds to draw in one pass: what fits in 70 % of the memory, at most MAX_BATCH, at least one."""
    room = BATCH_BELOW * physical_memory()
    sizes = range(1, min(len(plan.request.seeds), MAX_BATCH) + 1)
    return max((size for size in sizes if size == 1 or forecast(parts, plan, size) < room), default=1)


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
