"""A score learned from features of one's own, and from prompts before anything is generated."""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from edgeroute import BadReply, ModelError, PolicyError, Router
from edgeroute.confidence import Learned, auto, calibrate, crossfit, deferral_curve, fit, prompt_features
from edgeroute.confidence.learned_scores_and_blends import Ranks


def examples(n, seed=0):
    """Short inputs of kind 1 are the edge's, long ones the cloud's; `sure` knows a little, an embedding something else."""
    rng = np.random.default_rng(seed)
    length, kind, noise = rng.exponential(20, n), rng.integers(0, 2, n), rng.normal(size=(n, 3))
    risk = 1 / (1 + np.exp(2 + 1.5 * noise[:, 1] - 0.08 * length + 2 * kind))
    edge, cloud = rng.random(n) > risk, rng.random(n) < 0.95
    sure = 1 - risk + 0.3 * rng.normal(size=n)
    return {"length": length, "kind": kind, "embedding": noise, "sure": sure}, edge, cloud


def area(score, edge, cloud):
    return deferral_curve(score, edge, cloud).area


def test_any_features():
    """They beat each of themselves; one input and many, records and columns have the same scores."""
    table, edge, cloud = examples(3000, 1)
    score = fit(*examples(1500))
    assert score.name == "learned"
    assert area(score.many(table), edge, cloud) > 0.1 + max(area(part, edge, cloud) for part in (-table["length"], table["kind"]))
    records = [{name: column[i] for name, column in table.items()} for i in range(50)]
    assert score.many(records) == pytest.approx(score.many(table)[:50])
    assert [score(one) for one in records] == pytest.approx(score.many(records))
    assert score(("an answer", records[0])) == score(records[0])
    again = fit([{name: column[i] for name, column in examples(1500)[0].items()} for i in range(1500)], *examples(1500)[1:])
    assert again.many(records) == pytest.approx(score.many(records))


def test_more_features_than_examples(monkeypatch):
    """The fit is the same as with all of its columns, and does not take a time that grows with their cube."""
    rng = np.random.default_rng(3)
    embedding = rng.normal(size=(120, 200))
    edge, cloud = rng.random(120) < 1 / (1 + np.exp(-2 * embedding[:, 0])), rng.random(120) < 0.9
    narrow = fit({"embedding": embedding}, edge, cloud)
    assert narrow.name == "learned"
    monkeypatch.setattr("edgeroute.tools.measure.score_fitting.narrow", lambda inputs: (inputs, np.eye(inputs.shape[1])))
    assert fit({"embedding": embedding}, edge, cloud).many({"embedding": embedding}) == pytest.approx(
        narrow.many({"embedding": embedding})
    )


def test_a_base_score():
    """`auto` is near it while there is little to learn from, and better than it once there is; alone it is what is left."""
    table, edge, cloud = examples(4000, 1)
    few, many = (auto(*examples(n), base="sure") for n in (150, 1500))
    assert 0 < few.data["blend"]["weight"] < 0.5 < many.data["blend"]["weight"]
    assert area(few.many(table), edge, cloud) > area(table["sure"], edge, cloud) - 0.05
    assert area(many.many(table), edge, cloud) > area(table["sure"], edge, cloud) + 0.03
    small = {name: column[:30] for name, column in table.items()}
    nothing = auto(small, edge[:30], cloud[:30], base="sure")
    assert (nothing.name, nothing.many(small).tolist()) == ("base", small["sure"].tolist())
    assert nothing.chosen_because.startswith("base, since there are fewer than 50 examples")
    assert set(auto(small, edge[:30], cloud[:30]).many(small)) == {0.5}


def test_graded_answers():
    """Grades are learned from as right and wrong are: what they differ by counts."""
    table, edge, cloud = examples(3000)
    rng = np.random.default_rng(5)
    graded = fit(table, edge * (0.5 + 0.5 * rng.random(3000)), cloud * 0.75)
    test, *right = examples(4000, 1)
    assert area(graded.many(test), *right) > area(fit(table, edge, cloud).many(test), *right) - 0.03


@pytest.mark.parametrize("score", [fit(*examples(500)), auto(*examples(500), base="sure"), auto(*examples(30), base="sure")])
def test_it_comes_back_from_its_file(score, tmp_path):
    """With its columns and their order; a file that was changed is refused."""
    score.save(tmp_path / "score.json")
    back = Learned.load(tmp_path / "score.json")
    table = examples(50, 3)[0]
    assert (back.many(table).tolist(), back.fingerprint) == (score.many(table).tolist(), score.fingerprint)
    data = json.loads((tmp_path / "score.json").read_text())
    changes = [{"columns": None}, {"name": "msp"}]
    if score.name == "learned":
        changes += [{"widths": [1, 1]}, {"features": 2}]
    if "blend" in data:
        kept = data["blend"]
        changes += [
            {"blend": kept | part}
            for part in ({"weight": 2}, {"weight": math.nan}, {"base": [1]}, {"fit": [2, 1]}, {"fit": [1, math.inf]})
        ]
    for change in changes:
        with pytest.raises(ModelError, match="broken"):
            Learned(data | change)


@pytest.mark.parametrize(
    ("table", "kwargs", "message"),
    [
        ({"a": [1, 2], "b": [1]}, {}, r"with the same n: there are a \[2\], b \[1\]"),
        ({"a": ["x", "y"]}, {}, "features are numbers"),
        ({"a": [1, 2]}, {"base": "b"}, "there is no feature 'b': there are a"),
        ({"a": [[1, 2], [3, 4]]}, {"base": "a"}, "is one number for each example"),
        ({"a": [1, 2]}, {"ood": True}, "ood= works with logits"),
        ([{"a": 1}, {"b": 1}], {}, "KeyError"),
        (np.zeros((2, 2)), {"base": "a"}, "names a column of a table"),
        ({}, {}, "there are no features, or no examples"),
        ({"a": []}, {}, "there are no features, or no examples"),
        ({"a": [1, 1e200]}, {}, "up to 1e\\+100: scale them"),
        ({"a": [1, 10**400]}, {}, "features are numbers"),
        ("abc", {}, "logits must be an array of numbers"),
        (({"a": i} for i in range(2)), {}, "logits must be an array of numbers"),
        ({"a": [1, 2]}, {"seed": -1}, "seed= must be a whole number"),
    ],
)
def test_tables_that_are_wrong(table, kwargs, message):
    """Each is refused in words."""
    with pytest.raises(PolicyError, match=message):
        fit(table, [1, 0], [1, 1], **kwargs)


def test_features_that_are_missing():
    """One input without a feature, or with another number of them, is the caller's mistake, said by name."""
    score, table = fit(*examples(500)), examples(2, 1)[0]
    row = {name: column[0] for name, column in table.items()}
    with pytest.raises(BadReply, match="needs a feature 'kind'"):
        score({name: value for name, value in row.items() if name != "kind"})
    with pytest.raises(BadReply, match="'embedding' has 2 numbers, and the score was fitted to 3"):
        score(row | {"embedding": [1, 2]})
    with pytest.raises(BadReply, match="needs a feature 'kind'"):
        score.many({name: column for name, column in table.items() if name != "kind"})
    assert math.isnan(score(row | {"length": math.nan}))
    assert math.isnan(auto(*examples(500), base="sure")(row | {"length": math.nan}))


@pytest.mark.parametrize("score", [fit(*examples(500)), auto(*examples(500), base="sure"), auto(*examples(30), base="sure")])
def test_infinite_features_are_deferred(score):
    """As no example of the fit had any: not as sure as can be."""
    table = examples(2, 1)[0]
    row = {name: column[0] for name, column in table.items()}
    for value in (math.inf, -math.inf):
        assert math.isnan(score(row | {"sure": value}))
        assert np.isnan(score.many([row, row | {"sure": value}])).tolist() == [False, True]


def test_ranks():
    """The share of the examples below, between quantiles in proportion; rising everywhere, past the ends too."""
    knots = np.quantile(np.random.default_rng(0).normal(size=4000), np.linspace(0, 1, 65)).tolist()
    ranks, x = Ranks(knots), np.sort(np.random.default_rng(1).normal(size=500) * 2)
    assert (np.diff([ranks.rank_of(v) for v in x]) > 0).all()
    assert [ranks.rank_of(v) for v in knots] == pytest.approx(np.linspace(0, 1, 65), abs=2e-3)
    tied = Ranks([0.0, 0.0, 0.0, 1.0, 1.0])
    assert [round(tied.rank_of(v), 2) for v in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.5, 0.63, 1.0, 1.0]


def prompts(n, seed=0):
    """Questions: those with numbers in them are hard for the edge."""
    rng = np.random.default_rng(seed)
    words = ["what", "is", "the", "name", "of", "a", "river", "city", "in", "france", "today"]
    hard = rng.random(n) < 0.4
    texts = [
        " ".join(rng.choice(words, rng.integers(4, 12)))
        + (f" times {rng.integers(10, 99)} plus {rng.integers(10, 99)}" if h else "")
        for h in hard
    ]
    return texts, rng.random(n) < np.where(hard, 0.4, 0.95), rng.random(n) < 0.95


def test_a_prompt_is_routed_before_anything_is_generated():
    """Its features alone decide; a certificate holds for them as for any score, and the small model is not run in vain."""
    texts, edge, cloud = prompts(2500)
    table = [prompt_features(text) for text in texts]
    score = fit(table, edge, cloud)
    scores = crossfit(lambda train: _fitted(table, edge, cloud, train), len(texts))
    certificate = calibrate(scores, edge, cloud, max_loss=0.03)
    assert 0.3 < certificate.deferral_rate < 0.6
    ran = []

    def small(prompt):
        ran.append(prompt)
        return "short", prompt_features(prompt)

    with Router(small, lambda _: "long", threshold=certificate, score=score) as router:
        easy, hard = "what is the name of the river", "what is 12 times 31 plus 17"
        assert [router.infer(p).value for p in (easy, hard)] == ["short", "long"]
        ran.clear()
        mode = ["prefer_edge" if score(prompt_features(p)) >= certificate.threshold else "only_cloud" for p in (easy, hard)]
        assert [router.infer(p, mode=m).value for p, m in zip((easy, hard), mode, strict=True)] == ["short", "long"]
        assert ran == [easy]


def _fitted(table, edge, cloud, train):
    part = fit([table[i] for i in train], edge[train], cloud[train])
    return lambda rows: part.many([table[i] for i in rows])


TEXTS = (
    "",
    "?",
    "one",
    "Wie heisst der Fluss\nin Köln? 12 + 3",
    "\ud800 and \udfff",
    "\0" * 5,
    "\U0001f600 " * 40,
    "日本語 の テキスト",
    "word " * 9000,
)


def test_features_of_prompts():
    """Any text has the same ones, finite, in each process."""
    for text in TEXTS:
        found = prompt_features(text)
        words = found.pop("hashed words")
        assert len(found) == 20
        assert all(math.isfinite(v) for v in found.values())
        assert all(0 <= bucket < 65_536 and count >= 1 for bucket, count in words.items())
    found = prompt_features("Two words", buckets=8)
    assert (found["words"], found["capitals"]) == pytest.approx((math.log(3), 1 / 9))
    assert sum(found["hashed words"].values()) == 3  # two words and a pair
    assert "hashed words" not in prompt_features("Two words", buckets=0)


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_shares_are_those_of_each_character(text):
    """Of any script."""
    found, size = prompt_features(text), max(1, len(text))
    for name, test in {"digits": str.isdigit, "capitals": str.isupper, "letters": str.isalpha}.items():
        assert found[name] == pytest.approx(sum(map(test, text)) / size)
    assert found["foreign"] == pytest.approx(sum(not c.isascii() for c in text) / size)


def test_buckets_are_the_same_everywhere():
    """They depend neither on the process's hash seed nor on the platform: these were computed by hand."""
    one, two = zlib.crc32(b"two"), zlib.crc32(b"words")
    pair = zlib.crc32(b"words", one ^ 0xFFFF)
    assert prompt_features("Two words, two")["hashed words"] == {
        one % 65_536: 2,
        two % 65_536: 1,
        pair % 65_536: 1,
        zlib.crc32(b"two", two ^ 0xFFFF) % 65_536: 1,
    }
    code = "from edgeroute.confidence import prompt_features; print(prompt_features('a few words of it'))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert told == [str(prompt_features("a few words of it"))] * 2


def test_what_is_no_prompt():
    """Nor a number of buckets."""
    for text, buckets in ((None, 1), (b"a", 1), (5, 1), ("a", -1), ("a", 1.5), ("a", 65_537)):
        with pytest.raises(PolicyError, match=r"a prompt is a text|buckets= takes a whole number"):
            prompt_features(text, buckets=buckets)


# ------------------------------------------------------------------------------------------ hashed words
RARE = [f"topic{i}" for i in range(60)]


def questions(n, seed=0):
    """Prompts that differ by words alone; the edge knows half of the topics."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, len(RARE), n)
    texts = [f"tell me of {RARE[k]} number{rng.integers(50)} and say why" for k in topic]
    return texts, rng.random(n) < np.where(topic < 30, 0.95, 0.3), rng.random(n) < 0.95


def test_words_are_learned_that_64_buckets_confuse():
    """The area is above .55, where the other features have none."""
    texts, edge, cloud = questions(1500)
    table = [prompt_features(text) for text in texts]
    score = fit(table, edge, cloud)
    unseen, *right = questions(2000, 1)
    unseen = [prompt_features(text) for text in unseen]
    assert area(score.many(unseen), *right) > 0.55
    assert (
        area(
            fit([{"length": row["characters"]} for row in table], edge, cloud).many(
                [{"length": row["characters"]} for row in unseen]
            ),
            *right,
        )
        < 0.2
    )
    assert "ridge 20" in score.chosen_because
    assert [score(row) for row in unseen[:20]] == pytest.approx(score.many(unseen[:20]))
    assert ((score.many(unseen) >= 0) & (score.many(unseen) <= 1)).all()


def test_the_ridge_is_that_of_the_normal_equations():
    """The conjugate gradients' solution is the exact one, computed with full matrices."""
    texts, edge, cloud = questions(200)
    table = [prompt_features(text) for text in texts]
    score, names = fit(table, edge, cloud), [name for name in table[0] if name != "hashed words"]
    gain = cloud.astype(float) - edge
    counts = np.zeros((200, 65_536))
    for row, features in zip(counts, table, strict=True):
        row[list(features["hashed words"])] = list(features["hashed words"].values())
    counts = counts[:, kept := counts.any(0)]
    words = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * (np.log(201 / (1 + (counts > 0).sum(0))) + 1)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    plain = np.array([[features[name] for name in names] for features in table])
    spread = plain.std(0)
    plain = (plain - plain.mean(0)) / np.where(spread < 1e-9, np.inf, spread) * 0.05
    x = np.concatenate([plain, words], 1)
    x -= x.mean(0)
    expected = gain.mean() + x @ x.T @ np.linalg.solve(x @ x.T + 20 * np.eye(200), gain - gain.mean())
    assert kept.sum() > 100
    assert score.many(table) == pytest.approx(np.clip(0.5 - expected / 2, 0, 1), abs=1e-3)


def test_a_score_of_words_comes_back(tmp_path):
    """Its file is less than a megabyte, and gives the same scores; without words, and with words that no example had, too."""
    texts, edge, cloud = questions(400)
    score = auto([{"sure": i / 400, **prompt_features(text)} for i, text in enumerate(texts)], edge, cloud, base="sure")
    score.save(tmp_path / "score.json")
    again = Learned.load(tmp_path / "score.json")
    assert (tmp_path / "score.json").stat().st_size < 1_000_000
    others = [{"sure": 0.5, **prompt_features(text)} for text in ("", "unheard of words", texts[0], *TEXTS)]
    assert again.many(others).tolist() == score.many(others).tolist()
    assert np.isfinite(again.many(others)).all()
    columns = {name: [row[name] for row in others] for name in others[0]}
    assert again.many(columns).tolist() == score.many(others).tolist()
    for scale in (math.nan, math.inf):
        with pytest.raises(ModelError, match="finite weights"):
            Learned({**again.data, "words": {**again.data["words"], "scale": scale}})


@pytest.mark.parametrize("same", ["", "one and the same prompt"])
def test_prompts_that_are_all_alike(same):
    """Nothing can be learned of them, and all have one score."""
    rng = np.random.default_rng(0)
    score = fit([prompt_features(same)] * 200, rng.random(200) < 0.5, np.ones(200))
    assert len(set(score.many([prompt_features(text) for text in (same, same)]))) == 1
    assert math.isfinite(score(prompt_features("another")))


@pytest.mark.parametrize("counts", [None, 7, {"a": 1}, {65_536: 1}, {1: "x"}, [3]])
def test_words_that_are_none(counts):
    """An example without them, or with others, is refused, when it is fitted and when it is scored."""
    texts, edge, cloud = questions(100)
    table = [prompt_features(text) for text in texts]
    score = fit(table, edge, cloud)
    with pytest.raises(BadReply, match="hashed words"):
        score({**table[0], "hashed words": counts})
    table[3] = {**table[3], "hashed words": counts}
    with pytest.raises(PolicyError, match="hashed words"):
        fit(table, edge, cloud)


def test_columns_of_words_that_do_not_fit():
    """Fewer prompts than the other features have."""
    table = [prompt_features(text) for text in questions(100)[0]]
    columns = {name: [row[name] for row in table] for name in table[0]}
    with pytest.raises(PolicyError, match="has 99 prompts"):
        fit({**columns, "hashed words": columns["hashed words"][:-1]}, *questions(100)[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idf": "!"}, "broken"),
        ({"idf": ""}, "finite weights"),
        ({"scale": None}, "broken"),
        ({"weights": base64.b64encode(np.full(65_536, np.inf, "<f2").tobytes()).decode()}, "finite weights"),
    ],
)
def test_a_damaged_score_of_words(change, message):
    """Is refused."""
    texts, edge, cloud = questions(100)
    data = fit([prompt_features(text) for text in texts], edge, cloud).data
    with pytest.raises(ModelError, match=message):
        Learned({**data, "words": {**data["words"], **change}})


def test_a_score_without_words():
    """One of sizes and characters alone works."""
    texts, edge, cloud = questions(100)
    table = [prompt_features(text, buckets=0) for text in texts]
    few = list(table[0])[:14]
    score = Learned(fit([{name: row[name] for name in few} for row in table], edge, cloud).data)
    assert np.isfinite(score.many([prompt_features(text) for text in texts])).all()
