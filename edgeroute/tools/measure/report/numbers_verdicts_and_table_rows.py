"""Numbers and verdicts in words for reports: shares, durations, sizes, thresholds, tests, arms, and if a guarantee held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isnan
from typing import Any

from edgeroute.confidence.certificate import Certificate
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.tools.measure.certification_and_verdicts import Verdict
from edgeroute.tools.measure.deferral_curve import Area
from edgeroute.tools.measure.threshold_evaluation import QUANTILES, Evaluation, Share
from edgeroute.tools.state_colours_and_marks import marked

NONE = "not known"
LEGS = {"edge": marked("edge", "edge alone"), "cloud": marked("cloud", "cloud alone"), "cascade": "edge and cloud"}
SIDES = {**LEGS, "accepted": marked("edge", "edge, where kept")}


# Test behind a certificate -> its description.
METHODS = {
    "CP-harm": "an exact bound (Clopper-Pearson) of how often the edge's answer is kept where only the cloud is right",
    "LR-BB": "an exact test (likelihood ratio, Berger-Boos) of what the edge's answers lose, less what they gain",
    "D-BB": "an exact test (difference, Berger-Boos) of what the edge's answers lose, less what they gain",
    "CP-error": "an exact bound (Clopper-Pearson) of the share of wrong answers among those that the edge gives alone",
    "betting": "a test by betting (Waudby-Smith and Ramdas) of what the edge's answers lose, less what they gain, of any size",
    "Beta": "the exact distribution (Beta) of the share of inputs whose score is below that of one of the examples",
    "rank": "the score of the example at the guaranteed rank, which holds on average over examples",
}
DITHERED = "dithered "  # prefix of a test's name: graded answers become right or wrong at random
TRIED = "Thresholds were tried from the strictest on, up to the first that failed, so trying many costs the guarantee nothing."


def arm_rows(arms: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the figures of arms, in the order of `arm_cells`; the first is "devices" if the arms have them."""
    of = "share" if arms[0].get("devices") is None else "devices"
    return of, "requests", "failed", "deferred", "differ", "loss", "USD a call", "mean time", "p99"


def arm_cells(arm: Mapping[str, Any], none: str = NONE) -> list[str]:
    """Return the figures of an arm of a trial, of one device or of many, as text. none: where there is none."""
    there, compared = arm.get("requests") or 0, arm.get("compared")

    def between(name: str, form: Callable[[float], str], known: object = there) -> str:
        """Return the value of a field with its interval, as text."""
        part = arm.get(name)
        if not known or not isinstance(part, list | tuple) or len(part) != 3:  # noqa: PLR2004 - a number and its interval
            return none
        return f"{form(part[0])} ({form(part[1])} to {form(part[2])})"

    devices = arm.get("devices")
    of = percent(arm.get("share")) + ("" if arm.get("shown") else ", hidden") if devices is None else f"{devices:,}"
    shares = [between(name, percent) for name in ("failed", "deferred")]
    shares += [between(name, percent, compared) for name in ("differs", "loss")]
    p99 = arm.get("p99_s")
    times = between("mean_s", duration), none if p99 is None else duration(p99)
    return [of, f"{there:,}", *shares, between("usd", "{:.3g}".format), *times]


def methods(certificate: Certificate) -> str:
    """Return a sentence or two about how the certificate's threshold was found, by its tests' names; empty for unknown tests."""
    names = [name.removeprefix(DITHERED) for name in certificate.method.split(" and ")]
    descriptions = "; ".join(METHODS[name] for name in dict.fromkeys(names) if name in METHODS)
    if DITHERED in certificate.method:
        descriptions += "; a grade counts as right with a chance of its own size, which keeps the test exact (dithering)"
    if not descriptions:
        return ""
    return f"Method {certificate.method}: {descriptions}.{f' {TRIED}' if certificate.sure is not None else ''}"


def percent(share: float | None) -> str:
    """Format a share: 0.1234 -> 12.34 %; None or NaN as "not known"."""
    return NONE if share is None or isnan(share) else f"{share * 100:.2f} %"


def limit(share: float) -> str:
    """Format a share as in the guarantee: 0.01 -> 1 %."""
    return f"{share * 100:g} %"


def interval(share: Share) -> str:
    """Format an interval's ends, in percent."""
    return f"{share.low * 100:.2f} to {share.high * 100:.2f} %"


def duration(seconds: float | None) -> str:
    """Format seconds: two decimals, or below one second milliseconds of three digits; None as "-"."""
    if seconds is None:
        return "-"
    ms = f"{seconds * 1000:#.3g}".removesuffix(".")
    return f"{seconds:,.2f} s" if seconds >= 0.9995 else f"{ms} ms"  # noqa: PLR2004 - one, rounded


def size(count: float) -> str:
    """Format bytes as KB or MB (powers of 1000); never as bytes."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} KB"  # noqa: PLR2004 - a megabyte


def amount(what: str, value: float | None) -> str:
    """Format a value with its unit, None as "not known". what: seconds, usd or joules."""
    if value is None:
        return NONE
    return duration(value) if what == "seconds" else f"{value:.4g} {'$' if what == 'usd' else 'J'}"


def level(threshold: float) -> str:
    """Format a threshold, with infinities in words."""
    if threshold == -INF:
        return "none: every answer of the edge is accepted"
    return "none: every input is deferred" if threshold == INF else f"{threshold:.4g}"


def levels(threshold: float, thresholds: Mapping[str, float], ladder: Sequence[float] = ()) -> str:
    """Format a threshold as text; those of several edge models together; of classes with their own ones the range of these."""
    if ladder and min(ladder) < INF:
        return ", then ".join(f"{value:.4g}" for value in ladder)
    if ladder:
        return level(INF)
    if not thresholds:
        return level(threshold)
    finite = [value for value in thresholds.values() if value < INF]
    reach = f", {level(min(finite))} to {level(max(finite))}" if finite else ""
    deferred = f"; {counted_classes(len(thresholds) - len(finite))} always deferred" if len(finite) < len(thresholds) else ""
    return f"{counted_classes(len(thresholds))}, each with its own{reach}{deferred}"


def ladder_thresholds(certificate: Certificate) -> list[float]:
    """Return the thresholds of a certificate about several edge models together; empty for others."""
    return [float(own["threshold"]) for own in certificate.ladder]


def certificate_rows(certificate: Certificate, why: str) -> list[tuple[str, str]]:
    """Return the facts of a new certificate as pairs of name and text.

    Why: reason for the choice of the score; empty: it was given.
    """
    low, high = certificate.deferral_interval
    groups = "" if certificate.groups is None else f" in {count_text(certificate.groups, 'group')}"
    right = "as the cloud says" if certificate.agreement else "right"
    rows = [
        ("guarantee", certificate.label),
        ("method", f"{certificate.method or 'none'}, {count_text(certificate.n, 'example')}{groups}, {certificate.date}"),
        ("score", f"{certificate.score}: {why}" if why else certificate.score),
        ("threshold", levels(certificate.threshold, certificate.thresholds, ladder_thresholds(certificate))),
        ("deferred", f"{percent(certificate.deferral_rate)} of the examples; of all inputs {percent(low)} to {percent(high)}"),
    ]
    for side, share in certificate.accuracy.items():
        measured = f"mean {certificate.metric} {share:.4f}" if certificate.metric else f"{percent(share)} {right}"
        rows.append((SIDES.get(side, side), f"{measured}, on the same examples"))
    if certificate.area is not None:
        rows.append(("score's area", ranking(Area(*certificate.area, events=inf))))
    if certificate.unscored:
        rows.append(("without a score", f"{percent(certificate.unscored)} of the examples, which are deferred"))
    return rows


def count_text(n: int, noun: str) -> str:
    """Format a number with its noun: 1 input, 2,000 inputs."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def counted_classes(n: int) -> str:
    """Format a number of classes: 1 class, 10 classes."""
    return "1 class" if n == 1 else f"{n:,} classes"


def side_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table of edge, cloud and cascade: accuracy, latency, deferral and bytes."""
    accuracy, latency, examples = evaluation.accuracy(), evaluation.latency(), evaluation.examples
    asked = {"edge": 0.0}
    if examples.cloud is not None:
        asked |= {"cloud": 1.0, "cascade": evaluation.deferral.value}
    rows = []
    for leg, part in asked.items():
        part_right, times = accuracy.get(leg), latency.get(leg)
        cells = [percent(part_right.value), interval(part_right)] if part_right else [NONE] * 2
        if latency:
            cells += [duration(time) for time in times] if times else [NONE] * len(QUANTILES)
        cells.append(percent(part))
        if examples.sent_bytes:
            cells += [size(examples.sent_bytes * part), size(examples.received_bytes * part)]
        rows.append([LEGS[leg], *cells])
    quantiles = [f"p{q * 100:g}" for q in QUANTILES] if latency else []
    head = ["", "right" if evaluation.labelled else "as the cloud says", "95 % interval", *quantiles, "deferred"]
    if examples.sent_bytes:
        head += ["sent", "received"]
    return head, rows


def verdict(evaluation: Evaluation, verdicts: list[Verdict]) -> tuple[str, str]:
    """Return a headline and an explanation: if the guarantee held on these inputs. verdicts: from `verdicts`."""
    certificate = evaluation.certificate
    if certificate is None:
        return (
            "No guarantee.",
            f"There is no certificate. This is what the threshold does on {count_text(evaluation.n, 'input')}, no more.",
        )
    if evaluation.uncalibrated:
        return "The certificate says nothing about what is in use:", f"{evaluation.uncalibrated}."
    if not verdicts:
        return _unmeasured(evaluation, certificate)
    worst, held = verdicts[0], sum(result.held for result in verdicts)
    measured, all_held = _measured(certificate, worst), held == len(verdicts)
    if certificate.thresholds:
        measured = f"Measured in {counted_classes(len(verdicts))}, it held in {held}. The worst is {worst.where}: {measured}"
    else:
        measured = measured[0].upper() + measured[1:]
    if all_held and any(result.doubtful for result in verdicts):
        return "It held on these inputs, as the cloud is worse than the edge:", f"{measured}. Check what the cloud answers."
    if all_held:
        return "It held on these inputs.", f"{measured}."
    if not worst.broken:
        return "It did not hold on these inputs, which chance may explain.", f"{measured}. The interval reaches below the limit."
    explanation = f"{measured}. The whole interval is above the limit: these inputs are not drawn like the certificate's examples"
    if certificate.sure is not None:
        explanation += f", or it is one of the {limit(1 - certificate.sure)} of certificates that guarantee too much"
    return "It did not hold on these inputs, and chance does not explain it.", f"{explanation}."


SEEN = 0.05  # share of examples seen before from which a warning is given


def seen_before(evaluation: Evaluation) -> str:
    """Return a warning if 5 % or more of these examples are those of the calibration, by its sketch; empty if not."""
    share = evaluation.seen_before
    if share < SEEN:
        return ""
    return (
        f"About {share * 100:.0f} % of these examples are those that the certificate was calibrated on: that it holds on them "
        "proves nothing. Evaluate on others."
    )


def ranking(area: Area) -> str:
    """Return the area of a score in words, with advice if it is no better than chance."""
    text = f"{area.value:.2f} ({area.low:.2f} to {area.high:.2f}); 0 is random, 1 an oracle"
    return f"{text}: no better than chance, try another score, or a learned one" if area.by_chance else text


def outcome(evaluation: Evaluation, verdicts: list[Verdict]) -> tuple[str, str]:
    """Return the CSS class of the verdict, held, broken, open or none, and a sign for it."""
    if evaluation.certificate is None:
        return "none", ""
    if evaluation.uncalibrated or not verdicts:
        certificate = evaluation.certificate
        by_label = certificate.kind == "max_error" and evaluation.labelled and not certificate.metric
        nothing_wrong = by_label and not evaluation.uncalibrated
        return ("held", "\N{CHECK MARK}") if nothing_wrong else ("open", "?")
    if all(result.held for result in verdicts):
        return ("open", "?") if any(result.doubtful for result in verdicts) else ("held", "\N{CHECK MARK}")
    return ("broken", "\N{BALLOT X}") if verdicts[0].broken else ("open", "?")


def _unmeasured(evaluation: Evaluation, certificate: Certificate) -> tuple[str, str]:
    """Return headline and explanation of a guarantee that these examples cannot measure."""
    if certificate.metric:
        return "Whether it held is not known:", f"it is about {certificate.metric}, and these examples are right or wrong alone."
    if certificate.kind == "max_error" and evaluation.labelled:
        return "It held on these inputs.", "The edge gives no answer alone, so none is wrong."
    missing = "labels" if not (evaluation.labelled or certificate.agreement) else "the cloud's answers"
    return "Whether it held is not known:", f"it cannot be measured without {missing}."


def _measured(certificate: Certificate, measured: Verdict) -> str:
    """Return a verdict's measured value and interval in words, with the value that the certificate allows."""
    value, low, high = (
        f"{round(share * 100, 2) + 0.0:.2f}" for share in (measured.measured, measured.low, measured.high)
    )  # no -0.00
    within = f"(95 % interval{' for all classes at once' if measured.where else ''}: {low} to {high})"
    inputs = f"{within} of {count_text(measured.n, 'input')}"
    most = f"{certificate.value * 100:g} is allowed"
    if certificate.kind == "max_defer":
        return f"{value} % {inputs} were deferred, and {most}"
    if certificate.kind == "max_error":
        return f"{value} % {within} of {count_text(measured.n, 'answer')} that the edge gave alone were wrong, and {most}"
    if certificate.agreement:
        return f"{value} % {inputs} got another answer than the cloud's, and {most}"
    return f"the loss against the cloud is {value} percentage points {within} on {count_text(measured.n, 'input')}, and {most}"
