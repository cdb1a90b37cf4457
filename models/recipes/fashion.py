"""Builds the Fashion-MNIST pair that edgeroute ships: `make models`, or see `--help`.

    teacher   a residual network, trained from scratch: the model behind the cloud
    student   a plain network, distilled from the teacher
    pruned    the student without its weakest third of channels, distilled once more
    int8      the pruned network, quantised statically, with the preprocessing in the graph: the model on the edge

5,000 training images are held out as a validation split, and the demo's threshold rests on them; the recipe
reads the test set once, for the figures on the cards. Needs `models/recipes/requirements.txt`
and the Debian package `dataset-fashion-mnist` (or `--data`, a folder with its four .idx.gz files).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
import torch_pruning as tp
from fold import fold
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
MEAN, STD = 0.2860, 0.3530  # of the training pixels on a 0..1 scale
VALIDATION = 5_000
PIXELS = {"name": "image", "dtype": "uint8", "shape": [-1, 28, 28]}
FLOATS = {
    "input": {"name": "image", "dtype": "float32", "shape": [-1, 1, 28, 28]},
    "preprocess": {"dtype": "uint8", "shape": [28, 28], "scale": 1 / 255, "mean": MEAN, "std": STD},
}
"""Card of a network that takes floats: what is folded into the graph of the quantised one."""
DATA_LICENCE = "MIT, Copyright (c) 2017 Zalando SE"


# ---------------------------------------------------------------------------------------------- data
def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file: magic 0, 0, type 8 (uint8), number of dimensions, then the sizes, big-endian."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an IDX file of uint8")
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


class Data:
    """uint8 images [n, 28, 28] and int64 labels [n]: train 55,000, val 5,000, test 10,000 (fewer with `limit`)."""

    def __init__(self, folder: Path, seed: int, limit: int | None) -> None:
        def pair(stem: str) -> tuple[np.ndarray, np.ndarray]:
            try:
                images, labels = (read_idx(folder / f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
            except FileNotFoundError as e:
                raise SystemExit(f"{e.filename} is missing: apt-get install dataset-fashion-mnist, or give --data") from e
            return images, labels.astype(np.int64)

        x, y = pair("train")
        order = np.random.default_rng(seed).permutation(len(x))
        val, train = order[:VALIDATION][:limit], order[VALIDATION:][:limit]
        self.train, self.val = (x[train], y[train]), (x[val], y[val])
        self.test = tuple(part[:limit] for part in pair("t10k"))


def augment(x: Tensor) -> Tensor:
    """float [n, 1, 28, 28]: each image flipped by chance, shifted by up to 2 pixels, with one 8x8 square blanked."""
    n = len(x)
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(-1), x)
    padded = F.pad(x, (2, 2, 2, 2), value=-MEAN / STD)
    dy, dx = torch.randint(0, 5, (2, n, 1))
    rows, cols = torch.arange(28) + dy, torch.arange(28) + dx
    x = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], cols[:, None, :]][:, None]
    at = torch.arange(28)
    y0, x0 = torch.randint(-4, 25, (2, n, 1))
    hole = ((at >= y0) & (at < y0 + 8))[:, :, None] & ((at >= x0) & (at < x0 + 8))[:, None, :]
    return x.masked_fill(hole[:, None], -MEAN / STD)


def normalise(images: np.ndarray) -> Tensor:
    return ((torch.from_numpy(np.array(images)).float() / 255 - MEAN) / STD)[:, None]


# -------------------------------------------------------------------------------------------- networks
def conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def teacher_net(w: int = 40) -> nn.Sequential:
    return nn.Sequential(conv(1, w), conv(w, 2 * w, 2), Residual(2 * w), conv(2 * w, 4 * w, 2), Residual(4 * w), *head(4 * w))


def student_net(w: int = 24) -> nn.Sequential:
    return nn.Sequential(
        conv(1, w), conv(w, 2 * w, 2), conv(2 * w, 2 * w), conv(2 * w, 4 * w, 2), conv(4 * w, 4 * w), *head(4 * w)
    )


class FromPixels(nn.Module):
    """uint8 [n, 28, 28] -> logits [n, 10]: the cloud's graph takes pixels, so that 784 bytes travel, not 3,136."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(((x.float() / 255 - MEAN) / STD).unsqueeze(1))


# -------------------------------------------------------------------------------------------- training
def bf16_is_fast() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def train(net: nn.Module, data: Data, *, epochs: int, peak: float, teacher: nn.Module | None, name: str) -> nn.Module:
    """SGD on a one-cycle schedule; with a teacher, Hinton's distillation at T = 4. -> the averaged weights, eval mode."""
    net = net.train().to(memory_format=torch.channels_last)
    x, y = normalise(data.train[0]), torch.from_numpy(data.train[1])
    batch, T = 256, 4.0
    steps = epochs * (len(x) // batch)
    optimiser = torch.optim.SGD(net.parameters(), lr=peak, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps + 1, pct_start=0.2)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    fast = torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast())
    for epoch in range(epochs):
        begun, total = time.monotonic(), 0.0
        for rows in torch.randperm(len(x)).split(batch):
            if len(rows) < batch:
                continue
            pixels = augment(x[rows]).contiguous(memory_format=torch.channels_last)
            with fast:
                logits = net(pixels).float()
                if teacher is not None:
                    with torch.no_grad():
                        goal = teacher(pixels).float()
            loss = F.cross_entropy(logits, y[rows])
            if teacher is not None:
                soft = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(goal / T, 1), reduction="batchmean") * T * T
                loss = 0.1 * loss + 0.9 * soft
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            average.update_parameters(net)
            total += loss.item()
        print(
            f"{name} {epoch + 1:>2}/{epochs} loss {total / max(1, len(x) // batch):.4f} "
            f"val {accuracy(predict(average.module, data.val[0]), data.val[1]):.4f} {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    return average.module.eval()


@torch.no_grad()
def predict(net: nn.Module, images: np.ndarray) -> np.ndarray:
    net.eval()
    x = normalise(images).contiguous(memory_format=torch.channels_last)
    return torch.cat([net(part) for part in x.split(1000)]).numpy()


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def prune(net: nn.Module, ratio: float) -> nn.Module:
    """The network without the `ratio` of each layer's channels whose weights are the smallest."""
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)]
    tp.pruner.MagnitudePruner(
        net, torch.zeros(1, 1, 28, 28), tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, ignored_layers=last, round_to=8,
    ).step()  # fmt: skip
    return net


# ---------------------------------------------------------------------------------- export and quantise
def export(net: nn.Module, example: Tensor, path: Path, *, name: str) -> None:
    net = net.to(memory_format=torch.contiguous_format).eval()
    torch.onnx.export(
        net, (example,), str(path), input_names=["image"], output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
    )  # fmt: skip
    model = onnx.load(path)
    model.graph.name, model.producer_name, model.producer_version = name, "edgeroute", ""
    for node in model.graph.node:
        node.doc_string = ""
    onnx.save(model, path)


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # the base class is untyped
    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter(normalise(images).split(100))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch.numpy()}


def quantise(fp32: Path, int8: Path, images: np.ndarray) -> None:
    """Static, per channel, signed 8 bit. The last layer stays float: quantised logits would tie the confidences."""
    last = [node.name for node in onnx.load(fp32).graph.node if node.op_type == "Gemm"]
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch, "ready.onnx")
        quant_pre_process(str(fp32), str(ready))
        quantize_static(
            str(ready), str(int8), Calibration(images), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, nodes_to_exclude=last,
        )  # fmt: skip
    model = onnx.load(int8)
    short_names(model)
    del model.metadata_props[:]
    onnx.save(fold(model, FLOATS)[0], int8)


def short_names(model: onnx.ModelProto) -> None:
    """Renames inner tensors and nodes to t0, t1, ...: the exporter's long paths weigh as much as a layer."""
    keep = {v.name for v in [*model.graph.input, *model.graph.output]}
    new: dict[str, str] = {}

    def short(name: str) -> str:
        return name if name in keep or not name else new.setdefault(name, f"t{len(new)}")

    for tensor in model.graph.initializer:
        tensor.name = short(tensor.name)
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
        node.input[:] = [short(n) for n in node.input]
        node.output[:] = [short(n) for n in node.output]
    del model.graph.value_info[:]


# --------------------------------------------------------------------------------------------- measure
def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, images: np.ndarray) -> np.ndarray:
    model = session(path)
    pixels = model.get_inputs()[0].type == "tensor(uint8)"
    feed = images if pixels else normalise(images).numpy()
    return np.concatenate([model.run(None, {"image": part})[0] for part in np.array_split(feed, max(1, len(feed) // 500))])


def p50_ms(path: Path, image: np.ndarray) -> float:
    """Median time of one image, one thread, in milliseconds."""
    model = session(path)
    feed = {"image": image if model.get_inputs()[0].type == "tensor(uint8)" else normalise(image).numpy()}
    times = []
    for _ in range(300):
        begun = time.perf_counter()
        model.run(None, feed)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[50:]) * 1e3


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------- cards
def write_card(
    path: Path, *, name: str, description: str, inputs: dict[str, object], steps: list[dict[str, object]],
) -> None:  # fmt: skip
    card = {
        "name": name,
        "description": description,
        "file": path.name,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "input": inputs,
        "output": {"name": "logits", "dtype": "float32", "shape": [-1, 10], "kind": "logits"},
        "labels": LABELS,
        "licence": "Apache-2.0",
        "data": f"Fashion-MNIST ({DATA_LICENCE}): 55,000 images to train, 5,000 to validate, 10,000 to test",
        "rebuild": "make models",
        "steps": steps,
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def write_table(path: Path, rows: list[dict[str, object]], note: str) -> None:
    """Puts the table between the two markers of models/README.md."""
    lines = [
        "| model | parameters | file, KB | accuracy, validation | accuracy, test | p50, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['step']} | {r['parameters']:,} | {r['bytes'] / 1000:,.1f} | {r['validation_accuracy']:.4f} | {r['test_accuracy']:.4f} | {r['p50_ms']:.3f} |"
        for r in rows
    ]
    text = path.read_text()
    before, rest = text.split("<!-- table -->", 1)
    after = rest.split("<!-- /table -->", 1)[1]
    path.write_text(f"{before}<!-- table -->\n" + "\n".join(lines) + f"\n\n{note}\n<!-- /table -->{after}")


# -------------------------------------------------------------------------------------------------- go
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "fashion")
    parser.add_argument(
        "--work", type=Path, default=HERE.parent.parent / "build" / "fashion", help="finished steps, to go on after a stop"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few seconds on 1,000 images: shows that the recipe runs, no more")
    args = parser.parse_args()
    seconds: list[float] = []
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    data = Data(args.data, args.seed, 1000 if args.quick else None)
    epochs = {"teacher": 1, "student": 1, "pruned": 1} if args.quick else {"teacher": 30, "student": 24, "pruned": 14}

    def finished(name: str, build) -> nn.Module:  # noqa: ANN001
        """The step's network: read from `--work` if an earlier run got that far, else built and kept there."""
        path = args.work / f"{name}{'.quick' if args.quick else ''}.pt"
        if not path.exists():
            torch.manual_seed(args.seed)  # each step by itself: going on after a stop gives what one run gives
            begun = time.monotonic()
            net = build()
            torch.save({"net": net, "seconds": time.monotonic() - begun}, path)
        kept = torch.load(path, weights_only=False)
        seconds.append(kept["seconds"])
        return kept["net"].eval()

    teacher = finished(
        "teacher", lambda: train(teacher_net(), data, epochs=epochs["teacher"], peak=0.2, teacher=None, name="teacher")
    )
    student = finished(
        "student", lambda: train(student_net(), data, epochs=epochs["student"], peak=0.2, teacher=teacher, name="student")
    )
    pruned = finished(
        "pruned", lambda: train(prune(student, 1 / 3), data, epochs=epochs["pruned"], peak=0.1, teacher=teacher, name="pruned")
    )

    cloud, edge = args.out / "cloud.onnx", args.out / "edge.int8.onnx"
    files = {step: args.work / f"{step}.onnx" for step in ("student", "pruned")}
    export(FromPixels(teacher), torch.zeros(1, 28, 28, dtype=torch.uint8), cloud, name="fashion-large")
    for step, net in (("student", student), ("pruned", pruned)):
        export(net, torch.zeros(1, 1, 28, 28), files[step], name=step)
    quantise(files["pruned"], edge, data.train[0][:1000])

    rows = []
    for step, path, net in (
        ("teacher (cloud)", cloud, teacher), ("student", files["student"], student),
        ("pruned", files["pruned"], pruned), ("int8 (edge)", edge, pruned),
    ):  # fmt: skip
        rows.append({
            "step": step,
            "parameters": sum(p.numel() for p in net.parameters()),
            "bytes": path.stat().st_size,
            "validation_accuracy": round(accuracy(run(path, data.val[0]), data.val[1]), 4),
            "test_accuracy": round(accuracy(run(path, data.test[0]), data.test[1]), 4),
            "p50_ms": round(p50_ms(path, data.test[0][:1]), 3),
        })  # fmt: skip
        print(rows[-1], flush=True)

    write_card(
        cloud, name="fashion-large", description="Clothing in 28x28 grey pixels, residual network, float32: the model behind the cloud",
        inputs=PIXELS, steps=rows[:1],
    )  # fmt: skip
    write_card(
        edge, name="fashion-edge", description="Clothing in 28x28 grey pixels, distilled, pruned, static int8: the model on the edge",
        inputs=PIXELS, steps=rows,
    )  # fmt: skip
    np.savez_compressed(args.out / "sample.npz", images=data.test[0][:1000], labels=data.test[1][:1000].astype(np.uint8))
    np.savez_compressed(
        args.out / "validation.npz", edge_logits=run(edge, data.val[0]).astype(np.float32),
        cloud_logits=run(cloud, data.val[0]).astype(np.float32), labels=data.val[1].astype(np.uint8),
    )  # fmt: skip
    minutes = sum(seconds) / 60
    if not args.quick:
        note = f"One image, one thread, CPU; `make models`, {minutes:.0f} minutes on this machine (two x86-64 cores with AVX-512), {time.strftime('%Y-%m-%d')}."
        write_table(HERE.parent / "README.md", rows, note)
    print(f"done in {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
