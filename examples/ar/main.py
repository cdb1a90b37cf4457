"""Reads signs, and shows them in English: at once on the device, and by the cloud where the device is not sure.

`python main.py` reads the browser's camera, a scene if it is off; `main.py 0` camera 0, `main.py FILE` a film or picture.
`main.py cloud` is the cloud by itself, `check` says what runs where and what may leave, `bench` measures.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cloud
import scene
import sources
from overlay import Folder, Overlay, jpeg
from words import checked, letters

from edgeroute import EdgerouteError, FrameUpdate, ModelError, NoAnswer, Router, register
from edgeroute.policy import Settings, load
from edgeroute.testing import Relay

POLICY = Path(__file__).with_name("policy.toml")
HOLD = 2  # other words are shown once the device has read them so many times in a row
NOT_YET = "http://127.0.0.1/read"  # in place of the URL of a cloud that is not started yet
SCENE = 0.08  # difference from which a picture is another one: a hand that shakes makes none
STALE_S = 4.0  # an answer of the cloud to a frame that is older is of no use: the camera has moved on
STILL_S = 60.0  # a picture that stays may take so long


def settings_of(policy: Path, url: str | None) -> Settings:
    """Return what a policy says, if there is nothing wrong with it; also registers the runtime `.ocr`.

    url: of the cloud, set as an environment variable in place of the policy's.
    """
    register(".ocr", "reader:TextReader")
    if url is not None:
        os.environ["EDGEROUTE_CLOUD__URL"] = url  # goes before the file
    return load(policy)


def router_of(policy: Path, url: str | None = None, **more: Any) -> Router:
    """Return the router of a policy; url: of the cloud, in place of the policy's; more: what else is not as in the policy."""
    clouds = [checked(section.make(policy.parent)) for section in settings_of(policy, url).cloud]
    return Router.from_policy(policy, cloud=clouds, views={"cloud": jpeg}, **more)  # a JPEG file; the device reads pixels


def warm(router: Router) -> None:
    """Load the networks and have them read, before there are frames: TensorRT compiles them the first time, past any deadline.

    A network that cannot be loaded is only told, on stderr.
    """
    print("loading the networks (with TensorRT the first time takes minutes)", flush=True)
    try:
        router.warm([scene.frame_at(1.0)])  # a sign, as in a picture without words there is nothing to recognise
    except ModelError as e:
        print(f"{e}\nwhat the device cannot read the cloud is asked about, if it may leave", file=sys.stderr)


def show(router: Router, source: Any, screen: Any, *, data_class: str = "scene", busy: float = 1.0, sure: float = 1.0) -> Any:
    """Show what is read in the frames until they end or the screen does, and return the statistics; closes the source.

    Pictures that stay are read one by one: each has its final answer before the next is taken, however long that takes.
    """
    still = source if isinstance(source, sources.Stills) else None
    pace = {"drop": "never", "scene": None, "stale": None, "deadline": STILL_S} if still else {"scene": SCENE, "stale": STALE_S}
    overlay, drawn, go_on = Overlay(sure), None, still.go_on if still else lambda: None
    frames = router.frames(source, hold=1 if still else HOLD, label=letters, data_class=data_class, busy=busy, **pace)
    away, before = False, frames.stats()
    with frames, contextlib.closing(still) if still else contextlib.nullcontext(), contextlib.suppress(KeyboardInterrupt):
        for update in answered(frames, go_on):  # also after the source has ended: until the cloud has answered, or is too late
            now = frames.stats()  # a failure to answer about a frame that is over is not an update, but counted
            if (now.refined, now.unrefined) != (before.refined, before.unrefined):
                away, before = now.refined == before.refined, now
            drawn = overlay.take(update, away=away)
            if not screen.show(drawn):
                break
            if update.final:
                go_on()
        else:
            if drawn is not None and drawn.state == "waiting":
                screen.show(drawn._replace(state="degraded", reason="the cloud has not answered in time"))
    return frames.stats()


def answered(frames: Iterator[FrameUpdate], failed: Callable[[], object] = lambda: None) -> Iterator[FrameUpdate]:
    """Yield the updates; a frame that nobody could read is printed to stderr, calls `failed`, and the next one follows."""
    while True:
        try:
            yield next(frames)
        except StopIteration:  # noqa: PERF203 - a frame that fails is not the end
            return
        except NoAnswer as e:
            print(e, file=sys.stderr)
            failed()


@contextlib.contextmanager
def cuttable(url: str) -> Iterator[tuple[str, Callable[[bool], None] | None]]:
    """Yield the URL of a way to the cloud, and a function that cuts it (True) and mends it; None: with TLS there is none."""
    parts = urlsplit(url)
    if parts.scheme != "http":
        yield url, None
        return
    with Relay(parts.hostname or "", parts.port or 80) as relay:

        def cut(away: bool) -> None:
            relay.shut = away
            if away:
                relay.cut()

        yield f"{relay.url}{parts.path}", cut


def screen_of(given: argparse.Namespace, camera: sources.Camera) -> Any:
    """Return where it is shown: a folder of pictures for `--out`, else a page, whose address is printed.

    Raises:
        SystemExit: the page cannot have the port, or does not start.
    """
    if given.out is not None:
        return Folder(given.out)
    from page import Page

    try:
        page = Page(given.port, None if given.source else camera)
    except OSError as e:
        raise SystemExit(f"the page cannot have port {given.port}: {e.strerror}. --port 0 takes any that is free") from e
    except RuntimeError as e:
        raise SystemExit(f"{e}") from e
    print(f"open {page.url} (Ctrl+C ends)", flush=True)
    return page


def main(arguments: list[str]) -> None:
    """Run `cloud`, `bench`, or what the arguments say; errors of edgeroute and of files end the program with a message."""
    if arguments[:1] == ["cloud"]:
        cloud.main(arguments[1:])
        return
    if arguments[:1] == ["bench"]:
        import bench

        bench.main(arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", nargs="*", help="a camera's number, a film, pictures, folders of them; none: the browser's camera, and a scene"
    )
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument(
        "--cloud", type=url, metavar="URL", help="of a cloud that runs, ending in /read; without it one is started here"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write pictures there in place of showing them")
    parser.add_argument("--port", type=cloud.port, default=8765, help="of the page; 0: any that is free")
    parser.add_argument("--seconds", type=seconds, help="end after so long; pictures are all read")
    parser.add_argument("--data-class", default="scene", help='what the frames are; "private" ones never leave, by this policy')
    parser.add_argument("--busy", type=float, default=1.0, help="the share of time that the device may spend on reading")
    given = parser.parse_args(arguments)
    for name in {"bench", "check", "cloud"}.intersection(given.source):
        if name != "check" or len(given.source) > 1:
            parser.error(f"{name} comes first, and with no source: main.py {name} --help. A file of this name is ./{name}")
    try:
        run(given)
    except (EdgerouteError, OSError) as e:
        raise SystemExit(f"{type(e).__name__}: {e}") from e
    except KeyboardInterrupt:
        print()


def url(text: str) -> str:
    """Return an argument that is the URL of a cloud.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError
    return text


def seconds(text: str) -> float:
    """Return an argument that is a length of time.

    Raises:
        ValueError: it is none.
    """
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def run(given: argparse.Namespace) -> None:
    """Check the policy, open screen, cloud and router, load the networks, and show the frames; or, for `check`, what runs where.

    Prints the counts of frames at the end. Raises SystemExit if no frame came.
    """
    checks = given.source == ["check"]
    threshold = settings_of(given.policy, given.cloud or NOT_YET).threshold
    sure = min(threshold) if isinstance(threshold, list | tuple) else threshold if isinstance(threshold, float) else 1.0
    with contextlib.ExitStack() as stack:
        camera, screen, frames = sources.Camera(), None, None
        if not checks:
            length = given.seconds
            if length is None and given.out is not None and not given.source:
                length = scene.EACH_S * len(scene.SIGNS)  # each sign once
            frames = sources.opened(given.source, camera, 0.0 if given.out else sources.PICTURE_S)  # none is taken yet
            frames = frames if length is None or isinstance(frames, sources.Stills) else sources.until(frames, length)
            screen = stack.enter_context(contextlib.closing(screen_of(given, camera)))
        where, cut = stack.enter_context(cuttable(given.cloud or stack.enter_context(cloud.started())))
        router = stack.enter_context(router_of(given.policy, where))
        if cut and not isinstance(screen, Folder | None):
            screen.switch(lambda away: (cut(away), None if away else router.link_up()))
        warm(router)
        if checks:
            print(router.check())
            return
        stats = show(router, frames, screen, data_class=given.data_class, busy=given.busy, sure=sure)
        if not stats.read:
            raise SystemExit("no frame came of the source")
        print(f"{stats.read} frames, {stats.dropped} passed over for newer ones, {stats.answered} read on the device, "
              f"{stats.refined} in the cloud, "
              f"{stats.outdated} of its answers too late; {stats.unrefined} times it did not answer")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
