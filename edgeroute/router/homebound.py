"""Conversations that stay on the device, as they had a turn that may not leave: recognised by what is said in them."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple
from unicodedata import normalize

from edgeroute.core.egress import Denied, Rules, permit
from edgeroute.core.policy import Mode
from edgeroute.stores.journal import ProcessLock
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.system.process import now, replace_file

# Conversations as inputs: their turns, and the digests by which a later call with the same turns is recognised.

SHORTEST: Final = 8
"""Characters of a text that is recognised by itself; shorter ones, such as "yes", are in too many conversations."""
SHORTEST_ANSWER: Final = 40
"""Likewise of a model's answer, as all greet alike."""
TOLD: Final = frozenset({"system", "developer"})
"""Roles of what many conversations begin with."""
Digest = Callable[[bytes], bytes]
"""A keyed digest."""


class Turn(NamedTuple):
    """One message."""

    role: str
    """Empty: it is a text in a list of texts, which may as well be the row of a table."""
    text: str
    """Its text, without differences in white space and composition."""
    parts: tuple[str, ...] = ()
    """Those of its content, where it has several: programs join messages, and put others beside them."""

    @property
    def telling(self) -> Iterator[str]:
        """Its text and parts that are long enough to be recognised by themselves."""
        least = SHORTEST_ANSWER if self.role == "assistant" else SHORTEST
        return (text for text in (self.text, *self.parts) if len(text) >= least)


def turns(x: Any) -> list[Turn]:
    """The messages of an input: a list of them, a request with such, or one text; else none."""
    if isinstance(x, str):
        return [Turn("user", plain(x))]
    if isinstance(x, Mapping):
        x = x.get("messages", x.get("prompt"))
        if isinstance(x, str):
            return [Turn("user", plain(x))]
    if not isinstance(x, list | tuple) or not x or not _is_message(x[0]):
        return []
    if isinstance(x[0], str) and not all(map(_is_message, x)):  # a row of a table
        return []
    return [*map(_turn, x)]


def remembered(said: list[Turn], digest: Digest) -> list[bytes]:
    """The digests to remember of a conversation: that of all of it, and those of its last turn, with the answer before.

    None of the system's messages. All of it is remembered however short it is: nothing else tells that a conversation goes on
    from it. One in which nothing is said has none, nor has a list of texts that is short.
    """
    said = [turn for turn in said if turn.role not in TOLD]
    *_, whole = [b"", *_chained(said, digest)]
    begins = max((i for i, turn in enumerate(said) if turn.role == "assistant"), default=0)
    own = [digest(encoded(text)) for turn in said[begins:] for text in turn.telling]
    return [*([whole] if whole else []), *own]


def looked_up(said: list[Turn], digest: Digest) -> Iterator[bytes]:
    """The digests of which a remembered one means that this conversation goes on from, or quotes, one that was remembered.

    Among them those of the system's messages: what was said before may have been put there.
    """
    yield from (digest(encoded(text)) for turn in said for text in turn.telling)
    yield from (one for one in _chained([turn for turn in said if turn.role not in TOLD], digest) if one)


def _chained(said: list[Turn], digest: Digest) -> Iterator[bytes]:
    """After each message the digest of all so far; empty while nothing was said, or too little in texts without a role."""
    chain, size, heard = b"", 0, False
    for turn in said:
        size += len(turn.text)
        heard = heard or size >= (1 if turn.role else SHORTEST)
        chain = digest(b"%s %s" % (chain, digest(encoded(turn.text))))
        yield chain if heard else b""


def plain(text: str) -> str:
    """The text without differences in white space and composition."""
    return " ".join(normalize("NFC", text).split())


def encoded(text: str) -> bytes:
    """The text as the bytes that are digested."""
    return text.encode("utf-8", "surrogatepass")


def _is_message(one: Any) -> bool:
    return isinstance(one, str) or (isinstance(one, Mapping) and "role" in one) or hasattr(one, "content")


def _turn(one: Any) -> Turn:
    if isinstance(one, str):
        return Turn("", plain(one))
    content, calls, role = (
        one.get(name) if isinstance(one, Mapping) else getattr(one, name, None) for name in ("content", "tool_calls", "role")
    )
    parts: list[str] = []
    if isinstance(content, list | tuple):
        parts = [plain(_part(part)) for part in content]
        content = " ".join(parts)
    text = content if isinstance(content, str) else "" if content is None else _dumped(content)
    if calls:
        text = f"{text} {_dumped(calls)}"
    return Turn(str(role or "user"), plain(text), tuple(parts) if len(parts) > 1 else ())


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    return text if isinstance(text := part.get("text"), str) else _dumped(part)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys of several types, or it is in itself
        return repr(value)


# Keyed digests that are remembered, in a file if there is one: what they are of cannot be told from them.

log = logging.getLogger("edgeroute")
MOST: Final = 50_000
"""Digests that are remembered; the oldest go first."""
DAYS: Final = 90
"""How long each is remembered."""
WAIT_S: Final = 1.0
"""How long another process's lock on the file is waited for."""
_DAY_S: Final = 86400.0
_LINE_BYTES: Final = 40
_LINE = re.compile(r"([0-9a-f]{32}) ([0-9]{1,6})")
_KEY = re.compile(r"key ([0-9a-f]{64})\n")


class Digests(ForkSafe):
    """Digests of 16 bytes under a key of its own, shared by processes through the file: lines of `DIGEST DAY` after the key's.

    A file that cannot be read makes `blind` say so: nothing is known then of what was remembered. One that cannot be written is
    logged, once: what is added meanwhile is known to this process alone. There is no fsync: a power cut may lose the last ones.

    Args:
        path: of the file; None: in memory only.
    """

    _lock = per_process(threading.RLock)

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._key, self._known = os.urandom(32), dict[bytes, int]()
        self._seen: tuple[int, int] | None = None
        """Inode and size of the file as far as it was read."""
        self._unwritten: dict[bytes, int] = {}
        """Those that are remembered here, and not in the file."""
        self._told = False
        self.blind = ""
        self._refresh()

    def digest(self, text: bytes) -> bytes:
        """The digest, 16 bytes."""
        return blake2b(text, key=self._key, digest_size=16).digest()

    def refreshed(self) -> bool:
        """Reads what other processes have added. Returns whether anything is remembered, or it is not known what is."""
        self._refresh()
        return bool(self._known) or bool(self.blind)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def add(self, digests: Iterable[bytes]) -> None:
        """Remembers these, on disk too before it returns."""
        today = int(now() / _DAY_S)
        with self._lock:
            given = dict.fromkeys(digests, today)
            fresh = [one for one in given if self._known.pop(one, None) != today]
            self._known.update(given)  # as the newest
            while len(self._known) > MOST:
                del self._known[next(iter(self._known))]
            if self.path is None:
                return
            self._unwritten.update(dict.fromkeys(fresh, today))
            while len(self._unwritten) > MOST:
                del self._unwritten[next(iter(self._unwritten))]
            if self.blind or not self._unwritten:
                return
            try:
                self._append("".join(f"\n{one.hex()} {day}\n" for one, day in self._unwritten.items()))
                self._unwritten.clear()
            except OSError as e:
                if not self._told:
                    self._told = True
                    log.error(  # noqa: TRY400 - the message says all
                        "%s cannot be written: which conversations have to stay on this device is known to this process alone, "
                        "until it ends: %s",
                        self.path,
                        e.strerror or e,
                    )

    def _append(self, text: str) -> None:
        assert self.path is not None, "there is a file"
        lock = ProcessLock(self.path.with_suffix(".lock"))
        try:
            if not lock.take(WAIT_S):  # it may be replacing the file
                raise OSError(errno.EAGAIN, "another process holds its lock")
            if not self.path.exists():  # deleted meanwhile: digests under another key would say nothing
                self._write()
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                left = text.encode()
                while left:
                    left = left[os.write(fd, left) :]
                about = os.fstat(fd)
                if self._seen == (about.st_ino, about.st_size - len(text)):  # nobody else has added anything
                    self._seen = about.st_ino, about.st_size
                large = about.st_size > 4 * MOST * _LINE_BYTES
            finally:
                os.close(fd)
            if large:
                self._refresh()  # with what others have added
                self._write()
        finally:
            lock.leave()

    def _write(self) -> None:
        """Writes the file anew."""
        assert self.path is not None, "there is a file"
        self.path.touch(0o600)
        lines = [f"key {self._key.hex()}\n", *(f"{one.hex()} {day}\n" for one, day in self._known.items())]
        replace_file(self.path, "".join(lines))

    def _refresh(self) -> None:
        """Reads what was added to the file since, all of it the first time and after it was replaced."""
        if self.path is None:
            return
        try:
            found = self.path.stat()
            if (found.st_ino, found.st_size) == self._seen and not self.blind:
                return
        except OSError as e:
            if isinstance(e, FileNotFoundError) and self._seen is not None:
                return  # deleted, and what it had is known
            if not isinstance(e, FileNotFoundError):
                self.blind = e.strerror or str(e)
                return
        with self._lock:
            try:
                self._read()
                self.blind = ""
            except (OSError, ValueError) as e:
                if not self.blind:
                    log.error("%s cannot be read, so all conversations stay on this device: %s", self.path, e)  # noqa: TRY400
                self.blind = (e.strerror if isinstance(e, OSError) else None) or str(e)

    def _read(self) -> None:
        assert self.path is not None, "there is a file"
        if not self.path.exists():
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            lock = ProcessLock(self.path.with_suffix(".lock"))
            try:
                lock.take(WAIT_S)
                if not self.path.exists():
                    self._write()
            finally:
                lock.leave()
        with self.path.open("rb") as file:
            about, text = os.fstat(file.fileno()), file.read()
        if (key := _KEY.match(text.decode("ascii", "replace"))) is None:
            raise ValueError("its first line is no key")
        found = bytes.fromhex(key[1])
        if self._unwritten and found != self._key:  # under another key they say nothing, so it stays unknown what was said
            raise ValueError("it has another key than what was remembered meanwhile")
        self._key = found
        oldest = int(now() / _DAY_S) - DAYS
        lines = text.decode("ascii", "replace").split("\n")[1:]
        rows = [row for line in lines if (row := _LINE.fullmatch(line)) is not None and int(row[2]) >= oldest]
        self._known = {**{bytes.fromhex(row[1]): int(row[2]) for row in rows[-MOST:]}, **self._unwritten}
        self._seen = about.st_ino, len(text)


WHY: Final = "this conversation had a turn that may not leave"
MOST_AWAITED: Final = 10_000
"""Calls whose answers are remembered once they are there."""


class Homebound:
    """Remembers digests of calls that had to stay, and of their answers; a later call with these messages stays, too.

    A call has to stay by its data class, or by its own mode `only_edge`; or as its conversation had such a turn.

    Args:
        path: of the file in which they are stored; None: for this router alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._digests = Digests(path)
        self.awaited: dict[str, None] = {}
        """Ids of calls that stay, whose answers are not there yet."""

    def why(self, x: Any, identity: str, rules: Rules, mode: Mode | None, data_class: str | None) -> str:
        """Why this call stays although its own data class may leave; empty: it does not. One that has to stay is remembered."""
        named = data_class is None or isinstance(data_class, str)  # else the plan says what is wrong with it
        private = mode == "only_edge" or (named and isinstance(permit(rules, data_class), Denied))
        if not private and (isinstance(x, str) or not self._digests.refreshed()):
            return ""
        said = turns(x)
        if not said:
            return ""
        home = "" if private else self._known(said)
        if private or home:
            self._digests.add(remembered(said, self._digests.digest))
            if len(self.awaited) >= MOST_AWAITED:
                with suppress(RuntimeError, StopIteration):  # other threads add to it, and take from it
                    self.awaited.pop(next(iter(self.awaited)), None)
            self.awaited[identity] = None
        return home

    def _known(self, said: list[Turn]) -> str:
        if self._digests.blind:
            return f"which conversations have to stay cannot be read ({self._digests.blind})"
        return WHY if any(one in self._digests for one in looked_up(said, self._digests.digest)) else ""

    def answered(self, identity: str, value: Any) -> None:
        """Remembers the answer to a call that stays."""
        if identity not in self.awaited:
            return
        self.awaited.pop(identity, None)
        if isinstance(value, str) and (telling := [*Turn("assistant", plain(value)).telling]):
            self._digests.add([self._digests.digest(encoded(text)) for text in telling])
