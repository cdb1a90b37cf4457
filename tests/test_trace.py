"""Traces: how each answer came about, as lines of JSON; and what is in none of them."""

import base64
import json
import logging
import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import routes
from both import DOWN, GOOD, LONG, GatedServer, Link, makes, sure, unsure

from edgeroute import Answer, Cache, Egress, Outbox, PlainJson, PolicyError, Secret, Trace
from edgeroute.router.fallbacks_and_late_replies import CORRECTS
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.stores.outbox import decode_input
from edgeroute.system import wall_clock
from edgeroute.testing import CannedServer, FakeCloud, http_reply
from edgeroute.tools.replay.read_and_pack_traces import pack

KEY = "sk-a-very-secret-key-2718281828"


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5)


def lines(path):
    """Every line of the file and of those that are full, each of which is JSON."""
    reading = read(path)
    found = list(reading)
    assert reading.skipped == 0
    return found


def test_an_answer_is_a_line(make, tmp_path):
    """With the facts that it was decided on, the plan, and each step with its time, bytes and dollars."""
    path = tmp_path / "folder" / "trace.jsonl"
    with CannedServer(GOOD) as server:
        cloud = PlainJson(server.url, usd_per_call=0.25, joules_per_call=2.0)
        router = make(unsure, cloud, deadline=LONG, trace=path, egress=Egress(may_leave=["product"]))
        answer = router.infer([1, 2, 3], data_class="product")
        (told,) = lines(path)
        assert abs(told["at"] - wall_clock.now()) < LONG
        told.pop("reading", None)  # of the device's sensors, which may have been read by then
        assert {"at": told["at"]} | json.loads(json.dumps(answer.trace)) == told
        sent = len(server.requests[0].partition(b"\r\n\r\n")[2])
    assert (told["id"], told["mode"], told["deadline_s"], told["data_class"]) == (answer.id, "prefer_edge", LONG, "product")
    assert (told["answered_by"], told["accepted"]) == ("cloud", True)
    assert set(told["facts"]) == {"busy", "edge_p99_s", "no_hedge", "kept", "deferral_rate", "rules"}
    assert [(leg["leg"], leg["side"], leg["threshold"], leg["rule"]) for leg in told["plan"]] == [
        ("edge", "edge", 0.5, None),
        ("cloud", "cloud", None, "may_leave has 'product'"),
    ]
    assert [(event["leg"], event["what"]) for event in told["events"]] == [
        ("edge", "start"), ("edge", "below"), ("cloud", "start"), ("cloud", "accepted"),
    ]  # fmt: skip
    times = [event["at_s"] for event in told["events"]]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= told["latency_s"]
    last = told["events"][-1]
    assert last["sent_bytes"] == sent > 0
    assert last["received_bytes"] == len(GOOD.partition(b"\r\n\r\n")[2])
    assert (last["usd"], last["joules"], last["confidence"]) == (0.25, 2.0, 0.9)
    assert "[1,2,3]" not in path.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_told_once(make, caplog, tmp_path):
    """In one line without a traceback, however many answers there are; none is affected."""
    full = tmp_path / "trace.jsonl"  # a name of its own: each is told once a minute
    full.symlink_to("/dev/full")
    router = make(sure, None, trace=full)
    answers = [router.infer([1, 2, 3]) for _ in range(3)]
    (told,) = caplog.records
    assert (told.getMessage().partition("affected: ")[2], told.exc_info) == (f"{full}: No space left on device", None)
    assert {answer.source for answer in answers} == {"edge"}


def test_one_line_for_every_answer(make, tmp_path):
    """Of the edge, of the cloud, of the cache, degraded, of a batch, refined: under the ids of the answers."""
    path = tmp_path / "trace.jsonl"
    replies = iter([GOOD, GOOD, http_reply(status=400), GOOD])
    with CannedServer(lambda _: next(replies)) as server:
        router = make(lambda x: ("edge", x), PlainJson(server.url), cache=Cache(), trace=str(path))
        answers = [router.infer(x) for x in (0.9, 0.1, 0.1)]
        answers += router.infer_many([0.8, 0.2])
        answers.append(router.infer(0.3))
        answers.append([*router.refine(0.4)][-1])
        told = lines(path)
    assert [(a.source, a.degraded) for a in answers] == [
        ("edge", False), ("cloud", False), ("cache", False), ("edge", False), ("cloud", False), ("edge", True), ("cloud", False),
    ]  # fmt: skip
    assert [t["id"] for t in told] == [a.id for a in answers]
    assert [t["answered_by"] for t in told] == ["edge", "cloud", "cache", "edge", "cloud", "edge", "cloud"]
    failed = told[5]["events"][-1]
    assert (failed["what"], failed["error"]) == ("failed", f"Refused: {server.url} answered 400")


def test_what_is_left_out_of_the_lines(make, tmp_path):
    """Rows of a batch that the cache knew, and what the cloud made of the edge's provisional answer."""
    path = tmp_path / "trace.jsonl"
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), cache=Cache(), trace=path)
        *_, answer = router.refine(1)
        router.infer_many([1])
        told = lines(path)
    assert told[0]["note"] == CORRECTS
    assert answer.trace["note"] == CORRECTS
    assert len(told) == 2


def test_a_trace_says_what_became_of_a_request_that_waits(make, tmp_path):
    """That it was queued, or why not."""
    traces = []
    with CannedServer(DOWN) as server:
        box = Outbox(tmp_path / "outbox.db", max_bytes=600)
        router = make(unsure, PlainJson(server.url, retries=0), offline="queue", outbox=box, trace=traces.append)
        router.infer(1)
        router.infer("x" * 1000)
        router.close()
    assert traces[0]["note"] == routes.WAITING
    assert traces[1]["note"].startswith(f"{routes.NOT_STORED}: ")
    assert [t["accepted"] for t in traces] == [False, False]


def test_a_deadline_that_passed(make, due):
    """The leg that was not there in time is in the trace, with what it had sent."""
    traces = []
    cloud = FakeCloud([("cloud", 0.9)], gate=(gate := threading.Event()))
    make(unsure, cloud, deadline=due(cloud.begun.is_set), trace=traces.append).infer(1)
    gate.set()
    (told,) = traces
    assert told["events"][-1] | {"at_s": 0} == {
        "at_s": 0, "leg": "cloud", "what": "timeout", "sent_bytes": 0, "received_bytes": 0, "usd": 0.0, "joules": 0.0,
    }  # fmt: skip
    assert told["events"][-1]["at_s"] >= LONG


@pytest.mark.parametrize(("sample", "least", "most"), [(0, 0, 0), (0.25, 200, 300), (1, 1000, 1000)])
def test_a_sample(make, sample, least, most):
    """That share of the answers, by chance."""
    random.seed(7)
    traces = []
    router = make(sure, None, trace=Trace(traces.append, sample=sample))
    for _ in range(1000):
        router.infer(1)
    assert least <= len(traces) <= most
    assert all(trace.get("sample", 1) == sample for trace in traces)


def test_an_answer_that_is_not_drawn_costs_no_record(make, monkeypatch):
    made, record = [], Answer.trace
    monkeypatch.setattr(Answer, "trace", property(lambda answer: made.append(answer) or record.fget(answer)))
    router = make(sure, None, trace=Trace(print, sample=0.0))
    router.infer(1)
    router.infer_many([1, 1, 1])
    assert not made


def test_rows_of_a_batch_are_drawn_together(make):
    """What a batch has cost is in each of its records."""
    traces = []
    router = make(sure, None, trace=Trace(traces.append, sample=0.5))
    for _ in range(60):
        router.infer_many([1, 1, 1])
    batches = Counter(trace["id"].partition(".")[0] for trace in traces)
    assert 0 < len(batches) < 60
    assert {*batches.values()} == {3}


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_what_is_no_share(sample):
    """It is refused."""
    with pytest.raises(PolicyError, match="sample= takes a number, 0 to 1, not"):
        Trace(print, sample=sample)


def test_a_file_is_bounded(make, tmp_path):
    """All files together are never larger than `max_bytes * (keep + 1)`, and the last lines are there."""
    path = tmp_path / "trace.jsonl"
    router = make(sure, None, trace=Trace(path, max_bytes=4000, keep=2))
    sizes = []
    for _ in range(100):
        last = router.infer(1)
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert max(sizes) <= 4000 * 3
    names = {file.name for file in tmp_path.iterdir()} - {"trace.jsonl.lock"}  # Windows has that, too
    assert names == {"trace.jsonl", "trace.jsonl.1", "trace.jsonl.2"}
    assert lines(path)[-1]["id"] == last.id


def test_a_file_is_its_owners(make, tmp_path):
    """Nobody else may read it."""
    path = tmp_path / "trace.jsonl"
    make(sure, None, trace=path).infer(1)
    assert path.stat().st_mode & 0o777 == 0o600


INPUTS = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "arrays": {"a": np.ones(2, np.uint8), "b": np.zeros((1, 1))},
    "bytes": b"\x00bytes\xff",
    "json": {"text": "ä", "n": [1, 2.5, None]},
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_only_where_they_are_asked_for(make, tmp_path, kind):
    """Then they are in the form in which the outbox stores them, and come back as they were."""
    x = INPUTS[kind]
    for inputs in (False, True):
        path = tmp_path / f"{inputs}.jsonl"
        router = make(sure, None, trace=Trace(path, inputs=inputs), cache=Cache())
        router.infer(x)
        router.infer(x)
        router.infer_many([x, x], mode="only_edge")
        told = lines(path)
        if not inputs:
            assert not any("input" in line for line in told)
            continue
        assert len(told) >= 3
        for line in told:
            found = decode_input(line["input"]["type"], base64.b64decode(line["input"]["base64"]))
            np.testing.assert_equal(found, x)


def test_an_input_that_cannot_be_told(make):
    """Null is in its place."""
    traces = []
    make(sure, None, trace=Trace(traces.append, inputs=True)).infer(object())
    assert [t["input"] for t in traces] == [None]


def test_an_input_that_the_file_has_is_the_callers(make):
    """It is the one that was passed, and not the one that was redacted for the cloud: the file stays on the device."""
    traces = []
    egress = Egress(redact=lambda *_: "redacted")
    make(unsure, lambda x: x, trace=Trace(traces.append, inputs=True), egress=egress).infer("plain")
    assert decode_input(traces[0]["input"]["type"], base64.b64decode(traces[0]["input"]["base64"])) == "plain"


@pytest.mark.parametrize("error", [RuntimeError("the sink's own"), KeyError(1), OSError("disk")])
def test_a_sink_that_fails(make, caplog, error):
    """It is logged, and costs no answer."""

    def sink(_):
        raise error

    router = make(sure, None, trace=sink)
    assert [router.infer(x).value for x in range(2)] == ["edge", "edge"]
    assert [a.value for a in router.infer_many([1, 2])] == ["edge", "edge"]
    assert caplog.text.count("an instrument failed") == 4


def test_a_file_that_cannot_be_written(make, tmp_path, caplog):
    """The same."""
    path = tmp_path / "file"
    path.write_text("not a folder")
    router = make(sure, None, trace=path / "trace.jsonl")
    assert router.infer(1).value == "edge"
    assert "an instrument failed" in caplog.text


def test_values_that_json_does_not_know(make, tmp_path):
    """NaN is null; the line is JSON all the same."""
    path = tmp_path / "trace.jsonl"
    router = make(lambda _: ("edge", float("nan")), None, trace=path)
    router.infer(1)
    (told,) = lines(path)
    assert told["events"][-1].get("confidence") is None


def test_a_secret_is_nowhere(make, tmp_path, caplog):
    """Not in a trace, the ledger, the outbox, the state or the log, though the server quotes it; it is on the wire alone."""
    caplog.set_level(logging.DEBUG)

    def quoting(request):
        body = json.dumps({"error": f"who is {KEY}?"}).encode()
        return http_reply(body, status=503, headers=[("Content-Type", "application/json")])

    state = tmp_path / "state"
    traces = []
    with CannedServer(quoting) as server, Link("127.0.0.1", server.port) as link:
        cloud = PlainJson(link.url, api_key=Secret(KEY), headers={"X-Key": KEY}, retries=0)
        router = make(
            unsure, cloud, offline="queue", state=state, cache=Cache(disk=state / "cache.db"),
            trace=Trace(state / "trace.jsonl", inputs=True),
        )  # fmt: skip
        answer = router.infer(1)
        assert routes.status(answer) == 503
        traces += [answer.reason, repr(answer), json.dumps(answer.trace), repr(cloud), repr(router.stats())]
        for x in range(5):  # until the breaker opens
            traces.append(router.infer(x).reason)
        link.down()
        traces.append(router.infer(9).reason)
        assert sum(KEY.encode() in request for request in server.requests) >= 3
        for path in sorted(state.rglob("*")):  # the write-ahead logs, too
            assert KEY.encode() not in path.read_bytes(), path
        assert router.engine.queue.outbox.list()
    names = {path.name for path in state.rglob("*")}
    assert {"outbox.db", "egress.jsonl", "trace.jsonl"} <= names
    for path in state.rglob("*"):
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in caplog.text
    assert not any(KEY in text for text in traces)


def test_late_answers_leave_the_line_as_it_was(make, due):
    """What comes after an answer is not in its trace: the listener has the id."""
    traces, told, heard = [], [], threading.Event()
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), deadline=due(lambda: server.requests), trace=traces.append)
        router.on_late(lambda late: (told.append(late), heard.set()))
        router.infer(1)
        server.open()
        assert heard.wait(LONG)
    assert [t["id"] for t in traces] == [late.id for late in told]
    assert len(traces) == 1


def test_packing_deletes_what_a_killed_process_left(tmp_path):
    """It had begun to write a file of Parquet; those of other traces stay."""
    for name in ("trace.jsonl", "other.jsonl"):
        (tmp_path / f"{name}.00000007.parquet.0123456789ab.new").touch()
    pack(tmp_path / "trace.jsonl", 10)
    assert sorted(path.name for path in tmp_path.glob("*.new")) == ["other.jsonl.00000007.parquet.0123456789ab.new"]
