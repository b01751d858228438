"""Make the case of CLIP's picture encoder with transformers: a tiny random model, a picture, its vector.

.venv/bin/python -m pip install ".[parity]"
.venv/bin/python tests/parity/make_clip_vision.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
TOLERANCE = 1e-4


def main() -> None:
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPVisionConfig(**sizes, image_size=56, patch_size=14, projection_dim=24)
    model = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    model.save_pretrained(ORACLE / "models" / "clip-vision")

    folder = ORACLE / "cases" / "clip-vision"
    folder.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(11).integers(0, 256, (9, 14, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((117, 83), Image.Resampling.BICUBIC)
    picture.save(folder / "image.png")
    side = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    pixels = CLIPImageProcessorPil(**side)(images=picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = model(pixels).image_embeds
    expected = {"pixel_values": pixels.numpy(), "image_embeds": embeds.numpy()}
    save_file(expected, folder / "expected.safetensors")
    case = {"case": "clip-vision", "pipeline": "clip-vision", "model": "clip-vision", "args": {}}
    case |= {"inputs": {"image": "image.png"}, "expected": dict.fromkeys(expected, TOLERANCE)}
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
