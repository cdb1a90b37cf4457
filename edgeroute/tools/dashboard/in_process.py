"""`Dashboard` of a router in the same process: an instrument that needs neither a trace file nor a state folder.

`AnswerFeed` is its queue of answers; `sources_of` and `state_of` read the router.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.core.reason_text_and_trace_record import finite
from edgeroute.errors import PolicyError
from edgeroute.record.instrument_interface import Instrument, RequestEnded
from edgeroute.record.trace import Trace
from edgeroute.system import wall_clock
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor, Sources
from edgeroute.tools.dashboard.request_window_and_replays import certificates_of, policy_summary
from edgeroute.tools.replay.replay_setup_and_result import Setup

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from edgeroute.cloud.endpoint_guard import Guard
    from edgeroute.router.base_router import BaseRouter
    from edgeroute.router.engine import Engine

MOST = 20_000  # most answers in the queue to the page; beyond that the oldest are dropped, and counted
CLOSE_S = 30.0  # longest wait for the server's end, seconds


class AnswerFeed:
    """Feed of the answers of a router in this process, as records of a trace. A request only appends to a queue."""

    name, error = "this process", ""

    def __init__(self) -> None:
        self._queue = deque[tuple[float, RequestEnded]](maxlen=MOST)
        self._added = self._taken = self.raised = 0
        self._records = list[Mapping[str, Any]]()
        self._trace = Trace(self._records.append)

    def add(self, ended: RequestEnded) -> None:
        """Queue an answer without its input, value and outputs, dropping the oldest of 20,000; of an exception only count it."""
        answer = ended.answer
        if answer is None:
            self.raised += 1
            return
        self._added += 1  # a race of threads may lose one, and then the count of lost answers is lower
        self._queue.append((wall_clock.now(), ended._replace(inputs=None, answer=answer.without_values())))

    def take(self) -> Iterable[Mapping[str, Any]]:
        """Yield and remove the queued answers, the oldest first, as records of a trace with the times at which they came."""
        queue = self._queue
        while queue:
            time, ended = queue.popleft()
            self._taken += 1
            self._trace.request_ended(ended)
            while self._records:
                yield {**self._records.pop(), "at": round(time, 3)}

    def lost(self) -> int:
        """Return the number of answers that came faster than they were read."""
        return max(0, self._added - self._taken - len(self._queue))

    def close(self) -> None:
        """Discard the queued answers."""
        self._queue.clear()


class Dashboard(ForkSafe, Instrument):
    """Instrument that shows a router of this process on a local page, until the router is closed.

    ```
    dashboard = Dashboard()
    router = Router(..., options=Options(instruments=[dashboard]))
    print(dashboard.serve(router))
    ```
    """

    _feed = per_process(AnswerFeed)  # a forked child serves no page
    _monitor: Monitor | None = initially(None)
    _stop: Callable[[], object] | None = initially(None)
    _thread: threading.Thread | None = initially(None)
    _closed = initially(False)

    def request_ended(self, ended: RequestEnded) -> None:
        """Queue the answer if the page is served, and ignore it otherwise."""
        if self._monitor is not None:
            self._feed.add(ended)

    def serve(
        self, router: BaseRouter, *, host: str = "127.0.0.1", port: int = 0, metrics: bool = False,
        routes: Iterable[BaseRoute] = (), **more: Any,
    ) -> str:  # fmt: skip
        """Serve the page in a thread, and return its URL, with the token, once it listens (30 s at most). Once for a router.

        From then on the router's answers are queued. After an error it may be called again.

        Args:
            router: a router that has this object among its `instruments`.
            host: address to listen on; the default accepts only this machine.
            port: port to listen on; 0 selects a free one.
            metrics: True serves `/metrics` for Prometheus, which sends the token as a bearer token.
            routes: further routes behind the same token.
            more: `token` and `hosts` of `edgeroute.tools.dashboard.web_app_and_metrics.serve`.

        Raises:
            PolicyError: the page is served already, or the address cannot be listened on, or not within 30 s.
            RuntimeMissing: starlette, uvicorn, or for metrics prometheus_client, is not installed.
        """
        from edgeroute.tools.dashboard.web_app_and_metrics import serve, serve_in_thread

        if self._monitor is not None:
            raise PolicyError("this dashboard is served already: create another one for another router")
        more["routes"] = [*routes, *([_metrics(router)] if metrics else [])]
        self._closed = False
        monitor = self._monitor = Monitor(self._feed, sources_of(router), "a router in this process")
        run = partial(serve, monitor, host=host, port=port, stops=self._set_stop, **more)
        try:
            self._thread, url = serve_in_thread("edgeroute-dashboard-page", run)
        except BaseException:
            self._monitor = None
            raise
        return url

    def _set_stop(self, stop: Callable[[], object]) -> None:
        """Store the function that stops the server; call it at once if the dashboard is closed already."""
        self._stop = stop
        if self._closed:  # closed before the server started
            stop()

    def close(self) -> None:
        """Stop the server and wait for its thread, 30 s at most, unless called in it. The router calls this when it is closed."""
        self._closed = True
        stop, self._stop = self._stop, None
        self._monitor = None
        if stop is not None:
            stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)


def _metrics(router: BaseRouter) -> BaseRoute:
    """Return the route of `/metrics`; raise `RuntimeMissing` without prometheus_client."""
    from starlette.routing import Route

    from edgeroute.tools.server.gateway import metrics_page

    return Route("/metrics", metrics_page(router))


def sources_of(router: BaseRouter) -> Sources:
    """Return by which functions a dashboard reads a router of this process: state, setup, certificates; and its folder of state.

    Also the first step for people: to ask the router.
    """
    engine = router.engine
    first = [("In this program, ask the router:", "router.infer(x)")]
    return Sources(
        partial(state_of, engine), partial(_setup, engine), lambda: certificates_of(engine.snapshot), engine.state, first
    )


def _on_trial(guard: Guard) -> bool:
    """Return True if the breaker has closed untested, which is no sign that the target is back."""
    return not guard.has_health_check and guard.state == "closed" and guard.rules.breaker.faults >= FAULTS


def state_of(engine: Engine) -> dict[str, Any]:
    """Return a router's state, with the keys of `edgeroute status --json`, and breakers, links, joules, policy, rules in force.

    Edge models without a threshold are left out.
    """
    snapshot, stats = engine.snapshot, engine.stats()
    audits = {entry.target: entry for entry in stats.audits}
    edges = []
    for target in snapshot.targets:
        if target.side == "edge" and target.threshold is not None:
            watch, audit = None if engine.auditor is None else engine.auditor.watch(target.name), audits.get(target.name)
            certificate = None if watch is None or watch.bound is None else watch.bound.certificate
            judged, deferred = engine.counts.judged(target.name)
            edges.append({
                "target": target.name, "threshold": finite(target.threshold), "promise": target.label,
                "made": None if certificate is None else certificate.date,
                "audited": 0 if audit is None else audit.audited, "disagreed": 0 if audit is None else audit.disagreed,
                "limit": None if audit is None else audit.limit, "evidence": 0.0 if audit is None else finite(audit.evidence),
                "alarm": None if watch is None or watch.alarm is None else watch.alarm._asdict(),
                "judged": judged, "deferred": deferred,
                "usual": None if certificate is None else certificate.deferral_interval,
            })  # fmt: skip
    spent, limits = engine.spending.spent(), engine.spending.limits
    guards = [backend.guard for backend in snapshot.watched[1] if hasattr(backend, "guard")]
    return {
        "edges": edges,
        "spent": {
            name: {"spent": value, "limit": None if limit == inf else limit}
            for name, value, limit in zip(limits._fields, spent, limits, strict=True)
        },
        "outbox": None if engine.queue is None else engine.queue.outbox.known_counts(),
        "breakers": {guard.name: "half-open" if _on_trial(guard) else guard.state for guard in guards},
        "link": {leg.name: {"call_s": leg.call_s, "bytes_per_s": leg.bytes_per_s} for leg in stats.legs if leg.call_s},
        "joules": dict(stats.joules),
        "policy": policy_summary(snapshot),
        "in_force": [f"{rule}: {rule.then}" for rule in engine.observer.facts.rules],
        "notes": [],
    }


def _setup(engine: Engine) -> Setup:
    """Return the policy in force, its limits and parts as a `Setup` for replays."""
    return Setup.of(
        engine.snapshot, engine.spending.limits, metered=engine.observer.metered is True, cached=engine.caching is not None
    )
