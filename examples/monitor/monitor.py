"""The monitor: recordings in, answers and alarms out. This is the part to copy into your own program."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from math import exp, log
from pathlib import Path
from threading import Condition
from typing import Any, NamedTuple

import numpy as np
from alarms import Alarm, Alarms
from bands import bands

from edgeroute import Answer, CloudError, NoAnswer, Router
from edgeroute.stores.outbox import Late

Array = np.ndarray[Any, np.dtype[Any]]
POLICY = Path(__file__).parent / "policy.toml"
DATA_CLASS = "vibration"
"""What raw samples are: the policy lets them leave. From them it can be told when a factory works, so the class is its own."""


def odds(logits: Array) -> float:
    """Return the log-odds that the machine is not well, of the small model's logits: normal, attention, fault."""
    normal, *other = (float(value) for value in logits)
    return max(other) + log(sum(exp(value - max(other)) for value in other)) - normal


def well(logits: Array) -> float:
    """Return the confidence: the probability that the machine is well.

    What is not surely well goes to the larger model, faults too.
    """
    return 1 / (1 + exp(min(700.0, odds(logits))))


class Seen(NamedTuple):
    """What became of a recording."""

    answers: Sequence[Answer[str]]
    """One for each window; none where nobody answered."""
    alarm: Alarm | None
    """An alarm that has just gone off."""


class Monitor:
    """Watches one machine with a router. Late answers come by themselves, also those to windows of an earlier run.

    Attributes:
        alarms: the alarms.
        waiting: ids of this run's windows whose final answer is still to come.
    """

    def __init__(self, router: Router[str]) -> None:
        self.router, self.alarms = router, Alarms()
        self.waiting: set[str] = set()
        self._changed = Condition()
        self._came: list[Late] = []
        router.on_late(self._on_late)

    def see(self, at_h: float, windows: Array) -> Seen:
        """Ask the router about a recording, int16 [windows, 2048, 3], of that hour; return answers, and the alarm if it goes off.

        Late answers that have come correct their windows. There are no answers if only the cloud may answer, and is away.
        """
        inputs = [{"bands": small, "raw": raw} for small, raw in zip(bands(windows), windows, strict=True)]
        try:
            answers = self.router.infer_many(inputs, data_class=DATA_CLASS)
        except (NoAnswer, CloudError):  # nobody answered: `only_cloud`, and the link is down
            answers = []
        with self._changed:
            came, self._came = self._came, []
            for answer in answers:
                self.alarms.note(answer.id, answer.value)
                if not answer.final:
                    self.waiting.add(answer.id)
            for late in came:
                self.alarms.correct(late.id, late.value)
                self.waiting.discard(late.id)  # it may have come before its window was noted
        return Seen(answers, self.alarms.look(at_h))

    def settled(self, timeout_s: float) -> bool:
        """Waits until no answer to this run's windows is still to come -> whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.waiting, timeout_s)

    def _on_late(self, late: Late, tx: Any) -> None:
        """Store a late answer, and keep it for the next recording. Called exactly once.

        What is written through `tx` is committed together with the record that this was called.
        """
        # without a key: an answer that were handed over twice would be there twice, and be seen
        tx.execute("CREATE TABLE IF NOT EXISTS diagnoses (id TEXT, kind TEXT, confidence REAL, provisional TEXT, at REAL)")
        values = late.id, late.value, late.confidence, str((late.provisional or {}).get("value")), late.answered_at
        tx.execute("INSERT INTO diagnoses VALUES (?, ?, ?, ?, ?)", values)
        with self._changed:  # they may hear of it twice: its commit can fail
            self.waiting.discard(late.id)
            self._came.append(late)
            self._changed.notify_all()


def diagnoses(state: Path) -> list[tuple[str, str]]:
    """Return the late answers that were handed over: ids and kinds; none before the outbox has a file. Only reads the file."""
    if not (state / "outbox.db").exists():
        return []
    with closing(sqlite3.connect(f"file:{state / 'outbox.db'}?mode=ro", uri=True)) as file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'diagnoses'").fetchone():
            return []
        return file.execute("SELECT id, kind FROM diagnoses ORDER BY rowid").fetchall()
