"""Stands for a hosted language model: a server on this machine with OpenAI's API, which knows the answer to one question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from edgeroute.testing import CannedServer, chat_events, sse_reply

KNOWN = {"Which planet is the smallest?": "Mercury is the smallest planet of the solar system."}
ELSE = "(Here a large model would answer.)"


class Standin:
    """What it was asked, as it came over the wire.

    Attributes:
        url: where it listens.
        questions: the last message of each request.
    """

    def __init__(self) -> None:
        self.url = ""
        self.questions: list[str] = []

    def reply(self, request: bytes) -> bytes:
        """Answers a request, in pieces."""
        head, _, body = request.partition(b"\r\n\r\n")
        if not head.startswith(b"POST"):
            return sse_reply([])
        question = json.loads(body)["messages"][-1]["content"]
        self.questions.append(question)
        words = KNOWN.get(question, ELSE).split(" ")
        return sse_reply(chat_events([words[0], *(f" {word}" for word in words[1:])], usage=(12, len(words))))


@contextmanager
def started() -> Iterator[Standin]:
    """The server, until the block ends."""
    one = Standin()
    with CannedServer(one.reply) as server:
        one.url = server.url
        yield one
