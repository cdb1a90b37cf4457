"""Inputs with their labels and groups, and their reader from tables in CSV and Parquet, row by row in little memory."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np

from edgeroute.edge.preprocessing import load_pillow
from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.untrusted_files import most_unpacked, open_file
from edgeroute.tools.bounded_lines_and_rows import RowLines

LABELS, GROUPS = ("label", "labels", "y", "target", "class"), ("group", "groups")  # names of the columns of labels and groups
CLASSES = ("data_class", "data_classes")  # names of the column of data classes
NONE = "none"  # name given in place of a column of labels, if there is none
EXACT = 1 << 53  # limit of whole numbers that are exact as float
SEPARATORS = ",;\t"  # separators of the cells of CSV
HEAD = 1000  # rows of a CSV file by which columns are taken for numbers
FIRST_LINE = 1 << 16  # most characters of the first line by which the separator is found
INDEX = "__index_level_"  # beginning of the name of a column in which pandas stores an index
PARQUET = "Parquet is read by pyarrow, which is not installed: pip install pyarrow"


Note: TypeAlias = Callable[[str], object]
Failed: TypeAlias = Callable[[BadInput], object]  # takes the error of one input, so that the others are read


def _raise(error: BadInput) -> object:
    """Raise the error of one input, which ends the reading."""
    raise error


class Columns(NamedTuple):
    """Columns of a table that a model was fitted on."""

    names: Sequence[str] = ()  # names of the columns, to take in this order; empty: all
    separate: bool = False  # True if each is an input of the model, so that a row is a mapping
    numbers: int = 0  # how many numbers a row of the model's one tensor has; negative: any; 0: it takes others


class Item(NamedTuple):
    """Input with its name, and its label, group and data class if the file has them."""

    name: str
    x: Any
    label: int | str | None = None  # correct answer
    group: int | str | None = None  # scene, user or session
    data_class: str | None = None


def read_table(
    path: Path,
    keys: Sequence[str],
    label: str | None,
    note: Note,
    fitted: Columns = Columns(),  # noqa: B008 - a tuple
    piped: bytes | None = None,
    failed: Failed = _raise,
) -> Iterator[Item]:
    """Yield the rows of a table, CSV or Parquet, with label, group and data class; memory is needed for some rows alone.

    A row's input is an array of its numbers; its text or array, if there is one column; else a mapping from column to value.
    Errors come when the first row is taken, or at the row in question.

    Args:
        path: path of the file.
        keys: keys that the policy's views take; then each input is a mapping.
        label: name of the column of labels, or its index without a header; None: the one of `LABELS` that exists; `NONE`: none.
        note: called with a message about the columns.
        fitted: columns that the model was fitted on.
        piped: content in CSV, in place of the file's; None: the file is read.
        failed: called with the error of a row that differs from the others, which is left out; as it is, it raises the error.

    Raises:
        BadInput: there are no rows, a column of `fitted` or of labels is missing or ambiguous, a row differs from the others, or
            has text where the model takes numbers.
        RuntimeMissing: pyarrow is not installed.
    """
    try:
        columns, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path, note, piped, failed)
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from e
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise BadInput(f"{path}: the column {twice[0]!r} is there twice")
    label_name = _label(path, columns, label, [*keys, *fitted.names])
    group_name, class_name = (
        next((c for c in columns if c.lower() in names and c not in {*keys, *fitted.names, label_name}), None)
        for names in (GROUPS, CLASSES)
    )
    named = [name for name in columns if name and name not in {label_name, group_name, class_name}]
    if label is None and label_name is not None:
        note(f"{path}: labels are in the column {label_name!r}; another one, or {NONE}, by --label")
    if missing := [key for key in keys if key not in named]:
        raise BadInput(f"{path}: the policy's views take {missing[0]!r} of an input, and its columns are {', '.join(named)}")
    if fitted.names and not keys and named != [*map(str, range(len(named)))]:  # there is a header
        if missing := [name for name in fitted.names if name not in named]:
            raise BadInput(f"{path} has no column {missing[0]!r}, on which the model was fitted: it has {', '.join(named)}")
        if label_name is None and label is None and (others := ", ".join(name for name in named if name not in fitted.names)):
            note(f"{path}: not an input of the model, and not used: {others}; --label names a column of labels")
        named = [*fitted.names]
    elif label is None and label_name is None and 0 < fitted.numbers == len(named) - 1:
        note(f"{path}: there are {len(named)} columns, and the model takes {fitted.numbers}: --label names a column of labels")
    if not named:
        raise BadInput(f"{path} has no column of inputs")
    for where, row in rows:
        values = {name: row[name] for name in named}
        if (absent := next((name for name, value in values.items() if value is None), None)) is not None:
            failed(BadInput(f"{path}{where}: there is no value in the column {absent!r}"))
            continue
        texts = [name for name, value in values.items() if isinstance(value, str)] if fitted.numbers else []
        if texts:
            cells = ((at, str(other[texts[0]])) for at, other in chain([(where, row)], rows))
            place = next((at for at, cell in cells if cell.strip() and _number(cell) is None), None)
            if place is None:
                raise BadInput(
                    f"{path}: the column {texts[0]!r} is empty, and the model takes numbers: write them, or nan if it may have "
                    "no number, or remove a column that is no input"
                )
            raise BadInput(
                f"{path}{place}: the column {texts[0]!r} has text, and the model takes numbers alone: remove it, write it as the "
                "numbers that the model was trained on, or name it by --label if it has the labels"
            )
        x = values if keys or fitted.separate else _input(values)
        label, group, own = (None if name is None else _plain(row[name]) for name in (label_name, group_name, class_name))
        yield Item(f"{path}{where}", x, label, group, None if own is None else str(own))


def _label(path: Path, columns: Sequence[str], column: str | None, keys: Sequence[str]) -> str | None:
    """Return the name of the column of labels: as given, by name or index, else the one with a usual name; None: there is none.

    keys: columns that are inputs, and so no labels.

    Raises:
        BadInput: the given column is missing, or several have usual names.
    """
    if column is not None:
        if column == NONE and NONE not in columns:
            return None
        if column.lstrip("-").isdigit() and [*columns] == [*map(str, range(len(columns)))]:  # there is no header
            column = str(range(len(columns))[int(column)]) if -len(columns) <= int(column) < len(columns) else column
        if column not in columns:
            raise BadInput(f"{path} has no column {column!r} of labels: its columns are {', '.join(map(repr, columns))}")
        return column
    names = [name for name in columns if name.lower() in LABELS and name not in keys]
    if len(names) > 1:
        raise BadInput(f"{path}: labels may be in {' or '.join(map(repr, names))}: say which by --label")
    return names[0] if names else None


def _input(values: Mapping[str, Any]) -> Any:
    """Return one row's input: an array of the numbers, the only text or array, or a mapping."""
    cells = [*values.values()]
    if all(isinstance(cell, int | float) for cell in cells):
        return array_of(cells)
    return cells[0] if len(cells) == 1 else dict(values)


def _plain(value: Any) -> Any:
    """Return a label or group of a cell: whole numbers as int, also from text; empty texts and NaN as None."""
    if isinstance(value, str):
        return label_of(text) if (text := value.strip()) else None
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value  # noqa: PLR0124 - NaN
    return value


# CSV, as spreadsheets and pandas write it.


def _csv(path: Path, note: Note, piped: bytes | None, failed: Failed) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Return the names of the columns, by number without a header, and the rows with their places, read as they are taken.

    The first row is a header if it has no numbers, counts 0, 1, 2, or has a text above a number. A column has numbers if the
    first 1,000 rows have no other text in it; an empty cell is NaN there. `note` is told of a missing header, or of a first
    column without a name, and `failed` (also later) of a row with another width or text among numbers.

    Raises:
        BadInput: there are no rows, or a column has no name.
    """
    rows = _cells(path, piped)
    begin = [*islice(rows, HEAD + 1)]
    if not begin:
        raise BadInput(f"{path} has no rows")
    first = [cell.strip() for _, row in begin[:1] for cell in row]
    below = [_number(cell) for _, row in begin[1:2] for cell in row]
    is_number = [_number(cell) is not None for cell in first]
    has_header = (
        not any(is_number)
        or first == [*map(str, range(len(first)))]
        or any(not number and cell and under is not None for number, cell, under in zip(is_number, first, below, strict=False))
    )
    columns = first if has_header else [*map(str, range(len(first)))]
    if not has_header:
        note(f"{path} has no header: its columns are 0 to {len(first) - 1}")
    if "" in columns[1:]:
        raise BadInput(f"{path}: column {columns.index('', 1)} has no name")
    if not columns[0]:
        note(f"{path}: its first column has no name, and is not used")
    head = begin[has_header:]
    if not head:
        raise BadInput(f"{path} has a header, and no rows")
    head = [row for row in head if _fits(path, row, columns, failed)]
    by_column = [[row[i].strip() for _, row in head] for i in range(len(columns))]
    numbers = [any(cells) and all(not cell or _number(cell) is not None for cell in cells) for cells in by_column]
    has_fractions = any(type(_cell(cell)) is float for i, numeric in enumerate(numbers) if numeric for cell in by_column[i])

    def values() -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row's values by column."""
        for number, row in chain(head, (row for row in rows if _fits(path, row, columns, failed))):
            parsed: list[Any] = [
                _cell(cell, has_fractions) if numeric else cell for cell, numeric in zip(row, numbers, strict=True)
            ]
            if None in parsed:
                column = columns[parsed.index(None)]
                failed(BadInput(f"{path}:{number}: expected a number in the column {column!r}, as in the rows before it"))
                continue
            yield f":{number}", dict(zip(columns, parsed, strict=True))

    return columns, values()


def _fits(path: Path, numbered: tuple[int, Sequence[str]], columns: Sequence[str], failed: Failed) -> bool:
    """Return True if a row has as many cells as there are columns; call `failed` with an error if not."""
    number, row = numbered
    if len(row) != len(columns):
        failed(BadInput(f"{path}:{number}: this row has {len(row)} cells, and there are {len(columns)} columns"))
    return len(row) == len(columns)


def _cells(path: Path, piped: bytes | None) -> Iterator[tuple[int, list[str]]]:
    """Yield each row of CSV that is not empty, with the number of its last line.

    The separator is that of , ; and tab that makes most cells of the first line.

    Raises:
        BadInput: it is no text in UTF-8, no CSV, or has a row of more than 16 million characters.
    """
    with open_file(path) if piped is None else io.BytesIO(piped) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        try:
            first = text.readline(FIRST_LINE)
            separator = max(SEPARATORS, key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
            text.seek(0)
            lines = RowLines(text, path)
            reader = csv.reader(lines, delimiter=separator, strict=True)
            for row in reader:
                lines.size = 0
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
        except UnicodeDecodeError:
            raise BadInput(f"{path} is not text in UTF-8") from None
        except csv.Error as e:
            raise BadInput(f"{path} cannot be read as CSV: {e}") from None


def _cell(cell: str, as_float: bool = False) -> int | float | None:
    """Return the number in a cell, NaN if it is empty; None for text. as_float: whole numbers, too, as float."""
    number = _number(cell) if cell.strip() else float("nan")
    return number if number is None or not as_float else float(number)


def _number(cell: str) -> int | float | None:
    """Return a cell's number, an int if it is written as digits and below 2^53; nan and inf, too. None: no number, or a `_`."""
    text = cell.strip()
    try:
        number = float(text)
    except ValueError:
        return None
    if "_" in text:
        return None
    return int(text) if text.lstrip("+-").isdigit() and abs(number) < EXACT else number


# Parquet, also as Hugging Face stores pictures.


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Return the names of a Parquet file's columns, and its rows with their places, read as they are taken.

    The name of an index of pandas is "". Lists become arrays and bytes pictures; an empty cell of numbers is NaN.

    Raises:
        BadInput: it cannot be read, has no rows, or says that lists or texts of a row group unpack to far more than the file.
        RuntimeMissing: pyarrow is not installed.
    """
    parquet = import_needed("pyarrow.parquet", PARQUET)
    with open_file(path) as opened:  # a regular file that may be read
        size = opened.seek(0, os.SEEK_END)
    try:
        file = parquet.ParquetFile(path)
    except Exception as e:
        raise BadInput(f"{path} cannot be read as Parquet: {' '.join(str(e).split())[:200]}") from e
    if not file.metadata.num_rows:
        raise BadInput(f"{path} has no rows")
    cell = 1  # bytes of the largest cell, at most: a text that is stored once may be that of each row
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        columns = list(map(group.column, range(group.num_columns)))
        listed = sum(8 * (column.num_values - group.num_rows) for column in columns) * min(1, HEAD / max(group.num_rows, 1))
        if (unpacked := max(int(listed), group.total_byte_size)) > most_unpacked(size):
            raise BadInput(f"{path} has {size:,} bytes and unpacks to {unpacked:,}, too many: write it in smaller row groups")
        cell = max(cell, *(column.total_uncompressed_size for column in columns if column.physical_type == "BYTE_ARRAY"), 1)

    types, fields = import_needed("pyarrow.types", PARQUET), file.schema_arrow
    dtypes = {f.name: _dtype(f.type) for f in fields}
    empty = {f.name: float("nan") for f in fields if types.is_floating(f.type) or types.is_integer(f.type)}

    def values() -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row's values by column."""
        number = 0
        try:
            for batch in file.iter_batches(batch_size=max(1, min(HEAD, most_unpacked(size) // cell))):
                for row in batch.to_pylist():
                    values = {name: empty.get(name) if cell is None else _value(cell, dtypes[name]) for name, cell in row.items()}
                    yield f"[{number}]", values
                    number += 1
        except EdgerouteError:
            raise
        except Exception as e:
            raise BadInput(f"{path}[{number}] cannot be read: {' '.join(str(e).split())[:200] or type(e).__name__}") from e

    return ["" if name.startswith(INDEX) else name for name in fields.names], values()


def _dtype(kind: Any) -> Any:
    """Return the type of an array for lists of that type of Arrow's, also nested; None: it is no list, or numpy's choice."""
    if not hasattr(kind, "value_type"):
        return None
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    try:
        return np.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return None


def _value(cell: Any, dtype: Any = None) -> Any:
    """Return a Parquet cell: a list as an array of `dtype`; bytes, alone or in a mapping, as a picture's pixels; else itself."""
    if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):  # a picture of Hugging Face's datasets
        cell = cell["bytes"]
    if isinstance(cell, bytes):
        return pixels_in(io.BytesIO(cell))
    if not isinstance(cell, list):
        return cell
    return array_of(cell, dtype)


# Values of inputs and labels.


def label_of(text: str) -> int | str:
    """Return the label in a text: a whole number, or the text."""
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def _texts_in(values: list[Any]) -> tuple[int, int, int]:
    """Return the number of values in a list, also within its lists, and the characters of all texts and of the longest."""
    count, lengths = 0, [0]
    while values:
        count, kinds = count + len(values), {*map(type, values)}
        if str in kinds:
            lengths += [len(value) for value in values if type(value) is str]
        lists = values if kinds == {list} else [value for value in values if type(value) is list] if list in kinds else ()
        values = [*chain.from_iterable(lists)]
    return count, sum(lengths), max(lengths)


def array_of(values: list[Any], dtype: Any = None) -> Any:
    """Return an array of a list, float32 where there is a fraction and all fit. dtype: its type; None: numpy's choice.

    Raises:
        ValueError: its texts would take far more memory than they are, as each takes that of the longest; or as numpy.
    """
    count, size, longest = _texts_in(values)
    if 4 * count * longest > most_unpacked(size):
        raise ValueError(f"a list of {count:,} values has a text of {longest:,} characters, too long for an array of all")
    array = np.asarray(values, dtype)
    fits = array.dtype == np.float64 and not (np.abs(array) > np.finfo(np.float32).max).any()
    return array.astype(np.float32) if fits else array


def pixels_in(file: IO[bytes]) -> Any:
    """Decode an image's file to [height, width] for grey, [height, width, channels] for colour, without transparency.

    Pixels are uint8, but for pictures of 16 bits or floats, which keep their type. Other errors of Pillow pass.

    Raises:
        RuntimeMissing: Pillow is not installed.
        ValueError: the image is too large.
    """
    pillow = load_pillow()
    try:
        with pillow.open(file) as image:
            plain = {"1": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "LA": "L", "CMYK": "RGB", "YCbCr": "RGB"}
            return np.asarray(image.convert(plain.get(image.mode, image.mode)))
    except pillow.DecompressionBombError as e:
        raise ValueError(e) from e
