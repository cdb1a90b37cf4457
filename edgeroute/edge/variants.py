"""Variants: edge models for the same task, of which one runs at a time."""

from __future__ import annotations

from typing import Any

from edgeroute.errors import PolicyError


class Variants:
    """A group of edge models for the same task, such as fp32, int8 and a tiny one; of each call one of them takes part.

    The first one runs, unless it is too slow for the call's deadline, or a rule with `small_model` is in force: then the last
    one does. Each has a threshold, a certificate and latencies of its own, and answers name it: `edge int8`.

    Args:
        models: name -> path, model or callable, the one that is to run normally first and the smallest last.

    Raises:
        PolicyError: there are fewer than two.
    """

    def __init__(self, **models: Any) -> None:
        if len(models) < 2:  # noqa: PLR2004 - one to pick
            raise PolicyError(f"variants are two models or more, as in Variants(fp32=..., int8=...), not {len(models)}")
        self.models: dict[str, Any] = models


def each(given: Any) -> list[Any]:
    """The members of a group of variants; anything else is alone."""
    return [*given.models.values()] if isinstance(given, Variants) else [given]
