"""Packages of others, run on draws of `promises.py`: `python promise_peers.py draws.npz`, in an environment that has them.

Prints a line of JSON for each package, draw and limit: how many examples of the draw it accepts, and its seconds; or why it cannot
run. Needs none of this project, and no request leaves the machine.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from math import ceil, log
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

DELTA = 0.05
Array = Any
TIME = "2026-01-01T00:00:00Z"
FEATURES = {
    "version": 2, "task_kind": "other", "prompt_token_bucket": 0, "tool_count": 0, "has_images": False, "session_failure_count": 0,
    "hour_bucket": 0,
}  # fmt: skip


class Examples(NamedTuple):
    """Examples of one draw."""

    rank: Array
    """[n], scores as ranks, 0..1, higher for surer."""
    harm: Array
    """[n], True where the cloud alone is right."""
    differ: Array
    """[n], True where the answers differ; empty: not known."""

    def accepted(self, threshold: float) -> int:
        """Return the number of examples that a threshold accepts."""
        return int((self.rank >= threshold).sum())


def shrewd(one: Examples, eps: float) -> int:
    """Its `pick_threshold`, of the answers that differ."""
    from shrewd.route import pick_threshold

    return one.accepted(pick_threshold(one.rank, one.differ, budget=eps, delta=DELTA)[0])


def calibroute(one: Examples, eps: float) -> int:
    """Return how many examples calibroute's `fit_policy` accepts; 0 where it raises because nothing passes."""
    from calibroute.models import PredictionRecord
    from calibroute.policy import fit_policy

    records = [PredictionRecord(f"{i}", float(c), not bad) for i, (c, bad) in enumerate(zip(one.rank, one.harm, strict=True))]
    try:
        policy = fit_policy(records, max_risk=eps, confidence_level=1 - DELTA)
    except ValueError as e:
        if "no validation operating point" in str(e):
            return 0
        raise
    return one.accepted(policy.accept_threshold)


def mapie(one: Examples, eps: float) -> int:
    """Return how many examples MAPIE's controller accepts, with the risk that an answer is accepted and a harm; 0 if it finds nothing."""
    from mapie.risk_control import BinaryClassificationController, BinaryRisk

    def everything(right: Array, accepted: Array) -> Array:
        """Counts each example."""
        return np.ones(np.broadcast(right, accepted).shape, bool)

    loss = BinaryRisk(lambda right, accepted: (right == 0) & (accepted == 1), everything, higher_is_better=False)
    kept = BinaryRisk(lambda _, accepted: accepted == 1, everything, higher_is_better=True)
    controller = BinaryClassificationController(
        lambda x: np.stack([1 - x, x], 1), loss, eps, confidence_level=1 - DELTA, best_predict_param_choice=kept
    ).calibrate(one.rank, 1 - one.harm)
    best = controller.best_predict_param
    return 0 if best is None else one.accepted(best)


def firstpass(one: Examples, eps: float, *options: str) -> int:
    """Run `firstpass calibrate` on a store of served requests with feedback, as its proxy writes them; return how many it serves.

    Adds the program's seconds to `TOOK`. Raises ValueError with what it printed if that is no result.
    """
    program = Path(sysconfig.get_path("scripts")) / "firstpass"
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "firstpass.db"
        _store(store, one)
        given = [str(program), "calibrate", "--alpha", str(eps), "--delta", str(DELTA), *options]
        environ = {**os.environ, "FIRSTPASS_DB": str(store), "HOME": folder}
        begun = time.perf_counter()
        printed = subprocess.run(given, env=environ, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stdout
        TOOK.append(time.perf_counter() - begun)
    found = re.search(r"pairs: (\d+) \((\d+) served at threshold\)", printed)
    if not found or int(found[1]) != len(one.rank):
        raise ValueError(printed.strip().replace("\n", "; "))
    return int(found[2])


TOOK: list[float] = []
"""Seconds of the program alone, without its store's writing."""


def _store(path: Path, one: Examples) -> None:
    """Write the database that `calibrate` reads: a trace for each request, with the gate's score, and the verdict that came later."""
    rows, verdicts = [], []
    for i, (score, bad) in enumerate(zip(one.rank.tolist(), one.harm.tolist(), strict=True)):
        name = str(UUID(int=(7 << 76) | (2 << 62) | (i + 1)))
        gate = {"gate_id": "score", "verdict": "pass", "score": score, "cost_usd": 0.0, "ms": 1}
        attempt = {
            "rung": 0, "model": "local/edge", "provider": "local", "in_tokens": 1, "out_tokens": 1, "cost_usd": 0.0, "latency_ms": 1,
            "gates": [gate], "verdict": "pass",
        }  # fmt: skip
        final = {
            "served_rung": 0, "served_from": "attempt", "total_cost_usd": 0.0, "gate_cost_usd": 0.0, "total_latency_ms": 1,
            "escalations": 0, "counterfactual_baseline_usd": 0.0, "savings_usd": 0.0,
        }  # fmt: skip
        trace = {
            "trace_id": name, "prev_hash": "0" * 64, "tenant_id": "default", "session_id": "s", "ts": TIME, "mode": "enforce",
            "policy": {"id": "static@v0", "explore": False},
            "request": {"api": "anthropic.messages", "prompt_hash": "0", "features": FEATURES},
            "attempts": [attempt], "final": final,
        }  # fmt: skip
        rows.append((name, TIME, "0" * 64, "0" * 64, "default", "s", json.dumps(trace)))
        verdicts.append((name, "feedback", "fail" if bad else "pass", TIME, "me"))
    with sqlite3.connect(path) as store:
        store.executescript(
            "CREATE TABLE traces (seq INTEGER PRIMARY KEY AUTOINCREMENT, trace_id TEXT NOT NULL, ts TEXT NOT NULL, prev_hash TEXT NOT NULL,"
            " hash TEXT NOT NULL, tenant TEXT NOT NULL, session TEXT NOT NULL, body TEXT NOT NULL);"
            "CREATE TABLE deferred_verdicts (id INTEGER PRIMARY KEY AUTOINCREMENT, trace_id TEXT NOT NULL, gate_id TEXT NOT NULL,"
            " verdict TEXT NOT NULL, score REAL, reported_at TEXT NOT NULL, reporter TEXT NOT NULL);"
            "CREATE INDEX deferred_trace_idx ON deferred_verdicts(trace_id);"
        )
        store.executemany(
            "INSERT INTO traces (trace_id, ts, prev_hash, hash, tenant, session, body) VALUES (?,?,?,?,?,?,?)", rows
        )
        store.executemany(
            "INSERT INTO deferred_verdicts (trace_id, gate_id, verdict, reported_at, reporter) VALUES (?,?,?,?,?)", verdicts
        )
    store.close()


def firstpass_ltt(one: Examples, eps: float) -> int:
    """The program with `--method ltt`, from as many served requests on as can be certified without a harm."""
    return firstpass(one, eps, "--method", "ltt", "--min-n", str(ceil(log(DELTA) / log(1 - eps))))


PACKAGES: dict[str, tuple[str, Callable[..., int]]] = {
    "shrewd 0.3": ("shrewd", shrewd),
    "calibroute-ai 0.4": ("calibroute-ai", calibroute),
    "MAPIE 1.6": ("mapie", mapie),
    "firstpass 0.9": ("firstpass", firstpass),
    "firstpass 0.9, `--method ltt --min-n 299` (149)": ("firstpass", firstpass_ltt),
}
"""Row of the table -> package, and how to run it."""


def main() -> None:
    """Run each package on each draw of the file, and print a line of JSON for each; a package's first failure ends its lines."""
    if len(sys.argv) < 2:
        sys.exit("needs a file of draws: promises.py --packages PYTHON starts this program")
    with np.load(sys.argv[1]) as file:
        limits = file["eps"].tolist()
        draws = [Examples(*(file[f"{name}{i}"] for name in Examples._fields)) for i in range(len(limits))]
    for row, (package, run) in PACKAGES.items():
        for i, eps in enumerate(limits):
            if not draws[i].differ.size and package == "shrewd":
                continue
            TOOK.clear()
            begun = time.perf_counter()
            try:
                accepts = run(draws[i], eps)
                found = {
                    "accepts": accepts,
                    "seconds": TOOK[0] if TOOK else time.perf_counter() - begun,
                    "version": version(package),
                }
            except Exception as e:  # noqa: BLE001 - one package's failure costs its own lines alone
                print(json.dumps({"row": row, "failed": f"{type(e).__name__}: {e}"[:300]}), flush=True)
                break
            print(json.dumps({"row": row, "draw": i, **found}), flush=True)


if __name__ == "__main__":
    main()
