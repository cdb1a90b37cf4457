"""Audio: segments of speech, each answered by the edge, and finally by the cloud; new speech cancels what is pending."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgeroute.core.policy import INF
from edgeroute.router.live.audio_types import AudioSettings, AudioStats, BargeIn, Utterance
from edgeroute.router.live.calls import Begin, Call, equal
from edgeroute.router.live.listener import Listener, Segment
from edgeroute.router.live.mailbox import Mailbox
from edgeroute.system import contained
from edgeroute.types import Answer

log = logging.getLogger("edgeroute")
WAITING = 4
"""Most segments that wait to be answered."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A segment that an answer is awaited for."""

    segment: Segment
    call: Call
    told: Answer | None = None
    """The provisional answer that was given."""
    ready: Answer | BaseException | None = None
    """Its final answer, or what it ended with."""


class AudioFlow:
    """Decides what is done next with the segments of one source; a driver waits, and threads and asyncio share the rest.

    Args:
        begin: begins a call of the router.
        mailbox: the segments.
        settings: checked ones.
    """

    def __init__(self, begin: Begin, mailbox: Mailbox[Segment], settings: AudioSettings) -> None:
        self._begin, self._mailbox, self._settings = begin, mailbox, settings
        self._current: _Asked | None = None
        self._flights: list[_Asked] = []
        self._barged: deque[float] = deque()
        self._answered = self._refined = self._barge_ins = self._speaking = 0
        self._consumed = False
        self.listener = Listener(settings, self.began)

    def began(self, at_s: float) -> None:
        """Speech begins; called by the reader of the source."""
        pending = self._consumed or self._speaking or self._flights
        if not (self._settings.barge_in and pending):
            return
        self._barged.append(at_s)
        if self._settings.on_barge_in is not None:
            try:
                contained(self._settings.on_barge_in, at_s)
            except Exception:
                log.exception("on_barge_in failed; the audio goes on")
        self._mailbox.ring()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """An answer is being spoken."""
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1

    def step(self, now: float) -> Utterance | BargeIn | float | None:
        """The next event, or the instant until which to wait for it; None: there will be none.

        Raises:
            BadInput, NoAnswer, PolicyError: of a segment; the next step goes on with the next one.
        """
        del now  # a segment waits for nothing but its calls
        self._consumed = False
        found = self._step()
        self._consumed = isinstance(found, Utterance)
        return found

    def _step(self) -> Utterance | BargeIn | float | None:
        if self._barged:
            return self._barge_in(self._barged.popleft())
        for asked in self._flights:
            if asked.ready is None:
                asked.ready = _polled(asked.call)
        if self._flights and self._flights[0].ready is not None:
            return self._final(self._flights.pop(0))
        ended = self._mailbox.ended  # before it is looked whether there is one
        if self._current is None:
            self._take()
        if self._current is not None and (utterance := self._first(self._current)) is not None:
            return utterance
        if ended and self._current is None and not self._flights and not self._mailbox and not self._barged:
            return None
        asked_now = [*self._flights, *([] if self._current is None else [self._current])]
        return min((asked.call.until for asked in asked_now), default=INF)

    def stats(self) -> AudioStats:
        """Statistics of the audio so far."""
        box = self._mailbox
        return AudioStats(
            self.listener.heard_s, box.read, box.dropped, self._answered, self._refined, self._barge_ins, len(self._flights)
        )

    def close(self) -> None:
        """Cancels what is in progress."""
        asked = [*self._flights, *([] if self._current is None else [self._current])]
        self._flights, self._current = [], None
        for one in asked:
            one.call.close()

    def _barge_in(self, at_s: float) -> BargeIn:
        """Cancels what earlier segments wait for."""
        earlier = [asked for asked in self._flights if asked.segment.start_s < at_s]
        for asked in earlier:
            self._flights.remove(asked)
            asked.call.close()
        self._barge_ins += 1
        return BargeIn(at_s, tuple(asked.segment.number for asked in earlier))

    def _take(self) -> None:
        full = len(self._flights) >= self._settings.max_in_flight
        if full and self._settings.drop == "never":
            return
        if (got := self._mailbox.take()) is not None:
            self._current = _Asked(got.item, self._begin(got.item.audio, full, self._settings.deadline))

    def _first(self, asked: _Asked) -> Utterance | None:
        """The first answer to a segment."""
        try:
            answer = asked.call.poll()
        except BaseException:
            self._current = None
            raise
        if answer is None:
            return None
        self._current = None
        self._answered += 1
        if not answer.final:
            asked.told = answer
            self._flights.append(asked)
        return _utterance(asked.segment, answer, changed=True)

    def _final(self, asked: _Asked) -> Utterance:
        """The final answer to a segment."""
        assert asked.ready is not None, "it has come"
        if isinstance(asked.ready, BaseException):
            raise asked.ready
        assert asked.told is not None, "there was a provisional one"
        changed = not equal(asked.told.value, asked.ready.value)
        if not asked.ready.final:  # of a larger edge: the cloud's may follow
            answer = asked.told = asked.ready
            asked.ready = None
            self._flights.insert(0, asked)
            return _utterance(asked.segment, answer, changed=changed)
        self._refined += 1
        return _utterance(asked.segment, asked.ready, changed=changed)


def _polled(call: Call) -> Answer | BaseException | None:
    try:
        return call.poll()
    except Exception as e:  # noqa: BLE001 - raised where its answer would have come
        return e


def _utterance(segment: Segment, answer: Answer, *, changed: bool) -> Utterance:
    return Utterance(segment.number, segment.start_s, segment.end_s, segment.audio, answer, answer.final, changed, segment.cut)
