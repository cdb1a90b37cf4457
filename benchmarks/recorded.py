"""Loads sets of requests that others recorded with two models: RouterArena, RouteLLM, rational-llm-cascades, and any table.

None is part of the project: each file is one that its user has fetched.
"""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from edgeroute.confidence import crossfit, fit, prompt_features
from edgeroute.tools.replay.logs import Read, read_pairs

Array = np.ndarray[Any, np.dtype[Any]]
NUMBERS = frozenset({"dtype", "ndarray", "scalar", "_reconstruct", "_frombuffer", "float64", "float32", "bool_"})
"""Names of numpy that a pickle of numbers needs."""
ROUGE = 20
"""XSum: the sum of a summary's ratings from which it counts as correct, as in that repository's notebooks."""


class Task(NamedTuple):
    """Requests that an edge and a cloud answered, as recorded."""

    name: str
    by: str
    """What the score is."""
    score: Array
    """[n], higher where the edge is surer."""
    edge: Array
    """[n], how correct, 0..1."""
    cloud: Array
    agree: Array | None = None
    """[n], True where both give the same answer; None: not known."""


class Broken(Exception):
    """A file is not of the shape that its repository publishes."""


def routerarena(paths: Sequence[Path]) -> Task:
    """Read two of its `cached_results/MODEL.jsonl`, joined by `global_index`; or a table (csv, csv.gz) with `question` and MODEL_score twice.

    Scores are 0..1, and partial ones occur; what is below 0 is 0. The weaker model is the edge. Raises Broken for other files.
    """
    if [path.suffix for path in paths] == [".jsonl"] * 2:
        results = [_results(path) for path in paths]
        both = [index for index in results[0] if index in results[1]]
        texts = [results[0][index][0] for index in both]
        scores = {path.stem: np.array([one[index][1] for index in both]) for path, one in zip(paths, results, strict=True)}
    else:
        rows = [row for path in paths for row in _table(path)]
        names = [name for name in rows[0] if name.endswith("_score") and "question" in rows[0]]
        texts = [row["question"] for row in rows if names]
        scores = {name.removesuffix("_score"): np.array([float(row[name]) for row in rows]) for name in names}
    if len(scores) != 2 or not texts:
        raise Broken(
            f"{paths[0]}: expected two files of cached_results, or a table with question and two columns that end in _score"
        )
    (edge, a), (cloud, b) = sorted(
        ((name, np.clip(score, 0, 1)) for name, score in scores.items()), key=lambda one: one[1].mean()
    )
    return _by_text(f"RouterArena ({edge}, {cloud})", texts, a, b)


def _results(path: Path) -> dict[str, tuple[str, float]]:
    """Return `global_index` -> question and score, of the lines that have been evaluated; raise Broken, with its number, for another line."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            one = json.loads(line)
            if one["evaluation_result"] is not None:
                found[one["global_index"]] = one["question"], float(one["evaluation_result"]["score"])
        except (KeyError, TypeError, ValueError) as e:  # noqa: PERF203 - with the number of the line
            raise Broken(f"{path}:{number}: no line of RouterArena's cached results: {type(e).__name__}: {e}") from e
    return found


def routellm(paths: Sequence[Path]) -> Task:
    """Read tables of routellm/evals/{mmlu/responses,gsm8k}: `prompt`, and a column of True and False for each of two models.

    The weaker model is the edge. Raises Broken for other columns.
    """
    rows = [row for path in paths for row in _table(path)]
    names = [name for name, value in rows[0].items() if name != "prompt" and value in {"True", "False"}]
    if len(names) != 2 or "prompt" not in rows[0]:
        raise Broken(f"{paths[0]}: expected columns prompt and two of True and False")
    right = [np.array([row[name] == "True" for row in rows], float) for name in names]
    (edge, a), (cloud, b) = sorted(zip(names, right, strict=True), key=lambda one: one[1].mean())
    return _by_text(f"RouteLLM {paths[0].stem} ({edge}, {cloud})", [row["prompt"] for row in rows], a, b)


def cascades(paths: Sequence[Path], edge: str = "", cloud: str = "") -> Task:
    """Read pickles of rational-llm-cascades (`benchmarks/data/*/chain_results`) without running any code of theirs."""
    found = [_chain(path, edge, cloud) for path in paths]
    parts = (np.concatenate(part) for part in zip(*(one for one, _ in found), strict=True))
    return Task(f"{paths[0].stem.split('_full_')[0]} ({found[0][1]})", "its own confidence", *parts)


def _chain(path: Path, edge: str, cloud: str) -> tuple[tuple[Array, Array, Array], str]:
    """Return the confidence of the edge and the correctness of both models in one pickle, and the models' names.

    An empty name is the first model, or the last. Nothing in the file is run. Raises Broken for another shape.
    """
    try:
        with path.open("rb") as file:
            found = _Inert(file).load()
        correct = found["model_correctness"]
        models = [*correct]
        edge, cloud = edge or models[0], cloud or models[-1]
        confidence = np.array([np.nan if x is None else float(x) for x in found["raw_confidences"][edge]])
        a, b = (np.array([_correct(x) for x in correct[name]]) for name in (edge, cloud))
    except OSError:
        raise
    except Exception as e:
        raise Broken(f"{path}: not of the shape of that repository's chain results: {type(e).__name__}: {e}") from e
    if not confidence.shape == a.shape == b.shape or not a.size:
        raise Broken(f"{path}: {confidence.size} confidences, and answers to {a.size} and {b.size} requests")
    return (confidence, a, b), f"{edge}, {cloud}"


def outcomes(path: Path) -> Task:
    """Read a table as `edgeroute replay --from csv` reads it, or lines of JSON: confidence, edge_score, cloud_score, and perhaps agree.

    Raises Broken for lines of another shape, or if no request has a confidence.
    """
    if path.suffix != ".jsonl":
        pairs = read_pairs([path], "csv", Read())
        cloud = np.ones_like(pairs.edge) if pairs.cloud is None else pairs.cloud
        return Task(path.stem, "its confidence", pairs.confidence, pairs.edge, cloud)
    found, agree = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            one = json.loads(line)
            found.append([np.nan if one["confidence"] is None else one["confidence"], one["edge_score"], one["cloud_score"]])
            agree.append(one.get("agree"))
            if not all(0 <= score <= 1 for score in found[-1][1:]):
                raise ValueError("a score is not in 0..1")  # noqa: TRY301 - with the number of the line
        except (AttributeError, KeyError, TypeError, ValueError) as e:  # noqa: PERF203 - with the number of the line
            raise Broken(f"{path}:{number}: expected confidence, edge_score and cloud_score: {type(e).__name__}: {e}") from e
    if not found:
        raise Broken(f"{path}: no rows")
    score, edge, cloud = np.array(found, float).T
    if np.isnan(score).all():
        raise Broken(f"{path}: no request has a confidence")
    return Task(path.stem, "its confidence", score, edge, cloud, None if None in agree else np.array(agree, bool))


def clinc(path: Path) -> Task:
    """Read CLINC150's validation and test queries, answered by two classifiers by ridge regression, taught here on its training queries.

    The edge has 1,024 hashed words and 40 queries of each intent, the cloud 4,096 words and pairs and all queries. Raises Broken
    without the columns.
    """
    rows = [row for row in _table(path) if row.get("intent", "oos") != "oos"]
    if not rows or not {"split", "text"} <= rows[0].keys():
        raise Broken(f"{path}: expected columns split, text and intent")
    y = np.unique([row["intent"] for row in rows], return_inverse=True)[1]
    train = np.array([row["split"] == "train" for row in rows])
    few = np.zeros(len(rows), bool)
    for intent in range(y.max() + 1):
        few[np.flatnonzero(train & (y == intent))[:40]] = True
    answers = []
    for width, pairs, taught in ((1024, False, few), (4096, True, train)):
        x = np.array([_hashed(row["text"], width, pairs=pairs) for row in rows], np.float32)
        targets = np.eye(y.max() + 1, dtype=np.float32)[y[taught]]
        weights = np.linalg.solve(x[taught].T @ x[taught] + np.eye(width, dtype=np.float32), x[taught].T @ targets)
        answers.append(x[~train] @ weights)
    edge, cloud = (values.argmax(1) for values in answers)
    top = np.sort(answers[0], 1)
    right = [(side == y[~train]) * 1.0 for side in (edge, cloud)]
    return Task("CLINC150, two linear classifiers", "margin", (top[:, -1] - top[:, -2]).astype(float), *right, edge == cloud)


def _hashed(text: str, width: int, *, pairs: bool) -> Array:
    """Return the counts of hashed words, and of pairs of them, scaled to a vector of length 1."""
    words = re.findall(r"\w+", text.lower())
    terms = words + ([" ".join(two) for two in pairwise(words)] if pairs else [])
    x = np.bincount([crc32(term.encode()) % width for term in terms] or [0], minlength=width).astype(np.float32)
    return x / np.sqrt(x @ x)


def _by_text(name: str, texts: Sequence[str], edge: Array, cloud: Array) -> Task:
    """Return the set with scores of `prompt_features`, fitted to what the cloud gains; a request's score is by a fit to others."""
    table = [prompt_features(text) for text in texts]

    def of(rows: Array) -> list[dict[str, Any]]:
        return [table[i] for i in rows]

    scores = crossfit(lambda rows: lambda others: fit(of(rows), edge[rows], cloud[rows]).many(of(others)), len(table))
    return Task(name, "`prompt_features`, cross-fitted", scores, edge, cloud)


def _correct(x: object) -> float:
    """Return True if an answer is correct; of a summary with several ratings their sum decides."""
    return float(sum(x.values()) >= ROUGE) if isinstance(x, dict) else float(x)  # type: ignore[arg-type]


def _table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a csv or csv.gz, whose fields may have 16 MiB; raise Broken if there are none."""
    limit = csv.field_size_limit(1 << 24)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        try:
            rows = [*csv.DictReader(file)]
        finally:
            csv.field_size_limit(limit)
    if not rows:
        raise Broken(f"{path}: no rows")
    return rows


class _Nothing:
    """In place of any class or function that a pickle names: takes whatever it is built from, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        """Ignores its arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignores its state."""

    def __setitem__(self, *_: object) -> None:
        """Ignores an item."""

    def append(self, _: object) -> None:
        """Ignores an item."""

    extend = add = append


class _Inert(pickle.Unpickler):
    """Reads a pickle's plain values and numpy's numbers; whatever else it names is `_Nothing`, and no function is called."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names that hold numbers."""
        if module.partition(".")[0] == "numpy" and name in NUMBERS:
            return super().find_class(module, name)
        return _Nothing
