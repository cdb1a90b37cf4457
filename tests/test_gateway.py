"""`edgeroute gateway` as OpenAI's API: driven by the real client, in both its forms, and over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gateways import CHAT, HELLO, LONG, connected, events, post, serving
from lazily import Later, needs

from edgeroute import AsyncRouter, BadInput, Egress, NoAnswer, Piece, PolicyError, Prediction, Prefix
from edgeroute.errors import Unfit
from edgeroute.tools.server.access_limits_call_options import http_fault
from edgeroute.tools.server.gateway import app
from edgeroute.tools.server.openai_chat_completions import Completion

needs("openai")
openai = Later("openai")


def edge(x):
    """Sure of what is short."""
    text = x["messages"][-1]["content"] if "messages" in x else x["prompt"]
    yield from ("you", " said ", text)
    return 0.9 if len(text) < 10 else 0.2


def cloud(x):
    yield from ("far", " away")


def ask(text):
    return {"model": "edgeroute", "messages": [{"role": "user", "content": text}]}


@pytest.fixture(scope="module")
def url():
    with serving(AsyncRouter(edge, cloud, threshold=0.5), names=["policy"]) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_chat(client):
    """The answer of the side that the policy takes, with where it came from in headers and in the reply."""
    reply = client.chat.completions.with_raw_response.create(**CHAT)
    answer = reply.parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("you said hello", "stop")
    assert (answer.object, answer.model, answer.choices[0].message.role) == ("chat.completion", "edgeroute", "assistant")
    assert answer.edgeroute["source"] == reply.headers["x-edgeroute-source"] == "edge"
    assert answer.edgeroute["state"] == "edge"
    assert answer.edgeroute["confidence"] == float(reply.headers["x-edgeroute-confidence"]) == 0.9
    assert reply.headers["x-edgeroute-reason"] == answer.edgeroute["reason"]
    assert "0.90 >= 0.50" in answer.edgeroute["reason"]
    far = client.chat.completions.create(**ask("something that is long"))
    assert (far.choices[0].message.content, far.edgeroute["source"]) == ("far away", "cloud")


@pytest.mark.parametrize(
    ("text", "whole", "source"), [("hello", "you said hello", "edge"), ("something long", "far away", "cloud")]
)
def test_a_stream(client, text, whole, source):
    """Pieces as they come, the role first, the reason to end last, and with it where it came from."""
    with client.chat.completions.create(**ask(text), stream=True) as stream:
        chunks = list(stream)
        assert stream.response.headers["x-edgeroute-source"] == source
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices[0].finish_reason, chunks[-1].edgeroute["source"]) == ("stop", source)
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_clients_own_stream_helper(client):
    """It gathers chunks by OpenAI's rules, and takes them for a completion."""
    with client.chat.completions.stream(**CHAT) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == "you said hello"
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_a_text_is_continued(client):
    """The older interface, whole and in pieces."""
    answer = client.completions.create(model="policy", prompt="once")
    assert (answer.choices[0].text, answer.object, answer.model) == ("you said once", "text_completion", "policy")
    chunks = list(client.completions.create(model="policy", prompt=["once"], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "you said once"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_asyncio(url):
    """The asynchronous client, whole and in pieces."""

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            answer = await client.chat.completions.create(**CHAT)
            stream = await client.chat.completions.create(**CHAT, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return answer.choices[0].message.content, "".join(pieces), [model.id async for model in client.models.list()]

    assert asyncio.run(main()) == ("you said hello", "you said hello", ["edgeroute", "policy"])


def test_many_streams_at_a_time(url):
    """Each gets its own pieces, whoever else is there."""

    async def one(client, i):
        stream = await client.chat.completions.create(**ask(f"i {i}"), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", timeout=LONG) as client:
            return await asyncio.gather(*(one(client, i) for i in range(32)))

    assert asyncio.run(main()) == [f"you said i {i}" for i in range(32)]


def test_models(client):
    """The router, by its names."""
    assert [model.id for model in client.models.list()] == ["edgeroute", "policy"]
    assert client.models.retrieve("policy").owned_by == "edgeroute"
    with pytest.raises(openai.NotFoundError, match="only edgeroute, policy"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("path", "way"),
    [("/v1", "/v1/chat/completions"), ("/v1/embeddings", r"\[gateway\] embeddings"), ("/metrics", "--metrics")],
)
def test_a_path_that_is_not_there_tells_the_way(url, path, way):
    """To one that is, or to the setting that opens it."""
    with pytest.raises(openai.NotFoundError, match=f"there is nothing at {path}: .*{way}"):
        openai.OpenAI(base_url=url, api_key="any", max_retries=0).get(path, cast_to=object)


def test_the_environment_is_all_that_a_program_needs(url):
    """OPENAI_BASE_URL, and a key that nobody looks at, since the client takes none for an error."""
    program = (
        "import openai; print(openai.OpenAI().chat.completions.create(model='edgeroute',"
        " messages=[{'role': 'user', 'content': 'hello'}]).choices[0].message.content)"
    )
    env = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "any"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("you said hello\n", "")


def test_curl(url):
    """A stream of events that ends with [DONE], as curl -N shows it."""
    body = json.dumps({**CHAT, "stream": True})
    command = ["curl", "-sN", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True).stdout
    except FileNotFoundError:
        pytest.skip("there is no curl")
    *chunks, last = events(said)
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "you said hello"


BAD = {
    "another model": ({"model": "gpt-4"}, "NotFoundError", "no model 'gpt-4'"),
    "several answers": ({"n": 2}, "BadRequestError", "one answer"),
    "no messages": ({"messages": None}, "BadRequestError", "messages"),
    "a stream that is no truth": ({"extra_body": {"stream": 1}}, "BadRequestError", "stream is true or false"),
    "a mode that there is not": ({"extra_headers": {"x-edgeroute-mode": "only_clud"}}, "BadRequestError", "only_cloud"),
    "an option that there is not": ({"extra_headers": {"x-edgeroute-dataclass": "medical"}}, "BadRequestError", '"x-edgeroute-data-class"'),
    "one of another form": ({"extra_headers": {"edgeroute_data_class": "private"}}, "BadRequestError", "no header edgeroute_data_class"),
    "a class that the policy has not": ({"extra_headers": {"x-edgeroute-data-class": "medical"}}, "BadRequestError", "does not name"),
    "a time without a unit": ({"extra_headers": {"x-edgeroute-deadline": "2"}}, "BadRequestError", "with a unit"),
    "no time": ({"extra_headers": {"x-edgeroute-deadline": "0s"}}, "BadRequestError", "with a unit"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request(client, what, stream):
    """Is raised by the client as its own class, with what to send instead."""
    change, error, said = BAD[what]
    with pytest.raises(getattr(openai, error), match=said) as caught:
        client.chat.completions.create(**{**ask("something long"), "stream": stream, **change})
    assert caught.value.body["type"] in {"invalid_request_error", "not_found_error"}


def test_options(url):
    """Mode, deadline and first token as headers, for this request alone."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", default_headers={"x-edgeroute-mode": "only_edge"}) as client:
        assert client.chat.completions.create(**ask("something that is long")).edgeroute["source"] == "edge"
        more = {"x-edgeroute-mode": "only_cloud", "x-edgeroute-deadline": "30s", "x-edgeroute-first-token": "1.5m"}
        assert client.chat.completions.create(**CHAT, extra_headers=more).edgeroute["source"] == "cloud"


@pytest.mark.parametrize(
    "name", ["x-edgroute-data-class", "x-data-class", "edge-route-data-class", "Data-Class", "x-edgeroute_mode"]
)
def test_a_header_that_is_misspelt(url, name):
    """Is refused, so that nothing private leaves for it."""
    reply = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers={name: "private"}, timeout=LONG)
    assert (reply.status_code, name.lower() in reply.json()["error"]["message"]) == (400, True)


def test_a_data_class_stays_here():
    """What the policy keeps on the device never reaches the cloud, and a class that it does not name is refused."""
    seen = []

    def cloud(x):
        seen.append(x)
        yield "far"

    router = AsyncRouter(edge, cloud, threshold=0.5, egress=Egress(never_leave=["medical"], may_leave=["chat"]))
    with serving(router) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:

        def source(name, text="something that is long", **more):
            headers = {"x-edgeroute-data-class": name, **more}
            return client.chat.completions.create(**ask(text), extra_headers=headers).edgeroute["source"]

        assert source("medical") == "edge"
        with pytest.raises(openai.BadRequestError, match='did you mean "medical"'):
            source("medcal")
        with pytest.raises(openai.PermissionDeniedError):
            source("medical", **{"x-edgeroute-mode": "only_cloud"})
        assert seen == []
        assert source("chat", "something else that is long") == "cloud"
        assert len(seen) == 1


def test_what_the_router_is_given():
    """The request without the name of the model and what is about the stream; tools and all else as they came."""
    seen = []

    def notes(x):
        seen.append(x)
        return "ok", 0.9

    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    with serving(AsyncRouter(notes)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        client.chat.completions.create(**CHAT, tools=tools, tool_choice="auto", seed=3, temperature=0.5)
        assert list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert seen == [
        {"messages": HELLO, "tools": tools, "tool_choice": "auto", "seed": 3, "temperature": 0.5},
        {"messages": HELLO},
    ]


REPLY = {
    "id": "x", "object": "chat.completion", "model": "real-name", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    "choices": [{
        "index": 0, "finish_reason": "tool_calls", "logprobs": {"content": [{"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []}]},
        "message": {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
            {"type": "function", "id": "own", "function": {"name": "time", "arguments": "{}"}},
        ]},
    }],
}  # fmt: skip


class Replies:
    """An edge that gives a completion."""

    name = "replies"

    def __init__(self, reply=REPLY):
        self.reply = reply

    def run(self, inputs, cancel=None):
        """As a language model does."""
        return [Prediction("text", 0.9, self.reply) if self.reply is not REPLY else Prediction("", 0.9, REPLY) for _ in inputs]


def test_a_completion_is_passed_on():
    """Calls of tools, usage, logprobs and why it ended; the name is the one that was asked for, and a call without an id gets one."""
    with serving(AsyncRouter(Replies())) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = client.chat.completions.create(**CHAT, logprobs=True)
        chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
        with client.chat.completions.stream(**CHAT) as stream:
            gathered = stream.get_final_completion()
        without = client.chat.completions.create(**CHAT)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content, answer.model, answer.usage.total_tokens) == (
        "tool_calls",
        None,
        "edgeroute",
        5,
    )
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "time"]
    assert choice.message.tool_calls[0].id
    assert choice.message.tool_calls[1].id == "own"
    assert (choice.logprobs.content[0].token, without.choices[0].logprobs) == ("a", None)
    assert [call.function.arguments for call in gathered.choices[0].message.tool_calls] == ['{"city": "Paris"}', "{}"]
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens, chunks[-1].edgeroute["source"]) == ([], 5, "edge")


ODD = [
    {"choices": []}, {"choices": [None]}, {"choices": [{}]}, {"choices": "x"}, {"choices": [{"message": 3}]}, {"choices": [{"message": []}]},
    {"choices": [{"message": {"tool_calls": 3, "role": "system"}}]}, {"choices": [{"message": {"tool_calls": [1, {}]}}]},
    *({"choices": [{"logprobs": {"content": odd}}]} for odd in (3, [1], [{"token": [], "top_logprobs": 5}], [{"top_logprobs": [[]]}],
      [{"top_logprobs": [{"token": []}]}])),
    {"choices": [{"finish_reason": 7, "logprobs": 5}], "usage": [1]}, {"choices": [{"message": {"content": {"a": float("nan")}}}]},
]  # fmt: skip


@pytest.mark.parametrize("reply", ODD, ids=str)
def test_an_odd_completion(reply):
    """Of a server that gives what it likes: the answer is its text, in OpenAI's form."""
    with serving(AsyncRouter(Replies(reply))) as url, httpx.Client(base_url=url, timeout=LONG) as client:
        whole = client.post("/v1/chat/completions", json={**CHAT, "logprobs": True})
        stream = client.post("/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": True}})
        text = client.post("/v1/completions", json={"model": "edgeroute", "prompt": "x", "logprobs": 1})
    choice = whole.json()["choices"][0]
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", "text")
    assert (text.json()["choices"][0]["text"], choice["finish_reason"]) == ("text", "stop")
    *chunks, last = events(stream.text)
    assert (last, chunks[-1]["edgeroute"]["source"]) == ("[DONE]", "edge")


def test_no_answer():
    """503 and when to come again; with the edge's answer at hand there is one, and it is marked."""

    def down(_):
        raise ConnectionError("the link is down")

    with (
        serving(AsyncRouter(edge, down, threshold=0.5)) as url,
        serving(AsyncRouter(edge, down, threshold=0.5, offline="raise")) as strict,
        serving(AsyncRouter(cloud=down)) as alone,
    ):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            reply = client.chat.completions.with_raw_response.create(**ask("something that is long"))
            assert (reply.headers["x-edgeroute-degraded"], reply.parse().edgeroute["degraded"]) == ("true", True)
        for one, stream in ((strict, False), (strict, True), (alone, False), (alone, True)):
            with openai.OpenAI(base_url=f"{one}/v1", api_key="any", max_retries=0) as client:
                with pytest.raises(openai.InternalServerError, match="ConnectionError") as caught:
                    client.chat.completions.create(**ask("something that is long"), stream=stream)
                assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "1")
                assert caught.value.code == "no_answer"


def test_a_stream_that_breaks():
    """What had come is the answer, and its end says that it is not whole."""

    def broken(_):
        yield "half an"
        raise ConnectionError("the link is down")

    with serving(AsyncRouter(cloud=broken)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        chunks = list(client.chat.completions.create(**CHAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "half an"
    assert (chunks[-1].choices[0].finish_reason, chunks[-1].edgeroute["degraded"]) == ("length", True)
    assert "ConnectionError" in chunks[-1].edgeroute["reason"]


def test_an_input_that_no_target_takes():
    """Is the caller's fault, and nobody else's: 400 and not 503, which the client would send again."""

    def picky(_):
        raise BadInput("no pictures here")

    with (
        serving(AsyncRouter(picky)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client,
        pytest.raises(openai.BadRequestError, match="no pictures here"),
    ):
        client.chat.completions.create(**CHAT)


def test_a_fault_of_its_own(caplog, monkeypatch):
    """Is 500, says nothing of what was sent, and is logged."""

    def failed(self, answer):
        raise ZeroDivisionError(answer.value)

    monkeypatch.setattr(Completion, "body", failed)
    with serving(AsyncRouter(edge)) as url:
        reply = httpx.post(f"{url}/v1/chat/completions", json=ask("a secret"), timeout=LONG)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in reply.text
    assert any(record.exc_info for record in caplog.records)


class Waits:
    """Its `cloud` speaks once and then waits; `begun` and `closed` say how far it is."""

    def __init__(self):
        self.begun, self.closed = threading.Event(), threading.Event()

    async def cloud(self, x):
        """Speaks."""
        yield "begun"
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.closed.set()


def test_a_client_that_leaves_ends_the_call():
    """In a stream, and before an answer that comes whole: the cloud's call is closed, and its place is free again."""
    for stream in (True, False):
        far = Waits()
        with serving(AsyncRouter(cloud=far.cloud), max_concurrent=1) as url:
            with connected(url) as connection:
                connection.sendall(post("/v1/chat/completions", {**CHAT, "stream": stream}))
                assert far.begun.wait(LONG)
            assert far.closed.wait(LONG)
            far.begun.clear()
            while not far.begun.is_set():  # 429 would begin nothing
                with connected(url) as connection:
                    connection.sendall(post("/v1/chat/completions", {**CHAT, "stream": True}))
                    far.begun.wait(1)


def test_busy():
    """As many at a time as are allowed; the one too many gets 429, which the client knows."""
    far = Waits()
    with serving(AsyncRouter(cloud=far.cloud), max_concurrent=1) as url, connected(url) as connection:
        connection.sendall(post("/v1/chat/completions", {**CHAT, "stream": True}))
        assert far.begun.wait(LONG)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        with client, pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**CHAT)
        assert (caught.value.response.headers["retry-after"], caught.value.code) == ("1", "busy")
        assert httpx.get(f"{url}/v1/models", timeout=LONG).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_the_end_does_not_wait_for_ever(stream, caplog):
    """When the server's time for it is over, a stream that has begun is cut, and one who still waits is told; the router is closed."""
    far = Waits()
    router = AsyncRouter(cloud=far.cloud)
    with ThreadPoolExecutor(1) as pool:
        with serving(router, grace_s=1) as url:
            reply = pool.submit(httpx.post, f"{url}/v1/chat/completions", json={**CHAT, "stream": stream}, timeout=LONG)
            assert far.begun.wait(LONG)
        if stream:
            assert isinstance(reply.exception(LONG), httpx.RemoteProtocolError)
        else:
            told = reply.result(LONG)
            assert (told.status_code, told.json()["error"]["code"], told.headers["retry-after"]) == (503, "closed", "1")
    assert far.closed.is_set()
    assert router.engine.closed
    assert "Traceback" not in caplog.text


def test_what_is_in_progress_at_the_end_is_finished():
    """A stream that has begun is sent whole, and is the last: nobody else is let in."""
    begun, go = threading.Event(), threading.Event()

    def slow(_):
        yield "it "
        begun.set()
        assert go.wait(LONG)
        yield "ends"

    with ThreadPoolExecutor(1) as pool:
        with serving(AsyncRouter(cloud=slow), grace_s=int(LONG)) as url:
            reply = pool.submit(httpx.post, f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=LONG)
            assert begun.wait(LONG)
            threading.Timer(0.3, go.set).start()  # after the end has begun, or before: it is whole either way
        *chunks, last = events(reply.result(LONG).text)
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "it ends"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/models", timeout=LONG)


def test_names_that_fit_into_no_path():
    """Are refused as the application is made, and so are limits that are none."""
    router = AsyncRouter(edge)
    for wrong in ({"names": ["a/b"]}, {"names": [""]}, {"max_concurrent": 0}, {"token": "two words"}, {"body_timeout_s": 0}):
        with pytest.raises(PolicyError):
            app(router, **wrong)
    asyncio.run(router.close())


def test_a_request_is_not_logged(url, caplog):
    """Nor is a key that was sent."""
    with caplog.at_level(logging.DEBUG), openai.OpenAI(base_url=f"{url}/v1", api_key="sk-of-somebody") as client:
        client.chat.completions.create(**ask("between us"))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**ask("between us"), n=2)
    own = [record for record in caplog.records if record.name.startswith(("edgeroute", "uvicorn", "starlette"))]
    assert not any("between us" in record.getMessage() or "sk-of" in record.getMessage() for record in own)


def test_the_first_piece_of_a_sure_edge_does_not_wait_for_its_end():
    """A policy that decides by the first tokens shows them as soon as it has, with where they are from."""
    seen = threading.Event()

    def slow(_):
        yield Piece("it ", (-0.01,))
        yield Piece("is ", (-0.01,))
        assert seen.wait(LONG)
        yield Piece("so", (-0.01,))

    with (
        serving(AsyncRouter(slow, cloud, threshold=0.5, score=Prefix(2))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=2 * LONG) as client,
        client.chat.completions.create(**CHAT, stream=True) as stream,
    ):
        assert stream.response.headers["x-edgeroute-source"] == "edge"
        pieces = iter(stream)
        first = [next(pieces).choices[0].delta.content for _ in range(3)]
        seen.set()
        rest = [chunk.choices[0].delta.content for chunk in pieces]
    assert (first, rest) == (["", "it ", "is "], ["so", None])


def test_log_probabilities_of_a_text():
    """Have OpenAI's older form, which differs from that of chats."""
    content = [
        {"token": "on", "logprob": -0.1, "top_logprobs": [{"token": "on", "logprob": -0.1}]},
        {"token": "ce", "logprob": -0.2},
    ]
    reply = {"choices": [{"index": 0, "text": "once", "logprobs": {"content": content}, "finish_reason": "stop"}]}
    with serving(AsyncRouter(Replies(reply))) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        logprobs = client.completions.create(model="edgeroute", prompt="x", logprobs=1).choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["on", "ce"], [-0.1, -0.2], [0, 2])
    assert logprobs.top_logprobs == [{"on": -0.1}, {}]


@pytest.mark.parametrize("error", [Unfit("too long"), NoAnswer("none", {"edge": Unfit("too long")})])
def test_an_input_that_no_model_takes(error):
    """Is the client's to change: 400."""
    assert http_fault(error).status == 400


@pytest.mark.parametrize("wrong", [{"threshold": 10**400}, {"deadline": 10**400}])
def test_numbers_above_any_float(wrong):
    """Are no thresholds and no times."""
    with pytest.raises(PolicyError):
        AsyncRouter(edge, cloud, **{"threshold": 0.5, **wrong})
