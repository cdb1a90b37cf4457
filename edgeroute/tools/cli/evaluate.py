"""Command `edgeroute evaluate`: measures the policy's threshold on examples, prints if its guarantee held; writes a report."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from math import isnan
from typing import TYPE_CHECKING, Any, Literal

from edgeroute.errors import BadInput, RuntimeMissing
from edgeroute.tools.cli import example_options_and_routers as shared
from edgeroute.tools.cli import tables_and_options as ui

if TYPE_CHECKING:
    from edgeroute.router.router import Router
    from edgeroute.tools.measure.report.report_pages_and_results import EvaluationResult
    from edgeroute.tools.measure.threshold_evaluation import Evaluation


def evaluate(
    *,
    policy: ui.Policy,
    data: shared.Data,
    report: ui.File | None = None,
    no_cloud: bool = False,
    every: shared.Every = 1,
    edge: shared.EdgeNumber = None,
    data_class: shared.DataClass = None,
    label: shared.LabelColumn = None,
    batch: ui.Count = 1,
    edge_usd: ui.Amount | None = None,
    edge_joules: ui.Amount | None = None,
    as_json: ui.Json = False,
) -> None:
    """Evaluate the policy's threshold on examples: accuracy, deferrals, latency, cost, and whether its guarantee held.

    Both edge and cloud are called for every example, whatever the threshold.

    Without labels, correct means agreeing with the cloud.

    Args:
        report: Also write the report as an HTML page.
        no_cloud: Run the edge alone: nothing leaves the device.
        batch: Inputs in one request to the cloud. With more than one its latency is not measured.
        edge_usd: Cost of a run of the edge, for the break-even.
        edge_joules: Energy of a run of the edge.

    Recorded outputs are evaluated without a run of a model. A report that cannot be written is refused before the examples are
    run.

    Raises:
        BadInput: the examples are graded answers, or cannot be read.
        PolicyError: the policy has a cloud and no threshold.
        RuntimeMissing: a report is wanted, and matplotlib is not installed.
        typer.BadParameter: the report's folder does not exist, or another file has its name.
    """
    from edgeroute.tools.cli.read_and_certify_graded_answers import read_graded
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import seen_before

    if report is not None:
        ui.check_output(report, ui.REPORT, "--report")
        if find_spec("matplotlib") is None:
            raise RuntimeMissing("--report draws with matplotlib, which is not installed: pip install 'edgeroute[demo]'")
    if read_graded(data, every) is not None:
        raise BadInput("graded answers are for `calibrate`: pass inputs, or recorded outputs")
    options: dict[str, Any] = {"edge": edge, "edge_usd": edge_usd, "edge_joules": edge_joules}
    with shared.plain_router(policy) as router:
        examples = shared.read_examples(data, every, router, label, data_class=data_class)
        if no_cloud:
            examples = examples._replace(cloud=None)
        if examples.groups is not None:
            note = "the array 'groups' is not used: examples count as independent, so the intervals are too narrow"
            examples.notes.append(note)
        if examples.recorded:
            result = _evaluate_recorded(router, examples, **options)
        else:
            options |= {"ask_cloud": not no_cloud, "data_class": examples.data_class, "batch": batch}
            with shared.named_by_file(examples.names):
                result = router.evaluate(examples.inputs, examples.labels, **options)
    names = result.evaluation.names._replace(policy=policy.name, data=", ".join(file.name for file in data))
    result = replace(result, evaluation=result.evaluation._replace(names=names), notes=[*examples.notes, *result.notes])
    if report is not None:
        result.save(report)
    if as_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
        return
    ui.print_notes(filter(None, [*result.notes, seen_before(result.evaluation)]))
    _show(result.evaluation)
    if report is not None:
        print(f"written to {report}")


def _evaluate_recorded(
    router: Router, recorded: shared.FileExamples, edge: int | Literal["all"] | None, **costs: float | None
) -> EvaluationResult:
    """Evaluate the policy's threshold on recorded outputs of one edge model, and of the cloud; runs no model.

    Raises:
        typer.BadParameter: `edge` is "all".
        PolicyError: the policy has a cloud and no threshold.
    """
    from edgeroute.tools.measure.calibrate_evaluate_and_read_data import answer_notes, check_threshold, evaluate_examples
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls, recorded_examples
    from edgeroute.tools.measure.report.report_pages_and_results import EvaluationResult

    calls = DirectCalls(router.engine, shared.one_edge(edge, "recorded outputs"))
    check_threshold(calls)
    examples = recorded_examples(calls, recorded.edge, recorded.cloud, recorded.labels)
    result = evaluate_examples(calls, examples)._replace(**costs)  # type: ignore[arg-type]
    return EvaluationResult(result, answer_notes(result))


def _show(evaluation: Evaluation) -> None:
    """Print accuracy and latency of each side, threshold, deferrals, costs, and in words if the guarantee held."""
    from edgeroute.tools.measure.certification_and_verdicts import verdicts
    from edgeroute.tools.measure.report import numbers_verdicts_and_table_rows as words

    examples, certificate = evaluation.examples, evaluation.certificate
    ui.table(*words.side_rows(evaluation), ("",))
    rows: list[tuple[str, object]] = [
        ("examples", f"{evaluation.n:,}" + ("" if evaluation.labelled else ", without labels")),
        ("threshold", words.levels(evaluation.threshold, evaluation.thresholds, evaluation.ladder)),
        ("deferred", f"{words.percent(evaluation.deferral.value)} ({words.interval(evaluation.deferral)})"),
    ]
    if (accepted := evaluation.accuracy().get("accepted")) is not None:
        rows.append(("right where accepted", f"{words.percent(accepted.value)} ({words.interval(accepted)})"))
    if examples.sent_bytes or examples.usd:
        sizes = f"{words.size(examples.sent_bytes)} sent, {words.size(examples.received_bytes)} received"
        rows.append(("the cloud for all", sizes + (f", ${examples.usd:,.4g}" if examples.usd else "")))
    if (area := evaluation.area()) is not None and not isnan(area.value):
        rows.append(("score's area", words.ranking(area)))
    if certificate is not None:
        rows.append(("guarantee", certificate.label))
    ui.pairs(rows)
    short, long = words.verdict(evaluation, verdicts(evaluation))
    ui.console().print(f"{short} {long}", markup=False)
