"""Puts a hidden edge on trial in force, and takes it back. Files are replaced one by one: a kill leaves a valid policy."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgeroute.confidence.certificate import Certificate
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing, StoreError
from edgeroute.policy.sources import read_policy
from edgeroute.system import process
from edgeroute.system.process import replace_file
from edgeroute.tools.cli.examples import plain
from edgeroute.tools.cli.status import read_state

# Rewrites a policy's text so that its hidden edge on trial becomes its edge model; comments stay, where the format has them.


def switched(path: Path, threshold: str) -> str | None:
    """Return the policy's text with the hidden edge on trial as its edge, and this threshold; None: this format is not rewritten.

    Args:
        path: of the policy, which has one edge model and a hidden one on trial.
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
    if _plain(path, made) != _wanted(read_policy(path), threshold):
        raise PolicyError(f"{path} cannot be rewritten as it is written: {by_hand(threshold)}")
    return made


def by_hand(threshold: str) -> str:
    """What to write in place of `switched`."""
    return f"make the edge of trial that of [edge], remove trial, and set threshold to {json.dumps(threshold)}"


def _wanted(data: dict[str, Any], threshold: str) -> dict[str, Any]:
    edge = _without_trial(data)
    return {**data, "edge": edge, "threshold": threshold}


def _without_trial(data: Any) -> Any:
    """Remove the hidden edge from the trials, and return it as the section `[edge]`."""
    trials = data["trial"]
    several = trials if isinstance(trials, list) else [trials]
    at = next(i for i, one in enumerate(several) if "edge" in one and one.get("shown") is False)
    edge = several[at]["edge"]
    if len(several) > 1:
        del several[at]
    else:
        del data["trial"]
    if not isinstance(edge, str):
        return edge
    own = data["edge"][0] if isinstance(data["edge"], list) else data["edge"]
    own["path"] = edge
    for key in ("sha256", "card"):  # of the file before
        own.pop(key, None)
    return own


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
    document["edge"] = _without_trial(document)
    document["threshold"] = threshold
    return tomlkit.dumps(document)


_FORMATS = {".toml": _toml, ".json": _json}


KEPT = ".before"
"""Suffix of the policy before the switch, beside it."""


class Memory:
    """What `recertify` remembers in the state folder: how often it looked at a trial, and the last switch.

    Args:
        folder: the state folder.

    Attributes:
        looks: fingerprints and promise -> numbers of audits at which the trial's certificate did not hold.
        switch: of the last switch: the certificate's checksum, hashes of the policy before and after it, the trial's
            fingerprints, and when it was rolled back, if it was. Empty: there was none.

    Raises:
        StoreError: the file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "recertify.json"
        self.looks: dict[str, list[int]] = {}
        self.switch: dict[str, Any] = {}
        try:
            if self._path.exists():
                data = json.loads(self._path.read_text(encoding="utf-8"))
                self.looks, self.switch = data["looks"], data["switch"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{self._path} cannot be read ({e}): remove it to forget the last switch") from e

    def save(self) -> None:
        """Writes it."""
        write(self._path, json.dumps({"looks": self.looks, "switch": self.switch}, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Replaces a file.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        replace_file(path, text)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e


def hash_of(path: Path) -> str:
    """SHA-256 of a file; empty: there is none."""
    with suppress(FileNotFoundError):
        return sha256(path.read_bytes()).hexdigest()
    return ""


def kept(policy: Path) -> Path:
    """Where the policy before the switch is."""
    return policy.with_name(policy.name + KEPT)


def switch(policy: Path, threshold: str, certificate: Certificate, trial: str, memory: Memory) -> bool:
    """Put the edge on trial in force. Return False if this format of policies is not rewritten: nothing was written then.

    The policy is replaced last: until then the old one is in force, whole, whatever was written before.

    Args:
        policy: path of the policy.
        threshold: path of the certificate, which is there, as in the policy.
        certificate: the trial's.
        trial: its fingerprints.
        memory: of the state folder.

    Raises:
        PolicyError: it cannot be rewritten, or would not be valid.
        StoreError: a file cannot be written.
    """
    before, old = hash_of(policy), policy.read_text(encoding="utf-8")
    text = switched(policy, threshold)
    if text is None:
        return False
    _try(policy, text)
    write(kept(policy), old)
    memory.switch = {
        "at": process.now(), "certificate": certificate.checksum, "trial": trial, "before": hash_of(kept(policy)),
        "after": sha256(text.replace("\n", os.linesep).encode()).hexdigest(),
    }  # fmt: skip
    memory.save()
    if hash_of(policy) != before:
        raise PolicyError(f"{policy} was changed meanwhile: nothing was switched")
    write(policy, text)
    return True


def roll_back(policy: Path, memory: Memory) -> None:
    """Puts the policy before the switch in force again.

    Raises:
        PolicyError: it is not there any more.
        StoreError: a file cannot be written.
    """
    old = kept(policy)
    if hash_of(old) != memory.switch["before"]:
        raise PolicyError(f"{old} is not the policy before the switch any more: put the model that you trust in {policy} by hand")
    memory.switch["rolled_back"] = process.now()
    memory.save()
    write(policy, old.read_text(encoding="utf-8"))


def alarm(folder: Path, checksum: str) -> str:
    """The alarm of the audits under that certificate, in words; empty: there is none. One of the deferral rate is none."""
    try:
        stored = read_state(folder).get("audit:edge")
    except BadInput:
        return ""
    dumped = None if stored is None else stored.value
    if not isinstance(dumped, dict) or dumped.get("certificate") != checksum or not isinstance(dumped.get("alarm"), dict):
        return ""
    differs = (dumped.get("drift") or {}).get("disagreement") or {}
    return str(dumped["alarm"].get("what")) if dumped.get("raised") is not None or differs.get("alarmed") else ""


def _try(policy: Path, text: str) -> None:
    """Makes a router of the text, in the folder of the policy, as its paths start there.

    Raises:
        PolicyError: it is not valid, or the certificate does not hold for its models.
    """
    trial = policy.with_name(f".{policy.stem}-trial{policy.suffix}")
    write(trial, text)
    try:
        with plain(trial, state=None, uncalibrated="error"):
            pass
    finally:
        trial.unlink(missing_ok=True)
