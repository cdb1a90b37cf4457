"""A/B and canary by weight: which model answers a caller, the same one each time. Written by `edgeroute export`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import isclose


def checked(splits: Mapping[str, Mapping[str, float]], models: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """The shares of models by the name that callers use.

    Raises:
        ValueError: a share is none, they do not add up to 1, or a model is not there.
    """
    found: dict[str, dict[str, float]] = {}
    for name, arms in splits.items():
        shares = {str(arm): float(share) for arm, share in arms.items()}
        if unknown := [arm for arm in shares if arm not in models]:
            raise ValueError(f"splits: {name} has the arm {unknown[0]!r}; the models are {', '.join(models)}")
        if not all(share >= 0 for share in shares.values()) or not isclose(sum(shares.values()), 1, abs_tol=1e-6):
            raise ValueError(f"splits: the shares of {name} are {shares}, which do not add up to 1")
        found[str(name)] = shares
    return found


def arm_of(name: str, shares: Mapping[str, float], key: bytes) -> str:
    """The arm of a key. While the first arm's share grows, as a canary's does, whoever was in it stays in it."""
    at = int.from_bytes(hashlib.sha256(name.encode() + b"\0" + key).digest()[:8], "big") / 2**64
    last = ""
    for arm, share in shares.items():
        if share > 0:
            last = arm
            if at < share:
                return arm
        at -= share
    return last
