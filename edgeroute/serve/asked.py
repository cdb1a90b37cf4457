"""Who asks, by a request's headers: a page of another site, or a program; and by which name of the server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address


def of_a_page(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a web page sent it: it has `Origin`, or a browser marks it as another site's."""
    return b"origin" in headers or headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}


def is_opened(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser opens it as a page of its own, after a click on a link: the page with the link cannot read it."""
    kind = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
    return b"origin" not in headers and kind == (b"navigate", b"document")


def is_named(host: str, names: Collection[str]) -> bool:
    """Whether the header `Host` has an address or one of these names, with or without a port.

    Another one may be a page's own name that resolves to this machine (DNS rebinding).
    """
    if host.startswith("["):
        name, closed, rest = host[1:].partition("]")
        return bool(closed) and _is_address(name, 6) and (not rest or (rest[0] == ":" and _is_port(rest[1:])))
    name, colon, port = host.partition(":")
    if colon and not _is_port(port):
        return False
    return name.lower().rstrip(".") in names or _is_address(name, 4)


def is_loopback(address: str) -> bool:
    """Whether it is an address that this machine alone can reach."""
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_address(name: str, version: int) -> bool:
    try:
        return ip_address(name).version == version
    except ValueError:
        return False
