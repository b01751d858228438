"""`mflux-mask`: a page in the browser where a mask is painted over a picture; saving ends the command.

The page's server listens on 127.0.0.1 alone.  Every address holds a random token, and requests that come by another
host name (DNS rebinding) or from another page (its origin) are refused.  No file is served: there is the page, the
picture, and a place to send the mask to.
"""

import json
import secrets
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

from mflux.cli.options import Values
from mflux.engine.request import check_number
from mflux.errors import MfluxError, UsageError
from mflux.paths import check_output, expand

HOST = "127.0.0.1"
TOKEN_BYTES = 32
LOSSLESS = (".png", ".webp")
MAX_FEATHER = 512
MAX_HEADER = 1000
POLICY = "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src 'self'; connect-src 'self'; "
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class PaintMask:
    """image: the picture; output: where the mask goes; port: of the page; no_browser: only print its address."""

    image: str | None = None
    output: str | None = None
    port: int | None = None
    no_browser: bool = False


def run(values: Values) -> None:
    """Show the page until the mask is saved, and print its path."""
    wish = PaintMask(**values)
    if wish.image is None:
        raise UsageError("there is no picture", "name its file")
    if wish.port is not None:
        check_number("port", wish.port, 1024, 65535, whole=True)
    path = expand(wish.image, "image")
    target = check_output(wish.output or path.with_name(f"{path.stem}_mask.png"))
    if target.suffix.lower() not in LOSSLESS:
        raise UsageError(f"`{target}` would be changed by its format", f"use one of {', '.join(LOSSLESS)}", "output")

    from mflux.images.picture import open_picture

    with MaskServer(open_picture(wish.image, "image").rgb, target, wish.port or 0) as server:
        import sys

        print(f"paint the mask in your browser: {server.address}", file=sys.stderr, flush=True)
        if not wish.no_browser:
            webbrowser.open(server.address)
        server.serve_forever()
        assert server.saved is not None
        print(server.saved)


class MaskServer(ThreadingHTTPServer):
    """The page's server for one picture (H, W, 3) uint8; `saved` is the mask's path once it is written."""

    daemon_threads = True
    allow_reuse_address = False  # a port that somebody listens on is an error

    def __init__(self, rgb: Any, target: Path, port: int = 0):
        from PIL import Image

        self.height, self.width = int(rgb.shape[0]), int(rgb.shape[1])
        self.target, self.token = target, secrets.token_urlsafe(TOKEN_BYTES)
        self.saved: Path | None = None
        picture = BytesIO()
        Image.fromarray(rgb).save(picture, "PNG", compress_level=1)
        self.picture = picture.getvalue()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            problem = f"{port} cannot be listened on ({error.strerror})"
            raise UsageError(problem, "leave `port` out, so that a free one is taken", "port") from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def save(self, painted: bytes, feather: int) -> Path:
        """Write the mask of these bytes, one a pixel: 0 keeps, 255 paints.  feather: px over which its border is soft.

        Raises UsageError for other bytes, MfluxError where it cannot be written.
        """
        import numpy as np
        from PIL import Image, ImageFilter

        from mflux.images.metadata import save_picture

        values = np.frombuffer(painted, np.uint8)
        if values.size != self.height * self.width or not np.isin(values, (0, 255)).all():
            problem = f"a mask of {self.width} x {self.height} px has that many bytes, each 0 or 255"
            raise UsageError(problem, "reload the page")
        if not values.any():
            raise UsageError("nothing is painted", "paint where the picture should change")
        mask = Image.fromarray(values.reshape(self.height, self.width))
        if feather:
            mask = mask.filter(ImageFilter.GaussianBlur(feather / 2))
        self.saved = save_picture(mask, self.target, None, False, None)
        return self.saved


class Handler(BaseHTTPRequestHandler):
    """One request: refused unless it has the token and comes from this very page."""

    server: MaskServer
    server_version, sys_version = "mflux", ""
    timeout = 60

    def do_GET(self) -> None:
        if not self.allowed():
            return
        route = self.path.removeprefix(f"/{self.server.token}")
        if route == "/picture.png":
            self.reply(200, self.server.picture, "image/png")
        elif route == "/":
            self.page()
        else:
            self.refuse(404, "there is no such page")

    def do_POST(self) -> None:
        if not self.allowed():
            return
        length, feather = self.number("Content-Length"), self.number("X-Feather")
        if self.path != f"/{self.server.token}/mask":
            self.refuse(404, "there is no such page")
        elif self.headers.get("Origin") is None or length != self.server.height * self.server.width:
            self.refuse(400, "this is no mask of the picture")
        elif feather is None or feather > MAX_FEATHER:
            self.refuse(400, f"the feather is a whole number of px up to {MAX_FEATHER}")
        else:
            self.keep(self.rfile.read(length), feather)

    def allowed(self) -> bool:
        """True for a request of our own page; any other one is answered here."""
        hosts = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        if self.headers.get("Host") not in hosts:
            return self.refuse(403, "this host name is not this machine's own")
        if self.headers.get("Origin", f"http://{hosts[0]}") not in [f"http://{host}" for host in hosts]:
            return self.refuse(403, "another page asks")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self.refuse(403, "another page asks")
        token = self.path[1:].partition("/")[0]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self.refuse(403, "the address lacks the token")
        return True

    def number(self, header: str) -> int | None:
        """A header that is a whole number; None where it is none."""
        text = self.headers.get(header, "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < MAX_HEADER else None

    def page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        text = resources.files("mflux.cli").joinpath("paint_mask.html").read_text(encoding="utf-8")
        text = text.replace("NONCE", nonce).replace("WIDTH", str(self.server.width))
        text = text.replace("HEIGHT", str(self.server.height))
        self.reply(200, text.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": POLICY.format(nonce)})

    def keep(self, painted: bytes, feather: int) -> None:
        """Write the mask; the server ends once the page was told."""
        try:
            path = self.server.save(painted, feather)
        except MfluxError as error:
            self.refuse(400, error.problem)
            return
        self.reply(200, json.dumps({"path": str(path)}).encode(), "application/json")
        self.server.shutdown()

    def refuse(self, code: int, problem: str) -> bool:
        self.reply(code, json.dumps({"problem": problem}).encode(), "application/json")
        return False

    def reply(self, code: int, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.close_connection = True  # what is left of a refused body is not read as a request
        self.send_response(code)
        own = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        own |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Connection": "close"}
        for name, value in (own | dict(more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing: stderr is for people, and addresses hold the token."""
