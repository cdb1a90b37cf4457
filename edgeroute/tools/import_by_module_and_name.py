"""Objects of Python that a command line names, as `module:name`."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from edgeroute.errors import PolicyError

# `module:name`; a single letter and a colon are a drive, and no module.
_NAMED = re.compile(r"([^\W\d]\w+(?:\.\w+)*):([^\W\d]\w*(?:\.\w+)*)")


def is_python_name(text: str) -> bool:
    """Return True if a text is of the form `module:name`."""
    return _NAMED.fullmatch(text) is not None


def python_object(text: str, what: str) -> Any:
    """Import the module of a `module:name`, from the current folder first, which runs its code; return the object of that name.

    Raises:
        PolicyError: there is no such module or name.
    """
    module, _, name = text.partition(":")
    sys.path.insert(0, here := str(Path.cwd()))
    try:
        thing: Any = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise PolicyError(f"{text} is no {what} in Python: {e}; name it as module:name") from e
    finally:
        if here in sys.path:
            sys.path.remove(here)  # the first one; the module may have inserted others before it
    return thing
