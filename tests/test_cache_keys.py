"""What the cache gives again, and to whom: keys with all that decides an answer, thresholds in force, answers of one's own."""

import contextlib
import functools
import json
import threading
import tracemalloc

import numpy as np
import pytest
from both import GOOD, LONG, GatedServer, header, sure, unsure

from edgeroute import Cache, CallableModel, Egress, Function, OpenInference, Options, PlainJson, Secret, Semantic
from edgeroute.router.cache_key_prefixes import MOST
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, http_reply

pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]


@pytest.fixture
def make(kind):
    """Makes routers of either kind, with a cache, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(edge, cloud, **policy):
            return stack.enter_context(kind(edge, cloud, **{"threshold": 0.5, "cache": Cache(), **policy}))

        yield make


# -------------------------------------------------------------------------------------------------------------- the key


def reply(request):
    """All that a caller may tell apart: the tenant, the key, the input."""
    _, _, body = request.partition(b"\r\n\r\n")
    who = [header(request, name) for name in ("X-Tenant", "Authorization")]
    return http_reply(json.dumps({"value": [who, "value", json.loads(body or b"null")], "other": "other", "sure": 0.9}).encode())


def lower(x, _):
    return x.lower()


def upper(x, _):
    return x.upper()


ENDPOINTS = {
    "as it is": {},
    "another path of the value": {"value": "other"},
    "another path of the confidence": {"confidence": "sure"},
    "a tenant": {"headers": {"X-Tenant": "a"}},
    "another tenant": {"headers": {"x-tenant": "b"}},
    "a key": {"api_key": "key-of-tenant-a"},
    "another key": {"api_key": "key-of-tenant-b"},
    "an encoding": {"encode": lambda x: {"prompt": f"is it {x}?"}},
    "another encoding": {"encode": lambda x: {"prompt": f"is it not {x}?"}},
    "a redaction": {"redact": lower},
    "another redaction": {"redact": upper},
    "another score": {"score": "margin"},
}


def test_the_key_has_all_that_the_answer_of_an_endpoint_depends_on(kind):
    """Each setting has its own answer, and finds it again."""
    cache, found = Cache(), []
    with CannedServer(reply) as server:
        for _ in range(2):
            for options in ENDPOINTS.values():
                more = dict(options)
                rules, score = Egress(redact=more.pop("redact", None)), more.pop("score", "msp")
                with kind(unsure, PlainJson(server.url, **more), threshold=0.5, cache=cache, egress=rules, score=score) as router:
                    answer = router.infer("X")
                    found.append((answer.source, answer.value, answer.confidence))
    first, again = found[: len(ENDPOINTS)], found[len(ENDPOINTS) :]
    assert [source for source, *_ in first] == ["cloud"] * len(ENDPOINTS)
    assert again == [("cache", *rest) for _, *rest in first]


def test_the_key_has_the_protocol_and_the_output(kind):
    """An address may speak both, and a model may have two outputs."""
    outputs = [{"name": name, "datatype": "FP32", "shape": [1, 2], "data": data} for name, data in (("a", [0, 1]), ("b", [1, 0]))]
    model = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": outputs, "value": "plain"}
    cache, x = Cache(), np.ones(2, np.float32)
    with CannedServer(http_reply(json.dumps(model).encode())) as server:
        url = f"{server.url.rstrip('/')}/v2/models/m"
        clouds = [
            PlainJson(url),
            OpenInference(url, binary=False, output="a"),
            OpenInference(url, binary=False, output="b"),
            OpenInference(url, binary=False, output="b", labels=["no", "yes"]),
        ]
        found = []
        for cloud in clouds:
            with kind(unsure, cloud, threshold=0.5, cache=cache) as router:
                found.append((router.infer(x).value, router.infer(x).source))
    assert found == [("plain", "cache"), (1, "cache"), (0, "cache"), ("no", "cache")]


class Louder(PlainJson):
    """Decodes as it pleases."""

    def decode(self, reply, count):
        """With a mark."""
        return [(f"{value}!", sure) for value, sure in super().decode(reply, count)]


class Named(Louder):
    """And says how."""

    def identity(self, of):
        """With a mark."""
        return [*super().identity(of), "louder"]


def test_an_endpoint_of_another_class_has_answers_of_its_own(kind):
    """A subclass may decode otherwise: without an `identity` in its own class an endpoint shares with no other."""
    cache = Cache()
    with CannedServer(GOOD) as server:
        clouds = [PlainJson(server.url), Louder(server.url), Louder(server.url), Named(server.url), Named(server.url)]
        found = []
        for cloud in clouds:
            with kind(unsure, cloud, threshold=0.5, cache=cache) as router:
                found.append([(a.value, a.source) for a in (router.infer(1), router.infer(1))])
    own = [[("cloud!", "cloud"), ("cloud!", "cache")]]
    assert found == [[("cloud", "cloud"), ("cloud", "cache")], *own, *own, *own, [("cloud!", "cache"), ("cloud!", "cache")]]


def test_a_key_that_is_read_from_the_environment(make, monkeypatch):
    """It is another one's from the moment on at which the variable changes."""
    cloud = {"api_key": Secret(env="EDGEROUTE_TEST_KEY")}
    with CannedServer(reply) as server:
        monkeypatch.setenv("EDGEROUTE_TEST_KEY", "key-of-tenant-a")
        router = make(unsure, PlainJson(server.url, **cloud))
        assert [router.infer(1).source for _ in range(2)] == ["cloud", "cache"]
        monkeypatch.setenv("EDGEROUTE_TEST_KEY", "key-of-tenant-b")
        assert [router.infer(1).source for _ in range(2)] == ["cloud", "cache"]
        monkeypatch.delenv("EDGEROUTE_TEST_KEY")
        assert router.infer(1).degraded
        monkeypatch.setenv("EDGEROUTE_TEST_KEY", "key-of-tenant-a")
        assert router.infer(1).value[0] == [None, "Bearer key-of-tenant-a"]


def test_no_secret_is_in_a_key(make):
    """Nor half of one: in the prefix there are hashes."""
    with CannedServer(reply) as server:
        router = make(unsure, PlainJson(server.url, api_key="very-secret-key", headers={"X-Tenant": "very-secret-tenant"}))
        snapshot = router.engine.snapshot
        prefix = snapshot.prefixes.of(router.engine.request(1, None, None, None).plan)
    assert server.url.encode().rstrip(b"/") in prefix
    assert b"secret" not in prefix


def test_the_key_has_the_client_certificate(kind, tmp_path):
    """It says who asks, as a header may."""
    prefixes = []
    for text in "aba":
        (tmp_path / "cert.pem").write_text(text)
        cloud = PlainJson("http://127.0.0.1:9/x", cert=(tmp_path / "cert.pem", tmp_path / "key.pem"))
        with kind(unsure, cloud, threshold=0.5, cache=Cache()) as router:
            prefixes.append(router.engine.snapshot.prefixes.of(router.engine.request(1, None, None, None).plan))
    assert prefixes[0] == prefixes[2] != prefixes[1]


def test_what_stays_for_once_has_a_key_of_its_own(kind):
    """A conversation that has to stay comes first: what is asked after it has the cloud in its key all the same."""
    prefixes = []
    said = [{"role": "user", "content": "A question that is long enough"}]
    for port in (8, 9):
        egress = Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")
        with kind(unsure, PlainJson(f"http://127.0.0.1:{port}/x"), threshold=0.5, cache=Cache(), egress=egress) as router:
            engine = router.engine
            engine.request(said, None, None, "medical")
            home = engine.request(said, None, None, None)
            assert home.plan.stays
            prefixes += [
                engine.snapshot.prefixes.of(home.plan),
                engine.snapshot.prefixes.of(engine.request(1, None, None, None).plan),
            ]
    assert prefixes[0] == prefixes[2]
    assert len({*prefixes}) == 3


def logits(_):
    return np.array([0.0, 9.0], np.float32)


def test_the_key_has_the_labels(kind):
    """Of the edge's function, and of a cloud's, which has the edge's."""
    cache, found = Cache(), []
    for mode in ("prefer_edge", "only_cloud"):
        for labels in (None, ("no", "yes"), ("non", "oui")):
            edge = CallableModel(logits, labels=labels)
            with kind(edge, Function(logits), threshold=0.5, cache=cache, mode=mode) as router:
                found.append((router.infer(1).value, router.infer(1).source))
    assert found == [(1, "cache"), ("yes", "cache"), ("oui", "cache")] * 2


def test_a_reload_finds_what_was_stored(kind, tmp_path):
    """Where a target stays as it is, also if only this process can tell it from another."""
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"threshold": 0.5, "cache": {}, "edge": {"path": "e.onnx"}, "limits": {"calls_per_minute": 9}}))
    edge = functools.partial(sure)
    with kind.from_policy(file, edge=edge, cloud=unsure) as router:
        router.infer(1)
        file.write_text(
            json.dumps({"threshold": 0.6, "cache": {}, "edge": {"path": "e.onnx"}, "limits": {"calls_per_minute": 8}})
        )
        router.reload()
        assert router.infer(1).source == "cache"


# ------------------------------------------------------------------------------------------------- thresholds in force


def stricter(router, threshold):
    """As an alarm leaves it."""
    engine = router.engine
    targets = tuple(t._replace(threshold=threshold) if t.side == "edge" else t for t in engine.snapshot.targets)
    engine.snapshot = engine.snapshot._replace(targets=targets, plans={})


@pytest.mark.parametrize("threshold", [0.95, float("inf")])
def test_what_was_accepted_under_a_lower_threshold(make, threshold):
    """It is not given any more; the cloud's answer is, also under the next one."""
    cloud = FakeCloud([("cloud", 0.1)])
    router = make(sure, cloud)
    assert [router.infer(1).source for _ in range(2)] == ["edge", "cache"]
    stricter(router, threshold)
    assert [router.infer(1).leg for _ in range(2)] == ["cloud", "cloud"]
    stricter(router, 0.05)
    answer = router.infer(1)
    assert (answer.source, answer.leg, cloud.runs) == ("cache", "cloud", 1)


def test_what_is_sure_enough_still(kind):
    """It is found after a restart with another threshold, and not where its own class asks for more."""
    cache, sources = Cache(), []
    for threshold, own in ((0.5, {}), (0.9, {}), (0.3, {}), (0.3, {"edge": 0.95}), (0.3, {"other": 0.95})):
        with kind(sure, unsure, threshold=threshold, cache=cache) as router:
            engine = router.engine
            targets = tuple(t._replace(thresholds=own) if t.side == "edge" else t for t in engine.snapshot.targets)
            engine.snapshot = engine.snapshot._replace(targets=targets, plans={})
            sources.append(router.infer(1).source)
    assert sources == ["edge", "cache", "cache", "cloud", "cache"]


def test_answers_without_a_confidence(kind):
    """Those that were accepted as such are not where they have to be deferred."""
    cache, sources = Cache(), []
    for rule in ("accept", "defer", "accept"):
        with kind(lambda _: ("edge", None), sure, threshold=0.5, cache=cache, options=Options(no_confidence=rule)) as router:
            sources.append(router.infer(1).leg)
    assert sources == ["edge", "cloud", "cloud"]


def test_no_old_answer_stands_in_that_would_not_be_accepted(make):
    """Offline, too: the edge's own is returned, and is degraded."""
    router = make(sure, FakeCloud([OSError("away")]), offline="stale", cache=Cache(ttl_s=0))
    assert router.infer(1).source == "edge"
    assert router.infer(1).source == "edge"
    stricter(router, 0.95)
    answer = router.infer(1)
    assert (answer.source, answer.degraded) == ("edge", True)


def test_a_text_like_it(make):
    """Nor one to a similar text."""
    semantic = Semantic(lambda text: [1.0, float(len(text))], threshold=0.5)
    router = make(sure, FakeCloud([("cloud", 0.9)]), cache=Cache(semantic=semantic))
    router.infer("aaaa")
    assert router.infer("aaaaa").source == "cache"
    stricter(router, 0.95)
    assert router.infer("aaaaaa").source == "cloud"


def test_a_follower_under_a_higher_threshold(make):
    """It does not take the answer of an equal request that began before."""
    gate, running = threading.Event(), threading.Event()

    def edge(_):
        running.set()
        assert gate.wait(LONG)
        return "edge", 0.9

    router = make(edge, FakeCloud([("cloud", 0.9)]), deadline=LONG)
    first = router.start(1)
    assert running.wait(LONG)
    stricter(router, 0.95)
    second = router.start(1)
    while not router.engine.caching.flights.followed:
        assert not second.done()
    gate.set()
    assert (first.result(LONG).source, second.result(LONG).source) == ("edge", "cloud")


# ------------------------------------------------------------------------------------------------- answers of one's own


def spoil(answer):
    """Writes wherever it can be written to."""
    if isinstance(answer.value, list):
        answer.value.append("spoilt")
    for array in answer.outputs.values() if isinstance(answer.outputs, dict) else []:
        with contextlib.suppress(ValueError):
            array[:] = 7
    if isinstance(answer.outputs, dict):
        answer.outputs.clear()


VALUES = {
    "a list": (lambda _: (["dog"], 0.9), lambda answer: answer.value == ["dog"]),
    "outputs by name": (
        lambda _: {"a": np.array([0.0, 9.0], np.float32), "b": np.zeros(2, np.float32)},
        lambda answer: answer.outputs["a"].tolist() == [0.0, 9.0],
    ),
}


class ByName(CallableModel):
    """A model with outputs by name, as ONNX models have."""

    def run(self, inputs, cancel=None):
        """Name -> rows."""
        rows = [self.function(x) for x in inputs]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("name", VALUES)
def test_an_answer_is_its_callers_own(make, name):
    """What one writes to it, no other sees: neither the next one nor the cache."""
    function, unspoilt = VALUES[name]
    router = make(function if name == "a list" else ByName(function), None)
    for _ in range(4):
        answer = router.infer(1)
        assert unspoilt(answer)
        spoil(answer)
    for row in router.infer_many([2, 2, 2]):
        assert unspoilt(row)
        spoil(row)
    assert unspoilt(router.infer(2))


def test_the_answer_of_an_equal_request_is_ones_own(make):
    """Of the leader and its followers none sees what another writes."""
    with GatedServer(http_reply(b'{"value": ["dog"], "confidence": 0.9}')) as server:
        router = make(unsure, PlainJson(server.url), deadline=LONG)
        asked = [router.start(1)]
        server.wait_for(lambda: server.requests)
        joined, join = threading.Semaphore(0), router.engine.caching.flights.join
        router.engine.caching.flights.join = lambda key, **how: (join(key, **how), joined.release())[0]
        asked += [router.start(1) for _ in range(2)]
        assert all(joined.acquire(timeout=LONG) for _ in range(2))
        server.open()
        answers = [one.result(LONG) for one in asked]
        for answer in answers:
            assert answer.value == ["dog"]
            answer.value.append("spoilt")
        assert router.infer(1).value == ["dog"]
    assert [answer.source for answer in answers] == ["cloud", "cache", "cache"]
    assert answers[0].id in answers[1].reason
    assert len(server.requests) == 1


class Whole:
    """A value that cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("there is one of it")


def test_an_answer_that_cannot_be_copied_is_not_shared(make):
    """Whoever waited for it asks as well."""
    edge = FakeModel(lambda _: (Whole(), 0.9))
    router = make(edge, None)
    one, two = router.infer_many([1, 1])
    assert one.value is not two.value
    assert (one.source, two.source) == ("edge", "edge")


# --------------------------------------------------------------------------------------------------------------- memory


def test_a_data_class_of_its_own_for_each_call_costs_no_memory(kind):
    """However many there are, and however long their names."""
    rules = Egress(unknown_class="allow")
    with kind(sure, None, threshold=0.5, cache=Cache(max_bytes=1 << 16), egress=rules) as router:
        engine, n = router.engine, iter(range(1 << 30))

        def call(name="{}"):
            request = engine.request(1, None, None, name.format(next(n)))
            request.snapshot.prefixes.of(request.plan)

        for _ in range(2 * MOST):
            call()
        assert len(engine.snapshot.prefixes) <= MOST
        assert len(engine.snapshot.plans) <= MOST
        tracemalloc.start()
        try:
            for _ in range(3 * MOST):
                call()
            for _ in range(20):
                call("x" * 1_000_000 + "{}")
            assert tracemalloc.get_traced_memory()[0] < 4 << 20
        finally:
            tracemalloc.stop()


def test_a_class_of_before_is_found_again(make):
    """After more others than are kept."""
    router = make(sure, None)
    assert router.infer(1, data_class="a").source == "edge"
    for i in range(MOST + 1):
        request = router.engine.request(1, None, None, f"class {i}")
        request.snapshot.prefixes.of(request.plan)
    assert router.infer(1, data_class="a").source == "cache"
