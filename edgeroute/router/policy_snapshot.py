"""Snapshot: the policy in force with its targets and backends; its construction, checks, and fingerprints for certificates.

A policy with an edge on trial has a second snapshot for the trial's requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast, get_args

import edgeroute.core.policy_egress_and_options as routing
from edgeroute.cloud.egress_consent_and_redaction import Egress
from edgeroute.confidence.output_forms_labels_and_comparison import SLACK
from edgeroute.confidence.output_reader import bounded
from edgeroute.confidence.score_before_run import InputScore
from edgeroute.confidence.scores import Score
from edgeroute.core.device_rules import Rule, problem
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.core.plan import Plan
from edgeroute.edge.edge_backend import EdgeBackend, InputScoredBackend, edge_backend, has_state
from edgeroute.edge.edge_model_members_and_fingerprints import LoadedFiles, member, stamps
from edgeroute.edge.runtimes_variants_ensemble import Variants, load
from edgeroute.errors import ModelMissing, PolicyError, nearest
from edgeroute.observe.device_sensors_and_sampler import LEAST_S, MOST_S
from edgeroute.router.cache_key_prefixes import KeyPrefixes, fingerprint, score_print
from edgeroute.router.constructor_checks import checked_cloud, is_float, threshold_advice
from edgeroute.router.input_views_and_edge_answers import TargetViews, View, check_send_edge
from edgeroute.system.files_and_lock_waits import sha256
from edgeroute.types import Backend

if TYPE_CHECKING:
    from edgeroute.cloud.endpoint_guard import Guard
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.confidence.certificate import BoundCertificate, Certificate
    from edgeroute.trials.trial_setting import Trial


# Arguments `edge` and `cloud` of a router, in one form.


def as_list(value: Any) -> list[Any]:
    """Return None, one or several values as a list. A list is copied."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


Member: TypeAlias = "tuple[Any, str, str]"  # edge model; its group and its name in that, both empty without a group


def members(edges: list[Any]) -> list[Member]:
    """Return the edge models, with variants in place of their groups."""
    found = list[Member]()
    for i, edge in enumerate(edges):
        group = "edge" if len(edges) == 1 else f"edge-{i + 1}"
        variants = edge.models if isinstance(edge, Variants) else None
        found += [(edge, "", "")] if variants is None else [(model, group, name) for name, model in variants.items()]
    return found


def target_name(side: str, own: str, i: int, of: int, taken: list[routing.Target]) -> str:
    """Return the target's name: `edge` or `cloud` if it is the only one, else its own, made unique.

    Args:
        side: `edge` or `cloud`.
        own: name of the model or endpoint.
        i: its index on its side.
        of: number of targets on its side.
        taken: targets named so far.
    """
    if of == 1:
        return side
    name = own if own and own != side else f"{side}-{i + 1}"
    return name if name not in {t.name for t in taken} else f"{name}-{i + 1}"


# Models of a catalog, with the certificate that came with a version.


def release_certificate(model: Any) -> Certificate | None:
    """Read and return the certificate that came with a version of a catalog; None: there is none.

    Raises PolicyError if it is damaged.
    """
    release = member(model, "release")
    if release is None or release.certificate is None:
        return None
    from edgeroute.confidence.certificate import Certificate

    return Certificate.load(release.certificate)


def only_if_it_holds(bound: BoundCertificate | None) -> BoundCertificate | None:
    """Return the certificate that came with a model; with infinite thresholds, which defer all, if it does not hold here.

    Its age does not count.
    """
    if bound is None or bound._replace(max_age_days=routing.INF).broken() is None:
        return bound
    return bound._replace(certificate=bound.certificate._replace(threshold=routing.INF, thresholds={}, seal=""))


# Validation of a policy and its thresholds against the targets.


def check_policy(policy: routing.Policy, edges: list[Any], clouds: list[Any], uncalibrated: str) -> None:
    """Raise PolicyError for a policy with an invalid value, or one that needs an edge or cloud that is not given.

    The error's `key` names a device rule's key.
    """
    for name, value, kind in (
        ("uncalibrated", uncalibrated, routing.Uncalibrated),
        ("no_confidence", policy.no_confidence, routing.NoConfidence),
        ("offline", policy.offline, routing.Offline),
        ("order", policy.order, routing.CloudOrder),
    ):
        if value not in (valid := get_args(kind)):
            raise PolicyError(f"there is no {name} {value!r}: {nearest(value, valid)}")
    if not policy.deadline_s > 0 or not policy.first_token_s > 0:
        raise PolicyError("deadline and first_token are more than 0 seconds")
    hedge = policy.hedge_after
    if not (re.fullmatch(routing.HEDGE, hedge) if isinstance(hedge, str) else hedge >= 0):
        raise PolicyError(f"hedge_after is seconds, 0 or more, a quantile such as 'p90', or 'auto', not {hedge!r}")
    if (every_s := policy.sensors_every_s) is not None and not LEAST_S <= every_s <= MOST_S:
        raise PolicyError(f"sensors_every= takes seconds, from {LEAST_S:g} to {MOST_S:g}, not {every_s:g}")
    if not edges and not clouds:
        raise PolicyError("a router needs edge=, cloud= or both")
    if policy.mode not in routing.POLICY_MODES:
        raise PolicyError(f"there is no mode {policy.mode!r}: {nearest(policy.mode, routing.POLICY_MODES)}")
    _check_sides(policy.mode, f"mode {policy.mode!r}", edges, clouds)
    for i, rule in enumerate(policy.device_rules):
        if text := problem(rule):
            raise PolicyError(f"rules: {text}")
        try:
            _check_sides(rule.then, f"a rule with then={rule.then!r}", edges, clouds)
        except PolicyError as e:
            e.key = f"rule[{i}].then"
            raise


def _check_sides(then: str, what: str, edges: list[Any], clouds: list[Any]) -> None:
    """Raise PolicyError if a mode or rule needs an edge, a cloud or (`small_model`) several edges that do not exist."""
    for side in routing.NEEDS.get(then, ()):
        if not (edges if side == "edge" else clouds):
            raise PolicyError(f"{what} needs {side}=, and there is none")
    if then == "small_model" and len(edges) < 2:  # noqa: PLR2004 - one to leave out
        raise PolicyError(f"{what} needs several edge models, of which it leaves the smallest, and there are {len(edges)}")


def checked_thresholds(threshold: Any, count: int, *, needed: bool) -> list[float | Certificate | None]:
    """Return a threshold or certificate for each edge model: of one value the same for all, of a list one each; None: none.

    Args:
        threshold: the argument.
        count: number of edge models.
        needed: True if the policy needs thresholds.

    Raises:
        PolicyError: thresholds are missing, invalid, or of another number.
    """
    if threshold is None:
        if needed and count:
            raise PolicyError("threshold= is missing: the confidence at which an edge answer stands; try 0.85, then calibrate")
        return [None] * count
    several = isinstance(threshold, Sequence) and not isinstance(threshold, str) and not hasattr(threshold, "guarantee")
    values = list(threshold) if several else [threshold] * count
    if len(values) != count:
        raise PolicyError(f"{len(values)} thresholds for {count} edge models: one number for all, or one each")
    for value in values:
        if hasattr(value, "guarantee"):  # a certificate
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not is_float(value):
            raise PolicyError(f"a threshold is a number or a certificate, not {value!r:.80}{threshold_advice(value)}")
    return [value if hasattr(value, "guarantee") else float(value) for value in values]


def check_range(threshold: Any, score: str | Score) -> None:
    """Raise PolicyError for a threshold outside the range of confidences by this score.

    Certificates and infinite thresholds pass.
    """
    if isinstance(threshold, float) and bounded(score) and not (0 <= threshold <= 1 + SLACK or threshold == routing.INF):
        percent = f": {threshold:g} % is {threshold / 100:g}" if 1 < threshold <= 100 else ""  # noqa: PLR2004 - a hundred per cent
        raise PolicyError(f"threshold={threshold:g}: confidences by {score} are from 0 to 1{percent}")


DAY_S = 86400.0


class Snapshot(NamedTuple):
    """Policy with its targets and backends; a reload replaces it as a whole, so a request has one from start to end."""

    policy: routing.Policy
    targets: tuple[routing.Target, ...]
    backends: tuple[Backend, ...]
    # Arguments from which each backend was made: a reload reuses a backend if they are unchanged.
    specs: tuple[tuple[Any, ...], ...]
    egress: Egress
    # Plans made so far, by (mode, deadline, data class, arm of the cloud).
    plans: dict[tuple[routing.Mode | None, float | None, str | None, str], Plan]
    prefixes: KeyPrefixes  # cache key prefixes; unlike plans they do not depend on thresholds
    certificates: tuple[BoundCertificate | None, ...]  # certificate of each target, if its threshold comes from one
    views: TargetViews  # each target's view of an input
    trials: tuple[Trial, ...] = ()  # trials, with their defaults filled in
    trial: Snapshot | None = None  # policy with the edge model on trial in place of the edge; None: no trial of an edge
    sends_edge: bool = False  # True if a cloud takes the edge's answer along
    before: bool = False  # True if an edge is judged by the input alone, before it runs

    @property
    def shown(self) -> Snapshot | None:
        """Policy of an edge on trial whose answers callers get; None: none."""
        return self.trial if any(t.side == "edge" and t.shown for t in self.trials) else None

    @property
    def hidden(self) -> Snapshot | None:
        """Policy of a hidden edge on trial; None: none."""
        return None if self.shown is not None else self.trial

    @property
    def on_trial(self) -> list[tuple[Trial, str]]:
        """(trial, name of the target on trial) of the trials under way; a hidden edge is judged by audits instead."""
        names = iter([target.name for target in self.targets if target.trial])
        pairs = [(trial, routing.EDGE_TRIAL if trial.side == "edge" else next(names)) for trial in self.trials]
        return [pair for pair in pairs if pair[0].side == "cloud" or self.shown is not None]

    @property
    def watched(self) -> tuple[tuple[routing.Target, ...], tuple[Backend, ...]]:
        """Targets and backends that requests may reach: those of the policy, and the edge on trial if it is shown."""
        other = self.shown
        if other is None:
            return self.targets, self.backends
        return self.targets + other.targets[:1], self.backends + other.backends[:1]

    @property
    def clouds(self) -> list[CloudBackend]:
        """Backends off the device."""
        return [cast("CloudBackend", r) for r in self.backends if r.side == "cloud"]

    @property
    def proper(self) -> list[CloudBackend]:
        """Backends off the device that are not on trial: certificates are made with these."""
        return [cloud for cloud in self.clouds if not any(t.trial and t.name == cloud.name for t in self.targets)]


class PolicyArguments(NamedTuple):
    """Arguments of a router for its policy. `Router` and `Options` document them."""

    edge: Any = None
    cloud: Any = None
    threshold: float | Certificate | Sequence[float | Certificate] | None = None
    score: str | Score = "msp"
    mode: routing.PolicyMode = "prefer_edge"
    deadline: float | None = None
    hedge_after: float | str | None = None
    first_token: float | None = None
    no_confidence: routing.NoConfidence = "defer"
    offline: routing.Offline = "edge"
    order: routing.CloudOrder = "listed"
    egress: Egress | None = None
    uncalibrated: routing.Uncalibrated = "tell"
    certificate_max_age: float | None = None
    views: Mapping[Any, View] | None = None
    rules: Sequence[Rule] | None = None
    sensors_every: float | None = None
    trial: Trial | Sequence[Trial] | None = None
    awaits: bool = False  # True if the router can await models and clouds that are async

    def policy(self) -> routing.Policy:
        """Build the `Policy` from these arguments, with durations in seconds."""
        hedge = self.hedge_after if isinstance(self.hedge_after, str) else _seconds(self.hedge_after)
        rules = (self.egress or Egress()).rules
        return routing.Policy(
            self.mode, _seconds(self.deadline), hedge, self.offline, _seconds(self.first_token), self.no_confidence, self.order,
            rules, tuple(self.rules or ()), self.sensors_every,
        )  # fmt: skip


Guards: TypeAlias = "Callable[[CloudBackend], Guard]"  # function that returns a new guard of a cloud


def build(arguments: PolicyArguments, guard: Guards, old: Snapshot | None = None) -> Snapshot:
    """Build a snapshot from a router's arguments, and in it another one for an edge on trial.

    Unchanged backends of `old` are reused. Reads certificates and models' files, but loads no model and opens no connection.

    Raises:
        PolicyError: the arguments are invalid together.
        ModelMissing: there is no file at a model's path.
    """
    trials: tuple[Trial, ...] = ()
    if arguments.trial:
        from edgeroute.trials.trial_setting import check_trials

        trials = check_trials(arguments.trial)
    snapshot = _build_without_edge_trial(arguments, trials, guard, old)
    trial = next((candidate for candidate in trials if candidate.side == "edge"), None)
    return snapshot if trial is None else snapshot._replace(trial=_of_edge_trial(snapshot, trial, arguments, guard, old))


def _of_edge_trial(
    snapshot: Snapshot, trial: Trial, arguments: PolicyArguments, guard: Guards, old: Snapshot | None
) -> Snapshot | None:
    """Build the policy with the edge model on trial in place of the edge; None: it is the version in use already.

    That of a hidden one is in mode `shadow`, without rules on the device's state. Raises PolicyError without exactly one edge,
    for a hidden one without a cloud, or if the clouds' labels would change.
    """
    edges, hidden = [b for b in snapshot.backends if b.side == "edge"], not trial.shown
    if len(edges) != 1:
        raise PolicyError(f"trial: an edge on trial is beside the only edge model, and there are {len(edges)} edges")
    if hidden and not snapshot.clouds:
        raise PolicyError("trial: the answers of a hidden edge are compared with the cloud's, and there is no cloud=")
    model = load(trial.edge)
    tried, used = member(model, "release"), member(cast("Any", edges[0]).model, "release")
    if tried is not None and used is not None and (tried.name, tried.version) == (used.name, used.version):
        return None
    limit = trial.threshold
    if limit is None and not hidden and release_certificate(model) is None and isinstance(arguments.threshold, Real):
        limit = cast("float", arguments.threshold)
    arguments = arguments._replace(edge=trial.edge, threshold=limit)
    if hidden:
        arguments = arguments._replace(mode="shadow", rules=(), uncalibrated="tell")
    clouds = tuple(candidate for candidate in snapshot.trials if candidate.side == "cloud")
    of_trial = _build_without_edge_trial(arguments, clouds, guard, snapshot._replace(trial=old), routing.EDGE_TRIAL)
    if of_trial.clouds != snapshot.clouds:
        raise PolicyError("trial: its model has other labels than the edge, which read the cloud's: give the cloud its own")
    return of_trial


def _build_without_edge_trial(
    arguments: PolicyArguments, trials: tuple[Trial, ...], guard: Guards, old: Snapshot | None, arm: str = ""
) -> Snapshot:
    """Build a snapshot without an edge on trial.

    A certificate that does not hold only changes the label, unless `uncalibrated` is 'error'.

    Args:
        arguments: arguments of the router.
        trials: trials to include.
        guard: makes the guard of a cloud.
        old: previous snapshot, whose unchanged backends are reused.
        arm: name of the edge; empty: its own.

    Raises:
        PolicyError: the arguments are invalid together.
        ModelMissing: there is no file at a model's path.
    """
    policy, egress = arguments.policy(), arguments.egress or Egress()
    edges, clouds = as_list(arguments.edge), as_list(arguments.cloud)
    models = members(edges)
    check_policy(policy, models, clouds, arguments.uncalibrated)
    tried = [candidate.cloud for candidate in trials if candidate.side == "cloud"]
    if tried and not clouds:
        raise PolicyError("trial: a cloud on trial is beside cloud=, and there is none")
    draft = _Draft(arguments, {} if old is None else backends_by_spec(old), arm)
    certified = draft.add_edges(models, needed=bool(clouds) and policy.mode == "prefer_edge")
    draft.add_clouds(clouds, tried, guard)
    targets, backends = draft.targets, draft.backends
    seen = TargetViews(_views(arguments.views, arm, [candidate for candidate in trials if candidate.side == "edge"]), targets)
    scores = [spec[3] for spec in draft.specs]
    prefixes = KeyPrefixes(targets, backends, scores, egress.redact, None if old is None else old.prefixes, seen.views)
    hidden = any(candidate.side == "edge" and not candidate.shown for candidate in trials)
    snapshot = Snapshot(
        policy, tuple(targets), tuple(backends), tuple(draft.specs), egress, {}, prefixes, (None,) * len(targets), seen, trials,
        sends_edge=check_send_edge(policy, targets, backends, egress, hidden=hidden),
        before=any(isinstance(backend, InputScoredBackend) for backend in backends),
    )  # fmt: skip
    certified_by = draft.certified_by
    certificates = tuple(_bound(certified_by.get(i), snapshot, i, arguments.certificate_max_age) for i in range(len(targets)))
    if certified:
        certificates = tuple(map(only_if_it_holds, certificates))
    if arguments.uncalibrated == "error":
        _all_hold(targets, certificates)
        if any(candidate.share and candidate.shown and candidate.side == "cloud" for candidate in trials) and any(certificates):
            raise PolicyError("trial: its endpoint has no certificate, and uncalibrated is 'error': try it with shown=False")
    if certified_by:
        from edgeroute.confidence.certificate import effective_target, ladder_targets

        snapshot = snapshot._replace(
            certificates=certificates,
            targets=tuple(ladder_targets([*map(effective_target, targets, certificates)], certificates)),
        )
    return snapshot


def _views(by_target: Mapping[Any, View] | None, arm: str, of_edge: Sequence[Trial]) -> dict[Any, View]:
    """Return the views of a policy; that of an edge on trial is the edge's in its own policy. A copy."""
    views = dict(by_target or {})
    if not (arm or of_edge) or routing.EDGE_TRIAL not in views:
        return views
    view = views.pop(routing.EDGE_TRIAL)
    if arm:
        views.pop(("edge", 0), None)
        if view is not None:
            views["edge", 0] = view
    return views


class _Draft:
    """Targets of a snapshot in the making: checks thresholds, makes models, endpoints and guards, and reuses unchanged backends.

    Args:
        arguments: the router's arguments.
        known: backends that are reused, by what they were made from.
        arm: name of the edge; empty: its own.
    """

    def __init__(self, arguments: PolicyArguments, known: Mapping[tuple[Any, ...], Backend], arm: str) -> None:
        self._arguments, self._known, self._arm = arguments, known, arm
        self._labels: tuple[str, ...] | None = None
        self._kind: str | None = None  # kind of the edge with these labels; of ctc they are letters, and answers are texts
        self.targets: list[routing.Target] = []
        self.backends: list[Backend] = []
        self.specs: list[tuple[Any, ...]] = []
        self.certified_by: dict[int, Certificate] = {}  # number of a target -> the certificate that its threshold comes from

    def _add(self, spec: tuple[Any, ...], target: routing.Target, backend: Any) -> None:
        """Append a target with its backend and the arguments it was made of.

        A known backend of the same arguments takes its place.
        """
        self.specs.append(spec)
        self.targets.append(target)
        self.backends.append(self._known.get(_key(spec)) or backend)

    def add_edges(self, edges: list[Member], *, needed: bool) -> bool:
        """Check the edge models and thresholds, and append their targets.

        Return True if no threshold was given and some model has its own. Models are made, not loaded. A certificate that comes
        with a model counts where no threshold was given. Keeps the models' labels for the clouds.

        Args:
            edges: the models, as given.
            needed: True if the policy needs thresholds.

        Raises:
            PolicyError: a model or threshold is invalid, or a model is async and this router cannot await it.
            ModelMissing: there is no file at a model's path.
        """
        arguments, models = self._arguments, [load(edge) for edge, _, _ in edges]
        own_thresholds = [release_certificate(model) for model in models] if arguments.threshold is None else []
        certified = any(own_thresholds) and not (needed and None in own_thresholds)  # else all answers of others are accepted
        thresholds = own_thresholds if certified else checked_thresholds(arguments.threshold, len(edges), needed=needed)
        for i, ((edge, group, variant), model, limit) in enumerate(zip(edges, models, thresholds, strict=True)):
            path = member(model, "path")
            if path is not None and not Path(path).exists():
                raise ModelMissing(f"there is no model at {path}")
            name = f"{group} {variant}" if group else self._arm or target_name("edge", model.name, i, len(edges), self.targets)
            target = routing.Target(name, "edge", group=group)
            if group and has_state(model):
                raise PolicyError(f"{model.name!r} keeps a state from call to call, so it cannot be one of several variants")
            if isinstance(limit, float | None):
                target = target._replace(threshold=limit)
            else:
                own = self.certified_by[len(self.targets)] = limit.of_edge(i, len(edges))
                target = target._replace(threshold=own.threshold, thresholds=own.thresholds)
                target = target._replace(certified=True, together=bool(own.ladder))
            score = member(model, "score") or arguments.score
            check_range(limit, score)
            runner = edge_backend(name, model, score)
            if runner.alone_async and not arguments.awaits:
                raise PolicyError(f"the edge {model.name!r} is async: use AsyncRouter, which awaits it, or make it a plain def")
            if runner.alone_async and arguments.mode == "shadow":
                raise PolicyError(f"the edge {model.name!r} is async, and in shadow it runs in a thread: make it a plain def")
            read = stamps(model) if isinstance(edge, str | PathLike) else ()  # an object was loaded by its owner
            self._add(("edge", name, edge, score, read), target, runner)
            labels = member(model, "labels")
            if labels or runner.reader.kind in {"value", "boxes"}:
                self._labels, self._kind = labels or self._labels, runner.reader.kind
        return bool(own_thresholds)

    def add_clouds(self, clouds: list[Any], tried: list[Any], guard: Guards) -> None:
        """Check the clouds, and append their targets, and after them those on trial, each with a guard. Opens no connection.

        Raises PolicyError for no valid cloud, or an async one in a `Router`.
        """
        score = self._arguments.score
        for i, cloud in enumerate([*clouds, *tried]):
            endpoint, on_trial = checked_cloud(cloud), i >= len(clouds)
            labels = None if self._kind == "ctc" and member(endpoint, "kind") != "ctc" else self._labels
            own_name = getattr(endpoint, "name", "cloud")
            if on_trial and own_name == "cloud":
                own_name = "cloud-trial"
            name = target_name("cloud", own_name, i, 0 if on_trial else len(clouds), self.targets)
            kind: Any
            if hasattr(endpoint, "talk"):
                from edgeroute.cloud.http_backend import HttpBackend

                kind = HttpBackend
            else:
                from edgeroute.cloud.function_backend_and_reply_checks import FunctionBackend

                kind = FunctionBackend
            backend = kind(name, endpoint, "msp" if isinstance(score, InputScore) else score, labels)
            backend.reader.behind = self._kind
            if getattr(backend, "alone_async", False) and not self._arguments.awaits:
                raise PolicyError(f"the cloud is {backend.where}, and async: use AsyncRouter, or make it a plain def")
            backend.guard = guard(backend)
            self._add(("cloud", name, cloud, score, labels, self._kind), routing.Target(name, "cloud", trial=on_trial), backend)


def edges_of(snapshot: Snapshot) -> list[tuple[str, EdgeBackend]]:
    """Return name and backend of each edge model, with the one on trial."""
    edges = [(b.name, b) for b in snapshot.backends if isinstance(b, EdgeBackend)]
    return edges if snapshot.trial is None else edges + edges_of(snapshot.trial)


def clear_plans(snapshot: Snapshot) -> None:
    """Delete the stored plans of a snapshot, after facts have changed. Also those of its edge on trial."""
    for policy in (snapshot, snapshot.trial):
        if policy is not None:
            policy.plans.clear()


def backends_by_spec(snapshot: Snapshot) -> dict[tuple[Any, ...], Backend]:
    """Return the backends of a policy and of its edge on trial, by the arguments from which they were made.

    Those of the policy itself take precedence.
    """
    known = {} if snapshot.trial is None else backends_by_spec(snapshot.trial)
    return {**known, **dict(zip(map(_key, snapshot.specs), snapshot.backends, strict=True))}


def fingerprints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """Return the fingerprints to which a certificate for target number `i`, an edge model, is bound, by the names of `BOUND_TO`.

    They are of the model, its score and view; of the clouds not on trial, the models that their servers report, their codec and
    redaction; and of the edge models before it, each with its own threshold, as these decide which inputs reach it. Names that
    do not apply are missing. Reads files.
    """
    egress, clouds, prints = snapshot.egress, snapshot.proper, _own_prints(snapshot, i)
    if clouds:
        redacted = [] if egress.redact is None else [score_print(egress.redact)]
        prints["cloud"] = " ".join(r.fingerprint(fingerprint) for r in clouds)
        prints["codec"] = " ".join([*(r.codec(fingerprint) for r in clouds), *redacted])
        if served_text := served_identities(snapshot):
            prints["served"] = served_text
    for number, backend in enumerate(snapshot.backends):
        if backend.side == "cloud" and not snapshot.targets[number].trial and (view := snapshot.views.identity(number)):
            prints["codec"] += f" {view}"
    if earlier := earlier_edges(snapshot.targets, i):
        prints["earlier"] = _models_print(snapshot, earlier)
    return prints


def ladder_prints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """Return the fingerprints to which edge model number `i` is bound by a certificate about all edge models together.

    They include all other edge models with their own thresholds, in their order. Reads files.
    """
    others = [k for k, target in enumerate(snapshot.targets) if target.side == "edge" and k != i]
    return {**fingerprints(snapshot, i), "earlier": _models_print(snapshot, others)}


def served_identities(snapshot: Snapshot) -> str:
    """Return the identities of the clouds' models, as reported by their servers; empty: none is reported."""
    identities = [getattr(getattr(cloud, "endpoint", None), "served", "") for cloud in snapshot.proper]
    return " ".join(text or "-" for text in identities) if any(identities) else ""


def earlier_edges(targets: Sequence[routing.Target], i: int) -> list[int]:
    """Return the indices of earlier edge models whose thresholds decide which inputs reach number `i`; no variants of it."""
    return [number for number in range(i) if not targets[i].group or targets[number].group != targets[i].group]


def _own_prints(snapshot: Snapshot, i: int) -> dict[str, str]:
    """Return the fingerprints of an edge model with its view, and of its score."""
    score, view = snapshot.specs[i][3], snapshot.views.identity(i)
    return {"edge": snapshot.backends[i].fingerprint(fingerprint) + (f" {view}" if view else ""), "score": score_print(score)}


def calibrated_target(snapshot: Snapshot, i: int) -> routing.Target:
    """Return a target with the threshold of its certificate, without the effect of alarms."""
    target, bound = snapshot.targets[i], snapshot.certificates[i]
    if bound is None:
        return target
    return target._replace(threshold=bound.certificate.threshold, thresholds=bound.certificate.thresholds)


def _models_print(snapshot: Snapshot, numbers: Sequence[int]) -> str:
    """Return one hash of several edge models: of their fingerprints and their own thresholds, without the effect of alarms.

    Begins with a mark if one is unidentified. Reads files.
    """
    import json

    models = []
    for number in numbers:
        target = calibrated_target(snapshot, number)
        thresholds = {label: str(t) for label, t in target.thresholds.items()}
        models.append([_own_prints(snapshot, number), str(target.threshold), thresholds])
    text = json.dumps(models, sort_keys=True)
    unknown = f"{UNIDENTIFIED} " if UNIDENTIFIED in text else ""
    return unknown + sha256(text.encode()).hexdigest()


def _bound(certificate: Certificate | None, snapshot: Snapshot, i: int, max_age_s: float | None) -> BoundCertificate | None:
    """Return a target's certificate, bound to this snapshot's fingerprints; None without a certificate. Reads files.

    Raises PolicyError if answers without a confidence are accepted.
    """
    if certificate is None:
        return None
    if snapshot.policy.no_confidence != "defer":
        raise PolicyError("a certificate guarantees nothing of answers without a confidence: no_confidence has to be 'defer'")
    from edgeroute.confidence.certificate import BoundCertificate

    numbers = [k for k, target in enumerate(snapshot.targets) if target.side == "edge"]
    numbers = numbers if certificate.ladder else [*earlier_edges(snapshot.targets, i), i]
    moved = LoadedFiles([cast("EdgeBackend", snapshot.backends[k]).model for k in numbers], fingerprint)
    used = ladder_prints(snapshot, i) if certificate.ladder else {"earlier": "", **fingerprints(snapshot, i)}
    max_age_days = routing.INF if max_age_s is None else max_age_s / DAY_S
    return BoundCertificate(certificate, used, max_age_days, partial(served_identities, snapshot), moved)


def _all_hold(targets: Sequence[routing.Target], certificates: Sequence[BoundCertificate | None]) -> None:
    """Raise PolicyError if a threshold is a plain number, or its certificate does not hold here."""
    for target, bound in zip(targets, certificates, strict=True):
        if target.threshold is None:
            continue
        broken = "it is a plain number" if bound is None else bound.broken()
        if broken is not None:
            error = PolicyError(f"the threshold of {target.name} guarantees nothing here ({broken}), and uncalibrated is 'error'")
            error.key = "uncalibrated"
            raise error


def _key(spec: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a hashable key of the arguments from which a backend was made; unhashable ones count by identity."""
    return tuple(part if isinstance(part, Hashable) else id(part) for part in spec)


def _seconds(seconds: float | None) -> float:
    """Return a number of seconds; inf for None."""
    return routing.INF if seconds is None else float(seconds)
