"""Streamed replies, in pieces: the generator protocol of an endpoint (`AnswerStream`), and the runner of its attempts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import count
from time import monotonic
from types import coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, final

from edgeroute.cloud.attempt_accounting_and_turns import Exchange
from edgeroute.cloud.endpoint import with_key
from edgeroute.cloud.load_reports import HEADER
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.spending_limits import Tokens
from edgeroute.errors import BadReply, CloudError, TimedOut, Unreachable
from edgeroute.http.messages_addresses_and_secrets import OURS, SUCCESS, Call, Reply
from edgeroute.types import StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.endpoint_client import CallSender, HttpClient


# Protocol of a reply in pieces: a generator of the endpoint without I/O, so that one serves threads and asyncio.
#
# It yields one of these steps, and is sent its result:
#
# > Call     sends the call; is sent the reply's `Head`, of any status. One reply at a time.
# > Read     reads on; is sent the next bytes of the body, or None at its end. A failure is raised there, a `CloudError`.
# > Said     a piece of the answer, which is shown; is sent None
# > Tokens   how many tokens there are so far, or the server counted: the last ones are booked; is sent None
#
# It returns the whole answer, as a talk returns one of its outputs. It has no retries and no clock.

T = TypeVar("T")
# Maximum seconds to wait for token counts after a whole answer; a fifth of it for the end of the reply, which keeps the
# connection.
LINGER_S = 0.5
LINE = 1 << 16  # maximum bytes of a first line that is waited for


class Head(NamedTuple):
    """Status and headers of a reply."""

    status: int
    headers: Mapping[str, str]  # values by lower-case name


@final
class Read(NamedTuple):
    """Step: read on."""

    progress: bool = False  # True if the last bytes were a part of the answer, so that the time for the next ones begins anew
    # True if the answer is whole: the rest is not waited for long, and a failure there is no fault. With `progress`: nothing
    # but the end is missing.
    over: bool = False


@final
class AnswerPiece(NamedTuple):
    """Step: a piece of the answer."""

    value: Any
    confidence: float | None = None  # confidence of the answer so far; None: none


READ, PROGRESS, OVER, DONE = Read(), Read(progress=True), Read(over=True), Read(progress=True, over=True)
AnswerStream: TypeAlias = Generator[Call | Read | AnswerPiece | Tokens, Head | bytes | None, T]


def read_whole(head: Head, most: int | None = None) -> Generator[Any, Any, Reply]:
    """Yield reads, and return the reply with its whole body; with `most`, reading stops once so many bytes or more have come."""
    parts: list[bytes] = []
    size = 0
    while (most is None or size < most) and (part := (yield READ)) is not None:
        parts.append(part)
        size += len(part)
    return Reply(head.status, head.headers, b"".join(parts))


def read_first() -> Generator[Any, Any, bytes | None]:
    """Yield reads, skip parts of the body that are blank, and return the first other one; None: the body is blank or empty."""
    part: bytes | None
    while (part := (yield READ)) is not None and not part.strip():
        pass
    return part


def read_line(begun: bytes) -> Generator[Any, Any, bytes]:
    """Yield reads until the body's first line is whole, `LINE` bytes have come, or the body ends; return all that has come.

    Args:
        begun: beginning that has come already, not blank.
    """
    parts, size, part = [begun], len(begun), begun.lstrip()
    while b"\n" not in part and size < LINE and (more := (yield READ)) is not None:
        part = more
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def read_short(head: Head, most: int) -> Generator[Any, Any, Reply]:
    """Yield reads, and return an error reply with at most `most` bytes; without a body if that is too long: its status counts."""
    try:
        return (yield from read_whole(head, most))
    except BadReply:  # longer than it may be
        return Reply(head.status, head.headers, b"")


# One attempt of an answer in pieces: its steps, time limits and counts, without I/O.


class StreamAttempt:
    """One attempt of a streamed call: advances the protocol, counts bytes and tokens, and computes when the next bytes are due.

    Args:
        speech: speech of the endpoint: its generator of steps (`AnswerStream`).
        where: address of the endpoint, for messages.
        first: instant by which the answer must have begun.
        until: instant by which it must have ended, whatever comes.
        between_s: seconds within which the next piece must come, once it has begun.
        wanted_by: instant by which the answer is of use, though it may go on.

    Attributes:
        outputs: result of the speech, once it has ended.
        error: its exception instead. The reply may have been read to its end all the same, so that the connection can be reused.
        received: bytes of the body so far.
    """

    def __init__(
        self, speech: AnswerStream[Any], where: str, first: float, until: float, between_s: float = INF, wanted_by: float = INF
    ) -> None:
        self._speech, self._where, self._next, self._until, self._between_s = speech, where, first, until, between_s
        self._wanted_by = wanted_by
        self._call: Call | None = None
        self._tokens: Tokens | None = None
        self._over = INF
        self._begun = self._good = False
        self.outputs: Any = None
        self.error: CloudError | None = None
        self.received = 0

    def begin(self) -> Call:
        """Start the speech (the endpoint's generator), and return its first step, which must be a call; it is stored."""
        call = next(self._speech)
        assert type(call) is Call, "a speech begins with a call"
        self._call = call
        return call

    def opened(self, head: Head) -> AnswerPiece | Read | None:
        """Advance the speech by the head of the reply. Return its next step, as `heard`."""
        self._good = head.status in SUCCESS
        return self.heard(head)

    def heard(self, received: Head | bytes | None) -> AnswerPiece | Read | None:
        """Advance the speech by received bytes, None at the end. Return a piece to show, a read, or None: the speech has ended.

        After a piece, call it with None. Counts the bytes.
        """
        if type(received) is bytes:
            self.received += len(received)
        return self._step(self._speech.send, received)

    def failed(self, error: CloudError, read: Read) -> AnswerPiece | Read | None:
        """Tell the speech that reading failed, by raising the error in it; if the answer is whole, by the body's end instead.

        Return its next step, or None: it has ended. A timeout within the answer becomes Unreachable if the next piece was late,
        and says so if the whole answer was.
        """
        if read.over:
            return self._step(self._speech.send, None)
        if self._begun and isinstance(error, TimedOut):
            if monotonic() < self._until:
                error = Unreachable(f"{self._where} stopped within its answer: nothing more came for {self._between_s:g} s")
            else:
                error = TimedOut(f"{self._where} did not finish its answer in time")
        return self._step(self._speech.throw, error)

    def _step(self, move: Any, sent: Any) -> AnswerPiece | Read | None:
        """Advance the speech to its next step that is no token count, and return it; None: it has ended.

        Token counts are stored, as is the result in `outputs`, or a CloudError in `error`, which is not raised.
        """
        try:
            step = move(sent)
            while type(step) is Tokens:
                self._tokens = step
                step = self._speech.send(None)
        except StopIteration as end:
            self.outputs = end.value
            return None
        except CloudError as e:
            self.error = e
            return None
        return step  # type: ignore[no-any-return]

    def limit(self, read: Read) -> float:
        """Return the instant by which the next bytes must come, never after the answer's end.

        A step with progress begins the time between pieces anew; after the whole answer there are at most `LINGER_S` seconds, or
        half of the time in which it is of use, and for the reply's end a fifth of that.
        """
        if read.over:
            now = monotonic()
            left_s = min(self._until, self._wanted_by) - now
            linger_s = min(LINGER_S, left_s / 2) if left_s > 0 else LINGER_S
            self._over = min(self._over, now + linger_s / (5 if read.progress else 1))
            return min(self._over, self._until)
        if read.progress:
            self._begun = True
            self._next = monotonic() + self._between_s
        return min(self._next, self._until)

    def tokens_to_charge(self, *, cut: bool) -> Tokens | None:
        """Return the tokens that the stream reported last; without any, the expected ones if cut, else the expected prompt alone.

        None: no answer came, or no tokens were expected.

        Args:
            cut: True if the call ended before its reply: the server may go on, and all that was expected counts.
        """
        expected = None if self._call is None else self._call.tokens
        if self._tokens is not None or expected is None or not (self._good or cut):
            return self._tokens
        return expected if cut else Tokens(expected.prompt)

    def close(self) -> None:
        """End the speech."""
        self._speech.close()


# Runner of speeches: attempt by attempt, by the endpoint's client.

Say: TypeAlias = Callable[[], AnswerStream[Any]]  # returns a new speech, for each attempt
_LEFT = Unreachable("it was left before its end")


def stream_call(
    client: HttpClient, say: Say, until: float, exchange: Exchange, cancel: StopToken | None = None
) -> Generator[AnswerPiece, None, Any]:
    """Run a speech (an endpoint's generator of steps), blocking; yield the pieces of its answer, and return its outputs.

    It has until the endpoint's own timeout to begin, with all its retries, then `between_s` for each further piece, and in all
    until the instant `until`. There is no retry once a piece was shown. Closing it early closes the connection.

    Raises:
        CloudError: the speech failed; `partial` is the answer so far.
    """
    steps = run(client, client.in_thread(cancel), say, until, exchange, _suspend)
    try:
        while True:
            yield steps.send(None)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


@coroutine
def _suspend(piece: AnswerPiece) -> Generator[AnswerPiece, None, None]:
    """Suspend the coroutine that awaits this, with a piece for `stream_call` to yield."""
    yield piece


async def run(
    client: HttpClient,
    way: CallSender,
    say: Say,
    until: float,
    exchange: Exchange,
    show: Callable[[AnswerPiece], Awaitable[None]] | None = None,
    posts: Iterator[int] | None = None,
) -> Any:
    """Run the attempts of a speech (an endpoint's generator of steps), with retries, and return its outputs; see `stream_call`.

    Each attempt is booked in the exchange before, and settled after it, also when it is cut. Secrets are masked in errors.

    Args:
        client: client of the endpoint, whose counts of bytes it changes.
        way: sender for this thread, or for an event loop, where cancelling the task closes the connection.
        say: returns a new speech, for each attempt.
        until: instant by which it must have ended.
        exchange: exchange that accounts for the attempts.
        show: called with each piece; None: no pieces are shown, so that there may be a retry after some have come.
        posts: numbers of the exchange's calls.

    Raises:
        CloudError: the speech failed; `partial` is the answer so far.
    """
    by, n = client.until(until), next(posts or count())
    if n:
        exchange.next_call()
    shown = False

    async def once() -> Any:
        nonlocal shown
        speaking = StreamAttempt(
            say(), client.endpoint.where, by, until, getattr(client.endpoint, "between_s", INF), exchange.wanted_by
        )
        call = with_key(speaking.begin(), exchange.identity, n)
        client.may_send(way.cancel)
        call = await exchange.call_off_loop(partial(client.account_attempt, call, until, exchange))
        ended: BaseException | None = _LEFT
        OURS.set(True)
        try:
            async with way.open(call, by) as response:
                exchange.status, broken = response.status, False
                if HEADER in response.headers:
                    exchange.record_load(response.headers)
                step = speaking.opened(Head(response.status, response.headers))
                while step is not None:
                    if type(step) is AnswerPiece:
                        if show is not None:
                            shown = True
                            await show(step)
                        step = speaking.heard(None)
                        continue
                    exchange.answers |= step.progress
                    try:
                        part = None if broken else await response.read(speaking.limit(step))
                    except CloudError as e:
                        step, broken = speaking.failed(e, step), True
                        continue
                    step = speaking.heard(part)
            ended = speaking.error
            if ended is not None:
                raise ended
        except CloudError as e:
            ended = e
            raise
        finally:
            OURS.set(False)
            cut = ended is _LEFT or (ended is not None and way.cancel is not None and way.cancel.asked)
            speaking.close()
            client.count_received(speaking.received)
            client.take_back(call, ended)
            gone = isinstance(ended, Unreachable) and not (ended.stale or speaking.received)  # the server may go on all the same
            tokens = speaking.tokens_to_charge(cut=cut or gone or isinstance(ended, TimedOut))
            exchange.after_attempt(speaking.received, ended, cut=cut, tokens=tokens)
        return speaking.outputs

    try:
        try:
            return await once()
        except CloudError as e:
            return await client.retry(once, iter([e]), by, exchange, way, lambda: shown)
    except CloudError as e:
        e.args = (client.endpoint.address.hide(str(e)),)
        raise
