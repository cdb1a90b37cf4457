"""Results of an edge model on a log's requests (`Result`), and their file of JSON lines (`Results`), from which a run resumes.

The file has hashes, confidences and grades, and no texts; one process at a time has it, by a lock file beside it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import BadInput
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.untrusted_files import open_file, parse_json

MARK: Final = "edgeroute.replay"
VERSION: Final = 1
LONGEST: Final = 4096  # most bytes of a line


class Result(NamedTuple):
    """Result for one request of the log.

    Attributes:
        confidence: that of the edge's answer; None: it has none, or there is no answer.
        grade: agreement with the cloud's answer, 0..1.
        why: code or type of the error in place of an answer.
    """

    confidence: float | None
    grade: float
    took_s: float
    why: str = ""


class Results:
    """File of results, open for appending by one process, which holds its lock file. Without a path they are in memory alone.

    A partial last line, as of a killed process, is cut off at opening.

    Args:
        path: path of the file, which is created with access for its owner alone; None: no file.
        setup: digest of edge and judge, which the file's results must have.

    Attributes:
        known: results by the request's ID.

    Raises:
        BadInput: the file is of another edge or judge, is no file of results, cannot be used, or another process uses it.
    """

    def __init__(self, path: Path | None, setup: str) -> None:
        self.known: dict[str, Result] = {}
        self._path = path
        self._file: IO[bytes] | None = None
        self._lock: ProcessLock | None = None
        if path is None:
            return
        lock = ProcessLock(path.with_name(f"{path.name}.lock"))
        try:
            if not lock.take():
                busy = f"{path}: another process is writing these results: wait for it, or give another --out"
                raise BadInput(busy)  # noqa: TRY301 - the file is closed below
            self._lock = lock
            size = self._read(path, setup)
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
            self._file.truncate(size)
            self._file.seek(size)
            if not size:
                self._write(self._head(setup))
        except OSError as e:
            self.close()
            raise self._unusable(e) from e
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path, setup: str) -> int:
        """Read the results of an earlier run into `known`, and return the bytes up to the last whole line.

        Lines that are no valid result are ignored. 0 if there is no file, or only part of a first line.

        Raises:
            BadInput: the file's first line has another setup, or is none of this command.
            OSError: the file cannot be read.
        """
        try:
            file = open_file(path)
        except FileNotFoundError:
            return 0
        head, size = self._head(setup), 0
        with file:
            for line in iter(lambda: file.readline(LONGEST), b""):
                if not size and line != head:
                    if head.startswith(line):
                        return 0  # a killed process has not finished it
                    is_other = _object(line).get(MARK) == VERSION
                    why = "results of another edge model or judge" if is_other else "no results of this command"
                    raise BadInput(f"{path} has {why}: give another --out")
                if not line.endswith(b"\n"):
                    break
                record = _object(line) if size else {}
                size = file.tell()
                if (result := _result(record)) is not None:
                    self.known[record["id"]] = result
        return size

    @staticmethod
    def _head(setup: str) -> bytes:
        """Return the first line of a file, as JSON: the version of its form, and the setup."""
        return json.dumps({MARK: VERSION, "setup": setup}).encode() + b"\n"

    def add(self, identity: str, result: Result) -> None:
        """Store a result in `known`, its time rounded to microseconds, and append it to the file, if there is one.

        The line is handed to the system at once: it survives the end of this process, but perhaps not a power cut.

        Raises:
            BadInput: the file cannot be written.
        """
        result = result._replace(took_s=round(result.took_s, 6))
        if self._file is not None:
            record = {"id": identity, **result._asdict()}
            if not result.why:
                del record["why"]
            try:
                self._write(json.dumps(record, allow_nan=False).encode() + b"\n")
            except OSError as e:
                raise self._unusable(e) from e
        self.known[identity] = result

    def _write(self, line: bytes) -> None:
        """Append a line to the open file, and hand it to the system, without fsync. Raises OSError."""
        assert self._file is not None
        self._file.write(line)
        self._file.flush()

    def _unusable(self, error: OSError) -> BadInput:
        """Return, without raising it, the error of a file that the system does not read or write."""
        return BadInput(
            f"{self._path} cannot be used for the results: {error.strerror or clean(error)}; make room or give another "
            "--out; the results so far count in the next run"
        )

    def close(self) -> None:
        """Close the file, ignoring what a full disk has not taken, and release its lock; nothing if there is none."""
        if self._file is not None:
            with suppress(OSError):  # what a full disk has not taken
                self._file.close()
        if self._lock is not None:
            self._lock.leave()


def _object(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON; return an empty mapping for anything that is no object."""
    try:
        record = parse_json(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _result(record: dict[str, Any]) -> Result | None:
    """Return the result of a record; None without an ID, with a number that is not finite or out of range, or another type."""
    confidence, grade, took_s, why = (record.get(name) for name in ("confidence", "grade", "took_s", "why"))
    numbers = [grade, took_s, *([] if confidence is None else [confidence])]
    if not isinstance(record.get("id"), str) or not all(type(x) in {int, float} and isfinite(x) for x in numbers):
        return None
    if not 0 <= grade <= 1 or took_s < 0 or not isinstance(why, str | None):  # type: ignore[operator]
        return None
    return Result(confidence, float(grade), float(took_s), why or "")  # type: ignore[arg-type]
