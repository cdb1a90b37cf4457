"""A voice assistant that works without a network: commands, intents and open questions, on this device first.

python examples/voice/main.py                       listens to the microphone; without one it plays a script
python examples/voice/main.py --say "seven"         hears what espeak-ng says
python examples/voice/main.py --wav question.wav    hears recordings
python examples/voice/main.py --type                reads from the keyboard
python examples/voice/main.py --page                shows each stage of an utterance on a page
python examples/voice/main.py wyoming               is a service for Home Assistant
python examples/voice/main.py bench                 measures how quickly it answers
python examples/voice/main.py matrix                plays a script in four voices and three noises, and counts what is right
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import early
import sound
from dialogue import Dialogue, Reply, Step
from listen import listen
from mouth import Mouth, mouth
from routers import HERE, opened
from wake import AWAKE_S, WORDS, WakeWord, after

from edgeroute import EdgerouteError

if TYPE_CHECKING:
    from page import Page

early.over()
SCRIPT = ["seven", "what is seven times eight", "set a timer for fifteen seconds", "what is the capital of france", "stop"]


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands, and return the exit status: 1 if something for sound or a model is missing, which is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("listen", "wyoming", "bench", "matrix"), default="listen")
    parser.add_argument("--say", nargs="+", metavar="TEXT", help="hear these sentences, spoken by espeak-ng")
    parser.add_argument("--wav", nargs="+", type=Path, metavar="FILE", help="hear these recordings")
    parser.add_argument("--type", action="store_true", help="read lines from the keyboard instead of speech")
    parser.add_argument(
        "--page", nargs="?", type=int, const=0, metavar="PORT", help="show each stage on a page, for browsers here"
    )
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
            elif given.command == "matrix":
                from matrix import matrix

                matrix(dialogue)
            elif given.type:
                read(dialogue)
            else:
                hear(dialogue, given)
    except (sound.NoSound, EdgerouteError) as e:
        print(f"voice: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


def hear(dialogue: Dialogue, given: argparse.Namespace) -> None:
    """Answer what is heard, until it ends, and with a page until Ctrl-C."""
    own = mouth(silent=given.silent)
    if given.page is None:
        chunks, live = source(given, own, dialogue)
        listen(dialogue, chunks, own, show, live=live)
        ended(dialogue)
        return
    from page import Page

    try:
        page = Page(dialogue, given.page)
    except (OSError, OverflowError) as e:
        raise sound.NoSound(f"--page {given.page}: {e}") from e

    def both(reply: Reply | str) -> None:
        show(reply)
        page.show(reply)

    print(f"The page is at {page.url}; Ctrl-C ends.", flush=True)
    with contextlib.closing(page):
        chunks, live = source(given, own, dialogue, page)
        listen(dialogue, chunks, own, both, live=live)


def source(given: argparse.Namespace, own: Mouth, dialogue: Dialogue, page: Page | None = None) -> tuple[Iterator[Any], bool]:
    """Return the chunks of audio, and True if they come from a microphone; without one the script, or the page, speaks.

    With `--wake` what nobody was addressed by is silence.
    """
    chunks: Iterator[Any]
    live = False
    if given.wav or given.say:
        heard = map(sound.read_wav, given.wav) if given.wav else (sound.spoken(text) for text in given.say)
        chunks = sound.chunks(heard if page is None else chain(heard, page.sentences()))
    else:
        try:
            chunks, live = sound.microphone(), True
            if not given.headset:
                chunks = own.unheard(chunks)  # nor does the wake word hear the loudspeaker
            if page is not None:
                chunks = page.beside(chunks)
            print("Listening. Say a digit, set a timer, or ask a question; Ctrl-C ends.")
        except sound.NoSound as e:
            if page is None:
                print(f"({e}; so espeak-ng speaks for you: {', '.join(map(repr, SCRIPT))})")
                chunks = sound.chunks(awake(given.wake, map(sound.spoken, SCRIPT)))
            else:
                print(f"({e}; so say something on the page)", flush=True)
                chunks = sound.chunks(awake(given.wake, page.sentences()))
    if given.wake:

        def listening() -> None:
            print("(listening)")
            dialogue.trace(Step("wake word", WORDS[given.wake]))

        chunks = after(WakeWord(given.wake), chunks, listening=listening)
    return chunks, live


def awake(wake: str | None, sentences: Iterable[sound.Samples]) -> Iterator[sound.Samples]:
    """Yield sentences; with a wake word each after 6 s of silence and that word."""
    for sentence in sentences:
        if wake:
            yield sound.silence(AWAKE_S)
            yield sound.spoken(WORDS[wake], words_a_minute=140)
        yield sentence


def read(dialogue: Dialogue) -> None:
    """Answer lines from the keyboard until it ends."""
    print("Type a line; Ctrl-D ends.")
    dialogue.home.ring = print
    talk = dialogue.conversation()
    for line in sys.stdin:
        reply = dialogue.of_text(line.strip(), talk)
        if reply is not None:
            show(reply)
    ended(dialogue)


def ended(dialogue: Dialogue) -> None:
    """Pause until the timers that were set have ended, too."""
    if running := dialogue.home.running():
        print(f"(waits for {', '.join(f'{one.kind} {one.name}' for one in running)}; Ctrl-C ends)", flush=True)
        dialogue.home.wait()


def show(reply: Reply | str) -> None:
    """Print a reply, or a note."""
    if isinstance(reply, str):
        print(reply)
        return
    heard = repr(reply.heard) if reply.heard else f"({reply.unheard})"
    more, source = "" if reply.final else " ...", f"{reply.source}: " if reply.source else ""
    print(f"{heard:40} {reply.kind:8} {reply.text}{more}\n{'':40} {source}{reply.reason}")


if __name__ == "__main__":
    sys.exit(main())
