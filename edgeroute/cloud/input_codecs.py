"""Codecs of payloads: an input as the file of a picture or of audio, as a compressed tensor, or as smaller numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from edgeroute.cloud.oip_tensors import NAMES
from edgeroute.edge.input_checks_and_stacking import Array, shape_text
from edgeroute.edge.preprocessing import MODES, load_pillow
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing, nearest
from edgeroute.system.late_imports_and_plugins import import_late

MEDIA = "media_type"  # parameter of a tensor with the media type of its bytes
# Codec of pictures -> default quality, with little loss (docs/payloads.md); None: lossless.
PICTURES = {"jpeg": 95, "webp": 95, "png": None}
MOST_QUALITY = 100
MOST_LEVEL = 19  # maximum level of zstd, below the levels that take much memory


class Coded(NamedTuple):
    """Encoded input."""

    data: bytes | Array  # element of a BYTES tensor; or numbers, a row of a tensor of their dtype
    parameters: dict[str, Any]  # parameters of the tensor, by which the server decodes it


@runtime_checkable
class Codec(Protocol):
    """Encoder of inputs. Called from several threads at once."""

    name: str  # name with all settings that change the result: certificates and cached answers are bound to it
    pictures: bool  # True if `encode` takes pictures, uint8 [height, width(, channels)]; False: rows of the tensor

    def encode(self, x: Array) -> Coded:
        """Return one input, without the batch axis, encoded. Raise BadInput if it cannot be."""


class PictureCodec:
    """Codec of picture files, by Pillow; JPEG by simplejpeg if that is installed.

    Args:
        kind: jpeg, webp or png.
        quality: 1 to 100, higher is larger; None for png.

    Raises:
        PolicyError: an invalid quality.
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
            load_pillow()
        self._fast = kind == "jpeg" and find_spec("simplejpeg") is not None

    def encode(self, x: Array) -> Coded:
        """Return the file of a picture, uint8 [height, width] or [height, width, 1, 3 or 4], with its media type.

        JPEG is written by simplejpeg if that is installed, all else by Pillow.

        Raises:
            BadInput: the array is no such picture, or the format cannot hold it, as JPEG cannot a fourth channel.
        """
        x = np.ascontiguousarray(x)
        channels = x.shape[2] if x.ndim == 3 else 0  # noqa: PLR2004 - height, width, channels
        if x.dtype != np.uint8 or x.ndim not in (2, 3) or channels not in MODES or 0 in x.shape:
            raise BadInput(f"{self.kind} takes uint8 [height, width(, 1, 3, 4)], not {shape_text(x.shape)} {x.dtype}: convert it")
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
        """Return the JPEG of a picture, by simplejpeg. Raise BadInput if it cannot be written."""
        grey = channels in (0, 1)
        space, x = ("GRAY", x.reshape(*x.shape[:2], 1)) if grey else ("RGB", x)
        try:
            jpeg: bytes = import_late("simplejpeg").encode_jpeg(
                x, quality=self.quality, colorspace=space, colorsubsampling="Gray" if grey else "420", fastdct=False
            )  # as Pillow does it
        except ValueError as e:
            raise BadInput(f"a picture of {shape_text(x.shape)} cannot be written as jpeg: {e}") from e
        return jpeg


class Uint8Codec:
    """Codec of numbers as bytes: q for q * scale + offset. A server whose model takes uint8 gets q alone.

    Args:
        scale: value of a step, as 1/255 for pixels from 0 to 1.
        offset: value of 0.

    Raises:
        PolicyError: the scale is not above 0, or a number is not finite.
    """

    pictures = False

    def __init__(self, scale: float, offset: float = 0.0) -> None:
        good = all(
            isinstance(number, int | float) and not isinstance(number, bool) and np.isfinite(number) for number in (scale, offset)
        )
        if not (good and scale > 0):
            raise PolicyError(f"codec: uint8 takes a scale above 0 and an offset, not {scale!r} and {offset!r}")
        self.scale, self.offset = float(scale), float(offset)
        self.name = f"uint8:{self.scale!r}:{self.offset!r}"
        self._parameters = {"scale": self.scale, "offset": self.offset}

    def encode(self, x: Array) -> Coded:
        """Return numbers as the nearest bytes, with scale and offset for decoding.

        Raise BadInput if one is NaN, or outside what bytes can hold.
        """
        with np.errstate(all="ignore"):
            steps = np.rint((x.astype(np.float64) - self.offset) / self.scale)
        if not ((steps >= 0) & (steps <= 255)).all():  # noqa: PLR2004 - of a byte; false for NaN too
            low, high = self.offset, self.offset + 255 * self.scale
            raise BadInput(f'codec "uint8" holds {low:g} to {high:g}, and the input has numbers beyond: set scale and offset')
        return Coded(steps.astype(np.uint8), self._parameters)


class Fp16Codec:
    """Codec of floats with half the bits, about three digits."""

    name, pictures = "fp16", False

    def encode(self, x: Array) -> Coded:
        """Return floats as float16; raise BadInput for other types, or if one is too large or not finite."""
        if x.dtype.kind != "f":
            raise BadInput(f'codec "fp16" takes floats, and the input is {x.dtype}: leave it out')
        with np.errstate(all="ignore"):
            half = x.astype(np.float16)
        if not np.isfinite(half).all():
            raise BadInput('codec "fp16" holds up to 65504, and the input has larger numbers or NaN: scale it, or leave it out')
        return Coded(half, {})


class ZstdCodec:
    """Codec of the tensor's bytes, compressed by zstandard, or by Python 3.14's own module.

    Args:
        level: 1 to 19, higher is smaller and slower.

    Raises:
        PolicyError: an invalid level.
        RuntimeMissing: neither module is there.
    """

    pictures = False

    def __init__(self, level: int = 3) -> None:
        if type(level) is not int or not 1 <= level <= MOST_LEVEL:
            raise PolicyError(f"codec: the level of zstd is a whole number from 1 to {MOST_LEVEL}, not {level!r}")
        self.name, self._level = f"zstd:{level}", level
        check_zstd()

    def encode(self, x: Array) -> Coded:
        """Return the bytes of a row, little-endian, compressed; its media type has its datatype and shape.

        Raise BadInput for another dtype than the protocol's numbers and booleans.
        """
        if x.dtype.name not in NAMES:
            raise BadInput(f'codec "zstd" takes numbers, and the input is {x.dtype}: leave it out')
        raw = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes()
        if (module := own_zstd()) is not None:
            data = import_late(module).compress(raw, self._level)
        else:
            data = import_late("zstandard").ZstdCompressor(level=self._level).compress(raw)
        about = f"application/zstd; datatype={NAMES[x.dtype.name]}; shape={'x'.join(map(str, x.shape))}"
        return Coded(data, {MEDIA: about})


class FlacCodec:
    """Codec of audio as 16-bit FLAC, by soundfile: floats from -1 to 1, or int16, [samples] or [samples, channels].

    Args:
        rate: samples per second.

    Raises:
        PolicyError: an invalid rate.
        RuntimeMissing: soundfile is not installed.
    """

    pictures = False

    def __init__(self, rate: int) -> None:
        if type(rate) is not int or not 1 <= rate <= 655_350:  # noqa: PLR2004 - the format's
            raise PolicyError(f"codec: flac takes the rate, samples a second as a whole number up to 655350, not {rate!r}")
        self.name, self._rate = f"flac:{rate}", rate
        check_sound()

    def encode(self, x: Array) -> Coded:
        """Return samples as a FLAC file of 16 bits; floats are scaled to int16.

        Raise BadInput unless they are int16, or floats from -1 to 1, [samples] or [samples, up to 8 channels], and not empty.
        """
        fits = x.dtype == np.int16 or x.dtype.kind == "f"
        if not fits or x.ndim not in (1, 2) or x.size == 0 or (x.ndim == 2 and x.shape[1] > 8):  # noqa: PLR2004 - the format's
            raise BadInput(f'codec "flac" takes float or int16 [samples(, 1 to 8 channels)], not {shape_text(x.shape)} {x.dtype}')
        if x.dtype.kind == "f":
            if not (np.abs(x) <= 1).all():  # false for NaN too
                raise BadInput('codec "flac" takes floats from -1 to 1, and the input has numbers beyond: scale it')
            x = np.rint(x.astype(np.float64) * 32767).astype(np.int16)
        out = io.BytesIO()
        import_late("soundfile").write(out, x, self._rate, format="FLAC", subtype="PCM_16")
        return Coded(out.getvalue(), {MEDIA: "audio/flac"})


# Codec -> its options; the first may follow its name, as in jpeg:85.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "jpeg": ("quality",), "webp": ("quality",), "png": (), "uint8": ("scale", "offset"), "fp16": (), "zstd": ("level",),
    "flac": ("rate",),
}  # fmt: skip


def codec_of(named: str | Mapping[str, Any] | Codec) -> Codec:
    """Return the codec for a name ("jpeg", "jpeg:85"), a table ({"name": "uint8", "scale": 1 / 255}), or a codec.

    A `Codec` is returned itself; the number after the colon is its first option.

    Raises:
        PolicyError: there is no such codec, or an option is unknown, invalid, or missing.
        RuntimeMissing: a package that it needs is not installed.
    """
    if not isinstance(named, str | Mapping):
        if isinstance(named, Codec):
            return named
        raise PolicyError(f'codec: expected a name, as in "jpeg:85", a table or a codec, not a {type(named).__name__}')
    options = dict(named) if isinstance(named, Mapping) else {}
    name, _, first = named.partition(":") if isinstance(named, str) else (str(options.pop("name", "")), "", "")
    if name not in _OPTIONS:
        raise PolicyError(f"codec: there is no {name!r}: {nearest(name, _OPTIONS)}")
    takes = _OPTIONS[name]
    if unknown := [key for key in options if key not in takes]:
        raise PolicyError(f"codec: {name} has no option {unknown[0]!r}, only: {', '.join(takes) or 'none'}")
    if first:
        if not (takes and first.isascii() and first.isdigit() and len(first) < 7 and name != "uint8"):  # noqa: PLR2004 - digits
            raise PolicyError(f'codec: {named!r} is invalid: write a whole number after the colon, as in "jpeg:85"')
        options[takes[0]] = int(first)
    if (needed := {"uint8": "scale", "flac": "rate"}.get(name)) and needed not in options:
        raise PolicyError(f'codec: {name} needs its {needed}: write {{ name = "{name}", {needed} = ... }}')
    if name in PICTURES:
        return PictureCodec(name, **options)
    kinds: dict[str, Any] = {"uint8": Uint8Codec, "fp16": Fp16Codec, "zstd": ZstdCodec, "flac": FlacCodec}
    codec: Codec = kinds[name](**options)
    return codec


@cache
def own_zstd() -> str | None:
    """Return the name of Python's own zstd module; None: it has none."""
    return "compression.zstd" if find_spec("_zstd") is not None else None


def check_zstd() -> None:
    """Raise RuntimeMissing if there is no zstd module."""
    if own_zstd() is None and find_spec("zstandard") is None:
        raise RuntimeMissing('codec "zstd" needs zstandard, or Python 3.14: pip install zstandard')


def check_sound() -> None:
    """Raise RuntimeMissing if soundfile is not installed."""
    if find_spec("soundfile") is None:
        raise RuntimeMissing('codec "flac" needs soundfile: pip install soundfile')
