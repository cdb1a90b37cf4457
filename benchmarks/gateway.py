"""What `edgeroute gateway` adds: `python benchmarks/gateway.py`.

The shipped edge model by the router in this process, behind the gateway, and behind `edgeroute serve`, asked in turns over connections
that are kept; and a tiny language model by the router and behind the gateway: one token, and a stream to its first piece.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from figures import MODELS, Figure, medians, serving, size, table, timed

from edgeroute import LlamaModel, Router
from edgeroute.cloud.openinference import LENGTH

GOAL_MS = 2.0
CHAT = {"model": "edgeroute", "messages": [{"role": "user", "content": "hello there"}]}


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[http.client.HTTPConnection]:
    """A server of edgeroute's in a process of its own -> a connection to it."""
    with (
        serving(*arguments) as (_, url),
        contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection,
    ):
        yield connection


def asked(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The reply to a POST."""
    connection.request("POST", path, body, headers)
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status == 200, text
    return text


def tensors(connection: http.client.HTTPConnection, model: str) -> Callable[[Any], bytes]:
    """Asks for one image, as binary."""

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


def streamed(connection: http.client.HTTPConnection) -> Iterator[bytes]:
    """Events of a stream of eight tokens that have text in them."""
    body, headers = json.dumps({**CHAT, "max_tokens": 8, "stream": True}).encode(), {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    yield from (line for line in connection.getresponse() if b'"content":"' in line and b'"content":""' not in line)


def figures() -> list[Figure]:
    """The figures: medians of calls made in turns."""
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
    pairs = (
        ("gateway, an image, over the router", "gateway", "direct"),
        ("gateway, an image, over edgeroute serve", "gateway", "serve"),
        ("gateway, a chat of a token, over the router", "a token, gateway", "a token"),
        ("gateway, first piece of a stream, over the router", "first, gateway", "first"),
    )
    return [
        timed(f"{name} (ratio {took[ours] / took[other]:.2f})", took[ours], took[other], GOAL_MS, shown="ms", digits=2)
        for name, ours, other in pairs
    ]


if __name__ == "__main__":
    print(table(figures()))
