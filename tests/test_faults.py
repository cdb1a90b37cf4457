"""Real sockets, and everything that can go wrong on them: the answer comes all the same, and says why it is what it is."""

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import routes
import trustme
from both import GOOD, LONG, flat, sure, unsure, wait_for

from edgeroute import (
    AsyncRouter,
    Closed,
    CloudError,
    DeadlineExceeded,
    NoAnswer,
    OpenInference,
    Options,
    PlainJson,
    Router,
    StopToken,
    TimedOut,
    Unreachable,
)
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, Relay, http_reply

CHUNKED = b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n"
DOWN = http_reply(b"oops", status=503, headers=[("Retry-After", "0")])


LATE = [({"timeout_s": 1.0}, "cloud timeout"), ({}, "cloud deadline")]
"""The endpoint's limit, or if it has none the request's deadline, and what is said then."""


def sockets():
    """The open sockets of this process."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:"):
                found.append(target)
    return sorted(found)


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch):
    """Every test, whatever its fault, ends with the sockets and threads with which it began; no proxy is between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    threads, open_before = set(threading.enumerate()), sockets()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(LONG)
        assert not thread.is_alive(), thread
    wait_for(lambda: not set(sockets()) - set(open_before))  # one that was there may go meanwhile: the collector's work


@pytest.fixture
def ask(kind):
    """Asks a new router of either kind, closes it, and gives its answers; alone if there is one."""

    def ask(cloud, *, edge=unsure, times=1, **policy):
        with kind(edge, cloud, **{"threshold": 0.5, **policy}) as router:
            answers = [router.infer(1) for _ in range(times)]
        return answers if times > 1 else answers[0]

    return ask


def assert_stands(answer, why):
    """The edge's answer, marked, with the fault named."""
    assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
    assert re.search(why, routes.failures(answer)), answer.reason


def in_turn(*replies):
    """The reply to each request: bytes, or an error, which ends the connection."""
    left = iter(replies)

    def reply(_):
        now = next(left)
        if isinstance(now, bytes):
            return now
        raise now

    return reply


def assert_cloud(answer):
    assert (answer.value, answer.source, answer.degraded) == ("cloud", "cloud", False)


def protocol(*outputs, metadata=None):
    """What a server of the Open Inference Protocol replies to each request, where it gives these outputs."""

    def reply(request):
        if request.startswith(b"GET"):
            said = metadata or {"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1]}]}
        else:
            said = {"outputs": [{"name": n, "shape": s, "datatype": "FP32", "data": d} for n, s, d in outputs]}
        return http_reply(json.dumps(said).encode())

    return reply


# what servers say


FAULTS = {
    "HTML": (http_reply(b"<!doctype html><html></html>"), "an HTML page", 1),
    "404": (http_reply(status=404), r"answered 404 \(is the URL right", 1),
    "401": (http_reply(status=401), r"answered 401 \(is api_key set", 1),
    "500": (http_reply(status=500, headers=[("Retry-After", "0")]), "answered 500", 3),
    "empty": (http_reply(), "an empty body, not JSON", 1),
    "no content": (http_reply(status=204), "an empty body, not JSON", 1),
    "redirect": (http_reply(status=302, headers=[("Location", "/elsewhere")]), "answered 302 .*final URL", 1),
    "too long by its header": (http_reply(b"", length=10**7), "more than 1000 bytes: raise max_reply", 1),
    "too long without one": (b"HTTP/1.1 200 -\r\n\r\n" + b" " * 2000, "more than 1000 bytes: raise max_reply", 1),
    "too long in chunks": (CHUNKED + b"FFFFFF\r\n" + b" " * 2000, "more than 1000 bytes: raise max_reply", 1),
    "compressed": (http_reply(gzip.compress(bytes(10**6)), headers=[("Content-Encoding", "gzip")]), "gzip encoding", 1),
    "another protocol": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "illegal status line", 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_says_something_else(ask, fault):
    """Each is named, and repeated only where that may help. No body that is too long ever ends: it is not waited for."""
    reply, why, requests = FAULTS[fault]
    with CannedServer(reply) as server:
        assert_stands(ask(PlainJson(server.url, max_reply_bytes=1000)), why)
        server.wait_for(lambda: server.hung_up == server.connections)
    assert len(server.requests) == requests


LONG_PAGE = b"<html>" + b" " * 2000


@pytest.mark.parametrize("page", [http_reply(LONG_PAGE, status=503), CHUNKED.replace(b"200", b"503") + b"7D0\r\n" + LONG_PAGE])
def test_an_error_with_a_long_page_is_that_error(ask, page):
    """It is repeated as any other 503; the page is not read."""
    with CannedServer(page) as server:
        assert_stands(ask(PlainJson(server.url, max_reply_bytes=1000, retries=1)), "refused 503")
    assert len(server.requests) == 2
    assert server.connections == 2


OUTPUTS = {
    "another output": ([("q", [1, 2], [1, 2])], "1 outputs, not 'y'"),
    "other rows": ([("y", [2, 1], [1, 2])], "1 inputs gave an output whose shape does not begin with 1"),
    "empty": ([("y", [1, 2], [])], "another number of values than its shape says: 0 came"),
    "NaN": ([("y", [1, 2], [None, 1])], "NaN or infinity"),
    "other classes": ([("y", [1, 3], [1, 2, 3])], "3 outputs, but 2 labels"),
}


@pytest.mark.parametrize("fault", OUTPUTS)
def test_outputs_that_are_not_the_models(ask, fault):
    """They pass for no answer."""
    outputs, why = OUTPUTS[fault]
    with CannedServer(protocol(*outputs)) as server:
        assert_stands(ask(OpenInference(server.url, model="m", binary=False, output="y", labels=["a", "b"])), why)


def test_the_same_server_without_a_fault(ask):
    """What is tested above is the fault and not the set-up."""
    with CannedServer(protocol(("y", [1, 2], [0, 9]))) as server:
        answer = ask(OpenInference(server.url, model="m", binary=False, output="y", labels=["a", "b"]))
    assert (answer.value, answer.source, answer.degraded) == ("b", "cloud", False)


def test_a_redirect_leads_nowhere(ask):
    """Inputs and keys go where the policy says, and not where a server sends them."""
    with CannedServer(GOOD) as elsewhere, CannedServer(http_reply(status=307, headers=[("Location", elsewhere.url)])) as server:
        assert_stands(ask(PlainJson(server.url)), "it redirects")
    assert elsewhere.connections == 0


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_server_that_fails_is_asked_again_so_often(ask, retries):
    """As `retries` says, and no more; three faults in a row are the breaker's limit."""
    with CannedServer(DOWN) as server:
        assert_stands(ask(PlainJson(server.url, retries=retries)), "refused 503")
    assert len(server.requests) == 1 + retries


def test_a_retry_that_succeeds_is_no_degradation(ask):
    """503, then 200."""
    with CannedServer(in_turn(DOWN, GOOD)) as server:
        assert_cloud(ask(PlainJson(server.url)))
    assert len(server.requests) == 2


def test_a_server_that_closes_what_it_said_to_keep(kind):
    """Each time the connection is used again: it is opened anew, which takes no retry of the few that there are."""
    count = iter(range(1000))

    def reply(_):
        if next(count) % 2:
            raise ConnectionAbortedError
        return GOOD

    with CannedServer(reply) as server, kind(unsure, PlainJson(server.url), threshold=0.5) as router:
        legs = [router.infer(1).leg for _ in range(40)]
    assert legs == ["cloud"] * 40
    assert sum(request.startswith(b"POST") for request in server.requests) == 79


# what links do


def test_nobody_listens(ask):
    """The port is taken, but not listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert_stands(ask(PlainJson(f"http://127.0.0.1:{taken.getsockname()[1]}")), "cloud unreachable .*http://127.0.0.1:")


def test_the_name_is_wrong(ask):
    """.invalid names nothing, by RFC 2606."""
    assert_stands(ask(PlainJson("http://name.invalid:1/", retries=0)), "cloud unreachable .*http://name.invalid:1: ")


def test_a_body_that_ends_early(ask):
    """In good order, though: only the length tells."""
    with CannedServer(http_reply(b'{"value"', length=100), close=True) as server:
        assert_stands(ask(PlainJson(server.url)), "incomplete|without sending complete")
    assert len(server.requests) == 3


@pytest.mark.parametrize(("fault", "why"), [("reset_after", "reset|Errno|complete"), ("truncate_after", "incomplete|complete")])
def test_a_link_that_breaks_in_the_body(ask, fault, why):
    """After 100 bytes of each reply; a new connection each time."""
    with CannedServer(http_reply(b" " * 10_000)) as server, Relay("127.0.0.1", server.port) as relay:
        setattr(relay, fault, 100)
        assert_stands(ask(PlainJson(relay.url)), why)
    assert relay.connections == 3
    assert relay.bytes_down == 300


def test_a_black_hole(ask):
    """Connections are made, and nothing comes through."""
    with CannedServer(GOOD) as server, Relay("127.0.0.1", server.port) as relay:
        relay.black_hole = True
        assert_stands(ask(PlainJson(relay.url, timeout_s=0.2)), "cloud timeout")
    assert server.requests == []


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("limits", "why"), LATE)
def test_a_server_that_never_answers(ask, limits, why, secure, authority, due):
    """By the endpoint's limit or by the deadline the answer is there, and the connection is cut: the server sees its end."""
    more = {"verify": authority.path} if secure else {}
    with CannedServer(None, tls=authority.server() if secure else None) as server:
        policy = {} if limits else {"deadline": due(lambda: server.requests)}
        assert_stands(ask(PlainJson(server.url, **limits, **more), **policy), why)
        server.wait_for(lambda: server.hung_up == server.connections)
    assert len(server.requests) == 1 or limits, "on a busy machine the limit may pass before the request has come"


@pytest.mark.parametrize("where", ["head", "body"])
@pytest.mark.parametrize(("limits", "why"), LATE)
def test_a_reply_that_trickles(ask, where, limits, why, due):
    """Each byte comes in time, all of them do not: the limit is for the whole."""
    padding = "x" * 50_000
    if where == "head":
        reply = http_reply(b'{"value": 1}', headers=[("X-Padding", padding)])
    else:
        reply = http_reply(json.dumps({"value": 1, "padding": padding}).encode())
    with CannedServer(reply) as server, Relay("127.0.0.1", server.port) as relay:
        relay.throttle = 1000
        policy = {} if limits else {"deadline": due(lambda: relay.bytes_down)}
        assert_stands(ask(PlainJson(relay.url, **limits), **policy), why)
        server.wait_for(lambda: server.hung_up == server.connections)
    assert relay.bytes_down < len(padding)


def test_a_connection_is_kept(ask):
    """One for all requests."""
    with CannedServer(GOOD) as server:
        for answer in ask(PlainJson(server.url), times=3):
            assert_cloud(answer)
    assert (server.connections, len(server.requests)) == (1, 3)


def test_a_kept_connection_that_the_server_has_closed(ask):
    """The next call makes a new one."""
    with CannedServer(GOOD, close=True) as server:
        for answer in ask(PlainJson(server.url, retries=1), times=3):
            assert_cloud(answer)
    assert (server.connections, len(server.requests)) == (3, 3)


def test_a_kept_connection_that_ends_as_it_is_used(ask):
    """The request is sent again at once, on a new one."""
    with CannedServer(in_turn(GOOD, ConnectionAbortedError, GOOD)) as server:
        for answer in ask(PlainJson(server.url, retries=1), times=2):
            assert_cloud(answer)
    assert (server.connections, len(server.requests)) == (2, 3)


def test_a_kept_connection_is_blamed_only_where_there_was_one():
    """An error on the first exchange of a connection is no reason to try again at once."""
    with CannedServer(in_turn(GOOD, ConnectionAbortedError, ConnectionAbortedError)) as server:
        channels, stale = Connections(Address(server.url)), []
        channels.send(Call("POST", "/"), monotonic() + LONG)
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                channels.send(Call("POST", "/"), monotonic() + LONG)
            stale.append(caught.value.stale)
        channels.close()
    assert stale == [True, False]


def test_a_link_that_comes_back(ask):
    """The same router reaches the cloud again."""
    edge = FakeModel([("edge", 0.1)])
    with CannedServer(GOOD) as server, Relay("127.0.0.1", server.port) as relay:
        relay.refuse = True

        def model(x):
            if edge.runs:
                relay.refuse = False
            return edge(x)

        first, second = ask(PlainJson(relay.url, retries=0), edge=model, times=2)
    assert_stands(first, "^cloud ")
    assert_cloud(second)


# TLS


class Authority:
    """A certificate authority for 127.0.0.1, and what it signs, as files."""

    def __init__(self, folder):
        self.made, self.folder = trustme.CA(), folder
        folder.mkdir(exist_ok=True)
        self.path = folder / "authority.pem"
        self.made.cert_pem.write_to_path(str(self.path))

    def server(self, *, asks=None):
        """A server's side; `asks`: whose certificates clients must have."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.made.issue_cert("127.0.0.1").configure_cert(context)
        if asks is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            asks.made.configure_trust(context)
        return context

    def client(self):
        """Paths of a client's certificate and key."""
        made, paths = self.made.issue_cert("client.test"), (self.folder / "client.pem", self.folder / "client.key")
        made.cert_chain_pems[0].write_to_path(str(paths[0]))
        made.private_key_pem.write_to_path(str(paths[1]))
        return paths


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"))


def test_mutual_tls(ask, authority):
    """Both have a certificate that the other trusts."""
    with CannedServer(GOOD, tls=authority.server(asks=authority)) as server:
        assert server.url.startswith("https:")
        for answer in ask(PlainJson(server.url, verify=authority.path, cert=authority.client()), times=2):
            assert_cloud(answer)
    assert server.connections == 1


@pytest.mark.parametrize("given", ["none", "stranger's"])
def test_a_client_certificate_that_is_not_accepted(ask, authority, stranger, given):
    """The reason says what it is about; it is not tried again, since that would change nothing."""
    cert = None if given == "none" else stranger.client()
    with CannedServer(GOOD, tls=authority.server(asks=authority)) as server, Relay("127.0.0.1", server.port) as relay:
        url = relay.url.replace("http:", "https:")
        assert_stands(ask(PlainJson(url, verify=authority.path, cert=cert)), "(?i)certificate|unknown.ca")
    assert relay.connections == 1
    assert server.requests == []


@pytest.mark.parametrize("verify", ["stranger", "system"])
def test_a_server_of_an_unknown_authority(ask, authority, stranger, verify):
    """Nothing is sent to it, once."""
    with CannedServer(GOOD, tls=authority.server()) as server, Relay("127.0.0.1", server.port) as relay:
        url = relay.url.replace("http:", "https:")
        answer = ask(PlainJson(url, verify=stranger.path if verify == "stranger" else True))
        assert_stands(answer, "(?i)certificate verify failed")
    assert relay.connections == 1
    assert server.requests == []


def test_a_certificate_for_another_host(ask, authority):
    """The name counts, not the authority alone."""
    with CannedServer(GOOD, tls=authority.server()) as server:
        assert_stands(ask(PlainJson(f"https://localhost:{server.port}", verify=authority.path)), "(?i)certificate")
    assert server.requests == []


def test_certificates_can_go_unchecked(ask, authority):
    """Where the policy says so."""
    with CannedServer(GOOD, tls=authority.server()) as server:
        assert_cloud(ask(PlainJson(server.url, verify=False)))


def test_unchecked_certificates_are_shown_while_the_server_is_away():
    """By `check`, beside where inputs may leave to."""
    with Router(lambda _: ("edge", 0.1), PlainJson("https://127.0.0.1:9/x", verify=False), threshold=0.5) as router:
        assert "to https://127.0.0.1:9/x (its certificate UNCHECKED: verify = false)" in str(router.check())
    with Router(lambda _: ("edge", 0.1), PlainJson("https://127.0.0.1:9/x"), threshold=0.5) as router:
        assert "UNCHECKED" not in str(router.check())


def test_certificate_files_that_are_not_there(ask, tmp_path):
    """The reason says so; nothing is sent unchecked instead."""
    with CannedServer(GOOD) as server:
        url = server.url.replace("http:", "https:")
        assert_stands(ask(PlainJson(url, verify=tmp_path / "no.pem")), "certificates .* cannot be read")
    assert server.connections == 0


def test_a_broken_exchange_over_tls_is_repeated_once_the_server_is_known(ask, authority):
    """Only a first exchange that ends without a word may be about certificates."""
    with CannedServer(in_turn(GOOD, ConnectionAbortedError, ConnectionAbortedError, GOOD), tls=authority.server()) as server:
        for answer in ask(PlainJson(server.url, verify=authority.path), times=2):
            assert_cloud(answer)
    assert len(server.requests) == 4


# proxies


def test_the_environments_proxy_is_used_and_can_be_bypassed(ask, monkeypatch):
    """As HTTP_PROXY and NO_PROXY say."""
    with CannedServer(GOOD) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert_cloud(ask(PlainJson("http://cloud.invalid/ask")))
        assert proxy.requests[0].startswith(b"POST http://cloud.invalid/ask HTTP/1.1")
        monkeypatch.setenv("no_proxy", "cloud.invalid")
        assert_stands(ask(PlainJson("http://cloud.invalid/ask", retries=0)), "cloud unreachable")
    assert len(proxy.requests) == 1


# what leaves, and what does not


def test_only_edge_connects_to_nothing(ask):
    """Not even to look."""
    with CannedServer(GOOD) as server:
        answer = ask(PlainJson(server.url), mode="only_edge")
    assert (answer.value, answer.degraded) == ("edge", False)
    assert server.connections == 0


def test_a_sure_edge_connects_to_nothing(ask):
    """The cloud is for what the edge is not sure of."""
    with CannedServer(GOOD) as server:
        assert ask(PlainJson(server.url), edge=sure).source == "edge"
    assert server.connections == 0


def test_without_a_cloud_no_socket_is_opened():
    """Nothing can leave."""
    before = sockets()
    with Router(unsure) as router:
        assert router.infer(1).value == "edge"
        assert not set(sockets()) - set(before)


@pytest.mark.parametrize("policy", [{}, {"deadline": LONG}])
def test_only_cloud_without_one_raises_the_cause(ask, policy):
    """There is no edge answer to fall back on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises((CloudError, NoAnswer), match=r"127\.0\.0\.1"):
            ask(PlainJson(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=0), mode="only_cloud", **policy)


def test_a_batch_degrades_row_by_row():
    """The rows that the edge was not sure of keep their edge answer."""
    with CannedServer(DOWN) as server, Router(lambda x: ("edge", x), PlainJson(server.url, retries=0), threshold=0.5) as router:
        answers = router.infer_many([0.1, 0.9, 0.2])
    assert [a.degraded for a in answers] == [True, False, True]
    assert_stands(answers[0], "refused 503")


# races, cancellation, the end


def test_a_race_that_the_cloud_wins(ask):
    """hedge_after=0 with an edge that is held up: the cloud answers, and the edge is told to stop."""
    gate = threading.Event()
    edge = FakeModel([("edge", 0.9)], gate=gate)
    cloud = FakeCloud(lambda _: edge.begun.wait(LONG) and ("cloud", 0.9))
    threading.Thread(target=lambda: edge.cancelled.wait(LONG) and gate.set()).start()
    answer = ask(cloud, edge=edge, hedge_after=0)
    assert_cloud(answer)
    assert edge.cancelled.wait(LONG)
    assert [e["what"] for e in answer.trace["events"] if e["leg"] == "edge"] == ["start", "cancelled"]


def test_a_race_that_the_edge_wins_cuts_the_cloud(ask):
    """The request that is not needed any more is ended: the server sees it."""
    gate = threading.Event()

    def reply(_):
        gate.set()

    with CannedServer(reply) as server:
        answer = ask(PlainJson(server.url, timeout_s=600), edge=FakeModel([("edge", 0.9)], gate=gate), hedge_after=0)
        assert (answer.value, answer.degraded) == ("edge", False)
        server.wait_for(lambda: server.hung_up == 1)
    assert len(server.requests) == 1


def test_a_retry_that_is_not_needed_any_more_is_not_sent(monkeypatch):
    """The edge answers while the cloud's leg waits to try again."""
    gate, wait = threading.Event(), StopToken.wait

    def waiting(cancel, seconds):
        gate.set()
        return wait(cancel, seconds)

    monkeypatch.setattr(StopToken, "wait", waiting)
    with CannedServer(http_reply(status=503, headers=[("Retry-After", str(LONG))])) as server:
        edge = FakeModel([("edge", 0.9)], gate=gate)
        with Router(edge, PlainJson(server.url, timeout_s=2 * LONG), threshold=0.5, options=Options(hedge_after=0)) as router:
            assert router.infer(1).source == "edge"
            workers = [t for t in threading.enumerate() if t.name in {"edgeroute-edge", "edgeroute-cloud"}]
        assert workers
        for worker in workers:
            worker.join(LONG)
            assert not worker.is_alive()
    assert len(server.requests) == 1


def test_a_request_that_is_not_needed_any_more_while_it_connects_is_not_sent(monkeypatch):
    """There is no socket to cut yet when it is asked to stop."""
    cancel, connect = StopToken(), socket.socket.connect_ex

    def connecting(sock, address):
        cancel()
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", connecting)
    with CannedServer(GOOD) as server:
        channels = Connections(Address(server.url))
        with pytest.raises(CloudError):
            channels.send(Call("POST", "/", body=b"1"), monotonic() + LONG, cancel)
        with pytest.raises(Unreachable, match="not needed any more"):
            channels.send(Call("POST", "/", body=b"1"), monotonic() + LONG, cancel)
        channels.close()
        server.wait_for(lambda: server.hung_up == 1)
    assert server.requests == []


def test_the_deadline_with_nothing_to_fall_back_on(ask):
    """An edge that is held up, and no cloud."""
    gate = threading.Event()
    edge = FakeModel([("edge", 0.9)], gate=gate)
    threading.Thread(target=lambda: edge.cancelled.wait(LONG) and gate.set()).start()
    with pytest.raises(DeadlineExceeded, match=r"edge .* 100 ms"):
        ask(None, edge=edge, deadline=0.1)
    edge.cancelled.set()  # of one that had no time to begin, too


def test_cancelling_a_task_cuts_its_connection():
    """The server sees the end, and no task is left."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url), threshold=0.5) as router:
            task = asyncio.create_task(router.infer(1))
            await asyncio.to_thread(server.wait_for, lambda: server.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_for, lambda: server.hung_up == 1)
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                _, pending = await asyncio.wait(others, timeout=LONG)
                assert not pending

    with CannedServer(None) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("policy", ["", f", deadline={LONG}"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_ctrl_c_ends_the_program(kind, policy):
    """In the middle of a request to a server that never answers: KeyboardInterrupt, and no thread holds up the exit."""
    body = {
        "threads": """
            with Router(lambda x: ("edge", 0.1), cloud, threshold=0.5{policy}) as router:
                router.infer(1)
        """,
        "asyncio": """
            async def main():
                async with AsyncRouter(lambda x: ("edge", 0.1), cloud, threshold=0.5{policy}) as router:
                    await router.infer(1)
            asyncio.run(main())
        """,
    }[kind]
    with CannedServer(None) as server:
        program = script(body.format(policy=policy), server.url)
        server.wait_for(lambda: server.requests)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=LONG)
        server.wait_for(lambda: server.hung_up == 1)
    assert program.returncode in {-signal.SIGINT, 130}, said
    assert "KeyboardInterrupt" in said


def script(body, url, **cloud):
    """A program of its own."""
    lines = body.split("\n")
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    text = "\n".join(
        [
            "import asyncio, glob, os, signal, sys",
            "from edgeroute import AsyncRouter, PlainJson, Router",
            "signal.signal(signal.SIGINT, signal.default_int_handler)",
            f"cloud = PlainJson({url!r}, timeout_s={LONG}, **{cloud!r})",
            *(line[indent:] for line in lines),
        ]
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("policy", ["", f", deadline={LONG}"])
def test_a_forked_child_has_a_connection_of_its_own(secure, policy, authority):
    """It answers, its parent goes on over the connection that it had, and closing in either does nothing to the other."""
    body = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # some Pythons warn of any fork with threads
        router = Router(lambda x: ("edge", 0.1), cloud, threshold=0.5{policy})
        assert router.infer(1).value == "cloud"
        child = os.fork()
        if child == 0:
            try:
                held = [link for link in map(os.path.realpath, glob.glob("/proc/self/fd/*")) if "socket:" in link]
                assert not held, "the parent's connections"
                answer = router.infer(2)
                router.close()
            except BaseException as e:
                answer = e
            print(answer.value if hasattr(answer, "value") else repr(answer), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(router.infer(3).value, flush=True)
        router.close()
    """
    with CannedServer(GOOD, tls=authority.server() if secure else None) as server:
        program = script(body.format(policy=policy), server.url, **({"verify": str(authority.path)} if secure else {}))
        out, said = program.communicate(timeout=LONG)
        server.wait_for(lambda: server.hung_up == 2)
    assert (out.split(), said, program.returncode) == (["cloud", "cloud"], "", 0)
    assert (server.connections, len(server.requests)) == (2, 3)


def echo(request):
    return http_reply(json.dumps({"value": json.loads(request.partition(b"\r\n\r\n")[2])["input"]}).encode())


@pytest.mark.parametrize("policy", [{}, {"deadline": LONG}])
def test_fifty_threads_share_a_router(policy):
    """Each gets its own answer, over at most as many connections as there are threads."""
    with (
        CannedServer(echo) as server,
        Router(unsure, PlainJson(server.url, timeout_s=LONG), **flat(threshold=0.5, **policy)) as router,
    ):
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(router.infer, range(200)))
        assert router.stats().deferred == 200
    assert [a.value for a in answers] == list(range(200))
    assert not any(a.degraded for a in answers)
    assert server.connections <= 50


def test_fifty_tasks_share_a_router():
    """Each gets its own answer."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url, timeout_s=LONG), threshold=0.5) as router:
            return await asyncio.gather(*(router.infer(i) for i in range(50)))

    with CannedServer(echo) as server:
        answers = asyncio.run(main(server))
    assert [a.value for a in answers] == list(range(50))


def test_a_closed_router_is_closed():
    """Twice, too; and a call after it says so."""
    with CannedServer(GOOD) as server:
        router = Router(unsure, PlainJson(server.url), threshold=0.5)
        assert_cloud(router.infer(1))
        router.close()
        router.close()
        with pytest.raises(Closed):
            router.infer(1)
        server.wait_for(lambda: server.hung_up == 1)


def test_an_async_router_serves_one_loop_after_another():
    """Connections of a loop that has ended are not used again."""
    with CannedServer(GOOD, close=True) as server:
        for _ in range(2):
            router = AsyncRouter(unsure, PlainJson(server.url), threshold=0.5)

            async def main(router=router):
                async with router:
                    return await router.infer(1)

            assert_cloud(asyncio.run(main()))


# the instruments themselves


def exchange(port, sent):
    """What comes back for these bytes until the other end has closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONG) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_a_relay_delays_without_holding_up():
    """A hundred pieces and more, of which each would take 0.4 s if it waited for the one before; all in order, and counted."""
    body, request = os.urandom(1 << 23), b"GET / HTTP/1.1\r\n\r\n"
    with CannedServer(http_reply(body), close=True) as server, Relay("127.0.0.1", server.port) as relay:
        relay.delay_s = 0.4
        begun = monotonic()
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(exchange, relay.port, request).result(LONG)
        took = monotonic() - begun
    assert reply == http_reply(body)
    assert took >= 4 * 0.4, "a round trip for the connection and one for the request"
    assert (relay.connections, relay.bytes_up, relay.bytes_down) == (1, len(request), len(reply))


def test_a_relay_refuses_and_listens_again_at_its_port():
    """Switched at any time."""
    with CannedServer(GOOD, close=True) as server, Relay("127.0.0.1", server.port) as relay:
        port = relay.port
        for _ in range(2):
            relay.refuse = True
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            relay.refuse = False
            assert not relay.refuse
            assert exchange(port, b"GET / HTTP/1.1\r\n\r\n") == GOOD
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_relay_cuts_the_connections_that_there_are():
    """They end; the next one is made as before."""
    with CannedServer(GOOD) as server, Relay("127.0.0.1", server.port) as relay:
        with socket.create_connection(("127.0.0.1", relay.port), timeout=LONG) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert connection.recv(1 << 16) == GOOD
            relay.cut()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        server.wait_for(lambda: server.hung_up == 1)
        with socket.create_connection(("127.0.0.1", relay.port), timeout=LONG) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert connection.recv(1 << 16) == GOOD


def test_a_server_holds_its_replies_back():
    """While it is shut requests are received; once it is open again they are answered."""
    with CannedServer(GOOD) as server, socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as connection:
        server.shut()
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        server.wait_for(lambda: len(server.requests) == 1)
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(LONG)
        server.open()
        assert connection.recv(1 << 16) == GOOD


def test_a_reply_without_an_end_ends_with_its_client():
    """It is told of a client that closes while parts are sent."""
    with CannedServer(lambda _: itertools.repeat(b"more")) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert connection.recv(4) == b"more"
        server.wait_for(lambda: server.hung_up == 1)


@pytest.mark.parametrize("secure", [False, True])
def test_a_server_that_closes_as_a_connection_comes(secure, authority):
    """It leaves none open, however far that had come."""
    for _ in range(5):
        with CannedServer(None, tls=authority.server() if secure else None) as server:
            client = socket.create_connection(("127.0.0.1", server.port))
        client.close()
        with Relay("127.0.0.1", server.port) as relay:
            client = socket.create_connection(("127.0.0.1", relay.port))
            relay.refuse = True
        client.close()


def test_a_relay_to_nobody_resets():
    """As far as its client can tell, the server has gone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            Relay(*taken.getsockname()) as relay,
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", relay.port), timeout=LONG) as connection,
        ):
            connection.recv(1)


def test_scripted_models_answer_in_order():
    """The last answer stays; an exception is raised; a function sees the input."""
    cloud = FakeCloud([("a", 0.1), ("b", 0.2)])
    assert [cloud(None) for _ in range(3)] == [("a", 0.1), ("b", 0.2), ("b", 0.2)]
    assert cloud.runs == 3
    assert FakeModel(lambda x: (x, 1.0)).run([1, 2]) == [(1, 1.0), (2, 1.0)]
    with pytest.raises(TimedOut):
        FakeCloud([TimedOut("too late")])(1)


def test_a_canned_server_says_what_did_not_happen():
    """After the time that it was given."""
    with CannedServer(GOOD) as server, pytest.raises(TimeoutError, match="0 requests"):
        server.wait_for(lambda: server.requests, timeout_s=0.01)


@pytest.mark.parametrize(
    ("names", "direct"),
    [("127.0.0.0/8, x", True), ("127.0.0.1:{port}", True), ("10.0.0.0/8,x/y", False), ("127.0.0.1:1", False)],
)
def test_what_no_proxy_exempts(ask, monkeypatch, names, direct):
    """A network, or a host with its port, as the environment of a container names them."""
    with CannedServer(GOOD) as proxy, CannedServer(GOOD) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", names.format(port=server.port))
        assert_cloud(ask(PlainJson(server.url)))
        assert [len(server.requests), len(proxy.requests)] == [direct, not direct]


def test_a_probe_that_is_cancelled_is_silence_too(due):
    """A server that hangs at binary tensors, and is given up on each time, is asked in JSON from the third time on."""

    def reply(request):
        if request.startswith(b"GET"):
            return http_reply(json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]}).encode())
        if b"octet-stream" in request:
            return None
        return http_reply(json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0, 9]}]}).encode())

    async def main(url):
        async with AsyncRouter(unsure, OpenInference(url, model="m"), threshold=0.5) as router:
            for n in (1, 2):
                deadline = due(lambda n=n: sum(b"octet-stream" in request for request in server.requests) == n)
                assert (await router.infer(np.zeros(1, np.float32), deadline=deadline)).degraded
                (cloud,) = router.engine.snapshot.clouds
                await asyncio.to_thread(wait_for, lambda cloud=cloud: not cloud.guard.under_way)  # probes at once count as one
            return await router.infer(np.zeros(1, np.float32))

    with CannedServer(reply) as server:
        assert asyncio.run(main(server.url)).source == "cloud"
