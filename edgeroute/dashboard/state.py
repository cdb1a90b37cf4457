"""What a policy says, for people: mode, limits of time, data classes, rules and targets."""

from __future__ import annotations

from typing import Any

from edgeroute.core.explain import finite
from edgeroute.core.policy import INF
from edgeroute.router.snapshot import Snapshot


def of_policy(snapshot: Snapshot) -> dict[str, Any]:
    """The policy in force."""
    policy, egress = snapshot.policy, snapshot.policy.rules
    return {
        "mode": policy.mode, "offline": policy.offline,
        "deadline_s": None if policy.deadline_s == INF else policy.deadline_s,
        "hedge_after": None if policy.hedge_after == INF else policy.hedge_after,
        "never_leave": sorted(egress.never_leave), "may_leave": sorted(egress.may_leave), "unknown_class": egress.unknown_class,
        "default_class": egress.default_class,
        "rules": [f"{rule}: {rule.then}" for rule in policy.all_rules()],
        "targets": [
            {"name": t.name, "side": t.side, "threshold": finite(t.threshold), "label": t.label} for t in snapshot.targets
        ],
    }  # fmt: skip
