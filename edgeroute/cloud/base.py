"""What an HTTP endpoint is: an address with its secrets, and a talk.

A talk is a generator: it yields calls, is sent the replies, and returns the outputs. It does no I/O and knows no retry
and no time, so the same one serves threads and asyncio.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from edgeroute.core.policy import Terms
from edgeroute.errors import BadReply, PolicyError, Refused
from edgeroute.system import json_loads


class Call(NamedTuple):
    """One HTTP request to the endpoint."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    probe: bool = False
    """Sent once, and any reply will do: whatever its status it comes back, as status 0 with the error where there is none.
    A call that is no probe is repeated as `Address.retries` says, and only a success comes back."""


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


Talk: TypeAlias = Generator[Call, Reply, Any]


class HttpEndpoint(Protocol):
    """A protocol over HTTP."""

    name: str
    where: str
    """Its address, as messages quote it."""
    labels: tuple[str, ...] | None
    kind: str
    address: Address

    def talk(self, inputs: list[Any]) -> Talk:
        """Inputs, without the batch axis -> their outputs, as `confidence.Reader` takes them."""

    def encode(self, inputs: list[Any]) -> Call | None:
        """The one call that asks for them all; None: not to be told before the endpoint has been met, or more than one."""

    def decode(self, reply: Reply, count: int) -> Any:
        """What the reply to such a call holds for so many inputs, as a talk returns it."""

    def ping(self) -> Talk:
        """Whether it is there and ready, and all there is to know of it; no user data. Raises like a talk where it is not."""

    def health(self) -> Talk:
        """Whether it is there and ready: one call, no user data."""


class Secret:
    """A value that no repr, log or message shows. `env` names the environment variable that holds it, read when used."""

    __slots__ = ("_env", "_value")

    def __init__(self, value: str | None = None, *, env: str | None = None) -> None:
        self._value, self._env = value, env

    def read(self) -> str:
        """The secret itself.

        Raises:
            PolicyError: the environment variable is not set.
        """
        if self._env is None:
            return self._value or ""
        value = os.environ.get(self._env)
        if not value:
            raise PolicyError(f"the secret is to come from the environment variable {self._env}, which is not set")
        return value

    def __repr__(self) -> str:
        return f"Secret(env={self._env!r})" if self._env else "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._value, self._env) == (other._value, other._env)

    def __hash__(self) -> int:
        return hash((self._value, self._env))


class Address:
    """Where an endpoint is and how it is reached.

    Args:
        url: http or https, without user or password.
        api_key: sent as `Authorization: Bearer ...`; a string, or a `Secret`.
        headers: sent with each request; values are strings or `Secret`s.
        verify: True: by the system's and certifi's authorities; a path: by this file's alone; False: not at all.
        cert: paths of the client's certificate and key, for mutual TLS.
        timeout_s: for one request with all its retries, where the deadline does not say less.
        retries: how often a request that failed is sent again.
        max_reply_bytes: a longer reply is refused before it is read.
        terms: what `Terms` takes: usd_per_call, usd_per_mb, joules_per_call, joules_per_mb, calls_per_s, max_concurrent.

    Raises:
        PolicyError: the URL is none, or carries a password.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | Secret | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        verify: bool | str | Path = True,
        cert: tuple[str | Path, str | Path] | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
        max_reply_bytes: int = 16 << 20,
        **terms: Any,
    ) -> None:
        self.terms = Terms(**terms)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its text quotes what may be half a password
            raise PolicyError("the cloud's address is not a URL: its host or port cannot be read") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise PolicyError(f"{bare(url)!r} is not an http:// or https:// URL")
        if "@" in parts.netloc:
            raise PolicyError(f"{bare(url)!r} carries a user or password: give it as api_key or in headers")
        if parts.query or parts.fragment:
            raise PolicyError(f"{bare(url)!r}: no query or fragment can be part of it (a key goes in api_key or headers)")
        self.https = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.https else 80)
        try:
            self.netloc = parts.netloc.encode("idna")
        except UnicodeError:
            raise PolicyError(f"{bare(url)!r}: its host is not one that can be looked up") from None
        self.origin = f"{parts.scheme}://{self.netloc.decode()}"
        self.path = parts.path.rstrip("/")
        self.verify, self.cert = verify, cert
        self.timeout_s, self.retries, self.max_reply_bytes = timeout_s, retries, max_reply_bytes
        self._headers = {name: ("", _secret(value)) for name, value in (headers or {}).items()}
        if api_key is not None:
            self._headers["Authorization"] = ("Bearer ", _secret(api_key))

    def headers(self) -> list[tuple[str, str]]:
        """The headers with their secrets, for the wire alone.

        Raises:
            PolicyError: a value cannot be sent.
        """
        found = [(name, before + secret.read()) for name, (before, secret) in self._headers.items()]
        for name, value in found:
            if not _SENDABLE.fullmatch(value):  # checked here, since the library below would quote the value
                raise PolicyError(f"the header {name!r} has a value that cannot be sent: is there a line break in it?")
        return found

    def hide(self, text: str) -> str:
        """The text without the secrets that a server may have quoted in it."""
        for _, secret in self._headers.values():
            for word in secret.read().split():
                if len(word) >= _SECRET_LENGTH:
                    text = text.replace(word, "***")
        return text

    def __repr__(self) -> str:
        return f"Address({self.origin + self.path!r})"


def _secret(value: str | Secret) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


_SENDABLE = re.compile(r"([!-~]([\t -~]*[!-~])?)?")
_SECRET_LENGTH = 8
"""A shorter word of a header's value is no secret, and hiding it would garble messages."""


def bare(url: str) -> str:
    """The URL without user, password, query and fragment, for messages."""
    scheme, mark, rest = url.rpartition("://")
    return scheme + mark + re.split(r"[?#]", rest.rpartition("@")[2])[0]


def loads(body: bytes | memoryview, where: str) -> Any:
    """The JSON in a reply's body.

    Raises:
        BadReply: it is not JSON; the message says what it looks like instead.
    """
    try:
        return json_loads(body)
    except (ValueError, RecursionError) as e:
        raise BadReply(f"{where} answered {looks_like(bytes(body[:200]))}, not JSON") from e


def looks_like(body: bytes) -> str:
    """What a body that should be JSON seems to be, without quoting it."""
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


def checked(reply: Reply, where: str, hide: Callable[[str], str] = str) -> Reply:
    """The reply, if it is a success. `hide` takes secrets out of what the server says.

    Raises:
        Refused: its status says otherwise.
    """
    if 200 <= reply.status < 300:  # noqa: PLR2004 - HTTP's own numbers
        return reply
    message = ""
    if reply.headers.get("content-type", "").startswith("application/json"):
        try:
            said = loads(reply.body, where)
            message = str(said.get("error") or said.get("detail") or "") if isinstance(said, dict) else ""
        except BadReply:
            pass
    hint = _HINTS.get(reply.status, "")
    raise Refused(
        f"{where} answered {reply.status}" + (f": {hide(message)[:200]}" if message else "") + hint,
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
        return None  # a date: clocks differ, so the jitter decides
