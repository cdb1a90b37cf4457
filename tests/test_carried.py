"""What a connection carries: replies in pieces, replies cut at any byte, trickles, pins of keys, versions of TLS."""

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import ssl
import struct
import threading
from time import monotonic

import pytest
import trustme
from both import LONG, Peer, request_of, wait_for
from pieces import taken

from edgeroute import BadReply, CloudError, PlainJson, PolicyError, Router, StopToken, TimedOut, Unreachable
from edgeroute.http import reply_parser as reading
from edgeroute.http.aio_connections import AsyncConnections
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.http.sans_io_tls_connection import Wire, pin_of
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.testing import CannedServer, http_reply

ASK = Call("POST", "/", body=b"x")
END = b"\r\n\r\nx"
"""The end of that request."""
CHUNKED = b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n"
FIN_WAIT_2 = 5
"""State of a connection, by Linux: its end has come at the other side."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """None is between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=["httptools", "h11"], autouse=True)
def parser(request, monkeypatch):
    """Each test by either parser."""
    monkeypatch.setattr(reading, "h11", pytest.importorskip("h11"), raising=False)
    if request.param == "httptools":
        pytest.importorskip("httptools")
    monkeypatch.setattr(reading, "new_parser", reading.H11 if request.param == "h11" else reading.Llhttp)


class Sync:
    """The connections for threads, as a test uses them."""

    def __init__(self, url, **address):
        self.connections = Connections(Address(url, **address))

    def send(self, left_s=LONG, call=ASK):
        """A call whole."""
        return self.connections.send(call, monotonic() + left_s)

    def pieces(self, on_piece=lambda _, __: None, left_s=LONG):
        """A call in pieces -> (status, headers, pieces). `on_piece(response, piece)` may return True, to leave."""
        return settle(taken(self.connections.open(ASK, monotonic() + left_s), on_piece))

    def close(self):
        """Closes them."""
        self.connections.close()


class Async:
    """Those for asyncio, on a loop of their own."""

    def __init__(self, url, **address):
        self.connections, self.loop = AsyncConnections(Address(url, **address)), asyncio.new_event_loop()

    def send(self, left_s=LONG, call=ASK):
        """As of `Sync`."""
        return self.loop.run_until_complete(self.connections.send(call, monotonic() + left_s))

    def pieces(self, on_piece=lambda _, __: None, left_s=LONG):
        """As of `Sync`."""
        return self.loop.run_until_complete(taken(self.connections.open(ASK, monotonic() + left_s), on_piece))

    def close(self):
        """As of `Sync`."""
        if self.loop.is_closed():
            return
        self.loop.run_until_complete(self.connections.close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@pytest.fixture(params=[Sync, Async], ids=["threads", "asyncio"])
def connect(request):
    """Makes connections of either kind, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(url, **address):
            made = request.param(url, **address)
            stack.callback(made.close)
            return made

        yield connect


# -------------------------------------------------------------------------------------------------------------- in pieces
def test_pieces_come_as_they_are_sent(connect):
    """Each before the next is sent, and the connection is kept after the last."""
    seen = [threading.Event() for _ in range(3)]

    def serve(connection, _):
        for _ in range(2):
            request_of(connection, END)
            connection.sendall(CHUNKED)
            for n, event in enumerate(seen):
                connection.sendall(b"1\r\n%d\r\n" % n)
                assert event.wait(LONG)
                event.clear()
            connection.sendall(b"0\r\n\r\n")

    with Peer(serve) as peer:
        made = connect(peer.url)
        for _ in range(2):
            status, headers, pieces = made.pieces(lambda _, piece: seen[int(piece)].set())
            assert (status, headers["transfer-encoding"], pieces) == (200, "chunked", [b"0", b"1", b"2"])
        assert peer.connections == 1


def test_leaving_before_the_end_closes(connect):
    """The server sees it, and the next call has a new connection."""
    gone = threading.Event()

    def serve(connection, _):
        request_of(connection, END)
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        while connection.recv(1 << 16):
            pass
        gone.set()

    with Peer(serve) as peer:
        made = connect(peer.url)
        for n in range(2):
            assert made.pieces(lambda *_: True)[2] == [b"a"]
            assert gone.wait(LONG)
            gone.clear()
            assert peer.connections == n + 1


def test_the_time_for_a_piece(connect):
    """Is set anew for each; the message says what it waited for."""

    def serve(connection, _):
        request_of(connection, END)
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        while connection.recv(1 << 16):
            pass

    def soon(_, __):
        return monotonic() + 0.05

    with Peer(serve) as peer, pytest.raises(TimedOut, match="in time"):
        connect(peer.url).pieces(soon, left_s=3600)


@pytest.mark.parametrize("whole", [True, False])
def test_a_reply_in_pieces_is_bounded(connect, whole):
    """A success is refused beyond the limit; of an error a part comes."""
    for status in (200, 500):
        reply = b"HTTP/1.1 %d -\r\nTransfer-Encoding: chunked\r\n\r\n" % status + (b"400\r\n" + bytes(1024) + b"\r\n") * 100
        with CannedServer(reply) as server:
            made = connect(server.url, max_reply_bytes=5000)
            run = made.send if whole else made.pieces
            if status == 200:
                with pytest.raises(BadReply, match="more than 5000 bytes"):
                    run()
            elif whole:
                assert run()[::2] == (500, b"")
            else:
                assert len(b"".join(run()[2])) <= 5000


def test_a_request_to_stop_within_a_reply():
    """The next piece ends at once, from another thread."""
    stop, gone = StopToken(), threading.Event()

    def serve(connection, _):
        request_of(connection, END)
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        stop()
        while connection.recv(1 << 16):
            pass
        gone.set()

    with Peer(serve) as peer:
        connections = Connections(Address(peer.url))
        with pytest.raises(Unreachable):
            settle(taken(connections.open(ASK, monotonic() + 3600, stop)))
        assert gone.wait(LONG), "its connection has ended"


# ------------------------------------------------------------------------------------------------------------------- cuts
REPLIES = {
    "length": b"HTTP/1.1 200 -\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": CHUNKED + b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nA: b\r\n\r\n",
    "interim": b"HTTP/1.1 100 -\r\n\r\nHTTP/1.1 200 -\r\nContent-Length: 1\r\n\r\nh",
}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_cut_at_any_byte(connect, case, reset):
    """Is no reply, whatever had come; the call after it is answered."""
    reply = REPLIES[case]

    def serve(connection, number):
        request_of(connection, END)
        cut = (number - 1) // 2
        connection.sendall(reply[: cut if number % 2 else len(reply)])
        if reset and number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with Peer(serve) as peer:
        for _ in range(len(reply)):
            made = connect(peer.url)
            with pytest.raises(Unreachable) as raised:
                made.send()
            assert raised.value.retriable
            assert not raised.value.stale
            assert made.send().status == 200


def test_a_reply_byte_by_byte(connect):
    """Is read, as long as the time lasts; then it ends, in the head and in the body, however regularly bytes come."""
    reply = REPLIES["chunks"]

    def serve(connection, _):
        request_of(connection, END)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(len(reply)):
            connection.sendall(reply[n : n + 1])
        connection.recv(1)

    with Peer(serve) as peer:
        assert connect(peer.url).send().body == b"hello"


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 -\r\nA: ", b"HTTP/1.1 200 -\r\n\r\n", CHUNKED + b"FFFF\r\n"])
def test_a_trickle_ends_with_the_time(connect, start):
    """That of the whole call."""
    over = threading.Event()

    def serve(connection, _):
        request_of(connection, END)
        connection.sendall(start)
        while not over.wait(0.01):
            connection.sendall(b"a")

    with Peer(serve) as peer:
        made = connect(peer.url)
        with pytest.raises(TimedOut, match=r"in time|no time was left"):
            made.send(left_s=0.3)
        over.set()


def test_a_kept_connection_that_the_server_closes(connect):
    """At the moment of the next request: known as stale, so that it is sent again at once. Before: a new one is made."""
    closing = threading.Event()

    def serve(connection, number):
        request_of(connection, END)
        connection.sendall(http_reply(b"1"))
        if number == 1:
            connection.recv(1)  # the next request has begun
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            closing.set()

    with Peer(serve) as peer:
        made = connect(peer.url)
        assert made.send().body == b"1"
        with pytest.raises(Unreachable) as raised:
            made.send()
        assert raised.value.stale
        assert raised.value.retriable
        assert made.send().body == b"1"


@pytest.mark.parametrize("more", [b"", b"HTTP/1.1 200 -\r\nContent-Length: 6\r\n\r\nforged"])
def test_what_comes_while_a_connection_is_idle(connect, more):
    """Its end, or bytes that nobody asked for: another connection is made, before anything is sent."""
    idle, came = threading.Event(), threading.Event()

    def serve(connection, number):
        request_of(connection, END)
        connection.sendall(http_reply(b"1"))
        if number == 1:
            assert idle.wait(LONG)
            connection.sendall(more)
            connection.shutdown(socket.SHUT_WR)
            wait_for(lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == FIN_WAIT_2)
            came.set()
            while connection.recv(1 << 16):
                pass

    with Peer(serve) as peer:
        made = connect(peer.url)
        assert made.send().body == b"1"
        idle.set()
        assert came.wait(LONG)
        assert made.send().body == b"1"
        assert peer.connections == 2


def test_a_kept_connection_that_ends_within_a_reply(connect):
    """Is not stale: the server was at work on the request."""

    def serve(connection, _):
        request_of(connection, END)
        connection.sendall(http_reply(b"1"))
        request_of(connection, END)
        connection.sendall(b"HTTP/1.1 200")

    with Peer(serve) as peer:
        made = connect(peer.url)
        assert made.send().body == b"1"
        with pytest.raises(Unreachable, match="incomplete") as raised:
            made.send()
        assert raised.value.retriable
        assert not raised.value.stale


def test_a_half_closed_connection(connect):
    """A server that has shut its side down after its reply is not asked again by that connection."""

    def serve(connection, _):
        request_of(connection, END)
        connection.sendall(http_reply(b"1"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    with Peer(serve) as peer:
        made = connect(peer.url)
        for _ in range(3):
            with contextlib.suppress(Unreachable):  # its end has not come yet
                assert made.send().body == b"1"
        assert peer.connections >= 2


def test_many_calls_by_one_connection(connect):
    """One after another."""
    with CannedServer(http_reply(b"1")) as server:
        made = connect(server.url)
        assert {made.send().body for _ in range(300)} == {b"1"}
        assert server.connections == 1


# ------------------------------------------------------------------------------------------------------------------- pins
@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """(its file, a server's settings, the pin of that server's key)."""
    made, path = trustme.CA(), tmp_path_factory.mktemp("authority") / "authority.pem"
    made.cert_pem.write_to_path(str(path))
    issued, context = made.issue_cert("127.0.0.1"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    return path, context, "sha256/" + base64.b64encode(pin_of(der)).decode()


OTHER = "sha256/" + base64.b64encode(bytes(32)).decode()


def test_the_pin_of_a_certificate(authority):
    """Is the SHA-256 of its SubjectPublicKeyInfo, as another library has it."""
    x509 = pytest.importorskip("cryptography.x509")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    issued = trustme.CA().issue_cert("a", "b.example", "1.2.3.4")
    for pem in (issued.cert_chain_pems[0].bytes(), authority[0].read_bytes()):
        key = x509.load_pem_x509_certificate(pem).public_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert pin_of(ssl.PEM_cert_to_DER_cert(pem.decode())) == hashlib.sha256(spki).digest()


@pytest.mark.parametrize("size", [0, 1, 40, 300])
def test_what_is_no_certificate_has_no_pin(size, authority):
    """Cut short, or other bytes."""
    der = ssl.PEM_cert_to_DER_cert(authority[0].read_text())
    for data in (der[:size], os.urandom(size), b"\x30" * size, b"\x30\xff" * size):
        with pytest.raises(ValueError, match="not a certificate"):
            pin_of(data)


def test_a_pinned_key(connect, authority):
    """Is spoken to, also where the certificate is checked by nothing else, and one of several is enough."""
    path, context, pin = authority
    with CannedServer(http_reply(b"1"), tls=context) as server:
        for verify, pins in ((path, pin), (path, [OTHER, pin]), (False, pin)):
            assert connect(server.url, verify=verify, pin=pins).send().body == b"1"


def test_another_key_than_the_pinned(connect, authority):
    """Nothing is sent, and it is not tried again."""
    path, context, _ = authority
    with CannedServer(http_reply(b"1"), tls=context) as server:
        with pytest.raises(Unreachable, match="another public key than those that are pinned") as raised:
            connect(server.url, verify=path, pin=OTHER).send()
        assert not raised.value.retriable
        with Router(lambda _: ("edge", 0.1), PlainJson(server.url, verify=path, pin=OTHER), threshold=0.5) as router:
            assert "pinned" in router.infer(1).reason
        assert server.requests == []


@pytest.mark.parametrize("pin", ["", "sha256/", "sha1/" + "A" * 27 + "=", "sha256/" + "A" * 44, "A" * 44, [], ["x"], [7], 7])
def test_what_is_no_pin(pin):
    """Is the policy's fault, in one line."""
    with pytest.raises(PolicyError, match="pin") as raised:
        Address("https://a", pin=pin)
    assert "\n" not in str(raised.value)


def test_a_pin_is_of_tls():
    """Without it, it would be no protection."""
    with pytest.raises(PolicyError, match="needs an https"):
        Address("http://a", pin=OTHER)


def test_pins_of_a_policy(tmp_path, authority):
    """In [cloud], one or several; a malformed one says what it takes."""
    path, context, pin = authority
    text = 'mode = "only_cloud"\n[cloud]\nprotocol = "json"\nurl = "{}"\nverify = "{}"\npin = {}\n'
    with CannedServer(http_reply(b'{"value": "cloud"}'), tls=context) as server:
        policy = tmp_path / "policy.toml"
        for value in (f'"{pin}"', f'["{OTHER}", "{pin}"]'):
            policy.write_text(text.format(server.url, path, value))
            with Router.from_policy(policy) as router:
                assert router.infer(1).value == "cloud"
        policy.write_text(text.format(server.url, path, '"sha256/x"'))
        with pytest.raises(PolicyError, match=r"cloud.*pin"):
            Router.from_policy(policy)


def test_old_versions_of_tls(authority):
    """1.2 is the oldest that is spoken."""
    path, _, _ = authority
    assert Wire(Address("https://127.0.0.1:1", verify=path)).context().minimum_version >= ssl.TLSVersion.TLSv1_2


# --------------------------------------------------------------------------------------------------------------- requests
def test_a_header_with_a_line_break_is_not_sent(connect):
    """Of a protocol of one's own; its value is not quoted."""
    with CannedServer(http_reply(b"1")) as server:
        made = connect(server.url)
        for name, value in (("X", "a\r\nsecret: b"), ("X", "a\nsecret"), ("X\r", "secret")):
            with pytest.raises(CloudError, match="line break") as raised:
                made.send(call=Call("POST", "/", [(name, value)]))
            assert "secret" not in str(raised.value)
        assert server.requests == []
        assert made.send().body == b"1"


def test_no_time_left(connect):
    """Nothing is sent."""
    with CannedServer(http_reply(b"1")) as server:
        with pytest.raises(TimedOut, match="no time was left"):
            connect(server.url).send(left_s=-1)
        assert server.connections == 0


@pytest.mark.parametrize("size", [10, 1 << 24])
def test_a_server_that_reads_nothing(connect, size):
    """The time is for the request as well."""
    over = threading.Event()
    with Peer(lambda *_: over.wait(LONG)) as peer:
        with pytest.raises(TimedOut, match=r"in time|no time was left"):
            connect(peer.url).send(left_s=0.2, call=Call("POST", "/", body=bytes(size)))
        over.set()


@pytest.mark.parametrize("size", [0, 1, 1 << 14, (1 << 14) + 1, 1 << 22])
def test_requests_of_any_size(connect, size):
    """Arrive whole, whatever parts they are sent in, and replies likewise."""
    with CannedServer(lambda request: http_reply(request.partition(b"\r\n\r\n")[2])) as server:
        made, body = connect(server.url, max_reply_bytes=1 << 23), os.urandom(size)
        assert made.send(call=Call("POST", "/", body=body)).body == body


# ---------------------------------------------------------------------------------------------------------------- proxies
@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (b"HTTP/1.0 200 Connection established\r\n\r\n", True),
        (b"HTTP/1.1 200 -\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", True),  # which a client ignores here
        (b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n", True),
        (b"HTTP/1.1 200 -\r\n\r\nHTTP/1.1 200 -\r\nContent-Length: 1\r\n\r\nf", False),  # before TLS has begun
        (b"SSH-2.0\r\n\r\n", False),
        (b"HTTP/1.1 502 -\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 403 -\r\nContent-Length: 0\r\n\r\n", False),
        (b"", False),
    ],
)
def test_what_a_proxy_answers(connect, authority, answer, good, monkeypatch):
    """A success connects through; anything else is said without being quoted, and a refusal is final."""
    path, context, pin = authority
    with CannedServer(http_reply(b"1"), tls=context) as server:

        def serve(connection, _):
            data = b""
            while not data.endswith(b"\r\n\r\n"):
                data += connection.recv(1 << 16)
            connection.sendall(answer)
            if good:
                with socket.create_connection(("127.0.0.1", server.port)) as there:
                    forward = threading.Thread(target=pump, args=(there, connection), daemon=True)
                    forward.start()
                    pump(connection, there)
                    forward.join(LONG)

        with Peer(serve) as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            made = connect(server.url, verify=path, pin=pin)
            if good:
                assert [made.send().body for _ in range(2)] == [b"1", b"1"]
                assert proxy.connections == 1
            else:
                with pytest.raises(Unreachable, match="proxy") as raised:
                    made.send()
                assert raised.value.retriable == (b" 403 " not in answer)
                assert "SSH" not in str(raised.value)
            made.close()


def pump(source, sink):
    """Copies what comes until it ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_socks_proxy_says_what_to_do(connect, monkeypatch):
    """It needs httpx."""
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(PolicyError, match="httpx client"):
        connect("http://far.invalid").send()
