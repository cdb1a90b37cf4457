"""What edge and cloud share of OpenAI's JSON: server-sent events, and the confidence of an answer that is still coming."""

from __future__ import annotations

import random

import pytest

from edgeroute.chat.events import Events, events
from edgeroute.chat.reply import RunningConfidence, answer
from edgeroute.chat.request import RULES
from edgeroute.confidence.reader import Reader

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
        assert running.value == pytest.approx(reader.one([answer(whole, rule, "m")]).confidence)
