"""Results of `calibrate` and `evaluate` of a router: numbers, a page, and the display in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from edgeroute.confidence.certificate import Certificate
from edgeroute.confidence.learned_score import Learned
from edgeroute.confidence.scores import Score
from edgeroute.core.answer_reasons import finite
from edgeroute.core.routing_policy import INF
from edgeroute.errors import RuntimeMissing
from edgeroute.system.process import replace_file
from edgeroute.tools.measure.certification import verdicts
from edgeroute.tools.measure.evaluation import QUANTILES, Evaluation, Share
from edgeroute.tools.measure.report.numbers_in_words import (
    count_text,
    counted_classes,
    ladder_thresholds,
    levels,
    percent,
    seen_before,
    verdict,
)
from edgeroute.tools.measure.report.report_page import Page, calibration_page, cell, document, evaluation_page

# Numbers of an evaluation as JSON data.


def latencies(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Return leg -> quantile (p50, p90, p99) -> seconds, as far as measured."""
    return {
        leg: {f"p{q * 100:g}": time for q, time in zip(QUANTILES, times, strict=True)}
        for leg, times in evaluation.latency().items()
    }


def numbers(evaluation: Evaluation, notes: Sequence[str]) -> dict[str, Any]:
    """Return all numbers as JSON data. Shares 0..1, with their 95 % intervals; times in seconds; None: unknown."""
    examples, certificate = evaluation.examples, evaluation.certificate
    return {
        "n": evaluation.n,
        "labelled": evaluation.labelled,
        "threshold": None if evaluation.ladder else finite(evaluation.threshold),
        "ladder": [finite(threshold) for threshold in evaluation.ladder],
        "thresholds": {label: finite(t) for label, t in evaluation.thresholds.items()},
        "accuracy": {side: _share(part) for side, part in evaluation.accuracy().items()},
        "deferral": _share(evaluation.deferral),
        "latency_s": latencies(evaluation),
        "sent_bytes": examples.sent_bytes,
        "received_bytes": examples.received_bytes,
        "usd": examples.usd,
        "promise": None if certificate is None else certificate.label,
        "uncalibrated": evaluation.uncalibrated,
        "seen_before": evaluation.seen_before,
        "area": None if (area := evaluation.area()) is None or isnan(area.value) else area._asdict(),
        "held": [{**v._asdict(), "held": v.held, "broken": v.broken, "doubtful": v.doubtful} for v in verdicts(evaluation)],
        "arms": [dict(arm) for arm in evaluation.arms],
        "notes": list(notes),
    }


def _share(part: Share) -> dict[str, Any]:
    """Return a share as JSON data; its value is None if it is of nothing."""
    return {**part._asdict(), "value": part.value if part.of else None}


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Result of `router.evaluate(X, y)`: the effect of the router's threshold on examples. A notebook shows it as a page.

    Without labels, right means: as the cloud says.

    Attributes:
        evaluation: the examples with the threshold, the source of everything here.
        notes: notes on the measurement, one line each.
    """

    evaluation: Evaluation
    notes: Sequence[str] = ()

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.evaluation.n

    @property
    def accuracy(self) -> Mapping[str, Share]:
        """Share of right answers of edge, cloud, cascade (both together) and accepted edge answers, as far as known."""
        return self.evaluation.accuracy()

    @property
    def deferral(self) -> Share:
        """Share of the inputs that are deferred to the cloud."""
        return self.evaluation.deferral

    @property
    def latency_s(self) -> Mapping[str, Mapping[str, float]]:
        """Edge, cloud and cascade -> p50, p90 and p99 -> seconds, as far as measured."""
        return latencies(self.evaluation)

    @property
    def held(self) -> bool | None:
        """True if the certificate's guarantee held on these examples; None: there is none, or they cannot measure it."""
        if self.evaluation.uncalibrated:
            return None
        results = verdicts(self.evaluation)
        return all(result.held for result in results) if results else None

    @property
    def verdict(self) -> str:
        """Text: whether the guarantee held, and if these are the calibration's own examples, which prove nothing."""
        return " ".join(filter(None, (*verdict(self.evaluation, verdicts(self.evaluation)), seen_before(self.evaluation))))

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON data, as `edgeroute evaluate --json` prints them."""
        return numbers(self.evaluation, self.notes)

    def html(self) -> str:
        """Return the page: one HTML file, without scripts and external resources.

        Raises:
            RuntimeMissing: matplotlib is not installed.
        """
        return document(evaluation_page(self.evaluation))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the page to a file, replacing it.

        Raises:
            RuntimeMissing: matplotlib is not installed.
            StoreError: the file cannot be written.
        """
        page = self.html()
        replace_file(Path(path), page)

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return _cell(lambda drawn: evaluation_page(self.evaluation, drawn=drawn))

    def __repr__(self) -> str:
        accuracy = self.accuracy
        side = next((side for side in ("cascade", "accepted", "edge") if side in accuracy), None)
        right = "right" if self.evaluation.labelled else "as the cloud says"
        parts = [] if side is None else [f"{side} {percent(accuracy[side].value)} {right}"]
        parts.append(f"{percent(self.deferral.value)} deferred")
        if self.held is not None:
            doubtful = any(result.doubtful for result in verdicts(self.evaluation))
            held = "the guarantee held, as the cloud is worse than the edge" if doubtful else "the guarantee held"
            parts.append(held if self.held else "the guarantee did not hold")
        if self.evaluation.uncalibrated:
            parts.append(f"uncalibrated: {self.evaluation.uncalibrated}")
        return f"<EvaluationResult of {count_text(self.n, 'input')}: {', '.join(parts)}>"


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """Result of `router.calibrate(X, y, max_loss=0.01)`: a threshold with a guarantee. A notebook shows it as a page.

    Use it as `Router(..., threshold=result)`, with its score.

    Attributes:
        certificate: the threshold, its guarantee, and what it is bound to.
        score: score of the threshold: a name, or the function; a `Learned` if it was fitted.
        why: reason why a score was fitted, or not; empty: no fit was requested.
        evaluation: the calibration's examples, with their scores and that threshold.
        notes: notes on examples and certificate, one line each.
        uncounted: reason why a router will call the certificate uncalibrated; empty: the certificate counts.
        labels_read: number of labels that the test has read, with `label=`; None: without.
        labels: index of an input -> its label, with `label=`: known ones and those that the function returned. Pass it as `y` to
            calibrate again without asking for them, with more inputs after these, too.
    """

    certificate: Certificate
    score: str | Score
    why: str
    evaluation: Evaluation
    notes: Sequence[str] = ()
    uncounted: str = ""
    labels_read: int | None = None
    labels: Mapping[int, Any] | None = None

    @property
    def fitted(self) -> Learned | None:
        """Fitted score; None: no score was fitted."""
        return self.score if self.why and isinstance(self.score, Learned) else None

    def as_dict(self) -> dict[str, Any]:
        """Return the certificate, the number of labels read and the notes as JSON data."""
        data = {"certificate": self.certificate.as_dict(), "score": self._score, "why": self.why, "notes": list(self.notes)}
        return data | ({} if self.labels_read is None else {"labels_read": self.labels_read})

    def html(self) -> str:
        """Return the page: one HTML file, without scripts and external resources.

        Raises:
            RuntimeMissing: matplotlib is not installed.
        """
        return document(calibration_page(self.evaluation, self.why, self.notes))

    def save(self, path: str | PathLike[str]) -> dict[str, str]:
        """Write the certificate as JSON, and a fitted score beside it, as `NAME.score.json`, replacing both.

        Returns the entries for a policy file in that folder: `{"threshold": ..., "score": ...}`.

        Raises:
            StoreError: a file cannot be written.
        """
        file = Path(path)
        lines = {"threshold": file.name}
        self.certificate.save(file)
        if self.fitted is not None:
            beside = file.with_suffix(".score.json")
            self.fitted.save(beside)
            lines["score"] = beside.name
        elif isinstance(self.score, str):
            lines["score"] = self.score
        return lines

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return _cell(lambda drawn: calibration_page(self.evaluation, self.why, self.notes, drawn=drawn))

    @property
    def _score(self) -> str:
        """Name of the score."""
        return self.score if isinstance(self.score, str) else getattr(self.score, "name", "function")

    def __repr__(self) -> str:
        certificate = self.certificate
        least = f"threshold{'s' * bool(certificate.ladder)} {levels(certificate.threshold, {}, ladder_thresholds(certificate))}"
        if certificate.thresholds:
            least = f"thresholds of {counted_classes(len(certificate.thresholds))}"
        examples = count_text(certificate.n, "example")
        text = f"{certificate.label}: {least} of {self._score}, {percent(certificate.deferral_rate)} of {examples} deferred"
        if certificate.threshold == INF and all(threshold == INF for threshold in certificate.thresholds.values()):
            text = f"{certificate.label}: no threshold of {self._score} keeps it with {examples}, so all are deferred"
        if self.labels_read is not None:
            text += f", {count_text(self.labels_read, 'label')} read"
        doubts = [f"a router will call it uncalibrated: {self.uncounted}"] if self.uncounted else []
        return f"<CalibrationResult {'; '.join([text, *doubts, *certificate.doubts])}>"


def _cell(make_page: Callable[[bool], Page]) -> str:
    """Return a page for a notebook under a random id, without figures if matplotlib is missing, so that it never raises."""
    try:
        page = make_page(True)
    except RuntimeMissing:
        page = make_page(False)
    return cell(page, f"edgeroute-{uuid4().hex[:12]}")
