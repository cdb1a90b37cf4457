"""`edgeroute.asgi.InProcess`: clients of OpenAI and Anthropic, and frameworks with such clients, on a router without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from time import monotonic

import pytest
from both import interrupted, wait_for
from gateways import CHAT, HELLO, LONG
from lazily import Later, needs

from edgeroute import AsyncRouter, BadInput, Closed, PolicyError, Router, models
from edgeroute.asgi import InProcess
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.server.gateway import gateway as run_gateway

needs("openai", "starlette")
openai, anthropic = Later("openai"), Later("anthropic")

JSON = [("Content-Type", "application/json")]


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


def test_a_client_that_is_interrupted_at_any_step():
    """A request that was sent is cancelled, wherever in `InProcess` its thread was."""
    running = set()

    async def never(x):
        running.add(asyncio.current_task())
        try:
            await asyncio.Event().wait()
        finally:
            running.discard(asyncio.current_task())

    library = pytest.importorskip("httpx")
    with InProcess(AsyncRouter(cloud=never, deadline=10 * LONG)) as gateway, gateway.client("httpx", timeout=0.3) as http:
        for at in count(1):
            begun = monotonic()
            with contextlib.suppress(library.ReadTimeout):
                interrupted(lambda: http.post(f"{gateway.url}/chat/completions", json=CHAT), at)
            if monotonic() - begun >= 0.3:  # it waited: each step before was broken into
                break
        wait_for(lambda: not running)


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
        assert [model["id"] for model in http.get(f"{gateway.url}/models").json()["data"]] == ["edgeroute", "photos", "policy"]


FAR = b'{"choices": [{"message": {"role": "assistant", "content": "far"}, "finish_reason": "stop"}]}'
VECTORS = b'{"data": [{"index": 0, "embedding": [0.5, 0.25]}]}'


@pytest.mark.parametrize("other", [True, False])
def test_the_gateways_section_of_a_policy_file(tmp_path, other):
    """Opens keys and names the model of embeddings, as for the command; what the program gives goes before it."""
    with CannedServer(http_reply(FAR, headers=JSON)) as far, CannedServer(http_reply(VECTORS, headers=JSON)) as vectors:
        cloud = '[cloud]\nprotocol = "openai"\nmodel = "large"\nurl = "{}"\n'
        opened = '[gateway]\nallow = ["top_k"]\nembeddings = "embed.toml"\n'
        path = tmp_path / "chats.toml"
        path.write_text('mode = "only_cloud"\n' + cloud.format(f"{far.url}/v1") + opened)
        (tmp_path / "embed.toml").write_text('mode = "only_cloud"\n' + cloud.format(f"{vectors.url}/v1"))
        given = {"allow": ["top_a"], "embeddings": AsyncRouter(lambda x: ([[1.0]], None))} if other else {}
        with InProcess(path, **given) as gateway, gateway.client(timeout=LONG) as http:
            chat = {**CHAT, "model": "chats"}
            replies = [http.post(f"{gateway.url}/chat/completions", json={**chat, key: 3}) for key in ("top_k", "top_a")]
            vector = http.post(f"{gateway.url}/embeddings", json={"model": "chats", "input": "hello"}).json()["data"][0]
    assert [reply.status_code for reply in replies] == [400, 200] if other else [200, 400]
    assert vector["embedding"] == pytest.approx([1.0] if other else [0.5, 0.25])


def test_a_policy_whose_second_file_is_not_there(tmp_path):
    """Leaves no thread and no router."""
    path = tmp_path / "policy.toml"
    path.write_text('mode = "only_cloud"\n[cloud]\nurl = "http://a/v2/models/b"\n[gateway]\nembeddings = "none.toml"\n')
    before = set(threading.enumerate())
    with pytest.raises(PolicyError, match=r"none\.toml"):
        InProcess(path)
    assert {thread.name for thread in set(threading.enumerate()) - before if "in-process" in thread.name} == set()


def test_what_is_no_router_of_asyncio():
    """Is refused by what to pass, and so it is by the gateway's application and as its router of embeddings."""
    with Router(edge, cloud, threshold=0.5) as router:
        for wrong in (router, edge, None):
            with pytest.raises(PolicyError, match=r"InProcess\(\) takes a policy's path or an AsyncRouter, not a"):
                InProcess(wrong)
        with pytest.raises(PolicyError, match="not a Router: make an AsyncRouter of the same arguments"):
            run_gateway(router)
        chats = AsyncRouter(edge)
        with pytest.raises(PolicyError, match="embeddings= takes an AsyncRouter, not a Router"):
            InProcess(chats, embeddings=router)
    asyncio.run(chats.close())
    with pytest.raises(Closed, match="make another AsyncRouter"):
        InProcess(chats)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_a_stream_that_the_gateways_end_cuts(kind, name):
    """Is an error of the client's library, and no whole answer."""
    library, shown = pytest.importorskip(name), threading.Event()

    async def endless(x):
        yield "first"
        await asyncio.Event().wait()

    gateway, body = InProcess(AsyncRouter(cloud=endless, deadline=LONG)), {**CHAT, "stream": True}
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(lambda: shown.wait(LONG) and gateway.close())

        async def main():
            address = f"{gateway.url}/chat/completions"
            async with gateway.async_client(name, timeout=LONG) as http, http.stream("POST", address, json=body) as reply:
                async for _ in reply.aiter_raw():
                    shown.set()

        def ask():
            with (
                gateway.client(name, timeout=LONG) as http,
                http.stream("POST", f"{gateway.url}/chat/completions", json=body) as reply,
            ):
                for _ in reply.iter_raw():
                    shown.set()

        with pytest.raises(library.ReadError, match="ended within its reply"):
            asyncio.run(main()) if kind == "asyncio" else ask()
        closing.result(LONG)


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_as_the_gateway_closes(monkeypatch, begun):
    """Ends with it, whether it has begun or comes too late: none waits for ever."""
    library, asked = pytest.importorskip("httpx"), threading.Event()

    async def never(x):
        asked.set()
        await asyncio.Event().wait()

    gateway = InProcess(AsyncRouter(cloud=never, deadline=LONG))
    loop = gateway._loop.loop  # private: its thread begins what is asked there
    schedule = loop.call_soon_threadsafe

    def meanwhile(function):
        monkeypatch.undo()
        if begun:
            schedule(function)
            assert asked.wait(LONG)
        gateway.close()
        if not begun:
            schedule(function)

    monkeypatch.setattr(loop, "call_soon_threadsafe", meanwhile)
    with gateway.client("httpx", timeout=LONG) as http, pytest.raises(library.ReadError if begun else Closed):
        http.post(f"{gateway.url}/chat/completions", json=CHAT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.parametrize(("what", "code"), [
    ("ask()", 3), ("gateway.close()", 3), ("gateway.__exit__()", 5), ("closed.close()", 5),
])  # fmt: skip
def test_a_gateway_of_before_a_fork(what, code):
    """Says so in the child, where no thread would answer; the parent's goes on. A child leaves a `with`, and what was closed."""
    program = (
        "import os, sys, warnings\n"
        "from edgeroute import AsyncRouter, Closed\n"
        "from edgeroute.asgi import InProcess\n"
        "warnings.simplefilter('ignore')\n"
        "gateway, closed = (InProcess(AsyncRouter(lambda _: ('yes', 0.9))) for _ in range(2))\n"
        "closed.close()\n"
        "client, chat = gateway.client(timeout=60), {'model': 'edgeroute', 'messages': [{'role': 'user', 'content': 'a'}]}\n"
        "def ask():\n"
        "    return client.post(gateway.url + '/chat/completions', json=chat)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    try:\n"
        f"        {what}\n"
        "    except Closed as e:\n"
        "        os._exit(3 if 'before a fork' in str(e) else 4)\n"
        "    os._exit(5)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "print(code, ask().status_code)\n"
        "gateway.close()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, check=False)
    assert ended.stdout.split() == [str(code), "200"], ended.stderr


@pytest.mark.parametrize(("given", "count", "refused"), [({}, 250, 0), ({"max_concurrent": 2}, 5, 3)])
def test_many_requests_at_once(given, count, refused):
    """A batch is not told to come later, as strangers of a server would be; a limit that is given holds."""
    go = threading.Event()

    def near(x):
        assert go.wait(LONG)
        return "near", 0.9

    async def main():
        async with gateway.async_client(timeout=LONG) as http:
            calls = [asyncio.ensure_future(http.post(f"{gateway.url}/chat/completions", json=CHAT)) for _ in range(count)]
            held = gateway._app.state.calls  # private: its places
            await asyncio.to_thread(wait_for, lambda: held.running + sum(call.done() for call in calls) == count)
            go.set()
            return [reply.status_code for reply in await asyncio.gather(*calls)]

    with InProcess(AsyncRouter(near, deadline=LONG), **given) as gateway:
        statuses = asyncio.run(main())
    assert (statuses.count(429), statuses.count(200)) == (refused, count - refused)
