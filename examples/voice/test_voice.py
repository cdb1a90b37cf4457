"""The voice example on real speech, as espeak-ng renders it."""

import asyncio
import contextlib
import json
import shutil
import socket
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng renders the speech: apt-get install espeak-ng"),
]
for name in ("pocketsphinx", "silero_vad", "wyoming"):
    if name != "silero_vad":
        pytest.importorskip(name)

import main as program  # noqa: E402 - after what it needs was looked for
import sound  # noqa: E402
from dialogue import Dialogue  # noqa: E402
from listen import listen  # noqa: E402
from mouth import Mouth  # noqa: E402
from routers import HERE, opened  # noqa: E402
from transcribe import Transcriber  # noqa: E402

from edgeroute import OpenAIChat, Router  # noqa: E402
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply  # noqa: E402

LONG_S = 30.0


@pytest.fixture(scope="module")
def seven():
    return sound.spoken("seven")


def write_wav(path: Path, samples):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sound.RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return path
