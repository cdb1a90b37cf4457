"""Calls carried by an httpx client: a mock transport, a real server, its own clients; redirects, bounds, errors, streams."""

import asyncio
import errno
import gc
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
from time import monotonic

import httpx
import pytest
import trustme
from both import Tasks, Threads
from pieces import taken

from edgeroute import AsyncRouter, BadReply, OpenInference, PlainJson, PolicyError, StopToken, TimedOut, Unreachable
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.http.httpx_connections import AsyncHttpxConnections, HttpxConnections
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.testing import CannedServer, http_reply

LONG = 120.0
GOOD = b'{"value": "cloud", "confidence": 0.9}'


@pytest.fixture(autouse=True, params=["httpx", "httpx2"])
def library(request, monkeypatch):
    """Each test runs with clients of either library; edgeroute's own are of httpx2 where it is installed."""
    monkeypatch.setattr(sys.modules[__name__], "httpx", pytest.importorskip(request.param))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """A router of either kind."""
    return request.param


def edge(_):
    return "edge", 0.1


def both(**more):
    """Clients of both kinds."""
    return httpx.Client(**more), httpx.AsyncClient(**more)


def mocked(answer):
    """Clients of both kinds whose transport calls this function."""
    return both(transport=httpx.MockTransport(answer))


@pytest.fixture(params=["threads", "asyncio"])
def ask(request):
    """One call by those clients, of either kind -> (status, headers, body); `pieces`: as a stream."""

    def ask(url, client, *, left_s=LONG, pieces=False, call=None, **address):
        call = call or Call("POST", "/", body=b"hello")
        made = Address(url, client=client, **address)
        if request.param == "threads":
            carrier = HttpxConnections(made, made.client[0])
            try:
                if not pieces:
                    return carrier.send(call, monotonic() + left_s)
                return settle(taken(carrier.open(call, monotonic() + left_s)))
            finally:
                carrier.close()

        async def main():
            carrier = AsyncHttpxConnections(made, made.client[1])
            try:
                if not pieces:
                    return await carrier.send(call, monotonic() + left_s)
                return await taken(carrier.open(call, monotonic() + left_s))
            finally:
                await carrier.close()

        return asyncio.run(main())

    return ask


def test_a_router_with_a_mock_transport(make):
    """No server and no socket: the request is what it is over sockets."""
    seen = []

    def answer(request):
        seen.append(request)
        return httpx.Response(200, content=GOOD)

    with make(edge, PlainJson("http://far.invalid/ask", api_key="k" * 9, client=mocked(answer)), threshold=0.5) as router:
        assert router.infer(1).value == "cloud"
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "http://far.invalid/ask")
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["authorization"] == "Bearer " + "k" * 9
    assert "idempotency-key" in request.headers


def test_a_router_with_a_real_server(make):
    """By the clients of an application, which stay open, and by those that edgeroute makes."""
    with CannedServer(http_reply(GOOD)) as server:
        given = both(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        for client in (given, "httpx"):
            with make(edge, PlainJson(server.url, client=client), threshold=0.5) as router:
                assert [router.infer(i).value for i in range(3)] == ["cloud"] * 3
        assert not given[0].is_closed
        assert not given[1].is_closed
        given[0].close()


def test_no_record_of_the_client_quotes_a_reply(make, caplog):
    """Its headers and its reason may repeat the credentials; the records of an application's own calls stay as they are."""
    caplog.set_level(logging.DEBUG)
    with CannedServer(http_reply(GOOD, headers=[("X-Echo", "k" * 9)])) as server:
        given = both(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        with make(edge, PlainJson(server.url, api_key="k" * 9, client=given), threshold=0.5) as router:
            assert router.infer(1).value == "cloud"
        given[0].close()
        assert "receive_response_headers.complete" in caplog.messages
        assert "k" * 9 not in caplog.text
        with httpx.Client(trust_env=False) as client:
            client.get(server.url)
        assert "k" * 9 in caplog.text


def test_the_policys_key(make, tmp_path):
    """`client = "httpx"` in [cloud]."""
    text = 'mode = "only_cloud"\n[cloud]\nprotocol = "json"\nurl = "{}"\nclient = "httpx"\n'
    with CannedServer(http_reply(GOOD)) as server:
        path = tmp_path / "policy.toml"
        path.write_text(text.format(server.url))
        with make.from_policy(path) as router:
            assert router.infer(1).value == "cloud"


def test_one_kind_of_client_alone():
    """Serves its own kind of router; the other says what to give."""
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=GOOD))
    for client, good, bad in (
        (httpx.Client(transport=answer), Threads, Tasks),
        (httpx.AsyncClient(transport=answer), Tasks, Threads),
    ):
        with good(edge, PlainJson("http://far.invalid", client=client), threshold=0.5) as router:
            assert router.infer(1).value == "cloud"
        with (
            bad(None, PlainJson("http://far.invalid", client=client), mode="only_cloud") as router,
            pytest.raises(PolicyError, match=r"client=\(httpx\.Client\(\.\.\.\), httpx\.AsyncClient"),
        ):
            router.infer(1)


@pytest.mark.parametrize("client", ["requests", 7, (), (httpx.Client(), httpx.Client()), (httpx.Client(), 1)])
def test_what_is_no_client(client):
    """Is the policy's fault."""
    with pytest.raises(PolicyError, match="client is"):
        Address("http://a", client=client)


def test_what_a_client_settles_itself():
    """Its TLS is set where it is made; a pin is checked by connections of ours alone."""
    with pytest.raises(PolicyError, match="set them on the client"):
        Address("https://a", client=httpx.Client(), verify=False)
    with pytest.raises(PolicyError, match="pin= is checked on edgeroute"):
        Address("https://a", client="httpx", pin="sha256/" + "A" * 43 + "=")


def test_a_reply_in_pieces(ask):
    """As they come."""
    reply = b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    with CannedServer(reply) as server:
        status, headers, pieces = ask(server.url, "httpx", pieces=True)
    assert (status, headers["x-a"], b"".join(pieces)) == (200, "b", b"abc")


@pytest.mark.parametrize("head", ["Content-Length: 2000000", "Transfer-Encoding: chunked"])
def test_a_reply_that_is_too_long(ask, head):
    """Is not read to its end; of an error nothing depends on its body."""
    for status, framing in ((200, head), (500, head)):
        body = b"1E8480\r\n" if "chunked" in head else b""
        reply = f"HTTP/1.1 {status} -\r\n{framing}\r\n\r\n".encode() + body + bytes(1 << 20)
        with CannedServer(reply, close=True) as server:
            if status == 500:
                assert ask(server.url, "httpx", max_reply_bytes=1000)[::2] == (500, b"")
            else:
                with pytest.raises(BadReply, match="more than 1000 bytes"):
                    ask(server.url, "httpx", max_reply_bytes=1000)


def test_a_coded_reply_is_not_decoded(ask):
    """Whatever unpacks it could unpack a bomb."""
    with pytest.raises(BadReply, match="an encoding"):
        ask("http://a", mocked(lambda _: httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=once(b"x"))))


def once(*pieces):
    """A body in pieces, of the library in use."""

    class Once(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self):
            yield from pieces

        async def __aiter__(self):
            for piece in pieces:
                yield piece

    return Once()


@pytest.mark.parametrize("where", ["here", "there"])
def test_redirects(ask, where):
    """Are followed where the client does, and never to another host: input and credentials stay with the one that is named."""
    asked = []

    def answer(request):
        asked.append(str(request.url))
        if request.url.path == "/":
            return httpx.Response(307, headers={"Location": f"http://{where}/next"})
        return httpx.Response(200, content=b"next")

    transport = httpx.MockTransport(answer)
    clients = both(transport=transport, follow_redirects=True)
    reply = ask("http://here", clients, headers={"X-Key": "secret-secret"})
    assert reply.status == (200 if where == "here" else 307)
    assert asked == (["http://here/", "http://here/next"] if where == "here" else ["http://here/"])
    asked.clear()
    assert ask("http://here", both(transport=transport)).status == 307
    assert len(asked) == 1


def broken(token="secret-secret"):
    """An auth flow of the application that fails, of the library in use."""

    class Broken(httpx.Auth):
        def auth_flow(self, request):
            raise LookupError(f"no token for {token}")
            yield request

    return Broken()


def raising(error):
    def answer(request):
        raise error(request) if callable(error) else error

    return answer


def caused(error, cause):
    """The error as httpx raises it, for what the system raised in a layer below, which raised it again `from None`."""
    error.__cause__ = below = RuntimeError("secret-secret")
    below.__context__, below.__suppress_context__ = cause, True
    return error


def grouped(*causes):
    """The cause for several addresses, none of which was reached; the class is new in Python 3.11."""
    group = OSError("All connection attempts failed")
    group.exceptions = causes
    return group


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "secret-secret")


@pytest.mark.parametrize(
    ("error", "kind", "said", "retriable"),
    [
        (httpx.ConnectTimeout("x"), TimedOut, "accept a connection", True),
        (httpx.ReadTimeout("x"), TimedOut, "did not answer", True),
        (httpx.WriteTimeout("x"), TimedOut, "take the request", True),
        (httpx.ConnectError("secret-secret"), Unreachable, "ConnectError$", True),
        (caused(httpx.ConnectError("secret-secret"), REFUSED), Unreachable, os.strerror(errno.ECONNREFUSED), True),
        (caused(httpx.ConnectError("secret-secret"), grouped(REFUSED)), Unreachable, os.strerror(errno.ECONNREFUSED), True),
        (caused(httpx.ConnectError("secret-secret"), socket.gaierror(-2, "not known")), Unreachable, "not known$", True),
        (caused(httpx.ConnectError("secret-secret"), ssl.SSLError(1, "wrong version")), Unreachable, "wrong version$", False),
        (caused(httpx.ReadError("secret-secret"), OSError("secret-secret", "x")), Unreachable, "ReadError$", True),
        (httpx.RemoteProtocolError("illegal header line: bytearray(b'secret-secret')"), Unreachable, "illegal reply", True),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), Unreachable, "disconnected", True),
        (httpx.ProxyError("407 secret-secret"), Unreachable, "the proxy answered 407", False),
        (httpx.UnsupportedProtocol("secret-secret"), Unreachable, "UnsupportedProtocol$", False),
        (RuntimeError("secret-secret"), Unreachable, "RuntimeError$", False),
        (RuntimeError("secret-secret: Event loop is closed"), Unreachable, "http://a: Event loop is closed, as .*[^t]$", False),
    ],
)
def test_errors(ask, error, kind, said, retriable):
    """Are ours, with the words of the field or the system's, and quote nothing that came or that other code wrote."""
    with pytest.raises(kind, match=said) as raised:
        ask("http://a", mocked(raising(error)))
    assert raised.value.retriable == retriable
    assert "secret-secret" not in str(raised.value)


def test_a_server_that_is_not_there(ask):
    """Is named with the system's words."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(Unreachable, match=os.strerror(errno.ECONNREFUSED)) as raised:
            ask(url, both(trust_env=False))
    assert raised.value.unsent


def test_a_certificate_that_is_not_trusted(ask):
    """Is named, and not tried again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with CannedServer(http_reply(GOOD), tls=context) as server, pytest.raises(Unreachable, match="certificate") as raised:
        ask(server.url, both(trust_env=False))
    assert not raised.value.retriable


def test_an_auth_flow_that_fails(ask, caplog):
    """Is an error of the call, so that the edge's answer stands; its type is named, and the log says where it failed."""
    with pytest.raises(Unreachable, match=r"http://a: LookupError$"):
        ask("http://a", both(auth=broken()))
    assert "auth_flow" in caplog.text
    assert "secret-secret" not in caplog.text


def hooked(kind, hook, **more):
    """Clients of both kinds with this hook for requests or responses, as a coroutine for asyncio."""

    async def later(message):
        hook(message)

    hooks = {kind: [hook]}, {kind: [later]}
    return httpx.Client(event_hooks=hooks[0], **more), httpx.AsyncClient(event_hooks=hooks[1], **more)


def test_a_hook_that_fails_is_not_quoted(make, tmp_path):
    """Its text may have the input, and secrets of its own: neither the reason nor the trace nor an exception has it."""

    def sign(request):
        raise ValueError(f"cannot sign {request.content!r} with tok-5f3c9a1b77")

    client = hooked("request", sign, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=GOOD)))
    with make(edge, PlainJson("http://far.invalid", client=client), threshold=0.5, state=tmp_path) as router:
        answer = router.infer("patient Ann Doe")
        with pytest.raises(Unreachable, match=r"far\.invalid: ValueError$"):
            router.infer("patient Ann Doe", mode="only_cloud")
    assert answer.value == "edge"
    assert "ValueError" in answer.reason
    for text in (answer.reason, repr(answer.trace)):
        assert "Ann Doe" not in text
        assert "tok-" not in text


def test_a_hook_that_raises_for_the_status(make):
    """As if it was not there: a bad input is no fault of the server, a Retry-After is kept, a 503 is sent again."""

    def check(response):
        response.raise_for_status()

    def cloud(server, retries=0):
        client = hooked("response", check, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        return PlainJson(server.url, client=client, retries=retries, timeout_s=LONG)

    with CannedServer(http_reply(b"{}", status=422)) as server:
        with make(edge, cloud(server), threshold=0.5) as router:
            codes = [router.infer(i, deadline=LONG).reason_code for i in range(5)]
        assert codes == ["refused"] * 5
        assert len(server.requests) == 5
    with CannedServer(http_reply(b"{}", status=429, headers=[("Retry-After", "60")])) as server:
        with make(edge, cloud(server), threshold=0.5) as router:
            codes = [router.infer(i, deadline=LONG).reason_code for i in range(2)]
        assert codes == ["refused", "retry_after"]
        assert len(server.requests) == 1
    replies = [http_reply(b"{}", status=503), http_reply(GOOD)]
    with CannedServer(lambda _: replies.pop(0)) as server, make(edge, cloud(server, 1), threshold=0.5) as router:
        assert router.infer(1, deadline=LONG).value == "cloud"


def raising_for_status(*, reads):
    """Clients with the hook of many recipes; `reads`: it reads the body before, for its own log."""

    def check(response):
        if reads:
            response.read()
        response.raise_for_status()

    async def check_later(response):
        if reads:
            await response.aread()
        response.raise_for_status()

    def made(**more):
        clients = zip((httpx.Client, httpx.AsyncClient), (check, check_later), strict=True)
        return tuple(kind(event_hooks={"response": [hook]}, **more) for kind, hook in clients)

    return made


@pytest.mark.parametrize(("reads", "body"), [(False, b""), (True, b"why it is refused")])
def test_the_reply_that_a_hook_rejects(ask, reads, body):
    """Has its status and headers, and its body if the hook read it; limits and redirects are as ever, and successes are not."""
    made = raising_for_status(reads=reads)
    with CannedServer(http_reply(b"why it is refused", status=400, headers=[("X-A", "b")])) as server:
        clients = made(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        reply = ask(server.url, clients)
        assert (reply.status, reply.headers["x-a"], reply.body) == (400, "b", body)
        assert ask(server.url, clients, max_reply_bytes=5)[::2] == (400, b"")
    asked = []

    def answer(request):
        asked.append(str(request.url))
        return httpx.Response(307, headers={"Location": "http://there/next"})

    assert ask("http://here", made(transport=httpx.MockTransport(answer), follow_redirects=True)).status == 307
    assert asked == ["http://here/"]


def test_a_status_of_another_reply(ask):
    """An auth flow's own request for a token, and a success that a hook rejects, are errors of the client."""

    class Token(httpx.Auth):
        def auth_flow(self, request):
            yield httpx.Request("POST", "http://tokens/new")
            yield request

    def answer(request):
        return httpx.Response(429 if request.url.host == "tokens" else 200, headers={"Retry-After": "60"}, content=GOOD)

    def reject(response):
        raise httpx.HTTPStatusError("secret-secret", request=response.request, response=response)

    transport = httpx.MockTransport(answer)
    for clients in (
        raising_for_status(reads=False)(transport=transport, auth=Token()),
        hooked("response", reject, transport=transport),
    ):
        with pytest.raises(Unreachable, match=r"http://a: HTTPStatusError$"):
            ask("http://a", clients)


def test_a_closed_client(ask):
    """Says so."""
    client = httpx.Client(), httpx.AsyncClient()
    client[0].close()
    asyncio.run(client[1].aclose())
    with pytest.raises(Unreachable, match=r"http://a: the client has been closed$"):
        ask("http://a", client)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_asynchronous_client_on_two_event_loops():
    """The connection that it keeps is of the first: the reason says so, and what to give."""

    async def main(cloud):
        async with AsyncRouter(edge, cloud, threshold=0.5) as router:
            return await router.infer(1)

    with CannedServer(http_reply(GOOD)) as server:
        cloud = PlainJson(f"{server.url}/ask", client=httpx.AsyncClient(), retries=0)
        first, second = asyncio.run(main(cloud)), asyncio.run(main(cloud))
    del cloud
    gc.collect()  # the connection's socket, which no loop closes any more
    assert (first.value, second.value) == ("cloud", "edge")
    assert "AsyncClient" in second.reason


@pytest.mark.pure
def test_a_body_that_trickles_ends_with_the_time(ask):
    """It is looked at piece by piece; asyncio ends a head that trickles, too."""

    class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self):
            while True:
                yield b"x"

        async def __aiter__(self):
            while True:
                await asyncio.sleep(0)
                yield b"x"

    with pytest.raises(TimedOut, match="finish its answer"):
        ask("http://a", mocked(lambda _: httpx.Response(200, stream=Endless())), left_s=1.0, max_reply_bytes=1 << 40)


def test_a_request_to_stop_ends_a_reply():
    """Once its head is there: the socket is shut down."""
    stop, carrier = StopToken(), None
    with CannedServer(b"HTTP/1.1 200 -\r\nContent-Length: 10\r\n\r\n12345") as server:
        carrier = HttpxConnections(Address(server.url, client="httpx"), None)

        async def stopped():
            async with carrier.open(Call("GET", "/"), monotonic() + 3600, stop) as response:
                assert await response.read() == b"12345"
                threading.Timer(0.01, stop).start()
                with pytest.raises(Unreachable, match="not needed any more"):
                    await response.read()

        settle(stopped())
        with pytest.raises(Unreachable, match="not needed any more"):
            carrier.send(Call("GET", "/"), monotonic() + 3600, stop)
        carrier.close()


def test_leaving_early_closes(ask):
    """The connection is not used again with a half-read reply in it."""
    with CannedServer(b"HTTP/1.1 200 -\r\nContent-Length: 10\r\n\r\n12345") as server:
        carrier = HttpxConnections(Address(server.url, client="httpx"), None)
        for _ in range(2):
            _, _, pieces = settle(taken(carrier.open(Call("GET", "/"), monotonic() + LONG), on_piece=lambda *_: True))
            assert pieces == [b"12345"]
        assert server.connections == 2
        carrier.close()


def test_a_client_certificate_is_asked_for(tmp_path):
    """A server that ends the first exchange may want one; with it, and with its authority, the own client gets through."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = authority.issue_cert("client@example.org")
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    with CannedServer(http_reply(GOOD), tls=context) as server:
        for cert in (None, (tmp_path / "cert.pem", tmp_path / "key.pem")):
            address = Address(server.url, verify=tmp_path / "ca.pem", cert=cert, client="httpx")
            carrier = HttpxConnections(address, None)
            if cert is None:
                with pytest.raises(Unreachable) as raised:
                    carrier.send(Call("GET", "/"), monotonic() + LONG)
                assert not raised.value.retriable
            else:
                assert carrier.send(Call("GET", "/"), monotonic() + LONG).body == GOOD
            carrier.close()


def test_httpx_is_imported_late():
    """At the first call: neither the import of edgeroute nor a router that has no such client needs it."""
    code = """
import importlib.util, sys
from edgeroute import PlainJson, Router
router = Router(lambda x: ("edge", 0.1), PlainJson("http://127.0.0.1:1", client="httpx", retries=0), threshold=0.5)
assert not {"httpx", "httpx2"} & set(sys.modules)
other = Router(lambda x: ("edge", 0.1), PlainJson("http://127.0.0.1:1", retries=0), threshold=0.5)
assert other.infer(1).value == "edge"
assert not {"httpx", "httpx2", "httpcore", "httpcore2", "anyio"} & set(sys.modules)
assert router.infer(1).value == "edge"
assert len({"httpx", "httpx2"} & set(sys.modules)) == 1, "httpx2 if it is installed, else httpx"
assert ("httpx2" in sys.modules) == (importlib.util.find_spec("httpx2") is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LONG)
    assert done.returncode == 0, done.stderr


def test_both_protocols_take_a_client():
    """Through `Address`."""
    client = httpx.Client()
    assert OpenInference("http://a/v2/models/m", client=client).address.client == (client, None)


def test_a_server_that_closes_each_connection_opens_the_breaker(make, monkeypatch):
    """The client does not say whether a connection was a kept one: so many in a row are none."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due by time, however slow the machine

    def reply(_):
        raise ConnectionAbortedError

    with CannedServer(reply) as server, make(edge, PlainJson(server.url, client="httpx"), threshold=0.5) as router:
        assert [router.infer(1).value for _ in range(10)] == ["edge"] * 10
        assert len(server.requests) == 3
