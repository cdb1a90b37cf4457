"""What may be spent, over restarts, crashes, broken files and clocks that are set: a limit holds, or refuses and says so."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from time import monotonic

import numpy as np
import pytest
import routes
from both import GOOD, LONG, GatedServer, ask, header, makes, unsure, wait_for
from draws import slow

from edgeroute import AsyncRouter, Audit, Cache, Function, Limits, OpenAIChat, Options, Outbox, PlainJson, Reading, Router
from edgeroute.cloud import shared_spending_and_record as earlier
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.spending_limits import Cost, Spending
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.stores.sqlite_file_and_key_values import Database, KeyValueStore
from edgeroute.system import files_and_lock_waits, wall_clock
from edgeroute.testing import CannedServer, FakeCloud, http_reply

YEAR_S = 365 * 86_400


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes()


@pytest.fixture
def one_instant(monkeypatch):
    """For endpoints no time passes: none in which a rate of calls a second would allow one more."""
    at = monotonic()
    for module in ("endpoint_guard", "attempt_accounting_and_turns"):
        monkeypatch.setattr(f"edgeroute.cloud.{module}.monotonic", lambda: at)


class Paid(FakeCloud):
    """A cloud that costs, and counts its calls."""

    def __init__(self):
        super().__init__([("cloud", 0.9)])

    def target(self, **terms):
        """As a router takes it."""
        return Function(self, **{"usd_per_call": 0.01, **terms})


# a connection that cannot be made


def refusing():
    """The port of a socket that is bound, and does not listen."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound, bound.getsockname()[1]


@pytest.mark.parametrize("over", ["edgeroute", "httpx", "a chat"])
@pytest.mark.parametrize("state", [False, True])
def test_no_money_is_spent_where_nothing_was_sent(make, over, state, tmp_path):
    """All attempts are refused: bytes and money are returned, calls and energy count, and the next call pays its whole price."""
    bound, port = refusing()
    with bound:
        terms = {"usd_per_call": 0.01, "usd_per_mb": 100.0, "joules_per_call": 2.0, "retries": 1}
        if over == "a chat":
            cloud = OpenAIChat(f"http://127.0.0.1:{port}/v1", model="m", usd_per_million_input_tokens=1e4, **terms)
        else:
            cloud = PlainJson(f"http://127.0.0.1:{port}/x", client="httpx" if over == "httpx" else None, **terms)
        router = make(unsure, cloud, threshold=0.8, limits=Limits(usd_per_day=5.0), state=tmp_path if state else None)
        answers = [router.infer("an input") for _ in range(2)]
    spent, stats = router.engine.spending.spent(), router.stats()
    assert all(answer.degraded for answer in answers)
    assert (spent.usd, spent.mb, spent.calls) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9), 2)
    assert (spent.joules >= 4, stats.bytes_sent) == (True, 0)


@pytest.mark.parametrize("state", [False, True])
def test_the_attempt_that_connects_pays(state, tmp_path):
    """The price of the call once, and of its bytes once, after one that did not connect."""
    httpx, attempts = pytest.importorskip("httpx"), []

    def answer(request):
        attempts.append(request)
        if len(attempts) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, content=b'{"value": "cloud", "confidence": 0.9}')

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        cloud = PlainJson("http://127.0.0.1:9/x", client=client, usd_per_call=0.01, usd_per_mb=1.0)
        with Router(unsure, cloud, threshold=0.8, limits=Limits(usd_per_day=5.0), state=tmp_path if state else None) as router:
            assert router.infer("an input").source == "cloud"
            spent, stats = router.engine.spending.spent(), router.stats()
    assert (len(attempts), spent.calls) == (2, 1)
    assert stats.bytes_sent == len(attempts[0].content)
    assert spent.usd == pytest.approx(0.01 + (stats.bytes_sent + stats.bytes_received) / 1e6)


# a batch


LIMITS = [
    ({}, Limits(usd_per_day=0.05), "usd_per_day"),
    ({}, Limits(calls_per_minute=5), "calls_per_minute"),
    ({"joules_per_call": 2.0}, Limits(joules_per_hour=10), "joules_per_hour"),
    ({"calls_per_s": 5}, None, "calls_per_s"),
]


@pytest.mark.parametrize(("terms", "limits", "code"), LIMITS)
@pytest.mark.parametrize("state", [*slow(False), True])
@pytest.mark.parametrize("over", ["JSON", *slow("a function")])
@pytest.mark.usefixtures("one_instant")
def test_a_batch_is_as_many_calls_as_it_has_inputs(make, terms, limits, code, state, over, tmp_path):
    """In every limit, before the first leaves: one that does not fit sends nothing and books nothing, one that fits is booked."""
    paid = Paid()
    with CannedServer(GOOD) as server:
        cloud = paid.target(**terms) if over == "a function" else PlainJson(server.url, usd_per_call=0.01, **terms)
        router = make(unsure, cloud, threshold=0.8, limits=limits, state=tmp_path if state else None)
        answers = router.infer_many(list(range(1000)))
        assert all(a.degraded and a.reason_code == code for a in answers)
        assert (len(server.requests) + paid.runs, router.engine.spending.spent()) == (0, Cost())
        answers = router.infer_many(list(range(5)))
        assert [a.source for a in answers] == ["cloud"] * 5
        spent = router.engine.spending.spent()
        assert (spent.usd, spent.calls) == (pytest.approx(0.05), 5)
        assert router.infer(1).degraded
        assert router.infer_many([1, 2])[0].reason_code == code
        assert len(server.requests) + paid.runs == 5
        assert len({header(r, "Idempotency-Key") for r in server.requests}) == len(server.requests)


def test_what_a_batch_did_not_send_is_given_back(make):
    """At the third of five it is away: three calls were made, and three are paid for."""
    paid = FakeCloud([("cloud", 0.9), ("cloud", 0.9), OSError("away")])
    router = make(unsure, Function(paid, usd_per_call=0.01), threshold=0.8, limits=Limits(usd_per_day=0.05))
    assert [a.degraded for a in router.infer_many(list(range(5)))] == [False, False, True, True, True]
    assert paid.runs == 3
    spent = router.engine.spending.spent()
    assert (spent.usd, spent.calls) == (pytest.approx(0.03), 3)
    assert router.stats().usd_today == pytest.approx(0.03)


class Twice(PlainJson):
    """An endpoint that sends each input twice, and does not say so."""

    one_by_one = False

    def talk(self, inputs):
        """Two calls."""
        yield self._call(inputs[0])
        return (yield from super().talk(inputs))


@pytest.mark.parametrize(("limits", "terms"), [(Limits(calls_per_minute=1), {}), (None, {"calls_per_s": 1})])
@pytest.mark.usefixtures("one_instant")
def test_calls_that_were_not_announced_count_too(make, limits, terms):
    """An endpoint of one's own that makes more calls than it said is stopped at the limit, in the middle."""
    with CannedServer(GOOD) as server:
        router = make(unsure, Twice(server.url, **terms), threshold=0.8, limits=limits)
        answer = router.infer(1)
        assert answer.degraded
        assert routes.failure(answer)["again"] is True
        assert len(server.requests) == 1
    assert router.engine.spending.spent().calls == 1


# restarts


RUN = """
import os, signal, sys, time
how, folder, log, off, call = sys.argv[1:]
real = time.time
time.time = lambda: real() + float(off)
import asyncio, logging
from edgeroute import AsyncRouter, Function, Limits, Router

logging.disable(logging.CRITICAL)

def paid(x):
    with open(log, "a") as f:
        f.write(".")
    return "cloud", 0.9

async def paid_async(x):
    return paid(x)

limits = Limits(usd_per_day=0.05) if how != "minute" else Limits(calls_per_minute=5)
arguments = dict(threshold=0.8, limits=limits, state=folder)
unsure = lambda x: ("edge", 0.1)

async def main():
    async with AsyncRouter(unsure, Function(paid_async, usd_per_call=0.01), **arguments) as router:
        for i in range(20):
            await router.infer(i)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)

if call == "async":
    asyncio.run(main())
else:
    router = Router(unsure, Function(paid, usd_per_call=0.01), **arguments)
    if call == "batch":
        router.infer_many([1, 2, 3])
    for i in range(20):
        router.infer(i)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    router.close()
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program that would like 20 paid calls, of which a limit allows five -> how many were made by all of them."""
    log = tmp_path / "calls"

    def run(how="closed", *, off=0.0, call="infer"):
        argv = [sys.executable, "-c", RUN, how, str(tmp_path / "state"), str(log), str(off), call]
        subprocess.run(argv, timeout=LONG, check=False)
        return len(log.read_text()) if log.exists() else 0

    return run


@pytest.mark.slow
@pytest.mark.parametrize("call", ["infer", "async", "batch"])
def test_a_crash_loop_spends_at_most_the_limit(run, call):
    """Killed right after each paid call, seven times: each was written before it was made."""
    assert [run("killed", call=call) for _ in range(7)][-1] <= 5
    assert 4 <= run(call=call) <= 5, "and an advance that a crash has lost is small"


@pytest.mark.slow
def test_a_crash_loop_within_a_minute(run):
    """The limit of calls per minute outlives a crash, too."""
    for how in ("minute", "end", "minute"):
        run(how)
    assert run("minute") == 5


@pytest.mark.slow
@pytest.mark.parametrize("off", [YEAR_S, *slow(-20 * YEAR_S)])
def test_a_clock_that_is_set_forward_and_back_resets_nothing(run, off):
    """While the system has not been started anew: by the time since its start, an hour is an hour."""
    assert run("end") == 5
    assert run(off=off) == 5
    assert run() == 5


def test_what_was_spent_by_a_wrong_clock_is_kept(tmp_path, monkeypatch):
    """Also over a start of the system, where only the clock tells: a year ahead nothing counts, and back again all of it does."""
    boot = ["first", 0.0]
    monkeypatch.setattr(wall_clock, "boot_clock", lambda: tuple(boot))
    monkeypatch.setattr(wall_clock, "now", lambda: 1_700_000_000.0 + boot[1])
    monkeypatch.setattr(wall_clock, "set_forward_s", lambda: 0.0)

    def spent(usd=0.0):
        store = KeyValueStore(tmp_path / "state.db")
        spending = SharedSpending(Spending(Limits(usd_per_day=1)), store)
        spending.recall()
        known = spending.spent().usd
        if usd:
            spending.add(Cost(usd=usd), wall_clock.now())
        spending.close()
        store.close()
        return known

    assert spent(0.5) == 0
    boot[:] = "second", float(YEAR_S)
    assert spent() == 0
    boot[:] = "third", 60.0
    assert spent(0.25) == 0.5
    assert spent() == 0.75


@pytest.mark.parametrize("http", [True, False], ids=["endpoint", "function"])
def test_an_event_loop_does_not_wait_for_the_ledger(tmp_path, monkeypatch, http, due):
    """A disk that stalls costs the call that is to be recorded; the edge's answer comes by its deadline, and others go on."""
    stalled, gate, opened = threading.Event(), threading.Event(), []

    def append(*_):
        stalled.set()
        opened.append(gate.wait(LONG))

    async def cloud(_):
        return "cloud", 0.9

    async def main(url):
        to = PlainJson(url, value="value", confidence="confidence") if http else cloud
        async with AsyncRouter(lambda _: ("edge", 0.1), to, threshold=0.5, state=tmp_path) as router:
            monkeypatch.setattr(Journal, "append", append)
            answer = await router.infer(1, deadline=due(stalled.is_set))
            gate.set()
            return answer

    with CannedServer(GOOD) as server:
        answer = asyncio.run(main(server.url))
    assert (answer.value, answer.degraded) == ("edge", True)
    assert all(opened)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_are_numbers(tmp_path, number):
    """Prices, limits and a share that were computed cost no answer, and what was spent is known to the next start."""
    cloud = Function(lambda _: ("cloud", 0.9), usd_per_call=number(1), joules_per_call=number(1))
    limits = Limits(usd_per_day=number(2), calls_per_minute=number(50))
    for source in ("cloud", "edge"):
        options = {"state": tmp_path, "limits": limits, "audit": Audit(share=number(1), scene=np.int64(1))}
        with Router(lambda _: ("edge", number(0)), cloud, threshold=0.5, **options) as router:
            assert [router.infer(i).source for i in range(2)] == [source] * 2


def test_seconds_of_numpy_are_pythons(tmp_path):
    """A float32 has steps of two minutes as an instant of today, and of a second after 100 days of uptime."""
    s = np.float32(3600)
    address = PlainJson("http://127.0.0.1:9", timeout_s=s).address
    outbox = Outbox(tmp_path / "o.db", ttl_s=s, spread_s=s, rate_per_s=s, max_bytes=np.int64(10**6), parallel=np.int64(2))
    chat = OpenAIChat("http://127.0.0.1:9", model="m", between_s=s)
    seconds = [address.timeout_s, outbox.ttl_s, outbox.spread_s, outbox.rate_per_s, chat.between_s]
    assert [*map(type, seconds)] == [float] * 5
    assert (type(outbox.max_bytes), type(outbox.parallel)) == (int, int)
    cache = Cache(disk=tmp_path / "c.db", ttl_s=s, stale_if_offline_s=s, negative_ttl_s=s)
    options = {"cache": cache, "options": Options(sensors=Reading, sensors_every=np.float32(1))}
    with Router(lambda _: ("edge", 0.9), None, **options) as router:
        assert [router.infer("x").source for _ in range(2)] == ["edge", "cache"]


def test_a_program_that_changes_its_folder_stays_with_its_files(tmp_path, monkeypatch):
    """Paths are those of the folder in which a router was made: else a limit would begin at zero, and the ledger be divided."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(tmp_path)
    cloud = Function(lambda _: ("cloud", 0.9), usd_per_call=1.0)
    options = {"threshold": 0.5, "state": "state", "limits": Limits(usd_per_day=3.0), "trace": "t.jsonl"}
    with Router(unsure, cloud, cache=Cache(disk="c.db"), outbox=Outbox("o.db"), offline="queue", **options) as router:
        router.infer(1)
        monkeypatch.chdir(there)
        assert [router.infer(x).source for x in (2, 3, 4)] == ["cloud", "cloud", "edge"]
    assert not [*there.iterdir()]
    monkeypatch.chdir(tmp_path)
    with Router(unsure, cloud, **options) as router:
        assert router.infer(5).source == "edge"


@pytest.mark.parametrize("http", [True, False], ids=["endpoint", "function"])
def test_a_call_whose_caller_left_while_the_ledger_was_written_costs_nothing(tmp_path, monkeypatch, http):
    """It was booked in a thread that a cancellation does not stop: the thread returns the money, as nothing is sent."""
    stalled, gate, asked = threading.Event(), threading.Event(), []

    def append(*_):
        stalled.set()
        assert gate.wait(LONG)

    async def cloud(x):
        asked.append(x)

    def returned(router):
        end = monotonic() + LONG
        while router.status().spent.usd:
            assert monotonic() < end

    async def main(url):
        to = PlainJson(url, usd_per_call=0.5) if http else Function(cloud, usd_per_call=0.5)
        async with AsyncRouter(lambda _: ("edge", 0.1), to, threshold=0.5, state=tmp_path) as router:
            monkeypatch.setattr(Journal, "append", append)
            task = asyncio.ensure_future(router.infer(1))
            await asyncio.to_thread(stalled.wait, LONG)
            task.cancel()
            await asyncio.wait([task])
            assert router.status().spent.usd == 0.5
            gate.set()
            await asyncio.to_thread(returned, router)
            assert router.status().spent.calls == 0

    with CannedServer(GOOD) as server:
        asyncio.run(main(server.url))
        assert not asked
        assert not server.requests


def test_bookings_wait_for_a_thread(tmp_path, monkeypatch):
    """More calls at once than a router has threads for its clouds: none is refused, as each booking waits for its turn."""
    gate, stalled = threading.Event(), threading.Event()
    monkeypatch.setattr("edgeroute.router.engine.CLOUD_MOST", 1)

    def append(*_):
        stalled.set()
        assert gate.wait(LONG)

    async def cloud(_):
        return "cloud", 0.9

    async def main():
        async with AsyncRouter(lambda _: ("edge", 0.1), cloud, threshold=0.5, state=tmp_path, deadline=LONG) as router:
            monkeypatch.setattr(Journal, "append", append)
            tasks = [asyncio.ensure_future(router.infer(x)) for x in range(3)]
            assert await asyncio.to_thread(stalled.wait, LONG)
            end = monotonic() + LONG
            while len(router.engine.cloud_threads.waiting) < 2 and not any(task.done() for task in tasks):
                assert monotonic() < end
                await asyncio.sleep(0.001)
            gate.set()
            return [answer.source for answer in await asyncio.gather(*tasks)]

    assert asyncio.run(main()) == ["cloud"] * 3


def test_what_was_spent_before_the_clock_was_set_counts_after_the_next_start(tmp_path, monkeypatch):
    """A service that begins before the network has told the time writes how far its clock was behind."""
    today = 1_700_000_000.0

    def start(boot, now, behind_s, usd=0.0):
        monkeypatch.setattr(wall_clock, "boot_clock", lambda: (boot, now))
        monkeypatch.setattr(wall_clock, "now", lambda: now)
        monkeypatch.setattr(wall_clock, "set_forward_s", lambda: behind_s)
        store = KeyValueStore(tmp_path / "state.db")
        spending = SharedSpending(Spending(Limits(usd_per_day=1)), store)
        spending.recall()
        known = spending.spent().usd
        if usd:
            spending.add(Cost(usd=usd), now)
        spending.close()
        store.close()
        return known

    start("first", 300.0, today - 300.0, 0.5)
    store = KeyValueStore(tmp_path / "state.db")
    ((_, text, _),) = store.rows("spending:")
    store.close()
    assert len(json.loads(text)["clock"]) == 2, "as versions before read it, which are installed again after a bad update"
    assert start("second", today + 3600.0, 0.0) == 0.5
    assert start("third", today + 2 * 86_400.0, 0.0) == 0


def test_the_clock_was_set_forward_or_not(monkeypatch):
    """Backward does not count: amounts in the future count as of now."""
    monkeypatch.setattr(wall_clock.time, "time", lambda: wall_clock.now() + 60.0)
    assert wall_clock.set_forward_s() == pytest.approx(60.0, abs=1.0)
    monkeypatch.setattr(wall_clock.time, "time", lambda: wall_clock.now() - 60.0)
    assert wall_clock.set_forward_s() == 0


@pytest.mark.parametrize("limits", [Limits(usd_per_day=0.01), Limits(mb_per_day=0.001)])
def test_an_event_loop_does_not_wait_for_what_another_call_writes(tmp_path, monkeypatch, limits):
    """The reply to a call is booked, and its answer given, while the disk takes long for another call."""
    flush, writes, answered, in_time = KeyValueStore.flush, threading.Event(), threading.Event(), []

    def slow(store):
        writes.set()
        in_time.append(answered.wait(5))
        return flush(store)

    async def main(server):
        cloud = PlainJson(f"{server.url}/json", usd_per_call=0.001)
        options = {"threshold": 0.5, "state": tmp_path, "limits": limits}
        async with AsyncRouter(unsure, cloud, **options) as router:
            first = asyncio.ensure_future(router.infer(1))
            await asyncio.to_thread(server.wait_for, lambda: server.requests)
            monkeypatch.setattr(KeyValueStore, "flush", slow)
            second = asyncio.ensure_future(router.infer("longer" * 20))
            await asyncio.to_thread(writes.wait, LONG)
            server.open()
            assert (await first).source == "cloud"
            answered.set()
            assert (await second).source == "cloud"

    with GatedServer(GOOD) as server:
        asyncio.run(main(server))
    assert in_time[0]


def test_what_has_arrived_on_an_event_loop_is_written_with_the_next_booking(tmp_path, monkeypatch):
    """Its bytes, say. In a thread they are written at once."""
    monkeypatch.setattr("edgeroute.stores.sqlite_file_and_key_values.DELAY_S", LONG)  # nothing is written by time
    store = Counted(tmp_path / "state.db")
    spending = SharedSpending(Spending(Limits(mb_per_day=1)), store)

    async def arrive():
        spending.add(Cost(mb=0.5), wall_clock.now())

    asyncio.run(arrive())
    assert (store.writes, spending.unwritten) == (0, True)
    assert spending.reserve(Cost(mb=0.1), wall_clock.now()) is None
    assert spending.secure(Cost(mb=0.1)) is None
    assert (store.writes, spending.unwritten) == (1, False)
    store.close()


# state that is not known


def damaged(path):
    path.write_bytes(b"garbage" * 1000)


def emptied(path):
    os.truncate(path, 0)


def replaced(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        *((damage, "state.db was damaged.* 25 h") for damage in (damaged, emptied)),
        (replaced, "state.db"),
    ],
)
def test_a_state_that_cannot_be_read(make, damage, why, tmp_path, caplog):
    """A limit refuses, in the log and in the reason; the edge answers; and what has no limit goes on."""
    make(unsure, Paid().target(), threshold=0.8, limits=Limits(usd_per_day=0.05), state=tmp_path).close()
    path = tmp_path / "state.db"
    damage(path)
    for _ in range(2):  # a further start knows no more
        paid = Paid()
        router = make(unsure, paid.target(), threshold=0.8, limits=Limits(usd_per_day=0.05), state=tmp_path)
        for call in ("infer", "infer_many", "refine", "stream"):
            answer = ask(router, call, 1)
            assert (answer.source, answer.degraded, paid.runs) == ("edge", True, 0)
            assert answer.reason_code == "usd_per_day"
            assert "0.05" in answer.reason
        assert re.search(why, routes.error(answer))
        router.close()
        free = make(unsure, paid.target(usd_per_call=0.0), threshold=0.8, limits=Limits(usd_per_day=0.05), state=tmp_path)
        assert free.infer(1).source == "cloud"
        free.close()
    assert "nothing that has a limit is sent" in caplog.text


def test_a_state_that_is_locked(make, tmp_path, monkeypatch):
    """Nothing is spent while another program holds the file, and once it lets go of it all goes on as before."""
    monkeypatch.setattr(Database.__init__, "__kwdefaults__", {**Database.__init__.__kwdefaults__, "busy_s": 0.05})
    monkeypatch.setattr(earlier, "AGAIN_S", 0.0)
    paid = Paid()
    options = {"threshold": 0.8, "limits": Limits(usd_per_day=0.05), "state": tmp_path}
    router = make(unsure, paid.target(), **options)
    assert [router.infer(i).source for i in range(3)] == ["cloud"] * 3
    router.close()
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    router = make(unsure, paid.target(), **options)
    answer = router.infer(1)
    assert (answer.source, paid.runs) == ("edge", 3)
    assert answer.reason_code == "usd_per_day"
    other.close()
    while router.infer(1).source == "edge":  # it was read once more, in a thread
        for thread in [t for t in threading.enumerate() if t.name == "edgeroute-state"]:
            thread.join(LONG)
    assert [router.infer(i).source for i in range(3)] == ["cloud", "edge", "edge"]
    assert paid.runs == 5


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", *slow("BEGIN EXCLUSIVE")])
@pytest.mark.parametrize("offline", ["edge", "queue"])
def test_one_call_waits_for_a_state_that_is_locked(make, tmp_path, monkeypatch, statement, offline):
    """It has the edge's answer by its deadline; the next ones have it at once and name the limit, until the file is free again.

    With a queue the call itself goes on past its deadline.
    """
    monkeypatch.setattr(earlier, "AGAIN_S", 0.0)
    monkeypatch.setattr(Database.__init__, "__kwdefaults__", {**Database.__init__.__kwdefaults__, "busy_s": 10 * LONG})
    paid = Paid()
    options = {"limits": Limits(usd_per_day=5.0), "state": tmp_path, "deadline": LONG, "offline": offline}
    router = make(unsure, paid.target(), threshold=0.8, **options)
    assert router.infer(1).source == "cloud"
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute(statement)
        while router.infer(1, deadline=3.0).source == "cloud":  # it is booked already
            pass
        codes = iter(lambda: router.infer(1, deadline=3.0).reason_code, "usd_per_day")  # the first one's thread ends after it
        assert len([*itertools.islice(codes, 10)]) < 10
        sent = paid.runs
        for call in ("infer", "infer_many", "refine", "stream"):
            answer = ask(router, call, 1, deadline=LONG)
            assert (answer.source, answer.reason_code) == ("edge", "usd_per_day")
        assert paid.runs == sent
    wait_for(lambda: router.infer(1).source == "cloud")
    wait_for(lambda: router.engine.spending.spent().usd == pytest.approx(0.01 * paid.runs))  # what is queued is sent, too


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_the_start_waits_for_no_writer_of_the_state(make, tmp_path, monkeypatch, statement):
    """What was spent is read beside another process's transaction, however long that lasts."""
    paid = Paid()
    options = {"threshold": 0.8, "limits": Limits(usd_per_day=0.05), "state": tmp_path}
    router = make(unsure, paid.target(), **options)
    assert [router.infer(i).source for i in range(3)] == ["cloud"] * 3
    router.close()
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute(statement)
    slept = []
    with monkeypatch.context() as patch:
        patch.setattr("edgeroute.stores.sqlite_file_and_key_values.sleep", slept.append)
        router = make(unsure, paid.target(), **options)
    assert slept == []
    assert router.engine.spending.spent().usd == pytest.approx(0.03)
    other.close()


def test_a_state_that_cannot_be_written(make, tmp_path, monkeypatch):
    """A limit refuses what it cannot write first, and gives it back; when the disk works again nothing has been lost."""
    paid = Paid()
    router = make(unsure, paid.target(), threshold=0.8, limits=Limits(usd_per_day=0.05), state=tmp_path)
    assert router.infer(1).source == "cloud"
    real = KeyValueStore.flush
    monkeypatch.setattr(KeyValueStore, "flush", lambda self: False)
    for call in ("infer", "infer_many"):
        answer = ask(router, call, 1)
        assert (answer.source, paid.runs) == ("edge", 1)
        assert answer.reason_code == "usd_per_day"
    assert router.engine.spending.spent().usd == pytest.approx(0.01)
    monkeypatch.setattr(KeyValueStore, "flush", real)
    assert [router.infer(i).source for i in range(5)] == ["cloud"] * 4 + ["edge"]


def test_a_damaged_record(tmp_path, caplog):
    """One process's record cannot be read: it may have spent anything until it was written, so a limit refuses for its window."""
    store = KeyValueStore(tmp_path / "state.db")
    store.put("spending:1", {"usd_per_day": 7})
    store.put("spending:2", ["nonsense"])
    store.put("spending:3", {"usd_per_day": [], "clock": [wall_clock.boot_clock()[0], 10**400]})
    store.put("latency", {})
    store.flush()
    spending = SharedSpending(Spending(Limits(usd_per_day=1, calls_per_minute=9)), store)
    assert spending.recall()
    assert "the record spending:" in spending.reserve(Cost(usd=0.1), wall_clock.now()).text
    assert spending.reserve(Cost(mb=0.1), wall_clock.now()) is None
    assert spending.reserve(Cost(usd=0.1), wall_clock.now() + 25 * 3600) is None
    assert "is damaged" in caplog.text
    store.close()


def test_a_file_that_was_set_aside_long_ago(tmp_path, monkeypatch, caplog):
    """It counts for no window any more; nor does one that is not there."""
    (tmp_path / "state.db.corrupt-1").write_text("garbage")
    later = wall_clock.now() + 26 * 3600
    monkeypatch.setattr(wall_clock, "now", lambda: later)
    store = KeyValueStore(tmp_path / "state.db")
    spending = SharedSpending(Spending(Limits(usd_per_day=1)), store)
    assert spending.recall()
    assert spending.reserve(Cost(usd=0.1), later) is None
    assert caplog.text == ""
    store.close()


def test_records_that_count_no_more(tmp_path, monkeypatch):
    """A few are kept, as a clock may be wrong; more are deleted, the oldest first."""
    monkeypatch.setattr(earlier, "MOST_RECORDS", 3)
    store = KeyValueStore(tmp_path / "state.db")
    old = {name: [[1000.0, 1.0]] for name in Limits._fields}
    for i in range(6):
        store.put(f"spending:{i}", old)
        store.flush()
    spending = SharedSpending(Spending(Limits(usd_per_day=1)), store)
    assert spending.recall()
    assert (len(store.rows("spending:")), spending.spent()) == (3, Cost())
    store.close()


# how it is written


class Counted(KeyValueStore):
    """Counts its writes."""

    writes = 0

    def flush(self):
        """One more."""
        self.writes += 1
        return super().flush()


def on_disk(path):
    """Amounts in all records, of the first limit."""
    with contextlib.closing(KeyValueStore(path)) as store:
        found = [json.loads(text) for _, text, _ in store.rows("spending:")]
    return sum(amount for dumped in found for _, amount in dumped["usd_per_day"])


def test_written_ahead_in_advances(tmp_path):
    """1,000 calls need few writes; the file always has at least what was spent, and at most a 64th of the limit more."""
    store = Counted(tmp_path / "state.db")
    spending = SharedSpending(Spending(Limits(usd_per_day=20)), store)
    for n in range(1, 1001):
        assert spending.reserve(Cost(usd=0.01), wall_clock.now()) is None
        assert spending.secure(Cost(usd=0.01)) is None
        assert not spending.unwritten
        if n % 97 == 0:
            assert n * 0.01 - 1e-6 <= on_disk(tmp_path / "state.db") <= n * 0.01 + 20 / 64 + 1e-6
    assert store.writes < 50
    spending.close()
    store.close()
    assert on_disk(tmp_path / "state.db") == pytest.approx(10)


def test_what_a_call_gives_back_does_not_stay_on_disk(tmp_path):
    """A language model's call is booked for all tokens that it may have; what a crash leaves is by those that it had."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    message = {"role": "assistant", "content": "yes"}
    reply = http_reply(
        json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode(),
        headers=[("Content-Type", "application/json")],
    )
    with CannedServer(reply) as server:
        cloud = OpenAIChat(server.url, model="m", max_tokens=500, usd_per_million_output_tokens=1e4)
        with Router(cloud=cloud, state=tmp_path, limits=Limits(usd_per_day=6.4)) as router:
            router.infer("?")
            wait_for(lambda: 0.02 <= on_disk(tmp_path / "state.db") * 1.000001 <= 0.02 + 0.1)


def test_many_at_once_share_a_write(tmp_path):
    """32 threads of 50 calls: none is sent before it is in the file, and the limit holds."""
    store = Counted(tmp_path / "state.db")
    spending = SharedSpending(Spending(Limits(usd_per_day=10)), store)
    granted = []

    def work():
        for _ in range(50):
            if spending.reserve(Cost(usd=0.01), wall_clock.now()) is None and spending.secure(Cost(usd=0.01)) is None:
                granted.append(1)
                spending.keep()

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(granted) == 1000
    assert on_disk(tmp_path / "state.db") == pytest.approx(10)
    store.close()


def test_what_has_no_limit_is_not_written_ahead(tmp_path, monkeypatch):
    """Nor does a cost that has none wait for what was not written; what has come anyway is written at once if it has a limit."""
    monkeypatch.setattr("edgeroute.stores.sqlite_file_and_key_values.DELAY_S", LONG)
    store = Counted(tmp_path / "state.db")
    spending = SharedSpending(Spending(Limits()), store)
    assert spending.reserve(Cost(usd=1.0), wall_clock.now()) is None
    assert spending.secure(Cost(usd=1.0)) is None
    spending.add(Cost(mb=1.0), wall_clock.now())
    assert store.writes == 0
    spending.set_limits(Limits(mb_per_day=100))
    spending.add(Cost(mb=1.0), wall_clock.now())
    assert store.writes == 1
    store.flush = lambda: False
    spending.add(Cost(mb=50.0), wall_clock.now())
    assert spending.secure(Cost(usd=1.0)) is None
    assert spending.secure(Cost(mb=1.0)).code == "mb_per_day"
    del store.flush
    store.close()


def test_a_forked_child_has_a_record_of_its_own(tmp_path):
    """What its parent has spent counts in both, and is written by the parent alone."""
    store = KeyValueStore(tmp_path / "state.db")
    spending = SharedSpending(Spending(Limits(usd_per_day=10)), store)
    spending.add(Cost(usd=1.0), wall_clock.now())
    child = os.fork()
    if not child:
        assert spending.spent().usd == 1
        spending.add(Cost(usd=2.0), wall_clock.now())
        spending.close()
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    spending.close()
    store.close()
    assert on_disk(tmp_path / "state.db") == pytest.approx(3)


def test_a_forked_child_reads_a_file_that_its_parent_was_about_to_read(tmp_path, monkeypatch):
    """The parent's thread is not in the child, which refused whatever has a limit for ever."""
    path = tmp_path / "state.db"
    store = KeyValueStore(path)
    spending = SharedSpending(Spending(Limits(usd_per_day=10)), store)
    monkeypatch.setattr(earlier, "AGAIN_S", 0.0)
    path.mkdir()
    assert not spending.recall()
    path.rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(earlier, "start_thread", lambda *_: threading.current_thread())  # one that has not begun yet
        assert spending.reserve(Cost(usd=1.0), wall_clock.now()).code == "usd_per_day"
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            wait_for(lambda: spending.reserve(Cost(usd=1.0), wall_clock.now()) is None)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.close()


def test_a_limit_of_waits_within_another_is_no_longer():
    """As where a router that closes books what it has spent."""
    with files_and_lock_waits.limited_waits(1.0), files_and_lock_waits.limited_waits(float("inf")):
        assert files_and_lock_waits.wait_s(LONG) <= 1.0
    with files_and_lock_waits.limited_waits(LONG), files_and_lock_waits.limited_waits(1.0):
        assert files_and_lock_waits.wait_s(LONG) <= 1.0
    assert files_and_lock_waits.wait_s(LONG) == LONG


def test_a_lock_is_taken_and_kept_in_one_step():
    """Another thread, which may wait long, does not come between the wait for a lock and what is done with it."""
    lock, others = threading.RLock(), []

    def other():
        with files_and_lock_waits.limited_waits(0.0), files_and_lock_waits.held_in_time(lock) as is_held:
            others.append(is_held)

    for most_s in (LONG, float("inf")):
        with files_and_lock_waits.limited_waits(most_s), files_and_lock_waits.held_in_time(lock) as is_held:
            assert is_held
            thread = threading.Thread(target=other, daemon=True)
            thread.start()
            thread.join(LONG)
    other()
    assert others == [False, False, True]


def test_a_slow_disk_is_not_a_file_that_is_locked(tmp_path):
    """A call that has no time for it is not sent; the next ones are, as soon as the disk has what they spend."""
    store, gate, begun = KeyValueStore(tmp_path / "state.db"), threading.Event(), threading.Event()
    flush = store.flush
    store.flush = lambda: (begun.set(), gate.wait(LONG), flush())[2]
    spending = SharedSpending(Spending(Limits(usd_per_day=10)), store)
    assert spending.reserve(Cost(usd=0.01), wall_clock.now()) is None
    writer = threading.Thread(target=spending.secure, args=(Cost(usd=0.01),), daemon=True)
    writer.start()
    assert begun.wait(LONG)
    assert spending.reserve(Cost(usd=1.0), wall_clock.now()) is None
    assert spending.secure(Cost(usd=1.0), until=0.0).code == "usd_per_day"
    assert spending.reserve(Cost(usd=1.0), wall_clock.now()) is None
    gate.set()
    assert spending.secure(Cost(usd=1.0)) is None
    writer.join(LONG)
    store.close()


def test_without_a_file(caplog):
    """Nothing is written and nothing is unknown."""
    spending = SharedSpending(Spending(Limits(usd_per_day=1)), None)
    assert spending.recall()
    assert spending.reserve(Cost(usd=0.1), wall_clock.now()) is None
    spending.keep()
    spending.close()
    assert caplog.text == ""


# several routers of one process


def test_routers_that_share_a_state_share_its_limits(make, tmp_path):
    """In turn, in whichever way their folder is written, and also after one of them has been closed."""
    paid = Paid()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    a, b = (
        make(unsure, paid.target(usd_per_call=0.4), threshold=0.8, limits=Limits(usd_per_day=4), state=state)
        for state in (tmp_path, str(tmp_path / "link"))
    )
    for _ in range(4):
        assert a.infer(1).source == b.infer(1).source == "cloud"
    a.close()
    assert [b.infer(1).source for _ in range(3)] == ["cloud", "cloud", "edge"]
    again = make(unsure, paid.target(usd_per_call=0.4), threshold=0.8, limits=Limits(usd_per_day=4), state=tmp_path)
    assert (again.infer(1).source, paid.runs) == ("edge", 10)
    b.close()
    again.close()
    later = make(unsure, paid.target(usd_per_call=0.4), threshold=0.8, limits=Limits(usd_per_day=4), state=tmp_path)
    assert (later.infer(1).source, paid.runs) == ("edge", 10)
    assert on_disk(tmp_path / "state.db") == pytest.approx(4)


def test_each_router_has_its_own_limits(make, tmp_path):
    """What is booked is one account: one that may spend more goes on, and what one without limits spends counts for the others."""
    paid = Paid()
    little, much, free = (
        make(unsure, paid.target(usd_per_call=0.4), threshold=0.8, limits=limits, state=tmp_path)
        for limits in (Limits(usd_per_day=2), Limits(usd_per_day=4), None)
    )
    for _ in range(4):
        assert free.infer(1).source == "cloud"
    assert [little.infer(1).source for _ in range(2)] == ["cloud", "edge"]
    assert [much.infer(1).source for _ in range(6)] == ["cloud"] * 5 + ["edge"]
    assert free.infer(1).source == "cloud"
    assert [router.stats().usd_today for router in (little, much, free)] == pytest.approx([4.4] * 3)


def test_what_others_have_recorded_is_added_once(tmp_path):
    """Another router reads the file again: it has records that the first one did not find."""
    user, other = Paid(), Paid()
    first = KeyValueStore.shared_store(tmp_path / "state.db", user)
    mine = SharedSpending(Spending(Limits(usd_per_day=9)), first)
    mine.add(Cost(usd=1.0), wall_clock.now())
    with contextlib.closing(KeyValueStore(tmp_path / "state.db")) as store:  # another process
        its = SharedSpending(Spending(Limits(usd_per_day=9)), store)
        its.add(Cost(usd=2.0), wall_clock.now())
        its.close()
    assert mine.spent().usd == 1
    for _ in range(2):
        second = SharedSpending(Spending(Limits(usd_per_day=5)), KeyValueStore.shared_store(tmp_path / "state.db", other))
        assert second.recall()
        assert mine.spent().usd == second.spent().usd == 3
    child = os.fork()
    if not child:
        assert second.recall()
        os._exit(int(second.spent().usd))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    for each in (user, other):
        first.leave(each)
    assert KeyValueStore.shared_store(tmp_path / "state.db", user) is not first


def test_threads_of_two_routers(tmp_path):
    """They reserve from one account: 1,000 of 3,200 calls fit."""
    users = [Paid() for _ in range(2)]
    stores = [KeyValueStore.shared_store(tmp_path / "state.db", user) for user in users]
    both = [SharedSpending(Spending(Limits(usd_per_day=10)), store) for store in stores]
    granted = []

    def work(spending):
        for _ in range(100):
            if spending.reserve(Cost(usd=0.01), wall_clock.now()) is None and spending.secure(Cost(usd=0.01)) is None:
                granted.append(1)
                spending.keep()

    threads = [threading.Thread(target=work, args=(both[i % 2],)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(granted) == 1000
    assert on_disk(tmp_path / "state.db") == pytest.approx(10)
    for store, user in zip(stores, users, strict=True):
        store.leave(user)
