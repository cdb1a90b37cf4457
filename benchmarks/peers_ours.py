"""edgeroute's column of docs/peers.md: each cell but those of `LOOKED_UP` comes of doing what its row says, on loopback."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias, get_args

import chat_faults
import numpy as np

import edgeroute
from edgeroute import (
    Audit,
    Egress,
    InputScore,
    Options,
    PlainJson,
    Reading,
    Router,
    Rule,
    Unreachable,
    models,
)
from edgeroute.confidence import calibrate, fit, msp, prompt_features
from edgeroute.core.policy_egress_and_options import CloudOrder
from edgeroute.edge.runtimes_variants_ensemble import suffixes
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

LONG_S = 30.0
"""What never happens is waited for so long."""
Probe: TypeAlias = Callable[[], str]
"""-> the cell."""
CELLS: dict[str, Probe] = {}
"""Title of a row -> what fills it."""
SURE, UNSURE = ("edge", 0.9), ("edge", 0.4)
GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}')


def cell(title: str) -> Callable[[Probe], Probe]:
    """Return a decorator that registers a function as what fills that row."""

    def enter(probe: Probe) -> Probe:
        CELLS[title] = probe
        return probe

    return enter


LOOKED_UP: list[str] = []
"""Titles of rows that are filled by looking, as there is nothing to do."""


def looked_up(title: str) -> Callable[[Probe], Probe]:
    """Return as `cell`, for a row whose cell comes of what the package consists of; notes the row in `LOOKED_UP`."""
    LOOKED_UP.append(title)
    return cell(title)


def yes(held: object) -> str:
    """Return "yes" or "no", as the table has it."""
    return "yes" if held else "no"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Provide a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Path(name)


# --- where it runs


@cell("The small model runs in the program's own process")
def in_process() -> str:
    """Return "yes" if the small model's answer is the id of this process."""
    with Router(lambda _: (os.getpid(), 0.9), threshold=0.5) as router:
        return yes(router.infer(1).value == os.getpid())


@cell("Models of images, sound and tensors, not of text alone")
def other_models() -> str:
    """Return "yes" if an int8 classifier of images answers."""
    fashion = models.fashion()
    with Router(fashion.edge, threshold=0.5) as router:
        return yes(router.infer(fashion.images[0]).value == "Ankle boot")


@looked_up("Files that the small model may be")
def formats() -> str:
    """Return the suffixes of files with a runtime of its own."""
    return ", ".join(f"`{suffix}`" for suffix in suffixes())


@cell("The large model is any HTTP API that answers JSON")
def any_api() -> str:
    """Return "yes" if an API with a body and a reply of its own can be the cloud."""
    with CannedServer(http_reply(b'{"result": [{"label": "dog"}]}')) as server:
        cloud = PlainJson(server.url, body={"content": "{input}"}, value="result.0.label", confidence=None)
        with Router(lambda _: UNSURE, cloud, threshold=0.8) as router:
            return yes(router.infer("x").value == "dog" and server.requests[0].endswith(b'{"content":"x"}'))


@looked_up("Libraries for Swift, Kotlin, JavaScript or Dart")
def languages() -> str:
    """Return "yes" if the package has sources in another language than Python."""
    found = {path.suffix for path in Path(edgeroute.__file__).parent.rglob("*")}
    return yes(found & {".swift", ".kt", ".js", ".ts", ".dart"})


@looked_up("Serves the large model, in batches on GPUs")
def serves() -> str:
    """Return to which servers a model can be exported; edgeroute itself does not serve it."""
    from edgeroute.tools.export import triton_kserve_ray_exports as server_files

    known = {"triton": "Triton", "ray": "Ray Serve", "kserve": "KServe"}
    there = [name for command, name in known.items() if hasattr(server_files, command)]
    return f"no, exports it to {', '.join(there)}"


# --- how it decides


@cell("By the confidence of the small model's answer")
def by_confidence() -> str:
    """Return "yes" if the small model answers above the threshold, and the large one below it."""
    with Router(lambda x: ("edge", x), lambda _: "cloud", threshold=0.8) as router:
        return yes((router.infer(0.9).source, router.infer(0.2).source) == ("edge", "cloud"))


@cell("By the prompt, before anything is generated")
def by_prompt() -> str:
    """Return the scores of a prompt that decide here: a function, and a fit to recorded answers; the small model does not run."""
    rng = np.random.default_rng(0)
    hard = rng.random(600) < 0.5
    prompts = [f"what is {i} times {i + 7}" if h else f"name a river in country {i}" for i, h in enumerate(hard)]
    right = rng.random(600) < np.where(hard, 0.1, 0.98)
    fitted = fit([prompt_features(prompt) for prompt in prompts], right, np.ones(600, bool))
    length = InputScore(lambda features: 1 - features["words"] / 6, features=prompt_features, name="length")

    def decides(score: InputScore, threshold: float, easy: str, difficult: str) -> bool:
        edge = FakeModel([("local", 1.0)])
        with Router(edge, lambda _: "cloud", threshold=threshold, score=score) as router:
            sources = router.infer(easy).source, router.infer(difficult).source
        return sources == ("edge", "cloud") and edge.runs == 1

    easy, difficult = "name a river in country 7", "what is 17 times 24"
    middle = sum(fitted(prompt_features(prompt)) for prompt in (easy, difficult)) / 2
    ways = {
        "your function": decides(length, 0.5, "Hello", " ".join(["word"] * 50)),
        "fitted to recorded answers": decides(InputScore(fitted, features=prompt_features), middle, easy, difficult),
    }
    return ", ".join(way for way, works in ways.items() if works) or "no"


@cell("A threshold with a statistical guarantee")
def guarantee() -> str:
    """Return "yes" if `calibrate` states a guarantee of 1 point, by the recorded outputs of two models on 5,000 images."""
    seen = np.load(models.fashion().validation)
    edge, cloud = (seen[f"{side}_logits"].argmax(1) == seen["labels"] for side in ("edge", "cloud"))
    made = calibrate(msp(seen["edge_logits"]), edge, cloud, max_loss=0.01, name="msp")
    return yes("95 % confidence" in made.guarantee and "1 percentage point" in made.guarantee)


@cell("A sample of accepted answers is compared with the large model's")
def audited() -> str:
    """Return "yes" if the cloud is asked in the background about an accepted answer, and the caller has the small model's."""
    cloud = FakeCloud(["cloud"])
    with Router(lambda _: SURE, cloud, threshold=0.5, audit=Audit(share=1)) as router:
        return yes(router.infer(1).source == "edge" and cloud.begun.wait(LONG_S))


@cell("A trial first: the large model answers, the small one runs beside it")
def shadow() -> str:
    """Return "yes" if in the mode `shadow` the cloud answers, and the small model runs, too."""
    edge = FakeModel([SURE])
    with Router(edge, lambda _: "cloud", mode="shadow") as router:
        return yes(router.infer(1).source == "cloud" and edge.begun.wait(LONG_S))


@cell("By battery, heat, memory or load")
def by_device() -> str:
    """Return "yes" if a rule on a low battery keeps a request on the device, and its reason says so."""
    rules, sensors = [Rule("battery", "only_edge", enter=0.2)], lambda: Reading(battery=0.15)
    with Router(lambda _: UNSURE, lambda _: "cloud", threshold=0.8, options=Options(sensors=sensors, rules=rules)) as router:
        answer = router.infer(1)
    return yes(answer.source == "edge" and "battery below 20%" in answer.reason)


@cell("Order of several large models")
def order() -> str:
    """Return the orders of several clouds that a policy may name; a router is made with each."""
    known = get_args(CloudOrder)
    for name in known:
        Router(lambda _: SURE, [lambda _: "a", lambda _: "b"], threshold=0.5, options=Options(order=name)).close()
    return ", ".join(known)


@cell("The reason is in the answer")
def reason() -> str:
    """Return "yes" if a reason has the confidence, the threshold, and what the large model did."""
    with Router(lambda _: UNSURE, FakeCloud([Unreachable("no route")]), threshold=0.8) as router:
        told = router.infer(1).reason
    return yes("0.40 < 0.80" in told and "no route" in told)


# --- when the large model fails: chats are in peers_theirs.py, the same for all


@cell("One limit over both models and all attempts")
def one_limit() -> str:
    """Return "yes" if two endpoints that never reply, of 30 s each, end by the deadline of 2 s with the small model's answer."""
    with CannedServer(None) as first, CannedServer(None) as second:
        clouds = [PlainJson(server.url, name=name, timeout_s=LONG_S) for server, name in ((first, "a"), (second, "b"))]
        begun = time.monotonic()
        with Router(lambda _: UNSURE, clouds, threshold=0.8, deadline=2.0) as router:
            answer = router.infer(1)
        return yes(answer.source == "edge" and time.monotonic() - begun < LONG_S)


@cell("Both at once, and the first sure answer counts")
def hedged() -> str:
    """Return "yes" if the cloud answers though the small model hangs."""
    gate = threading.Event()
    try:
        with Router(FakeModel([SURE], gate=gate), lambda _: "cloud", threshold=0.8, options=Options(hedge_after=0)) as router:
            return yes(router.infer(1, deadline=LONG_S).source == "cloud")
    finally:
        gate.set()


@cell("An answer at once, and a final one later")
def refined() -> str:
    """Return "yes" if one call gives the small model's answer first, and then the final one."""
    with Router(lambda _: UNSURE, lambda _: "cloud", threshold=0.8) as router:
        seen = [(answer.source, answer.final) for answer in router.refine(1)]
    return yes(seen == [("edge", False), ("cloud", True)])


# --- what leaves the device


@cell("What is of a private class stays, and of an unknown one, too")
def classes() -> str:
    """Return "yes" if only a class that may leave goes to the cloud, and a private, an unknown and no class stay."""
    rules = Egress(never_leave=["medical"], may_leave=["product"])
    with Router(lambda _: UNSURE, lambda _: "cloud", threshold=0.8, egress=rules) as router:
        went = [router.infer(1, data_class=name).source for name in ("product", "medical", "holiday", None)]
    return yes(went == ["cloud", "edge", "edge", "edge"])


@cell("A conversation that had a private turn stays")
def conversation() -> str:
    """Return "yes" if a private conversation stays on the device though a later turn names no class, and another one leaves."""
    rules = Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")
    with Router(lambda _: ("Less sugar, more vegetables.", 0.1), lambda _: "cloud", threshold=0.6, egress=rules) as router:
        history = [{"role": "user", "content": "My test for diabetes was positive. What now?"}]
        said = router.infer(history, data_class="medical").value
        history += [{"role": "assistant", "content": said}, {"role": "user", "content": "Thanks. And drink?"}]
        elsewhere = [{"role": "user", "content": "Why is the sky blue?"}]
        return yes((router.infer(history).source, router.infer(elsewhere).source) == ("edge", "cloud"))


@cell("A mode in which no connection is opened")
def silent() -> str:
    """Return "yes" if the mode `only_edge` opens no connection, counted by the interpreter, and the usual mode opens one."""
    with CannedServer(GOOD) as server, Router(lambda _: UNSURE, PlainJson(server.url), threshold=0.8) as router:
        before = chat_faults.connects()[server.port]
        for _ in range(20):
            router.infer(1, mode="only_edge")
        alone = chat_faults.connects()[server.port] - before
        router.infer(1)
        return yes(not alone and chat_faults.connects()[server.port] > before)


@cell("A line on disk before each attempt to send")
def ledger() -> str:
    """Return "yes" if the ledger of what leaves has its line before the server has the request: the server looks."""
    with folder() as state:
        seen: list[int] = []

        def look(_: bytes) -> bytes:
            seen.append(len((state / "egress.jsonl").read_bytes().splitlines()))
            return GOOD

        with CannedServer(look) as server, Router(lambda _: UNSURE, PlainJson(server.url), threshold=0.8, state=state) as router:
            router.infer(1)
            router.infer(2)
        return yes(len(seen) > 1 and all(lines >= n for n, lines in enumerate(seen, 1)))


@cell("Removes personal data before it is sent")
def masked() -> str:
    """Return the cell of masks: "yes, ..." if the cloud gets no address and card, and the answer has them again."""
    sent: list[str] = []

    def cloud(text: str) -> tuple[str, float]:
        sent.append(text)
        return text, 0.9

    rules = Egress(may_leave=["note"], mask=["email", "card"])
    said = "write to ann@example.org of card 4111 1111 1111 1111"
    with Router(lambda _: UNSURE, cloud, threshold=0.8, egress=rules) as router:
        back = router.infer(said, data_class="note").value
    hidden = not any(data in sent[0] for data in ("ann@example.org", "4111"))
    return "yes, and puts it back into the answer" if hidden and back == said else "no"


@cell("What waits on disk is encrypted")
def encrypted() -> str:
    """Return "yes" if the words of a request that waits are not found in the outbox's files."""
    with folder() as state:
        away = FakeCloud([Unreachable("no route")])
        with Router(lambda _: UNSURE, away, threshold=0.8, offline="queue", state=state) as router:
            router.infer("a word that is nowhere else")
        with contextlib.closing(sqlite3.connect(state / "outbox.db")) as file:
            rows = "".join(map(str, file.iterdump()))
        words = b"a word that is nowhere else"
        return yes(not any(words in path.read_bytes() for path in state.glob("outbox.db*")) and words.hex() not in rows.lower())
