"""Prices, limits and key pins of an endpoint, checked."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Collection
from hashlib import sha256
from typing import Any

from edgeroute.core.policy import Terms
from edgeroute.errors import PolicyError, check_number
from edgeroute.system.declared import check_units

# Prices and limits of an endpoint, checked.


def checked_terms(given: dict[str, Any]) -> Terms:
    """Makes the terms from their fields by name.

    Raises:
        PolicyError: one is not a number that it can be: it would switch a limit off, or poison what is booked.
    """
    found = Terms(**given)
    check_units(Terms, found._asdict())
    if found.max_concurrent != "auto":
        check_number("max_concurrent", found.max_concurrent, least=1, whole=True)
    return found


# Pins of public keys: an endpoint's certificate must hold one of the keys that were given, whoever has signed it.

_PIN = re.compile(r"sha256/[A-Za-z0-9+/]{43}=")
_SEQUENCE, _VERSION = 0x30, 0xA0
_BEFORE_KEY = 5
"""Fields between version and key: serial number, signature algorithm, issuer, validity, subject."""


def checked_pins(given: str | Collection[str] | None) -> frozenset[bytes]:
    """The hashes in pins such as `sha256/BASE64`, one or several; empty: none was given.

    Raises:
        PolicyError: one is no pin.
    """
    if given is None:
        return frozenset()
    pins = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
    if not pins:
        raise PolicyError("pin has no pin in it: leave it out, or give sha256/BASE64 of the server's public key")
    found = set()
    for pin in pins:
        if not isinstance(pin, str) or not _PIN.fullmatch(pin):
            raise PolicyError(
                "pin takes sha256/ and the Base64 of the SHA-256 of the server's public key (44 characters), as curl's"
            )
        found.add(b64decode(pin.removeprefix("sha256/")))
    return frozenset(found)


def pin_of(certificate: bytes) -> bytes:
    """SHA-256 of the public key (SubjectPublicKeyInfo) in a certificate in DER.

    Raises:
        ValueError: it is no certificate.
    """
    fields = _inside(_inside(certificate, 0, _SEQUENCE)[0], 0, _SEQUENCE)[0]
    at = _inside(fields, 0)[1] if fields[:1] == bytes([_VERSION]) else 0
    for _ in range(_BEFORE_KEY):
        at = _inside(fields, at)[1]
    return sha256(fields[at : _inside(fields, at, _SEQUENCE)[1]]).digest()


def _inside(data: bytes, at: int, tag: int | None = None) -> tuple[bytes, int]:
    """(what the element there holds, where the next one begins)."""
    if len(data) < at + 2 or (tag is not None and data[at] != tag):
        raise ValueError("not a certificate")
    size, begin = data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
    if len(data) < begin + size:
        raise ValueError("not a certificate")
    return data[begin : begin + size], begin + size
