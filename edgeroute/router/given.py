"""What is given to a router as its models and endpoints, in one form."""

from __future__ import annotations

from typing import Any

from edgeroute.cloud.backend import Function
from edgeroute.core.policy import Target
from edgeroute.edge.variants import Variants
from edgeroute.errors import PolicyError


def listed(given: Any) -> list[Any]:
    """None, one or several, as a list."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def members(edges: list[Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    """The edge models, the members of groups in place of these; and of each its group and name in it, empty without one."""
    models, groups = list[Any](), list[tuple[str, str]]()
    for i, given in enumerate(edges):
        if isinstance(given, Variants):
            group = "edge" if len(edges) == 1 else f"edge-{i + 1}"
            models += given.models.values()
            groups += [(group, name) for name in given.models]
        else:
            models.append(given)
            groups.append(("", ""))
    return models, groups


def named(side: str, own: str, i: int, of: int, taken: list[Target]) -> str:
    """The target's name: `edge` or `cloud` if it is the only one, else its own, made unique."""
    if of == 1:
        return side
    name = own if own and own != side else f"{side}-{i + 1}"
    return name if name not in {t.name for t in taken} else f"{name}-{i + 1}"


def endpoint_of(given: Any) -> Any:
    """The endpoint of what was given as a cloud.

    Raises:
        PolicyError: it is none.
    """
    if isinstance(given, str):
        from edgeroute.cloud.base import bare
        from edgeroute.cloud.openinference import OpenInference

        if "/v2/models/" not in given:
            raise PolicyError(f"what does {bare(given)} speak? Pass OpenInference(url, model=...) or PlainJson(url)")
        return OpenInference(given)
    if hasattr(given, "talk") or callable(given) or isinstance(given, Function):
        return given
    raise PolicyError(f"cloud= takes a URL, an endpoint or a callable, not {type(given).__name__}")
