"""`edgeroute calibrate` on lines of JSON: prompts with two models' answers, graded or not, and prompts that the models answer."""

from __future__ import annotations

import json
import random
import re

import pytest
from commands import cli

from edgeroute import BadInput, Prefix, Router
from edgeroute.confidence import quantile
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.tools.cli.prompt_reading_and_grading import read_prompts

pytest.importorskip("xllamacpp")
tiny_gguf = pytest.importorskip("tiny_gguf")

POLICY = """
threshold = {threshold}
[edge]
path = "tiny.gguf"
max_tokens = 6
decide_after = {tokens}
[cloud]
url = "http://127.0.0.1:9/v2/models/m"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the tiny model."""
    folder = tmp_path_factory.mktemp("prompts")
    tiny_gguf.write(folder / "tiny.gguf")
    return folder


def policy(folder, tokens=2, threshold="0.5"):
    """Writes a policy whose edge is decided by so many tokens."""
    path = folder / f"policy-{tokens}.toml"
    path.write_text(POLICY.format(tokens=tokens, threshold=threshold))
    return path


def written(folder, lines, name="prompts.jsonl"):
    """Writes lines of JSON."""
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def examples(n, seed=0):
    """Prompts whose answers' first tokens tell how good they are, and the last one nothing."""
    draw = random.Random(seed)
    for k in range(n):
        sure = draw.random()
        logprobs = [-2 * (1 - sure), -2 * (1 - sure) - 0.1, -9 * draw.random()]
        yield {
            "messages": [{"role": "user", "content": f"question {k}"}],
            "edge": {"text": f"answer {k}", "logprobs": logprobs},
            "cloud": f"better answer {k}",
            "grade": {"edge": 1 - 0.3 * (1 - sure) ** 2, "cloud": 1.0},
        }


def test_graded_answers_are_scored_by_their_first_tokens(folder):
    """No model runs. The certificate holds for that policy, and for no other number of tokens."""
    lines = list(examples(600))
    path = policy(folder)
    code, out, err = cli("calibrate", "-p", path, "-d", written(folder, lines), "--max-loss", "2%", "--metric", "F1", "--json")
    assert code == 0, err
    told = json.loads(out)["certificate"]
    assert told["score"] == "quantile of the first 2 tokens"
    scores = [Prefix(2)(line["edge"]["logprobs"]) for line in lines]
    deferred = sum(score < told["threshold"] for score in scores) / len(scores)
    assert told["deferral_rate"] == pytest.approx(deferred)
    assert 0 < deferred < 0.9
    for tokens, good in ((2, True), (3, False)):
        with Router.from_policy(policy(folder, tokens, '"certificate.json"')) as router:
            assert router.engine.snapshot.targets[0].label.startswith("uncalibrated") is not good


def test_a_label_and_the_clouds_answer_are_grades(folder):
    """0 or 1: equal to the label, or, without one, to what the cloud says."""
    for with_label in (True, False):
        lines = []
        for k, line in enumerate(examples(400, seed=1)):
            sure = quantile(line["edge"]["logprobs"][:2]) > 0.3
            edge = "yes" if sure or k % 2 else "no"
            lines.append(
                {"prompt": f"q {k}", "edge": {**line["edge"], "text": edge}, "cloud": "yes"}
                | ({"label": "yes"} if with_label else {})
            )
        code, out, err = cli("calibrate", "-p", policy(folder), "-d", written(folder, lines), "--max-loss", "5%", "--json")
        assert code == 0, err
        assert json.loads(out)["certificate"]["accuracy"]["cloud"] == 1.0


def test_without_log_probabilities_the_edge_runs(folder):
    """And must answer as it was graded."""
    path = policy(folder)
    with Router.from_policy(path) as router:
        answers = {f"question {k}": router.infer(f"question {k}", mode="only_edge") for k in range(60)}
    lines = [
        {"prompt": prompt, "edge": answer.value, "grade": 0.9 + k % 2 / 10} for k, (prompt, answer) in enumerate(answers.items())
    ]
    arguments = ["calibrate", "-p", path, "-d", written(folder, lines), "--max-defer", "50%", "--sure", "average", "--json"]
    code, out, err = cli(*arguments)
    assert code == 0, err
    threshold = json.loads(out)["certificate"]["threshold"]
    assert 0.3 < sum(answer.confidence < threshold for answer in answers.values()) / 60 <= 0.5
    lines[7]["edge"] = "something else"
    written(folder, lines)
    code, _, err = cli(*arguments)
    assert (code != 0, "prompts.jsonl:8: the edge model now gives another answer than the graded one" in err) == (True, True), err


def test_prompts_alone_are_answered_by_the_models(folder):
    """As any other inputs: here the edge alone, for `--max-defer`."""
    lines = [{"prompt": f"question {k}", "group": k // 2} for k in range(60)]
    code, out, err = cli("calibrate", "-p", policy(folder), "-d", written(folder, lines), "--max-defer", "50%", "--json")
    assert code == 0, err
    assert json.loads(out)["certificate"]["n"] == 60


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "expected a line of JSON"),
        ("[1]", "expected a mapping"),
        ('{"edge": "a", "grade": 1}', 'expected "prompt"'),
        ('{"prompt": "", "edge": "a", "grade": 1}', 'expected "prompt"'),
        ('{"prompt": "a", "edge": "a", "grade": 1.5}', "from 0 to 1, not 1.5"),
        ('{"prompt": "a", "edge": "a", "grade": "good"}', "must be a number, not 'good'"),
        ('{"prompt": "a", "edge": "a"}', "no grade of the edge's answer"),
        ('{"prompt": "a", "edge": 7, "grade": 1}', "edge must be an answer's text"),
        ('{"prompt": "a", "edge": {"choices": []}, "grade": 1}', "edge is no completion"),
        ('{"prompt": "a", "edge": {"text": "a", "logprobs": ["x"]}, "grade": 1}', "logprobs must be natural logarithms"),
        ('{"prompt": "a", "edge": "a", "grade": {"edge": 1, "cloud": 1}}', "no grade of the cloud's"),
        ('{"prompt": "a", "edge": "a", "grade": 1, "group": "g"}', "there is no group"),
    ],
)
def test_a_line_that_is_wrong_is_named(folder, line, said):
    """With its number."""
    path = folder / "wrong.jsonl"
    path.write_text('{"prompt": "good", "edge": {"text": "a", "logprobs": [-0.1]}, "grade": 1}\n\n' + line + "\n")
    with pytest.raises(BadInput, match=re.escape(said)) as told:
        read_prompts([path], 1)
    assert "wrong.jsonl:" in str(told.value)


def test_a_look_knows_that_all_conversations_stay(tmp_path):
    """As the router does: what was private is not known any more."""
    tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "state").mkdir()
    path = policy(tmp_path, threshold="0.999")
    path.write_text(f'state = "state"\n{path.read_text()}')
    lines = written(tmp_path, [{"messages": [{"role": "user", "content": "question"}]}])
    code, out, err = cli("decide", "-p", path, lines)
    assert (code, "would leave the device" in out) == (0, True), err
    (tmp_path / "state" / "conversations.db.corrupt-1").touch()
    assert "would stay on the device" in cli("decide", "-p", path, lines)[1]


def test_examples_are_no_conversations(tmp_path):
    """What the edge answers for a calibration binds no later conversation: nothing is remembered of it."""
    tiny_gguf.write(tmp_path / "tiny.gguf")
    path = policy(tmp_path)
    path.write_text(f'state = "state"\n{path.read_text()}')
    lines = [{"prompt": f"question {k}", "grade": 0.9 + k % 2 / 10} for k in range(30)]
    code, _, err = cli("calibrate", "-p", path, "-d", written(tmp_path, lines), "--max-defer", "50%", "--sure", "average")
    assert code == 0, err
    kept = tmp_path / "state" / "conversations.db"
    assert not kept.exists() or Database(kept, "", durable=False).read("SELECT count(*) FROM digests", ()) == [(0,)]
