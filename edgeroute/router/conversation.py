"""Conversations that keep their own messages, over a router."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from edgeroute.core.egress import Denied, permit
from edgeroute.errors import BadInput, MayNotLeave
from edgeroute.router.stages import Shown
from edgeroute.router.streams import AsyncStream, Last, Stream
from edgeroute.types import Answer


class History:
    """The messages of a conversation. One call at a time.

    Attributes:
        messages: so far, the system's first; both sides are sent all of them.
        stays: whether a turn had to stay on the device: then all later ones do.
    """

    def __init__(self, router: Any, system: str | None) -> None:
        self._router = router
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.stays = False

    def _asked(self, said: Any, options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages with this one, and the call's options."""
        if not isinstance(said, str | list | tuple | Mapping):
            raise BadInput(f"a turn is a text, the parts of a content, or a message, not a {type(said).__name__}")
        turn = dict(said) if isinstance(said, Mapping) else {"role": "user", "content": said}
        snapshot = self._router.engine.snapshot
        named = options.get("data_class")
        verdict = permit(snapshot.policy.rules, named) if isinstance(named, str | None) else None  # the call says what is wrong
        self.stays = self.stays or options.get("mode") == "only_edge" or isinstance(verdict, Denied)
        if self.stays and any(target.side == "edge" for target in snapshot.targets):
            options = {**options, "mode": "only_edge"}
        elif self.stays and self.messages and not isinstance(verdict, Denied):
            raise MayNotLeave("this conversation had a turn that may not leave, and there is no edge any more")
        return [*self.messages, turn], options

    def _answered(self, messages: list[dict[str, Any]], answer: Answer) -> Answer:
        turn: dict[str, Any] = {
            "role": "assistant",
            "content": answer.value if isinstance(answer.value, str) else str(answer.value),
        }
        choices = answer.outputs.get("choices") if isinstance(answer.outputs, Mapping) else None
        first = choices[0] if isinstance(choices, list | tuple) and choices else None
        own = first.get("message") if isinstance(first, Mapping) else None
        if isinstance(own, Mapping) and own.get("tool_calls"):
            turn |= {"content": answer.value or None, "tool_calls": own["tool_calls"]}
        self.messages = [*messages, turn]
        return answer


class Conversation(History):
    """A conversation over a `Router`: `router.conversation()`. A turn that fails, or is left early, is not part of it."""

    def infer(self, said: Any, **options: Any) -> Answer:
        """The answer to what a user says next: a text, the parts of a content, or a message, such as a tool's result.

        Args:
            said: the next turn.
            options: of `Router.infer`.
        """
        messages, options = self._asked(said, options)
        answer: Answer = self._router.infer(messages, **options)
        return self._answered(messages, answer)

    def stream(self, said: Any, **options: Any) -> Stream:
        """The same in pieces, with the options of `Router.stream`; the turn is part of it once the last piece was yielded."""
        messages, options = self._asked(said, options)
        return Stream(self._pieces(messages, self._router.stream(messages, **options)))

    def _pieces(self, messages: list[dict[str, Any]], stream: Stream) -> Generator[Any, None, Answer]:
        with stream:
            for piece in stream:
                yield Shown(stream.leg or "", piece)
        assert stream.answer is not None, "it has ended"
        return self._answered(messages, stream.answer)


class AsyncConversation(History):
    """`Conversation` over an `AsyncRouter`."""

    async def infer(self, said: Any, **options: Any) -> Answer:
        """As `Conversation.infer`."""
        messages, options = self._asked(said, options)
        return self._answered(messages, await self._router.infer(messages, **options))

    def stream(self, said: Any, **options: Any) -> AsyncStream:
        """As `Conversation.stream`."""
        messages, options = self._asked(said, options)
        return AsyncStream(self._pieces(messages, self._router.stream(messages, **options)))

    async def _pieces(self, messages: list[dict[str, Any]], stream: AsyncStream) -> AsyncGenerator[Any, None]:
        async with stream:
            async for piece in stream:
                yield Shown(stream.leg or "", piece)
        assert stream.answer is not None, "it has ended"
        yield Last(self._answered(messages, stream.answer))
