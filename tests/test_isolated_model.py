"""LlamaModel in a process of its own: real children that are killed, hang, take too much memory, or write to stderr."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic

import commands
import httpx
import psutil
import pytest
import routes
from both import LONG, wait_for
from draws import slow

pytest.importorskip("xllamacpp")
tiny_gguf = pytest.importorskip("tiny_gguf")

from edgeroute import AsyncRouter, BadInput, LlamaModel, ModelError, PolicyError, Router, StopToken  # noqa: E402
from edgeroute.edge import llama  # noqa: E402
from edgeroute.errors import Busy  # noqa: E402
from edgeroute.testing import edge_contract  # noqa: E402

HI = [{"role": "user", "content": "hi"}]
ENDLESS = {"messages": HI, "max_tokens": 1_000_000, "ignore_eos": True}
FORM = {"type": "json_schema", "json_schema": {"schema": {"enum": [f"v{i}" for i in range(40_000)]}}}
"""A format with which llama.cpp takes a minute for a token."""
HUGE = {"messages": HI, "max_tokens": 4, "dry_multiplier": 1.0, "dry_penalty_last_n": 2**31 - 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model's file, of a context in which an answer takes long."""
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=4096)


def children(process=None):
    """The processes of models that this process, or another, has started."""
    found = (process or psutil.Process()).children(recursive=True)
    return [child for child in found if any("llama_isolated_engine" in word for word in child.cmdline())]


@pytest.fixture
def isolated(tiny):
    """Makes isolated models, which are closed at the end; no process is left."""
    made = []

    def make(**options):
        made.append(LlamaModel(tiny, isolate=True, **{"max_tokens": 4, **options}))
        return made[-1]

    yield make
    for model in made:
        model.close()
    assert children() == []


def started(model, x, stop=None):
    """Begins to stream an answer -> the rest of its pieces."""
    stream = model.stream(x, stop)
    next(stream)
    return stream


def killed():
    """Kills the only child."""
    (child,) = children()
    child.kill()


def test_it_keeps_the_contract(tiny):
    edge_contract(
        LlamaModel(tiny, isolate=True, max_tokens=4, slots=2), ["hello there", HI], bad=["", None, b"x", {"prompt": None}]
    )


def test_answers_are_those_of_a_model_in_the_process(isolated, tiny):
    """Texts, log-probabilities, errors, tools and streams."""
    alone, inside = isolated(), LlamaModel(tiny, max_tokens=4)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    for x in ("hi", HI, {"messages": HI, "tools": tools}, {"messages": HI, "grammar": 'root ::= "yes"'}):
        (a,), (b,) = alone.run_one(x), inside.run_one(x, StopToken())
        assert a.value == b.value
        assert a.confidence == pytest.approx(b.confidence)
    assert list(alone.stream("hi")) == list(inside.stream("hi"))
    assert alone.settings == inside.settings
    for wrong in (
        {"messages": HI, "grammar": "root ::= ("},
        {"messages": HI, "temperature": "hot"},
        {"messages": HI, "seed": 10**400},
    ):
        with pytest.raises(BadInput):
            alone.run_one(wrong)
    with pytest.raises(ModelError, match="its context 4096"):
        alone.run_one("word " * 5000)
    assert alone.run_one("hi")[0].value == inside.run_one("hi")[0].value
    inside.close()


def test_a_child_that_is_killed_within_an_answer(isolated):
    """The stream breaks off, the cloud answers, and the next call has a new child."""
    model = isolated()
    truth = model.run_one("hi")[0].value
    stream = started(model, ENDLESS)
    killed()
    with pytest.raises(ModelError, match=r"its process ended \(-9\)"):
        list(stream)
    assert model.run_one("hi")[0].value == truth
    with Router(model, lambda x: "cloud", threshold=0.0) as router:
        for more in ({"deadline": LONG}, {}):
            answers = []
            thread = threading.Thread(target=lambda more=more, answers=answers: answers.append(router.infer(ENDLESS, **more)))
            thread.start()
            working()
            killed()
            thread.join(LONG)
            assert answers[0].value == "cloud"
        assert router.infer("hi").value == truth


def working():
    """Waits until the only child computes."""
    until = monotonic() + LONG
    while not children():
        assert monotonic() < until
    (child,) = children()
    computing(child)


def computing(child):
    """Waits until a process has used its processor for a while."""
    until, before = monotonic() + LONG, child.cpu_times().user
    while child.cpu_times().user < before + 0.2:
        assert monotonic() < until
        os.sched_yield()


def hang():
    """Suspends the only child -> that child, which now does nothing, however fast its processor is."""
    (child,) = children()
    child.suspend()
    wait_for(lambda: child.status() == psutil.STATUS_STOPPED)  # a thread of it may still run for a moment
    return child


def test_a_child_that_is_killed_between_answers(isolated):
    """The engine has ended, and says so to whoever still uses it, at once; the model loads another one."""
    model = isolated(stall_s=3600.0)
    engine = model.load()
    truth = model.run_one("hi")[0].value
    assert not engine.ended
    killed()
    until = monotonic() + LONG
    while not engine.ended:
        assert monotonic() < until
        os.sched_yield()
    with pytest.raises(ModelError, match=r"its process ended \(-9\)"):
        engine.stream({"messages": HI}, True, print, StopToken())
    assert model.load() is not engine
    assert model.run_one("hi")[0].value == truth


PANICS = """
class PanicException(BaseException):
    "As pyo3 raises it."
class CommonParams:
    def __getattr__(self, name):
        setattr(self, name, CommonParams())
        return getattr(self, name)
class Server:
    def __init__(self, params):
        if LOADING:
            raise PanicException("called `Option::unwrap()` on a `None` value")
    def handle_completions(self, request, hear=None):
        pass
    def handle_chat_completions(self, request, hear):
        raise PanicException(f"no token for {request}")
"""


@pytest.mark.parametrize("loading", [True, False])
def test_a_panic_in_the_child(isolated, tmp_path, monkeypatch, loading):
    """Which is no Exception: it is the model's error at once, not after the time for a token, and quotes no request."""
    (tmp_path / "xllamacpp.py").write_text(f"LOADING = {loading}\n{PANICS}")
    monkeypatch.syspath_prepend(tmp_path)
    model = isolated(stall_s=3600.0, runtime="xllamacpp")
    answers = []

    def ask():
        try:
            model.run_one([{"role": "user", "content": "a secret"}])
        except ModelError as e:
            answers.append(str(e))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LONG)
    assert len(answers) == 1
    assert answers[0].endswith("on a `None` value" if loading else "failed: PanicException"), answers


def test_asyncio(isolated):
    """Answers, streams, and a child that is killed within an answer."""
    model = isolated()

    async def run():
        async with AsyncRouter(model, lambda x: "cloud", threshold=0.0) as router:
            first = await router.infer("hi")
            async with router.stream("hi") as stream:
                pieces = [piece async for piece in stream]
            call = asyncio.create_task(router.infer(ENDLESS))
            await asyncio.to_thread(working)
            await asyncio.to_thread(killed)
            return first.value, "".join(pieces), (await call).value, (await router.infer("hi")).value

    truth, streamed, fallback, after = asyncio.run(run())
    assert truth == streamed == after
    assert fallback == "cloud"


@pytest.mark.slow
def test_an_end_too_often(isolated, monkeypatch):
    """It is not started again for a while."""
    monkeypatch.setattr(llama, "ENDS_S", 3600.0)
    model = isolated()
    for _ in range(llama.MOST_ENDS):
        stream = started(model, ENDLESS)
        killed()
        with pytest.raises(ModelError, match="process ended"):
            list(stream)
    with pytest.raises(ModelError, match="ended 5 times within 3600 s"):
        model.run_one("hi")
    monkeypatch.setattr(llama, "ENDS_S", 0.0)
    assert model.run_one("hi")[0].value


def test_a_token_that_takes_too_long(isolated):
    """Ends the child; the next call has a new one."""
    model = isolated(stall_s=4.0)
    for x in (lambda: model.run_one("hi"), lambda: list(model.stream("hi"))):
        assert model.run_one("hi")[0].value
        child = hang()
        with pytest.raises(ModelError, match="gave no token within 4 s"):
            x()
        assert not child.is_running()


@pytest.mark.parametrize("tools", [(), ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)])
def test_a_stop(isolated, tools):
    """Ends a generation within the child, which goes on."""
    model = isolated(slots=2)
    long = {**ENDLESS, "tools": list(tools)} if tools else ENDLESS
    stop = StopToken()
    stream = started(model, long, stop)
    (child,) = children()
    stop()
    with pytest.raises(ModelError, match="was stopped"):
        list(stream)
    if not tools:
        started(model, long).close()
    assert children() == [child]


@pytest.mark.slow
def test_a_stop_of_a_child_that_hangs(isolated):
    """The child is killed soon."""
    model, stop = isolated(), StopToken()
    stream = started(model, ENDLESS, stop)
    child = hang()
    stop()
    with pytest.raises(ModelError, match="was stopped"):
        list(stream)
    assert not child.is_running()


@pytest.mark.slow
@pytest.mark.parametrize("end", [hang, killed])
def test_a_stream_that_is_left_while_its_child(isolated, end):
    """Hangs, or is killed: nobody is told, the child has ended then, and the next call has another one."""
    model = isolated()
    stream = started(model, ENDLESS)
    (child,) = children()
    end()
    stream.close()
    child.wait(LONG)
    assert model.run_one("hi")[0].value


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_child_that_can_begin_no_thread(isolated):
    """Fails its calls at once, and not after the time for a token; the next call has another one, if it has ended."""
    model = isolated(slots=8, stall_s=3600.0)
    streams, engine = [started(model, ENDLESS)], model.load()
    (child,) = children()
    child.rlimit(psutil.RLIMIT_DATA, (1, 1))
    with pytest.raises(ModelError):
        streams += (started(model, ENDLESS) for _ in range(7))  # a few threads may be there already
    with pytest.raises(ModelError):
        list(streams[0])
    with contextlib.suppress(psutil.NoSuchProcess):
        child.kill()  # one that lacked memory for those calls, and not for a thread, is still there
    until = monotonic() + LONG
    while not engine.ended:
        assert monotonic() < until
        os.sched_yield()
    assert model.run_one("hi")[0].value


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_its_memory_is_limited(isolated):
    """To what the model takes, and a gigabyte; no core is written, and the system ends the child before its parent."""
    model = isolated()
    model.run_one("hi")
    (child,) = children()
    data, _ = child.rlimit(psutil.RLIMIT_DATA)
    assert 0 < data < child.memory_info().data + (1 << 30) + (1 << 28)
    assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "500"
    with pytest.raises((BadInput, ModelError)):
        model.run_one(HUGE)
    assert model.run_one("hi")[0].value


FORGED = 'root ::= "\x1b]0;OWNED\x07" (\n{"level": "error", "message": "forged"}\nPATIENT-JOHN-DOE'


LOOP = {"$ref": "#/$defs/a"}
TREE = {"type": "object", "properties": {"below": LOOP}}


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        ({"allOf": [LOOP], "$defs": {"a": LOOP}}, False),
        ({"allOf": [LOOP], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": LOOP}}, False),
        ({"type": "array", "minItems": 3, "maxItems": 2}, False),
        ({**LOOP, "$defs": {"a": TREE}}, True),
    ],
)
def test_a_schema_that_llama_cpp_cannot_read(isolated, schema, taken):
    """Is refused before it ends the process, or holds it."""
    model = isolated()
    model.run_one("hi")
    (before,) = children()
    with contextlib.nullcontext() if taken else pytest.raises(BadInput, match="response_format"):
        model.run_one({"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
    assert children() == [before]


@pytest.mark.slow
def test_a_prompt_for_which_its_memory_is_too_small(isolated):
    """Is no fault of the request: the cloud is asked."""
    model = isolated()
    with Router(model, lambda _: "far", threshold=0.0) as router:
        answer = router.infer({"messages": [{"role": "user", "content": "word " * 4_000_000}]})
    assert (answer.source, answer.degraded) == ("cloud", False)


@pytest.mark.parametrize("verbose", [False, True])
def test_no_client_writes_into_the_log(isolated, capfd, caplog, verbose):
    """llama.cpp quotes a grammar that it does not take: nothing of that is printed; with `verbose` in printable lines that are no records."""
    caplog.set_level(logging.DEBUG)
    model = isolated(verbose=verbose)
    with pytest.raises(BadInput, match="grammar") as refused:
        model.run_one({"messages": HI, "grammar": FORGED})
    model.close()
    assert "PATIENT" not in str(refused.value)
    out, err = capfd.readouterr()
    assert (out, bool(err), caplog.records) == ("", verbose, [])
    assert all(line.startswith("llama.cpp: ") and line.isprintable() for line in err.splitlines())


@pytest.mark.parametrize("asynchronous", [False, *slow(True)])
def test_a_busy_edge_leaves_the_cloud_its_time(isolated, asynchronous):
    """A call with a deadline waits half of it for a slot; alone on the device it waits for its turn."""
    model = isolated()
    with Router(model, lambda x: "cloud", threshold=0.0) as router:
        router.infer("hi")
        thread = threading.Thread(target=lambda: router.infer(ENDLESS, deadline=LONG))
        thread.start()
        working()
        if asynchronous:

            async def ask():
                async with AsyncRouter(model, lambda x: "cloud", threshold=0.0) as other:
                    return await other.infer("hi", deadline=4.0)

            answer = asyncio.run(ask())
        else:
            answer = router.infer("hi", deadline=4.0)
        assert (answer.value, routes.code(answer, "edge")) == ("cloud", "busy")
        assert next(leg for leg in router.stats().legs if leg.name == "edge").failed == 0
        killed()
        thread.join(LONG)


def test_a_hanging_edge_leaves_the_cloud_its_time(isolated):
    """Also with a free slot: a generation that has not begun by half of the deadline counts as busy."""
    model = isolated(slots=2)
    with Router(model, lambda x: "cloud", threshold=0.0) as router:
        router.infer("hi")
        thread = threading.Thread(target=lambda: router.infer(ENDLESS, deadline=LONG))
        thread.start()
        working()
        hang()
        answer = router.infer("hi", deadline=4.0)
        assert (answer.value, routes.code(answer, "edge")) == ("cloud", "busy")
        killed()
        thread.join(LONG)


def test_a_run_that_has_no_slot_by_its_instant(isolated):
    """Is refused as busy, where it waited for as long as another one held the slot."""
    model, refused = isolated(), []
    stream = started(model, ENDLESS)

    def ask():
        try:
            model.run_one("hi", StopToken(monotonic()))
        except Busy as e:
            refused.append(str(e))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LONG)
    stream.close()
    assert refused == ["llama.cpp of tiny.gguf was busy: another generation holds it"]


def test_the_instant_to_begin_is_that_of_the_first_input(isolated):
    """Once a run has begun, its further inputs are not refused as busy, however long the first one took."""
    token = StopToken(monotonic() + LONG)
    assert len(isolated().run(["hi", "hi"], token)) == 2
    assert token.turn_by == math.inf


PROGRAM = """
import os, sys, threading, time, psutil
HI = [{"role": "user", "content": "hi"}]
FORM = {"type": "json_schema", "json_schema": {"schema": {"enum": [f"v{i}" for i in range(40_000)]}}}
STUCK, ENDLESS = {"messages": HI, "response_format": FORM}, {"messages": HI, "max_tokens": 1_000_000, "ignore_eos": True}
from edgeroute.edge.llama import LlamaModel
model = LlamaModel(sys.argv[1], isolate=True, max_tokens=4)
truth = model.run_one("hi")[0].value
"""


@contextlib.contextmanager
def program(body, path):
    """Starts it, and kills it if the test fails."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + body, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.mark.slow
@pytest.mark.parametrize("call", ["model.run_one, args=(ENDLESS,)", "model.run_one, args=(STUCK,)", "other.load"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_parent_that_is_killed(tiny, call):
    """Takes the child along, whatever that does, and though a fork of the parent goes on."""
    template = "{% for i in range(1000000000) %}{% for j in range(1000000000) %}{% endfor %}{% endfor %}"
    endless = tiny_gguf.write(tiny.parent / "endless.gguf", template=template)
    body = f"""
other = LlamaModel({str(endless)!r}, isolate=True)
child = os.fork()
if not child:
    time.sleep(600)
threading.Thread(target={call}, daemon=True).start()
print(child, flush=True)
time.sleep(600)
"""
    with program(body, tiny) as process:
        fork = psutil.Process(int(process.stdout.readline()))
        parent, until = psutil.Process(process.pid), monotonic() + LONG
        while len(children(parent)) < 1 + ("other" in call):
            assert monotonic() < until
        found = children(parent)
        computing(max(found, key=lambda child: child.create_time()))  # ids begin again at their highest
        process.kill()
        _, left = psutil.wait_procs(found, LONG)
        assert left == []
        assert fork.is_running()
        fork.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_forks(tiny):
    """A fork has a child of its own; the parent's goes on, and both end with their parents."""
    body = """
fork = os.fork()
if not fork:
    assert model.run_one("hi")[0].value == truth
    sys.exit(7)
code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
before = model.load()
print(code, model.run_one("hi")[0].value == truth, model.load() is before and not before.ended)
"""
    with program(body, tiny) as process:
        out, err = process.communicate(timeout=LONG)
    assert (out.split(), err, process.returncode) == (["7", "True", "True"], "", 0)


@pytest.mark.slow
def test_the_interpreter_ends_under_a_run(tiny):
    """At once, and leaves no process and no file."""
    body = """
print(model.load()._process.pid, *os.listdir(os.environ["TMPDIR"]), flush=True)
def run():
    try:
        model.run_one(STUCK)
    except Exception:
        pass
child = psutil.Process(model.load()._process.pid)
before = child.cpu_times().user
threading.Thread(target=run, daemon=True).start()
while child.cpu_times().user < before + 0.2:
    os.sched_yield()
"""
    folder = tiny.parent / "temporary"
    folder.mkdir()
    os.environ["TMPDIR"], before = str(folder), os.environ.get("TMPDIR")
    try:
        with program(body, tiny) as process:
            out, err = process.communicate(timeout=LONG)
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
    assert (err, process.returncode, [*folder.iterdir()]) == ("", 0, [])
    assert not psutil.pid_exists(int(out.split()[0]))


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_signals_of_a_terminal_do_not_reach_the_child(isolated):
    """Neither Ctrl-C, nor the end of a service by its manager: the parent decides."""
    model = isolated()
    truth = model.run_one("hi")[0].value
    (child,) = children()
    assert os.getpgid(child.pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(number)
        assert model.run_one("hi")[0].value == truth
    assert children() == [child]


def test_closing(isolated):
    """Ends the child, after a run that is under way; the next run has another."""
    model = isolated(max_tokens=64, request={"ignore_eos": True})
    truth = "".join(model.stream("hi"))
    stream = model.stream("hi")
    first = next(stream)
    model.close()
    assert first + "".join(stream) == truth
    del stream
    assert children() == []
    assert model.run_one("hi")[0].value == truth


@pytest.mark.slow
def test_a_file_that_does_not_load(tmp_path, tiny):
    """Is said as by a model in the process; no child is left."""
    path = tiny_gguf.write(tmp_path / "foreign.gguf", arch="unheard-of")
    with pytest.raises(ModelError, match="may not know that architecture"):
        LlamaModel(path, isolate=True).load()
    with pytest.raises(PolicyError, match="one generation at a time"):
        LlamaModel(tiny, isolate=True, runtime="llama-cpp-python", slots=2).load()
    with pytest.raises(PolicyError, match="stall_s"):
        LlamaModel(tiny, stall_s=0)
    deep = tiny_gguf.write(tmp_path / "deep.gguf", template="{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}")
    hostile = LlamaModel(deep, isolate=True)
    for _ in range(llama.MOST_ENDS):
        with pytest.raises(ModelError, match="process ended"):
            hostile.run_one("hi")
    with pytest.raises(ModelError, match="ended 5 times"):
        hostile.run_one("hi")
    assert children() == []


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(("line", "count"), [("", 1), *slow(("isolate = false", 0), ("isolate = true\nstall_s = 20", 1))])
def test_the_gateway_isolates(tiny, tmp_path, line, count):
    """By default; at SIGTERM the gateway ends, and the child, though a request hangs in it."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'mode = "only_edge"\n[gateway]\nallow = ["response_format"]\n[edge]\npath = "{tiny}"\nmax_tokens = 4\n{line}\n'
    )
    with commands.started("gateway", "--policy", policy) as (process, url), httpx.Client(base_url=url, timeout=LONG) as client:
        body = {"model": "edgeroute", "messages": HI}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        found = children(psutil.Process(process.pid))
        assert len(found) == count
        if count:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json={**body, "response_format": FORM}, timeout=0.5)
        process.terminate()
        assert process.wait(LONG) == 0
        psutil.wait_procs(found, LONG)
        assert not any(child.is_running() for child in found)
