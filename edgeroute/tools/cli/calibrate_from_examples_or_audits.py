"""Command `edgeroute calibrate`: finds a threshold with a guarantee, from examples or audits, and writes its certificate.

Also parts that `recertify` and `fleet calibrate` share: counts and certificates of audits, and paths as written in a policy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.errors import BadInput, PolicyError, StoreError
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import read_json
from edgeroute.tools.cli import example_options_and_routers as shared
from edgeroute.tools.cli import tables_and_options as ui
from edgeroute.tools.cli.outbox_egress_and_state_folder import state_folder
from edgeroute.tools.cli.status_and_trial_arms import read_state

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate, Kind
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.label_questions_and_answers import Ask
    from edgeroute.tools.cli.read_and_certify_graded_answers import CertificateAlone
    from edgeroute.tools.measure.audit_counts_and_evidence import LossCounts
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls
    from edgeroute.tools.measure.report.report_pages_and_results import CalibrationResult

Score = Literal["auto", "learned", "msp", "margin", "entropy", "energy"]


def calibrate(
    *,
    policy: ui.Policy,
    data: shared.DataOrNone = None,
    max_loss: ui.Share | None = None,
    max_error: ui.Share | None = None,
    max_defer: ui.Share | None = None,
    sure: Annotated[str, typer.Option(metavar="SHARE")] = "95%",
    metric: ui.Name = "",
    per_class: bool = False,
    score: Annotated[Score | None, typer.Option(show_default="the policy's")] = None,
    ood: bool = False,
    score_out: Annotated[Path | None, typer.Option(metavar="FILE", show_default="MODEL.score.json beside the model")] = None,
    audited: bool = False,
    every: shared.Every = 1,
    edge: shared.EdgeNumber = 0,
    data_class: shared.DataClass = None,
    label: shared.LabelColumn = None,
    ask: bool = False,
    page: bool = False,
    answers: Annotated[Path | None, typer.Option(metavar="FILE", show_default="answers.jsonl beside the policy")] = None,
    batch: ui.Count = 32,
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default="certificate.json beside the policy")] = None,
    as_json: ui.Json = False,
) -> None:
    """Find the lowest threshold with the requested guarantee, and write it as a certificate.

    Exactly one of --max-loss, --max-error and --max-defer states the guarantee.

    --max-loss calls the cloud for every example; without labels it guarantees agreement with the cloud.

    --max-error needs labels. --max-defer needs neither labels nor the cloud.

    Answers that are graded from 0 to 1 come in .npz files with confidence, edge_scores, perhaps cloud_scores and groups.

    Prompts come in .jsonl files: prompt or messages, and perhaps edge, cloud, grade or label. Without answers the models run.

    Args:
        max_loss: Accuracy lost against the cloud, as in 1%.
        max_error: Wrong answers among those accepted on the edge, as in 5%.
        max_defer: Inputs that are deferred, as in 20%.
        sure: Confidence level of the guarantee. With --max-defer also `average`.
        metric: Name of the metric of graded answers, as in F1, for the guarantee.
        per_class: Find a threshold for each class; all guarantees hold at once.
        score: `learned` fits a score to the examples, `auto` blends it with msp.
        ood: Let a fitted score use how unusual an input is.
        score_out: File for a fitted score.
        audited: Use the audit log in the policy's state folder, instead of data; needs no labels.
        ask: Ask which answer is right where the test needs it.
        page: Ask on a local page.
        answers: File of these answers; without --ask, blanks count against the edge.
        batch: Inputs in one request to the cloud.
        out: File for the certificate.

    Existing certificates and scores are replaced, other files are not. The policy is not changed: the lines for it are printed.

    Raises:
        typer.BadParameter: options exclude each other, or do not fit the data.
        BadInput, NotEnough: the examples cannot be read, or are too few.
    """
    kind, value = _promise({"max_loss": max_loss, "max_error": max_error, "max_defer": max_defer})
    if bool(data) == audited:
        raise typer.BadParameter("one of the two is needed", param_hint="--data or --audited")
    if audited and (score or per_class or kind == "max_error"):
        text = "the log has no labels, no classes and one score: use --max-loss or --max-defer and the policy's score"
        raise typer.BadParameter(text, param_hint="--audited")
    if per_class and kind == "max_defer":
        raise typer.BadParameter("--max-defer has one threshold for all classes", param_hint="--per-class")
    if ood and score not in {"auto", "learned"}:
        raise typer.BadParameter("it needs a fitted score: --score learned or auto", param_hint="--ood")
    asks = ask or page or answers is not None
    if asks and (kind != "max_loss" or audited or score in {"auto", "learned"}):
        why = "it is for --max-loss on --data, and a score that is not fitted to labels"
        raise typer.BadParameter(why, param_hint="--ask, --page or --answers")
    if ask and not page and Path("-") in (data or []):
        raise typer.BadParameter("stdin has the data: ask with --page", param_hint="--ask")
    odds = _sure(sure, kind)

    from edgeroute.edge.edge_model_members_and_fingerprints import member
    from edgeroute.tools.cli.prompt_reading_and_grading import grade_prompts, read_prompts
    from edgeroute.tools.cli.read_and_certify_graded_answers import certify_graded, read_graded
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

    result: CalibrationResult | CertificateAlone
    want: dict[str, Any] = {kind: value, "sure": odds, "per_class": per_class, "score": score, "ood": ood}
    with (
        environment(threshold=_thresholds(policy, edge), score="msp" if score in {"auto", "learned"} else score),
        shared.plain_router(policy) as router,
    ):
        ui.check_output(path := out or policy.parent / "certificate.json", ui.CERTIFICATE, "--out")
        if score_out is not None:
            ui.check_output(score_out, ui.SCORE, "--score-out")
        prompt_lines = None if audited else read_prompts(data or [], every)
        scored = None if audited or prompt_lines is not None else read_graded(data or [], every)
        if prompt_lines is not None or scored is not None:
            edge = shared.one_edge(edge, "graded answers")
        if prompt_lines is not None:
            scored = grade_prompts(prompt_lines, DirectCalls(router.engine, edge), router)
        if scored is None and metric:
            why = "it needs graded answers: an .npz file with confidence and edge_scores, or .jsonl with grades"
            raise typer.BadParameter(why, param_hint="--metric")
        if scored is not None:
            if asks:
                raise typer.BadParameter("the answers are graded or recorded: there is nothing to ask", param_hint="--ask")
            excluded = {"--score": score, "--per-class": per_class, "--data-class": data_class}
            if wrong := next(filter(excluded.get, excluded), None):
                raise typer.BadParameter("the answers are graded: there are no classes, inputs or outputs", param_hint=wrong)
            result = certify_graded(scored, kind, value, odds, metric, DirectCalls(router.engine, edge))
        elif audited and kind == "max_loss":
            result = _calibrate_counts(router, value, odds or 0.0, shared.one_edge(edge, "audits"), policy, every)
        elif audited:
            result = _calibrate_recorded(router, None, want, edge, policy, every)
        elif (examples := shared.read_examples(data or [], every, router, label, blanks=asks, data_class=data_class)).recorded:
            if asks:
                raise typer.BadParameter("the outputs are recorded: a person has to see the inputs", param_hint="--ask")
            result = _calibrate_recorded(router, examples, want, edge, policy, every)
        else:
            want |= {"groups": examples.groups, "edge": edge, "data_class": examples.data_class, "batch": batch}
            with shared.named_by_file(examples.names):
                if asks:
                    file = answers or policy.parent / "answers.jsonl"
                    calibration = _calibrate_asking(partial(router.calibrate, examples.inputs, **want), file, examples, ask, page)
                else:
                    calibration = router.calibrate(examples.inputs, examples.labels, **want)
            result = replace(calibration, notes=[*examples.notes, *calibration.notes])
        model = Path(member(DirectCalls(router.engine, edge).runner.model, "path") or "model")
    lines = {"threshold": path_in_policy(policy, path)}
    if result.fitted is not None:
        saved = score_out or model.with_suffix(".score.json")
        result.fitted.save(saved)
        lines["score"] = path_in_policy(policy, saved)
    elif score is not None:
        lines["score"] = str(result.score)
    result.certificate.save(path)
    if as_json:
        read = {} if (count := getattr(result, "labels_read", None)) is None else {"labels_read": count}
        certificate = result.certificate.as_dict()
        print(json.dumps({"certificate": certificate, "path": str(path), "policy": lines, "notes": [*result.notes], **read}))
        return
    ui.print_notes(result.notes)
    _show(result, path, lines, edge)


def _calibrate_asking(
    run: Callable[..., CalibrationResult], path: Path, examples: shared.FileExamples, ask: bool, page: bool
) -> CalibrationResult:
    """Calibrate with labels of the data, else of the file at `path`, else of a person: on a page if `page`, or in the terminal.

    Opens and locks the file, which gets each reply; serves the page meanwhile. Without `ask` and `page` nobody is asked, and
    labels that are missing are unknown.

    run: `Router.calibrate` with all arguments but `label`.
    """
    from edgeroute.tools.cli.label_questions_and_answers import AskedLabels, answers_file, in_terminal

    with answers_file(path) as file, ExitStack() as stack:
        asker: Ask | None = in_terminal if ask else None
        if page:
            from edgeroute.tools.cli.label_questions_web_server import LabelPage

            asker = stack.enter_context(LabelPage()).ask
        return run(label=AskedLabels(file, asker, examples.labels, examples.names))


def _promise(targets: dict[Kind, float | None]) -> tuple[Kind, float]:
    """Return the only guarantee that was given, with its limit.

    Raises:
        typer.BadParameter: none or several were given, or the limit is not between 0 and 1.
    """
    given_targets = [(kind, value) for kind, value in targets.items() if value is not None]
    if len(given_targets) != 1:
        raise typer.BadParameter("exactly one is needed", param_hint="--max-loss, --max-error or --max-defer")
    ((kind, value),) = given_targets
    return kind, proper_share(value, f"--{kind.replace('_', '-')}")


def proper_share(value: float, option: str) -> float:
    """Return a share, 0..1; raise `typer.BadParameter` for the named option if it is 0 or less, or 1 or more."""
    if not 0 < value < 1:
        raise typer.BadParameter("the share must be more than 0% and less than 100%", param_hint=option)
    return value


def _sure(text: str, kind: Kind) -> float | None:
    """Parse the confidence level, 95 % or 0.95; return None for `average`, which is refused unless the guarantee is max_defer.

    0 % and 100 % are refused too, by `typer.BadParameter`.
    """
    if text != "average":
        try:
            return proper_share(ui.share(text), "--sure")
        except typer.BadParameter as e:
            e.param_hint = "--sure"
            raise
    if kind != "max_defer":
        why = "only --max-defer can hold on average: the others hold with a probability"
        raise typer.BadParameter(why, param_hint="--sure")
    return None


def _thresholds(policy: Path, edge: int | Literal["all"]) -> str:
    """Return thresholds to calibrate with, as JSON: the policy's for edge models before number `edge`, 0 for it and later ones.

    With 0 all answers are accepted. "all", or a number without an edge model, gives the single number 0. Reads the policy file.

    Raises:
        PolicyError: the policy has no thresholds for those before.
    """
    from edgeroute.policy.file_and_environment import read_policy

    if edge == "all":
        return "0"
    data = read_policy(policy) if edge else {}
    edges, stored = data.get("edge", []), data.get("threshold")
    count = len(edges) if isinstance(edges, list) else 1
    if edge >= count:
        return "0"
    all_thresholds = stored if isinstance(stored, list) else [stored] * count
    if stored is None:
        raise PolicyError(f"{policy}: the edge models before number {edge} need their thresholds: calibrate them first")
    return json.dumps([*all_thresholds[:edge], *[0] * (count - edge)])


@contextmanager
def environment(**keys: str | None) -> Iterator[None]:
    """Set variables EDGEROUTE_KEY of the process, where the value is not None, during the `with` block, and restore them after.

    They override keys of a policy file, such as a certificate that does not exist yet.
    """
    new = {f"EDGEROUTE_{key.upper()}": value for key, value in keys.items() if value is not None}
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _calibrate_recorded(
    router: Router,
    file_examples: shared.FileExamples | None,
    want: dict[str, Any],
    edge: int | Literal["all"],
    policy: Path,
    every: int,
) -> CalibrationResult:
    """Calibrate on recorded outputs, or, if `file_examples` is None, on the audits in the policy's state folder. Runs no model.

    Raises:
        typer.BadParameter: `edge` is "all".
        BadInput, NotEnough: there are no audits, or too few examples.
    """
    from edgeroute.tools.measure.calibrate_evaluate_and_read_data import certify_examples, checked_request
    from edgeroute.tools.measure.certification_and_verdicts import audited_examples
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls, recorded_examples

    edge = shared.one_edge(edge, "audits" if file_examples is None else "recorded outputs")
    options = {**dict.fromkeys(("max_loss", "max_error", "max_defer")), **want}
    target = checked_request(**options)
    calls = DirectCalls(router.engine, edge, "msp" if target.fit else target.score)
    if file_examples is None:
        log = state_folder(policy, None) / "audit.jsonl"
        examples, notes, *_ = audited_examples(log, calls.runner.name, calls.fingerprints(), every=every, one_model=False)
    else:
        outputs, notes = file_examples, file_examples.notes
        examples = recorded_examples(calls, outputs.edge, outputs.cloud, outputs.labels, outputs.groups)
    return certify_examples(calls, examples, target, notes, policy=policy.name)


def _calibrate_counts(router: Router, value: float, sure: float, edge: int, policy: Path, every: int) -> CertificateAlone:
    """Return the certificate that the audits in the policy's state folder give now; it holds however often one looks.

    Counts that routers have stored go before the audit log. Notes the look in `looks.json` there if they were stored.
    """
    from edgeroute.tools.cli.read_and_certify_graded_answers import CertificateAlone
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

    calls, folder = DirectCalls(router.engine, edge), state_folder(policy, None)
    counts, stored, notes = audited_counts(folder, calls.runner.name, calls.fingerprints(), every=every)
    certificate = certify_audits(folder, counts, calls, value, sure, remember=stored)
    return CertificateAlone(certificate, [*notes, *certificate.doubts], certificate.score)


def audited_counts(
    folder: Path, target: str, fingerprints: Mapping[str, str], *, every: int = 1, since: float | None = None
) -> tuple[LossCounts, bool, list[str]]:
    """Return the counts of a model's audits, True if routers have stored them, False for those of the audit log, and notes.

    If the server tells its model, they are of the one that answered last, and a note says how many are of others. The log is read
    if nothing valid is stored, or `every` is not 1; then only its audits since the stored counts began.

    Args:
        folder: the state folder.
        target: name of the edge model in answers.
        fingerprints: fingerprints in use, from `Router.fingerprints`.
        every: use only each `every`-th audit, of the log.
        since: use only audits from then on, of the log, seconds since 1970.

    Raises:
        BadInput: there are no audits of this model.
        StoreError: the state or the log cannot be read.
    """
    from edgeroute.confidence.certificate import digest
    from edgeroute.tools.measure.audit_counts_and_evidence import LossCounts
    from edgeroute.tools.measure.certification_and_verdicts import audited_examples, counts_of
    from edgeroute.trials.audits_and_drift_alarms import COUNTS, SERVED

    alarms, name = 0, digest(fingerprints)
    with suppress(BadInput, KeyError, ValueError):
        state = read_state(folder)
        served = str(state[SERVED + name].value) if SERVED + name in state else ""
        models = LossCounts.by_served(state[COUNTS + name].value, served)
        counts = models.pop(served)
        if every == 1:
            counts.others = models
            others = sum(of_model.n for of_model in models.values())
            why = f"audits left out, {others:,}: they are of other models of the server, or it is not known of which"
            silent = "the audits do not tell which model the server had: the certificate's label will not say if it has another"
            notes = [*([why] if others else []), *([silent] if counts.n and "served" in fingerprints and not served else [])]
            return counts, True, notes
        since, alarms = max(since or 0.0, counts.begun), counts.alarms
    audits = audited_examples(folder / "audit.jsonl", target, fingerprints, every=every, since=since)
    counts = counts_of(audits._replace(alarms=max(alarms, audits.alarms), begun=max(audits.begun, since or 0.0)))
    return counts, False, audits.notes


def certify_audits(
    folder: Path, counts: LossCounts, calls: DirectCalls, value: float, sure: float, *, remember: bool
) -> Certificate:
    """Return the certificate that counts of audits give, for a loss of at most `value` with confidence `sure`.

    remember: what was certified at an earlier look stays so if these counts include that look's, and fingerprints, `value` and
    `sure` are equal. Then this look is written to `looks.json` in `folder`, without a lock: a damaged file is replaced, and an
    error of writing ignored.

    Raises:
        NotEnough: there are too few; nothing is written.
    """
    from edgeroute.confidence.certificate import digest
    from edgeroute.tools.measure.audit_counts_and_evidence import NONE, LossCounts
    from edgeroute.tools.measure.certification_and_verdicts import certify_counts

    fingerprints, path = calls.fingerprints(), folder / "looks.json"
    key = " ".join(filter(None, [digest(fingerprints), f"{value:.12g} {1 - sure:.9g}", counts.served]))
    looks, reached = dict[str, Any](), NONE
    if remember:
        with suppress(OSError, TypeError, ValueError, KeyError):
            looks = {name: look for name, look in dict(read_json(path)).items() if isinstance(look, dict)}
            lowest, earlier = looks[key]["lowest"], LossCounts.load(looks[key]["counts"])
            if type(lowest) is int and 0 <= lowest <= NONE and earlier.n and counts.includes(earlier):
                reached = lowest
    certificate, lowest = certify_counts(counts, value, sure, calls.score_name, fingerprints, reached)
    if remember:
        with suppress(StoreError):
            replace_file(path, json.dumps({**looks, key: {"lowest": lowest, "counts": counts.dump()}}))
    return certificate


def path_in_policy(policy: Path, path: Path) -> str:
    """Return a path as written in the policy: relative to its folder, or absolute if they share no folder but the root."""
    folder, target = policy.parent.resolve(), path.resolve()
    if target.anchor != folder.anchor or os.path.commonpath([folder, target]) == folder.anchor:  # first: another drive
        return str(target)
    return os.path.relpath(target, folder)


def _show(result: CalibrationResult | CertificateAlone, path: Path, lines: dict[str, str], edge: int | Literal["all"]) -> None:
    """Print guarantee, score, rates, accuracy, thresholds by class, the certificate's path, and the lines for the policy."""
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import certificate_rows, level

    certificate = result.certificate
    ui.console().print(certificate.guarantee, markup=False)
    ui.pairs(certificate_rows(certificate, result.why))
    if certificate.thresholds:
        thresholds = [(label, level(t)) for label, t in certificate.thresholds.items()]
        ui.table(("class", "threshold"), thresholds, ("class", "threshold"))
    print(f"written to {path}; in the policy" + (f", for edge model {edge}:" if edge and edge != "all" else ":"))
    for key, value in lines.items():
        print(f"    {key} = {json.dumps(value)}")
