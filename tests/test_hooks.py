"""Functions of the application that raise: an answer of the edge is never lost to one, and Ctrl-C gets through each."""

import asyncio
import logging
import sys
import threading

import numpy as np
import pytest
import routes
from both import CALLS, GOOD, LONG, Panic, Tasks, ask, flat, makes, sure, unsure
from draws import slow

from edgeroute import (
    Audit,
    BadInput,
    Cache,
    Egress,
    Instrument,
    NoAnswer,
    Options,
    Outbox,
    PlainJson,
    RequestLog,
    Router,
    Rule,
    Semantic,
    StopToken,
)
from edgeroute.testing import CannedServer, FakeCloud

ERRORS = pytest.mark.parametrize("error", [RuntimeError, SystemExit, *slow(GeneratorExit)], ids=lambda e: e.__name__)


make = makes(threshold=0.5)


def raising(error):
    """A function of any arguments that raises it, and the event that it was called."""
    called = threading.Event()

    def hook(*_):
        called.set()
        raise error("the hook's own")

    return hook, called


class Broken(Instrument):
    """Each of its methods raises."""

    def __init__(self, hook):
        self.request_ended = self.attempt_ended = self.breaker_changed = self.limit_hit = self.outbox_changed = hook


def policies(hook, server, tmp_path):
    """Hook -> (edge, cloud, options) of a router that calls it in each request, and has an answer of the edge alone."""
    away = FakeCloud([OSError("away")] * 100)
    return {
        "metered": (unsure, away, {"metered": hook, "hedge_after": 0.001, "deadline": LONG}),
        "consent": (unsure, away, {"egress": Egress(consent=hook)}),
        "redact": (unsure, away, {"egress": Egress(redact=hook)}),
        "sensors": (sure, None, {"rules": [Rule("battery", "only_edge", 0.2)], "sensors": hook}),
        "score": (lambda x: np.array([0.1, 0.9]), away, {"score": hook}),
        "score of answers": (unsure, away, {"score": hook}),
        "trace": (unsure, away, {"trace": hook}),
        "instrument": (unsure, away, {"instruments": [Broken(hook)]}),
        "embed": (unsure, away, {"cache": Cache(semantic=Semantic(hook))}),
        "encode": (unsure, PlainJson(server, encode=hook, retries=0), {}),
        "encode of the outbox": (
            unsure, PlainJson(server, encode=hook, retries=0), {"offline": "queue", "outbox": Outbox(tmp_path / "outbox.db")},
        ),
    }  # fmt: skip


HOOKS = list(policies(None, "http://127.0.0.1:1", __import__("pathlib").Path()))


@ERRORS
@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", HOOKS)
def test_no_answer_is_lost_to_a_function_of_the_application(make, tmp_path, name, call, deadline, error):
    """Whatever it raises, in whichever thread it is called; the second request as the first."""
    hook, called = raising(error)
    with CannedServer(GOOD) as server:
        edge, cloud, options = policies(hook, server.url, tmp_path)[name]
        router = make(edge, cloud, **{"deadline": deadline, **options})
        for _ in range(2):
            value = ask(router, call, "x").value
            assert value == (1 if name == "score" else "edge")
        assert called.is_set()


class Unspeakable(Panic):
    """Which exits when it is formatted."""

    def __str__(self):
        raise SystemExit(3)


PANICS = pytest.mark.parametrize(
    "error", [Panic, Unspeakable, *slow(GeneratorExit), asyncio.CancelledError], ids=lambda e: e.__name__
)


class Attempts(Instrument):
    """The errors of the attempts."""

    def __init__(self):
        self.errors = []

    def attempt_ended(self, ended):
        """Notes it."""
        self.errors.append(type(ended.error))


@PANICS
@pytest.mark.parametrize("mode", ["prefer_edge", "prefer_cloud"])
@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("call", CALLS)
def test_a_function_as_the_cloud_that_panics(make, call, deadline, mode, error):
    """It has failed as with any other exception, for the breaker too."""
    hook, _ = raising(error)
    attempts = Attempts()
    answer = ask(make(unsure, hook, deadline=deadline, mode=mode, instruments=[attempts]), call, "x")
    assert answer.value == "edge"
    assert answer.degraded or mode == "prefer_cloud"
    assert attempts.errors == [error]
    assert routes.failure(answer)
    assert answer.reason[:80] in repr(answer)
    assert answer.trace["events"]


@PANICS
@pytest.mark.parametrize("call", CALLS)
def test_a_coroutine_as_the_cloud_that_panics(call, error):
    """Its own `CancelledError` is a failure, too; before Python 3.11 the breaker does not hear of it."""

    async def cloud(_):
        raise error("a leg's own")

    attempts = Attempts()
    with Tasks(unsure, cloud, threshold=0.5, deadline=LONG, instruments=[attempts]) as router:
        answer = ask(router, call, "x")
        assert (answer.value, answer.degraded) == ("edge", True)
        if sys.version_info >= (3, 11) or error is not asyncio.CancelledError:
            assert attempts.errors == [error]


@PANICS
@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_panics(make, call, deadline, error):
    """The cloud is asked, by a router that knows the model as quick, too; without one there is no answer, but an `Exception`."""

    def edge(x):
        if x == "bad":
            raise error("a leg's own")
        return "edge", 0.9

    router = make(edge, lambda _: ("cloud", 0.9), deadline=deadline)
    assert ask(router, call, "bad").value == "cloud"
    for _ in range(100):
        ask(router, call, "good")
    assert ask(router, call, "bad").value == "cloud"
    with pytest.raises(NoAnswer) as raised:
        ask(make(edge, None, deadline=deadline), call, "bad")
    assert isinstance(raised.value.__cause__, error)


@PANICS
def test_a_check_of_a_model_that_panics(error):
    """It says so."""

    class Model:
        name, labels, kind = "model", None, "answers"
        load, _ = raising(error)

        def run(self, inputs, cancel=None):
            return [("edge", 0.9)] * len(inputs)

    with Router(Model(), None) as router:
        assert not router.check().ok


class Full(logging.Handler):
    """A handler of the application that fails, as at a full disk."""

    def emit(self, record):
        """Never emits."""
        raise OSError("no space left")


@pytest.mark.parametrize("call", ["infer", "stream"])
@pytest.mark.parametrize("fails", ["handler", "filter of a handler", "filter of the log", "requests"])
def test_no_answer_is_lost_to_the_application_s_log(make, capsys, fails, call):
    """Its handlers and filters raise at whatever is logged on the way of a request, which is said on stderr."""
    said = raising(RuntimeError)[0]
    log = logging.getLogger("edgeroute.requests" if fails == "requests" else "edgeroute")
    handler = Full() if fails in {"handler", "requests"} else logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    if fails != "handler":
        (handler if fails == "filter of a handler" else log).addFilter(said)
    try:
        policy = {"metered": said, "hedge_after": 0.001, "deadline": LONG, "instruments": [RequestLog()]}
        answer = ask(make(unsure, FakeCloud([OSError("away")] * 100), **policy), call, "x")
    finally:
        log.removeHandler(handler)
        log.removeFilter(said)
        log.setLevel(level)
    assert answer.source == "edge"
    assert "--- Logging error ---" in capsys.readouterr().err


def test_ctrl_c_in_a_stream_that_has_no_thread(monkeypatch):
    """The leg runs in the caller's thread, where it passes."""
    monkeypatch.setattr("edgeroute.system.thread_pool_and_workers.ThreadPool.submit", lambda *_: False)
    hook, _ = raising(KeyboardInterrupt)
    with Router(hook, None) as router, pytest.raises(KeyboardInterrupt):
        ask(router, "stream", "x")
    assert not router.engine.snapshot.backends[0].stopping


@ERRORS
def test_a_comparison_of_an_audit_that_raises(make, error, caplog):
    """In the caller's thread, where the cloud was asked anyway."""
    hook, called = raising(error)
    router = make(unsure, lambda x: ("cloud", 0.9), audit=Audit(share=1.0, agrees=hook))
    assert router.infer("x").value == "cloud"
    assert called.is_set()
    assert "an audit failed" in caplog.text


@ERRORS
def test_a_model_whose_stop_function_raises(make, error):
    """It is called where the answer of another is there already."""
    hook, called = raising(error)
    begun, gate = threading.Event(), threading.Event()

    class Model:
        name, labels, kind = "model", None, "answers"

        def run(self, inputs, cancel=None):
            cancel.on_ask(hook)
            begun.set()
            gate.wait(LONG)
            return [("edge", 0.9)] * len(inputs)

    def cloud(_):
        begun.wait(LONG)
        return "cloud", 0.9

    router = make(Model(), cloud, mode="prefer_cloud", deadline=LONG)
    assert router.infer("x").value == "cloud"
    assert called.is_set()
    gate.set()


def test_a_stop_function_that_comes_too_late_may_raise():
    """The stop was requested before; and Ctrl-C is not held back."""
    token = StopToken()
    token()
    token.on_ask(raising(SystemExit)[0])
    with pytest.raises(KeyboardInterrupt):
        token.on_ask(raising(KeyboardInterrupt)[0])


@pytest.mark.parametrize("name", [name for name in HOOKS if name not in {"sensors", "metered", "encode of the outbox"}])
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_gets_through_each_of_them(tmp_path, name, call):
    """In the caller's thread, where it is raised; there is no deadline, so no leg has a thread of its own."""
    hook, called = raising(KeyboardInterrupt)
    with CannedServer(GOOD) as server:
        edge, cloud, options = policies(hook, server.url, tmp_path)[name]
        with Router(edge, cloud, **flat(**{"threshold": 0.5, **options})) as router:
            if call in {"refine", "stream"} and name not in {"trace", "instrument", "embed"}:
                assert ask(router, call, "x").source == "edge", "their legs have threads, in which there is no Ctrl-C"
            else:
                with pytest.raises(KeyboardInterrupt):
                    ask(router, call, "x")
        assert called.is_set()


def test_ctrl_c_gets_through_metered_and_sensors():
    """They are read here as the facts are, and as a router is made."""
    hook, _ = raising(KeyboardInterrupt)
    away = FakeCloud([OSError("away")] * 9)
    with (
        Router(unsure, away, threshold=0.5, options=Options(hedge_after=60.0, metered=hook)) as router,
        pytest.raises(KeyboardInterrupt),
    ):
        router.infer("x")
    with pytest.raises(KeyboardInterrupt):
        Router(sure, None, options=Options(sensors=hook, rules=[Rule("battery", "only_edge", 0.2)]))


@pytest.mark.parametrize("given", ["high", [0.5, 0.5], object(), 1j])
def test_a_score_that_is_no_number_is_none(make, given):
    """The answer counts as one without a confidence; the cloud is asked, and what the edge said is not lost."""
    router = make(sure, FakeCloud([OSError("away"), ("cloud", 0.9)]), score=lambda _: given)
    assert (router.infer("x").value, router.infer("x").value) == ("edge", "cloud")


def test_a_score_that_fails_is_said_once(make, caplog):
    """Not with every request."""
    router = make(unsure, lambda x: ("cloud", 0.9), score=raising(ValueError)[0])
    for _ in range(3):
        assert router.infer("x").value == "cloud"
    assert caplog.text.count("the score failed") == 2, "once for each target"


def words():
    """A generator."""
    yield "a"


async def later():
    """An asynchronous one."""
    yield "a"


@pytest.mark.parametrize("call", CALLS)
def test_what_contains_itself_is_an_input(make, call):
    """A mapping that refers to itself, or to what refers to it, can be read again."""
    x = {"a": (1, {})}
    x["self"] = x["a"][1]["up"] = x
    router = make(lambda x: ("edge", 0.9), None)
    assert ask(router, call, x).value == "edge"


@pytest.mark.parametrize(
    "x", [words, lambda: iter([1]), later, lambda: map(str, []), lambda: {"a": words()}, lambda: (1, words())]
)
@pytest.mark.parametrize("call", [*CALLS, "decide"])
def test_an_iterator_is_no_input(make, call, x):
    """The edge would use it up, and the cloud would get nothing: neither is asked."""
    asked = []
    router = make(lambda x: asked.append(x) or ("edge", 0.1), lambda x: asked.append(x) or "cloud")
    for x_ in (x(), x()):
        with pytest.raises(BadInput, match="can be read only once: give list"):
            router.wait(router.router.decide(x_)) if call == "decide" and isinstance(router, Tasks) else (
                router.decide(x_) if call == "decide" else ask(router, call, x_)
            )
    assert asked == []


@pytest.mark.parametrize("batch", [lambda: iter(["x"]), lambda: (x for x in "x"), lambda: map(str, "x")])
def test_an_iterator_is_no_batch(make, batch):
    """It says what to give."""
    router = make(sure, None)
    with pytest.raises(BadInput, match=r"give list\(batch\)"):
        router.infer_many(batch())


def test_an_open_file_is_no_input(make, tmp_path):
    """Its content is."""
    (tmp_path / "x").write_text("text")
    router = make(lambda x: (x, 0.9), None)
    with (tmp_path / "x").open() as file:
        with pytest.raises(BadInput, match="a file's content"):
            router.infer(file)
        assert router.infer(file.read()).value == "text"
    assert router.infer(range(3)).value == range(3), "a range can be read again"
