"""Histograms of OpenTelemetry: of requests, of calls over HTTP, and of language models, by its conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeroute.record.instruments import AttemptBegan, AttemptEnded
from edgeroute.record.spans import asked, to, wrong

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
SHORT = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, *SECONDS]
LONG = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]


class Meters:
    """The histograms.

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
        """A request has ended."""
        self._requests.record(seconds, {"edgeroute.source": source, "edgeroute.reason": reason})

    def attempt(self, ended: AttemptEnded, began: AttemptBegan | None) -> None:
        """An attempt has ended; those of functions have no place in these conventions."""
        if began is None or began.sending.protocol != "http":
            return
        where, text = to(began), asked(began)
        failed = wrong(ended)
        status = {} if ended.status is None else {"http.response.status_code": ended.status}
        self._calls.record(ended.took_s, {**where, **status, **failed})
        if not text:
            return
        text |= {name: where[name] for name in ("server.address", "server.port")}
        self._texts.record(ended.took_s, {**text, **failed})
        if ended.tokens is not None:
            for kind, count in (("input", ended.tokens.prompt), ("output", ended.tokens.answer)):
                self._tokens.record(count, {**text, "gen_ai.token.type": kind})
