"""`Home`, which does what was wished for, and keeps what lasts: timers, alarms, the list, the volume. It needs no network."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from wishes import Wish, spoken_duration

COMMANDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INTENTS = {
    "timer": {"timer"}, "alarm": {"alarm"}, "sum": {"calculator"}, "conversion": {"measurement_conversion"},
    "list": {"shopping_list", "shopping_list_update", "todo_list", "todo_list_update"}, "date": {"date", "next_holiday", "time"},
    "volume": {"change_volume"}, "repeat": {"repeat"}, "stop": {"cancel", "timer", "alarm"}, "coin": {"flip_coin"},
}  # fmt: skip
"""Of each skill, the intents with which a sentence may wish for it."""
ASKED = {
    "timer": "For how long? Say: set a timer for ten minutes.",
    "alarm": "For what time? Say: set an alarm for half past six.",
    "change_volume": "How loud? Say: set the volume to forty percent.",
    "cancel": "Say: stop.",
    "repeat": "Say: repeat that.",
    **dict.fromkeys(("shopping_list", "shopping_list_update", "todo_list", "todo_list_update"), "Say: add milk to my list."),
}
"""What is said where an intent is sure and its sentence lacks something: nothing is done then."""
MOST = 100
"""Timers, and items of the list."""
SAYINGS: dict[str, Callable[[], str]] = {
    "time": lambda: f"It is {local_time():%H:%M}.",
    "date": lambda: f"It is {local_time():%A, %B %d}.",
    "roll_dice": lambda: f"{random.randint(1, 6)}.",  # noqa: S311 - a game
    "greeting": lambda: "Hello.",
    "goodbye": lambda: "Goodbye.",
    "thank_you": lambda: "You are welcome.",
    "are_you_a_bot": lambda: "I am a program on this device.",
    "what_is_your_name": lambda: "I have none.",
    "what_can_i_ask_you": lambda: "Set a timer, ask for a sum, keep a list, or ask me a question.",
}
"""What is said to further intents. What they do in your house is yours to write."""


def local_time() -> datetime:
    """Return the time of day here."""
    return datetime.now().astimezone()


class Running(NamedTuple):
    """A timer or an alarm that has not ended."""

    kind: str
    ends: datetime
    name: str
    thread: threading.Timer


class Home:
    """What skills act upon. For any number of threads.

    Attributes:
        ring: called in a thread of its own with what is to be said as a timer ends; None: nobody would hear it, so none is set.
        now: the local time.
    """

    def __init__(self, ring: Callable[[str], object] | None = None, now: Callable[[], datetime] = local_time) -> None:
        self.ring, self.now = ring, now
        self.items: list[str] = []
        self.volume = 50
        self._running: list[Running] = []
        self._threads: list[threading.Timer] = []
        self._lock = threading.Lock()

    def running(self) -> list[Running]:
        """Return timers and alarms that have not ended, the next one first."""
        with self._lock:
            return sorted(self._running, key=lambda one: one.ends)

    def wait(self) -> None:
        """Pause until the timers and alarms have ended and have rung, or were stopped."""
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            alive[0].join()

    def close(self) -> None:
        """End all timers and alarms without a word."""
        self._cancel("")

    def do(self, wish: Wish, before: str = "") -> str:
        """Do what was wished for, and return what is said.

        Args:
            wish: the wish.
            before: what was said before, for who wants to hear it again.
        """
        return str(getattr(self, f"_{wish.skill}")(wish.value, before))

    def _repeat(self, _: None, before: str) -> str:
        return before or "I have said nothing yet."

    def _coin(self, _: None, __: str) -> str:
        return random.choice(["Heads.", "Tails."])  # noqa: S311 - a game

    def _stop(self, what: str, _: str) -> str:
        """Cancel all timers, or all alarms, and return what is said; anything else stops no more than the talk."""
        if what not in {"timer", "alarm"}:  # who wants silence now wants to be woken tomorrow nevertheless
            return "Stopped."
        stopped = self._cancel(what)
        if not stopped:
            return f"There is no {what}."
        return "Stopped: " + ", ".join(f"{one.kind} {one.name}" for one in stopped) + "."

    def _timer(self, lasts: float | str, _: str) -> str:
        """Start a timer of so many seconds, or with "left" say how long the next one has left; return what is said."""
        if lasts == "left":
            left = [(one.ends - self.now()).total_seconds() for one in self.running() if one.kind == "timer"]
            return f"{spoken_duration(max(1, left[0]))} left." if left else "There is no timer."
        name = spoken_duration(float(lasts))
        return self._start("timer", float(lasts), name, f"Timer for {name}.", f"Your timer of {name} has ended.")

    def _alarm(self, at: datetime, _: str) -> str:
        """Start an alarm that rings at that time, and return what is said."""
        now, name = self.now(), f"{at:%H:%M}"
        day = {0: "today", 1: "tomorrow"}.get((at.date() - now.date()).days, f"on {at:%A}")
        return self._start("alarm", (at - now).total_seconds(), name, f"Alarm at {name} {day}.", f"It is {name}: your alarm.")

    def _sum(self, value: float | None, _: str) -> str:
        return "Nothing can be divided by zero." if value is None else f"{value:,.10g}."

    def _conversion(self, made: tuple[float, str], _: str) -> str:
        return f"{made[0]:,.10g} {made[1]}."

    def _list(self, wish: tuple[str, tuple[str, ...]], _: str) -> str:
        """Add to the list, remove from it, clear or read it, and return what is said; it has 100 items at most."""
        act, given = wish
        with self._lock:
            if act == "add":
                self.items += [item for item in given if item not in self.items][: MOST - len(self.items)]
                return f"On the list: {', '.join(given)}." if set(given) <= set(self.items) else "The list is full."
            if act == "clear":
                self.items.clear()
            elif act == "remove":
                missing = [item for item in given if item not in self.items]
                self.items = [item for item in self.items if item not in given]
                return f"Not on the list: {', '.join(missing)}." if missing else f"Removed: {', '.join(given)}."
            return f"On the list: {', '.join(self.items)}." if self.items else "The list is empty."

    def _volume(self, level: int | str, _: str) -> str:
        """Set the volume, or change it by a step, and return what is said."""
        change = {"up": self.volume + 10, "down": self.volume - 10}
        self.volume = min(100, max(0, change[level] if isinstance(level, str) else level))
        return f"Volume {self.volume} percent."

    def _date(self, value: object, _: str) -> str:
        """Return a day in words, or the number of days or weeks until one."""
        if isinstance(value, tuple):
            number, unit, day = value
            return f"{number} {unit}{'s' * (number != 1)} until {day:%A, %B} {day.day}."
        return f"{value:%A, %B} {value.day}, {value.year}."  # type: ignore[attr-defined]

    def _start(self, kind: str, lasts: float, name: str, said: str, at_its_end: str) -> str:
        """Start a thread that rings after so many seconds, and return `said`; another text if nobody hears it, or 100 run."""
        if self.ring is None:
            return f"I cannot set {'an' if kind == 'alarm' else 'a'} {kind} here: nobody would hear it."
        if len(self.running()) >= MOST:
            return "There are too many timers."
        thread = threading.Timer(lasts, self._ended, [at_its_end])
        thread.daemon = True
        with self._lock:
            self._running.append(Running(kind, self.now() + timedelta(seconds=lasts), name, thread))
            thread.start()
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        return said

    def _ended(self, said: str) -> None:
        """Forget the timer of this thread, and ring unless it was stopped meanwhile."""
        with self._lock:
            left = [one for one in self._running if one.thread is not threading.current_thread()]
            stopped, self._running = len(left) == len(self._running), left
        if self.ring is not None and not stopped:
            self.ring(said)

    def _cancel(self, kind: str) -> list[Running]:
        """Stop the timers of a kind, or all for "", and return them."""
        with self._lock:
            stopped = [one for one in self._running if not kind or one.kind == kind]
            self._running = [one for one in self._running if one not in stopped]
        for one in stopped:
            one.thread.cancel()
        return stopped


def commanded(word: str) -> str:
    """Return what is said to a command."""
    return f"{word}."


def saying(intent: str) -> str:
    """Return what is said to an intent that is none of the ten skills."""
    said = SAYINGS.get(intent)
    return f"Intent: {intent.replace('_', ' ')}." if said is None else said()
