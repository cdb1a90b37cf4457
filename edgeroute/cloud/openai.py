"""Language model behind OpenAI's API as an endpoint: chat and completions, whole or in pieces, with OpenAI's errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import ceil, inf
from typing import Any

from edgeroute.cloud import stream_protocol_and_attempts as speeches
from edgeroute.cloud.endpoint import MAX_VALUES, OneByOne, Talk, check_status, loads, looks_like
from edgeroute.cloud.stream_protocol_and_attempts import AnswerPiece, AnswerStream, Head
from edgeroute.confidence.first_tokens import Rule
from edgeroute.confidence.output_forms_labels_and_comparison import label_names
from edgeroute.core.error_codes_and_texts import TOO_LONG, clean
from edgeroute.core.reason_text_and_trace_record import truncated
from edgeroute.core.setting_unit_types import Amount, Count, Patience, Size, Timeout, Whole
from edgeroute.core.spending_limits import Tokens
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, BadReply, CloudError, PolicyError, Refused, Unreachable
from edgeroute.http.messages_addresses_and_secrets import SUCCESS, Address, Call, Reply
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads
from edgeroute.system.read_and_check_signatures import check_units, plain_number
from edgeroute.text import read_openai_replies as replies
from edgeroute.text.build_openai_requests import Chat, embedding_request

# Errors of a language model behind OpenAI's API (key, model, length, rate) as exceptions.

SHORT = 1 << 16  # maximum bytes of an error reply to read
NOT_FOUND, TOO_MANY, FAILED = 404, 429, 500
# Messages of a prompt that is too long.
_LONG = re.compile(
    r"context.{0,20}(length|size|window)|maximum context|prompt is too long|too many (input )?tokens", re.IGNORECASE
)
# Messages of a request that asks for more tokens than the account has: smaller ones may succeed.
_TOO_MUCH = re.compile(r"request too large|tokens must be reduced|fewer max_tokens", re.IGNORECASE)
_SPENT = {"insufficient_quota", "billing_hard_limit_reached"}  # codes of a key whose quota is used up
# Type or code of an error within a stream -> the HTTP status that it would have had before.
_STATUS = {
    **dict.fromkeys(replies.LONG, 400), "invalid_request_error": 400, "authentication_error": 401,
    "invalid_api_key": 401, "permission_error": 403, "not_found_error": 404, "rate_limit_error": 429,
    "rate_limit_exceeded": 429, "insufficient_quota": 429, "overloaded_error": 503, "unavailable_error": 503,
}  # fmt: skip


def refusal(reply: Reply, sent: bytes, where: str, model: str, address: Address) -> CloudError:
    """Return the exception for a reply that is no success: a Refused with the status, and almost nothing of the server's text.

    Its message says if the prompt is too long, the model unknown, or the rate or quota used up; a used-up quota is not retriable.
    A refusal by a moderation of the input, or of too many tokens for the account, does not count for the breaker. Logs as
    `check_status`. Raises AssertionError for a success.
    """
    try:
        check_status(reply, where, sent, address)
    except Refused as e:
        error = _error(reply)
        if e.status < FAILED and _is_long(error):
            counts = [error.get(name) for name in ("n_prompt_tokens", "n_ctx")]
            known = all(type(count) is int for count in counts)
            more = f": it has {counts[0]} tokens, and {counts[1]} are the most" if known else ""
            return Refused(f"{where} does not take it: {TOO_LONG}{more}", status=e.status)
        if e.status == NOT_FOUND:
            return Refused(f"{where} answered 404: it has no model {model!r}, or the path of its url is wrong", status=e.status)
        asks_too_much = e.status < FAILED and _TOO_MUCH.search(str(error.get("message"))[:1000]) is not None
        if e.status == TOO_MANY and not asks_too_much:
            return _too_many(where, error, e)
        details = error.get("metadata")
        is_flagged = isinstance(details, Mapping) and "flagged_input" in details  # 403 of OpenRouter's moderation
        if asks_too_much:
            e.retriable, e.retry_after_s = False, None
        e.counts = not (is_flagged or asks_too_much)
        return e
    raise AssertionError("the reply is a success")


def _too_many(where: str, error: Mapping[str, Any], e: Refused) -> Refused:
    """Return the Refused for status 429, with the server's seconds to wait, if any; not retriable if the quota is used up."""
    spent = bool(_codes(error) & _SPENT)
    wait = "" if e.retry_after_s is None else f", and says to wait {e.retry_after_s:g} s"
    what = "the quota of this key is spent" if spent else "too many requests or tokens for this key"
    exception = Refused(f"{where} answered 429: {what}{wait}", status=e.status, retry_after_s=e.retry_after_s)
    exception.retriable = not spent
    return exception


def of_event(error: Any, sent: bytes, where: str, model: str, address: Address) -> CloudError:
    """Return the exception for an error that came in place of an answer, or within one, with the status of a success.

    It is that of a reply with the error's own status: its code, or what `_STATUS` has for its type or code, else 500. See
    `refusal`.
    """
    details = error if isinstance(error, Mapping) else {"message": str(error)}
    codes = [details.get(name) for name in ("code", "status", "type")]
    status = next((code for code in codes if type(code) is int and 400 <= code < 600), None)  # noqa: PLR2004 - HTTP's errors
    status = status or next((_STATUS[code] for code in codes if isinstance(code, str) and code in _STATUS), FAILED)
    body = json.dumps({"error": dict(details)}, default=str).encode()
    return refusal(Reply(status, {"content-type": "application/json"}, body), sent, where, model, address)


def _error(reply: Reply) -> Mapping[str, Any]:
    """Return the error object in a reply's JSON, or the whole object if it has none; a text as `message`; {} for no JSON."""
    with suppress(ValueError, RecursionError):
        document = json_loads(reply.body)
        document = document.get("error", document) if isinstance(document, dict) else document
        if isinstance(document, Mapping):
            return document
        if isinstance(document, str):
            return {"message": document}
    return {}


def _codes(error: Mapping[str, Any]) -> set[str]:
    """Return the type and code of an error."""
    return {code for code in (error.get("type"), error.get("code")) if isinstance(code, str)}


def _is_long(error: Mapping[str, Any]) -> bool:
    """Return True if an error says that the prompt is too long for the model: by its code, type, or the words of its message."""
    message = error.get("message")
    return bool(_codes(error) & replies.LONG) or (isinstance(message, str) and _LONG.search(message[:1000]) is not None)


BASE = "/v1"
ROUTES = ("/chat/completions", "/completions")
_JSON = ("Content-Type", "application/json")
MAX_REPLY = 8 << 20  # default maximum of a reply, bytes: a token's event in a stream takes some hundred
NO_LIST = {404, 405, 501}  # HTTP statuses of servers that do not list their models
EXPECTED = 512  # tokens of an answer to book ahead if its maximum length is unknown
MOST_TOKENS = 1_000_000_000  # maximum tokens of an answer in a request: a larger number is a mistake
# Tokens, beside ten times those expected, beyond which a server's count is not believed: thoughts and images take many.
MARGIN = 200_000
LETTERS = 3  # bytes of an answer's text per token, where tokens are not counted
# Tokens of an image, whatever its bytes; and bytes per token of sound and files, in Base64, beside as many as an image has.
IMAGE, MEDIA_BYTES = 5000, 32
MEDIA = frozenset({"image_url", "input_audio", "file", "video_url"})  # keys of a message's part that hold or name such data
# Most names of models that are stored; characters that a name is shown without.
MOST_SEEN, NOT_SHOWN = 32, re.compile(r"[^\w.:@-]")
TOOLS = 1000  # tokens that a model's template may add for tools

# `finish_reason` -> reason why an answer has no text.
SILENT = {"length": ": it reached its token limit before it said anything", "content_filter": ": a content filter took it"}


class OpenAIChat(OneByOne):
    """A language model behind OpenAI's API: a hosted one, or vLLM, llama-server, Ollama, LiteRT-LM, Ray Serve LLM.

    It answers a text, messages (`[{"role": "user", "content": ...}]`), or a request in OpenAI's JSON (`{"messages": ..., "tools":
    ...}`) with a text. The outputs of an answer are the whole completion in OpenAI's JSON, with `usage`, `finish_reason` and tool
    calls. A request with `input`, a list of texts, asks for embeddings: the answer is an array [texts, size]. What the caller's
    request says goes before the settings here, but for the model, the form of the reply and `n`.

    Args:
        url: of the API, as in https://api.example.com/v1; without a path it is /v1.
        model: name of the model there.
        name: name of the endpoint in answers, traces and messages.
        chat: True: a text is a user's message; False: a text is to be continued.
        system: system message before each chat, unless its messages begin with one.
        max_tokens: most tokens of an answer; None: as many as the server allows.
        temperature: 0: the most probable token each time; None: the server's.
        seed: seed of the random numbers; None: the server's.
        stop: texts at which an answer ends.
        response_format: format that an answer follows, in OpenAI's form.
        request: further keys of each request, as the server takes them.
        logprobs: request the log-probabilities of tokens: without them an answer has no confidence.
        confidence: exp of the 10 % quantile, mean, least or first of its tokens' log-probabilities.
        stream: request answers in pieces, also where they are not shown: a server that stalls is then noticed.
        usage: request the number of tokens in streams, by `stream_options`, which few servers do not take.
        between_s: time within which the next piece must come, once an answer has begun; an event that brings nothing is none.
        labels: texts that are answers; None: any, or the edge model's labels.
        version: text that you change whenever the server has another model under that name.
        timeout_s: time until an answer begins, with all retries; a deadline may end it sooner, and ends the whole answer.
        max_reply_bytes: the longest reply that is read; for embeddings at least 128 KiB a text.
        address: further keyword arguments of `Address`: api_key, headers, verify, cert, retries, terms.

    Raises:
        PolicyError: a value is none, or as `Address`.
    """

    kind = "answers"

    def __init__(
        self,
        url: str,
        *,
        model: str,
        name: str = "cloud",
        chat: bool = True,
        system: str | None = None,
        max_tokens: Count | None = None,
        temperature: Amount | None = None,
        seed: Whole | None = None,
        stop: Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        request: Mapping[str, Any] | None = None,
        logprobs: bool = False,
        confidence: Rule = "quantile",
        stream: bool = True,
        usage: bool = True,
        between_s: Patience = 30.0,
        labels: Iterable[Any] | None = None,
        version: str | None = None,
        timeout_s: Timeout = 60.0,
        max_reply_bytes: Size = MAX_REPLY,
        **address: Any,
    ) -> None:
        check_units(OpenAIChat, {"between_s": between_s})
        if not isinstance(model, str) or not model:
            raise PolicyError("model= takes the model's name at the endpoint")
        self.address = Address(url, timeout_s=timeout_s, max_reply_bytes=max_reply_bytes, **address)
        path = self.address.path
        for route in ROUTES:  # the URL of a route is that of the API, too
            path = path.removesuffix(route)
        self._base = path or BASE
        self.where = f"{self.address.origin}{self._base} ({clean(model, 80)})"
        self.name, self.model, self.between_s, self.labels = name, model, plain_number(between_s), label_names(labels)
        self.version = version
        self._stream, self._usage, self._logprobs = stream, usage, logprobs
        self._seen: set[str] = set()  # names and fingerprints of the models that have answered
        self._chat = Chat(
            chat=chat, system=system, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, grammar=None,
            response_format=response_format, confidence=confidence, request=request, texts_only=False,
        )  # fmt: skip

    @property
    def served(self) -> str:
        """Identity of the models that have answered, for certificates: `model` and `system_fingerprint` of each reply so far."""
        return f"version:{','.join(sorted([*self._seen])) or '?'} described:openai"

    def served_in(self, outputs: Any) -> str:
        """Return the identity, as `served`, of the model that gave these outputs; empty: they name none.

        It is "other" for all models beyond `MOST_SEEN`.
        """
        name = _model_named(outputs)
        return name and f"version:{name if name in self._seen else 'other'} described:openai"

    def identity(self, of: Callable[[Any], str]) -> list[Any]:  # noqa: ARG002 - the protocol's
        """Return the settings on which an answer depends, besides the address; `of` is not used."""
        return [self.model, self.version, self._base, self._logprobs, json.dumps(self._chat.settings, sort_keys=True)]

    def codec(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - the protocol's
        """Return the settings that a request contains, besides its input."""
        return json.dumps([self.model, self._stream, self._usage, self._logprobs, self._chat.settings], sort_keys=True)

    def health(self) -> Talk:
        """Yield a call that checks that the server is there: it lists its models, or replies that it does not."""
        yield from self._models()

    def ping(self) -> Talk:
        """Yield a call for the list of models, which checks the server, the key and the model's name.

        A server without a list of models, or whose list is llama.cpp's, passes.

        Raises:
            Unreachable: no reply came.
            Refused: the status is an error.
            BadReply: the server lists its models, without this one.
        """
        reply = yield from self._models()
        names: list[str] = []
        with suppress(AttributeError, LookupError, RecursionError, TypeError, ValueError):
            listed = json_loads(b"{}" if reply is None else reply.body)["data"]
            if [entry.get("owned_by") for entry in listed] != ["llamacpp"]:  # it answers to any name
                names = [str(entry["id"]) for entry in listed]
        if names and not {self.model, f"{self.model}:latest"} & {*names}:
            there = ", ".join(clean(self.address.hide(name), 40) for name in names[:8])
            raise BadReply(f"{self.where}: there is no model {self.model!r}: it has {there}")

    def _models(self) -> Talk:
        """Yield a probe for the list of models, and return its reply; None: the server has no list (404, 405, 501).

        Raises:
            Unreachable: no reply came.
            Refused: the status is another error.
        """
        reply = yield Call("GET", f"{self._base}/models", probe=True)
        if not reply.status:
            raise Unreachable(bytes(reply.body).decode())
        return None if reply.status in NO_LIST else check_status(reply, self.where, b"", self.address)

    def decode(self, reply: Reply, count: int) -> list[Any]:  # noqa: ARG002 - always one
        """Return the answer in a complete reply, JSON or a stream's events, as the only item of a list.

        Raises:
            BadReply: the reply is no completion, or has no text.
            Refused: its status is an error.
        """
        speech = self._read_answer(Head(reply.status, reply.headers), Call("POST", self._base, tokens=Tokens()))
        body: bytes | None = bytes(reply.body)
        try:
            step = next(speech)
            while True:
                part, body = (body, None) if type(step) is speeches.Read else (None, body)
                step = speech.send(part)
        except StopIteration as end:
            return [end.value]

    def speak(self, x: Any) -> AnswerStream[Prediction]:
        """Yield the steps of the call for one input, and return its answer.

        Raises:
            BadInput: the input is no text, messages or request.
            CloudError: as `hear`.
        """
        return self.hear(self._call(x))

    def hear(self, call: Call) -> AnswerStream[Prediction]:
        """Yield the steps of a call: the call itself, reads, the answer's pieces, counts of tokens. Return the answer.

        For a call that was stored without its expected tokens and bytes they are computed from its body.

        Raises:
            Refused: the server refuses the key, the model, the length of the request or the number of requests; or it failed.
            Unreachable: the answer broke off; `partial` is the answer so far.
            BadReply: the reply is no answer, or has no text.
        """
        if call.tokens is None:  # it was stored in the outbox
            with suppress(ValueError, RecursionError, TypeError, AttributeError):
                sent = json_loads(call.body)
                call = call._replace(tokens=_bound_tokens(sent, len(call.body)), max_reply=_bound_reply(sent, self.address))
        head = yield call
        assert type(head) is Head, "a call is answered with the head of its reply"
        return (yield from self._read_answer(head, call))

    def _read_answer(self, head: Head, call: Call) -> AnswerStream[Prediction]:
        """Yield the steps of reading a reply, streamed or not, and return the answer; errors as by `hear`.

        Its first bytes decide which it is, not its type alone. White space at the beginning is shown with the first text. Token
        counts are yielded as they grow, at the end the server's. An error within the answer has the answer so far as `partial`.
        """
        if head.status not in SUCCESS:
            raise refusal((yield from speeches.read_short(head, SHORT)), call.body, self.where, self.model, self.address)
        whole, begun = yield from _read_beginning(head)
        if whole:
            rest = yield from speeches.read_whole(head)
            return (yield from self._at_once(rest._replace(body=(begun[0] or b"") + rest.body), call))
        gathered, events, start = replies.Gathered(), replies.Events(), b""
        sure = replies.RunningConfidence(self._chat.rule)
        over = progress = shown = False
        blank = ""  # white space that the answer begins with: it may be all of it
        prompt, count = 0 if call.tokens is None else call.tokens.prompt, 0
        seen = Tokens(prompt)
        try:
            while not over:
                wanted = speeches.OVER if gathered.ended else speeches.PROGRESS if progress else speeches.READ
                part = begun.pop() if begun else (yield wanted)
                assert type(part) is bytes or part is None, "what is read is bytes"
                start, progress = start or (part or b"")[:200], False
                for event in events.end() if part is None else events.feed(part):
                    if event.strip() == b"[DONE]":
                        over = True
                        break
                    size = gathered.size
                    text = self._add_event(gathered, event, call, sure)
                    if gathered.progress:
                        progress, count = True, count + (gathered.size > size)
                        seen = Tokens(prompt, max(count, len(gathered.logprobs), gathered.size // LETTERS))
                        yield seen  # in case of a cut
                    if text and (shown or text.strip()):
                        yield AnswerPiece(blank + text, sure.value)
                        shown, blank = True, ""
                    else:
                        blank += text
                if part is None:
                    break
            if over and not gathered.empty:
                gathered.end()
            if not gathered.ended:
                raise self._broken(gathered, start)
        except CloudError as e:
            if not gathered.ended:  # else all that is missing is what comes after it
                came = self._answer(gathered.reply())
                e.partial = None if replies.is_silent(came.value, came.outputs) else came
                raise
        if (tokens := _count_usage(gathered.usage, call.tokens, seen)) is not None:
            yield tokens
        while over and (yield speeches.DONE) is not None:
            pass
        prediction = self._answer(gathered.reply())
        self._check_said(prediction)
        if prediction.value and not shown:  # a refusal, or white space before the call of a tool
            yield AnswerPiece(prediction.value, sure.value)
        return prediction

    def _at_once(self, reply: Reply, call: Call) -> AnswerStream[Prediction]:
        """Yield tokens and text of a reply that is not streamed, and return the answer: a completion, or an array of embeddings.

        Tokens that the server did not count are estimated from the text.

        Raises:
            Refused: it has an error in place of an answer, or within one; then `partial` is the answer.
            BadReply: it is no completion, or has no text.
        """
        document = loads(reply.body, self.where, MAX_VALUES + (call.max_reply or 0) // 32)  # bytes of a vector's number, indented
        if not isinstance(document, dict):
            raise BadReply(f"{self.where} gave a reply that is not a completion: a {type(document).__name__}")
        if document.get("error") is not None or document.get("object") == "error":
            raise of_event(document.get("error") or document, call.body, self.where, self.model, self.address)
        if "data" in document and "choices" not in document:
            count = len(json_loads(call.body)["input"]) if call.body else None
            yield _count_usage(document.get("usage"), call.tokens, call.tokens or Tokens()) or call.tokens or Tokens()
            return replies.embeddings(document, count, self.where, BadReply)
        prediction = self._answer(document)
        choice = document["choices"][0]
        size = replies.content_size([choice.get("text"), choice.get("message")])
        guess = Tokens(0 if call.tokens is None else call.tokens.prompt, size // LETTERS + 1)
        yield _count_usage(document.get("usage"), call.tokens, guess) or guess
        if replies.is_error(choice.get("finish_reason")):
            e = of_event(choice.get("error") or {"type": "error"}, call.body, self.where, self.model, self.address)
            e.partial = None if replies.is_silent(prediction.value, document) else prediction
            raise e
        if choice.get("finish_reason", "") is None:  # as of a stream that ends with `[DONE]`
            choice["finish_reason"] = "stop"
        self._check_said(prediction)
        if prediction.value:
            yield AnswerPiece(prediction.value, None)
        return prediction

    def _add_event(self, gathered: replies.Gathered, event: bytes, call: Call, sure: replies.RunningConfidence) -> str:
        """Add an event of a stream to `gathered`, and its log-probabilities to `sure`.

        Return the text that it brings; empty: none. Raise BadReply for an event that is no completion, and the server's error as
        `of_event` makes it.
        """
        document, before = loads(event, self.where), len(gathered.logprobs)
        try:
            text = gathered.add(document)
            if self._logprobs:
                sure.add(gathered.logprobs[before:])
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            raise BadReply(f"{self.where} gave a reply that is not a completion: {type(e).__name__}") from None
        if gathered.error is not None:
            raise of_event(gathered.error, call.body, self.where, self.model, self.address)
        return str(text or "")

    def _broken(self, gathered: replies.Gathered, start: bytes) -> CloudError:
        """Return the error for a stream that ended too early: Unreachable, or BadReply for what is no stream.

        Nothing is quoted.
        """
        if gathered.empty and start and not start.lstrip().startswith(replies.FIELDS):
            return BadReply(f"{self.where} answered {looks_like(start)}, not a stream")
        return Unreachable(f"{self.where} broke off {'before' if gathered.empty else 'within'} its answer")

    def _check_said(self, prediction: Prediction) -> None:
        """Raise BadReply for a complete answer without text or tool call, saying if its length or a filter was the reason.

        The error does not count for the breaker.
        """
        if replies.is_silent(prediction.value, prediction.outputs):
            why = SILENT.get(truncated(prediction.outputs), "")
            error = BadReply(f"{self.where} gave an answer without a text{why}")
            error.counts = False  # by its own stop texts or few tokens a client would take the cloud from all others
            raise error

    def _answer(self, reply: Mapping[str, Any]) -> Prediction:
        """Return a completion as a prediction, without confidence if no log-probabilities were requested; raise BadReply.

        Stores the name and fingerprint of the model that it names, of at most `MOST_SEEN` models, for `served`.
        """
        prediction = replies.answer(reply, self._chat.rule, self.where, BadReply)
        if (name := _model_named(reply)) and len(self._seen) < MOST_SEEN:
            self._seen.add(name)
        return prediction if self._logprobs else prediction._replace(confidence=None)

    def _call(self, x: Any) -> Call:
        """Return the POST for one input, of embeddings, a chat or a completion, with the most tokens it may take, for booking.

        The caller's keys go before the settings, and its limit of tokens replaces that of the settings, whichever name it has.
        Raise BadInput for no text, messages or request, with the endpoint's address.
        """
        try:
            if (wanted := embedding_request(x)) is not None:
                body, most = json_dumps({**wanted, "model": self.model}), _bound_reply(wanted, self.address)
                return Call("POST", f"{self._base}/embeddings", [_JSON], body, max_reply=most, tokens=Tokens(len(body)))
            request, chat = self._chat.request(x)
            request["model"] = self.model
            if {"max_tokens", "max_completion_tokens"} <= {*request}:  # which servers refuse together: the caller's goes first
                caller = x if isinstance(x, Mapping) else {}
                older = "max_tokens" in caller and "max_completion_tokens" not in caller
                del request["max_completion_tokens" if older else "max_tokens"]
            if self._logprobs:
                request |= {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
            if self._stream:
                request |= {"stream": True, **({"stream_options": {"include_usage": True}} if self._usage else {})}
            body = json_dumps(request)
            tokens = _bound_tokens(request, len(body))
        except BadInput as e:
            raise BadInput(f"{self.where}: {e}") from e
        return Call("POST", self._base + ROUTES[not chat], [_JSON], body, tokens=tokens)

    def __repr__(self) -> str:
        return f"OpenAIChat({self.address.origin + self._base!r}, model={self.model!r})"


def _model_named(outputs: Any) -> str:
    """Return the name and fingerprint of the model that a completion names; empty: none, as for an array of embeddings."""
    fields = outputs if isinstance(outputs, Mapping) else {}
    return "/".join(NOT_SHOWN.sub("", str(fields.get(key) or ""))[:60] for key in ("model", "system_fingerprint")).strip("/")


def _read_beginning(head: Head) -> AnswerStream[tuple[bool, list[bytes | None]]]:
    """Read until it is clear if a reply is one JSON value; return that, and what was read: a piece at most, None at its end.

    Its beginning decides, since proxies drop or change the type. Nothing is read if the type is one of streams.
    """
    kind = head.headers.get("content-type", "").lower()
    as_json = kind.startswith("application/json")
    if not as_json and kind.partition(";")[0].strip() not in {"", "text/plain"}:
        return False, []
    first = yield from speeches.read_first()
    byte = (first or b"").lstrip()[:1]
    if first is not None and byte == b"{":
        first = yield from speeches.read_line(first)
        return not replies.is_piece(first), [first]
    return as_json and not any(field.startswith(byte or b"-") for field in replies.FIELDS), [first]


def _count_usage(usage: Any, expected: Tokens | None, seen: Tokens) -> Tokens | None:
    """Return the tokens in a reply's `usage`; a count that is missing, invalid or 0 is that of `seen`, an estimate.

    What the total has beyond prompt and answer counts as answer. None: it has neither count, or one beyond ten times what was
    expected and `MARGIN`, which is not believed.
    """
    if not isinstance(usage, Mapping):
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    prompt, answer, total = (count if type(count) is int and count >= 0 else None for count in counts)
    if prompt and total:  # some providers count thoughts in the total alone
        answer = max(answer or 0, total - prompt)
    tokens = Tokens(prompt or seen.prompt, answer or seen.answer)
    beyond = expected is not None and any(count > 10 * guess + MARGIN for count, guess in zip(tokens, expected, strict=True))
    return None if (prompt is None and answer is None) or beyond else tokens


def _most(limit: Any) -> int:
    """Return the maximum tokens of an answer: a number above 0, rounded up, also given as a text; else `EXPECTED`.

    Raises:
        BadInput: the number is NaN, or too large for a price to be reserved (`MOST_TOKENS`).
    """
    if isinstance(limit, bool) or not isinstance(limit, int | float | str):
        return EXPECTED
    try:
        most = float(limit)
    except ValueError:  # a text without one: the server's to refuse
        return EXPECTED
    except OverflowError:
        most = inf
    if not most <= MOST_TOKENS:
        quoted = clean(limit, 20) if isinstance(limit, str) else f"{most:g}"
        raise BadInput(f"max_tokens is {quoted}: a request may ask for {MOST_TOKENS:,} at most")
    return ceil(most) if most > 0 else EXPECTED


def _bound_reply(request: Mapping[str, Any], address: Address) -> int | None:
    """Return the maximum bytes of the reply to a request of embeddings, by its number of texts; None: it is another request."""
    texts = request.get("input")
    return max(address.max_reply_bytes, len(texts) * replies.VECTOR) if isinstance(texts, list | tuple) else None


def _bound_tokens(request: Mapping[str, Any], size: int) -> Tokens:
    """Return an upper bound of the tokens of a request, and the most that its answers may have, `EXPECTED` if it does not say.

    No tokenizer makes more tokens than bytes: each byte of the JSON counts as one, also of tools, schemas and earlier messages;
    tools add `TOOLS`. Images, sound and files count by `IMAGE` and `MEDIA_BYTES` instead, as models charge them by another
    measure.

    Args:
        request: the request.
        size: bytes of its JSON.

    Raises:
        BadInput: as `_most`.
    """
    choices = request.get("best_of")
    answers = choices if type(choices) is int and choices > 1 else 1
    size += TOOLS * bool(request.get("tools") or request.get("functions"))
    for message in request.get("messages", ()):
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            for key in MEDIA & part.keys() if isinstance(part, Mapping) else ():
                data = len(json_dumps(part[key]))
                size += IMAGE - data + (0 if key == "image_url" else data // MEDIA_BYTES)
    return Tokens(size, answers * _most(request.get("max_completion_tokens", request.get("max_tokens"))))
