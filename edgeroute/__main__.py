"""Entry point of `python -m edgeroute` and the `edgeroute` command."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Runs the command line, which needs the extra `cli`."""
    if find_spec("typer") is None or find_spec("rich") is None:
        from edgeroute.packaged import pages

        extra = next((name for name in ("serve", "demo") if name in sys.argv[1:2]), "cli")
        more = f"pip install 'edgeroute[{extra}]'"
        print(f"the command line needs more: {more}; the documentation is in {pages()}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    from edgeroute.cli.app import app
    from edgeroute.cli.exits import run

    run(app)


if __name__ == "__main__":
    main()
