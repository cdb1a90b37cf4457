"""The command line as its entry point, in this process and with streams of its own; and commands that serve, as processes.

A test whose subject is the process, say its signals, its terminal or its pipes, starts `PYTHON` itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest.mock import patch

from both import LONG

from edgeroute.__main__ import main

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m", "edgeroute"]


def cli(*args, input=b"", cwd=None, env=None, encoding="utf-8"):  # noqa: A002 - as of `subprocess.run`
    """Runs `edgeroute` to its end, with this standard input and this whole environment -> exit code, stdout, stderr.

    The streams are the descriptors 0 to 2, so that what native libraries and child processes print is seen, too.
    """
    with contextlib.ExitStack() as stack, _threads() as threads:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(input.encode() if isinstance(input, str) else input)
        files[0].seek(0)
        with _descriptors(files), _streams(encoding), _own(cwd, env), patch.object(sys, "argv", ["edgeroute", *map(str, args)]):
            code = _code()
        for file in files:
            file.seek(0)
        said = [file.read().decode(encoding) for file in files[1:]]
    for thread in threads:
        if thread.name == "tqdm_monitor":  # it is there for all bars of the process
            continue
        thread.join(LONG)
        assert not thread.is_alive(), f"{thread} is left by {args}"
    return code, *said


@contextlib.contextmanager
def started(command, *args, **environment):
    """A command that serves, in a process of its own on a free port -> the process and the address that it says."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    started = [sys.executable, "-W", "error", "-m", "edgeroute", command, "--port", "0", "--json", *map(str, args)]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)["ready"]
        finally:
            process.kill()


def _code():
    """Calls the entry point -> the exit code with which it would end the process."""
    process, end = os.getpid(), os._exit

    def ends(code):
        if os.getpid() != process:  # a child that the command started
            end(code)
        raise SystemExit(code)

    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with patch.object(os, "_exit", ends):
            main()
    except SystemExit as e:
        return e.code or 0
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
    raise AssertionError("the entry point has returned")


@contextlib.contextmanager
def _threads():
    """The threads that this one starts meanwhile, and those that they start: a server of the test may have others."""
    start, started = threading.Thread.start, []

    def noted(thread):
        if threading.current_thread() in {threading.main_thread(), *started}:
            started.append(thread)
        start(thread)

    with patch.object(threading.Thread, "start", noted):
        yield started


@contextlib.contextmanager
def _descriptors(files):
    """The descriptors from 0 on are those of the files, as they are in a process that was started with them."""
    before = [os.dup(number) for number in range(len(files))]
    try:
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        yield
    finally:
        for number, was in enumerate(before):
            os.dup2(was, number)
            os.close(was)


@contextlib.contextmanager
def _streams(encoding):
    """The standard streams of Python, opened as it opens them."""
    opened = [open(number, mode, encoding=encoding, closefd=False) for number, mode in enumerate("rww")]  # noqa: SIM115
    with opened[0], opened[1], opened[2], patch.multiple(sys, stdin=opened[0], stdout=opened[1], stderr=opened[2]):
        yield


@contextlib.contextmanager
def _own(cwd, env):
    """The folder, the environment, the path of modules and the loggers are the command's, and afterwards as they were."""
    root, package, folder = logging.getLogger(), logging.getLogger("edgeroute"), Path.cwd()
    levels = {logger: logger.level for logger in (root, package)}
    with (
        patch.dict(os.environ, env or {}, clear=env is not None),
        patch.object(sys, "path", sys.path[:]),
        patch.object(root, "handlers", []),  # warnings are printed, as by a program that has set up nothing
    ):
        root.setLevel(logging.WARNING)
        package.setLevel(logging.NOTSET)
        try:
            os.chdir(cwd or folder)
            yield
        finally:
            os.chdir(folder)
            logging.captureWarnings(capture=False)
            for logger, level in levels.items():
                logger.setLevel(level)
