"""What is taken as words of the cloud: a reply comes from elsewhere, and may hold anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeroute import BadReply

MOST_WORDS = MOST_LETTERS = 200
FARTHEST = 1 << 15
"""Pixels from the corner of the picture."""


def checked(endpoint: Any) -> Any:
    """The endpoint, which takes a reply only if it has words in it: else the device's stand, and the reason says why."""
    decode = endpoint.decode
    endpoint.decode = lambda reply, count: [(words_of(value), sure) for value, sure in decode(reply, count)]
    return endpoint


def words_of(value: Any) -> list[dict[str, Any]]:
    """The words of a reply, as `reader.answer` gives those of the device.

    Raises:
        BadReply: they are none, or too many or too long to be drawn.
    """
    if not isinstance(value, list) or len(value) > MOST_WORDS:
        raise BadReply(f"the cloud's words are no list of at most {MOST_WORDS}")
    try:
        return [_word(word["text"], word["box"], word["score"]) for word in value]
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise BadReply(
            f'a word of the cloud is not {{"text": at most {MOST_LETTERS} characters, "box": 4 corners [x, y], "score": 0 to 1}}'
        ) from e


def _word(text: Any, box: Any, score: Any) -> dict[str, Any]:
    corners = np.array(box, np.float64)
    near = corners.shape == (4, 2) and bool((abs(corners) <= FARTHEST).all())
    if not near or not isinstance(text, str) or len(text) > MOST_LETTERS or not 0 <= score <= 1:
        raise ValueError
    text.encode()  # half of a surrogate pair is no text
    return {"text": " ".join(text.split()), "box": corners.round().astype(int).tolist(), "score": float(score)}
