"""A hub on the loopback address: the requests that huggingface_hub makes, answered from a folder, with faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789" * 4
ERROR_CODES = {401: "GatedRepo", 403: "GatedRepo", 404: "RepoNotFound"}


@dataclass
class Hub:
    """One repository.  status: answers everything with an error; redirect: files live at another address.

    cuts: how many times the largest file's connection breaks in the middle.  requests: (method, path, Range header).
    """

    repo: str
    folder: Path
    status: int = 200
    redirect: bool = False
    cuts: int = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def largest(self) -> Path:
        return max(self.files(), key=lambda path: path.stat().st_size)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {Path(path).name for method, path, _ in self.requests if method == "GET" and "/resolve/" in path}

    def ranges(self) -> list[int]:
        """Where the requests began that asked for the rest of a file."""
        starts = [int(asked.removeprefix("bytes=").split("-")[0]) for _, _, asked in self.requests if asked]
        return [start for start in starts if start]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            files, api = f"/{hub.repo}/resolve/", f"/api/models/{hub.repo}"
            if hub.status != 200:
                code = ERROR_CODES.get(hub.status)
                self.reply(hub.status, b"{}", {"X-Error-Code": code} if code else {}, body)
            elif path.startswith(f"{api}/tree/"):
                rows = [
                    {"type": "file", "path": self.name(each), "size": each.stat().st_size, "oid": digest(each)}
                    for each in hub.files()
                ]
                self.reply(200, json.dumps(rows).encode(), {}, body)
            elif path.startswith(api):
                rows = [{"rfilename": self.name(each)} for each in hub.files()]
                facts = {"id": hub.repo, "modelId": hub.repo, "sha": COMMIT, "private": False, "siblings": rows}
                self.reply(200, json.dumps(facts).encode(), {}, body)
            elif path.startswith(files) and hub.redirect:
                target = hub.folder / path.removeprefix(files).partition("/")[2]
                facts = {"Location": f"{hub.url}/elsewhere/{self.name(target)}", "X-Linked-Etag": digest(target)}
                facts |= {"X-Linked-Size": str(target.stat().st_size), "X-Repo-Commit": COMMIT}
                self.reply(302, b"", facts, body)
            else:
                at_revision = path.removeprefix(files).partition("/")[2] if path.startswith(files) else path
                self.send_file(at_revision.removeprefix("/elsewhere/"), body)

        def send_file(self, name: str, body: bool) -> None:
            target = hub.folder / name
            if not target.is_file():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
                return
            data, asked = target.read_bytes(), self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            facts = {"ETag": f'"{digest(target)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if start:
                facts["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = body and hub.cuts > 0 and target == hub.largest
            hub.cuts -= cut
            self.reply(206 if start else 200, data[start:], facts, body, cut)

        def name(self, path: Path) -> str:
            return path.relative_to(hub.folder).as_posix()

        def reply(self, status: int, data: bytes, facts: dict[str, str], body: bool, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **facts}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.wfile.flush()
            if cut:
                self.close_connection = True

    return Handler


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
