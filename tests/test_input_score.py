"""Scores of the input alone: an edge that would not be sure is not run, unless all others fail."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from both import CALLS, Tasks, Threads, ask

from edgeroute import AsyncRouter, InputScore, PolicyError, Router
from edgeroute.confidence import fit, prompt_features
from edgeroute.confidence.score_before_run import text_of

SHORT, LONG_TEXT = "a word", "a text that is far too long for it"


def short(prompt):
    return 1 / (1 + len(prompt) / 10)


@pytest.fixture(params=[Threads, Tasks])
def made(request):
    """Makes routers; their `ran` has what each side was run on."""
    routers = []

    def make(score=None, cloud=None, **options):
        ran = {"edge": [], "cloud": []}

        def edge(x):
            ran["edge"].append(x)
            return "edge", 0.1  # its own confidence does not count

        def far(x):
            ran["cloud"].append(x)
            return "cloud", 0.7

        router = request.param(edge, cloud or far, threshold=0.5, score=score or InputScore(short), **options)
        router.ran = ran
        routers.append(router)
        return router

    yield make
    for router in routers:
        router.close()


@pytest.mark.parametrize("call", [call for call in CALLS if call != "infer_many"])
def test_it_is_decided_before_the_edge_runs(made, call):
    """A short text is answered by the edge, though it says itself that it is unsure; for a long one it is not run."""
    router = made()
    answer = ask(router, call, SHORT)
    assert (answer.source, answer.confidence, router.ran["cloud"]) == ("edge", short(SHORT), [])
    del router.ran["edge"][:]
    answer = ask(router, call, LONG_TEXT)
    assert (answer.source, answer.confidence) == ("cloud", 0.7)
    assert call == "refine" or router.ran["edge"] == [], "`refine` shows it meanwhile"
    assert answer.reason_code == "input"
    assert "0.23 < 0.50" in answer.reason


def test_rows_are_judged_each(made):
    """Their edge runs all of a batch."""
    assert [answer.source for answer in made().infer_many([SHORT, LONG_TEXT])] == ["edge", "cloud"]


@pytest.mark.parametrize("call", CALLS)
def test_if_all_others_fail_the_edge_answers(made, call):
    """Never worse than the edge."""
    router = made(cloud=lambda _: 1 / 0)
    answer = ask(router, call, LONG_TEXT)
    assert answer.value == "edge"
    assert router.ran["edge"] == [LONG_TEXT]


def test_what_stays_is_run_whatever_its_score(made):
    """There is nobody else to ask."""
    router = made()
    assert router.infer(LONG_TEXT, mode="only_edge").source == "edge"


def test_decide_says_so():
    """Nothing is run."""
    runs = []
    with Router(lambda x: (runs.append(x), 0.9), lambda _: "cloud", threshold=0.5, score=InputScore(short)) as router:
        told = router.decide(LONG_TEXT)
        assert "edge 0.23 < 0.50 (uncalibrated), before it ran, so it is on standby" in str(told)
        assert (len(told.sends_to), runs) == (1, [])


def test_deferrals_are_counted(made):
    """As those of answers."""
    router = made()
    for x in (SHORT, LONG_TEXT, LONG_TEXT):
        router.infer(x)
    stats = router.stats()
    edge = next(leg for leg in stats.legs if leg.name == "edge")
    assert (edge.started, stats.deferred) == (1, 2)


@pytest.mark.parametrize(
    "x",
    [
        LONG_TEXT,
        [{"role": "user", "content": LONG_TEXT}],
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG_TEXT}]}]},
        {"prompt": LONG_TEXT},
    ],
)
def test_texts_and_messages_have_features(made, x):
    """A function of `prompt_features`, whichever way the prompt is given."""
    router = made(InputScore(lambda found: 1 - found["words"] / 3, features=prompt_features))
    assert router.infer(x).source == "cloud"
    assert router.infer(SHORT).source == "edge"
    assert text_of(x) == LONG_TEXT


@pytest.mark.parametrize("broken", [lambda _: 1 / 0, lambda _: float("nan"), lambda _: "no number"])
def test_a_score_that_fails_defers(made, broken):
    """And the reason says why."""
    router = made(InputScore(broken))
    answer = router.infer(SHORT)
    assert (answer.source, router.ran["edge"]) == ("cloud", [])
    assert answer.reason_code == "input"


def test_it_sees_what_the_edge_takes(made):
    """A key of the input; what a function makes of it is known once it runs."""
    assert made(views={"edge": "text"}).infer({"text": SHORT, "more": LONG_TEXT}).source == "edge"
    assert made(views={"edge": "text"}).infer({"text": LONG_TEXT}).source == "cloud"
    router = made(views={"edge": lambda x: x["text"]})
    assert router.infer({"text": LONG_TEXT}).source == "cloud"
    assert router.ran["edge"] == [LONG_TEXT]


def test_of_several_edges_each_is_judged():
    """The large one has a score of its outputs."""
    ran = []

    class Model:
        def __init__(self, name, confidence, score=None):
            self.name, self.confidence, self.score = name, confidence, score

        def run(self, inputs, cancel=None):
            ran.append(self.name)
            return [(self.name, self.confidence) for _ in inputs]

    models = [Model("small", 0.9, InputScore(short)), Model("large", 0.9)]
    with Router(models, lambda _: "cloud", threshold=[0.5, 0.5]) as router:
        assert [router.infer(x).leg for x in (SHORT, LONG_TEXT)] == ["small", "large"]
        assert ran == ["small", "large"]
    models = [Model("small", 0.9, InputScore(short)), Model("large", 0.9, InputScore(short))]
    with Router(models, lambda _: 1 / 0, threshold=[0.5, 0.5]) as router:
        answer = router.infer(LONG_TEXT)
        assert (answer.leg, answer.degraded) == ("large", True)
        assert answer.reason.count("0.50") == 2
        assert [event["leg"] for event in answer.trace["events"] if event["what"] == "start"][0] == "cloud"


def test_it_is_calibrated_as_any_other():
    """The threshold is of the same score, and the certificate names it."""
    rng = np.random.default_rng(0)
    X = [f"{'word ' * n}{k}" for k, n in enumerate(rng.integers(1, 60, 600))]  # noqa: N806 - as in scikit-learn

    def edge(x):
        return "right" if len(x) < 120 else "wrong"

    def cloud(_):
        return "right"

    score = InputScore(short)
    with Router(edge, cloud, threshold=0.5, score=score) as router:
        result = router.calibrate(X, ["right"] * len(X), max_loss=0.05)
        certificate = result.certificate
    assert short("x" * 160) < certificate.threshold < short("x" * 90)
    with Router(edge, cloud, threshold=certificate, score=score) as router:
        answer = router.infer("x" * 300)
        assert (answer.source, "uncalibrated" in answer.reason) == ("cloud", False)
        assert router.evaluate(X, ["right"] * len(X)).evaluation.deferral.value > 0.3
    with Router(edge, cloud, threshold=certificate, score=InputScore(len)) as router:
        assert "uncalibrated" in router.infer("x").reason


def test_a_learned_score_of_prompts():
    """`fit` on a table of `prompt_features`."""
    prompts = [f"{'word ' * (n % 60 + 1)}{n}" for n in range(600)]
    right = [float(len(prompt) < 150) for prompt in prompts]
    learned = fit([prompt_features(prompt, buckets=0) for prompt in prompts], right, [1.0] * len(prompts))
    score = InputScore(learned, features=lambda text: prompt_features(text, buckets=0))
    with Router(lambda _: ("edge", 0.0), lambda _: "cloud", threshold=0.4, score=score) as router:
        assert [router.infer("word " * n + "7").source for n in (3, 50)] == ["edge", "cloud"]


def test_an_async_edge_is_not_run_either():
    """On the loop."""
    runs = []

    async def edge(x):
        runs.append(x)
        return "edge", 0.1

    async def main():
        async with AsyncRouter(edge, lambda _: "cloud", threshold=0.5, score=InputScore(short)) as router:
            return [(await router.infer(x)).source for x in (SHORT, LONG_TEXT)]

    assert asyncio.run(main()) == ["edge", "cloud"]
    assert runs == [SHORT]


def test_what_is_no_function_is_refused():
    """When it is made."""
    with pytest.raises(PolicyError, match="functions"):
        InputScore("length")
    with pytest.raises(PolicyError, match="functions"):
        InputScore(short, features="words")
