"""`edgeroute calibrate`, `evaluate` and `status` as they are run: on real models, a real server and the files that they leave."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
from functools import partial

import numpy as np
import pytest
import routes
import tiny
from both import collected
from commands import cli
from draws import slow

from edgeroute import (
    BadInput,
    CallableModel,
    CloudError,
    Egress,
    Function,
    MayNotLeave,
    ModelError,
    NoAnswer,
    Outbox,
    PolicyError,
    Router,
)
from edgeroute.confidence import Certificate, Learned, crossfit, fit, msp
from edgeroute.confidence import calibrate as certify
from edgeroute.confidence.certificate import digest
from edgeroute.core.sequential_tests import GRID
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.stores.outbox import Waiting
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system import wall_clock
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.measure.certification_and_verdicts import audited_examples, fit_score
from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls, label_values, recorded_examples
from edgeroute.tools.measure.threshold_evaluation import Examples

LABELS = ["a", "b", "c"]
EDGE = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [2, -1.5, 0]]
NOWHERE = "http://127.0.0.1:9/v2/models/none"


def drawn(n, seed):
    """Inputs [n, 4], of which the first three numbers say which class is right, and the labels."""
    x = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def logits(x):
    """What the edge model says."""
    return x @ np.array(EDGE, np.float32)


@pytest.fixture
def cloud(right_server):
    return right_server


def fill(folder):
    """Puts an edge model that the fourth number misleads in it, 1,200 labelled examples, and the same without labels."""
    tiny.linear(folder / "edge.onnx", weights=EDGE, card={"labels": LABELS})
    x, y = drawn(1200, 0)
    np.savez(folder / "val.npz", images=x, labels=y)
    np.savez(folder / "bare.npz", images=x)


def write(folder, url=NOWHERE, first="", more="", name="policy.toml"):
    """Writes a policy of that model and a cloud at `url`, with whatever comes first in it."""
    path = folder / name
    path.write_text(f'{first}\n[edge]\npath = "edge.onnx"\n[cloud]\nurl = "{url}"\nretries = 0\n{more}\n')
    return path


@pytest.fixture
def home(tmp_path):
    """A folder with the model and the examples."""
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def policy(home):
    """Writes a policy into the folder."""
    return partial(write, home)


def made(*args):
    """Calibrates -> the certificate as JSON has it, and all that was said."""
    code, out, err = cli("calibrate", *args, "--json")
    assert (code, err) == (0, ""), err
    told = json.loads(out)
    return Certificate.load(told["path"]), told


# ------------------------------------------------------------------------------------------------ calibrate
def test_outputs_that_say_nothing_are_wrong(home, policy):
    """NaN is no class, and not the first: `evaluate` says so, and refuses outputs that all are."""
    outputs, data = np.eye(4, 3, dtype=np.float32) * 5, home / "nan.npz"
    outputs[:2] = np.nan
    np.savez(data, edge_logits=outputs, labels=np.array([0, 0, 2, 0]))
    code, out, err = cli("evaluate", "-p", policy(first="threshold = 0.5"), "-d", data, "--no-cloud", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (code, told["accuracy"]["edge"]["value"]) == (0, 0.5)
    assert "2 of the edge's answers are none" in " ".join(told["notes"])
    np.savez(data, edge_logits=outputs * np.nan, labels=np.zeros(4, int))
    assert "each row holds NaN" in cli("evaluate", "-p", policy(first="threshold = 0.5"), "-d", data, "--no-cloud")[2]


@pytest.mark.slow
@pytest.mark.parametrize("names", [("images",), ("edge_logits", "cloud_logits")])
def test_groups_are_what_is_drawn(names, home, policy, cloud):
    """An array `groups` beside inputs, or beside recorded outputs, is of the examples' scenes; `evaluate` says that it has no use."""
    x, y = drawn(1200, 0)
    arrays = {"images": x, "edge_logits": logits(x), "cloud_logits": x[:, :3]}
    given = {name: arrays[name] for name in names}
    data, groups = home / "scenes.npz", np.repeat(np.arange(400), 3)
    np.savez(data, labels=y, groups=groups, **given)
    found, _ = made("-p", policy(cloud), "-d", data, "--max-loss", "10%")
    assert (found.n, found.groups) == (1200, 400)
    halved, _ = made("-p", policy(cloud), "-d", data, "--max-loss", "10%", "--every", "3")
    assert (halved.n, halved.groups) == (400, 400)
    code, _, err = cli("evaluate", "-p", policy(cloud, "threshold = 0.5"), "-d", data)
    assert (code, "'groups' is not used" in err) == (0, True)
    np.savez(data, labels=y, groups=groups[:7], **given)
    code, _, err = cli("calibrate", "-p", policy(cloud), "-d", data, "--max-loss", "10%")
    assert code
    assert "1200 " + ("edge_logits" if len(names) > 1 else "inputs") + " and 7 groups" in err


@pytest.mark.parametrize("option", ["--out", "--score-out"])
@pytest.mark.parametrize("name", ["policy.toml", "edge.onnx", "edge.json", "val.npz", ".", "none/c.json"])
def test_only_a_certificate_is_replaced(home, policy, name, option):
    """A policy, a model, its card or the data is not, and nothing is asked before that is known."""
    with CannedServer(lambda _: http_reply(status=500)) as server:
        path = policy(f"{server.url}/v2/models/right")
        before = {file.name: file.read_bytes() for file in home.iterdir()}
        code, out, err = cli("calibrate", "-p", path, "-d", home / "val.npz", "--max-loss", "5%", option, home / name, "--json")
        assert (code, out, json.loads(err)["kind"], server.requests) == (2, "", "Usage", [])
    assert {file.name: file.read_bytes() for file in home.iterdir()} == before


@pytest.mark.slow
def test_from_examples_to_a_promise_that_the_reasons_quote(home, policy, cloud):
    """The certificate is the one that `calibrate` makes of what the models say; a policy takes it, and `evaluate` tests it."""
    with Router.from_policy(policy(cloud, "threshold = 0.5")) as router:
        prints = router.fingerprints()
    assert prints["served"] == "version:? described:?", "this router has asked nobody"
    path = policy(cloud)
    code, out, err = cli("calibrate", "-p", path, "-d", home / "val.npz", "--max-loss", "5%", "--sure", "90%")
    assert (code, err) == (0, "")
    assert "With 90 % confidence, on inputs drawn independently and like the 1,200 examples" in out
    assert out.endswith('in the policy:\n    threshold = "certificate.json"\n')
    x, y = drawn(1200, 0)
    found, right = Certificate.load(home / "certificate.json"), logits(x).argmax(1) == y
    prints["served"] = found.fingerprints["served"]
    wanted = certify(
        msp(logits(x)), right, np.ones(1200, bool), agree=right, max_loss=0.05, sure=0.9, name="msp", fingerprints=prints
    )
    assert found.threshold == pytest.approx(wanted.threshold, abs=1e-6)
    apart = {"threshold": 0, "examples": "", "seal": ""}
    assert found._replace(**apart) == wanted._replace(**apart)  # of outputs, and of scores
    assert found.disagreement is not None

    path = policy(cloud, 'threshold = "certificate.json"\nuncalibrated = "error"')
    new, labels = drawn(400, 1)
    np.savez(home / "test.npz", images=new, labels=labels)
    code, out, err = cli("infer", "-p", path, home / "test.npz", "--json")
    assert (code, err) == (0, "")
    assert all(f"({found.label})" in json.loads(text)["reason"] for text in out.splitlines())

    code, out, err = cli("evaluate", "-p", path, "-d", home / "test.npz", "--report", home / "report.html")
    assert (code, err) == (0, "")
    assert "It held on these inputs." in out
    assert "<html" in (home / "report.html").read_text()


@pytest.mark.parametrize("data", ["bare.npz", "val.npz"])
def test_without_labels_agreement_is_promised(home, policy, cloud, data):
    """The cloud is right by definition: more is deferred than with labels, never less; and with this cloud they are the same."""
    found, _ = made("-p", policy(cloud), "-d", home / data, "--max-loss", "5%")
    assert found.agreement == (data == "bare.npz")
    assert ("another answer than the cloud's" in found.guarantee) == found.agreement
    assert 0 < found.deferral_rate < 1


def test_the_error_of_what_is_kept_needs_labels_and_no_cloud(home, policy):
    """Nothing listens where the cloud should be."""
    found, _ = made("-p", policy(), "-d", home / "val.npz", "--max-error", "10%")
    assert (found.kind, found.accuracy.keys()) == ("max_error", {"edge", "accepted"})
    code, out, err = cli("calibrate", "-p", policy(), "-d", home / "bare.npz", "--max-error", "10%")
    assert (code, out) == (2, "")
    assert "max_error needs labels" in err


def test_a_budget_needs_neither_labels_nor_the_cloud(home, policy):
    """With a probability, or on average; the second is a little more generous."""
    sure, _ = made("-p", policy(), "-d", home / "bare.npz", "--max-defer", "20%")
    average, _ = made("-p", policy(), "-d", home / "bare.npz", "--max-defer", "20%", "--sure", "average")
    assert (sure.sure, average.sure) == (0.95, None)
    assert sure.deferral_rate < average.deferral_rate <= 0.2


def test_a_threshold_for_each_class(home, policy, cloud):
    """Each class has its own in the certificate, and in the reasons; `evaluate` looks at each."""
    found, told = made("-p", policy(cloud), "-d", home / "val.npz", "--max-error", "15%", "--per-class")
    assert {*found.thresholds} == {*LABELS}
    assert min(found.thresholds.values()) < np.inf
    assert told["policy"] == {"threshold": "certificate.json"}
    path = policy(cloud, 'threshold = "certificate.json"')
    with Router.from_policy(path) as router:
        for x in drawn(60, 2)[0]:
            answer = router.infer(x)
            said = LABELS[int(logits(x).argmax())]
            assert (answer.source == "edge") == (msp(logits(x)) >= found.thresholds[said])
            assert routes.label(answer) == found.label
    code, out, err = cli("evaluate", "-p", path, "-d", home / "val.npz", "--json")
    assert (code, err) == (0, "")
    assert {one["where"] for one in json.loads(out)["held"]} == {label for label, t in found.thresholds.items() if t < np.inf}
    code, out, _ = cli("calibrate", "-p", path, "-d", home / "val.npz", "--max-error", "15%", "--per-class")
    assert code == 0
    assert f"│ a     │ {found.thresholds['a']:.4g}" in out


@pytest.mark.parametrize("ood", [True, *slow(False)], ids=["ood", "plain"])
def test_a_learned_score(home, policy, cloud, ood):
    """It is saved beside the model, the certificate is bound to it, and its threshold was found with scores cross-fitted."""
    more = ["--ood"] if ood else []
    found, told = made("-p", policy(cloud), "-d", home / "val.npz", "--max-loss", "5%", "--score", "learned", *more)
    assert (found.score, told["policy"]) == ("learned", {"threshold": "certificate.json", "score": "edge.score.json"})
    x, y = drawn(1200, 0)
    z, right, sure = logits(x), logits(x).argmax(1) == y, np.ones(1200, bool)
    learned = Learned.load(home / "edge.score.json")
    assert found.fingerprints["score"] == learned.fingerprint
    assert ("distance" in str(learned.data["features"])) == ood
    scores = crossfit(lambda train: lambda out: fit(z[train], right[train], sure[train], ood=ood).many(z[out]), 1200)
    assert found.threshold == pytest.approx(certify(scores, right, sure, max_loss=0.05).threshold, abs=1e-6)
    path = policy(cloud, 'threshold = "certificate.json"\nscore = "edge.score.json"\nuncalibrated = "error"')
    with Router.from_policy(path) as router:
        judged = routes.judged(router.infer(x[0]))
        assert (judged.confidence, judged.label) == (pytest.approx(learned(z[0]), abs=0.005), found.label)
    with Router.from_policy(policy(cloud, 'threshold = "certificate.json"')) as router:
        answer = router.infer(x[0])
        assert routes.uncalibrated(answer)
        assert "score" in answer.reason


def test_auto_takes_msp_where_nothing_more_can_be_learned(home, policy, cloud):
    """No score is saved then, and the policy is to name msp."""
    few = home / "few.npz"
    x, y = drawn(45, 0)
    np.savez(few, images=x, labels=y)
    found, told = made("-p", policy(cloud), "-d", few, "--max-defer", "50%", "--score", "auto")
    assert (found.score, told["policy"]["score"]) == ("msp", "msp")
    assert "fewer than 50" in found.parameters["chosen_because"]
    assert not (home / "edge.score.json").exists()


def test_another_score_of_the_outputs(home, policy):
    """Its name is in the certificate, and in what the policy has to say."""
    found, told = made("-p", policy(), "-d", home / "val.npz", "--max-error", "10%", "--score", "margin")
    assert (found.score, found.fingerprints["score"], told["policy"]["score"]) == ("margin", "margin", "margin")


def test_what_the_policy_names_need_not_be_there_yet(home, policy, cloud):
    """Neither the certificate nor the score: they are what is being made. The environment is as before afterwards."""
    path = policy(cloud, 'threshold = "certificate.json"\nscore = "edge.score.json"\nuncalibrated = "error"')
    code, _, err = cli("infer", "-p", path, home / "val.npz")
    assert code == 2
    assert "edge.score.json" in err
    made("-p", path, "-d", home / "val.npz", "--max-loss", "5%", "--score", "learned")
    made("-p", path, "-d", home / "val.npz", "--max-loss", "5%")
    assert cli("decide", "-p", path, home / "val.npz")[0] == 0


def test_a_certificate_that_was_edited_is_refused(home, policy, cloud):
    """Whoever uses it says so; calibrating again replaces it."""
    path = policy(cloud, 'threshold = "certificate.json"')
    made("-p", path, "-d", home / "val.npz", "--max-loss", "5%")
    file = home / "certificate.json"
    text = json.loads(file.read_text())
    file.write_text(json.dumps({**text, "threshold": 0.1}))
    for command in ("infer", "evaluate"):
        code, _, err = cli(command, "-p", path, *(["-d"] if command == "evaluate" else []), home / "val.npz")
        assert code == 2
        assert "was changed after it was made" in err
    made("-p", path, "-d", home / "val.npz", "--max-loss", "5%")
    assert cli("decide", "-p", path, home / "val.npz")[0] == 0


def test_too_few_examples_say_how_many_more(home, policy):
    """Nothing is written then."""
    args = ["calibrate", "-p", policy(), "-d", home / "val.npz", "--max-error", "1%", "--every", "10"]
    code, out, err = cli(*args)
    assert (code, out) == (5, "")
    assert err == "error: max_error=0.01 with sure=0.95 needs at least 299 examples, and there are 120: 179 are missing\n"
    code, out, err = cli(*args, "--json")
    assert (code, out) == (5, "")
    assert {k: json.loads(err)[k] for k in ("kind", "needed", "missing")} == {"kind": "NotEnough", "needed": 299, "missing": 179}
    assert not (home / "certificate.json").exists()


def test_where_no_threshold_keeps_the_promise_all_is_deferred(home, policy):
    """That is an answer: the exit code is 0, and the words are plain."""
    x, _ = drawn(400, 0)
    np.savez(home / "wrong.npz", images=x, labels=(logits(x).argmax(1) + 1) % 3)
    code, out, err = cli("calibrate", "-p", policy(), "-d", home / "wrong.npz", "--max-error", "5%")
    assert (code, err) == (0, "")
    assert "no threshold keeps the guarantee with these examples" in out
    assert "none: every input is deferred" in out


def test_ties_and_missing_scores_are_told(home, policy):
    """On stderr, a line; a score that is the same for all is refused."""
    z = np.repeat(logits(drawn(600, 0)[0]), 2, axis=0)
    z[:300] = z[0]
    np.savez(home / "tied.npz", edge_logits=z)
    code, _, err = cli("calibrate", "-p", policy(), "-d", home / "tied.npz", "--max-defer", "60%")
    assert code == 0
    assert "25 % of the examples share the score" in err
    z[400:430] = np.nan
    np.savez(home / "nan.npz", edge_logits=z)
    code, out, _ = cli("calibrate", "-p", policy(), "-d", home / "nan.npz", "--max-defer", "60%")
    assert code == 0
    assert "2.50 % of the examples, which are deferred" in out
    z[:] = z[0]
    np.savez(home / "same.npz", edge_logits=z)
    code, _, err = cli("calibrate", "-p", policy(), "-d", home / "same.npz", "--max-defer", "60%")
    assert code == 2
    assert "for every example" in err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ([], "exactly one is needed"),
        (["--max-loss", "1%", "--max-error", "1%"], "exactly one is needed"),
        (["--max-loss", "2"], "'--max-loss': a share must be 0% to 100%, not '2': 2 percent is 2%"),
        (["--max-loss", "1%", "--sure", "average"], "only --max-defer can hold on average"),
        (["--max-loss", "1%", "--sure", "95"], "for --sure: a share must be 0% to 100%, not '95': 95 percent is 95%"),
        (["--max-defer", "1%", "--per-class"], "one threshold for all classes"),
        (["--max-loss", "1%", "--audited"], "one of the two is needed"),
        (["--max-loss", "0%"], "more than 0% and less than 100%"),
        (["--max-loss", "1%", "--sure", "100%"], "more than 0% and less than 100%"),
        (["--max-loss", "1%", "--score", "best"], "Invalid value for '--score': 'best' is not one of"),
        (["--max-loss", "1%", "--edge", "1"], "there is no edge model number 1"),
        (["--max-loss", "1%", "--score", "msp", "--ood"], "needs a fitted score"),
    ],
)
def test_wrong_usage(home, policy, args, why):
    """Before anything is run, as far as that can be known."""
    code, out, err = cli("calibrate", "-p", policy(), "-d", home / "val.npz", *args, env={"COLUMNS": "400", "TERM": "dumb"})
    assert (code, out) == (2, "")
    assert why in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "args", [[], ["--max-error", "1%"], ["--max-loss", "1%", "--per-class"], ["--max-loss", "1%", "--score", "msp"]]
)
def test_what_the_audit_log_cannot_give(policy, args):
    """It has no labels, no classes, and one score."""
    assert cli("calibrate", "-p", policy(), "--audited", *args)[0] == 2


def test_without_a_cloud_there_is_nothing_to_measure_against(home):
    """The policy has no cloud, or the file no outputs of it."""
    path = home / "alone.toml"
    path.write_text('[edge]\npath = "edge.onnx"\n')
    code, _, err = cli("calibrate", "-p", path, "-d", home / "val.npz", "--max-loss", "5%")
    assert code == 2
    assert "no [cloud] in the policy" in err
    np.savez(home / "edge.npz", edge_logits=logits(drawn(400, 0)[0]))
    code, _, err = cli("calibrate", "-p", path, "-d", home / "edge.npz", "--max-loss", "5%")
    assert code == 2
    assert "record cloud_logits too" in err
    code, _, err = cli("calibrate", "-p", path, "-d", home / "edge.npz", "--max-defer", "50%", "--score", "learned")
    assert code == 2
    assert "labels or the cloud's answers" in err


def test_a_cloud_that_is_away(home, policy):
    """The reason is that of the first call, not that it was not asked again; the exit code is that of no answer."""
    path = policy()
    path.write_text(path.read_text().replace("retries = 0", "retries = 2"))  # by which the first request opens the breaker
    code, out, err = cli("calibrate", "-p", path, "-d", home / "val.npz", "--max-loss", "5%")
    assert (code, out) == (3, "")
    assert "did not answer 1 of the 1 inputs" in err
    assert "refused" in err


def test_data_that_may_not_leave(home, policy, cloud):
    """The rules hold for examples, too, and what leaves is in the ledger."""
    path = policy(cloud, 'state = "state"', '[egress]\nnever_leave = ["medical"]\nmay_leave = ["product"]')
    args = ["-p", path, "-d", home / "val.npz", "--max-loss", "5%"]
    code, _, err = cli("calibrate", *args, "--class", "medical")
    assert code == 3
    assert "may not be: data class 'medical' never leaves; leave them out" in err
    assert "only_cloud" not in err
    made(*args, "--class", "product")
    sent = json.loads(cli("egress", "--state", home / "state", "--json")[1])["sent"]
    assert sum(line["bytes"] > 16 * 16 for line in sent if line["data_class"] == "product") == 38  # 1,200 in batches of 32


def test_the_shipped_pair(fashion, fashion_server, tmp_path):
    """Recorded outputs give what their models give, which is said to be taken on trust; and the pair itself is asked."""
    path = tmp_path / "policy.toml"
    path.write_text(f'[edge]\npath = "{fashion / "edge.int8.onnx"}"\n[cloud]\nurl = "{fashion_server}/v2/models/fashion-large"\n')
    code, out, err = cli("calibrate", "-p", path, "-d", fashion / "validation.npz", "--max-loss", "1%")
    assert (code, err.startswith("taken on trust")) == (0, True)
    with np.load(fashion / "validation.npz") as kept:
        edge, cloud, labels = (kept[name] for name in ("edge_logits", "cloud_logits", "labels"))
    wanted = certify(msp(edge), edge.argmax(1) == labels, cloud.argmax(1) == labels, max_loss=0.01)
    found = Certificate.load(tmp_path / "certificate.json")
    assert found.threshold == pytest.approx(wanted.threshold, abs=1e-6)
    assert found.deferral_rate == wanted.deferral_rate
    assert f"{100 * wanted.accuracy['cascade']:.2f} %" in out
    path.write_text(path.read_text().replace("[edge]", 'threshold = "certificate.json"\nuncalibrated = "error"\n[edge]'))
    code, out, err = cli("evaluate", "-p", path, "-d", fashion / "sample.npz", "--batch", "50", "--json")
    told = json.loads(out)
    assert (code, err, told["n"], told["promise"]) == (0, "", 1000, "loss <= 1 %, 95 % sure")
    assert told["accuracy"]["edge"]["value"] > 0.9
    assert told["accuracy"]["cloud"]["value"] > 0.92
    assert told["sent_bytes"] > 1000 * 784
    assert [one["broken"] for one in told["held"]] == [False]
    assert [*told["latency_s"]] == ["edge"]


# ------------------------------------------------------------------------------------------------- evaluate
def test_the_numbers_of_an_evaluation(home, policy, cloud):
    """Accuracy, deferral and cost are those of the two models at the policy's threshold, whatever else is in it."""
    more = 'usd_per_call = 0.01\n[cache]\nttl = "1h"\n[trace]\nfile = "trace.jsonl"\n[outbox]\nttl = "1d"'
    first = 'threshold = 0.7\nstate = "state"\nhedge_after = "0s"\noffline = "stale"\ndeadline = "5s"'
    x, y = drawn(300, 3)
    np.savez(home / "test.npz", images=np.concatenate([x, x]), labels=np.concatenate([y, y]))
    code, out, err = cli("evaluate", "-p", policy(cloud, first, more), "-d", home / "test.npz", "--json")
    assert (code, err) == (0, "")
    told, right, accepted = json.loads(out), logits(x).argmax(1) == y, msp(logits(x)) >= 0.7
    assert told["accuracy"]["edge"]["value"] == pytest.approx(right.mean())
    assert told["accuracy"]["cloud"]["value"] == 1
    assert told["accuracy"]["cascade"]["value"] == pytest.approx(np.where(accepted, right, True).mean())
    assert told["deferral"]["value"] == pytest.approx((~accepted).mean())
    assert told["usd"] == pytest.approx(6)  # the second half is not taken from the cache
    assert told["latency_s"].keys() == {"edge", "cloud", "cascade"}
    assert (told["promise"], told["held"]) == (None, [])
    assert not (home / "trace.jsonl").exists()
    assert not (home / "state" / "outbox.db").exists()


def test_an_evaluation_without_the_cloud(home, policy):
    """Nothing leaves the device; recorded answers of the cloud are left out likewise."""
    x, y = drawn(300, 3)
    np.savez(home / "kept.npz", edge_logits=logits(x), cloud_logits=x[:, :3], labels=y)
    path = policy(first="threshold = 0.7")
    code, out, err = cli("evaluate", "-p", path, "-d", home / "val.npz", "--no-cloud")
    assert (code, err) == (0, "")
    assert "both together" not in out
    code, out, _ = cli("evaluate", "-p", path, "-d", home / "kept.npz", "--no-cloud", "--json")
    assert (code, [*json.loads(out)["accuracy"]]) == (0, ["edge", "accepted"])
    code, out, _ = cli("evaluate", "-p", path, "-d", home / "kept.npz", "--json")
    assert (code, [*json.loads(out)["accuracy"]]) == (0, ["edge", "cloud", "cascade", "accepted"])


def test_what_cannot_be_evaluated(home, policy):
    """No threshold, no folder for the report, no such file, two kinds of data: each is said before the cloud is asked."""
    np.savez(home / "kept.npz", edge_logits=logits(drawn(300, 3)[0]))
    path = policy(first='mode = "prefer_cloud"')
    code, _, err = cli("evaluate", "-p", path, "-d", home / "kept.npz")
    assert code == 2
    assert "no threshold" in err
    path = policy(first="threshold = 0.7")
    assert cli("evaluate", "-p", path, "-d", home / "kept.npz", "--report", home / "none" / "x.html")[0] == 2
    code, _, err = cli("evaluate", "-p", path, "-d", home / "none.npz")
    assert (code, err) == (1, f"error: {home / 'none.npz'}: there is no such file\n")
    code, _, err = cli("evaluate", "-p", path, "-d", home / "kept.npz", "-d", home / "val.npz")
    assert code == 1
    assert "one kind at a time" in err


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"edge_logits": np.zeros((3, 2))}, "2 outputs, but 3 labels"),
        ({"edge_logits": np.zeros(3)}, r"expected numbers \[n, classes\]"),
        ({"edge_logits": np.zeros((3, 3)), "labels": [0, 1]}, "3 edge_logits and 2 labels"),
        ({"edge_logits": np.zeros((3, 3)), "cloud_logits": np.zeros((2, 3))}, "3 edge_logits and 2 cloud_logits"),
        ({"edge_logits": np.zeros((3, 3)), "labels": [0, 1, 3]}, "label 2 is 3"),
        ({"edge_logits": np.zeros((3, 3)), "labels": ["a", "b", "d"]}, "label 2 is 'd'"),
        ({"edge_logits": np.full((3, 3), 1 / 3)}, "these are probabilities"),
        ({"images": np.zeros((3, 5), np.float32)}, r"wrong.npz\[0\]: .*expected \[4\]"),
        ({"images": np.zeros((0, 4), np.float32)}, "no inputs"),
        ({"images": np.zeros((2, 4), np.float32), "labels": [0]}, "2 inputs and 1 labels"),
    ],
)
def test_data_that_do_not_fit(home, policy, arrays, why):
    """An error in one line, with exit code 1: it is the data's fault."""
    np.savez(home / "wrong.npz", **arrays)
    code, _, err = cli("evaluate", "-p", policy(first="threshold = 0.7"), "-d", home / "wrong.npz")
    assert code == 1
    assert re.search(why, err)


@pytest.mark.parametrize("command", [("calibrate", "--max-error", "5%"), ("evaluate", "--no-cloud")])
@pytest.mark.parametrize(("cell", "why"), [("", "NaN or infinity"), ("1e300", "a number too large for float32")])
def test_a_wrong_row_is_named_by_its_line(home, policy, command, cell, why):
    """Also where only each third row is taken; a number that float32 has not is no infinity, and no warning of numpy's."""
    rows = [f"{i},.5,.25,{cell if i == 6 else 1},{i % 3}" for i in range(9)]
    (home / "rows.csv").write_text("\n".join(["a,b,c,d,label", *rows]))
    data = ("-d", home / "rows.csv", "--every", 3, "-p", policy(first="threshold = 0.7"))
    code, _, err = cli(*command, *data)
    assert (code, "Warning" in err) == (1, False)
    assert re.search(rf"error: \S*rows.csv:8: x: the input holds {why}", err)


def test_labels_for_some_of_the_inputs_alone(home, policy):
    """They are all there, or none."""
    np.save(home / "one.npy", drawn(1, 0)[0][0])
    path = policy(first="threshold = 0.7")
    code, _, err = cli("evaluate", "-p", path, "-d", home / "val.npz", "-d", home / "one.npy", "--no-cloud")
    assert code == 1
    assert "1 of 1,201 inputs have no label" in err


# -------------------------------------------------------------------------------------------------- collect
def edge_of(x):
    """An edge for `Router` that knows its own score."""
    return int(x), 0.5 + int(x) / 2000


X = np.arange(100) % 10


def test_collecting_asks_for_each_once(home, cloud):
    """Singly or in batches, edge and cloud say what they say to `infer`; all is counted."""
    x, y = drawn(50, 4)
    for batch in (1, 7, 64):
        counted = []
        with Router(home / "edge.onnx", cloud, threshold=0.5) as router:
            found = collected(router, x, y, batch=batch, advance=counted.append)
            assert found.edge == [router.infer(one, mode="only_edge").value for one in x]
            assert found.score == pytest.approx([router.infer(one, mode="only_edge").confidence for one in x])
        assert found.cloud == found.labels == [LABELS[label] for label in y]
        assert found.outputs == pytest.approx(logits(x), abs=1e-5)
        assert sum(counted) == 100
        assert found.edge_s.min() > 0
        assert np.isnan(found.cloud_s).all() == (batch > 1)
        assert found.sent_bytes > 50 * 16


def test_inputs_that_the_cloud_does_not_answer_are_left_out(home):
    """One in a hundred at most: with more it would be another sample. In a batch, only those that fail are."""

    def cloud(x):
        if x == bad:
            raise CloudError("not that one")
        return int(x)

    x = np.arange(200) % 150
    for batch in (1, 8):
        with Router(edge_of, cloud, threshold=0.5) as router:
            bad = 149
            found = collected(router, x, x, batch=batch)
            assert found.edge == found.cloud == found.labels == [one for one in x if one != bad]
            assert len(found.score) == len(found.edge_s) == len(found.cloud_s) == 199
    with Router(edge_of, cloud, threshold=0.5) as router:
        bad = 5
        with pytest.raises(NoAnswer, match=r"did not answer 3 of the .* at most 2 may be left out: not that one"):
            collected(router, np.arange(200) % 20)


def test_the_first_failure_is_enough_where_nothing_was_answered():
    """A cloud that is away is not asked hundreds of times."""
    calls = []

    def cloud(x):
        calls.append(x)
        raise CloudError("away")

    with Router(edge_of, cloud, threshold=0.5) as router, pytest.raises(NoAnswer, match=r"1 of the 1 inputs.*away"):
        collected(router, np.arange(1000))
    assert len(calls) == 1


def test_no_faster_than_the_endpoint_bears():
    """Its calls a second are kept to, where `infer` would be held back."""
    with Router(edge_of, Function(int, calls_per_s=400), threshold=0.5) as router:
        assert collected(router, np.arange(700)).cloud == [*range(700)]


def test_what_may_not_leave_is_not_collected():
    """The edge alone can be, still."""
    egress = Egress(never_leave=["medical"], may_leave=["product"])
    with Router(edge_of, int, threshold=0.5, egress=egress) as router:
        with pytest.raises(MayNotLeave, match="every example is sent to the cloud"):
            collected(router, X, data_class="medical")
        assert collected(router, X, data_class="medical", ask_cloud=False).cloud is None
        assert collected(router, X, data_class="product").cloud == X.tolist()


def test_answers_without_a_confidence_or_with_other_outputs():
    """They count as NaN, and there is no array of outputs."""
    with Router(lambda x: (int(x), None), int, threshold=0.5) as router:
        found = collected(router, X)
    assert np.isnan(found.score).all()
    assert found.outputs is None
    with pytest.raises(PolicyError, match="two or more logits"):
        fit_score(found, "max_loss", None, None, choose=True, ood=False)


def test_probabilities_that_a_card_calls_logits(home):
    """Their scores would be of no use; nothing but the card knows."""

    def model(x):
        z = np.exp(logits(x))
        return z / z.sum()

    x, _ = drawn(20, 5)
    edge = CallableModel(model, kind="logits")
    with Router(edge, int, threshold=0.5) as router, pytest.raises(ModelError, match="returns probabilities"):
        collected(router, x, ask_cloud=False)
    with Router(model, int, threshold=0.5) as router:
        assert collected(router, x, ask_cloud=False).score.max() > 0.9


def test_which_edge(home):
    """By its number; there is no other."""
    with Router([edge_of, lambda x: (int(x) + 1, 0.9)], int, threshold=[1.0, 0.5]) as router:
        assert collected(router, X, edge=1, ask_cloud=False).edge == (X + 1).tolist()
        for number in (2, -1):
            with pytest.raises(PolicyError, match="there is no edge model number"):
                collected(router, X, edge=number)
        with pytest.raises(BadInput, match="edge_logits: expected numbers"):
            recorded_examples(DirectCalls(router.engine), np.array([["a"]]), None, None)


def test_labels_as_the_model_says_them():
    """Numbers are places in its list of names; without one, labels are taken as they are."""
    assert label_values([0, 2.0, "b", np.uint8(1)], LABELS, 4) == ["a", "c", "b", "b"]
    assert label_values([0, 2.0, "x", 0.5, np.inf], None, 5) == [0, 2, "x", 0.5, np.inf]
    for wrong in (None, np.nan, np.float32("nan")):
        with pytest.raises(BadInput, match="label 1 is"):
            label_values([0, wrong], None, 2)
    for wrong in (3, -1, 0.5, "d", None, np.nan, np.inf, -np.inf, np.float32("nan")):
        with pytest.raises(BadInput, match="label 0 is"):
            label_values([wrong], LABELS, 1)


def test_a_score_that_a_fifth_fewer_examples_cannot_bear():
    """All are msp's then: scores of two kinds do not compare."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 3)) * 3
    right = np.ones(60, bool)
    right[:22] = False  # enough harms to learn from, and not with a fifth left out
    examples = Examples(msp(z), [0] * 60, None, None, z)
    found = fit_score(examples, "max_loss", right, None, choose=False, ood=False)
    assert found.learned is None
    assert (found.scores == msp(z)).all()
    assert "a fifth left out" in found.why


# -------------------------------------------------------------------------------------------------- audited
def log_of(home, prints, rows, name="audit.jsonl"):
    """Writes an audit log of (score, agrees)."""
    journal = Journal(home / name)
    for i, (score, agrees) in enumerate(rows):
        journal.append({
            "at": 1.7e9 + i, "id": f"r-{i}", "target": "edge", "edge_confidence": score, "agrees": agrees, "audited": "shadow",
            "probability": 0.01, "fingerprints": digest(prints),
        })  # fmt: skip
    journal.close()
    return home / name


def test_the_audit_log_as_examples(tmp_path):
    """Those of what is in use alone; the rest is counted, by why it is left out."""
    prints = {"edge": "1", "score": "msp"}
    path = log_of(tmp_path, prints, [(0.5, True), (None, False), (0.75, False), (0.25, True)])
    log_of(tmp_path, {"edge": "2"}, [(0.1, True)] * 3)
    journal = Journal(path)
    journal.append({"target": "other", "edge_confidence": 0.1, "agrees": True, "fingerprints": digest(prints)})
    journal.append({"target": "edge", "edge_confidence": "high", "agrees": True, "fingerprints": digest(prints)})
    journal.close()
    with path.open("a") as file:
        file.write('{"at": 17')
    found = audited_examples(path, "edge", prints)
    assert found.examples.score == pytest.approx([0.5, np.nan, 0.75, 0.25], nan_ok=True)
    assert found.examples.agree.tolist() == [True, False, False, True]
    assert found.examples.labels is None
    assert sorted(note.split(":")[0] for note in found.notes) == [
        "lines of the audit log left out, 1",
        "lines of the audit log left out, 2",
        "lines of the audit log left out, 3",
    ]
    assert audited_examples(path, "edge", prints, every=2).examples.score.tolist() == [0.5, 0.75]
    journal = Journal(path)
    journal.append({"target": "edge", "edge_confidence": 0.1, "agrees": True, "fingerprints": digest(prints)})
    journal.close()
    assert any("do not say with which probability" in note for note in audited_examples(path, "edge", prints).notes)
    with pytest.raises(BadInput, match=r"no audit of edge in it; .* another endpoint"):
        audited_examples(path, "edge", {"edge": "3"})
    with pytest.raises(BadInput, match="no audit log"):
        audited_examples(tmp_path / "none.jsonl", "edge", prints)


def test_what_was_drawn_more_often_counts_less(tmp_path):
    """Of lines that were drawn four times as often a quarter is kept, always the same, and the result says so."""
    path = log_of(tmp_path, {}, [(0.9, True)] * 1000)
    journal = Journal(path)
    for i in range(4000):
        line = {"id": f"s-{i}", "target": "edge", "edge_confidence": 0.1, "agrees": False, "audited": "deferred"}
        journal.append({**line, "probability": 0.04, "fingerprints": digest({})})
    journal.close()
    found = audited_examples(path, "edge", {})
    low = found.examples.score < 0.5
    assert np.count_nonzero(~low) == 1000
    assert abs(np.count_nonzero(low) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert found.notes[0].startswith(f"{4000 - np.count_nonzero(low):,} lines of the audit log are left out at random")
    assert audited_examples(path, "edge", {}).examples.score.tolist() == found.examples.score.tolist()


def drawn_lowest(look):
    """The lowest fixed threshold with an audit."""
    return min(GRID[int(key.split()[2])] for key in look["counts"] if key.split()[2] != "-1")


def test_from_audits_to_a_new_certificate(home, policy, cloud):
    """A router audits all it answers; of its log a certificate is made without labels, and the router takes it."""
    path = policy(cloud, 'state = "state"\nthreshold = 0.5', '[audit]\nshare = "100%"')
    with Router.from_policy(path) as router:
        for x in drawn(600, 6)[0]:
            router.infer(x)
            while router.engine.auditor.jobs.busy:  # none is to wait, or fewer would be drawn
                threading.Event().wait(0.001)
    count = len((home / "state" / "audit.jsonl").read_text().splitlines())
    assert count > 20
    by_log, _ = made("-p", path, "--audited", "--max-loss", "20%", "--every", "2")
    assert by_log.n == -(-count // 2)
    (home / "state" / "audit.jsonl").unlink()  # rotated away, say: the counts stay
    for _ in range(2):
        found, told = made("-p", path, "--audited", "--max-loss", "20%")
        assert (found.n, found.agreement, told["notes"]) == (count, True, [])
    assert found.method == "bets at every look"
    looks = home / "state" / "looks.json"
    ((key, look),) = json.loads(looks.read_text()).items()
    lower = json.dumps({key: {**look, "lowest": 0}})
    for earlier, threshold in (
        ("{", found.threshold), ("[1]", found.threshold), (json.dumps({key: 0}), found.threshold),
        (json.dumps({key: {"lowest": 0}}), found.threshold), (json.dumps({key: {"lowest": 0, "counts": {}}}), found.threshold),
        (lower, min(found.threshold, drawn_lowest(look))),
    ):  # fmt: skip
        looks.write_text(earlier)
        assert made("-p", path, "--audited", "--max-loss", "20%")[0].threshold == threshold
    looks.write_text("{")
    made("-p", path, "--audited", "--max-loss", "20%")
    assert json.loads(looks.read_text()) == {key: look}
    code, _, error = cli("calibrate", "-p", path, "--audited", "--max-loss", "0.1%")
    assert (code, "audits, and there are" in error) == (5, True)
    with Router.from_policy(policy(cloud, 'threshold = "certificate.json"\nuncalibrated = "error"')) as router:
        assert routes.label(router.infer(drawn(1, 0)[0][0])) == found.label


# --------------------------------------------------------------------------------------------------- status
def grades(n=1500, seed=0):
    """Confidence, and the F1 of both sides."""
    rng = np.random.default_rng(seed)
    score, cloud_scores = rng.random(n), rng.beta(6, 1.2, n)
    return {
        "confidence": score,
        "edge_scores": np.clip(cloud_scores - 0.3 * rng.random(n) * (1 - score) ** 2, 0, 1),
        "cloud_scores": cloud_scores,
    }


def test_graded_answers_are_calibrated_on(home, policy):
    """From recorded scores of any metric, in groups too; the guarantee names it."""
    arrays = grades()
    np.savez(home / "f1.npz", **arrays)
    code, out, err = cli("calibrate", "-p", policy(), "-d", home / "f1.npz", "--max-loss", "1%", "--metric", "F1")
    assert (code, err.startswith("taken on trust")) == (0, True)
    assert "the mean F1 of edge and cloud together is at most 0.01 below that of the cloud alone" in " ".join(out.split())
    found = Certificate.load(home / "certificate.json")
    wanted = certify(arrays["confidence"], arrays["edge_scores"], arrays["cloud_scores"], max_loss=0.01, metric="F1")
    assert (found.threshold, found.method, found.metric) == (wanted.threshold, "betting", "F1")
    assert set(found.fingerprints) == {"edge", "cloud", "score", "codec", "served"}
    np.savez(home / "scenes.npz", **arrays, groups=np.arange(1500) // 3)
    found, told = made("-p", policy(), "-d", home / "scenes.npz", "--max-loss", "5%", "--metric", "F1")
    assert (found.groups, found.n, told["certificate"]["groups"]) == (500, 1500, 500)
    found, _ = made("-p", policy(), "-d", home / "scenes.npz", "--max-error", "30%", "--every", "3")
    assert (found.n, found.metric) == (500, "correctness")


@pytest.mark.parametrize(
    ("arrays", "args", "why"),
    [
        ({"confidence": None}, ["--max-loss", "5%"], "has no array confidence"),
        ({"cloud_scores": None}, ["--max-loss", "5%"], "record cloud_scores too"),
        ({"cloud_scores": np.ones(3)}, ["--max-loss", "5%"], r"one number for each example.*cloud_scores \[3\]"),
        ({"edge_scores": np.full(1500, 7.5)}, ["--max-loss", "5%"], "from 0 to 1, and one is 7.5: scale it"),
        ({"edge_scores": np.full(1500, np.nan)}, ["--max-loss", "5%"], "edge_correct is NaN for 1500 examples"),
        ({}, ["--max-loss", "5%", "--per-class"], "the answers are graded"),
    ],
)
def test_graded_answers_that_do_not_fit(home, policy, arrays, args, why):
    """One line says what is missing or wrong."""
    np.savez(home / "f1.npz", **{name: array for name, array in (grades() | arrays).items() if array is not None})
    code, _, err = cli("calibrate", "-p", policy(), "-d", home / "f1.npz", *args)
    assert code
    assert re.search(why, " ".join(err.split()))


def test_a_metric_of_answers_that_are_not_graded(home, policy):
    """It would be named in a guarantee that is about something else. And graded answers are not evaluated."""
    np.savez(home / "f1.npz", **grades())
    code, _, err = cli("evaluate", "-p", policy(first="threshold = 0.7"), "-d", home / "f1.npz")
    assert (code, "graded answers are for `calibrate`" in err) == (1, True)
    code, _, err = cli("calibrate", "-p", policy(), "-d", home / "val.npz", "--max-error", "20%", "--metric", "F1")
    assert code
    assert "graded answers" in err


@pytest.mark.slow
def test_an_evaluation_on_the_calibrations_own_examples_says_so(home, policy, cloud):
    """They cannot tell whether the guarantee holds; other examples can."""
    path = policy(cloud, "threshold = 0.5")
    made("-p", path, "-d", home / "val.npz", "--max-loss", "5%", "--score", "learned")
    path = policy(cloud, 'threshold = "certificate.json"\nscore = "edge.score.json"')
    code, out, err = cli("evaluate", "-p", path, "-d", home / "val.npz")
    assert code == 0
    assert re.search(r"About (9\d|100) % of these examples are those that the certificate was calibrated on", err)
    assert "score's area" in out
    x, y = drawn(1000, 5)
    np.savez(home / "other.npz", images=x, labels=y)
    code, out, err = cli("evaluate", "-p", path, "-d", home / "other.npz", "--json")
    told = json.loads(out)
    assert (code, err, told["seen_before"]) == (0, "", 0)
    assert told["area"]["low"] < told["area"]["value"] < told["area"]["high"]


def listing(folder):
    """Every file with its content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def worked(tmp_path_factory, right_server):
    """A folder whose policy has a certificate, limits and audits, and whose router has answered 400 inputs."""
    folder = tmp_path_factory.mktemp("worked")
    fill(folder)
    made("-p", write(folder, right_server), "-d", folder / "val.npz", "--max-loss", "5%")
    first = 'threshold = "certificate.json"\nstate = "state"'
    more = 'usd_per_call = 0.01\n[limits]\nusd_per_day = 100\n[audit]\nshare = "100%"'
    with Router.from_policy(write(folder, right_server, first, more)) as router:
        for x in drawn(400, 7)[0]:
            router.infer(x)
    return folder


@pytest.fixture
def used(home, worked):
    """The policy in a copy of that folder, which the test may change."""
    shutil.copytree(worked, home, dirs_exist_ok=True)
    return home / "policy.toml"


def test_status_says_what_routers_found(home, used):
    """Of thresholds, audits, latencies and money; nothing in the folder changes, and nothing is added."""
    before = listing(home / "state")
    code, out, err = cli("status", "-p", used)
    assert (code, err) == (0, "")
    for words in ("(loss <= 5 %, 95 % sure)", "0 days old", "audited ", "is usual", "usd_per_day", "last written at"):
        assert words in out
    told = json.loads(cli("status", "-p", used, "--json")[1])
    (edge,) = told["edges"]
    certificate = Certificate.load(home / "certificate.json")
    assert (edge["target"], edge["threshold"], edge["promise"]) == ("edge", certificate.threshold, certificate.label)
    assert edge["audited"] > 0
    assert 0 < edge["deferred"] < edge["judged"] <= 400
    assert told["latency"].keys() == {"edge", "cloud"}
    assert told["spent"]["usd_per_day"]["limit"] == 100
    assert told["spent"]["usd_per_day"]["spent"] > 0
    assert told["outbox"] is None
    alone = json.loads(cli("status", "--state", home / "state", "--json")[1])
    assert alone["edges"] == told["edges"]
    assert alone["spent"]["usd_per_day"]["limit"] is None
    assert "unknown without --policy" in cli("status", "--state", home / "state")[1]
    assert "unknown" not in out
    assert listing(home / "state") == before


def test_status_while_a_router_is_at_work(home, used):
    """It reads beside it."""
    with Router.from_policy(used) as router:
        router.infer(drawn(1, 0)[0][0])
        assert cli("status", "-p", used, "--json")[0] == 0


def test_status_tells_of_an_alarm(home, used):
    """When, what, and what was done; the label has it too. One of another certificate is none of this one's."""
    with sqlite3.connect(home / "state" / "state.db") as c:
        (text,) = c.execute("SELECT value FROM kept WHERE name = 'audit:edge'").fetchone()
    c.close()
    alarm = {"at": wall_clock.now(), "what": "drift alarm of 2026-11-24: too many differ", "action": "defer"}
    for dumped, alarmed in (({"raised": "inf"}, True), ({"raised": "inf", "certificate": "another"}, False)):
        kept = KeyValueStore(home / "state" / "state.db")
        kept.put("audit:edge", {**json.loads(text), "alarm": alarm, **dumped})
        kept.close()
        code, out, _ = cli("status", "-p", used)
        assert (code, "ALARM at " in out, "threshold none (uncalibrated: drift alarm" in out) == (0, alarmed, alarmed)
    assert "ALARM at " in cli("status", "--state", home / "state")[1]


def test_status_of_an_outbox_and_without_the_models(home, used):
    """What waits is counted; where the model is not, what the last run knew is shown, and said to be that."""
    box = Outbox(home / "state" / "outbox.db")
    box.put(Waiting("w-1", "cloud", "call", b""))
    box.close()
    (home / "edge.onnx").unlink()
    code, out, err = cli("status", "-p", used)
    assert code == 0
    assert "1 waiting" in out
    assert "audited " in out
    assert "there is no model at" in err


def test_status_leaves_out_values_that_are_no_mappings(tmp_path):
    """As of another version, or of a disk that forgot: all else is shown."""
    kept = KeyValueStore(tmp_path / "state.db")
    for name in ("latency", "link", "energy", "audit:edge"):
        kept.put(name, 5)
    kept.close()
    code, out, _ = cli("status", "--state", tmp_path, "--json")
    told = json.loads(out)
    assert (code, told["latency"], told["link"], told["edges"], "joules" in told) == (0, {}, {}, [], False)


def test_status_of_nothing_and_of_what_is_broken(home, policy):
    """Neither makes a file, nor touches one."""
    code, _, err = cli("status", "--state", home / "none")
    assert (code, "there is no state" in err) == (1, True)
    assert not (home / "none").exists()
    (home / "bad").mkdir()
    (home / "bad" / "state.db").write_bytes(b"garbage" * 1000)
    code, _, err = cli("status", "--state", home / "bad")
    assert (code, "cannot be read" in err) == (2, True)
    assert listing(home / "bad") == {"state.db": b"garbage" * 1000}
    assert cli("status")[0] == 2
    assert cli("status", "-p", policy(first="threshold = 0.5"))[0] == 2
