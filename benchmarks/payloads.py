"""One picture of 224 x 224 over a link of 50 ms and 20 Mbit/s, by codec: bytes, time, and what a codec costs in accuracy.

The picture is a mosaic of the shipped sample, in colour planes that are alike; the link is `edgeroute.testing.Relay`, which has no slow
start; the server is `edgeroute serve` in a process of its own. Accuracy is that of the shipped cloud model on the sample's 1,000 pictures.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from figures import Figure, serving, size, table, timed
from onnx import TensorProto, helper

from edgeroute import NoAnswer, OnnxModel, OpenInference, Router, models
from edgeroute.cloud.input_codecs import codec_of
from edgeroute.testing import Relay

DELAY_S, BYTES_PER_S = 0.025, 20e6 / 8
CODECS = ("jpeg:95", "jpeg:85", "jpeg:50", "webp:95", "webp:80", "png")
LADDER = ("png", "jpeg:95", "jpeg:85", "jpeg:50")
DEADLINES_S = size((1.0, 0.15, 0.11, 0.09), (1.0,))
CALLS, JUDGED = size(15, 1), size(1000, 10)
FASTER = {"uint8": 0.55, "fp32": 0.25}
"""Most that a picture may take, of the time of tritonclient with these numbers."""
LOST = 0.2
"""Points of accuracy that the default qualities may cost."""


def model(path: Path, kind: int) -> Path:
    """Write a model, x [n, 224, 224, 3] -> logits float32 [n, 3], the means of the colours, so that transport is timed; return `path`."""
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["f"], ["logits"], axes=[1, 2], keepdims=0))
    value = helper.make_tensor_value_info
    io = [value("x", kind, ["n", 224, 224, 3])], [value("logits", TensorProto.FLOAT, ["n", 3])]
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "means", *io), opset_imports=opset, ir_version=9), path)
    return path


@contextlib.contextmanager
def link() -> Iterator[Relay]:
    """Run `edgeroute serve` with the models uint8 and fp32, and provide a relay to it that is a slow link."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"uint8": TensorProto.UINT8, "fp32": TensorProto.FLOAT}
        files = [str(model(Path(folder, f"{name}.onnx"), kind)) for name, kind in kinds.items()]
        with serving("serve", *files) as (_, url), Relay("127.0.0.1", int(url.rpartition(":")[2])) as relay:
            relay.delay_s, relay.throttle = DELAY_S, BYTES_PER_S
            yield relay


def mosaic(images: Any) -> Any:
    """Return 64 pictures of 28 x 28 as one, uint8 [224, 224, 3]."""
    tiles = images[:64].reshape(8, 8, 28, 28).transpose(0, 2, 1, 3).reshape(224, 224)
    return np.repeat(tiles[..., None], 3, 2)


def of_a_call(relay: Relay, ask: Callable[[], object], calls: int) -> tuple[float, int]:
    """Call twice to warm up, then `calls` times; return the median seconds of a call, and its bytes up."""
    ask()
    ask()
    times, before = [], relay.bytes_up
    for _ in range(calls):
        begun = perf_counter()
        ask()
        times.append(perf_counter() - begun)
    return statistics.median(times), (relay.bytes_up - before) // calls


def triton(relay: Relay, x: Any, name: str) -> Callable[[], object] | None:
    """Return a call of tritonclient with these numbers; None: it is not installed."""
    try:
        import tritonclient.http as client
    except ImportError:
        return None
    server = client.InferenceServerClient(relay.url.removeprefix("http://"))
    given = client.InferInput("x", [1, *x.shape], {"uint8": "UINT8", "fp32": "FP32"}[name])

    def ask() -> object:
        given.set_data_from_numpy(x[None])
        return server.infer(name, [given])

    return ask


def over_the_link(x: Any, calls: int = CALLS) -> dict[str, tuple[float, int]]:
    """Return way -> (seconds, bytes up) of a call: tritonclient, numbers and each codec; fails if the cloud does not answer."""
    found = dict[str, tuple[float, int]]()
    with link() as relay:
        for name, given in (("uint8", x), ("fp32", (x / 255).astype(np.float32))):
            if (ask := triton(relay, given, name)) is not None:
                found[f"tritonclient {name}"] = of_a_call(relay, ask, calls)
        ways = [("uint8", None, x), ("fp32", None, (x / 255).astype(np.float32)), *(("uint8", codec, x) for codec in CODECS)]
        for name, codec, given in ways:
            cloud = OpenInference(f"{relay.url}/v2/models/{name}", codec=codec, kind="value")
            with Router(lambda _: ("edge", 0.0), cloud, threshold=0.5) as router:

                def ask(router: Any = router, given: Any = given) -> None:
                    answer = router.infer(given)
                    assert answer.source == "cloud", answer.reason

                found[codec or name] = of_a_call(relay, ask, calls)
    return found


def ladder(x: Any) -> None:
    """Print which codec of a list is sent by which deadline, and how many of the answers were in time."""
    with link() as relay:
        cloud = OpenInference(f"{relay.url}/v2/models/uint8", codec=list(LADDER), kind="value")
        with Router(lambda _: ("edge", 0.0), cloud, threshold=0.5) as router:
            for deadline in (None, *DEADLINES_S):
                answers = list[Any]()
                for _ in range(2 * CALLS):
                    with contextlib.suppress(NoAnswer):  # on a busy machine the edge, too, may be late
                        answers.append(router.infer(x, deadline=deadline))
                answers = answers[-CALLS:]
                sent = Counter(event["codec"] for one in answers for event in one.trace["events"] if event.get("codec"))
                in_time = sum(one.source == "cloud" for one in answers)
                print(f"ladder, deadline {deadline or math.inf:5g} s: {dict(sent)}, {in_time} of {len(answers)} in time")


def accuracy() -> dict[str, float]:
    """Return codec -> percent of the sample that the shipped cloud model has right after it; "" without one."""
    import io

    from PIL import Image

    pair = models.fashion()
    cloud, sample = OnnxModel(pair.cloud), np.load(Path(pair.cloud).with_name("sample.npz"))
    images, labels, found = sample["images"][:JUDGED], sample["labels"][:JUDGED], dict[str, float]()
    for name in ("", *CODECS):
        codec = codec_of(name) if name else None
        seen = list(images)
        if codec is not None:
            seen = [np.asarray(Image.open(io.BytesIO(codec.encode(x).data))) for x in images]  # type: ignore[arg-type]  # bytes
            seen = [x if x.ndim == 2 else np.asarray(Image.fromarray(x).convert("L")) for x in seen]
        rows = np.concatenate([np.asarray(cloud.run(seen[at : at + 100], None)) for at in range(0, len(seen), 100)])
        found[name] = 100 * float(np.mean(rows.argmax(1) == labels))
    return found


def measured(calls: int) -> tuple[Any, dict[str, tuple[float, int]], dict[str, float]]:
    """Return the picture, what each way takes of time and bytes, and of each codec how many pictures are classified right."""
    picture = mosaic(np.load(Path(models.fashion().cloud).with_name("sample.npz"))["images"])
    return picture, over_the_link(picture, calls), accuracy()


def compared(times: dict[str, tuple[float, int]], right: dict[str, float]) -> list[Figure]:
    """Return the figures of a picture's time to that of numbers, tritonclient's if there is one, and of the accuracy lost."""
    rows = list[Figure]()
    for codec in ("webp:95", "jpeg:95"):
        for name, most in FASTER.items():
            theirs = times.get(f"tritonclient {name}", times[name])[0]
            what = f"a picture as {codec} over a slow link, to {name}"
            rows.append(timed(what, times[codec][0], theirs, most, shown="ms", digits=0, by="ratio"))
        lost = round(right[""] - right[codec], 2)
        rows.append(Figure(f"accuracy lost by {codec}", f"{right[codec]:.2f} %", f"{right['']:.2f} %", lost, "points", LOST))
    return rows


def figures(calls: int = CALLS) -> list[Figure]:
    """Figures of the two default codecs."""
    return compared(*measured(calls)[1:])


def main(calls: int) -> None:
    """Print the figures, all codecs, and a list of codecs by deadline."""
    picture, times, right = measured(calls)
    print(table(compared(times, right)), "", "| way | time | bytes | right |", "| --- | ---: | ---: | ---: |", sep="\n")
    for way, (seconds, sent) in times.items():
        percent = right.get("" if way in FASTER else way)
        print(f"| {way} | {seconds * 1e3:.1f} ms | {sent:,} | {'-' if percent is None else f'{percent:.2f} %'} |")
    print()
    ladder(picture)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else CALLS)
