"""Inspection of a model file: loads it, runs it on zeros, random numbers and a sample, and guesses its card.

Of a .gguf file the header is read alone.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np

from edgeroute.confidence.detector_boxes import are_boxes
from edgeroute.confidence.output_reader import SEVERAL, Reader
from edgeroute.core.error_codes_and_texts import error_text
from edgeroute.edge import gguf_format as gguf
from edgeroute.edge.edge_backend import in_new_session
from edgeroute.edge.edge_model_members_and_fingerprints import feed_of, member
from edgeroute.edge.input_checks_and_stacking import shape_text
from edgeroute.edge.inputs_constants_and_states import Inputs
from edgeroute.edge.model_card import Card, card_path, sha256_of
from edgeroute.edge.runtime_base import ModelFile
from edgeroute.edge.runtimes_variants_ensemble import load, suffix_of
from edgeroute.errors import BadInput, EdgerouteError, ModelError, ModelMissing, PolicyError, RuntimeMissing
from edgeroute.system.untrusted_files import open_file, read_bytes
from edgeroute.tools.cli.command_runner import LEFT
from edgeroute.tools.cli.inputs_labels_and_outputs import IMAGES, STDIN, by_name, input_at
from edgeroute.tools.cli.inspect_report import Report, SampleAnswer
from edgeroute.tools.inspect.guess_outputs import LABELS, batch_of, card_of, doubted, guess_outputs, named_classes
from edgeroute.tools.inspect.input_guesses_and_trial_tensors import (
    Finding,
    InputGuess,
    Pair,
    describe,
    feeds,
    pairs,
    quoted,
    random_feeds,
    text,
)
from edgeroute.types import EdgeModel, StopToken, TensorSpec

# Language models: only the file's header is read, so that llama.cpp need not be installed.


def inspect_gguf(path: Path) -> Report:
    """Report everything that a .gguf file's header states about its model, the file's hash, and what is open. Does not run it.

    Raises:
        ModelError: it is no complete .gguf file.
    """
    about = gguf.read(path)
    facts = {
        "sha256": sha256_of(path),
        "architecture": about.architecture,
        "name": quoted(about.name) if about.name else "",
        "parameters": f"{about.parameters / 1e6:,.0f} million" if about.parameters >= 1e6 else f"{about.parameters:,}",  # noqa: PLR2004
        "quantisation": about.quantisation,
        "context": f"{about.context:,} tokens" if about.context else "",
        "vocabulary": f"{about.tokens:,} tokens" if about.tokens else "",
        "chat_template": "yes" if about.template else "none",
        "license": about.license,
        "card_there": _existing_card(path)[0],
    }
    report = Report(str(path), {name: fact for name, fact in facts.items() if fact}, card={"sha256": facts["sha256"]})
    report.inputs = [(TensorSpec("a prompt, messages or a request", "text", ()), "given")]
    report.outputs = [(TensorSpec("the answer, with the log-probabilities of its tokens", "text", ()), "read")]
    if not about.tokens:
        report.findings.append(Finding("vocabulary", "none", "certain", "so it is only a part of a language model"))
    if not about.template:
        why = "its file has no chat template, so that texts are continued, or the template is given"
        report.findings.append(Finding("chat", "?", "open", why, 'chat = false  (or chat_template = "...", in [edge])'))
    report.notes.append("it was not run: `edgeroute infer` runs it")
    return report


def _existing_card(path: Path, *specs: Sequence[TensorSpec]) -> tuple[str, Card | None]:
    """Return a text about the card beside the model ("" without one), and the card if it is valid and fits the tensors.

    An invalid card raises nothing: the text says what is wrong.

    specs: the model's inputs, and its outputs, which the card must fit; none: they are unknown.
    """
    file = card_path(path)
    try:
        card = Card.beside(path)
        if card.path is None:
            return f"{card.foreign.name} is there, and no card" if card.foreign else "", None
        if specs:
            Inputs(card, specs[0], specs[1])
    except (EdgerouteError, ValueError) as e:
        return f"{file.name} is there, and wrong: {error_text(e)}", None
    return f"{file.name} is there", card


# Runs of a model file without its card, for a limited time, and in a thread so that Ctrl-C acts meanwhile.

MOST_METADATA, MOST_LABELS, LONGEST_LABEL = 1 << 20, 1 << 16, 200  # bytes of a zip and a label file, characters of a label
_LABELS = re.compile(r"(?i)[\w.-]{0,99}label[\w.-]{0,99}\.txt")
GRACE_S = 1.0  # time that a run may take to stop before its thread is abandoned, seconds


def _labels_in_zip(path: Path) -> list[str]:
    """Return the lines of the only label file in the zip at a file's end, where TFLite has its metadata; [] if it has none.

    They are short, and differ. Nothing is raised, and little more than `MOST_LABELS` bytes are unpacked.
    """
    try:
        with open_file(path) as file:
            file.seek(max(0, path.stat().st_size - MOST_METADATA))
            tail = BytesIO(file.read(MOST_METADATA))
        with ZipFile(tail) as archive:
            (name,) = (name for name in archive.namelist() if _LABELS.fullmatch(name))
            with archive.open(name) as part:
                text = part.read(MOST_LABELS + 1).decode("utf-8-sig")
    except Exception:  # noqa: BLE001 - the content decides which
        return []
    lines = [line.strip() for line in text.rstrip().split("\n")]
    differ = len({*lines}) == len(lines) and len(text) <= MOST_LABELS
    return lines if differ and all(0 < len(line) <= LONGEST_LABEL and line.isprintable() for line in lines) else []


class Model:
    """Model file, loaded without its card. A model that this system cannot run raises the reason at each run.

    Args:
        path: path of the file.
        seconds: time for all runs together, from the load or from `renew` on.

    Raises:
        ModelError: the model cannot be loaded, or declares no inputs and outputs.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.seconds = seconds
        self.until = float("inf")
        with tempfile.TemporaryDirectory() as folder:
            bare = Path(folder) / "card.json"
            bare.write_text("{}", encoding="utf-8")
            try:
                model: EdgeModel = load(path, card=bare)
            except PolicyError:  # it takes no card; or there is no runtime, which is raised again
                model = load(path)
        self.session: Any = None
        self.missing = ""
        try:
            self.session = _run_within(load_it, None) if (load_it := member(model, "load")) is not None else None
        except RuntimeMissing as e:  # some files can be read where they cannot be run
            self.missing = str(e)
            if not member(model, "outputs"):
                raise
        self.name, self.model, self._path = path.stem, model, path
        self.inputs: tuple[TensorSpec, ...] = tuple(member(model, "inputs"))
        self.outputs: tuple[TensorSpec, ...] = tuple(member(model, "outputs"))
        if not self.outputs:
            raise ModelError(f"{path}: its runtime does not say what the model takes and gives (inputs, outputs)")
        self.until = monotonic() + seconds

    @property
    def metadata(self) -> tuple[str, Mapping[str, str]]:
        """Producer of the file, and its further metadata; empty if the runtime has none."""
        meta = self.session.get_modelmeta() if hasattr(self.session, "get_modelmeta") else None
        if meta is not None:
            return str(meta.producer_name), dict(meta.custom_metadata_map)
        return "", {"labels": json.dumps(_labels_in_zip(self._path))}

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model on tensors by name, in a thread, within what is left of the time limit; return the outputs by name.

        Each run has a new state (session). A run that does not end in time is stopped, and abandoned if it does not stop.

        Raises:
            ModelError: it does not accept them, took too long, cannot run on this system, or the time limit is over.
        """
        if self.missing:
            raise ModelError(self.missing)
        remaining_s, stop = self.until - monotonic(), StopToken()
        if remaining_s <= 0:
            raise ModelError(f"no further tries: {self.seconds:g} s are over (--timeout)")
        run = feed_of(self.model)
        if run is None:
            raise ModelError("its runtime runs no tensors by name (run_feed)")
        out = _run_within(lambda: in_new_session(run, dict(feed), stop), remaining_s, stop)
        return out if isinstance(out, dict) else {self.outputs[0].name: out}

    def renew(self) -> None:
        """Restart the time limit, for the sample."""
        self.until = monotonic() + self.seconds

    def close(self) -> None:
        """Free the model by its `close`; a no-op for a model without one."""
        if (close := member(self.model, "close")) is not None:
            close()


def _run_within(f: Callable[[], Any], seconds: float | None, stop: StopToken | None = None) -> Any:
    """Call a function in a daemon thread, so that Ctrl-C acts meanwhile; wait, and return its result or raise its exception.

    After `seconds` (None: no limit) `stop` is called, and 1 s later the thread is abandoned.

    Raises:
        ModelError: it took longer than `seconds`.
    """
    outcome, finished = list[Any](), threading.Event()  # by `join`, some Pythons take a thread for ended once Ctrl-C has come

    def run() -> None:
        """Call the function, and store its result or exception."""
        try:
            outcome.append((f(), None))
        except BaseException as e:  # noqa: BLE001 - raised again in the thread that waits
            outcome.append((None, e))
        finished.set()

    thread = threading.Thread(target=run, daemon=True)
    LEFT.append(thread)
    thread.start()
    if not finished.wait(seconds):
        if stop is not None:
            stop()
            finished.wait(GRACE_S)
        raise ModelError(f"a run did not end within {seconds:.3g} s, and was stopped")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


MOST_BYTES = 1 << 31  # most bytes of a model file: protobuf and flatbuffers allow no more
MOST_PROBED = 1 << 22  # most elements of the tensors of a try
MOST_PICTURE = 1 << 26  # most bytes of a picture file


class Sample(NamedTuple):
    """Input that the user passed."""

    path: Path
    x: Any  # array, or name -> array
    picture: bytes | None  # content of the file, if it is a picture


class Way(NamedTuple):
    """Way of preparing the sample, and the model's outputs for it."""

    about: str
    preprocess: dict[str, Any] | None
    raw: dict[str, Any] | None
    error: str


def inspect_file(path: Path, sample: Path | None, index: int, seconds: float) -> Report:
    """Load a model file, run it on zeros, random numbers and the sample, and report all findings, a guessed card and its answers.

    The present card is not used, but for one more answer to the sample. Nothing is written.

    seconds: time for the runs, anew for each way of preparing the sample.

    Raises:
        ModelMissing, ModelError: there is no file, or it cannot be read or loaded.
        BadInput: the sample cannot be read.
    """
    try:
        if not path.is_dir() and suffix_of(path.name):  # else loading says what to write
            open_file(path, MOST_BYTES).close()
    except FileNotFoundError as e:
        raise ModelMissing(f"there is no model at {path}") from e
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror}; an .onnx file may have weights beside it") from e
    model = Model(path, seconds)
    try:
        return _Inspection(path, model, None if sample is None else _sample(sample, model.inputs, index)).report()
    finally:
        model.close()


def _sample(path: Path, specs: Sequence[TensorSpec], index: int) -> Sample:
    """Read the sample: for several inputs their arrays by name from an .npz file, else input `index` of the file.

    The content of a picture's file is kept too, up to 64 MB.

    Raises:
        BadInput: it cannot be read, or has no row `index`.
    """
    if len(specs) > 1 and (arrays := by_name(path, [spec.name for spec in specs])):
        ranks = {spec.name: len(spec.shape) for spec in specs}
        return Sample(path, {name: _row(a, ranks[name], index) for name, a in arrays.items()}, None)
    x = input_at(path, index)
    picture = path != STDIN and path.suffix.lower() in IMAGES and path.stat().st_size <= MOST_PICTURE
    return Sample(path, x, read_bytes(path) if picture else None)


def _row(array: Any, rank: int, index: int) -> Any:
    """Return row `index` of an array of several inputs; an array of one input, or without such a row, as it is."""
    return array[index] if array.ndim == rank and rank and 1 < len(array) > index else array


class _Inspection:
    """State of one inspection."""

    def __init__(self, path: Path, model: Model, sample: Sample | None) -> None:
        self.path, self.model, self.sample = path, model, sample
        self.states: list[Pair] = pairs(model.inputs, model.outputs)
        given = sample.x if sample is not None and isinstance(sample.x, dict) else None
        self.inputs: list[InputGuess] = describe(model.inputs, self.states, given)
        fed_back = {pair.output for pair in self.states if pair.sure != "open"}
        self.read = [spec for spec in model.outputs if spec.name not in fed_back]
        own: tuple[str | None, str] = member(model.model, "kind"), "the model says so itself"
        self.kind, self.grounds = model.model.guess_kind(fed_back) if isinstance(model.model, ModelFile) else own
        self.batch: int | str | None = None
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.zeros: dict[str, Any] = {}

    def report(self) -> Report:
        """Run the model on sample, zeros and random numbers; return the findings, the guessed card and the sample's answers."""
        ways = self._ways()
        self._try_inputs([way for way in ways if way.raw is not None])
        findings = [finding for guess in self.inputs for finding in guess.findings]
        findings += [_open_pair(pair) for pair in self.states if pair.sure == "open"]
        findings += guess_outputs(self.read, self.rows, self.kind, self.grounds)
        new_card: dict[str, Any] = {"sha256": sha256_of(self.path)} if self.path.exists() else {}
        findings, labels = self._labels(findings)
        new_card.update(card_of(self.inputs, self.states, findings, self.batch))
        if labels:
            new_card["labels"] = labels
        findings = self._without_unreadable(new_card, findings)
        self._apply_sample(ways, new_card, findings)
        if self.batch not in (None, 0):
            why = "runs with one input and with three differ in that axis"
            findings.append(Finding("output.batch", str(self.batch), "likely", why))
        producer, _ = self.model.metadata
        existing, old = _existing_card(self.path, self.model.inputs, self.model.outputs)
        existing += "; all below is guessed without it" if old is not None else ""
        facts = {"sha256": new_card.get("sha256"), "producer": quoted(producer), "card_there": existing}
        return Report(
            str(self.path), {name: fact for name, fact in facts.items() if fact},
            [(guess.spec, guess.role) for guess in self.inputs],
            [(spec, "read" if spec in self.read else "state") for spec in self.model.outputs], findings, self.notes,
            "" if self.sample is None else str(self.sample.path), self._sample_answers(ways, new_card, old), new_card,
        )  # fmt: skip

    def _without_unreadable(self, new_card: dict[str, Any], findings: list[Finding]) -> list[Finding]:
        """Return the findings; if zeros are not read with kind and labels, but without, doubted, and remove these from the card.

        The card is changed in place.
        """
        bare = {key: value for key, value in new_card.items() if key not in {"output", "labels"}}
        if output := {key: value for key, value in new_card.get("output", {}).items() if key != "kind"}:
            bare["output"] = output
        if not self.zeros or not (error := self._answer("", Card(new_card), self.zeros).error):
            return findings
        if self._answer("", Card(bare), self.zeros).error:
            return findings
        new_card.clear()
        new_card.update(bare)
        return [doubted(finding, f"{finding.grounds}; but zeros are not read so: {error}") for finding in findings]

    def _labels(self, findings: list[Finding]) -> tuple[list[Finding], list[str]]:
        """Answer the open question for class names by the file's metadata: return the findings, and the names, [] if it has none.

        The names must be as many as the only output has elements.
        """
        question = next((finding for finding in findings if finding.about == LABELS), None)
        sizes = {np.shape(row[spec.name]) for spec in self.read for row in self.rows if spec.name in row}
        count = sizes.pop()[0] if len(sizes) == 1 and len(next(iter(sizes))) == 1 and self.kind not in SEVERAL else None
        named = named_classes(self.model.metadata[1], count) if question is not None else None
        if named is None:
            return findings, []
        key, names = named
        first = ", ".join(map(quoted, names[:4])) + (", ..." if len(names) > 4 else "")  # noqa: PLR2004 - some of them
        new = Finding(LABELS, first, "likely", f"the file's metadata has {len(names)} names under {key}")
        return [new if finding is question else finding for finding in findings], names

    # ------------------------------------------------------------------------------------------------------- the sample
    def _ways(self) -> list[Way]:
        """Run the sample unchanged; if that fails and the only given input may be a picture, in each common way of preparing one.

        Ways that failed are among them. [] without a sample.
        """
        if self.sample is None:
            return []
        plain = self._way("as it is", None, self.sample.x)
        pictures = [guess for guess in self.inputs if guess.preparations]
        if plain.raw is not None or len(pictures) != 1 or len([guess for guess in self.inputs if guess.role == "given"]) != 1:
            return [plain]
        x = self.sample.x if self.sample.picture is None else self.sample.picture
        ways = [self._way(guess.about, guess.preprocess, x) for guess in pictures[0].preparations]
        return ways if any(way.raw is not None for way in ways) else [plain, *ways]

    def _way(self, about: str, preprocess: dict[str, Any] | None, x: Any) -> Way:
        """Run the sample with a preprocessing, in a new time limit; return the outputs, or the text of an expected error."""
        try:
            if missing := ", ".join(quoted(guess.spec.name) for guess in self._unknown_constants()):
                raise BadInput(f"it cannot be run without {missing}: add it to an .npz sample by that name")
            tried = Card(_with_preprocess(card_of(self.inputs, self.states, []), preprocess))
            return Way(about, preprocess, self._run_sample(tried, x), "")
        except (EdgerouteError, ValueError) as e:
            return Way(about, preprocess, None, error_text(e))

    def _unknown_constants(self) -> list[InputGuess]:
        """Return the constant inputs whose value neither the file nor the sample has."""
        return [guess for guess in self.inputs if guess.role == "constant" and guess.value is None]

    def _run_sample(self, card: Card, x: Any) -> dict[str, Any]:
        """Run the model on the sample with the preprocessing, constants and states of a card, in a new time limit.

        Raises:
            BadInput, ModelError, ValueError: the card does not fit, or the model does not take the sample.
        """
        plan = Inputs(card, self.model.inputs, self.model.outputs)
        self.model.renew()
        return self.model.run({**plan.feed([x], self.model.name), **plan.constants, **plan.state})

    def _apply_sample(self, ways: Sequence[Way], new_card: dict[str, Any], findings: list[Finding]) -> None:
        """Put the layout on the card if the sample fits in one way only, and ask how pictures are fitted if their size differs.

        Both change `new_card` and `findings` in place. Without a way that ran, or without a preprocessing, nothing is changed.
        """
        preprocess = ways[0].preprocess if ways and ways[0].raw is not None else None
        if preprocess is None:
            return
        guess = next(guess for guess in self.inputs if guess.preparations)
        about = f"inputs.{quoted(guess.spec.name)}.preprocess"
        if len(ways) == 1 and preprocess["layout"] != guess.layout:
            plain = {key: value for key, value in preprocess.items() if key != "resize"}
            new_card.update(_with_preprocess(new_card, plain))
            findings[:] = [finding for finding in findings if finding.about != about]
            what = f"pixels {shape_text(plain['shape'])}, {plain['layout']}, transposed to {guess.layout}"
            findings.append(Finding(about, what, "likely", "the sample is such a picture, and integers are not scaled"))
        if "resize" in preprocess and list(np.shape(self.sample.x if self.sample else ()))[:2] != preprocess["resize"]:
            side = min(preprocess["resize"])
            lines = f'"preprocess": {{..., "resize": {preprocess["resize"]}}}  (stretched, as here)\n'
            lines += f'"preprocess": {{..., "resize": {side}, "crop": {preprocess["resize"]}}}  (cut out of the middle)'
            why = f"the sample has another size than {shape_text(preprocess['resize'])}, which the model takes"
            findings.append(Finding(f"{about}.resize", "how are pictures fitted?", "open", why, lines))

    def _sample_answers(self, ways: Sequence[Way], new_card: dict[str, Any], old: Card | None) -> list[SampleAnswer]:
        """Return the answers or errors for the sample: first with the existing card (a new run), then for each way's outputs."""
        shown = list[SampleAnswer]()
        if old is not None and self.sample is not None:
            picture = self.sample.picture if any(field.preprocess and field.preprocess.picture for field in old.inputs) else None
            about = "with the card that is there"
            try:
                raw = self._run_sample(old, self.sample.x if picture is None else picture)
                shown.append(self._answer(about, old, raw))
            except EdgerouteError as e:
                shown.append(SampleAnswer(about, error=error_text(e)))
        for way in ways:
            if way.raw is None:
                shown.append(SampleAnswer(way.about, error=way.error))
            else:
                shown.append(self._answer(way.about, Card(_with_preprocess(new_card, way.preprocess)), way.raw))
        return shown

    def _answer(self, about: str, used_card: Card, raw: Mapping[str, Any]) -> SampleAnswer:
        """Return the answer, or the error, with which a router with this card would read raw outputs. Runs nothing.

        about: name of the way of preparing the sample.
        """
        try:
            plan = Inputs(used_card, self.model.inputs, self.model.outputs)
            names = [used_card.output] if used_card.output else [spec.name for spec in plan.outputs]
            rows = {name: plan.rows(raw[name]) for name in names}
            reader = Reader(
                used_card.score or "msp", labels=used_card.labels, kind=used_card.kind or self.kind,
                name=self.model.name, none_found=used_card.none_found, blank=used_card.blank, output_name=lambda: names[0],
            )  # fmt: skip
            answer = reader.read_one(next(iter(rows.values())) if len(rows) == 1 else rows)
        except (EdgerouteError, LookupError, TypeError, ValueError) as e:
            return SampleAnswer(about, error=error_text(e))
        return SampleAnswer(about, answer.value, answer.confidence)

    # --------------------------------------------------------------------------------------------------- zeros and random
    def _try_inputs(self, ways: Sequence[Way]) -> None:
        """Run the model on zeros and random numbers; store outputs row by row (with those of `ways`), the batch axis, and notes.

        Feeds of zeros are tried until the model takes one. Errors of runs are not raised: the last is noted if none succeeds.
        """
        for way in ways:
            self._store_rows(way.raw or {}, 1)
        counts = list[int]()
        self.model.renew()
        error: Exception | None = None
        for feed in feeds(self.inputs, MOST_PROBED):
            try:
                zeros = self.model.run(feed)
            except EdgerouteError as e:
                error = e
                continue
            count = self._count(feed)
            for other in random_feeds(self.inputs, feed):
                try:
                    raw = self.model.run(other)
                except EdgerouteError:
                    continue
                if count == 1 and self._count(other) > 1 and self.batch is None:
                    self.batch = batch_of(zeros, raw, self._count(other))
                self._store_rows(raw, self._count(other))
                counts.append(self._count(other))
            self._store_rows(zeros, count)
            self.zeros = zeros if count == 1 else {}
            shapes = ", ".join(f"{quoted(name)} {shape_text(array.shape)}" for name, array in feed.items())
            several = f"; also with {max(counts)} inputs at a time" if counts and max(counts) > count else ""
            self.notes.append(f"it runs on zeros{' and random numbers' if counts else ''}: {shapes}{several}")
            for name in (guess.spec.name for guess in self._unknown_constants()):
                self.notes.append(f"{quoted(name)} was assumed to be {feed[name].reshape(-1)[0]}")
            return
        self.notes.append(
            f"it does not run on zeros: {error_text(error)}" if error is not None
            else "it was not run on zeros: its inputs are too large, or have too many sizes"
        )  # fmt: skip

    def _count(self, feed: Mapping[str, Any]) -> int:
        """Return the number of inputs in a feed; 1 if none has a batch axis."""
        return next((len(feed[guess.spec.name]) for guess in self.inputs if guess.role == "given" and guess.batch == 0), 1)

    def _store_rows(self, raw: Mapping[str, Any], count: int) -> None:
        """Append to `rows` the outputs that are read, for each of `count` inputs; outputs of a detector (boxes) as one row."""
        read_outputs = {spec.name: raw[spec.name] for spec in self.read if spec.name in raw}
        if len(read_outputs) > 1 and are_boxes(read_outputs):
            self.rows.append(read_outputs)
            return
        axis = self.batch if isinstance(self.batch, int) else 0
        for i in range(count):
            self.rows.append({name: _row_of(value, i, count, axis) for name, value in read_outputs.items()})


def _row_of(value: Any, i: int, count: int, axis: int) -> Any:
    """Return input `i`'s part of an output for `count` inputs, along `axis`; all of it if that axis has another size."""
    if isinstance(value, list):
        return value[i] if len(value) == count else value
    array = np.asarray(value)
    return np.moveaxis(array, axis, 0)[i] if array.ndim > axis and array.shape[axis] == count else array


def _with_preprocess(data: dict[str, Any], preprocess: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the card with that preprocessing for its only input, or each with a layout; for None the card itself."""
    if preprocess is None:
        return data
    if "input" in data:
        return {**data, "input": {**data["input"], "preprocess": preprocess}}
    return {**data, "inputs": [{**entry, "preprocess": preprocess} if "layout" in entry else entry for entry in data["inputs"]]}


def _open_pair(pair: Pair) -> Finding:
    """Return the open question whether an output is fed back."""
    about = f"state.{quoted(pair.input)}"
    shape = ', "shape": [...]' if "size of the first" in pair.grounds else ""
    line = f'"state": [{{"input": {text(pair.input)}, "output": {text(pair.output)}{shape}}}]'
    return Finding(about, f"is {quoted(pair.output)} fed back as {quoted(pair.input)}?", "open", pair.grounds, line)
