"""What `calibrate` and `evaluate` of a router return: numbers, a page, and what a notebook shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from edgeroute.confidence.certificate import Certificate
from edgeroute.confidence.learned import Learned
from edgeroute.confidence.scores import Score
from edgeroute.core.explain import finite
from edgeroute.core.policy import INF
from edgeroute.errors import RuntimeMissing, StoreError
from edgeroute.system.process import replace_file
from edgeroute.tools.measure.certified import verdicts
from edgeroute.tools.measure.evaluation import QUANTILES, Evaluation, Share
from edgeroute.tools.measure.report.page import Page, calibrated, cell, document, evaluated
from edgeroute.tools.measure.report.words import counted, counted_classes, level, percent, seen_before, verdict

# The numbers of an evaluation for programs.


def latencies(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Leg -> quantile (p50, p90, p99) -> seconds; of what was measured."""
    return {
        leg: {f"p{q * 100:g}": time for q, time in zip(QUANTILES, times, strict=True)}
        for leg, times in evaluation.latency().items()
    }


def numbers(evaluation: Evaluation, notes: Sequence[str]) -> dict[str, Any]:
    """All of them in JSON types. Shares 0..1, with their 95 % intervals; times in seconds."""
    made, certificate = evaluation.examples, evaluation.certificate
    return {
        "n": evaluation.n,
        "labelled": evaluation.labelled,
        "threshold": finite(evaluation.threshold),
        "thresholds": {label: finite(t) for label, t in evaluation.thresholds.items()},
        "accuracy": {side: _share(found) for side, found in evaluation.accuracy().items()},
        "deferral": _share(evaluation.deferral),
        "latency_s": latencies(evaluation),
        "sent_bytes": made.sent_bytes,
        "received_bytes": made.received_bytes,
        "usd": made.usd,
        "promise": None if certificate is None else certificate.label,
        "uncalibrated": evaluation.uncalibrated,
        "seen_before": evaluation.seen_before,
        "area": None if (area := evaluation.area()) is None or isnan(area.value) else area._asdict(),
        "held": [{**one._asdict(), "held": one.held, "broken": one.broken} for one in verdicts(evaluation)],
        "arms": [dict(arm) for arm in evaluation.arms],
        "notes": list(notes),
    }


def _share(found: Share) -> dict[str, Any]:
    return {**found._asdict(), "value": found.value if found.of else None}


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What a router's threshold does on examples: `router.evaluate(X, y)`. A notebook shows it as its page.

    Without labels, right means: as the cloud says.

    Attributes:
        evaluation: the examples with the threshold, from which everything here is.
        notes: on the measurement, one line each.
    """

    evaluation: Evaluation
    notes: Sequence[str] = ()

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.evaluation.n

    @property
    def accuracy(self) -> Mapping[str, Share]:
        """Share of right answers of edge, cloud, cascade (both together) and accepted (the edge's that are kept), if known."""
        return self.evaluation.accuracy()

    @property
    def deferral(self) -> Share:
        """Share of the inputs that are deferred to the cloud."""
        return self.evaluation.deferral

    @property
    def latency_s(self) -> Mapping[str, Mapping[str, float]]:
        """Edge, cloud and cascade -> p50, p90 and p99 -> seconds; those that were measured."""
        return latencies(self.evaluation)

    @property
    def held(self) -> bool | None:
        """Whether the certificate's promise held on these examples; None: there is none, or it cannot be measured on them."""
        if self.evaluation.uncalibrated:
            return None
        found = verdicts(self.evaluation)
        return all(one.held for one in found) if found else None

    @property
    def verdict(self) -> str:
        """The same in words, and whether these are the calibration's own examples, on which it says nothing."""
        return " ".join(filter(None, (*verdict(self.evaluation, verdicts(self.evaluation)), seen_before(self.evaluation))))

    def as_dict(self) -> dict[str, Any]:
        """All numbers in JSON types, as `edgeroute evaluate --json` prints them."""
        return numbers(self.evaluation, self.notes)

    def html(self) -> str:
        """A page to show: one HTML file, without scripts and external resources.

        Raises:
            RuntimeMissing: matplotlib is not installed.
        """
        return document(evaluated(self.evaluation))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the page.

        Raises:
            RuntimeMissing: matplotlib is not installed.
            StoreError: the file cannot be written.
        """
        page = self.html()
        with _writing(path):
            replace_file(Path(path), page)

    def _repr_html_(self) -> str:
        return _cell(lambda drawn: evaluated(self.evaluation, drawn=drawn))

    def __repr__(self) -> str:
        accuracy = self.accuracy
        side = next((side for side in ("cascade", "accepted", "edge") if side in accuracy), None)
        right = "right" if self.evaluation.labelled else "as the cloud says"
        said = [] if side is None else [f"{side} {percent(accuracy[side].value)} {right}"]
        said.append(f"{percent(self.deferral.value)} deferred")
        if self.held is not None:
            said.append("the promise held" if self.held else "the promise did not hold")
        return f"<EvaluationResult of {counted(self.n, 'input')}: {', '.join(said)}>"


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """A threshold with a guarantee: `router.calibrate(X, y, max_loss=0.01)`. A notebook shows it as its page.

    It is used as `Router(..., threshold=result.certificate, score=result.score)`.

    Attributes:
        certificate: the threshold, its guarantee, and what it is bound to.
        score: that the threshold is for: a name, or the function; a `Learned` if it was fitted.
        why: why a score was fitted, or not; empty: none was to be.
        evaluation: the examples that it was found on, with their scores and that threshold.
        notes: on examples and certificate, one line each.
    """

    certificate: Certificate
    score: str | Score
    why: str
    evaluation: Evaluation
    notes: Sequence[str] = ()

    @property
    def fitted(self) -> Learned | None:
        """The score that was fitted; None: none was."""
        return self.score if self.why and isinstance(self.score, Learned) else None

    def as_dict(self) -> dict[str, Any]:
        """The certificate and the notes in JSON types."""
        return {"certificate": self.certificate.as_dict(), "score": self._score, "why": self.why, "notes": list(self.notes)}

    def html(self) -> str:
        """A page to show: one HTML file, without scripts and external resources.

        Raises:
            RuntimeMissing: matplotlib is not installed.
        """
        return document(calibrated(self.evaluation, self.why, self.notes))

    def save(self, path: str | PathLike[str]) -> dict[str, str]:
        """Writes the certificate as JSON, and a score that was fitted beside it, as `NAME.score.json`.

        Returns what a policy file in that folder says of them: `{"threshold": ..., "score": ...}`.

        Raises:
            StoreError: a file cannot be written.
        """
        file = Path(path)
        lines = {"threshold": file.name}
        with _writing(file):
            self.certificate.save(file)
        if self.fitted is not None:
            beside = file.with_suffix(".score.json")
            self.fitted.save(beside)
            lines["score"] = beside.name
        elif isinstance(self.score, str):
            lines["score"] = self.score
        return lines

    def _repr_html_(self) -> str:
        return _cell(lambda drawn: calibrated(self.evaluation, self.why, self.notes, drawn=drawn))

    @property
    def _score(self) -> str:
        return self.score if isinstance(self.score, str) else getattr(self.score, "name", "function")

    def __repr__(self) -> str:
        made = self.certificate
        least = f"thresholds of {counted_classes(len(made.thresholds))}"
        least = least if made.thresholds else f"threshold {level(made.threshold)}"
        said = f"{made.label}: {least} of {self._score}, {percent(made.deferral_rate)} of {counted(made.n, 'example')} deferred"
        if made.threshold == INF and all(threshold == INF for threshold in made.thresholds.values()):
            said = f"{made.label}: no threshold of {self._score} keeps it with {counted(made.n, 'example')}, so all are deferred"
        return f"<CalibrationResult {said}>"


def _cell(made: Callable[[bool], Page]) -> str:
    """For a notebook, with figures if they can be drawn: what it shows raises nothing."""
    try:
        shown = made(True)
    except RuntimeMissing:
        shown = made(False)
    return cell(shown, f"edgeroute-{uuid4().hex[:12]}")


@contextmanager
def _writing(path: str | PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e
