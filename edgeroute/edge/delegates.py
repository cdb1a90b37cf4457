"""Delegates of TFLite: libraries that run a model's operators on a device of their own."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from edgeroute.edge.model_file import first_line
from edgeroute.errors import ModelError

_EDGE_TPU = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}.get(sys.platform, "libedgetpu.so.1")
_INSTALL = {_EDGE_TPU: " (of Coral: apt-get install libedgetpu1-std)"}


def shown(delegate: str) -> str:
    """Its name without folders, which differ between devices."""
    return PurePath(delegate).name


def loaded(module: Any, delegate: str, options: Mapping[str, Any]) -> Any:
    """The delegate of that name or path.

    Args:
        module: the runtime's module with `load_delegate`.
        delegate: "edgetpu", or a library.
        options: for it.

    Raises:
        ModelError: there is no such library, it is no delegate, or it finds no device.
    """
    library = _EDGE_TPU if delegate == "edgetpu" else delegate
    try:
        there = ctypes.CDLL(library)  # first by itself: the runtime's own error comes with others from a finaliser
    except OSError as e:
        raise ModelError(
            f"the delegate {library} cannot be loaded: {first_line(e)}. Install it{_INSTALL.get(library, '')}, give its absolute "
            "path, or leave delegate out"
        ) from e
    if not hasattr(there, "tflite_plugin_create_delegate"):
        raise ModelError(f"{library} is a library, and no delegate of TFLite: it has no tflite_plugin_create_delegate")
    try:
        return module.load_delegate(library, dict(options))
    except (ValueError, RuntimeError) as e:
        told = " ".join(str(e).split()).removeprefix(f"Failed to load delegate from {library}").strip()
        raise ModelError(f"the delegate {library} does not begin: {told or 'it finds no device, or takes other options'}") from e
