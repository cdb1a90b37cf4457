"""Files of other programs beside a model are no cards: the model runs as without one, and `check` names them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from both import makes
from commands import cli
from tiny import linear

from edgeroute import ModelError, OnnxModel, Router
from edgeroute.edge.model_card import Card, card_path
from edgeroute.edge.runtimes_variants_ensemble import load

pytestmark = pytest.mark.pure

make = makes()
OTHERS = {
    "xgboost": {"learner": {"attributes": {}, "objective": {"name": "reg"}}, "version": [2, 1, 0]},
    "lightgbm": {"name": "tree", "version": "v4", "num_class": 1, "label_index": 0, "objective": "binary", "tree_info": []},
    "micro-wake-word": {"type": "micro", "wake_word": "okay", "author": "somebody", "model": "okay.tflite", "version": 2, "micro": {}},
    "piper": {"audio": {"sample_rate": 22050}, "espeak": {"voice": "en"}, "inference": {}, "num_symbols": 256, "dataset": "x"},
    "tensorflow.js": {"format": "graph-model", "modelTopology": {}, "weightsManifest": [{"paths": ["a.bin"]}]},
    "hugging face": {"architectures": ["X"], "id2label": {"0": "a"}, "label2id": {"a": 0}, "vocab_size": 9},
    "a list": [1, 2, 3],
    "text": "a",
    "thousands of keys": {f"key{i}": i for i in range(50_000)},
}  # fmt: skip
X = np.array([3, 0, 0, 0], np.float32)


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", ["small.json", "small.onnx.json"])
def test_they_are_not_read(make, tmp_path, data, name):
    """In either place; that says check, which is ready."""
    path = linear(tmp_path / "small.onnx")
    (tmp_path / name).write_text(json.dumps(data))
    router = make(path, threshold=0.5)
    report = router.check()
    assert report.ok
    assert f"{name} is another program's file, and was not read as a card; there is nothing to do" in report.lines[0]
    assert router.infer(X).value == 0
    assert OnnxModel(path).files == []
    assert "another program" not in str(make(load(path, card=False)).check())
    assert f"{name} is there, and no card" in " ".join(cli("inspect", path)[1].split())


def test_the_card_behind_one(tmp_path):
    """Is read, and written where it is."""
    path = linear(tmp_path / "voice.onnx", card={"labels": ["a", "b", "c"]})
    path.with_name("voice.onnx.json").write_text(json.dumps(OTHERS["piper"]))
    assert OnnxModel(path).labels == ("a", "b", "c")
    assert card_path(path) == path.with_suffix(".json")


@pytest.mark.parametrize(("taken", "free"), [("small.json", "small.onnx.json"), ("small.onnx.json", "small.json")])
def test_a_card_is_written_beside_them(tmp_path, taken, free):
    """In the other place; the file of the other program stays."""
    path = linear(tmp_path / "small.onnx")
    text = json.dumps(OTHERS["xgboost"])
    (tmp_path / taken).write_text(text)
    code, _, err = cli("inspect", path, "--write")
    assert code == 0, err
    assert (tmp_path / taken).read_text() == text
    assert Card.beside(path).path == tmp_path / free


def test_one_that_is_larger_than_any_card(tmp_path):
    """As a model of XGBoost in JSON may be."""
    path = linear(tmp_path / "small.onnx")
    with path.with_suffix(".json").open("wb") as file:
        file.truncate((1 << 24) + 1)
    assert OnnxModel(path).card.foreign == path.with_suffix(".json")
    with pytest.raises(ModelError, match="more than 16,777,216 bytes"):
        OnnxModel(path, card=path.with_suffix(".json"))


MISTAKES = [
    ({"lables": ["a"]}, 'lables: there is no such key: did you mean "labels"?'),
    ({"Outputs": {}, "a": 1, "b": 2}, "Outputs: there is no such key: "),
    ({"name": "doors", "author": "me"}, "author: there is no such key: "),
    ({"nmae": "doors", "notess": "", "labels": ["a"]}, 'nmae: there is no such key: did you mean "name"?'),
    ({"labels": ["a"], "x": 1, "y": 2, "z": 3}, "x, y, z: there are no such keys; if another program wrote this file, "),
    ({"preprocessing": {}}, 'preprocessing: there is no such key: did you mean "preprocess"?'),
    ({"output": {"kind": "logit"}}, 'output.kind: found "logit": did you mean "logits"?'),
]


@pytest.mark.parametrize(("data", "said"), MISTAKES)
def test_a_mistake_in_a_card(tmp_path, data, said):
    """Is one line, with the nearest key; what is given as the card is one, whatever is in it."""
    path = linear(tmp_path / "small.onnx", card=data)
    for given in (None, path.with_suffix(".json")):
        with pytest.raises(ModelError) as refused:
            OnnxModel(path, card=given)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    assert OnnxModel(path, card=False).card.path is None
    for other in OTHERS.values():
        path.with_suffix(".json").write_text(json.dumps(other))
        with pytest.raises(ModelError):
            OnnxModel(path, card=path.with_suffix(".json"))


TEACHABLE = {
    "tfjsVersion": "1.3.1", "tmVersion": "2.4.7", "packageVersion": "0.8.4", "packageName": "@teachablemachine/image",
    "timeStamp": "2026-01-01T00:00:00.000Z", "userMetadata": {}, "modelName": "doors", "labels": ["open", "shut"], "imageSize": 224,
}  # fmt: skip


def test_a_file_of_another_program_with_a_key_of_a_card(tmp_path):
    """Its labels may be meant: so it is refused, in a line with what else to write."""
    path = linear(tmp_path / "small.onnx", card=TEACHABLE)
    with pytest.raises(ModelError) as refused:
        OnnxModel(path)
    text = (
        "tfjsVersion, tmVersion, packageVersion, ...: there are no such keys; if another program wrote this file, give the model"
    )
    assert str(refused.value).endswith(f"small.json is not a model card: {text} card=False")
    assert OnnxModel(path, card=False).labels is None


@pytest.mark.parametrize("text", ["", "{", "\0", "labels: a"])
def test_a_file_that_is_no_json(tmp_path, text):
    """May be a card that was cut, so it is an error, which `inspect --write --force` ends."""
    path = linear(tmp_path / "small.onnx")
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ModelError, match=r"is not JSON: [^\n]*; if it is no card, give the model card=False$"):
        OnnxModel(path)
    assert "small.json is there, and wrong:" in " ".join(cli("inspect", path)[1].split())
    assert cli("inspect", path, "--write", "--force")[0] == 0
    assert OnnxModel(path).card.path == path.with_suffix(".json")


def test_policies(tmp_path, monkeypatch):
    """Have `card = false`, in each form and by the environment."""
    linear(tmp_path / "small.onnx", card={"lables": ["a"]})
    toml = tmp_path / "policy.toml"
    toml.write_text('threshold = 0.5\n[edge]\npath = "small.onnx"\ncard = false\n')
    (tmp_path / "policy.json").write_text('{"threshold": 0.5, "edge": {"path": "small.onnx", "card": false}}')
    (tmp_path / "policy.yaml").write_text("threshold: 0.5\nedge:\n  path: small.onnx\n  card: false\n")
    for name in ("policy.toml", "policy.json", "policy.yaml"):
        with Router.from_policy(tmp_path / name) as router:
            assert router.infer(X).value == 0
            assert router.check().ok
    toml.write_text('threshold = 0.5\n[edge]\npath = "small.onnx"\n')
    assert 'did you mean "labels"?' in cli("check", "-p", toml)[2]
    monkeypatch.setenv("EDGEROUTE_EDGE__CARD", "false")
    assert cli("check", "-p", toml)[0] == 0
    monkeypatch.delenv("EDGEROUTE_EDGE__CARD")
    toml.write_text('threshold = 0.5\n[edge]\npath = "small.onnx"\ncard = true\n')
    assert "edge.card: expected the path of a card, or false" in cli("check", "-p", toml)[2]
