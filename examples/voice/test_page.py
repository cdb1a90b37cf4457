"""The page of stages, in a browser, with the real models; and what asks for it that should not."""

import contextlib
import http.client
import json
import re
import shutil
import threading
from urllib.parse import urlsplit

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("wyoming")
if shutil.which("espeak-ng") is None:
    pytest.skip("espeak-ng renders the speech: apt-get install espeak-ng", allow_module_level=True)

import sound
from dialogue import Step
from listen import listen
from mouth import Mouth
from page import MOST_BROWSERS, MOST_WAITING, Page
from painted import is_picture_of
from routers import HERE, opened
from skills import Home

from edgeroute.tools.state_colours_and_marks import STATES

LONG_S = 300.0
SAID = {"text": "stop", "voice": "en-us", "noise": "none"}


class Nobody:
    """A dialogue of which only the home and the trace are needed."""

    def __init__(self):
        self.home, self.trace = Home(), None


@pytest.fixture
def page():
    with contextlib.closing(Page(Nobody())) as made:
        yield made


def ask(page, method="GET", path="/", body=None, **headers):
    """-> the status, and the body."""
    host = urlsplit(page.url).netloc
    with contextlib.closing(http.client.HTTPConnection(host, timeout=LONG_S)) as line:
        line.request(method, path, body, {"Host": host, **headers})
        reply = line.getresponse()
        return reply.status, reply.read().decode()


def say(page, given, **headers):
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    return ask(page, "POST", "/say", body, **{"Origin": page.url.rstrip("/"), **headers})[0]


def test_the_page_is_for_this_device_alone(page):
    assert ask(page)[0] == 200
    assert ask(page, path="/none")[0] == 404
    for host in ("evil.example", f"evil.example:{urlsplit(page.url).port}", "", "127.0.0.1.evil.example:80"):
        assert ask(page, Host=host)[0] == 403
        assert ask(page, path="/events", Host=host)[0] == 403
    for site in ("cross-site", "same-site", ""):  # the page itself may be opened from elsewhere, and framed by `make show`
        assert ask(page, path="/events", **{"Sec-Fetch-Site": site})[0] == 403
        assert ask(page, **{"Sec-Fetch-Site": site})[0] == 200
    for number in ("1" * 10, "1" * 5_000):
        assert ask(page, path="/events", **{"Last-Event-ID": number})[0] == 400


def test_only_pages_of_this_machine_may_frame_it(page):
    with contextlib.closing(http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=LONG_S)) as line:
        line.request("GET", "/")
        reply = line.getresponse()
        assert "frame-ancestors http://127.0.0.1:* http://localhost:*" in reply.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("given", "headers", "status"),
    [
        (SAID, {}, 200), (SAID, {"Origin": "http://evil.example"}, 403), (SAID, {"Origin": "null"}, 403), (SAID, {"Origin": ""}, 403),
        (b"x" * 5_000, {}, 404), (b"", {}, 400), (b"[" * 3_000, {}, 400), ([], {}, 400), (7, {}, 400), ({}, {}, 400), (None, {}, 400),
        ({**SAID, "text": ""}, {}, 400), ({**SAID, "text": " "}, {}, 400), ({**SAID, "text": 7}, {}, 400), ({**SAID, "text": "x" * 201}, {}, 400),
        ({**SAID, "voice": "../../etc"}, {}, 400), ({**SAID, "voice": []}, {}, 400), ({**SAID, "noise": "-w"}, {}, 400),
        ({**SAID, "noise": []}, {}, 400), (SAID, {"Content-Length": "-1"}, 404), (SAID, {"Content-Length": "\xb2"}, 404),
        (SAID, {"Content-Length": "1" * 10}, 400), (SAID, {"Content-Length": "1" * 5_000}, 400),
        (SAID, {"Sec-Fetch-Site": "cross-site"}, 403), (SAID, {"Sec-Fetch-Site": "same-site"}, 403),
        (SAID, {"Sec-Fetch-Site": "same-origin"}, 200), (SAID, {"Sec-Fetch-Site": "none"}, 200),
    ],
)  # fmt: skip
def test_only_the_page_says_something_and_only_a_sentence(page, given, headers, status):
    assert say(page, given, **headers) == status


def test_what_waits_to_be_said_is_bounded(page):
    assert [say(page, SAID) for _ in range(MOST_WAITING + 1)] == [200] * MOST_WAITING + [503]
    assert len(next(page.sentences())) > sound.RATE / 10


def test_pages_are_bounded_and_each_gets_what_was_shown_before(page):
    page.step(Step("intent", "</script><b>", 0.1, "edge", "because"))
    host = urlsplit(page.url).netloc
    with contextlib.ExitStack() as open_pages:
        for _ in range(MOST_BROWSERS):
            line = open_pages.enter_context(contextlib.closing(http.client.HTTPConnection(host, timeout=LONG_S)))
            line.request("GET", "/events", headers={"Last-Event-ID": "99999"})
            reply = line.getresponse()
            assert (reply.status, reply.readline()) == (200, b"id: 1\n")
            assert json.loads(reply.readline().removeprefix(b"data: "))["found"] == "</script><b>"
        assert ask(page, path="/events")[0] == 503


def test_an_utterance_lights_up_stage_by_stage():
    """Said by the page's box, heard by the models, in Chromium: a timer and its end, a question, and a repetition."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    import screenshot

    with contextlib.ExitStack() as stack:
        dialogue = stack.enter_context(opened())
        page = Page(dialogue)
        hearing = threading.Thread(
            target=lambda: listen(dialogue, sound.chunks(page.sentences()), Mouth(), page.show, live=False)
        )
        hearing.start()
        stack.callback(hearing.join)
        stack.callback(page.close)
        started = stack.enter_context(playwright.sync_playwright())
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        stack.callback(browser.close)
        seen = browser.new_page(viewport={"width": 1280, "height": 900})
        seen.set_default_timeout(LONG_S * 1000)
        wrong = []
        seen.on("console", lambda told: wrong.append(told.text) if told.type in {"error", "warning"} else None)
        seen.on("pageerror", lambda error: wrong.append(str(error)))
        seen.goto(page.url)
        expect = playwright.expect
        expect.set_options(timeout=LONG_S * 1000)
        stages = seen.locator("#stages > li")
        assert stages.locator("b").all_text_contents() == [
            "wake word", "command", "speech to text", "intent", "skill", "language model",
        ]  # fmt: skip
        expect(stages.locator("b")).to_have_count(6)

        def said(text, answer, *, lit, dark):
            seen.fill("#text", text)
            seen.click("text=Say it")
            expect(seen.locator("#said")).to_contain_text(answer)
            for name in lit:
                expect(seen.locator(f"li[data-stage='{name}']")).not_to_have_class("off")
                expect(seen.locator(f"li[data-stage='{name}']")).to_contain_text(re.compile(r"\d m?s"))
            for name in dark:
                expect(seen.locator(f"li[data-stage='{name}']")).to_have_class("off")

        words = ("command", "speech to text", "intent")
        said(
            "set a timer for fifteen minutes",
            "Timer for 15 minutes.",
            lit=(*words, "skill"),
            dark=["wake word", "language model"],
        )
        expect(seen.locator("#timers")).to_contain_text("timer 15 minutes: 00:1")
        said("what is the capital of france", "Paris", lit=words, dark=["skill"])
        expect(seen.locator("#why")).to_contain_text("cloud failed")
        said("seven", "seven.", lit=["command"], dark=["speech to text", "intent", "skill", "language model"])
        expect(seen.locator("#past tr")).to_have_count(3)
        assert seen.viewport_size == screenshot.SIZE
        is_picture_of(HERE / "page.png", seen, {*STATES})
        dialogue.home.ring("<b>It has ended.")
        expect(seen.locator("#past tr")).to_have_count(4)
        expect(seen.locator("#said")).to_have_text("<b>It has ended.")
        expect(seen.locator("#heard")).to_have_text("(a timer or an alarm has ended)")
        expect(seen.locator("#past tr").first.locator("td").first).to_have_text("(a timer or an alarm has ended)")
        page.step(Step("heard", "2.4 s of speech"))  # its answer is not there yet, and no earlier one stands for it
        expect(seen.locator("#said")).to_be_empty()
        expect(seen.locator("li.busy b")).to_have_text(["command"])
        page.step(Step("intent", ""))
        expect(seen.locator("li.busy b")).to_have_text(["language model"])
        seen.reload()
        expect(seen.locator("#past tr")).to_have_count(4)
        assert wrong == []
