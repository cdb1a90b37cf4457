"""Masks: a cloud over HTTP sees placeholders alone, and the caller gets the data back, whole and in pieces, on every road."""

from __future__ import annotations

import json
import random
import re
import threading
from enum import Enum
from queue import Queue

import httpx
import numpy as np
import pytest
import routes
from both import LONG, Tasks, Threads, wait_for
from gateways import events, serving
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import (
    AsyncRouter,
    Audit,
    BadInput,
    Cache,
    Egress,
    Held,
    OpenAIChat,
    Outbox,
    PolicyError,
    Prediction,
    Router,
    RuntimeMissing,
    Semantic,
)
from edgeroute.cloud.personal_data_masks import Mask, MaskedData
from edgeroute.system.late_imports_and_plugins import plugin_targets
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply

BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
KINDS = ["email", "phone", "iban", "card"]
DATA = "john.doe@example.com", "+49 30 901820", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111"
TEXT = "I am {}, call {}, my account is {} and my card {}.".format(*DATA)
MASKED = "I am [MASKED_EMAIL_1], call [MASKED_PHONE_1], my account is [MASKED_IBAN_1] and my card [MASKED_CARD_1]."


def masked(x, *kinds):
    return Mask(kinds or KINDS).mask(x)[0]


def unsure(_):
    return "local", 0.1


def asked(request):
    """The document that was sent."""
    return json.loads(request.partition(b"\r\n\r\n")[2])


def in_pieces(text, size=3):
    return [text[i : i + size] for i in range(0, len(text), size)]


def completion(content, **more):
    message = {"role": "assistant", "content": content, **more}
    return http_reply(
        json.dumps(
            {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        ).encode(),
        headers=[("Content-Type", "application/json")],
    )


def echo(request):
    """A language model that repeats the last message, in pieces if they are wanted."""
    document = asked(request)
    text = document["messages"][-1]["content"]
    return sse_reply(chat_events(in_pieces(f"You said: {text}"))) if document.get("stream") else completion(f"You said: {text}")


@pytest.fixture
def server():
    with CannedServer(echo) as server:
        yield server


def cloud(server, **more):
    return OpenAIChat(server.url, model="m", **{"timeout_s": LONG, "between_s": LONG, "retries": 0, **more})


def rules(*kinds, **more):
    return Egress(mask=kinds or KINDS, **more)


def sent(server):
    """All that the server got."""
    return b"".join(server.requests).decode()


def hides(text):
    digits = text.replace(" ", "")  # not the first four of the card: a port may have them
    return not any(part in text for part in DATA) and "41111111" not in digits and "901820" not in digits


@BOTH
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_cloud_sees_placeholders_and_the_caller_the_data(kind, server, stream, tmp_path):
    """Over HTTP, in threads and on asyncio. The ledger and the trace have nothing of it."""
    with kind(unsure, cloud(server, stream=stream), threshold=0.5, egress=rules(), state=tmp_path) as router:
        answer = router.infer(TEXT)
        assert (answer.value, answer.source, answer.degraded) == (f"You said: {TEXT}", "cloud", False)
        assert answer.outputs["choices"][0]["message"]["content"] == f"You said: {TEXT}"
        assert hides(repr((answer.reason, answer.trace, router)))
    assert asked(server.requests[0])["messages"] == [{"role": "user", "content": MASKED}]
    assert hides(sent(server) + (tmp_path / "egress.jsonl").read_text())


@BOTH
def test_pieces_of_a_placeholder_are_held_until_it_is_whole(kind, server):
    """Each piece that is shown has the data or none of a placeholder."""
    with kind(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        with router.stream(TEXT) as stream:
            pieces = list(stream)
        assert "".join(pieces) == stream.answer.value == f"You said: {TEXT}"
        assert not any("MASKED" in piece or piece.endswith("[") for piece in pieces)
        assert len(pieces) > 5
        with router.stream("what ends in [MASKED") as stream:  # of the user: no placeholder, and held until the end
            assert "".join(stream) == stream.answer.value == "You said: what ends in [MASKED"
    assert hides(sent(server))


def test_placeholders_are_stable_within_a_conversation(server):
    """The same data, the same placeholder, in each turn; the answer that comes back with the next turn, too."""
    with Router(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        talk = router.conversation()
        talk.infer(TEXT)
        answer = talk.infer("And a@example.org or john.doe@example.com?")
        assert answer.value == "You said: And a@example.org or john.doe@example.com?"
    first, second = (asked(request)["messages"] for request in server.requests)
    assert [m["content"] for m in second] == [MASKED, f"You said: {MASKED}", "And [MASKED_EMAIL_2] or [MASKED_EMAIL_1]?"]
    assert second[:1] == first


def test_arguments_of_calls_are_masked_and_put_back_as_json(server):
    """Data with quotes, line breaks or escapes around it stays valid JSON, both ways."""
    name = 'Ann "Jack"\nO\\Hara'

    def names(text):
        return [(m.start(), m.end(), "person") for m in re.finditer(re.escape(name), text)]

    def call(request):
        text = asked(request)["messages"][-1]["content"]
        found = re.findall(r"\[\w+\]", text)
        arguments = json.dumps({"to": found[0], "text": f"of {found[1]}: {found[0]}"})
        function = {"name": "mail", "arguments": arguments}
        return completion(None, tool_calls=[{"id": "call-1", "type": "function", "function": function}])

    server.reply = call
    with Router(unsure, cloud(server), threshold=0.5, egress=rules("email", names)) as router:
        request = {"messages": [{"role": "user", "content": f"write to {DATA[0]} of {name}"}], "tools": [{"type": "function"}]}
        message = router.infer(request).outputs["choices"][0]["message"]
        arguments = message["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments) == {"to": DATA[0], "text": f"of {name}: {DATA[0]}"}
        request["messages"] += [
            message,
            {"role": "tool", "tool_call_id": "call-1", "content": json.dumps({"\nto": f"\n{DATA[0]}"})},
        ]
        request["messages"] += [{"role": "user", "content": f"{DATA[0]} and {name}"}]
        server.reply = echo
        assert router.infer(request).value == f"You said: {DATA[0]} and {name}"
    assert hides(sent(server))
    assert "Ann" not in sent(server)
    earlier, call, result, last = asked(server.requests[-1])["messages"]
    assert last["content"] == "[MASKED_EMAIL_1] and [MASKED_PERSON_1]"
    assert json.loads(result["content"]) == {"\nto": "\n[MASKED_EMAIL_1]"}
    assert json.loads(call["tool_calls"][0]["function"]["arguments"])["to"] == "[MASKED_EMAIL_1]"
    assert earlier["content"] == "write to [MASKED_EMAIL_1] of [MASKED_PERSON_1]"


def test_an_answer_that_is_json_has_the_data_escaped(server):
    """Of a request for JSON, whole and in pieces."""
    name = 'Ann "Jack"'
    server.reply = lambda request: sse_reply(chat_events(in_pieces('{"name": "[MASKED_PERSON_1]"}', 2)))
    with Router(
        unsure, cloud(server), threshold=0.5, egress=rules(lambda text: [(0, len(text), "person")] if "Ann" in text else [])
    ) as router:
        with router.stream(name) as stream:
            pieces = "".join(stream)
        assert json.loads(pieces) == json.loads(stream.answer.value) == {"name": name}


SPELLINGS = (
    "[MASKED EMAIL 1]", "[MASKED-EMAIL-1]", "[Masked Email 1]", "MASKED EMAIL 1", "masked-email-1", "MASKED_EMAIL1", "[MASKED_EMAIL]", "[masked email]",
    "MASKED_EMAIL", "MASKED EMAIL", "[MASKED\u2011EMAIL\u20111]", r"MASKED\_EMAIL\_1",
    r"\[MASKED\_EMAIL\_1\]", r"\\[MASKED\\_EMAIL\\_1\\]", r"[MASKED\_EMAIL\_1\]", r"\[MASKED\_EMAIL\]",
)  # fmt: skip


@BOTH
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_placeholder_in_another_spelling(kind, server, spelling):
    """Without a number it is that of the only one of its kind; whole and in pieces."""
    server.reply = lambda request: sse_reply(chat_events(in_pieces(f"to {spelling}, as said", 2)))
    with kind(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        answer = router.infer(f"I am {DATA[0]}")
        assert (answer.value, answer.source) == (f"to {DATA[0]}, as said", "cloud")
        with router.stream(f"I am {DATA[0]}") as stream:
            assert "".join(stream) == f"to {DATA[0]}, as said"


@pytest.mark.parametrize("spelling", ["[MASKED_EMAIL]", "[masked email]", "MASKED-EMAIL", "MASKED EMAIL 3", "[MASKED-EMAIL-3]"])
def test_a_spelling_that_may_be_either(spelling):
    """One of two, or none of them: it stays, and is told."""
    _, restore = Mask(KINDS).mask("a@example.com, b@example.com")
    assert restore.restore(Prediction(f"to {spelling}.", None, None)).partial.value == f"to {spelling}."


@pytest.mark.parametrize(
    "text",
    [
        "the masked email",
        "np.ma.masked_email(x)",
        "MASKED_EMAIL_ADDRESS",
        "MASKED MEN",
        "a masked man 3 times",
        "[masked tape]",
        "UNMASKED",
    ],
)
def test_prose_that_looks_like_a_placeholder(text):
    """Of an answer is prose; of an input it comes back."""
    _, restore = Mask(KINDS).mask(DATA[0])
    assert restore.restore(Prediction(text, None, None)).value == text
    x, restore = Mask(KINDS).mask(f"{text}, {DATA[0]}")
    assert restore.restore(Prediction(x, None, None)).value == f"{text}, {DATA[0]}"


def test_a_kind_with_the_word_of_placeholders():
    """Is read back, too."""
    x, restore = Mask([lambda text: [(0, 3, "masked_name"), (4, 7, "MASKED")]]).mask("Ann Bob")
    assert x == "[MASKED_NAME_1] [MASKED_DATA_1]"
    assert restore.restore(Prediction(x, None, None)).value == "Ann Bob"


HOSTILE = (
    "[MASKED_EMAIL_7]", "MASKED_IBAN_1 and [MASKED_EMAIL_1]", r"\[MASKED\_CARD\_12]", "[masked_phone_3]", "[MASKED EMAIL 2]", "masked-email-2",
)  # fmt: skip


@BOTH
@pytest.mark.parametrize("text", HOSTILE)
def test_a_placeholder_that_was_not_sent(kind, server, text):
    """The edge's answer stands, with the code of a bad reply; without an edge the cloud's is degraded, its other data put back."""
    server.reply = lambda request: sse_reply(chat_events(in_pieces(text)))
    with kind(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        answer = router.infer(f"I am {DATA[0]}")
        assert (answer.value, answer.degraded, answer.reason_code, routes.code(answer)) == (
            "local",
            True,
            "bad_reply",
            "bad_reply",
        )
        assert router.guard.why() == ""  # the endpoint is well
    with kind(None, cloud(server), egress=rules()) as router:
        answer = router.infer(f"I am {DATA[0]}")
        assert (answer.value, answer.degraded, answer.reason_code) == (
            text.replace("[MASKED_EMAIL_1]", DATA[0]),
            True,
            "bad_reply",
        )
        with router.stream(f"I am {DATA[0]}") as stream:
            pieces = "".join(stream)
        assert pieces == text.replace("[MASKED_EMAIL_1]", DATA[0])
        assert (stream.answer.degraded, stream.answer.reason_code) == (True, "bad_reply")


def test_an_answer_that_breaks_off_has_the_data(server):
    """As far as it came."""
    server.reply = lambda request: sse_reply(chat_events(in_pieces("for [MASKED_EMAIL_1], and"), finish=None), done=False)
    with Router(None, cloud(server), egress=rules()) as router:
        answer = router.infer(f"I am {DATA[0]}")
        assert (answer.value, answer.degraded) == (f"for {DATA[0]}, and", True)
        with router.stream(f"I am {DATA[0]}") as stream:
            assert "".join(stream) == f"for {DATA[0]}, and"


@BOTH
def test_what_cannot_be_masked_stays_on_the_device(kind, server, caplog):
    """A finder that raises, or whose result is nonsense; a picture; other values. Nothing of the input is in an error."""

    def broken(text):
        raise ValueError(text)

    part = {"type": "image_url", "image_url": {"url": "https://127.0.0.1/a.png"}}
    inputs = [
        (rules(broken), TEXT), (rules(lambda text: [(3, 2, "x")]), TEXT), (rules(lambda text: None), TEXT),
        (rules(), [{"role": "user", "content": [part]}]), (rules(), f"see data:image/png;base64,iVBORw0KGgo= {TEXT}"),
        (rules(), [{"role": "user", "content": object()}]),
    ]  # fmt: skip
    for egress, x in inputs:
        with kind(unsure, cloud(server), threshold=0.5, egress=egress) as router:
            answer = router.infer(x)
            assert (answer.value, answer.degraded, answer.reason_code) == ("local", True, "redaction")
            with pytest.raises(Held) as error:
                router.infer(x, mode="only_cloud")
            assert hides(str(error.value) + repr(answer) + repr(answer.trace))
    assert server.requests == []
    assert hides(caplog.text)


@BOTH
def test_a_batch_and_two_clouds(kind, server):
    """Each row has its own data, and each cloud is sent placeholders, by hedge or after a failure."""
    texts = [f"row {i}: u{i}@example.com" for i in range(5)]
    for hedge_after in (None, 0.0):
        with CannedServer(http_reply(status=503)) as down:
            clouds = [cloud(down, name="down"), cloud(server)]
            with kind(unsure, clouds, threshold=0.5, egress=rules(), hedge_after=hedge_after) as router:
                assert [a.value for a in router.infer_many(texts)] == [f"You said: {text}" for text in texts]
                assert router.infer(TEXT).value == f"You said: {TEXT}"
            # of two at once, one may be left before it has the request
            assert "MASKED" in sent(down) or hedge_after is not None
            assert hides(sent(down))
            assert "example.com" not in sent(server) + sent(down)


def test_many_conversations_at_once_never_mix(server):
    """Each gets its own data, however many are under way."""
    wrong, start = list[str](), threading.Barrier(8)

    def talk(i, router):
        start.wait(LONG)
        for j in range(6):
            text = f"I am u{i}.{j}@example.com"
            with router.stream(text) as stream:
                whole = "".join(stream)
            wrong.extend([whole] if whole != f"You said: {text}" else [])

    with Router(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        threads = [threading.Thread(target=talk, args=(i, router)) for i in range(8)]
        [thread.start() for thread in threads]
        [thread.join(LONG) for thread in threads]
    assert wrong == []
    assert len(server.requests) == 48
    assert "example.com" not in sent(server)


@BOTH
@pytest.mark.parametrize("restart", [True, False])
def test_the_outbox_sends_placeholders_and_the_late_answer_has_the_data(kind, server, tmp_path, restart):
    """Also after a restart, without the mask: what puts the data back waits beside the request, and is not sent."""
    late = Queue()

    def router(**more):
        box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
        return kind(unsure, cloud(server), threshold=0.5, offline="queue", outbox=box, **more)

    server.reply = http_reply(status=503)
    with router(egress=rules()) as first:
        assert routes.queued(first.infer(TEXT)) == routes.WAITING
        if not restart:
            server.reply = echo
            getattr(first, "router", first).on_late(late.put)
            assert late.get(timeout=LONG).value == f"You said: {TEXT}"
    if restart:
        server.reply = echo
        with router() as second:
            getattr(second, "router", second).on_late(late.put)
            answer = late.get(timeout=LONG)
        assert (answer.value, answer.outputs["choices"][0]["message"]["content"]) == (f"You said: {TEXT}",) * 2
    assert MASKED in sent(server)
    assert hides(sent(server))


def test_a_late_answer_with_a_placeholder_that_was_not_sent_is_a_dead_letter(server, tmp_path):
    """Which names the reason, and nothing of the data."""
    server.reply = http_reply(status=503)
    box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
    with Router(unsure, cloud(server), threshold=0.5, offline="queue", outbox=box, egress=rules()) as router:
        assert routes.queued(router.infer(TEXT)) == routes.WAITING
        server.reply = completion("to [MASKED_EMAIL_2]")
        wait_for(lambda: box.size("dead") == 1)
        (entry,) = box.list()
        assert "placeholder" in entry.error
        assert hides(repr(entry))


def test_a_cached_answer_has_the_data_of_its_own_request_alone(server):
    """An equal text gets its answer again; a similar one, of another person, does not get this person's data."""

    def embed(text):
        return [1.0, 0.0]

    cache = Cache(semantic=Semantic(embed, threshold=0.9))
    with Router(unsure, cloud(server), threshold=0.5, egress=rules(), cache=cache) as router:
        assert router.infer(TEXT).value == f"You said: {TEXT}"
        assert router.infer(TEXT).source == "cache"
        other = router.infer(TEXT.replace("john", "jane"))
        assert (other.source, other.value) == ("cloud", f"You said: {TEXT.replace('john', 'jane')}")
        assert router.infer("without data").source == "cloud"
        assert router.infer("also without data").source == "cache"


ROADS = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/responses": lambda text: {"input": text},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 99},
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("road", ROADS)
def test_each_road_of_the_gateway(server, road, stream):
    """Whole and in pieces; the client's texts have the data, the cloud's server sees none."""
    body = {"model": "edgeroute", "stream": stream, **ROADS[road](TEXT)}
    with serving(AsyncRouter(unsure, cloud(server), threshold=0.5, egress=rules())) as url:
        reply = httpx.post(url + road, json=body, timeout=LONG)
    assert reply.status_code == 200
    text = reply.text
    if stream:
        documents = [one for one in events(text) if one != "[DONE]"]
        parts = [
            one["choices"][0]["delta"].get("content") if one.get("choices") else one["delta"] if isinstance(one.get("delta"), str)
            else one.get("delta", {}).get("text") for one in documents
        ]  # fmt: skip
        text = "".join(filter(None, parts))
    assert TEXT in text
    assert "MASKED" not in reply.text
    assert MASKED in sent(server)
    assert hides(sent(server))


def test_audits_and_shadow_mode_send_placeholders(server, tmp_path):
    """And compare the edge's answer with the one that has the data."""

    def edge(x):
        return f"You said: {x}", 0.9

    for policy in ({"audit": Audit(share=1.0)}, {"mode": "shadow"}):
        with Router(edge, cloud(server), threshold=0.5, egress=rules(), **policy) as router:
            router.infer(TEXT)
            wait_for(lambda router=router: router.stats().audits[0].audited == 1)
            assert router.stats().audits[0].disagreed == 0
    assert hides(sent(server))


def test_a_policy_file_names_the_kinds(server, tmp_path):
    """As `mask` of `[egress]`; an unknown one, or one without its library, is refused with what to do."""
    path = tmp_path / "policy.toml"
    text = """
        [cloud]
        protocol = "openai"
        url = "{url}"
        model = "m"
        [egress]
        mask = {kinds}
    """
    path.write_text(text.format(url=server.url, kinds='["email", "phone"]'))
    with Router.from_policy(path) as router:
        assert router.infer(f"write to {DATA[0]}").value == f"You said: write to {DATA[0]}"
    assert asked(server.requests[0])["messages"][0]["content"] == "write to [MASKED_EMAIL_1]"
    for kinds, why in (('["emial"]', "email"), ('"email"', "mask"), ('["xx.yy"]', "mask")):
        path.write_text(text.format(url=server.url, kinds=kinds))
        with pytest.raises((PolicyError, RuntimeMissing), match=why):
            Router.from_policy(path)
    for kinds, why in (([3], "no kind of data"), ("email", r"mask is a list of kinds of data, as in \['email'\]")):
        with pytest.raises(PolicyError, match=why):
            Egress(mask=kinds)
    with pytest.raises(PolicyError, match="redact"):
        Egress(mask=["email"], redact=lambda x, data_class: x)


# --- what is found


FOUND = [
    ("j\u200bo\u00adhn@exam\u2060ple.com", "email"),  # characters that are not seen
    ("john\uff20example\uff0ecom", "email"),  # of full width
    ("j\u043ehn@ex\u0430mple.com", "email"),  # Cyrillic
    ("m\u00fcller@b\u00fccher.example", "email"),
    ("\uff0b\uff14\uff19 30 901820", "phone"),
    ("+49\u00a030\u2011901820", "phone"),
    ("\u0664\u0661\u0661\u0661 1111 1111 1111", "card"),  # Arabic digits
    ("D\u0415\uff18\uff19 3704 0044 0532 0130 00", "iban"),
    ("4111_1111_1111_1111", "card"), ("4111/1111/1111/1111", "card"), ("DE89_3704_0044_0532_0130_00", "iban"),
    ("DE89370400440532013000", "iban"), ("gb82west12345698765432", "iban"),
    ("4111-1111-1111-1111", "card"), ("378282246310005", "card"), ("4111 1111\r\n1111 1111", "card"), ("4111\t1111\t1111\t1111", "card"),
    ("DE89 3704 0044\n0532 0130 00", "iban"), ("DE89.3704.0044.0532.0130.00", "iban"),
    ("0151 23456789", "phone"), ("(201) 555-0123", "phone"), ("201-555-0123", "phone"), ("0033 1 70 18 99 00", "phone"),
    ("06.12.34.56.78", "phone"), ("06-12-34-56-78", "phone"), ("02/01/40/50/60", "phone"), ("+1 (555) - 123-4567", "phone"),
    ("+39 (06) - 1234567", "phone"), ("+49 (30) / 901820", "phone"), ("(555)-123-4567", "phone"), ("(555) - 123-4567", "phone"),
    ("(030) / 1234567", "phone"), ("(030) / 12-34-56", "phone"), ("4111 - 1111 - 1111 - 1111", "card"),
    ("4111 \u2013 1111 \u2013 1111 \u2013 1111", "card"), ("DE89 - 3704 - 0044 - 0532 - 0130 - 00", "iban"),
    ("a.b+c@d-e.co.uk", "email"), ("john%40example.com", "email"),
    # escapes of HTML, of addresses, and of strings, also of escaped ones
    ("john&#64;example.com", "email"), ("john&#x40;example&period;com", "email"), ("john&commat;example.com", "email"),
    ("&#106;ohn&#64example.com", "email"), ("john&amp;#64;example.com", "email"), ("john&shy;@example.com", "email"),
    ("john\\u0040example.com", "email"), ("john\\\\u0040example.com", "email"), ("john\\x40example\\x2ecom", "email"),
    ("j\\u{6f}hn\\U00000040example.com", "email"), ("john\\_doe\\@example\\.com", "email"), ("john%2540example%2Ecom", "email"),
    ("%6Aohn%40ex%C3%A4mple.com", "email"), ("+49&nbsp;30&#8209;901820", "phone"), ("&#43;49&nbsp30 901820", "phone"),
    ("\\u002b49\\u00a030\\u2011901820", "phone"), ("%2B49%2030%20901820", "phone"), ("&plus;49 30 901820", "phone"),
    ("DE89&nbsp;3704&#160;0044&nbsp;0532&nbsp;0130&nbsp;00", "iban"), ("DE89%203704%200044%200532%200130%2000", "iban"),
    ("4111&nbsp;1111&#8209;1111&#x2011;1111", "card"), ("4111\\u00a01111\\n1111\\t1111", "card"),
    ("4111%C2%A01111%E2%80%911111%201111", "card"), ("4111\\-1111\\-1111\\-1111", "card"),
]  # fmt: skip


def test_an_iban_beside_its_name():
    assert Mask(KINDS).mask("IBANDE89370400440532013000")[0] == "IBAN[MASKED_IBAN_1]"


@pytest.mark.parametrize(("data", "kind"), FOUND)
def test_data_is_found_as_people_write_it(data, kind):
    """With look-alikes and characters that are not seen, at any place of a text."""
    for text in (data, f"it is {data}.", f"<{data}>", f"({data})\n", f'"{data}"', f"mailto:{data}?x"):
        x, restore = Mask(KINDS).mask(text)
        assert x == text.replace(data, f"[MASKED_{kind.upper()}_1]")
        assert restore.restore(Prediction(x, None, None)).value == text


@pytest.mark.parametrize(
    "text",
    ["on 2026-11-30 at 08:30", "01.12.2026", "pi is 3.14159265", "0.123456789", "4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33",
     "x[ID_1]", "@", "a@b", "12 15 18 20", "1,299.00 EUR", "v1.2.3", "AT&T &amp; R&D;", "a&#64;b 100%25 %zz", r"C:\new\table \\ \u00 \x4",
     "on &#50;026-11-30", "01.12.2026-15.12.2026", "01.12.26-15.12.26", "(2020) - 10.000", "(2020) - 2021-05-01", "(12) / 2026-11-30",
     "00-11-22-33-44-55"],
)  # fmt: skip
def test_other_text_is_sent_as_it_is(text):
    assert masked(text) == text


def test_overlapping_data():
    """Nothing of either is left."""
    x, restore = Mask([lambda text: [(0, 6, "a"), (4, 9, "b"), (9, 10, "c"), (2, 3, "d")]]).mask("0123456789")
    assert x == "[MASKED_A_1][MASKED_B_1][MASKED_C_1]"
    assert restore.restore(Prediction(x, None, None)).value == "0123456789"


def test_text_like_a_placeholder_comes_back_as_it_was(server):
    """It is masked itself, so that it is no name for the data of another text."""
    text = f"what is [MASKED_EMAIL_1], MASKED_TEXT_1 and [MASKED_EMAIL_2] to {DATA[0]}?"
    with Router(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        assert router.infer(text).value == f"You said: {text}"
    assert masked(text) == "what is [MASKED_TEXT_1], [MASKED_TEXT_2] and [MASKED_TEXT_3] to [MASKED_EMAIL_1]?"


def test_data_that_is_divided_between_texts_of_a_request():
    """Between the parts of a message, and between messages; whole data beside a border is not joined with it."""
    parts = [{"type": "text", "text": "write to john@"}, {"type": "text", "text": "example.com, now"}]
    (message,) = masked([{"role": "user", "content": parts}])
    assert [p["text"] for p in message["content"]] == ["write to [MASKED_EMAIL_1]", "[MASKED_EMAIL_2], now"]
    messages = [
        {"role": "user", "content": text} for text in ("my card is 4111 1111", "1111 1111, as I said", "a@b.example", "com")
    ]
    assert [m["content"] for m in masked(messages)] == [
        "my card is [MASKED_CARD_1]", "[MASKED_CARD_2], as I said", "[MASKED_EMAIL_1]", "com",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "sent"),
    [
        (["my card: 4111", "1111", "1111-", "1111, thanks"],
         ["my card: [MASKED_CARD_1]", "[MASKED_CARD_2]", "[MASKED_CARD_3]", "[MASKED_CARD_2], thanks"]),
        (["DE89 3704", " 0044 05", "32 0130 00."], ["[MASKED_IBAN_1]", "[MASKED_IBAN_2]", "[MASKED_IBAN_3]."]),
        ([*"4111111111111111"], ["[MASKED_CARD_1]", *["[MASKED_CARD_2]"] * 15]),
        (["4111", "1111", "1111", "1112"], ["4111", "1111", "1111", "1112"]),  # no check digit
        (["call +49", "30 90", "1820, now"], ["call [MASKED_PHONE_1]", "[MASKED_PHONE_2]", "[MASKED_PHONE_3], now"]),
        (["ann", "@", "mail", ".example", "so"],
         ["[MASKED_EMAIL_1]", "[MASKED_EMAIL_2]", "[MASKED_EMAIL_3]", "[MASKED_EMAIL_4]", "[MASKED_EMAIL_5]"]),
        (["write to ann@", "mail", ".example, so"], ["write to [MASKED_EMAIL_1]", "[MASKED_EMAIL_2]", "[MASKED_EMAIL_3], so"]),
        (["4111", "so", "1111 1111", "1111"], ["4111", "so", "1111 1111", "1111"]),
        (["1", "4111111111111111", "1"], ["1", "[MASKED_CARD_1]", "1"]),
        (["ann&#6", "4;mail&per", "iod;example"], ["[MASKED_EMAIL_1]", "[MASKED_EMAIL_2]", "[MASKED_EMAIL_3]"]),
        (["2026-11-30", "0151 23", "456789", "2026-12-01"],
         ["2026-11-30", "[MASKED_PHONE_1]", "[MASKED_PHONE_2]", "2026-12-01"]),
    ],
)  # fmt: skip
def test_data_that_is_spread_over_many_texts(texts, sent):
    """A card, an IBAN, a phone number, an address; in messages, and in any list."""
    assert masked(texts) == sent
    assert [m["content"] for m in masked([{"role": "user", "content": text} for text in texts])] == sent
    x, restore = Mask(KINDS).mask(texts)
    assert restore.restore(Prediction(x, None, None)).value == texts


@pytest.mark.parametrize(
    ("document", "sent"),
    [
        (["4111 1111", "1111 1111"], ["[MASKED_CARD_1]", "[MASKED_CARD_2]"]),
        ({"phone": {"area": "+49 30", "number": "901820"}}, {"phone": {"area": "[MASKED_PHONE_1]", "number": "[MASKED_PHONE_2]"}}),
        ({"iban": ["DE89", "3704", "0044", "0532", "0130", "00"]}, {"iban": [f"[MASKED_IBAN_{i}]" for i in range(1, 7)]}),
        ({"line 1": 41111111, "n": 0.5, "line 2": 11111111}, {"line 1": "[MASKED_CARD_1]", "n": 0.5, "line 2": "[MASKED_CARD_2]"}),
        ([{"type": "text", "text": "ann@"}, {"type": "text", "text": "mail.example"}],
         [{"type": "text", "text": "[MASKED_EMAIL_1]"}, {"type": "text", "text": "[MASKED_EMAIL_2]"}]),
        ({"a": [{"id": "x"}, "4111 1111", "1111 1111"]}, {"a": [{"id": "x"}, "[MASKED_CARD_1]", "[MASKED_CARD_2]"]}),
        ([37.7749295, -122.4194155, 37.7749295], [37.7749295, -122.4194155, 37.7749295]),
        (["2026-12-01", "299.90", "2027-10-03"], ["2026-12-01", "299.90", "2027-10-03"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("levels", [1, 2])
def test_data_that_is_divided_inside_json(document, sent, levels):
    """In a text that is JSON, as a tool's result, and in JSON that is a text of it; it stays JSON, and comes back."""
    text = json.dumps(document) if levels == 1 else json.dumps({"result": json.dumps(document)})
    x, restore = Mask(KINDS).mask([{"role": "tool", "tool_call_id": "call-1", "content": text}])
    found = json.loads(x[0]["content"])
    assert (found if levels == 1 else json.loads(found["result"])) == sent
    if "n" not in document:  # numbers come back as texts
        assert restore.restore(Prediction(x, None, None)).value[0]["content"] == text


def test_data_that_begins_in_json_and_ends_in_another_text():
    """Each of the two stays what it is."""
    assert masked(['["4111 1111"]', "1111 1111"]) == ['["[MASKED_CARD_1]"]', "[MASKED_CARD_2]"]


PNG, PDF, TABLE = "iVBORw0KGgoAAAANSUhEUg", "JVBERi0xLjcK", "QW5uLGFubkB4LmRl"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "document", "source": {"type": "base64", "media_type": "text/csv", "data": TABLE}},
        {"type": "image", "source": {"type": "url", "url": "https://127.0.0.1/a.png"}}, {"type": "image", "image": PNG},
        {"type": "input_file", "file_data": PDF, "filename": "a.pdf"}, {"type": "input_file", "file_id": "file-1"},
        {"file_data": TABLE}, {"images": [PNG]}, {"inline_data": {"mime_type": "image/png", "data": "AAAA"}},
        {"inlineData": {"mimeType": "text/csv", "data": TABLE}}, {"images": ["QUJD" * 60]}, {"bytes": f"{PDF}\n"}, PNG,
    ],
)  # fmt: skip
def test_pictures_and_files_of_other_forms_stay(part):
    """Of Anthropic, Google, MCP and Ollama, and a file of the Responses API; Base64 in JSON, too."""
    with pytest.raises(BadInput, match=r"texts alone|no text"):
        masked([{"role": "user", "content": [{"type": "text", "text": "who?"}, part]}])
    for text in (json.dumps({"images": [PNG]}), json.dumps([{"file_data": TABLE}])):
        with pytest.raises(BadInput, match="no text"):
            masked(text)


@pytest.mark.parametrize(
    "x",
    [
        {"source": "wiki", "text": "a"}, {"source": {"title": "a", "url": "https://127.0.0.1/a"}}, {"image": "nginx:latest", "images": ["a.png"]},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hello"}}, {"file_data": "name,town\nAnn,Rome"},
        {"properties": {"type": {"type": "string"}, "source": {"type": "string"}, "images": {"type": "array"}, "file_data": {"type": "string"}}},
        {"mime_type": "application/json", "data": '{"a": 1}'}, {"data": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    ],
)  # fmt: skip
def test_texts_under_the_keys_of_pictures_are_sent(x):
    """A source that is named, a schema's property, a digest."""
    assert masked(x) == x


@pytest.mark.parametrize(
    "texts",
    [["2026-12-01", "2026-02-28", "2027-10-03"], ["01.12.2026", "28.02.2026"], ["12/1/2026", "2/28/2026"], ["1999", "2004", "2010"],
     ["26.12.26", "17.01.27", "02.03.27", "12.08.27", "13.09.27"], ["299.90", "1450.00", "12.99"], ["464.83", "471.02", "1,299.00"],
     ["3", "2026-12-01", "milk", "250.17", "5843", "4"], ["1. on 01.12.26", "2. at 08:30", "3. for 299.90", "4. in 2027"],
     ["2026-12-01T08:30:00", "2026-12-02T09:30:00"], ["from 2026-12-01", "02.12.26 to 2027", "12:45"]],
)  # fmt: skip
def test_dates_and_prices_are_no_number_together(texts):
    """In a list, a table's row, or beside a border of messages; Luhn's sum fits a tenth of all."""
    assert masked(texts) == texts
    assert [m["content"] for m in masked([{"role": "user", "content": text} for text in texts])] == texts


def test_values_of_a_request():
    """Numbers, keys, tuples and tables of texts."""
    x = {"john@example.com": 4111111111111111, "n": 7, "ok": True, "none": None, "t": ("a", "b@c.example"), "f": 0.5}
    assert masked(x) == {
        "[MASKED_EMAIL_1]": "[MASKED_CARD_1]", "n": 7, "ok": True, "none": None, "t": ("a", "[MASKED_EMAIL_2]"), "f": 0.5,
    }  # fmt: skip
    with pytest.raises(BadInput, match="the input is ndarray, or has it in it"):
        masked(np.array(["a"]))


class Role(str, Enum):
    """Texts whose `str` is another one."""

    USER = "user"
    MAIL = "john@example.com"


class Number(int, Enum):
    """The same of numbers."""

    CARD = 4111111111111111


def test_enums_are_masked_by_their_values(server):
    """A role was sent as "Role.USER", and a card's number as it is."""
    assert masked({"n": Number.CARD}) == {"n": "[MASKED_CARD_1]"}
    assert masked(Role.MAIL) == "[MASKED_EMAIL_1]"
    with Router(unsure, cloud(server), threshold=0.5, egress=rules()) as router:
        for x in ([{"role": Role.USER, "content": Role.MAIL}], Role.MAIL):
            assert router.infer(x).value == "You said: john@example.com"
    assert [asked(request)["messages"] for request in server.requests] == [[{"role": "user", "content": "[MASKED_EMAIL_1]"}]] * 2


def test_keys_that_may_be_data():
    """An IBAN is an identifier, a number is a text in JSON, and a pair of texts is a key, too; what is no text stays."""
    iban, card, mail = "DE89370400440532013000", 4111111111111111, "john@example.com"
    x = {iban: 1, "of": [{card: "a", "user_1": "b"}], (mail, 2): None, 3: "c"}
    sent, data = Mask(KINDS).mask(x)
    assert sent == {
        "[MASKED_IBAN_1]": 1, "of": [{"[MASKED_CARD_1]": "a", "user_1": "b"}], ("[MASKED_EMAIL_1]", 2): None, 3: "c",
    }  # fmt: skip
    assert data.restore(Prediction({"MASKED_IBAN_1": 2}, 0.9, None)).value == {iban: 2}
    with pytest.raises(BadInput):
        masked({mail.encode(): 1})


def test_numbers_of_libraries():
    """National phone numbers, and those of identity cards."""
    pytest.importorskip("phonenumbers")
    pytest.importorskip("stdnum")
    assert masked("call 612 34 56 78 or 21 23 45 67", "phone:NO", "phone:ES") == "call [MASKED_PHONE_1] or [MASKED_PHONE_2]"
    assert masked("BSN 1112.22.333, NIE x-5253868-R", "nl.bsn", "es.nie") == "BSN [MASKED_ID_1], NIE [MASKED_ID_2]"
    assert masked("(212) - 555-0123", "phone:US") == "[MASKED_PHONE_1]"
    text = "2 95 10 99 126 111 93 or RCC MNL 83S18 D969H"  # as they are printed
    assert masked(text, "fr.nir", "it.codicefiscale") == "[MASKED_ID_1] or [MASKED_ID_2]"
    for kind in ("phone:XX", "nl.xyz"):
        with pytest.raises(PolicyError):
            Mask([kind])


def test_what_one_library_finds_within_the_data_of_another():
    """The longer one stands, in either order; of equal ones that of the kind that is named first."""
    pytest.importorskip("phonenumbers")
    pytest.importorskip("stdnum")
    text = "85.07.30-033 28"
    assert masked(text, "phone:FR") == "[MASKED_PHONE_1] 28"
    assert masked(text, "phone:FR", "be.nn") == masked(text, "be.nn", "phone:FR") == "[MASKED_ID_1]"
    assert masked("111222333", "phone:DE", "nl.bsn") == "[MASKED_PHONE_1]"
    assert masked("111222333", "nl.bsn", "phone:DE") == "[MASKED_ID_1]"


def test_a_finder_of_an_entry_point_sees_all_texts(tmp_path, monkeypatch):
    """Those without digits or an @, too: a key and a text of JSON, and two texts together."""
    (tmp_path / "people.py").write_text(
        "import re\ndef finder():\n    return lambda text: [(*m.span(), 'NAME') for m in re.finditer('ann|bob', text)]\n"
    )
    (tmp_path / "people-1.0.dist-info").mkdir()
    (tmp_path / "people-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: people\nVersion: 1.0\n")
    (tmp_path / "people-1.0.dist-info" / "entry_points.txt").write_text("[edgeroute.finders]\npeople = people:finder\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugin_targets.cache_clear()
    try:
        mask = Mask([*KINDS, "people"])
    finally:
        plugin_targets.cache_clear()
    x, restore = mask.mask(texts := ['{"ann": "dear bob"}', "an", "n, +49 30 901820"])
    assert x == ['{"[MASKED_NAME_1]": "dear [MASKED_NAME_2]"}', "[MASKED_NAME_3]", "[MASKED_NAME_4], [MASKED_PHONE_1]"]
    assert restore.restore(Prediction(x, None, None)).value == texts


PARTS = st.sampled_from(
    [
        *DATA,
        "[",
        "]",
        "MASKED",
        "MASKED_EMAIL_1",
        "MASKED EMAIL",
        "[masked-text]",
        "[MASKED_TEXT_2]",
        "_",
        "-",
        "1",
        "\\",
        '"',
        "{",
        "\n",
        " ",
        "\u200b",
        "m",
    ]
)


@given(st.lists(PARTS | st.text(max_size=5)).map("".join), st.integers(1, 9))
def test_any_text_comes_back_whole_and_in_pieces(text, size):
    """Whatever it has, cut anywhere; the same both ways."""
    x, restore = Mask(KINDS).mask(text)
    assert restore.restore(Prediction(x, None, None)).value == text
    assert "".join([*map(restore.piece, in_pieces(x, size)), restore.rest()]) == text


def test_an_unusual_answer_is_the_same_whole_and_in_pieces():
    """Whatever a hostile cloud makes of placeholders."""
    rng, (_, restore) = random.Random(3), Mask(KINDS).mask(TEXT)
    parts = ["[MASKED_EMAIL_1]", "MASKED", "_EMAIL", "_CARD_1", "[", "]", "\\_", "1", "a ", "M", "{", "[MASKED_IBAN_9]"]
    parts += [" EMAIL", "-email", " ", "-", "masked", "\u2011", "S", "\\", "\\[", "\\]", "\\_1\\]"]
    for _ in range(600):
        text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
        whole = restore.restore(Prediction(text, None, None))
        whole = (getattr(whole, "partial", None) or whole).value
        reader = MaskedData(restore.originals)
        assert "".join([*map(reader.piece, in_pieces(text, rng.randint(1, 5))), reader.rest()]) == whole


def test_representations_have_nothing_of_the_data():
    mask = Mask(KINDS)
    _, restore = mask.mask(TEXT)
    assert hides(repr((mask, restore, Egress(mask=KINDS))))
