"""The table of promises: metrics by hand, loaders on small files of each repository's shape, and what each method does."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize(
    ("score", "weak", "strong", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [1, 1, 1, 1], (0.75, 0.25, 0.4)),  # PGR at quarters: 0, 1/2, 1, 1, 1
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0], [1, 1, 1, 1], (0.25, 0.75, 0.9)),  # 0, 0, 0, 1/2, 1
        ([0.4, 0.1, 0.3, 0.2], [1, 0, 0, 0], [0, 1, 1, 1], (0.875, 0.25, 0.4)),  # 0, 1/2, 1, 3/2, 1: the last one loses
        ([7, 7, 7, 7], [0, 0, 1, 1], [1, 1, 1, 1], (0.5, 0.5, 0.8)),  # one level: a random choice
        ([np.nan, 0.2, 0.2, 0.9], [0, 0.5, 0, 1], [1, 0.5, 1, 1], (0.6875, 0.25, 0.55)),  # 0, 1/2, 1 at three quarters, 1
        ([0.1, 0.2], [0, 1], [1, 0], (np.nan, np.nan, np.nan)),  # no gap
    ],
)
def test_routing_metrics_by_hand(score, weak, strong, expected):
    """APGR, CPT(50 %) and CPT(80 %) of examples small enough to compute by hand."""
    from routing import apgr, cpt

    parts = [np.array(part, float) for part in (score, weak, strong)]
    assert (apgr(*parts), cpt(*parts, 0.5), cpt(*parts, 0.8)) == pytest.approx(expected, nan_ok=True)


def test_routing_metrics_are_routellms():
    """On many requests they are what RouteLLM's evaluation computes from the points of the curve."""
    from routing import apgr, cpt, curve

    rng = np.random.default_rng(0)
    score = rng.random(5000)
    weak, strong = rng.random(5000) < score, rng.random(5000) < 0.95
    share, mean = curve(score, weak.astype(float), strong.astype(float))
    area = sum((share[i + 1] - share[i]) * (mean[i + 1] + mean[i]) / 2 for i in range(len(share) - 1))
    assert apgr(score, weak, strong) == pytest.approx((area - weak.mean()) / (strong.mean() - weak.mean()))
    target = 0.5 * (strong.mean() - weak.mean()) + weak.mean()
    assert cpt(score, weak, strong, 0.5) == pytest.approx(np.interp(target, np.maximum.accumulate(mean), share), abs=0.002)
    assert apgr(rng.random(5000), weak, strong) == pytest.approx(0.5, abs=0.03)


# --- sets that others recorded


def test_routerarena(tmp_path):
    """The weaker model is the edge; partial scores stay, and those below 0 are 0."""
    from recorded import Broken, routerarena

    header = "global_index,question,small_cost,big_score,small_score\n"
    rows = [f'{i},"Question {i},\nof {"many " * (i % 7)}words?",0.1,{i % 2},{-0.25 if i % 2 else 0.5}\n' for i in range(200)]
    path = tmp_path / "arena.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(header + "".join(rows))
    task = routerarena([path])
    assert task.name == "RouterArena (small, big)"
    assert task.edge.tolist() == [0.5, 0] * 100
    assert task.cloud.tolist() == [0, 1] * 100
    assert task.score.shape == (200,)
    (tmp_path / "x.csv").write_text("question,a_score\nx,1\n")
    with pytest.raises(Broken, match="two columns that end in _score"):
        routerarena([tmp_path / "x.csv"])
    (tmp_path / "x.csv").write_text(header)
    with pytest.raises(Broken, match="no rows"):
        routerarena([tmp_path / "x.csv"])


def test_routerarenas_own_files(tmp_path):
    """Two models' cached results, joined where both were evaluated."""
    from recorded import Broken, routerarena

    paths = [tmp_path / "big.jsonl", tmp_path / "small.jsonl"]
    for path, right in zip(paths, (0.9, 0.4), strict=True):
        lines = [
            {"global_index": f"AIME_{i}", "question": f"Question {i}", "llm_selected": path.stem,
             "evaluation_result": {"score": right, "inference_cost": 1e-4} if i % 10 or path is paths[0] else None}
            for i in range(60)
        ]  # fmt: skip
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = routerarena(paths)
    assert task.name == "RouterArena (small, big)"
    assert (task.edge.tolist(), task.cloud.tolist()) == ([0.4] * 54, [0.9] * 54)
    paths[0].write_text('{"global_index": "x"}\n')
    with pytest.raises(Broken, match=r"big.jsonl:1: no line of RouterArena"):
        routerarena(paths)


def test_routellm(tmp_path):
    """Tables of True and False for two models, with and without their responses; what the text tells is learned, cross-fitted."""
    from recorded import Broken, routellm
    from routing import apgr

    rng = np.random.default_rng(0)
    paths, hard = [], rng.random(600) < 0.5
    for part in range(2):
        paths.append(tmp_path / f"mmlu_{part}.csv")
        lines = ["prompt,weak-8x7b,strong-4,weak-8x7b_response"]
        for i in range(part * 300, part * 300 + 300):
            text = f"Find the {'polynomial' if hard[i] else 'capital'} of number {i}.\nA. 0\nAnswer:"
            lines.append(f'"{text}",{not hard[i]},True," so ""it"" is"')
        paths[part].write_text("\n".join(lines) + "\n")
    task = routellm(paths)
    assert task.name == "RouteLLM mmlu_0 (weak-8x7b, strong-4)"
    assert task.edge.tolist() == (~hard).astype(float).tolist()
    assert task.cloud.all()
    assert apgr(task.score, task.edge, task.cloud) == pytest.approx(1 - hard.mean() / 2, abs=0.01)  # all the hard ones first
    blind = routellm([_without_hint(path) for path in paths])
    assert apgr(blind.score, blind.edge, blind.cloud) == pytest.approx(0.5, abs=0.08)  # nothing leaks through the folds
    paths[0].write_text("prompt,a\nx,True\n")
    with pytest.raises(Broken, match="two of True and False"):
        routellm(paths[:1])


def _without_hint(path):
    path.write_text(path.read_text().replace("polynomial", "capital"))
    return path


class Response:
    """In place of the class that the repository's pickles have."""

    def __init__(self, answer):
        self.answer = answer

    def __reduce__(self):
        return Response, (self.answer,), {"answer": self.answer}


class Trap:
    """What a hostile pickle has: a function that is called as it is read."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_cascades(tmp_path, monkeypatch):
    """Chain results as that repository pickles them: its classes are passed over, its numbers read; nothing of it is called."""
    from recorded import Broken, cascades

    monkeypatch.chdir(tmp_path)
    results = {
        "chain": "Chain(...)",
        "chain_responses": [Response("A"), Trap(), OrderedDict(a=1), {1, 2}],
        "user_prompts": ["Question: x"] * 3,
        "model_answers": {"llama3.2-1b": ["A", "B", "C"]},
        "model_correctness": {
            "llama3.2-1b": [True, False, np.bool_(True)],
            "mid": [1, 1, 1],
            "llama3.1-405b": [True, True, False],
        },
        "raw_confidences": {"llama3.2-1b": [0.9, None, np.float64(0.5)], "mid": [0.1, 0.2, 0.3], "llama3.1-405b": np.ones(3)},
    }
    path = tmp_path / "mmlu_full_llama_chain_results_test.pkl"
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(results, protocol))
        task = cascades([path, path])
        assert task.name == "mmlu (llama3.2-1b, llama3.1-405b)"
        assert task.score == pytest.approx([0.9, np.nan, 0.5] * 2, nan_ok=True)
        assert (task.edge.tolist(), task.cloud.tolist()) == ([1, 0, 1] * 2, [1, 1, 0] * 2)
    assert cascades([path], "mid").score.tolist() == [0.1, 0.2, 0.3]
    assert not Path("trapped").exists()
    ratings = [{"coherence": 5, "fluency": 5, "relevance": 5, "consistency": 5}, {"coherence": 1}, {"coherence": 20}]
    results["model_correctness"]["llama3.2-1b"] = ratings  # XSum
    path.write_bytes(pickle.dumps(results))
    assert cascades([path]).edge.tolist() == [1, 0, 1]
    with pytest.raises(Broken, match="KeyError"):
        cascades([path], "none")
    results["raw_confidences"]["mid"] = [1.0]
    path.write_bytes(pickle.dumps(results))
    with pytest.raises(Broken, match="1 confidences, and answers to 3 and 3"):
        cascades([path], "mid")
    path.write_bytes(b"no pickle")
    with pytest.raises(Broken, match="shape"):
        cascades([path])


# --- what each method does


def test_what_holds_and_what_breaks():
    """On a recorded set whose truth is known: certified promises hold, the plug-in's do not; certified is close to the oracle."""
    from promises import Population, measure
    from recorded import Task

    rng = np.random.default_rng(0)
    x = rng.random(2000)
    task = Task("", "", 1 - x, (rng.random(2000) > 0.3 * x**2).astype(float), (rng.random(2000) > 0.05).astype(float))
    one = Population.of(task)
    found = measure(one, 0.02, 60)
    assert found["**ours**, one look"].broken <= 0.05 + 3 * 0.028
    assert found["plug-in"].broken > 0.25
    assert found["Hoeffding, harms less wins"].deferral == 1
    assert one.perfect(0.02) < one.oracle(0.02) < found["**ours**, one look"].deferral < one.oracle(0.02) + 0.2


def test_partial_scores_are_certified_by_dithering():
    """Means of partial scores keep the guarantee too."""
    from promises import Population, measure
    from recorded import Task

    rng = np.random.default_rng(0)
    x = rng.random(1500)
    task = Task("", "", 1 - x, np.clip(0.9 - 0.5 * x**3 + 0.1 * rng.normal(size=1500), 0, 1), np.full(1500, 0.9))
    found = measure(Population.of(task), 0.03, 60)
    assert found["**ours**, one look"].broken <= 0.05 + 3 * 0.028
    assert found["**ours**, one look"].deferral < 0.9


def test_truth_oracle_and_plug_in_by_hand():
    """Five requests, of which the two least sure are lost by the edge, and one in the middle is won by it."""
    from promise_methods import Draw, hoeffding_loss, plug_in
    from promises import Population
    from recorded import Task

    task = Task("", "", np.array([0.9, 0.8, 0.7, 0.6, np.nan]), np.array([1, 1, 1, 0, 0.0]), np.array([1, 1, 0, 1, 1.0]))
    one = Population.of(task)
    assert one.truth(1.0) == (1, 0)
    assert one.truth(0.75) == pytest.approx((0.6, 0))
    assert one.truth(0.7) == pytest.approx((0.4, -0.2))
    assert one.truth(0.0) == pytest.approx((0.2, 0))
    assert (one.oracle(0.0), one.oracle(-0.1), one.oracle(-0.3)) == (pytest.approx(0.2), pytest.approx(0.4), 1)
    assert (one.perfect(0.0), one.perfect(0.3), one.perfect(-0.2)) == pytest.approx((0.2, 0, 0.4))
    parts = [task.score, task.edge, task.cloud, None]
    assert plug_in(Draw(*parts, 0.0, one.share)).threshold == pytest.approx(0.6)
    assert hoeffding_loss(Draw(*parts, 0.01, one.share)).threshold == np.inf
    many = [np.repeat(part, 4000) for part in parts[:3]]
    assert hoeffding_loss(Draw(*many, None, 0.05, np.repeat(one.share, 4000))).threshold == pytest.approx(0.6)
    assert one.share.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 1])


def test_rules_of_the_same_limit():
    """Labels on demand choose the threshold of all labels; a rule that bounds more is never lower; all keep within what was drawn."""
    from promise_methods import RULES, on_demand, one_look, without_labels
    from promises import Population, drawn
    from recorded import Task

    rng = np.random.default_rng(3)
    x, wrong = rng.random(1200), rng.random(1200)
    edge, cloud = (wrong > 0.4 * x**2) * 1.0, (rng.random(1200) > 0.03) * 1.0
    population = Population.of(Task("", "", 1 - x, edge, cloud, agree=(edge == cloud) & (edge + cloud > 0)))
    for seed in range(5):
        draw = drawn(population, 0.02, np.random.default_rng(seed))
        few, full = on_demand(draw), one_look(draw)
        assert few.threshold == full.threshold
        assert 0 < few.labels < full.labels / 4
        assert without_labels(draw).threshold > full.threshold
        chosen = {rule.name: rule.choose(draw).threshold for rule in RULES}
        accepts = {name: population.truth(threshold)[0] for name, threshold in chosen.items()}
        order = ["Hoeffding, harms alone", "Hoeffding-Bentkus, harms alone", "Clopper-Pearson, harms alone"]
        assert [accepts[name] for name in order] == sorted((accepts[name] for name in order), reverse=True)
        assert accepts["shrewd 0.3"] == pytest.approx(accepts["**ours**, no labels"], abs=0.01)
        assert accepts["plug-in"] == min(accepts.values())


def test_outcomes_of_lines(tmp_path):
    """Lines of JSON say what a table does, and where the answers are the same; one that is wrong is named."""
    from recorded import Broken, outcomes

    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"confidence": 0.9, "edge_score": 1, "cloud_score": 1, "agree": true}\n'
        '{"confidence": null, "edge_score": 0, "cloud_score": 0.5, "agree": false}\n'
    )
    task = outcomes(path)
    assert (task.edge.tolist(), task.cloud.tolist(), task.agree.tolist()) == ([1, 0], [1, 0.5], [True, False])
    assert np.isnan(task.score).tolist() == [False, True]
    path.write_text('{"confidence": 0.9, "edge_score": 1, "cloud_score": 1}\n')
    assert outcomes(path).agree is None
    path.write_text('{"confidence": null, "edge_score": 1, "cloud_score": 1}\n')
    with pytest.raises(Broken, match="no request has a confidence"):
        outcomes(path)
    for line in ("[]", '{"confidence": 0.9, "edge_score": 1}', '{"confidence": 0.9, "edge_score": 2, "cloud_score": 1}', "{"):
        path.write_text('{"confidence": 0.9, "edge_score": 1, "cloud_score": 1}\n' + line)
        with pytest.raises(Broken, match=r"mine\.jsonl:2: "):
            outcomes(path)


def test_a_package_that_is_not_installed_costs_its_row_alone():
    """Each package that cannot run is a row that says why."""
    from promises import with_packages
    from recorded import Task

    rng = np.random.default_rng(0)
    edge = (rng.random(400) < 0.9) * 1.0
    task = Task("", "", rng.random(400), edge, np.ones(400), edge == 1)
    lines = [*with_packages(Path(sys.executable), [task])]
    for name in ("shrewd 0.3", "calibroute-ai 0.4", "MAPIE 1.6", "firstpass 0.9"):
        assert any(line.startswith((f"| {name} | not run: ", f"| {name} (")) for line in lines), lines
    assert [*with_packages(Path(sys.executable).with_name("no-python"), [task])][0].startswith("The packages were not run: ")


def test_the_program(tmp_path):
    """It prints a row for each task and limit, with the published figures; a wrong file is one line."""
    rng = np.random.default_rng(0)
    rows = "".join(f"{s},{int(rng.random() < 0.6 + 0.4 * s)},{int(rng.random() < 0.97)}\n" for s in rng.random(700))
    (tmp_path / "mine.csv").write_text("confidence,edge_score,cloud_score\n" + rows)
    command = [sys.executable, BENCHMARKS / "promises.py", "--no-images", "--draws", "3", "--csv", tmp_path / "mine.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "**mine**, by its confidence; n = 700" in done.stdout
    assert "| **ours**, no labels | 95 % | - |" in done.stdout  # a table does not say where the answers are the same
    assert re.search(r"\| \*\*ours\*\*, one look \| 95 % \| \d", done.stdout)
    assert "| ours: mine |" in done.stdout
    assert "| RouteLLM: SW ranking, MMLU | 0.603 | 35.40 % | 71.55 % |" in done.stdout
    done = subprocess.run([*command, "--cascades", tmp_path / "mine.csv"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
