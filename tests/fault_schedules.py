"""Schedules of the campaign: routers whose requests meet random faults and signals, and whose answers are compared."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import random
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import monotonic, process_time, sleep
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from both import flat, wait_for
from fault_server import CLASSES, SECRET, number_in

from edgeroute import (
    AsyncRouter,
    Audit,
    Cache,
    EdgerouteError,
    Egress,
    Instrument,
    Limits,
    MayNotLeave,
    OpenInference,
    Outbox,
    PlainJson,
    Router,
    Trial,
)  # fmt: skip

TOLERANCE_S = 0.03
"""An answer that is later than the deadline by more than this, and by more than the machine stood still, counts as late."""
STILL_S = 0.25
"""Seconds for which no event loop may stand still; a look at private conversations may take it 0.1 s."""
REQUESTS = 6
IDS = 2 * REQUESTS
"""Numbers of inputs that a schedule has."""
GROUP = 40
"""Schedules over one state folder."""
SIGNALLED = 4
"""Schedules of a process and group whose requests are interrupted."""
LATER = 10_000_000
"""First number of the inputs after the schedules."""
WRITTEN = -5_000_000
"""Number of an input that was written to once its call had returned."""
COMMON = 5_000_000
"""First number of the inputs that several schedules have."""
PRICE = 0.001
"""Price of a call, US dollars."""
MOST_CALLS = 60
"""Limit of the calls that a process may pay for over a state folder, where there is one."""
MODES = ({}, {}, {"hedge_after": 0}, {"mode": "prefer_cloud"}, {"mode": "shadow"})
CALLS = ("infer", "infer", "infer_many", "refine", "stream")
BROKEN = ("lost", "foreign", "twice", "leaked", "miscounted", "still", "died")
"""Lists of broken promises."""


class Stalls(threading.Thread):
    """Times in which this process was due and got no processor: neither idle by its own will, nor busy."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: list[tuple[float, float, float]] = []
        """Begin, end, and seconds lost in between."""
        self.delays: list[tuple[float, float, float]] = []
        """The same of times in which this thread did not run, be it for another thread of this process."""
        self.beats: dict[int, float] = {}
        """Thread of an event loop -> instant at which it is due."""
        self.where: dict[int, str] = {}
        """Thread of an event loop that has stood still -> the lines where it did, the innermost first."""
        self.start()

    def run(self) -> None:
        """Sleep over and over for 2 ms, and compare."""
        while True:
            begun, used = monotonic(), process_time()
            sleep(0.002)
            ended = monotonic()
            lost = ended - begun - 0.002 - (process_time() - used)
            if lost > 0.003:
                self.found.append((begun, ended, lost))
            if ended - begun > 0.02:
                self.delays.append((begun, ended, ended - begun - 0.002))
            for thread, due in list(self.beats.items()):
                if ended - due > STILL_S and thread not in self.where and (frame := _frame_of(thread)):
                    self.where[thread] = "; ".join(
                        f"{Path(f.f_code.co_filename).name}:{n}" for f, n in traceback.walk_stack(frame)
                    )

    def within(self, begun: float, ended: float) -> float:
        """Return the seconds lost between two instants."""
        return _within(self.found, begun, ended)

    def delayed(self, begun: float, ended: float) -> float:
        """Return the seconds between two instants in which other threads than that of an event loop did not run either."""
        return _within(self.delays, begun, ended)


def _frame_of(thread: int) -> FrameType | None:
    """Return the innermost frame of a thread. A collection within the call may hang the process, before Python 3.11.8 and 3.12.2."""
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        gc.enable()


def _within(found: list[tuple[float, float, float]], begun: float, ended: float) -> float:
    return sum(lost for a, b, lost in found[-2000:] if a < ended and begun < b)


class Signals:
    """SIGINTs to this process, each at a random point of a call of its main thread."""

    def __init__(self) -> None:
        self._hit: Callable[[], object] | None = None
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_: object) -> None:
        hit, self._hit = self._hit, None
        if hit is not None:
            hit()

    @contextlib.contextmanager
    def during(self, hit: Callable[[], object], delay_s: float):
        """Send a signal after `delay_s`; its handler calls `hit` if the `with` block has not ended."""
        self._hit = hit
        timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            yield
        finally:
            self._hit = None
            timer.cancel()


def interrupt() -> None:
    """Raise KeyboardInterrupt, as Python's own handler does."""
    raise KeyboardInterrupt


def redact_note(x: Any, _: str | None) -> Any:
    """Redact in place."""
    x["note"][:] = ["redacted"]
    return x


class Unqueued(Instrument):
    """Instrument that notes requests which were being queued at their deadline, and could not be."""

    def __init__(self) -> None:
        self.ids = set[str]()

    def outbox_changed(self, identity: str, what: str) -> None:
        """Note an id."""
        if what == "not queued":
            self.ids.add(identity)


class Setting(NamedTuple):
    """Settings that the schedules of one group share."""

    group: int
    url: str
    folder: str
    form: str
    """json, tensors or chat."""
    clouds: int
    retries: int
    stored: bool
    """True if there is a state folder."""
    queued: bool
    """True if there is an outbox."""
    redacted: bool
    limited: bool
    on_disk: bool
    """True if the cache is on disk, too."""

    @classmethod
    def draw(cls, seed: int, group: int, url: str, root: str) -> Setting:
        """Return the settings of a group."""
        rng = random.Random(f"{seed}:group:{group}")
        form, stored = rng.choice(("json", "tensors", "chat")), rng.random() < 0.8
        return cls(
            group, url, str(Path(root) / str(group)), form, rng.choice((1, 1, 2)), rng.choice((0, 2)), stored,
            stored and rng.random() < 0.5, form == "json" and rng.random() < 0.4, rng.random() < 0.3, rng.random() < 0.5,
        )  # fmt: skip

    def input_of(self, n: int, *, private: bool, history: Sequence[Any] = ()) -> Any:
        """Return the input of that number. Only private ones hold what may not leave, unless a redaction removes it."""
        if self.form == "tensors":
            return np.array([-n - 1 if private else n], np.float32)
        if self.form == "json":
            return {"n": n, "note": [SECRET if private or self.redacted else "public", n]}
        note = f"that is {SECRET}, and only for my doctor of number {n}" if private else f"to ask in the town of number {n}"
        return [*copy.deepcopy([*history]), {"role": "user", "content": f"question {n}: what is there {note}?"}]

    def number_of(self, x: Any) -> int:
        """Return the number of an input."""
        if self.form != "tensors":
            return number_in(x)
        n = int(np.asarray(x).reshape(-1)[0])
        return n if n >= 0 or n <= WRITTEN else -n - 1

    def write_to(self, x: Any) -> None:
        """Write to an input whose call has returned."""
        if self.form == "tensors":
            x[...] = WRITTEN
        elif self.form == "json":
            x["n"], x["note"][:] = WRITTEN, [SECRET]
        else:
            x[-1]["content"] = f"{SECRET} {WRITTEN}"

    def cloud_value(self, n: int) -> str:
        """Return the cloud's answer to the input of that number."""
        return f"class-{n % CLASSES}" if self.form == "tensors" else f"cloud-{n}"

    def _endpoint(self, number: int) -> Any:
        url = f"{self.url}/{self.group}/cloud-{number}"
        address = {"name": f"cloud-{number}", "retries": self.retries, "usd_per_call": PRICE}
        if self.form != "tensors":
            return PlainJson(f"{url}/json", **address)
        return OpenInference(f"{url}/v2/models/m", binary=False, labels=[f"class-{n}" for n in range(CLASSES)], **address)

    @property
    def most_calls(self) -> int:
        """Maximum calls that a process, or a router without a state folder, may pay for."""
        return MOST_CALLS if self.stored else REQUESTS

    def arguments(self, edge: Callable[[Any], Any]) -> dict[str, Any]:
        """Return the arguments of a router."""
        folder = Path(self.folder)
        queue = Outbox(folder / "outbox.db", rate_per_s=1e3, parallel=8, spread_s=0) if self.queued else None
        redact = redact_note if self.redacted else None
        return {
            "edge": edge, "cloud": [self._endpoint(n) for n in range(self.clouds)], "threshold": 0.5,
            "egress": Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat", redact=redact),
            "limits": Limits(usd_per_day=PRICE * self.most_calls) if self.limited else None,
            "state": folder if self.stored else None, "outbox": queue, "offline": "queue" if self.queued else "edge",
        }  # fmt: skip

    def cache(self) -> Cache:
        """Return a cache."""
        return Cache(disk=Path(self.folder) / "cache.db" if self.on_disk and self.stored else None, never=frozenset({"medical"}))


class Asked(NamedTuple):
    """One request of a schedule; `infer_many` asks about the next number, too."""

    n: int
    call: str
    private: bool
    options: dict[str, str]
    opens: bool
    """True if it begins a conversation."""


class Findings:
    """Findings about some schedules, in JSON types; `died` has processes that ended or hung.

    Attributes:
        lost: requests without an answer, and late answers that were promised and never came.
        stood_still: requests without one for which the machine stood still for half of their deadline, or longer.
        foreign: answers that belong to another request, or to none, and inputs that were read after they were written to.
        twice: late answers that were delivered more than once.
        leaked: bodies with something that may not leave, or that is not in the ledger.
        miscounted: counts, money or places that disagree with what happened.
        still: event loops that stood still.
        late: answers after the deadline: seconds too late, and seconds for which the machine stood still meanwhile.
        counts: number of requests, of interrupted ones, of answers by source and so on.
        asked: id of an answer -> the number of its input.
        queued: ids of requests that the outbox has.
        private: numbers of inputs that may not leave.
        secrets: private conversations.
    """

    def __init__(self, given: dict[str, Any] | None = None) -> None:
        self.late: list[tuple[float, float, str]] = []
        self.stood_still: list[str] = []
        self.counts = Counter[str]()
        self.asked: dict[str, int] = {}
        self.queued: list[str] = []
        self.private: list[int] = []
        self.secrets: list[Any] = []
        for name in BROKEN:
            setattr(self, name, list[str]())
        if given is not None:
            self.add(given)

    def add(self, given: dict[str, Any]) -> None:
        """Add others' findings."""
        for name, found in given.items():
            mine = getattr(self, name)
            mine.extend(found) if isinstance(mine, list) else mine.update(found)

    @property
    def late_by_us(self) -> list[tuple[float, float, str]]:
        """Late answers that no stall of the machine explains."""
        return [each for each in self.late if each[0] - each[1] > TOLERANCE_S]

    @property
    def requests(self) -> int:
        """Number of requests that have ended, interrupted ones included."""
        return self.counts["requests"]

    def report(self) -> dict[str, object]:
        """Return the numbers of findings."""
        broken = {name: len(getattr(self, name)) for name in BROKEN}
        return {
            **self.counts, **broken, "stood still": len(self.stood_still), "late": len(self.late),
            "late without a stall": len(self.late_by_us), "latest, ms": round(1000 * max((late for late, *_ in self.late), default=0)),
        }  # fmt: skip


class Schedules:
    """Runs the schedules of one group that fall to this process."""

    def __init__(
        self, seed: int, setting: Setting, deadline_s: float, stalls: Stalls, signals: Signals, ended: Callable[[], object]
    ) -> None:
        self.seed, self.setting, self.deadline_s, self._ended = seed, setting, deadline_s, ended
        self._stalls, self._signals, self.beats = stalls, signals, stalls.beats
        self.found = Findings()
        self.lock = threading.Lock()
        self._gaps: list[tuple[str, float, float, float, str]] = []
        """Of each time in which an event loop did not run: its label, begin, when it was due, its end, and where it stood."""
        self._late: list[tuple[str, float, float]] = []

    def run(self, numbers: Sequence[int], workers: int) -> Findings:
        """Run schedules: the first ones in this, the main thread, with signals."""
        with ThreadPoolExecutor(workers) as pool:
            others = [
                pool.submit(lambda n=number: Schedule.check(*self._run(n, signalled=False))) for number in numbers[SIGNALLED:]
            ]
            mine = [pool.submit(Schedule.check, *self._run(number, signalled=True)) for number in numbers[:SIGNALLED]]
            for checked in as_completed([*mine, *others]):
                checked.result()
                self._ended()
        sleep(0.05)  # what held all threads up is known once that of the stalls has run
        for label, begun, due, ended, where in self._gaps:
            others_s = self._stalls.delayed(begun, ended + 0.01)
            if ended - due - others_s > STILL_S:
                took = f"for {1000 * (ended - due):.0f} ms, other threads for {1000 * others_s:.0f} ms"
                self.note("still", f"{label}: {took}: {where}")
        for label, begun, ended in self._late:
            self.found.late.append((ended - begun - self.deadline_s, self._stalls.within(begun, ended + 0.01), label))
        return self.found

    def _run(self, number: int, *, signalled: bool) -> tuple[Schedule, Any]:
        """Run a schedule. Return it with its router, which is closed; None: it failed."""
        schedule = Schedule(self, number, signalled=signalled)
        try:
            return schedule, schedule.run()
        except Exception as e:  # noqa: BLE001 - of a router that cannot be made or closed
            self.note("lost", f"schedule {number}: {type(e).__name__}: {e}")
        return schedule, None

    def note(self, what: str, text: str) -> None:
        """Note a broken promise."""
        with self.lock:
            getattr(self.found, what).append(text[:800])

    def count(self, **more: int) -> None:
        """Add to counts."""
        with self.lock:
            self.found.counts.update(more)

    def check(self, label: str, asked: Asked, begun: float, answers: list[Any] | BaseException, *, may_fail: bool) -> None:
        """Compare answers with what they must be."""
        ended, found, setting = monotonic(), self.found, self.setting
        took, stalled_s = ended - begun, self._stalls.within(begun, ended + 0.01)
        self.count(requests=1)
        if isinstance(answers, KeyboardInterrupt | asyncio.CancelledError):
            self.count(interrupted=1)
        elif isinstance(answers, BaseException):
            ours = isinstance(answers, EdgerouteError)
            if may_fail and ours:
                return
            still = stalled_s >= self.deadline_s / 2 and ours
            why = f"; the machine stood still for {1000 * stalled_s:.0f} ms" if stalled_s else ""
            if not ours:
                places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(answers.__traceback__)]
                why += f"; {' '.join(places)}; it came of {answers.__context__!r}"
            self.note("stood_still" if still else "lost", f"{label}: {type(answers).__name__}: {answers}{why}")
        else:
            for n, answer in enumerate(answers, asked.n):
                own = {
                    "edge": (f"edge-{n}", f"trial-{n}"), "cloud": (setting.cloud_value(n),),
                    "cache": (f"edge-{n}", f"trial-{n}", setting.cloud_value(n)),
                }  # fmt: skip
                self.count(**{answer.source: 1, "stays": answer.reason_code == "stays", "trials": answer.leg == "edge-trial"})
                if answer.value not in own[answer.source]:
                    self.note("foreign", f"{label}: {answer}")
                if asked.private and answer.source == "cloud":
                    self.note("leaked", f"{label}: {answer}")
                with self.lock:
                    found.asked[answer.id] = n
                    if setting.queued and not answer.final:
                        found.queued.append(answer.id)
            if took > self.deadline_s + TOLERANCE_S:
                self._late.append((label, begun, ended))

    async def check_loop(self, label: str) -> None:
        """Check that the event loop does not stand still for a moment."""
        begun, thread = monotonic(), threading.get_ident()
        due = self._stalls.beats[thread] = begun + 0.01
        await asyncio.sleep(0.01)
        ended = monotonic()
        where = self._stalls.where.pop(thread, "")
        if ended - due > STILL_S:
            self._gaps.append((label, begun, due, ended, where))

    def signal(self, rng: random.Random, hit: Callable[[], object]):
        """Return a `with` block that a signal interrupts."""
        return self._signals.during(hit, rng.choice((rng.uniform(0, 0.003), rng.uniform(0, 1.2 * self.deadline_s))))


class Schedule:
    """One schedule."""

    def __init__(self, shared: Schedules, number: int, *, signalled: bool) -> None:
        self.shared, self.setting, self.number = shared, shared.setting, number
        self.rng = rng = random.Random(f"{shared.seed}:{number}")
        self._signalled = signalled
        first, chat = number * IDS, self.setting.form == "chat"
        ids = range(first, first + IDS)
        self._sure = {n for n in ids if rng.random() < 0.3}
        self._common = [
            COMMON + self.setting.group * IDS + 2 * k for k in range(2 * (self.setting.on_disk and self.setting.stored))
        ]
        """Numbers of inputs about which other schedules of the group ask, too, also in the other process."""
        self._edge_s = rng.choice((0.0, 0.0, 0.002, 0.01))
        self._late = list[str]() if rng.random() < 0.4 else None
        mode = rng.choice(MODES)
        if mode.get("mode") == "shadow" and self.setting.queued:
            mode = {}
        self._may_fail = mode.get("mode") == "shadow"
        trial = Trial(edge=self._edge("trial"), shown=rng.random() < 0.5, share=0.5, threshold=0.5)
        self.policy = {
            **self.setting.arguments(self._edge("edge")), "deadline": shared.deadline_s,
            "cache": self.setting.cache() if rng.random() < 0.4 else None,
            "audit": Audit(share=rng.choice((0.5, 1.0))) if rng.random() < 0.4 else None,
            "trial": trial if rng.random() < 0.2 and not self._may_fail else None, **mode,
        }  # fmt: skip
        plan = []
        for k in range(REQUESTS):
            n, call, private = first + 2 * k, rng.choice(CALLS), rng.random() < 0.25
            options = rng.choice(({"data_class": "medical"}, {"mode": "only_edge"})) if private else {}
            plan.append(Asked(n, call, private, options, rng.random() < 0.3))
            if self.policy["cache"] is not None and rng.random() < 0.5 and not chat:
                plan[-1] = rng.choice([*plan, *[Asked(n, call, False, {}, False) for n in self._common]])
        for asked in plan:
            shared.found.private += [asked.n, asked.n + 1] if asked.private else []
        batch = 1 if chat or signalled else rng.choice((1, 2, 3))
        self._groups = [plan[k : k + batch] for k in range(0, REQUESTS, batch)]
        self._history: list[Any] = []
        self._unqueued = Unqueued()
        if self.setting.queued:
            self.policy["instruments"] = [self._unqueued]
        self._said = list[int]()
        """Of each request that has ended: its rows, with an answer or an error; 0: it was interrupted."""

    def _edge(self, name: str) -> Callable[[Any], tuple[str, float]]:
        """Return an edge, of which caches on disk know that it is that of the other process, too."""

        def edge(x: Any) -> tuple[str, float]:
            n = self.setting.number_of(x)
            if n <= WRITTEN or (self.setting.redacted and SECRET not in x["note"]):
                self.shared.note("foreign", f"schedule {self.number}: the edge read what was written to an input")
            if self._edge_s:
                sleep(self._edge_s)
            return f"{name}-{n}", 0.9 if n in self._sure else 0.1

        edge.version = name
        return edge

    def _heard(self, late: Any) -> None:
        self._late.append(late.id)
        n = self.shared.found.asked.get(late.id)
        mine = [*range(self.number * IDS, (self.number + 1) * IDS), *self._common]
        if late.value not in {self.setting.cloud_value(n) for n in (mine if n is None else [n])}:
            self.shared.note("foreign", f"late: {late}")

    def _heard_once(self, late: Any, tx: Any) -> None:
        tx.execute("CREATE TABLE IF NOT EXISTS seen (id, value)")
        tx.execute("INSERT INTO seen VALUES (?, ?)", (late.id, late.value))

    def _listen(self, router: Any) -> None:
        if self.setting.queued:
            router.on_late(self._heard_once)
        elif self._late is not None:
            router.on_late(self._heard)

    def run(self) -> Any:
        """Run the schedule. Return its router, which is closed."""
        return self._asyncio() if self.number // 2 % 2 else self._threads()

    def check(self, router: Any) -> None:
        """Check the counts of the router once no call is under way any more."""
        if router is None:
            return
        guards = [cloud.guard for cloud in router.engine.snapshot.clouds]
        try:
            wait_for(lambda: not any(guard.under_way for guard in guards), 10)
        except AssertionError:
            self.shared.note("miscounted", f"schedule {self.number}: calls hold their places after the end")
        if self._late is not None and not self.setting.queued:
            try:
                wait_for(lambda: len(self._late) == router.stats().late, 10)
            except AssertionError:
                self.shared.note("lost", f"schedule {self.number}: {len(self._late)} of {router.stats().late} late answers came")
        found = self.shared.found
        for identity, times in Counter(self._late or ()).items():
            if times > 1:
                self.shared.note("twice", f"schedule {self.number}: {identity}")
        with self.shared.lock:
            found.queued = [identity for identity in found.queued if identity not in self._unqueued.ids]
        self.shared.count(unqueued=len(self._unqueued.ids))
        stats, cache = router.stats(), self.policy["cache"]
        if cache is not None:
            self.shared.count(disk_hits=cache.stats().disk_hits)
        self.shared.count(late_answers=len(self._late or ()), late_legs=stats.late, sent=stats.bytes_sent)
        ended, interrupted = sum(self._said), 2 * self._said.count(0)
        if not ended <= stats.requests + stats.cached <= ended + interrupted:
            self.shared.note("miscounted", f"schedule {self.number}: {ended} to {ended + interrupted} requests, {stats}")
        for leg in stats.legs:
            if leg.answered + leg.failed + leg.cancelled != leg.started or leg.accepted > leg.answered:
                self.shared.note("miscounted", f"schedule {self.number}: {leg}")
        if not self.setting.stored:
            found.counts[f"booked-{self.number}"] = round(stats.usd_today / PRICE)

    def _inputs(self, asked: Asked) -> list[Any]:
        numbers = [asked.n, asked.n + 1] if asked.call == "infer_many" else [asked.n]
        if asked.opens:
            self._history = []
        return [self.setting.input_of(n, private=asked.private, history=self._history) for n in numbers]

    def _end(self, asked: Asked, inputs: list[Any], begun: float, answers: list[Any] | BaseException) -> None:
        """Check the answers, write to the inputs, and go on with the conversation."""
        label = f"schedule {self.number}, {self.setting.form}: {asked.call} of {asked.n}"
        self.shared.check(label, asked, begun, answers, may_fail=self._may_fail)
        interrupted = isinstance(answers, KeyboardInterrupt | asyncio.CancelledError)
        if not isinstance(answers, MayNotLeave):  # in shadow: there is no request then
            self._said.append(0 if interrupted else len(inputs))
        if self.setting.form == "chat" and isinstance(answers, list):
            before = inputs[0]
            self._history = [*copy.deepcopy(before), {"role": "assistant", "content": str(answers[0].value)}]
            if asked.private and len(self.shared.found.secrets) < 3 and self.setting.stored:
                self.shared.found.secrets.append(self._history)
        for x in inputs:
            self.setting.write_to(x)
        inputs.clear()

    def _threads(self) -> Router:
        with Router(**flat(**self.policy)) as router:
            self._listen(router)

            def ask(asked: Asked, inputs: list[Any]) -> list[Any]:
                x, more = inputs[0], asked.options
                if asked.call == "infer":
                    return [router.infer(x, **more)]
                if asked.call == "infer_many":
                    return router.infer_many(inputs, **more)
                if asked.call == "refine":
                    return list(router.refine(x, **more))[-1:]
                with router.stream(x, **more) as stream:
                    list(stream)
                return [stream.answer]

            def one(asked: Asked) -> None:
                inputs, begun = self._inputs(asked), monotonic()
                hit = self.shared.signal(self.rng, interrupt) if self._signalled else contextlib.nullcontext()
                try:
                    with hit:
                        answers = ask(asked, inputs)
                except (Exception, KeyboardInterrupt) as e:  # noqa: BLE001 - whatever it is, the answer is lost
                    answers = e
                self._end(asked, inputs, begun, answers)

            if self._signalled:
                for (asked,) in self._groups:
                    one(asked)
                return router
            with ThreadPoolExecutor(3) as pool:
                for group in self._groups:
                    list(pool.map(one, group))
        return router

    def _asyncio(self) -> AsyncRouter:
        async def ask(router: AsyncRouter, asked: Asked, inputs: list[Any]) -> list[Any]:
            x, more = inputs[0], asked.options
            if asked.call == "infer":
                return [await router.infer(x, **more)]
            if asked.call == "infer_many":
                return await router.infer_many(inputs, **more)
            if asked.call == "refine":
                return [answer async for answer in router.refine(x, **more)][-1:]
            async with router.stream(x, **more) as stream:
                async for _ in stream:
                    pass
            return [stream.answer]

        async def one(router: AsyncRouter, asked: Asked) -> None:
            inputs, begun = self._inputs(asked), monotonic()
            task, loop = asyncio.ensure_future(ask(router, asked, inputs)), asyncio.get_running_loop()

            def cancel() -> None:  # as the handler of `asyncio.run` does
                task.cancel()
                loop.call_soon_threadsafe(lambda: None)

            try:
                with self.shared.signal(self.rng, cancel) if self._signalled else contextlib.nullcontext():
                    await asyncio.wait([task])
                answers = task.result()
            except (Exception, asyncio.CancelledError) as e:  # noqa: BLE001 - likewise
                answers = e
            self._end(asked, inputs, begun, answers)

        async def beat() -> None:
            try:
                while True:
                    await self.shared.check_loop(f"schedule {self.number}")
            finally:
                self.shared.beats.pop(threading.get_ident(), None)

        async def main() -> AsyncRouter:
            async with AsyncRouter(**flat(**self.policy)) as router:
                beats = asyncio.ensure_future(beat())
                self._listen(router)
                for group in self._groups:
                    await asyncio.gather(*(one(router, asked) for asked in group))
            beats.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beats
            return router

        return asyncio.run(main())
