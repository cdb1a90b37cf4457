"""Summary of `infer`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgeroute.cli.inputs import Item
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
        console, total = Console(), self.answered
        for line in self._first:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if total > FIRST:
            console.print(f"and {total - FIRST:,} more; --json shows them all", highlight=False)
        table = Table(show_header=False)
        table.add_row("answered", f"{total:,}" + (f", and {failed:,} failed" if failed else ""))
        for source in ("edge", "cloud"):
            count = self.sources[source]
            table.add_row(f"by the {source}", f"{count:,}" + (f" ({count / total:.1%})" if total else ""))
        table.add_row("degraded", f"{self.degraded:,}")
        table.add_row("asked the cloud", f"{stats.deferral_rate:.1%} of requests")
        if total:
            p50, p90, p99 = (f"{value * 1000:,.2f}" for value in np.quantile(self._latencies, (0.5, 0.9, 0.99)))
            table.add_row("latency, ms", f"p50 {p50}, p90 {p90}, p99 {p99}" + (f" (batches of {batch})" if batch > 1 else ""))
        table.add_row("bytes", f"{stats.bytes_sent:,} sent, {stats.bytes_received:,} received")
        if self.labelled:
            table.add_row("accuracy", f"{self.right / self.labelled:.2%} of {self.labelled:,} with a label")
        console.print(table)


def _right(answer: Answer, label: Any) -> bool:
    """Whether an answer is correct. A number as label is a class index, whatever the names of the classes."""
    if isinstance(label, int) and isinstance(answer.value, str):
        outputs = answer.outputs
        return int(np.argmax(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs)) == label
    return bool(answer.value == label)
