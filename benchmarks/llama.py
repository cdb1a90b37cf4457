"""Overhead of LlamaModel over bare xllamacpp, on a tiny model with random weights: `python benchmarks/llama.py`, or `make bench`.

llama.cpp's own threads make its times vary by more than what is measured. So what it replied once is replayed, as JSON that is
read for each call, to the bare call and to ours alike; how long the real one takes is beside it. A model in a process of its own
is compared with the same one in this process, on tokens of some 10 ms, as those of a model that is of use.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
from figures import Figure, medians, size, table, timed

TOKENS = 8
REQUEST = {"max_tokens": TOKENS, "temperature": 0, "seed": 0, "logprobs": True, "top_logprobs": 1}


class Replay:
    """A server that replies what another one did."""

    def __init__(self, server: Any, prompt: str) -> None:
        chunks: list[Any] = []
        self._reply = json.dumps(server.handle_chat_completions(asked(prompt)))
        server.handle_chat_completions(asked(prompt, stream=True), lambda chunk: bool(chunks.append(chunk)))
        self._chunks = list(map(json.dumps, chunks))

    def handle_chat_completions(self, request: Any, callback: Callable[[Any], bool] | None = None) -> Any:  # noqa: ARG002
        """Return the stored reply, or pass its chunks to `callback` until that returns True, as xllamacpp's."""
        if callback is None:
            return json.loads(self._reply)
        for chunk in self._chunks:
            if callback(json.loads(chunk)):
                break
        return None


def asked(prompt: str, **more: Any) -> dict[str, Any]:
    """A request, as one writes it by hand."""
    return {**REQUEST, "messages": [{"role": "user", "content": prompt}], **more}


def figures() -> list[Figure]:
    """Return what `LlamaModel` adds to an answer of 8 tokens: alone, as it can be stopped, and by a router; and isolated."""
    import tiny_gguf

    from edgeroute import LlamaModel, Router, StopToken

    with tempfile.TemporaryDirectory() as folder:
        model = LlamaModel(tiny_gguf.write(Path(folder) / "tiny.gguf"), max_tokens=TOKENS)
        engine: Any = model.load()
        prompts, server = ["hello there"] * size(20, 2), engine._server
        real = medians({"bare": lambda x: server.handle_chat_completions(asked(x))}, prompts, runs=3, blocks=2)["bare"]
        engine._server = replay = Replay(server, prompts[0])

        def gathered(x: str) -> object:
            text: list[Any] = []
            replay.handle_chat_completions(asked(x, stream=True), lambda chunk: bool(text.append(chunk)))
            return "".join(c["choices"][0]["delta"].get("content") or "" for c in text if c["choices"])

        with Router(model, lambda _: "cloud", threshold=0.0) as router:
            ways: dict[str, Callable[[str], object]] = {
                "streamed": gathered, "run_one": model.run_one, "stoppable": lambda x: model.run_one(x, StopToken()),
                "routed": router.infer, "deadline": lambda x: router.infer(x, deadline=30.0),
            }  # fmt: skip
            took = medians(ways, prompts)
        engine._server = server
    rows = [
        (f"`LlamaModel.run_one`, 8 tokens ({real * 1e6:.0f} us with llama.cpp)", "run_one", "streamed", 60),
        ("`LlamaModel.run_one` that can be stopped", "stoppable", "streamed", 60),
        ("`infer` of a `LlamaModel`", "routed", "streamed", 100),
        ("`infer` of a `LlamaModel` with a deadline", "deadline", "streamed", 150),
    ]
    return [timed(what, took[ours], took[base], limit, digits=0) for what, ours, base, limit in rows] + isolated_figures()


def isolated_figures() -> list[Figure]:
    """Return the first piece of a stream, the time of a token, and its processor time in both processes, in turns.

    The fastest first piece, of a tiny model, the fastest tokens, and processor time, as other work on the machine is in none.
    """
    import tiny_gguf

    from edgeroute import LlamaModel

    first, later, used = [list[float](), list[float]()], [list[float](), list[float]()], [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        for path, turns in (
            (tiny_gguf.write(Path(folder) / "tiny.gguf"), size(200, 2)),
            (tiny_gguf.write(Path(folder) / "larger.gguf", width=size(768, 64), layers=size(8, 2)), size(40, 2)),
        ):
            models = [LlamaModel(path, max_tokens=size(60, 8), isolate=isolate) for isolate in (True, False)]
            for turn in range(turns + 1):
                for i, model in enumerate(models):
                    before, begun = processor_s(), perf_counter()
                    instants = [perf_counter() for _ in model.stream(f"hello {turn}")]
                    if turn and path.stem == "tiny":  # the first turn loads the model
                        first[i].append(instants[0] - begun)
                    elif turn:
                        later[i].append((instants[-1] - instants[0]) / max(len(instants) - 1, 1))
                        used[i] += (processor_s() - before) / len(instants) / turns
            for model in models:
                model.close()
    return [
        timed("First piece of an isolated `LlamaModel`", min(first[0]), min(first[1]), 3, shown="ms"),
        timed(
            "Time of a token of an isolated `LlamaModel`", min(later[0]), min(later[1]), 1.03, shown="ms", digits=2, by="ratio"
        ),
        timed("Processor time of a token of an isolated `LlamaModel`", *used, 1.03, shown="ms", digits=2, by="ratio"),
    ]


def processor_s() -> float:
    """Processor time of this process and its children so far, seconds."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children()))


if __name__ == "__main__":
    print(table(figures()))
