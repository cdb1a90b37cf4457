"""Plain JSON over HTTP: one POST per input to any server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from edgeroute.cloud.base import Address, Call, Reply, Talk, loads
from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.errors import BadReply, Unreachable
from edgeroute.system import contained, json_dumps


class PlainJson:
    """POSTs one input as JSON, and extracts the answer from the reply by path.

    Args:
        url: to post to.
        name: of the endpoint in answers, traces and messages.
        encode: input -> JSON-serialisable body; None: `{"input": input}`, arrays as nested lists.
        value: path of the value in the reply, keys and indices separated by dots: `result.0.label`.
        confidence: path of the confidence; None: none. A reply without it has no confidence.
        logits: path of an array [classes], used instead of `value` and `confidence`.
        kind: what that array is, "probabilities" for one; None: logits.
        labels: class index -> value, for `logits`; None: the edge model's.
        ping_path: health-check path that answers 2xx; None: only the connection is tested, with OPTIONS.
        address: keyword arguments of `Address`: api_key, headers, verify, cert, timeout_s, retries, max_reply_bytes, terms.
    """

    one_by_one = True
    """Each input takes a call of its own."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "cloud",
        encode: Callable[[Any], Any] | None = None,
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
        self._encode = encode or _plain
        self.value, self.confidence, self.logits, self.ping_path = value, confidence, logits, ping_path

    def identity(self, of: Callable[[Any], str]) -> list[str | None]:
        """What decides an answer besides the address; `of` takes the fingerprint of a function."""
        return [of(self._encode), self.value, self.confidence, self.logits]

    def ping(self) -> Talk:
        """Checks that the server is there."""
        if self.ping_path is not None:
            yield Call("GET", self.ping_path)
            return
        reply = yield Call("OPTIONS", self.address.path or "/", probe=True)
        if not reply.status:
            raise Unreachable(bytes(reply.body).decode())

    def health(self) -> Talk:
        """Checks that the server is there."""
        return self.ping()

    def talk(self, inputs: list[Any]) -> Talk:
        """One request per input: an unknown protocol has no batches."""
        answers = []
        for x in inputs:
            reply = yield self._call(x)
            answers += self.decode(reply, 1)
        return answers

    def encode(self, inputs: list[Any]) -> Call | None:
        """The call for one input; None for several."""
        return self._call(inputs[0]) if len(inputs) == 1 else None

    def decode(self, reply: Reply, count: int) -> list[Any]:  # noqa: ARG002 - always one
        """The answer in a reply: one (value, confidence), or logits [classes].

        Raises:
            BadReply: a path is missing, or a value has the wrong type.
        """
        said = loads(reply.body, self.where)
        if self.logits is not None:
            return [self._numbers(said, self.logits)]
        sure = None if self.confidence is None else self._pick(said, self.confidence, optional=True)
        if isinstance(sure, bool) or not (sure is None or isinstance(sure, int | float)):
            raise BadReply(f"{self.where}: {self.confidence!r} is {type(sure).__name__}, not a number")
        return [(self._pick(said, self.value), sure)]

    def _call(self, x: Any) -> Call:
        return Call(
            "POST", self.address.path or "/", [("Content-Type", "application/json")], json_dumps(contained(self._encode, x))
        )

    def _numbers(self, said: Any, path: str) -> Any:
        picked, array = self._pick(said, path), None
        with suppress(TypeError, ValueError, OverflowError):  # none is chained: it quotes what is no number
            given = np.atleast_1d(picked)
            with np.errstate(over="ignore"):
                array = given.astype(np.float32).reshape(-1)
        if array is None:
            raise BadReply(f"{self.where}: {path!r} is not an array of numbers")
        if given.dtype.kind in "USb" or given.size != given.shape[-1]:  # a batch axis of 1 may be there
            raise BadReply(f"{self.where}: {path!r} is not an array of numbers, one for each class")
        if not array.size or not (array < np.inf).all():
            raise BadReply(f"{self.where}: {path!r} is empty, or holds NaN or infinity")
        return array

    def _pick(self, said: Any, path: str, *, optional: bool = False) -> Any:
        at = said
        for key in path.split("."):
            inner: Any = _MISSING
            with suppress(KeyError, IndexError, TypeError, ValueError):
                inner = at[int(key)] if isinstance(at, list) else at[key]
            if inner is _MISSING:
                if optional:
                    return None
                there = f"an object with {len(at)} other keys" if isinstance(at, dict) else type(at).__name__
                raise BadReply(f"{self.where}: no {path!r} in the reply; where {key!r} should be there is {there}")
            at = inner
        return at

    def __repr__(self) -> str:
        return f"PlainJson({self.where!r})"


_MISSING = object()


def _plain(x: Any) -> Any:
    return {"input": x.tolist() if isinstance(x, np.ndarray) else x}
