"""Messages of private conversations in inputs that are no conversation: found in texts under any name, and nothing else binds."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from both import wait_for

from edgeroute import Audit, Egress, Router
from edgeroute.router import message_forms_and_digests as forms
from edgeroute.router import private_conversations_and_digest_store as private_conversations
from edgeroute.router.message_forms_and_digests import MOST_LEAVES, MOST_LETTERS, looked_up, read_conversation
from edgeroute.router.private_conversations_and_digest_store import UNKNOWN, WHY, within

SECRET = "My test for diabetes was positive, what should I eat?"
PUBLIC = "What is the capital of France, and what is it known for?"
ANSWER = "You had better eat less sugar and more vegetables."
SITE = "Factory North, Building 7, Line 3, third hall on the left behind the pumps"
RULES = Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")


def user(text):
    return {"role": "user", "content": text}


def stays(answer):
    """Whether an answer was given here as its input quotes what had to stay."""
    return answer.reason_code == "stays" and answer.trace["stays"] == WHY


@pytest.fixture
def make():
    """Makes routers with an edge that is never sure."""
    routers = []

    def make(**options):
        routers.append(Router(lambda _: (ANSWER, 0.1), lambda _: "cloud", threshold=0.5, egress=RULES, **options))
        return routers[-1]

    yield make
    for router in routers:
        router.close()


@dataclasses.dataclass
class Turn:
    """Message of an application whose names are no API's."""

    speaker: str
    utterance: object


@dataclasses.dataclass
class Talk:
    """Conversation of such an application."""

    turns: list
    session: int = 7


@dataclasses.dataclass(slots=True)
class Slots:
    """The same without a dict."""

    turns: list


class Model:
    """Object with fields as Pydantic has them: some of its own, and a method that gives all."""

    def __init__(self, **fields):
        self.__dict__.update(fields)
        self.__fields_set__ = {*fields}

    def model_dump(self):
        """Returns the fields."""
        return {**self.__dict__}


class Row(NamedTuple):
    """Message that is a tuple."""

    number: int
    speaker: str
    utterance: object


class Label(enum.Enum):
    """A text that has a name."""

    SECRET = SECRET
    PUBLIC = PUBLIC


def cycle(said):
    """An object that its own parts refer to."""
    root = SimpleNamespace(label=said, parts=[])
    root.parts += [SimpleNamespace(label="part", parent=root) for _ in range(9)]
    return root


def nested(said):
    """Under as many names as are searched."""
    for _ in range(9):
        said = {"x": [said, 1]}
    return said


FORMS = {
    "question": lambda said: {"question": said},
    "turns": lambda said: {"turns": [{"speaker": "u", "utterance": said}, {"speaker": "bot", "utterance": "so"}]},
    "speakers": lambda said: [{"speaker": "user", "utterance": said}, {"speaker": "bot", "utterance": ["so"]}],
    "author": lambda said: [{"author": {"kind": "human"}, "body": [{"kind": "plain", "words": said}]}],
    "by role": lambda said: {"user": said, "assistant": "so"},
    "texts": lambda said: {"session": 7, "log": ["hi", said]},
    "pairs": lambda said: {"log": [["user", said], ["bot", "so"]]},
    "triples": lambda said: [("user", 1, said)],
    "named tuples": lambda said: [Row(1, "user", said)],
    "dataclass": lambda said: Talk([Turn("user", said), Turn("bot", "so")]),
    "slots": lambda said: Slots(collections.deque([Turn("user", said)])),
    "pydantic": lambda said: Model(turns=[Model(speaker="user", utterance=said)], top_k=5),
    "private attributes": lambda said: SimpleNamespace(_turns=(SimpleNamespace(_said=said),)),
    "mapping": lambda said: collections.ChainMap({}, collections.OrderedDict(asked=collections.UserDict(words=said))),
    "set": lambda said: {"said": {said, "so"}},
    "values": lambda said: {"by number": dict(enumerate([{"words": said, "at": 1.5}])).values()},
    "array": lambda said: {"said": np.array([[said, "so"]])},
    "array of objects": lambda said: np.array(["user", said, None], object),
    "text of NumPy's": lambda said: {"said": np.str_(said), "size": np.uint8(3)},
    "enum": lambda said: {"said": Label.SECRET if said == SECRET else Label.PUBLIC, "n": 1},
    "cycle": cycle,
    "nested": nested,
    "form keys": lambda said: {"who": "me", "detail": said, "id": 3},
    "joined": lambda said: {"history": {"text": f"user: Hello\nuser: {said}\nbot: so"}},
    "within a text": lambda said: {"words": f"And this - {said} And drink?"},
    "another case": lambda said: {"words": said.upper().replace(" ", "\n  ")},
    "of full width": lambda said: {"words": "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in said)},
    "of HTML": lambda said: {"page": f"<p class='x'>{said.replace(',', '&#44;')}</p>"},
    "of JSON": lambda said: {"body": json.dumps({"turns": [{"utterance": said}]})},
    "beside numbers": lambda said: {"points": [[n, 0.5] for n in range(MOST_LEAVES)], "ids": [*range(MOST_LEAVES)], "said": said},
    "last of many": lambda said: {"turns": [{"n": n, "words": f"An earlier sentence, which is number {n}."} for n in range(500)] + [said]},
    "beside Base64": lambda said: {"frames": ["QUJD" * 40_000] * 3 + ["REVG" * 40_000], "scan": "0.25, 1.5, " * 9_000, "said": said},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_message_under_any_name_is_found(make, form):
    """What had to stay as a message stays; another text leaves."""
    router = make()
    assert router.infer(form(SECRET)).source == "cloud", "nothing is remembered"
    router.infer([user(SECRET)], data_class="medical")
    assert stays(router.infer(form(SECRET)))
    assert router.infer(form(PUBLIC)).source == "cloud"


PRIVATE = {
    "text": SECRET,
    "request": {"messages": [{"role": "system", "content": "Be brief."}, user(SECRET)], "temperature": 0},
    "prompt": {"prompt": SECRET, "top_k": 5},
    "parts": [{"role": "user", "content": [{"type": "text", "text": SECRET}]}],
    "object": [SimpleNamespace(role="user", content=SECRET)],
    "of a tool": [user("Look"), {"role": "tool", "content": SECRET}],
    "second turn": [user("Hello"), {"role": "assistant", "content": "Hi"}, user(SECRET)],
    "two messages": [user(f"{SECRET} My doctor says nothing."), user("Well?")],
}


@pytest.mark.parametrize("private", PRIVATE.values(), ids=PRIVATE)
def test_whatever_the_message_was(make, private):
    """It is found, and so is the answer to it."""
    router, said = make(), f"{SECRET} My doctor says nothing." if "My doctor" in str(private) else SECRET
    router.infer(private, mode="only_edge")
    assert stays(router.infer({"turns": [{"speaker": "u", "utterance": said}]}))
    assert stays(router.infer({"turns": [{"speaker": "bot", "utterance": ANSWER}]}))
    assert router.infer({"turns": [{"speaker": "u", "utterance": PUBLIC}]}).source == "cloud"


def test_within_a_batch_and_within_a_key(make):
    """One row keeps its batch; a key's conversation binds its calls alone."""
    router = make()
    with within("client 1"):
        router.infer([user(SECRET)], data_class="medical")
        assert [answer.source for answer in router.infer_many([{"question": PUBLIC}, {"question": SECRET}])] == ["edge", "edge"]
    assert router.infer({"question": SECRET}).source == "cloud"


def test_what_quotes_a_message_binds_nothing_itself(make):
    """Its other texts leave."""
    router = make()
    router.infer([user(SECRET)], data_class="medical")
    assert stays(router.infer({"question": SECRET, "site": SITE, "note": PUBLIC}))
    assert router.infer({"site": SITE, "note": PUBLIC}).source == "cloud"
    assert router.infer([user(PUBLIC)]).source == "cloud"


# Private rows, and rows that share something with them.
ROWS = {
    "constant": ({"site": SITE, "note": SECRET}, {"site": SITE, "note": "well"}),
    "same key": ({"note": SECRET}, {"note": SECRET}),
    "key names": ({"the_name_of_a_column_that_is_as_long_as_a_sentence": 1.0, "x": "a"},) * 2,
    "objects": (Talk([Turn("user", SECRET)]), Talk([Turn("user", SECRET)])),
    "bytes": ({"raw": SECRET.encode(), "n": "a"}, {"raw": SECRET.encode(), "n": "b"}),
    "list": (["a note", 1.5, SITE], ["b", 2.5, SITE]),
}
# Private conversations, and rows that share no message with them.
SHARED = {
    "key of a conversation": ([user(SECRET)], {SECRET: 1.0, "n": "a"}),
    "bytes": ([user(SECRET)], {"raw": SECRET.encode(), "array": np.array([SECRET.encode()]), "n": bytearray(SECRET.encode())}),
    "field": ({"messages": [user(SECRET)], "site": SITE, "headers": {"agent": PUBLIC}}, {"site": SITE, "agent": PUBLIC}),
    "field of a short one": ({"messages": [user("4711")], "site": SITE}, {"site": SITE, "x": 1.5}),
    "field of a prompt": ({"prompt": "So?", "site": SITE}, {"site": SITE, "x": 1.5}),
    "system": ([{"role": "system", "content": SITE}, user("4711")], {"system": SITE, "x": 1.5}),
    "instruction": (
        [{"role": "user", "content": [{"type": "text", "text": SITE}, {"type": "text", "text": SECRET}]}],
        {"instruction": SITE, "question": PUBLIC},
    ),
    "short message": ([user("United States of America")], {"country": "United States of America", "x": 1.5}),
    "short message within a text": (
        [user("United States of America")],
        {"note": "United States of America: he was born there, and came here as a child", "x": 1.5},
    ),
    "short message in a long form": ([user("United States of America")], {"country": "UNITED - STATES - OF - AMERICA / / / /"}),
    "row of texts": (["United States of America", SITE, "diabetes"], {"country": "United States of America", "site": SITE}),
    "half a sentence": ([user(SECRET)], {"note": "My test for diabetes was positive"}),
}


@pytest.mark.parametrize(("private", "public"), [*ROWS.values(), *SHARED.values()], ids=[*ROWS, *SHARED])
def test_what_is_no_message_binds_no_row(make, private, public):
    """Neither names, bytes and constants of rows, nor what a conversation has beside its messages; whatever is remembered."""
    router = make()
    router.infer([user("This one is another patient's, who sleeps badly")], data_class="medical")
    for _ in range(2):
        assert router.infer(private, data_class="medical").source == "edge"
        assert router.infer(public).source == "cloud"
    assert stays(router.infer({"said": "This one is another patient's, who sleeps badly"}))


def test_a_row_of_texts_is_found_in_messages(make):
    """In those of any role, as before: it may be a conversation as well."""
    for role in ("user", "assistant", "system"):
        router = make()
        router.infer(["So?", SECRET], data_class="medical")
        assert stays(router.infer([user("Well"), {"role": role, "content": SECRET}, user("next")]))


def test_private_rows_push_no_conversation_out(make, monkeypatch):
    """However many: their texts are not remembered."""
    monkeypatch.setattr(private_conversations, "MOST", 12)
    router = make()
    router.infer([user(SECRET)], data_class="medical")
    for n in range(100):
        for row in (
            {"note": f"{SITE} {n}", "x": n},
            ["a", f"{SITE} {n}", n],
            Turn("a", f"{SITE} {n}"),
            {"rows": [{"n": f"{SITE} {n}"}]},
        ):
            router.infer(row, data_class="medical")
    assert stays(router.infer({"question": SECRET}))
    assert router.infer({"note": f"{SITE} 7", "x": 7}).source == "cloud"


@pytest.fixture
def reads(monkeypatch):
    """Whether the texts of other inputs were asked for, of each input that was read; and the inputs that were compared."""
    read, compared, calls = forms.read_conversation, forms.looked_up, SimpleNamespace(read=[], compared=[])
    monkeypatch.setattr(
        forms, "read_conversation", lambda x, **given: calls.read.append(given.get("others", False)) or read(x, **given)
    )
    monkeypatch.setattr(forms, "looked_up", lambda conversation: calls.compared.append(conversation) or compared(conversation))
    return calls


def test_nothing_is_read_while_nothing_is_remembered(make, reads):
    """Of an input that is no conversation, neither before nor after its call."""
    router = make()
    for _ in range(3):
        assert router.infer({"question": SECRET}).source == "cloud"
        assert router.infer({"note": SITE}, data_class="medical").source == "edge"
    assert reads.compared == []
    assert True not in reads.read


def test_a_call_is_read_once(make, reads):
    """Also one that leaves after its answer, as an audit."""
    sent = []
    with Router(
        lambda _: (ANSWER, 0.9), lambda x: sent.append(x) or "cloud", threshold=0.5, egress=RULES, audit=Audit(share=1)
    ) as sure:
        for router in (make(), sure):
            router.infer([user(SECRET)], data_class="medical")
            reads.read.clear()
            reads.compared.clear()
            router.infer({"question": PUBLIC})
            if router is sure:
                wait_for(lambda: sent)
            assert reads.read.count(True) == 1
            assert len(reads.compared) == 1


LONG = {
    "text": {"document": f"{PUBLIC} " * 100_000},
    "bytes": {"raw": b"word " * 1_000_000, "n": "a"},
    "Base64": {"frames": [f"{n:04}QUJD" * 20_000 for n in range(40)]},
    "numbers in texts": {"scans": [f"{n}.5, 0.25, " * 9_000 for n in range(40)]},
    "sentences": {"log": "a word. " * 30_000},
    "texts": {"rows": [{"n": n, "note": f"This is the note of row {n}, as ever."} for n in range(6_000)]},
    "no texts": {"n": [*range(1_000)], "x": np.zeros(9), "s": ["a"] * 1_000},
}


@pytest.mark.parametrize("x", LONG.values(), ids=LONG)
def test_a_large_input_leaves_and_is_hardly_read(make, x):
    """There are at most two digests a sentence, and texts longer than any message that is remembered have none."""
    router = make()
    router.infer([user(SECRET)], data_class="medical")
    assert router.infer(x).source == "cloud"
    other = read_conversation(x, others=True)
    assert other is None or sum(1 for _ in looked_up(other)) <= 12_000


def test_too_many_long_texts_stay_unread(make):
    """They may be a conversation; and nothing of them is read."""
    router, x = make(), {"turns": [{"words": f"{PUBLIC} " * 50} for _ in range(MOST_LETTERS // 2_000)]}
    assert router.infer(x).source == "cloud"
    router.infer([user(SECRET)], data_class="medical")
    assert router.infer(x).trace["stays"] == UNKNOWN
    assert read_conversation(x, others=True).messages == []


def test_a_message_in_a_text_of_many_sentences_is_found_by_the_whole(make):
    """Which costs one digest."""
    router, record = make(), "He sleeps badly. " * 2_000
    router.infer([user(record)], data_class="medical")
    assert stays(router.infer({"record": record, "n": 1}))
    assert router.infer({"record": f"{record} So.", "n": 1}).source == "cloud"


def test_other_inputs_leave_while_the_file_cannot_be_read(make, tmp_path):
    """It is not known which conversations have to stay; what this process knows stays."""
    (tmp_path / "conversations.db").write_text("garbage\n")
    router = make(state=tmp_path)
    assert router.infer([user(PUBLIC)]).reason_code == "stays"
    assert router.infer({"question": PUBLIC}).source == "cloud"
    router.infer([user(SECRET)], data_class="medical")
    assert stays(router.infer({"question": SECRET}))
