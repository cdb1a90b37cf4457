"""Requests to language models in OpenAI's JSON, from a text, messages, or a caller's request; also for embeddings.

`Chat` has the settings, and checks the input; `checked_score` checks the arguments of a score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgeroute.confidence.first_tokens import RULES, Prefix, Rule
from edgeroute.core.error_codes_and_texts import FOREIGN, clean
from edgeroute.errors import BadInput, PolicyError, Unfit, check_number

# Keys of a request that edgeroute sets; the caller's are ignored.
OURS: Final = ("stream", "stream_options", "n", "logprobs", "top_logprobs", "return_progress", "model")
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")  # roles of a message


class Chat:
    """Settings of a language model, by which inputs become requests.

    Args:
        chat: True: a text is a user's message, and the model's chat template is applied; False: it is a text to continue.
        system: first message, from the system, unless the messages begin with one; None: no such message.
        max_tokens: maximum tokens of an answer; None: as many as the server allows.
        temperature: 0: the most probable token each time; None: the server's.
        seed: seed for a higher temperature; None: the server's.
        stop: texts at which an answer ends.
        grammar: grammar that an answer follows, in llama.cpp's GBNF.
        response_format: schema that an answer follows, in OpenAI's form: `{"type": "json_schema", "json_schema": {"schema":
            {...}}}`.
        confidence: one of `RULES`.
        request: further keys of each request, such as top_p, as the runtime takes them.
        texts_only: if True, refuse images and other parts of a message, as a text model on the device does.

    Raises:
        PolicyError: a value is not valid.
    """

    def __init__(
        self, *, chat: bool, system: str | None, max_tokens: int | None, temperature: float | None, seed: int | None,
        stop: Sequence[str], grammar: str | None, response_format: Mapping[str, Any] | None, confidence: str,
        request: Mapping[str, Any] | None, texts_only: bool = True
    ) -> None:  # fmt: skip
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
        options = {
            "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stops or None, "grammar": grammar,
            "response_format": None if response_format is None else dict(response_format),
        }  # fmt: skip
        self.options: dict[str, Any] = {key: value for key, value in options.items() if value is not None} | dict(request or {})
        try:
            _check_json(self.settings)
        except BadInput as e:
            raise PolicyError(f"a setting: {e}") from None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings on which answers depend: if it is a chat, system text, rule of confidence, options; not the model's name."""
        return {"chat": self.is_chat, "system": self.system, "confidence": self.rule, **self.options}

    def request(self, x: Any) -> tuple[dict[str, Any], bool]:
        """Return the request for an input, with the settings and the system message, and True if it is a chat.

        A text becomes a chat if `is_chat`, else a prompt. Copies what it changes.

        Args:
            x: a text; messages; or a request, a mapping with `messages` or `prompt`, whose keys override the settings.

        Raises:
            BadInput: the input is none of these, is empty, or cannot be written as JSON in UTF-8.
            Unfit: a message has parts that a text model cannot take.
        """
        if isinstance(x, np.ndarray) and not x.ndim and x.dtype.kind == "U":
            x = x.item()
        if isinstance(x, str):
            _check_text(x := str.__str__(x))
            if not self.is_chat:
                return {**self.options, "prompt": x}, False
            return {**self.options, "messages": self._with_system([{"role": "user", "content": x}])}, True
        if isinstance(x, Mapping):
            return self._from_request(x)
        if isinstance(x, list | tuple):
            return {**self.options, "messages": self._with_system(_messages(x, self._texts_only))}, True
        raise BadInput(f'expected a prompt: text, messages [{{"role": ..., "content": ...}}], or a request, not {_kind(x)}')

    def _from_request(self, x: Mapping[Any, Any]) -> tuple[dict[str, Any], bool]:
        """Return the request for one that the caller wrote, settings as defaults, and True if it is a chat, False for a prompt.

        Keys in `OURS` are dropped; a grammar or format of the caller replaces both settings. Raises as `request`.
        """
        keys = {key: value for key, value in x.items() if key not in OURS}
        if not all(isinstance(key, str) for key in keys):
            raise BadInput("the keys of a request are texts")
        request = {**self.options, **keys}
        if "grammar" in keys or "response_format" in keys:
            request = {key: value for key, value in request.items() if key in keys or key not in {"grammar", "response_format"}}
        if "messages" in keys:
            request["messages"] = self._with_system(_messages(keys["messages"], self._texts_only))
        elif isinstance(prompt := keys.get("prompt"), str):
            _check_text(prompt)
        else:
            raise BadInput("a request has messages, a list, or a prompt, which is one text")
        _check_json(keys)
        return request, "messages" in keys

    def _with_system(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages after the system's, unless they begin with one. The same list if there is no system text."""
        if self.system is None or messages[0]["role"] in {"system", "developer"}:
            return messages
        return [{"role": "system", "content": self.system}, *messages]


def embedding_request(x: Any) -> dict[str, Any] | None:
    """Return the request for the embeddings of texts, a copy of the caller's with `input`; None: the input asks for an answer.

    The vectors are requested as Base64, as each number of a list would be a value to parse.

    Raises:
        BadInput: `input` is no list of texts, one is empty, or the request cannot be written as JSON in UTF-8.
    """
    if not isinstance(x, Mapping) or "input" not in x or {"messages", "prompt"} & x.keys():
        return None
    texts = x["input"]
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise BadInput("input, of embeddings, is a list of texts, of which none is empty")
    _check_json(x)
    return {**x, "encoding_format": "base64"}


def _messages(chat: Any, texts_only: bool) -> list[dict[str, Any]]:
    """Check the messages' roles and forms, and return shallow copies; `texts_only` refuses all parts but texts.

    Raises:
        BadInput: they are not messages.
        Unfit: a message has parts that a text model cannot take.
    """
    if isinstance(chat, str | bytes) or not isinstance(chat, Sequence) or not chat:
        raise BadInput('messages is a list of one or more {"role": ..., "content": ...}')
    for i, message in enumerate(chat):
        if not isinstance(message, Mapping):
            raise BadInput(f'message {i} is {_kind(message)}, not {{"role": ..., "content": ...}}')
        if not isinstance(role := message.get("role"), str) or role not in ROLES:
            raise BadInput(f"message {i} has no role of {', '.join(ROLES)}")
        _check_content(i, message, texts_only)
    _check_json(chat)
    return [dict(message) for message in chat]


def _check_content(i: int, message: Mapping[str, Any], texts_only: bool) -> None:
    """Raise BadInput unless a message's content is a text or a list of typed parts.

    Raise Unfit, if `texts_only`, for a part of another type than text, or of none. A message with tool calls may lack a
    content. `i` is its index, for the error's text.
    """
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and isinstance(calls, list | tuple) and calls:
        return
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise BadInput(f"the content of message {i} is {_kind(content)}: expected text, or a list of parts with a type")
    for part in parts:
        kind = part.get("type")
        if kind != "text" and texts_only:
            raise Unfit(f"message {i} has a part of another type than text, and a text model on the device takes text alone")
        if not isinstance(kind, str):
            raise BadInput(f"a part of message {i} has no type: expected text, or a list of parts with a type")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise BadInput(f"a part of message {i} is of the type text, and has none")


def _check_text(x: str) -> None:
    """Raise BadInput for an empty text, or one that UTF-8 cannot hold."""
    if not x:
        raise BadInput("an empty prompt: there is nothing to answer")
    try:
        x.encode()
    except UnicodeEncodeError as e:
        raise BadInput(f"the prompt has a lone surrogate at {e.start}: decode it as it was encoded") from None


def _check_json(x: Any) -> None:
    """Raise BadInput for a value that JSON in UTF-8 cannot hold."""
    try:
        json.dumps(x, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadInput("the request has a lone surrogate in a text, which is no character: decode it as it was encoded") from None
    except (TypeError, ValueError, RecursionError) as e:
        raise BadInput(f"the request cannot be written as JSON: {clean(e, FOREIGN)}") from None


def _kind(x: Any) -> str:
    """Return a description of a value's type, without its content."""
    return "None" if x is None else f"an array {list(x.shape)}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def checked_score(score: Any, decide_after: int | None, rule: Rule) -> Any:
    """Return the score of a language model: `score` (None stays None), or, with `decide_after`, a `Prefix` by `rule`.

    Raises:
        PolicyError: both are given.
    """
    if decide_after is None:
        return score
    if score is not None:
        raise PolicyError("decide_after= and score= both say what the confidence is: give one, as score=Prefix(tokens, of=...)")
    return Prefix(decide_after, rule)
