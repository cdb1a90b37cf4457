"""Settings that a class declares in its signature and docstring, and the check of its arguments by their units."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from edgeroute.core.units import Unit
from edgeroute.errors import check_number


@lru_cache(maxsize=256)
def hints(of: Callable[..., Any]) -> dict[str, Any]:
    """Return parameter -> type of a function, or of a class by its constructor or fields. An unknown name in a type is `Any`."""
    init = of.__init__ if isinstance(of, type) and "__init__" in vars(of) else of  # type: ignore[misc]
    names = dict(vars(sys.modules[of.__module__])) if of.__module__ in sys.modules else {}
    while True:
        try:
            return get_type_hints(init, globalns=names, include_extras=True)
        except NameError as e:  # noqa: PERF203 - a name that is imported for type checkers alone; tried again without it
            names[str(e.name)] = Any
        except (AttributeError, TypeError):
            return {}


def unit_of(annotation: Any) -> tuple[Unit | None, bool]:
    """Return the unit of a number's type, and True if None is a value of that type."""
    parts = get_args(annotation)
    unit = next((part for part in parts if isinstance(part, Unit)), None)
    if unit is not None or type(None) not in parts:
        return unit, False
    return next((unit for part in parts if (unit := unit_of(part)[0]) is not None), None), True


def check_units(of: Callable[..., Any], given: Mapping[str, Any], prefix: str = "") -> None:
    """Raise unless each number that is given is in the range of its unit.

    Args:
        of: class or function that declares the arguments.
        given: argument -> value; others are ignored.
        prefix: words before an argument's name in the message.

    Raises:
        PolicyError: says the name of the argument and the range.
    """
    for name, annotation in hints(of).items():
        unit, optional = unit_of(annotation)
        if unit is not None and name in given and not (optional and given[name] is None):
            check_number(
                prefix + name, given[name],
                least=unit.least, most=unit.most, above=unit.above, whole=unit.whole, infinite=unit.infinite,
            )  # fmt: skip


_ARGUMENTS = re.compile(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)


def described(made: Any) -> dict[str, str]:
    """Return parameter -> its text under `Args:` in the docstring of a class, or of its constructor."""
    import inspect

    texts: dict[str, str] = {}
    for text in (inspect.getdoc(made), inspect.getdoc(getattr(made, "__init__", None))):
        for part in _ARGUMENTS.findall(text or ""):
            texts |= {name: " ".join(words.split()) for name, words in _ARGUMENT.findall(part)}
    return texts
