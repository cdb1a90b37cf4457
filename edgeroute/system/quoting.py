"""What of a server's error message is quoted: codes and phrases that have nothing in them of what was sent to it.

Servers echo what they are sent: FastAPI's 422 has the input in it, a gateway's 401 the key, in pieces or re-encoded. So a text
is quoted as a whole or not at all, and only if every word of it is in a fixed vocabulary of errors, is no part of the request's
body or credentials, and has no word of theirs in it. That errs on the side of silence.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from unicodedata import combining, normalize
from urllib.parse import parse_qsl

from edgeroute.core.words import FOREIGN
from edgeroute.system.process import json_loads

MOST_READ = 1 << 16
"""Bytes of an error's body, beyond which it is not read ..."""
MOST_COMPARED = 1 << 18
"""... and of a request's, beyond which nothing is quoted: comparing takes time."""
FIELDS = ("code", "type", "title", "msg", "message", "error", "detail", "errors")
"""Of an error in JSON, as OpenAI, FastAPI, Triton and RFC 9457 have them."""
_DEEP, _MANY = 3, 8
_SHORTEST = 3
"""Letters of a request's word, or of adjacent ones together, that no quoted word may have in it."""
_WORD = re.compile(r"[^\W_]+")
_PART = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""Of a word such as InvalidArgument."""
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_PLAIN = re.compile(r"[A-Za-z0-9 _.,:;'()/-]+")
_FORM = re.compile(rb"[\w.*~-]+=[\w.*~%+&=-]*")
_LISTED = re.compile(r"[\s,;]+")
_COMMON = frozenset(
    _WORD.findall(
        "a an and any are as at be been by can cannot data datatype did do does dtype for found from has have in input inputs is"
        " it must name not of on or output outputs parameters shape should that the this to when will with you your"
        " bf16 fp16 fp32 fp64 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
    )
)
"""Words that are quoted even if the request has them: they tell nothing of an input."""
_TECHNICAL = _COMMON | frozenset(
    _WORD.findall(
        "about above accept accepted accepts access account action active allowed already another api argument arguments"
        " array attempt auth authentication authorization authorized available back backend bad batch bearer below between"
        " bigger billing body bool boolean both broken buffer busy but byte bytes call calls capacity certificate change"
        " channel characters check class client closed code column columns conflict connect connection content context"
        " convert could count create credentials current currently decode default denied deprecated dict dictionary"
        " dimension dimensions disabled double down due duplicate during each either element elements empty enabled encode"
        " encoding endpoint engine enough entity entries error errors exceed exceeded exceeds exception execution exist"
        " exists expected expired extra fail failed failure feature field fields file float forbidden format full function"
        " gateway got gpu greater handle header headers health host http https id image implemented incompatible incorrect"
        " inference instead insufficient int integer integers internal invalid item items json key keys kind known label"
        " labels large larger later least length less limit limited limits list load loaded loading local long longer"
        " lower maintenance malformed many match matching maximum media memory message method minimum minute minutes"
        " mismatch missing model models more most multiple need needed network no nothing number numbers object once only"
        " open operation option out outside over overloaded parameter parse parsing path payload payment per permission"
        " permitted please policy pool possible present process processing property provided quota range rank rate reached"
        " read ready reason received refused region rejected replica request requests required requires resource response"
        " result retry route row rows runtime same schema second seconds see server service session shorter shutdown since"
        " size slow small something started starting state status still stopped string such supported syntax system task"
        " temporarily temporary tensor tensors text than their then there these they throttled through time timed timeout"
        " times token tokens too total try trying type types unable unauthorized unavailable undefined unexpected"
        " unhandled unknown unloaded unprocessable unsupported until update upstream url usage use used user valid"
        " validation value values version wait wanted warming was way went were what which while worker wrong"
    )
)
"""The only words that are quoted: those of errors, none of which describes a person or a thing in the world."""


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
    texts = [text for text in islice(_texts(said, _DEEP), _MANY) if _technical(text)]
    if not texts:
        return ""
    known, pieces = _sent(sent, secrets)
    return ", ".join(dict.fromkeys(text for text in texts if not _shows(text, known, pieces)))[:FOREIGN]


def quoted_names(names: Iterable[str], secrets: Iterable[str]) -> str:
    """The names that a server's metadata has, of which those that are odd or show anything of a secret are not quoted."""
    known, pieces = _sent(b"", secrets)
    first = list(islice(names, _MANY))
    kept = [name for name in first if _NAME.fullmatch(name) and not _shows(name, known, pieces)]
    return ", ".join(kept + ["one that is not quoted"] * (len(first) > len(kept)))


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


def _technical(text: str) -> bool:
    """Whether every word is in the vocabulary; so there are no numbers."""
    words = _WORD.findall(text)
    if not words or len(text) > FOREIGN or not _PLAIN.fullmatch(text):
        return False
    return all("".join(parts := _parts(word)) == word.lower() and _TECHNICAL.issuperset(parts) for word in words)


def _parts(word: str) -> list[str]:
    plain = word.lower()
    return [plain] if plain in _TECHNICAL else [part.lower() for part in _PART.findall(word)]


def _shows(text: str, known: str, pieces: frozenset[str]) -> bool:
    """Whether a word is part of what was sent, or has a word of it in it."""
    words = [word.lower() for word in _WORD.findall(text)] + [part for word in _WORD.findall(text) for part in _parts(word)]
    return any(word in known or not pieces.isdisjoint(_runs(word)) for word in words if word not in _COMMON)


def _runs(word: str) -> Iterator[str]:
    return (word[i:j] for i in range(len(word)) for j in range(i + _SHORTEST, len(word) + 1))


def _sent(body: bytes, secrets: Iterable[str]) -> tuple[str, frozenset[str]]:
    """(letters and digits of what was sent, its words; of short ones that are adjacent, several together)."""
    own = _words(part for secret in secrets for part in _readings(secret))
    try:
        said = json_loads(body) if body else []
    except (ValueError, RecursionError):
        fields = _fields(body)
        if fields:
            texts = _words(fields)
            return f"{''.join(texts)} {''.join(own)}", _pieces(texts) | _pieces(own)
        # tensors as bytes, where words are none
        texts = _words([body.decode("utf-8", "ignore"), body.decode("latin-1")])
        return f"{''.join(texts)} {''.join(own)}", _pieces(own)
    texts, values = (_words(_values(said, keys=keys)) for keys in (True, False))  # without keys in between, values are adjacent
    return " ".join(map("".join, (texts, values, own))), _pieces(texts) | _pieces(values) | _pieces(own)


def _pieces(words: list[str]) -> frozenset[str]:
    """The words of three letters or more, and adjacent shorter ones together."""
    found = set()
    for i, word in enumerate(words):
        if len(word) >= _SHORTEST:
            found.add(word)
            continue
        run = word
        for other in words[i + 1 : i + _SHORTEST]:
            if len(run) >= _SHORTEST or len(other) >= _SHORTEST:
                break
            run += other
        found.add(run)
    return frozenset(found)


def _words(texts: Iterable[str]) -> list[str]:
    """Letters and digits, word by word, without case and accents."""
    text = "\n".join(texts)
    if not text.isascii():
        text = "".join(c for c in normalize("NFKD", text).casefold() if not combining(c))
    return _WORD.findall(text.casefold())


def _values(value: Any, *, keys: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if keys:
                yield str(key)
            yield from _values(part, keys=keys)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part, keys=keys)
    else:
        yield str(value)
        if isinstance(value, str):
            yield from _decoded(_LISTED.split(value))


def _fields(body: bytes) -> list[str]:
    """The texts of a body of form fields, or in several parts; empty: it is neither."""
    if body.startswith(b"--"):
        return [body.decode("utf-8", "ignore"), *_decoded(body.decode("latin-1").split())]
    if not _FORM.fullmatch(body):
        return []
    texts = [text for pair in parse_qsl(body.decode("ascii"), keep_blank_values=True) for text in pair]
    return [*texts, *(found for text in texts for found in _decoded(_LISTED.split(text)))]


def _readings(secret: str) -> Iterator[str]:
    """A header's value, and what a server may read in it: `Basic` is base64 of user and password."""
    yield secret
    yield from _decoded(secret.split())


def _decoded(words: Iterable[str]) -> Iterator[str]:
    """The texts of which base64 is among the words."""
    for word in words:
        with contextlib.suppress(ValueError):  # the usual case
            yield base64.b64decode(word, validate=True).decode()
