"""Scenes of frames: by the distance of cheap signatures from that with which the scene began."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan
from typing import NamedTuple


class Scene(NamedTuple):
    """A run of frames that are alike."""

    number: int = 0
    """From 1; 0: there was no frame yet."""
    signature: Sequence[float] = ()
    """Of its first frame: slow changes add up until they are a new scene."""


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The mean absolute difference of two signatures; inf if they differ in length. NaN differs from numbers, not from NaN."""
    if len(a) != len(b):
        return inf
    return sum(_apart(x, y) for x, y in zip(a, b, strict=True)) / len(a) if a else 0.0


def _apart(x: float, y: float) -> float:
    if x == y or (isnan(x) and isnan(y)):
        return 0.0
    return inf if isnan(x) or isnan(y) else abs(x - y)


def scene_of(scene: Scene, signature: Sequence[float], change: float) -> Scene:
    """The scene that a frame with this signature is in: the one so far, or a new one if it differs by more than `change`."""
    if scene.number and distance(scene.signature, signature) <= change:
        return scene
    return Scene(scene.number + 1, signature)
