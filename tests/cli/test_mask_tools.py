"""The mask page and the outpaint canvas: who is let in, what is written, and the page in a real browser."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflux.cli.paint_mask import HOST, MaskServer

MASK, CANVAS = "mflux-mask", "mflux-outpaint-canvas"
ROOT = Path(__file__).parents[2]


def picture(height: int = 96, width: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def server(tmp_path):
    with MaskServer(picture(), tmp_path / "photo_mask.png") as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, path: str, method: str = "GET", body: bytes | None = None, **headers: str):
    """Status and body; header names with `_` for `-`."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value)
    if body is not None and "Content-Length" not in named:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def send(server, body: bytes, **headers: str):
    own = {"Origin": f"http://{HOST}:{server.server_port}", "X_Feather": "0"} | headers
    return ask(server, f"/{server.token}/mask", "POST", body, **own)


def test_the_page_and_the_picture_are_served_with_the_token(server):
    status, page = ask(server, f"/{server.token}/")
    assert status == 200 and b'width="128" height="96"' in page and b"http" not in page  # nothing from elsewhere
    status, png = ask(server, f"/{server.token}/picture.png")
    (server.target.parent / "got.png").write_bytes(png)
    assert np.array_equal(np.asarray(Image.open(server.target.parent / "got.png")), picture())


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 403),
        ("/wrong-token/", {}, 403),
        ("/wrong-token/picture.png", {}, 403),
        ("/%C3%A9/", {}, 403),
        ("TOKEN/", {"Host": "evil.example"}, 403),
        ("TOKEN/", {"Host": "evil.example:PORT"}, 403),
        ("TOKEN/", {"Host": "127.0.0.1"}, 403),
        ("TOKEN/", {"Origin": "http://evil.example"}, 403),
        ("TOKEN/", {"Origin": "null"}, 403),
        ("TOKEN/picture.png", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("TOKEN/picture.png", {"Sec_Fetch_Site": "same-site"}, 403),
        ("TOKEN/../../etc/passwd", {}, 404),
        ("TOKEN/%2e%2e/%2e%2e/etc/passwd", {}, 404),
        ("TOKEN//etc/passwd", {}, 404),
        ("TOKEN/mask", {}, 404),
        ("TOKEN/picture.png?x=1", {}, 404),
    ],
)
def test_a_request_from_anywhere_else_is_refused(server, path, headers, status):
    path = path.replace("TOKEN", f"/{server.token}")
    headers = {name: value.replace("PORT", str(server.server_port)) for name, value in headers.items()}
    assert ask(server, path, **headers)[0] == status
    assert ask(server, f"/{server.token}/")[0] == 200


def test_other_methods_are_not_known(server):
    assert ask(server, f"/{server.token}/mask", "PUT", b"x")[0] == 501
    assert ask(server, f"/{server.token}/", "DELETE")[0] == 501


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (bytes(96 * 128), {}),  # nothing painted
        (b"\xff" * 10, {}),
        (b"\x07" * (96 * 128), {}),
        (b"\xff" * (96 * 128), {"X_Feather": "-1"}),
        (b"\xff" * (96 * 128), {"X_Feather": "513"}),
        (b"\xff" * (96 * 128), {"X_Feather": "9" * 3000}),
        (b"\xff" * (96 * 128), {"X_Feather": "soft"}),
        (b"", {"Content_Length": "99999999999999"}),
        (b"", {"Content_Length": "-5"}),
    ],
)
def test_what_is_no_mask_of_the_picture_is_refused_and_nothing_is_written(server, body, headers):
    status, answer = send(server, body, **headers)
    assert status == 400 and json.loads(answer)["problem"]
    assert server.saved is None and not server.target.exists()


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_a_mask_from_another_page_is_refused(server, headers):
    assert send(server, b"\xff" * (96 * 128), **headers)[0] == 403
    without_origin = ask(server, f"/{server.token}/mask", "POST", b"\xff" * (96 * 128), X_Feather="0")
    assert without_origin[0] == 400 and not server.target.exists()


def painted() -> np.ndarray:
    mask = np.zeros((96, 128), np.uint8)
    mask[20:50, 30:90] = 255
    return mask


def test_a_mask_is_saved_to_the_pixel_and_never_over_a_file(server):
    server.target.write_bytes(b"mine")
    status, answer = send(server, painted().tobytes())
    saved = server.target.with_name("photo_mask_1.png")
    assert (status, json.loads(answer)) == (200, {"path": str(saved)})
    assert np.array_equal(np.asarray(Image.open(saved)), painted()) and server.target.read_bytes() == b"mine"


def test_a_feather_softens_the_border_and_keeps_what_counts_as_painted(server):
    send(server, painted().tobytes(), X_Feather="8")
    soft = np.asarray(Image.open(server.saved))
    assert {0, 255} < set(np.unique(soft))
    inside = np.zeros((96, 128), bool)
    inside[24:46, 34:86] = True
    assert (soft[inside] >= 128).all() and (soft[:10] == 0).all()
    assert (np.diff(soft[35, 20:60].astype(int)) >= 0).all()


def test_the_server_listens_on_this_machine_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert len(server.token) >= 43  # 256 bits
    with MaskServer(picture(), server.target) as another:
        assert another.token != server.token


def test_a_port_in_use_is_one_clear_line(refused, files):
    with socket.socket() as busy:
        busy.bind((HOST, 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        error, hint = refused(files[0], "--port", port, "--no-browser", command=MASK)
    assert error == f"`--port`: {port} cannot be listened on (Address already in use)"
    assert hint == "leave `--port` out, so that a free one is taken"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "there is no picture"),
        (("no.png",), "`IMAGE`: there is no file `no.png`"),
        (("PICTURE", "--port", "80"), "`--port`: 80 is out of range"),
        (("PICTURE", "--output", "mask.jpg"), "`--output`: `mask.jpg` would be changed by its format"),
        (("PICTURE", "--output", "mask.gif"), "`--output`: `mask.gif` has the ending `.gif`"),
    ],
)
def test_a_mask_that_cannot_be_painted_is_refused(refused, files, flags, problem):
    assert refused(*(files[0] if flag == "PICTURE" else flag for flag in flags), command=MASK)[0] == problem


# --- the canvas ----------------------------------------------------------------------------------------------------


def test_the_canvas_has_room_and_its_mask_is_white_there(cli, files):
    done = cli(files[0], "--image-outpaint-padding", "8,25%,0,5px", command=CANVAS)
    names = [files[0].with_name(f"picture_outpaint{end}.png") for end in ("", "_mask")]
    assert done.out.split() == [str(name) for name in names], done.err
    canvas, mask = (np.asarray(Image.open(name)) for name in names)
    source = np.asarray(Image.open(files[0]))
    assert canvas.shape == (56, 85, 3) and np.array_equal(canvas[8:, 5:69], source)
    assert (mask[8:, 5:69] == 0).all() and mask.sum() == 255 * (56 * 85 - 48 * 64)


@pytest.mark.parametrize(
    ("padding", "size"), [("10", (68, 84)), ("10,20", (68, 104)), ("0,20,5", (53, 104)), ("50%,0,0,0", (72, 64))]
)
def test_fewer_than_four_values_mean_what_they_mean_in_css(cli, files, padding, size):
    cli(files[0], "--outpaint-padding", padding, command=CANVAS)
    assert Image.open(files[0].with_name("picture_outpaint.png")).size == size[::-1]


@pytest.mark.parametrize("padding", ["", "0", "a", "1,2,3,4,5", "-5", "10%%", "1e3", "99999999", "0,0,16384,0", "nan%"])
def test_a_padding_that_is_none_is_refused_with_an_example(refused, files, padding):
    error, hint = refused(files[0], f"--image-outpaint-padding={padding}", command=CANVAS)
    assert error.startswith("`--image-outpaint-padding`: ") and ("0,25%,0,25%" in hint or "16384" in hint)


def test_the_older_names_of_the_tools_open_the_same_commands(files):
    for tool, flags in (
        ("fill_mask_tool", ["--help"]),
        ("create_outpaint_image_canvas_and_mask", [str(files[0]), "--image-outpaint-padding", "4"]),
    ):
        run = [sys.executable, "-m", f"tools.{tool}", *flags]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert files[0].with_name("picture_outpaint_mask.png").is_file()


# --- the page in a browser -----------------------------------------------------------------------------------------


class Browser:
    """Chromium by chromedriver's WebDriver protocol, which is JSON over HTTP."""

    def __init__(self, port: int):
        self.base = f"http://127.0.0.1:{port}"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,800"]
        options = {"goog:chromeOptions": {"args": flags}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.base += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def run(self, script: str):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def click(self, name: str) -> None:
        found = self.call("POST", "/element", {"using": "css selector", "value": f"#{name}"})
        self.call("POST", f"/element/{next(iter(found.values()))}/click", {})

    def drag(self, *points: tuple[int, int]) -> None:
        """Press at the first point, move over the others, release; px of the picture."""
        frame = self.run("const r = canvas.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]")
        scale = frame[2] / self.run("return width"), frame[3] / self.run("return height")
        places = [(int(frame[0] + (x + 0.5) * scale[0]), int(frame[1] + (y + 0.5) * scale[1])) for x, y in points]
        moves = [{"type": "pointerMove", "x": x, "y": y, "duration": 0} for x, y in places]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self.call("POST", "/actions", {"actions": [mouse]})

    def mask(self, height: int, width: int) -> np.ndarray:
        return np.array(self.run("return Array.from(mask)"), np.uint8).reshape(height, width)


@pytest.fixture(scope="module")
def browser():
    driver = shutil.which("chromedriver")
    if driver is None:
        why = "the mask page was NOT tried in a browser: install chromium and chromium-driver"
        warnings.warn(why, stacklevel=1)
        pytest.skip(why)
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            time.sleep(0.1)
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    break
        opened = Browser(port)
        yield opened
        opened.call("DELETE", "")
    finally:
        process.terminate()
        process.wait()


def wait(question, seconds: float = 10.0):
    until = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < until:
        time.sleep(0.05)
    return answer


@pytest.mark.slow
def test_paint_undo_and_save_in_a_browser(browser, server):
    browser.call("POST", "/url", {"url": server.address})
    browser.click("box")
    browser.drag((10, 12), (25, 20), (40, 30))
    wanted = np.zeros((96, 128), np.uint8)
    wanted[12:31, 10:41] = 255
    assert np.array_equal(browser.mask(96, 128), wanted)

    browser.click("brush")
    browser.drag((60, 50), (90, 70))
    stroke = browser.mask(96, 128)
    assert (
        (stroke >= wanted).all() and stroke[50, 60] == stroke[70, 90] == stroke[60, 75] == 255 and stroke[90, 60] == 0
    )
    browser.click("undo")
    assert np.array_equal(browser.mask(96, 128), wanted)

    browser.click("erase")
    browser.click("box")
    browser.drag((20, 15), (25, 18))
    wanted[15:19, 20:26] = 0
    assert np.array_equal(browser.mask(96, 128), wanted)
    browser.click("save")
    assert wait(lambda: server.saved)
    assert np.array_equal(np.asarray(Image.open(server.saved)), wanted)
    assert wait(lambda: str(server.saved) in browser.run("return document.getElementById('said').textContent"))


@pytest.mark.slow
def test_the_brush_draws_discs_of_its_size(browser, server):
    browser.call("POST", "/url", {"url": server.address})
    browser.run("document.getElementById('size').value = 21")
    browser.drag((64, 48))
    rows, columns = np.nonzero(browser.mask(96, 128))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 58, 54, 74)
    disc = (np.mgrid[:96, :128][0] - 48) ** 2 + (np.mgrid[:96, :128][1] - 64) ** 2 <= 10.5**2
    assert np.array_equal(browser.mask(96, 128) > 0, disc)


@pytest.mark.slow
def test_a_picture_larger_than_the_window_is_painted_where_it_is_shown(browser, tmp_path):
    with MaskServer(picture(1500, 2000), tmp_path / "large_mask.png") as large:
        threading.Thread(target=large.serve_forever, daemon=True).start()
        browser.call("POST", "/url", {"url": large.address})
        assert wait(lambda: browser.run("return document.getElementById('picture').complete"))
        assert browser.run("return canvas.getBoundingClientRect().width") < 1000
        browser.click("box")
        browser.drag((400, 300), (1200, 900))
        browser.click("save")
        assert wait(lambda: large.saved)
        mask = np.asarray(Image.open(large.saved))
        rows, columns = np.nonzero(mask)
        found = (rows.min(), rows.max(), columns.min(), columns.max())
        assert np.abs(np.subtract(found, (300, 900, 400, 1200))).max() <= 3  # one px of the window
        assert (mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 255).all()
