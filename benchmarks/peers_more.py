"""The rest of edgeroute's column of docs/peers.md: offline, text and streams, in operation."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from peers_ours import CELLS, GOOD, LONG_S, SURE, UNSURE, cell, folder, looked_up, yes

import edgeroute
from edgeroute import (
    AsyncRouter,
    Cache,
    Function,
    Limits,
    Options,
    Outbox,
    Piece,
    PlainJson,
    Prefix,
    Router,
    Semantic,
    Unreachable,
    models,
)
from edgeroute.errors import PolicyError
from edgeroute.testing import CannedServer, FakeCloud, Relay, chat_events, sse_reply

# --- offline

__all__ = ["CELLS"]
"""All of the column, once this is imported."""


@cell("Requests wait on disk, and are sent after a restart")
def waits() -> str:
    """Return "yes" if a request queued in an outage is sent later, by a second router on the same folder."""
    return late()[0]


@cell("The late answer reaches the program, and once")
def once() -> str:
    """Return "yes" if later routers on that folder are told of a late answer once, and then nothing waits any more."""
    return late()[1]


@cache
def late() -> tuple[str, str]:
    """Return two cells: "yes" if a request queued in an outage is sent later with its id, and if `on_late` gets it and a second one."""
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
        link.refuse = True
        with router() as third:
            more = third.infer("y")
        link.refuse = False
        came.clear()
        with router() as fourth:
            fourth.on_late(note)
            came.wait(LONG_S)  # of the later one: its outbox has been looked through
        left = Outbox(state / "outbox.db").size()
        keys = [
            line for request in server.requests for line in request.splitlines() if line.lower().startswith(b"idempotency-key")
        ]
    sent = queued and any(answer.id.encode() in key for key in keys)
    return yes(sent), yes(sent and told == [answer.id, more.id] and not left)


@cell("Old answers while offline, without a server for them")
def stale() -> str:
    """Return "yes" if a cache in the program's own process answers while the cloud is away."""
    cloud = FakeCloud([("cloud", 0.9), Unreachable("no route")])
    with Router(lambda _: UNSURE, cloud, threshold=0.8, cache=Cache(ttl_s=0), offline="stale") as router:
        return yes([router.infer(x).source for x in (1, 1, 2)] == ["cloud", "stale", "edge"])


@cell("Models come from signed lists, and are rolled back")
def updated() -> str:
    """Return "yes" if a catalog installs two versions and rolls back, and refuses a list of versions that was changed."""
    from edgeroute.catalog import Catalog
    from edgeroute.errors import CatalogError
    from edgeroute.tools.catalog_keys_and_publishing import keygen, publish

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
    """Return "yes" if the local model's first two tokens are shown before its answer is whole."""
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
    """Run a gateway in a thread, and provide a function that posts JSON to a path and returns status and JSON."""
    import uvicorn

    from edgeroute.tools.server.gateway import app
    from edgeroute.tools.server.uvicorn_with_client_limits import Connection

    router = AsyncRouter(lambda _: ("a local answer", 0.9), cloud, threshold=0.5, **more)
    vectors = AsyncRouter(lambda x: ([[1.0] for _ in x["input"]], None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app(router, embeddings=vectors), http=Connection, log_config=None, ws="none", timeout_graceful_shutdown=5
        )
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
    """Return "yes" if the APIs that `OPENAI_BASE_URL` then names answer: chats and responses."""
    with gateway() as post:
        status, reply = post("/v1/chat/completions", CHAT)
        there, response = post("/v1/responses", {"model": "edgeroute", "input": "hello"})
    texts = reply["choices"][0]["message"]["content"], response["output"][0]["content"][0]["text"]
    return yes(status == there == http.HTTPStatus.OK and texts == ("a local answer",) * 2)


@cell("Embeddings, images, speech and responses, by the same API")
def other_apis() -> str:
    """Return the paths of that API that are there."""
    with gateway() as post:
        paths = ("embeddings", "images/generations", "audio/speech", "responses")
        there = [path for path in paths if post(f"/v1/{path}", CHAT)[0] != http.HTTPStatus.NOT_FOUND]
    return ", ".join(there) or "no"


@cell("Tools and formats of a reply")
def tools() -> str:
    """Return "passed on" if a client's tools come to the large model, and its call of a tool back; nothing runs it."""
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
    """Return what a policy may name as the protocol of a language model, by which of four names it refuses."""
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
    """Return "in memory" if a text with the vector of an earlier one, by the program's own embedding, is answered by the cache."""
    cloud = FakeCloud([("cloud", 0.9)])
    cached = Cache(semantic=Semantic(lambda text: [1.0, float(len(text) > 99)]))
    with Router(lambda _: UNSURE, cloud, threshold=0.8, cache=cached) as router:
        went = [router.infer(text).source for text in ("How are you?", "How do you do?")]
    return "in memory" if went == ["cloud", "cache"] else "no"


@cell("Frames of a camera: the newest wins, and is refined later")
def frames() -> str:
    """Return "yes" if of five frames that look alike the cloud is asked about one."""
    still = [np.full((120, 160, 3), 90, np.uint8) for _ in range(5)]
    cloud = FakeCloud([("mug", 0.9)])
    with Router(lambda _: ("cup", 0.4), cloud, threshold=0.5) as router, router.frames(still, drop="never", stale=None) as seen:
        values = [update.shown.value for update in seen]
    return yes(values[0] == "cup" and values[-1] == "mug" and cloud.runs == 1)


# --- in operation


@cell("Limits of money, bytes, energy and calls")
def limits() -> str:
    """Return "yes" if each of four limits, of dollars, calls, bytes and energy, is reached by the third call and holds it back."""
    held = []
    with CannedServer(GOOD) as server:
        paid = Function(lambda _: "cloud", usd_per_call=0.4)
        heavy = PlainJson(server.url, joules_per_mb=100)
        for cloud, limit in (
            (paid, Limits(usd_per_day=1)),
            (paid, Limits(calls_per_minute=2)),
            (heavy, Limits(mb_per_day=1)),
            (heavy, Limits(joules_per_hour=100)),
        ):
            with Router(lambda _: UNSURE, cloud, threshold=0.8, limits=limit) as router:
                held.append([router.infer("x" * 400_000).degraded for _ in range(3)] == [False, False, True])
    return yes(all(held))


@looked_up("Keys, and budgets by user")
def users() -> str:
    """Return "yes" if the gateway knows users, keys or budgets, by the parameters of its application."""
    from edgeroute.tools.server.gateway import app

    return yes({"users", "keys", "budgets"} & {*inspect.signature(app).parameters})


@cell("A policy file, reloaded while calls run")
def reloaded() -> str:
    """Return "yes" if a reload of a changed policy file gives the same router another threshold."""
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
    """Return "yes" if a request is counted for Prometheus, and has a span for OpenTelemetry."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instruments = [edgeroute.Prometheus(), edgeroute.OpenTelemetry(tracer_provider=provider)]
    with Router(lambda _: SURE, threshold=0.5, options=Options(instruments=instruments)) as router:
        router.infer(1)
        page = edgeroute.metrics(router)[0]
    return yes(b"edgeroute_requests_total" in page and spans.get_finished_spans())


@cell("A recorded trace under another policy")
def replayed() -> str:
    """Return "yes" if ten recorded requests of the edge, replayed with a higher threshold, are deferred, and nothing is sent."""
    from edgeroute.tools.replay import replay

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


@looked_up("A hosted console for many devices")
def console() -> str:
    """Return "no": `edgeroute dashboard` is a page of the device's own."""
    return "no"


@looked_up("Version")
def version() -> str:
    """Return the version of the package."""
    return edgeroute.__version__
