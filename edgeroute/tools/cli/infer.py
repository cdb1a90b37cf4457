"""Command `edgeroute infer`: answers inputs from files, delivers the outbox meanwhile, and prints a summary (`Tally`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import EdgerouteError, ModelMissing, PolicyError, RuntimeMissing
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.tools.cli.command_runner import FAILED, NO_ANSWER, OK, code_of, line
from edgeroute.tools.cli.example_options_and_routers import DataClass, LabelColumn, edge_columns, edge_labels
from edgeroute.tools.cli.tables_and_options import Count, Json, Policy, Seconds, console, pairs
from edgeroute.tools.data_classes_of_records import stricter

if TYPE_CHECKING:
    from edgeroute.confidence.output_forms_labels_and_comparison import Labels
    from edgeroute.observe.stats_and_status_types import Stats
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.labelled_table_reader import Item
    from edgeroute.types import Answer


# Summary of `infer`.

FIRST = 10  # most answers shown individually


class Tally:
    """Counter of answers; only the first few are stored.

    Args:
        names: names of the edge model's classes; None: unknown.
    """

    def __init__(self, names: Sequence[Any] | None = None) -> None:
        from edgeroute.confidence.output_forms_labels_and_comparison import Labels

        self._names = Labels(names, "the edge model")
        self.sources: Counter[str] = Counter()
        self.degraded = self.labelled = self.right = 0
        self._first: list[str] = []
        self._latencies: list[float] = []

    @property
    def answered(self) -> int:
        """Number of answers."""
        return len(self._latencies)

    def add(self, item: Item, answer: Answer) -> None:
        """Count an answer by source, with latency, and as right if it fits the item's label; store the text of the first ten."""
        self.sources[answer.source] += 1
        self.degraded += answer.degraded
        self._latencies.append(answer.latency_s)
        if len(self._first) < FIRST:
            self._first.append(printable(f"{item.name}: {answer.value}  ({answer.reason})"))
        if item.label is not None:
            self.labelled += 1
            self.right += _right(answer, item.label, self._names)

    def show(self, stats: Stats, *, failed: int, batch: int, outbox: str = "") -> None:
        """Print the first answers, then a table: answers by source, degraded, deferred, latencies, bytes, outbox and accuracy.

        Args:
            stats: of the router that answered.
            failed: number of inputs without an answer.
            batch: number of inputs answered together.
            outbox: text on the queued requests; empty: there is no outbox.
        """
        import numpy as np

        out, total = console(), self.answered
        for text in self._first:
            out.print(text, markup=False, soft_wrap=True)
        if total > FIRST:
            out.print(f"and {total - FIRST:,} more; --json shows them all")
        rows = list[tuple[str, object]]()
        rows.append(("answered", f"{total:,}" + (f", and {failed:,} failed" if failed else "")))
        for source in ("edge", "cloud"):
            count = self.sources[source]
            rows.append((f"by the {source}", f"{count:,}" + (f" ({100 * count / total:.1f} %)" if total else "")))
        rows.append(("degraded", f"{self.degraded:,}"))
        rows.append(("deferred", f"{stats.deferral_rate * 100:.1f} % of requests"))
        if total:
            p50, p90, p99 = (f"{value * 1000:,.2f}" for value in np.quantile(self._latencies, (0.5, 0.9, 0.99)))
            rows.append(("latency, ms", f"p50 {p50}, p90 {p90}, p99 {p99}" + (f" (batches of {batch})" if batch > 1 else "")))
        rows.append(("bytes", f"{stats.bytes_sent:,} sent, {stats.bytes_received:,} received"))
        if outbox:
            rows.append(("outbox", outbox))
        if self.labelled:
            rows.append(("accuracy", f"{100 * self.right / self.labelled:.2f} % of {self.labelled:,} with a label"))
        pairs(rows)


def _right(answer: Answer, label: Any, names: Labels) -> bool:
    """Return True if an answer equals the label.

    A number as label of named classes, and the name of none, is the index of the largest output.
    """
    import numpy as np

    from edgeroute.confidence.output_forms_labels_and_comparison import same

    is_name = names.labels is not None and names.same(label) in names.labels
    if isinstance(label, int) and isinstance(answer.value, str) and answer.value != str(label) and not is_name:
        outputs = answer.outputs
        return int(np.argmax(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs)) == label
    return same(answer.value, label)


def infer(
    given: Annotated[list[Path], typer.Argument(metavar="INPUTS...", show_default=False)],
    *,
    policy: Policy,
    mode: str | None = None,
    deadline: Seconds | None = None,
    data_class: DataClass = None,
    label: LabelColumn = None,
    batch: Count = 1,
    as_json: Json = False,
) -> int:
    """Answer inputs, and deliver what waits in the outbox meanwhile. A failed input does not stop the others.

    Args:
        given: .npy, .npz, .png, .jpg, .csv and .parquet files, and folders of them; each row of a table or .npz is an input. `-`
            is stdin: one such file, or a line of JSON for each input.
        mode: Instead of the policy's.
        deadline: Instead of the policy's, as in 300ms.
        batch: Inputs to answer together.

    Shows a progress bar. Prints the first answers and a summary, or with --json each answer as a line at once; errors and notes
    go to stderr. Returns exit code 3 if no input has an answer, for lack of models and clouds that answer; 1 if another failed.

    Raises:
        PolicyError, ModelMissing, RuntimeMissing: no input could be answered.
    """
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.inputs_labels_and_outputs import expand_folders, folder_labels, read_inputs
    from edgeroute.tools.measure.report.progress_bar import bar

    failures = list[EdgerouteError]()
    paths = expand_folders(given)
    with Router.from_policy(policy) as router, bar() as progress:
        keys, fitted = router.engine.snapshot.views.keys, edge_columns(router)
        task, tally = progress.add_task("answering", total=len(paths)), Tally(edge_labels(router))

        def report_failure(error: EdgerouteError, **about: str) -> None:
            """Print an error above the progress bar and count it."""
            failures.append(error)
            progress.print(line(error, as_json=as_json, **about), markup=False, highlight=False, soft_wrap=True)

        def report_in_file(path: Path, error: EdgerouteError) -> None:
            """Print an error in a file, whose message contains the path, and count it."""
            report_failure(error, **({"input": str(path)} if as_json else {}))

        def print_note(note: str) -> None:
            """Print a note above the progress bar, as JSON with --json."""
            text = json.dumps({"note": note}) if as_json else printable(note)
            progress.print(text, markup=False, highlight=False, soft_wrap=True)

        def items() -> Iterator[Item]:
            """Yield the inputs of all files; report files that cannot be read."""
            total, by_class = len(paths), folder_labels(given, edge_labels(router), print_note)
            for path in paths:
                total -= 1
                in_file = partial(report_in_file, path)
                try:
                    for item in read_inputs(path, keys, print_note, label, fitted, in_file):
                        total += 1
                        progress.update(task, total=total)
                        yield item._replace(label=by_class[path]) if path in by_class else item
                except EdgerouteError as e:
                    in_file(e)

        before = router.status().outbox or {"waiting": 0}
        if before["waiting"] and not as_json:
            print_note(f"the outbox is delivered to the cloud while this runs: {before['waiting']:,} waiting")
        for item, answer in _answers(router, items(), batch, {"mode": mode, "deadline": deadline, "data_class": data_class}):
            progress.advance(task)
            if isinstance(answer, EdgerouteError):
                report_failure(answer, input=item.name)
                continue
            tally.add(item, answer)
            if as_json:
                print(json.dumps(_plain(item, answer), allow_nan=False), flush=True)
        stats, queue = router.stats(), router.status().outbox
    if not as_json:
        outbox = "" if queue is None else "cannot be read now"
        if queue:
            outbox = f"{queue['delivered'] - before.get('delivered', 0):,} delivered meanwhile, {queue['waiting']:,} waiting"
        tally.show(stats, failed=len(failures), batch=batch, outbox=outbox)
    if failures and not tally.answered and all(code_of(e) == NO_ANSWER for e in failures):
        return NO_ANSWER
    return FAILED if failures else OK


def _answers(
    router: Router, items: Iterator[Item], batch: int, options: dict[str, Any]
) -> Iterator[tuple[Item, Answer | EdgerouteError]]:
    """Answer the inputs in batches, each of one data class, and yield each with its answer.

    A batch that fails is answered one by one, with errors.

    Raises:
        PolicyError, ModelMissing, RuntimeMissing: the error would recur for each input.
    """
    rules, named = router.engine.snapshot.policy.rules, options["data_class"]
    for data_class, alike in groupby(items, lambda item: stricter(rules, named, item.data_class)):
        while group := [*islice(alike, batch)]:
            yield from _batch(router, group, {**options, "data_class": data_class})


def _batch(router: Router, group: list[Item], options: dict[str, Any]) -> Iterator[tuple[Item, Answer | EdgerouteError]]:
    """Answer inputs together, or one by one where that fails, and yield each with its answer or error; raises as `_answers`."""
    answers: list[Answer] = []
    if len(group) > 1:
        with suppress(EdgerouteError):  # an invalid input fails the whole batch: answer each alone
            answers = router.infer_many([item.x for item in group], **options)
    yield from zip(group, answers, strict=False)
    for item in group[len(answers) :]:
        try:
            yield item, router.infer(item.x, **options)
        except (PolicyError, ModelMissing, RuntimeMissing):  # noqa: PERF203 - one input must not lose the others, unless it recurs
            raise
        except EdgerouteError as e:
            yield item, e


def _plain(item: Item, answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON data, without its outputs."""
    return {
        "id": answer.id,
        "input": item.name,
        "value": to_json_types(answer.value),
        "source": answer.source,
        "confidence": to_json_types(answer.confidence),
        "degraded": answer.degraded,
        "reason": answer.reason,
        "malformed": answer.malformed,
        "latency_s": round(answer.latency_s, 6),
    }
