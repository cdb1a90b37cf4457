"""Fuzzer of everything that is read from outside: replies, HTTP, policies, cards, certificates, scores, traces, stores.

Each target runs in a process of its own, with 100 MB of memory above what it begins with and two seconds of processor time for
each input. Inputs are valid ones with random edits of their structure (JSON, SQLite rows) and of their bytes. A finding is
any exception that the target does not document, too much memory or time, or the end of the process. By hand:

    python tests/fuzz.py --seconds 300            # each target
    python tests/fuzz.py --target policy --seed 7 --first 1234 --inputs 1    # one input again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import monotonic, process_time

import h11
import numpy as np

from edgeroute import (
    BadInput,
    BadReply,
    Cache,
    CloudError,
    EdgerouteError,
    ModelError,
    OpenInference,
    Outbox,
    PlainJson,
    PolicyError,
    Router,
    StoreError,
)
from edgeroute.cloud.function_backend_and_reply_checks import ReplyReader
from edgeroute.confidence import Certificate, Learned, calibrate, fit
from edgeroute.edge.model_card import Card
from edgeroute.http import reply_parser as reading
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import MAX_REPLY, Address, Call, Reply
from edgeroute.http.reply_parser import H11, Llhttp, Malformed, Reading
from edgeroute.http.sans_io_tls_connection import pin_of
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.testing import CannedServer
from edgeroute.tools.replay import recorded_requests_and_statistics as records
from edgeroute.tools.server import oip_requests_media_routes as protocol
from edgeroute.types import TensorSpec

reading.h11 = h11  # where there is httptools it is not imported
MEMORY = 100 << 20
CPU_S = 2.0
MOST = 1 << 20
"""Bytes of an input."""
HERE = Path(__file__).parent
NASTY = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(10**400), 1e308, math.nan, math.inf, -math.inf, "", "\0", "\x1b[2J\r\nx",
    "a" * 10_000, "9" * 5000, "é" * 100, "NaN", "..", "/dev/full", [], {}, [[]] * 100, [None], {"": {}}, "0" * 300 + "1", 1e-320,
)  # fmt: skip
TOKENS = (
    b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"[", b"]", b"{", b"}", b",", b":", b"=", b"#", b"\n", b"\r\n", b"\t",
    b"[" * 5000, b'{"a":' * 3000, b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/object:os.system x", b"---\n", b"'''", b'"""', b"[[a]]\n", b"a.b.c=1\n",
    b"1e999999", b"-0", b"9" * 5000, b"1979-05-27T07:32:00Z", b"NaN", b"Infinity", b"null", b"HTTP/1.1 200 OK\r\n\r\n", b"Content-Length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"HTTP/1.1 100 -\r\n\r\n", b"x" * 70_000,
)  # fmt: skip


class TooLong(BaseException):
    """An input took more processor time than it may."""


def deep(depth: int) -> object:
    """Lists in lists."""
    inner: object = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def places(data: object) -> Iterator[tuple[object, object]]:
    """(container, key) of all that is in there."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from places(value)


def edited(rng: random.Random, data: object) -> object:
    """The same with a few places changed, dropped, doubled or exchanged."""
    data = [json.loads(json.dumps(data))]
    for _ in range(rng.randrange(1, 4)):
        found = list(islice(places(data), 3000))
        container, key = rng.choice(found)
        how = rng.randrange(6)
        if how <= 2:
            container[key] = rng.choice(NASTY) if rng.random() < 0.95 else deep(rng.choice((90, 900)))
        elif how == 3 and container is not data:
            del container[key]
        elif how == 4:
            other, at = rng.choice(found)
            container[key] = json.loads(json.dumps(other[at])) if container is not other[at] else None
        elif isinstance(container, dict):
            container[rng.choice(["", "x", "__class__", str(key) + " ", str(key).upper(), "a" * 300])] = container[key]
        elif container is not data:
            container.extend(container[key : key + 1] * rng.choice((1, 2, 40)))
    return data[0]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same with a few edits: of its structure, if it is JSON, and of its bytes."""
    with contextlib.suppress(ValueError, RecursionError, IndexError):
        if rng.random() < 0.6:
            text = json.dumps(edited(rng, json.loads(data))).encode()
            if len(text) < MOST:
                data = text
                if rng.random() < 0.8:
                    return data
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + int(rng.expovariate(1 / 8)))
        how = rng.randrange(5)
        if how == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + data[end:]
        elif how == 2:
            data = data[:at] + data[at:end] * rng.randrange(2, 5) + data[end:]
        elif how == 3:
            data = data[:at] + rng.choice(TOKENS) + data[end:]
        else:
            data = data[:at]
    return data


class Target:
    """Something that reads bytes from outside.

    Attributes:
        seeds: valid inputs.
        known: the exceptions that it documents.
    """

    seeds: list[bytes]
    known: tuple[type[BaseException], ...] = (EdgerouteError,)

    def mutate(self, rng: random.Random) -> bytes:
        """The next input."""
        return mutated(rng, rng.choice(self.seeds))

    def take(self, data: bytes) -> None:
        """Reads it."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends it."""


def played(talk, reply: Callable[[Call], Reply]):
    """Plays the server of a talk -> what it returns."""
    try:
        call = talk.send(None)
        for _ in range(20):
            call = talk.send(reply(call))
    except StopIteration as end:
        return end.value
    finally:
        talk.close()
    raise AssertionError("it never ends")


class Oip(Target):
    """Replies and metadata of the Open Inference Protocol, in JSON and binary."""

    known = (BadReply,)

    def __init__(self, _folder: Path) -> None:
        tensor = np.arange(6, dtype="<f4").tobytes()
        binary = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 6], "parameters": {"binary_data_size": 24}}]}
        head = json.dumps(binary).encode()
        self.seeds = [
            b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1,3],"data":[0.5,1.5,-2]}]}',
            b'{"outputs":[{"name":"a","datatype":"INT64","shape":[1,2],"data":[7,8]},{"name":"y","datatype":"FP64","shape":[1,3],"data":[[1,2,3]]}]}',
            b'{"name":"m","versions":["1"],"inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],"outputs":[]}',
            b"%d\n" % len(head) + head + tensor,
        ]
        self._reader = ReplyReader(labels=["a", "b", "c"])

    def take(self, data: bytes) -> None:
        """As the reply to an inference, and as the metadata before it."""
        length, cut, rest = data.partition(b"\n")
        headers = {"inference-header-content-length": length.decode("latin-1")} if cut and length[:1].isdigit() else {}
        body = rest if headers else data
        for meta in (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}]}', body):
            endpoint = OpenInference("http://127.0.0.1:1/v2/models/m", binary=bool(headers))

            def reply(call: Call, meta: bytes = meta) -> Reply:
                return Reply(200, {}, meta) if call.method == "GET" else Reply(200, headers, body)

            try:
                outputs = played(endpoint.talk([np.zeros(4, np.float32)]), reply)
                (prediction,) = self._reader.read_many(outputs, 1)
            except BadInput:
                if meta is not body:  # then it is not the input that does not fit
                    raise AssertionError("a reply is not the caller's fault") from None
                continue
            assert prediction.value is not None, "null is no answer"
            assert not isinstance(prediction.confidence, float) or 0 <= prediction.confidence <= 1, prediction.confidence


class Plain(Target):
    """Replies in plain JSON."""

    known = (BadReply,)

    def __init__(self, _folder: Path) -> None:
        self.seeds = [b'{"value":"dog","confidence":0.9,"more":[1,{"a":null}]}', b'{"result":[{"scores":[0.1,2,0.3]}]}']
        self._simple = PlainJson("http://127.0.0.1:1/x")
        self._nested = PlainJson("http://127.0.0.1:1/x", logits="result.0.scores", labels=["a", "b", "c"])

    def take(self, data: bytes) -> None:
        """As a value with its confidence, and as logits."""
        for endpoint in (self._simple, self._nested):
            try:
                outputs = played(endpoint.talk([1]), lambda _: Reply(200, {}, data))
                (prediction,) = ReplyReader(labels=endpoint.labels, kind=endpoint.kind).read_many(outputs, 1)
            except BadReply:
                continue
            assert prediction.value is not None, "null is no answer"
            confidence = prediction.confidence
            assert confidence is None or math.isfinite(confidence), confidence


class Http(Target):
    """HTTP replies on a real connection, which the server then closes."""

    known = (CloudError,)

    def __init__(self, _folder: Path) -> None:
        self.seeds = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\nContent-Type: application/json\r\n\r\n" + b'{"value":"dog"}',
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 103 -\r\nLink: x\r\n\r\nHTTP/1.0 503 -\r\nRetry-After: 1\r\nConnection: close\r\n\r\noops",
            b"HTTP/1.1 204 -\r\n\r\n",
        ]
        self._now = b""
        self._server = CannedServer(lambda _: self._now, close=True)
        self._connections = Connections(Address(self._server.url))

    def take(self, data: bytes) -> None:
        """As the reply to a request."""
        self._now, call = data, Call("POST", "/", body=b"x")
        if len(data) % 2:
            settle(self._in_pieces(call))
        else:
            reply = self._connections.send(call, monotonic() + 5, None)
            assert isinstance(reply.status, int)
            assert len(reply.body) <= MAX_REPLY

    async def _in_pieces(self, call: Call) -> None:
        """As the reply to a request that is read piece by piece."""
        size = 0
        async with self._connections.open(call, monotonic() + 5) as response:
            while (piece := await response.read()) is not None:
                size += len(piece)
        assert size <= MAX_REPLY

    def close(self) -> None:
        """Ends the server."""
        self._connections.close()
        self._server.close()


class Http1(Target):
    """HTTP replies without I/O, by either parser, in pieces: what both take they take for the same. And certificates' pins."""

    known = (Malformed, BadReply)

    def __init__(self, _folder: Path) -> None:
        self.seeds = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nT: u\r\n\r\n",
            b"HTTP/1.1 100 -\r\n\r\nHTTP/1.1 500 -\r\nConnection: close\r\n\r\noops",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\nTransfer-Encoding: identity\r\n folded: 1\r\n\r\n",
        ]

    def take(self, data: bytes) -> None:
        """Whole and in pieces, by both."""
        found = []
        for parser in (Llhttp, H11):
            reading.new_parser = parser
            whole, split = self._read(data, len(data)), self._read(data, 1 + len(data) % 7)
            assert whole == split, f"{parser.__name__}, in pieces: {split}"
            found.append(whole)
        assert found[0] == found[1] or None in found, found
        with contextlib.suppress(ValueError):
            pin_of(data)

    def _read(self, data: bytes, size: int) -> tuple[object, ...] | None:
        got, body = Reading("http://a", "POST", MAX_REPLY), b""
        at = 0
        try:
            while not got.ended:
                piece = data[at : at + min(size, got.most)]
                got.feed(piece)
                at += len(piece)
                body += got.take()
        except (Malformed, BadReply):
            return None
        assert len(body) <= MAX_REPLY
        return got.status, got.headers, b"" if got.unread else body, got.reusable and at == len(data)


class File(Target):
    """A file that is read."""

    suffix = ""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"file{self.suffix}"

    def take(self, data: bytes) -> None:
        """Writes and reads it."""
        self.path.write_bytes(data)
        self.read(self.path)

    def read(self, path: Path) -> None:
        """Reads it."""
        raise NotImplementedError


class Policy(File):
    """Policy files in TOML, JSON and YAML."""

    known = (PolicyError, ModelError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        policies = HERE.parent / "examples" / "policies"
        self._seeds = [
            (p.suffix, p.read_bytes()) for p in sorted(policies.iterdir()) if p.suffix in {".toml", ".json", ".yaml", ".yml"}
        ]
        small = {
            "edge": ["m.onnx"], "cloud": ["http://127.0.0.1:1/v2/models/m"], "threshold": {"default": 0.5, "cat": 0.9}, "deadline": "2s", "state": "st",
            "egress": {"may_leave": ["a"], "never_leave": ["b"]}, "limits": {"usd_per_day": 1}, "outbox": {"ttl": "1d"}, "offline": "queue",
        }  # fmt: skip
        self._seeds += [(".json", json.dumps(small).encode()), (".yaml", json.dumps(small, indent=1).encode())]

    def mutate(self, rng: random.Random) -> bytes:
        """The suffix, a line end, and the file."""
        suffix, data = rng.choice(self._seeds)
        return suffix.encode() + b"\n" + mutated(rng, data)

    def take(self, data: bytes) -> None:
        """Loads it, and makes the arguments of a router."""
        from edgeroute import policy

        suffix, _, text = data.partition(b"\n")
        path = self.path.with_suffix(suffix.decode())
        path.write_bytes(text)
        policy.load(path).arguments(path.parent)


class ModelCard(File):
    """Model cards."""

    suffix = ".json"
    known = (ModelError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        pixels = {"dtype": "uint8", "shape": [8, 8, 3], "layout": "HWC", "resize": 9, "crop": [8, 8], "mean": [1, 2, 3], "std": 3}
        card = {
            "labels": ["a", "b"],
            "inputs": [
                {"name": "x", "dtype": "float32", "shape": [3, 8, 8, -1], "layout": "CHW", "batch": 3, "preprocess": pixels},
                {"name": "k", "value": [1, 2.5]},
            ],
            "state": [{"input": "h", "output": "h2", "shape": [1, 0], "value": 0.5}],
            "output": {"name": "logits", "kind": "logits", "batch": "none"},
            "sha256": "0" * 64,
        }
        shipped = HERE.parent / "models" / "fashion" / "edge.int8.json"
        self.seeds = [json.dumps(card).encode()] + ([shipped.read_bytes()] if shipped.exists() else [])

    def read(self, path: Path) -> None:
        """Reads it."""
        Card.read(path)


class Certificates(File):
    """Certificates."""

    suffix = ".json"
    known = (PolicyError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(1)
        confidence = rng.random(2000)
        right = rng.random(2000) < 0.5 + confidence / 2
        calibrate(confidence, right, np.ones(2000, bool), max_loss=0.1, name="msp").save(self.path)
        self.seeds = [self.path.read_bytes()]

    def read(self, path: Path) -> None:
        """Reads it; once more with a checksum that fits."""
        try:
            Certificate.load(path)
        except PolicyError:
            with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
                data = json.loads(path.read_bytes())
                data.pop("checksum", None)
                text = json.dumps(data, sort_keys=True, separators=(",", ":"))
                path.write_text(json.dumps({**data, "checksum": sha256(text.encode()).hexdigest()}))
            Certificate.load(path)


class LearnedScore(File):
    """Learned scores."""

    suffix = ".json"
    known = (PolicyError, ModelError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(1)
        logits = rng.normal(size=(600, 4))
        fit(logits, rng.random(600) < 0.6, rng.random(600) < 0.9).save(self.path)
        self.seeds = [self.path.read_bytes()]

    def read(self, path: Path) -> None:
        """Reads it, and scores a row."""
        score = Learned.load(path).many(np.zeros((1, 4)))
        assert score.shape == (1,)


class TraceFile(File):
    """Traces."""

    suffix = ".jsonl"
    known = (BadInput, StoreError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lines: list[str] = []
        with Router(
            lambda x: ("edge", x / 10), lambda x: ("cloud", 0.9), threshold=0.5, trace=lambda r: lines.append(json.dumps(r))
        ) as router:
            for x in range(10):
                router.infer(x)
            router.infer_many([1, 2, 9])
        self._lines = [line.encode() for line in lines]

    def mutate(self, rng: random.Random) -> bytes:
        """Some lines changed."""
        return b"\n".join(mutated(rng, line) if rng.random() < 0.3 else line for line in self._lines) + b"\n"

    def read(self, path: Path) -> None:
        """Reads it."""
        records.read(path)


class Rows(Target):
    """Rows of a store in SQLite: one is changed, and the store is opened and used. Nothing may come of it but its own errors."""

    known = (StoreError,)

    def __init__(self, folder: Path) -> None:
        self._folder, self.path = folder, folder / "store.db"
        self.fill(self.path)
        self._whole = self.path.read_bytes()

    def mutate(self, rng: random.Random) -> bytes:
        """The number of the change: what it changes is drawn from that."""
        return b"%d" % rng.randrange(1 << 60)

    def take(self, data: bytes) -> None:
        """Changes some values, and uses the store."""
        rng = random.Random(int(data))
        for path in self._folder.glob("store.db*"):
            path.unlink()
        whole = self._whole
        if rng.random() < 0.2:  # of the file itself
            at = rng.randrange(len(whole))
            whole = (
                whole[:at] + rng.randbytes(rng.randrange(1, 50)) + whole[at:]
                if rng.random() < 0.1
                else whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
            )
        self.path.write_bytes(whole)
        with (
            contextlib.suppress(sqlite3.DatabaseError, OverflowError, UnicodeError),
            contextlib.closing(sqlite3.connect(self.path)) as c,
        ):
            tables = [t for (t,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for _ in range(rng.randrange(1, 3)):
                table = rng.choice(tables)
                columns = [row[1] for row in c.execute(f"PRAGMA table_info({table})")]
                column, rows = rng.choice(columns), c.execute(f"SELECT rowid, * FROM {table}").fetchall()
                if not rows:
                    continue
                row = rng.choice(rows)
                value = row[1 + columns.index(column)]
                if isinstance(value, str | bytes) and rng.random() < 0.6:
                    raw = mutated(rng, value.encode() if isinstance(value, str) else value)
                    value = raw.decode(errors="replace") if isinstance(value, str) else raw
                else:
                    value = rng.choice(
                        (None, -1, 0, 2**62, 1e300, math.inf, "", "x", b"\xff\x00", "\ud83d", "[]", "{}", "9" * 400)
                    )
                with contextlib.suppress(sqlite3.IntegrityError):
                    c.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row[0]))
            c.commit()
        self.use(self.path)

    def fill(self, path: Path) -> None:
        """Makes a store with rows."""
        raise NotImplementedError

    def use(self, path: Path) -> None:
        """Opens, reads, writes and closes it."""
        raise NotImplementedError


class OutboxRows(Rows):
    """The outbox: rows that wait, that were answered, and that failed."""

    def fill(self, path: Path) -> None:
        """Two that wait for a dead server, and one that a function has answered."""
        outbox = Outbox(path, spread_s=0)
        with Router(
            lambda x: ("edge", 0.1), PlainJson("http://127.0.0.1:1/x", retries=0), threshold=0.5, offline="queue", outbox=outbox
        ) as router:
            router.infer({"a": 1})
            router.infer([1.5, None, "x"])
            router.infer(np.arange(4.0))
        with contextlib.closing(sqlite3.connect(path)) as c:
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            c.execute("PRAGMA journal_mode=DELETE")

    def use(self, path: Path) -> None:
        """Lists, exports, retries; and a router that delivers to nobody."""
        with contextlib.closing(Outbox(path, spread_s=0)) as outbox:
            outbox.counts()
            for entry in outbox.list():
                outbox.late(entry.id)
            list(outbox.export())
            outbox.retry()
        heard = []
        with Router(
            lambda x: ("edge", 0.1),
            PlainJson("http://127.0.0.1:1/x", retries=0),
            threshold=0.5,
            offline="queue",
            outbox=Outbox(path),
        ) as router:
            router.on_late(heard.append)
            answer = router.infer({"b": 2})
            assert (answer.value, answer.source) == ("edge", "edge")


class CacheRows(Rows):
    """The cache on disk."""

    def fill(self, path: Path) -> None:
        """Some answers."""
        with Router(lambda x: ("edge", 0.1), lambda x: (f"cloud-{x}", 0.9), threshold=0.5, cache=Cache(disk=path)) as router:
            for x in range(5):
                router.infer(x)
        with contextlib.closing(sqlite3.connect(path)) as c:
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            c.execute("PRAGMA journal_mode=DELETE")

    def use(self, path: Path) -> None:
        """An answer is the right one, whatever is in the file."""
        with Router(lambda x: ("edge", 0.1), lambda x: (f"cloud-{x}", 0.9), threshold=0.5, cache=Cache(disk=path)) as router:
            for x in range(5):
                answer = router.infer(x)
                assert answer.value == f"cloud-{x}", answer


class StateRows(Rows):
    """The state of a router: limits, latencies, metadata."""

    def fill(self, path: Path) -> None:
        """What a router keeps."""
        folder = path.parent / "kept"
        with Router(lambda x: ("edge", 0.1), lambda x: ("cloud", 0.9), threshold=0.5, state=folder) as router:
            for x in range(70):
                router.infer(x)
        kept = next(folder.glob("*.db"))
        with contextlib.closing(sqlite3.connect(kept)) as c:
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            c.execute("PRAGMA journal_mode=DELETE")
        path.write_bytes(kept.read_bytes())
        self._name = kept.name

    def use(self, path: Path) -> None:
        """A router on it answers, and its store reads."""
        folder = path.parent / "used"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        (folder / self._name).write_bytes(path.read_bytes())
        with Router(lambda x: ("edge", 0.1), lambda x: ("cloud", 0.9), threshold=0.5, state=folder) as router:
            answer = router.infer(1)
            assert answer.value in {"edge", "cloud"}
            router.stats()
        store = KeyValueStore(folder / self._name)
        store.get("latency")
        store.others("", "")
        store.close()


class Served(Target):
    """Requests to `edgeroute serve`."""

    known = (BadInput,)

    def __init__(self, _folder: Path) -> None:
        self._inputs = (TensorSpec("x", "float32", (-1, 4)), TensorSpec("k", "int64", (1,)))
        self._outputs = (TensorSpec("y", "float32", (-1, 3)),)
        x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4.5]}
        k = {"name": "k", "datatype": "INT64", "shape": [1], "data": [7]}
        binary = {**{key: x[key] for key in ("name", "datatype", "shape")}, "parameters": {"binary_data_size": 16}}
        head = json.dumps(
            {"id": "1", "inputs": [binary, k], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
        ).encode()
        self.seeds = [json.dumps({"inputs": [x, k]}).encode(), b"%d\n" % len(head) + head + bytes(16)]

    def take(self, data: bytes) -> None:
        """Parses it, and encodes a reply."""
        length, cut, rest = data.partition(b"\n")
        binary = bool(cut) and length[:1].isdigit()
        ask = protocol.read(rest if binary else data, length.decode("latin-1") if binary else None, self._inputs, self._outputs)
        protocol.write(ask, {"y": np.zeros((1, 3), np.float32)}, "m")


TARGETS: dict[str, type[Target]] = {
    "oip": Oip, "plain": Plain, "http": Http, "http1": Http1, "policy": Policy, "card": ModelCard, "certificate": Certificates, "score": LearnedScore,
    "trace": TraceFile, "outbox": OutboxRows, "cache": CacheRows, "state": StateRows, "serve": Served,
}  # fmt: skip


def too_long(*_: object) -> None:
    """Receiver of the timer's signal."""
    raise TooLong


def used_memory(what: str) -> int:
    """Bytes of this process's memory: VmSize or VmRSS."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def fuzz(name: str, seed: int, first: int, inputs: int, seconds: float, folder: Path) -> int:
    """Runs one target here -> number of findings, at most ten."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    target = TARGETS[name](folder)
    with contextlib.suppress(*target.known):  # imports are not its memory
        target.take(target.mutate(random.Random(0)))
    before = used_memory("VmRSS")
    signal.signal(signal.SIGVTALRM, too_long)
    end, n, found = monotonic() + seconds, first, list[str]()
    while monotonic() < end and n < first + inputs and len(found) < 10:
        data = target.mutate(random.Random(f"{seed}/{n}"))
        (folder / "now").write_text(f"--seed {seed} --first {n} --inputs 1")
        used = process_time()
        try:
            resource.setrlimit(resource.RLIMIT_AS, (used_memory("VmSize") + MEMORY, -1))
            signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
            try:
                target.take(data)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        except target.known:
            pass
        except BaseException as e:  # noqa: BLE001 - that is what is looked for
            where = traceback.extract_tb(e.__traceback__)[-1]
            line = f"{type(e).__name__} at {Path(where.filename).name}:{where.lineno}: {str(e)[:200]}"
            if not any(line.partition(": ")[0] in old for old in found):
                found.append(
                    f"{name} --seed {seed} --first {n} --inputs 1: {line} (cpu {process_time() - used:.1f} s) on {data[:120]!r}"
                )
                print(found[-1], flush=True)
        n += 1
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    target.close()
    more = (used_memory("VmRSS") - before) >> 20
    print(f"{name}: {n - first} inputs, {len(found)} findings, {more} MB more in the end", flush=True)
    return len(found)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", choices=TARGETS, help="one alone; otherwise each in turn, in a process of its own")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=1 << 62)
    args = parser.parse_args()
    if args.target:
        with tempfile.TemporaryDirectory() as folder:
            return 1 if fuzz(args.target, args.seed, args.first, args.inputs, args.seconds, Path(folder)) else 0
    broken = []
    for name in TARGETS:
        command = [sys.executable, __file__, "--target", name, "--seconds", str(args.seconds), "--seed", str(args.seed)]
        rc = subprocess.run(command, check=False).returncode
        if rc:
            broken.append(f"{name} (exit status {rc})")
    print(f"seed {args.seed}: {'broken: ' + ', '.join(broken) if broken else 'nothing found'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
