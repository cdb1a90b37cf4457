"""Parts of a server's words that may be quoted: codes in its errors, names in its metadata; and the search for secrets in texts.

Servers echo what they are sent: FastAPI's 422 has the input in it, a gateway's 401 the key. So no text is ever quoted, and a code
only if it has the form of one, without digits, and shares no word with the request's body or credentials.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any
from unicodedata import combining, normalize
from urllib.parse import unquote_plus

from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads

MOST_READ = 1 << 16  # bytes of an error's body, beyond which it is not read ...
MOST_COMPARED = 1 << 18  # ... and of a request's, beyond which nothing is quoted: comparing takes time.
# Fields of an error in JSON that hold a code, and those that hold an object with one: OpenAI's, Google's, FastAPI's, OAuth's.
FIELDS, WITHIN = ("code", "type", "status", "reason", "error", "error_code", "errorCode"), ("error", "errors", "detail")
_DEEP, _MANY = 3, 8
_SHORTEST = 3  # letters of a request's word that no word of a quoted code may contain
_SECRET = 6  # letters and digits of the shortest word of a secret that no text may have
_CODE = re.compile(r"(?=.{3,64}$)(?:[a-z]+(?:[_.-][a-z]+)*|[A-Z]+(?:_[A-Z]+)*|(?:[A-Z]{2,6})?(?:[A-Z][a-z]{2,})+)")
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_WORD = re.compile(r"[^\W_]+")
_PART = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # word of a code such as InvalidArgument or model_not_found
_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")
# Words that are quoted even if the request has them: they are in most codes, and tell nothing of an input.
_COMMON = {
    "api", "argument", "bad", "batch", "content", "context", "denied", "error", "exceeded", "exhausted", "failed", "filter",
    "forbidden", "found", "id", "input", "insufficient", "internal", "invalid", "key", "large", "length", "limit", "message",
    "missing", "model", "not", "of", "overloaded", "parameter", "payload", "permission", "policy", "quota", "rate", "request",
    "required", "requests", "resource", "server", "shape", "size", "timeout", "token", "tokens", "too", "type", "unauthorized",
    "unavailable", "unsupported", "value", "violation",
}  # fmt: skip


def quote(reply: bytes, sent: bytes, secrets: Iterable[str]) -> str:
    """Return the codes in an error's body in JSON that may be quoted, separated by commas; empty: none.

    A code is quoted only if it has the form of one, and shares no word with the request or the secrets, but for words that are in
    most codes. Empty too if the reply is too long, or no JSON. Beside a request that is too long to compare, codes of common
    words alone.

    Args:
        reply: the body of the reply.
        sent: the body of the request.
        secrets: values of headers that are not to be quoted.
    """
    if len(reply) > MOST_READ:
        return ""
    try:
        error = json_loads(reply)
    except (ValueError, RecursionError):
        return ""
    texts = [text.rpartition("/")[2] for text in islice(_texts(error, _DEEP), _MANY)]  # RFC 9457 has codes as URLs
    codes = [text for text in texts if _CODE.fullmatch(text)]
    if not codes:
        return ""
    known = None if len(sent) > MOST_COMPARED else _sent_words(sent, secrets)
    return ", ".join(dict.fromkeys(code for code in codes if not _shows(code, known)))


def has_secret(text: str, secrets: Iterable[str]) -> bool:
    """Return True if a text has one of the secrets or a long word of it, also in pieces, escaped, or in base64."""
    words = {"".join(_WORD.findall(word)).casefold() for secret in secrets for word in secret.split()}
    joined = "".join(_words([text]))
    return any(len(word) >= _SECRET and word in joined for word in words)


def quoted_names(names: Iterable[str], secrets: Iterable[str]) -> str:
    """Return the first `_MANY` of the names that a server's metadata has, separated by commas, for a message.

    Those of an odd form, or that show anything of a secret, are left out; "one that is not quoted" stands for them.
    """
    known = _sent_words(b"", secrets)
    first = list(islice(names, _MANY))
    quoted = [name for name in first if _NAME.fullmatch(name) and not _shows(name, known)]
    return ", ".join(quoted + ["one that is not quoted"] * (len(first) > len(quoted)))


def _texts(error: Any, deep: int) -> Iterator[str]:
    """Yield the texts in the known fields of an error, and of the first errors in it, `deep` levels down."""
    if isinstance(error, dict):
        yield from (code for name in FIELDS if isinstance(code := error.get(name), str))
        parts = [error.get(name) for name in WITHIN]
    else:
        parts = error[:_MANY] if isinstance(error, list) else []
    if deep:
        for part in parts:
            yield from _texts(part, deep - 1)


def _shows(code: str, sent: tuple[str, set[str]] | None) -> bool:
    """Return True if a code may show something of what was sent: a word of it is in that, or has a word of it in itself.

    Words that are in most codes do not count. `sent` None: unknown, so that any other word counts.
    """
    texts = _WORD.findall(code)
    if sent is None:
        return not {part.lower() for text in texts for part in _PART.findall(text)} <= _COMMON
    together, pieces = sent
    words = [word.lower() for text in texts for word in (text, *_PART.findall(text))]
    return any(word in together or any(map(word.__contains__, pieces)) for word in words if word not in _COMMON)


def _sent_words(body: bytes, secrets: Iterable[str]) -> tuple[str, set[str]]:
    """Return all letters and digits of a request and the secrets as one text, and the set of their words of `_SHORTEST` or more.

    Of a body that is no text, as of tensors in bytes, the set has the secrets' words alone.
    """
    words = _words([body.decode("utf-8", "replace"), *secrets])
    try:
        body.decode()
        pieces = words
    except UnicodeDecodeError:
        words, pieces = words + _words([body.decode("latin-1")]), _words(secrets)
    return "".join(words), {word for word in pieces if len(word) >= _SHORTEST}


def _words(given: Iterable[str]) -> list[str]:
    """Return the words of texts in lower case and without accents.

    Also those of the texts without JSON's or a URL's escapes, and of what is Base64 in them.
    """
    texts = [*given]
    for text in given:
        with suppress(ValueError, RecursionError):
            texts.append(json_dumps(json_loads(text.encode())).decode())  # without escapes
    texts += [unquote_plus(text) for text in texts]
    for encoded in _BASE64.findall(" ".join(texts)):
        with suppress(ValueError):  # the usual case
            texts.append(b64decode(encoded, validate=True).decode())
    plain = "".join(c for c in normalize("NFKD", "\n".join(texts)).casefold() if not combining(c))
    return _WORD.findall(plain)
