"""One attempt of an answer in pieces: its steps, its limits of time, and what is counted. No I/O."""

from __future__ import annotations

from time import monotonic
from typing import Any

from edgeroute.cloud.base import SUCCESS, Call
from edgeroute.cloud.speech import LINGER_S, Head, Read, Said, Speech
from edgeroute.core.policy import INF
from edgeroute.core.spending import Tokens
from edgeroute.errors import CloudError, TimedOut, Unreachable


class Speaking:
    """Advances a speech, and knows until when its next bytes must come.

    Args:
        speech: of the endpoint.
        where: the endpoint, in messages.
        first: the instant by which the answer must have begun.
        until: the instant by which it must have ended, whatever comes.
        between_s: seconds within which the next piece must come, once it has begun.

    Attributes:
        outputs: what the speech returned, once it has ended.
        error: what it raised instead. The reply may have been read to its end all the same, so that the connection is kept.
        received: bytes of the body so far.
    """

    def __init__(self, speech: Speech[Any], where: str, first: float, until: float, between_s: float = INF) -> None:
        self._speech, self._where, self._next, self._until, self._between_s = speech, where, first, until, between_s
        self._call: Call | None = None
        self._tokens: Tokens | None = None
        self._over = INF
        self._begun = self._good = False
        self._pieces = 0
        self.outputs: Any = None
        self.error: CloudError | None = None
        self.received = 0

    def begin(self) -> Call:
        """Its call."""
        call = next(self._speech)
        assert type(call) is Call, "a speech begins with a call"
        self._call = call
        return call

    def opened(self, head: Head) -> Said | Read | None:
        """The first step after the head of the reply has come; steps are as of `heard`."""
        self._good = head.status in SUCCESS
        return self.heard(head)

    def heard(self, given: Head | bytes | None) -> Said | Read | None:
        """Hands it what came, or None at the end -> a piece, which is to be shown; or that it reads on; None: it has ended.

        After a piece it is to be called with None.
        """
        if type(given) is bytes:
            self.received += len(given)
        return self._step(self._speech.send, given)

    def failed(self, error: CloudError, read: Read) -> Said | Read | None:
        """Tells it that nothing more comes, for this reason, which is its error unless the answer is whole without the rest."""
        if read.over:
            return self._step(self._speech.send, None)
        if self._begun and isinstance(error, TimedOut):
            if monotonic() < self._until:
                error = Unreachable(f"{self._where} stopped within its answer: nothing more came for {self._between_s:g} s")
            else:
                error = TimedOut(f"{self._where} did not finish its answer in time")
        return self._step(self._speech.throw, error)

    def _step(self, move: Any, given: Any) -> Said | Read | None:
        try:
            step = move(given)
            while type(step) is Tokens:
                self._tokens = step
                step = self._speech.send(None)
        except StopIteration as end:
            self.outputs = end.value
            return None
        except CloudError as e:
            self.error = e
            return None
        if type(step) is Said:
            self._pieces += 1
        return step  # type: ignore[no-any-return]

    def limit(self, read: Read) -> float:
        """The instant by which the next bytes must come."""
        if read.over:
            self._over = min(self._over, monotonic() + LINGER_S)
            return min(self._over, self._until)
        if read.progress:
            self._begun = True
            self._next = monotonic() + self._between_s
        return min(self._next, self._until)

    def tokens(self) -> Tokens | None:
        """Those that the server counted; of an answer that was cut about as many as came. None: there was none."""
        if self._tokens is not None or not self._good or self._call is None or self._call.tokens is None:
            return self._tokens
        return Tokens(self._call.tokens.prompt, self._pieces)

    def close(self) -> None:
        """Ends the speech."""
        self._speech.close()
