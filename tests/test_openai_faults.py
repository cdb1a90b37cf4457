"""OpenAIChat at servers that fail: stalls, refusals, garbage, errors within a stream; what is counted, and what is sent again."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import routes
from both import LONG, header
from test_openai_chat import CHUNKED, HI, PARIS, Asked, chunk, endpoint, event, unsure

from edgeroute import (
    AsyncRouter,
    BadInput,
    BadReply,
    Cache,
    CloudError,
    Egress,
    Held,
    Limits,
    OpenAIChat,
    Outbox,
    PlainJson,
    PolicyError,
    Refused,
    Router,
)
from edgeroute.cloud import stream_protocol_and_attempts as speaking
from edgeroute.cloud.http_backend import HttpBackend
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core.reason_text_and_trace_record import truncated
from edgeroute.http.messages_addresses_and_secrets import Reply
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply
from edgeroute.text.read_openai_replies import ToolCalls

FIRST = [CHUNKED, chunk(event(PARIS[0])), chunk(event(PARIS[1]))]
GOOD = sse_reply(PARIS)
JSON = [("Content-Type", "application/json")]


@pytest.fixture(params=["threads", "asyncio"])
def ask(request):
    return Asked(request.param)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a busy machine, too, what follows a whole answer is read."""
    monkeypatch.setattr(speaking, "LINGER_S", LONG)


def said(status, error, headers=()):
    """An error as OpenAI's API has it."""
    return http_reply(json.dumps({"error": error}).encode(), status=status, headers=[*JSON, *headers])


def in_turn(*replies):
    """Each reply once, then the last."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# --- time


@pytest.mark.pure
def test_a_stall_before_the_first_piece(ask):
    """By the endpoint's own time, and by the stream's `first_token`: the local answer stands."""
    for reply in (None, [CHUNKED, chunk(b": wait\n\n"), None], [CHUNKED, chunk(event(PARIS[0])), None]):
        with CannedServer(reply) as server:
            pieces, answer = ask.stream(endpoint(server.url, timeout_s=1.0, between_s=1.0))
            assert (pieces, answer.value, answer.degraded) == (["local"], "local", True)
            pieces, answer = ask.stream(endpoint(server.url), options={"first_token": 1.0})
            assert (pieces, answer.value) == (["local"], "local")
            server.wait_for(lambda: server.hung_up == server.connections)  # where none was made in that time, none


@pytest.mark.pure
def test_a_stall_within_an_answer(ask):
    """What had come is the answer, marked; the connection is closed. A comment is no piece."""
    ping = chunk(b": still here\n\n")
    for rest in ([None], [ping] * 3 + [None]):
        with CannedServer([*FIRST, *rest]) as server:
            pieces, answer = ask.stream(endpoint(server.url, between_s=1.0))
            assert (pieces, answer.value, answer.degraded, answer.truncated) == (["Pa"], "Pa", True, "cut")
            assert (answer.source, routes.code(answer)) == ("cloud", "unreachable")
            assert "stopped within its answer: nothing more came for 1 s" in routes.error(answer)
            assert answer.outputs["choices"][0]["message"]["content"] == "Pa"
            server.wait_for(lambda: server.hung_up == 1)
            assert pickle.loads(pickle.dumps(answer)).truncated == "cut"


LINGERS_S = speaking.LINGER_S


@pytest.mark.parametrize("rest", [[None], [chunk(b": ping\n\n")] * 3 + [None]], ids=["silence", "comments"])
def test_a_whole_answer_is_given_at_once(ask, monkeypatch, rest):
    """The server has said that it is done, and goes on to keep the connection busy: its time is not the answer's."""
    monkeypatch.setattr(speaking, "LINGER_S", LINGERS_S)
    assert LINGERS_S <= 0.5
    with CannedServer(
        [
            *FIRST,
            chunk(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})),
            chunk(b"data: [DONE]\n\n"),
            *rest,
        ]
    ) as server:
        pieces, answer = ask.stream(endpoint(server.url, timeout_s=LONG, between_s=LONG))
        assert (pieces, answer.degraded, answer.truncated) == (["Pa"], False, "")


@pytest.mark.pure
def test_a_whole_answer_does_not_wait_for_its_deadline(ask):
    """What may follow it, such as a count of tokens, is waited for in half of the time that is left, and the answer counts."""
    end = chunk(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    with CannedServer([*FIRST, end, None]) as server:
        (answer,) = ask.infer(endpoint(server.url), "hi", deadline=3.0)
        assert (answer.value, answer.source, answer.degraded) == ("Pa", "cloud", False)


class Pinging(CannedServer):
    """Sends so many pieces, and then what keeps the connection open, for ever."""

    pieces = 0
    ping = b": still here\n\n"

    async def _serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"".join(FIRST[: 1 + 2 * self.pieces]))
        while not reader.at_eof():
            writer.write(chunk(self.ping))
            await writer.drain()
            await asyncio.sleep(0.05)  # the subject: less than the time for a piece
        self._note(hung_up=1)


@pytest.mark.pure
@pytest.mark.parametrize(
    "ping",
    [
        b": still here\n\n", event(PARIS[0]), event({"choices": []}), b"event: ping\ndata: {}\n\n",
        event({"choices": [{"delta": {"content": [{"type": "text", "text": ""}], "reasoning": None, "tool_calls": [{"index": 0}]}}]}),
    ],
    ids=["comment", "empty", "no choices", "event", "empty parts"],
)  # fmt: skip
def test_what_brings_nothing_is_no_piece(ask, ping):
    """However often it comes, an answer that does not begin has not begun, and one that does not go on has stopped."""
    with Pinging(b"") as server:
        server.ping = ping
        pieces, answer = ask.stream(endpoint(server.url, timeout_s=0.3, between_s=0.3))
        assert (pieces, answer.degraded) == (["local"], True)
        server.pieces = 1
        pieces, answer = ask.stream(endpoint(server.url, between_s=0.5))
        assert (pieces, answer.truncated) == (["Pa"], "cut")


class Late(CannedServer):
    """Ends a reply a moment after `[DONE]`."""

    async def _serve(self, reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(header(head, "content-length")))
            self._note(head)
            writer.write(CHUNKED + chunk(b"".join(map(event, PARIS)) + b"data: [DONE]\n\n"))
            await writer.drain()
            await asyncio.sleep(0.05)  # the subject: in a read of its own
            writer.write(b"0\r\n\r\n")


def test_the_end_is_read_for_the_connections_sake(ask):
    """What comes after `[DONE]` in another read, too: one connection for all."""
    with Late(b"") as server:
        assert [answer.value for answer in ask.infer(endpoint(server.url), "a", "b", "c")] == ["Paris"] * 3
        assert server.connections == 1


def test_log_probabilities_that_do_not_come(ask):
    """Were asked for: the answer has none, and why; it is one all the same."""
    with CannedServer(sse_reply(chat_events(["Paris"]))) as server:
        (answer,) = ask.infer(endpoint(server.url, logprobs=True), "hi")
        assert (answer.value, answer.source, answer.degraded) == ("Paris", "cloud", False)
        assert answer.confidence is None


def test_a_deadline_ends_the_whole_answer(ask, due):
    """However many pieces come."""
    with CannedServer([*FIRST, None]) as server:
        heard = []
        pieces, answer = ask.stream(endpoint(server.url), heard=heard, options={"deadline": due(lambda: heard)})
        assert (pieces, answer.value, answer.degraded, answer.truncated) == (["Pa"], "Pa", True, "cut")
        assert (answer.source, answer.reason_code in {"deadline", "timeout"}) == ("cloud", True)  # whichever clock was first
        server.wait_for(lambda: server.hung_up == 1)


class Trickle(CannedServer):
    """A piece at a time, each once the client has waited for it for so long."""

    every_s = 0.4

    async def _serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        for one in chat_events("abcdefgh"):
            writer.write(chunk(event(one)))
            await writer.drain()
            await asyncio.sleep(self.every_s)  # the subject: longer in all than the time for a piece
        writer.write(b"0\r\n\r\n")


@pytest.mark.pure
def test_a_trickle_of_pieces_is_fine(ask):
    """In all it takes longer than the endpoint's time to begin, and than that between pieces."""
    with Trickle(b"") as server:
        pieces, answer = ask.stream(endpoint(server.url, timeout_s=3.0, between_s=3.0))  # of a piece, seven times as long
        assert ("".join(pieces), answer.degraded) == ("abcdefgh", False)


# --- refusals


@pytest.mark.parametrize(
    ("status", "error", "headers", "message"),
    [
        (401, {"message": "bad key sk-secret"}, [], "answered 401 (is api_key set, and current?)"),
        (404, {"message": "no model m"}, [], "answered 404: it has no model 'm', or the path of its url is wrong"),
        (429, {"code": "rate_limit_exceeded"}, [("Retry-After", "7")], "answered 429: too many requests or tokens for this key, and says to wait 7 s"),
        (429, {"code": "insufficient_quota"}, [], "answered 429: the quota of this key is spent"),
        (400, {"code": "context_length_exceeded", "message": "sk-secret"}, [], "does not take it: the prompt is longer than the model's context"),
        (400, {"message": "This model's maximum context length is 4096 tokens"}, [], "the prompt is longer than the model's context"),
        (400, {"type": ["odd"], "message": {"a": 1}}, [], "answered 400"),
        (503, {"message": "loading"}, [], "answered 503"),
        (307, {}, [("Location", "http://127.0.0.1:9/")], "answered 307 (it redirects: give its final URL)"),
        (400, "oops", [], "answered 400"),
    ],
)  # fmt: skip
def test_refusals(ask, status, error, headers, message):
    """Each says what is wrong, as a reply and as an event within a stream; nothing of the server's own words is quoted."""
    with CannedServer(said(status, error, headers)) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.value) == (["local"], "local")
        assert routes.status(answer) == status
        assert message in routes.error(answer)
        assert "sk-secret" not in str(answer.trace)
        assert len(server.requests) == 1
    if isinstance(error, dict) and not headers and status != 307:
        with CannedServer(sse_reply([{"error": {**error, "code": error.get("code", status)}}])) as server:
            assert message in routes.error(ask.stream(endpoint(server.url))[1])


def test_an_error_within_an_answer(ask):
    """What had come is the answer."""
    with CannedServer(sse_reply([*PARIS[:2], {"error": {"message": "x", "type": "server_error"}}])) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.value, answer.degraded) == (["Pa"], "Pa", True)
        assert (answer.source, routes.status(answer)) == ("cloud", 500)
        assert "server_error" in routes.error(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>login</html>", b"", b"data: nonsense\n\n", b"data: [1, 2]\n\n", b'data: {"choices": 3}\n\n', b"\xff\xfe\x00",
        b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', b"data: {}\n\n" * 3, b'data: {"choices": [[]]}\n\n', b"\n" * 99,
        b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"logprob": "x"}]}}]}\n\n',
        b"data: " + b"[" * 5000 + b"\n\n", b'data: {"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]}\n\n',
        b"data: [DONE]\n\n", b"data: null\n\n", b'data: {"choices": [null]}\n\n',
    ],
)  # fmt: skip
def test_garbage(ask, body):
    """Is no answer, no hang, and no exception of another kind than an endpoint's."""
    for kind in ("text/event-stream", "application/json", "text/html"):
        with CannedServer(http_reply(body, headers=[("Content-Type", kind)])) as server:
            _, answer = ask.stream(endpoint(server.url, logprobs=True))
            assert (answer.source, answer.degraded) == ("edge", True), answer
            assert ": http://127.0.0.1" in routes.error(answer)


def test_a_reply_is_bounded(ask):
    """One line without an end, pieces without an end, and a refusal of any length."""
    line = [CHUNKED, *[chunk(b"x" * 65536)] * 4, None]
    with CannedServer(line) as server:
        _, answer = ask.stream(endpoint(server.url, max_reply_bytes=100_000))
        assert answer.value == "local"
        assert "answered more than 100000 bytes" in routes.error(answer)
    many = [CHUNKED, *[chunk(event(PARIS[1]))] * 4000, None]
    with CannedServer(many) as server:
        pieces, answer = ask.stream(endpoint(server.url, max_reply_bytes=300_000))
        assert 10 < len(pieces) < 4000
        assert answer.degraded
    with CannedServer(http_reply(b"x" * 3_000_000, status=500)) as server:
        assert routes.status(ask.stream(endpoint(server.url, max_reply_bytes=100_000))[1]) == 500


# --- what is sent again


def test_it_is_sent_again_until_a_piece_has_come(ask):
    """With the same idempotency key; after a piece it is not: another text would follow."""
    busy = said(503, {"message": "loading"})
    with CannedServer(in_turn(busy, CHUNKED, GOOD), close=True) as server:
        pieces, answer = ask.stream(endpoint(server.url, retries=2))
        assert (pieces, answer.degraded) == (["Pa", "ris"], False)
        keys = {line for one in server.requests for line in one.split(b"\r\n") if line.lower().startswith(b"idempotency-key")}
        assert (len(server.requests), len(keys)) == (3, 1)
    with CannedServer(in_turn(b"".join(FIRST), GOOD), close=True) as server:
        pieces, answer = ask.stream(endpoint(server.url, retries=2))
        assert (pieces, answer.degraded) == (["Pa"], True)
        assert len(server.requests) == 1


def test_an_answer_that_nobody_sees_in_pieces_is_sent_again(ask):
    """`infer` shows none, so a cut within one costs nothing; after the last, what had come is better than no answer at all."""
    with CannedServer(in_turn(b"".join(FIRST), GOOD), close=True) as server:
        (answer,) = ask.infer(endpoint(server.url, retries=1), "hi")
        assert (answer.value, answer.degraded) == ("Paris", False)
        assert len(server.requests) == 2
    with CannedServer(b"".join(FIRST), close=True) as server:
        (answer,) = ask.infer(endpoint(server.url), "hi")
        assert (answer.value, answer.degraded) == ("local", True)  # whole, and so better
        (answer,) = ask.infer(endpoint(server.url), "hi", edge=None)
        assert (answer.value, answer.degraded, answer.truncated) == ("Pa", True, "cut")
        with pytest.raises(CloudError) as raised:
            ask.infer(endpoint(server.url), "hi", edge=None, offline="raise")
        assert raised.value.partial.value == "Pa"


def test_a_quota_that_is_spent_is_not_asked_for_again(ask):
    """And `Retry-After` is waited for before too many requests are repeated."""
    with CannedServer(said(429, {"code": "insufficient_quota"})) as server:
        ask.infer(endpoint(server.url, retries=2), "hi")
        assert len(server.requests) == 1
    with CannedServer(in_turn(said(429, {"code": "rate_limit_exceeded"}, [("Retry-After", "0.01")]), GOOD)) as server:
        assert ask.infer(endpoint(server.url, retries=2), "hi")[0].value == "Paris"


# --- what is counted


def test_a_cut_is_a_fault_and_is_counted(tmp_path):
    """Ledger before it is sent, bytes of both ways, a fault for the breaker; one who leaves is none."""
    with CannedServer(b"".join(FIRST), close=True) as server:
        cloud = endpoint(server.url, usd_per_million_input_tokens=1e6, usd_per_million_output_tokens=1e6, max_tokens=50)
        with Router(unsure, cloud, threshold=0.5, state=tmp_path, limits=Limits(usd_per_day=1000)) as router:
            with router.stream("hi") as stream:
                list(stream)
            backend = router.engine.snapshot.backends[1]
            sent, received = backend.traffic
            assert sent == len(server.requests[0].partition(b"\r\n\r\n")[2])
            assert received == sum(len(event(one)) for one in PARIS[:2])
            ledger = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
            assert [one["bytes"] for one in ledger] == [sent]
            # what was expected of the request, and the piece that came
            assert stream.answer.trace["events"][-1]["usd"] == pytest.approx(sent + 1)


def test_cuts_open_the_breaker(monkeypatch):
    """Answers that break off are faults of the endpoint."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due by time, however slow the machine
    with CannedServer(b"".join(FIRST), close=True) as server, Router(unsure, endpoint(server.url), threshold=0.5) as router:
        for _ in range(8):
            with router.stream("hi") as stream:
                list(stream)
        assert router.engine.snapshot.backends[1].guard.state == "open"
        assert len(server.requests) < 8


@pytest.mark.parametrize(
    ("given", "asked"), [("2000", 2000), (2000.0, 2000), (2000, 2000), ("many", 512), (-1, 512), (True, 512)]
)
def test_a_number_of_tokens_in_a_text_is_a_number(given, asked):
    """Booked ahead as what it says; what is none is the server's to refuse."""
    call = next(OpenAIChat("http://127.0.0.1:1", model="m").speak({"messages": HI, "max_tokens": given}))
    assert call.tokens.answer == asked


@pytest.mark.parametrize("given", [10**400, 10**12, "1e400", "nan"], ids=["huge", "int", "text", "nan"])
def test_a_number_of_tokens_beyond_reason_is_the_callers_fault(given, caplog):
    """Nothing is sent, and no fault of the cloud is told or logged."""
    with CannedServer(GOOD) as server, Router(cloud=endpoint(server.url, usd_per_million_output_tokens=1.0)) as router:
        with pytest.raises(BadInput, match=r"max_tokens is .*: a request may ask for 1,000,000,000 at most"):
            router.infer({"messages": HI, "max_tokens": given})
        assert server.requests == []
        assert router.stats().legs[0].breaker == "closed"
    assert "Traceback" not in caplog.text


DIGITS = "0123456789" * 300
SCHEMA = {"type": "object", "properties": {DIGITS: {"enum": ["a"]}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": DIGITS}}
PLACES = {
    "prompt": {"prompt": DIGITS},
    "content": {"messages": [{"role": "user", "content": DIGITS}]},
    "part": {"messages": [{"role": "user", "content": [{"type": "text", "text": DIGITS}]}]},
    "unknown part": {"messages": [{"role": "user", "content": [{"type": "quote", "quote": DIGITS}]}]},
    "text beside an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}, "text": DIGITS}]}]},
    "name": {"messages": [{"role": "user", "content": "hi", "name": DIGITS}]},
    "earlier": {"messages": [{"role": "user", "content": "5"} for _ in range(500)]},
    "thought": {"messages": [*HI, {"role": "assistant", "content": "", "reasoning_content": DIGITS}, *HI]},
    "call": {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    "tools": {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
    "functions": {"messages": HI, "functions": [{"name": "f", "parameters": SCHEMA}]},
    "response_format": {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    "documents": {"messages": HI, "documents": [{"text": DIGITS}]},
}


@pytest.mark.parametrize("place", PLACES)
def test_each_byte_of_a_request_is_booked(place):
    """As no tokenizer makes more tokens than bytes, and many one of each digit; wherever the text stands."""
    cloud = OpenAIChat("http://127.0.0.1:1", model="m")
    call = next(cloud.speak(PLACES[place]))
    assert call.tokens.prompt >= 3000
    assert next(cloud.hear(call._replace(tokens=None))) == call  # as one from the outbox


def test_embeddings_from_the_outbox_have_their_bound():
    """The reply may be as long as its texts need, as when they were asked for."""
    cloud = OpenAIChat("http://127.0.0.1:1", model="m")
    call = next(cloud.speak({"input": ["text"] * 1000}))
    later = next(cloud.hear(call._replace(tokens=None, max_reply=None)))
    assert later.max_reply == call.max_reply > cloud.address.max_reply_bytes


def test_images_sound_and_answers_are_booked():
    """An image as the most of usual models, whatever its bytes; sound by its length; `best_of` answers."""

    def booked(part, **more):
        request = {"messages": [{"role": "user", "content": [{"type": "x", **part}]}], **more}
        return next(OpenAIChat("http://127.0.0.1:1", model="m").speak(request)).tokens

    small, large = (booked({"image_url": {"url": "data:image/png;base64," + "A" * n}}).prompt for n in (10, 1_000_000))
    assert small == large
    assert 5000 < small < 6000
    assert booked({"input_audio": {"data": "A" * 1_000_000}}).prompt > 30_000
    assert booked({"file": {"file_id": "f"}}).prompt > 5000
    assert booked({}, max_tokens=7, best_of=20).answer == 140


THOUGHT = {"choices": [{"index": 0, "delta": {"reasoning_content": DIGITS}, "finish_reason": None}]}


@pytest.mark.parametrize("end", ["cancelled", "deadline", "stall"])
def test_one_who_leaves_pays(end, due):
    """Before anything came the server may go on: all that was asked for stays booked. Afterwards what came, thoughts too."""
    with CannedServer([CHUNKED, chunk(event(THOUGHT)), None] if end == "stall" else [None]) as server:
        cloud = endpoint(server.url, usd_per_million_output_tokens=1e6, max_tokens=50, between_s=1.0)

        async def main():
            async with AsyncRouter(cloud=cloud, limits=Limits(usd_per_day=60)) as router:
                first = asyncio.ensure_future(
                    router.infer("hi", deadline=due(lambda: server.requests) if end == "deadline" else None)
                )
                if end == "cancelled":
                    await asyncio.to_thread(server.wait_for, lambda: server.requests)
                    first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                with pytest.raises(Held, match="usd_per_day"):
                    await router.infer("hi")

        asyncio.run(main())
        assert len(server.requests) == 1


def test_an_answer_without_a_count_is_booked_by_its_bytes():
    """What is not its text, too: thoughts, and arguments of tools."""
    message = {"content": "ok", "reasoning_content": DIGITS, "tool_calls": [CALL]}
    whole = http_reply(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode(), headers=JSON)
    with CannedServer(whole) as server, Router(cloud=endpoint(server.url, usd_per_million_output_tokens=1e6)) as router:
        assert router.infer("hi").trace["events"][-1]["usd"] >= 2000


def test_prices_per_token_meet_the_limit(ask):
    """The price of what is expected is booked before it is sent, so a limit refuses; and corrected to what was counted."""
    with CannedServer(GOOD) as server:
        cloud = endpoint(server.url, usd_per_million_output_tokens=1e6, max_tokens=50)
        answers = ask.infer(cloud, "a", "b", "c", limits=Limits(usd_per_day=53))
        assert [answer.source for answer in answers] == ["cloud", "cloud", "edge"]  # 2 dollars each, and 50 are asked for
        assert (answers[2].reason_code, routes.code(answers[2])) == ("usd_per_day", "usd_per_day")
        assert re.findall(r"\d+", routes.error(answers[2]))[:3] == ["53", "4", "50"]
        assert answers[0].trace["events"][-1]["usd"] == 2


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_one_who_leaves_is_no_fault(kind):
    """The server sees it; no breaker does, and what came is counted."""
    with CannedServer([*FIRST, None]) as server:
        cloud = endpoint(server.url)

        async def main():
            async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
                for _ in range(8):
                    async with router.stream("hi") as stream:
                        async for _ in stream:
                            break
                return router.engine.snapshot.backends[1].guard.state

        if kind == "asyncio":
            state = asyncio.run(main())
        else:
            with Router(unsure, cloud, threshold=0.5) as router:
                for _ in range(8):
                    with router.stream("hi") as stream:
                        next(iter(stream))
                state = router.engine.snapshot.backends[1].guard.state
        assert state == "closed"
        server.wait_for(lambda: server.hung_up == 8)


@pytest.mark.pure
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_one_who_leaves_late_is_no_fault(kind):
    """After more than the time within which an answer has to begin, which this one did."""
    faults = []
    with Trickle(b"") as server:
        server.every_s = 0.5
        cloud = endpoint(server.url, timeout_s=2.5)

        async def main():
            async with AsyncRouter(None, cloud) as router:
                router.engine.snapshot.backends[0].guard.failed = lambda: faults.append(1)
                async with router.stream("hi") as stream:
                    async for piece in stream:
                        if piece == "g":
                            break

        if kind == "asyncio":
            asyncio.run(main())
        else:
            with Router(None, cloud) as router:
                router.engine.snapshot.backends[0].guard.failed = lambda: faults.append(1)
                with router.stream("hi") as stream:
                    next(piece for piece in stream if piece == "g")
    assert not faults


# --- what leaves, and what is remembered


def test_what_leaves_is_what_redaction_made(ask):
    """It is given the messages as the caller gave them; a class that must stay home is not sent."""

    def redact(messages, data_class):
        return [{**one, "content": one["content"].replace("Ada", "***")} for one in messages]

    with CannedServer(GOOD) as server:
        egress = Egress(redact=redact, never_leave=["medical"], unknown_class="allow")
        ask.infer(endpoint(server.url), [{"role": "user", "content": "I am Ada"}], egress=egress)
        assert b"I am ***" in server.requests[0]
        with Router(unsure, endpoint(server.url), threshold=0.5, egress=egress) as router:
            assert router.infer(HI, data_class="medical").source == "edge"
        assert len(server.requests) == 1


def test_a_request_that_is_queued_is_sent_later(tmp_path):
    """By the outbox, as it was made when it was queued; its answer comes in pieces to nobody."""
    late, told = [], threading.Event()
    with CannedServer(in_turn(said(503, {"message": "x"}), GOOD)) as server:
        box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
        with Router(unsure, endpoint(server.url), threshold=0.5, offline="queue", outbox=box) as router:
            router.on_late(lambda one: (late.append(one), told.set()))
            answer = router.infer("hi")
            assert (answer.value, answer.final) == ("local", False)
            assert told.wait(LONG)
        first, second = server.requests
        assert first == second
    assert (late[0].value, late[0].id) == ("Paris", answer.id)


def test_another_model_has_other_cache_keys(ask):
    """So have other settings, another address and another version of the model."""
    with CannedServer(GOOD) as server, CannedServer(GOOD) as other:
        base = {"system": "be brief"}
        clouds = [
            endpoint(server.url, **base), endpoint(server.url, **base), endpoint(server.url, system="be long"),
            endpoint(server.url, **base, version="2"), endpoint(other.url, **base), endpoint(server.url, **base, max_tokens=3),
        ]  # fmt: skip
        keys = [HttpBackend("cloud", one, "msp", None).identity(repr) for one in clouds]
        assert keys[0] == keys[1]
        assert len({*keys}) == 5


def test_values_that_are_none():
    """Whose fault it is, in one line."""
    for more, match in (
        ({"model": ""}, "model= takes"), ({"between_s": 0}, "between_s= takes a number of more than 0"), ({"max_tokens": 0}, "max_tokens="),
        ({"confidence": "best"}, "confidence= takes one of"), ({"stop": [""]}, "stop= has an empty text"),
        ({"request": {"stream": True}}, "request= may not have stream"), ({"url": "http://h/v1?key=1"}, "no query"),
        ({"usd_per_million_input_tokens": -1}, "usd_per_million_input_tokens= takes"),
    ):  # fmt: skip
        with pytest.raises(PolicyError, match=match):
            OpenAIChat(**{"url": "http://127.0.0.1:1/v1", "model": "m", **more})
    cloud = OpenAIChat("https://api.example.com/v1/chat/completions", model="m")
    assert cloud.where == "https://api.example.com/v1 (m)"
    for bad in (None, 7, [], {}, "", "\ud800", [{"role": "user"}], {"messages": HI, "x": float("nan")}):
        with pytest.raises(BadInput, match=r"https://api\.example\.com/v1"):
            cloud.encode([bad])


def test_forms_of_what_servers_say(ask):
    """A content in parts, an error without `error` around it, an empty `finish_reason`, usage with each piece, a refusal in text."""
    parts = {
        "choices": [{"index": 0, "delta": {"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "Pa"}]}}]
    }
    more = {
        "choices": [{"index": 0, "delta": {"content": "ris"}, "finish_reason": ""}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}
    with CannedServer(sse_reply([parts, more, end])) as server:
        pieces, answer = ask.stream(endpoint(server.url, usd_per_million_output_tokens=1e6))
        assert (pieces, answer.degraded) == (["Pa", "ris"], False)
        assert answer.trace["events"][-1]["usd"] == 3
    with CannedServer(sse_reply([{"object": "error", "message": "x", "type": "BadRequestError", "code": 400}])) as server:
        assert routes.status(ask.stream(endpoint(server.url))[1]) == 400
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Pa"}, "finish_reason": "content_filter"}]}
    with CannedServer(http_reply(json.dumps(whole).encode(), headers=JSON)) as server:
        _, answer = ask.stream(endpoint(server.url))
        assert (answer.value, answer.truncated) == ("Pa", "content_filter")


def whole_reply(finish="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    return http_reply(json.dumps({"choices": [choice]}).encode(), headers=JSON)


def deltas(*given, finish="stop"):
    """A stream of them."""
    said = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in given]
    return sse_reply([*said, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}])


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (deltas({"role": "assistant", "content": ""}), ""),
        (deltas({"content": "\n"}, {"content": "\n"}), ""),
        (
            deltas({"reasoning_content": "hm"}, finish="length"),
            ": it reached its token limit before it said anything",
        ),
        (whole_reply(), ""),
        (whole_reply(content="\n\n", tool_calls=[]), ""),
        (whole_reply("content_filter"), ": a content filter took it"),
        (http_reply(b'{"choices": [{"text": " ", "finish_reason": "stop"}]}', headers=JSON), ""),
    ],
    ids=["empty", "lines", "thoughts", "null", "lines at once", "filter", "text"],
)
def test_an_answer_that_says_nothing_is_a_fault(ask, reply, why):
    """The edge's answer stands; nothing is cached, nothing of it shown, and it is not asked for again."""
    with CannedServer(reply) as server:
        pieces, answer = ask.stream(endpoint(server.url, retries=1))
        assert (pieces, answer.value, answer.source, answer.degraded) == (["local"], "local", "edge", True)
        assert routes.error(answer).endswith(f"gave an answer without a text{why}")
        answers = ask.infer(endpoint(server.url, retries=1), "hi", "hi", cache=Cache())
        assert [(one.value, one.degraded) for one in answers] == [("local", True)] * 2
        assert len(server.requests) == 3
        with pytest.raises(BadReply, match="without a text"):
            ask.infer(endpoint(server.url), "hi", edge=None, offline="raise")


@pytest.mark.parametrize("stream", [True, False])
def test_a_text_that_is_no_label_is_no_fault(ask, stream):
    """The server answered, and the prompt may be the reason: the next call is made. Of other endpoints it is a fault as before."""
    said = sse_reply(chat_events(["It is ", "positive."])) if stream else whole_reply(content="It is positive.")
    with CannedServer(said) as server:
        answers = ask.infer(endpoint(server.url, labels=["positive", "negative"]), *["hi"] * 4)
        assert [routes.error(one) for one in answers] == [
            "BadReply: the answer, text of 15 characters, is none of the 2 labels"
        ] * 4
        assert len(server.requests) == 4
    with CannedServer(http_reply(b'{"value": "It is positive."}', headers=JSON)) as server:
        ask.infer(PlainJson(server.url, labels=["positive", "negative"]), *["hi"] * 4)
        assert len([one for one in server.requests if one.startswith(b"POST")]) == 3


@pytest.mark.parametrize("said", ["Positive.", "**Positive**", " POSITIVE! ", '"positive"'])
def test_texts_that_are_a_label(ask, said):
    """But for case, marks around it and space; the answer is the label."""
    with CannedServer(whole_reply(content=said)) as server:
        (answer,) = ask.infer(endpoint(server.url, labels=["positive", "negative"]), "hi")
        assert (answer.value, answer.source) == ("positive", "cloud")


@pytest.mark.parametrize(
    ("finish", "why"),
    [
        *[(word, word.lower()) for word in ("model_length", "MAX_TOKENS", "abort", "safety", "insufficient_system_resource")],
        ("sk-123", "other"), ("hi", "other"), *[(word, "") for word in ("stop", "STOP", "eos_token", "end_turn", "tool_calls", "")],
    ],
)  # fmt: skip
def test_why_an_answer_ended(finish, why):
    """Whatever is no end of its own is said, in pieces and at once."""
    for reply in (deltas({"content": "Pa"}, finish=finish), whole_reply(finish, content="Pa")):
        with CannedServer(reply) as server:
            (answer,) = Asked("threads").infer(endpoint(server.url), "hi")
        assert (answer.value, answer.degraded, answer.truncated) == ("Pa", False, why)
        assert answer.reason.endswith(f" {why}") == bool(why)
    with CannedServer(whole_reply(None, content="Pa")) as server:
        assert Asked("threads").infer(endpoint(server.url), "hi")[0].truncated == ""


@pytest.mark.parametrize(
    "end",
    [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
        {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "ERROR", "error": {"message": "x"}}]},
        b'{}\n\nevent: error\ndata: {"message": "overloaded"}', b'{}\n\nevent: error\ndata: {"error": {"message": "x"}}',
        b"{}\n\nevent: error\ndata: overloaded",
    ],
    ids=["reason", "reason with error", "message", "error", "text"],
)  # fmt: skip
def test_an_error_at_the_end_is_a_cut(ask, end):
    """What had come is a stream's answer; `infer` has the edge's whole one, or what had come where there is no other."""
    with CannedServer(sse_reply([*PARIS[:2], end])) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.value, answer.degraded, answer.truncated) == (["Pa"], "Pa", True, "cut")
        (answer,) = ask.infer(endpoint(server.url), "hi")
        assert (answer.value, answer.degraded) == ("local", True)
        (answer,) = ask.infer(endpoint(server.url), "hi", edge=None)
        assert (answer.value, answer.degraded, answer.truncated) == ("Pa", True, "cut")


def test_an_error_at_the_end_of_an_answer_that_came_at_once(ask):
    """As in a stream."""
    with CannedServer(whole_reply("error", content="Pa")) as server:
        assert ask.stream(endpoint(server.url))[0] == ["local"]
        (answer,) = ask.infer(endpoint(server.url), "hi", edge=None)
        assert (answer.value, answer.degraded, answer.truncated) == ("Pa", True, "cut")


def test_an_answer_that_says_nothing_is_paid_for():
    """By its tokens: what a model thought, too."""
    usage = {"prompt_tokens": 7, "completion_tokens": 90}
    end = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": "length"}], "usage": usage}
    whole = {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "length"}], "usage": usage}
    for reply in (sse_reply([end]), http_reply(json.dumps(whole).encode(), headers=JSON)):
        with CannedServer(reply) as server:
            _, answer = Asked("threads").stream(endpoint(server.url, usd_per_million_output_tokens=1e6))
        assert (answer.value, answer.trace["events"][-1]["usd"]) == ("local", 90)


def test_white_space_before_a_text_is_part_of_it(ask):
    """It is shown with the first piece that is more, or before the call of a tool."""
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": "{}"}}
    with CannedServer(
        deltas({"content": "\n"}, {"content": " "}, {"content": "Pa"}, {"content": "\n"}, {"content": "ris"})
    ) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.value) == (["\n Pa", "\n", "ris"], "\n Pa\nris")
    with CannedServer(deltas({"content": "\n"}, {"tool_calls": [call]}, finish="tool_calls")) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.value, answer.source) == (["\n"], "\n", "cloud")


def test_a_refusal_is_what_the_model_says(ask):
    """In pieces and whole, where there is no other text; the outputs have it as the whole answer has it."""
    for reply in (deltas({"refusal": "I can"}, {"refusal": "not."}), whole_reply(refusal="I cannot.")):
        with CannedServer(reply) as server:
            pieces, answer = ask.stream(endpoint(server.url))
            assert (pieces, answer.value, answer.source, answer.degraded) == (["I cannot."], "I cannot.", "cloud", False)
            assert answer.outputs["choices"][0]["message"]["refusal"] == "I cannot."


def test_a_message_beside_what_is_new_is_not_added_to_it(ask):
    """Some servers repeat all so far beside each piece, which may be empty; without a piece the message is the text."""
    said = [("Pa", "Pa"), ("ris", "Paris")]
    events = [
        {"choices": [{"index": 0, "delta": {"content": new}, "message": {"content": all_of_it}}]} for new, all_of_it in said
    ]
    end = {"index": 0, "delta": {}, "message": {"content": "Paris"}, "finish_reason": "stop"}
    with CannedServer(sse_reply([*events, {"choices": [end]}])) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert (pieces, answer.value) == (["Pa", "ris"], "Paris")
    without = {name: part for name, part in end.items() if name != "delta"}
    for whole in (without, {**end, "delta": None}):
        with CannedServer(sse_reply([{"choices": [whole]}])) as server:
            assert ask.stream(endpoint(server.url))[0] == ["Paris"]


def test_thoughts_are_progress_and_no_pieces(ask):
    """A model that thinks first has begun; what it thinks is in the outputs."""
    thoughts = [{"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}] * 3
    with CannedServer(sse_reply([*thoughts, *PARIS])) as server:
        pieces, answer = ask.stream(endpoint(server.url))
        assert pieces == ["Pa", "ris"]
        assert answer.outputs["choices"][0]["message"]["reasoning_content"] == "hm" * 3


def test_thoughts_under_other_keys(ask):
    """As OpenRouter, newer vLLM and Ollama have them, are in the outputs, put together as they would have come whole."""
    text, secret = {"type": "reasoning.text", "index": 0}, {"type": "reasoning.encrypted", "data": "c2VjcmV0", "index": 1}
    parts = [{**text, "text": "I "}, {**text, "text": "think", "signature": None}, {**text, "signature": "sig-1"}]
    given = [{"reasoning": part.get("text"), "reasoning_details": [part]} for part in parts]
    again = [{"reasoning_details": [one]} for one in (secret, {**secret, "data": "YQ=="}, {**text, "text": "so"})]
    with CannedServer(deltas(*given, *again, {"content": "Hi."})) as server:
        message = ask.stream(endpoint(server.url))[1].outputs["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("Hi.", "I think")
    whole = {**text, "text": "I think", "signature": "sig-1"}
    assert message["reasoning_details"] == [whole, secret, {**secret, "data": "YQ=="}, {**text, "text": "so"}]


def test_a_whole_answer_whose_stream_does_not_end(ask, monkeypatch):
    """After `finish_reason` what is missing is not waited for long, and no fault: a count of tokens, `[DONE]`, nonsense."""
    monkeypatch.setattr(speaking, "LINGER_S", 0.3)
    whole = [CHUNKED, *(chunk(event(one)) for one in PARIS[:-1])]
    for rest in ([None], [chunk(b"data: nonsense\n\n"), None]):
        with CannedServer([*whole, *rest]) as server:
            cloud = endpoint(server.url, usd_per_million_input_tokens=1e6, usd_per_million_output_tokens=1e6)
            pieces, answer = ask.stream(cloud)
            assert (pieces, answer.value, answer.degraded, answer.truncated) == (["Pa", "ris"], "Paris", False, "")
            sent = len(server.requests[-1].partition(b"\r\n\r\n")[2])
            assert answer.trace["events"][-1]["usd"] == pytest.approx(sent + 2)  # the bytes of the request, and the pieces
            server.wait_for(lambda: server.hung_up == 1)


def test_httpx_carries_it(ask):
    """A client of the application's: the same pieces, stalls and partings. In threads it takes one limit for every read."""
    pytest.importorskip("httpx")
    with CannedServer(GOOD) as server:
        assert ask.stream(endpoint(server.url, client="httpx"))[0] == ["Pa", "ris"]
    with CannedServer([*FIRST, None]) as server:
        pieces, answer = ask.stream(endpoint(server.url, client="httpx", timeout_s=3.0, between_s=3.0))
        assert (pieces, answer.truncated) == (["Pa"], "cut")
        server.wait_for(lambda: server.hung_up == 1)


def test_many_at_once():
    """Sixty-four streams, each with its own pieces, on one event loop and in threads."""

    def reply(request):
        text = json.loads(request.partition(b"\r\n\r\n")[2])["messages"][0]["content"]
        return sse_reply(chat_events([f"{text}-{i} " for i in range(5)]))

    with CannedServer(reply) as server:
        cloud = endpoint(server.url)

        async def one(router, x):
            async with router.stream(x) as stream:
                return "".join([piece async for piece in stream])

        async def main():
            async with AsyncRouter(None, cloud) as router:
                return await asyncio.gather(*(one(router, str(i)) for i in range(64)))

        expected = ["".join(f"{x}-{i} " for i in range(5)) for x in range(64)]
        assert asyncio.run(main()) == expected
        with Router(None, cloud) as router, ThreadPoolExecutor(16) as pool:

            def listen(x):
                with router.stream(str(x)) as stream:
                    return "".join(stream)

            assert list(pool.map(listen, range(64))) == expected
            assert [answer.value for answer in router.infer_many([str(x) for x in range(8)])] == expected[:8]


POLICY = """
mode = "only_cloud"
[cloud]
protocol = "openai"
url = "{url}"
model = "large"
api_key = {{ env = "CHAT_KEY" }}
system = "be brief"
max_tokens = 50
stop = ["END"]
between = "20s"
logprobs = true
request = {{ top_p = 0.5 }}
response_format = {{ type = "json_object" }}
usd_per_million_input_tokens = 1.0
"""


def test_a_policy(tmp_path, monkeypatch):
    """`protocol = "openai"`; each key reaches the server."""
    monkeypatch.setenv("CHAT_KEY", "the-key-of-this-test")
    with CannedServer(GOOD) as server:
        file = tmp_path / "policy.toml"
        file.write_text(POLICY.format(url=server.url))
        with Router.from_policy(file) as router:
            assert router.infer("hi").value == "Paris"
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1")
        assert b"Authorization: Bearer the-key-of-this-test" in head
        assert json.loads(body) == {
            "model": "large", "max_tokens": 50, "stop": ["END"], "top_p": 0.5, "response_format": {"type": "json_object"},
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
            "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1,
        }  # fmt: skip
        for wrong, said in (
            ('protocol = "opnai"', 'did you mean "openai"'), ("max_token = 3", 'did you mean "max_tokens"'), ("stop = []", "stop"),
            ("binary = true", 'only a cloud with protocol = "openinference" has it'),
        ):  # fmt: skip
            text = 'mode = "only_cloud"\n[cloud]\nurl = "http://h/v1"\nmodel = "m"\n'
            file.write_text(text + (wrong if "protocol" in wrong else f'protocol = "openai"\n{wrong}'))
            with pytest.raises(PolicyError, match=re.escape(said)):
                Router.from_policy(file)


# --- whatever comes

JUNK = [None, True, 0, -1, 1e308, -1e308, "", "x", [], {}, [None], {"a": 1}, [[]], 10**30]
WHOLE = {
    "choices": [
        {
            "index": 0, "message": {"role": "assistant", "content": "Paris", "tool_calls": []}, "finish_reason": "stop",
            "logprobs": {"content": [{"token": "a", "logprob": -0.1}]},
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}  # fmt: skip
TEXT = {"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.3]}, "finish_reason": "length"}]}


def test_many_calls_of_tools(ask):
    """Are no answer: a server could make each part cost more than the one before."""
    parts = [{"index": i, "id": f"c{i}", "function": {"name": "f", "arguments": "{}"}} for i in range(257)]
    for most, source in ((256, "cloud"), (257, "edge")):
        with CannedServer(deltas(*({"tool_calls": [part]} for part in parts[:most]), finish="tool_calls")) as server:
            assert ask.stream(endpoint(server.url))[1].source == source


@pytest.mark.parametrize("more", ["0,", "}"])
def test_arguments_in_many_pieces_cost_no_more_than_some_readings(monkeypatch, more):
    """With the name in each piece, each could be the beginning of another call: whether it is, is not read in all of them."""
    calls, size, loads = ToolCalls(), [], json.loads
    calls.add([{"index": 0, "function": {"name": "f", "arguments": '{"a": [' + "0," * 30_000}}])
    monkeypatch.setattr(json, "loads", lambda text: size.append(len(text)) or loads(text))
    for _ in range(1000):
        calls.add([{"index": 0, "function": {"name": "f", "arguments": more}}])
    assert sum(size) <= 1_200_000
    assert len(calls.message()["tool_calls"]) == 1


CALLS = {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}}]}
FAILS = {"error": {"message": "x", "code": 400, "type": "t"}}


def mutated(value, chance):
    """The same JSON with a part of it replaced by junk, or left out."""
    value, at, key = json.loads(json.dumps([value])), None, None
    inner = value
    while isinstance(inner, dict | list) and inner and (at is None or chance.random() < 0.8):
        at, key = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = at[key]
    if chance.random() < 0.7 or at is value:
        at[key] = chance.choice(JUNK)
    else:
        del at[key]
    return value[0]


def test_whatever_comes_is_an_answer_or_an_error_of_the_endpoint():
    """Mutations of good replies, as JSON and as bytes: no other exception, and no answer that is not one."""
    chance = random.Random(3)
    clouds = [
        HttpBackend("cloud", OpenAIChat("http://h/v1", model="m", logprobs=logprobs, confidence=rule), "msp", None)
        for logprobs, rule in ((True, "quantile"), (True, "mean"), (False, "first"))
    ]
    answers = 0
    for _ in range(6000):
        if chance.random() < 0.4:
            kind, body = "application/json", json.dumps(mutated(mutated(WHOLE, chance), chance)).encode()
        else:
            events = [*chance.choice([PARIS, [TEXT], [CALLS, PARIS[-2]], [FAILS]])]
            events[chance.randrange(len(events))] = mutated(chance.choice(events), chance)
            kind, body = "text/event-stream", b"".join(map(event, events)) + chance.choice([b"", b"data: [DONE]\n\n"])
        if chance.random() < 0.3:
            at = chance.randrange(len(body))
            body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
        cloud = chance.choice(clouds)
        try:
            (answer,) = cloud.endpoint.decode(Reply(chance.choice([200, 200, 400, 429, 500]), {"content-type": kind}, body), 1)
            (read,) = cloud.reader.read_many([answer], 1)
        except CloudError:
            continue
        answers += 1
        assert type(read.value) is str
        assert read.confidence is None or read.confidence != read.confidence or 0 <= read.confidence <= 1
        assert truncated(read.outputs) in {"", "cut", "length", "content_filter", "other"}
    assert answers > 300


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10**12, "completion_tokens": 1}, {"completion_tokens": 10**15}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_usage_beyond_reason(usage, stream):
    """Counts as estimated: it does not spend a day's limit."""
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    events = sse_reply([*PARIS[:-1], {"choices": [], "usage": usage}])
    with CannedServer(events if stream else http_reply(json.dumps(body).encode(), headers=JSON)) as server:
        prices = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 1.0}
        cloud = OpenAIChat(server.url, model="m", stream=stream, retries=0, **prices)
        with Router(None, cloud, limits=Limits(usd_per_day=1.0)) as router:
            assert [router.infer(x).source for x in ("a", "b")] == ["cloud", "cloud"]


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 7}, {"prompt_tokens": 7, "completion_tokens": None}, {"prompt_tokens": 0, "completion_tokens": 0}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_usage_without_the_answer(usage, stream):
    """Counts as estimated from the text: a day's limit holds with such a server, too."""
    body = {"choices": [{"message": {"content": "word " * 100}, "finish_reason": "stop"}], "usage": usage}
    events = sse_reply([*chat_events(["word "] * 100), {"choices": [], "usage": usage}])
    with CannedServer(events if stream else http_reply(json.dumps(body).encode(), headers=JSON)) as server:
        cloud = OpenAIChat(server.url, model="m", stream=stream, retries=0, max_tokens=100, usd_per_million_output_tokens=1e4)
        with Router(None, cloud, limits=Limits(usd_per_day=1.5)) as router:
            router.infer("a")
            assert router.stats().usd_today >= 1.0
            with pytest.raises(Held, match="usd_per_day"):
                router.infer("b")


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 109}, {"prompt_tokens": 7, "total_tokens": 109}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_that_only_the_total_counts_are_paid_for(usage, stream):
    """Some providers leave them out of `completion_tokens`: 102 tokens here, of which 2 are the answer's text."""
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    events = sse_reply([*PARIS[:-1], {"choices": [], "usage": usage}])
    with CannedServer(events if stream else http_reply(json.dumps(body).encode(), headers=JSON)) as server:
        cloud = OpenAIChat(server.url, model="m", stream=stream, retries=0, max_tokens=500, usd_per_million_output_tokens=1e6)
        with Router(None, cloud) as router:
            assert router.infer("a").trace["events"][-1]["usd"] == pytest.approx(102)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_got_no_reply_is_paid_for(stream):
    """The server had it, and may have answered: all that was expected stays booked."""
    with CannedServer(b"", close=True) as server:
        cloud = OpenAIChat(server.url, model="m", stream=stream, retries=0, max_tokens=50, usd_per_million_output_tokens=1e6)
        with Router(unsure, cloud, limits=Limits(usd_per_day=60), threshold=0.5) as router:
            answers = [router.infer("hi") for _ in range(2)]
            assert [routes.code(answer) for answer in answers] == ["unreachable", "usd_per_day"]
            assert len(server.requests) == 1


@pytest.mark.parametrize("status", [203, 205, 206])
def test_a_success_that_a_proxy_changed(status):
    """Is none: what it has is not the whole answer of the endpoint."""
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    with CannedServer(http_reply(json.dumps(body).encode(), status=status, headers=JSON)) as server, ExitStack() as stack:
        router = stack.enter_context(Router(None, OpenAIChat(server.url, model="m", stream=False, retries=0)))
        with pytest.raises(Refused, match=str(status)):
            router.infer("a")
