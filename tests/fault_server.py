"""Server with a random fault for each attempt, which records all bodies: plain JSON, chats and the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from edgeroute.tools.contracts.canned_server import Listener, finish

CLASSES = 64
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
SECRET = "SECRET"
"""In each input that may not leave, and in each that was written to once its call had returned; in arrays a negative number."""
METADATA = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,1]}]}'


class Post(NamedTuple):
    """Body that has arrived."""

    cloud: str
    key: str
    """Idempotency key."""
    ids: list[int]
    leaks: bool
    """True if the body has something that may not leave."""
    size: int


def head(length: int | str, *lines: str, status: int = 200, version: str = "1.1") -> bytes:
    """Return the status line and headers of a reply."""
    return "\r\n".join([f"HTTP/{version} {status} -", f"Content-Length: {length}", *lines, "", ""]).encode()


def number_in(x) -> int:
    """Return the number of an input: that in the last message of a chat, else its own."""
    return int(re.findall(r"-?\d+", x[-1]["content"])[0]) if isinstance(x, list) else int(x["n"])


class FaultServer(Listener):
    """Server at /FOLDER/CLOUD; the fault of an attempt depends on seed, input and attempt.

    `/posts/FOLDER` replies with the bodies that have arrived for that folder, after `/calm/FOLDER` all replies are good.
    """

    def __init__(self, seed: int, deadline_s: float) -> None:
        self.seed, self.faults, self._deadline_s = seed, Counter[str](), deadline_s
        self.posts: defaultdict[str, list[Post]] = defaultdict(list)
        self._attempts, self._calm = Counter[int](), set[str]()
        super().__init__(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            first, *lines = request.decode("latin-1").split("\r\n")
            method, (_, folder, name, *_) = first.split(" ")[0], (first.split(" ")[1] + "//").split("/", 3)
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if method != "POST":
                answer = METADATA
                if folder == "posts":
                    answer = json.dumps(self.posts.pop(name, [])).encode()
                elif folder == "calm":
                    self._calm.add(name)
                writer.write(head(len(answer)) + answer)
                await writer.drain()
                continue
            said = json.loads(body)
            plain = "input" in said
            ids = [number_in(said["input"])] if plain else [int(n) for n in said["inputs"][0]["data"]]
            leaks = SECRET.encode() in body or min(ids) < 0
            self.posts[folder].append(Post(name, headers.get("idempotency-key", ""), ids, leaks, len(body)))
            self._attempts[ids[0]] += 1
            rng = random.Random(f"{self.seed}/{ids[0]}/{self._attempts[ids[0]]}")
            fault = "good" if folder in self._calm else rng.choice(FAULTS)
            if not await self._answer(fault, rng, good(ids, plain=plain), writer):
                return

    async def _answer(self, fault: str, rng: random.Random, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Send the reply with its fault. Return True if the connection goes on."""
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
    """Return the reply to these inputs."""
    if plain:
        return json.dumps({"value": f"cloud-{ids[0]}", "confidence": 0.9}).encode()
    rows = np.zeros((len(ids), CLASSES))
    rows[range(len(ids)), [n % CLASSES for n in ids]] = 9
    return json.dumps(
        {"outputs": [{"name": "y", "datatype": "FP32", "shape": [len(ids), CLASSES], "data": rows.ravel().tolist()}]}
    ).encode()
