"""Endpoint of any HTTP API that answers JSON: one POST per input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from edgeroute.cloud.endpoint import OneByOne, Talk, check_status, loads
from edgeroute.cloud.function_backend_and_reply_checks import checked_send_edge
from edgeroute.cloud.json_and_form_body_templates import MAX_BODY, Body, BodyType, to_json
from edgeroute.confidence.output_forms_labels_and_comparison import best_label, label_names, least_score
from edgeroute.confidence.output_reader import checked_kind
from edgeroute.core.setting_unit_types import Size
from edgeroute.errors import BadInput, BadReply, PolicyError, Unreachable
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply, chat_advice
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.types import Escalated


class PlainJson(OneByOne):
    """Endpoint that POSTs one input, as JSON or as fields, and extracts the answer from the JSON reply by path.

    Args:
        url: URL of the POST.
        name: name of the endpoint in answers, traces and messages.
        body: body with placeholders such as `{input}` and `{input.jpeg|base64}` (inputs.md); None: `{"input": "{input}"}`, or of
            fields the input's own. Arrays become nested lists.
        body_type: form of the body: JSON, or the fields of an upload or a form.
        max_body_bytes: maximum size of a body; a longer one is refused.
        encode: input -> JSON-serialisable body, in place of `body`; with `send_edge`, input and the edge's answer.
        send_edge: send the edge's answer along, where the body has `{edge}`; without `body` as `edge` beside `input`
            (docs/payloads.md).
        value: path of the value in the reply, keys and indices separated by dots: `result.0.label`. The default also reads a
            pipeline's labels with scores.
        confidence: path of the confidence; None: none. A reply without it has no confidence.
        logits: path of an array [classes], used instead of `value` and `confidence`.
        kind: kind of that array, "probabilities" for example; None: logits.
        labels: names of the classes in order, for `logits`; None: the edge model's.
        ping_path: health-check path that answers 2xx; None: only the connection is tested, with OPTIONS.
        address: keyword arguments of `Address`: api_key, headers, verify, cert, timeout_s, retries, max_reply_bytes, terms.

    Raises:
        PolicyError: the body is no valid template, or missing for an API of chats; or as for `Address`.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "cloud",
        body_type: BodyType = "json",
        send_edge: bool = False,
        body: Any = None,
        max_body_bytes: Size = MAX_BODY,
        encode: Callable[..., Any] | None = None,
        value: str = "value",
        confidence: str | None = "confidence",
        logits: str | None = None,
        kind: str | None = None,
        labels: Iterable[Any] | None = None,
        ping_path: str | None = None,
        **address: Any,
    ) -> None:
        self.address = Address(url, **address)
        self.where = self.address.origin + self.address.path
        self.name, self.labels = name, label_names(labels)
        self.kind = (checked_kind(kind) or "logits") if logits else "answers"
        if encode is not None and (body is not None or body_type != "json"):
            raise PolicyError("encode= makes the whole body, as JSON: give it, or body= and body_type=")
        if body_type != "json" and any(header.lower() == "content-type" for header in address.get("headers") or ()):
            raise PolicyError(f"headers has Content-Type, which a {body_type} body has of its own: leave it out")
        self.send_edge = checked_send_edge(send_edge)
        own = body is not None or encode is not None or self.address.path.rstrip("/").endswith("/v1")  # which may be anybody's
        if not own and (advice := chat_advice(self.address.path)):
            raise PolicyError(f'{advice} (OpenAIChat), or a body, since it takes no {{"input": ...}}')
        if body is None:
            body = _WITH_EDGE if send_edge and body_type == "json" else _DEFAULT[body_type == "json"]
        self._encode, self.body = encode, Body(body, body_type, max_body_bytes, edge=send_edge)
        self.value, self.confidence, self.logits, self.ping_path = value, confidence, logits, ping_path

    @property
    def prompt(self) -> bool:
        """True if inputs are encoded in no time: without a function of the application."""
        return self._encode is None

    def identity(self, of: Callable[[Any], str]) -> list[str | None]:
        """Return the settings on which an answer depends, besides the address; `of` returns the fingerprint of a function."""
        body = self.body.identity if self._encode is None else of(self._encode)
        return [body, self.value, self.confidence, self.logits]

    def codec(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - the protocol's
        """Return the body's template; empty: the default."""
        return "" if self.body.identity in _DEFAULTS else self.body.identity

    def ping(self) -> Talk:
        """Yield a call that checks that the server is there: a GET of `ping_path`, or else OPTIONS, to which most replies pass.

        Raises:
            Unreachable: no reply came.
            Refused: the GET's status is no 2xx, or that of OPTIONS 500, 502, 503 or 504.
        """
        if self.ping_path is not None:
            yield Call("GET", self.ping_path)
            return
        reply = yield Call("OPTIONS", self.address.path or "/", probe=True)
        if not reply.status:
            raise Unreachable(bytes(reply.body).decode())
        if reply.status in _FAILED:
            check_status(reply, self.where, b"", self.address)

    def health(self) -> Talk:
        """Yield a call that checks that the server is there; see `ping`."""
        return self.ping()

    def decode(self, reply: Reply, count: int) -> list[Any]:  # noqa: ARG002 - always one
        """Return the answer in a reply, as the only item of a list: (value, confidence), or logits [classes].

        The confidence is None if its path is not configured or not in the reply. By the default path of the value, a pipeline's
        labels with scores are read too.

        Raises:
            BadReply: the body is no JSON, a path is missing, or a value has the wrong type.
        """
        document, path = loads(reply.body, self.where), self.confidence
        if self.logits is not None:
            return [self._numbers(document, self.logits)]
        if self.value == "value" and type(best := best_label(document)) is tuple:
            document, path = {"value": best[0], "confidence": best[1]}, path and "confidence"
        elif self.value == "value" and isinstance(document, list) and least_score(document) is not None:
            return [document if path else (document, None)]
        sure = None if path is None else self._pick(document, path, optional=True)
        if isinstance(sure, bool) or not (sure is None or isinstance(sure, int | float)):
            raise BadReply(f"{self.where}: {path!r} is {type(sure).__name__}, not a number")
        return [(self._pick(document, self.value), sure)]

    def _call(self, x: Any) -> Call:
        """Return the POST for one input: its body by the template, or the JSON of what the application's `encode=` returns.

        With `send_edge` both get the edge's answer, too. Raise BadInput, with the endpoint's address, if the body cannot be made.
        """
        edge = None
        if self.send_edge and type(x) is Escalated:
            x, edge = x
        try:
            if self._encode is None:
                kind, body = self.body(x, edge)
            else:
                arguments = (x, edge) if self.send_edge else (x,)
                kind, body = "application/json", to_json(call_contained(self._encode, *arguments), "what encode= returned")
        except BadInput as e:
            raise BadInput(f"{self.where}: {e}") from e
        return Call("POST", self.address.path or "/", [("Content-Type", kind)], body)

    def _numbers(self, document: Any, path: str) -> Any:
        """Return the numbers at a path, [classes], as float32; from a single number too, and without batch axes of 1.

        Raises:
            BadReply: texts, truth values, no numbers, NaN, or infinity. Minus infinity is valid: the logarithm of 0.
        """
        picked, array = self._pick(document, path), None
        with suppress(TypeError, ValueError, OverflowError):  # none is chained: it quotes what is no number
            picked_values = np.atleast_1d(picked)
            with np.errstate(over="ignore"):
                array = picked_values.astype(np.float32).reshape(-1)
        if array is None:
            raise BadReply(f"{self.where}: {path!r} is not an array of numbers")
        if picked_values.dtype.kind in "USb" or picked_values.size != picked_values.shape[-1]:  # a batch axis of 1 may be there
            raise BadReply(f"{self.where}: {path!r} is not an array of numbers, one for each class")
        if not array.size or not (array < np.inf).all():
            raise BadReply(f"{self.where}: {path!r} is empty, or holds NaN or infinity")
        return array

    def _pick(self, document: Any, path: str, *, optional: bool = False) -> Any:
        """Return the value at a path of keys and indices separated by dots; None if it is missing and `optional`.

        Raise BadReply if it is missing; the message quotes nothing of the reply.
        """
        level = document
        for key in path.split("."):
            inner: Any = _MISSING
            with suppress(KeyError, IndexError, TypeError, ValueError):
                inner = level[int(key)] if isinstance(level, list) else level[key]
            if inner is _MISSING:
                if optional:
                    return None
                there = "an object of other keys" if isinstance(level, dict) else type(level).__name__
                why = f"give its path, such as result.0.label, as value or logits; where {key!r} should be there is {there}"
                raise BadReply(f"{self.where}: no {path!r} in the reply: {why}")
            level = inner
        return level

    def __repr__(self) -> str:
        return f"PlainJson({self.where!r})"


_MISSING = object()
_FAILED = {500, 502, 503, 504}  # HTTP statuses of OPTIONS by which a server does not work; others may refuse the method alone

_DEFAULT: tuple[Any, ...] = ("{input}", {"input": "{input}"})
_WITH_EDGE = {**_DEFAULT[1], "edge": "{edge}"}
_DEFAULTS = {Body(_DEFAULT[1]).identity}
