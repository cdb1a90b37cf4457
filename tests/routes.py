"""Facts of an answer, by its trace: tests assert these, and leave the words of a reason to test_reasons.py."""

from __future__ import annotations

from typing import NamedTuple

from edgeroute.router.offline_queue import BEING_STORED, NOT_STORED, WAITING


class Judged(NamedTuple):
    """How a leg's answer was judged."""

    what: str
    """accepted, below or kept."""
    confidence: float | None
    threshold: float | str | None
    """For this answer; "inf": none is sure enough."""
    label: str
    """uncalibrated, or the certificate's label."""


def judged(answer, leg="edge"):
    """Finds how the answer of that leg was judged."""
    trace = answer.trace
    (planned,) = (one for one in trace["plan"] if one["leg"] == leg)
    events = [event for event in trace["events"] if event["leg"] == leg]
    (end,) = (event for event in events if event["what"] in {"accepted", "below", "kept"})
    limit = next((event["threshold"] for event in events if event["what"] == "limit"), planned["threshold"])
    return Judged(end["what"], end.get("confidence"), limit, planned["label"])


def label(answer, leg="edge"):
    """Finds what the threshold of that leg promises, whether or not it has answered."""
    return next(one["label"] for one in answer.trace["plan"] if one["leg"] == leg)


def uncalibrated(answer, leg="edge"):
    """Tells whether the threshold of that leg guarantees nothing."""
    return label(answer, leg).startswith("uncalibrated")


def failure(answer, leg="cloud"):
    """Finds the last failure of that leg: its error, and as far as it has them its code and status."""
    return [event for event in answer.trace["events"] if event["what"] == "failed" and event["leg"] == leg][-1]


def code(answer, leg="cloud"):
    """Finds the code of that leg's failure; empty: it has none."""
    return failure(answer, leg).get("code", "")


def status(answer, leg="cloud"):
    """Finds the HTTP status of that leg's failure, if any."""
    return failure(answer, leg).get("status")


def error(answer, leg="cloud"):
    """Finds the exception of that leg's failure, as "OSError: down"."""
    return failure(answer, leg)["error"]


def failures(answer):
    """Lists all failures in one text, as "cloud refused 503 Refused: ...; cloud deadline"."""
    found = []
    for event in answer.trace["events"]:
        if event["what"] == "timeout":
            found.append(f"{event['leg']} deadline")
        elif event["what"] == "failed":
            parts = event["leg"], event.get("code"), event.get("status"), event["error"]
            found.append(" ".join(str(part) for part in parts if part))
    return "; ".join(found)


def rules(answer):
    """Lists the rules on the device's state that shaped the plan, as (of, then)."""
    return [(rule["of"], rule["then"]) for rule in answer.trace["facts"]["rules"] if rule["applied"]]


def note(answer):
    """Finds what was added to the reason after the route."""
    return answer.trace.get("note", "")


def queued(answer):
    """Tells whether it is `WAITING`, `BEING_STORED` or `NOT_STORED`; empty: that was not tried."""
    said = note(answer).partition(":")[0]
    return said if said in {WAITING, BEING_STORED, NOT_STORED} else ""
