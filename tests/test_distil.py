"""`edgeroute distil`: a text classifier of the cloud's answers, its certificate, and records that are not used."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event
from time import monotonic
from urllib.request import Request, urlopen

import numpy as np
import pytest
from both import LONG, wait_for
from commands import ROOT, cli
from gateways import serving
from lazily import needs

from edgeroute import (
    AsyncRouter,
    Audit,
    BadInput,
    Egress,
    Outbox,
    PolicyError,
    Router,
    RuntimeMissing,
    Trace,
    Trial,
    Unreachable,
)
from edgeroute.confidence.score_before_run import text_of
from edgeroute.tools.compress.onnx_graphs_and_result_files import workplace
from edgeroute.tools.distil_text_classifier import Example, distil, read_examples
from edgeroute.tools.replay.logs.answer_pairs_and_samples import LeftOut

needs("sklearn", "skl2onnx", "onnx")
WORDS = {
    "Refund": "refund money returned charged twice",
    "Delivery": "parcel courier late tracking arrived",
    "Login": "password account locked reset mail",
    "Größe": "größe passt schuhe länge kürzer",
}
FILLER = ["please", "hello", "my", "the", "order", "number", "was", "about", "it", "thanks", "again", "question", "team", "kind"]


def tickets(n, seed=0, noise=0.02):
    """Texts with a cloud's answers; some of them are at random."""
    rng = np.random.default_rng(seed)
    names = [*WORDS]
    rows = []
    for i in range(n):
        name = names[rng.integers(len(names))]
        words = [*rng.choice(WORDS[name].split(), 2), *rng.choice(FILLER, 5), f"n{i}"]
        rows.append(Example(" ".join(rng.permutation(words)), names[rng.integers(len(names))] if rng.random() < noise else name))
    return rows


def table(path, rows, **columns):
    """A CSV file of examples."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "answer", *columns])
        writer.writeheader()
        writer.writerows({"text": row.text, "answer": row.answer, **columns} for row in rows)
    return path


def test_a_model_of_the_clouds_answers(tmp_path):
    """It runs from its file with a plain router, takes texts, and a policy takes the lines that are printed."""
    source = table(tmp_path / "log.csv", tickets(900))
    code, said, errors = cli("distil", source, "--from", "csv", "--out", tmp_path / "small.onnx", "--json")
    assert (code, errors) == (0, "")
    told = json.loads(said)
    assert (told["classes"], told["trained"] + told["held_out"]) == (4, 900)
    assert 0.9 < told["agreement"] < 1
    assert told["deferral"] < 0.3
    assert told["bytes"] < 200_000
    with Router(
        edge=str(tmp_path / "small.onnx"), cloud=lambda _: "an answer that is no class", threshold=told["threshold"]
    ) as router:
        for text, answer in (
            ("The PASSWORD was reset", "Login"),
            ("schuhe größe passt", "Größe"),
            ("courier parcel", "Delivery"),
        ):
            assert (router.infer(text).source, router.infer(text).value) == ("edge", answer)
        for text in ("", "zzz", "\U0001f600" * 9, "\0"):
            assert router.infer(text).value == "an answer that is no class"
    card = json.loads((tmp_path / "small.json").read_text(encoding="utf-8"))
    assert card["steps"][0]["step"].startswith(f"distilled from {told['trained']} answers; agreed on 9")
    assert "With 95 % confidence" in card["steps"][0]["step"]
    rest = tickets(400, 1)
    with Router(edge=str(tmp_path / "small.onnx"), cloud=lambda _: "", threshold=told["threshold"]) as router:
        answers = router.infer_many([row.text for row in rest], mode="only_edge")
    accepted = np.array([answer.confidence >= told["threshold"] for answer in answers])
    wrong = np.array([answer.value != row.answer for answer, row in zip(answers, rest, strict=True)])
    assert (wrong & accepted).mean() < 0.05
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'threshold = 0.9\nstate = "state"\n[edge]\npath = "small.onnx"\n'
        + "\n".join(told["policy"]).replace(str(tmp_path) + os.sep, "")
        + '\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/large"\n[audit]\nshare = "5%"\n',
        encoding="utf-8",
    )
    with Router.from_policy(policy) as router:
        assert router.infer("parcel courier", mode="only_edge").value == "Delivery"


def test_answers_that_differ_in_a_mark_are_two_classes(tmp_path):
    """A model that gives one of them agrees with the cloud in no more than those; marks around an answer are no other class."""
    rows = [
        row._replace(answer={0: "Login*", 1: '"Login"', 2: "Login"}[i % 3]) if row.answer == "Login" else row
        for i, row in enumerate(tickets(900))
    ]
    source = table(tmp_path / "log.csv", rows)
    code, said, _ = cli("distil", source, "--from", "csv", "--out", tmp_path / "small.onnx", "--force", "--json")
    told = json.loads(said)
    assert (code, told["classes"]) == (0, 5)
    assert 0.8 < told["agreement"] < 0.95


def test_a_person_reads_what_to_do(tmp_path):
    """Where the model was written, what it is worth, and what the policy needs."""
    source = table(tmp_path / "log.csv", tickets(600))
    code, said, _ = cli("distil", source, "--from", "csv", "--out", tmp_path / "small.onnx", "--max-loss", "5%")
    assert code == 0
    assert "[trial]\nedge = " in said
    assert "shown = false" in said
    code, _, errors = cli("distil", source, "--from", "csv", "--out", tmp_path / "small.onnx")
    assert (code, "exists already" in errors) == (2, True)


def chat(row, **more):
    """A line of a log of chat completions."""
    return {
        "messages": [{"role": "system", "content": "Sort the tickets."}, {"role": "user", "content": row.text}],
        "response": {"model": "large", "choices": [{"message": {"role": "assistant", "content": row.answer}}]},
        **more,
    }


def test_a_log_that_is_cut_off(tmp_path):
    """Half a line, conversations, tool calls, and lines that are something else are counted, and the others used."""
    rows = tickets(500)
    lines = [json.dumps(chat(row)) for row in rows]
    turn = chat(rows[0])
    turn["messages"] += [{"role": "assistant", "content": "Which?"}, {"role": "user", "content": "That."}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = chat(rows[1], response={"model": "large", "choices": [{"message": {"content": None, "tool_calls": [call]}}]})
    lines += [
        json.dumps(turn),
        json.dumps(tools),
        "[]",
        "",
        "\ufffe",
        json.dumps(chat(Example("\ud800", "Login"))),
        lines[0][:-30],
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, said, _ = cli(
        "distil", tmp_path / "log.jsonl", "--from", "openai-log", "--out", tmp_path / "small.onnx", "--max-loss", "5%", "--json"
    )
    told = json.loads(said)
    assert code == 0
    assert told["trained"] + told["held_out"] == 500
    left = "\n".join(told["left_out"])
    for why in ("no request of one text", "an empty text or answer", "no JSON object", "a text with half a character"):
        assert why in left
    assert "order number" not in left, "no text of a request"


def test_inputs_of_a_class_that_may_not_leave(tmp_path):
    """No word of them is in the model; a class that no rule knows is not used either."""
    source, policy = tmp_path / "log.jsonl", tmp_path / "policy.toml"
    policy.write_text(
        'threshold = 0.5\nmode = "only_cloud"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/large"\n'
        '[egress]\nmay_leave = ["ticket"]\nnever_leave = ["medical"]\n',
        encoding="utf-8",
    )
    secret = [Example(f"diagnosis unmistakable n{i}", "Login") for i in range(40)]
    lines = [chat(row, data_class="ticket") for row in tickets(500)] + [
        chat(row, metadata={"data_class": "medical"}) for row in secret
    ]
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    command = ["distil", source, "--from", "openai-log", "--max-loss", "5%", "--json"]
    code, said, _ = cli(*command, "--out", tmp_path / "small.onnx", "--policy", policy)
    assert code == 0
    assert json.loads(said)["policy"][1] == 'edge = "small.onnx"'
    assert "left out, 40: a data class that may not leave" in said
    assert b"diagnosis" not in (tmp_path / "small.onnx").read_bytes()
    code, _, errors = cli(*command, "--out", tmp_path / "other.onnx")
    assert code == 1
    assert "0 different texts" in errors
    assert "left out, 540: a data class that may not leave" in errors


def test_a_routers_own_trace(tmp_path):
    """With inputs it has what the cloud answered; answers of the edge, of a class that may not leave, and without inputs are out."""
    rows, trace = tickets(500), tmp_path / "trace.jsonl"
    answers = {row.text: row.answer for row in rows} | {"of a message": "Login"}

    def routed(inputs, texts, mode="only_cloud"):
        sink = Trace(trace, inputs=inputs)
        with Router(lambda _: ("Login", 0.9), lambda x: answers[text_of(x)], threshold=0.5, trace=sink) as router:
            for text in texts:
                router.infer(text, mode=mode)

    texts = [row.text for row in rows]
    routed(True, [*texts, [{"role": "user", "content": "of a message"}]])
    routed(True, texts[:7], "only_edge")
    routed(False, texts[:9])
    code, said, _ = cli("distil", trace, "--from", "trace", "--out", tmp_path / "small.onnx", "--max-loss", "5%", "--json")
    told = json.loads(said)
    assert (code, told["trained"] + told["held_out"]) == (0, 501)
    left = "\n".join(told["left_out"])
    assert "left out, 7: not answered by the cloud" in left
    assert "left out, 9: no text and answer in the trace" in left


def test_late_answers_in_the_outbox(tmp_path):
    """An answer that came after its trace was written is found by its id, until a callback takes it."""
    rows, trace, state, up = tickets(320), tmp_path / "trace.jsonl", tmp_path / "state", Event()
    answers = {row.text: row.answer for row in rows}

    def cloud(text):
        if not up.is_set():
            raise Unreachable("the link is down")
        return answers[text]

    def routed(rows, mode="prefer_edge"):
        outbox, sink = Outbox(state / "outbox.db", spread_s=0), Trace(trace, inputs=True)
        with Router(lambda _: ("Login", 0.1), cloud, threshold=0.5, trace=sink, offline="queue", outbox=outbox) as router:
            found = [router.infer(row.text, mode=mode) for row in rows]
            wait_for(lambda: outbox.size("answered") == 6 * up.is_set())
        return found

    assert "waiting" in routed(rows[:6])[0].reason
    up.set()
    routed(rows[6:])
    routed(rows[:20], "only_edge")
    command = ["distil", trace, "--out", tmp_path / "small.onnx", "--max-loss", "9%", "--force", "--json"]
    told = json.loads(cli(*command, "--from", "outbox", "--state", state)[1])
    assert told["trained"] + told["held_out"] == 320
    assert [line[:13] for line in told["left_out"]] == ["left out, 20:"]
    told = json.loads(cli(*command, "--from", "trace")[1])
    assert told["trained"] + told["held_out"] == 314
    code, _, errors = cli(*command, "--from", "outbox", "--state", tmp_path)
    assert (code, "there is no outbox" in errors, (tmp_path / "outbox.db").exists()) == (1, True, False)
    assert cli(*command, "--from", "outbox")[0] == 2


def test_audited_requests(tmp_path):
    """They are of all traffic: the cloud's answers, those of the edge that it agreed with, and others that count as wrong."""
    rows, trace, state = tickets(300, noise=0), tmp_path / "trace.jsonl", tmp_path / "state"
    answers = {row.text: (row.answer, i) for i, row in enumerate(rows)}

    def edge(text):  # each second answer is accepted, and each tenth of these is wrong
        answer, i = answers[text]
        return ("Other" if i % 20 == 0 else answer), 0.1 if i % 2 else 0.9

    def routed(share):
        audit, sink = Audit(share=share, scene=1), Trace(trace, inputs=True)
        with Router(edge, lambda text: answers[text][0], threshold=0.5, audit=audit, state=state, trace=sink) as router:
            for row in rows:
                router.infer(row.text)
                wait_for(lambda: not router.engine.auditor.jobs.busy)

    routed(0.0)
    command = ["distil", trace, "--from", "audits", "--out", tmp_path / "small.onnx", "--max-loss", "20%", "--json"]
    assert "there are no audits" in cli(*command, "--state", state)[2]
    routed(1.0)
    code, said, errors = cli(*command, "--state", state)
    told = json.loads(said)
    assert (code, told["classes"], errors) == (0, 4, "")
    assert 285 < told["trained"] + told["held_out"] < 300, "of the wrong ones only those that are held out"
    assert "left out, 300: not audited" in told["left_out"][0]
    assert "15 audits found an answer that is not stored" in told["notes"][0]
    assert told["agreement"] < 0.99


def test_chats_reach_the_model_made_of_them(tmp_path, caplog):
    """A text model takes the last user message of a chat or a request, behind a router, in a hidden trial, and at a gateway."""
    path, question = tmp_path / "small.onnx", {"role": "user", "content": "courier parcel"}
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(json.dumps(chat(row)) for row in tickets(500)), encoding="utf-8")
    assert cli("distil", log, "--from", "openai-log", "--out", path, "--max-loss", "5%")[0] == 0
    turns = [
        {"role": "system", "content": "Sort."},
        {"role": "user", "content": "password"},
        {"role": "assistant", "content": "?"},
    ]
    parts = [{"type": "text", "text": "courier parcel"}]
    chats = [
        [*turns, question],
        {"model": "m", "messages": [question]},
        [{**question, "content": parts}],
        {"prompt": "courier parcel"},
    ]
    with Router(str(path), mode="only_edge") as router:
        assert [router.infer(x).value for x in chats] == ["Delivery"] * 4
        answers = router.infer_many([*chats, "courier parcel"])
        assert {a.value for a in answers} == {"Delivery"}
        for x in (turns[:1], {"messages": [{**question, "content": ""}]}):
            with pytest.raises(BadInput, match="no user message with a text"):
                router.infer(x)
    with serving(AsyncRouter(str(path), mode="only_edge")) as url:
        body = json.dumps({"model": "edgeroute", "messages": chats[0]}).encode()
        head = {"content-type": "application/json"}
        with urlopen(Request(f"{url}/v1/chat/completions", body, head), timeout=LONG) as reply:
            assert json.load(reply)["choices"][0]["message"]["content"] == "Delivery"
    trial, audit = Trial(edge=str(path), shown=False), Audit(share=1)
    with Router(lambda _: ("Login", 0.9), lambda _: "Delivery", threshold=0.5, trial=trial, audit=audit) as router:
        router.infer(chats[0])
        wait_for(lambda: any(s.target == "edge-trial" and s.compared + s.failed for s in router.stats().shadows))
        (shadow,) = (s for s in router.stats().shadows if s.target == "edge-trial")
        assert (shadow.failed, shadow.compared) == (0, 1)
        router.infer(turns[:1])
        wait_for(lambda: any(s.failed for s in router.stats().shadows))
    assert "edge-trial" in caplog.text
    assert "BadInput" in caplog.text
    assert "password" not in caplog.text


@pytest.mark.parametrize(
    ("place", "used"),
    [
        ({"data_class": "ticket"}, True),
        ({"data_class": ["ticket"]}, True),
        ({"data_class": ["ticket", "medical"]}, False),
        ({"data_class": "", "metadata": {"data_class": "medical"}}, False),
        ({"data_class": "ticket", "metadata": {"data_class": "medical"}}, False),
        ({"metadata": '{"data_class": "medical"}'}, False),
        ({"data_class": {"name": "ticket"}}, False),
        ({"request": {"data_class": "medical"}}, False),
        ({"request": {"metadata": {"data_class": "medical"}}}, False),
        ({"request": {"body": {"metadata": {"data_class": "medical"}}}}, False),
        ({"request": {"metadata": {"data_class": "ticket"}}}, True),
        ({}, False),
        ({"data_class": None, "metadata": {"tags": ["medical"]}}, False),
    ],
)
def test_where_a_record_names_its_class(tmp_path, place, used):
    """Beside the request, in it, and in metadata; once a class is declared, a record without one is not used."""
    line = chat(Example("parcel", "Delivery"))
    request = {"messages": line.pop("messages"), **place.get("request", {})}
    if "body" in request:
        request = {"body": {**request["body"], "messages": request["messages"]}}
    source, left_out = tmp_path / "log.jsonl", LeftOut()
    source.write_text(json.dumps({**line, **place, "request": request}), encoding="utf-8")
    for rules in (
        Egress(may_leave=["ticket"], never_leave=["medical"]).rules,
        Egress(never_leave=["medical"], may_leave=["ticket"], unknown_class="allow").rules,
    ):
        named = "data_class" in json.dumps({**place, "data_class": place.get("data_class") or 0}).replace('"data_class": 0', "")
        allowed = used or (rules.unknown_class == "allow" and not named)
        assert len(read_examples([source], "openai-log", rules, left_out)) == allowed
    assert all("may not leave" in left.why for left in left_out.all())
    assert len(left_out.all()) == (not used)
    rules = Egress(may_leave=["ticket"], default_class="ticket").rules
    assert len(read_examples([source], "openai-log", rules, LeftOut())) == (used or not named)


def test_texts_that_differ_in_numbers(tmp_path):
    """They are in one part, and count as one: few templates give no guarantee, however often they were sent."""
    rng = np.random.default_rng(0)
    rows = [
        row._replace(text=f"{row.text.replace('n', 'x')} number {rng.integers(10**6):,}")
        for row in tickets(40)
        for _ in range(20)
    ]
    done = distil(rows, tmp_path / "small.onnx", max_loss=0.05)
    assert "too few" in done.why
    assert done.trained % 20 == done.held_out % 20 == 0
    many = distil([row._replace(text=f"{row.text} {i}") for row in tickets(500) for i in range(2)], tmp_path / "small.onnx")
    assert "groups" in many.guarantee


def test_warnings_of_the_calibration(tmp_path):
    """They are printed, as of answers that the model gives with one and the same score."""
    rows = [
        Example(f"{word} {'ab'[i % 2] * 2} {chr(97 + i % 26)}{chr(97 + i // 26)}", word)
        for i in range(600)
        for word in ("yes", "no")
    ]
    code, _, errors = cli(
        "distil", table(tmp_path / "log.csv", rows), "--from", "csv", "--out", tmp_path / "small.onnx", "--max-loss", "5%"
    )
    assert code == 0
    assert "of the examples" in errors


def test_a_word_of_one_text_is_not_kept(tmp_path):
    """Such as a name or a number; it could not help with others."""
    rows = tickets(600)
    done = distil([*rows, Example("hello my name is Rumpelstilzchen", "Login")], tmp_path / "small.onnx", max_loss=0.05)
    assert done.out
    model = (tmp_path / "small.onnx").read_bytes()
    assert b"parcel" in model
    assert b"rumpelstilzchen" not in model.lower()


def test_equal_texts_are_in_one_part(tmp_path):
    """Apart from case, spaces and punctuation; so nothing of the training is among the examples of the certificate."""
    rows = tickets(450)
    several = [again for row in rows for again in (row, row._replace(text=f"  {row.text.upper()}! "), row)]
    done = distil(several, tmp_path / "small.onnx", max_loss=0.06)
    assert done.trained + done.held_out / 3 == 450
    assert "groups" in done.guarantee


def test_the_order_of_the_log_changes_nothing(tmp_path):
    """The parts are by the texts."""
    rows = tickets(400)
    one, two = (distil(order, tmp_path / f"{len(order)}.onnx", max_loss=0.06, force=True) for order in (rows, rows[::-1]))
    assert (one.trained, one.held_out, one.bytes) == (two.trained, two.held_out, two.bytes)
    assert one.agreement == pytest.approx(two.agreement, abs=0.02)


def test_answers_that_are_no_classes(tmp_path):
    """Free texts, one answer for all, and too few are refused, with the figures; no text is quoted."""
    rows = tickets(5000)
    for examples, message in (
        (
            [row._replace(answer=f"answer {i} to {row.text}") for i, row in enumerate(rows)],
            r"no classes: 5,000 texts have 5,000 different answers, and 0 %",
        ),
        ([row._replace(answer="Login") for row in rows[:300]], "all answers are the same"),
        (rows[:150], "150 different texts .* at least 200 are needed"),
        ([], "0 different texts"),
        (rows[:1] * 400, "1 different texts"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            distil(examples, tmp_path / "small.onnx")
        assert "n17" not in str(caught.value)
    with pytest.raises(BadInput, match="no words in common"):
        distil([Example(chr(0x4E00 + i), "ab"[i % 2]) for i in range(400)], tmp_path / "small.onnx")
    with pytest.raises(PolicyError, match=r"must end in \.onnx"):
        distil(rows, tmp_path / "small.json")
    assert [*tmp_path.iterdir()] == []


def test_a_model_that_is_not_worth_it(tmp_path):
    """Answers that do not follow from the texts, and too few examples for the guarantee: it says why, and writes nothing."""
    rng = np.random.default_rng(0)
    rows = [row._replace(answer=str(rng.integers(3))) for row in tickets(600)]
    source = table(tmp_path / "log.csv", rows)
    code, said, _ = cli("distil", source, "--from", "csv", "--out", tmp_path / "small.onnx", "--json")
    assert code == 4
    assert "would defer 9" in json.loads(said)["why"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    done = distil(rows, tmp_path / "small.onnx", force=True)
    assert done.why
    assert (tmp_path / "small.onnx").exists()
    done = distil(tickets(300), tmp_path / "few.onnx", max_loss=0.001)
    assert "too few for a guarantee of 0.1 %" in done.why
    assert not (tmp_path / "few.onnx").exists()


def test_rare_answers_are_deferred_or_counted(tmp_path):
    """An answer of fewer than five texts is no class, and its texts stay among those of the certificate."""
    rows = tickets(600)
    done = distil(
        [*rows, *[Example(f"a strange parcel{i} number", f"Other {i}") for i in range(30)]],
        tmp_path / "small.onnx",
        max_loss=0.08,
    )
    assert done.classes == 4
    assert done.trained + done.held_out < 630
    assert done.held_out > 240


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    """No half of a model is left where it was to be; the next run writes it."""
    source = table(tmp_path / "log.csv", tickets(600))
    (tmp_path / "out").mkdir()
    command = [
        sys.executable,
        "-m",
        "edgeroute",
        "distil",
        str(source),
        "--from",
        "csv",
        "--out",
        str(tmp_path / "out" / "small.onnx"),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = monotonic() + LONG
        while not [*(tmp_path / "out").glob(".small.*/made")] and process.poll() is None:
            assert monotonic() < until
        with workplace(tmp_path / "out" / "small.onnx"):
            assert len([*(tmp_path / "out").glob(".small.*/made")]) == 2, "one is of a process that runs"
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    assert not (tmp_path / "out" / "small.onnx").exists()
    assert not (tmp_path / "out" / "small.json").exists()
    code, *_ = cli(*command[3:], "--max-loss", "5%")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["small.json", "small.onnx"]
    with Router(edge=command[-1], cloud=lambda _: "", threshold=0.5) as router:
        assert router.infer("parcel courier", mode="only_edge").value == "Delivery"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"text,answer\n\xff\xfe\x00", b'text,answer\n"' + b"x" * 200_000])
def test_tables_that_are_none(tmp_path, content):
    """Empty, without the columns, of bytes, with one huge cell."""
    (tmp_path / "log.csv").write_bytes(content)
    code, _, errors = cli("distil", tmp_path / "log.csv", "--from", "csv", "--out", tmp_path / "small.onnx")
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert not Path(tmp_path / "small.onnx").exists()


def test_without_the_converter(tmp_path, monkeypatch):
    """It says what to install, before it trains."""
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(RuntimeMissing, match="pip install scikit-learn skl2onnx"):
        distil(tickets(300), tmp_path / "small.onnx")
    assert [*tmp_path.iterdir()] == []
