"""Trains both models: `python train.py`, about a minute. With recordings of your own machine: `python train.py FILE.npy`.

The small model, an autoencoder, is trained on one healthy machine alone: it learns which spectra go together, and what it cannot
rebuild is unusual. It is quantised to int8 by `edgeroute quantize`. The larger one is trained on faults of forty other machines.
Plain numpy; ONNX is written by `onnx`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from bands import FEATURES, bands
from diagnosis import features, layers
from machine import KINDS, Machine
from onnx import TensorProto, helper, numpy_helper
from sensor import recordings

Array = np.ndarray[Any, np.dtype[Any]]
MODELS = Path(__file__).parent / "models"
HIDDEN, NARROW = 32, 8
CLIP = 8.0
"""Deviations from the mean after which a feature counts no further: int8 has to span them."""
LEAST = 200
"""Windows of one's own machine."""
STEPS = 6000
DAYS = 14
"""Of healthy recordings, before the run."""
UNITS = 40
"""Other machines, on which the larger model learns."""
ATTENTION, FAULT = 3.0, 7.0
"""Deviations of a healthy machine's score at which the small model says so."""
SURE = 4.0
"""Log-odds of `normal` at a healthy machine's usual score."""


def main(own: str = "") -> None:
    """Train and write both models; with a file of recordings the small one alone.

    Raises:
        SystemExit: the file has too few windows.
    """
    rng = np.random.default_rng(0)
    MODELS.mkdir(exist_ok=True)
    windows = np.concatenate([*recordings(own)]) if own else healthy()
    if len(windows) < LEAST:
        raise SystemExit(f"{own} has {len(windows)} windows: at least {LEAST}, of different loads, say what healthy is")
    x = bands(windows)
    part = len(x) * 7 // 10  # the later recordings say what a healthy machine's score is like
    autoencoder(x[:part], x[part:], rng)
    if not own:
        diagnosis(np.random.default_rng(1))


def healthy() -> Array:
    """Two weeks of a healthy machine, before the run."""
    machine = Machine()
    return np.concatenate([machine.record(-h / 2) for h in range(48 * DAYS, 0, -1)])


def fit(
    x: Array, sizes: Sequence[int], loss: Callable[[Array, Array], Array], rng: np.random.Generator, steps: int
) -> list[Array]:
    """Train a perceptron by Adam, and return its weights and biases.

    loss: (rows, outputs) -> the gradient of the mean loss by the outputs.
    """
    weights = []
    for a, b in pairwise(sizes):
        weights += [rng.standard_normal((a, b)) * np.sqrt(2 / a), np.zeros(b)]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, steps + 1):
        rows = rng.integers(0, len(x), 128)
        seen = [x[rows]]
        for i in range(0, len(weights), 2):
            seen.append((np.maximum(seen[-1], 0) if i else seen[-1]) @ weights[i] + weights[i + 1])
        grad = loss(rows, seen[-1])
        for i in range(len(weights) - 2, -1, -2):
            into = np.maximum(seen[i // 2], 0) if i else seen[i // 2]
            found = {i: into.T @ grad, i + 1: grad.sum(0)}
            grad = (grad @ weights[i].T) * (seen[i // 2] > 0)
            for k, g in found.items():
                first[k] += 0.1 * (g - first[k])
                second[k] += 0.001 * (g * g - second[k])
                rate = 2e-3 * min(1.0, 3 * (1 - step / (steps + 1)))
                weights[k] -= rate * first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
    return weights


def autoencoder(x: Array, later: Array, rng: np.random.Generator) -> None:
    """Train the small model, set its thresholds by the later windows, and write it, quantised by `edgeroute`, into models/."""
    mean, deviation = x.mean(0), x.std(0) + 0.02
    scaled = [np.clip((one - mean) / deviation, -CLIP, CLIP) for one in (x, later)]
    z = scaled[0]
    sizes = (FEATURES, HIDDEN, NARROW, HIDDEN, FEATURES)
    weights = fit(z, sizes, lambda rows, out: 2 * (out - z[rows]) / len(rows), rng, STEPS)
    own = np.log(((layers(scaled[1], [0, 1, *weights]) - scaled[1]) ** 2).mean(1))
    usual, spread = own.mean(), own.std()
    attention, fault = usual + ATTENTION * spread, usual + FAULT * spread
    print(f"score of a healthy machine: {usual:.2f} +- {spread:.2f}; attention from {attention:.2f}, fault from {fault:.2f}")

    slope = SURE / (ATTENTION * spread)  # the logits of the three states are straight lines over the score, which cross there
    lines = slope * np.array([0, 1, 2]), -slope * np.array([0, attention, attention + fault])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "edge.onnx"
        write(path, mean, deviation, weights, lines)
        odd = x[rng.integers(0, len(x), 400)] + rng.uniform(0, 1, (400, 1)) * rng.uniform(-0.5, 2, (400, FEATURES)) * (
            rng.uniform(size=(400, FEATURES)) < rng.uniform(0, 1, (400, 1)))  # fmt: skip
        data = Path(folder) / "data.npz"  # what does not occur among these is cut off by int8
        np.savez(data, X=np.concatenate([later[rng.permutation(len(later))[:400]], odd]).astype(np.float32))
        to = MODELS / "edge.int8.onnx"
        command = [sys.executable, "-m", "edgeroute", "quantize", str(path), "--data", str(data), "--out", str(to), "--force"]
        subprocess.run(command, check=True)  # noqa: S603 - the interpreter that runs this
    print(f"{to}: {to.stat().st_size / 1000:.1f} kB")


def write(path: Path, mean: Array, deviation: Array, weights: Sequence[Array], lines: tuple[Array, Array]) -> None:
    """Write the autoencoder, its error and the three logits as one ONNX graph, with its card beside it.

    lines: slopes and starts of the logits over the score.
    """
    tensors: dict[str, Array] = {"mean": mean, "by": 1 / deviation, "low": np.array(-CLIP), "high": np.array(CLIP)}
    nodes = [("Sub", ["bands", "mean"], "off"), ("Mul", ["off", "by"], "scaled"), ("Clip", ["scaled", "low", "high"], "z")]
    last = "z"
    for i in range(0, len(weights), 2):
        tensors |= {f"w{i}": weights[i], f"b{i}": weights[i + 1]}
        nodes.append(("Gemm", [last, f"w{i}", f"b{i}"], f"g{i}"))
        last = f"g{i}"
        if i < len(weights) - 2:
            nodes.append(("Relu", [last], f"r{i}"))
            last = f"r{i}"
    tensors |= {"slopes": lines[0], "starts": lines[1]}
    nodes += [("Sub", [last, "z"], "error"), ("Mul", ["error", "error"], "square"), ("ReduceMean", ["square"], "mse")]
    nodes += [("Log", ["mse"], "score"), ("Mul", ["score", "slopes"], "risen"), ("Add", ["risen", "starts"], "logits")]
    made = [
        helper.make_node(kind, into, [out], out, **({"axes": [1], "keepdims": 1} if kind == "ReduceMean" else {}))
        for kind, into, out in nodes
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("bands", FEATURES), ("logits", 3))
    ]
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in tensors.items()]
    graph = helper.make_graph(made, "monitor", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    card = {
        "name": "machine",
        "description": "Whether this machine sounds as it does when it is well.",
        "input": {"name": "bands", "dtype": "float32", "shape": [-1, FEATURES]},
        "output": {"name": "logits", "kind": "logits"},
        "labels": ["normal", "attention", "fault"],
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1))


def examples(units: Sequence[int], each: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return features and kinds of windows of machines that are well, and of such with one fault of any severity."""
    rows, kinds = [], []
    for unit in units:
        machine = Machine(unit)
        for n in range(each):
            kind = max(0, n % 7 - 2)  # three of seven are well
            wrong = {KINDS[kind]: float(np.exp(rng.uniform(np.log(0.06), 0)))} if kind else {}
            for window in machine.record(-rng.uniform(0, 2000), windows=2, severities=wrong):
                rows.append(features(window))
                kinds.append(kind)
    return np.stack(rows), np.array(kinds)


def diagnosis(rng: np.random.Generator) -> None:
    """Train the larger model, write its parameters, and print how often it is right on machines that it never saw."""
    x, kinds = examples(range(1, UNITS + 1), 70, rng)
    mean, deviation = x.mean(0), x.std(0) + 0.02
    z, wanted = (x - mean) / deviation, np.eye(len(KINDS))[kinds]

    def loss(rows: Array, logits: Array) -> Array:
        p = np.exp(logits - logits.max(1, keepdims=True))
        return (p / p.sum(1, keepdims=True) - wanted[rows]) / len(rows)

    weights = fit(z, (z.shape[1], 96, 48, len(KINDS)), loss, rng, 3000)
    parameters = [mean, deviation, *weights]
    np.savez(MODELS / "diagnosis.npz", *[one.astype(np.float32) for one in parameters])
    unseen, truth = examples(range(UNITS + 1, UNITS + 6), 70, rng)
    right = layers(unseen, parameters).argmax(1) == truth
    print(f"diagnosis: right on {right.mean():.1%} of windows of five machines that it never saw")


if __name__ == "__main__":
    main(*sys.argv[1:2])
