"""What the two recipes of examples/voice share: cards, measures, and the table."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "voice"


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def msp(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds.max(1) / odds.sum(1)


def energy(logits: np.ndarray) -> np.ndarray:
    top = logits.max(1, keepdims=True)
    return top[:, 0] + np.log(np.exp(logits - top).sum(1))


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that a score of `inside` is greater than one of `outside`; ties count half."""
    ordered = np.sort(outside)
    below, up_to = (np.searchsorted(ordered, inside, side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(outside))


def p50_ms(call: Callable[[], object], times: int = 300) -> float:
    """Median time of a call in milliseconds, after 50 to warm up."""
    taken = []
    for _ in range(times + 50):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[50:]) * 1e3


def write_card(path: Path, card: dict[str, object]) -> None:
    """Beside the model; the file's name, hash and size are filled in."""
    content = path.read_bytes()
    filled = {**card, "file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.with_suffix(".json").write_text(json.dumps(filled, indent=2) + "\n")


def write_table(marker: str, head: list[str], rows: list[list[object]], note: str) -> None:
    """Puts a table between the two markers of examples/voice/MODELS.md, and prints it."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    table = "\n".join(lines) + f"\n\n{note}"
    print(table, flush=True)
    path = EXAMPLE / "MODELS.md"
    before, rest = path.read_text().split(f"<!-- {marker} -->", 1)
    after = rest.split(f"<!-- /{marker} -->", 1)[1]
    path.write_text(f"{before}<!-- {marker} -->\n{table}\n<!-- /{marker} -->{after}")


def where() -> str:
    return f"{platform.machine()}, one thread, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
