"""Odd peers, odd models and odd callers: none of them gets another's answer, or costs one."""

import asyncio
import contextlib
import json
import signal
import threading
from queue import Queue

import numpy as np
import pytest
from both import DOWN, LONG, GatedServer, Tasks, Threads, header, nothing_left, sure, unsure

from edgeroute import AsyncRouter, Cache, PlainJson, Router
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch):
    with nothing_left(monkeypatch):
        yield


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """Makes routers of either kind, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda edge, cloud, **policy: stack.enter_context(request.param(edge, cloud, **{"threshold": 0.5, **policy}))


@pytest.fixture
def gate():
    """Open once the test has ended, so that what hangs does not hang for ever."""
    gate = threading.Event()
    yield gate
    gate.set()


def said(value):
    """The reply that says so."""
    return http_reply(json.dumps({"value": value, "confidence": 0.9}).encode())


def asked(request):
    """The input in a request."""
    return json.loads(request.partition(b"\r\n\r\n")[2])["input"]


def test_a_server_that_replies_twice(make):
    """The reply that nobody asked for is not the next request's."""
    with CannedServer(lambda request: said(asked(request)) + said("another's")) as server:
        router = make(unsure, PlainJson(server.url))
        assert [router.infer(x).value for x in "abc"] == ["a", "b", "c"]
