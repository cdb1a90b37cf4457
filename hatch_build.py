"""Build hook: excludes files that git does not track from the wheel and the source distribution."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TrackedFilesAlone(BuildHookInterface[Any]):
    """Hook that adds each untracked file of a clone to the target's `exclude`.

    hatchling itself excludes files that .gitignore names. Notes, keys or a device's state may lie beside them, and are no part of
    a release. An unpacked source distribution has no git; there, .gitignore alone decides.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the interface of hatchling
        """Add the untracked files to the target's `exclude`; raises RuntimeError if git cannot list the files of a clone."""
        if version != "editable" and (Path(self.root) / ".git").exists():
            exclude = self.build_config.target_config.setdefault("exclude", [])
            exclude += [f"/{_escape(name)}" for name in _untracked_names(self.root)]


def _untracked_names(root: str) -> list[str]:
    """Return the paths of untracked files, ignored or not; of a folder without a tracked file, its own path."""
    command = ["git", "-C", root, "ls-files", "--others", "--directory", "--no-empty-directory", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - no argument comes from outside
    except (OSError, subprocess.CalledProcessError) as why:
        reason = getattr(why, "stderr", None) or why
        advice = "install git, or build from an unpacked source distribution"
        raise RuntimeError(f"git cannot list the untracked files of {root}; {advice}: {reason}") from why
    return done.stdout.split("\0")[:-1]


def _escape(name: str) -> str:
    """Return the pattern of .gitignore that matches this path alone."""
    return re.sub(r"([\\*?\[\] ])", r"\\\1", name)
