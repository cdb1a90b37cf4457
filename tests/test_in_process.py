"""`edgeroute.asgi.InProcess`: clients of OpenAI and Anthropic, and frameworks with such clients, on a router without a socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from gateways import CHAT, HELLO, LONG
from lazily import Later, needs

from edgeroute import AsyncRouter, BadInput, Closed, PolicyError, models
from edgeroute.asgi import InProcess

needs("openai", "starlette")
openai, anthropic = Later("openai"), Later("anthropic")


def edge(x):
    """Sure of what is short."""
    text = x["messages"][-1]["content"]
    yield from ("you", " said ", text)
    return 0.9 if len(text) < 30 else 0.2


def cloud(x):
    yield from ("far", " away")


@pytest.fixture
def gateway():
    with InProcess(AsyncRouter(edge, cloud, threshold=0.5)) as gateway:
        yield gateway


def test_clients_of_both_libraries_whole_and_in_pieces(gateway, monkeypatch):
    """Without a connection."""
    monkeypatch.setattr(socket.socket, "connect", None)
    with openai.OpenAI(base_url=gateway.url, api_key="none", http_client=gateway.client()) as client:
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "you said hello"
        chunks = list(client.chat.completions.create(**CHAT, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "you said hello"
        assert client.responses.create(model="edgeroute", input="something that is longer than this").output_text == "far away"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=HELLO)


def test_a_request_that_the_cloud_rejects_does_not_deny_it_to_others():
    """As often as one client sends it, whole and in pieces."""

    async def picky(x):
        if "bad" in x["messages"][-1]["content"]:
            raise BadInput("not this")
        return "far away"

    def asked(text, **more):
        body = {**CHAT, "messages": [{"role": "user", "content": text}], **more}
        return client.post(f"{gateway.url}/chat/completions", json=body)

    router = AsyncRouter(None, picky)
    with InProcess(router) as gateway, gateway.client() as client:
        for _ in range(4):
            assert asked("bad").status_code == 400
            asked("bad", stream=True)
        assert asked("good").json()["choices"][0]["message"]["content"] == "far away"
        assert router.engine.snapshot.clouds[0].guard.rules.breaker.opened == 0


def test_one_call_after_the_other_where_one_is_allowed():
    """A reply that is whole has given its place back."""
    with InProcess(AsyncRouter(lambda _: ("yes", 0.9)), max_concurrent=1) as gateway, gateway.client() as client:
        replies = [client.post(f"{gateway.url}/chat/completions", json=CHAT).status_code for _ in range(50)]
    assert set(replies) == {200}


def test_anthropics_client(gateway):
    """Its address is without /v1."""
    with anthropic.Anthropic(base_url=gateway.root_url, api_key="none", http_client=gateway.client("httpx2")) as client:
        assert client.messages.create(model="edgeroute", max_tokens=9, messages=HELLO).content[0].text == "you said hello"


def test_clients_of_asyncio_on_several_loops(gateway):
    """One gateway serves them, one after the other and together."""

    async def main():
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key="none", http_client=gateway.async_client()) as client:
            calls = [client.chat.completions.create(**CHAT) for _ in range(20)]
            texts = [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]
            stream = await client.chat.completions.create(**CHAT, stream=True)
            return [*texts, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])]

    results = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(main()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == [["you said hello"] * 21] * 3


def test_a_stream_comes_piece_by_piece():
    """The first piece is there before the model goes on."""
    proceed = threading.Event()

    def slow(x):
        yield "first"
        assert proceed.wait(LONG)
        yield " second"

    with InProcess(AsyncRouter(cloud=slow)) as gateway, gateway.client(timeout=LONG) as http:
        body = {**CHAT, "stream": True}
        with http.stream("POST", f"{gateway.url}/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            assert any("first" in line for line in lines)
            proceed.set()
            assert any("second" in line for line in lines)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_client_that_does_not_wait(kind):
    """Gets a timeout of its library, and its request is cancelled."""
    library = pytest.importorskip("httpx")
    begun, left = threading.Event(), threading.Event()

    async def never(x):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    with InProcess(AsyncRouter(cloud=never)) as gateway:

        async def ask_async(timeout):
            async with gateway.async_client("httpx", timeout=timeout) as http:
                await http.post(f"{gateway.url}/chat/completions", json=CHAT)

        def ask(timeout):
            gateway.client("httpx", timeout=timeout).post(f"{gateway.url}/chat/completions", json=CHAT)

        for timeout in (0.1, 1.0, LONG):  # on a busy machine the cloud is not called within a short one
            with pytest.raises(library.ReadTimeout):
                asyncio.run(ask_async(timeout)) if kind == "asyncio" else ask(timeout)
            if begun.is_set():
                break
        assert left.wait(LONG)


@pytest.mark.usefixtures("interruptible")
def test_a_client_that_is_interrupted():
    """By Ctrl-C, its request is cancelled."""
    left, sending, asking = threading.Event(), threading.Lock(), [False]

    def interrupt(*_):
        if asking[0]:
            asking[0] = False
            raise KeyboardInterrupt

    async def never(x):
        try:
            while True:
                if sending.acquire(blocking=False):
                    os.kill(os.getpid(), signal.SIGINT)
                    sending.release()
                await asyncio.sleep(0.1)  # again: a thread that was just about to wait has not heard it
        finally:
            left.set()

    signal.signal(signal.SIGINT, interrupt)
    with InProcess(AsyncRouter(cloud=never, deadline=LONG)) as gateway, gateway.client(timeout=LONG) as http:
        until = monotonic() + LONG
        while not left.wait(1.0):  # it may come before the client waits
            assert monotonic() < until
            asking[0] = True
            with pytest.raises(KeyboardInterrupt):
                http.post(f"{gateway.url}/chat/completions", json=CHAT)
        sending.acquire()  # none comes any more


def test_a_model_that_ends_its_thread():
    """The client gets an error at once, and the gateway goes on."""

    def ends(x):
        raise SystemExit

    with InProcess(AsyncRouter(ends)) as gateway, gateway.client(timeout=LONG) as http:
        for _ in range(2):
            with pytest.raises(Exception, match="gave no reply: SystemExit"):
                http.post(f"{gateway.url}/chat/completions", json=CHAT)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_coroutine_that_ends_its_event_loop(error):
    """Its request has an answer, the one in progress goes on, and so do later ones and the gateway's end."""
    begun, go = threading.Event(), asyncio.Event()

    async def cloud(x):
        match x["messages"][-1]["content"]:
            case "wait":
                begun.set()
                await go.wait()
            case "end":
                raise error
            case "go":
                go.set()
        return "far away"

    def ask(http, text):
        chat = {"model": "edgeroute", "messages": [{"role": "user", "content": text}]}
        return http.post(f"{gateway.url}/chat/completions", json=chat).json()["choices"][0]["message"]["content"]

    router = AsyncRouter(lambda _: ("near", 0.1), cloud, threshold=0.5, deadline=LONG)
    with InProcess(router) as gateway, gateway.client(timeout=LONG) as http, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, http, "wait")
        assert begun.wait(LONG)
        assert [ask(http, text) for text in ("end", "go")] == ["near", "far away"]
        assert waiting.result(LONG) == "far away"


def test_a_closed_gateway(gateway):
    """Says so; closing it twice is once, and ends what is in progress."""
    client = gateway.client()
    gateway.close()
    gateway.close()
    with pytest.raises(Closed):
        client.post(f"{gateway.url}/chat/completions", json=CHAT)
    begun = threading.Event()

    async def never(x):
        begun.set()
        await asyncio.Event().wait()

    library = pytest.importorskip("httpx")
    other = InProcess(AsyncRouter(cloud=never))
    with ThreadPoolExecutor() as pool:
        call = pool.submit(other.client("httpx", timeout=None).post, f"{other.url}/chat/completions", json=CHAT)
        assert begun.wait(LONG)
        other.close()
        assert isinstance(call.exception(LONG), library.ReadError)


def test_an_unknown_library(gateway):
    with pytest.raises(PolicyError, match="httpx2"):
        gateway.client("requests")


def test_a_policy_file(tmp_path):
    """In place of a router."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "policy.toml"
    path.write_text(f'threshold = 0.5\n[edge]\npath = "{models.fashion().edge}"\n')
    with InProcess(path, names=["photos"]) as gateway, gateway.client() as http:
        assert [model["id"] for model in http.get(f"{gateway.url}/models").json()["data"]] == ["edgeroute", "photos"]
