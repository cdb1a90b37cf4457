"""Cache keys: the prefix with all that an answer depends on besides the input; identities of scores; tests of cached answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeroute.core.policy_egress_and_options import Mode, Target
from edgeroute.core.walk import Prediction, acceptable, new

if TYPE_CHECKING:
    from edgeroute.core.plan import Plan
    from edgeroute.stores.cache import Entry
    from edgeroute.types import Backend

MOST = 1000  # maximum stored prefixes: callers may name a new data class each time
LONGEST = 200  # maximum characters of a data class whose prefix is stored


class KeyPrefixes:
    """Cache key prefixes of one policy, computed at first use and stored.

    A prefix has the mode, the data class, whether the input may leave, and of each target that may answer its name, its
    `identity`, its score, its view of the input and, of a cloud, the credentials, hashed; the redaction, if the input may leave;
    and the plan's edges, if a cloud takes their answer along. It has no threshold: `is_accepted` decides by those in force.

    Args:
        targets: targets in any state: only their names and sides are read.
        backends: backend of each target.
        scores: score of each target.
        redact: redaction in force.
        old: prefixes of the router's previous policy, whose fingerprints of backends still in use are taken over.
        views: view of each target; None: it takes the whole input.

    Attributes:
        known: by `id()`, an object and its fingerprint.
    """

    def __init__(
        self, targets: Sequence[Target], backends: Sequence[Backend], scores: Sequence[Any], redact: Callable[..., Any] | None,
        old: KeyPrefixes | None, views: Sequence[Any]
    ) -> None:  # fmt: skip
        self._targets, self._backends, self._scores, self._redact = targets, backends, scores, redact
        self._views = views
        used = {id(thing) for thing in (*backends, *scores, redact, *self._views)}
        self.known: dict[int, tuple[object, str]] = {}
        if old is not None:
            self.known.update((key, known) for key, known in old.known.items() if key in used)
        self._variables = sorted({name for b in backends for name in getattr(b, "variables", ())})
        self._tells = any(getattr(backend, "sends_edge", False) for backend in backends)
        self._prefixes: dict[tuple[Any, ...], bytes] = {}

    def __len__(self) -> int:
        """Return the number of stored prefixes."""
        return len(self._prefixes)

    def of(self, plan: Plan) -> bytes:
        """Return the prefix of cache keys for the answers of a plan. Reads the environment variables of credentials.

        It depends on the plan's mode and data class, on whether it may leave the device, on the values of these variables and,
        where a cloud takes the edge's answer along, on the names of the plan's edges. Computed once for each combination, then
        kept (`_make`), without a lock: two threads may compute it.
        """
        key: tuple[Any, ...] = (plan.mode, plan.data_class, not plan.stays)
        # one variant's answer goes along, and for another's the cloud may answer otherwise
        edges = [leg.name for leg in plan.legs if leg.permit is None] if self._tells else []
        key += tuple(edges)
        if self._variables:  # a key that is read from the environment may be another one by now
            key += tuple(map(os.environ.get, self._variables))
        return self._prefixes.get(key) or self._make(key, plan.mode, plan.data_class, not plan.stays, edges)

    def _make(self, key: tuple[Any, ...], mode: Mode, data_class: str | None, leaves: bool, edges: list[str]) -> bytes:
        """Compute a prefix of cache keys, which may read files; store it under `key`, and return it.

        It has the parts that the class names, of the edges unless the mode is only_cloud, and of the clouds if the input may
        leave. Fingerprints are stored in `known`. The prefix is not stored if its data class is too long; a full store is
        cleared first.
        """
        parts: list[object] = [mode, data_class, leaves, *edges]
        for target, backend, score, view in zip(self._targets, self._backends, self._scores, self._views, strict=True):
            if (mode != "only_cloud") if target.side == "edge" else leaves:
                score_text = score if isinstance(score, str) else self._once(score, score_print)
                parts += [target.name, self._once(backend, lambda b: b.identity(fingerprint)), score_text]
                parts += [backend.credentials()] if hasattr(backend, "credentials") else []
                if view is not None:
                    parts.append(["key", view] if isinstance(view, str) else ["view", self._once(view, fingerprint)])
        if leaves and self._redact is not None:
            parts.append(self._once(self._redact, score_print))
        prefix = repr(parts).encode("utf-8", "surrogatepass")
        if data_class is None or len(data_class) <= LONGEST:
            if len(self._prefixes) >= MOST:
                self._prefixes.clear()
            self._prefixes[key] = prefix
        return prefix

    def _once(self, thing: Any, describe: Callable[[Any], str]) -> str:
        """Return `describe(thing)` as at the first call for this object, kept: without a stable fingerprint each is another."""
        known = self.known.get(id(thing))
        if known is None:
            known = self.known.setdefault(id(thing), (thing, describe(thing)))  # two threads may be first, and differ
        return known[1]


def is_accepted(plan: Plan, entry: Entry) -> bool:
    """Return True if the policy in force accepts a cached answer: the threshold may have risen since the answer was given.

    An entry of an edge is, if the plan asks that edge and accepts the answer now; one of a cloud always is.
    """
    for leg in plan.legs:
        if leg.name == entry.leg:
            return leg.permit is not None or acceptable(leg, new(Prediction, (entry.value, entry.confidence, entry.outputs)))
    return entry.side != "edge"  # a target that this plan leaves out, as it is busy


def score_print(score: Any) -> str:
    """Return a score's identity: its name, its own `identity` or `fingerprint`, or else the fingerprint of its function."""
    if isinstance(score, str):
        return score
    identity: Callable[..., str] | None = getattr(score, "identity", None)
    return str(getattr(score, "fingerprint", None) or fingerprint(score)) if identity is None else identity(fingerprint)


def fingerprint(thing: object) -> str:
    """Return an object's fingerprint, by the cache's module, which is imported at the first use."""
    from edgeroute.stores import cache  # with what a cache needs, only if there is one

    return cache.fingerprint(thing)
