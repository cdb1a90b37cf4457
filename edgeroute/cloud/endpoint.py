"""Interface of HTTP endpoints: the protocol as a generator without I/O (`Talk`); checks of replies and statuses.

A talk yields calls, is sent the replies, and returns the outputs. It does no I/O and has no retries and no clock, so that one
talk serves threads and asyncio: this is no client, which is in endpoint_client.py, with connections, retries and deadlines.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any, Protocol, TypeAlias

from edgeroute.core.walk import new
from edgeroute.errors import BadReply, Refused
from edgeroute.http.messages_addresses_and_secrets import SUCCESS, Address, Call, Reply, retry_after_s
from edgeroute.system.json_codec_and_short_repr import json_loads
from edgeroute.system.quotable_codes_and_secrets import MOST_READ, has_secret, quote
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.wall_clock import now

Talk: TypeAlias = Generator[Call, Reply, Any]


class HttpEndpoint(Protocol):
    """Inference protocol over HTTP, or over the transport returned by an optional `channels()`.

    See `edgeroute.cloud.endpoint_client.Channels`. An endpoint with answers in pieces has further members: `speak(x)`
    and `hear(call)`, generators (`edgeroute.cloud.stream_protocol_and_attempts.AnswerStream`) for the answer to one input, and to
    a call of `encode`; and `between_s`, seconds within which the next piece must come (none: no limit). It gets one input
    at a time.
    """

    name: str
    where: str  # address, as quoted in messages
    labels: tuple[str, ...] | None
    kind: str
    address: Address

    def talk(self, inputs: list[Any]) -> Talk:
        """Yield the calls for inputs, each without the batch axis, and return their outputs as decoded by `confidence.Reader`."""

    def encode(self, inputs: list[Any]) -> Call | None:
        """Return the single call for these inputs; None: the metadata is not known yet, or several calls are needed."""

    def decode(self, reply: Reply, count: int) -> Any:
        """Return the outputs in the reply to such a call for `count` inputs, as a talk returns them."""

    def ping(self) -> Talk:
        """Yield calls that check readiness and fetch metadata, without user data; raise if the endpoint is not ready."""

    def health(self) -> Talk:
        """Yield one call that checks readiness, without user data."""


class OneByOne:
    """Base of endpoints whose protocol has no batches: each input takes a call of its own."""

    one_by_one = True

    def talk(self, inputs: list[Any]) -> Talk:
        """Yield a call for each input, one after another, and return the list of their answers. Raises what `decode` raises."""
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
        """Return the call for one input; overridden."""
        raise NotImplementedError


MAX_VALUES = 250_000  # default maximum of values in a reply: that many parse in some 10 ms
MAX_NESTED = 50_000  # maximum of lists and objects in a reply: they parse ten times as slowly as numbers


def loads(body: bytes | memoryview, where: str, max_values: int = MAX_VALUES) -> Any:
    """Parse a reply's body as JSON. Values are counted first if it has more than `MAX_NESTED` bytes, as parsing holds the GIL.

    Args:
        body: the body.
        where: address of the endpoint, for messages.
        max_values: maximum values.

    Raises:
        BadReply: the body is no JSON, or has too many values, lists or objects. The message names its form, and quotes nothing.
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
    """Return what a body that is not JSON seems to be: empty, an HTML page, compressed, broken JSON, or something else.

    It is a phrase for an error's message; nothing of the body is quoted.
    """
    start = body.lstrip()[:15].lower()
    if not start:
        return "an empty body"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page (a proxy's or a login's, perhaps; is the URL right?)"
    if start.startswith(b"\x1f\x8b"):
        return "compressed data"
    return "broken JSON" if start[:1] in b"{[" else "something else"


def check_status(reply: Reply, where: str, body: bytes = b"", address: Address | None = None) -> Reply:
    """Return a reply of status 2xx; raise Refused for others, with the server's error codes where they may be quoted.

    Logs that message at level INFO, and at level DEBUG the server's text, which may quote the input; not if it has a secret, nor
    with a status about keys (401, 403, 407).

    Args:
        reply: the reply.
        where: address of the endpoint, for messages.
        body: body of the request, of which no message quotes anything.
        address: address whose secrets no message quotes.

    Raises:
        Refused: the status is not 2xx; it has the status, and the seconds of the reply's Retry-After.
    """
    if reply.status in SUCCESS:
        return reply
    secrets = [] if address is None else [*address.hidden, *(value for _, value in address.headers())]
    codes = quote(reply.body, body, secrets)
    message = f"{where} answered {reply.status}" + (f": {codes}" if codes else "") + _HINTS.get(reply.status, "")
    log.info("%s", message)
    if log.isEnabledFor(logging.DEBUG) and reply.status not in _OF_KEYS:
        text = bytes(reply.body[:MOST_READ]).decode("utf-8", "replace")
        log.debug("%s answered with the text: %s", where, "(it has a secret)" if has_secret(text, secrets) else text)
    raise Refused(message, status=reply.status, retry_after_s=retry_after_s(reply.headers, now()))


# HTTP status -> hint at the likely mistake.
_HINTS = {
    **dict.fromkeys((301, 302, 307, 308), " (it redirects: give its final URL)"), 401: " (is api_key set, and current?)",
    403: " (may this api_key do that?)", 404: " (is the URL right, and the model loaded?)",
}  # fmt: skip
_OF_KEYS = (401, 403, 407)  # HTTP statuses whose texts often have a part of the key, and are never logged


def with_key(call: Call, identity: str, n: int) -> Call:
    """Return the call with a header `Idempotency-Key`, by which a server can detect a repetition.

    Without an identity it is unchanged. The key is the request's identity, and from its second call (n = 1) on `/n` behind it.
    """
    if not identity:
        return call
    method, path, headers, *rest = call
    return new(Call, (method, path, (*headers, ("Idempotency-Key", f"{identity}/{n}" if n else identity)), *rest))
