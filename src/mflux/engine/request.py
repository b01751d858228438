"""What a user asks for, checked on arrival.  No mlx, no numpy: a usage error has to be cheap.

`Config` holds the settings of a run; values not given come from the model's catalog row.  Field names are those of the
Python API; the command line shows the flag that fills a field.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from mflux.errors import UsageError

MAX_SEED = 2**64 - 1
MIN_SIDE, MAX_SIDE = 16, 16384
MIN_TILE = 128  # px, of the autoencoder
CELL = 16  # pixels a token: sides are multiples of it
NOISES = ("mflux", "torch")
STEP_CACHES = {"fb": (0.0, 0.5), "tea": (0.0, 1.0), "taylor": (1, 10)}  # ranges; at the lower end they are off
TAYLOR_FORMS = ("taylor", "newton")
PRECISIONS = ("bfloat16", "float16", "float32")
TRUE_CFG_WITH_NEGATIVE = 4.0  # what a negative prompt alone means on the command line


def check_number(
    field: str, value: Any, low: float, high: float, whole: bool = False, below: bool = False, above: bool = False
) -> Any:
    """The value as an int or float; refuses what is no finite number in [low, high].

    `below` and `above` leave out the upper and lower end.  numpy's numbers count.
    """
    low_end, high_end = f"{'above ' if above else ''}{plain(low)}", f"{'below ' if below else ''}{plain(high)}"
    wanted = f"{'a whole number' if whole else 'a number'} from {low_end} to {high_end}"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise UsageError(f"{short(value)} is not {wanted}", f"give {wanted}", field)
    number = int(value) if isinstance(value, Integral) else float(value)
    if number != number or number in (math.inf, -math.inf):
        raise UsageError(f"{number} is not {wanted}", f"give {wanted}", field)
    if number < low or number > high or (below and number == high) or (above and number == low):
        raise UsageError(f"{short(number)} is out of range", f"give {wanted}", field)
    return number


def plain(number: float) -> str:
    """A bound as people write it: 1000000, not 1e+06."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def short(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}..."


@dataclass(frozen=True)
class Config:
    """Settings of a run.  None: the model's own value.

    num_inference_steps 1..1000; height, width 16..16384 px, floored to multiples of 16; guidance 0..100 (distilled);
    true_cfg 1..20, 1 = off; max_sequence_length 1..512 text tokens; sigmas: descending noise levels in (0, 1], before
    the shift, in place of the steps; image_path, image_strength [0, 1): image-to-image, higher stays closer;
    step_cache: `fb:0.08`, `tea:0.4` or `taylor:5` leaves blocks out where steps change little, see
    StepCacheChoice; noise: `mflux` or `torch`; precision: bfloat16, float16 or float32.  Raises UsageError.
    """

    num_inference_steps: int | None = None
    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    true_cfg: float = 1.0
    max_sequence_length: int | None = None
    sigmas: Sequence[float] | None = None
    image_path: Any = None
    image_strength: float | None = None
    noise: str = "mflux"
    precision: str | None = None
    step_cache: str | None = None

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float, bool]] = {
            "num_inference_steps": (1, 1000, True),
            "height": (MIN_SIDE, MAX_SIDE, True),
            "width": (MIN_SIDE, MAX_SIDE, True),
            "guidance": (0, 100, False),
            "true_cfg": (1, 20, False),
            "max_sequence_length": (1, 512, True),
        }
        for name, (low, high, whole) in ranges.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_number(name, value, low, high, whole))
        if self.image_strength is not None:
            strength = check_number("image_strength", self.image_strength, 0, 1, below=True)
            object.__setattr__(self, "image_strength", strength)
        check_choice("noise", self.noise, NOISES)
        if self.precision is not None:
            check_choice("precision", self.precision, PRECISIONS)
        if self.step_cache is not None:
            StepCacheChoice.read(self.step_cache)
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", check_sigmas(self.sigmas))

    def to_json(self) -> dict[str, Any]:
        """The values that differ from the defaults."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(DEFAULTS, name)}


@dataclass(frozen=True)
class StepCacheChoice:
    """Which step cache: `fb` (first block) or `tea` (TeaCache) with a threshold, `taylor` with an interval in steps.

    amount: fb 0..0.5, tea 0..1, 0 is off; taylor 1..10, 1 is off.  order 0..3 and form, `taylor` or `newton`: of taylor
    alone.  Written `fb:0.08`, `tea:0.4`, `taylor:5`, `taylor:5:2:newton`.
    """

    kind: str
    amount: float
    order: int = 1
    form: str = "taylor"

    @property
    def off(self) -> bool:
        return self.amount == STEP_CACHES[self.kind][0]

    @classmethod
    def read(cls, text: Any) -> "StepCacheChoice":
        """Raises UsageError."""
        kind, *rest = str(text).split(":")
        check_choice("step_cache", kind, tuple(STEP_CACHES))
        low, high = STEP_CACHES[kind]
        whole = kind == "taylor"
        if not rest or len(rest) > (3 if whole else 1):
            hint = "write it like `fb:0.08`, `tea:0.4` or `taylor:5`"
            raise UsageError(f"{short(text)} is no step cache", hint, "step_cache")
        amount = check_number("step_cache", number_in(rest[0]), low, high, whole=whole)
        order = check_number("step_cache", number_in(rest[1]), 0, 3, whole=True) if len(rest) > 1 else 1
        form = rest[2] if len(rest) > 2 else TAYLOR_FORMS[0]
        check_choice("step_cache", form, TAYLOR_FORMS)
        return cls(kind, amount, order, form)


def number_in(text: str) -> Any:
    """The number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def check_tile(size: int | None) -> None:
    """Raise UsageError for a side that no tile of the autoencoder can have."""
    if size is not None:
        check_number("vae_tile_size", size, MIN_TILE, MAX_SIDE, whole=True)
        if size % CELL:
            raise UsageError(f"{size} is not a multiple of {CELL}", f"give {size - size % CELL}", "vae_tile_size")


def check_choice(field: str, value: Any, choices: Sequence[Any]) -> None:
    if isinstance(value, bool) or value not in choices:
        names = ", ".join(f"`{each}`" for each in choices)
        raise UsageError(f"{short(value)} is unknown", f"choose one of {names}", field)


def check_sigmas(sigmas: Iterable[float]) -> tuple[float, ...]:
    if not isinstance(sigmas, Iterable) or isinstance(sigmas, str):
        raise UsageError(f"{short(sigmas)} is no list", "give noise levels such as 1.0 0.75 0.5 0.25", "sigmas")
    values = tuple(check_number("sigmas", value, 0, 1, above=True) for value in sigmas)
    if not values or any(a <= b for a, b in pairwise(values)):
        raise UsageError(f"{list(values)} does not descend", "give noise levels such as 1.0 0.75 0.5 0.25", "sigmas")
    return tuple(float(value) for value in values)


def check_seed(seed: Any) -> int:
    return int(check_number("seed", seed, 0, MAX_SEED, whole=True))


DEFAULTS = Config()


@dataclass(frozen=True)
class Request:
    """One run as the user said it: the metadata of its pictures, JSON both ways.  What follows from it is the plan."""

    model: str
    prompt: str
    seeds: tuple[int, ...]
    config: Config = DEFAULTS
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    quantize: int | None = None
    base_model: str | None = None
    loras: tuple[tuple[str, float], ...] = ()  # paths with their scales
    conditions: tuple[Any, ...] = ()  # Condition; not imported here, so that usage errors stay cheap

    def __post_init__(self) -> None:
        for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "prompt"):
                raise UsageError(f"{short(value)} is not a text", "give a string", name)
        if not self.seeds:
            raise UsageError("no seed was given", "give an int, or a list of them", "seed")
        object.__setattr__(self, "seeds", tuple(check_seed(seed) for seed in self.seeds))

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into an equal request."""
        lists = ("seeds", "config", "loras", "conditions")  # each with a form of its own
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in lists}
        told = {name: value for name, value in values.items() if value is not None}
        conditions = [condition.to_json() for condition in self.conditions]
        if self.loras:
            told["loras"] = [list(each) for each in self.loras]
        return told | {"seeds": list(self.seeds), "config": self.config.to_json(), "conditions": conditions}
