"""Language models in .gguf files, on llama.cpp: the model class, its requests and answers, and the trial of chat templates.

A template that may recurse is tried in a process of its own, as it could end or hold up the caller's.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from edgeroute.confidence.first_tokens import Prefix, Rule
from edgeroute.confidence.scores import Score
from edgeroute.core.setting_unit_types import Count, Timeout, Whole
from edgeroute.core.walk import Prediction
from edgeroute.edge import gguf_format as gguf
from edgeroute.edge.answer_structure_checks import AnswerCheck, Given
from edgeroute.edge.llama_in_process_engines import ENGINES, SERVES_OTHERS, Engine, LoadOptions, open_engine, runtime_of
from edgeroute.edge.llama_isolated_engine import EngineEnded, IsolatedEngine
from edgeroute.edge.model_card import checked_sha256
from edgeroute.edge.runtime_base import LoadsLate
from edgeroute.errors import BadInput, ModelError, PolicyError
from edgeroute.system.files_and_lock_waits import file_stamp
from edgeroute.system.fork_safety import initially
from edgeroute.system.read_and_check_signatures import check_units
from edgeroute.text.build_openai_requests import Chat, checked_score
from edgeroute.text.read_openai_replies import Gathered, answer, failure
from edgeroute.types import StopToken

# Trial of a .gguf file's chat template in a process of its own, as llama.cpp's template engine can end its process.
#
# It renders by recursion without a limit, so a template that calls itself, or is nested deeply, overflows the stack; and it has
# no limit of time or memory. A short template without macros, counted loops and much nesting cannot do that, and is not tried.

WAIT_S = 60.0  # longest trial, seconds; a usual one takes a few seconds at most
MOST_BYTES = 8_192  # largest template that is trusted without a trial, bytes
# Limits of a template without a trial: nested blocks, tokens of a tag, `elif`s, variables set to a sum of texts.
MOST_NESTED, MOST_TOKENS, MOST_BRANCHES, MOST_SUMS = 60, 400, 100, 20
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_BLOCK, _SHOWN = (rf"(?:{_STRING}|(?!{end})[^'\"])*" for end in (r"%\}", r"\}\}"))
# A comment, a block's tag, or an expression that is shown.
_PART = re.compile(rf"\{{#.*?#\}}|\{{(?P<kind>%)(?P<block>{_BLOCK})%\}}|\{{\{{(?P<shown>{_SHOWN})\}}\}}", re.DOTALL)
# Words that make a trial necessary, searched in the whole text, as llama.cpp may see tags elsewhere; and escaped quotes.
_WORDS = re.compile(r"\b(?:macro|range|recursive|import|include|extends)\b|\\['\"]")
_TOKEN = re.compile(rf"{_STRING}|\w+|[^\s\w]", re.DOTALL)
_UNBOUNDED = {"call", "replace", "center", "indent", "*"}
_BLOCKS = {"if", "for", "set", "filter", "generation"}
# Text longer than the context of the trial: the request is refused once its prompt is rendered, and nothing is computed.
_LONG = "word " * 2_000
_TOOL = {
    "type": "function",
    "function": {
        "name": "look", "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "string"}}}},
    },
}  # fmt: skip
_TALK = [{"role": role, "content": _LONG} for role in ("user", "assistant") * 4 + ("user",)]
# Requests of the trial.
REQUESTS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 1, "messages": [{"role": "user", "content": _LONG}]},
    {"max_tokens": 1, "messages": [{"role": "system", "content": _LONG}, *_TALK]},
    {"max_tokens": 1, "messages": _TALK, "tools": [_TOOL]},
)


def is_harmless(template: str) -> bool:
    """Return True if a template cannot recurse or count for long: no macros and ranges, little nesting, and short."""
    if len(template.encode("utf-8", "replace")) > MOST_BYTES or _WORDS.search(template):
        return False
    depth = branches = sums = 0
    for part in _PART.finditer(template):
        tokens = _TOKEN.findall(part["block"] or part["shown"] or "")
        if len(tokens) > MOST_TOKENS or _UNBOUNDED & {*tokens}:
            return False
        first = next((word for word in tokens if word not in "-+~"), "") if part["kind"] else ""
        depth += (first in _BLOCKS) - first.startswith("end")
        branches += first == "elif"
        sums += first == "set" and bool({"+", "~"} & {*tokens})
        if depth > MOST_NESTED or branches > MOST_BRANCHES or sums > MOST_SUMS:
            return False
    rest = _PART.sub(" ", template)
    return not any(begin in rest for begin in ("{%", "{{", "{#"))


def try_template(path: Path, template: str, given: str | None) -> None:
    """Render the file's chat template by llama.cpp in a process of its own, unless it is harmless or not used.

    A failing template counts as broken only if another one loads. The results are kept for the file as it is.

    Args:
        path: of the .gguf file.
        template: the file's.
        given: the caller's template in its place, which is trusted; None: none.

    Raises:
        ModelError: the child died or took too long, or cannot be started.
    """
    if given is not None or is_harmless(template):
        return
    stamp = file_stamp(path)
    why = _trial(path, None, stamp)
    if why is None or (why == FAILED and _trial(path, "{{ messages[0].content }}", stamp) is not None):
        return  # in the latter case it is not the template: loading says what
    raise ModelError(f"{path}: its chat template is broken or hostile: {why}. Give another, chat_template=, or another model")


FAILED = "a process that tried it reported an error"


@lru_cache(maxsize=64)
def _trial(path: Path, template: str | None, stamp: object) -> str | None:  # noqa: ARG001 - it is part of the cache's key
    """Load the model in a child process with a small context, and have the template rendered; return why that failed, or None.

    None for the template: the file's. Ends the child. Cached, also by the file's stamp.
    """
    try:
        engine = IsolatedEngine("xllamacpp", LoadOptions(path, 64, 1, 1, 0, 32, template, verbose=False), WAIT_S, WAIT_S)
        for request in REQUESTS:
            engine.stream(request, chat=True, on_piece=lambda _: None, stop=StopToken())
    except EngineEnded as e:
        return str(e)
    except ModelError:
        return FAILED
    engine.end()
    return None


MOST_CONTEXT = 4096  # tokens of context, unless a number is given; a model may have been trained for more
MOST_ENDS, ENDS_S = 5, 60.0  # times that the process of a model may end within so many seconds, and is started again
# Most nested parentheses of a grammar: llama.cpp reads them by recursion, and ends the process on a stack overflow.
MOST_PARENTHESES = 200
MOST_REFERENCES = 50  # most references of a schema that lead from one to the next
# Keys of a request that llama.cpp's server sets by the template, and trusts.
NOT_THE_CALLERS = ("chat_format", "chat_parser", "grammar_lazy", "grammar_triggers", "preserved_tokens")


class LlamaModel(LoadsLate):
    """Language model in a .gguf file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    An input is a text, messages (`[{"role": "user", "content": ...}]`), or a request in OpenAI's JSON (`{"messages": ...,
    "tools": ...}`). The answer is a text; its outputs are the whole completion in OpenAI's JSON.

    Args:
        path: the .gguf file.
        context: tokens of prompt and answer together; None: as many as the model was trained for, up to 4096. More takes memory.
        threads: for one generation; best the number of fast cores that nothing else needs.
        slots: generations at a time, each with a context of its own.
        gpu_layers: layers of the model on a GPU; None: all, if llama.cpp was built for one.
        batch: tokens of the prompt that are read at a time; a stop takes effect between two batches.
        chat: True: a text is a user's message; False: a text is to be continued.
        system: system message before each chat, unless its messages begin with one.
        chat_template: Jinja; None: the file's.
        max_tokens: most tokens of an answer.
        temperature: 0: the most probable token each time; above it at random.
        seed: of the random numbers.
        stop: texts at which an answer ends.
        grammar: in llama.cpp's GBNF, which an answer follows.
        response_format: format that an answer follows, in OpenAI's form.
        confidence: exp of the 10 % quantile, mean, least or first of its tokens' log-probabilities.
        decide_after: number of first tokens that the confidence is of; None: all tokens.
        request: further keys of each request, as the server takes them.
        runtime: Python package with llama.cpp; auto: xllamacpp, or else llama-cpp-python.
        verbose: llama.cpp writes its own log to stderr.
        isolate: llama.cpp runs in a process of its own; None: in `edgeroute gateway` alone.
        stall_s: longest time for a token there, or for `batch` tokens of the prompt, before the process is ended.
        sha256: expected SHA-256 of the file, or of a package (`edgeroute.edge.model_card.sha256_of`), hex; None: the card's;
            unchecked if the card has none.
        card: path of the card, if it is not beside the model; False: no card is read.
        score: for this model, in place of `confidence`: a function of the completion.
        check: check of its answers' structure (docs/llama.md#structure).

    Raises:
        PolicyError: a value is invalid, or contradicts another.
    """

    _session: Engine | None = initially(None, lambda engine: engine and engine.never_free())

    def __init__(
        self,
        path: str | Path,
        *,
        context: Count | None = None,
        threads: Count = 1,
        slots: Count = 1,
        gpu_layers: Whole | None = None,
        batch: Count = 256,
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
        isolate: bool | None = None,
        stall_s: Timeout = 60.0,
        sha256: str | None = None,
        card: str | Path | Literal[False] | None = None,
        score: Score | None = None,
        check: Given | None = None,
    ) -> None:
        check_units(LlamaModel, locals())
        if grammar is not None and _too_nested(grammar):
            raise PolicyError(f"grammar= has more than {MOST_PARENTHESES} parentheses within each other")
        if problem := _impossible_limits(response_format):
            raise PolicyError(f"response_format= {problem}")
        if response_format is not None and not chat:
            raise PolicyError("response_format= is of chats: with chat=False an answer takes its form from grammar=")
        if runtime not in {"auto", *ENGINES}:
            raise PolicyError(f"runtime= takes one of auto, {', '.join(ENGINES)}, not {runtime!r}")
        super().__init__(path, card, sha256)
        self.labels = self.card.labels
        self.score = checked_score(score, decide_after, confidence)
        self.parallel = slots
        self._chat = Chat(
            chat=chat, system=system, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop, grammar=grammar,
            response_format=response_format, confidence=confidence, request=request,
        )  # fmt: skip
        self.check = AnswerCheck(check, self._chat.options)
        self._wanted = LoadOptions(
            self.path, context or 0, slots, threads, -1 if gpu_layers is None else gpu_layers, batch, chat_template, verbose
        )
        self._runtime, self._isolate, self._stall_s = runtime, isolate, stall_s
        self._ends: deque[float] = deque(maxlen=MOST_ENDS)

    @property
    def settings(self) -> dict[str, Any]:
        """The runtime, chat template and chat settings on which an answer depends, besides the model file.

        Threads, batches and slots are not included: they change the order of sums, and so the last digits at most.
        """
        return {"runtime": "llama.cpp", "template": self._wanted.template, **self._chat.settings}

    def load(self) -> Engine:
        """Load the model, also again if its process has ended; return the engine. See `LoadsLate.load`.

        Raises:
            ModelError: as the base class, or its process ended `MOST_ENDS` times within `ENDS_S` seconds.
        """
        with self._lock:
            if self._session is not None and self._session.ended:
                self._session = None
                self._ends.append(monotonic())
            if self._session is None and len(self._ends) == MOST_ENDS and monotonic() - self._ends[0] < ENDS_S:
                raise ModelError(f"{self.name}: its process ended {MOST_ENDS} times within {ENDS_S:g} s, and is not started now")
            try:
                return super().load()  # type: ignore[no-any-return]
            except EngineEnded:
                self._ends.append(monotonic())
                raise

    def _loaded_engine(self, stop: StopToken) -> Engine:
        """Return the engine; load the model if there is none, or if its process has ended. Blocks for the load.

        A stop requested before the load begins raises ModelError; later the load goes on to its end.
        """
        engine = self._session
        if engine is not None and not engine.ended:
            return engine
        with self._lock:
            if stop.asked:
                raise ModelError(f"{self.name} was stopped before it was loaded")
            return self.load()

    def _load(self) -> Engine:
        """Check the header, the SHA-256 and the chat template, and load the model; try the grammar or format, if there is one.

        In a process of its own if `isolate` is set, or, by default, if this one serves others. Without a context size the file's,
        `MOST_CONTEXT` at most. Sets `fingerprint` if a SHA-256 is expected, and `downgraded` for a listener of llama.cpp. Raises
        ModelError, ModelMissing, PolicyError and RuntimeMissing.
        """
        about = gguf.read(self.path)
        if self._expected:
            self.fingerprint = checked_sha256(self.path, self._expected)
        if not about.tokens:
            raise ModelError(f"{self.path} has no vocabulary: it is no language model (its architecture is {about.architecture})")
        if self._chat.is_chat and not about.template and self._wanted.template is None:
            raise ModelError(f"{self.path} has no chat template: give chat_template=, or chat=False for texts to be continued")
        context = self._wanted.context or min(about.context or MOST_CONTEXT, MOST_CONTEXT)
        wanted = self._wanted._replace(context=context, batch=min(self._wanted.batch, context))
        if self._isolate or (self._isolate is None and SERVES_OTHERS.is_set()):
            engine: Engine = IsolatedEngine(self._runtime, wanted, self._stall_s)
        else:
            if runtime_of(self._runtime) == "xllamacpp":  # other templates are Jinja's own
                try_template(self.path, about.template, wanted.template)
            engine = open_engine(self._runtime, wanted)
        if engine.address:
            self.downgraded = f"llama.cpp listens at {engine.address} too, for nobody without a key that only it has"
        if {"grammar", "response_format"} & {*self._chat.options}:  # llama.cpp reads them only as it generates a token
            request, chat = self._chat.request("a")
            gathered = Gathered()
            engine.stream({**request, "max_tokens": 1}, chat, gathered.add, StopToken())
            if gathered.error is not None:
                raise failure(gathered.error, f"{self.name}: grammar= or response_format=", own=False, sent=None)
        return engine

    def _request(self, x: Any) -> tuple[dict[str, Any], bool]:
        """Return (the request for an input, True for a chat).

        The caller's mapping is not changed.

        Raises:
            BadInput: it is no input, or has a key that would end the process, or that llama.cpp would ignore.
        """
        request, chat = self._chat.request(x)
        if isinstance(x, Mapping):
            if taken := [key for key in NOT_THE_CALLERS if key in x]:
                raise BadInput(f"a request may not have {', '.join(taken)}: llama.cpp sets that")
            if isinstance(grammar := request.get("grammar"), str) and _too_nested(grammar):
                raise BadInput(f"the grammar has more than {MOST_PARENTHESES} parentheses within each other")
            if "response_format" in x and (problem := _impossible_limits(x["response_format"])):
                raise BadInput(f"response_format: {problem}")
            if not chat and "response_format" in request:
                raise BadInput("response_format is of chats: a request with a prompt takes a grammar in its place")
        return request, chat

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Prediction]:
        """Answer the inputs one after the other; return (text, log-probabilities or confidence, completion) of each.

        Args:
            inputs: texts, messages or requests.
            cancel: a stop request ends the generation at its next token.

        Raises:
            BadInput: one is neither.
            Unfit: one is longer than the context, or contains more than text.
            ModelError: llama.cpp failed, or the run was stopped.
        """
        return [prediction for x in inputs for prediction in self.run_one(x, cancel)]

    def run_one(self, x: Any, cancel: StopToken | None = None) -> list[Prediction]:
        """Answer one input; return a list of one prediction, as `run`. Loads the model if need be.

        A stop request ends the generation and raises ModelError.
        """
        request, chat = self._request(x)
        stop, gathered = StopToken() if cancel is None else cancel, Gathered()
        stop.on_ask(lambda: None)  # each piece is followed by a look at it
        if not stop.asked:
            self._loaded_engine(stop).stream(request, chat, gathered.add, stop)
        return [self._prediction_of(gathered, request, is_request=isinstance(x, Mapping))]

    def _prediction_of(self, gathered: Gathered, request: Mapping[str, Any], *, is_request: bool) -> Prediction:
        """Return the prediction of a whole reply.

        Raises:
            BadInput, Unfit, ModelError: as `run`.
        """
        if gathered.error is not None:
            raise failure(gathered.error, self.name, own=is_request, sent=request)
        if not gathered.ended:
            raise ModelError(f"{self.name} was stopped within its answer")
        return answer(gathered.reply(), self._chat.rule, self.name)

    def stream(self, x: Any, cancel: StopToken | None = None) -> Generator[str, None, Prediction]:
        """Yield the answer to one input in pieces, and return the prediction; closing the generator stops the generation.

        Loads the model if need be. A stop request ends the generation, and raises ModelError.

        Raises:
            BadInput, Unfit, ModelError: as `run`.
        """
        request, chat = self._request(x)
        left = StopToken() if cancel is None else StopToken(cancel.turn_by)
        gathered = Gathered(eager=isinstance(self.score, Prefix))
        if cancel is not None:
            cancel.on_ask(left)
        with closing(self._loaded_engine(left).pieces(request, chat, left)) as chunks:
            for chunk in chunks:
                if (piece := gathered.add(chunk)) is not None:
                    yield piece
        return self._prediction_of(gathered, request, is_request=isinstance(x, Mapping))


def _too_nested(grammar: str) -> bool:
    """Return True if a grammar has too many nested parentheses; those in texts count, too."""
    depth = 0
    for c in grammar:
        depth += (c == "(") - (c == ")" and depth > 0)
        if depth > MOST_PARENTHESES:
            return True
    return False


def _impossible_limits(form: Any) -> str:
    """Return a text on a part of a format that llama.cpp cannot read; empty: there is none.

    A least length above the most, to which it counts for ever; or references that lead to each other, which end its process.
    """
    inner = form.get("json_schema") if isinstance(form, Mapping) else None
    schema = (inner if isinstance(inner, Mapping) else form if isinstance(form, Mapping) else {}).get("schema")
    left = [form]
    while left:
        part = left.pop()
        left += part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
        for what in ("Length", "Items") if isinstance(part, Mapping) else ():
            least, most = part.get(f"min{what}"), part.get(f"max{what}")
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                return f"min{what} is {least}, and max{what} {most}"
        for _ in range(MOST_REFERENCES):
            if not (isinstance(part, Mapping) and isinstance(path := part.get("$ref"), str)):
                break
            part = schema
            for key in path.split("/")[1:]:
                part = part.get(key) if isinstance(part, Mapping) else None
        else:
            return "references lead to each other"
    return ""
