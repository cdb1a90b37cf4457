"""What benchmarks/chat_faults.py shows of edgeroute: a chat cloud that fails loses no answer, and a cut one says so."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from both import LONG

from edgeroute.testing import CannedServer

CALLS = 4


@pytest.fixture
def bench(monkeypatch):
    """The benchmark, for a machine of any speed."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "benchmarks")
    import chat_faults

    monkeypatch.setattr(chat_faults, "RETRY_AFTER_S", 300)
    monkeypatch.setattr(chat_faults, "TIMEOUT_S", LONG)
    return chat_faults


def kinds(bench, fault, *, stream, **options):
    """What the answers are, and how many."""
    with CannedServer(bench.local) as near:
        subject = partial(bench.ours, **options)
        cell = asyncio.run(bench.tried(fault, subject, stream, CALLS, f"{near.url}/v1"))
    assert sum(cell.by.values()) == CALLS
    return dict(cell.by)


@pytest.mark.parametrize("fault", ["none", "dead", "black hole", "stall", "429", "cut", "short"])
@pytest.mark.parametrize("mode", ["prefer_edge", "prefer_cloud"])
def test_no_fault_loses_an_answer(bench, monkeypatch, fault, mode):
    """The cloud's where it is well, else the local model's whole one; of a stream, where it may begin anew."""
    if fault in ("black hole", "stall"):
        monkeypatch.setattr(bench, "TIMEOUT_S", 0.3)  # the subject
    who = "cloud" if fault == "none" else "local"
    assert kinds(bench, fault, stream=False, mode=mode) == {who: CALLS}
    streamed = kinds(bench, fault, stream=True, mode=mode, restart=True)
    assert {kind.removesuffix(" after a restart") for kind in streamed} == {who}


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_a_stream_that_breaks_off_says_so(bench, fault):
    """Without a restart what had come stays, marked, until the breaker opens: never taken for whole, never two texts in one."""
    found = kinds(bench, fault, stream=True)
    assert set(found) <= {"cut", "local"}
    assert found["cut"] >= 3
