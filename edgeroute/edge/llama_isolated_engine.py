"""Child process that runs llama.cpp: an engine whose native code cannot fill, hold up or end the process that uses it.

Frames go through the child's stdin and stdout: four bytes with the length, then JSON. The parent sends the options, then requests
and stops, each with the number of its call. The child replies with pieces, and with a frame without one at the end of a call. The
child ends when its stdin does, so that it outlives no parent. Signals of a terminal do not reach the child.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from math import inf
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import IO, Any, Final
from weakref import finalize

from edgeroute.core.error_codes_and_texts import FOREIGN, clean
from edgeroute.edge.llama_in_process_engines import LoadOptions, OnPiece, Pieces, open_engine
from edgeroute.edge.runtime_base import NO_MEMORY
from edgeroute.errors import Busy, ModelError, PolicyError, RuntimeMissing
from edgeroute.system.fork_safety import ForkSafe
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads
from edgeroute.system.mailbox import Mailbox
from edgeroute.types import StopToken

LOAD_S = 600.0  # longest load of a model, seconds
# Time for a generation to stop on request, as a share of the time for a token; then the process is killed.
STOP_SHARE: Final = 1 / 12
MOST_GROWTH: Final = 1 << 30  # memory that requests may take beside the loaded model, bytes, on Linux
MOST_FRAME: Final = 1 << 26  # longest frame, bytes
MOST_CALLS: Final = 256  # calls that a child answers or stops at a time
PROGRESS_S: Final = 0.05  # time between two reports that a prompt is being read, seconds
TURN_S: Final = 0.1  # time between two looks at a stop request while all slots are taken, seconds
_HEAD: Final = 4
_STACK: Final = 2 << 20  # stack of a thread that renders a template, bytes: smaller than those of usual threads
_TAIL: Final = 40  # last lines of the child's stderr that are searched for a lack of memory
_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from edgeroute.edge.llama_isolated_engine import main; main()"
)
_KINDS: Final = {kind.__name__: kind for kind in (PolicyError, RuntimeMissing)}
PR_SET_PDEATHSIG: Final = 1  # Linux's number for the signal that a process gets at its parent's end
_EMPTY: Final = {"role": "assistant", "content": None}  # delta of a piece that tells how far the prompt is read, or that it is
_END: Any = None  # item of a call's queue: no more pieces come
_STOP: Any = {}  # item of a call's queue: a stop was requested


# Frames.


def _frame(content: Mapping[str, Any]) -> bytes:
    """Return a frame. Raises TypeError, ValueError or RecursionError for a content that JSON lacks."""
    body = json_dumps(content)
    if len(body) > MOST_FRAME:
        raise ValueError("a frame is too long")
    return len(body).to_bytes(_HEAD, "big") + body


def _write(file: IO[bytes], frame: bytes) -> None:
    """Write one frame. Raises OSError if the other side has ended."""
    view = memoryview(frame)
    while view:
        view = view[file.write(view) or 0 :]


def _read(file: IO[bytes]) -> Any:
    """Read one frame; None at the end. Blocks. Raises ValueError for a frame that is too long or no JSON object."""
    length = int.from_bytes(_exactly(file, _HEAD), "big")
    if length > MOST_FRAME:
        raise ValueError("a frame is too long")
    body = _exactly(file, length)
    if len(body) < length or not body:
        return None
    try:
        frame = json_loads(body)
    except ValueError:
        frame = json_loads(body, exact=True)
    if not isinstance(frame, dict):
        raise ValueError("a frame is no object")  # noqa: TRY004 - of the other side's fault
    return frame


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Read `size` bytes, fewer at the end."""
    data = bytearray()
    while len(data) < size and (part := file.read(size - len(data))):
        data += part
    return bytes(data)


# The parent's side.


class EngineEnded(ModelError):
    """Process of a model that could not be started, took too long, or died."""


class IsolatedEngine(ForkSafe):
    """Engine in a child process, which ends with this object.

    Starts the child, and blocks until the model is loaded.

    Args:
        runtime: name of the package with llama.cpp, or auto.
        wanted: options for loading.
        stall_s: longest time without a piece of an answer, seconds; then the child is killed.
        load_s: longest time for loading, seconds.

    Raises:
        ModelError: the child cannot be started, or cannot load the model.
        RuntimeMissing: llama.cpp is not installed.
    """

    def __init__(self, runtime: str, wanted: LoadOptions, stall_s: float, load_s: float = LOAD_S) -> None:
        self._stall_s, self._where, self._turns = stall_s, f"llama.cpp of {wanted.path.name}", threading.Semaphore(wanted.slots)
        self._numbers = count(1)
        self._calls: dict[int, Mailbox[Any]] = {0: Mailbox()}
        self._frames = Mailbox[Any]()
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._over = threading.Event()
        folder = tempfile.mkdtemp(prefix="edgeroute-")
        python = "" if getattr(sys, "frozen", False) else sys.executable  # which would be the program itself
        command = [python, "-I", "-c", _PROGRAM, json_dumps([str(entry) or "." for entry in sys.path]).decode()]
        result = Mailbox[Any]()
        _begin(_send, command, folder, result, self._frames)
        process = self._process = result.get()
        if isinstance(process, Exception):
            shutil.rmtree(folder, ignore_errors=True)
            raise EngineEnded(f"{self._where} needs a process of its own, which cannot be started: {process}") from process
        # Function that kills the child, and waits for its end; callable from any thread, more than once.
        self.end = finalize(self, _end, process, folder)
        _begin(_receive, process.stdout, self._calls, self._over, self._frames)
        _begin(_listen, process.stderr, self._tail, wanted.verbose)
        self._frames.put(_frame({"runtime": runtime, **wanted._asdict(), "path": str(wanted.path)}))
        try:
            reply = self._calls[0].get(timeout=load_s)
        except Empty:
            self.end()
            raise EngineEnded(f"{self._where} did not load within {load_s:g} s, and its process was ended") from None
        if reply is _END:
            raise self._death()
        if "failed" in reply:
            self.end()
            raise _KINDS.get(reply.get("kind"), ModelError)(clean(reply["failed"], FOREIGN))
        self.address = clean(reply.get("address"), FOREIGN)

    @property
    def ended(self) -> bool:
        """True if the child has ended; this engine generates nothing any more."""
        return self._over.is_set() or not self.end.alive

    def stream(self, request: Mapping[str, Any], chat: bool, on_piece: OnPiece, stop: StopToken) -> None:
        """Generate and report pieces: see `Engine` and `pieces`."""
        with closing(self.pieces(request, chat, stop)) as pieces:
            for piece in pieces:
                on_piece(piece)

    def pieces(self, request: Mapping[str, Any], chat: bool, stop: StopToken) -> Pieces:
        """Generate and yield pieces: see `Engine`. Kills the child if no piece comes for too long, or a stop takes too long.

        Waits for a slot first; a stop requested before it has one ends it without a piece. A request that JSON cannot hold
        becomes a piece with an `error`. Closed early, it has the child stop. Sets `stop.turn_by` to inf once it has begun.

        Raises:
            ModelError: the child has ended, or fails.
            Busy: it has no slot, or no piece, by `stop.turn_by`.
        """
        number, frames = next(self._numbers), Mailbox[Any]()
        try:
            frame = _frame({"call": number, "request": request, "chat": chat})
        except (RecursionError, TypeError, ValueError) as e:
            yield {"error": {"code": 400, "message": str(e)}}
            return
        while stop.asked or not self._turns.acquire(timeout=max(0.0, min(TURN_S, stop.turn_by - monotonic()))):
            if stop.asked:
                return
            self._check_turn(stop)
        self._calls[number] = frames
        if self.ended:  # perhaps before the call was in the table
            frames.put(_END)
        try:
            self._frames.put(frame)
            stop.on_ask(lambda: frames.put(_STOP))
            yield from self._follow(number, frames, stop)
        except BaseException:  # nobody reads the rest
            self._frames.put(_frame({"call": number}))
            raise
        finally:
            del self._calls[number]
            self._turns.release()

    def _follow(self, number: int, frames: Mailbox[Any], stop: StopToken) -> Pieces:
        """Yield the pieces of a call until its end. Closed, it requests a stop, and waits for the end.

        On a stop request it sends a stop, and yields no further piece. Kills the child if it takes too long for a piece, or to
        stop.

        Raises:
            ModelError: the child has ended, or fails.
            Busy: the child has no result by `stop.turn_by`.
        """
        stop_by = None
        while True:
            limit_s = self._stall_s if stop_by is None else stop_by - monotonic()
            try:
                frame = frames.get(min(limit_s, stop.turn_by - monotonic()))
            except Empty:
                self._check_turn(stop)
                self.end()
                if stop_by is None:
                    raise EngineEnded(f"{self._where} gave no token within {self._stall_s:g} s: its process was ended") from None
                return
            stop.turn_by = inf  # also for the further inputs of this run
            if frame is _END:
                raise self._death()
            if "piece" in frame and stop_by is None:
                try:
                    yield frame["piece"]
                except GeneratorExit:
                    stop()
                    with suppress(ModelError):  # nobody is there to be told
                        list(self._follow(number, frames, stop))
                    raise
            elif "failed" in frame:
                raise ModelError(f"{self._where} failed: {clean(frame['failed'], FOREIGN)}")
            elif "end" in frame:
                return
            if stop_by is None and stop.asked:
                stop_by = monotonic() + self._stall_s * STOP_SHARE
                self._frames.put(_frame({"call": number}))

    def _check_turn(self, stop: StopToken) -> None:
        """Raise Busy once the run's instant to begin has passed."""
        if monotonic() >= stop.turn_by:
            raise Busy(f"{self._where} was busy: another generation holds it")

    def _death(self) -> EngineEnded:
        """Return the error for the end of the child, after killing it. Its stderr is not quoted, as that may quote clients."""
        self.end()
        with suppress(subprocess.TimeoutExpired):  # another thread may be ending the child
            self._process.wait(1.0)
        short = any(word in line.lower() for line in [*self._tail] for word in NO_MEMORY)
        why = " for lack of memory" if short else ""
        return EngineEnded(f"{self._where}: its process ended ({self._process.returncode}){why}")

    def after_fork(self) -> None:
        """Close the pipes in a fork of the parent, and mark this engine as ended there; the child goes on, for the parent.

        With its pipes open, the fork would keep the child alive.
        """
        self.end.detach()
        self._over.set()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                file.close()

    def never_free(self) -> None:
        """Leave the child to the parent: see `Engine`."""
        self.after_fork()


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """Kill the child, which has nothing to store, wait for its end, and delete its temporary files."""
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _begin(work: Callable[..., object], *arguments: object) -> None:
    """Begin a function in a daemon thread."""
    threading.Thread(target=work, args=arguments, name="edgeroute-llama", daemon=True).start()


def _send(command: list[str], folder: str, result: Mailbox[Any], frames: Mailbox[Any]) -> None:
    """Start the child, report the process or the error, and write frames until None comes, or the child has ended.

    Runs in a thread of its own: on Linux the child ends with the thread that started it.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - this interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={**os.environ, "TMPDIR": folder}, start_new_session=True,
        )  # fmt: skip
    except Exception as e:  # noqa: BLE001 - also if there is no interpreter
        result.put(e)
        return
    result.put(process)
    file: Any = process.stdin
    with suppress(OSError, ValueError), file:
        while (frame := frames.get()) is not None:
            _write(file, frame)


def _receive(file: IO[bytes], calls: Mapping[Any, Mailbox[Any]], over: threading.Event, frames: Mailbox[Any]) -> None:
    """Read frames and queue each for its call, until the child ends or breaks the protocol; then end all calls."""
    with suppress(Exception), file:
        while (frame := _read(file)) is not None:
            if (call := calls.get(frame.get("call"))) is not None:
                call.put(frame)
    over.set()
    frames.put(None)
    for call in [*calls.values()]:
        call.put(_END)


def _listen(file: IO[bytes], tail: deque[str], verbose: bool) -> None:
    """Read the child's stderr to its end; store its lines in `tail`, and print them if `verbose`.

    They are cleaned to printable text, and begin no record of a log.
    """
    with suppress(OSError, ValueError), file:
        while part := file.read(1 << 16):
            lines = [clean(line, FOREIGN) for line in part.decode("utf-8", "replace").splitlines()]
            tail += lines
            for line in lines if verbose else ():
                print("llama.cpp:", line, file=sys.stderr)  # noqa: T201 - as asked for


# The child's side.


def main() -> None:
    """Load the model and answer requests, until stdin ends; then exit at once. The program of the child: it never returns.

    Ignores Ctrl-C and SIGTERM, sends what native code prints to stderr, and on Linux ends with the thread that started it.
    """
    if sys.platform != "win32":
        with suppress(AttributeError, OSError):  # native code may hold the interpreter, and the end of stdin is not seen
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # likewise, a service manager
    replies, lock = os.fdopen(os.dup(1), "wb", 0), threading.Lock()
    os.dup2(2, 1)  # what native code prints is no frame

    def reply(content: Mapping[str, Any]) -> None:
        """Write a frame to the parent."""
        with lock:
            _write(replies, _frame(content))

    threading.stack_size(_STACK)
    worker = _Worker(reply)
    worker.threads.submit(worker.serve)
    threading.Event().wait()


class _Worker:
    """Model in the child, with the stops of its generations."""

    def __init__(self, reply: Callable[[Mapping[str, Any]], None]) -> None:
        self._reply = reply
        self.threads = ThreadPoolExecutor(MOST_CALLS)
        self._stops: dict[int, StopToken] = {}
        self._engine: Any = None

    def serve(self) -> None:
        """Read frames: apply stops, and load or generate as the first other one asks, while another thread reads on.

        Exits the process at stdin's end, and at a frame that cannot be read.
        """
        with suppress(Exception):  # also if no thread can be begun
            while (frame := _read(sys.stdin.buffer)) is not None:
                call = frame.pop("call", 0)
                if frame:
                    self._stops[call] = StopToken()
                    self.threads.submit(self.serve)
                    return (self._generate if call else self._load)(call, **frame)
                self._stops.get(call, StopToken())()
        os._exit(0)

    def _load(self, call: int, runtime: str, path: str, **wanted: Any) -> None:
        """Load the model within the limits of memory, and report its address; or report the failure, for the parent to raise."""
        try:
            _limit_memory(Path(path))
            self._engine = open_engine(runtime, LoadOptions(path=Path(path), **wanted))
            _limit_memory(None)
            self._reply({"call": call, "address": self._engine.address})
        except BaseException as e:  # noqa: BLE001 - raised by the parent, also a panic, which is no Exception
            self._reply({"call": call, "failed": str(e), "kind": type(e).__name__})

    def _generate(self, call: int, request: Mapping[str, Any], chat: bool) -> None:
        """Generate, and report each piece and the end, or the type of an exception; an empty piece only now and then.

        That is `PROGRESS_S` after the last report, if it tells only how far the prompt is read.
        """
        due = 0.0

        def report(piece: Mapping[str, Any]) -> None:
            nonlocal due
            if monotonic() > due or not piece.get("choices") or piece["choices"][0].get("delta") != _EMPTY:
                due = monotonic() + PROGRESS_S
                self._reply({"call": call, "piece": piece})

        try:
            self._engine.stream(request, chat, report, self._stops[call])
            self._reply({"call": call, "end": True})
        except BaseException as e:  # noqa: BLE001 - the type alone: the text may quote the request
            self._reply({"call": call, "failed": type(e).__name__})
        finally:
            del self._stops[call]


def _limit_memory(path: Path | None) -> None:
    """Limit the memory of this process: while loading by the file's size; then (None) by what is in use, and `MOST_GROWTH` more.

    Also writes no core, and lets the system end this process first for lack of memory. A no-op where the system has no such
    limit.
    """
    if sys.platform == "win32":
        return
    with suppress(AttributeError, OSError, ValueError):
        import resource

        page, (_, hard) = os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_DATA)
        if path is None:
            most = int(Path("/proc/self/statm").read_text().split()[5]) * page + MOST_GROWTH
        else:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = path.stat().st_size + os.sysconf("SC_PHYS_PAGES") * page // 2
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        Path("/proc/self/oom_score_adj").write_text("500")
