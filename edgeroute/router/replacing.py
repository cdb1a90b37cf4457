"""Puts another policy in force in a running router, which reuses models and connections of the old one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeroute.core.spending import Limits
from edgeroute.errors import Closed
from edgeroute.failures import quietly
from edgeroute.observe.sampler import SAMPLER
from edgeroute.router.engine import CLOSED, Engine
from edgeroute.router.fallback import RULES
from edgeroute.router.snapshot import Snapshot, cleared, made_of
from edgeroute.router.warm import rehearsed

if TYPE_CHECKING:
    from edgeroute.record.drift_monitor import Audit


def replace(
    engine: Engine,
    build: Callable[[Snapshot], Snapshot],
    limits: Limits,
    metered: bool | Callable[[], bool],
    audit: Audit | None = None,
) -> None:
    """Puts another policy in force. `build` makes its snapshot from the old one, whose models and connections it may reuse.

    Raises:
        PolicyError: it is invalid; the old one stays.
        Closed: the router is closed, also meanwhile.
    """
    with engine.replacing:  # and not the other one, which calls wait for: this may take long
        if engine.closed:
            raise Closed(CLOSED)
        old = engine.snapshot
        made = build(old)
        RULES[made.policy.offline].check(engine)
        rehearsed(made, old)
        with engine.refreshing:
            engine.auditing(made, audit)
            if made.views:
                engine.plain = False  # before it is in force
            engine.snapshot = made
        if engine.arms is not None and made.other is not None and made.models != engine.arms.models:
            engine.arms = engine.arms.of(made.models)
        engine.trials = engine.trying(made)
        engine.spending.limits, engine.observer.metered = limits, metered
        engine.observer.use(made.policy, made.watched[0])
        cleared(made)  # of rules that were not there before
        SAMPLER.add(engine)
        engine.refresh_thresholds()
        kept = [*made_of(made).values()]
        models = [getattr(b, "model", b) for b in kept]
        for backend in made_of(old).values():
            if backend not in kept and getattr(backend, "model", backend) not in models:
                quietly(backend.close, "dropping a target that the policy has no more")
        if engine.closed:
            for backend in kept:
                quietly(backend.close, "closing a router")
            raise Closed(CLOSED)
