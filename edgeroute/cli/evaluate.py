from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from math import inf, isnan
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute import system
from edgeroute.cli.examples import Data, DataClass, EdgeNumber, Every, examples, given, plain
from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json, Policy
from edgeroute.cli.tables import console, pairs, table
from edgeroute.core.explain import finite
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing, StoreError

if TYPE_CHECKING:
    from edgeroute.confidence.area import Area
    from edgeroute.report.evaluation.evaluation import Evaluation
    from edgeroute.report.evaluation.examples import Examples
    from edgeroute.report.evaluation.share import Share
    from edgeroute.router.router import Router


def evaluate(
    *,
    policy: Policy,
    data: Data,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to show, as HTML, too.", show_default=False)
    ] = None,
    no_cloud: Annotated[bool, typer.Option("--no-cloud", help="Run the edge alone: nothing leaves the device.")] = False,
    every: Every = 1,
    edge: EdgeNumber = 0,
    data_class: DataClass = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Inputs in one request to the cloud. Of more than one its latency is not measured.")
    ] = 1,
    edge_usd: Annotated[
        float | None, typer.Option(min=0, help="What a run of the edge costs, for the break-even.", show_default=False)
    ] = None,
    edge_joules: Annotated[float | None, typer.Option(min=0, help="Likewise, of energy.", show_default=False)] = None,
    as_json: Json = False,
) -> int:
    """Evaluates the policy's threshold on examples: accuracy, deferrals, latency, cost, and whether its guarantee held.

    Both edge and cloud are called for every example, whatever the threshold.

    Without labels, correct means agreeing with the cloud.
    """
    from edgeroute.cli.graded import graded

    if report is not None:
        _may_write(report)
    if graded(data, every) is not None:
        raise BadInput("graded answers can be calibrated on, and are not evaluated: give inputs, or recorded outputs")
    found = given(data, every)
    if no_cloud:
        found = found._replace(cloud=None)
    with plain(policy) as router:
        ask_cloud = not no_cloud and bool(router.engine.snapshot.clouds)
        made, notes = examples(router, found, edge=edge, ask_cloud=ask_cloud, data_class=data_class, batch=batch)
        evaluation = _evaluation(router, made, edge, policy, data)._replace(edge_usd=edge_usd, edge_joules=edge_joules)
    from edgeroute.report.words import seen_before

    if report is not None:
        from edgeroute.report.page import write

        try:
            write(evaluation, report)
        except OSError as e:
            raise StoreError(f"{report} cannot be written: {e.strerror or e}") from e
    if as_json:
        print(json.dumps(_numbers(evaluation, notes), allow_nan=False))
        return OK
    for note in notes:
        print(note, file=sys.stderr)
    if seen := seen_before(evaluation):
        print(seen, file=sys.stderr)
    _show(evaluation)
    if report is not None:
        print(f"written to {report}")
    return OK


def _may_write(report: Path) -> None:
    """Checks that the report can be written before all inputs are answered.

    Raises:
        RuntimeMissing: the plotting library is not installed.
    """
    if not report.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {report.parent}", param_hint="--report")
    if find_spec("matplotlib") is None:
        raise RuntimeMissing("--report draws with matplotlib, which is not installed: pip install 'edgeroute[demo]'")


def _evaluation(router: Router, made: Examples, edge: int, policy: Path, data: list[Path]) -> Evaluation:
    from edgeroute.edge.members import member
    from edgeroute.report.evaluation.collect import edge_runner
    from edgeroute.report.evaluation.evaluation import Evaluation, Names

    runner, snapshot = edge_runner(router, edge), router.engine.snapshot
    i = snapshot.backends.index(runner)
    target, promise = snapshot.targets[i], snapshot.certificates[i]
    if target.threshold is None and snapshot.clouds:
        raise PolicyError(f"{policy}: there is no threshold in it to evaluate: `edgeroute calibrate` finds one")
    path, score = Path(member(runner.model, "path") or ""), runner.reader.score
    names = Names(
        edge=runner.model.name,
        cloud=", ".join(cloud.where for cloud in snapshot.clouds),
        score=score if isinstance(score, str) else getattr(score, "name", "function"),
        policy=policy.name,
        data=", ".join(file.name for file in data),
        date=strftime("%Y-%m-%d", gmtime(system.now())),
        edge_bytes=path.stat().st_size if path.is_file() else None,
    )
    found = Evaluation(
        made,
        -inf if target.threshold is None else target.threshold,
        target.thresholds,
        None if promise is None else promise.certificate,
        "" if promise is None else promise.broken() or "",
        names,
        accept_unsure=snapshot.policy.no_confidence == "accept",
    )
    return found._replace(terms=snapshot.clouds[0].terms) if snapshot.clouds else found


def _numbers(evaluation: Evaluation, notes: list[str]) -> dict[str, Any]:
    """Numbers for programs. Shares 0..1, with their 95 % intervals; times in seconds."""
    from edgeroute.report.evaluation.evaluation import QUANTILES
    from edgeroute.report.evaluation.promise import verdicts

    made, certificate = evaluation.examples, evaluation.certificate
    return {
        "n": evaluation.n,
        "labelled": evaluation.labelled,
        "threshold": finite(evaluation.threshold),
        "thresholds": {label: finite(t) for label, t in evaluation.thresholds.items()},
        "accuracy": {side: _share(found) for side, found in evaluation.accuracy().items()},
        "deferral": _share(evaluation.deferral),
        "latency_s": {
            leg: {f"p{q * 100:g}": t for q, t in zip(QUANTILES, times, strict=True)}
            for leg, times in evaluation.latency().items()
        },
        "sent_bytes": made.sent_bytes,
        "received_bytes": made.received_bytes,
        "usd": made.usd,
        "promise": None if certificate is None else certificate.label,
        "uncalibrated": evaluation.uncalibrated,
        "seen_before": evaluation.seen_before,
        "area": _area(evaluation.area()),
        "held": [{**one._asdict(), "held": one.held, "broken": one.broken} for one in verdicts(evaluation)],
        "notes": notes,
    }


def _show(evaluation: Evaluation) -> None:
    from edgeroute.report.evaluation.promise import verdicts
    from edgeroute.report.words import duration, level, ranking, size, verdict

    made, certificate, times = evaluation.examples, evaluation.certificate, evaluation.latency()
    lines = list[tuple[str, ...]]()
    accuracy = evaluation.accuracy()
    for leg, name in {"edge": "edge", "cloud": "cloud", "cascade": "cascade", "accepted": "edge, where kept"}.items():
        if leg in accuracy or leg in times:
            cells = [duration(seconds) for seconds in times.get(leg, ())] or ["-"] * 3
            lines.append((name, _interval(accuracy[leg]) if leg in accuracy else "-", *cells))
    table(("", "right" if evaluation.labelled else "as the cloud says", "p50", "p90", "p99"), lines, ("",))
    rows: list[tuple[str, object]] = [
        ("examples", f"{evaluation.n:,}" + ("" if evaluation.labelled else ", without labels")),
        ("threshold", "one for each class" if evaluation.thresholds else level(evaluation.threshold)),
        ("deferred", _interval(evaluation.deferral)),
    ]
    if made.sent_bytes or made.usd:
        spent = f"{size(made.sent_bytes)} sent, {size(made.received_bytes)} received" + (
            f", ${made.usd:,.4g}" if made.usd else ""
        )
        rows.append(("the cloud for all", spent))
    if (area := evaluation.area()) is not None and not isnan(area.value):
        rows.append(("score's area", ranking(area)))
    if certificate is not None:
        rows.append(("promise", certificate.label))
    pairs(rows)
    short, long = verdict(evaluation, verdicts(evaluation))
    console().print(f"{short} {long}", markup=False)


def _area(found: Area | None) -> dict[str, float] | None:
    return None if found is None or isnan(found.value) else found._asdict()


def _interval(found: Share) -> str:
    return f"{found.value:.2%} ({found.low:.2%} to {found.high:.2%})" if found.of else "-"


def _share(found: Share) -> dict[str, Any]:
    return {**found._asdict(), "value": found.value if found.of else None}
