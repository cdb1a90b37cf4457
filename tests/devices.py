"""Routers on a device whose sensors say what a test tells them to; what the tests of them have in common."""

from __future__ import annotations

import threading
import time

from both import LONG

from edgeroute import Reading


class Device:
    """Its sensors say what they are told to."""

    def __init__(self, **says):
        self.says, self.reads = Reading(**says), 0
        self.read, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def __call__(self):
        """What they say."""
        self.reads += 1
        self.read.set()
        assert self.may_end.wait(LONG)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def engine_of(router):
    """The parts of either router."""
    return getattr(router, "router", router).engine


def now_it_reads(router, device):
    """The next request has them read, in the background, once it is over; what they say holds from then on."""
    device.read.clear()
    device.may_end.clear()
    observer = engine_of(router).observer
    observer.reads_at = time.monotonic()  # ten seconds have gone by
    try:
        router.infer(1)
    finally:
        device.may_end.set()
    assert device.read.wait(LONG)
    end = time.monotonic() + LONG
    while observer.reads_at == float("inf"):
        assert time.monotonic() < end
        threading.Event().wait(0.001)
