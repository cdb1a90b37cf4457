"""Egress rules: which data classes may leave the device. A cloud leg requires a `Permit`, which only these rules create."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, final

Unknown = Literal["deny", "allow"]

_OURS: Final = object()
UNCLASSIFIED: Final = "unclassified"
"""Class of an input whose data class cannot be found: the input never leaves."""


class Rules(NamedTuple):
    """Data classes that may leave the device; a class in both lists stays."""

    never_leave: frozenset[str] = frozenset()
    may_leave: frozenset[str] = frozenset()
    unknown_class: Unknown = "deny"
    """Decision for a class in neither list, and, once any class is declared, for a call without one."""
    default_class: str | None = None
    """Class of a call that names none."""
    declared: bool = False
    """True if `may_leave` was declared, though it may be empty: then nothing may leave."""

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
    """Permission for a request of this class to leave, with the rule that grants it. Only `permit` creates one."""

    __slots__ = ("data_class", "rule")
    data_class: Final[str | None]
    rule: Final[str]

    def __init__(self, key: object, data_class: str | None, rule: str) -> None:
        if key is not _OURS:
            raise TypeError("only the egress rules create a Permit")
        self.data_class, self.rule = data_class, rule

    def __repr__(self) -> str:
        return f"<Permit for {self.data_class!r} by {self.rule!r}>"


class Denied(NamedTuple):
    """Reason why the request may not leave."""

    data_class: str | None
    why: str


def permit(rules: Rules, data_class: str | None) -> Permit | Denied:
    """Decide if a request of this class may leave; None means the default class.

    `never_leave` goes first. Unknown classes may not leave, unless the rules allow it; without any rules a request without a
    class may.
    """
    name = rules.default_class if data_class is None else data_class
    if name is None and not rules.any:
        return Permit(_OURS, None, "no data class is declared")
    if name in rules.never_leave:
        return Denied(name, f"data class {name!r} never leaves")
    if name in rules.may_leave:
        return Permit(_OURS, name, f"may_leave has {name!r}")
    if rules.unknown_class == "allow":
        return Permit(_OURS, name, "unknown_class is allow")
    what = "a call without data_class" if name is None else f"data class {name!r}, which no rule knows,"
    return Denied(name, f"{what} may not leave (unknown_class is deny)")
