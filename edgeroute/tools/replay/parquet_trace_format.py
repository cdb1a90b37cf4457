"""Writer and reader of traces as Parquet: typed columns for queries, and a template for the rest of a record's JSON.

`write_parquet` adds a checksum, without which `read_parquet` reads no file: pyarrow may abort the process for a damaged one.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from glob import escape
from itertools import chain
from math import copysign
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgeroute.core.device_rules import Reading
from edgeroute.errors import BadInput, StoreError
from edgeroute.stores.json_lines_and_process_locks import LONGEST, ProcessLock
from edgeroute.system.files_and_lock_waits import name_beside
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.untrusted_files import most_unpacked, open_file

NEED: Final = "traces in Parquet need pyarrow: pip install 'edgeroute[parquet]'"
MAGIC: Final = b"PAR1"
ROWS: Final = 1 << 16  # records of a row group, which are in memory at once
LEVEL: Final = 15  # of zstd: the lowest that splits blocks, which saves 4 % at 1 us a line
MOST_ROWS: Final = 1 << 20  # most rows and events of a row group that are read
MOST_BYTES: Final = 1 << 30  # most bytes of a row group, unpacked, that are read; a small file's unpack to fewer, `most_unpacked`
PART: Final = 1 << 28  # most bytes to which the cells of a part of a row group may unpack, before they are counted
SHAPES: Final = 10_000  # parsed templates in memory
SHORT: Final = 1 << 12  # most characters of a parsed template that stays in memory

# Columns. A value that its column cannot represent exactly stays in the template `shape`, as do all other keys.

TEXTS: Final = ("mode", "data_class", "answered_by", "reason_code")
FACTS: Final = ("edge_p99_s", "kept", "deferral_rate")  # numbers of `facts` that change from line to line
NUMBERS: Final = ("confidence", "threshold", "usd", "joules")
SIZES: Final = ("sent_bytes", "received_bytes")
WORDS: Final = ("leg", "what", "error", "code")
# Fields of an event. `at_us` null: the event is at the request's end, `latency_us`. `more`: JSON of further keys.
EVENT: Final = (*WORDS, "at_us", *NUMBERS, *SIZES, "more")
_SENSORS: Final = tuple(name for name in Reading._fields if name not in {"mains", "throttled", "network", "metered"})
SPREAD: Final = frozenset({"id", "input"})  # columns whose cells differ from row to row
_WIDE: Final = 1 << 53  # limit of whole numbers that are exact as float


def _pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its module for Parquet, and return both. Raises RuntimeMissing if it is not installed."""
    return import_needed("pyarrow", NEED), import_needed("pyarrow.parquet", NEED)


def schema() -> Any:
    """Return the schema of a trace's columns, as pyarrow has it. Raises RuntimeMissing."""
    pa, _ = _pyarrow()
    number, text, whole = pa.float64(), pa.string(), pa.int64()
    types = {**dict.fromkeys(EVENT, text), "at_us": whole, **dict.fromkeys(NUMBERS, number), **dict.fromkeys(SIZES, whole)}
    event = pa.struct([(name, types[name]) for name in EVENT])
    return pa.schema([
        ("at", pa.timestamp("ms", "UTC")), ("id", text), ("latency_us", whole), ("deadline_s", number), ("accepted", pa.bool_()),
        *((name, text) for name in TEXTS), *((name, number) for name in FACTS),
        ("events", pa.list_(pa.field("element", event))),
        ("read_at", pa.timestamp("ms", "UTC")), ("reading", pa.struct([(name, number) for name in _SENSORS])),
        ("input_type", text), ("input", pa.binary()), ("shape", text), ("line", whole),
    ])  # fmt: skip


def _units(value: Any, per_unit: float) -> int | None:
    """Return `value * per_unit` as a whole number, if it is a float and `/ per_unit` gives exactly that again; None otherwise."""
    if type(value) is not float or not abs(value) < _WIDE:
        return None
    parts = round(value * per_unit)
    exact = abs(parts) < _WIDE and parts / per_unit == value and (parts or copysign(1.0, value) > 0)
    return parts if exact else None


def _is_text(value: Any) -> bool:
    """Return True for a text that UTF-8 can represent, which one with an unpaired surrogate is not; False for other types."""
    if type(value) is not str:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:  # an unpaired surrogate
        return False
    return True


class _Columns:
    """Columns of a table under construction, whose first record is in this line of the trace.

    Attributes:
        size: bytes of inputs and templates, and of ids if they are ASCII.
        ends: number of events after each record; None before a record whose events are in its template.
        kinds: template and words of a record -> their number, in the order in which they came.
        kind: number of each record's kind.
    """

    def __init__(self, line: int) -> None:
        self.line, self.size = line, 0
        self.columns: dict[str, list[Any]] = {name: [] for name in schema().names if name not in {"events", "line"}}
        self.events: dict[str, list[Any]] = {name: [] for name in EVENT}
        self.ends: list[int | None] = [0]
        self.kinds: dict[tuple[Any, ...], int] = {}
        self.kind: list[int] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Split a record into columns and template, and append them; the record is not changed.

        What a column represents exactly becomes null in the template (`shape`, JSON), which has all the rest.
        """
        columns, shape = self.columns, dict(record)
        at, latency_us = _units(record.get("at"), 1e3), _units(record.get("latency_s"), 1e6)
        values = {
            "at": at, "latency_us": latency_us,
            "id": record["id"] if _is_text(record.get("id")) else None,
            "accepted": record["accepted"] if type(record.get("accepted")) is bool else None,
            "deadline_s": record["deadline_s"] if type(record.get("deadline_s")) is float else None,
            **{name: record[name] if _is_text(record.get(name)) else None for name in TEXTS},
        }  # fmt: skip
        for name, value in values.items():
            columns[name].append(value)
            if value is not None:
                shape["latency_s" if name == "latency_us" else name] = None
        facts, reading = (value if type(value := record.get(name)) is dict else {} for name in ("facts", "reading"))
        numbers = {name: value for name in FACTS if type(value := facts.get(name)) is float}
        for name in FACTS:
            columns[name].append(numbers.get(name))
        if numbers:
            shape["facts"] = {**facts, **dict.fromkeys(numbers)}
        sensors = {name: value for name in _SENSORS if type(value := reading.get(name)) is float}
        age_ms = _units(reading.get("age_s"), 1e3) if at is not None else None
        columns["read_at"].append(None if at is None or age_ms is None else at - (latency_us or 0) // 1000 - age_ms)
        columns["reading"].append(sensors or None)
        if reading:
            shape["reading"] = {**reading, **dict.fromkeys(sensors), **({} if age_ms is None else {"age_s": None})}
        kind, data = _input(record.get("input"))
        columns["input_type"].append(kind)
        columns["input"].append(data)
        if kind is not None:
            shape["input"] = None
        begin = len(self.events["leg"])
        if self._add_events(record.get("events"), latency_us):
            shape["events"] = None
        columns["shape"].append(json_dumps(shape).decode())
        self.size += sum(len(columns[name][-1] or "") for name in ("id", "input", "shape"))
        words = (*(self.events[name][begin:] for name in WORDS), *(columns[name][-1:] for name in (*TEXTS, "shape")))
        self.kind.append(self.kinds.setdefault(tuple(chain.from_iterable(words)), len(self.kinds)))

    def _add_events(self, events: Any, latency_us: int | None) -> bool:
        """Append a record's events to their columns and return True, or append none and return False: they stay in the template.

        All fit if each is a mapping with an exact time, a leg and a kind; what else an event has without a column is JSON in
        `more`.
        """
        known = [event for event in events if type(event) is dict] if type(events) is list else []
        times = [_units(event.get("at_s"), 1e6) for event in known]
        fits = type(events) is list and len(known) == len(events) and None not in times
        fits = fits and all(_is_text(event.get("leg")) and _is_text(event.get("what")) for event in known)
        into = self.events
        for event, time in zip(known if fits else (), times):  # noqa: B905 - none, or all
            taken = {"at_s": None, "leg": None, "what": None}
            for name, fits_in in _FITS.items():
                value = event.get(name)
                if fits_column := fits_in(value):
                    taken[name] = None
                into[name].append(value if fits_column else None)
            into["at_us"].append(None if time == latency_us else time)
            into["leg"].append(event["leg"])
            into["what"].append(event["what"])
            more = {key: value for key, value in event.items() if key not in taken} if len(event) > len(taken) else None
            into["more"].append(None if more is None else json_dumps(more).decode())
        if not fits:
            self.ends[-1] = None
        self.ends.append(len(into["leg"]))
        return fits

    def is_full(self) -> bool:
        """Return True if the records are enough for a row group, which readers refuse if it is too large."""
        return len(self.kind) >= ROWS or self.size >= MOST_BYTES // 4 or len(self.events["leg"]) >= MOST_ROWS // 2

    def table(self) -> Any:
        """Build the table. Records of a kind follow each other, as each column then compresses best; `line` has their order."""
        pa, _ = _pyarrow()
        form = schema()
        events = form.field("events").type
        parts = [pa.array(self.events[name], events.value_type.field(name).type) for name in EVENT]
        elements = pa.StructArray.from_arrays(parts, fields=list(events.value_type))
        offsets = pa.array(self.ends, pa.int32())
        arrays = {name: pa.array(values, form.field(name).type) for name, values in self.columns.items()}
        arrays["events"] = pa.ListArray.from_arrays(offsets, elements, type=events)
        count = len(self.kind)
        arrays["line"] = pa.array(range(self.line, self.line + count), form.field("line").type)
        table = pa.table([arrays[name] for name in form.names], schema=form)
        return table.take(pa.array(sorted(range(count), key=self.kind.__getitem__)))


# Field of an event -> function that returns True for a value that its column represents exactly.
_FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(NUMBERS, lambda value: type(value) is float), "error": _is_text, "code": _is_text,
    **dict.fromkeys(SIZES, lambda value: type(value) is int and 0 <= value < _WIDE),
}  # fmt: skip


def _input(value: Any) -> tuple[str | None, bytes | None]:
    """Return type and bytes of a traced input; (None, None) for anything else, or base64 that is not as Python writes it."""
    if type(value) is dict and [*value] == ["type", "base64"] and _is_text(value["type"]) and _is_text(value["base64"]):
        with contextlib.suppress(binascii.Error, ValueError):
            data = base64.b64decode(value["base64"], validate=True)
            if base64.b64encode(data).decode() == value["base64"]:
                return value["type"], data
    return None, None


def write_parquet(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write records to a Parquet file for the owner alone, with a checksum, and return their number. Replaces an old file.

    Goes through a new file beside it, renamed at the end, without fsync, or deleted after an error. 65,536 records are in memory
    at once, or fewer that have many events or much input.

    Raises:
        StoreError: the file cannot be written.
        RuntimeMissing: pyarrow is not installed.
    """
    _, parquet = _pyarrow()
    form, number, pending = schema(), 0, iter(records)
    element = "events.list.element."
    numbers = {
        **dict.fromkeys(("at", "latency_us", "read_at", "line"), "DELTA_BINARY_PACKED"),
        "id": "DELTA_BYTE_ARRAY",
        **{f"{element}{name}": "BYTE_STREAM_SPLIT" for name in NUMBERS},
    }
    words = [*TEXTS, *FACTS, "deadline_s", "input_type", "shape", *(f"{element}{name}" for name in (*WORDS, *SIZES, "more"))]
    words += [f"reading.{name}" for name in _SENSORS]  # which report few digits
    with replacing(path) as new:
        with (
            new.open("wb") as file,
            parquet.ParquetWriter(
                file, form, compression="zstd", compression_level=LEVEL, use_dictionary=words, column_encoding=numbers,
                store_schema=False, write_statistics=["at"],
            ) as writer,
        ):  # fmt: skip
            for first in pending:
                columns = _Columns(number)
                columns.add(first)
                while not columns.is_full() and (record := next(pending, None)) is not None:
                    columns.add(record)
                writer.write_table(columns.table())
                number += len(columns.kind)
        seal(new)
    return number


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a new file beside a path, for its owner alone, and rename it to the path after the block; delete it after an error.

    Deletes what killed processes have left that wrote to this path. Raises StoreError for errors of the disk, in the block too.
    Without fsync.
    """
    new: Path | None = None
    turn: ProcessLock | None = None
    try:
        for left in path.parent.glob(f"{escape(path.name)}.{'[0-9a-f]' * 12}.new"):
            _remove_left(left)
        new, turn = _begin(path)
        yield new
        new.replace(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e
    finally:
        if new is not None:
            new.unlink(missing_ok=True)
        if turn is not None:
            turn.leave()


def _begin(path: Path) -> tuple[Path, ProcessLock | None]:
    """Create a file beside a path, and return it, with a lock that says that it is being written.

    Without a lock on Windows, where an open file cannot be deleted, and is not renamed while locked; and on a file system that
    has none.
    """
    while sys.platform != "win32":
        turn = ProcessLock(name_beside(path))
        try:
            if turn.take() and turn.path.exists():
                return turn.path, turn
        except OSError:
            turn.path.unlink(missing_ok=True)
            break
        turn.leave()  # it was taken for a file that is left
    new = name_beside(path)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return new, None


def _remove_left(file: Path) -> None:
    """Delete a file unless a process that lives is writing it."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            file.unlink()
        elif (turn := ProcessLock(file)).take():
            try:
                file.unlink()
            finally:
                turn.leave()


# Mark between row groups and footer, before the CRC-32 of all other bytes: pyarrow may abort the process for a damaged file.
SEAL: Final = b"edgeroute crc32 "
_END: Final = 8  # bytes after the footer: its length, and `MAGIC`


def seal(path: Path) -> None:
    """Insert the mark and the CRC-32 of all other bytes before a Parquet file's footer, in place. Raises OSError."""
    with path.open("r+b") as file:
        footer = file.seek(-_END, os.SEEK_END) - int.from_bytes(file.read(4), "little")
        checksum = _crc32(file, footer)
        end = file.read()
        file.seek(footer)
        file.write(SEAL + zlib.crc32(end, checksum).to_bytes(4, "little") + end)


def _crc32(file: BinaryIO, size: int) -> int:
    """Return the CRC-32 of the first `size` bytes of a file, and leave its position behind them."""
    checksum = 0
    file.seek(0)
    while size and (part := file.read(min(size, 1 << 20))):
        checksum, size = zlib.crc32(part, checksum), size - len(part)
    return checksum


def _check_seal(file: BinaryIO) -> None:
    """Read a whole file, and raise ValueError unless it is as `write_parquet` wrote it; then go back to its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END))
    footer = size - _END - int.from_bytes(file.read(4), "little")
    mark = footer - len(SEAL) - 4
    if file.read() != MAGIC or mark < 0:
        raise ValueError("it ends early")
    checksum = _crc32(file, mark)
    seal = file.read(len(SEAL) + 4)
    if not seal.startswith(SEAL):
        raise ValueError("its checksum is missing: only files of `edgeroute trace convert` are read")
    if zlib.crc32(file.read(), checksum) != int.from_bytes(seal[len(SEAL) :], "little"):
        raise ValueError("its checksum differs")
    file.seek(0)


def is_parquet(path: Path) -> bool:
    """Return True if a file begins as Parquet does, by four bytes. Raises OSError if there is none, or it is no regular file."""
    with open_file(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_parquet(path: Path, *, whole: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the records of a Parquet file in their order, once its checksum has been verified by reading all of it.

    Parts that several records share are the same objects: copy before a change.

    whole: False leaves inputs and numbers of `facts` null, which no replay reads.

    Raises:
        BadInput: no Parquet, damaged, truncated, without a checksum, too large, or no trace.
        StoreError: the file cannot be opened.
        RuntimeMissing: pyarrow is not installed.
    """
    pa, parquet = _pyarrow()
    shapes: dict[str, Any] = {}
    try:
        with open_file(path) as file:
            _check_seal(file)
            most = min(MOST_BYTES, most_unpacked(file.seek(0, os.SEEK_END)))
            file.seek(0)
            reader = _checked(path, parquet.ParquetFile(file), most)
            columns = [name for name in reader.schema_arrow.names if whole or name not in {*FACTS, "input_type", "input"}]
            words = [*TEXTS, "shape", "input_type", *(f"events.list.element.{name}" for name in (*WORDS, "more"))]
            reader = parquet.ParquetFile(file, metadata=reader.metadata, read_dictionary=words)
            for i in range(reader.metadata.num_row_groups):
                for batch in _batches(path, reader, i, columns, most):
                    yield from _records(batch, shapes)
    except BadInput:
        raise
    except (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError) as e:
        if isinstance(e, OSError) and (e.filename, e.errno) != (None, None):  # else pyarrow's, of the content
            raise StoreError(f"{path}: {e.strerror or e}") from e
        why = " ".join(str(e).split())[:200]
        raise BadInput(f"{path}: expected a trace in Parquet, found a damaged or truncated file ({why})") from e


def check_parquet(path: Path) -> None:
    """Verify a file's checksum, columns and sizes, and read its first rows; raise as `read_parquet` if it would refuse it."""
    next(read_parquet(path), None)


def _checked(path: Path, reader: Any, most: int) -> Any:
    """Return the reader of a file with a trace's columns and row groups of at most `most` bytes; raise BadInput otherwise."""
    form = reader.schema_arrow
    if not form.equals(schema()):
        raise BadInput(f"{path}: expected a trace in Parquet, found other columns: {', '.join(form.names)[:100]}")
    for i in range(reader.metadata.num_row_groups):
        group = reader.metadata.row_group(i)
        values = max((group.column(j).num_values for j in range(group.num_columns)), default=0)
        if max(group.num_rows, values) > MOST_ROWS or group.total_byte_size > most:
            raise BadInput(f"{path}: row group {i} is larger than a trace's: {values:,} values, {group.total_byte_size:,} bytes")
    return reader


def _batches(path: Path, reader: Any, i: int, names: list[str], most: int) -> list[Any]:
    """Return the rows of a row group, sorted by their `line`, in batches.

    A text that is stored once may be that of each row, and share its beginning with the next. Most columns of texts are read as
    dictionaries, where that takes no memory; `id` and `input` a few rows at a time, until their bytes are too many.

    most: maximum number of bytes to which `id` and `input` may unpack.

    Raises:
        BadInput: they unpack to more.
    """
    pa, _ = _pyarrow()
    group, total = reader.metadata.row_group(i), 0
    table = reader.read_row_group(i, [name for name in names if name not in SPREAD])
    for column in (group.column(j) for j in range(group.num_columns)):
        if (name := column.path_in_schema) not in SPREAD or name not in names:
            continue
        repeats = any("DICTIONARY" in encoding or "DELTA" in encoding for encoding in column.encodings)
        rows = max(1, min(ROWS, PART // max(1, column.total_uncompressed_size)) if repeats else ROWS)
        parts = []
        for part in reader.iter_batches(rows, [i], [name]):
            total += part.nbytes
            if total > most:
                raise BadInput(f"{path}: row group {i} unpacks to more than a trace's, {most:,} bytes")
            parts.append(part.column(0))
        table = table.append_column(name, pa.chunked_array(parts, schema().field(name).type))
        del parts
    table = table.combine_chunks()
    table = table.take(table.column("line").to_numpy().argsort())
    return table.to_batches(max_chunksize=max(1, min(ROWS // 4, table.num_rows * PART // max(1, total))))  # type: ignore[no-any-return]


def _values(array: Any) -> list[Any]:
    """Return the values of an array as Python's, times as whole numbers; None for null. Faster than `to_pylist`."""
    pa, _ = _pyarrow()
    if pa.types.is_dictionary(array.type):
        known = [*array.dictionary.to_pylist(), None]
        return [known[i] for i in array.indices.fill_null(len(known) - 1).to_numpy().tolist()]
    if pa.types.is_timestamp(array.type):
        array = array.view(pa.int64())
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        if not array.null_count:
            return array.to_numpy().tolist()  # type: ignore[no-any-return]
        if array.null_count == len(array):
            return [None] * len(array)
        values = array.fill_null(0).to_numpy().astype(object)
        values[array.is_null().to_numpy(zero_copy_only=False)] = None
        return values.tolist()  # type: ignore[no-any-return]
    return array.to_pylist()  # type: ignore[no-any-return]


def _records(batch: Any, shapes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the records of a batch of rows: each is its template, with the values of the columns filled in.

    Parsed templates are stored in `shapes` for later batches, up to `SHAPES` of them. Raises ValueError for one that is no
    object.
    """
    columns = {name: _values(batch.column(name)) for name in batch.schema.names if name not in {"events", "line"}}
    listed = batch.column("events")
    begin, here = listed.offsets[0].as_py(), listed.is_valid().to_pylist()
    offsets = (listed.offsets.to_numpy() - begin).tolist()
    flat = listed.values.slice(begin, offsets[-1])
    fields = {name: _values(flat.field(name)) for name in EVENT if flat.field(name).null_count < len(flat)}
    blank = [None] * len(flat)
    times, more = fields.pop("at_us", blank), fields.pop("more", blank)
    legs, whats = fields.pop("leg", blank), fields.pop("what", blank)
    rest = [(name, fields[name]) for name in (*NUMBERS[:2], "error", "code", *SIZES, *NUMBERS[2:]) if name in fields]
    whole = [name for name in ("id", "accepted", "deadline_s", *TEXTS) if any(value is not None for value in columns[name])]
    facts, kinds = [name for name in FACTS if name in columns], columns.get("input_type", [None] * len(listed))
    for i, text in enumerate(columns["shape"]):
        shape = shapes.get(text)
        if shape is None:
            if len(text) > LONGEST:
                raise ValueError("a template is too long")
            shape = json_loads(text.encode(), exact=True)
            if type(shape) is not dict:
                raise ValueError("a template is no object")
            if len(shapes) < SHAPES and len(text) <= SHORT:
                shapes[text] = shape
        record = dict(shape)
        if (at := columns["at"][i]) is not None:
            record["at"] = at / 1e3
        if (latency_us := columns["latency_us"][i]) is not None:
            record["latency_s"] = latency_us / 1e6
        for name in whole:
            if (value := columns[name][i]) is not None:
                record[name] = value
        for name in facts:
            if (value := columns[name][i]) is not None:
                if record["facts"] is shape["facts"]:
                    record["facts"] = dict(record["facts"])
                record["facts"][name] = value
        if (sensors := columns["reading"][i]) is not None:
            record["reading"] = {**record["reading"], **{name: v for name, v in sensors.items() if v is not None}}
        if (read_at := columns["read_at"][i]) is not None:
            record["reading"] = {**record["reading"], "age_s": (at - (latency_us or 0) // 1000 - read_at) / 1e3}
        if (kind := kinds[i]) is not None:
            record["input"] = {"type": kind, "base64": base64.b64encode(columns["input"][i]).decode()}
        if here[i]:
            record["events"] = events = []
            if more is not blank and sum(len(text or "") for text in more[offsets[i] : offsets[i + 1]]) > LONGEST:
                raise ValueError("a record's events are too long")
            for j in range(offsets[i], offsets[i + 1]):
                time = times[j]
                event = {"at_s": (latency_us if time is None else time) / 1e6, "leg": legs[j], "what": whats[j]}
                for name, values in rest:
                    if (value := values[j]) is not None:
                        event[name] = value
                if (text := more[j]) is not None:
                    event.update(json_loads(text.encode(), exact=True))
                events.append(event)
        yield record
