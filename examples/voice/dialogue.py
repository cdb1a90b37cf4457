"""What becomes of an utterance: a command, else its words; of these an intent, else an open question for the language models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from commands import OTHER
from skills import COMMANDS, commanded, done
from sound import Samples

from edgeroute import Answer, EdgerouteError, Router
from edgeroute.router.streams_and_sessions import Conversation

if TYPE_CHECKING:
    from typing_extensions import Self

SURE_COMMAND, SURE = 0.8, 0.5
"""From this confidence on a command is acted upon, and an intent or an answer."""
SYSTEM = "Answer in one short sentence."
MOST_TALK = 2_000
"""Bytes of a conversation that are sent to the language models: the one on the device has a context of 1,024 tokens."""


class Reply(NamedTuple):
    """What is said to an utterance, and where it comes from."""

    kind: Literal["command", "intent", "answer", "nothing"]
    heard: str
    text: str
    source: str
    """Which side answered, edge or cloud; empty where none did."""
    reason: str
    final: bool = True


@dataclass
class Dialogue:
    """Three routers, one behind the other, each with a policy of its own. For any number of threads.

    Attributes:
        commands: audio, float32 [samples] at 16 kHz -> the name of a command.
        intents: text -> the name of an intent.
        questions: messages -> text.
        transcribe: audio -> text.
    """

    commands: Router
    intents: Router
    questions: Router
    transcribe: Callable[[Samples], str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for router in (self.commands, self.intents, self.questions):
            router.close()

    def conversation(self) -> Conversation:
        """A new one: its questions may follow up on each other."""
        return self.questions.conversation(system=SYSTEM)

    def command(self, answer: Answer) -> Reply | None:
        """What is said to a command; None: it is none, or is not sure to be one until the cloud has answered."""
        if answer.value == OTHER or (answer.confidence is not None and answer.confidence < SURE_COMMAND):
            return None
        word = str(answer.value)
        return Reply("command", word, commanded(word), answer.source, answer.reason, final=answer.final)

    def intent(self, text: str) -> Reply:
        """What is said to a request that is one of the intents; "nothing": it is none of them, as far as one can tell."""
        try:
            answer = self.intents.infer(text, data_class="text")
        except EdgerouteError as e:
            return Reply("nothing", text, "", "", str(e))
        if not is_sure(answer):
            return Reply("nothing", text, "", answer.source, answer.reason)
        return Reply("intent", text, done(str(answer.value)), answer.source, answer.reason)

    def answer(self, text: str, talk: Conversation, stopped: Callable[[], bool] = lambda: False) -> Reply | None:
        """The language models' answer to anything else; None: it was stopped, and is no part of the conversation."""
        forget(talk)
        try:
            with talk.stream(text, data_class="text") as stream:
                for _ in stream:
                    if stopped():
                        return None
        except EdgerouteError as e:
            return Reply("nothing", text, "I have no answer to that.", "", str(e))
        found = stream.answer
        sure = found.source == "cloud" or (found.confidence is not None and found.confidence >= SURE)
        said = str(found.value).strip()
        return Reply("answer", text, said if sure else f"I am not sure. {said}", found.source, found.reason)

    def of_text(self, text: str, talk: Conversation, stopped: Callable[[], bool] = lambda: False) -> Reply | None:
        """What is said to a text; None: as `answer`."""
        if not any(map(str.isalnum, text)):
            return Reply("nothing", text, "I did not understand that.", "", "no words were recognised")
        word = text.strip(" .,!?").lower()
        if word in COMMANDS:
            return Reply("command", text, commanded(word), "edge", "its words are those of a command")
        intent = self.intent(text)
        if intent.kind == "intent":
            return intent
        reply = self.answer(text, talk, stopped)
        return None if reply is None else reply._replace(reason=f"no intent ({intent.reason}); {reply.reason}")


def is_sure(answer: Answer) -> bool:
    """Whether an intent is acted upon: not one that the cloud should have been asked about and could not."""
    return not answer.degraded and answer.confidence is not None and answer.confidence >= SURE


def forget(talk: Conversation) -> None:
    """Drops the oldest turns of a long conversation, but for the system's message."""
    system, *turns = talk.messages
    while sum(len(message["content"].encode(errors="replace")) for message in turns) > MOST_TALK:
        del turns[:2]  # what was asked, and the answer
    talk.messages = [system, *turns]
