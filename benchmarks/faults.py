"""Cost of a failing cloud: calls with an open breaker, connects until it opens, and LiteLLM's Router on the same faults."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from chat_faults import connects, installed
from figures import MODELS, Figure, size, table, timed

from edgeroute import OnnxModel, PlainJson, Router
from edgeroute.testing import CannedServer, Relay, http_reply

FAULTS: dict[str, tuple[str, Any]] = {
    "dead endpoint": ("refuse", True),
    "black hole": ("black_hole", True),
    "5 s stall": ("delay_s", 1.25),  # there and back, twice: a new connection costs a round trip more
    "reset in the body": ("reset_after", 200),
}
"""Fault -> attribute of the relay in front of the endpoint."""
NONE = "none"
TIMEOUT_S = size(1.0, 0.2)
"""Endpoint timeout of every router; only the last LiteLLM variant has further options."""
CALLS = size(20, 1)
RUNS, PASSES = size(7, 1), size(20, 1)
MESSAGE = {"role": "assistant", "content": "cloud"}
CHAT = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "message": MESSAGE}]}
REPLY = http_reply(json.dumps({"value": "cloud", **CHAT}).encode())
"""A reply valid in both protocols, longer than what passes before the reset."""
Ask: TypeAlias = Callable[[int], str]
"""Image index -> who answered: "edge" or "cloud"."""
Subject: TypeAlias = Callable[[str], contextlib.AbstractContextManager[Ask]]
"""URL of the cloud -> a router."""


def figures() -> list[Figure]:
    """Return per fault the p99 with the breaker open against that of the edge alone; and the connects until it opens."""
    found, images = [], _images()
    most = probes = 0
    for fault in FAULTS:
        with _faulty(fault) as relay, _router(relay.url) as router:
            while _breaker(router) == "closed":
                router.infer(images[0])
            before = connects()[relay.port]
            ours, alone = _open(router, images)
            assert _breaker(router) != "closed"
            most, probes = max(most, before), max(probes, connects()[relay.port] - before)
        found.append(timed(f"p99 with the breaker open, {fault}", ours, alone, 1, shown="ms", digits=3))
    calls = RUNS * PASSES * len(images)
    return [
        *found,
        Figure(f"connects until the breaker opens; then {probes} in {calls} calls", f"{most}", "-", most, "connects", 3),
    ]


def comparison(calls: int = CALLS) -> str:
    """Return a table of every router under every fault: a new router each, `calls` sequential calls. Takes ten minutes."""
    subjects: dict[str, Subject] = {"edgeroute": _ours, **installed(_theirs)}
    faults = (NONE, *FAULTS)
    for fault in (NONE, "dead endpoint"):  # warm-up: imports at the first call and first failure
        for subject in subjects.values():
            _tried(fault, subject, 1)
    lines = [
        "| fault | router | by the cloud | by the edge | p50 | p99 | connects |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fault in faults:
        for name, subject in subjects.items():
            told = " | ".join(_tried(fault, subject, calls))
            lines.append(f"| {fault} | {name} | {told} |")
    return "\n".join(lines)


def _images() -> list[np.ndarray]:
    return list(np.load(MODELS / "sample.npz")["images"][: size(200, 20)])


def _edge() -> OnnxModel:
    model = OnnxModel(MODELS / "edge.int8.onnx")
    model.load()
    return model


def _router(url: str) -> Router:
    """A router whose edge is never confident enough, so that every call needs the cloud."""
    return Router(_edge(), PlainJson(url, timeout_s=TIMEOUT_S), threshold=math.inf)


@contextlib.contextmanager
def _faulty(fault: str) -> Iterator[Relay]:
    """Provide a relay to a server, with that fault; "none" has none."""
    with CannedServer(REPLY) as server, Relay("127.0.0.1", server.port) as relay:
        if fault != NONE:
            setattr(relay, *FAULTS[fault])
        yield relay


def _breaker(router: Router) -> str:
    return next(leg.breaker for leg in router.stats().legs if leg.side == "cloud")


def _open(router: Router, images: list[np.ndarray]) -> tuple[float, float]:
    """Return the medians over runs of the p99 latency, seconds, of calls that need the cloud, and of the edge alone, in turns."""
    subjects = (router.infer, partial(router.infer, mode="only_edge"))
    found: tuple[list[float], list[float]] = [], []
    for _ in range(RUNS):
        taken: tuple[list[float], list[float]] = [], []
        for _ in range(PASSES):
            for infer, times in zip(subjects, taken, strict=True):
                for x in images:
                    begun = time.perf_counter()
                    infer(x)
                    times.append(time.perf_counter() - begun)
        for p99s, times in zip(found, taken, strict=True):
            p99s.append(_p99(times))
    return statistics.median(found[0]), statistics.median(found[1])


def _p99(times: list[float]) -> float:
    """99 % quantile by nearest rank; the maximum of fewer than 100."""
    return sorted(times)[math.ceil(len(times) * 0.99) - 1]


def _tried(fault: str, subject: Subject, calls: int) -> list[str]:
    """Ask a new router `calls` times under a fault; return as text who answered how often, p50, p99, and the number of connects.

    Exceptions are printed to stderr, and no answer.
    """
    by: Counter[str] = Counter()
    times = []
    with _faulty(fault) as relay, subject(relay.url) as ask:
        before = connects()[relay.port]
        for n in range(calls):
            begun = time.perf_counter()
            try:
                by[ask(n)] += 1
            except Exception as e:  # noqa: BLE001 - whatever it is, there was no answer, and the table shows it
                print(f"{fault}: {e!r}", file=sys.stderr)
            times.append(time.perf_counter() - begun)
        tries = connects()[relay.port] - before
    ms = "{:.2f} ms".format
    return [f"{by['cloud']}", f"{by['edge']}", ms(statistics.median(times) * 1e3), ms(_p99(times) * 1e3), f"{tries}"]


@contextlib.contextmanager
def _ours(url: str) -> Iterator[Ask]:
    images = _images()
    with _router(url) as router:
        yield lambda n: router.infer(images[n]).source


def _theirs() -> dict[str, Subject]:
    """Return LiteLLM routers as subjects: with a timeout only, and with no retries and a cooldown for failing endpoints.

    Changes options of LiteLLM for good.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its import would download a list of prices
    import litellm
    from litellm.types.router import AllowedFailsPolicy

    images, model = _images(), _edge()

    class Edge(litellm.CustomLLM):
        """The same edge model as a custom LiteLLM provider."""

        def completion(self, *_: Any, messages: list[Any], **__: Any) -> Any:
            """Classifies the image whose index is the message."""
            said = str(np.argmax(model.run_one(images[int(messages[0]["content"])])))
            return litellm.ModelResponse(choices=[{"message": {"role": "assistant", "content": said}}])

    litellm.suppress_debug_info = True
    litellm.custom_provider_map = [{"provider": "edge", "custom_handler": Edge()}]

    @contextlib.contextmanager
    def routed(url: str, **options: Any) -> Iterator[Ask]:
        cloud = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none"}
        models = [
            {"model_name": "cloud", "litellm_params": cloud},
            {"model_name": "edge", "litellm_params": {"model": "edge/m"}},
        ]
        router = litellm.Router(models, fallbacks=[{"cloud": ["edge"]}], timeout=TIMEOUT_S, **options)

        def ask(n: int) -> str:
            said = router.completion("cloud", [{"role": "user", "content": str(n)}]).choices[0].message.content
            return "cloud" if said == "cloud" else "edge"

        yield ask
        router.discard()

    kinds = ("Timeout", "InternalServer", "ServiceUnavailable", "BadGateway")
    allowed = AllowedFailsPolicy(**{f"{kind}ErrorAllowedFails": 2 for kind in kinds})
    cooling = partial(routed, num_retries=0, cooldown_time=5, allowed_fails_policy=allowed)
    return {"LiteLLM": routed, "LiteLLM, no retries, cooldown after 3 failures": cooling}


if __name__ == "__main__":
    print(table(figures()), comparison(), sep="\n\n")
