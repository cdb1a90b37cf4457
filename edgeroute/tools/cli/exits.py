"""Exit codes of commands, one-line error messages, and how the program ends."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from threading import Thread
from typing import Any, NoReturn

import typer

from edgeroute.core.words import printable
from edgeroute.errors import BadInput, CloudError, EdgerouteError, NoAnswer

OK, FAILED, USAGE, NO_ANSWER, NOT_READY, TOO_FEW = 0, 1, 2, 3, 4, 5
CRASHED, INTERRUPTED, NOBODY_READS = 70, 130, 141
MARKUP = re.compile(r"\[(?=[a-z#/@][^\[\]]*\])")
LEFT: list[Thread] = []
"""Threads that nobody waits for any more, and that may be in a native call, which would abort a process that ends as usual."""
CODES = (
    "Exit codes: 0 fine; 1 an input could not be read or answered; 2 wrong usage, policy, model or file; "
    "3 no answer, the cloud was needed and could not be reached; 4 `check` found something that is not ready, `arms` a trial "
    "that is worse; 5 too few examples for what `calibrate` or `recertify` was asked to promise; 70 a mistake in edgeroute; "
    "130 ended by Ctrl-C or at a question; 141 nobody reads the output."
)


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


def run(app: typer.Typer) -> NoReturn:
    """Runs the command line, and ends the process: quietly at Ctrl-C, and when nobody reads its output any more (`| head`).

    What the encoding of the output lacks is written as an escape. What Python would do at its end is left out where a command was
    interrupted, since it may take long: threads are waited for, and all modules are taken apart.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    out = sys.stdout
    if out is not None:  # pythonw has none
        sys.stdout = _Output(out)
    try:
        _at_ctrl_c(signal.default_int_handler)
        code = _run(app, as_json="--json" in sys.argv)
        if out is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except _NobodyReads:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # for what is still buffered
        code = NOBODY_READS
    _at_ctrl_c(signal.SIG_DFL)  # all is done: Python's own handler would print a traceback
    if code == INTERRUPTED or any(thread.is_alive() for thread in LEFT):
        _leave(code)
    sys.exit(code)


def _at_ctrl_c(handler: Any) -> None:
    """What Ctrl-C does from here on, unless it is ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) not in {signal.SIG_IGN, None}:
        signal.signal(signal.SIGINT, handler)


def _leave(code: int) -> NoReturn:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, _NobodyReads):
            stream.flush()
    os._exit(code)


def _run(app: typer.Typer, *, as_json: bool) -> int:
    try:
        return int(_command(app)(prog_name="edgeroute", standalone_mode=False) or OK)
    except typer.Abort:
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as e:  # noqa: BLE001 - told in one way or another
        if not hasattr(e, "format_message"):  # what the parser raises has it, and no error of another kind
            print(json.dumps({"error": str(e), "kind": type(e).__name__}) if as_json else traceback.format_exc(), file=sys.stderr)
            return CRASHED
        if as_json:
            print(json.dumps({"error": e.format_message(), "kind": "Usage"}), file=sys.stderr)
        else:
            from typer.rich_utils import rich_format_error

            rich_format_error(e)  # type: ignore[arg-type]
        return USAGE


@cache
def _command(app: typer.Typer) -> Any:
    """Builds the parser, once for each process."""
    return _plain(typer.main.get_command(app))


def _plain(command: Any) -> Any:
    """The command, with brackets in all of its help as they are: Rich takes them for its markup."""
    for part in (command, *command.params):
        for name in ("help", "short_help", "epilog"):
            if isinstance(text := getattr(part, name, None), str):
                setattr(part, name, MARKUP.sub(r"\\[", text))
    for inner in getattr(command, "commands", {}).values():
        _plain(inner)
    return command


class _NobodyReads(BaseException):
    """The other end of the pipe is closed; no handler of other errors is meant."""


class _Output:
    """Standard output, whose writing raises `_NobodyReads` when its reader has gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text."""
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            raise _NobodyReads from None

    def flush(self) -> None:
        """Writes what is buffered."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise _NobodyReads from None
