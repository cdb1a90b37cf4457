"""Cost of what carries a call, with the same protocol code: 150 KB of uint8 to one `edgeroute serve`, as ratios to tritonclient.http.

All subjects take turns in one run. Those whose package is not installed are left out; without tritonclient the ratios are to
httpcore's, or to ours.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic
from typing import Any

import numpy as np
from cloud import SIZE, measure, server
from figures import machine, size

from edgeroute import Router
from edgeroute.cloud.openinference import OpenInference
from edgeroute.http import reply_parser as reading
from edgeroute.http.aio_connections import AsyncConnections
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply

LEFT_S = 30.0


def known(url: str) -> OpenInference:
    """Return an endpoint that has exchanged what it asks a server first: its metadata, and that it takes tensors as bytes."""
    endpoint, connections = OpenInference(f"{url}/v2/models/ten"), Connections(Address(url))
    talk, reply = endpoint.talk([np.zeros(SIZE, np.uint8)]), None
    try:
        while True:
            reply = connections.send(talk.send(reply), monotonic() + LEFT_S)  # type: ignore[arg-type]  # the first starts it
    except StopIteration:
        pass
    finally:
        connections.close()
    return endpoint


def subjects(url: str, endpoint: OpenInference, x: np.ndarray[Any, Any], stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return name -> one call of a carrier with encoding and decoding; those whose package is missing are left out.

    `stack` closes the routers.
    """
    found: dict[str, Callable[[], object]] = {}

    def carried(send: Callable[[Call], Reply]) -> Callable[[], object]:
        def once() -> object:
            call = endpoint.encode([x])
            assert call is not None
            return endpoint.decode(send(call), 1)

        return once

    ours = Connections(Address(url))
    found["sockets + httptools"] = carried(lambda call: ours.send(call, monotonic() + LEFT_S))
    found["sockets + h11"] = carried(lambda call: by_h11(ours, call))
    loop, tasks = asyncio.new_event_loop(), AsyncConnections(Address(url))
    found["sockets, asyncio"] = carried(lambda call: loop.run_until_complete(tasks.send(call, monotonic() + LEFT_S)))
    router = stack.enter_context(Router(cloud=f"{url}/v2/models/ten"))
    found["Router.infer"] = lambda: router.infer(x)
    try:
        import httpcore

        pool = httpcore.ConnectionPool()

        def by_httpcore(call: Call) -> Reply:
            reply = pool.request(call.method, url + call.path, headers=list(call.headers), content=call.body)
            return Reply(reply.status, {name.decode().lower(): value.decode() for name, value in reply.headers}, reply.content)

        found["httpcore"] = carried(by_httpcore)
    except ImportError:
        pass
    try:
        import httpx

        client = httpx.Client()

        def by_httpx(call: Call) -> Reply:
            reply = client.request(call.method, url + call.path, headers=list(call.headers), content=call.body)
            return Reply(reply.status_code, dict(reply.headers), reply.content)

        found["httpx"] = carried(by_httpx)
        given = stack.enter_context(Router(cloud=OpenInference(f"{url}/v2/models/ten", client=httpx.Client())))
        found["Router.infer, client=httpx.Client()"] = lambda: given.infer(x)
    except ImportError:
        pass
    try:
        import tritonclient.http as triton

        theirs = triton.InferenceServerClient(url.removeprefix("http://"))

        def by_triton() -> object:
            tensor = triton.InferInput("x", [1, SIZE], "UINT8")
            tensor.set_data_from_numpy(x[None])
            return theirs.infer("ten", [tensor], outputs=[triton.InferRequestedOutput("logits")]).as_numpy("logits")

        found["tritonclient.http"] = by_triton
    except ImportError:
        pass
    return found


def by_h11(connections: Connections, call: Call) -> Reply:
    """Return the reply of one call, read by h11; replaces the reader of all connections meanwhile."""
    before = reading.new_parser
    reading.new_parser = reading.H11
    try:
        return connections.send(call, monotonic() + LEFT_S)
    finally:
        reading.new_parser = before


def table(runs: int, calls: int) -> str:
    """Start a server, time the subjects in turns, and return the ratios as Markdown, with the base's times below."""
    import h11

    reading.h11 = h11  # where there is httptools it is not imported
    with server() as url, ExitStack() as stack:
        endpoint = known(url)
        x = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
        found = measure(subjects(url, endpoint, x, stack), runs=runs, calls=calls)
    base = next(name for name in ("tritonclient.http", "httpcore", "sockets + httptools") if name in found)
    (p50, cpu), lines = found[base], [f"| carrier | p50, to {base} | client CPU |", "| --- | --- | --- |"]
    lines += [f"| {name} | {a / p50:.2f} | {b / cpu:.2f} |" for name, (a, b) in found.items()]
    return "\n".join([*lines, f"\n{base}: {p50 * 1e3:.2f} ms, {cpu * 1e3:.2f} ms of CPU; {machine()}"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=size(31, 1))
    parser.add_argument("--calls", type=int, default=size(60, 2))
    options = parser.parse_args()
    print(table(options.runs, options.calls))
