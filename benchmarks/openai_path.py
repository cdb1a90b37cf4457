"""Latency that a router adds to a stream of a language model over direct httpx, on loopback: `python benchmarks/openai_path.py`.

The server is a process of its own that sends a burst of one event each millisecond, its text is when it was sent.
Measured are the time from the call to the first piece, the age of each later piece when the caller has it, and the client's CPU time.
The subjects take turns, so drift of the machine affects all alike; a figure is a median over the turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import monotonic_ns, process_time

from figures import Figure, size, table, timed

BURSTS, TURNS = size(200, 5), size(11, 1)
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SERVER = """
import asyncio, json, os, sys
from time import monotonic_ns

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = next((int(l.split(b":")[1]) for l in head.split(b"\\r\\n") if l.lower().startswith(b"content-length")), 0)
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
            for i in range(int(sys.argv[1])):
                if i:
                    await asyncio.sleep(0.001)
                send(writer, {"choices": [{"index": 0, "delta": {"content": f"{monotonic_ns()} "}, "finish_reason": None}]})
            send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            data = b"data: [DONE]\\n\\n"
            writer.write(b"%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(data), data))
    except (OSError, asyncio.IncompleteReadError):
        writer.close()

def send(writer, event):
    about = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "m", **event}
    data = b"data: %s\\n\\n" % json.dumps(about).encode()
    writer.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)

asyncio.run(main())
"""


class Timed:
    """Times of the pieces of one stream."""

    def __init__(self) -> None:
        self.begun, self.cpu = monotonic_ns(), process_time()
        self.first = 0
        self.ages: list[int] = []

    def piece(self, text: str) -> None:
        """Note that a piece is there: the time to the first, and the age of each later one by the time in its text."""
        now = monotonic_ns()
        if not self.first:
            self.first = now - self.begun
        else:
            self.ages.append(now - int(text))

    def figures(self) -> tuple[float, float, float]:
        """Return seconds: to the first piece, of a later piece, of CPU."""
        assert len(self.ages) == BURSTS - 1, "each burst is a piece"
        return self.first / 1e9, statistics.median(self.ages) / 1e9, process_time() - self.cpu


def content(line: str) -> str:
    """Return the text in a line of an event stream, as one writes it by hand; "" if it has none."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return ""
    choices = json.loads(line[6:])["choices"]
    return choices[0]["delta"].get("content") or "" if choices else ""


def threads(url: str, turns: int) -> dict[str, list[tuple[float, float, float]]]:
    """Stream by httpx and by a router, in the caller's thread, in turns; return the figures of each stream by way.

    The first stream of each, which connects, does not count.
    """
    import httpx

    from edgeroute import OpenAIChat, Router

    client, router = httpx.Client(), Router(None, OpenAIChat(url, model="m"))

    def direct() -> Iterator[str]:
        with client.stream("POST", f"{url}/v1/chat/completions", json=REQUEST) as reply:
            yield from filter(None, map(content, reply.iter_lines()))

    def routed() -> Iterator[str]:
        with router.stream("hi") as stream:
            yield from stream

    def timed(pieces: Callable[[], Iterator[str]]) -> tuple[float, float, float]:
        times = Timed()
        for piece in pieces():
            times.piece(piece)
        return times.figures()

    ways = {"httpx": direct, "routed": routed}
    with client, router:
        for way in ways.values():
            timed(way)  # connects
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                found[name].append(timed(way))
    return found


async def tasks(url: str, turns: int) -> dict[str, list[tuple[float, float, float]]]:
    """Stream by httpx and by a router, on an event loop, in turns; return the figures of each stream by way.

    The first stream of each, which connects, does not count.
    """
    import httpx

    from edgeroute import AsyncRouter, OpenAIChat

    async with httpx.AsyncClient() as client, AsyncRouter(None, OpenAIChat(url, model="m")) as router:

        async def direct() -> AsyncIterator[str]:
            async with client.stream("POST", f"{url}/v1/chat/completions", json=REQUEST) as reply:
                async for line in reply.aiter_lines():
                    if text := content(line):
                        yield text

        async def routed() -> AsyncIterator[str]:
            async with router.stream("hi") as stream:
                async for piece in stream:
                    yield piece

        async def timed(pieces: Callable[[], AsyncIterator[str]]) -> tuple[float, float, float]:
            times = Timed()
            async for piece in pieces():
                times.piece(piece)
            return times.figures()

        ways: dict[str, Callable[[], Awaitable[tuple[float, float, float]]]] = {
            "httpx": lambda: timed(direct), "routed": lambda: timed(routed),
        }  # fmt: skip
        for way in ways.values():
            await way()  # connects
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                found[name].append(await way())
        return found


def medians(found: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the median of each of the three over the turns."""
    first, later, cpu = (statistics.median(one) for one in zip(*found, strict=True))
    return first, later, cpu


def figures(turns: int = TURNS) -> list[Figure]:
    """Start the server, and return first token, each burst, and CPU, in threads and on asyncio; ends the server after."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(BURSTS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            both = {"threads": threads(url, turns), "asyncio": asyncio.run(tasks(url, turns))}
        finally:
            server.stdin.close()
    rows: list[Figure] = []
    for kind, times in both.items():
        ours, theirs = medians(times["routed"]), medians(times["httpx"])
        most = 3.0 if kind == "threads" else 1.5
        for i, (name, limit) in enumerate((("first token", 1.0), ("each later burst", 0.3))):
            rows.append(timed(f"stream, {kind}, {name}", ours[i], theirs[i], limit, shown="ms", digits=2))
        rows.append(timed(f"stream, {kind}, CPU", ours[2], theirs[2], most, shown="ms", by="ratio"))
    return rows


if __name__ == "__main__":
    print(table(figures()))
