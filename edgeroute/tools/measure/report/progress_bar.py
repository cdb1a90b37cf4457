"""Progress of a long run: a bar on stderr or in a notebook, or a callback of the application."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.errors import PolicyError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# A function of (done, total); True: a bar, or lines without a terminal; None: a bar on a terminal; False: nothing.
Progress: TypeAlias = "bool | Callable[[int, int], object] | None"
Show: TypeAlias = "Callable[[int, int], object]"
AGAIN_S = 0.1  # time between two updates of a bar in a notebook, seconds
LINES = 10  # lines to print without a terminal


@contextmanager
def bar() -> Iterator[Bar]:
    """Provide a progress bar of rich on stderr, shown only if that is a terminal. Stdout is not used."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    if console.is_terminal:
        with progress:
            yield progress
    else:
        yield progress


@contextmanager
def show_progress(progress: Progress, what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show the progress of a run during the `with` block; yields a function that adds to the number done.

    Args:
        progress: how to show it.
        what: description of the work.
        total: number of items to do.

    Raises:
        PolicyError: `progress` is something else.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise PolicyError(f"progress= must be True, False, or a function of (done, total), not a {type(progress).__name__}")
    done = 0
    with _display(progress, what) as show:

        def advance(count: int) -> None:
            """Add to the number done, and show it."""
            nonlocal done
            done += count
            show(done, total)

        yield advance


def _display(progress: Progress, what: str) -> AbstractContextManager[Show]:
    """Return a context manager of a function that shows the progress.

    It is the callback, else a notebook's bar, a bar in a terminal if rich is there, lines on stderr if `progress` is True, or
    nothing.
    """
    if callable(progress):
        return nullcontext(progress)
    if progress is False:
        return nullcontext(_nothing)
    if in_notebook():
        return nullcontext(_Cell(what))
    if sys.stderr is not None and sys.stderr.isatty() and find_spec("rich") is not None:
        return _terminal(what)
    return nullcontext(_Lines(what) if progress else _nothing)


def _nothing(done: int, total: int) -> None:
    """Show nothing."""


def in_notebook() -> bool:
    """Return True in a kernel of Jupyter, which shows HTML; imports nothing."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def _terminal(what: str) -> Iterator[Show]:
    """Provide a function that shows a bar in the terminal."""
    with bar() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Cell:
    """Progress bar in the output of a notebook's cell. Not rich's, which needs ipywidgets there."""

    def __init__(self, what: str) -> None:
        self._what, self._at, self._handle = what, 0.0, None
        self._display: Any = import_module("IPython.display")

    def __call__(self, done: int, total: int) -> None:
        now = monotonic()
        if self._handle is not None and done < total and now < self._at + AGAIN_S:
            return
        self._at = now
        text = f'<progress value="{done}" max="{total}"></progress> {html.escape(self._what)}: {done:,} of {total:,}'
        if self._handle is None:
            self._handle = self._display.display(self._display.HTML(text), display_id=True)
        else:
            self._handle.update(self._display.HTML(text))


class _Lines:
    """Progress lines on stderr."""

    def __init__(self, what: str) -> None:
        self._what, self._printed = what, 0

    def __call__(self, done: int, total: int) -> None:
        if (part := done * LINES // total) > self._printed:
            self._printed = part
            print(f"{self._what}: {done:,} of {total:,}", file=sys.stderr)  # noqa: T201 - the caller requested it
