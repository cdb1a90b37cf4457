"""Distillation: a text classifier trained on a cloud's recorded answers, certified on a part that it has not seen; an ONNX file.

Texts that differ only in case, spaces, numbers and punctuation at their ends are in one part together, so the certificate's
examples are never those of the training; they count as one. The model is a logistic regression of tf-idf of words and pairs, an
ONNX file with int8 weights.
"""

from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from edgeroute.confidence.certificate import Certificate, NotEnough
from edgeroute.confidence.output_forms_labels_and_comparison import label_form, same
from edgeroute.confidence.score_before_run import text_of
from edgeroute.core.policy_egress_and_options import Permit, Rules, permit
from edgeroute.edge.onnx import OnnxModel
from edgeroute.errors import BadInput, PolicyError
from edgeroute.router.router import Router
from edgeroute.stores.outbox import Outbox
from edgeroute.system.late_imports_and_plugins import import_late, import_needed
from edgeroute.system.untrusted_files import open_file, parse_json
from edgeroute.tools.bounded_lines_and_rows import RowLines
from edgeroute.tools.comparison_inputs_and_estimators import as_errors
from edgeroute.tools.compress.onnx_graphs_and_result_files import package, put, workplace
from edgeroute.tools.convert_models_to_onnx import by_skl2onnx, check_targets, write_card
from edgeroute.tools.data_classes_of_records import data_classes
from edgeroute.tools.measure.certification_and_verdicts import agreements
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate
from edgeroute.tools.replay.logs.answer_log_parsers_and_digests import Options, Skip, text_form
from edgeroute.tools.replay.logs.answer_pairs_and_samples import READERS, LeftOut, lines, record_of
from edgeroute.tools.replay.read_and_pack_traces import TraceRecords

CLASS_TEXTS = 5  # fewest different texts with an answer that is a class
# Fewest different texts; the least share of answers that are classes; the most classes.
LEAST_TEXTS, LEAST_COMMON, MOST_CLASSES = 200, 0.5, 1000
TRAINED = 0.6  # share of the texts to train on
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
LONGEST = 20_000  # most characters of a text, or of an answer; longer ones are left out
WORTH = 0.9  # largest share of requests that a model worth a trial defers
TERMS, STRENGTH = 20_000, 50.0  # most words and pairs of a model; inverse of the ridge penalty of the regression


class Example(NamedTuple):
    """Text with the cloud's answer."""

    text: str
    answer: str
    known: bool = True  # False: the cloud's answer is another than this one, and not known


class Distilled(NamedTuple):
    """Result of `distil`."""

    out: str  # path of the model; empty: it is not worth a trial, and nothing was written
    why: str  # reason why it is not worth a trial; empty: it is
    classes: int
    trained: int  # examples of the training
    held_out: int  # examples of the certificate
    agreement: float  # share of the held-out examples on which the model answers as the cloud did
    deferral: float  # share of them below the certified threshold
    threshold: float | None  # None: no threshold is certified
    guarantee: str
    bytes: int
    left_out: tuple[str, ...]  # reasons why records were left out, with their numbers
    notes: tuple[str, ...]  # warnings of the calibration


def read_examples(paths: Sequence[Path], kind: str, rules: Rules, left_out: LeftOut, state: Path = Path()) -> list[Example]:
    """Read the examples of logs or tables; a record that cannot be used is left out, and counted with its reason.

    Args:
        paths: the files.
        kind: `openai-log`, `litellm-log`, `langfuse-log`; `trace`, of a router whose `Trace` has inputs; `outbox`, such traces
            with the late answers that wait in the outbox for a callback; `audits`, the audited requests of such traces; or
            `csv`, with the columns text and answer.
        rules: records whose data class these do not permit are left out; once any is declared, those without one, too.
        left_out: counts them.
        state: state folder, for `outbox` and `audits`.

    Raises:
        BadInput: a file cannot be read, or is not there.
        StoreError: the outbox or the audit log cannot be read.
    """
    if kind in {"trace", "outbox", "audits"}:
        late = _late_answers(state) if kind == "outbox" else {}
        records = _traced(paths, left_out, late, agreements(state / "audit.jsonl") if kind == "audits" else None)
    else:
        records = _rows(paths) if kind == "csv" else _records(paths, READERS[kind], left_out)
    examples = []
    for place, record, example in records:
        why = _unusable(example)
        named = [*data_classes(record)]
        if not all(
            (name is None or isinstance(name, str)) and isinstance(permit(rules, name), Permit) for name in named or [None]
        ):
            why = "a data class that may not leave" if named else "no data class, which may not leave"
        if why:
            left_out.add(why, place)
        else:
            examples.append(example)
    return examples


def _asked(request: Mapping[str, Any]) -> str:
    """Return the text of a request, without its system messages.

    Raises:
        TypeError: it is a conversation of several turns, or has no text.
    """
    messages = request.get("messages")
    if not isinstance(messages, list):
        return text_of(request)
    turns = [m for m in messages if isinstance(m, Mapping) and m.get("role") not in {"system", "developer"}]
    if len(turns) != 1:
        raise TypeError("a conversation")
    return text_of(turns)


def _unusable(example: Example) -> str:
    """Return the reason why an example cannot be used: empty, too long, or not UTF-8; empty if it can be."""
    if not example.text.strip() or not example.answer.strip():
        return "an empty text or answer"
    if max(len(example.text), len(example.answer)) > LONGEST:
        return f"a text or answer of more than {LONGEST:,} characters"
    try:
        (example.text + example.answer).encode()
    except UnicodeEncodeError:
        return "a text with half a character"
    return ""


def _records(paths: Sequence[Path], reader: Callable[..., Any], left_out: LeftOut) -> Iterator[tuple[str, Any, Example]]:
    """Yield place, record and example of each line of logs; others are counted. An answer with tool calls is empty."""
    for place, raw in lines(paths):
        try:
            record = record_of(raw)
            exchange = reader(record, Options())
            example = Example(_asked(exchange.request), "" if exchange.calls else exchange.text.strip())
        except Skip as e:  # noqa: PERF203 - a line must not lose the others
            left_out.add(str(e), place)
        except (TypeError, RecursionError):
            left_out.add("no request of one text", place)
        else:
            yield place, record, example


def _late_answers(state: Path) -> dict[str, Any]:
    """Return the answers of the outbox in a state folder that wait for a callback, by their requests' ids.

    Raises:
        BadInput: there is no outbox.
        StoreError: it cannot be read.
    """
    path = state / "outbox.db"
    if not path.exists():  # opening it would create one
        raise BadInput(f"{path}: there is no outbox")
    with closing(Outbox(path, ttl_s=inf)) as box:  # the router expires entries
        return {entry["id"]: entry["value"] for entry in box.export() if entry["state"] == "answered"}


def _traced(
    paths: Sequence[Path], left_out: LeftOut, late: Mapping[str, Any], audits: Mapping[str, Mapping[str, bool]] | None
) -> Iterator[tuple[str, Any, Example]]:
    """Yield place, record and example of each trace of an accepted answer of a cloud; others are counted.

    Args:
        paths: the traces.
        left_out: counts the others.
        late: answers that came after their traces were written, by id.
        audits: by id, whether edges agreed with the cloud: only these requests are used, also where an edge answered.
    """
    for path in paths:
        for number, record in enumerate(TraceRecords(path), 1):
            place, by, name = f"{path}:{number}", str(record.get("answered_by")), str(record.get("id"))
            sides, value, known = {leg.get("leg"): leg.get("side") for leg in record.get("plan") or ()}, record.get("value"), True
            if audits is not None and name not in audits:
                left_out.add("not audited", place)
                continue
            if name in late:
                value = late[name]
            elif audits is not None and by in audits[name]:
                known = audits[name][by]
            elif not record.get("accepted") or sides.get(by) != "cloud":
                left_out.add("not answered by the cloud", place)
                continue
            try:
                if record["input"]["type"] != "application/json":
                    raise TypeError("no text")  # noqa: TRY301 - one reason for all that may be wrong
                content = parse_json(b64decode(record["input"]["base64"]).decode())
                request = {"prompt": content} if isinstance(content, str) else {"messages": content}
                if not isinstance(value, str | int | float):
                    raise TypeError("no label")  # noqa: TRY301 - likewise
                example = Example(_asked(content if isinstance(content, dict) else request), str(value).strip(), known)
            except (KeyError, TypeError, ValueError, RecursionError):
                left_out.add("no text and answer in the trace, which [trace] inputs = true stores", place)
                continue
            yield place, record, example


def _rows(paths: Sequence[Path]) -> Iterator[tuple[str, Any, Example]]:
    """Yield place, row and example of each row of tables.

    Raises:
        BadInput: one cannot be read, or has not the columns.
    """
    for path in paths:
        with as_errors(f"{path} cannot be read", BadInput), open_file(path) as data:
            part = RowLines(io.TextIOWrapper(data, encoding="utf-8-sig", newline="", errors="replace"), path)
            reader = csv.DictReader(part)
            if not {"text", "answer"} <= {*(reader.fieldnames or ())}:
                raise BadInput(f"{path}: expected the columns text and answer")
            for row in reader:
                part.size = 0
                yield f"{path}:{reader.line_num}", row, Example((row["text"] or "").strip(), (row["answer"] or "").strip())


def distil(
    examples: Sequence[Example],
    out: Path,
    *,
    max_loss: float = 0.03,
    sure: float = 0.95,
    force: bool = False,
    left_out: LeftOut | None = None,
) -> Distilled:
    """Train, certify and write a model with its card; write nothing if it is not worth a trial.

    It is not worth one without a certified threshold, or with one that defers more than nine in ten requests. New files are moved
    into place at the end.

    Args:
        examples: texts with the cloud's answers.
        out: the new file, .onnx.
        max_loss: largest share of requests whose answer may differ from the cloud's.
        sure: confidence level of the guarantee.
        force: replace existing files, and write a model that is not worth a trial.
        left_out: records that were left out before.

    Raises:
        BadInput: the answers are no classes, or too few.
        PolicyError: `out` exists, or has another suffix.
        RuntimeMissing: a package is not installed.
    """
    check_targets(out, out.with_suffix(".json"), overwrite=force)
    left_out = left_out or LeftOut()
    texts: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        texts[text_form(example.text)].append(example)
    common, spelled = _classes(texts, left_out)
    parts = {key: _template(key) for key in texts}
    train = [_most_frequent(known) for key, group in texts.items() if _part(parts[key]) < TRAINED and (known := _known(group))]
    train = [e for e in train if _class_form(e.answer) in common]
    held_out = [(parts[key], e) for key, group in texts.items() if _part(parts[key]) >= TRAINED for e in group]
    with workplace(out) as (_, new):
        classes = _train([e.text for e in train], [_class_form(e.answer) for e in train], spelled, new)
        # without labels in the card, since the cloud may give answers that are no classes
        card = write_card(new, new.with_suffix(".json"), [], "label+probabilities", None)
        with Router(OnnxModel(new), mode="only_edge") as router:
            answers = router.infer_many([e.text for _, e in held_out])
            fingerprints = {"edge": router.fingerprints()["edge"]}
        agree = np.array(
            [
                e.known and (same(a.value, e.answer) or _class_form(str(a.value)) == _class_form(e.answer))
                for a, (_, e) in zip(answers, held_out, strict=True)
            ]
        )
        scores = np.array([np.nan if a.confidence is None else a.confidence for a in answers], np.float64)
        unknown = sum(not e.known for e in examples)
        notes = [f"{unknown:,} audits found an answer that is not stored: the model counts as wrong there"] if unknown else []
        certificate, deferral, why = _certified(scores, agree, [key for key, _ in held_out], max_loss, sure, fingerprints, notes)
        size, guarantee = new.stat().st_size, "" if certificate is None else certificate.guarantee
        if not why or force:
            agreed = f"{agree.mean() * 100:.2f} % of {len(agree):,} others"
            step = f"distilled from {len(train):,} answers; agreed on {agreed}. {guarantee}"
            new.with_suffix(".json").write_text(json.dumps({**card, "steps": [{"step": step.strip()}]}, indent=2) + "\n", "utf-8")
            put(new.parent, out)
    return Distilled(
        out=str(out) if not why or force else "", why=why, classes=classes, trained=len(train), held_out=len(held_out),
        agreement=float(agree.mean()), deferral=deferral,
        threshold=None if certificate is None or not np.isfinite(certificate.threshold) else certificate.threshold,
        guarantee=guarantee, bytes=size, left_out=tuple(map(str, left_out.all())),
        notes=tuple(notes),
    )  # fmt: skip


def _part(key: str) -> float:
    """Return a number from 0 to 1 that is the same for equal texts in each process and order."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def _template(key: str) -> str:
    """Return a text's form with 0 for each number: texts that differ in these alone are not independent."""
    return " ".join(_NUMBER.sub("0", key).split())


def _known(group: Sequence[Example]) -> list[Example]:
    """Return the examples whose answer by the cloud is known."""
    return [e for e in group if e.known]


def _class_form(answer: str) -> str:
    """Return what is compared of an answer: the form of a label, without width of characters."""
    return label_form(normalize("NFKC", answer)) or ""


def _most_frequent(group: Sequence[Example]) -> Example:
    """Return a text's example with its most frequent answer."""
    ((most, _),) = Counter(_class_form(e.answer) for e in group).most_common(1)
    return next(e for e in group if _class_form(e.answer) == most)


def _classes(texts: Mapping[str, Sequence[Example]], left_out: LeftOut) -> tuple[set[str], dict[str, str]]:
    """Return the answers that are classes, by their `_class_form`, and the most frequent spelling of each.

    An answer is a class if five or more different texts have it.

    Raises:
        BadInput: there are too few texts, the answers are no classes, or all are the same.
    """
    n = len(texts)
    if n < LEAST_TEXTS:
        raise BadInput(f"{n:,} different texts with an answer: at least {LEAST_TEXTS} are needed{left_out}")
    counts, spellings = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for group in texts.values():
        counts.update({_class_form(e.answer) for e in _known(group)})
        for e in _known(group):
            spellings[_class_form(e.answer)][e.answer] += 1
    common = {answer for answer, count in counts.items() if count >= CLASS_TEXTS}
    share = sum(any(_class_form(e.answer) in common for e in _known(group)) for group in texts.values()) / n
    if share < LEAST_COMMON or len(common) > MOST_CLASSES:
        raise BadInput(
            f"these answers are no classes: {n:,} texts have {len(counts):,} different answers, and {share * 100:.0f} % of the "
            f"texts one that {CLASS_TEXTS} or more have. A model that writes texts has to be trained elsewhere"
        )
    if len(common) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise BadInput("all answers are the same: a constant needs no model")
    return common, {answer: spellings[answer].most_common(1)[0][0] for answer in common}


def _certified(
    scores: Any,
    agree: Any,
    groups: Sequence[str],
    max_loss: float,
    sure: float,
    fingerprints: Mapping[str, str],
    notes: list[str],
) -> tuple[Certificate | None, float, str]:
    """Return the certificate of the held-out examples, if any, the share below its threshold, and why it is not worth a trial.

    An empty reason: it is. Equal texts are one group. A model that defers too much has a certificate and a reason. Appends
    warnings to `notes`.
    """
    by_text, most = groups if len(set(groups)) < len(groups) else None, f"{max_loss * 100:.1f} %"
    try:
        certificate = calibrate(
            scores, agree, max_loss=max_loss, sure=sure, name="msp", groups=by_text, fingerprints=fingerprints, notes=notes
        )
    except NotEnough as e:
        return None, 1.0, f"the held-out examples are too few for a guarantee of {most}: {e.missing:,} are missing"
    except PolicyError as e:
        return None, 1.0, str(e)
    deferral = float((~(scores >= certificate.threshold)).mean())
    why = f"it would defer {deferral * 100:.0f} % of the requests, to differ from the cloud in at most {most}"
    return certificate, deferral, why if deferral > WORTH else ""


def _train(texts: Sequence[str], answers: Sequence[str], spelled: Mapping[str, str], out: Path) -> int:
    """Train a classifier, write it as an ONNX file with int8 weights, and return the number of its classes.

    Raises:
        BadInput: too few words are in more than one text.
        RuntimeMissing: scikit-learn, skl2onnx or onnx is not installed.
    """
    need = "training needs scikit-learn and its converter: pip install scikit-learn skl2onnx"
    vectorizers = import_needed("sklearn.feature_extraction.text", need)
    import_needed("skl2onnx", need)
    package()  # all are there before minutes are spent
    regression = import_late("sklearn.linear_model").LogisticRegression(C=STRENGTH, max_iter=500)
    words = vectorizers.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=TERMS)
    with as_errors("the texts have no words in common", BadInput):
        table = words.fit_transform(texts)
    with as_errors("the model cannot be trained", BadInput):
        regression.fit(table, answers)
    by_skl2onnx(words, None, out, texts=True)
    weights, bias = regression.coef_, regression.intercept_
    if len(weights) == 1:  # two classes: the second's log odds
        weights, bias = (np.concatenate([-part / 2, part / 2]) for part in (weights, bias))
    _add_head(out, weights, bias, [spelled[name] for name in regression.classes_])
    return len(weights)


def _add_head(path: Path, weights: Any, bias: Any, labels: Sequence[str]) -> None:
    """Add a layer with int8 weights to the graph in a file, in place: features -> label and probabilities.

    weights: [classes, features].
    """
    onnx = package()
    model = onnx.load(str(path))
    scale = np.maximum(np.abs(weights).max(1), 1e-9) / 127
    constants = {
        "head_weights": np.round(weights / scale[:, None]).astype(np.int8).T, "head_scale": scale.astype(np.float32),
        "head_zero": np.zeros(len(scale), np.int8), "head_bias": bias.astype(np.float32), "labels": np.array(labels, object),
    }  # fmt: skip
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items())
    node, features = onnx.helper.make_node, model.graph.output[0].name
    model.graph.node.extend([
        node("DequantizeLinear", ["head_weights", "head_scale", "head_zero"], ["head_float"], axis=1),
        node("MatMul", [features, "head_float"], ["head_sums"]),
        node("Add", ["head_sums", "head_bias"], ["logits"]),
        node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        node("Gather", ["labels", "best"], ["label"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ])  # fmt: skip
    del model.graph.output[:]
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    model.graph.output.extend([value("label", kinds.STRING, [None]), value("probabilities", kinds.FLOAT, [None, len(scale)])])
    path.write_bytes(model.SerializeToString())
