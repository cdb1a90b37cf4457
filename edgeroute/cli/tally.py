"""Summary of `infer`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from edgeroute.cli.inputs import Item
from edgeroute.cli.tables import console, pairs
from edgeroute.core.texts import printable
from edgeroute.observe.stats import Stats
from edgeroute.types import Answer

FIRST = 10
"""Maximum number of answers shown individually."""


class Tally:
    """Counts answers, and stores only the first few."""

    def __init__(self) -> None:
        self.sources: Counter[str] = Counter()
        self.degraded = self.labelled = self.right = 0
        self._first: list[str] = []
        self._latencies: list[float] = []

    @property
    def answered(self) -> int:
        """Number of answers."""
        return len(self._latencies)

    def add(self, item: Item, answer: Answer) -> None:
        """Counts one answer."""
        self.sources[answer.source] += 1
        self.degraded += answer.degraded
        self._latencies.append(answer.latency_s)
        if len(self._first) < FIRST:
            self._first.append(printable(f"{item.name}: {answer.value}  ({answer.reason})"))
        if item.label is not None:
            self.labelled += 1
            self.right += _right(answer, item.label)

    def show(self, stats: Stats, *, failed: int, batch: int) -> None:
        """Prints the summary. stats: of the router that answered; batch: inputs answered together."""
        out, total = console(), self.answered
        for line in self._first:
            out.print(line, markup=False, soft_wrap=True)
        if total > FIRST:
            out.print(f"and {total - FIRST:,} more; --json shows them all")
        rows = list[tuple[str, object]]()
        rows.append(("answered", f"{total:,}" + (f", and {failed:,} failed" if failed else "")))
        for source in ("edge", "cloud"):
            count = self.sources[source]
            rows.append((f"by the {source}", f"{count:,}" + (f" ({count / total:.1%})" if total else "")))
        rows.append(("degraded", f"{self.degraded:,}"))
        rows.append(("asked the cloud", f"{stats.deferral_rate:.1%} of requests"))
        if total:
            p50, p90, p99 = (f"{value * 1000:,.2f}" for value in np.quantile(self._latencies, (0.5, 0.9, 0.99)))
            rows.append(("latency, ms", f"p50 {p50}, p90 {p90}, p99 {p99}" + (f" (batches of {batch})" if batch > 1 else "")))
        rows.append(("bytes", f"{stats.bytes_sent:,} sent, {stats.bytes_received:,} received"))
        if self.labelled:
            rows.append(("accuracy", f"{self.right / self.labelled:.2%} of {self.labelled:,} with a label"))
        pairs(rows)


def _right(answer: Answer, label: Any) -> bool:
    """Whether an answer is correct. A number as label is a class index, whatever the names of the classes."""
    if isinstance(label, int) and isinstance(answer.value, str):
        outputs = answer.outputs
        return int(np.argmax(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs)) == label
    return bool(answer.value == label)
