"""Views: what of an input each side takes, by a key or a function; where, how often, and what of it leaves, is kept and is told."""

from __future__ import annotations

import base64
import contextvars
import json
import re
import threading
from time import monotonic

import numpy as np
import pytest
import routes
from both import CALLS, DOWN, GOOD, LONG, Tasks, Threads, ask, collected, sure, unsure

from edgeroute import (
    AsyncRouter,
    Audit,
    BadInput,
    Cache,
    Egress,
    Options,
    Outbox,
    PlainJson,
    PolicyError,
    Router,
    Unreachable,
)
from edgeroute.confidence import calibrate
from edgeroute.router.request import Request
from edgeroute.stores.cache import Entry, digest
from edgeroute.stores.outbox import decode_input, encode_input
from edgeroute.stores.serialisation import join_parts, pack, unpack
from edgeroute.system.wall_clock import now
from edgeroute.testing import CannedServer, FakeCloud, http_reply

pytestmark = pytest.mark.pure

BOTH = [Threads, Tasks]
PHOTO = {"image": np.arange(4, dtype=np.uint8), "jpeg": b"\xff\xd8photo", "meta": {"lang": "de", "at": (1, 2.5)}}
KEYS = {"edge": "image", "cloud": "jpeg"}
BODY = {"b": "{input|base64}"}


class Model:
    """Remembers what it was given; unsure unless it is told otherwise."""

    def __init__(self, value="edge", confidence=0.1):
        self.given, self.answer = [], (value, confidence)
        self.__name__ = value

    def __call__(self, x):
        """Its answer."""
        self.given.append(x)
        return self.answer


class View:
    """Counts its calls, and the threads that they were in."""

    def __init__(self, function):
        self.function, self.threads = function, []

    def __call__(self, x):
        """What the function makes of it."""
        self.threads.append(threading.current_thread().name)
        return self.function(x)


def sent(request):
    return json.loads(request.partition(b"\r\n\r\n")[2])


# ---------------------------------------------------------------------------------------------------------- what each side takes


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["keys", "functions"])
@pytest.mark.parametrize("deadline", [None, LONG])
def test_each_side_takes_its_view(make, call, how, deadline):
    """Once each, in every kind of call; the input itself is neither's."""
    edge, cloud = View(lambda x: x["image"]), View(lambda x: x["jpeg"])
    model = Model()
    with CannedServer(GOOD) as server:
        views = KEYS if how == "keys" else {"edge": edge, "cloud": cloud}
        with make(model, PlainJson(server.url, body=BODY), threshold=0.5, views=views, deadline=deadline) as router:
            answer = ask(router, call, PHOTO)
    assert answer.source == "cloud"
    ((given,), (request,)) = model.given, server.requests
    assert given.tolist() == [0, 1, 2, 3]
    assert base64.b64decode(sent(request)["b"]) == PHOTO["jpeg"]
    if how == "functions":
        assert (len(edge.threads), len(cloud.threads)) == (1, 1)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
def test_what_the_edge_answers_costs_no_view_of_the_clouds(make, call):
    """It is computed when a leg needs it."""
    cloud = View(lambda x: x["jpeg"])
    with make(Model(confidence=0.9), FakeCloud([]), threshold=0.5, views={"edge": "image", "cloud": cloud}) as router:
        assert ask(router, call, PHOTO).source == "edge"
    assert cloud.threads == []


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", ["infer", "infer_many"])
def test_a_side_computes_its_view_once(make, call, tmp_path):
    """However many edges and clouds there are, and the outbox: all fail here."""
    edge, cloud = View(lambda x: x["image"]), View(lambda x: x["jpeg"])
    small, large = Model("small"), Model("large")
    box = Outbox(tmp_path / "outbox.db", spread_s=LONG)
    with (
        CannedServer(DOWN) as server,
        make(
            [small, large], [PlainJson(server.url, name=name, retries=1, body=BODY) for name in ("a", "b")], threshold=0.5,
            views={"edge": edge, "cloud": cloud}, offline="queue", outbox=box,
        ) as router,
    ):  # fmt: skip
        answer = ask(router, call, PHOTO)
        assert (answer.value, answer.final) == ("large", False)
        assert len(server.requests) >= 3
        assert (len(edge.threads), len(cloud.threads)) == (1, 1)
        assert [entry.state for entry in box.list()] == ["waiting"]
    assert [given.tolist() for given in small.given + large.given] == [[0, 1, 2, 3]] * 2


def test_a_target_may_have_a_view_of_its_own():
    """By its name, which goes before its side."""
    small, large, far = Model("small"), Model("large"), Model("far", 0.9)
    views = {"edge": "image", "large": "meta", "cloud": lambda x: x["jpeg"][:2]}
    with Router([small, large], far, threshold=0.5, options=Options(views=views)) as router:
        router.infer(PHOTO)
    assert (small.given[0].tolist(), large.given, far.given) == ([0, 1, 2, 3], [PHOTO["meta"]], [b"\xff\xd8"])


@pytest.mark.parametrize("make", [Router, AsyncRouter])
@pytest.mark.parametrize(
    ("views", "why"),
    [
        ({"egde": "image"}, 'no side or target here: did you mean "edge"'),
        ({"cloud": "jpeg"}, "no side or target here: expected one of edge"),
        ({1: "jpeg"}, "views has 1, which is no side"),
        ({"edge": ""}, "is a key of the input, such as 'jpeg', or a function of it, not str"),
        ({"edge": 3}, "or a function of it, not int"),
        ({"edge": None}, "or a function of it, not NoneType"),
        (["image"], "views= takes a mapping"),
    ],
)
def test_views_that_are_none(make, views, why):
    """They are refused when the router is made, with the nearest name."""
    with pytest.raises(PolicyError, match=why):
        make(unsure, threshold=0.5, options=Options(views=views))


def test_a_view_is_a_plain_function():
    """Nobody would await it."""

    async def later(x):
        return x

    def pieces(x):
        yield x

    class Later:
        async def __call__(self, x):
            return x

    for view in (later, pieces, Later()):
        with pytest.raises(PolicyError, match="a coroutine or generator function"):
            Router(unsure, threshold=0.5, options=Options(views={"edge": view}))


# ------------------------------------------------------------------------------------------------------------- a view that fails


def bad(x):
    raise BadInput("it shows nothing")


def broken(x):
    raise KeyError("oops")


def leaving(x):
    raise SystemExit("gone")


def lazy(x):
    return iter([x])


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize(
    ("view", "why"),
    [
        ("jpg", "cloud bad_input .*'jpg'.*did you mean \"jpeg\""),
        (bad, "cloud bad_input BadInput"),
        (broken, r"cloud view .*\(KeyError\)"),
        (leaving, r"cloud view .*\(NoException\)"),
        (lazy, r"cloud view .*\(it returned a list_iterator, which can be read only once\)"),
    ],
)
def test_a_cloud_view_that_fails_costs_no_edge_answer(make, call, view, why, deadline):
    """Nothing is sent; the endpoint is not at fault, and is asked the next time."""
    with CannedServer(GOOD) as server:
        views = {"edge": "image", "cloud": view}
        with make(Model(), PlainJson(server.url, body=BODY), threshold=0.5, views=views, deadline=deadline) as router:
            for _ in range(4):
                answer = ask(router, call, PHOTO)
                assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
                assert re.search(why, routes.failures(answer)), answer.reason
            assert router.engine.snapshot.clouds[0].guard.state == "closed"
    assert server.requests == []


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
def test_an_edge_view_that_fails(make, call):
    """An input that does not fit is the caller's error, and nothing is sent; any other failure is the edge's, and the cloud is asked."""
    with CannedServer(GOOD) as server:
        for view in ("imge", bad):
            with make(Model(), PlainJson(server.url, body=BODY), threshold=0.5, views={**KEYS, "edge": view}) as router:
                with pytest.raises(BadInput, match=r"did you mean|shows nothing"):
                    ask(router, call, PHOTO)
                assert server.requests == []
        for view in (broken, lazy):
            with make(Model(), PlainJson(server.url, body=BODY), threshold=0.5, views={**KEYS, "edge": view}) as router:
                answer = ask(router, call, PHOTO)
                assert answer.source == "cloud"
                assert "the view for edge failed (" in routes.error(answer, "edge")


def test_what_a_view_raises_is_logged(caplog):
    """With the traceback, and its code in the trace, as of any function of the application."""
    for side in ("edge", "cloud"):
        caplog.clear()
        with Router(Model(), FakeCloud([("cloud", 0.9)]), threshold=0.5, options=Options(views={side: broken})) as router:
            answers = [router.infer(PHOTO) for _ in range(2)]
        (record,) = caplog.records
        assert record.getMessage() == f"the view for {side} failed: KeyError (said once a minute at most)"
        assert "in broken" in caplog.text
        assert [event["code"] for event in answers[0].trace["events"] if event["what"] == "failed"] == ["view"]


class Unasked(LookupError):
    """An error without a truth value, as an array that is compared has none."""

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
def test_a_view_that_fails_costs_no_answer_whatever_its_error_is(make, call):
    """An error is an object, and its truth value code of the application."""

    def fails(_):
        raise Unasked

    with make(Model(), FakeCloud([]), threshold=0.5, views={"cloud": fails}) as router:
        answer = ask(router, call, PHOTO)
    assert (answer.value, answer.degraded, routes.code(answer)) == ("edge", True, "view")


@pytest.mark.parametrize("make", BOTH)
def test_without_an_answer_it_is_raised(make):
    """The caller's error as `BadInput`; an input that is no mapping, too."""
    for x, why in (
        (PHOTO, "has no 'jpg'"),
        (b"bytes", "the input is bytes, and cloud takes its 'jpg': give a mapping"),
        ({}, "it has no keys"),
    ):
        with make(None, FakeCloud([]), views={"cloud": "jpg"}) as router, pytest.raises(BadInput, match=why):
            router.infer(x)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("deadline", [None, LONG])
def test_a_row_whose_view_fails_fails_alone(make, deadline):
    """On either side; but an input that is invalid for the edge ends a batch, as without views."""

    def of(side):
        def view(x):
            if side in x:
                raise ValueError(x)
            return x["jpeg"]

        return view

    rows = [
        {"jpeg": b"0"},
        {"jpeg": b"1", "edge": 1},
        {"jpeg": b"2", "cloud": 1},
        {"jpeg": b"3", "edge": 1, "cloud": 1},
        {"jpeg": b"4"},
    ]
    edge = Model()
    views = {"edge": of("edge"), "cloud": of("cloud")}
    with CannedServer(GOOD) as server:
        with make(edge, PlainJson(server.url, body=BODY), threshold=0.5, views=views, deadline=deadline) as router:
            answers = [router.infer_many([row])[0].source for row in (rows[0], rows[1], rows[2])]
            assert answers == ["cloud", "cloud", "edge"]
            assert [answer.source for answer in router.infer_many([rows[i] for i in (0, 1, 2, 4)])] == [
                "cloud",
                "cloud",
                "edge",
                "cloud",
            ]
            assert [answer.source for answer in router.infer_many([rows[2], rows[2]])] == ["edge", "edge"]
        assert sorted(base64.b64decode(sent(request)["b"]) for request in server.requests[-3:]) == [b"0", b"1", b"4"]
        cloud = PlainJson(server.url, body=BODY)
        with (
            make(edge, cloud, threshold=0.5, views={"edge": "image"}, deadline=deadline) as router,
            pytest.raises(BadInput, match="has no 'image'"),
        ):
            router.infer_many([PHOTO, rows[0]])


# --------------------------------------------------------------------------------------------------------------- where and when


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
def test_a_slow_cloud_view_delays_no_answer(make, call, due):
    """At the deadline the edge's answer is given, while the view goes on; nothing is sent that was ready only afterwards."""
    began, go, done = threading.Event(), threading.Event(), threading.Event()

    def slow(x):
        began.set()
        go.wait(LONG)
        done.set()
        return x["jpeg"]

    with CannedServer(GOOD) as server:
        with make(Model(), PlainJson(server.url, body=BODY), threshold=0.5, views={"cloud": slow}) as router:
            try:
                answer = ask(router, call, PHOTO, deadline=due(began.is_set))
                assert (answer.value, done.is_set()) == ("edge", False)
                assert answer.reason_code == "deadline"
            finally:
                go.set()
            assert done.wait(LONG)
        assert server.requests == []


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
def test_a_function_is_not_called_for_a_call_that_is_over(make, call, due):
    """It could not be stopped as a request can be: once its view is ready, its answer is not needed any more."""
    began, go, called = threading.Event(), threading.Event(), []

    def slow(x):
        began.set()
        go.wait(LONG)
        return x["jpeg"]

    with make(Model(), called.append, threshold=0.5, views={"cloud": slow}) as router:
        backend = router.engine.snapshot.clouds[0]
        try:
            assert ask(router, call, PHOTO, deadline=due(began.is_set)).value == "edge"
            assert backend.abandoned == 1
        finally:
            go.set()
        end = monotonic() + LONG
        while backend.abandoned and monotonic() < end:
            threading.Event().wait(0.001)
        assert (backend.abandoned, called) == (0, [])


def test_a_slow_edge_view_is_the_edges_time():
    """With a race the cloud answers meanwhile."""
    go = threading.Event()
    with CannedServer(GOOD) as server:
        views = {"edge": lambda x: go.wait(LONG), "cloud": "jpeg"}
        with Router(sure, PlainJson(server.url, body=BODY), threshold=0.5, options=Options(hedge_after=0, views=views)) as router:
            try:
                assert router.infer(PHOTO).source == "cloud"
            finally:
                go.set()


def test_the_event_loop_is_not_held_up():
    """A function runs in a thread, with the caller's context; a key needs none."""
    name, seen = contextvars.ContextVar("name", default="none"), []

    def view(x):
        seen.append((threading.current_thread(), name.get()))
        return x["jpeg"]

    async def main(router, view):
        name.set(view)
        loop.append(threading.current_thread())
        return await router.infer(PHOTO), await router.infer_many([PHOTO])

    loop = []
    with (
        CannedServer(GOOD) as server,
        Tasks(sure, PlainJson(server.url, body=BODY), mode="prefer_cloud", views={"cloud": view}) as router,
    ):
        router.wait(main(router.router, "caller"))
    assert {context for _, context in seen} == {"caller"}
    assert loop[0] not in {thread for thread, _ in seen}


@pytest.mark.parametrize("call", CALLS)
def test_an_edge_that_is_awaited_has_its_view(call):
    """Computed in a thread if it is a function, and once; what fails in it is the edge's failure."""
    given, view = [], View(lambda x: x["image"])

    async def edge(x):
        given.append(x)
        return "edge", 0.9

    with CannedServer(GOOD) as server:
        cloud = PlainJson(server.url, body=BODY)
        for own in ("image", view):
            with Tasks(edge, cloud, threshold=0.5, views={"edge": own, "cloud": "jpeg"}) as router:
                assert ask(router, call, PHOTO).source == "edge"
                assert router.wait(router.router.decide(PHOTO)).sends_to == ()
        assert [x.tolist() for x in given] == [[0, 1, 2, 3]] * 4
        assert len(view.threads) == 2
        assert all(name.startswith("edgeroute-") for name in view.threads)
        with Tasks(edge, cloud, threshold=0.5, views={"edge": broken, "cloud": "jpeg"}) as router:
            assert ask(router, call, PHOTO).source == "cloud"
        with Tasks(edge, cloud, threshold=0.5, views={"edge": "imge"}) as router, pytest.raises(BadInput, match="did you mean"):
            ask(router, call, PHOTO)


@pytest.mark.parametrize("make", BOTH)
def test_a_leg_that_outlives_its_call_reads_copies(make, due):
    """The caller may write its next input into the same buffer, whichever view was computed before."""
    began, go = threading.Event(), threading.Event()
    frame, late = np.zeros(4, np.uint8), []

    def slow(x):
        began.set()
        go.wait(LONG)
        return x["image"][:2]

    def cloud(x):
        late.append(x.tolist())
        return "cloud", 0.9

    arrived = threading.Event()
    with make(Model(), cloud, threshold=0.5, views={"edge": "image", "cloud": slow}) as router:
        router.on_late(lambda answer: arrived.set())
        try:
            assert router.infer({"image": frame}, deadline=due(began.is_set)).value == "edge"
            frame[:] = 9
        finally:
            go.set()
        assert arrived.wait(LONG)
    assert late == [[0, 0]]


# ------------------------------------------------------------------------------------------------------- egress, audit, decide


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
def test_what_leaves_is_what_the_redaction_returned(make, call):
    """It gets the cloud's view, after consent; the other side's is never seen."""
    seen = []

    def redact(x, data_class):
        seen.append((x, data_class))
        return b"redacted"

    egress = Egress(may_leave=["photo"], consent=lambda where, data_class: True, redact=redact)
    with (
        CannedServer(GOOD) as server,
        make(Model(), PlainJson(server.url, body=BODY), threshold=0.5, views=KEYS, egress=egress) as router,
    ):
        assert ask(router, call, PHOTO, data_class="photo").source == "cloud"
    assert seen == [(PHOTO["jpeg"], "photo")]
    assert sent(server.requests[0]) == {"b": base64.b64encode(b"redacted").decode()}


def test_what_may_not_leave_has_no_view():
    """Nothing is computed for a leg that the rules leave out."""
    cloud, rules = View(lambda x: x), Egress(never_leave=["medical"], unknown_class="allow")
    with Router(Model(), FakeCloud([]), threshold=0.5, egress=rules, options=Options(views={"cloud": cloud})) as router:
        assert router.infer(PHOTO, data_class="medical").source == "edge"
        assert router.decide(PHOTO).sends_to
    assert cloud.threads == []


@pytest.mark.parametrize("make", BOTH)
def test_decide_runs_the_edge_with_its_view(make):
    """As `infer` would."""
    model = Model()
    with make(model, FakeCloud([]), threshold=0.5, views={"edge": "image"}) as router:
        made = router.decide(PHOTO) if make is Threads else router.wait(router.router.decide(PHOTO))
        assert len(made.sends_to) == 1
    assert model.given[0].tolist() == [0, 1, 2, 3]


def test_an_audit_sends_the_clouds_view():
    """Of the input as it was when it was answered."""
    frame = {"image": np.zeros(2, np.uint8), "jpeg": b"one"}
    with (
        CannedServer(http_reply(b'{"value": "edge", "confidence": 0.9}')) as server,
        Router(
            Model(confidence=0.9),
            PlainJson(server.url, body=BODY),
            threshold=0.5,
            audit=Audit(share=1),
            options=Options(views=KEYS),
        ) as router,
    ):
        assert router.infer(frame).source == "edge"
        frame["jpeg"] = b"two"
        server.wait_for(lambda: server.requests)
    assert base64.b64decode(sent(server.requests[0])["b"]) == b"one"


def test_examples_are_answered_through_the_views():
    """Calibration and evaluation run the same models on the same views, and a certificate is bound to them."""
    model = Model(confidence=0.7)
    with (
        CannedServer(GOOD) as server,
        Router(model, PlainJson(server.url, body=BODY), threshold=0.5, options=Options(views=KEYS)) as router,
    ):
        found = collected(router, [PHOTO] * 3)
        with pytest.raises(BadInput, match="input 0: the input has no 'image'"):
            collected(router, [{"jpeg": b""}])
    assert (found.edge, found.cloud) == (["edge"] * 3, ["cloud"] * 3)
    assert {given.tolist() == [0, 1, 2, 3] for given in model.given} == {True}


def test_a_certificate_is_bound_to_the_views():
    """Another view is another input: what was promised for one does not hold for the other."""
    cloud = PlainJson("http://127.0.0.1:9/x")

    def prints(views):
        with Router(sure, cloud, threshold=0.5, options=Options(views=views)) as router:
            return router.fingerprints()

    plain, keys, other = prints(None), prints(KEYS), prints({**KEYS, "cloud": lambda x: x["jpeg"]})
    assert {name for name in plain if plain[name] != keys[name]} == {"edge", "codec"}
    assert {name for name in keys if keys[name] != other[name]} == {"codec"}
    confidence, right = np.linspace(0, 1, 1000), np.arange(1000) > 300
    certificate = calibrate(confidence, right, max_error=0.05, fingerprints=keys)
    for views, holds in ((KEYS, True), ({"cloud": "jpeg"}, False), (None, False)):
        with Router(sure, cloud, threshold=certificate, options=Options(views=views)) as router:
            assert routes.judged(router.infer(PHOTO)).confidence == 0.9
            assert ("uncalibrated" not in router.engine.snapshot.targets[0].label) is holds


# ------------------------------------------------------------------------------------------------------------------------ cache


@pytest.mark.parametrize("make", BOTH)
def test_equal_inputs_share_an_answer(make, tmp_path):
    """In memory and on disk: mappings, nested, with arrays, bytes, numbers and text."""
    with CannedServer(GOOD) as server:
        for _ in range(2):
            cache = Cache(disk=tmp_path / "cache.db")
            with make(unsure, PlainJson(server.url, body=BODY), threshold=0.5, views=KEYS, cache=cache) as router:
                for call in CALLS:
                    assert ask(router, call, {**PHOTO, "image": PHOTO["image"].copy()}).value == "cloud"
                other = ask(router, "infer", {**PHOTO, "image": np.array([9], np.uint8)})
                assert other.value == "cloud"
    assert len(server.requests) == 2, "each was asked once, and the second router has them from the disk"


def test_views_are_part_of_the_key():
    """Another view, or none: no answer is shared. The same again: it is, also by another function with the same code."""
    cache = Cache()

    def of(key):
        def view(x):
            return x[key]

        return view

    tries = [None, {"cloud": "jpeg"}, {"cloud": "note"}, {"edge": "note"}, {"cloud": of("jpeg")}, {"cloud": of("note")}]
    x = {"jpeg": "a", "note": "b"}
    with CannedServer(GOOD) as server:
        cloud = PlainJson(server.url)
        for again in range(2):
            for i, views in enumerate([*tries[:4], {"cloud": of("jpeg")}, {"cloud": of("note")}]):
                with Router(unsure, cloud, threshold=0.5, cache=cache, options=Options(views=views)) as router:
                    router.infer(x)
                assert len(server.requests) == (len(tries) if again else i + 1)


@pytest.mark.parametrize(
    "answer",
    [
        {"label": "cat", "boxes": np.arange(4.0).reshape(1, 4), "crop": b"\xff\xd8"},
        b"\x00\xff", [np.float32(0.5), ("a", 1)], {"a": [{"b": (b"c", None, True)}]},
    ],
)  # fmt: skip
def test_such_answers_are_kept_on_disk(answer, tmp_path):
    """And come back as they were."""
    given = Entry(answer, 0.9, {"outputs": answer}, "cloud", "cloud", "why", now())
    for again in (False, True):
        cache = Cache(disk=tmp_path / "cache.db")
        if not again:
            cache.put(b"key", given)
        found = cache.fetch([b"key"])[b"key"] if again else given
        cache.close()
    assert alike([*found], [*given])


# ----------------------------------------------------------------------------------------------------------------------- outbox


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("encoded", [True, False], ids=["call", "input"])
def test_what_is_queued_is_what_would_have_been_sent(make, call, encoded, tmp_path):
    """The cloud's view after redaction, and nothing of the edge's; delivered as it is, without the functions."""
    got, calls = [], []

    def far(x):
        if not got:
            got.append("away")
            raise Unreachable("away")
        got.append(x)
        return "late", 0.9

    def view(x):
        calls.append(x)
        return {"jpeg": x["jpeg"], "lang": x["meta"]["lang"]}

    def redact(x, data_class):
        return {**x, "lang": "-"}

    replies = [DOWN, GOOD]
    with CannedServer(lambda _: replies.pop(0) if len(replies) > 1 else replies[0]) as server:
        cloud = PlainJson(server.url, retries=0, body={"b": "{input.jpeg|base64}", "l": "{input.lang}"}) if encoded else far
        box, late = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6), threading.Event()
        views = {"edge": "image", "cloud": view}
        with make(
            Model(), cloud, threshold=0.5, views=views, egress=Egress(redact=redact), offline="queue", outbox=box
        ) as router:
            router.on_late(lambda answer: late.set())
            answer = ask(router, call, PHOTO)
            assert routes.queued(answer) == routes.WAITING
            assert late.wait(LONG)
    assert len(calls) == 1
    wanted = {"jpeg": PHOTO["jpeg"], "lang": "-"}
    if encoded:
        assert [sent(request) for request in server.requests] == [{"b": base64.b64encode(PHOTO["jpeg"]).decode(), "l": "-"}] * 2
    else:
        assert got == ["away", wanted]


def test_a_view_that_fails_is_not_queued(tmp_path):
    """The reason says why; the caller's error does not even try."""
    box = Outbox(tmp_path / "outbox.db")
    for view, queued in ((broken, routes.NOT_STORED), ("jpg", "")):
        with Router(
            Model(),
            FakeCloud([]),
            threshold=0.5,
            offline="queue",
            outbox=Outbox(tmp_path / "o.db"),
            options=Options(views={"cloud": view}),
        ) as router:
            assert routes.queued(router.infer(PHOTO)) == queued
    assert box.size("waiting") == 0
    box.close()


NESTED = [
    {"image": np.arange(6, dtype=">i2").reshape(2, 3), "jpeg": b"\xff", "n": 1},
    {"a": [{"b": (np.float32(0.5), b"", None)}, ["l"], []], "": {}, "t": ()},
    [b"a", [b"b", "b"], np.zeros((0, 3))], (b"x",), {"s": np.array("text"), "g": np.datetime64("2020-01-01"), "nan": float("nan"), "b": b""},
    {"a\0b": np.ones(1)}, {"\ud800": np.ones(1)},
]  # fmt: skip


def alike(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return type(a) is type(b) and (a == b or np.isnan(a))


@pytest.mark.parametrize("x", NESTED)
def test_nested_inputs_come_back(x):
    """From the outbox and the trace, and have a key in the cache."""
    encoded = encode_input(x)
    assert alike(x, decode_input(*encoded))
    assert encode_input(x) == encoded, "the same bytes each time"
    assert digest(b"", x) == digest(b"", decode_input(*encoded))


@pytest.mark.parametrize(
    "x",
    [
        {"a": b"", "b": {1, 2}},
        {"a": b"", 1: 2},
        [b"", object()],
        {"a": b"", "b": np.array([object()])},
        {"a": b"", "b": bytearray(b"x")},
    ],
)
def test_what_would_not_come_back_is_refused(x):
    """Nothing is pickled, and nothing comes back as something else."""
    assert encode_input(x) is None


def test_damage_is_found():
    """Cut short, with more, with lengths beyond it, or of another kind: an error, and no memory for what is not there."""
    whole = pack({"a": [b"bytes", np.arange(3)], "b": b"x"})
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            unpack(whole[:cut])
    for other in (
        whole + join_parts([b"more"]), join_parts([b'["b"]']), join_parts([b"[]"]), join_parts([b'["q"]']), join_parts([b'[["l"]]']), join_parts([b'["a"]', b"no array"]),
        join_parts([b"[" * 100_000]), (1 << 62).to_bytes(8, "big") + b"x", join_parts([b'[{"a":1}]']),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            unpack(other)


# ----------------------------------------------------------------------------------------------------------------- policy files


POLICY = """threshold = 0.5
[edge]
path = "{model}"
{edge}
[cloud]
protocol = "json"
url = "{url}"
retries = 0
labels = ["cloud"]
body = {{ b = "{{input|base64}}" }}
{cloud}
"""


def test_a_policy_file_names_the_keys(tmp_path, fashion):
    """A reload changes them, and the model stays as it is; functions given in Python go before the file's keys."""
    file = tmp_path / "policy.toml"

    def write(edge, cloud):
        file.write_text(POLICY.format(model=fashion / "edge.int8.onnx", url=server.url, edge=edge, cloud=cloud))

    image = np.load(fashion / "sample.npz")["images"][0]
    with CannedServer(GOOD) as server:
        write('view = "image"', 'view = "jpeg"')
        with Router.from_policy(file) as router:
            x = {"image": image, "photo": image, "jpeg": b"one", "other": b"two"}
            router.infer(x, mode="only_edge")
            assert router.infer(x, mode="only_cloud").value == "cloud"
            model = router.engine.snapshot.backends[0].model
            write('view = "photo"', 'view = "other"')
            router.reload()
            assert router.engine.snapshot.backends[0].model is model
            router.infer(x, mode="only_edge")
            router.infer(x, mode="only_cloud")
            with pytest.raises(BadInput, match="which edge takes: expected one of image"):
                router.infer({"image": image, "jpeg": b""}, mode="only_edge")
            write("", "")
            router.reload()
            router.infer(image, mode="only_edge")
            router.infer(b"three", mode="only_cloud")
        write("", 'view = "jpeg"')
        with Router.from_policy(file, views={"cloud": lambda x: b"four"}) as router:
            router.infer(x, mode="only_cloud")
    assert [base64.b64decode(sent(request)["b"]) for request in server.requests] == [b"one", b"two", b"three", b"four"]


def test_a_reload_to_views_is_in_force_at_once(tmp_path, fashion):
    """Also for a router that had none, whose calls took the short way."""
    file, image = tmp_path / "policy.toml", np.load(fashion / "sample.npz")["images"][0]
    text = f'[edge]\npath = "{fashion / "edge.int8.onnx"}"\n'
    file.write_text(text)
    with Router.from_policy(file) as router:
        assert router.engine.plain
        plain = router.infer(image)
        file.write_text(text + 'view = "image"\n')
        router.reload()
        assert router.infer({"image": image}).value == plain.value
        with pytest.raises(BadInput, match="give a mapping"):
            router.infer(image)


def test_sections_have_views_each(tmp_path):
    """Of several targets each its own, by its place."""
    file = tmp_path / "policy.toml"
    with CannedServer(DOWN) as first, CannedServer(GOOD) as second:
        sections = [
            f'[[cloud]]\nprotocol = "json"\nurl = "{server.url}"\nretries = 0\nview = "{view}"\n'
            for server, view in ((first, "a"), (second, "b"))
        ]
        file.write_text("\n".join(sections))
        with Router.from_policy(file, mode="only_cloud") as router:
            assert router.infer({"a": "one", "b": "two"}).leg == "cloud-2"
        assert (sent(first.requests[0]), sent(second.requests[0])) == ({"input": "one"}, {"input": "two"})


def test_check_says_what_each_takes():
    """So it is known what may leave."""
    with Router(sure, FakeCloud([]), threshold=0.5, options=Options(views={"edge": "image", "cloud": lambda x: x})) as router:
        lines = router.check().lines
    assert {"edge: takes the input's 'image'", "cloud: takes what a function makes of the input"} <= set(lines)


# --------------------------------------------------------------------------------------------------------- nothing without views


def test_without_views_nothing_is_added():
    """An accepted call makes no object of views: not even the executor of its legs."""
    with Router(sure, FakeCloud([]), threshold=0.5) as router:
        assert router.engine.plain
        assert not router.engine.snapshot.views.given
        assert router.infer(1).value == "edge"
    assert "views" not in Request._fields
