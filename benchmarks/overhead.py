"""Overhead of a routed call over a bare run of the same model: pixels to it, or with the same preprocessing in numpy."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from figures import MODELS, Figure, medians, size, table, timed

from edgeroute import AsyncRouter, Egress, Function, Limits, OnnxModel, Router


def figures() -> list[Figure]:
    """Return what `infer` adds: blocking, with all limits, with tracing, and asyncio; every input is accepted on the edge.

    That of a callable is measured after a bare run of the model, too, which leaves cold caches.
    """
    path = MODELS / "edge.int8.onnx"
    images = list(np.load(MODELS / "sample.npz")["images"][: size(200, 5)])
    model = OnnxModel(path)
    session, name = model.load(), model.inputs[0].name

    def bare(x: np.ndarray) -> object:
        return session.run(["logits"], {name: x[None]})[0]

    def never(_: object) -> object:
        raise AssertionError("nothing is deferred here")

    traces: list[object] = []
    limits: dict[str, Any] = {
        "cloud": Function(never, usd_per_call=0.01, joules_per_call=0.1, calls_per_s=10, max_concurrent=4),
        "limits": Limits(usd_per_day=1, mb_per_day=1, joules_per_hour=1, calls_per_minute=1),
        "egress": Egress(may_leave=["photo"], default_class="photo"),
    }
    with (
        Router(edge=lambda _: ("edge", 1.0), cloud=never, threshold=0.0) as small,
        Router(edge=path, cloud=never, threshold=0.0) as plain,
        Router(edge=path, cloud=never, threshold=0.0, trace=lambda t: traces.append(t) if not traces else None) as traced,
        Router(edge=path, threshold=0.0, **limits) as limited,
    ):
        callables = medians({"bare": lambda _: ("edge", 1.0), "infer": small.infer}, images)
        subjects = {"bare": bare, "infer": plain.infer, "limited": limited.infer, "traced": traced.infer}
        times = medians({**subjects, "after": lambda x: (bare(x), small.infer(x))}, images)
    carded = _by_the_card(path, images, never)
    return [
        timed("accepted `infer`, over a callable", callables["infer"], callables["bare"], 4.5),
        timed("accepted `infer`, over a callable, after a bare run of the model", times["after"], times["bare"], 12),
        timed("accepted `infer`", times["infer"], times["bare"], 6),
        timed("accepted `infer`, preprocessing by the card", carded["infer"], carded["bare"], 12),
        timed("accepted `infer`, all limits set", times["limited"], times["bare"], 12),
        timed("accepted `infer`, trace on", times["traced"], times["bare"], 25),
        timed("accepted `infer`, asyncio", *asyncio.run(_awaited(path, images, bare, never)), 100),
    ]


def _by_the_card(path, images, never) -> dict[str, float]:  # noqa: ANN001
    """Return the times of a model that takes floats, with the preprocessing in its card ("infer"), and of the same by hand ("bare").

    The model is made of the one at `path`, in a temporary folder.
    """
    model = onnx.load(path)
    folded = [node for node in model.graph.node if node.name.startswith("image_")]
    last, pixels = folded[-1].output[0], model.graph.input[0]
    for node in folded:
        model.graph.node.remove(node)
    for node in model.graph.node:
        node.input[:] = ["image" if one == last else one for one in node.input]
    pixels.CopyFrom(onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, 28, 28]))
    card = {
        "input": {"name": "image", "dtype": "float32", "shape": [-1, 1, 28, 28]},
        "preprocess": {"dtype": "uint8", "shape": [28, 28], "scale": 1 / 255, "mean": 0.286, "std": 0.353},
        "labels": list(OnnxModel(path).labels or ()),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "floats.onnx")
        onnx.save(model, file)
        file.with_suffix(".json").write_text(json.dumps(card))
        floats = OnnxModel(file)
        session, prepare = floats.load(), floats.card.preprocess
        assert prepare is not None
        factor, offset = prepare.factor, prepare.offset

        def bare(x: np.ndarray) -> object:
            tensor = x.astype(np.float32)
            tensor *= factor
            tensor += offset
            return session.run(["logits"], {"image": tensor.reshape(1, 1, 28, 28)})[0]

        with Router(edge=file, cloud=never, threshold=0.0) as router:
            return medians({"bare": bare, "infer": router.infer}, images)


async def _awaited(path, images, bare, never) -> tuple[float, float]:  # noqa: ANN001
    """Return the medians, seconds, of an awaited infer and of a bare run, in one event loop."""
    medians_of: tuple[list[float], list[float]] = [], []
    async with AsyncRouter(edge=path, cloud=never, threshold=0.0) as router:
        for x in images:
            await router.infer(x)
        for _ in range(size(7, 1)):
            taken: tuple[list[float], list[float]] = [], []
            for _ in range(size(5, 1)):
                for x in images:
                    begun = time.perf_counter()
                    await router.infer(x)
                    taken[0].append(time.perf_counter() - begun)
                for x in images:
                    begun = time.perf_counter()
                    bare(x)
                    taken[1].append(time.perf_counter() - begun)
            for found, times in zip(medians_of, taken, strict=True):
                found.append(statistics.median(times))
    return statistics.median(medians_of[0]), statistics.median(medians_of[1])


if __name__ == "__main__":
    print(table(figures()))
