"""Exit codes of commands, and one-line error messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from edgeroute.core.texts import printable
from edgeroute.errors import BadInput, CloudError, EdgerouteError, NoAnswer

OK, FAILED, USAGE, NO_ANSWER, INTERRUPTED = 0, 1, 2, 3, 130


def exits(command: Callable[..., int]) -> Callable[..., None]:
    """Wraps a command for typer: its result becomes the exit code, an EdgerouteError one line on stderr."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            code = command(*args, **options)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except EdgerouteError as e:
            print(line(e, as_json=options.get("as_json", False)), file=sys.stderr)
            code = code_of(e)
        raise typer.Exit(code)

    return run


def code_of(error: EdgerouteError) -> int:
    """The exit code for this error."""
    if isinstance(error, NoAnswer | CloudError):
        return NO_ANSWER
    return FAILED if isinstance(error, BadInput) else USAGE


def line(error: EdgerouteError, *, as_json: bool, **more: str) -> str:
    """Formats an error; `more` has what it is about."""
    text = str(error) or type(error).__name__
    if as_json:
        return json.dumps({**more, "error": text, "kind": type(error).__name__})
    return printable(": ".join(["error", *more.values(), text]))
