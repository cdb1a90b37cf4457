"""Client cost of the cloud leg against tritonclient.http, same server, 150 KB of uint8 as a binary tensor over loopback."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from figures import Figure, serving, size, table, timed
from onnx import TensorProto, helper

from edgeroute import Router

SIZE = 150_528  # 224 x 224 x 3


def model(path: Path, pixels: int = SIZE) -> None:
    """Write a model, x uint8 [n, pixels] -> logits float32 [n, 10], ten of its values, so that transport alone is timed."""
    nodes = [
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["ten"]),
        helper.make_node("Cast", ["ten"], ["logits"], to=TensorProto.FLOAT),
    ]
    constants = [("from", [0]), ("to", [10]), ("axis", [1])]
    graph = helper.make_graph(
        nodes,
        "ten",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", pixels])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@contextlib.contextmanager
def server(path: Path | None = None) -> Iterator[str]:
    """Run `edgeroute serve` in its own process, with the trivial model or that at `path`; provide its URL, and end it after."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            model(path := Path(folder, "ten.onnx"))
        with serving("serve", path) as (_, url):
            yield url


def measure(
    subjects: dict[str, Callable[[], object]], *, runs: int = size(31, 1), calls: int = size(60, 3)
) -> dict[str, tuple[float, float]]:
    """Time the subjects in turns; return name -> medians over the runs of (p50 seconds, client CPU seconds per call)."""
    collected: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for subject in subjects.values():
        for _ in range(size(50, 1)):
            subject()
    for _ in range(runs):
        for name, subject in subjects.items():
            times, cpu = [], time.process_time()
            for _ in range(calls):
                begun = time.perf_counter()
                subject()
                times.append(time.perf_counter() - begun)
            collected[name].append((statistics.median(times), (time.process_time() - cpu) / calls))
    return {name: (statistics.median(p for p, _ in v), statistics.median(c for _, c in v)) for name, v in collected.items()}


def compare(url: str, name: str = "ten") -> dict[str, tuple[float, float]]:
    """Time the router's cloud leg and Triton's client on the same server, once both give the same answer; return as `measure`."""
    import tritonclient.http as triton

    x = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    client = triton.InferenceServerClient(url.removeprefix("http://"))

    def theirs() -> object:
        tensor = triton.InferInput("x", [1, SIZE], "UINT8")
        tensor.set_data_from_numpy(x[None])
        return client.infer(name, [tensor], outputs=[triton.InferRequestedOutput("logits")]).as_numpy("logits")

    with Router(cloud=f"{url}/v2/models/{name}") as router:
        assert np.array_equal(theirs()[0], router.infer(x).outputs)  # type: ignore[index]
        return measure({"theirs": theirs, "ours": lambda: router.infer(x)})


def figures() -> list[Figure]:
    """Return the figures of p50 and client CPU of the cloud leg, as ratios to tritonclient's."""
    with server() as url:
        found = compare(url)
    (p50, cpu), (their_p50, their_cpu) = found["ours"], found["theirs"]
    return [
        timed("cloud leg, p50", p50, their_p50, 1.3, shown="ms", digits=3, by="ratio"),
        timed("cloud leg, client CPU", cpu, their_cpu, 1.5, shown="ms", digits=3, by="ratio"),
    ]


if __name__ == "__main__":
    print(table(figures()))
