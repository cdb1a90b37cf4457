"""HTTP endpoint interface: the protocol as a sans-I/O generator (`Talk`).

A talk yields calls, is sent the replies, and returns the outputs. It does no I/O and has no retries and no clock, so the
same one serves threads and asyncio.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Protocol, TypeAlias

from edgeroute.errors import BadReply, Refused
from edgeroute.http.messages import SUCCESS, Address, Call, Reply
from edgeroute.system.process import json_loads
from edgeroute.system.quoting import quote

Talk: TypeAlias = Generator[Call, Reply, Any]


class HttpEndpoint(Protocol):
    """An inference protocol over HTTP; or over what its optional `channels()` makes: see `edgeroute.cloud.client.Channels`.

    One whose answers come in pieces has two more members, generators of a `edgeroute.cloud.pieces.Speech`: `speak(x)`, the
    answer to one input, and `hear(call)`, that to a call from `encode`; and `between_s`, seconds within which the next
    piece must come (none: no limit). It is asked for one input at a time.
    """

    name: str
    where: str
    """Its address, as quoted in messages."""
    labels: tuple[str, ...] | None
    kind: str
    address: Address

    def talk(self, inputs: list[Any]) -> Talk:
        """Inputs without the batch axis -> their outputs, as decoded by `confidence.Reader`."""

    def encode(self, inputs: list[Any]) -> Call | None:
        """The single call for these inputs; None: the endpoint's metadata is not known yet, or it takes several calls."""

    def decode(self, reply: Reply, count: int) -> Any:
        """The outputs in the reply to such a call for `count` inputs, as a talk returns them."""

    def ping(self) -> Talk:
        """Checks readiness and fetches metadata, without user data. Raises like a talk if the endpoint is not ready."""

    def health(self) -> Talk:
        """Readiness check: one call, without user data."""


class OneByOne:
    """Base of endpoints whose protocol has no batches: each input takes a call of its own."""

    one_by_one = True

    def talk(self, inputs: list[Any]) -> Talk:
        """Make one request per input."""
        answers = []
        for x in inputs:
            reply = yield self._call(x)
            answers += self.decode(reply, 1)
        return answers

    def encode(self, inputs: list[Any]) -> Call | None:
        """Return the call for one input; None for several."""
        return self._call(inputs[0]) if len(inputs) == 1 else None

    def decode(self, reply: Reply, count: int) -> list[Any]:
        """Return the answer in a reply, in a list."""
        raise NotImplementedError

    def _call(self, x: Any) -> Call:
        raise NotImplementedError


MAX_VALUES = 250_000
"""Values in a reply, unless its protocol expects more numbers: they parse in some 10 ms."""
MAX_NESTED = 50_000
"""Lists and objects in a reply: they take ten times as long as numbers."""


def loads(body: bytes | memoryview, where: str, max_values: int = MAX_VALUES) -> Any:
    """Parses a reply's body as JSON. How many values there are at most is counted before: parsing holds the GIL.

    Raises:
        BadReply: not JSON, where the message says what it looks like instead; or too many values.
    """
    if len(body) > MAX_NESTED:  # what is shorter cannot hold as many
        body = bytes(body)  # a no-op for bytes
        values, nested = body.count(b",") + 1, body.count(b"[") + body.count(b"{")
        if values > max_values or nested > MAX_NESTED:
            raise BadReply(f"{where} answered {values} values in {nested} lists and objects: more than expected, unread")
    try:  # `suppress` would take four calls
        return json_loads(body)
    except (ValueError, RecursionError):
        pass  # none is chained: it holds the whole reply
    raise BadReply(f"{where} answered {looks_like(bytes(body[:200]))}, not JSON")


def looks_like(body: bytes) -> str:
    """Describes a non-JSON body without quoting it."""
    start = body.lstrip()[:15].lower()
    if not start:
        return "an empty body"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page (a proxy's or a login's, perhaps; is the URL right?)"
    if start.startswith(b"\x1f\x8b"):
        return "compressed data"
    if start[:1] in b"{[":
        return "broken JSON"
    return "something else"


def checked(reply: Reply, where: str, body: bytes = b"", address: Address | None = None) -> Reply:
    """Returns a successful reply. `body`, and the headers of `address`: what was sent, which no message quotes.

    Raises:
        Refused: the status is not 2xx.
    """
    if reply.status in SUCCESS:
        return reply
    message = ""
    if re.match(r"application/(problem\+)?json", reply.headers.get("content-type", "")):
        message = quote(reply.body, body, () if address is None else [value for _, value in address.headers()])
    hint = _HINTS.get(reply.status, "")
    raise Refused(
        f"{where} answered {reply.status}" + (f": {message}" if message else "") + hint,
        status=reply.status,
        retry_after_s=_retry_after_s(reply.headers.get("retry-after")),
    )


_HINTS = {
    **dict.fromkeys((301, 302, 307, 308), " (it redirects: give its final URL)"), 401: " (is api_key set, and current?)",
    403: " (may this api_key do that?)", 404: " (is the URL right, and the model loaded?)",
}  # fmt: skip


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        return None  # an HTTP date: not used, since clocks differ; the back-off applies
