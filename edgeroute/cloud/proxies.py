"""The proxy between this process and an endpoint, as the environment names it: HTTP_PROXY, HTTPS_PROXY, NO_PROXY."""

from __future__ import annotations

import base64
import urllib.request
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from edgeroute.cloud.base import Address
from edgeroute.errors import PolicyError


class Proxy(NamedTuple):
    """An HTTP proxy."""

    host: str
    port: int
    https: bool
    """Whether it is spoken to over TLS."""
    authorization: str
    """Value of Proxy-Authorization; empty: none."""


def proxy_for(address: Address) -> Proxy | None:
    """The proxy for an address, with its user and password; None: there is none.

    Raises:
        PolicyError: it cannot be read, or is no HTTP proxy.
    """
    if urllib.request.proxy_bypass(address.host):
        return None
    given = urllib.request.getproxies().get("https" if address.https else "http")
    if not given:
        return None
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its message may quote part of a password
        raise PolicyError("the proxy's address in the environment cannot be read") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise PolicyError(
            "the proxy's address in the environment is not an http:// or https:// one: for SOCKS give an httpx client (client=)"
        )
    https = parts.scheme == "https"
    authorization = ""
    if parts.username is not None or parts.password is not None:
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        code = base64.b64encode(f"{user}:{password}".encode()).decode()
        address.hidden.update({code, password, parts.password or ""})
        authorization = f"Basic {code}"
    return Proxy(host, port or (443 if https else 80), https, authorization)
