"""Snapshot: the policy in force with its targets, and its construction from a router's arguments."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import sha256
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from edgeroute.cloud.backend import CloudBackend, Function, FunctionBackend
from edgeroute.cloud.egress import Egress
from edgeroute.cloud.http_backend import HttpBackend
from edgeroute.confidence.binding import BoundCertificate, effective_target
from edgeroute.confidence.forms import SLACK
from edgeroute.confidence.reader import bounded
from edgeroute.confidence.scores import Score
from edgeroute.core.codes import UNIDENTIFIED
from edgeroute.core.plan import Plan
from edgeroute.core.policy import (
    HEDGE,
    INF,
    MODES,
    NEEDS,
    POLICY_MODES,
    CloudOrder,
    Mode,
    NoConfidence,
    Offline,
    Policy,
    Target,
    Uncalibrated,
)
from edgeroute.core.rules import Rule, problem
from edgeroute.edge.backend import EdgeBackend
from edgeroute.edge.load import load
from edgeroute.edge.members import member, stamps
from edgeroute.edge.variants import Variants
from edgeroute.errors import ModelMissing, PolicyError, nearest
from edgeroute.router.keys import KeyPrefixes
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
    plans: dict[tuple[Mode | None, float | None, str | None], Plan]
    """Plans made so far, by mode, deadline and data class of the call."""
    prefixes: KeyPrefixes
    """Cache key prefixes; unlike plans they do not depend on thresholds."""
    certificates: tuple[BoundCertificate | None, ...]
    """Per target: its certificate, if its threshold comes from one."""
    views: TargetViews
    """What of an input each target takes."""
    candidate: Snapshot | None = None
    """The policy as it would be with the candidate as its edge model, and without a threshold; None: there is no candidate."""

    @property
    def clouds(self) -> list[CloudBackend]:
        """The backends that leave the device."""
        return [cast("CloudBackend", r) for r in self.backends if r.side == "cloud"]


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
        **rest,
    )
    edges, groups = _members(_listed(edge))
    clouds = _listed(cloud)
    _check(policy, edges, clouds, uncalibrated)
    thresholds = _thresholds(threshold, len(edges), needed=bool(clouds) and policy.mode == "prefer_edge")
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
    for i, (given, limit) in enumerate(zip(edges, thresholds, strict=True)):
        model = load(given)
        path = member(model, "path")
        if path is not None and not Path(path).exists():
            raise ModelMissing(f"there is no model at {path}")
        group, variant = groups[i]
        name = f"{group} {variant}" if group else _name("edge", model.name, i, len(edges), targets)
        target = Target(name, "edge", group=group)
        if group and (card := member(model, "card")) is not None and card.state:
            raise PolicyError(f"{model.name!r} keeps a state from call to call, so it cannot be one of several variants")
        if isinstance(limit, float | None):
            target = target._replace(threshold=limit)
        else:
            promised[len(targets)] = limit
            target = target._replace(threshold=limit.threshold, thresholds=limit.thresholds)
        own = member(model, "score") or score
        _check_range(limit, own)
        runner = EdgeBackend(name, model, own)
        if runner.alone_async and not awaits:
            raise PolicyError(f"the edge {model.name!r} is async: use AsyncRouter, which awaits it, or make it a plain def")
        if runner.alone_async and policy.mode == "shadow":
            raise PolicyError(f"the edge {model.name!r} is async, and in shadow it runs in a thread: make it a plain def")
        read = stamps(model) if isinstance(given, str | PathLike) else ()  # an object was loaded by its owner
        add(("edge", name, given, own, read), target, runner)
        labels = member(model, "labels") or labels
    for i, given in enumerate(clouds):
        endpoint = _endpoint(given)
        name = _name("cloud", getattr(endpoint, "name", "cloud"), i, len(clouds), targets)
        kind: Any = HttpBackend if hasattr(endpoint, "talk") else FunctionBackend
        backend = kind(name, endpoint, score, labels)
        if getattr(backend, "alone_async", False) and not awaits:
            raise PolicyError(
                f"the cloud is {backend.where}, and async: use AsyncRouter, which awaits it, or make it a plain def"
            )
        backend.guard = guard(backend)
        add(("cloud", name, given, score, labels), Target(name, "cloud"), backend)
    seen = TargetViews(views, targets)
    scores = [spec[3] for spec in specs]
    prefixes = KeyPrefixes(targets, backends, scores, egress.redact, None if old is None else old.prefixes, seen)
    none = (None,) * len(targets)
    snapshot = Snapshot(policy, tuple(targets), tuple(backends), tuple(specs), egress, {}, prefixes, none, seen)
    certificates = tuple(_promise(promised.get(i), snapshot, i, certificate_max_age) for i in range(len(targets)))
    if uncalibrated == "error":
        _all_hold(targets, certificates)
    if promised:
        snapshot = snapshot._replace(certificates=certificates, targets=tuple(map(effective_target, targets, certificates)))
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


def made_of(snapshot: Snapshot) -> dict[tuple[Any, ...], Backend]:
    """The backends of a policy and its candidate, by what they were made from."""
    known = {} if snapshot.candidate is None else made_of(snapshot.candidate)
    return {**known, **dict(zip(map(_key, snapshot.specs), snapshot.backends, strict=True))}


def fingerprints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """What a certificate for edge model number `i` is bound to, by the names of `BOUND_TO`.

    That is the model, its score and view, the cloud behind it and its codec; and the edge models before it, each with its own
    threshold, as they decide which inputs reach it.
    """
    from edgeroute.stores.cache import fingerprint

    egress, clouds, found = snapshot.egress, snapshot.clouds, _own_prints(snapshot, i)
    if clouds:
        redacted = [] if egress.redact is None else [fingerprint(egress.redact)]
        found["cloud"] = " ".join(r.fingerprint(fingerprint) for r in clouds)
        found["codec"] = " ".join([*(r.codec(fingerprint) for r in clouds), *redacted])
    for number, backend in enumerate(snapshot.backends):
        if backend.side == "cloud" and (view := snapshot.views.identity(number, fingerprint)):
            found["codec"] += f" {view}"
    if earlier := before(snapshot.targets, i):
        found["earlier"] = _earlier(snapshot, earlier)
    return found


def before(targets: Sequence[Target], i: int) -> list[int]:
    """The edge models whose thresholds decide which inputs reach number `i`: those before it, but the variants beside it."""
    return [number for number in range(i) if not targets[i].group or targets[number].group != targets[i].group]


def _own_prints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """The fingerprints of an edge model with its view, and of its score."""
    from edgeroute.stores.cache import fingerprint

    score, view = snapshot.specs[i][3], snapshot.views.identity(i, fingerprint)
    return {
        "edge": snapshot.backends[i].fingerprint(fingerprint) + (f" {view}" if view else ""),
        "score": score if isinstance(score, str) else getattr(score, "fingerprint", None) or fingerprint(score),
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
    return BoundCertificate(certificate, used, INF if max_age_s is None else max_age_s / DAY_S)


def _all_hold(targets: Sequence[Target], certificates: Sequence[BoundCertificate | None]) -> None:
    for target, promise in zip(targets, certificates, strict=True):
        if target.threshold is None:
            continue
        broken = "it is a plain number" if promise is None else promise.broken()
        if broken is not None:
            raise PolicyError(f"the threshold of {target.name} promises nothing here ({broken}), and uncalibrated is 'error'")


def _check(policy: Policy, edges: list[Any], clouds: list[Any], uncalibrated: str) -> None:
    for name, value, kind in (
        ("uncalibrated", uncalibrated, Uncalibrated),
        ("no_confidence", policy.no_confidence, NoConfidence),
        ("offline", policy.offline, Offline),
        ("order", policy.order, CloudOrder),
    ):
        if value not in (valid := get_args(kind)):
            raise PolicyError(f"there is no {name} {value!r}: {nearest(value, valid)}")
    if not policy.deadline_s > 0 or not policy.first_token_s > 0:
        raise PolicyError("deadline and first_token are more than 0 seconds")
    hedge = policy.hedge_after
    if not (re.fullmatch(HEDGE, hedge) if isinstance(hedge, str) else hedge >= 0):
        raise PolicyError(f"hedge_after is seconds, 0 or more, a quantile such as 'p90', or 'auto', not {hedge!r}")
    if not edges and not clouds:
        raise PolicyError("a router needs edge=, cloud= or both")
    for mode, valid in ((policy.mode, POLICY_MODES), *([(policy.saver.mode, MODES)] if policy.saver else [])):
        if mode not in valid:
            raise PolicyError(f"there is no mode {mode!r}: {nearest(mode, valid)}")
        _check_sides(mode, f"mode {mode!r}", edges, clouds)
    for rule in policy.device_rules:
        if text := problem(rule):
            raise PolicyError(f"rules: {text}")
        _check_sides(rule.then, f"a rule with then={rule.then!r}", edges, clouds)


def _check_sides(then: str, what: str, edges: list[Any], clouds: list[Any]) -> None:
    """Refuses what needs targets that there are not."""
    for side in NEEDS.get(then, ()):
        if not (edges if side == "edge" else clouds):
            raise PolicyError(f"{what} needs {side}=, and there is none")
    if then == "small_model" and len(edges) < 2:  # noqa: PLR2004 - one to leave out
        raise PolicyError(f"{what} needs several edge models, of which it leaves the smallest, and there are {len(edges)}")


def _thresholds(given: Any, count: int, *, needed: bool) -> list[float | Certificate | None]:
    if given is None:
        if needed and count:
            raise PolicyError("threshold= is missing: the confidence from which an edge answer is accepted and nothing is sent")
        return [None] * count
    several = isinstance(given, Sequence) and not isinstance(given, str) and not hasattr(given, "guarantee")
    values = list(given) if several else [given] * count
    if len(values) != count:
        raise PolicyError(f"{len(values)} thresholds for {count} edge models: one number for all, or one each")
    for value in values:
        if hasattr(value, "guarantee"):  # a certificate
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise PolicyError(f"a threshold is a number or a certificate, not {value!r}")
    return [value if hasattr(value, "guarantee") else float(value) for value in values]


def _check_range(threshold: Any, score: str | Score) -> None:
    """Refuses a threshold that no confidence by this score can be compared with in earnest."""
    if isinstance(threshold, float) and bounded(score) and not (0 <= threshold <= 1 + SLACK or threshold == INF):
        percent = f": {threshold:g} % is {threshold / 100:g}" if 1 < threshold <= 100 else ""  # noqa: PLR2004 - a hundred per cent
        raise PolicyError(f"threshold={threshold:g}: confidences by {score} are from 0 to 1{percent}")


def _key(spec: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a backend was made from, to look it up by; what has no hash, as a dataclass has none, is the same only as itself."""
    return tuple(part if isinstance(part, Hashable) else id(part) for part in spec)


def _seconds(given: float | None) -> float:
    return INF if given is None else float(given)


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def _members(edges: list[Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    """The edge models, the members of groups in place of these; and of each its group and name in it, empty without one."""
    models, groups = list[Any](), list[tuple[str, str]]()
    for i, given in enumerate(edges):
        if isinstance(given, Variants):
            group = "edge" if len(edges) == 1 else f"edge-{i + 1}"
            models += given.models.values()
            groups += [(group, name) for name in given.models]
        else:
            models.append(given)
            groups.append(("", ""))
    return models, groups


def _name(side: str, own: str, i: int, of: int, taken: list[Target]) -> str:
    """The target's name: `edge` or `cloud` if it is the only one, else its own, made unique."""
    if of == 1:
        return side
    name = own if own and own != side else f"{side}-{i + 1}"
    return name if name not in {t.name for t in taken} else f"{name}-{i + 1}"


def _endpoint(given: Any) -> Any:
    if isinstance(given, str):
        from edgeroute.cloud.base import bare
        from edgeroute.cloud.openinference import OpenInference

        if "/v2/models/" not in given:
            raise PolicyError(f"what does {bare(given)} speak? Pass OpenInference(url, model=...) or PlainJson(url)")
        return OpenInference(given)
    if hasattr(given, "talk") or callable(given) or isinstance(given, Function):
        return given
    raise PolicyError(f"cloud= takes a URL, an endpoint or a callable, not {type(given).__name__}")
