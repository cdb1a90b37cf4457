"""Client of a language model's server on this device, such as llama-server, Ollama or LM Studio: the model `LocalServer`."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from edgeroute.confidence.first_tokens import Prefix, Rule, token_logprobs
from edgeroute.confidence.scores import Score
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.stream_walk import Piece
from edgeroute.core.walk import Prediction
from edgeroute.edge.answer_structure_checks import AnswerCheck, Given
from edgeroute.errors import Busy, ModelError, PolicyError, check_number
from edgeroute.http.connections import Response
from edgeroute.http.loopback_client import SHORT, Local, exchange
from edgeroute.http.messages_addresses_and_secrets import Call, retry_after_s
from edgeroute.system.json_codec_and_short_repr import json_loads
from edgeroute.system.wall_clock import now
from edgeroute.text.build_openai_requests import Chat, checked_score, embedding_request
from edgeroute.text.read_openai_replies import VECTOR, Gathered, answer, embeddings, events, failure
from edgeroute.types import StopToken

OK, UNAUTHORIZED, FORBIDDEN, MISSING, MANY, LOADING = 200, 401, 403, 404, 429, 503


class LocalServer:
    """Edge model behind a server on this device that speaks OpenAI's chat API: llama-server, Ollama, LM Studio.

    It counts as an edge: its inputs do not leave the device, so no permit, consent or limit applies. It therefore connects to
    loopback addresses and unix sockets only, checks the address of each connection, uses no proxy and follows no redirect.

    Inputs and answers are those of `LlamaModel`. A request with `input`, a list of texts, asks for embeddings: the answer is an
    array [texts, size].

    Args:
        url: `http://127.0.0.1:11434/v1`, or `unix:/PATH` of a socket.
        model: name of the model at the server; llama-server needs none.
        key_env: the environment variable with the server's key, sent as `Authorization: Bearer ...`.
        timeout_s: for an answer, where no deadline ends it sooner, seconds.
        max_reply: the longest reply that is read, bytes; for embeddings at least 128 KiB a text.
        parallel: most requests at a time; None: any number, for the server to queue.
        logprobs: requests the log-probabilities of tokens; without them there is no confidence.
        chat: True: a text is a user's message; False: a text is to be continued.
        system: system message before each chat, unless its messages begin with one.
        max_tokens: most tokens of an answer.
        temperature: 0: the most probable token each time; above it at random.
        seed: of the random numbers.
        stop: texts at which an answer ends.
        grammar: grammar that an answer follows, in llama.cpp's GBNF; for llama-server only.
        response_format: format that an answer follows, in OpenAI's form.
        confidence: exp of the 10 % quantile, mean, least or first of its tokens' log-probabilities.
        decide_after: number of first tokens that the confidence is of; None: all tokens.
        request: further keys of each request, as the server takes them.
        score: in place of `confidence`: a function of the completion.
        check: check of its answers' structure (docs/llama.md#structure).
        version: text that you change whenever the server has another model under that name.

    Raises:
        PolicyError: the address is not on this device, or another value is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key_env: str | None = None,
        timeout_s: float = 600.0,
        max_reply: int = 8 << 20,
        parallel: int | None = None,
        logprobs: bool = True,
        chat: bool = True,
        system: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        confidence: Rule = "quantile",
        decide_after: int | None = None,
        request: Mapping[str, Any] | None = None,
        score: Score | None = None,
        check: Given | None = None,
        version: str | None = None,
    ) -> None:
        check_number("timeout_s", timeout_s, above=True)
        check_number("max_reply", max_reply, least=1, whole=True)
        if parallel is not None:
            check_number("parallel", parallel, least=1, whole=True)
        self._local = Local(url)
        self.name = model or "local-server"
        self.score, self.version, self.parallel = checked_score(score, decide_after, confidence), version, parallel
        self._model, self._key_env, self._timeout_s, self._most, self._logprobs = model, key_env, timeout_s, max_reply, logprobs
        self._where = f"{self.name} at {self._local.origin}"
        self._chat = Chat(
            chat=chat, system=system, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, grammar=grammar,
            response_format=response_format, confidence=confidence, request=request,
        )  # fmt: skip
        self.check = AnswerCheck(check, self._chat.options)

    @property
    def settings(self) -> dict[str, Any]:
        """The address, the model's name and the chat settings on which an answer depends, as far as they are known here."""
        return {"server": self._local.origin + self._local.base, "model": self._model, **self._chat.settings}

    def load(self) -> None:
        """Check that the server answers and has the model; sends nothing of a user.

        A server that lists no models passes. Blocks for the reply.

        Raises:
            ModelError: it does not answer, or does not have the model.
        """
        with self._exchange("GET", "/models", b"", None) as (reply, parts):
            if reply.status != OK:
                raise self._status_error(reply, parts, {}, is_request=False)
            text = b"".join(parts)
        try:
            names = [str(entry["id"]) for entry in json_loads(text)["data"]]
        except (LookupError, RecursionError, TypeError, ValueError):
            raise ModelError(f"{self._local.origin} does not list its models: it is no server with OpenAI's API") from None
        if self._model is not None and names and not {self._model, f"{self._model}:latest"} & {*names}:
            key = self._key()
            there = ", ".join(clean(name.replace(key, "***") if key else name, 40) for name in names[:8])
            raise ModelError(f"{self._local.origin} has no model {self._model!r}: it has {there}")

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Prediction]:
        """Send the inputs one after the other; return (text, log-probabilities or confidence, completion) of each.

        Args:
            inputs: texts, messages or requests.
            cancel: a stop request ends the exchange.

        Raises:
            BadInput: one is neither.
            Unfit: one is longer than the context, or contains something that the model does not take.
            Busy: the server says when to come again.
            ModelError: the server did not answer, or the run was stopped.
        """
        return [prediction for x in inputs for prediction in self.run_one(x, cancel)]

    def run_one(self, x: Any, cancel: StopToken | None = None) -> list[Prediction]:
        """Send one input; return a list of one prediction, as `run`. Raises as `stream`.

        An input that asks for embeddings gets these; any other is sent as `stream` does, and its pieces are dropped.
        """
        if (wanted := embedding_request(x)) is not None:
            return [self._embeddings(wanted, cancel)]
        pieces = self.stream(x, cancel)
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            return [end.value]

    def _embeddings(self, request: dict[str, Any], cancel: StopToken | None) -> Prediction:
        """Send a request for embeddings; return them. Raises as `run`."""
        request |= {} if self._model is None else {"model": self._model}
        with self._exchange("POST", "/embeddings", json.dumps(request).encode(), cancel, request["input"]) as (reply, parts):
            if reply.status != OK:
                raise self._status_error(reply, parts, request, is_request=True)
            return embeddings(self._parse(b"".join(parts)), len(request["input"]), self._where)

    def stream(self, x: Any, cancel: StopToken | None = None) -> Generator[str, None, Prediction]:
        """Send one input, yield the answer in pieces, and return the prediction; closing the generator ends the exchange.

        A reply of a server that does not stream is one piece, and so is a refusal.

        Raises:
            BadInput, Unfit, Busy, ModelError: as `run`.
        """
        request, chat = self._chat.request(x)
        is_request, gathered, shown = isinstance(x, Mapping), Gathered(eager=isinstance(self.score, Prefix)), False
        request |= {} if self._model is None else {"model": self._model}
        if self._logprobs:
            request |= {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
        if not (self._logprobs and request.get("tools")):  # which llama-server does not give together in pieces
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/chat/completions" if chat else "/completions"
        if cancel is not None and cancel.asked:
            raise ModelError(f"{self._where} was stopped before the request was sent")
        with self._exchange("POST", path, json.dumps(request).encode(), cancel) as (reply, parts):
            if reply.status != OK:
                raise self._status_error(reply, parts, request, is_request=is_request)
            if reply.headers.get("content-type", "").lower().startswith("application/json"):  # it does not stream
                prediction = self._answer(self._parse(b"".join(parts)), request, is_request=is_request)
                yield Piece(prediction.value, token_logprobs(prediction.outputs))
                return prediction
            for event in events(parts):
                if event == b"[DONE]":
                    gathered.end()
                    break
                if (piece := self._piece(gathered, event, request, is_request=is_request)) is not None:
                    shown |= bool(piece)
                    yield piece
        if not gathered.ended:
            stopped = cancel is not None and cancel.asked
            raise ModelError(f"{self._where} {'was stopped' if stopped else 'broke off'} within its answer")
        prediction = self._answer(gathered.reply(), request, is_request=is_request)
        if not shown and prediction.value:  # a refusal
            yield Piece(prediction.value)
        return prediction

    def _piece(self, gathered: Gathered, event: bytes, request: Mapping[str, Any], *, is_request: bool) -> Piece | None:
        """Add an event of the reply; return its new text, or None if it has none.

        Raises:
            BadInput, Unfit, ModelError: it is an error of the server, or no completion.
        """
        try:
            piece = gathered.add(self._parse(event))
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            raise ModelError(f"{self._where} gave a reply that is not a completion: {type(e).__name__}") from None
        if gathered.error is not None:
            raise self._error(gathered.error, request, is_request=is_request)
        return piece

    def _answer(self, reply: Mapping[str, Any], request: Mapping[str, Any], *, is_request: bool) -> Prediction:
        """Return the prediction of a whole reply.

        Raises:
            BadInput, Unfit, ModelError: it is an error of the server, or no completion.
        """
        if reply.get("error") is not None:
            raise self._error(reply["error"], request, is_request=is_request)
        return answer(reply, self._chat.rule, self._where)

    def _parse(self, text: bytes) -> Mapping[str, Any]:
        """Return the JSON object of a text.

        Raises:
            ModelError: it is none.
        """
        try:
            value = json_loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ModelError(f"{self._where} gave a reply that is not JSON")
        return value

    def _exchange(self, method: str, path: str, body: bytes, cancel: StopToken | None, texts: Sequence[str] = ()) -> Any:
        """Return the context manager of one request to the server, with the texts of which it asks for the embeddings.

        Raises PolicyError without a key that is to be sent.
        """
        kind = [("Content-Type", "application/json")] if body else []
        headers = [("Connection", "close"), *self._headers(), *kind]
        call = Call(method, self._local.base + path, headers, body, max_reply=max(self._most, len(texts) * VECTOR))
        return exchange(self._local, call, self._timeout_s, cancel)

    def _status_error(self, reply: Response, body: Iterator[bytes], request: Mapping[str, Any], *, is_request: bool) -> Exception:
        """Return the exception for a status other than success, after reading the beginning of its body, about `SHORT` bytes.

        A refused key has its own message; the others quote the server's error, without the key. Busy for a server that states by
        Retry-After when to come again.
        """
        status, text = reply.status, b""
        while len(text) <= SHORT and (part := next(body, None)) is not None:
            text += part
        if status in {UNAUTHORIZED, FORBIDDEN}:
            return ModelError(f"{self._where} refuses the key, or the lack of one: see key_env=")
        try:
            reported = json_loads(text)["error"]
        except (LookupError, RecursionError, TypeError, ValueError):
            reported = {}
        error = {**(reported if isinstance(reported, Mapping) else {"message": reported}), "code": status}
        hint = {MISSING: ": it has no such model, or the path of its address is wrong", LOADING: ": it may still be loading"}
        failed = self._error(error, request, is_request=is_request, more=f" (HTTP {status}{hint.get(status, '')})")
        wait_s = retry_after_s(reply.headers, now()) if status in {MANY, LOADING} else None
        return failed if wait_s is None else Busy(str(failed), retry_after_s=wait_s)

    def _error(self, error: Any, request: Mapping[str, Any], *, is_request: bool, more: str = "") -> Exception:
        """Return the exception for an error that the server reports, without the key in its text."""
        details = error if isinstance(error, Mapping) else {"message": str(error)}
        return failure(details, self._where, own=is_request, sent=request, secrets=[self._key()], more=more)

    def _key(self) -> str:
        """Return the key as it is sent, without a line break at its end; empty: there is none."""
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    def _headers(self) -> list[tuple[str, str]]:
        """Return the header with the key, if there is to be one.

        Raises:
            PolicyError: the environment variable has no key.
        """
        if self._key_env is None:
            return []
        key = self._key()
        if not key or not (key.isascii() and key.isprintable()):
            raise PolicyError(f"key_env= names the environment variable {self._key_env!r}, which has no key in it")
        return [("Authorization", f"Bearer {key}")]

    def __repr__(self) -> str:
        return f"LocalServer({self._local.origin!r})"
