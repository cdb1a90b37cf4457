"""llama.cpp in this process, by one of two Python packages: `xllamacpp`, or `llama-cpp-python`."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np

from edgeroute.core.words import FOREIGN, clean
from edgeroute.errors import ModelError, RuntimeMissing
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.imports import imported, no_fork
from edgeroute.system.process import alive
from edgeroute.text.reply import TOO_LONG, Gathered

Heard = Callable[[Mapping[str, Any]], bool]
"""Is given each piece of a reply, and says whether to stop."""
INSTALL: Final = "llama.cpp is not installed: pip install 'edgeroute[llama]'"
_LONGEST_SOCKET = 100
"""Bytes of a unix socket's path that every system takes."""
LEAVE_S = 10.0
"""How long the interpreter waits at its end for generations to stop, seconds."""


class Wanted(NamedTuple):
    """How a model is to be loaded."""

    path: Path
    context: int
    """Tokens for each generation."""
    slots: int
    """Generations at a time."""
    threads: int
    gpu_layers: int
    """-1: as many as there is a GPU for."""
    batch: int
    """Tokens of a prompt that are read at a time."""
    template: str | None
    """Of a chat; None: the file's."""
    verbose: bool


class Engine(Protocol):
    """A model that is loaded."""

    address: str
    """Where others on this device could reach it; empty: nowhere."""

    def stream(self, request: Mapping[str, Any], chat: bool, heard: Heard) -> None:
        """Generates, and passes on each piece of the reply, in OpenAI's JSON, until `heard` says to stop.

        A failure is a piece with `error`; code 400: of the request.
        """

    def whole(self, request: Mapping[str, Any], chat: bool) -> Mapping[str, Any]:
        """The reply in one piece; it cannot be stopped."""

    def set_aside(self) -> None:
        """Keeps it for ever, unused: in a forked child, whose native threads are missing."""


class _Leaving(ForkSafe):
    """Generations under way, which the interpreter's end waits for: native code that outlives it crashes the process."""

    now, _count = initially(False), initially(0)
    engines: WeakSet[XLlama] = per_process(WeakSet)
    _ended = per_process(threading.Condition)

    def __init__(self) -> None:
        atexit.register(self.stop)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """One generation."""
        with self._ended:
            self._count += 1
        try:
            yield
        finally:
            with self._ended:
                self._count -= 1
                self._ended.notify_all()

    def stop(self) -> None:
        """Tells all to stop, waits for them, and frees the models, while the interpreter is whole."""
        self.now, until = True, monotonic() + LEAVE_S
        with self._ended:
            while self._count and (left := until - monotonic()) > 0:
                self._ended.wait(left)
            if not self._count:
                for engine in alive(self.engines):
                    engine.free()


LEAVING = _Leaving()


class XLlama:
    """By `xllamacpp`, which runs llama.cpp's own server in the process, and cannot leave out its listener.

    The listener gets a unix socket, whose file is deleted as soon as the model is loaded, so that nothing can connect. Where that
    cannot be, it is a port of 127.0.0.1 with a random key that nobody is told.
    """

    forked = False
    """Whether a parent of this process had one: its background threads cannot be joined here, so no server may end."""

    def __init__(self, wanted: Wanted) -> None:
        module = _imported("xllamacpp")
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
            self._keep()
        LEAVING.engines.add(self)

    def free(self) -> None:
        """Frees it, at the interpreter's end."""
        self._server = None

    def stream(self, request: Mapping[str, Any], chat: bool, heard: Heard) -> None:
        """See `Engine`."""
        caught = list[BaseException]()

        def hear(chunk: Mapping[str, Any]) -> bool:
            try:  # what is raised within a native call would be lost
                return LEAVING.now or heard(chunk)
            except BaseException as e:  # noqa: BLE001 - raised again below
                caught.append(e)
                return True

        whole = {**request, "stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        self._call(whole, chat, hear, heard)
        if caught:
            raise caught[0]

    def whole(self, request: Mapping[str, Any], chat: bool) -> Mapping[str, Any]:
        """See `Engine`."""
        found = list[Mapping[str, Any]]()
        reply = self._call(request, chat, None, found.append)
        return found[0] if found else reply

    def _call(
        self, request: Mapping[str, Any], chat: bool, hear: Heard | None, wrong: Callable[[Mapping[str, Any]], object]
    ) -> Any:
        more = {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
        try:
            with LEAVING.run():
                return self._generate({**request, **more}, chat, hear)
        except (RuntimeError, TypeError, ValueError) as e:  # it could not read the request
            wrong({"error": {"code": 400, "message": str(e)}})
            return None

    def _generate(self, request: Mapping[str, Any], chat: bool, hear: Heard | None) -> Any:
        """The native call. Once it has returned, nothing of it holds the server."""
        server = self._server
        if server is None or LEAVING.now:
            raise ModelError("the interpreter is ending")
        return (server.handle_chat_completions if chat else server.handle_completions)(request, hear)

    def set_aside(self) -> None:
        """See `Engine`. What ends the process must not wait for its threads either, as the destructors of llama.cpp do."""
        self._keep()
        if not XLlama.forked:
            XLlama.forked = True
            with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has `on_exit`, others do not
                libc = ctypes.CDLL(None)
                libc.on_exit(libc._exit, None)  # noqa: SLF001 - a function of C

    def _keep(self) -> None:
        """One reference more than there are, so that it is never freed."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))


class LlamaCppPython:
    """By `llama-cpp-python`, where a user has it: one generation at a time."""

    address = ""

    def __init__(self, wanted: Wanted) -> None:
        self._module = module = _imported("llama_cpp")
        handler = None
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
                form = imported("llama_cpp.llama_chat_format").Jinja2ChatFormatter(wanted.template, eos, bos)
                handler = form.to_chat_handler()
        except Exception as e:
            said = clean(e, FOREIGN)
            raise ModelError(f"llama.cpp (llama-cpp-python {module.__version__}) cannot load {wanted.path}: {said}") from e
        if handler is not None:
            self._llama.chat_handler = handler
        self._context, self._turn = wanted.context, threading.Lock()

    def stream(self, request: Mapping[str, Any], chat: bool, heard: Heard) -> None:
        """See `Engine`."""
        with self._turn, LEAVING.run():
            self._stream(dict(request), chat, heard)

    def _stream(self, request: dict[str, Any], chat: bool, heard: Heard) -> None:
        taken = _Logprobs()
        try:
            if (grammar := request.pop("grammar", None)) is not None:
                request["grammar"] = self._module.LlamaGrammar.from_string(grammar, verbose=False)
            processors = self._module.LogitsProcessorList([taken])
            call = self._llama.create_chat_completion if chat else self._llama.create_completion
            chunks = call(**request, stream=True, logits_processor=processors)
            sent, last = 0, None
            for chunk in chunks:
                if last is not None and (LEAVING.now or heard(last)):
                    return
                last, sent = _scored(chunk, taken.known[sent:]), len(taken.known)
            if last is not None:
                heard(_scored(last, taken.known[sent:] + taken.rest(last)))
        except (AssertionError, RuntimeError, TypeError, ValueError) as e:
            kind = {"type": TOO_LONG} if "context window" in str(e) else {}
            heard({"error": {"code": 400, "message": clean(e, FOREIGN), **kind}})

    def whole(self, request: Mapping[str, Any], chat: bool) -> Mapping[str, Any]:
        """See `Engine`."""
        gathered = Gathered()
        self.stream(request, chat, lambda chunk: bool(gathered.add(chunk)) and False)
        return {"error": gathered.error} if gathered.error else gathered.reply()

    def set_aside(self) -> None:
        """See `Engine`."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._llama))


class _Logprobs:
    """Sees the logits of each step, and with those of the next which token was taken.

    llama-cpp-python's own log-probabilities need the logits of the whole prompt in memory.
    """

    def __init__(self) -> None:
        self.known: list[float] = []
        self._last: Any = None

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """tokens: [n], logits: float32 [vocabulary] -> the logits."""
        if self._last is not None:
            self.known.append(float(self._last[int(tokens[-1])]))
        z = np.asarray(logits, np.float64)
        z = z - z.max()
        self._last = z - np.log(np.exp(z).sum())
        return logits

    def rest(self, last: Mapping[str, Any]) -> list[float]:
        """Of the last token of an answer that was cut off: no step follows that would tell which it was. The most probable is."""
        ended = (last.get("choices") or [{}])[0].get("finish_reason")
        return [float(self._last.max())] if ended == "length" and self._last is not None else []


def _scored(chunk: Mapping[str, Any], logprobs: list[float]) -> Mapping[str, Any]:
    """The piece with these log-probabilities beside those that it has."""
    if not logprobs or not chunk.get("choices"):
        return chunk
    choice = dict(chunk["choices"][0])
    there = list((choice.get("logprobs") or {}).get("content") or ())
    choice["logprobs"] = {"content": there + [{"logprob": one} for one in logprobs]}
    return {**chunk, "choices": [choice]}


def _imported(name: str) -> Any:
    try:
        return imported(name)
    except ImportError as e:
        raise RuntimeMissing(INSTALL if name == "xllamacpp" else "llama-cpp-python is not installed: it builds llama.cpp") from e


ENGINES: Final[Mapping[str, Callable[[Wanted], Engine]]] = {"xllamacpp": XLlama, "llama-cpp-python": LlamaCppPython}
