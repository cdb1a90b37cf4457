"""The dashboard of a router in the same process: an instrument that needs neither a trace file nor a state folder."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core.explain import finite
from edgeroute.errors import PolicyError
from edgeroute.record.instruments import Instrument, RequestEnded
from edgeroute.record.trace import Trace
from edgeroute.system import process
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.tools.dashboard.monitor import Monitor, Told
from edgeroute.tools.dashboard.window import policy_summary
from edgeroute.tools.replay.setup import Setup

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from edgeroute.router.base import BaseRouter
    from edgeroute.router.engine import Engine

MOST = 20_000
"""Answers that wait to be looked at; of further ones the oldest are left out, and counted."""
START_S = 30.0
"""Longest wait for the server to listen, seconds."""


class Ended:
    """The answers of a router in this process, as records of a trace. A request only appends to a queue."""

    name = "this process"

    def __init__(self) -> None:
        self._fresh = deque[tuple[float, RequestEnded]](maxlen=MOST)
        self._came = self._taken = self._raised = 0
        self._records = list[Mapping[str, Any]]()
        self._trace = Trace(self._records.append)

    def add(self, ended: RequestEnded) -> None:
        """Adds an answer; of its input, its value and its outputs nothing is kept. An exception is counted."""
        answer = ended.answer
        if answer is None:
            self._raised += 1
            return
        self._came += 1  # a race of threads may lose one, and then one less is said to be lost
        self._fresh.append((process.now(), ended._replace(inputs=None, answer=answer.without_values())))

    def take(self) -> Iterable[Mapping[str, Any]]:
        """The records of the answers that came since."""
        fresh = self._fresh
        while fresh:
            at, ended = fresh.popleft()
            self._taken += 1
            self._trace.request_ended(ended)
            while self._records:
                yield {**self._records.pop(), "at": round(at, 3)}

    def lost(self) -> int:
        """Answers that came faster than they were looked at."""
        return max(0, self._came - self._taken - len(self._fresh))

    def raised(self) -> int | None:
        """Requests that ended with an exception."""
        return self._raised

    def error(self) -> str:
        """None: there is nothing to open."""
        return ""

    def close(self) -> None:
        """Forgets the rest."""
        self._fresh.clear()


class Dashboard(ForkSafe, Instrument):
    """Shows a router of this process on a local page, until the router is closed.

    ```
    dashboard = Dashboard()
    router = Router(..., instruments=[dashboard])
    print(dashboard.serve(router))
    ```
    """

    _ended = per_process(Ended)  # a forked child has no page
    _monitor: Monitor | None = initially(None)
    _stop: Callable[[], object] | None = initially(None)
    _thread: threading.Thread | None = initially(None)
    _closed = initially(False)

    def request_ended(self, ended: RequestEnded) -> None:
        """Adds the answer, if the page is served."""
        if self._monitor is not None:
            self._ended.add(ended)

    def serve(
        self, router: BaseRouter, *, host: str = "127.0.0.1", port: int = 0, metrics: bool = False,
        routes: Iterable[BaseRoute] = (), **more: Any,
    ) -> str:  # fmt: skip
        """Serves the page in a thread -> its URL, with the token in it. Once for a router.

        Args:
            router: that has this object among its `instruments`.
            host: to listen on; the default accepts only this machine.
            port: 0 takes a free one.
            metrics: whether there is `/metrics` for Prometheus, which sends the token as a bearer token.
            routes: more of them, behind the same token.
            more: `token` and `hosts`, as of `edgeroute.tools.dashboard.run.serve`.

        Raises:
            PolicyError: it is served already, or cannot listen there.
            RuntimeMissing: starlette, uvicorn, or for metrics prometheus_client, is not installed.
        """
        from edgeroute.tools.dashboard.run import serve

        if self._monitor is not None:
            raise PolicyError("this dashboard is served already: one serves one router")
        more["routes"] = [*routes, *([_metrics(router)] if metrics else [])]
        self._closed = False
        monitor = self._monitor = Monitor(self._ended, of_router(router), "a router in this process")
        ready, found, failed = threading.Event(), list[str](), list[BaseException]()

        def on_ready(url: str) -> None:
            found.append(url)
            ready.set()

        def run() -> None:
            try:
                serve(monitor, host=host, port=port, on_ready=on_ready, stops=self._stops, **more)
            except BaseException as e:  # noqa: BLE001 - raised in the caller's thread
                failed.append(e)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="edgeroute-dashboard-page", daemon=True)
        self._thread.start()
        if not ready.wait(START_S) or not found:
            self._monitor = None
            raise failed[0] if failed else PolicyError(f"the dashboard did not listen within {START_S:g} s")
        return found[0]

    def _stops(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        if self._closed:  # before it was known how to end it
            stop()

    def close(self) -> None:
        """Ends the page. The router that is closed calls it."""
        self._closed = True
        stop, self._stop = self._stop, None
        self._monitor = None
        if stop is not None:
            stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(START_S)


def _metrics(router: BaseRouter) -> BaseRoute:
    from starlette.routing import Route

    from edgeroute.tools.server.metrics import Metrics

    return Route("/metrics", Metrics(router).page)


def of_router(router: BaseRouter) -> Told:
    """What is known of a router in this process."""
    engine = router.engine
    return Told(partial(state, engine), partial(_setup, engine), partial(_certificates, engine), engine.state)


def state(engine: Engine) -> dict[str, Any]:
    """The state of a router, under the names of `edgeroute status --json`."""
    snapshot, found = engine.snapshot, engine.stats()
    audits = {one.target: one for one in found.audits}
    edges = []
    for target in snapshot.targets:
        if target.side == "edge" and target.threshold is not None:
            watch, audit = None if engine.auditor is None else engine.auditor.watch(target.name), audits.get(target.name)
            certificate = None if watch is None or watch.promise is None else watch.promise.certificate
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
    return {
        "edges": edges,
        "spent": {
            name: {"spent": value, "limit": None if limit == inf else limit}
            for name, value, limit in zip(limits._fields, spent, limits, strict=True)
        },
        "outbox": None if engine.queue is None else engine.queue.outbox.counts(),
        "breakers": {leg.name: leg.breaker for leg in found.legs if leg.breaker},
        "link": {leg.name: {"call_s": leg.call_s, "bytes_per_s": leg.bytes_per_s} for leg in found.legs if leg.call_s},
        "joules": dict(found.joules),
        "policy": policy_summary(snapshot),
        "in_force": [f"{rule}: {rule.then}" for rule in engine.observer.facts.rules],
        "notes": [],
    }


def _setup(engine: Engine) -> Setup:
    return Setup.of(
        engine.snapshot, engine.spending.limits, metered=engine.observer.metered is True, cached=engine.caching is not None
    )


def _certificates(engine: Engine) -> dict[str, BoundCertificate]:
    snapshot = engine.snapshot
    return {t.name: one for t, one in zip(snapshot.targets, snapshot.certificates, strict=True) if one is not None}
