"""`edgeroute recertify`: a hidden edge on trial is compared, is put in force once its certificate holds, and taken back after an alarm."""

import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import routes
import tiny
from both import LONG, Tasks, Threads, flat
from commands import cli
from draws import slow

from edgeroute import AsyncRouter, Audit, Limits, ModelMissing, PolicyError, Router, RuntimeMissing, Trial
from edgeroute.confidence import Certificate
from edgeroute.confidence import calibrate as certify
from edgeroute.confidence.certificate import digest
from edgeroute.router.audits_and_hidden_trials import edge_fingerprints
from edgeroute.stores.json_lines_and_process_locks import Journal, read
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.tools.cli.switch_to_trial_edge_or_back import rewrite_policy
from edgeroute.tools.measure.audit_counts_and_evidence import LossCounts
from edgeroute.tools.measure.certification_and_verdicts import Audited, certify_counts, compare_edges, counts_of
from edgeroute.tools.measure.threshold_evaluation import Examples

LABELS = ["a", "b", "c"]
OLD = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [4, -3, 0]]
NEW = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [0.5, -0.3, 0]]
NOWHERE = "http://127.0.0.1:9/v2/models/none"


def step(path, *args):
    """One step -> exit code, what it says."""
    code, out, err = cli("recertify", "-p", path, "--json", *args)
    return code, json.loads(out or err)


def until(condition, every=0.001):
    """Returns once it holds."""
    end = time.monotonic() + 3 * LONG
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(every)


@pytest.fixture
def home(tmp_path):
    """A folder with the model in use and the candidate."""
    tiny.linear(tmp_path / "old.onnx", weights=OLD, card={"labels": LABELS})
    tiny.linear(tmp_path / "new.onnx", weights=NEW, card={"labels": LABELS})
    return tmp_path


TOML = """\
# of the shop
threshold = 0.9     # by hand
state = "state"

[edge]
path = "old.onnx"

# the model of this month
[trial]
shown = false
[trial.edge]
path = "new.onnx"   # retrained

[cloud]
url = "{url}"

[audit]
share = "100%"      # while the candidate is judged
scene = 1
"""


def written(home, kind="toml", url=NOWHERE):
    """Writes a policy in that format -> its path."""
    if kind == "toml":
        pytest.importorskip("tomlkit")
    path = home / f"policy.{kind}"
    data = {
        "threshold": 0.9, "state": "state", "edge": {"path": "old.onnx"}, "trial": {"shown": False, "edge": {"path": "new.onnx"}},
        "cloud": {"url": url, "timeout": "60s"}, "audit": {"share": "100%", "scene": 1},
    }  # fmt: skip
    path.write_text(TOML.format(url=url) if kind == "toml" else json.dumps(data))  # JSON is YAML
    return path


def candidates(path):
    """The digests of the fingerprints of the edge in use and of the candidate."""
    with Router.from_policy(path, state=None) as router:
        return {name: digest(prints) for name, prints in edge_fingerprints(router.engine.snapshot).items()}


IDS = itertools.count()


def logged(home, made, count, share_wrong=0.0, **more):
    """Adds so many audits to the log, of both: confidences are uniform, and the candidate's least sure answers are wrong."""
    journal, random = Journal(home / "state" / "audit.jsonl"), np.random.default_rng(0)
    for both in random.uniform(size=(count, 2)):
        identity = f"x-{next(IDS)}"
        for target, sure in zip(("edge", "edge-trial"), both.tolist(), strict=True):
            agrees = sure > (share_wrong if target == "edge-trial" else 0.05)
            journal.append({
                "at": time.time(), "id": identity, "target": target, "edge_confidence": sure, "agrees": agrees,
                "audited": "shadow" if target == "edge" and sure >= 0.9 else "deferred", "probability": 1.0,
                "fingerprints": made[target], "unheard": True, **more,
            })  # fmt: skip
    journal.close()


def alarmed(home, path, *, audits=True):
    """The state of a router whose audits, or deferral rates, have raised an alarm under the policy's certificate."""
    with Router.from_policy(path, state=None) as router:
        watch = router.engine.auditor.watch("edge")
        for _ in range(20000):
            if audits:
                watch.add_comparison(0.99, agrees=False, counted=True)
            else:
                watch.add_deferral(watch.bound.certificate.threshold, below=True)
            if watch.alarm:
                break
        assert watch.alarm
    store = KeyValueStore.shared_store(home / "state" / "state.db", watch)
    store.put("audit:edge", watch.dump())
    store.leave(watch)


# ------------------------------------------------------------------------------------------------------ in the router
@pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
def test_a_candidate_is_compared_beside_the_edge(tmp_path, kind):
    """Answers are those of the edge and the cloud; of each audited request there is a line of the candidate, too."""

    def candidate(_):
        return "b", 0.3

    def cloud(_):
        return "b"

    with kind(
        lambda x: ("a", x), cloud, threshold=0.5, trial=Trial(edge=candidate, shown=False), audit=Audit(share=1), state=tmp_path
    ) as router:
        found = [router.infer(x) for x in (0.9, 0.1)]
        assert [(a.value, a.source) for a in found] == [("a", "edge"), ("b", "cloud")]
        until(lambda: not router.engine.auditor.jobs.busy)
        lines = {(one["target"], one["id"]): one for one in read(tmp_path / "audit.jsonl")}
        assert {key: (one["audited"], one["agrees"]) for key, one in lines.items()} == {
            ("edge", found[0].id): ("shadow", False),
            ("edge", found[1].id): ("deferred", False),
            ("edge-trial", found[0].id): ("deferred", True),
            ("edge-trial", found[1].id): ("deferred", True),
        }
        with Router(candidate, cloud, threshold=0.7) as other:
            assert digest(other.fingerprints()) == lines["edge-trial", found[0].id]["fingerprints"]
        router.infer(0.1, mode="only_edge")
        until(lambda: not router.engine.auditor.jobs.busy)
    assert len(list(read(tmp_path / "audit.jsonl"))) == 4, "what stays on the device is not compared"


def test_what_a_candidate_cannot_be(home):
    """One of several edges, one that is awaited, one with other labels; and in a file one without a cloud."""

    async def awaited(x):
        return "a", x

    def edge(x):
        return "a", x

    for given, words in (
        ({"edge": [edge, edge], "threshold": [0.5, 0.6]}, "beside the only edge model, and there are 2 edges"),
        ({"edge": edge, "trial": Trial(edge=awaited, shown=False)}, "is async, and in shadow it runs in a thread"),
        ({"edge": str(home / "old.onnx"), "trial": Trial(edge=edge, shown=False)}, "has other labels than the edge"),
    ):
        with pytest.raises(PolicyError, match=words):
            AsyncRouter(**flat(**{"cloud": lambda _: "a", "threshold": 0.5, "trial": Trial(edge=edge, shown=False), **given}))
    path = home / "policy.json"
    base = {
        "threshold": 0.9,
        "edge": {"path": "old.onnx"},
        "trial": {"shown": False, "edge": {"path": "new.onnx"}},
        "cloud": {"url": NOWHERE},
    }
    for data, words in (
        ({**base, "cloud": None, "audit": {}}, "compared with the cloud's, and there is no cloud="),
        (
            {**base, "trial": {"shown": False, "edge": {"path": "new.onnx", "pathh": 1}}, "audit": {}},
            r'trial.edge.pathh: .*did you mean "path"',
        ),
        (
            {**base, "trial": {"shown": False, "edge": {"path": "none.onnx"}}, "audit": {}},
            r"policy.json: trial.edge.path: there is no model at .*none.onnx",
        ),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises((PolicyError, ModelMissing), match=words):
            Router.from_policy(path)
    path.write_text(json.dumps({**base, "mode": "shadow"}))
    with Router.from_policy(path) as router:
        assert any(line.startswith("edge-trial, on trial, hidden: ") for line in router.check().lines)


# ------------------------------------------------------------------------------------------------------ one step
@pytest.mark.parametrize("kind", ["toml", "json"])
def test_steps(home, kind):
    """Too few audits; the switch, with what was in the file; nothing to do; an alarm; rolled back; only new audits count then."""
    path = written(home, kind)
    before, made = path.read_text(), candidates(path)
    assert step(path)[0] == 2, "which loss?"
    code, told = step(path, "--max-loss", "5%")
    needed = LossCounts().needed(0.05, 0.05)
    assert (code, told["did"], told["missing"]) == (5, "waiting", needed)
    logged(home, made, needed - 1)
    assert step(path, "--max-loss", "5%")[1]["missing"] == 1
    logged(home, made, 900, share_wrong=0.3)
    code, told = step(path, "--max-loss", "5%", "--dry-run")
    assert (code, told["did"], path.read_text(), len(list(home.glob("*.json")))) == (0, "switched", before, 2 + (kind == "json"))
    code, told = step(path, "--max-loss", "5%")
    assert (code, told["did"]) == (0, "switched")
    certificate = Certificate.load(told["certificate"])
    assert (certificate.value, certificate.sure, certificate.n) == (0.05, pytest.approx(0.95), needed + 899)
    with Router.from_policy(path, uncalibrated="error", state=None) as router:
        assert digest(router.fingerprints()) == made["edge-trial"]
        assert router.engine.snapshot.trial is None
    if kind == "toml":
        assert path.read_text() == before.replace("0.9  ", f'"{certificate_name(told)}"  ').replace(
            '[edge]\npath = "old.onnx"\n\n# the model of this month\n[trial]\nshown = false\n[trial.edge]\npath = "new.onnx"   # retrained',
            '[edge]\npath = "new.onnx"   # retrained',
        )
    assert (home / f"policy.{kind}.before").read_text() == before
    code, told = step(path)
    assert (code, told["did"]) == (0, "nothing")
    alarmed(home, path, audits=False)
    assert step(path)[1]["did"] == "nothing", "other inputs are no fault of the model"
    alarmed(home, path)
    assert step(path, "--dry-run")[1]["did"] == "rolled_back"
    code, told = step(path)
    assert (code, told["did"], path.read_text()) == (0, "rolled_back", before)
    assert "drift alarm of" in told["text"]
    code, told = step(path, "--max-loss", "5%")
    assert (code, told["audits"]) == (5, 0)
    assert "since it was rolled back" in told["text"]


def certificate_name(told):
    """As in the policy."""
    return told["certificate"].rpartition("/")[2]


def test_the_promise_of_the_certificate_in_use(home):
    """It is the default, also how sure."""
    path = written(home, "json")
    made = candidates(path)
    with Router.from_policy(path, state=None) as router:
        used = router.fingerprints()
    score = np.linspace(0, 1, 2000)
    certify(score, score > 0.2, max_loss=0.1, sure=0.9, fingerprints=used).save(home / "certificate.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": "certificate.json"}))
    assert step(path)[1]["needed"] == LossCounts().needed(0.1, 0.1)
    logged(home, made, 500)
    told = step(path)[1]
    assert (told["did"], "at most 10 %" in told["guarantee"] or "10 %" in told["guarantee"]) == ("switched", True)


def test_a_guarantee_at_no_threshold_is_looked_at_again(home):
    """A candidate whose certificate holds nowhere waits; it may be looked at after each audit, and holds once enough agree."""
    path = written(home, "json")
    made = candidates(path)
    logged(home, made, 120, share_wrong=1.1)
    for _ in range(2):
        code, told = step(path, "--max-loss", "5%")
        assert (code, told["did"], told["audits"]) == (5, "waiting", 120)
        assert "holds at no threshold" in told["text"]
        assert "missing" not in told
    logged(home, made, 8000)
    told = step(path, "--max-loss", "5%")[1]
    assert Certificate.load(told["certificate"]).sure == pytest.approx(0.95)


@pytest.mark.slow
def test_looking_again_and_again_keeps_the_risk():
    """A candidate that breaks its promise at each threshold, by little, is certified in 5 % of cases at most, whenever."""
    value, risk, cases, broken = 0.05, 0.05, 200, 0
    for seed in range(cases):
        random, counts = np.random.default_rng(seed), LossCounts()
        score, differs = np.where(random.uniform(size=2000) < 0.1, 0.2, 0.8), random.uniform(size=2000) < 0.0562
        for confidence, harm in zip(score.tolist(), differs.tolist(), strict=True):
            counts.count(confidence, int(harm))
            if counts.n % 40 == 0 and counts.lowest(value, risk) <= max(i for _, i, _ in counts.numbers):
                broken += 1
                break
    assert broken <= cases * risk + 3 * (cases * risk * (1 - risk)) ** 0.5


def audited(score, agrees):
    """Audits of an edge model with these scores and agreements, of requests 0, 1, ..."""
    n = len(score)
    examples = Examples(score, agrees.tolist(), [True] * n, None, None, np.full(n, np.nan), None, 0, 0, 0.0)
    return Audited(examples, [], [str(i) for i in range(n)], [False] * n)


EDGE_ERRORS, VALUE, RISK = 0.15, 0.05, 0.05


def edges(random, n, errors):
    """Scores [n] of the edge in use and of a candidate, and whether they agree with the cloud; wrong the more, the less sure.

    errors: share of the candidate's wrong answers; None: it is a coin, whatever its score.
    """
    hard = random.uniform(size=n)
    for share in (EDGE_ERRORS, errors):
        score = np.clip(hard + random.normal(size=n) * 0.1, 0, 1) + random.uniform(size=n) * 1e-3
        agrees = random.uniform(size=n) < 0.5 if share is None else random.uniform(size=n) > 2.5 * share * (1 - hard) ** 1.5
        yield audited(random.uniform(size=n) if share is None else score, agrees)


def switches(seed, errors, n=6000):
    """Deferral rates of a candidate that is put in force, and of the edge in use, in 30,000 other requests; None: it never is."""
    random = np.random.default_rng(seed)
    edge, trial = edges(random, n, errors)
    used = certify(edge.examples.score[:2000], np.array(edge.examples.edge)[:2000], max_loss=VALUE).threshold
    for count in range(200, n + 1, 400):
        so_far = [
            one._replace(
                examples=one.examples._replace(score=one.examples.score[:count], edge=one.examples.edge[:count]),
                ids=one.ids[:count],
            )
            for one in (trial, edge)
        ]
        certified = certify_counts(counts_of(so_far[0]), VALUE, 1 - RISK, "msp", {})[0].threshold
        if certified < np.inf and compare_edges(*so_far, certified, used, VALUE, RISK).better:
            others, other_trial = edges(random, 30_000, errors)
            return np.mean(other_trial.examples.score < certified), np.mean(others.examples.score < used)
    return None


@pytest.mark.filterwarnings("ignore:the score seems to rank")
@pytest.mark.parametrize("runs", [2, *slow(300)])
def test_what_is_no_better_is_not_put_in_force(runs):
    """Neither a coin nor a candidate that then defers more than the edge in use, but for 5 %; one that is better nearly always is."""
    limit = runs * RISK + 3 * (runs * RISK * (1 - RISK)) ** 0.5
    coins, equals, better = ([switches(seed, errors) for seed in range(runs)] for errors in (None, EDGE_ERRORS, EDGE_ERRORS / 3))
    assert not any(coins)
    assert sum(rates is not None and rates[0] >= rates[1] for rates in equals + better) <= limit
    assert sum(rates is not None for rates in better) >= 0.9 * runs


def test_a_candidate_that_keeps_its_promise_by_deferring(home):
    """It is not put in force beside an edge that defers less: the exit code says so, the figures, and the notes of the log."""
    path = written(home, "json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": 0.1}))
    before, made = path.read_text(), candidates(path)
    logged(home, made, 600, share_wrong=0.8)
    journal = Journal(home / "state" / "audit.jsonl")
    journal.append({"target": "edge-trial"})
    journal.close()
    code, told = step(path, "--max-loss", "5%")
    assert (code, told["did"], path.read_text()) == (5, "waiting", before)
    assert re.search(
        r"not shown to be better: of 600 requests it defers [78]\d\.\d %, and the edge in use \d?\d\.\d %", told["text"]
    )
    assert all(note in told["text"] for note in told["notes"])
    assert any("are not whole" in note for note in told["notes"])


def test_without_audits_of_the_edge_in_use(home):
    """There is nothing to compare with."""
    path = written(home, "json")
    logged(home, {**candidates(path), "edge": "of another model"}, 600)
    code, told = step(path, "--max-loss", "5%")
    assert (code, told["did"]) == (5, "waiting")
    assert "cannot be compared with the edge in use" in told["text"]


@pytest.mark.filterwarnings("ignore:the score seems to rank")
def test_an_edge_that_breaks_the_promise_is_compared_at_a_threshold_that_keeps_it():
    """Deferring little by losing much is no merit; by loss, the one that loses less is better."""
    random = np.random.default_rng(3)
    hard, n = random.uniform(size=4000), 4000
    bad = audited(hard, random.uniform(size=n) > 0.4 * (1 - hard))
    good = audited(np.roll(hard, 1), random.uniform(size=n) > 0.01)
    assert compare_edges(good, bad, 0.0, -1.0, VALUE, 0.01).better
    assert not compare_edges(bad, good, 0.9, -1.0, VALUE, 0.01).better
    assert compare_edges(good, bad, 0.5, -1.0, VALUE, 0.01, by_loss=True).better
    assert not compare_edges(bad, good, 0.5, -1.0, VALUE, 0.01, by_loss=True).better
    assert not compare_edges(good._replace(ids=["?"] * n), bad, 0.0, None, VALUE, 0.01).better


def test_an_edited_policy_is_not_overwritten(home):
    """It is said, and the exit status is not 0; with --force it is kept beside."""
    path = written(home, "json")
    before = path.read_text()
    logged(home, candidates(path), 900)
    assert step(path, "--max-loss", "5%")[1]["did"] == "switched"
    alarmed(home, path)
    edited = json.dumps({**json.loads(path.read_text()), "deadline": "2s"})
    path.write_text(edited)
    code, told = step(path)
    assert (code, told["did"], path.read_text()) == (4, "refused", edited)
    assert "was edited after the switch" in told["text"]
    code, told = step(path, "--force")
    assert (code, told["did"], path.read_text()) == (0, "rolled_back", before)
    assert (home / "policy.json.edited").read_text() == edited


def test_what_is_kept_is_not_trusted_blindly(home):
    """Where the policy before the switch was changed or removed, nothing is put in force."""
    path = written(home, "json")
    logged(home, candidates(path), 900)
    step(path, "--max-loss", "5%")
    alarmed(home, path)
    (home / "policy.json.before").unlink()
    now = path.read_text()
    code, told = step(path)
    assert (code, path.read_text()) == (2, now)
    assert "is not the policy before the switch any more" in told["error"]
    kept = home / "state" / "recertify.json"
    whole = json.loads(kept.read_text())["switch"]
    damaged = [{key: value for key, value in whole.items() if key != each} for each in whole]
    for switch in (
        *damaged,
        {**whole, "at": "x"},
        {**whole, "at": 1e300},
        {**whole, "rolled_back": None},
        {**whole, "after": 1},
        [1],
        3,
    ):
        kept.write_text(json.dumps({"switch": switch}))
        code, told = step(path)
        assert (code, "recertify.json is damaged" in told["error"]) == (2, True), switch


def test_yaml_is_told(home):
    """What to write, with the certificate; the file stays."""
    path = written(home, "yaml")
    before = path.read_text()
    logged(home, candidates(path), 900)
    code, told = step(path, "--max-loss", "5%")
    assert (code, told["did"], path.read_text()) == (0, "by_hand", before)
    assert "make the edge of trial that of [edge]" in told["text"]
    Certificate.load(told["certificate"])


def test_without_tomlkit(home, monkeypatch):
    """The message says what to install, or to write."""
    path = home / "policy.toml"
    path.write_text(TOML.format(url=NOWHERE))
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    with pytest.raises(RuntimeMissing, match=r"pip install tomlkit\. Or by hand: make the edge of trial that of \[edge\]"):
        rewrite_policy(path, "certificate.json")


KILLED = """
import os, signal, sys
from edgeroute.system import files_and_lock_waits
from edgeroute.tools.cli import switch_to_trial_edge_or_back as switch
from edgeroute.__main__ import main
left, real = int(sys.argv.pop(1)), files_and_lock_waits.replace_file
def replaced(path, text):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(path, text)
switch.replace_file = replaced
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_between_any_two_writes(home):
    """The policy is the old one or the new one, whole and valid; the next run does the rest."""
    path = written(home, "json")
    before = path.read_text()
    logged(home, candidates(path), 900)

    def killed(at, *args):
        command = [sys.executable, "-c", KILLED, str(at), "recertify", "-p", str(path), *args]
        return subprocess.run(command, check=False, capture_output=True, timeout=200).returncode

    ends = []
    for at in range(9):
        ends.append(killed(at, "--max-loss", "5%"))
        with Router.from_policy(path, state=None):
            pass
        if ends[-1] == 0:
            break
        assert path.read_text() == before
    assert ends == [-signal.SIGKILL] * 4 + [0]
    after = path.read_text()
    assert after != before
    alarmed(home, path)
    ends = []
    for at in range(9):
        ends.append(killed(at))
        if ends[-1] == 0:
            break
        assert path.read_text() == after
    assert ends == [-signal.SIGKILL] * 2 + [0]
    assert path.read_text() == before


# ------------------------------------------------------------------------------------------------------ end to end
def drawn(n, seed, shift=0.0):
    """Inputs [n, 4]; the fourth number misleads, the more the larger it is."""
    x = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    x[:, 3] += shift
    return x


@pytest.mark.slow
def test_a_candidate_is_certified_switched_and_rolled_back_while_the_router_runs(home, right_server):
    """Real models, a real server, four callers, and a router that watches its file: in shadow, in force, worse, taken back."""
    path = written(home, "json", url=right_server)
    before = path.read_text()
    assert step(path, "--max-loss", "15%")[0] == 5
    stop = threading.Event()
    with Router.from_policy(path, watch=True, limits=Limits()) as router:

        def calls(shift, enough):
            errors = []

            def call(seed):
                try:
                    for x in drawn(100_000, seed, shift):
                        if stop.is_set():
                            return
                        router.infer(x)
                except Exception as e:  # noqa: BLE001 - looked at below
                    errors.append(e)

            threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            try:
                until(lambda: errors or enough(), 0.05)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
                stop.clear()
            assert not errors
            until(lambda: not router.engine.auditor.jobs.busy)

        def lines():
            return [one for one in read(home / "state" / "audit.jsonl") if one["target"] == "edge-trial"]

        calls(0.0, lambda: any(s.target == "edge-trial" and s.compared > 300 for s in router.stats().shadows))
        code, told = step(path, "--max-loss", "15%")
        assert (code, told["did"]) == (0, "switched"), told
        until(lambda: router.engine.snapshot.trial is None)
        assert digest(router.fingerprints()) == lines()[-1]["fingerprints"]
        found = [router.infer(x) for x in drawn(50, 77)]
        assert "15" in routes.label(next(a for a in found if a.source == "edge"))
        assert not routes.uncalibrated(found[0])
        assert step(path)[1]["did"] == "nothing"
        calls(6.0, lambda: any(one.alarm for one in router.stats().audits))
        stored = home / "state" / "state.db"
        assert stored.exists()
        until(lambda: step(path)[1]["did"] == "rolled_back")
        assert path.read_text() == before
        until(lambda: router.engine.snapshot.trial is not None)
        assert router.infer(drawn(1, 5)[0]).value in LABELS
    code, told = step(path, "--max-loss", "15%")
    assert (code, told["did"]) == (5, "waiting")


def test_one_at_a_time(home):
    """Who comes while another one is under way is told."""
    from edgeroute.stores.json_lines_and_process_locks import ProcessLock

    path = written(home, "json")
    with contextlib.closing(contextlib.ExitStack()) as stack:
        turn = ProcessLock(home / "state" / "recertify.lock")
        assert turn.take()
        stack.callback(turn.leave)
        code, told = step(path, "--max-loss", "5%")
        assert (code, "another recertify is running" in told["error"]) == (2, True)
