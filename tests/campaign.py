"""Differential campaign: random fault schedules through a real fault server; every answer is compared with what it must be.

A schedule is a router, its mode and driver, and six requests, of which up to three are under way at once. The server, a process
of its own, draws a fault for each attempt of each request. Each request has an answer of the edge, so there must be one: its own
(the edge's or the cloud's for this very input), by the deadline. Run by hand:

    python tests/campaign.py --schedules 10000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import struct
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, process_time, sleep

import numpy as np
from both import flat

from edgeroute import AsyncRouter, Cache, EdgerouteError, OpenInference, PlainJson, Router
from edgeroute.testing.canned_server import Listener, finish

TOLERANCE_S = 0.03
"""An answer that is later than the deadline by more than this, and by more than the machine stood still, counts as late."""
REQUESTS = 6
CLASSES = 64
MODES = ({}, {"hedge_after": 0}, {"mode": "prefer_cloud"})
CALLS = ("infer", "infer", "infer_many", "refine", "stream")
FAULTS = (
    "good", "good", "good", "slow", "slow", "status", "status", "reset", "cut", "silent", "trickle", "garbage", "nonsense",
    "surplus", "early", "informational", "http10", "chunked", "huge", "negative", "close", "big", "deep", "empty",
)  # fmt: skip
STATUSES = (204, 301, 304, 400, 401, 404, 408, 413, 422, 429, 500, 502, 503, 504)
NONSENSE = (
    b"null",
    b"{}",
    b"[]",
    b"17",
    b'"text"',
    b'{"confidence":1}',
    b'{"value":',
    b"\xff\xfe",
    b'{"outputs":null}',
    b'{"outputs":[{}]}',
)
POISON = b'{"value":"poison","confidence":1.0}'


def head(length: int | str, *lines: str, status: int = 200, version: str = "1.1") -> bytes:
    """Status line and headers of a reply."""
    return "\r\n".join([f"HTTP/{version} {status} -", f"Content-Length: {length}", *lines, "", ""]).encode()


class FaultServer(Listener):
    """A server of plain JSON (`/json`) and of the Open Inference Protocol; the fault of an attempt depends on seed, input and attempt."""

    def __init__(self, seed: int, deadline_s: float) -> None:
        self.seed, self.faults, self._deadline_s = seed, Counter[str](), deadline_s
        self._attempts = Counter[int]()
        super().__init__(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            size = next(
                (int(line.split(b":")[1]) for line in request.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
            )
            body = await reader.readexactly(size)
            if not request.startswith(b"POST"):
                answer = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,1]}]}'
                writer.write(head(len(answer)) + answer)
                await writer.drain()
                continue
            said = json.loads(body)
            ids = [said["input"]] if "input" in said else [int(n) for n in said["inputs"][0]["data"]]
            self._attempts[ids[0]] += 1
            rng = random.Random(f"{self.seed}/{ids[0]}/{self._attempts[ids[0]]}")
            if not await self._answer(rng, good(ids, plain="input" in said), writer):
                return

    async def _answer(self, rng: random.Random, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Sends the reply with its fault -> whether the connection goes on."""
        fault = rng.choice(FAULTS)
        self.faults[fault] += 1
        whole = head(len(body)) + body
        if fault == "slow":
            await asyncio.sleep(rng.uniform(0, 2 * self._deadline_s))
        elif fault == "silent":
            await asyncio.sleep(4 * self._deadline_s)
            return False
        elif fault == "garbage":
            whole = rng.randbytes(rng.randrange(1, 400))
        elif fault == "nonsense":
            body = rng.choice(NONSENSE)
            whole = head(len(body)) + body
        elif fault == "surplus":
            whole += head(len(POISON)) + POISON
        elif fault == "early":
            whole = head(0, status=413) + b""
        elif fault == "informational":
            whole = b"HTTP/1.1 103 -\r\nLink: </x>\r\n\r\n" * rng.randrange(1, 4) + whole
        elif fault == "http10":
            whole = head(len(body), version="1.0") + body
        elif fault == "chunked":
            whole = b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif fault == "huge":
            whole = head(10 ** rng.randrange(4, 20)) + body
        elif fault == "negative":
            whole = head(rng.choice(["-1", "1e3", "0x10", "9, 9", ""])) + body
        elif fault == "big":
            body = body[:-1] + b',"more":"' + b"x" * rng.randrange(1 << 20, 1 << 22) + b'"}'
            whole = head(len(body)) + body
        elif fault == "deep":
            depth = rng.choice((500, 100_000))
            body = body[:-1] + b',"more":' + b"[" * depth + b"]" * depth + b"}"
            whole = head(len(body)) + body
        elif fault == "empty":
            whole = b""
        elif fault == "status":
            wait = rng.choice(([], ["Retry-After: 0"], ["Retry-After: 1"], ["Retry-After: 99999999999"], ["Retry-After: soon"]))
            status = rng.choice(STATUSES)
            whole = head(len(POISON), *wait, status=status) + POISON
        if fault == "trickle":
            for byte in whole:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.005)
            return True
        if fault in {"reset", "cut"}:
            whole = whole[: rng.randrange(len(whole))]
        writer.write(whole)
        await writer.drain()
        if fault == "reset":
            writer.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER: with a reset
            return False
        if fault in {"cut", "close", "garbage", "empty"}:
            await finish(writer)
            return False
        return True


def good(ids: list[int], *, plain: bool) -> bytes:
    """The reply to these inputs."""
    if plain:
        return json.dumps({"value": f"cloud-{ids[0]}", "confidence": 0.9}).encode()
    rows = np.zeros((len(ids), CLASSES))
    rows[range(len(ids)), [n % CLASSES for n in ids]] = 9
    return json.dumps(
        {"outputs": [{"name": "y", "datatype": "FP32", "shape": [len(ids), CLASSES], "data": rows.ravel().tolist()}]}
    ).encode()


class Stalls(threading.Thread):
    """Times in which this process was due and got no processor: neither idle by its own will, nor busy."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: list[tuple[float, float, float]] = []
        """Begin, end, and seconds lost in between."""
        self._ended = False
        self.start()

    def run(self) -> None:
        """Sleeps over and over for 2 ms, and compares."""
        while not self._ended:
            begun, used = monotonic(), process_time()
            sleep(0.002)
            ended = monotonic()
            lost = ended - begun - 0.002 - (process_time() - used)
            if lost > 0.003:
                self.found.append((begun, ended, lost))

    def within(self, begun: float, ended: float) -> float:
        """Seconds lost between two instants."""
        return sum(lost for a, b, lost in self.found if a < ended and begun < b)

    def end(self) -> None:
        """Ends the thread."""
        self._ended = True
        self.join()


class Campaign:
    """Runs schedules against a fault server.

    Attributes:
        lost: requests without an answer.
        stood_still: those without one for which the machine stood still for half of their deadline, or longer.
        foreign: answers that belong to another request, or to none.
        twice: late answers that were delivered more than once.
        late: answers after the deadline: seconds too late, and seconds for which the machine stood still meanwhile.
        requests, sources: number of requests; of answers by source.
    """

    def __init__(self, seed: int, url: str, deadline_s: float) -> None:
        self.seed, self.url, self.deadline_s = seed, url, deadline_s
        self.faults: dict[str, int] = {}
        self.lost: list[str] = []
        self.stood_still: list[str] = []
        self.foreign: list[str] = []
        self.twice: list[str] = []
        self.late: list[tuple[float, float]] = []
        self.requests, self.sources = 0, Counter[str]()
        self._stalls = Stalls()
        self._lock = threading.Lock()

    def schedule(self, number: int) -> None:
        """Runs one schedule."""
        rng = random.Random(f"{self.seed}:{number}")
        plain = rng.random() < 0.6
        first = number * 2 * REQUESTS
        sure = {first + k for k in range(2 * REQUESTS) if rng.random() < 0.2}
        edge_s = rng.choice((0.0, 0.0, 0.002, 0.01))

        def edge(x):
            n = int(np.asarray(x).reshape(-1)[0])
            if edge_s:
                sleep(edge_s)
            return f"edge-{n}", 0.9 if n in sure else 0.1

        retries = rng.choice((0, 2))
        make = {True: lambda: PlainJson(f"{self.url}/json", retries=retries)}.get(
            plain,
            lambda: OpenInference(
                f"{self.url}/v2/models/m", binary=False, retries=retries, labels=[f"class-{n}" for n in range(CLASSES)]
            ),
        )
        clouds = [make() for _ in range(rng.choice((1, 1, 2)))]
        for n, cloud in enumerate(clouds):
            cloud.name = f"cloud-{n}"
        policy = {
            "threshold": 0.5,
            "deadline": self.deadline_s,
            "cache": Cache() if rng.random() < 0.3 else None,
            **rng.choice(MODES),
        }
        plan = [(first + 2 * k, rng.choice(CALLS)) for k in range(REQUESTS)]
        batch = rng.choice((1, 2, 3))
        groups = [plan[k : k + batch] for k in range(0, REQUESTS, batch)]
        late = Counter[str]() if rng.random() < 0.4 else None
        run = self._asyncio if number % 2 else self._threads
        run(edge, clouds, policy, groups, plain, late)
        self.twice += [name for name, times in (late or {}).items() if times > 1]

    def _heard(self, late, plain):
        def heard(answer):
            with self._lock:
                late[answer.id] += 1
            if answer.value is not None and "poison" in str(answer.value):
                self.foreign.append(f"late: {answer}")

        return heard

    def _threads(self, edge, clouds, policy, groups, plain, late):
        with Router(edge, clouds, **flat(**policy)) as router:
            if late is not None:
                router.on_late(self._heard(late, plain))

            def ask(n, call):
                x = self.input_of(n, plain)
                if call == "infer":
                    return [router.infer(x)]
                if call == "infer_many":
                    return router.infer_many([x, self.input_of(n + 1, plain)])
                if call == "refine":
                    return list(router.refine(x))[-1:]
                with router.stream(x) as stream:
                    list(stream)
                return [stream.answer]

            def one(n, call):
                begun = monotonic()
                try:
                    answers = ask(n, call)
                except Exception as e:  # noqa: BLE001 - whatever it is, the answer is lost
                    answers = e
                self._check(n, call, begun, answers, plain)

            with ThreadPoolExecutor(3) as pool:
                for group in groups:
                    list(pool.map(lambda request: one(*request), group))

    def _asyncio(self, edge, clouds, policy, groups, plain, late):
        async def main():
            async with AsyncRouter(edge, clouds, **flat(**policy)) as router:
                if late is not None:
                    router.on_late(self._heard(late, plain))

                async def ask(n, call):
                    x = self.input_of(n, plain)
                    if call == "infer":
                        return [await router.infer(x)]
                    if call == "infer_many":
                        return await router.infer_many([x, self.input_of(n + 1, plain)])
                    if call == "refine":
                        return [answer async for answer in router.refine(x)][-1:]
                    async with router.stream(x) as stream:
                        async for _ in stream:
                            pass
                    return [stream.answer]

                async def one(n, call):
                    begun = monotonic()
                    try:
                        answers = await ask(n, call)
                    except Exception as e:  # noqa: BLE001 - likewise
                        answers = e
                    self._check(n, call, begun, answers, plain)

                for group in groups:
                    await asyncio.gather(*(one(*request) for request in group))

        asyncio.run(main())

    def input_of(self, n, plain):
        """The input of that number."""
        return n if plain else np.array([n], np.float32)

    def _check(self, n, call, begun, answers, plain):
        ended = monotonic()
        took, label = ended - begun, f"{call} of {n} ({'json' if plain else 'oip'})"
        with self._lock:
            self.requests += 1
            stalled_s = self._stalls.within(begun, ended + 0.01)
            if isinstance(answers, Exception):
                known = "" if isinstance(answers, EdgerouteError) else "not ours: "
                why = f"; the machine stood still for {1000 * stalled_s:.0f} ms" if stalled_s else ""
                lost = self.stood_still if stalled_s >= self.deadline_s / 2 and not known else self.lost
                lost.append(f"{label}: {known}{type(answers).__name__}: {answers}"[:400] + why)
                return
            for k, answer in enumerate(answers):
                cloud = f"cloud-{n + k}" if plain else f"class-{(n + k) % CLASSES}"
                self.sources[answer.source] += 1
                if answer.value != (f"edge-{n + k}" if answer.source == "edge" else cloud):
                    self.foreign.append(f"{label}: {answer}"[:400])
            if took > self.deadline_s + TOLERANCE_S:
                self.late.append((took - self.deadline_s, stalled_s))

    def end(self) -> None:
        """Ends the monitor."""
        self._stalls.end()

    @property
    def late_by_us(self) -> list[tuple[float, float]]:
        """Late answers that no stall of the machine explains."""
        return [(late, stalled) for late, stalled in self.late if late - stalled > TOLERANCE_S]

    def report(self) -> dict[str, object]:
        """What happened."""
        return {
            "requests": self.requests, "answers": dict(self.sources), "lost": len(self.lost),
            "lost while the machine stood still": len(self.stood_still), "of another request": len(self.foreign),
            "late answers delivered twice": len(self.twice), "late": len(self.late),
            "late without a stall": len(self.late_by_us), "latest, ms": round(1000 * max((late for late, _ in self.late), default=0)), "stalls": len(self._stalls.found),
        }  # fmt: skip


def run(seed: int, schedules: range, workers: int, deadline_s: float) -> Campaign:
    """Runs schedules, some at once, against a fault server in a process of its own."""
    command = [sys.executable, __file__, "--serve", "--seed", str(seed), "--deadline", str(deadline_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        campaign = Campaign(seed, server.stdout.readline().strip(), deadline_s)
        try:
            with ThreadPoolExecutor(workers) as pool:
                for n, _ in enumerate(pool.map(campaign.schedule, schedules), 1):
                    if n % 500 == 0:
                        print(f"{n} schedules: {json.dumps(campaign.report())}", file=sys.stderr, flush=True)
        finally:
            campaign.end()
            said, _ = server.communicate("")  # its end
            campaign.faults = json.loads(said)
    return campaign


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule, to run one again")
    parser.add_argument("--workers", type=int, default=4, help="schedules at once")
    parser.add_argument("--deadline", type=float, default=0.15, help="of each request, seconds")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with FaultServer(args.seed, args.deadline) as server:
            print(server.url, flush=True)
            sys.stdin.read()
            print(json.dumps(server.faults))
        return 0
    campaign = run(args.seed, range(args.first, args.first + args.schedules), args.workers, args.deadline)
    print(json.dumps({"schedules": args.schedules, "seed": args.seed, **campaign.report(), "faults": campaign.faults}, indent=2))
    for what in ("lost", "foreign", "twice", "late_by_us"):
        for line in getattr(campaign, what)[:10]:
            print(f"{what}: {line}")
    broken = campaign.lost or campaign.foreign or campaign.twice or campaign.late_by_us
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
