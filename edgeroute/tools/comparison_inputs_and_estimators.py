"""Inputs with which a converted model is compared: a sample's, or drawn at random around values of the original's training.

The search for such values in fitted estimators, and their estimators and Boosters inside, are here too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.runtime_base import first_line
from edgeroute.errors import BadInput, EdgerouteError, ModelError
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.tools.cli.labelled_table_reader import GROUPS, LABELS

ROWS = 100  # most inputs of the comparison
WORDS = 8  # words of a text that is drawn for the comparison


@contextmanager
def as_errors(what: str, error: type[EdgerouteError] = ModelError) -> Iterator[None]:
    """Raise errors of the `with` block as `error`, except edgeroute's own; discard what it prints to stdout."""
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except EdgerouteError:
        raise
    except Exception as e:
        raise error(f"{what}: {clean(getattr(e, 'strerror', None) or first_line(e), 300)}") from e


def read_sample(path: Path) -> Any:
    """Read the inputs in a file: a table, as pandas has it, of a .csv or .parquet file; of others a list of inputs.

    Raises:
        BadInput: it cannot be read.
        RuntimeMissing: pandas is not installed.
    """
    from edgeroute.tools.cli.inputs_labels_and_outputs import read_inputs

    if path.suffix.lower() not in {".csv", ".parquet"}:
        return [item.x for item in read_inputs(path)]
    pandas = import_needed("pandas", "a table is read by pandas: pip install pandas")
    try:
        return pandas.read_csv(path) if path.suffix.lower() == ".csv" else pandas.read_parquet(path)
    except (OSError, ValueError, ImportError) as e:
        raise BadInput(f"{path} cannot be read: {first_line(e)}") from e


def rows_of_numbers(size: int, sample: Any, names: Sequence[str] | None, fitted: list[list[float]]) -> tuple[list[Any], bool]:
    """Return up to 100 rows of numbers: those given, or drawn at random; and True unless they were drawn from N(0, 1).

    They are float64, as callers have them: rounding to the float32 of the new file is part of the comparison. Draws are the same
    at each call.

    Args:
        size: numbers of a row.
        sample: a table, an array [n, size], a list of rows or of mappings; None: rows are drawn.
        names: columns of a table to take, in order; None: all, without those of labels if there are more than `size`.
        fitted: values around which each number of a row is drawn.

    Raises:
        BadInput: a column is missing, or is no number.
    """
    if sample is None:
        told = [column if (column and np.isfinite(column).all()) else [-1.0, 1.0] for column in fitted]
        mean, spread = [float(np.mean(c)) for c in told], [float(np.std(c) or abs(c[0]) / 10 or 1) for c in told]
        return [*np.random.default_rng(0).normal(mean, spread, (ROWS, size))], told == fitted
    if hasattr(sample, "columns"):
        sample = _without_labels(sample, size)
        sample = (sample if names is None else columns_of(sample, names)).to_dict("records")
    elif len(sample) == 1 and getattr(sample[0], "ndim", 0) == 2:  # noqa: PLR2004 - a table
        sample = sample[0]
    rows = list[Any]()
    for number, row in enumerate(sample[:ROWS], 1):
        cells = row
        if isinstance(row, dict):
            if missing := [name for name in names or () if name not in row]:
                raise BadInput(f"row {number} of the sample has no {missing[0]!r}")
            cells = [row[name] for name in names or row]
        with as_errors(f"row {number} of the sample is no row of numbers, which this model takes", BadInput):
            rows.append(np.asarray(cells, np.float64))
    return rows, True


def _without_labels(table: Any, size: int) -> Any:
    """Return a table with more than `size` columns without those of labels and groups."""
    more = table.shape[1] > size
    return table[[name for name in table if not more or str(name).lower() not in (*LABELS, *GROUPS)]]


def columns_of(table: Any, names: Sequence[str]) -> Any:
    """Return these columns of a table (a data frame), in this order. Raises BadInput if one is missing."""
    if missing := [name for name in names if name not in table]:
        raise BadInput(f"the sample has no column {missing[0]!r}")
    return table[[*names]]


def rows_of_texts(sample: Any, words: list[str]) -> list[str]:
    """Return up to 100 texts: those given, also as a table or mappings with one column of them, or known words drawn at random.

    Raises BadInput for a row without exactly one text.
    """
    if sample is None:
        rng = np.random.default_rng(0)
        return [" ".join(rng.choice(words, WORDS)) for _ in range(ROWS)]
    if hasattr(sample, "columns"):
        sample = _without_labels(sample, 1).to_dict("records")
    texts = [[v for v in x.values() if isinstance(v, str)] if isinstance(x, dict) else [x] for x in sample[:ROWS]]
    for number, row in enumerate(texts, 1):
        if len(row) != 1 or not isinstance(row[0], str):
            raise BadInput(f"row {number} of the sample has {len(row)} texts, and this model takes one")
    return [row[0] for row in texts]


def values_of_training(part: Any, size: int) -> list[list[float]]:
    """Return values of each number of a row that an estimator has from its training, by its parts.

    Of a pipeline those of its steps, up to the first that changes numbers. Else looked for in this order: in the parts of a
    column transformer, in statistics and rows that it has, in thresholds of trees, in estimators within. Empty lists where
    nothing tells, or if it takes another number of features; -1 and 1 for a feature that none of its trees reads.
    """
    values: list[list[float]] = [[] for _ in range(size)]
    if getattr(part, "n_features_in_", size) != size:
        return values
    if hasattr(part, "steps"):
        for _, step in part.steps:
            if any(told := values_of_training(step, size)):
                values = told
            if step != "passthrough" and "Imputer" not in type(step).__name__:
                break
        return values
    for _, inner, columns in getattr(part, "transformers_", ()):
        if (places := np.atleast_1d(columns)).dtype.kind == "i" and not isinstance(inner, str):
            for place, known in zip(places, values_of_training(inner, len(places)), strict=True):
                values[place] += known
    if any(values):
        return values
    if (tables := _fitted_tables(part, size)) is not None:
        return [[float(value) for value in column] for column in tables.T]
    for feature, threshold in _thresholds(part):
        values[feature].append(threshold)
    if any(values):
        return [column or [-1.0, 1.0] for column in values]  # no tree reads the others
    for inner in estimators_within(part):
        if not isinstance(inner, str | type):
            values = [[*a, *b] for a, b in zip(values, values_of_training(inner, size), strict=True)]
    return values


def _fitted_tables(part: Any, size: int) -> Any:
    """Return values [n, size] that an estimator has from its training: means less and plus spreads, extremes, or rows.

    None: none.
    """
    for centre, spread in (("mean_", "scale_"), ("center_", "scale_"), ("theta_", "var_")):
        middle, wide = getattr(part, centre, None), getattr(part, spread, None)
        if middle is not None and wide is not None and np.shape(middle)[-1:] == np.shape(wide)[-1:] == (size,):
            wide = np.sqrt(wide) if spread == "var_" else wide
            return np.vstack([middle - wide, middle + wide]).reshape(-1, size)
    if hasattr(part, "data_min_"):
        return np.vstack([part.data_min_, part.data_max_])
    for name in ("support_vectors_", "_fit_X", "X_train_", "means_", "quantiles_", "statistics_"):
        table = getattr(part, name, None)
        if isinstance(table, np.ndarray) and table.dtype.kind == "f" and table.shape[-1] == size and table.size:
            return np.atleast_2d(table)
    return None


def _thresholds(part: Any) -> Iterator[tuple[int, float]]:
    """Yield the feature and a threshold, for each split of a scikit-learn tree or an XGBoost model.

    Of LightGBM the ends of each feature's range, of CatBoost and scikit-learn's histograms the borders of its bins. Nothing for
    other models.
    """
    if (tree := getattr(part, "tree_", None)) is not None and hasattr(tree, "threshold"):
        yield from ((int(f), float(t)) for f, t in zip(tree.feature, tree.threshold, strict=True) if f >= 0)
    elif hasattr(booster := part if hasattr(part, "model_to_string") else booster_of(part), "get_dump"):
        for tree in booster.get_dump():
            yield from ((int(f), float(t)) for f, t in re.findall(r"\[f(\d+)<([^\]]+)\]", tree))
    elif booster is not None:
        for feature, ends in enumerate(lightgbm_ranges(booster)):
            if ends.startswith("["):
                yield from ((feature, float(end)) for end in ends[1:-1].split(":"))
    elif hasattr(part, "get_borders"):
        yield from ((int(f), float(t)) for f, borders in part.get_borders().items() for t in borders)
    elif (bins := getattr(part, "_bin_mapper", None)) is not None:
        yield from ((f, float(t)) for f, edges in enumerate(bins.bin_thresholds_) for t in edges)


def lightgbm_ranges(booster: Any) -> list[str]:
    """Return the range of each feature as LightGBM writes it: [low:high], or numbers of categories with colons, or none."""
    line = next((x for x in booster.model_to_string().splitlines() if x.startswith("feature_infos=")), "=")
    return line.partition("=")[2].split()


def estimators_within(part: Any) -> list[Any]:
    """Return the fitted estimators directly within an ensemble, a search, a column transformer, a calibrated or a frozen one.

    Of a column transformer 'drop' and 'passthrough' may be among them. An empty list for others, such as a pipeline, whose steps
    are its parameters.
    """
    inside = [inner for _, inner, _ in getattr(part, "transformers_", ())]
    inside += [getattr(part, name) for name in ("best_estimator_", "estimator_") if hasattr(part, name)]
    for name in ("calibrated_classifiers_", "estimators_"):
        inner = getattr(part, name, ())
        inside += [*inner.ravel()] if isinstance(inner, np.ndarray) else [*inner]
    return inside + ([part.estimator] if type(part).__name__ in {"_CalibratedClassifier", "FrozenEstimator"} else [])


def booster_of(part: Any) -> Any:
    """Return the Booster of a fitted estimator of XGBoost or LightGBM; None of others."""
    try:
        return part.get_booster() if hasattr(part, "get_booster") else getattr(part, "booster_", None)
    except AttributeError:  # it is not fitted
        return None
