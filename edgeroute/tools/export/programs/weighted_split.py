"""Split of callers between models (arms) by weight, for A/B and canaries: a key always gets the same model.

Copied by `edgeroute export`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import isclose


def checked_shares(splits: Mapping[str, Mapping[str, float]], models: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """Return a checked copy of the shares as numbers, name for callers -> model -> share.

    Raises:
        ValueError: a share is negative or no number, shares do not add up to 1, or a model does not exist.
    """
    result: dict[str, dict[str, float]] = {}
    for name, arms in splits.items():
        shares = {str(arm): float(share) for arm, share in arms.items()}
        if unknown := [arm for arm in shares if arm not in models]:
            raise ValueError(f"splits: {name} has the arm {unknown[0]!r}; the models are {', '.join(models)}")
        if not all(share >= 0 for share in shares.values()) or not isclose(sum(shares.values()), 1, abs_tol=1e-6):
            raise ValueError(f"splits: the shares of {name} are {shares}, which do not add up to 1")
        result[str(name)] = shares
    return result


def arm_of(name: str, shares: Mapping[str, float], key: bytes) -> str:
    """Return the arm (model) of a key by the hash of name and key, in proportion to the shares; the same key gets the same arm.

    The shares sum to 1: the last arm with a share gets what is left. A growing first arm keeps its keys. Arms of share 0 get
    none; "" if all are 0.
    """
    position = int.from_bytes(hashlib.sha256(name.encode() + b"\0" + key).digest()[:8], "big") / 2**64
    last = ""
    for arm, share in shares.items():
        if share > 0:
            last = arm
            if position < share:
                return arm
        position -= share
    return last
