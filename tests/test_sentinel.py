"""A sentinel of a hosted model, and what its replies say of themselves: a model that is swapped suspends the certificates."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import routes
from both import LONG, Tasks, Threads
from commands import cli

from edgeroute import Audit, BadInput, CallableModel, Egress, Function, Limits, OpenAIChat, Options, PolicyError, Router
from edgeroute.confidence import calibrate
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.cli.status_and_trial_arms import read_state
from edgeroute.tools.hosted_model_sentinel import Pinned, Sentinel
from edgeroute.tools.measure.audit_counts_and_evidence import LossCounts
from edgeroute.tools.measure.certification_and_verdicts import audited_examples
from edgeroute.trials.audits_and_drift_alarms import COUNTS

PINNED = [f"{i} + {i}" for i in range(8)]


def edge(_):
    return "edge", 0.95


class Hosted:
    """A cloud that is one model, or another."""

    def __init__(self):
        self.asked, self.threads, self.swapped = [], set(), False

    def __call__(self, x):
        """The answer to x."""
        self.asked.append(x)
        self.threads.add(threading.current_thread().name)
        return f"other {x}" if self.swapped else x


@pytest.fixture(params=[Threads, Tasks])
def made(request):
    """Makes certified routers with a sentinel that is asked to probe."""
    routers = []

    def make(cloud=None, sentinel=None, mode="prefer_edge", terms=(), **options):
        terms = dict(terms)
        router_of = {
            "mode": mode,
            "cloud": Function(cloud or Hosted(), version="1", **terms),
            "edge": CallableModel(edge, version="1"),
        }
        with Threads(**router_of, threshold=0.5) as uncertified:
            certificate = certified(uncertified)
        sentinel = sentinel or Sentinel(PINNED, rounds=2)
        sentinel.opened = lambda status: None  # the tests probe
        router = request.param(**{**router_of, "threshold": certificate, "parts": [sentinel], **options})
        routers.append(router)
        return router, sentinel

    yield make
    for router in routers:
        router.close()


def certified(router):
    """A certificate for that router, by examples of which all are right."""
    scores, right = np.linspace(0, 0.9, 400), np.ones(400, bool)
    return calibrate(scores, right, right, max_loss=0.05, fingerprints=router.fingerprints())


def learned(sentinel):
    """It has the usual answers."""
    while sentinel.pinned.test is None:
        assert sentinel.probe()


def test_a_swapped_model_suspends_the_certificate(made):
    """After a few probes, named in each reason; thresholds stay."""
    hosted = Hosted()
    router, sentinel = made(hosted)
    learned(sentinel)
    for _ in range(50):
        assert sentinel.probe()
    assert not routes.uncalibrated(router.infer("x"))
    hosted.swapped = True
    probes = 0
    while not routes.uncalibrated(router.infer("x")):
        assert sentinel.probe()
        probes += 1
    assert 1 < probes < 20
    answer = router.infer("x")
    assert (answer.source, "sentinel" in routes.label(answer)) == ("edge", True)
    figures = router.stats().parts["sentinel"]
    assert (figures["alarm"] in routes.label(answer), figures["failed"]) == (True, 0)
    assert set(hosted.asked) <= {*PINNED}


def test_it_may_defer_everything(made):
    """Until there is another certificate."""
    hosted = Hosted()
    router, sentinel = made(hosted, Sentinel(PINNED, rounds=2, on_alarm="defer"))
    learned(sentinel)
    hosted.swapped = True
    for _ in range(50):
        sentinel.probe()
    assert router.infer("x").value == "other x"


def test_it_sends_nothing_that_may_not_leave(made):
    """By the mode, the egress rules, the limits, or its own price; the ledger of the rest has each probe."""
    for options in (
        {"mode": "only_edge"},
        {"egress": Egress(never_leave=["private"])},
        {"options": Options(metered=True)},
    ):
        hosted = Hosted()
        _, sentinel = made(hosted, Sentinel(PINNED, data_class="private"), **options)
        assert (sentinel.probe(), hosted.asked) == (False, [])
    hosted = Hosted()
    price = {"usd_per_call": 0.25}
    _, sentinel = made(hosted, Sentinel(PINNED, usd_per_day=0.5), terms=price)
    assert ([sentinel.probe() for _ in range(4)], len(hosted.asked)) == ([True, True, False, False], 2)
    hosted = Hosted()
    _, sentinel = made(hosted, terms=price, limits=Limits(usd_per_day=1.0))
    for _ in range(5):
        sentinel.probe()
    assert len(hosted.asked) in {2, 3}, "about half of a limit is for callers"


def test_a_cloud_that_fails_is_no_other_model(made):
    """Failed probes count for nothing."""

    def down(x):
        raise ConnectionError

    _, sentinel = made(down)
    assert not any(sentinel.probe() for _ in range(5))
    assert (sentinel.stats()["probes"], sentinel.pinned.test) == (0, None)


def test_it_probes_in_a_thread_of_its_own():
    """From the start on, and ends with the router."""
    hosted, seen = Hosted(), threading.Event()
    sentinel = Sentinel(PINNED)
    hosted_call = hosted.__call__

    def cloud(x):
        seen.set()
        return hosted_call(x)

    with Router(edge, cloud, threshold=0.5, options=Options(parts=[sentinel])):
        assert seen.wait(LONG)
    assert hosted.threads == {"edgeroute-sentinel"}
    assert not sentinel.probe()


def test_it_goes_on_in_the_next_run(made, tmp_path):
    """With what was usual, and an alarm; for another certificate it learns anew."""
    hosted = Hosted()
    router, sentinel = made(hosted, state=tmp_path)
    learned(sentinel)
    router.close()
    router, sentinel = made(hosted, state=tmp_path)
    assert sentinel.pinned.test is not None
    hosted.swapped = True
    for _ in range(50):
        sentinel.probe()
    router.close()
    router, sentinel = made(hosted, state=tmp_path)
    assert routes.uncalibrated(router.infer("x"))
    router.close()
    router, sentinel = made(hosted, Sentinel(PINNED[:3], rounds=2), state=tmp_path)
    assert sentinel.pinned.test is None
    assert not routes.uncalibrated(router.infer("x"))


KILLED = """
import os, sys
from edgeroute import Function, Options, Router
from edgeroute.tools.hosted_model_sentinel import Sentinel

said = ["usual"]
sentinel = Sentinel(["x"], rounds=2, exact=True, agrees=lambda a, b: a == b)
sentinel.opened = lambda status: None
cloud = Function(lambda _: {"label": said[0]} if "dict" in sys.argv else said[0], version="1")
router = Router(lambda _: ("edge", 0.9), cloud, threshold=0.5, state=sys.argv[1], options=Options(parts=[sentinel]))
if "again" not in sys.argv:
    for _ in range(4):
        assert sentinel.probe()
    said[0] = "other"
    while not sentinel.stats()["alarm"]:
        assert sentinel.probe()
print(sentinel.stats()["alarm"][:12], flush=True)
os._exit(9)
"""


@pytest.mark.parametrize("kind", ["text", "dict"])
def test_an_alarm_outlives_a_kill(tmp_path, kind):
    """Of a process that dies at once, before anything else was stored; also where answers cannot be stored."""
    runs = [[sys.executable, "-c", KILLED, str(tmp_path), kind, *more] for more in ([], ["again"])]
    ended = [subprocess.run(run, capture_output=True, text=True, timeout=LONG, check=False) for run in runs]
    assert [(run.returncode, run.stdout) for run in ended] == [(9, "the sentinel\n")] * 2


@pytest.mark.parametrize("changed", ["nothing", "inputs", "answers"])
def test_costs_are_remembered(made, tmp_path, changed):
    """By the next run, also with other inputs, or answers that cannot be stored."""
    cloud = (lambda x: {"answer": x}) if changed == "answers" else Hosted()
    terms = {"usd_per_call": 0.02}
    router, sentinel = made(cloud, Sentinel(PINNED, usd_per_day=0.01), terms=terms, state=tmp_path)
    assert sentinel.probe()
    assert not sentinel.probe()
    router.close()
    pinned = PINNED[:3] if changed == "inputs" else PINNED
    _, sentinel = made(cloud, Sentinel(pinned, usd_per_day=0.01), terms=terms, state=tmp_path)
    assert not sentinel.probe()


def test_an_awaited_cloud():
    """Is asked in the sentinel's own loop."""

    async def cloud(x):
        return x

    sentinel = Sentinel(PINNED)
    sentinel.opened = lambda status: None
    router = Tasks(edge, cloud, threshold=0.5, parts=[sentinel])
    assert sentinel.probe()
    router.close()


def test_a_policy_has_it(tmp_path, monkeypatch):
    """As a part, by the entry point of this package."""
    monkeypatch.setattr(
        "edgeroute.system.late_imports_and_plugins.plugin_targets",
        lambda group: {"sentinel": ("edgeroute.tools.hosted_model_sentinel:Sentinel",)},
    )
    asked = threading.Event()

    def reply(_):
        asked.set()
        return completion("m", "a")

    policy = tmp_path / "policy.toml"
    with CannedServer(reply) as server:
        policy.write_text(
            f'[cloud]\nprotocol = "openai"\nurl = "{server.url}"\nmodel = "m"\n'
            '[parts.sentinel]\ninputs = ["2 + 2"]\nusd_per_day = 0.01\n'
        )
        with Router.from_policy(policy, edge=edge, threshold=0.5, parts=()) as router:  # as `edgeroute status` and `check` do
            assert router.stats().parts == {}
        with Router.from_policy(policy, edge=edge, threshold=0.5) as router:
            assert asked.wait(LONG)
            assert router.stats().parts["sentinel"]["alarm"] == ""
        assert b"2 + 2" in server.requests[0]
        policy.write_text(policy.read_text().replace("usd_per_day", "usd_per_dya"))
        with pytest.raises(PolicyError, match=r"parts\.sentinel: .*no such key, usd_per_dya: did you mean \"usd_per_day\""):
            Router.from_policy(policy, edge=edge, threshold=0.5)


def test_the_status_of_a_folder_shows_the_alarm(made, tmp_path):
    """And the router's statistics, of the part."""
    hosted = Hosted()
    router, sentinel = made(hosted, Sentinel(PINNED, exact=True, rounds=2), state=tmp_path)
    learned(sentinel)
    assert cli("status", "--state", tmp_path, "--json")[1].count("the sentinel of") == 0
    hosted.swapped = True
    assert [sentinel.probe(), sentinel.probe()] == [True, True]
    assert "found another model" in router.stats().parts["sentinel"]["alarm"]
    assert "found another model" in json.loads(cli("status", "--state", tmp_path, "--json")[1])["alarms"]["sentinel"]
    assert cli("status", "--state", tmp_path)[1].startswith("ALARM of sentinel: the sentinel of ")


@pytest.mark.parametrize(("rounds", "answers", "advice"), [(2, "aa", "give more inputs"), (4, "abcd", "short, stable answers")])
def test_answers_that_show_nothing(rounds, answers, advice, caplog):
    """Are too few, or differ: the warning says which."""
    pinned = Pinned(1, rounds, 1000.0)
    for answer in answers:
        pinned.add(0, answer)
    assert advice in caplog.text


def test_another_certificate_ends_an_alarm(made):
    """At once, and what is usual is learned anew."""
    hosted = Hosted()
    router, sentinel = made(hosted)
    learned(sentinel)
    hosted.swapped = True
    for _ in range(30):
        sentinel.probe()
    assert routes.uncalibrated(router.infer("x"))
    engine = router.engine
    certificate = engine.snapshot.certificates[0].certificate
    other = certificate._replace(metric="another")
    engine.snapshot = engine.snapshot._replace(certificates=(engine.snapshot.certificates[0]._replace(certificate=other), None))
    engine.observe()
    assert sentinel.pinned.test is None
    assert not routes.uncalibrated(router.infer("x"))


def alarmed(sentinel, hosted):
    """The model is swapped, and the sentinel has noticed."""
    hosted.swapped = True
    while not sentinel.stats()["alarm"]:
        assert sentinel.probe()


def counted(home):
    """The stored counts of audits of the one edge model."""
    (counts,) = (LossCounts.load(value.value) for name, value in read_state(home).items() if name.startswith(COUNTS))
    return counts


@pytest.mark.parametrize("audits", [True, False])
def test_an_alarm_begins_the_counts_of_audits_anew(made, tmp_path, audits):
    """They say nothing of the model that is there now; also those that other processes have made, and those in the log."""
    hosted = Hosted()
    watched, _ = made(hosted, state=tmp_path, audit=Audit(share=1.0, scene=1))
    for _ in range(5):
        assert watched.infer("x", mode="only_cloud").value == "x"
        assert watched.infer("x").value == "edge"
    end = time.monotonic() + LONG
    while watched.engine.auditor.jobs.busy:
        assert time.monotonic() < end
        threading.Event().wait(0.001)
    watched.close()
    before = counted(tmp_path)
    assert before.n
    router, sentinel = made(hosted, state=tmp_path, **({"audit": Audit(share=0.0)} if audits else {}))
    learned(sentinel)
    alarmed(sentinel, hosted)
    counts = counted(tmp_path)
    assert (counts.n, counts.alarms, counts.begun > before.begun) == (0, 1, True)
    if audits:
        with pytest.raises(BadInput, match="from before the last alarm"):
            audited_examples(tmp_path / "audit.jsonl", "edge", router.fingerprints())


OF_AUDITS = {"method": "bets at every look", "agreement": True}


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, True),
        ({"date": "2026-01-01"}, False),
        (OF_AUDITS, False),
        ({**OF_AUDITS, "parameters": {"counted_since": 1}}, False),
        ({**OF_AUDITS, "parameters": {"counted_since": 2_000_000_000_000}}, True),
    ],
)
def test_a_certificate_from_before_an_alarm_does_not_end_it(made, tmp_path, fields, ends, again):
    """Such as the one before, put in force again, or one of audits from before; in this run or the next."""
    hosted = Hosted()
    router, sentinel = made(hosted, state=tmp_path)
    learned(sentinel)
    alarmed(sentinel, hosted)
    other = router.engine.snapshot.certificates[0].certificate._replace(**{"metric": "another", **fields})
    if again:
        router.close()
        router, sentinel = made(hosted, state=tmp_path, threshold=other)
    else:
        bound = router.engine.snapshot.certificates[0]._replace(certificate=other)
        router.engine.snapshot = router.engine.snapshot._replace(certificates=(bound, None))
        router.engine.observe()
    for _ in range(3):
        assert ("the sentinel" in routes.label(router.infer("x"))) != ends
        assert (sentinel.pinned.test is None) == ends
        assert sentinel.probe()


@pytest.mark.parametrize(
    "given",
    [
        {"inputs": []},
        {"inputs": "text"},
        {"inputs": 3},
        {"per_day": 0},
        {"rounds": 1},
        {"on_alarm": "shout"},
        {"usd_per_day": -1},
    ],
)
def test_what_is_no_sentinel(given):
    """Is refused."""
    with pytest.raises(PolicyError, match="sentinel"):
        Sentinel(**{"inputs": PINNED, **given})


def test_it_is_one_routers():
    """Of which the probes are calls."""
    sentinel = Sentinel(PINNED)
    sentinel.opened = lambda status: None
    options = Options(parts=[sentinel])
    with Router(edge, lambda x: x, threshold=0.5, options=options), pytest.raises(PolicyError, match="another router"):
        Router(edge, lambda x: x, threshold=0.5, options=options)


# --- what is usual


def test_sampled_answers():
    """Some differ each time: the test knows how many, and sees that more do."""
    random.seed(7)
    pinned = Pinned(10, 10, alarm=10_000)

    def ask(differs):
        i = pinned.next()
        return pinned.add(i, random.random() if random.random() < differs else "usual")

    assert not any(ask(0.1) for _ in range(100))
    assert 0.1 < pinned.test.level < 0.4
    assert not any(ask(0.1) for _ in range(3_000))
    assert any(ask(0.7) for _ in range(200))


def test_exact_answers():
    """Two in a row that differ are another model; the second is asked for at once."""
    pinned = Pinned(20, 2, alarm=10_000, exact=True)
    while pinned.test is None:
        pinned.add(pinned.next(), "usual")
    assert not any(pinned.add(pinned.next(), "usual") for _ in range(1_000))
    i = pinned.next()
    assert not pinned.add(i, "other")
    assert (pinned.next(), pinned.add(i, "usual")) == (i, False)
    i = pinned.next()
    assert [pinned.add(i, "other"), pinned.add(i, "other"), pinned.add(i, "other")] == [False, True, False]


def test_answers_that_all_differ_are_said(caplog):
    """No test of them would see anything."""
    pinned = Pinned(3, 4, alarm=100.0)
    for n in range(12):
        pinned.add(pinned.next(), n)
    assert "short, stable answers" in caplog.text
    assert pinned.test.level < 1


# --- what replies say of the model


def completion(model, fingerprint):
    """A reply of that model."""
    message = {"role": "assistant", "content": "cloud"}
    made = {
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    return http_reply(json.dumps(made).encode(), headers=[("Content-Type", "application/json")])


@pytest.mark.parametrize(
    ("now", "suspended"),
    [(("m-1", "b"), ""), (("m-1", "a"), ""), (("m-1", "c"), "m-1/c"), (("m-2", "a"), "m-2/a"), (("m-1", None), "m-1"), (("m\x1b[1 2", "b"), "m12/b")],
)  # fmt: skip
def test_another_name_or_fingerprint(now, suspended):
    """Is noticed with the next reply, unless it was seen while the certificate was made: they rotate."""
    replies = [("m-1", "a"), ("m-1", "b")]
    with CannedServer(lambda _: completion(*(replies.pop(0) if replies else now))) as server:

        def router_of(threshold):
            return Router(CallableModel(edge, version="1"), OpenAIChat(server.url, model="m", stream=False), threshold=threshold)

        with router_of(0.5) as router:
            for _ in range(2):
                router.infer("x", mode="only_cloud")
            certificate = certified(router)
        assert certificate.fingerprints["served"] == "version:m-1/a,m-1/b described:openai"
        with router_of(certificate) as router:
            assert not routes.uncalibrated(router.infer("x")), "nothing is known yet"
            router.infer("x", mode="only_cloud")
            label = routes.label(router.infer("x"))
    assert label.startswith("uncalibrated") == bool(suspended)
    assert suspended in label
