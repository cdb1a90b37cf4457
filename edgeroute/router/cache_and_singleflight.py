"""Stage of the cache: answers from the cache, fresh or stale; equal concurrent requests share one answer (singleflight).

A stale entry is answered at once where the cache allows it, and its revalidation starts in the background.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import Done, Mark, Outcome
from edgeroute.edge.edge_backend import TURN
from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.router.cache_key_prefixes import is_accepted
from edgeroute.router.part_hooks_and_dispatch import Part
from edgeroute.router.request import Request
from edgeroute.router.steps_and_composed_stages import Block, Join, Proceed, Result, Steps, answer_of
from edgeroute.stores.cache import Cache, Entry, Flight, Flights, Semantic, digest
from edgeroute.stores.cache.cache_entries_and_copies import CachedEntry, private_copy
from edgeroute.system import wall_clock
from edgeroute.system.input_copies import copy_input
from edgeroute.system.sanitised_logs_and_contained_errors import Failures, log
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.observe.target_counts import Counts

SHARE = 0.1  # share of the deadline for the cache's disk, or for the embedding of a text; after that the look-up counts as a miss
# Maximum seconds to wait for an equal request that shows its answer early: it goes on only as its reader does, who may stop.
HELD_S = 1.0


class Owned(Protocol):
    """Parts of a router that the cache needs."""

    counts: Counts

    def revalidation_request(self, request: Request) -> Request:
        """Return a new request equal to one that was served stale, for its revalidation."""


Owner = TypeVar("Owner", bound=Owned)


class Caching(Part):
    """Stage that answers from the cache, lets one of equal requests run for all, stores answers, and revalidates stale ones.

    Args:
        cache: the cache of answers.
        router: counts answers, and makes the requests of revalidations.
        spawn: executes the steps of a revalidation in the background; returns False if there is no thread for them.
    """

    def __init__(self, cache: Cache, router: Owner, spawn: Callable[[Owner, Steps[None]], bool]) -> None:
        self.cache, self.flights, self._failures = cache, Flights(), Failures()
        self._router, self._spawn = router, partial(spawn, router)
        self.close = cache.close  # type: ignore[method-assign]

    def around(self, requests: Sequence[Request], proceed: Proceed) -> Steps[list[Result]]:
        """Yield the steps of a call with the cache, and return its results in order.

        A result is from the cache, shared with an equal request, or of `proceed`. Of equal requests one leads and goes on, and
        the others wait for its answer. A caller that gets something before the answer is final (`refine`, `stream`) always leads.
        A follower whose leader fails, or takes too long, goes on by itself. Leaders release their followers in any case.
        """
        results: list[Result | None] = [None] * len(requests)
        leads: list[tuple[int, Request, Flight | None]] = []
        follows: list[tuple[int, Request, Flight]] = []
        try:
            keyed = [self._with_key(given) for given in requests]
            fetched = yield from self._fetch_entries([request for request, _ in keyed])
            for i, (request, prefix) in enumerate(keyed):
                answer, flight = yield from self._look_up(request, prefix, fetched, proceed)
                if answer is not None:
                    results[i] = answer
                elif flight is not None and not flight.leads and not request.shows:
                    follows.append((i, request, flight))
                else:
                    leads.append((i, request, flight))
            yield from self._run_leads(leads, results, proceed)
            alone = []
            for i, request, flight in follows:
                shared = yield Join(flight, min(self._patience_s(request), HELD_S if flight.held else INF))
                if shared is None or not is_accepted(request.plan, shared[1].entry):
                    # another call than the batch's, with other rows: to an endpoint its id is the idempotency key
                    alone.append((i, request._replace(batch=f"{request.batch}-again" if request.batch else ""), None))
                else:
                    leader, cached = shared
                    results[i] = self._count_answer(cached.for_caller(), "cache", request, f"shared with {leader}")
            yield from self._run_leads(alone, results, proceed)
        finally:
            for _, _, flight in leads:
                if flight is not None:
                    flight.end()  # a no-op if it has ended
        return [result for result in results if result is not None]

    def _run_leads(
        self, leads: Sequence[tuple[int, Request, Flight | None]], results: list[Result | None], proceed: Proceed
    ) -> Steps[None]:
        """Run the leading requests, write their results into `results`, and settle their flights, which store the answers."""
        if not leads:
            return
        walk_results = yield from proceed([request for _, request, _ in leads])
        for (i, request, flight), result in zip(leads, walk_results, strict=True):
            results[i] = result
            self._settle(request, flight, result)

    def _settle(self, request: Request, flight: Flight | None, result: Result) -> None:
        """Store a leader's answer in the cache, and pass a copy to the followers.

        Without an answer to share the followers are released, to go on alone. Degraded answers, those that are not final, and
        those without the edge's answer where it belongs, are not shared.
        """
        if isinstance(result, Answer) and request.key is not None:
            self.store(request, result)
        if flight is not None:
            if isinstance(result, Answer) and not result.degraded and result.final and result.edge_sent is not False:
                flight.end(partial(_for_followers, result))
            else:
                flight.end()  # followers may have more time, and have ids of their own

    def _with_key(self, request: Request) -> tuple[Request, bytes]:
        """Return a copy of the request with its cache key, and the key's prefix. Hashes the input.

        What is not to be cached has no key and an empty prefix: data classes in the cache's `never`, calls of a session, and all
        while a target's identity cannot be had, as of a model whose file is gone, which is logged.
        """
        plan, snapshot = request.plan, request.snapshot
        if plan.data_class in self.cache.never or TURN.get() is not None:  # a state decides the answer, too, and has to move on
            return request, b""
        try:
            prefix = snapshot.prefixes.of(plan)
        except Exception as e:  # noqa: BLE001 - of a file, or of the application's objects
            self._failures.log("the identity of a target, for the cache", e, coded=True)
            return request, b""
        return request._replace(key=digest(prefix, request.inputs)), prefix

    def _fetch_entries(self, requests: Sequence[Request]) -> Steps[dict[bytes, Entry]]:
        """Read the entries on disk for the requests' keys, in a thread; empty, and counted as late, if they take too long.

        That is, longer than the share `SHARE` of the deadline: an edge that needs the rest must not wait for a disk.
        """
        keys = self.cache.missing(request.key for request in requests if request.key is not None)
        if not keys:
            return {}
        entries = yield Block(partial(self.cache.fetch, keys), self._looks_until(requests[0]), needed=False)
        if entries is None:
            self.cache.late()
            return {}
        return entries  # type: ignore[no-any-return]

    def _looks_until(self, request: Request) -> float:
        """Return the instant at which the call goes on without the cache's result. inf without a deadline."""
        return INF if request.until == INF else request.begun + SHARE * request.plan.deadline_s

    def _look_up(
        self, request: Request, prefix: bytes, fetched: Mapping[bytes, Entry], proceed: Proceed
    ) -> Steps[tuple[Answer | None, Flight | None]]:
        """Return the cached answer, which is counted, or None, and the request's part in the flight of equal requests, or None.

        A stale entry is returned, and its revalidation started in the background. A similar text's entry counts, too, where a
        semantic cache is set. An entry that the policy does not accept any more is ignored.
        """
        key = request.key
        if key is None:
            return None, None
        entry, age = self.cache.lookup(key, fetched)
        if entry is not None and not is_accepted(request.plan, entry):
            entry = None
        if entry is not None and age == "fresh":
            return self._cached_answer(entry, "cache", request, ""), None
        if entry is not None and age == "revalidate":
            flight = self.flights.join(key)
            if flight.leads and not self._revalidate(request, flight, proceed):
                flight.end()
            return self._cached_answer(entry, "stale", request, " and past its time, being renewed"), None
        semantic = self.cache.semantic
        if semantic is not None and isinstance(request.inputs, str):
            near = yield Block(partial(self._similar, semantic, prefix, request.inputs), self._looks_until(request), needed=False)
            if near is not None and is_accepted(request.plan, near[0]):
                entry, similarity = near
                note = f", for a text like it (semantic {similarity:.2f} >= {semantic.threshold:g})"
                return self._cached_answer(entry, "cache", request, note), None
        return None, self.flights.join(key, held=bool(request.shows))

    def _similar(self, semantic: Semantic, prefix: bytes, text: str) -> tuple[Entry, float] | None:
        """Return the entry for a similar text, and the similarity; None if there is none.

        Computes an embedding; its error is logged.
        """
        try:
            return semantic.find(prefix, text)
        except BadInput as e:  # the embedding's error, logged once; no request may fail because of it
            log.error("%s", e)  # noqa: TRY400
            return None

    def _cached_answer(self, entry: Entry, source: Any, request: Request, note: str) -> Answer:
        """Count the answer of an entry, and return it, with its age and `note` in its reason."""
        age_s = max(0.0, wall_clock.now() - entry.at)
        return self._count_answer(entry, source, request, f"cache, {age_s:.0f} s old{note}")

    def _count_answer(self, entry: Entry, source: Any, request: Request, note: str) -> Answer:
        """Count a request that is answered without a call, and return the answer of that entry, with `note` in its reason."""
        self._router.counts.note("cached")
        return Answer.from_entry(entry, source, f"{note}: {entry.reason}", request.id, monotonic() - request.begun)

    def _revalidate(self, stale: Request, flight: Flight, proceed: Proceed) -> bool:
        """Start the revalidation of a stale entry in the background, on a copy of the input, as the caller may write to it.

        Its answer is stored and given to the flight, which ends in any case. Return False if there is no thread for it, or no
        copy. Errors are logged.
        """
        try:
            request = stale._replace(inputs=copy_input(stale.inputs))
        except Exception as e:  # noqa: BLE001 - nested too deeply, for example
            log.info("what the cache has past its time could not be renewed: the input cannot be copied: %s", e)
            return False

        def steps() -> Steps[None]:
            try:
                again = self._router.revalidation_request(request)
                (result,) = yield from proceed([again])
                self._settle(again, flight, result)
                answer_of(result)
            except EdgerouteError as e:
                log.info("what the cache has past its time could not be renewed: %s", e)
            except Exception:
                log.exception("what the cache has past its time could not be renewed")
            finally:
                flight.end()

        return self._spawn(steps())

    def _patience_s(self, request: Request) -> float:
        """Return the seconds that a request may wait for an equal one and still have time for the edge. 0 or more.

        inf without a deadline; half of the deadline is left for an edge whose time is unknown.
        """
        plan, whole_s = request.plan, request.plan.deadline_s
        if whole_s == INF:
            return INF
        edge_s = max((plan.facts.reserves.get(leg.name, INF) for leg in plan.legs if leg.permit is None), default=INF)
        return max(0.0, whole_s - (edge_s if edge_s < INF else whole_s / 2) - (monotonic() - request.begun))

    def store(self, request: Request, answer: Answer) -> None:
        """Store the answer of a request in the cache, unless it is degraded, provisional, cached, or lacks the edge's answer.

        A text is also stored for look-ups by similarity, unless computing its embedding would delay the deadline, or it has
        private spans. Nothing is stored without a key.
        """
        if request.key is None or answer.degraded or not answer.final or answer.source not in {"edge", "cloud"}:
            return
        if answer.edge_sent is False:  # the next request may have the edge's answer to send, and get another one
            return
        entry = _entry(answer)
        self.cache.put(request.key, entry)
        plan, x = request.plan, request.inputs
        semantic = self.cache.semantic
        mask = request.snapshot.egress.mask
        if semantic is None or not isinstance(x, str) or (mask is not None and mask.spans(x)):
            return  # a similar text may be of another person
        if request.until == INF or semantic.embedded(x):  # the deadline does not wait for another embedding
            with contextlib.suppress(BadInput):  # logged at the look-up
                semantic.add(request.snapshot.prefixes.of(plan), x, entry)

    def store_late(self, request: Request, event: Done) -> None:
        """Store an answer that came after its request's deadline in the cache, with a note, for the next equal request.

        Not if clouds take the edge's answer along, since it is not known whether this one did.
        """
        if request.snapshot.sends_edge:
            return
        now = monotonic()
        outcome = Outcome(event.leg, event.answer, True, (Mark("start", event.leg, request.until),), now, now)
        self.store(
            request, Answer(request.plan, outcome, request.id).add_note("it came after its request's deadline", final=True)
        )

    def stale(self, request: Request) -> Answer | None:
        """Return, and count, the stored entry, fresh or stale, as the answer to a request without an accepted one.

        None if there is none, or the policy does not accept it.
        """
        if request.key is None:
            return None
        entry, _ = self.cache.lookup(request.key)
        if entry is None or not is_accepted(request.plan, entry):
            return None
        return self._cached_answer(entry, "stale", request, ", the cloud is away")


def _entry(answer: Answer) -> Entry:
    """Return the cache entry of an answer, with the time now."""
    return Entry(answer.value, answer.confidence, answer.outputs, answer.leg, answer.source, answer.reason, wall_clock.now())


def _for_followers(answer: Answer) -> tuple[str, CachedEntry] | None:
    """Return the leader's id, and a copy of its answer, to which the leader's caller cannot write; None: it cannot be copied."""
    copied = private_copy(_entry(answer))
    return None if copied is None else (answer.id, copied)
