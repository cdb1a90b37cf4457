"""Trace (`Trace`): one JSON record per answer, sampled, to a function or a file that is rotated; by default without inputs."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeroute.core.setting_unit_types import Count, Share, Size
from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.record.instrument_interface import Instrument, RequestEnded
from edgeroute.system import wall_clock
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.system.read_and_check_signatures import check_units
from edgeroute.system.thread_pool_and_workers import start_thread

if TYPE_CHECKING:
    import threading

NEW_S = 0.1  # age of a reading from which milliseconds are enough, seconds
CLOSE_S = 10.0  # longest wait for full files to become Parquet when a trace is closed, seconds


class Trace(Instrument):
    """Writes each sampled answer's decision record to a function or to a file of JSON lines, which is rotated.

    `at` is the end of the answer, seconds since 1970 by the clock as it was when the process began, plus the time since: setting
    the clock moves nothing, and processes that began before and after it differ by that. Lines are in the order of the answers.
    With `sample` below 1 each has it, and rows of a batch are drawn together.

    Args:
        to: a function, called with each trace, a JSON-serialisable mapping; or the path of a file of JSON lines.
        sample: share of answers traced, drawn at random, 0..1.
        inputs: include the input, base64 of the form in which the outbox would store it, and an answer that is a text or number.
        max_bytes: size at which the file is rotated.
        keep: number of rotated files that are kept; the oldest is deleted.
        format: format of full files; with "parquet" a thread makes files of typed columns of them, for which pyarrow is needed.
    """

    def __init__(
        self,
        to: str | Path | Callable[[Mapping[str, Any]], object],
        *,
        sample: Share = 1.0,
        inputs: bool = False,
        max_bytes: Size = 4 << 20,
        keep: Count = 4,
        format: Literal["jsonl", "parquet"] = "jsonl",  # noqa: A002 - the key of a policy file
    ) -> None:
        check_units(Trace, locals())
        if format not in {"jsonl", "parquet"} or (format == "parquet" and callable(to)):
            raise PolicyError('format of a trace must be "jsonl", or "parquet" for a file')
        if format == "parquet" and find_spec("pyarrow") is None:
            raise RuntimeMissing("format = \"parquet\" needs pyarrow: pip install 'edgeroute[parquet]'")
        self.sample, self.inputs = sample, inputs
        self._close: Callable[[], object] | None = None
        self._packing: threading.Thread | None = None
        if callable(to):
            self._write: Callable[[Mapping[str, Any]], object] = to
        else:
            from edgeroute.stores.json_lines_and_process_locks import Journal

            self._keep = keep
            packs = self._pack if format == "parquet" else None
            journal = Journal(Path(to).absolute(), max_bytes=max_bytes, keep=max(keep, 3) if packs else keep, rotated=packs)
            self._write, self._close = journal.append, journal.close

    def request_ended(self, ended: RequestEnded) -> None:
        """Write the trace of an answer, if it is drawn at random for the sample; errors are not traced.

        Adds the time, the fleet's names of site, policy and models, the last reading of the sensors, the energy of edges' runs
        where known, and, if set, input and value. What the function or the file raises passes.
        """
        answer = ended.answer
        if answer is None:
            return
        if self.sample < 1:
            batch, row, _ = answer.id.partition(".")
            draw = random.Random(batch).random if row else random.random  # noqa: S311 - a sample, not a secret
            if draw() >= self.sample:
                return
        line: dict[str, Any] = {"at": round(wall_clock.now(), 3), **answer.trace}
        if self.sample < 1:
            line["sample"] = self.sample
        if ended.origin is not None:
            line["fleet"] = ended.origin
        if ended.edge_w is not None and "events" in line:
            line["events"] = _with_joules(line, ended.edge_w)
        reading = ended.reading
        if reading is not None and (known := {name: value for name, value in reading._asdict().items() if value is not None}):
            age_s = ended.reading_age_s  # a new one came between two requests, or during this one: a replay needs to know
            line["reading"] = {"age_s": round(age_s, 3 if age_s > NEW_S else 6), **known}
        if self.inputs:
            value = answer.value
            line |= {"input": _encode_input(ended.inputs), "value": value if isinstance(value, str | int | float) else None}
        self._write(line)

    def close(self) -> None:
        """Close the file if this object opened it, and wait up to `CLOSE_S` for the thread that makes Parquet.

        A no-op for a function.
        """
        if self._close is not None:
            self._close()
            if self._packing is not None:
                self._packing.join(CLOSE_S)

    def _pack(self, path: Path) -> None:
        """Start a thread that makes Parquet of the full files. A no-op while one is running.

        Without a free thread the next rotation tries again.
        """
        if self._packing is None or not self._packing.is_alive():
            self._packing = start_thread("edgeroute-trace", _make_parquet, path, self._keep)


def _make_parquet(path: Path, keep: int) -> None:
    """Make Parquet of a trace's full files."""
    import_tool("replay.read_and_pack_traces").pack(path, keep)


def _with_joules(line: Mapping[str, Any], edge_w: float) -> list[dict[str, Any]]:
    """Return a trace's events, copied; those that end an edge's run get its energy, joules, at this power."""
    edges = {leg["leg"] for leg in line["plan"] if leg["side"] == "edge"}
    events, begun = [], dict[str, float]()
    for event in line["events"]:
        copied, name = dict(event), event["leg"]
        if event["what"] == "start":
            begun[name] = event["at_s"]
        elif event["what"] != "limit" and name in edges:
            copied["joules"] = round(edge_w * (event["at_s"] - begun[name]), 9)
        events.append(copied)
    return events


def _encode_input(x: Any) -> dict[str, str] | None:
    """Return an input as JSON: type and base64; None if it cannot be stored."""
    from edgeroute.stores.serialisation import encode_input

    encoded = encode_input(x)
    return None if encoded is None else {"type": encoded[0], "base64": base64.b64encode(encoded[1]).decode()}
