"""Every image command: values to a request, a request to files.

Whatever can be wrong with the words is found before mlx is imported, and whatever can be wrong with the files before a
weight is read.
"""

import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mflux.cli.options import Command, Values
from mflux.cli.parse import choose_loras, spelled
from mflux.cli.replay import conditions_of, replayed
from mflux.cli.watch import Watch, Watching
from mflux.engine.request import TRUE_CFG_WITH_NEGATIVE, Config, check_choice, check_number, check_seed, check_tile
from mflux.errors import MfluxError, StoppedError, UsageError
from mflux.paths import check_output, check_output_size, expand, reading
from mflux.runtime import one_of_several
from mflux.weights.catalog import BITS, TASK_CHANNELS, by_repo, check_name, find, require

AUTO_SEED_MAX = 10_000_000
MAX_SEEDS = 1_000_000
MAX_PROMPT_BYTES = 1_000_000
MAX_PROMPT_IN_NAME = 60  # letters
OF_THE_MODEL = (
    "quantize",
    "vae_tiling",
    "vae_tile_size",
    "force",
    "low_ram",
    "allow_partial_lora",
    "bake_lora",
    "split_image",
)
PLACEHOLDERS = ("{seed}", "{index}", "{prompt}")
PLACEHOLDERS_OF = re.compile(r"\{.*?\}|[{}]")
INDEX = re.compile(r"\{index(?:\+([0-9]{1,9}))?\}")  # `{index+3}` counts from 4
SILENT = Watching(progress="none")
log = logging.getLogger("mflux")


@dataclass(frozen=True)
class Run:
    """What the command line adds to a request: where words come from and files go."""

    model: str | None = None
    path: str | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    turns: str | None = None
    jobs: str | None = None
    seed: Sequence[int] = ()
    auto_seeds: int | None = None
    output: str = "image.png"
    overwrite: bool = False
    quantize: int | None = None
    batch_size: int | None = None
    vae_tile_size: int | None = None
    vae_tiling_split: str | None = None
    start_image: Sequence[str] = ()  # and its strength
    scheduler: str = "linear"
    mlx_cache_limit_gb: float | None = None
    config_from_metadata: str | None = None
    metadata: bool = False
    no_metadata: bool = False
    adapters: Sequence[Sequence[str]] = ()
    bake_lora: bool = False
    no_bake_lora: bool = False
    lora_name: str | None = None
    lora_repo_id: str | None = None
    side_files: Sequence[str] = ()  # artifacts that are written too
    sweep: str | None = None
    verbose: bool = False

    def check(self) -> None:
        """Raise UsageError for what cannot be meant; note what is not used."""
        if self.verbose:
            log.setLevel(logging.DEBUG)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, BITS)
        if self.batch_size is not None:
            check_number("batch_size", self.batch_size, 1, 1000, whole=True)
            for name, value in (("--turns", self.turns), ("--prompt-file", self.prompt_file)):
                if value is not None:
                    log.warning(f"--batch-size is not used: with {name} pictures are drawn one by one")
        check_choice("scheduler", self.scheduler, ("linear",))
        if self.mlx_cache_limit_gb is not None:
            check_number("mlx_cache_limit_gb", self.mlx_cache_limit_gb, 0, 1024)
        check_tile(self.vae_tile_size)
        if self.bake_lora and self.no_bake_lora:
            raise UsageError("`--bake-lora` and `--no-bake-lora` are both given", "leave one of them out")
        if self.vae_tiling_split is not None:
            check_choice("vae_tiling_split", self.vae_tiling_split, ("horizontal", "vertical"))
            log.warning("--vae-tiling-split is not used: tiles are blended on every side")


def draw(command: Command, values: dict[str, Any], models: Callable[..., Any] | None = None) -> None:
    """Check the words, plan, then draw and save picture by picture.  models: opens one, in place of Flux1.

    Of several processes each draws its share of the seeds (of `--jobs`: its lines); with `--split-image` all of them
    draw all together, and the first one writes.
    """
    told, values = values, with_sides(replayed(command, values))
    run, watching = Run(**pick(Run, values)), Watching(**pick(Watching, values))
    watching.check()
    run.check()
    config, negative = check_config(values)
    together = bool(values.get("split_image"))
    ranks = processes() if together or models is None else None  # each line of `--jobs` is one process's own
    writes = not together or ranks is None or ranks.rank == 0
    seeds = choose_seeds(run) if ranks is None or run.seed else ranks.first_says(choose_seeds(run))
    turns = read_turns(run)
    prompt = turns[0] if turns else read_prompt(run, command.needs_prompt)
    sweep = read_sweep(run, command)
    targets = output_names(run.output, seeds, len(turns), prompt)
    if ranks is not None and not together:
        each = len(targets) // len(seeds)
        mine = range(ranks.rank, len(seeds), ranks.count)
        seeds, targets = tuple(seeds[n] for n in mine), [targets[n * each + k] for n in mine for k in range(each)]
        if not seeds:
            log.warning("there is no seed for this process: give one or more for each, or `--split-image`")
            return
    checked = [check_output(target) for target in (targets[0], max(targets, key=len))]
    rest: dict[str, Any] = {"negative_prompt": negative, "conditions": conditions_of(command, values)}
    for condition in rest["conditions"]:
        condition.check_pictures()
    model, base_model = choose_model(command, run, values.get("base_model"))
    wish = {"base_model": base_model, "task": command.task, **choose_loras(values)}
    wish |= {name: values[name] for name in OF_THE_MODEL if name in values}

    import mlx.core as mx

    from mflux.engine.flux import Flux1

    if run.mlx_cache_limit_gb is not None:
        mx.set_cache_limit(int(run.mlx_cache_limit_gb * 2**30))
    flux = (models or Flux1)(model, **wish)
    plan = flux.plan(list(seeds), prompt, config, **rest)
    for path in checked:
        check_output_size(path, plan.height, plan.width)
    for note in (*plan.notes, *unused(values, flux.loras or plan.loras)):
        log.warning(note)
    done, failed = 0, list[MfluxError]()
    try:
        total = len(targets) * len(sweep[1] or [0]) * plan.total
        with Watch(watching if writes else SILENT, flux, plan, total, run.overwrite) as watch:
            if sweep[0]:
                pictures = rest["conditions"][0].draw_sweep(flux, plan, *sweep, on_step=watch.step)
            elif turns:
                pictures = turn_by_turn(flux, plan, turns, watch.step, config, rest)
            elif run.prompt_file is not None:
                pictures = prompt_by_prompt(flux, plan, run, watch.step, config, rest)
            else:
                pictures = flux.draw(plan, on_step=watch.step, batch_size=run.batch_size)
            for picture, target in zip(pictures, targets, strict=True):
                written = [*save(picture, target, run, command.side_files, failed)] if writes else []
                done += 1
                for path in written:
                    watch.say(path)
    except (KeyboardInterrupt, StoppedError) as stop:
        left = seeds[done // max(1, len(turns)) :]
        raise stopped(stop, command, told | ({"prompt": prompt} if run.prompt == "-" else {}), left, seeds) from None
    if failed:
        raise failed[0]


def processes() -> Any:
    """The processes that `mlx.launch` started; None where this one is alone."""
    if not one_of_several():
        return None
    from mflux.ranks import launched  # with mlx, which waits else until the words are checked

    return launched()


def unused(values: Values, loras: Sequence[Any]) -> Iterator[str]:
    """Notes on flags about LoRAs, where there are none."""
    for name in ("bake_lora", "no_bake_lora", "allow_partial_lora"):
        if values.get(name) and not loras:
            yield f"--{name.replace('_', '-')} is not used: there is no LoRA"


def save(picture: Any, target: str, run: Run, side_files: Sequence[str], failed: list[MfluxError]) -> Iterator[Path]:
    """Write a picture and what belongs to it; the paths written.  failed: grows where it goes by another name."""
    try:
        written = picture.save(target, run.overwrite, embed_metadata=not run.no_metadata)
    except MfluxError as error:
        written = rescued(picture, error, not run.no_metadata)
        failed.append(MfluxError(f"{error.problem}; the picture is kept as `{written}`", error.hint, error.field))
    yield written
    for name in (*side_files, *run.side_files):
        yield from picture.save_artifacts(name, written, run.overwrite)
    if run.metadata:
        yield picture.save_metadata(written.with_suffix(".json"), run.overwrite)


def rescued(picture: Any, error: MfluxError, metadata: bool) -> Path:
    """Write a finished picture where that is possible, under a plain name; raises the error where it is nowhere."""
    from tempfile import gettempdir

    name = f"mflux_seed_{picture.plan.request.seeds[0]}.png"
    for folder in (Path, Path.home, gettempdir):
        try:
            return Path(picture.save(Path(folder()) / name, embed_metadata=metadata))
        except (MfluxError, OSError, RuntimeError):  # no home, or no room for temporary files either
            continue
    raise error


def stopped(
    stop: BaseException, command: Command, told: dict[str, Any], left: Sequence[int], seeds: Sequence[int]
) -> StoppedError:
    """The error of a run that ended early, with the command that draws what is left."""
    told = {name: value for name, value in told.items() if name != "auto_seeds"} | {"seed": list(left)}
    pattern = told.get("output", Run.output)
    if len(seeds) > 1 and not names_each(pattern):
        told["output"] = ending_in(pattern, "_seed_{seed}")
    elif drawn := len(seeds) - len(left):
        told["output"] = counted(pattern, drawn, "{{index+{}}}")
    why = stop.problem if isinstance(stop, StoppedError) else "interrupted"
    problem = f"{why}; finished pictures are kept, {len(left)} of {len(seeds)} seeds are left"
    hint = f"go on with `{shlex.join([command.name, *spelled(command, told)])}`" if left else ""
    error = StoppedError(problem, hint)
    error.exit_code = StoppedError.exit_code if isinstance(stop, StoppedError) else 130
    return error


def turn_by_turn(
    flux: Any, plan: Any, turns: Sequence[str], on_step: Any, config: Config, rest: dict[str, Any]
) -> Iterator[Any]:
    """The pictures of a chain of instructions, seed by seed."""
    from mflux import conditions

    for seed in plan.request.seeds:
        yield from conditions.Kontext.draw_turns(flux, seed, turns, config, on_step=on_step, **rest)


def prompt_by_prompt(
    flux: Any, plan: Any, run: Run, on_step: Any, config: Config, rest: dict[str, Any]
) -> Iterator[Any]:
    """The pictures of a prompt file, which may change between them; a pipe can be read only once."""
    for index, seed in enumerate(plan.request.seeds):
        words = plan.request.prompt if index == 0 else read_prompt(run)
        yield from flux.draw(flux.plan(seed, words, config, **rest), on_step=on_step)


def with_sides(values: dict[str, Any]) -> dict[str, Any]:
    """With px in place of sides that are told as times those of the picture.  Raises UsageError."""
    times = {name: float(values[name][:-1]) for name in ("height", "width") if isinstance(values.get(name), str)}
    if not times:
        return values
    sources = [*values.get("start_image", ()), values.get("image"), *values.get("images", ()), values.get("source")]
    found = next((source for source in sources if source is not None), None)
    if found is None:
        raise UsageError("there is no picture whose side to take", "give px", next(iter(times)))
    from mflux.images.picture import open_picture

    picture = open_picture(found, "image")
    return values | {name: round(getattr(picture, name) * factor) for name, factor in times.items()}


def pick(owner: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values that are fields of a dataclass."""
    return {each.name: values[each.name] for each in fields(owner) if each.name in values}


def check_config(values: dict[str, Any]) -> tuple[Config, str | None]:
    """The settings, and the negative prompt: each of it and --true-cfg implies the other."""
    names = {each.name for each in fields(Config)} - {"image_strength"}  # that one belongs to a condition
    config = {name: value for name, value in values.items() if name in names}
    negative = values.get("negative_prompt")
    if negative is not None and "true_cfg" not in config:
        config["true_cfg"] = TRUE_CFG_WITH_NEGATIVE
        log.warning(f"a negative prompt without --true-cfg: {TRUE_CFG_WITH_NEGATIVE:g} is used")
    checked = Config(**config)
    return checked, "" if negative is None and checked.true_cfg > 1 else negative


def choose_seeds(run: Run) -> tuple[int, ...]:
    if run.auto_seeds is not None:
        check_number("auto_seeds", run.auto_seeds, 1, MAX_SEEDS, whole=True)
    if run.seed:
        if run.auto_seeds is not None:
            log.warning("--auto-seeds is not used: --seed says which seeds to draw")
        return tuple(check_seed(seed) for seed in run.seed)
    from random import sample

    return tuple(sample(range(AUTO_SEED_MAX), run.auto_seeds or 1))


def choose_model(command: Command, run: Run, base_model: str | None) -> tuple[str, str | None]:
    """The model's name, and the alias whose defaults it uses."""
    if run.path is not None:
        path = expand(run.path, "path")
        if not path.exists():
            raise UsageError(f"there is no folder `{run.path}`", "give the folder of a model", "path")
        if run.model is not None:
            require(run.model, "model")
        return str(path.absolute()), base_model or run.model
    name = run.model or command.default_model
    if not name:
        raise UsageError(
            "`--model` is missing",
            "try the built-in demonstration model: `--model tiny`; for FLUX.1: `--model schnell`",
        )
    check_name(name)
    if base_model is not None:
        require(base_model, "base_model")
    row = find(name, command.task) or by_repo(name)
    if row and TASK_CHANNELS[row.task] != TASK_CHANNELS[command.task]:  # known before a download
        problem = f"`{name}` takes {TASK_CHANNELS[row.task]} channels per token, but {command.name} needs"
        hint = f"use a model that was made for it, for example `--model {command.default_model or 'dev'}`"
        raise UsageError(f"{problem} {TASK_CHANNELS[command.task]}", hint, "model")
    return name, base_model


def read_prompt(run: Run, needed: bool = True) -> str:
    """The prompt from the flag, stdin or a file; empty where there is none and none is needed."""
    if not needed and run.prompt is None and run.prompt_file is None:
        return ""
    if (run.prompt is None) == (run.prompt_file is None):
        problem = "both `--prompt` and `--prompt-file` are given" if run.prompt is not None else "there is no prompt"
        raise UsageError(problem, "give one of `--prompt TEXT`, `--prompt -` (stdin) and `--prompt-file FILE`")
    if run.prompt_file is not None:
        return read_prompt_file(expand(run.prompt_file, "prompt_file"))
    if run.prompt != "-":
        return str(run.prompt)
    if sys.stdin is None:
        raise UsageError("stdin is closed", "pipe the prompt in, or give it as text", "prompt")
    return prompt_text(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "stdin", "prompt")


def read_prompt_file(path: Path, field: str = "prompt_file") -> str:
    with reading(path, field) as file:
        return prompt_text(file.read(MAX_PROMPT_BYTES + 1), f"`{path}`", field)


def read_turns(run: Run) -> tuple[str, ...]:
    """The instructions of `--turns`, one a line; none without it."""
    if run.turns is None:
        return ()
    if run.prompt is not None or run.prompt_file is not None:
        raise UsageError("the file holds the prompts", "give `--turns` alone, or one prompt without it", "turns")
    text = read_prompt_file(expand(run.turns, "turns"), "turns")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_sweep(run: Run, command: Command) -> tuple[str, list[float]]:
    """The field that a strip of pictures varies, and its values; none without `--sweep`."""
    if run.sweep is None:
        return "", []
    word, _, listed = run.sweep.partition("=")
    flag = f"--{word.lstrip('-').replace('_', '-')}"
    named = [option.name for option in command.options if option.flag == flag and option.parse.get("type")]
    try:
        return named[0], [float(each) for each in listed.split(",")]
    except (ValueError, IndexError):
        hint = "name a flag of this command that takes a number, and its values: `lambda-fine=0,2,4,6,8`"
        raise UsageError(f"`{run.sweep[:60]}` is no sweep", hint, "sweep") from None


def prompt_text(raw: bytes, name: str, field: str) -> str:
    if len(raw) > MAX_PROMPT_BYTES:
        raise UsageError(f"{name} is longer than {MAX_PROMPT_BYTES} bytes", "give a text file", field)
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text", "give a text file", field) from None
    if not text or "\0" in text:
        raise UsageError(f"{name} {'is empty' if not text else 'is binary'}", "give a text with the prompt", field)
    return text


def output_names(pattern: str, seeds: Sequence[int], turns: int = 0, prompt: str = "") -> list[str]:
    """A file name for each seed, and for each of its turns.  Raises UsageError for an unknown placeholder."""
    found = PLACEHOLDERS_OF.findall(pattern)
    unknown = [each for each in found if each not in PLACEHOLDERS and not INDEX.fullmatch(each)]
    if unknown:
        known = ", ".join(f"`{each}`" for each in PLACEHOLDERS)
        raise UsageError(f"`{pattern}` has an unknown placeholder, `{unknown[0]}`", f"known: {known}", "output")
    words = "-".join(re.findall(r"\w+", prompt))[:MAX_PROMPT_IN_NAME].rstrip("-") or "picture"
    if len(seeds) > 1 and not names_each(pattern):
        pattern = ending_in(pattern, "_seed_{seed}")
    names = [
        counted(pattern, index).replace("{seed}", str(seed)).replace("{prompt}", words)
        for index, seed in enumerate(seeds, 1)
    ]
    if not turns:
        return names
    return [ending_in(name, f"_turn_{turn}") for name in names for turn in range(1, turns + 1)]


def counted(pattern: str, number: int, text: str = "{}") -> str:
    """The pattern with a number in place of `{index}`, larger by what is added there."""
    return INDEX.sub(lambda match: text.format(int(match[1] or 0) + number), pattern)


def names_each(pattern: str) -> bool:
    """Whether the pictures of several seeds get several names."""
    return "{seed}" in pattern or INDEX.search(pattern) is not None


def ending_in(name: str, ending: str) -> str:
    """The name with an ending of its stem."""
    path = Path(name)
    return str(path.with_stem(path.stem + ending)) if path.stem else name
