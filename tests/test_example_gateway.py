"""examples/gateway as it stands: its policy, its client and its script, before a tiny model and a canned cloud."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import started

from edgeroute.testing import CannedServer, chat_events, sse_reply

EXAMPLE = Path(__file__).parents[1] / "examples" / "gateway"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """-> a function of a command, and the cloud. The tiny model of random weights is never sure."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("gateway")
    for file in filter(Path.is_file, EXAMPLE.iterdir()):
        shutil.copy(file, folder)
    pytest.importorskip("tiny_gguf").write(folder / "model.gguf", context=4096)
    with CannedServer(sse_reply(chat_events(["Pa", "ris"], usage=(7, 2)))) as far:
        environment = {"EDGEROUTE_CLOUD__URL": f"{far.url}/v1", "CLOUD_KEY": "key-of-the-cloud"}
        with started("gateway", "--policy", folder / "policy.toml", **environment) as (_, url):

            def ask(*command, **more):
                env = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", **more}
                done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
                assert done.returncode == 0, done.stderr
                return done.stdout

            yield ask, far


@pytest.mark.slow
def test_the_client(asked):
    """Shows the answer and where it came from; what is private never leaves."""
    ask, far = asked
    before = len(far.requests)
    said = ask(sys.executable, "client.py", "What is the capital of France?")
    assert said.startswith("Paris\n[cloud: ")
    assert "\n[edge: " in ask(sys.executable, "client.py", "between us", "private")
    assert len(far.requests) == before + 1
    assert not any(b"between us" in request for request in far.requests)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None or os.name != "posix", reason="there is no curl")
def test_the_script(asked):
    """The same by curl, with a question that JSON has to escape."""
    ask, far = asked
    said = ask("sh", "ask.sh", 'Is "\\" a backslash?')
    assert "x-edgeroute-source: cloud" in said
    assert '"content":"Paris"' in said
    assert b'Is \\"\\\\\\" a backslash?' in far.requests[-1]
    assert "x-edgeroute-source: edge" in ask("sh", "ask.sh", "between us", DATA_CLASS="private")
