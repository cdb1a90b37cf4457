"""Reads text in a picture, and translates it: RapidOCR's pipeline on models of edgeroute. A runtime for `NAME.ocr`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from words import DEVICE, Table

from edgeroute import BadInput, OnnxModel, RuntimeMissing

PACKAGE = "rapidocr_onnxruntime"
DETECTOR, RECOGNISER = "ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"
CLASSIFIER = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
SHOWN = 0.5  # words with a smaller score are not shown; they still make a frame unsure
STRANGE = 0.5  # confidence at most of a frame with a word that the table lacks
READ, WEAK = 0.5, 0.35  # a box of this score is read; one between the two is not, and makes the frame unsure
ROWS, COLUMNS = 6, 320  # with fixed shapes the recogniser gets so many pieces at a time, a multiple of so many pixels wide


class TextReader:
    """PP-OCRv4 mobile: a detector of lines of text, a classifier of those upside down, and a recogniser of what they say.

    An input is a picture, uint8 [rows, columns, 3], red first. Its value is a list of words, see `answer`.

    Args:
        path: any name that ends in .ocr: the models are those in the wheel of rapidocr-onnxruntime.
        side: the longer side of what the detector gets, pixels; larger pictures are scaled down to it.
        providers: where both networks run, as for any ONNX model.
        threads: for one run.
        on_downgrade: what it means that a provider asked for is not there: an error, or a note in `downgraded`.
        fixed_shapes: the recogniser's input is padded to a few shapes, for providers that compile each anew, as TensorRT.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        side: int = 640,
        providers: list[Any] | None = None,
        threads: int = 1,
        on_downgrade: Literal["error", "record"] = "error",
        fixed_shapes: bool = False,
    ) -> None:
        folder = Path(path).parent
        self.name, self.side, self.fixed_shapes = Path(path).stem, side, fixed_shapes
        where = [_from(folder, one) for one in providers or ["cpu"]]
        self.detector, self.recogniser, self.classifier = networks = [
            OnnxModel(_models() / name, providers=where, threads=threads, on_downgrade=on_downgrade)
            for name in (DETECTOR, RECOGNISER, CLASSIFIER)
        ]
        self.files = [*(network.path for network in networks), *DEVICE]
        self.table = Table(DEVICE)
        self._lock, self._pipeline = threading.Lock(), None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings, besides the files, on which its words depend."""
        networks = [self.detector.settings, self.recogniser.settings, self.classifier.settings]
        return {"side": self.side, "fixed_shapes": self.fixed_shapes, "networks": networks}

    @property
    def downgraded(self) -> str | None:
        """Way in which a network runs otherwise than asked; None: as asked."""
        return self.detector.downgraded or self.recogniser.downgraded

    @property
    def placement(self) -> str | None:
        """Place where the detector runs, which takes most of the time."""
        return self.detector.placement

    def load(self) -> Any:
        """Load the networks, once, and return the function that reads a picture with them.

        Raises:
            ModelError: one of them cannot run as asked.
        """
        with self._lock:
            if self._pipeline is None:
                for network in (self.detector, self.recogniser, self.classifier):
                    network.load()
                self._pipeline = self._made()
            return self._pipeline

    def _made(self) -> Any:
        """Return a function: pixels -> words and confidence, by RapidOCR's pipeline on this reader's networks.

        A box whose score is between `WEAK` and `READ` is not read, but makes the picture unsure.
        """
        from rapidocr_onnxruntime import RapidOCR
        from rapidocr_onnxruntime.ch_ppocr_det.utils import DetPreProcess

        made = RapidOCR(text_score=0, det_box_thresh=WEAK)
        detect, scores, side = made.text_det, made.text_det.postprocess_op, self.side
        detect.get_preprocess = lambda _: DetPreProcess(side, "max", detect.mean, detect.std)
        weak = threading.local()

        def strong(*given: Any) -> tuple[Any, list[float]]:
            boxes, sure = scores(*given)
            weak.least = min((score for score in sure if score < READ), default=1.0)
            return np.array([box for box, score in zip(boxes, sure, strict=True) if score >= READ], np.int32), []

        detect.postprocess_op = strong
        detect.infer, made.text_rec.session, made.text_cls.infer = self._detect, self._recognise, self._classify
        made.get_final_res = lambda boxes, turned, lines, *_: (
            None if boxes is None else [*upright(boxes, turned or (), lines or ())]
        )

        def read(pixels: Any) -> tuple[list[dict[str, Any]], float]:
            weak.least = 1.0
            lines = made(pixels)
            words, sure = answer(lines if isinstance(lines, list) else (), self.table)
            return words, round(min(sure, weak.least), 3)

        return read

    def run(self, inputs: list[Any], cancel: Any = None) -> list[tuple[Any, float]]:  # noqa: ARG002 - a picture is read to its end
        """Reads pictures. -> (words, confidence) of each."""
        read = self.load()
        return [read(np.ascontiguousarray(picture(x)[:, :, ::-1])) for x in inputs]  # it takes blue first, as OpenCV has it

    def close(self) -> None:
        """Free the networks; a later run loads them again."""
        with self._lock:
            self._pipeline = None
            for network in (self.detector, self.recogniser, self.classifier):
                network.close()

    def _detect(self, batch: Any) -> list[Any]:
        return [self.detector.run_feed({self.detector.inputs[0].name: batch})]

    def _classify(self, batch: Any) -> list[Any]:
        return [self.classifier.run_feed({self.classifier.inputs[0].name: batch})]

    def _recognise(self, batch: Any) -> list[Any]:
        """Run the recogniser on pieces of a picture; with fixed shapes these are padded before, and cut after."""
        count, _, height, width = batch.shape
        if self.fixed_shapes:
            padded = np.zeros((ROWS, 3, height, -(-width // COLUMNS) * COLUMNS), np.float32)
            padded[:count, :, :, :width] = batch
            batch = padded
        return [self.recogniser.run_feed({self.recogniser.inputs[0].name: batch})[:count]]


def upright(
    boxes: Any, turned: Sequence[tuple[str, float]], lines: Iterable[tuple[str, float]]
) -> Iterable[tuple[Any, str, float]]:
    """Yield each line with its box from where it begins: first corner above its first letter, as the letters stand."""
    for box, (label, sure), (text, score) in zip(np.asarray(boxes), turned, lines, strict=True):
        wide, high = np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[3] - box[0])
        quarter = -1 if high >= 1.5 * wide else 0
        yield np.roll(box, quarter + (2 if label == "180" and sure > 0.9 else 0), 0), text, score  # noqa: PLR2004 - likewise


def answer(lines: Iterable[tuple[Any, str, float]], table: Table) -> tuple[list[dict[str, Any]], float]:
    """Return words and confidence of a picture, from its lines: (box [4, 2], text, score).

    The confidence is the least score of all lines that have a text, and at most `STRANGE` if the table lacks a word: a picture is
    read right if all of it is. Without any text it is 1: nothing was seen that could be misread. Lines below `SHOWN` are no
    words.
    """
    words, confidence = [], 1.0
    for box, text, score in lines:
        if not text.strip():
            continue
        says, known = table.translate(text)
        confidence = min(confidence, float(score) if known else min(float(score), STRANGE))
        if score >= SHOWN:
            corners = np.asarray(box).round().astype(int).tolist()
            words.append({"text": text, "says": says, "box": corners, "score": round(float(score), 3), "known": known})
    return words, round(confidence, 3)


def picture(x: Any) -> Any:
    """Return the input, if it is a picture.

    Raises:
        BadInput: it is none.
    """
    kind, shape = getattr(x, "dtype", type(x).__name__), getattr(x, "shape", ())
    if not isinstance(x, np.ndarray) or kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:  # noqa: PLR2004 - colours
        raise BadInput(f"a picture is uint8 [rows, columns, 3], not {kind} {list(shape)}")
    return x


def _models() -> Path:
    """Return the folder with the networks, without an import of their package.

    Raises:
        RuntimeMissing: the package is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise RuntimeMissing("rapidocr-onnxruntime is not installed: make example-ar installs what is needed")
    return Path(found.submodule_search_locations[0]) / "models"


def _from(folder: Path, provider: Any) -> Any:
    """Return a provider whose cache of compiled engines starts from the policy's folder."""
    if isinstance(provider, dict) and "engine_cache" in provider:
        return {**provider, "engine_cache": str(folder / provider["engine_cache"])}
    return provider
