"""`Monitor` behind the page and the terminal view: a thread follows trace, state, egress ledger and device.

`Tail` reads lines appended to a file through its rotations; a `Feed`, such as `TraceFile`, gives the records; `Sources` the
state.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.error_codes_and_texts import clean, error_message
from edgeroute.errors import BadInput
from edgeroute.observe import device_sensors_and_sampler as sensors
from edgeroute.record.event_tally_and_histograms import Tallied
from edgeroute.system import wall_clock
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads
from edgeroute.system.thread_pool_and_workers import Worker
from edgeroute.system.untrusted_files import open_file
from edgeroute.tools.dashboard.request_window_and_replays import (
    ENOUGH_AUDITS,
    NAME,
    TEXT,
    WRONG,
    ThresholdReplays,
    Window,
    row_of,
    rule_text,
)
from edgeroute.tools.replay import Setup, collect
from edgeroute.tools.replay.recorded_requests_and_statistics import MOST

PIECE = 1 << 20  # bytes read at a time
MOST_READ = 8 << 20  # most bytes of lines returned at a time
LONGEST = 16 << 20  # most bytes of a line; a longer one is skipped
HISTORY = 4 << 20  # bytes before the end at which reading begins
BEHIND = 16 << 20  # most unread bytes; beyond that reading skips towards the end, and counts the skipped lines
HEAD = 256  # bytes of a file's beginning that identify it: its inode may be reused once it is deleted
DONE = 256  # most finished files to remember
KEEPS_OPEN = sys.platform != "win32"  # False on Windows: there an open file cannot be renamed, so its writer could not rotate it


class Tail:
    """Reader of the lines appended to a file, and to those that replace it.

    An incomplete line is returned once its end is written. Lines appended to a full file after a newer one was started are
    missed, as may happen to a line of a process that had it open when another one rotated it.

    Args:
        path: path of the file of a `Journal`: full files are `path.1`, the latest, `path.2`, ...
        history: bytes of existing lines to read first, full files included.

    Attributes:
        left_out: lines that were skipped, because the writer was faster, or they were too long or have no end.
        gaps: files that were deleted before they were read to their end.
        error: reason why the file could not be opened the last time; empty: it could, or there is none.
    """

    def __init__(self, path: str | Path, *, history: int = HISTORY) -> None:
        self.path, self._history = Path(path), history
        self.left_out = self.gaps = 0
        self.error = ""
        self._file: FileIO | None = None
        self._file_id: tuple[int, int] | None = None  # device and inode of the file in reading; None: none yet
        self._offset = 0
        self._part = bytearray()  # beginning of an incomplete line
        self._skips = False  # True while the rest of the line is skipped
        self._done = deque[tuple[int, int, bytes]](maxlen=DONE)  # files that were read, or skipped, to their ends
        self._gone = False  # True if the file in reading was deleted, and no other follows it

    def read(self) -> list[bytes]:
        """Return the complete lines since the last call, 8 MiB at most; [] without a file, or if it cannot be opened (`error`).

        The first call begins `history` bytes before the end. Beyond 16 MiB of unread bytes it skips towards the end. Skipped and
        too long lines are counted in `left_out`, files that were deleted unread in `gaps`. The file in reading stays open (not on
        Windows).
        """
        lines = list[bytes]()
        read = 0
        with contextlib.ExitStack() as stack:
            files = self._files(stack)
            if not files:
                return lines
            if self._file_id is None:
                self._begin(files)
            self._catch_up(files)
            while read < MOST_READ:
                now = next((i for i, file in enumerate(files) if _file_id(file) == self._file_id), None)
                if now is None:
                    self.gaps += not self._gone
                    self._part.clear()
                    files = [file for file in files if _fingerprint(file) not in self._done]
                    self._gone = not files
                    if not files:  # all remaining files were read before
                        return lines
                    now = 0
                    self._turn_to(files[0])
                read += self._read(files[now], MOST_READ - read, lines)
                if read >= MOST_READ or now + 1 == len(files):
                    break
                self._done.append(_fingerprint(files[now]))
                self._cut()  # a full file that ends in an incomplete line: its writer was killed
                self._turn_to(files[now + 1])
            self._hold(files)
        return lines

    def records(self) -> Iterator[dict[str, Any] | None]:
        """Yield the JSON object of each line since the last call, as `read` returns them; None for a line that is none."""
        for line in self.read():
            try:
                record = json_loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None

    def close(self) -> None:
        """Close the file; a later `read` opens it again, and goes on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self, stack: contextlib.ExitStack) -> list[FileIO]:
        """Open and return the files, the oldest first, without those read before; [] if there are none. `stack` closes them.

        Sets `error`. Looks from the newest on, so that a file that is rotated meanwhile is found under its new name.
        """
        files, seen = list[FileIO](), set[tuple[int, int]]()
        n = missing = 0
        self.error = ""
        while missing < 2:  # noqa: PLR2004 - while files are renamed one number is free
            path = self.path if n == 0 else self.path.with_name(f"{self.path.name}.{n}")
            try:
                file = cast("FileIO", open_file(path).detach())
            except OSError as e:
                missing += n > 0
                if n == 0 and not isinstance(e, FileNotFoundError):
                    self.error = f"{path}: {e.strerror or e}"
            else:
                missing = 0
                stack.callback(file.close)
                if (which := _file_id(file)) not in seen:
                    seen.add(which)
                    files.insert(0, file)
                if which == self._file_id:
                    break  # older ones have been read
            n += 1
        return files

    def _begin(self, files: list[FileIO]) -> None:
        """Set the position `history` bytes before the end of all files, at a line's beginning; note older files as read."""
        remaining = self._history
        for file in reversed(files):
            size = os.fstat(file.fileno()).st_size
            self._turn_to(file)
            if size >= remaining:
                self._offset = size - remaining
                self._skips = self._offset > 0  # up to the first line's end
                if self._skips:
                    self._offset -= 1  # a line may end just before the position
                break
            remaining -= size
        self._done += [_fingerprint(file) for file in files[: files.index(file)]]

    def _catch_up(self, files: list[FileIO]) -> None:
        """Skip to 8 MiB before the end, or `history` if less, if more than 16 MiB are unread, and count the skipped lines.

        A file that was truncated is read again from its beginning.
        """
        sizes = [os.fstat(file.fileno()).st_size for file in files]
        now = next((i for i, file in enumerate(files) if _file_id(file) == self._file_id), None)
        if now is None:
            return
        if sizes[now] < self._offset:  # truncated by another process
            self._offset = 0
            self._part.clear()
        behind = sum(sizes[now:]) - self._offset
        if behind > BEHIND:
            history, offset = self._history, self._offset
            self._history = min(history, BEHIND // 2)
            self._part.clear()
            self._begin(files)
            then = next(i for i, file in enumerate(files) if _file_id(file) == self._file_id)
            for i in range(now, then + 1):
                self.left_out += _count_lines(files[i], offset if i == now else 0, self._offset if i == then else sizes[i])
            self.left_out += self._skips  # the line in which reading continues
            self._history = history

    def _turn_to(self, file: FileIO) -> None:
        """Continue at the beginning of this file."""
        self._file_id, self._offset, self._skips = _file_id(file), 0, False

    def _cut(self) -> None:
        """Discard an incomplete line, and count it."""
        self.left_out += bool(self._part)
        self._part.clear()

    def _read(self, file: FileIO, most: int, lines: list[bytes]) -> int:
        """Read on in a file up to an error, append its complete, not blank lines to `lines`; return the number of bytes read.

        A line of more than 16 MiB is discarded, counted in `left_out`, and its rest skipped.
        """
        read = 0
        file.seek(self._offset)
        while read < most:
            try:
                piece = file.read(min(PIECE, most - read))
            except OSError:
                break
            if not piece:
                break
            read += len(piece)
            self._offset += len(piece)
            whole, newline, rest = piece.rpartition(b"\n")
            if newline:
                if self._skips:
                    whole, self._skips = whole.partition(b"\n")[2], False
                lines += [line for line in bytes(self._part + whole).split(b"\n") if line.strip()]
                self._part.clear()
            if not self._skips:
                self._part += rest
            if len(self._part) > LONGEST:
                self._cut()
                self._skips = True
        return read

    def _hold(self, files: list[FileIO]) -> None:
        """Keep a second descriptor of the file in reading open, and close the former one; nothing on Windows.

        Without it the file's inode could be reused once it is deleted.
        """
        if not KEEPS_OPEN:
            return
        file_now = next(file for file in files if _file_id(file) == self._file_id)
        if self._file is None or _file_id(self._file) != self._file_id:
            self.close()
            self._file = FileIO(os.dup(file_now.fileno()))


def _count_lines(file: FileIO, begin: int, end: int) -> int:
    """Return the number of line ends between two positions of a file; moves its position."""
    file.seek(begin)
    count = 0
    while (remaining := end - begin) > 0 and (piece := file.read(min(PIECE, remaining))):
        count += piece.count(b"\n")
        begin += len(piece)
    return count


def _fingerprint(file: FileIO) -> tuple[int, int, bytes]:
    """Return a file's device, inode and first bytes."""
    file.seek(0)
    return *_file_id(file), file.read(HEAD) or b""


def _file_id(file: FileIO) -> tuple[int, int]:
    """Return a file's device and inode."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


EVERY_S = 0.5  # time between two reads of new records, seconds
STATE_S = 2.0  # time between two reads of state and sensors, seconds
CLOSE_S = 5.0  # longest wait for a read in progress at the end, seconds: a state or a sensor may hang
OLD_S = 60.0  # age of a traced reading from which this machine's sensors replace it, seconds
AHEAD_S = 60.0  # a record dated later than this after now counts as of now, seconds
# Requests in memory for replays: most requests, most bytes together, and most bytes of a record. A larger one counts as lost.
REPLAYED, REPLAYED_BYTES, RECORD_BYTES = 5000, 8 << 20, 1 << 14
LISTED = 200  # most requests in the list of a bar's
DESTINATIONS = 50  # most pairs of destination and data class in the sums of the egress ledger
LEDGER = 20  # latest lines of the egress ledger on the page
AUDITS = 20_000  # latest audited answers that are read


class Feed(Protocol):
    """Source of records."""

    name: str  # description for people
    error: str  # reason why nothing can be read; empty if it can

    @property
    def raised(self) -> int | None:
        """Number of requests that ended with an exception; None: unknown, as a trace has only answers."""

    def take(self) -> Iterable[Mapping[str, Any]]:
        """Yield the records since the last call, the oldest first."""

    def lost(self) -> int:
        """Return the number of records left out: they came too fast, or could not be read.

        A file that was deleted before it was read counts as one.
        """

    def close(self) -> None:
        """Close the source."""


class Sources(NamedTuple):
    """Sources of a router's state beside its trace."""

    # Returns the state as `edgeroute status --json` prints it, with `breakers` of a router in this process.
    #
    # Raises EdgerouteError if it is unknown.
    state: Callable[[], Mapping[str, Any]] = dict
    setup: Callable[[], Setup | None] = lambda: None  # returns the policy for replays; None: derive it from the trace
    # Returns the certificates of the edges; None: unknown.
    certificates: Callable[[], Mapping[str, BoundCertificate] | None] = lambda: None
    folder: Path | None = None  # state folder, with the egress ledger and the audit log
    # Steps that bring a first request: for each a text for people, and a line to copy.
    first: Sequence[tuple[str, str]] = ()


class TraceFile(Tail):
    """Feed of the records in a trace file, followed through its rotations."""

    raised = None  # a trace does not record exceptions

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name, self._skipped = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), 0

    def take(self) -> Iterable[Mapping[str, Any]]:
        """Yield the records since the last call; count lines that are no JSON object and skip them."""
        for record in self.records():
            if record is None:
                self._skipped += 1
            else:
                yield record

    def lost(self) -> int:
        """Return the number of lines that were skipped, or are no records, plus that of files deleted before they were read."""
        return self._skipped + self.gaps + self.left_out


class Monitor:
    """Follower, in a thread, of a router's records, state and ledger: sums, rows, and replays of thresholds. Thread-safe.

    Args:
        feed: source of the records.
        beside: sources of the state; None: none.
        title: title for people.
    """

    def __init__(self, feed: Feed, beside: Sources | None = None, title: str = "") -> None:
        self.title, self._feed, self._sources = title, feed, beside or Sources()
        self._window, self._wrong = Window(), 0
        self._replayable, self._replayable_bytes = deque[tuple[float, bytes]](), 0
        folder = self._sources.folder
        self._ledger, self._costs = (None if folder is None else Tail(folder / f"{name}.jsonl") for name in ("egress", "audit"))
        self._audit_calls, self._audit_usd = 0, 0.0
        self._sent, self._sent_bytes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._last_sent = deque[dict[str, Any]](maxlen=LEDGER)
        self._state: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._state_at = self._delivered_at = 0.0
        self._polls = 0
        self._text: tuple[int, bytes] = (-1, b"")
        self._trial: ThresholdReplays | None = None
        self._since = self._first_at = wall_clock.now()
        self._lock, self._trial_lock = threading.RLock(), threading.Lock()
        self._worker = Worker("edgeroute-dashboard", self.poll, "no new records were read", first_s=EVERY_S, retry_s=EVERY_S)

    def start(self) -> None:
        """Read once, then start the thread that follows. Blocks while it reads."""
        self.poll()
        self._worker.start()

    def close(self) -> None:
        """Stop the thread, waiting at most 5 s for a read in progress, and close the files."""
        self._worker.close(CLOSE_S)
        with self._lock:
            self._feed.close()
            for tail in filter(None, (self._ledger, self._costs)):
                tail.close()

    def poll(self) -> float:
        """Read state and sensors, if 2 s have passed, then new records, unless closed; return the seconds until the next poll.

        Notes the time at which an outbox has delivered more than before.
        """
        now = wall_clock.now()
        if now >= self._state_at + STATE_S or now < self._state_at:
            self._state_at = now
            device = {name: value for name, value in sensors.read()._asdict().items() if value is not None}
            state = self._read_state()
            with self._lock:
                if _delivered(state) > _delivered(self._state) and "outbox" in self._state:
                    self._delivered_at = now
                self._state, self._device = state, device
        if not self._worker.closed:  # it may have been closed while it waited
            self.read()
        return EVERY_S

    def read(self) -> int:
        """Read and count the new records and ledger lines, holding the lock; return the number of records, invalid ones, too.

        Invalid ones are counted as lost.
        """
        now, n = wall_clock.now(), 0
        with self._lock:
            for record in self._feed.take():
                n += 1
                try:
                    self._add(record, now)
                except WRONG:
                    self._wrong += 1
            self._read_ledger()
            self._polls += 1
        return n

    def _add(self, record: Mapping[str, Any], now: float) -> None:
        """Count a record and store it for replays without its input, dropping the oldest beyond 5,000 or 8 MiB.

        A time more than 60 s in the future counts as now. Raises one of `WRONG` if it is invalid, or larger than 16 KiB.
        """
        if "input" in record:
            record = {name: part for name, part in record.items() if name != "input"}
        text = json_dumps(record)
        if len(text) > RECORD_BYTES:  # listed requests hold their record
            raise ValueError(f"a record of {len(text):,} bytes is no router's")
        request = row_of(record)
        request = request._replace(at=now) if request.at > now + AHEAD_S else request
        self._window.add(request)
        self._first_at = min(self._first_at, request.at)
        self._replayable.append((request.at, text))
        self._replayable_bytes += len(text)
        while len(self._replayable) > REPLAYED or self._replayable_bytes > REPLAYED_BYTES:
            self._replayable_bytes -= len(self._replayable.popleft()[1])

    def _read_state(self) -> dict[str, Any]:
        """Return a copy of the router's state; on any error only its message, under "error"."""
        try:
            return dict(self._sources.state())
        except Exception as e:  # noqa: BLE001 - a damaged file, or a router that is being closed: shown, and tried again
            return {"error": error_message(e) or type(e).__name__}

    def _read_ledger(self) -> None:
        """Read the new lines of the egress ledger: add calls and bytes to the sums, and store the last 20 for the page.

        There is a sum for each of 50 pairs of destination and data class, and "others" for the rest. Invalid lines are counted.
        Of the audit log, number and US dollars of the calls since the first record are added; its invalid lines are skipped.
        """
        for cost in filter(None, [] if self._costs is None else self._costs.records()):
            if (usd := _number(cost.get("audit_usd"))) and _number(cost.get("at")) >= self._first_at:
                self._audit_calls, self._audit_usd = self._audit_calls + 1, self._audit_usd + usd
        for line in [] if self._ledger is None else self._ledger.records():
            try:
                record = line or {}
                key, size = (clean(record["to"], TEXT), clean(record["data_class"] or "", NAME)), int(record["bytes"])
                shown = {
                    "at": float(record["at"]), "to": key[0], "data_class": key[1], "bytes": size,
                    "rule": clean(record["rule"], TEXT), "request": clean(record["request"], NAME),
                }  # fmt: skip
            except WRONG:
                self._wrong += 1
                continue
            if key not in self._sent and len(self._sent) >= DESTINATIONS:
                key = "others", ""
            self._sent[key] += 1
            self._sent_bytes[key] += size
            self._last_sent.append(shown)

    def view(self) -> dict[str, Any]:
        """Return everything that a page shows, as plain data; takes the lock, reads nothing from disk.

        Sensor readings are the trace's if it is at most 60 s old, otherwise this machine's. A target is away if its calls fail,
        or its circuit breaker is not closed, and nothing that waited for it has been delivered since.
        """
        now = wall_clock.now()
        with self._lock:
            view_data = self._window.shown(now)
            age_s = None if view_data["latest_at"] is None else now - view_data["latest_at"]
            traced, rules = view_data.pop("reading"), view_data.pop("rules")
            fresh = bool(traced) and age_s is not None and age_s <= OLD_S
            reading = {name: v for name, v in traced.items() if name != "age_s"} if fresh else self._device
            state = dict(self._state)
            breakers = state.get("breakers", {})
            for leg in view_data["legs"]:
                if leg["name"] in breakers:
                    leg["breaker"] = breakers[leg["name"]]
                    leg["away"] = leg["breaker"] != "closed"
                leg["away"] = leg["away"] and self._delivered_at <= leg["failed_at"]  # else what waited has arrived since
            seen = {leg["name"] for leg in view_data["legs"]}
            away = [
                {"name": leg["name"], "since": leg["away_at"] or None, "failed_at": leg["failed_at"], "unserved": leg["unserved"]}
                for leg in view_data["legs"] if leg["away"]
            ]  # fmt: skip
            away += [
                {"name": name, "since": None, "failed_at": 0.0, "unserved": 0}  # no answer names it: each request to it raised
                for name, breaker in breakers.items() if breaker != "closed" and name not in seen
            ]  # fmt: skip
            return {
                "title": self.title, "source": self._feed.name, "now": now, "since": self._since,
                "lost": self._feed.lost() + self._wrong, "raised": self._feed.raised, "error": self._feed.error, **view_data,
                "state": state, "away": away, "first": self._sources.first, "enough_audits": ENOUGH_AUDITS,
                "audits": {"calls": self._audit_calls, "usd": self._audit_usd},
                "rules": _rules(state, rules),
                "device": {
                    "reading": reading, "by": "the router, in its trace" if fresh else "this dashboard",
                    "age_s": age_s + _number(traced.get("age_s")) if fresh and age_s is not None else None,
                },
                "egress": {
                    "totals": [
                        {"to": to, "data_class": data_class, "attempts": n, "bytes": self._sent_bytes[to, data_class]}
                        for (to, data_class), n in self._sent.most_common()
                    ],
                    "last": [*reversed(self._last_sent)],
                },
            }  # fmt: skip

    def between(self, begin: float, end: float) -> dict[str, Any]:
        """Return the rows of the requests from `begin` to before `end`, the newest 200 first, and the number of all; Unix times.

        Only the latest requests are in memory; `whole` is False if the span begins before the oldest of them.
        """
        with self._lock:
            records = [*self._replayable]
        found = [text for at, text in records if begin <= at < end]
        whole = len(records) == self._window.requests or bool(records and records[0][0] < begin)
        rows = [row_of(json_loads(text)).shown() for text in reversed(found[-LISTED:])]
        return {"rows": rows, "count": len(found), "whole": whole}

    def tallied(self) -> Tallied:
        """Return the counts of the records, for metrics."""
        return self._window.tally.read()

    def text(self) -> bytes:
        """Return `view` as JSON; computed once after each poll, for all clients."""
        with self._lock:
            if self._text[0] != self._polls:
                self._text = self._polls, json_dumps(self.view(), str)
            return self._text[1]

    def trial(self, *, fresh: bool = False) -> dict[str, Any]:
        """Return the thresholds to try on the latest requests, with replays of 20 of them for each edge, which take long.

        The first call loads the requests and the audit log. Another call waits meanwhile.

        Args:
            fresh: True loads the latest requests, and the audit log, again.

        Raises:
            BadInput: there are no requests yet, or none that can be replayed.
        """
        with self._trial_lock:
            if self._trial is None or fresh:
                with self._lock:
                    lines = [text for _, text in self._replayable]
                if not lines:
                    raise BadInput("no request has been recorded yet: there is nothing to replay")
                records = sorted(map(json_loads, lines), key=lambda record: record["at"])
                records = [record for record in records if _is_replayable(record)]
                self._trial = ThresholdReplays(records, self._sources.setup(), self._sources.certificates(), self._audits())
            return self._trial.shown()

    def try_threshold(self, edge: str, threshold: float) -> dict[str, Any]:
        """Replay the loaded requests with another threshold of an edge model and return the result; nothing in force changes.

        Raises:
            BadInput: no requests are loaded, there is no such edge, or the threshold is NaN.
        """
        with self._trial_lock:
            if self._trial is None:
                raise BadInput("no requests are loaded for a replay: GET /trial first")
            return self._trial.at(edge, threshold)

    def _audits(self) -> list[Mapping[str, Any]]:
        """Read the end of the audit log; return its latest lines, 20,000 at most, without invalid ones; [] without a folder."""
        if self._sources.folder is None:
            return []
        tail = Tail(self._sources.folder / "audit.jsonl", history=1 << 23)
        records: list[Mapping[str, Any]] = [record for record in tail.records() if record is not None]
        tail.close()
        return records[-AUDITS:]


def _is_replayable(record: Mapping[str, Any]) -> bool:
    """Return True if a replay accepts a record."""
    try:
        collect([record])
    except BadInput:
        return False
    return True


def _delivered(state: Mapping[str, Any]) -> float:
    """Return the number of requests that an outbox has delivered; 0 without one."""
    return _number((state.get("outbox") or {}).get("delivered"))


def _number(value: Any) -> float:
    """Return a number of a record as a float; 0 if it is no plausible number."""
    return float(value) if isinstance(value, int | float) and -MOST < value < MOST else 0.0


def _rules(state: Mapping[str, Any], traced: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the rules on the device's state as texts, those of the policy first, each with True if it is in force.

    In force are those that the state names, else those of the latest record.
    """
    now = state["in_force"] if "in_force" in state else [rule_text(rule) for rule in traced]
    listed = dict.fromkeys([*state.get("policy", {}).get("rules", ()), *now])
    return [{"text": text, "in_force": text in now} for text in listed]
