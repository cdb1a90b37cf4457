"""Validation of an endpoint's prices and limits, and of its pinned public keys; hash of a certificate's key."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Collection
from typing import Any

from edgeroute.core.routing_policy import Terms
from edgeroute.errors import PolicyError, check_number
from edgeroute.system.declared_settings import check_units
from edgeroute.system.process import sha256


def checked_terms(fields: dict[str, Any]) -> Terms:
    """Return the terms made from fields by name.

    Raises:
        PolicyError: a value is not a valid number, which would switch a limit off, or falsify the costs that are booked.
        TypeError: a name is no field of `Terms`.
    """
    terms = Terms(**fields)
    check_units(Terms, terms._asdict())
    if terms.max_concurrent != "auto":
        check_number("max_concurrent", terms.max_concurrent, least=1, whole=True)
    return terms


# Pins of public keys: an endpoint's certificate must hold one of these keys, whoever has signed it.

_PIN = re.compile(r"sha256/[A-Za-z0-9+/]{43}=")
_SEQUENCE, _VERSION = 0x30, 0xA0
_BEFORE_KEY = 5
"""Fields between version and key: serial number, signature algorithm, issuer, validity, subject."""


def checked_pins(given: str | Collection[str] | None) -> frozenset[bytes]:
    """Return the SHA-256 hashes in pins such as `sha256/BASE64`, one or several; empty for None.

    Raises:
        PolicyError: a pin is malformed, or the collection is empty.
    """
    if given is None:
        return frozenset()
    pins = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
    if not pins:
        raise PolicyError("pin= is empty: leave it out, or give sha256/BASE64 of the server's public key")
    hashes = set()
    for pin in pins:
        if not isinstance(pin, str) or not _PIN.fullmatch(pin):
            raise PolicyError(
                "pin takes sha256/ and the Base64 of the SHA-256 of the server's public key (44 characters), as curl's"
            )
        hashes.add(b64decode(pin.removeprefix("sha256/")))
    return frozenset(hashes)


def pin_of(certificate: bytes) -> bytes:
    """Return the SHA-256 of the public key (SubjectPublicKeyInfo) in a certificate in DER.

    Raises:
        ValueError: the data is no certificate.
    """
    fields = _der_element(_der_element(certificate, 0, _SEQUENCE)[0], 0, _SEQUENCE)[0]
    position = _der_element(fields, 0)[1] if fields[:1] == bytes([_VERSION]) else 0
    for _ in range(_BEFORE_KEY):
        position = _der_element(fields, position)[1]
    return sha256(fields[position : _der_element(fields, position, _SEQUENCE)[1]]).digest()


def _der_element(data: bytes, position: int, tag: int | None = None) -> tuple[bytes, int]:
    """Return the content of the DER element at a position, and the position of the next element.

    Args:
        data: bytes in DER.
        position: index of the element's tag.
        tag: expected tag; None: any.

    Raises:
        ValueError: the element has another tag, or is cut off.
    """
    if len(data) < position + 2 or (tag is not None and data[position] != tag):
        raise ValueError("not a certificate")
    size, begin = data[position + 1], position + 2
    if size & 0x80:
        count = size & 0x7F
        size, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
    if len(data) < begin + size:
        raise ValueError("not a certificate")
    return data[begin : begin + size], begin + size
