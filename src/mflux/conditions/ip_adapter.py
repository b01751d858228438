"""IP-Adapter: a picture as a prompt, by a few more tokens that the image tokens of each joint block attend to.

Source: XLabs' flux-ip-adapter, diffusers' FluxIPAdapterAttnProcessor.  Unlike diffusers: with true CFG both passes see
the picture, unless `negative_embeds` says what the negative one sees, so that guidance stays one of texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.engine.denoise import At
from mflux.engine.request import check_number
from mflux.engine.slots import PICTURE, Condition, Draft, Hooks, Prepared, Run, Stage
from mflux.errors import UsageError
from mflux.images.picture import PictureSource, open_picture
from mflux.models.clip_vision import ClipVisionConfig, ClipVisionEncoder
from mflux.models.ip_adapter import attend_to
from mflux.models.transformer import JointView, Residuals
from mflux.weights.ip_adapter_files import find_adapter
from mflux.weights.kinds import KINDS, NetworkKind, read_config
from mflux.weights.resolve import Side, default_side, find_side

# In messages, where the bare names are those of other flags.
FILE, IMAGE, SCALE, ENCODER = "IPAdapter.file", "IPAdapter.image", "IPAdapter.scale", "IPAdapter.encoder"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SCALE = 2
OTHER_TOWER = r"text_model\..*|text_projection\.weight|logit_scale|vision_model\.embeddings\.position_ids"
KINDS["clip_vision"] = NetworkKind(ClipVisionConfig, ClipVisionEncoder, OTHER_TOWER, section="vision_config")
Embeds = tuple[tuple[float, ...], ...]  # a vector for each picture


@dataclass(frozen=True)
class IPAdapter(Condition):
    """Draw something like a picture, with an adapter file.

    file: a safetensors file in XLabs' layout, or a hub id with `ip_adapter.safetensors`.  image: path, PIL image or
    uint8 array; or embeds: CLIP's vectors, (width,) or (n, width) for n pictures.  scale: 0..2, a number or one for
    each joint block.  negative_embeds: what the negative pass of true CFG sees, if not the same.  encoder: hub id or
    folder of another CLIP picture encoder.
    """

    reads_heads = True

    file: str
    image: PictureSource | None = field(default=None, metadata=PICTURE | {"named": IMAGE})
    embeds: Any = None
    scale: float | Sequence[float] = 1.0
    negative_embeds: Any = None
    encoder: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", str(self.file))
        for name in ("embeds", "negative_embeds"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, vectors(getattr(self, name), name))
        if isinstance(self.scale, Sequence):
            object.__setattr__(self, "scale", tuple(self.scale))

    def plan(self, draft: Draft) -> Draft:
        if (self.image is None) == (self.embeds is None):
            problem = "both `image` and `embeds` are given" if self.image is not None else "there is no picture"
            raise UsageError(problem, "give `image`, a picture, or `embeds`, CLIP's vectors of it", IMAGE)
        side = find_adapter(self.file, FILE)
        sizes = read_config(side.kind, side.place)
        for name, own, theirs in (
            ("width", sizes.width, draft.transformer.width),
            ("joint blocks", sizes.blocks, draft.transformer.num_layers),
        ):
            if own != theirs:
                problem = f"`{side.place}` is for {name} {own}, but the transformer has {theirs}"
                raise UsageError(problem, "use an adapter that was made for this model", FILE)
        scales = self._scales
        for scale in scales:
            check_number(SCALE, scale, 0, MAX_SCALE)
        if len(scales) not in (1, sizes.blocks):
            problem = f"{len(scales)} scales for {sizes.blocks} joint blocks"
            raise UsageError(problem, "give one for all, or one for each block", SCALE)
        if not any(scales):
            return draft
        draft = draft.beside(side)
        for name in ("embeds", "negative_embeds"):
            if getattr(self, name) and len(getattr(self, name)[0]) != sizes.image_width:
                problem = f"the vectors have width {len(getattr(self, name)[0])}, but the adapter takes"
                raise UsageError(f"{problem} {sizes.image_width}", "use the encoder that it was made for", name)
        if self.image is None:
            return draft
        open_picture(self.image, IMAGE)
        encoder = self._encoder
        width = read_config(encoder.kind, encoder.place).projection_dim
        if width != sizes.image_width:
            problem = f"the encoder's vectors have width {width}, but the adapter takes {sizes.image_width}"
            raise UsageError(problem, "use the encoder that it was made for", ENCODER)
        return draft.beside(encoder)

    @property
    def _scales(self) -> tuple[float, ...]:
        """One for all blocks, or one for each."""
        return tuple(self.scale) if isinstance(self.scale, Sequence) else (self.scale,)

    @property
    def _encoder(self) -> Side:
        if self.encoder:
            return find_side("clip_vision", self.encoder, ENCODER)
        return default_side("clip_vision", "image encoder", "dev", ENCODER)

    def prepare(self, stage: Stage) -> Prepared:
        if not any(self._scales):
            return Prepared()
        plan = stage.plan
        adapter = stage.network(find_adapter(self.file, FILE))
        heads, count = plan.transformer.num_attention_heads, plan.transformer.num_layers
        seen = [self.embeds or self._look(stage), self.negative_embeds]
        pairs = [adapter.keys_and_values(mx.array(embeds), heads) for embeds in seen if embeds]
        own = self._scales
        scales = own if len(own) == count else own * count
        mx.eval(pairs)

        def bind(run: Run) -> Hooks:
            found: dict[int, mx.array] = {}  # by block, from its attention to its end

            def watching(at: At, branch: int) -> Callable[[JointView], None]:
                seen = pairs[min(branch, len(pairs) - 1)]

                def watch(view: JointView) -> None:
                    found[view.index] = scales[view.index] * attend_to(view.image.queries, *seen[view.index])

                return watch

            def add(kind: str, index: int, image: mx.array) -> mx.array | None:
                return found.pop(index) if kind == "joint" else None

            def residuals(latents: mx.array, at: At, cells: mx.array | None) -> Residuals:
                return add

            return Hooks(watch_attention=[watching], residuals=[residuals])

        return Prepared(bind=bind)

    def _look(self, stage: Stage) -> Embeds:
        assert self.image is not None
        encoder = stage.network(self._encoder)
        pixels = clip_pixels(open_picture(self.image, IMAGE).rgb, encoder.config.image_size)
        return vectors(np.array(encoder(mx.array(pixels)).astype(mx.float32)), "image")


def vectors(value: Any, field_name: str) -> Embeds:
    """Vectors of pictures as numbers that JSON can hold.  Raises UsageError for what is none."""
    try:
        array = np.asarray(value, np.float32)
        rows = array.reshape(-1, array.shape[-1])
    except (TypeError, ValueError, IndexError):
        raise UsageError("these are no vectors", "give numbers of shape (width,) or (n, width)", field_name) from None
    if not rows.size or not np.isfinite(rows).all():
        raise UsageError("these vectors are empty or not finite", "give CLIP's vectors of pictures", field_name)
    return tuple(tuple(float(number) for number in row) for row in rows)


def clip_pixels(rgb: np.ndarray, size: int) -> np.ndarray:
    """(1, 3, size, size) as CLIP wants it: shorter side to `size` (Pillow's bicubic), the middle, mean and deviation.

    Source: transformers' CLIPImageProcessor.
    """
    image = Image.fromarray(rgb)
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    mean, deviation = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    values = (np.asarray(image, np.float32) / 255 - mean) / deviation
    return np.ascontiguousarray(values.transpose(2, 0, 1))[None]
