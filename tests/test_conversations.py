"""Conversations: what each side sees of them, and those that stay on the device once a turn had to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import unicodedata
from datetime import date
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import quote, quote_plus

import numpy as np
import pytest
from both import CALLS, LONG, Tasks, Threads, ask, wait_for
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import AsyncRouter, BadInput, Egress, MayNotLeave, PolicyError, Router, StoreError
from edgeroute.router import message_forms_and_digests as conversation_digests
from edgeroute.router import private_conversations_and_digest_store as private_conversations
from edgeroute.router.message_forms_and_digests import (
    MOST_COMPARED,
    MOST_LEAVES,
    MOST_LETTERS,
    answer_digests,
    bound_digests,
    looked_up,
    read_conversation,
    text_digest,
)
from edgeroute.router.private_conversations_and_digest_store import DAYS, UNKNOWN, WHY, Digests, within
from edgeroute.stores import sqlite_file_and_key_values
from edgeroute.stores.sqlite_file_and_key_values import Database

EGRESS = {"never_leave": ["medical"], "may_leave": ["chat"], "default_class": "chat"}
SECRET = "My test for diabetes was positive, what should I eat?"


class Point(NamedTuple):
    """A row of a table."""

    n: int
    x: float


def user(text):
    return {"role": "user", "content": text}


def stays(answer):
    """Whether an answer was given here as its conversation had such a turn."""
    return answer.reason_code == "stays" and answer.trace["stays"] == WHY


def assistant(text):
    return {"role": "assistant", "content": text}


def item(kind, **fields):
    """An item of a request of OpenAI's."""
    return {"type": kind, **fields}


def text(said):
    return {"type": "text", "text": said}


@pytest.fixture(params=[Threads, Tasks])
def made(request):
    """Makes routers with an edge that is never sure, and a cloud that remembers what it was sent."""
    routers = []

    def make(**options):
        sent = []

        def edge(x):
            last = x[-1].get("content") if isinstance(x, list) and x and isinstance(x[-1], dict) else "?"
            return f"The edge's answer, which is long enough, to: {last}", 0.1

        def cloud(x):
            sent.append(x)
            return "the cloud's"

        router = request.param(edge, cloud, threshold=0.5, **{"egress": Egress(**EGRESS), **options})
        routers.append(router)
        router.sent = sent
        return router

    yield make
    for router in routers:
        router.close()


def test_the_cloud_sees_turns_that_the_edge_answered(made):
    """The history is the list of messages."""
    router = made()
    history = [user("Hello there, edge")]
    history += [assistant(router.infer(history, mode="prefer_edge", deadline=None, data_class=None).value)]
    history = [user("one"), assistant("answered on the device"), user("two")]
    router.infer(history)
    assert router.sent[-1] == history


@pytest.mark.parametrize("call", CALLS)
def test_a_conversation_with_such_a_turn_stays(made, call):
    """Whichever way it is asked, by the data class of one turn alone, though the later ones name none."""
    router = made()
    history = [user(SECRET)]
    answer = ask(router, call, history, data_class="medical")
    assert answer.source == "edge"
    history += [assistant(answer.value), user("And what not?")]
    later = ask(router, call, history)
    assert (later.source, router.sent) == ("edge", [])
    assert stays(later)
    history += [assistant(later.value), user("Thanks")]
    assert ask(router, call, history, data_class="chat").source == "edge", "nor does another class free it"
    assert ask(router, call, [user("What is the capital of France?")]).source == "cloud", "others leave"
    assert len(router.sent) == 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", [{"data_class": "medical"}, {"mode": "only_edge"}], ids=["class", "mode"])
def test_a_text_that_stays_without_rules_binds(made, call, given):
    """A class that nobody has declared stays, whichever way its text is asked about, and so do the messages with it."""
    router = made(egress=Egress())
    ask(router, call, SECRET, **given)
    assert stays(router.infer([user(SECRET), assistant("so"), user("next")]))
    assert router.sent == []


def test_an_example_that_stays_is_not_measured_with(made):
    """Calibration and evaluation send nothing of a conversation that has to stay; of others they do."""
    router, other = made(), [user("What is the capital of France?")]
    router.infer([user(SECRET)], data_class="medical")
    for measure in (partial(router.calibrate, max_loss=0.5), router.evaluate):
        with pytest.raises(MayNotLeave, match=WHY):
            measure([other, [user(SECRET), assistant("so"), user("next")]] * 5, ["the cloud's"] * 10)
    assert router.sent == []
    router.evaluate([other] * 10, ["the cloud's"] * 10)
    assert router.sent == [other] * 10


@pytest.mark.parametrize(
    "resent",
    [
        lambda said, answer: [user(said), assistant(answer), user("next")],
        lambda said, answer: {"messages": [user(said), assistant(answer), user("next")], "temperature": 0},
        lambda said, answer: ({"role": "system", "content": "Be brief."}, user(said), assistant(answer), user("next")),
        lambda said, answer: [user("earlier"), assistant("so"), user(said), user("next")],
        lambda said, answer: [assistant(answer), user("next")],
        lambda said, answer: [user(f"  {said}\n".replace(" ", "  ")), user("next")],
        lambda said, answer: [{"role": "user", "content": [{"type": "text", "text": said}]}, user("next")],
        lambda said, answer: [{"role": "user", "content": [text(said), text("And at night?")]}],
        lambda said, answer: [{"role": "user", "content": [text("Context"), text(answer)]}, user("next")],
        lambda said, answer: [{"role": "system", "content": said}, user("next")],
        lambda said, answer: [{"role": "developer", "content": [text("Earlier:"), text(said)]}, user("next")],
        lambda said, answer: [SimpleNamespace(role="user", content=said), SimpleNamespace(role="user", content="next")],
        lambda said, answer: [said, answer, "next"],
        lambda said, answer: {"previous_response_id": "r", "input": [item("function_call_output", call_id="c", output=said)]},
        lambda said, answer: {"input": [SimpleNamespace(type="local_shell_call_output", id="s", output=said)]},
        lambda said, answer: {"input": [item("reasoning", id="r", summary=[item("summary_text", text=said)])]},
        lambda said, answer: [item("function_call", call_id="c", name="note", arguments=json.dumps({"what": said}))],
        lambda said, answer: [{"role": f"user: {said}", "content": "next"}],
        lambda said, answer: [{"role": "user", "id": said, "content": "next"}],
        lambda said, answer: [{"role": "user", "content": "next", said: None}],
        lambda said, answer: {"inputs": {"past_user_inputs": [said], "generated_responses": [answer], "text": "next"}},
    ],
)
def test_however_its_client_sends_it_again(resent):
    """As a request, with or without a system's message or in one, cut at its beginning, with other white space, or as parts.

    Or as items without a role, which are alone where the server has the rest.
    """
    sent = []
    with Router(lambda _: ("An answer that is long enough to be recognised", 0.1), sent.append, threshold=0.5,
                egress=Egress(**EGRESS)) as router:  # fmt: skip
        answer = router.infer([{"role": "system", "content": "You are helpful."}, user(SECRET)], data_class="medical")
        assert stays(router.infer(resent(SECRET, answer.value)))
        assert sent == []


def test_an_error_of_a_tool(made):
    """Binds also without the word before it; one that has left before binds neither with it nor without."""
    router, common = made(), "Error: the file was not found in this folder"

    def result(text):
        return {"role": "tool", "tool_call_id": "c", "content": text}

    router.infer([user("hi"), result(common)])
    router.infer([user("hi"), result(common), result(f"Error: {SECRET}")], data_class="medical")
    assert stays(router.infer([user(SECRET)]))
    assert stays(router.infer([user("ho"), result(f"Error: {SECRET}")]))
    assert [router.infer([user("ho"), result(text)]).source for text in (common, common[7:])] == ["cloud"] * 2


def test_marks_without_end(made):
    """Many combining marks in a row are read at once, and however many there are, the text is recognised."""
    router = made()
    router.infer([user(SECRET + "\u0301\u0323" * 50_000)], data_class="medical")
    assert stays(router.infer([user(SECRET + "\u0301\u0323" * 60_000), assistant("so"), user("next")]))


def test_each_part_of_a_message_is_recognised(made):
    """Of one with an image its text, which programs send without it later on; and the image, beside another text."""
    router = made()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    router.infer([{"role": "user", "content": [text("Is this mole dangerous?"), image]}], data_class="medical")
    assert router.infer([user("Is this mole dangerous?"), assistant("No"), user("So?")]).source == "edge"
    assert router.infer([{"role": "user", "content": [text("Whose is it?"), image]}]).source == "edge"
    assert router.infer([{"role": "user", "content": [text("What is a mole?"), text("And a birthmark?")]}]).source == "cloud"


def test_a_call_for_the_edge_alone_binds_too(made):
    """`only_edge`, by the call; and a text that was such a call."""
    router = made()
    router.infer([user("This is between us, please")], mode="only_edge")
    assert router.infer([user("This is between us, please"), assistant("Yes"), user("So?")]).source == "edge"
    router.infer("I live in Baker Street, number 9", data_class="medical")
    assert router.infer([user("I live in Baker Street, number 9"), assistant("I see"), user("So?")]).source == "edge"
    assert router.sent == []


def test_short_turns_are_known_by_what_came_before(made):
    """A PIN of four digits is no text to be recognised by, but the conversation is."""
    router = made()
    history = [user("I have forgotten my PIN"), assistant("What is it?"), user("4711")]
    router.infer(history, data_class="medical")
    assert router.infer([*history, assistant("Thanks"), user("ok")]).source == "edge"
    assert router.infer([user("What is 4700 + 11?"), assistant("4711"), user("4711")]).source == "cloud"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_short_beginning_is_known_too(call, system):
    """Asked again, with its answer, or with another one; however it was asked. Others that are as short leave."""
    sent = []
    router = Threads(lambda _: ("No.", 0.1), lambda x: sent.append(x) or "so", threshold=0.5, egress=Egress(**EGRESS))
    try:
        history = [*system, user("HIV pos")]
        answer = ask(router, call, history, data_class="medical")
        for later in ([], [assistant(answer.value), user("And now?")], [user("And now?")], [assistant("N"), user("And?")]):
            assert stays(ask(router, call, [*history, *later]))
        assert stays(ask(router, call, [user("HIV pos"), assistant("No."), user("And now?")]))
        assert sent == []
        for other in ([user("HIV")], [user("Well?")], [user("What?"), assistant("No."), user("HIV pos")]):
            assert ask(router, call, other).source == "cloud"
    finally:
        router.close()


def test_rows_of_a_table_are_no_conversations(made):
    """A short list of texts may be one as well, and a list with numbers always is."""
    router = made()
    for row in (["cat", "red"], ["a longer text than eight", 0.5]):
        assert router.infer(row, mode="only_edge").source == "edge"
        assert router.infer(row).source == "cloud"
    said = ["What should I eat with diabetes?", "Vegetables."]
    router.infer(said, mode="only_edge")
    assert router.infer([*said, "And drink?"]).source == "edge"


def test_messages_of_a_conversation_that_stays_are_known(made):
    """Those that `router.conversation()` has kept, handed to the router itself; and contents that are mappings."""
    sent = []
    with Router(lambda _: ("ok", 0.1), sent.append, threshold=0.5, egress=Egress(**EGRESS)) as router:
        talk = router.conversation()
        talk.infer("4711", data_class="medical")
        assert stays(router.infer([*talk.messages, user("And?")]))
        assert sent == []
    router = made()
    router.infer([{"role": "user", "content": {"pin": 4711}}], data_class="medical")
    assert router.infer([{"role": "user", "content": {"pin": 4711}}, user("So?")]).source == "edge"
    assert router.infer([{"role": "user", "content": {"pin": 4712}}, user("So?")]).source == "cloud"


def test_what_many_conversations_share_binds_none(made):
    """The system's message, and turns before the one that had to stay."""
    router = made()
    system, first = {"role": "system", "content": "You are a helpful assistant."}, user("Write a poem about the sea")
    router.infer([system, first, assistant("Blue"), user(SECRET)], data_class="medical")
    assert router.infer([system, first]).source == "cloud"
    assert router.infer([system, first, assistant("Blue"), user("Another one")]).source == "cloud"
    assert router.infer([system, first, assistant("Blue"), user(SECRET), assistant("Less"), user("Ok")]).source == "edge"


def test_only_the_cloud_is_asked_of_what_stays(made):
    """It is refused, as by its data class."""
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    with pytest.raises(MayNotLeave, match=WHY):
        router.infer([user(SECRET), assistant("Less sugar"), user("Ok")], mode="only_cloud")


def test_one_row_that_stays_keeps_its_batch(made):
    """They would be asked about together."""
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    rows = [[user("What is the capital of France?")], [user(SECRET), assistant("Less sugar"), user("Ok")]]
    assert [answer.source for answer in router.infer_many(rows)] == ["edge", "edge"]
    assert [answer.source for answer in router.infer_many(rows[:1])] == ["cloud"]


def test_other_inputs_are_no_conversations(made):
    """Numbers, mappings of features, and texts that were never such a call."""
    router = made()
    router.infer("a text of a data class that may not leave", data_class="medical")
    router.infer([1.0, 2.0], data_class="medical")
    for x in (
        [1.0, 2.0],
        {"image": [1]},
        {"inputs": [[1.0]]},
        [item("point", id=7)],
        [],
        "a text of a data class that may not leave",
        ["other words in a list"],
    ):
        assert router.infer(x).source == "cloud", x


def test_a_conversation_keeps_its_messages():
    """Whoever answered; a turn that fails is not part of it, nor one whose stream is left."""
    seen = []

    def edge(messages):
        seen.append(messages)
        yield "a short"
        yield " answer"
        return 0.1 if "hard" in messages[-1]["content"] else 0.9

    def cloud(messages):
        seen.append(messages)
        return "from afar"

    with Router(edge, cloud, threshold=0.5) as router:
        talk = router.conversation("Be brief.")
        assert talk.infer("easy").source == "edge"
        assert talk.infer("hard").source == "cloud"
        with talk.stream("easy again") as stream:
            assert "".join(stream) == "a short answer"
        assert (stream.leg, stream.answer.source) == ("edge", "edge")
        system = {"role": "system", "content": "Be brief."}
        turns_ = [user("easy"), assistant("a short answer"), user("hard"), assistant("from afar")]
        assert talk.messages == [system, *turns_, user("easy again"), assistant("a short answer")]
        assert seen[2] == [system, *turns_[:3]], "the cloud saw what the edge had answered"
        before = talk.messages
        with talk.stream("hard again") as stream:
            next(iter(stream))
        with pytest.raises(BadInput):
            talk.infer(7)
        assert talk.messages == before
        talk.infer({"role": "tool", "tool_call_id": "1", "content": "22 degrees"})
        assert talk.messages[-2]["role"] == "tool"


def test_a_conversation_stays_by_itself():
    """Also where its turns are too short to be recognised."""
    sent = []
    with Router(lambda _: ("ok", 0.1), sent.append, threshold=0.5, egress=Egress(**EGRESS)) as router:
        talk = router.conversation()
        assert talk.infer("4711", data_class="medical").source == "edge"
        assert talk.infer("yes", data_class="chat").source == "edge"
        assert talk.stays
        with talk.stream("no") as stream:
            list(stream)
        assert (stream.answer.source, sent) == ("edge", [])


def test_a_conversation_on_asyncio():
    """The same."""

    async def cloud(messages):
        yield f"{len(messages)} messages"

    async def main():
        async with AsyncRouter(lambda _: ("edge", 0.1), cloud, threshold=0.5, egress=Egress(**EGRESS)) as router:
            talk = router.conversation()
            assert (await talk.infer("one")).value == "1 messages"
            async with talk.stream("two") as stream:
                assert [piece async for piece in stream] == ["3 messages"]
            assert (await talk.infer("three", mode="only_edge")).source == "edge"
            assert (await talk.infer("four")).source == "edge"
            return talk.messages

    said = asyncio.run(main())
    assert [one["content"] for one in said] == ["one", "1 messages", "two", "3 messages", "three", "edge", "four", "edge"]


CHILD = """
import sys
from edgeroute import Egress, Router
from edgeroute.router import private_conversations_and_digest_store as private_conversations
private_conversations.WRITTEN_S = 60  # an answer waits for its digests, half a second at most: a busy disk may take longer
answer = "An answer that is long enough to be recognised"
router = Router(lambda _: (answer, 0.1), lambda _: "cloud", threshold=0.5, state=sys.argv[1],
                egress=Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat"))
said = [{"role": "user", "content": sys.argv[2]}]
print(router.infer(said, data_class=sys.argv[3] or None).source, flush=True)
import os, signal
os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""


def test_it_stays_after_a_kill(tmp_path):
    """Killed as soon as its answer is there; and another process, which had begun before, knows it too."""
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS)) as early:
        assert early.infer([user(SECRET)]).source == "cloud"
        run = subprocess.run([sys.executable, "-c", CHILD, tmp_path, SECRET, "medical"], stdout=subprocess.PIPE, check=False)
        assert run.stdout.strip() == b"edge"
        assert early.infer([user(SECRET), assistant("so"), user("next")]).source == "edge"
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS)) as router:
        history = [assistant("An answer that is long enough to be recognised"), user("next")]
        wait_for(lambda: stays(router.infer(history)))  # a busy disk has another reason
        wait_for(lambda: stays(router.infer([user(SECRET), assistant("so"), user("next")])))
        wait_for(lambda: router.infer([user("What is the capital of France?")]).source == "cloud")
    assert not any(b"diabetes" in path.read_bytes() for path in tmp_path.glob("conversations.db*"))
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "conversations.db").stat().st_mode) == 0o600


def test_a_file_that_cannot_be_read_keeps_all_conversations(tmp_path, caplog):
    """It is not known which may leave; other inputs do. Once it can be read they do, too."""
    (tmp_path / "conversations.db").write_text("garbage\n")
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS)) as router:
        answer = router.infer([user("What is the capital of France?")])
        assert (answer.source, answer.reason_code) == ("edge", "stays")
        assert answer.trace["stays"] != WHY
        assert "all conversations stay" in caplog.text
        assert router.infer("a text").source == "cloud"
        (tmp_path / "conversations.db.corrupt-1").unlink()
        assert router.infer([user("What is the capital of Spain?")]).source == "cloud"


@contextlib.contextmanager
def full(_):
    """A transaction on a disk that is full."""
    raise StoreError("No space left on device")
    yield


def test_a_file_that_cannot_be_written_costs_no_answer(tmp_path, monkeypatch, caplog):
    """This process knows it all the same."""
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS)) as router:
        monkeypatch.setattr(Database, "transaction", full)
        for _ in range(2):
            assert router.infer([user(SECRET)], data_class="medical").source == "edge"
        assert router.infer([user(SECRET), assistant("so"), user("next")]).source == "edge"
    assert caplog.text.count("cannot be written: which conversations") == 1


def test_what_is_in_the_file_is_known_to_another(tmp_path):
    """Under its key, which the file has."""
    path = tmp_path / "d.db"
    one, other = Digests(path), Digests(path)
    one.add([text_digest(b"mine")])
    other.add([text_digest(b"other")])
    again = Digests(path)
    assert text_digest(b"mine") in again
    assert text_digest(b"other") in one
    assert text_digest(b"none") not in again


def test_what_is_remembered_again_stays_remembered(tmp_path):
    """In memory, and once in the file."""
    path = tmp_path / "d.db"
    one = Digests(path)
    mine = text_digest(b"mine")
    for _ in range(3):
        one.add([mine])
        assert mine in one
    assert Database(path, "", durable=False).read("SELECT count(*) FROM digests", ()) == [(1,)]


def test_a_clock_that_was_never_set_forgets_nothing(tmp_path, monkeypatch):
    """A device without a battery begins in 1970: what it stores then counts once its clock is set, and is not deleted."""
    path, mine = tmp_path / "d.db", text_digest(b"mine")
    monkeypatch.setattr(private_conversations, "now", lambda: 300.0)
    one = Digests(path)
    one.add([mine])
    assert mine in one
    monkeypatch.undo()
    assert mine in Digests(path)
    Digests(path).add([text_digest(b"other")])
    assert mine in Digests(path)


def test_the_oldest_are_forgotten_first(tmp_path, monkeypatch):
    """There are limits of number and of age, in memory and in the file."""
    monkeypatch.setattr(private_conversations, "MOST", 10)
    path = tmp_path / "d.db"
    one = Digests(path)
    all_ = [text_digest(b"%d" % n) for n in range(60)]
    for digest in all_:
        one.add([digest])
    assert [digest in one for digest in all_] == [False] * 50 + [True] * 10
    again = Digests(path)
    assert [digest in again for digest in all_] == [False] * 50 + [True] * 10
    assert all_[-1] in Digests(path)
    monkeypatch.setattr(private_conversations, "now", lambda: 86400.0 * 40_000)
    assert all_[-1] not in Digests(path)


messages = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "tool", "system"]), st.text(max_size=60)).map(
        lambda m: {"role": m[0], "content": m[1]}
    ),
    max_size=8,
)


@given(messages, messages)
def test_a_continued_conversation_is_recognised(said, more):
    """By all of it, if anything is said in it, wherever system's messages are put."""
    conversation = read_conversation(said)
    if conversation is not None and conversation.spoken:
        known = set(bound_digests(conversation))
        assert known & set(looked_up(read_conversation([*said, *more])))
        assert known & set(looked_up(read_conversation([{"role": "system", "content": "new"}, *said, *more])))


def test_what_could_not_be_written_is_written_with_the_next(tmp_path, monkeypatch):
    """A disk that was full for a moment: nothing is forgotten once others' digests are read."""
    path = tmp_path / "d.db"
    one = Digests(path)
    mine, other = text_digest(b"mine"), text_digest(b"other")
    with monkeypatch.context() as broken:
        broken.setattr(Database, "transaction", full)
        one.add([mine])
    Digests(path).add([other])
    assert one.refreshed()
    assert mine in one
    assert other in one
    one.add([text_digest(b"third")])
    assert mine in Digests(path)


def test_what_a_rule_keeps_here_for_a_while_binds_nothing(tmp_path):
    """A stale answer of a conversation is renewed by the plan's mode, for which nobody has asked."""
    said = [user("A question that is long enough")]
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS)) as router:
        engine = router.engine
        made = engine.request(said, None, None, None)
        home = made._replace(plan=made.plan._replace(mode="only_edge", legs=made.plan.legs[:1]))
        assert engine.revalidation_request(home).plan.mode == "only_edge"
        assert router.infer(said).source == "cloud"


def test_odd_parts_and_data_classes(made):
    """A part without a text is its content; a data class that is none is told."""
    image = {"type": "image_url", "text": None, "image_url": {"url": "data:image/png;base64,AAAA"}}
    router = made()
    assert ask(router, "infer", [{"role": "user", "content": [text("look"), image]}], data_class="medical").source == "edge"
    assert ask(router, "infer", [{"role": "user", "content": [image]}]).source == "edge"
    with pytest.raises(PolicyError, match="data_class"):
        ask(router, "infer", [user("A question that is long enough")], data_class=["medical"])


HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(path, statement="BEGIN EXCLUSIVE"):
    """Another process that holds the lock of a file."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path, statement], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"held"
        yield
    finally:
        holder.communicate()


@pytest.fixture(autouse=True)
def patient(request, monkeypatch):
    """Who reads the file waits for a slow disk, as where another thread is just creating it; but not where it is locked for good."""
    for name in ("PATIENCE_S", "LOCKED_S") if "long_waits" not in request.fixturenames else ():
        monkeypatch.setattr(private_conversations, name, LONG)


@pytest.fixture
def long_waits(monkeypatch):
    """Who waits for a lock waits very long."""
    monkeypatch.setattr(private_conversations, "BUSY_S", 3 * LONG)
    for name in ("BUSY_S", "READ_BUSY_S"):
        monkeypatch.setattr(sqlite_file_and_key_values, name, 3 * LONG)


@pytest.mark.usefixtures("long_waits")
def test_a_lock_of_another_process_delays_no_answer(tmp_path):
    """What has to stay is known in memory, and is written once the file is free; another process then knows it."""
    options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
    path = tmp_path / "conversations.db"
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user("A first turn that creates the file")], data_class="medical")
        with locked(path):
            begun = time.monotonic()
            for n in range(5):
                assert router.infer([user(f"{SECRET} {n}")], data_class="medical").source == "edge"
            assert time.monotonic() - begun < LONG
            assert stays(router.infer([user(f"{SECRET} 4"), assistant("so"), user("next")]))
            assert router.infer([user("What is the capital of France?")]).source == "cloud"
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        assert stays(router.infer([user(f"{SECRET} 4"), assistant("so"), user("next")]))


def test_what_a_lock_kept_from_the_file_is_written_by_a_later_call(tmp_path, monkeypatch, caplog):
    """Also by one that may leave, so that another process knows the conversation."""
    monkeypatch.setattr(private_conversations, "BUSY_S", 0.01)
    options = {"threshold": 0.5, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as first:
        first.infer([user("A first turn that creates the file")], data_class="medical")
        with locked(tmp_path / "conversations.db", "BEGIN IMMEDIATE"):
            first.infer([user(SECRET)], data_class="medical")
            wait_for(lambda: "cannot be written" in caplog.text)
        with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as other:

            def known():
                first.infer([user("What is the capital of France?")])
                return stays(other.infer([user(SECRET), assistant("so"), user("next")]))

            wait_for(known)


@pytest.mark.parametrize("how", ["written", "deleted"])
def test_what_cannot_be_written_keeps_the_conversations_of_others(tmp_path, monkeypatch, caplog, how):
    """All of them, as they do not know which; also after the process has ended that knows it. Until it is written, or forgotten."""
    monkeypatch.setattr(private_conversations, "BUSY_S", 0.01)
    public, private = [user("What is the capital of France?")], [user(SECRET), assistant("so"), user("next")]
    make = partial(Router, lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS))
    with make() as other:
        other.infer([user("A first turn that creates the file")], data_class="medical")
        with make() as first:
            with monkeypatch.context() as broken:
                broken.setattr(Database, "transaction", full)
                assert first.infer([user(SECRET)], data_class="medical").source == "edge"
                wait_for(lambda: "cannot be written: which conversations" in caplog.text)
                assert first.infer(public).source == "cloud"
                assert stays(first.infer(private))
                for said in (public, private):
                    answer = other.infer(said)
                    assert (answer.source, answer.reason_code) == ("edge", "stays")
                if how == "deleted":
                    first.close()
                    assert "digests are not written as it is closed" in caplog.text
            if how == "written":
                wait_for(lambda: (first.infer(public), other.infer(public).source)[1] == "cloud")
                assert stays(other.infer(private))
    assert [*tmp_path.glob("conversations.db.*")] == ([] if how == "written" else [*tmp_path.glob("*.unwritten-*")])
    with make() as later:
        assert later.infer(private).source == "edge"
        for sign in tmp_path.glob("*.unwritten-*"):
            assert later.infer(public).source == "edge"
            sign.unlink()
        assert later.infer(public).source == "cloud"


@pytest.mark.parametrize("name", ["unwritten-0123456789ab", "corrupt-1"])
def test_what_others_lost_is_forgotten_with_what_it_stands_for(tmp_path, monkeypatch, name):
    """After 90 days the digests would have expired, too: the sign is deleted, and a damaged file stays as it is."""
    public, lost = [user("What is the capital of France?")], tmp_path / f"conversations.db.{name}"
    make = partial(Router, lambda _: ("edge", 0.1), lambda _: "cloud", threshold=0.5, state=tmp_path, egress=Egress(**EGRESS))
    with make() as router:
        router.infer([user("A first turn that creates the file")], data_class="medical")
    lost.touch()
    at = lost.stat().st_mtime
    for days, source in ((0, "edge"), (DAYS, "edge"), (DAYS + 1, "cloud")):
        monkeypatch.setattr(private_conversations, "now", lambda days=days: at + days * 86_400)
        with make() as router:
            router.infer([user(f"A turn of day {days}")], data_class="medical")
            assert router.infer(public).source == source
    assert lost.exists() is name.startswith("corrupt")


def test_what_a_thread_still_writes_at_the_end(tmp_path, monkeypatch):
    """Counts as not written until it is: others keep all conversations."""
    path, mine, begun, gate = tmp_path / "d.db", text_digest(b"mine"), threading.Event(), threading.Event()
    real = Database.transaction

    @contextlib.contextmanager
    def slow(self, **given):
        begun.set()
        gate.wait(LONG)
        with real(self, **given) as connection:
            yield connection

    monkeypatch.setattr(private_conversations, "BUSY_S", 0.01)
    one = Digests(path, lambda job: (threading.Thread(target=job).start(), True)[1])
    monkeypatch.setattr(Database, "transaction", slow)
    one.add([mine])
    assert begun.wait(LONG)
    one.close()
    assert Digests(path).blind
    gate.set()
    wait_for(lambda: mine in Digests(path) and not Digests(path).blind)


@pytest.mark.usefixtures("long_waits")
def test_a_lock_of_another_process_stops_no_event_loop(tmp_path):
    """Calls that stay and others, on one loop."""

    async def main():
        options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
        async with AsyncRouter(lambda _: ("edge", 0.9), None, **options) as router:
            await router.infer([user(SECRET)], data_class="medical")
            with locked(tmp_path / "conversations.db"):
                beats = [time.monotonic()]

                async def beat():
                    while True:
                        await asyncio.sleep(0.005)
                        beats.append(time.monotonic())

                task = asyncio.ensure_future(beat())
                calls = [router.infer([user(f"{SECRET} {n}")], data_class="medical") for n in range(20)]
                answers = await asyncio.gather(*calls, *(router.infer(n, data_class="chat") for n in range(20)))
                task.cancel()
            return {answer.source for answer in answers}, max(b - a for a, b in itertools.pairwise(beats))

    sources, pause = asyncio.run(main())
    assert sources == {"edge"}
    assert pause < LONG


@pytest.mark.usefixtures("long_waits")
def test_a_lock_that_no_reader_passes_keeps_conversations(tmp_path):
    """It is not known which of them may leave, and nobody waits to learn it."""
    options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user("A first turn that creates the file")], data_class="medical")
    holder = sqlite3.connect(tmp_path / "conversations.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    begun = time.monotonic()
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        answer = router.infer([user("What is the capital of France?")])
        assert (answer.source, answer.reason_code) == ("edge", "stays")
        assert time.monotonic() - begun < LONG
        holder.close()
        assert router.infer([user("What is the capital of France?")]).source == "cloud"


def test_a_lock_of_a_moment_keeps_no_conversation(tmp_path, monkeypatch, caplog):
    """As another process has it that opens the file, or closes it last."""
    options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user("A first turn that creates the file")], data_class="medical")
    holder = sqlite3.connect(tmp_path / "conversations.db", isolation_level=None, check_same_thread=False)
    read = Database.read
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")

    def freed(self, *given):
        rows = read(self, *given)
        holder.close()
        return rows

    monkeypatch.setattr(Database, "read", freed)
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        assert router.infer([user("What is the capital of France?")]).source == "cloud"
    assert not caplog.records


def test_a_disk_that_does_not_answer_keeps_conversations(tmp_path, monkeypatch):
    """A call waits a moment, and the next ones do not."""
    options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user(SECRET)], data_class="medical")
        released = threading.Event()
        with monkeypatch.context() as slow:
            slow.setattr(private_conversations, "PATIENCE_S", 0.01)
            read = Database.read
            slow.setattr(Database, "read", lambda self, *given: (released.wait(3 * LONG), read(self, *given))[1])
            for _ in range(3):
                begun = time.monotonic()
                assert router.infer([user("What is the capital of France?")]).reason_code == "stays"
                assert time.monotonic() - begun < LONG
                slow.setattr(private_conversations, "PATIENCE_S", 3 * LONG)
            released.set()
            wait_for(lambda: router.infer([user("What is the capital of France?")]).source == "cloud")


def test_pictures_are_read_up_to_a_bound(made):
    """What reads them takes the edge's time. A conversation with more stays while anything is remembered."""
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    for megabytes, source in ((8, "cloud"), (17, "edge")):
        picture = {"type": "image", "image": b"\xff" * (megabytes << 20)}
        assert router.infer([{"role": "user", "content": [text("What is that?"), picture]}]).source == source


@pytest.mark.parametrize("given", [{"deadline": 1.0}, {}])
def test_a_disk_that_does_not_answer_takes_a_share_of_the_deadline(tmp_path, monkeypatch, given):
    """The call's, or the policy's: the edge has the rest."""
    options = {"threshold": 0.5, "deadline": LONG if given else 1.0, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user(SECRET)], data_class="medical")
        released, read = threading.Event(), Database.read
        with monkeypatch.context() as slow:
            slow.setattr(Database, "read", lambda self, *given: (released.wait(3 * LONG), read(self, *given))[1])
            try:
                assert router.infer([user("What is the capital of France?")], **given).reason_code == "stays"
            finally:
                released.set()


def test_only_what_is_new_in_the_file_is_read(tmp_path, monkeypatch):
    """Other processes add to it before each call."""
    path, rows = tmp_path / "d.db", []
    one, other = Digests(path), Digests(path)
    read = Database.read
    monkeypatch.setattr(Database, "read", lambda self, *given: (found := read(self, *given), rows.append(len(found)))[0])
    for n in range(50):
        other.add([text_digest(b"%d" % n)])
        assert text_digest(b"%d" % n) in one
    assert sum(rows) <= 50 * 4


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    """By an older one, by another, and by none."""
    path, saved = tmp_path / "d.db", tmp_path / "saved.db"
    one = Digests(path)
    one.add([text_digest(b"old")])
    one.close()
    shutil.copy(path, saved)
    one.add([text_digest(b"new")])
    one.close()
    assert text_digest(b"new") in one
    path.unlink()
    shutil.copy(saved, path)
    assert text_digest(b"new") not in one
    assert text_digest(b"old") in one
    another = Digests(tmp_path / "d2.db")
    another.add([text_digest(b"other")])
    another.close()
    (tmp_path / "d2.db").replace(path)
    assert text_digest(b"old") not in one
    path.unlink()
    assert not one.refreshed()


def test_what_public_calls_have_too_binds_none(made):
    """An instruction beside the question, which has left before."""
    router = made()
    instruction = text("Answer the question in at most three sentences.")
    ask(router, "infer", [{"role": "user", "content": [instruction, text("What is the capital of France?")]}])
    router.infer([{"role": "user", "content": [instruction, text(SECRET)]}], data_class="medical")
    assert router.infer([{"role": "user", "content": [instruction, text("What is the capital of Spain?")]}]).source == "cloud"
    assert router.infer([user(SECRET), assistant("so"), user("next")]).source == "edge"


def test_what_merely_stays_binds_by_its_whole(made):
    """Its continuation stays; another conversation with one of its messages leaves."""
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    question = user("What is the capital of France, by the way?")
    assert router.infer([user(SECRET), assistant("No."), question]).source == "edge"
    assert router.infer([user("Hello"), question]).source == "cloud"
    assert router.infer([question]).source == "cloud"


def test_one_call_binds_a_limited_number_of_texts(made):
    """Of thousands of parts; it forgets no other, and a conversation that is too long to compare stays."""
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    many = [text(f"usual phrase number {n}") for n in range(6_000)]
    for _ in range(3):
        router.infer([{"role": "user", "content": many}], data_class="medical")
    left = sum(router.infer([user(f"usual phrase number {n}")]).source == "cloud" for n in range(0, 6_000, 100))
    assert left >= 58
    assert router.infer([user(SECRET), assistant("so"), user("next")]).source == "edge"
    answer = router.infer([{"role": "user", "content": [text(f"another part {n}") for n in range(6_000)]}])
    assert answer.trace["stays"] == UNKNOWN


class Odd:
    """A message whose content cannot be read."""

    role = "user"

    @property
    def content(self):
        """Raises, as of an object whose connection is closed."""
        raise ValueError("not now")


@pytest.mark.parametrize(
    "odd", [[Odd()], {"messages": [{"role": "user", "content": object()}]}, [{"role": "user", "content": print}]]
)
def test_unknown_forms_stay_while_something_has_to(made, odd):
    """What cannot be read cannot be compared."""
    router = made()
    assert router.infer(odd).source == "cloud"
    router.infer([user(SECRET)], data_class="medical")
    answer = router.infer(odd)
    assert (answer.source, answer.trace["stays"]) == ("edge", UNKNOWN)
    assert router.infer(object()).source == "cloud", "no conversation"


class Slots:
    """An object without a `__dict__`, as of attrs or msgspec."""

    __slots__ = ("__turns",)

    def __init__(self, turns):
        self.__turns = turns


FIELDS = [("role", "U9"), ("content", "U90")]
CONTAINERS = {
    "slots": Slots,
    "objects": lambda said: SimpleNamespace(body=SimpleNamespace(turns=said)),
    "items": lambda said: {"call": Slots(said)},
    "texts": lambda said: np.array([m["content"] for m in said]),
    "fields": lambda said: np.array([(m["role"], m["content"]) for m in said], FIELDS),
}


@pytest.mark.parametrize("form", CONTAINERS.values(), ids=CONTAINERS)
def test_objects_and_arrays_that_hold_a_conversation(made, form):
    """Whatever holds the messages, it stays; and what has to stay in such a form is known in another."""
    said = [user(SECRET), assistant("so"), user("next")]
    for begun, goes_on in ([user(SECRET)], form(said)), (form([user(SECRET)]), said):
        router = made()
        router.infer(begun, data_class="medical")
        assert stays(router.infer(goes_on))
        assert router.infer(form([user("What is the capital of France?")])).source == "cloud"


def test_parts_that_occur_often_are_read_once(made):
    """They would be ten thousand million, and more objects than are searched count as unknown."""
    router, part = made(), [[1.0]]
    for _ in range(10):
        part = [part] * 10
    assert router.infer({"rows": part}).source == "cloud"
    router.infer([user(SECRET)], data_class="medical")
    assert router.infer({"rows": part}).source == "cloud"
    many = MOST_LEAVES // 4 + 9
    for lists in ([[n, 0.5] for n in range(many)], [(n, 0.5) for n in range(many)], np.zeros(many, [("x", "f4"), ("n", "i4")])):
        assert router.infer({"points": lists}).source == "cloud", "lists have no attributes"
    series = SimpleNamespace(dtype=SimpleNamespace(fields=["x"]))  # as Polars has it
    assert router.infer({"series": series}).source == "cloud"
    several = [SimpleNamespace(n=n) for n in range(many)]
    assert router.infer(several).trace["stays"] == UNKNOWN


TOO_MANY = range(MOST_LEAVES + 1)
LARGE = {
    "texts": [f"text {n}" for n in TOO_MANY],
    "array of texts": np.array(["text"] * len(TOO_MANY)),
    "objects": np.array([["text"], *[None] * MOST_LEAVES], object),
    "rows": [{"n": n, "note": "text"} for n in TOO_MANY],
    "one text": [[n] for n in TOO_MANY] + [["text"]],
    "one bytes": [[n] for n in TOO_MANY] + [[b"text"]],
    "many small": [[[[n]], [["text"]]] for n in range(MOST_LEAVES // 4)],
    "mapping": {str(n): ["text"] for n in TOO_MANY},
    "beside numbers": {"points": [[n, 0.5] for n in TOO_MANY], "rows": [{"note": "text"} for _ in TOO_MANY]},
    "list with attributes": [SimpleNamespace(n=n) for n in range(MOST_LEAVES // 4)],
}
NUMBERS = {
    "lists": [[n, 0.5] for n in TOO_MANY],
    "mappings": [{"n": n, "at": date(2026, 1, 1), "x": None} for n in TOO_MANY],
    "tuples": [Point(n, 0.5) for n in TOO_MANY],
    "columns": {"n": [*TOO_MANY], "x": [[0.5]] * len(TOO_MANY)},
    "many small": [[[[n], [n]], [[n], [n]]] for n in range(MOST_LEAVES // 4)],
    "NumPy's": [*np.zeros(len(TOO_MANY))],
    "arrays": [np.zeros(2)] * 3 + [[np.zeros(2)] for _ in TOO_MANY],
    "objects": np.array([None, *TOO_MANY], object),
    "beside a text": {"sensor": "A7", "points": [[n, 0.5] for n in TOO_MANY]},
}


@pytest.mark.parametrize("x", LARGE.values(), ids=LARGE)
def test_what_is_too_large_to_be_searched_stays(made, x):
    """While something has to."""
    router = made()
    assert router.infer(x).source == "cloud"
    router.infer([user(SECRET)], data_class="medical")
    assert router.infer(x).trace["stays"] == UNKNOWN


@pytest.mark.parametrize("x", NUMBERS.values(), ids=NUMBERS)
def test_a_large_table_of_numbers_leaves(made, x):
    """It has no texts; nor is it remembered where it had to stay."""
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    router.infer(x, data_class="medical")
    assert router.infer(x).source == "cloud"


def test_no_more_is_read_than_is_compared(made):
    """An array that is too large is not even made a list, and of texts no more are read than are compared."""
    router, read = made(), []
    router.infer([user(SECRET)], data_class="medical")
    array = SimpleNamespace(dtype=np.dtype("U9"), size=MOST_LEAVES + 1, tolist=lambda: read.append(1) or ["text"])
    assert router.infer({"texts": array}).trace["stays"] == UNKNOWN
    assert read == []
    assert router.infer({"texts": np.array(["text"] * (MOST_LEAVES - 9))}).source == "cloud", "each text counts once"
    for texts in (["one text"] * (MOST_LEAVES - 1), [[["one text"]] for _ in range(MOST_LEAVES // 3)]):
        conversation = read_conversation(texts)
        assert conversation.unknown
        assert len(conversation.messages) <= MOST_COMPARED + 1


def test_of_a_large_private_call_as_much_is_remembered_as_can_be_read(made):
    """Its messages come first; a table of texts beside them is too large."""
    router = made()
    table = [{"note": f"text {n}"} for n in TOO_MANY]
    router.infer({"messages": [user(SECRET)], "inputs": table}, data_class="medical")
    assert stays(router.infer([user(SECRET)]))
    assert router.infer([user("What is the capital of France?")]).source == "cloud"


def test_a_call_that_cannot_be_read_costs_no_answer(made, monkeypatch):
    """As if no file could be opened, and the module not be imported: then all conversations stay."""
    router, import_late = made(), private_conversations.import_late

    def too_many(name):
        raise OSError(24, "Too many open files")

    assert router.infer([user("What is the capital of France?")]).source == "cloud"
    monkeypatch.setattr(private_conversations, "import_late", too_many)
    assert router.infer([user(SECRET)], data_class="medical").source == "edge"
    assert router.infer([user(SECRET)]).trace["stays"] == UNKNOWN
    monkeypatch.setattr(private_conversations, "import_late", import_late)
    assert router.infer([user("What is the capital of France?")]).trace["stays"] == UNKNOWN
    assert router.infer("What is the capital of France?").source == "cloud"


def test_unknown_forms_that_had_to_stay_are_remembered(made):
    """Though nothing of them is."""
    router = made()
    router.infer([Odd()], data_class="medical")
    assert router.infer([Odd()]).trace["stays"] == UNKNOWN


def test_a_conversation_in_itself_ends():
    """A list that has itself, and content nested without end."""
    loop = []
    loop.append(loop)
    deep = content = []
    for _ in range(40):
        content.append([])
        content = content[0]
    assert read_conversation(loop) is None, "there is nothing in it"
    loop.append(user(SECRET))
    assert read_conversation(loop).unknown
    assert read_conversation([{"role": "user", "content": deep}]).unknown


@pytest.mark.parametrize(
    ("content", "unknown"),
    [
        ("a" * 64 + "\n" * 200_000 + "!", False),
        ("data:" * 50_000, True),
        ("a." * 4_000_000, True),
        ("data:,a " * 500_000, True),
        ("data:text/plain,a " * 200_000, True),
        ("\\" * 200_000, False),
        ([text("word " * 20_000)] * 3, True),
    ],
    ids=["line breaks", "beginnings of data", "sentences", "data", "data with a type", "backslashes", "parts"],
)
def test_a_long_text_is_read_soon(made, content, unknown):
    """In linear time, and of too long ones only a part: the gateway reads them on its event loop."""
    began = time.thread_time()
    conversation = read_conversation([user(SECRET), user(content)])
    assert time.thread_time() - began < 5.0
    assert conversation.unknown is unknown
    router = made()
    router.infer([user(SECRET)], data_class="medical")
    assert router.infer([user(SECRET), user(content)]).source == "edge"


WIDEST = [letter for letter in map(chr, range(128, sys.maxunicode)) if len(unicodedata.normalize("NFKC", letter)) > 5]


@pytest.mark.parametrize("letters", [*WIDEST, "\\ufdfa", "&#xfdfa;", "%EF%B7%BA", "\u00bc", "\u3225"], ids=ascii)
def test_a_text_grows_to_no_more_letters_than_are_read(monkeypatch, letters):
    """As its letters are normalised, those of most letters in all of Unicode, too, and escaped ones."""
    lengths = []

    def normalize(form, of):
        lengths.append(len(found := unicodedata.normalize(form, of)))
        return found

    monkeypatch.setattr(conversation_digests, "normalize", normalize)
    for number in (100, 2_000, 8_000, 20_000, 40_000, 100_000):
        unknown = read_conversation([user(SECRET), user(f"{letters}a" * number)]).unknown
        assert not unknown or number > 100
    assert unknown
    assert 0 < max(lengths) <= MOST_LETTERS


@pytest.mark.parametrize("said", ["\u6211\u4eec\u5728\u8fd9\u91cc", "\u0645\u0631\u062d\u0628\u0627", "m\u00fc\u00dfte"])
def test_a_long_chat_beyond_ascii_is_compared(made, said):
    """One of some 10,000 characters is recognised, and another one leaves."""
    router = made()
    private, other = ("".join(f"{said} {sign}{n}\uff0c" for n in range(900)) for sign in "ab")
    router.infer([user(private)], data_class="medical")
    assert stays(router.infer([user(private), assistant("so"), user("next")]))
    assert router.infer([user(other), assistant("so"), user("next")]).source == "cloud"


class Related:
    """An object whose related ones are made as they are read, without end, as by a database's mapper."""

    @property
    def conversation(self):
        """Another one."""
        return Related()

    history = input = conversation


class Relations(dict):
    """A mapping of the same kind."""

    def get(self, key, default=None):
        """Return another one under two keys."""
        return Relations() if key in {"conversation", "history"} else default


@pytest.mark.parametrize("form", [Related, Relations])
@pytest.mark.parametrize("whole", [False, True])
def test_objects_that_are_made_as_they_are_read(form, whole):
    """Count, though none is there twice: they would be 3 ** 16."""
    began = time.thread_time()
    assert read_conversation(form(), whole=whole).unknown
    assert time.thread_time() - began < 5.0


DRUGS = ["Metformin", "Lisinopril", "Atorvastatin", "Semaglutide", "Pregabalin", "Sertraline", "Dolutegravir"]
ESCAPED = "Seit Tagen habe ich Übergewicht\nund nehme ab Grünkohl\t\U00020000 zu"
PROSE = "Here is my data: HIV positive since Monday, and what should I eat"
PARAGRAPH = "My sugar was low & I fell. Since then my left hand is numb. Is it <b>diabetes</b>?"
SPELT = {
    "capitals": ("\n".join(DRUGS), "\n".join(DRUGS).upper()),
    "commas": ("\n".join(DRUGS), ", ".join(DRUGS)),
    "a quotation": ("\n".join(DRUGS), "Again:\n" + "\n".join(DRUGS) + "\nWhat is the last for?"),
    "hyphens": (" ".join(DRUGS), "-".join(DRUGS)),
    "lines": ("_".join(DRUGS), "\r\n".join(DRUGS)),
    "JSON": (ESCAPED, json.dumps({"note": ESCAPED})),
    "of JSON": (json.dumps(ESCAPED), ESCAPED),
    "data": (PROSE, PROSE.replace("data: HIV", "data:HIV,")),
    "XML": (PARAGRAPH, f"<turn id='1'><p>{PARAGRAPH.replace('. ', '.</p><p>').replace('low &', 'low &amp;')}</p></turn>"),
    "an attribute of XML": (SECRET, f"<turn role='user' text='{SECRET}'/>"),
    "an address": (SECRET, f"https://example.org/search?q={quote(SECRET)}&lang=en"),
    "a form": (PARAGRAPH, f"said={quote_plus(PARAGRAPH)}&lang=en"),
    "a document": (SECRET, f"data:text/plain;base64,{base64.b64encode(SECRET.encode()).decode()}"),
}


@pytest.mark.parametrize(("private", "later"), SPELT.values(), ids=SPELT)
def test_however_its_words_are_joined(made, private, later):
    """Also where they look like Base64, or a data URL, and as JSON or a file has them."""
    router = made()
    router.infer([user(private)], data_class="medical")
    assert stays(router.infer([user(later)]))
    assert router.infer([user("What is the capital of France?")]).source == "cloud"


class Said:
    """An answer of an application's own class, part of which cannot be read now."""

    def __init__(self, text):
        self.text = text


ADVICE = "You should eat plenty of vegetables, since your medication strains the kidneys"
ARGUMENTS = json.dumps({"diagnosis": "HIV positive since March", "ward": "17 B"})
CALLED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "save", "arguments": ARGUMENTS}}
]}  # fmt: skip
ANSWERED = {
    "dict": ({"text": ADVICE}, assistant(ADVICE)),
    "list": ([ADVICE], assistant(ADVICE)),
    "bytes": (ADVICE.encode(), assistant(ADVICE)),
    "object": (Said(ADVICE), assistant(ADVICE)),
    "a call": ({"choices": [{"message": CALLED}]}, CALLED),
    "thoughts": ({"choices": [{"message": {**assistant("so"), "reasoning_content": ADVICE}}]}, user(ADVICE)),
}


@pytest.mark.parametrize(("answer", "later"), ANSWERED.values(), ids=ANSWERED)
def test_an_answer_of_any_form(answer, later):
    """Is recognised as a text is, with the calls and thoughts of a model."""
    reply = answer if isinstance(answer, dict) and "choices" in answer else None
    found = answer_digests("" if reply else answer, reply)
    assert {*found} & {*looked_up(read_conversation([later]))}
    assert not {*found} & {*looked_up(read_conversation([user("What is the capital of France?")]))}


@pytest.mark.parametrize("answer", [np.zeros(3), Odd(), 7, None])
def test_an_answer_without_words(answer):
    """Binds nothing, and is no error."""
    for outputs in (answer, {"choices": 3}, {"choices": [{"text": "so"}]}):
        assert answer_digests(answer, outputs) == []


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_an_answer_that_is_no_text(kind):
    """Binds, as a text does; so does what a model called."""
    for answer, later in ANSWERED.values():
        router = kind(lambda _, answer=answer: (answer, 0.1), lambda _: "so", threshold=0.5, egress=Egress(**EGRESS))
        try:
            router.infer([user("Hm")], data_class="medical")
            assert stays(router.infer([later, user("And?")]))
        finally:
            router.close()


def test_a_stream_binds_within_the_key_with_which_it_was_asked_for():
    """Though it is read within another one."""
    router = Threads(lambda _: (f"{SECRET} Less sugar.", 0.1), lambda _: "so", threshold=0.5, egress=Egress(**EGRESS))
    sources = []
    try:
        with within("client 1"):
            stream = router.stream([user("Hm")], data_class="medical")
        with within("client 2"), stream:
            said = "".join(stream)
        for key in ("client 1", "client 2"):
            with within(key):
                sources.append(router.infer([assistant(said), user("And?")]).source)
    finally:
        router.close()
    assert sources == ["edge", "cloud"]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_with_a_key_binds_within_it(call):
    """Of the client or the conversation; one without a key binds all."""
    sent = []
    router = Threads(lambda _: (f"{SECRET} Less sugar.", 0.1), lambda x: sent.append(x) or "so", threshold=0.5,
                     egress=Egress(**EGRESS))  # fmt: skip
    try:
        answer = None
        with within("client 1"):
            answer = ask(router, call, [user(SECRET)], data_class="medical")
            assert stays(ask(router, call, [user("Well"), user(SECRET)]))
            assert stays(ask(router, call, [assistant(answer.value), user("And?")]))
        with within("client 2"):
            assert ask(router, call, [user("Well"), user(SECRET)]).source == "cloud"
        ask(router, call, [user("This one is everybody's secret")], data_class="medical")
        with within("client 2"):
            assert stays(ask(router, call, [user("Well"), user("This one is everybody's secret")]))
    finally:
        router.close()


@pytest.mark.parametrize("damage", ["UPDATE key SET key = 7", "UPDATE digests SET day = 'x'"])
def test_damaged_rows_keep_all_conversations(tmp_path, damage, caplog):
    """A key that is none, and a day that is none: calls are answered, and what they say is known to this process."""
    options = {"threshold": 0.5, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user(SECRET)], data_class="medical")
    with contextlib.closing(sqlite3.connect(tmp_path / "conversations.db", isolation_level=None)) as connection:
        connection.execute(damage)
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        assert router.infer([user("What is the capital of France?")]).reason_code == "stays"
        assert router.infer([user(SECRET)], data_class="medical").source == "edge"
    assert "damaged" in caplog.text


@pytest.mark.skipif(sys.gettrace() is not None, reason="the lines are traced")
def test_an_interrupt_at_any_line_loses_nothing(tmp_path):
    """Ctrl-C within a call: later calls are answered, stay and leave as before."""
    files = {private_conversations.__file__, conversation_digests.__file__}
    options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        for n in itertools.count(1):
            lines = itertools.count(1)

            def interrupt(frame, event, _, n=n, lines=lines):
                if frame.f_code.co_filename in files and event == "line" and next(lines) == n:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                return interrupt

            sys.settrace(interrupt)
            try:
                router.infer([user(f"{SECRET} {n}")], data_class="medical")
            except KeyboardInterrupt:
                pass
            else:
                break
            finally:
                sys.settrace(None)
            if n % 7 == 0:
                router.infer([user(f"{SECRET} {n}")], data_class="medical")
                assert stays(router.infer([user("Well"), user(f"{SECRET} {n}")])), n
                assert router.infer([user(f"What is the capital of country {n}?")]).source == "cloud", n
        assert n > 100


@pytest.mark.skipif(sys.gettrace() is not None, reason="the lines are traced")
def test_an_interrupt_of_a_wait_for_the_file_is_no_other_error(tmp_path, monkeypatch, caplog):
    """Neither in the call, nor in the thread that reads."""
    read, waits = Database.read, threading.Event()
    options = {"threshold": 0.5, "deadline": LONG, "state": tmp_path, "egress": Egress(**EGRESS)}
    with Router(lambda _: ("edge", 0.1), lambda _: "cloud", **options) as router:
        router.infer([user(SECRET)], data_class="medical")
        monkeypatch.setattr(Database, "read", lambda self, *given: (waits.wait(0.02), read(self, *given))[1])
        for n in itertools.count(1):
            lines = itertools.count(1)
            waits.clear()

            def interrupt(frame, event, _, n=n, lines=lines):
                caller = frame
                while caller is not None and caller.f_code.co_filename == threading.__file__:
                    caller = caller.f_back
                if caller is frame or caller.f_code.co_filename != private_conversations.__file__:
                    return interrupt
                if "waiter" in frame.f_locals:
                    waits.set()
                if event == "line" and next(lines) == n:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                return interrupt

            sys.settrace(interrupt)
            try:
                router.infer([user("What is the capital of France?")])
            except KeyboardInterrupt:
                pass
            else:
                break
            finally:
                sys.settrace(None)
    logged = [record.getMessage() for record in caplog.records]  # a disk may be so slow that a commit outlasts the look
    assert not [line for line in logged if "has locked it" not in line]
