"""Sources of audio: a microphone, wav files, sentences spoken by espeak-ng. All of it as chunks of 16 kHz mono."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
CHUNK = 512
"""Samples of a chunk, 32 ms: what the voice detector takes at a time."""
Samples: TypeAlias = NDArray[np.float32]
"""Float32 [samples] from -1 to 1, at `RATE`."""


CONVERT = "ffmpeg -i FILE -ac 1 -ar 16000 NEW.wav makes one that can be read"
RENDER_S = 60.0
"""What takes espeak-ng longer is not spoken."""


class NoSound(Exception):
    """Something for sound is missing; the message says what to do."""


def read_wav(file: Path | io.BytesIO) -> Samples:
    """Return the samples, at 16 kHz, of a wav file with 16 bits a sample, at 8 to 192 kHz; several channels are mixed.

    Raises:
        NoSound: it is no such file.
    """
    try:
        data = file.read_bytes() if isinstance(file, Path) else file.read()
        with wave.open(io.BytesIO(_plain(data))) as found:
            rate, channels, width = found.getframerate(), found.getnchannels(), found.getsampwidth()
            data = found.readframes(found.getnframes())
    except OSError as e:
        raise NoSound(f"{file}: not a wav file that can be read: {e}") from e
    except (EOFError, wave.Error) as e:
        raise NoSound(f"{file}: not a wav file that can be read: {str(e) or 'it ends too early'}; {CONVERT}") from e
    if width != 2 or not 8_000 <= rate <= 192_000:  # noqa: PLR2004 - bytes, hertz
        raise NoSound(f"{file}: {8 * width} bits at {rate} Hz, and 16 at 8,000 to 192,000 are expected; {CONVERT}")
    samples = np.frombuffer(data[: len(data) - len(data) % (2 * channels)], "<i2").reshape(-1, channels)
    return resampled(samples.mean(1).astype(np.float32) / 32768, rate)


def _plain(data: bytes) -> bytes:
    """Return a wav file whose header is WAVE_FORMAT_EXTENSIBLE with the shorter header, which `wave` reads before Python 3.12."""
    at = data.find(b"fmt ") + 8
    extensible, samples = data[at : at + 2] == b"\xfe\xff", data[at + 24 : at + 26]  # the latter as in the shorter one
    return data[:at] + samples + data[at + 2 :] if extensible else data


def resampled(samples: Samples, rate: int, to: int = RATE) -> Samples:
    """Return samples at another rate, by their spectrum: what is above the new rate's half is left out."""
    if rate == to or not len(samples):
        return samples
    length = round(len(samples) * to / rate)
    if not length:
        return samples[:0]
    spectrum = np.fft.rfft(samples)
    out = np.zeros(length // 2 + 1, spectrum.dtype)
    kept = min(len(out), len(spectrum))
    out[:kept] = spectrum[:kept]
    return (np.fft.irfft(out, length) * (to / rate)).astype(np.float32)


def spoken(text: str, voice: str = "en", words_a_minute: int = 150) -> Samples:
    """Return the samples of a text as espeak-ng speaks it; runs it, for 60 s at most.

    Raises:
        NoSound: there is no espeak-ng, it does not know the voice, or takes too long.
    """
    if shutil.which("espeak-ng") is None:
        raise NoSound("espeak-ng is not installed, and it renders speech here: apt-get install espeak-ng, or give --wav FILE")
    command = ["espeak-ng", "-v", voice, "-s", str(words_a_minute), "--stdout", "--stdin"]
    given = text.encode(errors="replace")
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=RENDER_S)  # noqa: S603 - no shell, and the text is not in it
    except subprocess.TimeoutExpired as e:
        raise NoSound(f"espeak-ng has not rendered a text of {len(text)} characters in {RENDER_S:.0f} s") from e
    if done.returncode or not done.stdout:
        raise NoSound(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip() or 'it said nothing'}")
    return read_wav(io.BytesIO(_sized(done.stdout)))


def _sized(data: bytes) -> bytes:
    """Return a wav file from a pipe, whose header says that it is endless, with its true sizes."""
    at = data.index(b"data") + 8
    whole, part = ((len(data) - start).to_bytes(4, "little") for start in (8, at))
    return data[:4] + whole + data[8 : at - 4] + part + data[at:]


def silence(seconds: float) -> Samples:
    """Return so many seconds of silence."""
    return np.zeros(round(seconds * RATE), np.float32)


def chunks(utterances: Iterable[Samples], pause_s: float = 1.0) -> Iterator[Samples]:
    """Yield a recording of these utterances, with silence around each, in chunks of 512 samples."""
    for utterance in utterances:
        whole = np.concatenate([silence(0.3), utterance, silence(pause_s)])
        whole = np.pad(whole, (0, -len(whole) % CHUNK))
        for at in range(0, len(whole), CHUNK):
            yield whole[at : at + CHUNK]


def microphone() -> Iterator[NDArray[np.int16]]:
    """Open the default microphone, and return its chunks, without an end.

    Raises:
        NoSound: there is none; from the chunks: it is gone.
    """
    sounddevice = _sounddevice()
    try:
        stream = sounddevice.InputStream(samplerate=RATE, channels=1, dtype="int16", blocksize=CHUNK)
    except (sounddevice.PortAudioError, ValueError) as e:
        raise NoSound(f"no microphone can be opened: {e}") from e

    def read() -> Iterator[NDArray[np.int16]]:
        with stream:
            while True:
                try:
                    chunk, _ = stream.read(CHUNK)
                except sounddevice.PortAudioError as e:
                    raise NoSound(f"the microphone is gone: {e}") from e
                yield chunk

    return read()


def loudspeaker() -> Any:
    """Return an output of the default loudspeaker, not started yet; None: there is none."""
    try:
        sounddevice = _sounddevice()
        return sounddevice.OutputStream(samplerate=RATE, channels=1, dtype="float32", blocksize=CHUNK)
    except Exception:  # noqa: BLE001 - PortAudio's; without a loudspeaker answers are printed
        return None


def _sounddevice() -> Any:
    """Import sounddevice, and return it.

    Raises:
        NoSound: it or its library is not installed.
    """
    try:
        import sounddevice
    except ImportError as e:
        raise NoSound("sounddevice is not installed: pip install sounddevice") from e
    except OSError as e:  # the library that it wraps
        raise NoSound("PortAudio is not installed: apt-get install libportaudio2") from e
    return sounddevice
