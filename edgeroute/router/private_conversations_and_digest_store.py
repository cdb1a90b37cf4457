"""Private conversations: recognises calls of a conversation with a turn that may not leave, by stored digests, so that they stay.

If the digests, or the form of an input, cannot be read, the conversation stays. `within` limits the effect to calls with
the same key.

Keyed digests of the content are stored (`Digests`), never the texts.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from queue import Empty
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from edgeroute.core.policy_egress_and_options import INF, Denied, Mode, Policy, permit
from edgeroute.core.walk import Left, Outcome
from edgeroute.errors import MayNotLeave, StoreError
from edgeroute.router.part_hooks_and_dispatch import Part
from edgeroute.router.request import SCALARS, Request
from edgeroute.router.steps_and_composed_stages import Block
from edgeroute.system import files_and_lock_waits
from edgeroute.system.contained_calls_and_tasks import set_within
from edgeroute.system.fork_safety import ForkSafe, initially, per_process, per_process_of
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.mailbox import Mailbox
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.wall_clock import now

if TYPE_CHECKING:
    import sqlite3

    from edgeroute.router.message_forms_and_digests import Conversation
    from edgeroute.stores.sqlite_file_and_key_values import Database

MOST: Final = 50_000  # maximum stored digests; the oldest are deleted first
DAYS: Final = 90  # days for which a digest is stored
# Maximum time that a call waits for new digests in the file, seconds, and share of its deadline; then its conversation stays.
PATIENCE_S: Final = 0.1
PATIENCE: Final = 0.25
# Maximum time that a thread waits for another process's transaction, seconds; then a call so much later has it tried again.
BUSY_S: Final = 1.0
LOCKED_S: Final = 0.05  # maximum time that a read waits while another process opens or closes the file, seconds
# Age of a file's last change beyond which an equal time of change means that nothing was written since, seconds.
UNTOUCHED_S: Final = 3.0
_DAY_S: Final = 86400.0
SET_DAY: Final = 18262  # day, since 1970, of the beginning of 2020: a clock before it was never set, and expires nothing
LONGEST_KEY: Final = 64  # maximum bytes of a key of BLAKE2b
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS key (key BLOB NOT NULL);
INSERT INTO key SELECT randomblob(32) WHERE NOT EXISTS (SELECT 1 FROM key);
CREATE TABLE digests (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, day INTEGER NOT NULL, crc INTEGER NOT NULL);
"""
# What is put again becomes the newest, so that other processes read its day. Not by REPLACE, of which the total would not know.
_PUT: Final = """
INSERT INTO digests (digest, day, crc) VALUES (?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET id = (SELECT max(id) + 1 FROM digests), day = excluded.day, crc = excluded.crc"""
_IS_KNOWN: Final = "SELECT 1 FROM key WHERE key = ? AND (SELECT max(id) FROM digests) >= ?"
_EXPIRED: Final = "SELECT id, crc FROM digests WHERE (day >= ? AND day < ?) OR id <= (SELECT max(id) FROM digests) - ?"

Job = Callable[[], object]
Submit = Callable[[Job], bool]


def _content() -> Any:
    """Return the module that reads and digests messages, imported at the first conversation: most programs have none."""
    return import_late("edgeroute.router.message_forms_and_digests")


def _run_here(job: Job) -> bool:
    """Run a job in the caller's thread. Return True."""
    job()
    return True


class Digests(ForkSafe):
    """Store of 16-byte digests, shared by processes through a file with a key of its own, from which no text can be recovered.

    Look-ups use memory alone. A thread reads the rows that other processes have added, and writes; no call waits for a lock of
    the file. A file that cannot be read, or is damaged, sets `blind`: it is then unknown which digests are stored. So does, in
    other processes, now and later, an empty file beside it, made when digests cannot be written, and deleted once they are, or
    after `DAYS`, when they have expired. There is no fsync: a power cut may lose the last ones.

    Args:
        path: path of the SQLite file; None: in memory only.
        submit: runs a job in a thread, or returns False if there is none; by default in the caller's.

    Attributes:
        blind: reason why the stored digests are unknown; empty: they are known.
        is_failing: True if the last attempt to write failed.
    """

    _reading, _writing = per_process(SafeLock), per_process(threading.Lock)
    _is_late = initially(False)  # True while a thread waits for the disk longer than its call
    # Empty file that says to other processes that this one has digests that it could not write.
    _sign: Path = per_process_of(lambda self: Path(f"{self.path}.unwritten-{os.urandom(6).hex()}"))

    def __init__(self, path: Path | None, submit: Submit = _run_here) -> None:
        self.path, self._submit = path, submit
        self._database: Database | None = None
        if path is not None:
            from edgeroute.stores.sqlite_file_and_key_values import TOTAL, Database  # imports SQLite, only where there is a file

            self._database = Database(path, _SCHEMA + TOTAL.format("digests"), durable=False, busy_s=BUSY_S, check=self._check)
        # Digest -> day, of those that are not in the file, the oldest first.
        self._unwritten: OrderedDict[bytes, int] = OrderedDict()
        self._known: OrderedDict[bytes, int] = OrderedDict()  # keyed digest -> day, of those in the file
        self._key, self._last_id = b"", 0
        self._stamp: tuple[object, ...] = ()
        self._read_at, self._is_logged = -INF, False
        self.blind, self.is_failing, self._again_at = "", False, -INF
        self.read()

    @property
    def is_unwritten(self) -> bool:
        """True if digests are in memory alone, and the file could be written last time."""
        return self._database is not None and bool(self._unwritten) and not self.is_failing

    def refreshed(self, wait_s: float = INF) -> bool:
        """Have a thread read what was added to the file, waiting `PATIENCE_S` at most, or `wait_s`, seconds, if that is less.

        Return True if any digest is stored, or may be. Has a thread write what could not be written before, once a second.
        """
        if self.path is not None:
            if self.is_failing and monotonic() >= self._again_at:
                self._again_at = monotonic() + BUSY_S
                self._submit(self.save)
            self._refresh(self.path, wait_s)
        return bool(self._unwritten or self._known or self.blind)

    def __contains__(self, digest: bytes) -> bool:
        self.refreshed()
        return self.any_of([digest])

    def any_of(self, digests: Iterable[bytes]) -> bool:
        """Return True if one of these digests is stored, as far as memory has them; reads no file.

        Those older than `DAYS` do not count, unless their day is that of a clock that was never set.
        """
        oldest, key = int(now() / _DAY_S) - DAYS, self._key
        for digest in digests:
            day = self._unwritten.get(digest)
            if day is None and self._known:
                day = self._known.get(_content().keyed(digest, key))
            if day is not None and (day >= oldest or day < SET_DAY):
                return True
        return False

    def add(self, digests: Iterable[bytes]) -> None:
        """Store digests in memory at once, and have a thread write them. Beyond the limits the oldest are deleted."""
        today = int(now() / _DAY_S)
        for digest in digests:
            _put(self._unwritten, digest, today)
        _limit(self._unwritten)
        if self._database is not None:
            self._submit(self.save)

    def save(self, wait_s: float = 0.0) -> None:
        """Write the digests that are in memory alone to the file, blocking.

        An error is logged once, and makes a file that says so to other processes; a later call has the digests written.

        Args:
            wait_s: how long to wait for another thread that writes, seconds; after that nothing is done, as that thread writes
                these digests, too.
        """
        if (
            self._database is None
            or not self._unwritten
            or not self._writing.acquire(timeout=files_and_lock_waits.wait_s(wait_s))
        ):
            return
        try:
            while self._unwritten:
                self._write(self._database)
            if self.is_failing:
                self._sign.unlink(missing_ok=True)
            self.is_failing = False
        except (StoreError, OSError, TypeError, ValueError) as e:  # the latter: the key is damaged
            self._warn_others()
            if not self._is_logged:
                self._is_logged = True
                log.error(  # noqa: TRY400 - the message says all
                    "%s cannot be written: which conversations have to stay on this device is known to this process alone, until "
                    "a later call has it written; until then other processes let %s leave: %s",
                    self.path, "none" if self._sign.exists() else "all", e,
                )  # fmt: skip
        finally:
            self._writing.release()

    def close(self) -> None:
        """Write what is in memory alone, waiting up to `BUSY_S` for a thread that writes, and close the file.

        The next call opens it again.
        """
        self.save(BUSY_S)
        if self._database is not None:
            self._database.close()
            if self._unwritten:
                self._warn_others()
                log.error(
                    "%s: %d digests are not written as it is closed, and lost: for %d days, or until somebody deletes %s, all "
                    "conversations stay", self.path, len(self._unwritten), DAYS, self._sign.name,
                )  # fmt: skip

    def _warn_others(self) -> None:
        """Set `is_failing`, and make the file by which other processes know that digests are missing; success undoes both."""
        self.is_failing = True
        with suppress(OSError):
            self._sign.touch(0o600)

    def read(self) -> None:
        """Read the rows that were added to the file. Waits up to `LOCKED_S` for a lock, and for another reader.

        All are read again if it is another file, and forgotten if it is gone. If rows are not known (an error, a lock, a damaged
        or unwritten file beside it), `blind` becomes the reason, which is logged once; if they are, it is emptied.
        """
        if self._database is None or self.path is None:
            return
        with self._reading:
            began, stamp = now(), _stamp(self.path)
            try:
                blind = self._read_rows(self._database, self.path)
            except (StoreError, OSError) as e:
                blind = str(e)
            if blind and not self.blind:
                log.error("%s cannot be read, so all conversations stay on this device: %s", self.path, blind)
            self.blind, self._is_late = blind, False
            self._stamp, self._read_at = stamp, began

    def _refresh(self, path: Path, wait_s: float) -> None:
        """Have a thread read the file if it may have changed, and wait for it (see `refreshed`); after that `blind` is set.

        Without a free thread it is read here. Nothing is done while an earlier thread still waits for the disk.
        """
        if self._is_late:
            return  # a thread still waits for the disk
        stamp = _stamp(path)
        changed_at = max((cast("float", part) for part in stamp[1::3]), default=-INF)
        if not self.blind and stamp == self._stamp and changed_at < self._read_at - UNTOUCHED_S:
            return
        done = Mailbox[None]()  # an interrupt within an Event's wait may become a RuntimeError

        def read() -> None:
            try:
                self.read()
            finally:
                done.put(None)

        if not self._submit(read):
            self.read()
            return
        try:
            done.get(timeout=min(PATIENCE_S, wait_s))
        except Empty:
            self._is_late, self.blind = True, "the disk does not answer"
            self._is_late = done.empty()  # it may have ended just now

    def _read_rows(self, database: Database, path: Path) -> str:
        """Read the rows after the last one read into memory, where the oldest beyond `MOST` are deleted.

        All rows, if it is another file. Return the reason why the rows are unknown (damaged, locked, or a damaged file beside
        it); empty: they are known.
        """
        query, until = "SELECT key, (SELECT max(id) FROM digests) FROM key", monotonic() + (0.0 if self.blind else LOCKED_S)
        while not (rows := database.read(query, ())) and path.exists() and monotonic() < until:
            sleep(0.002)
        if rows:
            key, newest = cast("tuple[bytes, int | None]", rows[0])
            if not isinstance(key, bytes) or not 0 < len(key) <= LONGEST_KEY:
                return "its key is damaged"
            if key != self._key or (newest or 0) < self._last_id:  # another file, or an older one
                self._key, self._last_id, self._known = key, 0, OrderedDict()
            query = "SELECT id, digest, day FROM digests WHERE id > ? ORDER BY id"
            for last_id, digest, day in cast("list[tuple[int, bytes, int]]", database.read(query, (self._last_id,))):
                if not isinstance(day, int):
                    return "a row is damaged"
                _put(self._known, digest, day)
                self._last_id = last_id
            _limit(self._known)
        elif path.exists():
            return "another process has locked it"
        elif self._known:  # it was deleted
            self._last_id, self._known = 0, OrderedDict()
        for kind, why in (("corrupt", "what was in {} is not known"), ("unwritten", "{} says that some are not in the file")):
            for lost in path.parent.glob(f"{path.name}.{kind}-*"):
                if lost != self._sign and not _is_expired(lost):
                    return why.format(lost.name)
        return ""

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raise DatabaseError if rows of a file that is opened, or the key, are damaged or missing, unless memory has them."""
        from edgeroute.stores.sqlite_file_and_key_values import read_checked

        if self._last_id and connection.execute(_IS_KNOWN, (self._key, self._last_id)).fetchone():
            return  # a check of a full file takes a tenth of a second
        if not read_checked(connection, "SELECT key, digest, day, crc FROM key, digests")[2]:
            raise connection.DatabaseError("malformed: rows are damaged or missing")

    def _write(self, database: Database) -> None:
        """Write the digests that are in memory alone in one transaction, and delete the oldest in the file beyond the limits.

        Those written then count as known, and no more as unwritten. Raises StoreError and the like.
        """
        from edgeroute.stores.sqlite_file_and_key_values import checksum

        days = self._unwritten.copy()
        with database.transaction() as connection:
            (key,) = connection.execute("SELECT key FROM key").fetchone()
            rows = [(_content().keyed(digest, key), day) for digest, day in days.items()]
            connection.executemany(_PUT, [(*row, checksum(key, *row)) for row in rows])
            expired = connection.execute(_EXPIRED, (SET_DAY, int(now() / _DAY_S) - DAYS, MOST)).fetchall()
            connection.executemany("DELETE FROM digests WHERE id = ?", [(row[0],) for row in expired])
            # The total knows of no other deletion: rows that anything else deletes are missed.
            connection.execute("UPDATE total SET rows = rows - ?, crc = crc - ?", (len(expired), sum(crc for _, crc in expired)))
        with self._reading:
            if key != self._key:  # the rest is read with the next look-up
                self._key, self._last_id, self._known = key, 0, OrderedDict()
            for digest, day in rows:
                _put(self._known, digest, day)
            _limit(self._known)
            for raw, day in days.items():
                if self._unwritten.get(raw) == day:
                    self._unwritten.pop(raw, None)


def _is_expired(file: Path) -> bool:
    """Return True if a file was last changed more than `DAYS` ago, as all digests that it stands for; a sign is deleted then.

    False for one of a clock that was never set. True for a file that is gone.
    """
    try:
        stat = file.stat()
        day = int(max(stat.st_mtime, stat.st_ctime) / _DAY_S)  # the latter: since it was renamed
        if not SET_DAY <= day < int(now() / _DAY_S) - DAYS:
            return False
        if file.suffix.startswith(".unwritten-"):
            file.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _put(digests: OrderedDict[bytes, int], digest: bytes, day: int) -> None:
    """Store a digest as the newest. No lock is held, which an interrupt might leave locked, and each step is one call into C."""
    digests[digest] = day
    with suppress(KeyError):  # another thread has deleted it
        digests.move_to_end(digest)


def _limit(digests: OrderedDict[bytes, Any], most: int | None = None) -> None:
    """Delete the oldest digests beyond `most`; None: `MOST`."""
    with suppress(KeyError):  # other threads have emptied it
        while len(digests) > (most or MOST):
            digests.popitem(last=False)


def _stamp(path: Path) -> tuple[object, ...]:
    """Return inode, time of change and size of the file, its log and its folder; shorter where one does not exist."""
    found: list[object] = []
    for part in (path, path.with_name(f"{path.name}-wal"), path.parent):
        with suppress(OSError):
            stat = part.stat()
            found += [stat.st_ino, stat.st_mtime, stat.st_size]
    return tuple(found)


WHY: Final = "this conversation had a turn that may not leave"
UNKNOWN: Final = "this conversation has a form that cannot be compared with those that have to stay"
MOST_AWAITED: Final = 10_000  # maximum calls whose answers will be digested
MOST_SHARED: Final = 20_000  # maximum texts remembered that have left the device
SHARE: Final = 0.1  # share of the deadline for which an answer waits until its digests are in the file
WRITTEN_S: Final = 0.5  # maximum time for which an answer waits for that, seconds
MUTE: Final = SCALARS | {str, np.ndarray}  # types of inputs that have no messages, or of which none is compared
# Digest of the key given to `within`; empty: none.
SCOPE: ContextVar[bytes] = ContextVar("edgeroute_conversation", default=b"")
_MARK: Final = b"any"  # stored with each call that may not leave, so that it is known that there was one


def within(key: str) -> AbstractContextManager[None]:
    """Let the calls in the `with` block that may not leave bind only calls with the same key, of a conversation or a client.

    Calls without a key bind all.
    """
    return set_within(SCOPE, _content().scope_digest(key))


class PrivateConversations(Part):
    """Recogniser of private conversations: stores digests of calls that had to stay, and of their answers.

    A call has to stay by its data class, by its own mode `only_edge`, or because its content is that of such a call. The last
    kind is stored as a whole alone.

    Args:
        path: path of the file for the digests; None: in memory.
        submit: runs a job in a thread, or returns False if there is none; by default in the caller's.
    """

    def __init__(self, path: Path | None, submit: Submit = _run_here) -> None:
        self._digests = Digests(path, submit)
        self._is_lost = False  # True once a private call could not be read: all conversations stay
        self._shared: OrderedDict[bytes, None] = OrderedDict()  # digests of texts that have left the device
        # Ids of calls that stay, and that have not ended -> beginning of the answer, and `SCOPE`; None: the answer binds nothing.
        self.awaited: dict[str, tuple[bytes, bytes] | None] = {}

    def why(self, x: Any, identity: str, policy: Policy, mode: Mode | None, data_class: str | None, deadline: Any = None) -> str:
        """Return the reason why a call stays although its own data class may leave; empty: it may leave, or stays by itself.

        Stores the digests of a call that has to stay, also by its data class or mode, and notes it in `awaited`, where the oldest
        beyond `MOST_AWAITED` is dropped. A single text counts only if it has to stay by itself. A file that cannot be read, or an
        input of an unknown form, makes a conversation stay. Waits for the file for the share `PATIENCE` of the deadline at most.
        """
        valid = data_class is None or isinstance(data_class, str)  # else the plan says what is wrong with it
        private = mode == "only_edge" or (valid and isinstance(permit(policy.rules, data_class), Denied))
        wait_s = PATIENCE * (deadline if isinstance(deadline, float) else policy.deadline_s)
        if not private and (issubclass(type(x), str) or not (self._digests.refreshed(wait_s) or self._is_lost)):
            return ""
        try:
            content = _content()
        except (ImportError, OSError):  # no file can be opened now
            self._is_lost |= private
            return "" if private else UNKNOWN
        conversation: Conversation | None = content.read_conversation(x, whole=private)
        if conversation is None:
            return ""
        scope, awaited = SCOPE.get(), None
        if private:
            last = conversation.messages[-1] if conversation.messages else None
            awaited = (last.content if last is not None and last.role in content.ANSWER_ROLES else b""), scope
            found = [_within(digest, scope) for digest in content.bound_digests(conversation, self._shared.__contains__)]
            self._digests.add([_MARK, *found])
        elif self._digests.blind:
            return f"which conversations have to stay cannot be read ({self._digests.blind})"
        elif self._is_lost or conversation.unknown:
            return UNKNOWN
        elif self._is_bound(conversation, scope):
            spoken = conversation._replace(messages=conversation.spoken)  # without what comes again with each call
            if self._is_bound(spoken, scope):
                self._digests.add([_within(digest, scope) for digest in content.chain_digests(conversation)])
        else:
            return ""
        if len(self.awaited) >= MOST_AWAITED:
            with suppress(RuntimeError, StopIteration):  # other threads add to it, and take from it
                self.awaited.pop(next(iter(self.awaited)), None)
        self.awaited[identity] = awaited
        return "" if private else WHY

    def check_examples(self, inputs: Iterable[Any], classes: Iterable[str | None], policy: Policy) -> None:
        """Raise MayNotLeave if an input, whose data class may leave, belongs to a conversation that has to stay."""
        for x, name in zip(inputs, classes, strict=True):
            if not isinstance(permit(policy.rules, name), Denied) and (why := self.why(x, "", policy, None, name)):
                self.awaited.pop("", None)
                raise MayNotLeave(f"every example is sent to the cloud, and one may not leave the device: {why}; leave it out")

    def _is_bound(self, conversation: Conversation, scope: bytes) -> bool:
        """Return True if a digest of a conversation is stored, in general or for calls with the same key."""
        digests = _content().looked_up(conversation)
        return self._digests.any_of(each for digest in digests for each in {digest, _within(digest, scope)})

    def walk_ended(self, request: Request, outcome: Outcome | Left) -> None:
        """Store the digests of the answer to a call that may not leave, once; remember the texts of a call that has left.

        Never raises for a form of input.
        """
        if request.id in self.awaited:
            awaited, prediction = self.awaited.pop(request.id, None), outcome.prediction
            if awaited is not None and prediction is not None:
                digests = _content().answer_digests(prediction.value, prediction.outputs, awaited[0])
                self._digests.add([_within(digest, awaited[1]) for digest in digests])
        elif type(request.inputs) not in MUTE and any(
            mark.kind == "start" and request.plan.legs[mark.leg].permit is not None for mark in outcome.log
        ):
            conversation = _content().read_conversation(request.inputs)
            # What a private call has in common with these texts binds nothing. No lock is held.
            for digest in () if conversation is None else _content().shared_digests(conversation):
                self._shared[digest] = None
            _limit(self._shared, MOST_SHARED)

    def saving(self, request: Request) -> Block | None:
        """Return the step by which an answer waits until its digests are in the file; None: there is nothing to write.

        It waits for the share `SHARE` of the deadline at most, and never longer than `WRITTEN_S`.
        """
        if not self._digests.is_unwritten:
            return None
        at = monotonic()
        wait_s = min(WRITTEN_S, SHARE * request.plan.deadline_s, max(0.0, (request.until - at) / 2))
        return Block(partial(self._digests.save, wait_s), at + wait_s, needed=False)

    def close(self) -> None:
        """Write what is not in the file yet, and close it; the next call opens it again."""
        self._digests.close()


def _within(digest: bytes, scope: bytes) -> bytes:
    """Return the digest for calls with the same key of the client or conversation."""
    return _content().keyed(digest, scope) if scope else digest
