"""One contract for every real server of the Open Inference Protocol: Triton, KServe, MLServer, Ray Serve (`make test-servers`)."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.request
from urllib.parse import urlsplit

import numpy as np
import pytest
import routes
import trustme
from both import LONG, Tasks, Threads, unsure
from real_servers import ENVIRONMENTS, Front, Proxy, contract, real_server

from edgeroute import AsyncRouter, CallableModel, OpenInference, OpenInferenceGrpc, Router, Secret
from edgeroute.confidence import calibrate
from edgeroute.tools.cli.inspect_oip_by_sample import Described

pytestmark = pytest.mark.matrix
BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
WAYS = pytest.mark.parametrize("way", ["json", "binary", "grpc"])
NO_BINARY, NO_GRPC, NO_VERSIONS = {"mlserver"}, {"ray"}, {"kserve"}
ROWS = np.array([[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 1, 0]], "float32")
NAMES = ["red", "green", "blue"]
VALUES = {
    "BOOL": [True, False, True], "INT8": [-128, 0, 127], "INT16": [-(2**15), 0, 2**15 - 1], "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1], "UINT8": [0, 1, 255], "UINT16": [0, 1, 2**16 - 1], "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1], "FP16": [-65504, 0.5, 6e-8], "FP32": [-3.4e38, 0.1, 1e-45], "FP64": [-1.7e308, 0.1, 5e-324],
    "BYTES": ["", "a b\n", "\N{SNOWMAN}" * 1000],
}  # fmt: skip
"""The ends of each datatype."""


@pytest.fixture(scope="module", params=["triton", "kserve", "mlserver", "ray"])
def server(request, tmp_path_factory):
    with real_server(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def endpoint(server, way, model="linear", *, url=None, **options):
    """An endpoint for a model, or a skip where the server does not speak that."""
    if way == "grpc":
        if server.name in NO_GRPC:
            pytest.skip(f"{server.name} has no gRPC")
        return OpenInferenceGrpc(url or server.grpc, model=model, **options)
    if way == "binary" and server.name in NO_BINARY:
        pytest.skip(f"{server.name} takes no binary tensors over HTTP")
    return OpenInference(url or server.http, model=model, binary={"json": False, "binary": True}.get(way, way), **options)


def asked(cloud, x, kind=Threads, **options):
    """The answer of that cloud; what else may answer would say so."""
    with kind(unsure, cloud, threshold=0.5, **options) as router:
        answer = router.infer(x)
        assert answer.source == "cloud", answer.reason
        return answer


def refused(cloud, x, kind=Threads, **options):
    """Why the cloud gave none."""
    with kind(unsure, cloud, threshold=0.5, **options) as router:
        answer = router.infer(x)
        assert answer.source == "edge"
        return routes.failures(answer)


@BOTH
@WAYS
def test_an_answer(server, way, kind):
    """Scores, of the version that the server chooses."""
    first = server.name in NO_VERSIONS
    answer = asked(endpoint(server, way, output="scores", labels=NAMES), ROWS[0], kind)
    assert answer.value == ("red" if first else "green")
    text = asked(endpoint(server, way, output="name", kind="answers"), ROWS[0], kind)
    assert text.value == ("red" if first else "green" if np.array([-3, 0, 0]).argmax() == 1 else "blue")


@WAYS
def test_the_edges_answer_disturbs_nobody(server, way):
    """A parameter that no server knows, in every way of asking: the answers are as without it."""
    cloud = endpoint(server, way, output="scores", labels=NAMES, send_edge=True)
    with Router(unsure, cloud, threshold=0.5) as router:
        answers = [router.infer(ROWS[0]), *router.infer_many(list(ROWS))]
        assert {answer.source for answer in answers} == {"cloud"}, answers[0].reason
        plain = asked(endpoint(server, way, output="scores", labels=NAMES), ROWS[0])
        assert answers[0].value == answers[1].value == plain.value


@BOTH
@WAYS
def test_more_rows_than_the_largest_batch(server, way, kind):
    """Triton takes 64 rows of this model at once, by its configuration; the others take all."""
    rows = [ROWS[i % 3] for i in range(132)]
    with kind(unsure, endpoint(server, way, output="scores", labels=NAMES), threshold=0.5) as router:
        few, many = router.infer_many(rows[:33]), router.infer_many(rows)
    assert {answer.source for answer in [*few, *many]} == {"cloud"}, routes.failures(many[-1])
    assert [answer.value for answer in many] == [few[i % 3].value for i in range(132)]


@BOTH
@WAYS
def test_versions(server, way, kind):
    """By the URL or by name; KServe has none: it refuses them over HTTP, and ignores them over gRPC."""
    for version, value in (("1", "red"), ("2", "green")):
        made = endpoint(server, way, output="scores", labels=NAMES, version=version)
        same = type(made)(f"{made.address.origin}/v2/models/linear/versions/{version}", output="scores", labels=NAMES)
        assert same.path == made.path
        if server.name in NO_VERSIONS:
            assert way == "grpc" or "cloud refused 501" in refused(made, ROWS[0], kind)
            continue
        for cloud in (made, same):
            assert asked(cloud, ROWS[0], kind).value == value
            assert cloud.served.startswith(f"version:{version} described:")
            assert not cloud.served.endswith("?")


def test_the_version_that_answers_is_known(server):
    """By metadata, or else by the first answer."""
    for way in ("json", "grpc"):
        if way == "grpc" and server.name in NO_GRPC:
            continue
        cloud = endpoint(server, way, output="scores", labels=NAMES)
        asked(cloud, ROWS[0])
        assert cloud.served.startswith("version:?" if server.name in NO_VERSIONS else "version:2")


@WAYS
def test_every_datatype(server, way):
    """To its ends, there and back, as several inputs of one model."""
    x = {f"x_{name.lower()}": np.array(given, contract.NUMPY[name]) for name, given in VALUES.items() if name != "FP16"}
    for name, given in x.items():
        found = asked(endpoint(server, way, "types", output=name.replace("x", "y", 1), kind="value"), x).value
        assert np.array_equal(np.asarray(found), given), name


@WAYS
def test_half_precision(server, way):
    """FP16, which Triton and KServe take as binary alone."""
    x = np.array(VALUES["FP16"], "float16")
    cloud = endpoint(server, way, "half", kind="value", retries=0)
    if way == "json" and server.name in {"triton", "kserve"}:
        assert "cloud refused 400" in refused(cloud, x)
    else:
        assert np.array_equal(asked(cloud, x).value, x)


@BOTH
@WAYS
def test_a_batch(server, way, kind):
    """In one call."""
    with kind(unsure, endpoint(server, way, output="name", kind="answers"), threshold=0.5) as router:
        found = [answer.value for answer in router.infer_many(list(ROWS) * 5)]
    assert found == (["red", "green", "blue"] if server.name in NO_VERSIONS else ["green", "red", "red"]) * 5


def test_all_outputs(server):
    """By name."""
    cloud = Described(f"{server.http}/v2/models/linear")
    with Router(unsure, cloud, threshold=0.5) as router:
        found = router.infer(ROWS[0]).outputs
    assert set(found) == {"scores", "name"}
    assert [spec.shape for spec in cloud.specs] == [(-1, 3), (-1, 1)]


def test_binary_is_probed(server):
    """No list of extensions says it."""
    cloud = endpoint(server, "auto", output="scores", labels=NAMES)
    with Router(unsure, cloud, threshold=0.5) as router:
        assert router.check().ok
        assert cloud.binary is (server.name not in NO_BINARY)
        assert router.infer(ROWS[0]).source == "cloud"


@BOTH
@WAYS
def test_errors(server, way, kind):
    """An unknown model, a broken one, and an input that is not what it takes any more."""
    assert "cloud refused 404" in refused(endpoint(server, way, "unknown", retries=0), np.ones(1, "float32"), kind)
    assert "cloud refused 500" in refused(endpoint(server, way, "broken", retries=0), np.ones(1, "float32"), kind)
    stale = endpoint(server, way, output="scores", labels=NAMES, retries=0)
    known = {"inputs": [["z", "float32", [-1, 4]]], "outputs": {}, **({} if way == "grpc" else {"binary": way == "binary"})}
    stale.recall(known)
    with kind(unsure, stale, threshold=0.5) as router:
        first = router.infer(ROWS[0])
        assert first.source == "edge"
        assert routes.status(first) in {400, 422, 500}, first.reason
        assert router.infer(ROWS[0]).source == "cloud"  # its metadata was fetched again


@BOTH
@WAYS
def test_a_deadline_ends_a_slow_call(server, way, kind):
    """And the server goes on to serve others."""
    cloud = endpoint(server, way, "slow", kind="value")
    with kind(unsure, cloud, threshold=0.5) as router:
        assert router.infer(np.zeros(1, "float32")).source == "cloud"
        assert router.infer(np.full(1, 2, "float32"), deadline=0.2).source == "edge"
    assert asked(endpoint(server, way, output="scores", labels=NAMES), ROWS[0], kind).source == "cloud"


@pytest.mark.parametrize("way", ["auto", "grpc"])
def test_many_at_once(server, way):
    """On one event loop: each gets its own answer."""

    async def main():
        version = None if server.name in NO_VERSIONS else "1"
        cloud = endpoint(server, way, output="scores", labels=NAMES, version=version, timeout_s=LONG)  # a busy machine needs it
        async with AsyncRouter(unsure, cloud, threshold=0.5, deadline=LONG) as router:
            rows = [ROWS[i % 3] for i in range(64)]
            answers = await asyncio.gather(*map(router.infer, rows))
            assert [a.value for a in answers] == [NAMES[i % 3] for i in range(64)], {a.reason for a in answers}

    asyncio.run(main())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A test authority: the files of itself and of a client's certificate and key, and contexts with and without mTLS."""
    folder, made = tmp_path_factory.mktemp("authority"), trustme.CA()
    own, cert = made.issue_cert("client.test"), made.issue_cert("localhost")
    made.cert_pem.write_to_path(folder / "authority.pem")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")

    def context(*, mutual):
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert.configure_cert(found)
        found.set_alpn_protocols(["h2", "http/1.1"])
        if mutual:
            made.configure_trust(found)
            found.verify_mode = ssl.CERT_REQUIRED
        return found

    return folder, context


@BOTH
@WAYS
def test_tls_mutual_tls_and_a_proxy(server, way, kind, authority, monkeypatch):
    """As before a server in production: TLS ends at a gateway, which may ask for a certificate; a proxy is on the way out."""
    folder, context = authority
    endpoint(server, way)
    port = urlsplit(server.grpc if way == "grpc" else server.http).port
    trust = {"verify": folder / "authority.pem", "retries": 0, "output": "scores", "labels": NAMES}
    mine = {**trust, "cert": (folder / "cert.pem", folder / "key.pem")}
    front, strict, proxy = Front(port, context(mutual=False)), Front(port, context(mutual=True)), Proxy()
    try:
        for gate, options in ((front, trust), (strict, mine)):
            url = f"https://localhost:{gate.port}"
            assert asked(endpoint(server, way, url=url, **options), ROWS[0], kind).source == "cloud"
        assert "localhost" in refused(endpoint(server, way, url=f"https://localhost:{strict.port}", **trust), ROWS[0], kind)
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert asked(endpoint(server, way, url=f"https://localhost:{front.port}", **trust), ROWS[0], kind).source == "cloud"
        assert proxy.asked[0] == f"CONNECT localhost:{front.port} HTTP/1.1"
    finally:
        for one in (front, strict, proxy):
            one.close()


@BOTH
@pytest.mark.parametrize("way", ["json", "binary"])
def test_a_token(server, way, kind):
    """At a gateway before the server."""
    front = Front(urlsplit(server.http).port, token="the-right-one")
    try:
        options = {"url": front.url, "output": "scores", "labels": NAMES, "retries": 0}
        assert asked(endpoint(server, way, **options, api_key=Secret("the-right-one")), ROWS[0], kind).source == "cloud"
        reason = refused(endpoint(server, way, **options, api_key=Secret("another")), ROWS[0], kind)
        assert re.search(r"answered 401.*\(is api_key set, and current\?\)", reason)
    finally:
        front.close()


# what one server alone has, or can be brought to


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    with real_server("triton", tmp_path_factory.mktemp("triton-alone")) as made:
        yield made


def load(triton, model, action="load", **config):
    """Loads a model, with another configuration, or unloads it."""
    body = {"parameters": {"config": json.dumps(config)}} if config else {}
    request = urllib.request.Request(
        f"{triton.http}/v2/repository/models/{model}/{action}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LONG) as reply:
        assert reply.status == 200


@pytest.mark.parametrize("way", ["binary", "grpc"])
def test_bfloat16(triton, way):
    """A float32 there and back, rounded to the nearest that has eight bits."""
    x = np.array([1.0, 1.00390625, -3.3895314e38], "float32")
    found = asked(endpoint(triton, way, "brain", kind="value"), x).value
    assert np.array_equal(found, np.array([1.0, 1.0, -3.3895314e38], "float32"))


@pytest.mark.parametrize("way", ["binary", "grpc"])
def test_a_full_queue(triton, way):
    """503, or UNAVAILABLE: it may pass, so it is retried where there is time."""
    cloud = endpoint(triton, way, "queued", kind="value", retries=0)

    async def main():
        async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
            await router.infer(np.zeros(1, "float32"))
            return await asyncio.gather(*(router.infer(np.full(1, 0.5, "float32")) for _ in range(8)))

    answers = asyncio.run(main())
    assert {a.source for a in answers} == {"cloud", "edge"}
    assert any("cloud refused 503" in routes.failures(a) for a in answers), {a.reason for a in answers}


@pytest.mark.parametrize("way", ["json", "binary", "grpc"])
def test_an_unloaded_model(triton, way):
    """Is not found, and is found again."""
    cloud = endpoint(triton, way, "broken", retries=0)
    load(triton, "broken", "unload")
    try:
        with Router(unsure, cloud, threshold=0.5) as router:
            assert not router.check().ok
            assert routes.status(router.infer(np.ones(1, "float32"))) in {400, 404}
    finally:
        load(triton, "broken")


@pytest.mark.parametrize("way", ["json", "binary", "grpc"])
def test_another_version_is_served(triton, way):
    """A certificate that was made for version 1 says so once the server has version 2."""
    fields = {"name": "linear", "backend": "python", "max_batch_size": 64}
    fields["input"] = [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    fields["output"] = [
        {"name": "scores", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "name", "data_type": "TYPE_STRING", "dims": [1]},
    ]
    edge = CallableModel(lambda x: ("red", float(x[3])), version="1")
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=2000)
    right = rng.uniform(size=2000) < 0.5 + scores / 2
    sure, other = np.array([0, 0, 0, 1], "float32"), np.zeros(4, "float32")
    load(triton, "linear", **fields, version_policy={"specific": {"versions": [1]}})
    try:
        cloud = endpoint(triton, way, output="scores", labels=NAMES)
        with Router(edge, cloud, threshold=0.5) as router:
            assert router.check().ok
            made = calibrate(scores, right, rng.uniform(size=2000) < 0.97, max_loss=0.02, fingerprints=router.fingerprints())
        with Router(edge, endpoint(triton, way, output="scores", labels=NAMES), threshold=made) as router:
            assert router.infer(other).source == "cloud"
            assert not routes.uncalibrated([router.infer(sure) for _ in range(200)][-1])
            load(triton, "linear", **fields, version_policy={"specific": {"versions": [2]}})
            assert router.infer(other).source == "cloud"
            said = routes.label([router.infer(sure) for _ in range(200)][-1])
        assert re.findall(r"version (\d)", said) == ["2"]
    finally:
        load(triton, "linear")


def test_an_answer_of_nothing(tmp_path):
    """With NumPy 2 in its Python backend this Triton answers 200 with no bytes: that is no answer."""
    extra = ENVIRONMENTS / "triton" / "numpy2"
    if not extra.exists():
        pytest.skip("no NumPy 2 for Triton: make server-triton")
    with real_server("triton", tmp_path, python=extra / "bin") as made:
        for way in ("binary", "grpc", "json"):
            reason = refused(endpoint(made, way, output="scores", labels=NAMES, retries=0), ROWS[0])
            assert ("cloud refused 500" if way == "json" else "another number of bytes than its shape says: 0 came") in reason
