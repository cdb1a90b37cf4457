"""The command line, run in forks of a process that has imported it: as a process of its own, without half a second of imports.

As a program it is that process. What is about the start of Python itself, signals, terminals and pipes is run by `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m", "edgeroute"]
PIPE_BYTES = 1 << 16
"""What a pipe takes before anybody reads it."""


def cli(*args, input=b"", cwd=None, env=None):  # noqa: A002 - as of `subprocess.run`
    """Runs `edgeroute` to its end, with this standard input and this whole environment -> exit code, stdout, stderr."""
    args, sent = [str(arg) for arg in args], input.encode() if isinstance(input, str) else input
    if server is None or len(sent) > PIPE_BYTES:
        done = subprocess.run([*PYTHON, *args], input=sent, cwd=cwd, env=env, check=False, capture_output=True, timeout=240)
        return done.returncode, done.stdout.decode(), done.stderr.decode()
    mine, theirs = socket.socketpair()
    reads, writes = os.pipe()
    os.write(writes, sent)
    os.close(writes)
    with mine, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given = {"args": args, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        with theirs:
            server.run(given, [reads, out.fileno(), err.fileno(), theirs.fileno()])
        os.close(reads)
        mine.settimeout(240)
        code = int(mine.recv(100))
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(), err.read().decode()


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


class Server:
    """The process of which each command is a fork. It is started for the first one, and ends with this process.

    The connection is there from the beginning: what a test leaves open is looked for.
    """

    def __init__(self):
        self._mine, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = None
        atexit.register(self._end)

    def run(self, given, files):
        """Runs that command with these files: its input, output and errors, and where its exit code is written."""
        if self._process is None:
            self._start()
        socket.send_fds(self._mine, [json.dumps(given).encode()], files)

    def _start(self):
        self._mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with self._theirs:
            command = [sys.executable, __file__, str(self._theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[self._theirs.fileno()], stdin=subprocess.DEVNULL)

    def _end(self):
        self._mine.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait(30)


server = Server() if sys.platform == "linux" and __name__ != "__main__" else None


def serve(control):
    """Forks for each command -> in the fork that is to run it, that command; None in the server, at its end."""
    while True:
        said, files, *_ = socket.recv_fds(control, 1 << 20, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0 if not said else os.WNOHANG)[0]:
                pass
        if not said:
            return None
        if os.fork() == 0:
            control.close()
            child = os.fork()
            if child == 0:
                for number, file in enumerate(files[:3]):
                    os.dup2(file, number)
                for file in files:
                    os.close(file)
                return json.loads(said)
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(OSError):  # the test was ended meanwhile
                os.write(files[3], str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for file in files:
            os.close(file)


def main():
    """Imports what commands import, serves, and in a fork runs the command as `python -m edgeroute` does."""
    import onnxruntime  # noqa: F401 - for the forks

    import edgeroute.cli.app
    import edgeroute.router.router  # noqa: F401 - for the forks
    from edgeroute.__main__ import main as run

    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # those of OpenBLAS, which bear it
    given = serve(socket.socket(fileno=int(sys.argv[1])))
    if given is None:
        return
    os.chdir(given["cwd"])
    os.environ.clear()
    os.environ.update(given["env"])
    sys.argv = ["edgeroute", *given["args"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - as Python opens them
    code = 0
    try:
        run()
    except SystemExit as e:
        code = e.code
    threading._shutdown()  # private: Python has no other name for the end of a process
    atexit._run_exitfuncs()  # private: likewise
    sys.stdout.flush()
    os._exit(code)  # native libraries would wait for threads that a fork does not have


if __name__ == "__main__":
    main()
