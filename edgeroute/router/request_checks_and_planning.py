"""Functions that plan a request: checks of its arguments, planning or look-up among stored plans, and edges put on standby.

`drop_unsure_edges` moves leading edges to standby, whose confidence is known from the input alone and below the threshold.
"""

from __future__ import annotations

from typing import Any

from edgeroute.core.plan import Facts, Plan, Refusal, plan, without_first
from edgeroute.core.policy_egress_and_options import MODES, POLICY_MODES, Mode
from edgeroute.core.reason_text_and_trace_record import before_run
from edgeroute.core.walk import Prediction, acceptable, judged
from edgeroute.edge.edge_backend import InputScoredBackend
from edgeroute.errors import BadInput, MayNotLeave, PolicyError, nearest
from edgeroute.router.constructor_checks import check_seconds
from edgeroute.router.policy_snapshot import Snapshot


def checked_plan(
    snapshot: Snapshot, facts: Facts, mode: Mode | None, deadline: float | None, data_class: str | None, home: str = "",
    arm: str = ""
) -> Plan:  # fmt: skip
    """Check the arguments of a call, and return the plan of `core.plan.plan`; raise its refusal as an exception.

    Args:
        snapshot: policy in force.
        facts: observed state.
        mode: mode of the call; None: the policy's.
        deadline: seconds; None: the policy's.
        data_class: name of the data class; None: the policy's.
        home: reason why no input may leave, whatever its data class; empty: the data class decides.
        arm: name of the trial's arm; empty: none.

    Raises:
        PolicyError: an argument is invalid, or the policy has no target for this.
        MayNotLeave: the input may not leave, and there is no edge.
    """
    if mode is not None and mode not in MODES:
        if mode in POLICY_MODES:
            raise PolicyError(f"a call has no mode {mode!r}: it is for the policy, or the router, as mode={mode!r}")
        raise PolicyError(f"there is no mode {mode!r}: {nearest(mode, MODES)}")
    check_seconds("deadline", deadline)
    if data_class is not None and not (isinstance(data_class, str) and data_class):
        error = PolicyError(f"data_class is a name, not {data_class!r}")
        error.key = "data_class"
        raise error
    seconds = None if deadline is None else float(deadline)  # instants are Python's own: numpy's may have half the digits
    result = plan(
        snapshot.policy, snapshot.targets, facts, mode=mode, deadline_s=seconds, data_class=data_class, why_home=home, arm=arm
    )
    if isinstance(result, Refusal):
        raise (MayNotLeave if result.denied else PolicyError)(result.reason)
    return result


def drop_unsure_edges(snapshot: Snapshot, current: Plan, x: Any) -> Plan:
    """Return the plan for this input, with leading edges moved to standby if their confidence, by the input alone, is too low.

    Standbys are behind all others. The first edge that stays ends this: it is sure enough, is not judged by the input alone,
    has thresholds by class, or its view rejects the input or is a function, which may take time; or only standbys are left.
    """
    for _ in current.legs:
        leg = current.legs[0]
        backend = snapshot.backends[leg.target]
        if not isinstance(backend, InputScoredBackend) or not judged(leg) or leg.thresholds or snapshot.views.blocks(leg.target):
            return current
        if all(other.standby for other in current.legs[1:]):
            return current  # nobody else is asked
        try:
            sure = backend.before.of_input(snapshot.views.of(snapshot.targets[leg.target], leg.target, x))
        except BadInput:  # as the run will say
            return current
        if acceptable(leg, Prediction(None, sure, None)):
            return current
        current = without_first(current, sure, before_run(current, leg, sure))
    return current


def stored_plan(
    snapshot: Snapshot, mode: Mode | None, deadline: float | None, data_class: str | None, arm: str = ""
) -> Plan | None:
    """Return the plan stored for such a request; None: there is none, or an argument cannot be a key of one. Makes none."""
    if deadline is True:  # which is equal to 1
        return None
    try:
        return snapshot.plans.get((mode, deadline, data_class, arm))
    except TypeError:  # without a hash: a list, say
        return None


def first_piece_s(policy_s: float, first_token: float | None) -> float:
    """Return the limit of the time to the first token, seconds: the call's, or else the policy's.

    Raises PolicyError if it is invalid.
    """
    if first_token is None:
        return policy_s
    check_seconds("first_token", first_token)
    return float(first_token)
