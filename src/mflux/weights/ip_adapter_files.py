"""IP-Adapter files: where they are, how they call their tensors, which sizes follow from those."""

import re
from pathlib import Path

from mflux.errors import ModelError, UsageError
from mflux.models.ip_adapter import IPAdapterConfig, IPAdapterNetwork
from mflux.paths import expand
from mflux.weights.catalog import check_repo
from mflux.weights.files import read_header
from mflux.weights.hub import download_snapshot
from mflux.weights.kinds import KINDS, NetworkKind
from mflux.weights.layouts import read_table
from mflux.weights.resolve import RUNS_CODE, Side, find_side

ADAPTER_FILE = "ip_adapter.safetensors"
# IP-Adapters: XLabs' names, and those of other converters.
IP_ADAPTER = read_table("""
    ip_adapter_proj_model.proj -> image_proj.proj
    ip_adapter_proj_model.norm -> image_proj.norm
    double_blocks.{i}.processor.ip_adapter_double_stream_k_proj -> blocks.{i}.to_k_ip
    double_blocks.{i}.processor.ip_adapter_double_stream_v_proj -> blocks.{i}.to_v_ip
    ip_adapter.{i}.to_k_ip -> blocks.{i}.to_k_ip
    ip_adapter.{i}.to_v_ip -> blocks.{i}.to_v_ip
""")


def find_adapter(name: str, field: str) -> Side:
    """Find an IP-Adapter: a safetensors file, or the one in a folder or hub repository.  Raises as `find_side`."""
    place = expand(name, field)
    if place.suffix in RUNS_CODE:
        find_side("ip_adapter", name, field)
    if not place.exists():
        check_repo(name, field)
        place = download_snapshot(name, [ADAPTER_FILE], lambda folder: read_header(folder / ADAPTER_FILE))
    file = place / ADAPTER_FILE if place.is_dir() else place
    if file.suffix != ".safetensors" or not file.is_file():
        raise UsageError(
            f"`{name}` is no IP-Adapter", f"give its safetensors file, or a folder with {ADAPTER_FILE}", field
        )
    return Side("ip_adapter", file, stays=True)


def adapter_sizes(path: Path) -> IPAdapterConfig:
    """The sizes of an IP-Adapter file.  Raises ModelError if it is none."""
    shapes: dict[str, list[tuple[int, ...]]] = {}  # of our weights, the block left out of their names
    for name, info in read_header(path).items():
        module, _, leaf = re.sub(r"\d+", "{i}", name).rpartition(".")
        rule = IP_ADAPTER.get(module)
        shapes.setdefault(f"{rule.ours[0] if rule else module}.{leaf}", []).append(info.shape)
    try:
        rows, image_width = shapes["image_proj.proj.weight"][0]
        (token_width,) = shapes["image_proj.norm.weight"][0]
        blocks = shapes["blocks.{i}.to_k_ip.weight"]
        width, tokens = blocks[0][0], rows // token_width
    except (KeyError, ValueError, ZeroDivisionError):
        problem = f"`{path}` is no IP-Adapter of FLUX.1"
        raise ModelError(problem, "give XLabs' ip_adapter.safetensors, or one in its layout") from None
    return IPAdapterConfig(image_width, tokens, token_width, width, len(blocks))


KINDS["ip_adapter"] = NetworkKind(IPAdapterConfig, IPAdapterNetwork, sizes=adapter_sizes, table=IP_ADAPTER)
