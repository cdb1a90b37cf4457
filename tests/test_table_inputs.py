"""Tables and folders by class as inputs of the commands; tables and data sets as inputs of `calibrate` and `evaluate`."""

from __future__ import annotations

import io
import json
import tracemalloc

import numpy as np
import pytest
import tiny
from both import makes
from commands import cli
from PIL import Image

from edgeroute import BadInput, Egress, RuntimeMissing
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.cli.inputs_labels_and_outputs import expand_folders, folder_labels, read_inputs

make = makes(threshold=0.5)
F, I = "float32", "int64"  # noqa: E741 - types


def read(path, keys=(), label=None):
    """The inputs with their labels, and the notes."""
    notes = []
    return [(item.x, item.label, item.group) for item in read_inputs(path, keys, notes.append, label)], notes


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b,label\n1.5,2,cat\n0,,dog\n", [([1.5, 2], F, "cat"), ([0, np.nan], F, "dog")]),
        ("\ufeffa;b;label\r\n1;2;7\r\n", [([1, 2], I, 7)]),
        ("a\tb\n1\t2\n\n", [([1, 2], I, None)]),
        ("1,2\n3,4.5\n", [([1, 2], F, None), ([3, 4.5], F, None)]),
        ("0,1\n5,6\n", [([5, 6], I, None)]),
        ("label,0,1\n5,0,1\n", [([0, 1], I, 5)]),
        (",a,y\n0,1,cat\n", [([1], I, "cat")]),
        ('text,label\n"one\ntwo, ""three""",good\nfour,007\n', [('one\ntwo, "three"', None, "good"), ("four", None, "007")]),
        ("name,age,Class\nAnn,3,x\n", [({"name": "Ann", "age": 3}, None, "x")]),
        ("a,group,target\n1,5,\n", [([1], I, None)]),
    ],
)
def test_what_a_csv_file_holds(tmp_path, text, rows):
    """With a header or without one, by any of three separators, as spreadsheets and pandas write it."""
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    found, _ = read(path)
    for (x, label, _), (values, dtype, expected) in zip(found, rows, strict=True):
        assert label == expected
        if dtype is None:
            assert x == values
        else:
            assert x.dtype == dtype
            np.testing.assert_allclose(x, values, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "label", "why"),
    [
        ("", None, "has no rows"),
        ("\n \n", None, "has no rows"),
        ("a,b\n", None, "has a header, and no rows"),
        ("a,b\n1,2\n1\n", None, r"csv:3: this row has 1 cells, and there are 2 columns"),
        ("a,y,label\n1,2,3\n", None, "labels may be in 'y' or 'label': say which by --label"),
        ("a,b\n1,2\n", "c", "has no column 'c' of labels: its columns are 'a', 'b'"),
        ("1,2\n3,4\n", "2", "has no column '2' of labels"),
        ("a,a\n1,2\n", None, "the column 'a' is there twice"),
        ("a,,b\n1,2,3\n", None, "column 1 has no name"),
        ('a,b\n1,"2\n', None, "cannot be read as CSV"),
        ("caf\udce9,b\n1,2\n", None, "is not text in UTF-8"),
        ("label\n1\n", None, "has no column of inputs"),
        ("a\n" + "1\n" * 1200 + "x\n", None, "csv:1202: expected a number in the column 'a'"),
    ],
)
def test_what_no_csv_file_may_be(tmp_path, text, label, why):
    """One line says where and what."""
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=why) as e:
        read(path, label=label)
    assert "\n" not in str(e.value)


def test_the_column_of_labels(tmp_path):
    """By its name, or by its index without a header; `none` takes no column. What is taken without being asked for is noted."""
    path = tmp_path / "x.csv"
    path.write_text("5.1,3.5,Iris-a\n4.9,3.0,Iris-b\n")
    found, notes = read(path, label="-1")
    assert [label for _, label, _ in found] == ["Iris-a", "Iris-b"]
    assert notes == [f"{path} has no header: its columns are 0 to 2"]
    path.write_text("a,y,label\n1,2,3\n")
    assert read(path, label="y")[0][0][1] == 2
    assert read(path, label="none") == ([(pytest.approx([1, 2, 3]), None, None)], [])
    assert read(path, keys=["y"])[0] == [({"a": 1, "y": 2}, 3, None)]
    with pytest.raises(BadInput, match="the policy's views take 'z' of an input, and its columns are a, y"):
        read(path, keys=["z"], label="label")
    path.write_text("a,label\n1,x\n")
    assert read(path)[1] == [f"{path}: labels are in the column 'label'; another one, or none, by --label"]


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_file_that_is_gone_when_its_turn_comes(tmp_path, name):
    """As one that may not be read."""
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_text("a\n1\n")
    rows = read_inputs(path)
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        next(iter(rows))


def test_a_large_table_is_not_read_at_once(tmp_path):
    """The first rows take the memory of some rows."""
    path = tmp_path / "x.csv"
    with path.open("w") as file:
        file.write("a,b\n")
        for i in range(300_000):
            file.write(f"{i}.25,12345678.5\n")
    tracemalloc.start()
    try:
        rows = iter(read_inputs(path))
        for _ in range(2000):
            next(rows)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
        rows.close()


@pytest.fixture
def policy(tmp_path):
    """A model with three classes."""
    tiny.linear(tmp_path / "edge.onnx", card={"labels": ["a", "b", "c"]})
    path = tmp_path / "policy.toml"
    path.write_text('[edge]\npath = "edge.onnx"\n')
    return path


def test_the_commands_read_it(tmp_path, policy):
    """All of them; a row that does not fit is an error of that input."""
    data, rows = tmp_path / "x.csv", np.random.default_rng(0).normal(size=(120, 4))
    with data.open("w") as file:
        file.write("w,x,y2,z,label\n")
        for row in rows:
            file.write(",".join(map(str, row)) + f",{'abc'[row[:3].argmax()]}\n")
    note = f"{data}: labels are in the column 'label'; another one, or none, by --label\n"
    code, out, err = cli("infer", "-p", policy, data)
    assert (code, err) == (0, note)
    assert "100.00 % of 120 with a label" in out
    assert cli("infer", "-p", policy, data, "--label", "label", "--batch", "7")[::2] == (0, "")
    code, out, err = cli("decide", "-p", policy, data, "--index", "119", "--json", "--label", "label")
    assert (code, err, json.loads(out)["input"]) == (0, "", f"{data}:121")
    assert "this file has 120 inputs" in cli("decide", "-p", policy, data, "--index", "120")[2]
    for command in (["evaluate"], ["calibrate", "--max-error", "5%"]):
        code, out, err = cli(*command, "-p", policy, "-d", data, "--json", "--label", "label")
        assert (code, err) == (0, "")
    with data.open("a") as file:
        file.write("1,2\n")
        file.write(",".join(map(str, rows[0])) + ",a\n")
    code, out, err = cli("infer", "-p", policy, data, "--label", "label", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert (code, len(told), told[-1]["input"]) == (1, 121, f"{data}:123"), "the rows behind it are answered"
    assert f"{data}:122: this row has 2 cells" in err
    assert f"{data}:122: this row has 2 cells" in cli("evaluate", "-p", policy, "-d", data, "--label", "label")[2]


@pytest.mark.parametrize(
    ("text", "left", "wrong"),
    [
        ("w,x\n1,2\n3\n4,5,6\n7,8\n", [[1, 2], [7, 8]], ["csv:3: this row has 1 cells", "csv:4: this row has 3 cells"]),
        ("w\n" + "1\n" * 1200 + "x\n2\n", [[1]] * 1200 + [[2]], ["csv:1202: expected a number in the column 'w'"]),
        ("w,x\n1\n", [], ["csv:2: this row has 1 cells"]),
    ],
)
def test_rows_that_do_not_fit_are_left_out_where_that_is_told(tmp_path, text, left, wrong):
    """In whatever part of the file they are."""
    path, errors = tmp_path / "x.csv", []
    path.write_text(text)
    assert [item.x.tolist() for item in read_inputs(path, failed=errors.append)] == left
    for error, why in zip(errors, wrong, strict=True):
        assert why in str(error)


def test_lines_that_are_no_json_are_left_out_where_that_is_told(tmp_path, policy):
    path = tmp_path / "x.jsonl"
    path.write_text("[1, 2, 3, 4]\n[1, 2\n\n[4, 3, 2, 1]\n")
    with pytest.raises(BadInput, match="jsonl:2: expected an input as JSON"):
        read_inputs(path)
    code, out, err = cli("infer", "-p", policy, path, "--json")
    assert (code, [json.loads(line)["input"] for line in out.splitlines()]) == (1, [f"{path}:1", f"{path}:4"])
    assert f"{path}:2: expected an input as JSON" in err


def test_a_column_that_is_no_input_is_named(tmp_path, policy):
    """It may have the labels, under a name that is not a usual one."""
    tiny.linear(tmp_path / "edge.onnx", card={"labels": ["a", "b", "c"], "data": {"columns": ["w", "x", "y2", "z"]}})
    data = tmp_path / "x.csv"
    data.write_text("id,w,x,y2,z,churn\n1,0.5,2,3,4,b\n2,0.1,2,3,4,c\n")
    note = f"{data}: not an input of the model, and not used: id, churn; --label names a column of labels\n"
    assert cli("infer", "-p", policy, data)[::2] == (0, note)
    assert cli("infer", "-p", policy, data, "--label", "churn")[::2] == (0, "")
    assert cli("infer", "-p", policy, data, "--label", "none")[::2] == (0, "")


def test_a_column_too_many_may_have_the_labels(tmp_path, policy):
    """Where the model does not tell the names of its columns."""
    data = tmp_path / "x.csv"
    data.write_text("w,x,y2,z,churn\n0.5,2,3,4,1\n0.1,2,3,4,2\n")
    note = f"{data}: there are 5 columns, and the model takes 4: --label names a column of labels\n"
    code, _, err = cli("infer", "-p", policy, data)
    assert (code, note in err, "expected [4] float32, got [5] float32" in err) == (1, True, True)
    for label in ("churn", "w"):
        assert cli("infer", "-p", policy, data, "--label", label)[::2] == (0, "")
    assert note not in cli("infer", "-p", policy, data, "--label", "none")[2]


def test_a_data_class_on_the_command_line(tmp_path, policy):
    """What may not leave is not sent by `infer`, and `decide` says so."""
    np.save(tmp_path / "x.npy", np.zeros(4, np.float32))
    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as server:
        policy.write_text(
            'threshold = 1.0\n[edge]\npath = "edge.onnx"\n'
            f'[cloud]\nprotocol = "json"\nurl = "{server.url}"\n[egress]\nnever_leave = ["face"]\nmay_leave = ["tree"]\n'
        )
        for name, source in (("face", "edge"), ("odd", "edge"), ("tree", "cloud")):
            code, out, _ = cli("infer", "-p", policy, tmp_path / "x.npy", "--json", "--data-class", name)
            assert (code, json.loads(out)["source"]) == (0, source)
            code, out, _ = cli("decide", "-p", policy, tmp_path / "x.npy", "--json", "--data-class", name)
            assert (code, bool(json.loads(out)["sends_to"])) == (0, source == "cloud")
        assert len([request for request in server.requests if request.startswith(b"POST")]) == 1
        code, _, err = cli("evaluate", "-p", policy, "-d", tmp_path / "x.npy", "--data-class", "face")
        assert (code != 0, "never leaves" in err) == (True, True)


def pictures(folder, classes):
    """Pictures of several sizes in folders by class."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (2 + i, 1)).save(folder / name / f"{i}.png")
    return folder


def test_folders_by_class(tmp_path):
    """The names of the folders are labels; hidden files, and what is no input, are left out, and links lead in no circle."""
    folder = pictures(tmp_path / "x", {"cat": 2, "dog": 1, "Cafe\u0301": 1})
    pictures(tmp_path / "elsewhere", {"owl": 1})
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / "._0.png").write_bytes(b"resource fork")
    (folder / ".cache").mkdir()
    Image.new("L", (1, 1)).save(folder / ".cache" / "x.png")
    (folder / "labels.csv").write_text("a\n1\n")
    (folder / "dog" / "again").symlink_to(folder)
    (folder / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    notes = []
    labels = folder_labels([folder], None, notes.append)
    found = [(path.relative_to(folder).as_posix().encode("ascii", "replace"), label) for path, label in sorted(labels.items())]
    expected = [
        (b"Cafe?/0.png", "Caf\u00e9"),
        (b"cat/0.png", "cat"),
        (b"cat/1.png", "cat"),
        (b"dog/0.png", "dog"),
        (b"owl/0.png", "owl"),
    ]
    assert found == expected
    assert [*labels] == expand_folders([folder])
    assert notes == [f"{folder}: labels are the names of its 4 folders"]
    notes.clear()
    assert folder_labels([folder], ["2024", "2025"], notes.append) == {}
    assert "none of the model's classes" in notes[0]
    notes.clear()
    labels = folder_labels([folder], ["C/A T", "Dog"], notes.append)
    assert {*labels.values()} == {"C/A T", "Dog", "Caf\u00e9", "owl"}
    assert notes == [f"{folder}: labels are the names of its 4 folders; 'Caf\u00e9' is none of the model's classes"]
    np.save(tmp_path / "elsewhere" / "owl" / "1.npy", np.zeros(3))
    assert [path.name for path in folder_labels([folder], None, notes.append)][-1] == "1.npy"
    letters = pictures(tmp_path / "letters", {"C": 1, "C++": 1, "D": 1})
    assert {*folder_labels([letters], ["C", "C++", "D#", "D@"], notes.append).values()} == {"C", "C++", "D"}
    notes.clear()
    Image.new("L", (1, 1)).save(folder / "top.png")
    assert folder_labels([folder], None, notes.append) == folder_labels([tmp_path / "elsewhere"], None, notes.append) == {}
    assert notes == [f"{folder}: no labels, since not all is in FOLDER/LABEL/FILE, such as {folder / 'top.png'}"]
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.csv").write_text("a\n1\n")
    assert expand_folders([only]) == [only / "a.csv"]


def test_the_commands_read_folders_by_class(tmp_path):
    """Numbers are numbers of classes, as elsewhere."""
    edge = tiny.linear(tmp_path / "edge.onnx", dtype="uint8", card={"labels": ["7", "b", "c"]})
    policy, folder = tmp_path / "policy.toml", tmp_path / "x"
    policy.write_text(f'[edge]\npath = "{edge}"\n')
    for i, name in enumerate(["7", "b", "c"]):
        (folder / name).mkdir(parents=True)
        for n in range(40):
            Image.fromarray(np.eye(4, dtype=np.uint8)[i : i + 1] * (n + 1)).save(folder / name / f"{n}.png")
    code, out, err = cli("infer", "-p", policy, folder)
    assert (code, err) == (0, f"{folder}: labels are the names of its 3 folders\n")
    assert "100.00 % of 120 with a label" in out


def test_parquet(tmp_path):
    """Numbers, texts, arrays and the pictures of Hugging Face's data sets; what pandas stores besides is left out."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def written(name, **columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    found, _ = read(written("n.parquet", a=[1.5, None], b=[1, 2], label=["cat", None], __index_level_0__=[3, 4]))
    np.testing.assert_allclose([x for x, *_ in found], [[1.5, 1], [np.nan, 2]])
    assert [label for _, label, _ in found] == ["cat", None]
    assert read(written("t.parquet", text=["x", "y"], y=[0, 1]))[0] == [("x", 0, None), ("y", 1, None)]
    assert read(written("u.parquet", x=pa.array([[[1, 2], [3, 4]]], pa.list_(pa.list_(pa.uint8())))))[0][0][0].dtype == np.uint8
    found, _ = read(written("e.parquet", x=[[1.0, 2.0]], group=["s"]))
    assert (found[0][0].dtype, found[0][0].tolist(), found[0][2]) == (np.float32, [1, 2], "s")
    content = io.BytesIO()
    Image.new("RGB", (3, 2)).save(content, "PNG")
    found, _ = read(written("p.parquet", image=[{"bytes": content.getvalue(), "path": None}], label=[3]))
    assert (found[0][0].shape, found[0][1]) == ((2, 3, 3), 3)
    with pytest.raises(BadInput, match=r"p\.parquet\[0\] cannot be read"):
        read(written("p.parquet", image=[{"bytes": b"none", "path": None}]))
    with pytest.raises(BadInput, match="there is no value in the column 'text'"):
        read(written("t.parquet", text=["x", None]))
    with pytest.raises(BadInput, match="has no rows"):
        read(written("t.parquet", text=pa.array([], pa.string())))
    whole = written("cut.parquet", a=[1.0] * 100).read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole[:4] + bytes(len(whole) - 12) + whole[-8:]):
        (tmp_path / "cut.parquet").write_bytes(part)
        with pytest.raises(BadInput, match="cannot be read"):
            read(tmp_path / "cut.parquet")


@pytest.mark.parametrize("form", [lambda texts: texts, lambda texts: [texts, texts]], ids=["flat", "nested"])
def test_a_long_text_among_many(tmp_path, form):
    """Each text of an array takes the memory of the longest: 170 KB would take 2 GB. Texts that are as long as others are read."""
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(form(["a" * 150_000] + ["b"] * 4000)))
    with pytest.raises(BadInput, match=r"x\.jsonl:1: .*a text of 150,000 characters"):
        read_inputs(path)
    path.write_text(json.dumps(form(["a" * 1500] + ["b"] * 4000)))
    (item,) = read_inputs(path)
    assert item.x.dtype.kind == "U"


@pytest.mark.slow
def test_parquet_that_unpacks_too_far(tmp_path):
    """A list and a text of a small file that would take gigabytes are refused before they are read; equal numbers in rows are not."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values, size = pa.nulls(70_000_000, pa.int8()), 540_000_000
    for name, column in (
        ("list", pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)),
        (
            "text",
            pa.BinaryArray.from_buffers(pa.binary(), 1, [None, pa.py_buffer(np.int32([0, size])), pa.py_buffer(bytes(size))]),
        ),
    ):
        pq.write_table(
            pa.table({"x": column, "label": [1]}), tmp_path / f"{name}.parquet", compression="zstd", use_dictionary=False
        )
        assert (tmp_path / f"{name}.parquet").stat().st_size < 1_000_000
        with pytest.raises(BadInput, match=rf"{name}\.parquet has [\d,]+ bytes and unpacks to [\d,]{{11}}"):
            read(tmp_path / f"{name}.parquet")
    zeros = np.zeros(70_000_000, np.int8)
    pq.write_table(pa.table({"x": zeros, "label": zeros}), tmp_path / "rows.parquet", row_group_size=len(zeros))
    assert next(read_inputs(tmp_path / "rows.parquet", (), print, None)).label == 0


def test_parquet_without_its_library(tmp_path, monkeypatch):
    """One line says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(RuntimeMissing, match="pip install pyarrow"):
        read(tmp_path / "x.parquet")


# in Python


def by_first(x):
    return ("cat" if float(np.asarray(x).ravel()[0]) > 0.5 else "dog"), 0.9


COLUMNS = {"a": [1.0, 0.0] * 15, "b": [1, 2] * 15}
LABELS = ["cat", "dog"] * 15


class Pairs:
    """As a data set of torch's."""

    def __init__(self, label):
        self._label = label

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return np.array([1 - i % 2, 0], np.float32), self._label(i)


def test_a_data_set_of_pairs(make):
    """Inputs and labels are in it; an iterable without a length is refused."""
    router = make(by_first, None)
    assert router.evaluate(Pairs(lambda i: LABELS[i]), None).accuracy["edge"].found == 30
    numbers = make(lambda x: (int(x[0]), 0.9), None)
    for label in (lambda i: 1 - i % 2, lambda i: np.int64(1 - i % 2), lambda i: np.array(1 - i % 2)):
        assert numbers.evaluate(Pairs(label), None).accuracy["edge"].found == 30
    with pytest.raises(BadInput, match="X, a Pairs, holds pairs of an input and its label: leave out y"):
        router.evaluate(Pairs(lambda i: LABELS[i]), LABELS)
    for wrong in (iter([1]), (x for x in [1]), type("Stream", (), {"__iter__": lambda _: iter([1])})()):
        with pytest.raises(BadInput):
            router.evaluate(wrong, None)
        with pytest.raises(BadInput, match="a batch is a sequence of inputs, not a"):
            router.infer_many(wrong)
    for one in ({"x": 1.0}, "a text, whose letters are no inputs", b"bytes", np.array(1.0)):
        with pytest.raises(BadInput, match="one input"):
            router.infer_many(one)


def test_pandas(make):
    """Rows of a table, and labels as a column's name or a series; a name that is none is refused."""
    pd = pytest.importorskip("pandas")
    frame, router = pd.DataFrame(COLUMNS), make(by_first, None)
    full = frame.assign(label=LABELS).sample(frac=1, random_state=0)
    assert router.evaluate(frame, pd.Series(LABELS)).accuracy["edge"].found == 30
    assert router.evaluate(full, "label").accuracy["edge"].found == 30
    assert router.evaluate(full["a"], full["label"]).accuracy["edge"].found == 30
    assert make(lambda x: (x, 0.9), None).evaluate(full[["label"]], full["label"]).accuracy["edge"].found == 30
    with pytest.raises(BadInput, match="no column 'lable' of labels: its columns are a, b"):
        router.evaluate(full, "lable")
    by_name = make(lambda row: (row["label"], 0.9), None)
    for rows in (full, full.to_dict("records")):
        assert by_name.evaluate(rows, full["label"]).accuracy["edge"].found == 30


def test_a_row_of_pandas_is_the_same_wherever_it_is_given(make):
    """Both sides get `table.iloc[i]`, by `infer`, `infer_many`, `calibrate` and `evaluate`; of a column, or a table of texts, its value."""
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({**COLUMNS, "city": ["Ulm", "Bonn"] * 15}).sample(frac=1, random_state=0)
    seen = {"edge": [], "cloud": []}

    def edge(row):
        seen["edge"].append(row)
        return LABELS[0], 0.1 + 0.01 * len(seen["edge"])

    router = make(edge, lambda row: seen["cloud"].append(row) or LABELS[0])
    twice = table[["a", "b"]].set_axis(["a", "a"], axis=1)
    for X in (table, table[["a", "b"]], table["city"], table[["city"]], twice):  # noqa: N806 - as in scikit-learn
        rows = [X.iloc[i] for i in range(30)] if X.ndim == 1 or X.shape[1] > 1 else [*X["city"]]
        for way in (
            lambda X=X: router.infer_many(X),  # noqa: N803
            lambda rows=rows: [router.infer(row) for row in rows],
            lambda X=X: router.calibrate(X, LABELS, max_loss=0.2, sure=0.9),  # noqa: N803
            lambda X=X: router.evaluate(X, LABELS),  # noqa: N803
        ):
            for side in seen.values():
                side.clear()
            way()
            for side in seen.values():
                for row, expected in zip(side[-30:], rows, strict=True):
                    assert row.equals(expected) if hasattr(expected, "equals") else row == expected
    assert router.infer_many(table[:0]) == []


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timedelta64[ns]", "Int64", "boolean"])
def test_values_of_pandas_own_types(make, dtype):
    """A column's, and a row's of several such columns, are those of `iloc`: with pandas' methods, and NA where a number is missing."""
    pd = pytest.importorskip("pandas")
    column, seen = pd.Series([1, None], dtype="Int64").astype(dtype), []
    router = make(lambda x: (seen.append(x), 0.9), None)
    for X in (column, pd.DataFrame({"a": column, "b": column})):  # noqa: N806 - as in scikit-learn
        seen.clear()
        router.infer_many(X)
        for x, expected in zip(seen, [X.iloc[0], X.iloc[1]], strict=True):
            assert (type(x), str(x), getattr(x, "dtype", None)) == (
                type(expected),
                str(expected),
                getattr(expected, "dtype", None),
            )


def test_the_data_class_of_a_column_is_that_of_its_own_row(make):
    """Not that of the row whose index is its number, as after a table was shuffled."""
    pd = pytest.importorskip("pandas")
    texts, sent = ["private a", "b", "private c", "d"], []
    rules = Egress(never_leave=["p"], may_leave=["o"], data_class=lambda x: "p" if "private" in x else "o")
    router = make(lambda x: (x, 0.1), lambda x: sent.append(x) or "cloud", egress=rules)
    for index in ([3, 2, 1, 0], [12, 10, 11, 13]):
        sent.clear()
        answers = router.infer_many(pd.Series(texts, index))
        assert ([answer.value for answer in answers], sent) == (["private a", "cloud", "private c", "cloud"], ["b", "d"])


def test_a_row_of_several_types_of_numbers(tmp_path, make):
    """As floats, also where pandas holds them as objects; text is still refused."""
    pd = pytest.importorskip("pandas")
    tiny.linear(tmp_path / "edge.onnx")
    table = pd.DataFrame({"a": [0.5, 1.5], "b": [True, False], "c": [1, 2], "d": [0.0, 1.0]})
    router = make(tmp_path / "edge.onnx", None)
    answers = router.infer_many(table)
    for answer, row in zip(answers, table.to_numpy(float), strict=True):
        assert answer.confidence == pytest.approx(router.infer(row.astype(np.float32)).confidence)
    assert [answer.value for answer in router.infer_many(table.to_numpy())] == [answer.value for answer in answers]
    with pytest.raises(BadInput, match="expected float32, got"):
        router.infer_many(table.assign(b="x"))


def test_hugging_face(make):
    """A column of inputs, rows of numbers, and labels by the column's name; splits and streams are refused."""
    datasets = pytest.importorskip("datasets")
    router = make(by_first, None)
    data = datasets.Dataset.from_dict({**COLUMNS, "label": LABELS})
    assert router.evaluate(data, "label").accuracy["edge"].found == 30
    vectors = datasets.Dataset.from_dict({"x": [[1.0, 0.0], [0.0, 1.0]] * 15, "label": LABELS})
    assert router.evaluate(vectors, "label").accuracy["edge"].found == 30
    assert router.evaluate(vectors.remove_columns("label"), LABELS).accuracy["edge"].found == 30
    for wrong, y, why in (
        (data, None, r"no numbers \(label\): .* by name \[\*X\]"),
        (datasets.DatasetDict(train=data), "label", r"X has the splits train: pass one, as X\['train'\]"),
        (data.to_iterable_dataset(), "label", "y must hold a label|X must hold the inputs"),
    ):
        with pytest.raises(BadInput, match=why):
            router.evaluate(wrong, y)
