"""Runs inside the environment of mflux 0.24, started by `peer.py`: `python peer_worker.py BLAS`.

Reads a line `NAME SIZE ...` from stdin, runs that network once, answers `done`.  Networks are made at their first line,
float32, random weights.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

if sys.argv[1]:
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before mlx, or it keeps its own

import mlx.core as mx
from mflux.models.common.config import ModelConfig
from mflux.models.flux.model.flux_text_encoder.clip_encoder.clip_encoder import CLIPEncoder
from mflux.models.flux.model.flux_text_encoder.t5_encoder.t5_encoder import T5Encoder
from mflux.models.flux.model.flux_transformer.transformer import Transformer
from mflux.models.flux.model.flux_vae.vae import VAE

ModelConfig.precision = mx.float32


@cache
def autoencoder() -> VAE:
    network = VAE()
    mx.eval(network.parameters())
    return network


def encode(side: int) -> Callable[[], mx.array]:
    network, pixels = autoencoder(), mx.random.uniform(-1, 1, (1, 3, side, side))
    return lambda: network.encode(pixels)


def decode(side: int) -> Callable[[], mx.array]:
    network, latents = autoencoder(), mx.random.normal((1, 16, side // 8, side // 8))
    return lambda: network.decode(latents)


def t5(layers: int, tokens: int) -> Callable[[], mx.array]:
    network, ids = T5Encoder(), mx.random.randint(3, 1024, (1, tokens))
    network.t5_blocks = network.t5_blocks[:layers]
    mx.eval(network.parameters())
    return lambda: network(ids)


def clip(tokens: int) -> Callable[[], mx.array]:
    network, ids = CLIPEncoder(), mx.random.randint(3, 1023, (1, tokens))
    mx.eval(network.parameters())
    return lambda: network(ids)


def blocks(text_tokens: int, side: int) -> Callable[[], mx.array]:
    network = Transformer(ModelConfig.dev(), num_transformer_blocks=1, num_single_transformer_blocks=2)
    mx.eval(network.parameters())
    scheduler = SimpleNamespace(sigmas=mx.array([0.5, 0.0]))
    sizes = {"height": 16 * side, "width": 16 * side}
    config = SimpleNamespace(
        scheduler=scheduler, num_train_steps=1000, guidance=mx.array(3.5), precision=mx.float32, **sizes
    )
    image, text = mx.random.normal((1, side * side, 64)), mx.random.normal((1, text_tokens, 4096))
    pooled = mx.random.normal((1, 768))
    return lambda: network(0, config, image, text, pooled)


NETWORKS = {"blocks": blocks, "t5": t5, "clip": clip, "encode": encode, "decode": decode}


@cache
def ready(name: str, *sizes: int) -> Callable[[], mx.array]:
    return NETWORKS[name](*sizes)


for line in sys.stdin:
    name, *numbers = line.split()
    mx.eval(ready(name, *map(int, numbers))())
    print("done", flush=True)
