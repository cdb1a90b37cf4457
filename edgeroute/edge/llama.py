"""Language models in .gguf files, on llama.cpp."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from edgeroute.confidence.prefix import Prefix, Rule, token_logprobs
from edgeroute.confidence.scores import Score
from edgeroute.core.stream import Piece
from edgeroute.core.walk import Prediction
from edgeroute.core.words import FOREIGN, clean
from edgeroute.edge import gguf
from edgeroute.edge.card import Card, sha256_of
from edgeroute.edge.llama_engines import ENGINES, INSTALL, Engine, LlamaCppPython, Wanted
from edgeroute.errors import BadInput, ModelError, PolicyError, RuntimeMissing, check_number
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.imports import imported
from edgeroute.text.reply import Gathered, answer, failure
from edgeroute.text.request import Chat, checked_score
from edgeroute.types import StopToken

# Tries the chat template of a .gguf file in a process of its own: llama.cpp's template engine ends the process it is in.
#
# It renders by recursion without a limit, so a template that calls itself, or is nested deeply, overflows the stack; and it has
# no limit of time or memory. A short template without macros, counted loops and much nesting cannot do that, and is not tried.

WAIT_S = 60.0
"""How long a trial may take; it takes a few seconds at most."""
MOST_BYTES = 8_192
"""Of a template that is not tried."""
MOST_NESTED, MOST_TOKENS, MOST_BRANCHES, MOST_SUMS = 60, 400, 100, 20
"""Blocks within each other, tokens of one tag, `elif`s, and variables set to a sum of texts; of templates that are not tried."""
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_BLOCK, _SHOWN = (rf"(?:{_STRING}|(?!{end})[^'\"])*" for end in (r"%\}", r"\}\}"))
_PART = re.compile(rf"\{{#.*?#\}}|\{{(?P<kind>%)(?P<block>{_BLOCK})%\}}|\{{\{{(?P<shown>{_SHOWN})\}}\}}", re.DOTALL)
"""A comment, a block's tag, or an expression that is shown."""
_WORDS = re.compile(r"\b(?:macro|range|recursive|import|include|extends)\b|\\['\"]")
"""What is not looked for in tags alone, since llama.cpp may see tags elsewhere; and what a string would have to end after it."""
_TOKEN = re.compile(rf"{_STRING}|\w+|[^\s\w]", re.DOTALL)
_UNBOUNDED = {"call", "replace", "center", "indent", "*"}
_BLOCKS = {"if", "for", "set", "filter", "generation"}
_CHILD = """
import json, os, sys
told = json.load(sys.stdin)
sys.path[:] = told["sys_path"]
try:
    import resource
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (AttributeError, ImportError, ValueError, OSError):
    pass
import threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = told["path"], 64, 1, 0
params.n_batch = params.n_ubatch = 32
params.fit_params = params.warmup = params.ui = params.endpoint_slots = False
params.no_extra_bufts, params.cache_ram_mib, params.verbosity, params.n_threads_http = True, 0, -1, 1
params.hostnames, params.api_keys = told["hostnames"] or params.hostnames, [told["key"]]
if told["template"] is not None:
    params.chat_template = told["template"]
def run():
    try:
        server = xllamacpp.Server(params)
        for request in told["requests"]:
            server.handle_chat_completions(request, None)
    except Exception as e:
        print(str(e)[:500])
        sys.stdout.flush()
        os._exit(3)
    os._exit(0)
threading.stack_size(2 << 20)
threading.Thread(target=run).start()
"""
"""In a thread whose stack is smaller than those that use the model later."""
_LONG = "word " * 2_000
"""More than the context of the trial: the request is refused once its prompt is there, and nothing is computed."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "look", "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "string"}}}},
    },
}  # fmt: skip
_TALK = [{"role": role, "content": _LONG} for role in ("user", "assistant") * 4 + ("user",)]
REQUESTS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 1, "messages": [{"role": "user", "content": _LONG}]},
    {"max_tokens": 1, "messages": [{"role": "system", "content": _LONG}, *_TALK]},
    {"max_tokens": 1, "messages": _TALK, "tools": [_TOOL]},
)


def harmless(template: str) -> bool:
    """Whether a template is of a kind that cannot recurse or count: without macros and ranges, and with little nesting."""
    if len(template.encode("utf-8", "replace")) > MOST_BYTES or _WORDS.search(template):
        return False
    depth = branches = sums = 0
    for part in _PART.finditer(template):
        tokens = _TOKEN.findall(part["block"] or part["shown"] or "")
        if len(tokens) > MOST_TOKENS or _UNBOUNDED & {*tokens}:
            return False
        first = next((one for one in tokens if one not in "-+~"), "") if part["kind"] else ""
        depth += (first in _BLOCKS) - first.startswith("end")
        branches += first == "elif"
        sums += first == "set" and bool({"+", "~"} & {*tokens})
        if depth > MOST_NESTED or branches > MOST_BRANCHES or sums > MOST_SUMS:
            return False
    rest = _PART.sub(" ", template)
    return not any(begin in rest for begin in ("{%", "{{", "{#"))


def tried(path: Path, template: str, given: str | None) -> None:
    """Has llama.cpp render the template in a process of its own, unless it is harmless.

    Args:
        path: of the .gguf file.
        template: the file's.
        given: by the caller in its place, who is trusted with it; None: none.

    Raises:
        ModelError: the process did not survive it, or it took too long.
    """
    if given is not None or harmless(template):
        return
    advice = "Give one that you trust, chat_template=, or use another model"
    try:
        why = _died(path, None)
        if why is None or (why.startswith(FAILED) and _died(path, "{{ messages[0].content }}") is not None):
            return  # in the latter case it is not the template: loading says what
    except OSError as e:
        raise ModelError(f"{path}: its chat template is to be tried in another process, and none starts: {e}. {advice}") from e
    raise ModelError(f"{path}: its chat template is broken or hostile: a process that tried it {why}. {advice}")


FAILED = "failed"
_found: dict[tuple[str, int, int, str | None], str | None] = {}
"""What came of earlier trials of a file, by time and size."""


def _died(path: Path, template: str | None) -> str | None:
    """What became of a process that loaded the model with that template, None: the file's; None: nothing, it is well."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_mtime_ns, stat.st_size, template)
    if key not in _found:
        _found[key] = _run(path, template)
    return _found[key]


def _run(path: Path, template: str | None) -> str | None:
    with tempfile.TemporaryDirectory(prefix="edgeroute-", ignore_cleanup_errors=True) as folder:
        told: dict[str, Any] = {
            "sys_path": [one or "." for one in sys.path], "path": str(path), "template": template, "requests": REQUESTS,
            "hostnames": [f"{folder}/s.sock"] if sys.platform != "win32" else [], "key": secrets.token_hex(16),
        }  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter
                [sys.executable, "-I", "-c", _CHILD],
                input=json.dumps(told).encode(), capture_output=True, timeout=WAIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"did not end within {WAIT_S:g} s"
    if done.returncode == 0:
        return None
    said = clean(done.stdout.decode("utf-8", "replace") or done.stderr.decode("utf-8", "replace")[-300:], FOREIGN)
    return f"was ended by the system ({done.returncode})" if done.returncode not in {1, 3} else f"{FAILED}: {said}"


MOST_CONTEXT = 4096
"""Tokens of a context that nobody has asked for; a model may have been trained for more."""
MOST_PARENTHESES = 200
"""Parentheses of a grammar within each other: llama.cpp reads them by recursion, and ends the process where its stack ends."""
NOT_THE_CALLERS = ("chat_format", "chat_parser", "grammar_lazy", "grammar_triggers", "preserved_tokens")
"""Keys that llama.cpp's server sets for itself by the template, and trusts."""


class LlamaModel(ForkSafe):
    """A language model in a .gguf file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    It answers a text, messages (`[{"role": "user", "content": ...}]`), or a request in OpenAI's JSON (`{"messages": ..., "tools":
    ...}`) with a text. The outputs of an answer are the whole completion in OpenAI's JSON.

    Args:
        path: the .gguf file.
        context: tokens of prompt and answer together; None: as many as the model was trained for, up to 4096. It takes memory.
        threads: for one generation: as many as there are fast cores that nothing else needs.
        slots: generations at a time, each with a context of its own; further ones wait for their turn.
        gpu_layers: layers of the model on a GPU; None: all, if llama.cpp was built for one.
        batch: tokens of the prompt that are read at a time: a stop comes between two of them.
        chat: whether a text is what a user says; if not, it is a text to be continued.
        system: what the model is told before each chat, unless its messages begin with that.
        chat_template: Jinja; None: the file's.
        max_tokens: of an answer, at most.
        temperature: 0: the most probable token each time; above it tokens are drawn.
        seed: of what is drawn.
        stop: texts at which an answer ends.
        grammar: that an answer follows, in llama.cpp's GBNF.
        response_format: likewise, as OpenAI has it, as in {"type": "json_schema", "json_schema": {"schema": ...}}.
        confidence: of an answer, from its tokens' log-probabilities: exp of their 10 % quantile, mean, least or first.
        decide_after: the confidence is that of so many first tokens, once they are there; None: that of all, at the end.
        request: further keys of each request, as llama.cpp's server takes them, such as top_p.
        runtime: the Python package with llama.cpp; auto: xllamacpp if it is installed, else llama-cpp-python.
        verbose: llama.cpp writes its own log to stderr.
        sha256: of the file; None: what the card says, unchecked where it says nothing.
        card: path of the card, where it is not beside the model.
        score: for this model, in place of `confidence`: a function of the completion.

    Raises:
        PolicyError: a value is none, or contradicts another.
    """

    _lock = per_process(threading.RLock)  # a signal handler may run the model while it loads
    _engine: Engine | None = initially(None, lambda engine: engine and engine.set_aside())

    closes_after_runs = True
    """A run holds what it began with."""

    def __init__(
        self,
        path: str | Path,
        *,
        context: int | None = None,
        threads: int = 1,
        slots: int = 1,
        gpu_layers: int | None = None,
        batch: int = 256,
        chat: bool = True,
        system: str | None = None,
        chat_template: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        confidence: Rule = "quantile",
        decide_after: int | None = None,
        request: Mapping[str, Any] | None = None,
        runtime: Literal["auto", "xllamacpp", "llama-cpp-python"] = "auto",
        verbose: bool = False,
        sha256: str | None = None,
        card: str | Path | None = None,
        score: Score | None = None,
    ) -> None:
        counts = {"context": context, "threads": threads, "slots": slots, "batch": batch}
        for name, value in counts.items():
            if value is not None:
                check_number(name, value, least=1, whole=True)
        if gpu_layers is not None:
            check_number("gpu_layers", gpu_layers, whole=True)
        if grammar is not None and _nested(grammar):
            raise PolicyError(f"grammar= has more than {MOST_PARENTHESES} parentheses within each other")
        if said := _impossible(response_format):
            raise PolicyError(f"response_format= {said}")
        if response_format is not None and not chat:
            raise PolicyError("response_format= is of chats: with chat=False an answer takes its form from grammar=")
        if runtime not in {"auto", *ENGINES}:
            raise PolicyError(f"runtime= takes one of auto, {', '.join(ENGINES)}, not {runtime!r}")
        self.path = Path(path)
        self.card = Card.read(Path(card)) if card else Card.beside(self.path)
        self.name = self.card.name or self.path.stem
        self.labels = self.card.labels
        self.score = checked_score(score, decide_after, confidence)
        self.parallel = slots
        self.downgraded: str | None = None
        self._chat = Chat(
            chat=chat, system=system, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, grammar=grammar,
            response_format=response_format, confidence=confidence, request=request,
        )  # fmt: skip
        self._wanted = Wanted(
            self.path, context or 0, slots, threads, -1 if gpu_layers is None else gpu_layers, batch, chat_template, verbose
        )
        self._runtime, self._expected = runtime, sha256 or self.card.sha256

    @property
    def files(self) -> list[Path]:
        """The card."""
        return [] if self.card.path is None else [self.card.path]

    @property
    def settings(self) -> dict[str, Any]:
        """What an answer depends on; not threads, batches and slots, which change the order of sums, and so the last digits."""
        return {"runtime": "llama.cpp", "template": self._wanted.template, **self._chat.settings}

    def load(self) -> Engine:
        """Reads, checks and loads the model, once.

        Raises:
            ModelMissing: there is no such file.
            RuntimeMissing: neither package with llama.cpp is installed.
            ModelError: the file is no whole .gguf, is not the one that card or policy name, or does not load; or it
                takes neither the grammar nor the format that is asked for.
        """
        with self._lock:
            if self._engine is None:
                self._engine = self._load()
            return self._engine

    def _load(self) -> Engine:
        about = gguf.read(self.path)
        if self._expected and (found := sha256_of(self.path)) != self._expected.lower():
            raise ModelError(
                f"{self.path} is not the expected model: its sha256 is {found}, expected {self._expected}. "
                "Fetch the model again, or correct the card or policy"
            )
        if not about.tokens:
            raise ModelError(f"{self.path} has no vocabulary: it is no language model (its architecture is {about.architecture})")
        if self._chat.is_chat and not about.template and self._wanted.template is None:
            raise ModelError(f"{self.path} has no chat template: give chat_template=, or chat=False for texts to be continued")
        made = ENGINES[_runtime(self._runtime)]
        if made is LlamaCppPython and self._wanted.slots > 1:
            raise PolicyError("llama-cpp-python runs one generation at a time: slots= takes xllamacpp")
        if made is not LlamaCppPython:  # whose templates are Jinja's own
            tried(self.path, about.template, self._wanted.template)
        context = self._wanted.context or min(about.context or MOST_CONTEXT, MOST_CONTEXT)
        engine = made(self._wanted._replace(context=context, batch=min(self._wanted.batch, context)))
        if engine.address:
            self.downgraded = f"llama.cpp listens at {engine.address} too, for nobody without a key that only it has"
        if {"grammar", "response_format"} & {*self._chat.options}:
            self._try(engine)
        return engine

    def _try(self, engine: Engine) -> None:
        """One token by the grammar, which is read only then."""
        request, chat = self._chat.request("a")
        reply = engine.whole({**request, "max_tokens": 1}, chat)
        if "error" in reply:
            raise failure(reply["error"], f"{self.name}: grammar= or response_format=", own=False, sent=None)

    def _request(self, x: Any) -> tuple[dict[str, Any], bool]:
        """The request for an input, and whether it is a chat. What would end the process, or be passed over, is refused."""
        request, chat = self._chat.request(x)
        if isinstance(x, Mapping):
            if taken := [key for key in NOT_THE_CALLERS if key in x]:
                raise BadInput(f"a request may not have {', '.join(taken)}: llama.cpp sets that")
            if isinstance(grammar := request.get("grammar"), str) and _nested(grammar):
                raise BadInput(f"the grammar has more than {MOST_PARENTHESES} parentheses within each other")
            if "response_format" in x and (said := _impossible(x["response_format"])):
                raise BadInput(f"response_format: {said}")
            if not chat and "response_format" in request:
                raise BadInput("response_format is of chats: a request with a prompt takes a grammar in its place")
        return request, chat

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Prediction]:
        """Texts, messages or requests, one after the other -> (text, log-probabilities or confidence, completion) of each.

        Raises:
            BadInput: one of them is none.
            Unfit: it is longer than the context, or has more than text in it.
            ModelError: llama.cpp failed, or the run was stopped.
        """
        return [one for x in inputs for one in self.run_one(x, cancel)]

    def run_one(self, x: Any, cancel: StopToken | None = None) -> list[Prediction]:
        """The same for one input."""
        request, chat = self._request(x)
        engine = self._engine or self.load()
        if cancel is None or request.get("tools"):  # with tools llama.cpp gives no log-probabilities in pieces
            reply = engine.whole(request, chat)
            if "error" in reply:
                raise failure(reply["error"], self.name, own=isinstance(x, Mapping), sent=request)
            return [answer(reply, self._chat.rule, self.name)]
        gathered = Gathered()
        cancel.on_ask(lambda: None)  # each piece is followed by a look at it

        def heard(chunk: Mapping[str, Any]) -> bool:
            gathered.add(chunk)
            return cancel.asked

        if not cancel.asked:
            engine.stream(request, chat, heard)
        return [self._whole(gathered, request, own=isinstance(x, Mapping))]

    def _whole(self, gathered: Gathered, request: Mapping[str, Any], *, own: bool) -> Prediction:
        if gathered.error is not None:
            raise failure(gathered.error, self.name, own=own, sent=request)
        if not gathered.ended:
            raise ModelError(f"{self.name} was stopped within its answer")
        return answer(gathered.reply(), self._chat.rule, self.name)

    def stream(self, x: Any, cancel: StopToken | None = None) -> Generator[str, None, Prediction]:
        """The same for one input, in pieces; closing the generator stops the generation. With tools it is one piece."""
        request, chat = self._request(x)
        if request.get("tools"):
            (found,) = self.run_one(x, cancel)
            yield Piece(found.value, token_logprobs(found.outputs))
            return found
        engine = self._engine or self.load()
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        left, gathered = threading.Event(), Gathered(eager=isinstance(self.score, Prefix))
        if cancel is not None:
            cancel.on_ask(left.set)

        def heard(chunk: Mapping[str, Any]) -> bool:
            if (piece := gathered.add(chunk)) is not None:
                pieces.put(piece)
            return left.is_set()

        def generate() -> None:
            try:
                if not left.is_set():
                    engine.stream(request, chat, heard)
                pieces.put(None)
            except BaseException as e:  # noqa: BLE001 - raised where it is waited for
                pieces.put(e)

        thread = threading.Thread(target=generate, name="edgeroute-llama", daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            left.set()
            thread.join()
        return self._whole(gathered, request, own=isinstance(x, Mapping))

    def close(self) -> None:
        """Frees the model, once the generations that are under way have ended; a later run loads it again."""
        with self._lock:
            self._engine = None

    def __repr__(self) -> str:
        return f"LlamaModel({os.fspath(self.path)!r})"


def _nested(grammar: str) -> bool:
    """Whether it has too many parentheses within each other; those in texts count, too."""
    depth = 0
    for c in grammar:
        depth += (c == "(") - (c == ")" and depth > 0)
        if depth > MOST_PARENTHESES:
            return True
    return False


def _impossible(form: Any) -> str:
    """Of which part of a schema the least is more than the most, which llama.cpp counts up to for ever; empty: of none."""
    left = [form]
    while left:
        one = left.pop()
        left += one.values() if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ()
        for what in ("Length", "Items") if isinstance(one, Mapping) else ():
            least, most = one.get(f"min{what}"), one.get(f"max{what}")
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                return f"min{what} is {least}, and max{what} {most}"
    return ""


def _runtime(wanted: str) -> str:
    """The package that is used."""
    if wanted != "auto":
        return wanted
    for name, module in (("xllamacpp", "xllamacpp"), ("llama-cpp-python", "llama_cpp")):
        try:
            imported(module)
        except ImportError:
            continue
        return name
    raise RuntimeMissing(INSTALL)
