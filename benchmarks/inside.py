"""What a FluxSpace step costs where it edits, against a plain step: counted operations, and seconds on this machine.

    .venv/bin/python benchmarks/inside.py [--rounds 7] [--count]     (--count: no times)

1 joint + 2 single blocks at FLUX.1's width, as many of each as in the whole model (19 + 38); 512 text + 1024 image
tokens, float32, random weights.  An operation is a multiplication or an addition of a Linear or of an attention.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mflux import runtime
from timing import interleaved

import mlx.core as mx
import mlx.nn as nn

from mflux.conditions import fluxspace
from mflux.engine.network import Network
from mflux.engine.slots import Branch, EncodedText, Inputs
from mflux.models import transformer
from mflux.models.transformer import BlockHooks, FluxTransformer, TransformerConfig

TEXT, SIDE = 512, 512  # tokens, px
MOST_OPERATIONS, MOST_TIME = 1.32, 1.45  # times a plain step


@contextmanager
def counted() -> Iterator[list[int]]:
    """Operations of what is called inside, one number a call."""
    found: list[int] = []
    linear, attend = nn.Linear.__call__, transformer.attention

    def count_linear(layer: nn.Linear, x: mx.array) -> mx.array:
        found.append(2 * x.size * layer.weight.shape[0])
        return linear(layer, x)

    def count_attention(queries: mx.array, keys: mx.array, values: mx.array, **rest: Any) -> mx.array:
        found.append(2 * queries.size * keys.shape[2] + 2 * queries.size // queries.shape[-1] * values[0, 0].size)
        return attend(queries, keys, values, **rest)

    places = (transformer, fluxspace)
    nn.Linear.__call__ = count_linear  # type: ignore[method-assign]
    for place in places:
        place.attention = count_attention  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        nn.Linear.__call__ = linear  # type: ignore[method-assign]
        for place in places:
            place.attention = attend  # type: ignore[attr-defined]


def steps() -> dict[str, Callable[[], mx.array]]:
    """A plain step and two that edit, on the same network and latents; nothing is evaluated yet."""
    mx.random.seed(0)
    network = Network(FluxTransformer(TransformerConfig(num_layers=1, num_single_layers=2)), SIDE, SIDE, Inputs())
    texts = [EncodedText(mx.random.normal((1, TEXT, 4096)), mx.random.normal((1, 768)), 1) for _ in range(4)]
    latents = mx.random.normal((1, SIDE * SIDE // 256, 64))
    branch = Branch(texts[0].states, texts[0].pooled, None)
    sigma = mx.array([0.5])

    def step(*edits: fluxspace.FineEdit) -> Callable[[], mx.array]:
        def run() -> mx.array:
            edit = fluxspace.FluxSpace("x").edited(network, texts[1], edits, None) if edits else None
            return network.velocity(branch, latents, sigma, BlockHooks(edit_attention=edit))

        return run

    one, other = (fluxspace.FineEdit(5.0, text, None) for text in texts[2:])
    return {"plain": step(), "one edit": step(one), "two edits": step(one, other)}


def counts(contenders: dict[str, Callable[[], mx.array]]) -> dict[str, int]:
    """Operations of each; nothing is evaluated."""
    operations = {}
    for name, call in contenders.items():
        with counted() as found:
            call()
        operations[name] = sum(found)
    return operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    contenders = steps()
    operations = counts(contenders)
    print(f"BLAS {runtime._blas}; {TEXT} text + {SIDE * SIDE // 256} image tokens, medians of {options.rounds}")
    calls: dict[str, Callable[[], object]] = {
        name: lambda call=call: mx.eval(call()) for name, call in contenders.items()
    }
    seconds = {} if options.count else interleaved(calls, options.rounds)
    for name, count in operations.items():
        line = f"{name:10s}{count / 1e12:8.3f} T operations {count / operations['plain']:6.2f} x"
        if seconds:
            line += f"   {seconds[name]:8.2f} s {seconds[name] / seconds['plain']:6.2f} x"
        print(line)
    print(f"allowed, one edit: {MOST_OPERATIONS} x operations, {MOST_TIME} x time")


if __name__ == "__main__":
    main()
