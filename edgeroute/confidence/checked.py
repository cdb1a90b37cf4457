"""What `calibrate` is given, checked: the target, scores, how correct each side is, classes and groups."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeroute.confidence.certificate import Kind
from edgeroute.confidence.curve import grades
from edgeroute.confidence.exact import Floats, Ints
from edgeroute.core.texts import clean
from edgeroute.errors import PolicyError

LONGEST = 60
"""Most characters of a metric's name."""


def checked_target(
    max_loss: float | None, max_error: float | None, max_defer: float | None, sure: float | None
) -> tuple[Kind, float, float | None]:
    """The guarantee asked for: its kind, its limit, and the risk that it does not hold, None: it holds on average.

    Raises:
        PolicyError: there is none, there are several, or a number is no share.
    """
    targets: dict[Kind, float | None] = {"max_loss": max_loss, "max_error": max_error, "max_defer": max_defer}
    given = [(kind, value) for kind, value in targets.items() if value is not None]
    if len(given) != 1:
        raise PolicyError(f"exactly one of {', '.join(targets)} is to be given, and there are {len(given)}")
    ((kind, value),) = given
    if not _is_share(value):
        raise PolicyError(f"{kind} is a share between 0 and 1, not {value!r}")
    if sure is None:
        if kind != "max_defer":
            raise PolicyError(f"sure=None is for max_defer alone: {kind} is promised with a probability")
        return kind, float(value), None
    if not _is_share(sure) or not 0 < (risk := round(1 - float(sure), 12)) < 1:
        raise PolicyError(f"sure is a probability between 0 and 1, not {sure!r}")
    return kind, float(value), risk


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < 1


def checked_metric(metric: str) -> str:
    """The name of a grade, which sentences and terminals show.

    Raises:
        PolicyError: it is no short text on one line.
    """
    if not isinstance(metric, str) or not metric.isprintable() or metric != metric.strip() or len(metric) > LONGEST:
        said = repr(metric) if isinstance(metric, str) else type(metric).__name__
        raise PolicyError(f"metric is a name on one line, such as F1, of up to {LONGEST} characters, not {clean(said, LONGEST)}")
    return metric


def checked_scores(score: ArrayLike) -> Floats:
    """[n] finite numbers or NaN, of which two differ."""
    try:
        given = _filled(score)
        scores = given.astype(np.float64) if given.dtype.kind not in "cmM" else None
    except (OverflowError, TypeError, ValueError) as e:
        raise PolicyError(f"score is an array of numbers: {e}") from e
    if scores is None:
        raise PolicyError(f"score is an array of numbers, not of {given.dtype}")
    if scores.ndim != 1 or not scores.size:
        raise PolicyError(f"score has one number for each example, and this is of shape {scores.shape}")
    if np.isinf(scores).any():
        raise PolicyError(f"{np.isinf(scores).sum()} scores are infinite: no threshold could defer, or accept, such inputs")
    known = scores[~np.isnan(scores)]
    if not known.size or known.min() == known.max():
        raise PolicyError(f"the score is {known[0]:g} for every example" if known.size else "no example has a score")
    return scores


def correct(what: str, values: ArrayLike | None, n: int) -> Floats | None:
    """[n], how correct each answer is, 0..1; None: not given."""
    if values is None:
        return None
    array = _filled(values)
    if array.shape != (n,):
        raise PolicyError(f"{what} is of shape {array.shape}, and there are {n} scores")
    if array.dtype.kind not in "biuf":
        raise PolicyError(f"{what} says for each example how correct it is: bool, or numbers from 0 to 1")
    found = grades(array)
    if np.isnan(found).any():
        raise PolicyError(f"{what} is NaN for {np.isnan(found).sum()} examples: how correct each is has to be known, 0 to 1")
    if not ((found >= 0) & (found <= 1)).all():
        wrong = found[(found < 0) | (found > 1)][0]
        raise PolicyError(f"{what} says for each example how correct it is, from 0 to 1, and one is {wrong:g}: scale it")
    return found


def _filled(values: ArrayLike) -> NDArray[Any]:
    """As an array, in which what is masked, and so unknown, is NaN."""
    return np.ma.filled(values.astype(np.float64), np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def is_graded(*values: Floats | None) -> bool:
    """Whether one of these is more than right or wrong."""
    return any(x is not None and bool(((x > 0) & (x < 1)).any()) for x in values)


def classes(per_class: Sequence[object] | NDArray[Any] | None, kind: Kind, n: int) -> dict[str, Ints]:
    """Class -> indices of its examples."""
    if per_class is None:
        return {"": np.arange(n)}
    if kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes")
    if len(per_class) != n:
        raise PolicyError(f"per_class has {len(per_class)} classes, and there are {n} scores")
    labels = np.array([str(label) for label in per_class])
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def numbered(groups: Sequence[object] | NDArray[Any] | None, n: int) -> Ints | None:
    """[n], the number of each example's group, in order of their first examples; None: there are no groups."""
    if groups is None:
        return None
    if len(groups) != n:
        raise PolicyError(f"groups has {len(groups)} names, and there are {n} scores")
    names = list(groups.tolist() if isinstance(groups, np.ndarray) else groups)
    if any(name is None or name != name for name in names):  # noqa: PLR0124 - NaN
        raise PolicyError("groups has None or NaN in it: each example belongs to a group")
    known: dict[Any, int] = {}
    try:
        return np.array([known.setdefault(name, len(known)) for name in names], np.int64)
    except TypeError as e:
        raise PolicyError(f"groups has one name for each example, text or a number: {e}") from e
