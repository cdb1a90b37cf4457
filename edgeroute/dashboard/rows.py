"""A trace's record as what is shown of it: which way the request went, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeroute.core.codes import HELD, Failure
from edgeroute.core.texts import clean
from edgeroute.core.why import CODES
from edgeroute.record.tally import Kind
from edgeroute.replay.numbers import checked, confidence

SIDES = ("edge", "cloud", "cache", "none")
"""Who answered: `none` is nobody."""
ANSWERED = frozenset({"accepted", "below", "kept"})
TEXT = 300
"""Characters of a text that is shown."""
NAME = 80
"""Characters of a name."""


class Run(NamedTuple):
    """What became of one leg."""

    name: str
    side: str
    what: str
    """accepted, below, kept: it answered; failed; held: it was not asked; cancelled, timeout."""
    took_s: float
    confidence: float | None
    code: str
    sent_bytes: float
    received_bytes: float
    usd: float


class Row(NamedTuple):
    """What is shown of one request."""

    at: float
    id: str
    side: str
    """One of `SIDES`."""
    by: str
    """The target that answered; empty: none."""
    accepted: bool
    deferred: bool
    """A cloud was needed."""
    latency_s: float
    data_class: str
    note: str
    kind: str
    """The reason without numbers, by which requests are counted."""
    runs: tuple[Run, ...]
    record: Mapping[str, Any]

    @property
    def counted(self) -> Kind:
        """What metrics count it under, as `Prometheus` does in the router's process."""
        record = self.record
        code = record.get("reason_code")
        code = code if isinstance(code, str) and code in CODES else "other"  # a trace of before there were any
        if "events" not in record:
            return Kind("stale" if code == "stale" else "cache", clean(record.get("leg", ""), NAME), code, degraded=False)
        return Kind(self.side, self.by, code, degraded=self.degraded)

    @property
    def degraded(self) -> bool:
        """Whether a fallback answered; a stream that its caller has left is none."""
        return not self.accepted and self.side != "none" and self.record.get("reason_code") != "left"

    @property
    def batch(self) -> str:
        """Id of the batch of which it is a row; empty: none."""
        return self.id.rpartition(".")[0]

    @property
    def odd(self) -> bool:
        """Whether it is one to look at: not answered as the policy requires, or with a failure."""
        return not self.accepted or any(run.what in {"failed", "held", "timeout"} for run in self.runs)

    def shown(self) -> dict[str, Any]:
        """It as a page has it, with its reason."""
        sure = next((run.confidence for run in self.runs if run.confidence is not None), None)
        return {
            "at": self.at, "id": self.id, "side": self.side, "by": self.by, "accepted": self.accepted,
            "latency_s": self.latency_s, "confidence": sure, "data_class": self.data_class, "reason": reason(self),
        }  # fmt: skip


def row(record: Mapping[str, Any]) -> Row:
    """What is shown of a record.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none of a trace.
    """
    at, latency_s = float(checked(record["at"])), float(checked(record["latency_s"]))
    identity, note = clean(record["id"], NAME), clean(record.get("note", ""), TEXT)
    if "events" not in record:  # the cache's, or what was queued
        text = clean(record.get("reason", ""), TEXT)
        stale = record.get("answered_by") == "stale"
        return Row(at, identity, "cache", "cache", not stale, False, latency_s, "", text, "a stale answer of the cache" if stale
                   else "answered by the cache", (), record)  # fmt: skip
    sides = {leg["leg"]: leg["side"] for leg in record["plan"]}
    for leg in record["plan"]:
        confidence(leg["threshold"])  # a trial of another threshold reads it
    started, runs, deferred, parts = dict[str, float](), list[Run](), False, list[str]()
    for event in record["events"]:
        what, name = event["what"], event["leg"]
        if what == "start":
            started[name] = event["at_s"]
            deferred = deferred or sides[name] == "cloud"
        elif what not in {"limit", "decided"}:
            code = event.get("code", "")
            if what == "failed" and Failure(code, again=bool(event.get("again"))).held:
                what = "held"
            label = clean(name, NAME)
            took_s = float(checked(event["at_s"])) - float(checked(started[name]))
            costs = (float(checked(event.get(part, 0)) or 0) for part in ("sent_bytes", "received_bytes", "usd"))
            runs.append(Run(label, sides[name], what, took_s, confidence(event.get("confidence")), code, *costs))
            if what != "cancelled":
                parts.append(f"{label} {_KINDS.get(what, what)}{f' ({code})' if code in HELD or code == 'timeout' else ''}")
    by, accepted = record["answered_by"], bool(record["accepted"])
    side = "none" if by is None else "edge" if sides[by] == "edge" else "cloud"
    if side == "none":
        parts.append("no answer")
    elif not accepted:
        parts.append("left by its caller" if record.get("reason_code") == "left" else "degraded")
    return Row(
        at, identity, side, "" if by is None else clean(by, NAME), accepted, deferred, latency_s,
        clean(record.get("data_class") or "", NAME), note, clean("; ".join(parts), TEXT), tuple(runs), record,
    )  # fmt: skip


_KINDS = {
    "accepted": "answers", "below": "is not sure", "kept": "on standby", "held": "not asked", "failed": "fails",
    "timeout": "is late",
}  # fmt: skip


def reason(of: Row) -> str:
    """Why it went that way, in one line, as an answer's `reason` has it."""
    record = of.record
    if "events" not in record:
        return of.note
    legs, own, parts = {leg["leg"]: leg for leg in record["plan"]}, dict[str, Any](), list[str]()
    started = dict[str, float]()
    for event in record["events"]:
        what, leg = event["what"], legs[event["leg"]]
        name, sure = leg["leg"], event.get("confidence")
        if what == "start":
            started[name] = event["at_s"]
        elif what == "limit":
            own[name] = event["threshold"]
        elif what in ANSWERED:
            limit = own.get(name, leg["threshold"])
            if limit is None or (leg["side"] == "cloud" and sure is None):
                parts.append(f"{name} {(event['at_s'] - started[name]) * 1000:.0f} ms")
            else:
                known = "without confidence" if sure is None else f"{_number(sure)} {'<' if what == 'below' else '>='}"
                parts.append(f"{name} {known} {_number(limit)} ({leg['label']})")
        elif what == "failed":
            parts.append(f"{name}: {event.get('error', 'failed')}")
        elif what == "timeout":
            parts.append(f"{name} not there by the deadline")
    if record["answered_by"] is None:
        parts.append("no answer")
    elif not of.accepted:
        parts.append(f"so the {record['answered_by']} answer stands")
    if record.get("stays"):
        parts.append(str(record["stays"]))
    return clean("; ".join([*parts, *([of.note] if of.note else [])]), TEXT)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
