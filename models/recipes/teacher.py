"""A sentence encoder that knows English as the teacher of the larger intent model, and further sentences for it to mark."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

SCALE = 20.0
"""Vectors of length 1 in 384 dimensions have entries about this small."""


class Encoder:
    """all-MiniLM-L6-v2 (Apache-2.0), by its name on the Hugging Face Hub or in a folder."""

    def __init__(self, name: str) -> None:
        self.model = SentenceTransformer(name, device="cpu")

    def vectors(self, texts: list[str]) -> np.ndarray:
        """-> float32 [n, 384], of length 1."""
        return self.model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)

    def neighbours(self, texts: list[str], near: float = 0.45) -> dict[str, list[str]]:
        """Word of the texts -> up to eight whose vectors in the encoder's own table are near: taxi, cab."""
        vocabulary = self.model.tokenizer.get_vocab()
        words = sorted(word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2)
        table = self.model[0].auto_model.get_input_embeddings().weight.detach()
        table = F.normalize(table[[vocabulary[word] for word in words]], dim=1)
        at = {word: i for i, word in enumerate(words)}
        found = {}
        for word in sorted({word for text in texts for word in text.lower().split()} & at.keys()):
            likeness, rows = (table @ table[at[word]]).topk(9)
            found[word] = [words[i] for i, like in zip(rows.tolist()[1:], likeness.tolist()[1:], strict=True) if like > near]
        return found


def variations(texts: list[str], near: dict[str, list[str]], rng: np.random.Generator) -> list[str]:
    """Each sentence with a tenth of its words left out, and a third of the others replaced by a neighbour."""
    made = []
    for text in texts:
        words = []
        for word in text.split():
            chance = rng.random()
            if chance >= 0.1:
                words.append(str(rng.choice(near[word])) if chance < 0.4 and near.get(word) else word)
        made.append(" ".join(words) or text)
    return made


def fit(x: Tensor, y: Tensor, outside: Tensor, *, seed: int, epochs: int = 20) -> nn.Module:
    """One hidden layer on the encoder's vectors. `outside` and sums of two vectors are to get equal logits. -> eval mode."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Dropout(0.1), nn.Linear(x.shape[1], 512), nn.ReLU(), nn.Dropout(0.4), nn.Linear(512, int(y.max()) + 1))
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * -(-len(x) // 128))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            a, b = torch.randint(len(x), (2, 32))
            strange = torch.where(
                torch.rand(32, 1) < 0.5, F.normalize(x[a] + x[b], dim=1), outside[torch.randint(len(outside), (32,))]
            )
            loss = F.cross_entropy(net(x[rows] * SCALE), y[rows], label_smoothing=0.05)
            loss = loss - 0.1 * F.log_softmax(net(strange * SCALE), 1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def probabilities(nets: list[nn.Module], vectors: np.ndarray) -> np.ndarray:
    """-> float32 [n, intents], the mean of the networks'."""
    x = torch.from_numpy(vectors) * SCALE
    return torch.stack([F.softmax(net(x), 1) for net in nets]).mean(0).numpy()


def taught(
    name: str, train: list[str], y: np.ndarray, outside: list[str], val: list[str], *, cache: Path, seed: int, rounds: int = 4
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The teacher on further sentences.

    Returns:
        The sentences; its probabilities of `train` followed by them, float32 [n, intents]; and those of `val`.
    """
    begun = time.monotonic()
    if not cache.exists():
        encoder, rng = Encoder(name), np.random.default_rng(seed)
        near = encoder.neighbours(train + outside)
        more = [text for _ in range(rounds) for text in variations(train + outside, near, rng)]
        parts = {"train": train, "outside": outside, "val": val, "more": more}
        np.savez(cache, texts=np.array(more), **{part: encoder.vectors(texts) for part, texts in parts.items()})
        print(f"{len(more)} more sentences, {time.monotonic() - begun:.0f} s", flush=True)
    seen = np.load(cache)
    x, strange = torch.from_numpy(seen["train"]), torch.from_numpy(seen["outside"])
    nets = [fit(x, torch.from_numpy(y), strange, seed=seed + i) for i in range(2)]
    print(f"teacher: {time.monotonic() - begun:.0f} s", flush=True)
    both = probabilities(nets, np.concatenate([seen["train"], seen["more"]]))
    return seen["texts"].tolist(), both, probabilities(nets, seen["val"])
