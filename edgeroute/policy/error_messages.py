"""Messages for users, translated from pydantic's errors: they name the key, quote no secret, and suggest a valid one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from edgeroute.errors import nearest
from edgeroute.policy.contradictions import Key, Problem, kind_text, quote_value
from edgeroute.policy.policy_keys import SECTIONS, Settings
from edgeroute.policy.sections_from_classes import Section
from edgeroute.policy.target_sections import CLOUDS, PROTOCOLS, Cloud, Edge, InstalledCloud
from edgeroute.system.late_imports import plugin_targets

REPLACED = {
    "ab": "write [trial] with edge = the path of B, and the other keys as they are (trials.md)",
    "candidate": "write [trial] with shown = false, and its keys in [trial.edge] (trials.md)",
    "cloud_arms": "write a [[trial]] for each endpoint but the first: cloud = its name; shown = false for shadow (trials.md)",
    "saver": 'a [[rule]] of = "battery" and one of = "heat" with the same `then` do the same (rules.md)',
}
"""Section of an earlier policy -> what replaces it."""


def explain(error: ValidationError) -> list[Problem]:
    """Return one problem per error; none quotes a value that may be a secret."""
    return [_problem(e["loc"], e["type"], e.get("ctx", {}), e["input"]) for e in error.errors(include_url=False)]


def _problem(loc: Key, kind: str, context: Mapping[str, Any], value: Any) -> Problem:
    """Return the problem of one pydantic error.

    A value that may be a secret is described, not quoted.

    Args:
        loc: pydantic's place of the value.
        kind: pydantic's type of the error.
        context: context of the error.
        value: the invalid value.
    """
    key, model = _place(loc)
    if kind == "extra_forbidden":
        return Problem(key, f"there is no such key: {_suggestion(str(key[-1]), model)}")
    if kind == "missing":
        return Problem(key, f"is missing. {model.model_fields[str(key[-1])].description}")
    if kind == "union_tag_invalid":
        protocols = [*CLOUDS, *plugin_targets(PROTOCOLS)]
        return Problem((*key, "protocol"), f"found {quote_value(value['protocol'])}: {nearest(value['protocol'], protocols)}")
    if kind == "literal_error":
        words = re.findall(r"'(\w+)'", context["expected"])
        if isinstance(value, bool):  # in YAML `off`, too, is one
            return Problem(key, f"found {quote_value(value)}: expected one of {', '.join(words)}, in quotes")
        return Problem(key, f"found {quote_value(value)}: {nearest(value, words)}")
    if kind == "expected":
        shown = kind_text(value) if key[-1] in _MAY_BE_SECRET else quote_value(value)
        return Problem(key, f"expected {context['words']}, found {shown}" + (f"; {context['hint']}" if context["hint"] else ""))
    if kind == "policy":
        return Problem(key, context["text"])
    return Problem(key, f"expected a section, as in [{loc[0]}] and its keys below, found {kind_text(value)}")


_MAY_BE_SECRET = ("cert", "verify")
"""Keys near which a key or password may have been written: their text is not quoted."""


def _place(loc: Key) -> tuple[Key, type[Section | Settings]]:
    """Return the key without the protocol, and the section type that the key belongs to."""
    models = SECTIONS.get(str(loc[0]), ())
    if len(loc) == 1 or not models:
        return loc, Settings
    if len(models) > 1 and len(loc) > 2:  # noqa: PLR2004 - the section, its index, then the protocol, which is no key
        return loc[:2] + loc[3:], CLOUDS.get(str(loc[2]), InstalledCloud)
    return loc, Edge if loc[0] == "trial" and "edge" in loc[1:-1] else models[0]


def _suggestion(word: str, model: type[Section | Settings]) -> str:
    """Return a suggestion: the section that such a key belongs to, or the nearest valid key.

    For a key of other clouds, the protocol that has it.
    """
    if issubclass(model, Cloud):
        for protocol, other in CLOUDS.items():
            if word in other.model_fields:
                return f'only a cloud with protocol = "{protocol}" has it'
    if model is Settings and word in REPLACED:
        return REPLACED[word]
    if word in SECTIONS:
        return f"it is a section of its own, [{word}]"
    if word in Settings.model_fields:
        return "it belongs at the top of the file, before the first section"
    homes = [f"[{home}]" for home, models in SECTIONS.items() if any(word in m.model_fields for m in models)]
    homes = [home for home in homes if home != "[trial]"] or homes
    if homes:
        return f"it belongs in {' or '.join(homes)}"
    return nearest(word, model.model_fields)
