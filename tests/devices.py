"""Routers on a device whose sensors say what a test tells them to; what the tests of them have in common."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from both import LONG, Tasks, Threads, nothing_left

from edgeroute import Reading


class Device:
    """Its sensors say what they are told to."""

    def __init__(self, **says):
        self.says, self.reads = Reading(**says), 0
        self.read = threading.Event()

    def __call__(self):
        """What they say."""
        self.reads += 1
        self.read.set()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def engine_of(router):
    """The parts of either router."""
    return getattr(router, "router", router).engine


def now_it_reads(router, device):
    """The next request has them read, in the background; what they say holds from then on."""
    device.read.clear()
    observer = engine_of(router).observer
    observer.reads_at = time.monotonic()  # ten seconds have gone by
    router.infer(1)
    assert device.read.wait(LONG)
    end = time.monotonic() + LONG
    while observer.reads_at == float("inf"):
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def makes(**policy):
    """A fixture that makes routers of either kind, with these arguments unless a test gives others, and closes them."""

    @pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
    def make(request):
        with contextlib.ExitStack() as stack:
            yield lambda *args, **more: stack.enter_context(request.param(*args, **{**policy, **more}))

    return make


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch):
    with nothing_left(monkeypatch):
        yield


leaves_nothing = _nothing_left_behind
"""A fixture for all tests of a module: each ends with the files, sockets and threads with which it began."""
