"""Puts a candidate in force, and takes it back: files that are replaced one by one, so that a kill leaves a valid policy."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgeroute import system
from edgeroute.cli.examples import plain
from edgeroute.cli.state_file import read
from edgeroute.confidence.certificate import Certificate
from edgeroute.errors import BadInput, PolicyError, StoreError
from edgeroute.settings.rewrite import switched
from edgeroute.system import replace_file

KEPT = ".before"
"""Suffix of the policy before the switch, beside it."""


class Memory:
    """What `recertify` remembers in the state folder: how often it looked at a candidate, and the last switch.

    Args:
        folder: the state folder.

    Attributes:
        looks: fingerprints and promise -> numbers of audits at which the candidate's certificate did not hold.
        switch: of the last switch: the certificate's checksum, hashes of the policy before and after it, the candidate's
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


def switch(policy: Path, threshold: str, certificate: Certificate, candidate: str, memory: Memory) -> bool:
    """Puts the candidate in force. Returns False if this format of policies is not rewritten: nothing was written then.

    The policy is replaced last: until then the old one is in force, whole, whatever was written before.

    Args:
        policy: path of the policy.
        threshold: path of the certificate, which is there, as in the policy.
        certificate: the candidate's.
        candidate: its fingerprints.
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
        "at": system.now(), "certificate": certificate.checksum, "candidate": candidate, "before": hash_of(kept(policy)),
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
    memory.switch["rolled_back"] = system.now()
    memory.save()
    write(policy, old.read_text(encoding="utf-8"))


def alarm(folder: Path, checksum: str) -> str:
    """The alarm of the audits under that certificate, in words; empty: there is none. One of the deferral rate is none."""
    try:
        stored = read(folder).get("audit:edge")
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
