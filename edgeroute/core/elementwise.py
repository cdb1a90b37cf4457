"""Elementwise minimum and maximum, of floats or arrays, so that one rule serves one device and a simulated fleet."""

from __future__ import annotations

from typing import Any, TypeAlias

Numbers: TypeAlias = Any
"""A float, or an array of floats; of booleans where a rule decides yes or no."""


def least(a: Numbers, b: Numbers) -> Numbers:
    """The minimum; `a` is an array if `b` is."""
    return a.clip(max=b) if hasattr(a, "clip") else min(a, b)


def most(a: Numbers, b: Numbers) -> Numbers:
    """The maximum; `a` is an array if `b` is."""
    return a.clip(min=b) if hasattr(a, "clip") else max(a, b)
