"""Builds the models of spoken commands for examples/voice: `python models/recipes/commands.py --data PATH`, or see `--help`.

    edge    a small convolutional network on log-mel features, static int8: the ten digits, and "other" for all else
    cloud   a residual network, four times as large, float32

PATH is the folder `recordings` of https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0): its test set is takes 0 to 4
of each speaker and digit. To these come digits and other words by espeak-ng (`apt-get install espeak-ng`), recorded digits backwards
and cut up, and noise. With `--speakers N` the edge network is also trained N times without one speaker, and tested on that one. Where
Debian's `asterisk-core-sounds-en-wav` is installed, the prompts in it are one more voice for the test, with other words. Needs
`models/recipes/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from speech import LABELS, OTHER, Clips, recordings, tested, trained_on, varied
from torch import Tensor, nn
from voice import EXAMPLE, accuracy, auroc, msp, p50_ms, session, where, write_card, write_table

from edgeroute.tools import compress

sys.path.insert(0, str(EXAMPLE))
from features import FRAMES, MELS, VERSION, log_mel  # the features of the example are those of the models

COLUMNS = {
    "recorded_accuracy": "recordings", "voices_accuracy": "new voices", "accents_accuracy": "new accents", "prompts_accuracy": "prompts",
    "voices_auroc": "AUROC, new voices and words", "prompts_auroc": "AUROC, prompts", "noise_auroc": "AUROC, noise",
    "prompts_taken_for_digits": "prompts taken for digits", "p50_ms": "p50, ms",
}  # fmt: skip
LICENCE = "CC BY-SA 4.0, Zohar Jackson and others, github.com/Jakobovski/free-spoken-digit-dataset"


# ------------------------------------------------------------------------------------------- networks
def conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def edge_net() -> nn.Sequential:
    return nn.Sequential(
        conv(1, 16, 2), conv(16, 32, 2), conv(32, 40), conv(40, 56, 2), conv(56, 56),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(56, len(LABELS)),
    )  # fmt: skip


def cloud_net() -> nn.Sequential:
    return nn.Sequential(
        conv(1, 24, 2), conv(24, 48, 2), Residual(48), conv(48, 96, 2), Residual(96),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, len(LABELS)),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- training
def features(some: Clips) -> np.ndarray:
    """-> float32 [n, 1, 64, 32]."""
    return np.stack([log_mel(clip) for clip in some.audio])


def pool(some: Clips, copies: int, rng: np.random.Generator) -> np.ndarray:
    """-> float16 [copies, n, 1, 64, 32]: each clip in so many variants, the first as it is."""
    made = np.empty((copies, len(some.audio), 1, FRAMES, MELS), np.float16)
    for copy in range(copies):
        for i, clip in enumerate(some.audio):
            made[copy, i] = log_mel(varied(clip, rng) if copy else clip)
    return made


def masked(x: Tensor, rng: np.random.Generator) -> Tensor:
    """[n, 1, frames, mels]: each shifted by some frames, and without a few frames and bands (Park et al. 2019, SpecAugment)."""
    for one in x:
        shift = int(rng.integers(-6, 7))
        one[:] = one.roll(shift, 1)
        if rng.random() < 0.5:
            at = int(rng.integers(0, FRAMES - 8))
            one[:, at : at + int(rng.integers(1, 8))] = -1
        if rng.random() < 0.5:
            at = int(rng.integers(0, MELS - 4))
            one[:, :, at : at + int(rng.integers(1, 4))] = -1
    return x


def train(net: nn.Module, x: np.ndarray, y: np.ndarray, *, epochs: int, seed: int, name: str) -> nn.Module:
    """AdamW on a one-cycle schedule. x: [copies, n, 1, 64, 32]. -> the averaged weights, eval mode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    labels, batch, peak = torch.from_numpy(y.copy()), 64, 4e-3
    optimiser = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=epochs * (len(y) // batch), pct_start=0.2)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    for epoch in range(epochs):
        begun, total = time.monotonic(), 0.0
        net.train()
        for rows in torch.from_numpy(rng.permutation(len(y))).split(batch):
            if len(rows) < batch:
                continue
            copy = rng.integers(len(x), size=batch)
            picked = torch.from_numpy(x[copy, rows.numpy()].astype(np.float32))
            loss = F.cross_entropy(net(masked(picked, rng)), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            average.update_parameters(net)
            total += loss.item()
        if epoch < 2 or (epoch + 1) % 5 == 0:
            print(
                f"{name} {epoch + 1}/{epochs} loss {total / (len(y) // batch):.4f} {time.monotonic() - begun:.0f} s", flush=True
            )
    return average.module.eval()


@torch.no_grad()
def predict(net: nn.Module, x: np.ndarray) -> np.ndarray:
    return torch.cat([net(part) for part in torch.from_numpy(x).split(250)]).numpy()


# ----------------------------------------------------------------------------------- export and measure
def export(net: nn.Module, path: Path, name: str) -> None:
    torch.onnx.export(
        net, (torch.zeros(1, 1, FRAMES, MELS),), str(path), input_names=["features"], output_names=["logits"], opset_version=17,
        dynamo=False, dynamic_axes={"features": {0: "n"}, "logits": {0: "n"}},
    )  # fmt: skip
    model = onnx.load(path)
    model.graph.name, model.producer_name, model.producer_version = name, "edgeroute", ""
    onnx.save(model, path)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    model = session(path)
    return np.concatenate([model.run(None, {"features": part})[0] for part in np.array_split(x, -(-len(x) // 100))])


def digit_score(logits: np.ndarray) -> np.ndarray:
    """The probability of the likeliest digit: low for what is none."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True))[:, :OTHER].max(1)


def measured(path: Path, tests: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Accuracy on the digits of each test, and how well the digits' probability tells other words and noise from them."""
    logits = {name: run(path, x) for name, (x, _) in tests.items()}
    own = digit_score(logits["recorded"])
    found = {"recorded_accuracy": accuracy(logits["recorded"], tests["recorded"][1])}
    for name, (_, y) in tests.items():
        digits, score = y != OTHER, digit_score(logits[name])
        if name != "recorded" and digits.any():
            found[f"{name}_accuracy"] = accuracy(logits[name][digits], y[digits])
        if not digits.all():
            found[f"{name}_auroc"] = auroc(score[digits] if digits.any() else own, score[~digits])
            found[f"{name}_taken_for_digits"] = float((score[~digits] >= 0.8).mean())
    found["recorded_sure"] = float((msp(logits["recorded"]) >= 0.8).mean())
    first, model = tests["recorded"][0][:1], session(path)
    found["p50_ms"] = p50_ms(lambda: model.run(None, {"features": first}))
    return {key: round(value, 4) for key, value in found.items()}


# ------------------------------------------------------------------------------------------------- go
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EXAMPLE / "models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--copies", type=int, default=8, help="variants of each clip to train on")
    parser.add_argument("--speakers", type=int, default=0, help="so many speakers are left out, one at a time")
    parser.add_argument("--only", choices=["edge", "cloud", "none"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    rng, begun, rows = np.random.default_rng(args.seed), time.monotonic(), []

    people = recordings(args.data)
    training, tests = trained_on(people.where(people.take >= 5), rng), tested(people.where(people.take < 5), rng)
    sizes = {name: len(test.audio) for name, test in tests.items()}
    print(f"{len(training.audio)} clips to train, to test {sizes}, {time.monotonic() - begun:.0f} s", flush=True)
    x, y = pool(training, args.copies, rng), training.labels
    measures = {name: (features(test), test.labels) for name, test in tests.items()}
    print(f"features: {time.monotonic() - begun:.0f} s", flush=True)

    for side, file, made in (("edge", "digits.int8.onnx", edge_net), ("cloud", "digits-large.onnx", cloud_net)):
        if args.only not in {None, side}:
            continue
        net = train(made(), x, y, epochs=args.epochs, seed=args.seed, name=side)
        path = args.out / file
        card = {
            "name": "digits" if side == "edge" else "digits-large",
            "description": f"Spoken English digits, or other: convolutional network on log-mel features, {'int8' if side == 'edge' else 'float32'}",
            "input": {"name": "features", "dtype": "float32", "shape": [-1, 1, FRAMES, MELS]},
            "output": {"name": "logits", "dtype": "float32", "shape": [-1, len(LABELS)], "kind": "logits"},
            "labels": LABELS,
            "licence": "Apache-2.0",
            "data": f"Free Spoken Digit Dataset ({LICENCE}): takes 5 to 49 to train, 0 to 4 to test; digits and other words by espeak-ng",
            "rebuild": "python models/recipes/commands.py --data recordings",
        }
        export(net, path, card["name"])
        write_card(path, card)
        if side == "edge":
            with tempfile.TemporaryDirectory() as scratch:
                whole = Path(scratch, "digits.onnx")
                path.replace(whole)
                path.with_suffix(".json").unlink()
                write_card(whole, card)
                picks = rng.permutation(len(y))[:1_000]
                print(
                    compress.quantize(
                        whole, list(x[1, picks].astype(np.float32)), y[picks], out=path, sensitivity=False, overwrite=True
                    )
                )
        figures = measured(path, measures)
        figures["float_accuracy"] = round(accuracy(predict(net, measures["recorded"][0]), measures["recorded"][1]), 4)
        written = json.loads(path.with_suffix(".json").read_text())
        write_card(path, {**written, "steps": [figures], "notes": f"features are features.log_mel, version {VERSION}"})
        print(side, path.stat().st_size, figures, flush=True)
        rows.append([side, f"{path.stat().st_size / 1000:,.1f}", *(figures.get(key, "") for key in COLUMNS)])

    left_out = {}
    for speaker in np.unique(people.who)[: args.speakers]:
        rest = training.who != speaker
        net = train(edge_net(), x[:, rest], y[rest], epochs=max(1, args.epochs // 2), seed=args.seed, name=f"without {speaker}")
        own = people.where(people.who == speaker)
        logits = predict(net, features(own))
        sure = digit_score(logits) >= 0.8
        left_out[str(speaker)] = round(accuracy(logits, own.labels), 4)
        print(
            f"without {speaker}: {left_out[str(speaker)]}, taken for other {accuracy(logits, OTHER):.3f}, "
            f"sure {sure.mean():.3f}, of these right {accuracy(logits[sure], own.labels[sure]):.4f}",
            flush=True,
        )
    if args.only is None and args.out == EXAMPLE / "models":
        note = f"`python models/recipes/commands.py --data recordings --speakers {args.speakers}`, {(time.monotonic() - begun) / 60:.0f} minutes; {where()}."
        if left_out:
            each = ", ".join(f"{speaker} {share:.3f}" for speaker, share in left_out.items())
            note = f"The edge network, in float, on a speaker whom it did not hear: {each}; mean {np.mean([*left_out.values()]):.3f}.\n\n{note}"
        write_table("commands", ["model", "file, KB", *COLUMNS.values()], rows, note)


if __name__ == "__main__":
    main()
