"""Spans, as the real SDK exports them, and what a real server sees of them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading

import pytest
import routes
from both import DOWN, GOOD, LONG, GatedServer, Link, Tasks, header, sure, unsure
from lazily import Later, needs

from edgeroute import (
    AsyncRouter,
    BadInput,
    Cache,
    Egress,
    Instrument,
    NoAnswer,
    OpenAIChat,
    OpenTelemetry,
    Options,
    Outbox,
    PlainJson,
    PolicyError,
    Router,
)
from edgeroute.testing import CannedServer, FakeCloud, chat_events, http_reply, sse_reply

needs("opentelemetry.sdk")
otel, sdk, export = Later("opentelemetry.trace"), Later("opentelemetry.sdk.trace"), Later("opentelemetry.sdk.trace.export")

SECRET = "a-text-of-the-user"


class Seen:
    """A provider, and the spans that it has exported."""

    def __init__(self):
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._ended = threading.Condition()
        self.provider, self.exporter = sdk.TracerProvider(), InMemorySpanExporter()
        self.provider.add_span_processor(export.SimpleSpanProcessor(self.exporter))
        tells = sdk.SpanProcessor()
        tells.on_end = self._on_end
        self.provider.add_span_processor(tells)

    def _on_end(self, _):
        with self._ended:
            self._ended.notify_all()

    def spans(self, name=None):
        """Those of that name, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if name in {None, span.name}]

    def wait_for(self, name):
        """Until one has ended."""
        with self._ended:
            assert self._ended.wait_for(lambda: self.spans(name), LONG)

    def one(self, name):
        """The only one."""
        (span,) = self.spans(name)
        return span


@pytest.fixture
def seen():
    made = Seen()
    yield made
    made.provider.shutdown()


@pytest.fixture
def make(kind, seen):
    """A router with spans, to be closed at the end; a function of (edge, cloud, options)."""
    with contextlib.ExitStack() as stack:

        def make(*args, propagate=False, instruments=(), **options):
            spans = OpenTelemetry(tracer_provider=seen.provider, propagate=propagate)
            return stack.enter_context(kind(*args, **{"threshold": 0.5} | options, instruments=[spans, *instruments]))

        yield make


def inside(child, parent):
    """Whether a span is the child of another one."""
    return child.parent is not None and child.parent.span_id == parent.context.span_id


def nothing_open(router):
    """Whether no span is left open."""
    (spans, *_) = router.engine.instruments.all
    return not spans.under_way


def test_a_deferred_request(make, seen):
    """The request's span has those of the edge's run and of the call in it; the server is told nothing, unless that is asked for."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(f"{server.url}/predict", retries=0))
        answer = router.infer(SECRET)
    request, edge, call = seen.one("edgeroute.request"), seen.one("edge edge"), seen.one("POST")
    assert inside(edge, request)
    assert inside(call, request)
    assert request.start_time <= edge.start_time <= edge.end_time <= call.start_time <= call.end_time <= request.end_time
    assert request.attributes == {
        "edgeroute.request.id": answer.id, "edgeroute.source": "cloud", "edgeroute.reason": "below", "edgeroute.leg": "cloud",
        "edgeroute.degraded": False, "edgeroute.final": True,
    }  # fmt: skip
    host, port = server.url.removeprefix("http://").split(":")
    assert call.kind is otel.SpanKind.CLIENT
    assert dict(call.attributes) == {
        "http.request.method": "POST", "server.address": host, "server.port": int(port), "url.scheme": "http",
        "url.full": f"{server.url}/predict", "http.response.status_code": 200, "edgeroute.leg": "cloud",
        "edgeroute.request.id": answer.id, "http.request.body.size": call.attributes["http.request.body.size"],
        "http.response.body.size": len(GOOD.partition(b"\r\n\r\n")[2]),
    }  # fmt: skip
    assert edge.attributes["edgeroute.result"] == "below"
    assert header(server.requests[0], "traceparent") is None
    assert nothing_open(router)


def test_a_request_in_the_span_of_its_caller(seen):
    """A server's span, say: in threads as in tasks."""
    tracer = seen.provider.get_tracer("caller")
    spans = OpenTelemetry(tracer_provider=seen.provider)
    with Router(unsure, FakeCloud(["cloud"]), threshold=0.5, options=Options(instruments=[spans])) as router:
        with tracer.start_as_current_span("caller"):
            router.infer("x")
        router.infer("y")

    async def ask():
        async with AsyncRouter(unsure, FakeCloud(["cloud"]), threshold=0.5, options=Options(instruments=[spans])) as router:
            with tracer.start_as_current_span("caller"):
                await asyncio.gather(router.infer("x"), router.infer("y"))

    asyncio.run(ask())
    callers, requests = seen.spans("caller"), seen.spans("edgeroute.request")
    assert [next((i for i, c in enumerate(callers) if inside(r, c)), None) for r in requests] == [0, None, 1, 1]
    assert len(seen.spans("cloud cloud")) == 4, "a function as the cloud has a span as well"


@pytest.mark.parametrize("propagate", [True, ["127.0.0.1"], ["elsewhere.example"]], ids=["all", "this host", "another host"])
def test_the_server_joins_the_trace(make, seen, propagate):
    """It is sent W3C's `traceparent`, with the call's span, where its host is to have it; each attempt has its own."""
    replies = iter([DOWN, GOOD])
    with CannedServer(lambda _: next(replies)) as server:
        make(unsure, PlainJson(server.url, retries=1), propagate=propagate).infer("x")
    sent = [header(request, "traceparent") for request in server.requests]
    assert len(sent) == 2
    if propagate == ["elsewhere.example"]:
        assert sent == [None, None]
        return
    calls = seen.spans("POST")
    for value, call in zip(sent, calls, strict=True):
        found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0[13]", value)
        assert (int(found[1], 16), int(found[2], 16)) == (call.context.trace_id, call.context.span_id)
    first, second = calls
    assert (first.attributes["http.response.status_code"], first.attributes["error.type"]) == (503, "503")
    assert (first.status.status_code, first.status.description) == (otel.StatusCode.ERROR, None)
    assert (second.attributes["http.request.resend_count"], second.status.status_code) == (1, otel.StatusCode.UNSET)


def test_only_what_was_sent_before_is_sent_again(make, seen):
    """Rows that are asked one by one, and a server's metadata before the first of them, are no repetitions."""
    replies = iter([DOWN, GOOD, GOOD])
    with CannedServer(lambda _: next(replies)) as server:
        router = make(unsure, PlainJson(server.url, retries=1))
        assert [answer.source for answer in router.infer_many(["x", "y"])] == ["cloud", "cloud"]
    assert [span.attributes.get("http.request.resend_count") for span in seen.spans("POST")] == [None, 1, None]


def test_baggage_stays_here(make, kind):
    """It may hold anything: it goes nowhere."""
    if kind is Tasks:
        pytest.skip("the context is that of the loop's thread")
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("user", SECRET))
    try:
        with CannedServer(GOOD) as server:
            make(unsure, PlainJson(server.url), propagate=True).infer("x")
    finally:
        context.detach(token)
    assert header(server.requests[0], "traceparent")
    assert SECRET.encode() not in server.requests[0]


def test_a_language_model(make, seen):
    """By the conventions for generative AI: what was asked of which model, and its tokens; of the device's, too."""

    def edge(_):
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        said = {"choices": [{"message": {"role": "assistant", "content": SECRET}, "finish_reason": "stop"}], "usage": usage}
        return (SECRET, 0.9, said) if edge.sure else (SECRET, 0.1, said)

    edge.sure = False
    with CannedServer(sse_reply(chat_events(["Because ", "of it."], usage=(12, 6)))) as server:
        router = make(edge, OpenAIChat(f"{server.url}/v1", model="gpt-large", api_key="sk-" + SECRET))
        router.infer(SECRET)
        with router.stream(SECRET) as stream:
            assert "".join(stream) == "Because of it."
    call, streamed = seen.spans("chat gpt-large")
    for span in (call, streamed):
        assert {name: value for name, value in span.attributes.items() if name.startswith("gen_ai")} == {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-large",
            "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 6,
        }  # fmt: skip
        assert span.attributes["http.response.status_code"] == 200
    assert SECRET not in "".join(span.to_json() for span in seen.spans())


def test_nothing_of_anybody_is_in_a_span(make, seen):
    """No input, answer, header, data class, server's word or exception's message."""
    reply = http_reply(b'{"error": "%s"}' % SECRET.encode(), status=400)
    with CannedServer(reply) as server:
        cloud = PlainJson(server.url, api_key=SECRET, headers={"X-Who": SECRET}, retries=0)
        router = make(lambda x: (SECRET, 0.1), cloud, egress=Egress(unknown_class="allow"))
        router.infer(SECRET, data_class=SECRET)

        def broken(_):
            raise RuntimeError(SECRET)

        failing = make(broken, FakeCloud([OSError(SECRET)]), offline="raise")
        with pytest.raises(NoAnswer):
            failing.infer(SECRET)
    text = "".join(span.to_json() for span in seen.spans())
    assert SECRET not in text
    failed = next(span for span in seen.spans("edgeroute.request") if span.status.status_code is otel.StatusCode.ERROR)
    assert {event.attributes["error.type"] for event in failed.events} == {"RuntimeError", "OSError"}


def test_what_was_not_asked(make, seen):
    """A cloud that is held has no call, and an event with the code instead."""
    with CannedServer(DOWN) as server:
        router = make(unsure, PlainJson(server.url, retries=0))
        while router.infer("x").reason_code != "breaker":
            pass
    (event,) = seen.spans("edgeroute.request")[-1].events
    assert (event.name, dict(event.attributes)) == ("edgeroute.failed", {"edgeroute.leg": "cloud", "edgeroute.reason": "breaker"})


def test_a_batch(make, seen):
    """A span a row; the one call of several is linked to all of them."""
    router = make(unsure, FakeCloud(["a", "b"]))
    router.infer_many(["x", "y"])
    rows = seen.spans("edgeroute.request")
    assert len({row.attributes["edgeroute.batch.id"] for row in rows}) == 1
    for call in seen.spans("cloud cloud"):
        assert {link.context.span_id for link in call.links} == {row.context.span_id for row in rows}
    assert nothing_open(router)


def test_an_answer_of_the_cache(make, seen):
    """It has no run and no call."""
    router = make(sure, None, cache=Cache())
    for _ in range(2):
        router.infer("x")
    first, second = seen.spans("edgeroute.request")
    assert (first.attributes["edgeroute.source"], second.attributes["edgeroute.source"]) == ("edge", "cache")
    assert len(seen.spans("edge edge")) == 1


def test_an_error(make, seen):
    """Of the caller."""

    def edge(_):
        raise BadInput(SECRET)

    with pytest.raises(BadInput):
        make(edge, None).infer("x")
    span = seen.one("edgeroute.request")
    assert (span.attributes["error.type"], span.status.status_code) == ("bad_input", otel.StatusCode.ERROR)


def test_a_foreign_error_with_a_method_of_that_name(make, seen):
    """Such as pydantic's `errors`: the span ends all the same."""

    class Invalid(Exception):
        def errors(self):
            """Of fields."""

    def edge(_):
        raise Invalid

    with pytest.raises(Invalid):
        make(edge, None).infer("x")
    assert seen.one("edgeroute.request").attributes["error.type"].endswith("Invalid")


def test_a_late_answer(make, seen, due):
    """The call goes on past its request's end, in the same trace; and what comes of it is linked to the request."""
    told = threading.Event()
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url, timeout_s=LONG, retries=0))
        router.on_late(lambda _: told.set())
        answer = router.infer("x", deadline=due(lambda: server.requests))
        assert answer.reason_code == "deadline"
        request = seen.one("edgeroute.request")
        assert not seen.spans("POST")
        server.open()
        assert told.wait(LONG)
    call, late = seen.one("POST"), seen.one("edgeroute.late")
    assert inside(call, request)
    assert call.end_time > request.end_time
    assert [link.context.span_id for link in late.links] == [request.context.span_id]
    assert nothing_open(router)


def test_a_call_from_the_outbox(make, seen, tmp_path, monkeypatch):
    """It is sent once the request has ended, in a trace of its own, linked to the request's."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S", 0.0)
    told = threading.Event()
    with CannedServer(GOOD) as server, Link("127.0.0.1", server.port) as link:
        router = make(
            unsure, PlainJson(link.url, retries=0), offline="queue", outbox=Outbox(tmp_path / "outbox.db", spread_s=1e6),
            propagate=True,
        )  # fmt: skip
        router.on_late(lambda _: told.set())
        link.down()
        answer = router.infer("x")
        assert routes.queued(answer) == routes.WAITING
        link.up(router)
        router.engine.queue.delivery.wake(now=True)  # not before the request has ended
        assert told.wait(LONG)
    request, (first, *_, second) = seen.one("edgeroute.request"), seen.spans("POST")
    assert [event.name for event in request.events if "queued" in event.name] == ["edgeroute.queued"]
    assert inside(first, request)
    assert second.parent is None
    assert [link.context.span_id for link in second.links] == [request.context.span_id]
    assert second.attributes["edgeroute.request.id"] == answer.id
    assert header(server.requests[0], "traceparent").split("-")[1] == f"{second.context.trace_id:032x}"


def test_the_loser_of_a_race(make, seen):
    """Its call ends as it is cancelled, within its request; it is no span that stays open."""
    with GatedServer(GOOD) as server:

        def slow(x):
            server.wait_for(lambda: bool(server.requests))
            return sure(x)

        router = make(slow, PlainJson(server.url, retries=0, timeout_s=LONG), hedge_after=0)
        assert router.infer("x").source == "edge"
        seen.wait_for("POST")
        call, request = seen.one("POST"), seen.one("edgeroute.request")
        assert inside(call, request)
        assert call.attributes["error.type"] == "cancelled"
        assert call.status.is_ok or call.status.is_unset, "it is no error"
        assert [event.name for event in request.events] == ["edgeroute.cancelled"]
        assert nothing_open(router)
        server.open()


def test_a_caller_that_leaves(seen):
    """A task that is cancelled, a stream that is closed: their spans end, and those of their calls."""
    spans = OpenTelemetry(tracer_provider=seen.provider)

    async def leave(server):
        async with AsyncRouter(
            unsure, PlainJson(server.url, retries=0), threshold=0.5, options=Options(instruments=[spans])
        ) as router:
            task = asyncio.ensure_future(router.infer("x"))
            await asyncio.to_thread(server.wait_for, lambda: bool(server.requests))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with GatedServer(GOOD) as server:
        asyncio.run(leave(server))
    assert seen.one("edgeroute.request").attributes["error.type"] == "cancelled"
    assert seen.one("POST").attributes["error.type"] == "cancelled"
    assert not spans.under_way

    def pieces(_):
        yield "one"
        yield "two"

    with Router(pieces, None, options=Options(instruments=[spans])) as router:
        with router.stream("x") as stream:
            next(iter(stream))
        assert not spans.under_way
    assert len(seen.spans("edgeroute.request")) == 2


def test_without_a_provider(make):
    """The API alone does nothing, at no harm, and no headers are sent."""
    with (
        CannedServer(GOOD) as server,
        Router(
            unsure, PlainJson(server.url), threshold=0.5, options=Options(instruments=[OpenTelemetry(propagate=True)])
        ) as router,
    ):
        assert router.infer("x").source == "cloud"
    assert header(server.requests[0], "traceparent") is None


def test_metrics(kind):
    """Durations and tokens, by the conventions, where a provider is given."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    with CannedServer(sse_reply(chat_events(["Because."], usage=(12, 6)))) as server:
        cloud = OpenAIChat(f"{server.url}/v1", model="large")
        with kind(unsure, cloud, threshold=0.5, instruments=[OpenTelemetry(meter_provider=meters)]) as router:
            router.infer("x")
    (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    found = {
        metric.name: {tuple(sorted(point.attributes.items())): point for point in metric.data.data_points}
        for metric in scope.metrics
    }
    meters.shutdown()
    assert found.keys() == {
        "edgeroute.request.duration", "http.client.request.duration", "gen_ai.client.operation.duration", "gen_ai.client.token.usage",
    }  # fmt: skip
    tokens = {dict(key)["gen_ai.token.type"]: point.sum for key, point in found["gen_ai.client.token.usage"].items()}
    assert tokens == {"input": 12, "output": 6}
    ((key, point),) = found["edgeroute.request.duration"].items()
    assert (dict(key), point.count) == ({"edgeroute.source": "cloud", "edgeroute.reason": "below"}, 1)


@pytest.mark.parametrize("wrong", ["api.example.com", 3, None])
def test_what_cannot_be_a_list_of_hosts(wrong):
    """A text would be taken for its letters."""
    with pytest.raises(PolicyError, match="propagate="):
        OpenTelemetry(propagate=wrong)


@pytest.mark.parametrize(
    "headers", [{"X-Trace": "a\r\nX-Evil: 1"}, {"X Trace": "a"}, {"Content-Length": "0"}, {"X-Trace": 3}], ids=str
)
def test_headers_that_no_instrument_sets(kind, headers, caplog):
    """They would make another request of it: it is sent without them, and that is logged."""

    class Odd(Instrument):
        def attempt_began(self, _):
            """Gives them."""
            return headers

    class Good(Instrument):
        def attempt_began(self, _):
            """Gives one."""
            return {"X-Good": "yes"}

    with CannedServer(GOOD) as server, kind(unsure, PlainJson(server.url), threshold=0.5, instruments=[Odd(), Good()]) as router:
        assert router.infer("x").source == "cloud"
    assert b"evil" not in server.requests[0].lower()
    assert server.requests[0].lower().count(b"content-length") == 1
    assert header(server.requests[0], "x-good") == "yes"
    assert "an instrument failed at attempt_began" in caplog.text


def test_a_provider_that_fails(kind, caplog):
    """It is logged, and costs no answer and no call."""

    class Broken:
        def get_tracer(self, *_, **__):
            return self

        def start_span(self, *_, **__):
            raise RuntimeError("the exporter's own")

    with CannedServer(GOOD) as server:
        spans = OpenTelemetry(tracer_provider=Broken(), propagate=True)
        with kind(unsure, PlainJson(server.url), threshold=0.5, instruments=[spans]) as router:
            assert router.infer("x").source == "cloud"
    assert "an instrument failed at attempt_began" in caplog.text


def test_ends_of_many(make, seen):
    """Hundreds of requests at a time: each call is in its own request's span, and none stays open."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url))
        futures = [router.start(str(i)) for i in range(100)]
        assert {future.result(LONG).source for future in futures} <= {"cloud", "edge"}
    requests = {span.attributes["edgeroute.request.id"]: span for span in seen.spans("edgeroute.request")}
    assert len(requests) == 100
    assert all(inside(call, requests[call.attributes["edgeroute.request.id"]]) for call in seen.spans("POST"))
    assert nothing_open(router)
