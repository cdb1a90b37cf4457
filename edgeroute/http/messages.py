"""HTTP requests and replies as values, the address that they are for, and its secrets."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgeroute.core.spending import Tokens
from edgeroute.core.units import Size, Timeout, Whole
from edgeroute.core.words import clean
from edgeroute.errors import PolicyError
from edgeroute.http.terms import checked_pins, checked_terms
from edgeroute.system.declared import check_units


class Call(NamedTuple):
    """One HTTP request to the endpoint."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    probe: bool = False
    """Sent once, and a reply of any status is returned; without a reply, status 0 with the error as the body.
    Other calls are retried up to `Address.retries` times, and only a success is returned."""
    max_reply: int | None = None
    """The longest acceptable reply, bytes; None: `Address.max_reply_bytes`."""
    tokens: Tokens | None = None
    """Tokens that are expected: their price is booked before it is sent, and corrected once they are counted."""


SUCCESS = range(200, 300)
"""The statuses of a success."""


class Reply(NamedTuple):
    """The HTTP reply to a call."""

    status: int
    headers: Mapping[str, str]
    """Names are lower case."""
    body: bytes


class Secret:
    """A credential that no repr, log or message shows. `env`: the environment variable that holds it, read at each use.

    One that holds its value is not pickled; a copy is the same object.
    """

    __slots__ = ("_env", "_value")

    def __init__(self, value: str | None = None, *, env: str | None = None) -> None:
        self._value, self._env = value, env

    @property
    def env(self) -> str | None:
        """The environment variable that holds it; None: it was given itself."""
        return self._env

    def read(self, what: str = "the secret") -> str:
        """The secret itself. `what` it is, for the message.

        Raises:
            PolicyError: the environment variable is not set.
        """
        if self._env is None:
            return self._value or ""
        value = os.environ.get(self._env)
        if not value:
            if not _NAME.fullmatch(self._env):  # it may be the secret itself
                raise PolicyError(
                    f"{what} is to come from an environment variable, and none has the name that env gives,"
                    " which is not quoted as it does not look like one, such as CLOUD_KEY"
                )
            raise PolicyError(f"{what} is to come from the environment variable {self._env}, which is not set")
        return value

    def __repr__(self) -> str:
        if not self._env:
            return "Secret(***)"
        return f"Secret(env={self._env!r})" if _NAME.fullmatch(self._env) else "Secret(env=***)"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        if self._env is None:
            raise TypeError("a Secret is not pickled: give env=, the environment variable that the other process reads too")
        return partial(Secret, env=self._env), ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._value, self._env) == (other._value, other._env)

    def __hash__(self) -> int:
        return hash((self._value, self._env))


_NAME = re.compile("[A-Z_][A-Z0-9_]{0,63}")
"""Names of environment variables that are quoted."""
MAX_REPLY = 1 << 20
"""Default limit of a reply, bytes."""


class Address:
    """URL, credentials, TLS settings, timeout and retries of an endpoint.

    Args:
        url: http or https, without user or password.
        api_key: secret that is sent as `Authorization: Bearer ...`.
        headers: headers of each request; a value is a text or a secret.
        verify: check of the server's certificate. True: by the system's and certifi's authorities; a path: only by those in this
            file; False: none.
        cert: paths of the client certificate and key, for mutual TLS.
        pin: `sha256/` and the Base64 of the SHA-256 of the server's public key, or several: its certificate must hold one of
            them, besides what `verify` asks for.
        client: carrier of the requests, in place of connections of its own. "httpx": httpx clients of its own, for SOCKS proxies
            for example; in Python also an `httpx.Client` for Router, an `httpx.AsyncClient` for AsyncRouter, or both as a tuple,
            which stay open.
        timeout_s: time for a request with all its retries; a deadline may be shorter.
        retries: maximum retries of a failed request.
        max_reply_bytes: a longer reply for one input is rejected without being read in full; one for a batch may be up to
            16 times as long.
        terms: fields of `Terms`: usd_per_call, usd_per_mb, usd_per_million_input_tokens,
            usd_per_million_output_tokens, joules_per_call, joules_per_mb, calls_per_s, max_concurrent.

    Raises:
        PolicyError: invalid URL, or one with a user, password, query or fragment; or a number that cannot be.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | Secret | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        verify: bool | str | Path = True,
        cert: tuple[str | Path, str | Path] | None = None,
        pin: str | Sequence[str] | None = None,
        client: Any = None,
        timeout_s: Timeout = 10.0,
        retries: Whole = 2,
        max_reply_bytes: Size = MAX_REPLY,
        **terms: Any,
    ) -> None:
        self.terms = checked_terms(terms)
        check_units(Address, locals())
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its message may quote part of a password
            raise PolicyError("the cloud's address is not a URL: its host or port cannot be read") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise PolicyError(f"{bare(url)} is not an http:// or https:// URL")
        if "@" in parts.netloc or "%40" in parts.netloc:
            raise PolicyError(f"{bare(url)} carries a user or password: give it as api_key or in headers")
        if parts.query or parts.fragment:
            raise PolicyError(f"{bare(url)}: no query or fragment can be part of it (a key goes in api_key or headers)")
        self.https = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.https else 80)
        try:
            self.netloc = parts.netloc.encode("idna")
        except UnicodeError:
            raise PolicyError(f"{bare(url)}: its host is not one that can be looked up") from None
        self.origin = f"{parts.scheme}://{self.netloc.decode()}"
        self.path = parts.path.rstrip("/")
        self.verify, self.cert, self.pins = verify, cert, checked_pins(pin)
        if self.pins and not self.https:
            raise PolicyError(f"{self.origin}: pin is of TLS, and this is no https:// URL")
        self.client = None if client is None else _clients(client)
        if self.client is not None and self.pins:
            raise PolicyError(f"{self.origin}: pin is checked on connections of its own alone, not by a client (client=)")
        if self.client not in (None, (None, None)) and (verify is not True or cert is not None):
            raise PolicyError(f"{self.origin}: verify and cert are those of the client that is given (client=): set them there")
        self.hidden: set[str] = set()
        """The proxy's password, in the forms in which it may be quoted."""
        self.timeout_s, self.retries, self.max_reply_bytes = timeout_s, retries, max_reply_bytes
        for name in headers or {}:
            if not (
                isinstance(name, str) and _HEADER_NAME.fullmatch(name)
            ):  # not quoted: it may be a whole header, with its value
                raise PolicyError("headers has a name that is none: it takes letters, digits and -, as in X-Tenant")
        self._headers = {name: ("", _secret(value)) for name, value in (headers or {}).items()}
        given_secret = [name for name, value in (headers or {}).items() if isinstance(value, Secret)]
        self._credentials = {*given_secret, *(name for name in self._headers if name.lower() == "authorization"), "Authorization"}
        if api_key is not None:
            self._headers["Authorization"] = ("Bearer ", _secret(api_key))

    def headers(self) -> list[tuple[str, str]]:
        """The headers with resolved secrets, for sending only.

        Raises:
            PolicyError: a secret's variable is not set, or a value contains characters not allowed in a header.
        """
        if not self._headers:
            return []
        found = [
            (name, before + secret.read("api_key" if before else f"headers.{name}"))
            for name, (before, secret) in self._headers.items()
        ]
        for name, value in found:
            if not _SENDABLE.fullmatch(value):  # checked here, so that no error quotes the value
                raise PolicyError(f"the header {name!r} has a value that cannot be sent: is there a line break in it?")
        return found

    def secrets(self) -> list[str]:
        """The values of those headers that are credentials: `Authorization`, and what was given as a `Secret`."""
        return [value for name, value in self.headers() if name in self._credentials]

    def credentials(self) -> list[str]:
        """As whom this address is asked: SHA-256 of each header with its name, and of the client certificate's file."""
        found = []
        for name, (before, secret) in self._headers.items():
            with contextlib.suppress(PolicyError):  # it is not set: nothing can be sent
                found.append(f"{name.lower()}: {before}{secret.read()}".encode("utf-8", "surrogateescape"))
        if self.cert is not None:
            with contextlib.suppress(OSError):  # likewise
                found.append(Path(self.cert[0]).read_bytes())
        return sorted(sha256(one).hexdigest() for one in found)

    @property
    def variables(self) -> list[str]:
        """The environment variables that hold the headers' values."""
        return [secret.env for _, secret in self._headers.values() if secret.env is not None]

    def hide(self, text: str) -> str:
        """Masks this address's secrets, and the proxy's, in a text that may quote what came."""
        with contextlib.suppress(PolicyError):  # a variable was unset meanwhile: nothing was sent
            words = [word for _, value in self.headers() for word in value.split() if len(word) >= _SECRET_LENGTH]
            for word in (*words, *(word for word in self.hidden if len(word) >= _PASSWORD_LENGTH)):
                text = re.sub(re.escape(word), "***", text, flags=re.IGNORECASE)
        return text

    def __repr__(self) -> str:
        return f"Address({self.origin + self.path!r})"


def _secret(value: str | Secret) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


def _clients(client: Any) -> tuple[Any, Any]:
    """The clients for threads and for asyncio; neither: to be made."""
    if isinstance(client, str):
        if client != "httpx":
            raise PolicyError('client is "httpx", or an httpx.Client, an httpx.AsyncClient, or a tuple of both')
        return None, None
    given = client if isinstance(client, tuple) else (client,)
    tasks = [one for one in given if hasattr(one, "aclose") and hasattr(one, "build_request")]
    threads = [one for one in given if hasattr(one, "close") and hasattr(one, "build_request")]
    if len(tasks) > 1 or len(threads) > 1 or len(tasks) + len(threads) != len(given) or not given:
        raise PolicyError('client is "httpx", or an httpx.Client, an httpx.AsyncClient, or a tuple of both')
    return (threads or [None])[0], (tasks or [None])[0]


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SENDABLE = re.compile(r"([!-~]([\t -~]*[!-~])?)?")
_PASSWORD_LENGTH = 4
_SECRET_LENGTH = 8
"""Shorter words of a header's value are not masked: masking them would garble messages."""


def bare(url: str) -> str:
    """The URL in quotes, for messages; if there may be a password, key or token in it, words instead."""
    return repr(clean(url)) if len(url) <= _QUOTABLE_LENGTH and _QUOTABLE.fullmatch(url) else "the cloud's address"


_QUOTABLE = re.compile(
    r"[a-z]{1,9}://[\w.-]*(:[0-9]{1,5})?(/[\w./-]*)?"  # or what lacks the scheme
    r"|(localhost|[\w-]{1,20}(\.[\w-]{1,20})+)(:[0-9]{1,5})?(/[\w./-]*)?|\w{1,20}/[\w./-]*"
)
_QUOTABLE_LENGTH = 100


# Keeps the logs of an httpx client from quoting what an endpoint replied, during our calls.
#
# A reply's headers, and its reason phrase, may repeat the credentials. httpcore's events are logged by name alone, httpx's not at
# all. The log of the application's own use of a client stays as it is.

OURS: ContextVar[bool] = ContextVar("edgeroute_call", default=False)
"""Set while a call of an endpoint is carried."""


class _NamesOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if OURS.get():
            record.msg = str(record.msg).partition(" ")[0]
        return True


def _not_ours(_: logging.LogRecord) -> bool:
    return not OURS.get()


def _install() -> None:
    names_only = _NamesOnly()
    logging.getLogger("httpx").addFilter(_not_ours)
    for part in ("connection", "http11", "http2", "proxy", "socks"):
        logging.getLogger(f"httpcore.{part}").addFilter(names_only)


_install()
