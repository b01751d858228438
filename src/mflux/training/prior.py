"""Pictures of the class, drawn by the model before it learns.  Source: DreamBooth, arXiv 2208.12242."""

from pathlib import Path
from typing import Any

from mflux.engine.request import Config
from mflux.training.draws import number_of
from mflux.training.spec import Spec
from mflux.weights.files import digest


def drawn_class(spec: Spec, flux: Any, folder: Path) -> dict[str, Any]:
    """The prior's group, its pictures in a folder; those that are there from an earlier run are not drawn again."""
    prior = spec.training_loop.prior
    assert prior and prior.class_prompt
    height, width = spec.size
    config = Config(num_inference_steps=spec.steps, height=height, width=width, guidance=spec.guidance)
    name = digest(spec.model, spec.quantize, prior.class_prompt, spec.seed, config, height, width)[:12]
    files = [folder / f"{name}_{index:04d}.png" for index in range(prior.num)]
    for index, file in enumerate(files):
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            seed = number_of(spec.seed, "class", index) % 2**32
            flux.generate_image(seed, prior.class_prompt, config).save(file, overwrite=True)
    items = [{"image": file.name, "prompt": prior.class_prompt} for file in files]
    return {"path": str(folder.absolute()), "images": items, "weight": prior.weight}
