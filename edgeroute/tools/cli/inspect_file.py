"""Looks at a model file: loads it, tries it with zeros, random numbers and a sample, and guesses its card."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.boxes import are_boxes
from edgeroute.confidence.reader import Reader
from edgeroute.core.words import named
from edgeroute.edge import gguf
from edgeroute.edge.backend import in_new_session
from edgeroute.edge.card import Card, card_path, sha256_of
from edgeroute.edge.inputs import Inputs
from edgeroute.edge.members import feed_of, member
from edgeroute.edge.runtimes import load
from edgeroute.edge.tensors import shape_text
from edgeroute.errors import BadInput, EdgerouteError, ModelError, PolicyError, RuntimeMissing
from edgeroute.system.process import is_special_file
from edgeroute.tools.cli.exits import LEFT
from edgeroute.tools.cli.inputs import IMAGES, STDIN, by_name, read_inputs
from edgeroute.tools.cli.inspect_report import Report, Shown
from edgeroute.tools.inspect.guess import LABELS, batch_of, card, named_classes, outputs
from edgeroute.tools.inspect.guess_inputs import Finding, InputGuess, Pair, describe, feeds, pairs, quoted, text, variations
from edgeroute.types import EdgeModel, StopToken, TensorSpec

# Looks at a language model's file: its header alone, so that llama.cpp need not be installed.


def inspect_gguf(path: Path) -> Report:
    """Everything that the file says of its model.

    Raises:
        ModelError: it is no whole .gguf file.
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
        "card_there": _card_there(path),
    }
    report = Report(str(path), {name: fact for name, fact in facts.items() if fact}, card={"sha256": facts["sha256"]})
    report.inputs = [(TensorSpec("a prompt, messages or a request", "text", ()), "given")]
    report.outputs = [(TensorSpec("the answer, with the log-probabilities of its tokens", "text", ()), "read")]
    if not about.tokens:
        report.findings.append(Finding("vocabulary", "none", "certain", "so it is no language model, but a part of one"))
    if not about.template:
        why = "its file has no chat template, so that texts are continued, or the template is given"
        report.findings.append(Finding("chat", "?", "open", why, 'chat = false  (or chat_template = "...", in [edge])'))
    report.notes.append("it was not run: `edgeroute infer` asks it")
    return report


def _card_there(path: Path) -> str:
    card = path.with_suffix(".json")
    if not card.exists():
        return ""
    try:
        Card.read(card)
    except EdgerouteError as e:
        return f"{card.name} is there, and wrong: {e}"
    return f"{card.name} is there"


# A model file without its card, as `inspect` runs it: for a limited time, and so that Ctrl-C acts meanwhile.

GRACE_S = 1.0
"""How long a run that was told to stop may go on before it is left alone, seconds."""


class Model:
    """A model without a card, as the file has it. One that this system cannot run says so at each run."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.seconds = seconds
        self.until = float("inf")
        with tempfile.TemporaryDirectory() as folder:
            bare = Path(folder) / "card.json"
            bare.write_text("{}", encoding="utf-8")
            model = _loaded(path, bare)
        self.session: Any = None
        self.missing = ""
        try:
            self.session = _within(load_it, None) if (load_it := member(model, "load")) is not None else None
        except RuntimeMissing as e:  # some files can be read where they cannot be run
            self.missing = str(e)
            if not member(model, "outputs"):
                raise
        self.name, self.model = path.stem, model
        self.inputs: tuple[TensorSpec, ...] = tuple(member(model, "inputs"))
        self.outputs: tuple[TensorSpec, ...] = tuple(member(model, "outputs"))
        if not self.outputs:
            raise ModelError(f"{path}: its runtime does not say what the model takes and gives (inputs, outputs)")
        self.until = monotonic() + seconds

    @property
    def metadata(self) -> tuple[str, Mapping[str, str]]:
        """Who has made the file, and what it says besides."""
        meta = self.session.get_modelmeta() if hasattr(self.session, "get_modelmeta") else None
        return ("", {}) if meta is None else (str(meta.producer_name), dict(meta.custom_metadata_map))

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name.

        Raises:
            ModelError: it does not take that, or took too long.
        """
        if self.missing:
            raise ModelError(self.missing)
        left, stop = self.until - monotonic(), StopToken()
        if left <= 0:
            raise ModelError(f"it was not tried further: {self.seconds:g} s were over (--timeout)")
        run = feed_of(self.model)
        if run is None:
            raise ModelError("its runtime runs no tensors by name (run_feed)")
        out = _within(lambda: in_new_session(run, dict(feed), stop), left, stop)
        return out if isinstance(out, dict) else {self.outputs[0].name: out}

    def renew(self) -> None:
        """As much time again, for the sample."""
        self.until = monotonic() + self.seconds

    def close(self) -> None:
        """Frees it."""
        if (close := member(self.model, "close")) is not None:
            close()


def _loaded(path: Path, bare: Path) -> EdgeModel:
    """The model with that card, if its runtime takes one."""
    try:
        return load(path, card=bare)
    except PolicyError:  # it takes none; or there is no runtime, which is told once more
        return load(path)


def _within(f: Callable[[], Any], seconds: float | None, stop: StopToken | None = None) -> Any:
    """What it returns, in a thread, so that Ctrl-C acts meanwhile; after that time it is told to stop, and then left alone."""
    ended, over = list[Any](), threading.Event()  # by `join`, some Pythons take a thread for ended once Ctrl-C has come

    def run() -> None:
        try:
            ended.append((f(), None))
        except BaseException as e:  # noqa: BLE001 - raised again in the thread that waits
            ended.append((None, e))
        over.set()

    thread = threading.Thread(target=run, daemon=True)
    LEFT.append(thread)
    thread.start()
    if not over.wait(seconds):
        if stop is not None:
            stop()
            over.wait(GRACE_S)
        raise ModelError(f"a run did not end within {seconds:.3g} s, and was stopped")
    result, error = ended[0]
    if error is not None:
        raise error
    return result


MOST_BYTES = 1 << 31
"""Of a model file: protobuf and flatbuffers have no longer ones."""
MOST_PROBED = 1 << 22
"""Elements of the tensors that a model is tried with."""
MOST_PICTURE = 1 << 26
"""Bytes of a picture file."""


class Sample(NamedTuple):
    """What the person gave to try the model with."""

    path: Path
    x: Any
    """An array, or name -> array."""
    picture: bytes | None
    """The file, if it is a picture."""


class Way(NamedTuple):
    """A way of preparing the sample, and what the model gave for it."""

    about: str
    preprocess: dict[str, Any] | None
    raw: dict[str, Any] | None
    error: str


def inspect_file(path: Path, sample: Path | None, index: int, seconds: float) -> Report:
    """Everything that is known of the model file, and what it gives for the sample.

    Raises:
        ModelError: it cannot be loaded.
        BadInput: the sample cannot be read.
    """
    if is_special_file(path):
        raise ModelError(f"{path} is no file")
    if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
        raise ModelError(
            f"{path} has {size:,} bytes, and a model file at most {MOST_BYTES:,}: an .onnx file may have weights beside it"
        )
    model = Model(path, seconds)
    try:
        return _Inspection(path, model, None if sample is None else _sample(sample, model.inputs, index)).report()
    finally:
        model.close()


def _sample(path: Path, specs: Sequence[TensorSpec], index: int) -> Sample:
    if len(specs) > 1 and (arrays := by_name(path, [spec.name for spec in specs])):
        wanted = {spec.name: len(spec.shape) for spec in specs}
        return Sample(path, {name: _row(a, wanted[name], index) for name, a in arrays.items()}, None)
    items = read_inputs(path)
    if index >= len(items):
        raise BadInput(f"{path} has {len(items)} inputs: there is none of the number {index}")
    picture = path != STDIN and path.suffix.lower() in IMAGES and path.stat().st_size <= MOST_PICTURE
    return Sample(path, items[index].x, path.read_bytes() if picture else None)


def _row(array: Any, rank: int, index: int) -> Any:
    """One input of several."""
    return array[index] if array.ndim == rank and rank and 1 < len(array) > index else array


class _Inspection:
    """One look at one model."""

    def __init__(self, path: Path, model: Model, sample: Sample | None) -> None:
        self.path, self.model, self.sample = path, model, sample
        self.states: list[Pair] = pairs(model.inputs, model.outputs)
        given = sample.x if sample is not None and isinstance(sample.x, dict) else None
        self.inputs: list[InputGuess] = describe(model.inputs, self.states, given)
        self.read = [s for s in model.outputs if s.name not in [one.output for one in self.states if one.sure != "open"]]
        self.batch: int | str | None = None
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def report(self) -> Report:
        """What is found."""
        ways = self._ways()
        self._try([way for way in ways if way.raw is not None])
        found = [one for guess in self.inputs for one in guess.findings]
        found += [_open_pair(one) for one in self.states if one.sure == "open"]
        found += outputs(self.read, self.rows)
        made: dict[str, Any] = {"sha256": sha256_of(self.path)} if self.path.exists() else {}
        found, labels = self._labels(found)
        made.update(card(self.inputs, self.states, found, self.batch))
        if labels:
            made["labels"] = labels
        self._by_sample(ways, made, found)
        if self.batch not in (None, 0):
            found.append(
                Finding("output.batch", str(self.batch), "likely", "runs with one input and with three differ in that axis")
            )
        producer, _ = self.model.metadata
        facts = {"sha256": made["sha256"]} if "sha256" in made else {}
        facts.update({"producer": quoted(producer)} if producer else {})
        there, old = self._card_there()
        facts.update({"card_there": there} if there else {})
        kept = {one.output for one in self.states if one.sure != "open"}
        return Report(
            str(self.path), facts, [(one.spec, one.role) for one in self.inputs],
            [(spec, "state" if spec.name in kept else "read") for spec in self.model.outputs], found, self.notes,
            "" if self.sample is None else str(self.sample.path), self._shown(ways, made, old), made,
        )  # fmt: skip

    def _card_there(self) -> tuple[str, Card | None]:
        path = card_path(self.path)
        if not path.exists():
            return "", None
        try:
            old = Card.read(path)
            Inputs(old, self.model.inputs, self.model.outputs)
        except (EdgerouteError, ValueError) as e:
            return f"{path.name} is there, and wrong: {named(e)}", None
        return f"{path.name} is there; what follows is guessed without it", old

    def _labels(self, found: list[Finding]) -> tuple[list[Finding], list[str]]:
        """Names of the classes from the file's metadata."""
        asked = next((one for one in found if one.about == LABELS), None)
        sizes = {np.shape(row[spec.name]) for spec in self.read for row in self.rows if spec.name in row}
        count = sizes.pop()[0] if len(sizes) == 1 and len(next(iter(sizes))) == 1 else None
        told = named_classes(self.model.metadata[1], count) if asked is not None else None
        if told is None:
            return found, []
        key, names = told
        first = ", ".join(map(quoted, names[:4])) + (", ..." if len(names) > 4 else "")  # noqa: PLR2004 - some of them
        new = Finding(LABELS, first, "likely", f"the file's metadata has {len(names)} names under {key}")
        return [new if one is asked else one for one in found], names

    # ------------------------------------------------------------------------------------------------------- the sample
    def _ways(self) -> list[Way]:
        """The sample as it is; if it does not fit, as a picture, in each way that pictures are often prepared."""
        if self.sample is None:
            return []
        plain = self._way("as it is", None, self.sample.x)
        pictures = [one for one in self.inputs if one.preparations]
        if plain.raw is not None or len(pictures) != 1 or len([one for one in self.inputs if one.role == "given"]) != 1:
            return [plain]
        x = self.sample.x if self.sample.picture is None else self.sample.picture
        ways = [self._way(one.about, one.preprocess, x) for one in pictures[0].preparations]
        return ways if any(way.raw is not None for way in ways) else [plain, *ways]

    def _way(self, about: str, preprocess: dict[str, Any] | None, x: Any) -> Way:
        try:
            missing = [one.spec.name for one in self.inputs if one.role == "constant" and one.value is None]
            if missing:
                raise BadInput(
                    f"it cannot be run without {', '.join(map(quoted, missing))}: an .npz sample may have it by that name"
                )
            plan = Inputs(Card(_prepared(card(self.inputs, self.states, []), preprocess)), self.model.inputs, self.model.outputs)
            self.model.renew()
            return Way(about, preprocess, self.model.run(self._fed(plan, x)), "")
        except (EdgerouteError, ValueError) as e:
            return Way(about, preprocess, None, named(e))

    def _fed(self, plan: Inputs, x: Any) -> dict[str, Any]:
        return {**plan.feed([x], self.model.name), **plan.constants, **plan.state}

    def _by_sample(self, ways: Sequence[Way], made: dict[str, Any], found: list[Finding]) -> None:
        """The preprocessing that the sample shows: its layout, where pixels are not scaled. Sizes are fitted in several ways."""
        told = ways[0].preprocess if ways and ways[0].raw is not None else None
        if told is None:
            return
        guess = next(one for one in self.inputs if one.preparations)
        about = f"inputs.{quoted(guess.spec.name)}.preprocess"
        if len(ways) == 1 and told["layout"] != guess.layout:
            plain = {key: value for key, value in told.items() if key != "resize"}
            made.update(_prepared(made, plain))
            found[:] = [one for one in found if one.about != about]
            what = f"pixels {shape_text(plain['shape'])}, {plain['layout']}, transposed to {guess.layout}"
            found.append(Finding(about, what, "likely", "the sample is such a picture, and integers are not scaled"))
        if "resize" in told and list(np.shape(self.sample.x if self.sample else ()))[:2] != told["resize"]:
            side = min(told["resize"])
            lines = f'"preprocess": {{..., "resize": {told["resize"]}}}  (stretched, as here)\n'
            lines += f'"preprocess": {{..., "resize": {side}, "crop": {told["resize"]}}}  (cut out of the middle)'
            why = f"the sample has another size than {shape_text(told['resize'])}, which the model takes"
            found.append(Finding(f"{about}.resize", "how are pictures fitted?", "open", why, lines))

    def _shown(self, ways: Sequence[Way], made: dict[str, Any], old: Card | None) -> list[Shown]:
        shown = list[Shown]()
        if old is not None and self.sample is not None:
            shown.append(self._with_card(old))
        for way in ways:
            if way.raw is None:
                shown.append(Shown(way.about, error=way.error))
            else:
                shown.append(self._answer(way.about, Card(_prepared(made, way.preprocess)), way.raw))
        return shown

    def _with_card(self, old: Card) -> Shown:
        assert self.sample is not None
        about = "with the card that is there"
        pictures = self.sample.picture is not None and any(one.preprocess and one.preprocess.picture for one in old.inputs)
        try:
            plan = Inputs(old, self.model.inputs, self.model.outputs)
            self.model.renew()
            raw = self.model.run(self._fed(plan, self.sample.picture if pictures else self.sample.x))
        except EdgerouteError as e:
            return Shown(about, error=named(e))
        return self._answer(about, old, raw)

    def _answer(self, about: str, told: Card, raw: Mapping[str, Any]) -> Shown:
        """What a router answers with that card."""
        try:
            plan = Inputs(told, self.model.inputs, self.model.outputs)
            names = [told.output] if told.output else [spec.name for spec in plan.outputs]
            rows = {name: plan.rows(raw[name]) for name in names}
            reader = Reader(
                told.score or "msp", labels=told.labels, kind=told.kind, name=self.model.name,
                none_found=told.none_found,
            )  # fmt: skip
            answer = reader.one(next(iter(rows.values())) if len(rows) == 1 else rows)
        except (EdgerouteError, LookupError, TypeError, ValueError) as e:
            return Shown(about, error=named(e))
        return Shown(about, answer.value, answer.confidence)

    # --------------------------------------------------------------------------------------------------- zeros and random
    def _try(self, ways: Sequence[Way]) -> None:
        """Runs it on zeros and on random numbers, and keeps the outputs, row by row."""
        for way in ways:
            self._keep(way.raw or {}, 1)
        more = list[int]()
        self.model.renew()
        error: Exception | None = None
        for feed in feeds(self.inputs, MOST_PROBED):
            try:
                zeros = self.model.run(feed)
            except EdgerouteError as e:
                error = e
                continue
            count = self._count(feed)
            for other in variations(self.inputs, feed):
                try:
                    raw = self.model.run(other)
                except EdgerouteError:
                    continue
                if count == 1 and self._count(other) > 1 and self.batch is None:
                    self.batch = batch_of(zeros, raw, self._count(other))
                self._keep(raw, self._count(other))
                more.append(self._count(other))
            self._keep(zeros, count)
            shapes = ", ".join(f"{quoted(name)} {shape_text(array.shape)}" for name, array in feed.items())
            several = f"; also with {max(more)} inputs at a time" if more and max(more) > count else ""
            self.notes.append(f"it runs on zeros{' and random numbers' if more else ''}: {shapes}{several}")
            assumed = [one.spec.name for one in self.inputs if one.role == "constant" and one.value is None]
            self.notes += [f"{quoted(name)} was assumed to be {feed[name].reshape(-1)[0]}" for name in assumed]
            return
        self.notes.append(
            f"it does not run on zeros: {named(error)}" if error is not None
            else "it was not tried with zeros: its inputs are too large, or have too many sizes"
        )  # fmt: skip

    def _count(self, feed: Mapping[str, Any]) -> int:
        return next((len(feed[one.spec.name]) for one in self.inputs if one.role == "given" and one.batch == 0), 1)

    def _keep(self, raw: Mapping[str, Any], count: int) -> None:
        """The outputs for each of so many inputs."""
        here = {spec.name: raw[spec.name] for spec in self.read if spec.name in raw}
        if len(here) > 1 and are_boxes(here):
            self.rows.append(here)
            return
        axis = self.batch if isinstance(self.batch, int) else 0
        for i in range(count):
            self.rows.append({name: _at(value, i, count, axis) for name, value in here.items()})


def _at(value: Any, i: int, count: int, axis: int) -> Any:
    if isinstance(value, list):
        return value[i] if len(value) == count else value
    array = np.asarray(value)
    return np.moveaxis(array, axis, 0)[i] if array.ndim > axis and array.shape[axis] == count else array


def _prepared(data: dict[str, Any], preprocess: dict[str, Any] | None) -> dict[str, Any]:
    """The card with that preprocessing for the input that has a layout."""
    if preprocess is None:
        return data
    if "input" in data:
        return {**data, "input": {**data["input"], "preprocess": preprocess}}
    return {**data, "inputs": [{**one, "preprocess": preprocess} if "layout" in one else one for one in data["inputs"]]}


def _open_pair(one: Pair) -> Finding:
    about = f"state.{quoted(one.input)}"
    shape = ', "shape": [...]' if "size of the first" in one.grounds else ""
    line = f'"state": [{{"input": {text(one.input)}, "output": {text(one.output)}{shape}}}]'
    return Finding(about, f"is {quoted(one.output)} fed back as {quoted(one.input)}?", "open", one.grounds, line)
