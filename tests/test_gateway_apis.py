"""`/v1/responses` and `/v1/messages` of the gateway, driven by the clients that use them, and over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from gateways import LONG, events, serving
from lazily import Later, needs

from edgeroute import AsyncRouter, Egress, OpenAIChat, Prediction
from edgeroute.testing import CannedServer, http_reply, sse_reply

needs("openai")
openai, anthropic = Later("openai"), Later("anthropic")
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
PNG = "iVBORw0KGgo="


class Model:
    """An edge that answers what it was asked, sure of what is short; it records each request."""

    def __init__(self):
        self.asked = []

    def __call__(self, x):
        """As a function that streams."""
        self.asked.append(x)
        text = x["messages"][-1]["content"]
        yield from ("you", " said ", text)
        return 0.9 if len(text) < 30 else 0.2


class Whole:
    """An edge with one completion; it records each request."""

    name = "whole"

    def __init__(self, reply):
        self.asked, self.reply = [], reply

    def run(self, inputs, cancel=None):
        """As a language model does."""
        self.asked += inputs
        return [Prediction(self.reply["choices"][0]["message"].get("content"), 0.9, self.reply) for _ in inputs]


def completion(message, finish="stop"):
    """A completion, as a server of chats gives it."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}], "usage": usage}


def cloud(x):
    yield from ("far", " away")


@pytest.fixture(scope="module")
def served():
    """A gateway, with its edge."""
    model = Model()
    with serving(AsyncRouter(model, cloud, threshold=0.5)) as url:
        yield url, model


@pytest.fixture
def edge(served):
    served[1].asked.clear()
    return served[1]


@pytest.fixture
def url(served, edge):
    return served[0]


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url):
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def test_a_response(client, edge):
    """A text, with instructions: the answer of the side that the policy takes, and where it came from."""
    answer = client.responses.create(
        model="edgeroute", instructions="Be brief.", input="hello", temperature=0.5, max_output_tokens=9
    )
    assert (answer.output_text, answer.status, answer.object, answer.model) == (
        "you said hello",
        "completed",
        "response",
        "edgeroute",
    )
    assert (answer.instructions, answer.temperature, answer.edgeroute["source"]) == ("Be brief.", 0.5, "edge")
    assert edge.asked[0] == {
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO], "temperature": 0.5, "max_completion_tokens": 9,
    }  # fmt: skip
    far = client.responses.create(model="edgeroute", input="something that is longer than this")
    assert (far.output_text, far.edgeroute["source"]) == ("far away", "cloud")


@pytest.mark.parametrize(("text", "whole"), [("hello", "you said hello"), ("something that is longer than this", "far away")])
def test_a_response_in_pieces(client, text, whole):
    """The client's own stream helper gathers the events."""
    with client.responses.stream(model="edgeroute", input=text) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert (final.output_text, final.status) == (whole, "completed")
    names = [event.type for event in events]
    assert names[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert names.count("response.output_text.delta") > 1
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_a_response_continues_another(client, edge):
    """By its id, in this process; its instructions are not carried over; not one that was not stored, or was deleted."""
    first = client.responses.create(model="edgeroute", input="hello", instructions="Be brief.")
    second = client.responses.create(model="edgeroute", input="and?", previous_response_id=first.id)
    assert [(m["role"], m["content"]) for m in edge.asked[-1]["messages"]] == [
        ("user", "hello"), ("assistant", "you said hello"), ("user", "and?"),
    ]  # fmt: skip
    assert second.previous_response_id == first.id
    with client.responses.stream(model="edgeroute", input="so?", previous_response_id=second.id) as stream:
        third = stream.get_final_response()
    assert len(client.responses.create(model="edgeroute", input="x", previous_response_id=third.id).output) == 1
    assert len(edge.asked[-1]["messages"]) == 7
    unstored = client.responses.create(model="edgeroute", input="hello", store=False)
    client.responses.delete(first.id)
    for identity in (unstored.id, first.id, "resp_other"):
        with pytest.raises(openai.BadRequestError, match="no response that is stored"):
            client.responses.create(model="edgeroute", input="x", previous_response_id=identity)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)


def test_a_response_calls_a_function():
    """Its items go back as they are, with the result; whole and as a stream; reasoning passes."""
    model = Whole(completion({"content": None, "tool_calls": [CALL], "reasoning_content": "Weather, so."}, "tool_calls"))
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    items = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hot?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
            ],
        }
    ]
    with serving(AsyncRouter(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = client.responses.create(model="edgeroute", input=items, tools=[tool], tool_choice="required")
        with client.responses.stream(model="edgeroute", input=items, tools=[tool]) as stream:
            streamed = stream.get_final_response()
        for got in (answer, streamed):
            assert {item.type for item in got.output} == {"reasoning", "function_call"}
            call = next(item for item in got.output if item.type == "function_call")
            assert (call.call_id, call.name, call.arguments) == ("call-1", "weather", '{"city": "Paris"}')
            assert (got.usage.input_tokens, got.usage.output_tokens) == (3, 2)
        back = [*items, *answer.output, {"type": "function_call_output", "call_id": "call-1", "output": "31 C"}]
        client.responses.create(model="edgeroute", input=back, tools=[tool])
        for got in (answer, streamed):  # which the gateway has stored
            client.responses.create(model="edgeroute", input=back[-1:], previous_response_id=got.id, tools=[tool])
    for asked in model.asked[-3:]:
        user, assistant, result = asked["messages"]
        assert [part["type"] for part in user["content"]] == ["text", "image_url"]
        assert assistant["tool_calls"] == [CALL]
        assert assistant["reasoning_content"] == "Weather, so."
        assert result == {"role": "tool", "tool_call_id": "call-1", "content": "31 C"}
    assert model.asked[0]["tools"] == [
        {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}
    ]
    assert model.asked[0]["tool_choice"] == "required"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "refusal"])
def test_a_chat_stream_ends_with(key):
    """What else the message has: the stream's message is that of the whole reply."""
    model = Whole(completion({"content": "Hot.", "tool_calls": [CALL], key: "Weather, so."}))
    with serving(AsyncRouter(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        whole = client.chat.completions.create(model="edgeroute", messages=HELLO).choices[0].message
        with client.chat.completions.stream(model="edgeroute", messages=HELLO) as stream:
            streamed = stream.get_final_completion().choices[0].message
    for got in (whole, streamed):
        assert (got.content, getattr(got, key), len(got.tool_calls)) == ("Hot.", "Weather, so.", 1)


def test_a_response_by_a_schema():
    """The client's `parse` gets the object of its class."""
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):
        name: str

    model = Whole(completion({"content": '{"name": "Paris"}'}))
    with serving(AsyncRouter(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        assert client.responses.parse(model="edgeroute", input="where?", text_format=City).output_parsed == City(name="Paris")
    assert model.asked[0]["response_format"]["json_schema"]["schema"]["properties"]["name"] == {"title": "Name", "type": "string"}


def test_a_response_that_is_cut():
    """Is incomplete."""
    model = Whole(completion({"content": "a cut"}, "length"))
    with serving(AsyncRouter(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = client.responses.create(model="edgeroute", input="x")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_response(stream):
    """Those that the server counted of a kind are told, and the response has all that the client's own types need."""
    reply = completion({"content": "yes"})
    reply["usage"] |= {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    with serving(AsyncRouter(Whole(reply))) as url:
        body = {"model": "edgeroute", "input": "x", "stream": stream}
        answer = httpx.post(f"{url}/v1/responses", json=body, timeout=LONG)
    got = events(answer.text)[-1]["response"] if stream else answer.json()
    usage = openai.types.responses.Response.model_validate(got).usage
    details = usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens
    assert (usage.input_tokens, usage.output_tokens, details) == (3, 2, (2, 1))
    assert got["usage"]["input_tokens_details"]["cache_write_tokens"] == 0


def test_a_response_that_is_a_refusal():
    """The client's `parse` takes it for one, not for the object that was asked for."""
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):
        name: str

    reply = json.dumps(completion({"content": None, "refusal": "I cannot."})).encode()
    with (
        CannedServer(http_reply(reply)) as far,
        serving(AsyncRouter(cloud=OpenAIChat(far.url, model="m", retries=0))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        answer = client.responses.parse(model="edgeroute", input="where?", text_format=City)
    (part,) = answer.output[0].content
    assert (part.type, part.refusal, answer.output_parsed) == ("refusal", "I cannot.", None)


def test_an_empty_response_is_continued():
    """Its message has an empty text, as models take no message without one."""
    model = Whole(completion({"content": ""}))
    with serving(AsyncRouter(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        first = client.responses.create(model="edgeroute", input="x")
        client.responses.create(model="edgeroute", input="y", previous_response_id=first.id)
    assert model.asked[1]["messages"][1] == {"role": "assistant", "content": ""}


def test_the_asynchronous_clients(url):
    """Both, whole and in pieces."""

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            texts = [(await client.responses.create(model="edgeroute", input="hello")).output_text]
            async with client.responses.stream(model="edgeroute", input="hello") as stream:
                texts.append((await stream.get_final_response()).output_text)
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any") as client:
            texts.append((await client.messages.create(model="edgeroute", max_tokens=9, messages=HELLO)).content[0].text)
            async with client.messages.stream(model="edgeroute", max_tokens=9, messages=HELLO) as stream:
                texts.append(await stream.get_final_text())
        return texts

    assert asyncio.run(main()) == ["you said hello"] * 4


def test_a_message(claude, edge):
    """With the system's text; the usage and the reason to stop are in Anthropic's words."""
    answer = claude.messages.create(
        model="edgeroute",
        max_tokens=9,
        system="Be brief.",
        messages=HELLO,
        stop_sequences=["END"],
        extra_body={"temperature": 0.5},
    )
    assert (answer.content[0].text, answer.stop_reason, answer.role, answer.type) == (
        "you said hello",
        "end_turn",
        "assistant",
        "message",
    )
    assert answer.edgeroute["source"] == "edge"
    assert edge.asked[0] == {
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO], "max_tokens": 9, "stop": ["END"], "temperature": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(("text", "whole"), [("hello", "you said hello"), ("something that is longer than this", "far away")])
def test_a_message_in_pieces(claude, text, whole):
    """The client's own stream helper gathers the events."""
    with claude.messages.stream(model="edgeroute", max_tokens=9, messages=[{"role": "user", "content": text}]) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert ("".join(pieces), final.content[0].text, final.stop_reason) == (whole, whole, "end_turn")
    assert len(pieces) > 1


def test_a_message_uses_a_tool():
    """Its blocks go back as they are, with the result, an image in it; whole and as a stream."""
    model = Whole(completion({"content": "Let me see.", "tool_calls": [CALL]}, "tool_calls"))
    tools = [{"name": "weather", "description": "The weather.", "input_schema": WEATHER, "cache_control": {"type": "ephemeral"}}]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    asked = [{"role": "user", "content": [{"type": "text", "text": "hot?"}, image]}]
    options = {
        "model": "edgeroute",
        "max_tokens": 9,
        "tools": tools,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    with serving(AsyncRouter(model)) as url, anthropic.Anthropic(base_url=url, api_key="any") as client:
        answer = client.messages.create(messages=asked, **options)
        with client.messages.stream(messages=asked, **options) as stream:
            streamed = stream.get_final_message()
        for got in (answer, streamed):
            text, use = got.content
            assert (text.text, use.id, use.name, use.input) == ("Let me see.", "call-1", "weather", {"city": "Paris"})
            assert (got.stop_reason, got.usage.input_tokens, got.usage.output_tokens) == ("tool_use", 3, 2)
        results = [
            {"type": "tool_result", "tool_use_id": "call-1", "content": [{"type": "text", "text": "31 C"}, image]},
            {"type": "text", "text": "and now?"},
        ]
        back = [*asked, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
        client.messages.create(messages=back, **options)
    first, assistant, result, picture, last = model.asked[-1]["messages"]
    assert [part["type"] for part in first["content"]] == ["text", "image_url"]
    assert (assistant["content"], json.loads(assistant["tool_calls"][0]["function"]["arguments"])) == (
        "Let me see.",
        {"city": "Paris"},
    )
    assert result == {"role": "tool", "tool_call_id": "call-1", "content": "31 C"}
    assert (picture["content"][0]["type"], last["content"]) == ("image_url", "and now?")
    assert model.asked[0]["tools"][0]["function"] == {"name": "weather", "description": "The weather.", "parameters": WEATHER}
    assert (model.asked[0]["tool_choice"], model.asked[0]["parallel_tool_calls"]) == ("required", False)


class Caller:
    """An edge that calls the first tool of a request until it has a result, and then says that."""

    name = "caller"

    def __init__(self):
        self.asked = []

    def run(self, inputs, cancel=None):
        """As a language model does."""
        self.asked += inputs
        return [self._answer(x["messages"][-1]) for x in inputs]

    def _answer(self, last):
        calls = {"content": None, "tool_calls": [CALL]}
        reply = completion({"content": last["content"]}) if last["role"] == "tool" else completion(calls, "tool_calls")
        return Prediction(reply["choices"][0]["message"]["content"], 0.9, reply)


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_runs_its_tools(stream):
    """As it does by itself: a client that asks the server to keep the conversation sends all of it instead."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Return the weather.

        Args:
            city: Its name.
        """
        return f"31 C in {city}"

    model = Caller()
    options = {"model": "edgeroute", "max_tokens": 9, "messages": HELLO, "tools": [weather]}
    with serving(AsyncRouter(model)) as url, anthropic.Anthropic(base_url=url, api_key="any") as client:
        final = client.beta.messages.tool_runner(**options, stream=stream).until_done()
    assert final.content[0].text == "31 C in Paris"
    assert [[m["role"] for m in x["messages"]] for x in model.asked] == [["user"], ["user", "assistant", "tool"]]


SIGNED = {**CALL, "extra_content": {"google": {"thought_signature": "sig-1"}}}


def signing(request):
    """The reply of a server that calls a tool, and takes its result with the signature of the call alone, as Gemini does."""
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    calls = [call for message in body["messages"] for call in message.get("tool_calls", ())]
    if any(call.get("extra_content") != SIGNED["extra_content"] for call in calls):
        return http_reply(b'{"error": {"message": "a call is missing its thought_signature"}}', status=400)
    said = {"content": "31 C"} if calls else {"content": None, "tool_calls": [SIGNED]}
    if not body.get("stream"):
        return http_reply(json.dumps(completion(said)).encode())
    delta = said if calls else {"tool_calls": [{"index": 0, **SIGNED}]}
    return sse_reply([{"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}])


@pytest.mark.parametrize("upstream", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_comes_back_with_its_signature(upstream, stream):
    """Over each of the APIs, as their clients send their own answers again."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    with CannedServer(signing) as far, serving(AsyncRouter(cloud=OpenAIChat(far.url, model="m", stream=upstream))) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:

            def chat(messages):
                options = {"model": "edgeroute", "messages": messages, "tools": [tool]}
                if not stream:
                    return client.chat.completions.create(**options).choices[0].message
                with client.chat.completions.stream(**options) as pieces:
                    return pieces.get_final_completion().choices[0].message

            def response(items, **more):
                options = {"model": "edgeroute", "input": items, "tools": [{"type": "function", **tool["function"]}], **more}
                made = client.responses.create(**options, stream=stream)
                return [event for event in made if event.type == "response.completed"][0].response if stream else made

            result = {"role": "tool", "tool_call_id": "call-1", "content": "31 C"}
            assert chat([*HELLO, chat(HELLO), result]).content == "31 C"
            output = {"type": "function_call_output", "call_id": "call-1", "output": "31 C"}
            first = response(HELLO)
            assert response([*HELLO, *first.output, output]).output_text == "31 C"
            assert response([output], previous_response_id=first.id).output_text == "31 C"
        with anthropic.Anthropic(base_url=url, api_key="any") as client:

            def message(messages):
                options = {"model": "edgeroute", "max_tokens": 9, "messages": messages}
                options["tools"] = [{"name": "weather", "input_schema": WEATHER}]
                if not stream:
                    return client.messages.create(**options).content
                with client.messages.stream(**options) as pieces:
                    return pieces.get_final_message().content

            said = {"role": "assistant", "content": message(HELLO)}
            result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call-1", "content": "31 C"}]}
            assert message([*HELLO, said, result])[0].text == "31 C"


@pytest.mark.parametrize("finish", ["length", "content_filter", "stop"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_a_text_is_paid_once(finish, stream):
    """Thoughts used up the tokens, or the like: clients that ask again by themselves would pay for the same once more."""
    usage = {"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}
    ends = [{"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": finish}], "usage": usage}]
    with (
        CannedServer(sse_reply(ends)) as far,
        serving(AsyncRouter(cloud=OpenAIChat(far.url, model="m"))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client,
        anthropic.Anthropic(base_url=url, api_key="any") as claude,
    ):
        options = {"model": "edgeroute", "stream": stream}
        for i, ask in enumerate((
            lambda: client.chat.completions.create(**options, messages=HELLO, max_completion_tokens=16),
            lambda: client.responses.create(**options, input="hello", max_output_tokens=16),
            lambda: claude.messages.create(**options, max_tokens=16, messages=HELLO),
        )):  # fmt: skip
            with pytest.raises(openai.APIStatusError if i < 2 else anthropic.APIStatusError) as failed:
                ask()
            assert (len(far.requests), failed.value.status_code) == (i + 1, 424)
            assert "retry-after" not in failed.value.response.headers
            assert "without a text" in str(failed.value)
            kind = failed.value.response.json()["error"]["type"]
            assert kind == ("server_error" if i < 2 else "api_error")


def test_thoughts_of_a_response():
    """Under either key that servers have for them."""
    for key in ("reasoning_content", "reasoning"):
        model = Whole(completion({"content": "Hot.", key: "Weather, so."}))
        with serving(AsyncRouter(model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            thought, _ = client.responses.create(model="edgeroute", input="hello").output
        assert (thought.type, thought.content[0].text) == ("reasoning", "Weather, so.")


def test_a_conversation_that_the_server_shall_keep(url, edge):
    """Is refused in the words of the API by which a client knows what to do."""
    body = {"model": "edgeroute", "max_tokens": 9, "messages": HELLO, "thread": {"type": "create"}}
    reply = httpx.post(f"{url}/v1/messages", json=body, timeout=LONG)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert reply.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in httpx.post(f"{url}/v1/messages", json={**body, "thread": None, "top_k": 3}).json()["error"]


@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_message_of_the_system_stays_at_its_place(claude, edge, content):
    """As text or blocks, after the key `system`."""
    messages = [*HELLO, {"role": "assistant", "content": "yes?"}, {"role": "system", "content": content}, *HELLO]
    answer = claude.messages.create(model="edgeroute", max_tokens=9, system="Be kind.", messages=messages)
    assert answer.content[0].text == "you said hello"
    assert [(m["role"], m["content"]) for m in edge.asked[0]["messages"]] == [
        ("system", "Be kind."), ("user", "hello"), ("assistant", "yes?"), ("system", "Be brief."), ("user", "hello"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "read"), [('{"a": 1}', {"a": 1}), ("", {}), ("{no", {"arguments": "{no"}), ("[1]", {"arguments": "[1]"})]
)
def test_calls_of_a_server_that_says_stop(given, read):
    """The client makes them; arguments that are no object are the same whole and in pieces, which its helper can read."""
    call = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": given}}
    options = {"model": "edgeroute", "max_tokens": 9, "messages": HELLO, "tools": [{"name": "weather", "input_schema": WEATHER}]}
    with (
        serving(AsyncRouter(Whole(completion({"content": None, "tool_calls": [call]})))) as url,
        anthropic.Anthropic(base_url=url, api_key="any") as client,
    ):
        answer = client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            streamed = stream.get_final_message()
    assert [(got.stop_reason, got.content[0].input) for got in (answer, streamed)] == [("tool_use", read)] * 2


def test_tokens_are_estimated(claude, edge):
    """Before a message is sent; nothing is asked, even if the message shall be streamed."""
    few, many = (
        claude.messages.count_tokens(
            model="edgeroute", messages=[{"role": "user", "content": "word " * n}], extra_body={"stream": n > 10}
        )
        for n in (10, 1000)
    )
    assert 0 < few.input_tokens < 100 < many.input_tokens < 2500
    assert edge.asked == []


def test_tokens_of_an_image_are_estimated(claude):
    """By their number, whatever their bytes, also in a tool's result."""
    sources = [{"type": "base64", "media_type": "image/png", "data": PNG * n} for n in (1, 10_000)]
    one, large = ({"type": "image", "source": source} for source in sources)
    result = {"type": "tool_result", "tool_use_id": "call-1", "content": [large]}
    contents = ([one], [large], [large, one], [result])
    counts = [
        claude.messages.count_tokens(model="edgeroute", messages=[{"role": "user", "content": content}]).input_tokens
        for content in contents
    ]
    assert counts[0] == counts[1]
    assert [count // 100 for count in counts] == [50, 50, 100, 50]


def test_an_empty_text_of_a_message(claude, edge):
    """Stays a text, as in a chat; beside calls there is none."""
    empty = {"type": "text", "text": ""}
    use = {"type": "tool_use", "id": "call-1", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "call-1", "content": [empty]}
    messages = [
        {"role": "user", "content": [empty]},
        {"role": "assistant", "content": [empty, use]},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(model="edgeroute", max_tokens=9, messages=messages).content[0].text == "you said "
    assert [m["content"] for m in edge.asked[0]["messages"]] == ["", None, ""]


@pytest.mark.parametrize("scheme", ["x-api-key", "bearer", "wrong", "none"])
@pytest.mark.parametrize("path", ["messages", "responses"])
def test_a_token(scheme, path):
    """As a client of either kind shows it; the error is in the form of the API."""
    body = {"messages": {"messages": HELLO, "max_tokens": 9}, "responses": {"input": "hello"}}[path]
    headers = {
        "x-api-key": {"x-api-key": "secret-token"}, "bearer": {"authorization": "Bearer secret-token"}, "wrong": {"x-api-key": "x"}, "none": {},
    }[scheme]  # fmt: skip
    with serving(AsyncRouter(Model()), token="secret-token") as url:
        reply = httpx.post(f"{url}/v1/{path}", json={"model": "edgeroute", **body}, headers=headers, timeout=LONG)
    assert reply.status_code == (200 if scheme in {"x-api-key", "bearer"} else 401)
    if reply.status_code != 200:
        error = reply.json()
        assert error["error"]["type"] == "authentication_error"
        assert (error.get("type") == "error") == (path == "messages")


REFUSED = [
    ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "web_search"),
    ("responses", {"input": "x", "background": True}, "background"),
    ("responses", {"input": "x", "provider": {"url": "http://x"}}, "provider"),
    ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
    ("responses", {"input": [{"type": "message", "role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input_file"),
    ("responses", {"input": []}, "input"),
    ("responses", {"input": "x", "include": True}, "include"),
    ("responses", {"input": [1]}, "input"),
    ("responses", {"input": "x", "instructions": 3}, "instructions"),
    ("responses", {"input": "x", "previous_response_id": {"a": 1}}, "previous_response_id"),
    ("responses", {"input": "x", "text": {"format": {"type": "grammar"}}}, "response_format"),
    ("responses", {"input": "x", "text": "json"}, "text"),
    ("responses", {"input": "x", "text": {"format": "json"}}, "format"),
    ("responses", {"input": "x", "store": "false"}, "store"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "tools": [{"type": "web_search_20250305", "name": "w"}]}, "web_search"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "top_k": 3}, "top_k"),
    ("messages", {"messages": [{"role": "tool", "content": "x"}], "max_tokens": 9}, "role"),
    ("messages", {"messages": [{"role": "system", "content": [{"type": "image"}]}], "max_tokens": 9}, "system"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "thread": {"type": "create"}}, "thread"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "document"}]}], "max_tokens": 9}, "document"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}], "max_tokens": 9}, "image"),
    ("messages", {"messages": [], "max_tokens": 9}, "messages"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "tool_choice": "auto"}, "tool_choice"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "tool_choice": {"type": {}}}, "tool_choice"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "system": [{"type": "image"}]}, "system"),
    ("messages", {"messages": HELLO, "max_tokens": -1}, "max_tokens"),
    ("messages", {"messages": HELLO, "max_tokens": 9, "output_config": {"format": {"type": "xml"}}}, "format"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "word"), REFUSED, ids=[f"{path}-{i}" for i, (path, _, _) in enumerate(REFUSED)])
@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_are_refused(url, edge, path, body, word, stream):
    """With 400, the key that is meant, and the form of the API; nothing is asked."""
    reply = httpx.post(f"{url}/v1/{path}", json={"model": "edgeroute", **body, "stream": stream}, timeout=LONG)
    assert reply.status_code == 400, reply.text
    assert word in reply.json()["error"]["message"]
    assert edge.asked == []


def test_a_private_turn_stays_on_each_road():
    """A conversation that had one stays, whichever API continues it."""
    rules = Egress(never_leave=["private"], may_leave=["chat"], default_class="chat")
    secret = "my blood pressure is a hundred and eighty over a hundred"
    private = {"x-edgeroute-data-class": "private"}

    def unsure(x):
        return "local", 0.1

    with CannedServer(http_reply(json.dumps(completion({"content": "far"})).encode())) as far:
        router = AsyncRouter(unsure, OpenAIChat(far.url, model="m", retries=0), threshold=0.5, egress=rules)
        with serving(router) as url, httpx.Client(base_url=url, timeout=LONG) as client:
            first = client.post("/v1/responses", json={"model": "edgeroute", "input": secret}, headers=private).json()
            continued = {"model": "edgeroute", "input": "and now?", "previous_response_id": first["id"]}
            replies = [
                client.post("/v1/responses", json=continued),
                client.post("/v1/messages", json={"model": "edgeroute", "max_tokens": 9, "messages": [
                    {"role": "user", "content": [{"type": "text", "text": secret}]},
                    {"role": "assistant", "content": "local"}, {"role": "user", "content": "and now?"},
                ]}),
                client.post("/v1/chat/completions", json={"model": "edgeroute", "messages": [{"role": "user", "content": secret}]}),
            ]  # fmt: skip
            client.post("/v1/messages", headers=private, json={"model": "edgeroute", "max_tokens": 9, "messages": [
                *HELLO, {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": "no blood test of Mr Smith is here"},
                ]},
            ]})  # fmt: skip
            replies += [
                client.post("/v1/chat/completions", json={"model": "edgeroute", "messages": [{"role": "user", "content": text}]})
                for text in ("No blood test of Mr Smith is here", "Error: no blood test of Mr Smith is here")
            ]
            other = client.post(
                "/v1/responses", json={"model": "edgeroute", "input": "What is the capital of the country of France?"}
            )
            keyed = client.post(
                "/v1/responses", json={"model": "edgeroute", "input": "my blood group is AB negative, as few are"},
                headers={**private, "x-edgeroute-conversation": "one"},
            ).json()  # fmt: skip
            follows = {"model": "edgeroute", "input": "and now?", "previous_response_id": keyed["id"]}
            key = [{}, {"x-edgeroute-conversation": "one"}, {"x-edgeroute-conversation": "two"}]
            *same, wrong = (client.post("/v1/responses", json=follows, headers=headers) for headers in key)
            third = client.post("/v1/responses", json={**follows, "previous_response_id": same[0].json()["id"]})
        sent = b"".join(far.requests)
    assert [reply.json()["edgeroute"]["source"] for reply in (*replies, other)] == [*["edge"] * 5, "cloud"]
    assert [reply.json()["edgeroute"]["source"] for reply in (*same, third)] == ["edge"] * 3
    assert (wrong.status_code, "x-edgeroute-conversation" in wrong.json()["error"]["message"]) == (400, True)
    assert b"blood" not in sent


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text"}, {"type": "text"}]}]}),
        ("messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "text"}, {"type": "text"}]}]}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text"}, {"type": "input_text"}]}]}),
    ],
)
def test_each_text_of_a_private_message_stays(path, body):
    """Sent alone by another request, as well."""
    rules = Egress(never_leave=["private"], may_leave=["chat"], default_class="chat")
    texts = ["my test of March was positive, and what now?", "the letter of Dr Miller is in the drawer"]
    for part, text in zip(body.get("messages", body.get("input"))[0]["content"], texts, strict=True):
        part["text"] = text
    with CannedServer(http_reply(json.dumps(completion({"content": "far"})).encode())) as far:
        router = AsyncRouter(lambda x: ("local", 0.1), OpenAIChat(far.url, model="m", retries=0), threshold=0.5, egress=rules)
        with serving(router) as url, httpx.Client(base_url=url, timeout=LONG) as client:
            client.post(f"/v1/{path}", json={"model": "edgeroute", **body}, headers={"x-edgeroute-data-class": "private"})
            for text in texts:
                alone = {"model": "edgeroute", "messages": [{"role": "user", "content": text}]}
                assert client.post("/v1/chat/completions", json=alone).json()["edgeroute"]["source"] == "edge"
    assert not far.requests


def test_a_stream_that_breaks():
    """What had come is the answer, and its end says that it is not whole."""

    def broken(_):
        yield "half an"
        raise ConnectionError("the link is down")

    with (
        serving(AsyncRouter(cloud=broken)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client,
        anthropic.Anthropic(base_url=url, api_key="any") as claude,
    ):
        *_, last = client.responses.create(model="edgeroute", input="x", stream=True)
        response = last.response
        with claude.messages.stream(model="edgeroute", max_tokens=9, messages=HELLO) as stream:
            message = stream.get_final_message()
    assert (response.output_text, response.status, response.edgeroute["degraded"]) == ("half an", "incomplete", True)
    assert (message.content[0].text, message.stop_reason) == ("half an", "max_tokens")


def test_models_have_the_fields_of_both_apis():
    """One list serves both clients."""
    with (
        serving(AsyncRouter(lambda _: "a")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client,
        anthropic.Anthropic(base_url=url, api_key="any") as claude,
    ):
        (theirs,), (own,) = client.models.list(), claude.models.list()
        assert (theirs.id, theirs.object, theirs.owned_by) == ("edgeroute", "model", "edgeroute")
        assert (own.type, own.display_name, int(own.created_at.timestamp())) == ("model", "edgeroute", theirs.created)
        assert claude.models.retrieve("edgeroute") == own


def test_stored_responses_are_bounded(monkeypatch, client):
    """The oldest are discarded."""
    from edgeroute.tools.server import openai_responses_and_store as openai_responses

    monkeypatch.setattr(openai_responses, "MOST_STORED", 2)
    ids = [client.responses.create(model="edgeroute", input="hello").id for _ in range(3)]
    with pytest.raises(openai.BadRequestError, match="no response that is stored"):
        client.responses.create(model="edgeroute", input="x", previous_response_id=ids[0])
    client.responses.create(model="edgeroute", input="x", previous_response_id=ids[2])


def picture(size):
    """An input with a picture, of a new message each time."""
    part = {"type": "input_image", "image_url": f"data:image/png;base64,{'A' * size}"}
    return [{"role": "user", "content": [{"type": "input_text", "text": "what is it?"}, part]}]


@pytest.fixture
def store(monkeypatch):
    """Asks a gateway that stores 10,000 bytes: `ask(input, previous)` -> the id of the response; also its client and limits."""
    from edgeroute.tools.server import openai_responses_and_store as openai_responses

    monkeypatch.setattr(openai_responses, "MOST_STORED_BYTES", 10_000)
    with (
        serving(AsyncRouter(Whole(completion({"content": "yes"})))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):

        def ask(given, previous=None, **options):
            options |= {} if previous is None else {"previous_response_id": previous}
            return client.responses.create(model="edgeroute", input=given, **options).id

        yield ask, client, partial(monkeypatch.setattr, openai_responses)


def test_a_picture_counts_once(store):
    """However often its conversation is continued: those of others stay."""
    ask, _, _ = store
    others = [ask(f"I am client {i}") for i in range(20)]
    last = ask(picture(4_000))
    for _ in range(9):
        last = ask("and more?", last)
    for other in [*others, last]:
        ask("and?", other, store=False)


def test_a_conversation_that_is_too_large(store):
    """Is not stored, which its client is told, and nor does it displace another; what it continued is still there."""
    ask, _, _ = store
    other, first = ask("hello"), ask(picture(6_000))
    second, alone = ask(picture(6_000), first), ask(picture(11_000))
    for gone in (second, alone):
        with pytest.raises(openai.BadRequestError, match="conversation is too large"):
            ask("and?", gone)
    for kept in (other, first):
        ask("and?", kept)


def test_a_large_conversation_makes_room(store):
    """For a later one, even with the picture's own response deleted, and before many small ones, even if these are older."""
    ask, client, _ = store
    others = [ask(f"I am client {i}") for i in range(9)]
    first = ask(picture(6_000))
    continued = ask("and?", first)
    client.responses.delete(first)
    latest = ask(picture(6_000))
    with pytest.raises(openai.BadRequestError, match="conversation is too large"):
        ask("and?", continued)
    for kept in (*others, latest):
        ask("and?", kept, store=False)


def test_a_long_conversation_makes_room(store):
    """Its oldest response goes before older ones of others, its last stays."""
    ask, _, limit = store
    limit("MOST_STORED", 3)
    other, first = ask("hello"), ask("one")
    last = first
    for _ in range(4):
        last = ask("and?", last)
    for kept in (other, last):
        ask("and?", kept, store=False)
    with pytest.raises(openai.BadRequestError, match="no response that is stored"):
        ask("and?", first)


def test_messages_that_are_continued_take_memory():
    """As if they were in the body: a request that has none of them is refused while another one holds them."""
    begun, go = threading.Event(), threading.Event()

    def edge(x):
        if x["messages"][-1]["content"] == "wait":
            begun.set()
            go.wait(LONG)
        return "yes", 0.9

    with serving(AsyncRouter(edge), max_bodies_bytes=100_000) as url, ThreadPoolExecutor(1) as clients:
        ask = partial(httpx.post, f"{url}/v1/responses", timeout=LONG)
        first = ask(json={"model": "edgeroute", "input": "x" * 60_000}).json()["id"]
        follows = {"model": "edgeroute", "previous_response_id": first}
        try:
            waits = clients.submit(ask, json={**follows, "input": "wait"})
            assert begun.wait(LONG)
            refused = ask(json={**follows, "input": "and?"})
            small = ask(json={"model": "edgeroute", "input": "and?"})
        finally:
            go.set()
        assert (refused.status_code, refused.headers["retry-after"], small.status_code) == (503, "1", 200)
        assert waits.result().status_code == 200


def test_requests_of_home_assistant():
    """Those of its OpenAI integration, by its source of 2025-12: a chat with a picture, a call of a tool, and a task with a structure."""
    model = Whole(completion({"content": None, "tool_calls": [CALL]}, "tool_calls"))
    options = {
        "model": "gpt-5-mini", "max_output_tokens": 3000, "top_p": 1.0, "temperature": 1.0, "user": "01JY", "store": False,
        "stream": True, "reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "text": {"verbosity": "medium"},
    }  # fmt: skip
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "description": "The weather.", "strict": False}]
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"}
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}
    items = [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hot?"}, picture, file]},
    ]
    city = {"type": ["string", "null"]}
    schema = {"type": "object", "properties": {"city": city}, "strict": True, "additionalProperties": False, "required": ["city"]}
    form = {"format": {"type": "json_schema", "name": "city", "schema": schema}}

    async def main(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            assert [one.id async for one in client.with_options(timeout=10.0).models.list()] == ["edgeroute", "gpt-5-mini"]
            events = [event async for event in await client.responses.create(**options, input=items, tools=tools)]
            result = {"type": "function_call_output", "call_id": "call-1", "output": "{}"}
            call = {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "call-1"}
            thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
            again = {**options, "input": [*items, call, thought, result], "text": form}
            async for _ in await client.responses.create(**again):
                pass
            return events

    with serving(AsyncRouter(model), names=["gpt-5-mini"]) as url:
        events = asyncio.run(main(url))
    with serving(AsyncRouter(model), names=["gpt-5-mini"], allow=["reasoning_effort"]) as url:
        asyncio.run(main(url))
    added = next(event for event in events if event.type == "response.output_item.added")
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert (added.item.type, added.item.arguments, done.arguments) == ("function_call", "", '{"city": "Paris"}')
    assert (events[-1].type, events[-1].response.usage.output_tokens) == ("response.completed", 2)
    first, second, third, _ = model.asked
    assert third["reasoning_effort"] == "low"
    assert [message["role"] for message in first["messages"]] == ["developer", "user"]
    assert [part["type"] for part in first["messages"][1]["content"]] == ["text", "image_url", "file"]
    assert "reasoning_effort" not in first
    assert second["response_format"]["json_schema"]["schema"] == schema
    assert [message["role"] for message in second["messages"]] == ["developer", "user", "assistant", "tool"]
