"""The AR prototype on rendered scenes, with the real models: what is read, who read it, and what is drawn."""

from __future__ import annotations

import base64
import json
from io import BytesIO

import cloud
import httpx
import main
import numpy as np
import pytest
import sources
from overlay import COLOURS, Drawn, Overlay, jpeg, painted, placed
from page import Page
from PIL import Image
from reader import TextReader, said
from scene import EACH_S, frame_at
from screens import Folder
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from edgeroute import BadInput
from edgeroute.testing import CannedServer

LONG = 60.0
SURE, UNSURE, WALL = 1.0, EACH_S + 1.0, 2 * EACH_S + 1.0
"""Instants of the scene: a sign that the device reads surely, one that it does not, and none."""
NOWHERE = "http://127.0.0.1:9/read"


@pytest.fixture(scope="module")
def reader():
    return TextReader("small.ocr")


@pytest.fixture(scope="module")
def url():
    """Of the real cloud, in its own process."""
    with cloud.started() as found:
        yield found


@pytest.fixture
def opened(monkeypatch):
    """Routers by the example's policy, whose deadlines no slow machine reaches."""
    monkeypatch.setenv("EDGEROUTE_CLOUD__URL", "")  # restored afterwards: the program sets it
    monkeypatch.setenv("EDGEROUTE_CLOUD__TIMEOUT", "60s")
    monkeypatch.setattr(main, "STALE_S", LONG)
    made = []

    def open_(url):
        made.append(main.router_of(main.POLICY, url, deadline=LONG))
        return made[-1]

    yield open_
    for router in made:
        router.close()


class Screen:
    """Keeps what was drawn."""

    def __init__(self):
        self.drawn = []

    def show(self, drawn):
        self.drawn.append(drawn)
        return True


def test_a_sign_is_read_on_the_device(reader):
    ((words, confidence),) = reader.run([frame_at(SURE)])
    assert said(words) == ("PLATFORM 4", "Harbour trains")
    assert confidence >= 0.9
    assert confidence == min(word["score"] for word in words)
    for word in words:
        assert np.ptp(np.array(word["box"])[:, 0]) > np.ptp(np.array(word["box"])[:, 1]), "wider than high"
