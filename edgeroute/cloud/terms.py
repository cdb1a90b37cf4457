"""Prices and limits of an endpoint, checked."""

from __future__ import annotations

from typing import Any

from edgeroute.core.policy import Terms
from edgeroute.errors import check_number

_PER_TOKEN = ("usd_per_million_input_tokens", "usd_per_million_output_tokens")


def checked_terms(given: dict[str, Any]) -> Terms:
    """Makes the terms from their fields by name.

    Raises:
        PolicyError: one is not a number that it can be: it would switch a limit off, or poison what is booked.
    """
    found = Terms(**given)
    for name in ("usd_per_call", "usd_per_mb", "joules_per_call", "joules_per_mb", *_PER_TOKEN):
        check_number(name, getattr(found, name))
    check_number("calls_per_s", found.calls_per_s, above=True, infinite=True)
    if found.max_concurrent != "auto":
        check_number("max_concurrent", found.max_concurrent, least=1, whole=True)
    return found
