"""Frameworks on a router, by their own classes with a client of `InProcess`: LangChain's own suite, OpenAI's agents, pydantic-ai, LiteLLM.

And the other way: LiteLLM and pydantic-ai as the cloud, as examples/library_clouds.py has them.
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
from pathlib import Path

import pytest
from lazily import needs

from edgeroute import AsyncRouter, Egress, Limits, Prediction
from edgeroute.asgi import InProcess
from edgeroute.testing import CannedServer, http_reply

needs("langchain_tests", "langchain_openai", "agents", "litellm", "openai", "pydantic_ai")
pytestmark = pytest.mark.matrix
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks a server for prices

import agents  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
import pydantic  # noqa: E402
import pydantic_ai  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from langchain_tests.integration_tests import ChatModelIntegrationTests  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class Script:
    """An edge that calls the first tool that it is given, with arguments that fit, and else answers in a sentence."""

    name = "script"

    def run(self, inputs, cancel=None):
        """As a language model does."""
        return [self._answer(x) for x in inputs]

    def _answer(self, x):
        last = x["messages"][-1]
        message, finish = {"role": "assistant", "content": "Yes, of course."}, "stop"
        if x.get("response_format", {}).get("type") == "json_schema":
            message["content"] = json.dumps(_fitting(x["response_format"]["json_schema"]["schema"], last["content"]))
        elif x.get("tools") and last["role"] != "tool":
            function = x["tools"][0]["function"]
            arguments = json.dumps(_fitting(function.get("parameters", {}), last["content"]), ensure_ascii=False)
            call = {"id": "call-1", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
            message, finish = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
        reply = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
        return Prediction(message["content"], 0.9, reply)


def _fitting(schema, text):
    """A value that fits a schema of JSON; a text is what was asked."""
    kinds = {"integer": 3, "number": 3.0, "boolean": True, "array": []}
    if schema.get("type") == "object" or "properties" in schema:
        return {name: _fitting(part, text) for name, part in schema.get("properties", {}).items()}
    return schema["enum"][0] if "enum" in schema else kinds.get(schema.get("type"), text)


@pytest.fixture(scope="module", autouse=True)
def gateway():
    """The gateway that all clients use."""
    with InProcess(AsyncRouter(Script(), lambda x: "far", threshold=0.5)) as gateway:
        TestLangChain.gateway = gateway
        yield gateway


class TestLangChain(ChatModelIntegrationTests):
    """LangChain's suite for chat models, on its class for OpenAI's API."""

    gateway: InProcess

    @property
    def chat_model_class(self):
        """The class under test."""
        return ChatOpenAI

    @property
    def chat_model_params(self):
        """Its arguments."""
        http = {"http_client": self.gateway.client(), "http_async_client": self.gateway.async_client()}
        return {"model": "edgeroute", "base_url": self.gateway.url, "api_key": "none", "stream_usage": True, **http}


def test_agents_of_openai(gateway):
    """An agent whose model is the router calls a function of the program, and answers with its result; whole and streamed."""
    calls = []

    @agents.function_tool
    def weather(city: str) -> str:
        """Return the weather of a city."""
        calls.append(city)
        return "31 C"

    client = openai.AsyncOpenAI(base_url=gateway.url, api_key="none", http_client=gateway.async_client())
    agents.set_tracing_disabled(True)
    kinds = [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel]
    for kind in kinds:
        agent = agents.Agent("a", instructions="Help.", tools=[weather], model=kind("edgeroute", client))

        async def main(agent=agent):
            whole = await agents.Runner.run(agent, "Is it hot?")
            streamed = agents.Runner.run_streamed(agent, "Is it hot?")
            events = [event async for event in streamed.stream_events()]
            return whole.final_output, streamed.final_output, bool(events)

        assert asyncio.run(main()) == ("Yes, of course.", "Yes, of course.", True)
    assert calls == ["Is it hot?"] * 4


def test_pydantic_ai(gateway):
    """An agent of it calls a function, and answers with its result or fills a model; whole and streamed."""

    class City(pydantic.BaseModel):
        name: str
        inhabitants: int

    client = openai.AsyncOpenAI(base_url=gateway.url, api_key="none", http_client=gateway.async_client())
    model, calls = OpenAIChatModel("edgeroute", provider=OpenAIProvider(openai_client=client)), []
    agent, typed = pydantic_ai.Agent(model), pydantic_ai.Agent(model, output_type=City)

    @agent.tool_plain
    def weather(city: str) -> str:
        """Return the weather of a city."""
        calls.append(city)
        return "31 C"

    async def main():
        whole = await agent.run("Is it hot?")
        async with agent.run_stream("Is it hot?") as stream:
            return whole.output, await stream.get_output(), (await typed.run("Paris")).output

    assert asyncio.run(main()) == ("Yes, of course.", "Yes, of course.", City(name="Paris", inhabitants=3))
    assert calls == ["Is it hot?"] * 2


def test_litellm(gateway):
    """Its completion takes the client, and its router with each call, of threads and of asyncio; not among a model's settings."""
    client = openai.OpenAI(base_url=gateway.url, api_key="none", http_client=gateway.client())
    messages = [{"role": "user", "content": "hello"}]
    answer = litellm.completion("openai/edgeroute", messages=messages, client=client)
    assert answer.choices[0].message.content == "Yes, of course."
    pieces = litellm.completion("openai/edgeroute", messages=messages, client=client, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Yes, of course."
    large = {"model": "openai/edgeroute", "api_base": gateway.url, "api_key": "none"}
    router = litellm.Router([{"model_name": "large", "litellm_params": large}], num_retries=0)
    assert router.completion("large", messages, client=client).choices[0].message.content == "Yes, of course."

    async def main():
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key="none", http_client=gateway.async_client()) as client:
            return await router.acompletion("large", messages, client=client)

    assert asyncio.run(main()).choices[0].message.content == "Yes, of course."
    with pytest.raises(TypeError, match="pickle"):
        litellm.Router([{"model_name": "large", "litellm_params": {**large, "client": client}}])


REPLY = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "large", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "far away"}, "finish_reason": "stop"}],
}  # fmt: skip


JSON = [("Content-Type", "application/json")]


def library_cloud(kind, url, **terms):
    """A cloud of examples/library_clouds.py, on a server."""
    path = str(Path(__file__).parents[1] / "examples" / "library_clouds.py")
    recipes = runpy.run_path(path)
    if kind == "litellm":
        large = {"model": "openai/large", "api_base": url, "api_key": "none"}
        return recipes["litellm_cloud"](litellm.Router([{"model_name": "large", "litellm_params": large}]), "large", **terms)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    return recipes["pydantic_ai_cloud"](OpenAIChatModel("large", provider=OpenAIProvider(openai_client=client)), **terms)


async def unsure(_):  # in no thread, which may be late
    return "near", 0.2


def asked_by(kind, server, chat, *, calls=2, router=None, **call):
    """The answers of a router whose cloud is that library."""

    async def main():
        cloud = library_cloud(kind, f"{server.url}/v1", usd_per_call=0.6)
        async with AsyncRouter(unsure, cloud, threshold=0.5, **(router or {})) as a_router:
            return [await a_router.infer(chat, **call) for _ in range(calls)]

    return asyncio.run(main())


LIBRARIES = pytest.mark.parametrize("kind", ["litellm", "pydantic-ai"])


@LIBRARIES
def test_a_library_as_the_cloud(kind, tmp_path):
    """Its provider answers; what would be beyond a limit of dollars is not asked; the ledger has a line for what was."""
    chat = {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where?"}]}
    with CannedServer(http_reply(json.dumps(REPLY).encode(), headers=JSON)) as server:
        first, second = asked_by(kind, server, chat, router={"limits": Limits(usd_per_day=1), "state": tmp_path})
    assert (first.value, first.source) == ("far away", "cloud")
    assert (second.value, second.source) == ("near", "edge")
    (request,) = server.requests
    assert b"Be short." in request
    assert len((tmp_path / "egress.jsonl").read_text().splitlines()) == 1


@LIBRARIES
def test_a_private_class_never_reaches_the_library(kind):
    """The edge answers."""
    with CannedServer(None) as server:
        answers = asked_by(kind, server, "Where?", router={"egress": Egress(never_leave=["private"])}, data_class="private")
    assert {answer.source for answer in answers} == {"edge"}
    assert not server.requests


@LIBRARIES
def test_a_deadline_ends_the_call_of_a_library(kind):
    """The provider does not answer: the edge's answer stands, and the library hangs up."""
    with CannedServer(None) as server:
        (answer,) = asked_by(kind, server, "Where?", calls=1, deadline=2.0)
        server.wait_for(lambda: server.hung_up == len(server.requests))
    assert (answer.value, answer.degraded) == ("near", True)


@LIBRARIES
def test_a_provider_that_fails_is_asked_once_a_call(kind):
    """The library does not try again, which no limit would see."""
    with CannedServer(http_reply(b"{}", status=500, headers=JSON)) as server:
        answers = asked_by(kind, server, "Where?", calls=1)
    assert {answer.value for answer in answers} == {"near"}
    assert len(server.requests) == 1


CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def replied(message, finish):
    """A server whose completion has that message."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return CannedServer(http_reply(json.dumps({**REPLY, "choices": [choice]}).encode(), headers=JSON))


@LIBRARIES
@pytest.mark.parametrize(("message", "finish"), [
    ({"content": None}, "length"), ({"content": ""}, "length"), ({"content": " "}, "stop"), ({"content": None}, "content_filter"),
    ({"content": None, "refusal": "I cannot."}, "stop"), ({"content": None, "tool_calls": [CALL]}, "tool_calls"),
])  # fmt: skip
def test_a_reply_of_a_library_without_a_text(kind, message, finish):
    """The edge's answer stands, however often; the provider is asked each time, as it is not at fault."""
    with replied(message, finish) as server:
        answers = asked_by(kind, server, "Where?", calls=6)
        assert len(server.requests) == 6
    assert {(answer.value, answer.source, answer.degraded) for answer in answers} == {("near", "edge", True)}
    assert all("text" in answer.reason for answer in answers)


KEYS = {
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 3,
    "stop": "a",
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
}


@LIBRARIES
def test_the_keys_of_a_request_reach_the_library(kind):
    """And its provider; those that it lacks are refused by name, and nothing is sent."""
    asked = {"messages": [{"role": "user", "content": "Where?"}], **KEYS}
    tools = {"tools": [TOOL], "tool_choice": "auto", "response_format": {"type": "json_object"}}
    with replied({"content": "far away"}, "stop") as server:
        asked_now = {**asked, **(tools if kind == "litellm" else {"response_format": {"type": "text"}})}
        answer, *_ = asked_by(kind, server, asked_now, calls=1)
        sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        for key in ("api_base", "mock_response", *(() if kind == "litellm" else tools)):
            (refused,) = asked_by(kind, server, {**asked, key: 1}, calls=1)
            assert key in refused.reason
        (refused,) = asked_by(kind, server, {"prompt": "a", "max_tokens": 9}, calls=1)
        assert "messages" in refused.reason
        assert len(server.requests) == 1
    assert answer.value == "far away"
    sent["max_tokens"] = sent.get("max_tokens") or sent.get("max_completion_tokens")
    wanted = {**KEYS, "stop": "a" if kind == "litellm" else ["a"], **(tools if kind == "litellm" else {})}
    assert {key: sent.get(key) for key in wanted} == wanted


def test_a_call_of_a_tool_by_litellm():
    """Is an answer where the request has tools, in OpenAI's form, as the gateway passes it on."""
    chat = {"messages": [{"role": "user", "content": "Is it hot?"}], "tools": [TOOL]}
    with replied({"content": None, "tool_calls": [CALL]}, "tool_calls") as server:
        (answer,) = asked_by("litellm", server, chat, calls=1)
    assert (answer.value, answer.source) == ("", "cloud")
    assert answer.outputs["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert answer.outputs["usage"]["completion_tokens"] == 3


def test_a_key_that_a_provider_of_litellm_lacks():
    """Is the request's fault, by name."""
    recipes = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "library_clouds.py"))
    models = litellm.Router([{"model_name": "large", "litellm_params": {"model": "anthropic/claude-x", "api_key": "none"}}])

    async def main():
        async with AsyncRouter(unsure, recipes["litellm_cloud"](models, "large"), threshold=0.5) as router:
            return await router.infer({"messages": [{"role": "user", "content": "a"}], "logit_bias": {"5": 1}})

    assert "logit_bias" in asyncio.run(main()).reason


@LIBRARIES
def test_a_library_on_several_event_loops(kind):
    """LiteLLM, and a model of pydantic-ai by its name, serve each; a model itself is of one, and sends nothing on others."""
    with replied({"content": "far away"}, "stop") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        patch.setenv("OPENAI_API_KEY", "none")
        recipes = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "library_clouds.py"))
        cloud = library_cloud(kind, f"{server.url}/v1")
        by_name = recipes["pydantic_ai_cloud"]("openai-chat:large")

        async def main(cloud):
            async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
                return await router.infer("Where?")

        values = [asyncio.run(main(by_name)).value for _ in range(3)]
        answers = [asyncio.run(main(cloud)) for _ in range(3)]
        sent = len(server.requests) - 3
    assert values == ["far away"] * 3
    if kind == "litellm":
        assert ([answer.value for answer in answers], sent) == (["far away"] * 3, 3)
    else:
        assert ([answer.value for answer in answers], sent) == (["far away", "near", "near"], 1)
        assert all("loop" in answer.reason for answer in answers[1:])


def test_a_model_of_pydantic_ai_asked_on_other_event_loops():
    """Its own event loop, of the first call, has it on, since that is no fault of the provider."""
    with replied({"content": "far away"}, "stop") as server:
        router = AsyncRouter(unsure, library_cloud("pydantic-ai", f"{server.url}/v1"), threshold=0.5)

        async def main():
            first = await router.infer("Where?")
            elsewhere = [await asyncio.to_thread(lambda: asyncio.run(router.infer("Where?"))) for _ in range(6)]
            return first, elsewhere, await router.infer("Where?")

        async def whole():
            async with router:
                return await main()

        first, elsewhere, last = asyncio.run(whole())
    assert {first.value, last.value} == {"far away"}
    assert all("loop" in answer.reason for answer in elsewhere)
