"""Home Assistant's own OpenAI integration on the gateway, by `OPENAI_BASE_URL` alone: it answers, and switches a light."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lazily import needs

needs("homeassistant", "pytest_homeassistant_custom_component")
pytestmark = pytest.mark.matrix

from homeassistant.components import conversation  # noqa: E402
from homeassistant.core import Context  # noqa: E402
from homeassistant.setup import async_setup_component  # noqa: E402
from pytest_homeassistant_custom_component.common import MockConfigEntry, async_mock_service  # noqa: E402

# A gateway whose edge calls a tool if it is told to turn something on, and then says that it did. It prints its address.
PROGRAM = """
import json
from edgeroute import AsyncRouter, Prediction
from edgeroute.tools.server.gateway import gateway

class Script:
    name = "script"

    def run(self, inputs, cancel=None):
        return [self.answer(x["messages"][-1], x.get("tools")) for x in inputs]

    def answer(self, last, tools):
        message, finish = {"role": "assistant", "content": "The light is on."}, "stop"
        if tools and last["role"] != "tool" and "turn on" in last["content"]:
            function = {"name": "HassTurnOn", "arguments": json.dumps({"name": "kitchen"})}
            calls = [{"id": "call-1", "type": "function", "function": function}]
            message, finish = {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        reply = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}
        return Prediction(message["content"], 0.9, reply)

gateway(AsyncRouter(Script()), port=0, names=["gpt-4o-mini"], on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def url():
    """The address of a gateway in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
async def agent(hass, url, monkeypatch, socket_enabled):
    """A function that says something to the integration's agent, with its recommended settings and Home Assistant's tools."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    for name in ("homeassistant", "conversation", "intent"):
        assert await async_setup_component(hass, name, {})
    options = {"recommended": True, "llm_hass_api": "assist", "prompt": "Be brief."}
    entry = MockConfigEntry(title="OpenAI", domain="openai_conversation", data={"api_key": "any"}, options=options)
    entry.add_to_hass(hass)
    assert await hass.config_entries.async_setup(entry.entry_id)
    await hass.async_block_till_done()
    (name,) = [state.entity_id for state in hass.states.async_all("conversation") if "openai" in state.entity_id]

    async def say(text, conversation_id=None):
        return await conversation.async_converse(hass, text, conversation_id, Context(), agent_id=name)

    return say


async def test_it_answers(agent):
    """Twice in one conversation."""
    first = await agent("hello")
    second = await agent("and now?", first.conversation_id)
    assert [answer.response.speech["plain"]["speech"] for answer in (first, second)] == ["The light is on."] * 2


async def test_it_switches_a_light(hass, agent):
    """By a call of a tool, whose result goes back."""
    hass.states.async_set("light.kitchen", "off", {"friendly_name": "kitchen"})
    calls = async_mock_service(hass, "light", "turn_on")
    answer = await agent("turn on the kitchen light")
    assert answer.response.speech["plain"]["speech"] == "The light is on."
    assert [call.data["entity_id"] for call in calls] == [["light.kitchen"]]
