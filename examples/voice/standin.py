"""Stands for the two models until they are here."""

from __future__ import annotations

from typing import Any


def commands(audio: Any) -> tuple[str, float]:
    """One digit, if it is short."""
    return ("other", 0.95) if len(audio) > 1.7 * 16_000 else ("three", 0.95)


def intents(text: str) -> tuple[str, float]:
    """The time, if one asks for it."""
    return ("time", 0.95) if "time" in text.lower() else ("unknown", 0.1)
