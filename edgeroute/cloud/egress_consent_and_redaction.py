"""Egress settings: data classes that may leave the device, consent, redaction and masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from typing import Any, Final

from edgeroute.core.error_codes_and_texts import class_name, failure_text
from edgeroute.core.policy_egress_and_options import UNCLASSIFIED, Denied, Permit, Rules, Unknown, permit
from edgeroute.errors import Held, PolicyError
from edgeroute.system.contained_calls_and_tasks import call_contained, set_within
from edgeroute.system.input_copies import copy_input, copy_value
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.read_and_check_signatures import data_classes, refuse_awaitable, runs_later
from edgeroute.system.sanitised_logs_and_contained_errors import Failures

Consent = Callable[[str, str | None], bool]  # (destination, data class) -> True to permit sending
Classify = Callable[[Any], str]  # (input) -> its data class; must not change the input
Redact = Callable[[Any, str | None], Any]  # (input, data class) -> the input to send instead; may work in place on a copy
Finder = Callable[[str], Iterable[tuple[int, int, str]]]  # (text) -> start, end and kind of each find
# Rules whose function runs: nothing leaves by the calls that it makes of a router with these rules.
WITHIN: Final[ContextVar[Egress | None]] = ContextVar("edgeroute_egress", default=None)


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
        mask: kinds of personal data to replace in what is sent, and to put back into the answer, or functions that find some
            (docs/privacy.md#masks-that-come-back).
        data_class: called with each input before anything is sent; returns the input's class. The input stays if the call fails
            or returns no name. Of this class and one that the caller names the stricter counts.

    Calls of the router that these functions make stay on the device.

    Attributes:
        asks: True if `prepare_inputs` calls functions of the application, which may block.

    Raises:
        PolicyError: invalid rules.
        RuntimeMissing: the library of a mask is not installed.
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
        mask: Collection[str | Finder] = (),
        data_class: Classify | None = None,
    ) -> None:
        declared, may = may_leave is not None, data_classes("may_leave", () if may_leave is None else may_leave)
        never = data_classes("never_leave", never_leave)
        if unknown_class not in {"deny", "allow"}:
            raise PolicyError(f"unknown_class is 'deny' or 'allow', not {unknown_class!r}")
        if both := never & may:
            raise PolicyError(f"{', '.join(sorted(both))}: in never_leave and in may_leave: remove one of them")
        if default_class is not None and not (isinstance(default_class, str) and default_class):
            raise PolicyError(f"default_class is the name of a data class, not {default_class!r}")
        for name, function in (("data_class", data_class), ("consent", consent), ("redact", redact)):
            if function is not None and (not callable(function) or runs_later(function)):
                raise PolicyError(f"{name} is a function that returns its result, and no coroutine or generator function")
        self.rules = Rules(never if data_class is None else never | {UNCLASSIFIED}, may, unknown_class, default_class, declared)
        if isinstance(mask, str):
            raise PolicyError(f"mask is a list of kinds of data, as in ['email'], not {mask!r}")
        if mask and redact is not None:
            raise PolicyError("mask= and redact= both replace what is sent: give one; a mask takes a function of a text, too")
        self.mask: Any = import_late("edgeroute.cloud.personal_data_masks").Mask(mask) if mask else None
        self.consent, self.redact, self.data_class, self._failures = consent, self.mask or redact, data_class, Failures()
        self.asks = consent is not None or self.redact is not None

    def class_of(self, x: Any, named: str | None, never: Collection[str] = ()) -> str | None:
        """Return the data class of an input: the stricter of the call's own and the one that the function `data_class` gives.

        Without a function, or if `named` is no text, it is `named`. If the function fails or gives no name, which is logged,
        and within its own calls, it is UNCLASSIFIED, which never leaves. May block, as it calls the application's function.

        Args:
            x: the input.
            named: class that the call names; None: none.
            never: classes that are not cached, which are stricter than others.
        """
        if self.data_class is None or not isinstance(named, str | None):
            return named
        if WITHIN.get() is self:
            return UNCLASSIFIED
        try:
            with set_within(WITHIN, self):
                found = call_contained(self.data_class, x)
        except Exception as e:  # noqa: BLE001 - whatever the application raises: the input stays
            self._failures.log("data_class", e, coded=True)
            found = UNCLASSIFIED
        if not isinstance(found, str) or not found:
            why = f"it gave {class_name(found)} in place of a data class's name, a text that is not empty"
            self._failures.log("data_class", PolicyError(why), coded=True)
            found = UNCLASSIFIED
        classes = [named, str.__str__(found)]
        return max(classes[named is None :], key=lambda c: (isinstance(permit(self.rules, c), Denied), c in never))

    def prepare_inputs(self, inputs: list[Any], permit: Permit, where: str) -> tuple[list[Any], list[Any] | None]:
        """Ask for consent, and return the inputs to send, and what puts masked data back into each answer; None without a mask.

        Redaction gets copies of the inputs; without redaction or mask the inputs are returned themselves, not copied. May block,
        as it calls functions of the application.

        Raises:
            Held: consent was not given, or a function failed: nothing is sent.
        """
        with set_within(WITHIN, self):
            if self.consent is not None:
                try:
                    consented = call_contained(self.consent, where, permit.data_class)
                except Exception as e:
                    raise Held(f"the consent callback failed ({class_name(e)}), so nothing was sent", code="consent") from e
                if consented is not True:
                    raise Held("consent was not given", code="consent")
            if self.redact is None:
                return inputs, None
            try:
                if self.mask is not None:
                    masked = [call_contained(self.mask.mask, x) for x in inputs]
                    return [x for x, _ in masked], [data for _, data in masked]
                return [self._redacted(self.redact, x, permit, alone=len(inputs) == 1) for x in inputs], None
            except Exception as e:
                # The text of the application's own exception may hold the input, whatever its type.
                why = f"redaction failed ({class_name(e)})" if self.mask is None else f"mask failed ({failure_text(e)})"
                raise Held(f"the {why}, so nothing was sent", code="redaction") from e

    @staticmethod
    def _redacted(redact: Redact, x: Any, permit: Permit, *, alone: bool) -> Any:
        """Return the redaction of a copy of an input, on which it may work in place.

        Of several inputs what is no copy of the input is copied: the function may return one buffer each time.
        """
        own = call_contained(copy_input, x)
        sent = call_contained(redact, own, permit.data_class)
        refuse_awaitable(sent, "redact", PolicyError, "it has to return what is to be sent")
        return sent if alone or sent is own else copy_value(sent)
