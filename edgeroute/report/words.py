"""Formats numbers, and states in words whether a guarantee held."""

from __future__ import annotations

from math import isnan

from edgeroute.confidence.certificate import INF, Certificate
from edgeroute.evaluation.evaluation import Evaluation
from edgeroute.evaluation.promise import Verdict
from edgeroute.evaluation.share import Share

NONE = "not known"
LEGS = {"edge": "edge alone", "cloud": "cloud alone", "cascade": "cascade"}
SIDES = {**LEGS, "accepted": "edge, where kept"}


METHODS = {
    "CP-harm": "an exact bound (Clopper-Pearson) of how often the edge's answer is kept where only the cloud is right",
    "LR-BB": "an exact test (likelihood ratio, Berger-Boos) of what the edge's answers lose, less what they gain",
    "D-BB": "an exact test (difference, Berger-Boos) of what the edge's answers lose, less what they gain",
    "CP-error": "an exact bound (Clopper-Pearson) of the share of wrong answers among those that the edge gives alone",
    "Beta": "the exact distribution (Beta) of the share of inputs whose score is below that of one of the examples",
    "rank": "the score of the example at the promised rank, which holds on average over examples",
}
"""What the tests behind certificates do."""
TRIED = "Thresholds were tried from the strictest on, up to the first that failed, so trying many costs the promise nothing."


def methods(certificate: Certificate) -> str:
    """How the threshold was found, in words; empty: by a test that is not known here."""
    said = "; ".join(METHODS[name] for name in certificate.method.split(" and ") if name in METHODS)
    if not said:
        return ""
    return f"Method {certificate.method}: {said}.{f' {TRIED}' if certificate.sure is not None else ''}"


def percent(share: float | None) -> str:
    """0.1234 -> 12.34 %."""
    return NONE if share is None or isnan(share) else f"{share * 100:.2f} %"


def limit(share: float) -> str:
    """0.01 -> 1 %: as in the guarantee."""
    return f"{share * 100:g} %"


def interval(share: Share) -> str:
    """The interval's ends, in percent."""
    return f"{share.low * 100:.2f} to {share.high * 100:.2f} %"


def duration(seconds: float) -> str:
    """Milliseconds below one second, else seconds."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def size(count: float) -> str:
    """Bytes, as KB or MB (powers of 1000)."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} KB"  # noqa: PLR2004 - a megabyte


def amount(what: str, value: float | None) -> str:
    """A value with its unit. what: seconds, usd or joules."""
    if value is None:
        return NONE
    return duration(value) if what == "seconds" else f"{value:.4g} {'$' if what == 'usd' else 'J'}"


def level(threshold: float) -> str:
    """A threshold, infinities in words."""
    if threshold == -INF:
        return "none: every answer of the edge is accepted"
    return "none: every input is deferred" if threshold == INF else f"{threshold:.4g}"


def counted(n: int, noun: str) -> str:
    """1 input, 2,000 inputs."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def counted_classes(n: int) -> str:
    """1 class, 10 classes."""
    return "1 class" if n == 1 else f"{n:,} classes"


def verdict(evaluation: Evaluation, found: list[Verdict]) -> tuple[str, str]:
    """Whether the guarantee held on these inputs: (headline, explanation). found: from `verdicts`."""
    certificate = evaluation.certificate
    if certificate is None:
        return (
            "No promise.",
            f"There is no certificate. This is what the threshold does on {counted(evaluation.n, 'input')}, no more.",
        )
    if evaluation.uncalibrated:
        return "The certificate says nothing about what is in use:", f"{evaluation.uncalibrated}."
    if not found:
        return _unmeasured(evaluation, certificate)
    worst = found[0]
    measured = _measured(certificate, worst)
    if certificate.thresholds:
        held = sum(one.held for one in found)
        measured = f"Measured in {counted_classes(len(found))}, it held in {held}. The worst is {worst.where}: {measured}"
        broken, all_held = worst.broken, held == len(found)
    else:
        measured = measured[0].upper() + measured[1:]
        broken, all_held = worst.broken, worst.held
    if all_held:
        return "It held on these inputs.", f"{measured}."
    if not broken:
        return "It did not hold on these inputs, which chance may explain.", f"{measured}. The interval reaches below the limit."
    said = f"{measured}. The whole interval is above the limit: these inputs are not drawn like the certificate's examples"
    if certificate.sure is not None:
        said += f", or it is one of the {limit(1 - certificate.sure)} of certificates that promise too much"
    return "It did not hold on these inputs, and chance does not explain it.", f"{said}."


def outcome(evaluation: Evaluation, found: list[Verdict]) -> tuple[str, str]:
    """What the verdict comes to, held, broken, open or none, as a class of the page; and a sign for it."""
    if evaluation.certificate is None:
        return "none", ""
    if evaluation.uncalibrated or not found:
        nothing_wrong = not evaluation.uncalibrated and evaluation.certificate.kind == "max_error" and evaluation.labelled
        return ("held", "\N{CHECK MARK}") if nothing_wrong else ("open", "?")
    if all(one.held for one in found):
        return "held", "\N{CHECK MARK}"
    return ("broken", "\N{BALLOT X}") if found[0].broken else ("open", "?")


def _unmeasured(evaluation: Evaluation, certificate: Certificate) -> tuple[str, str]:
    if certificate.kind == "max_error" and evaluation.labelled:
        return "It held on these inputs.", "The edge gives no answer alone, so none is wrong."
    missing = "labels" if not (evaluation.labelled or certificate.agreement) else "the cloud's answers"
    return "Whether it held is not known:", f"it cannot be measured without {missing}."


def _measured(certificate: Certificate, found: Verdict) -> str:
    value, low, high = (f"{round(share * 100, 2) + 0.0:.2f}" for share in (found.measured, found.low, found.high))  # no -0.00
    within = f"(95 % interval{' for all classes at once' if found.where else ''}: {low} to {high})"
    inputs = f"{within} of {counted(found.n, 'input')}"
    most = f"{certificate.value * 100:g} is allowed"
    if certificate.kind == "max_defer":
        return f"{value} % {inputs} were deferred, and {most}"
    if certificate.kind == "max_error":
        return f"{value} % {within} of {counted(found.n, 'answer')} that the edge gave alone were wrong, and {most}"
    if certificate.agreement:
        return f"{value} % {inputs} got another answer than the cloud's, and {most}"
    return f"the loss against the cloud is {value} percentage points {within} on {counted(found.n, 'input')}, and {most}"
