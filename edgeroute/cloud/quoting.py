"""What of a server's error message is quoted: codes and phrases that have nothing in them of what was sent to it.

Servers echo what they are sent: FastAPI's 422 has the input in it, a gateway's 401 the key, in pieces or re-encoded. So a text
is quoted as a whole or not at all, and only if every word of it is an ordinary one that neither the request's body nor its
credentials contain. That errs on the side of silence.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from unicodedata import combining, normalize

from edgeroute.core.texts import FOREIGN
from edgeroute.system import json_loads

MOST_READ = 1 << 16
"""Bytes of an error's body, beyond which it is not read ..."""
MOST_COMPARED = 1 << 18
"""... and of a request's, beyond which nothing is quoted: comparing takes time."""
FIELDS = ("code", "type", "title", "msg", "message", "error", "detail", "errors")
"""Of an error in JSON, as OpenAI, FastAPI, Triton and RFC 9457 have them."""
_DEEP, _MANY = 3, 8
_SHORTEST, _LONGEST = 3, 24
_DIGITS = 6
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"[A-Z]?[a-z]+(?:[A-Z][a-z]+)+")
_DATATYPE = re.compile(r"u?int[0-9]{1,2}|(?:fp|bf|float)[0-9]{2}")
_GENERIC = frozenset(
    _WORD.findall(
        "a an and any are as at be been bytes by can cannot data datatype did do does dtype error expected failed"
        " field for found from got has have header in input inputs invalid is it json list missing model must name"
        " no not number object of on one only or output outputs parameters request required shape should string"
        " supported tensor the there this to type unexpected unknown unsupported valid value was were with wrong"
        " you your"
    )
)
"""Words that tell nothing of an input, even if it has them too."""


def quote(reply: bytes, sent: bytes, secrets: Iterable[str]) -> str:
    """The quotable part of an error's body in JSON; empty: none.

    Args:
        reply: the body of the reply.
        sent: the body of the request.
        secrets: values of headers that are not to be quoted.
    """
    if len(reply) > MOST_READ or len(sent) > MOST_COMPARED:
        return ""
    try:
        said = json_loads(reply)
    except (ValueError, RecursionError):
        return ""
    known, plain = _request(sent)
    known += _squeezed(" ".join(part for secret in secrets for part in _readings(secret)))
    fit = dict.fromkeys(text for text in islice(_texts(said, _DEEP), _MANY) if _harmless(text, known, numbers=plain))
    return ", ".join(fit)[:FOREIGN]


def _texts(said: Any, deep: int) -> Iterator[str]:
    """The texts in the known fields of an error."""
    if isinstance(said, str):
        if deep < _DEEP:  # a string alone has no fields
            yield said
    elif isinstance(said, dict) and deep:
        for name in FIELDS:
            yield from _texts(said.get(name), deep - 1)
    elif isinstance(said, list) and deep:
        for part in said[:_MANY]:
            yield from _texts(part, deep - (deep < _DEEP))


def _harmless(text: str, known: str, *, numbers: bool) -> bool:
    """Whether every word is ordinary, and not part of what is known. numbers: the known ones can be told from others."""
    words = _WORD.findall(text)
    return bool(words) and len(text) <= FOREIGN and text.isprintable() and all(_fits(word, known, numbers) for word in words)


def _fits(word: str, known: str, numbers: bool) -> bool:
    plain = _squeezed(word)
    if plain in _GENERIC or _DATATYPE.fullmatch(plain):
        return True
    if word.isdecimal():
        return numbers and len(word) <= _DIGITS and plain not in known
    if not _SHORTEST <= len(word) <= _LONGEST or not word.isalpha():  # pieces, hex and base64
        return False
    return (word.islower() or word.isupper() or word.istitle() or bool(_CAMEL.fullmatch(word))) and plain not in known


def _request(body: bytes) -> tuple[str, bool]:
    """(letters and digits of a request's values, whether its numbers are among them)."""
    try:
        return _squeezed(" ".join(_values(json_loads(body)))) if body else "", True
    except (ValueError, RecursionError):
        return _squeezed(body.decode("utf-8", "ignore") + " " + body.decode("latin-1")), False


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _values(part)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part)
    else:
        yield str(value)


def _readings(secret: str) -> Iterator[str]:
    """A header's value, and what a server may read in it: `Basic` is base64 of user and password."""
    yield secret
    for word in secret.split():
        with contextlib.suppress(ValueError):  # the usual case
            yield base64.b64decode(word, validate=True).decode()


def _squeezed(text: str) -> str:
    """Letters and digits alone, without case and accents."""
    folded = normalize("NFKD", text).casefold()
    return "".join(c for c in folded if c.isalnum() and not combining(c))
