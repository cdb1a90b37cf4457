"""Sessions: models that keep a state from one input to the next, one for each stream."""

from __future__ import annotations

import asyncio
import json
import threading
from contextvars import copy_context

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from both import LONG, Tasks, Threads
from onnx import TensorProto, helper

from edgeroute import BadInput, Cache, Closed, Ensemble, ModelError, NoAnswer, OnnxModel, Router, StopToken
from edgeroute.edge.edge_backend import TURN, Turn
from edgeroute.tools.server.serve import app

ROUTERS = pytest.mark.parametrize("make", [Threads, Tasks])
CLOUD = ("silence", 0.9)
CARD = {
    "inputs": [{"name": "sr", "value": 16000}],
    "state": [{"input": "state", "output": "stateN"}],
    "output": {"name": "output", "kind": "logits"},
    "labels": ["speech", "silence"],
}


@pytest.fixture(scope="module")
def vad(tmp_path_factory):
    """As silero-vad: input [n, samples], state [2, n, 4], sr (a scalar) -> output [n, 2], stateN [2, n, 4].

    The state halves and gets the chunk's mean added, everywhere; the first output is the sum over the state, at 16 kHz; the second is
    0. Chunks are of 4 samples: for others the run fails.
    """
    path, value = tmp_path_factory.mktemp("vad") / "vad.onnx", helper.make_tensor_value_info
    node = helper.make_node
    nodes = [
        node("Reshape", ["input", "four"], ["chunk"]),
        node("ReduceMean", ["chunk"], ["mean"], axes=[1], keepdims=1),
        node("Mul", ["state", "half"], ["halved"]),
        node("Add", ["halved", "mean"], ["stateN"]),
        node("ReduceSum", ["stateN", "axes"], ["sum"], keepdims=0),
        node("Unsqueeze", ["sum", "one"], ["column"]),
        node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        node("Div", ["rate", "khz16"], ["factor"]),
        node("Mul", ["column", "factor"], ["first"]),
        node("Sub", ["first", "first"], ["second"]),
        node("Concat", ["first", "second"], ["output"], axis=1),
    ]
    constants = [
        ("four", np.array([-1, 4])), ("half", np.float32(0.5)), ("axes", np.array([0, 2])), ("one", np.array([1])),
        ("khz16", np.float32(16000)),
    ]  # fmt: skip
    inputs = [value("input", 1, ["n", "samples"]), value("state", 1, [2, "n", 4]), value("sr", TensorProto.INT64, [])]
    tiny.save(path, nodes, inputs, [value("output", 1, ["n", 2]), value("stateN", 1, [2, "n", 4])], constants)
    path.with_suffix(".json").write_text(json.dumps(CARD))
    return path


def chunk(level):
    return np.full(4, level, np.float32)


def heard(levels):
    """What the model says of each chunk of a stream."""
    state, said = 0.0, []
    for level in levels:
        state = state / 2 + level
        said.append(8 * state)
    return said


class Stream:
    """A session of either router, blocking."""

    def __init__(self, router):
        self.wait = router.wait if isinstance(router, Tasks) else lambda result: result
        self.session = (router.router if isinstance(router, Tasks) else router).session()

    def infer(self, x, **options):
        """The answer."""
        return self.wait(self.session.infer(x, **options))

    def say(self, level, **options):
        """The model's first output for a chunk of that level."""
        return self.infer(chunk(level), **options).outputs[0]

    def infer_many(self, batch):
        """The answers."""
        return self.wait(self.session.infer_many(batch))

    def refine(self, x, most=None):
        """The answers, so many at most."""
        steps = self.session.refine(x)
        if hasattr(steps, "__anext__"):

            async def some():
                found = []
                async for answer in steps:
                    found.append(answer)
                    if len(found) == most:
                        break
                await steps.aclose()
                return found

            return self.wait(some())
        found = [answer for answer, _ in zip(steps, range(most or 9), strict=False)]
        steps.close()
        return found

    def stream(self, x):
        """The whole answer of a stream."""
        stream = self.session.stream(x)
        if hasattr(stream, "__aenter__"):

            async def whole():
                async with stream:
                    pieces = [piece async for piece in stream]
                return pieces, stream.answer

            return self.wait(whole())
        with stream:
            pieces = list(stream)
        return pieces, stream.answer


class Held:
    """A model whose runs of a chunk above 100 wait for the gate; it runs as another one, told of no stop."""

    def __init__(self, path):
        self.model = OnnxModel(path)
        self.name, self.labels, self.kind = "held", self.model.labels, self.model.kind
        self.gate, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()

    def run(self, inputs, cancel=None):
        """Runs once the gate is open."""
        if inputs[0][0] <= 100:
            return self.model.run(inputs)
        self.begun.set()
        assert self.gate.wait(LONG)
        try:
            return self.model.run(inputs)
        finally:
            self.ended.set()


@pytest.fixture
def routers():
    """Routers that are closed in the end."""
    made = []

    def make(kind, *args, **kwargs):
        made.append(kind(*args, **kwargs))
        return made[-1]

    yield make
    for router in made:
        router.close()


@ROUTERS
def test_a_session_is_one_stream(routers, make, vad):
    """Each answer is what the bare runtime gives when its state is fed back by hand; another session has a state of its own."""
    router = routers(make, vad)
    bare = onnxruntime.InferenceSession(str(vad), providers=["CPUExecutionProvider"])
    one, other = Stream(router), Stream(router)
    state, levels = np.zeros((2, 1, 4), np.float32), [1, 5, -2, 0.5]
    for i, level in enumerate(levels):
        out, state = bare.run(None, {"input": chunk(level)[None], "state": state, "sr": np.array(16000)})
        answer = one.infer(chunk(level))
        assert answer.outputs.tolist() == out[0].tolist()
        assert answer.source == "edge"
        assert answer.value == ("speech" if out[0][0] > 0 else "silence")
        assert other.say(-level) == -out[0][0]
        assert out[0][0] == heard(levels)[i]


@ROUTERS
def test_without_a_session_it_is_refused(routers, make, vad):
    """As the caller's mistake, with what to write; nothing goes to the cloud instead, nor is an answer remembered."""
    asked = []
    router = routers(make, vad, lambda x: asked.append(x) or CLOUD, threshold=0.5, cache=Cache())
    calls = [
        lambda: router.infer(chunk(1)),
        lambda: router.infer_many([chunk(1)]),
        lambda: list(router.refine(chunk(1))),
        lambda: router.infer(chunk(1), deadline=LONG),
    ]
    for call in calls:
        with pytest.raises(BadInput, match=r"vad keeps a state .*: use a session, `with router.session\(\) as s: s.infer\(x\)`"):
            call()
    assert not asked
    with pytest.raises(BadInput, match="use a session"):
        OnnxModel(vad).run([chunk(1)])


@ROUTERS
def test_every_way_of_asking_moves_the_state(routers, make, vad):
    """`infer` in this thread and in another, `infer_many` in order, `refine`, `stream`."""
    stream = Stream(routers(make, vad))
    levels = [1, 2, 4, 8, 16, 32, 64]
    said = [stream.say(1), stream.say(2, deadline=LONG)]
    said += [answer.outputs[0] for answer in stream.infer_many([chunk(4), chunk(8)])]
    said += [stream.refine(chunk(16))[-1].outputs[0]]
    pieces, answer = stream.stream(chunk(32))
    assert pieces == [answer.value]
    said += [answer.outputs[0], stream.say(64)]
    assert said == heard(levels)


@ROUTERS
def test_a_deferred_chunk_was_heard(routers, make, vad):
    """The state moves on when the model has run, whoever's answer it is; the cloud gets the chunk alone."""
    asked = []
    router = routers(make, vad, lambda x: asked.append(x.tolist()) or CLOUD, threshold=0.99)
    stream = Stream(router)
    assert stream.infer(chunk(0.1)).source == "cloud"
    assert asked == [chunk(0.1).tolist()]
    assert stream.say(8) == pytest.approx(heard([0.1, 8])[1])
    assert stream.infer(chunk(8), mode="only_cloud").source == "cloud"
    assert stream.say(8) == pytest.approx(heard([0.1, 8, 8])[2]), "what the model did not run on, it has not heard"


@ROUTERS
def test_a_failed_run_leaves_the_state(routers, make, vad):
    """A chunk on which the model fails is answered by the cloud, and not heard; one that does not fit neither."""
    router = routers(make, vad, lambda _: CLOUD, threshold=0.5)
    stream = Stream(router)
    stream.say(8)
    assert stream.infer(np.zeros(3, np.float32)).source == "cloud"
    with pytest.raises(BadInput):
        stream.infer("no samples")
    with pytest.raises(BadInput, match="input 1 of the batch"):
        stream.infer_many([chunk(8), np.zeros((2, 2, 2), np.float32)])
    assert stream.say(8) == heard([8, 8])[1]


@ROUTERS
def test_a_call_without_an_answer_leaves_the_state(routers, make, vad):
    """Though the model has run: the same chunk can be given again."""
    up = []

    def cloud(_):
        if not up:
            raise ConnectionError("away")
        return CLOUD

    stream = Stream(routers(make, vad, cloud, threshold=0.99, offline="raise"))
    with pytest.raises(NoAnswer):
        stream.infer(chunk(0.1))
    with pytest.raises(NoAnswer):
        stream.infer_many([chunk(0.05), chunk(0.1)])
    up.append(True)
    assert stream.infer(chunk(0.1)).source == "cloud"
    assert stream.say(8) == pytest.approx(heard([0.1, 8])[1])


@ROUTERS
@pytest.mark.parametrize("ends", ["before the next call", "after the next call"])
def test_a_run_that_was_left_behind_changes_nothing(routers, make, vad, ends):
    """In a race that the cloud wins, the edge's run goes on after the call."""
    held = Held(vad)
    stream = Stream(routers(make, held, lambda _: CLOUD, threshold=0.5, hedge_after=0))
    assert stream.infer(chunk(200)).source == "cloud"
    assert held.begun.wait(LONG)
    if ends == "after the next call":
        stream.say(8, mode="only_edge")
    held.gate.set()
    assert held.ended.wait(LONG)
    if ends == "before the next call":
        stream.say(8, mode="only_edge")
    assert stream.say(8, mode="only_edge") == heard([8, 8])[1]


def test_a_run_that_ends_though_it_was_told_to_stop_changes_nothing(vad):
    """Its answer is dropped, and so is its state."""

    class Asked(StopToken):
        @property
        def asked(self):
            return True

    model, turn = OnnxModel(vad), Turn({})
    context = copy_context()
    context.run(TURN.set, turn)
    context.run(model.run_one, chunk(8), Asked())
    assert not turn.states
    context.run(model.run_one, chunk(8), StopToken())
    assert list(turn.states) == [model]


def test_a_cancelled_call_leaves_the_state(vad):
    """A task that is cancelled while the model runs; the session goes on."""
    held = Held(vad)
    router = Tasks(held)
    try:
        session = router.router.session()

        async def cancelled():
            task = asyncio.ensure_future(session.infer(chunk(200), deadline=LONG))
            await asyncio.get_running_loop().run_in_executor(None, held.begun.wait, LONG)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            first = await session.infer(chunk(8))
            held.gate.set()
            await asyncio.get_running_loop().run_in_executor(None, held.ended.wait, LONG)
            return [first.outputs[0], (await session.infer(chunk(8))).outputs[0]]

        assert router.wait(cancelled()) == heard([8, 8])
    finally:
        router.close()


@ROUTERS
def test_a_refinement_that_is_left_early_leaves_the_state(routers, make, vad):
    """Closing the generator cuts the call off; read to its end it moves the state once."""
    stream = Stream(routers(make, vad, lambda _: CLOUD, threshold=0.99))
    (shown,) = stream.refine(chunk(0.1), most=1)
    assert not shown.final
    assert [answer.source for answer in stream.refine(chunk(0.2))] == ["edge", "cloud"]
    assert stream.say(8) == pytest.approx(heard([0.2, 8])[1])


def test_two_calls_of_a_session_at_once_are_refused(vad):
    """Their order would be chance. The one that came first is not touched."""
    held = Held(vad)
    router = Threads(held)
    try:
        session = router.session()
        found = []
        thread = threading.Thread(target=lambda: found.append(session.infer(chunk(200))))
        thread.start()
        assert held.begun.wait(LONG)
        for call in (lambda: session.infer(chunk(1)), lambda: session.infer_many([chunk(1)]), session.reset):
            with pytest.raises(BadInput, match=r"another call of this session is under way: .* one session for each stream"):
                call()
        with router.session() as other:
            assert other.infer(chunk(1)).outputs[0] == 8
        held.gate.set()
        thread.join(LONG)
        assert found[0].outputs[0] == 1600
        assert session.infer(chunk(0)).outputs[0] == 800
        steps = session.refine(chunk(0))
        next(steps)
        with pytest.raises(BadInput, match="under way"):
            session.infer(chunk(1))
        steps.close()
        assert session.infer(chunk(0)).outputs[0] == 400
    finally:
        router.close()


def test_two_tasks_on_one_session_are_refused(vad):
    """As two threads are."""
    held = Held(vad)
    router = Tasks(held)
    try:

        async def both():
            async with router.router.session() as session:
                first = asyncio.ensure_future(session.infer(chunk(200), deadline=LONG))
                await asyncio.get_running_loop().run_in_executor(None, held.begun.wait, LONG)
                with pytest.raises(BadInput, match="another call of this session"):
                    await session.infer(chunk(1))
                held.gate.set()
                return await first

        assert router.wait(both()).outputs[0] == 1600
    finally:
        router.close()


@ROUTERS
def test_the_cache_takes_no_part(routers, make, vad):
    """Equal chunks have different answers, and each moves the state."""
    cache = Cache()
    router = routers(make, vad, lambda _: CLOUD, threshold=0.5, cache=cache)
    stream = Stream(router)
    assert [stream.say(1) for _ in range(3)] == heard([1, 1, 1])
    assert [a.outputs[0] for a in stream.infer_many([chunk(1), chunk(1)])] == heard([1] * 5)[3:]
    assert (router.router if make is Tasks else router).stats().cached == 0


@ROUTERS
def test_reset_and_close(routers, make, vad):
    """A session begins anew, or ends; so does it with the router."""
    router = routers(make, vad)
    stream = Stream(router)
    assert [stream.say(1), stream.say(1)] == heard([1, 1])
    stream.session.reset()
    assert stream.say(1) == 8
    stream.session.close()
    with pytest.raises(Closed, match="this session is closed"):
        stream.infer(chunk(1))
    other = Stream(router)
    (router.wait(router.router.close()) if make is Tasks else router.close())
    with pytest.raises(Closed, match=r"this router is closed"):
        Stream.say(other, 1) if make is Threads else router.wait(other.session.infer(chunk(1)))


def test_check_says_that_a_session_is_needed(routers, vad):
    """Of a model with a state, and of an ensemble of such; of no other."""
    for edge, needed in ((vad, True), (Ensemble([vad, vad]), True), (lambda _: CLOUD, False)):
        checked = routers(Threads, edge).check()
        assert checked.ok
        assert ("is ready, but only in a session" in checked.lines[0]) is needed
        assert ("`with router.session() as s: s.infer(x)`" in checked.lines[0]) is needed


def test_check_tries_a_model_with_a_state(routers, tmp_path):
    """On zeros, as the first chunk of a stream: so it finds probabilities that are read as logits."""
    path, value = tmp_path / "m.onnx", helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "state"], ["stateN"]), helper.make_node("Softmax", ["stateN"], ["y"])]
    names = [value(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "state", "y", "stateN")]
    tiny.save(path, nodes, names[:2], names[2:])
    path.with_suffix(".json").write_text(json.dumps({"state": CARD["state"], "output": {"name": "y", "kind": "logits"}}))
    checked = routers(Threads, path).check()
    assert (checked.ok, 'Write kind = "probabilities"' in checked.lines[0]) == (False, True)


@ROUTERS
def test_models_without_a_state_work_in_a_session(routers, make):
    """As outside of one."""
    stream = Stream(routers(make, lambda x: (x + 1, 0.9)))
    assert [stream.infer(1).value, stream.infer(1).value] == [2, 2]


def speech(answer):
    """The probability of speech that an answer comes to."""
    return answer.confidence if answer.value == "speech" else 1 - answer.confidence


def test_each_model_has_its_own_state(routers, vad, tmp_path):
    """In a cascade and in an ensemble; the second model of a cascade has heard what it was asked."""
    other = tmp_path / "other.onnx"
    onnx.save(onnx.load(vad), other)
    other.with_suffix(".json").write_text(json.dumps({**CARD, "state": [{**CARD["state"][0], "value": 1}]}))
    cascade = Stream(routers(Threads, [vad, other], threshold=[0.9, 0.9]))
    assert cascade.say(8) == heard([8])[0], "the first is sure"
    assert cascade.say(-4) == pytest.approx(8 * (0.5 - 4)), "the first is not, and the second begins with ones"
    assert cascade.say(8) == heard([8, -4, 8])[2]
    together, levels = Stream(routers(Threads, Ensemble([vad, other]))), (0.1, -0.3, 0.05)
    alone = [Stream(routers(Threads, model)) for model in (vad, other)]
    for level in levels:
        expected = np.mean([speech(one.infer(chunk(level))) for one in alone])
        assert speech(together.infer(chunk(level))) == pytest.approx(expected, abs=1e-6)


def test_a_reload_keeps_the_state_of_a_model_that_stays(routers, vad, tmp_path):
    """Another threshold, the same model."""
    policy = tmp_path / "policy.toml"
    policy.write_text(f'mode = "only_edge"\n[edge]\npath = "{vad}"\n')
    router = routers(Threads.from_policy, policy)
    stream = Stream(router)
    assert stream.say(1) == 8
    policy.write_text(f'mode = "only_edge"\nthreshold = 0.7\n[edge]\npath = "{vad}"\n')
    router.reload()
    assert stream.say(1) == heard([1, 1])[1]


def test_a_child_goes_on_with_a_copy():
    """Of the states; the calls of its parent are not its own."""
    kept = []

    def model(x):
        turn = TURN.get()
        kept.append(dict(turn.states))
        turn.states["model"] = x
        if x == 1:
            session.after_fork()
            session.infer(0)
        return "a", 0.9

    with Router(model) as router, router.session() as session:
        session.infer(1)
        session.infer(2)
    assert kept == [{}, {}, {"model": 1}]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"shape": [2, 3]}, r"the shape of state is \[2, 3\], the file has \[2, -1, 4\]"),
        ({"input": "sr"}, "state: stateN is float32 but sr takes int64"),
    ],
)
def test_a_wrong_state(vad, tmp_path, state, message):
    """Is refused when the model is loaded."""
    card = {"state": [{**CARD["state"][0], **state}]}
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=message):
        OnnxModel(vad, card=tmp_path / "card.json").load()


def test_a_state_of_several_open_axes_needs_its_shape(tmp_path):
    """A cache of keys that grows, say: it begins with none."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["now"], axis=1),
        helper.make_node("ReduceSum", ["now"], ["y"], keepdims=1),
    ]
    tiny.save(
        tmp_path / "m.onnx", nodes, [value("x", 1, ["n", 1]), value("past", 1, ["n", "t"])],
        [value("y", 1, ["n", 1]), value("now", 1, ["n", "t+1"])],
    )  # fmt: skip
    card = {"state": [{"input": "past", "output": "now"}], "output": {"name": "y"}}
    (tmp_path / "m.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match='write its first "shape"'):
        OnnxModel(tmp_path / "m.onnx").load()
    card["state"][0]["shape"] = [1, 0]
    (tmp_path / "m.json").write_text(json.dumps(card))
    with Threads(tmp_path / "m.onnx") as router, router.session() as session:
        assert [session.infer(np.float32([i])).outputs.tolist() for i in (1, 2, 3)] == [[1], [3], [6]]


def test_a_model_with_a_state_is_not_served(vad, tmp_path):
    """A request is of no stream. Constants are the server's to fill in, and requests are merged only along the axis that counts."""
    with pytest.raises(ModelError, match="cannot be served: it has a state for each stream"):
        app([OnnxModel(vad)])
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    tiny.save(tmp_path / "m.onnx", nodes, [value("x", 1, ["t", "n"]), value("k", 1, [])], [value("y", 1, ["t", "n"])])
    from edgeroute.tools.server.serve import Served

    async def run(batcher):
        return await batcher.submit({"x": np.ones((1, 2), np.float32)}, 1)

    for batch, merges in ((0, True), (1, False)):
        card = {"inputs": [{"name": "x", "batch": batch}, {"name": "k", "value": 3}]}
        (tmp_path / "m.json").write_text(json.dumps(card))
        served = Served(OnnxModel(tmp_path / "m.onnx"), max_batch=4, queue=4)
        assert [spec.name for spec in served.inputs] == ["x"]
        assert served.batcher.merges == merges
        assert asyncio.run(run(served.batcher))["y"].tolist() == [[3, 3]]
        served.batcher.close()
