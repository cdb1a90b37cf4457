"""Egress settings: data classes that may leave the device, consent and redaction."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from edgeroute.core.egress import Permit, Rules, Unknown
from edgeroute.core.error_codes import class_name
from edgeroute.errors import Held, PolicyError
from edgeroute.system.input_copies import copy_input
from edgeroute.system.process import call_contained

Consent = Callable[[str, str | None], bool]
"""(destination, data class) -> True to permit sending."""
Redact = Callable[[Any, str | None], Any]
"""(input, data class) -> the input to send instead; may work in place on a copy."""


class Egress:
    """Egress rules, consent and redaction.

    Args:
        never_leave: data classes that stay on the device, whatever the mode.
        may_leave: data classes that may leave; an empty list: nothing may, unless `unknown_class` is "allow".
        unknown_class: decision for a class in neither list: "deny" or "allow"; once any class is declared, also for calls
            without a class.
        default_class: class of a call that names none.
        consent: called with the destination and the data class just before sending; only True permits it.
        redact: called with each input and its data class before it is encoded; its result is sent instead.

    Attributes:
        asks: True if `prepare_inputs` calls functions of the application, which may block.

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
        self.asks = consent is not None or redact is not None

    def prepare_inputs(self, inputs: list[Any], permit: Permit, where: str) -> list[Any]:
        """Return the inputs to send: copied and redacted, after consent.

        Without redaction the inputs are returned themselves, not copied.

        Raises:
            Held: consent was not given, or the redaction failed: nothing is sent.
        """
        if self.consent is not None:
            try:
                consented = call_contained(self.consent, where, permit.data_class)
            except Exception as e:
                raise Held(f"the consent callback failed ({class_name(e)}), so nothing was sent", code="consent") from e
            if consented is not True:
                raise Held("consent was not given", code="consent")
        if self.redact is None:
            return inputs
        try:
            copies = [call_contained(copy_input, x) for x in inputs]  # redaction may work in place
        except Exception as e:
            raise Held(
                f"the input cannot be copied for the redaction ({class_name(e)}), so nothing was sent", code="redaction"
            ) from e
        try:
            return [call_contained(self.redact, x, permit.data_class) for x in copies]
        except Exception as e:
            raise Held(f"the redaction failed ({class_name(e)}), so nothing was sent", code="redaction") from e
