"""What a page and a terminal show: records followed in the background, with state, egress ledger and device beside them."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.rules import Rule
from edgeroute.core.words import clean, told
from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.observe import sensors
from edgeroute.record.tally import Tallied
from edgeroute.system import process
from edgeroute.system.process import json_dumps, json_loads
from edgeroute.tools.dashboard.tail import Tail
from edgeroute.tools.dashboard.trial import Trial
from edgeroute.tools.dashboard.window import NAME, TEXT, Window, row
from edgeroute.tools.replay import Setup, collect
from edgeroute.tools.replay.records import MOST

log = logging.getLogger("edgeroute")
EVERY_S = 0.5
"""Between two looks for new records, seconds."""
STATE_S = 2.0
"""Between two looks at state and sensors, seconds."""
CLOSE_S = 5.0
"""Longest wait for a look that is going on, seconds: a state or a sensor may hang."""
OLD_S = 60.0
"""Age of a reading in the trace from which the device's own sensors are read in its place, seconds."""
AHEAD_S = 60.0
"""A record that claims to be this much later than now counts as of now."""
REPLAYED, REPLAYED_BYTES, RECORD_BYTES = 5000, 8 << 20, 1 << 14
"""Requests kept to be replayed: how many, their bytes together, and those of one. A larger record counts as lost."""
DESTINATIONS = 50
"""Destinations and data classes that the egress ledger is summed up by."""
LEDGER = 20
"""Lines of the egress ledger that are shown."""
AUDITS = 20_000
"""Audited answers that are read, the latest."""
WRONG = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What a record that is none of a trace raises."""


class Feed(Protocol):
    """Where records come from."""

    name: str
    """What it is, for people."""

    def take(self) -> Iterable[Mapping[str, Any]]:
        """The records that came since the last call, the oldest first."""

    def lost(self) -> int:
        """How many were left out, as they came too fast, or could not be read; a file that was deleted unread counts as one."""

    def raised(self) -> int | None:
        """How many requests ended with an exception; None: not known, as a trace has answers alone."""

    def error(self) -> str:
        """Why nothing can be read; empty: it can."""

    def close(self) -> None:
        """Ends it."""


class Told(NamedTuple):
    """What is known beside the trace."""

    state: Callable[[], Mapping[str, Any]] = dict
    """What `edgeroute status --json` prints, and of a router in this process `breakers`. Raises EdgerouteError: it is unknown."""
    setup: Callable[[], Setup | None] = lambda: None
    """The policy, for replays; None: what follows from the trace."""
    certificates: Callable[[], Mapping[str, BoundCertificate] | None] = lambda: None
    """Of the edges; None: not known."""
    folder: Path | None = None
    """The state folder, with the egress ledger and the audit log."""


class TraceFile:
    """The records of a trace's file."""

    def __init__(self, path: Path) -> None:
        own = path.is_relative_to(Path.cwd())
        self.name, self._tail, self._skipped = str(path.relative_to(Path.cwd()) if own else path), Tail(path), 0

    def take(self) -> Iterable[Mapping[str, Any]]:
        """Reads on; a line that is no JSON object is left out."""
        for line in self._tail.read():
            try:
                record = json_loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                yield record
            else:
                self._skipped += 1

    def lost(self) -> int:
        """Lines that are no records, and gaps: what was deleted before it was read."""
        return self._skipped + self._tail.gaps + self._tail.left_out

    def raised(self) -> int | None:
        """A trace does not have them."""
        return None

    def error(self) -> str:
        """Why the file cannot be opened."""
        return self._tail.error

    def close(self) -> None:
        """Closes the file."""
        self._tail.close()


class Monitor:
    """Follows a router; thread-safe.

    Args:
        feed: the records.
        beside: what is known beside them.
        title: what is shown, for people.
    """

    def __init__(self, feed: Feed, beside: Told | None = None, title: str = "") -> None:
        self.title, self._feed, self._told = title, feed, beside or Told()
        self._window, self._wrong = Window(), 0
        self._kept, self._kept_bytes = deque[bytes](), 0
        folder = self._told.folder
        self._ledger = None if folder is None else Tail(folder / "egress.jsonl")
        self._sent, self._sent_bytes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._last_sent = deque[dict[str, Any]](maxlen=LEDGER)
        self._state: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._state_at = 0.0
        self._polls = 0
        self._text: tuple[int, bytes] = (-1, b"")
        self._trial: Trial | None = None
        self._since = process.now()
        self._lock, self._trying, self._ended = threading.RLock(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeroute-dashboard", daemon=True)

    def start(self) -> None:
        """Begins to follow, in a thread of its own."""
        self.poll()
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)
        with self._lock:
            self._feed.close()
            if self._ledger is not None:
                self._ledger.close()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                self.poll()
            except Exception:  # noqa: PERF203 - each look on its own
                log.exception("the dashboard could not read on; it tries again")

    def poll(self) -> None:
        """Reads what is new, and state and sensors if that is due."""
        now = process.now()
        if now >= self._state_at + STATE_S or now < self._state_at:
            self._state_at = now
            state, device = self._read_state(), self._read_device()
            with self._lock:
                self._state, self._device = state, device
        if not self._ended.is_set():  # while it waited: what is closed is not opened again
            self.read()

    def read(self) -> int:
        """Reads the records that are new -> how many."""
        now, n = process.now(), 0
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
        if "input" in record:
            record = {name: part for name, part in record.items() if name != "input"}
        text = json_dumps(record)
        if len(text) > RECORD_BYTES:  # what is shown keeps its record
            raise ValueError(f"a record of {len(text):,} bytes is none of a router")
        one = row(record)
        self._window.add(one._replace(at=now) if one.at > now + AHEAD_S else one)
        self._kept.append(text)
        self._kept_bytes += len(text)
        while len(self._kept) > REPLAYED or self._kept_bytes > REPLAYED_BYTES:
            self._kept_bytes -= len(self._kept.popleft())

    def _read_state(self) -> dict[str, Any]:
        try:
            return dict(self._told.state())
        except EdgerouteError as e:
            return {"error": told(e)}
        except Exception as e:  # noqa: BLE001 - a damaged file, or a router that is being closed: said, and tried again
            return {"error": told(e) or type(e).__name__}

    def _read_device(self) -> dict[str, Any]:
        return {name: value for name, value in sensors.read()._asdict().items() if value is not None}

    def _read_ledger(self) -> None:
        for line in [] if self._ledger is None else self._ledger.read():
            try:
                record = json_loads(line)
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
        """Everything that is shown."""
        now = process.now()
        with self._lock:
            found = self._window.shown(now)
            age_s = None if found["latest_at"] is None else now - found["latest_at"]
            traced, rules = found.pop("reading"), found.pop("rules")
            fresh = bool(traced) and age_s is not None and age_s <= OLD_S
            reading = {name: v for name, v in traced.items() if name != "age_s"} if fresh else self._device
            state = dict(self._state)
            for leg in found["legs"]:
                leg["breaker"] = state.get("breakers", {}).get(leg["name"], leg["breaker"])
            return {
                "title": self.title, "source": self._feed.name, "now": now, "since": self._since,
                "lost": self._feed.lost() + self._wrong, "raised": self._feed.raised(), "error": self._feed.error(), **found,
                "state": state,
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

    def tallied(self) -> Tallied:
        """What was counted of the records, for metrics."""
        return self._window.tally.read()

    def text(self) -> bytes:
        """`view` as JSON; made once for all who ask between two looks."""
        with self._lock:
            if self._text[0] != self._polls:
                self._text = self._polls, json_dumps(self.view(), str)
            return self._text[1]

    def trial(self, *, fresh: bool = False) -> dict[str, Any]:
        """Takes the latest requests to be replayed -> what there is to drag. fresh: the latest of now, not those taken before.

        Raises:
            BadInput: there are none yet.
        """
        with self._trying:
            if self._trial is None or fresh:
                with self._lock:
                    lines = [*self._kept]
                if not lines:
                    raise BadInput("no request has been recorded yet: there is nothing to replay")
                records = sorted(map(json_loads, lines), key=lambda record: record["at"])
                records = [record for record in records if _whole(record)]
                self._trial = Trial(records, self._told.setup(), self._told.certificates(), self._audits())
            return self._trial.shown()

    def tried(self, edge: str, threshold: float) -> dict[str, Any]:
        """What would have become of the requests taken last with that threshold.

        Raises:
            BadInput: none were taken, or there is no such edge.
        """
        with self._trying:
            if self._trial is None:
                raise BadInput("nothing has been taken to be replayed")
            return self._trial.at(edge, threshold)

    def _audits(self) -> list[Mapping[str, Any]]:
        if self._told.folder is None:
            return []
        tail = Tail(self._told.folder / "audit.jsonl", history=1 << 23)
        found = deque[Mapping[str, Any]](maxlen=AUDITS)
        for line in tail.read():
            try:
                record = json_loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                found.append(record)
        tail.close()
        return [*found]


def _whole(record: Mapping[str, Any]) -> bool:
    """Whether it can be replayed."""
    try:
        collect([record])
    except BadInput:
        return False
    return True


def _number(found: Any) -> float:
    """A number of a record; 0 if it is none."""
    return float(found) if isinstance(found, int | float) and -MOST < found < MOST else 0.0


def _rules(state: Mapping[str, Any], traced: Iterable[Any]) -> list[dict[str, Any]]:
    """The rules on the device's state, with those in force: as the router has them, or else its latest record."""
    now = state["in_force"] if "in_force" in state else [_rule(one) for one in traced]
    listed = dict.fromkeys([*state.get("policy", {}).get("rules", ()), *now])
    return [{"text": text, "in_force": text in now} for text in listed]


def _rule(traced: Any) -> str:
    """A rule of a trace in words."""
    try:
        rule = Rule(traced["of"], traced["then"], traced["enter"])
        return clean(f"{rule}: {rule.then}", TEXT)
    except (KeyError, TypeError, ValueError):
        return clean(traced, TEXT)
