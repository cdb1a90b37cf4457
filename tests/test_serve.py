"""The embedded server: its protocol, its errors, its batching, its end."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import uvicorn
from both import LONG, running
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeroute import BadInput, CallableModel, ModelError, OnnxModel, PolicyError
from edgeroute.cloud.oip_tensors import DTYPES, NAMES
from edgeroute.cloud.openinference import LENGTH
from edgeroute.edge.model_card import Card
from edgeroute.errors import Unfit
from edgeroute.system import json_codec_and_short_repr
from edgeroute.tools.server import oip_requests_media_routes as protocol
from edgeroute.tools.server.batching_and_tensor_models import Batcher
from edgeroute.tools.server.serve import app, serve
from edgeroute.tools.server.uvicorn_with_client_limits import run
from edgeroute.types import TensorSpec

WEIGHTS = np.arange(1, 4, dtype=np.float32)
INFER = "/v2/models/scale/infer"


def save(path, *, rows="n"):
    """A model of two inputs and two outputs: logits = x * [1, 2, 3], and the byte flags as they came."""
    kinds = [("x", TensorProto.FLOAT, [rows, 3]), ("flags", TensorProto.UINT8, [rows])]
    outs = [("logits", TensorProto.FLOAT, [rows, 3]), ("same", TensorProto.UINT8, [rows])]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["logits"]), helper.make_node("Identity", ["flags"], ["same"])],
        "g",
        [helper.make_tensor_value_info(*kind) for kind in kinds],
        [helper.make_tensor_value_info(*out) for out in outs],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Fake:
    """y = 2 x, held at `gate`; a row that is 13 fails its run. `sizes` has the rows of every run."""

    def __init__(self, name="fake", shape=(-1, 1)):
        self.name, self.card, self.output = name, Card(), None
        self.inputs = (TensorSpec("x", "float32", shape),)
        self.outputs = (TensorSpec("y", "float32", shape),)
        self.gate, self.begun, self.sizes = threading.Event(), threading.Semaphore(0), []

    def load(self):
        """Does nothing."""

    def run_feed(self, feed):
        """Runs once the gate is open."""
        self.begun.release()
        assert self.gate.wait(LONG)
        x = feed["x"]
        if (x == 13).any():
            raise ZeroDivisionError("secret")
        self.sizes.append(len(x))
        return x * 2


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    with running(app([OnnxModel(save(path / "scale.onnx")), Fake("other")], max_body_bytes=4000)) as client:
        yield client


def tensor(name, array, **more):
    return {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name], **more}


def octets(head, *arrays):
    text = json.dumps(head).encode()
    return {"content": b"".join([text, *(a.tobytes() for a in arrays)]), "headers": {LENGTH: str(len(text))}}


def unpack(reply):
    """Name -> array, of a JSON or a binary reply."""
    at = int(reply.headers.get(LENGTH, len(reply.content)))
    found = {}
    for out in json.loads(reply.content[:at])["outputs"]:
        if "data" in out:
            found[out["name"]] = np.array(out["data"], DTYPES[out["datatype"]]).reshape(out["shape"])
        else:
            size = out["parameters"]["binary_data_size"]
            found[out["name"]] = np.frombuffer(reply.content[at : at + size], DTYPES[out["datatype"]]).reshape(out["shape"])
            at += size
    assert at == len(reply.content)
    return found


X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
FLAGS = np.array([7, 255], np.uint8)
ASK = {"inputs": [tensor("x", X, data=X.tolist()), tensor("flags", FLAGS, data=FLAGS.tolist())]}


def test_metadata(client):
    """The server names itself and the extension; a model has OIP datatypes and -1 for an open first axis."""
    about = client.get("/v2").json()
    assert about["name"] == "edgeroute-serve"
    assert about["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/scale/ready", "/v2/models/scale/versions/1/ready"):
        assert client.get(path).status_code == client.head(path).status_code == 200
    model = client.get("/v2/models/scale").json()
    assert model == client.get("/v2/models/scale/versions/1").json()
    assert model == {
        "name": "scale",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}, {"name": "flags", "datatype": "UINT8", "shape": [-1]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "same", "datatype": "UINT8", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("data", [X.tolist(), X.ravel().tolist()])
def test_json(client, data):
    """Nested or flat JSON is answered in JSON, with the id."""
    reply = client.post(
        "/v2/models/scale/versions/1/infer", json={**ASK, "id": "é7", "inputs": [tensor("x", X, data=data), ASK["inputs"][1]]}
    )
    assert reply.status_code == 200, reply.text
    assert LENGTH not in reply.headers
    assert (reply.json()["id"], reply.json()["model_name"], reply.json()["model_version"]) == ("é7", "scale", "1")
    assert (unpack(reply)["logits"] == X * WEIGHTS).all()
    assert (unpack(reply)["same"] == FLAGS).all()


def test_binary(client):
    """Binary in, in the order of the request, at any alignment; binary out."""
    for pad in range(4):
        head = {
            "id": "x" * pad,
            "inputs": [tensor(n, a, parameters={"binary_data_size": a.nbytes}) for n, a in (("flags", FLAGS), ("x", X))],
            "parameters": {"binary_data_output": True},
        }
        reply = client.post(INFER, **octets(head, FLAGS, X))
        assert reply.status_code == 200, reply.text
        assert (unpack(reply)["logits"] == X * WEIGHTS).all()
        assert (unpack(reply)["same"] == FLAGS).all()


def test_mixed(client):
    """One input JSON, the other binary; one output binary, the other not, whatever the request says of all."""
    head = {
        "inputs": [tensor("flags", FLAGS, data=FLAGS.tolist()), tensor("x", X, parameters={"binary_data_size": X.nbytes})],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "same", "parameters": {"binary_data": False}}, {"name": "logits"}],
    }
    reply = client.post(INFER, **octets(head, X))
    said = json.loads(reply.content[: int(reply.headers[LENGTH])])["outputs"]
    assert [("data" in out, out["name"]) for out in said] == [(True, "same"), (False, "logits")]
    assert (unpack(reply)["logits"] == X * WEIGHTS).all()
    assert (unpack(reply)["same"] == FLAGS).all()


def test_subset(client):
    """Only the outputs that are named come back."""
    reply = client.post(INFER, json={**ASK, "outputs": [{"name": "same"}]})
    assert list(unpack(reply)) == ["same"]


def without(key):
    return {k: v for k, v in ASK["inputs"][0].items() if k != key}


def instead(**change):
    return {"inputs": [{**ASK["inputs"][0], **change}, ASK["inputs"][1]]}


BAD = {
    "no JSON": b"{",
    "JSON with NaN": b'{"inputs": [NaN]}',
    "not an object": [],
    "no inputs": {},
    "inputs that are no objects": {"inputs": [1]},
    "an unknown input": {"inputs": [*ASK["inputs"], tensor("z", X, data=X.tolist())]},
    "an input twice": {"inputs": [*ASK["inputs"], ASK["inputs"][0]]},
    "a missing input": {"inputs": ASK["inputs"][:1]},
    "another datatype": instead(datatype="FP64"),
    "a datatype there is not": instead(datatype=["FP32"]),
    "no shape": {"inputs": [without("shape"), ASK["inputs"][1]]},
    "a negative size": instead(shape=[-1, 3]),
    "another rank": instead(shape=[6]),
    "another inner size": instead(shape=[3, 2]),
    "a huge shape": instead(shape=[1 << 60, 3]),
    "no data": {"inputs": [without("data"), ASK["inputs"][1]]},
    "too little data": instead(data=[1, 2, 3]),
    "data of another nesting": instead(data=X.T.tolist()),
    "data nested too deep": instead(data=X[..., None].tolist()),
    "ragged data": instead(data=[[1, 2, 3], [4, 5]]),
    "a list beside a number": instead(data=[[1, 2, 3], 4]),
    "strings": instead(data=["1"] * 6),
    "null": instead(data=[None] * 6),
    "booleans": instead(data=[True] * 6),
    "a number too large for FP32": instead(data=[1e300] * 6),
    "a number too large for UINT8": {"inputs": [ASK["inputs"][0], tensor("flags", FLAGS, data=[0, 256])]},
    "a fraction as UINT8": {"inputs": [ASK["inputs"][0], tensor("flags", FLAGS, data=[0, 1.5])]},
    "other rows for each input": {"inputs": [ASK["inputs"][0], tensor("flags", FLAGS[:1], data=[7])]},
    "no rows": {"inputs": [tensor("x", X[:0], data=[]), tensor("flags", FLAGS[:0], data=[])]},
    "an unknown output": {**ASK, "outputs": [{"name": "z"}]},
    "outputs that are no list": {**ASK, "outputs": "same"},
    "parameters that are no object": {**ASK, "parameters": [1]},
    "binary_data that is no boolean": {**ASK, "outputs": [{"name": "same", "parameters": {"binary_data": "no"}}]},
    "an id that is no string": {**ASK, "id": 7},
    "binary without its header": instead(parameters={"binary_data_size": 24}),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("fast", [True, False])
def test_bad_request(client, monkeypatch, what, fast):
    """Each is a 400 that says so, with either JSON library."""
    if not fast:
        monkeypatch.setattr(json_codec_and_short_repr, "orjson", None)
    body = BAD[what] if isinstance(BAD[what], bytes) else json.dumps(BAD[what]).encode()
    reply = client.post(INFER, content=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"].startswith("bad request: ")


@pytest.mark.parametrize(
    ("size", "sent", "length"), [(23, 24, 0), (24, 23, 0), (24, 25, 0), ("24", 24, 0), (24, 24, 999), (-24, 24, 0)]
)
def test_bad_binary(client, size, sent, length):
    """Sizes that do not agree are a 400."""
    ask = octets({"inputs": [tensor("x", X, parameters={"binary_data_size": size}), ASK["inputs"][1]]})
    ask["content"] += bytes(sent)
    ask["headers"][LENGTH] = str(length + int(ask["headers"][LENGTH]))
    assert client.post(INFER, **ask).status_code == 400


@pytest.mark.parametrize("length", ["", "-1", "x", "²", "9" * 30])
def test_bad_header(length):
    """A header that is no length is the caller's fault."""
    with pytest.raises(BadInput, match=LENGTH):
        protocol.read(b"{}", length, [], [])


@pytest.mark.parametrize("pad", range(8))
def test_aligned(pad):
    """Wherever the JSON ends, the model gets an aligned array."""
    head = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]}' + b" " * pad
    ask = protocol.read(head + np.float64(3).tobytes(), str(len(head)), [TensorSpec("x", "float64", (1,))], [])
    assert ask.feed["x"].flags.aligned
    assert ask.feed["x"].tolist() == [3]


def test_bad_bool():
    """A byte that is no BOOL does not become one."""
    head = json.dumps(
        {"inputs": [{"name": "b", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}]}
    ).encode()
    spec = [TensorSpec("b", "bool", (-1,))]
    assert protocol.read(head + b"\1\0", str(len(head)), spec, []).feed["b"].tolist() == [True, False]
    with pytest.raises(BadInput, match="BOOL"):
        protocol.read(head + b"\1\2", str(len(head)), spec, [])


WORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "FP32", "y"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "binary_data_size", "data"]), inner),
    max_leaves=8,
)


@settings(deadline=None, database=None, max_examples=draws(300))
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "datatype", "shape", "data", "parameters"), WORDS)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "outputs", "parameters"), WORDS)),
    st.none() | st.integers(-2, 300),
    st.binary(max_size=16),
)
def test_whatever_comes(changes, head, length, rest):
    """What a request holds is understood or the caller's fault, nothing else."""
    body = (
        json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1], **changes}], **head}).encode() + rest
    )
    spec = [TensorSpec("x", "float32", (-1,))]
    with contextlib.suppress(BadInput):
        ask = protocol.read(body, None if length is None else str(length), spec, spec)
        assert ask.feed["x"].ndim == 1


def test_compressed(client):
    """A compressed body is refused in words."""
    reply = client.post(INFER, json=ASK, headers={"content-encoding": "gzip"})
    assert (reply.status_code, "compressed" in reply.text) == (400, True)


def test_not_found(client):
    """An unknown model is a 404 that names those there are; so is an unknown version, or path."""
    for path in ("/v2/models/none", "/v2/models/none/ready", "/v2/models/none/stats"):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["error"]) == (404, "there is no model 'none' here, only other, scale")
    assert client.post("/v2/models/none/infer", json=ASK).status_code == 404
    assert "only 1" in client.get("/v2/models/scale/versions/2").json()["error"]
    for path in ("/", "/v1", "/v2/", "/v2/models", "/v2/models/scale/", "/v2/models/scale/infer/"):
        reply = client.get(path)
        assert (reply.status_code, "nothing at" in reply.json()["error"]) == (404, True)
        assert client.head(path).status_code == 404


def test_method(client):
    """A GET of infer is a 405 in JSON."""
    reply = client.get(INFER)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert "does not take GET, only POST" in reply.json()["error"]


def test_too_large(client):
    """A body over the limit is a 413, announced or in chunks, and the connection serves on."""
    assert client.post(INFER, content=b"x" * 4001).status_code == 413
    reply = client.post(INFER, content=(b"x" * 1000 for _ in range(9)))
    assert (reply.status_code, "more than 4000 bytes" in reply.json()["error"]) == (413, True)
    assert client.post(INFER, json=ASK).status_code == 200


def test_too_large_is_seen_while_reading():
    """No more is read than the limit."""
    seen = []

    async def receive():
        seen.append(1)
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    async def send(message):
        seen.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/v2/models/fake/infer", "headers": [], "query_string": b""}
    asyncio.run(app([Fake()], max_body_bytes=100)(scope, receive, send))
    assert seen == [1, 1, 413, None]


def raw(client, *parts):
    """What the server replies to these bytes until it closes the connection."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=LONG) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = f"POST {INFER.replace('scale', 'fake')} HTTP/1.1\r\nHost: a\r\n".encode()


def test_two_lengths_are_refused():
    """Content-Length with Transfer-Encoding: nothing that follows is taken for a request."""
    with running(app([Fake()])) as client:
        both = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        for head in (HEAD, b"GET /v2 HTTP/1.1\r\nHost: a\r\n"):
            reply = raw(client, head + both + b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert reply.startswith(b"HTTP/1.1 400 ")
            assert reply.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("begun", [b"", b"{"])
def test_a_body_that_does_not_come_is_not_waited_for(begun):
    """It gets 408, and its connection ends; begun or not."""
    with running(app([Fake()], body_timeout_s=0.05)) as client:
        reply = raw(client, HEAD + b"Content-Length: 9\r\n\r\n" + begun)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert client.get("/v2/health/live").status_code == 200


def test_all_bodies_together_have_a_limit():
    """Unfinished ones, and those whose requests wait for the model; the one too many gets 503, and room comes back."""
    model = Fake()
    application = app([model], max_bodies_bytes=3 * len(BODY))
    come, _ = signs(application)
    bodies = next(route.app.bodies for route in application.routes if route.path.endswith("{name}/infer"))
    with running(application) as client, ThreadPoolExecutor(1) as pool:
        unfinished = socket.create_connection((client.base_url.host, client.base_url.port))
        unfinished.sendall(RAW[:-1])
        while bodies.held < len(BODY) - 1:
            client.get("/v2/health/live")
        waiting = pool.submit(client.post, INFER.replace("scale", "fake"), content=BODY)
        wait(come)
        refused = client.post(INFER.replace("scale", "fake"), content=BODY + " " * len(BODY))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "too large together" in refused.json()["error"]
        unfinished.close()
        model.gate.set()
        assert waiting.result().status_code == 200
        assert client.post(INFER.replace("scale", "fake"), content=BODY + " " * len(BODY)).status_code == 200


def test_large_json_is_parsed_off_the_loop(monkeypatch):
    """The server answers others meanwhile; so are large replies made."""
    model, read, write, threads = Fake(shape=(-1, 50_000)), protocol.read, protocol.write, []
    model.gate.set()

    def noted(function):
        def inner(*args):
            threads.append(threading.current_thread().name)
            return function(*args)

        return inner

    monkeypatch.setattr(protocol, "read", noted(read))
    monkeypatch.setattr(protocol, "write", noted(write))
    with running(app([model, Fake("small")])) as client:
        reply = ask_fake(client, 1.5, width=50_000)
        assert reply.json()["outputs"][0]["data"] == [3.0] * 50_000
    assert threads == ["edgeroute-serve-json"] * 2


def test_the_id_of_a_request_writes_no_escapes_into_the_log(caplog):
    """Nor line breaks: anybody may send one."""
    caplog.set_level(logging.INFO, "edgeroute.requests")
    with running(app([Fake()], logs=True)) as client:
        client.post(
            INFER.replace("scale", "fake"), content=b"{}", headers={b"Idempotency-Key": b"\x9b31mred\x85next " + b"a" * 200}
        )
    (record,) = [record for record in caplog.records if record.name == "edgeroute.requests"]
    assert record.request.isprintable()
    assert len(record.request) == 100


def test_large_texts_are_split_off_the_loop(monkeypatch):
    """Though the JSON before them is small."""
    model, read, threads = Fake(), protocol.read, []
    model.inputs = (TensorSpec("x", "object", (-1,)),)
    model.run_feed = lambda feed: np.zeros((len(feed["x"]), 1), np.float32)

    def noted(*args):
        threads.append(threading.current_thread().name)
        return read(*args)

    monkeypatch.setattr(protocol, "read", noted)
    x = np.zeros(20_000, np.uint32)  # the length of each text
    head = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [20_000], "parameters": {"binary_data_size": x.nbytes}}]}
    with running(app([model])) as client:
        assert client.post(INFER.replace("scale", "fake"), **octets(head, x)).status_code == 200
    assert threads == ["edgeroute-serve-json"]


FILE = "application/zstd; datatype=FP32; shape=0x999999999x999999999x999999999"
EMPTY = [
    *(({"datatype": "FP32", "data": []}, shape) for shape in ([2**40, 0], [2**63, 0], [2**20, 0], [0, 2**62])),
    ({"datatype": "BYTES", "data": [""], "parameters": {"content_type": "base64", "media_type": FILE}}, [1]),
]


@pytest.mark.parametrize(("given", "shape"), EMPTY)
def test_rows_without_values(given, shape):
    """A hundred bytes ask for any number of them, for each of which a model takes memory."""
    model = Fake(shape=(-1, -1) if given["datatype"] == "FP32" else (-1, -1, -1, -1, -1))
    model.gate.set()
    with running(app([model])) as client:
        reply = client.post(INFER.replace("scale", "fake"), json={"inputs": [{"name": "x", "shape": shape, **given}]})
    assert (reply.status_code, "has no values" in reply.json()["error"], model.sizes) == (400, True, [])


def test_json_has_a_limit_of_its_own():
    """Binary tensors beside it do not count."""
    model = Fake(shape=(-1, 1000))
    model.gate.set()
    with running(app([model], max_json_bytes=500)) as client:
        reply = ask_fake(client, 1, width=1000)
        assert (reply.status_code, "as binary" in reply.json()["error"]) == (413, True)
        x = np.ones((1, 1000), np.float32)
        given = octets({"inputs": [tensor("x", x, parameters={"binary_data_size": x.nbytes})]}, x)
        assert client.post(INFER.replace("scale", "fake"), **given).status_code == 200


def test_a_number_that_does_not_fit_is_found_wherever_it_is(monkeypatch):
    """Numbers are converted a piece at a time."""
    monkeypatch.setattr(protocol, "PIECE", 4)
    spec = TensorSpec("x", "uint8", (10,))
    for wrong in (256, -1, 1.5, None, "1", True, 10**30):
        for at in (0, 5, 9):
            data = [7] * 10
            data[at] = wrong
            body = json.dumps({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [10], "data": data}]}).encode()
            with pytest.raises(BadInput, match="no UINT8"):
                protocol.read(body, None, [spec], [])
    good = json.dumps({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [10], "data": list(range(10))}]}).encode()
    assert protocol.read(good, None, [spec], []).feed["x"].tolist() == list(range(10))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_number(monkeypatch, fast, dtype):
    """NaN and infinity become null, with either JSON library; numbers, integers and booleans keep their values."""
    if not fast:
        monkeypatch.setattr(json_codec_and_short_repr, "orjson", None)
    results = {
        "y": np.array([[np.nan, np.inf, -np.inf, 0.5]], dtype),
        "i": np.array([[2**63, 1]], np.uint64)[:, ::-1],
        "b": np.array(True),
    }
    reply = protocol.write(protocol.Ask({}, [("y", False), ("i", False), ("b", False)], None), results, "m")
    assert [out["data"] for out in json.loads(reply.body)["outputs"]] == [[None, None, None, 0.5], [1, 2**63], [True]]
    assert [out["shape"] for out in json.loads(reply.body)["outputs"]] == [[1, 4], [1, 2], []]


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype(dtype, binary):
    """Every datatype goes in and out, also with an axis of size 0."""
    for array in (np.array([[0, 1]], dtype), np.zeros((1, 0), dtype)):
        how = {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.tolist()}
        text = json.dumps({"inputs": [tensor("x", array, **how)], "parameters": {"binary_data_output": binary}}).encode()
        body, length = (text + array.tobytes(), str(len(text))) if binary else (text, None)
        spec = [TensorSpec("x", dtype, (-1, -1))]
        ask = protocol.read(body, length, spec, spec)
        assert ask.feed["x"].dtype == dtype
        assert ask.feed["x"].tolist() == array.tolist()
        reply = protocol.write(ask, ask.feed, "m")
        cut = int(reply.headers.get(LENGTH.lower(), len(reply.body)))
        out = json.loads(reply.body[:cut])["outputs"][0]
        assert (reply.body[cut:] == array.tobytes()) if binary else (out["data"] == array.ravel().tolist())


def ask_fake(client, value, *, rows=1, width=1):
    data = [value] * (rows * width)
    return client.post(
        "/v2/models/fake/infer", json={"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, width], "data": data}]}
    )


def stats(client):
    return client.get("/v2/models/fake/stats").json()["model_stats"][0]


def fake(application):
    """What the application serves as `fake`."""
    return next(route.app.served["fake"] for route in application.routes if route.path.endswith("{name}/infer"))


def signs(application):
    """Two semaphores of the one model of an application: a request was queued, a request was withdrawn."""
    batcher = fake(application).batcher
    submit, come, gone = batcher.submit, threading.Semaphore(0), threading.Semaphore(0)

    def watched(*args):
        done = submit(*args)
        done.add_done_callback(lambda done: gone.release() if done.cancelled() else None)
        come.release()
        return done

    batcher.submit = watched
    return come, gone


def wait(sign, times=1):
    for _ in range(times):
        assert sign.acquire(timeout=LONG)


def test_batching():
    """What gathers during a run shares the next; each client gets its own rows; the batch has at most max_batch rows."""
    model = Fake()
    application = app([model], max_batch=8)
    come, _ = signs(application)
    with running(application) as client, ThreadPoolExecutor(12) as pool:
        first = pool.submit(ask_fake, client, 100)
        wait(model.begun)  # the idle model took it at once
        wait(come)
        rest = [pool.submit(ask_fake, client, i) for i in range(10)]
        wait(come, 10)
        large = pool.submit(ask_fake, client, 50, rows=9)
        wait(come)
        model.gate.set()
        assert first.result().json()["outputs"][0]["data"] == [200]
        assert [f.result().json()["outputs"][0]["data"] for f in rest] == [[2 * i] for i in range(10)]
        assert large.result().json()["outputs"][0]["data"] == [100] * 9
        assert model.sizes == [1, 8, 2, 9]
        said = stats(client)
        assert (said["inference_count"], said["execution_count"]) == (20, 4)
        assert said["inference_stats"] == {"success": {"count": 12}, "fail": {"count": 0}}


def test_other_shapes_run_apart():
    """Only requests of one trailing shape share a run, and the others do not wait for ever."""
    model = Fake(shape=(-1, -1))
    application = app([model])
    come, _ = signs(application)
    with running(application) as client, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask_fake, client, 0)]
        wait(model.begun)
        wait(come)
        for i in range(6):
            futures.append(pool.submit(ask_fake, client, i, width=1 + i % 2))
            wait(come)
        model.gate.set()
        assert [f.result().json()["outputs"][0]["shape"] for f in futures[1:]] == [[1, 1 + i % 2] for i in range(6)]
        assert model.sizes == [1, 3, 3]


@pytest.mark.parametrize("size", [1, 2])
def test_fixed_first_axis(tmp_path, size):
    """A model that takes so many rows at a time is served for any number: each client gets its own, and no more."""
    model = OnnxModel(save(tmp_path / "scale.onnx", rows=size))
    with running(app([model])) as client:
        about = client.get("/v2/models/scale").json()
        assert [one["shape"][0] for one in (*about["inputs"], *about["outputs"])] == [-1] * 4
        for rows in (1, 2, 3):
            x, flags = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), np.arange(rows, dtype=np.uint8)
            ask = {"inputs": [tensor("x", x, data=x.tolist()), tensor("flags", flags, data=flags.tolist())]}
            found = unpack(client.post(INFER, json=ask))
            assert (found["logits"] == x * WEIGHTS).all()
            assert (found["same"] == flags).all()


def test_fixed_first_axis_under_load():
    """It never gets more rows than it takes."""
    fake = Fake(shape=(1, 1))
    fake.gate.set()
    with running(app([fake])) as client, ThreadPoolExecutor(4) as pool:
        assert {r.status_code for r in pool.map(lambda i: ask_fake(client, i), range(8))} == {200}
        assert fake.sizes == [1] * 8


def test_bad_neighbour():
    """The request that fails the batch gets a 500 without a traceback, its neighbours their answers."""
    model = Fake()
    application = app([model])
    come, _ = signs(application)
    with running(application) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask_fake, client, 0)
        wait(model.begun)
        wait(come)
        rest = [pool.submit(ask_fake, client, i) for i in (12, 13, 14)]
        wait(come, 3)
        model.gate.set()
        assert [f.result().status_code for f in (first, *rest)] == [200, 200, 500, 200]
        assert rest[2].result().json()["outputs"][0]["data"] == [28]
        error = rest[1].result().json()["error"]
        assert "fake failed with ZeroDivisionError" in error
        assert "secret" not in error
        assert "Traceback" not in error
        assert stats(client)["inference_stats"]["fail"] == {"count": 1}


def test_merged_rows_that_do_not_split():
    """A model that gives another number of rows for a batch has its requests run one by one."""
    model = Fake()
    model.gate.set()
    model.run_feed = lambda feed: feed["x"][:1]

    async def main():
        batcher = Batcher(model, model.outputs, max_batch=8, queue=8)
        futures = [batcher.submit({"x": np.full((1, 1), i, np.float32)}, 1) for i in range(3)]
        found = [(await f)["y"].tolist() for f in futures]
        batcher.close()
        return found

    assert asyncio.run(main()) == [[[0]], [[1]], [[2]]]


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, KeyboardInterrupt, type("PanicException", (BaseException,), {})])
def test_a_panic_of_the_model(error):
    """What is no Exception, as a panic of an extension in Rust, is the error of its request; the next one is answered."""
    model = Fake()
    model.gate.set()

    def run(feed):
        if feed["x"][0, 0] == 0:
            raise error
        return feed["x"]

    model.run_feed = run

    async def main():
        batcher = Batcher(model, model.outputs, max_batch=8, queue=8)
        with pytest.raises(ModelError):
            await batcher.submit({"x": np.zeros((1, 1), np.float32)}, 1)
        futures = [batcher.submit({"x": np.full((1, 1), i, np.float32)}, 1) for i in range(3)]
        found = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), LONG)
        batcher.close()
        return [type(each) if isinstance(each, Exception) else each["y"].tolist() for each in found]

    assert asyncio.run(main()) == [ModelError, [[1]], [[2]]]


def test_a_run_that_cannot_begin():
    """As the thread has ended: each request has an error, and none waits for ever."""
    model = Fake()

    async def main():
        batcher = Batcher(model, model.outputs, max_batch=8, queue=8)
        batcher.close()
        for _ in range(2):
            with pytest.raises(ModelError, match="could not be run"):
                await asyncio.wait_for(batcher.submit({"x": np.zeros((1, 1), np.float32)}, 1), LONG)

    asyncio.run(main())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_coroutine_that_ends_its_event_loop(error):
    """It is the error of its request alone: the loop of the model goes on."""

    async def run(x):
        if x[0] == 0:
            raise error
        return x

    spec = TensorSpec("x", "float32", (-1, 1))
    application = app([CallableModel(run, name="fake", inputs=[spec], outputs=[spec])])
    with running(application) as client:
        assert [ask_fake(client, x).status_code for x in (0, 1, 0, 2)] == [500, 200, 500, 200]


def test_queue_full():
    """A full queue is a 503 with Retry-After, at once; those that wait are answered."""
    model = Fake()
    application = app([model], queue=1)
    come, _ = signs(application)
    with running(application) as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask_fake, client, 1)
        wait(model.begun)
        second = pool.submit(ask_fake, client, 2)
        wait(come, 2)
        reply = ask_fake(client, 3)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert "busy" in reply.json()["error"]
        model.gate.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)


BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}]})
RAW = f"POST /v2/models/fake/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()


@pytest.mark.parametrize("queue", [1, 8])
def test_client_leaves(queue):
    """The work of a client that left is dropped if it has not begun, and takes no place in the queue."""
    model = Fake()
    application = app([model], queue=queue)
    come, gone = signs(application)
    with running(application) as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask_fake, client, 1)
        wait(model.begun)
        with socket.create_connection((client.base_url.host, client.base_url.port)) as hasty:
            hasty.sendall(RAW)
            wait(come, 2)
        wait(gone)
        third = pool.submit(ask_fake, client, 3)
        wait(come)
        model.gate.set()
        assert [first.result().status_code, third.result().status_code] == [200, 200]
        assert model.sizes == [1, 1]
        assert stats(client)["inference_count"] == 2


def test_client_leaves_during_its_run():
    """The answer to a client that left during the run is dropped, and the next is served."""
    model = Fake()
    application = app([model])
    _, gone = signs(application)
    with running(application) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as hasty:
            hasty.sendall(RAW)
            wait(model.begun)
        wait(gone)
        model.gate.set()
        assert ask_fake(client, 3).json()["outputs"][0]["data"] == [6]


def test_unforeseen(caplog):
    """A fault of the server's own is a 500 in JSON, and is logged."""
    model = Fake()
    application = app([model])
    fake(application).submit = lambda _: 1 / 0
    with running(application) as client:
        reply = ask_fake(client, 1)
    assert (reply.status_code, reply.json()["error"].startswith("a fault of the server")) == (500, True)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("error", [BadInput, Unfit])
def test_an_input_that_the_model_does_not_take(error):
    """It is a 400, the caller's fault: a 500 would count against this server at the breakers of its clients."""

    def refuse(_):
        raise error("too long")

    model = Fake()
    model.run_feed = refuse
    with running(app([model])) as client:
        reply = ask_fake(client, 1)
        assert (reply.status_code, reply.json()) == (400, {"error": "bad request: too long"})
        assert stats(client)["inference_stats"]["fail"]["count"] == 1


@pytest.mark.parametrize(
    "output", [[np.ones(1)], [], [{"a": 1.0}, {"b": 1.0}], [{0: object()}]], ids=["tensors", "none", "keys", "objects"]
)
def test_output_that_is_no_tensor(output):
    """It is the model's failure, and the next request is answered: neither waits for ever."""
    model = Fake()
    model.run_feed = lambda _: output
    with running(app([model])) as client:
        for _ in range(2):
            reply = ask_fake(client, 1)
            assert (reply.status_code, "error" in reply.json()) == (500, True)


def test_output_that_is_none():
    """An output that the model does not give is the model's failure."""
    model = Fake()
    model.run_feed = lambda _: {}
    with running(app([model])) as client:
        reply = ask_fake(client, 1)
    assert (reply.status_code, "'y'" in reply.json()["error"]) == (500, True)


def test_what_cannot_be_served(tmp_path):
    """No model, a name twice or with a slash, text for an input, a limit of 0: said before anyone listens."""
    for models in ([], [Fake(), Fake()], [Fake("a/b")]):
        with pytest.raises(PolicyError):
            app(models)
    with pytest.raises(PolicyError):
        app([Fake()], queue=0)
    text = Fake()
    text.outputs = (*text.outputs, TensorSpec("words", "object", (-1,)))
    app([text])
    text.inputs = (*text.inputs, TensorSpec("waves", "complex64", (-1,)))
    with pytest.raises(ModelError, match=r"its inputs .*waves.* are neither numbers nor texts"):
        app([text])
    path = save(tmp_path / "scale.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PolicyError, match="cannot listen"):
        serve([path], port=taken.getsockname()[1])


def test_a_port_belongs_to_one_from_the_beginning():
    """Also before the first one serves: a second program is refused, and does not wait for the first to listen."""
    seen = []

    def again(stop):
        port = seen[0]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(PolicyError, match=f"cannot listen on {host}:{port}: .*choose another host or port"):
                run(app([Fake()]), host, port, idle, None, lambda end: end())
        stop()

    async def idle(_):
        return None

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        seen.append(free.getsockname()[1])
    assert run(app([Fake()]), "127.0.0.1", seen[0], idle, None, again) == 0


def test_a_port_that_another_would_share():
    """Is not taken, even where its server lets others share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("0.0.0.0", 0))
        other.listen()
        with pytest.raises(PolicyError, match="cannot listen"):
            run(app([Fake()]), "127.0.0.1", other.getsockname()[1], None, None)


def test_card(tmp_path):
    """The card's name is the model's, and the output it names the only one."""
    path = save(tmp_path / "file.onnx")
    path.with_suffix(".json").write_text(json.dumps({"name": "fashion", "output": {"name": "same"}}))
    with running(app([OnnxModel(path)])) as client:
        assert [out["name"] for out in client.get("/v2/models/fashion").json()["outputs"]] == ["same"]
        assert unpack(client.post("/v2/models/fashion/infer", json=ASK))["same"].tolist() == FLAGS.tolist()


MAIN = """
import sys
from edgeroute.tools.server.serve import serve
ended = serve(sys.argv[1:], port=0, on_ready=lambda url: print(url, flush=True))
print("end", ended)
"""


def test_a_signal_before_the_server_listens_to_signals(tmp_path, monkeypatch):
    """Ends it as well, before it says that it is ready."""
    path = save(tmp_path / "scale.onnx")
    capture, ready = uvicorn.Server.capture_signals, []
    monkeypatch.setattr(uvicorn.Server, "capture_signals", lambda self: (signal.raise_signal(signal.SIGTERM), capture(self))[1])
    assert serve([path], port=0, on_ready=ready.append) == signal.SIGTERM
    assert ready == []


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_serve(tmp_path, sig):
    """`serve` takes a free port, says its URL once it listens, answers, and returns at a signal, leaving nothing."""
    path = save(tmp_path / "scale.onnx")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", MAIN, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True
    ) as process:
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=LONG) as client:
            assert client.post(INFER, json=ASK).status_code == 200
            process.send_signal(sig)  # the connection is kept alive: it must not hold the server up
            out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (0, f"end {sig:d}\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scale.onnx"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
