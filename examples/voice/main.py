"""A voice assistant that works without a network: commands, intents and open questions, on this device first.

python examples/voice/main.py                       listens to the microphone; without one it plays a script
python examples/voice/main.py --say "seven"         hears what espeak-ng says
python examples/voice/main.py --wav question.wav    hears recordings
python examples/voice/main.py --type                reads from the keyboard
python examples/voice/main.py wyoming               is a service for Home Assistant
python examples/voice/main.py bench                 measures how quickly it answers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import early
import sound
from dialogue import Dialogue, Reply
from listen import listen
from mouth import Mouth, mouth
from routers import HERE, opened
from wake import AWAKE_S, WORDS, WakeWord, after

from edgeroute import EdgerouteError

early.over()
SCRIPT = ["seven", "what time is it", "what is the capital of france", "three"]


def main(arguments: list[str] | None = None) -> int:
    """Runs one of the commands -> the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("listen", "wyoming", "bench"), default="listen")
    parser.add_argument("--say", nargs="+", metavar="TEXT", help="hear these sentences, spoken by espeak-ng")
    parser.add_argument("--wav", nargs="+", type=Path, metavar="FILE", help="hear these recordings")
    parser.add_argument("--type", action="store_true", help="read lines from the keyboard instead of speech")
    parser.add_argument("--wake", choices=WORDS, help="only hear what is said after this word")
    parser.add_argument("--headset", action="store_true", help="you may interrupt: the microphone does not hear the loudspeaker")
    parser.add_argument("--silent", action="store_true", help="print the answers, and do not speak them")
    parser.add_argument("--policies", type=Path, default=HERE, metavar="FOLDER", help="with the three policy files")
    parser.add_argument("--uri", default="tcp://127.0.0.1:10300", help="where the Wyoming service listens")
    given = parser.parse_args(arguments)
    try:
        with opened(given.policies) as dialogue:
            if given.command == "wyoming":
                from service import run

                run(dialogue, given.uri)
            elif given.command == "bench":
                from bench import bench

                bench(dialogue)
            elif given.type:
                read(dialogue)
            else:
                own = mouth(silent=given.silent)
                chunks, live = source(given, own)
                listen(dialogue, chunks, own, show, live=live)
    except (sound.NoSound, EdgerouteError) as e:
        print(f"voice: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


def source(given: argparse.Namespace, own: Mouth) -> tuple[Iterator[Any], bool]:
    """The chunks of audio, and whether they come from a microphone."""
    chunks: Iterator[Any]
    live = False
    if given.wav:
        chunks = sound.chunks(map(sound.read_wav, given.wav))
    elif given.say:
        chunks = sound.chunks([sound.spoken(text) for text in given.say])
    else:
        try:
            chunks, live = sound.microphone(), True
            if not given.headset:
                chunks = own.unheard(chunks)  # nor does the wake word hear the loudspeaker
            print("Listening. Say a digit, ask for the time, or ask a question; Ctrl-C ends.")
        except sound.NoSound as e:
            print(f"({e}; so espeak-ng speaks for you: {', '.join(map(repr, SCRIPT))})")
            chunks = sound.chunks(script(given.wake))
    if given.wake:
        chunks = after(WakeWord(given.wake), chunks)
    return chunks, live


def script(wake: str | None) -> Iterator[sound.Samples]:
    """The sentences of the script, each after the wake word, if there is one, and when it listens no more."""
    for text in SCRIPT:
        if wake:
            yield sound.silence(AWAKE_S)
            yield sound.spoken(WORDS[wake], words_a_minute=140)
        yield sound.spoken(text)


def read(dialogue: Dialogue) -> None:
    """Answers lines from the keyboard."""
    print("Type a line; Ctrl-D ends.")
    talk = dialogue.conversation()
    for line in sys.stdin:
        reply = dialogue.of_text(line.strip(), talk)
        if reply is not None:
            show(reply)


def show(reply: Reply | str) -> None:
    """Prints a reply, or a note."""
    if isinstance(reply, str):
        print(reply)
        return
    more, source = "" if reply.final else " ...", f"{reply.source}: " if reply.source else ""
    print(f"{reply.heard!r:40} {reply.kind:8} {reply.text}{more}\n{'':40} {source}{reply.reason}")


if __name__ == "__main__":
    sys.exit(main())
