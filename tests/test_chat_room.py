"""What edge and cloud share of OpenAI's JSON: server-sent events, and the confidence of an answer that is still coming."""

from __future__ import annotations

import contextlib
import random

import pytest

from edgeroute import ModelError, Piece, Prefix
from edgeroute.confidence import Reader
from edgeroute.confidence.first_tokens import RULES
from edgeroute.text.read_openai_replies import Events, Gathered, RunningConfidence, answer, events, is_silent

BODY = b': hi\r\n\r\ndata: a\r\ndata:b\r\n\r\nid: 3\n\ndata: c\rdata: d\r\revent: x\ndata:\n\n{"e": 1}\nerror: {"f": 2}\nerror: no\n\ndata: g'
FOUND = [b"a\nb", b"c\nd", b"", b'{"e": 1}', b'{"f": 2}', b"g"]


def test_events_wherever_they_are_cut():
    """In two parts at each byte, byte by byte, and at random: the same."""
    assert list(events([BODY])) == FOUND
    assert list(events([BODY[i : i + 1] for i in range(len(BODY))])) == FOUND
    for i in range(len(BODY)):
        assert list(events([BODY[:i], b"", BODY[i:]])) == FOUND
    chance = random.Random(1)
    for _ in range(200):
        cuts = sorted(chance.choices(range(len(BODY)), k=5))
        assert list(events([BODY[a:b] for a, b in zip([0, *cuts], [*cuts, len(BODY)], strict=True)])) == FOUND


def _part(name=None, arguments=None, **about):
    given = {"name": name, "arguments": arguments}
    return {**about, "function": {key: value for key, value in given.items() if value is not None}}


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ([_part("get", "{}", index=0, id="a"), _part("del", "{}", index=0, id="b")], ["a get {}", "b del {}"]),  # Gemini
        ([_part("get", "{}", id="a"), _part("get", "{}", id="b")], ["a get {}", "b get {}"]),  # older Ollama
        ([_part("get", "{}"), _part("get", "{}")], ["- get {}", "- get {}"]),
        ([_part("get", "{}", index=0, id=""), _part("get", '{"a": 1}', index=0, id="")], ["- get {}", '- get {"a": 1}']),
        ([_part("get", "{}", index=0), _part("del", "{}", index=0)], ["- get {}", "- del {}"]),
        ([_part("get", "{", index=0, id="a"), _part("get", "}", index=0, id="a"), _part("get", "", index=0, id="a")], ["a get {}"]),
        ([_part("get", "{", index=0), _part("get", "}", index=0), _part("get", "", index=0)], ["- get {}"]),
        ([_part("get", "", index=0), _part(None, "{}", index=0, id="a")], ["a get {}"]),
        ([_part("ge", index=0, id="a"), _part("t", "{}", index=0)], ["a get {}"]),
        ([_part("get", "{", id="a"), _part(None, "}")], ["a get {}"]),
        ([_part("get", "{", id="a"), _part("del", "{}", id="b"), _part(None, "}", id="a")], ["a get {}", "b del {}"]),
        ([_part("del", "{", index=1, id="b"), _part("get", "{}", index=0, id="a"), _part(None, "}", index=1)], ["a get {}", "b del {}"]),
        ([_part("get", "{}", index=0, id="a"), _part("del", "{", index=0, id="b"), _part(None, "}", index=0)], ["a get {}", "b del {}"]),
    ],
)  # fmt: skip
def test_calls_of_tools_however_they_are_numbered(parts, calls):
    """In one delta each or in one for all."""
    for deltas in ([[part] for part in parts], [parts]):
        gathered = Gathered()
        for given in deltas:
            gathered.add({"choices": [{"delta": {"tool_calls": given}}]})
        found = gathered.reply()["choices"][0]["message"]["tool_calls"]
        assert [f"{one.get('id', '-')} {one['function']['name']} {one['function']['arguments']}" for one in found] == calls


def test_the_older_form_of_a_call():
    """Is put together, too, and is an answer without a text."""
    gathered = Gathered()
    for part in ({"name": "get", "arguments": ""}, {"arguments": "{"}, {"arguments": "}"}):
        gathered.add({"choices": [{"delta": {"function_call": part}}]})
    assert not gathered.empty
    reply = gathered.reply()
    assert reply["choices"][0]["message"]["function_call"] == {"name": "get", "arguments": "{}"}
    assert not is_silent("", reply)


def test_an_event_that_is_an_error_by_its_name():
    """Says so in its data, which may be a text; the next event is none."""
    body = b'event: error\ndata: {"a": 1}\n\ndata: b\n\nevent:error\r\ndata: "c\n\nevent: error\n\ndata: d\n\n'
    assert list(events([body])) == [b'{"error": {"a": 1}}', b"b", b'{"error": "\\"c"}', b"d"]


def test_a_byte_order_mark_is_no_text():
    """At the beginning alone, whole or cut."""
    mark = b"\xef\xbb\xbf"
    for parts in ([mark + b"data: a\n\n"], [mark[:1], mark[1:], b"data: a\n\n"], [b"\xef\xbb", b"\xbfdata: a\n\n"]):
        assert list(events(parts)) == [b"a"]
    assert list(events([b"data: a\n\n" + mark + b"data: b\n\n"])) == [b"a"]


def test_a_long_line_takes_time_in_its_length():
    """It is joined once: 32 MB in parts of 1 KB are no work."""
    parser = Events()
    assert not any(parser.feed(b"x" * 1024) for _ in range(32 * 1024))
    assert parser.feed(b"\ndata: a\n\n") == [b"a"]


@pytest.mark.parametrize("rule", RULES)
def test_the_confidence_so_far_is_that_of_a_whole_answer(rule):
    """After each token, as if the answer ended there; the end's token has no text and does not count."""
    chance, running, tokens = random.Random(2), RunningConfidence(rule), []
    assert running.value is None
    reader = Reader("quantile")
    for i in range(40):
        token = {"token": f"t{i}", "logprob": -chance.random() * 3}
        tokens.append(token)
        running.add([token, {"token": "", "logprob": -99.0}])
        whole = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": tokens}}]}
        assert running.value == pytest.approx(reader.read_one([answer(whole, rule, "m")]).confidence)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("logprobs", [[5.0], [5.0, -0.1], [-0.01, 3.0], [-0.1, float("nan")]])
def test_impossible_log_probabilities_are_no_confidence(rule, logprobs):
    """Whole and in pieces, by all rules and by first tokens; not those that rounding has brought above 0, as 1."""
    score = Prefix(2, rule)
    for given in (logprobs, [1e-7] * len(logprobs)):
        good, running = given is not logprobs, RunningConfidence(rule)
        tokens = [{"token": "t", "logprob": one} for one in given]
        whole = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": tokens}}]}
        running.add(tokens)
        assert running.value == (1.0 if good else None)
        found = Reader("quantile").read_one([answer(whole, rule, "m")]).confidence
        assert found == 1.0 if good else "above 0" in found.why
        with contextlib.nullcontext() if good else pytest.raises(ValueError, match="above 0"):
            assert score(whole) == 1.0
    assert Prefix(1, rule).watch()(Piece("x", [5.0])) is None


def test_a_text_is_no_log_probability():
    """Though Python would read it as a number."""
    whole = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "t", "logprob": "-0.1"}]}}]}
    with pytest.raises(ModelError, match="not a completion"):
        answer(whole, "mean", "m")
