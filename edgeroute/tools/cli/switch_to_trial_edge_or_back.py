"""Switch of a policy file to a hidden edge on trial, rollback, memory of the last switch (`Memory`), alarm that asks for it.

Files are replaced one by one, so a kill leaves a valid policy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgeroute.confidence.certificate import Certificate
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing, StoreError
from edgeroute.policy.file_and_environment import read_policy
from edgeroute.system import wall_clock
from edgeroute.system.files_and_lock_waits import file_sha256, replace_file
from edgeroute.system.untrusted_files import parse_json, read_json, read_text
from edgeroute.tools.cli.example_options_and_routers import plain_router
from edgeroute.tools.cli.status_and_trial_arms import read_state

# Rewriting a policy's text so that its hidden edge on trial becomes its edge model; comments of TOML stay.


def rewrite_policy(path: Path, threshold: str) -> str | None:
    """Return a policy's text with the hidden edge on trial as its edge, and this threshold; None unless it is TOML or JSON.

    Comments of TOML stay. Writes nothing.

    Args:
        path: path of a policy with one edge model and a hidden one on trial.
        threshold: path of the certificate, as in the policy.

    Raises:
        PolicyError: it cannot be rewritten; the message says what to write.
        RuntimeMissing: it is TOML, and tomlkit is not installed.
    """
    load: Callable[[str], Any] = parse_json
    dump: Callable[[Any], str] = partial(json.dumps, indent=2, ensure_ascii=False)
    if path.suffix.lower() == ".toml":
        try:
            from tomlkit import dumps as dump
            from tomlkit import parse as load  # comments stay
        except ImportError as e:
            need = "rewriting a policy in TOML needs tomlkit: pip install tomlkit"
            raise RuntimeMissing(f"{need}. Or by hand: {instruction(threshold)}") from e
    elif path.suffix.lower() != ".json":
        return None
    document = load(read_text(path))
    _apply_trial(document, threshold)
    text, wanted = dump(document).rstrip() + "\n", read_policy(path)
    _apply_trial(wanted, threshold)
    again = load(text)
    if (again.unwrap() if hasattr(again, "unwrap") else again) != wanted:
        raise PolicyError(f"{path} cannot be rewritten as it is written: {instruction(threshold)}")
    return text


def instruction(threshold: str) -> str:
    """Return an instruction for the user: what to edit in the policy."""
    return f"make the edge of trial that of [edge], remove trial, and set threshold to {json.dumps(threshold)}"


def _apply_trial(data: Any, threshold: str) -> None:
    """Make the hidden edge on trial the edge of a policy's data, with this threshold, and remove that trial; changes it in place.

    A hidden edge that is a path alone goes into the present [edge], whose hash and card are removed.
    """
    trials = data["trial"]
    trial_list = trials if isinstance(trials, list) else [trials]
    index = next(i for i, trial in enumerate(trial_list) if "edge" in trial and trial.get("shown") is False)
    edge = trial_list[index]["edge"]
    if len(trial_list) > 1:
        del trial_list[index]
    else:
        del data["trial"]
    if isinstance(edge, str):
        section = data["edge"][0] if isinstance(data["edge"], list) else data["edge"]
        section["path"] = edge
        for key in ("sha256", "card"):  # of the file before
            section.pop(key, None)
        edge = section
    data["edge"], data["threshold"] = edge, threshold


_LATEST = 2.5e11  # seconds since 1970 of the last time that a calendar has, about
BACKUP_SUFFIX = ".before"  # suffix of the file with the policy before the switch


class Memory:
    """File `recertify.json` in the state folder: the last switch.

    Args:
        folder: the state folder.

    Attributes:
        switch: data of the last switch: the certificate's checksum, hashes of the policy before and after it, the trial's
            fingerprints, and the time of a rollback. Empty: there was none.

    Raises:
        StoreError: the file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "recertify.json"
        self.switch: dict[str, Any] = {}
        try:
            if self._path.exists():
                self.switch = _checked(read_json(self._path)["switch"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            why = f"{type(e).__name__}: {e}" if isinstance(e, KeyError) else e
            raise StoreError(f"{self._path} is damaged, or cannot be read ({why}): remove it to forget the last switch") from e

    def save(self) -> None:
        """Replace the file by the present values."""
        replace_file(self._path, json.dumps({"switch": self.switch}, indent=2) + "\n")


def _checked(switch: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a switch as `Memory.switch` has them; raise an error, as KeyError or ValueError, for others."""
    if switch:
        times = switch["at"], switch.get("rolled_back", 0)
        texts = [switch[key] for key in ("certificate", "trial", "before", "after")]
        if not all(0 <= time < _LATEST for time in times) or not all(type(text) is str for text in texts):
            raise ValueError("a part is no time, or no text")
    return {**switch}


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it does not exist."""
    with suppress(FileNotFoundError):
        return file_sha256(path)
    return ""


def backup_path(policy: Path) -> Path:
    """Return the path of the policy before the switch."""
    return policy.with_name(policy.name + BACKUP_SUFFIX)


def switch(policy: Path, threshold: str, certificate: Certificate, trial: str, memory: Memory) -> bool:
    """Put the edge on trial in force. Return False, and write nothing, if this format of policies is not rewritten.

    The policy is replaced last: until then the old one is in force, complete, whatever was written before.

    The policy before is written to `POLICY.before`, and the switch into the memory's file.

    Args:
        policy: path of the policy.
        threshold: path of the certificate, which exists, as in the policy.
        certificate: certificate of the trial.
        trial: fingerprints of the trial.
        memory: memory of the state folder.

    Raises:
        PolicyError: the policy cannot be rewritten, would not be valid, or was changed meanwhile.
        StoreError: a file cannot be written.
    """
    before, old = hash_of(policy), read_text(policy)
    text = rewrite_policy(policy, threshold)
    if text is None:
        return False
    _try(policy, text)
    replace_file(backup_path(policy), old)
    memory.switch = {
        "at": wall_clock.now(), "certificate": certificate.checksum, "trial": trial, "before": hash_of(backup_path(policy)),
        "after": sha256(text.replace("\n", os.linesep).encode()).hexdigest(),
    }  # fmt: skip
    memory.save()
    if hash_of(policy) != before:
        raise PolicyError(f"{policy} was changed meanwhile: nothing was switched")
    replace_file(policy, text)
    return True


def roll_back(policy: Path, memory: Memory) -> None:
    """Put the policy before the switch, from `POLICY.before`, in force again, and record the time in the memory's file first.

    The file of before stays.

    Raises:
        PolicyError: its file is missing or was changed.
        StoreError: a file cannot be written.
    """
    old = backup_path(policy)
    if hash_of(old) != memory.switch["before"]:
        raise PolicyError(f"{old} is not the policy before the switch any more: put the model that you trust in {policy} by hand")
    memory.switch["rolled_back"] = wall_clock.now()
    memory.save()
    replace_file(policy, read_text(old))


def alarm(folder: Path, checksum: str) -> str:
    """Return the text of the alarm that audits raised under the certificate with this checksum, as stored in the state folder.

    Returns "" without a state or an alarm, or if only the deferral rate raised it.
    """
    try:
        stored = read_state(folder).get("audit:edge")
    except BadInput:
        return ""
    dumped = None if stored is None else stored.value
    if not isinstance(dumped, dict) or dumped.get("certificate") != checksum or not isinstance(dumped.get("alarm"), dict):
        return ""
    tests = [test for name, test in (dumped.get("drift") or {}).items() if name != "deferrals" and isinstance(test, dict)]
    by_audits = dumped.get("raised") is not None or any(test.get("alarmed") for test in tests)
    return str(dumped["alarm"].get("what")) if by_audits else ""


def _try(policy: Path, text: str) -> None:
    """Build a router from the text, to see that it is valid, and close it; nothing stays.

    The text is in a temporary file in the policy's folder meanwhile, since its paths are relative to that.

    Raises:
        PolicyError: it is invalid, or the certificate does not hold for its models.
    """
    trial = policy.with_name(f".{policy.stem}-trial{policy.suffix}")
    replace_file(trial, text)
    try:
        with plain_router(trial, state=None, uncalibrated="error"):
            pass
    finally:
        trial.unlink(missing_ok=True)
