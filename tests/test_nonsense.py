"""Replies that are well-formed and say nothing: the edge's answer stands, and the breaker counts them."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import routes
from both import Tasks, Threads

from edgeroute import BadReply, CallableModel, Function, OpenInference, PlainJson, Router
from edgeroute.cloud.function_backend_and_reply_checks import ReplyReader
from edgeroute.testing import CannedServer, http_reply

pytestmark = pytest.mark.pure

LABELS = ("a", "b", "c")
INF = float("inf")
NAN = float("nan")


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """A router of either kind."""
    return request.param


@pytest.fixture(params=["infer", "infer_many", "stream"])
def call(request):
    """Each kind of call, with one input -> its answer."""

    def call(router, x):
        if request.param == "infer":
            return router.infer(x)
        if request.param == "infer_many":
            return router.infer_many([x])[0]
        with router.stream(x) as stream:
            list(stream)
        return stream.answer

    return call


def edge(_):
    return "a", 0.2


def assert_edge_stands(make, cloud, call=lambda router, x: router.infer(x)):
    """Three times, after which the breaker is open."""
    with make(edge, cloud, threshold=0.8) as router:
        for _ in range(3):
            answer = call(router, np.ones(2, np.float32))
            assert (answer.value, answer.source, answer.degraded) == ("a", "edge", True), answer
            assert routes.failure(answer)
        assert router.stats().legs[1].breaker == "open"


PLAIN = {
    "null": ('{"value": null, "confidence": 0.9}', {}),
    "null, of labels": ('{"value": null}', {"labels": LABELS}),
    "no label": ('{"value": "overloaded", "confidence": 0.9}', {"labels": LABELS}),
    "an index": ('{"value": 1, "confidence": 0.9}', {"labels": LABELS}),
    "a structure": ('{"value": {"error": "overloaded"}, "confidence": 0.9}', {"labels": LABELS}),
    "infinite": ('{"value": "a", "confidence": 1e999}', {}),
    "true": ('{"value": "a", "confidence": true}', {}),
    "all minus infinity": ('{"l": [-1e99, -1e99, -1e99]}', {"logits": "l", "labels": LABELS}),
    "all minus infinity, without labels": ('{"l": [-1e99, -1e99]}', {"logits": "l"}),
    "another rank": ('{"l": [[1], [2], [3]]}', {"logits": "l", "labels": LABELS}),
    "a square": ('{"l": [[1, 2], [3, 4]]}', {"logits": "l"}),
    "truths": ('{"l": [true, false, false]}', {"logits": "l", "labels": LABELS}),
    "texts": ('{"l": ["1", "2", "3"]}', {"logits": "l", "labels": LABELS}),
    "other classes": ('{"l": [1, 2]}', {"logits": "l", "labels": LABELS}),
    "an empty list": ("[]", {}),
    "an empty list in one": ("[[]]", {}),
    "a number": ('{"l": 1}', {"logits": "l", "labels": LABELS}),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_json(make, call, case):
    """Values that are none, and logits that say nothing."""
    body, options = PLAIN[case]
    with CannedServer(http_reply(body.encode())) as server:
        assert_edge_stands(make, PlainJson(server.url, **options), call)


def protocol(shape, data, *, binary, told=None):
    """A server of the Open Inference Protocol that always gives this output, and describes it as `told`."""
    described = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
    if told is not None:
        described["outputs"] = [{"name": "y", "datatype": "FP32", "shape": told}]
    output = {"name": "y", "datatype": "FP32", "shape": shape}
    if binary:
        raw = struct.pack(f"<{len(data)}f", *data)
        head = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": len(raw)}}]}).encode()
        said = http_reply(head + raw, headers=[("Inference-Header-Content-Length", str(len(head)))])
    else:
        finite = [None if math.isnan(x) else max(x, -1e99) for x in data]
        said = http_reply(json.dumps({"outputs": [{**output, "data": finite}]}).encode())
    return lambda request: http_reply(json.dumps(described).encode()) if request.startswith(b"GET") else said


OUTPUTS = {
    "all minus infinity": ([1, 3], [-INF] * 3, {"labels": LABELS}),
    "all minus infinity, without labels": ([1, 3], [-INF] * 3, {}),
    "NaN": ([1, 3], [NAN, 1, 2], {"labels": LABELS}),
    "nothing": ([1, 0], [], {}),
    "no axis of classes": ([1], [1], {"labels": LABELS}),
    "another rank": ([1, 3, 1], [1, 2, 3], {"labels": LABELS}),
    "another rank than the metadata's": ([1, 3, 1], [1, 2, 3], {"told": [-1, 3]}),
    "another size than the metadata's": ([1, 4], [1, 2, 3, 4], {"told": [-1, 3]}),
    "other classes": ([1, 4], [1, 2, 3, 4], {"labels": LABELS}),
    "many axes": ([1] * 40 + [3], [1, 2, 3], {}),
    "no probabilities": ([1, 3], [0.5, -0.5, 1.0], {"labels": LABELS, "kind": "probabilities"}),
    "counts": ([1, 3], [1, 7, 2], {"labels": LABELS, "kind": "probabilities"}),
    "no probability at all": ([1, 3], [0, 0, 0], {"labels": LABELS, "kind": "probabilities"}),
}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("case", OUTPUTS)
def test_open_inference(make, case, binary):
    """In JSON and in binary."""
    shape, data, options = OUTPUTS[case]
    options = dict(options)
    told = options.pop("told", None)
    with CannedServer(protocol(shape, data, binary=binary, told=told)) as server:
        assert_edge_stands(make, OpenInference(server.url, model="m", binary=binary, **options))


RESULTS = {
    "nothing": (None, None),
    "no value": ((None, 0.9), None),
    "NaN": (("a", NAN), None),
    "infinite": (("a", INF), None),
    "no number": (("a", "high"), None),
    "NaN of a token": (("a", [-0.1, NAN]), None),
    "logits of NaN": (np.array([NAN, 1.0]), None),
    "logits of minus infinity": ([-INF, -INF], None),
    "an empty list": ([], None),
    "no label": (("overloaded", 0.9), LABELS),
    "other classes": ([1.0, 2.0], LABELS),
    "another rank": (np.ones((2, 3)), LABELS),
    "integers": (np.array([1, 3, 2], np.uint8), LABELS),
}


@pytest.mark.parametrize("case", RESULTS)
def test_functions(make, call, case):
    """What is returned is looked at as replies are."""
    result, labels = RESULTS[case]
    assert_edge_stands(make, Function(lambda _: result, labels=labels), call)


def test_the_edges_labels_are_the_clouds(make):
    """Where it has none of its own."""
    labelled = CallableModel(lambda _: [0.1, 0.0, 0.0], labels=LABELS)
    for given, value in (({}, "a"), ({"labels": ["d"]}, "d")):
        with make(labelled, Function(lambda _: ("d", 0.9), **given), threshold=0.8) as router:
            assert router.infer(1).value == value


class Odd(Exception):
    """An exception with attributes that mean something else than ours, as those of many libraries do."""

    def __init__(self, **attributes):
        super().__init__("odd")
        self.__dict__.update(attributes)


ODD = [None, [1], {"a": 1}, np.array([1, 2]), "later", lambda: 1]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "name", ["code", "status", "again", "held", "unsent", "stale", "counts", "retry_after_s", "partial", "retriable", "errors"]
)
def test_attributes_of_a_foreign_exception_mean_nothing(make, call, name, value):
    """Whatever they are, the edge's answer stands, and the failures are counted."""

    def cloud(_):
        raise Odd(**{name: value})

    assert_edge_stands(make, cloud, call)
    with make(edge, cloud, threshold=0.8) as router:
        assert "Odd" in call(router, np.ones(2, np.float32)).reason


@pytest.mark.parametrize("code", [["no"], {"no": 1}, 3], ids=str)
def test_a_function_that_exits_with_anything_costs_no_answer(make, code):
    """`sys.exit` takes any object, and the exception has it as its code."""

    def cloud(_):
        raise SystemExit(code)

    with make(edge, cloud, threshold=0.8) as router:
        assert "SystemExit" in router.infer(np.ones(2, np.float32), deadline=30.0).reason


def test_nonsense_is_a_bad_reply():
    """With the code that says so, where there is no edge to stand in."""
    with Router(None, lambda _: None, mode="only_cloud") as router, pytest.raises(BadReply, match="no value") as raised:
        router.infer(1)
    assert raised.value.code == "bad_reply"


@pytest.mark.parametrize(
    ("outputs", "value"),
    [
        ([("a", 0.9)], "a"),
        ([("a", None)], "a"),
        ([("b", [-0.1, -0.2])], "b"),
        ([[-INF, 1.0, -INF]], "b"),
        (np.array([[[1.0, 3.0, 2.0]]], np.float32), "b"),
        ([{"logits": np.array([1.0, 2.0, 9.0]), "box": None}], "c"),
    ],
)
def test_what_is_no_nonsense(outputs, value):
    """A missing confidence, and minus infinity for some classes, are answers."""
    assert ReplyReader(labels=LABELS).read_many(outputs, 1)[0].value == value


def test_a_score_of_ones_own_reads_any_structure():
    """Boxes, of an edge that has names for what is in them."""
    read = ReplyReader(lambda _: 0.7, labels=LABELS)
    assert read.read_many(np.ones((1, 5, 6)), 1)[0].confidence == 0.7
    assert read.read_many([({"boxes": []}, "any")], 1)[0].value == {"boxes": []}
    with pytest.raises(BadReply, match="none of the 3 labels"):
        read.read_many([("d", 0.9)], 1)
