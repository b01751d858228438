"""Pictures to files: never overwritten, never half-written, with their metadata inside.

Metadata is one JSON object in EXIF's UserComment (ASCII prefix, `\\u` escapes), the flat keys of mflux 0.24 and our
`request`.  A JPEG holds at most 64 KB of it; then `request` is left out.  A PNG holds it as XMP too, which some
programs keep where they drop EXIF, with the prompt as its description for those that know nothing of mflux.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import piexif
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mflux.errors import MfluxError
from mflux.paths import FORMATS, check_output, check_output_size

MAX_NAME_BYTES = 255
EXIF_FOLDER = 0x8769  # the tag that holds the EXIF block
JPEG_EXIF_LIMIT = 65_000
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
XMP_LIMIT = 10_000_000  # characters that are read
XMP_TEXT = "XML:com.adobe.xmp"  # a PNG's text that holds XMP
RDF, DC = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"
MFLUX = "http://ns.mflux.ai/1.0/"  # of mflux 0.11 and later: seed, steps, guidance, model, loras; `metadata` is ours
XMP = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:dc="{DC}" '
    f'xmlns:mflux="{MFLUX}"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">{{}}</rdf:li></rdf:Alt>'
    "</dc:description><mflux:metadata>{}</mflux:metadata></rdf:Description></rdf:RDF></x:xmpmeta>"
)
LOSSY = {"quality": 95, "subsampling": 0}


def exif_bytes(metadata: dict[str, Any], limit: int | None = None) -> bytes:
    """EXIF with the metadata as its UserComment."""
    comment = b"ASCII\x00\x00\x00" + json.dumps(metadata).encode("ascii")
    if limit and len(comment) > limit:
        if "request" in metadata:
            return exif_bytes({key: value for key, value in metadata.items() if key != "request"}, limit)
        return b""
    return piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata object inside a picture; None where there is none.

    Reads EXIF with the prefixes of mflux 0.9 and 0.24, a PNG's texts that are JSON, and XMP, the first that there is.
    Raises OSError for a file that is no picture.
    """
    try:
        with Image.open(path) as image:
            return next((found for found in tellings(image) if found is not None), None)
    except OSError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds, SyntaxError among them
        raise OSError(str(error)) from None


def tellings(image: Image.Image) -> Iterator[dict[str, Any] | None]:
    """What each place of a picture tells."""
    comment = image.getexif().get_ifd(EXIF_FOLDER).get(piexif.ExifIFD.UserComment)
    yield from_json(comment.encode("latin-1", "replace") if isinstance(comment, str) else comment)
    texts = getattr(image, "text", {})  # of a PNG, also those behind its pixels
    for text in texts.values():
        found = from_json(text.encode("utf-8", "replace"))
        yield found if found and isinstance(found.get("prompt"), str) else None  # other programs write JSON too
    yield from_xmp(image.info.get("xmp") or texts.get(XMP_TEXT, ""))


def from_json(raw: Any) -> dict[str, Any] | None:
    """A JSON object of UTF-8 bytes, behind EXIF's prefix or not."""
    try:
        value = json.loads(raw.removeprefix(b"ASCII\x00\x00\x00").decode("utf-8"))
    except (AttributeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def from_xmp(packet: str | bytes) -> dict[str, Any] | None:
    """Our metadata in an XMP packet, or what mflux 0.24 tells there, under its flat keys."""
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else packet
    if MFLUX not in text or "<!DOCTYPE" in text or len(text) > XMP_LIMIT:  # XMP has no DTD, but entities that grow do
        return None
    try:
        root = ElementTree.fromstring(text.strip("\0\ufeff \r\n\t"))
    except (ElementTree.ParseError, ValueError):
        return None
    prefix = f"{{{MFLUX}}}"
    found = {
        key.removeprefix(prefix): value
        for node in root.iter()  # a property is an element, or an attribute of its rdf:Description
        for key, value in ((node.tag, node.text), *node.attrib.items())
        if value and key.startswith(prefix)
    }
    if "metadata" in found:
        return from_json(found["metadata"].encode())
    values: dict[str, Any] = {key: number(found[key]) for key in ("seed", "steps", "guidance") if key in found}
    values |= {"model": found["model"]} if "model" in found else {}
    if prompt := root.findtext(f".//{{{DC}}}description//{{{RDF}}}li"):
        values["prompt"] = prompt
    if loras := found.get("loras"):  # `ink.safetensors:0.5, film.safetensors:1.0`
        pairs = [each.rpartition(":") for each in loras.split(", ")]
        values |= {"lora_paths": [name for name, _, _ in pairs], "lora_scales": [number(scale) for *_, scale in pairs]}
    return values or None


def number(text: str) -> Any:
    """The number that a text tells; else the text, which its flag refuses."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def xmp(metadata: dict[str, Any]) -> PngInfo:
    """The metadata, and its prompt as Dublin Core's description, without characters that XML cannot hold.  Source:
    Adobe, XMP part 1."""
    info = PngInfo()
    packet = XMP.format(escape(NO_XML.sub("", metadata["prompt"])), escape(json.dumps(metadata)))
    info.add_itxt(XMP_TEXT, packet)
    return info


def save_picture(
    image: Image.Image,
    path: str | os.PathLike[str],
    metadata: dict[str, Any] | None,
    overwrite: bool,
    icc: bytes | None,
) -> Path:
    """Write a picture and return its path: `path`, or with `_1`, `_2`, ... where that exists and is not overwritten."""
    target = check_output(path)
    check_output_size(target, image.height, image.width)
    kind = FORMATS[target.suffix.lower()]
    options: dict[str, Any] = {} if kind == "PNG" else dict(LOSSY) if kind == "JPEG" else {"lossless": True}
    if metadata:
        options["exif"] = exif_bytes(metadata, JPEG_EXIF_LIMIT if kind == "JPEG" else None)
        if kind == "PNG" and "prompt" in metadata:
            options["pnginfo"] = xmp(metadata)
    if icc:
        options["icc_profile"] = icc
    if kind == "JPEG" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")

    def write(file: Any) -> None:
        image.save(file, format=kind, **options)

    return write_file(target, write, overwrite)


def save_json(value: dict[str, Any], path: Path, overwrite: bool) -> Path:
    """Write a JSON side file; returns the path written."""
    text = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "replace")
    return write_file(path, lambda file: file.write(text), overwrite)


def write_file(target: Path, write: Any, overwrite: bool) -> Path:
    """Write to a temporary file beside the target, then give it its name; a taken name gets `_1`, `_2`, ..."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:40]}-")
    except OSError as error:
        raise MfluxError(
            f"`{target}` cannot be written ({error.strerror})", "choose another folder", "output"
        ) from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o666 & ~current_umask())
        return named_free(Path(temporary), target, overwrite)
    except OSError as error:
        raise MfluxError(f"`{target}` cannot be written ({error.strerror})", "is the disk full?", "output") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def named_free(temporary: Path, target: Path, overwrite: bool) -> Path:
    """Rename to the target, or to the first free numbered name beside it; atomic, also between processes."""
    if overwrite:
        os.replace(temporary, target)
        return target
    for number in count():
        name = target if number == 0 else target.with_name(numbered(target, number))
        try:
            os.link(temporary, name)
            return name
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links
            if not name.exists():
                os.replace(temporary, name)
                return name
    raise AssertionError("counted to the end")


def numbered(target: Path, number: int) -> str:
    """The name with `_1`, ... before its ending, the stem cut where the whole would be too long for a file name."""
    ending = f"_{number}{target.suffix}"
    stem = target.stem
    while len(os.fsencode(stem + ending)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
