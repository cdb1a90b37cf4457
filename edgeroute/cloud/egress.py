"""Egress settings: data-class rules, consent and redaction."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from edgeroute.copies import own_copy
from edgeroute.core.egress import Permit, Rules, Unknown
from edgeroute.core.texts import typed
from edgeroute.errors import Held, PolicyError
from edgeroute.system import contained

Consent = Callable[[str, str | None], bool]
Redact = Callable[[Any, str | None], Any]


class Egress:
    """Egress rules, consent and redaction.

    Args:
        never_leave: data classes that stay on the device, whatever the mode.
        may_leave: data classes that may leave; an empty list: nothing may, unless `unknown_class` is "allow".
        unknown_class: decision for a class in neither list: "deny" or "allow"; once any class is declared, also for calls
            without a class.
        default_class: the class of a call that names none.
        consent: called with the destination and the data class just before sending; only True permits it.
        redact: called with each input and its data class before it is encoded; its result is sent instead.

    Raises:
        PolicyError: invalid rules.
    """

    def __init__(
        self,
        *,
        never_leave: Collection[str] = (),
        may_leave: Collection[str] | None = None,
        unknown_class: Unknown = "deny",
        default_class: str | None = None,
        consent: Consent | None = None,
        redact: Redact | None = None,
    ) -> None:
        declared, may_leave = may_leave is not None, () if may_leave is None else may_leave
        for name, classes in (("never_leave", never_leave), ("may_leave", may_leave)):
            if isinstance(classes, str) or not all(isinstance(c, str) and c for c in classes):
                raise PolicyError(f"{name} is a list of data classes, as in ['medical'], not {classes!r}")
        if unknown_class not in {"deny", "allow"}:
            raise PolicyError(f"unknown_class is 'deny' or 'allow', not {unknown_class!r}")
        if both := set(never_leave) & set(may_leave):
            raise PolicyError(f"{', '.join(sorted(both))}: both in never_leave and in may_leave")
        if default_class is not None and not (isinstance(default_class, str) and default_class):
            raise PolicyError(f"default_class is the name of a data class, not {default_class!r}")
        self.rules = Rules(frozenset(never_leave), frozenset(may_leave), unknown_class, default_class, declared)
        self.consent, self.redact = consent, redact

    @property
    def asks(self) -> bool:
        """Whether `prepared` calls functions of the application, which may block."""
        return self.consent is not None or self.redact is not None

    def prepared(self, inputs: list[Any], permit: Permit, where: str) -> list[Any]:
        """The inputs to send: copied and redacted, after consent.

        Raises:
            Held: consent was not given, or the redaction failed: nothing is sent.
        """
        if self.consent is not None:
            try:
                given = contained(self.consent, where, permit.data_class)
            except Exception as e:
                raise Held(f"the consent callback failed ({typed(e)}), so nothing was sent", code="consent") from e
            if given is not True:
                raise Held("consent was not given", code="consent")
        if self.redact is None:
            return inputs
        try:
            return [
                contained(self.redact, contained(own_copy, x), permit.data_class) for x in inputs
            ]  # redaction may work in place
        except Exception as e:
            raise Held(f"the redaction failed ({typed(e)}), so nothing was sent", code="redaction") from e
