"""Cells of docs/peers.md of other routers: LiteLLM, pydantic-ai, cascadeflow and firstpass, where installed; and of a failing cloud.

The rows about failures are the same program for all, that of benchmarks/chat_faults.py: a cloud that fails, and a local model
behind OpenAI's API. Each router has the options that its documentation names for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pkgutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any, TypeAlias

import chat_faults
from chat_faults import Ask, Broken, Got, Subject, cloud, kind, litellm_routers, ours, pydantic_ai_models, tried

from edgeroute.testing import CannedServer

CALLS = 10
Cells: TypeAlias = dict[str, Callable[[], str]]
CLOSED = "The port is closed: the small model answers"
SILENT = "No byte of a reply comes: the small model answers"
ATTEMPTS = "Attempts of ten calls at a closed port"
WAITS = "Requests of ten calls to an endpoint that says `Retry-After: 300`"
BROKEN = "A stream that breaks off in the middle"


@contextlib.contextmanager
def settings(**named: float) -> Iterator[None]:
    """Replace constants of `chat_faults` during the `with` block."""
    before = {name: getattr(chat_faults, name) for name in named}
    try:
        for name, value in named.items():
            setattr(chat_faults, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(chat_faults, name, value)


def asked(fault: str, subject: Subject, calls: int) -> chat_faults.Cell:
    """Make that many calls of a new router under a fault, and return what came of them."""
    with CannedServer(chat_faults.local) as near:
        return asyncio.run(tried(fault, subject, stream=False, calls=calls, near=f"{near.url}/v1"))


def survives(fault: str, subject: Subject) -> str:
    """Return "yes" if a call had the local model's answer; a silent cloud is given 0.3 s."""
    with settings(TIMEOUT_S=0.3 if fault == "black hole" else 30.0):
        return "yes" if asked(fault, subject, 1).by == {"local": 1} else "no"


def attempts(*subjects: Subject) -> str:
    """Return the connections that ten calls try to open, for each router."""
    return " or ".join(str(asked("dead", subject, CALLS).connects) for subject in subjects)


def requests(*subjects: Subject) -> str:
    """Return the requests of ten calls at a cloud that says 429 and Retry-After: 300, for each router."""
    with settings(TIMEOUT_S=30.0, RETRY_AFTER_S=300):
        return " or ".join(str(asked("429", subject, CALLS).requests) for subject in subjects)


SAID = {
    "cut": "marked",
    "local": "the small model's text: none is shown before it is whole",
    "local after a restart": "begun anew",
    "continued": "continued",
    "error": "an exception",
}


def broken(*subjects: Subject) -> str:
    """Return what the caller of a stream has that was cut, for each of the routers, joined by "or"."""

    async def one(subject: Subject, near: str) -> str:
        with cloud("cut") as (port, _):
            async with subject(f"http://127.0.0.1:{port}", near) as ask:
                try:
                    return kind(await ask(True))
                except Broken:
                    return "error"

    with settings(TIMEOUT_S=30.0), CannedServer(chat_faults.local) as near:
        return " or ".join(SAID.get(found := asyncio.run(one(subject, f"{near.url}/v1")), found) for subject in subjects)


def faults(plain: Subject, *tuned: Subject) -> Cells:
    """Return the rows about failures. tuned: with options of its own that change a row."""
    return {
        CLOSED: partial(survives, "dead", plain),
        SILENT: partial(survives, "black hole", plain),
        ATTEMPTS: partial(attempts, plain, *tuned),
        WAITS: partial(requests, plain, *tuned),
        BROKEN: partial(broken, plain, *tuned),
    }


def edgeroute_faults() -> Cells:
    """Return edgeroute's cells about failures, without and with `restart`.

    Its attempts are connections as of the others, less the probes in its ledger, which carry no user data: the first comes 2.5 to
    5 s after the third attempt, so that their number depends on how long ten calls take.
    """

    def attempted() -> str:
        with tempfile.TemporaryDirectory() as state:
            connects = asked("dead", partial(ours, state=state), CALLS).connects
            lines = Path(state, "egress.jsonl").read_text().splitlines()
        return str(connects - sum(json.loads(line)["rule"] == "no user data" for line in lines))

    restarted = partial(ours, restart=True)
    return {**faults(ours), ATTEMPTS: attempted, BROKEN: partial(broken, ours, restarted)}


def litellm_cells() -> Cells:
    """Return the cells of LiteLLM's Router; where two values are given, the second is of `num_retries=0`, a cooldown, continued streams.

    Registers a provider in LiteLLM for good.

    Raises:
        ImportError: it is not installed.
    """
    plain, tuned = litellm_routers().values()
    from typing import get_args

    import litellm
    from litellm.types.router import RoutingStrategyName

    class Local(litellm.CustomLLM):
        """A function of this program as a provider."""

        def completion(self, *_: Any, **__: Any) -> Any:
            return litellm.ModelResponse(choices=[{"message": {"role": "assistant", "content": "local"}}])

        async def acompletion(self, *_: Any, **__: Any) -> Any:
            return self.completion()

    litellm.custom_provider_map = [{"provider": "here", "custom_handler": Local()}]
    hi = [{"role": "user", "content": "hi"}]

    def routed(*models: tuple[str, dict[str, Any]], **options: Any) -> Any:
        listed = [{"model_name": name, "litellm_params": params} for name, params in models]
        return litellm.Router(listed, num_retries=0, **options)

    def in_process() -> str:
        router = routed(("m", {"model": "here/m"}))
        return "your class" if router.completion("m", hi).choices[0].message.content == "local" else "no"

    def one_limit() -> str:
        """Two endpoints that never reply, then the local model."""
        limit = 0.3
        with CannedServer(None) as first, CannedServer(None) as second:
            silent = [{"model": "openai/m", "api_key": "none", "api_base": server.url} for server in (first, second)]
            models = ("a", silent[0]), ("b", silent[1]), ("c", {"model": "here/m"})
            router = routed(*models, fallbacks=[{"a": ["b", "c"]}], timeout=limit)
            begun = time.monotonic()
            answered = router.completion("a", hi).choices[0].message.content == "local"
            return "no, each its own" if answered and time.monotonic() - begun >= 2 * limit else "yes"

    def reason() -> str:
        """What of the answer names who gave it, and why."""
        with CannedServer(chat_faults.local) as near:
            at = {"model": "openai/m", "api_key": "none"}
            closed, local = {**at, "api_base": "http://127.0.0.1:9"}, {**at, "api_base": f"{near.url}/v1"}
            answer = routed(("a", closed), ("b", local), fallbacks=[{"a": ["b"]}]).completion("a", hi)
        headers = answer._hidden_params["additional_headers"]
        return "who, and how many attempts" if headers.get("x-litellm-attempted-fallbacks") == 1 else "no"

    def classes() -> str:
        """Tags as classes: one of the local model, one that nothing has, and none."""

        async def went(router: Any, tag: str | None) -> str:
            try:
                await router.acompletion("m", hi, metadata={"tags": [tag]} if tag else {})
            except ValueError:
                return "an error"
            return "away" if far.requests else "local"

        async def after_twenty(router: Any, tag: str | None) -> str:
            for _ in range(19):
                await went(router, tag)
            return await went(router, tag)

        async def all_went() -> tuple[str, str, str]:
            away = {"model": "openai/m", "api_key": "none", "api_base": f"{far.url}/v1", "tags": ["product"]}
            router = routed(("m", away), ("m", {"model": "here/m", "tags": ["medical"]}), enable_tag_filtering=True)
            private, unknown, none = [await after_twenty(router, tag) for tag in ("medical", "holiday", None)]
            return private, unknown, none

        with CannedServer(chat_faults.local) as far:
            found = asyncio.run(all_went())
        if found == ("local", "an error", "away"):
            return "by tags, but a call without one leaves"
        return "yes" if "away" not in found else "no"

    return {
        **faults(plain, tuned),
        "The small model runs in the program's own process": in_process,
        "One limit over both models and all attempts": one_limit,
        "Order of several large models": lambda: ", ".join(get_args(RoutingStrategyName)),
        "The reason is in the answer": reason,
        "What is of a private class stays, and of an unknown one, too": classes,
        "Hosted models that it has an adapter for": lambda: f"{len(litellm.provider_list)} providers",
        "Version": lambda: version("litellm"),
    }


def pydantic_ai_cells() -> Cells:
    """Return the cells of pydantic-ai's FallbackModel, in an agent.

    Raises:
        ImportError: it is not installed.
    """
    (plain,) = pydantic_ai_models().values()
    import pydantic_ai.providers
    from pydantic_ai import Agent, ModelResponse, ModelSettings, TextPart
    from pydantic_ai.models.fallback import FallbackModel
    from pydantic_ai.models.function import FunctionModel
    from pydantic_ai.models.test import TestModel

    def model(text: str, wait_s: float = 0, **details: Any) -> FunctionModel:
        async def answer(*_: Any) -> ModelResponse:
            await asyncio.sleep(wait_s)
            return ModelResponse([TextPart(text)], provider_details=details)

        return FunctionModel(answer)

    def in_process() -> str:
        return "your function" if Agent(model("local")).run_sync("hi").output == "local" else "no"

    def by_confidence() -> str:
        """A handler of responses that looks at what the small model says of its sureness."""

        def unsure(response: Any) -> bool:
            return response.provider_details["confidence"] < 0.8

        unsure.__annotations__["response"] = ModelResponse  # by which it is told from a handler of exceptions

        went = [
            Agent(FallbackModel(model("small", confidence=sure), model("large", confidence=1), fallback_on=unsure))
            .run_sync("hi")
            .output
            for sure in (0.9, 0.4)
        ]
        return "your function; not of streams" if went == ["small", "large"] else "no"

    def one_limit() -> str:
        """Two models that take longer than the limit of a request, then the local one."""
        limit = ModelSettings(request_timeout=0.3)
        begun = time.monotonic()
        chain = FallbackModel(model("a", 30), model("b", 30), model("c"))
        answered = Agent(chain, model_settings=limit).run_sync("hi").output == "c"
        return "no, each its own" if answered and time.monotonic() - begun >= 2 * limit["request_timeout"] else "yes"

    def reason() -> str:
        response = Agent(FallbackModel(model("local"))).run_sync("hi").response
        return "who" if response.model_name else "no"

    def tools() -> str:
        runs: list[int] = []

        def weather() -> str:
            """The weather."""
            runs.append(1)
            return "dry"

        Agent(TestModel(), tools=[weather]).run_sync("hi")
        return "runs them" if runs else "no"

    found = [one.name for one in pkgutil.iter_modules(pydantic_ai.providers.__path__) if not one.name.startswith("_")]
    return {
        **faults(plain),
        "The small model runs in the program's own process": in_process,
        "By the confidence of the small model's answer": by_confidence,
        "One limit over both models and all attempts": one_limit,
        "The reason is in the answer": reason,
        "Tools and formats of a reply": tools,
        "Hosted models that it has an adapter for": lambda: f"{len(found)} providers",
        "Version": lambda: version("pydantic-ai-slim"),
    }


def cascadeflow_cells() -> Cells:
    """Return the cell of cascadeflow that is run: its version; how it fails depends on the names of its providers, and is read.

    Raises:
        ImportError: it is not installed.
    """
    import cascadeflow  # noqa: F401 - it can be imported

    return {"Version": lambda: version("cascadeflow")}


GATE = """if grep -q cloud; then echo '{"verdict": "pass"}'; else echo '{"verdict": "fail"}'; fi"""
"""A gate that only answers of the cloud pass."""
LIMIT_S = 150.0
"""How long a caller of firstpass waits here."""


def firstpass_config(far: str, near: str) -> str:
    """Return a ladder of the local model and the cloud, with the gate, in TOML."""
    route = '[[route]]\nmode = "enforce"\nladder = ["near/m", "far/m"]\ngates = ["sure"]\n'
    gate = f'[[gate]]\nid = "sure"\ncmd = ["sh", "-c", {json.dumps(GATE)}]\n'
    rung = '[[provider]]\nid = "{0}"\ndialect = "openai"\nbase_url = "{1}"\n[[price]]\nmodel = "{0}/m"\n{2}\n'
    price = "input_per_mtok = 0\noutput_per_mtok = 0"
    return route + gate + rung.format("near", near.removesuffix("/v1"), price) + rung.format("far", far, price)


def firstpass_program() -> Path:
    """Return the program that its wheel installs.

    Raises:
        ImportError: it is not installed.
    """
    files = distribution("firstpass").files or []
    return next(Path(str(file.locate())).resolve() for file in files if file.stem == "firstpass")


@contextlib.asynccontextmanager
async def firstpass(far: str, near: str, *, state: str | None = None) -> AsyncIterator[Ask]:
    """Run firstpass as a proxy on a free port, and provide a function that asks it once. Kills it after.

    state: a folder for its records; None: a temporary one.
    """
    program = firstpass_program()
    with contextlib.ExitStack() as stack:
        folder = Path(state or stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "firstpass.toml"
        config.write_text(firstpass_config(far, near))
        with socket.socket() as free:  # it does not tell which port it has if it is asked to choose
            free.bind(("127.0.0.1", 0))
            bind = f"127.0.0.1:{free.getsockname()[1]}"
        nowhere = dict.fromkeys(("FIRSTPASS_UPSTREAM_OPENAI", "FIRSTPASS_UPSTREAM_ANTHROPIC"), "http://127.0.0.1:9")
        own = {"FIRSTPASS_MODE": "enforce", "FIRSTPASS_BIND": bind, "FIRSTPASS_CONFIG": str(config), "NO_COLOR": "1"}
        environment = {**os.environ, **nowhere, **own, "FIRSTPASS_DB": str(folder / "records.db"), "RUST_LOG": "info"}
        command = [str(program), "up"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = stack.enter_context(subprocess.Popen(command, env=environment, cwd=folder, **pipes))  # noqa: ASYNC220 - at once
        stack.callback(process.kill)
        assert process.stdout
        next(line for line in process.stdout if "listening" in line)
        yield lambda stream: asyncio.to_thread(asked_of, f"http://{bind}/v1/chat/completions", stream)


def asked_of(url: str, stream: bool) -> Got:
    """Ask a server with OpenAI's API once, whole or as a stream, and return its answer; waits at most 150 s."""
    body = {"model": "m", "messages": [{"role": "user", "content": chat_faults.QUESTION}], "stream": stream}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
        if not stream:
            choice = json.load(reply)["choices"][0]
            return Got(choice["message"]["content"], choice["finish_reason"] != "stop")
        events = [json.loads(line[6:]) for line in reply if line.startswith(b"data: {")]
    choices = [event["choices"][0] for event in events if event["choices"]]
    return Got("".join(choice["delta"].get("content") or "" for choice in choices), choices[-1]["finish_reason"] != "stop")


def firstpass_cells() -> Cells:
    """Return the cells of firstpass, whose gate passes the cloud's answers alone; its attempts are those of its records.

    Raises:
        ImportError: it is not installed.
    """
    program = firstpass_program()

    def read(state: str) -> list[dict[str, Any]]:
        environment = {**os.environ, "FIRSTPASS_DB": str(Path(state, "records.db"))}
        command = [str(program), "trace", "--limit", "99"]
        lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def records(calls: int) -> list[dict[str, Any]]:
        """Return the records of some calls at a closed port; they are written after the answers."""
        found = list[dict[str, Any]]()

        @contextlib.asynccontextmanager
        async def kept(far: str, near: str) -> AsyncIterator[Ask]:
            async with firstpass(far, near, state=state) as ask:
                yield ask
                until = time.monotonic() + 30
                while len(found) < calls and time.monotonic() < until:
                    found[:] = await asyncio.to_thread(read, state)

        with tempfile.TemporaryDirectory() as state:
            asked("dead", kept, calls)
        return found

    def attempted() -> str:
        return str(sum(one["provider"] == "far" for record in records(CALLS) for one in record["attempts"]))

    def silent() -> str:
        cell = asked("black hole", firstpass, 1)
        return f"after {cell.times[0]:.0f} s" if cell.by == {"local": 1} else "no"

    def by_gate() -> str:
        passed = asked("none", firstpass, 1).by
        return "your gate: tests, a schema, a judge" if passed == {"cloud": 1} else "no"

    def reason() -> str:
        (record,) = records(1)
        tried = {one["provider"]: one["gates"][0]["verdict"] for one in record["attempts"]}
        kept = record["prev_hash"] and tried == {"near": "fail", "far": "abstain"}
        return "in its records: each gate's verdict" if kept else "no"

    return {
        **faults(firstpass),
        SILENT: silent,
        ATTEMPTS: attempted,
        "By the confidence of the small model's answer": by_gate,
        "The reason is in the answer": reason,
        "Version": lambda: version("firstpass"),
    }
