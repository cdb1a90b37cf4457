"""Sections of the evaluation and calibration pages; empty strings where the examples lack the data."""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf, isnan

import numpy as np

from edgeroute.confidence.scores import SCORES
from edgeroute.tools.measure.certification_and_verdicts import verdicts
from edgeroute.tools.measure.report import figures
from edgeroute.tools.measure.report import html_blocks as html
from edgeroute.tools.measure.report import numbers_verdicts_and_table_rows as words
from edgeroute.tools.measure.threshold_evaluation import Class, Evaluation, bins, calibration_error
from edgeroute.tools.state_colours_and_marks import marked

WORST = 20  # most classes in the table
NO_PROBABILITY = {*SCORES, "learned"} - {"msp"}  # scores that are not probabilities of being correct


def promise(evaluation: Evaluation) -> str:
    """Return the section with the certificate's guarantee, and if it held on these examples."""
    certificate = evaluation.certificate
    short, long = words.verdict(evaluation, verdicts(evaluation))
    kind, sign = words.outcome(evaluation, verdicts(evaluation))
    mark = f'<span class="sign" aria-hidden="true">{sign}</span> ' if sign else ""
    headline = f'<p class="verdict {kind}">{mark}<strong>{html.escape(short)}</strong> {html.escape(long)}</p>'
    rows = [("threshold", words.levels(evaluation.threshold, evaluation.thresholds, evaluation.ladder))]
    warnings = [*map(html.paragraph, filter(None, (words.seen_before(evaluation), *evaluation.doubts)))]
    if certificate is None:
        return html.section("The guarantee", headline, *warnings, html.facts(rows))
    odds = "on average" if certificate.sure is None else f"{words.limit(certificate.sure)} sure"
    low, high = certificate.deferral_interval
    expected = f"{words.percent(certificate.deferral_rate)} expected ({words.percent(low)} to {words.percent(high)})"
    method = f", by {certificate.method}" if certificate.method else ""
    rows += [
        ("made", f"{certificate.date}, from {words.count_text(certificate.n, 'example')}{method}, {odds}"),
        ("deferral", f"{expected}; {words.percent(evaluation.deferral.value)} here"),
        ("bound to", ", ".join(sorted(certificate.fingerprints)) or "nothing"),
        ("checksum", certificate.checksum[:16]),
    ]
    return html.section("The guarantee", html.paragraph(certificate.guarantee), headline, *warnings, html.facts(rows))


def calibration(evaluation: Evaluation, why: str, notes: Iterable[str]) -> str:
    """Return the section with a new certificate. why: reason for the choice of the score; empty: it was given."""
    certificate = evaluation.certificate
    assert certificate is not None, "a calibration has one"
    rows = words.certificate_rows(certificate, why)
    rows.append(("bound to", ", ".join(sorted(certificate.fingerprints)) or "nothing"))
    caveat = html.paragraph(
        "The threshold was found on these examples, so what it does on them is optimistic. The guarantee is about new inputs; an "
        "evaluation on other examples tests it."
    )
    parts = [html.paragraph(certificate.guarantee), html.facts(rows), caveat, *map(html.paragraph, notes)]
    return html.section("The guarantee", *parts)


def undrawn() -> str:
    """Return the paragraph in place of the figures if matplotlib is missing."""
    return html.paragraph("The figures need matplotlib, which is not installed: pip install 'edgeroute[demo]'.")


def numbers(evaluation: Evaluation) -> str:
    """Return the section with key figures as tiles, and a table of edge, cloud and cascade."""
    accuracy, latency, deferral = evaluation.accuracy(), evaluation.latency(), evaluation.deferral
    examples, right = evaluation.examples, "accuracy" if evaluation.labelled else "as the cloud says"
    boxes: list[tuple[str, str, str]] = []
    for side, name in (("cascade", f"{right}, edge and cloud"), ("accepted", f"{right} of what the edge keeps")):
        if side in accuracy and not boxes:
            boxes.append((name, words.percent(accuracy[side].value), words.interval(accuracy[side])))
    boxes.append(("deferred", words.percent(deferral.value), words.interval(deferral)))
    if {"cascade", "cloud"} <= set(latency):
        remark = f"{words.duration(latency['cloud'][0])} by the cloud alone"
        boxes.append(("median latency", words.duration(latency["cascade"][0]), remark))
    elif "edge" in latency:
        median, *_, most = map(words.duration, latency["edge"])
        boxes.append((marked("edge", "edge, median latency"), median, f"{most} at 99 %"))
    if examples.cloud is not None:
        sent, usd = examples.sent_bytes, examples.usd
        if sent:
            boxes.append(("sent", words.size(sent * deferral.value), f"{words.size(sent)} by the cloud alone"))
        if usd:
            boxes.append(("spent on the cloud", f"{usd * deferral.value:.4g} $", f"{usd:.4g} $ by the cloud alone"))

    head, rows = words.side_rows(evaluation)
    return html.section("In numbers", html.tiles(boxes), html.table(head, rows, "The edge, the cloud, and both"))


def accuracy_over_deferral(evaluation: Evaluation) -> str:
    """Return the section with the figure of the curve and the threshold in use, and its area in words.

    Empty if nothing can be drawn. The curve is accuracy over deferral; without labels, agreement with the cloud; without a cloud,
    accuracy of what is kept.
    """
    drawn = figures.accuracy_over_deferral(evaluation)
    if drawn is None:
        return ""
    if evaluation.examples.cloud is None:
        title = "Accuracy of what the edge keeps"
        caption = "The cloud was not asked: the accuracy is that of the answers that are not deferred."
    else:
        title = "Accuracy over deferral" if evaluation.labelled else "Agreement with the cloud over deferral"
        caption = "Each point of the solid line is a threshold: at the left end the edge answers alone, at the right the cloud."
    if evaluation.thresholds:
        caption += " The line has one threshold for all classes; in use is one for each, so the point may lie beside the line."
    if (area := evaluation.area()) is not None and not isnan(area.value):
        caption += (
            f" The area between the line and that of deferring at random, as a share of an oracle's: {words.ranking(area)}."
        )
    return html.section(title, html.figure(drawn, title, caption))


def latency(evaluation: Evaluation) -> str:
    """Return the section with the latency distributions; empty if none was measured."""
    drawn = figures.latency(evaluation)
    if drawn is None:
        return ""
    caption = "The share of inputs that are answered within a time."
    if "cascade" in evaluation.seconds():
        caption += " Edge and cloud: the edge, and then the cloud where it is asked."
    return html.section("Latency", html.figure(drawn, "The share of inputs answered over time, for each side", caption))


def cost(evaluation: Evaluation) -> str:
    """Return the section with the cost per input on each side, and the break-even deferral rate; empty if unknown."""
    costs, deferral = evaluation.costs(), evaluation.deferral.value
    if not costs:
        return ""
    rows = []
    labels = {"seconds": "time (medians)", "usd": "dollars", "joules": "energy"}
    for cost_row in costs:
        even = cost_row.break_even
        cells = [words.amount(cost_row.what, value) for value in (cost_row.edge, cost_row.cloud, cost_row.together(deferral))]
        break_even = "none" if even is not None and even <= 0 else words.percent(even)
        rows.append([labels[cost_row.what], *cells, break_even, words.percent(deferral)])
    text = (
        "The edge is always paid, and the cloud where it is asked. So edge and cloud cost less than the cloud alone while the "
        "deferral is below the break-even, 1 - edge / cloud."
    )
    head = ["an input", marked("edge"), marked("cloud"), "edge and cloud", "break-even", "deferral here"]
    return html.section("Cost", html.paragraph(text), html.table(head, rows, "Cost of an input"))


def reliability(evaluation: Evaluation) -> str:
    """Return the section with the reliability diagram, and of a probability the calibration error, of the edge; empty if unknown.

    Empty also for several edge models together.
    """
    right, score = evaluation.edge_right, evaluation.examples.score
    finite = score[np.isfinite(score)]
    if right is None or not finite.size or evaluation.ladder:
        return ""
    axis_label = "right, %" if evaluation.labelled else "as the cloud says, %"
    parts = bins(np.where(np.isfinite(score), score, np.nan), right)
    caption = f"{words.count_text(finite.size, 'answer')} in {words.count_text(len(parts), 'bin')} of about the same size."
    is_probability = evaluation.names.score not in NO_PROBABILITY and finite.min() >= 0 and finite.max() <= 1
    if is_probability:
        error = calibration_error(parts) * 100
        caption += (
            f" The expected calibration error is {error:.2f} percentage points. A threshold does not need it to be small: it "
            "looks at the order of the scores alone."
        )
    else:
        caption += " The score is not meant as a probability: what counts is that the share rises with it."
    drawn = figures.reliability(parts, diagonal=bool(is_probability), right=axis_label)
    return html.section("Reliability", html.figure(drawn, "The share of right answers over the score", caption))


def scores(evaluation: Evaluation) -> str:
    """Return the section with score histograms of correct and wrong answers.

    Empty without scores, and for several edge models.
    """
    drawn = None if evaluation.ladder else figures.histograms(evaluation)
    if drawn is None:
        return ""
    caption = "How many answers of the edge have which score"
    caption += "." if evaluation.edge_right is None else "; the two scales differ."
    if not evaluation.thresholds:
        caption += " The dashed line is the threshold, where it is within the scores."
    return html.section("Scores", html.figure(drawn, "Histograms of the score", caption))


def classes(evaluation: Evaluation) -> str:
    """Return the section with results per class: the worst `WORST` if there are more; a sentence if far too many."""
    results = evaluation.classes()
    if len(results) > WORST and 2 * len(results) > evaluation.n:
        text = f"There are {len(results):,} different answers to {words.count_text(evaluation.n, 'input')}: too many for a table."
        return html.section("Classes", html.paragraph(text))
    caption = "By the right answer." if evaluation.labelled and not evaluation.thresholds else "By what the edge says."
    if evaluation.edge_right is not None:
        caption += " Shares of right answers." if evaluation.labelled else " Shares of answers that are the cloud's."
    if len(results) > WORST:
        caption += f" The worst {WORST} of {len(results):,}."
        results = sorted(results, key=_worse)[:WORST]
    columns = [leg for leg in words.LEGS if getattr(results[0], leg) is not None]
    head = ["class", "inputs", *(words.LEGS[leg] for leg in columns), "deferred"]
    rows = [
        [result.name, f"{result.n:,}", *(words.percent(getattr(result, leg)) for leg in columns), words.percent(result.deferral)]
        for result in results
    ]
    if evaluation.thresholds:
        head.append("threshold")
        for row in rows:
            threshold = evaluation.thresholds.get(row[0], evaluation.threshold)
            row.append("none" if isinf(threshold) else words.level(threshold))
    return html.section("Classes", html.paragraph(caption), html.table(head, rows, "Classes"))


def _worse(result: Class) -> float:
    """Return the sort key of a class, worst first: its accuracy, of the cascade or else the edge; by deferral if unknown."""
    right = result.edge if result.cascade is None else result.cascade
    return -result.deferral if right is None else right


def definitions(evaluation: Evaluation) -> str:
    """Return the section with definitions and caveats of the numbers."""
    asked = evaluation.examples.cloud is not None
    sentences = [
        "An answer of the edge is accepted where its score is at least the threshold. Else it is deferred: the cloud is asked.",
        "Edge and cloud together: the edge's answer where it is accepted, and else the cloud's.",
    ]
    if evaluation.labelled:
        sentences.append("Accuracy is the share of answers that are the label.")
    elif asked:
        sentences.append("Not all labels are known. An answer counts as right where it is the cloud's, so the cloud has 100 %.")
    else:
        sentences.append("There are neither labels nor answers of the cloud, so nothing is said about what is right.")
    if evaluation.certificate is not None and (how := words.methods(evaluation.certificate)):
        sentences.append(how)
    sentences.append("Intervals are of 95 %, exact (Clopper-Pearson), for inputs that are drawn like these and independent.")
    if asked:
        sentences.append("The oracle knows which side is right, and defers first what gains by it. No score does better.")
    if "cascade" in evaluation.seconds():
        sentences.append("The latency of edge and cloud is the sum of the two where the cloud is asked, with no hedging.")
    if evaluation.examples.sent_bytes or evaluation.examples.usd:
        sentences.append("The cloud was asked for all inputs; what is sent, in bodies, and spent is scaled from that.")
    unscored = int(np.isnan(evaluation.examples.score).sum())
    if unscored:
        does = "accepted" if evaluation.accept_unsure else "deferred"
        sentences.append(f"{words.count_text(unscored, 'answer')} without a score: {does}, and in no bin or histogram.")
    return html.section("What is what", html.listed(sentences))
