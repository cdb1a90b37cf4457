"""Overhead of LlamaModel over bare xllamacpp, on a tiny model with random weights: `python benchmarks/llama.py`, or `make bench`.

llama.cpp's own threads make its times vary by more than what is measured. So what it replied once is replayed, as JSON that is
read for each call, to the bare call and to ours alike; how long the real one takes is beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        """As xllamacpp's."""
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
    """Figures: an answer of 8 tokens with its log-probabilities, alone, as it can be stopped, and by a router."""
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
                "bare": lambda x: replay.handle_chat_completions(asked(x)), "streamed": gathered,
                "run_one": model.run_one, "stoppable": lambda x: model.run_one(x, StopToken()),
                "routed": router.infer, "deadline": lambda x: router.infer(x, deadline=30.0),
            }  # fmt: skip
            took = medians(ways, prompts)
        engine._server = server
    rows = [
        (f"`LlamaModel.run_one`, 8 tokens ({real * 1e6:.0f} us with llama.cpp)", "run_one", "bare", 20),
        ("`LlamaModel.run_one` that can be stopped", "stoppable", "streamed", 60),
        ("`infer` of a `LlamaModel`", "routed", "bare", 60),
        ("`infer` of a `LlamaModel` with a deadline", "deadline", "streamed", 150),
    ]
    return [timed(what, took[ours], took[base], limit, digits=0) for what, ours, base, limit in rows]


if __name__ == "__main__":
    print(table(figures()))
