"""The protocols, driven by hand: calls come out of a talk, replies are sent into it. No sockets."""

import contextlib
import json
import math
import traceback
from concurrent.futures import Future
from time import monotonic

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from tenacity import RetryCallState, Retrying

from edgeroute import BadInput, BadReply, OpenInference, PlainJson, PolicyError, Refused, Router, Secret, TimedOut, Unreachable
from edgeroute.cloud.endpoint import check_status, loads, looks_like
from edgeroute.cloud.endpoint_client import FIRST_S, MOST_S, HttpClient, wait_s
from edgeroute.cloud.oip_tensors import DTYPES, NAMES
from edgeroute.cloud.openinference import LENGTH
from edgeroute.http.messages_addresses_and_secrets import Address, Reply, bare, retry_after_s
from edgeroute.system import json_codec_and_short_repr
from edgeroute.testing import CannedServer, FakeModel, http_reply
from edgeroute.types import TensorSpec

CANARY = "sk-canary-0123456789"
URL = "http://cloud.test/v2/models/m"
LATER = 1e12
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

tensors = st.sampled_from(sorted(DTYPES.values())).flatmap(
    lambda dtype: nps.arrays(
        dtype,
        nps.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4),
        elements=nps.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
    )
)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def run(talk, *replies):
    """(the talk's calls, its outputs), where these replies come in turn."""
    calls, reply = [], None
    replies = iter(replies)
    try:
        while True:
            calls.append(talk.send(reply))
            reply = next(replies, None)
            assert reply is not None, "it asks on, and there is no further reply"
    except StopIteration as end:
        return calls, end.value


def endpoint(*inputs, binary=False, outputs=None, **settings_):
    """An endpoint that knows the model's metadata from an earlier run."""
    made = OpenInference(URL, binary=binary, **settings_)
    made.recall({"inputs": inputs or [("x", "float32", (-1, 2))], "outputs": outputs or {}, "binary": None})
    return made


def said(data, status=200, **headers):
    return Reply(status, headers, data if isinstance(data, bytes) else json.dumps(data).encode())


def decoded(call):
    """The tensors in a request, by a decoder that shares nothing with the encoder."""
    headers = dict(call.headers)
    if headers["Content-Type"] == "application/json":
        head, rest = call.body, b""
    else:
        assert headers["Content-Type"] == "application/octet-stream"
        cut = int(headers["Inference-Header-Content-Length"])
        head, rest = call.body[:cut], call.body[cut:]
    found = {}
    for tensor in json.loads(head)["inputs"]:
        dtype, shape = DTYPES[tensor["datatype"]], tensor["shape"]
        if "data" in tensor:
            array = np.array(tensor["data"], dtype)
        else:
            size = tensor["parameters"]["binary_data_size"]
            array, rest = np.frombuffer(rest[:size], np.dtype(dtype).newbyteorder("<")), rest[size:]
        found[tensor["name"]] = array.reshape(shape)
    assert not rest, "bytes that belong to no tensor"
    return found


def answered(*outputs, binary):
    """A reply with these outputs, (name, array)."""
    described, parts = [], []
    for name, array in outputs:
        output = {"name": name, "shape": array.shape, "datatype": NAMES[array.dtype.name]}
        if binary:
            parts.append(array.tobytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = array.ravel().tolist()
        described.append(output)
    head = json.dumps({"model_name": "m", "outputs": described}).encode()
    return Reply(200, {LENGTH.lower(): str(len(head))} if binary else {}, head + b"".join(parts))


METADATA = said({"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []})
LOGITS = np.array([[1.5, -2.5]], np.float32)
X = np.array([1, 2], np.float32)


# OpenInference: what is sent, and what is read


@pytest.mark.parametrize("binary", [True, False])
@given(array=tensors)
@unhurried
def test_a_tensor_survives_the_way_there_and_back(binary, array):
    """Of any dtype and shape, in JSON and in binary, bit for bit."""
    made = endpoint(TensorSpec("x", array.dtype.name, (-1, *array.shape[1:])), binary=binary)
    calls, out = run(made.talk(list(array)), answered(("y", array), binary=binary))
    (there,) = decoded(calls[0]).values()
    for copy in (there, out):
        assert copy.dtype == array.dtype
        assert copy.shape == array.shape
        assert copy.tobytes() == array.tobytes() or (copy == array).all()  # JSON has one zero


@pytest.mark.parametrize("binary", [True, False])
def test_several_inputs_are_told_apart_by_name(binary):
    """Each input is a mapping; the rows of one name become one tensor."""
    made = endpoint(TensorSpec("a", "int64", (-1, 1)), TensorSpec("b", "uint8", (-1,)), binary=binary)
    rows = [{"a": np.array([i]), "b": np.uint8(i + 1)} for i in range(3)]
    sent = decoded(next(made.talk(rows)))
    assert sent["a"].tolist() == [[0], [1], [2]]
    assert sent["b"].tolist() == [1, 2, 3]
    with pytest.raises(BadInput, match="needs an input 'b'"):
        next(made.talk([{"a": np.array([1])}]))


@pytest.mark.parametrize("binary", [True, False])
def test_the_named_output_is_read_and_asked_for(binary):
    """Wherever it is among the outputs."""
    made = endpoint(binary=binary, output="z")
    reply = answered(("y", LOGITS), ("z", LOGITS * 2), binary=binary)
    calls, out = run(made.talk([X]), reply)
    assert out.tolist() == [[3.0, -5.0]]
    assert [o["name"] for o in json.loads(calls[0].body[: json_length(calls[0])])["outputs"]] == ["z"]


def json_length(call):
    return int(dict(call.headers).get(LENGTH, len(call.body)))


def test_an_input_that_does_not_fit_names_the_endpoint_and_what_to_do():
    """The cloud's model may want another shape than the edge's."""
    with pytest.raises(BadInput, match=r"cloud\.test.*\[2\] float32.*card="):
        next(endpoint().talk([np.zeros(3, np.float32)]))


def test_null_in_json_is_not_a_number():
    """JSON has no NaN: some servers write null."""
    output = {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [None, 1.0]}
    with pytest.raises(BadReply, match="NaN"):
        run(endpoint().talk([X]), said({"outputs": [output]}))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("binary", [True, False])
def test_numbers_that_are_none_are_refused(bad, binary):
    """NaN has no greatest, and infinity no softmax; minus infinity is a logit like any other."""
    made = endpoint(binary=True)
    with pytest.raises(BadReply, match="NaN or infinity"):
        run(made.talk([X]), answered(("y", np.array([[0, bad]], np.float32)), binary=True))
    _, out = run(made.talk([X]), answered(("y", np.array([[0, -math.inf]], np.float32)), binary=True))
    assert out[0, 1] == -math.inf
    if not binary:
        too_large = {"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [1e300]}
        with pytest.raises(BadReply, match="NaN or infinity"):
            run(made.talk([X]), said({"outputs": [too_large]}))


REPLIES = {
    "another output": ({"outputs": [{"name": "q", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}, "1 outputs, not 'y'"),
    "no output": ({"outputs": []}, "0 outputs, not 'y'"),
    "more rows": (
        {"outputs": [{"name": "y", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}]},
        "1 inputs gave .* does not begin with 1",
    ),
    "a scalar": ({"outputs": [{"name": "y", "shape": [], "datatype": "FP32", "data": [1]}]}, "does not begin with 1"),
    "too few numbers": (
        {"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1]}]},
        "another number of values than its shape says: 1 came",
    ),
    "Triton's empty output": (
        {"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 0}}]},
        "another number of bytes",
    ),
    "infinite shape": ({"outputs": [{"name": "y", "shape": [1, 1e400], "datatype": "FP32", "data": [1]}]}, "broken JSON"),
    "vast shape": (
        {"outputs": [{"name": "y", "shape": [1, 10**30, 0], "datatype": "FP32", "data": []}]},
        "a shape with a size below 1",
    ),
    "negative shape": (
        {"outputs": [{"name": "y", "shape": [1, -1, -2], "datatype": "FP32", "data": [1, 2]}]},
        "a shape with a size below 1",
    ),
    "unknown dtype": ({"outputs": [{"name": "y", "shape": [1], "datatype": "FP8", "data": [1]}]}, "KeyError$"),
    "ragged": ({"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [[1], [1, 2]]}]}, "ValueError"),
    "out of range": ({"outputs": [{"name": "y", "shape": [1], "datatype": "UINT8", "data": [300]}]}, "OverflowError"),
    "an error with 200": ({"error": "no such thing"}, "KeyError: 'outputs'"),
    "a list": ([1], "TypeError"),
    "nothing": (b"", "an empty body, not JSON"),
    "HTML": (b" <!DOCTYPE html><html>", "an HTML page"),
    "gzip": (b"\x1f\x8b123", "compressed data"),
    "half": (b'{"outputs": [', "broken JSON"),
    "deep": (b"[" * 49_000, "broken JSON"),
    "deeper": (b"[" * 100_000, "in 100000 lists and objects: more than expected, unread"),
    "many lists": (b'{"outputs": [' + b"[]," * 60_000 + b"[]]}", "60003 lists|60001 values in 60003 lists"),
    "many objects": (b'{"outputs": [' + b"{}," * 60_000 + b"{}]}", "60001 values in 60003 lists and objects"),
    "many numbers": (b'{"outputs": [' + b"0," * 300_000 + b"0]}", "300001 values"),
    "no numbers": (
        {"outputs": [{"name": "y", "shape": [1, 10**8, 0], "datatype": "FP32", "data": []}]},
        "a shape with a size below 1",
    ),
    "many dimensions": (
        {"outputs": [{"name": "y", "shape": [1, *[2**31 - 1] * 90_000], "datatype": "FP32", "data": []}]},
        "a shape of 90001 dimensions",
    ),
    "text as numbers": ({"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": ["1", "2"]}]}, "text instead"),
    "text as integers": ({"outputs": [{"name": "y", "shape": [1, 1], "datatype": "INT8", "data": ["1"]}]}, "text instead"),
}


@pytest.mark.parametrize("case", REPLIES)
@pytest.mark.parametrize("json_by", ["orjson", "json"])
def test_a_bad_reply_says_what_is_wrong_with_it(case, json_by, monkeypatch):
    """With either JSON library."""
    monkeypatch.setattr(json_codec_and_short_repr, "orjson", orjson if json_by == "orjson" else None)
    body, message = REPLIES[case]
    with pytest.raises(BadReply, match=message if case != "infinite shape" else "broken JSON|OverflowError"):
        run(endpoint(output="y").talk([X]), said(body))


@pytest.mark.parametrize("length", ["\N{SUPERSCRIPT TWO}", "-1", "", "1.0", "9" * 5000, "999"])
def test_a_header_length_that_cannot_be_true_is_refused(length):
    """Before anything is cut by it."""
    with pytest.raises(BadReply, match=LENGTH):
        run(endpoint(binary=True).talk([X]), Reply(200, {LENGTH.lower(): length}, b"{}"))


@pytest.mark.parametrize("json_by", ["orjson", "json"])
@pytest.mark.parametrize("binary", [True, False])
@given(data=st.data())
@unhurried
def test_a_damaged_reply_is_a_bad_reply_or_an_array(binary, json_by, data):
    """Truncated, with bytes changed, or with any JSON in any place: nothing else ever comes of it."""
    whole = answered(("w", LOGITS), ("y", LOGITS), binary=binary)
    body, headers = bytearray(whole.body), dict(whole.headers)
    kind = data.draw(st.sampled_from(["cut", "bytes", "values"]))
    if kind == "cut":
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    elif kind == "bytes":
        for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
            body[at] = data.draw(st.integers(0, 255))
        if headers and data.draw(st.booleans()):
            headers[LENGTH.lower()] = data.draw(st.text(max_size=4) | st.integers(0, 300).map(str))
    else:
        tree = {"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], "parameters": {}}]}
        place = data.draw(st.sampled_from([tree, *tree["outputs"]]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(jsons)
        tree["outputs"] = data.draw(st.just(tree["outputs"]) | jsons)
        body, headers = json.dumps(tree).encode(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_codec_and_short_repr, "orjson", orjson if json_by == "orjson" else None)
        try:
            _, out = run(endpoint(binary=binary, output="y").talk([X]), Reply(200, headers, bytes(body)))
        except BadReply:
            return
    assert len(out) == 1


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        [{}],
        [{"name": "x", "datatype": "FP8", "shape": [1]}],
        [{"name": "x", "datatype": "FP32", "shape": ["a"]}],
        [{"name": "x", "datatype": "FP32", "shape": [-1, 0]}],
        [{"name": "x", "datatype": "FP32", "shape": [-1, 2**31]}],
        [{"name": "x", "datatype": "FP32", "shape": [1] * 33}],
        [],
        [3],
        7,
    ],
)
def test_metadata_that_is_not_the_protocols(inputs):
    """It is refused, and asked for again the next time."""
    made = OpenInference(URL)
    with pytest.raises(BadReply, match="describes its inputs"):
        run(made.talk([X]), said({"inputs": inputs}))
    assert made.inputs is None


@given(inputs=jsons)
@unhurried
def test_any_metadata_is_understood_or_refused(inputs):
    """Nothing else comes of it; -1 and any other size may stand in a shape."""
    made = OpenInference(URL)
    with contextlib.suppress(BadReply):
        run(made.ping(), said({}), said({"inputs": [{"name": inputs, "datatype": "FP32", "shape": inputs}]}), Reply(0, {}, b""))


def described(*shape, inputs=(-1, 2)):
    """Metadata with an output of this shape."""
    return said(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": inputs}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": shape}],
        }
    )


@pytest.mark.parametrize("shape", [(-1, 2), (-1, -1), (1, 2)])
def test_outputs_are_those_of_the_metadata(shape):
    """Sizes that are not given are free, and the first is the batch's."""
    made = OpenInference(URL, binary=False)
    assert run(made.talk([X, X]), described(*shape), answered(("y", np.repeat(LOGITS, 2, 0)), binary=False))[1].shape == (2, 2)


@pytest.mark.parametrize("shape", [(1, 3), (1, 2, 1), (1,)])
def test_outputs_that_contradict_the_metadata(shape):
    """They are refused, and the metadata is fetched again: the model may have been replaced."""
    made = OpenInference(URL, binary=False)
    reply = answered(("y", np.ones(shape, np.float32)), binary=False)
    with pytest.raises(BadReply, match=r"of another shape than \[-1, 2\], which its metadata gives"):
        run(made.talk([X]), described(-1, 2), reply)
    calls, out = run(made.talk([X]), described(-1, *shape[1:]), reply)
    assert ([c.method for c in calls], out.shape) == (["GET", "POST"], shape)


def test_outputs_that_are_described_in_another_way_are_not_compared():
    """Many servers do not describe them."""
    made = OpenInference(URL, binary=False)
    run(made.talk([X]), described("any", 0), answered(("y", LOGITS), binary=False))
    assert made.outputs == {}


def test_what_is_known_of_the_outputs_survives_a_restart():
    """As what is known of the inputs; what an older version wrote has none."""
    made, again, older = OpenInference(URL, binary=False), OpenInference(URL), OpenInference(URL)
    run(made.talk([X]), described(-1, 2), answered(("y", LOGITS), binary=False))
    again.recall(json.loads(json.dumps(made.known)))
    assert (again.inputs, again.outputs, again.binary) == (made.inputs, {"y": (-1, 2)}, False)
    older.recall({"inputs": made.known["inputs"], "binary": True})
    assert (older.inputs, older.outputs) == (made.inputs, {})


def test_a_reply_is_as_long_as_its_outputs_at_most():
    """Where the metadata gives their shape; else as `max_reply` says, for up to 16 inputs each."""
    made = endpoint(max_reply_bytes=10**6)
    assert [made.encode([X] * n).max_reply for n in (1, 2, 16, 1000)] == [10**6, 2 * 10**6, 16 * 10**6, 16 * 10**6]
    made = endpoint(max_reply_bytes=10**6, outputs={"y": (-1, 10), "z": (-1, 5, 6)})
    assert [made.encode([X] * n).max_reply for n in (1, 1000)] == [65_536 + 32 * 40, 65_536 + 32 * 40_000]
    for outputs in ({"y": (-1, 2**31 - 1)}, {"y": (-1, 10), "z": (-1, -1)}):
        assert endpoint(max_reply_bytes=10**6, outputs=outputs).encode([X]).max_reply == 10**6


def test_as_many_numbers_as_the_metadata_says_are_read():
    """Also more than otherwise, and no more than `max_reply` allows: the server's word alone permits nothing."""
    many = np.zeros((1, 300_000), np.float32)
    made = endpoint(outputs={"y": (-1, 300_000)})
    assert run(made.talk([X]), answered(("y", many), binary=False))[1].shape == many.shape
    made = endpoint(max_reply_bytes=100_000, outputs={"y": (-1, 300_000)})
    with pytest.raises(BadReply, match="more than expected"):
        run(made.talk([X]), answered(("y", many), binary=False))


def test_metadata_is_asked_for_once():
    """The first talk begins with it, the second does not."""
    made = OpenInference(URL, binary=False)
    assert [c.method for c in run(made.talk([X]), METADATA, answered(("y", LOGITS), binary=False))[0]] == ["GET", "POST"]
    assert [c.method for c in run(made.talk([X]), answered(("y", LOGITS), binary=False))[0]] == ["POST"]


# OpenInference: whether the server takes binary


def test_the_probe_is_made_of_zeros_and_settles_binary():
    """What is tried on a server that may choke on it holds nothing of the user's."""
    made = endpoint(binary="auto")
    good = answered(("y", LOGITS), binary=True)
    calls, out = run(made.talk([X]), good, good)
    assert [c.probe for c in calls] == [True, False]
    assert not decoded(calls[0])["x"].any()
    assert decoded(calls[1])["x"].tolist() == [[1, 2]]
    assert made.binary is True
    assert out.tolist() == LOGITS.tolist()


@pytest.mark.parametrize(
    "refusal", [said({}, 400), said({}, 422), said(b"oops", 500), said(b"<html>"), answered(("y", LOGITS[:0]), binary=True)]
)
def test_a_refusal_settles_json(refusal):
    """Whatever the status is, and also where there is a 200 that does not decode."""
    made = endpoint(binary="auto")
    calls, _ = run(made.talk([X]), refusal, answered(("y", LOGITS), binary=False))
    assert made.binary is False
    assert dict(calls[1].headers)["Content-Type"] == "application/json"


def test_silence_settles_json_only_the_second_time():
    """A reset may be the link's doing."""
    made = endpoint(binary="auto")
    silence, good = Reply(0, {}, b"reset"), answered(("y", LOGITS), binary=False)
    run(made.talk([X]), silence, good)
    assert made.binary is None
    run(made.talk([X]), silence, good)
    assert made.binary is False
    assert len(run(made.talk([X]), good)[0]) == 1

    again = endpoint(binary="auto")
    both = answered(("y", LOGITS), binary=True)
    run(again.talk([X]), silence, good)
    run(again.talk([X]), both, both)
    assert again.binary is True


def test_talks_at_once_settle_binary_by_the_first_reply():
    """A talk that comes to its probe after that reply makes none, and a probe that is lost later changes nothing."""
    made, good = OpenInference(URL), answered(("y", LOGITS), binary=True)
    talks = [made.talk([X]) for _ in range(4)]
    assert [next(talk).method for talk in talks] == ["GET"] * 4
    assert [talk.send(METADATA).probe for talk in talks[:3]] == [True] * 3
    assert talks[0].send(good).probe is False
    assert talks[3].send(METADATA).probe is False
    for talk, reply in ((talks[1], Reply(0, {}, b"reset")), (talks[2], said({}, 400))):
        assert dict(talk.send(reply).headers)["Content-Type"] == "application/octet-stream"
    assert made.binary is True


def test_probes_that_are_lost_at_once_are_one_silence():
    """A link that breaks loses all of them."""
    made = endpoint(binary="auto")
    talks = [made.talk([X]) for _ in range(3)]
    assert [next(talk).probe for talk in talks] == [True] * 3
    for talk in talks:
        assert dict(talk.send(Reply(0, {}, b"reset")).headers)["Content-Type"] == "application/json"
    assert made.binary is None


def test_ping_sends_no_user_data_and_settles_what_it_can():
    """Readiness, metadata, and the probe where the shape is known."""
    made = OpenInference(URL)
    calls, _ = run(made.ping(), said({}), METADATA, answered(("y", LOGITS), binary=True))
    assert [(c.method, c.path) for c in calls] == [
        ("GET", "/v2/models/m/ready"),
        ("GET", "/v2/models/m"),
        ("POST", "/v2/models/m/infer"),
    ]
    assert not decoded(calls[2])["x"].any()
    assert made.binary is True


@pytest.mark.parametrize(
    ("url", "model", "path"),
    [
        (URL, None, "/v2/models/m"),
        (URL + "/", None, "/v2/models/m"),
        ("http://h", "m", "/v2/models/m"),
        ("http://h/v2", "m", "/v2/models/m"),
        ("http://h/proxy/", "m", "/proxy/v2/models/m"),
        ("http://h/proxy/v2/models/m/versions/3", None, "/proxy/v2/models/m/versions/3"),
    ],
)
def test_the_models_path(url, model, path):
    """From the server's URL and a name, or from the model's URL."""
    assert OpenInference(url, model=model).path == path


@pytest.mark.parametrize("url", ["http://h", "http://h/v2/models/"])
def test_a_model_must_be_named(url):
    """By the URL or by model=."""
    with pytest.raises(PolicyError, match="which model"):
        OpenInference(url)


# PlainJson


@pytest.mark.parametrize(
    ("reply", "settings_", "answer"),
    [
        ({"value": "cat", "confidence": 0.9}, {}, ("cat", 0.9)),
        ({"value": "cat"}, {}, ("cat", None)),
        ({"value": None}, {"confidence": None}, (None, None)),
        ({"r": [{"l": "cat"}, {"l": "dog", "s": 1}]}, {"value": "r.1.l", "confidence": "r.1.s"}, ("dog", 1)),
        ([["cat"]], {"value": "0.0"}, ("cat", None)),
    ],
)
def test_plain_answers_are_picked_by_path(reply, settings_, answer):
    """Keys and indices with dots between."""
    assert run(PlainJson("http://h/ask", **settings_).talk([1]), said(reply))[1] == [answer]


def test_plain_logits():
    """An array instead of a value."""
    _, (row,) = run(PlainJson("http://h", logits="out.0").talk([1]), said({"out": [[1, 2.5]]}))
    assert row.tolist() == [1, 2.5]
    assert row.dtype == np.float32


@pytest.mark.parametrize(
    ("reply", "settings_", "message"),
    [
        ({"v": 1}, {}, "no 'value' in the reply: give its path, such as .* as value .* there is an object of other keys"),
        ([], {"value": "0"}, "no '0' in the reply"),
        ("text", {"value": "a.b"}, "where 'a' should be there is str"),
        ({"value": 1, "confidence": "high"}, {}, "'confidence' is str, not a number"),
        ({"l": ["a"]}, {"logits": "l"}, "'l' is not an array of numbers"),
        ({"l": [[1], [1, 2]]}, {"logits": "l"}, "'l' is not an array of numbers"),
        ({"l": [None]}, {"logits": "l"}, "NaN"),
        ({"l": [1e300]}, {"logits": "l"}, "infinity"),
        ({"l": []}, {"logits": "l"}, "empty"),
    ],
)
def test_plain_replies_without_what_was_looked_for(reply, settings_, message):
    """The message says what is there instead."""
    with pytest.raises(BadReply, match=message):
        run(PlainJson("http://h", **settings_).talk([1]), said(reply))


@given(reply=jsons, path=st.lists(st.text(max_size=3), min_size=1, max_size=3).map(".".join), logits=st.booleans())
@unhurried
def test_any_plain_reply_is_picked_from_or_refused(reply, path, logits):
    """Nothing else comes of it."""
    made = PlainJson("http://h", value=path, logits=path if logits else None)
    try:
        _, answers = run(made.talk([1]), said(reply))
    except BadReply:
        return
    assert len(answers) == 1


def test_plain_inputs():
    """An input each; arrays as lists, or as `encode` says."""
    ok = said({"value": 1})
    calls, out = run(PlainJson("http://h/p").talk([np.array([[1, 2]]), "text"]), ok, ok)
    assert [json.loads(c.body) for c in calls] == [{"input": [[1, 2]]}, {"input": "text"}]
    assert [c.path for c in calls] == ["/p", "/p"]
    assert len(out) == 2
    calls, _ = run(PlainJson("http://h", encode=lambda x: [x, x]).talk([3]), ok)
    assert json.loads(calls[0].body) == [3, 3]
    assert calls[0].path == "/"


def test_plain_ping():
    """A path that must answer 200; else any reply to OPTIONS will do."""
    assert next(PlainJson("http://h/p", ping_path="/health").ping())[:2] == ("GET", "/health")
    calls, _ = run(PlainJson("http://h/p").ping(), said(b"", 405))
    with pytest.raises(Refused, match="503"):
        run(PlainJson("http://h/p").ping(), said(b"", 503))
    assert calls[0][:2] == ("OPTIONS", "/p")
    assert calls[0].probe
    with pytest.raises(Unreachable, match="reset"):
        run(PlainJson("http://h/p").ping(), Reply(0, {}, b"reset"))


# addresses and secrets


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{CANARY}@h/v2/models/m",
        f"http://{CANARY}@h/v2/models/m",
        f"https://user:pa/{CANARY}@h/v2/models/m",
        f"http://user:{CANARY}/v2/models/m",
        f"user:{CANARY}@h/v2/models/m",
        f"ftp://user:{CANARY}@h/v2/models/m",
        f"http://h/v2/models/m?key={CANARY}",
        f"http://h?key={CANARY}",
        f"http://h/v2/models/m#{CANARY}",
    ],
)
def test_a_url_with_a_secret_in_it_is_refused_and_not_echoed(url):
    """Not in the message, and not in what led to it."""
    for make in (OpenInference, PlainJson, lambda url: Router(FakeModel([(1, 1)]), url, threshold=0.5)):
        with pytest.raises(PolicyError) as caught:
            make(url)
        assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "h/v2/models/m",
        "ftp://h",
        "http://",
        "http:///x",
        "http://h:port",
        "http://[::1",
        "http://a..b",
        "http://a b",
        "http://a\0",
    ],
)
def test_a_url_that_is_none(url):
    """Or of another kind than http and https."""
    with pytest.raises(PolicyError):
        Address(url)


def test_what_messages_show_of_a_url():
    """Itself, unless there may be a password, a key or a token in it."""
    for url in ("https://h:1/a", "ftp://h", "h.example/v2/models/m", "h/v2", "localhost:8000", "http://"):
        assert bare(url) == repr(url)
    for url in (
        "https://u:p@h:1/a",
        "https://h/?k=p",
        "https://h/#p",
        "u:p@h",
        "https://u:p%40h",
        "http://h:x",
        "sk-0123456789abcdef",
    ):
        assert bare(url) == "the cloud's address"


def test_addresses():
    """Ports by scheme, paths without the last slash, IPv6 in brackets."""
    assert (Address("http://h").port, Address("https://h").port, Address("http://h:8/").port) == (80, 443, 8)
    assert Address("http://h/a/b/").path == "/a/b"
    assert Address("http://[::1]:8").origin == "http://[::1]:8"
    assert Address("http://[::1]:8").host == "::1"


def test_a_secret_keeps_to_itself(monkeypatch):
    """No repr or str shows it; equal ones are equal; one in the environment is read when it is used."""
    monkeypatch.delenv("EDGEROUTE_TEST_KEY", raising=False)
    value, variable = Secret(CANARY), Secret(env="EDGEROUTE_TEST_KEY")
    assert CANARY not in f"{value!r} {value} {[value]}"
    assert value.read() == CANARY
    assert value == Secret(CANARY)
    assert len({value, Secret(CANARY), variable}) == 2
    assert value != CANARY
    assert "EDGEROUTE_TEST_KEY" in repr(variable)
    with pytest.raises(PolicyError, match="EDGEROUTE_TEST_KEY"):
        variable.read()
    monkeypatch.setenv("EDGEROUTE_TEST_KEY", CANARY)
    assert Address("http://h", api_key=variable).headers() == [("Authorization", f"Bearer {CANARY}")]
    assert CANARY not in repr(variable)


@pytest.mark.parametrize("given", [CANARY.encode(), [CANARY], {"a": CANARY}, 7], ids=lambda given: type(given).__name__)
def test_a_secret_that_is_no_text(given):
    """It is refused before anything is asked, and not quoted: else each call would fail."""
    for make in (Secret, lambda key: Secret(env=key), lambda key: Address("http://h", api_key=key)):
        with pytest.raises(PolicyError, match=f"a secret is a text, not a {type(given).__name__}") as caught:
            make(given)
        assert CANARY not in str(caught.value)
    with pytest.raises(PolicyError, match="a secret is a text"):
        Address("http://h", headers={"X-Key": given})


def test_a_secret_is_masked_although_another_is_not_set(monkeypatch):
    """Each header stands for itself: the variable of one may be unset while a reply quotes the other."""
    monkeypatch.delenv("EDGEROUTE_TEST_KEY", raising=False)
    address = Address("http://h", api_key=Secret(CANARY), headers={"X-Key": Secret(env="EDGEROUTE_TEST_KEY")})
    assert CANARY not in address.hide(f"no such key: {CANARY}")


@pytest.mark.parametrize("value", [CANARY + "\n", "a\r\nX: b", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", " x", "\x00"])
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(value):
    """An environment variable that was read from a file often ends in a line break."""
    address = Address("http://h", headers={"X-Key": value})
    with pytest.raises(PolicyError, match="'X-Key' has a value that cannot be sent") as caught:
        address.headers()
    assert value.strip() not in str(caught.value)


def test_headers_that_can_be_sent():
    """Also empty ones, and with blanks inside."""
    values = {"A": "", "B": "x", "C": "two words\tmore"}
    assert Address("http://h", headers=values).headers() == list(values.items())


ECHO = json.dumps({"error": f"bad key {CANARY}"}).encode()
IS_JSON = [("Content-Type", "application/json")]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(http_reply(ECHO, status=401, headers=IS_JSON), id="echoed in an error"),
        pytest.param(http_reply(b"oops", status=500), id="error"),
        pytest.param(http_reply(b"", status=302, headers=[("Location", "http://elsewhere.invalid/")]), id="redirect"),
        pytest.param(http_reply(f"<html>{CANARY}".encode()), id="html"),
        pytest.param(http_reply(f'["{CANARY}"'.encode()), id="broken"),
        pytest.param(http_reply(b"{}", length=99), id="truncated"),
        pytest.param(b"SSH-2.0 other\r\n\r\n", id="another protocol"),
    ],
)
@pytest.mark.parametrize(
    "key", [{"api_key": CANARY}, {"headers": {"Authorization": f"Token {CANARY}"}}, {"api_key": CANARY + "\n"}]
)
def test_no_secret_in_anything_that_is_shown(reply, key, caplog):
    """However it fails: in no message, repr, reason, trace, log or traceback."""
    caplog.set_level("DEBUG")
    with CannedServer(reply, close=True) as server:
        cloud = PlainJson(server.url, retries=0, **key)
        shown = [repr(cloud), repr(cloud.address)]
        with Router(FakeModel([("edge", 0.1)]), cloud, threshold=0.5) as router:
            answer = router.infer(1)
            assert answer.degraded
            shown += [repr(answer), answer.reason, json.dumps(answer.trace)]
            shown += [repr(router.stats()), str(router.check()), repr(router), str(router.decide(1))]
            with pytest.raises(Exception, match=r".") as caught:
                router.infer(1, mode="only_cloud")
            shown += traceback.format_exception(caught.value)
        if not key.get("api_key", "").endswith("\n"):
            assert any(CANARY.encode() in request for request in server.requests), "it was sent"
    assert CANARY not in "\n".join([*shown, caplog.text])


# refusals, and when to try again


@pytest.mark.parametrize(
    ("status", "hint", "retriable"),
    [
        (301, "final URL", False),
        (308, "final URL", False),
        (400, "answered 400", False),
        (401, "api_key", False),
        (403, "api_key", False),
        (404, "is the URL right", False),
        (408, "408", True),
        (429, "429", True),
        (500, "500", True),
        (503, "503", True),
    ],
)
def test_refusals_hint_at_what_to_do(status, hint, retriable):
    """And say whether the same request may succeed later."""
    with pytest.raises(Refused, match=hint) as caught:
        check_status(said({}, status), "http://h")
    assert caught.value.status == status
    assert caught.value.retriable is retriable


def test_a_refusal_quotes_the_servers_code():
    """From JSON; nothing else is quoted."""
    kind = {"content-type": "application/json"}
    for body in ({"error": {"code": "no_such_model", "message": "there is none"}}, {"type": "no_such_model", "detail": "none"}):
        with pytest.raises(Refused, match=r"^w answered 400: no_such_model$"):
            check_status(Reply(400, kind, json.dumps(body).encode()), "w")
    for body in (b"{", b"[1]", b"<p>text</p>", b'{"error": "there is no such model"}'):
        with pytest.raises(Refused, match=r"^w answered 400$"):
            check_status(Reply(400, kind, body), "w")


def waited(error, attempt=1):
    """What `wait_s` says after that error."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number, state.outcome = attempt, Future()
    state.outcome.set_exception(error)
    return wait_s(state)


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("nan", 0.0)])
def test_retry_after_is_obeyed(value, seconds):
    """Given in seconds."""
    with pytest.raises(Refused) as caught:
        check_status(said({}, 503, **{"retry-after": value}), "w")
    assert waited(caught.value) == seconds


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
NOW = 1792567680.0 - 90
"""A minute and a half before that."""


@pytest.mark.parametrize(
    ("date", "sent", "seconds"),
    [
        (DATE, "", 90),
        (DATE, "Wed, 21 Oct 2026 07:27:50 GMT", 10),  # by the server's clock, which is ahead
        (DATE, "yesterday", 90),
        ("Wednesday, 21-Oct-26 07:28:00 GMT", "", 90),
        ("Wed Oct 21 07:28:00 2026", "", 90),
        ("Wed, 21 Oct 2026 09:28:00 +0200", "", 90),
        (DATE, "Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("Wed, 21 Oct 2020 07:28:00 GMT", "", None),
        ("Wed, 99 Oct 2026 07:28:00 GMT", "", None),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_retry_after_is_a_date(date, sent, seconds):
    """In the forms that HTTP has; one that has passed is left to the jitter."""
    wait_s = retry_after_s({"retry-after": date, "date": sent}, NOW)
    assert wait_s == (seconds if seconds is None else pytest.approx(seconds))


def test_a_date_in_a_reply():
    """Holds the endpoint as seconds do."""
    headers = {"retry-after": DATE, "date": "Wed, 21 Oct 2026 07:26:00 GMT"}
    with pytest.raises(Refused) as caught:
        check_status(said({}, 503, **headers), "w")
    assert waited(caught.value) == pytest.approx(120)


def test_without_a_retry_after_the_wait_is_jittered_and_bounded():
    """Uniform from zero; at once where a kept connection turned out to be closed, but only the first time."""
    with pytest.raises(Refused) as caught:
        check_status(said({}, 503, **{"retry-after": "soon"}), "w")
    for attempt in (1, 2, 3, 10, 60):
        waits = [waited(caught.value, attempt) for _ in range(50)]
        assert 0 <= min(waits) < max(waits) <= min(MOST_S, FIRST_S * 2 ** (attempt - 1))
    stale = Unreachable("closed")
    stale.stale = True
    assert waited(stale) == 0
    assert any(waited(stale, 2) for _ in range(50))


class Free:
    """An exchange that forbids nothing."""

    identity = ""

    async def call_off_loop(self, call):
        """Make it here."""
        return call()

    before_attempt = after_attempt = next_call = headers = lambda *_, **__: None
    may_retry = lambda *_, **__: True  # noqa: E731 - three answers, not three methods


def leg(replies, **settings_):
    """(a leg, its server) where the server gives these replies in turn."""
    replies = iter(replies)
    server = CannedServer(lambda _: next(replies))
    return HttpClient(PlainJson(server.url, **settings_)), server


def test_a_short_retry_after_over_a_socket():
    """The second attempt comes, and not before the server wants it."""
    made, server = leg([http_reply(status=503, headers=[("Retry-After", "0.05")]), http_reply(b'{"value": 1}')])
    with server:
        begun = monotonic()
        assert made.run(made.endpoint.talk([1]), LATER, Free()) == [(1, None)]
        assert monotonic() - begun >= 0.05
        made.close()
    assert len(server.requests) == 2


def test_a_retry_after_beyond_the_deadline_is_not_waited_for():
    """The error is there at once."""
    made, server = leg([http_reply(status=503, headers=[("Retry-After", "3600")])])
    with server, pytest.raises(Refused, match="503"):
        made.run(made.endpoint.talk([1]), monotonic() + 60, Free())
    made.close()


def test_nothing_is_sent_when_no_time_is_left():
    """Neither a connection nor a request."""
    made, server = leg([])
    with server, pytest.raises(TimedOut, match="no time was left"):
        made.run(made.endpoint.talk([1]), monotonic() - 1, Free())
    assert server.connections == 0


def test_bytes_are_counted_both_ways_with_retries():
    """Bodies alone."""
    reply = http_reply(b'{"value": 1}')
    made, server = leg([http_reply(b"no", status=500, headers=[("Retry-After", "0")]), reply])
    with server:
        made.run(made.endpoint.talk(["x"]), LATER, Free())
        made.close()
    assert made.sent == 2 * len(b'{"input":"x"}')
    assert made.received == len(b"no") + len(b'{"value": 1}')


def test_what_a_body_looks_like():
    """Said without quoting it."""
    assert looks_like(b"") == "an empty body"
    assert looks_like(b"hello") == "something else"
    assert looks_like(b"\n<HTML>") == looks_like(b"<!doctype HTML>")
    with pytest.raises(BadReply, match="w answered something else, not JSON"):
        loads(b"hello", "w")


def test_reprs_are_short():
    """And name the place."""
    assert repr(OpenInference(URL)) == f"OpenInference({URL!r})"
    assert repr(PlainJson("http://h/p")) == "PlainJson('http://h/p')"
    assert repr(Address("http://h/p")) == "Address('http://h/p')"
    assert httpx.URL(OpenInference(URL).where).path == "/v2/models/m"
