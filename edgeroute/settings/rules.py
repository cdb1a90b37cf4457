"""Sections `[[rule]]`: what changes while the device is short of something, or hot."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from edgeroute.core import rules
from edgeroute.core.rules import OF, Of, Then
from edgeroute.settings.section import Section
from edgeroute.settings.units import SHARE, Delay, expected, share, text
from edgeroute.settings.values import not_only_cloud, refused

_WORDS: Final = {"heat": "degrees Celsius, a number such as 80", "power": "watts, a number such as 12.5"}


def _level(value: Any, info: ValidationInfo) -> float | None:
    """A level in the unit of what the rule is of."""
    of = info.data.get("of")
    if of is None or of == "throttled":  # what is wrong there, is said there
        return 0.0
    if OF[of].share:
        return share(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # noqa: PLR2004 - nor a NaN
        raise expected(_WORDS[of])
    return float(value)


Level = Annotated[
    float | None,
    PlainValidator(_level),
    WithJsonSchema({"anyOf": [text("percentage", SHARE, "20%"), {"type": "number"}]}),
]


class Rule(Section):
    """What changes while the device is short of something, or hot."""

    of: Of = Field(
        description="What of the device: `battery` and `memory` are shares of what there is; `heat` degrees Celsius of the "
        "hottest part; `load` and `gpu` shares of their time; `power` watts; `throttled`: whether the processor is slowed down."
    )
    enter: Level = Field(
        None, description="Where the rule comes into force: below it for battery and memory, above it for others but `throttled`."
    )
    leave: Level = Field(
        None,
        description="Where it ends, on the other side of `enter`. Without it: 5 percentage points more for battery and memory, "
        "10 less for load and gpu, 5 degrees less, a tenth of the power less.",
    )
    hold: Delay = Field(
        "0s", validate_default=True, description="How long the readings have to ask for a change before it is made."
    )
    then: Annotated[Then, BeforeValidator(not_only_cloud)] = Field(
        description="A mode in place of the policy's; `small_model`: only the smallest edge model; `cheapest_energy`: the side "
        "that takes less energy first; `unload`: the edge models are freed, and asked after every cloud (rules.md)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if self.of == "throttled" and self.model_fields_set & {"enter", "leave"}:
            raise refused("a rule of throttled has neither enter nor leave")
        if problem := rules.problem(self.make()):
            raise refused(problem)
        return self

    def make(self) -> rules.Rule:
        """Makes the rule."""
        return rules.Rule(self.of, self.then, self.enter, self.leave, self.hold)
