"""Requests for texts in OpenAI's JSON: from a text, messages, or a request that the caller wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgeroute.confidence.prefix import RULES, Prefix, Rule
from edgeroute.core.words import FOREIGN, clean
from edgeroute.errors import BadInput, PolicyError, Unfit, check_number

OURS: Final = ("stream", "stream_options", "n", "logprobs", "top_logprobs", "return_progress", "model")
"""Keys of a request that the caller does not set."""
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")


class Chat:
    """How inputs become requests, and replies answers.

    Args:
        chat: a text is what a user says, and the model's chat template is applied; or, if false, a text to be continued.
        system: what the model is told first, unless the messages begin with that themselves.
        max_tokens: of an answer, at most; None: as many as the server allows.
        temperature: 0: the most probable token each time; None: the server's.
        seed: of what is drawn at a higher temperature; None: the server's.
        stop: texts at which an answer ends.
        grammar: that an answer follows, in llama.cpp's GBNF.
        response_format: likewise, as OpenAI has it: `{"type": "json_schema", "json_schema": {"schema": {...}}}`.
        confidence: one of `RULES`.
        request: further keys of each request, such as top_p, as the runtime takes them.
        texts_only: whether images and other parts of a message are refused, as a text model on the device does.

    Raises:
        PolicyError: a value is none.
    """

    def __init__(
        self,
        *,
        chat: bool,
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        seed: int | None,
        stop: Sequence[str],
        grammar: str | None,
        response_format: Mapping[str, Any] | None,
        confidence: str,
        request: Mapping[str, Any] | None,
        texts_only: bool = True,
    ) -> None:
        if max_tokens is not None:
            check_number("max_tokens", max_tokens, least=1, whole=True)
        if temperature is not None:
            check_number("temperature", temperature)
        if seed is not None:
            check_number("seed", seed, whole=True, most=2**31 - 1)
        if confidence not in RULES:
            raise PolicyError(f"confidence= takes one of {', '.join(RULES)}, not {confidence!r}")
        if grammar is not None and response_format is not None:
            raise PolicyError("grammar= and response_format= both say what form an answer has: give one")
        if (taken := sorted({*OURS, "messages", "prompt"} & {*(request or {})})) and request is not None:
            raise PolicyError(f"request= may not have {', '.join(taken)}: edgeroute sets that")
        self.is_chat, self.system, self.rule, self._texts_only = chat, system, confidence, texts_only
        stops = [stop] if isinstance(stop, str) else [*stop]
        if "" in stops:
            raise PolicyError("stop= has an empty text, at which each answer would end before it begins")
        given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.options: dict[str, Any] = {
            **{key: value for key, value in given.items() if value is not None},
            **({"stop": stops} if stops else {}),
            **({} if grammar is None else {"grammar": grammar}),
            **({} if response_format is None else {"response_format": dict(response_format)}),
            **(request or {}),
        }  # fmt: skip
        try:
            _check_json(self.settings)
        except BadInput as e:
            raise PolicyError(f"a setting: {e}") from None

    @property
    def settings(self) -> dict[str, Any]:
        """All that answers depend on."""
        return {"chat": self.is_chat, "system": self.system, "confidence": self.rule, **self.options}

    def request(self, x: Any) -> tuple[dict[str, Any], bool]:
        """The request for an input, and whether it is a chat.

        Args:
            x: a text; messages; or a request, a mapping with `messages` or `prompt`, whose keys go before the settings.

        Raises:
            BadInput: it is none of these, is empty, or cannot be written as JSON in UTF-8.
        """
        if isinstance(x, np.ndarray) and not x.ndim and x.dtype.kind == "U":
            x = x.item()
        if isinstance(x, str):
            _check_text(x)
            if not self.is_chat:
                return {**self.options, "prompt": str(x)}, False
            return {**self.options, "messages": self._told([{"role": "user", "content": str(x)}])}, True
        if isinstance(x, Mapping):
            return self._whole(x)
        if isinstance(x, list | tuple):
            return {**self.options, "messages": self._told(_messages(x, self._texts_only))}, True
        raise BadInput(
            f'expected a prompt, which is text, messages [{{"role": ..., "content": ...}}], or a request, not {_kind(x)}'
        )

    def _whole(self, x: Mapping[Any, Any]) -> tuple[dict[str, Any], bool]:
        """A request that the caller wrote."""
        own = {key: value for key, value in x.items() if key not in OURS}
        if not all(isinstance(key, str) for key in own):
            raise BadInput("the keys of a request are texts")
        made = {**self.options, **own}
        if "grammar" in own or "response_format" in own:
            made = {key: value for key, value in made.items() if key in own or key not in {"grammar", "response_format"}}
        if "messages" in own:
            made["messages"] = self._told(_messages(own["messages"], self._texts_only))
            _check_json(own)
            return made, True
        prompt = own.get("prompt")
        if not isinstance(prompt, str):
            raise BadInput("a request has messages, a list, or a prompt, which is one text")
        _check_text(prompt)
        _check_json(own)
        return made, False

    def _told(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with the system's before them, unless there is one."""
        if self.system is None or messages[0]["role"] in {"system", "developer"}:
            return messages
        return [{"role": "system", "content": self.system}, *messages]


def _messages(given: Any, texts_only: bool) -> list[dict[str, Any]]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not given:
        raise BadInput('messages is a list of one or more {"role": ..., "content": ...}')
    for i, one in enumerate(given):
        if not isinstance(one, Mapping):
            raise BadInput(f'message {i} is {_kind(one)}, not {{"role": ..., "content": ...}}')
        if not isinstance(role := one.get("role"), str) or role not in ROLES:
            raise BadInput(f"message {i} has no role of {', '.join(ROLES)}")
        _check_content(i, one, texts_only)
    _check_json(given)
    return [dict(one) for one in given]


def _check_content(i: int, message: Mapping[str, Any], texts_only: bool) -> None:
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and isinstance(calls, list | tuple) and calls:
        return
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise BadInput(f"the content of message {i} is {_kind(content)}: expected text, or a list of parts with a type")
    for part in parts:
        kind = part.get("type")
        if not texts_only and isinstance(kind, str) and kind != "text":
            continue
        if kind != "text":
            raise Unfit(f"message {i} has {clean(kind, 40)} in it, and a text model on the device takes text alone")
        if not isinstance(part.get("text"), str):
            raise BadInput(f"a part of message {i} is of the type text, and has none")


def _check_text(x: str) -> None:
    if not x:
        raise BadInput("an empty prompt: there is nothing to answer")
    try:
        x.encode()
    except UnicodeEncodeError as e:
        raise BadInput(
            f"the prompt has a lone surrogate at {e.start}, which is no character: decode it as it was encoded"
        ) from None


def _check_json(x: Any) -> None:
    """Refuses what JSON in UTF-8 has no place for."""
    try:
        json.dumps(x, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadInput("the request has a lone surrogate in a text, which is no character: decode it as it was encoded") from None
    except (TypeError, ValueError, RecursionError) as e:
        raise BadInput(f"the request cannot be written as JSON: {clean(e, FOREIGN)}") from None


def _kind(x: Any) -> str:
    return "None" if x is None else f"an array {list(x.shape)}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def checked_score(score: Any, decide_after: int | None, rule: Rule) -> Any:
    """The score of a language model: the one that was given, or that of its first tokens; None: `rule` of all of them.

    Raises:
        PolicyError: both are given.
    """
    if decide_after is None:
        return score
    if score is not None:
        raise PolicyError("decide_after= and score= both say what the confidence is: give one, as score=Prefix(tokens, of=...)")
    return Prefix(decide_after, rule)
