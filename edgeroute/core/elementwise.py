"""The smaller and the larger of two numbers, or of each pair of two arrays: so a rule serves one device and a fleet."""

from __future__ import annotations

from typing import Any, TypeAlias

Numbers: TypeAlias = Any
"""A float, or an array of them; of booleans where a rule says yes or no."""


def least(a: Numbers, b: Numbers) -> Numbers:
    """The smaller one; `a` is an array where `b` is."""
    return a.clip(max=b) if hasattr(a, "clip") else min(a, b)


def most(a: Numbers, b: Numbers) -> Numbers:
    """The larger one; likewise."""
    return a.clip(min=b) if hasattr(a, "clip") else max(a, b)
