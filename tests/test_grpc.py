"""`OpenInferenceGrpc` against a real gRPC server: what goes over the wire, cancellation, time limits, errors, TLS."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from concurrent import futures
from time import monotonic

import numpy as np
import pytest
import routes
import trustme
from both import LONG, Tasks, Threads, unsure, wait_for

from edgeroute import (
    AsyncRouter,
    BadReply,
    CallableModel,
    OpenInferenceGrpc,
    Options,
    PolicyError,
    Refused,
    Router,
    Secret,
    TimedOut,
    Unreachable,
)
from edgeroute.cloud import grpc_calls_as_http_replies as grpc_channels
from edgeroute.cloud.grpc import CONTENTS, message_classes
from edgeroute.confidence import Certificate, calibrate
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.testing import CannedServer, Relay, http_reply

grpc = pytest.importorskip("grpc")
BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
X = np.array([1, 2, 3], "float32")


class Server(grpc.GenericRpcHandler):
    """A model `m` that takes `x` [-1, 3] and gives `y`, its double.

    Attributes:
        version: that it says it has.
        error: a status and text that it answers; None: none.
        raw: whether it answers raw bytes.
        hold: whether it answers nothing until the call is over; `over` is set then.
        seen: requests, with their metadata.
    """

    def __init__(self, credentials=None, datatype="FP32"):
        self.version, self.error, self.raw, self.hold, self.datatype = "1", None, True, False, datatype
        self.answer, self.parameters = None, {}
        self.arrived, self.over, self.seen = threading.Event(), threading.Event(), []
        self.messages = message_classes()
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 10_000)])
        self._server.add_generic_rpc_handlers((self,))
        bind = self._server.add_insecure_port if credentials is None else lambda a: self._server.add_secure_port(a, credentials)
        self.port = bind("127.0.0.1:0")
        self.url = f"http{'' if credentials is None else 's'}://localhost:{self.port}"
        self._server.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stop(0).wait()

    def service(self, details):
        """What answers that method."""
        methods = {"ModelReady": self._ready, "ModelMetadata": self._metadata, "ModelInfer": self._infer}
        return grpc.unary_unary_rpc_method_handler(methods[details.method.rpartition("/")[2]])

    def _ready(self, request, context):
        return self.messages["Ready"](ready=self.version != "").SerializeToString()

    def _metadata(self, request, context):
        said = self.messages["Metadata"](name="m", versions=[self.version], platform="test")
        said.inputs.add(name="x", datatype=self.datatype, shape=[-1, 3])
        said.outputs.add(name="y", datatype=self.datatype, shape=[-1, 3])
        for key, value in self.parameters.items():
            said.parameters.add(key=key, value=value)
        return said.SerializeToString()

    def _infer(self, request, context):
        self.seen.append((request, dict(context.invocation_metadata())))
        ended = threading.Event()
        context.add_callback(lambda: (ended.set(), self.over.set()))
        self.arrived.set()
        if self.hold:
            ended.wait(3 * LONG)
        if self.error is not None:
            code, text, *trailing = self.error
            context.set_trailing_metadata(tuple(trailing))
            context.abort(code, text)
        if self.answer is not None:
            return self.answer
        asked = self.messages["Request"].FromString(request)
        said = self.messages["Response"](model_name="m", model_version=asked.model_version or self.version)
        output = said.outputs.add(name="y", datatype=self.datatype, shape=asked.inputs[0].shape)
        if self.datatype == "BYTES":
            said.raw.append(asked.raw[0])
            return said.SerializeToString()
        values = np.frombuffer(asked.raw[0], "float32") * 2
        if self.raw:
            said.raw.append(values.tobytes())
        else:
            getattr(output.contents, CONTENTS[self.datatype]).extend(values)
        return said.SerializeToString()


@pytest.fixture
def server():
    with Server() as made:
        yield made


def asked(server, kind=Threads, x=X, **options):
    """The answer of a router whose cloud that is."""
    with kind(unsure, endpoint(server, **options), threshold=0.5) as router:
        return router.infer(x)


def endpoint(server, **options):
    return OpenInferenceGrpc(server.url, **{"model": "m", "kind": "value", "retries": 0, **options})


def failure(server, kind=Threads, **options):
    """What the cloud failed with."""
    with kind(unsure, endpoint(server, **options), threshold=0.5) as router:
        answer = router.infer(X)
        assert answer.source == "edge"
        return routes.failures(answer)


@BOTH
@pytest.mark.parametrize("raw", [True, False])
def test_an_answer(server, kind, raw):
    """By raw contents, or by values in their field; inputs are raw."""
    server.raw = raw
    answer = asked(server, kind)
    assert answer.source == "cloud"
    assert np.array_equal(answer.value, X * 2)


@BOTH
def test_a_batch_is_one_call(server, kind):
    """Its rows come back in order."""
    with kind(unsure, endpoint(server), threshold=0.5) as router:
        answers = router.infer_many([X, X + 1])
    assert [list(a.value) for a in answers] == [[2, 4, 6], [4, 6, 8]]
    assert len(server.seen) == 1


@BOTH
def test_texts_and_bytes(kind):
    """A caller gives text or bytes of any length, and gets text."""
    with Server(datatype="BYTES") as server:
        answer = asked(server, kind, ["a", b"", "\N{SNOWMAN}" * 100])
        assert list(answer.value) == ["a", "", "\N{SNOWMAN}" * 100]
        assert "expected texts or bytes" in routes.error(asked(server, kind, [1, 2, 3]))


@BOTH
def test_metadata_and_idempotency_key(server, kind):
    """Credentials and headers go as metadata, in lower case."""
    asked(server, kind, api_key=Secret("the-key"), headers={"X-Tenant": "a"})
    _, metadata = server.seen[0]
    assert (metadata["authorization"], metadata["x-tenant"]) == ("Bearer the-key", "a")
    assert metadata["idempotency-key"]


@BOTH
def test_the_server_sees_a_call_that_is_cut(server, kind, due):
    """By the deadline; it is told so, and need not go on."""
    server.hold = True
    with kind(unsure, endpoint(server), threshold=0.5, deadline=due(server.arrived.is_set)) as router:
        assert router.infer(X).source == "edge"
        assert server.over.wait(LONG)


def test_a_call_with_a_deadline_takes_no_thread(server):
    """It ends by itself, in its caller's thread, once there is a client."""
    with Router(unsure, endpoint(server), threshold=0.5) as router:
        assert router.infer(X).source == "cloud"
        assert router.infer(X, deadline=LONG).source == "cloud"
        assert len(router.engine.cloud_threads) == 0


def test_a_cancelled_task_cancels_its_call(server):
    """At once, and no other call."""

    async def main():
        server.hold = True
        async with AsyncRouter(unsure, endpoint(server, timeout_s=9 * LONG), threshold=0.5) as router:
            task = asyncio.create_task(router.infer(X))
            await asyncio.to_thread(server.arrived.wait, LONG)
            assert not server.over.is_set()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.over.wait, LONG)
            server.hold = False
            assert (await router.infer(X)).source == "cloud"

    asyncio.run(main())


def test_a_hedge_that_lost_is_cancelled(server):
    """In threads, where nothing waits for it."""
    server.hold = True

    def edge(_):
        assert server.arrived.wait(LONG)
        return "edge", 0.9

    with Router(edge, endpoint(server, timeout_s=9 * LONG), threshold=0.5, options=Options(hedge_after=0)) as router:
        assert router.infer(X).source == "edge"
        assert server.over.wait(LONG)
        server.hold = False


CODE = grpc.StatusCode
ERRORS = {
    "unavailable": (CODE.UNAVAILABLE, "service unavailable", "answered 503: UNAVAILABLE"),
    "exhausted": (CODE.RESOURCE_EXHAUSTED, "too many requests", "answered 429: RESOURCE_EXHAUSTED"),
    "unknown model": (CODE.NOT_FOUND, "no such model", r"answered 404.*\(is the URL right, and the model loaded\?\)"),
    "bad input": (CODE.INVALID_ARGUMENT, "unexpected shape", "answered 400: INVALID_ARGUMENT"),
    "no key": (CODE.UNAUTHENTICATED, "invalid token", r"answered 401.*\(is api_key set, and current\?\)"),
    "forbidden": (CODE.PERMISSION_DENIED, "denied", "answered 403"),
    "broken": (CODE.INTERNAL, "internal error", "answered 500: INTERNAL"),
    "an echo": (CODE.INTERNAL, "secret words of an input", "answered 500: INTERNAL$"),
    "not implemented": (CODE.UNIMPLEMENTED, "no", "answered 501"),
    "its deadline": (CODE.DEADLINE_EXCEEDED, "too slow", "answered 504"),
    "cancelled by it": (CODE.CANCELLED, "no", "answered 500"),
    "a lie": (CODE.UNAVAILABLE, "failed to connect to all: secret words", "could not be reached: no connection$"),
    "too large for it": (CODE.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 8)", "answered 413"),
}


@BOTH
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_those_of_http(server, kind, case):
    """So the breaker, retries and messages treat them alike; a text is quoted if it has nothing of the input in it."""
    *server.error, message = ERRORS[case]
    reason = failure(server, kind)
    assert re.search(message, reason), reason
    assert "secret" not in reason


def test_what_is_retried(server):
    """Only what may pass, after the time that the server asks for."""
    server.error = CODE.UNAVAILABLE, "queue is full", ("grpc-retry-pushback-ms", "1")
    failure(server, retries=2)
    assert len(server.seen) == 3
    server.seen.clear()
    server.error = CODE.INVALID_ARGUMENT, "unexpected shape"
    failure(server, retries=2)
    assert len(server.seen) == 1


@pytest.mark.pure
@BOTH
def test_a_server_that_is_away_and_back(kind):
    """It is met again without delay, as gRPC's own pause between connects, up to two minutes, is shortened."""
    with Server() as server:
        port = server.port
        with kind(unsure, endpoint(server, retries=0), threshold=0.5) as router:
            assert router.infer(X).source == "cloud"
            server.__exit__()
            assert routes.code(router.infer(X)) == "unreachable"
            again = Server.__new__(Server)
            restarted(again, port)
            try:
                wait_for(lambda: router.infer(X).source == "cloud")
            finally:
                again.__exit__()


@pytest.mark.pure
@BOTH
def test_a_link_with_a_long_way(server, kind):
    """Connecting may take longer than the pause between two attempts."""
    with Relay("127.0.0.1", server.port) as relay:
        relay.delay_s = 0.6
        with kind(unsure, OpenInferenceGrpc(relay.url, model="m", kind="value", retries=0), threshold=0.5) as router:
            answer = router.infer(X)
            assert answer.source == "cloud", answer.reason


def restarted(server, port):
    """Starts the server again, at the same port."""
    plain = grpc.server

    def at(pool, **options):
        made = plain(pool, **options)
        bind = made.add_insecure_port
        made.add_insecure_port = lambda _: bind(f"127.0.0.1:{port}")
        return made

    grpc.server = at
    try:
        server.__init__()
    finally:
        grpc.server = plain


@BOTH
def test_replies_that_are_none(server, kind):
    """Garbage, too few raw tensors, too few bytes, and a reply longer than the limit."""
    said = server.messages["Response"](model_name="m")
    said.outputs.add(name="y", datatype="FP32", shape=[1, 3])
    for answer, message in [
        (b"\xff\xff\xff", "sent an invalid Response"),
        (said.SerializeToString(), "another number of values than its shape says: 0 came"),
        (b"", "gave 0 outputs"),
    ]:
        server.answer = answer
        assert message in failure(server, kind)
    many = server.messages["Response"](model_name="m")
    for _ in range(1001):
        many.outputs.add(name="z")
    server.answer = many.SerializeToString()
    assert "more than 1000 outputs" in failure(server, kind)
    said.raw.extend([b"", b""])
    server.answer = said.SerializeToString()
    assert "1 outputs, and the raw contents of 2" in failure(server, kind)
    server.answer = None
    assert "more than 8 bytes" in failure(server, kind, max_reply_bytes=8)


def test_a_port_of_http():
    """Is named as such, where gRPC says so: old versions do not."""
    with CannedServer(http_reply(b"{}")) as other:
        made = OpenInferenceGrpc(other.url, model="m", retries=3)
        with Router(unsure, made, threshold=0.5) as router:
            assert re.search(r"\(is this its gRPC port\?\)|no connection", routes.error(router.infer(X)))


def test_a_long_reply_is_not_read(server):
    """gRPC drops what is longer than any batch's reply may be."""
    server.answer = bytes(1 << 20)
    assert "bytes: raise max_reply" in failure(server, max_reply_bytes=1000)


def test_a_long_request(server):
    """An input that the server does not take is refused by it with its own words, as 413."""
    server.datatype = "BYTES"
    with Router(unsure, endpoint(server, kind="answers"), threshold=0.5) as router:
        answer = router.infer(["x" * 20_000, "y", "z"])
    assert routes.status(answer) == 413


def test_a_version_is_no_way_into_messages(server):
    """A server may write there what it likes, also what it was sent; long or odd ones are told apart by a hash."""
    for version in ("the-key-itself", "a b\n", "x" * 21, "?"):
        server.version = version
        made = endpoint(server, api_key=Secret("the-key-itself"))
        with Router(unsure, made, threshold=0.5) as router:
            assert router.infer(X).source == "cloud"
        assert re.fullmatch(r"version:[0-9a-f]{16} described:[0-9a-f]{16}", made.served)


def test_ready(server):
    """`check` asks for readiness and metadata, and says what is wrong."""
    with Router(unsure, endpoint(server), threshold=0.5) as router:
        assert router.check().ok
        server.version = ""
        assert not router.check().ok
        assert "the model is not ready" in str(router.check())


@pytest.mark.parametrize(
    "option",
    [{"client": "httpx"}, {"pin": "sha256/" + "A" * 43 + "="}, {"verify": False}, {"version": ""}, {"headers": {"X!Y": "a"}}],
)
def test_what_grpc_cannot(option):
    """Is refused when the endpoint is made."""
    with pytest.raises(PolicyError):
        OpenInferenceGrpc("https://localhost", model="m", **option)


@BOTH
def test_tls(tmp_path, kind):
    """By an authority's file; another's certificate, and the client's missing one, are refused and not retried."""
    authority, stranger = trustme.CA(), trustme.CA()
    cert, own = authority.issue_cert("localhost"), authority.issue_cert("client")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    pair = [(cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes())]
    with Server(grpc.ssl_server_credentials(pair)) as server:
        assert asked(server, kind, verify=tmp_path / "authority.pem").source == "cloud"
        assert "CERTIFICATE_VERIFY_FAILED" in failure(server, kind, verify=tmp_path / "stranger.pem", retries=5)
        with pytest.raises(PolicyError, match="gRPC always checks"):
            endpoint(server, verify=False)
    with Server(grpc.ssl_server_credentials(pair, authority.cert_pem.bytes(), require_client_auth=True)) as server:
        mine = {"verify": tmp_path / "authority.pem", "cert": (tmp_path / "cert.pem", tmp_path / "key.pem")}
        assert asked(server, kind, **mine).source == "cloud"
        assert "could not be reached" in failure(server, kind, verify=tmp_path / "authority.pem")


def test_a_queued_call_is_kept_as_bytes(server, tmp_path):
    """The outbox stores the message, and sends it later, also from another process's router."""
    server.hold = False
    made = endpoint(server)
    with Router(unsure, made, threshold=0.5, state=tmp_path) as router:
        router.infer(X)
        call = made.encode([X])
        assert call.path.endswith("/ModelInfer")
        assert server.messages["Request"].FromString(call.body).model_name == "m"


def test_a_certificate_for_another_version_says_so(server, tmp_path):
    """As soon as the server has said that it has another; a start without it, or another name of the same, breaks nothing."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=2000)
    edge = CallableModel(lambda x: ("edge", float(x[0])), version="1")
    with Router(edge, endpoint(server, kind="value"), threshold=0.5) as router:
        router.check()
        prints = router.fingerprints()
        made = calibrate(
            scores, rng.uniform(size=2000) < 0.5 + scores / 2, rng.uniform(size=2000) < 0.97, max_loss=0.02, fingerprints=prints
        )
    assert prints["served"].startswith("version:1 described:")
    made.save(tmp_path / "certificate.json")
    made = Certificate.load(tmp_path / "certificate.json")

    def label(router, count=1):
        return routes.label([router.infer(np.full(3, 0.999, "float32")) for _ in range(count)][-1])

    with Router(edge, endpoint(server, kind="value"), threshold=made, options=Options(uncalibrated="error")) as router:
        assert label(router) == made.label  # it has not been met
        assert router.check().ok
        assert label(router, 200) == made.label
        server.version = "2"
        router.infer(np.zeros(3, "float32"))
        assert re.findall(r"version (\d)", label(router, 200)) == ["2"]
        server.version = "1"
        router.infer(np.zeros(3, "float32"))
        assert label(router, 200) == made.label
    server.datatype = "FP64"
    with Router(edge, endpoint(server, kind="value"), threshold=made) as router:
        router.check()
        assert re.match("uncalibrated.* platform, inputs or outputs", label(router, 200))


FORK = """
import os, sys
import numpy as np
from edgeroute import OpenInferenceGrpc, Router
x = np.ones(3, "float32")
with Router(lambda _: ("edge", 0.1), OpenInferenceGrpc(sys.argv[1], model="m", kind="value"), threshold=0.5) as router:
    print(router.infer(x).source, flush=True)
    if child := os.fork():
        os.waitpid(child, 0)
        print(router.infer(x).source, flush=True)
    else:
        print(router.infer(x).source, flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork(server):
    """The child has a channel of its own, and the parent keeps its."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, server.url], check=True, capture_output=True, text=True, timeout=2 * LONG
    )
    assert done.stdout.split() == ["cloud"] * 3


GOAWAY = """
import logging, sys
import numpy as np
from edgeroute import OpenInferenceGrpc, Router
logging.disable(logging.CRITICAL)
cloud = OpenInferenceGrpc(sys.argv[1], model="m", kind="value", retries=0)
with Router(lambda _: ("edge", 0.1), cloud, threshold=0.5, deadline=30) as router:
    print(router.infer(np.ones(3, "float32")).source)
"""


def test_a_servers_words_are_not_printed():
    """gRPC's core would print the debug text of a GOAWAY, which may repeat a key and an input."""

    def frame(kind, payload=b""):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(frame(4))
            connection.recv(65_536)
            connection.recv(65_536)
            connection.sendall(frame(7, struct.pack(">II", 0, 11) + b"Bearer sk-TOPSECRET") * 20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        done = subprocess.run(
            [sys.executable, "-c", GOAWAY, url], check=True, capture_output=True, text=True, timeout=2 * LONG, env=environ
        )
        thread.join(LONG)
    assert (done.stdout, done.stderr) == ("edge\n", "")


@pytest.mark.parametrize(
    ("first", "variable", "told"), [("grpc", None, 1), ("grpc", "NONE", 0), ("grpc", "ERROR", 0), ("edgeroute", None, 0)]
)
def test_a_program_that_imported_grpc_first(first, variable, told):
    """It is told once of the variable that gRPC has read by then, unless it has set it."""
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    environ |= {"GRPC_VERBOSITY": variable} if variable else {}
    code = (
        f"import {first}, os, sys\n{GOAWAY.replace('logging.disable(logging.CRITICAL)', '')}print(os.environ['GRPC_VERBOSITY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "http://127.0.0.1:1"],
        check=True,
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        env=environ,
    )
    assert done.stdout.split() == ["edge", variable or "NONE"]
    assert done.stderr.count("GRPC_VERBOSITY=NONE") == told


def test_errors_have_types(server):
    """As over HTTP."""
    from edgeroute.cloud.endpoint_client import HttpClient

    def of(**options):
        client = HttpClient(endpoint(server, **options))
        try:
            with (
                Router(unsure, endpoint(server), threshold=0.5) as router,
                router.engine.snapshot.clouds[0].guard.probe() as exchange,
            ):
                client.run(client.endpoint.talk([X]), monotonic() + options.get("timeout_s", LONG), exchange)
        finally:
            client.close()

    server.error = CODE.INTERNAL, "no"
    with pytest.raises(Refused) as refused:
        of()
    assert refused.value.status == 500
    server.error, server.hold = None, True
    with pytest.raises(TimedOut):
        of(timeout_s=0.2)
    server.hold, server.answer = False, b"\xff"
    with pytest.raises(BadReply):
        of()
    server.__exit__()
    with pytest.raises(Unreachable):
        of()


def test_first_calls_at_once_share_a_channel(monkeypatch):
    """Each of two threads finds none yet, and opens one; closing ends both calls, to a server that is silent."""
    make, together = grpc.insecure_channel, threading.Barrier(2)

    def late(*args, **options):
        together.wait(LONG)
        return make(*args, **options)

    monkeypatch.setattr(grpc, "insecure_channel", late)
    with socket.create_server(("127.0.0.1", 0)) as silent, futures.ThreadPoolExecutor(2) as pool:
        channels = grpc_channels.Channels(Address(f"http://127.0.0.1:{silent.getsockname()[1]}"), 1000)
        calls = [pool.submit(channels.send, Call("POST", "/a/b", body=b""), monotonic() + 4 * LONG) for _ in range(2)]
        with silent.accept()[0]:
            channels.close()
            for call in calls:
                assert re.search("(?i)closed", str(call.exception(LONG) or call.result().body))


@BOTH
@pytest.mark.parametrize("form", ["a message", "a text"])
def test_metadata_has_labels_and_kind(kind, form):
    """As over HTTP: in the form of MLServer's parameters, or of KServe's properties. What is damaged is left out."""
    with Server() as server:
        value = server.messages["Value"]
        for told, labels in (('["a", "b", "c"]', ("a", "b", "c")), ("[1", None), ('["a", "b"]', ("a", "b"))):
            server.parameters = {
                key: value(string_param=text).SerializeToString() if form == "a message" else text.encode()
                for key, text in {"labels": told, "kind": "multilabel", "odd": "x"}.items()
            }
            server.parameters["torn"] = b"\x1a\xff"
            cloud = OpenInferenceGrpc(server.url, model="m")
            with kind(unsure, cloud, threshold=0.5) as router:
                assert router.check().ok or labels == ("a", "b")
                assert (cloud.served_labels, cloud.served_kind) == (labels, "multilabel")
                if labels == ("a", "b", "c"):
                    assert router.infer(X / 8).value == ["c"]  # of .25, .5 and .75
