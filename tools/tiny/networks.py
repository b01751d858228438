"""The networks of `tiny` in torch: diffusers' and transformers' own modules, and one forward pass through them.

Sizes are those of the shipped configs; the training-only head (`Glimpse`) never ships.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from captions import PLACES
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, SiglipVisionConfig, SiglipVisionModel, T5Config, T5EncoderModel
from vocabulary import CLIP_FOLDER, CLIP_LENGTH, load_clip, t5_pieces
from world import BACKGROUNDS, COLORS, SHAPES

WIDTH = 128
IN_CHANNELS = 64
GLIMPSE_AFTER = 2  # single blocks; the head reads the image tokens there
BESIDE_AFTER = 4  # of an adapter for panels: a panel's object is known by then, and has to have reached the other panel
GLIMPSE_SIZES = (1 + len(SHAPES), 1 + len(COLORS) + len(BACKGROUNDS), 16)  # as labelled in `latents.py`
TEXT_PARTS = ("text_encoder", "text_encoder_2")
PARTS = ("transformer", *TEXT_PARTS)
LORA_RANK = 32
LORA_TARGETS = (  # all matrices inside blocks except the modulations
    r".*transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
REDUX_PARTS = ("image_encoder", "image_embedder")
REDUX_WIDTH, REDUX_SIDE, REDUX_PATCH = 96, 96, 16
REDUX_TOKENS = (REDUX_SIDE // REDUX_PATCH) ** 2


class Networks(nn.Module):
    """The transformer and both text encoders.

    Two heads never ship: `glimpse` tells from a middle state what each image token shows, `placing` from a text token's
    state where the object stands that it describes (kontext: the word's role in the instruction).
    """

    def __init__(self, in_channels: int = IN_CHANNELS, redux: bool = False) -> None:
        super().__init__()
        self.transformer = FluxTransformer2DModel(
            in_channels=in_channels,
            out_channels=IN_CHANNELS,
            num_layers=3,
            num_single_layers=6,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        self.text_encoder = CLIPTextModel(_clip_config())
        self.text_encoder_2 = T5EncoderModel(_t5_config())
        self.glimpse = nn.Linear(WIDTH, sum(GLIMPSE_SIZES))
        self.placing = nn.Linear(WIDTH, 1 + len(PLACES))
        _start_at_zero(self.transformer)
        if redux:
            self.image_encoder = SiglipVisionModel(_siglip_config())
            self.image_embedder = ReduxImageEncoder(REDUX_WIDTH, WIDTH)

    def add(self, what: str) -> None:
        """Something new that trains alone: `lora`, an adapter of the transformer, `controlnet`, or nothing."""
        if what:
            self.requires_grad_(False)
            self.glimpse.requires_grad_(True)
            {"lora": self._add_lora, "controlnet": self._add_controlnet}[what]()

    def _add_lora(self) -> None:
        adapter = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_TARGETS)
        self.transformer.add_adapter(adapter)

    def _add_controlnet(self) -> None:
        """One joint and one single block, which begin as copies of the transformer's."""
        sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 4, "attention_head_dim": 32}
        self.controlnet = FluxControlNetModel.from_transformer(self.transformer, **sizes)

    def describe(self, t5_ids: Tensor, clip_ids: Tensor, pictures: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Text states (B, T, WIDTH) and the pooled vector (B, WIDTH); padding is not masked, as in FLUX.

        Redux: the tokens of `pictures` follow the text's.
        """
        text = self.text_encoder_2(input_ids=t5_ids).last_hidden_state
        if pictures is not None:
            text = torch.cat([text, self.look(pictures)], dim=1)
        return text, self.text_encoder(input_ids=clip_ids).pooler_output

    def look(self, pictures: Tensor) -> Tensor:
        """Tokens (B, REDUX_TOKENS, WIDTH) of pictures (B, 3, REDUX_SIDE, REDUX_SIDE) in [-1, 1]."""
        seen = self.image_encoder(pixel_values=pictures).last_hidden_state
        return self.image_embedder(seen).image_embeds

    def velocity(
        self,
        x: Tensor,
        time: Tensor,
        guidance: Tensor,
        text: Tensor,
        pooled: Tensor,
        rows: int = 8,
        columns: int = 8,
        references: Tensor | None = None,
        control: tuple[Tensor, Tensor] | None = None,
        later: Tensor | None = None,
        seen: list[tuple[Tensor, Tensor]] | None = None,
        after: int = GLIMPSE_AFTER,
    ) -> tuple[Tensor, Tensor]:
        """Velocity (B, S, 64) at `x` (B, S, channels), time in 0..1, and the middle state (B, S + n S, WIDTH).

        `references` (B, n S, 64): n more pictures of the same size, which are looked at and not drawn (Kontext).
        `control`: a map (B, S, 64) for the ControlNet, and how strongly it works. `later` (B, T, WIDTH): the text that
        single blocks hear in place of `text`. `seen`: takes what each joint block is given, image and text. `after`: so
        many single blocks, where the middle is.
        """
        net, drawn = self.transformer, x.shape[1]
        joint_residual = single_residual = 0.0
        if control is not None:
            shown, strength = control
            (joint_residual,), (single_residual,) = self.controlnet(
                x,
                controlnet_cond=shown,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=time,
                guidance=guidance,
                img_ids=image_ids(rows, columns),
                txt_ids=torch.zeros(text.shape[1], 3),
                return_dict=False,
            )
            joint_residual, single_residual = strength * joint_residual, strength * single_residual
        x = x if references is None else torch.cat([x, references], dim=1)
        pictures = [image_ids(rows, columns, number) for number in range(x.shape[1] // drawn)]
        image, text = net.x_embedder(x), net.context_embedder(text)
        condition = net.time_text_embed(time * 1000, guidance * 1000, pooled)
        rope = net.pos_embed(torch.cat([torch.zeros(text.shape[1], 3), *pictures]))
        middle, other = image, None if later is None else net.context_embedder(later)
        for block in net.transformer_blocks:
            if seen is not None:
                seen.append((image, text))
            if other is not None:
                other, _ = block(image, other, condition, image_rotary_emb=rope)
            text, image = block(image, text, condition, image_rotary_emb=rope)
            image = image + joint_residual
        text = text if other is None else other
        for index, block in enumerate(net.single_transformer_blocks):
            if index == after:
                middle = image
            text, image = block(image, text, condition, image_rotary_emb=rope)
            image = image + single_residual
        return net.proj_out(net.norm_out(image[:, :drawn], condition)), middle

    def glimpse_logits(self, middle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of shape (B, S, 7), colour (B, S, 15) and fine coverage (B, S, 16) for each image token."""
        seen = self.glimpse(F.layer_norm(middle, (WIDTH,)))
        return seen.split(GLIMPSE_SIZES, dim=-1)

    def load_added(self, what: str, folder: Path) -> None:
        """The shipped adapter, ControlNet or picture encoder of a variant, in place of a new one."""
        if what == "lora":
            tensors = load_file(folder / "pytorch_lora_weights.safetensors")
            ready = {name.removeprefix("transformer."): tensor.float() for name, tensor in tensors.items()}
            set_peft_model_state_dict(self.transformer, ready)
        elif what == "":
            self.load_redux(folder)
        else:
            stored = FluxControlNetModel.from_pretrained(folder / "controlnet", torch_dtype=torch.float32)
            self.controlnet.load_state_dict(stored.state_dict())

    def load_redux(self, folder: Path) -> None:
        """The shipped picture encoder, in float32."""
        self.image_encoder = SiglipVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32)
        embedder = ReduxImageEncoder.from_pretrained(folder / "image_embedder", torch_dtype=torch.float32)
        self.image_embedder = embedder

    @classmethod
    def from_folders(cls, base: Path, transformer: Path) -> Networks:
        """Shipped weights, in float32: a transformer and the base's text encoders."""
        stored = FluxTransformer2DModel.from_pretrained(transformer, torch_dtype=torch.float32)
        networks = cls(stored.config.in_channels)
        networks.load_parts(base)
        networks.transformer = stored
        return networks.eval()

    def place_loss(self, text: Tensor, places: Tensor) -> Tensor:
        """How badly text states tell where the object stands that a token describes; places (B, T), 0 = no matter."""
        return F.cross_entropy(self.placing(text).float().flatten(0, 1), places.flatten(), ignore_index=0)

    def load_parts(self, folder: Path) -> None:
        """Weights from a diffusers layout; a wider input layer keeps zeros in its extra columns.

        A variant without text encoders has those of the base beside it.
        """
        self.load_words(folder if (folder / "text_encoder").exists() else folder.parent / "base")
        stored = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        self.load_transformer(stored.state_dict())

    def load_words(self, folder: Path) -> None:
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.text_encoder_2 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)

    def load_transformer(self, state: dict[str, Tensor]) -> None:
        wide = self.transformer.x_embedder.weight.detach().clone().zero_()
        wide[:, : state["x_embedder.weight"].shape[1]] = state["x_embedder.weight"]
        self.transformer.load_state_dict(state | {"x_embedder.weight": wide})


def image_ids(rows: int, columns: int, number: int = 0) -> Tensor:
    """(rows * columns, 3): number, row, column. Number 0 is the picture that is drawn, references count from 1."""
    ids = torch.full((rows, columns, 3), float(number))
    ids[..., 1:] = 0
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None, :]
    return ids.reshape(-1, 3)


def _start_at_zero(net: FluxTransformer2DModel) -> None:
    """Each block begins as the identity, and the first velocity is zero."""
    for block in net.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1_context.linear.weight)
    for block in net.single_transformer_blocks:
        nn.init.zeros_(block.norm.linear.weight)
    nn.init.zeros_(net.norm_out.linear.weight)
    nn.init.zeros_(net.proj_out.weight)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


def _clip_config() -> CLIPTextConfig:
    tokenizer = load_clip(CLIP_FOLDER)
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def _siglip_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=REDUX_WIDTH,
        intermediate_size=4 * REDUX_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=REDUX_SIDE,
        patch_size=REDUX_PATCH,
    )


def _t5_config() -> T5Config:
    return T5Config(
        vocab_size=-(-len(t5_pieces()) // 8) * 8,
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )
