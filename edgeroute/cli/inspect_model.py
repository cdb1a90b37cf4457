"""A model file without its card, as `inspect` runs it: for a limited time, and so that Ctrl-C acts meanwhile."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from edgeroute.cli.exits import LEFT
from edgeroute.edge.load import load
from edgeroute.edge.members import feed_of, member
from edgeroute.edge.state import in_a_turn
from edgeroute.errors import ModelError, PolicyError, RuntimeMissing
from edgeroute.types import EdgeModel, StopToken, TensorSpec

GRACE_S = 1.0
"""How long a run that was told to stop may go on before it is left alone, seconds."""


class Model:
    """A model without a card, as the file has it. One that this system cannot run says so at each run."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.seconds = seconds
        self.until = float("inf")
        with tempfile.TemporaryDirectory() as folder:
            bare = Path(folder) / "card.json"
            bare.write_text("{}", encoding="utf-8")
            model = _loaded(path, bare)
        self.session: Any = None
        self.missing = ""
        try:
            self.session = _within(load_it, None) if (load_it := member(model, "load")) is not None else None
        except RuntimeMissing as e:  # some files can be read where they cannot be run
            self.missing = str(e)
            if not member(model, "outputs"):
                raise
        self.name, self.model = path.stem, model
        self.inputs: tuple[TensorSpec, ...] = tuple(member(model, "inputs"))
        self.outputs: tuple[TensorSpec, ...] = tuple(member(model, "outputs"))
        if not self.outputs:
            raise ModelError(f"{path}: its runtime does not say what the model takes and gives (inputs, outputs)")
        self.until = monotonic() + seconds

    @property
    def metadata(self) -> tuple[str, Mapping[str, str]]:
        """Who has made the file, and what it says besides."""
        meta = self.session.get_modelmeta() if hasattr(self.session, "get_modelmeta") else None
        return ("", {}) if meta is None else (str(meta.producer_name), dict(meta.custom_metadata_map))

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name.

        Raises:
            ModelError: it does not take that, or took too long.
        """
        if self.missing:
            raise ModelError(self.missing)
        left, stop = self.until - monotonic(), StopToken()
        if left <= 0:
            raise ModelError(f"it was not tried further: {self.seconds:g} s were over (--timeout)")
        run = feed_of(self.model)
        if run is None:
            raise ModelError("its runtime runs no tensors by name (run_feed)")
        out = _within(lambda: in_a_turn(run, dict(feed), stop), left, stop)
        return out if isinstance(out, dict) else {self.outputs[0].name: out}

    def renew(self) -> None:
        """As much time again, for the sample."""
        self.until = monotonic() + self.seconds

    def close(self) -> None:
        """Frees it."""
        if (close := member(self.model, "close")) is not None:
            close()


def _loaded(path: Path, bare: Path) -> EdgeModel:
    """The model with that card, if its runtime takes one."""
    try:
        return load(path, card=bare)
    except PolicyError:  # it takes none; or there is no runtime, which is told once more
        return load(path)


def _within(f: Callable[[], Any], seconds: float | None, stop: StopToken | None = None) -> Any:
    """What it returns, in a thread, so that Ctrl-C acts meanwhile; after that time it is told to stop, and then left alone."""
    ended, over = list[Any](), threading.Event()  # by `join`, some Pythons take a thread for ended once Ctrl-C has come

    def run() -> None:
        try:
            ended.append((f(), None))
        except BaseException as e:  # noqa: BLE001 - raised again in the thread that waits
            ended.append((None, e))
        over.set()

    thread = threading.Thread(target=run, daemon=True)
    LEFT.append(thread)
    thread.start()
    if not over.wait(seconds):
        if stop is not None:
            stop()
            over.wait(GRACE_S)
        raise ModelError(f"a run did not end within {seconds:.3g} s, and was stopped")
    result, error = ended[0]
    if error is not None:
        raise error
    return result
