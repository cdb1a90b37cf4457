"""Files as inputs of the command line: which arrays of an .npz file are used, and what the keys of a policy's views take of a file."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import tiny
from commands import cli
from onnx import TensorProto, helper
from PIL import Image

from edgeroute import BadInput
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.cli.inputs_labels_and_outputs import read_inputs, recorded_outputs

ROWS = np.eye(3, 4, dtype=np.float32)
JPEGS = np.array([b"\xff\xd8one", b"\xff\xd8two", b"\xff\xd8three"])


# ------------------------------------------------------------------------------------------------ which arrays
@pytest.mark.parametrize(
    ("arrays", "used", "labels", "note"),
    [
        ({"images": ROWS, "labels": [0, 1, 2]}, ROWS, [0, 1, 2], None),
        ({"X": ROWS, "y": [0, 1, 2]}, ROWS, [0, 1, 2], None),
        ({"y": [0, 1, 2], "x": ROWS}, ROWS, [0, 1, 2], None),
        ({"other": ROWS + 1, "X": ROWS}, ROWS, [None] * 3, "the array 'other' is not used: inputs are in 'X'"),
        ({"images": ROWS, "X": ROWS + 1}, ROWS, [None] * 3, "the array 'X' is not used: inputs are in 'images'"),
        ({"X": ROWS, "labels": [0, 1, 2], "y": [2, 2, 2]}, ROWS, [0, 1, 2], "the array 'y' is not used: inputs are in 'X'"),
        ({"arr_0": ROWS, "arr_1": [0, 1, 2]}, ROWS, [None] * 3, "the array 'arr_1' is not used: inputs are in 'arr_0'"),
        ({"images": ROWS, "a": 1, "b": 2}, ROWS, [None] * 3, "the arrays 'a', 'b' are not used: inputs are in 'images'"),
    ],
)
def test_which_arrays_are_used(tmp_path, arrays, used, labels, note):
    """`images` or X, `labels` or y; else the first. Any other is told."""
    path, notes = tmp_path / "x.npz", []
    np.savez(path, **arrays)
    items = read_inputs(path, note=notes.append)
    assert np.array_equal([item.x for item in items], used)
    assert [item.label for item in items] == labels
    assert notes == ([] if note is None else [f"{path}: {note}"])
    assert recorded_outputs(path) is None


def test_recorded_outputs_with_y(tmp_path):
    """Their labels have the same names, and what is not used is told, too; with inputs beside them they are not read."""
    path, notes = tmp_path / "x.npz", []
    np.savez(path, edge_logits=ROWS, y=[0, 1, 2], seed=3)
    assert recorded_outputs(path, notes.append).labels == [0, 1, 2]
    assert notes == [f"{path}: the array 'seed' is not used: outputs are in 'edge_logits'"]
    np.savez(path, edge_logits=ROWS, X=ROWS)
    assert recorded_outputs(path) is None


def test_commands_tell_of_it(tmp_path):
    """On stderr, as a line, or as JSON; calibration and evaluation have it among their notes."""
    edge = tiny.linear(tmp_path / "edge.onnx", card={"labels": ["a", "b", "c"]})
    policy, data = tmp_path / "policy.toml", tmp_path / "x.npz"
    policy.write_text(f'[edge]\npath = "{edge}"\n')
    inputs = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    np.savez(data, X=inputs, y=inputs[:, :3].argmax(1), weights=ROWS)
    note = f"{data}: the array 'weights' is not used: inputs are in 'X'"
    code, out, err = cli("infer", "-p", policy, data)
    assert (code, err) == (0, f"{note}\n")
    assert "100.00 % of 120 with a label" in out
    code, out, err = cli("infer", "-p", policy, data, "--json")
    assert (code, json.loads(err), len(out.splitlines())) == (0, {"note": note}, 120)
    assert cli("decide", "-p", policy, data)[2] == f"{note}\n"
    for command in (["evaluate"], ["calibrate", "--max-error", "5%"]):
        code, out, err = cli(*command, "-p", policy, "-d", data)
        assert (code, err) == (0, f"{note}\n")
        code, out, err = cli(*command, "-p", policy, "-d", data, "--json")
        assert (code, err, json.loads(out)["notes"]) == (0, "", [note])


@pytest.mark.parametrize("form", ["npz", "csv"])
def test_numbers_of_a_file_are_names_of_classes_before_indices(tmp_path, form):
    """Whatever the order of the names; `infer` counts as `evaluate` does, which says how they are read, and a mixture is an error."""
    names = ["0", "2", "1"]
    tiny.linear(tmp_path / "edge.onnx", card={"labels": names})
    policy, data = tmp_path / "policy.toml", tmp_path / f"x.{form}"
    policy.write_text('[edge]\npath = "edge.onnx"\n')
    inputs = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)

    def write(labels):
        if form == "npz":
            np.savez(data, X=inputs, y=labels)
        else:
            rows = [",".join([*map(str, row), str(label)]) for row, label in zip(inputs, labels, strict=True)]
            data.write_text("\n".join(["a,b,c,d,label", *rows]))

    write(np.array([int(names[i]) for i in inputs[:, :3].argmax(1)]))
    assert "100.00 % of 120 with a label" in cli("infer", "-p", policy, data)[1]
    code, out, _ = cli("evaluate", "-p", policy, "-d", data, "--json")
    told = json.loads(out)
    assert (code, told["accuracy"]["edge"]["value"]) == (0, 1)
    assert any("names of classes and also indices" in note for note in told["notes"])
    card = tmp_path / "edge.json"
    card.write_text(card.read_text().replace('"0"', '"5"'))
    write(inputs[:, :3].argmax(1))
    code, out, err = cli("evaluate", "-p", policy, "-d", data)
    assert code > 0
    assert "write each as the name of its class" in " ".join((out + err).split())


# ------------------------------------------------------------------------------------------- what the views take
def test_rows_of_several_arrays(tmp_path):
    """With views that name keys each input has a row of every array, so that a cloud without a view has the rest, too."""
    path, notes = tmp_path / "x.npz", []
    np.savez(path, image=ROWS, jpeg=JPEGS, lang=["de", "en", "fr"], y=[0, 1, 2], scale=2.0, few=ROWS[:2])
    items = read_inputs(path, ["image", "jpeg"], notes.append)
    assert [item.label for item in items] == [0, 1, 2]
    assert items[1].x.keys() == {"image", "jpeg", "lang"}
    assert items[1].x["image"].tolist() == ROWS[1].tolist()
    assert (items[1].x["jpeg"], items[1].x["lang"]) == (b"\xff\xd8two", "en")
    assert {type(items[1].x[name]) for name in ("jpeg", "lang")} == {bytes, str}
    assert notes == [f"{path}: the arrays 'scale', 'few' are not used: inputs are in 'image', 'jpeg'"]
    assert read_inputs(path, ["y"])[2].x["y"] == 2, "a key may have any name"


def test_a_file_that_lacks_what_the_views_take(tmp_path):
    """The message says what there is, and what to do instead."""
    path = tmp_path / "x.npz"
    np.savez(path, images=ROWS, jpeg=JPEGS)
    with pytest.raises(BadInput, match="the policy's views take 'image' of an input, and its arrays are 'images', 'jpeg'"):
        read_inputs(path, ["image", "jpeg"])
    np.savez(path, image=ROWS, jpeg=JPEGS[:2])
    with pytest.raises(BadInput, match="it holds 3 rows of 'image' and 2 of 'jpeg'"):
        read_inputs(path, ["image", "jpeg"])
    np.save(tmp_path / "x.npy", ROWS[0])
    with pytest.raises(BadInput, match=r"one array, and the policy's views take 'image' of an input: pass an \.npz file with"):
        read_inputs(tmp_path / "x.npy", ["image"])


@pytest.mark.parametrize(("suffix", "keys"), [("png", ["image", "png", "bytes"]), ("jpg", ["pixels", "jpeg", "file"])])
def test_an_image_has_pixels_and_content(tmp_path, suffix, keys):
    """A key that names a format, or bytes, means the file; any other its pixels."""
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (3, 2)).save(path)
    (item,) = read_inputs(path, keys)
    assert item.x[keys[0]].shape == (2, 3, 3)
    assert item.x[keys[1]] == item.x[keys[2]] == path.read_bytes()
    assert list(item.x) == keys


def test_an_image_of_another_format_than_the_view_names(tmp_path):
    """It would be sent as what it is not."""
    Image.new("L", (3, 2)).save(tmp_path / "x.png")
    with pytest.raises(BadInput, match=r"x\.png is a PNG file, and the policy's views take 'jpeg' of an input"):
        read_inputs(tmp_path / "x.png", ["image", "jpeg"])


@pytest.mark.parametrize("command", [["infer"], ["evaluate", "-d"]])
def test_commands_answer_photos_by_views(tmp_path, command):
    """The edge has the pixels, and the cloud the file as it is, from an .npz file or a folder."""
    tiny.linear(tmp_path / "edge.onnx", dtype="uint8", card={"labels": ["a", "b", "c"]})
    pixels = np.array([[[0, 1, 2, 3]], [[1, 1, 2, 3]]], np.uint8)
    photos, policy = tmp_path / "photos", tmp_path / "policy.toml"
    photos.mkdir()
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(photos / f"{i}.png")
    content = [(photos / f"{i}.png").read_bytes() for i in range(2)]
    np.savez(tmp_path / "x.npz", image=pixels[:, 0], png=np.array(content))
    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as server:
        policy.write_text(
            'threshold = 1.0\n[edge]\npath = "edge.onnx"\nview = "image"\n'
            f'[cloud]\nprotocol = "json"\nurl = "{server.url}"\nview = "png"\nbody = {{ content = "{{input|base64}}" }}\n'
        )
        for data in (tmp_path / "x.npz", photos):
            code, _, err = cli(command[0], "-p", policy, *command[1:], data, "--json")
            assert (code, err) == (0, "")
    sent = [json.loads(request.partition(b"\r\n\r\n")[2])["content"] for request in server.requests]
    assert sent == [base64.b64encode(one).decode() for one in content * 2]


@pytest.mark.parametrize(
    ("piped", "values"),
    [
        ("a,b,c,d\n1,0,0,0\n0,0,1,0\n", ["a", "c"]),
        ('\ufeff"a";"b";"c";"d"\r\n1;0;0;0\r\n', ["a"]),
        ("1\t0\t0\t0\n", ["a"]),
        ("a,b,c,d,label\n0,1,0,0,b\n", ["b"]),
        ("[1, 0, 0, 0]\n[0, 1, 0, 0]\n", ["a", "b"]),
    ],
)
def test_a_table_on_stdin(tmp_path, piped, values):
    """Its rows are inputs, as those of a file; JSON stays JSON."""
    tiny.linear(tmp_path / "edge.onnx", card={"labels": ["a", "b", "c"]})
    policy = tmp_path / "policy.toml"
    policy.write_text('[edge]\npath = "edge.onnx"\n')
    code, out, err = cli("infer", "-p", policy, "-", "--json", input=piped)
    assert code == 0, err
    assert [json.loads(line)["value"] for line in out.splitlines()] == values
    code, out, err = cli("decide", "-p", policy, "-", "--index", len(values) - 1, input=piped)
    assert code == 0, err


@pytest.mark.parametrize("piped", ['"half, of a text', '{"a": 1,}', "[1, 2", "1,2,3,4\n1,2\n"])
def test_what_is_neither_json_nor_a_table_on_stdin(tmp_path, piped):
    """One line."""
    tiny.linear(tmp_path / "edge.onnx")
    policy = tmp_path / "policy.toml"
    policy.write_text('[edge]\npath = "edge.onnx"\n')
    code, out, err = cli("infer", "-p", policy, "-", input=piped)
    assert (code, err.count("error: ")) == (1, 1), (out, err)


def test_a_table_for_a_model_of_several_numbers(tmp_path):
    """Each input is the column of its name, as of a ColumnTransformer that was converted; a label beside them is none."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node("Unsqueeze", [name, "one"], [f"{name}1"]) for name in ("age", "income")]
    nodes += [node("Concat", ["income1", "age1"], ["logits"], axis=1)]
    given = [value(name, TensorProto.FLOAT, ["n"]) for name in ("age", "income")]
    made = [value("logits", TensorProto.FLOAT, ["n", 2])]
    tiny.save(tmp_path / "edge.onnx", nodes, given, made, [("one", np.array([1]))])
    policy, rows = tmp_path / "policy.toml", tmp_path / "rows.csv"
    policy.write_text('[edge]\npath = "edge.onnx"\n')
    rows.write_text("city,age,income,label\nUlm,41,7.5,1\nBonn,20,30,0\n")
    for command in (("infer", "-p", policy, rows, "--json"), ("infer", "-p", policy, rows, "--json", "--batch", 2)):
        code, out, err = cli(*command)
        assert (code, [json.loads(line)["value"] for line in out.splitlines()]) == (0, [1, 0]), err
    code, out, err = cli("evaluate", "-p", policy, "-d", rows, "--no-cloud", "--json")
    assert code == 0, err
    assert cli("decide", "-p", policy, rows)[0] == 0
    rows.write_text("age,wage\n41,7.5\n")
    code, out, err = cli("infer", "-p", policy, rows)
    assert code == 1
    assert "has no column 'income'" in err


def test_a_column_of_texts_for_a_model_of_numbers(tmp_path):
    """The error names the column, its first row with text, and what to do, before anything is run; as labels it is read."""
    tiny.linear(tmp_path / "edge.onnx", size=2, card={"labels": ["Ulm", "Bonn", "Rome"]})
    policy, rows = tmp_path / "policy.toml", tmp_path / "rows.csv"
    policy.write_text('threshold = 0.5\n[edge]\npath = "edge.onnx"\n')
    rows.write_text("age,city,income\n9,89073,1\n4,,2\n3,Bonn,7\n")
    code, _, err = cli("decide", rows, "-p", policy)
    assert (code, "rows.csv:4: the column 'city' has text" in err) == (1, True), err
    rows.write_text("age,city,income\n9,Ulm,1\n3,Bonn,7\n")
    for command in ("infer", rows), ("evaluate", "-d", rows, "--no-cloud"), ("calibrate", "-d", rows, "--max-defer", "50%"):
        code, _, err = cli(*command, "-p", policy)
        assert (code, "rows.csv:2: the column 'city' has text, and the model takes numbers alone: remove it" in err) == (
            1,
            True,
        ), err
    code, _, err = cli("evaluate", "-p", policy, "-d", rows, "--no-cloud", "--label", "city")
    assert code == 0, err
    rows.write_text("age,city\n9,\n3, \n")
    code, _, err = cli("infer", rows, "-p", policy)
    assert (code, "rows.csv: the column 'city' is empty, and the model takes numbers" in err) == (1, True), err
