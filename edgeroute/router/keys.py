"""Cache keys: what an answer depends on besides the input, and whether an answer given earlier is accepted now."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeroute.core.policy import Mode, Target
from edgeroute.core.walk import Prediction, acceptable

if TYPE_CHECKING:
    from edgeroute.core.plan import Plan
    from edgeroute.router.views import TargetViews
    from edgeroute.stores.cache import Entry
    from edgeroute.types import Backend

MOST = 1000
"""Capacity: callers may name a new data class each time."""
LONGEST = 200
"""Longer names of data classes, in characters, are not kept."""


class KeyPrefixes:
    """The cache key prefixes of one policy, made when they are first needed.

    A prefix has the mode, the data class, and of each target that may answer its name, its `identity` and its view of the input;
    of clouds also the credentials, hashed, and the redaction. It has no threshold: `accepted` decides by those in force.

    Args:
        targets: in any state: only their names and sides are read.
        backends: theirs.
        scores: theirs.
        redact: the redaction in force.
        old: of an earlier policy of the same router, with the identities of backends in use still.
        views: theirs.

    Attributes:
        known: by `id()`, a thing and what was said of it.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        backends: Sequence[Backend],
        scores: Sequence[Any],
        redact: Callable[..., Any] | None,
        old: KeyPrefixes | None = None,
        views: TargetViews | None = None,
    ) -> None:
        self._targets, self._backends, self._scores, self._redact = targets, backends, scores, redact
        self._views = [None] * len(targets) if views is None else views.views
        used = {id(thing) for thing in (*backends, *scores, redact, *self._views)}
        self.known: dict[int, tuple[object, str]] = {}
        if old is not None:
            self.known.update((key, known) for key, known in old.known.items() if key in used)
        self._variables = sorted({name for b in backends for name in getattr(b, "variables", ())})
        self._tells = any(getattr(backend, "sends_edge", False) for backend in backends)
        self._made: dict[tuple[Any, ...], bytes] = {}

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._made)

    def of(self, plan: Plan) -> bytes:
        """The prefix of this plan's answers."""
        at: tuple[Any, ...] = (plan.mode, plan.data_class, not plan.stays)
        # one variant's answer goes along, and for another's the cloud may answer otherwise
        edges = [leg.name for leg in plan.legs if leg.permit is None] if self._tells else []
        at += tuple(edges)
        if self._variables:  # a key that is read from the environment may be another one by now
            at += tuple(map(os.environ.get, self._variables))
        return self._made.get(at) or self._make(at, plan.mode, plan.data_class, not plan.stays, edges)

    def _make(self, at: tuple[Any, ...], mode: Mode, data_class: str | None, leaves: bool, edges: list[str]) -> bytes:
        parts: list[object] = [mode, data_class, leaves, *edges]
        for target, backend, score, view in zip(self._targets, self._backends, self._scores, self._views, strict=True):
            if (mode != "only_cloud") if target.side == "edge" else leaves:
                said = score if isinstance(score, str) else self._once(score, _score)
                parts += [target.name, self._once(backend, _identity), said]
                parts += [backend.credentials()] if hasattr(backend, "credentials") else []
                if view is not None:
                    parts.append(["key", view] if isinstance(view, str) else ["view", self._once(view, _fingerprint)])
        if leaves and self._redact is not None:
            parts.append(self._once(self._redact, _fingerprint))
        made = repr(parts).encode("utf-8", "surrogatepass")
        if data_class is None or len(data_class) <= LONGEST:
            if len(self._made) >= MOST:
                self._made.clear()
            self._made[at] = made
        return made

    def _once(self, thing: Any, describe: Callable[[Any], str]) -> str:
        """What `describe` says of the thing the first time: without a stable fingerprint it would be another text each time."""
        known = self.known.get(id(thing))
        if known is None:
            known = self.known.setdefault(id(thing), (thing, describe(thing)))  # two threads may be first, and differ
        return known[1]


def accepted(plan: Plan, entry: Entry) -> bool:
    """Whether the policy in force accepts that answer: its threshold may be higher than when the answer was given."""
    for leg in plan.legs:
        if leg.name == entry.leg:
            return leg.permit is not None or acceptable(leg, Prediction(entry.value, entry.confidence, entry.outputs))
    return entry.side != "edge"  # a target that this plan leaves out, as it is busy


def _identity(backend: Backend) -> str:
    return backend.identity(_fingerprint)


def _score(score: Any) -> str:
    return score_print(score, _fingerprint)


def score_print(score: Any, of: Callable[[Any], str]) -> str:
    """What identifies a score: its name, what it says itself, or else its fingerprint as a function, which `of` takes."""
    if isinstance(score, str):
        return score
    identity: Callable[..., str] | None = getattr(score, "identity", None)
    return str(getattr(score, "fingerprint", None) or of(score)) if identity is None else identity(of)


def _fingerprint(thing: object) -> str:
    from edgeroute.stores.cache import fingerprint  # with what a cache needs, only if there is one

    return fingerprint(thing)
