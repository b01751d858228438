"""Put pip into a virtual environment whose Python has no `ensurepip` (Debian without python3-venv), without root.

    .venv/bin/python tools/bootstrap_pip.py

Fetches pip's own wheel from the package index (PIP_INDEX_URL, pip's config files, or PyPI), checks its sha256 and lets
it install itself.  Standard library only.
"""

import configparser
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

CONFIGS = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


def index_url() -> str:
    """The package index that pip would use."""
    for name in filter(None, [os.environ.get("PIP_CONFIG_FILE"), *CONFIGS]):
        config = configparser.RawConfigParser()
        config.read(Path(name).expanduser())
        found = config.get("global", "index-url", fallback=None)
        if found:
            return os.environ.get("PIP_INDEX_URL", found)
    return os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")


def newest_wheel(page_url: str) -> tuple[str, str | None]:
    """Address and sha256 of the newest final pip wheel on an index page."""
    with urllib.request.urlopen(page_url, timeout=60) as answer:
        page = answer.read().decode("utf-8")
    links = re.findall(r'href="([^"]*/pip-(\d+(?:\.\d+)*)-py3-none-any\.whl)(?:#sha256=([0-9a-f]{64}))?"', page)
    if not links:
        raise SystemExit(f"error: no pip wheel on {page_url}\n\nhint: install python3-venv, or set PIP_INDEX_URL")
    link, _, digest = max(links, key=lambda each: tuple(map(int, each[1].split("."))))
    return urllib.parse.urljoin(page_url, link), digest or None


def main() -> None:
    url, digest = newest_wheel(index_url().rstrip("/") + "/pip/")
    with urllib.request.urlopen(url, timeout=60) as answer:
        wheel = answer.read()
    if digest and hashlib.sha256(wheel).hexdigest() != digest:
        raise SystemExit(f"error: {url} arrived damaged\n\nhint: run `make install` again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(urllib.parse.urlparse(url).path).name
        path.write_bytes(wheel)
        subprocess.run([sys.executable, f"{path}/pip", "install", "--quiet", "--no-index", str(path)], check=True)


if __name__ == "__main__":
    main()
