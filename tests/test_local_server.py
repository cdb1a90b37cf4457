"""LocalServer: a language model behind a server on this device, and nothing elsewhere; a real server, and hostile ones."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import traceback

import numpy as np
import pytest
import routes
from both import LONG

from edgeroute import BadInput, EdgerouteError, LocalServer, ModelError, PolicyError, Router, StopToken
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.http import loopback_client as loopback
from edgeroute.testing import CannedServer, edge_contract, http_reply

HI = [{"role": "user", "content": "hi"}]
SSE = [("Content-Type", "text/event-stream")]


def sse(*events, end=True):
    """A reply of these events, as a server sends it."""
    body = b"".join(b"data: %s\n\n" % (e if isinstance(e, bytes) else json.dumps(e).encode()) for e in events)
    return http_reply(body + (b"data: [DONE]\n\n" if end else b""), headers=SSE)


def piece(text, logprob=-0.1, **more):
    """A piece of an answer."""
    logprobs = {"content": [{"token": text, "logprob": logprob}]}
    return {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None, **more}]}


GOOD = sse(piece("Pa"), piece("ris"), {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The address of a real llama-server with the tiny model, in this process."""
    module = pytest.importorskip("xllamacpp")
    tiny_gguf = pytest.importorskip("tiny_gguf")
    params = module.CommonParams()
    params.model.path = str(tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=4096))
    params.n_ctx, params.n_parallel, params.verbosity, params.ui = 8192, 2, -1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = module.Server(params)
    yield server.listening_address
    del server


def test_it_keeps_the_contract(real):
    """Of edge models, at a real server, chat and completion."""
    for chat in (True, False):
        made = LocalServer(real, max_tokens=12, chat=chat)
        edge_contract(made, ["hello there", "and another one"], bad=["", None, 7, [], {"messages": "hi"}, "\ud800"], fork=False)


def test_it_answers_as_the_same_model_in_the_process(real, tmp_path):
    """One decoder reads both."""
    import tiny_gguf

    from edgeroute import LlamaModel

    for chat in (True, False):
        there = LocalServer(real, max_tokens=8, chat=chat).run_one("hi")[0]
        here = LlamaModel(tiny_gguf.write(tmp_path / "tiny.gguf", context=4096), max_tokens=8, chat=chat).run_one("hi")[0]
        assert there.value == here.value
        assert there.confidence == pytest.approx(here.confidence, rel=1e-4)


def test_a_router_and_a_policy_take_its_address(real, tmp_path):
    """As they take a model's path; check says whether it is there."""
    with Router(real, lambda x: "cloud", threshold=0.01) as router:
        assert router.check().ok
        assert router.infer("hi", deadline=LONG).source == "edge"
        with router.stream("hi") as stream:
            assert "".join(stream) == stream.answer.value
    policy = tmp_path / "policy.toml"
    policy.write_text(f'mode = "only_edge"\n[edge]\npath = "{real}"\nmodel = "tiny"\nmax_tokens = 3\n')
    with Router.from_policy(policy) as router:
        assert len(router.infer("hi").value) == 3
        assert "has no model 'tiny': it has" in str(router.check())
    policy.write_text(f'mode = "only_edge"\n[edge]\npath = "{real}"\nmax_token = 3\n')
    with pytest.raises(PolicyError, match='did you mean "max_tokens"'):
        Router.from_policy(policy)
    for path in ("x.sock", "tiny.gguf"):
        assert isinstance(load(f"unix:/run/{path}"), LocalServer)


def test_a_stop_frees_the_server(real):
    """A generation without an end is cut off, and the server has its slot again."""
    made = LocalServer(real, max_tokens=1_000_000, request={"ignore_eos": True})
    truth = LocalServer(real, max_tokens=4).run_one("hi")[0].value
    for _ in range(3):  # more often than there are slots
        stop, raised = StopToken(), []
        pieces = made.stream("hi", stop)
        next(pieces)
        threading.Timer(0, stop).start()
        with pytest.raises(ModelError, match="stopped"):
            raised += list(pieces)
        assert LocalServer(real, max_tokens=4).run_one("hi")[0].value == truth
    pieces = made.stream("hi")
    next(pieces)
    pieces.close()
    assert LocalServer(real, max_tokens=4).run_one("hi")[0].value == truth


def test_faults_of_a_real_server(real):
    """Each with whose fault it is."""
    made = LocalServer(real)
    with pytest.raises(ModelError, match="tokens, and its context 4096"):
        made.run_one("word " * 2000)
    with pytest.raises(BadInput, match="grammar"):
        made.run_one({"messages": HI, "grammar": "root ::= ("})
    with pytest.raises(ModelError, match="HTTP 404: it has no such model, or the path of its address is wrong"):
        LocalServer(f"{real}/nowhere").run_one("hi")


# --- addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/v1", "http://0.0.0.0:11434/v1", "http://134744072/v1", "http://0127.0.0.1/v1", "http://[::ffff:8.8.8.8]/v1",
        "http://[::]:11434/v1", "http://192.168.0.7:11434", "http://[fe80::1]:1/", "https://127.0.0.1/v1", "http://u@127.0.0.1/",
        "http://127.0.0.1@8.8.8.8/", "http://127.0.0.1/?key=1", "http:///v1", "http://127.0.0.1:99999/", "unix:relative.sock",
        "unix:/a\0b", "http://127.0.0.1:80\r\nHost: x/",
    ],
)  # fmt: skip
def test_addresses_that_are_not_this_devices(url):
    """Are refused before anything is connected to."""
    with pytest.raises(PolicyError) as found:
        LocalServer(url)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "2130706433", "127.1", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_names_of_this_device(host):
    """However it is written; the Host header is as it was given."""
    with CannedServer(GOOD) as server:
        if host in {"127.0.0.2", "localhost"}:
            pytest.importorskip("fcntl")  # elsewhere there may be 127.0.0.1 alone
        try:
            found = LocalServer(f"http://{host}:{server.port}").run_one("hi")[0]
        except ModelError as e:
            assert "Connection refused" in str(e)  # noqa: PT017 - the server listens at 127.0.0.1 alone
            assert host == "127.0.0.2"
            return
        assert found.value == "Paris"
        assert f"Host: {host}:{server.port}".encode() in server.requests[0]
        assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1")


@pytest.mark.parametrize("answers", [["8.8.8.8"], ["127.0.0.1", "10.0.0.1"], ["::ffff:10.0.0.1"], ["0.0.0.0"]])
def test_a_name_that_leads_elsewhere(monkeypatch, answers):
    """Or also elsewhere: nothing is connected to, and the next leg answers."""
    real = socket.getaddrinfo

    def lookup(host, port, *args, flags=0, **more):
        if host != "sly.example":
            return real(host, port, *args, flags=flags, **more)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it connected"))
    with Router(LocalServer("http://sly.example:80"), lambda x: "cloud", threshold=0.5) as router:
        answer = router.infer("hi")
    assert answer.value == "cloud"
    assert "not this device's loopback" in routes.error(answer, "edge")


def test_a_connection_that_led_elsewhere(monkeypatch):
    """Its other end is looked at before anything is sent, whatever the look-up said."""
    with CannedServer(GOOD) as server:
        local = LocalServer(f"http://localhost:{server.port}")
        monkeypatch.setattr(loopback, "is_loopback", lambda address: False)
        there = loopback.SocketAddress(socket.AF_INET, ("127.0.0.1", server.port))
        monkeypatch.setattr(loopback.Local, "addresses", lambda self: [there])
        with pytest.raises(ModelError, match="led to another device: nothing was sent"):
            local.run_one("hi")
        assert server.requests == []


def test_no_proxy_is_used(monkeypatch):
    """Whatever the environment says."""
    with CannedServer(GOOD) as server, CannedServer(GOOD) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert LocalServer(f"http://127.0.0.1:{server.port}").run_one("hi")[0].value == "Paris"
        assert proxy.requests == []


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets")
def test_a_unix_socket(tmp_path):
    """Is this device's by its nature."""
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            peer, _ = listener.accept()
            with peer:
                while b"\r\n\r\n" not in peer.recv(65536):
                    pass
                peer.sendall(GOOD)

        thread = threading.Thread(target=serve)
        thread.start()
        assert LocalServer(f"unix:{path}").run_one("hi")[0].value == "Paris"
        thread.join(LONG)
    path.unlink()
    with pytest.raises(ModelError, match="no server at unix:"):
        LocalServer(f"unix:{path}").run_one("hi")


# --- what comes back

LONG_LINE = b"data: " + b"x" * 20_000
REPLIES = {
    "redirect": (http_reply(status=302, headers=[("Location", "http://8.8.8.8/")]), "redirect"),
    "compressed": (http_reply(b"x", headers=[("Content-Encoding", "gzip")]), "gzip encoding"),
    "not json": (sse(b"{"), "not JSON"),
    "a list": (sse(b"[]"), "not JSON"),
    "nested": (sse(b"[" * 100_000), "not JSON|more than"),
    "no choice": (sse({"choices": [3]}), "not a completion"),
    "no text": (sse({"choices": [{"delta": {"content": 7}}]}, {"choices": [{"delta": None, "finish_reason": "stop"}]}), None),
    "cut off": (sse(piece("Pa"), end=False), "broke off"),
    "an error": (sse(piece("Pa"), {"error": {"message": "out of memory", "type": "out_of_memory"}}), "out_of_memory"),
    "long": (http_reply(LONG_LINE * 10, headers=SSE), "more than 65536 bytes"),
    "no http": (b"hello\r\n\r\n", "broke off"),
    "short": (http_reply(b"data: ", headers=SSE, length=500), "broke off"),
    "loading": (http_reply(b'{"error": {"code": 503, "message": "Loading model"}}', status=503), "still be loading"),
    "denied": (http_reply(b"no", status=401), "refuses the key"),
    "ollama": (http_reply(b'{"error": "model not found, try pulling it"}', status=404), "no such model"),
    "escapes": (sse({"error": "\x1b[31m" + "x" * 5000}), "is not quoted"),
    "negative": (sse(piece("Pa", logprob="high"), piece("", finish_reason="stop")), "not a completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_odd_servers(name):
    """Are the model's fault, in one line, so that the next leg answers."""
    reply, said = REPLIES[name]
    with CannedServer(reply, close=True) as server:
        made = LocalServer(f"http://127.0.0.1:{server.port}", max_reply=1 << 16, timeout_s=LONG)
        if said is None:
            assert made.run_one("hi")[0].value == "7"
            return
        with pytest.raises(ModelError, match=said) as found:
            made.run_one("hi")
        assert str(found.value).isprintable()
        assert len(str(found.value)) < 600
        assert len(server.requests) == 1
        with Router(made, lambda x: "cloud", threshold=0.5) as router:
            assert router.infer("hi").value == "cloud"


SAID = {"error": {"message": "bad prompt: my patient Zbigniew Mustermann 4711", "type": "Mustermann"}}
NO_TEXT = {"index": "Mustermann", "function": {"name": "f"}}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        http_reply(json.dumps(SAID).encode(), status=400),
        http_reply(json.dumps(SAID).encode(), status=500),
        http_reply(json.dumps({"error": "image Mustermann is not supported"}).encode(), status=400),
        http_reply(json.dumps(SAID).encode(), headers=[("Content-Type", "application/json")]),
        sse(SAID),
        sse(piece("Pa"), SAID),
        sse({"choices": [{"delta": {"tool_calls": [NO_TEXT]}}]}),
    ],
)
def test_what_a_server_repeats_of_a_prompt_is_nowhere(reply, own, caplog):
    """Of its errors only what no request has is quoted, whole or in pieces; a parser's error, which quotes it, is not chained."""
    prompt = "my patient Zbigniew Mustermann 4711"
    x = {"messages": [{"role": "user", "content": prompt}]} if own else prompt
    with CannedServer(reply) as server:
        made = LocalServer(f"http://127.0.0.1:{server.port}")
        with pytest.raises(EdgerouteError) as found:
            made.run_one(x)
        assert "Mustermann" not in "".join(traceback.format_exception(found.value))
        with Router(made, lambda x: "cloud", threshold=0.5) as router, contextlib.suppress(BadInput):
            answer = router.infer(x)
            assert "Mustermann" not in f"{answer.reason} {answer.trace}"
    assert "Mustermann" not in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"), [("no room for Mustermann", True), ("bad key s3cret-key", False), ("s 3 c r e t key", False)]
)
def test_its_text_is_in_the_log_at_level_debug(text, shown, caplog, monkeypatch):
    """Unless it has the key."""
    monkeypatch.setenv("LOCAL_KEY", "s3cret-key")
    caplog.set_level("DEBUG", "edgeroute")
    with CannedServer(http_reply(json.dumps({"error": {"message": text}}).encode(), status=500)) as server:
        with pytest.raises(ModelError) as found:
            LocalServer(f"http://127.0.0.1:{server.port}", key_env="LOCAL_KEY").run_one("hi")
        assert text not in str(found.value)
    assert (text in caplog.text, "(it has a secret)" in caplog.text) == (shown, not shown)


def test_forms_of_replies():
    """In one piece, of a completion with OpenAI's older log-probabilities, without any, with a tool's call and with thoughts."""
    whole = {"choices": [{"message": {"content": "Paris"}, "logprobs": {"content": [{"token": "Paris", "logprob": -0.5}]}}]}
    older = {"choices": [{"text": "Paris", "logprobs": {"tokens": ["Paris"], "token_logprobs": [-0.5]}, "finish_reason": "stop"}]}
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    tool = [{"choices": [{"delta": {"tool_calls": [one], "reasoning_content": "hm"}}]} for one in (call, rest)]
    cases = [
        (http_reply(json.dumps(whole).encode(), headers=[("Content-Type", "application/json")]), "Paris", [-0.5]),
        (sse(older), "Paris", [-0.5]),
        (sse({"choices": [{"delta": {"content": "Paris"}}]}), "Paris", None),
        (sse(*tool), "", None),
    ]
    for reply, text, logprobs in cases:
        with CannedServer(reply) as server:
            found = LocalServer(f"http://127.0.0.1:{server.port}").run_one("hi")[0]
        assert found.value == text
        assert found.confidence == logprobs if logprobs else "log-prob" in found.confidence.why
    message = found.outputs["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a": 1}'}
    assert message["reasoning_content"] == "hmhm"


def test_the_key_is_sent_and_never_told(monkeypatch):
    """Not even where the server quotes it; without one in the environment nothing is sent."""
    monkeypatch.setenv("LOCAL_KEY", "s3cret-key")
    with CannedServer(http_reply(b'{"error": {"message": "bad key s3cret-key"}}', status=500)) as server:
        made = LocalServer(f"http://127.0.0.1:{server.port}", key_env="LOCAL_KEY")
        with pytest.raises(ModelError) as found:
            made.run_one("hi")
        assert "s3cret" not in str(found.value) + repr(made)
        assert b"Authorization: Bearer s3cret-key" in server.requests[0]
        monkeypatch.delenv("LOCAL_KEY")
        with pytest.raises(PolicyError, match="LOCAL_KEY"):
            made.run_one("hi")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        http_reply(b'{"error": {"message": "bad key s3cret-key"}}', status=500),
        http_reply(b'{"data": [{"id": "s3cret-key"}]}'),
        b"Bearer s3cret-key\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBearer s3cret-key\r\n\r\n",
    ],
)
def test_a_key_with_a_line_break_is_never_told_either(monkeypatch, reply):
    """As a file ends with: it is sent without, so a server quotes it without. Nor where its reply is no HTTP, or a list of models."""
    monkeypatch.setenv("LOCAL_KEY", "s3cret-key\n")
    with CannedServer(reply, close=True) as server:
        made = LocalServer(f"http://127.0.0.1:{server.port}", key_env="LOCAL_KEY", model="m")
        for ask in (made.load, lambda: made.run_one("hi")):
            with pytest.raises(ModelError) as found:
                ask()
            assert "s3cret" not in "".join(traceback.format_exception(found.value))


@pytest.mark.parametrize("url", ["http://l\u00f6calhost:1", "http://127\u30020\u30020\u30021:1", "unix:/\ud800"])
def test_addresses_that_cannot_be_written(url):
    """Are refused when they are given."""
    with pytest.raises(PolicyError, match="address"):
        LocalServer(url)


def test_a_server_that_never_answers():
    """Is left at the deadline, and its connection shut down; without one at its own limit."""
    with CannedServer(None) as server:
        made = LocalServer(f"http://127.0.0.1:{server.port}")
        stop = StopToken()
        done = []

        def work():
            with pytest.raises(ModelError, match="stopped"):
                made.run_one("hi", stop)
            done.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        server.wait_for(lambda: server.requests)
        stop()
        thread.join(LONG)
        server.wait_for(lambda: server.hung_up == 1)
        assert done
        with pytest.raises(ModelError, match=r"did not answer within 0\.05 s"):
            LocalServer(f"http://127.0.0.1:{server.port}", timeout_s=0.05).run_one("hi")


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"])
def test_a_head_that_never_ends(begin):
    """A byte now and then, of a header or of a chunk's extension, is no answer: the time is over when it is over."""
    left = threading.Event()

    def drip():
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(1 << 16)
            peer.sendall(begin)
            for _ in range(int(LONG / 0.02)):
                peer.sendall(b"x")
                if left.wait(0.02):
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(ModelError, match=r"did not answer within 0\.2 s"):
            LocalServer(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.2).run_one("hi")
        left.set()
        thread.join(LONG)


@pytest.mark.parametrize(
    "message",
    [
        {"role": np.array(["user", "tool"]), "content": "a"}, {"role": ["user"], "content": "a"},
        {"role": "assistant", "tool_calls": np.zeros(2)}, {"role": "assistant", "tool_calls": "x"},
    ],
)  # fmt: skip
def test_odd_messages_are_the_callers_fault(message):
    """And are sent neither to the server nor to the cloud."""
    sent = []
    with CannedServer(GOOD) as server, Router(f"http://127.0.0.1:{server.port}", sent.append, threshold=0.99) as router:
        for x in ([message], {"messages": [message]}):
            with pytest.raises(BadInput):
                router.infer(x, deadline=LONG)
        assert not sent + server.requests


def test_an_answer_without_a_text_is_not_sure():
    """However sure the model was of what it thought: others are asked."""
    token = {"token": "hm", "logprob": -0.01}
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}, "logprobs": {"content": [token]}, "finish_reason": "length"}]}
    with CannedServer(sse(thought)) as server:
        edge = LocalServer(f"http://127.0.0.1:{server.port}")
        with Router(edge, lambda _: "cloud", threshold=0.5) as router:
            answer = router.infer("hi")
    assert (answer.value, answer.source) == ("cloud", "cloud")
    assert (answer.reason_code, routes.judged(answer).confidence) == ("below", None)
    assert "text" in answer.reason


def test_what_does_not_come_in_pieces_is_shown_as_one():
    """The reply of a server that does not stream, and a refusal."""
    whole = {"choices": [{"message": {"content": "Paris"}, "logprobs": {"content": [{"token": "Paris", "logprob": -0.5}]}}]}
    at_once = http_reply(json.dumps(whole).encode(), headers=[("Content-Type", "application/json")])
    refusal = sse(
        {"choices": [{"delta": {"refusal": "Pa"}}]}, {"choices": [{"delta": {"refusal": "ris"}, "finish_reason": "stop"}]}
    )
    for reply in (at_once, refusal):
        with CannedServer(reply) as server, Router(LocalServer(f"http://127.0.0.1:{server.port}")) as router:
            with router.stream("hi") as stream:
                assert list(stream) == ["Paris"]
            assert stream.answer.value == "Paris"
