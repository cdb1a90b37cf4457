"""A language model behind a server on this device, such as llama-server, Ollama or LM Studio."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from edgeroute.confidence.prefix import Prefix, Rule, token_logprobs
from edgeroute.confidence.scores import Score
from edgeroute.core.stream import Piece
from edgeroute.core.walk import Prediction
from edgeroute.core.words import clean
from edgeroute.errors import ModelError, PolicyError, check_number
from edgeroute.http.loopback import SHORT, Exchange, Head, Local
from edgeroute.system.process import json_loads
from edgeroute.text.reply import Gathered, answer, events, failure
from edgeroute.text.request import Chat, checked_score
from edgeroute.types import StopToken

OK, UNAUTHORIZED, FORBIDDEN, MISSING, LOADING = 200, 401, 403, 404, 503


class LocalServer:
    """A language model behind a server on this device that speaks OpenAI's chat API: llama-server, Ollama, LM Studio.

    It is an edge: what it is sent does not leave the device, so no permit, consent or limit holds it. It therefore connects to
    loopback addresses and unix sockets alone, looks at the address of each connection, uses no proxy and follows no redirect.

    It takes and gives what `LlamaModel` does.

    Args:
        url: `http://127.0.0.1:11434/v1`, or `unix:/PATH` of a socket.
        model: the model's name there; llama-server needs none.
        key_env: the environment variable with the server's key, sent as `Authorization: Bearer ...`.
        timeout_s: for an answer, where no deadline ends it sooner, seconds.
        max_reply: the longest reply that is read, bytes.
        parallel: how many answers may be asked for at a time; None: any number, for the server to queue.
        logprobs: whether to ask for the log-probabilities of tokens: without them there is no confidence.
        chat: whether a text is what a user says; if not, it is a text to be continued.
        system: what the model is told before each chat, unless its messages begin with that.
        max_tokens: of an answer, at most.
        temperature: 0: the most probable token each time; above it tokens are drawn.
        seed: of what is drawn.
        stop: texts at which an answer ends.
        grammar: that an answer follows, in llama.cpp's GBNF; llama-server's alone.
        response_format: likewise, as OpenAI has it, as in {"type": "json_schema", "json_schema": {"schema": ...}}.
        confidence: of an answer, from its tokens' log-probabilities: exp of their 10 % quantile, mean, least or first.
        decide_after: the confidence is that of so many first tokens, once they are there; None: that of all, at the end.
        request: further keys of each request, as the server takes them.
        score: in place of `confidence`: a function of the completion.
        version: changed by you whenever the server has another model under that name, for certificates and the cache on disk.

    Raises:
        PolicyError: the address is not this device's own, or another value is none.
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

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on, as far as it is known here."""
        return {"server": self._local.origin + self._local.base, "model": self._model, **self._chat.settings}

    def load(self) -> None:
        """Asks whether the server is there and has the model; nothing of a user is sent.

        Raises:
            ModelError: it is not, or has not.
        """
        with Exchange(self._local, self._timeout_s, self._most, None).send("GET", "/models", b"", self._headers()) as (
            head,
            parts,
        ):
            if head.status != OK:
                raise self._refused(head, parts, {}, own=False)
            text = b"".join(parts)
        try:
            names = [str(one["id"]) for one in json_loads(text)["data"]]
        except (LookupError, RecursionError, TypeError, ValueError):
            raise ModelError(f"{self._local.origin} does not list its models: it is no server with OpenAI's API") from None
        if self._model is not None and names and not {self._model, f"{self._model}:latest"} & {*names}:
            there = ", ".join(clean(self._without_key(name), 40) for name in names[:8])
            raise ModelError(f"{self._local.origin} has no model {self._model!r}: it has {there}")

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Prediction]:
        """Texts, messages or requests, one after the other -> (text, log-probabilities or confidence, completion) of each.

        Raises:
            BadInput: one of them is none.
            Unfit: it is longer than the context, or has in it what the model does not take.
            ModelError: the server is not there, did not answer, or the run was stopped.
        """
        return [one for x in inputs for one in self.run_one(x, cancel)]

    def run_one(self, x: Any, cancel: StopToken | None = None) -> list[Prediction]:
        """The same for one input."""
        pieces = self.stream(x, cancel)
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            return [end.value]

    def stream(self, x: Any, cancel: StopToken | None = None) -> Generator[str, None, Prediction]:
        """The same for one input, in pieces; closing the generator ends the exchange."""
        request, chat = self._chat.request(x)
        own, gathered, shown = isinstance(x, Mapping), Gathered(eager=isinstance(self.score, Prefix)), False
        if self._model is not None:
            request["model"] = self._model
        if self._logprobs:
            request |= {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
        if not (self._logprobs and request.get("tools")):  # which llama-server does not give together in pieces
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/chat/completions" if chat else "/completions"
        if cancel is not None and cancel.asked:
            raise ModelError(f"{self._where} was stopped before it was asked")
        exchange = Exchange(self._local, self._timeout_s, self._most, cancel)
        with exchange.send("POST", path, json.dumps(request).encode(), self._headers()) as (head, parts):
            if head.status != OK:
                raise self._refused(head, parts, request, own=own)
            if head.kind.startswith("application/json"):  # it does not stream
                found = self._answer(self._parsed(b"".join(parts)), request, own=own)
                yield Piece(found.value, token_logprobs(found.outputs))
                return found
            for event in events(parts):
                if event == b"[DONE]":
                    gathered.end()
                    break
                if (piece := self._piece(gathered, event, request, own=own)) is not None:
                    shown |= bool(piece)
                    yield piece
        if cancel is not None and cancel.asked and not gathered.ended:
            raise ModelError(f"{self._where} was stopped within its answer")
        if not gathered.ended:
            raise ModelError(f"{self._where} broke off within its answer")
        found = self._answer(gathered.reply(), request, own=own)
        if not shown and found.value:  # a refusal
            yield Piece(found.value)
        return found

    def _piece(self, gathered: Gathered, event: bytes, request: Mapping[str, Any], *, own: bool) -> Piece | None:
        try:
            piece = gathered.add(self._parsed(event))
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            raise ModelError(f"{self._where} gave a reply that is no completion: {type(e).__name__}") from None
        if gathered.error is not None:
            raise self._failed(gathered.error, request, own=own)
        return piece

    def _answer(self, reply: Mapping[str, Any], request: Mapping[str, Any], *, own: bool) -> Prediction:
        if reply.get("error") is not None:
            raise self._failed(reply["error"], request, own=own)
        return answer(reply, self._chat.rule, self._where)

    def _parsed(self, text: bytes) -> Mapping[str, Any]:
        try:
            found = json_loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ModelError(f"{self._where} gave a reply that is not JSON")
        return found

    def _refused(self, head: Head, parts: Iterator[bytes], request: Mapping[str, Any], *, own: bool) -> Exception:
        """The exception for another status than success."""
        text = b""
        for part in parts:
            text += part
            if len(text) > SHORT:
                break
        if head.status in {UNAUTHORIZED, FORBIDDEN}:
            return ModelError(f"{self._where} refuses the key, or the lack of one: see key_env=")
        try:
            said = json_loads(text)["error"]
        except (LookupError, RecursionError, TypeError, ValueError):
            said = {}
        error = said if isinstance(said, Mapping) else {"message": said}
        hint = {
            MISSING: ": there is no such model, or its API has another path than the address",
            LOADING: ": it may still be loading",
        }
        more = f" (HTTP {head.status}{hint.get(head.status, '')})"
        return self._failed({**error, "code": head.status}, request, own=own, more=more)

    def _failed(self, error: Any, request: Mapping[str, Any], *, own: bool, more: str = "") -> Exception:
        told = error if isinstance(error, Mapping) else {"message": str(error)}
        return failure(told, self._where, own=own, sent=request, secrets=[self._key()], more=more)

    def _without_key(self, said: str) -> str:
        key = self._key()
        return said.replace(key, "***") if key else said

    def _key(self) -> str:
        """As it is sent: without the line break that a file of it ends with. Empty: there is none."""
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    def _headers(self) -> list[tuple[str, str]]:
        if self._key_env is None:
            return []
        key = self._key()
        if not key or not (key.isascii() and key.isprintable()):
            raise PolicyError(f"key_env= names the environment variable {self._key_env!r}, which has no key in it")
        return [("Authorization", f"Bearer {key}")]

    def __repr__(self) -> str:
        return f"LocalServer({self._local.origin!r})"
