"""What would I save: foreign logs of requests that two models answered, of every shape, damaged and hostile."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from math import inf, log

import numpy as np
import pytest
from commands import cli
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import BadInput, PolicyError
from edgeroute.confidence import NotEnough, calibrate, quantile
from edgeroute.tools.replay.certified_savings_of_pairs import saving
from edgeroute.tools.replay.logs import FORMATS, Price, Read, read_pairs
from edgeroute.tools.replay.logs.answer_pairs_and_samples import MOST

SMALL, LARGE = "small-4b", "large-70b"
SECRET = "sk-live-51H8secret"


def world(n=1500, seed=0):
    """Confidence of the edge, and which sides are right: a good score, an edge at 85 %, a cloud at 92 %."""
    rng = np.random.default_rng(seed)
    u, x = rng.random(n), rng.random(n)
    harm = 0.4 * x**4
    return 1 - x, ~(u < harm + 0.05), ~(u > 0.92)


def logprobs(confidence):
    """Two tokens of which the 10 % quantile is this confidence."""
    return {"content": [{"token": "a", "logprob": log(max(confidence, 1e-9)), "bytes": None, "top_logprobs": []}] * 2}


def completion(model, text, confidence=None, *, calls=None, tokens=(100, 10)):
    """What /v1/chat/completions answers."""
    message = {"role": "assistant", "content": text, "refusal": None}
    if calls is not None:
        message |= {"content": None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "logprobs": None if confidence is None else logprobs(confidence)}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def batch(i, body, status=200):
    """A line of a batch's output file."""
    response = {"status_code": status, "request_id": f"req_{SECRET}", "body": body}
    return {"id": f"batch_req_{i}", "custom_id": f"request-{i}", "response": response, "error": None}


def payload(i, model, text, confidence=None, /, *, usd=0.002, **more):
    """LiteLLM's standard logging payload."""
    return {
        "id": f"chatcmpl-{model}-{i}", "trace_id": f"trace-{model}-{i}", "call_type": "acompletion", "status": "success",
        "response_cost": usd, "model": model, "model_group": "assistant", "prompt_tokens": 100, "completion_tokens": 10,
        "messages": [{"role": "user", "content": f"Question {i}"}], "cache_hit": False,
        "metadata": {"user_api_key_hash": SECRET, "spend_logs_metadata": {"job": f"job-{i}"}},
        "hidden_params": {"additional_headers": {"authorization": f"Bearer {SECRET}"}},
        "response": completion(model, text, confidence), **more,
    }  # fmt: skip


def wrote(path, records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def table(path, header, rows):
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    path.write_text(out.getvalue())
    return path


def run(*args, stdin=b""):
    return cli(*args, input=stdin)


# --- the same requests in each format


def test_a_table_of_scores(tmp_path):
    """Threshold, deferral and interval are the certificate's; oracle and plug-in are those of the definition."""
    score, edge, cloud = world()
    path = table(
        tmp_path / "log.csv",
        ["id", "confidence", "edge_score", "cloud_score", "edge_usd", "cloud_usd", "note"],
        [(i, s, int(e), bool(c), 0.0, 0.01, "x") for i, (s, e, c) in enumerate(zip(score, edge, cloud, strict=True))],
    )
    found, made = saving(path, "csv", max_loss=0.02), calibrate(score, edge, cloud, max_loss=0.02)
    assert found.certified
    assert (found.threshold, found.deferral, found.deferral_interval) == (
        made.threshold, pytest.approx(made.deferral_rate), made.deferral_interval,
    )  # fmt: skip
    assert (found.n, found.judged, found.left_out, found.by_chance) == (1500, "scores", (), False)
    assert found.edge_correct == pytest.approx(edge.mean())
    assert found.cloud_correct == pytest.approx(cloud.mean())
    gain = cloud.astype(int) - edge
    assert found.loss == pytest.approx(gain[score >= made.threshold].sum() / 1500)
    fits = [t for t in score if gain[score >= t].sum() <= 0.02 * 1500]
    assert found.plug_in == pytest.approx((score < min(fits)).mean())
    assert found.least == pytest.approx(max(0, gain.sum() - 30) / 1500) or found.least == 0
    assert found.least < found.plug_in < found.deferral < 1
    # the edge is free, so the share saved is that of the calls
    assert found.money.cloud == pytest.approx(15)
    assert found.money.saved == pytest.approx(1 - found.deferral)
    low, high = found.money.interval
    assert low < found.money.saved < high < low + 0.2


@pytest.mark.parametrize("kind", ["batch", "beside", "litellm"])
def test_logs_say_what_the_table_says(tmp_path, kind):
    """Answers of two models in a log are those of the table with the same confidences and answers."""
    score, edge, _ = world()
    score = np.round(score, 3)
    rows, records = [], []
    for i, (s, e) in enumerate(zip(score, edge, strict=True)):
        mine, other = f"Answer  {i if e else 'none'}.", f"answer {i}"
        rows.append((i, quantile(np.array([log(max(s, 1e-9))] * 2)), mine, other, 0.001, 0.01))
        if kind == "batch":
            records += [batch(i, completion(SMALL, mine, s)), batch(i, completion(LARGE, other))]
        elif kind == "beside":
            asked = {"messages": [{"role": "user", "content": f"Question {i}"}], "temperature": i}
            records.append({"request": {"model": SMALL, **asked}, "response": completion(SMALL, mine, s)})
            records.append({"request": {"model": LARGE, **asked}, "response": completion(LARGE, other)})
        else:
            records += [payload(i, SMALL, mine, s, usd=0.001), payload(i, LARGE, other, usd=0.01)]
    np.random.default_rng(1).shuffle(records)
    columns = ["id", "confidence", "edge_answer", "cloud_answer", "edge_usd", "cloud_usd"]
    same = saving(table(tmp_path / "same.csv", columns, rows), "csv", max_loss=0.03)
    half = len(records) // 2  # an output file for each batch
    paths = [wrote(tmp_path / "a.jsonl", records[:half]), wrote(tmp_path / "b.jsonl", records[half:])]
    prices = (
        {} if kind == "litellm" else {"edge_price": Price(usd_in=5, usd_out=50), "cloud_price": Price(usd_in=50, usd_out=500)}
    )
    found = saving(paths, "litellm-log" if kind == "litellm" else "openai-log", max_loss=0.03, how=Read(SMALL, **prices))
    assert (found.edge_model, found.cloud_model, found.judged) == (SMALL, LARGE, "agreement")
    assert found.certified
    for name in ("n", "threshold", "deferral", "edge_correct", "least", "plug_in", "guarantee", "left_out"):
        expected = getattr(same, name)
        assert getattr(found, name) == (pytest.approx(expected) if isinstance(expected, float) else expected), name
    assert found.money.cloud == pytest.approx(same.money.cloud) == pytest.approx(15)
    assert found.money.cascade == pytest.approx(same.money.cascade) == pytest.approx(1.5 + 15 * found.deferral)


def test_thoughts_that_only_the_total_counts_cost_money(tmp_path):
    """Some providers leave them out of `completion_tokens`."""
    large = completion(LARGE, "x")
    large["usage"]["total_tokens"] += 1000
    path = wrote(tmp_path / "log.jsonl", [batch(1, completion(SMALL, "x", 0.5)), batch(1, large)])
    found = read_pairs([path], "openai-log", Read(edge_model=SMALL, edge_price=Price(usd_out=1), cloud_price=Price(usd_out=1)))
    assert [usd.tolist() for usd in found.usd] == [[pytest.approx(10e-6)], [pytest.approx(1010e-6)]]


def test_other_apis(tmp_path):
    """Responses and completions; texts in parts, tools by their arguments and not by their spelling, refusals."""
    token = {"token": "x", "logprob": log(0.5), "top_logprobs": []}
    call = {"type": "function", "function": {"name": "go", "arguments": '{"a": 1, "b": 2}'}}
    again = {"type": "function", "function": {"name": "go", "arguments": '{"b":2,"a":1}'}}
    said = {"type": "message", "content": [{"type": "output_text", "text": "Yes.", "logprobs": [token]}]}
    used = {"type": "function_call", "name": "go", "arguments": '{"b": 2, "a": 1}'}
    refused = {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}
    usage = {"input_tokens": 7, "output_tokens": 3}
    bodies = {
        "said": ({"model": SMALL, "output": [{"type": "reasoning"}, said], "usage": usage}, completion(LARGE, "yes")),
        "used": ({"model": SMALL, "output": [used], "usage": usage}, completion(LARGE, None, calls=[call])),
        "called": (completion(SMALL, None, 0.9, calls=[call]), completion(LARGE, None, calls=[again])),
        "refused": ({"model": SMALL, "output": [refused], "usage": usage}, completion(LARGE, "No!")),
        "parts": (completion(SMALL, [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), completion(LARGE, "A b")),
        "old": (
            {"model": SMALL, "choices": [{"text": " hm", "logprobs": {"token_logprobs": [log(0.25)]}}], "usage": None},
            {"model": LARGE, "choices": [{"text": "Hm", "logprobs": None}]},
        ),
    }
    records = [batch(name, body) for name, both in bodies.items() for body in both]
    found = read_pairs(
        [wrote(tmp_path / "log.jsonl", records)], "openai-log", Read(edge_model=SMALL, cloud_price=Price(usd_in=1))
    )
    assert found.edge.tolist() == [1] * 6
    assert found.confidence == pytest.approx([0.5, np.nan, 0.9, np.nan, np.nan, 0.25], nan_ok=True)
    assert found.usd[1] == pytest.approx([1e-4] * 5 + [np.nan], nan_ok=True)
    endless = completion(SMALL, "x") | {"choices": [{"text": "x", "logprobs": {"token_logprobs": [-(10**400), -1]}}]}
    path = wrote(tmp_path / "endless.jsonl", [batch(1, endless), batch(1, completion(LARGE, "x"))])
    assert read_pairs([path], "openai-log", Read(SMALL)).confidence.tolist() == [0]
    exact = read_pairs([tmp_path / "log.jsonl"], "openai-log", Read(edge_model=SMALL, match="exact"))
    assert exact.edge.tolist() == [0, 1, 1, 0, 0, 0]


def test_stored_completions_and_keys(tmp_path):
    """A completion itself, with its messages or an ID in its metadata; --id and --score say where else to look."""
    messages = [{"role": "user", "content": "?"}]
    one = completion(SMALL, "a", 0.5) | {"messages": messages, "metadata": {"score": 0.5, "run": 7}}
    other = completion(LARGE, "b") | {"messages": messages, "metadata": {"score": True, "run": 7}}
    path = wrote(tmp_path / "log.jsonl", [one, other])
    assert read_pairs([path], "openai-log", Read(SMALL)).edge.tolist() == [0]
    found = read_pairs([path], "openai-log", Read("small*", "large*", id="metadata.run", score="metadata.score"))
    assert (found.edge.tolist(), found.cloud.tolist()) == ([0.5], [1])
    ids = [x | {"messages": None, "metadata": {"request_id": "r"}} for x in (one, other)]
    assert len(read_pairs([wrote(tmp_path / "ids.jsonl", ids)], "openai-log", Read(SMALL)).edge) == 1
    with pytest.raises(BadInput, match="left out, 2: no text or number at --id"):
        read_pairs([path], "openai-log", Read(SMALL, LARGE, id="metadata.none"))
    wrapped = [{"standard_logging_object": payload(1, model, "x", 0.5)} for model in (SMALL, LARGE)]
    path = wrote(tmp_path / "lite.jsonl", wrapped)
    job = Read(SMALL, id="metadata.spend_logs_metadata.job", score="metadata.none")
    assert len(read_pairs([path], "litellm-log", job._replace(score="")).edge) == 1
    with pytest.raises(BadInput, match="no answer of a model in it that can be used; left out, 2: no number at --score"):
        read_pairs([path], "litellm-log", job)


def test_what_is_not_there(tmp_path):
    """Tokens that only the payload counts; arguments of a tool that are no JSON; parts of a kind that nobody knows; a half-known pair."""
    calls = [{"function": {"name": "go", "arguments": "{not"}}, {"type": "custom"}]
    body = completion(LARGE, None, calls=calls) | {"usage": None}
    said = {"content": [{"type": "image"}, {"type": "output_text", "text": "x"}]}
    records = [
        payload(1, LARGE, "", response=body), payload(1, SMALL, "", response=body, response_cost=None),
        payload(2, LARGE, "", response={"output": [said]}), payload(2, SMALL, "x", 0.5, usd=None),
        payload(3, "third", "x"),
    ]  # fmt: skip
    path = wrote(tmp_path / "log.jsonl", records)
    found = read_pairs([path], "litellm-log", Read(SMALL, LARGE, edge_price=Price(usd_in=10)))
    assert found.edge.tolist() == [1, 1]
    assert found.usd[0] == pytest.approx([0.001, 0.001])
    assert found.usd[1] == pytest.approx([0.002, 0.002])
    assert [(one.why, one.requests) for one in found.left_out] == [("an answer of another model", 1)]
    scores = [payload(1, SMALL, "x", 0.5, score=1), payload(1, LARGE, "x", score=2)]
    with pytest.raises(BadInput, match="a number that is not from 0 to 1 "):
        read_pairs([wrote(path, scores)], "litellm-log", Read(SMALL, LARGE, score="score"))


# --- what it says, and when it says no


def test_no_threshold_can_be_certified(tmp_path):
    """An edge that is often wrong where it is surest: nothing is saved, whatever the edge costs, and it says so."""
    rng = np.random.default_rng(0)
    rows = [(s, int(rng.random() < 0.5), 1, 0.01, 0.02) for s in rng.integers(0, 3, 1000)]
    columns = ["confidence", "edge_score", "cloud_score", "edge_usd", "cloud_usd"]
    found = saving(table(tmp_path / "log.csv", columns, rows), "csv")
    assert not found.certified
    assert (found.threshold, found.deferral, found.deferral_interval, found.loss) == (inf, 1, (1, 1), 0)
    assert found.money == (pytest.approx(20), pytest.approx(20), 0, (0, 0))
    assert found.by_chance
    for words in ("NOT CERTIFIED", "nothing saved", "MAY BE NO BETTER THAN CHANCE", "oracle"):
        assert words in str(found)
    assert found.as_dict()["threshold"] == "inf"
    assert found.as_dict()["certified"] is False


def test_an_edge_that_costs_more_than_it_spares(tmp_path):
    """What is saved is below 0, and said to be."""
    score, edge, cloud = world()
    rows = [(s, int(e), int(c), 0.02, 0.01) for s, e, c in zip(score, edge, cloud, strict=True)]
    columns = ["confidence", "edge_score", "cloud_score", "edge_usd", "cloud_usd"]
    found = saving(table(tmp_path / "log.csv", columns, rows), "csv", max_loss=0.03)
    assert found.certified
    assert found.money.saved == pytest.approx(1 - found.deferral - 2)
    assert "% saved (-" in str(found)
    assert "the edge costs more than it spares" in str(found)


@pytest.mark.slow
def test_chance_is_told_from_a_good_score(tmp_path):
    """A random score is taken for a good one in about 5 % of draws; and a good one never, with this many requests."""

    def by_chance(score, edge, cloud):
        rows = list(zip(score, edge.astype(int), cloud.astype(int), strict=True))
        found = saving(table(tmp_path / "log.csv", ["confidence", "edge_score", "cloud_score"], rows), "csv", max_loss=0.05)
        return found.by_chance, found.area

    good, random = [], []
    for seed in range(60):
        score, edge, cloud = world(1500, seed)
        good.append(by_chance(score, edge, cloud)[0])
        random.append(by_chance(np.random.default_rng(seed).permutation(score), edge, cloud)[0])
    assert not any(good)
    assert np.mean(random) >= 0.86  # .95 less three standard errors
    score, edge, _ = world(400)
    assert by_chance(score, edge, edge) == (True, None)  # nothing to rank: either side is as good


def test_too_few(tmp_path):
    """How many are missing, with what was left out."""
    rows = [(i / 40, 1, 1) for i in range(40)] + [("?", 1, 1)]
    path = table(tmp_path / "log.csv", ["confidence", "edge_score", "cloud_score"], rows)
    with pytest.raises(NotEnough, match=r"there are 40: 259 are missing .*1 left out: confidence is no number") as e:
        saving(path, "csv")
    assert (e.value.needed, e.value.missing) == (299, 259)
    code, out, err = run("replay", "--from", "csv", path, "--json")
    assert (code, out) == (5, "")
    assert json.loads(err)["missing"] == 259
    assert run("replay", "--from", "csv", path)[0] == 5
    assert saving(path, "csv", max_loss=0.2, sure=0.9).n == 40


def test_a_score_that_says_nothing(tmp_path):
    """The same for all, or none at all."""
    columns = ["confidence", "edge_score", "cloud_score"]
    with pytest.raises(PolicyError, match="1 for every example"):
        saving(table(tmp_path / "log.csv", columns, [(1, 1, 1)] * 400), "csv")
    with pytest.raises(BadInput, match="no answer of the edge has a confidence"):
        saving(table(tmp_path / "log.csv", columns, [("", 1, 1)] * 400), "csv")
    records = [payload(i, model, "x") for i in range(400) for model in (SMALL, LARGE)]
    with pytest.raises(BadInput, match=r"small-4b has log-probabilities of its tokens .*logprobs=true"):
        saving(wrote(tmp_path / "log.jsonl", records), "litellm-log", how=Read(SMALL))


def test_answers_without_a_confidence_are_deferred(tmp_path):
    """They count against nobody, and are said."""
    score, edge, cloud = world()
    rows = [("nan" if i % 10 == 0 else s, int(e), int(c)) for i, (s, e, c) in enumerate(zip(score, edge, cloud, strict=True))]
    found = saving(table(tmp_path / "log.csv", ["confidence", "edge_score", "cloud_score"], rows), "csv", max_loss=0.02)
    assert found.unscored == pytest.approx(0.1)
    assert found.deferral > 0.1
    assert found.money is None
    assert "without a confidence, and so deferred: 10.0 %" in str(found)
    assert "money: not known" in str(found)


def graded():
    """Whether `calibrate` takes scores between 0 and 1."""
    try:
        calibrate(np.linspace(0, 1, 400), np.full(400, 0.5), np.full(400, 0.5), max_loss=0.01)
    except PolicyError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_graded_scores(tmp_path):
    """Scores between 0 and 1 are handed on as they are: certified where `calibrate` takes them, else its error."""
    score, edge, cloud = world(2000)
    rows = list(zip(score, edge * 0.875, cloud * 0.875, strict=True))
    path = table(tmp_path / "log.csv", ["confidence", "edge_score", "cloud_score"], rows)
    if graded():
        found = saving(path, "csv", max_loss=0.02)
        assert found.certified
        assert found.cloud_correct == pytest.approx(cloud.mean() * 0.875)
    else:
        with pytest.raises(PolicyError, match="0 and 1"):
            saving(path, "csv")


@pytest.mark.slow
def test_the_interval_of_the_money_covers(tmp_path):
    """The certified threshold's true saving is within it in nearly all draws, with costs of very different sizes."""
    population = world(60_000, 99)
    cost = np.random.default_rng(5).lognormal(0, 1, 60_000) * (1.5 - population[0])
    within = []
    for seed in range(60):
        rows = np.random.default_rng(seed).integers(0, 60_000, 800)
        score, edge, cloud = (part[rows] for part in population)
        columns = ["confidence", "edge_score", "cloud_score", "edge_usd", "cloud_usd"]
        lines = list(zip(score, edge.astype(int), cloud.astype(int), [0] * 800, cost[rows], strict=True))
        found = saving(table(tmp_path / "log.csv", columns, lines), "csv", max_loss=0.03)
        if found.certified:
            truth = cost[population[0] >= found.threshold].sum() / cost.sum()
            low, high = found.money.interval
            within.append(low <= truth <= high)
    assert len(within) > 30
    assert np.mean(within) >= 0.87  # .95 less three standard errors of 60 draws


# --- damaged and hostile files


def test_what_is_left_out_is_counted_with_its_place(tmp_path):
    """Each kind of line that cannot be used, with FILE:LINE of the first, and never with what is in it."""
    good = [payload(i, model, "x", 0.5) for i in range(3) for model in (SMALL, LARGE)]
    redacted = [{"role": "user", "content": "redacted-by-litellm"}]
    bad = {
        "no JSON object": [SECRET, "[1]", '"x"', "9" * 5000, '{"a": ' + "NaN,"],
        "nested too deep": ["[" * 100_000],
        "a line of more than 16 MiB": ['{"messages": "' + "x" * MOST + '"}'],
        "the request failed": [payload(9, SMALL, "x", status="failure")],
        "answered from a cache": [payload(9, SMALL, "x", cache_hit=True)],
        "no answer of a model in it": [payload(9, SMALL, "x", response=text) for text in ("x", {"choices": []}, {"choices": "x"}, None)],
        "its messages were redacted": [payload(9, SMALL, "x", messages=redacted)],
        "its answer was redacted": [payload(9, SMALL, "redacted-by-litellm")],
        "no ID and no messages": [payload(9, SMALL, "x", messages=None)],
        "no model is named": [payload(9, SMALL, "x", model=7)],
        "something else where a number": [payload(9, SMALL, "x", response_cost="1"), payload(9, SMALL, "x", response_cost=True)],
        "a number that is not from 0": [payload(9, SMALL, "x", response_cost=-1), payload(9, SMALL, "x", response_cost=10**400)],
        "log-probabilities of tokens that are no numbers": [
            payload(9, SMALL, "x", response={"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"logprob": value}]}}]})
            for value in (1, "x", None, True)
        ],
        "an answer that is no text": [payload(9, SMALL, 7)],
        "the same request to the same model again": [payload(1, SMALL, "x", 0.5)],
        "an answer of another model": [payload(1, "other", "x")],
        "a request that only small-4b answered": [payload(8, SMALL, "x")],
        "a request that only large-70b answered": [payload(7, LARGE, "x")],
    }  # fmt: skip
    path = wrote(tmp_path / "log.jsonl", [*good, "", *(record for records in bad.values() for record in records)])
    found = read_pairs([path], "litellm-log", Read(SMALL, LARGE))
    assert len(found.edge) == 3
    told = {one.why: one for one in found.left_out}
    number = len(good) + 2
    for why, records in bad.items():
        (one,) = [told.pop(name) for name in [*told] if why in name and ("deep" in why or "deep" not in name)]
        assert one.requests == len(records), why
        assert one.first in ("", f"{path}:{number}"), why
        number += len(records)
    assert told == {}
    assert SECRET not in str(found.left_out)


def test_tables_that_are_damaged(tmp_path):
    """Rows with something else than numbers, too long, repeated; headers that lack a column; another encoding."""
    columns = ["id", "confidence", "edge_score", "cloud_score", "edge_usd", "cloud_usd"]
    good = [(i, i / 400, 1, 1, 0, 0.5) for i in range(400)]
    bad = [
        ("a", SECRET, 1, 1, 0, 0), ("b", "inf", 1, 1, 0, 0), ("c", 0.5, 2, 1, 0, 0), ("d", 0.5, 1, "", 0, 0), ("e", 0.5),
        ("f", 0.5, 1, 1, -1, 0), ("g", 0.5, 1, "x" * 200_000, 0, 0), (1, 0.5, 1, 1, 0, 0),
    ]  # fmt: skip
    good[0] = (0, 0, 1 + 2e-16, -1e-9, 0, 0.5)  # which is rounding
    path = table(tmp_path / "log.csv", columns, [*good, *bad])
    found = read_pairs([path], "csv", Read())
    assert (len(found.edge), found.edge[0], found.cloud[0]) == (400, 1, 0)
    reasons = {one.why: (one.requests, one.first) for one in found.left_out}
    assert reasons == {
        "confidence is no number": (2, f"{path}:402"),
        "edge_score is not from 0 to 1": (1, f"{path}:404"),
        "cloud_score is no number": (1, f"{path}:405"),
        "edge_score is no number": (1, f"{path}:406"),
        "a number that is not from 0 to 1e+15": (1, f"{path}:407"),
        "no row of a table: a field that is too long, or damaged": (1, f"{path}:408"),
        "an ID that was there before": (1, ""),
    }
    for text in ("", "confidence,edge_score\n", "\0\n", "{}\n", '"' + "x" * 200_000):
        path.write_text(text)
        with pytest.raises(BadInput, match=f"{path}:1: the first line names the columns|{path}:1: no header"):
            read_pairs([path], "csv", Read())
    path.write_bytes("confidence,edge_score,cloud_score\n1,1,1\n".encode("utf-16"))
    with pytest.raises(BadInput, match="the first line"):
        read_pairs([path], "csv", Read())
    path.write_bytes(b"\xef\xbb\xbfconfidence,edge_answer,cloud_answer\n.5,\0\xff,\0\xfe\n.5,x" + b"\n" + b"x" * (MOST + 5))
    found = read_pairs([path], "csv", Read())
    assert found.edge.tolist() == [1]
    assert {one.why for one in found.left_out} == {"a row that ends before its answers", "a line of more than 16 MiB"}
    with pytest.raises(BadInput, match=f"{path}:1: the first line names confidence twice"):
        read_pairs([table(path, ["confidence", *columns], [])], "csv", Read())
    path.write_text("confidence,edge_answer,cloud_answer\n.5,x,y\n")
    other = table(tmp_path / "other.csv", columns, good)
    with pytest.raises(BadInput, match="some tables have scores and others answers"):
        read_pairs([path, other], "csv", Read())


def test_whose_fault_it_is(tmp_path):
    """Files that are not there, models that are not named, kinds that do not exist."""
    records = [payload(i, model, "x", 0.5) for i in range(2) for model in (SMALL, LARGE, "third")]
    path = wrote(tmp_path / "log.jsonl", records)
    with pytest.raises(BadInput, match="no such file"):
        saving(tmp_path / "none", "csv")
    with pytest.raises(BadInput, match="cannot be read"):
        saving(tmp_path, "csv")
    with pytest.raises(BadInput, match=f"expected one of {', '.join(FORMATS)}"):
        saving(path, "parquet")
    listed = r"small-4b \(2\), large-70b \(2\), third \(2\)"
    for how in (Read(), Read(SMALL), Read(SMALL, SMALL)):
        with pytest.raises(BadInput, match=f"name the models with.*its models: {listed}"):
            saving(path, "litellm-log", how=how)
    one = wrote(tmp_path / "one.jsonl", [payload(0, LARGE, "x", 0.5)])
    with pytest.raises(BadInput, match=r"it has one model: name the edge .* with --edge, .*large-70b \(1\)"):
        saving(one, "litellm-log")
    with pytest.raises(BadInput, match=f"--edge-model none matches 0 of its models: {listed}"):
        saving(path, "litellm-log", how=Read("none", LARGE))
    with pytest.raises(BadInput, match=f"--cloud-model [*] matches 3 of its models: {listed}"):
        saving(path, "litellm-log", how=Read(SMALL, "*"))
    asked = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": SMALL, "messages": ["x"]}}
    failed = [batch(1, {}, 500), batch(1, {}) | {"response": None}, batch(1, {}) | {"error": {"code": "x"}}]
    alone = [batch(i, completion(model, "x")) for i, model in enumerate((SMALL, LARGE))]
    path = wrote(tmp_path / "in.jsonl", [asked, asked, *failed, *alone])
    with pytest.raises(BadInput, match=r"left out, 3: the request failed .*:3.*left out, 2: a request without its response .*:1"):
        read_pairs([path], "openai-log", Read(SMALL))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["response", "request", "body", "choices", "message", "content", "logprobs", "logprob", "usage", "model",
                         "output", "messages", "custom_id", "metadata", "status_code", "prompt_tokens", "tool_calls", "function",
                         "arguments", "text", "type", "token_logprobs", "standard_logging_object", "response_cost"]), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=draws(100), deadline=None)
@given(st.lists(JSON, max_size=5), st.sampled_from(["openai-log", "litellm-log"]), st.sampled_from(["", "metadata.custom_id"]))
def test_whatever_is_in_a_log(tmp_path_factory, records, kind, where):
    """It is read, or left out, or refused in one line that quotes none of it."""
    path = wrote(tmp_path_factory.getbasetemp() / "any.jsonl", [json.dumps(record) for record in records])
    how = Read(SMALL, LARGE, id=where, score=where)
    try:
        read_pairs([path], kind, how)
    except BadInput as e:
        assert "\n" not in str(e)  # noqa: PT017 - there may be none


@settings(max_examples=draws(100), deadline=None)
@given(st.binary(max_size=200))
def test_whatever_is_in_a_table(tmp_path_factory, text):
    """Likewise."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"confidence,edge_answer,cloud_answer,edge_usd\n0.5,a,a,1\n" + text)
    assert read_pairs([path], "csv", Read()).edge.size >= 1


# --- the command


def test_the_command(tmp_path):
    """Text and JSON, stdin, prices; no secret of the log in either."""
    score, edge, _ = world()
    answers = [(SMALL, s, "x" if e else "y") for s, e in zip(score, edge, strict=True)]
    records = [payload(i, *part) for i, (m, s, t) in enumerate(answers) for part in ((m, t, s), (LARGE, "x"))]
    path = wrote(tmp_path / "log.jsonl", [*records, SECRET])
    options = ("replay", "--from", "litellm-log", "--edge-model", SMALL, "--max-loss", "3%", "--edge-price", "0")
    code, out, err = run(*options, path)
    assert (code, err) == (0, "")
    for words in (
        "1,500 requests",
        "certified: the edge answers alone",
        "With 95 % confidence",
        "oracle",
        f"{path}:3001",
        "money: $3",
    ):
        assert words in out
    assert SECRET not in out
    code, out, err = run(*options, "-", "--json", "--cloud-price", "1/2", stdin=path.read_bytes())
    told = json.loads(out)
    assert (code, err, told["n"], told["certified"]) == (0, "", 1500, True)
    assert told["money"]["cloud"] == pytest.approx(1500 * 120e-6)
    assert told["left_out"] == [{"why": "no JSON object", "requests": 1, "first": "-:3001"}]


def test_a_file_of_prices(tmp_path):
    """Each model has its own, by its name before a pattern; one without a price costs what the log says."""
    path = wrote(
        tmp_path / "log.jsonl", [payload(i, model, "yes", 0.5 + i / 1000) for i in range(400) for model in (SMALL, LARGE)]
    )
    prices = tmp_path / "prices.toml"
    options = ("replay", "--from", "litellm-log", "--edge-model", SMALL, path, "--json")

    def cost(text, *sides):
        """Cost of the cloud alone, and of the cascade."""
        prices.write_text(text)
        code, out, err = run(*options, *(word for side in sides for word in (side, prices)))
        assert (code, err) == (0, "")
        money = json.loads(out)["money"]
        return money["cloud"], money["cascade"]

    by_name = f'"large*" = 7\n"{LARGE}" = "1/2"\n"small*" = "0.5/1"\n'
    assert cost(by_name, "--cloud-price", "--edge-price") == pytest.approx((400 * 120e-6, 400 * 60e-6))
    assert cost('"large*" = 0.5\n"l*" = 7\n', "--cloud-price")[0] == pytest.approx(200)
    assert cost('"other" = 3\n', "--cloud-price")[0] == pytest.approx(0.8)
    for text, words in (
        ('"a" = "b.toml"', "a price must be"),
        ('"a" = [1]', "a price must be"),
        ("a = ", "is not TOML"),
        (None, "No such"),
    ):
        prices.unlink() if text is None else prices.write_text(text)
        code, _, err = run(*options, "--cloud-price", prices)
        assert (code, words in json.loads(err)["error"]) == (2, True), err


def test_options_that_belong_together(tmp_path):
    """A trace has a policy, a foreign log has none; prices have one form."""
    path = tmp_path / "x"
    for args, words in (
        (("replay", path), "--policy"),
        (("replay", path, "-p", "p.toml", "--max-loss", "1%"), "--max-loss: it is for a foreign log"),
        (("replay", path, "--from", "csv", "-p", "p.toml"), "--policy: it is for a trace"),
        (("replay", path, "--from", "csv", "--keep-mode"), "--keep-mode: it is for a trace"),
        (("replay", path, "--from", "csv", "--id", "job"), "--id: it is for a log of calls"),
        (("replay", path, path, "-p", "p.toml"), "one trace at a time"),
        (("replay", path, "--from", "csv", "--edge-price", "1/2/3"), "a price must be"),
        (("replay", path, "--from", "csv", "--cloud-price=-1"), "a price must be"),
        (("replay", path, "--from", "csv", "--cloud-price=x"), "a price must be"),
    ):
        code, out, err = run(*args, "--json")
        assert (code, out) == (2, ""), args
        assert words in json.loads(err)["error"], args


def test_it_needs_no_runtime(tmp_path):
    """A log is read where no runtime of models is installed."""
    rows = [(i / 400, 1, 1) for i in range(400)]
    path = table(tmp_path / "log.csv", ["confidence", "edge_score", "cloud_score"], rows)
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\nfrom edgeroute.tools.replay.certified_savings_of_pairs import saving\n"
        f"print(saving({str(path)!r}, 'csv').deferral)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0.0\n", "")
