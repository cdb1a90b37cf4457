"""Measurements of the demo: images, choice of a threshold, timed calls; and their report as text, numbers, picture and page."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from edgeroute.confidence.scores import msp
from edgeroute.errors import BadInput, NoAnswer
from edgeroute.router.router import Router
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import MOST_UNPACKED, open_file
from edgeroute.tools.cli.tables_and_options import table
from edgeroute.tools.measure.deferral_curve import deferral_curve
from edgeroute.tools.measure.report import html_blocks as html
from edgeroute.tools.measure.report.figures import INK, SIZE, element, frame, legend, side_alone
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import LEGS, size
from edgeroute.tools.measure.report.report_pages_and_results import Page, document
from edgeroute.types import Answer

# Data of the demo: validation results of the shipped models, and test images.

Array = np.ndarray[Any, np.dtype[Any]]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


class Images(NamedTuple):
    """Test images; no parameter is chosen on them."""

    images: Array  # uint8 [n, 28, 28]
    labels: Array  # [n], class indices
    which: str  # source of the images, for people


class Validation(NamedTuple):
    """Results of both models on images outside the training and test sets."""

    confidence: Array  # [n], confidence of the edge, by the score msp
    edge_right: Array
    cloud_right: Array


def test_images(folder: Path, given: Path | None) -> Images:
    """Load all 10,000 images from `given`, or from Debian's dataset-fashion-mnist if installed; else the sample in `folder`.

    Raises:
        BadInput: `given` does not contain them.
    """
    home = given or DEBIAN
    if given is not None or (home / IMAGES).exists():
        return Images(read_idx(home / IMAGES), read_idx(home / LABELS), f"the Fashion-MNIST test images in {home}")
    with np.load(folder / "sample.npz") as sample:
        which = "the Fashion-MNIST test images that edgeroute brings (all 10,000: apt install dataset-fashion-mnist, or --data)"
        return Images(sample["images"], sample["labels"], which)


def validation(folder: Path) -> Validation:
    """Read validation.npz in `folder`; return the edge's confidence, and if each model is right, by the logits stored there."""
    with np.load(folder / "validation.npz") as data:
        edge, cloud, labels = data["edge_logits"], data["cloud_logits"], data["labels"]
    return Validation(msp(edge), edge.argmax(1) == labels, cloud.argmax(1) == labels)


def read_idx(path: Path) -> Array:
    """Read a gzipped IDX file of bytes; return its values, uint8, in the stored shape.

    After 0, 0, 8 the format has the number of axes, their sizes (big-endian) and the values.

    Raises:
        BadInput: the file is missing, over 256 MB, unpacks to over 512 MB, or is not in this format.
    """
    try:
        with open_file(path, 1 << 28) as file, gzip.open(file) as unpacked:
            raw = unpacked.read(MOST_UNPACKED + 1)
        if len(raw) > MOST_UNPACKED:
            raise ValueError(f"it unpacks to more than {MOST_UNPACKED:,} bytes")  # noqa: TRY301 - reported below, with the path
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like one")  # noqa: TRY301 - reported below, with the path
        shape = np.frombuffer(raw, ">u4", raw[3], 4)
        return np.frombuffer(raw, np.uint8, offset=4 + shape.nbytes).reshape(tuple(map(int, shape)))
    except FileNotFoundError as e:
        raise BadInput(f"{path} is missing: put Fashion-MNIST's file there") from e
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as e:
        raise BadInput(f"{path} is not a gzipped IDX file of bytes: {e}") from e


# Choice of a threshold, and measurement of edge, cloud and cascade.

BATCH = 64
NEAR = 1e-9  # tolerance of shares, which are quotients of integers: smaller differences are rounding errors


class Sweep(NamedTuple):
    """Every cascade that a threshold can make, from deferring nothing to deferring everything."""

    threshold: Array  # [k], ascending: accept from this confidence on
    deferral: Array  # [k], 0..1: deferral rate, the share below the threshold
    accuracy: Array  # [k], 0..1: accuracy with the cloud's answers for that share, and the edge's for the rest


class Choice(NamedTuple):
    """Chosen point of a sweep."""

    threshold: float
    deferral: float
    accuracy: float
    reached: bool  # True if it reaches the requested accuracy; otherwise it is the most accurate one allowed


def sweep(confidence: Array, edge_right: Array, cloud_right: Array) -> Sweep:
    """Return the sweep for the edge's confidences [n] and the correctness of each side [n].

    Equal confidences are deferred together.
    """
    curve, levels = deferral_curve(confidence, edge_right, cloud_right), np.unique(confidence)
    return Sweep(np.append(levels, np.nextafter(levels[-1], np.inf)), curve.deferred, curve.accuracy)


def choose(points: Sweep, *, goal: float, most: float) -> Choice:
    """Return the point that defers least, of those with accuracy at least `goal` and deferral rate at most `most`, both 0..1.

    If there is none, the most accurate with deferral rate at most `most`; of several, the one with the lowest deferral rate.
    """
    allowed = points.deferral <= most + NEAR
    reaching = np.flatnonzero(allowed & (points.accuracy >= goal - NEAR))
    i = reaching[0] if len(reaching) else np.argmax(np.where(allowed, points.accuracy, -1))
    return Choice(float(points.threshold[i]), float(points.deferral[i]), float(points.accuracy[i]), bool(len(reaching)))


class Run(NamedTuple):
    """Result of answering all n images in one way."""

    right: Array  # [n], bool
    confidence: Array  # [n], confidence of the answering target
    p50_ms: float  # median time of single calls
    bytes_sent: int  # bytes of request bodies; for all n, as if each had been sent singly
    deferral: float  # deferral rate, 0..1
    degraded: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return float(self.right.mean())


def measure(router: Router, images: Array, labels: Array, *, singly: int, advance: Callable[[int], object]) -> Run:
    """Answer `singly` images with one timed call each, and the rest in batches. Loads and connects first.

    Args:
        router: the router, closed at the end.
        images: uint8 [n, 28, 28].
        labels: [n], class indices.
        singly: 1..n.
        advance: called with the number of images just answered.

    Raises:
        NoAnswer: a model cannot be loaded, or the cloud cannot be reached.
        CloudError: the cloud was the only target, and failed.
    """
    with router:
        report = router.check()
        if not report.ok:
            raise NoAnswer("; ".join(line.removeprefix("! ") for line in report.lines if line.startswith("!")))
        before = router.stats().bytes_sent
        answers: list[Answer] = []
        times = []
        for image in images[:singly]:
            begun = perf_counter()
            answers.append(router.infer(image))
            times.append(perf_counter() - begun)
            advance(1)
        sent = router.stats().bytes_sent - before
        for start in range(singly, len(images), BATCH):
            answers += router.infer_many(list(images[start : start + BATCH]))
            advance(len(answers) - start)
        classes = np.array([int(np.argmax(answer.outputs)) for answer in answers])
        return Run(
            right=classes == labels,
            confidence=np.array([answer.confidence for answer in answers], float),
            p50_ms=float(np.median(times)) * 1000,
            bytes_sent=round(sent * len(images) / singly),
            deferral=router.stats().deferral_rate,
            degraded=sum(answer.degraded for answer in answers),
        )


SLACK = 0.005  # accuracy, 0..1, that the cascade may lose against the cloud on the validation images
HEAD = ("", "accuracy", "median time", "deferred", "sent")
POINTS = 400  # most points of the curve, to limit file sizes


class Report(NamedTuple):
    """All measurements of a run."""

    test: Images
    edge: Run
    cloud: Run
    cascade: Run
    choice: Choice
    validated: int  # number of images that the threshold was chosen on
    most: float  # largest deferral rate, 0..1, on those
    singly: int  # number of images sent to the cloud alone singly
    rtt: float  # seconds added to each round trip

    @property
    def n(self) -> int:
        """Number of test images."""
        return len(self.test.images)

    @property
    def ways(self) -> dict[str, Run]:
        """Results of the edge alone, the cloud alone and the cascade, by name."""
        return {"edge": self.edge, "cloud": self.cloud, "cascade": self.cascade}


def numbers(report: Report) -> dict[str, float]:
    """Return the numbers for programs: shares 0..1; times in milliseconds; bytes of the cascade's requests."""
    return {
        "n": report.n,
        **{f"{way}_accuracy": run.accuracy for way, run in report.ways.items()},
        "deferral_rate": report.cascade.deferral,
        **{f"{way}_p50_ms": round(run.p50_ms, 4) for way, run in report.ways.items()},
        "bytes_sent": report.cascade.bytes_sent,
        "threshold": report.choice.threshold,
    }


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return the table's rows, under `HEAD`."""
    return [
        (LEGS[way], f"{run.accuracy * 100:.2f} %", f"{run.p50_ms:.2f} ms", f"{run.deferral * 100:.1f} %", size(run.bytes_sent))
        for way, run in report.ways.items()
    ]


def gain_text(report: Report) -> str:
    """Return a sentence that compares the cascade's bytes, median time and accuracy with the cloud's and the edge's."""
    edge, cloud, cascade = report.edge, report.cloud, report.cascade
    return (
        f"{100 * (1 - cascade.deferral):.1f} % of the images never left the device: {size(cascade.bytes_sent)} sent instead of "
        f"{size(cloud.bytes_sent)}, a median of {cascade.p50_ms:.2f} ms instead of {cloud.p50_ms:.2f} ms, and an accuracy of "
        f"{cascade.accuracy * 100:.2f} %, where the cloud alone has {cloud.accuracy * 100:.2f} % and the "
        f"edge alone {edge.accuracy * 100:.2f} %."
    )


def caveats(report: Report) -> list[str]:
    """Return caveats about the numbers, one line each: images, choice of the threshold, batches, network, degraded answers."""
    choice = report.choice
    if choice.reached:
        why = f"the smallest deferral that came within {SLACK * 100:g} point of the cloud's accuracy there"
    else:
        why = f"none came within {SLACK * 100:g} point of the cloud's accuracy there, so the most accurate one"
    chosen = (
        f"threshold {choice.threshold:.4f}, chosen on {report.validated:,} validation images, not on these: {why}, deferring "
        f"{report.most * 100:.0f} % at most ({choice.deferral * 100:.1f} % deferred, {choice.accuracy * 100:.2f} % accurate "
        "there); uncalibrated, with no guarantee about errors"
    )
    lines = [f"{report.n:,} images: {report.test.which}", chosen]
    if report.singly < report.n:
        lines.append(
            f"cloud alone: latency and bytes are those of {report.singly:,} single requests (bytes scaled to all); the other "
            f"{report.n - report.singly:,} went in batches of {BATCH}, for the accuracy"
        )
    added = f"{report.rtt * 1000:g} ms added to each round trip" if report.rtt else "no network between (--rtt 80ms adds one)"
    lines.append(f"the cloud is a process on this machine, {added}; times depend on what else runs here")
    if report.cascade.degraded:
        lines.append(f"{report.cascade.degraded:,} answers are degraded: the cloud was asked, and failed")
    return lines


def points(report: Report) -> tuple[list[float], list[float]]:
    """Return deferral rate and accuracy of thresholds on the test images, in percent, thinned to at most 400 points."""
    all_points = sweep(report.edge.confidence, report.edge.right, report.cloud.right)
    keep = np.unique(np.linspace(0, len(all_points.deferral) - 1, POINTS).astype(int))
    return (all_points.deferral[keep] * 100).tolist(), (all_points.accuracy[keep] * 100).tolist()


def drawing(report: Report, *, ink: str = INK) -> Any:
    """Return accuracy over deferral rate as a matplotlib figure without a background.

    The threshold in use and each side alone are marked.

    ink: colour of text and axes.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    x, y = points(report)
    figure, axes = frame((SIZE[0], 4.0), ink=ink)
    axes.plot([0, 100], [y[0], y[-1]], "--", color=ink, alpha=0.5, linewidth=1, label="deferring at random")
    axes.plot(x, y, color=ink, linewidth=2, label="deferring what the edge is least sure of")
    side_alone(axes, "edge", 0, y[0])
    side_alone(axes, "cloud", 100, y[-1])
    current = report.cascade.deferral * 100, report.cascade.accuracy * 100
    label = f"in use: {current[0]:.1f} % deferred, {current[1]:.2f} % right"
    axes.plot(*current, "*", color=ink, markersize=14, label=label)
    axes.set_xlabel("deferred, % of the images")
    axes.set_ylabel("accuracy, %")
    axes.set_xlim(-1, 101)
    legend(figure, ink=ink)
    return figure


def png(report: Report) -> bytes:
    """Return the curve of `drawing` as a PNG, black on white. Raises as that."""
    out = io.BytesIO()
    drawing(report, ink="#1b1b1f").savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def page(report: Report) -> str:
    """Return the report as an HTML page: table, curve and notes.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    label = "Accuracy over the share of images deferred"
    curve = html.figure(element(drawing(report), "curve"), label, f"{label}.")
    body = "\n".join([html.table(HEAD, rows(report), "The edge, the cloud, and both"), curve, html.listed(caveats(report))])
    title = f"edgeroute demo: {report.n:,} images on the edge, in the cloud, and routed"
    return document(Page(title, gain_text(report), body))


def show(report: Report, folder: Path | None, *, as_json: bool) -> None:
    """Print the report, as JSON or as text, and write curve.png and report.html into `folder`, if there is one.

    Without matplotlib no file is written, and a line says so.
    """
    console = Console(stderr=as_json, highlight=False, emoji=False)
    if as_json:
        print(json.dumps(numbers(report)))
    else:
        table(HEAD, rows(report), ("",))
        for text in (gain_text(report), "", *(f"- {note}" for note in caveats(report))):
            console.print(text, markup=False)
    if folder is not None:
        try:
            picture, text = png(report), page(report)
        except ImportError:
            console.print("No picture and no page: matplotlib is not installed (pip install 'edgeroute[demo]')", markup=False)
            return
        replace_file(folder / "curve.png", picture)
        replace_file(folder / "report.html", text)
        console.print(f"Written: {folder / 'curve.png'}, {folder / 'report.html'}", markup=False, soft_wrap=True)
