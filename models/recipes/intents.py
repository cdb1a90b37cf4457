"""Builds the intent models of examples/voice from CLINC150: `python models/recipes/intents.py --data PATH`, or see `--help`.

    edge    a vector for each of 8,192 buckets of words and pieces of words, added up, one hidden layer of 32; int8
    cloud   the same with 32,768 buckets and 104; it learns from a teacher, too: a layer on the vectors of a sentence encoder, which
            marks the sentences, and 60,000 more that are made of them with other words

PATH is `data_full.json` of https://github.com/clinc/oos-eval (its folder `data`; Larson et al. 2019, CC BY 3.0), or a .csv or .csv.gz
with the columns split, text, intent. The encoder is all-MiniLM-L6-v2 (Apache-2.0), which is downloaded unless `--teacher` is a folder
with it. Trained on `train`, with `oos_train` as examples of what has no intent; settings were chosen on `val` and `oos_val`; `test` and
`oos_test` are for the figures. Needs `models/recipes/requirements.txt`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from teacher import taught
from torch import Tensor, nn
from voice import EXAMPLE, ROOT, accuracy, auroc, energy, msp, p50_ms, session, where, write_card, write_table

sys.path.insert(0, str(EXAMPLE))
from text_features import VERSION, piece_ids  # the features of the example are those of the models

LICENCE = "CC BY 3.0, Larson et al. 2019, github.com/clinc/oos-eval"


# ---------------------------------------------------------------------------------------------- data
def read(path: Path) -> dict[str, list[tuple[str, str]]]:
    """-> split -> (text, intent) pairs."""
    if path.suffix == ".json":
        return {split: [(text, intent) for text, intent in rows] for split, rows in json.loads(path.read_text()).items()}
    found: dict[str, list[tuple[str, str]]] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["split"], []).append((row["text"], row["intent"]))
    return found


def hashed(texts: list[str]) -> np.ndarray:
    """-> int64 [n, pieces], hashes, and zeros."""
    return np.stack([piece_ids(text) for text in texts])


class Data:
    """Each split as (ids int64 [n, pieces], labels int64 [n], -1 out of scope); and its texts."""

    def __init__(self, path: Path) -> None:
        rows = read(path)
        self.labels = sorted({intent for _, intent in rows["train"]})
        number = {intent: i for i, intent in enumerate(self.labels)}
        self.texts = {split: [text for text, _ in pairs] for split, pairs in rows.items()}
        self.splits = {
            split: (hashed(self.texts[split]), np.array([number.get(intent, -1) for _, intent in pairs]))
            for split, pairs in rows.items()
        }

    def __getitem__(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        return self.splits[split]


# ------------------------------------------------------------------------------------------- network
class Bag(nn.Module):
    """ids int64 [n, pieces], hashes, 0 for none -> logits [n, intents]."""

    def __init__(self, buckets: int, width: int, classes: int, drop: float = 0.3) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(buckets, width, mode="sum", padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=0.1)
        with torch.no_grad():
            self.vectors.weight[0] = 0
        self.bias = nn.Parameter(torch.zeros(width))
        self.last = nn.Linear(width, classes)
        self.drop = drop

    def forward(self, ids: Tensor) -> Tensor:
        at = ids % self.vectors.num_embeddings
        pieces = (at != 0).sum(1, keepdim=True).clamp(min=1)
        hidden = F.relu(self.vectors(at) / pieces.sqrt() + self.bias)
        return self.last(F.dropout(hidden, self.drop, self.training))


def thinned(ids: Tensor, share: float) -> Tensor:
    """Each piece left out with this probability: the network learns not to rest on one."""
    return ids.masked_fill(torch.rand(ids.shape) < share, 0)


def strangers(ids: Tensor, known: Tensor, n: int) -> Tensor:
    """[n, pieces]: sentences that have no intent, real ones (`known`) and halves of two sentences of different kinds."""
    a, b = ids[torch.randperm(len(ids))[:n]], ids[torch.randperm(len(ids))[:n]]
    mixed = torch.where(torch.rand(a.shape) < 0.5, a, b)
    real = known[torch.randint(len(known), (n,))]
    return torch.where(torch.rand(n, 1) < 0.5, mixed, real)


def train(net: Bag, data: Data, ids: Tensor, goals: Tensor, *, epochs: int, batch: int, thin: float, outside: float) -> Bag:
    """Adam on a one-cycle schedule; what has no intent is to get equal logits, with the weight `outside`.

    Args:
        net: as it begins.
        data: whose `oos_train` has no intent, and whose `val` is printed.
        ids: int64 [n, pieces].
        goals: float32 [n, intents], the probabilities to learn.
        epochs: how often each is seen.
        batch: how many at a time.
        thin: the share of pieces that is left out each time.
        outside: see above.
    """
    own = torch.from_numpy(data["train"][0])
    known = torch.from_numpy(data["oos_train"][0])
    peak = 0.01
    optimiser = torch.optim.Adam(net.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=epochs * -(-len(ids) // batch), pct_start=0.1)
    begun = time.monotonic()
    for epoch in range(epochs):
        net.train()
        for rows in torch.randperm(len(ids)).split(batch):
            some = ids[rows]
            some = some[:, : int((some != 0).sum(1).max())]
            loss = -(goals[rows] * F.log_softmax(net(thinned(some, thin)), 1)).sum(1).mean()
            loss = loss - outside * F.log_softmax(net(strangers(own, known, batch // 4)), 1).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        inside, strange = (predict(net, data[split][0]) for split in ("val", "oos_val"))
        print(
            f"epoch {epoch + 1}/{epochs} val {accuracy(inside, data['val'][1]):.4f} "
            f"auroc {auroc(msp(inside), msp(strange)):.4f} {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    return net.eval()


def smoothed(goals: np.ndarray, share: float) -> Tensor:
    return torch.from_numpy((goals * (1 - share) + share / goals.shape[1]).astype(np.float32))


def edge(data: Data, args: argparse.Namespace) -> Bag:
    torch.manual_seed(args.seed)
    net = Bag(8_192, 32, len(data.labels))
    ids, y = data["train"]
    goals = smoothed(np.eye(len(data.labels))[y], 0.1)
    return train(net, data, torch.from_numpy(ids), goals, epochs=args.epochs or 15, batch=64, thin=0.3, outside=0.1)


def cloud(data: Data, args: argparse.Namespace) -> Bag:
    """Half of what it learns about the sentences of `train` are their labels, and the rest is what the teacher says."""
    args.work.mkdir(parents=True, exist_ok=True)
    y = data["train"][1]
    more, goals, val = taught(
        args.teacher,
        data.texts["train"],
        y,
        data.texts["oos_train"],
        data.texts["val"],
        cache=args.work / "vectors.npz",
        seed=args.seed,
    )
    print(f"teacher: val {accuracy(val, data['val'][1]):.4f}", flush=True)
    goals[: len(y)] = (goals[: len(y)] + np.eye(len(data.labels))[y]) / 2
    ids = torch.from_numpy(hashed(data.texts["train"] + more))
    torch.manual_seed(args.seed)
    net = Bag(32_768, 104, len(data.labels))
    return train(net, data, ids, smoothed(goals, 0.05), epochs=args.epochs or 8, batch=128, thin=0.2, outside=0.1)


@torch.no_grad()
def predict(net: Bag, ids: np.ndarray) -> np.ndarray:
    net.eval()
    return torch.cat([net(part) for part in torch.from_numpy(ids).split(500)]).numpy()


# -------------------------------------------------------------------------------------------- export
def export(net: Bag, path: Path, name: str) -> None:
    """Vectors in int8 with a scale for each column, which is applied to their sum; the last layer stays float.

    A lookup has no activations to quantise, so there is nothing to calibrate. Every runtime has these operators.
    """
    vectors = net.vectors.weight.detach().numpy()
    scale = np.maximum(np.abs(vectors).max(0), 1e-8) / 127
    weights = {
        "vectors": np.rint(vectors / scale).astype(np.int8),
        "scale": scale.astype(np.float32),
        "bias": net.bias.detach().numpy(),
        "last": net.last.weight.detach().numpy().T.copy(),
        "last_bias": net.last.bias.detach().numpy(),
        "buckets": np.array(len(vectors), np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.float32),
        "axis": np.array([1], np.int64),
    }
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Mod", ["ids", "buckets"], ["at"]),
            node("Gather", ["vectors", "at"], ["rows"]),
            node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
            node("ReduceSum", ["floats", "axis"], ["sum"], keepdims=0),
            node("Equal", ["at", "zero"], ["empty"]),
            node("Not", ["empty"], ["piece"]),
            node("Cast", ["piece"], ["counted"], to=TensorProto.FLOAT),
            node("ReduceSum", ["counted", "axis"], ["pieces"], keepdims=1),
            node("Max", ["pieces", "one"], ["some"]),
            node("Sqrt", ["some"], ["root"]),
            node("Div", ["sum", "root"], ["mean"]),
            node("Mul", ["mean", "scale"], ["scaled"]),
            node("Add", ["scaled", "bias"], ["shifted"]),
            node("Relu", ["shifted"], ["hidden"]),
            node("Gemm", ["hidden", "last", "last_bias"], ["logits"]),
        ],
        name,
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "pieces"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", net.last.out_features])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="edgeroute")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def run(path: Path, ids: np.ndarray) -> np.ndarray:
    model = session(path)
    return np.concatenate([model.run(None, {"ids": part})[0] for part in np.array_split(ids, -(-len(ids) // 100))])


# ------------------------------------------------------------------------------------------------ go
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EXAMPLE / "models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, help="of each model; fewer show that the recipe runs, no more")
    parser.add_argument("--only", choices=["edge", "cloud"])
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2", help="its name on the Hub, or its folder")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "intents", help="the encoder's vectors, to go on after a stop"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data = Data(args.data)
    begun, rows = time.monotonic(), []
    for side, file, made in (("edge", "intents.int8.onnx", edge), ("cloud", "intents-large.onnx", cloud)):
        if args.only not in {None, side}:
            continue
        net = made(data, args)
        path = args.out / file
        export(net, path, f"intents-{side}")
        val, test, out = (run(path, data[split][0]) for split in ("val", "test", "oos_test"))
        sure = msp(test) >= 0.6
        ids, model = data["test"][0][:1], session(path)
        measured = {
            "validation_accuracy": round(accuracy(val, data["val"][1]), 4),
            "test_accuracy": round(accuracy(test, data["test"][1]), 4),
            "float_test_accuracy": round(accuracy(predict(net, data["test"][0]), data["test"][1]), 4),
            "auroc_out_of_scope_msp": round(auroc(msp(test), msp(out)), 4),
            "auroc_out_of_scope_energy": round(auroc(energy(test), energy(out)), 4),
            "deferred_at_0.6": round(float((msp(test) < 0.6).mean()), 4),
            "accepted_accuracy_at_0.6": round(accuracy(test[sure], data["test"][1][sure]), 4),
            "out_of_scope_deferred_at_0.6": round(float((msp(out) < 0.6).mean()), 4),
            "p50_ms": round(p50_ms(lambda model=model, ids=ids: model.run(None, {"ids": ids})), 3),
        }
        write_card(path, {
            "name": "intents" if side == "edge" else "intents-large",
            "description": f"150 intents of short English requests: a bag of hashed words and pieces, {net.vectors.num_embeddings} buckets x {len(net.bias)}, int8",
            "input": {"name": "ids", "dtype": "int64", "shape": [-1, -1]},
            "output": {"name": "logits", "dtype": "float32", "shape": [-1, len(data.labels)], "kind": "logits"},
            "labels": data.labels,
            "licence": "Apache-2.0",
            "data": f"CLINC150 ({LICENCE}): 15,000 sentences and 100 out of scope to train, 3,000 + 100 to validate, 4,500 + 1,000 to test"
            + ("; further ones marked by a layer on all-MiniLM-L6-v2 (Apache-2.0)" if side == "cloud" else ""),
            "rebuild": "python models/recipes/intents.py --data data_full.json",
            "steps": [measured],
            "notes": f"ids are text_features.piece_ids, version {VERSION}: the CRC-32 of each piece of the text",
        })  # fmt: skip
        rows.append([side, f"{path.stat().st_size / 1000:,.1f}", *measured.values()])
        print(rows[-1], flush=True)
    if args.only is None and args.out == EXAMPLE / "models":
        write_table(
            "intents",
            [
                "model",
                "file, KB",
                "validation",
                "test",
                "test, float",
                "out of scope AUROC, msp",
                "the same, energy",
                "deferred at .6",
                "right of the others",
                "out of scope deferred at .6",
                "p50, ms",
            ],
            rows,
            f"`python models/recipes/intents.py --data data_full.json`, {(time.monotonic() - begun) / 60:.0f} minutes; {where()}.",
        )


if __name__ == "__main__":
    main()
