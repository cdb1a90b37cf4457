"""Numbers and names in files are bounded before they are believed: a small file takes neither much memory nor much time."""

import contextlib
import io
import os
import shutil
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from both import uncollected
from commands import cli
from onnx import helper

from edgeroute import BadInput, CatalogError, EdgerouteError, ModelError, OnnxModel, PolicyError, Router, policy
from edgeroute.catalog.catalog_client_and_updates import read_canaries
from edgeroute.catalog.catalog_entry import entries
from edgeroute.catalog.catalog_source_and_verification import Folder
from edgeroute.catalog.model_folder_and_downloads import Store, pointer
from edgeroute.confidence import Certificate, Learned
from edgeroute.edge import gguf_format
from edgeroute.edge.model_card import Card, sha256_of
from edgeroute.errors import CatalogAway
from edgeroute.policy.file_and_environment import MOST_PARTS, parse_toml
from edgeroute.system.untrusted_files import (
    MOST_DATA,
    MOST_UNPACKED,
    open_file,
    parse_json,
    read_arrays,
    read_bytes,
    read_json,
    read_text,
)
from edgeroute.tools import bounded_lines_and_rows as bounded
from edgeroute.tools.cli.inputs_labels_and_outputs import read_inputs, recorded_outputs
from edgeroute.tools.cli.inspect_by_runs_and_guessed_card import inspect_file
from edgeroute.tools.cli.label_questions_and_answers import AnswersFile
from edgeroute.tools.cli.prompt_reading_and_grading import read_prompts
from edgeroute.tools.cli.status_and_trial_arms import read_state
from edgeroute.tools.replay.logs.answer_pairs_and_samples import lines
from edgeroute.types import TensorSpec

LONG = 120.0


@pytest.fixture
def huge(tmp_path):
    """A model whose input is declared [2^31, 2^20]."""
    x, y = helper.make_tensor_value_info("x", 1, [2**31, 2**20]), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "huge.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "huge.onnx"


def test_an_axis_of_two_billion(huge):
    """A batch is not filled up to it."""
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="first axis"):
            OnnxModel(huge).run([np.zeros(4, np.float32)] * 2)
        with Router(huge, threshold=0.5) as router, pytest.raises(BadInput):
            router.infer(np.zeros(4, np.float32))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_model_with_such_an_axis_is_not_run_on_zeros():
    """As a server does before it is ready."""
    from edgeroute.tools.server.batching_and_tensor_models import make_zeros

    with pytest.raises(PolicyError, match="elements"):
        make_zeros("m", [TensorSpec("x", "float32", (2**31, 2**20))])
    assert make_zeros("m", [TensorSpec("x", "float32", (-1, 3))])["x"].shape == (1, 3)


def test_a_name_that_is_no_utf8(tmp_path):
    """The model is damaged, and not the program. ONNX Runtime 1.23, the last for Python 3.10, takes the name."""
    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="a node")], "g", [x], [y])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole.replace(b"a node", b"a\xf3node"))
    with contextlib.suppress(ModelError):
        OnnxModel(tmp_path / "m.onnx").load()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
def test_a_pipe_in_a_catalog(tmp_path):
    """It has no writer, and is not waited for."""
    os.mkfifo(tmp_path / "timestamp.json")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"abc")
    for name in ("timestamp.json", "folder"):
        with pytest.raises(CatalogAway), Folder(tmp_path).open(name):
            pass
    with Folder(tmp_path).open("file", 1) as piece:
        assert b"".join(piece.blocks) == b"bc"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "a = {{ {} = 1 }}", "[[ {} ]]"])
@pytest.mark.parametrize("part", ["a", '"a"', "'a' ", '""', '" "', '\t"!" ', "'.'", "''", r'"\".\\"', """ '"' """])
def test_a_dotted_key_without_end(form, part):
    """Its parts are sections, each within the one before: a file of 100 KB would take gigabytes."""
    with pytest.raises(ValueError, match="parts"):
        parse_toml(form.format(".".join([part] * 50_000)))
    few = form.format(".".join([part] * (MOST_PARTS - 1)))
    assert parse_toml(few)
    assert parse_toml(f"a = '{'x' * 200_000}... {'. ' * 1000}'")


@pytest.mark.parametrize("piece", [r"\"", ' "', r" \"", '"a.b".' * 40 + "! ", 'a . "b" . ' * 31 + "! "])
def test_a_text_that_looks_like_keys(piece):
    """It is read once, and not from each quote again."""
    assert parse_toml(f"a = '{piece * (1_000_000 // len(piece))}'")


def files_of_others(tmp_path):
    """name -> function that reads a file of this name, as a command or the router does."""
    return {
        "policy.toml": policy.load, "policy.json": policy.load, "card.json": Card.read, "certificate.json": Certificate.load,
        "score.json": Learned.load, "m.gguf": gguf_format.read, "m.onnx": lambda path: OnnxModel(path).load(), "model.onnx": sha256_of,
        "inspected.onnx": lambda path: inspect_file(path, None, 0, LONG), "inputs.jsonl": read_inputs, "inputs.npz": read_inputs,
        "outputs.npz": recorded_outputs, "picture.png": lambda path: read_inputs(path, ["png"]),
        "log.jsonl": lambda path: list(lines([path])), "doors.model": pointer,
        "entry.json": lambda path: Store(path.parent).entry("doors", path.rename(version(tmp_path) / path.name).parent.name),
        "canaries.npz": read_canaries, "state.db": lambda path: read_state(path.parent),
    }  # fmt: skip


def version(tmp_path):
    """The folder of a version of a model on the device."""
    folder = tmp_path / "versions" / "doors" / "1.0"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


NAMES = sorted(files_of_others(Path()))
TEXTS = ["policy.toml", "policy.json", "card.json", "certificate.json", "score.json", "inputs.jsonl", "doors.model", "entry.json"]


def ends_with_own_error(read, path):
    """The reader raises an error of edgeroute, and waits for nobody."""
    raised = []

    def run():
        try:
            read(path)
        except BaseException as e:  # noqa: BLE001 - looked at below
            raised.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert raised, "it waits for a writer" if thread.is_alive() else "it was read"
    assert isinstance(raised[0], EdgerouteError), raised


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
@pytest.mark.parametrize("name", NAMES)
def test_no_reader_waits_for_a_pipe(tmp_path, name):
    """Whatever file it is in the place of."""
    os.mkfifo(tmp_path / name)
    ends_with_own_error(files_of_others(tmp_path)[name], tmp_path / name)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{}", b"[" * 100_000, b'{"format": %s}' % (b"9" * 400), b'{"format": 1e400}'],
    ids=["bytes", "deep", "huge", "inf"],
)
def test_a_text_that_is_none(tmp_path, name, content):
    """It is an error of edgeroute, wherever it comes."""
    (tmp_path / name).write_bytes(content)
    with uncollected():  # finalizers of other tests' garbage would run at the depth where Python stops
        ends_with_own_error(files_of_others(tmp_path)[name], tmp_path / name)


def test_the_reader_is_bounded(tmp_path):
    """By its size, which is looked at before anything is read."""
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf1\r\n2\r")
    assert (read_bytes(path)[:3], read_text(path), read_text(path, 8)) == (b"\xef\xbb\xbf", "1\n2\n", "1\n2\n")
    for read in (open_file, read_bytes, read_text):
        with pytest.raises(OSError, match="more than 7 bytes"):
            read(path, 7)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    for read in (read_bytes, read_json):
        with pytest.raises(OSError, match="more than"):
            read(path)


READERS_OF_LINES = {
    "inputs.jsonl": read_inputs, "prompts.jsonl": lambda path: read_prompts([path], 1), "answers.jsonl": AnswersFile,
    "table.csv": lambda path: list(read_inputs(path)), "table.tsv": lambda path: list(read_inputs(path)),
}  # fmt: skip
COMMANDS_WITH_LINES = {  # name of the file -> exit code, and command
    "distil.csv": (1, "distil", "--from", "csv", "--out", "m.onnx"), "status.json": (1, "arms"), "model.txt": (2, "convert"),
}  # fmt: skip


@pytest.mark.parametrize("start", ["", "text,answer\n", '{"prompt": "', 'text,answer\n"'], ids=["empty", "row", "text", "quote"])
@pytest.mark.parametrize("name", [*READERS_OF_LINES, *COMMANDS_WITH_LINES])
def test_a_line_without_end(tmp_path, name, start):
    """A sparse file has few bytes on the disk and gigabytes in one line, of which no more is read than a line may have."""
    path = tmp_path / name
    path.write_text(start)
    with path.open("r+b") as file:
        file.truncate(1 << 28)
    tracemalloc.start()
    try:
        if name in READERS_OF_LINES:
            with pytest.raises(BadInput, match=name):
                READERS_OF_LINES[name](path)
        else:
            ends, *command = COMMANDS_WITH_LINES[name]
            code, _, err = cli(*command, path)
            assert (code, err.count("\n"), name in err) == (ends, 1, True), err
        assert tracemalloc.get_traced_memory()[1] < 220 << 20
    finally:
        tracemalloc.stop()


def test_lines_and_rows_have_a_bound(tmp_path, monkeypatch):
    """It is that of each, however many there are; ends of lines are those of `bytes.splitlines`."""
    monkeypatch.setattr(bounded, "LONGEST", 8)
    monkeypatch.setattr(bounded, "LONGEST_ROW", 8)
    for text in (b"1\r\n2345\r8\n\n90123456", b"1\r\r2\n\r", b"1\n" * 50, b""):
        assert [*bounded.lines_of(io.BytesIO(text), tmp_path)] == text.splitlines(keepends=True)
    with pytest.raises(BadInput, match=f"{tmp_path.name}:3: expected a line of at most 8 bytes"):
        [*bounded.lines_of(io.BytesIO(b"1\r2\n345678901"), tmp_path)]
    rows = bounded.RowLines(io.StringIO("123\n456\n789\n"), tmp_path)
    assert (next(rows), next(rows), rows.size) == ("123\n", "456\n", 8)
    with pytest.raises(BadInput, match=f"{tmp_path.name}:3: expected a row of at most 8 characters"):
        next(rows)
    rows.size = 0
    assert [*rows] == []


@pytest.mark.parametrize("read", [read_inputs, recorded_outputs, read_canaries], ids=lambda read: read.__name__)
@pytest.mark.parametrize("unpacked", [MOST_UNPACKED + 1, MOST_DATA + 1])
def test_an_archive_that_unpacks_to_far_more_than_it_is(tmp_path, read, unpacked):
    """What it says of its size is looked at before an array is read."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, edge_logits=np.zeros((9, 2)), inputs=np.zeros(9), answers=np.zeros(9))
    assert read(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"written anew"
        archive.infolist()[0].file_size = unpacked
    with pytest.raises((BadInput, CatalogError), match="unpack"):
        read(path)


def test_an_archive_of_zeros(tmp_path):
    """It is small, and what it unpacks to is not too much."""
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((1 << 22, 1), np.uint8), b=np.ones(3))
    assert {name: array.shape for name, array in read_arrays(tmp_path / "a.npz").items()} == {"a": (1 << 22, 1), "b": (3,)}


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x93NUMPY", b"x = '", b"", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive(tmp_path, content):
    """Whatever numpy and zipfile raise of it, the canaries cannot be read."""
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(CatalogError):
        read_canaries(tmp_path / "c.npz")


def test_numbers_of_json():
    """None is above any float; within, they are as they were."""
    assert parse_json("[1e308, -17, 12345678901234567890, 1.5]") == [1e308, -17, 12345678901234567890, 1.5]
    for wrong in ("9" * 309, "[1e400]", "[-1e400]", "[" * 100_000):
        with pytest.raises(ValueError, match=r"number|nested"):
            parse_json(wrong)
    with pytest.raises(EdgerouteError):
        entries(b'{"format": %s}' % (b"9" * 400))
