"""RF-inversion: a picture becomes noise that draws it again, and a controller holds the drawing near the picture.

Source: arXiv 2410.10792, equations 8, 15 and 17.  Unlike its algorithm 1 and diffusers' community pipeline: the
inversion walks the sampling grid backwards, so that the time the network is told is the noise that is there (their grid
leaves eight times the error); the stochastic form keeps (1 - eta) with its noise, so that eta = 1 gives the picture
back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx

from mflux.conditions.image_to_image import clean_latents, sized_like, stretched
from mflux.conditions.window import Place, check_window, steps_in
from mflux.engine.denoise import At, Step, integrate
from mflux.engine.latents import step_noise
from mflux.engine.request import check_choice, check_number
from mflux.engine.slots import PICTURE, Branch, Condition, Draft, Hooks, Prepared, Run, Stage
from mflux.errors import UsageError
from mflux.images.picture import PictureSource, open_picture
from mflux.weights.files import Kept, home, kept_arrays

SCHEDULES = ("constant", "decay", "rise", "fall")
MAX_POWER = 10
INVERTED_KEPT = 64  # files in the cache


@dataclass(frozen=True)
class RFInversion(Condition):
    """Edit a picture by drawing it again with another prompt.

    image: at the run's size, which has its aspect (its own size, floored to 16, if none is given).  gamma 0..1: how
    far the inversion is pulled to the seed's noise; more is easier to edit.  eta 0..1: how far the drawing is pulled to
    the picture, in the steps from eta_start to below eta_stop (whole numbers, or shares of the run).  eta_schedule:
    `constant`, `decay` (eta (1 - i/N)^eta_power), `rise` or `fall` within the window.  start: inversion and drawing
    leave out this many of the noisiest steps.  sde: the stochastic form of the drawing.  cache: keep inversions on
    disk.  Raises UsageError for a size of another aspect.
    """

    image: PictureSource = field(metadata=PICTURE)
    gamma: float = 0.5
    eta: float = 0.9
    eta_start: Place = 0
    eta_stop: Place = 0.214  # 6 of 28 steps
    eta_schedule: str = "constant"
    eta_power: float = 1.0
    start: int = 0
    sde: bool = False
    cache: bool = True

    def plan(self, draft: Draft) -> Draft:
        check_number("gamma", self.gamma, 0, 1)
        check_number("eta", self.eta, 0, 1)
        check_choice("eta_schedule", self.eta_schedule, SCHEDULES)
        check_number("eta_power", self.eta_power, 0, MAX_POWER)
        check_number("start", self.start, 0, draft.steps - 1, whole=True)
        draft = check_window(draft, self.eta_start, self.eta_stop, "the controller", ("eta_start", "eta_stop"))
        draft = sized_like(draft, picture := open_picture(self.image, "image"))
        if problem := stretched(draft, picture):
            hint = (
                "give a `height` and `width` in its proportions, or neither; another aspect has other latents to keep"
            )
            raise UsageError(problem, hint, "image")
        return draft.inverting(self.start, "RFInversion").encoding("")

    def prepare(self, stage: Stage) -> Prepared:
        clean = clean_latents(self.image, stage).astype(mx.float32)
        text = stage.text("")
        # No guidance while inverting: models that embed it are told 0.
        null = Branch(text.states, text.pooled, None if stage.plan.guidance is None else 0.0)

        def bind(run: Run) -> Hooks:
            if self.gamma < 1:
                run.network().tabulate(null, run.plan.sigmas[run.plan.first + 1 :])
            steer = self.controller(clean, len(run.plan.sigmas) - 1)
            random = self.noise_after(run) if self.sde else []
            return Hooks(start=self.inverted(clean, null, run), steer=[steer], after_step=random)

        return Prepared(bind=bind)

    def inverted(self, clean: mx.array, null: Branch, run: Run) -> Iterator[Step]:
        """The picture's way to the noise of the first level that runs; known ones come from the cache."""
        network, first = run.network(), run.plan.first
        grid = run.plan.sigmas[first:][::-1]

        def velocity(latents: mx.array, at: At) -> mx.array:
            if self.gamma == 1:
                return (run.noise - latents) / (1 - at.sigma)
            own = network.velocity(null, latents, at.sigma)
            if self.gamma == 0:
                return own
            return own + self.gamma * ((run.noise - latents) / (1 - at.sigma) - own)

        latents = mx.broadcast_to(clean, run.noise.shape)
        kept, path = Kept(home() / "inversions", most=INVERTED_KEPT), None
        for step in integrate(velocity, latents, grid):
            # The first step says all that the others follow from: picture, weights, adapters, other conditions, noise.
            if step.at.index == 0 and self.cache:
                path = kept.path(self.gamma, grid, step.latents, clean, run.noise)
                if known := kept_arrays(path):
                    yield Step(At(len(grid) - 2, grid[-2], grid[-1]), known["latents"])
                    return
            yield step
        if path:
            kept.save(path, {"latents": step.latents})

    def eta_at(self, index: int, steps: int) -> float:
        """The controller's strength in step `index` of `steps`."""
        window = steps_in(self.eta_start, self.eta_stop, steps)
        if index not in window:
            return 0.0
        if self.eta_schedule == "decay":
            return self.eta * (1 - index / steps) ** self.eta_power
        if self.eta_schedule == "constant" or len(window) == 1:
            return self.eta
        risen = (index - window.start) / (len(window) - 1)
        return self.eta * (risen if self.eta_schedule == "rise" else 1 - risen)

    def controller(self, clean: mx.array, steps: int) -> Callable[[mx.array, mx.array, At], mx.array]:
        """A `steer` towards the clean tokens (1, S, 64).  Velocities are d latents / d sigma, the paper's negated."""

        def steer(velocity: mx.array, latents: mx.array, at: At) -> mx.array:
            eta = self.eta_at(at.index, steps)
            controlled = velocity if eta == 0 else velocity + eta * ((latents - clean) / at.sigma - velocity)
            if not self.sde or at.sigma == 1 or eta == 1:
                return controlled
            return controlled + (1 - eta) * (velocity + latents / (1 - at.sigma))

        return steer

    def noise_after(self, run: Run) -> list[Callable[[mx.array, At], mx.array]]:
        """The noise of the stochastic form, from a key of seed and step; none after the last, which is the picture."""
        steps = len(run.plan.sigmas) - 1

        def stir(latents: mx.array, at: At) -> mx.array:
            eta = self.eta_at(at.index, steps)
            if at.sigma == 1 or eta == 1 or at.sigma_next == 0:
                return latents
            deviation = (2 * (1 - eta) * at.sigma / (1 - at.sigma) * (at.sigma - at.sigma_next)) ** 0.5
            return latents + deviation * step_noise(run.seeds, at.index, latents.shape[1:])

        return [stir]
