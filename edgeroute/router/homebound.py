"""Conversations that stay on the device, as they had a turn that may not leave: recognised by what is said in them."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from unicodedata import normalize

from edgeroute.core.egress import Denied, Rules, permit
from edgeroute.core.policy import Mode
from edgeroute.errors import StoreError
from edgeroute.stores.sqlite import Database
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.system.process import now

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


log = logging.getLogger("edgeroute")
MOST: Final = 50_000
"""Digests that are remembered; the oldest go first."""
DAYS: Final = 90
"""How long each is remembered."""
_DAY_S: Final = 86400.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS key (key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS digests (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, day INTEGER NOT NULL)"""
_TOGETHER: Final = 500
"""Digests that are looked up in one query."""


class Digests(ForkSafe):
    """Digests of 16 bytes under a key of its own, shared by processes through the file: the texts cannot be told from them.

    A file that cannot be read, or was damaged, sets `blind`: nothing is known then of what was remembered. One that cannot be
    written is logged, once: what is added meanwhile is known to this process alone. There is no fsync: a power cut may lose the
    last ones.

    Args:
        path: path of the SQLite file; None: in memory only.

    Attributes:
        blind: why it is not known what was remembered; empty: it is.
    """

    _lock = per_process(threading.RLock)

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._database = None if path is None else Database(path, _SCHEMA, durable=False)
        self._key = os.urandom(32)
        self._unwritten: dict[bytes, int] = {}
        """Digests that are remembered here, and not in the file, with their days; the oldest first."""
        self._logged = False
        self.blind = ""
        self._stored()  # what is digested from here on is under the file's key

    def digest(self, text: bytes) -> bytes:
        """Return the digest of a text, 16 bytes."""
        return blake2b(text, key=self._key, digest_size=16).digest()

    def refreshed(self) -> bool:
        """Read the file. Return True if anything is remembered, or that is not known."""
        return bool(self._unwritten) or self._stored() or bool(self.blind)

    def __contains__(self, digest: bytes) -> bool:
        return self.any_of([digest])

    def any_of(self, digests: Iterable[bytes]) -> bool:
        """Return True if one of these is remembered."""
        wanted, oldest = [*digests], int(now() / _DAY_S) - DAYS
        if any(self._unwritten.get(digest, -1) >= oldest for digest in wanted):
            return True
        parts = [wanted[i : i + _TOGETHER] for i in range(0, len(wanted), _TOGETHER)]
        return any(self._stored(f" WHERE digest IN ({', '.join('?' * len(part))}) AND day >= ?", *part, oldest) for part in parts)

    def add(self, digests: Iterable[bytes]) -> None:
        """Remember digests, on disk too before it returns."""
        today = int(now() / _DAY_S)
        with self._lock:
            fresh = dict.fromkeys(digests, today)
            self._unwritten = {one: day for one, day in self._unwritten.items() if one not in fresh} | fresh
            while len(self._unwritten) > MOST:
                del self._unwritten[next(iter(self._unwritten))]
            if self._database is None:
                return
            try:
                with self._database.transaction() as connection:
                    self._meet(connection)
                    rows = self._unwritten.items()
                    connection.executemany("INSERT OR REPLACE INTO digests (digest, day) VALUES (?, ?)", rows)
                    limits = (today - DAYS, MOST)
                    connection.execute("DELETE FROM digests WHERE day < ? OR id <= (SELECT max(id) FROM digests) - ?", limits)
                self._unwritten.clear()
            except (StoreError, ValueError) as e:
                if not self._logged:
                    self._logged = True
                    log.error(  # noqa: TRY400 - the message says all
                        "%s cannot be written: which conversations have to stay on this device is known to this process alone, "
                        "until it ends: %s", self.path, e,
                    )  # fmt: skip

    def _meet(self, connection: sqlite3.Connection) -> None:
        """Take the file's key, or give the file this one's."""
        connection.execute("INSERT INTO key SELECT ? WHERE NOT EXISTS (SELECT 1 FROM key)", (self._key,))
        self._take(connection.execute("SELECT key FROM key").fetchone()[0])

    def _take(self, key: bytes) -> None:
        if self._unwritten and key != self._key:  # under another key they say nothing, so it stays unknown what was said
            raise ValueError("it has another key than what was remembered meanwhile")
        self._key = key

    def _stored(self, which: str = "", *values: object) -> bool:
        """Return True if the file has such a digest. What prevents to read it is logged, and set as `blind`."""
        if self._database is None or self.path is None:
            return False
        statement = f"SELECT (SELECT key FROM key), EXISTS (SELECT 1 FROM digests{which})"  # noqa: S608 - constants
        try:
            rows = self._database.read(statement, values)
            if not rows or rows[0][0] is None:  # it is new, or locked
                with self._database.transaction() as connection:
                    self._meet(connection)
                    rows = connection.execute(statement, values).fetchall()
            key, exists = rows[0]
            self._take(cast("bytes", key))
            lost = next(self.path.parent.glob(f"{self.path.name}.corrupt-*"), None)
            self.blind = "" if lost is None else f"what was in {lost.name} is not known"
            return bool(exists)
        except (StoreError, ValueError) as e:
            if not self.blind:
                log.error("%s cannot be read, so all conversations stay on this device: %s", self.path, e)  # noqa: TRY400
            self.blind = str(e)
            return False


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
        known = self._digests.any_of(looked_up(said, self._digests.digest))
        if self._digests.blind:
            return f"which conversations have to stay cannot be read ({self._digests.blind})"
        return WHY if known else ""

    def answered(self, identity: str, value: Any) -> None:
        """Remembers the answer to a call that stays."""
        if identity not in self.awaited:
            return
        self.awaited.pop(identity, None)
        if isinstance(value, str) and (telling := [*Turn("assistant", plain(value)).telling]):
            self._digests.add([self._digests.digest(encoded(text)) for text in telling])
