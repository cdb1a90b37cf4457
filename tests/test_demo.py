"""The demo: how it chooses its threshold, what it measures, what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from time import monotonic
from urllib.parse import urlsplit

import numpy as np
import pytest
import tiny
from commands import cli
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import BadInput, OnnxModel, StoreError, Unreachable
from edgeroute.confidence import msp
from edgeroute.tools.cli.demo import serving
from edgeroute.tools.cli.demo_measurements_and_report import (
    IMAGES,
    LABELS,
    Choice,
    Images,
    Report,
    Run,
    caveats,
    choose,
    gain_text,
    numbers,
    page,
    points,
    read_idx,
    show,
    sweep,
    test_images,
    validation,
)
from edgeroute.tools.measure.report.figures import INK
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import size

test_images.__test__ = False  # a function of the demo, not a test

KEYS = [
    "n", "edge_accuracy", "cloud_accuracy", "cascade_accuracy", "deferral_rate", "edge_p50_ms", "cloud_p50_ms", "cascade_p50_ms",
    "bytes_sent", "threshold",
]  # fmt: skip

# few different confidences, so that there are ties
known = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 1.0]), st.booleans(), st.booleans()), min_size=1, max_size=30
).map(lambda rows: tuple(map(np.array, zip(*rows, strict=True))))


def cascade(confidence, edge_right, cloud_right, threshold):
    """(deferral, accuracy), the plain way."""
    accepted = confidence >= threshold
    return np.mean(~accepted), np.mean(np.where(accepted, edge_right, cloud_right))


# ------------------------------------------------------------------------------------------------- threshold
@given(known)
def test_a_sweep_is_what_its_thresholds_do(answers):
    found = sweep(*answers)
    for threshold, *point in zip(*found, strict=True):
        assert point == pytest.approx(cascade(*answers, threshold))
    assert np.all(np.diff(found.threshold) > 0)
    assert (found.deferral[0], found.deferral[-1]) == (0, 1)
    assert (found.accuracy[0], found.accuracy[-1]) == pytest.approx((answers[1].mean(), answers[2].mean()))


@given(known, st.floats(0, 1.1))
def test_a_sweep_has_what_any_threshold_does(answers, threshold):
    point = cascade(*answers, threshold)
    found = sweep(*answers)
    assert any(point == pytest.approx(other) for other in zip(found.deferral, found.accuracy, strict=True))


@given(known, st.floats(0, 1), st.floats(0, 1))
def test_the_choice_is_the_smallest_deferral_that_will_do(answers, goal, most):
    found = sweep(*answers)
    chosen = choose(found, goal=goal, most=most)
    assert (chosen.deferral, chosen.accuracy) == pytest.approx(cascade(*answers, chosen.threshold))
    assert chosen.deferral <= most + 1e-6
    allowed = [(d, a) for d, a in zip(found.deferral, found.accuracy, strict=True) if d <= most - 1e-6]
    if chosen.reached:
        assert chosen.accuracy >= goal - 1e-6
        assert all(a < goal for d, a in allowed if d < chosen.deferral)
    else:
        assert all(a < goal and a <= chosen.accuracy for d, a in allowed)


def test_the_choice_by_hand():
    confidence = np.array([0.9, 0.5, 0.7, 0.5, 0.8])
    edge_right = np.array([True, False, False, False, True])
    found = sweep(confidence, edge_right, np.ones(5, bool))
    assert choose(found, goal=0.8, most=1) == pytest.approx(Choice(0.7, 0.4, 0.8, True))
    assert choose(found, goal=0.4, most=1) == pytest.approx(Choice(0.5, 0.0, 0.4, True))
    assert choose(found, goal=1.0, most=1) == pytest.approx(Choice(0.8, 0.6, 1.0, True))
    assert choose(found, goal=1.0, most=0.5) == pytest.approx(Choice(0.7, 0.4, 0.8, False))
    assert choose(found, goal=1.0, most=0.2) == pytest.approx(Choice(0.5, 0.0, 0.4, False)), "equal confidences are not parted"


def test_all_can_be_deferred():
    found = sweep(np.array([1.0, 1.0]), np.array([False, False]), np.array([True, True]))
    chosen = choose(found, goal=1, most=1)
    assert chosen.deferral == 1
    assert chosen.threshold > 1


# ------------------------------------------------------------------------------------------------------ data
def test_the_shipped_files(fashion):
    known = validation(fashion)
    assert len(known.confidence) == len(known.edge_right) == len(known.cloud_right)
    assert known.edge_right.dtype == bool
    assert 0 < known.confidence.min() <= known.confidence.max() <= 1


def idx(array):
    return gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes(), mtime=0)


def test_a_folder_with_the_data(tmp_path, fashion):
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 9], np.uint8)
    (tmp_path / IMAGES).write_bytes(idx(images))
    (tmp_path / LABELS).write_bytes(idx(labels))
    found = test_images(fashion, tmp_path)
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, labels)
    assert str(tmp_path) in found.which


def test_the_sample_where_there_is_no_more(tmp_path, fashion, monkeypatch):
    monkeypatch.setattr("edgeroute.tools.cli.demo_measurements_and_report.DEBIAN", tmp_path)
    found = test_images(fashion, None)
    assert found.images.shape == (1000, 28, 28)
    assert "that edgeroute brings" in found.which


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"\0\0\x0d\x01\0\0\0\0", mtime=0),
        gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc", mtime=0),
        idx(np.zeros(9, np.uint8))[:-9],
    ],
)
def test_files_that_are_no_idx(tmp_path, content):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(BadInput, match="not a gzipped IDX file"):
        read_idx(tmp_path / "x.gz")
    with pytest.raises(BadInput, match="is missing"):
        read_idx(tmp_path / "y.gz")


def test_an_idx_file_that_unpacks_too_far(tmp_path, monkeypatch):
    (tmp_path / "x.gz").write_bytes(idx(np.zeros(1000, np.uint8)))
    assert read_idx(tmp_path / "x.gz").shape == (1000,)
    monkeypatch.setattr("edgeroute.tools.cli.demo_measurements_and_report.MOST_UNPACKED", 900)
    with pytest.raises(BadInput, match="unpacks to more than 900 bytes"):
        read_idx(tmp_path / "x.gz")


# ---------------------------------------------------------------------------------------------------- server
def test_the_server_ends_with_what_it_is_for(tmp_path):
    model = tiny.linear(tmp_path / "m.onnx", card={"name": "tiny"})

    def interrupted():
        with serving(model) as (url, name):
            assert name == "tiny"
            addresses.append((urlsplit(url).hostname, urlsplit(url).port))
            socket.create_connection(addresses[0]).close()
            raise KeyboardInterrupt

    addresses = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[0])


def test_the_server_ends_with_a_demo_that_is_killed(tmp_path):
    model = tiny.linear(tmp_path / "m.onnx", card={"name": "tiny"})
    code = (
        "import sys, threading; from pathlib import Path; from edgeroute.tools.cli.demo import serving\n"
        "with serving(Path(sys.argv[1])) as (url, _): print(url, flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE, text=True) as process:
        url = urlsplit(process.stdout.readline())
        process.kill()
    until, pause = monotonic() + 120, threading.Event()
    with suppress(ConnectionRefusedError):
        while True:
            assert monotonic() < until, "it goes on"
            with suppress(ConnectionResetError):  # accepted by nobody any more
                socket.create_connection((url.hostname, url.port)).close()
            pause.wait(0.05)


@pytest.mark.slow
def test_a_server_that_does_not_start(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with (
        pytest.raises(Unreachable, match=r"(?s)did not start, and ended with exit code 2; its last lines:.*broken\.onnx"),
        serving(tmp_path / "broken.onnx"),
    ):
        pytest.fail("it cannot have started")


# ---------------------------------------------------------------------------------------------------- report
@pytest.fixture
def report():
    """A made-up one of 100 images, on which the edge is right where it is sure, and the cloud always."""
    confidence = np.linspace(0.01, 1, 100)
    images = Images(np.zeros((100, 28, 28), np.uint8), np.zeros(100), "made <up>")
    ways = [
        Run(right, confidence, p50_ms, sent, deferral, 0)
        for right, p50_ms, sent, deferral in [
            (confidence > 0.105, 0.1, 0, 0.0), (np.ones(100, bool), 3.0, 90_000, 1.0), (confidence > 0.055, 0.2, 4_500, 0.05),
        ]
    ]  # fmt: skip
    return Report(images, *ways, Choice(0.055, 0.04, 0.95, True), 5_000, 0.2, 100, 0.0)


def test_numbers(report):
    assert list(numbers(report)) == KEYS
    assert numbers(report) == pytest.approx({
        "n": 100, "edge_accuracy": 0.9, "cloud_accuracy": 1.0, "cascade_accuracy": 0.95, "deferral_rate": 0.05,
        "edge_p50_ms": 0.1, "cloud_p50_ms": 3.0, "cascade_p50_ms": 0.2, "bytes_sent": 4_500, "threshold": 0.055,
    })  # fmt: skip


def test_words(report):
    assert gain_text(report) == (
        "95.0 % of the images never left the device: 4.5 KB sent instead of 90.0 KB, a median of 0.20 ms instead of 3.00 ms, and "
        "an accuracy of 95.00 %, where the cloud alone has 100.00 % and the edge alone 90.00 %."
    )
    said = "\n".join(caveats(report))
    assert "chosen on 5,000 validation images, not on these" in said
    assert "uncalibrated" in said
    assert "degraded" not in said
    assert "batches" not in said
    said = "\n".join(caveats(report._replace(singly=10, rtt=0.08, cascade=report.cascade._replace(degraded=3))))
    assert "10 single requests" in said
    assert "the other 90 went in batches of 64" in said
    assert "80 ms added to each round trip" in said
    assert "3 answers are degraded" in said
    assert "none came within 0.5 point" in "\n".join(caveats(report._replace(choice=Choice(0.5, 0.2, 0.9, False))))
    assert [size(n) for n in (0, 1_500, 2_000_000)] == ["0.0 KB", "1.5 KB", "2.0 MB"]


def test_the_curve_goes_through_what_was_measured(report):
    x, y = points(report)
    assert (x[0], y[0], x[-1], y[-1]) == pytest.approx((0, 90, 100, 100))
    assert dict(zip(np.round(x), y, strict=True))[5] == pytest.approx(95)


def test_files(report, tmp_path, capsys):
    show(report, tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["n"] == 100
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.html").read_text()
    assert text == page(report)
    assert "made &lt;up&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert INK not in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r"(?:src|href)=\"(?!#)", text), "nothing is fetched"


def test_files_that_cannot_be_written(report, tmp_path):
    """It is told as of any file, and no part of one is left."""
    pytest.importorskip("matplotlib")
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(StoreError, match=r"curve\.png cannot be written"):
        show(report, tmp_path, as_json=True)
    assert [*tmp_path.iterdir()] == [tmp_path / "curve.png"]


def test_without_the_plots(report, tmp_path, capsys, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    show(report, tmp_path, as_json=False)
    out = capsys.readouterr().out
    assert "edge and cloud" in out
    assert "matplotlib is not installed (pip install 'edgeroute[demo]')" in " ".join(out.split())
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------- whole
@pytest.mark.slow
def test_the_demo(fashion):
    code, out, err = cli("demo", "--json", "--n", "200")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert list(said) == KEYS
    assert said["n"] == 200
    assert min(said[f"{way}_p50_ms"] for way in ("edge", "cloud", "cascade")) > 0
    assert said["bytes_sent"] > 784 * said["deferral_rate"] * 200

    with np.load(fashion / "sample.npz") as sample:
        images, labels = sample["images"][:200], sample["labels"][:200]
    edge, cloud = (
        np.concatenate([OnnxModel(fashion / name).run([x]) for x in images]) for name in ("edge.int8.onnx", "cloud.onnx")
    )
    answers = msp(edge), edge.argmax(1) == labels, cloud.argmax(1) == labels
    deferral, accuracy = cascade(*answers, said["threshold"])
    assert said["edge_accuracy"] == pytest.approx(answers[1].mean())
    assert said["cloud_accuracy"] == pytest.approx(answers[2].mean())
    assert (said["deferral_rate"], said["cascade_accuracy"]) == pytest.approx((deferral, accuracy))


@pytest.mark.slow
def test_the_demo_over_a_long_way(tmp_path):
    code, out, err = cli("demo", "--n", "20", "--rtt", "20ms", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    for words in ("edge alone", "cloud alone", "edge and cloud", "never left the device", "20 ms added", "20 images", "Written"):
        assert words in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curve.png", "report.html"]


def test_the_demo_without_its_data(tmp_path):
    code, out, err = cli("demo", "--data", tmp_path, "--json")
    assert (code, out) == (1, "")
    assert json.loads(err)["kind"] == "BadInput"
    (tmp_path / "file").touch()
    code, out, err = cli("demo", "--out", tmp_path / "file")
    assert (code, out) == (2, "")
    assert "--out" in err
