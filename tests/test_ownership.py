"""What a leg reads after its call has returned is its own: the caller may write the next input into the same buffer."""

import asyncio
import json
import threading
from queue import Queue

import numpy as np
import pytest
from both import CALLS, LONG, GatedServer, ask, makes, wait_for

from edgeroute import AsyncRouter, Audit, Cache, Egress, OpenInference, Outbox, PlainJson
from edgeroute.core.plan import Facts
from edgeroute.system.input_copies import copy_input
from edgeroute.testing import CannedServer, http_reply

pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


def total(x):
    """What an answer depends on."""
    return float(np.sum(x["a"] if isinstance(x, dict) else x))


def unsure(x):
    return ("edge", total(x)), 0.1


def tensors(request):
    """A server of the Open Inference Protocol: how much the input holds, against 5."""
    if request.startswith(b"GET"):
        return http_reply(json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}).encode())
    (data,) = json.loads(request.partition(b"\r\n\r\n")[2])["inputs"]
    outputs = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [sum(data["data"]), 5.0]}
    return http_reply(json.dumps({"outputs": [outputs]}).encode())


class Slow:
    """A cloud that looks at its input only once it may."""

    def __init__(self):
        self.may, self.saw, self.begun = threading.Event(), Queue(), threading.Event()

    def __call__(self, x):
        """Whatever is there by then."""
        self.begun.set()
        self.may.wait(LONG)
        self.saw.put(total(x))
        return ("cloud", total(x)), 0.9


INPUTS = {"array": lambda: np.zeros(4), "mapping": lambda: {"a": np.zeros(4)}, "list": lambda: [0.0, 0.0]}


def overwrite(x):
    """The next frame."""
    if isinstance(x, dict):
        x["a"][:] = 7
    else:
        x[:] = [7.0] * len(x)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_leg_that_is_left_past_the_deadline(make, call, kind, due):
    """A function that looks late sees the input that it was asked about."""
    slow, x = Slow(), INPUTS[kind]()
    router = make(unsure, slow, deadline=due(slow.begun.is_set))
    router.on_late(lambda _: None)
    assert ask(router, call, x).source == "edge"
    overwrite(x)
    slow.may.set()
    assert slow.saw.get(timeout=LONG) == 0


@pytest.mark.parametrize("call", CALLS)
def test_a_leg_that_cannot_be_stopped(make, call):
    """Nor does one that lost a race, or was told to stop."""
    slow, x = Slow(), np.zeros(4)
    router = make(
        lambda x: (slow.begun.wait(0 if call == "stream" else LONG), ("edge", 0.9))[1], slow, hedge_after=0, deadline=LONG
    )
    ask(router, call, x)
    overwrite(x)
    slow.may.set()
    if slow.begun.is_set():  # a stream has no race
        assert slow.saw.get(timeout=LONG) == 0


@pytest.mark.parametrize("asks", ["consent", "redact"])
@pytest.mark.parametrize("call", CALLS)
def test_consent_and_redaction_that_take_their_time(make, call, asks, due):
    """What is sent after the call has returned is what the call was about."""
    may, x = threading.Event(), np.zeros(4)

    def consent(*_):
        return may.wait(LONG)

    def redact(x, _):
        may.wait(LONG)
        return x

    egress = Egress(**{asks: consent if asks == "consent" else redact})
    with CannedServer(http_reply(b'{"value": "cloud", "confidence": 0.9}')) as server:
        router = make(unsure, PlainJson(server.url), deadline=due(), egress=egress)
        router.on_late(lambda _: None)
        assert ask(router, call, x).source == "edge"
        overwrite(x)
        may.set()
        server.wait_for(lambda: server.requests)
        body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        assert body["input"] == [0.0] * 4


@pytest.mark.parametrize("call", CALLS)
def test_an_endpoint_that_asks_for_metadata_first(make, call, due):
    """It encodes only after that: what it encodes is the call's input, and what is stored is that input's answer."""
    with GatedServer(tensors) as server:
        x, cache = np.zeros(4, np.float32), Cache()
        router = make(
            unsure,
            OpenInference(server.url, model="m", binary=False, labels=("holds", "empty")),
            deadline=due(lambda: server.requests),
            cache=cache,
        )
        ask(router, call, x)
        overwrite(x)
        server.open()
        wait_for(lambda: cache.stats().stored)
        answer = router.infer(np.zeros(4, np.float32), deadline=LONG)
        assert (answer.source, answer.value) == ("cache", "empty")


@pytest.mark.parametrize("call", CALLS)
def test_what_is_queued_at_the_deadline(make, call, tmp_path, no_time_left):
    """Whatever it is written from is not the caller's buffer any more."""
    may, stored, x = threading.Event(), threading.Event(), np.zeros(4)
    first = []

    def redact(x, _):
        if first:  # the second time is for the outbox, and the deadline passes meanwhile
            may.wait(LONG)
        first.append(1)
        return x

    box = Outbox(tmp_path / "outbox.db", spread_s=1e6)
    put = box.put_all
    box.put_all = lambda *args: (put(*args), stored.set())[0]
    with CannedServer(http_reply(status=503)) as server:
        router = make(
            unsure, PlainJson(server.url, retries=0), deadline=LONG, offline="queue", outbox=box, egress=Egress(redact=redact)
        )
        ask(router, call, x)
        overwrite(x)
        may.set()
        assert stored.wait(LONG)
        (entry,) = box.list()
        assert json.loads(box.waiting(entry.id).body)["input"] == [0.0] * 4
        router.close()


def test_what_is_audited(make):
    """It is asked after the answer was given."""
    slow, x = Slow(), np.zeros(4)
    router = make(lambda x: (total(x), 0.9), slow, audit=Audit(share=1))
    router.infer(x)
    overwrite(x)
    slow.may.set()
    assert slow.saw.get(timeout=LONG) == 0


def test_what_is_renewed(make):
    """Stale while it is revalidated: it is asked about after the answer was given."""
    may, saw, x = threading.Event(), Queue(), np.zeros(4)

    def cloud(x):
        if not saw.empty():
            may.wait(LONG)
        saw.put(total(x))
        return total(x), 0.9

    router = make(unsure, cloud, cache=Cache(ttl_s=0, stale_while_revalidate_s=1e6))
    router.infer(x)
    assert router.infer(x).source == "stale"
    overwrite(x)
    may.set()
    assert [saw.get(timeout=LONG) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("depth", range(100, 960, 95))
def test_a_stale_answer_is_given_where_no_copy_can_be_made_to_renew_it(make, depth):
    """The key of a list that is nested deeply takes fewer frames than its copy."""
    router = make(lambda _: ("edge", 0.9), None, cache=Cache(ttl_s=0, stale_while_revalidate_s=1e6))
    x = []
    for _ in range(depth):
        x = [x]
    assert {router.infer(x).source for _ in range(3)} <= {"edge", "stale"}


def test_a_later_edge_of_a_refined_answer(make):
    """While the caller has the provisional answer, it may have the next frame in its buffer, too."""
    slow, x = Slow(), np.zeros(4)
    router = make([unsure, slow], None, threshold=[0.5, 0.5], deadline=LONG)
    answers = router.refine(x)
    assert next(answers).value == ("edge", 0.0)
    overwrite(x)
    slow.may.set()
    assert next(answers).value == ("cloud", 0.0)
    answers.close()


def test_a_provisional_answer_without_a_deadline():
    """Who has it on the event loop may write to its buffer, though the endpoint encodes the input only after its metadata came."""
    x, values = np.zeros(4, np.float32), []

    async def main(url):
        cloud = OpenInference(url, model="m", binary=False, labels=("holds", "empty"))
        async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
            router.engine.observer.facts = Facts(edge_s=0.0001)  # so quick that it runs on the loop
            async for answer in router.refine(x):
                values.append(answer.value)
                overwrite(x)

    with CannedServer(tensors) as server:
        asyncio.run(main(server.url))
    assert values == [("edge", 0.0), "empty"]


def test_a_redaction_that_works_in_place(make):
    """The caller's own stays as it is."""

    def redact(x, _):
        x[:] = 1
        return x

    x = np.zeros(4)
    assert make(unsure, lambda x: (total(x), 0.9), egress=Egress(redact=redact)).infer(x).value == 4
    assert x.tolist() == [0.0] * 4


@pytest.mark.parametrize("of", ["redact", "edge", "cloud"])
def test_a_function_that_returns_one_buffer_for_each_row(make, of):
    """Redaction or view: each row of a batch is what the function made of it, and not of the last one."""
    buffer = np.zeros(4)

    def scaled(x, *_):
        np.multiply(x, 2, out=buffer)
        return buffer

    more = {"egress": Egress(redact=scaled)} if of == "redact" else {"views": {of: scaled}}
    cloud = None if of == "edge" else lambda x: (("edge", total(x)), 0.9)
    rows = [np.full(4, i) for i in range(3)]
    answers = make(lambda x: (("edge", total(x)), 0.9 if of == "edge" else 0.1), cloud, **more).infer_many(rows)
    assert [answer.value[1] for answer in answers] == [0, 8, 16]


def test_own_copies():
    """Of what there is to change; the rest is as it was."""
    array = np.zeros(2)
    held = {"a": [array, bytearray(b"x"), memoryview(b"abc"), ("t", array)], "b": "text"}
    own = copy_input(held)
    array[:] = 7
    held["a"][1][0] = 0
    assert own["a"][0].tolist() == [0, 0]
    assert own["a"][1:3] == [b"x", b"abc"]
    assert own["a"][3][1].tolist() == [0, 0]
    assert own["b"] is held["b"]
    thing = object()
    assert copy_input(thing) is thing
