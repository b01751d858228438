"""Files: whole or not at all, never over another, with their metadata inside."""

import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import piexif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mflux.errors import MfluxError, UsageError
from mflux.images.metadata import check_output, read_metadata, save_json, save_picture, write_file

NAMESPACES = (
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:mflux="http://ns.mflux.ai/1.0/"'
)
DESCRIPTION = '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>'
IMAGE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 48, 3), np.uint8))
METADATA = {"prompt": "ein Füchslein 🦊 \udcff", "seed": 2**64 - 1, "guidance": 3.5, "request": {"seeds": [1]}}


def save(path, metadata=METADATA, overwrite=False, image=IMAGE, icc=None):
    return save_picture(image, path, metadata, overwrite, icc)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "PNG", "JPG"])
def test_metadata_is_read_back_from_every_format(tmp_path, ending):
    assert read_metadata(save(tmp_path / f"fox.{ending}")) == METADATA


def test_the_comment_has_the_ascii_prefix_and_escapes(tmp_path):
    exif = piexif.load(Image.open(save(tmp_path / "fox.png")).info["exif"])
    comment = exif["Exif"][piexif.ExifIFD.UserComment]
    assert comment.startswith(b"ASCII\0\0\0{") and comment.isascii()
    assert rb"F\u00fcchslein \ud83e\udd8a \udcff" in comment
    assert json.loads(comment[8:]) == METADATA


def test_without_metadata_there_is_none(tmp_path):
    path = save(tmp_path / "fox.png", metadata=None)
    assert read_metadata(path) is None and "exif" not in Image.open(path).info


def test_older_prefixes_and_strangers_are_read(tmp_path):
    for comment, value in [
        (b'{"seed": 3}', {"seed": 3}),
        (b'ASCII\0\0\0{"seed": 3}', {"seed": 3}),
        (b"ASCII\0\0\0a photo", None),
        (b"ASCII\0\0\0[1]", None),
        (b"\xff\xfe", None),
        (b"ASCII\0\0\0" + b"[" * 100_000, None),
    ]:
        exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
        IMAGE.save(tmp_path / "old.png", exif=exif)
        assert read_metadata(tmp_path / "old.png") == value, comment[:30]


def packet(properties, attributes=""):
    """XMP as mflux 0.24 puts it into a PNG."""
    about = f'<rdf:RDF {NAMESPACES}><rdf:Description rdf:about="" {attributes}>{properties}</rdf:Description></rdf:RDF>'
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">{about}'
        '</x:xmpmeta>\n<?xpacket end="w"?>'
    )


def saved_with_xmp(path, text):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    IMAGE.save(path, pnginfo=info) if path.suffix == ".png" else IMAGE.save(path, xmp=text.encode())
    return path


TOLD_BY_XMP = (
    DESCRIPTION.format("a fox &amp; “größer” 狐") + "<dc:creator><rdf:Seq><rdf:li>MFLUX</rdf:li></rdf:Seq></dc:creator>"
    "<mflux:seed>42</mflux:seed><mflux:steps>2</mflux:steps><mflux:guidance>3.5</mflux:guidance>"
    "<mflux:model>dev</mflux:model><mflux:loras>ink.safetensors:0.5, film:1.0</mflux:loras>"
    "<mflux:generationTimeSeconds>1.25</mflux:generationTimeSeconds>"
)
MEANT_BY_XMP = {
    "seed": 42, "steps": 2, "guidance": 3.5, "model": "dev", "prompt": "a fox & “größer” 狐",
    "lora_paths": ["ink.safetensors", "film"], "lora_scales": [0.5, 1.0],
}  # fmt: skip


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_what_mflux_0_24_tells_as_xmp_is_read_from_every_format(tmp_path, ending):
    assert read_metadata(saved_with_xmp(tmp_path / f"fox.{ending}", packet(TOLD_BY_XMP))) == MEANT_BY_XMP


def test_our_own_xmp_holds_the_whole_metadata(tmp_path):
    """As where a program drops EXIF and keeps XMP."""
    text = Image.open(save(tmp_path / "fox.png")).info["XML:com.adobe.xmp"]
    assert read_metadata(saved_with_xmp(tmp_path / "kept.jpg", text)) == METADATA
    assert read_metadata(saved_with_xmp(tmp_path / "kept.png", text)) == METADATA


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (packet("", 'mflux:seed="3" mflux:steps="4"'), {"seed": 3, "steps": 4}),
        (packet("<mflux:seed>many</mflux:seed>"), {"seed": "many"}),
        (packet("<mflux:guidance>None</mflux:guidance>"), {"guidance": "None"}),
        (packet(DESCRIPTION.format("a photo")).replace("http://ns.mflux.ai", "http://example.org"), None),
        (packet(DESCRIPTION.format("a photo")).replace('xmlns:mflux="http://ns.mflux.ai/1.0/"', ""), None),
        (packet("<mflux:seed>3"), None),
        (packet("<mflux:metadata>{</mflux:metadata>"), None),
        (packet("<mflux:seed>" + "[" * 100_000 + "</mflux:seed>"), {"seed": "[" * 100_000}),
        ('<!DOCTYPE a [<!ENTITY b "bb">]>' + packet("<mflux:seed>&b;</mflux:seed>"), None),
        ("http://ns.mflux.ai/1.0/", None),
    ],
)
def test_xmp_that_is_strange_is_read_or_left_alone(tmp_path, text, value):
    assert read_metadata(saved_with_xmp(tmp_path / "x.png", text)) == value


@pytest.mark.parametrize("compressed", [False, True])
def test_a_png_s_text_that_is_our_json_is_read(tmp_path, compressed):
    info = PngInfo()
    info.add_text("workflow", '{"nodes": []}')
    info.add_text("prompt", '{"3": {"class_type": "KSampler"}}')  # another program's
    info.add_text("Comment", json.dumps(METADATA), zip=compressed)
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    assert read_metadata(tmp_path / "x.png") == METADATA


def test_a_damaged_picture_is_an_os_error(tmp_path):
    """Not one of the many kinds that Pillow raises: here SyntaxError."""
    path = save(tmp_path / "fox.webp")
    path.write_bytes(path.read_bytes().replace(b"MM\0*", b"MM\0x"))
    with pytest.raises(OSError, match="not a TIFF file"):
        read_metadata(path)


def test_a_jpeg_s_request_is_left_out_where_it_is_too_long(tmp_path):
    long = {**METADATA, "request": {"prompt": "x" * 70_000}}
    assert read_metadata(save(tmp_path / "fox.jpg", long)) == {k: v for k, v in METADATA.items() if k != "request"}
    assert read_metadata(save(tmp_path / "fox.png", long)) == long
    assert read_metadata(save(tmp_path / "fox.jpg", {"prompt": "x" * 70_000})) is None


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_png_and_webp_keep_every_pixel_and_the_profile(tmp_path, ending):
    rgba = np.dstack([np.asarray(IMAGE), np.full((32, 48), 200, np.uint8)])
    written = Image.open(save(tmp_path / f"fox.{ending}", image=Image.fromarray(rgba), icc=b"profile"))
    assert np.array_equal(np.asarray(written), rgba) and written.info["icc_profile"] == b"profile"


def test_a_jpeg_lays_transparency_on_white(tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert np.asarray(Image.open(save(tmp_path / "fox.jpg", image=clear))).min() >= 254


def test_a_taken_name_gets_a_number(tmp_path):
    names = [save(tmp_path / "fox.png").name for _ in range(3)]
    assert names == ["fox.png", "fox_1.png", "fox_2.png"]
    assert save(tmp_path / "fox.png", overwrite=True).name == "fox.png"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_dangling_link_is_a_taken_name(tmp_path):
    (tmp_path / "fox.png").symlink_to(tmp_path / "elsewhere.png")
    assert save(tmp_path / "fox.png").name == "fox_1.png"
    assert not (tmp_path / "elsewhere.png").exists()


def test_a_name_of_full_length_that_is_taken_still_gets_a_number(tmp_path):
    longest = tmp_path / ("n" * 251 + ".png")
    first, second = save(longest), save(longest)
    assert first != second and second.is_file() and second.suffix == ".png"


def test_many_at_once_get_names_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: write_file(tmp_path / "fox.png", lambda f: f.write(b"x"), False), range(24)))
    assert {path.name for path in paths} == {"fox.png", *(f"fox_{n}.png" for n in range(1, 24))}
    assert len(list(tmp_path.iterdir())) == 24


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def half(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("new.png", "old.png"):
        with pytest.raises(MfluxError, match="No space left on device") as error:
            write_file(tmp_path / name, half, True)
        assert error.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "new.png", interrupted, False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    """A limit on file sizes stands for the full disk; in a process of its own, because it holds for all its files."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from PIL import Image; from mflux.images.metadata import save_picture\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "try: save_picture(Image.effect_noise((64, 64), 90).convert('RGB'), sys.argv[1], None, False, None)\n"
        "except Exception as error: print(type(error).__name__, error.exit_code)"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True)
    assert done.stdout == "MfluxError 1\n", done
    assert not list(tmp_path.iterdir())


def test_files_have_the_rights_of_the_user_s_umask(tmp_path):
    old = os.umask(0o027)
    try:
        assert save(tmp_path / "fox.png").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def test_missing_folders_are_made(tmp_path):
    assert save(tmp_path / "a" / "b" / "fox.png").is_file()


def test_a_side_file_is_readable_text(tmp_path):
    path = save_json(METADATA, tmp_path / "fox.json", False)
    text = path.read_text(encoding="utf-8")
    assert "ein Füchslein 🦊" in text and json.loads(text)["seed"] == 2**64 - 1


@pytest.mark.parametrize("name", ["fox", "fox.gif", "fox.png.txt", ".png", "", ".", "/", "fox.png/"])
def test_a_name_that_is_no_picture_s_is_refused(name):
    with pytest.raises(UsageError) as error:
        check_output(name)
    assert error.value.hint and error.value.field == "output"


def test_checking_a_name_writes_nothing(tmp_path):
    check_output(tmp_path / "new" / "fox.png")
    assert not list(tmp_path.iterdir())


def test_a_webp_larger_than_the_format_allows_says_why(tmp_path):
    with pytest.raises(MfluxError, match="16383"):
        save(tmp_path / "long.webp", image=Image.new("RGB", (16384, 16)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "prompt", ["a fox & <b>snow</b>", "ein Füchslein 🦊", "a\0b\x1b[2J\udcff\uffff", "", "two\nlines"]
)
def test_a_png_tells_its_prompt_to_programs_that_know_nothing_of_mflux(tmp_path, prompt):
    path = save_picture(Image.new("RGB", (16, 16)), tmp_path / "x.png", {"prompt": prompt}, False, None)
    with Image.open(path) as image:
        root = ElementTree.fromstring(image.info["XML:com.adobe.xmp"])
    (told,) = root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    assert (told.text or "") == "".join(each for each in prompt if each not in "\0\x1b\udcff\uffff")
    assert read_metadata(path)["prompt"] == prompt
    assert "XML:com.adobe.xmp" not in Image.open(save_picture(Image.new("L", (9, 9)), path, None, False, None)).info
