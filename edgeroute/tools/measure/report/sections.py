"""Sections of the evaluation page; empty strings where the examples lack the data."""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf, isnan

import numpy as np

from edgeroute.confidence.scores import SCORES
from edgeroute.tools.measure.certified import verdicts
from edgeroute.tools.measure.evaluation import QUANTILES, Class, Evaluation, bins, calibration_error
from edgeroute.tools.measure.report import figures, html
from edgeroute.tools.measure.report.words import (
    LEGS,
    NONE,
    SIDES,
    amount,
    counted,
    counted_classes,
    duration,
    interval,
    level,
    limit,
    methods,
    outcome,
    percent,
    ranking,
    seen_before,
    size,
    verdict,
)

WORST = 20
"""Maximum number of classes shown."""
NO_PROBABILITY = {*SCORES, "learned"} - {"msp"}
"""Scores that are not probabilities of being correct."""


def promise(evaluation: Evaluation) -> str:
    """The certificate's guarantee, and whether it held on these examples."""
    certificate = evaluation.certificate
    short, long = verdict(evaluation, verdicts(evaluation))
    kind, sign = outcome(evaluation, verdicts(evaluation))
    mark = f'<span class="sign" aria-hidden="true">{sign}</span> ' if sign else ""
    said = f'<p class="verdict {kind}">{mark}<strong>{html.escape(short)}</strong> {html.escape(long)}</p>'
    rows = [("threshold", _threshold(evaluation))]
    if certificate is None:
        return html.section("The promise", said, html.facts(rows))
    odds = "on average" if certificate.sure is None else f"{limit(certificate.sure)} sure"
    low, high = certificate.deferral_interval
    expected = f"{percent(certificate.deferral_rate)} expected ({percent(low)} to {percent(high)})"
    method = f", by {certificate.method}" if certificate.method else ""
    rows += [
        ("made", f"{certificate.date}, from {counted(certificate.n, 'example')}{method}, {odds}"),
        ("deferral", f"{expected}; {percent(evaluation.deferral.value)} here"),
        ("bound to", ", ".join(sorted(certificate.fingerprints)) or "nothing"),
        ("checksum", certificate.checksum[:16]),
    ]
    seen = seen_before(evaluation)
    own = html.paragraph(seen) if seen else ""
    return html.section("The promise", html.paragraph(certificate.guarantee), said, own, html.facts(rows))


def calibration(evaluation: Evaluation, why: str, notes: Iterable[str]) -> str:
    """The certificate, as it comes from these examples. why: why its score is the one that it is; empty: it was given."""
    certificate = evaluation.certificate
    assert certificate is not None, "it was made"
    low, high = certificate.deferral_interval
    method = f"{certificate.method or 'none'}, {counted(certificate.n, 'example')}, {certificate.date}"
    rows = [
        ("promise", certificate.label),
        ("method", method),
        ("score", f"{certificate.score}: {why}" if why else certificate.score),
        ("threshold", _threshold(evaluation)),
        ("deferred", f"{percent(certificate.deferral_rate)} of the examples; of all inputs {percent(low)} to {percent(high)}"),
    ]
    right = "as the cloud says" if certificate.agreement else "right"
    rows += [(SIDES.get(side, side), f"{percent(share)} {right}") for side, share in certificate.accuracy.items()]
    if certificate.unscored:
        rows.append(("without a score", f"{percent(certificate.unscored)} of the examples, which are deferred"))
    rows.append(("bound to", ", ".join(sorted(certificate.fingerprints)) or "nothing"))
    told = html.paragraph(
        "The threshold was found on these examples, so what it does on them is optimistic. The promise is about new inputs; an "
        "evaluation on other examples tests it."
    )
    return html.section(
        "The promise", html.paragraph(certificate.guarantee), html.facts(rows), told, *(html.paragraph(note) for note in notes)
    )


def undrawn() -> str:
    """What is in place of the figures."""
    return html.paragraph("The figures need matplotlib, which is not installed: pip install 'edgeroute[demo]'.")


def _threshold(evaluation: Evaluation) -> str:
    own = evaluation.thresholds
    if not own:
        return level(evaluation.threshold)
    finite = [t for t in own.values() if not isinf(t)]
    reach = f", {level(min(finite))} to {level(max(finite))}" if finite else ""
    all_deferred = f"; {counted_classes(len(own) - len(finite))} always deferred" if len(finite) < len(own) else ""
    return f"{counted_classes(len(own))}, each with its own{reach}{all_deferred}"


def numbers(evaluation: Evaluation) -> str:
    """Key figures as tiles, and a table of edge, cloud and cascade."""
    accuracy, latency, deferral = evaluation.accuracy(), evaluation.latency(), evaluation.deferral
    examples, right = evaluation.examples, "accuracy" if evaluation.labelled else "as the cloud says"
    boxes = []
    if "cascade" in accuracy:
        boxes.append((f"{right}, cascade", percent(accuracy["cascade"].value), interval(accuracy["cascade"])))
    elif "accepted" in accuracy:
        boxes.append((f"{right} of what the edge keeps", percent(accuracy["accepted"].value), interval(accuracy["accepted"])))
    boxes.append(("deferred", percent(deferral.value), interval(deferral)))
    if {"cascade", "cloud"} <= set(latency):
        alone = f"{duration(latency['cloud'][0])} by the cloud alone"
        boxes.append(("median latency", duration(latency["cascade"][0]), alone))
    elif "edge" in latency:
        boxes.append(("median latency, edge", duration(latency["edge"][0]), f"{duration(latency['edge'][-1])} at 99 %"))
    if examples.cloud is not None:
        sent, usd = examples.sent_bytes, examples.usd
        if sent:
            boxes.append(("sent", size(sent * deferral.value), f"{size(sent)} by the cloud alone"))
        if usd:
            boxes.append(("spent on the cloud", f"{usd * deferral.value:.4g} $", f"{usd:.4g} $ by the cloud alone"))

    asked = {"edge": 0.0, "cloud": 1.0, "cascade": deferral.value} if examples.cloud is not None else {"edge": 0.0}
    rows = []
    for leg, part in asked.items():
        known, times = accuracy.get(leg), latency.get(leg)
        cells = [percent(known.value), interval(known)] if known else [NONE] * 2
        if latency:
            cells += [duration(time) for time in times] if times else [NONE] * len(QUANTILES)
        cells.append(percent(part))
        if examples.sent_bytes:
            cells += [size(examples.sent_bytes * part), size(examples.received_bytes * part)]
        rows.append([LEGS[leg], *cells])
    quantiles = [f"p{q * 100:g}" for q in QUANTILES] if latency else []
    head = ["", right, "95 % interval", *quantiles, "deferred", *(["sent", "received"] if examples.sent_bytes else [])]
    return html.section("In numbers", html.tiles(boxes), html.table(head, rows, "Edge, cloud and cascade"))


def accuracy_over_deferral(evaluation: Evaluation) -> str:
    """The accuracy-deferral curve with the threshold in use."""
    drawn = figures.accuracy_over_deferral(evaluation)
    if drawn is None:
        return ""
    if evaluation.examples.cloud is None:
        title = "Accuracy of what the edge keeps"
        caption = "The cloud was not asked: the accuracy is that of the answers that are not deferred."
    else:
        title = "Accuracy over deferral" if evaluation.labelled else "Agreement with the cloud over deferral"
        caption = (
            "Each point of the solid line is a threshold. At the left end the edge answers alone, at the right end the cloud."
        )
    if evaluation.thresholds:
        caption += " The line has one threshold for all classes; in use is one for each, so the point may lie beside the line."
    if (area := evaluation.area()) is not None and not isnan(area.value):
        caption += f" The area between the line and that of deferring at random, as a share of an oracle's: {ranking(area)}."
    return html.section(title, html.figure(drawn, title, caption))


def latency(evaluation: Evaluation) -> str:
    """Latency distributions."""
    drawn = figures.latency(evaluation)
    if drawn is None:
        return ""
    caption = "The share of inputs that are answered within a time."
    if "cascade" in evaluation.seconds():
        caption += " Cascade: the edge, and then the cloud where it is asked."
    return html.section("Latency", html.figure(drawn, "The share of inputs answered over time, for each leg", caption))


def cost(evaluation: Evaluation) -> str:
    """Cost per input on each side, and the break-even deferral rate."""
    found, deferral = evaluation.costs(), evaluation.deferral.value
    if not found:
        return ""
    rows = []
    called = {"seconds": "time (medians)", "usd": "dollars", "joules": "energy"}
    for one in found:
        even = one.break_even
        cells = [amount(one.what, value) for value in (one.edge, one.cloud, one.together(deferral))]
        rows.append([called[one.what], *cells, "none" if even is not None and even <= 0 else percent(even), percent(deferral)])
    text = (
        "The edge is always paid, and the cloud where it is asked. So the cascade costs less than the cloud alone while the "
        "deferral is below the break-even, 1 - edge / cloud."
    )
    head = ["an input", "edge", "cloud", "cascade", "break-even", "deferral here"]
    return html.section("Cost", html.paragraph(text), html.table(head, rows, "Cost of an input"))


def reliability(evaluation: Evaluation) -> str:
    """Reliability diagram and expected calibration error of the edge."""
    right, score = evaluation.edge_right, evaluation.examples.score
    known = score[np.isfinite(score)]
    if right is None or not known.size:
        return ""
    right_said = "right, %" if evaluation.labelled else "as the cloud says, %"
    found = bins(np.where(np.isfinite(score), score, np.nan), right)
    said = f"{counted(known.size, 'answer')} in {counted(len(found), 'bin')} of about the same size."
    meant = evaluation.names.score not in NO_PROBABILITY and known.min() >= 0 and known.max() <= 1
    if meant:
        error = calibration_error(found) * 100
        said += (
            f" The expected calibration error is {error:.2f} percentage points. A threshold does not need it to be small: it "
            "looks at the order of the scores alone."
        )
    else:
        said += " The score is not meant as a probability: what counts is that the share rises with it."
    drawn = figures.reliability(found, diagonal=bool(meant), right=right_said)
    return html.section("Reliability", html.figure(drawn, "The share of right answers over the score", said))


def scores(evaluation: Evaluation) -> str:
    """Score histograms of correct and wrong answers."""
    drawn = figures.histograms(evaluation)
    if drawn is None:
        return ""
    said = "How many answers of the edge have which score"
    said += "." if evaluation.edge_right is None else "; the two scales differ."
    if not evaluation.thresholds:
        said += " The dashed line is the threshold, where it is within the scores."
    return html.section("Scores", html.figure(drawn, "Histograms of the score", said))


def classes(evaluation: Evaluation) -> str:
    """Per-class results; the worst `WORST` if there are more."""
    found = evaluation.classes()
    if len(found) > WORST and 2 * len(found) > evaluation.n:
        text = f"There are {len(found):,} different answers to {counted(evaluation.n, 'input')}: too many to tell of each."
        return html.section("Classes", html.paragraph(text))
    said = "By the right answer." if evaluation.labelled and not evaluation.thresholds else "By what the edge says."
    if evaluation.edge_right is not None:
        said += " Shares of right answers." if evaluation.labelled else " Shares of answers that are the cloud's."
    if len(found) > WORST:
        said += f" The worst {WORST} of {len(found):,}."
        found = sorted(found, key=_worse)[:WORST]
    columns = [leg for leg in LEGS if getattr(found[0], leg) is not None]
    head = ["class", "inputs", *(LEGS[leg] for leg in columns), "deferred"]
    rows = [[one.name, f"{one.n:,}", *(percent(getattr(one, leg)) for leg in columns), percent(one.deferral)] for one in found]
    if evaluation.thresholds:
        head.append("threshold")
        for row in rows:
            own = evaluation.thresholds.get(row[0], evaluation.threshold)
            row.append("none" if isinf(own) else level(own))
    return html.section("Classes", html.paragraph(said), html.table(head, rows, "Classes"))


def _worse(one: Class) -> float:
    """Sort key, worst class first."""
    right = one.edge if one.cascade is None else one.cascade
    return -one.deferral if right is None else right


def notes(evaluation: Evaluation) -> str:
    """Definitions and caveats of the numbers shown."""
    asked = evaluation.examples.cloud is not None
    said = [
        "An answer of the edge is accepted where its score is at least the threshold. Else it is deferred: the cloud is asked.",
        "The cascade is edge and cloud together: the edge's answer where it is accepted, and else the cloud's.",
    ]
    if evaluation.labelled:
        said.append("Accuracy is the share of answers that are the label.")
    elif asked:
        said.append("There are no labels. An answer counts as right where it is the cloud's, so the cloud has 100 %.")
    else:
        said.append("There are neither labels nor answers of the cloud, so nothing is said about what is right.")
    if evaluation.certificate is not None and (how := methods(evaluation.certificate)):
        said.append(how)
    said.append("Intervals are of 95 %, exact (Clopper-Pearson), for inputs that are drawn like these and independent.")
    if asked:
        said.append("The oracle knows which side is right, and defers first what gains by it. No score does better.")
    if "cascade" in evaluation.seconds():
        said.append("The latency of the cascade is the sum of the two where the cloud is asked, with no hedging.")
    if evaluation.examples.sent_bytes or evaluation.examples.usd:
        said.append("The cloud was asked for all inputs; what the cascade sends, in bodies, and spends is scaled from that.")
    unscored = int(np.isnan(evaluation.examples.score).sum())
    if unscored:
        does = "accepted" if evaluation.accept_unsure else "deferred"
        said.append(f"{counted(unscored, 'answer')} without a score: {does}, and in no bin or histogram.")
    listed = "\n".join(f"<li>{html.escape(note)}</li>" for note in said)
    return html.section("What is what", f"<ul>\n{listed}\n</ul>")
