"""Writes the reference pages from the table of commands and from docstrings: `python tools/pages.py`.

docs/commands/README.md, drawing.md (flags that every drawing command has), one page a command, and docs/python.md.
With `--pictures`, the examples are run with the built-in model, and what they draw is put on their pages
(docs/images/commands/).  A test fails where a page is stale, and runs every example.
"""

import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mflux
from mflux import conditions, errors
from mflux.cli.commands import BY_NAME, COMMANDS, SHORT
from mflux.cli.options import ADAPTERS, DRAWING, MODELS, OUTPUTS, PROMPTS, SHARED, WATCHING, Command, Option
from mflux.weights.catalog import BUILT_IN, SIDES, find

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = DOCS / "images" / "commands"
GENERATED = "<!-- made by tools/pages.py -->"
NEEDS = "<!-- needs a download -->\n"
BLOCK = re.compile(r"(<!-- needs a download -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
GROUPS = {
    "Texts": PROMPTS,
    "Models": MODELS,
    "LoRAs": ADAPTERS,
    "Drawing": DRAWING,
    "Files": OUTPUTS,
    "Watching": WATCHING,
}
# What the examples work on: a picture, another one, and a mask.
PREPARATION = """\
mflux-generate --model tiny --prompt "a large red circle in the center, on a blue background" \\
  --seed 4 --output circle.png
mflux-generate --model tiny --prompt "a large green square in the center, on a white background" \\
  --seed 5 --output square.png
python -c "
from PIL import Image, ImageDraw
mask = Image.new('L', (128, 128)); ImageDraw.Draw(mask).rectangle((16, 16, 112, 112), fill=255); mask.save('mask.png')"
"""
DRAW = "--model tiny --seed 1 --output drawn.png"
EXAMPLES = {
    "mflux-generate": """\
mflux-generate --model tiny --seed 3 --output drawn.png --prompt "a large pink heart, on a white background"
mflux-generate --model tiny --prompt "a small green ring, on a white background" --seed 1 2 3 \\
  --output "{prompt}-{seed}.png"
mflux-generate --model tiny --prompt "a large red square in the center, on a blue background" \\
  --image-path circle.png --image-strength 0.3
mflux-generate -C drawn.png --seed 7 --output again.png
printf '%s\\n' "a red heart" '{"prompt": "a black square", "seed": 3, "output": "square.webp"}' > jobs.jsonl
mflux-generate --model tiny --jobs jobs.jsonl
mflux-generate --model tiny --prompt "a red heart" \\
  --progress json --preview preview.png --stepwise-image-output-dir steps
""",
    "mflux-generate-fill": f"""\
mflux-generate-fill {DRAW} --prompt "a large green square in the center, on a blue background" \\
  --image-path circle.png --masked-image-path mask.png
mflux-generate-fill --model tiny --prompt "a large red circle in the center, on a blue background" \\
  --image-path circle.png --outpaint-padding "0,25%,0,25%" --output wide.png
""",
    "mflux-generate-canny": f"""\
mflux-generate-canny {DRAW} --prompt "a large green circle in the center, on a white background" \\
  --image-path circle.png --save-canny
""",
    "mflux-generate-depth": f"""\
mflux-generate-depth {DRAW} --prompt "a large green circle in the center, on a white background" \\
  --image-path circle.png --save-depth-map
""",
    "mflux-save-depth": "mflux-save-depth --model tiny --image-path circle.png --output depth.png\n",
    "mflux-generate-controlnet": f"""\
mflux-generate-controlnet {DRAW} --prompt "a large green circle in the center, on a white background" \\
  --controlnet-image-path circle.png --controlnet-strength 0.8 --controlnet-save-canny
""",
    "mflux-outpaint-canvas": 'mflux-outpaint-canvas circle.png --image-outpaint-padding "0,25%,0,25%"\n',
    "mflux-mask": "mflux-mask circle.png --output painted.png    # prints an address; saving in the page ends it\n",
    "mflux-upscale": f"""\
mflux-upscale {DRAW} --prompt "a large red circle in the center, on a blue background" \\
  --controlnet-image-path circle.png --scale 2
""",
    "mflux-generate-kontext": f"""\
mflux-generate-kontext {DRAW} --prompt "make the circle green" --image-path circle.png
printf '%s\\n' "make the circle green" "make the background white" > turns.txt
mflux-generate-kontext --model tiny --image-path circle.png --turns turns.txt --output chain.png
""",
    "mflux-generate-masked-edit": f"""\
mflux-generate-masked-edit {DRAW} --prompt "make the circle green" --image-path circle.png --mask-path mask.png
""",
    "mflux-generate-redux": f"""\
mflux-generate-redux {DRAW} --redux-image-paths circle.png square.png --redux-image-strengths 1 0.5
""",
    "mflux-generate-in-context": f"""\
mflux-generate-in-context {DRAW} --prompt "a large red circle in the center, on a blue background" \\
  --image-path circle.png --save-full-image
""",
    "mflux-generate-in-context-catvton": f"""\
mflux-generate-in-context-catvton {DRAW} --person-image circle.png --person-mask mask.png --garment-image square.png
""",
    "mflux-generate-in-context-edit": f"""\
mflux-generate-in-context-edit {DRAW} --reference-image circle.png --instruction "make the circle green"
""",
    "mflux-generate-fluxspace": f"""\
mflux-generate-fluxspace {DRAW} --prompt "a large red circle in the center, on a blue background" \\
  --edit-prompt yellow --lambda-fine 6
""",
    "mflux-generate-rf-inversion": f"""\
mflux-generate-rf-inversion {DRAW} --prompt "a large green circle in the center, on a blue background" \\
  --image-path circle.png
""",
    "mflux-concept": f"""\
mflux-concept {DRAW} --prompt "a large red circle in the center, on a blue background" --concepts circle background
""",
    "mflux-concept-from-image": f"""\
mflux-concept-from-image {DRAW} --prompt "a large red circle" --input-image-path circle.png --concepts circle background
""",
    "mflux-save": """\
mflux-save --model tiny --quantize 4 --path small
mflux-generate --model small --prompt "a pink heart, on a white background" --output heart.png
""",
    "mflux-info": "mflux-info circle.png\n",
    "mflux-check": "mflux-save --model tiny --path whole && mflux-check whole\n",
    "mflux-lora-library": "mkdir loras && touch loras/ink.safetensors && mflux-lora-library list --paths loras\n",
    "mflux-completions": "mflux-completions bash --dir completions\n",
    "mflux-train": "mflux-train --init-config > train.json\n",
}
BY_HAND = ("mflux-mask",)  # somebody has to paint
PUBLIC = (
    (mflux.Flux1, ("from_name", "plan", "generate_image", "draw", "colours", "preview")),
    (mflux.Config, ()),
    (mflux.GeneratedImage, ("metadata", "save", "save_artifacts", "save_metadata")),
)


def pages() -> dict[Path, str]:
    """Every page by its file."""
    found = {DOCS / "commands" / "README.md": index(), DOCS / "commands" / "drawing.md": drawing()}
    found |= {DOCS / "commands" / f"{command.name}.md": page(command) for command in COMMANDS}
    return found | {DOCS / "python.md": python()}


def index() -> str:
    rows = "\n".join(
        f"| [`{command.name}`]({command.name}.md) | `mflux {short(command)}` | {cell(command.summary)} |"
        for command in COMMANDS
    )
    return f"""{GENERATED}
# Commands

| command | also | what it does |
|---|---|---|
{rows}

Their examples run with the built-in model, on a picture or two and a mask that are made so:

```sh
{PREPARATION}```

[Flags of every drawing command](drawing.md) · [Python](../python.md) · [coming from other programs](../coming-from.md)
"""


def drawing() -> str:
    groups = "\n".join(f"## {title}\n\n{table(options)}" for title, options in GROUPS.items())
    return f"{GENERATED}\n# Flags of every drawing command\n\n{groups}"


def page(command: Command) -> str:
    """The page of one command."""
    own = [option for option in command.options if option not in SHARED]
    parts = [GENERATED, f"# {command.name}", f"{command.summary}  Also `mflux {short(command)}`."]
    if command.default_model and (row := find(command.default_model, command.task)):
        guidance = f", guidance {row.guidance:g}" if row.guidance else ""
        parts.append(f"Without `--model` it uses `{command.default_model}` ({row.repo}): {row.steps} steps{guidance}.")
    picture = PICTURES / f"{command.name}.webp"
    if picture.is_file():
        parts.append(f"![drawn by the first line below](../images/commands/{picture.name})")
    parts.append(f"{NEEDS if command.name in BY_HAND else ''}```sh\n{EXAMPLES[command.name]}```")
    if own:
        parts.append(f"## Flags\n\n{table(own).rstrip()}")
    if len(own) < len(command.options):
        parts.append("And the [flags of every drawing command](drawing.md).")
    return "\n\n".join(parts) + "\n"


def table(options: Iterator[Option] | Any) -> str:
    rows = "".join(
        f"| {', '.join(f'`{flag}`' for flag in option.flags.split())} | {cell(option.help)} |\n" for option in options
    )
    return f"| flag | meaning |\n|---|---|\n{rows}"


def cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")


def short(command: Command) -> str:
    return next(word for word, name in SHORT.items() if name == command.name)


def python() -> str:
    """The Python API, from signatures and docstrings."""
    parts = [GENERATED, "# Python", "```python\nfrom mflux import Config, Flux1, conditions\n```"]
    for owner, methods in PUBLIC:
        parts += described(owner.__name__, owner)
        for name in methods:
            parts += described(f"{owner.__name__}.{name}", inspect.getattr_static(owner, name), level=3)
    parts.append("# Conditions")
    parts.append("Of `mflux.conditions`, for `generate_image(..., conditions=[...])`.")
    for name in conditions.__all__:
        parts += described(name, getattr(conditions, name))
    parts.append("# Errors")
    parts.append(f"```text\n{inspect.cleandoc(errors.__doc__ or '')}\n```")
    return "\n\n".join(parts) + "\n"


def described(name: str, thing: Any, level: int = 2) -> list[str]:
    """A heading, how it is called, and what it says of itself."""
    called = getattr(thing, "__func__", getattr(thing, "func", thing))
    text = [f"{'#' * level} {name}"]
    if callable(called) and not hasattr(thing, "func"):  # a property is not called
        signature = inspect.signature(called)
        given = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
        words = [plain(str(each)) for each in given]
        named = [index for index, each in enumerate(given) if each.kind is each.KEYWORD_ONLY]
        if named:
            words.insert(named[0], "*")
        text.append("```text\n" + f"{name.rpartition('.')[2]}(\n    " + ",\n    ".join(words) + "\n)\n```")
    own = inspect.getdoc(called.__init__) if "__init__" in vars(called) and inspect.isclass(called) else None
    made = inspect.getdoc(called) or ""
    return [*text, escaped(made), *([escaped(own)] if own and "self" not in own and own != made else [])]


def plain(word: str) -> str:
    """A parameter without the homes of its types and without memory addresses."""
    word = re.sub(r"= Config\(.*?\)", "= Config()", word)
    word = (
        re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", word)
        .replace("numpy.ndarray", "ndarray")
        .replace("mlx.core.array", "array")
    )
    return re.sub(r" = <factory>| at 0x[0-9a-f]+", "", word)


def escaped(text: str) -> str:
    """The text without marks of Markdown or HTML outside its code."""
    parts = text.split("`")
    return "`".join(
        part.replace("<", "&lt;").replace("*", "\\*") if not n % 2 else part for n, part in enumerate(parts)
    )


def missing(command: Command) -> bool:
    """True where the built-in model of the command's task has not been trained yet."""
    row = find("tiny", command.task)
    needed = [row.folder] if row else []
    needed += [SIDES[role, "tiny"] for role in ROLES.get(command.name, ())]
    return any(not (BUILT_IN / folder).is_dir() for folder in needed)


ROLES = {"mflux-generate-depth": ("depth estimator",), "mflux-save-depth": ("depth estimator",)}


@cache
def scripts() -> tempfile.TemporaryDirectory[str]:
    """A folder of every command of this tree, whatever is installed."""
    folder = tempfile.TemporaryDirectory()
    for name in BY_NAME:
        file = Path(folder.name) / name
        file.write_text(f"#!{sys.executable}\nimport sys\nfrom mflux.cli.main import named\n\nsys.exit(named())\n")
        file.chmod(0o755)
    return folder


def run(block: str, folder: Path) -> None:
    """Run a block of shell commands in a folder; raises SystemExit with what it printed where one fails."""
    path = os.pathsep.join((scripts().name, str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(["bash", "-ec", block], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{block}\n{done.stdout.decode()}\n{done.stderr.decode()}")


def make_pictures() -> None:
    """Run every example, and keep what its first line drew."""
    from PIL import Image

    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(PREPARATION, Path(folder))
        for command in COMMANDS:
            if missing(command) or command.name in BY_HAND:
                continue
            drawn = Path(folder) / "drawn.png"
            drawn.unlink(missing_ok=True)
            run(EXAMPLES[command.name], Path(folder))
            if drawn.is_file():
                Image.open(drawn).save(PICTURES / f"{command.name}.webp", quality=85)


def main() -> None:
    if "--pictures" in sys.argv:
        make_pictures()
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (DOCS / "commands").glob("mflux-*.md"):
        if path.stem not in BY_NAME:
            path.unlink()


if __name__ == "__main__":
    main()
