"""`edgeroute gateway` over the Open Inference Protocol: the shipped pair behind it, asked by `tritonclient` and by hand."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tiny
from both import running
from gateways import CHAT, LONG, post, raw, serving
from lazily import Later, needs
from test_serve import octets, save, tensor

from edgeroute import AsyncRouter, CallableModel, Egress, LlamaModel, Options, Router
from edgeroute.cloud.openinference import LENGTH
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.tools.server.serve import app
from edgeroute.types import TensorSpec

needs("tritonclient", "geventhttpclient")
triton = Later("tritonclient.http")
INFER = "/v2/models/edgeroute/infer"


@pytest.fixture(scope="module")
def images(fashion):
    return np.load(fashion / "sample.npz")["images"]


@pytest.fixture(scope="module")
def url(fashion, fashion_server):
    router = AsyncRouter(fashion / "edge.int8.onnx", f"{fashion_server}/v2/models/fashion-large", threshold=0.85)
    with serving(router, names=["policy"]) as url:
        yield url


@pytest.fixture
def client(url):
    with triton.InferenceServerClient(url.removeprefix("http://"), concurrency=2, network_timeout=60) as client:
        yield client


def given(images):
    one = triton.InferInput("image", list(images.shape), "UINT8")
    one.set_data_from_numpy(images)
    return [one]


def test_metadata(client, images):
    """As a model that takes what the edge takes, any number of rows at a time."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("policy")
    assert client.is_model_ready("edgeroute", "1")
    about = client.get_model_metadata("edgeroute")
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert [out["name"] for out in about["outputs"]] == ["label", "confidence", "source", "degraded", "reason"]
    assert not client.is_model_ready("other")


def test_rows(client, images, fashion):
    """Binary, each row routed by itself: the labels are those of the side that answered."""
    result = client.infer("edgeroute", given(images[:100]))
    labels, sources = result.as_numpy("label"), result.as_numpy("source")
    assert {*sources} == {b"edge", b"cloud"}
    edge = load(fashion / "edge.int8.onnx")
    names = [edge.labels[i] for i in edge.run(list(images[:100])).argmax(axis=1)]
    sure = sources == b"edge"
    assert [name.encode() for name, is_sure in zip(names, sure, strict=True) if is_sure] == [*labels[sure]]
    confidences = result.as_numpy("confidence")
    assert (confidences[sure] >= 0.85).all()
    assert confidences.dtype == np.float32
    assert not result.as_numpy("degraded").any()
    assert all(b"cloud" in one for one in result.as_numpy("reason")[~sure])


def test_one_row(client, images):
    """Also in JSON; and where it came from is in the headers, too."""
    one = triton.InferInput("image", [1, 28, 28], "UINT8")
    one.set_data_from_numpy(images[:1], binary_data=False)
    result = client.infer("policy", [one], outputs=[triton.InferRequestedOutput("label", binary_data=False)], request_id="7")
    assert [*result.as_numpy("label")] == ["Ankle boot"]
    assert result.get_response()["id"] == "7"
    assert [out["name"] for out in result.get_response()["outputs"]] == ["label"]


def test_headers(url, images):
    """Of a single row: source, confidence and reason."""
    reply = httpx.post(
        url + INFER,
        **octets({"inputs": [tensor("image", images[:1], parameters={"binary_data_size": 784})]}, images[:1]),
        timeout=LONG,
    )
    assert (reply.headers["x-edgeroute-source"], LENGTH in reply.headers) == ("edge", False)
    assert reply.json()["outputs"][0]["data"] == ["Ankle boot"]
    assert float(reply.headers["x-edgeroute-confidence"]) >= 0.85


def test_options(url, images):
    """Mode and data class, as for chats."""
    body = {"inputs": [tensor("image", images[:3], data=images[:3].tolist())]}
    reply = httpx.post(url + INFER, json=body, headers={"x-edgeroute-mode": "only_cloud"}, timeout=60)
    assert reply.json()["outputs"][2]["data"] == ["cloud"] * 3
    refused = httpx.post(url + INFER, json=body, headers={"x-edgeroute-mode": "cloud"}, timeout=LONG)
    assert (refused.status_code, "x-edgeroute-mode" in refused.json()["error"]) == (400, True)


BAD = {
    "another model": ("/v2/models/other/infer", {}, 404, "no model 'other'"),
    "another version": ("/v2/models/edgeroute/versions/2/infer", {}, 404, "no version"),
    "no JSON": (INFER, b"{", 400, "not JSON"),
    "no rows": (INFER, {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [0, 28, 28], "data": []}]}, 400, "number of rows"),
    "another shape": (INFER, {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}]}, 400, "reshape"),
    "an output that there is not": (
        INFER, {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}], "outputs": [{"name": "x"}]},
        400, "no output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request(url, what):
    """Is told in the protocol's form."""
    path, body, status, said = BAD[what]
    reply = httpx.post(url + path, content=body if isinstance(body, bytes) else json.dumps(body).encode(), timeout=LONG)
    assert (reply.status_code, [*reply.json()]) == (status, ["error"])
    assert said in reply.json()["error"]


def test_the_clients_own_errors(client, images):
    """`tritonclient` raises them, with the message."""
    from tritonclient.utils import InferenceServerException

    one = triton.InferInput("image", [1, 28, 28], "FP32").set_data_from_numpy(images[:1].astype(np.float32))
    with pytest.raises(InferenceServerException, match="the model takes UINT8"):
        client.infer("edgeroute", [one])


def test_several_inputs_and_values_that_are_no_labels():
    """A mapping goes to the router; what is no text is JSON, and a missing confidence no number."""

    def f(x):
        return {"sum": float(x["a"].sum() + x["b"])}, None

    model = CallableModel(f, inputs=[TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "int32", (-1,))])
    body = {
        "inputs": [
            tensor("a", np.ones((2, 2), np.float32), data=[1, 1, 1, 1]),
            tensor("b", np.array([3, 4], np.int32), data=[3, 4]),
        ]
    }
    with serving(AsyncRouter(model, threshold=0.5, options=Options(no_confidence="accept"))) as url:
        reply = httpx.post(url + INFER, json=body, timeout=LONG).json()
    found = {out["name"]: out["data"] for out in reply["outputs"]}
    assert [json.loads(text) for text in found["label"]] == [{"sum": 5.0}, {"sum": 6.0}]
    assert found["confidence"] == [None, None]


def test_a_label_that_utf_8_lacks():
    """As of a function that reads badly decoded texts: a binary reply has another character in its place."""
    model = CallableModel(lambda _: ("a\ud800", 0.9), inputs=[TensorSpec("x", "float32", (-1, 1))])
    ask = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}], "outputs": [{"name": "label"}]}
    with serving(AsyncRouter(model)) as url:
        reply = httpx.post(url + INFER, json={**ask, "parameters": {"binary_data_output": True}}, timeout=LONG)
    assert (reply.status_code, reply.content[-6:]) == (200, b"\2\0\0\0a?")


def test_texts(tmp_path):
    """Of an ONNX model of texts, [n, 1], as JSON, binary by a client of Triton's, and by edgeroute from `serve`."""
    model = tiny.sentiment(tmp_path / "sentiment.onnx")
    texts = np.array([["good"], ["bäd"], [""]], object)
    with serving(AsyncRouter(model, threshold=0.0)) as url:
        about = httpx.get(f"{url}/v2/models/edgeroute", timeout=LONG).json()
        assert about["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
        body = {"inputs": [{"name": "text", "shape": [3, 1], "datatype": "BYTES", "data": [["good"], ["bäd"], [""]]}]}
        reply = httpx.post(url + INFER, json=body, timeout=LONG).json()
        assert next(out["data"] for out in reply["outputs"] if out["name"] == "label") == ["1", "0", "0"]
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            one = triton.InferInput("text", [3, 1], "BYTES")
            one.set_data_from_numpy(texts)
            assert [*client.infer("edgeroute", [one]).as_numpy("label")] == [b"1", b"0", b"0"]
        for wrong in ({"data": [1, 2, 3]}, {"data": ["a"]}, {"data": "a"}, {"datatype": "FP32", "data": [1.0, 2.0, 3.0]}):
            body["inputs"][0].update({"datatype": "BYTES", **wrong})
            assert httpx.post(url + INFER, json=body, timeout=LONG).status_code == 400
        for sent in (b"\x01\0\0\0a" * 2, b"\x01\0\0\0a" * 4, b"\x09\0\0\0a", b"\x01\0\0\0\xff" * 3):
            head = {"name": "text", "shape": [3, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(sent)}}
            binary = octets({"inputs": [head]}, np.frombuffer(sent, np.uint8))
            assert httpx.post(url + INFER, timeout=LONG, **binary).status_code == 400
    with (
        running(app([load(model)])) as client,
        Router(None, f"{client.base_url}/v2/models/sentiment", mode="only_cloud") as router,
    ):
        assert [router.infer(text).value for text in ("good", "bäd")] == [1, 0]
        assert [answer.value for answer in router.infer_many(["good", "bad", "good"])] == [1, 0, 1]


def test_what_takes_no_tensors():
    """A router of texts has no model here, and says where chats are."""
    with serving(AsyncRouter(lambda x: ("ok", 0.9))) as url:
        for path in ("/v2/models/edgeroute", "/v2/models/edgeroute/ready"):
            reply = httpx.get(url + path, timeout=LONG)
            assert (reply.status_code, "send chats to /v1" in reply.json()["error"]) == (404, True)
        assert raw(url, post(INFER, {"inputs": []}, "Connection: close")).startswith(b"HTTP/1.1 404 ")


def test_a_language_model_takes_no_tensors(tmp_path):
    """Which is told without loading it: the file is empty."""
    (tmp_path / "none.gguf").touch()
    with serving(AsyncRouter(LlamaModel(tmp_path / "none.gguf"))) as url:
        reply = httpx.get(f"{url}/v2/models/edgeroute", timeout=LONG)
    assert (reply.status_code, "send chats to /v1" in reply.json()["error"]) == (404, True)


def test_a_load_that_hangs(tmp_path, monkeypatch):
    """Holds up those alone who ask for that model's inputs, and not the end of the server."""
    ort = pytest.importorskip("onnxruntime")
    begun, gate, ended, opened = threading.Event(), threading.Event(), [], ort.InferenceSession
    monkeypatch.setattr("edgeroute.router.engine.LOCKED_S", 0.0)

    def hangs(*args, **options):
        begun.set()
        gate.wait(LONG)
        ended.append(True)
        return opened(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", hangs)
    model = save(tmp_path / "scale.onnx")
    try:
        with ThreadPoolExecutor(1) as clients, serving(AsyncRouter(model), grace_s=1) as url:
            waits = clients.submit(httpx.get, f"{url}/v2/models/edgeroute", timeout=LONG)
            assert begun.wait(LONG)
            chat = {**CHAT, "messages": [{"role": "user", "content": "x" * 100_000}]}
            assert httpx.post(f"{url}/v1/messages/count_tokens", json=chat, timeout=LONG).status_code == 200
            assert not waits.done()
        assert ended == []
    finally:
        gate.set()
    assert waits.result().status_code == 503


def test_no_answer_and_what_stays_here(images):
    """503 where nobody answered; a class that never leaves is answered by the edge however unsure."""

    def down(_):
        raise ConnectionError("the link is down")

    edge = CallableModel(lambda x: ("edge", 0.1), inputs=[TensorSpec("x", "uint8", (-1, 28, 28))])
    rules = Egress(never_leave=["medical"], may_leave=["shop"])
    body = {"inputs": [tensor("x", images[:2], data=images[:2].tolist())]}
    with serving(AsyncRouter(edge, down, threshold=0.5, offline="raise", egress=rules)) as url:
        reply = httpx.post(url + INFER, json=body, headers={"x-edgeroute-data-class": "shop"}, timeout=LONG)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        stays = httpx.post(url + INFER, json=body, headers={"x-edgeroute-data-class": "medical"}, timeout=LONG)
        assert stays.json()["outputs"][0]["data"] == ["edge", "edge"]


def test_another_model_of_the_policy(fashion, tmp_path):
    """Once the policy is read again, what a request has is what the new model takes."""
    policy = tmp_path / "policy.toml"
    policy.write_text(f'mode = "only_edge"\n[edge]\npath = "{fashion / "edge.int8.onnx"}"\n')
    router = AsyncRouter.from_policy(policy)
    with serving(router) as url:
        assert [one["name"] for one in httpx.get(f"{url}/v2/models/edgeroute", timeout=LONG).json()["inputs"]] == ["image"]
        policy.write_text(f'mode = "only_edge"\n[edge]\npath = "{save(tmp_path / "scale.onnx")}"\noutput = "logits"\n')
        router.reload()
        assert [one["name"] for one in httpx.get(f"{url}/v2/models/edgeroute", timeout=LONG).json()["inputs"]] == ["x", "flags"]


def test_an_edge_that_cannot_be_loaded(fashion, fashion_server, images, tmp_path):
    """What a request has is not known then, which is told; where it was known before, the cloud answers."""
    policy, broken = tmp_path / "policy.toml", tmp_path / "broken.onnx"
    broken.write_bytes((fashion / "edge.int8.onnx").read_bytes()[:5000])
    cloud = f'[cloud]\nurl = "{fashion_server}/v2/models/fashion-large"\n'
    body = {"inputs": [tensor("image", images[:1], data=images[:1].tolist())]}
    policy.write_text(f'threshold = 0.5\n[edge]\npath = "{broken}"\n{cloud}')
    with serving(AsyncRouter.from_policy(policy)) as url:
        reply = httpx.post(url + INFER, json=body, timeout=LONG)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert "the inputs of the edge model are unknown" in reply.json()["error"]
    policy.write_text(f'threshold = 0.5\n[edge]\npath = "{fashion / "edge.int8.onnx"}"\n{cloud}')
    router = AsyncRouter.from_policy(policy)
    with serving(router) as url:
        assert httpx.get(f"{url}/v2/models/edgeroute", timeout=LONG).status_code == 200
        policy.write_text(f'threshold = 0.5\n[edge]\npath = "{broken}"\n{cloud}')
        router.reload()
        reply = httpx.post(url + INFER, json=body, timeout=LONG).json()
        assert next(one["data"] for one in reply["outputs"] if one["name"] == "source") == ["cloud"]
