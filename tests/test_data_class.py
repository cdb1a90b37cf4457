"""A data class that is a function of the input: what it keeps on the device, by each way in which anything is sent."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import threading
from contextvars import ContextVar

import numpy as np
import pytest
import routes
from both import CALLS, DOWN, LONG, Tasks, Threads, ask, came, makes, sure, unsure, wait_for
from commands import cli
from gateways import serving
from live import live

from edgeroute import AsyncRouter, Audit, Cache, Egress, Function, MayNotLeave, Outbox, PlainJson, PolicyError, Router, Trial
from edgeroute.testing import CannedServer, http_reply

pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)
SECRET = b"SECRET"
INPUTS = ["tree 1", "face SECRET", "raises SECRET", "none SECRET", "number SECRET", "odd SECRET", "empty SECRET", "tree 2"]


def class_of(x):
    """The first word of a text, or of the last message; some have none."""
    word = (x if isinstance(x, str) else x[-1]["content"]).split()[0]
    if word == "raises":
        raise LookupError(x)
    return {"none": None, "number": 3, "empty": ""}.get(word, word)


def rules(**more):
    return Egress(**{"never_leave": ["face"], "may_leave": ["tree", "bush"], "data_class": class_of, **more})


def sent_of(request):
    """The input in a request; "" in a ping."""
    body = request.partition(b"\r\n\r\n")[2]
    return json.loads(body)["input"] if body else ""


@pytest.fixture
def server():
    """A server that keeps what it gets; at the end, none of that is a secret."""
    with CannedServer(lambda request: http_reply(json.dumps({"value": f"cloud {sent_of(request)}"}).encode())) as server:
        yield server
    assert not [request for request in server.requests if SECRET in request]


def sent(server):
    return [sent_of(request) for request in server.requests]


def test_names_of_classes_are_read_once(make):
    """Of an iterator that was checked nothing would be left; and one text is no list of its letters."""
    asked = []
    rules = Egress(never_leave=iter(["face"]), may_leave=iter(["tree"]), unknown_class="allow")
    router = make(unsure, lambda x: asked.append(x) or "cloud", egress=rules, cache=Cache(never=iter(["tree"])))
    assert router.infer("mine", data_class="face").source == "edge"
    assert [router.infer("x", data_class="tree").source for _ in range(3)] == ["cloud"] * 3
    assert asked == ["x"] * 3


@pytest.mark.parametrize("wrong", ["face", b"face", [""], ["face", 3], [None]])
@pytest.mark.parametrize("of", [(Egress, "never_leave"), (Egress, "may_leave"), (Cache, "never")])
def test_a_list_of_classes_is_one_of_texts(of, wrong):
    made, name = of
    with pytest.raises(PolicyError, match=f"^{name} is a list of data classes"):
        made(**{name: wrong})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("policy", [{}, {"mode": "prefer_cloud"}, {"hedge_after": 0.0}, {"order": "fastest"}])
def test_by_each_call_and_mode(make, server, call, policy):
    """A function that fails, or returns no known class, keeps its input here; also where a cloud begins before the edge ends."""
    router = make(unsure, [PlainJson(server.url), PlainJson(server.url, name="other")], egress=rules(), **policy)
    for x in INPUTS:
        answer = ask(router, call, x)
        assert answer.source == ("cloud" if x.startswith("tree") else "edge")
        assert answer.trace["data_class"] == (x.split()[0] if x[0] in "tfo" else "unclassified")
        with pytest.raises(MayNotLeave) if SECRET.decode() in x else contextlib.nullcontext():
            ask(router, call, x, mode="only_cloud")
    assert sent(server).count("tree 2") >= 2


def test_in_shadow_mode(make, server):
    """It asks the cloud alone, and so refuses the others."""
    router = make(sure, PlainJson(server.url), egress=rules(), mode="shadow")
    for x in INPUTS:
        with contextlib.nullcontext() if x.startswith("tree") else pytest.raises(MayNotLeave):
            assert router.infer(x).source == "cloud"


def test_many_at_once(make, server):
    """Inputs of a class go together; one that stays does not make the others stay. Answers are in order."""
    router = make(lambda x: (f"edge {x}", 0.1), PlainJson(server.url), egress=rules())
    many = [*INPUTS, "bush 3"]
    answers = router.infer_many(many)
    assert [a.value for a in answers] == [f"{'cloud' if x[0] in 'tb' else 'edge'} {x}" for x in many]
    assert sorted(sent(server)) == ["bush 3", "tree 1", "tree 2"]
    assert [a.source for a in router.infer_many(["tree 1", "bush 1"], data_class="face")] == ["edge"] * 2
    with pytest.raises(PolicyError, match="data_class is a name"):
        router.infer_many(["tree 1"], data_class=["face"])
    with pytest.raises(MayNotLeave):
        router.infer_many(many, mode="only_cloud")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("named", "found", "counts"),
    [("tree", "face", "face"), ("face", "tree", "face"), ("tree", "bush", "tree"), (None, "bush", "bush"), ("odd", "tree", "odd"),
     ("bush", "tree", "tree")],
)  # fmt: skip
def test_the_stricter_of_two_classes(make, named, found, counts):
    """A class that is not cached is stricter than others that may leave, and else the call's counts."""
    router = make(unsure, lambda _: "cloud", egress=rules(data_class=lambda _: found), cache=Cache(never=["tree"]))
    answer = router.infer(1, data_class=named)
    assert answer.trace["data_class"] == counts
    assert answer.source == ("edge" if counts in {"face", "odd"} else "cloud")


def test_classes_that_are_not_cached(make):
    """By the function, too."""
    router = make(unsure, lambda _: "cloud", egress=rules(), cache=Cache(never=["tree"]))
    assert [router.infer(x).source for x in ["tree 1", "tree 1", "bush 1", "bush 1", "face 1", "face 1"]] == [
        "cloud", "cloud", "cloud", "cache", "edge", "cache",
    ]  # fmt: skip


def test_an_answer_of_the_cloud_is_not_that_of_an_input_which_stays(make):
    """Nor the other way round: the class is in the key."""
    kinds = iter(["tree", "face", "tree"])
    router = make(unsure, lambda _: "cloud", egress=rules(data_class=lambda _: next(kinds)), cache=Cache())
    assert [router.infer(1).source for _ in range(3)] == ["cloud", "edge", "cache"]


@pytest.mark.pure
def test_queued_and_delivered(make, server, tmp_path):
    """What stays is not stored; the class of what is stored is in the outbox."""
    box = Outbox(tmp_path / "outbox.db", rate_per_s=1e6, spread_s=0.0)
    good, server.reply = server.reply, DOWN
    router = make(unsure, PlainJson(server.url), egress=rules(), offline="queue", outbox=box)
    router.infer_many(INPUTS)
    for x in INPUTS:
        router.infer(x)
    assert [entry.data_class for entry in box.list()] == ["tree"] * 4
    for file in tmp_path.iterdir():
        assert SECRET not in file.read_bytes()
    server.reply = good
    router.on_late(lambda late: None)
    router.link_up()
    wait_for(lambda: box.counts()["delivered"] == 4)


@pytest.mark.pure
@pytest.mark.parametrize("over", ["HTTP", "a function"])
@pytest.mark.parametrize(
    ("stricter", "arrives"),
    [
        ({"mask": ["email"]}, "tree 2"),
        ({"redact": lambda x, _: x.upper()}, "TREE 2"),
        ({"may_leave": ["tree"], "data_class": class_of}, "tree 2"),
    ],
    ids=["mask", "redaction", "classes"],
)
def test_queued_before_the_policy_was_stricter(server, tmp_path, stricter, arrives, over):
    """What was stored without a redaction, or without a class, is never sent by a policy that would redact or classify it."""
    asked = []

    def router_of(x, down, **egress):
        def function(x):
            if down:
                raise OSError
            asked.append(x)
            return "cloud", 0.9

        box = Outbox(tmp_path / "outbox.db", rate_per_s=1e6, spread_s=0.0)
        cloud = PlainJson(server.url) if over == "HTTP" else Function(function)
        router = Router(unsure, cloud, threshold=0.5, egress=Egress(**egress), offline="queue", outbox=box)
        router.infer(x)
        return router, box

    good, server.reply = server.reply, DOWN
    router_of("tree 1", [True])[0].close()  # what it has begun may go on, by its own policy
    came(server)
    router, box = router_of("tree 2", down := [True], **stricter)
    with router:
        assert box.size() == 2
        server.requests.clear()
        down.clear()
        server.reply = good
        router.on_late(lambda late: None)
        router.link_up()
        wait_for(lambda: (box.counts()["delivered"], box.size("dead")) == (1, 1))
        assert [x for x in asked or sent(server) if x] == [arrives]
        assert not [request for request in server.requests if b"-Data" in request]


def test_audits_and_trials(make, server):
    """What is compared in the background."""
    trial = Trial(cloud=PlainJson(server.url, name="tried"), shown=False, share=1.0)
    router = make(sure, PlainJson(server.url), egress=rules(), audit=Audit(share=1.0), trial=trial)
    for x in INPUTS * 3:
        assert router.infer(x).source == "edge"
    wait_for(lambda: len(server.requests) >= 6)
    wait_for(lambda: not router.engine.auditor.jobs.busy)
    shown = make(unsure, PlainJson(server.url), egress=rules(), trial=Trial(cloud=PlainJson(server.url, name="tried"), share=0.5))
    for x in INPUTS * 3:
        shown.infer(x)


def test_live_sources_sessions_and_decisions(make, server):
    """The function gets each frame."""
    router = make(unsure, PlainJson(server.url), egress=rules())
    with live(router, "frames", INPUTS, drop="never", scene=None, hold=1, stale=None) as frames:
        for _ in frames:
            pass
    if isinstance(router, Router):
        others = ["bush", *INPUTS[1:3]]  # a frame that was given up may still be on its way to the server
        with router.session() as session:
            assert [session.infer(x).source for x in others] == ["cloud", "edge", "edge"]
            assert [bool(d.sends_to) for d in map(router.decide, others)] == [True, False, False]
        assert sent(server).count("bush") == 1


def turn(said):
    return [{"role": "user", "content": said}]


def test_a_conversation_stays_once_a_turn_had_to(server):
    """Also with a function that looks at the last turn alone, and by a list of messages that the application keeps."""

    def edge(x):
        return f"answer to {x[-1]['content']}", 0.1

    with Router(edge, PlainJson(server.url), threshold=0.5, egress=rules()) as router:
        talk = router.conversation()
        assert talk.infer("tree 1").source == "cloud"
        assert not talk.stays
        assert talk.infer("face SECRET, said in confidence").source == "edge"
        assert talk.stays
        assert talk.infer("tree 2").source == "edge"
        messages = turn("face SECRET, said in confidence and at length")
        messages += [{"role": "assistant", "content": router.infer(messages).value}, *turn("tree 3")]
        assert router.infer(messages).source == "edge"
        assert router.infer(turn("tree 4")).source == "cloud"


def test_through_the_gateway(server):
    """The function gets the body of the request, whose client may name a class besides."""
    import httpx

    def class_of_body(body):
        return class_of(body["messages"])

    def edge(body):
        yield "here"
        return 0.1

    router = AsyncRouter(edge, PlainJson(server.url), threshold=0.5, egress=rules(data_class=class_of_body))
    with serving(router, names=["policy"]) as url:
        for x in INPUTS:
            for named in ({}, {"x-edgeroute-data-class": "tree"}):
                body = {"model": "policy", "messages": turn(x)}
                reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=named, timeout=LONG)
                assert reply.headers["x-edgeroute-source"] == ("cloud" if x.startswith("tree") else "edge")


def test_the_edges_own_answer_as_the_class(make, server):
    """Calls of the router within the function stay on the device, and bind no conversation."""
    router, classified = None, []

    def by_edge(x):
        if router is None:
            raise LookupError
        classified.append(x)
        return router.infer(x).value if isinstance(router, Router) else "face"

    def edge(x):
        said = x if isinstance(x, str) else x[-1]["content"]
        return said.split()[0], 0.1

    inner = make(edge, PlainJson(server.url), egress=rules(data_class=by_edge))
    assert inner.infer("tree 1").source == "edge"
    router = inner
    if isinstance(router, Router):
        assert [router.infer(x).source for x in ["tree 1", "face SECRET", "tree 2"]] == ["cloud", "edge", "cloud"]
        assert classified == ["tree 1", "face SECRET", "tree 2"], "the calls within are not classified again"
        assert router.infer(turn("tree 3")).source == "cloud"
        assert router.infer(turn("face SECRET said at length")).source == "edge"


@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("of", ["consent", "redact", "mask"])
def test_calls_within_other_functions_of_the_rules(make, of, deadline):
    """They stay on the device, and so end; calls of another router leave by its own rules."""
    routers, sent, reasons = [], [], []

    def cloud(x):
        sent.append(x)
        return "cloud", 1.0

    def within(*_):
        if isinstance(routers[0], Router):
            reasons.extend(router.infer("tree within").reason for router in routers)
        return {"consent": True, "redact": "redacted", "mask": []}[of]

    egress = Egress(**{of: [within] if of == "mask" else within})
    other = make(unsure, lambda _: ("other", 1.0), egress=Egress(redact=lambda x, _: x))
    routers += [make(unsure, cloud, egress=egress, deadline=deadline), other]
    assert routers[0].infer("tree").source == "cloud"
    assert sent == ["redacted" if of == "redact" else "tree"]
    if isinstance(other, Router):
        inner, outer = reasons
        assert "within a function of the egress rules" in inner
        assert "cloud" in outer


@pytest.mark.parametrize("name", ["data_class", "consent", "redact"])
def test_a_coroutine_function_is_refused(name):
    """Nothing would await it: a redaction's coroutine would be sent. A generator function would not run either."""

    class Later:
        async def __call__(self, *_):
            return "tree"

    def pieces(*_):
        yield "tree"

    for function in (Later(), Later().__call__, pieces, "no function"):
        with pytest.raises(PolicyError, match=f"{name} is a function .*no coroutine or generator function"):
            Egress(**{name: function})


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_a_redaction_that_is_to_be_awaited_sends_nothing(kind):
    """Cannot be told before it is called: its coroutine was sent, with the input in it."""

    async def later(x):
        return x

    sent = []
    with kind(lambda _: ("edge", 0.1), sent.append, threshold=0.5, egress=Egress(redact=lambda x, _: later(x))) as router:
        answer = router.infer("oak")
    assert (answer.value, answer.degraded, sent) == ("edge", True, [])
    assert PolicyError.__name__ in routes.error(answer, "cloud")


def test_a_health_check_that_would_not_run():
    """Each probe would find its endpoint well."""

    async def health():
        raise ConnectionError

    def pieces():
        yield

    for function in (health, pieces):
        with pytest.raises(PolicyError, match="health is a plain function"):
            Function(lambda x: x, health=function)


def test_a_name_whose_type_is_equal_to_others(make):
    """It is what it says, and not what its type compares it with."""

    class Odd(str):
        __slots__ = ()
        __hash__ = lambda _: hash("tree")  # noqa: E731
        __eq__ = lambda *_: True  # noqa: E731

    router = make(unsure, lambda _: ("cloud", 1.0), egress=Egress(never_leave=["face"], may_leave=["tree"]))
    assert [router.infer(1, data_class=Odd(name)).source for name in ("tree", "face")] == ["cloud", "edge"]
    assert [router.infer_many([1], data_class=Odd(name))[0].source for name in ("tree", "face")] == ["cloud", "edge"]


def test_examples_for_a_measurement(make):
    """None is sent if one may not leave; requests are of one class."""
    batches = []

    def cloud(x):
        batches.append(x)
        return "edge", 1.0

    seen = []
    egress = Egress(never_leave=["face"], may_leave=["tree", "bush"], data_class=lambda x: x.split()[0],
                    redact=lambda x, kind: seen.append((x, kind)) or x)  # fmt: skip
    router = make(unsure, cloud, egress=egress)
    mixed = [f"{kind} {i}" for i in range(30) for kind in ("tree", "bush")]
    router.evaluate(mixed, ["edge"] * 60, batch=8)
    assert len(seen) == 60
    assert all(x.startswith(kind) for x, kind in seen)
    batches.clear()
    with pytest.raises(MayNotLeave, match="data class 'face' never leaves"):
        router.evaluate([*mixed, "face SECRET"], ["edge"] * 61)
    assert batches == []
    assert router.evaluate(["face SECRET"] * 20, ["edge"] * 20, ask_cloud=False).accuracy["edge"].found == 20


USER = ContextVar("user", default="nobody")


def test_the_function_does_not_hold_up_an_event_loop():
    """It runs in a thread there, with the caller's context."""
    gate, users, begun = threading.Event(), [], threading.Semaphore(0)

    def slow(x):
        users.append((USER.get(), threading.current_thread() is threading.main_thread()))
        begun.release()
        assert gate.wait(LONG)
        return "tree"

    async def main():
        async with AsyncRouter(unsure, lambda _: "cloud", threshold=0.5, egress=rules(data_class=slow)) as router:
            USER.set("somebody")
            calls = [asyncio.create_task(router.infer(1)), asyncio.create_task(router.infer_many([1]))]
            for _ in calls:
                assert await asyncio.to_thread(begun.acquire, timeout=LONG)
            gate.set()
            one, (other,) = await asyncio.gather(*calls)
            assert one.source == other.source == "cloud"

    asyncio.run(main())
    assert users == [("somebody", False)] * 2


def test_arrays_and_a_policy_file(tmp_path):
    """`from_policy` takes the function, and a reload keeps it."""
    (tmp_path / "policy.toml").write_text('[egress]\nnever_leave = ["face"]\nmay_leave = ["tree"]\n')

    def dark(x):
        return "face" if np.mean(x) < 0.5 else "tree"

    with Router.from_policy(
        tmp_path / "policy.toml", edge=unsure, cloud=lambda _: "cloud", threshold=0.5, data_class=dark
    ) as router:
        for _ in range(2):
            assert router.infer(np.ones(4)).source == "cloud"
            assert router.infer(np.zeros(4)).source == "edge"
            router.reload()


def test_without_lists_nothing_leaves(make):
    """A function alone declares no class that may leave; that is told by `check`."""
    router = make(unsure, lambda _: "cloud", egress=Egress(data_class=lambda _: "tree"))
    assert router.infer(1).source == "edge"
    allowed = make(unsure, lambda _: "cloud", egress=Egress(unknown_class="allow", data_class=class_of))
    assert [allowed.infer(x).source for x in ["tree 1", "odd 1", "none 1", "raises 1"]] == ["cloud", "cloud", "edge", "edge"]


def test_a_failure_is_logged_without_the_input(make, caplog):
    """Once a minute at most."""
    router = make(unsure, lambda _: "cloud", egress=rules())
    for _ in range(3):
        router.infer("raises SECRET")
    assert [record.getMessage() for record in caplog.records] == ["data_class failed: LookupError (said once a minute at most)"]
    assert SECRET.decode() not in caplog.text


class Kind(str, enum.Enum):
    """A class as some programs name it."""

    TREE = "tree"


def test_names_of_other_types(make):
    """A subclass of `str` is a plain text in traces and ledgers."""
    for name in (Kind.TREE, np.str_("tree")):
        trace = make(unsure, lambda _: "cloud", egress=rules(data_class=lambda _, name=name: name)).infer(1).trace
        assert (trace["data_class"], type(trace["data_class"])) == ("tree", str)


@pytest.mark.parametrize("found", [None, "", 3, ["tree"]])
def test_an_input_without_a_name_is_logged(make, caplog, found):
    """With the type that the function gave; the input stays."""
    answer = make(unsure, lambda _: "cloud", egress=rules(data_class=lambda _: found)).infer(1)
    assert (answer.source, answer.trace["data_class"]) == ("edge", "unclassified")
    (record,) = [record for record in caplog.records if "data_class" in record.getMessage()]
    assert f"it gave {type(found).__name__} in place of a data class's name" in record.getMessage()
    assert not record.exc_text


def test_a_stale_answer_is_revalidated_by_the_class_of_now(make):
    """By itself nothing leaves that may not leave any more."""
    asked, kinds = [], iter(["tree", "tree", "face"])
    seen = threading.Event()

    def later(_):
        kind = next(kinds)
        if kind == "face":
            seen.set()
        return kind

    cache = Cache(ttl_s=0.0, stale_while_revalidate_s=LONG)
    router = make(unsure, lambda x: asked.append(x) or "cloud", egress=rules(data_class=later), cache=cache)
    assert [router.infer(1).source for _ in range(2)] == ["cloud", "stale"]
    assert seen.wait(LONG)
    router.close()
    assert len(asked) == 1


def chats(request):
    """The reply of a server with a small model, the edge, and a large one."""
    body = request.partition(b"\r\n\r\n")[2]
    if not body:
        return http_reply(json.dumps({"object": "list", "data": [{"id": "small"}, {"id": "large"}]}).encode())
    logprob = {"token": "yes", "logprob": -0.1, "top_logprobs": []}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "logprobs": {"content": [logprob]},
    }
    return http_reply(json.dumps({"model": json.loads(body)["model"], "choices": [choice]}).encode())


POLICY = """
threshold = 0.99
state = "state"
[edge]
path = "{url}"
model = "small"
[cloud]
protocol = "openai"
url = "{url}"
model = "large"
[egress]
never_leave = ["medical"]
may_leave = ["chat"]
default_class = "chat"
"""


@pytest.mark.parametrize("kept", ["the line", "its metadata", "the state"])
@pytest.mark.parametrize("command", [["calibrate", "--max-loss", "90%", "--data"], ["evaluate", "--data"], ["infer"]])
def test_commands_send_nothing_that_a_line_or_the_state_keeps(tmp_path, monkeypatch, command, kept):
    """A line's own data class holds, and a conversation that had to stay, which examples neither begin nor continue."""
    monkeypatch.chdir(tmp_path)
    with CannedServer(chats) as server:
        path = tmp_path / "policy.toml"
        path.write_text(POLICY.format(url=f"{server.url}/v1"))
        talks = [
            [{"role": "user", "content": f"SECRET number {n}: the doctor says that I should eat less salt. Why?"}]
            for n in range(8)
        ]
        if kept == "the state":
            with Router.from_policy(path) as router:
                for talk in talks:
                    router.infer(talk, data_class="medical")
        own = {"the line": {"data_class": "medical"}, "its metadata": {"metadata": {"data_class": "medical"}}}.get(kept, {})
        lines = [json.dumps({"messages": talk, **own}) for talk in talks]
        (tmp_path / "talks.jsonl").write_text("\n".join(lines))
        stored = tmp_path / "state" / "conversations.db"
        before = stored.read_bytes() if kept == "the state" else b""
        code, out, _ = cli(*command, "talks.jsonl", "--policy", path)
        assert code == (0 if command[0] == "infer" else 3), out
        assert command[0] == "infer" or not before or stored.read_bytes() == before
        assert not [each for each in server.requests if SECRET in each and b'"large"' in each]
