"""`frames`: the newest frame is answered, refinements are matched to their frames, and nothing is left behind."""

import asyncio
import contextlib
import gc
import json
import math
import sys
import threading
from functools import partial
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest
import routes
from both import DOWN, GOOD, LONG, GatedServer, Tasks, makes, unsure
from live import Feed, live, until

from edgeroute import AsyncRouter, BadInput, Closed, Egress, NoAnswer, PlainJson, PolicyError, Router
from edgeroute.core.live_frames_speech_and_display import Pace
from edgeroute.router.live import source_reader_mailbox_and_calls as mailboxes
from edgeroute.router.live.asyncio_iterators import AsyncBell
from edgeroute.router.live.blocking_iterators import Bell
from edgeroute.router.live.frames import FrameFlow, FrameSettings, signature_of
from edgeroute.router.live.source_reader_mailbox_and_calls import Mailbox
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

ALL = {"drop": "never", "scene": None, "hold": 1, "stale": None}
"""Of a recording of frames that are numbers, each with a label of its own; none is given up, however busy the machine is."""


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


def picture(brightness, rows=12, columns=20):
    return np.full((rows, columns, 3), brightness, np.uint8)


def echo(x):
    """An edge that says which frame it saw, and is not sure."""
    return f"edge {x}", 0.1


def asked_of(request):
    """The frame that a request is about."""
    return json.loads(request.partition(b"\r\n\r\n")[2])["input"]


def cloud_of(request):
    return http_reply(json.dumps({"value": f"cloud {asked_of(request)}"}).encode())


# which frames are answered


def test_a_recording_is_answered_frame_by_frame(make):
    """In their order, by the edge; the source waits, and ends."""
    with live(make(echo, None), "frames", range(50), **ALL) as frames:
        updates = list(frames)
        assert list(frames) == []
    assert [(u.frame_index, u.frame, u.answer.value, u.final) for u in updates] == [(i, i, f"edge {i}", True) for i in range(50)]
    assert all(u.edge is u.answer is u.shown and u.changed and not u.provisional for u in updates)
    stats = frames.stats()
    assert (stats.read, stats.answered, stats.dropped, stats.refined) == (50, 50, 0, 0)


def test_the_newest_frame_wins(make):
    """While the program is at one, what comes is replaced by what comes next, and counted; ages are from when it came."""
    feed = Feed()
    with live(make(echo, None), "frames", feed, scene=None, stale=None) as frames:
        feed.put("a")
        assert next(frames).answer.value == "edge a"
        feed.put(*"bcdef")
        until(lambda: frames.stats().read == 6)
        update = next(frames)
        assert (update.frame, update.frame_index) == ("f", 5)
        assert update.age_s > 0
        assert (frames.stats().dropped, frames.stats().answered) == (4, 2)
        feed.end()
        assert list(frames) == []


def test_an_edge_that_is_slow_gets_the_newest_too(make):
    """Nothing is queued behind a run: what came meanwhile is dropped but for the last."""
    feed, gate = Feed(), threading.Event()
    edge = FakeModel([("edge", 0.9)], gate=gate)
    with live(make(edge, None), "frames", feed, scene=None, stale=None) as frames, contextlib.ExitStack() as stack:
        seen = []
        feed.put(0)
        thread = threading.Thread(target=lambda: seen.extend(frames))
        thread.start()
        stack.callback(thread.join)
        until(lambda: edge.runs == 1)
        feed.put(*range(1, 10))
        until(lambda: frames.stats().read == 10)
        gate.set()
        feed.end()
    assert [u.frame for u in seen] == [0, 9]


class Camera:
    """As OpenCV's: it gives `ok, frame`."""

    def __init__(self, count):
        self.left = count

    def read(self):
        """The next frame."""
        self.left -= 1
        return self.left >= 0, (picture(0) if self.left >= 0 else None)


def test_a_camera_and_a_function_are_sources(make):
    """`read()` ends with False; a function's frames are new objects, and it ends with StopIteration."""
    with live(make(unsure, None), "frames", Camera(3), drop="never", stale=None) as frames:
        assert len(list(frames)) == 3
    given = iter([None, "a", "a", None, "b"])
    with live(make(echo, None), "frames", lambda: next(given), **ALL) as frames:
        assert [u.frame for u in frames] == ["a", "b"]


def test_a_camera_that_ends_or_is_none(make):
    """One whose `read()` raises StopIteration has ended; one that returns the frame alone is told what it returns."""
    camera = Camera(2)
    camera.read, given = lambda: next(given), iter([(True, picture(0)), (True, picture(9))])
    with live(make(unsure, None), "frames", camera, drop="never", stale=None) as frames:
        assert len(list(frames)) == 2
    camera.read = lambda: picture(0)
    with (
        live(make(unsure, None), "frames", camera, drop="never", stale=None) as frames,
        pytest.raises(BadInput, match=r"read\(\) of a Camera returns \(ok, frame\)"),
    ):
        next(frames)


def test_a_refinement_may_be_of_use_for_ever(make):
    """Any number of seconds."""
    for stale in (math.inf, 1.7e308):
        with live(make(unsure, FakeCloud([("far", 0.9)])), "frames", [1, 2], drop="never", scene=None, stale=stale) as frames:
            assert "far" in [update.answer.value for update in frames]


def test_an_async_source():
    """It is read in a task, of an AsyncRouter alone; one that never waits lets others run."""

    async def endless():
        while True:
            yield 1

    async def main():
        feed = Feed()
        async with AsyncRouter(echo, None, threshold=0.5) as router:
            async with router.frames(feed.awaited(), **ALL) as frames:
                feed.put("a", "b")
                feed.end(OSError("unplugged"))
                assert [(await anext(frames)).frame, (await anext(frames)).frame] == ["a", "b"]
                with pytest.raises(OSError, match="unplugged"):
                    await anext(frames)
            async with router.frames(endless(), scene=None, stale=None) as frames:
                assert (await anext(frames)).answer.value == "edge 1"
        with Router(echo, None) as router, pytest.raises(BadInput, match="needs an AsyncRouter"):
            router.frames(endless())

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_a_quick_source_does_not_fill_the_loop():
    """While the loop is at something else, one call of it waits, however many frames come."""
    waiting, bell = [], AsyncBell()
    bell.loop = SimpleNamespace(call_soon_threadsafe=waiting.append)
    for _ in range(3):
        bell.ring()
    assert len(waiting) == 1
    waiting[0]()
    assert bell.event.is_set()
    bell.ring()
    assert len(waiting) == 2


def words():
    yield "a"


async def newest():
    return "a"


@pytest.mark.parametrize("source", ["a.mp4", b"bytes", {"a": 1}, 7, None, complex])
def test_what_is_no_source_is_refused(make, source):
    """With what would be one."""
    if source is None:  # functions that make one
        with pytest.raises(BadInput, match="call it"):
            live(make(echo, None), "frames", words)
        with pytest.raises(BadInput, match="async iterable"):
            live(make(echo, None), "frames", newest)
    with pytest.raises(BadInput, match="a source of frames is"):
        live(make(echo, None), "frames", source)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_in_flight": 0},
        {"drop": "newest"},
        {"every": -1},
        {"every": float("inf")},
        {"hold": 0},
        {"busy": 0},
        {"busy": 2},
        {"stale": "1s"},
        {"label": 3},
        {"signature": "x"},
    ],
)
def test_wrong_arguments_are_refused_at_once(make, wrong):
    """Before the source is read."""
    with pytest.raises(PolicyError, match=next(iter(wrong))):
        live(make(echo, None), "frames", [1], **wrong)


# refinements


def test_a_refinement_is_matched_to_its_frame(make):
    """It comes while later frames are answered by the edge, and has the index, the frame and the answer of its own."""
    feed = Feed()
    with GatedServer(cloud_of) as server:
        router = make(echo, PlainJson(server.url))
        with live(router, "frames", feed, max_in_flight=1, **ALL) as frames:
            feed.put(0)
            first = next(frames)
            assert (first.answer.value, first.provisional, first.held) == ("edge 0", True, "")
            feed.put(1, 2)
            assert [(u.frame, u.final, u.held) for u in (next(frames), next(frames))] == [
                (1, True, "in_flight"),
                (2, True, "in_flight"),
            ]
            server.open()
            refined = next(frames)
            assert (refined.frame_index, refined.frame, refined.answer.value) == (0, 0, "cloud 0")
            assert (refined.final, refined.edge.value) == (True, "edge 0")
            assert refined.answer.id == first.answer.id
            feed.end()
            assert list(frames) == []
            assert (frames.stats().refined, frames.stats().answered) == (1, 3)
    assert len(server.requests) == 1


def test_no_more_are_in_flight_than_may_be(make):
    """Two, however many frames come; the rest is answered by the edge alone."""
    feed = Feed()
    with GatedServer(cloud_of) as server:
        router = make(echo, PlainJson(server.url))
        with live(router, "frames", feed, **ALL) as frames:
            feed.put(*range(6))
            updates = [next(frames) for _ in range(6)]
            assert [u.held for u in updates] == ["", "", *["in_flight"] * 4]
            server.wait_for(lambda: len(server.requests) == 2)
            server.open()
            feed.end()
            finals = [u for u in frames if u.answer.source == "cloud"]
            numbers = [u.frame_index for u in finals]
            assert numbers == sorted(numbers)
            assert numbers[-1] == 1
    assert len(server.requests) == 2


def test_an_older_refinement_is_cancelled_by_a_newer_one(make):
    """The server sees its end, and its frame gets no update any more."""
    feed = Feed()

    def only_the_second(request):
        return None if asked_of(request) == 0 else cloud_of(request)

    with Selective(only_the_second) as server:
        router = make(echo, PlainJson(server.url))
        with live(router, "frames", feed, **ALL) as frames:
            feed.put(0)
            assert next(frames).provisional
            server.wait_for(lambda: len(server.requests) == 1)
            feed.put(1)
            assert next(frames).provisional
            assert next(frames).answer.value == "cloud 1"
            feed.end()
            assert list(frames) == []
            assert frames.stats().outdated == 1
            server.wait_for(lambda: server.hung_up == 1)


class Selective(GatedServer):
    """Replies to some requests, at once, and to others never."""

    def __init__(self, reply):
        super().__init__(reply)
        self.open()

    async def _serve(self, reader, writer):
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
                length = int(request.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                request += await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                self._note(hung_up=1)
                return
            self._note(request)
            if (reply := self.reply(request)) is not None:
                writer.write(reply)
                await writer.drain()


def test_a_frame_whose_refinement_is_outdated_is_counted(make):
    """As answered by the edge, and its cloud as cancelled: in the counts and in the trace."""
    traced = []
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url, retries=0), trace=traced.append)
        given = [picture(255 * (i % 2)) for i in range(6)]  # each a new scene
        with live(router, "frames", given, drop="never", stale=None) as frames:
            assert len([next(frames) for _ in given]) == len(given)
        stats = router.stats()
        server.open()
    assert [(one["answered_by"], one["reason_code"]) for one in traced] == [("edge", "left")] * 6
    assert (stats.requests, stats.degraded, stats.unanswered) == (6, 0, 0)
    assert [(leg.started, leg.answered, leg.cancelled) for leg in stats.legs] == [(6, 6, 0), (6, 0, 6)]


@pytest.fixture
def ahead(monkeypatch):
    """So many seconds is the clock ahead for whoever asks for the next update."""
    seconds = [0.0]
    for module in ("blocking_iterators", "asyncio_iterators"):
        monkeypatch.setattr(f"edgeroute.router.live.{module}.monotonic", lambda: monotonic() + seconds[0])
    return seconds


def test_a_refinement_that_comes_too_late_is_cut(make, ahead, due, monkeypatch):
    """The first frame's call, for which the edge's time is not known, and the next one's, which has a deadline: no reply comes."""
    late = due(lambda: ahead[0])
    monkeypatch.setattr(Pace, "deadline_s", lambda pace, _: late if pace.edge_s else None)
    with CannedServer(None) as server:
        router = make(echo, PlainJson(server.url, retries=0, timeout_s=9 * LONG))
        for count in (1, 2):
            feed = Feed()
            with live(router, "frames", feed, **{**ALL, "stale": LONG}) as frames:
                before = len(server.requests)
                for number in range(count):
                    feed.put(number)
                    assert next(frames).provisional
                    server.wait_for(lambda n=before + number + 1: len(server.requests) == n)
                feed.end()
                ahead[0] = 2 * LONG  # they are late as soon as they have reached the cloud
                assert list(frames) == []
                assert frames.stats().outdated == count
                ahead[0] = 0.0
            server.wait_for(lambda: server.hung_up == len(server.requests))


def test_a_cloud_that_is_down_costs_no_frame(make):
    """Each is answered by the edge; the final update of the newest says why the cloud is not in it."""
    feed = Feed()
    with CannedServer(DOWN) as server:
        router = make(echo, PlainJson(server.url, retries=0))
        with live(router, "frames", feed, **ALL) as frames:
            feed.put(0)
            assert next(frames).provisional
            final = next(frames)
            assert (final.frame, final.final, final.answer.source, final.answer.degraded) == (0, True, "edge", True)
            assert routes.status(final.answer) == 503
            feed.put(*range(1, 30))
            feed.end()
            updates = list(frames)
    assert {u.frame for u in updates} == set(range(1, 30))
    assert all(u.answer.source == "edge" for u in updates)
    stats = frames.stats()
    assert (stats.answered, stats.refined, stats.outdated) == (30, 0, 0)
    assert stats.unrefined >= 2


def test_a_frame_that_is_left_to_the_outbox_is_final(make, tmp_path):
    """Nothing more comes for it here: it holds no place, and the iteration ends, also where a refinement is of use for ever."""
    feed = Feed()
    with CannedServer(DOWN) as server:
        router = make(echo, PlainJson(server.url, retries=0), offline="queue", state=tmp_path)
        with live(router, "frames", feed, **ALL) as frames:
            for frame in range(3):
                feed.put(frame)
                assert next(frames).provisional
                update = next(frames)
                assert (update.frame, update.final, update.answer.final, update.answer.degraded) == (frame, True, False, True)
                assert update.answer.reason.endswith("; waiting")
            feed.end()
            assert list(frames) == []
    stats = frames.stats()
    assert (stats.answered, stats.unrefined, stats.outdated, stats.in_flight) == (3, 3, 0, 0)


def test_a_scene_is_left_to_the_outbox_once(make, tmp_path):
    """While the cloud is away, a camera that stands still fills no disk."""
    with CannedServer(DOWN) as server:
        router = make(unsure, PlainJson(server.url, retries=0), offline="queue", state=tmp_path)
        with live(router, "frames", [picture(9) for _ in range(8)], drop="never", stale=None) as frames:
            updates = list(frames)
            assert router.stats().deferred == 1
    assert {u.held for u in updates if u.frame_index} == {"scene"}


def test_a_class_that_stays_is_not_sent(make):
    """Whatever the gate and the slots say."""
    with CannedServer(GOOD) as server:
        router = make(echo, PlainJson(server.url), egress=Egress(never_leave=["medical"]))
        with live(router, "frames", range(5), data_class="medical", **ALL) as frames:
            assert all(u.final and u.answer.source == "edge" for u in frames)
    assert server.connections == 0


def test_a_cloud_that_is_alone_is_asked_about_several_at_once(make):
    """There is no edge to answer first; a frame waits for a slot."""
    with GatedServer(cloud_of) as server:
        router = make(None, PlainJson(server.url), threshold=None)
        with live(router, "frames", range(4), **ALL) as frames:
            seen = []
            thread = threading.Thread(target=lambda: seen.extend(frames))
            thread.start()
            server.wait_for(lambda: len(server.requests) == 2)
            server.open()
            thread.join()
    assert seen[-1].answer.value == "cloud 3"
    assert all(u.edge is None and u.final for u in seen)
    numbers = [u.frame_index for u in seen]
    assert numbers == sorted(numbers)


# scenes, and hysteresis


def test_the_cloud_is_asked_once_in_a_scene(make):
    """Its answer is that of the frames that follow, until the picture changes."""
    feed = Feed()
    with CannedServer(GOOD) as server:
        cloud = PlainJson(server.url, encode=lambda x: {"input": int(x[0, 0, 0])})
        with live(make(unsure, cloud), "frames", feed, drop="never", stale=None) as frames:
            for brightness in (10, 200):
                feed.put(picture(brightness))
                first, refined = next(frames), next(frames)
                assert (first.provisional, refined.answer.source) == (True, "cloud")
                for more in range(3):
                    feed.put(picture(brightness + more))
                    update = next(frames)
                    assert (update.answer.value, update.edge.value, update.held) == ("cloud", "edge", "scene")
                    assert update.reused_from == refined.frame_index
                    assert update.final
                    assert not update.changed
            feed.end()
            assert list(frames) == []
            stats = frames.stats()
            assert (stats.scenes, stats.refined, stats.reused) == (2, 2, 6)
    assert len(server.requests) == 2


def test_an_edge_that_goes_on_saying_something_else_ends_a_scene(make):
    """Though the picture's signature is the same: three frames in a row, and the cloud is asked again."""
    feed, said = Feed(), ["a"]
    with CannedServer(GOOD) as server:
        cloud = PlainJson(server.url, encode=lambda _: {"input": 1})
        with live(make(lambda _: (said[0], 0.1), cloud), "frames", feed, drop="never", stale=None) as frames:
            feed.put(picture(5))
            assert [next(frames).provisional, next(frames).answer.source] == [True, "cloud"]
            for label in "bab":  # it flickers
                said[0] = label
                feed.put(picture(5))
                assert next(frames).reused_from == 0
            for left in (1, 0):
                feed.put(picture(5))
                assert (next(frames).reused_from == 0) is (left > 0)
            feed.put(picture(5))
            assert next(frames).provisional
            assert next(frames).answer.source == "cloud"
            feed.end()
            assert list(frames) == []
    assert len(server.requests) == 2


def test_what_is_shown_does_not_flicker(make):
    """One odd frame changes nothing; the answer to show is the last one with the label that is shown."""
    labels = "aabaabbbb"
    model = FakeModel([(label, 0.9) for label in labels])
    with live(make(model, None), "frames", range(len(labels)), margin=None, **{**ALL, "hold": 3}) as frames:
        updates = list(frames)
    assert [u.shown.value for u in updates] == list("aaaaaaabb")
    assert [u.changed for u in updates] == [True, *[False] * 6, True, False]
    assert updates[2].shown is updates[1].answer
    assert updates[2].label == "b"


def test_labels_may_be_made_of_values(make):
    """Lists cannot be compared, and are shown as they come; a function makes labels of them."""
    lists, numbers = [["a"], ["b"], ["a"]], [0.1, 0.2, 0.3]
    for label, values, shown in ((None, lists, lists), (tuple, lists, [["a"]] * 3), (None, numbers, numbers)):
        model = FakeModel([(value, 0.9) for value in values])
        with live(make(model, None), "frames", range(3), label=label, margin=None, **{**ALL, "hold": 3}) as frames:
            updates = list(frames)
        assert [u.shown.value for u in updates] == shown
        assert [u.changed for u in updates] == [True, label is None, label is None]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((480, 640, 3), np.uint8), ((5, 7), np.float32), ((33, 1, 4), np.uint16), ((1, 1), bool)]
)
def test_the_default_signature(shape, dtype):
    """Up to 64 numbers from 0 to 1, and a brighter frame has larger ones."""
    dark, light = signature_of(np.zeros(shape, dtype)), signature_of(np.ones(shape, dtype))
    assert len(dark) <= 64
    assert set(dark) == {0.0}
    assert all(0 < value <= 1 for value in light)


def test_the_signature_of_floats_is_that_of_the_bytes():
    """0..1 and 0..255 alike, though resizing goes a little beyond 1; NaN and infinities, as of a camera of depth, count as 0."""
    pixels = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    expected = signature_of(pixels)
    for scale in (1, 255):
        assert signature_of(pixels / np.float32(255 / scale)) == pytest.approx(expected, abs=1e-5)
    beyond = pixels / np.float64(250)
    beyond[0, 0] = 1.01
    assert signature_of(beyond) == pytest.approx(np.multiply(expected, 255 / 250), abs=0.03)
    for wrong in (np.nan, np.inf, -np.inf):
        holes, zeros = pixels / np.float32(255), pixels / np.float32(255)
        holes[:20, :, 0], zeros[:20, :, 0] = wrong, 0
        assert signature_of(holes) == signature_of(zeros)


@pytest.mark.parametrize("full", [1, 255])
def test_noise_in_floats_and_holes_are_one_scene(make, full):
    """Such a camera does not ask the cloud about each of its frames."""
    noise = np.random.default_rng(1)
    given = [(full * (0.5 + 0.02 * noise.random((48, 64)))).astype(np.float32) for _ in range(20)]
    for frame in given:
        frame[:5] = np.nan
    with live(make(unsure, None), "frames", given, drop="never", stale=None) as frames:
        assert len(list(frames)) == 20
        assert frames.stats().scenes == 1


def test_a_frame_without_a_signature_says_so_and_the_next_goes_on(make):
    """The error names the argument that helps."""
    with live(make(unsure, None), "frames", ["text", picture(1)], drop="never", stale=None) as frames:
        with pytest.raises(BadInput, match="signature="):
            next(frames)
        assert next(frames).frame_index == 1
        assert list(frames) == []


@pytest.mark.parametrize("error", [ValueError("of the label"), BadInput("of the label"), SystemExit(1)])
def test_a_label_that_cannot_be_made_loses_no_frame(make, caplog, error):
    """Its answer is shown as it comes, without hysteresis; what was raised is logged once."""

    def label(value):
        if value.startswith("bad"):
            raise error
        return value

    model = FakeModel([(value, 0.9) for value in ("a", "bad 1", "bad 2", "b", "a")])
    with live(make(model, None), "frames", range(5), label=label, margin=None, **{**ALL, "hold": 3}) as frames:
        updates = list(frames)
    assert [u.answer.value for u in updates] == ["a", "bad 1", "bad 2", "b", "a"]
    assert [u.shown.value for u in updates] == ["a", "bad 1", "bad 2", "bad 2", "a"]
    assert [u.label for u in updates] == ["a", None, None, "b", "a"]
    assert [record.getMessage().partition(" failed")[0] for record in caplog.records] == ["label= of an answer"]


@pytest.mark.parametrize(("label", "note"), [(None, "it corrects that"), (str.casefold, "it agrees with the provisional answer")])
def test_a_reason_compares_by_label(make, label, note):
    """A cloud's answer that differs in what does not count corrects nothing."""
    router = make(echo, lambda _: ("EDGE 0", 0.9))
    with live(router, "frames", range(1), label=label, **ALL) as frames:
        *_, last = frames
    assert (last.answer.source, last.answer.value) == ("cloud", "EDGE 0")
    assert last.answer.reason.endswith(f"; {note}")


@pytest.mark.parametrize("found", [ValueError("of the signature"), BadInput("of the signature"), SystemExit(1), None, ["x"]])
def test_a_signature_that_cannot_be_made_loses_no_frame(make, caplog, found):
    """The frame is answered as if there were no scenes; what was raised is logged once."""

    def signature(frame):
        if frame % 2 == 0:
            return [1.0]
        if isinstance(found, BaseException):
            raise found
        return found

    with live(make(echo, None), "frames", range(6), signature=signature, **{**ALL, "scene": 0.1}) as frames:
        updates = list(frames)
    assert [u.answer.value for u in updates] == [f"edge {n}" for n in range(6)]
    assert frames.stats().scenes == 1
    assert [record.getMessage().partition(" failed")[0] for record in caplog.records] == ["signature= of a frame"]


# errors, and ends


def test_a_source_that_fails(make):
    """What it gave before is answered, and then its error is raised, once."""
    feed = Feed()
    with live(make(echo, None), "frames", feed, **ALL) as frames:
        feed.put("a")
        feed.end(OSError("unplugged"))
        assert next(frames).frame == "a"
        with pytest.raises(OSError, match="unplugged"):
            next(frames)
        assert list(frames) == []


def test_a_frame_without_an_answer_is_an_error_and_the_next_goes_on(make):
    """As it is of `infer`."""
    edge = FakeModel([ValueError("broken"), ("edge", 0.9)])
    with live(make(edge, None), "frames", range(2), **ALL) as frames:
        with pytest.raises((NoAnswer, ValueError)) as e:
            next(frames)
        assert "broken" in str(e.value)
        assert next(frames).frame == 1


def test_a_slow_edge_is_no_error(make, ahead):
    """The time in which a refinement is of use does not limit the edge where nobody asked for a deadline."""

    def source():
        yield from (0, 1)
        until(lambda: frames.stats().failed == 1)
        ahead[0] = 0.0
        yield 2

    def edge(x):
        if x == 1:
            ahead[0] = 10 * LONG  # it seems to take so long that the last one has time, however busy the machine is
            until(lambda: frames.stats().failed == 1)
        return "edge", 0.1

    with CannedServer(GOOD) as server:
        with live(make(edge, PlainJson(server.url)), "frames", source(), **{**ALL, "stale": 0.01}) as frames:
            seen = {u.frame for u in frames}
        assert seen == {0, 2}
        assert frames.stats().failed == 1


def test_leaving_early_cuts_the_cloud_and_ends_the_reader(make):
    """While the source goes on giving frames, and the router goes on."""
    ended = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            ended.set()

    source = endless()
    with CannedServer(None) as server:
        router = make(echo, PlainJson(server.url))
        with live(router, "frames", source, stale=None, scene=None) as frames:
            assert next(frames).provisional
            server.wait_for(lambda: server.requests)
        server.wait_for(lambda: server.hung_up >= 1)
        assert frames.stats().in_flight == 0
        assert list(frames) == []
    assert next(source) == 1  # its reader has left it, and it is the program's
    source.close()
    assert ended.is_set()


def test_closing_before_the_first_frame_reads_nothing(make):
    """The source is not touched."""
    feed = Feed()
    live(make(echo, None), "frames", feed).close()
    assert not feed.closed.is_set()


def test_closing_the_router_ends_who_waits(make):
    """Who waits for the next frame gets `Closed`, and so does who asks afterwards."""
    feed, caught = Feed(), []
    router = make(echo, None)
    frames = live(router, "frames", feed, scene=None, stale=None)
    feed.put(1)
    assert next(frames).frame == 1

    def wait():
        with pytest.raises(Closed) as e:
            next(frames)
        caught.append(e.value)

    thread = threading.Thread(target=wait)
    thread.start()
    if isinstance(router, Tasks):
        router.wait(router.router.close())
    else:
        router.close()
    thread.join()
    assert len(caught) == 1
    feed.end()
    frames.close()


def test_closing_from_another_thread_ends_the_for(monkeypatch):
    """As the program ends; a second consumer is refused."""
    feed = Feed()
    with Router(echo, None, threshold=0.5) as router, router.frames(feed, scene=None, stale=None) as frames:
        feed.put(1)
        assert next(frames).frame == 1
        seen = []
        thread, looked = threading.Thread(target=lambda: seen.extend(frames)), threading.Event()

        def clock():
            if threading.current_thread() is thread:
                looked.set()
            return monotonic()

        monkeypatch.setattr("edgeroute.router.live.blocking_iterators.monotonic", clock)
        thread.start()
        assert looked.wait(LONG), "the other thread is at it"
        with pytest.raises(BadInput, match="one consumer"):
            next(frames)
        feed.end()
        frames.close()
        thread.join()
        assert seen == []


def test_closing_as_the_consumer_is_about_to_wait(monkeypatch):
    """It is not missed, though the source hangs: the bell is rung just before the consumer clears it."""

    class Bell(threading.Event):
        def clear(self):
            super().clear()
            if not closers:
                closers.append(threading.Thread(target=frames.close))
                closers[0].start()
                until(self.is_set)
                super().clear()

    feed, closers = Feed(), [None]
    with Router(echo, None, threshold=0.5) as router, contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Event", Bell)
            frames = stack.enter_context(router.frames(feed, scene=None, stale=None))
        feed.put(1)
        assert next(frames).frame == 1
        closers.clear()
        consumer = threading.Thread(target=lambda: list(frames), daemon=True)
        consumer.start()
        consumer.join(LONG)
        waits = consumer.is_alive()
        feed.end()
        consumer.join()
        closers[0].join()
        assert not waits


def test_closing_that_is_cancelled_ends_the_async_for():
    """As by a program's own limit, while the source hangs."""

    async def main():
        feed = Feed()
        async with AsyncRouter(echo, None, threshold=0.5) as router, router.frames(feed, scene=None, stale=None) as frames:

            async def consume():
                return [update async for update in frames]

            feed.put(1)
            assert (await anext(frames)).frame == 1
            consumer = asyncio.create_task(consume())
            await asyncio.sleep(0)
            closing = asyncio.create_task(frames.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            try:
                assert await asyncio.wait_for(consumer, LONG) == []
            finally:
                feed.end()

    asyncio.run(asyncio.wait_for(main(), 2 * LONG))


def test_an_iterator_that_is_dropped_ends_its_reader_and_its_calls():
    """Once it is collected, as if it had been closed."""
    feed = Feed()
    with CannedServer(None) as server, Router(echo, PlainJson(server.url), threshold=0.5) as router:
        feed.put(1)
        for update in router.frames(feed, stale=None, scene=None):
            assert update.provisional
            server.wait_for(lambda: server.requests)
            break
        server.wait_for(lambda: server.hung_up == 1)
        feed.put(2)
        assert feed.closed.wait(LONG)


def test_cancelling_a_task_that_iterates():
    """It ends as cancelled, and the `async with` cuts the cloud; a cancelled `anext` alone does not end the iteration."""

    async def main(server):
        feed = Feed()
        async with AsyncRouter(echo, PlainJson(server.url), threshold=0.5) as router:

            async def use():
                async with router.frames(feed, stale=None, scene=None) as frames:
                    assert (await anext(frames)).provisional
                    waiting = asyncio.ensure_future(anext(frames))
                    await asyncio.sleep(0)
                    waiting.cancel()
                    await asyncio.wait([waiting])
                    feed.put(2)
                    assert (await anext(frames)).frame == 2
                    begun.set()
                    await anext(frames)

            begun = asyncio.Event()
            feed.put(1)
            task = asyncio.create_task(use())
            await begun.wait()
            await asyncio.to_thread(server.wait_for, lambda: server.requests)
            task.cancel()
            feed.end()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up >= 1)

    with CannedServer(None) as server:
        asyncio.run(asyncio.wait_for(main(server), LONG))


# an hour


@pytest.mark.slow
def test_an_hour_of_frames_holds_memory_flat(monkeypatch):
    """108,000 frames at 30 a second in accelerated time: scenes, refinements, drops; no more is held than after a minute."""
    now = [0.0]
    monkeypatch.setattr(mailboxes, "monotonic", lambda: now[0])
    pictures = [picture(brightness, 8, 8) for brightness in (0, 80, 160, 240)]
    bell = Bell()
    with Router(lambda _: ("edge", 0.1), lambda _: ("cloud", 0.9), threshold=0.5) as router:
        box = Mailbox(1, True, bell.ring, threading.Event())
        settings = FrameSettings(signature=lambda frame: (frame[0, 0, 0] / 255,), stale=60.0).check()
        flow = FrameFlow(router.engine, partial(bell.begin, router, None, None), box, settings)
        held, updates, finals = [], 0, 0
        for number in range(108_000):
            now[0] = number / 30
            box.offer(pictures[number // 300 % 4].copy())
            if number % 3 == 0:  # the program is at something else
                continue
            while True:
                if type(update := flow.step(now[0])) is not float:
                    updates += 1
                    finals += update.answer.source == "cloud" and update.reused_from is None
                elif not (so_far := flow.stats()).in_flight and so_far.answered == so_far.read - so_far.dropped:
                    break
                else:  # an edge or a cloud is at it in a thread, where no time passes
                    assert bell.event.wait(LONG)
                    bell.event.clear()
            if number in {1_801, 107_999}:
                del update
                gc.collect()
                held.append((sys.getallocatedblocks(), len(gc.get_objects())))
        flow.close()
    stats = flow.stats()
    assert (stats.read, stats.dropped, stats.scenes) == (108_000, 36_000, 360)
    assert finals == stats.refined >= 360
    assert updates == stats.answered + stats.refined
    (blocks, objects), (later_blocks, later_objects) = held
    assert later_blocks - blocks < 2_000, held
    assert later_objects - objects < 500, held
