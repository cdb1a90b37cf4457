"""Overhead of a routed call over a bare run of the same model: pixels to it, or with the same preprocessing in numpy."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from figures import MODELS, Figure, medians

from edgeroute import AsyncRouter, Egress, Function, Limits, OnnxModel, Router


def figures() -> list[Figure]:
    """Figures: blocking, with all limits, with tracing, and asyncio; every input is accepted on the edge."""
    path = MODELS / "edge.int8.onnx"
    images = list(np.load(MODELS / "sample.npz")["images"][:200])
    model = OnnxModel(path)
    session, name = model.load(), model.inputs[0].name

    def bare(x: np.ndarray) -> object:
        return session.run(["logits"], {name: x[None]})[0]

    def never(_: object) -> object:
        raise AssertionError("nothing is deferred here")

    traces: list[object] = []
    plain = Router(edge=path, cloud=never, threshold=0.0)
    traced = Router(edge=path, cloud=never, threshold=0.0, trace=lambda t: traces.append(t) if not traces else None)
    limited = Router(
        edge=path,
        cloud=Function(never, usd_per_call=0.01, joules_per_call=0.1, calls_per_s=10, max_concurrent=4),
        threshold=0.0,
        limits=Limits(usd_per_day=1, mb_per_day=1, joules_per_hour=1, calls_per_minute=1),
        egress=Egress(may_leave=["photo"], default_class="photo"),
    )
    small = Router(edge=lambda _: ("edge", 1.0), cloud=never, threshold=0.0)
    callables = medians({"bare": lambda _: ("edge", 1.0), "infer": small.infer}, images)
    over = (callables["infer"] - callables["bare"]) * 1e6
    times = medians({"bare": bare, "infer": plain.infer, "limited": limited.infer, "traced": traced.infer}, images)
    carded = _by_the_card(path, images, never)
    loop_times = _asyncio(path, images, bare, never)
    us = {name: value * 1e6 for name, value in (times | loop_times).items()}
    return [
        Figure(
            "accepted `infer`, over a callable",
            f"{callables['infer'] * 1e6:.1f} us",
            f"{callables['bare'] * 1e6:.1f} us",
            over,
            "us",
            12,
        ),
        Figure("accepted `infer`", f"{us['infer']:.1f} us", f"{us['bare']:.1f} us", us["infer"] - us["bare"], "us", 12),
        Figure("the same, preprocessing by the card", *carded, "us", 12),
        Figure(
            "the same, all limits set", f"{us['limited']:.1f} us", f"{us['bare']:.1f} us", us["limited"] - us["bare"], "us", 12
        ),
        Figure("the same, trace on", f"{us['traced']:.1f} us", f"{us['bare']:.1f} us", us["traced"] - us["bare"], "us", 25),
        Figure(
            "the same, asyncio", f"{us['async']:.1f} us", f"{us['bare async']:.1f} us", us["async"] - us["bare async"], "us", 100
        ),
    ]


def _by_the_card(path, images, never) -> tuple[str, str, float]:  # noqa: ANN001
    """The same of a model that takes floats, with the preprocessing in its card."""
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
            times = medians({"bare": bare, "infer": router.infer}, images)
    us = {what: value * 1e6 for what, value in times.items()}
    return f"{us['infer']:.1f} us", f"{us['bare']:.1f} us", us["infer"] - us["bare"]


def _asyncio(path, images, bare, never) -> dict[str, float]:  # noqa: ANN001
    """Times of an awaited infer and of a bare run, in one event loop."""
    import statistics
    import time

    async def main() -> dict[str, float]:
        collected: dict[str, list[float]] = {"async": [], "bare async": []}
        async with AsyncRouter(edge=path, cloud=never, threshold=0.0) as router:
            for x in images:
                await router.infer(x)
            for _ in range(7):
                routed, alone = [], []
                for _ in range(5):
                    for x in images:
                        begun = time.perf_counter()
                        await router.infer(x)
                        routed.append(time.perf_counter() - begun)
                    for x in images:
                        begun = time.perf_counter()
                        bare(x)
                        alone.append(time.perf_counter() - begun)
                collected["async"].append(statistics.median(routed))
                collected["bare async"].append(statistics.median(alone))
        return {name: statistics.median(values) for name, values in collected.items()}

    return asyncio.run(main())


if __name__ == "__main__":
    from figures import table

    print(table(figures()))
