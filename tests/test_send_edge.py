"""send_edge: the edge's answer goes along with an escalation, and nowhere else; certificates are about what is sent."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import queue
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import routes
from both import CALLS, LONG, Link, Tasks, Threads, ask, flat, header, running, unsure

import edgeroute
from edgeroute import (
    Audit,
    BadInput,
    Cache,
    CallableModel,
    Egress,
    Function,
    Held,
    InputScore,
    MayNotLeave,
    OpenInference,
    OpenInferenceGrpc,
    Outbox,
    PlainJson,
    PolicyError,
    Prediction,
    Router,
    Trial,
    Variants,
)
from edgeroute.cloud.encoding_and_edge_answers import MOST_OUTPUTS, MOST_VALUE, PARAMETER, answer_fields
from edgeroute.core.plan import plan
from edgeroute.router.input_views_and_edge_answers import EdgeAnswers
from edgeroute.system.late_imports_and_plugins import package_folder
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.server.serve import app
from edgeroute.types import Escalated, TensorSpec

BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}')


def halves(x):
    """The edge: its confidence is half of the first number."""
    return f"e{int(x[0])}", float(x[0]) / 2


class Heard:
    """A cloud `f(x, edge)`, which remembers what it was told of each input."""

    def __init__(self, answer=lambda x, edge: "cloud"):
        self.told, self.answer = [], answer

    def __call__(self, x, edge):
        """The answer."""
        self.told.append((float(x[0]), edge))
        return self.answer(x, edge)

    def cloud(self, **options):
        """It as a cloud that is sent the edge's answers."""
        return Function(self, send_edge=True, version="1", **options)


def x(number):
    return np.array([number], np.float32)


def edge_of(request):
    """What a JSON request to `PlainJson` said of the edge."""
    return json.loads(request.partition(b"\r\n\r\n")[2])["edge"]


def until(condition):
    end = threading.Event()
    for _ in range(int(LONG * 1000)):
        if condition():
            return
        end.wait(0.001)
    raise AssertionError("it never came about")


# --------------------------------------------------------------------------------------------------------- what goes along
def hint(x, edge):
    """A served function: the confidence that it was told, and whether it was told one of this input."""
    known = edge is not None and edge["value"] == f"e{int(x[0])}"
    return np.array([-1.0 if edge is None else edge["confidence"], known], np.float32)


@pytest.fixture(scope="module")
def server():
    """`edgeroute serve`'s application with a model that takes the edge's answers, and one that knows nothing of them."""
    specs = {"inputs": [TensorSpec("x", "float32", (-1, 1))], "outputs": [TensorSpec("y", "float32", (-1, 2))]}
    models = [
        CallableModel(hint, name="takes", takes_edge=True, **specs),
        CallableModel(lambda x: np.array([x[0], 0], np.float32), name="ignores", **specs),
    ]
    with running(app(models)) as client:
        yield client


def url_of(client, model):
    return f"{str(client.base_url).rstrip('/')}/v2/models/{model}"


@BOTH
@pytest.mark.parametrize("binary", [True, False])
def test_a_served_function_is_given_the_edges_answers(kind, binary, server):
    """One by one and as a batch, each row its own; a model that takes none is not disturbed."""
    cloud = OpenInference(url_of(server, "takes"), kind="value", binary=binary, send_edge=True)
    with kind(halves, cloud, threshold=0.99) as router:
        assert np.ravel(router.infer(x(1)).outputs).tolist() == [0.5, 1]
        rows = router.infer_many([x(n) for n in (0, 1, 1.5, 1.99)])
        assert [row.source for row in rows] == ["cloud", "cloud", "cloud", "edge"]
        assert [np.ravel(row.outputs).tolist() for row in rows[:3]] == [[0, 1], [0.5, 1], [0.75, 1]]
        alone = router.infer(x(1), mode="only_cloud")
        assert np.ravel(alone.outputs).tolist() == [-1, 0]
    ignores = OpenInference(url_of(server, "ignores"), kind="value", binary=binary, send_edge=True)
    with kind(halves, ignores, threshold=0.99) as router:
        assert np.ravel(router.infer(x(1)).outputs).tolist() == [1, 0]


def test_requests_of_the_server_are_run_together_with_their_own_answers(server):
    """Some have an answer along and some have none, in one run of the model or in several."""
    tensor = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}

    def said(edges):
        more = {} if edges is None else {"parameters": {PARAMETER: json.dumps(edges)}}
        reply = server.post("/v2/models/takes/infer", json={"inputs": [tensor], **more})
        assert reply.status_code == 200, reply.text
        return reply.json()["outputs"][0]["data"]

    answers = [None, {"value": "e2", "confidence": 0.25}]
    found = {}
    workers = [threading.Thread(target=lambda i=i: found.update({i: said(answers if i % 2 else None)})) for i in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LONG)
    assert found == {i: [-1, 0, 0.25, 1] if i % 2 else [-1, 0, -1, 0] for i in range(20)}


@pytest.mark.parametrize("said", ["[", "{}", "[]", "[1, 2]", "[null]", "[null, null, null]", 5, True, ["x"], None, "[" * 100_000])
def test_what_is_no_list_of_answers_is_the_clients_error(said, server):
    """The server says so with 400; null is no parameter."""
    tensor = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}
    body = {"inputs": [tensor], "parameters": {PARAMETER: said}}
    reply = server.post("/v2/models/takes/infer", json=body)
    assert reply.status_code == (200 if said is None else 400), reply.text
    assert server.post("/v2/models/ignores/infer", json=body).status_code == 200


@BOTH
def test_any_api_takes_it_where_its_body_has_it(kind):
    """By itself beside the input, in a template, by a function, and as a field of a form; without an answer null, or empty."""
    ways = [
        ({}, lambda body: json.loads(body)["edge"]),
        ({"body": {"x": "{input}", "hint": ["{edge.value}", "{edge.confidence}", "{edge.outputs}"]}},
         lambda body: json.loads(body)["hint"]),
        ({"body": {"x": "{input}", "prompt": "Is it {edge.value}?"}}, lambda body: json.loads(body)["prompt"]),
        ({"encode": lambda x, edge: {"x": x, "hint": edge and edge["value"]}}, lambda body: json.loads(body)["hint"]),
        ({"body": {"x": "{input|json}", "edge": "{edge|json}", "value": "{edge.value}"}, "body_type": "form"},
         lambda body: body.rpartition(b"&edge=")[2].decode()),
    ]  # fmt: skip
    whole = {"value": "e1", "confidence": 0.5}
    found = [
        (whole, None), (["e1", 0.5, None], [None] * 3), ("Is it e1?", "Is it ?"), ("e1", None),
        ("%7B%22value%22%3A%22e1%22%2C%22confidence%22%3A0.5%7D&value=e1", "null&value="),
    ]  # fmt: skip
    for (options, read), (with_it, without) in zip(ways, found, strict=True):
        with (
            CannedServer(GOOD) as server,
            kind(halves, PlainJson(server.url, send_edge=True, **options), threshold=0.9) as router,
        ):
            assert router.infer(x(1)).source == "cloud"
            router.infer(x(1), mode="only_cloud")
            assert [read(request.partition(b"\r\n\r\n")[2]) for request in server.requests] == [with_it, without]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"send_edge": True, "body": {"x": "{input}"}}, "answer is not in it"),
        ({"send_edge": True, "body_type": "form"}, "answer is not in it"),
        ({"body": {"x": "{input}", "edge": "{edge}"}}, "with send_edge alone"),
        ({"send_edge": True, "body": {"edge": "{edge}"}}, "the input is missing"),
        ({"send_edge": True, "body": {"x": "{input}", "edge": "{edge.valeu}"}}, "has no .valeu.: did you mean .value"),
        ({"send_edge": 1}, "send_edge is True or False"),
    ],
)
def test_a_body_and_the_setting_agree(options, text):
    """An answer that would be sent nowhere, or a place for one that never comes, is a mistake of the policy."""
    with pytest.raises(PolicyError, match=text):
        PlainJson("http://127.0.0.1:9", **options)


def test_grpc_sends_it_as_a_parameter():
    """In the map of the request's parameters, as a string."""
    pytest.importorskip("grpc")
    cloud = OpenInferenceGrpc("http://127.0.0.1:9/v2/models/m", send_edge=True)
    cloud.recall({"inputs": [["x", "float32", [-1, 1], "FP32"]]})
    answers = [{"value": "é", "confidence": 0.5}, None]
    body = cloud.encode([Escalated(x(n), edge) for n, edge in enumerate(answers)]).body
    stubs = pytest.importorskip("tritonclient.grpc.service_pb2")
    said = stubs.ModelInferRequest.FromString(body)
    assert json.loads(said.parameters[PARAMETER].string_param) == answers
    assert PARAMETER.encode() not in cloud.encode([x(1)]).body


class Slow:
    """A value of the application's own."""

    def __str__(self):
        raise AssertionError("nothing of the application is called here")


def nested(deep):
    """Lists in lists."""
    found = []
    for _ in range(deep):
        found = [found]
    return found


def test_what_is_told_of_an_answer():
    """JSON types alone, of bounded size, without what JSON has no number for."""
    found = answer_fields(Prediction(np.int64(3), np.float32(0.25), np.array([0.1, 0.7], np.float32)))
    assert found == {"value": 3, "confidence": 0.25, "outputs": [0.1, 0.7]}
    assert answer_fields(Prediction("a", math.nan, ("a", math.nan))) == {"value": "a", "confidence": None}
    assert answer_fields(Prediction("a", None, np.array([[1, 2]]))) == {"value": "a", "confidence": None, "outputs": [[1, 2]]}
    assert answer_fields(Prediction("a", 1.0, np.array([np.inf, 1])))["outputs"] == [None, 1]
    for outputs in (np.zeros(MOST_OUTPUTS + 1), np.zeros(0), np.array(["x"]), {"choices": []}):
        assert "outputs" not in answer_fields(Prediction("a", 1.0, outputs))
    assert answer_fields(Prediction("a" * MOST_VALUE, 1.0, None))["value"] is None
    assert answer_fields(Prediction(np.zeros((100, 100)), 1.0, None))["value"] is None
    for value in (np.zeros((2000, 2000), np.uint8), ["a" * 9] * MOST_VALUE, 1 << 15_000, Slow(), [Slow()], nested(500)):
        assert answer_fields(Prediction(value, 1.0, None))["value"] is None
    assert answer_fields(Prediction({"a": [1.5, {"b": np.float32(2)}], "c": ("d",)}, 1.0, None))["value"] == {
        "a": [1.5, {"b": 2.0}],
        "c": ["d"],
    }
    json.dumps(
        [answer_fields(Prediction(value, 0.5, value)) for value in (b"x", object(), {1: 2}, [np.float32(1)])], allow_nan=False
    )


def test_the_exports_read_what_is_sent(monkeypatch):
    """The program for Ray ignores the parameter; Triton takes any."""
    monkeypatch.syspath_prepend(str(Path(edgeroute.__file__).parent / "tools" / "export" / "programs"))
    for name in ("by_card", "oip_messages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    oip = importlib.import_module("oip_messages")
    for binary in (True, False):
        cloud = OpenInference("http://127.0.0.1:9/v2/models/m", send_edge=True, binary=binary)
        cloud.recall({"inputs": [["x", "float32", [-1, 1]]], "binary": binary})
        call = cloud.encode([Escalated(x(1), {"value": "a", "confidence": 0.5})])
        length = {key.lower(): value for key, value in call.headers}.get(oip.LENGTH)
        spec = {"name": "x", "dtype": "float32", "shape": [1], "picture": None}
        assert oip.read(call.body, length, [spec], [{"name": "y"}]).feed["x"].tolist() == [[1]]
    for name in ("by_card", "oip_messages"):
        monkeypatch.delitem(sys.modules, name, raising=False)


# ---------------------------------------------------------------------------------------- what is certified is what is served
@BOTH
def test_calibrate_and_evaluate_ask_as_requests_do(kind):
    """The edge runs first, and the cloud is told its answer to the same input; one by one and in batches."""
    heard = Heard(lambda x, edge: edge["value"])  # a cloud that repeats what it is told
    with kind(halves, heard.cloud(), threshold=0.4) as router:
        inputs = [x(n / 200) for n in range(400)]
        router.calibrate(inputs, max_loss=0.3)
        assert len(heard.told) == 400
        assert all(edge == {"value": f"e{int(n)}", "confidence": n / 2} for n, edge in heard.told)
        heard.told.clear()
        router.evaluate(inputs[:50])
        assert all(edge is not None for _, edge in heard.told)
    with CannedServer(GOOD) as server, kind(halves, PlainJson(server.url, send_edge=True), threshold=0.4) as router:
        router.evaluate(inputs[:20], batch=8)
        assert sorted(edge_of(r)["confidence"] for r in server.requests) == pytest.approx([n / 400 for n in range(20)])


def test_another_score_is_the_one_that_is_sent():
    """`calibrate(score=)` is bound to that score, and so the confidences are by it; a score cannot be fitted at the same time."""
    heard, logits = Heard(lambda x, edge: 0), lambda x: np.array([x[0], 0, 0], np.float32)
    with Router(logits, heard.cloud(), threshold=0.99) as router:
        inputs = [x(n / 50) for n in range(300)]
        router.infer(inputs[10])
        router.calibrate(inputs, max_loss=0.9, score="margin")
        served, calibrated = heard.told[0][1], heard.told[11][1]
        assert served["outputs"] == calibrated["outputs"]
        assert served["confidence"] > calibrated["confidence"]
        for score in ("learned", "auto"):
            with pytest.raises(PolicyError, match=r"score=.*send_edge"):
                router.calibrate(inputs, max_loss=0.9, score=score)


@BOTH
def test_audits_tell_what_the_edge_has_answered(kind, tmp_path):
    """The call that compares an accepted answer is the one that an escalation would have been."""
    heard = Heard()
    with kind(halves, heard.cloud(), threshold=0.5, audit=Audit(share=1), state=tmp_path) as router:
        router.infer(x(1.5))
        router.infer_many([x(1.6), x(1.8)])
        until(lambda: len(heard.told) == 3 and not router.engine.auditor.jobs.busy)
        assert heard.told == [(n, answer_fields(Prediction(f"e{int(n)}", n / 2, None))) for n, _ in heard.told]
        assert {round(n, 1) for n, _ in heard.told} == {1.5, 1.6, 1.8}


def test_an_answer_without_the_edges_is_not_what_audits_compare(tmp_path):
    """Where a hedge was faster than the edge, its caller has that answer; the audit asks again, with the edge's."""
    gate, shown = threading.Event(), threading.Event()

    def slow(x):
        gate.wait(LONG)
        return halves(x)

    def answer(x, edge):
        if edge is None:
            gate.set()
            shown.wait(LONG)
        return "told" if edge else "untold"

    heard = Heard(answer)
    options = {"threshold": 0.9, "hedge_after": 0.001, "audit": Audit(share=1), "state": tmp_path}
    with Threads(slow, heard.cloud(), **options) as router:
        answers = []
        for one in router.refine(x(1)):
            answers.append(one.value)
            shown.set()
        assert answers == ["e1", "untold"]
        until(lambda: len(heard.told) == 2 and not router.engine.auditor.jobs.busy)
    assert heard.told == [(1, None), (1, {"value": "e1", "confidence": 0.5})]
    (line,) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert (line["audited"], line["edge_confidence"]) == ("deferred", 0.5)


def test_certificates_and_cached_answers_are_bound_to_it():
    """For endpoints and for functions; without it all is as it was."""

    def prints(cloud):
        with Router(halves, cloud, threshold=0.5) as router:
            return router.fingerprints()["codec"], router.engine.snapshot.clouds[0].identity(str)

    url = "http://127.0.0.1:9/v2/models/m"
    for make in (lambda **o: OpenInference(url, **o), lambda **o: PlainJson(url, **o), lambda **o: Function(unsure, **o)):
        plain, tells = prints(make()), prints(make(send_edge=True))
        assert (plain[0] != tells[0], tells[0].endswith("+send_edge")) == (True, True)
        assert plain[1] != tells[1]
        assert "send_edge" not in repr(plain)


# ------------------------------------------------------------------------------------------------------------- where it may go
@BOTH
def test_it_leaves_only_where_the_input_does(kind, tmp_path):
    """Not where a class of data stays, nor without consent; and where it goes, the ledger counts its bytes."""
    egress = Egress(never_leave=["medical"], may_leave=["open"], consent=lambda where, name: name != "asked")
    with CannedServer(GOOD) as server:
        cloud = PlainJson(server.url, send_edge=True)
        with kind(halves, cloud, threshold=0.9, egress=egress, state=tmp_path) as router:
            for call in CALLS:
                assert ask(router, call, x(1), data_class="medical").source == "edge"
                assert ask(router, call, x(1), mode="only_edge").source == "edge"
            with pytest.raises(MayNotLeave):
                router.infer(x(1), mode="only_cloud", data_class="medical")
            assert server.requests == []
            assert router.infer(x(1), data_class="open").source == "cloud"
        (request,) = server.requests
        body = request.partition(b"\r\n\r\n")[2]
        assert edge_of(request) == {"value": "e1", "confidence": 0.5}
        (line,) = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
        assert line["bytes"] == len(body)
    with CannedServer(GOOD) as server:
        egress = Egress(consent=lambda *_: False)
        with kind(halves, PlainJson(server.url, send_edge=True), threshold=0.9, egress=egress) as router:
            assert router.infer(x(1)).source == "edge"
            with pytest.raises(Held):
                router.infer(x(1), mode="only_cloud")
        assert server.requests == []


@pytest.mark.parametrize(
    ("edge", "policy", "text"),
    [
        (None, {}, "there is no edge="),
        (halves, {"mode": "prefer_cloud"}, "mode='prefer_cloud'"),
        (halves, {"mode": "shadow"}, "mode='shadow'"),
        (halves, {"hedge_after": 0}, "hedge_after=0"),
        (halves, {"egress": Egress(redact=lambda x, _: x)}, "redact="),
        (halves, {"trial": Trial(edge=halves, shown=False)}, "a hidden edge on trial"),
        (halves, {"score": InputScore(lambda x: 0.5)}, "score="),
        ([halves, unsure], {"threshold": [0.5, 0.5]}, "there are 2"),
    ],
)
@BOTH
def test_settings_that_leave_nothing_to_send(kind, edge, policy, text):
    """They are refused as the router is made, by a message that names both."""
    options = {"threshold": 0.5, **policy} if edge is not None else policy
    for cloud in (PlainJson("http://127.0.0.1:9", send_edge=True), Function(lambda x, edge: "a", send_edge=True)):
        with pytest.raises(PolicyError) as error, contextlib.closing(kind(edge, cloud, **options)):
            pass
        assert "send_edge" in str(error.value)
        assert text in str(error.value)


@BOTH
def test_calls_before_there_is_an_answer_go_without(kind):
    """By the call's mode, and where the edge has failed; the second cloud has what the first one had."""

    def broken(x):
        raise OSError("no camera")

    heard, other = Heard(), Heard()
    for edge, options in ((halves, {"mode": "only_cloud"}), (broken, {})):
        with kind(edge, heard.cloud(), threshold=0.9) as router:
            assert router.infer(x(1), **options).source == "cloud"
    assert heard.told == [(1, None)] * 2

    def away(x, edge):
        raise OSError("away")

    first = Heard(away)
    clouds = [first.cloud(name="first"), other.cloud(name="second"), Function(unsure, name="third")]
    with kind(halves, clouds, threshold=0.9) as router:
        assert router.infer(x(1)).leg == "second"
    assert first.told == other.told == [(1, {"value": "e1", "confidence": 0.5})]


@BOTH
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("deadline", [None, LONG])
def test_every_way_of_asking_sends_it(kind, call, deadline):
    """With a deadline, whose legs run in threads, and without."""
    with CannedServer(GOOD) as server, kind(halves, PlainJson(server.url, send_edge=True), threshold=0.9) as router:
        assert ask(router, call, x(1), deadline=deadline).source == "cloud"
        assert [edge_of(request) for request in server.requests] == [{"value": "e1", "confidence": 0.5}]


@pytest.mark.parametrize("call", CALLS)
def test_what_is_awaited_sends_it_too(call, tmp_path):
    """An edge and a cloud that are coroutine functions; their audits as well."""
    said = []

    async def edge(x):
        return halves(x)

    async def cloud(x, edge):
        said.append((float(x[0]), edge and edge["value"]))
        return "cloud"

    options = {"threshold": 0.9, "audit": Audit(share=1), "state": tmp_path}
    with Tasks(edge, Function(cloud, send_edge=True), **options) as router:
        assert ask(router, call, x(1)).source == "cloud"
        assert said == [(1, "e1")]
        assert ask(router, call, x(1.9)).source == "edge"
        until(lambda: len(said) == 2 and not router.engine.auditor.jobs.busy)
    assert said[1] == (pytest.approx(1.9), "e1")


@BOTH
def test_what_the_caller_makes_of_its_answer_is_not_sent(kind):
    """It has the provisional answer while the cloud is asked, and may write to it."""
    told, shown = Heard(), threading.Event()

    def consent(*_):
        assert shown.wait(LONG)
        return True

    with kind(lambda _: (["edge"], 0.1), told.cloud(), threshold=0.5, egress=Egress(consent=consent)) as router:
        for answer in router.refine(x(1)):
            if not answer.final:
                answer.value.append("of the caller")
                shown.set()
    assert [edge for _, edge in told.told] == [{"value": ["edge"], "confidence": 0.1}]


@BOTH
def test_pieces_of_a_cloud_that_is_told(kind):
    """A generator function is given the edge's answer as any other is."""

    def speaks(x, edge):
        yield from ("said ", edge["value"])

    with kind(halves, Function(speaks, send_edge=True), threshold=0.9) as router, router.stream(x(1)) as stream:
        assert list(stream) == ["said ", "e1"]


# --------------------------------------------------------------------------------------- retries, the outbox, the cache
@BOTH
def test_retries_send_the_same(kind):
    """The same bytes under the same key."""
    replies = [http_reply(b"", status=503), http_reply(b"", status=503), GOOD]
    with CannedServer(lambda _: replies.pop(0)) as server:
        with kind(halves, PlainJson(server.url, send_edge=True, retries=3), threshold=0.9) as router:
            assert router.infer(x(1)).source == "cloud"
        assert len({request.partition(b"\r\n\r\n")[2] for request in server.requests}) == 1
        assert len({header(request, "Idempotency-Key") for request in server.requests}) == 1
        assert len(server.requests) == 3


@BOTH
def test_stored_calls_keep_theirs(kind, tmp_path):
    """What waits in the outbox goes out as it was sent before: the same bytes, and the edge's answer of then."""
    answers, replies = queue.Queue(), [http_reply(b"", status=503)]
    with CannedServer(lambda _: replies[0]) as server, Link("127.0.0.1", server.port) as relay:
        options = {"threshold": 0.9, "offline": "queue", "outbox": Outbox(tmp_path / "outbox", spread_s=0)}
        cloud = PlainJson(relay.url, send_edge=True, retries=0)
        with kind(halves, cloud, **options) as router:
            assert routes.queued(router.infer(x(1))) == routes.WAITING
            relay.down()
        replies[0] = GOOD
        with Router(lambda _: ("another", 0.0), PlainJson(relay.url, send_edge=True, retries=0), **flat(**options)) as router:
            router.on_late(answers.put)
            relay.up(router)
            answers.get(timeout=LONG)
        sent, again = server.requests[0], server.requests[-1]
        assert edge_of(sent) == {"value": "e1", "confidence": 0.5}
        assert sent.partition(b"\r\n\r\n")[2] == again.partition(b"\r\n\r\n")[2]
        assert header(sent, "Idempotency-Key") == header(again, "Idempotency-Key")


@BOTH
def test_stored_inputs_keep_theirs(kind, tmp_path):
    """A function has no encoded call: the input is stored, and the edge's answer beside it. A batch has one for each row."""
    answers = queue.Queue()

    def fails(x, edge):
        raise OSError("away")

    away = Heard(fails)
    options = {"threshold": 0.9, "offline": "queue", "outbox": Outbox(tmp_path / "outbox", spread_s=0)}
    with kind(lambda x: (f"é{int(x[0])}", 0.1), away.cloud(), **options) as router:
        waiting = router.infer_many([x(1), x(2)])
        assert all(routes.queued(answer) == routes.WAITING for answer in waiting)
    heard = Heard()
    away.answer = heard.answer
    away.told.clear()
    with kind(unsure, away.cloud(), **options) as router:
        router.on_late(answers.put)
        for _ in waiting:
            answers.get(timeout=LONG)
    assert {(n, edge["value"]) for n, edge in away.told} == {(1, "é1"), (2, "é2")}


def test_a_cached_answer_is_of_the_same_edge():
    """Another edge model, another variant or none: another key."""
    seen = set()
    for edge in (halves, lambda x: ("b", 0.1)):
        heard = Heard()
        with Router(edge, heard.cloud(), threshold=0.9, cache=Cache()) as router:
            assert [router.infer(x(1)).source for _ in range(2)] == ["cloud", "cache"]
            assert router.infer(x(1), mode="only_cloud").source == "cloud"
            assert [edge is None for _, edge in heard.told] == [False, True]
            seen.add(router.engine.snapshot.prefixes.of(router.engine.request(x(1), None, None, None).plan))
    assert len(seen) == 2
    with Router(Variants(small=halves, large=unsure), Heard().cloud(), threshold=0.9, cache=Cache()) as router:
        snapshot, made = router.engine.snapshot, router.engine.request(x(1), None, None, None).plan
        other = made._replace(legs=(made.legs[0]._replace(name="edge large"), *made.legs[1:]))
        assert isinstance(plan(snapshot.policy, snapshot.targets, made.facts), type(made))
        assert snapshot.prefixes.of(made) != snapshot.prefixes.of(other)


@BOTH
def test_an_answer_without_the_edges_is_not_cached(kind):
    """The next equal request may have one to send. Nor is it shared with those that wait for it."""
    fails = [True, False]

    def edge(x):
        if fails and fails.pop(0):
            raise OSError("no camera")
        return halves(x)

    heard = Heard()
    with kind(edge, heard.cloud(), threshold=0.9, cache=Cache()) as router:
        answers = [router.infer(x(1)) for _ in range(3)]
    assert [answer.source for answer in answers] == ["cloud", "cloud", "cache"]
    assert [answer.edge_sent for answer in answers] == [False, True, None]
    assert [edge is None for _, edge in heard.told] == [True, False]
    events = [[event.get("edge") for event in answer.trace["events"] if event["leg"] == "cloud"] for answer in answers[:2]]
    assert [one[-1] for one in events] == [False, True]


def test_answers_are_of_their_rows():
    """A batch's later leg is started for some of its rows alone."""
    answers = EdgeAnswers(["a", "b", "c"])
    answers.note((0, 2), [Prediction("x", 0.1, None), ValueError("its own")])
    answers.note(None, [ValueError(), Prediction("y", 0.2, None), ValueError()])
    found = answers.attach(1, (2, 0), ["C", "A"])
    assert [(one.x, one.edge and one.edge["value"]) for one in found] == [("C", None), ("A", "x")]
    answers.note((2,), [Prediction("z", 0.3, None)])
    assert answers.to_store("c", 1, asked=True) is None
    assert answers.to_store("c", 1, asked=False)["value"] == "z"
    assert answers.to_store("c", 2, asked=True)["value"] == "z"
    assert answers.to_store("b", 1, asked=True)["value"] == "y"
    assert [answers.all_have_answers(leg) for leg in (1, 2)] == [False, None]
    answers.attach(2, (0, 1), ["A", "B"])
    assert answers.all_have_answers(2)


# ------------------------------------------------------------------------------------------------------------- settings
def test_a_policy_sets_it(tmp_path):
    """For the Open Inference Protocol and for any API, whose body may have it."""
    path, edge = tmp_path / "policy.toml", package_folder("models", "fashion", has="edge.int8.onnx") / "edge.int8.onnx"
    for cloud, good in (
        ('url = "http://127.0.0.1:9/v2/models/m"\nsend_edge = true', True),
        ('url = "http://127.0.0.1:9"\nprotocol = "json"\nsend_edge = true', True),
        ('url = "http://127.0.0.1:9"\nprotocol = "json"\nsend_edge = true\nbody = { x = "{input}", e = "{edge.value}" }', True),
        ('url = "http://127.0.0.1:9"\nprotocol = "json"\nbody = { x = "{input}", e = "{edge.value}" }', False),
        ('url = "http://127.0.0.1:9"\nprotocol = "json"\nsend_edge = "yes"', False),
    ):
        path.write_text(f'threshold = 0.5\n[edge]\npath = "{edge}"\n[cloud]\n{cloud}\n')
        if not good:
            with pytest.raises(PolicyError):
                Router.from_policy(path)
            continue
        with Router.from_policy(path) as router:
            assert router.engine.snapshot.sends_edge


def test_a_function_that_takes_answers():
    """On a device it is called without; a coroutine or a generator is refused."""
    with Router(CallableModel(lambda x, edge: ("none" if edge is None else "some", 0.9), takes_edge=True)) as router:
        assert router.infer(x(1)).value == "none"

    async def later(x, edge):
        return x

    with pytest.raises(PolicyError, match="takes_edge"):
        CallableModel(later, takes_edge=True)
    with pytest.raises(BadInput):
        importlib.import_module("edgeroute.tools.server.oip_requests_media_routes").edge_answers("[", 1)
