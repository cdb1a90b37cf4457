"""`edgeroute convert`: ONNX files of models of other frameworks, which answer as the originals; and files that hold code."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from both import unsure
from commands import cli
from lazily import Later, needs

from edgeroute import BadInput, ModelError, ModelMissing, PolicyError, Router, RuntimeMissing, StoreError
from edgeroute.tools.convert_models_to_onnx import convert

needs("sklearn", "joblib", "skl2onnx")
linear_model, joblib = Later("sklearn.linear_model"), Later("joblib")
X = np.random.default_rng(0).standard_normal((400, 5)).astype("float32")
Y = (X[:, 0] + X[:, 1] > 0).astype(int)
LEVELS = np.digitize(X[:, 0], [-0.5, 0.5])
TEXTS = ["a good fine day", "an awful bad one", "really good", "so bad it was"] * 20


def saved(tmp_path, model, name="m.joblib"):
    joblib.dump(model, tmp_path / name)
    return tmp_path / name


def alike(done, model, rows):
    """The new file answers these inputs as `edge=model` does."""
    assert done.same == done.rows > 0
    with Router(model, unsure, threshold=0) as a, Router(done.out, unsure, threshold=0) as b:
        for x in rows:
            original, new = a.infer(x), b.infer(x)
            assert (new.source, new.value) == ("edge", original.value)
            assert new.confidence == pytest.approx(original.confidence, abs=1e-3)


@pytest.mark.parametrize(
    "classes",
    [[0, 1], [2, 7], ["no", "yes"], [False, True], ["low", "middle", "high"]],
    ids=["binary", "numbers", "texts", "bools", "three"],
)
def test_a_classifier_answers_as_before(tmp_path, classes):
    model = linear_model.LogisticRegression().fit(X, np.array(classes)[LEVELS if len(classes) > 2 else Y])
    done = convert(saved(tmp_path, model), trust=True)
    assert (done.out, done.framework) == (tmp_path / "m.onnx", "scikit-learn")
    assert done.card["output"] == {"kind": "label+probabilities"}
    assert done.card.get("labels") == (sorted(classes) if isinstance(classes[0], str) else None)
    assert json.loads((tmp_path / "m.json").read_text()) == done.card
    alike(done, model, X[:20])


@pytest.mark.parametrize("vectorizer", ["TfidfVectorizer", "CountVectorizer"])
def test_a_pipeline_for_texts_takes_a_text(tmp_path, vectorizer):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(
        getattr(text, vectorizer)(), linear_model.LogisticRegression()
    )
    model = pipeline.fit(TEXTS, ["good", "bad"] * 40)
    alike(convert(saved(tmp_path, model), trust=True), model, TEXTS[:4])


@pytest.mark.parametrize("form", ["scaler", "range", "imputed", "calibrated", "by columns", "bayes", "forest", "neighbours"])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_inputs_are_drawn_where_the_model_was_fitted(tmp_path, form, given):
    """A time since 1970 does not fit into float32: such a model is not written, unless its inputs are rounded as the file's."""
    rng = np.random.default_rng(1)
    rows = np.c_[1.7e9 + rng.uniform(0, 600, 600), rng.standard_normal(600)]
    make, logistic = pytest.importorskip("sklearn.pipeline").make_pipeline, linear_model.LogisticRegression
    preprocessing, compose = pytest.importorskip("sklearn.preprocessing"), pytest.importorskip("sklearn.compose")
    scale = preprocessing.StandardScaler
    model = {
        "scaler": lambda: make(scale(), logistic()),
        "range": lambda: make(preprocessing.MinMaxScaler(), logistic(C=100)),
        "imputed": lambda: make(pytest.importorskip("sklearn.impute").SimpleImputer(), scale(), logistic()),
        "calibrated": lambda: pytest.importorskip("sklearn.calibration").CalibratedClassifierCV(make(scale(), logistic())),
        "by columns": lambda: make(compose.ColumnTransformer([("a", scale(), [1, 0])]), logistic()),
        "bayes": lambda: pytest.importorskip("sklearn.naive_bayes").GaussianNB(),
        "forest": lambda: pytest.importorskip("sklearn.ensemble").RandomForestClassifier(5, random_state=0),
        "neighbours": lambda: pytest.importorskip("sklearn.neighbors").KNeighborsClassifier(5),
    }[form]().fit(rows, np.array(["early", "late"])[(rows[:, 0] > 1.7e9 + 300).astype(int)])
    file = saved(tmp_path, model)
    np.savez(tmp_path / "rows.npz", X=rows[:100])
    if form == "forest":  # which rounds its inputs itself
        done = convert(file, trust=True, sample=tmp_path / "rows.npz" if given else None)
        assert (done.same, done.near, done.sampled) == (100, True, given)
        return
    with pytest.raises(ModelError, match=r"answers otherwise: \d+ of 100 inputs, the first of them number \d+\. .* float32"):
        convert(file, trust=True, sample=tmp_path / "rows.npz" if given else None)
    assert not (tmp_path / "m.onnx").exists()


def test_columns_are_given_by_their_names(tmp_path):
    """Of a few rows in a table: a row is a mapping; a column that the pipeline drops is not needed."""
    pandas = pytest.importorskip("pandas")
    compose, preprocessing = pytest.importorskip("sklearn.compose"), pytest.importorskip("sklearn.preprocessing")
    table = pandas.DataFrame({"my age": X[:, 0], "city": np.where(X[:, 1] > 0, "Ulm", "Zürich"), "id": np.arange(400)})
    columns = compose.make_column_transformer(
        (preprocessing.OneHotEncoder(), ["city"]), (preprocessing.StandardScaler(), ["my age"])
    )
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(columns, linear_model.LogisticRegression())
    model = pipeline.fit(table, np.array(["no", "yes"])[Y])
    file = saved(tmp_path, model)
    with pytest.raises(PolicyError, match=r"reads columns by their names: give a few rows with --sample"):
        convert(file, trust=True)
    table[["city"]].head(30).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(BadInput, match="no column 'my age'"):
        convert(file, trust=True, sample=tmp_path / "few.csv")
    table.head(30).to_csv(tmp_path / "rows.csv", index=False)
    done = convert(file, trust=True, sample=tmp_path / "rows.csv")
    assert (done.same, done.rows, done.sampled) == (30, 30, True)
    rows = [{"my age": 0.3, "city": "Zürich", "id": 0}, {"my age": -2.0, "city": "Ulm", "id": 0}]
    alike(done, model, rows)
    with Router(done.out, unsure, threshold=0) as router:
        assert router.infer({"my age": 0.3, "city": "Zürich"}).source == "edge"


@pytest.mark.parametrize("rows", ["mappings", "table", "labelled"])
@pytest.mark.parametrize("names", [False, True], ids=["array", "columns"])
def test_a_sample_may_be_a_table_or_mappings(tmp_path, rows, names):
    """Columns are taken by the names that the model was fitted with; without names, by their order."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X[:, :4], columns=["my age", "b", "c", "d"])
    file = saved(tmp_path, linear_model.LogisticRegression().fit(table if names else table.to_numpy(), Y))
    sample = tmp_path / ("s.jsonl" if rows == "mappings" else "s.csv")
    few = (table[table.columns[::-1]] if names else table).head(30)
    if rows == "mappings":
        sample.write_text("".join(json.dumps(row) + "\n" for row in few.to_dict("records")))
    else:
        (few.assign(label=Y[:30]) if rows == "labelled" else few).to_csv(sample, index=False)
    done = convert(file, trust=True, sample=sample)
    assert (done.same, done.rows, done.sampled) == (30, 30, True)


def test_a_table_is_read_by_the_columns_of_the_fit(tmp_path):
    """Columns in another order give the same answers, further ones are left out, and a missing one is an error."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X[:, :4], columns=["my age", "b", "c", "target"])
    model = linear_model.LogisticRegression().fit(table, Y)
    done = convert(saved(tmp_path, model), trust=True)
    assert done.card["data"] == {"columns": [*table.columns]}
    (tmp_path / "p.toml").write_text(f"mode = 'only_edge'\nedge.path = {str(done.out)!r}\n")
    table[table.columns[::-1]].assign(id=7).head(40).to_csv(tmp_path / "rows.csv", index=False)
    code, out, _ = cli("infer", "-p", tmp_path / "p.toml", tmp_path / "rows.csv", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, [a["value"] for a in answers if "value" in a]) == (0, model.predict(table.head(40)).tolist())
    table[["my age", "b", "c"]].to_csv(tmp_path / "few.csv", index=False)
    code, out, err = cli("infer", "-p", tmp_path / "p.toml", tmp_path / "few.csv")
    assert code == 1
    assert "has no column 'target', on which the model was fitted" in out + err


@pytest.mark.parametrize("text", ['"so bad"', '{"text": "so bad"}'], ids=["text", "mapping"])
def test_a_sample_that_does_not_fit_is_one_line(tmp_path, text):
    model = linear_model.LogisticRegression().fit(X, Y)
    (tmp_path / "s.jsonl").write_text(text + "\n")
    with pytest.raises(BadInput, match=r"row 1 of the sample is no row of numbers"):
        convert(saved(tmp_path, model), trust=True, sample=tmp_path / "s.jsonl")
    vectorizer = pytest.importorskip("sklearn.feature_extraction.text").TfidfVectorizer()
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(vectorizer, linear_model.LogisticRegression())
    file = saved(tmp_path, pipeline.fit(TEXTS, ["good", "bad"] * 40), "t.joblib")
    assert convert(file, trust=True, sample=tmp_path / "s.jsonl").same == 1
    (tmp_path / "n.jsonl").write_text("[1, 2]\n")
    with pytest.raises(BadInput, match=r"row 1 of the sample"):
        convert(file, tmp_path / "n.onnx", trust=True, sample=tmp_path / "n.jsonl")


def test_words_have_letters_of_other_languages(tmp_path):
    text, words = pytest.importorskip("sklearn.feature_extraction.text"), ["Ärger über Öl", "schöne GRÜSSE", "Größe prüfen"]
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(text.TfidfVectorizer(), linear_model.LogisticRegression())
    model = pipeline.fit(words * 20, ["bad", "good", "good"] * 20)
    alike(convert(saved(tmp_path, model), trust=True), model, words)


def test_a_vectorizer_among_columns(tmp_path):
    pandas, compose = pytest.importorskip("pandas"), pytest.importorskip("sklearn.compose")
    table = pandas.DataFrame({"review": TEXTS, "stars": np.arange(80) % 5})
    vectorizer = pytest.importorskip("sklearn.feature_extraction.text").TfidfVectorizer()
    columns = compose.make_column_transformer(
        (vectorizer, "review"), (pytest.importorskip("sklearn.preprocessing").StandardScaler(), ["stars"])
    )
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(columns, linear_model.LogisticRegression())
    table.to_csv(tmp_path / "s.csv", index=False)
    model = pipeline.fit(table, ["good", "bad"] * 40)
    done = convert(saved(tmp_path, model), trust=True, sample=tmp_path / "s.csv")
    assert done.same == done.rows == 80


def test_a_regression_is_a_value_without_confidence(tmp_path):
    model = linear_model.LinearRegression().fit(X, 3 * X[:, 0])
    code, out, err = cli("convert", saved(tmp_path, model), "--trust")
    assert (code, err) == (0, "")
    assert "100 of 100" in out
    assert "from N(0, 1), perhaps far from your data: add --sample FILE" in out
    with Router(tmp_path / "m.onnx", mode="only_edge") as router:
        answer = router.infer(X[0])
    assert answer.value == pytest.approx(float(model.predict(X[:1])[0]), abs=1e-3)
    assert answer.confidence is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pytest.importorskip("sklearn.svm").LinearSVC().fit(X, Y), "no predict_proba.*CalibratedClassifierCV"),
        (
            lambda: (
                pytest.importorskip("sklearn.multioutput")
                .MultiOutputClassifier(linear_model.LogisticRegression())
                .fit(X, np.c_[Y, 1 - Y])
            ),
            "has 2 answers to one input: convert its estimators one by one",
        ),
        (lambda: pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(X), "no estimator with predict"),
        (lambda: linear_model.LogisticRegression(C=2), "not fitted"),
        (lambda: {"model": 1}, "holds a dict, and no estimator"),
    ],
    ids=["margins", "several", "scaler", "unfitted", "dict"],
)
def test_a_model_without_an_answer_is_refused(tmp_path, make, says):
    file = saved(tmp_path, make())
    with pytest.raises((PolicyError, ModelError), match=says):
        convert(file, trust=True)
    assert [*tmp_path.iterdir()] == [file]


class Hostile:
    """Creates a file where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "name", ["m.pkl", "m.pickle", "m.joblib", "m.pt", "m.pth", "m.ckpt", "m.bin", "m.pt2", "m.torchscript", "m.h5", "m.pb"]
)
def test_no_code_of_a_file_runs_without_the_flag(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    code, out, err = cli("convert", tmp_path / name)
    assert (code, out) == (2, "")
    assert "was not loaded, since loading a pickle may run code" in err
    assert "--trust" in err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["m.json", "m.txt", "m.ubj", "m.cbm", "m.keras"])
def test_a_pickle_by_another_name_is_not_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises((ModelError, RuntimeMissing)):
        convert(tmp_path / name, tmp_path / "o.onnx", trust=True)
    assert not (tmp_path / "ran").exists()


def test_a_json_file_of_lightgbm_gets_the_line_that_makes_one_to_convert(tmp_path):
    (tmp_path / "m.json").write_text('{"name": "tree", "tree_info": []}')
    with pytest.raises(ModelError, match=r"LightGBM writes its own by save_model\('model\.txt'\)"):
        convert(tmp_path / "m.json")


def test_what_exists_is_replaced_only_if_asked(tmp_path):
    model = linear_model.LogisticRegression().fit(X, Y)
    file = saved(tmp_path, model)
    for name in ("m.onnx", "m.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(PolicyError, match=rf"{name} exists already: .* --force"):
            convert(file, trust=True)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "m.json").write_text('{"learner": {}, "version": [3, 2, 0]}')  # XGBoost's model of the same name is no card
    assert convert(file, trust=True).card_file.name == "m.onnx.json"
    assert convert(file, trust=True, overwrite=True).card_file.name == "m.onnx.json"
    for name in ("m.json", "m.onnx.json"):
        (tmp_path / name).unlink()
    (tmp_path / "m.onnx").write_text("old")
    alike(convert(file, trust=True, overwrite=True), model, X[:3])
    with pytest.raises(PolicyError, match=r"must end in \.onnx"):
        convert(file, tmp_path / "m.tflite", trust=True)
    with pytest.raises(PolicyError, match="there is no folder"):
        convert(file, tmp_path / "none" / "m.onnx", trust=True)
    with pytest.raises(ModelMissing):
        convert(tmp_path / "none.joblib", trust=True)
    os.mkfifo(tmp_path / "pipe.joblib")
    with pytest.raises(ModelError, match="no regular file"):
        convert(tmp_path / "pipe.joblib", trust=True)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(StoreError):
        convert(file, tmp_path / "folder.onnx", trust=True, overwrite=True)


@pytest.mark.parametrize(
    ("name", "says"), [("m.onnx", "runs as it is: write edge="), ("m.nemo", "export it in NeMo"), ("m.xyz", "expected a file")]
)
def test_a_file_without_a_converter_says_its_step(tmp_path, name, says):
    (tmp_path / name).write_text("")
    with pytest.raises(PolicyError, match=says):
        convert(tmp_path / name, tmp_path / "o.onnx", trust=True)


def test_a_converter_that_is_missing_says_what_to_install(tmp_path, monkeypatch):
    file = saved(tmp_path, linear_model.LogisticRegression().fit(X, Y))
    for name in [name for name in sys.modules if name.partition(".")[0] == "skl2onnx"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeMissing, match="pip install skl2onnx"):
        convert(file, trust=True)
    assert [*tmp_path.iterdir()] == [file]


def test_a_conversion_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    """As by a converter that swaps the classes."""
    import skl2onnx

    right, other = linear_model.LogisticRegression().fit(X, Y), linear_model.LogisticRegression().fit(X, 1 - Y)
    file, real = saved(tmp_path, right), skl2onnx.convert_sklearn
    monkeypatch.setattr(skl2onnx, "convert_sklearn", lambda model, **more: real(other, **more | {"options": None}))
    with pytest.raises(ModelError, match=r"answers otherwise: \d+ of 100 inputs, .* number 1\. Nothing was written"):
        convert(file, trust=True)
    assert [*tmp_path.iterdir()] == [file]


def test_the_result_is_json_for_programs(tmp_path):
    file = saved(tmp_path, linear_model.LogisticRegression().fit(X, Y))
    np.savez(tmp_path / "rows.npz", X=X[:30])
    code, out, err = cli(
        "convert", file, tmp_path / "o.onnx", "--trust", "--sample", tmp_path / "rows.npz", "--labels", "no,yes", "--json"
    )
    assert (code, err) == (0, "")
    done = json.loads(out)
    assert (done["out"], done["rows"], done["same"], done["sampled"]) == (str(tmp_path / "o.onnx"), 30, 30, True)
    with Router(tmp_path / "o.onnx", unsure, threshold=0) as router:
        assert {answer.value for answer in router.infer_many(list(X[:30]))} == {"no", "yes"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": ["a", "b", "c"]}, "has 2 classes, and there are 3 labels"),
        ({"kind": "logit"}, "there is no kind of outputs 'logit': did you mean"),
        ({"sample": Path("wide.npy")}, "expected 5 numbers, got a ndarray .9."),
        ({"sample": Path("none.npy")}, "there is no such file"),
    ],
    ids=["labels", "kind", "wide", "none"],
)
def test_what_does_not_fit_the_model_is_said_before_anything_is_written(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.zeros((4, 9)))
    file, before = saved(tmp_path, linear_model.LogisticRegression().fit(X, Y)), {*tmp_path.iterdir()}
    with pytest.raises((PolicyError, ModelError, BadInput), match=says):
        convert(file, trust=True, **given)
    assert {*tmp_path.iterdir()} == before


# Beside their frameworks: the part `converters` of the matrix.


@pytest.mark.matrix
@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2]], ids=["binary", "three"])
@pytest.mark.parametrize("form", ["m.joblib", "booster.joblib", "m.json", "m.ubj"])
def test_xgboost(tmp_path, classes, form):
    """The estimator, and its Booster; in a pickle, and in XGBoost's own formats, whose NAME.json is no card."""
    model = pytest.importorskip("xgboost").XGBClassifier(n_estimators=10).fit(X, Y if len(classes) == 2 else LEVELS)
    if form.endswith("joblib"):
        saved(tmp_path, model if form == "m.joblib" else model.get_booster(), form)
    else:
        model.save_model(tmp_path / form)
    done = convert(tmp_path / form, trust=form.endswith("joblib"))
    assert done.framework == "XGBoost"
    assert done.card_file.name == ("m.onnx.json" if form == "m.json" else Path(form).with_suffix(".json").name)
    alike(done, model, X[:20])


@pytest.mark.matrix
@pytest.mark.parametrize("classes", [["no", "yes"], ["high", "low", "middle"]], ids=["binary", "three"])
@pytest.mark.parametrize("form", ["m.joblib", "m.txt"])
def test_lightgbm(tmp_path, classes, form):
    """Its own format holds no names of classes."""
    labels = np.array(classes)[Y if len(classes) == 2 else LEVELS]
    model = pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=10, verbose=-1).fit(X, labels)
    if form == "m.joblib":
        alike(convert(saved(tmp_path, model), trust=True), model, X[:20])
        return
    model.booster_.save_model(tmp_path / form)
    done = convert(tmp_path / form, labels=classes)
    assert done.same == done.rows
    with Router(done.out, unsure, threshold=0) as router:
        assert [answer.value for answer in router.infer_many(list(X[:20]))] == model.predict(X[:20]).tolist()


@pytest.mark.matrix
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_regressions_of_trees(tmp_path, library):
    module = pytest.importorskip(library)
    make = {
        "xgboost": lambda: module.XGBRegressor(n_estimators=10),
        "lightgbm": lambda: module.LGBMRegressor(n_estimators=10, verbose=-1),
        "catboost": lambda: module.CatBoostRegressor(iterations=10, verbose=0, allow_writing_files=False),
    }[library]
    done = convert(saved(tmp_path, make().fit(X, X[:, 0])), trust=True)
    assert (done.same, done.difference, done.card["output"]["kind"]) == (done.rows, None, "value")


@pytest.mark.matrix
@pytest.mark.parametrize("form", ["m.joblib", "m.cbm", "m.json"])
def test_catboost(tmp_path, form):
    labels = np.array(["low", "middle", "high"])[LEVELS]
    model = pytest.importorskip("catboost").CatBoostClassifier(iterations=10, verbose=0, allow_writing_files=False).fit(X, labels)
    if form == "m.joblib":
        saved(tmp_path, model)
    else:
        model.save_model(str(tmp_path / form), form[2:])
    alike(convert(tmp_path / form, trust=form == "m.joblib"), model, X[:20])


@pytest.mark.matrix
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_names_of_columns_are_no_trouble_and_categories_are_refused(tmp_path, library):
    module, pandas = pytest.importorskip(library), pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["my age", "b", "c", "d", "e"])
    make = {
        "xgboost": lambda: module.XGBClassifier(n_estimators=5, enable_categorical=True),
        "lightgbm": lambda: module.LGBMClassifier(n_estimators=5, verbose=-1),
    }[library]
    done = convert(saved(tmp_path, make().fit(table, Y)), trust=True)
    assert done.same == done.rows
    table.to_csv(tmp_path / "s.csv", index=False)
    done = convert(saved(tmp_path, make().fit(X, Y), "a.joblib"), trust=True, sample=tmp_path / "s.csv")
    assert done.same == done.rows
    table["city"] = pandas.Categorical(np.where(X[:, 1] > 0, "Ulm", "Bonn"))
    model = make().fit(table, Y)
    with pytest.raises(PolicyError, match="has categories, which no converter writes"):
        convert(saved(tmp_path, model, "c.joblib"), trust=True)
    if library == "lightgbm":
        model.booster_.save_model(tmp_path / "c.txt")
        with pytest.raises(PolicyError, match="has categories, which no converter writes"):
            convert(tmp_path / "c.txt", tmp_path / "t.onnx")


@pytest.mark.matrix
def test_a_booster_in_a_pipeline(tmp_path):
    model = pytest.importorskip("sklearn.pipeline").make_pipeline(
        pytest.importorskip("sklearn.preprocessing").MinMaxScaler(), pytest.importorskip("xgboost").XGBClassifier(n_estimators=5)
    )
    done = convert(saved(tmp_path, model.fit(X, Y)), trust=True)
    assert done.same >= 0.99 * done.rows


@pytest.mark.matrix
def test_keras(tmp_path):
    """The last activation says the kind; a Lambda layer is code."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    for name, last in {
        "soft.keras": layers.Dense(3, activation="softmax"),
        "one.h5": layers.Dense(1, activation="sigmoid"),
    }.items():
        model = keras.Sequential([keras.Input((5,)), last])
        model.save(tmp_path / name)
        done = convert(tmp_path / name, trust=name.endswith("h5"))
        assert (done.same, done.card["output"]["kind"]) == (done.rows, "probabilities")
    keras.Sequential([keras.Input((5,)), layers.Lambda(lambda x: x * 2), layers.Dense(2)]).save(tmp_path / "code.keras")
    with pytest.raises(PolicyError, match="--trust"):
        convert(tmp_path / "code.keras")
    model.export(tmp_path / "saved", verbose=False)
    assert convert(tmp_path / "saved", trust=True).framework == "TensorFlow"


@pytest.mark.matrix
def test_pytorch(tmp_path):
    """A whole module needs one input; weights alone cannot be converted."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    torch.save(model, tmp_path / "m.pt")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    torch.jit.script(model).save(tmp_path / "s.torchscript")
    np.save(tmp_path / "x.npy", np.ones((3, 4), "float32"))
    with pytest.raises(PolicyError, match=r"--sample FILE\.npy"):
        convert(tmp_path / "m.pt", trust=True)
    with pytest.raises(ModelError, match="weights alone"):
        convert(tmp_path / "w.pth", trust=True)
    for name in ("m.pt", "s.torchscript"):
        done = convert(tmp_path / name, trust=True, sample=tmp_path / "x.npy", labels=["a", "b", "c"], kind="logits")
        assert (done.same, done.rows) == (1, 1)
        with Router(done.out, unsure, threshold=0) as router:
            assert len(router.infer_many([np.zeros((3, 4), "float32")] * 3)) == 3


@pytest.mark.slow
def test_a_hist_gradient_boosting_is_converted(tmp_path):
    """The file answers as the estimator does, also in a pipeline; one with categories is refused, which skl2onnx gets wrong."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    pipeline = pytest.importorskip("sklearn.pipeline")
    holes = np.where(np.arange(X.size).reshape(X.shape) % 7 == 0, np.float32("nan"), X)  # so that splits have a side for them
    classifier = ensemble.HistGradientBoostingClassifier(max_iter=9).fit(holes, Y)
    for model in (classifier, pipeline.make_pipeline(classifier)):
        done = convert(saved(tmp_path, model), trust=True, overwrite=True)
        assert (done.same, done.difference) == (done.rows, pytest.approx(0, abs=1e-5))
        with Router(done.out, threshold=0.0) as router:
            read = [router.infer(row) for row in X[:40]]
        assert [answer.value for answer in read] == classifier.predict(X[:40]).tolist()
        assert [answer.confidence for answer in read] == pytest.approx(classifier.predict_proba(X[:40]).max(1).tolist(), abs=1e-5)
    done = convert(
        saved(tmp_path, ensemble.HistGradientBoostingRegressor(max_iter=9).fit(X, X[:, 0])), trust=True, overwrite=True
    )
    assert done.same == done.rows
    split = np.column_stack([X[:, 0], np.digitize(X[:, 1], [-1, 0, 1])])
    file = saved(tmp_path, ensemble.HistGradientBoostingClassifier(max_iter=9, categorical_features=[1]).fit(split, Y))
    with pytest.raises(PolicyError, match="has categories, which no converter writes"):
        convert(file, trust=True, overwrite=True)
