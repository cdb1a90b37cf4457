"""The AR prototype on its photographs, with the real models: what is read, who read it, and what is drawn."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from urllib.parse import urlsplit

import cloud
import cv2
import main
import numpy as np
import pytest
import requests
import sources
from overlay import Drawn, Folder, jpeg, placed, replaced
from page import Page
from PIL import Image
from reader import TextReader
from scene import EACH_S, SIGNS, frame_at
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from words import CLOUD, DEVICE, Table, key, letters, said, words_of

from edgeroute import BadInput, BadReply
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.state_colours_and_marks import STATES

LONG = 120.0
SURE, UNSURE, WALL, TURNED = 1.0, EACH_S + 1.0, 2 * EACH_S + 1.0, 4 * EACH_S + 1.0
"""Instants of the scene: a sign that the device reads surely, one that it does not, none, and one upside down."""
HARD = ("Straße gesperrt", "Umleitung folgen")
NOWHERE = "http://127.0.0.1:9/read"


@pytest.fixture(scope="module")
def reader():
    return TextReader("small.ocr")


@pytest.fixture(scope="module")
def url():
    """Of the real cloud, in its own process."""
    with cloud.started() as found:
        yield found


@pytest.fixture
def opened(monkeypatch):
    """Routers by the example's policy, whose deadlines no slow machine reaches."""
    monkeypatch.setenv("EDGEROUTE_CLOUD__URL", "")  # restored afterwards: the program sets it
    monkeypatch.setenv("EDGEROUTE_CLOUD__TIMEOUT", "120s")
    monkeypatch.setattr(main, "STALE_S", LONG)
    made = []

    def open_(url):
        made.append(main.router_of(main.POLICY, url, deadline=LONG))
        return made[-1]

    yield open_
    for router in made:
        router.close()


@pytest.fixture
def http():
    """Without the proxies of the environment."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


class Screen:
    """Keeps what was drawn."""

    def __init__(self):
        self.drawn, self._changed = [], threading.Condition()

    def show(self, drawn):
        """Takes it."""
        with self._changed:
            self.drawn.append(drawn)
            self._changed.notify_all()
        return True

    def wait_for(self, state):
        """Until words in this state were drawn."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(drawn.state == state for drawn in self.drawn), LONG)


def shade(number, reason="r", state="edge"):
    """A grey frame without words."""
    return Drawn(np.full((48, 64, 3), number, np.uint8), [], [], state, None, None, reason, 0.1)


def test_a_sign_is_read_and_translated_on_the_device(reader):
    """Without the ü, which is none of its letters."""
    ((words, confidence),) = reader.run([frame_at(SURE)])
    assert [(key(word["text"]), word["says"]) for word in words] == [("ausgang", "Exit"), ("zudenzugen", "To the trains")]
    assert 0.9 <= confidence == min(word["score"] for word in words)
    for word in words:
        assert np.ptp(np.array(word["box"])[:, 0]) > np.ptp(np.array(word["box"])[:, 1]), "wider than high"


def test_a_sign_upside_down_is_read(reader):
    """Its boxes begin where its letters do: at the lower right."""
    ((words, _),) = reader.run([frame_at(TURNED)])
    assert {word["says"] for word in words} == {"CAUTION", "GLASS"}
    for word in words:
        (left, top), (right, bottom) = word["box"][0], word["box"][2]
        assert left > right
        assert top > bottom


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_sign_on_its_side_is_read(reader, turns):
    ((words, _),) = reader.run([np.ascontiguousarray(np.rot90(frame_at(SURE), turns))])
    assert {word["says"] for word in words} == {"Exit", "To the trains"}


def test_a_street_is_read_surely(reader):
    """A frame without text must not ask the cloud."""
    ((words, confidence),) = reader.run([frame_at(WALL)])
    assert (words, confidence) == ([], 1.0)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 10, 3), (30, 3, 3), (900, 90, 3)])
def test_pictures_of_odd_shapes_are_read(reader, shape):
    """A browser's camera may send any."""
    assert reader.run([np.full(shape, 90, np.uint8)]) == [([], 1.0)]


def test_no_text_is_not_sure_where_there_may_be_some(reader):
    """A sign far out of focus, of which the detector has a weak box: nothing is read, and the cloud is to be asked."""
    ((words, confidence),) = reader.run([cv2.GaussianBlur(frame_at(5 * EACH_S + 1.0), (0, 0), 7.5)])
    assert words == []
    assert confidence < 0.5


def test_the_tables():
    """Whatever spaces, capitals and accents a reading lost; the cloud's is larger, and takes what is nearly one of its words."""
    small, large = Table(DEVICE), Table(CLOUD, close=True)
    for text, says in (
        ("Zudenzugen", "To the trains"), ("NOTAUSGANG", "EMERGENCY EXIT"), ("a partir de18heures", "from 18 o'clock"),
        ("Exit 12", "Exit 12"), ("→", "→"), ("Gleis 4b", "Platform 4b"), ("Ausgang, Toiletten", "Exit Toilets"), ("", ""),
    ):  # fmt: skip
        assert small.translate(text) == (says, True)
        assert large.translate(text) == (says, True)
    assert small.translate("Straße gesperrt") == ("Straße gesperrt", False)
    assert large.translate("Straße gesperrt") == ("Road closed", True)
    assert large.translate("StraBe gesperrt") == ("Road closed", True)
    assert large.translate("Ausgang Potsdamer") == ("Exit Potsdamer", False)
    assert large.translate("a partir de 18 heures")[0] == "From 18 o'clock".lower()


def test_words_are_replaced_in_place():
    """In the colours of the sign: its letters are gone, others are there, and nothing changes beside it."""
    frame = np.full((200, 400, 3), (20, 66, 140), np.uint8)
    cv2.putText(frame, "AUSGANG", (100, 120), cv2.FONT_HERSHEY_SIMPLEX, 1.6, (250, 250, 250), 6)
    box = [[90, 70], [360, 80], [360, 130], [90, 130]]
    one = {"text": "AUSGANG", "says": "EXIT", "box": box, "score": 1.0, "known": True}
    seen = replaced(frame, [one], "cloud")
    assert (seen[:60] == frame[:60]).all()
    assert (seen[140:] == frame[140:]).all()
    assert tuple(seen[70, 90]) == tuple(int(STATES["cloud"].dark[i : i + 2], 16) for i in (1, 3, 5))
    left, middle = seen[85:125, 98:150].reshape(-1, 3), seen[85:125, 180:270].reshape(-1, 3)
    assert np.abs(left - np.array((20, 66, 140))).max() < 30, "the ground, where AUSGANG began"
    assert (middle.min(1) > 200).any(), "the ink, where EXIT is"
    for says in ("AUSGANG", "", "EXIT \u51fa"):  # nothing to say, and letters that the font lacks
        assert (replaced(frame, [{**one, "says": says}], "cloud")[95:105, 105:120] == frame[95:105, 105:120]).all()


@pytest.mark.parametrize(
    "box",
    [
        [[-32768, 0], [32768, 0], [32768, 300], [-32768, 300]],
        [[0, 0]] * 4,
        [[-900, -900], [-800, -900], [-800, -850], [-900, -850]],
        [[-50, 10], [900, 10], [900, 60], [-50, 60]],
    ],
)
def test_boxes_that_cannot_be_drawn_in(box):
    """A cloud's box may be anywhere."""
    one = {"text": "a", "says": "bcd", "box": box, "score": 1.0, "known": True}
    assert replaced(np.zeros((100, 200, 3), np.uint8), [one], "edge").shape == (100, 200, 3)


@pytest.mark.parametrize("x", ["text", None, np.zeros((4, 4)), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(reader, x):
    with pytest.raises(BadInput, match="a picture is uint8"):
        reader.run([x])


def test_few_shapes_read_the_same(reader, monkeypatch):
    """What TensorRT gets: pieces that are padded to a few shapes."""
    shapes, run = set(), reader.recogniser.run_feed
    monkeypatch.setattr(reader, "fixed_shapes", True)
    monkeypatch.setattr(reader.recogniser, "run_feed", lambda feed: (shapes.add(feed["x"].shape), run(feed))[1])
    for at in (SURE, SURE + 5 * EACH_S):
        ((words, _),) = reader.run([frame_at(at)])
        assert key("".join(said(words))) == key("".join(SIGNS[int(at / EACH_S)].lines))
    assert shapes <= {(6, 3, 48, 320), (6, 3, 48, 640)}


def test_first_the_devices_words_then_the_clouds(opened, url):
    """A sign that the device is not sure of: its words at once, thin; then those of the cloud's larger model, in its colour."""
    screen = Screen()

    def camera():
        yield frame_at(UNSURE)
        screen.wait_for("cloud")

    stats = main.show(opened(url), camera(), screen)
    first, last = screen.drawn[0], screen.drawn[-1]
    assert (first.state, last.state) == ("waiting", "cloud")
    assert said(last.words) == HARD
    assert [word["says"] for word in last.words] == ["Road closed", "Follow diversion"]
    assert last.confidence > first.confidence
    assert last.device == first.words
    assert stats.refined == 1
    assert "corrects" in last.reason


def test_sure_words_and_streets_ask_nobody(opened):
    """Nor do private frames, however unsure."""
    with CannedServer(None) as server:
        router, screen = opened(f"{server.url}/read"), Screen()
        main.show(router, iter([frame_at(SURE)]), screen)
        main.show(router, iter([frame_at(WALL)]), screen)
        main.show(router, iter([frame_at(UNSURE)]), screen, data_class="private")
        main.show(router, iter([frame_at(UNSURE)]), screen, data_class="never heard of")
        assert not server.requests
    assert [drawn.state for drawn in screen.drawn] == ["edge", "edge", "private", "private"]
    assert "private" in screen.drawn[2].reason


def test_the_same_words_agree(opened):
    """Reasons compare by `label=`: other spaces, capitals and boxes correct nothing."""
    screen = Screen()
    told = [{"text": text, "says": "", "box": READ["box"], "score": 0.99} for text in ("strabegesperrt", "UmleitungFOLGEN")]
    with CannedServer(http_reply(json.dumps({"words": told, "confidence": 0.99}).encode())) as server:
        main.show(opened(f"{server.url}/read"), iter([frame_at(UNSURE)]), screen)
    assert screen.drawn[-1].state == "cloud"
    assert "agrees" in screen.drawn[-1].reason


def test_without_the_cloud_the_devices_words_stand(opened):
    screen = Screen()
    stats = main.show(opened(NOWHERE), iter([frame_at(UNSURE)]), screen)
    assert [drawn.state for drawn in screen.drawn] == ["waiting", "degraded"]
    assert screen.drawn[-1].words
    assert (stats.answered, stats.refined) == (1, 0)


def test_a_cloud_that_is_cut_and_mended(opened):
    """What is unsure is degraded while it is cut, and the cloud's again once it is mended."""
    reply = http_reply(json.dumps({"words": [READ], "confidence": 0.99}).encode())
    with CannedServer(reply) as server, main.cuttable(f"{server.url}/read") as (url, cut):
        router = opened(url)

        def state():
            screen = Screen()
            main.show(router, iter([frame_at(UNSURE)]), screen)
            return screen.drawn[-1].state

        assert state() == "cloud"
        cut(True)
        assert state() == "degraded"
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):  # no other program takes its place meanwhile
                other.bind(("127.0.0.1", urlsplit(url).port))
        cut(False)
        router.link_up()
        assert state() == "cloud"


READ = {"text": "Mind the gap", "says": "Mind the step", "box": [[9, 9], [90, 9], [90, 30], [9, 30]], "score": 0.9}


@pytest.mark.parametrize(
    "value",
    [
        None, "abc", {"a": 1}, [1, 2], [[]], [{"text": 5}], [READ] * 201,
        *([{**READ, **changed}] for changed in (
            {"text": 5}, {"text": ["a"]}, {"text": "a" * 201}, {"text": "\ud800"}, {"says": None}, {"says": "\ud800"}, {"score": "high"}, {"score": 2},
            {"score": float("nan")}, {"box": None}, {"box": []}, {"box": "abcd"}, {"box": [[1], [2]]}, {"box": 10**30},
            {"box": [[10**400, 1]] * 4}, {"box": [[1e9, 1]] * 4}, {"box": [[{}, 1]] * 4},
        )),
    ],
)  # fmt: skip
def test_what_is_no_word_of_the_cloud(value):
    with pytest.raises(BadReply, match="the cloud"):
        words_of(value)


def test_a_word_of_the_cloud():
    """With the spaces of one line, as it is drawn in one."""
    assert words_of([{**READ, "text": "Mind\nthe  gap", "more": 1}]) == [{**READ, "known": True}]


def test_an_odd_reply_leaves_the_devices_words(opened):
    """Nothing ends for it, and the reason says what was wrong."""
    screen = Screen()
    with CannedServer(http_reply(b'{"words": [{"text": 5}]}')) as server:
        stats = main.show(opened(f"{server.url}/read"), iter([frame_at(UNSURE)]), screen)
    first, last = screen.drawn
    assert (first.state, last.state) == ("waiting", "degraded")
    assert last.words == first.words
    assert "word" in last.reason
    assert stats.unrefined == 1


def test_the_clouds_answer_to_the_last_frame_is_drawn(opened):
    """It is waited for once the source has ended."""
    screen = Screen()
    reply = http_reply(json.dumps({"words": [READ], "confidence": 0.99}).encode())
    with CannedServer(reply) as server:
        main.show(opened(f"{server.url}/read"), iter([frame_at(UNSURE)]), screen)
    assert (screen.drawn[-1].state, said(screen.drawn[-1].words)) == ("cloud", ("Mind the gap",))


def test_the_last_frame_is_not_provisional_for_good(opened, monkeypatch):
    """Where the cloud's answer to it comes too late, the device's words stand."""
    monkeypatch.setattr(main, "STALE_S", 0.001)
    screen = Screen()
    with CannedServer(None) as server:
        main.show(opened(f"{server.url}/read"), iter([frame_at(UNSURE)]), screen)
    assert [drawn.state for drawn in screen.drawn] == ["waiting", "degraded"]
    assert screen.drawn[-1].words == screen.drawn[0].words


def test_an_answer_to_what_is_gone_is_not_drawn(opened):
    """The camera has turned to a dark wall while the cloud was reading: its call is cancelled, and the wall has no words."""
    screen = Screen()
    with CannedServer(None) as server:

        def camera():
            yield frame_at(UNSURE)
            server.wait_for(lambda: server.requests, timeout_s=LONG)
            yield frame_at(WALL) // 3
            server.wait_for(lambda: server.hung_up, timeout_s=LONG)

        stats = main.show(opened(f"{server.url}/read"), camera(), screen)
    assert "cloud" not in {drawn.state for drawn in screen.drawn}
    assert screen.drawn[0].words
    assert screen.drawn[-1].words == []
    assert (stats.outdated, stats.refined) == (1, 0)


def word(text, x, y):
    return {"text": text, "says": text, "box": [[x, y], [x + 50, y], [x + 50, y + 10], [x, y + 10]], "score": 0.9}


def test_the_clouds_words_are_where_the_device_sees_them_now():
    """Each takes the box of the word that is most like it; of two alike each has its own; what is not seen stays."""
    cloud_words = [word("EXIT 12", 0, 0), word("Harbour", 0, 50), word("North", 0, 90)]
    seen = [word("Harb0ur", 100, 60), word("EX1T 12", 110, 5)]
    assert [one["box"][0] for one in placed(cloud_words, seen)] == [[110, 5], [100, 60], [0, 90]]
    twice = [word("EXIT", 5, 5), word("EXIT", 200, 5)]
    assert placed([word("EXIT", 0, 0), word("EXIT", 190, 0)], twice) == twice
    misread = [word("EXIT", 5, 5), word("EX1T", 200, 5)]
    assert [one["box"][0] for one in placed([word("EXIT", 0, 0), word("EXIT", 190, 0)], misread)] == [[5, 5], [200, 5]]
    assert placed(cloud_words, []) == cloud_words


def test_no_older_frame_is_drawn_over_a_newer_one(opened, url):
    """The cloud's answer is about a frame that is over by then: the newest one is drawn, with its words."""
    screen, first, second = Screen(), frame_at(UNSURE), frame_at(UNSURE + 0.1)

    def camera():
        yield first
        screen.wait_for("waiting")
        yield second
        screen.wait_for("cloud")

    main.show(opened(url), camera(), screen)
    frames = [drawn.frame for drawn in screen.drawn]
    assert frames[0] is first
    assert frames[-1] is second
    assert screen.drawn[-1].state == "cloud"
    assert said(screen.drawn[-1].words) == HARD


def test_the_page_gets_frames(http):
    """By a WebSocket: what is drawn as JSON, and then the frame as a JPEG; the newest first of all. Other sites get nothing."""
    page = Page()
    try:
        address, origin = page.url.replace("http", "ws") + "frames", page.url.rstrip("/")
        for number in (10, 200):
            page.show(shade(number, "first", "cloud"))
        with connect(address, origin=origin, open_timeout=LONG, proxy=None) as browser:
            told, picture = json.loads(browser.recv(LONG)), Image.open(BytesIO(browser.recv(LONG)))
            assert (told["reason"], told["state"], told["width"], told["height"]) == ("first", "cloud", 64, 48)
            assert (told["cut"], told["camera"]) == (None, None)
            assert picture.size == (128, 48)
            assert picture.getpixel((5, 5))[0] > 190
            page.show(shade(0, "second", "waiting"))
            assert json.loads(browser.recv(LONG))["state"] == "waiting"
        port = urlsplit(page.url).port
        evil = f"http://evil.example:{port}"
        for name, site in (("127.0.0.1", evil), ("127.0.0.1", None), ("evil.example", evil)):
            line = socket.create_connection(("127.0.0.1", port))
            with pytest.raises(InvalidStatus), connect(f"ws://{name}:{port}/frames", sock=line, origin=site, open_timeout=LONG):
                pytest.fail(f"{name} {site} gets frames")
        told = http.get(page.url, timeout=LONG)
        assert "<canvas" in told.text
        assert "default-src 'none'" in told.headers["content-security-policy"]
        assert "frame-ancestors http://127.0.0.1:* http://localhost:*" in told.headers["content-security-policy"]
        assert http.get(page.url, headers={"Host": "evil.example"}, timeout=LONG).status_code == 400
    finally:
        page.close()


def test_the_last_frame_stays_on_the_page(monkeypatch):
    """A browser that is still receiving an earlier one gets it before the page ends."""
    monkeypatch.setattr("page.LAST_S", LONG)
    page, noise = Page(), np.random.default_rng(7).integers(0, 255, (800, 900, 3), np.uint8)
    address = page.url.replace("http", "ws") + "frames"
    with connect(address, origin=page.url.rstrip("/"), open_timeout=LONG, max_size=None, proxy=None) as browser:
        for number in range(5):
            page.show(shade(0, f"{number}")._replace(frame=noise))
            if number == 0:
                browser.recv(LONG)  # so it is there
        closing = threading.Thread(target=page.close)
        closing.start()
        told = [json.loads(one)["reason"] for one in browser if isinstance(one, str)]
        closing.join()
    assert told[-1] == "4"


def test_a_page_whose_server_fails(monkeypatch):
    """One that does not start is told, not waited for; one that ends while frames are shown ends the program, which can still close it."""
    page = Page()
    page.server.should_exit = True
    page.thread.join()
    assert page.show(shade(0)) is False
    page.close()
    monkeypatch.setattr("page.uvicorn.Server.run", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="did not start"):
        Page()


def posted(image, kind):
    """A request's body with it."""
    file = BytesIO()
    image.save(file, kind)
    return json.dumps({"image": base64.b64encode(file.getvalue()).decode()}).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[]", 400), (b'{"image": 7}', 400), (b'{"image": "###"}', 400), (b'{"image": "AAAA"}', 400),
        (json.dumps({"image": base64.b64encode(jpeg(frame_at(WALL))[:200]).decode()}).encode(), 400),
        (b'{"image": "' + b"A" * (5 << 20) + b'"}', 413),
        (posted(Image.new("L", (8, 8)), "PNG"), 400),
        (posted(Image.new("L", (4096, 2048)), "JPEG"), 400),
        (posted(Image.new("L", (3000, 1)), "JPEG"), 400), (posted(Image.new("L", (47, 3000)), "JPEG"), 400),
        (b"[" * 100_000, 400),
        (json.dumps({"image": base64.b64encode(jpeg(frame_at(WALL)) + b"\xff\xda" * 100).decode()}).encode(), 400),
    ],
)  # fmt: skip
def test_the_cloud_says_what_it_cannot_read(url, http, body, status):
    reply = http.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=LONG)
    assert (reply.status_code, [*reply.json()]) == (status, ["error"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Content-Type": "Application/JSON; charset=utf-8", "Host": "localhost:1"}, 200),
        ({"Host": "evil.example"}, 400), ({"Host": "127.0.0.1.evil.example:8766"}, 400), ({"Host": ""}, 400),
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": ""}, 403),
        ({"Content-Type": None}, 415), ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
    ],
)  # fmt: skip
def test_no_page_has_the_cloud_read(url, http, headers, status):
    """Nor by the way to it that can be cut."""
    body, kind = posted(Image.new("L", (64, 64)), "JPEG"), {"Content-Type": "application/json"}
    with main.cuttable(url) as (relayed, _):
        for way in (url, relayed):
            assert http.post(way, data=body, headers={**kind, **headers}, timeout=LONG).status_code == status


def test_two_pictures_are_decoded_at_a_time(monkeypatch):
    """A third one waits; and all are let go, though they are none."""
    inside, both, go_on = [], threading.Semaphore(0), threading.Event()

    def opening(*_, **__):
        inside.append(1)
        both.release()
        go_on.wait(LONG)
        raise OSError

    monkeypatch.setattr(cloud.Image, "open", opening)
    with ThreadPoolExecutor(3) as threads:
        tries = [threads.submit(cloud.picture_of, b"") for _ in range(3)]
        assert all(both.acquire(timeout=LONG) for _ in range(2))
        assert not both.acquire(timeout=0.1)
        go_on.set()
        assert all(isinstance(one.exception(LONG), ValueError) for one in tries)
    assert len(inside) == 3


def test_the_cloud_takes_long_pictures():
    assert cloud.decoded(posted(Image.new("L", (300, 30)), "JPEG")).shape == (30, 300, 3)


def stills(*names):
    """The pictures, as one takes them who is done with each at once."""
    found = sources.opened([str(name) for name in names], sources.Camera())
    for frame in found:
        yield frame
        found.go_on()


def test_pictures_that_cannot_be_read_are_told(tmp_path, capsys):
    """The others are shown, whatever their kind."""
    for number, kind in enumerate(("gif", "tiff", "png")):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{number}.{kind}")
    (tmp_path / "0.jpg").write_bytes(b"none")
    (tmp_path / "1.png").write_bytes((tmp_path / "2.png").read_bytes()[:50])
    (tmp_path / "notes.txt").write_text("none")
    assert [frame[0, 0].tolist() for frame in stills(tmp_path, tmp_path / "missing.png")] == [[255, 0, 0]] * 3
    told = capsys.readouterr().err
    assert [name for name in ("0.jpg", "1.png", "notes.txt", "missing.png", "gif", "tiff", "2.png") if name in told] == [
        "0.jpg", "1.png", "notes.txt", "missing.png",
    ]  # fmt: skip


def test_a_picture_is_upright_and_on_white(tmp_path):
    """As its EXIF orientation and its alpha channel say."""
    turned = Image.Exif()
    turned[0x0112] = 6  # its right side is up
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "through.png")
    through, upright = stills(tmp_path)
    assert upright.shape == (40, 20, 3)
    assert (through == 255).all()


def test_pictures_are_read_one_by_one(tmp_path, opened, monkeypatch):
    """Each has its final answer, also where a slow reader would pass over frames of a camera, and where all look the same."""
    names = [f"{number:02}" for number in range(6)]
    for name in names:
        picture = Image.new("RGB", (64, 48))
        picture.putpixel((0, 0), (10 * int(name), 0, 0))
        picture.save(tmp_path / f"{name}.png")
    word_ = {**READ, "says": "Mind the step"}
    monkeypatch.setattr(
        TextReader, "run", lambda _, inputs, cancel=None: [([{**word_, "text": f"{x[0, 0, 0]}"}], 0.3) for x in inputs]
    )
    screen, reply = Screen(), http_reply(json.dumps({"words": [READ], "confidence": 0.99}).encode())
    with CannedServer(reply) as server:
        stats = main.show(opened(f"{server.url}/read"), sources.opened([str(tmp_path)], sources.Camera()), screen)
    assert (stats.read, stats.dropped, stats.answered, stats.refined) == (6, 0, 6, 6)
    assert [drawn.state for drawn in screen.drawn] == ["waiting", "cloud"] * 6
    assert [drawn.device[0]["text"] for drawn in screen.drawn[::2]] == [str(10 * number) for number in range(6)]


def test_the_browsers_camera_goes_before_the_scene(monkeypatch):
    """Each of its frames is taken once; what is no picture is refused; and the scene is back when it is off."""
    monkeypatch.setattr(sources, "AWAY_S", LONG)
    camera, red = sources.Camera(), jpeg(np.full((1920, 240, 3), (250, 0, 0), np.uint8))
    frames = iter(camera)
    assert next(frames).shape == (480, 640, 3)
    camera.put(red)
    assert camera.on
    assert next(frames).shape == (960, 120, 3)
    camera.put(red)
    camera.off()
    assert next(frames).shape == (480, 640, 3)
    for file in (b"", b"none", posted(Image.new("L", (8, 8)), "PNG"), jpeg(np.zeros((47, 1, 3), np.uint8))):
        with pytest.raises(ValueError, match=r"JPEG|picture"):
            camera.put(file)


def test_the_page_takes_frames_and_switches(monkeypatch):
    """By the WebSocket; what is neither is ignored."""
    monkeypatch.setattr(sources, "AWAY_S", LONG)
    camera, cuts = sources.Camera(), []
    page = Page(0, camera)
    page.switch(cuts.append)
    try:
        with connect(
            page.url.replace("http", "ws") + "frames", origin=page.url.rstrip("/"), open_timeout=LONG, proxy=None
        ) as browser:
            for odd in (b"no picture", "no JSON", "[]", '{"cut": 3}', '"a"', "null", "[" * 100_000):
                browser.send(odd)
            browser.send(jpeg(np.full((48, 64, 3), 90, np.uint8)))
            for cut in (True, False):
                browser.send(json.dumps({"cut": cut}))
            while len(cuts) < 2:
                page.show(shade(0))
                browser.recv(LONG), browser.recv(LONG)
            page.show(shade(0))
            assert json.loads(browser.recv(LONG))["cut"] is False
            assert cuts == [True, False]
            assert next(iter(camera)).shape == (48, 64, 3)
    finally:
        page.close()


@pytest.mark.parametrize(
    "arguments",
    [
        "--port 99999", "--port -1", "--port x", "cloud --port 99999", "--seconds nan", "--seconds -1", "--seconds inf",
        "check sign.png", "--port 0 cloud", "sign.png bench", "nothing.png", "--port {busy}", "cloud --port {busy}",
        "--out {file}", "--out {file}/more", "--out {seen}", "--policy nothing.toml", "check --policy {wrong}",
        "--policy {wrong}", "--cloud foo",
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_at_once(arguments, tmp_path, monkeypatch):
    """In a line, before anything is loaded; and what was drawn earlier stays."""
    monkeypatch.setattr(cloud, "started", lambda: pytest.fail("a cloud is started"))
    monkeypatch.setattr(cloud, "LargeReader", lambda *_: pytest.fail("networks are loaded"))
    (tmp_path / "file").write_text("")
    (tmp_path / "wrong.toml").write_text(main.POLICY.read_text().replace("prefer_edge", "prefer_egde"))
    names = {"file": tmp_path / "file", "seen": tmp_path, "wrong": tmp_path / "wrong.toml"}
    (tmp_path / "drawn.jsonl").write_text("earlier")
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit) as ended:
        main.main(arguments.format(busy=other.getsockname()[1], **names).split())
    assert ended.value.code == 2 or "\n" not in str(ended.value.code)
    assert (tmp_path / "drawn.jsonl").read_text() == "earlier"


def test_a_cloud_whose_parent_has_gone(tmp_path):
    """It ends, and says nothing: nobody reads what it prints."""
    command = [sys.executable, main.__file__, "cloud", "--port", "0", "--with-parent"]
    with (tmp_path / "err").open("w+") as err:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err)
        child.stdin.close()
        child.stdout.close()
        child.wait(LONG)
        err.seek(0)
        assert err.read() == ""


def test_films(tmp_path):
    """They give new frames, red first, and no larger than is drawn; what is not there is told."""
    for name, shape in (("film.avi", (48, 64, 3)), ("high.avi", (1920, 64, 3))):
        film = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*"MJPG"), 50, shape[1::-1])
        for _ in range(3):
            film.write(np.full(shape, (0, 0, 250), np.uint8))
        film.release()
        frames = list(sources.opened([str(tmp_path / name)], sources.Camera()))
        assert [frame.shape[0] for frame in frames] == [min(960, shape[0])] * 3
        assert frames[0][20, 20].argmax() == 0
    (tmp_path / "notes.txt").write_text("no picture")
    for names in (["nothing/here.png"], [str(tmp_path / "notes.txt")]):
        with pytest.raises(SystemExit, match=r"here|notes"):
            list(sources.opened(names, sources.Camera()))


def test_headless(tmp_path, opened):
    """Pictures in a folder, one whenever other words are drawn."""
    folder = Folder(tmp_path / "out")
    main.show(opened(NOWHERE), iter([frame_at(SURE)]), folder)
    folder.close()
    (line,) = (tmp_path / "out" / "drawn.jsonl").read_text().splitlines()
    assert [one["says"] for one in json.loads(line)["words"]] == ["Exit", "To the trains"]
    (picture,) = (tmp_path / "out").glob("*.jpg")
    assert picture.name == "0001-edge.jpg"
    with Image.open(picture) as image:
        assert image.size == (640, 480)


def test_a_lost_space_is_no_other_scene():
    assert letters([word("Mind the gapbetween", 0, 0), word("Train", 0, 9)]) == letters(
        [word("mind the gap between", 3, 3), word("train", 3, 9)]
    )
    assert letters([word("gap", 0, 0)]) != letters([word("gas", 0, 0)])
    assert letters([]) != letters([word("gas", 0, 0)])


def test_the_program(tmp_path, opened, url, capsys, monkeypatch):
    """`main.py --out FOLDER PICTURE` from end to end: the device has read once before there are frames."""
    monkeypatch.setenv("EDGEROUTE_DEADLINE", f"{LONG:.0f}s")
    order, run, read = [], TextReader.run, sources.picture_at
    monkeypatch.setattr(TextReader, "run", lambda *given, **more: (order.append("read"), run(*given, **more))[1])
    monkeypatch.setattr(sources, "picture_at", lambda path: (order.append("frames"), read(path))[1])
    Image.fromarray(frame_at(SURE)).save(tmp_path / "sign.png")
    main.main(["--cloud", url, "--out", str(tmp_path / "out"), "--seconds", "1", str(tmp_path / "sign.png")])
    assert "0 times it did not answer" in capsys.readouterr().out
    assert "To the trains" in (tmp_path / "out" / "drawn.jsonl").read_text()
    assert order[0] == "read"
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(SystemExit, match="no frame came"):
        main.main(["--cloud", url, "--out", str(tmp_path / "none"), str(tmp_path / "broken.png")])
