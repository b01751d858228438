"""The three ways to name LoRAs on the command line, as one list."""

from typing import Any

from mflux.cli.options import LORA_REPO, Values
from mflux.errors import UsageError


def choose_loras(values: Values) -> dict[str, Any]:
    """`lora_paths` and `lora_scales` from the three ways to name LoRAs.  Raises UsageError where they are mixed."""
    paths, scales = list(values.get("lora_paths", ())), list(values.get("lora_scales", ()))
    pairs, name, repo = values.get("adapters", ()), values.get("lora_name"), values.get("lora_repo_id")
    if pairs and (paths or scales):
        raise UsageError("`--lora` and `--lora-paths` are both given", "use `--lora PATH SCALE` for each of them")
    for words in pairs:
        if len(words) > 2:
            problem = f"`--lora {' '.join(words)}` has {len(words)} words"
            raise UsageError(problem, "give `--lora PATH SCALE` for each LoRA")
        paths.append(words[0])
        scales.append(lora_scale(words[1]) if len(words) == 2 else 1.0)
    if name or repo:
        paths.insert(0, f"{repo or LORA_REPO}" + (f":{name.removesuffix('.safetensors')}.safetensors" if name else ""))
        scales = [1.0, *scales] if scales else []
    return {"lora_paths": paths, "lora_scales": scales}


def lora_scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"the scale {text!r} is not a number", "give `--lora PATH SCALE`", "adapters") from None
