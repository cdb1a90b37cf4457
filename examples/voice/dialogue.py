"""`Dialogue`: an utterance is a command, else its words; these are a skill, else an open question for the language models."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from commands import OTHER
from skills import ASKED, COMMANDS, INTENTS, Home, commanded, saying
from sound import Samples
from transcribe import Words
from wishes import NEGATED, Wish, plain, understood

from edgeroute import Answer, EdgerouteError, Router
from edgeroute.router.streams_sessions_chats import Conversation
from edgeroute.tools.state_colours_and_marks import answer_state

if TYPE_CHECKING:
    from typing_extensions import Self

SURE_COMMAND, SURE, SURE_ANSWER = 0.8, 0.5, 0.7
"""From this confidence on a command is acted upon, an intent, and an answer of the language model on the device."""
SURE_WORDS, SURE_WHOLE, SURE_SHORT = 0.6, 0.5, 0.4
"""From this confidence on a transcript is believed; one that is a whole wish from the second, one for SHORT from the third."""
CLEAR, CLEARER = 0.75, 0.9
"""The least share that a wish has of the likelihood of all readings that are wishes: others may be meant."""
LASTING, MOSTLY = {"timer", "alarm", "list"}, 0.3
"""What lasts is not done on a suspicion: it is the clearer one, and has at least this share of all readings."""
SHORT = {"stop", "repeat", "coin", "volume"}
NOT_CAUGHT = "I did not catch that."
DATED = r"\d|until|\bdays?\b|weeks?"
"""In a sentence about a date: not about today's."""
SYSTEM = "Answer in one short sentence."
LONG_WORDS = 4
"""An answer of more words repeats another one that it begins with, or that begins with it."""
MOST_TALK = 2_000
"""Bytes of a conversation that are sent to the language models: the one on the device has a context of 1,024 tokens."""


class Step(NamedTuple):
    """Something that has just become known about an utterance."""

    stage: Literal["wake word", "heard", "command", "speech to text", "intent", "skill", "language model", "reply"]
    found: str
    """What the stage has found; empty: nothing of use, and another goes on."""
    seconds: float = 0.0
    """It took."""
    state: str = ""
    """A word of the palette; empty where no router was asked."""
    reason: str = ""


class Reply(NamedTuple):
    """What is said to an utterance, and where it comes from."""

    kind: Literal["command", "skill", "intent", "answer", "nothing"]
    heard: str
    text: str
    source: str
    """Which side answered, edge or cloud; empty where none did."""
    reason: str
    final: bool = True
    skill: str = ""
    value: Any = None
    """What a skill was given, as the seconds of a timer."""
    state: str = ""
    """A word of the palette."""
    sent: bool = False
    """Whether the intents' policy let a cloud be asked: its words may have been sent, whatever came of it."""

    @property
    def unheard(self) -> str:
        """What is shown in place of the words of a reply to none."""
        return "a timer or an alarm has ended" if self.skill == "ring" else "no words were heard"


@dataclass
class Dialogue:
    """Three routers, one behind the other, each with a policy of its own, and skills. For any number of threads.

    Attributes:
        commands: audio, float32 [samples] at 16 kHz -> the name of a command.
        intents: text -> the name of an intent.
        questions: messages -> text.
        transcribe: audio -> words.
        home: what the skills act upon.
        trace: called with each step, as it is known, by the thread that has made it.
    """

    commands: Router
    intents: Router
    questions: Router
    transcribe: Callable[[Samples], Words]
    home: Home = field(default_factory=Home)
    trace: Callable[[Step], object] = repr
    _said: WeakKeyDictionary[Conversation, str] = field(default_factory=WeakKeyDictionary)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.home.close()
        for router in (self.commands, self.intents, self.questions):
            router.close()

    def conversation(self) -> Conversation:
        """Return a new conversation: its questions may follow up on each other."""
        return self.questions.conversation(system=SYSTEM)

    def command(self, answer: Answer) -> Reply | None:
        """Return what is said to a command; None: it is none, or is not sure to be one until the cloud has answered.

        Traces the step.
        """
        sure = answer.value != OTHER and (answer.confidence is None or answer.confidence >= SURE_COMMAND)
        word, state = str(answer.value), state_of(answer)
        self.trace(Step("command", word if sure else "", answer.latency_s, state, answer.reason))
        if not sure:
            return None
        return Reply("command", word, commanded(word), answer.source, answer.reason, answer.final, state=state)

    def of_audio(self, audio: Samples, talk: Conversation, stopped: Callable[[], bool] = lambda: False) -> Reply | None:
        """Transcribe audio that is no command, and return what is said to it; None: as `answer`."""
        begun = perf_counter()
        words = chosen(self.transcribe(audio), self.home.now())
        self.trace(Step("speech to text", words.text, perf_counter() - begun, "edge", f"confidence {words.confidence:.2f}"))
        return self.of_text(words.text, talk, stopped, words.confidence)

    def of_text(
        self, text: str, talk: Conversation, stopped: Callable[[], bool] = lambda: False, confidence: float = 1.0
    ) -> Reply | None:
        """Return what is said to a text that was transcribed with this confidence; None: as `answer`. Keeps it for "repeat"."""
        reply = self._of_text(text, talk, stopped, confidence)
        if reply is not None and reply.text and reply.skill != "repeat":
            self._said[talk] = reply.text
        return reply

    def _of_text(self, text: str, talk: Conversation, stopped: Callable[[], bool], confidence: float) -> Reply | None:
        """Return what is said to a text: not understood, a command, a skill or intent, else the language models' answer."""
        if not any(map(str.isalnum, text)):
            return Reply("nothing", text, "I did not understand that.", "", "no words were recognised")
        word = text.strip(" .,!?").lower()
        wish = understood(text, self.home.now())
        least = least_confidence(wish)
        if confidence < least:
            return Reply("nothing", text, NOT_CAUGHT, "", f"transcription {confidence:.2f} < {least:.2f}")
        if word in COMMANDS:
            return Reply("command", text, commanded(word), "edge", "its words are those of a command", state="edge")
        intent = self.intent(text, wish, talk)
        if intent.kind in {"skill", "intent"} or intent.text:
            return intent
        reply = self.answer(text, talk, stopped, sent=intent.sent)
        return None if reply is None else reply._replace(reason=f"no intent ({intent.reason}); {reply.reason}")

    def intent(self, text: str, wish: Wish | None = None, talk: Conversation | None = None) -> Reply:
        """Do what a text wishes for, and return what is said to it, or to another intent; "nothing": it is none of them.

        A sentence is one for a skill by its words alone, if these are its whole, or else by an intent as well. Nothing is done
        where the words say not enough.
        """
        try:
            answer = self.intents.infer(text, data_class="text")
        except EdgerouteError as e:
            sure, name, source, reason, state, sent = False, "", "", str(e), "", True  # its cloud may have been asked before
            self.trace(Step("intent", "", reason=reason))
        else:
            sure, name, source, reason, state = is_sure(answer), str(answer.value), answer.source, answer.reason, state_of(answer)
            sent = may_send(answer)
            self.trace(Step("intent", name if sure else "", answer.latency_s, state, reason))
        if wish is not None and (wish.whole or (sure and name in INTENTS[wish.skill])):
            begun = perf_counter()
            said = self.home.do(wish, "" if talk is None else self._said.get(talk, ""))
            if wish.whole and not (sure and name in INTENTS[wish.skill]):
                reason, source, state = "its words are those of a skill", "edge", "edge"
            self.trace(Step("skill", wish.skill, perf_counter() - begun, "edge", reason))
            return Reply("skill", text, said, source, reason, skill=wish.skill, value=wish.value, state=state)
        if not sure:
            return Reply("nothing", text, "", source, reason, sent=sent)
        if name in ASKED:
            return Reply("nothing", text, ASKED[name], source, f"{name}: its words say not enough; {reason}", state=state)
        if name in {"calculator", "measurement_conversion", "flip_coin"} or (name == "date" and re.search(DATED, text)):
            reason = f"{name}: no sum, no units, no date in its words; {reason}"
            return Reply("nothing", text, "", source, reason, state=state, sent=sent)
        return Reply("intent", text, saying(name), source, reason, skill=name, state=state)

    def answer(
        self, text: str, talk: Conversation, stopped: Callable[[], bool] = lambda: False, *, sent: bool = False
    ) -> Reply | None:
        """Return the language models' answer to anything else; None: it was stopped, and is no part of the conversation.

        Nor is a turn that is not sure, and the oldest turns of a long conversation are dropped. The small model repeats what it
        has said: an earlier answer to another question is unsure, and so is what it says about numbers.

        sent: an earlier stage may have sent the text, so that no policy has kept it on the device.
        """
        forget(talk)
        begun, earlier = perf_counter(), talk.messages
        try:
            with talk.stream(text, data_class="text") as stream:
                for _ in stream:
                    if stopped():
                        return None
        except EdgerouteError as e:
            self.trace(Step("language model", "", perf_counter() - begun, reason=str(e)))
            return Reply("nothing", text, "I have no answer to that.", "", str(e))
        found = stream.answer
        said, state, reason = str(found.value).strip(), state_of(found), found.reason
        state = "edge" if sent and state == "private" else state
        sure = found.source == "cloud" or (found.confidence is not None and found.confidence >= SURE_ANSWER)
        if found.source == "edge" and repeats(said, text, earlier):
            sure, reason = False, f"an earlier answer again; {reason}"
        elif found.source == "edge" and re.search(r"\d", plain(text)):
            sure, reason = False, f"no small language model calculates; {reason}"
        guessed = found.confidence is not None and found.confidence >= SURE  # else what it says makes no sense
        self.trace(Step("language model", said if sure else "", perf_counter() - begun, state if sure else "degraded", reason))
        if not sure:
            talk.messages, state = earlier, "degraded"
            said = f"I am not sure. {said}" if guessed else "I do not know."
        return Reply("answer", text, said, found.source, reason, state=state)


def chosen(words: Words, now: datetime) -> Words:
    """Return the reading of an utterance that is a wish, if there is one; else the likeliest.

    Its confidence is 0 if another wish, or none at all because of a "not", is likely as well. What lasts needs more.
    """
    readings = (words, *words.others)
    wishes = [understood(reading.text, now) for reading in readings]
    refused = [reading.likelihood for reading in readings if NEGATED.search(plain(reading.text))]
    likely: dict[tuple[str, Any], float] = {}
    for reading, wish in zip(readings, wishes, strict=True):
        if wish is not None:
            likely[wish[:2]] = likely.get(wish[:2], 0.0) + reading.likelihood
    if not likely:
        return words
    best = max(likely, key=lambda wish: likely[wish])
    share = likely[best] / (sum(likely.values()) + sum(refused))
    lasts = best[0] in LASTING
    if share < (CLEARER if lasts else CLEAR) or (lasts and likely[best] < MOSTLY * sum(one.likelihood for one in readings)):
        return words._replace(confidence=0.0)
    own = [(wish.whole, one.confidence, one) for one, wish in zip(readings, wishes, strict=True) if wish and wish[:2] == best]
    return max(own, key=lambda found: found[:2])[2]


def least_confidence(wish: Wish | None) -> float:
    """Return how sure a transcript must be, by what it wishes for."""
    if wish is None or wish.skill in LASTING:
        return SURE_WORDS
    return SURE_SHORT if wish.skill in SHORT else SURE_WHOLE


def state_of(answer: Answer) -> str:
    """Return the palette's word for an answer."""
    return answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final)


def may_send(answer: Answer) -> bool:
    """Return whether the policy let a cloud be asked for this answer; True as well of one from a cache, which does not tell."""
    return any(leg["side"] == "cloud" for leg in answer.trace.get("plan", [{"side": "cloud"}]))


def repeats(said: str, question: str, messages: list[dict[str, Any]]) -> bool:
    """Return True if an answer was given before, to another question; of long ones the beginning counts."""

    def bare(text: Any) -> str:
        return " ".join(re.findall(r"\w+", str(text).lower()))

    def same(answer: str) -> bool:
        few = min(said.count(" "), answer.count(" ")) < LONG_WORDS
        return said == answer if few else said.startswith(answer) or answer.startswith(said)

    said, question = bare(said), bare(question)
    return any(
        answered["role"] == "assistant" and bare(asked["content"]) != question and same(bare(answered["content"]))
        for asked, answered in pairwise(messages)
    )


def is_sure(answer: Answer) -> bool:
    """Return whether an intent is acted upon: not one that the cloud should have been asked about and could not."""
    return not answer.degraded and answer.confidence is not None and answer.confidence >= SURE


def forget(talk: Conversation) -> None:
    """Drop the oldest turns of a conversation of more than 2,000 bytes, but for the system's message."""
    system, *turns = talk.messages
    while sum(len(message["content"].encode(errors="replace")) for message in turns) > MOST_TALK:
        del turns[:2]  # what was asked, and the answer
    talk.messages = [system, *turns]
