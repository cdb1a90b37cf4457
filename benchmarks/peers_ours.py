"""edgeroute's column of docs/peers.md: each cell comes of doing what its row says, on loopback."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, get_args

import chat_faults
import numpy as np

import edgeroute
from edgeroute import (
    AsyncRouter,
    Audit,
    Cache,
    Egress,
    Function,
    InputScore,
    Limits,
    Outbox,
    Piece,
    PlainJson,
    Prefix,
    Reading,
    Router,
    Rule,
    Semantic,
    Unreachable,
    models,
)
from edgeroute.confidence import calibrate, msp, prompt_features
from edgeroute.core.policy import CloudOrder
from edgeroute.edge.runtimes import suffixes
from edgeroute.errors import PolicyError
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, Relay, chat_events, http_reply, sse_reply

LONG_S = 30.0
"""What never happens is waited for so long."""
Probe: TypeAlias = Callable[[], str]
"""-> the cell."""
CELLS: dict[str, Probe] = {}
"""Title of a row -> what fills it."""
SURE, UNSURE = ("edge", 0.9), ("edge", 0.4)
GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}')


def cell(title: str) -> Callable[[Probe], Probe]:
    """Registers what fills that row."""

    def enter(probe: Probe) -> Probe:
        CELLS[title] = probe
        return probe

    return enter


def yes(held: object) -> str:
    """Whether it was so, as the table has it."""
    return "yes" if held else "no"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Path(name)


# --- where it runs


@cell("The small model runs in the program's own process")
def in_process() -> str:
    """Its answer is the process that it ran in."""
    with Router(lambda _: (os.getpid(), 0.9), threshold=0.5) as router:
        return yes(router.infer(1).value == os.getpid())


@cell("Models of images, sound and tensors, not of text alone")
def other_models() -> str:
    """An int8 classifier of images."""
    fashion = models.fashion()
    with Router(fashion.edge, threshold=0.5) as router:
        return yes(router.infer(fashion.images[0]).value == "Ankle boot")


@cell("Files that the small model may be")
def formats() -> str:
    """Suffixes with a runtime of its own."""
    return ", ".join(f"`{suffix}`" for suffix in suffixes())


@cell("The large model is any HTTP API that answers JSON")
def any_api() -> str:
    """One with a body and a reply of its own."""
    with CannedServer(http_reply(b'{"result": [{"label": "dog"}]}')) as server:
        cloud = PlainJson(server.url, body={"content": "{input}"}, value="result.0.label", confidence=None)
        with Router(lambda _: UNSURE, cloud, threshold=0.8) as router:
            return yes(router.infer("x").value == "dog" and server.requests[0].endswith(b'{"content":"x"}'))


@cell("Libraries for Swift, Kotlin, JavaScript or Dart")
def languages() -> str:
    """Sources in another language than Python."""
    found = {path.suffix for path in Path(edgeroute.__file__).parent.rglob("*")}
    return yes(found & {".swift", ".kt", ".js", ".ts", ".dart"})


@cell("Serves the large model, in batches on GPUs")
def serves() -> str:
    """It writes the model as servers take it that do."""
    from edgeroute import export

    known = {"triton": "Triton", "ray": "Ray Serve", "kserve": "KServe"}
    there = [name for module, name in known.items() if (Path(export.__file__).parent / f"{module}.py").exists()]
    return f"no, exports it to {', '.join(there)}"


# --- how it decides


@cell("By the confidence of the small model's answer")
def by_confidence() -> str:
    """Above the threshold the small model's answer, below it the large one's."""
    with Router(lambda x: ("edge", x), lambda _: "cloud", threshold=0.8) as router:
        return yes((router.infer(0.9).source, router.infer(0.2).source) == ("edge", "cloud"))


@cell("By the prompt, before anything is generated")
def by_prompt() -> str:
    """A function of the prompt, or one that was fitted; the small model does not run."""
    short = InputScore(lambda found: 1 - found["words"] / 6, features=prompt_features, name="length")
    edge = FakeModel([("local", 1.0)])
    with Router(edge, lambda _: "cloud", threshold=0.5, score=short) as router:
        sources = router.infer("Hello").source, router.infer(" ".join(["word"] * 50)).source
    return "your function" if sources == ("edge", "cloud") and edge.runs == 1 else "no"


@cell("A threshold with a statistical guarantee")
def guarantee() -> str:
    """From the recorded outputs of two models on 5,000 images."""
    seen = np.load(models.fashion().validation)
    edge, cloud = (seen[f"{side}_logits"].argmax(1) == seen["labels"] for side in ("edge", "cloud"))
    made = calibrate(msp(seen["edge_logits"]), edge, cloud, max_loss=0.01, name="msp")
    return yes("95 % confidence" in made.guarantee and "1 percentage point" in made.guarantee)


@cell("A sample of accepted answers is compared with the large model's")
def audited() -> str:
    """In the background, of each answer here; the caller has the small model's."""
    cloud = FakeCloud(["cloud"])
    with Router(lambda _: SURE, cloud, threshold=0.5, audit=Audit(share=1)) as router:
        return yes(router.infer(1).source == "edge" and cloud.begun.wait(LONG_S))


@cell("A trial first: the large model answers, the small one runs beside it")
def shadow() -> str:
    """Shadow mode."""
    edge = FakeModel([SURE])
    with Router(edge, lambda _: "cloud", mode="shadow") as router:
        return yes(router.infer(1).source == "cloud" and edge.begun.wait(LONG_S))


@cell("By battery, heat, memory or load")
def by_device() -> str:
    """A rule on the charge."""
    rules, sensors = [Rule("battery", "only_edge", enter=0.2)], lambda: Reading(battery=0.15)
    with Router(lambda _: UNSURE, lambda _: "cloud", threshold=0.8, rules=rules, sensors=sensors) as router:
        answer = router.infer(1)
    return yes(answer.source == "edge" and "battery below 20%" in answer.reason)


@cell("Order of several large models")
def order() -> str:
    """What the policy may say; both are tried."""
    known = get_args(CloudOrder)
    for name in known:
        Router(lambda _: SURE, [lambda _: "a", lambda _: "b"], threshold=0.5, order=name).close()
    return ", ".join(known)


@cell("The reason is in the answer")
def reason() -> str:
    """Which confidence, which threshold, and what the large model did."""
    with Router(lambda _: UNSURE, FakeCloud([Unreachable("no route")]), threshold=0.8) as router:
        told = router.infer(1).reason
    return yes("0.40 < 0.80" in told and "no route" in told)


# --- when the large model fails: chats are in peers_theirs.py, the same for all


@cell("One limit over both models and all attempts")
def one_limit() -> str:
    """Two endpoints that never reply, each with half a minute: the small model's answer at the deadline, which is 2 s."""
    with CannedServer(None) as first, CannedServer(None) as second:
        clouds = [PlainJson(server.url, name=name, timeout_s=LONG_S) for server, name in ((first, "a"), (second, "b"))]
        begun = time.monotonic()
        with Router(lambda _: UNSURE, clouds, threshold=0.8, deadline=2.0) as router:
            answer = router.infer(1)
        return yes(answer.source == "edge" and time.monotonic() - begun < LONG_S)


@cell("Both at once, and the first sure answer counts")
def hedged() -> str:
    """The small model hangs."""
    gate = threading.Event()
    try:
        with Router(FakeModel([SURE], gate=gate), lambda _: "cloud", threshold=0.8, hedge_after=0) as router:
            return yes(router.infer(1, deadline=LONG_S).source == "cloud")
    finally:
        gate.set()


@cell("An answer at once, and a final one later")
def refined() -> str:
    """From one call."""
    with Router(lambda _: UNSURE, lambda _: "cloud", threshold=0.8) as router:
        seen = [(answer.source, answer.final) for answer in router.refine(1)]
    return yes(seen == [("edge", False), ("cloud", True)])


# --- what leaves the device


@cell("What is of a private class stays, and of an unknown one, too")
def classes() -> str:
    """And a class that may leave, leaves."""
    rules = Egress(never_leave=["medical"], may_leave=["product"])
    with Router(lambda _: UNSURE, lambda _: "cloud", threshold=0.8, egress=rules) as router:
        went = [router.infer(1, data_class=name).source for name in ("product", "medical", "holiday", None)]
    return yes(went == ["cloud", "edge", "edge", "edge"])


@cell("A conversation that had a private turn stays")
def conversation() -> str:
    """Later turns name another class; what is asked elsewhere leaves."""
    rules = Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")
    with Router(lambda _: ("Less sugar, more vegetables.", 0.1), lambda _: "cloud", threshold=0.6, egress=rules) as router:
        history = [{"role": "user", "content": "My test for diabetes was positive. What now?"}]
        said = router.infer(history, data_class="medical").value
        history += [{"role": "assistant", "content": said}, {"role": "user", "content": "Thanks. And drink?"}]
        elsewhere = [{"role": "user", "content": "Why is the sky blue?"}]
        return yes((router.infer(history).source, router.infer(elsewhere).source) == ("edge", "cloud"))


@cell("A mode in which no connection is opened")
def silent() -> str:
    """Counted by the interpreter, of this program; the other mode opens one."""
    with CannedServer(GOOD) as server, Router(lambda _: UNSURE, PlainJson(server.url), threshold=0.8) as router:
        before = chat_faults.connects()[server.port]
        for _ in range(20):
            router.infer(1, mode="only_edge")
        alone = chat_faults.connects()[server.port] - before
        router.infer(1)
        return yes(not alone and chat_faults.connects()[server.port] > before)


@cell("A line on disk before each attempt to send")
def ledger() -> str:
    """The server looks, as the request comes."""
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
def redacted() -> str:
    """By a function of the program."""
    rules = Egress(may_leave=["note"], redact=lambda x, _: x.replace("1234", "####"))
    with Router(lambda _: UNSURE, lambda x: (x, 0.9), threshold=0.8, egress=rules) as router:
        return "your function" if router.infer("card 1234", data_class="note").value == "card ####" else "no"


@cell("What waits on disk is encrypted")
def encrypted() -> str:
    """The words of a request that waits are looked for in its file."""
    with folder() as state:
        away = FakeCloud([Unreachable("no route")])
        with Router(lambda _: UNSURE, away, threshold=0.8, offline="queue", state=state) as router:
            router.infer("a word that is nowhere else")
        with contextlib.closing(sqlite3.connect(state / "outbox.db")) as file:
            rows = "".join(map(str, file.iterdump()))
        words = b"a word that is nowhere else"
        return yes(not any(words in path.read_bytes() for path in state.glob("outbox.db*")) and words.hex() not in rows.lower())


# --- offline


@cell("Requests wait on disk, and are sent after a restart")
def waits() -> str:
    """The first router ends with the link down; a second one, on the same folder, delivers."""
    return late()[0]


@cell("The late answer reaches the program, and once")
def once() -> str:
    """Then nothing waits any more, and a third router on that folder is told nothing."""
    return late()[1]


@cache
def late() -> tuple[str, str]:
    """Both of the above: one outage."""
    told: list[str] = []
    came = threading.Event()

    def note(answer: Any, _: Any) -> None:
        told.append(answer.id)
        came.set()

    with folder() as state, CannedServer(GOOD) as server, Relay("127.0.0.1", server.port) as link:

        def router() -> Router[Any]:
            box = Outbox(state / "outbox.db", spread_s=0)
            cloud = PlainJson(f"http://127.0.0.1:{port}", retries=0)
            return Router(lambda _: UNSURE, cloud, threshold=0.8, offline="queue", outbox=box, state=state)

        port, link.refuse = link.port, True
        with router() as first:
            answer = first.infer("x")
        queued = answer.source == "edge" and not answer.final and not server.requests
        link.refuse = False
        with router() as second:
            second.on_late(note)
            came.wait(LONG_S)
        with router() as third:
            third.on_late(note)
        left = Outbox(state / "outbox.db").size()
        keys = [
            line for request in server.requests for line in request.splitlines() if line.lower().startswith(b"idempotency-key")
        ]
    sent = queued and any(answer.id.encode() in key for key in keys)
    return yes(sent), yes(sent and told == [answer.id] and not left)


@cell("Old answers while offline, without a server for them")
def stale() -> str:
    """From a cache in the program's own process."""
    cloud = FakeCloud([("cloud", 0.9), Unreachable("no route")])
    with Router(lambda _: UNSURE, cloud, threshold=0.8, cache=Cache(ttl_s=0), offline="stale") as router:
        return yes([router.infer(x).source for x in (1, 1, 2)] == ["cloud", "stale", "edge"])


@cell("Models come from signed lists, and are rolled back")
def updated() -> str:
    """Two versions from a folder; a list that was changed is refused."""
    from edgeroute.catalog import Catalog
    from edgeroute.catalog.publish import keygen, publish
    from edgeroute.errors import CatalogError

    fashion = models.fashion()
    with folder() as home:
        keygen(home / "keys")
        for version in ("1.0", "1.1"):
            publish(home / "catalog", "shoes", version, [fashion.edge], keys=home / "keys")
        with Catalog(home / "store", home / "catalog", root=home / "catalog" / "root.json") as catalog:
            for version in ("1.0", "1.1"):
                catalog.pull("shoes", version)
                catalog.activate("shoes", version)
            back = catalog.rollback("shoes")
        for listed in (home / "catalog" / "metadata").glob("*timestamp.json"):
            listed.write_bytes(listed.read_bytes().replace(b'"version":2', b'"version":3'))
        try:
            with Catalog(home / "other", home / "catalog", root=home / "catalog" / "root.json") as changed:
                changed.pull("shoes")
        except CatalogError:
            return yes("1.0" in str(back))
    return "no"


# --- text and streams


@cell("A stream is decided by its first tokens")
def first_tokens() -> str:
    """The local model's, once two of its tokens are there; it is never whole here."""
    gate, shown = threading.Event(), ""

    def speak(_: Any) -> Iterator[Piece]:
        yield from (Piece("It", [-0.1]), Piece(" scatters", [-0.1]))
        gate.wait(LONG_S)
        yield Piece(" more.", [-9.0])

    with Router(speak, lambda _: "cloud", threshold=0.5, score=Prefix(2, of="mean")) as router, router.stream("Why?") as stream:
        for piece in stream:
            shown += str(piece)
            if shown == "It scatters":
                early = stream.leg
                gate.set()
    return yes(early == "edge" and shown == "It scatters more.")


@contextlib.contextmanager
def gateway(cloud: Any = None, **more: Any) -> Iterator[Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]]:
    """`edgeroute gateway` in a thread -> posts JSON to a path: status and JSON."""
    import uvicorn

    from edgeroute.gateway.app import app
    from edgeroute.serve.host import Connection

    router = AsyncRouter(lambda _: ("a local answer", 0.9), cloud, threshold=0.5, **more)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app(router), http=Connection, log_config=None, ws="none", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()

        def post(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], LONG_S)) as connection:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                reply = connection.getresponse()
                return reply.status, json.loads(reply.read() or b"{}")

        try:
            yield post
        finally:
            server.should_exit = True
            thread.join()


CHAT = {"model": "edgeroute", "messages": [{"role": "user", "content": "hello"}]}


@cell("Any OpenAI client, by one environment variable")
def openai_api() -> str:
    """The API that `OPENAI_BASE_URL` then names."""
    with gateway() as post:
        status, reply = post("/v1/chat/completions", CHAT)
    return yes(status == 200 and reply["choices"][0]["message"]["content"] == "a local answer")


@cell("Embeddings, images, speech and responses, by the same API")
def other_apis() -> str:
    """Their paths of that API."""
    with gateway() as post:
        found = [post(f"/v1/{path}", CHAT)[0] for path in ("embeddings", "images/generations", "audio/speech", "responses")]
    return yes(any(status != http.HTTPStatus.NOT_FOUND for status in found))


@cell("Tools and formats of a reply")
def tools() -> str:
    """What a client says of them comes to the large model, and its call of a tool back; nothing runs it."""
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    events = chat_events([""], finish="tool_calls")
    events[1]["choices"][0]["delta"] = {"tool_calls": [call]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    with CannedServer(sse_reply(events)) as server:
        cloud = edgeroute.OpenAIChat(f"{server.url}/v1", model="m")
        with gateway(cloud, mode="only_cloud") as post:
            _, reply = post("/v1/chat/completions", {**CHAT, "tools": [tool]})
        asked = [request for request in server.requests if request.startswith(b"POST")]
    back = reply["choices"][0]["message"].get("tool_calls")
    return "passed on" if len(asked) == 1 and b'"weather"' in asked[0] and back else "no"


@cell("Hosted models that it has an adapter for")
def providers() -> str:
    """What a policy may name as the protocol of a language model."""
    with folder() as home:
        for protocol in ("openai", "anthropic", "gemini", "bedrock"):
            policy = home / "policy.toml"
            policy.write_text(f'threshold=0.5\n[cloud]\nprotocol="{protocol}"\nurl="http://127.0.0.1:9/v1"\nmodel="m"\n')
            try:
                Router.from_policy(policy).close()
            except PolicyError:
                return "OpenAI's API" if protocol == "anthropic" else "none"
    return "several"


@cell("Cache by meaning")
def semantic() -> str:
    """Two texts with one vector, by an embedding that the program gives; in memory, without a server."""
    cloud = FakeCloud([("cloud", 0.9)])
    cached = Cache(semantic=Semantic(lambda text: [1.0, float(len(text) > 99)]))
    with Router(lambda _: UNSURE, cloud, threshold=0.8, cache=cached) as router:
        went = [router.infer(text).source for text in ("How are you?", "How do you do?")]
    return "in memory" if went == ["cloud", "cache"] else "no"


@cell("Frames of a camera: the newest wins, and is refined later")
def frames() -> str:
    """Of five that look alike the cloud is asked about one."""
    still = [np.full((120, 160, 3), 90, np.uint8) for _ in range(5)]
    cloud = FakeCloud([("mug", 0.9)])
    with Router(lambda _: ("cup", 0.4), cloud, threshold=0.5) as router, router.frames(still, drop="never") as seen:
        values = [update.shown.value for update in seen]
    return yes(values[0] == "cup" and values[-1] == "mug" and cloud.runs == 1)


# --- in operation


@cell("Limits of money, bytes, energy and calls")
def limits() -> str:
    """A dollar a day, at 40 cents a call; and a limit of each kind is one."""
    paid = Function(lambda _: "cloud", usd_per_call=0.4)
    with Router(lambda _: UNSURE, paid, threshold=0.8, limits=Limits(usd_per_day=1)) as router:
        degraded = [router.infer(1).degraded for _ in range(3)]
    Limits(usd_per_day=1, mb_per_day=1, joules_per_hour=1, calls_per_minute=1)
    return yes(degraded == [False, False, True])


@cell("Keys, and budgets by user")
def users() -> str:
    """What the gateway may be told."""
    from edgeroute.gateway.app import app

    return yes({"users", "keys", "budgets"} & {*inspect.signature(app).parameters})


@cell("A policy file, reloaded while calls run")
def reloaded() -> str:
    """Another threshold, in the same router."""
    with folder() as home:
        policy = home / "policy.toml"
        text = f'threshold=0.5\n[edge]\npath="{models.fashion().edge.as_posix()}"\n'
        policy.write_text(text)
        image = models.fashion().images[0]
        with Router.from_policy(policy) as router:
            before = router.infer(image).reason
            policy.write_text(text.replace("0.5", "0.75"))
            router.reload()
            return yes("0.50" in before and "0.75" in router.infer(image).reason)


@cell("Prometheus and OpenTelemetry")
def watched() -> str:
    """Counts for the one, a span for the other."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instruments = [edgeroute.Prometheus(), edgeroute.OpenTelemetry(tracer_provider=provider)]
    with Router(lambda _: SURE, threshold=0.5, instruments=instruments) as router:
        router.infer(1)
        page = edgeroute.metrics(router)[0]
    return yes(b"edgeroute_requests_total" in page and spans.get_finished_spans())


@cell("A recorded trace under another policy")
def replayed() -> str:
    """Ten requests that the small model answered, under a threshold that none reaches."""
    from edgeroute.replay import replay

    fashion = models.fashion()
    with folder() as home, CannedServer(None) as server:
        with Router(fashion.edge, PlainJson(server.url), threshold=0.0, trace=home / "trace.jsonl") as router:
            for image in fashion.images[:10]:
                router.infer(image)
        policy = home / "policy.toml"
        policy.write_text(
            f'threshold=1.0\n[edge]\npath="{fashion.edge.as_posix()}"\n[cloud]\nprotocol="json"\nurl="{server.url}"\n'
        )
        found = replay(home / "trace.jsonl", policy, network="4g")
        return yes(found.recorded.deferral_rate == 0 and found.replayed.deferral_rate > 0 and not server.requests)


@cell("A hosted console for many devices")
def console() -> str:
    """There is none: `edgeroute dashboard` is a page of the device's own."""
    return "no"


@cell("Version")
def version() -> str:
    """Of the package."""
    return edgeroute.__version__
