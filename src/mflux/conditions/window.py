"""Windows of steps, as users write them: whole numbers are steps, fractions are shares of the run."""

import math
from collections.abc import Sequence
from numbers import Integral

from mflux.engine.request import check_number
from mflux.engine.slots import Draft
from mflux.errors import UsageError

Place = int | float  # a step, or a share of the steps
MAX_STEPS = 1000


def check_window(draft: Draft, start: Place, stop: Place | None, who: str, names: Sequence[str]) -> Draft:
    """Refuse a window that ends before it begins; one that the run does not reach is told of.  names: of the fields."""
    for name, place in zip(names, (start, stop), strict=True):
        if place is not None:
            whole = isinstance(place, Integral)
            check_number(name, place, 0, MAX_STEPS if whole else 1, whole=whole)
    own = range(first_step(start, draft.steps), draft.steps if stop is None else last_step(stop, draft.steps))
    if stop is not None and own.start >= own.stop:
        problem = f"steps {own.start} to below {own.stop} are none"
        raise UsageError(problem, f"give a `{names[1]}` above `{names[0]}`", names[1])
    if not steps_in(start, stop, draft.steps):
        return draft.noted(f"{who} begins at step {own.start}, but the run has {draft.steps}: it does nothing")
    if own.stop > draft.steps:
        return draft.noted(f"{who} ends with the run, after {draft.steps} steps, not at step {own.stop}")
    return draft


def steps_in(start: Place, stop: Place | None, steps: int) -> range:
    """The steps of a run of `steps` that lie in the window; start is in it, stop is not."""
    return range(steps)[first_step(start, steps) : steps if stop is None else last_step(stop, steps)]


def first_step(place: Place, steps: int) -> int:
    return int(place) if isinstance(place, Integral) else math.floor(round(place * steps, 6))


def last_step(place: Place, steps: int) -> int:
    return int(place) if isinstance(place, Integral) else math.ceil(round(place * steps, 6))
