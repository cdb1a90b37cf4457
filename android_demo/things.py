"""What the app does, without its page: pictures in, cards with answers out, which late answers change."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import tomllib
from PIL import Image, ImageOps
from sentences import sentence

from edgeroute import Answer, BadInput, EdgerouteError, MayNotLeave, OpenInference, Outbox, PolicyError, Router
from edgeroute.core.policy_egress_and_options import Mode
from edgeroute.core.reason_text_and_trace_record import error_code
from edgeroute.tools.state_colours_and_marks import STATES, StateName, answer_state

HERE = Path(__file__).parent
SIDE = 260
"""Of the pictures that the models take, in pixels."""
KEPT = 20
"""Cards that are kept; those that wait are kept as well."""
PHOTOS = ("cup", "apple", "cat", "plant", "butterfly", "tower", "squirrel", "dog")
"""Photographs that the app comes with: of some the small model is sure, of others not."""


class Card(NamedTuple):
    """Picture and what is known of it."""

    id: str
    """The request's id; before the first answer one of the app's own."""
    picture: bytes
    """JPEG."""
    label: str = ""
    state: StateName | None = None
    """None: no answer, or none yet."""
    text: str = ""
    """Sentence that says why; empty: no answer yet."""
    sure: float | None = None
    """Confidence of the phone."""
    unsure: bool = True
    """True if that is below what the policy asks."""
    asked_at: float = 0.0
    """Unix time, seconds."""


class Flight(httpx.HTTPTransport):
    """The way to the cloud, which a switch cuts: for trying what an outage does, without one."""

    offline = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it, unless the switch is off."""
        if self.offline:
            raise httpx.ConnectError("switched off in the app", request=request)
        return super().handle_request(request)


class Things:
    """Models, policy, queue and cards of the app, in a folder of its own. Methods may be called in any thread.

    Args:
        storage: the app's folder. Models, policy and state are made in it at the first start.
        changed: called, in any thread, when a card has changed.
    """

    def __init__(self, storage: Path, *, changed: Callable[[], object] = lambda: None) -> None:
        self.storage, self.changed = storage, changed
        self.file, self.folder = storage / "policy.toml", storage / "cards"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cards = {card.id: card for file in self.folder.glob("*.json") if (card := read(file)) is not None}
        self._early: dict[str, Any] = {}  # late answers that came before the answer that they replace was shown
        self._flight = Flight()
        self._client = httpx.Client(transport=self._flight)
        self._lock = threading.RLock()
        self.note = ""
        """What happened at the start; empty: nothing of note."""
        self._install()
        self._give_up()
        try:
            self.router = self._open()
        except EdgerouteError as e:  # an older app wrote it, or another program
            self.note = f"The stored policy is refused, and now called policy.refused; the app's own is in force: {e}"
            self.file.replace(self.file.with_suffix(".refused"))
            self._install()
            self.router = self._open()

    def _install(self) -> None:
        """Copies what the app comes with into its storage, at each start: an update of the app brings other models."""
        shutil.copytree(HERE / "models", self.storage / "models", dirs_exist_ok=True)
        if not self.file.exists():
            shutil.copyfile(HERE / "policy.toml", self.file)

    def _open(self) -> Router[str]:
        table = cloud_of(self.policy)
        cloud = None if table is None else OpenInference(**table, client=self._client)
        router: Router[str] = Router.from_policy(self.file, cloud=cloud)
        router.on_late(self.arrived)
        return router

    def _give_up(self) -> None:
        """Has cards say so whose request is no longer in the outbox, since its time is over."""
        outbox = Outbox(self.storage / "state" / "outbox.db")
        there = {entry.id for entry in outbox.list()}
        outbox.close()
        for card in self.cards():
            if card.state == "waiting" and card.id not in there:
                self.keep(
                    card._replace(state="degraded", text=sentence("deadline", "degraded", sure=card.sure, unsure=card.unsure))
                )

    def cards(self) -> list[Card]:
        """Returns the cards, the newest first."""
        with self._lock:
            return sorted(self._cards.values(), key=lambda card: -card.asked_at)

    def keep(self, card: Card) -> None:
        """Keeps a card, in memory and on disk, and forgets the oldest ones that wait for nothing."""
        with self._lock:
            write(self.folder / f"{card.id}.json", card)  # first: if the disk fails, a late answer is delivered again
            self._cards[card.id] = card
            for old in self.cards()[KEPT:]:
                if old.state != "waiting":
                    del self._cards[old.id]
                    (self.folder / f"{old.id}.json").unlink(missing_ok=True)

    def arrived(self, late: Any) -> None:
        """Changes the card of a late answer's picture, once."""
        with self._lock:
            card = self._cards.get(late.id)
            if card is None:
                self._early[late.id] = late
                return
            if card.state != "waiting":  # an answer whose delivery a crash has cut short comes again
                return
            same = "same" if late.value == card.label else "other"
            text = sentence("below", "cloud", sure=card.sure, unsure=card.unsure, late=same)
            self.keep(card._replace(label=late.value, state="cloud", text=text))
        self.changed()

    @property
    def offline(self) -> bool:
        """Whether the way to the cloud is cut."""
        return self._flight.offline

    @offline.setter
    def offline(self, offline: bool) -> None:
        self._flight.offline = offline
        if not offline:  # a phone's system tells of its network; of this switch nobody does, so the endpoint is tried
            threading.Thread(target=self._try, daemon=True).start()

    def _try(self) -> None:
        with suppress(EdgerouteError):  # the router may be closed meanwhile
            self.router.check()

    def ask(self, picture: bytes, *, mode: Mode | None = None, private: bool = False) -> Iterator[Card]:
        """Yields the card with the phone's answer at once, and then with the final one where the cloud is asked.

        Args:
            picture: JPEG, as of `prepare`.
            mode: of routing; None: the policy's.
            private: True if nothing of it may leave.

        Raises:
            OSError: the disk fails.
        """
        asked_at = time.time()
        with Image.open(BytesIO(picture)) as image:
            pixels = np.asarray(image.convert("RGB"))
        card = Card(f"none-{time.monotonic_ns()}", picture, "No answer", asked_at=asked_at)
        try:
            for answer in self.router.refine(pixels, mode=mode, data_class="private" if private else "everyday"):
                card = shown(answer, card)
                yield card
        except MayNotLeave:
            card = card._replace(text=sentence("stays", None))
        except EdgerouteError as e:
            state: StateName | None = "degraded" if card.state else None  # what was shown by then stands
            card = card._replace(state=state, text=sentence(error_code(e), state, sure=card.sure, unsure=card.unsure))
        with self._lock:
            self.keep(card)
            late = self._early.pop(card.id, None)
        if late is not None:
            self.arrived(late)
        yield self._cards.get(card.id, card)

    def waiting(self) -> int:
        """Returns the number of cards that wait for the cloud."""
        return sum(card.state == "waiting" for card in self.cards())

    @property
    def policy(self) -> str:
        """The policy in force, as TOML."""
        return self.file.read_text("utf-8", errors="replace")

    @policy.setter
    def policy(self, text: str) -> None:
        """Puts another policy in force.

        Raises:
            PolicyError, ModelMissing: it has a mistake; the old one stays in force.
        """
        before = self.policy
        with self._lock:
            self._write(text)
            try:
                if cloud_of(text) == cloud_of(before):
                    self.router.reload()
                    return
                router = self._open()
            except Exception:
                self._write(before)
                raise
            self.router, old = router, self.router
        old.close()

    def _write(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text, "utf-8")
        new.replace(self.file)

    def close(self) -> None:
        """Ends the router; what waits is sent by the next start."""
        self.router.close()
        self._client.close()


def cloud_of(policy: str) -> dict[str, Any] | None:
    """What `[cloud]` of a policy says, as arguments of `OpenInference`; None: it has none.

    Raises:
        PolicyError: it is no TOML, or says more than this app reads.
    """
    try:
        table = tomllib.loads(policy).get("cloud")
    except tomllib.TOMLDecodeError as e:
        raise PolicyError(f"this is no TOML: {e}") from e
    if table is None:
        return None
    if other := set(table) - {"url", "timeout"}:
        raise PolicyError(f"cloud.{min(other)}: of [cloud] this app takes url and timeout alone")
    seconds = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", str(table.get("timeout", "2s")))
    if "url" not in table or seconds is None:
        raise PolicyError('cloud: it takes url = "http..." and timeout = "2s"')
    return {"url": table["url"], "timeout_s": float(seconds[1]) / (1000 if seconds[2] == "ms" else 1)}


def shown(answer: Answer[str], card: Card) -> Card:
    """Returns the card with that answer."""
    state = answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final)
    asking = not (answer.final or answer.degraded)  # else it is in the outbox
    trace = answer.trace
    edge = {leg["leg"]: leg["threshold"] for leg in trace.get("plan", ()) if leg["side"] == "edge"}
    said = [
        event["confidence"] for event in trace.get("events", ()) if event["leg"] in edge and event.get("confidence") is not None
    ]
    sure = said[-1] if said else answer.confidence if answer.source != "cloud" else None
    limit = next(iter(edge.values()), None)
    unsure = sure is None or not isinstance(limit, int | float) or sure < limit
    text = sentence(answer.reason_code, state, sure=sure, unsure=unsure, asking=asking)
    return card._replace(id=answer.id, label=answer.value, state=state, text=text, sure=sure, unsure=unsure)


def write(file: Path, card: Card) -> None:
    """Writes a card as JSON, whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({**card._asdict(), "picture": base64.b64encode(card.picture).decode()}), "utf-8")
    new.replace(file)


def read(file: Path) -> Card | None:
    """Returns the card of a file; None: it is none, or of another version of the app."""
    try:
        fields = json.loads(file.read_text("utf-8"))
        card = Card(**{**fields, "picture": base64.b64decode(fields["picture"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return card if card.state in {*STATES, None} else None


def prepare(picture: bytes) -> bytes:
    """Returns a photograph as the models take it: upright, and the square in its middle, 260 x 260 pixels, as JPEG.

    Args:
        picture: a PNG, JPEG or WebP file.

    Raises:
        BadInput: it is no such picture.
    """
    try:
        with Image.open(BytesIO(picture), formats=("PNG", "JPEG", "WEBP")) as image:
            image.draft("RGB", (1024, 1024))
            image.thumbnail((4 * SIDE, 4 * SIDE))
            upright = ImageOps.exif_transpose(image)
            ground = Image.new("RGBA", upright.size, "white")
            ground.alpha_composite(upright.convert("RGBA"))
            square = ImageOps.fit(ground.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise BadInput("This picture cannot be read. Choose a PNG, JPEG or WebP file.") from e
    file = BytesIO()
    square.save(file, "JPEG", quality=90)
    return file.getvalue()


def photograph(name: str) -> bytes:
    """Returns one of `PHOTOS`, as the models take it."""
    return (HERE / "photos" / f"{name}.jpg").read_bytes()
