"""Words of reasons: every kind of sentence, beside its code. No other test compares a reason with a text, so that these can be mended.

Times that a clock has measured are told as N.
"""

from __future__ import annotations

import ast
import math
import re
import threading
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from both import DOWN, GOOD, LONG, GatedServer, Threads, flat, sure, unsure

from edgeroute import (
    Audit,
    BadInput,
    BadReply,
    Cache,
    CallableModel,
    DeadlineExceeded,
    Egress,
    Function,
    Held,
    InputScore,
    Limits,
    LocalServer,
    NoAnswer,
    Outbox,
    PlainJson,
    Prediction,
    Prefix,
    Refused,
    Router,
    Rule,
    Semantic,
    StoreError,
    TimedOut,
    Unreachable,
)
from edgeroute.cloud import attempt_accounting_and_turns as exchange
from edgeroute.confidence import calibrate
from edgeroute.core.plan import Facts, Plan, plan, without_first
from edgeroute.core.policy_egress_and_options import Policy, Rules, Target
from edgeroute.core.reason_text_and_trace_record import CODES, before_run, reason, reason_code
from edgeroute.core.stream_walk import FirstTokenLate
from edgeroute.core.walk import Done, Elapsed, Failed, Left, Malformed, Mark, Outcome, walk
from edgeroute.errors import Unfit
from edgeroute.router.offline_queue import Storing
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply
from edgeroute.tools import walk_driver_in_virtual_time as virtual

EDGE, CLOUD = Target("edge", "edge", 0.85), Target("cloud", "cloud")
PAIR = (EDGE, CLOUD)
CHAT = {"choices": [{"message": {"content": "Pa"}, "finish_reason": None}]}


# -------------------------------------------------------------------------------------------------------- by the core alone
def made(targets=PAIR, facts=None, why_home="", arm="", data_class=None, **policy) -> Plan:
    found = plan(Policy(**policy), targets, facts or Facts(), why_home=why_home, arm=arm, data_class=data_class)
    assert isinstance(found, Plan)
    return found


def done(confidence, outputs=None):
    """An answer after 182 ms."""
    return lambda leg, now: Done(leg, Prediction("v", confidence, outputs), now + 0.182)


def fails(error):
    return lambda leg, now: Failed(leg, RuntimeError(error) if isinstance(error, str) else error, now + 0.01)


def late(leg, now):
    return Elapsed(now + 100)


def outcome_of(known, *answers) -> Outcome:
    events = list(answers)
    outcome, _ = virtual.drive(walk(known, 0.0), lambda s, now: [events.pop(0)(s.leg, now)])
    return outcome


def ended(finish):
    return {"choices": [{"message": {"content": "Pa"}, "finish_reason": finish}]}


def partial(error):
    """A failure of which a piece had come."""
    error.partial = Prediction("Pa", None, CHAT)
    return error


SPENT = Held("cloud was not asked: usd_per_day = 1 is spent (1 so far, and this call takes 0.4)", code="usd_per_day")
BELOW = "edge 0.41 < 0.85 (uncalibrated)"
STANDS = "so the edge answer stands"
"""Of nearly every degraded answer."""
HOT = Rule("heat", "prefer_cloud", 80)
WALKS = {
    "sure": ("confident", made(), [done(0.97)], "edge 0.97 >= 0.85 (uncalibrated)"),
    "certified": (
        "confident", made((Target("edge", "edge", 0.85, label="loss <= 2 %, 95 % sure"), CLOUD)), [done(0.97)],
        "edge 0.97 >= 0.85 (loss <= 2 %, 95 % sure)",
    ),
    "unsure": ("below", made(), [done(0.41), done(None)], f"{BELOW}; cloud 182 ms"),
    "malformed": (
        "malformed", made(), [done(Malformed("json", "it is no JSON")), done(None)],
        "edge failed its check (it is no JSON); cloud 182 ms",
    ),
    "hardly unsure": ("below", made(), [done(0.8496), done(None)], "edge 0.8496 < 0.85 (uncalibrated); cloud 182 ms"),
    "a threshold of its own": (
        "below", made((EDGE._replace(thresholds={"v": 0.99}), CLOUD)), [done(0.97), done(None)],
        "edge 0.97 < 0.99 (uncalibrated); cloud 182 ms",
    ),
    "two edges": (
        "below", made((Target("small", "edge", 0.85), EDGE, CLOUD)), [done(0.3, None), done(0.41), done(None)],
        "small 0.30 < 0.85 (uncalibrated); " + BELOW + "; cloud 182 ms",
    ),
    "no confidence, deferred": (
        "below", made(), [done(None), done(None)], "edge without confidence, deferred by policy; cloud 182 ms",
    ),
    "no confidence, accepted": (
        "confident", made(no_confidence="accept"), [done(None)], "edge without confidence, accepted by policy",
    ),
    "no confidence, and nobody else": ("stays", made(mode="only_edge"), [done(None)], "edge without confidence, only_edge"),
    "no confidence, of a class that never leaves": (
        "stays", made(rules=Rules(never_leave=frozenset({"medical"})), data_class="medical"), [done(None)],
        "edge without confidence, data class 'medical' never leaves",
    ),
    "only_edge": ("stays", made(mode="only_edge"), [done(0.41)], BELOW + ", only_edge"),
    "nobody else": ("confident", made((EDGE,)), [done(0.41)], BELOW + ", and there is nothing else to ask"),
    "no threshold": (
        "stays", made((Target("edge", "edge"), CLOUD), mode="only_edge"), [done(0.4)], "edge 0.40, always accepted",
    ),
    "a class that never leaves": (
        "stays", made(rules=Rules(never_leave=frozenset({"medical"})), data_class="medical"), [done(0.41)],
        BELOW + ", data class 'medical' never leaves",
    ),
    "a class that no rule knows": (
        "stays", made(rules=Rules(may_leave=frozenset({"chat"})), data_class="x"), [done(0.41)],
        BELOW + ", data class 'x', which no rule knows, may not leave (unknown_class is deny)",
    ),
    "no class": (
        "stays", made(rules=Rules(may_leave=frozenset({"chat"}))), [done(0.41)],
        BELOW + ", a call without data_class may not leave (unknown_class is deny)",
    ),
    "the cloud first": ("first", made(mode="only_cloud"), [done(None)], "cloud 182 ms"),
    "the cloud first, and the edge on standby": (
        "failed", made(mode="prefer_cloud"), [fails("gone"), done(0.99)],
        "cloud failed: RuntimeError; edge 0.99, on standby; " + STANDS,
    ),
    "a cloud with a threshold": (
        "below", made((EDGE, Target("cloud", "cloud", 0.5), Target("other", "cloud"))), [done(0.41), done(0.3), done(None)],
        BELOW + "; cloud 0.30 < 0.50 (uncalibrated); other 182 ms",
    ),
    "an edge that fails": ("failed", made(), [fails("oom"), done(None)], "edge failed: RuntimeError; cloud 182 ms"),
    "an error of no words": ("failed", made(), [fails(OSError()), done(None)], "edge failed: OSError; cloud 182 ms"),
    "what the edge does not take": (
        "context", made(), [fails(Unfit("300 tokens", code="context")), done(None)],
        "edge does not take this input: 300 tokens; cloud 182 ms",
    ),
    "what the edge cannot do": (
        "unsupported", made(), [fails(Unfit("images", code="unsupported")), done(None)],
        "edge does not take this input: images; cloud 182 ms",
    ),
    "what the cloud does not take": (
        "bad_input", made(), [done(0.41), fails(BadInput("no text"))],
        BELOW + "; cloud does not take this input: no text; " + STANDS,
    ),
    "a cloud that fails": (
        "failed", made(), [done(0.41), fails("gone")], BELOW + "; cloud failed: RuntimeError; " + STANDS,
    ),
    "a cloud that cannot be reached": (
        "unreachable", made(), [done(0.41), fails(Unreachable("no way"))], BELOW + "; cloud failed: no way; " + STANDS,
    ),
    "a cloud that is late": (
        "timeout", made(), [done(0.41), fails(TimedOut("too late"))], BELOW + "; cloud failed: too late; " + STANDS,
    ),
    "a cloud that refuses": (
        "refused", made(), [done(0.41), fails(Refused("answered 503", status=503))],
        BELOW + "; cloud failed: answered 503; " + STANDS,
    ),
    "a cloud that is not understood": (
        "bad_reply", made(), [done(0.41), fails(BadReply("HTML"))], BELOW + "; cloud failed: HTML; " + STANDS,
    ),
    "a cloud of one's own that is held": ("other", made(), [done(0.41), fails(Held("not now"))], BELOW + "; not now; " + STANDS),
    "a cloud without a first piece": (
        "timeout", made(), [done(0.41), fails(FirstTokenLate("it had not begun to answer after 500 ms"))],
        BELOW + "; cloud failed: it had not begun to answer after 500 ms; " + STANDS,
    ),
    "held": (
        "usd_per_day", made(), [done(0.41), fails(SPENT)],
        BELOW + "; cloud was not asked: usd_per_day = 1 is spent (1 so far, and this call takes 0.4); " + STANDS,
    ),
    "late": (
        "deadline", made(deadline_s=1.0), [done(0.41), late], BELOW + "; cloud not there by the deadline of 1000 ms; " + STANDS,
    ),
    "not to be degraded": ("failed", made(offline="raise"), [done(0.41), fails("gone")], BELOW + "; cloud failed: RuntimeError"),
    "a busy cloud": (
        "busy", made(facts=Facts(busy=frozenset({"cloud"}))), [done(0.41)],
        BELOW + "; cloud was not asked: earlier runs of it go on; " + STANDS,
    ),
    "a cloud that breaks off": (
        "unreachable", made(mode="only_cloud"), [fails(partial(Unreachable("cut")))],
        "cloud failed: cut; so what came of the cloud answer stands",
    ),
    "a text that is cut off": (
        "first", made(mode="only_cloud"), [done(None, ended("length"))],
        "cloud 182 ms; its answer was cut off at the most tokens that it may have",
    ),
    "a text that is filtered": (
        "first", made(mode="only_cloud"), [done(None, ended("content_filter"))],
        "cloud 182 ms; its answer was cut off by a content filter",
    ),
    "a text that is cut off otherwise": (
        "first", made(mode="only_cloud"), [done(None, ended("safety"))], "cloud 182 ms; its answer was cut off: safety",
    ),
    "a text that is cut off for an unknown reason": (
        "first", made(mode="only_cloud"), [done(None, ended("sk-123"))], "cloud 182 ms; its answer was cut off: other",
    ),
    "a rule": (
        "first", made(device_rules=(HOT,), facts=Facts(rules=(HOT,))), [done(None)], "cloud 182 ms; heat above 80 C: prefer_cloud",
    ),
    "a loaded cloud": (
        "confident", made(facts=Facts(kept=0.5, slack={"edge": 0.05})), [done(0.82)],
        "edge 0.82 >= 0.80 (uncalibrated, lowered by 0.05 as the cloud is loaded)",
    ),
    "an arm": (
        "below", made((EDGE._replace(label="loss <= 2 %, 95 % sure", certified=True), CLOUD, Target("next", "cloud", trial=True)), arm="next"),
        [done(0.41), done(None)],
        "edge 0.41 < 0.85 (uncalibrated: its certificate is for another cloud than next); next 182 ms",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WALKS)
def test_of_a_walk(name):
    """A reason is one line that names each leg and its figures."""
    code, known, answers, text = WALKS[name]
    outcome = outcome_of(known, *answers)
    assert (reason_code(known, outcome), reason(known, outcome)) == (code, text)


def test_of_an_edge_that_was_judged_by_its_input():
    """Before it ran; it is asked if nobody else answers."""
    known = made()
    judged = without_first(known, 0.2, before_run(known, known.legs[0], 0.2))
    outcome = outcome_of(judged, done(None))
    assert (reason_code(judged, outcome), reason(judged, outcome)) == (
        "input", "edge 0.20 < 0.85 (uncalibrated), before it ran; cloud 182 ms",
    )  # fmt: skip


def test_of_a_hedge():
    """One that lost is not in the reason; the trace has it."""
    known = made(hedge_after=0.0)
    outcome, _ = virtual.drive(walk(known, 0.0), lambda s, now: [Done(s.leg, Prediction("v", 0.9, None), now + 1.0 - s.leg)])
    assert (reason_code(known, outcome), reason(known, outcome)) == ("faster", "cloud 0 ms")


def test_of_a_stream_that_was_left():
    """By its caller; that is no fault."""
    known = made()
    outcome = Left(0, Prediction(None, None, None), False, [Mark("start", 0, 0.0), Mark("cancelled", 0, 0.25)], 0.0, 0.25)
    assert (reason_code(known, outcome), reason(known, outcome)) == ("left", "left by its caller after 250 ms")


# ------------------------------------------------------------------------------------------------------------- by a router
def away(_):
    raise Unreachable("away")


def failing(_):
    raise ValueError("oops")


def plain(text):
    """A reason without what a clock has measured, and without ids and addresses."""
    text = re.sub(r"http://127\.0\.0\.1:\d+/?", "http://here", text)
    text = re.sub(r"shared with \S+:", "shared with ID:", text)
    text = re.sub(r"alarm of \d{4}-\d\d-\d\d", "alarm of DATE", text)
    return re.sub(r"\b\d+(\.\d+)? (ms|s|min|h)\b", r"N \2", text)


def last(cloud=away, *, edge=unsure, times=1, x=1, data_class=None, **policy):
    """The last of so many answers to the same input."""
    with Router(edge, cloud, **flat(**{"threshold": 0.5, **policy})) as router:
        return [router.infer(x, data_class=data_class) for _ in range(times)][-1]


def here(reply, times=1, x=1, **more):
    """The last answer of a router with a server."""
    terms = {name: more.pop(name) for name in ("calls_per_s", "usd_per_call", "joules_per_call", "retries") if name in more}
    with CannedServer(reply) as server:
        return last(PlainJson(server.url, **{"retries": 0, **terms}), times=times, x=x, **more)


def crowded(patch):
    """The answer to a request that comes while another is under way, and none may wait for its turn."""
    patch.setattr(exchange, "MOST_THREADS", 0)
    with GatedServer(GOOD) as server, Threads(unsure, PlainJson(server.url, max_concurrent=1), threshold=0.5) as router:
        first = router.start(1)
        server.wait_for(lambda: server.requests)
        answer = router.infer(2)
        server.open()
        first.result(LONG)
        return answer


def silent(pieces):
    """An edge, a server of a language model, that says only these."""
    with CannedServer(sse_reply(chat_events(pieces))) as server:
        return last(sure, edge=LocalServer(f"{server.url}"), x="hi")


def without_threads():
    with Router(unsure, sure, threshold=0.5, deadline=LONG) as router:
        router.engine.cloud_threads = ThreadPool("edgeroute-cloud", 0)
        return router.infer(1)


def without_a_ledger(monkeypatch, tmp_path):
    def full(*_):
        raise StoreError("disk full")

    monkeypatch.setattr(Journal, "append", full)
    with CannedServer(GOOD) as server:
        return last(PlainJson(server.url), state=tmp_path)


def closed_meanwhile():
    """A router that is closed while a request waits for its turn."""
    with GatedServer(GOOD) as server, Threads(unsure, PlainJson(server.url, max_concurrent=1), threshold=0.5) as router:
        first = router.start(1)
        server.wait_for(lambda: server.requests)
        router.engine.snapshot.clouds[0].guard.turns.close()
        answer = router.infer(2)
        server.open()
        first.result(LONG)
        return answer


def being_queued(path, patch):
    """The answer to a request that is not on disk by its deadline."""
    box, gate = Outbox(path / "outbox.db"), threading.Event()
    put = box.put_all
    box.put_all = lambda *args: (gate.wait(LONG), put(*args))[1]
    patch.setattr(Storing, "pending", property(lambda self: True))
    patch.setattr("edgeroute.router.router.monotonic", lambda: math.inf)  # what a call waits for is late at once
    with Router(unsure, away, threshold=0.5, deadline=LONG, offline="queue", outbox=box) as router:
        answer = router.infer(1)
        gate.set()
        return answer


def without_room_to_write(monkeypatch, tmp_path):
    monkeypatch.setattr(KeyValueStore, "flush", lambda self: False)
    return last(Function(sure, usd_per_call=0.01), limits=Limits(usd_per_day=0.05), state=tmp_path)


def damaged(tmp_path):
    """A limit whose state was damaged."""
    path = tmp_path / "state.db"
    path.write_bytes(b"garbage" * 1000)
    return last(Function(sure, usd_per_call=0.01), limits=Limits(usd_per_day=0.05), state=tmp_path)


UNSURE = "edge 0.10 < 0.50 (uncalibrated); "
HELD_SO = UNSURE + "cloud was not asked: "
NOTHING_SENT = ", so nothing was sent; " + STANDS
ROUTED = {
    "a breaker": (
        "breaker", lambda *_: last(times=4), HELD_SO + "breaker open for another N s after 3 faults; " + STANDS,
    ),
    "a wait": (
        "retry_after", lambda *_: here(http_reply(status=503, headers=[("Retry-After", "100")]), times=2),
        HELD_SO + "it asked to wait another N s; " + STANDS,
    ),
    "a refusal": (
        "refused", lambda *_: here(DOWN), UNSURE + "cloud failed: http://here answered 503; " + STANDS,
    ),
    "calls under way": (
        "max_concurrent", lambda _, patch: crowded(patch),
        HELD_SO + "1 call is under way (max_concurrent); " + STANDS,
    ),
    "a rate": (
        "calls_per_s", lambda *_: here(GOOD, times=2, calls_per_s=0.01),
        HELD_SO + "it has had 0.01 calls a second (calls_per_s); " + STANDS,
    ),
    "dollars": (
        "usd_per_day", lambda *_: here(GOOD, times=2, usd_per_call=1.0, limits=Limits(usd_per_day=1.5)),
        HELD_SO + "usd_per_day = 1.5 is spent (1 so far, and this call takes 1), and such a call may be made again in N h; " + STANDS,
    ),
    "joules": (
        "joules_per_hour", lambda *_: here(GOOD, joules_per_call=2.0, limits=Limits(joules_per_hour=1)),
        HELD_SO + "joules_per_hour = 1 is spent (0 so far, and this call takes 2); " + STANDS,
    ),
    "bytes": (
        "mb_per_day", lambda *_: here(GOOD, limits=Limits(mb_per_day=1e-9)),
        HELD_SO + "mb_per_day = 1e-09 is spent (0 so far, and this call takes 1.1e-05); " + STANDS,
    ),
    "calls": (
        "calls_per_minute", lambda *_: here(GOOD, times=2, limits=Limits(calls_per_minute=1)),
        HELD_SO + "calls_per_minute = 1 is spent (1 so far, and this call takes 1), and such a call may be made again in N s; " + STANDS,
    ),
    "what is not written ahead": (
        "usd_per_day", lambda path, patch: without_room_to_write(patch, path),
        HELD_SO + "usd_per_day: what is spent could not be written ahead, see the log; " + STANDS,
    ),
    "a state that was damaged": (
        "usd_per_day", lambda path, _: damaged(path),
        HELD_SO + "usd_per_day = 0.05: what was spent is not known, since FOLDER/state.db was damaged, and calls under this limit may be made again in N h; " + STANDS,
    ),
    "a ledger": (
        "ledger", lambda path, patch: without_a_ledger(patch, path),
        HELD_SO + "what is not in the egress ledger does not leave (disk full); " + STANDS,
    ),
    "no consent": ("consent", lambda *_: last(egress=Egress(consent=lambda *_: False)), UNSURE + "consent was not given; " + STANDS),
    "consent that fails": (
        "consent", lambda *_: last(egress=Egress(consent=lambda *_: 1 / 0)),
        UNSURE + "the consent callback failed (ZeroDivisionError)" + NOTHING_SENT,
    ),
    "a redaction that fails": (
        "redaction", lambda *_: last(egress=Egress(redact=lambda *_: 1 / 0)),
        UNSURE + "the redaction failed (ZeroDivisionError)" + NOTHING_SENT,
    ),
    "a mask of no text": (
        "redaction", lambda *_: last(egress=Egress(mask=["email"]), x=b"a"),
        UNSURE + "the mask failed (the input is bytes, or has it in it, and a mask takes texts alone)" + NOTHING_SENT,
    ),
    "a view that fails": (
        "view", lambda *_: last(views={"cloud": lambda x: 1 / 0}),
        UNSURE + "the view for cloud failed (ZeroDivisionError)" + NOTHING_SENT,
    ),
    "no thread": ("threads", lambda *_: without_threads(), HELD_SO + "no thread is free; " + STANDS),
    "a router that is closed": ("stopped", lambda *_: closed_meanwhile(), HELD_SO + "the router is closed; " + STANDS),
    # what scores nothing
    "a score that fails": (
        "below", lambda *_: last(sure, edge=lambda x: np.float32([1, 2]), score=lambda _: 1 / 0),
        "edge without confidence (the score failed: ZeroDivisionError), deferred by policy; cloud N ms",
    ),
    "a score of the input that fails": (
        "input", lambda *_: last(sure, score=InputScore(lambda _: 1 / 0)),
        ("edge without confidence (the score of the input failed: ZeroDivisionError), deferred by policy, "
         "before it ran; cloud N ms"),
    ),
    "NaN": (
        "below", lambda *_: last(sure, edge=lambda x: np.float32([np.nan, 1])),
        "edge without confidence (its outputs hold NaN or infinity, or are all minus infinity), deferred by policy; cloud N ms",
    ),
    "no probabilities": (
        "below", lambda *_: last(sure, edge=CallableModel(lambda _: np.array([1.0, 5.0]), kind="probabilities")),
        ("edge without confidence (outputs of 1 to 5, and kind is probabilities, which are from 0 to 1), deferred by policy; "
         "cloud N ms"),
    ),
    "no log-probabilities": (
        "below", lambda *_: last(sure, edge=CallableModel(lambda _: np.array([1.0, 5.0]), kind="logprobs")),
        "edge without confidence (outputs of up to 5, and kind is logprobs, which are 0 or less), deferred by policy; cloud N ms",
    ),
    "no log-probabilities of tokens": (
        "below", lambda *_: last(sure, edge=lambda _: "text", score=Prefix(2)),
        "edge without confidence (the score failed: the answer has no log-probabilities of its tokens), deferred by policy; cloud N ms",
    ),
    "a check that fails": (
        "malformed", lambda *_: last(sure, edge=CallableModel(sure, check=lambda _: 1 / 0)),
        "edge failed its check (the check itself failed: ZeroDivisionError); cloud N ms",
    ),
    "a text that is none": (
        "below", lambda *_: silent([]), "edge without confidence (its answer has no text), deferred by policy; cloud N ms",
    ),
    # what is noted afterwards
    "waiting": (
        "unreachable", lambda path, _: last(offline="queue", outbox=Outbox(path / "outbox.db")),
        UNSURE + f"cloud failed: away; {STANDS}; waiting",
    ),
    "not stored": (
        "unreachable", lambda path, _: last(offline="queue", outbox=Outbox(path / "outbox.db", max_bytes=1)),
        UNSURE + f"cloud failed: away; {STANDS}; not stored: the outbox is full: 587 bytes more would make it exceed 1",
    ),
    "an input that cannot be stored": (
        "unreachable", lambda path, _: last(x=object(), offline="queue", outbox=Outbox(path / "outbox.db")),
        UNSURE + f"cloud failed: away; {STANDS}; not stored: an input of this kind cannot be stored",
    ),
    "being stored": (
        "unreachable", being_queued, UNSURE + f"cloud failed: away; {STANDS}; being stored",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTED)
def test_of_a_router(name, tmp_path, monkeypatch):
    """By its own parts: what it may not ask, what has no score, and what is noted afterwards."""
    code, situation, text = ROUTED[name]
    answer = situation(tmp_path, monkeypatch)
    assert (answer.reason_code, plain(answer.reason.replace(str(tmp_path), "FOLDER"))) == (code, text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"offline": "raise"}, f"no answer was accepted: {UNSURE}cloud failed: away"),
        ({"edge": failing, "mode": "prefer_edge"}, "no answer: edge failed: ValueError; cloud failed: away"),
    ],
)
def test_of_what_is_raised(options, text):
    """Where there is no answer to be given, the error has the reason."""
    with pytest.raises(NoAnswer) as raised:
        last(**options)
    assert str(raised.value) == text


def test_of_a_deadline_with_nothing():
    """Nobody has answered."""
    gate = threading.Event()
    with Router(lambda _: gate.wait(LONG), threshold=None, deadline=0.05) as router:
        with pytest.raises(DeadlineExceeded) as raised:
            router.infer(1)
        gate.set()
    assert str(raised.value) == "no answer: edge not there by the deadline of 50 ms"


def test_of_an_edge_whose_runs_are_all_taken():
    """The cloud gets the rest of the deadline."""
    gate, began = threading.Event(), threading.Event()

    def run(x):
        began.set()
        gate.wait(LONG)
        return "edge", 0.9

    with Router(CallableModel(run, parallel=1), lambda _: "cloud", threshold=0.8) as router:
        thread = threading.Thread(target=router.infer, args=(1,))
        thread.start()
        assert began.wait(LONG)
        answer = router.infer(1, deadline=5.0)
        gate.set()
        thread.join(LONG)
    assert (answer.value, answer.reason.partition(";")[0]) == ("cloud", "the edge 'run' was busy: it takes 1 at a time")


# ------------------------------------------------------------------------------------------------- of what was said before
class Clock:
    """A time of day that stands still."""

    def __init__(self):
        self.at = 1_800_000_000.0

    def __call__(self):
        """The time."""
        return self.at


@pytest.fixture
def clock(monkeypatch):
    """The time of day, for the router as for its cache."""
    clock = Clock()
    monkeypatch.setattr("edgeroute.system.wall_clock.now", clock)
    return clock


def kept(clock, later_s, cloud=sure, *, x=1, again=1, offline="edge", **cache):
    """The answer to an input once more, so many seconds later."""
    with Router(unsure, cloud, threshold=0.5, cache=Cache(clock=clock, **cache), offline=offline) as router:
        router.infer(x)
        clock.at += later_s
        return router.infer(again)


def in_turn(*steps):
    """A cloud that does one thing after the other, and the last of them from then on."""
    left = list(steps)
    return lambda x: left.pop(0)(x) if len(left) > 1 else left[0](x)


def embed(text):
    return np.array([1.0 * (word in text.split()) for word in ("what", "is", "up")])


BEFORE = "edge 0.10 < 0.50 (uncalibrated); cloud N ms"
AGED = {
    "of the cache": ("cached", lambda clock: kept(clock, 9), "cache, 9 s old: " + BEFORE),
    "past its time": (
        "stale", lambda clock: kept(clock, 90, ttl_s=60, stale_while_revalidate_s=60),
        "cache, 90 s old and past its time, being renewed: " + BEFORE,
    ),
    "while the cloud is away": (
        "stale", lambda clock: kept(clock, 300, in_turn(sure, away), offline="stale", ttl_s=60, stale_if_offline_s=600),
        "cache, 300 s old, the cloud is away: " + BEFORE,
    ),
    "of a text like it": (
        "cached", lambda clock: kept(clock, 9, x="what is up", again="up what is", semantic=Semantic(embed, 0.9)),
        "cache, 9 s old, for a text like it (semantic 1.00 >= 0.9): " + BEFORE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AGED)
def test_of_an_answer_that_was_given_before(name, clock):
    """Its age comes first, and then why it was given."""
    code, situation, text = AGED[name]
    answer = situation(clock)
    assert (answer.reason_code, re.sub(r"\d+ ms", "N ms", answer.reason)) == (code, text)


def test_of_an_answer_that_is_shared():
    """Two equal requests at a time are asked once."""
    with GatedServer(GOOD) as server, Threads(unsure, PlainJson(server.url), threshold=0.5, cache=Cache()) as router:
        first = router.start(1)
        server.wait_for(lambda: server.requests)
        join, joined = router.engine.caching.flights.join, threading.Event()
        router.engine.caching.flights.join = lambda key, **how: (join(key, **how), joined.set())[0]
        second = router.start(1)
        assert joined.wait(LONG)
        server.open()
        leader, answer = first.result(LONG), second.result(LONG)
    assert (answer.reason_code, answer.reason) == ("cached", f"shared with {leader.id}: {leader.reason}")


@pytest.mark.parametrize(("value", "note"), [("cloud", "it corrects that"), ("edge", "it agrees with the provisional answer")])
def test_of_a_provisional_answer(value, note):
    """And of the one that follows it."""
    with Router(unsure, lambda _: (value, 0.9), threshold=0.5) as router:
        shown, answer = router.refine(1)
    assert (shown.reason_code, shown.reason) == ("below", "edge 0.10 < 0.50 (uncalibrated); provisional")
    assert (answer.reason_code, plain(answer.reason)) == ("below", f"{BEFORE}; {note}")


def test_of_an_answer_that_came_too_late(clock):
    """It is cached for the next request."""
    gate, cache = threading.Event(), Cache(clock=clock)
    stored, put = threading.Event(), cache.put
    cache.put = lambda *args: (put(*args), stored.set())
    with Router(unsure, lambda _: gate.wait(LONG) and "cloud", threshold=0.5, deadline=0.2, cache=cache) as router:
        assert router.infer(1).reason_code == "deadline"
        gate.set()
        assert stored.wait(LONG)
        answer = router.infer(1)
    assert (answer.reason_code, answer.reason) == ("cached", "cache, 0 s old: it came after its request's deadline")


# ------------------------------------------------------------------------------------------------------- what stays at home
def test_of_a_conversation_that_stays():
    """By its own words, and where it is not known which have to."""
    egress = Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")
    with Router(lambda _: ("A long and sensible answer", 0.1), sure, threshold=0.5, egress=egress) as router:
        said = [{"role": "user", "content": "My test was positive, what now?"}]
        router.infer(said, data_class="medical")
        answer = router.infer([*said, {"role": "user", "content": "And then?"}])
    why = "edge 0.10 < 0.50 (uncalibrated), this conversation had a turn that may not leave"
    assert (answer.reason_code, answer.reason) == ("stays", why)


def test_of_conversations_that_cannot_be_read(tmp_path):
    """All stay then."""
    (tmp_path / "conversations.db").write_text("garbage\n")
    egress = Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")
    with Router(unsure, sure, threshold=0.5, egress=egress, state=tmp_path) as router:
        answer = router.infer([{"role": "user", "content": "What is the capital of France?"}])
    why = "edge 0.10 < 0.50 (uncalibrated), which conversations have to stay cannot be read (what was in conversations.db.corrupt-1 is not known)"
    assert (answer.reason_code, answer.reason) == ("stays", why)


# -------------------------------------------------------------------------------------------------------------- certificates
SCORE = np.linspace(0, 1, 1000)
DAY_S = 86400.0


def promised(edge, cloud, **more):
    """A certificate for these two."""
    with Router(edge, cloud, threshold=0.5) as router:
        return calibrate(SCORE, SCORE > 0.2, **{"max_error": 0.1, "fingerprints": router.fingerprints(), **more})


def one(x):
    return "edge", x


def two(x):
    return "other", x


@pytest.mark.parametrize(
    ("change", "used", "label"),
    [
        ({}, {}, "error <= 10 %, 95 % sure"),
        (
            {"fingerprints": {}},
            {},
            (
                "uncalibrated: it does not say for which edge model it was made; it does not say for which cloud model it was "
                "made; it does not say for which score it was made; it does not say for which payload codec it was made"
            ),
        ),
        ({}, {"edge": two}, "uncalibrated: it was made for edge model THAT, and this is THIS"),
        ({}, {"cloud": lambda x: "another"}, "uncalibrated: it was made for cloud model THAT, and this is THIS"),
        ({}, {"egress": Egress(redact=lambda x, _: x)}, "uncalibrated: it was made for payload codec THAT, and this is THIS"),
        ({"date": "2020-01-01"}, {"certificate_max_age": 30 * DAY_S}, "uncalibrated: it is N days old, and may be 30"),
    ],
)
def test_of_a_certificate(change, used, label):
    """What it promises, and why not."""
    made = promised(one, sure)._replace(**change)
    with Router(**flat(**{"edge": one, "cloud": sure, "threshold": made, **used})) as router:
        answer = router.infer(1.0)
    told = re.sub(r"(edge model|cloud model|payload codec) .*, and this is .*\)$", r"\1 THAT, and this is THIS)", answer.reason)
    told = re.sub(r"is \d+ days", "is N days", told)
    assert (answer.reason_code, told) == ("confident", f"edge 1.00 >= {made.threshold:.2f} ({label})")


@pytest.mark.parametrize(("confidence", "shown"), [(0.994, "0.99"), (0.9996, "0.9996"), (1 - 1e-9, "0.999999"), (1.0, "1.00")])
def test_what_is_less_than_1_is_not_shown_as_1(confidence, shown):
    """In reasons and in what `decide` says, of confidences and thresholds."""
    with Router(lambda _: ("edge", confidence), sure, threshold=0.8) as router:
        assert router.infer(1.0).reason == f"edge {shown} >= 0.80 (uncalibrated)"
    with Router(lambda _: ("edge", confidence), sure, threshold=confidence) as router:
        assert router.decide(1.0).steps[1:] == (
            f"edge first; accepted from confidence {shown} on (uncalibrated)",
            "cloud if edge does not settle it; its answer is accepted",
            f"=> edge {shown} >= {shown} (uncalibrated)",
        )


def test_of_a_model_without_a_version():
    """What to write, and that a certificate made before that is to be made again."""

    class Holds:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, x):
            return "edge", x

    edge = CallableModel(Holds(), name="edge")
    made = promised(edge, sure)
    with Router(edge, sure, threshold=made) as router:
        assert router.infer(1.0).reason == (
            f"edge 1.00 >= {made.threshold:.2f} (uncalibrated: the edge model cannot be identified: give version=, "
            'as in CallableModel(f, version="1"))'
        )
    with Router(CallableModel(Holds(), name="edge", version="1"), sure, threshold=made) as router:
        assert router.infer(1.0).reason == (
            f"edge 1.00 >= {made.threshold:.2f} (uncalibrated: the edge model had no version= then, as in "
            'CallableModel(f, version="1"): calibrate again)'
        )


def test_of_a_drift_alarm():
    """Its date and evidence stand in place of the guarantee."""
    made = promised(one, one, max_error=None, max_loss=0.05, fingerprints={"edge": "x"})
    with Router(one, two, threshold=made, audit=Audit(share=1, scene=1)) as router:
        for i in range(400):
            router.infer(0.5 + i % 50 / 100)
            end = monotonic() + LONG
            while router.engine.auditor.jobs.busy:
                assert monotonic() < end
            if router.stats().audits[0].alarm:
                break
        answer = router.infer(0.9)
    assert plain(answer.reason) == (
        f"edge 0.90 >= {made.threshold:.2f} (uncalibrated: drift alarm of DATE: "
        "of the last 5 audited answers 5 differ from the cloud's, and at most 5.97 % should)"
    )


# ---------------------------------------------------------------------------------------------------------------- the rule
ELSEWHERE = {
    "cached", "stale",  # of an answer without a plan: above, by other tables
    "left", "faster",  # above, by tests of their own
    "error", "held",  # of what is raised, and of an error of one's own: no answer has them
    "concurrency",  # of an endpoint of which it is not known whether it is well: by test_load_aware.py
}  # fmt: skip


def test_each_code_has_its_words():
    """A new code is to be put beside its reason, above."""
    found = {row[0] for row in (*WALKS.values(), *ROUTED.values())}
    assert found | ELSEWHERE == CODES
    assert not found & ELSEWHERE


TESTS = Path(__file__).parent
ALLOWED: dict[str, str] = {}
"""Files that may compare a reason with a text, each with why."""
COMPARES = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
ASKS = {"startswith", "endswith", "count", "index", "find", "partition", "rpartition", "split", "removeprefix", "removesuffix"}
SEARCHES = {"search", "match", "fullmatch", "findall"}
WORD = re.compile(r"\W*[\w.-]*\W*|[\d.<>= %s]*")
NAMED = re.compile(r"""\.reason\b|["'](x-edgeroute-)?reason["']""")  # a file without one has no reason, and is not parsed


def is_reason(node, names):
    """Whether it is a reason: an attribute or a key of that name, what is made of one, or a name that stands for one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr == "reason":
            return True
        if isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant):
            if str(part.slice.value) in {"reason", "x-edgeroute-reason"}:
                return True
        elif (isinstance(part, ast.Name) and part.id in names) or (
            isinstance(part, ast.Call) and ast.unparse(part.func) == "explain.reason"
        ):
            return True
    return False


def texts(nodes, constants):
    """The texts in these expressions, also those of the module's own constants."""
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value
            elif isinstance(part, ast.Name) and part.id in constants:
                yield constants[part.id]


def wordings(tree):
    """Lines on which a reason is compared with a text of more than a word or numbers."""
    constants = {
        to.id: node.value.value
        for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for to in node.targets if isinstance(to, ast.Name) and isinstance(node.value.value, str)
    }  # fmt: skip
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not is_reason(function, ()):
            continue
        names = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.NamedExpr) and isinstance(
                node.value, ast.Attribute | ast.ListComp | ast.Subscript
            ):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if is_reason(node.value, names):
                    names |= {to.id for to in targets if isinstance(to, ast.Name)}
        for node in ast.walk(function):
            against = []
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], COMPARES):
                sides = [
                    part
                    for side in (node.left, *node.comparators)
                    for part in (side.elts if isinstance(side, ast.Tuple) else [side])
                ]
                if any(is_reason(side, names) for side in sides):
                    against = [side for side in sides if not is_reason(side, names)]
                    against = [side for side in against if len(sides) == 2 or not isinstance(side, ast.Name)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ASKS and is_reason(node.func.value, names):
                    against = node.args
                elif node.func.attr in SEARCHES and any(is_reason(one, names) for one in node.args):
                    yield node.lineno  # a pattern has words, wherever it comes from
            if any(not WORD.fullmatch(text) for text in texts(against, constants)):
                yield node.lineno


@pytest.mark.slow  # `make check` runs it
def test_no_other_test_has_the_words():
    """They assert codes and facts (`routes`); of a reason itself no more than a word or numbers."""
    found = {
        f"{path.relative_to(TESTS.parent).as_posix().removeprefix('tests/')}:{line}"
        for path in (*TESTS.rglob("*.py"), *TESTS.parent.glob("examples/*/test_*.py")) if path != Path(__file__)
        for text in [path.read_text(encoding="utf-8")] if NAMED.search(text)
        for line in wordings(ast.parse(text))
    }  # fmt: skip
    assert {where for where in found if where.rpartition(":")[0] not in ALLOWED} == set()
    assert {where.rpartition(":")[0] for where in found} >= set(ALLOWED)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ('assert answer.reason == "edge 0.90 >= 0.80"', True),
        ('assert "so the edge answer stands" in answer.reason', True),
        ('assert answer.reason.endswith("edge answer stands")', True),
        ("assert re.search(why, answer.reason)", True),
        ('said = answer.reason\n    assert "the edge answer" in said', True),
        ('assert reply["reason"] == "no thread is free"', True),
        ('assert (answer.source, answer.reason) == ("edge", "no thread is free")', True),
        ("assert LATE in answer.reason", True),
        ('assert explain.reason(a, b) == "no thread is free"', True),
        ('assert "0.90 >= 0.80" in answer.reason', False),
        ('assert "medical" in answer.reason', False),
        ("assert leader.id in answer.reason", False),
        ('assert answer.reason_code == "below"', False),
    ],
)  # fmt: skip
def test_the_rule_finds(line, caught):
    """What it is to find, and leaves what is a fact."""
    tree = ast.parse(f'LATE = "by the deadline of"\ndef test():\n    {line}\n')
    assert bool([*wordings(tree)]) is caught
