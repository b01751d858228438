"""The table of commands: each flag has a reader, and help costs nothing."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, make_dataclass
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mflux import Config, Flux1, conditions
from mflux.cli.commands import BY_NAME, COMMANDS
from mflux.cli.draw import Run
from mflux.cli.options import place, real, side, whole
from mflux.cli.outpaint_canvas import OutpaintCanvas
from mflux.cli.paint_mask import PaintMask
from mflux.cli.parse import parse, spelled
from mflux.cli.save_depth import SaveDepth
from mflux.cli.watch import Watching
from mflux.engine.request import Request
from mflux.weights.save import Saving

READERS = {"Run": Run, "Config": Config, "Request": Request, "Flux1": Flux1, "Saving": Saving}
SPOKEN = "file model action paths shell folder train_config train_checkpoint settings examples quantize rank seed "
SPOKEN += "learning_rate max_steps batch_size resolution output_path dry_run init_config export force allow_mismatch"
READERS["Asked"] = make_dataclass("Asked", SPOKEN.split())  # read straight from the values
READERS |= {"SaveDepth": SaveDepth, "OutpaintCanvas": OutpaintCanvas, "PaintMask": PaintMask, "Watching": Watching}
HEAVY = "('mlx.core', 'numpy', 'PIL', 'transformers', 'tokenizers', 'huggingface_hub', 'torch')"


def readable(name: str) -> set[str]:
    reader = READERS.get(name) or getattr(conditions, name)
    return {each.name for each in fields(reader)} if is_dataclass(reader) else set(signature(reader).parameters)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_flag_is_read_by_the_class_it_names(command):
    for option in command.options:
        for reads in option.reads.split():
            owner, field = reads.split(".")
            assert field in readable(owner), f"nobody reads {option.flags}"
            assert option.name == (reads if option.qualified else field)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_flag_is_there_twice(command):
    flags = [flag for option in command.options for flag in option.flags.split()]
    assert len(flags) == len(set(flags))
    assert len({option.name for option in command.options}) == len(command.options)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "mflux-generate",
            "--prompt --prompt-file --negative-prompt --true-cfg --model --path --output --seed --auto-seeds --height "
            "--width --steps --guidance --quantize --image-path --image-strength --mask-path --vae-tiling "
            "--max-sequence-length --noise --batch-size --metadata --no-metadata --ip-adapter --ip-adapter-image "
            "--ip-adapter-scale --vae-tiling-split --no-exif --make-conf --jobs "
            "--progress --preview --stepwise-image-output-dir --battery-percentage-stop-limit -B",
        ),
        (
            "mflux-generate-fill",
            "--prompt --model --image-path --masked-image-path --mask-path --no-composite --seed --edit-mode "
            "--outpaint-padding --image-outpaint-padding",
        ),
        ("mflux-generate-kontext", "--prompt --image-path --turns --fit --guidance"),
        (
            "mflux-generate-masked-edit",
            "--image-path --mask-path --masked-image-path --reference-image --strength --padding-mask-crop --mask-grow "
            "--feather --composite --fit",
        ),
        (
            "mflux-generate-fluxspace",
            "--edit-prompt --lambda-fine --lambda-coarse --mask-threshold --edit-start --edit-stop --save-edit-masks "
            "--sweep",
        ),
        (
            "mflux-generate-rf-inversion",
            "--image-path --gamma --eta --eta-start --eta-stop --eta-schedule --start --sde",
        ),
        ("mflux-generate-fluxspace", "--image-path --gamma --eta"),
        (
            "mflux-concept",
            "--concepts --background-concepts --concept --heatmap-layer-indices --heatmap-timesteps --space",
        ),
        ("mflux-concept-from-image", "--concepts --concept --heatmap-layer-indices --space --input-image-path"),
        ("mflux-generate-redux", "--redux-image-paths --redux-image-strengths --redux-combine"),
        ("mflux-generate-in-context", "--image-path --reference-image --lora-style --layout --save-full-image"),
        ("mflux-generate-in-context-catvton", "--person-image --person-mask --garment-image --save-full-image"),
        ("mflux-generate-in-context-edit", "--reference-image --image-path --instruction --save-full-image"),
        (
            "mflux-generate-canny",
            "--image-path --canny-image-path --save-canny --canny-low --canny-high --seed --model --fit",
        ),
        ("mflux-generate-depth", "--image-path --depth-image-path --save-depth-map --seed --model --guidance --fit"),
        ("mflux-outpaint-canvas", "--image-outpaint-padding"),
        ("mflux-mask", "--output --port"),
        ("mflux-upscale", "--controlnet-image-path --controlnet-strength --height --width --guidance --vae-tiling"),
        ("mflux-save-depth", "--image-path --output --quantize -q"),
        (
            "mflux-generate-controlnet",
            "--controlnet-image-path --controlnet-model --controlnet-strength --control-mode --control-start "
            "--control-end --control-map --controlnet-save-canny --canny-low --canny-high --model --seed --fit",
        ),
    ],
)
def test_the_flags_of_the_contract_are_there(command, flags):
    known = {flag for option in BY_NAME[command].options for flag in option.flags.split()}
    assert set(flags.split()) <= known


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_values_can_be_spelled_as_flags_again(command):
    """Every flag of the command at once, with values that are easily misread."""
    values = {}
    for option in command.options:
        words = {whole: 3, side: 3, real: -0.5, place: -0.5}.get(option.parse.get("type"), "-a b")
        if not option.is_flag:
            words = option.parse.get("choices", ("file",))[0]
        elif str(option.parse.get("nargs")) in "+*":
            words = [words, words] if words != "-a b" else ["a b", "c"]
        action = option.parse.get("action", "")
        if action == "append_const":
            words = [option.parse["const"]]
        elif action.startswith("store_"):
            words = action == "store_true"
        elif action == "append":
            words = [words, words]
        values[option.name] = words
    assert parse(command, [*spelled(command, values)]) == values


@pytest.mark.parametrize("command", BY_NAME)
def test_help_lists_every_flag_and_imports_nothing_heavy(command):
    code = (
        "import sys; from mflux.cli.main import main; from mflux.cli.commands import BY_NAME\n"
        f"try: main(BY_NAME[{command!r}], ['--help'])\n"
        f"finally: print('HEAVY', *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("HEAVY\n") and done.stderr == ""
    for option in BY_NAME[command].options:
        assert all(flag in done.stdout for flag in option.flags.split())


@pytest.mark.parametrize("flags", [["--help"], ["--steps", "0"], ["--hight", "3"], ["--model", "schnel"]])
def test_what_needs_no_picture_imports_little(flags):
    """Counted, because a busy machine has no time to measure; `benchmarks/start.py` prints the times."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from mflux.cli.main import main; from mflux.cli.commands import BY_NAME\n"
        "try: main(BY_NAME['mflux-generate'], ['--prompt', 'x', *sys.argv[1:]])\n"
        "finally: print('NEW', len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) <= 110, done.stdout  # measured: 95 to 104


def test_a_lora_is_drawn_with_and_told_in_the_metadata(cli, oracle_model, tmp_path):
    random = np.random.default_rng(0)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": random.standard_normal((4, 48), np.float32)}
    tensors[f"{layer}.lora_B.weight"] = random.standard_normal((48, 4), np.float32)
    file = tmp_path / "ink.safetensors"
    save_file(tensors, file)
    size = ("--height", "16", "--width", "16", "--steps", "1", "--max-sequence-length", "8")
    lora = ("--lora-paths", file, "--lora-scales", "0.5", "--metadata")
    assert cli("--prompt", "x", "--model", oracle_model("dev"), *size, *lora).code == 0
    told = json.loads(Path("image.json").read_text())
    assert (told["lora_paths"], told["lora_scales"]) == ([str(file)], [0.5])
