"""Labels that a person gives for `calibrate --ask`: file of the answers, questions in the terminal, and views of inputs to show.

Inputs are shown as text, pictures and sounds. One process has the file at a time.
"""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import sys
import wave
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import BadInput, EdgerouteError, StoreError
from edgeroute.stores.cache.input_keys_and_fingerprints import digest
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.untrusted_files import open_file, parse_json
from edgeroute.tools.bounded_lines_and_rows import lines_of
from edgeroute.tools.measure.labels_on_demand import FunctionLabels, Question
from edgeroute.tools.measure.threshold_evaluation import Examples

# What is shown of an input: texts, pictures and sounds.

MOST_PIXELS = 1024  # most pixels of a picture's longer side; of a larger one every k-th is shown
LEAST_PIXELS = 8  # least pixels of the shorter side of an array that is shown as a picture
LEAST_SAMPLES = 4000  # least length of a row of numbers that is taken for a sound
RATE = 16_000  # rate at which sounds are played: that of the inputs of models of speech
LONGEST = 4000  # most characters of a text
# First bytes of a file -> its type.
MEDIA = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "audio/wav", b"OggS": "audio/ogg",
    b"fLaC": "audio/flac", b"ID3": "audio/mpeg",
}  # fmt: skip
SHADES = " .:-=+*#%@"


class Part(NamedTuple):
    """Part of an input that is shown."""

    kind: Literal["text", "image", "audio"]
    data: str  # a text, or a data URL
    plain: str  # text of the input for a terminal


def parts_of(x: Any, name: str = "") -> Iterator[Part]:
    """Yield the parts of an input to show to a person: texts (cut to 4,000 characters), pictures and sounds. Fetches nothing.

    Mappings, chat messages and lists that hold mappings are walked. Bytes are a file's content: a picture or sound by its first
    bytes. Arrays may be pictures or sounds. All else is text, as JSON.

    name: the input's key in a mapping, put before its text; empty: it is not in one.
    """
    head = f"{name}: " if name else ""
    if isinstance(x, Mapping) and {"role", "content"} <= x.keys():  # a message
        yield from parts_of(x["content"], str(x["role"]))
    elif isinstance(x, Mapping) and x.get("type") == "text" and "text" in x:  # a part of a message
        yield from parts_of(x["text"], name)
    elif (
        isinstance(x, Mapping)
        and isinstance(image := x.get("image_url"), Mapping)
        and (url := str(image.get("url"))).startswith("data:image/")  # nothing is fetched from elsewhere
    ):
        yield Part("image", url, f"{head}a picture: --page shows it")
    elif isinstance(x, Mapping):
        for key, value in x.items():
            yield from parts_of(value, str(key))
    elif isinstance(x, list | tuple) and any(isinstance(part, Mapping) for part in x):
        for part in x:
            yield from parts_of(part, name)
    elif isinstance(x, bytes):
        kind = next((kind for start, kind in MEDIA.items() if x.startswith(start)), "")
        text = f"{head}{len(x):,} bytes{f' of {kind}' if kind else ''}"
        shown: Any = kind.partition("/")[0] or "text"
        yield Part(shown, _url(kind, x) if kind else text, text)
    elif isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        yield from _array_parts(x, head)
    else:
        text = head + (x if isinstance(x, str) else json.dumps(to_json_types(x), ensure_ascii=False))
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"
        yield Part("text", text, text)


def _array_parts(x: Any, head: str) -> Iterator[Part]:
    """Yield one part: a picture if the array has the shape of one, a sound if it is a long row of numbers, else numbers as text.

    A picture has 8 pixels or more on each side and no, 3 or 4 channels, first or last. A sound has 4,000 numbers or more, and is
    taken to be at 16 kHz. Axes of size 1 do not count. Of other arrays the first 400 numbers are shown.
    """
    squeezed = np.squeeze(x)
    if squeezed.ndim == 3 and squeezed.shape[0] in {3, 4} and squeezed.shape[-1] not in {3, 4}:  # noqa: PLR2004 - channels first
        squeezed = np.moveaxis(squeezed, 0, -1)
    text = f"{head}{x.dtype} {list(x.shape)}"
    grey = squeezed.ndim == 2  # noqa: PLR2004 - rows and columns
    if (grey or (squeezed.ndim == 3 and squeezed.shape[-1] in {3, 4})) and min(squeezed.shape[:2]) >= LEAST_PIXELS:  # noqa: PLR2004
        pixels = _to_bytes(squeezed)
        yield Part("image", _url("image/png", _png(pixels)), f"{text}\n{_drawn(pixels if grey else pixels[..., :3].mean(-1))}")
    elif squeezed.ndim == 1 and squeezed.size >= LEAST_SAMPLES:
        seconds = f"{text}, a sound of {squeezed.size / RATE:.1f} s at {RATE:,} Hz: --page plays it"
        yield Part("audio", _url("audio/wav", _wav(squeezed)), seconds)
    else:
        numbers = " ".join(f"{value:.4g}" for value in x.ravel()[: LONGEST // 10].tolist())
        yield Part("text", f"{text} {numbers}", f"{text} {numbers}")


def _to_bytes(x: Any) -> Any:
    """Return pixels as uint8, at most 1,024 on the longer side (of a larger picture every k-th row and column).

    Other numbers than uint8 are scaled: the least becomes 0 and the greatest 255. The shape is [height, width], perhaps with
    channels.
    """
    step = ceil(max(x.shape[:2]) / MOST_PIXELS)
    x = x[::step, ::step]
    if x.dtype == np.uint8:
        return x
    numbers = _finite(x)
    low, high = numbers.min(), numbers.max()
    return ((numbers - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def _finite(x: Any) -> Any:
    """Return numbers as float64 of a moderate size, with 0 for NaN."""
    return np.clip(np.nan_to_num(x.astype(float)), -1e9, 1e9)


def _png(pixels: Any) -> bytes:
    """Return pixels, uint8 [height, width] or [height, width, 3 or 4], as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        """Return a chunk of the file."""
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, *channels = pixels.shape
    colour = {(): 0, (3,): 2, (4,): 6}[tuple(channels)]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _wav(samples: Any) -> bytes:
    """Return samples as a WAV file, mono, 16 bits, 16 kHz: int16 as they are, others scaled to full volume."""
    if samples.dtype != np.int16:
        numbers = _finite(samples)
        samples = (numbers * (32767 / max(abs(numbers).max(), 1e-9))).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def _url(kind: str, data: bytes) -> str:
    """Return a file's content as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _drawn(grey: Any) -> str:
    """Return a grey picture as lines of characters, the denser the brighter, at most 64 in a line.

    A character is twice as high as wide, so half as many rows as columns are taken.
    """
    step = ceil(grey.shape[1] / 64)
    rows = grey[:: 2 * step, ::step] // (256 / len(SHADES))
    return "\n".join("".join(SHADES[int(value)] for value in row).rstrip() for row in rows)


# Questions, and the file of their answers.


class Asked(NamedTuple):
    """Question to a person."""

    name: str  # name of the input
    parts: tuple[Part, ...]  # view of the input: its text, picture or sound
    answers: tuple[str, str]  # the two answers, in an order that does not tell whose they are
    done: int  # number of questions before this one
    left: int  # least number of questions from this one on


Reply = Literal["1", "2", "neither", "unknown"]
Ask: TypeAlias = Callable[[Asked], Reply]  # waits for a person's reply; raises KeyboardInterrupt to stop
Right = Literal["edge", "cloud", "neither", "unknown"]
# Keys of the terminal -> reply.
REPLIES: Mapping[str, Reply] = {
    "1": "1", "2": "2", "n": "neither", "0": "neither", "neither": "neither", "?": "unknown", "u": "unknown",
}  # fmt: skip


def in_terminal(asked: Asked) -> Reply:
    """Print a question on stderr and wait for the reply on stdin, asking again for anything that is none; return it.

    Raises:
        KeyboardInterrupt: the reply is q, or stdin ends.
    """
    shown = [f"--- {asked.done + 1} of at least {asked.done + asked.left}: {asked.name}", *(part.plain for part in asked.parts)]
    shown += [f"{key}: {answer}" for key, answer in zip("12", asked.answers, strict=True)]
    print(printable("\n".join(shown)), file=sys.stderr)
    while True:
        print("Which is right? 1, 2, n (neither), ? (unknown), q (stop): ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        reply = line.strip().lower()
        if not line or reply == "q":
            raise KeyboardInterrupt
        if reply in REPLIES:
            return REPLIES[reply]


class AnswersFile:
    """File of a person's answers, a line of JSON each, by the content of the input. One process has it at a time.

    A line has `input`, its SHA-256, `name`, the answers `edge` and `cloud`, and `right`: edge, cloud, neither or unknown,
    or nothing, for a blank. Of several lines about an input the last counts.

    Args:
        path: path of the file; it is created with the first answer.

    Raises:
        BadInput: a line is something else.
        StoreError: it cannot be read, or another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._needs_newline = path, False
        self._torn_at: int | None = None  # length of the file without a line that was not finished; None: there is none
        self._lock = ProcessLock(path.with_name(f"{path.name}.lock"))
        try:
            if not self._lock.take():
                raise StoreError(f"{path}: another `calibrate` has it: wait for its end, or name another file by --answers")
            self.lines = self._read() if path.exists() else {}
        except EdgerouteError:
            self.close()
            raise
        except OSError as e:
            self.close()
            raise StoreError(f"{path} cannot be read: {e.strerror or e}") from e

    def close(self) -> None:
        """Give up the file."""
        self._lock.leave()

    def add(self, line: dict[str, Any]) -> None:
        """Append a line to the file, which is created if missing, and to `lines`; once this returns, the line is on the disk.

        A last line that a killed process or a full disk left unfinished is cut off first.

        Raises:
            StoreError: it cannot be written.
        """
        text = b"\n" * self._needs_newline + json.dumps(line).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                if self._torn_at is not None:
                    file.truncate(self._torn_at)
                self._torn_at = file.seek(0, os.SEEK_END)
                while text:  # a disk that is nearly full takes a part, and then raises
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
        except OSError as e:
            raise StoreError(f"{self.path} cannot be written: {e.strerror or e}") from e
        self._torn_at, self._needs_newline = None, False
        self.lines[line["input"]] = line

    def _read(self) -> dict[str, dict[str, Any]]:
        """Read the file; return SHA-256 of an input -> its line, of several the last.

        A last line that a killed process left unfinished is left out, and noted, so that `add` cuts it off.

        Raises:
            BadInput: another line is no JSON, or not as `add` writes it.
        """
        lines = dict[str, dict[str, Any]]()
        with open_file(self.path) as file:
            self._parse(lines_of(file, self.path), lines)
        return lines

    def _parse(self, rows: Iterable[bytes], lines: dict[str, dict[str, Any]]) -> None:
        """Parse the file's lines into `lines`. Raises as `_read`."""
        size = 0
        for number, row in enumerate(rows, 1):
            size += len(row)
            self._needs_newline = not row.endswith(b"\n")
            try:
                line = parse_json(row) if row.strip() else None
            except ValueError as e:
                if row.startswith(b"{") and not row.endswith(b"\n"):
                    self._torn_at, self._needs_newline = size - len(row), False
                    continue
                raise BadInput(f"{self.path}:{number}: expected a line of JSON, as --ask writes it") from e
            if line is None:
                continue
            if not isinstance(line, dict) or not {"input", "edge", "cloud"} <= line.keys():
                raise BadInput(f'{self.path}:{number}: expected "input", "edge", "cloud" and "right", as --ask writes them')
            if (right := line.get("right")) not in (None, "", "edge", "cloud", "neither", "unknown"):
                raise BadInput(f"{self.path}:{number}: right must be edge, cloud, neither, unknown, or empty, not {right!r:.40}")
            lines[str(line["input"])] = line


@contextmanager
def answers_file(path: Path) -> Iterator[AnswersFile]:
    """Open the file of answers for a `with` block, and release its lock after it. Raises as `AnswersFile`.

    Ctrl-C in the block is raised on, after a line on stderr: how many answers the file has, and that the same command goes on.
    """
    file = AnswersFile(path)
    try:
        yield file
    except KeyboardInterrupt:
        print(f"\nstopped: {len(file.lines):,} answers are in {path}, and the same command goes on", file=sys.stderr)
        raise
    finally:
        file.close()


class AskedLabels(FunctionLabels):
    """Labels that the data has, or else the file of answers, or else a person.

    Args:
        answers: file of answers; replies are appended to it.
        ask: asks a person, and waits; None: a label that neither has is unknown.
        labels: label of each input, None where the data has none; None: it has no labels.
        names: name of each input.
    """

    def __init__(self, answers: AnswersFile, ask: Ask | None, labels: Sequence[Any] | None, names: Sequence[str]) -> None:
        super().__init__(lambda _: None, dict(enumerate(labels or ())))
        self._file, self._ask, self._names, self._asked = answers, ask, names, 0

    def begin(self, examples: Examples, inputs: Sequence[Any], names: Sequence[Any] | None) -> None:
        """Set the examples, and the keys of the inputs in the file: their SHA-256, or the name of one that has no hash."""
        super().begin(examples, inputs, names)
        self._keys = [(digest(b"", x) or f"by name: {self._names[i]}".encode()).hex() for i, x in enumerate(inputs)]

    def judge(self, questions: list[Question]) -> Iterable[float | None]:
        """Yield for each question -1 if the edge is right, 1 if the cloud is, 0 for neither, None for unknown.

        The label of the data decides, else the reply in the file, else the person, who is waited for. Each reply is on the disk
        before the next question.
        """
        left = sum(question.number not in self.labels and self._stored(question) is None for question in questions)
        self._known += len(questions) - left
        for question in questions:
            if question.number in self.labels:
                yield self._loss(question)
                continue
            right = self._stored(question)
            if right is None:
                right = "unknown" if self._ask is None else self._answer(question, self._ask, left)
                left -= 1
            yield {"edge": -1.0, "cloud": 1.0, "neither": 0.0, "unknown": None}[right]

    def notes(self) -> list[str]:
        """Return notes on the labels that were read, and on answers in the file that are about other inputs, and not used."""
        others = len(self._file.lines.keys() - set(self._keys))
        more = [f"{others:,} answers in {self._file.path} are about other inputs, and not used"] if others else []
        return [*super().notes(), *more]

    def _stored(self, question: Question) -> Right | None:
        """Return who is right by the file's line about this input; None: the file does not tell.

        The line may be of earlier models with other answers. Then the answer that was right is compared with the present ones,
        and "neither" or "unknown" holds only if both present answers are among the line's.
        """
        line = self._file.lines.get(self._keys[question.number], {})
        right: Right | None = line.get("right") or None
        sides = [to_json_types(answer) for answer in (question.edge, question.cloud)]
        if right in {"edge", "cloud"}:
            loss, _ = self._loss_of(line[right], *sides)
            return "neither" if loss is None else "cloud" if loss > 0 else "edge"
        then = line.get("edge"), line.get("cloud")
        return right if all(self._loss_of(answer, *then)[0] is not None for answer in sides) else None

    def _answer(self, question: Question, ask: Ask, left: int) -> Right:
        """Ask the person which answer is right and wait; append the reply to the file and return whose answer it names.

        The order of the two answers depends on the input's hash, so that nobody learns whose is whose.

        left: least number of questions that remain, to be shown.
        """
        key, name = self._keys[question.number], self._names[question.number]
        line = {"edge": to_json_types(question.edge), "cloud": to_json_types(question.cloud)}
        first, second = sides = ("cloud", "edge") if int(key[-1], 16) % 2 else ("edge", "cloud")  # nobody learns whose it is
        reply = ask(Asked(name, tuple(parts_of(question.x)), (_text(line[first]), _text(line[second])), self._asked, left))
        right: Any = reply if reply in {"neither", "unknown"} else sides[int(reply) - 1]
        self._file.add({"input": key, "name": name, **line, "right": right})
        self._asked += 1
        return right  # type: ignore[no-any-return]


def _text(answer: Any) -> str:
    """Return an answer as text."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
