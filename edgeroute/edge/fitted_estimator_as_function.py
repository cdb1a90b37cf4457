"""Estimator of scikit-learn's kind as a function of one row to class probabilities; a row that does not fit raises BadInput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import ByClass
from edgeroute.core.error_codes_and_texts import class_name
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing, Unfit, nearest
from edgeroute.system.late_imports_and_plugins import attribute, import_needed

# Packages whose classifiers predict the most likely class, but for those with a threshold, and SVC.
ARGMAX = {"sklearn", "xgboost", "lightgbm", "imblearn", "tabpfn", "edgeroute"}
ASKING = {"FrozenEstimator", "OneVsRestClassifier", "RFE", "RFECV"}  # whose predict asks that of their `estimator`


def as_estimator(function: Any) -> Estimator | None:
    """Return a function for a fitted classifier, or for its method `predict` or `predict_proba`; None for other callables."""
    owner = getattr(function, "__self__", function)
    by_class = callable(getattr(owner, "predict_proba", None))
    return Estimator(owner) if by_class and (owner is function or function.__name__.startswith("predict")) else None


class Estimator:
    """Function of one row that returns class -> probability by `predict_proba`, or (class, probability) of a single class.

    A `Prediction` with both where its `predict` chooses another class, as that of `FixedThresholdClassifier` or one's own.
    Raises PolicyError for an estimator that is not fitted, RuntimeMissing without pyarrow, if XGBoost has categories.
    """

    def __init__(self, estimator: Any) -> None:
        if not _is_fitted(estimator):
            raise PolicyError(f"{class_name(estimator)} is not fitted: call its fit(X, y) first")
        self.estimator, self.__name__ = estimator, type(estimator).__name__
        self._decides = callable(getattr(estimator, "predict", None)) and _decides(estimator)
        names, others = (getattr(estimator, name, None) for name in ("feature_names_in_", "feature_names_"))
        if names is None and isinstance(others, list) and others[:1] not in ([], ["0"]):  # CatBoost's; of an array numbers
            names = others
        # Names of the columns of the fit; None: it was fitted on rows without names.
        self.columns = None if names is None or names[0] == "Column_0" else [*map(str, names)]  # LightGBM's, of an array
        self._categories = [] if self.columns is None else _categories(estimator, self.columns)

    def __call__(self, x: Any) -> Any:
        """Return the probabilities for one row; raise as `many`."""
        return self.many([x])[0]

    def many(self, rows: Sequence[Any], start: int | None = None) -> list[Any]:
        """Return the probabilities for each row, by one call; after an error by halves, to name the row at fault.

        start: number of the first row in its batch, for the error; None: the rows are no part of one.

        Raises:
            BadInput: a row does not fit; the message names columns, and no values.
            Unfit: a row has a category that was not fitted.
        """
        columns, size = self.columns, getattr(self.estimator, "n_features_in_", None)
        try:
            if columns is None and size is None:  # texts or mappings, as a pipeline with a vectorizer takes them
                return [self._read(np.asarray([x]))[0] for x in rows]
            return self._read(np.asarray(rows) if columns is None else self._with_categories(_table(rows, columns)))
        except Exception as e:
            if len(rows) == 1:
                name = f"{'' if start is None else f'input {start} of the batch: '}{class_name(self.estimator)}"
                why = str(e) if isinstance(e, BadInput) else self._misfit(rows[0], columns, size, str(e))
                if "unknown categor" in str(e):
                    raise Unfit(f"{name}: a value of the input was not fitted") from None
                if why and (columns is None or not isinstance(e, AttributeError)):  # which an unfitted estimator raises, too
                    raise BadInput(f"{name}: {why}") from None
                raise
        half, start = len(rows) // 2, start or 0  # finds the row, or reads rows that differ in their columns
        return self.many(rows[:half], start) + self.many(rows[half:], start + half)

    def _read(self, given: Any) -> list[Any]:
        """Return the probabilities for each row of a table."""
        table = np.asarray(self.estimator.predict_proba(given))
        classes = np.asarray(getattr(self.estimator, "classes_", range(table.shape[1]))).tolist()
        if len(classes) == 1 and hasattr(self.estimator, "classes_"):  # LightGBM and XGBoost have two columns for it
            return [(classes[0], float(row[0])) for row in table]
        rows: list[Any] = [ByClass(zip(classes, map(float, row), strict=True)) for row in table]
        if self._decides:
            with suppress(NotImplementedError):  # of a class of one's own that has probabilities alone
                if (chosen := np.asarray(self.estimator.predict(given))).shape == (len(rows),):
                    return [_chosen(x, row) for x, row in zip(chosen.tolist(), rows, strict=True)]
        return rows

    def _with_categories(self, table: Any) -> Any:
        """Return a DataFrame whose values are categories where LightGBM or XGBoost was fitted on those of pandas.

        Raises ValueError for an unknown category, which LightGBM would read as a missing value, and if nothing tells which
        columns have categories.
        """
        present, names = getattr(table, "columns", ()), [name for name, _ in self._categories]
        if "" in names and len(present):
            names = [name for name in present if table[name].dtype.kind not in "biuf"]
            if len(names) != len(self._categories):
                raise ValueError("text where numbers were fitted")
        for name, (_, known) in zip(names, self._categories, strict=True):
            if name in present:
                places = {value: place for place, value in enumerate(known)}
                codes = np.array([places.get(value, -1) for value in table[name].tolist()])
                if (table[name].notna() & (codes < 0)).any():
                    raise ValueError("unknown category")
                table[name] = attribute("pandas:Categorical", "categories").from_codes(codes, categories=known)
        return table

    def _misfit(self, x: Any, columns: list[str] | None, size: int | None, error: str) -> str:
        """Return why a row that the estimator refused with this error does not fit; empty if the row looks right."""
        if columns is not None:
            row = _by_name(x, columns)
            missing = [name for name in columns if name not in row]
            if missing and "could not convert" not in error:  # else it uses none of them
                missing = [name for name in missing if repr(name) in error] or missing  # a ColumnTransformer names those it uses
                near = [(key, nearest(key, missing)) for key in row if key not in columns]
                hints = [f"; {key!r}: {hint}" for key, hint in near if hint.startswith("did")]
                return f"the input lacks {', '.join(map(repr, missing))}, of the columns that were fitted{''.join(hints)}"
            numbers = [name for name in columns if name in row and name not in dict(self._categories)]
            texts = [repr(name) for name in numbers if not _is_finite(row[name])]
            return f"cannot read {', '.join(texts)}: text or NaN where numbers were fitted, or another text" if texts else ""
        if size is not None:
            fits = _shape(x) == (size,)
            right = fits and all(map(_is_finite, np.asarray(x).tolist()))
            return "" if right else f"expected {size} numbers, got {'text, NaN or infinity' if fits else _form(x)}"
        step = getattr(getattr(self.estimator, "best_estimator_", self.estimator), "steps", [(0, self.estimator)])[0][1]
        wanted: Any = str | bytes if hasattr(step, "build_analyzer") else Mapping if hasattr(step, "vocabulary_") else object
        return "" if isinstance(x, wanted) else f"expected a {'mapping' if wanted is Mapping else 'text'}, got {_form(x)}"


def _table(rows: Sequence[Any], columns: list[str]) -> Any:
    """Return a DataFrame of the rows, with those columns that they have, in the order of the fit; without pandas an array.

    A missing column is for the estimator to refuse, which may not use all.

    Raises:
        BadInput: a row is of another form.
        ValueError: the rows have no column of the fit, or differ in their columns.
    """
    named = [_by_name(x, columns) for x in rows]
    first = named[0].keys()
    present = [name for name in columns if name in first]
    if not present or any((name in x) != (name in first) for x in named if x.keys() != first for name in columns):
        raise ValueError("no columns, or rows that differ in them")
    cells: Any = [[x[name] for name in present] for x in named]
    if all(type(x) is np.ndarray for x in rows):
        cells = np.asarray(rows)  # with its dtype
    with suppress(RuntimeMissing):
        return attribute("pandas:DataFrame", "a row by its columns")(cells, columns=present).infer_objects()
    return np.asarray(cells)


def _by_name(x: Any, columns: list[str]) -> Mapping[str, Any]:
    """Return a row as a mapping: a mapping, a table's row, a named tuple, or values in the order of the fit.

    Raises:
        BadInput: it is none of these, or has another number of values.
    """
    x = row_by_name(x)
    if isinstance(x, Mapping) or (isinstance(x, list | tuple | np.ndarray) and _shape(x) == (len(columns),)):
        return x if isinstance(x, Mapping) else dict(zip(columns, x, strict=True))
    raise BadInput(f"expected {len(columns)} values, {', '.join(columns)}, by name or in this order; got {_form(x)}")


def _categories(estimator: Any, columns: list[str]) -> list[tuple[str, list[Any]]]:
    """Return columns and their categories, of LightGBM or XGBoost fitted on those of pandas; an empty name: the next text.

    Raises RuntimeMissing without pyarrow, by which XGBoost gives them.
    """
    booster: Any = getattr(estimator, "get_booster", lambda: getattr(estimator, "booster_", None))()
    if "c" in (getattr(booster, "feature_types", None) or ()) and hasattr(booster, "get_categories"):
        if booster.get_categories().empty():  # fitted on codes
            return []
        import_needed("pyarrow", "XGBoost gives its categories by pyarrow: pip install pyarrow")
        found = booster.get_categories(export_to_arrow=True).to_arrow()
        return [(name, values.to_pylist()) for name, values in found if values is not None]
    if not (known := getattr(booster, "pandas_categorical", None)):
        return []
    places = booster.params.get("categorical_column", booster.params.get("categorical_feature", ()))
    named = [columns[place] for place in places] if len(places) == len(known) else [""] * len(known)  # of some it has no place
    return [*zip(named, known, strict=True)]


def row_by_name(x: Any) -> Any:
    """Return a row of pandas, or a named tuple as its `itertuples` gives, as a mapping; any other input unchanged."""
    if hasattr(type(x), "iloc") and x.ndim == 1:  # its to_dict, and missing attributes, are slow
        return dict(zip(x.index.tolist(), x.tolist(), strict=True))
    return dict(x._asdict()) if hasattr(x, "_asdict") else x


def _chosen(x: Any, row: ByClass) -> Any:
    """Return the class of `predict` with its probability if another class is likelier, else the row of probabilities."""
    is_other = isinstance(x, str | int | float) and x in row and row[x] < max(row.values())
    return Prediction(x, row[x], row) if is_other else row


def _decides(estimator: Any) -> bool:
    """Return True if `predict` may choose another class than the most likely one: of the estimator, or of one inside it."""
    for _ in range(8):  # which are nested
        kinds = {kind.__name__ for kind in type(estimator).__mro__}
        own = "ClassifierMixin" in kinds and type(estimator).__module__.partition(".")[0] not in ARGMAX
        if own or not kinds.isdisjoint({"BaseThresholdClassifier", "BaseSVC", "CatBoostClassifier"}):
            return True
        steps = [step for _, step in getattr(estimator, "steps", ())[-1:]]
        names = ["best_estimator_", "final_estimator_", *([] if kinds.isdisjoint(ASKING) else ["estimator"])]
        inner = [*steps, *(getattr(estimator, name, None) for name in names)]
        estimator = next((found for found in inner if hasattr(found, "predict")), None)
    return False


def _is_fitted(estimator: Any) -> bool:
    """Return False for one that says so itself, or one of scikit-learn's own classes without the attributes that `fit` sets."""
    for name in ("__sklearn_is_fitted__", "is_fitted"):  # the second is CatBoost's
        if callable(told := getattr(estimator, name, None)):
            return bool(told())
    return not type(estimator).__module__.startswith("sklearn.") or any(name.endswith("_") for name in vars(estimator))


def _is_finite(value: Any) -> bool:
    """Return True for a number, or bool, that is neither NaN nor infinite."""
    return isinstance(value, Real | np.bool_) and isfinite(value)


def _form(x: Any) -> str:
    """Return the class of an input, and its shape; for a table the lines that make a row and a batch of it."""
    if hasattr(x, "iloc") and x.ndim > 1:
        return f"a table of {len(x)} rows: df.iloc[0] is one input, and infer_many(df) takes all"
    return f"a {class_name(x)}{f' {[*shape]}' if (shape := _shape(x)) else ''}"


def _shape(x: Any) -> tuple[int, ...]:
    """Return the shape of an array or list; empty for anything else."""
    try:
        return np.shape(x)
    except (TypeError, ValueError):  # ragged
        return ()
