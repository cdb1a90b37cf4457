"""Replies in OpenAI's JSON, whole or in pieces: their text, the confidence by its tokens, tool calls, embeddings, and errors.

`Events` parses server-sent events; `ToolCalls` and `Gathered` join pieces; `answer` reads a whole reply; `failure` translates
errors.
"""

from __future__ import annotations

import binascii
import json
import logging
import re
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import exp
from typing import Any, Final

import numpy as np

from edgeroute.confidence.first_tokens import IMPOSSIBLE, impossible, of_tokens, token_entries, token_logprobs
from edgeroute.confidence.scores import NO_LOGPROBS, Unscored, quantile_of
from edgeroute.core.error_codes_and_texts import FOREIGN, clean
from edgeroute.core.stream_walk import Piece
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, EdgerouteError, ModelError, Unfit
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.system.quotable_codes_and_secrets import has_secret, quote
from edgeroute.system.sanitised_logs_and_contained_errors import log

# Server-sent events (WHATWG HTML, 9.2), in which the answers of language models come.

DATA, ERROR, EVENT = b"data", b"error", b"event"
FIELDS = (b"data:", b":", b"event:", b"id:", b"retry:")  # beginnings of a line of an event stream


class Events:
    """Parser of server-sent events from bytes as they arrive, cut anywhere: lines end with LF, CR or CRLF.

    `feed` and `end` return the data of the events that are complete. Anything without `data` is left out: comments, which servers
    send to keep a connection open, and other fields. A line that is JSON itself, or `error: {...}`, is data too: llama-server had
    such errors. The data of an event by the name of `error` become `{"error": ...}`.
    """

    __slots__ = ("_begun", "_cr", "_data", "_failed", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # parts of the last line, which is incomplete
        self._data: list[bytes] = []  # lines of data of the last event, which is incomplete
        self._cr = self._begun = False
        self._failed = False  # True if the last event, which is incomplete, is an error by its name

    def feed(self, part: bytes) -> list[bytes]:
        """Parse more bytes. Return the data of the events that end in them.

        Data of an `error` event come as JSON with `error`; bare JSON lines count as events, too.
        """
        if self._cr or b"\r" in part:
            part = self._lf(part)
        first, *lines = part.split(b"\n")
        self._parts.append(first)
        if not lines:
            return []
        complete: list[bytes] = []
        self._line(b"".join(self._parts) if len(self._parts) > 1 else first, complete)
        self._parts = [lines.pop()]
        for line in lines:
            self._line(line, complete)
        return complete

    def _lf(self, part: bytes) -> bytes:
        """Return the bytes with LF at the end of each line.

        A CR at their end is noted, since an LF at the beginning of the next bytes belongs to it, and is dropped there.
        """
        if not part:
            return part
        if self._cr:
            part = part.removeprefix(b"\n")  # the CR has ended the line already
        self._cr = part.endswith(b"\r")
        return part.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes, complete: list[bytes]) -> None:
        """Parse one line: keep its data, or, if it is empty, end the event and append its data to `complete`.

        A line that is a JSON object, or `error: {...}`, is an event by itself. Comments and other fields are ignored, and so is a
        byte order mark before the first line.
        """
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                data = b"\n".join(self._data) if len(self._data) > 1 else self._data[0]
                complete.append(_as_error(data) if self._failed else data)
                self._data = []
            self._failed = False
            return
        if line.startswith(b"{"):
            complete.append(line)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == DATA:
            self._data.append(value)
        elif name == EVENT:
            self._failed = value == ERROR
        elif name == ERROR and value.startswith(b"{"):
            complete.append(value)

    def end(self) -> list[bytes]:
        """Return the data of an event that no empty line has ended, as a list, and discard what was buffered.

        Call it after the last bytes: some servers end so.
        """
        complete: list[bytes] = []
        self._line(b"".join(self._parts), complete)
        self._line(b"", complete)
        self._parts = []
        return complete


def _as_error(data: bytes) -> bytes:
    """Return the JSON of an error with these data, which are JSON, or a text."""
    return b'{"error": %s}' % (data if data.startswith(b"{") else json.dumps(data.decode(errors="replace")).encode())


def is_piece(body: bytes) -> bool:
    """Return True if a body begins with a JSON line that is one piece of an answer: more of them follow.

    False for anything that is no such JSON.
    """
    line, ended, _ = body.lstrip().partition(b"\n")
    try:
        choice = json.loads(line if ended else b"")["choices"][0]
        return "delta" in choice or ("text" in choice and choice.get("finish_reason") is None)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False


def events(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the data of the events in a body that comes in parts."""
    parser = Events()
    for part in parts:
        yield from parser.feed(part)
    yield from parser.end()


# Joining of tool calls that come in pieces: not all servers number them as OpenAI does.


MOST_CALLS: Final = 256  # most calls of tools in one answer: each part is compared with all calls before it
LONGEST: Final = 1 << 16  # characters of arguments that are parsed to see if they are complete, with each part that comes
MOST_PARSED: Final = 1 << 20  # and characters that are parsed for this in one answer; after that arguments count as incomplete


class ToolCalls:
    """Tool calls of one answer, joined from their pieces.

    A part belongs to the last call with its index. A new call begins with another id than that one's; with a name, where there is
    no index; and with another name, or whole arguments once more, after that one has its arguments: Gemini's endpoint and others
    give each call the index 0, and not all of them ids.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[int, dict[str, Any]]] = []  # (index, call) in the order in which they began
        self._function: dict[str, str] = {}
        self._parsed = 0

    def __bool__(self) -> bool:
        return bool(self._calls or self._function)

    def add(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Add parts of calls, the `tool_calls` of a delta: set id, type and extra content, append name and arguments.

        Raises:
            TypeError, ValueError: they are no such parts, or more than `MOST_CALLS` calls.
        """
        for part in parts:
            call = self._call_of(part)
            call.update({key: part[key] for key in ("id", "type", "extra_content") if part.get(key)})
            _join(call["function"], part.get("function") or {})

    def add_function(self, part: Mapping[str, Any]) -> None:
        """Add a part of the one call that OpenAI's API had before it had tools, the `function_call` of a delta."""
        self._function = self._function or {"name": "", "arguments": ""}
        _join(self._function, part)

    def message(self) -> dict[str, Any]:
        """Return the keys of a message for the calls so far."""
        calls = [call for _, call in sorted(self._calls, key=lambda pair: pair[0])]
        return {**({"tool_calls": calls} if calls else {}), **({"function_call": self._function} if self._function else {})}

    def _call_of(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Return the call that a part belongs to, found by its index, or by its id without an index.

        Adds a call if there is none, or the part begins another. Raises ValueError for more than `MOST_CALLS` calls.
        """
        number, call_id, function = part.get("index"), part.get("id"), part.get("function") or {}
        last = self._calls[-1][0] if self._calls else 0
        index = last if number is None else int(number)
        if number is None and call_id:
            call = next((call for _, call in self._calls if call.get("id") == call_id), None)
        else:
            call = next((call for i, call in reversed(self._calls) if i == index), None)
        if (
            call is None
            or (not call_id and number is None and function.get("name"))
            or self._begins_another_call(call, call_id, function)
        ):
            if len(self._calls) >= MOST_CALLS:
                raise ValueError(f"more than {MOST_CALLS} calls of tools")
            call = {"type": "function", "function": {"name": "", "arguments": ""}}
            self._calls.append((index, call))
        return call

    def _begins_another_call(self, call: Mapping[str, Any], call_id: Any, function: Mapping[str, Any]) -> bool:
        """Return True if a part begins another call than `call`, which has its index.

        By another id; or, where an id is missing and `call` has arguments, by another name, or arguments again after whole ones.
        """
        if call_id and call.get("id"):
            return bool(call_id != call["id"])
        if not function.get("name") or not (arguments := call["function"]["arguments"]):
            return False
        return function["name"] != call["function"]["name"] or (
            bool((function.get("arguments") or "").strip()) and self._is_whole(arguments)
        )

    def _is_whole(self, arguments: str) -> bool:
        """Return True if arguments are a complete JSON object of at most `LONGEST` characters, no deeper than Python can parse.

        False, too, once `MOST_PARSED` characters of the answer were parsed.
        """
        if arguments[-1] not in "} \n\r\t" or len(arguments) > LONGEST or self._parsed > MOST_PARSED:
            return False
        self._parsed += len(arguments)
        try:
            return isinstance(json.loads(arguments), dict)
        except (RecursionError, ValueError):
            return False


def _join(function: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Append the texts of a part to those of a function, key by key, in place; a name that is merely repeated is skipped.

    Raises TypeError for a value that is no text.
    """
    for key, value in part.items():
        if key != "name" or value != function["name"]:
            if value and not isinstance(value, str):
                raise TypeError(f"{key} is a {type(value).__name__}")
            text = function.pop(key, "")
            text += value or ""  # in place, as nothing else refers to the text
            function[key] = text


def _join_details(details: list[dict[str, Any]], parts: Iterable[Mapping[str, Any]]) -> None:
    """Append parts of `reasoning_details` in place; one that continues the last is joined with it: its text, summary, signature.

    That is, one of the same type, index and id, until the last has its signature. Encrypted ones (`data`) come whole.
    """
    for part in parts:
        last = details[-1] if details else None
        if last and not last.get("signature") and all(part.get(key) == last.get(key) for key in ("type", "index", "id", "data")):
            _join(last, {key: part[key] for key in ("text", "summary", "signature") if part.get(key)})
        else:
            details.append({key: value for key, value in part.items() if value is not None})


QUANTILE: Final = 0.1  # quantile of the rule `quantile`
TOO_LONG: Final = "exceed_context_size_error"
# Types and codes of an error that mean a prompt longer than the context, of llama.cpp and others.
LONG: Final = frozenset({TOO_LONG, "context_length_exceeded"})
_PARTS = "tool|function|image|audio|vision|multimodal|mmproj"
# Messages of servers whose model cannot take a part of the request.
LACKS: Final = re.compile(
    rf"(?i)({_PARTS}).{{0,60}}(not support|unsupported|requires? --|not allowed)|(not support|unsupported).{{0,40}}({_PARTS})"
)
_SEARCHED: Final = 1_000  # characters of a message that are searched for these
# Keys of a request that are named if a message has them, whatever else it says.
_KEYS: Final = (
    "grammar", "response_format", "tools", "tool_choice", "stop", "temperature", "top_p", "top_k", "max_tokens", "seed"
)  # fmt: skip
_ALIASES: Final = {"response_format": "schema"}
UNQUOTED: Final = "its reason may repeat the request, and is not quoted"


# Keys of a delta that bring part of an answer; others, such as `role`, bring nothing new.
SIGNS: Final = (
    "content", "reasoning_content", "reasoning", "reasoning_details", "refusal", "tool_calls", "function_call", "audio",
)  # fmt: skip

SAID: Final = ("reasoning_content", "reasoning", "refusal")  # keys of a delta whose texts are joined, beside the content

BESIDES: Final = ("tool_calls", "function_call", "audio", "images")  # keys of a message that is an answer without a text


class Gathered:
    """Reply that comes in pieces, joined to the one that would have come whole.

    Args:
        eager: True: log-probabilities of tokens without text come at once, with an empty piece; False: with the next piece.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self._eager = eager
        self._pending_logprobs: list[float] = []
        self._text: list[str] = []
        self._calls = ToolCalls()
        self._envelope: dict[str, Any] = {}
        self._last_usage: Any = None
        self._finish_reason: str | None = None
        self._said: dict[str, list[str]] = {}
        self._details: list[dict[str, Any]] = []
        self._chat = True
        self.logprobs: list[Any] = []  # a mapping with `logprob` for each token that has come
        self.error: Mapping[str, Any] | None = None  # error that the server reported; None: none
        self.size = 0  # bytes of the texts so far, thoughts and calls of tools included
        # True if the last piece brought anything: text, thoughts, tool calls, tokens, the end, or token counts.
        self.progress = False

    def add(self, chunk: Mapping[str, Any]) -> Piece | None:
        """Add a chunk. Return its text with all pending log-probabilities; None without text (if eager: both) and at errors.

        Log-probabilities without text wait for the next piece. Sets `progress`; an error that the server reports is stored in
        `error`. Thoughts, refusals, calls of tools, usage and the finish reason are stored too. A chunk of another form raises
        AttributeError, LookupError, TypeError or ValueError.
        """
        if chunk.get("error") is not None or chunk.get("object") == "error":  # the latter is what vLLM had
            self.error = _error(chunk)
            return None
        choices, usage = chunk.get("choices"), chunk.get("usage")
        self.progress = bool(usage) and usage != self._last_usage
        self._last_usage = usage or self._last_usage
        ended = choices[0].get("finish_reason") if choices else None
        if ended or not choices or not self._envelope:  # those between say nothing new
            self._envelope.update({key: value for key, value in chunk.items() if key != "choices" and value is not None})
        if not choices:
            return None
        choice = choices[0]
        if is_error(ended):
            self.error, ended = _error({"error": choice.get("error") or {"type": ended}}), None
        self.progress |= bool(ended and not self._finish_reason)
        self._finish_reason = ended or self._finish_reason
        if (logprobs := choice.get("logprobs")) is not None:
            tokens = token_entries(logprobs)
            self.progress |= bool(tokens)
            self.logprobs += tokens
            for token in tokens:
                known = token.get("logprob") if type(token) is dict and token.get("token") != "" else None
                if isinstance(known, int | float):
                    self._pending_logprobs.append(known)
        if "text" in choice:
            self._chat = False
            text = choice["text"]
            size = content_size(text)
        else:
            delta = choice.get("delta")
            delta = (choice.get("message") if delta is None else delta) or {}  # the former of a server that does not stream
            text = _text(delta.get("content"))
            size = max((content_size(delta[key]) for key in SIGNS if key in delta), default=0)  # some servers repeat thoughts
            for key in SAID:
                if isinstance(said := delta.get(key), str) and said:
                    self._said.setdefault(key, []).append(said)
            _join_details(self._details, delta.get("reasoning_details") or ())
            self._calls.add(delta.get("tool_calls") or ())
            if function := delta.get("function_call"):
                self._calls.add_function(function)
        self.size += size
        self.progress |= size > 0 or bool(text)
        if not text and not (self._eager and self._pending_logprobs):
            return None
        self._text += [str(text)] if text else []
        piece = Piece(str(text or ""), self._pending_logprobs)
        self._pending_logprobs.clear()
        return piece

    @property
    def usage(self) -> Any:
        """Token counts that the server reported; None: none."""
        return self._envelope.get("usage")

    @property
    def empty(self) -> bool:
        """Return True if no part of an answer has come."""
        return not (self._text or self._said or self._details or self._calls)

    @property
    def ended(self) -> bool:
        """Return True if the reply is complete."""
        return self._finish_reason is not None

    def end(self) -> None:
        """Set the finish reason to "stop", as an end is known from elsewhere. One that came before stays."""
        self._finish_reason = self._finish_reason or "stop"

    def reply(self) -> dict[str, Any]:
        """Return the reply so far, as one that came whole. Copies texts, but not tokens."""
        text, logprobs = "".join(self._text), {"content": self.logprobs} if self.logprobs else None
        message: dict[str, Any] = {"role": "assistant", "content": text}
        message |= {key: "".join(texts) for key, texts in self._said.items()} | self._calls.message()
        message |= {"reasoning_details": self._details} if self._details else {}
        what = {"message": message} if self._chat else {"text": text}
        choice = {"index": 0, "finish_reason": self._finish_reason, **what, **({"logprobs": logprobs} if logprobs else {})}
        about = {key: value for key, value in self._envelope.items() if key not in {"object", "prompt_progress"}}
        return {**about, "object": "chat.completion" if self._chat else "text_completion", "choices": [choice]}


def answer(reply: Mapping[str, Any], rule: str, where: str, wrong: type[EdgerouteError] = ModelError) -> Prediction:
    """Return the prediction of a whole reply: its text, the confidence by its tokens, and the reply.

    The text of a refusal is the text of a reply that has no other. An empty answer has an `Unscored`.

    Args:
        reply: the reply.
        rule: one of `RULES`.
        where: name of the model or server, in messages.
        wrong: class of the exception.

    Raises:
        ModelError: the reply is not a completion; or `wrong`, another class.
    """
    try:
        choice = reply["choices"][0]
        message = {} if "text" in choice else choice["message"]
        text = choice["text"] if "text" in choice else _text(message.get("content"))
        refusal = message.get("refusal")
        logprobs = token_logprobs(reply)
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        # none is chained: it may quote the reply
        raise wrong(f"{where} gave a reply that is not a completion: {type(e).__name__}") from None
    if not isinstance(text, str | None):
        raise wrong(f"{where} gave a reply whose text is a {type(text).__name__}")
    if not (text := text or "").strip() and isinstance(refusal, str) and refusal.strip():
        text = refusal
    sure = Unscored("its answer has no text") if is_silent(text, reply) else _confidence(logprobs, rule)
    return Prediction(text, sure, reply)


# Bytes that the vector of a text may take in a reply: 4,096 numbers as JSON, indented as OpenAI's are, or 24,576 in Base64.
VECTOR: Final = 1 << 17


def embeddings(reply: Mapping[str, Any], count: int | None, where: str, wrong: type[EdgerouteError] = ModelError) -> Prediction:
    """Return the vectors of a reply, float32 [texts, size] in the order of the texts, with its model and usage; no confidence.

    Args:
        reply: the reply; each vector is Base64 or a list of numbers.
        count: number of texts; None: unknown.
        where: name of the model or server, in messages.
        wrong: class of the exception.

    Raises:
        ModelError: there is not one vector for each text, or their sizes differ; or `wrong`, another class.
    """
    with suppress(AttributeError, LookupError, TypeError, ValueError):  # none is chained: it may quote the reply
        rows = sorted(reply["data"], key=lambda row: row["index"])
        plain = [np.frombuffer(binascii.a2b_base64(x), "<f4") if isinstance(x := row["embedding"], str) else x for row in rows]
        vectors = np.array(plain, np.float32)
        each = [row["index"] for row in rows] == [*range(count or len(rows))]
        if each and vectors.ndim == 2 and vectors.size and np.isfinite(vectors).all():  # noqa: PLR2004 - texts and numbers
            return Prediction(vectors, None, {key: reply[key] for key in ("model", "usage") if key in reply})
    raise wrong(f"{where} gave a reply that is not a vector for each text, all of one size")


def is_silent(text: str, reply: Mapping[str, Any]) -> bool:
    """Return True if a reply with this text is empty: white space alone, and no tool call, sound or image."""
    message = reply["choices"][0].get("message")
    return not text.strip() and not (isinstance(message, Mapping) and any(message.get(key) for key in BESIDES))


class RunningConfidence:
    """Confidence of an answer that is still coming, by one of `RULES`."""

    def __init__(self, rule: str) -> None:
        self._rule, self._sum, self._sorted, self._first = rule, 0.0, list[float](), 0.0
        self._impossible = False

    def add(self, tokens: Sequence[Mapping[str, Any]]) -> None:
        """Add tokens, mappings with `logprob`, such as those in `Gathered.logprobs`, in place.

        An end token without text does not count. A log-probability that cannot be true ends the confidence for good: it becomes
        None.
        """
        for token in tokens:
            if token.get("token") != "":
                logprob = float(token["logprob"])
                self._impossible = self._impossible or impossible((logprob,))
                logprob = min(logprob, 0.0)
                self._first = self._first if self._sorted else logprob
                self._sum += logprob
                insort(self._sorted, logprob)

    @property
    def value(self) -> float | None:
        """Confidence that the answer would have if it ended now, 0..1; None: before its first token, or no confidence."""
        known = self._sorted
        if not known or self._impossible:
            return None
        if self._rule != "quantile":
            return exp({"mean": self._sum / len(known), "min": known[0]}.get(self._rule, self._first))
        return exp(quantile_of(known, QUANTILE))


def _confidence(logprobs: list[float], rule: str) -> Any:
    """Return the confidence by the rule, or an `Unscored`; for `quantile` the log-probabilities, for a reader to score."""
    if not logprobs:
        return Unscored(NO_LOGPROBS)
    if impossible(logprobs):
        return Unscored(IMPOSSIBLE)
    known = [min(logprob, 0.0) for logprob in logprobs]
    return known if rule == "quantile" else of_tokens(known, rule)


def content_size(part: Any) -> int:
    """Return the bytes of all texts in a value of a delta or message; 0 for numbers and types alone."""
    parts, size = [part], 0
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            size += len(part.encode(errors="replace"))
        elif isinstance(part, Mapping):
            parts += [value for key, value in part.items() if key != "type"]
        elif isinstance(part, list):
            parts += part
    return size


def _text(content: Any) -> Any:
    """Return the text of a message's content, which may be a list of parts; other parts, such as thoughts, are left out.

    None stays None.
    """
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def is_error(finish_reason: Any) -> bool:
    """Return True for the `finish_reason` of an answer within which the server failed."""
    return isinstance(finish_reason, str) and finish_reason.lower() == "error"


def _error(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the error in a reply as a mapping. The reply itself if it has none."""
    error = reply.get("error") or reply
    if isinstance(error, Mapping) and error.get("error"):  # of an event that is an error, and says so itself
        error = error["error"]
    return error if isinstance(error, Mapping) else {"message": str(error)}


def failure(
    error: Mapping[str, Any], where: str, *, own: bool, sent: Mapping[str, Any] | None, secrets: Sequence[str] | None = None,
    more: str = ""
) -> ModelError | BadInput:  # fmt: skip
    """Return the exception for an error that a runtime reports; log the text of a server at level DEBUG, unless it has a secret.

    `Unfit` for a prompt that is too long, or a request with parts that are not supported; `BadInput` for one that the caller
    wrote and the server refuses, but not for lack of memory; else `ModelError`.

    Args:
        error: the error in OpenAI's JSON.
        where: name of the model, for the message.
        own: True if the caller wrote the request, and not only its text.
        sent: the request, of which nothing is quoted; None: the request has nothing of a user in it.
        secrets: keys that are not quoted either; None: no server reports it, and nothing is logged.
        more: text for the end of the message.
    """
    text = str(error.get("message") or "")
    if text and secrets is not None and log.isEnabledFor(logging.DEBUG):
        log.debug("%s answered with the text: %s", where, "(it has a secret)" if has_secret(text, secrets) else text)
    reason = clean(text, FOREIGN) if sent is None else ""
    if error.get("type") in LONG or error.get("code") in LONG:
        tokens, most = error.get("n_prompt_tokens"), error.get("n_ctx")
        known = isinstance(tokens, int) and isinstance(most, int)
        reason = f"the prompt has {tokens} tokens, and its context {most}" if known else "the prompt is longer than its context"
        return Unfit(f"{where} cannot take it: {reason}: a larger context= takes more memory{more}", code="context")
    if own and (lacks := LACKS.search(text[:_SEARCHED])):
        part = (lacks[1] or lacks[4]).lower()
        return Unfit(f"{where} cannot take it: the server or model does not support what is in the request ({part}){more}")
    if not reason:
        named = [key for key in _KEYS if sent and key in sent and _ALIASES.get(key, key) in text] if own else []
        codes = quote(json_dumps(dict(error), repr), json_dumps(sent or {}, repr), secrets or ())
        reason = f"it is about {', '.join(named)}" if named else codes or (UNQUOTED if text else "it does not say what")
    if own and error.get("code") == 400 and "bad_alloc" not in text:  # noqa: PLR2004 - HTTP's "bad request", also without HTTP
        return BadInput(f"{where} does not take the request: {reason}{more}")
    return ModelError(f"{where} gave no answer: {reason}{more}")
