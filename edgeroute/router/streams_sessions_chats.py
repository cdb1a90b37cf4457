"""Streams (an answer in pieces), sessions (calls in order, whose state goes from one to the next), and conversations.

Each for threads and for asyncio. A call that fails, or is left early, changes no state and no history.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import Denied, Mode, permit
from edgeroute.edge.edge_backend import TURN, Turn
from edgeroute.errors import BadInput, Closed, MayNotLeave, NoAnswer
from edgeroute.router.steps_and_composed_stages import Result, Shown
from edgeroute.system.contained_calls_and_tasks import ClosedByWith, set_within
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.types import Answer, Batch

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


# Streams: an answer in pieces, for threads and for asyncio.


class _Pieces:
    """Pieces of one answer, for threads and for asyncio.

    Attributes:
        leg: name of the target whose pieces are shown, or of the cache; None before the first piece.
    """

    _answer: Answer | None = None
    leg: str | None = None

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces

    @property
    def answer(self) -> Answer:
        """Return the whole answer. Raises NoAnswer before the last piece was yielded, and if the stream was left before it."""
        if self._answer is None:
            raise NoAnswer("the stream was not read to its end: its answer is known after the last piece")
        return self._answer


class Stream(_Pieces):
    """Iterator over the pieces of one answer; use it in a `with`. Leaving the `with` early cancels the call."""

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                try:
                    shown = next(self._pieces)
                except StopIteration as end:
                    self._answer = end.value
                    return
                self.leg = shown.source
                yield shown.piece
        finally:
            self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.close()


class AsyncStream(_Pieces):
    """Asynchronous iterator over the pieces of one answer; use it in an `async with`. Leaving that early cancels the call."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for shown in self._pieces:
            if type(shown) is Last:
                self._answer = shown.answer
            else:
                self.leg = shown.source
                yield shown.piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pieces.aclose()


class Last(NamedTuple):
    """End of an `AsyncStream`'s pieces: an asynchronous generator cannot return a value."""

    answer: Answer


class End(list[Result]):
    """Results of a finished call, as the last item of an asynchronous generator."""


def as_one_piece(answer: Answer) -> Shown:
    """Return an answer of which no piece was shown as one piece."""
    return Shown(answer.source if answer.source in {"cache", "stale"} else answer.leg, answer.value)


_END: Any = object()


class CallOptions(TypedDict, total=False):
    """Options of each call of a router, for type checkers."""

    mode: Mode | None
    deadline: float | None
    data_class: str | None


class InferOptions(CallOptions, total=False):
    """Options of `Router.infer`."""

    importance: float


class StreamOptions(CallOptions, total=False):
    """Options of `Router.stream`."""

    first_token: float | None
    restart: bool


class States(ForkSafe):
    """Base of both sessions: states of one stream between its calls, one for each model, stored only after a call that succeeds.

    Args:
        router: router that answers the calls.
    """

    _running: dict[None, Turn] = per_process(dict)

    def __init__(self, router: Any) -> None:
        self._router = router
        self._states: dict[object, Any] = {}
        self._id = os.urandom(8).hex()
        self._closed = False

    def reset(self) -> None:
        """Discard the states: the next call begins anew, as after a gap in the stream.

        Raises:
            BadInput: a call is under way.
        """
        if self._running and not self._closed:
            raise _busy()
        self._states = {}

    def close(self) -> None:
        """Discard the states and refuse further calls. The router stays open.

        Raises nothing while a call is under way, whose state is dropped.
        """
        self._closed = True
        self.reset()

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        """Begin a call within the block, the only one at a time, and store its models' states if that ends without an exception.

        Raises:
            BadInput: another call is under way.
            Closed: the session is closed.
        """
        if self._closed:
            raise Closed("this session is closed")
        turn = Turn(self._states, self._id)
        try:
            if self._running.setdefault(None, turn) is not turn:  # atomic, and Ctrl-C leaves nothing behind
                raise _busy()
            yield turn
            self._states = {} if self._closed else dict(turn.states)  # a copy: an abandoned run may still write there
        finally:
            if self._running.get(None) is turn:
                self._running.clear()


def _busy() -> BadInput:
    """Return the error for a second call at the same time."""
    return BadInput("another call of this session is under way: its inputs are one stream, in order; one session for each stream")


class Session(States, ClosedByWith):
    """Stream of inputs, given in order: `with router.session() as s: s.infer(chunk)`.

    A model with a state (docs/cards.md) has one state for each session. The state advances when the model has run to its end
    within a call that returns an answer, whoever gave that; it is unchanged after a call that raises, or a run that was stopped.
    The cache is not used. One call at a time.
    """

    def infer(self, x: Any, **options: Unpack[InferOptions]) -> Answer:
        """Return the answer to the next input of the stream.

        Args:
            x: the input.
            options: options of `Router.infer`.

        Raises:
            BadInput: as by `Router.infer`, or another call of this session is under way.
            Closed: the session or the router is closed.
        """
        with self._turn() as turn, set_within(TURN, turn):
            return self._router.infer(x, **options)  # type: ignore[no-any-return]

    def infer_many(self, batch: Batch, **options: Unpack[CallOptions]) -> list[Answer]:
        """Return the answers to the next inputs, as `Router.infer_many`; a model with a state runs them one after the other.

        Also raises BadInput and Closed as `infer`.
        """
        with self._turn() as turn, set_within(TURN, turn):
            return self._router.infer_many(batch, **options)  # type: ignore[no-any-return]

    def refine(self, x: Any, **options: Unpack[CallOptions]) -> Generator[Answer, None, None]:
        """Yield the answers to the next input, as `Router.refine`. Closed early, it leaves the state unchanged.

        The call begins, and raises BadInput and Closed as `infer`, when the first answer is asked for.
        """
        return self._refine_steps(self._router.refine(x, **options))

    def _refine_steps(self, answers: Generator[Answer, None, None]) -> Generator[Answer, None, None]:
        """Yield the answers of a router's generator as one call of this session, and then close the generator.

        States are stored only at the end: an exception, or an early close, leaves them as they were. Raises BadInput and Closed
        as `_turn`, before the first answer.
        """
        with self._turn() as turn, closing(answers):
            while (answer := _next(turn, answers)) is not _END:
                yield answer

    def stream(self, x: Any, **options: Unpack[StreamOptions]) -> Stream:
        """Return the answer to the next input in pieces, as `Router.stream`. Left early, it leaves the state unchanged.

        The call begins, and raises BadInput and Closed as `infer`, in the `for`.
        """
        return Stream(self._pieces(self._router.stream(x, **options)))

    def _pieces(self, stream: Stream) -> Generator[Any, None, Answer]:
        """Yield the pieces of a router's stream as one call of this session, close the stream, and return the answer.

        States are stored only at the end: an exception, or an early close, leaves them as they were. Raises BadInput and Closed
        as `_turn`, before the first piece.
        """
        with self._turn() as turn, stream:
            pieces = iter(stream)
            while (piece := _next(turn, pieces)) is not _END:
                yield Shown(stream.leg or "", piece)
            return stream.answer


class AsyncSession(States):
    """Stream of inputs of an `AsyncRouter`: `async with router.session() as s: await s.infer(chunk)`. See `Session`."""

    async def infer(self, x: Any, **options: Unpack[InferOptions]) -> Answer:
        """Return the answer to the next input; see `Session.infer`. Cancelling the call leaves the state unchanged."""
        with self._turn() as turn, set_within(TURN, turn):
            return await self._router.infer(x, **options)  # type: ignore[no-any-return]

    async def infer_many(self, batch: Batch, **options: Unpack[CallOptions]) -> list[Answer]:
        """Return the answers to the next inputs; see `Session.infer_many`."""
        with self._turn() as turn, set_within(TURN, turn):
            return await self._router.infer_many(batch, **options)  # type: ignore[no-any-return]

    async def refine(self, x: Any, **options: Unpack[CallOptions]) -> AsyncGenerator[Answer, None]:
        """Yield the answers to the next input; see `Session.refine`. Closed or cancelled early, it leaves the state unchanged."""
        with self._turn() as turn:
            async with aclosing(self._router.refine(x, **options)) as answers:
                while (answer := await _anext(turn, answers)) is not _END:
                    yield answer

    def stream(self, x: Any, **options: Unpack[StreamOptions]) -> AsyncStream:
        """Return the answer to the next input in pieces; see `Session.stream`."""
        return AsyncStream(self._pieces(self._router.stream(x, **options)))

    async def _pieces(self, stream: AsyncStream) -> AsyncGenerator[Any, None]:
        """Yield the pieces of a router's stream as one call of this session; store its states, and yield the answer as `Last`."""
        with self._turn() as turn:
            async with stream:
                pieces = stream.__aiter__()
                while (piece := await _anext(turn, pieces)) is not _END:
                    yield Shown(stream.leg or "", piece)
        yield Last(stream.answer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _next(turn: Turn, steps: Iterator[Any]) -> Any:
    """Return the next item of a router's generator, which runs models within it; `_END` after the last."""
    with set_within(TURN, turn):
        return next(steps, _END)


async def _anext(turn: Turn, steps: Any) -> Any:
    """Return the next item of a router's asynchronous generator, which runs models within it; `_END` after the last."""
    with set_within(TURN, turn):
        return await anext(steps, _END)


# Conversations that store their own messages, over a router.


class History:
    """Messages of a conversation. One call at a time.

    Attributes:
        messages: messages so far, the system's first; both sides get all of them.
        stays: True once a turn had to stay on the device; all later turns stay, too.
    """

    def __init__(self, router: Any, system: str | None) -> None:
        self._router = router
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.stays = False

    def _with_turn(self, turn: Any, options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the messages with the next turn, and the call's options, restricted to the edge if the conversation stays.

        Sets `stays`. The turn is copied; the messages stay as they are until `_append_answer`.

        Raises:
            BadInput: the turn is no text, content or message.
            MayNotLeave: the conversation must stay, and there is no edge.
        """
        if not isinstance(turn, str | list | tuple | Mapping):
            raise BadInput(f"a turn is a text, the parts of a content, or a message, not a {type(turn).__name__}")
        message = dict(turn) if isinstance(turn, Mapping) else {"role": "user", "content": turn}
        snapshot = self._router.engine.snapshot
        data_class = options.get("data_class")
        # the call itself refuses a data class of another type; by a function the class is known once the turn is answered
        known = isinstance(data_class, str) or (data_class is None and snapshot.egress.data_class is None)
        verdict = permit(snapshot.policy.rules, data_class) if known else None
        self.stays = self.stays or options.get("mode") == "only_edge" or isinstance(verdict, Denied)
        if self.stays and any(target.side == "edge" for target in snapshot.targets):
            options = {**options, "mode": "only_edge"}
        elif self.stays and self.messages and not isinstance(verdict, Denied):
            raise MayNotLeave("this conversation had a turn that may not leave, and there is no edge any more")
        return [*self.messages, message], options

    def _append_answer(self, messages: list[dict[str, Any]], answer: Answer) -> Answer:
        """Replace the messages by those of the call with its answer. Return the answer.

        Tool calls are kept in the reply; a value that is no text becomes one. Sets `stays` if the data class that was found for
        the call may not leave.
        """
        text = answer.value if isinstance(answer.value, str) else str(answer.value)
        reply: dict[str, Any] = {"role": "assistant", "content": text}
        choices = answer.outputs.get("choices") if isinstance(answer.outputs, Mapping) else None
        first = choices[0] if isinstance(choices, list | tuple) and choices else None
        message = first.get("message") if isinstance(first, Mapping) else None
        if isinstance(message, Mapping) and message.get("tool_calls"):
            reply |= {"content": answer.value or None, "tool_calls": message["tool_calls"]}
        rules, plan = self._router.engine.snapshot.policy.rules, answer._plan  # noqa: SLF001 - a function may have found its class
        self.stays = self.stays or (isinstance(plan, Plan) and isinstance(permit(rules, plan.data_class), Denied))
        self.messages = [*messages, reply]
        return answer


class Conversation(History):
    """Conversation over a `Router`: `router.conversation()`. A turn that fails, or is left early, is not part of it."""

    def infer(self, turn: Any, **options: Any) -> Answer:
        """Return the answer to the next turn, and add both to the messages; after an error they stay as they were.

        After a turn that may not leave the device, all later ones stay.

        Args:
            turn: the turn: a text, the parts of a content, or a message, such as a tool's result.
            options: options of `Router.infer`.

        Raises:
            BadInput: the turn is none of these.
            MayNotLeave: an earlier turn may not leave, and there is no edge any more.
            EdgerouteError: as by `Router.infer`.
        """
        messages, options = self._with_turn(turn, options)
        answer: Answer = self._router.infer(messages, **options)
        return self._append_answer(messages, answer)

    def stream(self, turn: Any, **options: Any) -> Stream:
        """Return the answer to the next turn in pieces; the turn and the answer are added once the last piece was yielded.

        Left early, neither is added. Raises as `infer`; errors of the call itself are raised in the `for`.

        Args:
            turn: as for `infer`.
            options: options of `Router.stream`.
        """
        messages, options = self._with_turn(turn, options)
        return Stream(self._pieces(messages, self._router.stream(messages, **options)))

    def _pieces(self, messages: list[dict[str, Any]], stream: Stream) -> Generator[Any, None, Answer]:
        """Yield each piece as `Shown`; at the end add turn and answer to this conversation, and return the answer.

        Left early, nothing is added, and the call is cancelled.
        """
        with stream:
            for piece in stream:
                yield Shown(stream.leg or "", piece)
        return self._append_answer(messages, stream.answer)


class AsyncConversation(History):
    """Conversation over an `AsyncRouter`: `router.conversation()`. A turn that fails, or is left early, is not part of it."""

    async def infer(self, turn: Any, **options: Any) -> Answer:
        """Return the answer to the next turn, and add both to the messages. See `Conversation.infer`."""
        messages, options = self._with_turn(turn, options)
        return self._append_answer(messages, await self._router.infer(messages, **options))

    def stream(self, turn: Any, **options: Any) -> AsyncStream:
        """Return the answer to the next turn in pieces; the turn is added once the last piece was yielded.

        See `Conversation.stream`.
        """
        messages, options = self._with_turn(turn, options)
        return AsyncStream(self._pieces(messages, self._router.stream(messages, **options)))

    async def _pieces(self, messages: list[dict[str, Any]], stream: AsyncStream) -> AsyncGenerator[Any, None]:
        """Yield each piece as `Shown`; at the end add turn and answer to this conversation, and yield the answer as `Last`.

        Left early, nothing is added, and the call is cancelled.
        """
        async with stream:
            async for piece in stream:
                yield Shown(stream.leg or "", piece)
        yield Last(self._append_answer(messages, stream.answer))
