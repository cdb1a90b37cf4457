"""Engines that run llama.cpp in this process: one interface for two Python packages, `xllamacpp` and `llama-cpp-python`."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np

from edgeroute.core.error_codes_and_texts import FOREIGN, clean
from edgeroute.errors import ModelError, PolicyError, RuntimeMissing
from edgeroute.system.fork_safety import ForkSafe, initially, list_weakset, per_process
from edgeroute.system.late_imports_and_plugins import import_late, import_needed, no_fork
from edgeroute.system.signal_safe_locks import SafeCondition
from edgeroute.text.read_openai_replies import TOO_LONG
from edgeroute.types import StopToken

OnPiece = Callable[[Mapping[str, Any]], object]  # function that takes each piece of a reply
Pieces = Generator[Mapping[str, Any], None, None]
INSTALL: Final = "llama.cpp is not installed: pip install 'edgeroute[llama]'"
_LONGEST_SOCKET = 100  # longest path of a unix socket that every system takes, bytes
# Set while this process serves a router to clients: models run isolated, unless their `isolate` is False.
SERVES_OTHERS = threading.Event()
EXIT_S = 10.0  # longest wait of the interpreter's exit for generations to stop, seconds


class LoadOptions(NamedTuple):
    """Options for loading a model."""

    path: Path
    context: int  # tokens for each generation
    slots: int  # generations at a time
    threads: int
    gpu_layers: int  # layers on a GPU; -1: all, if there is one
    batch: int  # tokens of a prompt that are read at a time
    template: str | None  # chat template; None: the file's
    verbose: bool


class Engine(Protocol):
    """Loaded model."""

    address: str  # address where other processes of this device could reach the model; empty: none

    @property
    def ended(self) -> bool:
        """True if the engine generates nothing any more, and the model has to be loaded again."""

    def stream(self, request: Mapping[str, Any], chat: bool, on_piece: OnPiece, stop: StopToken) -> None:
        """Generate, and call `on_piece` with each piece of the reply, in OpenAI's JSON, until a stop is requested.

        A failure is a piece with `error`; its code 400 means a fault of the request.
        """

    def pieces(self, request: Mapping[str, Any], chat: bool, stop: StopToken) -> Pieces:
        """Generate in a thread of its own, and yield the pieces that `stream` reports; closing the generator stops that.

        Raises what `stream` raises. Waits for the thread at the end.
        """
        queue = SimpleQueue[Any]()

        def generate() -> None:
            try:
                if not stop.asked:
                    self.stream(request, chat, queue.put, stop)
                queue.put(None)
            except BaseException as e:  # noqa: BLE001 - raised where it is waited for
                queue.put(e)

        thread = threading.Thread(target=generate, name="edgeroute-llama", daemon=True)
        thread.start()
        try:
            for piece in iter(queue.get, None):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stop()
            thread.join()

    def never_free(self) -> None:
        """Keep the model for ever, unused, in a forked child, where its native threads are missing."""


class _ExitGuard(ForkSafe):
    """Counter of the generations in progress, which the interpreter's exit stops and waits for.

    Native code that outlives the interpreter crashes the process.
    """

    now, _count = initially(False), initially(0)
    engines: WeakSet[XLlama] = per_process(WeakSet)
    _ended = per_process(SafeCondition)

    def __init__(self) -> None:
        atexit.register(self.stop)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Count a generation for the time of the block, for which `stop` waits; refuses none, also after `stop`."""
        with self._ended:
            self._count += 1
        try:
            yield
        finally:
            with self._ended:
                self._count -= 1
                self._ended.notify_all()

    def stop(self) -> None:
        """Stop all generations, wait for them up to `EXIT_S` seconds, and free the models, while the interpreter is whole.

        Models stay if a generation has not ended by then.
        """
        self.now, until = True, monotonic() + EXIT_S
        with self._ended:
            while self._count and (left := until - monotonic()) > 0:
                self._ended.wait(left)
            if not self._count:
                for engine in list_weakset(self.engines):
                    engine.free()


EXIT_GUARD = _ExitGuard()  # the counter of this process


class XLlama(Engine):
    """Model by `xllamacpp`, which runs llama.cpp's own server in the process, and always opens a listener.

    The listener gets a unix socket, whose file is deleted as soon as the model is loaded, so that nothing can connect. Where that
    is not possible, it is a port of 127.0.0.1 with a random key that nobody knows.
    """

    ended = False
    # True if a parent of this process had a model: its background threads cannot be joined here, so no server may end.
    forked = False

    def __init__(self, wanted: LoadOptions) -> None:
        module = _import("xllamacpp")
        params = module.CommonParams()
        params.model.path = str(wanted.path)
        params.model_alias = {wanted.path.stem}
        params.n_ctx, params.n_parallel = wanted.context * wanted.slots, wanted.slots
        params.n_batch = params.n_ubatch = wanted.batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted.threads
        params.n_threads_http, params.api_keys = 1, [secrets.token_hex(16)]
        params.n_gpu_layers, params.fit_params = wanted.gpu_layers, False
        params.cache_ram_mib, params.n_ctx_checkpoints = 0, 0  # prompts of earlier requests, kept beside the context
        params.ui = params.endpoint_slots = False
        params.verbosity = 3 if wanted.verbose else -1
        if wanted.template is not None:
            params.chat_template = wanted.template
        with tempfile.TemporaryDirectory(prefix="edgeroute-", ignore_cleanup_errors=True) as folder:
            socket = f"{folder}/s.sock"
            private = sys.platform != "win32" and len(socket) <= _LONGEST_SOCKET
            if private:
                params.hostnames = [socket]
            try:
                with no_fork.lock:
                    self._server = module.Server(params)
                    # once it has answered, its loop runs: one that is freed before that would be waited for, for ever
                    self._server.handle_completions({"prompt": "", "max_tokens": 1})
            except Exception as e:  # a plain RuntimeError; the reason is in its log alone
                raise ModelError(
                    f"llama.cpp (xllamacpp {module.__version__}) cannot load {wanted.path}: it may not know that architecture, "
                    "or have too little memory for this context. verbose=True shows what it says"
                ) from e
        self.address = "" if private else str(self._server.listening_address)
        if XLlama.forked:
            self._add_reference()
        EXIT_GUARD.engines.add(self)

    def free(self) -> None:
        """Free the model, at the interpreter's exit."""
        self._server = None

    def stream(self, request: Mapping[str, Any], chat: bool, on_piece: OnPiece, stop: StopToken) -> None:
        """Generate and report pieces: see `Engine`. An exception of `on_piece` ends the generation, and is raised after it.

        Adds what the server needs to give pieces and log-probabilities. A request that llama.cpp cannot read is reported as an
        error; an interpreter that is exiting raises ModelError.
        """
        caught = list[BaseException]()

        def hear(chunk: Mapping[str, Any]) -> bool:
            """Report a piece, and store an exception, which would be lost in a native call; return True to stop."""
            try:
                on_piece(chunk)
            except BaseException as e:  # noqa: BLE001 - raised again below
                caught.append(e)
            return EXIT_GUARD.now or stop.asked or bool(caught)

        more: dict[str, Any] = {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
        if request.get("tools"):  # its own key: OpenAI's is refused with tools in pieces
            more = {"n_probs": 1}
        more |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        try:
            with EXIT_GUARD.run():
                self._generate({**request, **more}, chat, hear)
        except (RuntimeError, TypeError, ValueError) as e:  # it could not read the request
            on_piece({"error": {"code": 400, "message": str(e)}})
        if caught:
            raise caught[0]

    def _generate(self, request: Mapping[str, Any], chat: bool, hear: Callable[[Mapping[str, Any]], bool]) -> None:
        """Call llama.cpp. Once this has returned, no frame refers to the server.

        Raises:
            ModelError: the interpreter is exiting.
        """
        server = self._server
        if server is None or EXIT_GUARD.now:
            raise ModelError("the interpreter is ending")
        (server.handle_chat_completions if chat else server.handle_completions)(request, hear)

    def never_free(self) -> None:
        """Keep the model for ever: see `Engine`.

        The process's exit must not wait for llama.cpp's threads, so its handlers are skipped.
        """
        self._add_reference()
        if not XLlama.forked:
            XLlama.forked = True
            with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has `on_exit`, others do not
                libc = ctypes.CDLL(None)
                libc.on_exit(libc._exit, None)  # noqa: SLF001 - a function of C

    def _add_reference(self) -> None:
        """Add a reference to the server, so that it is never freed."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))


class LlamaCppPython(Engine):
    """Model by `llama-cpp-python`, for users who have it; runs one generation at a time."""

    address, ended = "", False

    def __init__(self, wanted: LoadOptions) -> None:
        self._module = module = _import("llama_cpp")
        options: dict[str, Any] = {
            "n_ctx": wanted.context, "n_batch": wanted.batch, "n_threads": wanted.threads, "n_threads_batch": wanted.threads,
            "n_gpu_layers": wanted.gpu_layers, "verbose": wanted.verbose,
        }  # fmt: skip
        try:
            with no_fork.lock:
                self._llama = module.Llama(model_path=str(wanted.path), **options)
            if wanted.template is not None:
                eos, bos = (
                    self._llama.detokenize([t], special=True).decode() for t in (self._llama.token_eos(), self._llama.token_bos())
                )
                form = import_late("llama_cpp.llama_chat_format").Jinja2ChatFormatter(wanted.template, eos, bos)
                self._llama.chat_handler = form.to_chat_handler()
        except Exception as e:
            message = clean(e, FOREIGN)
            raise ModelError(f"llama.cpp (llama-cpp-python {module.__version__}) cannot load {wanted.path}: {message}") from e
        self._context, self._turn = wanted.context, threading.Lock()

    def stream(self, request: Mapping[str, Any], chat: bool, on_piece: OnPiece, stop: StopToken) -> None:
        """Generate and report pieces: see `Engine`."""
        with self._turn, EXIT_GUARD.run():
            self._stream(dict(request), chat, on_piece, stop)

    def _stream(self, request: dict[str, Any], chat: bool, on_piece: OnPiece, stop: StopToken) -> None:
        """Generate and report pieces with the log-probabilities of their tokens. The caller holds the lock.

        Errors of llama.cpp are reported as a piece with `error`, not raised. `grammar` in the request is replaced in place.
        """
        taken = _Logprobs()
        try:
            if (grammar := request.pop("grammar", None)) is not None:
                request["grammar"] = self._module.LlamaGrammar.from_string(grammar, verbose=False)
            processors = self._module.LogitsProcessorList([taken])
            call = self._llama.create_chat_completion if chat else self._llama.create_completion
            chunks = call(**request, stream=True, logits_processor=processors)
            sent, last = 0, None
            for chunk in chunks:
                if last is not None:
                    on_piece(last)
                if EXIT_GUARD.now or stop.asked:
                    return
                last, sent = _with_logprobs(chunk, taken.known[sent:]), len(taken.known)
            if last is not None:
                on_piece(_with_logprobs(last, taken.known[sent:] + taken.rest(last)))
        except (AssertionError, RuntimeError, TypeError, ValueError) as e:
            kind = {"type": TOO_LONG} if "context window" in str(e) else {}
            on_piece({"error": {"code": 400, "message": clean(e, FOREIGN), **kind}})

    def never_free(self) -> None:
        """Keep the model for ever: see `Engine`."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._llama))


class _Logprobs:
    """Recorder of the tokens' log-probabilities, called with the logits of each step before a token is drawn.

    The next step shows which token was drawn. llama-cpp-python's own log-probabilities need the logits of the whole prompt in
    memory.
    """

    def __init__(self) -> None:
        self.known: list[float] = []
        self._last: Any = None

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Record the last token's log-probability, and return the logits unchanged.

        Args:
            tokens: [n].
            logits: float32 [vocabulary].
        """
        if self._last is not None:
            self.known.append(float(self._last[int(tokens[-1])]))
        z = np.asarray(logits, np.float64)
        z = z - z.max()
        self._last = z - np.log(np.exp(z).sum())
        return logits

    def rest(self, last: Mapping[str, Any]) -> list[float]:
        """Return the log-probability of the last token of an answer that was cut off, as a list; of other answers none.

        No step follows that would show the token, so the most probable one is assumed.
        """
        ended = (last.get("choices") or [{}])[0].get("finish_reason")
        return [float(self._last.max())] if ended == "length" and self._last is not None else []


def _with_logprobs(chunk: Mapping[str, Any], logprobs: list[float]) -> Mapping[str, Any]:
    """Return a copy of the piece with these log-probabilities behind those that it has.

    The piece itself if there are none, or it has no choices.
    """
    if not logprobs or not chunk.get("choices"):
        return chunk
    choice = dict(chunk["choices"][0])
    there = list((choice.get("logprobs") or {}).get("content") or ())
    choice["logprobs"] = {"content": there + [{"logprob": logprob} for logprob in logprobs]}
    return {**chunk, "choices": [choice]}


def _import(name: str) -> Any:
    """Import and return a package.

    Raises:
        RuntimeMissing: it is not installed.
    """
    return import_needed(name, INSTALL if name == "xllamacpp" else "llama-cpp-python is not installed: it builds llama.cpp")


# Name of the package -> its engine.
ENGINES: Final[Mapping[str, Callable[[LoadOptions], Engine]]] = {"xllamacpp": XLlama, "llama-cpp-python": LlamaCppPython}


def runtime_of(wanted: str) -> str:
    """Return the name of the package to use.

    Tries to import them in order, unless one is named, which is not checked.

    Raises:
        RuntimeMissing: none is installed.
    """
    if wanted != "auto":
        return wanted
    for name, module in (("xllamacpp", "xllamacpp"), ("llama-cpp-python", "llama_cpp")):
        try:
            import_late(module)
        except ImportError:
            continue
        return name
    raise RuntimeMissing(INSTALL)


def open_engine(runtime: str, wanted: LoadOptions) -> Engine:
    """Load a model in this process, by the package of this name, or `auto`.

    Raises:
        ModelError, RuntimeMissing: it cannot be loaded.
        PolicyError: the package takes fewer slots.
    """
    engine_class = ENGINES[runtime_of(runtime)]
    if engine_class is LlamaCppPython and wanted.slots > 1:
        raise PolicyError("llama-cpp-python runs one generation at a time: slots= takes xllamacpp")
    return engine_class(wanted)
