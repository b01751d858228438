"""`mflux-save`: flags to a Saving, with a progress bar."""

import sys

from mflux.cli.options import Values
from mflux.cli.parse import choose_loras
from mflux.engine.request import check_choice
from mflux.errors import UsageError
from mflux.paths import expand
from mflux.weights.catalog import BITS, LAYOUTS, check_name, require


def save_model(values: Values) -> None:
    """Check the words, save, print the folder.  Raises MfluxError."""
    for name, flag in (("model", "--model"), ("target", "--path")):
        if name not in values:
            raise UsageError(f"`{flag}` is missing", "give the model with `--model`, the new folder with `--path`")
    layout, bits = values.get("layout", LAYOUTS[0]), values.get("quantize")
    check_choice("layout", layout, LAYOUTS)
    if bits is not None:
        check_choice("quantize", bits, BITS)
    check_name(values["model"])
    if "base_model" in values:
        require(values["base_model"], "base_model")
    target, loras = expand(values["target"], "target"), choose_loras(values)

    from tqdm import tqdm

    from mflux.engine.flux import paired
    from mflux.weights.lora_files import find_lora
    from mflux.weights.resolve import resolve
    from mflux.weights.save import Saving, save_model

    files = [(find_lora(path), scale) for path, scale in paired(loras["lora_paths"], loras["lora_scales"])]
    source = resolve(values["model"], base_model=values.get("base_model"))
    saving = Saving(source, target, layout, bits, files, values.get("allow_partial_lora", False))
    with tqdm(unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:

        def report(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        folder = save_model(saving, report)
    for file in saving.files:
        print(f"note: {file.note}", file=sys.stderr)
    print(folder)
