"""Our networks against those of mflux 0.24 (PyPI), in one run: both on MLX, both with our BLAS.

    .venv/bin/python benchmarks/peer.py [--only blocks t5 clip vae start] [--side 512]

mflux 0.24 gets an environment of its own in .peer/, made at the first run (needs PyPI), and a process that answers over
a pipe.  float32, random weights, sizes of FLUX.1 (1 + 2 blocks, 4 of T5's 24 layers); calls in turn, medians.
"""

import argparse
import subprocess
import sys
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mflux import runtime
from timing import interleaved, print_row

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mflux.engine.latents import grid_ids
from mflux.models.text_clip import ClipConfig, ClipTextEncoder
from mflux.models.text_t5 import T5Config, T5Encoder
from mflux.models.transformer import FluxTransformer, TransformerConfig, rope_table
from mflux.models.vae import Vae, VaeConfig

HERE = Path(__file__).parent
PEER = HERE.parent / ".peer"
PEER_PYTHON, PEER_COMMAND = PEER / "bin" / "python", PEER / "bin" / "mflux-generate"
VERSION = "0.24.0"
NEEDS = (  # of mflux 0.24 itself, less torch and CUDA
    "numpy pillow transformers tqdm huggingface_hub platformdirs toml piexif opencv-python-headless requests "
    "safetensors sentencepiece fonttools filelock matplotlib"
)
T5_LAYERS, T5_TOKENS, CLIP_TOKENS, TEXT_TOKENS, SIDE_TOKENS = 4, 512, 77, 512, 32
Ours = Callable[[], mx.array]


def make_environment() -> None:
    if PEER_PYTHON.exists():
        return
    print(f"installing mflux {VERSION} into {PEER}", flush=True)
    venv.create(PEER, with_pip=True)
    pip = [PEER_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"mlx[cpu]=={mx.__version__}", *NEEDS.split()], check=True)
    subprocess.run([*pip, "--no-deps", f"mflux=={VERSION}"], check=True)


class Peer:
    """The process of mflux 0.24; called with the words of a network and its sizes, it runs that once."""

    def __init__(self) -> None:
        words = [PEER_PYTHON, HERE / "peer_worker.py", runtime._blas or ""]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __call__(self, *words: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        if self.process.stdout.readline() != "done\n":
            raise SystemExit("error: mflux 0.24 failed, see above")


def evaluated(network: nn.Module) -> nn.Module:
    mx.eval(network.parameters())
    return network


def blocks() -> Ours:
    network = evaluated(FluxTransformer(TransformerConfig(num_layers=1, num_single_layers=2, guidance_embeds=True)))
    ids = np.concatenate([np.zeros((TEXT_TOKENS, 3)), grid_ids(16 * SIDE_TOKENS, 16 * SIDE_TOKENS)])
    rope = rope_table(ids, network.config.axes_dims_rope)
    image, text = mx.random.normal((1, SIDE_TOKENS**2, 64)), mx.random.normal((1, TEXT_TOKENS, 4096))
    pooled = mx.random.normal((1, 768))
    return lambda: network(image, text, network.modulate(mx.array([0.5]), mx.array([3.5]), pooled), rope)


def t5() -> Ours:
    network, ids = evaluated(T5Encoder(T5Config(num_layers=T5_LAYERS))), mx.random.randint(3, 1024, (1, T5_TOKENS))
    return lambda: network(ids)


def clip() -> Ours:
    network, ids = evaluated(ClipTextEncoder(ClipConfig())), mx.random.randint(3, 1023, (1, CLIP_TOKENS))
    return lambda: network(ids)


def vae(side: int) -> tuple[Ours, Ours]:
    network = evaluated(Vae(VaeConfig()))
    pixels, latents = mx.random.uniform(-1, 1, (1, 3, side, side)), mx.random.normal((1, 16, side // 8, side // 8))
    return lambda: network.encode(pixels), lambda: network.decode(latents)


def start(command: list[object]) -> None:
    subprocess.run([*command, "--help"], capture_output=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("blocks", "t5", "clip", "vae", "start")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--side", type=int, nargs="+", default=[512], help="of the autoencoder's pictures, px")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    make_environment()
    peer = Peer()
    print(f"mflux {VERSION} on mlx {mx.__version__}, BLAS {runtime._blas}; medians of {options.rounds}")

    def compare(what: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        seconds = interleaved({"mflux": ours, f"mflux {VERSION}": theirs}, options.rounds)
        print_row("peer", what, seconds, f"mflux {VERSION}")

    def network(what: str, ours: Ours, *words: object) -> None:
        compare(what, lambda: mx.eval(ours()), partial(peer, *words))

    if "blocks" in options.only:
        what = f"1 + 2 blocks, {TEXT_TOKENS} + {SIDE_TOKENS**2} tokens"
        network(what, blocks(), "blocks", TEXT_TOKENS, SIDE_TOKENS)
    if "t5" in options.only:
        network(f"T5, {T5_LAYERS} layers, {T5_TOKENS} tokens", t5(), "t5", T5_LAYERS, T5_TOKENS)
    if "clip" in options.only:
        network(f"CLIP, {CLIP_TOKENS} tokens", clip(), "clip", CLIP_TOKENS)
    for side in options.side if "vae" in options.only else ():
        encode, decode = vae(side)
        network(f"VAE encode, {side} px", encode, "encode", side)
        network(f"VAE decode, {side} px", decode, "decode", side)
    if "start" in options.only:
        own = Path(sys.executable).with_name("mflux-generate")
        compare("mflux-generate --help", partial(start, [own]), partial(start, [PEER_COMMAND]))


if __name__ == "__main__":
    main()
