"""Snapshot: the policy in force with its targets, and its construction from a router's arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from edgeroute.cloud.backend import CloudBackend, FunctionBackend
from edgeroute.cloud.egress import Egress
from edgeroute.cloud.http_backend import HttpBackend
from edgeroute.confidence.binding import BoundCertificate, effective_target
from edgeroute.confidence.input_score import InputScore
from edgeroute.confidence.scores import Score
from edgeroute.core.codes import UNIDENTIFIED
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF, Mode, Policy, Target, Uncalibrated
from edgeroute.core.rules import Rule
from edgeroute.edge.backend import EdgeBackend, keeps_state
from edgeroute.edge.beforehand import ScoredBeforehand, edge_backend
from edgeroute.edge.load import load
from edgeroute.edge.members import member, stamps
from edgeroute.errors import ModelMissing, PolicyError
from edgeroute.record.ab import AB
from edgeroute.record.cloud_arms import CloudArms, checked
from edgeroute.router.escalation import check_send_edge
from edgeroute.router.given import endpoint_of, listed, members, named
from edgeroute.router.keys import KeyPrefixes, score_print
from edgeroute.router.released import of_arm_b, only_if_it_holds, released
from edgeroute.router.validation import check_policy, check_range, checked_thresholds
from edgeroute.router.views import TargetViews, View
from edgeroute.types import Backend

if TYPE_CHECKING:
    from edgeroute.cloud.guard import Guard
    from edgeroute.confidence.certificate import Certificate

DAY_S = 86400.0
CANDIDATE = "candidate"
"""What a candidate is called in audits, and the side of its view."""


class Snapshot(NamedTuple):
    """A policy with its targets and backends; a reload replaces it as a whole, so a request sees one from start to end."""

    policy: Policy
    targets: tuple[Target, ...]
    backends: tuple[Backend, ...]
    specs: tuple[tuple[Any, ...], ...]
    """What each backend was made from: a reload reuses a backend if that is unchanged."""
    egress: Egress
    plans: dict[tuple[Mode | None, float | None, str | None, str], Plan]
    """Plans made so far, by mode, deadline and data class of the call, and by its arm of the cloud."""
    prefixes: KeyPrefixes
    """Cache key prefixes; unlike plans they do not depend on thresholds."""
    certificates: tuple[BoundCertificate | None, ...]
    """Per target: its certificate, if its threshold comes from one."""
    views: TargetViews
    """What of an input each target takes."""
    candidate: Snapshot | None = None
    """The policy as it would be with the candidate as its edge model, and without a threshold; None: there is no candidate."""
    other: Snapshot | None = None
    """The policy with the edge model of arm B; None: there are no arms."""
    sends_edge: bool = False
    """Whether a cloud takes the edge's answer along."""
    cloud_arms: CloudArms | None = None
    """The arms of the cloud; None: there are none."""
    before: bool = False
    """Whether an edge is judged by the input alone, before it runs."""

    @property
    def models(self) -> tuple[str, str]:
        """The edge models of both arms, in words."""
        one, other = (s.backends[0] for s in (self, self.other or self))
        return tuple(str(member(b.model, "release") or b.model.name) for b in cast("list[EdgeBackend]", [one, other]))  # type: ignore[return-value]

    @property
    def watched(self) -> tuple[tuple[Target, ...], tuple[Backend, ...]]:
        """The targets and backends, with the edge of arm B."""
        other = self.other
        if other is None:
            return self.targets, self.backends
        return self.targets + other.targets[:1], self.backends + other.backends[:1]

    @property
    def clouds(self) -> list[CloudBackend]:
        """The backends that leave the device."""
        return [cast("CloudBackend", r) for r in self.backends if r.side == "cloud"]

    @property
    def proper(self) -> list[CloudBackend]:
        """Those of them that are not on trial: certificates are made with these."""
        return [cloud for cloud in self.clouds if not any(t.trial and t.name == cloud.name for t in self.targets)]


def build(
    edge: Any = None,
    cloud: Any = None,
    *,
    threshold: float | Certificate | Sequence[float | Certificate] | None = None,
    score: str | Score = "msp",
    deadline: float | None = None,
    hedge_after: float | str | None = None,
    first_token: float | None = None,
    egress: Egress | None = None,
    uncalibrated: Uncalibrated = "tell",
    certificate_max_age: float | None = None,
    views: Mapping[Any, View] | None = None,
    candidate: Any = None,
    rules: Sequence[Rule] | None = None,
    sensors_every: float | None = None,
    ab: AB | None = None,
    arm: str = "",
    guard: Callable[[CloudBackend], Guard],
    awaits: bool = False,
    old: Snapshot | None = None,
    **rest: Any,
) -> Snapshot:
    """Builds a snapshot. See `Router` for the arguments; `rest` are fields of `Policy`. Unchanged backends of `old` are reused.

    guard: makes the guard of a cloud. awaits: whether the router can await an edge.

    Raises:
        PolicyError: the arguments are invalid together.
        ModelMissing: there is no file at a model's path.
    """
    egress = egress or Egress()
    policy = Policy(
        deadline_s=_seconds(deadline),
        hedge_after=hedge_after if isinstance(hedge_after, str) else _seconds(hedge_after),
        first_token_s=_seconds(first_token),
        rules=egress.rules,
        device_rules=tuple(rules or ()),
        sensors_every_s=sensors_every,
        **rest,
    )
    edges, groups = members(listed(edge))
    trials = checked(cloud) if isinstance(cloud, CloudArms) else None
    clouds = listed(cloud if trials is None else [*trials.clouds.values()])
    check_policy(policy, edges, clouds, uncalibrated)
    models = [load(given) for given in edges]
    own_thresholds = [released(model) for model in models] if threshold is None else []
    needed = bool(clouds) and policy.mode == "prefer_edge"
    certified = any(own_thresholds) and not (needed and None in own_thresholds)  # else the others' answers would all be accepted
    thresholds = own_thresholds if certified else checked_thresholds(threshold, len(edges), needed=needed)
    known = {} if old is None else made_of(old)
    views = dict(views or {})
    own_view = views.pop((CANDIDATE, 0), None)
    targets: list[Target] = []
    backends: list[Backend] = []
    specs: list[tuple[Any, ...]] = []
    labels: tuple[str, ...] | None = None

    def add(spec: tuple[Any, ...], target: Target, backend: Any) -> None:
        specs.append(spec)
        targets.append(target)
        backends.append(known.get(_key(spec)) or backend)

    promised: dict[int, Certificate] = {}
    for i, (given, model, limit) in enumerate(zip(edges, models, thresholds, strict=True)):
        path = member(model, "path")
        if path is not None and not Path(path).exists():
            raise ModelMissing(f"there is no model at {path}")
        group, variant = groups[i]
        name = f"{group} {variant}" if group else arm or named("edge", model.name, i, len(edges), targets)
        target = Target(name, "edge", group=group)
        if group and keeps_state(model):
            raise PolicyError(f"{model.name!r} keeps a state from call to call, so it cannot be one of several variants")
        if isinstance(limit, float | None):
            target = target._replace(threshold=limit)
        else:
            promised[len(targets)] = limit
            target = target._replace(threshold=limit.threshold, thresholds=limit.thresholds, certified=True)
        own = member(model, "score") or score
        check_range(limit, own)
        runner = edge_backend(name, model, own)
        if runner.alone_async and not awaits:
            raise PolicyError(f"the edge {model.name!r} is async: use AsyncRouter, which awaits it, or make it a plain def")
        if runner.alone_async and policy.mode == "shadow":
            raise PolicyError(f"the edge {model.name!r} is async, and in shadow it runs in a thread: make it a plain def")
        read = stamps(model) if isinstance(given, str | PathLike) else ()  # an object was loaded by its owner
        add(("edge", name, given, own, read), target, runner)
        labels = member(model, "labels") or labels
    for i, given in enumerate(clouds):
        endpoint = endpoint_of(given)
        own_name = getattr(endpoint, "name", "cloud") if trials is None else [*trials.clouds][i]
        name = named("cloud", own_name, i, len(clouds), targets) if trials is None else own_name
        kind: Any = HttpBackend if hasattr(endpoint, "talk") else FunctionBackend
        backend = kind(name, endpoint, "msp" if isinstance(score, InputScore) else score, labels)
        if getattr(backend, "alone_async", False) and not awaits:
            raise PolicyError(
                f"the cloud is {backend.where}, and async: use AsyncRouter, which awaits it, or make it a plain def"
            )
        backend.guard = guard(backend)
        add(("cloud", name, given, score, labels), Target(name, "cloud", trial=trials is not None and i > 0), backend)
    seen = TargetViews(views, targets)
    scores = [spec[3] for spec in specs]
    prefixes = KeyPrefixes(targets, backends, scores, egress.redact, None if old is None else old.prefixes, seen)
    none = (None,) * len(targets)
    before = any(isinstance(backend, ScoredBeforehand) for backend in backends)
    tells = check_send_edge(policy, targets, backends, egress, candidate=candidate is not None)
    snapshot = Snapshot(
        policy,
        tuple(targets),
        tuple(backends),
        tuple(specs),
        egress,
        {},
        prefixes,
        none,
        seen,
        sends_edge=tells,
        cloud_arms=trials,
        before=before,
    )
    certificates = tuple(_promise(promised.get(i), snapshot, i, certificate_max_age) for i in range(len(targets)))
    if own_thresholds:
        certificates = tuple(map(only_if_it_holds, certificates))
    if uncalibrated == "error":
        _all_hold(targets, certificates)
        if trials is not None and any(trials.split.values()) and any(certificates):
            raise PolicyError(
                "no certificate is for the endpoints that cloud_arms.split tries, and uncalibrated is 'error': use shadow"
            )
    if promised:
        snapshot = snapshot._replace(certificates=certificates, targets=tuple(map(effective_target, targets, certificates)))
    if ab is not None:
        arm_b = partial(
            build, score=score, deadline=deadline, hedge_after=hedge_after, first_token=first_token, egress=egress, views=views,
            uncalibrated=uncalibrated, certificate_max_age=certificate_max_age, rules=rules, guard=guard, awaits=awaits,
            old=snapshot._replace(candidate=old), **rest,
        )  # fmt: skip
        plain = threshold if isinstance(threshold, Real) else None
        snapshot = snapshot._replace(other=of_arm_b(snapshot, ab, cloud, plain, arm_b))
    if candidate is None:
        return snapshot
    if len(edges) != 1 or not clouds:
        raise PolicyError(
            f"a candidate is to take the place of the only edge model, beside a cloud; there are {len(edges)} edges"
        )
    views.pop(("edge", 0), None)
    if own_view is not None:
        views["edge", 0] = own_view
    made = build(
        candidate, cloud, score=score, egress=egress, views=views, guard=guard, awaits=awaits,
        old=snapshot._replace(candidate=old), **{**rest, "mode": "shadow", "saver": None}, rules=(),
    )  # fmt: skip
    if made.clouds != snapshot.clouds:
        raise PolicyError(
            "the candidate has other labels than the edge model, by which the cloud's answers are read: give the cloud its own"
        )
    return snapshot._replace(candidate=made)


def edges_of(snapshot: Snapshot) -> list[tuple[str, EdgeBackend]]:
    """Name -> backend of each edge model, the candidate too."""
    found = [(b.name, b) for b in snapshot.backends if isinstance(b, EdgeBackend)]
    found += [] if snapshot.other is None else edges_of(snapshot.other)
    if snapshot.candidate is not None:
        found += [(CANDIDATE, b) for _, b in edges_of(snapshot.candidate)]
    return found


def cleared(snapshot: Snapshot) -> None:
    """Forgets the plans made so far, after facts have changed."""
    snapshot.plans.clear()
    if snapshot.other is not None:
        snapshot.other.plans.clear()


def made_of(snapshot: Snapshot) -> dict[tuple[Any, ...], Backend]:
    """The backends of a policy and its candidate, by what they were made from."""
    known = {} if snapshot.candidate is None else made_of(snapshot.candidate)
    known |= {} if snapshot.other is None else made_of(snapshot.other)
    return {**known, **dict(zip(map(_key, snapshot.specs), snapshot.backends, strict=True))}


def fingerprints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """What a certificate for edge model number `i` is bound to, by the names of `BOUND_TO`.

    That is the model, its score and view, the cloud behind it and its codec; and the edge models before it, each with its own
    threshold, as they decide which inputs reach it.
    """
    from edgeroute.stores.cache import fingerprint

    egress, clouds, found = snapshot.egress, snapshot.proper, _own_prints(snapshot, i)
    if clouds:
        redacted = [] if egress.redact is None else [fingerprint(egress.redact)]
        found["cloud"] = " ".join(r.fingerprint(fingerprint) for r in clouds)
        found["codec"] = " ".join([*(r.codec(fingerprint) for r in clouds), *redacted])
        if said := served(snapshot):
            found["served"] = said
    for number, backend in enumerate(snapshot.backends):
        if (
            backend.side == "cloud"
            and not snapshot.targets[number].trial
            and (view := snapshot.views.identity(number, fingerprint))
        ):
            found["codec"] += f" {view}"
    if earlier := before(snapshot.targets, i):
        found["earlier"] = _earlier(snapshot, earlier)
    return found


def served(snapshot: Snapshot) -> str:
    """What the clouds' servers have said of their models; empty: none of them says anything."""
    said = [getattr(getattr(cloud, "endpoint", None), "served", "") for cloud in snapshot.proper]
    return " ".join(one or "-" for one in said) if any(said) else ""


def before(targets: Sequence[Target], i: int) -> list[int]:
    """The edge models whose thresholds decide which inputs reach number `i`: those before it, but the variants beside it."""
    return [number for number in range(i) if not targets[i].group or targets[number].group != targets[i].group]


def _own_prints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """The fingerprints of an edge model with its view, and of its score."""
    from edgeroute.stores.cache import fingerprint

    score, view = snapshot.specs[i][3], snapshot.views.identity(i, fingerprint)
    return {
        "edge": snapshot.backends[i].fingerprint(fingerprint) + (f" {view}" if view else ""),
        "score": score_print(score, fingerprint),
    }


def chosen(snapshot: Snapshot, i: int) -> Target:
    """The target with the threshold that it was given, whatever an alarm has made of it since."""
    target, promise = snapshot.targets[i], snapshot.certificates[i]
    if promise is None:
        return target
    return target._replace(threshold=promise.certificate.threshold, thresholds=promise.certificate.thresholds)


def _earlier(snapshot: Snapshot, earlier: Sequence[int]) -> str:
    """One hash over the edge models before another: their fingerprints and their own thresholds."""
    models = []
    for number in earlier:
        target = chosen(snapshot, number)
        own = {label: str(t) for label, t in target.thresholds.items()}
        models.append([_own_prints(snapshot, number), str(target.threshold), own])
    text = json.dumps(models, sort_keys=True)
    unknown = f"{UNIDENTIFIED} " if UNIDENTIFIED in text else ""
    return unknown + sha256(text.encode()).hexdigest()


def _promise(certificate: Certificate | None, snapshot: Snapshot, i: int, max_age_s: float | None) -> BoundCertificate | None:
    if certificate is None:
        return None
    if snapshot.policy.no_confidence != "defer":
        raise PolicyError("a certificate promises nothing of answers without a confidence: no_confidence has to be 'defer'")
    used = {"earlier": "", **fingerprints(snapshot, i)}
    return BoundCertificate(certificate, used, INF if max_age_s is None else max_age_s / DAY_S, partial(served, snapshot))


def _all_hold(targets: Sequence[Target], certificates: Sequence[BoundCertificate | None]) -> None:
    for target, promise in zip(targets, certificates, strict=True):
        if target.threshold is None:
            continue
        broken = "it is a plain number" if promise is None else promise.broken()
        if broken is not None:
            error = PolicyError(f"the threshold of {target.name} promises nothing here ({broken}), and uncalibrated is 'error'")
            error.key = "uncalibrated"
            raise error


def _key(spec: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a backend was made from, to look it up by; what has no hash, as a dataclass has none, is the same only as itself."""
    return tuple(part if isinstance(part, Hashable) else id(part) for part in spec)


def _seconds(given: float | None) -> float:
    return INF if given is None else float(given)
