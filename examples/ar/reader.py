"""Reads text in a picture: the pipeline is RapidOCR's, its two networks are models of edgeroute. A runtime for `NAME.ocr`."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeroute import BadInput, OnnxModel, RuntimeMissing

PACKAGE = "rapidocr_onnxruntime"
DETECTOR, RECOGNISER = "ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"
SHOWN = 0.5
"""Words with a smaller score are not shown. They still make a frame unsure: there may be a word where nothing was legible."""
ROWS, COLUMNS = 6, 320
"""With fixed shapes the recogniser gets so many pieces at a time, each a multiple of so many pixels wide."""


class TextReader:
    """PP-OCRv4 mobile: a detector of lines of text, and a recogniser of what they say.

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
        self.detector, self.recogniser = (
            OnnxModel(_models() / name, providers=where, threads=threads, on_downgrade=on_downgrade)
            for name in (DETECTOR, RECOGNISER)
        )
        self.files = [self.detector.path, self.recogniser.path]
        self._lock, self._pipeline = threading.Lock(), None

    @property
    def settings(self) -> dict[str, Any]:
        """What its words depend on besides the files."""
        networks = [self.detector.settings, self.recogniser.settings]
        return {"side": self.side, "fixed_shapes": self.fixed_shapes, "networks": networks}

    @property
    def downgraded(self) -> str | None:
        """How a network runs otherwise than asked."""
        return self.detector.downgraded or self.recogniser.downgraded

    @property
    def placement(self) -> str | None:
        """Where the detector runs, which takes most of the time."""
        return self.detector.placement

    def load(self) -> Any:
        """Loads both networks, and puts them in the pipeline in place of its own.

        Raises:
            ModelError: one of them cannot run as asked.
        """
        with self._lock:
            if self._pipeline is None:
                self.detector.load()
                self.recogniser.load()
                from rapidocr_onnxruntime import RapidOCR

                made = RapidOCR(use_cls=False, text_score=0, det_limit_side_len=self.side, det_limit_type="max")
                made.text_cls = None
                made.text_det.infer, made.text_rec.session = self._detect, self._recognise
                self._pipeline = made
            return self._pipeline

    def run(self, inputs: list[Any], cancel: Any = None) -> list[tuple[Any, float]]:  # noqa: ARG002 - a picture is read to its end
        """Reads pictures. -> (words, confidence) of each."""
        pipeline = self.load()
        found = []
        for x in inputs:
            lines, _ = pipeline(np.ascontiguousarray(picture(x)[:, :, ::-1]))  # it takes blue first, as OpenCV has it
            found.append(answer(lines or ()))
        return found

    def close(self) -> None:
        """Frees the networks; a later run loads them again."""
        with self._lock:
            self._pipeline = None
            self.detector.close()
            self.recogniser.close()

    def _detect(self, batch: Any) -> list[Any]:
        return [self.detector.run_feed({self.detector.inputs[0].name: batch})]

    def _recognise(self, batch: Any) -> list[Any]:
        count, _, height, width = batch.shape
        if self.fixed_shapes:
            padded = np.zeros((ROWS, 3, height, -(-width // COLUMNS) * COLUMNS), np.float32)
            padded[:count, :, :, :width] = batch
            batch = padded
        return [self.recogniser.run_feed({self.recogniser.inputs[0].name: batch})[:count]]


def answer(lines: Iterable[tuple[Any, str, float]]) -> tuple[list[dict[str, Any]], float]:
    """Words and confidence of a picture, from its lines: (box [4, 2], text, score).

    The confidence is the least score of all lines that have a text: a picture is read right if all of it is, so it is as sure as
    its least sure line. Without any text it is 1: nothing was seen that could be misread.
    """
    words = [
        {"text": text, "box": np.asarray(box).round().astype(int).tolist(), "score": round(float(score), 3)}
        for box, text, score in lines
        if text.strip()
    ]
    confidence = min((word["score"] for word in words), default=1.0)
    return [word for word in words if word["score"] >= SHOWN], confidence


def said(words: list[dict[str, Any]]) -> tuple[str, ...]:
    """What the words say."""
    return tuple(word["text"] for word in words)


def letters(words: list[dict[str, Any]]) -> str:
    """The words' letters: by these two answers are compared. A lost space makes no other scene, and neither does another box."""
    return "".join("".join(said(words)).lower().split())


def picture(x: Any) -> Any:
    """The input, if it is a picture.

    Raises:
        BadInput: it is none.
    """
    kind, shape = getattr(x, "dtype", type(x).__name__), getattr(x, "shape", ())
    if not isinstance(x, np.ndarray) or kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:  # noqa: PLR2004 - colours
        raise BadInput(f"a picture is uint8 [rows, columns, 3], not {kind} {list(shape)}")
    return x


def _models() -> Path:
    """The folder with the networks, which nothing is imported for."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise RuntimeMissing("rapidocr-onnxruntime is not installed: make example-ar installs what is needed")
    return Path(found.submodule_search_locations[0]) / "models"


def _from(folder: Path, provider: Any) -> Any:
    """A provider whose cache of compiled engines starts from the policy's folder."""
    if isinstance(provider, dict) and "engine_cache" in provider:
        return {**provider, "engine_cache": str(folder / provider["engine_cache"])}
    return provider
