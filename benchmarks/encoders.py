"""Text encoders and the autoencoder at full size against transformers and diffusers in the same run.

    .venv/bin/python benchmarks/encoders.py [--only t5 clip vae] [--side 512]    (needs the `parity` extra)

float32, the same random weights on both sides, two threads each, calls in turn, medians.  T5 has 4 of its 24 layers, at
full width; CLIP and the autoencoder are whole.  MFLUX_BENCHMARKS=FILE also writes a JSON object a row.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from mflux import runtime
from timing import interleaved, print_row

import mlx.core as mx
import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from mflux.weights.load import load_network

T5_LAYERS, T5_TOKENS, CLIP_TOKENS = 4, 512, 77
Pair = tuple[Callable[[], object], Callable[[], object]]


def same_weights(reference: torch.nn.Module, part: str) -> object:
    """Our network with the reference's weights, by way of its files."""
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return load_network(part, Path(folder), mx.float32)


def t5() -> dict[str, Pair]:
    sizes = {"d_model": 4096, "d_ff": 10240, "num_heads": 64, "d_kv": 64, "num_layers": T5_LAYERS}
    words = {"vocab_size": 1024, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False}
    reference = T5EncoderModel(T5Config(**sizes, **words)).eval()
    ids = np.random.default_rng(0).integers(3, 1024, (1, T5_TOKENS))
    ours, token_ids, tensor = same_weights(reference, "text_encoder_2"), mx.array(ids), torch.from_numpy(ids)
    return {
        f"T5, {T5_LAYERS} layers, {T5_TOKENS} tokens": (
            lambda: mx.eval(ours(token_ids)),
            lambda: reference(input_ids=tensor).last_hidden_state,
        )
    }


def clip() -> dict[str, Pair]:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    reference = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=1024, eos_token_id=1023)).eval()
    ids = np.random.default_rng(0).integers(3, 1023, (1, CLIP_TOKENS))
    ids[0, -1] = 1023
    ours, token_ids, tensor = same_weights(reference, "text_encoder"), mx.array(ids), torch.from_numpy(ids)
    return {
        f"CLIP, {CLIP_TOKENS} tokens": (
            lambda: mx.eval(ours(token_ids)),
            lambda: reference(input_ids=tensor).pooler_output,
        )
    }


def vae(side: int) -> dict[str, Pair]:
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).eval()
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    latents = random.standard_normal((1, 16, side // 8, side // 8)).astype(np.float32)
    ours = same_weights(reference, "vae")
    return {
        f"VAE encode, {side} px": (
            lambda: mx.eval(ours.encode(mx.array(pixels))),
            lambda: reference.encode(torch.from_numpy(pixels)).latent_dist.mode(),
        ),
        f"VAE decode, {side} px": (
            lambda: mx.eval(ours.decode(mx.array(latents))),
            lambda: reference.decode(torch.from_numpy(latents)).sample,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("t5", "clip", "vae"), default=["t5", "clip", "vae"])
    parser.add_argument("--side", type=int, nargs="+", default=[512], help="of the autoencoder's pictures, px")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    makers: list[Callable[[], dict[str, Pair]]] = []
    makers += [t5] if "t5" in options.only else []
    makers += [clip] if "clip" in options.only else []
    makers += [lambda side=side: vae(side) for side in options.side if "vae" in options.only]
    print(f"BLAS {runtime._blas}; torch {torch.__version__}, 2 threads; medians of {options.rounds}")
    with torch.inference_mode():
        for make in makers:
            for name, (ours, theirs) in make().items():
                seconds = interleaved({"mflux": ours, "diffusers": theirs}, options.rounds)
                print_row("encoders", name, seconds)


if __name__ == "__main__":
    main()
