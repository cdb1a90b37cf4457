"""Bodies of requests to HTTP APIs: a template with placeholders, filled with an input; as JSON, multipart or form fields.

A template is a JSON value. In its texts `{input}` is the input, `{input.jpeg}` the item of a mapping under that key (`{input.0}`:
of a list at that index), and `{input.jpeg|base64}` that item after a filter. `{{` and `}}` are braces. A text that is one
placeholder becomes the value; in a longer text the value is a part of it. Values are encoded after the template is filled, so
none of them can add a key, a field or a header; attributes are never read, and nothing is evaluated.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import urlencode

import numpy as np

from edgeroute.core.error_codes_and_texts import class_name, clean
from edgeroute.errors import BadInput, PolicyError, check_number, nearest
from edgeroute.system.json_codec_and_short_repr import json_dumps

# Encoding of values as JSON, multipart and form fields. An error names the value's place, and what to write instead.

QUICK = find_spec("orjson") is not None  # True if orjson is installed, so that the fast encoder is tried first
BYTES = (bytes, bytearray, memoryview)


class File(NamedTuple):
    """File in a multipart body, as a template or as sent."""

    content: Any
    filename: Any
    kind: str


def scalar(value: Any, where: str) -> str:
    """Return a text unchanged, or a number, true or false as its JSON; also of a NumPy scalar.

    Args:
        value: the value.
        where: name of the value and its place, for the error.

    Raises:
        BadInput: the value is of another type, NaN or infinity; the message does not quote it.
    """
    value = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and abs(value) < np.inf):
        return json_dumps(value).decode()
    hint = "write |base64 after it" if isinstance(value, BYTES) else "write |json after it, or pick a part of it"
    raise BadInput(f"{where}, which takes text or a number, not {description_of(value)}: {hint}")


def to_json(value: Any, whose: str = "the input") -> bytes:
    """Return the JSON of a value, with NumPy's arrays and numbers as lists and numbers.

    NaN, infinities and masked values are refused, not written as null.

    Args:
        value: any value.
        whose: name of the value, for the error.

    Raises:
        BadInput: a part of the value has no JSON; the message names the part, its place, and a remedy.
    """
    refused = list[Any]()

    def listed(part: Any) -> Any:
        """Return the JSON form of a part of a foreign type, or note it and raise TypeError."""
        converted = _to_json_form(part)
        if converted is part:
            refused.append(part)
            raise TypeError
        return converted

    if QUICK:
        with suppress(TypeError, RecursionError):  # the error, if it is one, is told below
            encoded = json_dumps(value, listed)
            # `null` is written for NaN, too, and beside it foreign types would have been written as text.
            if not refused and b"null" not in encoded:
                return encoded
    try:
        return json_dumps(_strict(value, whose, ""))
    except RecursionError:
        raise BadInput(f"{whose} is nested too deeply for JSON, or in itself") from None


def _strict(value: Any, whose: str, place: str) -> Any:
    """Return a value in JSON's types, recursively; keys that are whole numbers become text.

    Raise BadInput for a part without JSON, NaN, infinity, or another key; the message has its place.

    Args:
        value: the value.
        whose: name of the whole value, for the error.
        place: place of the part.
    """
    missing = _missing(value)
    if missing:
        hint = "which JSON does not have: what stands for it is yours to say"
        raise BadInput(f"{whose} {'has' if place else 'is'} {missing}{_there(place)}, {hint}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_strict(part, whose, f"{place}.{i}") for i, part in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise BadInput(f"{whose} has a key of the type {class_name(key)}{_there(place)}, and JSON's keys are text")
        return {str(key): _strict(part, whose, f"{place}.{key}") for key, part in value.items()}
    converted = _to_json_form(value)
    if converted is value:
        raise BadInput(
            f"{whose} {'has' if place else 'is'} {description_of(value)}{_there(place)}, which JSON does not have{advice(value)}"
        )
    return _strict(converted, whose, place)


def _missing(value: Any) -> str:
    """Return "a masked array" or "NaN or infinity" if JSON would write a part of a number or array as null; else ""."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return "a masked array"
    floats = isinstance(value, float | np.floating) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return "" if not floats or np.isfinite(value).all() else "NaN or infinity"


def _there(place: str) -> str:
    """Return a place for a message; empty for the whole."""
    return f" at {clean(place[1:], 80)!r}" if place else ""


def _to_json_form(value: Any) -> Any:
    """Return an array, NumPy number, tensor or mapping as lists, number or dict, not recursively; another value itself."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "biufUO" else value
    if isinstance(value, np.generic):
        return value.item() if value.dtype.kind in "biufU" else value
    if isinstance(value, Mapping):
        return dict(value)
    listed = value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value  # of a tensor
    return listed if isinstance(listed, list | bool | int | float | str) else value


def description_of(value: Any) -> str:
    """Return the length of a text or bytes, the dtype and shape of an array, or else the type, in words; never the content."""
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, BYTES):
        return f"{len(value)} bytes"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"a value of the type {class_name(value)}"


def advice(value: Any) -> str:
    """Return a hint at what to write instead of bytes, a path, a picture, or another value that JSON does not have."""
    if isinstance(value, BYTES):
        return ': give the endpoint a body, as in body={"image": "{input|base64}"}'
    if isinstance(value, os.PathLike):
        return ': give the file\'s content, as path.read_bytes(), and the endpoint a body, as in body={"image": "{input|base64}"}'
    if hasattr(value, "getpixel"):
        return ': give its pixels, numpy.asarray(image), or with views={"cloud": ...} the bytes of its file'
    return ': give the endpoint encode=, a function that makes JSON of it, or the router a view, as in views={"cloud": ...}'


def multipart(fields: list[tuple[str, Any]]) -> tuple[str, bytes]:
    """Return (content type, body) of fields as multipart/form-data (RFC 7578), with names as browsers write them.

    A value is a text or a `File`. The boundary is random.
    """
    boundary = os.urandom(16).hex()
    parts: list[Any] = []
    for name, value in fields:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{_escape_quotes(name)}"'
        if isinstance(value, File):
            head += f'; filename="{_escape_quotes(value.filename)}"\r\nContent-Type: {value.kind}'
            content = value.content
        else:
            content = value.encode("utf-8", "surrogatepass")
        parts += [f"{head}\r\n\r\n".encode("utf-8", "surrogatepass"), content, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(parts)


def _escape_quotes(name: str) -> str:
    """Return a name with its quotes escaped."""
    return name.replace('"', "%22")  # there is no line break in it: that is refused


def form(fields: list[tuple[str, str]]) -> tuple[str, bytes]:
    """Return (content type, body) of fields as application/x-www-form-urlencoded."""
    text = urlencode(fields, encoding="utf-8", errors="surrogatepass")
    return "application/x-www-form-urlencoded", text.encode("ascii")


BodyType = Literal["json", "multipart", "form"]
MAX_BODY = 64 << 20  # default maximum of a request's body, bytes
MAX_NESTED, MAX_VALUES, MAX_TEXT = 32, 1000, 1 << 16  # limits of a template: levels, values, characters
FILE_KEYS = ("file", "filename", "type")  # keys of a file in a multipart template
EDGE_KEYS = ("value", "confidence", "outputs")  # keys of an edge's answer
OCTETS = "application/octet-stream"

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[\w-]+")
_MEDIA = re.compile(r"[\w.+-]+/[\w.+-]+(; ?[\w-]+=[\w.+-]+)*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Placeholder(NamedTuple):
    """`{input.path|filter}` of a template, parsed."""

    path: tuple[str, ...]
    filters: tuple[str, ...]
    text: str  # placeholder as written
    edge: bool = False  # True if it is of the edge's answer, which may be missing; False: of the input


class Body:
    """Template of a request's body, called with an input to make one.

    Args:
        template: JSON value with placeholders; a mapping for fields (multipart, form), or `{input}` for the input's own keys.
        kind: json, multipart or form. In a multipart body bytes are files, and so is a mapping with `file`, and if needed
            `filename` and `type`; other fields, and those of a form, are texts and numbers, several of one name as a list.
        max_bytes: maximum bytes of a body; a longer one is refused.
        edge: True if the template has the edge's answer, as `{edge}`, `{edge.value}` or `{edge.confidence}`; without an answer it
            is null (in fields: empty).

    Raises:
        PolicyError: the template is invalid; the message has the place in it, and the nearest valid name.
    """

    def __init__(self, template: Any, kind: str = "json", max_bytes: int = MAX_BODY, *, edge: bool = False) -> None:
        if kind not in (kinds := get_args(BodyType)):
            raise PolicyError(f"there is no body_type {kind!r}: {nearest(kind, kinds)}")
        check_number("max_body_bytes", max_bytes, least=1, whole=True)
        self.kind, self.max_bytes = kind, int(max_bytes)
        self.identity = repr((kind, template))  # text that identifies all settings of which a body depends
        parser = _Parser()
        parsed = parser.value(template, "", 0)
        if parser.edges and not edge:
            raise PolicyError("body: {edge} is the edge's answer, which is sent with send_edge alone: set that, too")
        if edge and not parser.edges:
            raise PolicyError('body: send_edge is set, and the edge\'s answer is not in it: write "{edge}", or "{edge.value}"')
        if not parser.placeholders:
            raise PolicyError("body: the input is missing in it: write {input}, or a part of it as in {input.jpeg|base64}")
        if kind == "json" or (isinstance(parsed, Placeholder) and not parsed.filters):
            self._template = parsed
        elif isinstance(parsed, dict) and parsed:
            self._template = {name: _field(name, part, kind) for name, part in parsed.items()}
        else:
            raise PolicyError(f'body: a {kind} body is a table of fields, as in {{ image = "{{input.jpeg}}" }}, or "{{input}}"')

    def __call__(self, x: Any, edge: Mapping[str, Any] | None = None) -> tuple[str, bytes]:
        """Return (content type, body) for one input.

        Args:
            x: the input.
            edge: the edge's answer to it; None: there is none.

        Raises:
            BadInput: a key is missing, a value cannot be written at its place, or the body is too long.
        """
        filled = _Filling(x, self.max_bytes, edge, fields=self.kind != "json")
        if self.kind == "json":
            encoded = "application/json", to_json(filled.value(self._template), "the body")
        else:
            fields = list(self._fields(filled))
            encoded = multipart(fields) if self.kind == "multipart" else form(fields)
        if len(encoded[1]) > self.max_bytes:
            raise filled.too_long(len(encoded[1]))
        return encoded

    def _fields(self, filled: _Filling) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each field: text, or for a multipart body a `File`.

        The fields are the template's, or for a template `{input}` the input's own keys. Raise BadInput for an input that is no
        mapping, a key that is no field's name, or a value that cannot be written.
        """
        template = self._template
        if isinstance(template, dict):
            for name, parts in template.items():
                yield from ((name, self._value(filled, name, part)) for part in parts)
            return
        fields = filled.value(template)
        if not isinstance(fields, Mapping):
            raise BadInput(
                f"a {self.kind} body of {template.text} takes a mapping, not {description_of(fields)}: name the fields in body="
            )
        for name, value in fields.items():
            if not isinstance(name, str) or not name or _CONTROL.search(name):
                raise BadInput(f"{template.text} has a key that cannot be a field's name: it is empty, no text, or no one line")
            yield name, self._written(value, name, f"{template.text}[{clean(name, 40)!r}]")

    def _value(self, filled: _Filling, name: str, part: Any) -> Any:
        """Return the filled value of a field as text, or as a `File` for a template of a file, or bytes in multipart.

        Raise BadInput for content or a file name of another type.
        """
        if not isinstance(part, File):
            return self._written(filled.value(part), name, str(getattr(part, "text", "")) or name)
        content, filename = filled.value(part.content), filled.value(part.filename)
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        if not isinstance(content, BYTES):
            raise BadInput(f"the file of {name!r} is {description_of(content)}, and takes bytes or text: encode it in a view")
        if not isinstance(filename, str) or not filename or _CONTROL.search(filename):
            raise BadInput(f"the file name of {name!r} is {description_of(filename)}, and takes text on one line")
        return File(content, filename, part.kind)

    def _written(self, value: Any, name: str, where: str) -> Any:
        """Return a field's value as text; bytes as a `File` of the field's name.

        Raise BadInput for bytes in a form, or other types.
        """
        if isinstance(value, BYTES):
            if self.kind == "multipart":
                return File(value, name, OCTETS)
            raise BadInput(f"{where} is {description_of(value)}, a form takes text: write |base64 after it, or use multipart")
        return scalar(value, f"{where} is a field's value")

    def __repr__(self) -> str:
        return f"Body({self.kind})"


class _Parser:
    """Parser of a template, which counts its placeholders and checks its size."""

    def __init__(self) -> None:
        self.placeholders = self.edges = self._values = self._text = 0

    def value(self, template: Any, place: str, deep: int) -> Any:
        """Return a template's value with its texts parsed, recursively. Counts values and placeholders.

        Args:
            template: the value.
            place: place of the value, for messages.
            deep: levels above it.

        Raises:
            PolicyError: it has an invalid placeholder, a part that JSON does not have, or is too large or deep.
        """
        self._values += 1
        if self._values > MAX_VALUES or deep > MAX_NESTED:
            raise PolicyError(f"body: more than {MAX_VALUES} values, or {MAX_NESTED} levels")
        if isinstance(template, str):
            return self._parse_text(template, place)
        if template is None or isinstance(template, bool | int) or (isinstance(template, float) and abs(template) < np.inf):
            return template
        if isinstance(template, Mapping):
            return {
                self._key(key, place): self.value(part, f"{place}.{key}".lstrip("."), deep + 1) for key, part in template.items()
            }
        if isinstance(template, list | tuple):
            return [self.value(part, f"{place}[{i}]", deep + 1) for i, part in enumerate(template)]
        raise PolicyError(f"{_at(place)}: a body takes what JSON has, not {description_of(template)}")

    def _key(self, key: Any, place: str) -> str:
        """Return a key of the template, its doubled braces as one; raise PolicyError if it has placeholders, or is no text."""
        parsed = self._parse_text(key, place) if isinstance(key, str) else None
        if not isinstance(parsed, str):
            raise PolicyError(f"{_at(place)}: a key is text without placeholders, not {clean(key, 40)!r}")
        return parsed

    def _parse_text(self, text: str, place: str) -> Any:
        """Return a text without placeholders, its only placeholder, or a `_Text` of its parts.

        Counts placeholders and characters. A doubled brace is one. Raise PolicyError for a single brace, an invalid placeholder,
        or too long texts.
        """
        self._text += len(text)
        if self._text > MAX_TEXT or any("\ud800" <= c <= "\udfff" for c in text):
            raise PolicyError(f"body: more than {MAX_TEXT} characters, or half of one, as \\ud800 is")
        parts: list[Any] = [""]
        end = 0
        for match in _PIECE.finditer(text):
            before, end = text[end : match.start()], match.end()
            parts[-1] += before
            if match[0] in {"{{", "}}"}:
                parts[-1] += match[0][0]
            elif match[1] is None:
                raise PolicyError(f"{_at(place)}: a single {match[0]!r}: a placeholder is {{input}}, a brace is written twice")
            else:
                parts += [placeholder := _placeholder(match[1], place), ""]
                self.placeholders, self.edges = self.placeholders + (not placeholder.edge), self.edges + placeholder.edge
        parts[-1] += text[end:]
        if len(parts) == 1:
            return parts[0]
        nonempty = [part for part in parts if part != ""]
        return nonempty[0] if len(nonempty) == 1 else _Text(nonempty)


class _Text(NamedTuple):
    """Text with placeholders in it."""

    parts: list[Any]


def _placeholder(content: str, place: str) -> Placeholder:
    """Return the parsed placeholder of what is between the braces: `input` or `edge`, keys after dots, filters after bars.

    Raise PolicyError if one of these is unknown; the message names the nearest.
    """
    source, *filters = (part.strip() for part in content.split("|"))
    root, *path = source.split(".")
    text = f"{{{clean(content, 60)}}}"
    if root not in {"input", "edge"}:
        raise PolicyError(f"{_at(place)}: there is no {text}: {nearest(root, ['input', 'edge'])} (a brace is written twice)")
    if root == "edge" and path and path[0] not in EDGE_KEYS:
        raise PolicyError(f"{_at(place)}: the edge's answer has no {clean(path[0], 40)!r}: {nearest(path[0], EDGE_KEYS)}")
    for name in path:
        if not _NAME.fullmatch(name):
            raise PolicyError(f"{_at(place)}: {text}: after a dot comes a key of letters, digits, _ and -, or an index")
    for name in filters:
        if name not in FILTERS:
            raise PolicyError(f"{_at(place)}: {text}: there is no filter {clean(name, 40)!r}: {nearest(name, FILTERS)}")
    return Placeholder(tuple(path), tuple(filters), text, root == "edge")


def _field(name: str, part: Any, kind: str) -> list[Any]:
    """Return the values of a field of a template as a list: a `File` for a table in multipart, else as it is.

    Raise PolicyError for an invalid name or value.
    """
    if not name or _CONTROL.search(name):
        raise PolicyError(f"body: a field's name is text on one line, not {clean(name, 40)!r}")
    parts = part if isinstance(part, list) else [part]
    return [
        _file(name, item) if isinstance(item, dict) and kind == "multipart" else _constant(name, item, kind) for item in parts
    ]


def _constant(name: str, part: Any, kind: str) -> Any:
    """Return a field's value of a template unchanged: text, a number, a boolean or a placeholder.

    Raise PolicyError for null, a list or a table.
    """
    if part is None or isinstance(part, dict | list):
        more = ", or a file, { file = ..., filename = ..., type = ... }" if kind == "multipart" else ""
        raise PolicyError(f"body.{clean(name, 40)}: the value of a field is text, a number, true or false{more}")
    return part


def _file(name: str, part: dict[str, Any]) -> File:
    """Return a file's template from its table {file, filename, type}; raise PolicyError for other keys or values.

    Without `filename` the field's name; without `type` that of unknown bytes.
    """
    place = f"body.{clean(name, 40)}"
    for key in part:
        if key not in FILE_KEYS:
            raise PolicyError(f"{place}: a file has no {clean(key, 40)!r}: {nearest(key, FILE_KEYS)}")
    kind = part.get("type", OCTETS)
    if not isinstance(part.get("file"), Placeholder | _Text | str):
        raise PolicyError(f'{place}: a file takes its content, as in {{ file = "{{input.jpeg}}" }}')
    if not isinstance(kind, str) or not _MEDIA.fullmatch(kind):
        raise PolicyError(f'{place}.type: expected a media type, as in "image/jpeg"')
    filename = part.get("filename", name)
    if not isinstance(filename, Placeholder | _Text | str) or filename == "" or _CONTROL.search(str(filename)):
        raise PolicyError(f"{place}.filename: expected text on one line")
    return File(part["file"], filename, kind)


class _Filling:
    """Filling of a template with one input. The size of base64 and arrays is counted before they are made."""

    def __init__(self, x: Any, max_bytes: int, edge: Mapping[str, Any] | None, *, fields: bool) -> None:
        self._x, self._left, self._max, self._edge, self._fields = x, max_bytes, max_bytes, edge, fields

    def value(self, template: Any) -> Any:
        """Return a value of the template filled with the input, recursively: of JSON types, arrays, bytes, or types of the input.

        Counts bytes. Raise BadInput if the input lacks a part, or the body becomes too long.
        """
        if isinstance(template, Placeholder):
            return self._pick_value(template)
        if isinstance(template, _Text):
            return "".join(part if isinstance(part, str) else self._part(part) for part in template.parts)
        if isinstance(template, dict):
            return {key: self.value(part) for key, part in template.items()}
        return [self.value(part) for part in template] if isinstance(template, list) else template

    def _part(self, placeholder: Placeholder) -> str:
        """Return a placeholder's value as a part of a text. Raise BadInput for another type than text or number."""
        picked = self._pick_value(placeholder)
        return "" if picked is None and placeholder.edge else scalar(picked, f"{placeholder.text} is a part of a text")

    def _pick_value(self, placeholder: Placeholder) -> Any:
        """Return a placeholder's value from the input or the edge's answer, after its filters.

        Counts its bytes towards the limit. A missing answer of the edge is null; in fields, and by filters other than `json`, an
        empty text. Raise BadInput if the input lacks the value, a filter does not take it, or the body becomes too long.
        """
        item = self._edge if placeholder.edge else self._x
        for i, key in enumerate(placeholder.path):
            if placeholder.edge and (item is None or (isinstance(item, Mapping) and key not in item)):
                item = None
                break
            item = _item(item, key, ".".join(("edge" if placeholder.edge else "input", *placeholder.path[:i])))
        if item is None and placeholder.edge and placeholder.filters != ("json",) and (placeholder.filters or self._fields):
            return ""
        if isinstance(item, memoryview):
            item = item.tobytes()
        for name in placeholder.filters:
            item = FILTERS[name](item, placeholder.text)
            self.spend(len(item))
        if isinstance(item, np.ndarray):
            self.spend(2 * item.size)  # a digit and a comma each, at least
        elif isinstance(item, str | bytes | bytearray) and not placeholder.filters:
            self.spend(len(item))
        return item

    def spend(self, size: int) -> None:
        """Count bytes of the body; raise BadInput beyond the maximum."""
        self._left -= size
        if self._left < 0:
            raise self.too_long(self._max - self._left)

    def too_long(self, size: int) -> BadInput:
        """Return the error for a body of so many bytes or more."""
        return BadInput(f"the request's body would be {size:,} bytes or more, and {self._max:,} are the most (max_body)")


def _item(container: Any, key: str, where: str) -> Any:
    """Return the item of a mapping under a key, or of a list, tuple or array at an index.

    Raise BadInput if there is none; the message names the nearest key, or how many items there are.
    """
    if isinstance(container, Mapping):
        if key in container:
            return container[key]
        names = [name for name in container if isinstance(name, str)]
        raise BadInput(f"{where} has no {key!r}: {clean(nearest(key, names)) if names else 'it has no keys'}")
    if isinstance(container, list | tuple | np.ndarray) and key.isdecimal() and key.isascii():
        length = len(container) if not isinstance(container, np.ndarray) or container.ndim else 0
        if len(key) < 10 and int(key) < length:  # noqa: PLR2004 - digits: longer ones are not converted
            return container[int(key)]
        raise BadInput(f"{where} has no item {key[:20]}: there are {length}")
    raise BadInput(f"{where} is {description_of(container)}, which has no {key!r}: give a mapping, as in x={{{key!r}: ...}}")


def _base64(value: Any, where: str) -> str:
    """Return bytes, the UTF-8 of a text, or the bytes of an array as Base64; raise BadInput for others."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        value = value.tobytes()
    elif not isinstance(value, BYTES):
        raise BadInput(f"{where} is {description_of(value)}, and base64 takes bytes, text or an array{advice(value)}")
    return b64encode(value).decode("ascii")


def _text(value: Any, where: str) -> str:
    """Return bytes as UTF-8 text, or a scalar as text; raise BadInput."""
    if isinstance(value, BYTES):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise BadInput(f"{where} is {description_of(value)} that are no text in UTF-8: write |base64") from None
    return scalar(value, where)


def _json(value: Any, where: str) -> str:  # noqa: ARG001 - a filter's
    """Return a value as JSON text; raise BadInput."""
    return to_json(value).decode()


# Name of a filter -> function of (value, placeholder as written).
FILTERS: Mapping[str, Callable[[Any, str], str]] = {"base64": _base64, "text": _text, "json": _json}


def _at(place: str) -> str:
    """Return a place in a template for a message."""
    return f"body.{clean(place, 80)}" if place and not place.startswith("[") else f"body{clean(place, 80)}"
