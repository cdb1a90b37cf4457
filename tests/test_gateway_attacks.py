"""Who attacks the gateway: web pages, names that resolve to this machine, peers that send or take slowly, and odd bodies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from pathlib import Path

import httpx
import pytest
from draws import draws
from gateways import CHAT, LONG, connected, hosting, post, raw, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from edgeroute import AsyncRouter, BadInput, PolicyError, Unreachable
from edgeroute.tools.server import client_messages_and_json_bounds as bounds
from edgeroute.tools.server import openai_chat_completions as openai_completions
from edgeroute.tools.server import uvicorn_with_client_limits as host
from edgeroute.tools.server.access_limits_call_options import Bodies, Body, Calls, Guard, peer_of
from edgeroute.tools.server.gateway import app

CHATS = "/v1/chat/completions"


def edge(x):
    return "ok", 0.9


@pytest.fixture(scope="module")
def url():
    with serving(AsyncRouter(edge), hosts=["Desk.local"], max_body_bytes=3 << 20, body_timeout_s=LONG) as url:
        yield url


def status(reply):
    """Of each reply in these bytes."""
    return [int(part[:3]) for part in reply.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST:8484", "127.0.0.1:1", "192.168.1.9", "[::1]:80", "[::1]", "desk.local.:80"]
)
def test_own_names(url, name):
    """This machine's, as addresses or as allowed: a page cannot have an address for its own name."""
    assert status(raw(url, post(CHATS, CHAT, "Connection: close", host=name))) == [200]


@pytest.mark.parametrize("name", ["", "*", "desk.local:80", "http://desk.local", "a b", "b\u00fcro"])
def test_a_name_that_no_host_has(name):
    """It is refused at the start: it would allow nothing, or a client without a name."""
    with pytest.raises(PolicyError, match="is no host name"):
        Guard(lambda *_: None, hosts=[name])


HOSTILE = [
    "evil.example", "evil.example:8484", "127.0.0.1.evil.example", "localhost.evil.example", "localhost:", "localhost:80@evil.example",
    "user@localhost", "0x7f000001", "2130706433", "[::1", "[::1]x", "[127.0.0.1]", "::1", "localhost/", "loc\xe4lhost", "",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_dns_rebinding(url, name):
    """A page whose own name resolves to this machine sends that name, and is told nothing."""
    reply = raw(url, post(CHATS, CHAT, "Connection: close", host=name))
    assert status(reply) in ([421], [400])  # h11 refuses some by itself
    assert b'"ok"' not in reply


def test_two_hosts(url):
    """Are one too many."""
    assert status(raw(url, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")) == [400]


PAGES = [
    ("Origin: https://evil.example",), ("Origin: null",), ("Sec-Fetch-Site: cross-site",), ("Sec-Fetch-Site: same-site",),
    ("Origin: http://localhost:8484", "Sec-Fetch-Site: same-origin"),
]  # fmt: skip


@pytest.mark.parametrize("lines", PAGES)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_a_web_page(url, lines, method):
    """Its request is refused whatever it is, and no header allows it to read the reply."""
    sent = post(CHATS, CHAT, *lines, "Connection: close").replace(b"POST", method.encode(), 1)
    reply = raw(url, sent)
    assert status(reply) == [403]
    assert b"access-control" not in reply.lower()


@pytest.fixture(scope="module")
def paged():
    """-> the address of a gateway that serves a page of its own."""
    with serving(AsyncRouter(edge), routes=[Route("/", lambda _: Response("a page"))]) as url:
        yield url


@pytest.mark.parametrize(
    ("lines", "host", "expected"),
    [
        *((lines, "localhost", 403) for lines in PAGES),
        (("Origin: http://localhost:8484", "Sec-Fetch-Site: same-origin"), "localhost:8484", 200),
        (("Origin: http://127.0.0.1:8484",), "127.0.0.1:8484", 200),
        (("Origin: http://127.0.0.1:8484",), "localhost:8484", 403),
        (("Origin: http://localhost:8485",), "localhost:8484", 403),
        (("Origin: http://localhost:8484", "Sec-Fetch-Site: same-site"), "localhost:8484", 403),
        (("Origin: http://evil.example", "Sec-Fetch-Site: same-origin"), "evil.example", 421),
    ],
    ids=str,
)
def test_a_page_of_its_own(paged, lines, host, expected):
    """It may ask under the name by which it was opened; others' pages may not, nor a name of theirs that leads here."""
    assert status(raw(paged, post(CHATS, CHAT, *lines, "Connection: close", host=host))) == [expected]


@pytest.mark.parametrize(("path", "expected"), [("/", 200), ("/v1/models", 403)])
def test_a_link_to_its_page(paged, path, expected):
    """It can be followed from another site, to the page alone."""
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert httpx.get(f"{paged}{path}", headers=followed, timeout=LONG).status_code == expected


@pytest.mark.parametrize(
    "kind", ["text/plain", "TEXT/PLAIN;charset=utf-8", "multipart/form-data", "application/x-www-form-urlencoded"]
)
@pytest.mark.parametrize("path", [CHATS, "/v2/models/edgeroute/infer"])
def test_a_body_that_a_page_may_send_anywhere(url, kind, path):
    """Is refused by its type alone, of whatever program it is."""
    assert status(raw(url, post(path, CHAT, "Connection: close", kind=kind))) == [415]


def test_the_token():
    """As the API key of OpenAI's client; the health of the gateway is told without."""
    openai = pytest.importorskip("openai")
    with serving(AsyncRouter(edge), token="s3cret\n") as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret") as client:
            assert client.chat.completions.create(**CHAT).choices[0].message.content == "ok"
        for wrong in ("s3cre", "s3crets", "S3CRET"):
            with (
                openai.OpenAI(base_url=f"{url}/v1", api_key=wrong) as client,
                pytest.raises(openai.AuthenticationError) as caught,
            ):
                client.chat.completions.create(**CHAT)
            assert "s3c" not in caught.value.response.text.lower()
        for header in (
            "Authorization: Basic s3cret",
            "Authorization: s3cret",
            "Authorization: Bearer",
            "Authorization: Bearer s3cret\xe9",
            "X: y",
        ):
            for sent in (post(CHATS, CHAT, header, "Connection: close"), post("/v2/models/edgeroute/infer", {}, header)):
                reply = raw(url, sent)
                assert status(reply) == [401], header
                assert b"www-authenticate: bearer" in reply.lower()
        twice = post(CHATS, CHAT, "Authorization: Bearer no", "Authorization: Bearer s3cret")
        assert status(raw(url, twice)) == [400]
        assert httpx.get(f"{url}/v2/health/live", timeout=LONG).status_code == 200
        assert (
            httpx.get(f"{url}/v1/models", timeout=LONG).status_code
            == httpx.get(f"{url}/nowhere", timeout=LONG).status_code
            == 401
        )


@pytest.mark.parametrize("token", ["", " \n", "two words", "ümlaut", "a\x00b"])
def test_what_is_no_token(token):
    """Is found before anything is served: an empty one would let everybody in."""
    with pytest.raises(PolicyError):
        Guard(None, token=token)


def test_reasons_make_no_headers():
    """What a model or a server says is one line of ASCII in a header, and does not begin another one."""

    def odd(_):
        raise Unreachable("x\r\nX-Evil: 1\r\n\r\n<html>\x00\x1b[31m é 漢")

    def unsure(x):
        return "ok\r\nX-Evil: 2", 0.1

    with serving(AsyncRouter(unsure, odd, threshold=0.5)) as url:
        reply = httpx.post(url + CHATS, json=CHAT, timeout=LONG)
        text = raw(url, post(CHATS, CHAT, "Connection: close"))
    assert "x-evil" not in reply.headers
    assert "X-Evil:" in reply.headers["x-edgeroute-reason"]
    assert text.split(b"\r\n\r\n")[0].isascii()
    assert text.count(b"\r\n\r\n") == 1
    assert reply.json()["choices"][0]["message"]["content"] == "ok\r\nX-Evil: 2"


BODIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "text that is no UTF-8": b'{"model": "\xff"}',
    "lists within lists": b"[" * 100_000,
    "objects within objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep, and whole": json.dumps({**CHAT, "tools": []}).replace("[]", "[" * 200 + "]" * 200).encode(),
    "many values": b'{"model": "edgeroute", "messages": [{"a": [' + b"[]," * openai_completions.MOST_VALUES + b"[]]}]}",
    "more than may be values": b'{"a": [' + b"1," * openai_completions.MOST_SIGNS + b"1]}",
    "no number": b'{"model": NaN}',
    "a number of many digits": b'{"model": "edgeroute", "messages": [], "seed": ' + b"9" * 10_000 + b"}",
    "a key twice": b'{"model": "edgeroute", "model": ["x"], "messages": []}',
    "a model that is none": b'{"model": {"$gt": ""}, "messages": [{}]}',
    "a name as long as it may be": json.dumps({**CHAT, "model": "x" * 100_000}).encode(),
}


@pytest.mark.parametrize("what", BODIES)
def test_odd_bodies(url, what):
    """Are refused with a short text, and cost no connection."""
    reply = httpx.post(url + CHATS, content=BODIES[what], headers={"content-type": "application/json"}, timeout=LONG)
    assert reply.status_code in {400, 404, 413}
    assert len(reply.content) < 1000
    assert httpx.post(url + CHATS, json=CHAT, timeout=LONG).status_code == 200


json_codec_and_short_repr = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["model", "messages", "stream", "stream_options", "n", "logprobs", "prompt", "tools", "echo", "best_of", "max_tokens"]
)


@pytest.mark.slow
@settings(max_examples=draws(60))
@given(changes=st.dictionaries(KEYS, json_codec_and_short_repr, max_size=4), path=st.sampled_from([CHATS, "/v1/completions"]))
def test_whatever_comes(url, changes, path):
    """It is answered or refused; nothing is a fault of the gateway."""
    with httpx.Client(base_url=url, timeout=LONG) as client:
        reply = client.post(
            path, content=json.dumps({**CHAT, "prompt": "x", **changes}).encode(), headers={"content-type": "application/json"}
        )
    assert reply.status_code in {200, 400, 404}, reply.text


@pytest.mark.parametrize("library", ["orjson", "json"])
def test_numbers_above_any_float(url, monkeypatch, library):
    """Wherever one stands in a request, it is the client's mistake, by either library; of `logprobs` only its truth counts."""
    if library == "json":
        monkeypatch.setattr("edgeroute.system.json_codec_and_short_repr.orjson", None)
    huge = "1" + "0" * 400
    for key in ("temperature", "top_p", "max_tokens", "seed", "n", "logprobs", "stream_options", "stop", "messages"):
        for value in (huge, f"-{huge}", "1e999", f"[{huge}]"):
            text = json.dumps(CHAT)[:-1] + f', "{key}": {value}}}'
            reply = httpx.post(f"{url}{CHATS}", content=text, headers={"Content-Type": "application/json"}, timeout=LONG)
            assert reply.status_code == 400 or (reply.status_code, key) == (200, "logprobs"), (key, value)
    late = {"x-edgeroute-deadline": f"{huge}s"}
    assert httpx.post(f"{url}{CHATS}", json=CHAT, headers=late, timeout=LONG).status_code == 400


def test_a_large_body(url):
    """Announced or in chunks: 413, before it is read."""
    assert httpx.post(url + CHATS, content=b"x" * ((3 << 20) + 1), timeout=LONG).status_code == 413
    assert httpx.post(url + CHATS, content=(b"x" * 100_000 for _ in range(36)), timeout=LONG).status_code == 413


def test_a_compressed_body(url):
    """Is not unpacked: a bomb stays one."""
    assert status(raw(url, post(CHATS, b"\x1f\x8b", "Content-Encoding: gzip", "Connection: close"))) == [415]


def test_two_lengths(url):
    """Nothing that follows is taken for a request."""
    sent = post(CHATS, CHAT, "Transfer-Encoding: chunked") + b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert status(raw(url, sent)) == [400]


@pytest.mark.parametrize("path", [CHATS, "/nowhere"])
@pytest.mark.parametrize("apart", [False, True])
def test_what_is_no_http_behind_a_head(caplog, path, apart):
    """It ends the connection, before or after the reply; strangers cannot fill the log with frames."""
    begun = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with serving(AsyncRouter(edge), token=None if apart else "s3cret") as url, connected(url) as connection:
        connection.sendall(begun if apart else begun + b"no chunk\r\n")
        if apart and path != CHATS:
            assert b"there is nothing" in connection.recv(65536)
        connection.sendall(b"no chunk\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert len(status(b"".join(iter(lambda: connection.recv(65536), b"")))) <= 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_large_head(url):
    """Megabytes of headers are not held: 400, and the connection ends."""
    with connected(url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(OSError):  # it may be closed meanwhile
            for _ in range(160):
                connection.sendall(b"X: " + b"x" * 65_536 + b"\r\n")
        reply = b""
        with contextlib.suppress(OSError):
            reply = connection.recv(65536)
    assert status(reply) in ([400], [])
    assert httpx.get(f"{url}/v1/models", timeout=LONG).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"GET /v1/models HTTP/1.1\r\nHost: localh"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_head_that_does_not_end(monkeypatch, begun, before):
    """Slowloris: the connection ends, if it sends nothing, and also if a request was answered before."""
    with serving(AsyncRouter(edge)) as url, contextlib.ExitStack() as stack:
        if not before:
            monkeypatch.setattr(host, "HEAD_S", 0.1)
        connection = stack.enter_context(connected(url))
        for _ in range(before):
            assert ask(connection) == [200]
        monkeypatch.setattr(host, "HEAD_S", 0.1)
        connection.sendall(begun or b"G" * before)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(65536) == b""


def test_a_body_that_does_not_end():
    """408, and its connection ends."""
    with serving(AsyncRouter(edge), body_timeout_s=0.1) as url:
        assert status(raw(url, post(CHATS, CHAT)[:-1])) == [408]


def test_a_client_that_does_not_read(monkeypatch):
    """Its stream ends with its connection, once it has not read for some time; the cloud's call is closed."""
    monkeypatch.setattr(host, "TAKEN_S", 0.3)
    closed = threading.Event()

    async def endless(_):
        try:
            while True:
                yield "x" * 65_536
                await asyncio.sleep(0)
        finally:
            closed.set()

    with serving(AsyncRouter(cloud=endless)) as url, connected(url) as connection:
        connection.sendall(post(CHATS, {**CHAT, "stream": True}))
        assert closed.wait(LONG)


ASKED = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


def ask(connection, rest=b"\r\n"):
    """The status of a request on a connection that stays open."""
    connection.sendall(ASKED + rest)
    said = b""
    while not said.endswith(b"]}"):
        part = connection.recv(65536)
        assert part, "the connection was closed"
        said += part
    return status(said)


def test_many_connections(monkeypatch):
    """As many as are allowed: a further one takes the place of the one that was idle longest."""
    monkeypatch.setattr(host, "MOST_CONNECTIONS", 8)
    with serving(AsyncRouter(edge)) as url, contextlib.ExitStack() as stack:
        many = [stack.enter_context(connected(url)) for _ in range(8)]
        assert [ask(one) for one in many] == [[200]] * 8
        assert status(raw(url, ASKED + b"Connection: close\r\n\r\n")) == [200]
        with contextlib.suppress(ConnectionResetError):
            assert many[0].recv(65536) == b""
        assert ask(many[-1]) == [200]


def test_many_connections_in_use(monkeypatch):
    """A further one is told to come again: no answer is cut for it."""
    monkeypatch.setattr(host, "MOST_CONNECTIONS", 2)
    left, begun = threading.Event(), threading.Semaphore(0)

    def slow(_):
        begun.release()
        left.wait(LONG)
        return "ok", 0.9

    with serving(AsyncRouter(slow)) as url, contextlib.ExitStack() as stack:
        stack.callback(left.set)
        using = [stack.enter_context(connected(url)) for _ in range(2)]
        for one in using:
            one.sendall(post(CHATS, CHAT, "Connection: close"))
            assert begun.acquire(timeout=LONG)
        with connected(url) as more:
            reply = more.recv(65536)
        assert (status(reply), b"Retry-After" in reply) == ([503], True)
        left.set()
        assert {one.recv(65536)[:12] for one in using} == {b"HTTP/1.1 200"}


def test_strangers_and_those_who_have_the_token(monkeypatch):
    """Connections without the token make room for others, end after one request, and never displace those that showed it."""
    monkeypatch.setattr(host, "MOST_CONNECTIONS", 4)
    token = b"Authorization: Bearer s3cret\r\n\r\n"
    with serving(AsyncRouter(edge), token="s3cret") as url, contextlib.ExitStack() as stack:
        known = stack.enter_context(connected(url))
        assert ask(known, token) == [200]
        for _ in range(12):  # heads that do not end
            stack.enter_context(connected(url)).sendall(ASKED)
        many = stack.enter_context(connected(url))
        many.sendall(100 * b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(b"".join(iter(lambda: many.recv(65536), b""))) == [200]
        assert ask(known, token) == [200]


def test_a_share_of_the_connections(monkeypatch):
    """One address of another machine makes room among its own, and gets no more than its share."""
    monkeypatch.setattr(host, "MOST_CONNECTIONS", 8)
    monkeypatch.setattr(host, "peer_of", lambda _: "192.0.2.1")
    with serving(AsyncRouter(edge)) as url, contextlib.ExitStack() as stack:
        many = []
        for _ in range(7):
            many.append(stack.enter_context(connected(url)))
            assert ask(many[-1]) == [200]
        with contextlib.suppress(ConnectionResetError):
            assert many[0].recv(65536) == b""
        assert ask(many[1]) == [200]


@pytest.mark.parametrize(("address", "peer"), [
    ("192.0.2.1", "192.0.2.1"), ("127.0.0.5", ""), ("::1", ""), ("::ffff:127.0.0.1", ""), ("::ffff:192.0.2.1", "192.0.2.1"),
    ("2001:db8::1", "2001:0db8:0000:0000"), ("2001:db8::ffff:ffff:ffff:ffff", "2001:0db8:0000:0000"),
    ("fe80::1%eth0", "fe80:0000:0000:0000"), ("a proxy's text", "a proxy's text"),
])  # fmt: skip
def test_peers(address, peer):
    """One machine has all addresses of a network /64, and would else have as many shares."""
    assert peer_of((address, 1)) == peer


def test_a_share_for_each_peer():
    """One address of another machine holds neither all places nor all connections; this machine's programs share one address."""
    calls = Calls(Bodies(1, 1, 1.0), 4)
    far, here = {"client": ("192.0.2.1", 1)}, {"client": ("127.0.0.1", 1)}
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(calls.place(far))
        with pytest.raises(HTTPException, match="requests are in progress"):
            stack.enter_context(calls.place(far))
        stack.enter_context(calls.place(here))
        with pytest.raises(HTTPException, match="requests are in progress"):
            stack.enter_context(calls.place(here))
    assert calls.running == 0
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(calls.place(here))


def test_a_large_body_is_read_beside_the_event_loop():
    """Nobody else waits for its JSON."""
    calls = Calls(Bodies(1, 1, 1.0), 4)
    names = [asyncio.run(calls.parse(b" " * size, lambda _: threading.current_thread().name)) for size in (100, 100_000)]
    calls.close()
    assert names[0] == threading.current_thread().name != names[1]


def test_large_bodies_leave_room():
    """The memory of all bodies is never taken by large ones alone; one alone may have it."""
    bodies = Bodies(1_000_000, 1_000_000, LONG)

    async def held(size):
        async def receive():
            return {"type": "http.request", "body": b"x" * size}

        with Body(bodies, {}) as body:
            await body.read(receive)
            return bodies.held

    assert asyncio.run(held(1_000_000)) == 1_000_000
    bodies.held = 850_000
    assert asyncio.run(held(60_000)) == 910_000
    with pytest.raises(HTTPException) as caught:
        asyncio.run(held(100_000))
    assert (caught.value.status_code, bodies.held) == (503, 850_000)


def test_a_head_that_comes_at_once(url):
    """Counts to the limit, too."""
    assert status(raw(url, ASKED + b"X: " + b"x" * (host.HEAD_BYTES + 100) + b"\r\nConnection: close\r\n\r\n")) in ([431], [400])


def function(parameters):
    """A tool."""
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def test_a_head_of_many_lines(url):
    """Costs the time of its lines: 400, also behind a request in progress."""
    lines = b"A: b\r\n" * host.HEAD_LINES
    assert status(raw(url, ASKED + lines[: -6 * 4] + b"Connection: close\r\n\r\n")) == [200]
    assert status(raw(url, ASKED + lines + b"\r\n")) == [400]
    assert status(raw(url, ASKED.replace(b"\r", b"") + lines.replace(b"\r", b"") + b"\n")) == [400]
    assert status(raw(url, ASKED + b"\r\n" + ASKED + lines + b"\r\n")) == [200, 400]


def test_a_body_of_small_chunks(url):
    """Costs the time of its chunks: 400. A body may have some, or any number of usual ones."""
    head = post(CHATS, b"", "Transfer-Encoding: chunked", "Connection: close").replace(b"Content-Length: 0\r\n", b"")
    chat = json.dumps(CHAT).encode()

    def sent(*sizes):
        parts = [*(b" " * size for size in sizes), chat, b""]
        return status(raw(url, head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)))

    for sizes in ([1] * (host.CHUNKS - 1), [100] * 3000, [100_000, *[1] * 1500]):
        assert sent(*sizes) == [200]
    assert sent(*[1] * 2 * host.CHUNKS) == [400]


RANGES = {
    "temperature": ([0, 2, 0.5], [-0.1, 2.1, True, "1", [], 1e300]),
    "top_p": ([0.1, 1], [1.5, -1]),
    "frequency_penalty": ([-2, 2], [3]),
    "presence_penalty": ([-2, 2], [-3]),
    "max_tokens": ([1, 4096], [0, -1, 131_073, 1.5, "7", True]),
    "max_completion_tokens": ([1, 131_072], [0, 10**9]),
    "seed": ([0, -1, 2**63 - 1], [1.5, True]),
    "stop": (["x", ["a", "b"]], ["", "x" * 257, ["x"] * 17, [1], {}]),
    "logit_bias": ([{}, {"5": -100}], [{"a": 1}, {"5": 101}, [], {str(i): 0 for i in range(301)}, {"²": 1}, {"9" * 8: 1}]),
    "tools": ([[{"type": "function", "function": {"name": "f", "parameters": {"properties": {"pattern": {"type": "string"}}}}}]],
              [{}, [function({"pattern": "(a+)+"})], [function({})] * 129, [function("x" * (128 << 10))], [None], ["x"], [{}],
               [{"type": "web_search"}],
               [{**function({}), "type": "custom"}], [{"type": "mcp", "server_url": "http://a"}], [{**function({}), "cache_control": {}}],
               [{"type": "function", "function": {"name": "f", "defer_loading": True}}],
               [{"google_search": {}}], [{"type": "custom", "custom": {"format": {"type": "grammar"}}}]]),
    "tool_choice": (["auto", {"type": "function", "function": {"name": "f"}}],
                    ["x", 1, [], {"a": "x"}, {"type": "mcp", "server_label": "a"}, {"type": "function", "function": {"name": {}}},
                     {"type": "function", "function": {"name": "f"}, "server_url": "http://a"}]),
    "parallel_tool_calls": ([True, False], [1, "true"]),
    "response_format": (
        [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {"enum": ["a"] * 128, "maxItems": 1000}}}],
        ["json", {}, {"type": "grammar", "grammar": "root ::= a"}, {"type": ["text"]}, {"type": "text", "regex": "a"},
         {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "url": "a"}}, {"type": "json_schema", "json_schema": [[]]},
         *({"type": "json_object", "schema": bad} for bad in (
             {"enum": ["a"] * 129}, {"a": {"pattern": "a*"}}, {"a": {"maxLength": 1001}}, {"a": {"minItems": -1}},
             {"$ref": "http://a/b"}, {"a": "x" * (32 << 10)}, json.loads('{"a":' * 17 + "1" + "}" * 17)))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", openai_completions.KEYS)
def test_ranges(key):
    """Each declared key takes what is in its range, and refuses the rest by its text."""
    good, bad = RANGES[key]
    for value in good:
        assert openai_completions.client_keys({key: value}, (), ()) == {key: value}
    for value in bad:
        with pytest.raises(BadInput, match=rf'{key} takes .*\[gateway\] allow = \["{key}"\]'):
            openai_completions.client_keys({key: value}, (), ())
        assert openai_completions.client_keys({key: value}, (), [key]) == {key: value}
    assert openai_completions.client_keys({key: None}, (), ()) == {}


@pytest.mark.parametrize(("bad", "beyond"), [
    ({"pattern": "^[A-Z]{3}$"}, "pattern, which is not taken"), ({"maxLength": 4000}, "maxLength 4000, and 0 to 1,000 are taken"),
    ({"enum": [f"c{i}" for i in range(249)]}, "a list or object of 249 entries, and 128 are the most"),
    ({"$ref": "http://a/b"}, "$ref to elsewhere"), ({"a": "x" * (128 << 10)}, "are the most"),
    (json.loads('{"a":' * 17 + "1" + "}" * 17), "more than 16 levels"),
])  # fmt: skip
def test_what_is_beyond_a_limit_of_a_schema(url, bad, beyond):
    """Is named with the tool or schema that has it and the limit, and so is what lifts it, in the forms of all clients."""
    schema = {"type": "object", "properties": {"code": bad}}
    tool = {"name": "lookup", "parameters": schema}
    whole, more = {"model": "edgeroute", "max_tokens": 9, "messages": CHAT["messages"]}, {"name": "lookup", "schema": schema}
    for path, body in (
        (CHATS, {**whole, "tools": [function({}), {"type": "function", "function": tool}]}),
        (CHATS, {**whole, "response_format": {"type": "json_schema", "json_schema": more}}),
        ("/v1/responses", {"model": "edgeroute", "input": "a", "tools": [{"type": "function", **tool}]}),
        ("/v1/messages", {**whole, "tools": [{"name": "lookup", "input_schema": schema}]}),
    ):
        reply = httpx.post(url + path, json=body, timeout=LONG)
        key, told = "response_format" if "response_format" in body else "tools", reply.json()["error"]["message"]
        assert (reply.status_code, f"'lookup' has {beyond}" in told or ("most" in beyond and beyond in told)) == (400, True), told
        assert f'[gateway] allow = ["{key}"] in the policy, or allow=["{key}"] of InProcess lifts that' in told


def test_a_tool_that_is_no_function():
    """Is counted, and the keys of one are named; many together are counted."""
    for tools, why in (([function({}), {"type": "web_search"}], "tool 2 is none"), ([function({})] * 129, "of 129 entries")):
        with pytest.raises(BadInput, match=why):
            openai_completions.client_keys({"tools": tools}, (), ())


def test_many_messages(url):
    """Are refused before a model's template is rendered: messages, and parts of them."""
    for messages in (
        [{"role": "user", "content": "a"}] * 2049,
        [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2049}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}] * 2049,
            }
        ],
    ):
        reply = httpx.post(url + CHATS, json={**CHAT, "messages": messages}, timeout=LONG)
        assert (reply.status_code, "more than 2048" in reply.text) == (400, True)


def test_what_cannot_be_allowed():
    """A key that the gateway handles itself."""
    router = AsyncRouter(edge)
    with pytest.raises(PolicyError, match="stream"):
        app(router, allow=["stream"])
    asyncio.run(router.close())


def test_the_page_lists_the_keys():
    """As they are declared."""
    page = (Path(__file__).parent.parent / "docs" / "gateway.md").read_text()
    lines = "".join(f"{key}: {allowed.text}\n" for key, allowed in openai_completions.KEYS.items())
    assert f"```text\n{lines}```" in page
    for number in (bounds.MOST_LEVELS, bounds.MOST_ENTRIES, f"{bounds.MOST_LENGTH:,}"):
        assert str(number) in page


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("parts", [(b"one",), (b"",), (), (b"x" * 100_000, b"y")])
def test_a_head_and_what_follows_it(parts, waits):
    """One packet has the head and a short first part; a head alone is sent, too, while the application goes on, and if none follows."""
    seen = threading.Event()

    async def application(scope, receive, send):
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200 if parts else 204, "headers": [(b"x-seen", b"1")]})
        if waits:
            await asyncio.to_thread(seen.wait, LONG)
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with hosting(application) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        first = connection.recv(65536)
        seen.set()
        reply = first + b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"x-seen: 1" in head
    assert b"".join(body.split(b"\r\n")[1::2]) == b"".join(parts)
    if parts == (b"one",):
        assert (b"one" in first) is not waits
