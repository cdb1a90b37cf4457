"""What the app does, without its page: pictures in, answers out, what waits for the cloud and what arrives late."""

from __future__ import annotations

import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import tomllib
from PIL import Image, ImageOps

from edgeroute import BadInput, EdgerouteError, OpenInference, Outbox, PolicyError, Router, models
from edgeroute.core.routing_policy import Mode
from edgeroute.stores.outbox import Listed

HERE = Path(__file__).parent
MODES: tuple[Mode, ...] = ("prefer_edge", "only_edge", "prefer_cloud", "only_cloud")
SIDE = 28
"""Of the pictures that the models take, in pixels."""
SAMPLES = (0, 1, 12, 23, 25, 40, 66, 68)
"""Of the shipped test images: of some the small model is sure, of others not."""


class Shown(NamedTuple):
    """An answer as the page shows it."""

    id: str
    label: str
    source: str
    """edge, cloud, cache or stale."""
    confidence: float | None
    reason: str
    final: bool
    degraded: bool
    latency_s: float


class LateAnswer(NamedTuple):
    """What the cloud said of a picture that had waited."""

    id: str
    label: str
    instead_of: str
    confidence: float | None
    waited_s: float


class Flight(httpx.HTTPTransport):
    """The way to the cloud, which a switch cuts: for trying what an outage does, without one."""

    offline = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it, unless the switch is off."""
        if self.offline:
            raise httpx.ConnectError("switched off in the app", request=request)
        return super().handle_request(request)


class Garments:
    """The app's models, policy and queue, in a folder of its own. Methods may be called in any thread.

    Args:
        storage: the app's folder. Models, policy and state are made in it at the first start.
        changed: called, in any thread, when the queue or the late answers have changed.
    """

    def __init__(self, storage: Path, *, changed: Callable[[], object] = lambda: None) -> None:
        self.storage, self.changed = storage, changed
        self.file = storage / "policy.toml"
        self.late: deque[LateAnswer] = deque(maxlen=20)
        self._seen: set[str] = set()
        self._flight = Flight()
        self._client = httpx.Client(transport=self._flight)
        self._lock = threading.Lock()
        self._outbox = Outbox(storage / "state" / "outbox.db")  # to look into: the router has its own
        self.note = ""
        """What happened at the start; empty: nothing of note."""
        self._install()
        try:
            self._router = self._open()
        except EdgerouteError as e:  # an older app wrote it, or another program
            self.note = f"the stored policy is refused, and now called policy.refused; the app's own is in force: {e}"
            self.file.replace(self.file.with_suffix(".refused"))
            self._install()
            self._router = self._open()

    def _install(self) -> None:
        """Copies what the app comes with into its storage, at each start: an update of the app brings other models."""
        pair = models.fashion()
        home = self.storage / "models"
        home.mkdir(parents=True, exist_ok=True)
        for file in pair.edge.parent.glob(f"{pair.edge.stem}.*json"):
            shutil.copyfile(file, home / file.name)
        shutil.copyfile(pair.edge, home / pair.edge.name)
        if not self.file.exists():
            shutil.copyfile(HERE / "policy.toml", self.file)

    def _open(self) -> Router[str]:
        table = cloud_of(self.policy)
        cloud = None if table is None else OpenInference(**table, client=self._client)
        router: Router[str] = Router.from_policy(self.file, cloud=cloud)
        router.on_late(self._arrived)
        return router

    def _arrived(self, late: Any) -> None:
        with self._lock:
            if late.id in self._seen:  # an answer whose delivery a crash has cut short comes again
                return
            self._seen.add(late.id)
            before = (late.provisional or {}).get("value", "?")
            self.late.appendleft(LateAnswer(late.id, late.value, before, late.confidence, late.answered_at - late.queued_at))
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
            self._router.check()

    def classify(
        self, picture: np.ndarray[Any, Any], *, mode: Mode | None = None, data_class: str | None = None
    ) -> Iterator[Shown]:
        """Yields the phone's answer at once, and then the final one where the cloud is asked.

        Args:
            picture: uint8 [28, 28], as of `prepare`.
            mode: one of `MODES`; None: the policy's.
            data_class: of the picture; None: none.

        Raises:
            EdgerouteError: there is no answer, for example because it may not leave and the mode wants the cloud alone.
        """
        for a in self._router.refine(picture, mode=mode, data_class=data_class):
            yield Shown(a.id, a.value, a.source, a.confidence, a.reason, a.final, a.degraded, a.latency_s)

    def waiting(self) -> list[Listed]:
        """What waits for the cloud, the oldest first."""
        return self._outbox.list("waiting")

    def classes(self) -> list[str]:
        """The data classes that the policy in force names."""
        rules = tomllib.loads(self.policy).get("egress", {})
        return [*rules.get("may_leave", []), *rules.get("never_leave", [])]

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
                    self._router.reload()
                    return
                router = self._open()
            except Exception:
                self._write(before)
                raise
            self._router, old = router, self._router
        old.close()

    def _write(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text, "utf-8")
        new.replace(self.file)

    def close(self) -> None:
        """Ends the router; what waits is sent by the next start."""
        self._router.close()
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


def prepare(picture: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A photograph as the models take it: one light garment on black, in its middle.

    The ground is what the picture's border looks like. It is turned to black, what differs from it is cut out, and made square.

    Args:
        picture: a PNG, JPEG or WebP file.

    Returns:
        uint8 [28, 28].

    Raises:
        BadInput: it is no such picture, or shows nothing.
    """
    try:
        with Image.open(BytesIO(picture), formats=("PNG", "JPEG", "WEBP")) as image:
            image.draft("L", (1024, 1024))
            small = ImageOps.exif_transpose(image).convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise BadInput("this is no picture that can be read: choose a PNG, JPEG or WebP file") from e
    small.thumbnail((512, 512))
    grey = np.asarray(small)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = float(np.median(border))
    if grey.shape == (SIDE, SIDE) and ground < SIDE:
        return grey.copy()  # as the models take it already
    apart = np.abs(grey.astype(np.float32) - ground)
    there = apart > max(24.0, 0.25 * float(apart.max()))
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not rows.size:
        raise BadInput("there is nothing to be seen in this picture: one garment on a plain ground")
    cut = np.where(there, apart, 0)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut *= 255 / cut.max()
    garment = Image.fromarray(cut.astype(np.uint8))
    scale = SIDE / max(garment.size)
    garment = garment.resize((max(1, round(garment.width * scale)), max(1, round(garment.height * scale))))
    square = Image.new("L", (SIDE, SIDE))
    square.paste(garment, ((SIDE - garment.width) // 2, (SIDE - garment.height) // 2))
    return np.asarray(square).copy()
