"""The client's cost of calls to a real Triton, against tritonclient's two: uint8 of 150 KB and float32 of 602 KB, at 1, 8 and 64 at once.

    make server-triton && python benchmarks/triton.py [--calls 400]

Threads and asyncio, with a deadline and without, `OpenInference` (binary tensors) and `OpenInferenceGrpc`: p50, and processor time of this
process a call, each against the better of `tritonclient.http` and `.grpc` in the same run; subjects take turns. Needs tritonclient[grpc,http].
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from figures import needs, size
from real_servers import ENVIRONMENTS, Server, contract, real_server  # type: ignore[import-not-found]  # of the tests

from edgeroute import AsyncRouter, OpenInference, OpenInferenceGrpc, Router

DEADLINE_S = 10.0
ROUNDS, EACH = size(5, 1), size(4, 1)
Timed = tuple[float, float]
"""Seconds: p50, and processor time a call."""


def xs(name: str) -> Any:
    """Return an image of that datatype."""
    return np.random.default_rng(0).integers(0, 256, contract.PIXELS).astype(contract.NUMPY[name])


def theirs(kind: Any, url: str, name: str, **options: Any) -> tuple[Any, Callable[[], Any]]:
    """Return a client of theirs, and a function that makes one call of it."""
    client, x = kind.InferenceServerClient(url.removeprefix("http://"), **options), xs(name)[None]
    wanted = [kind.InferRequestedOutput("scores")]

    def call() -> Any:
        tensor = kind.InferInput("x", list(x.shape), name)
        tensor.set_data_from_numpy(x)
        return client.infer(name, [tensor], outputs=wanted)

    return client, call


def threads(server: Server, name: str, at_once: int, calls: int) -> dict[str, Timed]:
    """Return what a call costs in threads, p50 and CPU seconds, by subject: theirs and ours, with a deadline and without."""
    import tritonclient.grpc
    import tritonclient.http

    x, subjects = xs(name), dict[str, Callable[[], Any]]()
    with ExitStack() as stack:
        own = threading.local()

        def by_http() -> Any:  # their HTTP client is for one thread alone
            if not hasattr(own, "call"):
                own.client, own.call = theirs(tritonclient.http, server.http, name)
            return own.call()

        client, by_grpc = theirs(tritonclient.grpc, server.grpc, name)
        stack.callback(client.close)
        subjects |= {"tritonclient.http": by_http, "tritonclient.grpc": by_grpc}
        for label, made in (
            ("http", OpenInference(server.http, model=name)),
            ("grpc", OpenInferenceGrpc(server.grpc, model=name)),
        ):
            router = stack.enter_context(Router(None, made, mode="only_cloud"))
            subjects[label] = lambda router=router: router.infer(x)
            subjects[f"{label}, deadline"] = lambda router=router: router.infer(x, deadline=DEADLINE_S)
        pool = stack.enter_context(ThreadPoolExecutor(at_once))

        def times(subject: Callable[[], Any], count: int) -> list[float]:
            def one(_: int) -> float:
                begun = time.perf_counter()
                subject()
                return time.perf_counter() - begun

            return list(pool.map(one, range(count)) if at_once > 1 else map(one, range(count)))

        return turns(subjects, times, calls, at_once)


def in_a_round(calls: int, at_once: int) -> int:
    """Return the calls of a round: several of each caller, or what is timed is how they begin."""
    return max(calls // ROUNDS, EACH * at_once)


def turns(subjects: dict[str, Any], times: Callable[[Any, int], list[float]], calls: int, at_once: int) -> dict[str, Timed]:
    """Time the subjects, one after the other, several times, after a warm-up; return medians of (p50, CPU seconds of a call)."""
    seen: dict[str, list[Timed]] = {label: [] for label in subjects}
    for subject in subjects.values():
        times(subject, max(size(20, 1), EACH * at_once))  # all connections are open from then on
    for _ in range(ROUNDS):
        for label, subject in subjects.items():
            cpu = time.process_time()
            found = times(subject, in_a_round(calls, at_once))
            seen[label].append((statistics.median(found), (time.process_time() - cpu) / len(found)))
    return {label: (statistics.median(p for p, _ in v), statistics.median(c for _, c in v)) for label, v in seen.items()}


async def on_a_loop(server: Server, name: str, at_once: int, calls: int) -> dict[str, Timed]:
    """Return as `threads`, on asyncio; closes all clients."""
    import tritonclient.grpc.aio
    import tritonclient.http.aio

    x, subjects = xs(name), dict[str, Callable[[], Awaitable[Any]]]()
    http, subjects["tritonclient.http"] = theirs(tritonclient.http.aio, server.http, name, conn_limit=at_once)
    grpc, subjects["tritonclient.grpc"] = theirs(tritonclient.grpc.aio, server.grpc, name)
    routers = []
    for label, made in (("http", OpenInference(server.http, model=name)), ("grpc", OpenInferenceGrpc(server.grpc, model=name))):
        routers.append(router := AsyncRouter(None, made, mode="only_cloud"))
        subjects[label] = lambda router=router: router.infer(x)
        subjects[f"{label}, deadline"] = lambda router=router: router.infer(x, deadline=DEADLINE_S)
    seen: dict[str, list[Timed]] = {label: [] for label in subjects}
    try:
        for turn in range(-1, ROUNDS):
            for label, subject in subjects.items():
                cpu, found, left = time.process_time(), list[float](), iter(range(in_a_round(calls, at_once)))
                await asyncio.gather(*(_worker(subject, left, found) for _ in range(at_once)))
                if turn >= 0:
                    seen[label].append((statistics.median(found), (time.process_time() - cpu) / len(found)))
    finally:
        for client in (http, grpc, *routers):
            await client.close()
    return {label: (statistics.median(p for p, _ in v), statistics.median(c for _, c in v)) for label, v in seen.items()}


async def _worker(subject: Callable[[], Awaitable[Any]], left: Iterator[int], found: list[float]) -> None:
    """Call the subject until the shared iterator `left` ends, and append each call's seconds to `found`."""
    for _ in left:
        begun = time.perf_counter()
        await subject()
        found.append(time.perf_counter() - begun)


def main() -> int:
    """Run a Triton, and print a table of milliseconds and of ratios to the better of their clients; return 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=size(400, 2), help="of each subject, in each line")
    calls = parser.parse_args().calls
    needs((ENVIRONMENTS / "triton" / "made").exists(), "a Triton: make server-triton")
    print(
        "| tensor | how | at once | subject | p50 ms | CPU ms | p50 x | CPU x |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder, real_server("triton", Path(folder), also=contract.LARGE) as server:
        for name in contract.LARGE:
            for at_once in size((1, 8, 64), (1,)):
                for how in ("threads", "asyncio"):
                    run = threads if how == "threads" else lambda *given: asyncio.run(on_a_loop(*given))
                    found = run(server, name, at_once, calls)
                    best = [min(one[i] for label, one in found.items() if label.startswith("tritonclient")) for i in (0, 1)]
                    for label, (p50, cpu) in found.items():
                        ratios = f"{p50 / best[0]:.2f} | {cpu / best[1]:.2f}"
                        print(
                            f"| {name} | {how} | {at_once} | {label} | {p50 * 1e3:.2f} | {cpu * 1e3:.2f} | {ratios} |", flush=True
                        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
