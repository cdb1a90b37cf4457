"""Resolves the `edge=` argument (a path, a model or a callable) to an edge model."""

from __future__ import annotations

from os import PathLike
from typing import Any

from edgeroute.edge.callable import CallableModel
from edgeroute.edge.members import checked, is_model
from edgeroute.edge.runtimes import class_of, suffix_of, suffixes
from edgeroute.errors import EdgerouteError, PolicyError
from edgeroute.types import EdgeModel


def load(edge: Any, **options: Any) -> EdgeModel:
    """The model for a path (options are passed to its runtime's class), a callable, or an object that is already a model.

    Raises:
        PolicyError: no runtime for the suffix, a runtime that does not take the options, or an unsupported type.
        RuntimeMissing: the runtime's module cannot be imported.
    """
    if isinstance(edge, str | PathLike):
        suffix = suffix_of(edge)
        if suffix is None:
            raise PolicyError(
                f"no runtime for {str(edge)!r}: expected a file that ends in {', '.join(suffixes())}; another one is added by "
                'edgeroute.register(".suffix", "package.module:Class")'
            )
        made = class_of(suffix)
        try:
            model: EdgeModel = made(edge, **options)
        except EdgerouteError:
            raise
        except (TypeError, ValueError) as e:
            raise PolicyError(f"the runtime for {suffix}, {made.__name__}, does not take what it is given: {e}") from e
        checked(model)
        return model
    if isinstance(edge, type) and callable(vars(edge).get("run")):
        raise PolicyError(f"edge= takes a model, and {edge.__name__} is a class: pass {edge.__name__}(...)")
    if is_model(edge):
        checked(edge)
        return edge  # type: ignore[no-any-return]
    if callable(edge):
        return CallableModel(edge)
    raise PolicyError(f"edge= takes a path, a model or a callable, not {type(edge).__name__}")
