"""The answer cache: keys that never collide, entries that are never wrong or too old, and one asker for many."""

# ruff: noqa: D102 - the rules of a state machine say in their names what they do

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from both import interrupted
from draws import draws
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeroute import BadInput, Cache, Semantic
from edgeroute.stores.cache import Entry, Flights, digest, fingerprint
from edgeroute.stores.cache import answer_cache_and_singleflight as disk_module
from edgeroute.stores.cache import interrupt_safe_lru as recent
from edgeroute.stores.cache.cache_entries_and_copies import private_copy
from edgeroute.stores.cache.input_keys_and_fingerprints import encode_buffers
from edgeroute.stores.cache.interrupt_safe_lru import Recent
from edgeroute.stores.sqlite_file_and_key_values import Database

LONG = 60.0
"""Seconds after which a test that waits for something has failed."""
FLIPS = int(os.environ.get("EDGEROUTE_FLIPS", "40"))
ROUNDS = int(os.environ.get("EDGEROUTE_KILL_ROUNDS", "5"))


class Clock:
    """Time as a test sets it."""

    def __init__(self, at=1_800_000_000.0):
        self.at = at

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(clock):
    """Makes caches that are closed at the end."""
    caches = []

    def make(**rest):
        caches.append(Cache(clock=clock, **rest))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def entry(value="cat", at=1_800_000_000.0, outputs=None, confidence=0.9):
    return Entry(value, confidence, outputs, "cloud", "cloud", "because", at)


def key(number):
    return number.to_bytes(32, "big")


def run(code, *arguments, **options):
    """A process of its own that has to end well. -> what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=LONG, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- keys


def canon(x):
    """An input so that `==` sees all that a key has to see."""
    if isinstance(x, np.ndarray | np.generic):
        return ("a" if isinstance(x, np.ndarray) else "g", f"{x.dtype.str} {x.dtype!r}", x.shape, x.tobytes())
    if isinstance(x, list | tuple):
        return (type(x).__name__, [canon(item) for item in x])
    if isinstance(x, dict):
        return ("dict", [(name, canon(x[name])) for name in sorted(x)])
    return (type(x).__name__, struct.pack("<d", x) if isinstance(x, float) else x)


def decoded(data):
    """The input, as `canon` writes it, from its encoding alone: what can be read back has been told apart."""
    at = 0

    def take(count):
        nonlocal at
        at += count
        assert at <= len(data)
        return data[at - count : at]

    def until(mark):
        nonlocal at
        end = data.index(mark, at)
        text, at = data[at:end], end + 1
        return text

    def one():
        tag = take(1)
        if tag in {b"a", b"g"}:
            dtype = take(int(until(b":"))).decode()
            shape = tuple(int(n) for n in until(b")").strip(b"(").split(b",") if n)
            count = int(np.prod(shape, dtype=object)) * np.dtype(dtype.split(" ")[0]).itemsize
            return (tag.decode(), dtype, shape, take(count))
        if tag == b"s":
            return ("str", take(int(until(b":"))).decode("utf-8", "surrogatepass"))
        if tag == b"b":
            return ("bytes", take(int(until(b":"))))
        if tag == b"f":
            return ("float", take(8))
        if tag == b"i":
            return ("int", int(until(b";"), 16))
        if tag in {b"l", b"t"}:
            return ("list" if tag == b"l" else "tuple", [one() for _ in range(int(until(b":")))])
        if tag == b"d":
            return ("dict", [(one()[1], one()) for _ in range(int(until(b":")))])
        return {b"T": ("bool", True), b"F": ("bool", False), b"N": ("NoneType", None)}[tag]

    prefix = take(int(until(b":")))
    x = one()
    assert at == len(data)
    return prefix, x


texts = st.text(st.characters(exclude_categories=()), max_size=6)
dtypes = st.one_of(
    hnp.scalar_dtypes(), hnp.byte_string_dtypes(max_len=3), hnp.unicode_string_dtypes(max_len=3), hnp.datetime64_dtypes()
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=6) | arrays
leaves |= st.sampled_from([np.float32(1), np.int8(1), np.bool_(True), np.float64("nan")])
inputs = st.recursive(
    leaves,
    lambda x: st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple) | st.dictionaries(texts, x, max_size=3),
    max_leaves=8,
)


@settings(max_examples=draws(600), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=4), inputs)
def test_an_input_can_be_read_back_from_its_encoding(prefix, x):
    """The encoding loses neither type nor length nor bits, so no two inputs have the same."""
    assert decoded(b"".join(bytes(memoryview(part)) for part in encode_buffers(prefix, x))) == (prefix, canon(x))


@settings(max_examples=draws(400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(inputs, inputs)
def test_keys_are_equal_where_inputs_are(x, y):
    """Two inputs have one key exactly if they are the same in type, shape and bits."""
    assert (digest(b"p", x) == digest(b"p", y)) == (canon(x) == canon(y))


def test_inputs_that_look_alike_have_different_keys():
    """Types, shapes, signs, nesting and prefixes are part of the key."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.arange(6, dtype=np.uint8)
    alike = [
        None, True, False, 1, 1.0, -1, 0, 0.0, -0.0, "1", b"1", "", b"", [], (), {}, [1], (1,), [[1]], {"1": 1}, {"1": "1"},
        ["a", "b"], ["ab"], ["a", ["b"]], "ab", ["1:", ""], ["", "1:"], 10**5000, float("nan"), float("inf"), 2**64,
        np.float64(1), np.float32(1), np.int64(1), np.array(1.0), np.array([1.0]), np.array([[1.0]]), np.array(1),
        a, a.reshape(2, 3), a.reshape(3, 2), a.view(np.int8), a.view(np.uint16), a.view(bool), a.tolist(), a.tobytes(), {"a": a}, [a],
        np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(2, "V2"), np.zeros(2, np.uint16), np.zeros(2, ">u2"), np.zeros(2, ml_dtypes.bfloat16), np.zeros(2, np.float16),
        np.zeros(2, "M8[s]"), np.zeros(2, "M8[ms]"), np.zeros(2, [("x", "u1"), ("y", "u1")]), np.zeros(2, [("x", "u1"), ("z", "u1")]),
    ]  # fmt: skip
    keys = [digest(prefix, x) for x in alike for prefix in (b"", b"p", b"1:")]
    assert None not in keys
    assert len({*keys}) == len(keys)


def test_the_layout_in_memory_does_not_matter(tmp_path):
    """What is equal has one key: strided, reversed, column-major, mapped from a file, or with its names in another order."""
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    wide = np.repeat(a, 2, axis=1)
    same = [a, a.copy("F"), wide[:, ::2], a[::-1].copy()[::-1], mapped, np.asfortranarray(a)]
    assert len({digest(b"", x) for x in same}) == 1
    assert digest(b"", np.array([1, 2, 3])[::-1]) == digest(b"", np.array([3, 2, 1]))
    assert digest(b"", {"x": a, "y": 1}) == digest(b"", {"y": 1, "x": a})
    nan = np.array([np.nan, 1.0])
    assert digest(b"", nan) == digest(b"", nan.copy())


class Text(str):
    """A str that may be more than its characters."""

    __slots__ = ()


def test_what_cannot_be_told_apart_has_no_key():
    """An object of another kind is no error, it is not cached."""
    inside: list = []
    inside.append(inside)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    odd = [
        object(), {1, 2}, {1: 2}, {"a": object()}, [{1}], Text("a"), 1j, bytearray(b"a"), inside, deep,
        np.array([None]), np.zeros(1, [("o", "O")]), np.ma.masked_array([1, 2], [True, False]),
    ]  # fmt: skip
    assert [digest(b"", x) for x in odd] == [None] * len(odd)


def test_a_change_after_the_call_does_not_matter():
    """The key is of the input as it was; a changed input has another."""
    x = np.zeros(8)
    before = digest(b"", x)
    x[0] = 1
    assert digest(b"", x) != before == digest(b"", np.zeros(8))


# --- fingerprints


def test_the_fingerprint_of_a_file_is_its_content_s(tmp_path):
    """It is the same wherever the file lies, and changes with the content."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one" * 1_000_000)
    b.write_bytes(b"one" * 1_000_000)
    first = fingerprint(a)
    assert fingerprint(str(b)) == first == fingerprint(a)
    times = a.stat().st_atime_ns, a.stat().st_mtime_ns
    a.write_bytes(b"two" * 1_000_000)
    os.utime(a, ns=times)  # as of files of an image or a package, which all have one time
    assert fingerprint(a) != first
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none")


FUNCTIONS = """
import math, sys
from math import exp
from pathlib import Path
from edgeroute.stores.cache import fingerprint
LIMIT, BOTH = 0.5, (1, "a")
def shared(x): return x + LIMIT
def f(x, y=2, *, z="z"):
    def inner(v): return shared(v) if v in {"a", "b", "c"} else math.sin(exp(v))
    return [inner(x) for _ in BOTH if Path] or f(y)
def outer(n):
    def g(x): return x + n
    return g
class Model: pass
model = Model()
def uses(x): return model(x)
print(fingerprint(f), fingerprint(outer(3)), sep="|", end="|")
print(fingerprint(outer(model)), fingerprint(uses), fingerprint(model), fingerprint(len), sep="|")
"""


def test_the_fingerprint_of_a_function_is_the_same_in_every_process():
    """It is, if the function depends on its code and constants; if on an object, every process has its own."""
    one, two = (run(FUNCTIONS, env={**os.environ, "PYTHONHASHSEED": seed}).split("|") for seed in ("1", "2"))
    assert one[:2] == two[:2]
    assert not {*one[2:]} & {*two[2:]}


def test_functions_that_do_something_else_have_another_fingerprint():
    """Code, constants, those of classes and modules too, attributes, defaults, globals, closures and what is called all count."""
    codes = [
        "def f(x): return x + 1", "def f(x): return x + 1.0", "def f(x): return x + True", "def f(x): return x - 1",
        "def f(x): return x.a", "def f(x): return x.b", "def f(x, y=1): return x + 1", "def f(x, y=2): return x + 1",
        "def f(x, *, y=2): return x + 1", "def f(x, *, y=3): return x + 1", "def f(x, *, z=2): return x + 1", "def g(x): return x + 1\nf = g",
        "n = 1\ndef f(x): return x + n", "n = 2\ndef f(x): return x + n", "n = (2,)\ndef f(x): return x + n",
        "def h(x): return 1\ndef f(x): return h(x)", "def h(x): return 2\ndef f(x): return h(x)",
        "def f(x):\n  def h(): return 1\n  return h()", "def f(x):\n  def h(): return 2\n  return h()",
        "def f(x): return x + (1, 2)", "def f(x): return x + (1, 3)", "def f(x): return x in {'a', 'b'}", "def f(x): return x in {'a', 'c'}",
        "def o(n):\n  def f(x): return n\n  return f\nf = o(1)", "def o(n):\n  def f(x): return n\n  return f\nf = o(2)",
        "class C: k = 1\ndef f(x): return x + C.k", "class C: k = 2\ndef f(x): return x + C.k",
        "class B: k = 3\nclass C(B): pass\ndef f(x): return x + C.k", "import math\ndef f(x): return x + math.pi",
        "import types\nm = types.ModuleType('m')\nm.k = 1\ndef f(x): return x + m.k",
        "import types\nm = types.ModuleType('m')\nm.k = 2\ndef f(x): return x + m.k",
    ]  # fmt: skip
    found = []
    for code in codes:
        space = {"__name__": "some"}
        exec(code, space)
        found.append(fingerprint(space["f"]))
        assert fingerprint(space["f"]) == found[-1]
    assert len({*found}) == len(codes)


def test_a_function_that_waits_for_a_name_has_a_fingerprint_of_its_own():
    """A closure over a name without a value yet is no error."""

    def early():
        return late

    assert fingerprint(early) != fingerprint(early)
    late = 1
    assert fingerprint(early) == fingerprint(early)


# --- time


def test_an_entry_passes_through_its_ages(made, clock):
    """Fresh, to be renewed, only if the cloud is away, gone; `get` gives it only while it is fresh."""
    cache = made(ttl_s=10, stale_while_revalidate_s=5, stale_if_offline_s=20)
    cache.put(b"k", entry(at=clock.at))
    seen = []
    for after in (0, 9.999, 10, 14.999, 15, 29.999, 30):
        clock.at = 1_800_000_000.0 + after
        got, state = cache.lookup(b"k")
        assert (got is None) == (state is None)
        assert (cache.get(b"k") is not None) == (state == "fresh")
        seen.append(state)
    assert seen == ["fresh", "fresh", "revalidate", "revalidate", "stale", "stale", None]
    assert cache.stats().bytes == 0, "what is past all its times is not kept"


@pytest.mark.parametrize("disk", [False, True])
def test_after_the_clock_was_set_back_an_entry_is_fresh_for_its_time_at_most(made, clock, tmp_path, disk):
    """An entry from the future counts from when it is first seen, also in the processes that find it on disk later."""
    file = tmp_path / "c.db" if disk else None
    cache = made(ttl_s=10, stale_if_offline_s=0, disk=file)
    cache.put(b"k", entry(at=clock.at + 500))
    assert cache.get(b"k").at == clock.at, "nor does it come from the future when it is put"
    clock.at -= 1000
    cache.close()
    if disk:
        cache = made(ttl_s=10, stale_if_offline_s=0, disk=file)
    assert cache.get(b"k").at == clock.at
    cache.close()
    clock.at += 9
    others = [made(ttl_s=10, stale_if_offline_s=0, disk=file)] if disk else []
    assert all(c.get(b"k") is not None for c in (cache, *others))
    clock.at += 1
    others += [made(ttl_s=10, stale_if_offline_s=0, disk=file)] if disk else []
    assert all(c.lookup(b"k") == (None, None) for c in (cache, *others))


def test_a_refusal_is_remembered_for_its_time(made, clock):
    """The same input is not asked again for a while; a clock set back forgets it; there is a limit to how many."""
    cache = made(negative_ttl_s=60)
    assert cache.refused(b"k") is None
    cache.refuse(b"k", "too large", 413)
    assert cache.refused(b"k") == ("too large", 413)
    clock.at += 59.9
    assert cache.refused(b"k") == ("too large", 413)
    clock.at += 0.1
    assert cache.refused(b"k") is None
    clock.at -= 1000
    assert cache.refused(b"k") is None
    for i in range(10_000):
        cache.refuse(key(i), "no", 400)
    assert cache.refused(key(9_999)) == ("no", 400)
    assert cache.refused(key(0)) is None


# --- memory


def test_nobody_changes_what_is_kept(made):
    """Neither who put it nor who was given it: arrays are read-only copies, the rest is each taker's own."""
    cache = made()
    batch, value = np.zeros((1000, 10)), {"labels": ["cat"]}
    cache.put(b"a", entry(value, outputs=batch[0]))
    cache.put(b"b", entry("cat", outputs=batch[0]))
    batch[0], value["labels"][0] = 1, "dog"
    given = cache.get(b"a")
    given.value["labels"].append("dog")
    given.outputs[:] = 2  # this one is its own
    assert cache.get(b"a").value == {"labels": ["cat"]}
    assert not cache.get(b"a").outputs.any()
    shared = cache.get(b"b")
    assert shared is cache.get(b"b")
    assert not shared.outputs.any()
    with pytest.raises(ValueError, match="read-only"):
        shared.outputs[0] = 1
    assert shared.outputs.base is None, "a row does not keep its batch alive"


def test_a_value_that_is_its_outputs_is_kept_once(made):
    """Where the value is the output array itself, it counts once and stays one object."""
    cache, row = made(), np.zeros(10_000)
    cache.put(b"k", entry(row, outputs=row))
    got = cache.get(b"k")
    assert got.value is got.outputs
    assert cache.stats().bytes < 1.5 * row.nbytes


def test_what_cannot_be_copied_is_not_kept(made):
    """A value with a lock in it costs nothing and raises nothing."""
    cache = made()
    cache.put(b"k", entry([threading.Lock()]))
    assert cache.get(b"k") is None
    assert cache.stats()[:5] == (0, 0, 1, 0, 0)


def test_the_data_classes_of_never_are_not_kept(made, tmp_path):
    """Neither in memory nor on disk."""
    cache = made(never=frozenset({"health"}), disk=tmp_path / "c.db")
    cache.put(b"k", entry(), "health")
    cache.put(b"l", entry(), "weather")
    cache.put(b"m", entry())
    assert [cache.get(k) is not None for k in (b"k", b"l", b"m")] == [False, True, True]


@pytest.mark.parametrize("disk", [False, True])
def test_an_entry_too_large_for_the_memory_replaces_and_removes(made, tmp_path, disk):
    """It is not kept there, and what was there before it is not given in its place; a disk, which has its own limit, has it."""
    cache, large = made(max_bytes=2000, disk=tmp_path / "c.db" if disk else None), entry("x" * 3000)
    cache.put(b"k", entry("small"))
    cache.put(b"k", large)
    cache.flush()
    assert cache.get(b"k") == (large if disk else None)
    assert cache.stats().bytes == 0


def test_the_statistics_count_what_happened(made, clock, tmp_path):
    """Hits, disk hits, misses, stale ones, what was stored and what made room."""
    size = private_copy(entry()).bytes
    cache = made(max_bytes=2 * size, ttl_s=10, disk=tmp_path / "c.db")
    for i in range(3):
        cache.put(key(i), entry())
    cache.close()
    cache.get(key(2))
    cache.get(key(0))  # from the disk, in place of 1
    cache.get(key(9))
    clock.at += 10
    cache.get(key(2))
    cache.lookup(key(2))
    assert cache.stats() == (1, 1, 2, 1, 3, 2, 2 * size)


@settings(max_examples=draws(60), deadline=None)
class MemoryMachine(RuleBasedStateMachine):
    """The cache in memory against an ordered dict."""

    KEYS = st.integers(0, 5)

    @initialize(room=st.integers(0, 6000))
    def begin(self, room):
        self.clock, self.room = Clock(), room
        self.cache = Cache(max_bytes=room, ttl_s=10, stale_while_revalidate_s=3, stale_if_offline_s=6, clock=self.clock)
        self.model, self.bytes, self.count = OrderedDict(), 0, 0

    @rule(k=KEYS, size=st.integers(0, 3000), age=st.integers(-5, 25))
    def put(self, k, size, age):
        self.count += 1
        new = entry((self.count, "x" * size), self.clock.at - age)
        self.cache.put(key(k), new)
        self.model.pop(k, None)
        kept = private_copy(new)
        if kept.bytes <= self.room:
            self.model[k] = [new.value, min(new.at, self.clock.at), kept.bytes]
            while self.used() > self.room:
                self.model.popitem(last=False)

    def used(self):
        return sum(size for *_, size in self.model.values())

    def expected(self, k):
        if k not in self.model:
            return None, None
        self.model.move_to_end(k)
        found = self.model[k]
        found[1] = min(found[1], self.clock.at)
        age = self.clock.at - found[1]
        state = "fresh" if age < 10 else "revalidate" if age < 13 else "stale" if age < 16 else None
        if state is None:
            del self.model[k]
        return (found[0] if state else None), state

    @rule(k=KEYS)
    def get(self, k):
        value, state = self.expected(k)
        got = self.cache.get(key(k))
        assert (got and got.value) == (value if state == "fresh" else None)

    @rule(k=KEYS)
    def lookup(self, k):
        got, state = self.cache.lookup(key(k))
        assert (got and got.value, state) == self.expected(k)

    @rule(seconds=st.integers(-20, 20))
    def time_passes(self, seconds):
        self.clock.at += seconds

    @invariant()
    def the_memory_is_bounded(self):
        if hasattr(self, "cache"):
            assert self.cache.stats().bytes == self.used() <= self.room


TestMemory = MemoryMachine.TestCase


# --- disk


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        ("cat", None),
        (None, np.arange(10, dtype=np.float32)),
        (7, np.zeros((2, 0, 3), bool)),
        (0.1, {"a": np.arange(3), "b": np.ones((2, 2), np.complex64)}),
        ([1, 1.0, True, None, "\ud800ß", {"k": []}], np.array(5.0)),
        ("cat", ("cat", 0.9)),
        ("cat", {"tokens": ["a"], "n": 1}),
        ("cat", {}),
        ({}, [1, [2]]),
    ],
)
def test_what_is_on_disk_comes_back_as_it_was(made, tmp_path, value, outputs):
    """Value, arrays with their dtype and shape, tuples as tuples; a missing or NaN confidence too."""
    for confidence in (0.25, None, np.float32(0.5), float("nan")):
        stored = entry(value, outputs=outputs, confidence=confidence)
        first = made(disk=tmp_path / "c.db")
        first.put(b"k", stored)
        first.close()
        second = made(disk=tmp_path / "c.db")
        got, state = second.lookup(b"k")
        assert state == "fresh"
        assert canon([*got[:1], *got[2:]]) == canon([*stored[:1], *stored[2:]])
        assert repr(got.confidence) == repr(None if confidence is None else float(confidence))
        assert second.get(b"k") is not None
        assert second.stats()[:2] == (1, 1), "the second time it comes from memory"


class Opaque:
    """A value that only Python can hold."""


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        ({1: 2}, None),
        (Opaque(), None),
        ("cat", np.array([None])),
        ("cat", np.zeros(2, [("x", "u1")])),
        ("cat", Opaque()),
    ],
)
def test_what_the_disk_cannot_hold_stays_in_memory(made, tmp_path, value, outputs):
    """It is given from memory, and the answer that was on disk before it is gone."""
    first = made(disk=tmp_path / "c.db")
    first.put(b"k", entry("before"))
    first.close()
    first.put(b"k", entry(value, outputs=outputs))
    first.close()
    assert first.get(b"k") is not None
    assert made(disk=tmp_path / "c.db").get(b"k") is None


WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from edgeroute.stores.cache import Cache, Entry
from edgeroute.system.wall_clock import now
cache = Cache(disk=Path(sys.argv[1]))
first, count = int(sys.argv[2]), int(sys.argv[3])
for i in range(first, first + count):
    k = i.to_bytes(32, "big")
    cache.put(k, Entry(f"value {i}" * (1 + i % 50), i / 7, np.full(1 + i % 300, i), "cloud", "cloud", "because", now()))
    if not i % 10:
        if sys.argv[4:]:
            cache.close()
        print(i, flush=True)
cache.close()
"""


def right(cache, i):
    """Whether the entry of the writer's number is there, and if so, as it was written."""
    got = cache.get(key(i))
    if got is not None:
        assert (got.value, got.confidence) == (f"value {i}" * (1 + i % 50), i / 7)
        np.testing.assert_array_equal(got.outputs, np.full(1 + i % 300, i))
    return got is not None


def test_two_processes_share_a_disk(tmp_path):
    """While both write at the same time, each sees what the other has stored; a write that waits too long is dropped whole."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "c.db"), "0", "400"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        mine = Cache(disk=tmp_path / "c.db", max_bytes=0)
        for i in range(1000, 1400):
            mine.put(key(i), entry(at=time.time()))
        mine.close()
        other.stdout.read()
        assert other.wait(LONG) == 0
    again = Cache(disk=tmp_path / "c.db", max_bytes=0)
    again.put(key(1400), entry(at=time.time()))
    again.close()
    theirs = sum(right(again, i) for i in range(400))
    ours = [got.value for i in range(1000, 1401) if (got := again.get(key(i))) is not None]
    assert theirs + len(ours) > 1
    assert {*ours} == {"cat"}
    assert again.stats().disk_hits == theirs + len(ours)
    again.close()


def test_a_renewal_by_another_process_is_seen(made, clock, tmp_path):
    """An entry past its time in this memory gives way to a newer one on disk."""
    mine, other = (made(disk=tmp_path / "c.db", ttl_s=10) for _ in range(2))
    mine.put(b"k", entry("old", clock.at))
    mine.close()
    clock.at += 10
    other.put(b"k", entry("new", clock.at))
    other.close()
    assert mine.get(b"k").value == "new"


def test_what_is_past_all_its_times_leaves_the_disk(made, clock, tmp_path):
    """The next write deletes it: data does not stay on a device for longer than it is of use."""
    cache = made(disk=tmp_path / "c.db", ttl_s=10, stale_while_revalidate_s=7, stale_if_offline_s=5)
    left = []
    for _ in range(3):
        cache.put(str(clock.at).encode(), entry("private", clock.at))
        cache.close()
        with sqlite3.connect(tmp_path / "c.db") as connection:
            left += connection.execute("SELECT count(*) FROM answers").fetchone()
        connection.close()
        clock.at += 17 if len(left) == 1 else 0.5
    assert left == [1, 2, 2]


def test_a_put_during_a_look_at_the_disk_stays(made, tmp_path, monkeypatch):
    """What the look finds is given, and the newer entry is not replaced by it in memory."""
    cache = made(disk=tmp_path / "c.db")
    cache.put(b"k", entry("old"))
    cache.close()
    cache = made(disk=tmp_path / "c.db")
    real = Database.read

    def slow(*statement):
        found = real(*statement)
        cache.put(b"k", entry("new"))
        return found

    monkeypatch.setattr(Database, "read", slow)
    assert [cache.get(b"k").value for _ in range(2)] == ["old", "new"]


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_wrong(tmp_path):
    """After kill -9 at any moment what is there is as it was written, and the file serves on."""
    file = tmp_path / "c.db"
    for i in range(ROUNDS):
        first = i * 100_000
        command = [sys.executable, "-c", WRITER, str(file), str(first), "100000", *["flush"] * (i % 2)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            last = [int(writer.stdout.readline()) for _ in range(3 + 17 * i)][-1]
            writer.send_signal(signal.SIGKILL)
            writer.wait(LONG)
        cache = Cache(disk=file)
        found = [right(cache, n) for n in range(first, last + 1000)]
        if i % 2:
            assert all(found[: last - first + 1]), "what had been written is there"
        cache.put(key(1), entry("mine", at=time.time()))
        cache.close()
        assert cache.get(key(1)).value == "mine"
        cache.close()
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def fill(cache, count=200, at=1_800_000_000.0):
    for i in range(count):
        cache.put(key(i), entry(f"value {i}", at, np.full(100, i)))
    cache.close()


def test_a_corrupt_file_is_set_aside(made, tmp_path, caplog):
    """It costs its entries, no error; the next ones are stored in a new file."""
    file = tmp_path / "c.db"
    fill(made(disk=file))
    file.write_bytes(b"no database at all" * 1000)
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)
    cache = made(disk=file)
    assert cache.get(key(1)) is None
    fill(cache)
    assert made(disk=file).get(key(1)).value == "value 1"
    assert [*tmp_path.glob("*corrupt-1")]
    assert len([r for r in caplog.records if "goes on in memory" in r.message]) == 1


def test_damage_that_sqlite_does_not_see_as_such(made, tmp_path):
    """Columns of another type, and a schema that is no text: the entries are lost, and nothing is raised."""
    file = tmp_path / "c.db"
    fill(made(disk=file), 3)
    with sqlite3.connect(file) as connection:
        for i, damage in enumerate(["entry = 5", "entry = 'text'", "entry = x'ff00', crc = 'none'"]):
            connection.execute(f"UPDATE answers SET {damage} WHERE key = ?", (key(i),))
    connection.close()
    cache = made(disk=file)
    assert [cache.get(key(i)) for i in range(3)] == [None] * 3
    fill(cache, 3)
    assert made(disk=file).get(key(0)).value == "value 0"
    cache.close()
    file.write_bytes(file.read_bytes().replace(b"answers_atanswers", b"answ\xe5rs_atanswers"))
    cache = made(disk=file)
    assert cache.get(key(0)) is None
    fill(cache, 3)
    assert cache.get(key(0)).value == "value 0"


@settings(max_examples=FLIPS, deadline=None)
@given(st.data())
def test_bits_that_flip_on_the_disk_change_no_answer(tmp_path_factory, data):
    """Whatever byte of the file is another: an entry is given as it was written, or not at all."""
    file = tmp_path_factory.mktemp("flip") / "c.db"
    clock = Clock()
    cache = Cache(disk=file, clock=clock)
    fill(cache, 60)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    logging.disable()
    cache = Cache(disk=file, clock=clock)
    try:
        for i in range(60):
            got = cache.get(key(i))
            assert got is None or (got.value, got.reason, [*got.outputs]) == (f"value {i}", "because", [i] * 100)
        cache.put(key(99), entry())
        cache.flush()
        assert cache.get(key(99)).value == "cat"
    finally:
        cache.close()
        logging.disable(logging.NOTSET)


def test_a_full_disk_costs_no_answer(made, tmp_path, caplog):
    """Memory goes on, it is said once, and what is on the disk is still read."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        cache = made(disk=place / "c.db")
        rng = np.random.default_rng(1)
        for i in range(60):
            cache.put(key(i), entry(i, outputs=rng.random(4000)))
            cache.close()
        assert all(cache.get(key(i)).value == i for i in range(60))
        assert len([r for r in caplog.records if "cannot write to its disk" in r.message]) == 1
        again = made(disk=place / "c.db")
        there = [i for i in range(60) if (got := again.get(key(i))) is not None and got.value == i]
        assert 5 < len(there) < 40
        again.close()
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_fails_is_left_alone_for_a_while(made, tmp_path, caplog, monkeypatch):
    """After two failures on end it is tried only now and then, it is said once, and memory goes on."""
    steady = Clock(0.0)
    monkeypatch.setattr(disk_module, "monotonic", steady)
    file = tmp_path / "c.db"
    file.mkdir()
    cache = made(disk=file)
    tried = []
    real, read = Database.transaction, Database.read
    monkeypatch.setattr(Database, "transaction", lambda *a: tried.append(a[0].path) or real(*a))
    monkeypatch.setattr(Database, "read", lambda *a: tried.append(a[0].path) or read(*a))
    for _ in range(10):
        assert cache.get(b"none") is None
        cache.put(b"k", entry())
        cache.flush()
    assert cache.get(b"k") is not None
    assert len(tried) == 2 + 2 * 3, "two reads, and two writes of three tries each"
    file.rmdir()
    steady.at += disk_module.REST_S
    cache.put(b"k", entry())
    cache.close()
    assert cache.get(b"none") is None
    assert len(tried) == 8 + 2
    assert made(disk=file).get(b"k") is not None
    assert len([r for r in caplog.records if "goes on in memory" in r.message]) == 2, "once for reading, once for writing"


def test_what_waits_for_a_slow_disk_is_bounded(made, tmp_path, monkeypatch):
    """While the file is held up, a put neither waits nor piles up; the latest beyond the limit stay in memory alone."""
    begun, gate, real = threading.Event(), threading.Event(), Database.transaction

    def slow(database):
        begun.set()
        gate.wait(LONG)
        return real(database)

    monkeypatch.setattr(Database, "transaction", slow)
    cache = made(disk=tmp_path / "c.db", max_bytes=64 << 20)
    cache.put(b"first", entry())
    assert begun.wait(LONG)
    for i in range(100):
        cache.put(key(i), entry(outputs=np.zeros(100_000, np.uint8)))
    gate.set()
    cache.close()
    assert all(cache.get(key(i)) is not None for i in range(100))
    again = made(disk=tmp_path / "c.db", max_bytes=0)
    waited = [again.get(key(i)) is not None for i in range(100)]
    assert waited == [i < 42 for i in range(100)]
    assert sum(waited) * 100_000 <= disk_module.WAITING_BYTES + 110_000


def test_an_entry_larger_than_the_disk_may_be_is_not_written(made, tmp_path):
    """It stays in memory, and pushes nothing out."""
    cache = made(disk=tmp_path / "c.db", disk_max_bytes=64 << 10)
    cache.put(b"a", entry())
    cache.put(b"b", entry(outputs=np.zeros(64 << 10, np.uint8)))
    cache.close()
    assert cache.get(b"b") is not None
    again = made(disk=tmp_path / "c.db", disk_max_bytes=64 << 10)
    assert [again.get(k) is not None for k in (b"a", b"b")] == [True, False]
    tiny = made(disk=tmp_path / "tiny.db", disk_max_bytes=1 << 15)
    tiny.put(b"c", entry(outputs=np.zeros(12 << 10, np.uint8)))
    tiny.close()
    assert (tmp_path / "tiny.db").stat().st_size <= 1 << 15


@settings(max_examples=draws(25), stateful_step_count=40, deadline=None)
class DiskMachine(RuleBasedStateMachine):
    """Two caches on one file: what is given was put, is not too old, and the bytes are bounded."""

    KEYS, WHICH = st.integers(0, 40), st.integers(0, 1)
    DISK = 160 << 10

    @initialize(folder=st.builds(tempfile.TemporaryDirectory), room=st.sampled_from([0, 3000, 1 << 20]))
    def begin(self, folder, room):
        self.folder, self.room, self.clock = folder, room, Clock()
        self.caches = [self.open(), self.open()]
        self.put_at, self.count = {}, 0

    def open(self):
        file = Path(self.folder.name) / "c.db"
        return Cache(max_bytes=self.room, ttl_s=10, stale_if_offline_s=6, disk=file, disk_max_bytes=self.DISK, clock=self.clock)

    @rule(which=WHICH, keys=st.lists(KEYS, max_size=8), size=st.integers(0, 30_000))
    def put(self, which, keys, size):
        for k in keys:
            self.count += 1
            self.put_at[self.count] = k, self.clock.at
            self.caches[which].put(key(k), entry(self.count, self.clock.at, np.full(size, self.count, np.uint8)))
        self.caches[which].flush()  # here and now, so that a failure can be played again

    @rule(which=WHICH, k=KEYS)
    def look(self, which, k):
        got, state = self.caches[which].lookup(key(k))
        self.caches[which].flush()
        if got is None:
            return
        of, at = self.put_at[got.value]
        assert of == k
        assert (got.outputs == got.value % 256).all()
        assert got.at <= min(at, self.clock.at), "the given age is never too small"
        assert state == ("fresh" if self.clock.at - got.at < 10 else "stale")
        assert self.clock.at - got.at < 16
        fresh = self.caches[which].get(key(k))
        assert (fresh is not None) == (state == "fresh")

    @rule(which=WHICH)
    def reopen(self, which):
        self.caches[which].close()
        self.caches[which] = self.open()

    @rule(seconds=st.sampled_from([1, 4, 9, -5, -30]))
    def time_passes(self, seconds):
        self.clock.at += seconds

    @precondition(lambda self: hasattr(self, "caches"))
    @invariant()
    def everything_is_bounded(self):
        assert all(cache.stats().bytes <= self.room for cache in self.caches)

    def teardown(self):
        if not hasattr(self, "caches"):
            return
        for cache in self.caches:
            cache.close()
        file = Path(self.folder.name) / "c.db"
        assert not file.exists() or file.stat().st_size <= self.DISK
        # what was put last before a moment with room for it is found by a third
        self.caches[0].put(key(99), entry("last", self.clock.at))
        self.caches[0].close()
        third = self.open()
        assert third.get(key(99)).value == "last"
        third.close()
        self.folder.cleanup()


TestDisk = DiskMachine.TestCase


FORK = """
import gc, os, signal, sys, threading
from pathlib import Path
import numpy as np
from edgeroute.stores.cache import Cache, Entry, Flights, Semantic
from edgeroute.stores import sqlite_file_and_key_values as sqlite
from edgeroute.system.wall_clock import now
def entry(value): return Entry(value, 1.0, None, "cloud", "cloud", "because", now())
sqlite.BUSY_S = 0.1  # how long a fork waits for the lock of a file
semantic = Semantic(lambda text: np.ones(3))
cache, flights = Cache(disk=Path(sys.argv[1]), semantic=semantic), Flights()
cache.put(b"parent", entry("parent")); semantic.add(b"", "text", entry("parent"))
cache.close()
leader, follower = flights.join(b"k"), flights.join(b"k")
start = threading.Thread.start
def none(_): raise RuntimeError("can't start new thread")
threading.Thread.start = none  # so that it waits to be written
cache.put(b"waits", entry("waits"))
threading.Thread.start = start
things = [t for t in gc.get_objects() if type(t).__module__.startswith("edgeroute.stores") and hasattr(t, "__dict__")]
locks = [v for t in things for v in vars(t).values() if isinstance(v, type(threading.RLock()))]
assert len(locks) >= 6, len(locks)
held, release = threading.Event(), threading.Event()
def hold():  # another thread has every lock at the moment of the fork, and something waits to be written
    for lock in locks: lock.acquire()
    held.set(); release.wait()
    for lock in reversed(locks): lock.release()
thread = threading.Thread(target=hold, daemon=True); thread.start(); held.wait()
pid = os.fork()
if not pid:
    signal.alarm(120)  # it ends, whatever lock it waits for
    assert cache.get(b"parent").value == "parent"
    cache.put(b"child", entry("child"))
    cache.close()
    assert cache.get(b"waits") is None, "the parent writes it"
    assert semantic.find(b"", "text") is None
    semantic.add(b"", "text", entry("child"))
    assert semantic.find(b"", "text")[0].value == "child"
    assert flights.join(b"k").leads, "whoever leads in the parent does not answer here"
    leader.end(lambda: "nobody"); leader.end()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
release.set(); thread.join()
assert not flights.join(b"k").leads
leader.end(lambda: "answer")
assert follower.wait(60) == "answer"
assert cache.get(b"child").value == "child"
cache.put(b"parent", entry("again")); cache.close()
again = Cache(disk=Path(sys.argv[1]))
assert [again.get(k).value for k in (b"parent", b"child", b"waits")] == ["again", "child", "waits"]
again.close()
print("fine")
"""


def test_a_forked_child_goes_on(tmp_path):
    """Whatever locks another thread held: the child has the disk, a memory and flights of its own; the parent loses nothing."""
    assert run(FORK, tmp_path / "c.db") == "fine\n"


# --- one asks, the others wait


def test_two_hundred_threads_ask_once():
    """One leads, all others are given its result, and nothing is left."""
    flights, gate, led, got = Flights(), threading.Barrier(200), [], []

    def ask():
        flight = flights.join(b"k")
        gate.wait(LONG)  # all have joined
        if flight.leads:
            led.append(1)
            flight.end(lambda: "answer")
            flight.end()
        else:
            got.append(flight.wait(LONG))

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert (led, got) == ([1], ["answer"] * 199)
    assert len(flights) == 0


def test_a_flight_that_failed_sends_everyone_on_alone():
    """The followers get None, a follower ends nothing, and the next one leads anew."""
    flights = Flights()
    leader, follower, other = flights.join(b"k"), flights.join(b"k"), flights.join(b"other")
    assert (leader.leads, follower.leads, other.leads) == (True, False, True)
    follower.end(lambda: "not mine")
    follower.end()
    assert follower.wait(0) is None, "the time is up"
    leader.end()
    assert follower.wait(float("inf")) is None
    leader.end(lambda: "too late")
    assert follower.wait(0) is None
    assert flights.join(b"k").leads


@pytest.mark.parametrize("cycle", [False, True])
def test_an_abandoned_flight_fails(cycle):
    """A leader that was forgotten without a word, even in a cycle, holds up nobody."""
    flights = Flights()
    leader = flights.join(b"k")
    follower = flights.join(b"k")
    box = [leader]
    if cycle:
        box.append(box)
    del leader, box
    gc.collect()
    assert follower.wait(LONG) is None
    assert len(flights) == 0


def test_a_leader_collected_in_the_middle_of_a_join(monkeypatch):
    """The one that was just joining does not wait for it."""
    flights = Flights()
    box = [flights.join(b"k")]

    class Sudden(concurrent.futures.Future):
        def __init__(self):
            super().__init__()
            box.clear()

    monkeypatch.setattr(concurrent.futures, "Future", Sudden)
    follower = flights.join(b"k")
    got = []
    thread = threading.Thread(target=lambda: got.append(follower.wait(float("inf"))), daemon=True)
    thread.start()
    thread.join(LONG)
    assert got == [None]
    assert len(flights) == 0


def test_a_leader_that_is_interrupted_leaves_no_flight_open():
    """At each opcode: equal requests would wait for it until their deadlines."""
    flights, led, broken = Flights(), [], 0
    for at in [*range(1, 90)] * 3:  # several times: Python 3.13 traces no opcodes of some calls
        if interrupted(lambda: led.append(flights.join(b"k")), at):
            led.pop().end()
        else:
            broken += 1
        assert len(flights) == len(led) == 0, at
    assert broken > 50


def test_a_cancelled_follower_cancels_nobody_else():
    """Threads and tasks wait for the same flight; some tasks are cancelled; the others get the answer."""
    flights = Flights()
    leader = flights.join(b"k")
    thread_got = []
    in_thread = flights.join(b"k")
    thread = threading.Thread(target=lambda: thread_got.append(in_thread.wait(float("inf"))))
    thread.start()

    async def ask():
        flight = flights.join(b"k")
        assert not flight.leads
        return await flight.wait_async(LONG)

    async def everyone():
        tasks = [asyncio.create_task(ask()) for _ in range(10)]
        await asyncio.sleep(0)  # each has begun to wait
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks[::2], return_exceptions=True)
        assert all(isinstance(e, asyncio.CancelledError) for e in ended)
        await asyncio.to_thread(leader.end, lambda: "answer")
        return await asyncio.gather(*tasks[1::2])

    assert asyncio.run(everyone()) == ["answer"] * 5
    thread.join(LONG)
    assert thread_got == ["answer"]
    assert len(flights) == 0


def test_a_follower_whose_loop_has_ended_is_no_trouble(caplog):
    """One that ran out of time, on a loop that is closed when the answer comes, disturbs neither leader nor log."""
    flights = Flights()
    leader = flights.join(b"k")
    follower = flights.join(b"k")
    assert asyncio.run(follower.wait_async(0)) is None
    leader.end(lambda: "answer")
    assert not caplog.records
    assert follower.wait(0) == "answer"
    assert asyncio.run(follower.wait_async(LONG)) == "answer"


# --- by meaning


def embed(text):
    """A vector that the test writes as text."""
    return np.array([float(part) for part in text.split()])


def test_a_text_that_means_the_same_is_found(clock):
    """The most similar of the same prefix, at or above the threshold, with the similarity."""
    semantic = Semantic(embed, threshold=0.9, clock=clock)
    assert semantic.find(b"p", "1 0") is None
    semantic.add(b"p", "1 0", entry("east"))
    semantic.add(b"p", "0 3", entry("north"))
    semantic.add(b"q", "1 1", entry("other"))
    got, similarity = semantic.find(b"p", "2 0.2")
    assert got.value == "east"
    assert similarity == pytest.approx(2 / np.hypot(2, 0.2))
    assert semantic.find(b"p", "1 1") is None
    semantic.add(b"q", "1 0.1", entry("other"))
    assert semantic.find(b"p", "1 0.1")[0].value == "east", "a better one of another prefix does not stand before it"
    assert semantic.find(b"q", "5 5") == (entry("other"), pytest.approx(1))
    assert semantic.find(b"r", "1 0") is None
    assert semantic.find(b"p", b"1 0") is None
    assert semantic.find(b"p", "1e308 1e307")[0].value == "east"


def test_a_found_answer_is_fresh(clock):
    """It has the cache's time to live; one from the future counts from when it is first seen."""
    semantic = Semantic(embed)
    Cache(semantic=semantic, ttl_s=10, clock=clock)
    semantic.add(b"", "1 0", entry(at=clock.at + 100))
    clock.at += 9
    assert semantic.find(b"", "1 0") is not None
    clock.at += 1
    assert semantic.find(b"", "1 0") is None
    semantic.add(b"", "1 0", entry("new", at=clock.at))
    clock.at -= 1000
    assert semantic.find(b"", "1 0")[0].value == "new"
    clock.at += 10
    assert semantic.find(b"", "1 0") is None


class Prefix(bytes):
    """One with a part that shows whether it is still held."""


class Part:
    """What can be referred to weakly, unlike bytes."""


def test_the_oldest_texts_make_room(clock):
    """There are never more than allowed, and nothing of the others is held."""
    semantic = Semantic(lambda text: np.eye(8)[int(text)], max_entries=3, clock=clock)
    held = weakref.WeakSet()
    for i in range(8):
        prefix = Prefix()
        prefix.part = Part()
        held.add(prefix.part)
        semantic.add(prefix, str(i), entry(i))
    del prefix
    gc.collect()
    assert len(held) == 3
    assert [i for i in range(8) if semantic.find(b"", str(i))] == [5, 6, 7]
    assert semantic.find(b"", "6")[0].value == 6


@pytest.mark.parametrize("odd", ["0 0", "nan 1", "inf 1", "-inf 1"])
def test_vectors_without_a_direction_never_match(clock, odd):
    """Zero, NaN and infinity are neither found nor added."""
    semantic = Semantic(embed, threshold=-1, clock=clock)
    semantic.add(b"", odd, entry())
    assert semantic.find(b"", "1 0") is None
    semantic.add(b"", "1 0", entry())
    assert semantic.find(b"", odd) is None


def test_an_embed_that_raises_costs_a_line(clock, caplog):
    """Neither `find` nor `add` raises for it, nor for what is no vector."""
    semantic = Semantic(embed, clock=clock)
    assert semantic.find(b"", "not a number") is None
    semantic.add(b"", "nor this", entry())
    assert Semantic(lambda _: object()).find(b"", "x") is None
    assert ["embed raised" in r.message for r in caplog.records] == [True] * 3


def test_vectors_of_another_size_turn_it_off(clock):
    """It is said once, and from then on nothing is found and nothing fails."""
    semantic = Semantic(embed, clock=clock)
    semantic.add(b"", "1 0", entry())
    with pytest.raises(BadInput, match=r"\(3,\) after \[2\]"):
        semantic.find(b"", "1 0 0")
    assert semantic.find(b"", "1 0 0 0") is None
    assert semantic.find(b"", "1 0") is None
    semantic.add(b"", "1 0", entry())
    with pytest.raises(BadInput):
        Semantic(lambda _: [[1.0]]).find(b"", "x")


def test_a_text_is_embedded_once_to_be_looked_for_and_added(clock):
    """What is added after it was not found does not cost a second embedding."""
    calls = []
    semantic = Semantic(lambda text: calls.append(text) or embed(text), clock=clock)
    assert semantic.find(b"", "1 0") is None
    semantic.add(b"", "1 0", entry())
    assert calls == ["1 0"]


def test_threads_find_nothing_wrong_while_others_add(clock):
    """A match read while its row is being replaced is not given."""
    semantic = Semantic(lambda text: np.eye(16)[int(text) % 16], max_entries=4, clock=clock)
    wrong, stop = [], threading.Event()

    def add():
        for i in itertools.count():
            if stop.is_set():
                return
            semantic.add(b"", str(i % 16), entry(i % 16))

    def find():
        for i in range(3000):
            got = semantic.find(b"", str(i % 16))
            if got is not None and got[0].value != i % 16:
                wrong.append(got)

    adder = threading.Thread(target=add)
    finders = [threading.Thread(target=find) for _ in range(3)]
    for thread in (adder, *finders):
        thread.start()
    for thread in finders:
        thread.join(LONG)
    stop.set()
    adder.join(LONG)
    assert not wrong


def test_an_interrupt_at_any_line_leaves_the_table_whole():
    """Ctrl-C within a full cache: later calls evict, and the size is that of the entries."""
    for line in range(1, 60):
        table = Recent(10)
        for n in range(10):
            table.put(n, n)
        lines = iter(range(1, line + 1))

        def interrupt(frame, event, _, lines=lines, line=line):
            if frame.f_code.co_filename != recent.__file__:
                return None
            if event == "line" and next(lines, line) == line:
                sys.settrace(None)
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(interrupt)
        try:
            table.put(5, 5)
            table.put(10, 10)
        except KeyboardInterrupt:
            interrupted = True
        else:
            interrupted = False
        finally:
            sys.settrace(None)
        for n in range(20, 50):
            table.put(n, n)
        assert (len(table), table.size, table.get(49), table.get(5)) == (10, 10, 49, None), line
        if not interrupted:
            assert line > 20
            return
    raise AssertionError("it never ran to its end")


@pytest.mark.parametrize("at", range(1, 12))
def test_a_signal_handler_within_a_change_leaves_the_table_whole(at):
    """It may itself evict: no entry is lost track of."""
    table, seen = Recent(3, lambda value: value), [0]

    def handle(frame, event, _):
        if frame.f_code.co_name != "_change":
            return None
        seen[0] += event == "line"
        if seen[0] == at:
            seen[0] += 1
            sys.settrace(None)
            for n in range(100, 104):
                table.put(n, 1)
        return handle

    for n in range(3):
        table.put(n, 1)
    sys.settrace(handle)
    try:
        table.put("large", 3)
    finally:
        sys.settrace(None)
    for n in range(10):
        table.put(n, 1)
    assert (len(table), table.size) == (3, 3)
    table.pop(9)
    table.put("too large", 4)
    assert (len(table), table.size, "too large" in table) == (2, 2, False)
