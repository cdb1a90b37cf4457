"""`edgeroute gateway` as a process: a real language model behind it, its policy changed while it runs, signals, mistakes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
from commands import cli, started
from draws import slow
from gateways import CHAT, LONG, events, serving

from edgeroute import AsyncRouter

ROOT = Path(__file__).parents[1]
WAIT = 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model of random weights."""
    pytest.importorskip("xllamacpp")
    return pytest.importorskip("tiny_gguf").write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def policy(tmp_path, fashion):
    """Of the shipped edge model alone."""
    path = tmp_path / "shop.toml"
    path.write_text(f'mode = "only_edge"\n[edge]\npath = "{fashion / "edge.int8.onnx"}"\n')
    return path


ROW = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}]}


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("sig", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_it_ends_at_a_signal(policy, sig):
    """A connection that is kept alive does not hold it up; it leaves nothing, and has said nothing but where it listens."""
    with (
        started("gateway", "--policy", policy, GATEWAY_TOKEN="s3cret", OTHER="x") as (process, url),
        httpx.Client(base_url=url, timeout=WAIT) as client,
    ):
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["edgeroute", "shop"]
        assert client.post("/v2/models/shop/infer", json=ROW).status_code == 200
        process.send_signal(sig)
        out, err = process.communicate(timeout=WAIT)
        assert (process.returncode, out, err) == (130 if sig == signal.SIGINT else 0, "", "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=LONG)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, *slow(signal.SIG_IGN)])
def test_a_terminal_that_hangs_up(policy, handler):
    """It ends as at SIGTERM; under nohup it stays."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with started("gateway", "--policy", policy) as (process, url), httpx.Client(base_url=url, timeout=WAIT) as client:
            assert client.get("/v1/models").status_code == 200
            process.send_signal(signal.SIGHUP)
            if handler is signal.SIG_IGN:
                assert client.get("/v1/models").status_code == 200
                process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=WAIT)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (process.returncode, out, err) == (0, "", "")


def test_keys_that_the_policy_opens(policy):
    """By `[gateway] allow`; others stay closed."""
    policy.write_text(policy.read_text() + '[gateway]\nallow = ["top_k"]\n')
    with started("gateway", "--policy", policy) as (_, url), httpx.Client(base_url=url, timeout=WAIT) as client:
        refused = [
            "is no open key" in client.post("/v1/chat/completions", json={**CHAT, key: 1}).text for key in ("top_k", "top_z")
        ]
    assert refused == [False, True]


def test_a_policy_that_changes(policy):
    """Is in force for later requests; one that is wrong is logged, and changes nothing."""
    with started("gateway", "--policy", policy) as (process, url), httpx.Client(base_url=url, timeout=WAIT) as client:

        def classes():
            reply = client.post("/v2/models/shop/infer", json=ROW, headers={"x-edgeroute-data-class": "medical"})
            return reply.status_code

        assert classes() == 400
        text = policy.read_text()
        policy.write_text(text + '[egress]\nnever_leave = ["medical"]\n')
        while classes() != 200:
            pass
        policy.write_text("mode = 7\n")
        while "mode:" not in (said := process.stderr.readline()):
            assert said, "it has ended"
        assert classes() == 200


@pytest.mark.slow
def test_a_token_in_the_environment(policy):
    """Is asked for, and shown nowhere."""
    with started("gateway", "--policy", policy, "--token-env", "GATEWAY_TOKEN", GATEWAY_TOKEN="s3cret-of-all") as (process, url):
        assert httpx.get(f"{url}/v1/models", timeout=LONG).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer s3cret-of-all"}, timeout=LONG).status_code == 200
        process.terminate()
        out, err = process.communicate(timeout=WAIT)
    assert "s3cret" not in out + err


def test_mistakes(policy, tmp_path):
    """Each in one line, before anything listens."""
    code, _, err = cli("gateway", "--policy", policy, "--token-env", "NO_SUCH_NAME")
    assert (code, "NO_SUCH_NAME" in err, err.count("\n")) == (2, True, 1)
    code, _, err = cli("gateway", "--policy", policy, "--host", "0.0.0.0")
    assert (code, "--token-env" in err, err.count("\n")) == (2, True, 1)
    code, _, err = cli("gateway", "--policy", tmp_path / "none.toml")
    assert (code, "none.toml" in err, err.count("\n")) == (2, True, 1)
    code, _, err = cli("gateway", "--policy", policy, "--name", "a/b")
    assert (code, "a/b" in err, err.count("\n")) == (2, True, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = cli("gateway", "--policy", policy, "--port", taken.getsockname()[1])
    assert (code, "cannot listen" in err, err.count("\n")) == (2, True, 1)


def test_without_llama_cpp(tmp_path, monkeypatch):
    """One line with what to install, at once: no client meets a gateway whose model cannot run."""
    tiny_gguf = pytest.importorskip("tiny_gguf")
    tiny_gguf.write(tmp_path / "chat.gguf")
    (tmp_path / "chat.toml").write_text('[edge]\npath = "chat.gguf"\n')
    for package in ("xllamacpp", "llama_cpp"):
        monkeypatch.setitem(sys.modules, package, None)
    code, out, err = cli("gateway", "--policy", tmp_path / "chat.toml", "--port", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'edgeroute[llama]'" in err


@pytest.mark.slow
@pytest.mark.parametrize("log", [(), ("--log", "json")])
def test_a_key_that_is_not_set_is_said_at_start(policy, log):
    """Once, in a line of the log, before it serves; the edge answers all the same. With the key nothing is said."""
    cloud = '[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\napi_key = { env = "NO_SUCH_KEY" }\nheaders = { X-A = { env = "OTHER" } }\n'
    policy.write_text(f"threshold = 0.0\n{policy.read_text().partition(chr(10))[2]}{cloud}")
    for environment in ({"OTHER": "x"}, {"OTHER": "s3cret", "NO_SUCH_KEY": "s3cret"}):
        with started("gateway", "--policy", policy, *log, **environment) as (process, url):
            assert httpx.post(f"{url}/v2/models/shop/infer", json=ROW, timeout=WAIT).status_code == 200
            process.terminate()
            _, err = process.communicate(timeout=WAIT)
        said = [line for line in err.splitlines() if "cannot be asked" in line]
        assert "s3cret" not in err
        if "NO_SUCH_KEY" in environment:
            assert said == []
        else:
            assert len(said) == 1
            assert (
                "cloud cannot be asked: api_key is to come from the environment variable NO_SUCH_KEY, which is not set" in said[0]
            )


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or os.name != "posix", reason="sd_notify is of Unix")
def test_the_service_manager_is_told(policy, tmp_path):
    """That it is ready, alive and stopping."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT)
        with started("gateway", "--policy", policy, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="900000") as (
            process,
            _,
        ):
            assert manager.recv(4096).startswith(b"READY=1")
            assert manager.recv(4096) == b"WATCHDOG=1"
            assert manager.recv(4096) == b"WATCHDOG=1"
            process.terminate()
            while (said := manager.recv(4096)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"


def test_a_language_model(tiny, tmp_path):
    """By policy alone: usage, logprobs, why it ended, and pieces; a prompt that is too long is no fault of the program."""
    (tmp_path / "policy.toml").write_text(f'mode = "only_edge"\n[edge]\npath = "{tiny}"\nmax_tokens = 6\n')
    router = AsyncRouter.from_policy(tmp_path / "policy.toml")
    with serving(router, names=["policy"]) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
        whole = client.post("/v1/chat/completions", json={**CHAT, "logprobs": True}).json()
        choice = whole["choices"][0]
        assert (choice["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 6)
        assert len(choice["logprobs"]["content"]) == 6
        assert 0 < whole["edgeroute"]["confidence"] < 1
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 3}
        *chunks, last = events(client.post("/v1/chat/completions", json=body).text)
        assert (last, chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ("[DONE]", [], 3)
        assert chunks[-2]["choices"][0]["finish_reason"] == "length"
        text = client.post("/v1/completions", json={"model": "policy", "prompt": "once upon", "max_tokens": 2}).json()
        assert text["usage"]["completion_tokens"] == 2
        long = client.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": "word " * 4000}]})
        assert (long.status_code, "tokens" in long.json()["error"]["message"]) == (400, True)
        assert long.json()["error"]["code"] == "context_length_exceeded"


def test_a_server_on_this_device(tiny):
    """A language model that another program of the device serves, behind the router: each part is a real one."""
    from edgeroute import LlamaModel, LocalServer

    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(serving(AsyncRouter(LlamaModel(tiny, max_tokens=4))))
        url = stack.enter_context(serving(AsyncRouter(LocalServer(f"{inner}/v1", model="edgeroute", max_tokens=4))))
        reply = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "logprobs": True}, timeout=LONG).json()
        *chunks, _ = events(httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=LONG).text)
    assert (reply["model"], reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (
        "edgeroute",
        4,
        "length",
    )
    assert 0 < reply["edgeroute"]["confidence"] < 1
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == reply["choices"][0]["message"]["content"]
    )
