"""Reads a sentence as one of ten wishes, with its numbers: a timer of 600 s, a sum, a unit into another, an item of a list.

Numbers may be words or digits. A wish of which a part is not understood, as a second number, is none: what is done for it
would be something else.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from text_to_num import alpha2digit

SECONDS = {"second": 1, "sec": 1, "minute": 60, "min": 60, "hour": 3_600, "hr": 3_600, "day": 86_400, "week": 604_800}
LONGEST_S = 7 * 86_400
"""Of a timer."""
FAR = 120_000
"""Days that a date may be away."""
DAYS = {"christmas eve": (12, 24), "christmas": (12, 25), "new year's eve": (12, 31), "new year": (1, 1), "halloween": (10, 31)}
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
NAMES = {"kilo": "kilogram", "centigrade": "celsius", "sq": "square", "lb": "pound", "metres": "meter", "litres": "liter"}
"""Of units that pint calls otherwise."""

NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
PART = (
    rf"\b(?:(?P<number>{NUMBER}|an?)(?P<more> and a (?:half|quarter))? (?P<unit>{'|'.join(SECONDS)})s?(?P<after> and a half)?"
    r"|half an? (?P<half>hour|minute|day)|(?P<quarter>a quarter of an hour|quarter hour))\b"
)
PLAIN_PART = re.sub(r"\(\?P<\w+>", "(?:", PART)
DURATION = rf"{PLAIN_PART}(?:,? (?:and )?{PLAIN_PART})*"
CLOCK = (
    r"(?:(?P<past>half|(?:a )?quarter|\d\d?(?: minutes?)?) (?P<way>past|to|after) (?P<base>\d\d?)|(?P<named>noon|midnight|midday)"
    r"|(?P<hour>\d\d?)(?:(?: |:|(?<=\d)(?=\d\d\b))(?:oh |o )?(?P<minute>\d\d|(?<=o )\d|(?<=oh )\d))?(?: o'?clock)?)"
    r"(?: ?(?P<half_day>am|pm|in the morning|in the afternoon|in the evening|at night|tonight))?"
    r"(?: (?:today|tomorrow)(?: (?P<part_of_day>morning|afternoon|evening|night))?)?\b"
)
POLITE = re.compile(
    r"^(?:please|hey|okay|ok|now|so|and|um|uh|(?:can|could|would|will) you)[ ,]+|[ ,]+(?:please|now|for me|thank you|thanks)$"
)
NEGATED = re.compile(r"\b(?:not|don't|dont|never|no longer|without|broken|forget|instead)\b")


ASKING = re.compile(r"\b(?:how|what|when|why|who|was|were|did|cancel|stop|end|pause|delete|remove|turn)\b")
"""In a sentence about a timer or an alarm that sets none."""


class Wish(NamedTuple):
    """Something to do. `whole`: the sentence has nothing else in it, so that its words alone are enough."""

    skill: str
    value: Any
    whole: bool = False


def plain(text: str) -> str:
    """Return a sentence in small letters, its numbers as digits, without courtesies and punctuation that does not count."""
    text = text.encode(errors="replace").decode().lower().replace("\u2019", "'")
    text = alpha2digit(re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text), "en", 0)
    text = re.sub(r"\b([ap])\.? ?m\b\.?", r"\1m", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)|[?!;\"]|[.,](?!\d)", "", text)
    text = re.sub(r"\ba (?=\d)", "", text.replace("%", " percent"))  # a hundred
    text = re.sub(r"\b1 2nd\b", "1 second", re.sub(r"\s+", " ", text).strip())
    while (shorter := POLITE.sub("", text)) != text:
        text = shorter
    return text


def seconds(text: str) -> float | None:
    """Return the seconds of a plain duration, "1 hour and 30 minutes"; None: it is none."""
    total = 0.0
    for part in re.finditer(PART, text):
        if part["half"] or part["quarter"]:
            total += SECONDS[part["half"]] / 2 if part["half"] else 900
            continue
        number = 1.0 if part["number"] in {"a", "an"} else float(part["number"])
        number += (0.5 if "half" in part["more"] else 0.25) if part["more"] else 0.0
        total += (number + (0.5 if part["after"] else 0)) * SECONDS[part["unit"]]
    return total or None


def clock(text: str, *, morning: bool = False) -> tuple[int, int, bool] | None:
    """Return hour and minute of a plain time of day, and True if its half of the day is known; None: it is none.

    Args:
        text: the time, "half past 6", "7 15 am".
        morning: what has no half of the day is one of the morning.
    """
    found = re.fullmatch(CLOCK, text)
    if found is None:
        return None
    if found["named"]:
        return (0 if found["named"] == "midnight" else 12), 0, True
    if found["past"]:
        minutes = 30 if "half" in found["past"] else 15 if "quarter" in found["past"] else int(found["past"].split()[0])
        hour, minute = divmod(int(found["base"]) * 60 + (-minutes if found["way"] == "to" else minutes), 60)
    else:
        hour, minute = int(found["hour"]), int(found["minute"] or 0)
    if not (0 <= hour < 24 and 0 <= minute < 60):  # noqa: PLR2004 - of a day, and of an hour
        return None
    part = found["half_day"] or found["part_of_day"] or ("morning" if morning else "")
    if hour > 12 or not part:  # noqa: PLR2004
        return hour, minute, hour > 12 or hour == 0  # noqa: PLR2004
    early = part == "am" or "morning" in part or ("night" in part and hour in {12, 1, 2, 3, 4})
    return hour % 12 + (0 if early else 12), minute, True


def understood(text: str, now: datetime) -> Wish | None:
    """Return what a sentence wishes for; None: none of the ten, one that is not understood whole, or one with a "not"."""
    items, text = plain(text.replace(",", " and ")), plain(text)
    if NEGATED.search(text):
        return None
    for read in (_stop, _repeat, _coin, _timer, _alarm, _sum, _conversion, _list, _volume, _date):
        wish = read(items if read is _list else text, now)
        if wish is not None:
            return wish
    return None


def _one(pattern: str, text: str) -> tuple[re.Match[str], bool] | None:
    """Return where a pattern is in a text that has no other number, and whether it is the whole of it."""
    found = re.search(rf"\b(?:{pattern})", text)
    if found is None or re.search(r"\d", text[: found.start()] + text[found.end() :]):
        return None
    return found, found.span() == (0, len(text))


def _stop(text: str, _: datetime) -> Wish | None:
    """Return the wish to stop what a whole sentence names, "" for all; None: it is none."""
    found = re.fullmatch(
        r"(?:stop|cancel|end|quiet|be quiet|silence|shut up|enough|turn off|clear|delete)(?: it| that| talking| speaking)?"
        r"(?: (?:the|my|all|all my|all the|this) ?(?P<what>timer|alarm|music)?s?)?",
        text,
    )
    if found is None or text in {"end", "clear", "delete", "turn off"}:
        return None
    return Wish("stop", found["what"] or "", whole=True)


def _repeat(text: str, _: datetime) -> Wish | None:
    said = r"repeat(?: (?:that|it|yourself|what you said))?|say (?:that|it) again|what did you say|come again|pardon(?: me)?"
    return Wish("repeat", None, whole=True) if re.fullmatch(said, text) else None


def _coin(text: str, _: datetime) -> Wish | None:
    coin = r"(?:flip|toss|throw) (?:a|the|me a) coin|heads or tails"
    return Wish("coin", None, bool(re.fullmatch(coin, text))) if re.search(coin, text) else None


def _timer(text: str, _: datetime) -> Wish | None:
    """Return the wish for a timer of so many seconds, a week at most, or for what is "left"; None: it is none."""
    if re.fullmatch(
        r"how (?:much time|long) (?:is )?(?:left|remain\w*)?(?: (?:on|for) (?:the|my) timer)?|.* left on (?:the|my) timer", text
    ):
        return Wish("timer", "left", whole=True)
    text = re.sub(r"\btimer 4(\d\d) (?=second|minute|hour)", r"timer for \1 ", text)  # "for ninety" is often written so
    start = r"(?:(?:set|start|make|create|begin|give)(?: me)? )?(?:(?:a|an|the|my|your|another|new)(?: new)? )?"
    found = _one(rf"{start}timer (?:for|of) (?P<long>{DURATION})|{start}(?P<first>{DURATION}) timer", text)
    if found is None or (not found[1] and ASKING.search(text)):
        return None
    lasts = seconds(found[0]["long"] or found[0]["first"])
    return Wish("timer", lasts, found[1]) if lasts is not None and 1 <= lasts <= LONGEST_S else None


def _alarm(text: str, now: datetime) -> Wish | None:
    """Return the wish for an alarm at the next such time, tomorrow if it says so; None: it is none."""
    start = r"(?:(?:set|make|create)(?: me)? )?(?:(?:a|an|the|my|another|new) )?"
    found = _one(rf"(?:{start}alarm (?:for|at)|(?P<wake>wake me(?: up)?(?: tomorrow)?(?: at)?)) (?P<at>{CLOCK})", text)
    at = None if found is None else clock(found[0]["at"], morning=bool(found[0]["wake"]))
    if found is None or at is None or (not found[1] and ASKING.search(text)):
        return None
    hour, minute, exact = at
    times = [now.replace(hour=h, minute=minute, second=0, microsecond=0) for h in {hour, hour if exact else (hour + 12) % 24}]
    if "tomorrow" in text:
        days = [time + timedelta(days=1) for time in times]
    else:
        days = [time if time > now else time + timedelta(days=1) for time in times]
    return Wish("alarm", min(days), found[1])


def _sum(text: str, _: datetime) -> Wish | None:
    """Return the wish for a sum, calculated, None for a division by zero; None: the whole sentence is no sum."""
    text = re.sub(r"^(?:what(?:'s| is| are)?|how much (?:is|are)|calculate|compute) ", "", text)
    for words, sign in (
        (r"multiplied by|times|\u00d7|\bx\b", "*"),
        (r"divided by|over|\u00f7", "/"),
        ("plus", "+"),
        ("minus", "-"),
        ("percent of", "% of"),
    ):
        text = re.sub(words, sign, text)
    if part := re.fullmatch(rf"({NUMBER}) ?% of ({NUMBER})", text):
        return Wish("sum", round(float(part[1]) * float(part[2]) / 100, 6), whole=True)
    found = re.fullmatch(rf"-?{NUMBER}(?: ?[-+*/] ?{NUMBER}){{1,8}}", text)
    if found is None or len(text) > 100:  # noqa: PLR2004 - characters
        return None
    total = 0.0
    for term in re.findall(rf"[-+]? ?{NUMBER}(?: ?[*/] ?{NUMBER})*", text):
        value, sign = 1.0, "*"
        for factor in re.findall(rf"[*/]|{NUMBER}", term):
            if factor in {"*", "/"}:
                sign = factor
            elif sign == "*":
                value *= float(factor)
            elif float(factor) == 0:
                return Wish("sum", None, whole=True)
            else:
                value /= float(factor)
        total += -value if term.startswith("-") else value
    return Wish("sum", round(total, 6), whole=True)


@cache
def _units() -> Any:
    import pint  # takes a second, which only conversions wait for

    return pint.UnitRegistry(autoconvert_offset_to_baseunit=True)


def _unit(words: str) -> Any:
    """Return pint's unit of words such as "square metres"; what it does not know raises."""
    words = re.sub(r"^(?:degrees?|us|u s) ", "", words)
    words = " ".join(NAMES.get(word, NAMES.get(word.removesuffix("s"), word)) for word in words.split())
    words = re.sub(r"(square|cubic) (\w+)", lambda found: f"{found[2]}**{2 if found[1] == 'square' else 3}", words)
    return _units().Unit(words.replace(" per ", "/").replace(" ", "_"))


def _conversion(text: str, _: datetime) -> Wish | None:
    """Return the wish for an amount in another unit, converted; None: the whole sentence is none, or the units do not fit."""
    unit = r"[a-z]+(?: [a-z]+){0,2}"
    found = re.fullmatch(
        rf"(?:convert|what(?:'s| is)|how much (?:is|are)|change)? ?(?P<n>{NUMBER}) (?P<of>{unit}?) (?:to|in|into) (?P<to>{unit})"
        rf"|how many (?P<to2>{unit}?)(?: (?:are|is))?(?: there)? in (?P<n2>{NUMBER}|an?) (?P<of2>{unit})",
        text,
    )
    if found is None:
        return None
    number, of, to = (found[name] or found[f"{name}2"] for name in ("n", "of", "to"))
    try:
        amount = _units().Quantity(1.0 if number in {"a", "an"} else float(number), _unit(of))
        made = amount.to(_unit(to))
    except Exception:  # noqa: BLE001 - pint's many: no units, or not of one kind
        return None
    return Wish(
        "conversion", (round(float(made.magnitude), 3), to.replace("metre", "meter").replace("litre", "liter")), whole=True
    )


def _list(text: str, _: datetime) -> Wish | None:
    """Return the wish to add items to a list, remove them, clear or read it; None: the whole sentence is none."""
    which = r"(?:the|my|our)(?: (?:shopping|grocery|to ?do))? list"
    if found := re.fullmatch(
        rf"(?P<act>add|put|remove|delete|take) (?P<items>.{{1,80}}?) (?P<way>to|on|onto|from|off) {which}", text
    ):
        act = "add" if found["act"] in {"add", "put"} else "remove"
        if (act == "add") != (found["way"] in {"to", "on", "onto"}):
            return None
        items = tuple(re.sub(r"^(?:an?|the|some) ", "", item) for item in re.split(r"(?: and)+ ", found["items"]))
        return Wish("list", (act, items), whole=True)
    if re.fullmatch(rf"(?:clear|empty|delete) {which}", text):
        return Wish("list", ("clear", ()), whole=True)
    if re.fullmatch(
        rf"(?:what(?:'s| is| do i have)|read(?: me)?|show(?: me)?|tell me)(?: what(?:'s| is))?(?: on)? {which}", text
    ):
        return Wish("list", ("read", ()), whole=True)
    return None


def _volume(text: str, _: datetime) -> Wish | None:
    """Return the wish for a volume, 0 to 100, "up" or "down"; None: it is none."""
    what = r"(?:it|(?:the |your )?(?:volume|sound))"
    to = rf"(?:(?:set|turn|change|put) )?(?:the |your )?volume (?:(?:up|down) )?(?:to |at )?({NUMBER})(?: percent)?"
    if found := _one(to, text):
        level = float(found[0][1])
        return Wish("volume", round(level), found[1]) if level <= 100 else None  # noqa: PLR2004 - percent
    for words, value in (
        (rf"turn {what} up|turn up {what}|(?:speak )?louder|volume up", "up"),
        (rf"turn {what} down|turn down {what}|(?:speak )?(?:quieter|softer)|volume down", "down"),
        (r"mute(?: yourself| the sound)?", 0),
    ):
        if re.fullmatch(words, text):
            return Wish("volume", value, whole=True)
    return None


def _date(text: str, now: datetime) -> Wish | None:
    """Return the wish for a date, today's or one so far away, or for the days or weeks until one; None: it is none as a whole."""
    today = now.date()
    be = r"(?: is| was| will)?"
    asked = rf"what(?:'s)?{be}(?: the)?(?: it)? ?(?:date|day)(?: of the week)?{be}(?: it)?(?: be)?(?: today)?"
    away = rf"(?P<ahead>in )?(?P<n>{NUMBER}|an?) (?P<unit>day|week|month|year)s?(?: (?P<way>ago|from now|from today))?"
    if found := re.fullmatch(rf"{asked} {away}", text):
        back = found["way"] == "ago"
        if not (found["way"] or found["ahead"]) or (back and found["ahead"]):
            return None
        number = 1 if found["n"] in {"a", "an"} else float(found["n"])
        moved = _moved(today, -number if back else number, found["unit"])
        return None if moved is None else Wish("date", moved, whole=True)
    if re.fullmatch(rf"{asked}|what day is (?:it )?(?:today|tomorrow)|{asked} tomorrow", text):
        return Wish("date", today + timedelta(days="tomorrow" in text), whole=True)
    until = r"(?P<unit>day|week)s (?:are (?:there|left) |is it )?(?:until|till|til|to|before) (?P<day>.+)"
    if found := re.fullmatch(rf"how many {until}", text):
        day = _day(found["day"], today)
        if day is None:
            return None
        days = (day - today).days
        return Wish("date", (days if found["unit"] == "day" else days // 7, found["unit"], day), whole=True)
    return None


def _moved(day: date, number: float, unit: str) -> date | None:
    """Return the day so many days, weeks, months or years away; None: too far away, or not a whole number of them."""
    if number % 1 or abs(number) * {"day": 1, "week": 7, "month": 31, "year": 366}[unit] > FAR:
        return None
    if unit in {"day", "week"}:
        return day + timedelta(days=number * (7 if unit == "week" else 1))
    months = day.year * 12 + day.month - 1 + int(number) * (12 if unit == "year" else 1)
    year, month = months // 12, months % 12 + 1
    last = (date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)).day
    return date(year, month, min(day.day, last))


def _day(text: str, today: date) -> date | None:
    """Return the next day of this name: a holiday, "july 4th", "the 4th of july"; None: it is none."""
    text = re.sub(r"^the | day$", "", text)
    month_day = DAYS.get(text)
    if found := re.fullmatch(r"(?:(\d\d?)(?:st|nd|rd|th)?(?: of)? ([a-z]+)|([a-z]+) (?:the )?(\d\d?)(?:st|nd|rd|th)?)", text):
        name, number = found[2] or found[3], int(found[1] or found[4])
        month_day = (MONTHS.index(name) + 1, number) if name in MONTHS else None
    if month_day is None:
        return None
    for year in range(today.year, today.year + 9):  # a leap day may be eight years away
        try:
            day = date(year, *month_day)
        except ValueError:
            continue
        if day >= today:
            return day
    return None


def spoken_duration(lasts: float) -> str:
    """Return so many seconds in words, "1 hour and 30 minutes"."""
    left, parts = round(lasts), []
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {name}{'s' * (number > 1)}")
    return " and ".join(parts) or "0 seconds"
