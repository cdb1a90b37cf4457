"""Routing policy as plain data: modes, targets, thresholds, egress rules with permits, prices and limits; and `Options`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, final, get_args

from edgeroute.core.device_rules import Reading, Rule
from edgeroute.core.setting_unit_types import Amount, Patience, Rate

# Egress rules: which data classes may leave the device. A cloud leg requires a `Permit`, which only these rules create.

Unknown = Literal["deny", "allow"]

_OURS: Final = object()
UNCLASSIFIED: Final = "unclassified"  # class of an input whose data class cannot be found: the input never leaves


class Rules(NamedTuple):
    """Data classes that may leave the device; a class in both lists stays."""

    never_leave: frozenset[str] = frozenset()
    may_leave: frozenset[str] = frozenset()
    # Decision for a class in neither list, and, once any class is declared, for a call without one.
    unknown_class: Unknown = "deny"
    default_class: str | None = None  # class of a call that names none
    declared: bool = False  # True if `may_leave` was declared, though it may be empty: then nothing may leave

    @property
    def any(self) -> bool:
        """True if there are rules of data classes; without rules, a call that names no class goes where its mode says."""
        return self.declared or bool(self.never_leave or self.may_leave)

    @property
    def nothing(self) -> bool:
        """True if nothing may leave, whatever class a call names."""
        return self.any and not self.may_leave and self.unknown_class == "deny"


@final
class Permit:
    """Permission for a request of this class to leave, with the rule that grants it. Only `permit` creates one.

    `mode` is the call's own mode; None: it has none, and so leaves by the policy's mode or a device rule's.
    """

    __slots__ = ("data_class", "mode", "rule", "rules")
    data_class: Final[str | None]
    rule: Final[str]
    rules: Final[Rules]
    mode: Final[Mode | None]

    def __init__(self, key: object, data_class: str | None, rule: str, rules: Rules, mode: Mode | None) -> None:
        if key is not _OURS:
            raise TypeError("only the egress rules create a Permit")
        self.data_class, self.rule, self.rules, self.mode = data_class, rule, rules, mode

    def without_mode(self) -> Permit:
        """Return the permit of an equal call without a mode of its own."""
        return Permit(_OURS, self.data_class, self.rule, self.rules, None)

    def __repr__(self) -> str:
        return f"<Permit for {self.data_class!r} by {self.rule!r}>"


class Denied(NamedTuple):
    """Reason why the request may not leave."""

    data_class: str | None
    why: str


def permit(rules: Rules, data_class: str | None, mode: Mode | None = None) -> Permit | Denied:
    """Decide if a request of this class may leave; None means the default class. `mode` is that of the `Permit`.

    `never_leave` goes first. Unknown classes may not leave, unless the rules allow it; without any rules a request without a
    class may.
    """
    name = rules.default_class if data_class is None else data_class
    if name is None and not rules.any:
        return Permit(_OURS, None, "no data class is declared", rules, mode)
    if name in rules.never_leave:
        return Denied(name, f"data class {name!r} never leaves")
    if name in rules.may_leave:
        return Permit(_OURS, name, f"may_leave has {name!r}", rules, mode)
    if rules.unknown_class == "allow":
        return Permit(_OURS, name, "unknown_class is allow", rules, mode)
    what = "a call without data_class" if name is None else f"data class {name!r}, which no rule knows,"
    return Denied(name, f"{what} may not leave (unknown_class is deny)")


Mode = Literal["prefer_edge", "only_edge", "prefer_cloud", "only_cloud"]
# Mode of a policy. shadow: the cloud answers everything, and for a sample the edge's answer is recorded.
PolicyMode = Literal["prefer_edge", "only_edge", "prefer_cloud", "only_cloud", "shadow"]
Side = Literal["edge", "cloud"]
Offline = Literal["edge", "queue", "stale", "raise"]
NoConfidence = Literal["defer", "accept"]
CloudOrder = Literal["listed", "fastest"]
Uncalibrated = Literal["tell", "error"]
OnAlarm = Literal["tell", "raise", "defer"]
Hedge = float | str  # seconds, a quantile of the edge's own latency such as "p90", or "auto"

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
POLICY_MODES: Final[tuple[PolicyMode, ...]] = get_args(PolicyMode)
# Mode, or effect of a rule -> sides that it requires.
NEEDS: Final[Mapping[str, tuple[Side, ...]]] = {
    "only_edge": ("edge",), "prefer_cloud": ("cloud",), "only_cloud": ("cloud",), "shadow": ("edge", "cloud"),
    "cheapest_energy": ("edge", "cloud"), "unload": ("edge",),
}  # fmt: skip
HEDGE: Final = "p[1-9][0-9]|auto"  # regular expression for a `Hedge` as text
INF: Final = float("inf")
# Name of the edge model on trial in answers, traces, audits and statistics; the one in use is `edge`.
EDGE_TRIAL: Final = "edge-trial"


class Target(NamedTuple):
    """Model or endpoint. Targets are listed from the least to the most capable."""

    name: str
    side: Side
    threshold: float | None = None  # minimum confidence of an accepted answer; None: every answer is accepted
    label: str = "uncalibrated"  # origin of the threshold, as quoted in the reason
    thresholds: Mapping[str, float] = {}  # per-class thresholds: an answer's `str()` -> its threshold; empty: one for all
    certified: bool = False  # True if the threshold is a certificate's: it is never lowered
    trial: bool = False  # True for a cloud that gets only the requests of its arm
    group: str = ""  # name of its group of variants; empty: none. One member of a group is in a plan.
    # True if its certificate is about all edges together: it holds only where all of them are asked in their order.
    together: bool = False
    # Returns why the models in memory are not those of its certificate; empty: they are. None: without a certificate.
    moved: Callable[[], str] | None = None


class Policy(NamedTuple):
    """Routing rules. Durations are in seconds."""

    mode: PolicyMode = "prefer_edge"
    deadline_s: float = INF
    # Hedging delay: start the next target so long after the previous one if that has not answered; 0 is a race.
    hedge_after: Hedge = INF
    # Result if the cloud was needed and did not answer. edge: the edge's answer; queue: the same, and the request is sent later;
    # stale: an expired cache entry; raise: NoAnswer.
    offline: Offline = "edge"
    first_token_s: float = INF  # in streams: maximum time to the first piece; a target without one counts as failed
    no_confidence: NoConfidence = "defer"  # treatment of a missing or NaN confidence
    order: CloudOrder = "listed"  # order of several clouds: as listed, or the one with the lowest latency first
    rules: Rules = Rules()  # egress rules
    device_rules: tuple[Rule, ...] = ()  # rules on the device's state; the first one in force that changes the mode counts
    sensors_every_s: float | None = None  # time between two readings of the device's sensors; None: the sensors' default


class Terms(NamedTuple):
    """Price of calling an endpoint, and limits of rate and concurrency.

    Args:
        usd_per_call: US dollars for a request.
        usd_per_mb: US dollars for a million bytes, sent or received.
        joules_per_call: radio energy of the device for a request, whatever its size.
        joules_per_mb: radio energy of the device for a million bytes, sent or received.
        calls_per_s: maximum requests per second; further ones are not sent, as if the endpoint were away. inf: no limit.
        max_concurrent: maximum concurrent requests; further ones wait until their deadline. "auto": as many as the endpoint
            answers without getting slower, and further ones are not sent (scale.md#load).
        usd_per_million_input_tokens: US dollars for a million tokens of requests, of a language model.
        usd_per_million_output_tokens: US dollars for a million tokens of its answers.
    """

    usd_per_call: Amount = 0.0
    usd_per_mb: Amount = 0.0
    joules_per_call: Amount = 0.0
    joules_per_mb: Amount = 0.0
    calls_per_s: Rate = INF
    max_concurrent: int | Literal["auto"] = 64
    usd_per_million_input_tokens: Amount = 0.0
    usd_per_million_output_tokens: Amount = 0.0


class Options(NamedTuple):
    """Settings of a router that few programs change, as in `Router(..., options=Options(hedge_after="p90"))`.

    Args:
        hedge_after: time without an answer after which the next target is called, too; 0 is a race; "p90": once the edge takes
            longer than 90 % of its runs; "auto": as late as the deadline allows, from the measured latencies. None: never.
        first_token: time after which a target without a first piece of a stream counts as failed. None: no limit.
        uncalibrated: effect of a threshold without a certificate that is valid for these models, this score and this age:
            "tell" reports it in reasons and `check`; "error" rejects the policy.
        certificate_max_age: greatest age of a certificate. None: no limit.
        no_confidence: effect of an answer without a confidence, or with NaN: "defer" calls the next target; "accept" accepts it.
        order: order of several clouds: as "listed", or the "fastest" so far first.
        metered: True if bytes cost money on the link: nothing is called only to be quicker. In Python also a function.
        sensors: returns a `Reading`, called in the background; None: `DeviceSensors()`.
        sensors_every: time between two readings of the sensors, 1 to 60 s (sensors.md). None: `every_s` of the sensors, or 10 s.
        views: what of an input each side takes: "edge" or "cloud", or a target's name -> a key of the input, or a function of it.
        rules: a list of `Rule`: what changes while the device is short of battery or memory, hot, or busy.
        instruments: receivers of the events of requests, attempts, breakers and the outbox; see `Instrument`.
        parts: further parts, the outermost first (`edgeroute.Part`).
    """

    hedge_after: float | str | None = None
    first_token: Patience | None = None
    uncalibrated: Uncalibrated = "tell"
    certificate_max_age: Patience | None = None
    no_confidence: NoConfidence = "defer"
    order: CloudOrder = "listed"
    metered: bool | Callable[[], bool] = False
    sensors: Callable[[], Reading] | None = None
    sensors_every: Patience | None = None
    views: Mapping[str, str | Callable[[Any], Any]] | None = None
    rules: Sequence[Rule] | None = None
    instruments: Sequence[Any] = ()
    parts: Sequence[Any] = ()
