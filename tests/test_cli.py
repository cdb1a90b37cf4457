"""The commands as they are run: what they print, where, and how they end."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tiny
import typer
from both import LONG, running
from commands import PYTHON, ROOT, cli, started
from draws import slow
from PIL import Image

import edgeroute
from edgeroute import BadInput, DeadlineExceeded, ModelMissing, OnnxModel, PolicyError, RuntimeMissing, Unreachable
from edgeroute.testing import CannedServer
from edgeroute.tools.cli.command_runner import code_of, line
from edgeroute.tools.cli.inputs_labels_and_outputs import expand_folders, read_inputs, recorded_outputs
from edgeroute.tools.cli.tables_and_options import seconds, share
from edgeroute.tools.server.serve import app as served

SURE, UNSURE = 9.0, 1.0


def refused(url):
    """Whether nothing listens there any more."""
    with socket.socket() as s:
        return s.connect_ex((urlsplit(url).hostname, urlsplit(url).port)) != 0


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A server of a model that says "c" to everything. -> its URL."""
    model = tiny.linear(tmp_path_factory.mktemp("cloud") / "big.onnx", weights=[[0, 0, 1]] * 4, card={"name": "always-c"})
    with running(served([OnnxModel(model)])) as client:
        yield f"{client.base_url}/v2/models/always-c"


@pytest.fixture
def policy(tmp_path):
    """Writes a policy for an edge model that says where its input is largest, and for a cloud at `url`."""
    tiny.linear(tmp_path / "edge.onnx", card={"labels": ["a", "b", "c"]})

    def write(url="http://127.0.0.1:9/v2/models/none"):
        path = tmp_path / "policy.toml"
        path.write_text(f'threshold = 0.9\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "{url}"\nretries = 0\n')
        return path

    return write


@pytest.fixture
def inputs(tmp_path):
    """a, b and c for the edge, which is not sure of the second; the labels say c of both the last two."""
    rows = np.eye(3, 4, dtype=np.float32) * np.array([[SURE], [UNSURE], [SURE]], np.float32)
    path = tmp_path / "inputs.npz"
    np.savez(path, labels=np.array([0, 2, 2]), images=rows)
    return path


# ------------------------------------------------------------------------------------------------- the whole
def test_help_lists_commands_and_exit_codes():
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    for word in ("check", "decide", "infer", "serve", "schema", "demo", "Exit codes", "130"):
        assert word in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['edgeroute', '--help']\n"
        "from edgeroute.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'numpy', 'onnxruntime', 'httpx', 'pydantic', 'matplotlib', 'starlette'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


def test_version():
    assert cli("--version") == (0, f"edgeroute {edgeroute.__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "ends"),
    [
        ("check --policy none.toml", 2), ("replay none.jsonl --policy none.toml", 1),
        *slow(
            ("prune --help", 0), ("models status", 0),
            ("decide --policy none.toml x.npy", 2), ("recertify --policy none.toml", 2), ("status --state none", 1), ("arms none", 1),
            ("top --record none.jsonl", 1), ("quantize none.onnx", 2), ("sensors --help", 0), ("demo --data none", 1),
            ("export triton none.onnx -o out", 2),
        ),
    ],
)  # fmt: skip
def test_a_process_says_what_its_entry_point_says(tmp_path, command, ends):
    """`python -m edgeroute` of each command that no other test starts: its exit code, its output, and its errors."""
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([*PYTHON, *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == cli(*command.split(), cwd=tmp_path, env=environment)
    assert done.returncode == ends
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from edgeroute.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("the command line needs more: pip install 'edgeroute[cli]'; the documentation is in ")


@pytest.mark.parametrize(
    "args", [["nothing"], ["infer"], ["check", "--policy"], ["serve", "x.onnx", "--port", "70000"], ["demo", "--rtt", "80"]]
)
def test_wrong_usage(args):
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "Error" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("x"), 1),
        (PolicyError("x"), 2),
        (ModelMissing("x"), 2),
        (RuntimeMissing("x"), 2),
        (Unreachable("x"), 3),
        (DeadlineExceeded("x"), 3),
    ],
)
def test_exit_codes(error, code):
    assert code_of(error) == code


def test_an_error_in_one_line():
    assert line(BadInput("too long"), as_json=False, input="x.npy") == "error: x.npy: too long"
    assert line(BadInput(), as_json=False) == "error: BadInput"
    assert json.loads(line(BadInput("too long"), as_json=True, input="x.npy")) == {
        "input": "x.npy", "error": "too long", "kind": "BadInput",
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(("text", "value"), [("300ms", 0.3), ("1.5s", 1.5), ("2m", 120.0), (" 80 ms ", 0.08), ("0s", 0.0)])
def test_times(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["300", "ms", "-1s", "1w", "1e3s", "", "nan"])
def test_times_that_are_none(text):
    with pytest.raises(typer.BadParameter, match="a time needs a unit"):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("20%", 0.2), ("0.2", 0.2), ("0", 0.0), ("100 %", 1.0), ("1", 1.0), (0.2, 0.2)])
def test_shares(text, value):
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["20", "101%", "-1%", "%", "", "nan"])
def test_shares_that_are_none(text):
    with pytest.raises(typer.BadParameter, match="0% to 100%"):
        share(text)


# --------------------------------------------------------------------------------------------------- inputs
def test_files_below_a_folder_are_found_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("b.npy", "a.NPZ", "note.txt", "sub/c.png"):
        (tmp_path / name).touch()
    inside = [tmp_path / "a.NPZ", tmp_path / "b.npy", tmp_path / "sub" / "c.png"]
    assert expand_folders([tmp_path, tmp_path / "note.txt", tmp_path / "empty"]) == [
        *inside,
        tmp_path / "note.txt",
        tmp_path / "empty",
    ]


def test_reading_arrays(tmp_path, inputs):
    np.save(tmp_path / "one.npy", np.arange(4))
    (one,) = read_inputs(tmp_path / "one.npy")
    assert (one.name, one.x.tolist(), one.label) == (str(tmp_path / "one.npy"), [0, 1, 2, 3], None)
    rows = read_inputs(inputs)
    assert [row.name for row in rows] == [f"{inputs}[{i}]" for i in range(3)]
    assert [row.label for row in rows] == [0, 2, 2]
    assert rows[1].x.tolist() == [0, UNSURE, 0, 0]


def test_the_first_array_where_none_is_called_images(tmp_path):
    np.savez(tmp_path / "x.npz", labels=["p", "q"], first=[[1.0], [2.0]], second=[[3.0]])
    assert [(row.x.tolist(), row.label) for row in read_inputs(tmp_path / "x.npz")] == [([1.0], "p"), ([2.0], "q")]


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", (2, 3)), ("RGB", (2, 3, 3)), ("1", (2, 3)), ("P", (2, 3, 3)), ("RGBA", (2, 3, 3))]
)
def test_reading_images(tmp_path, mode, shape):
    Image.new(mode, (3, 2)).save(tmp_path / "x.png")
    (item,) = read_inputs(tmp_path / "x.png")
    assert (item.x.shape, item.x.dtype) == (shape, np.uint8)


def test_images_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeroute\[image\]'"):
        read_inputs(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_files_that_are_broken(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name} cannot be read"):
        read_inputs(tmp_path / name)


def header(text):
    """A .npy file with this header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(name, content, method=0, flags=0):
    """An .npz file with this member, of a compression and with flags as they are written to its directory."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(name, content)
    raw = bytearray(made.getvalue())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = raw.index(magic) + at
        raw[start] |= flags
        raw[start + 2] = method or raw[start + 2]
    return bytes(raw)


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }\n"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.npy", header(HUGE % 10**14), "MemoryError: "),
        ("x.npy", header(HUGE % 10**30), "OverflowError: "),
        ("x.npy", header("{'descr': '<f8', 'shape': (3,"), "cannot be read: .+"),
        ("x.npy", header("{" * 10_001), "cannot be read: .+"),
        ("x.npz", archive("images.npy", b"", method=99), "compression method is not supported"),
        ("x.npz", archive("images.npy", b"", flags=1), "encrypted"),
        ("x.npz", archive("images", b"1234"), "its 'images' is no array"),
        ("x.npz", archive("edge_logits", b"1234"), "its 'edge_logits' is no array"),
        ("x.npz", archive("images.npy", header(HUGE % 10**14)), "MemoryError: "),
    ],
)
def test_whatever_a_parser_raises_is_the_files_fault(tmp_path, name, content, why):
    """In one line with the file's name, for inputs as for recorded outputs."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=why) as told:
        read_inputs(path)
    assert len(str(told.value).splitlines()) == 1
    assert str(told.value).startswith(f"{path} cannot be read: ")
    if b"edge_logits" in content:
        with pytest.raises(BadInput, match=why):
            recorded_outputs(path)


def test_an_array_under_the_name_of_an_archive(tmp_path):
    """It is one input, and no recorded outputs."""
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.arange(3))
    assert recorded_outputs(tmp_path / "x.npz") is None
    assert [item.x.tolist() for item in read_inputs(tmp_path / "x.npz")] == [[0, 1, 2]]


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(BadInput, match="cannot be read"):
        read_inputs(tmp_path / "x.npy")


def test_what_is_no_input(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    np.savez(tmp_path / "labels.npz", labels=[1])
    np.savez(tmp_path / "few.npz", images=np.zeros((2, 3)), labels=[1])
    np.savez(tmp_path / "number.npz", images=np.float32(1))
    for path, why in {
        tmp_path: "expected .npy",
        tmp_path / "x.txt": "expected .npy",
        tmp_path / "none.npy": "there is no such file",
        tmp_path / "none": "there is no such file",
        tmp_path / "labels.npz": "no array",
        tmp_path / "few.npz": "2 inputs and 1 labels",
        tmp_path / "number.npz": "cannot be read",
    }.items():
        with pytest.raises(BadInput, match=why):
            read_inputs(path)


# ------------------------------------------------------------------------------------------------- commands
def test_check(policy, cloud):
    code, out, err = cli("check", "--policy", policy(cloud))
    assert (code, err) == (0, "")
    assert f"inputs may leave this device, to {cloud}" in out
    code, out, err = cli("check", "--policy", policy(), "--json")
    said = json.loads(out)
    assert (code, err, said["ok"]) == (1, "", False)
    assert [text for text in said["lines"] if text.startswith("! cloud")]


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("https://huggingface.co/google/vit", "pipeline(model='google/vit')"),
        ("hf://google/vit", "pipeline(model='google/vit')"),
        ("https://example.com/m.onnx", "'https://example.com/m.onnx': it is on a server: download it"),
    ],
)
def test_check_of_an_address(given, step):
    """As `edge=` in Python says it: the address is no path, whose double slash would be one."""
    code, out, err = cli("check", given)
    assert (code, out) == (2, "")
    assert step in err


def test_an_unusable_policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("treshold = 0.9\n")
    code, out, err = cli("check", "--policy", path)
    assert (code, out) == (2, "")
    assert "treshold" in err
    assert "Traceback" not in err
    code, out, err = cli("check", "--policy", tmp_path / "none.toml", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err)["kind"] == "PolicyError"


def test_decide(policy, inputs):
    code, out, err = cli("decide", "--policy", policy(), inputs)
    assert (code, err) == (0, "")
    assert out.endswith("so it would stay on the device\n")
    code, out, err = cli("decide", "--policy", policy(), inputs, "--index", 1)
    assert (code, err) == (0, "")
    assert out.endswith("so it would leave the device, to http://127.0.0.1:9/v2/models/none\n")
    code, out, err = cli("decide", "--policy", policy(), inputs, "--index", 1, "--json")
    said = json.loads(out)
    assert (code, err, said["input"], said["sends_to"]) == (0, "", f"{inputs}[1]", ["http://127.0.0.1:9/v2/models/none"])
    assert "0.58 < 0.90" in " ".join(said["steps"])


def test_decide_on_what_is_not_there(policy, inputs, tmp_path):
    code, out, err = cli("decide", "--policy", policy(), inputs, "--index", 3)
    assert (code, out) == (2, "")
    assert "has 3 inputs" in err
    code, out, err = cli("decide", "--policy", policy(), tmp_path / "none.npy")
    assert (code, out, err) == (1, "", f"error: {tmp_path / 'none.npy'}: there is no such file\n")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_infer_as_json(policy, cloud, inputs, batch):
    code, out, err = cli("infer", "--policy", policy(cloud), inputs, "--json", "--batch", batch)
    answers = [json.loads(text) for text in out.splitlines()]
    assert (code, err) == (0, "")
    assert [a["input"] for a in answers] == [f"{inputs}[{i}]" for i in range(3)]
    assert [(a["value"], a["source"], a["degraded"]) for a in answers] == [
        ("a", "edge", False), ("c", "cloud", False), ("c", "edge", False),
    ]  # fmt: skip
    assert all(
        a.keys() == {"id", "input", "value", "source", "confidence", "degraded", "reason", "malformed", "latency_s"}
        for a in answers
    )
    assert len({a["id"] for a in answers}) == 3
    assert "0.58 < 0.90" in answers[1]["reason"]


def test_infer_in_a_table(policy, cloud, inputs):
    code, out, err = cli("infer", "--policy", policy(cloud), inputs)
    assert (code, err) == (0, "")
    rows = {cells[1].strip(): cells[2].strip() for text in out.splitlines() if len(cells := text.split("│")) == 4}
    assert rows["answered"] == "3"
    assert rows["by the edge"] == "2 (66.7 %)"
    assert rows["by the cloud"] == "1 (33.3 %)"
    assert rows["deferred"] == "33.3 % of requests"
    assert rows["degraded"] == "0"
    assert rows["accuracy"] == "100.00 % of 3 with a label"
    assert rows["latency, ms"].startswith("p50 ")
    assert not rows["bytes"].startswith("0 sent")
    assert f"{inputs}[1]: c  (edge 0.58" in out


@pytest.mark.parametrize("batch", [1, 9])
def test_an_input_that_fails_does_not_lose_the_others(policy, cloud, inputs, tmp_path, batch):
    np.save(tmp_path / "long.npy", np.zeros(7, np.float32))
    (tmp_path / "raw.npz").write_bytes(archive("images", b"1234"))
    named = [tmp_path / name for name in ("none.npy", "raw.npz", "long.npy")]
    args = ["infer", "--policy", policy(cloud), *named, inputs, "--batch", batch]
    code, out, err = cli(*args, "--json")
    assert code == 1
    assert len(out.splitlines()) == 3
    failed = [json.loads(text) for text in err.splitlines()]
    assert [(f["input"], f["kind"]) for f in failed] == [(str(path), "BadInput") for path in named]
    code, out, err = cli(*args)
    assert code == 1
    assert "3, and 3 failed" in out
    assert err.splitlines()[0] == f"error: {tmp_path / 'none.npy'}: there is no such file"
    assert err.splitlines()[1] == f"error: {tmp_path / 'raw.npz'} cannot be read: its 'images' is no array"
    assert err.splitlines()[2].startswith(f"error: {tmp_path / 'long.npy'}: x: expected [4] float32")


def test_infer_without_the_cloud(policy, inputs):
    code, out, err = cli("infer", "--policy", policy(), inputs, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(text)["degraded"] for text in out.splitlines()] == [False, True, False]
    code, out, err = cli("infer", "--policy", policy(), inputs, "--json", "--mode", "only_cloud")
    assert (code, out) == (3, "")
    assert [json.loads(text)["kind"] for text in err.splitlines()] == ["Unreachable"] * 3
    assert cli("infer", "--policy", policy(), inputs, "--json", "--mode", "only_edge")[0] == 0


@pytest.mark.slow
def test_infer_with_a_deadline(policy, inputs):
    with CannedServer(None) as silent:  # what the cloud never answers stands as the edge has it
        args = ["infer", "--policy", policy(f"{silent.url}/v2/models/none"), inputs, "--json", "--deadline", "8s"]
        code, out, err = cli(*args)
    assert (code, err) == (0, "")
    answers = [json.loads(text) for text in out.splitlines()]
    assert [a["degraded"] for a in answers] == [False, True, False]
    # the leg and the driver share the deadline, and either may be the one to notice
    assert "deadline" in answers[1]["reason"] or silent.url in answers[1]["reason"]


def test_a_mode_that_is_none(policy, inputs):
    code, out, err = cli("infer", "--policy", policy(), inputs, "--mode", "only_clod", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err)["kind"] == "PolicyError"
    assert "only_cloud" in err


def test_ctrl_c_ends_infer(policy, inputs, interruptible):
    with CannedServer(None) as silent:
        path = policy(f"{silent.url}/v2/models/none")
        command = [*PYTHON, "infer", "--policy", str(path), str(inputs), "--json", "--mode", "only_cloud"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            silent.wait_for(lambda: bool(silent.requests))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (130, "", "")


def test_schema():
    code, out, err = cli("schema")
    assert (code, err) == (0, "")
    assert "threshold" in json.loads(out)["properties"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_serve_ends_when_told(tmp_path, sent):
    one = tiny.linear(tmp_path / "one.onnx", card={"name": "first"})
    two = tiny.linear(tmp_path / "two.onnx")
    command = [*PYTHON, "serve", str(one), str(two), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first, second = process.stdout.readline().removeprefix("serving ").strip().split(", ")
        assert first.endswith("/v2/models/first")
        assert second.endswith("/v2/models/two")
        assert not refused(first)
        process.send_signal(sent)
        out, err = process.communicate(timeout=LONG)
        assert (process.returncode, out, err) == (130 if sent == signal.SIGINT else 0, "", "")
    assert refused(first)


SLOW = """
import atexit, time
import httpx
import numpy as np
from edgeroute import CallableModel
from edgeroute.types import TensorSpec

def run(x):
    if x.any():
        print("begun", flush=True)
        time.sleep(3600)
    return np.zeros((1, 1), "float32")

atexit.register(print, "handled")
model = CallableModel(run, inputs=[TensorSpec("x", "float32", (-1, 1))], name="slow")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("sent", [signal.SIGTERM, *slow(signal.SIGINT, signal.SIGHUP)])
def test_serve_ends_within_a_run(tmp_path, sent):
    """Once the run's time is over, however long it takes; exit handlers run."""
    (tmp_path / "endless.py").write_text(SLOW)
    ask = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    with started("serve", "endless:model", PYTHONPATH=path) as (process, url), ThreadPoolExecutor(1) as clients:
        waits = clients.submit(httpx.post, f"{url}/v2/models/slow/infer", json=ask, timeout=LONG)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sent)
        out, _ = process.communicate(timeout=LONG)
        assert (process.returncode, out) == (130 if sent == signal.SIGINT else 0, "handled\n")
        assert waits.result().status_code == 503


def test_serve_what_is_not_there(tmp_path):
    code, out, err = cli("serve", tmp_path / "none.onnx", "--port", "0", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err) == {"error": f"there is no model at {tmp_path / 'none.onnx'}", "kind": "ModelMissing"}


def test_serve_where_someone_listens(tmp_path, cloud):
    model = tiny.linear(tmp_path / "one.onnx")
    code, out, err = cli("serve", model, "--port", urlsplit(cloud).port)
    assert (code, out) == (2, "")
    assert err.startswith("error: cannot listen on 127.0.0.1:")
