"""Command `edgeroute recertify`: puts a hidden edge on trial in force by the audit log, or rolls it back after an alarm.

It changes the policy's files. Exit code 5: more audits are needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.core.policy_egress_and_options import EDGE_TRIAL, INF
from edgeroute.errors import BadInput, StoreError
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import read_text
from edgeroute.tools.cli.calibrate_from_examples_or_audits import audited_counts, certify_audits, path_in_policy, proper_share
from edgeroute.tools.cli.command_runner import NOT_READY, OK, TOO_FEW
from edgeroute.tools.cli.example_options_and_routers import plain_router
from edgeroute.tools.cli.outbox_egress_and_state_folder import state_folder
from edgeroute.tools.cli.tables_and_options import Json, Policy, local_time, of_share

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.switch_to_trial_edge_or_back import Memory


class Step(NamedTuple):
    """Result of a run of the command.

    Attributes:
        did: nothing, waiting, switched, rolled_back, by_hand (the text tells what to write) or refused.
    """

    did: str
    text: str
    code: int = OK
    more: Mapping[str, Any] = {}


def recertify(
    *,
    policy: Policy,
    max_loss: Annotated[float | None, of_share(show_default="as the certificate in use")] = None,
    sure: Annotated[float | None, of_share(show_default="as the certificate in use")] = None,
    force: bool = False,
    dry_run: bool = False,
    as_json: Json = False,
) -> int:
    """Put a hidden edge on [trial] in force once its certificate holds, by the audit log; roll it back after an alarm.

    One step per run, for cron or a timer. Exit code 5: more audits are needed.

    Args:
        max_loss: Share of answers that may differ from the cloud's, as in 1%.
        sure: Confidence level of the guarantee.
        force: Also roll back a policy that was edited after the switch.
        dry_run: Print what would be done, and do nothing.

    Replaces the policy file, and writes the certificate beside it. Holds the lock `recertify.lock` in the state folder.

    Raises:
        StoreError: another recertify is running.
    """
    from edgeroute.stores.json_lines_and_process_locks import ProcessLock
    from edgeroute.tools.cli.switch_to_trial_edge_or_back import Memory

    home = state_folder(policy, None)
    turn = ProcessLock(home / "recertify.lock")
    if not turn.take():
        raise StoreError(f"{home / 'recertify.lock'}: another recertify is running: try again later")
    try:
        memory = Memory(home)
        step = _after_switch(policy, home, memory, force=force, dry_run=dry_run)
        if step is None:
            step = _on_trial(policy, home, memory, max_loss, sure, dry_run=dry_run)
    finally:
        turn.leave()
    print(json.dumps({"did": step.did, "dry_run": dry_run, "text": step.text, **step.more}) if as_json else printable(step.text))
    return step.code


def _after_switch(policy: Path, home: Path, memory: Memory, *, force: bool, dry_run: bool) -> Step | None:
    """Roll back to the policy before the last switch if there is an alarm since; return the step, None if there is nothing to do.

    A policy that was edited since is refused; with `force` it is copied to `POLICY.edited` before. A dry run changes nothing.
    """
    from edgeroute.tools.cli.switch_to_trial_edge_or_back import alarm, backup_path, hash_of, roll_back

    switch, now = memory.switch, hash_of(policy)
    if not switch or now == switch["before"] or not (why := alarm(home, switch["certificate"])):
        return None
    edited = policy.with_name(policy.name + ".edited")
    if now != switch["after"] and not force:
        text = (
            f"{why}; but {policy} was edited after the switch of {local_time(switch['at'])}, and is left unchanged: the one "
            f"before the switch is {backup_path(policy)}; --force puts it in force, and keeps the edited one as {edited}"
        )
        return Step("refused", text, NOT_READY)
    if not dry_run:
        if now != switch["after"]:
            replace_file(edited, read_text(policy))
        roll_back(policy, memory)
    would = "would be " if dry_run else ""
    return Step("rolled_back", f"{would}rolled back to before the switch of {local_time(switch['at'])}: {why}")


def _on_trial(policy: Path, home: Path, memory: Memory, max_loss: float | None, sure: float | None, *, dry_run: bool) -> Step:
    """Judge the hidden edge on trial by its audits; put it in force if its certificate holds and it is better. Return the step.

    Otherwise the step says why not. Notes the look in the state folder, unless `dry_run`.
    """
    with plain_router(policy) as router:
        if router.engine.snapshot.hidden is None:
            since = f" since the switch of {local_time(memory.switch['at'])}" if memory.switch else ""
            return Step("nothing", f"nothing to do: {policy} has no hidden edge on [trial], and there was no alarm{since}")
        value, risk = _promise(router, max_loss, sure)
        step, certificate, digest = _judge(router, home, memory, value, risk, dry_run=dry_run)
    if certificate is None:
        return step
    return _switch_to(policy, certificate, digest, memory, step, dry_run=dry_run)


def _promise(router: Router, max_loss: float | None, sure: float | None) -> tuple[float, float]:
    """Return the share of answers that may differ, and the risk (1 - `sure`): as given, or of the certificate in use, else 5 %.

    Raises:
        typer.BadParameter: neither states the loss, or a share is not between 0 and 1.
    """
    bound = router.engine.snapshot.certificates[0]
    certificate = None if bound is None or bound.certificate.kind != "max_loss" else bound.certificate
    if max_loss is None:
        if certificate is None:
            why = "the threshold in use is no certificate for a loss: state the loss to guarantee"
            raise typer.BadParameter(why, param_hint="--max-loss")
        max_loss = certificate.value
    if sure is None:
        sure = 0.95 if certificate is None or certificate.sure is None else certificate.sure
    return proper_share(max_loss, "--max-loss"), 1 - proper_share(sure, "--sure")


def _judge(
    router: Router, home: Path, memory: Memory, value: float, risk: float, *, dry_run: bool
) -> tuple[Step, Certificate | None, str]:
    """Return the step to report, the hidden edge's certificate or None, and a digest of its fingerprints.

    There is a certificate if its audits (since its last rollback) give one, and show that it is better than the edge in use. The
    look is noted in `home` unless `dry_run`. Too few audits are no error: the step has exit code 5.
    """
    from edgeroute.confidence.certificate import NotEnough, digest
    from edgeroute.tools.measure.audit_counts_and_evidence import LossCounts
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

    calls = DirectCalls(router.engine, 0, of=router.engine.snapshot.hidden)
    fingerprints = calls.fingerprints()
    name = digest(fingerprints)
    back = memory.switch.get("rolled_back") if memory.switch.get("trial") == name else None
    try:
        counts, stored, notes = audited_counts(home, EDGE_TRIAL, fingerprints, since=back)
    except BadInput as e:
        counts, stored, notes = LossCounts(), False, [str(e)]
    try:
        certificate = certify_audits(home, counts, calls, value, 1 - risk, remember=stored and not dry_run)
    except NotEnough as e:
        again = f" since it was rolled back at {local_time(back)}" if back else ""
        text = f"{EDGE_TRIAL} has {counts.n:,} audits{again}, and {e.needed:,} are needed: {e.missing:,} are missing"
        more = {"audits": counts.n, "needed": e.needed, "missing": e.missing, "notes": notes}
        return Step("waiting", "; ".join([text, *notes]), TOO_FEW, more), None, name
    text = "the trial's guarantee holds at no threshold"
    if certificate.threshold < INF:
        better, text = _compare_with_edge(router, home, fingerprints, certificate, value, risk, back)
        if better:
            return Step("", text, more={"notes": notes}), certificate, name
    text = "; ".join([f"by {counts.n:,} audits {text}: wait for more, or try another model", *notes])
    return Step("waiting", text, TOO_FEW, {"audits": counts.n, "notes": notes}), None, name


def _compare_with_edge(
    router: Router,
    home: Path,
    fingerprints: Mapping[str, str],
    certificate: Certificate,
    value: float,
    risk: float,
    since: float | None,
) -> tuple[bool, str]:
    """Return True if audits of the same requests show that the trial is better than the edge in use, and the reason in words.

    False too if one of them has no usable audits in the log.

    Better: it defers fewer requests, which is also what calls of the same cloud cost; where the policy's certificate limits
    deferrals, it loses fewer answers, and keeps that limit.
    """
    from edgeroute.tools.measure.certification_and_verdicts import audited_examples, compare_edges
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

    calls = DirectCalls(router.engine)
    target, bound = router.engine.snapshot.targets[calls.number], router.engine.snapshot.certificates[calls.number]
    log = home / "audit.jsonl"
    try:
        trial = audited_examples(log, EDGE_TRIAL, fingerprints, since=since)
        edge = audited_examples(log, target.name, calls.fingerprints(), since=since)
    except BadInput as e:
        return False, f"the trial's guarantee holds, and it cannot be compared with the edge in use: {e}"
    limit = None if bound is None or bound.certificate.kind != "max_defer" else bound.certificate.value
    threshold = None if target.thresholds else target.threshold
    result = compare_edges(trial, edge, certificate.threshold, threshold, value, risk, by_loss=limit is not None)
    measure = "defers" if limit is None else "loses"
    figures = f"of {result.n:,} requests it {measure} {result.trial * 100:.1f} %, and the edge in use {result.edge * 100:.1f} %"
    if result.better and (limit is None or certificate.deferral_rate <= limit):
        return True, figures
    return False, f"the trial's guarantee holds, and it is not shown to be better: {figures}"


def _switch_to(policy: Path, certificate: Certificate, digest: str, memory: Memory, judged: Step, *, dry_run: bool) -> Step:
    """Write the certificate beside the policy, and put the hidden edge in force; on a dry run neither. Return the step.

    A policy in a format that is not rewritten stays, and the step says what to edit. judged: why the edge is better, and notes.
    """
    from edgeroute.tools.cli.switch_to_trial_edge_or_back import backup_path, instruction, switch

    path = policy.parent / f"certificate-{certificate.date}-{certificate.checksum[:8]}.json"
    more = {
        "certificate": str(path), "guarantee": certificate.guarantee, "deferral_rate": certificate.deferral_rate, **judged.more,
    }  # fmt: skip
    result = f"{'; '.join([judged.text, *judged.more['notes']])}; the trial's certificate holds: {certificate.guarantee}"
    if dry_run:
        return Step("switched", f"{result} would be switched", OK, more)
    threshold = path_in_policy(policy, path)
    certificate.save(path)
    if not switch(policy, threshold, certificate, digest, memory):
        text = f"{result} {path} is written; {policy} is not rewritten in its format: {instruction(threshold)}"
        return Step("by_hand", text, OK, more)
    text = f"{result} It is in force now, with {path}; the policy before is {backup_path(policy)}"
    return Step("switched", text, OK, {**more, "before": str(backup_path(policy))})
