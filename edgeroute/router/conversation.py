"""Conversations that store their own messages, over a router."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from edgeroute.core.egress import Denied, permit
from edgeroute.core.plan import Plan
from edgeroute.errors import BadInput, MayNotLeave
from edgeroute.router.call_stages import Shown
from edgeroute.router.streams import AsyncStream, Last, Stream
from edgeroute.types import Answer


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
        """Append the turn and its answer to the messages. Return the answer.

        Tool calls are kept in the reply; a value that is no text becomes one.
        """
        reply: dict[str, Any] = {
            "role": "assistant",
            "content": answer.value if isinstance(answer.value, str) else str(answer.value),
        }
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
        """Return the answer to the next turn, and add both to the messages.

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
        """Return the answer to the next turn in pieces; the turn is added to the messages once the last piece was yielded.

        Left early, the turn is not added.

        Args:
            turn: as for `infer`.
            options: options of `Router.stream`.
        """
        messages, options = self._with_turn(turn, options)
        return Stream(self._pieces(messages, self._router.stream(messages, **options)))

    def _pieces(self, messages: list[dict[str, Any]], stream: Stream) -> Generator[Any, None, Answer]:
        """Yield a stream's pieces; at its end add the turn to the messages, and return the answer.

        Left early, the turn is not added, and the call is cancelled.
        """
        with stream:
            for piece in stream:
                yield Shown(stream.leg or "", piece)
        assert stream.answer is not None, "it has ended"
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
        """Yield a stream's pieces; at its end add the turn to the messages, and yield the answer as `Last`."""
        async with stream:
            async for piece in stream:
                yield Shown(stream.leg or "", piece)
        assert stream.answer is not None, "it has ended"
        yield Last(self._append_answer(messages, stream.answer))
