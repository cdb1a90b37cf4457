"""Odd peers, odd models and odd callers: none of them gets another's answer, or costs one."""

import asyncio
import contextlib
import ctypes
import json
import signal
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue

import numpy as np
import pytest
import routes
from both import CALLS, DOWN, GOOD, LONG, GatedServer, Threads, ask, flat, header, makes, sure, unsure

from edgeroute import (
    AsyncRouter,
    Audit,
    Cache,
    Closed,
    Instrument,
    Limits,
    NoAnswer,
    Outbox,
    PlainJson,
    PolicyError,
    Router,
    Rule,
    Unreachable,
)
from edgeroute.router.policy_reload import replace
from edgeroute.router.policy_snapshot import PolicyArguments
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


@pytest.fixture
def gate():
    """Open once the test has ended, so that what hangs does not hang for ever."""
    gate = threading.Event()
    yield gate
    gate.set()


def said(value):
    """The reply that says so."""
    return http_reply(json.dumps({"value": value, "confidence": 0.9}).encode())


def asked(request):
    """The input in a request."""
    return json.loads(request.partition(b"\r\n\r\n")[2])["input"]


def test_a_server_that_replies_twice(make):
    """The reply that nobody asked for is not the next request's."""
    with CannedServer(lambda request: said(asked(request)) + said("another's")) as server:
        router = make(unsure, PlainJson(server.url))
        assert [router.infer(x).value for x in "abc"] == ["a", "b", "c"]


def test_a_row_that_waited_in_vain_is_not_taken_for_the_others(make):
    """It is asked in a call of its own, with a key of its own: an endpoint gives what has the same key the same reply."""
    kept, first = {}, []

    def reply(request):
        if asked(request) == "b" and not first:
            first.append(request)
            return DOWN
        return kept.setdefault(header(request, "Idempotency-Key"), said(asked(request)))

    with GatedServer(reply) as server:
        router = make(unsure, PlainJson(server.url, retries=0), cache=Cache())
        answers = Queue()
        leader = threading.Thread(target=lambda: answers.put([router.infer("b")]))
        leader.start()
        while not server.requests:
            threading.Event().wait(0.001)
        batch = threading.Thread(target=lambda: answers.put(router.infer_many(["a", "b"])))
        batch.start()
        while len(server.requests) < 2:  # a's, while b waits for the leader
            threading.Event().wait(0.001)
        server.open()
        leader.join(LONG)
        batch.join(LONG)
        assert sorted([a.value for a in answers.get()] for _ in range(2)) == [["a", "b"], ["edge"]]


FRAME = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "x",
    [
        memoryview(FRAME), memoryview(FRAME.T), memoryview(FRAME.astype(">f4")), memoryview(FRAME[:0]), memoryview(FRAME[0, 0]),
        memoryview(b"abc"), array("f", [1, 2]), (ctypes.c_float * 2)(1, 2),
    ],
    ids=["2d", "transposed", "big-endian", "empty", "scalar", "bytes", "array.array", "ctypes"],
)  # fmt: skip
def test_a_buffer_is_the_same_input_with_a_deadline(make, x):
    """The copy that a leg beside the caller reads has the dtype and the shape of the caller's."""
    router = make(lambda x: ((np.asarray(x).dtype.newbyteorder("="), np.asarray(x).tolist()), 0.9), None)
    assert router.infer(x, deadline=LONG).value == router.infer(x).value


@pytest.mark.parametrize(
    "x",
    [array("f", [1, 2]), (ctypes.c_float * 2)(1, 2), memoryview(bytearray(b"ab"))],
    ids=["array.array", "ctypes", "memoryview"],
)
def test_a_buffer_that_is_used_again(make, gate, due, x):
    """A leg that outlives its call reads what was in it then."""
    read, before, begun = Queue(), list(x), threading.Event()

    def cloud(x):
        begun.set()
        gate.wait()
        read.put(list(x))
        return "cloud", 0.9

    assert make(unsure, cloud).infer(x, deadline=due(begun.is_set)).degraded
    x[0] = 9
    gate.set()
    assert read.get(timeout=LONG) == before
    x[0] = before[0]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["its own thread", "another thread"])
@pytest.mark.parametrize("call", ["refine", "stream"])
def test_a_generator_that_is_half_read_holds_up_no_equal_request(call, elsewhere):
    """However long its reader leaves it, in whichever thread the other is asked."""

    def cloud(x):
        yield "cl"
        yield "oud"

    with Router(unsure, cloud, threshold=0.5, cache=Cache()) as router:
        steps = iter(getattr(router, call)("x"))
        next(steps)
        if elsewhere:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(router.infer, "x").result(LONG).value == "cloud"
        else:
            assert router.infer("x").value == "cloud"
        steps.close()


def test_a_signal_handler_asks_what_is_being_asked():
    """It does not wait for what it has interrupted."""
    told = []

    def handler(*_):
        told.append(None)
        told.append(router.infer("x").value)

    def cloud(_):
        if not told:
            signal.raise_signal(signal.SIGUSR1)
        return "cloud", 0.9

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Router(unsure, cloud, threshold=0.5, cache=Cache()) as router:
            assert router.infer("x").value == "cloud"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told == [None, "cloud"]


@pytest.mark.parametrize("call", ["infer", "infer_many"])
def test_of_two_clouds_that_are_late_one_is_told(make, gate, due, call):
    """Once for each request, whoever else answers it later."""
    gates, begun, told, ended = [threading.Event(), threading.Event()], [], Queue(), Queue()

    def cloud(i):
        def late(_):
            begun.append(i)
            gates[i].wait(LONG)
            return f"cloud {i}", 0.9

        return late

    class Ends(Instrument):
        def attempt_ended(self, event):
            ended.put(event)

    deadline = due(lambda: len(begun) == 2)
    router = make(unsure, [cloud(0), cloud(1)], deadline=deadline, hedge_after=0.01, instruments=[Ends()])
    router.on_late(lambda late: told.put((late.id, late.value)))
    answer = ask(router, call, "x")
    assert answer.degraded
    for one in gates:
        one.set()
        assert ended.get(timeout=LONG).error is None
    assert told.get(timeout=LONG)[0] == answer.id
    router.close()
    assert told.empty()
    assert router.stats().late == 1


def test_an_instrument_of_its_own_kind(make):
    """Methods that it lacks, or cannot give, cost no answer; the others hear of it."""
    ended = []

    class Half:
        def request_ended(self, event):
            ended.append(event.answer.value)

        @property
        def attempt_ended(self):
            raise RuntimeError("not yet")

    router = make(unsure, sure, instruments=[Half(), Half()])
    assert router.infer("x").source == "cloud"
    router.close()
    assert len(ended) == 2


async def hangs(_):
    """A cloud that never answers."""
    await asyncio.sleep(10 * LONG)


def hanging():
    """Another one, and what it was asked so far."""
    begun = []

    async def cloud(x):
        begun.append(x)
        await hangs(x)

    return cloud, begun


def test_closing_does_not_wait_for_a_coroutine_that_goes_on(caplog, due):
    """Though it was cancelled."""
    begun, ended = [], []

    async def main():
        over = asyncio.Event()

        async def cloud(_):
            begun.append(True)
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()
            ended.append(True)

        router = AsyncRouter(unsure, cloud, threshold=0.5, deadline=due(lambda: begun))
        assert (await router.infer("x")).degraded
        await router.close()
        assert not ended
        over.set()
        while not ended:  # noqa: ASYNC110 - the coroutine under test has no event to wait for
            await asyncio.sleep(0)

    asyncio.run(main())
    assert caplog.records == []


@pytest.mark.parametrize("ended", [False, True], ids=["open", "closed"])
def test_closing_on_another_loop(ended, due):
    """A leg that was left on the loop before is not this one's to end."""
    cloud, begun = hanging()
    router, loop = AsyncRouter(unsure, cloud, threshold=0.5, deadline=due(lambda: begun)), asyncio.new_event_loop()
    router.on_late(lambda late: None)
    assert loop.run_until_complete(router.infer("x")).degraded
    (left,) = asyncio.all_tasks(loop)
    if not ended:
        asyncio.run(router.close())
    left.cancel()
    loop.run_until_complete(asyncio.gather(left, return_exceptions=True))
    loop.close()
    asyncio.run(router.close())


def test_closing_that_is_cancelled(due):
    """It is closed all the same."""

    async def main():
        cloud, begun = hanging()
        router = AsyncRouter(unsure, cloud, threshold=0.5, deadline=due(lambda: begun))
        router.on_late(lambda late: None)
        await router.infer("x")
        closing = asyncio.ensure_future(router.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(Closed):
            await router.infer("x")
        await asyncio.sleep(0)
        assert not router.engine.edge_threads.idle

    asyncio.run(main())


def test_no_leg_begins_while_closing():
    """A call that goes on from one cloud to the next ends there, with what it has."""

    async def main():
        begun, second = asyncio.Event(), FakeCloud([("second", 0.9)])

        async def first(_):
            begun.set()
            await hangs(_)

        async def next_one(x):
            return second(x)

        router = AsyncRouter(unsure, [first, next_one], threshold=0.5)
        asking = asyncio.ensure_future(router.infer("x"))
        await begun.wait()
        await router.close()
        answer = await asyncio.wait_for(asking, LONG)
        assert (answer.value, answer.degraded, second.runs) == ("edge", True, 0)
        assert routes.code(answer, "cloud-2") == "stopped"

    asyncio.run(main())


class Stubborn(FakeModel):
    """A model that cannot be closed."""

    def __init__(self, error, **more):
        super().__init__([("edge", 0.9)], **more)
        self.error, self.closed = error, 0

    def close(self):
        """Raises."""
        self.closed += 1
        raise self.error


def reloaded(router, edge):
    """Puts another edge in force, as a reload does."""
    replace(router.engine, PolicyArguments(edge, threshold=0.5), Limits(), False)


@pytest.mark.parametrize("error", [RuntimeError("not now"), SystemExit(1)], ids=repr)
def test_models_that_cannot_be_closed(error):
    """Neither a reload nor closing raises what they do, and each is tried."""
    models = [Stubborn(error, name=name) for name in "ab"]
    with Router(models, None, threshold=0.5) as router:
        last = Stubborn(error)
        reloaded(router, last)
        assert [model.closed for model in models] == [1, 1]
        assert router.infer("x").value == "edge"
    assert last.closed == 1


def test_a_model_that_cannot_be_closed_after_its_last_run(gate):
    """The answer of that run is there all the same."""
    model = Stubborn(RuntimeError("not now"), gate=gate)
    with Threads(model, None, threshold=0.5) as router:
        answer = router.start("x")
        assert model.begun.wait(LONG)
        reloaded(router, sure)
        gate.set()
        assert answer.result(LONG).value == "edge"
    assert model.closed == 1


@pytest.mark.parametrize("told", [None, {"battery": 1}, ("low", None), (0.1, 20.0)], ids=repr)
def test_sensors_that_tell_something_else(make, told):
    """What cannot be read costs no answer; a plain pair of numbers is as good as a `Reading`."""
    router = make(unsure, sure, rules=[Rule("battery", "only_edge", 0.2)], sensors=lambda: told)
    assert router.infer("x").source == ("edge" if told == (0.1, 20.0) else "cloud")
    router.engine.observer.read()
    assert router.infer("x").source == ("edge" if told == (0.1, 20.0) else "cloud")


@dataclass
class Answers:
    """A model or a cloud without a hash."""

    value: str
    confidence: float

    def __call__(self, x):
        """The same for every input."""
        return self.value, self.confidence


def test_callables_without_a_hash(make):
    """A dataclass is a callable as any other; a reload keeps what is the same."""
    edge, cloud = Answers("edge", 0.1), Answers("cloud", 0.9)
    router = make(edge, cloud)
    assert router.infer("x").value == "cloud"
    before = router.engine.snapshot.backends
    replace(router.engine, PolicyArguments(edge, cloud, threshold=0.4, awaits=router.engine.arguments.awaits), Limits(), False)
    assert router.engine.snapshot.backends == before


def locks_of(thing):
    """The locks of an object, and of those of this package that it has."""
    for value in vars(thing).values():
        if isinstance(value, (type(threading.Lock()), type(threading.RLock()))):
            yield value
        elif type(value).__module__.startswith("edgeroute") and hasattr(value, "__dict__"):
            yield from locks_of(value)


def test_a_signal_handler_in_the_middle_of_the_cache_on_disk(tmp_path):
    """It takes the locks that its thread has."""
    cache, done = Cache(disk=tmp_path / "cache.db"), threading.Event()
    locks = [*locks_of(cache)]
    assert len(locks) > 2, "those of the memory, of the disk and of its file"

    def work():
        with contextlib.ExitStack() as held:
            for lock in locks:
                held.enter_context(lock)
            with Router(sure, None, cache=cache) as router:
                router.infer("x")
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(LONG)


def test_a_cloud_that_exits_while_it_is_delivered_to(tmp_path):
    """The entry is dead, as after any other exception of a function; it is not sent for ever."""
    cloud = FakeCloud([Unreachable("away"), SystemExit(3)])
    outbox = Outbox(tmp_path / "outbox.db", spread_s=0)
    with Router(unsure, cloud, threshold=0.5, offline="queue", outbox=outbox) as router:
        assert not router.infer("x").final
        router.engine.queue.delivery.wake(now=True)
        while not outbox.list("dead"):
            threading.Event().wait(0.001)
        assert cloud.runs == 2


class Uncopied:
    """A tensor for whose copy there is no memory."""

    dtype = "float32"

    def clone(self):
        """There is none."""
        raise MemoryError("no room for a copy")


@pytest.mark.parametrize("call", CALLS)
def test_an_input_that_cannot_be_copied(make, call):
    """The edge reads the caller's own while the caller waits; a leg that may outlive the call is not begun."""
    cloud = FakeCloud([("cloud", 0.9)])
    answer = ask(make(unsure, cloud), call, Uncopied(), deadline=LONG)
    assert (answer.value, answer.degraded, cloud.runs) == ("edge", True, 0)
    assert "MemoryError" in routes.failures(answer)


def test_an_input_that_cannot_be_copied_is_not_queued(tmp_path):
    """Which is said."""
    with Router(unsure, FakeCloud([Unreachable("away")]), threshold=0.5, offline="queue", state=tmp_path) as router:
        answer = router.infer(Uncopied(), deadline=LONG)
        assert (answer.value, answer.degraded, answer.final) == ("edge", True, True)
        assert routes.note(answer) == f"{routes.NOT_STORED}: MemoryError"


@pytest.mark.parametrize("deadline", [None, LONG])
def test_a_cloud_whose_own_event_loop_is_cancelled(make, deadline):
    """That is a fault as any other, with a thread of its own or in the caller's."""

    async def client():
        raise asyncio.CancelledError

    answer = make(unsure, lambda _: asyncio.run(client())).infer("x", deadline=deadline)
    assert (answer.value, answer.degraded) == ("edge", True)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("offline", ["edge", "raise"])
def test_what_stands_in_for_a_cloud_that_is_skipped(make, gate, call, offline):
    """Is marked as degraded, or raised, as with any other fault of the cloud."""
    router = make(unsure, FakeCloud([("cloud", 0.9)], gate=gate), deadline=LONG, offline=offline)
    (backend,) = router.engine.snapshot.clouds
    backend.max_abandoned = 0
    router.engine.observe()
    if offline == "raise":
        with pytest.raises(NoAnswer, match="cloud "):
            ask(router, call, "x")
    else:
        answer = ask(router, call, "x")
        assert (answer.value, answer.degraded) == ("edge", True)
        assert answer.reason_code == "busy"


def test_a_batch_that_is_cancelled_as_it_is_queued(tmp_path):
    """They are stored together, as a single request is that is cancelled then; in memory nothing is left."""

    async def main():
        outbox, begun, gate = Outbox(tmp_path / "outbox.db"), asyncio.Event(), threading.Event()
        loop, put = asyncio.get_running_loop(), outbox.put_all

        def slow(*args):
            loop.call_soon_threadsafe(begun.set)
            gate.wait(LONG)
            return put(*args)

        outbox.put_all = slow
        async with AsyncRouter(unsure, FakeCloud([Unreachable("away")]), threshold=0.5, offline="queue", outbox=outbox) as router:
            asking = asyncio.ensure_future(router.infer_many(["a", "b", "c"]))
            await begun.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert len(router.engine.queue.storing) == 3
            gate.set()
            # what closing has closed, a put that comes later would open again
            while router.engine.queue.storing:  # noqa: ASYNC110 - the thread that stores it has no event of this loop's
                await asyncio.sleep(0.001)

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [{"offline": "stale"}, {"audit": Audit(share=2)}])
def test_a_router_that_cannot_be_made_leaves_nothing_behind(tmp_path, wrong):
    """Neither a thread that delivers nor a file."""
    box, before = Outbox(tmp_path / "outbox.db"), set(threading.enumerate())
    with pytest.raises(PolicyError):
        Router(unsure, sure, **flat(threshold=0.5, outbox=box, **wrong))
    assert not set(threading.enumerate()) - before


CHUNKED = b"HTTP/1.1 %d x\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
ANSWER = b'{"value": "cloud", "confidence": 0.9}'
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def chunks(body, size=1, extension=b"", status=200):
    """A reply in chunks of that size."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return CHUNKED % status + b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        chunks(ANSWER + b" " * 100_000),
        chunks(ANSWER + b" " * 1_000, extension=b";" + b"a" * 200),
        INTERIM * 5_000 + GOOD,
        chunks(ANSWER)[:-2] + b"a: b\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 x\r\n" + b"a: b\r\n" * 12_000 + b"Content-Length: 37\r\n\r\n" + ANSWER,
    ],
    ids=["chunks", "extensions", "interim replies", "trailers", "headers"],
)
@pytest.mark.parametrize("deadline", [None, LONG])
def test_a_reply_that_is_mostly_framing(make, reply, deadline):
    """It is given up early: what it costs is bounded by what it says."""
    with CannedServer(reply) as server:
        answer = make(unsure, PlainJson(server.url, retries=0)).infer("x", deadline=deadline)
    assert (answer.value, answer.degraded) == ("edge", True)
    assert "more framing than content" in routes.error(answer)


def test_an_error_that_is_mostly_framing(make):
    """Its status says it all, and its body is left unread."""
    with CannedServer(chunks(b" " * 100_000, status=403)) as server:
        answer = make(unsure, PlainJson(server.url, retries=0)).infer("x")
    assert routes.status(answer) == 403


@pytest.mark.parametrize(
    "reply",
    [chunks(ANSWER + b" " * 900_000, 64), chunks(ANSWER + b" " * 8_000), INTERIM * 1_000 + GOOD],
    ids=["chunks", "small chunks", "interim replies"],
)
def test_framing_that_is_in_proportion(make, reply):
    """Each reply on a connection counts for itself."""
    with CannedServer(reply) as server:
        router = make(unsure, PlainJson(server.url, retries=0))
        for _ in range(5):
            assert router.infer("x").value == "cloud"
        assert server.connections == 1
