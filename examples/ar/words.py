"""Words of signs: what they say in English, and what is taken as words of the cloud, whose reply may hold anything."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute import BadReply

DEVICE = [Path(__file__).with_name("signs.tsv")]
CLOUD = [*DEVICE, Path(__file__).with_name("signs_cloud.tsv")]
MOST_WORDS = MOST_LETTERS = 200
FARTHEST = 1 << 15  # pixels from the corner of the picture
LONGEST = 6  # words of a phrase in the table
CLOSE = 0.84  # likeness from which a misread word is taken as one of the table


def key(text: str) -> str:
    """Return a text's letters and digits without accents and capitals: the device's recogniser loses spaces, and has no ö."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if letter.isalnum())


class Table:
    """Translations of words and phrases, by their letters. An English word, and a number, stands for itself.

    Args:
        paths: files of lines "language, words, English", separated by tabs.
        close: True: a word that is nearly one of the table is taken as that.
    """

    def __init__(self, paths: Iterable[Path], *, close: bool = False) -> None:
        rows = [line.split("\t") for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
        self._says = {key(words): english for _, words, english in rows}
        self._english = {key(word) for _, _, english in rows for word in [english, *english.split()]}
        self._close = close

    def translate(self, text: str) -> tuple[str, bool]:
        """Return a line in English, and True if all its words are known; those that are not stay as they are."""
        tokens, found, known, at = re.sub(r"(?<=\d)(?=[^\W\d]{2})|(?<=[^\W\d]{2})(?=\d)", " ", text).split(), [], True, 0
        while at < len(tokens):
            for until in range(min(len(tokens), at + LONGEST), at, -1):
                says = self._phrase(tokens[at:until])
                if says is not None:
                    break
            else:
                says, until, known = tokens[at], at + 1, False
            found.append(says or " ".join(tokens[at:until]))
            at = until
        says = " ".join(found)
        return (says.upper() if text.isupper() else says[:1].upper() + says[1:] if text[:1].isupper() else says), known

    def _phrase(self, tokens: list[str]) -> str | None:
        """Return the English words; empty: it stands for itself; None: unknown.

        With `close` a name much like one of the table is that.
        """
        name = key("".join(tokens))
        if name in self._says:
            return self._says[name]
        if name in self._english or (len(tokens) == 1 and (not name or any(map(str.isdecimal, name)))):
            return ""
        plain = self._close and not any(map(str.isdecimal, name))
        close = difflib.get_close_matches(name, self._says, 1, CLOSE) if plain else []
        return self._says[close[0]] if close else None


def said(words: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return what the words say, as they are written."""
    return tuple(word["text"] for word in words)


def letters(words: list[dict[str, Any]]) -> str:
    """Return the letters of what is shown, by which answers are compared: a lost space or another box corrects nothing."""
    return key("".join(word["says"] or word["text"] for word in words))


def checked(endpoint: Any) -> Any:
    """Return the endpoint, which takes a reply only if it has words in it: else the device's stand, and the reason says why."""
    decode = endpoint.decode
    endpoint.decode = lambda reply, count: [(words_of(value), sure) for value, sure in decode(reply, count)]
    return endpoint


def words_of(value: Any) -> list[dict[str, Any]]:
    """Return the words of a reply, as `reader.answer` gives those of the device.

    Raises:
        BadReply: they are none, or too many or too long to be drawn.
    """
    if not isinstance(value, list) or len(value) > MOST_WORDS:
        raise BadReply(f"the cloud's words are no list of at most {MOST_WORDS}")
    try:
        return [_word(word["text"], word["says"], word["box"], word["score"]) for word in value]
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise BadReply(
            f'a word of the cloud is not {{"text" and "says": at most {MOST_LETTERS} characters, "box": 4 corners [x, y], '
            '"score": 0 to 1}'
        ) from e


def _word(text: Any, says: Any, box: Any, score: Any) -> dict[str, Any]:
    """Return a word of a reply, checked, with its white space as single blanks.

    Raises:
        ValueError: its box, score or texts are wrong.
    """
    corners = np.array(box, np.float64)
    near = corners.shape == (4, 2) and bool((abs(corners) <= FARTHEST).all())
    if not near or not 0 <= score <= 1 or not all(isinstance(one, str) and len(one) <= MOST_LETTERS for one in (text, says)):
        raise ValueError
    text, says = (" ".join(one.split()) for one in (text, says))
    (text + says).encode()  # half of a surrogate pair is no text
    return {"text": text, "says": says, "box": corners.round().astype(int).tolist(), "score": float(score), "known": True}
