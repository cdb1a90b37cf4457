"""X and y as they are given in Python: inputs, and what is right for each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from edgeroute.core.policy import INF
from edgeroute.core.texts import typed
from edgeroute.errors import BadInput, check_number
from edgeroute.router.calls import Block, Steps
from edgeroute.router.request import once, refused

WANTED = "X holds one input after the other: an array [n, ...], a list, or a mapping from name to rows"


def rows(
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    every: int,
    groups: Any = None,
) -> Steps[tuple[list[Any], list[Any] | None, list[Any] | None]]:
    """The inputs as a list, their labels and their groups; None: there are none.

    Args:
        X: an array [n, ...] of any library, a sequence of inputs, or a mapping from name to the rows of one of several inputs.
        y: a label for each, or None.
        every: take each `every`-th only.
        groups: the scene, user or session of each, or None.

    Raises:
        BadInput: they are something else, or not as many.
        PolicyError: `every` is no number of 1 or more.
    """
    check_number("every", every, least=1, whole=True)
    count = _length(X)
    labels = None if y is None else _labels(y)
    together = None if groups is None else _labels(groups, "groups", "a name")
    if not count:
        raise BadInput("there are no inputs")
    if labels is not None and len(labels) != count:
        raise BadInput(f"there are {count} inputs in X and {len(labels)} labels in y")
    if together is not None and len(together) != count:
        raise BadInput(f"there are {count} inputs in X and {len(together)} names in groups")
    taken = range(0, count, every)
    inputs = yield Block(partial(_taken, X, taken), INF)  # reading a row of a data set may take its time
    labels, together = (None if column is None else column[::every] for column in (labels, together))
    return inputs, labels, together


def _length(X: Any) -> int:  # noqa: N803
    if once(X):
        raise BadInput(f"{WANTED}; not an iterator ({typed(X)}), which can be read only once: give list(X)")
    if isinstance(X, Mapping):
        lengths = {name: _length_of(column, f"X[{name!r}]") for name, column in X.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"the rows of X differ in number: {', '.join(f'{name!r} has {n}' for name, n in lengths.items())}")
        return next(iter(lengths.values()), 0)
    return _length_of(X, "X")


def _length_of(column: Any, name: str) -> int:
    if hasattr(column, "iloc"):
        raise BadInput(f"{name} is a {typed(column)}: give its values, as {name}.to_numpy()")
    plain = isinstance(column, str | bytes | bytearray | os.PathLike | AbstractSet | Mapping)
    if plain or not hasattr(type(column), "__len__") or not hasattr(type(column), "__getitem__"):
        raise BadInput(f"{WANTED}; {name} is a {typed(column)}")
    if getattr(column, "ndim", 1) == 0:
        raise BadInput(f"{WANTED}; {name} is an array without an axis")
    return len(column)


def _taken(X: Any, numbers: range) -> list[Any]:  # noqa: N803
    if isinstance(X, Mapping):
        found: list[Any] = [{name: column[i] for name, column in X.items()} for i in numbers]
    else:
        found = [X[i] for i in numbers]
    for x in found:
        if once(x):
            raise refused(x)
    return found


def _labels(y: Any, name: str = "y", one: str = "a label") -> list[Any]:
    """The labels as a list; a column [n, 1] is one, too."""
    if once(y):
        raise BadInput(f"{name} is an iterator ({typed(y)}), which can be read only once: give list({name})")
    if hasattr(y, "iloc"):  # a series, or a table of one column
        y = y.to_numpy()
    if isinstance(y, str | bytes | Mapping) or not hasattr(type(y), "__len__"):
        raise BadInput(f"{name} holds {one} for each input, not a {typed(y)}")
    shape = getattr(y, "shape", None)
    if shape is not None and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:  # noqa: PLR2004 - a table
            hint = ": give the class, as with y.argmax(1)" if name == "y" else ""
            raise BadInput(f"{name} has {one} for each input, [n], and is {list(shape)}{hint}")
        y = y.reshape(-1)
    return list(y.tolist()) if hasattr(y, "tolist") else list(y)
