"""Speaks answers with espeak-ng, and stops when somebody begins to speak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf, nextafter
from textwrap import shorten
from threading import RLock
from typing import Any

import numpy as np
from sound import CHUNK, NoSound, Samples, loudspeaker, spoken

MOST_TEXT = 500
"""Characters of an answer that are spoken, of a longer one the first: its rendering cannot be interrupted."""


class Mouth:
    """Speaks one text at a time.

    Args:
        out: an output with `start`, `write(samples)`, which blocks while they are played, `stop`, and
            `abort`; None: answers are not spoken.
        render: a text as samples at 16 kHz.
    """

    def __init__(self, out: Any = None, render: Callable[[str], Samples] = spoken) -> None:
        self._out, self._render = out, render
        self._barged_at_s = -inf
        self._one = RLock()
        self.speaking = False
        """Whether the loudspeaker is on."""

    def barge_in(self, at_s: float) -> None:
        """Somebody speaks, from this second of the audio on. Called by the thread that reads the microphone."""
        self._barged_at_s = at_s

    def interrupted(self, end_s: float) -> bool:
        """Return True if somebody has spoken after what ended at this second: its answer is not wanted any more."""
        return self._barged_at_s >= end_s

    def ring(self, text: str) -> bool:
        """Speak what nobody has just asked for, until somebody begins to speak -> whether it was spoken to its end."""
        return self.say(text, nextafter(self._barged_at_s, inf))

    def say(self, text: str, end_s: float = inf) -> bool:
        """Speak the answer to what ended at `end_s`, after what is being spoken; return True if it was spoken to its end.

        False if somebody has begun to speak since, without a loudspeaker, or after an error, which is printed. At most 500
        characters.
        """
        if self._out is None or self.interrupted(end_s):
            return False
        try:
            samples = self._render(shorten(text, MOST_TEXT, placeholder=" ..."))
            with self._one:
                return self._play(samples, end_s)
        except Exception as e:  # noqa: BLE001 - espeak's, PortAudio's: the answer was printed, and the next may be spoken
            print(f"(not spoken: {e})")
            return False

    def _play(self, samples: Samples, end_s: float) -> bool:
        """Play samples; stop at once, and return False, if somebody begins to speak."""
        self.speaking = True
        try:
            self._out.start()
            for at in range(0, len(samples), CHUNK):
                if self.interrupted(end_s):
                    self._out.abort()  # what it was given is not played any more
                    return False
                self._out.write(samples[at : at + CHUNK, None])
            self._out.stop()  # once all of it was played
        finally:
            self.speaking = False
        return True

    def unheard(self, chunks: Iterable[Any]) -> Iterator[Any]:
        """Yield the chunks of a microphone that hears the loudspeaker, with silence while that speaks."""
        for chunk in chunks:
            yield np.zeros_like(chunk) if self.speaking else chunk


def mouth(*, silent: bool = False) -> Mouth:
    """Return one with this device's loudspeaker and espeak-ng; if one of them is missing, one that is silent, which is told."""
    try:
        spoken("ready")
    except NoSound as e:
        print(f"(answers are printed and not spoken: {e})")
        return Mouth()
    out = None if silent else loudspeaker()
    if out is None and not silent:
        print("(answers are printed and not spoken: there is no loudspeaker)")
    return Mouth(out)
