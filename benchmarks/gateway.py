"""Latency that `edgeroute gateway` adds: `python benchmarks/gateway.py`.

The shipped edge model by the router in this process, behind the gateway, and behind `edgeroute serve`, asked in turns over
connections that are kept; a tiny language model by the router and behind the gateway: one token, and a stream to its first piece;
by each API behind the gateway and by llama.cpp's own server; and a function by the router and by an HTTP client of `InProcess`,
whose own time for a reply that is there already is not counted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from figures import MODELS, Figure, medians, serving, size, table, timed

from edgeroute import AsyncRouter, LlamaModel, Router
from edgeroute.asgi import InProcess
from edgeroute.cloud.openinference import LENGTH
from edgeroute.system.late_imports_and_plugins import import_httpx

GOAL_MS, GOAL_SERVER_MS, WITHIN_MS = 2.0, 1.0, 0.3
CHAT = {"model": "edgeroute", "messages": [{"role": "user", "content": "hello there"}]}
# API -> its path, the key for the most tokens, and what is in the line of a piece of the text.
APIS = {
    "chat": ("/v1/chat/completions", {**CHAT, "max_tokens": 8}, b'"content":"'),
    "responses": (
        "/v1/responses",
        {"model": "edgeroute", "input": "hello there", "max_output_tokens": 8},
        b'"response.output_text.delta"',
    ),
    "messages": ("/v1/messages", {**CHAT, "max_tokens": 8}, b'"text_delta"'),
}


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[http.client.HTTPConnection]:
    """A server of edgeroute's in a process of its own -> a connection to it."""
    with (
        serving(*arguments) as (_, url),
        contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection,
    ):
        yield connection


def asked(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Send a POST, and return the body of the reply; fails unless its status is 200."""
    connection.request("POST", path, body, headers)
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    return text


def tensors(connection: http.client.HTTPConnection, model: str) -> Callable[[Any], bytes]:
    """Return a function that asks that model for one image, as binary, and returns the reply."""

    def ask(image: Any) -> bytes:
        one = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "parameters": {"binary_data_size": image.nbytes}}
        head = json.dumps({"inputs": [one]}).encode()
        return asked(connection, f"/v2/models/{model}/infer", head + image.tobytes(), {LENGTH: str(len(head))})

    return ask


def chats(connection: http.client.HTTPConnection) -> Callable[[Any], bytes]:
    """Asks for one token."""
    body, headers = json.dumps({**CHAT, "max_tokens": 1}).encode(), {"Content-Type": "application/json"}
    return lambda _: asked(connection, "/v1/chat/completions", body, headers)


class First:
    """A stream to its first piece, and the rest."""

    def __init__(self, begin: Callable[[], Iterator[bytes | str]]) -> None:
        self._begin, self._rest = begin, iter(())

    def __call__(self, _: Any) -> object:
        """Begins one."""
        self._rest = self._begin()
        return next(self._rest)

    def rest(self, _: Any) -> object:
        """Takes what is left of it."""
        return list(self._rest)


def streamed(connection: http.client.HTTPConnection, api: str = "chat") -> Iterator[bytes]:
    """Ask for a stream of eight tokens, and yield its events that have text; connect again if the connection was closed."""
    path, request, mark = APIS[api]
    body, headers = json.dumps({**request, "stream": True}).encode(), {"Content-Type": "application/json"}
    try:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
    except ConnectionError:  # llama.cpp's server closes a connection after 100 requests, or 5 s without one
        connection.close()
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
    lines = (line for line in reply if line.startswith(b"data:"))
    yield from (line for line in lines if mark in line and b'"content":""' not in line)


@contextlib.contextmanager
def own_server(tiny: Path) -> Iterator[http.client.HTTPConnection]:
    """Run llama.cpp's server with this model in a process of its own, and provide a connection to it; kills it after."""
    code = (
        "import sys, xllamacpp as x; p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 1024; p.n_parallel = 1; p.verbosity = -1;"
        "p.ui = False; p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1; s = x.Server(p); print(s.listening_address, flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip().removeprefix("http://") if process.stdout else ""
        with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            yield connection
        process.kill()


def within() -> Figure:
    """Return the figure of a chat through `InProcess`: what it takes beyond the router, and beyond its client."""
    web = import_httpx("httpx2 or httpx is needed")
    router = Router(lambda _: ("a short answer", 0.9))
    with router, InProcess(AsyncRouter(lambda _: ("a short answer", 0.9))) as gateway, gateway.client(timeout=60) as http:
        url = f"{gateway.url}/chat/completions"
        ready = http.post(url, json=CHAT).content
        headers = {"Content-Type": "application/json"}
        canned = web.Client(transport=web.MockTransport(lambda _: web.Response(200, content=ready, headers=headers)))
        subjects: dict[str, Callable[[Any], object]] = {
            "direct": router.infer,
            "client": lambda chat: canned.post(url, json=chat).json(),
            "within": lambda chat: http.post(url, json=chat).json(),
        }
        took = medians(subjects, [CHAT], blocks=200)
    base = took["direct"] + took["client"]
    return timed(
        "a chat by InProcess, over the router and the client alone", took["within"], base, WITHIN_MS, shown="ms", digits=2
    )


def figures() -> list[Figure]:
    """Start all servers, and return what the gateway adds, as differences of medians of calls made in turns."""
    import tiny_gguf

    images = list(np.load(MODELS / "sample.npz")["images"][: size(20, 2)])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        policy, texts = Path(folder) / "policy.toml", Path(folder) / "texts.toml"
        policy.write_text(f'mode = "only_edge"\n[edge]\npath = "{MODELS / "edge.int8.onnx"}"\n')
        tiny = tiny_gguf.write(Path(folder) / "tiny.gguf")
        texts.write_text(f'mode = "only_edge"\n[edge]\npath = "{tiny}"\n')
        router = stack.enter_context(Router.from_policy(policy))
        speaks = stack.enter_context(Router(LlamaModel(tiny)))
        gateway = stack.enter_context(process("gateway", "--policy", policy))
        served = stack.enter_context(process("serve", MODELS / "edge.int8.onnx"))
        language = stack.enter_context(process("gateway", "--policy", texts))
        one = {"messages": CHAT["messages"], "max_tokens": 1}
        eight = {"messages": CHAT["messages"], "max_tokens": 8}

        def spoken() -> Iterator[str]:
            with speaks.stream(eight) as stream:
                yield from stream

        took = medians(
            {"direct": router.infer, "gateway": tensors(gateway, "edgeroute"), "serve": tensors(served, "fashion-edge")}, images
        )
        took |= medians({"a token": lambda _: speaks.infer(one), "a token, gateway": chats(language)}, images)
        here, there = First(spoken), First(lambda: streamed(language))
        turns: dict[str, Callable[[Any], object]] = {
            "first": here, "rest": here.rest, "first, gateway": there, "rest, gateway": there.rest,
        }  # fmt: skip
        took |= medians(turns, [None], runs=5, blocks=40)
        turns, own = {}, stack.enter_context(own_server(tiny))
        begins = {"own": First(partial(streamed, own)), **{api: First(partial(streamed, language, api)) for api in APIS}}
        for name, first in begins.items():
            turns |= {name: first, f"{name}, rest": first.rest}
        took |= medians(turns, [None], runs=5, blocks=15)
    pairs = [
        ("gateway, an image, over the router", "gateway", "direct", GOAL_MS),
        ("gateway, an image, over edgeroute serve", "gateway", "serve", GOAL_MS),
        ("gateway, a chat of a token, over the router", "a token, gateway", "a token", GOAL_MS),
        ("gateway, first piece of a stream, over the router", "first, gateway", "first", GOAL_MS),
        *((f"gateway, first piece of {api}, over the model's own server", api, "own", GOAL_SERVER_MS) for api in APIS),
    ]
    return [
        timed(f"{name} (ratio {took[ours] / took[other]:.2f})", took[ours], took[other], goal, shown="ms", digits=2)
        for name, ours, other, goal in pairs
    ] + [within()]


if __name__ == "__main__":
    print(table(figures()))
