"""Kinds of input for tests of ownership: how each is made, read, and written to in place."""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import mmap
import pathlib
import re
import threading
import time
import types
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import sparse


class Kind(NamedTuple):
    """Kind of input that holds a code, an integer from 0 to 127."""

    make: Callable[[int], Any]
    read: Callable[[Any], int]
    write: Callable[[Any, int], object] | None = None
    """None: the kind is immutable."""
    copies: bool = True
    """False: there is no copy."""


@dataclasses.dataclass
class Reading:
    """A dataclass."""

    samples: list


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen dataclass."""

    samples: list


@dataclasses.dataclass(slots=True)
class Slotted:
    """A dataclass with slots."""

    samples: list


class Plain:
    """An object with an attribute."""

    def __init__(self, samples):
        self.samples = samples


class Slots:
    """An object with slots."""

    __slots__ = ("__weakref__", "samples")

    def __init__(self, samples):
        self.samples = samples


class Both(Slots):
    """An object with slots and attributes."""

    def __init__(self, samples):
        super().__init__(None)
        self.other = samples


class Stateful(Plain):
    """An object with a state of its own form."""

    def __getstate__(self):
        return [self.samples]

    def __setstate__(self, state):
        (self.samples,) = state


class Arguments(Plain):
    """An object made with arguments."""

    def __new__(cls, samples):
        """As object's."""
        return super().__new__(cls)

    def __getnewargs__(self):
        return (self.samples,)


class Reduced(Plain):
    """An object that reduces itself."""

    def __reduce__(self):
        return Reduced, (self.samples,)


class Deep(Plain):
    """An object with a deepcopy."""

    def __deepcopy__(self, memo):
        return Deep([*self.samples])


class Tensor:
    """As torch's within a graph: it has a clone, and no deepcopy."""

    __slots__ = ("data", "dtype")

    def __init__(self, data):
        self.data, self.dtype = data, "float32"

    def clone(self):
        """Its own."""
        return Tensor([*self.data])

    def __deepcopy__(self, memo):
        raise RuntimeError("only leaves of a graph support the deepcopy protocol")


class Table(Plain):
    """As a data frame: its own copy shares what the cells refer to."""

    @property
    def dtypes(self):
        """Of its columns."""
        return ["object"]

    def copy(self):
        """A shallow one."""
        return Table(self.samples)

    def __deepcopy__(self, memo):
        return self.copy()


class Batch(list):
    """As a fast.ai list."""

    lengths = None


class Named(dict):
    """A dict with an attribute."""

    meta = None


class Point(tuple):
    """A tuple with a property."""

    __slots__ = ()

    @property
    def x(self):
        """The first."""
        return self[0]


class Pair(NamedTuple):
    """A named tuple."""

    a: list
    b: int


class Size(tuple):
    """As torch.Size."""

    __slots__ = ()

    def __reduce__(self):
        return Size, (tuple(self),)


class Encoding(collections.UserDict):
    """As transformers' BatchEncoding."""

    def __init__(self, data=None, words=None):
        super().__init__(data)
        self.words = words

    def __getstate__(self):
        return {"data": self.data, "words": self.words}

    def __setstate__(self, state):
        self.data, self.words = state["data"], state["words"]


class Lazy(Mapping):
    """A mapping of another class."""

    def __init__(self, data):
        self._data = data

    def __getitem__(self, key):
        return self._data[key]

    def __iter__(self):
        return iter(self._data)

    def __len__(self):
        return len(self._data)


class Signal(np.ndarray):
    """An array with an attribute."""

    rate = None


class Text(str):  # noqa: SLOT000 - it has attributes
    """A text with an attribute."""

    notes = None


class Blob(bytes):
    """Bytes with an attribute."""

    notes = None


class Number(int):
    """A number with an attribute."""

    notes = None


class Ring(collections.deque):
    """A deque with an attribute."""

    notes = None


class Bag(set):
    """A set with an attribute."""

    notes = None


class Buffer(bytearray):
    """A buffer with an attribute."""

    notes = None


class Doubles(array.array):
    """An array of C with an attribute."""

    notes = None


class Struct(ctypes.Structure):
    """A structure of C."""

    _fields_ = (("n", ctypes.c_int * 2),)


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1


def _holder(make, inner) -> Kind:
    """A kind with a list in it, which is written to."""
    return Kind(lambda n: make([n]), lambda x: inner(x)[0], lambda x, n: inner(x).__setitem__(0, n))


def _noted(make) -> Kind:
    """An immutable or simple kind whose subclass has an attribute."""

    def noted(n):
        x = make()
        x.notes = [n]
        return x

    return Kind(noted, lambda x: x.notes[0], lambda x, n: x.notes.__setitem__(0, n))


def _with(x, name, value):
    setattr(x, name, value)
    return x


def _cycle(samples):
    x = [samples]
    x.append(x)
    return x


def _objects(samples):
    x = np.empty(2, object)
    x[0] = samples
    return x


def _fixed(value, read=lambda _: 0) -> Kind:
    return Kind(lambda _: value, read)


def _first(x) -> int:
    return int(np.asarray(x).ravel()[0])


def _array(make) -> Kind:
    def fill(x, n):
        x[...] = n

    return Kind(lambda n: make(np.full((2, 3), n, np.float32)), _first, fill)


def _set_record(x, n):
    x["a"] = n


def _refill(x, n):
    x.clear()
    x.append(n) if hasattr(x, "append") else x.update({n: n}) if hasattr(x, "items") else x.add(n)


def _locked(n):
    return _with(Plain([n]), "lock", threading.Lock())


def _closed_over(n):
    samples = [n]
    return lambda: samples


def _marked(n):
    def function():
        return 0

    return _with(function, "samples", [n])


def _attribute(x) -> int:
    return x.samples[0]


def _write_attribute(x, n):
    x.samples[0] = n


def _mapped(n):
    x = mmap.mmap(-1, 2)
    x[0] = n
    return x


def _jpeg(n):
    file = io.BytesIO()
    Image.new("L", (8, 8), n).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()))


def _matrix(n):
    return sparse.csr_matrix(np.full((1, 1), n, np.float32))


KINDS: dict[str, Kind] = {
    "list": _holder(list, lambda x: x),
    "list of lists": _holder(lambda s: [s], lambda x: x[0]),
    "list in a cycle": _holder(_cycle, lambda x: x[1][1][0]),
    "list, twice the same": _holder(lambda s: [s, s], lambda x: x[1]),
    "list subclass": _holder(lambda s: _with(Batch([1]), "lengths", s), lambda x: x.lengths),
    "tuple": _holder(lambda s: (s, 1), lambda x: x[0]),
    "tuple subclass": _holder(lambda s: Point((s,)), lambda x: x.x),
    "named tuple": _holder(lambda s: Pair(s, 1), lambda x: x.a),
    "size": _holder(lambda s: Size((s,)), lambda x: x[0]),
    "struct_time": _fixed(time.gmtime(0), lambda x: x.tm_year),
    "stat_result": _fixed(pathlib.Path().stat(), lambda x: x.st_mode),
    "dict": _holder(lambda s: {"a": s}, lambda x: x["a"]),
    "dict subclass": _holder(lambda s: _with(Named(a=1), "meta", s), lambda x: x.meta),
    "dict with keys of a class": _holder(lambda s: {Slots(s): 1}, lambda x: next(iter(x)).samples),
    "defaultdict": _holder(lambda s: collections.defaultdict(list, a=s), lambda x: (x["none"], x["a"])[1]),
    "defaultdict of a lambda": _holder(lambda s: collections.defaultdict(lambda: [0], a=s), lambda x: (x["n"], x["a"])[1]),
    "OrderedDict": _holder(lambda s: collections.OrderedDict(a=s), lambda x: (x.move_to_end("a"), x["a"])[1]),
    "Counter": Kind(lambda n: collections.Counter({n: n}), lambda x: x.most_common()[0][0], _refill),
    "ChainMap": _holder(lambda s: collections.ChainMap({}, {"a": s}), lambda x: x.parents["a"]),
    "mapping proxy": _holder(lambda s: types.MappingProxyType({"a": s}), lambda x: x["a"]),
    "mapping of a class": _holder(lambda s: Lazy({"a": s}), lambda x: x["a"]),
    "UserDict": _holder(lambda s: collections.UserDict(a=s), lambda x: x.data["a"]),
    "batch encoding": _holder(lambda s: Encoding({"ids": [1]}, words=s), lambda x: (x["ids"], x.words)[1]),
    "UserList": _holder(collections.UserList, lambda x: x.data),
    "UserString": Kind(lambda n: collections.UserString(chr(n)), lambda x: ord(x.data), lambda x, n: setattr(x, "data", chr(n))),
    "deque": Kind(lambda n: collections.deque([n], maxlen=1), lambda x: (x.maxlen, x[0])[1], _refill),
    "deque subclass": _noted(lambda: Ring([1])),
    "set": Kind(lambda n: {n}, lambda x: next(iter(x)), _refill),
    "set subclass": _noted(lambda: Bag([1])),
    "frozenset": _holder(lambda s: frozenset([Slots(s)]), lambda x: next(iter(x)).samples),
    "dataclass": _holder(Reading, lambda x: x.samples),
    "dataclass, frozen": _holder(Frozen, lambda x: x.samples),
    "dataclass with slots": _holder(Slotted, lambda x: x.samples),
    "object": _holder(Plain, lambda x: x.samples),
    "object with slots": _holder(Slots, lambda x: x.samples),
    "object with slots and attributes": _holder(Both, lambda x: x.other),
    "object with a state": _holder(Stateful, lambda x: x.samples),
    "object with arguments": _holder(Arguments, lambda x: x.samples),
    "object with reduce": _holder(Reduced, lambda x: x.samples),
    "object with deepcopy": _holder(Deep, lambda x: x.samples),
    "object in an object": _holder(lambda s: Plain(Reading(Plain(s))), lambda x: x.samples.samples.samples),
    "namespace": _holder(lambda s: types.SimpleNamespace(a=s), lambda x: x.a),
    "partial": _holder(lambda s: functools.partial(max, s), lambda x: x.args[0]),
    "bound method": _holder(lambda s: s.copy, lambda x: x.__self__),
    "exception": _holder(ValueError, lambda x: x.args[0]),
    "slice": _holder(lambda s: slice(s, None), lambda x: x.start),
    "tensor": _holder(Tensor, lambda x: x.data),
    "table": _holder(Table, lambda x: x.samples),
    "array": _array(lambda a: a),
    "array of one number": Kind(np.array, _first, lambda x, n: x.fill(n)),
    "array by columns": _array(np.asfortranarray),
    "array that is a view": _array(lambda a: a[::-1, ::2]),
    "array subclass": _holder(lambda s: _with(np.zeros(2).view(Signal), "rate", s), lambda x: x.rate),
    "array of objects": _holder(_objects, lambda x: x[0]),
    "array of records": Kind(lambda n: np.array([(n,)], [("a", int)]), lambda x: int(x["a"][0]), _set_record),
    "array of half floats": _array(lambda a: a.astype(np.float16)),
    "array of times": Kind(
        lambda n: np.array([n], "M8[s]"), lambda x: int(x.astype(int)[0]), lambda x, n: x.__setitem__(0, np.datetime64(n, "s"))
    ),
    "array of texts": Kind(lambda n: np.array([chr(n)]), lambda x: ord(x[0]), lambda x, n: x.__setitem__(0, chr(n))),
    "masked array": _array(np.ma.array),
    "matrix": _array(lambda a: a.view(np.matrix)),
    "record": Kind(lambda n: np.array([(n,)], [("a", int)])[0], lambda x: int(x["a"]), _set_record),
    "sparse matrix": Kind(_matrix, lambda x: int(x.toarray()[0, 0]), lambda x, n: x.data.fill(n)),
    "number of numpy": Kind(np.float32, int),
    "memoryview": Kind(lambda n: memoryview(bytearray([n])), lambda x: x[0], lambda x, n: x.__setitem__(0, n)),
    "memoryview of an array": Kind(
        lambda n: memoryview(np.full((2, 2), n, np.int32)), lambda x: x[0, 0], lambda x, n: x.__setitem__((0, 0), n)
    ),
    "memoryview, read-only": Kind(lambda n: memoryview(bytes([n])), lambda x: x[0]),
    "memoryview in an object": Kind(
        lambda n: Plain(memoryview(bytearray([n]))), lambda x: x.samples[0], lambda x, n: x.samples.__setitem__(0, n)
    ),
    "bytearray": Kind(lambda n: bytearray([n]), lambda x: x[0], lambda x, n: x.__setitem__(0, n)),
    "bytearray subclass": _noted(lambda: Buffer(b"a")),
    "array of C": Kind(lambda n: array.array("d", [n]), lambda x: int(x[0]), lambda x, n: x.__setitem__(0, n)),
    "array of C, subclass": _noted(lambda: Doubles("d", [1.0])),
    "ctypes array": Kind(ctypes.c_int * 1, lambda x: x[0], lambda x, n: x.__setitem__(0, n)),
    "ctypes structure": Kind(
        lambda n: _with(Struct(), "n", (n, n)), lambda x: x.n[0], lambda x, n: setattr(x, "n", (n, n))
    ),
    "ctypes string": Kind(lambda n: ctypes.create_string_buffer(bytes([n])), lambda x: x.raw[0], lambda x, n: x.__setitem__(0, n)),
    "image": Kind(lambda n: Image.new("L", (8, 8), n), lambda x: x.getpixel((0, 0)), lambda x, n: x.paste(n, (0, 0, 8, 8))),
    "image of a file": Kind(_jpeg, lambda x: (x.format, x.getpixel((0, 0)))[1], lambda x, n: x.paste(n, (0, 0, 8, 8))),
    "text subclass": _noted(lambda: Text("a")),
    "bytes subclass": _noted(lambda: Blob(b"a")),
    "number subclass": _noted(lambda: Number(1)),
    "text": Kind(chr, ord),
    "bytes": Kind(lambda n: bytes([n]), lambda x: x[0]),
    "number": Kind(int, int),
    "complex": Kind(complex, lambda x: int(x.real)),
    "None": _fixed(None),
    "member of an enumeration": _fixed(Colour.RED, lambda x: int(x is not Colour.RED)),
    "decimal": Kind(decimal.Decimal, int),
    "fraction": Kind(fractions.Fraction, int),
    "date": _fixed(dt.date(2020, 1, 2), lambda x: x.day),
    "time zone": _fixed(dt.datetime(2020, 1, 2, tzinfo=dt.timezone.utc), lambda x: x.day),
    "path": _fixed(pathlib.PurePosixPath("/a"), lambda x: len(x.parts)),
    "UUID": _fixed(uuid.UUID(int=5), lambda x: x.int),
    "pattern": _fixed(re.compile("a"), lambda x: int(x.pattern != "a")),
    "range": Kind(range, len),
    "class": _fixed(int, lambda x: int(x is not int)),
    "function": _fixed(len, lambda x: int(x is not len)),
    "object with a lock": Kind(_locked, _attribute, _write_attribute, copies=False),
    "closure": Kind(_closed_over, lambda x: x()[0], lambda x, n: x().__setitem__(0, n), copies=False),
    "function with an attribute": Kind(_marked, _attribute, _write_attribute, copies=False),
    "list of a closure": Kind(lambda n: [_closed_over(n)], lambda x: x[0]()[0], lambda x, n: x[0]().__setitem__(0, n), copies=False),
    "mapped memory": Kind(_mapped, lambda x: x[0], lambda x, n: x.__setitem__(0, n), copies=False),
    "view of a dict": Kind(lambda n: {n: n}.keys(), lambda x: next(iter(x)), copies=False),
    "ctypes pointer": Kind(
        lambda n: ctypes.pointer(ctypes.c_int(n)), lambda x: x[0], lambda x, n: x.__setitem__(0, n), copies=False
    ),
    "mapping of weak references": Kind(
        lambda n: weakref.WeakValueDictionary(a=KEPT.setdefault(n, Plain([n]))),
        lambda x: x["a"].samples[0],
        lambda x, n: x["a"].samples.__setitem__(0, n),
        copies=False,
    ),
}  # fmt: skip
KEPT = dict[int, Any]()
