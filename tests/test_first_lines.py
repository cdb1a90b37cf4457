"""First lines of a new user: results and addresses as they are at hand, and objects that print what they are."""

from __future__ import annotations

import json
import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from both import Tasks, sure, unsure
from commands import cli

from edgeroute import BadInput, BadReply, CallableModel, Ensemble, Function, ModelError, PlainJson, PolicyError, Router
from edgeroute.errors import Unfit
from edgeroute.testing import CannedServer, http_reply

pytestmark = pytest.mark.pure

X = np.random.default_rng(0).random((300, 3)).astype("float32")


def half(x):
    """Classify by the first number; surer further from the middle."""
    return int(x[0] > 0.5), float(min(1, abs(x[0] - 0.5) * 2))


def test_the_result_of_a_calibration_is_a_threshold():
    """With its certificate and its score, as `threshold=result.certificate, score=result.score`."""
    labels = (X[:, 0] > 0.5).astype(int)
    with Router(half, lambda x: int(x[0] > 0.5), threshold=0.5) as router:
        result = router.calibrate(list(X), list(labels), max_loss=0.1)
    with Router(half, lambda x: int(x[0] > 0.5), threshold=result) as router:
        assert repr(router) == f"<Router prefer_edge: edge from {result.certificate.threshold:.4g}, cloud>"
        assert "uncalibrated" not in router.infer(X[0]).reason


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("http://127.0.0.1:9/v1", r"OpenAIChat\(url, model=\.\.\.\)"),
        ("https://api.openai.com", r"OpenAIChat\(url, model=\.\.\.\)"),
        ("models/cat.onnx", "edgeroute serve models/cat.onnx"),
        ("grpc://edge.local:8001/cat", r"OpenInferenceGrpc\('http://HOST:PORT', model=\.\.\.\)"),
        ("http://127.0.0.1:9/", r"OpenInference\(url, model=\.\.\.\)"),
        ("http://user:secret@127.0.0.1/x?key=secret", "^((?!secret).)*$"),
    ],
)
def test_an_address_that_says_too_little_gets_the_line_to_write(given, advice):
    with pytest.raises(PolicyError, match=advice):
        Router(unsure, given, threshold=0.5)


def test_statistics_are_json_data():
    with Router([sure, unsure], unsure, threshold=0.5) as router:
        router.infer(1)
        stats = json.loads(json.dumps(router.stats().as_dict()))
    assert stats["requests"] == 1
    assert [leg["name"] for leg in stats["legs"]] == [leg.name for leg in router.stats().legs]


def test_a_router_prints_its_targets_and_thresholds():
    with Router(unsure, unsure, threshold=0.85) as router:
        assert repr(router) == "<Router prefer_edge: edge from 0.85, cloud>"


@pytest.mark.parametrize(
    "result",
    [
        {"label": "cat", "score": 0.9},
        [{"label": "dog", "score": 0.1}, {"label": "cat", "score": 0.9}],
        [[{"label": "dog", "score": 0.1}, {"label": "cat", "score": 0.9}]],
        {"sequence": "dog", "labels": ["cat", "dog"], "scores": [0.9, 0.1]},
        {"answer": "cat", "score": 0.9, "start": 3, "end": 6},
        [{"token": 7, "token_str": "cat", "sequence": "a cat", "score": 0.9}],
        {"label": "cat", "confidence": 0.9},
        {"value": "cat", "confidence": 0.9},
    ],
)
def test_labels_with_scores_are_answers_on_both_sides(kind, result):
    """As pipelines give them: of a list the best one. A URL's reply in that form is read alike, also by the score's own path."""
    for path in ("confidence", "score") if not isinstance(result, dict) or "value" not in result else ("confidence",):
        with (
            CannedServer(http_reply(json.dumps(result).encode())) as server,
            kind(unsure, PlainJson(server.url, confidence=path), threshold=0.5) as router,
        ):
            answer = router.infer("x")
            assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "cloud")
    with kind(lambda _: result, unsure, threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "edge")
        assert [answer.value for answer in router.infer_many(["x", "y"])] == ["cat", "cat"]
    with kind(unsure, lambda _: result, threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "cloud")


class Keyed:
    """An application's own value, which is no mapping."""

    def keys(self):
        """Raise, as a method of another meaning may."""
        raise RuntimeError


@pytest.mark.parametrize(
    "result",
    [
        {"labels": 3, "scores": 0.5},
        {"labels": ["cat", "dog", "cow"], "scores": [0.9]},
        [{"label": "dog", "score": None}, {"label": "cat", "score": 0.9}],
        {"label": "cat", "confidence": "high"},
        {"label": "cat", "confidence": True},
        {"value": "cat", "confidence": 95},
        {"value": "cat", "score": 12.5},
        [Keyed()],
    ],
)
def test_other_labels_with_scores_are_the_value_itself(kind, result):
    """No score is the best of them, there is not one for each label, or they are an application's own: they have no confidence."""
    with kind(lambda _: result, unsure, threshold=0.5, no_confidence="accept") as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == (result, None, "edge")
    with kind(unsure, lambda _: result, threshold=0.5) as router:
        assert (router.infer("x").value, router.infer("x").source) == (result, "cloud")


ENTITIES = [
    {"entity": "B-PER", "score": 0.99, "word": "Ann", "start": 0, "end": 3},
    {"entity": "B-LOC", "score": 0.6, "word": "Ulm"},
]
MASKS = [{"label": "cat", "score": 0.7, "mask": [[0, 1]]}]


@pytest.mark.parametrize(
    ("result", "sure"),
    [
        (ENTITIES, 0.6),
        ([ENTITIES], 0.6),
        (MASKS, 0.7),
        ([{**MASKS[0], "score": None}, *MASKS], None),
        ([{"text": "a", "score": 7.5}], None),
        ([{"score": "0.5"}], None),  # texts and booleans are labels, never scores
        ([{"score": 0.9}, {"score": True}], None),
        ([], None),
    ],
)
def test_parts_with_scores_are_as_sure_as_the_least(kind, result, sure):
    """On both sides, and by a URL (an empty list alone may be any server's nonsense); without a score each, from 0 to 1, there is no confidence. A score of one's own gets the parts."""
    accept = {"threshold": 0.5, "no_confidence": "accept"}
    with kind(lambda _: result, unsure, **accept) as router:
        answer = router.infer("x")
        assert (answer.value, answer.source, answer.confidence) == (result, "edge", pytest.approx(sure))
    seen = []
    with kind(CallableModel(lambda _: result, score=lambda parts: seen.append(parts) or 0.8), unsure, **accept) as router:
        assert (router.infer("x").confidence, seen) == (pytest.approx(0.8), [result])
    with kind(unsure, Function(lambda _: result, kind=None if result else "answers"), threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.source, answer.confidence) == (result, "cloud", pytest.approx(sure))
    if sure is not None:
        with CannedServer(http_reply(json.dumps(result).encode())) as server:
            for path, confidence in (("confidence", sure), (None, None)):
                with kind(unsure, PlainJson(server.url, confidence=path), threshold=0.5) as router:
                    answer = router.infer("x")
                    assert (answer.value, answer.source, answer.confidence) == (result, "cloud", pytest.approx(confidence))


@pytest.mark.parametrize("own", [{}, {"kind": "multilabel"}])
@pytest.mark.parametrize(
    ("result", "value", "sure"),
    [
        (["a"], ["a"], None), (["c", "A"], ["c", "a"], None), ([], [], None), ((["a", "c"], 0.9), ["a", "c"], 0.9), ("a", ["a"], None),
        (np.array([0.9, 0.1, 0.8]), ["a", "c"], 0.8),
        ([{"label": "a", "score": 0.9}, {"label": "b", "score": 0.4}, {"label": "c", "score": 0.8}], ["a", "c"], 0.6),
        ({"sequence": "x", "labels": ["a", "b"], "scores": [0.9, 0.2]}, ["a"], 0.8),
        (["z"], None, None), ([["a"]], None, None),
    ],
)  # fmt: skip
def test_several_labels_of_a_cloud(kind, own, result, value, sure):
    """Behind an edge of that kind, with or without a kind of its own: a list of labels, in the form of the edge's answers."""
    edge = CallableModel(lambda _: np.array([0.6, 0.4, 0.6]), kind="multilabel", labels=["a", "b", "c"])
    with kind(edge, Function(lambda _: result, **own), threshold=0.8) as router:
        answer = router.infer("x")
        expected = (["a", "c"], "edge", 0.6) if value is None else (value, "cloud", sure)
        assert (answer.value, answer.source, answer.confidence) == (*expected[:2], pytest.approx(expected[2]))
    if isinstance(result, list | dict) and result and "score" in str(result):
        with kind(CallableModel(lambda _: result, kind="multilabel"), mode="only_edge") as router:
            assert (router.infer("x").value, router.infer("x").confidence) == (value, pytest.approx(sure))
    if isinstance(result, list) and result == ["c", "A"]:
        reply = http_reply(json.dumps({"value": result, "confidence": 0.7}).encode())
        with CannedServer(reply) as server, kind(edge, PlainJson(server.url), threshold=0.8) as router:
            assert (router.infer("x").value, router.infer("x").confidence) == (value, pytest.approx(0.7))


def test_masks_and_keypoints_beside_their_scores(kind):
    """As one mapping: the least score."""
    for name in ("masks", "keypoints"):
        result = {name: np.zeros((2, 3)), "scores": np.array([0.9, 0.8])}
        with kind(lambda _, result=result: result, unsure, threshold=0.5) as router:
            answer = router.infer("x")
            assert (answer.value is result or [*answer.value] == [*result], answer.confidence) == (True, pytest.approx(0.8))


def test_an_awaited_label_with_its_score():
    async def pipeline(_):
        return [{"label": "cat", "score": 0.9}]

    with Tasks(pipeline, unsure, threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "edge")


@pytest.mark.parametrize("form", ["object", "predict", "predict_proba"])
@pytest.mark.parametrize("labels", [[0, 1], ["no", "yes"]])
def test_a_classifier_is_an_edge_as_it_is(form, labels):
    """Its classes are the values, and their probabilities the confidence."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    y = np.array(labels)[(X[:, 0] > 0.5).astype(int)]
    model = linear_model.LogisticRegression().fit(X, y)
    with Router(model if form == "object" else getattr(model, form), unsure, threshold=0) as router:
        answers = router.infer_many(list(X[:20]))
    assert [answer.value for answer in answers] == model.predict(X[:20]).tolist()
    assert [answer.confidence for answer in answers] == pytest.approx(model.predict_proba(X[:20]).max(1).tolist(), abs=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_classifier_is_a_cloud_as_it_is(kind, wrapped):
    """A row is read by its columns; certain of the second class, too. Its method and one without probabilities are told what to write."""
    pandas, ensemble, svm = (
        pytest.importorskip("pandas"),
        pytest.importorskip("sklearn.ensemble"),
        pytest.importorskip("sklearn.svm"),
    )
    table, y = pandas.DataFrame(X, columns=["temp", "vib", "rpm"]), np.where(X[:, 0] > 0.5, "yes", "no")
    model = ensemble.RandomForestClassifier(10, random_state=0).fit(table, y)
    turned, p = table[["rpm", "temp", "vib"]][:20], model.predict_proba(table[:20])
    with warnings.catch_warnings(), kind(unsure, Function(model, version="1") if wrapped else model, threshold=0.5) as router:
        warnings.simplefilter("error")
        for answers in (router.infer_many(turned), [router.infer(row) for row in turned.to_dict("records")]):
            assert [(answer.source, answer.value) for answer in answers] == [
                ("cloud", name) for name in model.predict(table[:20])
            ]
            assert [answer.confidence for answer in answers] == pytest.approx(p.max(1).tolist())
        assert (p[:, 0] == 0).any()
        assert router.infer({"temp": 1}).degraded
    for wrong, step in ((model.predict, "cloud=model"), (svm.SVC(), r"cloud=lambda x: model\.predict\(\[x\]\)\[0\]")):
        with pytest.raises(PolicyError, match=f"as it is: write {step}$"):
            Router(unsure, wrong, threshold=0.5)


STEPS = [
    ("m.pt", r"edgeroute convert m\.pt --trust --sample input\.npy.*torch\.onnx\.export"), ("M.PTH", "torch.onnx.export"),
    ("m.ckpt", "edgeroute convert"), ("m.bin", "edgeroute convert"), ("m.torchscript", "edgeroute convert"),
    ("m.safetensors", "torch.onnx.export"), ("m.pte", "torch.onnx.export"), ("m.nemo", "model.export"),
    ("m.task", r"`unzip m\.task`, and give the \.tflite file"),
    ("m.keras", r"edgeroute convert m\.keras` .*tflite"), ("m.h5", r"edgeroute convert m\.h5 --trust` .*tflite"),
    ("m.joblib", "edgeroute convert m.joblib --trust.*predict_proba"), ("m.pkl", "edgeroute convert m.pkl --trust"),
    ("m.ubj", "XGBoost"), ("m.json", "XGBoost"), ("m.txt", "LightGBM"), ("m.cbm", "CatBoost"), ("m.engine", "ONNX file"),
    ("p.toml", r"is read by Router\.from_policy\('p\.toml'\)"), ("p.yaml", "from_policy"),
    ("google/vit-base", r"on a hub.*edge=pipeline\(model='google/vit-base'\)"), ("Qwen/Qwen2.5-0.5B", "on a hub"),
    ("hf://google/vit", "model='google/vit'"), ("https://huggingface.co/google/vit", "model='google/vit'"),
    ("https://huggingface.co/google/vit/resolve/main/model.onnx", "model='google/vit'"), ("m.xyz", "edgeroute.register"),
    ("https://example.com/m.onnx", "download it"), ("http://127.0.0.1:9/m.GGUF", "download it"), ("models/m.xyz", "edgeroute.register"), ("distilbert-base-uncased", r"on a hub.*model='distilbert-base-uncased'"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "step"), STEPS)
def test_a_file_that_needs_a_step_gets_the_step(path, step):
    with pytest.raises(PolicyError, match=step):
        Router(path, unsure, threshold=0.5)


@pytest.mark.parametrize(("path", "step"), [pair for pair in STEPS if not re.search("register|from_policy", pair[1])])
def test_a_policy_and_a_command_say_the_step(tmp_path, path, step):
    policy = tmp_path / "policy.toml"
    policy.write_text(f'threshold = 0.5\n[edge]\npath = "{path}"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n')
    code, out, err = cli("check", "-p", policy)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(rf"edge\.path: found .*which no runtime runs: .*{step}", err)
    if "/" in path and "://" not in path:
        assert re.search(step, cli("inspect", path, cwd=tmp_path)[2])
    if "/" not in path:  # an address is inspected
        (tmp_path / path).write_bytes(b"")
        for command in ("inspect", "check") if path != "m.json" else ("inspect",):
            code, out, err = cli(command, path, cwd=tmp_path)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert re.search(step, err)


def test_a_model_is_checked_without_a_policy(fashion):
    code, out, err = cli("check", fashion / "edge.int8.onnx")
    assert (code, err) == (0, "")
    assert "edge.int8.onnx is ready" in out


@pytest.mark.parametrize(
    ("files", "step"),
    [
        (["saved_model.pb"], "edgeroute convert .*model --trust"),
        (["config.json", "model.safetensors"], "optimum-cli export onnx --model"),
        (["config.json", "model.onnx"], r"give the file in it, '.*model\.onnx'"),
        ([], "expected a file that ends in"),
    ],
    ids=["saved-model", "transformers", "exported", "empty"],
)
def test_a_folder_gets_the_step_of_what_is_in_it(tmp_path, files, step):
    (tmp_path / "model").mkdir()
    for name in files:
        (tmp_path / "model" / name).write_text("")
    with pytest.raises(PolicyError, match=step):
        Router(tmp_path / "model", unsure, threshold=0.5)


def estimators():
    """Those without probabilities of one answer, with their names, and what the error says to write."""
    linear_model, svm = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.svm")
    several = pytest.importorskip("sklearn.multioutput").MultiOutputClassifier(linear_model.LogisticRegression())
    y = (X[:, 0] > 0.5).astype(int)
    regression, margins = linear_model.LinearRegression().fit(X, y), svm.LinearSVC().fit(X, y)
    value, calibrated = r"lambda x: \(model\.predict\(\[x\]\)\[0\], None\)", r"CalibratedClassifierCV\(model\)\.fit\(X, y\)"
    yield from ((regression, "LinearRegression", value), (regression.predict, r"LinearRegression\.predict", value))
    yield from ((margins, "LinearSVC", calibrated), (margins.predict, r"LinearSVC\.predict", calibrated))
    yield several.fit(X, np.c_[y, 1 - y]), "MultiOutputClassifier", value


def test_an_estimator_without_probabilities_gets_the_line_to_write():
    """As an object, and as a method, which takes a table and not one input; the line works."""
    for edge, name, step in estimators():
        with pytest.raises(PolicyError, match=rf"edge= takes no {name} as it is: write edge={step}"):
            Router(edge, unsure, threshold=0.5)
        model = getattr(edge, "__self__", edge)
        with Router(lambda x, model=model: (model.predict([x])[0], None), mode="only_edge") as router:
            assert np.all(router.infer(X[0]).value == model.predict(X[:1])[0])
        if "Calibrated" in step:
            y = (X[:, 0] > 0.5).astype(int)
            with Router(pytest.importorskip("sklearn.calibration").CalibratedClassifierCV(model).fit(X, y)) as router:
                assert router.infer(X[0]).confidence >= 0.5


def test_a_batch_of_keras_and_a_hard_vote_get_their_lines():
    """By which they give probabilities: Keras's `predict` takes a batch, and hard votes give classes alone."""
    net = type("Sequential", (), {"__module__": "keras.src.models.sequential", "predict": lambda self, x: x})()
    with pytest.raises(PolicyError, match=r"as it is: write edge=lambda x: model\.predict\(x\[None\], verbose=0\)\[0\]"):
        Router(net.predict, unsure, threshold=0.5)
    votes = pytest.importorskip("sklearn.ensemble").VotingClassifier(
        [("a", pytest.importorskip("sklearn.naive_bayes").GaussianNB())]
    )
    with pytest.raises(PolicyError, match=r'write edge=VotingClassifier\(\.\.\., voting="soft"\)'):
        Router(votes.fit(X, X[:, 0] > 0.5), unsure, threshold=0.5)


def test_an_object_with_a_method_of_that_name_is_a_function():
    class Mine:
        def predict(self, x):
            return x, 0.9

    with Router(Mine().predict, unsure, threshold=0.5) as router:
        assert (router.infer(3).value, router.infer(3).source) == (3, "edge")


def test_a_row_of_a_table_is_read_by_the_names_of_its_columns():
    """As a mapping, and as pandas has it."""
    pandas, compose = pytest.importorskip("pandas"), pytest.importorskip("sklearn.compose")
    pipeline, preprocessing = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.preprocessing")
    table = pandas.DataFrame({"age": X[:, 0], "city": np.where(X[:, 1] > 0.5, "Ulm", "Bonn")})
    columns = compose.make_column_transformer((preprocessing.OneHotEncoder(), ["city"]), remainder="passthrough")
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = pipeline.make_pipeline(columns, linear_model.LogisticRegression()).fit(table, np.where(X[:, 0] > 0.5, "yes", "no"))
    with Router(model, unsure, threshold=0) as router:
        for x in ({"city": "Ulm", "age": 0.9}, table.iloc[0]):
            answer = router.infer(x)
            given = pandas.DataFrame([x])
            assert (answer.source, answer.value) == ("edge", model.predict(given)[0])
            assert answer.confidence == pytest.approx(model.predict_proba(given).max(), abs=1e-6)


def refused(kind, edge, x, why, many=False):
    """The input is refused as the caller's, and nothing is sent."""
    sent = []
    with kind(edge, lambda x: sent.append(x) or "cloud", threshold=0) as router, pytest.raises(BadInput, match=why):
        router.infer_many(x) if many else router.infer(x)
    assert sent == []


WRONG = [{"message": "x"}, [1, 2], "hi", None, [[1, 2, 3]], [[1], [2, 3]], {1, 2}, ["a", 2, 3]]


def test_a_row_that_no_classifier_takes_is_the_callers_fault_and_not_sent(kind):
    """As a file's; of a batch its number is named, and nothing of the batch is sent."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.LogisticRegression().fit(X, X[:, 0] > 0.5)
    for x in [*WRONG, [1, 2, np.nan]]:
        refused(kind, model, x, "LogisticRegression: expected 3 numbers")
        refused(kind, model, [*X[:2], x], "input 2 of the batch: LogisticRegression: expected 3 numbers", many=True)


def test_the_input_of_a_vectorizer(kind):
    """A text or a mapping, in a search, too."""
    linear_model, text = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.feature_extraction")
    make_pipeline, search = pytest.importorskip("sklearn.pipeline").make_pipeline, pytest.importorskip("sklearn.model_selection")
    for vectorizer, rows, wanted in (
        (text.text.TfidfVectorizer(), ["good day", "bad day"] * 10, "text"),
        (text.DictVectorizer(), [{"a": 1}, {"b": 2}] * 10, "mapping"),
    ):
        model = make_pipeline(vectorizer, linear_model.LogisticRegression()).fit(rows, [1, 0] * 10)
        wide = search.GridSearchCV(model, {"logisticregression__C": [1.0]}, cv=2).fit(rows, [1, 0] * 10)
        for edge in (model, wide):
            with kind(edge, unsure, threshold=0) as router:
                assert [answer.value for answer in router.infer_many(rows[:2])] == [1, 0]
            for x in ([1, 2], None, 3):
                refused(kind, edge, x, f"expected a {wanted}, got a")


@pytest.fixture
def machine():
    """A forest, fitted on a table with names, and the table."""
    pandas, ensemble = pytest.importorskip("pandas"), pytest.importorskip("sklearn.ensemble")
    table = pandas.DataFrame(X * [1, 100, 1000], columns=["temp", "vib", "rpm"])
    return ensemble.RandomForestClassifier(10, random_state=0).fit(table, np.where(X[:, 0] > 0.5, "broken", "ok")), table


def test_missing_columns_are_named(kind, machine):
    """With a misspelt one; no value of the input is in the message."""
    model, table = machine
    for x, why in (
        ({"temp": 56.3}, "the input lacks 'vib', 'rpm', of"),
        ({"temp": 1, "vbi": 2, "rpm": 3}, "the input lacks 'vib', of .*'vbi': did you mean \"vib\""),
        ({"message": "secret"}, "^((?!secret).)*lacks 'temp', 'vib', 'rpm'"),
        ({"temp": "secret", "vib": 1, "rpm": 2}, "^((?!secret).)*cannot read 'temp'"),
        (table[:1], r"a table of 1 rows: df\.iloc\[0\]"),
    ):
        refused(kind, model, x, why)
    for x in [x for x in WRONG if x != {"message": "x"}]:
        refused(kind, model, x, "expected 3 values, temp, vib, rpm|cannot read 'temp'")
    records = table.to_dict("records")
    refused(kind, model, [*records[:2], {"temp": 1}], "input 2 of the batch: .*lacks 'vib', 'rpm'", many=True)
    refused(kind, model, [*records[:5], {"vib": 1}, *records[:7]], "input 5 of the batch: .*lacks 'temp', 'rpm'", many=True)


def test_rows_in_every_form_are_read_by_name(kind, machine):
    """In any order of the columns, mixed in a batch, and without a warning of the estimator."""
    model, table = machine
    turned, expected = table[["rpm", "temp", "vib"]], model.predict(table[:4]).tolist()
    tuples = list(turned[:4].itertuples())
    mixed = [turned.iloc[0], table.to_numpy()[1], tuples[2], turned.to_dict("records")[3] | {"more": 1}]
    with warnings.catch_warnings(), kind(model, unsure, threshold=0) as router:
        warnings.simplefilter("error")
        assert [answer.value for answer in router.infer_many(turned[:4])] == expected
        for rows in (turned.to_dict("records")[:4], list(table.to_numpy()[:4]), tuples, mixed):
            assert [answer.value for answer in router.infer_many(rows)] == expected
            assert [router.infer(x).value for x in rows] == expected


def test_an_estimator_that_is_not_fitted(kind):
    """Is refused as the router is made, and not by each request; one whose fit leaves no classes, or nothing, is taken."""
    linear_model, pipeline = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.pipeline")
    base = pytest.importorskip("sklearn.base")
    for model in (linear_model.LogisticRegression(), pipeline.make_pipeline(linear_model.LogisticRegression())):
        with pytest.raises(PolicyError, match=r"(LogisticRegression|Pipeline) is not fitted: call its fit\(X, y\) first"):
            kind(model, unsure, threshold=0.5)

    class Outliers(base.BaseEstimator):
        def fit(self, rows, y=None):
            self.limit_ = 3.0
            return self

        def predict_proba(self, rows):
            return [[0.1, 0.9] for _ in rows]

    class Rule(Outliers):
        def fit(self, rows, y=None):
            return self

    for model in (Outliers(), pipeline.make_pipeline(Outliers()), Rule()):
        with kind(model.fit([[1.0]]), unsure, threshold=0.5) as router:
            assert router.infer([9.0]).value == 1


def test_columns_that_a_pipeline_drops_may_be_missing(kind):
    """A category that was not fitted goes to the cloud, as what another model may know."""
    pandas, compose = pytest.importorskip("pandas"), pytest.importorskip("sklearn.compose")
    pipeline, preprocessing = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.preprocessing")
    linear_model = pytest.importorskip("sklearn.linear_model")
    table = pandas.DataFrame({"id": range(300), "age": X[:, 0], "city": np.where(X[:, 1] > 0.5, "Ulm", "Bonn")})
    columns = compose.make_column_transformer((preprocessing.OneHotEncoder(), ["city"]), ("passthrough", ["age"]))
    model = pipeline.make_pipeline(columns, linear_model.LogisticRegression()).fit(table, X[:, 0] > 0.5)
    with kind(model, lambda x: (bool(x["age"] > 0.5), 0.9), threshold=0) as router:
        rows = [{"city": "Ulm", "age": 0.9}, {"city": "Bonn", "age": 0.1, "id": 7}]
        assert [(answer.source, answer.value) for answer in router.infer_many(rows)] == [("edge", True), ("edge", False)]
        assert router.infer({"city": "Paris", "age": 0.9}).source == "cloud"
        result = router.evaluate(table.assign(label=X[:, 0] > 0.5)[["label", "city", "age", "id"]], "label", ask_cloud=False)
        assert result.accuracy["edge"].found > 280
    refused(kind, model, {"city": "Ulm"}, "lacks 'age', of")
    refused(kind, model, {"city": "Ulm", "age": "old"}, "cannot read '.*age'")


def test_a_table_is_evaluated_by_the_names_of_its_columns(machine):
    """In any order, with more columns; a missing one is named."""
    model, table = machine
    full = table.assign(label=model.predict(table), id="x")[["label", "rpm", "id", "temp", "vib"]]
    with Router(model, None, threshold=0.5) as router:
        assert router.evaluate(full, "label").accuracy["edge"].found == len(full)
        assert router.calibrate(full, "label", max_error=0.3).certificate.threshold < 1
        with pytest.raises(BadInput, match="the input lacks 'vib', of the columns"):
            router.evaluate(full.drop(columns="vib"), "label")


@pytest.mark.matrix
def test_a_booster_gets_the_command():
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.XGBClassifier(n_estimators=2).fit(X, (X[:, 0] > 0.5).astype(int)).get_booster()
    for edge in (booster, booster.predict):
        with pytest.raises(PolicyError, match="edgeroute convert"):
            Router(edge, unsure, threshold=0.5)
    with pytest.raises(PolicyError, match=r'x: large\.infer\(x\)\.value after large = Router\("model\.onnx", mode="only_edge"\)'):
        Router(unsure, booster, threshold=0.5)


@pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
def test_categories_of_pandas(package):
    """Texts and numbers are the categories of the fit, and a missing one is missing.

    One that was not fitted is for another model, and text for a number the caller's fault.
    """
    pandas, module = pytest.importorskip("pandas"), pytest.importorskip(package)
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    cities, zones = rng.choice(["Ulm", "Bonn", "Kiel"], 300).astype(object), pandas.Categorical(rng.integers(0, 4, 300))
    cities[rng.random(300) < 0.2] = None
    table = pandas.DataFrame({"age": rng.normal(40, 10, 300), "zone": zones, "city": pandas.Categorical(cities)})
    right = ((cities == "Ulm") & (table["age"] > 38)).astype(int)
    clf = (
        module.LGBMClassifier(n_estimators=5, verbose=-1)
        if package == "lightgbm"
        else module.XGBClassifier(n_estimators=5, enable_categorical=True)
    ).fit(table, right)
    p = clf.predict_proba(table)[:30]
    named = [
        {"age": row.age, "zone": row.zone, "city": row.city if row.city in cities else None} for row in table[:30].itertuples()
    ]
    assert any(row["city"] is None for row in named)
    with Router(clf, lambda x: ("asked", 1.0), threshold=0.0) as router:
        for rows in (named, [table.iloc[i] for i in range(30)]):
            for answers in (router.infer_many(rows), [router.infer(row) for row in rows]):
                assert [answer.value for answer in answers] == p.argmax(1).tolist()
                assert [answer.confidence for answer in answers] == pytest.approx(p.max(1).tolist(), rel=1e-5)
        for other in ({"city": "Paris"}, {"zone": 7}):
            assert router.infer({"age": 45.0, "zone": 1, "city": "Ulm"} | other).source == "cloud"
        with pytest.raises(BadInput, match="cannot read 'age'"):
            router.infer({"age": "old", "zone": 1, "city": "Ulm"})
        with pytest.raises(BadInput):
            router.infer({"age": 45.0})
    with Router(clf, threshold=0.0) as router, pytest.raises(Unfit):  # and no warning of pandas
        router.infer({"age": 45.0, "zone": 1, "city": "Paris"})


def test_codes_of_xgboost(monkeypatch):
    """Where the fit was on codes there are no categories to ask pyarrow for."""
    pandas, module = pytest.importorskip("pandas"), pytest.importorskip("xgboost")
    table = pandas.DataFrame({"rpm": X[:, 1], "code": (X[:, 0] > 0.5).astype(int)})
    clf = module.XGBClassifier(n_estimators=5, enable_categorical=True, feature_types=["q", "c"]).fit(table, table["code"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with Router(clf, unsure, threshold=0.0) as router:
        assert router.infer({"rpm": 0.5, "code": 1}).value == 1


def test_ordered_categories_of_lightgbm():
    """As it names no place for them, texts are theirs in order."""
    pandas, module = pytest.importorskip("pandas"), pytest.importorskip("lightgbm")
    sizes = pandas.Categorical(np.where(X[:, 0] > 0.5, "large", "small"), ["small", "large"], ordered=True)
    table = pandas.DataFrame({"size": sizes, "rpm": X[:, 1]})
    clf = module.LGBMClassifier(n_estimators=5, verbose=-1).fit(table, X[:, 0] > 0.5)
    with Router(clf, unsure, threshold=0.0) as router:
        assert router.infer({"size": "large", "rpm": 0.5}).value is True
    table.insert(0, "zone", pandas.Categorical((X[:, 1] > 0.5).astype(int)))  # of which it says nothing
    clf = module.LGBMClassifier(n_estimators=5, verbose=-1).fit(table, X[:, 0] > 0.5, categorical_feature=["size"])
    with Router(clf, unsure, threshold=0.0) as router, pytest.raises(BadInput, match="cannot read 'size'"):
        router.infer({"size": "large", "rpm": 0.5, "zone": 1})


def test_names_of_catboost(kind):
    """A row is a mapping, also with categories; an unfitted one is refused as the router is made."""
    pandas, module = pytest.importorskip("pandas"), pytest.importorskip("catboost")
    clf = module.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False)
    with pytest.raises(PolicyError, match=r"CatBoostClassifier is not fitted: call its fit\(X, y\) first"):
        kind(clf, unsure, threshold=0.5)
    table = pandas.DataFrame({"age": X[:, 0], "city": np.where(X[:, 1] > 0.5, "Ulm", "Bonn")})
    clf.fit(table, np.where(X[:, 1] > 0.5, "yes", "no"), cat_features=["city"])
    p = clf.predict_proba(table)[:9].max(1).tolist()
    with kind(clf, unsure, threshold=0.0) as router:
        for rows in (table[:9].to_dict("records"), [{"city": row["city"], "age": row["age"]} for _, row in table[:9].iterrows()]):
            answers = router.infer_many(rows)
            assert [answer.value for answer in answers] == clf.predict(table[:9]).tolist()
            assert [answer.confidence for answer in answers] == pytest.approx(p, rel=1e-5)
        with pytest.raises(BadInput, match="the input lacks 'city'"):
            router.infer({"age": 0.5})


@pytest.mark.parametrize("classes", [[0, 1], ["no", "yes"], [False, True]], ids=["numbers", "texts", "bools"])
def test_a_threshold_of_catboost(kind, classes):
    """Which may be set after the fit: the answer is what it predicts."""
    clf = pytest.importorskip("catboost").CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False)
    clf.fit(X, np.array(classes)[(X[:, 0] > 0.5).astype(int)])
    with kind(clf, threshold=0.0) as router:
        for threshold in (0.5, 0.9):
            clf.set_probability_threshold(threshold)
            p, predicted = clf.predict_proba(X), clf.predict(X).tolist()
            assert (clf.classes_[p.argmax(1)] != clf.predict(X)).any() == (threshold > 0.5)
            answers = router.infer_many(list(X))
            assert [answer.value for answer in answers] == predicted
            at = [clf.classes_.tolist().index(value) for value in predicted]
            assert [answer.confidence for answer in answers] == pytest.approx(p[np.arange(len(X)), at].tolist())


def estimator(classes, *p):
    """A classifier that always gives these probabilities of its classes."""
    return SimpleNamespace(classes_=np.array(classes), predict_proba=lambda rows: np.array([p] * len(rows)))


@pytest.mark.parametrize("p", [(1.0,), (1.0, 0.0)], ids=["scikit-learn's", "LightGBM's"])
def test_an_estimator_of_one_class(kind, p):
    """Its class is the value, and not the probability of it."""
    with kind(estimator(["fine"], *p), unsure, threshold=0.5) as router:
        answer = router.infer(X[0])
    assert (answer.value, answer.confidence, answer.source) == ("fine", pytest.approx(1.0), "edge")


def test_an_estimator_of_several_labels(kind):
    """Gives them with a kind; without one its probabilities, which do not sum to 1, are refused with what to write."""
    several = estimator(["a", "b", "c"], 0.1, 0.9, 0.8)
    for labels, expected in ((None, ["b", "c"]), ("xyz", ["y", "z"])):
        model = CallableModel(several, kind="multilabel", labels=labels and [*labels])
        with kind(model, unsure, threshold=0.5) as router:
            answer = router.infer(X[0])
        assert (answer.value, answer.confidence) == (expected, pytest.approx(0.8))
    with kind(lambda x: ("?", 0.1), Function(several, kind="multilabel"), threshold=0.5) as router:
        assert router.infer(X[0]).value == ["b", "c"]
    member = CallableModel(several)
    Ensemble([member, member])
    for model in (several, member, lambda x: {"a": 0.1, "b": 0.9, "c": 0.8}):  # the member of an ensemble is as it was
        with kind(model, threshold=0.5) as router, pytest.raises(ModelError, match=r'CallableModel\(model, kind="multilabel"\)'):
            router.infer(X[0])


def test_an_estimator_whose_probabilities_are_all_0(kind):
    """As of a one-against-all classifier of which no part is for it: its class is one of them, with little confidence."""
    with kind(estimator(["a", "b", "c"], 0.0, 0.0, 0.0), threshold=0.0) as router:
        answer = router.infer(X[0])
    assert (answer.value, answer.confidence) == ("a", pytest.approx(1 / 3))


def test_an_estimator_whose_probabilities_are_not_numbers(kind):
    """Has no confidence for them: the cloud is asked, and nothing says that they do not sum to 1."""
    with kind(estimator(["a", "b"], np.nan, np.nan), unsure, threshold=0.5) as router:
        assert router.infer(X[0]).source == "cloud"
        assert router.leg("edge").failed == 0


def test_a_classifier_with_a_threshold_of_its_own(kind):
    """Its answer is what it predicts, not the most likely class, and the confidence is the probability of that."""
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import FixedThresholdClassifier
    from sklearn.pipeline import make_pipeline

    clf = FixedThresholdClassifier(LogisticRegression(), threshold=0.9, response_method="predict_proba")
    for model in (clf, make_pipeline(clf)):
        model.fit(X, np.where(X[:, 0] > 0.5, "yes", "no"))
        p, right = model.predict_proba(X), model.predict(X)
        assert (model.classes_[p.argmax(1)] != right).any()
        with kind(model, threshold=0.0) as router:
            answers = router.infer_many(list(X))
        assert [answer.value for answer in answers] == right.tolist()
        assert [answer.confidence for answer in answers] == pytest.approx(np.where(right == "yes", p[:, 1], p[:, 0]).tolist())
    with kind(clf, threshold=0.0, score=lambda p: max(p.values())) as router:  # a score, kinds and ensembles have what it gives
        assert router.infer(X[0]).confidence == pytest.approx(clf.predict_proba(X[:1]).max())
    with kind(CallableModel(clf, kind="multilabel"), threshold=0.0) as router:
        assert type(router.infer(X[0]).value) is list
    assert Ensemble([clf, clf]).run([X[0]])[0][0] in {"yes", "no"}


@pytest.mark.slow
def test_thresholds_inside_other_estimators(kind):
    """Where the class that is predicted need not be the most likely one, the answer is what `predict` says, however deep that is."""
    pytest.importorskip("sklearn.frozen")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.ensemble import StackingClassifier
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline

    class Own(ClassifierMixin, BaseEstimator):
        """A class of the application."""

        def fit(self, rows, right):
            self.model_ = GaussianNB().fit(rows, right)
            self.classes_ = self.model_.classes_
            return self

        def predict_proba(self, rows):
            return self.model_.predict_proba(rows)

        def predict(self, rows):
            return self.classes_[(self.predict_proba(rows)[:, 1] > 0.99).astype(int)]

    right = np.where(X[:, 0] > 0.5, "yes", "no")
    own = FixedThresholdClassifier(GaussianNB(), threshold=0.99, response_method="predict_proba")
    last = FixedThresholdClassifier(LogisticRegression(), threshold=0.8, response_method="predict_proba")
    found = GridSearchCV(own, {"threshold": [0.99]}, cv=2)
    for model in (
        FrozenEstimator(own.fit(X, right)), make_pipeline(make_pipeline(own)), make_pipeline(FrozenEstimator(own)),
        make_pipeline(found), FrozenEstimator(found.fit(X, right)), Own(), make_pipeline(Own()),
        StackingClassifier([("a", GaussianNB())], last, cv=2),
    ):  # fmt: skip
        predicted = model.fit(X, right).predict(X)
        assert (model.classes_[model.predict_proba(X).argmax(1)] != predicted).any(), model
        with kind(model, threshold=0.0) as router:
            assert [answer.value for answer in router.infer_many(list(X))] == predicted.tolist(), model


def test_probabilities_that_need_not_sum_to_1(kind):
    """As those of one-against-all classifiers: a cloud's class, and an ensemble's, is the most likely one."""
    ova = estimator(["a", "b", "c"], 0.1, 0.9, 0.2)
    for edge, cloud, source in ((lambda x: ("?", 0.1), ova, "cloud"), (Ensemble([ova, ova]), unsure, "edge")):
        with kind(edge, cloud, threshold=0.4) as router:
            answer = router.infer(X[0])
        assert (answer.value, answer.source, answer.degraded) == ("b", source, False)


def test_one_column_without_classes(kind):
    """As after a sigmoid, it is the probability of class 1 of two."""
    model = SimpleNamespace(predict_proba=lambda rows: np.array([[0.9]] * len(rows)))
    with kind(CallableModel(model, kind="probabilities"), unsure, threshold=0.5) as router:
        answer = router.infer(X[0])
    assert (answer.value, answer.confidence) == (1, pytest.approx(0.9))


@pytest.mark.parametrize("names", [None, []])
def test_an_estimator_without_names_of_its_own(names):
    """It may have the attribute all the same."""
    model = estimator(["a", "b"], 0.2, 0.8)
    model.feature_names_ = names
    with Router(model, unsure, threshold=0.5) as router:
        assert router.infer(X[0]).value == "b"


def test_an_ensemble_of_estimators():
    """Has the class with the greatest mean probability; estimators of other classes are refused."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB

    rows, right = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[right]
    models = [LogisticRegression(max_iter=500).fit(rows, names), GaussianNB().fit(rows, names)]
    p = np.mean([model.predict_proba(rows) for model in models], axis=0)
    for members in (models, [model.predict_proba for model in models]):
        with Router(Ensemble(members), threshold=0.0) as router:
            answers = router.infer_many(list(rows))
        assert [answer.value for answer in answers] == models[0].classes_[p.argmax(1)].tolist()
        assert [answer.confidence for answer in answers] == pytest.approx(p.max(1).tolist(), rel=1e-6)
    with (
        Router(Ensemble([models[0], GaussianNB().fit(rows, right)]), threshold=0.0) as router,
        pytest.raises(BadReply, match="other classes"),
    ):
        router.infer(rows[0])


def test_a_module_of_torch_is_answered_with_its_line():
    """Known by its class, without torch: the line that is said makes an edge of it; a function around it is one."""
    module = type("Module", (), {"__module__": "torch.nn.modules.module", "__call__": lambda self, x: np.hstack([x, -x])})
    net = type("Net", (module,), {})()
    says = r"Net is a torch\.nn\.Module, which takes a batch of tensors: write edge=lambda x: net\("
    for make in (lambda: Router(net, threshold=0.5), lambda: Router([net, sure], threshold=0.5), lambda: Ensemble([net, net])):
        with pytest.raises(PolicyError, match=says):
            make()
    with Router(lambda x: net(x[None])[0], threshold=0.5) as router:
        assert router.infer(np.float32([2.0])).source == "edge"
    model = type("Bert", (module,), {"__module__": "transformers.models.bert.modeling_bert"})()
    with pytest.raises(PolicyError, match=r"edge=pipeline\(task, model, tokenizer=tokenizer\)"):
        Router(model, threshold=0.5)
