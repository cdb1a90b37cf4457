"""Hysteresis, scenes, pace and segments of speech: the pure parts of live sources."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute.core.live_frames_speech_and_display import (
    Began,
    Display,
    Ended,
    Loudness,
    Pace,
    Scene,
    Speech,
    Taken,
    distance,
    next_display,
    scene_of,
    why_outdated,
)


def shown(labels, **how):
    """What is shown after each of these, labels or pairs with a confidence."""
    state, seen = Display(), []
    for one in labels:
        label, confidence = one if isinstance(one, tuple) else (one, None)
        state = next_display(state, label, confidence, **how)
        seen.append(state.label)
    return "".join(map(str, seen))


def test_a_label_is_shown_once_it_has_stayed():
    """Three in a row; what flickers does not change it, and neither do two rivals in turn."""
    assert shown("aabaabab", hold=3) == "aaaaaaaa"
    assert shown("abbb", hold=3) == "aaab"
    assert shown("abbcbb", hold=3) == "aaaaaa"
    assert shown("abbcbbc", hold=3) == "aaaaaac"
    assert shown("abcdefgh", hold=2) == "aaaaeeee"
    assert shown("abba", hold=1) == "abba"


def test_a_label_that_wins_clearly_is_shown_at_once():
    """By the margin over the last confidence of the one shown; where one is unknown it has to stay."""
    assert shown([("a", 0.5), ("b", 0.69), ("b", 0.7)], hold=9, margin=0.2) == "aab"
    assert shown([("a", 0.5), ("a", 0.9), ("b", 0.95)], hold=9, margin=0.2) == "aaa"
    assert shown(["a", ("b", 0.9)], hold=9, margin=0.2) == "aa"
    assert shown([("a", 0.1), ("b", None)], hold=9, margin=0.2) == "aa"
    assert next_display(Display("a", 0.9, begun=True), "b", 0.1, hold=9, sure=True) == Display("b", 0.1, begun=True)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 5))
def test_what_is_shown_changes_at_most_once_in_hold(labels, hold):
    """Two changes are at least `hold` labels apart, and each is to the label that was just seen."""
    seen = shown(labels, hold=hold)
    changes = [i for i in range(1, len(seen)) if seen[i] != seen[i - 1]]
    assert all(b - a >= hold for a, b in pairwise(changes))
    assert all(seen[i] == labels[i] for i in changes)


def test_a_scene_ends_where_its_first_frame_is_too_different():
    """Slow changes add up; what cannot be compared, NaN with a number and another length, is a new scene; NaN stays NaN."""
    scene = scene_of(Scene(), [0.0, 0.0], 0.1)
    assert scene == Scene(1, [0.0, 0.0])
    assert scene_of(scene, [0.125, 0.125], 0.125) is scene, "a mean that is exact in any order"
    numbers = []
    for step in range(10):
        scene = scene_of(scene, [0.04 * step] * 2, 0.1)
        numbers.append(scene.number)
    assert numbers == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    assert scene_of(scene, [nan, 0.0], 0.1).number == 5
    holes = scene_of(scene, [nan, inf], 0.1)
    assert scene_of(holes, [nan, inf], 0.1) is holes
    assert scene_of(holes, [0.0, inf], 0.1).number == 6
    assert scene_of(scene, [0.4], 0.1).number == 5
    assert (distance([], []), distance([1], [])) == (0.0, inf)


def test_the_pace_follows_the_edge():
    """`every` at least; with a share, the edge rests as its latency, the smoothed one or the last, asks for."""
    pace = Pace(every_s=0.1)
    assert pace.deadline_s(1.0) is None
    pace.took(10.0, 0.02)
    assert 1.0 < pace.deadline_s(1.0) < 1.3
    assert (pace.due, pace.edge_s) == (10.1, 0.02)
    half = Pace(busy=0.5)
    half.took(0.0, 0.2)
    assert half.due == pytest.approx(0.4)
    half.took(1.0, 0.1)  # the smoothed latency is 0.18
    assert half.due == pytest.approx(1.36)
    free = Pace()
    free.took(5.0, 0.3)
    assert free.due == 5.0


@given(st.floats(1e-4, 10), st.floats(0, 100))
def test_a_frames_deadline_is_just_beyond_its_use(edge_s, stale_s):
    """Between the time in which a refinement is of use, with the edge's own, and a fifth more."""
    pace = Pace()
    pace.took(0.0, edge_s)
    least = max(stale_s + 4 * edge_s, 1e-3)
    assert least * 0.999 <= pace.deadline_s(stale_s) <= least * 1.2


def test_why_a_refinement_is_of_no_use():
    """The scene has changed, a newer frame was refined, or it is too late."""
    now = {"now": 2.0, "scene": 1, "refined": 4, "stale_s": 1.0}
    assert why_outdated(Taken(5, 1.5, 1), **now) == ""
    assert why_outdated(Taken(5, 1.5, 0), **now) == "scene"
    assert why_outdated(Taken(3, 1.5, 1), **now) == "newer"
    assert why_outdated(Taken(5, 0.9, 1), **now) == "late"
    assert why_outdated(Taken(5, 0.9, 1), **{**now, "stale_s": None}) == ""


def heard(probabilities, **changed):
    """The events of these windows, and of the end."""
    speech = Speech(**{"on": 0.5, "off": 0.3, "least": 2, "hangover": 3, "most": 100, **changed})
    events = [event for p in probabilities if (event := speech.hear(p)) is not None]
    assert speech.speaking == (bool(events) and (type(events[-1]) is Began or events[-1].cut))
    return [*events, *filter(None, [speech.finish()])]


def test_a_segment_begins_with_speech_that_stays_and_ends_with_quiet_that_stays():
    """One loud window is none; a short pause, and what is between both thresholds, does not end it."""
    assert heard([0, 0.9, 0, 0.9, 0]) == []
    assert heard([0, 0.9, 0.9, 0.4, 0, 0, 0.9, 0, 0, 0, 0.9, nan]) == [Began(1), Ended(1, 10)]
    assert heard([0.9, 0.9, 0.9]) == [Began(0), Ended(0, 3)]


def test_a_long_segment_is_cut_and_goes_on():
    """The next one begins where it ended, without another beginning; what ends with a cut ends once."""
    assert heard([0.9] * 7, most=3) == [Began(0), Ended(0, 3, cut=True), Ended(3, 6, cut=True), Ended(6, 7)]
    assert heard([0.9] * 6, most=3) == [Began(0), Ended(0, 3, cut=True), Ended(3, 6, cut=True)]


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(1, 4), st.integers(1, 4), st.integers(1, 20))
def test_segments_are_in_order_and_bounded(probabilities, least, hangover, most):
    """None overlaps another, and none is longer than allowed, or than it took to be noticed."""
    ended = [e for e in heard(probabilities, least=least, hangover=hangover, most=most) if type(e) is Ended]
    assert all(0 < e.end - e.start <= max(most, least + 1) for e in ended)
    assert all(a.end <= b.start for a, b in pairwise(ended))


def test_loudness_follows_the_noise():
    """What is 30 dB above it is speech; what stays as loud for long is noise; silence and NaN are none."""
    loudness = Loudness(0.03)
    for _ in range(100):
        assert loudness.hear(-60.0) < 0.1
    assert loudness.hear(-20.0) > 0.99
    assert loudness.hear(-60.0) < 0.1
    for _ in range(1000):
        loudness.hear(-20.0)
    assert loudness.hear(-20.0) < 0.1
    assert loudness.hear(-inf) < 0.1
    assert loudness.hear(nan) < 0.1
    assert loudness.hear(0.0) > 0.99
