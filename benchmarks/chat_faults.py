"""A language model's cloud that fails, for edgeroute, LiteLLM's Router and pydantic-ai's FallbackModel: who loses an answer.

`python benchmarks/chat_faults.py [CALLS] [FAULT ...]`: a new router for each fault, calls one after the other on asyncio.
Every router has the same two servers on loopback, the cloud that fails and a local model behind OpenAI's API, and two seconds
for an attempt, for a first token and from one token to the next. What each is told besides is what its own documentation says
for a cloud with a local model to fall back to. Takes a quarter of an hour, most of it waiting for LiteLLM's own retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeAlias

from figures import SMOKE, machine, size

from edgeroute import AsyncRouter, LocalServer, OpenAIChat, Restart
from edgeroute.core.policy_egress_and_options import PolicyMode
from edgeroute.testing import CannedServer, chat_events, http_reply

TIMEOUT_S = size(2.0, 0.2)
"""Of an attempt, of the first token, and from one token to the next: the same for all."""
CALLS = size(10, 1)
RETRY_AFTER_S = 2
QUESTION = "Why is the sky blue?"
CLOUD, LOCAL, MORE = ([f"{side}{i} " for i in range(8)] for side in ("cloud", "local", "more"))
"""The words of the cloud, of the local model, and of the local model that goes on from the cloud's."""
WHOLE = {"".join(CLOUD): "cloud", "".join(LOCAL): "local"}
FAULTS = {
    "none": "",
    "dead": "the port is closed",
    "black hole": "the connection is taken, and no byte of a reply comes",
    "stall": "the reply begins, and half of it never comes",
    "429": f"too many requests, Retry-After: {RETRY_AFTER_S}",
    "cut": "the connection closes in the middle of the reply",
    "short": "the reply ends in the middle, properly, as a proxy ends it whose server has died",
}


class Got(NamedTuple):
    """What the caller of one answer has."""

    text: str
    """What is on the screen in the end."""
    told: bool = False
    """Something on the answer says that it is not whole."""
    restarted: bool = False
    """The caller was told to take back what had been shown."""


LOST = ("error", "cut", "cut unsaid", "twice")
"""Kinds of answers that are not whole: none at all, a beginning that says so or does not, and the texts of both."""
Ask: TypeAlias = Callable[[bool], Awaitable[Got]]
"""Whether as a stream -> one answer."""
Subject: TypeAlias = Callable[[str, str], contextlib.AbstractAsyncContextManager[Ask]]
"""URLs of the cloud and of the local model -> a router."""


class Cell(NamedTuple):
    """One router under one fault."""

    by: Counter[str]
    """Answers by what they are, as `kind` names them, or `error`."""
    times: list[float]
    """Seconds of each call, to its end."""
    connects: int
    requests: int

    @property
    def lost(self) -> int:
        """Answers that are not whole."""
        return sum(n for what, n in self.by.items() if what in LOST)


# --- the servers


def reply(request: bytes, words: list[str], half: bool = False) -> list[bytes]:
    """Return the parts of an HTTP reply in chunks, events if the request asks for a stream, else JSON: head, and body or half.

    The last chunk, which ends the body, is not among them.
    """
    stream = json.loads(request.partition(b"\r\n\r\n")[2]).get("stream")
    events = chat_events(words, usage=(9, len(words)), model="m")
    if stream:
        parts = [b"data: %s\n\n" % json.dumps(event).encode() for event in events] + [b"data: [DONE]\n\n"]
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(words)}, "finish_reason": "stop"}
        whole = {**events[-1], "object": "chat.completion", "choices": [choice]}
        text = json.dumps(whole).encode()
        parts = [text[at : at + 40] for at in range(0, len(text), 40)]
    kind = b"text/event-stream" if stream else b"application/json"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % kind
    return [head, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts[: len(parts) // 2 if half else None])]


END = b"0\r\n\r\n"
MODELS = http_reply(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())


def local(request: bytes) -> list[bytes]:
    """Return the reply of the local model: its text, or its models; a beginning of its own answer in the request is continued."""
    if request.startswith(b"GET"):
        return [MODELS]
    last = json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]
    return [*reply(request, MORE if last["role"] == "assistant" else LOCAL), END]


def faulty(fault: str, request: bytes) -> list[bytes | None] | bytes | None:
    """Return what the cloud sends under a fault, None within it being silence; a question for its models is always answered."""
    if request.startswith(b"GET"):
        return MODELS
    if fault == "none":
        return [*reply(request, CLOUD), END]
    if fault == "stall":
        return [*reply(request, CLOUD, half=True), None]
    if fault == "429":
        error = {"error": {"message": "too many", "type": "requests", "code": "rate_limit_exceeded"}}
        kind = ("Content-Type", "application/json")
        return http_reply(json.dumps(error).encode(), status=429, headers=[kind, ("Retry-After", str(RETRY_AFTER_S))])
    return [*reply(request, CLOUD, half=True), *([END] if fault == "short" else [])]


@contextlib.contextmanager
def cloud(fault: str) -> Iterator[tuple[int, Callable[[], int]]]:
    """Provide the port of a cloud with a fault, and a function that counts the POST requests that have come to it."""
    if fault == "dead":
        with socket.socket() as taken:  # bound, so that nobody else has the port, and not listening
            taken.bind(("127.0.0.1", 0))
            yield taken.getsockname()[1], lambda: 0
        return
    canned = None if fault == "black hole" else partial(faulty, fault)
    with CannedServer(canned, close=fault == "cut") as server:
        yield server.port, lambda: sum(request.startswith(b"POST") for request in server.requests)


@cache
def connects() -> Counter[int]:
    """Return a counter of this process's connection attempts by port from now on, also of those that no server sees.

    Its audit hook stays for the life of the process.
    """
    found: Counter[int] = Counter()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            found[arguments[1][1]] += 1

    sys.addaudithook(hear)
    return found


# --- the routers


@contextlib.asynccontextmanager
async def ours(
    far: str, near: str, *, mode: PolicyMode = "prefer_edge", restart: bool = False, state: str | None = None
) -> AsyncIterator[Ask]:
    """Provide a function that asks edgeroute once, whole or as a stream; in its cascade the local model is never sure.

    So each call needs the cloud. state: a folder for its ledger.
    """
    edge = LocalServer(near, model="m", logprobs=False)
    endpoint = OpenAIChat(far, model="m", timeout_s=TIMEOUT_S, between_s=TIMEOUT_S)
    async with AsyncRouter(edge, endpoint, threshold=0.5, mode=mode, state=state) as router:

        async def ask(stream: bool) -> Got:
            if not stream:
                answer = await router.infer(QUESTION)
                return Got(answer.value, bool(answer.truncated))
            text, restarted = "", False
            async with router.stream(QUESTION, restart=restart) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Restart):
                        text, restarted = "", True
                    else:
                        text += piece
            whole = pieces.answer
            return Got(text, whole is None or bool(whole.truncated), restarted)

        yield ask


PREFILL = {"supports_assistant_prefill": True}
"""llama-server and vLLM go on from the beginning of an answer, so LiteLLM may let them."""


def litellm_routers() -> dict[str, Subject]:
    """Return LiteLLM's Router as two subjects: with a timeout and a fallback, and with all that its documentation has for this.

    Sets an environment variable and an option of LiteLLM for good, so that it downloads and prints nothing. A stream that breaks
    off raises `Broken`.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its import would download a list of prices
    import litellm
    from litellm.types.router import AllowedFailsPolicy

    litellm.suppress_debug_info = True

    @contextlib.asynccontextmanager
    async def routed(far: str, near: str, **options: Any) -> AsyncIterator[Ask]:
        at = {"model": "openai/m", "api_key": "none"}
        models = [
            {"model_name": "cloud", "litellm_params": {**at, "api_base": f"{far}/v1"}},
            {"model_name": "local", "litellm_params": {**at, "api_base": near}, "model_info": PREFILL},
        ]
        limits = {"timeout": TIMEOUT_S, "stream_timeout": TIMEOUT_S}
        router = litellm.Router(models, fallbacks=[{"cloud": ["local"]}], **limits, **options)
        messages = [{"role": "user", "content": QUESTION}]

        async def ask(stream: bool) -> Got:
            if not stream:
                choice = (await router.acompletion("cloud", messages)).choices[0]
                return Got(choice.message.content, choice.finish_reason != "stop")
            text, finish = "", None
            try:
                async for chunk in await router.acompletion("cloud", messages, stream=True):
                    if chunk.choices:
                        text += chunk.choices[0].delta.content or ""
                        finish = chunk.choices[0].finish_reason or finish
            except Exception as e:
                raise Broken(text) from e
            return Got(text, finish != "stop")

        yield ask
        router.retire()

    kinds = ("Timeout", "RateLimit", "InternalServer", "ServiceUnavailable", "BadGateway")
    allowed = AllowedFailsPolicy(**{f"{kind}ErrorAllowedFails": 2 for kind in kinds})
    cooling: dict[str, Any] = {"num_retries": 0, "cooldown_time": 30, "allowed_fails_policy": allowed}
    tuned = partial(routed, **cooling, enable_mid_stream_fallback_continuation=True)
    return {"LiteLLM": routed, "LiteLLM, tuned": tuned}


def pydantic_ai_models() -> dict[str, Subject]:
    """Return pydantic-ai's FallbackModel behind an agent as a subject, without the client's own retries.

    A stream that breaks off raises `Broken`.

    Raises:
        ImportError: it is not installed.
    """
    from openai import AsyncOpenAI
    from pydantic_ai import Agent, ModelSettings
    from pydantic_ai.models.fallback import FallbackModel
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    def cut(response: Any) -> bool:
        return (response.state, response.finish_reason) != ("complete", "stop")

    limits = ModelSettings(timeout=TIMEOUT_S, first_event_timeout=TIMEOUT_S)

    strict = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)  # else one without ends in "stop"

    @contextlib.asynccontextmanager
    async def agent(far: str, near: str) -> AsyncIterator[Ask]:
        async with contextlib.AsyncExitStack() as open_clients:
            models = []
            for url in (f"{far}/v1", near):
                client = await open_clients.enter_async_context(AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
                models.append(
                    OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client), profile=strict, settings=limits)
                )
            asked = Agent(FallbackModel(*models))

            async def ask(stream: bool) -> Got:
                if not stream:
                    result = await asked.run(QUESTION)
                    return Got(result.output, cut(result.response))
                text = ""
                try:
                    async with asked.run_stream(QUESTION) as streamed:
                        async for piece in streamed.stream_text(delta=True, debounce_by=None):
                            text += piece
                except Exception as e:
                    raise Broken(text) from e
                return Got(text, cut(streamed.response))

            yield ask

    return {"pydantic-ai": agent}


class Broken(Exception):
    """A stream that ended with an exception, and what was shown of it."""


# --- the table


def kind(got: Got) -> str:
    """Return what an answer is: the side whose text it is whole, "continued", "twice" (both texts), "cut", or "cut unsaid"."""
    if got.text in WHOLE:
        return f"{WHOLE[got.text]} after a restart" if got.restarted else WHOLE[got.text]
    for words, what in ((MORE, "continued"), (LOCAL, "twice")):
        if got.text.endswith("".join(words)):
            return what
    return "cut" if got.told else "cut unsaid"


async def tried(fault: str, subject: Subject, stream: bool, calls: int, near: str) -> Cell:
    """Make a new router, ask it `calls` times, one after the other, under one fault, and return the kinds, times and connections.

    An exception counts as "error", or as "cut" if part of a stream was shown; it is printed to stderr.
    """
    by: Counter[str] = Counter()
    times = []
    with cloud(fault) as (port, requests):
        before = connects()[port]
        async with subject(f"http://127.0.0.1:{port}", near) as ask:
            for _ in range(calls):
                begun = time.perf_counter()
                try:
                    by[kind(await ask(stream))] += 1
                except Broken as e:
                    by["cut" if e.args[0] else "error"] += 1
                    print(f"{fault}: {e.__cause__!r:.300}", file=sys.stderr)
                except Exception as e:  # noqa: BLE001 - whatever it is, there was no answer, and the table shows it
                    by["error"] += 1
                    print(f"{fault}: {e!r:.300}", file=sys.stderr)
                times.append(time.perf_counter() - begun)
            return Cell(by, times, connects()[port] - before, requests())


def subjects() -> tuple[dict[str, Subject], dict[str, Subject]]:
    """Return the routers that are installed here: for answers, and for streams, where edgeroute has one option more."""
    peers = installed(litellm_routers) | installed(pydantic_ai_models)
    far_first = partial(ours, mode="prefer_cloud", restart=True)
    answers: dict[str, Subject] = {"edgeroute": ours, "edgeroute, prefer_cloud": far_first}
    streams: dict[str, Subject] = {
        "edgeroute": ours,
        "edgeroute, restart": partial(ours, restart=True),
        "edgeroute, prefer_cloud, restart": far_first,
    }
    return answers | peers, streams | peers


def installed(peers: Callable[[], dict[str, Subject]]) -> dict[str, Subject]:
    """Return the routers of a library; none where it is missing, which is printed to stderr, and none at the smallest size."""
    if SMOKE:
        return {}
    try:
        return peers()
    except ImportError as e:
        print(f"without {peers.__name__}: {e}: pip install --group bench", file=sys.stderr)
        return {}


def ran() -> str:
    """Return the versions of the libraries that are installed, and the machine and the day."""
    peers = []
    for name in ("litellm", "pydantic-ai-slim", "openai"):
        with contextlib.suppress(PackageNotFoundError):
            peers.append(f"{name} {version(name)}")
    return ", ".join([*peers, machine()])


def short(cells: dict[tuple[str, str], Cell], faults: list[str], routers: list[str]) -> str:
    """Return a table with a row for each fault and a column for each router: lost, p50, longest, connects/requests."""
    lines = [f"| fault | {' | '.join(routers)} |", f"| --- |{' ---: |' * len(routers)}"]
    for fault in faults:
        row = [fault]
        for name in routers:
            cell = cells[fault, name]
            times = f"{statistics.median(cell.times) * 1e3:.0f} ms, {max(cell.times) * 1e3:.0f} ms"
            row.append(f"{cell.lost}, {times}, {cell.connects}/{cell.requests}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


async def main(calls: int, faults: list[str]) -> None:
    """Print the table of answers and that of streams, each whole and as one row for a fault, after a warm-up."""
    with CannedServer(local) as near:
        for stream, routers in enumerate(subjects()):
            for fault in ("none", "dead"):  # warm-up: imports at the first call and first failure
                for subject in routers.values():
                    await tried(fault, subject, bool(stream), 1, f"{near.url}/v1")
            cells = dict[tuple[str, str], Cell]()
            print(f"\n{'Streams' if stream else 'Answers'}, {calls} calls a fault; {ran()}\n")
            print("| fault | router | answers | lost | p50 | max | connects | requests |")
            print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
            for fault in faults:
                for name, subject in routers.items():
                    cell = cells[fault, name] = await tried(fault, subject, bool(stream), calls, f"{near.url}/v1")
                    by = ", ".join(f"{n} {what}" for what, n in cell.by.items())
                    times = f"{statistics.median(cell.times):.3f} s | {max(cell.times):.3f} s"
                    print(f"| {fault} | {name} | {by} | {cell.lost} | {times} | {cell.connects} | {cell.requests} |", flush=True)
            print(f"\nlost, p50, max, connects/requests:\n\n{short(cells, faults, [*routers])}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else CALLS, sys.argv[2:] or [*FAULTS]))
