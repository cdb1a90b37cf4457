"""Streams whose edge is judged by its first tokens, beside a cloud that may have begun: in threads and on asyncio."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from math import exp

import pytest
import routes
from both import LONG, flat

from edgeroute import AsyncRouter, OpenAIChat, Options, Piece, PolicyError, Prediction, Prefix, Restart, Router
from edgeroute.confidence import quantile
from edgeroute.core.plan import Facts, plan
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.core.walk import Mark, Outcome
from edgeroute.observe.target_counts import Counts
from edgeroute.testing import CannedServer, chat_events, sse_reply

pytestmark = pytest.mark.pure

SURE, UNSURE = -0.01, -3.0


class Speaker:
    """Says words on both sides, one after the other: each waits for an event of its name, if there is one.

    Attributes:
        said: the words that were taken from it so far.
        closed: set once its generator was closed or has ended.
    """

    def __init__(self, *words, ends=None, waits=()):
        self.words, self.ends, self.said, self.closed = words, ends, [], threading.Event()
        self.gates = {word: threading.Event() for word in waits}
        self.runs = 0

    def __call__(self, _):  # noqa: D102 - a test's
        self.runs += 1
        return self._speak()

    def _speak(self):
        try:
            for word in self.words:
                text = word[0] if isinstance(word, tuple) else word
                if text in self.gates:
                    assert self.gates[text].wait(LONG)
                self.said.append(text)
                yield Piece(text, [word[1]]) if isinstance(word, tuple) else text
            if isinstance(self.ends, Exception):
                raise self.ends
            return self.ends
        finally:
            self.closed.set()


def edge_of(*words, **options):
    """A function whose score is that of its first two tokens."""
    made = Speaker(*words, **options)

    def edge(x):
        yield from made(x)

    return made, edge


def cloud_of(*words, **options):
    made = Speaker(*words, **options)

    def cloud(x):
        return (yield from made(x))

    return made, cloud


@pytest.fixture(params=["threads", "asyncio"])
def listen(request):
    """-> [(leg, piece)] and the answer; `hook` is called with each piece as it comes."""

    def threads(policy, options, hook):
        heard = []
        with Router(**flat(**policy)) as router, router.stream("x", **options) as stream:
            for piece in stream:
                heard.append((stream.leg, piece))
                hook(piece)
            return heard, stream.answer

    async def main(policy, options, hook):
        heard = []
        async with AsyncRouter(**flat(**policy)) as router, router.stream("x", **options) as stream:
            async for piece in stream:
                heard.append((stream.leg, piece))
                hook(piece)
            return heard, stream.answer

    def listen(edge, cloud, hook=lambda _: None, options=None, **policy):
        policy = {"edge": edge, "cloud": cloud, "threshold": 0.5, "score": Prefix(2, "mean"), **policy}
        return (threads if request.param == "threads" else lambda *a: asyncio.run(main(*a)))(policy, options or {}, hook)

    return listen


def test_a_sure_edge_is_heard_before_its_end(listen):
    """After two tokens: the third comes once the second was heard, and the cloud is not called."""
    edge, function = edge_of(("It", SURE), (" is", SURE), (" small", UNSURE), waits=[" small"])
    cloud, away = cloud_of("never")
    heard, answer = listen(function, away, lambda piece: piece == " is" and edge.gates[" small"].set())
    assert heard == [("edge", "It"), ("edge", " is"), ("edge", " small")]
    assert (answer.value, answer.source, answer.degraded, cloud.runs) == ("It is small", "edge", False, 0)
    assert answer.confidence == pytest.approx(exp(SURE)), "by the first two alone, though it was less sure later"


def test_an_unsure_edge_is_left_before_its_end(listen):
    """The cloud begins while it goes on, and it is stopped with the cloud's first piece."""
    edge, function = edge_of(("It", SURE), (" is", UNSURE), (" small", SURE), waits=[" small"])
    _, away = cloud_of("It", " is", " large")
    heard, answer = listen(function, away, lambda _: edge.gates[" small"].set())
    assert heard == [("cloud", "It"), ("cloud", " is"), ("cloud", " large")]
    assert (answer.value, answer.source, edge.closed.wait(LONG)) == ("It is large", "cloud", True)
    assert routes.judged(answer)[:3] == ("below", pytest.approx(0.22, abs=0.005), 0.5)


def test_a_cloud_that_began_early_is_held_back_and_stopped(listen):
    """`hedge_after=0`: the edge decides, and the cloud, which has spoken, is cancelled and closed."""
    spoke = threading.Event()
    edge, function = edge_of(("It", SURE), (" is", SURE), waits=[" is"])

    def away(_):
        try:
            yield "CLOUD"
            spoke.set()
            edge.gates[" is"].set()
            while not closed.is_set():
                yield "CLOUD"
        finally:
            closed.set()

    closed = threading.Event()
    heard, answer = listen(function, away, hedge_after=0)
    assert heard == [("edge", "It"), ("edge", " is")]
    assert (answer.source, spoke.is_set(), closed.wait(LONG)) == ("edge", True, True)


def test_a_cloud_that_began_early_is_there_at_the_decision(listen):
    """And the edge is stopped."""
    edge, function = edge_of(("It", UNSURE), (" is", UNSURE), (" small", SURE), waits=[" is", " small"])

    def away(_):
        yield "It"
        edge.gates[" is"].set()
        yield " is large"

    heard, answer = listen(function, away, lambda _: edge.gates[" small"].set(), hedge_after=0)
    assert heard == [("cloud", "It"), ("cloud", " is large")]
    assert (answer.value, edge.closed.wait(LONG)) == ("It is large", True)


def test_if_the_cloud_fails_the_edge_that_went_on_stands(listen):
    """Its pieces come from the failure on."""
    edge, function = edge_of(("It", UNSURE), (" is", UNSURE), (" small", SURE), waits=[" small"])

    def away(_):
        raise OSError("down")
        yield

    heard, answer = listen(function, away, lambda piece: piece == " is" and edge.gates[" small"].set())
    assert heard == [("edge", "It"), ("edge", " is"), ("edge", " small")]
    assert (answer.value, answer.degraded) == ("It is small", True)
    assert (answer.source, routes.error(answer)) == ("edge", "OSError")


def test_if_the_cloud_does_not_begin_the_edge_that_went_on_stands(listen):
    """By `first_token`."""
    gate = threading.Event()

    def away(_):
        gate.wait(LONG)
        yield "late"

    _, function = edge_of(("It", UNSURE), (" is", UNSURE), (" small", SURE))
    heard, answer = listen(function, away, options={"first_token": 0.05})
    gate.set()
    assert [leg for leg, _ in heard] == ["edge"] * 3
    assert (answer.value, answer.degraded) == ("It is small", True)
    assert (routes.code(answer), routes.error(answer).partition(":")[0]) == ("timeout", "FirstTokenLate")


def test_with_restart_the_answer_begins_anew(listen):
    """The edge is heard at once; then the cloud; and when that breaks off, the edge again."""
    edge, function = edge_of(("It", UNSURE), (" is", UNSURE), (" small", SURE), waits=[" small"])
    _, away = cloud_of("It", ends=OSError("cut"), waits=["It"])
    cloud = away

    def waiting(x):
        yield from cloud(x)

    def hook(piece):
        if piece == " is":
            _.gates["It"].set()
        if piece == Restart("edge") and type(piece) is Restart:
            edge.gates[" small"].set()

    heard, answer = listen(function, waiting, hook, {"restart": True})
    assert [(leg, str(piece)) for leg, piece in heard] == [
        ("edge", "It"), ("edge", " is"), ("cloud", "cloud"), ("cloud", "It"), ("edge", "edge"), ("edge", "It"), ("edge", " is"),
        ("edge", " small"),
    ]  # fmt: skip
    assert [type(piece) is Restart for _, piece in heard] == [False, False, True, False, True, False, False, False]
    assert (answer.value, answer.source, answer.degraded) == ("It is small", "edge", True)


def test_leaving_early_stops_both(listen):
    """The edge and the cloud that began beside it, whichever was heard."""
    edge, function = edge_of(("It", SURE), (" is", UNSURE), *[(f" {n}", SURE) for n in range(10_000)])
    begun, closed = threading.Event(), threading.Event()

    def away(_):
        try:
            begun.set()
            while True:
                yield "CLOUD"
        finally:
            closed.set()

    class LeaveError(Exception):
        pass

    def hook(_):
        assert begun.wait(LONG)
        raise LeaveError

    with pytest.raises(LeaveError):
        listen(function, away, hook, {"restart": True}, hedge_after=0)
    gc.collect()
    assert edge.closed.wait(LONG)
    assert closed.wait(LONG)


def test_an_async_edge_is_judged_by_its_first_tokens_too():
    """On the loop."""
    gate = asyncio.Event()

    async def edge(_):
        yield Piece("It", [SURE])
        yield Piece(" is", [SURE])
        await asyncio.wait_for(gate.wait(), LONG)
        yield Piece(" small", [UNSURE])

    async def main():
        async with AsyncRouter(edge, lambda _: "cloud", threshold=0.5, score=Prefix(2, "mean")) as router:
            pieces = []
            async with router.stream("x") as stream:
                async for piece in stream:
                    pieces.append(piece)
                    gate.set()
            return pieces, stream.answer, await router.infer("x")

    pieces, answer, whole = asyncio.run(main())
    assert pieces == ["It", " is", " small"]
    assert answer.confidence == whole.confidence == pytest.approx(exp(SURE))


def test_all_ways_of_asking_score_the_same_tokens():
    """`infer`, `stream`, `decide`, `calibrate` and `evaluate` take the first tokens of the whole answer."""

    def edge(x):
        for logprob in x:
            yield Piece("a", [logprob])

    examples = [[-0.01 * n, -0.02 * n, -9.0] for n in range(1, 400)]
    score = Prefix(2, "min")
    with Router(edge, lambda _: "cloud", threshold=0.5, score=score) as router:
        for x in examples[:3]:
            with router.stream(x, mode="only_edge") as stream:
                list(stream)
            assert stream.answer.confidence == router.infer(x, mode="only_edge").confidence == pytest.approx(exp(x[1]))
            assert f"edge {exp(x[1]):.2f}" in str(router.decide(x))
        result = router.calibrate(examples, max_defer=0.5, sure=None)
        assert 0.4 < result.certificate.deferral_rate <= 0.5
        assert result.certificate.threshold == pytest.approx(exp(-0.02 * 200), rel=0.03), "half of them are below"
        evaluated = router.evaluate(examples, ask_cloud=False)
        assert evaluated.deferral.value == pytest.approx(sum(exp(x[1]) < 0.5 for x in examples) / len(examples))
        used = router.fingerprints()
    assert used["score"] == "prefix 2 min"


def test_a_certificate_is_for_one_score():
    """One of the whole answer is none of its beginning, nor of another number of tokens, nor of another rule."""

    def edge(x):
        for logprob in x:
            yield Piece("a", [logprob])

    examples = [[-0.01 * n, -0.02 * n, -0.03 * n] for n in range(1, 400)]

    def cloud(_):
        return "cloud"

    def first(logprobs):
        return exp(logprobs[0])

    def certificate(score):
        with Router(edge, cloud, threshold=0.5, score=score) as router:
            return router.calibrate(examples, max_defer=0.5, sure=None).certificate

    scores = [Prefix(2, "min"), Prefix(3, "min"), Prefix(2, "mean"), "quantile", Prefix(2, first)]
    made = [certificate(score) for score in scores]
    for own, one in zip(scores, made, strict=True):
        for score in scores:
            with Router(edge, cloud, threshold=one, score=score) as router:
                label = router.engine.snapshot.targets[0].label
                assert label.startswith("uncalibrated") == (score is not own), (own, score, label)
                if score is not own:
                    with pytest.raises(PolicyError, match="guarantees nothing"):
                        Router(edge, cloud, threshold=one, score=score, options=Options(uncalibrated="error"))


def test_a_prefix_is_what_it_is_said_to_be():
    """Of completions, pairs and log-probabilities; of fewer tokens all; a wrong argument is refused."""
    logprobs = [-0.1, -0.5, -2.0, 0.001]
    assert Prefix(3)(("text", logprobs)) == pytest.approx(quantile(logprobs[:3]))
    content = [{"token": "a", "logprob": p} for p in logprobs]
    whole = {"choices": [{"logprobs": {"content": [*content, {"token": "", "logprob": -9.0}]}}]}
    assert Prefix(9, "mean")(whole) == pytest.approx(exp(-2.6 / 4))
    assert Prefix(1, "first")({"choices": [{"logprobs": {"token_logprobs": logprobs}}]}) == pytest.approx(exp(-0.1))
    assert Prefix(2, len)(logprobs) == 2
    for tokens, of in ((0, "mean"), (1.5, "mean"), (True, "mean"), (1, "median"), ("1", "mean")):
        with pytest.raises(PolicyError):
            Prefix(tokens, of)
    watch = Prefix(2, "min").watch()
    pieces = (Piece("a", [-0.1]), "b", Piece("", [-0.5, -9]), Piece("c", [-9]))
    assert [watch(piece) for piece in pieces] == [None, None, pytest.approx(exp(-0.5)), None]


def test_an_answer_without_log_probabilities_has_no_confidence():
    """It is deferred, and the reason says why; in a stream, too."""
    with Router(lambda _: ("edge", 0.9), lambda _: "cloud", threshold=0.5, score=Prefix(2)) as router:
        answer = router.infer("x")
        assert answer.source == "cloud"
        assert routes.judged(answer)[:2] == ("below", None)
        assert "log-probabilities" in answer.reason
        with router.stream("x") as stream:
            assert list(stream) == ["cloud"]


def stalled(*pieces):
    """A reply in chunks that stalls after these pieces."""
    head = b"HTTP/1.1 200 -\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    events = [b"data: %s\n\n" % json.dumps(event).encode() for event in chat_events(pieces, finish=None)]
    return [head, *(b"%x\r\n%s\r\n" % (len(event), event) for event in events), None]


def test_a_server_that_lost_sees_that_nobody_listens(listen):
    """The call of a chat API that began early is cut off once the edge is sure, after it had begun to answer."""
    edge, function = edge_of(("It", SURE), (" is", SURE), (" small", SURE), waits=[" is"])

    def reply(_):
        yield from stalled("CLOUD", " CLOUD")[:-1]
        edge.gates[" is"].set()
        yield None

    with CannedServer(reply) as server:
        heard, answer = listen(function, OpenAIChat(server.url, model="m"), hedge_after=0)
        assert heard == [("edge", "It"), ("edge", " is"), ("edge", " small")]
        assert answer.source == "edge"
        server.wait_for(lambda: server.hung_up)


def test_a_server_that_stalls_before_its_first_token(listen):
    """The edge that went on stands."""
    with CannedServer(stalled()) as server:
        _, function = edge_of(("It", UNSURE), (" is", UNSURE), (" small", SURE))
        heard, answer = listen(function, OpenAIChat(server.url, model="m"), options={"first_token": 2.0})
        assert [leg for leg, _ in heard] == ["edge"] * 3
        assert (answer.value, answer.degraded) == ("It is small", True)
        server.wait_for(lambda: server.hung_up)


@pytest.mark.parametrize("restart", [False, True])
def test_a_server_that_breaks_off_within_its_answer(listen, restart):
    """What had come is the answer, marked; or, with `restart`, the edge's."""
    with CannedServer(sse_reply(chat_events(["It", " is"], finish=None), done=False)) as server:
        edge, function = edge_of(("It", UNSURE), (" is", UNSURE), (" small", SURE))
        heard, answer = listen(function, OpenAIChat(server.url, model="m", retries=0), options={"restart": restart})
        assert answer.degraded
        if restart:
            assert [str(piece) for leg, piece in heard][-4:] == ["edge", "It", " is", " small"]
            assert (answer.value, answer.source) == ("It is small", "edge")
        else:
            assert heard == [("cloud", "It"), ("cloud", " is")]
            assert (answer.value, answer.source) == ("It is", "cloud")
        assert edge.closed.wait(LONG)


def test_the_cloud_is_sent_the_turns_that_the_edge_answered():
    """As messages, within the stream."""
    said = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "by the edge"},
        {"role": "user", "content": "two"},
    ]
    with CannedServer(sse_reply(chat_events(["It"]))) as server:

        def edge(_):
            yield Piece("It", [UNSURE])

        async def main():
            router = AsyncRouter(edge, OpenAIChat(server.url, model="m"), threshold=0.5, score=Prefix(2))
            async with router, router.stream(said) as stream:
                return [piece async for piece in stream]

        assert asyncio.run(main()) == ["It"]
        assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["messages"] == said


def test_a_decision_counts_once_and_its_time_is_no_run():
    """An edge that was stopped at the decision was unsure, and took no time that a run takes; one that went on took all of it."""
    known = plan(Policy(), (Target("edge", "edge", 0.5), Target("cloud", "cloud")), Facts())
    counts = Counts()
    begun = Mark("start", 0, 0.0), Mark("decided", 0, 1.0, 0.1), Mark("below", 0, 1.0, 0.1), Mark("start", 1, 1.0)
    done = Prediction("whole", None, None)
    counts.record(known, Outcome(1, done, True, [*begun, Mark("cancelled", 0, 2.0), Mark("accepted", 1, 3.0)], 0.0, 3.0))
    assert counts.quantile("edge", 0.5) is None
    assert counts.quantile("cloud", 0.5) == pytest.approx(2.0, rel=0.1)
    counts.record(known, Outcome(1, done, True, [*begun, Mark("kept", 0, 7.0, 0.1), Mark("accepted", 1, 9.0)], 0.0, 9.0))
    assert counts.quantile("edge", 0.5) == pytest.approx(7.0, rel=0.1)
    edge = next(leg for leg in counts.snapshot([("edge", "edge", 0, 0, "", 0)], 0.0).legs if leg.name == "edge")
    assert (edge.started, edge.answered) == (2, 2)


@pytest.mark.parametrize(
    "outputs",
    [
        ["my account is 4711"],
        ("text", ["my account is 4711"]),
        {"choices": [{"message": {"content": ""}, "logprobs": {"content": [{"token": "a", "logprob": "my account is 4711"}]}}]},
    ],
)
def test_what_a_model_said_is_not_in_the_error_of_its_score(outputs, caplog):
    """Where a text is in place of a log-probability: it is neither in a reason, which traces and headers have, nor in the log."""
    with Router(lambda _: outputs, lambda _: "cloud", threshold=0.5, score=Prefix(2)) as router:
        reason = router.infer("x").reason
    assert "ValueError" in reason
    assert "4711" not in reason + caplog.text
