"""Redux: pictures as tokens behind the text.

Source: FLUX.1-Redux-dev, diffusers' FluxPriorReduxPipeline.  Unlike diffusers: strengths multiply the pictures' tokens
and not the text's, several pictures stand one after another, and strength 0 leaves a picture out; `combine="sum"` is
diffusers' rule.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.engine.request import check_choice, check_number
from mflux.engine.slots import PICTURE, Condition, Draft, Inputs, Prepared, Stage
from mflux.errors import ModelError, UsageError
from mflux.images.picture import PictureSource, open_pictures, several, to_pixels
from mflux.models.siglip import ReduxConfig, ReduxEmbedder, SiglipConfig, SiglipEncoder
from mflux.weights.kinds import KINDS, NetworkKind

UNUSED = r"vision_model\.(head\..*|embeddings\.position_ids)"  # the pooling head, which Redux does not look at
KINDS["image_encoder"] = NetworkKind(SiglipConfig, SiglipEncoder, UNUSED, prefix="vision_model.")
KINDS["image_embedder"] = NetworkKind(ReduxConfig, ReduxEmbedder)
COMBINES = ("concat", "sum")
MAX_STRENGTH = 2
HINT = "use a model that has it, for example `--model redux`"


@dataclass(frozen=True)
class Redux(Condition):
    """Draw something like a picture, or like several, as far as the prompt allows.

    images: one picture or a list.  strengths: 0..2 for each, 1 where missing, 0 = absent.  combine: `concat` puts the
    pictures one after another behind the text; `sum` adds up text and pictures, each times its strength (diffusers).
    """

    images: PictureSource | Sequence[PictureSource] = field(metadata=PICTURE)
    strengths: Sequence[float] | None = None
    combine: str = "concat"

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", several(self.images))
        if self.strengths is not None:
            listed = self.strengths if isinstance(self.strengths, Iterable) else [self.strengths]
            object.__setattr__(self, "strengths", tuple(listed))

    def plan(self, draft: Draft) -> Draft:
        check_choice("combine", self.combine, COMBINES)
        pictures = open_pictures(self.images, "images")  # type: ignore[arg-type]
        if not pictures:
            raise UsageError("there is no picture", "give one or more", "images")
        if len(self.strengths or ()) > len(pictures):
            problem = f"there are {len(self.strengths or ())} strengths for {len(pictures)} pictures"
            raise UsageError(problem, "give one strength a picture, or fewer", "strengths")
        for strength in self.strengths or ():
            check_number("strengths", strength, 0, MAX_STRENGTH)
        encoder, embedder = draft.part("image_encoder", HINT), draft.part("image_embedder", HINT)
        widths = (encoder.hidden_size, draft.transformer.joint_attention_dim)
        if (embedder.redux_dim, embedder.txt_in_features) != widths:
            problem = f"Redux' projector goes from width {embedder.redux_dim} to {embedder.txt_in_features}"
            raise ModelError(
                f"{problem}, but its model needs {widths[0]} to {widths[1]}", "they do not belong together"
            )
        blocks = len(self.present) if self.combine == "concat" else min(len(self.present), 1)
        return replace(draft, extra_tokens=draft.extra_tokens + blocks * encoder.tokens)

    @property
    def present(self) -> list[tuple[PictureSource, float]]:
        """The pictures that take part, with their strengths."""
        given = [*(self.strengths or ()), *[1.0] * (len(self.images) - len(self.strengths or ()))]  # type: ignore[arg-type]
        return [pair for pair in zip(self.images, given, strict=True) if pair[1]]  # type: ignore[arg-type]

    def prepare(self, stage: Stage) -> Prepared:
        if not self.present:
            return Prepared()
        encoder, embedder = stage.network("image_encoder"), stage.network("image_embedder")
        tokens = [
            strength * embedder(encoder(mx.array(siglip_pixels(image, encoder.config.image_size))))
            for image, strength in self.present
        ]
        if self.combine == "concat":
            return Prepared(Inputs(text=tokens))
        total = sum(strength for _, strength in self.present)
        return Prepared(Inputs(text=[sum(tokens[1:], tokens[0])], prompt_scale=total, pooled_scale=len(tokens)))


def siglip_pixels(image: PictureSource, size: int) -> np.ndarray:
    """(1, 3, size, size) in [-1, 1]: Pillow's bicubic, proportions not kept.  Source: SiglipImageProcessor (Pillow)."""
    (picture,) = open_pictures([image], "images")
    return to_pixels(np.asarray(Image.fromarray(picture.rgb).resize((size, size), Image.Resampling.BICUBIC)))
