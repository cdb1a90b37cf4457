"""HTTP as it should not be: surplus bytes, replies before the request was sent, floods; and proxies with a password."""

from __future__ import annotations

import base64
import itertools
import socket
import ssl
import threading

import numpy as np
import pytest
import routes
import trustme
from both import LONG, Peer, Tasks, Threads, request_of
from both import unsure as edge

from edgeroute import OpenInference, PlainJson, PolicyError
from edgeroute.http.reply_parser import EARLY, Early
from edgeroute.testing import CannedServer, http_reply

BIG = "x" * (8 << 20)
"""More than a socket takes while nobody reads."""
FORGED = http_reply(b'{"value": "forged", "confidence": 1.0}')
GOOD = http_reply(b'{"value": "good", "confidence": 0.9}')
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """A router of either kind."""
    return request.param


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """None is between, but where a test sets one."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """(its file, makes a server's side)."""
    made, path = trustme.CA(), tmp_path_factory.mktemp("authority") / "authority.pem"
    made.cert_pem.write_to_path(str(path))

    def server():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.issue_cert("127.0.0.1").configure_cert(context)
        return context

    return path, server


@pytest.fixture(params=[False, True], ids=["http", "https"])
def secure(request, authority):
    """(the arguments of a server, those of an endpoint), with and without TLS."""
    path, server = authority
    return ({"tls": server()}, {"verify": path}) if request.param else ({}, {})


# ------------------------------------------------------------------------------------------- replies during the upload
@pytest.fixture
def hasty():
    """Makes a server that replies as soon as it has a request's head, and then reads on, waits or closes; and notes the heads."""
    over = threading.Event()

    def hasty(reply, then, **more):
        def serve(connection, _):
            came = request_of(connection)
            server.heads.append(came.partition(b"\r\n\r\n")[0])
            connection.sendall(reply)
            if then == "reads on":
                left = len(BIG) - len(came.partition(b"\r\n\r\n")[2])
                while left:
                    left -= len(connection.recv(min(left, 1 << 16)))
                connection.sendall(GOOD)
            if then == "closes":
                connection.shutdown(socket.SHUT_WR)
            if then != "closes" or more:  # its buffer is full, and it takes no more; TLS ends before the connection does
                assert over.wait(LONG)

        server = Peer(serve, **more)
        server.heads = []
        return server

    hasty.over = over
    return hasty


@pytest.mark.parametrize("then", ["waits", "closes"])
@pytest.mark.parametrize("before", [b"", INTERIM])
def test_a_refusal_during_the_upload_is_read_and_final(make, secure, then, before, hasty):
    """It is not taken for a link that broke, and the body is not sent three times."""
    serving, asking = secure
    with hasty(before + http_reply(status=413), then, **serving) as server:
        with make(edge, PlainJson(server.url, **asking), threshold=0.5) as router:
            answer = router.infer(BIG)
            hasty.over.set()
        assert (answer.value, answer.degraded) == ("edge", True)
        assert routes.status(answer) == 413
        assert len(server.heads) == 1


def test_an_interim_reply_does_not_end_the_upload(make, secure, hasty):
    """The whole body is sent, and the reply after it is the answer."""
    serving, asking = secure
    with hasty(INTERIM, "reads on", **serving) as server, make(edge, PlainJson(server.url, **asking), threshold=0.5) as router:
        assert router.infer(BIG[: -len('{"input":""}')]).value == "good"
        hasty.over.set()


def test_a_success_before_the_whole_request_is_no_answer(make, secure, hasty):
    """It cannot be about an input that has not arrived."""
    serving, asking = secure
    with hasty(FORGED, "waits", **serving) as server, make(edge, PlainJson(server.url, **asking), threshold=0.5) as router:
        answer = router.infer(BIG)
        hasty.over.set()
        assert "before it had the whole request" in routes.error(answer)
        assert len(server.heads) == 1


@pytest.mark.parametrize(
    ("data", "final"),
    [
        (b"", True),
        (b"HT", False),
        (b"HTTP/1.1 100", False),
        (INTERIM, False),
        (INTERIM + b"HTTP/1.1 ", False),
        (INTERIM * 3 + b"HTTP/1.1 413", True),
        (b"HTTP/1.1 413 -\r\n", True),
        (b"SSH-2.0-OpenSSH", True),
        (b"SSH", True),
        (INTERIM * (EARLY // len(INTERIM) + 1), True),
    ],
)
def test_when_a_reply_is_final(data, final):
    """Once it is no interim one, whole or not."""
    assert Early().heard(data) == final


# ----------------------------------------------------------------------------------------------------- surplus and floods
SURPLUS = {
    "two replies": GOOD + FORGED,
    "garbage": GOOD + b"\0\1\2",
    "no content with a body": b"HTTP/1.1 204 -\r\n\r\n" + FORGED,
    "not modified with a body": b"HTTP/1.1 304 -\r\nContent-Length: 4\r\n\r\n" + FORGED,
    "HTTP/1.0": GOOD.replace(b"HTTP/1.1 200 -\r\n", b"HTTP/1.0 200 -\r\nConnection: keep-alive\r\n") + FORGED,
    "an interim reply after it": GOOD + INTERIM + FORGED,
    "two lengths": b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n0\r\n\r\n" + FORGED,
    "switched protocols": b"HTTP/1.1 101 -\r\nUpgrade: x\r\n\r\n" + FORGED,
}


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("case", SURPLUS)
def test_what_is_left_over_is_nobodys_answer(make, case, proxied, monkeypatch):
    """The connection is closed, also one to a proxy."""
    with CannedServer(SURPLUS[case]) as server:
        url = server.url
        if proxied:
            monkeypatch.setenv("http_proxy", server.url)
            url = "http://far.invalid"
        with make(edge, PlainJson(url, retries=0), threshold=0.5) as router:
            said = {router.infer(i).value for i in range(2)}
        assert "forged" not in said
        assert server.connections == 2


def test_a_record_that_is_left_over_is_nobodys_answer(make, authority):
    """What TLS has received and nobody has read is surplus as well: the first record ends with the reply."""
    path, context = authority
    head = len(http_reply(bytes(1 << 14))) - (1 << 14)
    whole = http_reply(b'{"value": "good", "confidence": 0.9}'.ljust((1 << 14) - head))
    assert len(whole) == 1 << 14
    with CannedServer(whole + FORGED, tls=context()) as server:
        with make(edge, PlainJson(server.url, verify=path), threshold=0.5) as router:
            assert [router.infer(i).value for i in range(4)] == ["good"] * 4
        assert server.connections == 4


def test_an_interim_reply_before_the_reply_is_passed_over(make):
    """As often as it comes."""
    with CannedServer(INTERIM * 3 + GOOD) as server, make(edge, PlainJson(server.url), threshold=0.5) as router:
        assert [router.infer(i).value for i in range(2)] == ["good", "good"]
        assert server.connections == 1


CHUNKS = b"1\r\n \r\n" * 3000


@pytest.mark.parametrize("piece", [INTERIM * 1000, b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS])
def test_a_flood_holds_up_no_event_loop(make, piece):
    """The deadline comes, however fast a server sends what is hard to parse."""
    with CannedServer(lambda _: itertools.repeat(piece)) as server, make(edge, PlainJson(server.url), threshold=0.5) as router:
        answer = router.infer(1, deadline=2.0)
        assert (answer.value, answer.degraded) == ("edge", True)


# ------------------------------------------------------------------------------------------------------------------ proxies
PASSWORD = "pa:ss@word/1234"
QUOTED = "pa%3Ass%40word%2F1234"
CODE = base64.b64encode(f"us er:{PASSWORD}".encode()).decode()


def with_password(url):
    return url.replace("://", f"://us%20er:{QUOTED}@")


@pytest.mark.parametrize("scheme", [True, False])
def test_a_proxy_is_given_its_password(make, monkeypatch, scheme):
    """Before it asks; the address may lack its `http://`."""
    with CannedServer(GOOD) as proxy:
        given = with_password(proxy.url)
        monkeypatch.setenv("http_proxy", given if scheme else given.removeprefix("http://"))
        with make(edge, PlainJson("http://far.invalid/ask"), threshold=0.5) as router:
            assert router.infer(1).value == "good"
        assert f"Proxy-Authorization: Basic {CODE}\r\n".encode() in proxy.requests[0]


@pytest.mark.parametrize("target", ["http", "https"])
def test_a_proxy_that_refuses_is_asked_once_and_its_password_kept(make, monkeypatch, target):
    """Whatever it quotes, in the status line or in JSON."""
    body = ('{"error": "not ' + CODE + " nor " + PASSWORD + " nor " + QUOTED + '"}').encode()
    said = http_reply(body, status=407, headers=[("Content-Type", "application/json")])
    said = said.replace(b"407 -", f"407 {CODE} {PASSWORD}".encode())
    with CannedServer(said) as proxy:
        monkeypatch.setenv(f"{target}_proxy", with_password(proxy.url))
        with make(edge, PlainJson(f"{target}://far.invalid/ask"), threshold=0.5) as router:
            reason = router.infer(1).reason
        assert "407" in reason
        assert not any(word in reason for word in (CODE, PASSWORD, QUOTED))
        assert len(proxy.requests) == 1
        assert f"Proxy-Authorization: Basic {CODE}\r\n".encode() in proxy.requests[0]


def test_a_proxys_address_that_is_none_is_not_quoted(make, monkeypatch):
    """Its password may be what cannot be read."""
    monkeypatch.setenv("http_proxy", "http://user:secret@[::1")
    router = make(None, PlainJson("http://far.invalid/ask"), mode="only_cloud")
    with router, pytest.raises(PolicyError, match="the proxy's address") as raised:
        router.infer(1)
    assert "secret" not in str(raised.value)


# -------------------------------------------------------------------------------------------------------------- large replies
def test_a_reply_within_its_limit_that_takes_long_to_build_is_not_built(make):
    """Zero dimensions and lists of lists: little to send, and gigabytes or seconds to build."""

    def reply(request):
        if request.startswith(b"GET"):
            return http_reply(b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}')
        return http_reply(b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1000000000, 0], "data": []}]}')

    with CannedServer(reply) as server:
        cloud = OpenInference(server.url, model="m", binary=False)
        with make(edge, cloud, threshold=0.5) as router:
            assert "a shape with a size below 1" in routes.error(router.infer(np.ones(2, np.float32)))
    lists = http_reply(b'{"value": [' + b"[]," * 300_000 + b"[]]}")
    with CannedServer(lists) as server, make(edge, PlainJson(server.url), threshold=0.5) as router:
        assert "more than expected, unread" in routes.error(router.infer(1))
