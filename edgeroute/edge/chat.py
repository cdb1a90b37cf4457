"""Texts in OpenAI's JSON, as llama.cpp and local servers speak it: requests from inputs, and answers from replies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgeroute.confidence.prefix import RULES, Prefix, Rule, of_tokens, token_entries, token_logprobs
from edgeroute.confidence.unscored import Unscored
from edgeroute.core.pieces import Piece
from edgeroute.core.texts import FOREIGN, clean
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, ModelError, PolicyError, Unfit, check_number

OURS: Final = ("stream", "stream_options", "n", "logprobs", "top_logprobs", "return_progress", "model")
"""Keys of a request that the caller does not set."""
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
LONG: Final = ("exceed_context_size_error", "context_length_exceeded")
"""Types and codes of an error that mean a prompt longer than the context."""
_PARTS = "tool|function|image|audio|vision|multimodal|mmproj"
LACKS: Final = re.compile(
    rf"(?i)({_PARTS}).{{0,60}}(not support|unsupported|requires? --|not allowed)|(not support|unsupported).{{0,40}}({_PARTS})"
)
"""Messages of servers whose model cannot take what a request has."""


class Chat:
    """How inputs become requests, and replies answers.

    Args:
        chat: a text is what a user says, and the model's chat template is applied; or, if false, a text to be continued.
        system: what the model is told first, unless the messages begin with that themselves.
        max_tokens: of an answer, at most.
        temperature: 0: the most probable token each time.
        seed: of what is drawn at a higher temperature.
        stop: texts at which an answer ends.
        grammar: that an answer follows, in llama.cpp's GBNF.
        response_format: likewise, as OpenAI has it: `{"type": "json_schema", "json_schema": {"schema": {...}}}`.
        confidence: one of `RULES`.
        request: further keys of each request, such as top_p, as the runtime takes them.

    Raises:
        PolicyError: a value is none.
    """

    def __init__(
        self,
        *,
        chat: bool,
        system: str | None,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str],
        grammar: str | None,
        response_format: Mapping[str, Any] | None,
        confidence: str,
        request: Mapping[str, Any] | None,
    ) -> None:
        check_number("max_tokens", max_tokens, least=1, whole=True)
        check_number("temperature", temperature)
        check_number("seed", seed, whole=True, most=2**31 - 1)
        if confidence not in RULES:
            raise PolicyError(f"confidence= takes one of {', '.join(RULES)}, not {confidence!r}")
        if grammar is not None and response_format is not None:
            raise PolicyError("grammar= and response_format= both say what form an answer has: give one")
        if (taken := sorted({*OURS, "messages", "prompt"} & {*(request or {})})) and request is not None:
            raise PolicyError(f"request= may not have {', '.join(taken)}: edgeroute sets that")
        self.is_chat, self.system, self.rule = chat, system, confidence
        stops = [stop] if isinstance(stop, str) else [*stop]
        if "" in stops:
            raise PolicyError("stop= has an empty text, at which each answer would end before it begins")
        self.options: dict[str, Any] = {
            "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
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
            return {**self.options, "messages": self._told(_messages(x))}, True
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
            made["messages"] = self._told(_messages(own["messages"]))
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


def _messages(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not given:
        raise BadInput('messages is a list of one or more {"role": ..., "content": ...}')
    for i, one in enumerate(given):
        if not isinstance(one, Mapping):
            raise BadInput(f'message {i} is {_kind(one)}, not {{"role": ..., "content": ...}}')
        if not isinstance(role := one.get("role"), str) or role not in ROLES:
            raise BadInput(f"message {i} has no role of {', '.join(ROLES)}")
        _check_content(i, one)
    _check_json(given)
    return [dict(one) for one in given]


def _check_content(i: int, message: Mapping[str, Any]) -> None:
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and isinstance(calls, list | tuple) and calls:
        return
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise BadInput(f"the content of message {i} is {_kind(content)}: expected text, or a list of parts with a type")
    for part in parts:
        if not isinstance(kind := part.get("type"), str) or kind != "text":
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


class Gathered:
    """A reply that comes in pieces, put together as the one that would have come whole.

    Args:
        eager: log-probabilities of tokens that are no text come at once, with an empty piece; else with the next one.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self._eager = eager
        self._untold: list[float] = []
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._about: dict[str, Any] = {}
        self._ended: str | None = None
        self._thought: list[str] = []
        self._chat = True
        self.error: Mapping[str, Any] | None = None
        """What went wrong there, as it says."""

    def add(self, chunk: Mapping[str, Any]) -> Piece | None:
        """Adds a piece of it -> the text that it brings, and its tokens' log-probabilities; None: neither."""
        if "error" in chunk:
            self.error = _error(chunk)
            return None
        self._about.update({key: value for key, value in chunk.items() if key != "choices" and value is not None})
        choices = chunk.get("choices") or ()
        if not choices:
            return None
        choice = choices[0]
        self._ended = choice.get("finish_reason") or self._ended
        tokens = token_entries(choice.get("logprobs"))
        self._logprobs += tokens
        if "text" in choice:
            self._chat = False
            text = choice["text"]
        else:
            delta = choice.get("delta") or {}
            text = delta.get("content")
            if isinstance(thought := delta.get("reasoning_content"), str):
                self._thought.append(thought)
            self._add_calls(delta.get("tool_calls") or ())
        self._untold += [float(one["logprob"]) for one in tokens if one.get("token") != ""]
        if not text and not (self._eager and self._untold):
            return None
        if text:
            self._text.append(str(text))
        logprobs, self._untold = self._untold, []
        return Piece(str(text or ""), logprobs)

    def _add_calls(self, given: Sequence[Mapping[str, Any]]) -> None:
        for one in given:
            call = self._calls.setdefault(
                int(one.get("index", 0)), {"type": "function", "function": {"name": "", "arguments": ""}}
            )
            call.update({key: one[key] for key in ("id", "type") if one.get(key)})
            for key, part in (one.get("function") or {}).items():
                call["function"][key] = call["function"].get(key, "") + (part or "")

    @property
    def ended(self) -> bool:
        """Whether the reply is whole."""
        return self._ended is not None

    def end(self) -> None:
        """It is whole, as is known from elsewhere."""
        self._ended = self._ended or "stop"

    def reply(self) -> dict[str, Any]:
        """All of it."""
        text, logprobs = "".join(self._text), {"content": self._logprobs} if self._logprobs else None
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._calls:
            message["tool_calls"] = [self._calls[i] for i in sorted(self._calls)]
        what = {"message": message} if self._chat else {"text": text}
        choice = {"index": 0, "finish_reason": self._ended, **what, **({"logprobs": logprobs} if logprobs else {})}
        about = {key: value for key, value in self._about.items() if key not in {"object", "prompt_progress"}}
        return {**about, "object": "chat.completion" if self._chat else "text_completion", "choices": [choice]}


def answer(reply: Mapping[str, Any], rule: str, where: str) -> Prediction:
    """The text of a reply, its confidence, and the reply itself.

    Raises:
        ModelError: it is no completion.
    """
    try:
        choice = reply["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"].get("content")
        logprobs = token_logprobs(reply)
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        raise ModelError(f"{where} gave a reply that is no completion: {type(e).__name__}") from e
    if not isinstance(text, str | None):
        raise ModelError(f"{where} gave a reply whose text is a {type(text).__name__}")
    return Prediction(text or "", _confidence(logprobs, rule), reply)


def _confidence(logprobs: list[float], rule: str) -> Any:
    """By the rule; the log-probabilities themselves for the quantile, which a reader takes of them."""
    if not logprobs:
        return Unscored("no log-probabilities of its tokens")
    known = [min(one, 0.0) for one in logprobs]
    return known if rule == "quantile" else of_tokens(known, rule)


def _error(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    error = reply["error"]
    return error if isinstance(error, Mapping) else {"message": str(error)}


def failure(error: Mapping[str, Any], where: str, *, own: bool) -> ModelError | BadInput:
    """The exception for what a runtime says went wrong.

    Args:
        error: as OpenAI's JSON has it.
        where: the model, in the message.
        own: whether the caller wrote the request, and not only its text.
    """
    said = clean(error.get("message", "it does not say what"), FOREIGN)
    if error.get("type") in LONG or error.get("code") in LONG:
        tokens, most = error.get("n_prompt_tokens"), error.get("n_ctx")
        if isinstance(tokens, int) and isinstance(most, int):
            said = f"the prompt has {tokens} tokens, and its context {most}"
        return Unfit(f"{where} cannot take it: {said}: a larger context= takes more memory", code="context")
    if own and LACKS.search(said):
        return Unfit(f"{where} cannot take it: {said}")
    if own and error.get("code") == 400:  # noqa: PLR2004 - HTTP's "bad request", also where there is no HTTP
        return BadInput(f"{where} does not take the request: {said}")
    return ModelError(f"{where} gave no answer: {said}")


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
