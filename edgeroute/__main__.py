"""Entry point of `python -m edgeroute` and the `edgeroute` command."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Runs the command line, which needs the extra `cli`."""
    if find_spec("typer") is None or find_spec("rich") is None:
        print("the command line needs more: pip install 'edgeroute[cli]'", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    from edgeroute.cli.app import app

    app()


if __name__ == "__main__":
    main()
