"""Wishes and the ten skills, what is not acted upon, and the script of forty sentences as it is spoken and heard."""

import shutil
import threading
from contextlib import closing

import flow
import numpy as np
import pytest
from dialogue import chosen, repeats
from matrix import NOISES, NOON, VOICES, cases, noisy, sample
from skills import INTENTS, Home
from sound import silence, spoken
from transcribe import Words
from wishes import LONGEST_S, Wish, plain, spoken_duration, understood

LONG_S = 300.0


def wish(text):
    found = understood(text, NOON)
    return None if found is None else (found.skill, found.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Set a timer for ten minutes.", 600), ("please set a timer for 10 minutes", 600), ("five minute timer", 300),
        ("Could you start a timer for one and a half hours, please?", 5_400), ("timer for half an hour", 1_800),
        ("set a timer for an hour and a half", 5_400), ("set a timer for 2 hours, 3 minutes and 4 seconds", 7_384),
        ("set a timer for one second", 1), ("set a timer for twenty-five minutes", 1_500), ("set a timer for 1.5 hours", 5_400),
        ("set a timer for a quarter of an hour", 900), ("Set a timer for two and a half minutes", 150),
        ("Santa timer for 15 minutes", 900),
    ],
)  # fmt: skip
def test_a_timer_lasts_as_long_as_was_said(text, seconds):
    assert wish(text) == ("timer", seconds)


@pytest.mark.parametrize(
    "text",
    [
        "set a timer", "set a timer for ten", "set a timer for 10 or 15 minutes", "do not set a timer for ten minutes",
        "don't set a timer for ten minutes", "never set a timer for ten minutes", "set a timer for 0 minutes",
        "Set a timer 14 minutes", "Timer 90 seconds", "Santa timer 41 over and 13 minutes", "set a timer for 1000 hours",
        "the timer of my oven is broken", "7 10 per timer for 15 minutes", "set two timers for 10 minutes",
        "set a timer for minus 5 minutes", "set a timer for -5 minutes", "set a timer for 10 minutes and 5",
        "set a timer for 99999999999999999999 seconds", "cancel a timer for ten minutes",
        "how long is a timer for ten minutes", "can days timer", "my old timer for can minutes", "stop the timer for ten minutes", "instead of a timer for ten minutes", "",
    ],
)  # fmt: skip
def test_no_timer_is_set_on_a_suspicion(text):
    found = understood(text, NOON)
    assert found is None or found.skill != "timer"


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("set an alarm for half past six", "30 18:30"), ("wake me up at seven fifteen", "01 07:15"),
        ("Wake me up at 7:15 a.m.", "01 07:15"), ("set an alarm for quarter to eight pm", "30 19:45"),
        ("set an alarm for noon tomorrow", "01 12:00"), ("set an alarm for midnight", "01 00:00"),
        ("set an alarm for seven oh five in the evening", "30 19:05"), ("alarm at 18:30", "30 18:30"),
        ("set an alarm for twelve thirty am", "01 00:30"), ("set an alarm for noon", "01 12:00"),
        ("set an alarm for ten past nine", "30 21:10"),
    ],
)  # fmt: skip
def test_an_alarm_is_the_next_of_its_time(text, when):
    skill, at = wish(text)
    assert (skill, f"{at:%d %H:%M}") == ("alarm", when)


@pytest.mark.parametrize("text", ["alarm for 25:00", "set an alarm for 7 or 8", "set an alarm", "alarm at 7:75", "wake me"])
def test_no_alarm_without_a_time(text):
    assert wish(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("what is seven times eight", 56), ("what's 2 plus 3 times 4", 14), ("1,000 minus one", 999), ("-3 + 5", 2),
        ("what is a hundred and five divided by five", 21), ("12% of 50", 6), ("calculate 1 minus 2 minus 3", -4),
        ("what is 5 divided by 0", None), ("nine times nine times nine", 729), ("what is 0.1 plus 0.2", 0.3),
    ],
)  # fmt: skip
def test_sums(text, value):
    assert wish(text) == ("sum", value)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("convert five miles to kilometers", 8.047, "kilometers"), ("how many centimetres are in an inch", 2.54, "centimeters"),
        ("what is 60 miles per hour in kilometers per hour", 96.561, "kilometers per hour"), ("one kilo in pounds", 2.205, "pounds"),
        ("convert 3 square feet to square meters", 0.279, "square meters"), ("20 degrees celsius to fahrenheit", 68, "fahrenheit"),
        ("how many feet in a mile", 5_280, "feet"),
    ],
)  # fmt: skip
def test_units(text, value, unit):
    assert wish(text) == ("conversion", (value, unit))


@pytest.mark.parametrize(
    "text",
    [
        "convert 5 miles to pounds",
        "convert 5 apples to pears",
        "convert 5 miles to",
        "5 __class__ to m",
        "9" * 400 + " miles to feet",
    ],
)
def test_what_cannot_be_converted(text):
    assert wish(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("what is the date in three weeks", "Monday, December 21, 2026."), ("what day is it today", "Monday, November 30, 2026."),
        ("what was the date two days ago", "Saturday, November 28, 2026."), ("what is the date in one month", "Wednesday, December 30, 2026."),
        ("what is the date in three months", "Sunday, February 28, 2027."), ("what's the date tomorrow", "Tuesday, December 1, 2026."),
        ("how many days until christmas", "25 days until Friday, December 25."), ("how many days until december 1st", "1 day until Tuesday, December 1."),
        ("how many weeks until the fourth of july", "30 weeks until Sunday, July 4."),
        ("how many days until february 29", "456 days until Tuesday, February 29."),
    ],
)  # fmt: skip
def test_dates(text, said):
    assert Home(now=lambda: NOON).do(understood(text, NOON)) == said


@pytest.mark.parametrize(
    "text", ["what is the date in 99999999999999 years", "what is the date in 1.5 days", "how many days until february 31"]
)
def test_what_is_no_date(text):
    assert wish(text) is None


def test_a_list_is_kept():
    home = Home(now=lambda: NOON)
    said = [
        home.do(understood(text, NOON))
        for text in (
            "Add eggs, milk and some butter to my list.", "what is on my shopping list", "remove milk from the list",
            "remove caviar from my list", "add eggs to the list", "read my list", "clear the list", "what's on my list",
        )
    ]  # fmt: skip
    assert said == [
        "On the list: eggs, milk, butter.", "On the list: eggs, milk, butter.", "Removed: milk.", "Not on the list: caviar.",
        "On the list: eggs.", "On the list: eggs, butter.", "The list is empty.", "The list is empty.",
    ]  # fmt: skip


def test_volume_repeat_stop_and_coin():
    home = Home(now=lambda: NOON)
    do = lambda text: home.do(understood(text, NOON), "Before.")  # noqa: E731
    assert [
        do(text) for text in ("set the volume to forty percent", "louder", "turn it down", "mute", "turn the volume down")
    ] == [f"Volume {level} percent." for level in (40, 50, 40, 0, 0)]
    assert wish("set the volume to 200 percent") is None
    assert do("say that again") == "Before."
    assert home.do(Wish("repeat", None)) == "I have said nothing yet."
    assert do("stop") == "Stopped."
    assert do("cancel the timer") == "There is no timer."
    assert {do("flip a coin") for _ in range(60)} == {"Heads.", "Tails."}


def test_the_end_of_a_timer_is_told_once():
    rung, told = threading.Event(), []
    with closing(Home(lambda text: (told.append(text), rung.set()))) as home:
        assert home.do(Wish("timer", 0.01)) == "Timer for 0 seconds."
        assert rung.wait(LONG_S)
        home.wait()
    assert told == ["Your timer of 0 seconds has ended."]


def test_who_waits_for_timers_waits_until_they_have_rung():
    """A program that ends meanwhile would cut their words."""
    begun, go_on, told = threading.Event(), threading.Event(), []
    with closing(Home(lambda text: (begun.set(), go_on.wait(LONG_S), told.append(text)))) as home:
        home.do(Wish("timer", 0.01))
        assert begun.wait(LONG_S)
        threading.Timer(0.1, go_on.set).start()
        home.wait()
    assert told == ["Your timer of 0 seconds has ended."]


def test_a_timer_that_is_stopped_does_not_end():
    told = []
    with closing(Home(told.append)) as home:
        assert home.do(understood("set a timer for one hour", NOON)) == "Timer for 1 hour."
        assert home.do(understood("set an alarm for midnight", home.now())).startswith("Alarm at 00:00 t")
        assert home.do(understood("how much time is left on the timer", NOON)).endswith(" left.")
        assert [one.kind for one in home.running()] in (["timer", "alarm"], ["alarm", "timer"])
        assert home.do(understood("stop the timer", NOON)) == "Stopped: timer 1 hour."
        assert [one.kind for one in home.running()] == ["alarm"]
        assert [home.do(understood(text, NOON)) for text in ("stop", "stop the music", "quiet")] == ["Stopped."] * 3
        assert [one.kind for one in home.running()] == ["alarm"]
        threads = [one.thread for one in home.running()]
    home.wait()
    for thread in threads:
        thread.join(LONG_S)
    assert told == []


def test_where_nobody_would_hear_it_no_timer_is_set():
    """As in a service for others."""
    home = Home()
    assert home.do(Wish("timer", 60.0)) == "I cannot set a timer here: nobody would hear it."
    assert home.running() == []


def test_timers_and_items_are_bounded():
    with closing(Home(repr)) as home:
        said = [home.do(Wish("timer", LONGEST_S)) for _ in range(101)]
        assert said[99:] == ["Timer for 7 days.", "There are too many timers."]
        for number in range(101):
            home.do(Wish("list", ("add", (f"{number}",))))
        assert len(home.items) == 100


def test_durations_are_spoken():
    assert spoken_duration(90_061) == "1 day and 1 hour and 1 minute and 1 second"


@pytest.mark.parametrize(
    "text", ["\udcff", "9" * 5_000, "set a timer for " + "1 hour and " * 300, "(" * 1_000, "what is " + "1 + " * 2_000]
)
def test_odd_sentences_end_soon(text):
    assert plain(text) is not None
    wish(text)


def test_of_several_readings_the_one_that_is_a_wish_is_taken():
    right, other = Words("Set a timer for 15 minutes", 0.7, 0.4), Words("Set a timer for 50 minutes", 0.7, 0.39)
    noise = Words("Santa timer 15 minutes", 0.7, 0.1)
    assert chosen(right._replace(others=(noise,)), NOON) == right._replace(others=(noise,))
    assert chosen(noise._replace(others=(right,)), NOON) == right
    assert chosen(right._replace(others=(other,)), NOON).confidence == 0
    assert chosen(noise._replace(likelihood=1.0, others=(right,)), NOON).confidence == 0  # a timer on a suspicion
    refused = Words("Do not set a timer for 15 minutes", 0.7, 0.3)
    assert chosen(right._replace(others=(refused,)), NOON).confidence == 0
    assert chosen(refused._replace(others=(right,)), NOON).confidence == 0


def test_an_earlier_answer_to_another_question_is_a_repetition():
    talk = [
        {"role": "system", "content": "Short."}, {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
    ]  # fmt: skip
    assert repeats("the capital of France is Paris", "And of Germany?", talk)
    assert repeats("The capital of France is Paris. It is large.", "And of Germany?", talk)
    assert not repeats("The capital of France is Paris.", "what is the capital of france", talk)
    assert not repeats("The capital of Germany is Berlin.", "And of Germany?", talk)
    assert not repeats("", "And of Germany?", talk)


def test_the_script_has_forty_sentences_for_each_voice_and_noise():
    assert len(cases()) == 480
    assert len(sample()) == len({case.say for case in sample()}) == 20
    assert len({(case.voice, case.noise) for case in sample()}) == len(VOICES) * len(NOISES)
    assert {case.kind for case in cases()} >= set(INTENTS)


def test_sentences_of_the_script_mean_what_they_should():
    """As text."""
    for case in cases():
        found = understood(case.say, NOON)
        if case.kind in INTENTS:
            assert (found.skill, str(found.value), found.whole) == (case.kind, case.expected, True)
        else:
            assert found is None


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng renders the speech: apt-get install espeak-ng")
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_the_same_each_time_and_as_loud_as_it_should_be(noise):
    case = next(case for case in cases() if case.noise == noise)
    first, second = noisy(case), noisy(case)
    np.testing.assert_array_equal(first, second)
    plain_speech = np.concatenate([silence(0.3), spoken(case.say, case.voice), silence(1)])
    added = first - plain_speech
    power = np.square(plain_speech).sum() / np.count_nonzero(plain_speech)
    assert 10 * np.log10(power / np.square(added).mean()) == pytest.approx(NOISES[noise], abs=1)


def test_the_picture_has_the_colours_of_the_palette():
    assert flow.FILE.read_text(encoding="utf-8") == flow.drawn()
