"""Rules on the device's state, with hysteresis: sensor readings, rules, and a pure step from a reading to the rules in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, nextafter
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeGuard, get_args

from edgeroute.core.setting_unit_types import Delay

MOST: Final = nextafter(inf, 0.0)  # largest float

# Readings of the device's sensors: battery, temperature, load, memory, power, network.


class Reading(NamedTuple):
    """Reading of all sensors at one time; None: unknown. Shares are 0..1.

    Attributes:
        battery: state of charge.
        temperature_c: temperature of the hottest thermal zone, degrees Celsius.
        mains: True if the device is on external power; the battery need not be spared then.
        cpu: share of all cores' time that was used since the last reading.
        cpu_pressure: share of the last 10 s in which a task waited for a core (PSI, some).
        memory_available: share of memory that is available without swapping.
        memory_pressure: share of the last 10 s in which a task waited for memory (PSI, some).
        throttled: True if the processor runs slower than it could, for heat or a weak supply.
        gpu: share of the GPU's time that was used.
        power_w: power that the device, or its measured part, draws, watts.
        network: True if there is a route to anywhere.
        metered: True if the link is metered: bytes cost money.
    """

    battery: float | None = None
    temperature_c: float | None = None
    mains: bool | None = None
    cpu: float | None = None
    cpu_pressure: float | None = None
    memory_available: float | None = None
    memory_pressure: float | None = None
    throttled: bool | None = None
    gpu: float | None = None
    power_w: float | None = None
    network: bool | None = None
    metered: bool | None = None


SHARES = ("battery", "cpu", "cpu_pressure", "memory_available", "memory_pressure", "gpu")  # fields of a reading that are shares


Of = Literal["battery", "heat", "memory", "load", "throttled", "gpu", "power"]
Then = Literal["small_model", "only_edge", "prefer_cloud", "cheapest_energy", "unload", "prefer_edge"]
# Modes that a rule may set.
#
# Not only_cloud: a rule would then cost an answer that the edge has, if the cloud does not answer or the data may not leave. With
# prefer_edge, a policy that prefers the cloud spares it.
RULE_MODES: Final = frozenset({"only_edge", "prefer_cloud", "prefer_edge"})
NO_ONLY_CLOUD: Final = "only_cloud would cost answers that the edge has: prefer_cloud asks the cloud first"
BINDING: Final = frozenset({"heat", "memory"})  # quantities whose rules override a call's own mode: they protect the device


class Quantity(NamedTuple):
    """Quantity that rules compare with a limit."""

    reading: str  # field of `Reading`
    low: bool  # True if a rule is in force below `enter`, not above it
    gap: float  # distance of `leave` from `enter` if `leave` is not given; a share of `enter` if `relative`
    text: str
    share: bool = False
    relative: bool = False


# Name of a quantity -> its properties.
OF: Final[Mapping[str, Quantity]] = {
    "battery": Quantity("battery", True, 0.05, "battery below {}", share=True),
    "heat": Quantity("temperature_c", False, 5.0, "heat above {} C"),
    "memory": Quantity("memory_available", True, 0.05, "free memory below {}", share=True),
    "load": Quantity("cpu", False, 0.1, "load above {}", share=True),
    "throttled": Quantity("throttled", False, 0.0, "throttled"),
    "gpu": Quantity("gpu", False, 0.1, "GPU load above {}", share=True),
    "power": Quantity("power_w", False, 0.1, "power above {} W", relative=True),
}


class Rule(NamedTuple):
    """Rule that sends calls another way while the device is short of something, or hot.

    Args:
        of: quantity of the device. battery and memory: shares of what there is; heat: degrees Celsius of the hottest part; load
            and gpu: shares of their time; power: watts; throttled: while the processor is slowed down.
        then: effect: a mode in place of the policy's, or small_model, cheapest_energy, unload (rules.md).
        enter: limit at which the rule comes into force: below it for battery and memory, above it for others but throttled.
        leave: limit at which the rule ends, on the other side of `enter`. None: as the table shows (rules.md).
        hold_s: how long readings have to demand a change before it is made, seconds.
    """

    of: Of
    then: Then
    enter: float | None = None
    leave: float | None = None
    hold_s: Delay = 0.0

    @property
    def ends(self) -> float:
        """Limit at which the rule ends: `leave`, or by default `enter` moved by the quantity's gap; a share stays within 0..1.

        0 if neither is given.
        """
        if self.leave is not None or self.enter is None:
            return self.leave or 0.0
        low, gap = OF[self.of].low, OF[self.of].gap * (self.enter if OF[self.of].relative else 1.0)
        if not OF[self.of].share:
            return self.enter - gap
        return round(min(1.0, self.enter + gap) if low else max(0.0, self.enter - gap), 9)  # 0.15, and not a little more

    def __str__(self) -> str:
        """Return the condition, e.g. `battery below 20%`."""
        return OF[self.of].text.format("" if self.enter is None else amount(self.of, self.enter))


class Standing(NamedTuple):
    """State of a rule: in force or not, and since when the readings demand the opposite."""

    rule: Rule
    in_force: bool = False
    since_s: float | None = None


State: TypeAlias = tuple[Standing, ...]  # states of the rules, in the order of the policy


def step(rules: Iterable[Rule], state: State, reading: Reading, now_s: float) -> State:
    """Return the state of the rules after a reading at the instant `now_s`. A rule without a state before is not in force.

    A rule whose reading is unknown stays as it is. While the device is on mains, its battery counts as full.
    """
    known = {standing.rule: standing for standing in state}
    return tuple(_next_state(known.get(rule) or Standing(rule), reading, now_s) for rule in rules)


def in_force(state: State) -> tuple[Rule, ...]:
    """Return the rules in force, in the order of the policy."""
    return tuple(standing.rule for standing in state if standing.in_force)


def _next_state(standing: Standing, reading: Reading, now_s: float) -> Standing:
    """Return the state of one rule after a reading: changed once readings have demanded the opposite for `hold_s`.

    Until then the state notes since when they do; a reading that agrees with the state resets that. An unknown value changes
    nothing.
    """
    rule, on, since_s = standing
    value = value_of(rule, reading)
    if value is None:
        return standing
    low, limit = OF[rule.of].low, rule.ends if on else rule.enter or 0.0
    asks = (value >= limit) == on if low else (value > limit) != on
    if not asks:
        return Standing(rule, on)
    since_s = now_s if since_s is None else since_s
    return Standing(rule, on, since_s) if now_s - since_s < rule.hold_s else Standing(rule, not on)


def value_of(rule: Rule, reading: Reading) -> float | None:
    """Return the value that the rule compares; None: unknown, or NaN. On mains the battery counts as full."""
    if rule.of == "battery" and reading.mains:
        return 1.0
    value: float | None = getattr(reading, OF[rule.of].reading)
    return None if value is None or value != value else float(value)  # noqa: PLR0124 - NaN, without an import


class Applying(NamedTuple):
    """Rules in force that apply to a call."""

    rules: tuple[Rule, ...]
    mode: Rule | None  # rule that sets the call's mode; None: none does
    not_applied: tuple[str, ...]  # reasons why rules in force do not apply, one line each

    def then(self, what: Then) -> Rule | None:
        """Return the first rule with this effect; None if there is none."""
        return next((rule for rule in self.rules if rule.then == what), None)


def applying(rules: Sequence[Rule], mode: str | None) -> Applying:
    """Return which of the rules in force apply to a call; `mode`: the call's own, None: it has none.

    A call's own mode overrides all rules but those of `BINDING` (heat, memory). Of rules that set a mode the first counts, and
    none sends a call that is only_edge. The result has the reason for each that does not apply.
    """
    applied: list[Rule] = []
    by: Rule | None = None
    passed = []
    for rule in rules:
        if mode is not None and rule.of not in BINDING:
            passed.append(f"{rule}: {rule.then} does not apply, as the call has a mode of its own")
        elif rule.then not in RULE_MODES:
            applied.append(rule)
        elif mode == "only_edge" and rule.then != mode:
            passed.append(f"{rule}: {rule.then} does not apply, as the call asks for only_edge, and so nothing of it leaves")
        elif by is not None:
            passed.append(f"{rule}: {rule.then} does not apply, as another rule goes before it ({by})")
        else:
            by = rule
            applied.append(rule)
    return Applying(tuple(applied), by, tuple(passed))


def amount(of: str, value: float) -> str:
    """Return a value of a quantity as text."""
    return f"{100 * value:.4g}%" if OF[of].share else f"{value:.4g}"


def problem(rule: Rule) -> str:
    """Return the first fault of a rule's `of`, `then`, `hold_s`, `enter` or `leave`, in words; empty: there is none."""
    kind = OF.get(rule.of) if isinstance(rule.of, str) else None
    if kind is None:
        return f"of is one of {', '.join(OF)}, not {_shown(rule.of)}"
    then: Any = rule.then
    if then not in get_args(Then):
        return NO_ONLY_CLOUD if then == "only_cloud" else f"then is one of {', '.join(get_args(Then))}, not {_shown(then)}"
    if not _number(rule.hold_s) or rule.hold_s < 0:
        return f"hold is seconds, 0 or more, not {_shown(rule.hold_s)}"
    if rule.of == "throttled":
        return "" if rule.enter is None and rule.leave is None else "a rule of throttled has neither enter nor leave"
    if rule.enter is None:
        return f"a rule of {rule.of} needs enter, {_unit(rule.of)}"
    for name, value in (("enter", rule.enter), ("leave", rule.enter if rule.leave is None else rule.leave)):
        if not _number(value) or (kind.share and not 0 <= value <= 1) or (rule.of == "power" and value < 0):
            return f"{name} of {rule.of} is {_unit(rule.of)}, not {_shown(value)}"
    if rule.enter < rule.ends if kind.low else rule.ends < rule.enter:
        return ""
    sign, enter, leave = "more" if kind.low else "less", amount(rule.of, rule.enter), amount(rule.of, rule.ends)
    return f"a rule of {rule.of} ends at {sign} than it begins at, or it would flicker: leave is {leave}, and enter is {enter}"


def _number(value: Any) -> TypeGuard[float]:
    """Return True for a finite int or float that is no bool, and no whole number above any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _shown(value: Any) -> str:
    """Return the repr of a text or number, or else only its type; a huge number as such."""
    if isinstance(value, int) and abs(value) > MOST:
        return "a huge number"
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _unit(of: str) -> str:
    """Return the unit of a quantity in words."""
    return "a share from 0 to 1" if OF[of].share else "degrees Celsius" if of == "heat" else "watts"
