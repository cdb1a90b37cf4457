"""What is done for a command, or an intent. Most are named and no more: what they do in your house is yours to write."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

COMMANDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SKILLS: dict[str, Callable[[], str]] = {
    "time": lambda: f"It is {datetime.now().astimezone():%H:%M}.",
    "date": lambda: f"It is {datetime.now().astimezone():%A, %B %d}.",
    "flip_coin": lambda: random.choice(["Heads.", "Tails."]),  # noqa: S311 - a game
    "roll_dice": lambda: f"{random.randint(1, 6)}.",  # noqa: S311 - a game
    "greeting": lambda: "Hello.",
    "goodbye": lambda: "Goodbye.",
    "thank_you": lambda: "You are welcome.",
    "are_you_a_bot": lambda: "I am a program on this device.",
    "what_is_your_name": lambda: "I have none.",
    "what_can_i_ask_you": lambda: "Say a digit, ask for the time, or ask me a question.",
}


def commanded(word: str) -> str:
    """Does what a command asks for -> what is said."""
    return f"{word}."


def done(intent: str) -> str:
    """Does what an intent asks for -> what is said."""
    skill = SKILLS.get(intent)
    return f"Intent: {intent.replace('_', ' ')}." if skill is None else skill()
