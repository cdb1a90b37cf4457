"""OpenTelemetry: a span for each request, its edges' runs and its calls (`OpenTelemetry`); histograms (`Meters`); attributes.

Through `opentelemetry-api`. In order: attributes by OpenTelemetry's conventions; histograms; the instrument.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgeroute.core.error_codes_and_texts import Failure
from edgeroute.core.reason_text_and_trace_record import error_code
from edgeroute.errors import NoAnswer, PolicyError, Refused, RuntimeMissing
from edgeroute.record.instrument_interface import AttemptBegan, AttemptEnded, Instrument, RequestBegan, RequestEnded

__all__ = ["OpenTelemetry"]


# Attributes of spans and metrics, by OpenTelemetry's conventions for HTTP clients, RPC clients and generative AI. No I/O.

# Methods that HTTP knows; any other is `_OTHER`.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
# End of a path of OpenAI's API -> operation.
OPERATIONS = {"/chat/completions": "chat", "/completions": "text_completion", "/embeddings": "embeddings"}
Attributes = dict[str, Any]


def destination(began: AttemptBegan) -> Attributes:
    """Return the attributes of an attempt's destination: server, and protocol with method or service.

    The port by scheme if none is given. Nothing that differs from call to call. An unknown HTTP method counts as `_OTHER`.
    """
    sending = began.sending
    parts = urlsplit(sending.origin)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    attributes: Attributes = {"server.address": parts.hostname or "", "server.port": port}
    if sending.protocol == "grpc":
        service, _, method = sending.path.strip("/").rpartition("/")
        return attributes | {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    method = sending.method if sending.method in METHODS else "_OTHER"
    return attributes | {"http.request.method": method, "url.scheme": parts.scheme}


def model_attributes(began: AttemptBegan) -> Attributes:
    """Return the attributes of an HTTP attempt to call a language model, by a path of OpenAI's API; empty for any other.

    Empty too if the model is not known.
    """
    operation = next((operation for end, operation in OPERATIONS.items() if began.sending.path.endswith(end)), "")
    if not operation or began.sending.protocol == "grpc" or not began.sending.model:
        return {}
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": "openai", "gen_ai.request.model": began.sending.model}


def attempt_span(began: AttemptBegan) -> tuple[str, Attributes]:
    """Return the name of an attempt's span, and its attributes as it begins; the address has no query.

    The name is service and method over gRPC, operation and model of a language model, else the HTTP method.
    """
    where, text = destination(began), model_attributes(began)
    attributes = {**where, **text, "edgeroute.leg": began.target}
    if "rpc.system" in where:
        return f"{where['rpc.service']}/{where['rpc.method']}", attributes
    attributes["url.full"] = began.sending.origin + began.sending.path.partition("?")[0]
    if began.again:
        attributes["http.request.resend_count"] = began.again
    name = f"{text['gen_ai.operation.name']} {text['gen_ai.request.model']}" if text else where["http.request.method"]
    return name, attributes


def end_attributes(ended: AttemptEnded, began: AttemptBegan | None) -> Attributes:
    """Return an attempt's attributes at its end: sizes and status over HTTP, tokens, and the type of its error."""
    attributes: Attributes = {}
    if began is not None and began.sending.protocol == "http":
        attributes = {"http.request.body.size": ended.sent_bytes, "http.response.body.size": ended.received_bytes}
        if ended.status is not None:
            attributes["http.response.status_code"] = ended.status
    if ended.tokens is not None:
        attributes |= {"gen_ai.usage.input_tokens": ended.tokens.prompt, "gen_ai.usage.output_tokens": ended.tokens.answer}
    return attributes | error_attributes(ended)


def error_attributes(ended: AttemptEnded) -> Attributes:
    """Return the type of an attempt's error as attributes; empty: it had none."""
    if ended.cancelled:
        return {"error.type": "cancelled"}
    return {} if ended.error is None else {"error.type": error_type(ended.error)}


def error_type(error: BaseException | None) -> str:
    """Return an error's HTTP status as text; or else its code, or its class; `_OTHER` for None. Never its text."""
    if isinstance(error, Refused):
        return str(error.status)
    return Failure.of(error).code or ("_OTHER" if error is None else type(error).__qualname__)


def language(model: str, outputs: Any) -> Attributes:
    """Return the attributes of a run of a language model on the device, with its tokens.

    Empty unless the outputs are completions.
    """
    choices = outputs.get("choices") if isinstance(outputs, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return {}
    operation = "chat" if "message" in choices[0] else "text_completion"
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "edgeroute",
        "gen_ai.request.model": model,
    }
    usage = outputs.get("usage")
    for name, attribute in (("prompt_tokens", "input"), ("completion_tokens", "output")):
        count = usage.get(name) if isinstance(usage, Mapping) else None
        if isinstance(count, int) and not isinstance(count, bool):
            attributes[f"gen_ai.usage.{attribute}_tokens"] = count
    return attributes


# Histograms by OpenTelemetry's conventions: requests, calls over HTTP, and language models.

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
SHORT = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, *SECONDS]
LONG = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]


class Meters:
    """Histograms of durations and tokens.

    Args:
        provider: an OpenTelemetry `MeterProvider`.
    """

    def __init__(self, provider: Any) -> None:
        meter = provider.get_meter("edgeroute")

        def histogram(name: str, unit: str, text: str, bounds: Sequence[float]) -> Any:
            return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)

        self._requests = histogram("edgeroute.request.duration", "s", "Time from a call to its answer.", SHORT)
        self._calls = histogram("http.client.request.duration", "s", "Duration of HTTP client requests.", SECONDS)
        self._texts = histogram("gen_ai.client.operation.duration", "s", "GenAI operation duration.", LONG)
        self._tokens = histogram("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", TOKENS)

    def request(self, seconds: float, source: str, reason: str) -> None:
        """Record the duration of a request."""
        self._requests.record(seconds, {"edgeroute.source": source, "edgeroute.reason": reason})

    def attempt(self, ended: AttemptEnded, began: AttemptBegan | None) -> None:
        """Record the duration of an HTTP attempt, and for a language model also its duration and tokens as such.

        Attempts over gRPC, of functions, and whose beginning is not known are ignored.
        """
        if began is None or began.sending.protocol != "http":
            return
        where, text = destination(began), model_attributes(began)
        failed = error_attributes(ended)
        status = {} if ended.status is None else {"http.response.status_code": ended.status}
        self._calls.record(ended.took_s, {**where, **status, **failed})
        if not text:
            return
        text |= {name: where[name] for name in ("server.address", "server.port")}
        self._texts.record(ended.took_s, {**text, **failed})
        if ended.tokens is not None:
            for kind, count in (("input", ended.tokens.prompt), ("output", ended.tokens.answer)):
                self._tokens.record(count, {**text, "gen_ai.token.type": kind})


_missing: ImportError | None = None
try:
    from opentelemetry import context, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as e:
    _missing = e  # said once it is used: the names of edgeroute can be imported without it
EARLIER = 10_000  # number of ended requests whose spans are remembered, to link later spans to them
ROWS = 100  # maximum rows of a batch that its calls are linked to
S = 1_000_000_000


class OpenTelemetry(Instrument):
    """Spans for `Options(instruments=[OpenTelemetry()])`, by the conventions for HTTP clients and for generative AI.

    A span for each request, in the caller's; in it one for each run of an edge and each attempt to call an endpoint. A request
    sent later, from the outbox, has a span of its own, linked to the original request's. Spans have no input, answer, header or
    message of an error. Calls take the longer way through all stages, some tens of microseconds.

    Args:
        tracer_provider: provider of the spans; None: the global one, which does nothing until the program has set one up.
        meter_provider: provider of histograms of the durations and of tokens; None: no histograms.
        propagate: hosts of endpoints, as in `["api.example.com"]`, that are sent `traceparent` and `tracestate` (W3C), so that
            their spans join the trace; True: all of them; False: none. Baggage is sent to none.

    Raises:
        PolicyError: `propagate` is something else.
        RuntimeMissing: `opentelemetry-api` is not installed.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: Any = None,
        propagate: bool | Collection[str] = False,
    ) -> None:
        if _missing is not None:
            raise RuntimeMissing("opentelemetry-api is not installed: pip install 'edgeroute[otel]'") from _missing
        if isinstance(propagate, str) or not isinstance(propagate, bool | Collection):
            raise PolicyError('propagate= takes a list of hosts, as in propagate=["api.example.com"], or True for all')
        self.propagate = propagate if isinstance(propagate, bool) else frozenset(host.lower() for host in propagate)
        self._tracer = trace.get_tracer("edgeroute", tracer_provider=tracer_provider)
        self._meters = None if meter_provider is None else Meters(meter_provider)
        self._open: dict[str, _OpenSpan] = {}
        self._batches: dict[str, list[str]] = {}  # batch -> its rows that have not ended
        self._attempts: dict[int, tuple[Span, AttemptBegan]] = {}
        self._earlier: OrderedDict[str, SpanContext] = OrderedDict()
        self._traceparent = TraceContextTextMapPropagator()

    @property
    def under_way(self) -> int:
        """Number of requests, batches and attempts that have begun and not ended."""
        return len(self._open) + len(self._batches) + len(self._attempts)

    def request_began(self, began: RequestBegan) -> None:
        """Begin the request's span in the caller's current one, as of the instant at which it began. Note it for its batch.

        It stays open until `request_ended` or `request_left`.
        """
        begun_ns = _ns(began.begun)
        span = self._tracer.start_span("edgeroute.request", start_time=begun_ns, attributes={"edgeroute.request.id": began.id})
        if began.batch:
            span.set_attribute("edgeroute.batch.id", began.batch)
            self._batches.setdefault(began.batch, []).append(began.id)
        self._open[began.id] = _OpenSpan(span, begun_ns, context.get_current(), began.batch)

    def request_left(self, identity: str) -> None:
        """End the request's span as cancelled: nobody waits for an answer any more. A no-op if it is not open."""
        if (opened := self._take_open(identity)) is not None:
            opened.span.set_attribute("error.type", "cancelled")
            opened.span.end()

    def request_ended(self, ended: RequestEnded) -> None:
        """End the request's span with its outcome, add spans of its edges' runs, and record its duration.

        A request that is not open is ignored. Without an answer the span has the status error, and an event for each failed leg.
        Its context is remembered for later spans.
        """
        opened = self._take_open(ended.id)
        if opened is None:
            return
        span, answer, error = opened.span, ended.answer, ended.error
        code = error_code(error) if answer is None else answer.reason_code
        source = "none" if answer is None else answer.source
        if self._meters is not None:
            latency_s = (_ns(time.monotonic()) - opened.begun_ns) / S if answer is None else answer.latency_s
            self._meters.request(latency_s, source, code)
        if span.is_recording():
            span.set_attribute("edgeroute.reason", code)
            span.set_attribute("edgeroute.source", source)
            if answer is not None:
                span.set_attributes({
                    "edgeroute.leg": answer.leg, "edgeroute.degraded": answer.degraded, "edgeroute.final": answer.final,
                })  # fmt: skip
                self._add_leg_spans(opened, answer.trace, answer)
            else:
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR)
                for leg, of_leg in error.errors.items() if isinstance(error, NoAnswer) else ():
                    span.add_event("edgeroute.failed", {"edgeroute.leg": leg, "error.type": error_type(of_leg)})
        span.end()

    def _add_leg_spans(self, opened: _OpenSpan, record: Mapping[str, Any], answer: Any) -> None:
        """Create the spans of edges' runs, and events for clouds that have no span. A failed edge's span has the error's code."""
        edges = {leg["leg"] for leg in record.get("plan", ()) if leg["side"] == "edge"}
        started: dict[str, int] = {}
        inside = trace.set_span_in_context(opened.span)
        for event in record.get("events", ()):
            leg, what, at_ns = event["leg"], event["what"], opened.begun_ns + int(event["at_s"] * S)
            if what == "start":
                started[leg] = at_ns
            elif leg not in edges:
                if what != "accepted":
                    more = {"edgeroute.reason": event["code"]} if "code" in event else {}
                    opened.span.add_event(f"edgeroute.{what}", {"edgeroute.leg": leg, **more}, at_ns)
            elif what in {"accepted", "below", "kept", "failed", "cancelled", "timeout"} and leg in started:
                attributes = {"edgeroute.leg": leg, "edgeroute.result": what}
                if leg == answer.leg:
                    attributes |= language(leg, answer.outputs)
                span = self._tracer.start_span(f"edge {leg}", inside, start_time=started.pop(leg), attributes=attributes)
                if what == "failed":
                    span.set_attribute("error.type", event.get("code") or "_OTHER")
                    span.set_status(StatusCode.ERROR)
                span.end(at_ns)

    def attempt_began(self, began: AttemptBegan) -> Mapping[str, str] | None:
        """Begin the attempt's span. Return the headers that continue the trace if `propagate` has the host, else None.

        A probe has no span.
        """
        if not began.request:
            return None  # a probe
        name, attributes = attempt_span(began)
        span = self._span(name, began.request, attributes)
        self._attempts[began.number] = span, began
        host = (urlsplit(began.sending.origin).hostname or "").lower()
        if not (self.propagate if isinstance(self.propagate, bool) else host in self.propagate):
            return None
        headers: dict[str, str] = {}
        self._traceparent.inject(headers, trace.set_span_in_context(span))
        return headers

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """End the attempt's span, and record its duration and tokens. A cancelled attempt is no error.

        The span of a function, whose beginning is not reported, is created only now. Probes, and attempts whose span is not
        known, are ignored.
        """
        span, began = self._attempts.pop(ended.number, (None, None)) if ended.number else (None, None)
        if span is None:
            if ended.number or not ended.request:
                return
            begun_ns = time.time_ns() - int(ended.took_s * S)
            span = self._span(f"cloud {ended.target}", ended.request, {"edgeroute.leg": ended.target}, begun_ns)
        span.set_attributes(end_attributes(ended, began))
        if ended.error is not None and not ended.cancelled:
            span.set_status(StatusCode.ERROR)
        span.end()
        if self._meters is not None:
            self._meters.attempt(ended, began)

    def _span(self, name: str, request: str, attributes: Mapping[str, Any], begun_ns: int | None = None) -> Span:
        """Start the span of an attempt, within that of its request.

        For a batch it is in the caller's span, beside those of its rows, and linked to them; for a request that has ended it
        stands by itself, linked to its span if that is remembered.
        """
        links: list[Link] = []
        if (opened := self._open.get(request)) is not None:
            inside: Context = trace.set_span_in_context(opened.span, opened.caller)
        elif (rows := self._batches.get(request)) is not None:
            row_spans = [row_span for row in rows[:ROWS] if (row_span := self._open.get(row)) is not None]
            inside = row_spans[0].caller if row_spans else Context()
            links = [Link(row_span.span.get_span_context()) for row_span in row_spans]
        else:
            inside = Context()
            links = [Link(known)] if (known := self._earlier.get(request)) is not None else []
        attributes = {**attributes, "edgeroute.request.id": request}
        return self._tracer.start_span(name, inside, SpanKind.CLIENT, attributes, links, begun_ns)

    def outbox_changed(self, identity: str, what: str) -> None:
        """Add an event to the request's span if it is open; else for a late answer create a span linked to it, and end it.

        Other events of requests that have ended are ignored.
        """
        if (opened := self._open.get(identity)) is not None:
            opened.span.add_event(f"edgeroute.{what.replace(' ', '_')}")
        elif what == "late":
            links = [Link(known)] if (known := self._earlier.get(identity)) is not None else []
            attributes = {"edgeroute.request.id": identity}
            self._tracer.start_span("edgeroute.late", Context(), attributes=attributes, links=links).end()

    def _take_open(self, identity: str) -> _OpenSpan | None:
        """Remove and return the open span of a request that ends, also from its batch; remember its context. None if not open.

        At most `EARLIER` contexts are remembered.
        """
        opened = self._open.pop(identity, None)
        if opened is None:
            return None
        if opened.batch and (rows := self._batches.get(opened.batch)) is not None:
            rows.remove(identity)
            if not rows:
                del self._batches[opened.batch]
        self._earlier[identity] = opened.span.get_span_context()
        while len(self._earlier) > EARLIER:
            self._earlier.popitem(last=False)
        return opened


class _OpenSpan(NamedTuple):
    """Span of a request in progress."""

    span: Span
    begun_ns: int
    caller: Context
    batch: str


def _ns(instant: float) -> int:
    """Return the time of day of a monotonic instant, nanoseconds."""
    return time.time_ns() - int((time.monotonic() - instant) * S)
