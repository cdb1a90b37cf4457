"""Check of the structure of a local answer, before it may be accepted: JSON by a schema, tool calls, code, a pattern, a function.

Patterns are matched in linear time by `LinearPattern`.

No fault's words have content of the answer, and nothing is fetched for a schema.
"""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from itertools import islice
from operator import methodcaller
from typing import Any, Final, TypeAlias

from edgeroute.confidence.scores import NO_LOGPROBS
from edgeroute.core.error_codes_and_texts import failure_text
from edgeroute.core.walk import Malformed, Prediction
from edgeroute.errors import PolicyError, RuntimeMissing, nearest
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.files_and_lock_waits import sha256
from edgeroute.system.input_copies import copy_input
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.read_and_check_signatures import is_async
from edgeroute.system.sanitised_logs_and_contained_errors import Failures

try:
    from re import _compiler as compiler  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_compile as compiler
    import sre_parse as parser

Given: TypeAlias = str | Mapping[str, Any] | re.Pattern[str] | Callable[[Any], Any]
LONGEST: Final = 1 << 16  # most characters of a text that is parsed or matched; a longer one fails
# Most steps by a schema that an answer may take, beside three for each of its characters; one that needs more fails. A keyword, a
# schema that is entered, and 64 characters that are compared or quoted are a step each, of some 5 us.
STEPS: Final = 5_000
MOST_CALLS: Final = 32  # most calls of tools in an answer, each of which is checked by a schema
STATES: Final = 20_000  # most states of a pattern
MOVES: Final = 2_000_000  # most states that a match visits, about a second; a text that needs more does not match
STORED: Final = 100_000  # most states in the stored moves of a pattern
NEEDS: Final = "a check by a JSON schema needs jsonschema: pip install 'edgeroute[schema]'"


class Fault(Exception):
    """Fault of an answer's structure, with the arguments of `Malformed`."""


class AnswerCheck:
    """Check of a model's answers; one that fails, or at which the check raises, gets a `Malformed` confidence: never accepted.

    Args:
        given: "json" or "python" (the text parses); a JSON schema, for the value, or for the JSON that a text is; a compiled
            pattern, or a text "/pattern/", that matches the whole text, in linear time (`LinearPattern`); or a function of a
            copy of the value, which returns True, False, or a number from 0 (it fails) to 1, by which the confidence is
            multiplied (divided, if negative: it never rises). None: none of these.
        options: keys of all requests to a language model, whose answers are checked by `response_format` and `tools` of
            the request. None: inputs are no requests.

    Raises:
        PolicyError: it is none of these.
        RuntimeMissing: a schema needs the package jsonschema.
    """

    def __init__(self, check: Given | None, options: Mapping[str, Any] | None = None) -> None:
        self._test = None if check is None else _test(check)
        self._check, self._options, self._failures = check, options, Failures()

    def wants(self, x: Any) -> bool:
        """Return True if the answer to an input is checked: a check was given, or the request asks for tools or a format."""
        return self._test is not None or bool(self._request(x))

    def blocks(self, inputs: Sequence[Any]) -> bool:
        """Return True if the check of the answers to these inputs may take long: of all but one text that is to be "json"."""
        return (self._check is not None and (self._check != "json" or len(inputs) > 1)) or any(map(self._request, inputs))

    def apply(self, prediction: Prediction, x: Any) -> Prediction:
        """Return the prediction for an input, with another confidence if its answer fails, or passes with a share.

        A fault gives a `Malformed`, and so does an error of a check, which is logged. A share multiplies the confidence (divides
        a negative one); an answer without confidence, since its model gives none, gets the share itself.
        """
        share, sure = None, prediction.confidence
        try:
            if request := self._request(x):
                self._check_reply(request, prediction)
            if self._test is not None:
                share = call_contained(self._test, prediction.value)
        except Fault as e:
            return prediction._replace(confidence=Malformed(*e.args))
        except Exception as e:  # noqa: BLE001 - nobody knows that the answer is well-formed
            self._failures.log("the check of an answer", e)
            return prediction._replace(confidence=Malformed("error", f"the check itself failed: {failure_text(e)}"))
        if share is None:
            return prediction
        if sure is not None and getattr(sure, "why", "") != NO_LOGPROBS:
            share = sure if share == 1 else sure * share if sure > 0 else sure / share
        return prediction._replace(confidence=share)

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return a text that identifies the check given, for certificates and caches; empty: there is none.

        A function by its fingerprint, which `of` returns; anything else by a hash of its contents.
        """
        check = self._check
        if check is None or callable(check):
            return "" if check is None else f" check {of(check)}"
        plain = (check.pattern, check.flags) if isinstance(check, re.Pattern) else check
        return f" check {sha256(json.dumps(to_json_types(plain), sort_keys=True).encode()).hexdigest()[:16]}"

    def _request(self, x: Any) -> Mapping[str, Any]:
        """Return the input's keys added to the options, a request, if it demands a structure: tools, functions or a format.

        Empty: it does not, or inputs are no requests.
        """
        if self._options is None:
            return {}
        request = {**self._options, **x} if isinstance(x, Mapping) else self._options
        return request if request.get("tools") or request.get("functions") or _form(request) else {}

    def _check_reply(self, request: Mapping[str, Any], prediction: Prediction) -> None:
        """Raise Fault for a completion whose tool calls, or without any whose text, are not as the request demands.

        Calls: of tools that are offered and chosen, with arguments by their schemas, at least one where one is required, and one
        at most without `parallel_tool_calls`, or `MOST_CALLS`. Text: JSON by the `response_format`.
        """
        message = prediction.outputs["choices"][0].get("message", {})
        # A `function_call` is of servers, and requests, from before there were tools.
        calls = [*(call["function"] for call in message.get("tool_calls") or ()), *filter(None, [message.get("function_call")])]
        functions = [tool["function"] for tool in request.get("tools") or () if "function" in tool]
        tools = {function["name"]: function for function in [*functions, *(request.get("functions") or ())]}
        choice = request.get("tool_choice", request.get("function_call"))
        chosen = {choice.get("function", choice)["name"]} if isinstance(choice, Mapping) else () if choice == "none" else tools
        if len(calls) > (most := 1 if request.get("parallel_tool_calls") is False else MOST_CALLS):
            raise Fault("tool", f"it calls {len(calls)} tools, and is to call {most} at most")
        for call in calls:
            if (name := call["name"]) not in tools or name not in chosen:
                raise Fault("tool", "it calls a tool that is not to be called")
            arguments = _json(call.get("arguments"), "arguments")
            if not isinstance(arguments, dict):
                raise Fault("arguments", "a tool's arguments are no JSON object")
            self._by_schema(tools[name].get("parameters"), arguments)
        if not calls and (choice == "required" or isinstance(choice, Mapping)):
            raise Fault("tool", "it calls no tool, and is to call one")
        if not calls and (form := _form(request)):
            schema, value = form.get("schema", (form.get("json_schema") or {}).get("schema")), _json(prediction.value)
            if schema is None and form.get("type") == "json_object" and not isinstance(value, dict):
                raise Fault("json", "it is no JSON object")
            self._by_schema(schema, value)

    def _by_schema(self, schema: Any, value: Any) -> None:
        """Raise Fault for a value that a request's schema forbids; without jsonschema none is checked, which is logged."""
        try:
            if schema is not None:
                _schema_test(schema)(value)
        except RuntimeMissing as e:
            self._failures.log("the check by a request's schema", e, coded=True)


def _form(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `response_format` of a request; empty: none, or that of a plain text."""
    form = request.get("response_format")
    return form if isinstance(form, Mapping) and form.get("type") != "text" else {}


def _test(check: Any) -> Callable[[Any], float]:
    """Return the test for a check ("json", "python", a pattern, a JSON schema, a function): it returns a share, or raises Fault.

    A function gets a copy of the value. Raises PolicyError for anything that is no check, and RuntimeMissing without jsonschema.
    """
    if isinstance(check, str) and len(check) > 2 and check[0] == check[-1] == "/":  # noqa: PLR2004 - a pattern within
        try:
            check = re.compile(check[1:-1], re.DOTALL)
        except re.error as e:
            raise PolicyError(f"check= has no regular expression between its slashes: {e}") from None
    if isinstance(check, re.Pattern):
        try:
            pattern = LinearPattern(check.pattern, check.flags)
        except Fault as e:
            raise PolicyError(f"check: {e.args[1]}: give a simpler one, or a function") from None
        return lambda value: _share(pattern.fullmatch(_text(value)), "pattern", "it does not match the pattern")
    if isinstance(check, Mapping):
        test = _schema_test(check, own=True)
        return lambda value: test(_json(value if isinstance(value, str) else json.dumps(value, default=methodcaller("tolist"))))
    if isinstance(check, str) and check in TESTS:
        return TESTS[check]
    if not callable(check) or is_async(check):
        nearby = nearest(check, TESTS) if isinstance(check, str) else "expected"
        raise PolicyError(f'check: {nearby} "json", "python", a pattern as "/.../", a JSON schema, or a plain function')
    return lambda value: _share(float(check(copy_input(value))), "check", "the check says no")


def _share(passed: float, code: str, why: str) -> float:
    """Return a share from above 0, at most 1. Raises Fault, with this code and these words, for any other."""
    if not passed > 0:
        raise Fault(code, why)
    return min(float(passed), 1.0)


def _json(value: Any, code: str = "json") -> Any:
    """Return what a JSON text has. Raises Fault for no JSON, NaN, a key that comes twice, and too much nesting."""
    try:
        return json.loads(_text(value), parse_constant=int, object_pairs_hook=_object)  # int("NaN") raises
    except (ValueError, RecursionError):
        raise Fault(code, "it is no JSON" if code == "json" else "a tool's arguments are no JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raises ValueError for a key that comes twice, of which programs read one or the other."""
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError
    return made


def _text(value: Any) -> str:
    """Return a value that is a text of at most `LONGEST` characters. Raises Fault otherwise."""
    _share(isinstance(value, str) and len(value) <= LONGEST, "text", f"it is no text of up to {LONGEST:,} characters")
    return value  # type: ignore[no-any-return]


def _python(value: Any) -> float:
    """Return 1 for a text that is Python. Raises Fault otherwise."""
    try:
        return float(compile(_text(value), "<answer>", "exec", ast.PyCF_ONLY_AST) is not None)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Fault("python", "it is no Python") from None


TESTS: Final[Mapping[str, Callable[[Any], float]]] = {"json": lambda value: len([_json(value)]), "python": _python}
# Keywords whose own values are compared with the answer, or quoted by jsonschema.
COMPARED: Final = frozenset({"const", "enum", "not", "oneOf", "disallow", "dependentRequired", "dependencies"})
_steps = threading.local()  # steps that are left to the check under way in a thread


def _schema_test(schema: Any, *, own: bool = False) -> Callable[[Any], float]:
    """Return the test of a value by a JSON schema, which fetches nothing: it returns 1, or raises Fault.

    Fault also for more steps than it may take (`STEPS`), and for an error of the check itself.

    Args:
        schema: the schema.
        own: True: raise PolicyError if it is none; False: its test raises Fault then.

    Raises:
        RuntimeMissing: the package jsonschema is not installed.
    """
    validators, referencing = import_needed("jsonschema.validators", NEEDS), import_needed("referencing.jsonschema", NEEDS)
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    if own:
        try:
            kind.check_schema(schema)
        except Exception as e:  # noqa: BLE001 - of several kinds
            raise PolicyError(f"check: this is no JSON schema: {getattr(e, 'message', type(e).__name__)}") from None

    text = json.dumps(schema, default=str)
    slow = '"unevaluatedProperties"' in text and '"patternProperties"' in text

    def test(value: Any) -> float:
        _share(not slow, "schema", "a schema cannot have both unevaluatedProperties and patternProperties")
        try:
            _steps.left = STEPS + 3 * len(json.dumps(value, ensure_ascii=False))
            root = referencing.Resource.from_contents(schema, default_specification=referencing.DRAFT202012)
            registry = validators.SPECIFICATIONS.with_resource(uri := root.id() or "", root)
            with suppress(Exception):  # a schema that cannot be crawled may have no reference that needs it
                registry = registry.crawl()  # once: else each reference to an anchor crawls the whole schema
            error = next(_counting(kind)(schema, _resolver=registry.resolver(uri)).iter_errors(value), None)
        except Exception as e:  # noqa: BLE001 - jsonschema's texts quote the value
            raise (e if isinstance(e, Fault) else Fault("schema", f"the schema cannot be checked: {type(e).__name__}")) from None
        return _share(error is None, "schema", f"the schema forbids it: {getattr(error, 'validator', '')}")

    return test


def _unique(_: Any, wanted: Any, items: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - as jsonschema calls it
    """Yield an error for equal items, in a time that grows with their number, where jsonschema's own compares all pairs."""
    if wanted is True and isinstance(items, list) and len(set(map(_key, items))) < len(items):
        yield import_needed("jsonschema", NEEDS).ValidationError("")


def _pattern(_: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - as jsonschema calls it
    """Yield an error for a text in which a pattern is not found, in linear time, where jsonschema's own backtracks."""
    if isinstance(value, str) and not _linear(pattern).search(value):
        yield import_needed("jsonschema", NEEDS).ValidationError("")


def _pattern_properties(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - likewise
    """Yield the errors of an object's values whose names match a pattern, in linear time, in place of jsonschema's own."""
    if isinstance(value, dict):
        for pattern, part in patterns.items():
            for name in filter(_linear(pattern).search, value):
                yield from validator.descend(value[name], part)


def _additional(evaluate: Callable[..., Any], validator: Any, allowed: Any, value: Any, schema: Any) -> Any:
    """Return the errors of an object's further values, by jsonschema's own keyword, without those whose names match a pattern."""
    if isinstance(value, dict) and (patterns := schema.get("patternProperties")):
        value = {name: part for name, part in value.items() if not any(_linear(pattern).search(name) for pattern in patterns)}
        schema = {**schema, "patternProperties": {}}
    return evaluate(validator, allowed, value, schema)


def _key(value: Any) -> Any:
    """Return a hashable key of a JSON value, equal to that of an equal value: 1 and 1.0 are equal, true and 1 are not."""
    if isinstance(value, dict):
        return frozenset((name, _key(part)) for name, part in value.items())
    return tuple(map(_key, value)) if isinstance(value, list) else (bool, value) if isinstance(value, bool) else value


def _spend(size: int = 0) -> None:
    """Take a step, and those of so many characters, from those of the thread's check. Raises Fault once none is left."""
    _steps.left -= 1 + size // 64
    _share(_steps.left, "schema", "the check by the schema takes too many steps")


def _step(name: str, evaluate: Callable[..., Any], validator: Any, wanted: Any, value: Any, schema: Any) -> Any:
    """Return the errors of a keyword, after its steps are taken."""
    _spend(len(repr((value, wanted if name in COMPARED else ""))))
    return evaluate(validator, wanted, value, schema)


@cache
def _counting(kind: Any) -> Any:
    """Return the validators' class of a draft, changed so that each keyword and schema takes some of the thread's steps; cached.

    These raise Fault once no step is left. A nested schema gives one error at most, without its words, in which jsonschema quotes
    the value: it keeps those of all alternatives. Patterns and unique items are checked in linear time, in place of jsonschema's
    own ways; nested schemas cannot change the class.
    """

    def evolve(self: Any, **changes: Any) -> Any:
        _spend()
        return import_needed("attr", NEEDS).evolve(self, **changes)  # jsonschema's own takes the class of a nested $schema

    def descend(self: Any, instance: Any, schema: Any, resolver: Any = None, **_: Any) -> Iterator[Any]:
        _spend(len(repr(instance)) if schema is False else 0)
        return (type(e)("", validator=e.validator) for e in islice(plain(self, instance, schema, resolver=resolver), 1))

    evaluates = {**kind.VALIDATORS, "uniqueItems": _unique, "pattern": _pattern, "patternProperties": _pattern_properties}
    if "additionalProperties" in evaluates:
        evaluates["additionalProperties"] = partial(_additional, evaluates["additionalProperties"])
    steps = {name: partial(_step, name, evaluate) for name, evaluate in evaluates.items()}
    counting = import_needed("jsonschema.validators", NEEDS).extend(kind, steps)
    plain, counting.evolve, counting.descend = counting.descend, evolve, descend
    return counting


# Patterns without backtracking. Python's `re` holds the interpreter for as long as it backtracks, so no deadline can leave it.


class LinearPattern:
    """Pattern that is matched in linear time, by sets of states (Thompson, 1968), and moves between them that are stored.

    A lookahead is matched anew at each position. Threads may share a pattern.

    Args:
        pattern: regular expression of `re`.
        flags: its flags.

    Raises:
        Fault: it has a back reference, a possessive repeat or an atomic group, or more than `STATES` states.
    """

    def __init__(self, pattern: str, flags: int = 0) -> None:
        _share(isinstance(pattern, str), "pattern", "a pattern of bytes matches no text")
        tree = parser.parse(pattern, flags)
        self._program: list[tuple[str, Any, Sequence[int]]] = [("end", None, ())]
        self._moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._tests: dict[str, Callable[[str, int], Any]] = {}
        self._whole = self._add(tree, tree.state.flags, 0)
        self._anywhere = self._state("split", None, (self._whole, len(self._program) + 1))
        self._state("one", re.compile(".", re.DOTALL).match, (self._anywhere,))

    def fullmatch(self, text: str) -> bool:
        """Return True if the whole text matches. Raises Fault after `MOVES`."""
        return self._run(self._whole, text, 0, len(text), [MOVES])

    def search(self, text: str) -> bool:
        """Return True if a part of the text matches. Raises Fault after `MOVES`."""
        return self._run(self._anywhere, text, 0, None, [MOVES])

    def _state(self, kind: str, test: Any, after: Sequence[int]) -> int:
        """Append a state to the program and return its number. Raises Fault beyond `STATES`."""
        _share(len(self._program) < STATES, "pattern", f"the pattern has more than {STATES:,} states")
        self._program.append((kind, test, after))
        return len(self._program) - 1

    def _add(self, tree: Any, flags: int, after: int) -> int:
        """Append the states of a parsed pattern that go on to state `after`; return the first.

        Raises Fault for a back reference, a possessive repeat or an atomic group, and for too many states.
        """
        for item in reversed(list(tree)):
            name, parsed = str(item[0]), item[1]
            if name in {"ANY", "AT", "IN", "LITERAL", "NOT_LITERAL"}:
                after = self._state("at" if name == "AT" else "one", self._test_of(item, flags), (after,))
            elif name == "SUBPATTERN":
                after = self._add(parsed[3], (flags | parsed[1]) & ~parsed[2], after)
            elif name == "BRANCH":
                after = self._state("split", None, [self._add(part, flags, after) for part in parsed[1]])
            elif name in {"MAX_REPEAT", "MIN_REPEAT"}:
                after = self._add_repeat(parsed, flags, after)
            elif name in {"ASSERT", "ASSERT_NOT"}:
                back = parsed[1].getwidth()[0] if parsed[0] < 0 else None
                after = self._state("look", (self._add(parsed[1], flags, 0), back, name == "ASSERT"), (after,))
            else:
                _share(name == "FAILURE", "pattern", f"the pattern has {name.lower()}, which may take for ever")
                after = self._state("split", None, ())
        return after

    def _add_repeat(self, parsed: tuple[int, int, Any], flags: int, after: int) -> int:
        """Append the states of a repeated part; return the first. parsed: least and most repeats, and the part.

        Each repeat has states of its own, but for those of a repeat without a limit. Raises as `_add`.
        """
        (least, most, part), end = parsed, after
        if most == parser.MAXREPEAT:
            after = self._state("split", None, ())
            self._program[after] = ("split", None, (self._add(part, flags, after), end))
        for _ in range(0 if most == parser.MAXREPEAT else most - least):
            after = self._state("split", None, (self._add(part, flags, after), end))
        for _ in range(least):
            after = self._add(part, flags, after)
        return after

    def _test_of(self, item: Any, flags: int) -> Callable[[str, int], Any]:
        """Return the test of one character, or of a position, in a text: a match compiled by `re` itself, which is stored."""
        key = f"{item} {flags}"
        if key not in self._tests:
            state = parser.State()
            state.flags, state.str = flags, ""
            self._tests[key] = compiler.compile(parser.SubPattern(state, [item])).match
        return self._tests[key]

    def _run(self, begin: int, text: str, at: int, end: int | None, left: list[int]) -> bool:
        """Return True if the text from `at` matches up to `end`; None: up to anywhere. Stores the moves between states.

        left: visits of states that are left, reduced in place; raises Fault once there are none.
        """
        states, _ = self._reached([begin], text, at, left)
        while states and at != (len(text) if end is None else end) and not (end is None and 0 in states):
            key = states, text[at]
            _take(left, 1)
            at += 1
            if (known := self._moves.get(key)) is None:
                after = [i for state in states if self._program[state][0] == "one" and self._program[state][1](key[1], 0)
                         for i in self._program[state][2]]  # fmt: skip
                _take(left, len(states))
                known, lasting = self._reached(after, text, at, left)
                if lasting:
                    if len(self._moves) * len(known) > STORED:
                        self._moves.clear()
                    self._moves[key] = known
            states = known
        return 0 in states

    def _reached(self, waiting: list[int], text: str, at: int, left: list[int]) -> tuple[frozenset[int], bool]:
        """Return the states that `waiting` leads to without another character, and True if they do not depend on the position.

        Matches lookaheads, empties `waiting`, and reduces `left` in place; raises Fault once no visits are left.
        """
        visited, states, lasting = set[int](), set[int](), True
        while waiting:
            if (state := waiting.pop()) in visited:
                continue
            visited.add(state)
            _take(left, 1)
            kind, test, after = self._program[state]
            if kind in {"one", "end"}:
                states.add(state)
                continue
            lasting = lasting and kind == "split"
            if kind == "look":
                part, back, wanted = test
                begin = at - (back or 0)
                passes = (begin >= 0 and self._run(part, text, begin, None if back is None else at, left)) == wanted
            else:
                passes = kind == "split" or test(text, at) is not None
            if passes:
                waiting += after
        return frozenset(states), lasting


def _take(left: list[int], count: int) -> None:
    """Count visits of states. Raises Fault once none are left."""
    left[0] -= count
    _share(left[0] >= 0, "pattern", f"the match takes more than {MOVES:,} steps")


@lru_cache(maxsize=64)
def _linear(pattern: str) -> LinearPattern:
    """Return a pattern of a schema. Raises Fault, or re.error."""
    return LinearPattern(pattern)
