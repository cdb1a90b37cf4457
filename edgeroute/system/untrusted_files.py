"""Guarded reader of untrusted files: models, cards, catalogs, policies, certificates, traces and inputs, which others wrote.

Every command and the router read such a file through it: nothing waits for a pipe, and no size, encoding, depth or number of the
file is believed before it is bounded.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from math import inf, isinf
from typing import IO, Any

MOST_TEXT = 1 << 24  # most bytes of a text that is read at once
MOST_DATA = 1 << 32  # most bytes of arrays, pictures and models that are read at once
MOST_UNPACKED = 1 << 29  # most bytes that a small archive unpacks to; a larger one to MOST_TIMES its size, up to MOST_DATA
MOST_TIMES = 100
MOST_DIGITS = 308  # most digits of a whole number in JSON: floats have no larger ones


def open_file(path: str | os.PathLike[str], most: float = inf) -> BufferedReader:
    """Open a regular file for reading, without waiting for a writer. The caller closes it.

    Args:
        path: path of the file; a symbolic link is followed.
        most: maximum size, bytes.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a pipe, a socket or a device, is larger, or may not be read; `strerror` says so.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - closed by the caller
    try:
        _check(path, os.fstat(file.fileno()), most)
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def map_file(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Map a regular file into memory for reading, and yield the map. Raises as `open_file`, and ValueError for an empty file."""
    import mmap

    with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a writer, as a pipe would have it, and without becoming a terminal's process."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _check(path: str | os.PathLike[str], status: os.stat_result, most: float) -> None:
    """Raise OSError for what is no regular file, or is larger than `most` bytes."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))


def read_bytes(path: str | os.PathLike[str], most: int = MOST_DATA) -> bytes:
    """Return the content of a regular file. Raises as `open_file`."""
    with open_file(path, most) as file:
        return file.read()


def most_unpacked(size: int) -> int:
    """Return the maximum number of bytes to which a compressed file of this size may unpack."""
    return max(size, min(MOST_DATA, max(MOST_UNPACKED, MOST_TIMES * size)))


def load_arrays(file: IO[bytes]) -> Any:
    """Return the array of an open .npy file, or the archive of an .npz file, which reads an array when it is asked for it.

    Raises:
        ValueError: the archive says that it unpacks to far more than it is.
        Exception: numpy's, zipfile's or zlib's own; the file is neither, or damaged.
    """
    import numpy as np

    data, size = np.load(file, allow_pickle=False), file.seek(0, os.SEEK_END)
    if archive := getattr(data, "zip", None):
        unpacked = sum(member.file_size for member in archive.infolist())  # zipfile reads no more of a member than that
        if unpacked > most_unpacked(size):
            data.close()
            raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}, too many: write it by numpy.savez, not compressed")
    return data


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the arrays of an .npz file by name. Raises OSError as `open_file`, and ValueError for any other or damaged file."""
    with open_file(path) as file:
        try:
            with load_arrays(file) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as e:  # the content decides which
            raise ValueError(f"it cannot be read as an .npz file: {e}") from e


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    r"""Return the text of a regular file in UTF-8, without its byte order mark, and with \n between lines.

    Raises:
        OSError: as `open_file`.
        ValueError: it is no UTF-8; the message quotes nothing of it.
    """
    try:
        return str(read_bytes(path, most), "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"is not text in UTF-8, at byte {e.start}") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value of a regular file of JSON. Raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path))


@contextmanager
def named_errors(
    path: str | os.PathLike[str], missing: Exception, error: Callable[[str], Exception], broken: str = "is broken: %s"
) -> Iterator[None]:
    """Raise what goes wrong in reading a file as edgeroute's errors, which name it.

    Args:
        path: path of the file.
        missing: raised if there is no such file.
        error: makes the error of any other one from a text.
        broken: what the file is then, with a place for the reason.
    """
    try:
        yield
    except FileNotFoundError as e:
        raise missing from e
    except OSError as e:
        raise error(f"{path} cannot be read: {e.strerror or e}") from e
    except ValueError as e:
        raise error(f"{path} {broken % e}") from e


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the value of a JSON text that others wrote.

    Args:
        text: the text.
        pairs: function that makes an object of its pairs; None: a dict.

    Raises:
        ValueError: it is no JSON (JSONDecodeError), is nested too deeply, or has a number above any float.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=_whole, parse_float=_float)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"is not text in UTF-8, at byte {e.start}") from None


def _whole(digits: str) -> int:
    """Return a whole number; raise ValueError for one above any float."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"has a number of {len(digits):,} digits")
    return int(digits)


def _float(text: str) -> float:
    """Return a number; raise ValueError for one above any float."""
    if isinf(value := float(text)):
        raise ValueError("has a number above any float")
    return value
