"""The sentences in which the app for Android says who answered and why: for each reason code that there is."""

import itertools
import re
import sys

import phones
import pytest

from edgeroute.core.reason_text_and_trace_record import CODES
from edgeroute.tools.state_colours_and_marks import STATES

pytestmark = pytest.mark.skipif(not phones.APP.is_dir(), reason="the app is not in the wheel")


@pytest.fixture(scope="module")
def sentences():
    """The app's module."""
    sys.path.insert(0, str(phones.APP))
    try:
        import sentences

        yield sentences
    finally:
        sys.path.remove(str(phones.APP))


@pytest.fixture
def sentence(sentences):
    return sentences.sentence


def test_the_table_has_each_reason_code(sentences):
    assert set(sentences.WHY) == CODES
    assert set(sentences.CLOUD) | set(sentences.CACHE) < CODES


@pytest.mark.parametrize("code", sorted(CODES))
def test_each_reason_code_has_sentences(sentence, code):
    """For each state, with and without a confidence: a whole sentence that fits in the card, without codes and without certainty."""
    hows = itertools.product([None, 0.0, 0.811, 0.996, 1.0], [True, False], [True, False], [None, "same", "other"])
    for state, (sure, unsure, asking, late) in itertools.product([*STATES, None], hows):
        text = sentence(code, state, sure=sure, unsure=unsure, asking=asking, late=late)
        assert re.fullmatch(r"[A-Z][^_<>=]*[a-z]\.", text), text
        assert len(text) <= 125, text
        assert "100 %" not in text
        assert " 0 %" not in text
        assert "something went wrong" not in text or code == "error"


SENTENCES = [
    ("unreachable", "waiting", 0.81, "The phone was not sure (81 %), the cloud is away; it will be asked later."),
    (
        "mb_per_day",
        "waiting",
        0.81,
        "The phone was not sure (81 %), today's data for the cloud is used up; the cloud will be asked later.",
    ),
    ("timeout", "degraded", 0.3, "The phone was not sure (30 %), the cloud took too long; this answer stands."),
    ("below", "cloud", 0.74, "The phone was not sure (74 %), so the cloud answered."),
    ("confident", "edge", 1.0, "The phone was more than 99 % sure."),
    ("confident", "edge", None, "The phone answered."),
    ("stays", "private", 0.4, "Nothing of this picture leaves the phone; the phone was 40 % sure."),
    ("unreachable", "edge", 0.9, "The cloud is away; the phone was 90 % sure."),
    ("stays", None, None, "The picture may not leave the phone."),
    ("cached", "cache", 0.9, "The same picture was answered before."),
]


@pytest.mark.parametrize(("code", "state", "sure", "text"), SENTENCES)
def test_sentences(sentence, code, state, sure, text):
    assert sentence(code, state, sure=sure) == text


def test_sentences_of_answers_that_change(sentence):
    assert sentence("below", "waiting", sure=0.4, asking=True) == "The phone was not sure (40 %); the cloud is being asked."
    same, other = (sentence("below", "cloud", sure=0.4, late=late) for late in ("same", "other"))
    assert same == "The phone was not sure (40 %); the cloud, asked later, says the same."
    assert other == "The phone was not sure (40 %); the cloud, asked later, says something else."
    assert (
        sentence("timeout", "degraded", sure=0.9, unsure=False)
        == "The phone was 90 % sure, the cloud took too long; this answer stands."
    )
