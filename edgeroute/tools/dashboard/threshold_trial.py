"""Replay of recorded requests with another threshold: deferrals, cost and bytes, and the accuracy known from audits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.answer_reasons import finite
from edgeroute.core.egress import Rules
from edgeroute.core.routing_policy import INF, Policy, Target, Terms
from edgeroute.errors import BadInput
from edgeroute.tools.dashboard.request_window import ANSWERED
from edgeroute.tools.measure.evaluation import share
from edgeroute.tools.replay import Numbers, Recording, Setup, collect, replay
from edgeroute.tools.replay.replayed_policy import Port
from edgeroute.tools.replay.trace_reader import confidence

STEPS = 100
"""Positions of a slider, beside the threshold in force."""
DRAWN = 20
"""Points of a curve, of those positions."""
NO_GUARANTEE = "No certificate: nothing is guaranteed at any threshold."


class AuditedAnswer(NamedTuple):
    """Audited answer of an edge: its confidence, True if it agrees with the cloud's, and its weight."""

    confidence: float
    agrees: bool
    weight: float


class Trial:
    """Recorded requests for replays with other thresholds. Not synchronised; `at` takes some 10 us a request.

    Args:
        records: records of a trace, the oldest first.
        setup: policy for the replays; None: derived from the records.
        certificates: certificates of the edges whose threshold comes from one, by name; None: unknown, there is no policy.
        audits: lines of an audit log.

    Raises:
        BadInput: there are no records, or they are no trace.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        setup: Setup | None = None,
        certificates: Mapping[str, BoundCertificate] | None = None,
        audits: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.recording: Recording = collect(records, "the latest requests")
        self.guessed = setup is None
        self.setup = setup_of(records) if setup is None else setup
        self._certificates = certificates
        self._audited = _audited(audits)
        self.edges = [target for target in self.setup.targets if target.side == "edge" and target.threshold is not None]

    def shown(self) -> dict[str, Any]:
        """Return the slider's thresholds for each edge, the one in force, and the points of a curve."""
        return {
            "requests": len(self.recording.requests),
            "span_s": self.recording.requests[-1].begun,
            "recorded": _numbers(self.recording.recorded.numbers()),
            "guessed": self.guessed,
            "edges": [self._edge(target) for target in self.edges],
        }

    def _edge(self, target: Target) -> dict[str, Any]:
        """Return an edge's slider and curve; replays the requests for each point."""
        steps = self._steps(target)
        drawn = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, DRAWN)})
        certificate = (self._certificates or {}).get(target.name)
        return {
            "name": target.name,
            "threshold": finite(target.threshold),
            "label": target.label,
            "per_class": bool(target.thresholds),
            "steps": steps,
            "certified": None if certificate is None else finite(certificate.certificate.threshold),
            "points": [self.at(target.name, threshold) for threshold in drawn],
        }

    def _steps(self, target: Target) -> list[float]:
        """Return sorted quantiles of the recorded confidences, one step above all (defers everything), and the one in force."""
        confidences = [request.legs[target.name].confidence for request in self.recording.requests if target.name in request.legs]
        known = [value for value in confidences if value is not None and abs(value) < INF]
        steps = set[float]()
        if known:
            steps.update(np.quantile(known, np.linspace(0, 1, STEPS + 1), method="inverted_cdf").tolist())
            steps.add(float(np.nextafter(max(steps), INF)))  # defers everything
        if target.threshold is not None and abs(target.threshold) < INF:
            steps.add(float(target.threshold))
        return sorted(steps)

    def at(self, edge: str, threshold: float) -> dict[str, Any]:
        """Replay the requests with that threshold of that edge, without thresholds by class, and return the results.

        Raises:
            BadInput: there is no such edge with a threshold, or the threshold is NaN.
        """
        if edge not in {target.name for target in self.edges} or threshold != threshold:  # noqa: PLR0124 - NaN
            raise BadInput(f"there is no edge {edge!r} with a threshold, or {threshold} is no number")
        targets = tuple(
            target._replace(threshold=threshold, thresholds={}) if target.name == edge else target
            for target in self.setup.targets
        )
        result = replay(self.recording, self.setup._replace(targets=targets))
        return {
            "threshold": finite(threshold),
            **_numbers(result.replayed),
            "changed": result.changed,
            "unknown": sum(result.unknown.values()),
            "unseen": result.values.unknown,
            "agreement": self._agreement(edge, threshold),
            "promise": self._promise(edge, threshold),
        }

    def _agreement(self, edge: str, threshold: float) -> dict[str, Any] | None:
        """Return the share of answers that would equal the cloud's, estimated by weighted audits; None without audits.

        Its interval is None if the weights differ.
        """
        answers = self._audited.get(edge)
        if not answers:
            return None
        agrees = np.array([answer.agrees or answer.confidence < threshold for answer in answers])
        weights = np.array([answer.weight for answer in answers])
        alike = bool((weights == weights[0]).all())
        interval = share(agrees) if alike else None  # with unequal weights this interval is not exact
        return {
            "share": float(weights[agrees].sum() / weights.sum()), "audited": len(answers),
            "low": None if interval is None else interval.low, "high": None if interval is None else interval.high,
        }  # fmt: skip

    def _promise(self, edge: str, threshold: float) -> dict[str, Any]:
        """Return if the certificate covers that threshold, in `held` (None: unknown), with a text."""
        if self._certificates is None:
            label = next(target.label for target in self.edges if target.name == edge)
            return {"held": None, "text": f"{label}, by the trace; without the policy the certificate is unknown."}
        bound = self._certificates.get(edge)
        if bound is None:
            return {"held": False, "text": NO_GUARANTEE}
        certificate = bound.certificate
        if broken := bound.broken():
            return {"held": False, "text": f"The certificate does not hold here: {broken}."}
        thresholds = (certificate.threshold, *certificate.thresholds.values())
        highest = INF if certificate.highest is None else certificate.highest
        if certificate.kind == "max_defer":
            covered, where = threshold <= min(thresholds), f"above the certified {min(thresholds):.6g}"
        elif threshold < max(thresholds):
            covered, where = False, f"below the certified {max(thresholds):.6g}"
        else:
            covered, where = threshold <= highest, f"above {highest:.6g}, the highest that is certified"
        if covered:
            return {"held": True, "text": certificate.guarantee}
        return {
            "held": False,
            "text": f"Nothing is guaranteed at this threshold, which is {where}: calibrate for another one.",
        }


def _numbers(totals: Numbers) -> dict[str, Any]:
    """Return the totals of a replay as plain data."""
    return {**totals._asdict(), "deferral_rate": totals.deferral_rate}


def _audited(audits: Iterable[Mapping[str, Any]]) -> dict[str, list[AuditedAnswer]]:
    """Return edge -> its audited answers, of the model and cloud of its latest audit; invalid lines are left out."""
    by_edge = dict[str, tuple[Any, list[AuditedAnswer]]]()
    for line in audits:
        try:
            name, prints, how = line["target"], line["fingerprints"], line["audited"]
            edge_confidence = confidence(line["edge_confidence"])
            probability, agrees = float(line["probability"]), bool(line["agrees"])
        except (KeyError, TypeError, ValueError):
            continue
        if how not in {"shadow", "deferred"} or not 0 < probability <= 1 or "error" in line:
            continue
        if name not in by_edge or by_edge[name][0] != prints:
            by_edge[name] = prints, []
        by_edge[name][1].append(AuditedAnswer(-INF if edge_confidence is None else edge_confidence, agrees, 1 / probability))
    return {name: answers for name, (_, answers) in by_edge.items()}


def setup_of(records: Sequence[Mapping[str, Any]]) -> Setup:
    """Derive a policy from a trace alone: targets and thresholds of the longest of the latest plans, and prices of typical calls.

    Raises:
        BadInput: no request was routed.
    """
    routed = [record for record in records if "events" in record]
    if not routed:
        raise BadInput("no request has been routed yet: what the cache answered has no plan")
    last = max(routed[-100:], key=lambda record: len(record["plan"]))
    targets = tuple(
        Target(leg["leg"], leg["side"], None if leg["threshold"] is None else float(leg["threshold"]), leg["label"])
        for leg in last["plan"]
    )
    costs: dict[str, list[tuple[float, float]]] = {}
    for record in routed:
        for event in record["events"]:
            if event["what"] in ANSWERED and "usd" in event:
                costs.setdefault(event["leg"], []).append((event["usd"], event.get("joules", 0.0)))
    ports = {target.name: Port(_typical(costs.get(target.name, ()))) for target in targets if target.side == "cloud"}
    local_classes = {record["data_class"] for record in routed if not any(leg["side"] == "cloud" for leg in record["plan"])}
    local_classes -= {None, *(record["data_class"] for record in routed if any(leg["side"] == "cloud" for leg in record["plan"]))}
    rules = Rules(never_leave=frozenset(local_classes), unknown_class="allow")
    deadline_s = INF if last["deadline_s"] is None else last["deadline_s"]
    policy = Policy(mode=last["mode"], deadline_s=deadline_s, offline=last["offline"], rules=rules)
    return Setup(policy, targets, ports)


def _typical(costs: Sequence[tuple[float, float]]) -> Terms:
    """Return prices by which a call costs the median of these dollars and joules; 0 without any."""
    usd, joules = (median(values) for values in zip(*costs, strict=True)) if costs else (0.0, 0.0)
    return Terms(usd_per_call=usd, joules_per_call=joules)
