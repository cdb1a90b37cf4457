"""Cloud backend over HTTP: sends inputs to an endpoint, in several calls if it takes few rows, and decodes its replies.

Also health checks, streams of pieces, and the identities that cache and certificates are bound to. The client is made at first
use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.cloud import function_backend_and_reply_checks as functions
from edgeroute.cloud import stream_protocol_and_attempts as speeches
from edgeroute.cloud.encoding_and_edge_answers import Ladder, split_answers
from edgeroute.cloud.function_backend_and_reply_checks import SENDS_EDGE, BatchCollector, FunctionBackend, ReplyReader
from edgeroute.confidence.scores import Score
from edgeroute.core.performance_estimates_and_encoding_choice import pick
from edgeroute.core.policy_egress_and_options import INF, Side, Terms
from edgeroute.core.stream_walk import Pieces, one_piece
from edgeroute.core.walk import Prediction
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.system.fork_safety import AbandonedRuns
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.types import StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.attempt_accounting_and_turns import Exchange
    from edgeroute.cloud.endpoint import Talk
    from edgeroute.cloud.endpoint_client import CallSender, HttpClient
    from edgeroute.cloud.endpoint_guard import Guard
    from edgeroute.cloud.stream_protocol_and_attempts import AnswerPiece, AnswerStream
    from edgeroute.http.messages_addresses_and_secrets import Call


class HttpBackend(AbandonedRuns):
    """Backend of an endpoint over HTTP: encodes inputs, calls, and decodes replies, whole or in pieces; makes its client late."""

    side: Side = "cloud"
    alone_async = False
    guard: Guard

    def __init__(self, name: str, endpoint: Any, score: str | Score, labels: tuple[str, ...] | None) -> None:
        self.name, self.endpoint, self.where = name, endpoint, str(endpoint.where)
        self.origin = f"{type(endpoint).__name__} {self.where}"
        self.terms: Terms = endpoint.address.terms
        self.patience_s: float = endpoint.address.timeout_s
        self.reader = ReplyReader(score, labels=endpoint.labels or labels, kind=endpoint.kind, name=name)
        super().__init__(functions.MAX_ABANDONED)
        self._speak: Callable[[Any], AnswerStream[Any]] | None = getattr(endpoint, "speak", None)
        self.reader.speaks = self._speak is not None
        payload = getattr(endpoint, "payload", None)
        self._ladder: Ladder | None = payload if hasattr(payload, "rungs") else None
        # Encodes inputs for `run_async`, off the event loop; None: that takes no time.
        self.pack: Callable[[list[Any], Exchange], list[Any]] | None = None if payload is None else self._pack
        self.sends_edge: bool = getattr(endpoint, "send_edge", False)
        # Rows of the largest call that the server took after it had refused more; None: it has refused none.
        self._accepted_rows: int | None = None
        self._client: HttpClient | None = None
        self._closed = False
        self.reader.output_name = lambda: getattr(endpoint, "output", None) or next(iter(getattr(endpoint, "outputs", ())), "")
        self.reader.served = lambda: (getattr(endpoint, "served_labels", None), getattr(endpoint, "served_kind", None))

    def _pack(self, inputs: list[Any], exchange: Exchange) -> list[Any]:
        """Return the inputs encoded, as the endpoint sends them.

        Of a ladder (codecs from best to smallest), the best one is taken that is predicted to arrive by the time when the answer
        is wanted; its name is stored in the exchange, whose end then tells the ladder whether it was late. Without a deadline it
        is the best one, otherwise none above the one that was late before.
        """
        if (ladder := self._ladder) is None:
            return self.endpoint.pack(inputs)  # type: ignore[no-any-return]
        link, wanted_by = self.guard.rules.link, exchange.wanted_by

        best = 0 if wanted_by == INF else ladder.best()

        def choose(sizes: Sequence[float]) -> int:
            return pick([link.predicted_s(size) for size in sizes], wanted_by - monotonic(), best)

        encoded: list[Any] = self.endpoint.pack(inputs, choose)
        (first, *_), _ = split_answers(encoded)
        exchange.codec = getattr(first, "by", "") or ladder.floor.name
        exchange.ended = partial(ladder.record_call, ladder.index(exchange.codec))
        return encoded

    def above_floor(self, codec: str) -> bool:
        """Return True if inputs sent by that rung of a ladder differ from those that certificates are about."""
        return self._ladder is not None and codec not in {"", self._ladder.floor.name}

    @property
    def load(self) -> Callable[[], object] | None:
        """Imports and constructs the client; None: done already."""
        return None if self._client is not None else lambda: self.client

    @property
    def client(self) -> HttpClient:
        """HTTP client, imported and constructed at first use; first uses at once share one.

        Closed at once if the backend was closed.
        """
        if (client := self._client) is None:
            new_client = import_late("edgeroute.cloud.endpoint_client").HttpClient(self.endpoint)
            # Atomic: first calls at once share one, which is closed.
            client = self._client = vars(self).setdefault("_made", new_client)
            if self._closed:  # a reload has dropped it while a request was on its way here
                client.close()
        return client

    @property
    def keeps_time(self) -> bool:
        """True if `run` ends by its instant whatever happens, so that no thread is needed for that.

        No function of the application takes part, instruments included, no disk is waited for, and the connections are
        edgeroute's own.
        """
        client, guard = self._client, self.guard
        if client is None or not client.keeps_time or guard.journal is not None or guard.spending.durable:
            return False
        if guard.report is not None and not guard.report.prompt:
            return False
        declared = "prompt" in vars(type(self.endpoint))  # its class says so itself: a subclass may do otherwise
        return declared and self.endpoint.prompt and not callable(self.reader.score)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of bodies sent and received so far, retries included."""
        return (0, 0) if self._client is None else (self._client.sent, self._client.received)

    def calls(self, inputs: int) -> int:
        """Return the number of calls for so many inputs: one, or more if the server's largest batch is smaller."""
        most = None if inputs == 1 else self._most_rows()
        return 1 if most is None else -(-inputs // most)

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:
        """Return the predictions for inputs, blocking, in as many calls as the server's largest batch asks for.

        If there is a ladder of codecs, encodes the inputs first. In place of a prediction there may be the exception of its input
        (see `BatchCollector`). Raises CloudError if there is no answer at all. Ends by the instant `until`, or by a stop request.
        """
        if self._ladder is not None:
            inputs = self._pack(inputs, exchange)
        client = self._client or self.client
        return settle(self._run(client, client.in_thread(cancel), inputs, until, exchange))

    async def run_async(self, inputs: list[Any], until: float, exchange: Exchange) -> list[Prediction]:
        """Return the predictions for inputs, on the event loop; see `run`. They are encoded already, by `pack`."""
        client = self._client or self.client
        return await self._run(client, client.on_loop, inputs, until, exchange)

    async def _run(
        self, client: HttpClient, way: CallSender, inputs: list[Any], until: float, exchange: Exchange
    ) -> list[Prediction]:
        """Return the predictions for inputs, in this thread or on the event loop, in as many calls as are needed.

        A server that streams answers gets one input a call. An exception about the inputs of one of several calls takes the place
        of their predictions (see `BatchCollector`). A batch size that the server took after refusing a larger one is stored.
        """
        if self._speak is None and len(inputs) == 1:
            return self.reader.read_many(await client.ask(way, self.endpoint.talk(inputs), until, exchange), 1)
        most = 1 if self._speak is not None else self._most_rows() or len(inputs)
        if most < len(inputs) and self._speak is None:
            until = min(until, monotonic() + self.patience_s)
        rows, posts = BatchCollector(exchange, self.guard, inputs, until, most), count()
        for part in rows:
            with rows:
                if self._speak is not None:
                    outputs: Any = [
                        await speeches.run(client, way, partial(self._speak, part[0]), rows.until(), exchange, posts=posts)
                    ]
                else:
                    outputs = await client.ask(way, self.endpoint.talk(part), rows.until(), exchange, posts)
                rows.extend(self.reader.read_many(outputs, len(part)))
        if rows.most < most and not rows.refused:
            self._accepted_rows = rows.most
        return rows.found

    def _most_rows(self) -> int | None:
        """Return the maximum inputs of one call; None: no limit is known.

        It is 1 for a protocol without batches, else the less of the server's own limit and the size that it took after refusing
        more.
        """
        if getattr(self.endpoint, "one_by_one", False):
            return 1
        limits = [most for most in (getattr(self.endpoint, "most_rows", None), self._accepted_rows) if most is not None]
        return min(limits, default=None)

    def stream(self, x: Any, until: float, cancel: StopToken | None, exchange: Exchange) -> Pieces:
        """Yield the answer's pieces, or the whole answer if the endpoint does not stream, and return the prediction; blocks.

        Closing it early closes the connection. Raises CloudError if it fails.
        """
        if self._speak is None:
            return (yield from one_piece(self.run([x], until, cancel, exchange)[0]))
        pieces = speeches.stream_call(self.client, partial(self._speak, x), until, exchange, cancel)
        try:
            while True:
                yield next(pieces).value
        except StopIteration as end:
            return self.reader.read_many([end.value], 1)[0]
        finally:
            pieces.close()

    async def stream_async(self, x: Any, until: float, exchange: Exchange, show: Callable[[Any], object]) -> Prediction:
        """Call `show` with each piece of the answer, or once with all of it if the endpoint does not stream.

        Return the prediction.
        """
        if self._speak is None:
            (prediction,) = await self.run_async([x], until, exchange)
            show(prediction.value)
            return prediction

        async def shown(piece: AnswerPiece) -> None:
            show(piece.value)

        output = await speeches.run(self.client, self.client.on_loop, partial(self._speak, x), until, exchange, shown)
        return self.reader.read_many([output], 1)[0]

    def encode(self, x: Any, codec: str = "") -> Call | None:
        """Return the endpoint's call for one input, not sent, encoded by that rung (codec) of a ladder if one is named.

        None: the endpoint cannot encode it now, as its metadata is not known. Raises BadInput.
        """
        inputs = [x]
        if self._ladder is not None and codec:
            i = self._ladder.index(codec)
            inputs = self.endpoint.pack(inputs, lambda _: i)
        return self.endpoint.encode(inputs)  # type: ignore[no-any-return]

    def identify(self, exchange: Exchange) -> None:
        """Have the endpoint show that it is the model's server, blocking; do nothing if its protocol has no such check.

        Raise Unreachable if another program answers.
        """
        if (check := getattr(self.endpoint, "check_identity", None)) is not None:
            self.client.run(check(), INF, exchange)

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:
        """Send a call that `encode` made, blocking, with retries, and return the prediction in its reply; raise CloudError."""
        if (hear := getattr(self.endpoint, "hear", None)) is not None:
            output = settle(speeches.run(self.client, self.client.in_thread(None), partial(hear, call), until, exchange))
            return self.reader.read_many([output], 1)[0]

        def talk() -> Talk:
            return self.endpoint.decode((yield call), 1)

        return self.reader.read_many(self.client.run(talk(), until, exchange), 1)[0]

    def ready(self, until: float) -> None:
        """Ping the endpoint, blocking; raise CloudError if it is not ready.

        The ping is admitted whatever the breaker's state, and costs bytes.
        """
        with self.guard.probe() as exchange:
            self.client.run(self.endpoint.ping(), until, exchange)

    def health(self, until: float, exchange: Exchange) -> None:
        """Send a readiness check, blocking; raise CloudError if the endpoint is not ready."""
        self.client.run(self.endpoint.health(), until, exchange)

    def describe(self) -> str:
        """Return the status line for `check`."""
        return f"{self.where} is ready"

    def fingerprint(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - of the server's model, `served` of its endpoint tells
        """Return the fingerprint of the address and of the decoding."""
        return repr((self.where, self.endpoint.kind, self.reader.labels))

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return the identity of protocol, address, encoding and decoding, for the cache.

        The endpoint's own `identity` counts only if its class defines it: a subclass may behave otherwise.
        """
        kind = type(self.endpoint)
        settings = self.endpoint.identity(of) if "identity" in vars(kind) else of(self.endpoint)
        edge = (SENDS_EDGE,) if self.sends_edge else ()
        return repr((kind.__module__, kind.__qualname__, settings, self.fingerprint(of), *edge))

    def credentials(self) -> list[str]:
        """Return the identity with which requests are sent, hashed."""
        return self.endpoint.address.credentials()  # type: ignore[no-any-return]

    @property
    def variables(self) -> list[str]:
        """Environment variables with the credentials."""
        return self.endpoint.address.variables  # type: ignore[no-any-return]

    def codec(self, of: Callable[[Any], str]) -> str:
        """Return the fingerprint of the protocol, and of the card with the preprocessing, or the body, if there is one."""
        card = getattr(getattr(self.endpoint, "card", None), "path", None)
        details = self.endpoint.codec(of) if hasattr(self.endpoint, "codec") else "" if card is None else of(card)
        return type(self.endpoint).__name__ + (f":{details}" if details else "") + (f"+{SENDS_EDGE}" if self.sends_edge else "")

    def close(self) -> None:
        """Close idle connections now, and those in use at the end of their calls."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    async def aclose(self) -> None:
        """Close the connections, and wait for those of the running event loop."""
        self._closed = True
        if self._client is not None:
            await self._client.aclose()


# Target off the device. It runs within an exchange, which its guard opens for a permit.
CloudBackend: TypeAlias = FunctionBackend | HttpBackend
