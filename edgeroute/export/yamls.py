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
    text: str = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)
    return head + text
