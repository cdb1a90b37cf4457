"""Codecs of payloads: an input as the file of a picture or of audio, as a compressed tensor, or as smaller numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from edgeroute.cloud.datatypes import NAMES
from edgeroute.edge.picture import check_pillow
from edgeroute.edge.tensors import Array, shape_text
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing, nearest
from edgeroute.system.imports import import_late

MEDIA = "media_type"
"""The tensor's parameter that says what its bytes are."""
PICTURES = {"jpeg": 95, "webp": 95, "png": None}
"""Codec of pictures -> its quality where none is given, which costs little (docs/payloads.md); None: it has none."""
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}
MOST_QUALITY = 100
MOST_LEVEL = 19
"""Of zstd, without the levels that take much memory."""


class Coded(NamedTuple):
    """One input, encoded."""

    data: bytes | Array
    """An element of a BYTES tensor; or numbers, a row of a tensor of their dtype."""
    parameters: dict[str, Any]
    """Of the tensor: what the server needs to know to decode it."""


@runtime_checkable
class Codec(Protocol):
    """How an input is encoded. Called from several threads at once."""

    name: str
    """With all that changes its result: certificates and cached answers are bound to it."""
    pictures: bool
    """Whether `encode` takes pictures, uint8 [height, width(, channels)]; else the tensor's rows."""

    def encode(self, x: Array) -> Coded:
        """Encodes one input, without the batch axis. Raises BadInput: this one cannot be."""


class PictureCodec:
    """Files of pictures, by Pillow; JPEG by simplejpeg where that is installed.

    Args:
        kind: jpeg, webp or png.
        quality: 1 to 100, higher is larger; of png none.

    Raises:
        PolicyError: another quality.
        RuntimeMissing: Pillow is not installed.
    """

    pictures = True

    def __init__(self, kind: str, quality: int | None = None) -> None:
        default = PICTURES[kind]
        quality = default if quality is None else quality
        if default is None and quality is not None:
            raise PolicyError(f"codec: {kind} loses nothing, and has no quality: leave it out")
        if quality is not None and (type(quality) is not int or not 1 <= quality <= MOST_QUALITY):
            raise PolicyError(f"codec: the quality of {kind} is a whole number from 1 to {MOST_QUALITY}, not {quality!r}")
        self.kind, self.quality = kind, quality
        self.name = kind if quality is None else f"{kind}:{quality}"
        self._parameters = {MEDIA: f"image/{kind}"}
        if find_spec("PIL") is None:
            check_pillow()
        self._fast = kind == "jpeg" and find_spec("simplejpeg") is not None

    def encode(self, x: Array) -> Coded:
        """uint8 [height, width(, channels)] -> the file."""
        x = np.ascontiguousarray(x)
        channels = x.shape[2] if x.ndim == 3 else 0  # noqa: PLR2004 - height, width, channels
        if x.dtype != np.uint8 or x.ndim not in (2, 3) or channels not in MODES or 0 in x.shape:
            raise BadInput(
                f"{self.kind} takes pictures, uint8 [height, width] or [height, width, 1, 3 or 4], and not {shape_text(x.shape)} "
                f"{x.dtype}: convert it, its scale is yours to say"
            )
        if self.kind == "jpeg" and channels == 4:  # noqa: PLR2004 - with transparency
            raise BadInput('jpeg has no transparency, and the picture has 4 channels: give it 3, or use codec "webp" or "png"')
        if self._fast:
            return Coded(self._simple(x, channels), self._parameters)
        image, out = import_late("PIL.Image").fromarray(x[..., 0] if channels == 1 else x, MODES[channels]), io.BytesIO()
        try:
            image.save(out, self.kind.upper(), **({} if self.quality is None else {"quality": self.quality}))
        except Exception as e:  # Pillow's encoders raise what they find
            raise BadInput(f"a picture of {shape_text(x.shape)} cannot be written as {self.kind}: {e}") from e
        return Coded(out.getvalue(), self._parameters)

    def _simple(self, x: Array, channels: int) -> bytes:
        grey = channels in (0, 1)
        space, x = ("GRAY", x.reshape(*x.shape[:2], 1)) if grey else ("RGB", x)
        try:
            found: bytes = import_late("simplejpeg").encode_jpeg(
                x, quality=self.quality, colorspace=space, colorsubsampling="Gray" if grey else "420", fastdct=False
            )  # as Pillow does it
        except ValueError as e:
            raise BadInput(f"a picture of {shape_text(x.shape)} cannot be written as jpeg: {e}") from e
        return found


class Uint8Codec:
    """Numbers as bytes: q for q * scale + offset. A server whose model takes uint8 gets q alone.

    Args:
        scale: what a step is worth, as 1/255 for pixels from 0 to 1.
        offset: what 0 is.

    Raises:
        PolicyError: a scale that is not above 0, or one that is not finite.
    """

    pictures = False

    def __init__(self, scale: float, offset: float = 0.0) -> None:
        good = all(isinstance(one, int | float) and not isinstance(one, bool) and np.isfinite(one) for one in (scale, offset))
        if not (good and scale > 0):
            raise PolicyError(f"codec: uint8 takes a scale above 0 and an offset, not {scale!r} and {offset!r}")
        self.scale, self.offset = float(scale), float(offset)
        self.name = f"uint8:{self.scale!r}:{self.offset!r}"
        self._parameters = {"scale": self.scale, "offset": self.offset}

    def encode(self, x: Array) -> Coded:
        """Numbers -> the nearest bytes."""
        with np.errstate(all="ignore"):
            steps = np.rint((x.astype(np.float64) - self.offset) / self.scale)
        if not ((steps >= 0) & (steps <= 255)).all():  # noqa: PLR2004 - of a byte; false for NaN too
            low, high = self.offset, self.offset + 255 * self.scale
            raise BadInput(f'codec "uint8" has numbers from {low:g} to {high:g}, and the input has others: set scale and offset')
        return Coded(steps.astype(np.uint8), self._parameters)


class Fp16Codec:
    """Floats of half the bits, about three digits."""

    name, pictures = "fp16", False

    def encode(self, x: Array) -> Coded:
        """Floats -> float16."""
        if x.dtype.kind != "f":
            raise BadInput(f'codec "fp16" takes floats, and the input is {x.dtype}: leave it out')
        with np.errstate(all="ignore"):
            half = x.astype(np.float16)
        if not np.isfinite(half).all():
            raise BadInput('codec "fp16" has numbers to 65504, and the input has larger ones, or none: scale it, or leave it out')
        return Coded(half, {})


class ZstdCodec:
    """The tensor's bytes, compressed by zstandard, or by Python 3.14's own.

    Args:
        level: 1 to 19, higher is smaller and slower.

    Raises:
        PolicyError: another level.
        RuntimeMissing: neither is there.
    """

    pictures = False

    def __init__(self, level: int = 3) -> None:
        if type(level) is not int or not 1 <= level <= MOST_LEVEL:
            raise PolicyError(f"codec: the level of zstd is a whole number from 1 to {MOST_LEVEL}, not {level!r}")
        self.name, self._level = f"zstd:{level}", level
        check_zstd()

    def encode(self, x: Array) -> Coded:
        """A row -> its bytes, little-endian, compressed."""
        if x.dtype.name not in NAMES:
            raise BadInput(f'codec "zstd" takes numbers, and the input is {x.dtype}: leave it out')
        raw = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes()
        if (own := own_zstd()) is not None:
            data = import_late(own).compress(raw, self._level)
        else:
            data = import_late("zstandard").ZstdCompressor(level=self._level).compress(raw)
        about = f"application/zstd; datatype={NAMES[x.dtype.name]}; shape={'x'.join(map(str, x.shape))}"
        return Coded(data, {MEDIA: about})


class FlacCodec:
    """Audio as FLAC of 16 bits, by soundfile: floats from -1 to 1, or int16, [samples] or [samples, channels].

    Args:
        rate: samples a second.

    Raises:
        PolicyError: another rate.
        RuntimeMissing: soundfile is not installed.
    """

    pictures = False

    def __init__(self, rate: int) -> None:
        if type(rate) is not int or not 1 <= rate <= 655_350:  # noqa: PLR2004 - the format's
            raise PolicyError(f"codec: flac takes the rate, samples a second as a whole number up to 655350, not {rate!r}")
        self.name, self._rate = f"flac:{rate}", rate
        check_sound()

    def encode(self, x: Array) -> Coded:
        """Samples -> the file."""
        fits = x.dtype == np.int16 or x.dtype.kind == "f"
        if not fits or x.ndim not in (1, 2) or x.size == 0 or (x.ndim == 2 and x.shape[1] > 8):  # noqa: PLR2004 - the format's
            raise BadInput(
                'codec "flac" takes floats from -1 to 1 or int16, [samples] or [samples, up to 8 channels], and not '
                f"{shape_text(x.shape)} {x.dtype}"
            )
        if x.dtype.kind == "f":
            if not (np.abs(x) <= 1).all():  # false for NaN too
                raise BadInput('codec "flac" takes floats from -1 to 1, and the input has others: scale it')
            x = np.rint(x.astype(np.float64) * 32767).astype(np.int16)
        out = io.BytesIO()
        import_late("soundfile").write(out, x, self._rate, format="FLAC", subtype="PCM_16")
        return Coded(out.getvalue(), {MEDIA: "audio/flac"})


_OPTIONS: dict[str, tuple[str, ...]] = {
    "jpeg": ("quality",), "webp": ("quality",), "png": (), "uint8": ("scale", "offset"), "fp16": (), "zstd": ("level",),
    "flac": ("rate",),
}  # fmt: skip
"""Codec -> its options; the first may follow its name, as in jpeg:85."""


def codec_of(given: str | Mapping[str, Any] | Codec) -> Codec:
    """The codec of a name, as "jpeg" or "jpeg:85", or of a table, as {"name": "uint8", "scale": 1 / 255}; one itself.

    Raises:
        PolicyError: there is no such codec, or it has no such option.
        RuntimeMissing: what it takes is not installed.
    """
    if not isinstance(given, str | Mapping):
        if isinstance(given, Codec):
            return given
        raise PolicyError(f'codec: expected a name, as in "jpeg:85", a table or a codec, not a {type(given).__name__}')
    options = dict(given) if isinstance(given, Mapping) else {}
    name, _, first = given.partition(":") if isinstance(given, str) else (str(options.pop("name", "")), "", "")
    if name not in _OPTIONS:
        raise PolicyError(f"codec: {name!r} is none: {nearest(name, _OPTIONS)}")
    takes = _OPTIONS[name]
    if unknown := [key for key in options if key not in takes]:
        raise PolicyError(f"codec: {name} has no option {unknown[0]!r}, only: {', '.join(takes) or 'none'}")
    if first:
        if not (takes and first.isascii() and first.isdigit() and len(first) < 7 and name != "uint8"):  # noqa: PLR2004 - digits
            raise PolicyError(f'codec: {given!r} is none: write a whole number behind the colon, as in "jpeg:85"')
        options[takes[0]] = int(first)
    if (needed := {"uint8": "scale", "flac": "rate"}.get(name)) and needed not in options:
        raise PolicyError(f'codec: {name} needs its {needed}: write {{ name = "{name}", {needed} = ... }}')
    if name in PICTURES:
        return PictureCodec(name, **options)
    made: dict[str, Any] = {"uint8": Uint8Codec, "fp16": Fp16Codec, "zstd": ZstdCodec, "flac": FlacCodec}
    found: Codec = made[name](**options)
    return found


@cache
def own_zstd() -> str | None:
    """Names the module of Python's own zstd; None: it has none."""
    return "compression.zstd" if find_spec("_zstd") is not None else None


def check_zstd() -> None:
    """Raises RuntimeMissing: nothing reads and writes zstd."""
    if own_zstd() is None and find_spec("zstandard") is None:
        raise RuntimeMissing('codec "zstd" needs zstandard, or Python 3.14: pip install zstandard')


def check_sound() -> None:
    """Raises RuntimeMissing: soundfile is not installed."""
    if find_spec("soundfile") is None:
        raise RuntimeMissing('codec "flac" needs soundfile: pip install soundfile')


def unzstd(data: bytes, size: int) -> bytes:
    """Decompresses to exactly `size` bytes; no more are ever made.

    Raises:
        BadInput: it is no zstd, or of another size.
        RuntimeMissing: nothing reads zstd here.
    """
    check_zstd()
    try:
        if (own := own_zstd()) is not None:
            found: bytes = import_late(own).ZstdDecompressor().decompress(data, max_length=size + 1)
        else:
            with import_late("zstandard").ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
                found = reader.read(size + 1)
    except Exception as e:  # each of them has its own
        raise BadInput(f"these {len(data)} bytes are no zstd") from e
    if len(found) != size:
        raise BadInput(f"these {len(data)} bytes of zstd are not {size} bytes of a tensor")
    return found


def unflac(data: bytes, dtype: str, most: int) -> Array:
    """Samples [n, channels] of a FLAC file, int16 or floats.

    Raises:
        BadInput: it is none, is cut off, or has more than `most` numbers.
        RuntimeMissing: soundfile is not installed.
    """
    check_sound()
    try:
        with import_late("soundfile").SoundFile(io.BytesIO(data)) as file:
            if file.format == "FLAC" and 0 < file.frames * file.channels <= most:
                samples: Array = file.read(file.frames, dtype=dtype, always_2d=True)
                if len(samples) == file.frames:  # a header may promise more
                    return samples
    except RuntimeError as e:  # soundfile's
        raise BadInput(f"these {len(data)} bytes are no FLAC") from e
    raise BadInput(f"these {len(data)} bytes are no FLAC, are cut off, or have more than {most} samples")
