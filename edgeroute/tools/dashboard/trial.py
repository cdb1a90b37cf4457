"""Another threshold on recorded requests: what a replay makes of deferrals, cost and bytes, and what audits know of accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.egress import Rules
from edgeroute.core.explain import finite
from edgeroute.core.policy import INF, Policy, Target, Terms
from edgeroute.errors import BadInput
from edgeroute.tools.dashboard.window import ANSWERED
from edgeroute.tools.measure.evaluation import share
from edgeroute.tools.replay import Numbers, Recording, Setup, collect, replay
from edgeroute.tools.replay.records import confidence
from edgeroute.tools.replay.setup import Port

STEPS = 100
"""Thresholds that a slider has, beside the one in force."""
DRAWN = 20
"""Of these, how many a curve is drawn through."""
NOBODY = "No certificate: nothing is promised at any threshold."


class Compared(NamedTuple):
    """An audited answer of an edge: its confidence, whether the cloud said the same, and its weight."""

    confidence: float
    agrees: bool
    weight: float


class Trial:
    """Recorded requests, to be replayed with other thresholds. Not synchronised; `at` takes some 10 us a request.

    Args:
        records: of a trace, the oldest first.
        setup: the policy that they are replayed under; None: one that follows from the records.
        certificates: of the edges with a threshold from one, by name; None: not known, there is no policy.
        audits: lines of an audit log.

    Raises:
        BadInput: there are no records, or they are none of a trace.
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
        self._compared = _compared(audits)
        self.edges = [target for target in self.setup.targets if target.side == "edge" and target.threshold is not None]

    def shown(self) -> dict[str, Any]:
        """What there is to drag: of each edge the thresholds of the slider, the one in force, and the points of a curve."""
        return {
            "requests": len(self.recording.requests),
            "span_s": self.recording.requests[-1].begun,
            "recorded": _numbers(self.recording.recorded.numbers()),
            "guessed": self.guessed,
            "edges": [self._edge(target) for target in self.edges],
        }

    def _edge(self, target: Target) -> dict[str, Any]:
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
        """Thresholds between which as many recorded confidences are; with the one in force."""
        seen = [request.legs[target.name].confidence for request in self.recording.requests if target.name in request.legs]
        known = np.array([one for one in seen if one is not None and abs(one) < INF])
        steps = set(np.quantile(known, np.linspace(0, 1, STEPS + 1), method="inverted_cdf").tolist()) if known.size else set()
        if steps:
            steps.add(float(np.nextafter(max(steps), INF)))  # at which everything is deferred
        if target.threshold is not None and abs(target.threshold) < INF:
            steps.add(float(target.threshold))
        return sorted(steps)

    def at(self, edge: str, threshold: float) -> dict[str, Any]:
        """What would have become of the requests with that threshold of that edge.

        Raises:
            BadInput: there is no such edge with a threshold, or the threshold is NaN.
        """
        if edge not in {target.name for target in self.edges} or threshold != threshold:  # noqa: PLR0124 - NaN
            raise BadInput(f"there is no edge {edge!r} with a threshold, or {threshold} is none")
        targets = tuple(
            target._replace(threshold=threshold, thresholds={}) if target.name == edge else target
            for target in self.setup.targets
        )
        found = replay(self.recording, self.setup._replace(targets=targets))
        return {
            "threshold": finite(threshold),
            **_numbers(found.replayed),
            "changed": found.changed,
            "unknown": sum(found.unknown.values()),
            "unseen": found.values.unknown,
            "agreement": self._agreement(edge, threshold),
            "promise": self._promise(edge, threshold),
        }

    def _agreement(self, edge: str, threshold: float) -> dict[str, Any] | None:
        """The share of all requests whose answer is the cloud's own, by the audits; None: there are none."""
        compared = self._compared.get(edge)
        if not compared:
            return None
        agrees = np.array([one.agrees or one.confidence < threshold for one in compared])
        weights = np.array([one.weight for one in compared])
        alike = bool((weights == weights[0]).all())
        found = share(agrees) if alike else None  # with unequal weights this interval is not exact
        return {
            "share": float(weights[agrees].sum() / weights.sum()), "audited": len(compared),
            "low": None if found is None else found.low, "high": None if found is None else found.high,
        }  # fmt: skip

    def _promise(self, edge: str, threshold: float) -> dict[str, Any]:
        """Whether the certificate covers that threshold, and in which words: `held` is None where it is not known."""
        if self._certificates is None:
            label = next(target.label for target in self.edges if target.name == edge)
            return {"held": None, "text": f"{label}, says the trace; without the policy the certificate is not known."}
        bound = self._certificates.get(edge)
        if bound is None:
            return {"held": False, "text": NOBODY}
        certificate = bound.certificate
        if broken := bound.broken():
            return {"held": False, "text": f"The certificate does not hold here: {broken}."}
        all_of_it = (certificate.threshold, *certificate.thresholds.values())
        highest = INF if certificate.highest is None else certificate.highest
        if certificate.kind == "max_defer":
            covered, where = threshold <= min(all_of_it), f"above the certified {min(all_of_it):.6g}"
        elif threshold < max(all_of_it):
            covered, where = False, f"below the certified {max(all_of_it):.6g}"
        else:
            covered, where = threshold <= highest, f"above {highest:.6g}, the highest that is certified"
        if covered:
            return {"held": True, "text": certificate.guarantee}
        return {"held": False, "text": f"Nothing is promised at this threshold, which is {where}: calibrate for another promise."}


def _numbers(found: Numbers) -> dict[str, Any]:
    names = ("requests", "edge", "cloud", "cache", "unanswered", "degraded", "calls", "held", "sent_bytes", "received_bytes",
             "usd", "joules", "p50_s", "p99_s")  # fmt: skip
    return {**{name: getattr(found, name) for name in names}, "deferral_rate": found.deferral_rate}


def _compared(audits: Iterable[Mapping[str, Any]]) -> dict[str, list[Compared]]:
    """Edge -> its audited answers, of the model and cloud that it was audited with last."""
    found = dict[str, tuple[Any, list[Compared]]]()
    for line in audits:
        try:
            name, prints, how = line["target"], line["fingerprints"], line["audited"]
            sure, probability, agrees = confidence(line["edge_confidence"]), float(line["probability"]), bool(line["agrees"])
        except (KeyError, TypeError, ValueError):
            continue
        if how not in {"shadow", "deferred"} or not 0 < probability <= 1 or "error" in line:
            continue
        if name not in found or found[name][0] != prints:
            found[name] = prints, []
        found[name][1].append(Compared(-INF if sure is None else sure, agrees, 1 / probability))
    return {name: compared for name, (_, compared) in found.items()}


def setup_of(records: Sequence[Mapping[str, Any]]) -> Setup:
    """The policy that follows from a trace alone: its targets and thresholds, and what a typical call has cost."""
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
    homes = {record["data_class"] for record in routed if not any(leg["side"] == "cloud" for leg in record["plan"])}
    homes -= {None, *(record["data_class"] for record in routed if any(leg["side"] == "cloud" for leg in record["plan"]))}
    rules = Rules(never_leave=frozenset(homes), unknown_class="allow")
    deadline_s = INF if last["deadline_s"] is None else last["deadline_s"]
    policy = Policy(mode=last["mode"], deadline_s=deadline_s, offline=last["offline"], rules=rules)
    return Setup(policy, targets, ports)


def _typical(costs: Sequence[tuple[float, float]]) -> Terms:
    """Prices of an endpoint whose calls have cost so many dollars and joules."""
    usd, joules = (median(one) for one in zip(*costs, strict=True)) if costs else (0.0, 0.0)
    return Terms(usd_per_call=usd, joules_per_call=joules)
