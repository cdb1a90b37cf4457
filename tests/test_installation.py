"""Commands on the installation: units that systemd verifies, example policies that `check` reads, and what a bug report needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from both import LONG
from commands import cli

ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def model(tmp_path):
    (tmp_path / "models").mkdir()
    return tiny.linear(tmp_path / "models" / "m.onnx")


def installed(folder, *options, command):
    """Install a unit in the folder -> its path."""
    code, out, err = cli("service", "install", "--folder", folder, "--json", *options, "--", *command)
    assert code == 0, err
    return Path(json.loads(out)["unit"])


def settings(unit):
    """Return the lines of a unit that are settings."""
    return [line for line in unit.read_text().splitlines() if "=" in line and not line.startswith("#")]


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("name", ["edgeroute", "shop-2"])
def test_systemd_finds_nothing_wrong(tmp_path, model, system, name):
    """Neither with a unit of the system, which is little exposed, nor with one of a user, which is exposed more."""
    unit = installed(tmp_path, "--system" if system else "--user", "--name", name, command=["serve", model, "--port", "8080"])
    command = [ANALYZE, *["--user"] * (not system), "verify", "--man=no", unit]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * LONG, env=environment)
    told = [line for line in (done.stdout + done.stderr).splitlines() if name in line]
    assert (done.returncode, told) == (0, [])
    most = ["--threshold=25"] if system else ["--user", "--threshold=70"]  # what a user's manager may set is less
    command = [ANALYZE, "security", "--offline=true", *most, unit]
    assert subprocess.run(command, capture_output=True, check=False, timeout=2 * LONG, env=environment).returncode == 0


def test_a_unit_has_the_real_paths(tmp_path, model, monkeypatch):
    """Relative ones are of the folder in which the command ran; signs that systemd would expand are escaped."""
    odd = model.parent / "a $b %c.onnx"
    shutil.copyfile(model, odd)
    monkeypatch.chdir(model.parent)
    unit = installed(tmp_path, "--system", command=["serve", "m.onnx", odd.name, "--port=80"])
    line = next(line for line in settings(unit) if line.startswith("ExecStart="))
    escaped = str(odd).replace("$", "$$").replace("%", "%%")
    assert line == f'ExecStart={sys.executable} -m edgeroute serve {model} "{escaped}" --port=80'


def test_a_gateway_may_reach_its_clouds(tmp_path, model):
    """A server of models needs the machine's own addresses alone."""
    policy = tmp_path / "policy.toml"
    policy.write_text(f'threshold = 0.5\n[edge]\npath = "{model}"\n')
    restricted = [
        any(line.startswith("IPAddressDeny=") for line in settings(installed(tmp_path, "--system", "--force", command=command)))
        for command in (["serve", model], ["gateway", "--policy", policy])
    ]
    assert restricted == [True, False]


def test_the_unit_of_a_user_sets_nothing_of_the_system(tmp_path, model):
    unit = installed(tmp_path, command=["serve", model])
    assert unit.read_text() == installed(tmp_path, "--user", "--force", command=["serve", model]).read_text(), "the default"
    names = {line.partition("=")[0] for line in settings(unit)}
    assert not names & {"DynamicUser", "ProtectHome", "PrivateDevices", "CapabilityBoundingSet", "IPAddressDeny"}
    assert {"ExecStart", "NoNewPrivileges", "StateDirectory"} <= names
    assert "WantedBy=default.target" in settings(unit)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["--folder", "{}", "--", "demo"], 2),
        (["--folder", "{}", "--name", "a/b", "--", "serve", "m.onnx"], 2),
        (["--folder", "{}", "--name=-x", "--", "serve", "m.onnx"], 2),
        (["--folder", "{}", "--", "serve", "m.onnx\nExecStartPre=/bin/false"], 2),
        (["--folder", "{}", "--", "serve", "m\udcff.onnx"], 2),
        (["--folder", "{}/models/m.onnx", "--", "serve", "m.onnx"], 2),
        (["--folder", "{}", "--", "gateway", "--policy", "https://user:hunter2@host/p.toml"], 2),
        (["--folder", "{}", "--", "serve", "https://host/m.onnx?sig=hunter2"], 2),
    ],
)
def test_units_that_are_not_written(tmp_path, model, given, code):
    found, _, err = cli("service", "install", *(argument.format(tmp_path) for argument in given))
    assert (found, "Traceback" in err, "hunter2" in err) == (code, False, False)
    assert not [*tmp_path.rglob("*.service")]


def test_an_existing_file_stays(tmp_path, model):
    unit = installed(tmp_path, command=["serve", model])
    unit.write_text("mine")
    assert cli("service", "install", "--folder", tmp_path, "--", "serve", model)[0] == 2
    assert unit.read_text() == "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_keeps_the_old_file(tmp_path, there):
    """A file is replaced as a whole, and nothing is left of one that could not be written."""
    resource = pytest.importorskip("resource")
    if there:
        (tmp_path / "p.toml").write_text("mine")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    copy = f"policies copy ladder {tmp_path / 'p.toml'} --force"
    program = f"import sys; sys.argv = {['edgeroute', *copy.split()]}\nfrom edgeroute.__main__ import main; main()"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, {hard}))\n"
    done = subprocess.run([sys.executable, "-c", limit + program], capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'p.toml'} cannot be written: File too large\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"p.toml": "mine"} if there else {})


def test_policies_are_copied(tmp_path):
    """Each that is listed, to a file that is not there yet."""
    code, out, _ = cli("policies", "list", "--json")
    known = json.loads(out)
    assert code == 0
    assert {"prefer-edge", "only-edge", "ladder"} <= known.keys()
    for name in known:
        assert cli("policies", "copy", name, tmp_path / f"{name}.toml")[0] == 0
        assert 'mode = "' in (tmp_path / f"{name}.toml").read_text()
        assert cli("policies", "copy", name, tmp_path / f"{name}.toml")[0] == 2
    code, _, err = cli("policies", "copy", "prefer-egde")
    assert (code, "prefer-edge" in err) == (2, True)


def test_a_bug_report_has_no_secret(monkeypatch, tmp_path):
    """Names of variables alone; runtimes that are not here are told by their error, and those that are write and send nothing."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    home, absent = tmp_path / "home", tmp_path / "absent"
    home.mkdir()
    absent.mkdir()
    (absent / "xllamacpp.py").write_text("raise ImportError('it is not here')\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(absent), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("EDGEROUTE_CLOUD__API_KEY", "hunter2")
    code, out, _ = cli("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert "hunter2" not in out
    assert report["variables"] == "EDGEROUTE_CLOUD__API_KEY"
    assert report["packages"]["numpy"]
    assert list(home.iterdir()) == []
    assert set(report["runtimes"]) >= {"onnxruntime", "litert", "llama"}
    assert report["runtimes"]["llama"] == "ImportError: it is not here"
    assert (report["runtimes"]["coreml"] == "runs on macOS alone") == (sys.platform != "darwin")
    if report["runtimes"]["onnxruntime"] == "works":
        assert report["runtimes"]["onnxruntime, CPUExecutionProvider"] == "works"
    azure = "onnxruntime, AzureExecutionProvider"  # of PyPI's wheel: it sends its own operators away, which no usual model has
    # ONNX Runtime 1.23, the last one for Python 3.10, does not tell.
    assert report["runtimes"].get(azure, "works") in {"works", "runs no part of the test model"}
