"""Random numbers as functions of what they are for: (seed, purpose, epoch, example, ...).

Nothing is drawn from a shared stream, so a run that is cut and goes on, or is spread over machines, or looks at itself
more often, sees the same numbers.
"""

import hashlib
import random

import mlx.core as mx


def number_of(*what: object) -> int:
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def key_of(*what: object) -> mx.array:
    """A key of MLX's counter-based generator."""
    return mx.random.key(number_of(*what))


def uniform(*what: object) -> float:
    """A number in [0, 1)."""
    return random.Random(number_of(*what)).random()


def shuffled(count: int, *what: object) -> list[int]:
    """A permutation of 0..count - 1.  Fisher-Yates on `random()`, the one stream that Python keeps over versions."""
    stream, order = random.Random(number_of(*what)), list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(stream.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order
