"""Replay of many devices' traces, each a shard (`replay_fleet`), and their sums: by processes, or on a cluster by Ray Data.

A device's state (limits, breaker, rules) follows from its own trace, so shards are independent. Their sums are exact: the result
does not depend on the engine, on the number of processes, or on the order in which shards end.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from functools import partial
from heapq import nsmallest
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import numpy as np

from edgeroute.errors import BadInput, EdgerouteError, StoreError
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text
from edgeroute.tools.replay.read_and_pack_traces import traces
from edgeroute.tools.replay.recorded_requests_and_statistics import Numbers, Tally, read, without_gc
from edgeroute.tools.replay.replay_setup_and_result import Change, Energy, Gated, Replay, Setup, Values
from edgeroute.tools.replay.trace_replay import EXAMPLES, Options, check_options, replay_requests

NAMED: Final = 20  # most damaged traces that are named in a result
CHUNKS: Final = 8  # chunks of traces per process, so that the last ones end together
BITS: Final = 40  # bits of a float that a bucket of latencies drops: a bucket is 2**-12 of its latency wide
NOTE: Final = "a limit, a breaker and a budget are each device's own; latencies are rounded to 0.02 %"
NEED: Final = "--engine ray needs Ray Data: pip install 'edgeroute[ray]'"


class FleetReplay(NamedTuple):
    """Replay of the traces of many devices.

    Attributes:
        replay: sums over the devices; battery: the joules of all, and the lowest charge and the earliest end of any.
        devices: number of traces replayed.
        damaged: trace -> why it is left out, of the first 20 by name.
        left_out: number of traces that are left out.
    """

    replay: Replay
    devices: int
    damaged: Mapping[str, str]
    left_out: int

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data."""
        return {**self.replay.as_dict(), "devices": self.devices, "left_out": self.left_out, "damaged": dict(self.damaged)}

    def __str__(self) -> str:
        lines = [f"{count_text(self.devices, 'trace')}, each of a device of its own"]
        lines += [f"{self.left_out:,} left out:"] if self.left_out else []
        lines += [f"  {why}" for why in self.damaged.values()]
        return "\n".join([*lines, "", str(self.replay)])


class Sums:
    """Sums of replays. Addition is exact, so any order gives the same result.

    Attributes:
        counts: nested mapping of whole numbers and fractions, which are added key by key.
        examples: first changed requests by the names of their traces.
        damaged: names of traces that could not be read, and why; the first by name.
        extremes: longest span; lowest charge of a battery and earliest end of one, None without batteries.
        notes: assumptions that are the same for all; None without a trace.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self.examples: list[tuple[str, int, Change]] = []
        self.damaged: list[tuple[str, str]] = []
        self.extremes: tuple[float, float | None, float | None] = (0.0, None, None)
        self.notes: tuple[str, ...] | None = None

    def add(self, name: str, replay: Replay, recorded: Tally, replayed: Tally) -> None:
        """Add the replay of one trace, with the latencies of both tallies as a histogram; `name` orders the examples."""
        energy = replay.energy
        one = Sums()
        one.counts = {
            "devices": 1, "skipped": replay.skipped, "untimed": replay.untimed, "unserved": replay.unserved,
            "changed": replay.changed, "recorded": _exact(replay.recorded), "replayed": _exact(replay.replayed),
            "recorded_s": _histogram(recorded), "replayed_s": _histogram(replayed), "values": replay.values._asdict(),
            "unknown": dict(replay.unknown), "refused": dict(replay.refused), "estimated": dict(replay.estimated),
            "gates": {gate: gated._asdict() for gate, gated in replay.gates.items()},
            "spent": Fraction(0) if energy is None else Fraction(energy.spent_joules),
        }  # fmt: skip
        one.examples = [(name, i, change) for i, change in enumerate(replay.examples)]
        one.extremes = replay.span_s, energy and energy.left, energy and energy.empty_after_s
        one.notes = replay.notes
        self.merge(one)

    def leave_out(self, name: str, why: str) -> None:
        """Count a trace that could not be read, and store its name and why."""
        one = Sums()
        one.counts, one.damaged = {"left_out": 1}, [(name, why)]
        self.merge(one)

    def merge(self, other: Sums) -> None:
        """Add other sums to these, in place: counts are added, the first five examples and 20 damaged traces by name stay.

        Of the extremes the longest span, lowest charge and earliest end stay; of the notes those that both have.
        """
        _add(self.counts, other.counts)
        self.examples = nsmallest(EXAMPLES, self.examples + other.examples)
        self.damaged = nsmallest(NAMED, self.damaged + other.damaged)
        (span, *low), (more, *lower) = self.extremes, other.extremes
        left, empty = (min((x for x in pair if x is not None), default=None) for pair in zip(low, lower, strict=True))
        self.extremes = max(span, more), left, empty
        ours, theirs = self.notes, other.notes
        self.notes = theirs if ours is None else tuple(note for note in ours if theirs is None or note in theirs)

    def result(self) -> FleetReplay:
        """Return the result, with quantiles from histograms and a note about them; raise BadInput if no trace could be read."""
        counts = self.counts
        if not counts.get("devices"):
            raise BadInput(f"expected traces, found {counts['left_out']:,} that cannot be read, as {self.damaged[0][1]}")
        span_s, left, empty = self.extremes
        energy = None if left is None else Energy(float(counts["spent"]), left, empty)
        replay = Replay(
            _numbers(counts["recorded"], counts["recorded_s"]), _numbers(counts["replayed"], counts["replayed_s"]),
            _sorted(counts["unknown"]), _sorted(counts["refused"]), counts["unserved"], counts["changed"],
            tuple(change for _, _, change in self.examples), Values(**counts["values"]), _sorted(counts["estimated"]),
            {name: Gated(**gated) for name, gated in sorted(counts["gates"].items())}, energy, span_s,
            counts["skipped"], counts["untimed"], (*(self.notes or ()), NOTE),
        )  # fmt: skip
        return FleetReplay(replay, counts["devices"], dict(self.damaged), counts.get("left_out", 0))


def _add(into: dict[Any, Any], more: Mapping[Any, Any]) -> None:
    """Add numbers to those of the same keys, in place, and in nested mappings likewise; a missing key counts as 0."""
    for key, value in more.items():
        if isinstance(value, dict):
            _add(into.setdefault(key, {}), value)
        else:
            into[key] = into.get(key, 0) + value


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts as a new mapping, the largest first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _exact(numbers: Numbers) -> dict[str, int | Fraction]:
    """Return totals as exact numbers, floats as fractions, without the quantiles."""
    totals = ((name, value) for name, value in numbers._asdict().items() if not name.startswith("p"))
    return {name: Fraction(value) if isinstance(value, float) else value for name, value in totals}


def _histogram(tally: Tally) -> dict[int, int]:
    """Return bucket -> number of latencies; a bucket is the upper bits of the float, and 0.02 % of its latency wide."""
    buckets, counts = np.unique(np.frombuffer(tally.latencies, np.uint64) >> np.uint64(BITS), return_counts=True)
    return dict(zip(buckets.tolist(), counts.tolist(), strict=True))


def _numbers(totals: Mapping[str, int | Fraction], buckets: Mapping[int, int]) -> Numbers:
    """Return totals as a result has them, fractions as floats, with quantiles from the middle of buckets; None without any."""
    keys = np.array([*buckets], np.uint64)
    seconds = ((keys << np.uint64(BITS)) + np.uint64(1 << (BITS - 1))).view(np.float64)
    order = np.argsort(seconds)
    ends = np.cumsum(np.array([*buckets.values()], np.int64)[order])
    at = [min(int(ends[-1]) - 1, int(q * int(ends[-1]))) for q in (0.5, 0.9, 0.99)] if len(keys) else []
    p50_s, p90_s, p99_s = seconds[order][np.searchsorted(ends, at, "right")].tolist() if at else (None, None, None)
    known: dict[str, Any] = {name: float(value) if isinstance(value, Fraction) else value for name, value in totals.items()}
    return Numbers(**known, p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


# Kernel: a chunk of traces, replayed one after the other.

Shard = tuple[str, Path]


def replay_shards(shards: Iterable[Shard], setup: Setup, options: Options, seed: int) -> Sums:
    """Replay traces one after the other, and return their sums; a trace that cannot be read is left out and named.

    Each trace draws random numbers by the seed and its name. Garbage collection is off while a trace is in memory.
    """
    sums = Sums()
    for name, path in shards:
        random = Random(f"{seed} {name}")  # noqa: S311 - simulation, not secrets
        with without_gc():
            try:
                trace = read(path)
            except (BadInput, StoreError) as e:
                sums.leave_out(name, str(e))
                continue
            replay, replayed = replay_requests(trace, setup, options, random)
            sums.add(name, replay, trace.recorded, replayed)
            del trace, replay, replayed  # freed before a collection would visit all of it
    return sums


def replay_fleet(
    folder: str | Path, policy: Setup | str | Path, *, engine: str = "local", processes: int = 0, seed: int = 0, **options: Any
) -> FleetReplay:
    """Evaluate the requests of many devices under another policy, and return the sums. Opens no model and no connection.

    Each trace below the folder is a device: its requests are replayed in order, with limits and a breaker of their own. One that
    cannot be read is left out and named. Starts processes, or Ray, which end before it returns.

    Args:
        folder: folder with the traces; with ray every node reads the same path.
        policy: a setup from `Setup.read`, or the path of a policy file.
        engine: ray: Ray Data, on the cluster that `RAY_ADDRESS` names, or on this machine; local: processes on this machine.
        processes: number of processes; 0: one for each core; 1: this process.
        seed: seed of the random numbers; each trace draws its own.
        options: as those of `replay`.

    Raises:
        BadInput: no trace, or none that can be read; the engine is unknown.
        PolicyError: the policy is invalid, or there is no such network or thermal course.
        TypeError: an option is unknown.
        EdgerouteError: a process was killed.
        RuntimeMissing: Ray or pyarrow is not installed.
    """
    if engine not in {"local", "ray"}:
        raise BadInput(f"engine is local or ray, not {engine!r}")
    given = check_options(Options(**options))
    setup = policy if isinstance(policy, Setup) else Setup.read(policy)
    shards = [*traces(Path(folder)).items()]
    processes = processes or _cores()
    kernel = partial(replay_shards, setup=setup, options=given, seed=seed)
    sums = Sums()
    for part in _parts(engine, shards, processes, kernel):
        sums.merge(part)
    return sums.result()


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parts(engine: str, shards: Sequence[Shard], processes: int, kernel: Any) -> Iterator[Sums]:
    """Yield the sums of all chunks of traces, in any order: by Ray, here for one process or one trace, or by new processes.

    Processes are spawned; those that have not begun a chunk are cancelled if the caller stops early. Raises EdgerouteError if one
    was killed.
    """
    if engine == "ray":
        yield from _on_ray(shards, kernel)
    elif processes == 1 or len(shards) == 1:
        yield kernel(shards)
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
        quiet = signal.signal, (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
        with ProcessPoolExecutor(min(processes, len(shards)), spawn, *quiet) as pool:
            try:
                yield from pool.map(kernel, _chunks(shards, CHUNKS * processes))
            except BrokenProcessPool as e:
                raise EdgerouteError("a process of the replay was killed, perhaps for its memory: try fewer --processes") from e
            finally:
                pool.shutdown(cancel_futures=True)


def _chunks(shards: Sequence[Shard], number: int) -> list[list[Shard]]:
    """Return the traces in about this number of chunks of like sizes in bytes, the largest first; a missing file counts as 0."""
    sizes = {name: sum(path.stat().st_size for path in (path,) if path.exists()) for name, path in shards}
    most = sum(sizes.values()) / number
    chunks, size = [list[Shard]()], 0.0
    for shard in sorted(shards, key=lambda shard: -sizes[shard[0]]):
        if chunks[-1] and size + sizes[shard[0]] > most:
            chunks.append([])
            size = 0.0
        chunks[-1].append(shard)
        size += sizes[shard[0]]
    return chunks


def _on_ray(shards: Sequence[Shard], kernel: Any) -> Iterator[Sums]:
    """Yield the sums of chunks of traces, each replayed by a task of Ray Data, whose progress bars and log are silenced.

    Starts Ray if it does not run, and stops it then at the end. Raises RuntimeMissing if it is not installed.
    """
    ray, data = import_needed("ray", NEED), import_needed("ray.data", NEED)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    data.DataContext.get_current().enable_progress_bars = False
    began = not ray.is_initialized()
    if began:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it sends statistics of use to its maker
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        absolute = [(name, path.absolute()) for name, path in shards]
        chunks = [{"chunk": pickle.dumps(chunk)} for chunk in _chunks(absolute, CHUNKS * cores)]
        tasks = data.from_items(chunks, override_num_blocks=len(chunks)).map(partial(_ray_task, kernel=kernel))
        for row in tasks.iter_rows():
            yield pickle.loads(row["sums"])  # noqa: S301 - of this program
    finally:
        if began:
            ray.shutdown()


def _ray_task(row: Mapping[str, Any], kernel: Any) -> dict[str, bytes]:
    """Replay the pickled chunk of a row, and return its pickled sums as a row."""
    return {"sums": pickle.dumps(kernel(pickle.loads(row["chunk"])))}  # noqa: S301 - of this program
