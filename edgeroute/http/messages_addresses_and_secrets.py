"""HTTP requests and replies as values; an endpoint's address with credentials and TLS pins; masking of secrets; Retry-After."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from base64 import b64decode
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from datetime import timezone
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.core.setting_unit_types import Size, Timeout, Whole
from edgeroute.core.spending_limits import Tokens
from edgeroute.errors import PolicyError, check_number
from edgeroute.system.read_and_check_signatures import check_units, plain_number, plain_numbers


class Call(NamedTuple):
    """HTTP request to an endpoint."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    # True: sent once, and a reply of any status is returned; without a reply, status 0 with the error as the body.
    #
    # False: retried up to `Address.retries` times, and only a success is returned.
    probe: bool = False
    max_reply: int | None = None  # maximum bytes of the reply's body; None: `Address.max_reply_bytes`
    # Expected tokens: their price is booked before the request is sent, and corrected by the reply's count; None: no tokens.
    tokens: Tokens | None = None
    query: str = ""  # encoded; it follows the path, may be a secret, and is sent by edgeroute's own connections only


# HTTP statuses of a success; not of a reply that a proxy changed (203), emptied (205) or cut (206).
SUCCESS = frozenset(range(200, 300)) - {203, 205, 206}


class Reply(NamedTuple):
    """HTTP reply to a call."""

    status: int
    headers: Mapping[str, str]  # values by lower-case name
    body: bytes


class Secret:
    """Credential that no repr, log or message shows.

    A secret with its value cannot be pickled; `copy` and `deepcopy` return the same object.

    Args:
        value: the credential itself.
        env: in place of it, the name of the environment variable that holds it, read at each use.

    Raises:
        PolicyError: one of them is no text.
    """

    __slots__ = ("_env", "_value")

    def __init__(self, value: str | None = None, *, env: str | None = None) -> None:
        if odd := [type(part).__name__ for part in (value, env) if not isinstance(part, str | None)]:
            raise PolicyError(f"a secret is a text, not a {odd[0]}")
        self._value, self._env = value, env

    @property
    def env(self) -> str | None:
        """Name of the environment variable; None: the secret has its value."""
        return self._env

    def read(self, what: str = "the secret") -> str:
        """Return the credential: the value, or that of the environment variable, read anew at each call.

        Args:
            what: name of the setting, for the error.

        Raises:
            PolicyError: the environment variable is not set, or empty. A name that may be the secret itself is not quoted.
        """
        if self._env is None:
            return self._value or ""
        if not (value := os.environ.get(self._env)):
            if not _NAME.fullmatch(self._env):  # it may be the secret itself
                raise PolicyError(f"{what}: env takes the name of an environment variable that is set, such as CLOUD_KEY")
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


_NAME = re.compile("[A-Z_][A-Z0-9_]{0,63}")  # names of environment variables that may be quoted


def checked_terms(fields: dict[str, Any]) -> Terms:
    """Return the terms (prices and limits of an endpoint) made from fields by name, each checked by its unit.

    Raises:
        PolicyError: a value is not a valid number, which would switch a limit off, or falsify the costs that are booked.
        TypeError: a name is no field of `Terms`.
    """
    terms = Terms(**fields)
    check_units(Terms, terms._asdict())
    if terms.max_concurrent != "auto":
        check_number("max_concurrent", terms.max_concurrent, least=1, whole=True)
    return plain_numbers(terms)  # type: ignore[no-any-return]


_PIN = re.compile(r"sha256/[A-Za-z0-9+/]{43}=")


def checked_pins(listed: str | Collection[str] | None) -> frozenset[bytes]:
    """Return the SHA-256 hashes in pins such as `sha256/BASE64`, one or several; empty for None.

    Raises:
        PolicyError: a pin is malformed, or the collection is empty.
    """
    if listed is None:
        return frozenset()
    pins = list(listed) if isinstance(listed, list | tuple | set | frozenset) else [listed]
    if not pins:
        raise PolicyError("pin= is empty: leave it out, or give sha256/BASE64 of the server's public key")
    hashes = set()
    for pin in pins:
        if not isinstance(pin, str) or not _PIN.fullmatch(pin):
            raise PolicyError("pin takes sha256/ and the Base64 of the SHA-256 of the server's public key, 44 characters")
        hashes.add(b64decode(pin.removeprefix("sha256/")))
    return frozenset(hashes)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a reply's Retry-After asks to wait; None: there is none, or it is neither a number nor a date.

    A negative number is 0. A date counts from the reply's own Date, if it has one, since clocks differ; one that has passed is
    None.

    Args:
        headers: headers of the reply, with names in lower case.
        now: seconds since 1970.
    """
    if not (value := headers.get("retry-after")):
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        until, sent = _instant(value), _instant(headers.get("date", ""))
    wait_s = 0.0 if until is None else until - (now if sent is None else sent)
    return wait_s if wait_s > 0 else None


def _instant(date: str) -> float | None:
    """Return the seconds since 1970 of a date as HTTP has it, in UTC if it names no zone; None: it is no date."""
    from email.utils import parsedate_to_datetime

    try:
        instant = parsedate_to_datetime(date)
        return (instant if instant.tzinfo is not None else instant.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


MAX_REPLY = 1 << 20  # default maximum of a reply's body, bytes


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
        client: HTTP client in place of edgeroute's own connections: "httpx", or in Python an `httpx.Client` for Router, an
            `httpx.AsyncClient` for AsyncRouter, or both as a tuple, which stay open (connections.md).
        timeout_s: time for one request with all its retries; a deadline may be shorter.
        retries: maximum retries of a failed request.
        max_reply_bytes: maximum size of a reply's body for one input, 16 times as much for a batch; a longer one is rejected.
        terms: fields of `Terms`: usd_per_call, usd_per_mb, usd_per_million_input_tokens, usd_per_million_output_tokens,
            joules_per_call, joules_per_mb, calls_per_s, max_concurrent.

    Raises:
        PolicyError: the URL is invalid, or has a user, password, query or fragment; or a number is out of range.
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
            self.netloc = b""
        if not re.fullmatch(rb"[!-~]+", self.netloc):  # a space or a control character would go into requests and messages
            raise PolicyError(f"{bare(url)}: its host name is invalid")
        self.origin = f"{parts.scheme}://{self.netloc.decode()}"
        self.path = parts.path.rstrip("/")
        self.verify, self.cert, self.pins = verify, cert, checked_pins(pin)
        if self.pins and not self.https:
            raise PolicyError(f"{self.origin}: pin= needs an https:// URL: it is checked in the handshake of TLS")
        self.client = None if client is None else _clients(client)
        if self.client is not None and self.pins:
            raise PolicyError(f"{self.origin}: pin= is checked on edgeroute's own connections only: leave out client=, or pin=")
        if self.client not in (None, (None, None)) and (verify is not True or cert is not None):
            raise PolicyError(f"{self.origin}: verify= and cert= have no effect with client=: set them on the client")
        self.hidden: set[str] = set()  # password of the proxy, in the forms in which a text may quote it; `proxy_for` fills it
        self.timeout_s, self.retries = plain_number(timeout_s), plain_number(retries)
        self.max_reply_bytes = plain_number(max_reply_bytes)
        for name in headers or {}:
            # Not quoted: it may be a whole header, with its value.
            if not (isinstance(name, str) and _HEADER_NAME.fullmatch(name)):
                raise PolicyError("headers has an invalid name: use letters, digits and -, as in X-Tenant")
        self._headers = {name: ("", _secret(value)) for name, value in (headers or {}).items()}
        given_secret = [name for name, value in (headers or {}).items() if isinstance(value, Secret)]
        self._credentials = {*given_secret, *(name for name in self._headers if name.lower() == "authorization"), "Authorization"}
        if api_key is not None:
            self._headers["Authorization"] = ("Bearer ", _secret(api_key))

    def headers(self) -> list[tuple[str, str]]:
        """Return the request's headers with their secrets, for sending only: those of `headers=` and of `api_key`.

        [] without any. Variables of the environment are read at each call.

        Raises:
            PolicyError: a secret's variable is not set, or a value contains characters not allowed in a header.
        """
        headers = [
            (name, before + secret.read("api_key" if before else f"headers.{name}"))
            for name, (before, secret) in self._headers.items()
        ]
        for name, value in headers:
            if not _SENDABLE.fullmatch(value):  # checked here, so that no error quotes the value
                raise PolicyError(f"the header {name!r} has a value that cannot be sent: is there a line break in it?")
        return headers

    def secrets(self) -> list[str]:
        """Return the values of the headers that are credentials: `Authorization`, and those given as a `Secret`.

        Raises PolicyError if one is not set.
        """
        return [value for name, value in self.headers() if name in self._credentials]

    def credentials(self) -> list[str]:
        """Return the identity with which requests are sent: SHA-256 of each header, and of the client certificate's file, sorted.

        Headers whose variable is not set, and a file that cannot be read, are left out.
        """
        credentials = []
        for name, (before, secret) in self._headers.items():
            with contextlib.suppress(PolicyError):  # it is not set: nothing can be sent
                credentials.append(f"{name.lower()}: {before}{secret.read()}".encode("utf-8", "surrogateescape"))
        if self.cert is not None:
            with contextlib.suppress(OSError):  # likewise
                credentials.append(Path(self.cert[0]).read_bytes())
        return sorted(sha256(credential).hexdigest() for credential in credentials)

    @property
    def variables(self) -> list[str]:
        """Names of the environment variables that hold headers' values."""
        return [secret.env for _, secret in self._headers.values() if secret.env is not None]

    def hide(self, text: str) -> str:
        """Return a text with this address's secrets, and the proxy's password, replaced by `***`, in any case of letters.

        Words of all header values are masked from 8 characters on, passwords from 4 on.
        """
        words = [word for word in self.hidden if len(word) >= _PASSWORD_LENGTH]
        for before, secret in self._headers.values():
            with contextlib.suppress(PolicyError):  # its variable was unset meanwhile: this one was not sent
                words += [word for word in (before + secret.read("headers")).split() if len(word) >= _SECRET_LENGTH]
        for word in words:
            text = re.sub(re.escape(word), "***", text, flags=re.IGNORECASE)
        return text

    def __repr__(self) -> str:
        return f"Address({self.origin + self.path!r})"


def _secret(value: str | Secret) -> Secret:
    """Return a value as a `Secret`."""
    return value if isinstance(value, Secret) else Secret(value)


def _clients(client: Any) -> tuple[Any, Any]:
    """Return the client for threads and the client for asyncio, sorted by their methods; None in place of one that was not given.

    For the text "httpx" both are None: edgeroute makes them.

    Raises:
        PolicyError: neither "httpx", nor an httpx client, nor a tuple of one for each.
    """
    if client == "httpx":
        return None, None
    clients = client if isinstance(client, tuple) else (client,)
    tasks = [candidate for candidate in clients if hasattr(candidate, "aclose") and hasattr(candidate, "build_request")]
    threads = [candidate for candidate in clients if hasattr(candidate, "close") and hasattr(candidate, "build_request")]
    if len(tasks) > 1 or len(threads) > 1 or len(tasks) + len(threads) != len(clients) or not clients:
        raise PolicyError('client is "httpx", or an httpx.Client, an httpx.AsyncClient, or a tuple of both')
    return (threads or [None])[0], (tasks or [None])[0]


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SENDABLE = re.compile(r"([!-~]([\t -~]*[!-~])?)?")
_PASSWORD_LENGTH = 4
_SECRET_LENGTH = 8  # shorter words of a header's value are not masked: masking them would garble messages


def bare(url: str) -> str:
    """Return the URL in quotes, for messages; or "the cloud's address" if it may contain a password, key or token."""
    return repr(clean(url)) if len(url) <= _QUOTABLE_LENGTH and _QUOTABLE.fullmatch(url) else "the cloud's address"


_CHATS = "/v1", "/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"


def chat_advice(url: str) -> str:
    """Return what to write for a URL of an API of chats, by its end, such as `/v1`; empty: the URL is of none."""
    end = next((end for end in _CHATS if url.rstrip("/").endswith(end)), "")
    more = "" if end in _CHATS[:2] else ", and a url that ends in /v1"
    return end and f'a url that ends in {end} is of an API of chats, as OpenAI\'s: write protocol = "openai"{more}'


_QUOTABLE = re.compile(
    r"[a-z]{1,9}://[\w.-]*(:[0-9]{1,5})?(/[\w./-]*)?"  # or what lacks the scheme
    r"|(localhost|[\w-]{1,20}(\.[\w-]{1,20})+)(:[0-9]{1,5})?(/[\w./-]*)?|\w{1,20}/[\w./-]*"
)
_QUOTABLE_LENGTH = 100


# Log filters of httpx and httpcore, in both versions: during an edgeroute call, no record quotes what an endpoint replied.
#
# A reply's headers, and its reason phrase, may repeat the credentials. Of httpcore's records only the event's name stays; httpx's
# are dropped. Records of the application's own use of a client are not changed.

OURS: ContextVar[bool] = ContextVar("edgeroute_call", default=False)  # True in the context of a call to an endpoint by edgeroute


def _name_only(record: logging.LogRecord) -> bool:
    """Shorten a record in place to its first word if it is of a call by edgeroute. Return True: each is logged."""
    if OURS.get():
        record.msg = str(record.msg).partition(" ")[0]
    return True


def _install() -> None:
    """Add filters to the loggers of httpx and httpcore, in both versions, for records made during a call of edgeroute.

    Those of httpx are dropped, those of httpcore shortened to the event's name.
    """
    for version in ("", "2"):
        logging.getLogger(f"httpx{version}").addFilter(lambda _: not OURS.get())
        for part in ("connection", "http11", "http2", "proxy", "socks"):
            logging.getLogger(f"httpcore{version}.{part}").addFilter(_name_only)


_install()
