"""Snapshot: the policy in force with its targets, and its construction from a router's arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
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
from edgeroute.core.plan import Plan
from edgeroute.core.policy import (
    HEDGE,
    INF,
    MODES,
    NEEDS,
    CloudOrder,
    Mode,
    NoConfidence,
    Offline,
    Policy,
    Target,
    Uncalibrated,
)
from edgeroute.edge.backend import EdgeBackend
from edgeroute.edge.load import load
from edgeroute.edge.members import member, stamps
from edgeroute.errors import ModelMissing, PolicyError, nearest
from edgeroute.router.keys import KeyPrefixes
from edgeroute.router.views import TargetViews, View
from edgeroute.types import Backend

if TYPE_CHECKING:
    from edgeroute.cloud.guard import Guard
    from edgeroute.confidence.certificate import Certificate

DAY_S = 86400.0


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
        **rest,
    )
    edges, clouds = _listed(edge), _listed(cloud)
    _check(policy, edges, clouds, uncalibrated)
    thresholds = _thresholds(threshold, len(edges), needed=bool(clouds) and policy.mode == "prefer_edge")
    known = dict(zip(map(_key, old.specs), old.backends, strict=True)) if old is not None else {}
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
        name = _name("edge", model.name, i, len(edges), targets)
        value = limit
        if not isinstance(value, float | None):
            promised[len(targets)] = value
            value = value.threshold
        own = member(model, "score") or score
        _check_range(limit, own)
        runner = EdgeBackend(name, model, own)
        if runner.alone_async and not awaits:
            raise PolicyError(f"the edge {model.name!r} is async: use AsyncRouter, which awaits it, or make it a plain def")
        read = stamps(model) if isinstance(given, str | PathLike) else ()  # an object was loaded by its owner
        add(("edge", name, given, own, read), Target(name, "edge", value), runner)
        labels = member(model, "labels") or labels
    for i, given in enumerate(clouds):
        endpoint = _endpoint(given)
        name = _name("cloud", getattr(endpoint, "name", "cloud"), i, len(clouds), targets)
        kind: Any = HttpBackend if hasattr(endpoint, "talk") else FunctionBackend
        backend = kind(name, endpoint, score, labels)
        backend.guard = guard(backend)
        add(("cloud", name, given, score, labels), Target(name, "cloud"), backend)
    seen = TargetViews(views or {}, targets)
    certificates = [
        _promise(promised.get(i), policy, backends, i, specs[i][3], egress, certificate_max_age, seen)
        for i in range(len(targets))
    ]
    if uncalibrated == "error":
        _all_hold(targets, certificates)
    scores = [spec[3] for spec in specs]
    prefixes = KeyPrefixes(targets, backends, scores, egress.redact, None if old is None else old.prefixes, seen)
    snapshot = Snapshot(policy, tuple(targets), tuple(backends), tuple(specs), egress, {}, prefixes, tuple(certificates), seen)
    return snapshot if not promised else snapshot._replace(targets=tuple(map(effective_target, targets, certificates)))


def fingerprints(
    backends: Sequence[Backend], i: int, score: str | Score, egress: Egress, views: TargetViews | None = None
) -> dict[str, str]:
    """What a certificate for edge model number `i` is bound to: that model, the score, the cloud behind it, codec and views."""
    from edgeroute.stores.cache import fingerprint

    clouds = [cast("CloudBackend", r) for r in backends if r.side == "cloud"]
    found = {
        "edge": backends[i].fingerprint(fingerprint),
        "score": score if isinstance(score, str) else getattr(score, "fingerprint", None) or fingerprint(score),
    }
    if clouds:
        redacted = [] if egress.redact is None else [fingerprint(egress.redact)]
        found["cloud"] = " ".join(r.fingerprint(fingerprint) for r in clouds)
        found["codec"] = " ".join([*(r.codec(fingerprint) for r in clouds), *redacted])
    for number, backend in enumerate(backends):
        if views is not None and (number == i or backend.side == "cloud") and (view := views.identity(number, fingerprint)):
            found["edge" if number == i else "codec"] += f" {view}"
    return found


def _promise(
    certificate: Certificate | None,
    policy: Policy,
    backends: Sequence[Backend],
    i: int,
    score: str | Score,
    egress: Egress,
    max_age_s: float | None,
    views: TargetViews,
) -> BoundCertificate | None:
    if certificate is None:
        return None
    if policy.no_confidence != "defer":
        raise PolicyError("a certificate promises nothing of answers without a confidence: no_confidence has to be 'defer'")
    return BoundCertificate(
        certificate, fingerprints(backends, i, score, egress, views), INF if max_age_s is None else max_age_s / DAY_S
    )


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
    for mode in (policy.mode, *([policy.saver.mode] if policy.saver else [])):
        if mode not in MODES:
            raise PolicyError(f"there is no mode {mode!r}: {nearest(mode, MODES)}")
        side = NEEDS.get(mode)
        if side is not None and not (edges if side == "edge" else clouds):
            raise PolicyError(f"mode {mode!r} needs {side}=, and there is none")


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
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
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
