"""The relay with link faults that tests and benchmarks measure with: its throttle is a link of that many bytes a second."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from types import SimpleNamespace

import pytest
from both import LONG

from edgeroute.testing import CannedServer, Relay, http_reply
from edgeroute.tools.contracts import faulty_relay as relay

LATE_S = 0.005


class Sink:
    """A writer that takes everything at once."""

    def __init__(self):
        self.taken = b""

    def write(self, data):
        """Takes them."""
        self.taken += data

    async def drain(self):
        """Nothing waits."""


def test_a_sleep_that_ends_late_delays_nothing_after_it(monkeypatch):
    """On a busy machine each sleep of sixty is late, and the last byte once: else a link would be the slower the more it carries."""
    now, sink = 0.0, Sink()

    async def sleep(seconds):
        nonlocal now
        now += max(0.0, seconds) + LATE_S

    with Relay("127.0.0.1", 1) as link:
        link.throttle = 1e6
        monkeypatch.setattr(relay, "asyncio", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(relay, "monotonic", lambda: now)
        passing = link._pass(b"x" * 1_200_000, sink, 0, 0.0, down=False)  # private: sockets do not go by a made-up clock
        clear = asyncio.run(passing)
    assert (len(sink.taken), link.bytes_up) == (1_200_000, 1_200_000)
    assert clear == pytest.approx(1.2)
    assert 1.2 <= now <= 1.2 + 2 * LATE_S


def test_bytes_take_their_time_in_each_direction():
    """100 KB there and 100 KB back, at 1 MB a second, take no less than 200 ms, whatever the pieces."""
    body = b"x" * 100_000
    with CannedServer(http_reply(body)) as server, Relay("127.0.0.1", server.port) as link:
        link.throttle = 1e6
        with socket.create_connection(("127.0.0.1", link.port), timeout=LONG) as client:
            begun, got = monotonic(), 0
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body)
            while got < len(body):
                got += len(client.recv(1 << 16))
            assert monotonic() - begun >= 0.2


def test_a_shut_relay_forwards_nothing_and_keeps_its_port():
    """Connections end at once, the server hears of none, and no other socket gets the port; opened, it is the way again."""
    with CannedServer(http_reply(b"here")) as server, Relay("127.0.0.1", server.port) as link:
        link.shut = True
        with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", link.port), timeout=LONG) as client:
            client.recv(1)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", link.port))
        assert (link.connections, server.connections) == (1, 0)
        link.shut = False
        with socket.create_connection(("127.0.0.1", link.port), timeout=LONG) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
