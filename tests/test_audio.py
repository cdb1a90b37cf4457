"""`audio`: segments of speech, provisional and final answers to them, and new speech that cancels what is pending."""

import asyncio
import json
import math
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
from both import DOWN, LONG, GatedServer, Tasks, makes
from live import Feed, live, until

from edgeroute import AsyncRouter, BadInput, BargeIn, Closed, NoAnswer, PlainJson, PolicyError, Router, Utterance
from edgeroute.router.live.source_reader_mailbox_and_calls import equal
from edgeroute.testing import CannedServer, FakeModel, http_reply

RATE = 1_000
CHUNK = 100
"""Samples: three windows of 32 ms and a rest."""


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5)


def edge(audio):
    return "edge", 0.1


def tone(seconds, volume=0.5):
    """Speech, as it were."""
    t = np.arange(round(seconds * RATE))
    return (volume * np.sin(t * 0.7)).astype(np.float32)


def quiet(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def chunks(*parts):
    audio = np.concatenate(parts)
    return [audio[i : i + CHUNK] for i in range(0, len(audio), CHUNK)]


def words(count):
    """A recording of so many words, half a second each, with a second between them."""
    return chunks(*[part for _ in range(count) for part in (quiet(1.0), tone(0.5))], quiet(1.0))


def encoded(url, **more):
    return PlainJson(url, encode=lambda audio: {"input": len(audio)}, retries=0, **more)


def said(value):
    return http_reply(json.dumps({"value": value}).encode())


RECORDING = {"rate": RATE, "drop": "never"}


def test_a_recording_is_cut_into_its_words(make):
    """Each with what was just before and after it; where it begins and ends, and in its order."""
    with live(make(lambda x: (len(x), 0.9), None), "audio", words(3), **RECORDING) as audio:
        heard = list(audio)
        assert list(audio) == []
    assert [u.index for u in heard] == [0, 1, 2]
    for number, one in enumerate(heard):
        begins = 1.5 * number + 1
        assert abs(one.start_s - begins) < 0.07
        assert abs(one.end_s - (begins + 1.0)) < 0.07  # with the half second that tells that it has ended
        assert one.audio.dtype == np.float32
        assert one.answer.value == len(one.audio)
        assert abs(len(one.audio) / RATE - (one.end_s - one.start_s + 0.2)) < 0.07
        assert np.abs(one.audio).max() > 0.4
        assert (one.final, one.changed, one.cut, one.provisional) == (True, True, False, False)
    stats = audio.stats()
    assert (stats.segments, stats.answered, stats.dropped, stats.barge_ins) == (3, 3, 0, 0)
    assert abs(stats.heard_s - 5.5) < 0.04


@pytest.mark.parametrize(
    "form",
    [
        lambda x: (x * 32767).astype(np.int16),
        lambda x: (x * 32767).astype("<i2").tobytes(),
        lambda x: np.stack([x, x], 1),
        lambda x: x.astype(np.float64),
        memoryview,
        lambda x: memoryview((x * 32767).astype(np.int16)),
        lambda x: memoryview((x * 32767).astype("<i2").tobytes()),
    ],
)
def test_forms_of_audio(make, form):
    """int16, bytes of it, several channels, doubles, and views of memory by their type are the same."""
    with live(make(lambda x: (round(float(np.abs(x).max()), 2), 0.9), None), "audio", map(form, words(1)), **RECORDING) as audio:
        assert [u.answer.value for u in audio] == [0.5]


def test_a_buffer_that_is_used_again(make):
    """As sound cards have it: each chunk is in the same array."""

    def source():
        buffer = np.zeros(CHUNK, np.float32)
        for chunk in words(2):
            buffer[: len(chunk)] = chunk
            yield buffer
            buffer[:] = np.nan

    with live(make(lambda x: (round(float(np.abs(x).max()), 2), 0.9), None), "audio", source(), **RECORDING) as audio:
        assert [u.answer.value for u in audio] == [0.5, 0.5]


@pytest.mark.parametrize("chunk", [b"odd", "text", np.zeros((2, 2, 2)), np.zeros(4, np.uint8), 0.5])
def test_what_is_no_audio_is_refused(make, chunk):
    """Where the next segment would have come."""
    with live(make(edge, None), "audio", [chunk], **RECORDING) as audio, pytest.raises(BadInput, match="audio"):
        next(audio)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0},
        {"off": 0.9},
        {"max_segment": 0.05},
        {"window": 0},
        {"drop": "all"},
        *({name: math.inf} for name in ("max_segment", "hangover", "min_speech", "lead")),
        {"on_barge_in": 3},
        {"barge_in": "x"},
        {"vad": 3},
    ],
)
def test_wrong_arguments_are_refused_at_once(make, wrong):
    """Before the source is read."""
    with pytest.raises(PolicyError, match=next(iter(wrong))):
        live(make(edge, None), "audio", [b""], **wrong)
    with pytest.raises(BadInput, match="a source of chunks is"):
        live(make(edge, None), "audio", b"bytes")


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 1e300])
def test_samples_that_are_no_numbers_are_silence(make, odd):
    """Without a warning, which would be an error here, and no speech is lost."""
    given = [np.full(CHUNK, odd), *words(1)]
    with live(make(lambda x: (bool(np.isfinite(x).all()), 0.9), None), "audio", given, **RECORDING) as audio:
        assert [u.answer.value for u in audio] == [True]


def test_floats_in_the_scale_of_int16_are_refused(make):
    """They would be heard as one scream: the error says what to write. A sample a little above 1 is none of them."""
    screams, message = [tone(1, 20_000)], r"from -1 to 1, and has \d{5}.*: divide it by 32768"
    with live(make(lambda _: (True, 0.9), None), "audio", screams, **RECORDING) as audio, pytest.raises(BadInput, match=message):
        list(audio)
    with live(make(lambda _: (True, 0.9), None), "audio", chunks(quiet(1), tone(1, 2), quiet(1)), **RECORDING) as audio:
        assert [u.answer.value for u in audio] == [True]


def test_a_detector_of_ones_own(make):
    """It sees windows of its size, one after the other; what it returns decides, and must be a number."""
    seen = []

    def vad(window):
        seen.append(window)
        return 1.0 if 10 <= len(seen) < 20 else 0.0

    options = {**RECORDING, "window": 64, "hangover": 0.1, "lead": 0, "min_speech": 0.064}
    with live(make(edge, None), "audio", chunks(quiet(3)), vad=vad, **options) as audio:
        (one,) = audio
    assert {len(window) for window in seen} == {64}
    assert len(seen) == 3000 // 64
    assert (one.start_s, one.end_s) == pytest.approx((9 * 0.064, 21 * 0.064))
    assert len(one.audio) == 12 * 64
    audio = live(make(edge, None), "audio", words(1), vad=lambda _: "yes", **RECORDING)
    with audio, pytest.raises(BadInput, match="vad= returns a probability"):
        next(audio)


def test_long_speech_is_cut_and_the_end_of_the_audio_ends_it(make):
    """No segment is longer than allowed, and none of the samples is lost."""
    with live(make(edge, None), "audio", chunks(tone(2.3)), max_segment=1.0, lead=0, **RECORDING) as audio:
        heard = list(audio)
    assert [u.cut for u in heard] == [True, True, False]
    assert all(a.end_s == b.start_s for a, b in pairwise(heard))
    assert sum(len(u.audio) for u in heard) == 2300 // 32 * 32
    assert max(len(u.audio) for u in heard) <= 1024


# provisional and final


@pytest.mark.parametrize(("value", "changed"), [("cloud", True), ("edge", False)])
def test_the_same_answer_is_not_spoken_twice(make, value, changed):
    """The edge's comes while the cloud is asked with the same audio; the final one says whether it is another."""
    with GatedServer(said(value)) as server, live(make(edge, encoded(server.url)), "audio", words(1), **RECORDING) as audio:
        first = next(audio)
        assert (first.answer.value, first.provisional, first.changed) == ("edge", True, True)
        server.wait_for(lambda: len(server.requests) == 1)
        server.open()
        final = next(audio)
        assert (final.answer.value, final.final, final.changed) == (value, True, changed)
        assert (final.index, final.start_s, final.audio is first.audio) == (0, first.start_s, True)
        assert list(audio) == []
        assert audio.stats().refined == 1
    assert str(len(first.audio)).encode() in server.requests[0]


def test_a_cloud_that_is_down(make):
    """What was provisional is final, and nothing is to be said again."""
    with CannedServer(DOWN) as server, live(make(edge, encoded(server.url)), "audio", words(2), **RECORDING) as audio:
        heard = list(audio)
    finals = [u for u in heard if u.final]
    assert [u.index for u in finals] == [0, 1]
    assert not any(u.changed for u in finals)
    assert all(u.answer.source == "edge" for u in heard)


def test_a_segment_that_is_left_to_the_outbox_is_final(make, tmp_path):
    """Nothing more comes for it here: the next one's answers are not held up behind it, and the iteration ends."""
    with CannedServer(DOWN) as server:
        router = make(edge, encoded(server.url), offline="queue", state=tmp_path)
        with live(router, "audio", words(3), **RECORDING) as audio:
            heard = list(audio)
    finals = [u for u in heard if u.final]
    assert [u.index for u in finals] == [0, 1, 2]
    assert all(not u.answer.final and u.answer.reason.endswith("; waiting") for u in finals)
    assert audio.stats().in_flight == 0


def test_final_answers_come_in_order_and_the_source_waits(make):
    """Two segments are with the cloud, the third waits; the second's reply comes first, and is told second."""
    gates = {0: threading.Event(), 1: threading.Event(), 2: threading.Event()}
    number = iter(range(3))
    asked = []

    def cloud(audio):
        mine = next(number)
        asked.append(mine)
        assert gates[mine].wait(LONG)
        return f"cloud {mine}", 0.9

    with live(make(edge, cloud), "audio", words(3), **RECORDING) as audio:
        assert [next(audio).index, next(audio).index] == [0, 1]
        until(lambda: len(asked) == 2)
        gates[1].set()
        gates[0].set()
        gates[2].set()
        rest = list(audio)
    order = [u.index for u in rest if u.final]
    assert order == [0, 1, 2]
    assert [u.index for u in rest if u.provisional] == [2]
    assert len(rest) == 4


def test_a_ladder_tells_each_better_answer(make):
    """The small edge's, the large one's, and the cloud's."""
    edges = [FakeModel([("a", 0.1)], name="small"), FakeModel([("b", 0.2)], name="large")]
    with live(make(edges, lambda _: ("b", 0.9)), "audio", words(1), **RECORDING) as audio:
        heard = list(audio)
    assert [(u.answer.value, u.final, u.changed) for u in heard] == [("a", False, True), ("b", False, True), ("b", True, False)]


def test_a_segment_without_an_answer_is_an_error_and_the_next_goes_on(make):
    """As it is of `infer`."""
    model = FakeModel([ValueError("broken"), ("edge", 0.9)])
    with live(make(model, None), "audio", words(2), **RECORDING) as audio:
        with pytest.raises(Exception, match="broken"):
            next(audio)
        assert next(audio).index == 1
        assert list(audio) == []


def test_a_final_answer_that_is_an_error(make):
    """It is raised in its place; the first answer was given, and the next segment goes on."""
    with CannedServer(DOWN) as server:
        router = make(edge, encoded(server.url), offline="raise")
        with live(router, "audio", words(1), **RECORDING) as audio:
            assert next(audio).provisional
            with pytest.raises(NoAnswer, match="answered 503"):
                next(audio)
            assert list(audio) == []


def test_values_that_cannot_be_compared_are_others():
    """So they are spoken, rather than kept back."""
    assert equal(np.zeros(2), np.zeros(2))
    assert equal([np.zeros(2)], [np.zeros(2)])
    assert not equal({np.float64: 1}, np.zeros(2))
    assert not equal({1: _Odd()}, {1: _Odd()})
    assert not equal("a", "b")


class _Odd:
    """A value whose comparison fails."""

    __hash__ = None

    def __eq__(self, other):
        raise ValueError(other)


# barge-in


def test_speech_while_an_answer_is_spoken_cancels_what_is_pending(make):
    """At once for the program, by `on_barge_in`; then as an event, and the cloud's call is cut."""
    feed, told = Feed(), []
    with CannedServer(None) as server:
        router = make(edge, encoded(server.url))
        with live(router, "audio", feed, rate=RATE, on_barge_in=told.append) as audio:
            feed.put(*words(1))
            first = next(audio)
            assert first.provisional
            server.wait_for(lambda: len(server.requests) == 1)
            feed.put(*chunks(tone(0.5)))
            until(lambda: told)  # though the program is at the first answer
            event = next(audio)
            assert type(event) is BargeIn
            assert event.cancelled == (0,)
            assert event.at_s == told[0]
            assert abs(event.at_s - 2.5) < 0.07
            server.wait_for(lambda: server.hung_up == 1)
            feed.put(*chunks(quiet(1.0)))
            second = next(audio)
            assert (type(second), second.index) == (Utterance, 1)
            assert audio.stats().barge_ins == 1
            feed.end()


def test_without_barge_in_nothing_is_cancelled(make):
    """Nor is it of a recording."""
    for options in ({"barge_in": False}, {"drop": "never"}):
        with live(make(edge, lambda _: ("cloud", 0.9)), "audio", words(2), rate=RATE, **options) as audio:
            heard = list(audio)
        assert [type(u) for u in heard] == [Utterance] * len(heard)
        assert {u.index for u in heard} == {0, 1}


def test_speaking_elsewhere_counts_as_speaking(make):
    """As by a player with a thread of its own; without it, speech in silence is no barge-in. A function that fails costs nothing."""
    feed = Feed()

    def fails(_):
        raise ValueError

    with live(make(lambda _: ("edge", 0.9), None), "audio", feed, rate=RATE, on_barge_in=fails) as audio:
        got = []
        with audio.speaking():
            thread = threading.Thread(target=lambda: got.append(next(audio)))
            thread.start()
            feed.put(*chunks(quiet(0.2), tone(0.5)))
            thread.join()
        assert type(got[0]) is BargeIn
        assert got[0].cancelled == ()
        thread = threading.Thread(target=lambda: got.append(next(audio)))
        thread.start()
        feed.put(*chunks(quiet(1.0)))
        thread.join()
        assert type(got[1]) is Utterance
        feed.end()


# bounds, and ends


def test_a_live_source_drops_the_oldest_segment(make):
    """Where more than four wait, as the program is at something else."""
    feed = Feed()
    with live(make(edge, None), "audio", feed, rate=RATE, barge_in=False) as audio:
        feed.put(*words(1))
        assert next(audio).index == 0
        feed.put(*words(7))
        until(lambda: audio.stats().segments == 8)
        feed.end()
        assert [u.index for u in audio] == [4, 5, 6, 7]
        assert audio.stats().dropped == 3


def test_a_live_source_is_answered_though_the_cloud_hangs(make):
    """Once as many as may be are with the cloud, the edge alone answers."""
    feed = Feed()
    with CannedServer(None) as server:
        with live(make(edge, encoded(server.url)), "audio", feed, rate=RATE, barge_in=False, max_in_flight=1) as audio:
            feed.put(*words(2))
            assert [(u.index, u.final) for u in (next(audio), next(audio))] == [(0, False), (1, True)]
            server.wait_for(lambda: server.requests)
            feed.end()
        server.wait_for(lambda: server.hung_up == 1)


def test_minutes_of_silence_and_speech_hold_no_memory(make):
    """Of what was heard, only the segment at hand is held, and what waits."""
    pieces = iter([*words(1)] + [quiet(0.1)] * 300 + chunks(tone(30.0)))
    windows, held = [], []

    def vad(window):
        windows.append(weakref.ref(window))
        held.append(sum(len(known) for one in windows if (known := one()) is not None))
        return float(np.abs(window).max() > 0.1)

    with live(make(edge, None), "audio", pieces, max_segment=1.0, vad=vad, **RECORDING) as audio:
        assert len(list(audio)) > 20
    assert len(held) > 1800
    assert RATE < max(held) <= 1.5 * RATE


def test_what_was_said_before_a_source_fails(make):
    """It is answered, though the speech has not ended, and then the error is raised."""
    feed = Feed()
    for source in (feed, feed.awaited()):
        router = make(edge, None)
        if source is not feed and not isinstance(router, Tasks):
            continue
        feed.put(*chunks(quiet(1.0), tone(0.5)))
        feed.end(OSError("unplugged"))
        with live(router, "audio", source, **RECORDING) as audio:
            heard = next(audio)
            assert abs(heard.end_s - 1.5) < 0.07
            assert len(heard.audio) >= 0.45 * RATE
            with pytest.raises(OSError, match="unplugged"):
                next(audio)
            assert list(audio) == []


def test_an_async_source_of_audio():
    """It is read in a task, and its error comes last."""

    async def source():
        for chunk in words(2):
            yield chunk
        raise OSError("unplugged")

    async def main():
        async with AsyncRouter(edge, lambda _: ("cloud", 0.9), threshold=0.5) as router:
            async with router.audio(source(), **RECORDING) as audio:
                heard = [await anext(audio) for _ in range(4)]
                with pytest.raises(OSError, match="unplugged"):
                    await anext(audio)
            assert sorted((u.index, u.final) for u in heard) == [(0, False), (0, True), (1, False), (1, True)]

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_closing_the_router_ends_the_audio(make):
    """Who waits for speech gets `Closed`."""
    feed = Feed()
    router = make(edge, None)
    audio, caught = live(router, "audio", feed, rate=RATE), []

    def wait():
        with pytest.raises(Closed) as e:
            next(audio)
        caught.append(e.value)

    thread = threading.Thread(target=wait)
    thread.start()
    router.wait(router.router.close()) if isinstance(router, Tasks) else router.close()
    thread.join()
    assert len(caught) == 1
    feed.end()
    audio.close()


def test_an_iterator_of_audio_that_is_dropped():
    """Its reader ends, and its call of the cloud."""
    feed = Feed()
    with CannedServer(None) as server, Router(edge, encoded(server.url), threshold=0.5) as router:
        feed.put(*words(1))
        for heard in router.audio(feed, rate=RATE):
            assert heard.provisional
            server.wait_for(lambda: server.requests)
            break
        server.wait_for(lambda: server.hung_up == 1)
        feed.put(b"")
        assert feed.closed.wait(LONG)
