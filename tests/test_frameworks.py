"""Frameworks on a router, by their own classes with a client of `InProcess`: LangChain's own suite, OpenAI's agents, LiteLLM."""

from __future__ import annotations

import asyncio
import json

import pytest
from lazily import needs

from edgeroute import AsyncRouter, Prediction
from edgeroute.asgi import InProcess

needs("langchain_tests", "langchain_openai", "agents", "litellm", "openai")
pytestmark = pytest.mark.matrix

import agents  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from langchain_tests.integration_tests import ChatModelIntegrationTests  # noqa: E402

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


def test_litellm(gateway):
    """Its completion and its router take the client, too."""
    client = openai.OpenAI(base_url=gateway.url, api_key="none", http_client=gateway.client())
    messages = [{"role": "user", "content": "hello"}]
    answer = litellm.completion("openai/edgeroute", messages=messages, client=client)
    assert answer.choices[0].message.content == "Yes, of course."
    pieces = litellm.completion("openai/edgeroute", messages=messages, client=client, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Yes, of course."
