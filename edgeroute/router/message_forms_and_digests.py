"""Messages of an input in one of many forms, and digests of their content that do not depend on the form. Pure.

The content of a message is its texts without white space, punctuation and case, the bytes of its pictures, and the arguments of
its calls. Texts are compared as runs of segments (sentences, lines, parts, messages), so they may be joined or split there.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from itertools import islice, pairwise
from numbers import Number
from pathlib import PurePath
from types import MemberDescriptorType
from typing import Any, Final, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote, unquote_to_bytes
from uuid import UUID

from edgeroute.router.request import SCALARS
from edgeroute.system.late_imports_and_plugins import import_late

# Minimum bytes of content of a text that identifies a conversation; shorter ones, such as "yes", are in too many.
SHORTEST: Final = 17
SHORTEST_ANSWER: Final = 36  # minimum bytes of an answer that identifies a conversation: all models greet alike
# Minimum bytes of an earlier message of a turn that identify a conversation; a shorter one may be an instruction.
LONG: Final = 48
LONG_PAIR: Final = 64  # minimum bytes of two messages in a row that identify a conversation that merely stays
# Maximum segments of a run, unless a part or a message begins with the run; a long conversation has shorter runs.
LONGEST_RUN: Final = 64
MOST_COMPARED: Final = 4_000  # maximum segments of a conversation to compare; of a longer one the form counts as unknown
MOST_BOUND: Final = 64  # maximum digests that one call stores, beside that of the whole conversation
MOST_LEAVES: Final = 20_000  # maximum values in an input to search, and to read; the form of a larger one counts as unknown
MANY: Final = 256  # values of a part beyond which it is seen whether all are numbers, if they are too many to search
OBJECT: Final = 4  # values that an object counts as, since its attributes are searched, too
# Maximum characters of the texts in an input to read; the form of a larger one counts as unknown. One beyond ASCII counts as 5 to
# 13, by its bytes in UTF-8, as it takes up to 0.8 us to normalise, on the event loop; U+FDFA, 18 letters, takes 2, counts as 73.
MOST_LETTERS: Final = 1 << 18
DEEPEST: Final = 16
SYSTEM_ROLES: Final = frozenset({"system", "developer"})  # roles of messages with which many conversations begin
ANSWER_ROLES: Final = frozenset({"assistant", "ai", "model", "bot", "gpt"})
# Keys, or attributes, of a request that may have its messages.
REQUEST_KEYS: Final = (
    "messages", "prompt", "input", "inputs", "contents", "history", "conversation", "past_user_inputs", "generated_responses",
)  # fmt: skip
_ITEM: Final = re.compile(r"\w+_call(_output)?|reasoning|mcp_\w+")  # types of items without a role beside OpenAI's messages
_TEXT_KEYS: Final = frozenset({"", "text", "content", "parts", "value", *REQUEST_KEYS})
_ARGUMENT_KEYS: Final = frozenset({"arguments", "args", "input", "parameters"})
_FORM_KEYS: Final = frozenset(
    {"role", "type", "from", "id", "tool_call_id", "tool_use_id", "call_id", "detail", "mime_type", "media_type"}
)
_MESSAGE_NAMES: Final = ("role", "type", "content", "parts", "text", "tool_calls", "function_call", *REQUEST_KEYS)
_BORDERS: Final = re.compile(r"""[\n\r.,!?;:="()<>\u201c\u201d\u201e\u00ab\u00bb\u3001\u3002\u060c\u2013\u2014|]+| - """)
_FORM: Final = re.compile(r"[\W_]+")
_SYMBOLS: Final = re.compile(r"([^\w\s]{30})[^\w\s]+")  # normalising many combining marks in a row takes quadratic time
# `_BORDERS`, case and `_FORM` for a text of ASCII: a translation of its bytes, and bytes that are dropped.
_ASCII_BORDERS: Final = bytes.maketrans(b'ABCDEFGHIJKLMNOPQRSTUVWXYZ\r.,!?;:="()<>|', b"abcdefghijklmnopqrstuvwxyz" + b"\n" * 14)
_ASCII_FORM: Final = bytes(n for n in range(128) if not chr(n).isalnum() and chr(n) not in '\n\r.,!?;:="()<>|')
# With a media type or `;base64`: `data:` is in prose, too.
_DATA_URL: Final = re.compile(r"(?ai)data:((?:image|audio|video|text|application)/[^,:\s]{0,200}|;base64),\s*([\w+/=%.~-]+)")
_ESCAPES: Final = re.compile(r"(?:\\(?:u[0-9a-fA-F]{4}|[nrt]))+")  # as JSON has letters beyond ASCII, and white space
_TAG: Final = re.compile(r"</?[a-zA-Z][\w:.-]{0,30}(?=[\s/>])")  # begin of a tag of XML; what its attributes say is content
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_\r\n-]{64,}=*")
_NOT_BASE64: Final = bytes(n for n in range(128) if not chr(n).isalnum() and chr(n) not in "+/")
_OF_ANSWER: Final = b"answer"  # end of a short answer's digest: other messages alone are compared with it
_PLAIN: Final = (int, float, complex, PurePath, UUID, date, Decimal)
_WITHOUT_PARTS: Final = (str, bytes, *_PLAIN)


class Message(NamedTuple):
    """One message of a conversation."""

    role: str  # role in lower case; empty for a text in a list of texts, which may as well be the row of a table
    texts: list[list[bytes]]  # contents of the sentences and lines of the message's texts, a list for each part
    beside: list[list[bytes]]  # contents of other texts, such as arguments of calls
    media: list[bytes]  # digests of pictures and other bytes, and of addresses
    calls: list[bytes]  # contents of calls' arguments

    @property
    def content(self) -> bytes:
        """Content of the texts together; else of what is beside them."""
        return b"".join(map(b"".join, self.texts)) or b"".join(map(b"".join, self.beside))


class Conversation(NamedTuple):
    """Messages of an input, and whether all of it could be read.

    Attributes:
        unknown: True if a value in it has an unknown form, or it is too large.
    """

    messages: list[Message]
    unknown: bool

    @property
    def spoken(self) -> list[Message]:
        """The messages with content, less those of the system."""
        return [m for m in self.messages if m.role not in SYSTEM_ROLES and (m.content or m.media)]


def _unescaped(text: str) -> str:
    """Return a text without the escapes of addresses, HTML and JSON, with line breaks in place of tags, and few symbols in a row.

    It is no longer than the text.
    """
    text = unquote(text) if "%" in text else text
    text = import_late("html").unescape(text) if "&" in text else text
    text = _TAG.sub("\n", text) if "<" in text else text
    text = _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), text) if "\\" in text else text
    return text if text.isascii() else _SYMBOLS.sub(r"\1", text)


def _segments(text: str) -> list[bytes]:
    """Return the contents of an unescaped text's sentences and lines: without space, punctuation, case and compatibility forms.

    Pieces without content are left out.
    """
    if text.isascii():
        return [*filter(None, text.replace(" - ", "\n").encode().translate(_ASCII_BORDERS, _ASCII_FORM).split(b"\n"))]
    pieces = _BORDERS.split(normalize("NFKC", text).casefold())
    return [content.encode() for piece in pieces if (content := _FORM.sub("", piece))]


# Reading an input.


class _Search:
    """Search for messages in an input. Each part is examined once, also where it occurs again, or within itself."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, bool], tuple[Any, bool]] = {}  # with the part, so that no other gets its id
        self.left = MOST_LEAVES  # values that may still be searched

    def is_conversation(self, x: Any, depth: int = 0, *, texts: bool = True) -> bool:
        """Return True if a part is a message, a list of messages or of texts, or holds one of these, or a prompt, at any depth.

        A text or bytes alone are none; what is nested too deeply, or has too many values that are not all numbers, counts as one.

        Args:
            x: the input, or a part of it.
            depth: number of containers around it.
            texts: True if a list of texts counts.
        """
        if type(x) in SCALARS or isinstance(x, _WITHOUT_PARTS):
            return False
        if depth > DEEPEST or self.left < 0:
            return True
        if (part := (id(x), texts)) not in self._found:
            self._found[part] = x, False
            self._found[part] = x, self._examine(x, depth, texts)
        return self._found[part][1]

    def _examine(self, x: Any, depth: int, texts: bool) -> bool:
        """Return `is_conversation` of a part that was not examined before."""
        if (dtype := getattr(x, "dtype", None)) is not None and not isinstance(x, Mapping):
            fields = getattr(dtype, "fields", None)  # a mapping in NumPy
            parts = [field.base for field, *_ in fields.values()] if isinstance(fields, Mapping) else [dtype]
            may_have = any(getattr(part, "kind", "") in {"O", "U", "T", "V"} for part in parts)
            if not may_have or (getattr(x, "size", 0) > self.left and not self.counts(x, x.size)):
                return False
            return self.left < 0 or self.is_conversation(x.tolist(), depth + 1, texts=texts)
        if type(x) not in (list, tuple) and (_is_message(x) or self.requested(x, depth)):
            return True
        if isinstance(x, Mapping) or not isinstance(x, Collection):
            return False
        values = x if type(x) in (list, tuple) else [*x]  # a table of Pandas has rows, and yields columns
        kinds = {*map(type, values)}
        if kinds <= SCALARS or not self.counts(values, len(values)):
            return False
        if self.left >= 0 and all(issubclass(kind, str) for kind in kinds):
            return texts
        return self.left < 0 or any(self.is_conversation(value, depth + 1, texts=texts) for value in values)

    def counts(self, x: Any, size: int) -> bool:
        """Count a part's values as searched. Return False, and count none, if they are too many, but all are numbers."""
        is_free = size > max(self.left, MANY) and _is_numbers(x)
        self.left -= 0 if is_free else size
        return not is_free

    def requested(self, x: Any, depth: int) -> dict[Any, Any]:
        """Return the items of a request, or attributes, that have its messages: by their names, or else by their form."""
        is_mapping = isinstance(x, Mapping)
        given = {key: x.get(key) if is_mapping else getattr(x, key, None) for key in REQUEST_KEYS}
        # A property may return a new object each time, of which none was examined before.
        self.left -= 0 if type(x) is dict else OBJECT * sum(v is not None for v in given.values())
        asked = {k: v for k, v in given.items() if isinstance(v, str) or (v is not None and self.is_conversation(v, depth + 1))}
        if asked or type(x) in (list, tuple):
            return asked
        items = x if is_mapping else _attributes(x)
        size = len(items) if is_mapping else len(items) + OBJECT
        if (is_mapping and {*map(type, items.values())} <= SCALARS) or not self.counts(items, size):
            return {}
        return {key: value for key, value in items.items() if self.is_conversation(value, depth + 1, texts=False)}


def _is_numbers(x: Any, most: int | None = MANY) -> bool:
    """Return True if a list, dict or array has nothing but numbers, dates and None, at any depth; looks at some parts first."""
    level = [x]
    for _ in range(DEEPEST):
        kinds = {kind for kind in {*map(type, level)} if not issubclass(kind, Number | date | type(None))}
        if not kinds or any(issubclass(kind, str) for kind in kinds):
            return not kinds and (most is None or _is_numbers(x, None))
        within: list[Any] = []
        for part in {id(part): part for part in level if type(part) in kinds}.values():
            if type(part) in (dict, list) or (isinstance(part, tuple) and not type(part).__dictoffset__):
                within += part.values() if isinstance(part, dict) else part
            elif (kind := getattr(getattr(part, "dtype", ""), "kind", "V")) not in "biufcmM":
                within.append(part.tolist() if kind == "O" else "")
        level = within[:most]
    return False


def read_conversation(x: Any, *, whole: bool = False) -> Conversation | None:
    """Return the messages of an input; None if it is no conversation. Never raises: what cannot be read is unknown.

    Of one too large to be compared no more is read, unless `whole`: then as much as can be.
    """
    reader = _Reader(whole)
    try:
        found = isinstance(x, str) or reader.search.is_conversation(x)
        if _is_numbers(x) if reader.search.left < 0 else not found:
            return None
        return Conversation([] if reader.is_full else reader.messages(x, 0), reader.unknown or reader.is_full)
    except Exception:  # noqa: BLE001 - an attribute of the application's object may raise anything
        return Conversation([], True)


def _is_message(value: Any) -> bool:
    """Return True if a value looks like a message.

    A mapping has `role`, `content` or `parts`, or `from` and `value`; an object has `content`, or `role` and `parts`. Either may
    have the `type` of an item that comes between messages instead, such as a call's output.
    """
    if isinstance(value, Mapping):
        is_named = any(key in value for key in ("role", "content", "parts")) or ("from" in value and "value" in value)
        kind = value.get("type")
    else:
        is_named = hasattr(value, "content") or (hasattr(value, "role") and hasattr(value, "parts"))
        kind = getattr(value, "type", None)
    return is_named or (isinstance(kind, str) and _ITEM.fullmatch(kind) is not None)


class _Reader:
    """Reader of one input.

    Attributes:
        unknown: True if a value has an unknown form, or there are too many.
    """

    def __init__(self, whole: bool) -> None:
        self.search, self.unknown, self._whole = _Search(), False, whole
        self._left, self._letters, self._segments_left = MOST_LEAVES, MOST_LETTERS, MOST_COMPARED

    @property
    def is_full(self) -> bool:
        """True if nothing more is read, since it would not be compared."""
        return self._left < 0 or (not self._whole and min(self._letters, self._segments_left, self.search.left) < 0)

    def messages(self, x: Any, depth: int) -> list[Message]:
        """Return the messages of a conversation, of any form; sets `unknown` where it is too deep.

        A text is one message without a role. In a request, all beside its messages is the content of a message of the system.
        """
        if isinstance(x, str) or _is_message(x):
            return [self.message("", x) if isinstance(x, str) else self._read_message(x)]
        x = (x.tolist() if getattr(x, "size", 0) <= MOST_LEAVES else []) if hasattr(x, "dtype") else x
        asked = self.search.requested(x, depth)
        if not asked and isinstance(x, Collection) and not isinstance(x, Mapping):
            found: list[Message] = []
            for value in x:
                if self.is_full:
                    break
                is_nested = depth < DEEPEST and not isinstance(value, str) and self.search.is_conversation(value)
                found += self.messages(value, depth + 1) if is_nested else [self.message("", value)]
            return found
        fields = _fields(x) or {}
        found = [self.message("system", {key: value for key, value in fields.items() if key not in asked})]
        for value in asked.values():
            if isinstance(value, str) or (depth < DEEPEST and not self.is_full):
                found += [self.message("user", value)] if isinstance(value, str) else self.messages(value, depth + 1)
        self.unknown = self.unknown or depth >= DEEPEST or self.is_full
        return found

    def _read_message(self, value: Any) -> Message:
        """Return a value as a message, whose role is its `role`, `from` or `type`, in lower case, or "user"."""
        fields = _fields(value) or {}
        role = next((name for key in ("role", "from", "type") if (name := fields.get(key))), "user")
        return self.message(str(role.value if isinstance(role, Enum) else role).lower(), fields)

    def message(self, role: str, value: Any) -> Message:
        """Return a message with the content of a value."""
        message = Message(role, [], [], [], [])
        self._read(value, message, "", 0)
        return message

    def _read(self, value: Any, message: Message, key: str, depth: int) -> None:
        """Add the content of a value under a key, and of all in it, to a message, in place.

        That is, texts, digests of bytes, and arguments of calls. Skips None, and form keys that have a single word; sets
        `unknown` for what is too deep, too much or of an unknown form.
        """
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            self.unknown = True
        elif value is None or (key in _FORM_KEYS and not (isinstance(value, str) and " " in value)):
            pass
        elif isinstance(value, Enum):
            self._read(value.value, message, key, depth + 1)
        elif key in _ARGUMENT_KEYS and isinstance(value, str | Mapping):
            message.beside.append(self._segments(_flattened(value) if self._letters >= 0 else ""))
            message.calls.append(b"".join(message.beside[-1]))
        elif isinstance(value, str):
            self._read_text(str.__str__(value), message, key)
        elif isinstance(value, bytes | bytearray | memoryview):
            self._letters -= 0 if self._whole else len(value) >> 6  # so that some 16 MB are read, in a tenth of a second
            message.media.append(_digest(b"media", bytes(value)))
            with suppress(UnicodeDecodeError):
                message.texts.append(self._segments(bytes(value).decode()))
        elif isinstance(value, _PLAIN):
            message.beside.append(self._segments(f"{key} {value}"))
        elif callable(getattr(value, "tobytes", None)) or callable(getattr(value, "numpy", None)):
            message.media.append(_digest(b"media", (value if hasattr(value, "tobytes") else value.numpy()).tobytes()))
        elif (fields := _fields(value)) is not None or isinstance(value, Collection):
            for name, part in ((key, part) for part in value) if fields is None else fields.items():
                if self.is_full:
                    break
                message.beside.extend([self._segments(name)] if isinstance(name, str) and " " in name else [])
                self._read(part, message, name if isinstance(name, str) else "", depth + 1)
        else:
            self.unknown = True

    def _read_text(self, text: str, message: Message, key: str) -> None:
        """Add a text under a key to a message: data URLs and Base64 as bytes, addresses of pictures as such.

        Of too many data URLs it sets `unknown`, and adds no text.
        """
        parts = _DATA_URL.split(text, max(1, self._left)) if ":" in text else [text]  # none in Base64, whose search takes long
        for kind, data in zip(parts[1::3], parts[2::3], strict=True):
            self._read(_decoded(data) if "base64" in kind.lower() else unquote_to_bytes(data), message, "", 0)
        if self._left <= 0:
            self.unknown = True
            return
        text = "\n".join(parts[::3]).strip()
        if _BASE64.fullmatch(text):
            self._read(_decoded(text), message, "", 0)
            # Words that nothing but line breaks or hyphens join look like it, too; a large picture is no text.
            text = text if key in _TEXT_KEYS and len(text) <= self._letters else ""
        if key not in _TEXT_KEYS and text.lower().startswith(("http://", "https://", "file:")):
            message.media.append(_digest(b"media", text.encode("utf-8", "surrogatepass")))
        else:
            (message.texts if key in _TEXT_KEYS else message.beside).append(self._segments(text))

    def _segments(self, text: str) -> list[bytes]:
        """Return the contents of a text's sentences and lines; [] beyond `MOST_LETTERS` characters. Too many set `unknown`."""
        self._letters -= len(text)
        if self._letters >= 0 and not (text := _unescaped(text)).isascii():
            self._letters -= 4 * (len(text.encode("utf-8", "surrogatepass")) - len(text) + 16 * text.count("\ufdfa"))
        found = _segments(text) if self._letters >= 0 else []
        self._segments_left -= len(found)
        self.unknown = self.unknown or min(self._letters, self._segments_left) < 0
        return found


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """Return the items of a mapping, or the public attributes of an object; None if it has none.

    Private names and callables are left out; a collection without `content` has none.
    """
    if isinstance(value, Mapping) or (isinstance(value, Collection) and not hasattr(value, "content")):
        return value if isinstance(value, Mapping) else None
    names = {name: getattr(value, name) for name in _MESSAGE_NAMES if hasattr(value, name)} | _attributes(value)
    return {name: part for name, part in names.items() if not name.startswith("_") and not callable(part)} or None


def _attributes(x: Any) -> dict[str, Any]:
    """Return an object's attributes, in its slots and in its `__dict__`, without Python's own (`__name__`)."""
    slots = [name for kind in type(x).__mro__ for name, slot in vars(kind).items() if isinstance(slot, MemberDescriptorType)]
    values = {name: getattr(x, name, None) for name in slots} | {**getattr(x, "__dict__", {})}
    return {name: value for name, value in values.items() if not name.startswith("__")}


def _decoded(data: str) -> bytes:
    """Return the bytes of Base64 in either alphabet, with or without padding and line breaks.

    Other characters are dropped, as is a last one too few for a byte.
    """
    plain = data.replace("-", "+").replace("_", "/").encode("ascii", "ignore").translate(None, _NOT_BASE64)
    plain = plain[: len(plain) - (len(plain) % 4 == 1)]
    return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4))


def _flattened(value: Any) -> str:
    """Return the arguments of a call, or their JSON, as one text that does not depend on the order of keys.

    What JSON cannot have is written with `repr`.
    """
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    try:
        return json.dumps(value, sort_keys=True, default=repr, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


# Digests.


def _digest(kind: bytes, *parts: bytes) -> bytes:
    """Return the digest of a kind of content, 16 bytes."""
    return blake2b(b"".join(parts), digest_size=16, person=kind).digest()


def keyed(digest: bytes, key: bytes) -> bytes:
    """Return a digest as the file with this key has it, or the calls of one client."""
    return blake2b(digest, key=key, digest_size=16).digest()


def scope_digest(key: str) -> bytes:
    """Return the digest of the key of a conversation or a client, 32 bytes."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def text_digest(content: bytes) -> bytes:
    """Return the digest of a text's content."""
    return _digest(b"text", content)


def _beside_texts(messages: list[Message]) -> list[bytes]:
    """Return the digests of messages' pictures, and of the arguments of their calls that are long enough."""
    return [d for m in messages for d in [*m.media, *(text_digest(call) for call in m.calls if len(call) >= SHORTEST)]]


def chains(spoken: Iterable[Message]) -> Iterator[bytes]:
    """Yield the digest of the conversation up to each message; empty for a list of texts that is too short."""
    chain, size = b"", 0
    for message in spoken:
        content = message.content
        size += len(content)
        chain = _digest(b"chain", chain, _digest(b"message", content, *message.media))
        yield chain if size >= SHORTEST or message.role else b""


def _pairs(spoken: list[Message]) -> Iterator[bytes]:
    """Yield the digest of each two successive messages that have `LONG_PAIR` bytes of text or more together."""
    contents = [(m.content, b"".join(m.media)) for m in spoken]
    for (first, a), (second, b) in pairwise(contents):
        if len(first) + len(second) >= LONG_PAIR:
            yield _digest(b"pair", _digest(b"", first, a), _digest(b"", second, b))


def chain_digests(conversation: Conversation) -> list[bytes]:
    """Return the digests to store of a call that merely stays: by them alone a continuation is recognised.

    They are those of the whole and of the last pair of messages, if long enough.
    """
    spoken = conversation.spoken
    return [*filter(None, [*chains(spoken)][-1:]), *[*_pairs(spoken)][-1:]]


def bound_digests(conversation: Conversation, is_shared: Any = lambda _: False) -> list[bytes]:
    """Return the digests to store of a call that may not leave the device, by which its continuations and quotations are found.

    They are of the whole, and of what is in its last turn: pictures, calls, long answers, and the texts of the user that identify
    a conversation. If there are none, an earlier one counts, or else the system's message. At most `MOST_BOUND` beside the whole.

    Args:
        conversation: messages of the call.
        is_shared: returns True for the digest of a text that has left the device in another call, such as an instruction.
    """
    spoken = conversation.spoken
    last = max((i for i, m in enumerate(spoken) if m.role not in ANSWER_ROLES), default=0)  # the turn ends there, or with answers
    begins = max((i + 1 for i, m in enumerate(spoken[:last]) if m.role in ANSWER_ROLES and not m.calls), default=0)
    turn = spoken[begins:]
    found = _beside_texts(turn)
    answers = [content for m in turn if m.role in ANSWER_ROLES and len(content := m.content) >= SHORTEST_ANSWER]
    texts = [*_identifying(turn, is_shared)] or ([] if found else [*_identifying(turn)][:2])
    if not texts and not found:
        texts = [*_identifying(spoken)][:2] or [*_identifying(conversation.messages, is_shared)][:2]
    whole = b"".join(m.content for m in turn if m.role not in ANSWER_ROLES)
    texts += [whole] if texts and len(whole) >= SHORTEST else []
    return [*chain_digests(conversation), *[*dict.fromkeys([*found, *map(text_digest, [*answers, *texts])])][:MOST_BOUND]]


def _identifying(messages: list[Message], is_shared: Any = lambda _: False) -> Iterator[bytes]:
    """Yield, from the last message back, the texts that may identify a conversation: long enough, not shared, and no answers.

    They are of the last message that has one, of tools' results, and of earlier messages only those of `LONG` bytes. Each is
    given without "Error: ", too, which the gateway and clients put before the result of a tool that failed.
    """
    last = True
    for m in reversed(messages):
        contents = dict.fromkeys([m.content, *(map(b"".join, m.texts) if len(m.texts) > 1 else ())])
        is_result = m.role in {"tool", "function"}
        shortest = SHORTEST if last or is_result else LONG
        telling = [c for c in contents if m.role not in ANSWER_ROLES and len(c) >= shortest and not is_shared(text_digest(c))]
        yield from (c for t in telling for c in dict.fromkeys((t, t.removeprefix(b"error"))) if not is_shared(text_digest(c)))
        last = last and not m.media and not any(len(call) >= SHORTEST for call in m.calls) and (is_result or not telling)


def shared_digests(conversation: Conversation) -> list[bytes]:
    """Return the digests of the texts of a call that leaves the device, so that what calls have in common binds none of them.

    At most `MOST_BOUND`; short texts are left out.
    """
    contents = (content for m in conversation.messages for text in m.texts if len(content := b"".join(text)) >= SHORTEST)
    return [*map(text_digest, islice(contents, MOST_BOUND))]


def answer_digests(answer: Any, outputs: Any = None, begun: bytes = b"") -> list[bytes]:
    """Return the digests to store of an answer, and of the answer after the beginning that the call gave.

    A text of less than `SHORTEST_ANSWER` bytes has only a digest that is compared with other messages than answers; of less than
    `SHORTEST` none. At most `MOST_BOUND`.

    Args:
        answer: a text, or a value of any form; arrays alone count as no answer.
        outputs: what a model replied; of a reply in OpenAI's form its messages are read, with calls and thoughts.
        begun: content of the beginning.
    """
    reader, said = _Reader(True), list[Message]()
    with suppress(Exception):  # an attribute of the application's object may raise anything, and a reply have another form
        said.append(reader.message("assistant", {"content": None if hasattr(answer, "dtype") else answer}))
        said += [reader.message("assistant", choice["message"]) for choice in outputs["choices"]]
    contents = {a + b: 0 for m in said for b in (m.content, *map(b"".join, [*m.texts, *m.beside])) for a in (b"", begun)}
    found = _beside_texts(said) + [text_digest(content) for content in contents if len(content) >= SHORTEST_ANSWER]
    found += [text_digest(content) + _OF_ANSWER for content in contents if len(content) >= SHORTEST]
    return [*dict.fromkeys(found)][:MOST_BOUND]


def looked_up(conversation: Conversation) -> Iterator[bytes]:
    """Yield the digests to search: a stored one among them means that the conversation continues or quotes a private one.

    They are of the conversation up to each message, of pairs, of pictures, and of runs of segments. System messages are included,
    since private text may have been put there.
    """
    spoken = conversation.spoken
    yield from filter(None, chains(spoken))
    yield from _pairs(spoken)
    flow: list[_Segment] = []
    for m in conversation.messages:
        yield from m.media
        begins = len(flow)
        for segments in m.texts:
            flow += [_Segment(content, m.role in ANSWER_ROLES, 0 if i else len(segments)) for i, content in enumerate(segments)]
        if len(flow) > begins:
            flow[begins] = flow[begins]._replace(reach=len(flow) - begins)
        for segments in m.beside:
            yield from _runs([_Segment(content, False, 0 if i else len(segments)) for i, content in enumerate(segments)])
    yield from _runs(flow)


class _Segment(NamedTuple):
    """Sentence or line of a message."""

    content: bytes
    is_answer: bool  # True if an answer has it: short answers are looked for elsewhere alone
    reach: int  # minimum segments of a run that begins here: to the end of a part or message


def _runs(flow: list[_Segment]) -> Iterator[bytes]:
    """Yield the digest of each run of successive segments that has `SHORTEST` bytes or more.

    Runs are shorter in a long conversation. One that begins outside an answer also gives the digest by which short answers are
    stored.
    """
    size = max(1, len(flow))
    longest = max(1, min(LONGEST_RUN, max(8, 2_000 // size), 3 * MOST_COMPARED // size))
    for i, first in enumerate(flow):
        running, size = blake2b(digest_size=16, person=b"text"), 0
        for segment in flow[i : i + max(longest, first.reach)]:
            running.update(segment.content)
            size += len(segment.content)
            if size >= SHORTEST:
                yield (digest := running.digest())
                if not first.is_answer:
                    yield digest + _OF_ANSWER
