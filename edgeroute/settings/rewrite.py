"""Rewrites a policy's text so that its candidate becomes its edge model; comments stay, where the format has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.settings.sources import read


def switched(path: Path, threshold: str) -> str | None:
    """The policy's text with the candidate as its edge model, and this threshold; None: this format is not rewritten.

    Args:
        path: of the policy, which has one edge model and a candidate.
        threshold: path of the certificate, as in the policy.

    Raises:
        PolicyError: it cannot be rewritten; the message says what to write.
        RuntimeMissing: it is TOML, and tomlkit is not installed.
    """
    rewrite = _FORMATS.get(path.suffix.lower())
    if rewrite is None:
        return None
    text = path.read_text(encoding="utf-8-sig")
    made = rewrite(text, threshold)
    if _plain(path, made) != _wanted(read(path), threshold):
        raise PolicyError(f"{path} cannot be rewritten as it is written: {by_hand(threshold)}")
    return made


def by_hand(threshold: str) -> str:
    """What to write in place of `switched`."""
    return f"make the keys of candidate those of edge, remove candidate, and set threshold to {json.dumps(threshold)}"


def _wanted(data: dict[str, Any], threshold: str) -> dict[str, Any]:
    candidate = data.pop("candidate")
    return {**data, "edge": candidate, "threshold": threshold}


def _plain(path: Path, text: str) -> dict[str, Any]:
    """The text as it will be read."""
    if path.suffix.lower() == ".json":
        return dict(json.loads(text))
    import tomlkit

    return dict(tomlkit.parse(text).unwrap())


def _json(text: str, threshold: str) -> str:
    return json.dumps(_wanted(json.loads(text), threshold), indent=2, ensure_ascii=False) + "\n"


def _toml(text: str, threshold: str) -> str:
    try:
        import tomlkit
    except ImportError as e:
        raise RuntimeMissing(
            f"rewriting a policy in TOML needs tomlkit: pip install tomlkit. By hand: {by_hand(threshold)}"
        ) from e
    document = tomlkit.parse(text)
    document["edge"] = document.pop("candidate")
    document["threshold"] = threshold
    return tomlkit.dumps(document)


_FORMATS = {".toml": _toml, ".json": _json}
