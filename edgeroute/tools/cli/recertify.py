from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgeroute.core.words import printable
from edgeroute.errors import BadInput, StoreError
from edgeroute.tools.cli.calibrate import some, written_as
from edgeroute.tools.cli.examples import plain
from edgeroute.tools.cli.exits import NOT_READY, OK, TOO_FEW
from edgeroute.tools.cli.outbox import folder, when
from edgeroute.tools.cli.tables import Json, Policy, share

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.switch import Memory

GROWTH = 1.5
"""After a look that did not suffice, the next one is at so many times the audits."""


class Step(NamedTuple):
    """What was done."""

    did: str
    """nothing, waiting, switched, rolled_back, by_hand (what to write) or refused."""
    text: str
    code: int = OK
    more: Mapping[str, Any] = {}


def recertify(
    *,
    policy: Policy,
    max_loss: Annotated[
        float | None,
        typer.Option(
            parser=share, metavar="SHARE", help="Answers that may differ from the cloud's, as in 1%.",
            show_default="as the certificate in use",
        ),
    ] = None,
    sure: Annotated[
        float | None,
        typer.Option(parser=share, metavar="SHARE", help="Confidence level.", show_default="as the certificate in use"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Roll back also a policy that was edited after the switch.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Puts a hidden edge on [trial] in force once its certificate holds, by the audit log; takes it back after an alarm.

    One step a run, for cron or a timer. Exit code 5: more audits are needed.
    """
    from edgeroute.stores.journal import ProcessLock
    from edgeroute.tools.cli.switch import Memory

    home = folder(policy, None)
    turn = ProcessLock(home / "recertify.lock")
    if not turn.take():
        raise StoreError(f"{home / 'recertify.lock'}: another recertify is under way")
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
    """Rolls back after an alarm; None: there was no switch that is in force, or no alarm."""
    from edgeroute.tools.cli.switch import alarm, hash_of, kept, roll_back, write

    switch, now = memory.switch, hash_of(policy)
    if not switch or now == switch["before"] or not (why := alarm(home, switch["certificate"])):
        return None
    edited = policy.with_name(policy.name + ".edited")
    if now != switch["after"] and not force:
        text = (
            f"{why}; but {policy} was edited after the switch of {when(switch['at'])}, and is left as it is: the one before the "
            f"switch is {kept(policy)}; --force puts it in force, and keeps the edited one as {edited}"
        )
        return Step("refused", text, NOT_READY)
    if not dry_run:
        if now != switch["after"]:
            write(edited, policy.read_text(encoding="utf-8"))
        roll_back(policy, memory)
    return Step("rolled_back", f"{_would(dry_run)}rolled back to the policy before the switch of {when(switch['at'])}: {why}")


def _on_trial(policy: Path, home: Path, memory: Memory, max_loss: float | None, sure: float | None, *, dry_run: bool) -> Step:
    """Count the audits of the hidden edge on trial, and put it in force if its certificate holds."""
    with plain(policy) as router:
        if router.engine.snapshot.hidden is None:
            since = f" since the switch of {when(memory.switch['at'])}" if memory.switch else ""
            return Step(
                "nothing", f"nothing to do: there is no hidden edge on [trial] in {policy}, and there was no alarm{since}"
            )
        value, risk = _promise(router, max_loss, sure)
        step, certificate, digest = _judged(router, home, memory, value, risk, policy, dry_run=dry_run)
    if certificate is None:
        return step
    return _put(policy, certificate, digest, memory, dry_run=dry_run)


def _promise(router: Router, max_loss: float | None, sure: float | None) -> tuple[float, float]:
    """The share of answers that may differ, and the probability with which the promise may fail."""
    bound = router.engine.snapshot.certificates[0]
    known = None if bound is None or bound.certificate.kind != "max_loss" else bound.certificate
    if max_loss is None and known is None:
        raise typer.BadParameter(
            "the threshold in use is no certificate for a loss: say which is promised", param_hint="--max-loss"
        )
    value = known.value if max_loss is None and known is not None else max_loss
    odds = 0.95 if sure is None and (known is None or known.sure is None) else known.sure if sure is None and known else sure
    assert value is not None, "one of the two is given"
    assert odds is not None, "likewise"
    return some(value, "--max-loss"), 1 - some(odds, "--sure")


def _judged(
    router: Router, home: Path, memory: Memory, value: float, risk: float, policy: Path, *, dry_run: bool
) -> tuple[Step, Certificate | None, str]:
    """Return the certificate that the audits of the edge on trial give, if it holds at some threshold, and its fingerprints."""
    from edgeroute.confidence.certificate import digest
    from edgeroute.core.policy import INF
    from edgeroute.tools.measure.certification import audited_examples
    from edgeroute.tools.measure.collect import DirectCalls
    from edgeroute.tools.measure.steps import certify_examples, checked_request
    from edgeroute.trials.trial import EDGE_TRIAL

    aside = DirectCalls(router.engine, 0, of=router.engine.snapshot.hidden)
    prints = aside.fingerprints()
    name = digest(prints)
    back = memory.switch.get("rolled_back") if memory.switch.get("trial") == name else None
    looks = memory.looks.setdefault(f"{name} {value:g}", [])
    due, own = next_look(looks, value, risk)
    try:
        found = audited_examples(home / "audit.jsonl", EDGE_TRIAL, prints, since=back)
        count, notes = len(found.examples.edge), found.notes
    except BadInput as e:
        found, count, notes = None, 0, [str(e)]
    if found is None or count < due:
        again = f" since it was rolled back at {when(back)}" if back else ""
        text = f"{EDGE_TRIAL} has {count:,} audits{again}, and {due:,} are needed: {due - count:,} are missing"
        more = {"audits": count, "needed": due, "missing": due - count, "notes": notes}
        return Step("waiting", "; ".join([text, *notes]), TOO_FEW, more), None, name
    want = checked_request(max_loss=value, max_error=None, max_defer=None, sure=1 - own, per_class=False, score=None, ood=False)
    certificate = certify_examples(aside, found.examples, want, notes, policy=policy.name).certificate
    if certificate.threshold < INF:
        return Step("", ""), certificate, name
    looks.append(count)
    if not dry_run:
        memory.save()
    later = ceil(GROWTH * count)
    text = f"by {count:,} audits the trial's promise holds at no threshold; the next look is at {later:,}, or try another model"
    return Step("waiting", text, TOO_FEW, {"audits": count, "needed": later, "missing": later - count}), None, name


def next_look(looks: Sequence[int], value: float, risk: float) -> tuple[int, float]:
    """The number of audits at which a trial is looked at next, and the risk of that look.

    Who looks at each new audit finds a certificate by chance sooner or later. So looks are few, and share the risk: the first
    has half of it, the next half of the rest, and so on.

    Args:
        looks: numbers of audits at the looks that did not suffice.
        value: share of answers that may differ.
        risk: of the promise, over all looks.
    """
    from edgeroute.confidence.exact import needed

    own = risk / 2 ** (len(looks) + 1)
    return max(needed(value, own), ceil(GROWTH * looks[-1]) if looks else 0), own


def _put(policy: Path, certificate: Certificate, digest: str, memory: Memory, *, dry_run: bool) -> Step:
    """Write the certificate, and put the edge on trial in force."""
    from edgeroute.tools.cli.switch import by_hand, kept, switch

    path = policy.parent / f"certificate-{certificate.date}-{certificate.checksum[:8]}.json"
    more = {"certificate": str(path), "guarantee": certificate.guarantee, "deferral_rate": certificate.deferral_rate}
    held = f"the trial's certificate holds: {certificate.guarantee}"
    if dry_run:
        return Step("switched", f"{held} {_would(dry_run)}switched", OK, more)
    threshold = written_as(policy, path)
    try:
        certificate.save(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e
    if not switch(policy, threshold, certificate, digest, memory):
        text = f"{held} {path} is written; {policy} is not rewritten in its format: {by_hand(threshold)}"
        return Step("by_hand", text, OK, more)
    text = f"{held} It is in force now, with {path}; the policy before is {kept(policy)}"
    return Step("switched", text, OK, {**more, "before": str(kept(policy))})


def _would(dry_run: bool) -> str:
    return "would be " if dry_run else ""
