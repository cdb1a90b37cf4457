"""The shipped edge model on each runtime: whether they agree, how long a call takes, and what edgeroute adds to it.

    python benchmarks/runtimes.py [--data /usr/share/datasets/fashion-mnist] [--also tflite=/path/to/another/bin/python] ...

Each runtime is measured in a process of its own, one after the other. `--data` is a folder with the four .idx.gz files of
Fashion-MNIST, of which the 10,000 test images are taken; without it they are the 1,000 that are shipped. `--also` names the
interpreter of an environment that has another runtime: tflite (tflite-runtime and numpy 1), onnx-openvino (onnxruntime-openvino),
openvino (OpenVINO, and examples/runtime_openvino). What is not installed is named on stderr, and left out. Needs psutil.

A further runtime is one more function here: it gives a model, and the shortest way to the same outputs without edgeroute.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from figures import MODELS, machine, size

from edgeroute import CallableModel, CoreMLModel, LiteRTModel, OnnxModel, Router
from edgeroute.edge.edge_model_members_and_fingerprints import member

SECONDS, TURNS, WARM = 30, size(12, 1), size(2, 0)
"""For the timing of one runtime, about."""
Bare = Callable[[np.ndarray], np.ndarray]


def onnx() -> tuple[OnnxModel, Bare]:
    """ONNX Runtime on the CPU."""
    model = OnnxModel(MODELS / "edge.int8.onnx")
    session = model.load()
    return model, lambda x: session.run(["logits"], {"image": x[None]})[0]


def onnx_openvino() -> tuple[OnnxModel, Bare]:
    """ONNX Runtime's OpenVINO provider, on the CPU."""
    model = OnnxModel(MODELS / "edge.int8.onnx", providers=["openvino"])
    session = model.load()
    return model, lambda x: session.run(["logits"], {"image": x[None]})[0]


def litert(**options: Any) -> tuple[LiteRTModel, Bare]:
    """Load the model in LiteRT with XNNPACK; return it, and the bare way to the same outputs."""
    model = LiteRTModel(MODELS / "edge.int8.tflite", **{"runtime": "litert", **options})
    interpreter = model.load().new().interpreter
    (given,), (read,) = interpreter.get_input_details(), interpreter.get_output_details()
    number, out = given["index"], read["index"]

    def bare(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(number, x[None])
        interpreter.invoke()
        return interpreter.get_tensor(out)

    return model, bare


def coreml() -> tuple[Any, Bare]:
    """Load the model in Core ML on a Mac; elsewhere the package's program, executed in numpy, which tells of its answers alone.

    Returns the model, and the bare way to its outputs.
    """
    path = MODELS / "edge.mlpackage"
    if sys.platform == "darwin":
        model = CoreMLModel(path)
        predict = model.load().predict
        return model, lambda x: predict({"image": x[None].astype(np.float32)})["logits"]
    from mil import Program

    program = Program(path)

    def bare(x: np.ndarray) -> np.ndarray:
        return program({"image": x[None]})["logits"]

    return CallableModel(lambda x: bare(x)[0], version="1", kind="logits"), bare


def openvino() -> tuple[Any, Bare]:
    """Convert the model, load it in the example package of examples/runtime_openvino, and return it and the bare way to its outputs."""
    import openvino as ov
    from edgeroute_openvino import OpenVINOModel

    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "edge.xml")
        ov.save_model(ov.convert_model(str(MODELS / "edge.int8.onnx")), path, compress_to_fp16=False)
        model = OpenVINOModel(path)
        compiled = model.load()
    request = compiled.create_infer_request()
    return model, lambda x: request.infer([x[None]])[0]


RUNTIMES: dict[str, tuple[str, Callable[[], tuple[Any, Bare]]]] = {
    "onnx": ("ONNX Runtime, .onnx", onnx),
    "onnx-openvino": ("ONNX Runtime on OpenVINO, .onnx", onnx_openvino),
    "litert": ("LiteRT, .tflite", litert),
    "litert-plain": ("LiteRT without XNNPACK, .tflite", lambda: litert(delegate="none")),
    "tflite": ("tflite-runtime, .tflite", lambda: litert(runtime="tflite")),
    "coreml": ("Core ML, .mlpackage" if sys.platform == "darwin" else "Core ML's program in numpy, .mlpackage", coreml),
    "openvino": ("OpenVINO (the example package), .xml", openvino),
}
"""Name -> (what the table calls it, the model and the bare run)."""
UNTIMED = {} if sys.platform == "darwin" else {"coreml": "runs on macOS alone"}
"""Runtimes of which the answers alone are measured, to so many images as below, and why."""
FEWER = 2_000


class Measured(NamedTuple):
    """What a process has measured of one runtime."""

    logits: np.ndarray
    mib: float
    us: dict[str, float]
    """The time of a call in microseconds: bare, run_one, router, deadline; empty: it says nothing of the runtime."""


def in_a_thread(run: Callable[[Any], object]) -> Callable[[Any], None]:
    """Return the same run handed over to a thread, and waited for (30 s): what a limit of time costs at the least.

    The thread ends with the process.
    """
    go, over, given = threading.Semaphore(0), threading.Semaphore(0), list[Any]()

    def work() -> None:
        while True:
            go.acquire()
            run(given.pop())
            over.release()

    threading.Thread(target=work, daemon=True).start()

    def hand_over(x: Any) -> None:
        given.append(x)
        go.release()
        over.acquire(timeout=30)

    return hand_over


def rss_mib() -> float:
    """Return the memory that this process has, MiB."""
    import psutil

    return psutil.Process().memory_info().rss / (1 << 20)


def measure(name: str, images: np.ndarray) -> Measured:
    """Load a runtime's model, run the images, and time single calls, those of each way in turns, for some 30 s at most.

    Returns logits, memory and median microseconds by way; without times for a runtime that is not timed here.
    """
    before = rss_mib()
    model, bare = RUNTIMES[name][1]()
    run_one = member(model, "run_one") or (lambda x: model.run([x]))
    run_one(images[0])
    mib = rss_mib() - before
    logits = np.concatenate([np.reshape(run_one(x), (1, -1)) for x in images[: FEWER if name in UNTIMED else None]])
    if name in UNTIMED:
        return Measured(logits, mib, {})

    def never(_: object) -> object:
        raise AssertionError("nothing is deferred here")

    with Router(model, never, threshold=0.0) as plain, Router(model, never, threshold=0.0, deadline=30.0) as hurried:
        ways = {"bare": bare, "thread": in_a_thread(bare), "run_one": run_one, "router": plain.infer, "deadline": hurried.infer}
        rows, medians = list(images[: size(100, 3)]), {way: list[float]() for way in ways}
        begun_s = time.monotonic()
        for turn in range(TURNS):
            if turn > 3 and time.monotonic() > begun_s + SECONDS:
                break
            for way, run in ways.items():
                times = []
                for x in rows:
                    begun = time.perf_counter_ns()
                    run(x)
                    times.append(time.perf_counter_ns() - begun)
                if turn >= WARM:  # until then it warms up
                    medians[way].append(statistics.median(times) / 1e3)
    return Measured(logits, mib, {way: statistics.median(values) for way, values in medians.items()})


def in_a_process(python: str, name: str, images: Path) -> Measured | str:
    """Run `measure` by another interpreter, and return its result, or the last line of its error."""
    with tempfile.TemporaryDirectory() as home:
        out = Path(home, "out.npz")
        done = subprocess.run(
            [python, __file__, "--one", name, str(images), str(out)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["?"])[-1]
        with np.load(out) as found:
            told = json.loads(str(found["told"]))
            return Measured(found["logits"], told["mib"], told["us"])


def test_images(data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [n, 28, 28], and their classes: of Fashion-MNIST's files in that folder, or the 1,000 shipped ones."""
    if data is None:
        with np.load(MODELS / "sample.npz") as sample:
            return sample["images"], sample["labels"]
    pixels, labels = (gzip.decompress((data / f"t10k-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1"))
    return np.frombuffer(pixels[16:], np.uint8).reshape(-1, 28, 28), np.frombuffer(labels[8:], np.uint8)


def main() -> None:
    """Measure each runtime in a process of its own, and print the two tables; with `--one` measure one, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "IMAGES", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, given, out = args.one
        found = measure(name, np.load(given))
        np.savez(out, logits=found.logits, told=json.dumps({"mib": found.mib, "us": found.us}))
        return
    images, labels = (part[: size(None, 20)] for part in test_images(args.data))
    pythons = dict.fromkeys(RUNTIMES, sys.executable) | dict(one.split("=", 1) for one in args.also)
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as home:
        file = Path(home, "images.npy")
        np.save(file, images)
        for name in RUNTIMES:
            result = in_a_process(pythons[name], name, file)
            if isinstance(result, str):
                print(f"{name}: {result}", file=sys.stderr)
            else:
                measured[name] = result
    print(agreement(measured, labels), overhead(measured), sep="\n\n")
    print(f"\n{len(images):,} images, one at a time, one thread; {machine()}.")


def agreement(measured: dict[str, Measured], labels: np.ndarray) -> str:
    """Return the table of accuracy, equal classes and largest difference to the first runtime, and of time and memory."""
    lines = ["| runtime | accuracy | same class | largest difference of a logit | time of a call, us | memory, MiB |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    first = next(iter(measured.values())).logits
    for name, one in measured.items():
        classes, n, why = one.logits.argmax(1), len(one.logits), UNTIMED.get(name)
        called = RUNTIMES[name][0] + ("" if n == len(first) else f" (the first {n:,} images)")
        cost = f"{one.us['bare']:.1f} | {one.mib:.0f}" if one.us else f"{why} | {why}"
        lines.append(
            f"| {called} | {(classes == labels[:n]).mean():.4f} | {(classes == first[:n].argmax(1)).mean():.2%} | "
            f"{np.abs(one.logits - first[:n]).max():.2g} | {cost} |"
        )
    return "\n".join(lines)


def overhead(measured: dict[str, Measured]) -> str:
    """Return the table of what is added to the bare runtime, with its limits and whether they are kept; without untimed runtimes."""
    lines = [
        "| runtime | bare, us | `run_one` | `Router.infer` | bare in a thread | with a deadline | limits | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for name, one in measured.items():
        if not one.us:
            continue
        bare = one.us["bare"]
        added = {way: us - bare for way, us in one.us.items()}
        limit = 20 + 0.02 * bare
        kept = added["run_one"] <= limit and added["deadline"] <= 60
        lines.append(
            f"| {RUNTIMES[name][0]} | {bare:.1f} | {added['run_one']:+.1f} | {added['router']:+.1f} | "
            f"{added['thread']:+.1f} | {added['deadline']:+.1f} | "
            f"{limit:.1f}, 60 | {'kept' if kept else 'MISSED'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
