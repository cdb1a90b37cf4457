"""Private conversations: recognises calls of a conversation that had a turn that may not leave, so that they stay, too.

Keyed digests of the messages are stored, never the texts.
"""

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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from unicodedata import normalize

from edgeroute.core.egress import Denied, Rules, permit
from edgeroute.core.routing_policy import Mode
from edgeroute.errors import StoreError
from edgeroute.router.router_parts import Part
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.system.process import now

if TYPE_CHECKING:
    from edgeroute.stores.sqlite_file import Database

# Turns of a conversation in an input, and the digests by which a later call with the same turns is recognised.

SHORTEST: Final = 8
"""Minimum characters of a text that identifies a conversation; shorter ones, such as "yes", are in too many."""
SHORTEST_ANSWER: Final = 40
"""Minimum characters of a model's answer that identifies a conversation: all models greet alike."""
SYSTEM_ROLES: Final = frozenset({"system", "developer"})
"""Roles of messages with which many conversations begin."""
Digest = Callable[[bytes], bytes]
"""Returns the keyed digest of a text."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    """Role; empty for a text in a list of texts, which may as well be the row of a table."""
    text: str
    """Text, normalised in white space and composition."""
    parts: tuple[str, ...] = ()
    """Texts of its content's parts, if there are several: programs join messages, and put others beside them."""

    @property
    def telling(self) -> Iterator[str]:
        """Text and parts that are long enough to identify a conversation by themselves."""
        least = SHORTEST_ANSWER if self.role == "assistant" else SHORTEST
        return (text for text in (self.text, *self.parts) if len(text) >= least)


def turns(x: Any) -> list[Turn]:
    """Return the messages of an input: a list of messages, a request with messages or a prompt, or a text; else []."""
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


def remembered(conversation: list[Turn], digest: Digest) -> list[bytes]:
    """Return the digests to store for a conversation: of all its messages together, and of its last turn, with the answer before.

    System messages are left out. The whole is stored however short it is, since only it identifies a continuation. A conversation
    without text has no digest, nor has a short list of texts without roles.
    """
    conversation = [turn for turn in conversation if turn.role not in SYSTEM_ROLES]
    *_, whole = [b"", *_prefix_digests(conversation, digest)]
    begins = max((i for i, turn in enumerate(conversation) if turn.role == "assistant"), default=0)
    last = [digest(encoded(text)) for turn in conversation[begins:] for text in turn.telling]
    return [*([whole] if whole else []), *last]


def looked_up(conversation: list[Turn], digest: Digest) -> Iterator[bytes]:
    """Yield the digests to search: a stored one among them means that the conversation continues or quotes a private one.

    System messages are included, since private text may have been put there.
    """
    yield from (digest(encoded(text)) for turn in conversation for text in turn.telling)
    yield from (
        digested
        for digested in _prefix_digests([turn for turn in conversation if turn.role not in SYSTEM_ROLES], digest)
        if digested
    )


def _prefix_digests(conversation: list[Turn], digest: Digest) -> Iterator[bytes]:
    """Yield after each message the digest of all so far; empty while there is no text, or too little in texts without a role."""
    chain, size, heard = b"", 0, False
    for turn in conversation:
        size += len(turn.text)
        heard = heard or size >= (1 if turn.role else SHORTEST)
        chain = digest(b"%s %s" % (chain, digest(encoded(turn.text))))
        yield chain if heard else b""


def plain(text: str) -> str:
    """Return a text normalised in white space and composition (NFC)."""
    return " ".join(normalize("NFC", text).split())


def encoded(text: str) -> bytes:
    """Return a text as the bytes to digest."""
    return text.encode("utf-8", "surrogatepass")


def _is_message(value: Any) -> bool:
    """Return True if a value is a text, or has the form of a message."""
    return isinstance(value, str) or (isinstance(value, Mapping) and "role" in value) or hasattr(value, "content")


def _turn(message: Any) -> Turn:
    """Return a message as a `Turn`."""
    if isinstance(message, str):
        return Turn("", plain(message))
    content, calls, role = (
        message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
        for name in ("content", "tool_calls", "role")
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
    """Return the text of a content's part; JSON if it has none."""
    if not isinstance(part, Mapping):
        return str(part)
    return text if isinstance(text := part.get("text"), str) else _dumped(part)


def _dumped(value: Any) -> str:
    """Return a value as JSON with sorted keys, or else its repr."""
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys of several types, or it is in itself
        return repr(value)


log = logging.getLogger("edgeroute")
MOST: Final = 50_000
"""Maximum stored digests; the oldest are deleted first."""
DAYS: Final = 90
"""Days for which a digest is stored."""
_DAY_S: Final = 86400.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS key (key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS digests (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, day INTEGER NOT NULL)"""
_TOGETHER: Final = 500
"""Maximum digests in one query."""


class Digests(ForkSafe):
    """Store of 16-byte digests under its own key, shared by processes through the file; texts cannot be recovered from them.

    A file that is unreadable or damaged sets `blind`: it is then unknown which digests were stored. An unwritable one is logged
    once: digests added meanwhile are known to this process alone. There is no fsync: a power cut may lose the last ones.

    Args:
        path: path of the SQLite file; None: in memory only.

    Attributes:
        blind: reason why the stored digests are unknown; empty: they are known.
    """

    _lock = per_process(threading.RLock)

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._database: Database | None = None
        if path is not None:
            from edgeroute.stores.sqlite_file import Database  # imports SQLite, only where there is a file

            self._database = Database(path, _SCHEMA, durable=False)
        self._key = os.urandom(32)
        self._unwritten: dict[bytes, int] = {}
        """Digest -> day, of digests that are not in the file; the oldest first."""
        self._logged = False
        self.blind = ""
        self._stored()  # what is digested from here on is under the file's key

    def digest(self, text: bytes) -> bytes:
        """Return the digest of a text, 16 bytes."""
        return blake2b(text, key=self._key, digest_size=16).digest()

    def refreshed(self) -> bool:
        """Read the file. Return True if any digest is stored, or if that is unknown."""
        return bool(self._unwritten) or self._stored() or bool(self.blind)

    def __contains__(self, digest: bytes) -> bool:
        return self.any_of([digest])

    def any_of(self, digests: Iterable[bytes]) -> bool:
        """Return True if one of these digests is stored."""
        wanted, oldest = [*digests], int(now() / _DAY_S) - DAYS
        if any(self._unwritten.get(digest, -1) >= oldest for digest in wanted):
            return True
        parts = [wanted[i : i + _TOGETHER] for i in range(0, len(wanted), _TOGETHER)]
        return any(self._stored(f" WHERE digest IN ({', '.join('?' * len(part))}) AND day >= ?", *part, oldest) for part in parts)

    def add(self, digests: Iterable[bytes]) -> None:
        """Store digests, in the file before it returns; deletes the oldest ones beyond the limits. An error is logged once."""
        today = int(now() / _DAY_S)
        with self._lock:
            fresh = dict.fromkeys(digests, today)
            self._unwritten = {digest: day for digest, day in self._unwritten.items() if digest not in fresh} | fresh
            while len(self._unwritten) > MOST:
                del self._unwritten[next(iter(self._unwritten))]
            if self._database is None:
                return
            try:
                with self._database.transaction() as connection:
                    self._adopt_key(connection)
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

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._database is not None:
            self._database.close()

    def _adopt_key(self, connection: sqlite3.Connection) -> None:
        """Adopt the file's key, or write this object's key into a new file."""
        connection.execute("INSERT INTO key SELECT ? WHERE NOT EXISTS (SELECT 1 FROM key)", (self._key,))
        self._set_key(connection.execute("SELECT key FROM key").fetchone()[0])

    def _set_key(self, key: bytes) -> None:
        """Set the key; raise ValueError if digests in memory were made under another one."""
        if self._unwritten and key != self._key:  # under another key they say nothing, so it stays unknown what was said
            raise ValueError("it has another key than what was remembered meanwhile")
        self._key = key

    def _stored(self, which: str = "", *values: object) -> bool:
        """Return True if the file has a digest that matches; adopts its key. A failure to read is logged, and sets `blind`.

        Args:
            which: SQL condition; empty: any digest.
            values: parameters of the condition.
        """
        if self._database is None or self.path is None:
            return False
        statement = f"SELECT (SELECT key FROM key), EXISTS (SELECT 1 FROM digests{which})"  # noqa: S608 - constants
        try:
            rows = self._database.read(statement, values)
            if not rows or rows[0][0] is None:  # it is new, or locked
                with self._database.transaction() as connection:
                    self._adopt_key(connection)
                    rows = connection.execute(statement, values).fetchall()
            key, exists = rows[0]
            self._set_key(cast("bytes", key))
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
"""Maximum calls whose answers will be digested."""


class PrivateConversations(Part):
    """Recogniser of private conversations: stores digests of calls that had to stay, and of their answers.

    A call has to stay by its data class, by its own mode `only_edge`, or because its messages are those of such a call.

    Args:
        path: path of the file for the digests; None: in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._digests = Digests(path)
        self.awaited: dict[str, None] = {}
        """Ids of calls that stay, and whose answers have not come yet."""

    def why(self, x: Any, identity: str, rules: Rules, mode: Mode | None, data_class: str | None) -> str:
        """Return the reason why a call stays although its own data class may leave; empty: it may leave.

        Stores the digests of a call that has to stay, also by its data class or mode.
        """
        valid = data_class is None or isinstance(data_class, str)  # else the plan says what is wrong with it
        private = mode == "only_edge" or (valid and isinstance(permit(rules, data_class), Denied))
        if not private and (isinstance(x, str) or not self._digests.refreshed()):
            return ""
        conversation = turns(x)
        if not conversation:
            return ""
        home = "" if private else self._known(conversation)
        if private or home:
            self._digests.add(remembered(conversation, self._digests.digest))
            if len(self.awaited) >= MOST_AWAITED:
                with suppress(RuntimeError, StopIteration):  # other threads add to it, and take from it
                    self.awaited.pop(next(iter(self.awaited)), None)
            self.awaited[identity] = None
        return home

    def _known(self, conversation: list[Turn]) -> str:
        """Return the reason if a conversation's digests are stored, or unknown; else empty."""
        known = self._digests.any_of(looked_up(conversation, self._digests.digest))
        if self._digests.blind:
            return f"which conversations have to stay cannot be read ({self._digests.blind})"
        return WHY if known else ""

    def answered(self, identity: str, value: Any) -> None:
        """Store the digests of the answer to a call that stays."""
        if identity not in self.awaited:
            return
        self.awaited.pop(identity, None)
        if isinstance(value, str) and (telling := [*Turn("assistant", plain(value)).telling]):
            self._digests.add([self._digests.digest(encoded(text)) for text in telling])

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._digests.close()
