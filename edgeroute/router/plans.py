"""Plans of requests: made of the policy in force and the facts, or found among those that were made before."""

from __future__ import annotations

from typing import Any

from edgeroute.core.explain import before_run
from edgeroute.core.plan import Facts, Plan, Refusal, plan, without_first
from edgeroute.core.policy import MODES, POLICY_MODES, Mode
from edgeroute.core.walk import Prediction, acceptable, judged
from edgeroute.edge.backend import InputScoredBackend
from edgeroute.errors import BadInput, MayNotLeave, PolicyError, nearest
from edgeroute.router.arguments import check_seconds
from edgeroute.router.build import Snapshot


def planned(
    snapshot: Snapshot, facts: Facts, mode: Mode | None, deadline: float | None, data_class: str | None, home: str = "",
    arm: str = "",
) -> Plan:  # fmt: skip
    """The plan for such a request. `home`: why nothing of it may leave, whatever its data class; empty: by that.

    Raises:
        PolicyError, MayNotLeave: there is none.
    """
    if mode is not None and mode not in MODES:
        if mode in POLICY_MODES:
            raise PolicyError(f"a call has no mode {mode!r}: it is for the policy, or the router, as mode={mode!r}")
        raise PolicyError(f"there is no mode {mode!r}: {nearest(mode, MODES)}")
    check_seconds("deadline", deadline)
    if data_class is not None and not (isinstance(data_class, str) and data_class):
        raise PolicyError(f"data_class is a name, not {data_class!r}")
    seconds = None if deadline is None else float(deadline)  # instants are Python's own: numpy's may have half the digits
    made = plan(
        snapshot.policy, snapshot.targets, facts, mode=mode, deadline_s=seconds, data_class=data_class, why_home=home, arm=arm
    )
    if isinstance(made, Refusal):
        raise (MayNotLeave if made.denied else PolicyError)(made.reason)
    return made


def beforehand(snapshot: Snapshot, made: Plan, x: Any) -> Plan:
    """The plan for this input, where the confidence of edges that would be asked first is known from it before they run.

    Not where their view is a function, which may take its time; then they are judged once they have run.
    """
    for _ in made.legs:
        leg = made.legs[0]
        backend = snapshot.backends[leg.target]
        if not isinstance(backend, InputScoredBackend) or not judged(leg) or leg.thresholds or snapshot.views.blocks(leg.target):
            return made
        if all(other.standby for other in made.legs[1:]):
            return made  # nobody else is asked
        try:
            sure = backend.before.of_input(snapshot.views.of(snapshot.targets[leg.target], leg.target, x))
        except BadInput:  # as the run will say
            return made
        if acceptable(leg, Prediction(None, sure, None)):
            return made
        made = without_first(made, sure, before_run(made, leg, sure))
    return made


def kept(snapshot: Snapshot, mode: Mode | None, deadline: float | None, data_class: str | None, arm: str = "") -> Plan | None:
    """The plan that was made for such a request; None: there is none, or one of these is nothing to ask for it by."""
    if deadline is True:  # which is equal to 1
        return None
    try:
        return snapshot.plans.get((mode, deadline, data_class, arm))
    except TypeError:  # without a hash: a list, say
        return None


def first_piece_s(policy_s: float, first_token: float | None) -> float:
    """Limit of the time to the first token, seconds."""
    if first_token is None:
        return policy_s
    check_seconds("first_token", first_token)
    return float(first_token)
