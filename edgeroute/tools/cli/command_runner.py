"""Runner of commands: exit codes, help from docstrings, errors in one line, closed pipes, Ctrl-C, and the end of the process."""

from __future__ import annotations

import atexit
import inspect
import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import cache, wraps
from itertools import takewhile
from pathlib import Path
from threading import Thread, main_thread
from threading import enumerate as threads
from time import monotonic
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import BadInput, CloudError, EdgerouteError, NoAnswer, StoreError
from edgeroute.system.read_and_check_signatures import argument_texts
from edgeroute.system.thread_pool_and_workers import await_native

OK, FAILED, USAGE, NO_ANSWER, NOT_READY, TOO_FEW = 0, 1, 2, 3, 4, 5
CRASHED, INTERRUPTED, NOBODY_READS = 70, 130, 141
MODELS = {".onnx", ".tflite", ".gguf", ".mlpackage"}
ENDS_S = 0.2  # time for the threads of a server that has ended, seconds
MARKUP = re.compile(r"\[(?=[a-z#/@][^\[\]]*\])")
LEFT: list[Thread] = []  # abandoned threads. They may be in a native call, which would abort a process that ends as usual.
CODES = (
    "Exit codes: 0 success; 1 an input could not be read or answered, or `check` found what is not ready; 2 wrong usage, policy, "
    "model or file; 3 no answer, the cloud was needed and could not be reached; 4 a trial is worse in `arms`, or `fleet alarm` "
    "has an alarm; 5 too few examples for the guarantee that `calibrate`, `recertify` or "
    "`fleet calibrate` was asked for; 70 a bug of edgeroute; "
    "130 interrupted by Ctrl-C, or at a question; 141 the output's reader has closed it, as with `| head`."
)


def exits(command: Callable[..., int | None]) -> Callable[..., None]:
    """Wrap a command for Typer: its result is the exit code (None: 0), an `EdgerouteError` a line on stderr, Ctrl-C code 130.

    An `OSError` that names a file is a line, too: its name is too long, or its folder may not be read. Other exceptions pass.
    The wrapper always raises `typer.Exit`. Its help is the docstring before `Args:` or `Raises:`; the texts below `Args:` become
    the help of the options.
    """

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        """Run the command, and raise `typer.Exit` with its code."""
        try:
            code = command(*args, **options) or OK
        except KeyboardInterrupt:
            code = INTERRUPTED
        except EdgerouteError as e:
            print(line(e, as_json=options.get("as_json", False)), file=sys.stderr)
            code = code_of(e)
        except OSError as e:
            if e.filename is None:
                raise
            print(line(StoreError(f"{e.filename}: {e.strerror}"), as_json=options.get("as_json", False)), file=sys.stderr)
            code = USAGE
        raise typer.Exit(code)

    signature = _signature(command)
    run.__doc__ = re.split(r"\n\n(?:Args|Raises):\n", inspect.getdoc(command) or "")[0]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def _signature(command: Callable[..., Any]) -> inspect.Signature:
    """Return a command's signature for Typer: the help of an argument or option is its text under `Args:` in the docstring.

    Without such a text, a parameter stays as it is. Keyword-only ones become options, others arguments; a bool gets no --no-NAME.
    """
    texts, types, parameters = argument_texts(command), get_type_hints(command), []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        hint = parameter.annotation  # Python 3.10: get_type_hints hides an Annotated in an Optional if the default is None
        if name in texts:
            named = [f"--{name.replace('_', '-')}"] if types[name] is bool else []  # without a --no-NAME
            plain = typer.Option(*named) if parameter.kind is parameter.KEYWORD_ONLY else typer.Argument()
            info = copy(next((info for part in (hint, *get_args(hint)) for info in getattr(part, "__metadata__", ())), plain))
            info.help = texts[name]
            hint = Annotated[types[name], info]
        parameters.append(parameter.replace(annotation=hint))
    return inspect.Signature(parameters)


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Return a decorator that adds a function to a group as a command, wrapped by `exits`. name: None: the function's own."""
    return lambda function: group.command(name)(exits(function))


def code_of(error: EdgerouteError) -> int:
    """Return the exit code for an error: 3 without an answer or cloud, 1 for a bad input, 5 for too few examples, else 2."""
    if isinstance(error, NoAnswer | CloudError):
        return NO_ANSWER
    return FAILED if isinstance(error, BadInput) else TOO_FEW if _missing(error) else USAGE


def _missing(error: EdgerouteError) -> dict[str, int]:
    """Return how many examples are needed and missing, if the error is that there are too few; empty for all else."""
    return {name: getattr(error, name) for name in ("needed", "missing") if hasattr(error, name)}


def line(error: EdgerouteError, *, as_json: bool, **more: str) -> str:
    """Format an error as one line of text or JSON; an error without a message is named by its type.

    JSON has also `kind`, the type, and the number of missing examples if that is the error. `more` names its subject: values that
    go before the text, or keys of the JSON.
    """
    text = str(error) or type(error).__name__
    if as_json:
        return json.dumps({**more, "error": text, "kind": type(error).__name__, **_missing(error)})
    return printable(": ".join(["error", *more.values(), text]))


def run(app: typer.Typer) -> NoReturn:
    """Run the command line of `sys.argv`, and end the process with its code.

    Ends quietly at Ctrl-C, and when the reader of the output has closed it (`| head`); with an error in one line if the output
    cannot be written, as on a full disk. What cannot be written on stderr is left out. Characters that the encoding of the output
    lacks are written as escapes. After an interruption, or with a run that was abandoned in a thread, Python's own shutdown is
    skipped, since waiting for threads may take long.
    """
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    out, as_json = sys.stdout, "--json" in sys.argv
    sys.stdout, sys.stderr = _Output(out), _Output(sys.stderr, must=False)
    try:
        _at_ctrl_c(signal.default_int_handler)
        code = _run(app, as_json=as_json)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except _Unwritten as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # for the rest of the buffer
        code = USAGE if (why := e.args[0]) else NOBODY_READS
        if why:
            print(line(StoreError(f"the output cannot be written: {why}"), as_json=as_json), file=sys.stderr)
    _at_ctrl_c(signal.SIG_DFL)  # nothing is left to do: Python's own handler would print a traceback
    if code == INTERRUPTED or any(thread.is_alive() for thread in LEFT):
        _exit_at_once(code)
    sys.exit(code)


def _open_missing_streams() -> None:
    """Open the null device in place of standard streams that are closed: no socket or file may get their numbers, 0 to 2."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr
        pass
    os.close(null)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # also with pythonw
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - until the process ends


def _at_ctrl_c(handler: Any) -> None:
    """Set the process's handler of Ctrl-C, unless Ctrl-C is ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) not in {signal.SIG_IGN, None}:
        signal.signal(signal.SIGINT, handler)


def served(number: int) -> int:
    """Return the exit code of a server that a signal of this number has ended: 130 for Ctrl-C, else 0.

    After Ctrl-C, and if the server has left threads, perhaps with a run that ends in an hour, ends the process here, once exit
    handlers have run: Python's shutdown would wait for the threads first, or for those in native code.
    """
    code = INTERRUPTED if number == signal.SIGINT else OK
    until = monotonic() + ENDS_S
    for thread in {*threads()} - {main_thread()}:
        thread.join(max(0.0, until - monotonic()))  # most have nothing left to do
    if code == INTERRUPTED or len(threads()) > 1:
        _at_ctrl_c(signal.SIG_DFL)  # at another one the handlers that have not run do not
        atexit.unregister(await_native)
        atexit._run_exitfuncs()  # noqa: SLF001 - Python has no public name for it
        _exit_at_once(code)
    return code


def _exit_at_once(code: int) -> NoReturn:
    """Flush the output, ignoring errors, and end the process by `os._exit`: without waiting for threads, or exit handlers."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, _Unwritten):
            stream.flush()
    os._exit(code)


def _run(app: typer.Typer, *, as_json: bool) -> int:
    """Run the command line and return its exit code; print wrong usage, and a crash's traceback, on stderr (JSON with --json).

    KeyboardInterrupt and a closed pipe pass; all other exceptions become exit codes.
    """
    try:
        return int(_command(app)(prog_name="edgeroute", standalone_mode=False) or OK)
    except typer.Abort:
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as e:  # noqa: BLE001 - reported in any case
        if not hasattr(e, "format_message"):  # only the parser's errors have it
            print(json.dumps({"error": str(e), "kind": type(e).__name__}) if as_json else traceback.format_exc(), file=sys.stderr)
            return CRASHED
        if hasattr(e, "message"):
            e.message = e.message.removeprefix("Value error, ")  # pydantic's words, by which Typer checks a choice
            if "extra argument" in e.message and ".toml" in e.message:
                e.message += ": a policy is given by --policy"
            elif "extra argument" in e.message and sys.argv[1] in {"calibrate", "evaluate"}:
                e.message += ": examples are given by --data, and the model by the policy"
            elif getattr(getattr(e, "param", None), "name", "") == "policy" and type(e).__name__ == "MissingParameter":
                e.message = _without_policy(sys.argv[1:])
        if as_json:
            print(json.dumps({"error": e.format_message(), "kind": "Usage"}), file=sys.stderr)
        else:
            from typer.rich_utils import rich_format_error

            rich_format_error(e)  # type: ignore[arg-type]
        return USAGE


def _without_policy(words: list[str]) -> str:
    """Return what to write for a command line without its policy, with the command and files that it names."""
    values = [word.partition("=")[2] if word.startswith("-") else word for word in words]
    command, files = [*takewhile(str.isalpha, words)], [value for value in values if Path(value).suffix[1:2].isalpha()]
    model = next((word for word in files if Path(word).suffix.lower() in MODELS), "model.onnx")
    inputs = next((word for word in files if word != model), "examples.csv")
    more = {"calibrate": f" --max-error 5% --data {shlex.quote(inputs)}", "evaluate": f" --data {shlex.quote(inputs)}"}.get(
        command[0], f" {shlex.quote(inputs)}" if inputs in files else ""
    )
    return (
        "It names the model, and the cloud if there is one. Write a file policy.toml of two lines, [edge] and "
        f"path = {json.dumps(model)}; then: edgeroute {' '.join(command)} --policy policy.toml{more}"
    )


@cache
def _command(app: typer.Typer) -> Any:
    """Build the parser with escaped help texts, once for each process."""
    return _escape_markup(typer.main.get_command(app))


def _escape_markup(command: Any) -> Any:
    """Escape the brackets in all help texts of a command and its subcommands, in place, for Rich, and return the command."""
    for part in (command, *command.params):
        for name in ("help", "short_help", "epilog"):
            if isinstance(text := getattr(part, name, None), str):
                setattr(part, name, MARKUP.sub(r"\\[", text))
    for inner in getattr(command, "commands", {}).values():
        _escape_markup(inner)
    return command


class _Unwritten(BaseException):
    """Raised when standard output cannot be written, with the cause ("": nobody reads it); handlers of errors do not catch it."""


class _Output:
    """Standard output whose writes raise `_Unwritten` where they fail; or standard error, whose failing writes do nothing."""

    def __init__(self, stream: Any, *, must: bool = True) -> None:
        self._stream, self._must = stream, must

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, and return its length; a failure is as in `flush`."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the buffer; a failure raises `_Unwritten` for standard output, and is ignored for standard error."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        """Call a method of the stream; raise `_Unwritten` if it fails and the stream is standard output."""
        try:
            action(*arguments)
        except OSError as e:
            if self._must:
                raise _Unwritten("" if isinstance(e, BrokenPipeError) else e.strerror) from None
