"""Programs decide by codes: with every message replaced by misleading words, all goes as before."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from edgeroute import EdgerouteError, Egress, Limits, NoAnswer, Outbox, PlainJson, Router
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core import reason_text_and_trace_record as explain
from edgeroute.core.error_codes_and_texts import HELD, ErrorCode, Rejection
from edgeroute.stores.outbox.delivery_and_callbacks import Delivery
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.replay import read, replay
from edgeroute.tools.replay.replay_setup_and_result import Setup

WORDS = "Refused: Held: BadInput: consent redaction breaker answered 422, answered 503, was not asked again: asked to wait"
"""Whatever was ever looked for in a message."""
SCRIPT = {
    "well": http_reply(b'{"value": "dog", "confidence": 0.9}'),
    "yours": http_reply(b"no such shape", status=422),
    "busy": http_reply(b"busy", status=503),
    "html": http_reply(b"<html>"),
    "silent": None,
}
ASKED = ("well", "yours", "consent", "redaction", "html", "well", "busy", "well", "silent", "gone", "busy", "well", "well")
"""One after the other; the breaker is open from the third fault in a row on."""


def server_says(request):
    what = json.loads(request.partition(b"\r\n\r\n")[2])["input"]
    if what == "gone":
        raise ConnectionResetError
    return SCRIPT[what]


def redact(x, data_class):
    if x == "redaction":
        raise ValueError("it cannot be blurred")
    return x


def asked(server, tmp_path, inputs, **more):
    """What became of each, the counts, the trace, what waits in the outbox, and the policy."""
    now = [""]
    egress = Egress(consent=lambda where, data_class: now[0] != "consent", redact=redact)
    cloud = PlainJson(server.url, retries=1, timeout_s=3.0)
    box = Outbox(tmp_path / "outbox.db")
    records, decided = [], []
    with Router(lambda x: ("edge", 0.1), cloud, threshold=0.5, trace=records.append, egress=egress, outbox=box, **more) as router:
        for now[0] in inputs:
            try:
                answer = router.infer(now[0])
                decided.append((now[0], answer.value, answer.source, answer.degraded, answer.final))
            except NoAnswer as e:  # noqa: PERF203 - each on its own
                decided.append((now[0], {leg: type(error).__name__ for leg, error in e.errors.items()}))
        stats = router.stats()
        setup = Setup.of(router.engine.snapshot, more.get("limits"))
        waiting = [(entry.target, entry.state, bool(entry.error)) for entry in box.list()]
    legs = [(leg.name, *leg[2:7], leg.breaker, leg.held) for leg in stats.legs]
    counted = (stats.requests, stats.deferred, stats.degraded, stats.unanswered, stats.queued, legs)
    events = [[(e["leg"], e["what"], e.get("code"), e.get("status"), e.get("again")) for e in r["events"]] for r in records]
    return decided, counted, events, waiting, records, setup


def scenario(tmp_path, server):
    """Everything that a router decides about a cloud that fails in each way; and the same of limits."""
    first = asked(server, tmp_path / "first", ASKED, offline="queue")
    limited = asked(server, tmp_path / "limited", ("well",) * 4, offline="edge", limits=Limits(calls_per_minute=2))
    raised = asked(server, tmp_path / "raised", ("well", "busy", "consent", "well"), offline="raise")
    return first, limited, raised


def numbers(found):
    """A replay's, but for its words and for what takes time."""
    kept = found.as_dict()
    for name in ("notes", "examples"):
        del kept[name]
    return kept


@pytest.fixture
def still(monkeypatch):
    """No probe is due while this runs, however slow the machine; what is queued stays."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)
    monkeypatch.setattr(admission, "MOST_S", 1e6)
    monkeypatch.setattr(Delivery, "start", lambda self: None)


def rename(monkeypatch):
    """Every message is the same, and says everything at once."""
    monkeypatch.setattr(EdgerouteError, "__str__", lambda self: WORDS)
    monkeypatch.setattr(Rejection, "text", property(lambda self: WORDS))
    monkeypatch.setattr(explain, "reason", lambda *a: WORDS)
    monkeypatch.setattr(explain, "answer_part", lambda *a: WORDS)


@pytest.mark.slow
def test_no_word_decides(still, tmp_path, monkeypatch):
    """Answers, events, counts, the breaker, what is queued, and what a replay makes of the trace."""
    with CannedServer(server_says) as server:
        plain = scenario(tmp_path / "plain", server)
        with monkeypatch.context() as words:
            rename(words)
            renamed = scenario(tmp_path / "renamed", server)
            for (decided, counted, events, waiting, *_), (again, *rest, records, _) in zip(plain, renamed, strict=True):
                assert again == decided
                assert rest == [counted, events, waiting]
                assert all(WORDS in e["error"] for r in records for e in r["events"] if e["what"] == "failed")
    codes = [e[2] for events in (run[2] for run in plain) for request in events for e in request if e[1] == "failed"]
    assert {"refused", "consent", "redaction", "bad_reply", "timeout", "unreachable", "breaker", "calls_per_minute"} <= {*codes}
    for *_, records, setup in plain:
        path, scrambled = tmp_path / "trace.jsonl", tmp_path / "scrambled.jsonl"
        path.write_text("\n".join(json.dumps({"at": 1e9 + i, **r}) for i, r in enumerate(records)))
        for record in records:
            for event in record["events"]:
                if "error" in event:
                    event["error"] = WORDS
        scrambled.write_text("\n".join(json.dumps({"at": 1e9 + i, **r}) for i, r in enumerate(records)))
        for network in (None, "4g", "flapping"):
            expected = numbers(replay(read(path), setup, network=network))
            with monkeypatch.context() as words:
                rename(words)
                assert numbers(replay(read(scrambled), setup, network=network)) == expected
        assert read(path).recorded.held == sum(e.get("code") in HELD for r in records for e in r["events"] if "again" not in e)


def test_codes_do_not_overlap():
    """A code says by itself whether the endpoint was asked."""
    assert not HELD & {*get_args(ErrorCode)} - {"held"}
