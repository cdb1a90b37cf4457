"""Entry point of `python -m edgeroute` and the `edgeroute` command."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line; without typer or rich, print on stderr which extra to install, and exit with status 2.

    A Ctrl-C while the command line is imported ends the process at once with status 130.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background of a shell
        signal.signal(signal.SIGINT, _end)
    from importlib.util import find_spec

    if find_spec("typer") is None or find_spec("rich") is None:
        from edgeroute.system.late_imports_and_plugins import docs_folder

        extra = next((name for name in ("serve", "demo") if name in sys.argv[1:2]), "cli")
        more = f"pip install 'edgeroute[{extra}]'"
        print(f"the command line needs more: {more}; the documentation is in {docs_folder()}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    from edgeroute.system.late_imports_and_plugins import import_tool

    import_tool("cli.command_runner").run(import_tool("cli.app").app)


def _end(*_: object) -> None:
    """End the process at Ctrl-C while the command line is imported, without a traceback: nothing has begun."""
    os._exit(130)


if __name__ == "__main__":
    main()
