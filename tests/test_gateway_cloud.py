"""The gateway before a language model behind OpenAI's API: what goes there, what comes back, and what a client's end does to it."""

from __future__ import annotations

import json
from functools import partial

import httpx
import pytest
from gateways import CHAT, HELLO, LONG, connected, events, post, raw, serving

from edgeroute import AsyncRouter, BadReply, Cache, Egress, Held, Limits, NoAnswer, OpenAIChat, Secret, Unreachable
from edgeroute.core.endpoint_breaker_and_limits import FAULTS, Breaker
from edgeroute.errors import Busy, Unfit
from edgeroute.router.private_conversations_and_digest_store import WHY, within
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply
from edgeroute.tools.server.access_limits_call_options import http_fault
from edgeroute.tools.server.socketless_gateway import InProcess

PARIS = chat_events(["Pa", "ris"], logprobs=[-0.1, -0.2], usage=(7, 2))
CHATS = "/v1/chat/completions"


def unsure(_):
    return "local", 0.1


def router(far, edge=unsure, **options):
    cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, between_s=LONG, retries=0, **options)
    return AsyncRouter(edge, cloud, threshold=0.5) if edge else AsyncRouter(cloud=cloud)


def test_what_leaves(monkeypatch):
    """The body with the endpoint's own model and key; nothing of the client's name for the model, its token or its headers."""
    monkeypatch.setenv("FAR_KEY", "key-of-the-cloud")
    with CannedServer(sse_reply(PARIS)) as far:
        with serving(router(far, api_key=Secret(env="FAR_KEY")), token="token-of-the-gateway") as url:
            headers = {"Authorization": "Bearer token-of-the-gateway", "Cookie": "own=1", "x-edgeroute-mode": "only_cloud"}
            reply = httpx.post(url + CHATS, json={**CHAT, "temperature": 0.5, "user": "u"}, headers=headers, timeout=LONG)
        head, _, body = far.requests[0].partition(b"\r\n\r\n")
    sent = json.loads(body)
    assert (sent["model"], sent["messages"], sent["temperature"]) == ("far-model", HELLO, 0.5)
    assert "user" not in sent
    assert b"Bearer key-of-the-cloud" in head
    assert not any(word in far.requests[0] for word in (b"token-of", b"own=1", b"x-edgeroute", b'edgeroute"'))
    told = reply.json()
    assert (told["model"], told["usage"]["total_tokens"], told["edgeroute"]["source"]) == ("edgeroute", 9, "cloud")
    assert "key-of" not in reply.text


def test_what_does_not_leave():
    """Keys that choose another model, address, key or price, under any spelling; and what a message has beside its content."""
    odd = [
        "models", "route", "provider", "plugins", "api_base", "base_url", "api_key", "extra_headers", "fallbacks", "service_tier",
        "web_search_options", "min_tokens", "ignore_eos", "reasoning_effort", "model ", "Model", "N", "n ", "num_return_sequences",
        "modalities", "chat_template", "guided_regex", "logits_processors", "samplers", "grammar", "json_schema", "mirostat",
    ]  # fmt: skip
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    parts = [
        {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
        {**image, "image_url": {**image["image_url"], "file_id": "file-1"}},
        {"type": "file", "file": {"file_id": "file-2", "file_data": "data:text/plain;base64,AA==", "filename": "a.txt"}},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    odd_call = {**call, "server_url": "a", "web_search": {}, "function": {**call["function"], "strict": True}}
    hello = [
        {"role": "user", "content": parts, "prefix": True, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [odd_call], "annotations": [{"file_id": "file-3"}]},
        {"role": "assistant", "content": "hi", "tool_calls": None, "function_call": None, "audio": None},
    ]
    with CannedServer(sse_reply(PARIS)) as far, serving(router(far, edge=None), allow=["min_tokens"]) as url:

        def ask(**more):
            return httpx.post(url + CHATS, json={**CHAT, **more}, timeout=LONG)

        for key in set(odd) - {"min_tokens"}:
            reply = ask(**{key: 1})
            assert reply.status_code == 400
            message = reply.json()["error"]["message"]
            assert repr(key) in message
            assert f'[gateway] allow = ["{key}"]' in message
        assert far.requests == []
        more = {"store": True, "metadata": {"a": "b"}, "functions": None, "min_tokens": 5, "messages": hello}
        assert ask(**more).status_code == 200
        sent = json.loads(far.requests[0].partition(b"\r\n\r\n")[2])
    assert set(sent) == {"model", "messages", "min_tokens", "stream", "stream_options"}
    kept = [
        {"type": "text", "text": "hi"},
        image,
        {"type": "file", "file": {"file_data": "data:text/plain;base64,AA==", "filename": "a.txt"}},
    ]
    assert sent["messages"] == [
        {"role": "user", "content": kept},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "hi"},
    ]


def said(*parts):
    return {"role": "user", "content": [{"type": "text", "text": "What do you see?"}, *parts]}


def called(**more):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [{**call, **more}]}


@pytest.mark.parametrize(("message", "word"), [
    (said({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}), "'video_url'"),
    (said({"type": "document", "document": {"text": "a plan"}}), "'document'"),
    (said({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}), "'image'"),
    (said({"type": "input_image", "image_url": "data:image/png;base64,AA=="}), "'input_image'"),
    (said({"type": "thinking", "thinking": "hm"}), "'thinking'"),
    (said({"text": "hi"}), "type"), (said([{"file_id": "file-1"}]), "a list"), (said({"type": "image_url"}), "without image_url"),
    (said({"type": "file", "file": {"file_id": "file-1", "filename": "a.txt"}}), "file_id is not supported"),
    (said({"type": "image_url", "image_url": {"file_id": "file-1"}}), "has no url"),
    (said({"type": "file", "file": {"file_data": {"file_id": "file-1"}}}), "file_data in file"),
    (said({"type": "image_url", "image_url": {"url": "http://a/b.png", "detail": 1}}), "detail in image_url"),
    (said({"type": "text", "text": 5}), "text of a part"),
    (said({"type": "text", "text": "there", "image_url": [{"file_id": "file-1"}]}), "image_url of a part"),
    ({"role": "user", "content": {"file_id": "file-1"}}, "content"), ({"role": "user", "content": "hi", "name": {}}, "name of"),
    ({"role": "tool", "content": "31 C", "tool_call_id": 1}, "tool_call_id of message 1 is a number"),
    ({"role": "assistant", "content": "hi", "refusal": [{}]}, "refusal of"),
    ({"role": "assistant", "content": "hi", "tool_calls": {"file_id": "file-1"}}, "tool_calls of"),
    ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}, "function_call of message 1"),
    ({"role": "assistant", "content": "", "audio": {"id": "audio-1"}}, "audio of message 1"),
    ({"role": "assistant", "content": "hi", "reasoning_details": ["hm"]}, "reasoning_details of"),
    ({"role": "assistant", "content": "hi", "reasoning_details": [{"type": "reasoning.text", "text": {}}]}, "text in reasoning_details"),
    (called(id=1), "id of a call"), (called(function="f"), "function"), (called(function={"arguments": "{}"}), "has no name"),
    (called(extra_content="hm"), "extra_content"), (called(extra_content={"google": "s" * (128 << 10)}), "128 KiB"),
])  # fmt: skip
def test_a_message_that_cannot_be_passed_on(message, word):
    """Is refused, with the part or key that is meant: a model would answer without what it was asked about."""
    with CannedServer(sse_reply(PARIS)) as far, serving(router(far, edge=None)) as url:
        reply = httpx.post(url + CHATS, json={**CHAT, "messages": [*HELLO, message]}, timeout=LONG)
        assert far.requests == []
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert word in reply.json()["error"]["message"]


def test_what_is_booked():
    """The price of what a client asks for, before it is sent: a day's limit holds whatever the policy's own `max_tokens` are."""
    with CannedServer(sse_reply(PARIS)) as far:
        prices = {"usd_per_million_output_tokens": 10.0, "usd_per_million_input_tokens": 10.0}
        cloud = OpenAIChat(far.url, model="far-model", max_tokens=16, retries=0, **prices)
        parts = [{"name": f"f{i}", "description": "1" * 1000} for i in range(120)]
        image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
        with serving(AsyncRouter(cloud=cloud, limits=Limits(usd_per_day=1.0))) as url:
            for asked in (
                {"max_tokens": 120_000},
                {"max_completion_tokens": 120_000},
                {"tools": [{"type": "function", "function": part} for part in parts]},
                {
                    "max_tokens": 80_000,
                    "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["1" * 30_000]}}},
                },
                {"messages": [{"role": "user", "content": [image] * 25}]},
                {"messages": [{"role": "assistant", "content": "1" * 1000}] * 120},
            ):
                assert httpx.post(url + CHATS, json={**CHAT, **asked}, timeout=LONG).status_code == 503, asked
            assert far.requests == []
            assert httpx.post(url + CHATS, json={**CHAT, "max_tokens": 50_000}, timeout=LONG).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_pays(stream):
    """What it asked for stays booked if the cloud, which may go on, had begun nothing: leaving is no way around a limit."""
    with CannedServer([None]) as far:
        cloud = OpenAIChat(far.url, model="far-model", usd_per_million_output_tokens=10.0, timeout_s=LONG, retries=0)
        with serving(AsyncRouter(cloud=cloud, limits=Limits(usd_per_day=1.0))) as url:
            with connected(url) as connection:
                connection.sendall(post(CHATS, {**CHAT, "stream": stream, "max_tokens": 90_000}))
                far.wait_for(lambda: far.requests)
            far.wait_for(lambda: far.hung_up)
            reply = httpx.post(url + CHATS, json={**CHAT, "max_tokens": 20_000}, timeout=LONG)
        assert (reply.status_code, "usd_per_day" in reply.text, len(far.requests)) == (503, True, 1)


@pytest.mark.parametrize(("asked", "headers"), [
    ({"stop": ["a"]}, {}), ({"max_tokens": 1}, {}), ({"seed": 1}, {"x-edgeroute-deadline": "20ms"}),
    ({"seed": 2}, {"x-edgeroute-deadline": "1500ms"}), ({"seed": 3}, {}), ({"seed": 4}, {}), ({"seed": 5}, {}),
], ids=["no text", "few tokens", "deadline", "long answer", "flagged", "too dear", "too large"])  # fmt: skip
def test_one_client_does_not_take_the_cloud_from_others(asked, headers):
    """What a request brings about is no fault of the endpoint: empty answers, little time, and more than fits into it."""

    def answer(request):
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        begun = sse_reply(PARIS[:2], done=False).replace(b"Content-Length", b"X-Length")
        flagged = http_reply(b'{"error": {"message": "no", "metadata": {"flagged_input": "hello"}}}', status=403)
        empty = sse_reply(PARIS[:1] + PARIS[3:] if asked.items() <= body.items() else PARIS)
        dear = http_reply(b'{"error": {"message": "This needs more credits, or fewer max_tokens."}}', status=402)
        large = http_reply(b'{"error": {"message": "Request too large for m"}}', status=429, headers=[("Retry-After", "60")])
        return {1: [None], 2: [begun, None], 3: flagged, 4: dear, 5: large}.get(body.get("seed"), empty)

    with CannedServer(answer) as far, serving(router(far, edge=None)) as url:
        for _ in range(FAULTS + 1):
            httpx.post(url + CHATS, json={**CHAT, **asked}, headers=headers, timeout=LONG)
        assert httpx.post(url + CHATS, json=CHAT, timeout=LONG).json()["edgeroute"]["source"] == "cloud"


@pytest.mark.parametrize(("status", "succeeds", "open_to_others"), [(403, True, True), (403, False, False), (401, True, False)])
def test_a_refusal_of_a_content_is_none_of_all(status, succeeds, open_to_others):
    """403 is a filter's, while the key serves others; 401, or 403 where nobody is served, is about the key, and for all."""

    def answer(request):
        refused = b'"seed":1' in request.replace(b" ", b"") or not succeeds
        return http_reply(b"<html>Forbidden</html>", status=status) if refused else sse_reply(PARIS)

    with CannedServer(answer) as far, serving(router(far, edge=None)) as url:

        def ask(**more):
            return httpx.post(url + CHATS, json={**CHAT, **more}, timeout=LONG)

        ask()
        for _ in range(FAULTS + 1):
            ask(seed=1)
        before = len(far.requests)
        assert (ask().status_code, len(far.requests) - before) == ((200, 1) if open_to_others else (503, 0))


def test_its_stream():
    """Pieces, usage, and why it ended, as the endpoint said."""
    with CannedServer(sse_reply(PARIS)) as far, serving(router(far)) as url:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = events(httpx.post(url + CHATS, json=body, timeout=LONG).text)
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]]
    assert (last, [text for text in texts if text]) == ("[DONE]", ["Pa", "ris"])
    assert (chunks[-2]["choices"][0]["finish_reason"], chunks[-1]["usage"]["completion_tokens"]) == ("stop", 2)
    assert {chunk["model"] for chunk in chunks} == {"edgeroute"}


@pytest.mark.parametrize(("status", "headers", "told", "wait"), [
    (429, [("Retry-After", "7")], 503, "7"), (429, [("Retry-After", "99999")], 503, "3600"), (500, [], 503, "1"),
    (400, [], 400, None), (401, [], 503, "1"), (302, [("Location", "http://127.0.0.1:1/v1")], 503, "1"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal(status, headers, told, wait, stream):
    """Of the endpoint alone: when to come again is passed on, within reason; what it says of the input is the caller's to hear."""
    error = b'{"error": {"message": "as it says", "type": "x"}}'
    with CannedServer(http_reply(error, status=status, headers=[("Content-Type", "application/json"), *headers])) as far:
        with serving(router(far, edge=None)) as url:
            reply = httpx.post(url + CHATS, json={**CHAT, "stream": stream}, timeout=LONG)
        assert len(far.requests) == 1
    assert (reply.status_code, reply.headers.get("retry-after")) == (told, wait)
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize(("status", "headers", "limits", "least"), [
    (429, [("Retry-After", "250")], None, 200), (200, [], Limits(calls_per_minute=1), 30),
])  # fmt: skip
def test_a_wait_that_is_known(status, headers, limits, least):
    """Of what is not sent: as the endpoint asked before, or until a limit has room; or until a breaker may close."""
    body = {"choices": [{"message": {"role": "assistant", "content": "far"}}]}
    with CannedServer(http_reply(json.dumps(body).encode(), status=status, headers=headers)) as far:
        cloud = OpenAIChat(far.url, model="far-model", stream=False, retries=0)
        with serving(AsyncRouter(None, cloud, limits=limits)) as url:
            replies = [httpx.post(url + CHATS, json=CHAT, timeout=LONG) for _ in range(2)]
        assert len(far.requests) == 1
    assert replies[-1].status_code == 503
    assert least <= int(replies[-1].headers["retry-after"]) <= 300, replies[-1].text
    breaker = Breaker()
    for _ in range(FAULTS):
        breaker.fault(0.0, 1.0)
    assert breaker.why(1.6).wait_s == pytest.approx(3.4)
    assert http_fault(NoAnswer("none", {"far": Held("it is open", wait_s=3.4)})).headers == {"Retry-After": "4"}


SILENT = BadReply("no text")
SILENT.counts = False


@pytest.mark.parametrize(("errors", "status"), [
    ([SILENT], 424), ([SILENT, SILENT], 424), ([SILENT, Unfit("images")], 424), ([SILENT, Unreachable("down")], 503),
    ([SILENT, Busy("busy")], 503), ([BadReply("no JSON")], 503), ([], 503),
])  # fmt: skip
def test_an_answer_that_the_request_brings_about(errors, status):
    """Is final if no other leg could answer an equal request later."""
    fault = http_fault(NoAnswer("none", dict(enumerate(errors))))
    assert (fault.status, "Retry-After" in fault.headers) == (status, status == 503)
    assert (fault.headers.get("x-should-retry") == "false") == (status == 424)


@pytest.mark.parametrize("of", ["request", "policy"])
def test_a_deadline_that_has_passed(of):
    """Of the request: final, as its client's time is over. Of the policy: an equal request may be sent later."""
    headers = {"x-edgeroute-deadline": "300ms"} if of == "request" else {}
    with CannedServer(None) as far:
        cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, retries=0)
        with serving(AsyncRouter(cloud=cloud, deadline=0.3 if of == "policy" else LONG)) as url:
            reply = httpx.post(url + CHATS, json=CHAT, headers=headers, timeout=LONG)
    assert (reply.status_code, "deadline" in reply.text) == (503, True)
    assert ("retry-after" in reply.headers) == (of == "policy")
    assert reply.headers.get("x-should-retry") == ("false" if of == "request" else None)


@pytest.mark.parametrize("api", ["openai", "stream", "anthropic"])
def test_clients_whose_deadline_has_passed(api):
    """Do not ask, and pay, again."""
    library = pytest.importorskip("anthropic" if api == "anthropic" else "openai")
    terms = {"api_key": "none", "default_headers": {"x-edgeroute-deadline": "300ms"}, "max_retries": 2}
    with CannedServer(None) as far:
        cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, retries=0)
        with serving(AsyncRouter(cloud=cloud)) as url:
            if api == "anthropic":
                ask = partial(library.Anthropic(base_url=url, **terms).messages.create, max_tokens=9)
            else:
                ask = partial(library.OpenAI(base_url=f"{url}/v1", **terms).chat.completions.create, stream=api == "stream")
            with pytest.raises(library.InternalServerError) as raised:
                ask(**CHAT)
    assert raised.value.response.request.headers["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize("path", ["chat/completions", "messages"])
@pytest.mark.parametrize("again", [False, True])
def test_a_prompt_that_is_too_long(path, again):
    """Has the code and the words by which clients know it, also where no model is asked again for the same input."""
    error = json.dumps({"error": {"code": "context_length_exceeded", "message": "too many tokens"}}).encode()
    with CannedServer(http_reply(error, status=400)) as far:
        cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, retries=0)
        with serving(AsyncRouter(cloud=cloud, cache=Cache())) as url:
            for _ in range(1 + again):
                reply = httpx.post(f"{url}/v1/{path}", json={**CHAT, "max_tokens": 9}, timeout=LONG)
        assert len(far.requests) == 1
    told = reply.json()["error"]
    assert (reply.status_code, told["code"]) == (400, "context_length_exceeded")
    assert told["message"].startswith("prompt is too long: ")


def test_a_cut_within_the_answer():
    """What had come stays; the end says that it is not whole."""
    cut = sse_reply(chat_events(["Pa"], finish=None), done=False)
    with CannedServer(cut, close=True) as far, serving(router(far, edge=None)) as url:
        *chunks, last = events(httpx.post(url + CHATS, json={**CHAT, "stream": True}, timeout=LONG).text)
    assert (last, chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["edgeroute"]["degraded"]) == ("[DONE]", "length", True)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Pa"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(stream):
    """The call of the cloud ends: its server sees the connection close."""
    whole = sse_reply(PARIS).replace(b"Content-Length", b"X-Length")
    with (
        CannedServer([whole[: whole.index(b'"ris"')], None] if stream else [None]) as far,
        serving(router(far, edge=None)) as url,
    ):
        with connected(url) as connection:
            connection.sendall(post(CHATS, {**CHAT, "stream": stream}))
            far.wait_for(lambda: far.requests)
            if stream:
                assert connection.recv(65536)
        far.wait_for(lambda: far.hung_up)


def test_a_conversation_that_had_to_stay():
    """A turn of a class that never leaves keeps what follows at home, by what is said in it: a client has nothing to send."""
    rules = Egress(never_leave=["private"], may_leave=["chat"], default_class="chat")
    with CannedServer(sse_reply(PARIS)) as far:
        cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, between_s=LONG, retries=0)
        with serving(AsyncRouter(unsure, cloud, threshold=0.5, egress=rules)) as url:

            def ask(messages, **headers):
                return httpx.post(url + CHATS, json={**CHAT, "messages": messages}, headers=headers, timeout=LONG).json()

            secret = [{"role": "user", "content": "my number is 1234 5678"}]
            first = ask(secret, **{"x-edgeroute-data-class": "private"})
            assert first["edgeroute"]["source"] == "edge"
            more = [*secret, first["choices"][0]["message"], {"role": "user", "content": "and what is it twice?"}]
            stays = ask(more)
            assert (stays["edgeroute"]["source"], far.requests) == ("edge", [])
            assert WHY in stays["edgeroute"]["reason"]
            call = {"type": "function", "function": {"name": "f"}, "extra_content": {"a": {"thought": "my number is 1234 5678"}}}
            for beside in ({"tool_calls": [call]}, {"reasoning_details": [{"text": "my number is 1234 5678"}]}):
                assert ask([*HELLO, {"role": "assistant", "content": "ok", **beside}, *HELLO])["edgeroute"]["source"] == "edge"
            assert ask(HELLO)["edgeroute"]["source"] == "cloud"
            keyed = [{"role": "user", "content": "my other number is 8765 4321"}]
            ask(keyed, **{"x-edgeroute-data-class": "private", "x-edgeroute-conversation": "one"})
            sources = [
                ask([*keyed, {"role": "user", "content": "twice?"}], **{"x-edgeroute-conversation": key})["edgeroute"]["source"]
                for key in ("one", "two")
            ]
            assert sources == ["edge", "cloud"]


@pytest.mark.parametrize("size", [9, 300_000], ids=["small", "large"])
def test_a_conversation_s_key_ends_with_its_request(size):
    """A server may begin the next request of a connection in the task of the former one, which reads a large body, or replies."""
    first = {**CHAT, "messages": [{"role": "user", "content": "x" * size}]}
    secret = {**CHAT, "messages": [{"role": "user", "content": "my number is 1234 5678, and nobody knows it"}]}
    rules = Egress(never_leave=["private"], may_leave=["chat"], default_class="chat")
    with CannedServer(sse_reply(PARIS)) as far:
        cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, between_s=LONG, retries=0)
        with serving(AsyncRouter(unsure, cloud, threshold=0.5, egress=rules)) as url:
            pair = [
                post(CHATS, first, "x-edgeroute-conversation: one", "x-edgeroute-mode: only_edge"),
                post(CHATS, secret, "x-edgeroute-data-class: private", "Connection: close"),
            ]
            both = raw(url, b"".join(pair))
            again = httpx.post(url + CHATS, json=secret, timeout=LONG).json()
        assert far.requests == []
    assert both.count(b"200 OK") == 2
    assert WHY in again["edgeroute"]["reason"]


def test_a_key_given_around_the_application():
    """Holds within it, unless the request has another; and after a request with another the program's own holds again."""
    secret = {**CHAT, "messages": [{"role": "user", "content": "my number is 1234 5678, and nobody knows it"}]}
    headers = {"x-edgeroute-data-class": "private"}
    rules = Egress(never_leave=["private"], may_leave=["chat"], default_class="chat")
    sources = []
    with InProcess(AsyncRouter(unsure, lambda _: "far", threshold=0.5, egress=rules)) as local, local.client() as client:
        for key, options in (
            ("one", headers),
            ("two", {}),
            ("one", {}),
            ("one", {"x-edgeroute-conversation": "three"}),
            ("one", {}),
        ):
            with within(key):
                reply = client.post(local.root_url + CHATS, json=secret, headers=options)
            sources.append(reply.json()["edgeroute"]["source"])
    assert sources == ["edge", "cloud", "edge", "cloud", "edge"]


def test_what_the_cache_has():
    """Comes from there, whole and in pieces, with its usage; nothing is sent again."""
    with CannedServer(sse_reply(PARIS)) as far:
        cloud = OpenAIChat(far.url, model="far-model", timeout_s=LONG, between_s=LONG, retries=0)
        with serving(AsyncRouter(unsure, cloud, threshold=0.5, cache=Cache())) as url:
            first, second = (httpx.post(url + CHATS, json=CHAT, timeout=LONG) for _ in range(2))
            stream = httpx.post(url + CHATS, json={**CHAT, "stream": True}, timeout=LONG)
        assert len(far.requests) == 1
    assert [one.headers["x-edgeroute-source"] for one in (first, second, stream)] == ["cloud", "cache", "cache"]
    assert second.json()["choices"] == first.json()["choices"]
    *chunks, _ = events(stream.text)
    assert (chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["edgeroute"]["source"]) == ("stop", "cache")
