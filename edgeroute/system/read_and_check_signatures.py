"""Settings that a class declares in its signature and docstring: their types, units and texts, and the check of its arguments."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from types import AsyncGeneratorType, CoroutineType
from typing import Any, TypeVar, get_args, get_type_hints

from edgeroute.core.error_codes_and_texts import class_name
from edgeroute.core.setting_unit_types import Unit
from edgeroute.errors import PolicyError, check_number


def is_async(function: Any) -> bool:
    """Return True if a call returns a coroutine or an asynchronous generator; looks through `partial` and at `__call__`."""
    return _is_any(function, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def runs_later(function: Any) -> bool:
    """Return True if a call runs nothing, but returns a coroutine or a generator; looks as `is_async` does."""
    return is_async(function) or _is_any(function, inspect.isgeneratorfunction)


def refuse_awaitable(
    result: Any, where: str, wrong: type[Exception], remedy: str = "make it an async def, and use AsyncRouter"
) -> None:
    """Raise an exception of the class `wrong` if a function's result is to be awaited; a coroutine is closed."""
    kind = type(result)
    if hasattr(kind, "__await__") or kind is AsyncGeneratorType:
        if kind is CoroutineType:
            result.close()  # or Python would warn that it was never awaited
        raise wrong(f"{where} is a def that returns a {kind.__name__}: {remedy}")


def check_has_run(result: object) -> None:
    """Raise PolicyError for what a callback has returned, if it is a coroutine or a generator, whose code nothing runs."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise PolicyError(f"the callback returned a {class_name(result)}, which nothing runs here")


def _is_any(function: Any, *kinds: Callable[[Any], bool]) -> bool:
    """Return True if a function, or the `__call__` of an object, is of one of the kinds; looks through `partial`."""
    while isinstance(function, partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004 - an object's method may be such a function
    return any(kind(f) for kind in kinds for f in (function, called))


@lru_cache(maxsize=256)
def argument_types(of: Callable[..., Any]) -> dict[str, Any]:
    """Return parameter -> type of a function, or of a class by its constructor or fields; `Any` for a type that cannot be had.

    {} for a function without annotations.
    """
    init = getattr(of, "__init__", None) if isinstance(of, type) else None
    source: Any = of if init in (None, object.__init__) else init
    names = dict(vars(sys.modules.get(source.__module__, sys)))
    return {name: _evaluate_type(text, names) for name, text in getattr(source, "__annotations__", {}).items()}


def _evaluate_type(text: Any, names: dict[str, Any]) -> Any:
    """Return a type that is written as text; unknown names count as `Any`, and are added to `names`; invalid types are `Any`."""

    def holder() -> None: ...

    holder.__annotations__ = {"type": text}
    try:
        return get_type_hints(holder, globalns=names, include_extras=True)["type"]
    except NameError as e:  # a name that is imported for type checkers alone
        names[str(e.name)] = Any
        return _evaluate_type(text, names)
    except (AttributeError, TypeError):
        return Any


def unit_of(annotation: Any) -> tuple[Unit | None, bool]:
    """Return the unit with which a number's type is annotated (None: none), and True if None is a value of that type."""
    parts = get_args(annotation)
    unit = next((part for part in parts if isinstance(part, Unit)), None)
    if unit is not None or type(None) not in parts:
        return unit, False
    return next((unit for part in parts if (unit := unit_of(part)[0]) is not None), None), True


def check_units(of: Callable[..., Any], arguments: Mapping[str, Any], prefix: str = "") -> None:
    """Raise PolicyError unless each number that is given is in the range of its unit. None passes where the type allows it.

    Args:
        of: class or function that declares the arguments.
        arguments: argument -> value; others are ignored.
        prefix: words before an argument's name in the message.

    Raises:
        PolicyError: says the name of the argument and the range.
    """
    for name, annotation in argument_types(of).items():
        unit, optional = unit_of(annotation)
        if unit is not None and name in arguments and not (optional and arguments[name] is None):
            check_number(
                prefix + name, arguments[name],
                least=unit.least, most=unit.most, above=unit.above, whole=unit.whole, infinite=unit.infinite,
            )  # fmt: skip


def data_classes(name: str, classes: Iterable[str]) -> frozenset[str]:
    """Return names of data classes, which are read once; raise PolicyError, with the argument's name, unless all are texts."""
    names = None if isinstance(classes, str) else list(classes)
    if names is None or not all(isinstance(c, str) and c for c in names):
        raise PolicyError(f"{name} is a list of data classes, as in ['medical'], not {names or classes!r}")
    return frozenset(names)


N = TypeVar("N")


def plain_number(value: N) -> N:
    """Return a number of numpy as one of Python's: a float32 is too coarse for instants, and has no JSON. Others unchanged."""
    is_numpy = type(value).__module__ == "numpy" and hasattr(value, "item")  # its functions are of types of numpy, too
    return value.item() if is_numpy else value  # type: ignore[attr-defined]


def plain_numbers(values: Any) -> Any:
    """Return a named tuple with its numbers as `plain_number` returns them. None stays None."""
    return values and values._make(map(plain_number, values))


_ARGUMENTS = re.compile(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)


def argument_texts(made: Any) -> dict[str, str]:
    """Return parameter -> its text under `Args:` in the docstrings of a class and its constructor, or of a function.

    Bases are read too; a class's own text goes before theirs.
    """
    import inspect

    texts: dict[str, str] = {}
    classes = [one for one in reversed(made.__mro__) if one is not object] if isinstance(made, type) else [made]
    for text in [inspect.getdoc(one) for of in classes for one in (of, getattr(of, "__init__", None))]:
        for part in _ARGUMENTS.findall(text or ""):
            texts |= {name: " ".join(words.split()) for name, words in _ARGUMENT.findall(part)}
    return texts
