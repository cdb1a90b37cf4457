"""The show: what is set up starts and is shown, what is not says how, nobody else starts anything, and its end ends all; and the film."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import main  # noqa: E402 - found by the path above

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


def states(port):
    return json.loads(asked(port, "/state")[1])


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
    """The show as a process -> it, and its port."""
    command = [sys.executable, str(HERE / "main.py"), "--port", "0", "--start", *start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            yield process, int(re.search(r":(\d+)/", process.stdout.readline())[1])
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
    """Neither a page of another site, nor one whose name leads here; and a name that is none is not found."""
    with shown("dashboard") as (_, port):
        own = f"http://127.0.0.1:{port}"
        for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"https://127.0.0.1:{port}"},
                        {"Origin": "http://evil.example", "Host": "evil.example"}):  # fmt: skip
            assert asked(port, "/start/demo", "POST", **headers)[0] == 403
            assert asked(port, "/stop/dashboard", "POST", **headers)[0] == 403
        assert asked(port, "/", Host="evil.example")[0] == 403
        assert asked(port, "/state", Host="evil.example")[0] == 403
        for path in ("/start/none", "/start/", "/kill/demo"):
            assert asked(port, path, "POST", Origin=own)[0] == 404
        for path in ("/result/demo", "/result/../main.py", "/etc/passwd"):
            assert asked(port, path)[0] == 404
        until(lambda: states(port)["dashboard"]["state"] == "runs")
        assert states(port)["demo"]["state"] == "ready"
        window = int(re.search(r":(\d+)/", states(port)["dashboard"]["url"])[1])
        assert asked(window, "/live")[0] == 403, "a program has the dashboard's own address"
        assert asked(window, "/live", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 403
        assert asked(window, "/", Sec_Fetch_Mode="navigate", Host="evil.example")[0] == 403
        assert asked(window, "/live", Sec_Fetch_Site="same-origin")[0] == 401, "it still asks for its token"


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 3])
def test_its_end_ends_what_it_has_started(numbers):
    """By pid; it ends well by itself, also while a prototype starts, and also if somebody presses Ctrl-C again and again."""
    with shown(*ANY) as (process, port):
        pids = [one["pid"] for one in states(port).values() if one["pid"]]
        assert pids
        assert all(map(alive, pids))
        for number in numbers:
            process.send_signal(number)
        assert process.wait(LONG_S) == 0
        assert not [pid for pid in pids if alive(pid)]


def test_stopped_and_started_again():
    """One that has ended says so, with its last lines, and can be started anew; twice at once starts one."""
    with shown("dashboard") as (_, port):
        own = {"Origin": f"http://127.0.0.1:{port}"}
        first = until(lambda: states(port)["dashboard"]["url"] and states(port)["dashboard"])
        assert asked(port, "/start/dashboard", "POST", **own)[0] == 204
        assert states(port)["dashboard"]["pid"] == first["pid"]
        assert asked(port, "/stop/dashboard", "POST", **own)[0] == 204
        ended = states(port)["dashboard"]
        assert ended["state"].startswith("has ended")
        assert not alive(first["pid"])
        assert asked(port, "/start/dashboard", "POST", **own)[0] == 204
        again = until(lambda: states(port)["dashboard"]["url"] and states(port)["dashboard"])
        assert again["pid"] != first["pid"]


def test_a_port_that_is_taken():
    """One line that says what to do."""
    with shown("demo") as (_, port):
        command = [sys.executable, str(HERE / "main.py"), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode == 1
        assert re.fullmatch(r"the page cannot have port \d+: .* --port 0 takes any that is free\n", done.stderr)


@pytest.mark.matrix
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_what_is_there_is_shown():
    """Each that is set up runs in its frame, with text in it; each that is not says the command; keys and the presentation enlarge one."""
    playwright = pytest.importorskip("playwright.sync_api")
    with shown() as (_, port), playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page, wrong = browser.new_page(), []
        page.set_default_timeout(LONG_S * 1000)
        playwright.expect.set_options(timeout=LONG_S * 1000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
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
        page.get_by_role("button", name="Present").click()
        playwright.expect(page.locator("#says")).to_contain_text(next(iter(main.PROTOTYPES.values())).says)
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
