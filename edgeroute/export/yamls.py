"""YAML of what servers read."""

from __future__ import annotations

from typing import Any

from edgeroute.errors import RuntimeMissing
from edgeroute.imports import imported


def yaml_of(*documents: Any, head: str = "") -> str:
    """Documents as YAML, in the order of their keys; `head`: lines of comment.

    Raises:
        RuntimeMissing: PyYAML is not installed.
    """
    try:
        yaml = imported("yaml")
    except ImportError as e:
        raise RuntimeMissing("PyYAML is not installed: pip install 'edgeroute[yaml]'") from e
    # what stands twice is written twice: anchors are hard to read
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump_all(documents, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    return head + text
