"""Digests of a device's days, made of the counts in the state file: their spool on disk and upload; and the device's random id.

Failed uploads are tried again from the spool, which is bounded; each upload is a line in the egress ledger.

In `state.db`, names that begin with `fleet:DAY:` hold the counts of a day, to which all processes of the device add, and
`fleet.day:DAY` has the device's id, the revision and the sum of the last digest. A day whose sum has grown has another digest,
with a higher revision; so a crash between any two steps repeats a digest at most, and of repeats one counts.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from edgeroute.catalog.catalog_entry import own_version
from edgeroute.catalog.model_folder_and_downloads import replace_durably
from edgeroute.catalog.signed_policy_follower import signed_name
from edgeroute.cloud.attempt_accounting_and_turns import NO_DATA
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import EdgerouteError, StoreError
from edgeroute.fleet.digest_destinations import destination
from edgeroute.fleet.digest_encoding_and_coarsening import FORMAT, UNSTATED, Digest, Group, encode, path_of
from edgeroute.http.messages_addresses_and_secrets import Secret
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.files_and_lock_waits import sha256
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.untrusted_files import read_bytes

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine
    from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore

clock: Callable[[], float] = time  # the wall clock, which may jump; tests and simulations replace it
DAY_S: Final = 86_400
ROWS, DAYS, DEVICE = "fleet:", "fleet.day:", "fleet.device"  # beginnings of names in the state file
# Tables of these rows whose indices are those of `FORMAT`; an update finds rows of others, whose indices mean other thresholds.
CONFIDENCE_ROWS, AUDIT_ROWS = f"confidences{FORMAT}", f"audits{FORMAT}"
LOOK_S: Final = 900.0  # maximum seconds between two looks at the clock and the spool
SPREAD_S: Final = 3600.0  # maximum seconds after midnight, by device and day, at which a day's digest is due
KEEP_DAYS: Final = 3  # days whose counts stay in the state file, for processes that add to them late
MOST_SPOOLED: Final = 400  # digests that wait for their destination; of more the oldest are deleted
_FIRST_DAY = "2020-01-01"  # an earlier day is that of a device that does not know the time
_FIELDS = "rdgfbu01234567"  # keys of the counts of an hour, in the order of `Digest.requests`


def day_and_hour(at: float) -> tuple[str, int]:
    """Return the UTC day and hour of a Unix time."""
    then = datetime.fromtimestamp(at, timezone.utc)
    return then.date().isoformat(), then.hour


def row_name(day: str, table: str, hour: int, group: Group) -> str:
    """Return the name of a row of counts in the state file."""
    return f"{ROWS}{day}:{json.dumps([table, hour, *group], separators=(',', ':'))}"


def _begin(day: str) -> float:
    """Return the Unix time of the beginning of a UTC day. Raises ValueError for another text."""
    return datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()


def spooled(folder: Path) -> list[Path]:
    """Return the digests that wait in a spool, the oldest first."""
    return sorted(folder.glob("*.digest"))


def new_device(store: KeyValueStore) -> str:
    """Draw a new random id of the device, which counts from the next day on; write it to the disk, and return it."""
    store.put(DEVICE, {"id": (drawn := os.urandom(16).hex()), "since": clock()})
    store.flush()
    return drawn


class DailyDigests(ForkSafe):
    """Digests of one device: writes those of its days to a spool on disk, uploads and deletes them, and forgets old counts.

    Args:
        folder: the spool.
        store: the state file.
        to: destination.
        site: text for the owner.
        key: key of the fleet; None: digests are not signed.
        rotate: seconds after which the id is replaced; None: never.
        every: seconds between two digests of a day that is not over; None: there are none.
    """

    _lock = per_process(threading.Lock)

    def __init__(
        self, folder: Path, store: KeyValueStore, to: str | Secret, site: str, key: str | Secret | None, rotate: float | None,
        every: float | None,
    ) -> None:  # fmt: skip
        self.folder, self._store, self._to, self._site, self._key = folder, store, to, site, key
        self._rotate, self._every, self._retry_at, self._failures = rotate, every, 0.0, 0
        self.sent = self.dropped = 0
        self.until = 0.0  # monotonic instant to which a router that is closing still uploads
        self.error = ""  # of the last upload

    def write_and_upload(self, engine: Engine, *, due: bool = False) -> float:
        """Write the due digests to the spool, and upload what waits there; return the seconds until the next look. Blocks.

        Moves counts of impossible days to today first. With `due`, each day with new counts is due now, today too, and so is a
        failed upload. Does nothing if another process holds the spool's lock (waits for it only if `due`, 2 seconds), or the
        state file cannot be written. A failed upload is logged and stays in the spool.

        Raises:
            StoreError, OSError: a digest cannot be written.
            PolicyError: the key's variable is not set.
        """
        lock = ProcessLock(self.folder / "lock")
        with self._lock:
            if not lock.take(2 * due) or not self._store.flush():
                return LOOK_S
            try:
                now = clock()
                self._move_undated(now)
                waits = [self._write_day(day, rows, now, due=due) for day, rows in sorted(self._rows().items())]
                if due or monotonic() >= self._retry_at:
                    self._upload(engine)
            finally:
                lock.leave()
        return max(1.0, min([LOOK_S, *waits]))

    def _rows(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return day -> name of a row in the state file -> its counts, of all days; without the rows that are damaged."""
        days: defaultdict[str, dict[str, dict[str, int]]] = defaultdict(dict)
        for name, text, _ in self._store.rows(ROWS):
            with suppress(ValueError, TypeError, AttributeError):  # damaged
                _, day, row = name.split(":", 2)
                _, hour, _, _, _, _ = json.loads(row)
                if hour in range(24) and _begin(day) < INF:
                    days[day][name] = {key: int(number) for key, number in json.loads(text).items()}
        return days

    def _flush(self) -> None:
        """Write the state file. Raises StoreError if that fails, which leaves what was to be written in memory."""
        if not self._store.flush():
            raise StoreError("the state file cannot be written now")

    def _move_undated(self, now: float) -> None:
        """Move the counts of impossible days (before 2020, after tomorrow, closed) to today, in one transaction.

        If today is closed, as after the clock was ahead, they go to the next day that is not. Raises StoreError.
        """
        last, target, sums = day_and_hour(now + DAY_S)[0], now, defaultdict[str, Counter[str]](Counter)
        while self._record(day_and_hour(target)[0]).get("closed"):  # the clock was ahead
            target += DAY_S
        for day, rows in self._rows().items():
            if not _FIRST_DAY <= day <= last or self._record(day).get("closed"):
                for name, numbers in rows.items():
                    sums[name].subtract(numbers)
                    sums[name.replace(day, day_and_hour(target)[0], 1)].update(numbers)
        if sums:
            self._store.add(sums)
            self._flush()

    def _record(self, day: str) -> dict[str, Any]:
        """Return what the state file has of the last digest of a day; empty if there was none."""
        record = self._store.get(DAYS + day)
        return record if isinstance(record, dict) else {}

    def _write_day(self, day: str, rows: Mapping[str, Mapping[str, int]], now: float, *, due: bool) -> float:
        """Write the digest of a day to the spool, if it is due and its counts have grown; delete the counts of a day that is old.

        Return the seconds until it is due. It is due up to `SPREAD_S` after midnight, by device and day; with `every` also that
        long after the last one; and at once with `due`. The state file gets the new revision before the digest is written, and
        the sum of its counts after. A day that is over for `KEEP_DAYS`, with nothing new, is marked as closed, and its counts are
        deleted. Raises as `write_and_upload`.
        """
        begun = _begin(day)
        record, total, over = self._record(day), sum(sum(numbers.values()) for numbers in rows.values()), begun + DAY_S
        device = record.get("device") or self.device()
        wait_s = over - now + int(sha256(f"{device} {day}".encode()).hexdigest()[:8], 16) / 2**32 * SPREAD_S
        if self._every is not None and now < over:
            wait_s = min(wait_s, record.get("at", begun) + self._every - now)
        told = total == record.get("sum", 0) and (now < over or record.get("final", not total))
        if told or record.get("closed"):
            if over + KEEP_DAYS * DAY_S < now:
                self._store.put(DAYS + day, {**record, "closed": True})
                self._flush()
                self._store.forget(f"{ROWS}{day}:", 0.0)
            return wait_s if now < over else LOOK_S
        if wait_s > 0 and not due:
            return wait_s
        record |= {"device": device, "revision": record.get("revision", 0) + 1, "at": now}
        self._store.put(DAYS + day, record)
        self._flush()
        made = _digest(rows, device, day, record["revision"], now >= over, self._site, signed_name(self.folder.parent))
        key = self._key.read("fleet: key") if isinstance(self._key, Secret) else self._key or ""
        self._spool(made, encode(made, key.encode()))
        self._store.put(DAYS + day, {**record, "sum": total, "final": made.final})
        self._flush()
        return LOOK_S

    def device(self) -> str:
        """Return the device's id; a new one if there is none, or it is to be rotated, which is written to the disk."""
        known = self._store.get(DEVICE)
        if not isinstance(known, dict) or (self._rotate and abs(clock() - known["since"]) >= self._rotate):
            return new_device(self._store)
        return str(known["id"])

    def _spool(self, made: Digest, data: bytes) -> None:
        """Write a digest to the spool durably, readable by its owner alone; delete the earlier revisions of its day.

        Of more than `MOST_SPOOLED` digests the oldest are deleted, and counted in `dropped`.
        """
        path = self.folder / path_of(made).removeprefix("digests/").replace("/", ".")
        replace_durably(path, data)
        path.chmod(0o600)
        for other in self.folder.glob(f"{made.day}.{made.device}.*.digest"):
            if other != path:
                other.unlink(missing_ok=True)
        for other in spooled(self.folder)[:-MOST_SPOOLED]:
            other.unlink(missing_ok=True)
            self.dropped += 1

    def _upload(self, engine: Engine) -> None:
        """Upload the digests of the spool, the oldest first; delete and count each.

        The first failure ends this, and is logged once. A failure sets the time of the next attempt, random and doubling, 1 to 96
        minutes later. A closed router stops at `until`. With an empty spool only a destination folder is looked for.
        """
        paths = spooled(self.folder)
        if not paths and isinstance(self._to, str) and "://" not in self._to:  # known before there is a digest
            self._fail("" if Path(self._to).is_dir() else f"{self._to}: there is no such folder now")
        for path in paths:
            if engine.closed and monotonic() >= self.until:
                return
            try:
                self._send(engine, path)
            except Exception as e:  # noqa: BLE001 - of a library: its text may have a secret
                self._fail(str(e) if isinstance(e, EdgerouteError) else type(e).__name__)
                self._failures = min(self._failures + 1, 6)
                self._retry_at = monotonic() + 60.0 * 2**self._failures * random.uniform(0.5, 1.5)  # noqa: S311 - not all at once
                return
            path.unlink(missing_ok=True)
            self.sent, self.error, self._failures = self.sent + 1, "", 0

    def _fail(self, text: str) -> None:
        """Store in `error` why nothing can be uploaded, and log it unless it was known; empty: nothing is wrong."""
        if text not in {"", self.error}:
            log.warning("fleet: %s; digests waiting: %d", text, len(spooled(self.folder)))
        self.error = text

    def _send(self, engine: Engine, path: Path) -> None:
        """Upload one digest, after a line in the egress ledger; keeps the file.

        Raises:
            StoreError: nothing may leave the device now, or the link is metered; or the destination did not store it.
            CloudError, PolicyError, RuntimeMissing: as `destination` and its `put`.
        """
        if why := engine.stays_on_device(read=True) or ("the link is metered" if engine.observer.is_metered() else ""):
            raise StoreError(f"nothing leaves by itself: {why}")
        there = destination(self._to.read("fleet: to") if isinstance(self._to, Secret) else self._to)
        day, rest = path.name.split(".", 1)
        name, data = f"digests/{day}/{rest}", read_bytes(path)
        assert engine.ledger is not None, "there is a state folder"
        engine.ledger.append({
            "at": round(clock(), 3), "to": there.where, "bytes": len(data), "data_class": None, "rule": NO_DATA, "request": name,
        })  # fmt: skip
        there.put(name, data)


def _digest(rows: Mapping[str, Mapping[str, int]], device: str, day: str, revision: int, final: bool, *texts: str) -> Digest:
    """Return the digest of a day's rows of counts, which come with their names; `texts`: site, and name of the signed policy."""
    groups: dict[Group, int] = {}
    requests, confidences, audits = list[Any](), list[Any](), list[Any]()
    for name, numbers in rows.items():
        table, hour, *names = json.loads(name.split(":", 2)[2])
        g = groups.setdefault((names[0], names[1], names[2], names[3]), len(groups))
        if table == "requests":
            requests.append((g, hour, *(numbers.get(field, 0) for field in _FIELDS)))
        elif table == CONFIDENCE_ROWS:
            confidences += [(g, int(index), number) for index, number in numbers.items()]
        elif table in {AUDIT_ROWS, "audits"}:
            for index, rate in {(key.split()[0], key.split()[1]) for key in numbers}:
                counts = (numbers.get(f"{index} {rate} {field}", 0) for field in ("audited", "differ", "harms", "wins"))
                audits.append((g, hour, int(index) if table == AUDIT_ROWS else UNSTATED, *counts, float(rate)))
    site, signed = texts
    tables = tuple(groups), tuple(requests), tuple(confidences), tuple(audits)
    return Digest(device, day, revision, final, site, own_version(), signed, *tables)
