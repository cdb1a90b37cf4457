"""What people expect of any command: help, pipes, JSON, narrow and plain terminals, Ctrl-C, and exit codes that mean one thing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from inspect import signature
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import tiny
import typer
from both import LONG
from commands import PYTHON, ROOT, cli
from draws import slow
from onnx import TensorProto, helper

from edgeroute.testing import CannedServer
from edgeroute.tools.cli.app import app
from edgeroute.tools.cli.command_runner import CRASHED, FAILED, INTERRUPTED, NO_ANSWER, NOBODY_READS, TOO_FEW, USAGE

ALL = ("check", "decide", "infer", "calibrate", "evaluate", "replay", "status", "egress", "serve", "schema", "demo", "docs")
GROUPS = ("outbox list", "outbox retry", "outbox drop", "outbox export", "simulate fleet")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with a policy whose names are not ASCII, data, a trace and a state folder with an outbox."""
    folder = tmp_path_factory.mktemp("desk")
    tiny.linear(folder / "edge.onnx", card={"labels": ["café", "naïve", "日本"], "name": "modèle"})
    (folder / "policy.toml").write_text(
        'threshold = 0.9\noffline = "queue"\nstate = "state"\n[edge]\npath = "edge.onnx"\n'
        '[cloud]\nurl = "http://127.0.0.1:9/v2/models/none"\nretries = 0\n[trace]\n',
        encoding="utf-8",
    )
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(600, 4)).astype(np.float32) * 5
    np.savez(folder / "data.npz", images=inputs, labels=inputs[:, :3].argmax(1))
    np.savez(folder / "few.npz", images=inputs[:3], labels=inputs[:3, :3].argmax(1))
    np.save(folder / "one.npy", inputs[0])
    np.savez(folder / "unsure.npz", images=np.full((3, 4), 0.1, np.float32), labels=[0, 0, 0])
    code, _, err = run("infer", "-p", "policy.toml", "unsure.npz", cwd=folder)
    assert code == 0, err
    return folder


def run(*args, stdin=b"", **options):
    """A command -> exit code, stdout, stderr."""
    return cli(*args, input=stdin, **options)


COMMANDS = [
    "check -p policy.toml",
    "decide -p policy.toml one.npy",
    "infer -p policy.toml unsure.npz",
    "calibrate -p policy.toml -d data.npz --max-error 5%",
    "evaluate -p policy.toml -d data.npz --no-cloud",
    "replay state/trace.jsonl -p policy.toml",
    "status --state state",
    "status -p policy.toml",
    "egress --state state",
    "outbox list --state state",
    "outbox export --state state",
    "outbox retry --all --state state",
    "outbox drop --all-dead --state state",
    "schema",
    "schema card",
    "docs",
    "docs devices",
    *slow("simulate fleet --devices 100 --length 2m"),
]


def test_short_help_and_completion():
    """`-h` is `--help`, for each command; a shell is completed."""
    code, out, err = run("-h")
    assert (code, err) == (0, "")
    for name in ALL:
        assert name in out
    assert "--install-completion" in out
    assert run("outbox", "-h")[0] == 0
    code, out, _ = run("infer", "-h")
    assert code == 0
    assert "--policy" in re.sub(r"\x1b\[[\d;]*m", "", out)
    code, out, _ = run(
        env={**os.environ, "_EDGEROUTE_COMPLETE": "complete_bash", "COMP_WORDS": "edgeroute cali", "COMP_CWORD": "1"}
    )
    assert out.split() == ["calibrate"]


@pytest.mark.parametrize(
    ("command", "text"),
    [("serve", "edgeroute[prometheus]"), ("recertify", "Put a hidden edge on [trial] in force"), ("", "[trial]")],
)
def test_help_has_its_brackets(command, text):
    """They are no markup."""
    code, out, _ = run(*command.split(), "--help", env={**os.environ, "COLUMNS": "200"})
    out = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert code == 0
    assert text in out
    assert "\\[" not in out


def test_each_command_has_json():
    """None is left out."""
    group = typer.main.get_command(app)
    found = {name: command for name, command in group.commands.items() if not hasattr(command, "commands")}
    found |= {f"{name} {sub}": c for name, g in group.commands.items() for sub, c in getattr(g, "commands", {}).items()}
    assert set(found) >= {*ALL, *GROUPS}
    without = [name for name, command in found.items() if not any("--json" in parameter.opts for parameter in command.params)]
    assert without == []


@pytest.mark.parametrize("command", COMMANDS)
def test_json_and_ascii(desk, command):
    """With --json stdout is JSON and nothing else, a document or a line each; without it, in ASCII, no command fails."""
    code, out, err = run(*command.split(), "--json", cwd=desk)
    assert "Traceback" not in err
    documents = [json.loads(line) for line in out.splitlines()]
    assert documents
    again, out, err = run(*command.split(), cwd=desk, encoding="ascii")
    assert again == code, err
    assert out
    assert "Traceback" not in err


class Terminal:
    """A program in a terminal of 40 columns."""

    def __init__(self, command, **options):
        self._mine, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 40)) if hasattr(termios, "tcsetwinsize") else _size(theirs)
        environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}} | {"TERM": "xterm"}
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, **options)
        os.close(theirs)

    def read(self):
        """All that it shows, to its end."""
        said = b""
        while True:
            try:
                piece = os.read(self._mine, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            said += piece
        os.close(self._mine)
        self.process.wait()
        return said.decode(errors="replace").replace("\r", "")


def _size(descriptor):
    import fcntl
    import struct

    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))


@pytest.mark.parametrize(
    "command", ["outbox list --state state", *slow("egress --state state", "evaluate -p policy.toml -d data.npz --no-cloud")]
)
def test_forty_columns(desk, command):
    """A table that does not fit is a paragraph for each row; no word is cut into letters, nothing is left out."""
    terminal = Terminal([*PYTHON, *command.split()], cwd=desk)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.read())
    assert terminal.process.returncode == 0, said
    lines = said.splitlines()
    assert "Traceback" not in said
    assert all(len(line) <= 40 for line in lines if "│" in line), said
    assert "…" not in said
    if "outbox" in command:
        assert "state: waiting" in lines
        assert any(line.startswith("attempts: ") for line in lines)


@pytest.mark.slow
def test_progress_of_a_fleet_is_shown_on_a_terminal_alone(desk):
    """On stderr."""
    command = "simulate fleet --devices 100 --length 2m"
    assert "simulating" in Terminal([*PYTHON, *command.split()], cwd=desk).read()
    code, _, err = run(*command.split(), cwd=desk)
    assert (code, err) == (0, "")


# ------------------------------------------------------------------------------------------------- stdin
def test_an_array_from_stdin(desk):
    """As from a file; an .npz has its rows, and an image is one."""
    file = io.BytesIO()
    np.save(file, np.array([9, 0, 0, 0], np.float32))
    code, out, err = run("infer", "-p", "policy.toml", "-", "--json", stdin=file.getvalue(), cwd=desk)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["input"], answer["value"]) == ("-", "café")
    code, out, err = run("infer", "-p", "policy.toml", "-", "--json", stdin=(desk / "few.npz").read_bytes(), cwd=desk)
    assert [json.loads(line)["input"] for line in out.splitlines()] == ["-[0]", "-[1]", "-[2]"]


def test_lines_of_json_from_stdin(desk):
    """A line is an input; one that is none is told of with its number."""
    code, out, err = run("infer", "-p", "policy.toml", "-", "--json", stdin=b"[9.0, 0, 0, 0]\n\n[0, 9.5, 0, 0]\n", cwd=desk)
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(a["input"], a["value"]) for a in answers] == [("-:1", "café"), ("-:3", "naïve")]
    code, out, err = run("decide", "-p", "policy.toml", "-", "--json", stdin=b"[9.0, 0, 0, 0]", cwd=desk)
    assert (code, json.loads(out)["sends_to"]) == (0, [])
    code, out, err = run("infer", "-p", "policy.toml", "-", "--json", stdin=b"[1, 2\n", cwd=desk)
    assert (code, out) == (1, "")
    assert json.loads(err)["error"].startswith("-:1: expected an input as JSON")
    code, out, err = run("infer", "-p", "policy.toml", "-", cwd=desk)
    assert code == 1
    assert "nothing on stdin" in err


def test_examples_and_traces_from_stdin(desk):
    """Where a file is read, stdin is."""
    data = (desk / "data.npz").read_bytes()
    code, out, err = run("evaluate", "-p", "policy.toml", "-d", "-", "--no-cloud", "--json", stdin=data, cwd=desk)
    assert (code, json.loads(out)["n"]) == (0, 600), err
    trace = (desk / "state" / "trace.jsonl").read_bytes()
    code, out, err = run("replay", "-", "-p", "policy.toml", "--json", stdin=trace, cwd=desk)
    assert code == 0, err
    assert json.loads(out) == json.loads(run("replay", "state/trace.jsonl", "-p", "policy.toml", "--json", cwd=desk)[1])


# ------------------------------------------------------------------------------------------------- exit codes
def test_each_way_to_fail_has_a_code_of_its_own(desk, monkeypatch):
    """1 is an input, and nothing else."""
    assert run("infer", "-p", "policy.toml", "none.npy", cwd=desk)[0] == 1
    assert run("check", "-p", "none.toml", cwd=desk)[0] == USAGE
    assert run("infer", "-p", "policy.toml", "unsure.npz", "--mode", "only_cloud", cwd=desk)[0] == NO_ANSWER
    code, out, _ = run("check", "-p", "policy.toml", "--json", cwd=desk)
    assert (code, json.loads(out)["ok"]) == (FAILED, False)
    code, out, err = run("calibrate", "-p", "policy.toml", "-d", "few.npz", "--max-error", "1%", "--json", cwd=desk)
    assert (code, out, json.loads(err)["kind"]) == (TOO_FEW, "", "NotEnough")


@pytest.mark.parametrize("command", ["status", "top", "egress"])
def test_a_policy_without_its_option(command):
    """Only `check` takes the file alone; others say how it is given."""
    code, out, err = cli(command, "policy.toml", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err)["error"].endswith("(policy.toml): a policy is given by --policy")


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("calibrate model.onnx rows.csv", ('path = "model.onnx"', "edgeroute calibrate --policy policy.toml --max-error 5% --data rows.csv")),
        ("evaluate rows.csv", ('path = "model.onnx"', "edgeroute evaluate --policy policy.toml --data rows.csv")),
        ("infer my.tflite rows.csv", ('path = "my.tflite"', "edgeroute infer --policy policy.toml rows.csv")),
        ("calibrate --max-error=0.05 --data=my.csv", ('path = "model.onnx"', "--max-error 5% --data my.csv")),
        ("gateway --port 8000 --host 127.0.0.1", ("edgeroute gateway --policy policy.toml",)),
        ("gateway my.gguf", ('path = "my.gguf"', "edgeroute gateway --policy policy.toml")),
    ],
)  # fmt: skip
def test_a_model_without_a_policy(command, lines):
    """What to write, with the files that were given, and the command after that."""
    code, out, err = cli(*command.split(), "--json")
    assert (code, out) == (USAGE, "")
    for line in lines:
        assert line in json.loads(err)["error"]


def test_examples_without_their_option():
    """A policy alone does not tell what a further file is."""
    code, _, err = cli("evaluate", "-p", "policy.toml", "-d", "a.csv", "rows.csv", "--json")
    assert code == USAGE
    assert json.loads(err)["error"].endswith("(rows.csv): examples are given by --data, and the model by the policy")


def test_a_usage_error_is_json_where_that_is_asked_for():
    """On stderr; stdout is empty."""
    code, out, err = run("infer", "--json", "--batch", "x", "-p", "a.toml", "b.npy")
    assert (code, out) == (USAGE, "")
    said = json.loads(err)
    assert said["kind"] == "Usage"
    assert "--batch" in said["error"]
    code, out, err = run("infer", "--batch", "x", "-p", "a.toml", "b.npy")
    assert (code, out) == (USAGE, "")
    assert "Traceback" not in err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_mistake_of_ours_has_a_code_of_its_own(monkeypatch, as_json):
    """It is told with its traceback, or as JSON."""

    def wrong():
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("edgeroute.policy.schema", wrong)
    code, out, err = run("schema", *(["--json"] if as_json else []))
    assert (code, out) == (CRASHED, "")
    if as_json:
        assert json.loads(err) == {"error": "ours", "kind": "ZeroDivisionError"}
    else:
        assert "Traceback" in err
        assert "ZeroDivisionError: ours" in err


def test_a_question_that_is_not_answered_changes_nothing(desk):
    """The end of stdin is no yes."""
    ids = [e["id"] for e in json.loads(run("outbox", "list", "--state", "state", "--json", cwd=desk)[1])["entries"]]
    code, out, err = run("outbox", "drop", ids[0], "--state", "state", cwd=desk)
    assert (code, out) == (INTERRUPTED, "")
    assert "Traceback" not in err
    assert len(json.loads(run("outbox", "list", "--state", "state", "--json", cwd=desk)[1])["entries"]) == len(ids)


@pytest.mark.parametrize(
    "command", ["schema", *slow("docs design", "outbox export --state state", "--help", "infer -p policy.toml data.npz --json")]
)
def test_a_reader_that_goes_away(desk, command):
    """`| head`: no traceback, nothing on stderr."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PYTHON, *command.split()], stdout=write, stderr=subprocess.PIPE, check=False, cwd=desk)
    os.close(write)
    assert (done.returncode, done.stderr) == (NOBODY_READS, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize(
    "command",
    [
        "policies list",
        *slow("policies list --json", "--help", "infer -p policy.toml data.npz --json", "serve edge.onnx --port 0 --json"),
    ],
)
def test_output_that_cannot_be_written(desk, command):
    """A full disk is told in one line, and is no mistake of edgeroute."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*PYTHON, *command.split()], stdout=full, stderr=subprocess.PIPE, check=False, cwd=desk)
    assert done.returncode == USAGE
    (line,) = done.stderr.decode().splitlines()
    text = json.loads(line)["error"] if "--json" in command else line.removeprefix("error: ")
    assert text == "the output cannot be written: No space left on device"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_errors_that_cannot_be_written(desk):
    """A full disk below the log changes neither the output nor the exit code."""
    with Path("/dev/full").open("wb") as full:
        wrong = subprocess.run([*PYTHON, "nope"], stdout=subprocess.PIPE, stderr=full, check=False, cwd=desk)
        mixed = "infer -p policy.toml data.npz none.npy --json"
        right = subprocess.run([*PYTHON, *mixed.split()], stdout=subprocess.PIPE, stderr=full, check=False, cwd=desk)
    assert (wrong.returncode, wrong.stdout) == (USAGE, b"")
    assert right.returncode in {FAILED, USAGE}


STREAMS = """
import atexit, os, sys
from pathlib import Path
for number in range(3):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
atexit.register(lambda: Path(TOLD).write_text(" ".join(os.readlink(f"/proc/self/fd/{number}") for number in range(3))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers of files are read in /proc")
@pytest.mark.parametrize(("arguments", "code"), [(["policies", "list"], 0), (["nope"], USAGE)])
def test_closed_streams(arguments, code, tmp_path):
    """Without standard streams a command ends with its code, and no file or socket gets their numbers: libraries write there."""
    told = tmp_path / "told"
    assert main(*arguments, first=f"TOLD = {str(told)!r}{STREAMS}")[0] == code
    assert told.read_text() == "/dev/null /dev/null /dev/null"


def test_names_with_colons(tmp_path):
    """`:v:` and `:a:`, as in versions and IPv6 addresses, are printed as they are, and no markup of rich."""
    tiny.linear(tmp_path / "edge.onnx", card={"labels": ["model:v:1", "model:v:2", "[red]model:v:3"]})
    (tmp_path / "policy.toml").write_text('mode = "only_edge"\n[edge]\npath = "edge.onnx"\n')
    np.save(tmp_path / "x:a:b.npy", np.float32([9, 0, 0, 0]))
    code, out, err = run("infer", "-p", "policy.toml", "x:a:b.npy", "none:a:b.npy", cwd=tmp_path)
    assert (code, "x:a:b.npy: model:v:" in out, "none:a:b.npy" in err) == (FAILED, True, True), out + err
    code, out, err = run("infer", "-p", "policy.toml", "x:a:b.npy", "none:a:b.npy", "--json", cwd=tmp_path)
    assert json.loads(err)["input"] == "none:a:b.npy"


@pytest.mark.parametrize(("x", "value"), [([-1.0, 1.0], [None, 0.0]), ([0.0, 1.0], [None, 0.0]), ([1.0, 1.0], [0.0, 0.0])])
def test_values_that_json_has_not(tmp_path, x, value):
    """NaN and infinities are null, and the other inputs are answered."""
    node = helper.make_node("Log", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    tiny.save(tmp_path / "edge.onnx", [node], ends[:1], ends[1:])
    (tmp_path / "edge.json").write_text('{"output": {"kind": "value"}}')
    (tmp_path / "policy.toml").write_text('mode = "only_edge"\n[edge]\npath = "edge.onnx"\n')
    np.savez(tmp_path / "x.npz", X=np.float32([x, [1, 1]]))
    code, out, err = run("infer", "-p", "policy.toml", "x.npz", "--json", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert [json.loads(line, parse_constant=float)["value"] for line in out.splitlines()] == [value, [0.0, 0.0]]


LONG_NAME = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        f"policies copy ladder {LONG_NAME}", f"service install --folder {LONG_NAME} -- serve m.onnx",
        f"check {LONG_NAME}.toml", f"trace convert {LONG_NAME} b.parquet",
        f"export triton edge.onnx --out {LONG_NAME}", f"status --state {LONG_NAME}", f"serve {LONG_NAME}.onnx", "convert /",
    ],
)  # fmt: skip
def test_a_path_that_the_system_refuses(desk, command):
    """It is told in one line, as text or JSON: too long a name, or a folder that may not be read."""
    before, dashes, after = command.partition(" -- ")
    code, out, err = run(*before.split(), "--json", *dashes.split(), *after.split(), cwd=desk)
    assert (code, out) == (USAGE, ""), err
    assert json.loads(err)["error"]


# ------------------------------------------------------------------------------------------------- Ctrl-C
@pytest.mark.parametrize(
    "command", ["infer data.npz --mode only_cloud", *slow("calibrate --max-loss 5% -d data.npz", "evaluate -d data.npz")]
)
def test_ctrl_c_while_the_cloud_is_silent(desk, interruptible, command, tmp_path):
    """The command ends, with its code and without a word; it would wait much longer."""
    with CannedServer(None) as silent:
        (tmp_path / "edge.onnx").write_bytes((desk / "edge.onnx").read_bytes())
        text = f'threshold = 0.9\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "{silent.url}/v2/models/m"\ntimeout = "1h"\n'
        (tmp_path / "policy.toml").write_text(text)
        arguments = [*PYTHON, *command.split(), "-p", str(tmp_path / "policy.toml")]
        with subprocess.Popen(arguments, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            silent.wait_for(lambda: bool(silent.requests))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (INTERRUPTED, b"", b"")


def main(*arguments, first):
    """A command in a process that runs some code first -> exit code, stdout, stderr."""
    code = f"import sys; sys.argv = ['edgeroute', *sys.argv[1:]]\n{first}\nfrom edgeroute.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False, timeout=240)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


SIGINT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def test_ctrl_c_while_the_command_line_is_imported(interruptible):
    """It ends at once, without a traceback of an import; where Ctrl-C is ignored it goes on."""
    at = f"class At:\n  def find_spec(self, name, *_):\n    if name == 'edgeroute.tools.cli.check_decide_sensors_commands': exec({SIGINT!r})\nsys.meta_path[:0] = [At()]"
    assert main("docs", first=at) == (INTERRUPTED, "", "")
    code, out, err = main("docs", first=f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{at}")
    assert (code, "quickstart" in out, err) == (0, True, "")


def test_ctrl_c_ends_a_command_without_the_end_of_python(interruptible):
    """Which may take longer than all else: modules are taken apart, threads waited for. What was printed is there."""
    at = (
        "import atexit, edgeroute.system.late_imports_and_plugins as p; atexit.register(print, 'the end of Python')\n"
        f"def docs_folder(): print('begun'); exec({SIGINT!r})\n"
        "p.docs_folder = docs_folder"
    )
    assert main("docs", first=at) == (INTERRUPTED, "begun\n", "")


def test_ctrl_c_at_the_end_of_python(interruptible):
    """When all was done: no traceback."""
    code, out, err = main("docs", first=f"import atexit; atexit.register(lambda: exec({SIGINT!r}))")
    assert (code, "quickstart" in out, err) == (-signal.SIGINT, True, "")


def test_ctrl_c_ends_a_server(interruptible):
    """With the code of Ctrl-C."""
    command = [*PYTHON, "serve", "fashion", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["models"] == ["fashion-large"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (INTERRUPTED, b"", b"")


def test_ctrl_c_while_a_simulation_starts_its_processes(interruptible):
    """Waits until they are there, and ends them."""
    started = (
        f"from multiprocessing.process import BaseProcess as P\nstart = P.start\n"
        f"def starting(self):\n  start(self); exec({SIGINT!r})\n"
        "P.start = starting"
    )
    assert main("simulate", "fleet", "--devices", "5000000", "--length", "60m", first=started) == (INTERRUPTED, "", "")


@pytest.mark.slow
def test_ctrl_c_ends_the_processes_of_a_simulation(interruptible):
    """All of them, though they would simulate for minutes; where the terminal interrupts each of them, too, none says a word."""
    command = [*PYTHON, "simulate", "fleet", "--devices", "5000000", "--length", "60m", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        children, started = Path(f"/proc/{process.pid}/task/{process.pid}/children"), []
        while len(started) < 2:
            assert process.poll() is None
            started = children.read_text().split()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (INTERRUPTED, b"", b"")
    until = monotonic() + LONG
    while any(Path(f"/proc/{child}").exists() for child in started):  # one of them, Python's own, ends after its parent
        assert monotonic() < until


def test_each_server_has_a_port_of_its_own():
    """By default, the examples' too: none takes another's clients."""
    from edgeroute.tools.cli.servers_and_dashboards import dashboard, gateway, serve

    ports = [signature(command).parameters["port"].default for command in (serve, gateway, dashboard)]
    given = re.compile(r'(?:--port"[^)]*default=|port: int = |--port |tcp://127\.0\.0\.1:)(\d{4,5})\b')
    for folder in sorted((ROOT / "examples").iterdir()):
        texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")) if not file.name.startswith("test_")]
        ports += {int(port) for text in texts for port in given.findall(text)} - ({8484} if folder.name == "gateway" else set())
    assert len(ports) >= 7
    assert len(set(ports)) == len(ports), sorted(ports)
