"""The show: what is set up starts and is shown, what is not says how, nobody else starts anything, and its end ends all; and the film."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import framed  # noqa: E402 - found by the path above
import main  # noqa: E402 - likewise

LONG_S = 120
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ANY = ("demo", "dashboard")
"""Prototypes that need no environment of their own."""


def asked(port, path, method="GET", **headers):
    """The status and the text of a reply."""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=LONG_S)) as connection:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def states(port, own):
    return json.loads(asked(port, "/state", **own)[1])


def until(condition):
    """Waits for it, and returns what it was."""
    ends = time.monotonic() + LONG_S
    while not (found := condition()):
        assert time.monotonic() < ends
        time.sleep(0.1)
    return found


def alive(pid):
    """Whether the process runs; one that has ended and is not fetched yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def shown(*start):
    """The show as a process -> it, its port, and the headers of its own page."""
    command = [sys.executable, str(HERE / "main.py"), "--port", "0", "--start", *start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            port, key = re.search(r":(\d+)/#key=(\S+)", process.stdout.readline()).groups()
            yield process, int(port), {"Origin": f"http://127.0.0.1:{port}", "Show-Key": key}
        finally:
            process.terminate()
            process.wait(LONG_S)


def test_the_table_is_a_script_of_90_seconds():
    """And each row can be started: its program is there, and what it needs is a target of make."""
    assert sum(one.seconds for one in main.PROTOTYPES.values()) == 90
    for one in main.PROTOTYPES.values():
        assert all((ROOT / word).is_file() for word in " ".join(one.command).split() if word.endswith(".py"))
        kind, _, name = one.needs.removesuffix("/made").partition("/")
        assert kind in {"", ".examples", ".android"}
        assert not name or (ROOT / "examples" / name / "requirements.txt").is_file()


def test_the_readme_has_the_words_of_the_presenter():
    rows = [f"| {one.seconds} s | {one.title} | {one.says} |" for one in main.PROTOTYPES.values()]
    assert "\n".join(rows) in (HERE / "README.md").read_text()


@pytest.mark.parametrize(
    "line",
    ["open http://127.0.0.1:1/ (Ctrl+C ends)", "The page is at http://127.0.0.1:1/; Ctrl-C ends.", "page: http://127.0.0.1:1/"],
)
def test_an_address_is_found(line):
    assert main.PRINTED.search(line)[0] == "http://127.0.0.1:1/"


@pytest.mark.parametrize("line", ["http://127.0.0.1:1/v1 is its API", "http://127.0.0.1.example.com:1/", "https://example.com/"])
def test_another_address_is_none(line):
    assert not main.PRINTED.search(line)


def test_nobody_else_starts_anything():
    """Neither a page of another site, nor one whose name leads here, nor who lacks the key; a name that is none is not found."""
    with shown("dashboard") as (_, port, own):
        key = {"Show-Key": own["Show-Key"]}
        for headers in (key, {"Origin": "http://evil.example"} | key, {"Origin": "null"} | key, own | {"Show-Key": ""},
                        {"Origin": f"https://127.0.0.1:{port}"} | key, {"Origin": own["Origin"]}, own | {"Show-Key": "é"},
                        own | {"Show-Key": own["Show-Key"][:-1]},
                        {"Origin": "http://evil.example", "Host": "evil.example"} | key):  # fmt: skip
            assert asked(port, "/start/demo", "POST", **headers)[0] == 403
            assert asked(port, "/stop/dashboard", "POST", **headers)[0] == 403
        assert asked(port, "/", Host="evil.example")[0] == 403
        assert asked(port, "/state", Host="evil.example", **key)[0] == 403
        assert asked(port, "/state", Host=f"localhost:{port}", **key)[0] == 403
        assert asked(port, "/state") == asked(port, "/state", Show_Key="wrong") == (403, "")
        assert key["Show-Key"] not in asked(port, "/")[1]
        for path in ("/start/none", "/start/", "/kill/demo"):
            assert asked(port, path, "POST", **own)[0] == 404
        for path in ("/result/demo", "/result/../main.py", "/etc/passwd"):
            assert asked(port, path)[0] == 404
        until(lambda: states(port, own)["dashboard"]["state"] == "runs")
        assert states(port, own)["demo"]["state"] == "ready"
        assert re.search(r"http://127\.0\.0\.1:\d+/$", states(port, own)["dashboard"]["log"][0]), "without its token"
        window = int(re.search(r":(\d+)/", states(port, own)["dashboard"]["url"])[1])
        assert asked(window, "/live")[0] == 403, "a program has the dashboard's own address"
        assert asked(window, "/live", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 403
        assert asked(window, "/", Sec_Fetch_Mode="navigate", Host="evil.example")[0] == 403
        assert asked(window, "/live", Sec_Fetch_Site="same-origin")[0] == 401, "it still asks for its token"


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 3])
def test_its_end_ends_what_it_has_started(numbers):
    """By pid; it ends well by itself, also while a prototype starts, and also if somebody presses Ctrl-C again and again."""
    with shown(*ANY) as (process, port, own):
        pids = [one["pid"] for one in states(port, own).values() if one["pid"]]
        assert pids
        assert all(map(alive, pids))
        for number in numbers:
            process.send_signal(number)
        assert process.wait(LONG_S) == 0
        assert not [pid for pid in pids if alive(pid)]


def test_a_signal_whose_exit_is_lost_ends_the_show_too(tmp_path, monkeypatch):
    ending = threading.Event()
    ending.set()
    monkeypatch.setattr(main, "ENDING", ending)
    show = main.Show(0, tmp_path)
    with pytest.raises(SystemExit):
        show.serve_forever(0.05)
    show.close()


def test_stopped_and_started_again():
    """One that has ended says so, and nothing is passed on to its port any more; it can be started anew; twice at once starts one."""

    def closed(window):
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", int(re.search(r":(\d+)/", window)[1])))

    with shown("dashboard") as (_, port, own):
        first = until(lambda: states(port, own)["dashboard"]["url"] and states(port, own)["dashboard"])
        assert asked(port, "/start/dashboard", "POST", **own)[0] == 204
        assert states(port, own)["dashboard"]["pid"] == first["pid"]
        assert asked(port, "/stop/dashboard", "POST", **own)[0] == 204
        ended = states(port, own)["dashboard"]
        assert ended["state"].startswith("has ended")
        assert not alive(first["pid"])
        assert closed(first["url"])
        assert asked(port, "/start/dashboard", "POST", **own)[0] == 204
        again = until(lambda: states(port, own)["dashboard"]["url"] and states(port, own)["dashboard"])
        assert again["pid"] != first["pid"]
        assert not closed(again["url"])
        os.kill(again["pid"], signal.SIGKILL)
        until(lambda: closed(again["url"]))


@pytest.fixture
def passed_on():
    """A window, and the bodies that the page behind it was asked with."""
    bodies = []

    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

    page = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, args=[0.05], daemon=True).start()
    window = framed.Window(f"http://127.0.0.1:{page.server_port}/", "http://127.0.0.1:1")
    yield window, bodies
    window.close()
    page.shutdown()
    page.server_close()


def sent(window, *lines):
    """A connection on which a POST of the frame's own page is sent, without its body."""
    connection = socket.create_connection(("127.0.0.1", window.server_port), LONG_S)
    head = ["POST / HTTP/1.1", f"Host: 127.0.0.1:{window.server_port}", "Sec-Fetch-Site: same-origin", *lines, "", ""]
    connection.sendall("\r\n".join(head).encode("latin-1"))
    return connection


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: -1"], 400), (["Content-Length: 1_0"], 400), (["Content-Length: 1000000000"], 400),
        (["Content-Length: \xb2"], 400), (["Content-Length: "], 400), (["Content-Length: 1", "Content-Length: 2"], 400),
        ([f"Content-Length: {framed.MOST_BYTES + 1}"], 413), (["Transfer-Encoding: chunked"], 411),
        (["Content-Length: 1", "Transfer-Encoding: identity"], 411),
    ],
)  # fmt: skip
def test_a_body_without_a_good_length_is_not_read(passed_on, lines, status):
    window, bodies = passed_on
    with sent(window, *lines) as connection, connection.makefile("rb") as reply:
        assert reply.readline().split()[1] == str(status).encode()
    assert bodies == []


def test_the_largest_body_is_passed_on(passed_on):
    window, bodies = passed_on
    with sent(window, f"Content-Length: {framed.MOST_BYTES}") as connection, connection.makefile("rb") as reply:
        connection.sendall(bytes(framed.MOST_BYTES))
        assert reply.readline().split()[1] == b"204"
    assert bodies == [bytes(framed.MOST_BYTES)]


def test_what_was_asked_before_the_end_of_a_window_is_not_passed_on_after_it(passed_on):
    window, bodies = passed_on
    with sent(window, "Content-Length: 2") as connection, connection.makefile("rb") as reply:
        with sent(window, "Content-Length: 0") as later, later.makefile("rb") as other:
            assert other.readline().split()[1] == b"204", "the first one is accepted, too"
        window.close()
        connection.sendall(b"ab")
        assert reply.read() == b""
    assert bodies == [b""]


def test_a_port_that_is_taken():
    """One line that says what to do."""
    with shown("demo") as (_, port, _):
        command = [sys.executable, str(HERE / "main.py"), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode == 1
        assert re.fullmatch(r"the page cannot have port \d+: .* --port 0 takes any that is free\n", done.stderr)


@pytest.mark.matrix
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_what_is_there_is_shown():
    """Each that is set up runs in its frame, with text in it; each that is not says the command; keys and the presentation enlarge one."""
    playwright = pytest.importorskip("playwright.sync_api")
    with shown() as (_, port, own), playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page, wrong = browser.new_page(), []
        page.set_default_timeout(LONG_S * 1000)
        playwright.expect.set_options(timeout=LONG_S * 1000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        playwright.expect(page.locator("#demo")).to_contain_text("open the address that the show has printed")
        page.get_by_role("button", name="Present").click()
        playwright.expect(page.locator("#says")).to_contain_text("Start all")  # none of them is there
        page.goto(f"http://localhost:{port}/#key={own['Show-Key']}")
        assert page.url.startswith(own["Origin"]), "where its frames may be"
        for name, one in main.PROTOTYPES.items():
            card = page.locator(f"#{name}")
            if one.needs and not (ROOT / one.needs).exists():
                playwright.expect(card).to_contain_text(f"make {one.needs}")
                playwright.expect(card.get_by_role("button", name="Start")).to_be_hidden()
            else:
                playwright.expect(card).to_contain_text("done" if one.result else "runs")
                link = card.get_by_role("link").get_attribute("href")
                assert link == card.locator("iframe").get_attribute("src")
                playwright.expect(card.frame_locator("iframe").locator("body")).not_to_be_empty()
        page.keyboard.press("1")
        assert page.locator("section.large").get_attribute("id") == next(iter(main.PROTOTYPES))
        page.keyboard.press("Escape")
        playwright.expect(page.locator("section.large")).to_have_count(0)
        # Not by the mouse: for an instant Chromium may still hit the frame of another site that covered the page.
        page.get_by_role("button", name="Present").dispatch_event("click")
        playwright.expect(page.locator("#says")).to_contain_text(next(iter(main.PROTOTYPES.values())).says)
        says, frame = page.locator("#says").bounding_box(), page.locator("section.large").bounding_box()
        assert frame["y"] + frame["height"] <= says["y"] + 1, "the presenter's words hide nothing of the prototype"
        page.keyboard.press("Escape")
        playwright.expect(page.locator("#says")).to_be_hidden()
        browser.close()
        assert wrong == []


FILMS = ROOT / "website" / "film.webm", ROOT / "website" / "film.gif"


def colours(picture):
    """How many colours it has, at a size at which one pixel is not another colour for its noise."""
    return len(picture.convert("RGB").resize((80, 50)).quantize(64).getcolors())


def test_the_film_is_small_and_shows_something():
    """Both files together are below 3 MB; the GIF has frames that differ, and none is of few colours."""
    image = pytest.importorskip("PIL.Image")
    assert sum(film.stat().st_size for film in FILMS) < 3_000_000
    with image.open(FILMS[1]) as film:
        assert film.n_frames > 20
        frames = []
        for number in range(0, film.n_frames, film.n_frames // 10):
            film.seek(number)
            frames.append(film.convert("RGB"))
    assert min(map(colours, frames)) > 8
    assert len({frame.resize((80, 50)).tobytes() for frame in frames}) > 5


@pytest.mark.matrix
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_the_film_plays(tmp_path):
    """The WebM, in Chromium: it has the frames of more than 20 fifths of a second, and in its middle a picture of many colours."""
    image = pytest.importorskip("PIL.Image")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(FILMS[0].as_uri())
        seconds = page.evaluate(
            """() => new Promise(done => {
                const film = document.querySelector("video");
                film.pause();
                film.onseeked = () => done(film.duration);
                film.currentTime = 5;
            })"""
        )
        page.screenshot(path=tmp_path / "middle.png")
        browser.close()
    assert seconds * 5 > 20
    with image.open(tmp_path / "middle.png") as picture:
        assert colours(picture) > 8


def test_the_readme_and_the_site_begin_with_the_film():
    """The site by its hook, since a wheel has the same pages without the film."""
    assert "](website/film.gif)](website/film.webm)" in (ROOT / "README.md").read_text().split("\n## ")[0]
    assert "](website/film.gif)](website/film.webm)" in (ROOT / "website" / "hooks.py").read_text()
