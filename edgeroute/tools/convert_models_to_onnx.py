"""Conversion of models of other frameworks to ONNX files, by the frameworks' own converters, with a card and a comparison.

Pickled files run code, and are refused without `trust`. A conversion that answers unlike the original is not kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.output_reader import checked_kind
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.callable_model import CallableModel
from edgeroute.edge.model_card import card_path, sha256_of
from edgeroute.edge.onnx import OnnxModel
from edgeroute.edge.runtime_base import first_line
from edgeroute.edge.runtimes_variants_ensemble import step_of
from edgeroute.errors import ModelError, ModelMissing, PolicyError
from edgeroute.router.router import Router
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.untrusted_files import open_file, parse_json, read_bytes
from edgeroute.tools import comparison_inputs_and_estimators as examples
from edgeroute.tools.compress.onnx_graphs_and_result_files import check_new, put, workplace

LEAST = 0.99  # least share of equal answers of a conversion that is written
CLOSE = 1e-3  # relative tolerance of values that are numbers
ML, OPSET = 3, 17  # versions of ONNX's operators in the files that scikit-learn's converter writes
WORD = r"(?u)\b\w\w+\b"  # regular expression of words that scikit-learn's vectorizers have by default


class Loaded(NamedTuple):
    """Model of a framework, and how it answers one input."""

    model: Any
    framework: str
    answer: Callable[[Any], Any]  # function of one input, as `edge=` takes it
    write: Callable[[Path], object]  # writes the ONNX file
    rows: list[Any] | None = None  # inputs, given or drawn at random; None: as the file's inputs are
    near: bool = False  # True if the inputs were given, or drawn around values that the model has from its training
    labels: tuple[str, ...] = ()
    kind: str | None = None  # kind of the outputs; None: by the outputs themselves
    columns: Sequence[str] | None = None  # names of the numbers of a row, in order; None: they have none


class Conversion(NamedTuple):
    """Result of a conversion."""

    out: Path
    card_file: Path
    card: dict[str, Any]
    framework: str
    rows: int  # inputs of the comparison
    sampled: bool  # True if the inputs were given, and not drawn at random
    near: bool  # True if they were given, or drawn around values that the model has from its training, and not from N(0, 1)
    same: int  # inputs with the same answer
    difference: float | None  # largest difference of a confidence; None: there is none
    notes: tuple[str, ...]


def convert(
    path: Path,
    out: Path | None = None,
    *,
    trust: bool = False,
    sample: Path | None = None,
    labels: Sequence[str] = (),
    kind: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write an ONNX file of a model, and a card beside it, after comparing the answers of both on up to 100 inputs.

    If more than 1 % of the answers differ, nothing is written. Loads and runs the original here.

    Args:
        path: the model's file or folder.
        out: the new file; None: beside the original, with the suffix .onnx.
        trust: the file may run code, as a pickle does when it is loaded.
        sample: file with inputs as callers pass them; None: they are drawn at random.
        labels: names of the classes.
        kind: kind of the outputs; None: by the framework, or by the outputs of some runs.
        overwrite: replace existing files.

    Raises:
        PolicyError: no converter for it, it needs `trust` or a sample, or a file exists already.
        ModelMissing, ModelError: it cannot be loaded or converted, or the converted model answers otherwise.
        BadInput: the sample cannot be read.
        RuntimeMissing: a package is not installed.
        StoreError: the file cannot be written.
    """
    checked_kind(kind)
    target, card_file = _targets(path, out, overwrite=overwrite)
    samples = None if sample is None else examples.read_sample(sample)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = _load(path, samples, trust=trust)
        if labels and len(labels) != (count := len(getattr(source.model, "classes_", labels))):
            raise PolicyError(f"{path} has {count} classes, and there are {len(labels)} labels")
        notes = tuple(dict.fromkeys(clean(str(w.message), 200) for w in caught if "Version" in w.category.__name__))
        with workplace(target) as (_, new), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with examples.as_errors(f"{path} cannot be converted by the converter of {source.framework}"):
                source.write(new)
            card = write_card(
                new, new.with_name(card_file.name), [*labels] or [*source.labels], kind or source.kind, source.columns
            )
            rows = _inputs_of(source, new, samples)
            with examples.as_errors(f"{path} does not take these inputs"):
                CallableModel(source.answer).run(rows[:1])
            other, difference = _compared(source, new, rows, card)
            if len(rows) - len(other) < LEAST * len(rows):
                raise ModelError(
                    f"{path} was converted, and answers otherwise: {len(other)} of {len(rows)} inputs, the first of them number"
                    f" {other[0] + 1}. Nothing was written. {_remedy(rows)}"
                )
            put(new.parent, target)
    same, sampled = len(rows) - len(other), samples is not None
    near = sampled or source.near
    return Conversion(target, card_file, card, source.framework, len(rows), sampled, near, same, difference, notes)


def _targets(path: Path, out: Path | None, *, overwrite: bool) -> tuple[Path, Path]:
    """Return the paths for the new file and its card, which is NAME.onnx.json where NAME.json is no card.

    Raises:
        ModelMissing: there is no such model.
        PolicyError: the new file has another suffix, is the original, exists already, or its folder does not.
    """
    named = path.resolve() if path.is_dir() else path  # "." has no name
    if not path.exists() or not named.name:
        raise ModelMissing(f"there is no model at {path}")
    target = out or named.with_suffix(".onnx")
    card = card_path(target)
    if card.resolve() == path.resolve():
        card = target.with_name(f"{target.name}.json")
    check_targets(target, card, overwrite=overwrite, original=path)
    return target, card


def check_targets(target: Path, card: Path, *, overwrite: bool, original: Path | None = None) -> None:
    """Raise PolicyError if a new file has another suffix than .onnx, exists, or its folder does not.

    With `overwrite` it may exist, unless it is `original`.
    """
    if target.suffix.lower() != ".onnx":
        raise PolicyError(f"{target}: the new file must end in .onnx")
    check_new(target, card, overwrite=overwrite and (original is None or target.resolve() != original.resolve()))


# Samples.


def _inputs_of(source: Loaded, new: Path, samples: Any) -> list[Any]:
    """Return the inputs of the comparison: the loader's, those given, or drawn at random for the file's input.

    Raises PolicyError if none can be drawn: the new file has several inputs, texts, or sizes that are not fixed.
    """
    if source.rows is not None:
        return source.rows
    if samples is not None:
        return [*samples][: examples.ROWS]
    model = OnnxModel(new)
    model.load()
    (spec, *more) = model.inputs
    model.close()
    if more or -1 in spec.shape[1:] or spec.dtype == "object":
        raise PolicyError("the sizes of its inputs are not fixed: give some with --sample FILE")
    rng = np.random.default_rng(0)
    return [*rng.standard_normal((examples.ROWS, *spec.shape[1:])).astype(spec.dtype)]


# Card and comparison.


def write_card(new: Path, file: Path, labels: list[str], kind: str | None, columns: Sequence[str] | None) -> dict[str, Any]:
    """Write the card of the new file to `file`, and return it: what `inspect` finds by running the model, and what is known."""
    from edgeroute.tools.cli.inspect_by_runs_and_guessed_card import inspect_file

    card = dict(inspect_file(new, None, 0, 30.0).card or {})
    if kind is not None:
        card["output"] = {**card.get("output", {}), "kind": kind}
        if kind == "label+probabilities":
            card["output"].pop("name", None)
    if labels:
        card["labels"] = labels
    if columns is not None:
        card["data"] = {"columns": [*map(str, columns)]}
    card |= {"file": new.name, "sha256": sha256_of(new)}
    file.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def _compared(source: Loaded, new: Path, rows: list[Any], card: dict[str, Any]) -> tuple[list[int], float | None]:
    """Run both models on all rows, and return the indices of other answers, and the largest difference of a confidence.

    Near ties of two classes count as the same. None: there is no confidence.
    """
    raw = source.rows is None  # a network: its outputs are read as the new file's
    kind, labels = (card.get("output", {}).get("kind"), card.get("labels")) if raw else (None, None)
    original = CallableModel(source.answer, name="original", kind=kind, labels=labels, version="1")
    answers = []
    for edge in (original, OnnxModel(new)):
        with Router(edge, mode="only_edge") as router:
            answers.append(router.infer_many(rows))
    other, differences = list[int](), list[float]()
    for index, (a, b) in enumerate(zip(*answers, strict=True)):
        tie = False
        if a.confidence is not None and b.confidence is not None:
            differences.append(abs(a.confidence - b.confidence))
            tie = differences[-1] < CLOSE and a.confidence < 0.5 + CLOSE  # the last digit picks one of two equal classes
        if not tie and not _same(a.value, b.value, card.get("labels")):
            other.append(index)
    return other, max(differences, default=None)


def _remedy(rows: list[Any]) -> str:
    """Return the likely cause of other answers to these inputs, and what to do."""
    x = rows[0]
    if isinstance(x, str) or (isinstance(x, dict) and any(isinstance(value, str) for value in x.values())):
        return "ONNX may fold case and split words otherwise: fit with lowercase=False on texts that you lower yourself"
    if isinstance(x, np.ndarray) and x.dtype == np.float64:
        table = np.array(rows)
        steps = np.spacing(np.abs(table).max(0).astype(np.float32))
        spread = table.std(0)
        if (coarse := np.flatnonzero((spread > 0) & (steps > spread / 10_000))).size:
            return (
                f"Column {coarse[0] + 1} has more than the 7 digits of the file's float32, as a time since 1970 has: subtract a"
                " constant before training, or edge=model answers as before"
            )
    return "Another version of the converter may be right; edge=model answers as before"


def _same(a: Any, b: Any, labels: Sequence[str] | None) -> bool:
    """Return True if two values are equal; numbers up to rounding. labels: names that the second value may have."""
    if labels is not None and isinstance(a, int) and not isinstance(b, int):
        return bool(labels[a] == b)
    if isinstance(a, dict) or isinstance(b, dict):
        a, b = (next(iter(x.values())) if isinstance(x, dict) else x for x in (a, b))
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind == "f" or y.dtype.kind == "f":
        x, y = x.squeeze(), y.squeeze()
        return bool(x.shape == y.shape and np.allclose(x, y, rtol=CLOSE, atol=CLOSE))
    return bool(x.shape == y.shape and (x == y).all())


# Loading: by the suffix, or by what a file holds.


def _load(path: Path, samples: Any, *, trust: bool) -> Loaded:
    """Load a model by its suffix. Raises as `convert`.

    With `trust` its code may run, and may import from the current folder meanwhile.
    """
    suffix = ".pb" if path.is_dir() and (path / "saved_model.pb").exists() else path.suffix.lower()
    load, runs_code = LOADERS.get(suffix, (None, False))
    if load is None:
        step = step_of(str(path))
        raise PolicyError(f"{path} has no converter: {step}" if step else f"{path} runs as it is: write edge={str(path)!r}")
    if runs_code and not trust:
        raise _untrusted(path)
    if runs_code:
        sys.path.append(here := str(Path.cwd()))  # a pickle names the modules of its classes
    try:
        with examples.as_errors(f"{path} cannot be loaded"):
            if not path.is_dir():
                open_file(path).close()  # no pipe, which a framework would wait for
            return load(path, samples, trust=trust)
    except ModelError as e:
        if isinstance(e.__cause__, ImportError):
            raise ModelError(f"{path} needs a package that is not installed here: {first_line(e.__cause__)}") from e
        raise
    finally:
        if runs_code:
            del sys.path[-1 - sys.path[::-1].index(here)]  # the last one: the first may have been there before


def _untrusted(path: Path) -> PolicyError:
    """Return the error for a file with code, which was not run."""
    return PolicyError(f"{path} was not loaded, since loading a pickle may run code: add --trust if you know who made it")


def _from_pickle(path: Path, samples: Any, *, trust: bool) -> Loaded:  # noqa: ARG001 - as all loaders
    """Unpickle an estimator, which runs its code, by joblib if that is installed, and return it with its converter.

    Raises as `_from_estimator`.
    """
    try:
        from joblib import load
    except ImportError:
        from pickle import load
    with open_file(path) as file:
        model = load(file)  # noqa: S301 - only with --trust
    return _from_estimator(model, path, samples)


def _from_estimator(model: Any, path: Path, samples: Any) -> Loaded:
    """Return the estimator of scikit-learn, XGBoost, LightGBM or CatBoost with its converter, inputs and labels.

    Names of features are removed from a Booster of XGBoost, in place, as the converter takes no others than its own.

    Raises:
        PolicyError: it has no answer that edgeroute can read, splits by category, or reads columns that no sample has.
        ModelError: it is something else.
    """
    package, name = type(model).__module__.partition(".")[0], type(model).__name__
    if package == "lightgbm" and name == "Booster":
        return _from_lightgbm_booster(model, samples)
    if package == "xgboost" and name == "Booster":
        return _from_estimator(_xgboost_estimator(model.save_raw()), path, samples)
    if package == "catboost":
        return _from_catboost(model, samples)
    if not hasattr(model, "predict"):
        raise ModelError(f"{path} holds a {name}, and no estimator with predict: save the estimator alone")
    if package == "sklearn":
        import_needed("sklearn.utils.validation", "scikit-learn is damaged").check_is_fitted(model)
    classes, proba = getattr(model, "classes_", None), hasattr(model, "predict_proba")
    if isinstance(classes, list) and hasattr(classes[0], "dtype"):
        raise PolicyError(f"{path}: {name} has {len(classes)} answers to one input: convert its estimators one by one")
    if classes is not None and not proba:
        raise PolicyError(f"{path}: {name} has no predict_proba: fit sklearn.calibration.CalibratedClassifierCV on it")
    answer = model if proba else lambda x: (np.asarray(model.predict(_table(x)))[0], None)
    texts, columns = _vocabulary(model), None
    names: Any = getattr(model, "feature_names_in_", None)
    names = None if names is None or names[0] == "Column_0" else [*names]  # LightGBM's, of an array
    if names is not None and any(type(part).__name__ == "ColumnTransformer" for part in _parts(model)):
        if not hasattr(samples, "columns"):
            raise PolicyError(f"{path}: {name} reads columns by their names: give a few rows with --sample FILE.csv")
        columns = examples.columns_of(samples, names)
    size = 0 if texts is not None else model.n_features_in_
    for part in _parts(model):
        booster = examples.booster_of(part)
        _check_categories(part, booster, f"{path}: {name}")
        if hasattr(booster, "get_dump"):
            booster.feature_names = None  # the converter takes no others than f0, f1, ...
    labels = tuple(classes.tolist()) if proba and classes is not None and np.asarray(classes).dtype.kind in "USO" else ()
    if columns is not None:
        names = None  # each is an input of the file
        rows, near = columns.head(examples.ROWS).to_dict("records"), True
    elif texts is not None:
        rows, near = examples.rows_of_texts(samples, texts), True
    else:
        rows, near = examples.rows_of_numbers(size, samples, names, examples.values_of_training(model, size))
    roots = [base.__module__.partition(".")[0] for base in type(model).__mro__]
    framework = next((FRAMEWORKS[root] for root in roots if root in FRAMEWORKS), package)
    kind = "label+probabilities" if proba else "value"
    write = lambda out: by_skl2onnx(model, columns, out, texts=texts is not None)  # noqa: E731
    return Loaded(model, framework, answer, write, rows, near, labels, kind, names)


def _check_categories(part: Any, booster: Any, what: str) -> None:
    """Raise `PolicyError` if an estimator, or its Booster, has splits by category."""
    ranges = examples.lightgbm_ranges(booster) if hasattr(booster, "model_to_string") else []
    split = "c" in (getattr(booster, "feature_types", None) or ()) or any(e[0] != "[" and e != "none" for e in ranges)
    if split or np.any(getattr(part, "is_categorical_", False)):  # None: none is
        raise PolicyError(f"{what} has categories, which no converter writes: encode them as numbers before training")


# Package of an estimator -> the framework's name.
FRAMEWORKS = {"sklearn": "scikit-learn", "xgboost": "XGBoost", "lightgbm": "LightGBM"}


def _table(x: Any) -> Any:
    """Return one input as a table of one row; a mapping as a data frame with the names of its columns."""
    if isinstance(x, dict):
        return import_needed("pandas", "columns are named by pandas: pip install pandas").DataFrame([x])
    return np.asarray([x])


def _parts(model: Any) -> list[Any]:
    """Return an estimator, its parameters, and all estimators within it, at any depth."""
    parts = [model, *(model.get_params(deep=True).values() if hasattr(model, "get_params") else ())]
    return [*parts, *(part for outer in parts for inner in examples.estimators_within(outer) for part in _parts(inner))]


def _vocabulary(model: Any) -> list[str] | None:
    """Return the words of a pipeline that begins with a text vectorizer; None for other models."""
    steps = getattr(model, "steps", None)
    words = getattr(steps[0][1], "vocabulary_", None) if steps else None
    return None if words is None else [*words]


def by_skl2onnx(model: Any, columns: Any, out: Path, *, texts: bool) -> None:
    """Write an estimator to `out` by skl2onnx, with the converters of onnxmltools for XGBoost and LightGBM.

    These are registered with skl2onnx for the process.

    Raises:
        RuntimeMissing: one of them is not installed.
    """
    skl2onnx = import_needed("skl2onnx", "scikit-learn's converter is not installed: pip install skl2onnx")
    types = import_needed("skl2onnx.common.data_types", "skl2onnx is damaged")
    for package in {type(part).__module__.partition(".")[0] for part in _parts(model)} & {*BOOSTERS}:
        _register(skl2onnx, package, *BOOSTERS[package])
    if texts:
        initial = [("text", types.StringTensorType([None]))]
    elif columns is not None:
        initial = [
            (str(name), (types.FloatTensorType if columns[name].dtype.kind in "biuf" else types.StringTensorType)([None, 1]))
            for name in columns
        ]
    else:
        initial = [("X", types.FloatTensorType([None, model.n_features_in_]))]
    options: dict[Any, Any] = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else {}
    for part in _parts(model):
        if hasattr(part, "ngram_range") and hasattr(part, "vocabulary_"):
            # the default, en_US, is on few devices
            options[id(part)] = {"locale": "C" if all(map(str.isascii, part.vocabulary_)) else "C.UTF-8"}
            if part.analyzer == "word" and part.token_pattern == WORD:
                options[id(part)]["tokenexp"] = r"[\p{L}\p{N}_]{2,}"  # the converter's own has ASCII alone
    for estimator in {type(part) for part in _parts(model) if type(part).__name__.startswith("HistGradientBoosting")}:
        _register_without_booleans(skl2onnx, estimator)
    graph = skl2onnx.convert_sklearn(
        model, initial_types=initial, options=options or None, target_opset={"": OPSET, "ai.onnx.ml": ML}
    )
    if columns is not None:
        _flatten_columns(graph, [*map(str, columns)])
    out.write_bytes(graph.SerializeToString())


# Package -> the name of its converter, and its estimators.
BOOSTERS = {"xgboost": ("XGBoost", "XGBClassifier", "XGBRegressor"), "lightgbm": ("LightGbm", "LGBMClassifier", "LGBMRegressor")}


def _register(skl2onnx: Any, package: str, prefix: str, classifier: str, regressor: str) -> None:
    """Register the converters of XGBoost or LightGBM with skl2onnx, for the process. Raises RuntimeMissing."""
    need = f"the converter of {package} is not installed: pip install onnxmltools"
    shapes = import_needed("skl2onnx.common.shape_calculator", need)
    converters = import_needed(f"onnxmltools.convert.{package}.operator_converters.{prefix}", need)
    converter, library = getattr(converters, f"convert_{package}"), import_needed(package, f"{package} is not installed")
    skl2onnx.update_registered_converter(
        getattr(library, classifier), f"{prefix}{classifier}", shapes.calculate_linear_classifier_output_shapes, converter,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
    )  # fmt: skip
    skl2onnx.update_registered_converter(
        getattr(library, regressor), f"{prefix}{regressor}", shapes.calculate_linear_regressor_output_shapes, converter,
        options={"split": None} if package == "lightgbm" else None,
    )  # fmt: skip


def _register_without_booleans(skl2onnx: Any, estimator: type) -> None:
    """Register skl2onnx's converter of an estimator anew, for the process.

    It writes integers for the booleans in its lists, which onnx 1.23 refuses.
    """
    known, alias = import_needed("skl2onnx.common._registration", "skl2onnx is damaged"), f"Sklearn{estimator.__name__}"
    plain = known.get_converter(alias)

    def converter(scope: Any, operator: Any, container: Any) -> None:
        """Convert as before, and add nodes whose lists of integers hold no boolean."""
        add, flags = container.add_node, "nodes_missing_value_tracks_true"
        container.add_node = lambda *args, **given: add(
            *args, **given | ({flags: [int(flag) for flag in given[flags]]} if flags in given else {})
        )
        try:
            plain(scope, operator, container)
        finally:
            container.add_node = add

    shapes, options = known.get_shape_calculator(alias), plain.get_allowed_options()
    skl2onnx.update_registered_converter(estimator, alias, shapes, converter, options=options)


def _flatten_columns(model: Any, names: list[str]) -> None:
    """Make each input of a graph, [n, 1], one of [n] with the column's name: a row is a mapping from column to number or text.

    Changes the graph in place, and removes the inputs that nothing reads.
    """
    onnx = import_needed("onnx", "onnx is not installed: pip install onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 1]), "as_column"))
    for name, value in zip(names, [*model.graph.input], strict=True):
        column = f"{value.name}_column"
        if not any(value.name in node.input for node in model.graph.node):
            model.graph.input.remove(value)  # the pipeline drops this column
            continue
        for node in model.graph.node:
            node.input[:] = [column if read == value.name else read for read in node.input]
        del value.type.tensor_type.shape.dim[1:]
        value.name = name
        model.graph.node.insert(0, onnx.helper.make_node("Reshape", [name, "as_column"], [column]))


def _xgboost_estimator(file: Any) -> Any:
    """Return the classifier or regressor, by its objective, for the file or bytes of a Booster."""
    library = import_needed("xgboost", "xgboost is not installed: pip install xgboost")
    booster = library.Booster(model_file=file)
    objective = parse_json(booster.save_config())["learner"]["objective"]["name"]
    estimator = library.XGBClassifier() if objective.startswith(("binary:logistic", "multi:soft")) else library.XGBRegressor()
    estimator.load_model(file)
    return estimator


def _from_xgboost_file(path: Path, samples: Any, *, trust: bool) -> Loaded:
    """Load a file of XGBoost's own format, or of CatBoost's in JSON, and return its estimator with a converter.

    ModelError for other JSON.
    """
    if path.suffix.lower() == ".json" and b'"learner"' not in (data := read_bytes(path)):
        if b'"oblivious_trees"' in data:
            return _from_catboost_file(path, samples, trust=trust)
        hint = ": LightGBM writes its own by save_model('model.txt')" if b'"tree_info"' in data else ""
        raise ModelError(f"{path} is no model of XGBoost or CatBoost{hint}")
    return _from_estimator(_xgboost_estimator(str(path)), path, samples)


def _from_lightgbm_file(path: Path, samples: Any, *, trust: bool) -> Loaded:  # noqa: ARG001 - as all loaders
    """Load a file of LightGBM's text format, and return its Booster with a converter. ModelError for another text."""
    with open_file(path) as file:
        if file.read(4) != b"tree":
            raise ModelError(f"{path} is no model of LightGBM")
    library = import_needed("lightgbm", "lightgbm is not installed: pip install lightgbm")
    return _from_lightgbm_booster(library.Booster(model_file=path), samples)


def _from_lightgbm_booster(model: Any, samples: Any) -> Loaded:
    """Return a LightGBM Booster with its converter, prediction and rows. PolicyError if a tree splits by categories."""
    _check_categories(None, model, "the Booster")
    objective = model.dump_model()["objective"].split()[0]
    size, names = model.num_feature(), model.feature_name()
    classifies = objective in {"binary", "multiclass", "multiclassova"}

    def answer(x: Any) -> Any:
        """Return class -> probability for one row, or the value of a regression."""
        p = np.asarray(model.predict(np.asarray([x])))[0]
        return dict(enumerate(map(float, p if np.ndim(p) else (1 - p, p)))) if classifies else (float(p), None)

    def write(out: Path) -> None:
        """Write the ONNX file."""
        tools = import_needed("onnxmltools", "the converter of lightgbm is not installed: pip install onnxmltools")
        types = import_needed("onnxmltools.convert.common.data_types", "onnxmltools is damaged")
        initial = [("X", types.FloatTensorType([None, size]))]
        graph = tools.convert_lightgbm(model, initial_types=initial, zipmap=False, target_opset=15)
        out.write_bytes(graph.SerializeToString())

    named = names if names != [f"Column_{i}" for i in range(size)] else None
    rows, near = examples.rows_of_numbers(size, samples, named, examples.values_of_training(model, size))
    return Loaded(model, "LightGBM", answer, write, rows, near, (), "label+probabilities" if classifies else "value", named)


def _from_catboost_file(path: Path, samples: Any, *, trust: bool) -> Loaded:  # noqa: ARG001 - as all loaders
    """Load a file of CatBoost's own format, as a classifier if it has classes, else a regressor; return it with a converter."""
    library = import_needed("catboost", "catboost is not installed: pip install catboost")
    form = "json" if path.suffix.lower() == ".json" else "cbm"
    model = library.CatBoostClassifier().load_model(str(path), form)
    return _from_catboost(model if len(model.classes_) else library.CatBoostRegressor().load_model(str(path), form), samples)


def _from_catboost(model: Any, samples: Any) -> Loaded:
    """Return a model of CatBoost, which writes ONNX files itself, with its answers, labels and inputs for the comparison."""
    classifies = hasattr(model, "predict_proba")
    answer = model if classifies else lambda x: (float(model.predict([x])[0]), None)

    labels = tuple(model.classes_.tolist()) if classifies and np.asarray(model.classes_).dtype.kind in "USO" else ()
    kind, names = "label+probabilities" if classifies else "value", model.feature_names_
    named = names if names != [*map(str, range(len(names)))] else None
    rows, near = examples.rows_of_numbers(len(names), samples, named, examples.values_of_training(model, len(names)))
    return Loaded(
        model, "CatBoost", answer, lambda out: model.save_model(str(out), format="onnx"), rows, near, labels, kind, named
    )


# Networks.


def _from_keras(path: Path, samples: Any, *, trust: bool) -> Loaded:  # noqa: ARG001 - as all loaders
    """Load a Keras model and call it once; code in its file, such as a Lambda layer, is refused without `trust`.

    Raises PolicyError for that, and for several inputs or outputs.
    """
    keras = import_needed("keras", "keras is not installed: pip install keras tensorflow tf2onnx")
    try:
        model = keras.saving.load_model(path, safe_mode=not trust, compile=False)
    except ValueError as e:
        if "safe_mode" in str(e):
            raise _untrusted(path) from e
        raise
    if len(model.inputs) > 1 or len(model.outputs) > 1:
        raise PolicyError(f"{path} has several inputs or outputs: convert it in Keras: model.export('model.onnx', format='onnx')")
    model(np.zeros([size or 1 for size in model.inputs[0].shape], np.float32))  # the exporter needs one call
    activation = getattr(getattr(model.layers[-1], "activation", None), "__name__", "")
    binary = activation == "sigmoid" and model.outputs[0].shape[-1] == 1
    kind = "probabilities" if activation == "softmax" or binary else None

    def write(out: Path) -> None:
        """Write the ONNX file."""
        if keras.backend.backend() == "tensorflow":
            import_needed("tf2onnx", "the converter of Keras is not installed: pip install tf2onnx")
        model.export(str(out), format="onnx", verbose=False)

    def answer(x: Any) -> Any:
        """Return the outputs for one input, of any backend."""
        return keras.ops.convert_to_numpy(model(np.asarray(x)[None], training=False))[0]

    return Loaded(model, "Keras", answer, write, kind=kind)


def _from_saved_model(path: Path, samples: Any, *, trust: bool) -> Loaded:  # noqa: ARG001 - as all loaders
    """Load a SavedModel of TensorFlow, and return its default signature, of one input, with its converter.

    The converter runs as a process; ModelError if that fails.
    """
    folder = path if path.is_dir() else path.parent
    tensorflow = import_needed("tensorflow", "tensorflow is not installed: pip install tensorflow tf2onnx")
    call = tensorflow.saved_model.load(str(folder)).signatures["serving_default"]
    ((name, spec),) = call.structured_input_signature[1].items()

    def answer(x: Any) -> Any:
        """Return the first output for one input."""
        return np.asarray(next(iter(call(**{name: tensorflow.constant(np.asarray([x]), spec.dtype)}).values())))[0]

    def write(out: Path) -> None:
        """Write the ONNX file, in a process of its own: the converter prints much."""
        import_needed("tf2onnx", "the converter of TensorFlow is not installed: pip install tf2onnx")
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--output", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - of the package
        if done.returncode:
            raise ModelError((done.stderr.strip().splitlines() or ["it failed"])[-1])

    return Loaded(call, "TensorFlow", answer, write)


def _from_torch(path: Path, samples: Any, *, trust: bool) -> Loaded:  # noqa: ARG001 - as all loaders
    """Load a whole PyTorch model, for evaluation: a pickled module, a program of torch.export, or TorchScript.

    Raises:
        ModelError: it has weights alone.
        PolicyError: there is no sample.
    """
    torch = import_needed("torch", "torch is not installed: pip install torch onnxscript")
    if path.suffix.lower() == ".pt2":
        model = torch.export.load(str(path)).module()
    else:
        try:
            model = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError:
            model = torch.load(path, map_location="cpu", weights_only=False)
    if not callable(model):
        raise ModelError(
            f"it has weights alone, a {type(model).__name__}: build the model in Python, load them, and then"
            " torch.onnx.export(model, example, 'model.onnx')"
        )
    if not isinstance(samples, list):
        raise PolicyError(f"{path}: PyTorch's exporter runs the model once: give an input with --sample FILE.npy")
    if path.suffix.lower() != ".pt2":
        model.eval()

    def tensor(rows: Sequence[Any]) -> Any:
        """Return a batch of inputs."""
        return torch.as_tensor(np.stack([np.asarray(x) for x in rows]))

    def answer(x: Any) -> Any:
        """Return the output for one input."""
        with torch.no_grad():
            return model(tensor([x]))[0].numpy()

    def write(out: Path) -> None:
        """Write the ONNX file, with a free batch axis."""
        example = tensor([samples[0], samples[0]])
        if isinstance(model, torch.jit.ScriptModule):  # which the newer exporter does not read
            names = {"input_names": ["input"], "output_names": ["output"]}
            torch.onnx.export(
                model, (example,), str(out), dynamo=False, dynamic_axes={"input": {0: "n"}, "output": {0: "n"}}, **names
            )
            return
        import_needed("onnxscript", "PyTorch's exporter needs onnxscript: pip install onnxscript")
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(
            model, (example,), str(out), dynamo=True, external_data=False, verbose=False,
            input_names=["input"], output_names=["output"], dynamic_shapes=(batch,),
        )  # fmt: skip

    return Loaded(model, "PyTorch", answer, write)


# Suffix -> the function that loads such a file, and True if loading it may run code in it.
LOADERS: dict[str, tuple[Callable[..., Loaded], bool]] = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), (_from_pickle, True)),
    **dict.fromkeys((".json", ".ubj"), (_from_xgboost_file, False)),
    ".txt": (_from_lightgbm_file, False),
    ".cbm": (_from_catboost_file, False),
    ".keras": (_from_keras, False),
    **dict.fromkeys((".h5", ".hdf5"), (_from_keras, True)),
    ".pb": (_from_saved_model, True),
    **dict.fromkeys((".pt", ".pth", ".pt2", ".ckpt", ".torchscript", ".bin"), (_from_torch, True)),
}
