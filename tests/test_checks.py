"""Checks of a local answer's structure: a malformed answer is accepted by no threshold, in no call, and shown only if all else fails."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import random
import re
import socket
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from both import CALLS, LONG, Tasks, Threads, ask
from draws import slow

from edgeroute import (
    AsyncRouter,
    Cache,
    CallableModel,
    InputScore,
    LocalServer,
    NoAnswer,
    OpenAIChat,
    Options,
    PolicyError,
    Prediction,
    Router,
)
from edgeroute.core.walk import Malformed
from edgeroute.edge.answer_structure_checks import LONGEST, AnswerCheck, LinearPattern
from edgeroute.edge.edge_backend import edge_backend
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.server.openai_chat_completions import KEYS

pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False,
}  # fmt: skip
GOOD, BAD = '{"n": 3}', '{"n": 3'
TOOL = {"type": "function", "function": {"name": "pay", "parameters": SCHEMA}}
ASKED = {"messages": [{"role": "user", "content": "pay"}], "tools": [TOOL]}


def applied(check, value, x=None, confidence=0.9, options=None, outputs=None):
    """The confidence after the check: a number, or the fault's code."""
    sure = AnswerCheck(check, options).apply(Prediction(value, confidence, outputs), x).confidence
    return sure.code if isinstance(sure, Malformed) else sure


def completion(*calls, content=None, **more):
    """A reply of a server with these calls of tools."""
    made = [{"id": "c", "type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    message = {"role": "assistant", "content": content, **({"tool_calls": made} if made else {})}
    token = {"token": "a", "logprob": -0.01}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [token]}, **more}]}


def requested(request, *calls, content=None):
    """The fault of that reply to that request."""
    reply = completion(*calls, content=content)
    return applied(None, content or "", {**ASKED, **request}, options={}, outputs=reply)


@pytest.fixture(params=[Threads, Tasks])
def made(request):
    """Makes routers, whose edge gives `router.text` with confidence .9."""
    routers = []

    def make(check=SCHEMA, cloud=lambda _: "cloud", text=BAD, threshold=0.5, **options):
        def edge(_):
            yield from router.text
            return 0.9

        router = request.param(CallableModel(edge, check=check), cloud, threshold=threshold, **options)
        router.text = text
        routers.append(router)
        return router

    yield make
    for router in routers:
        router.close()


def away(_):
    raise ConnectionError


# --- what is a fault


@pytest.mark.parametrize(
    ("check", "value", "found"),
    [
        (SCHEMA, GOOD, 0.9), (SCHEMA, BAD, "json"), (SCHEMA, '{"n": "3"}', "schema"), (SCHEMA, "{}", "schema"),
        (SCHEMA, '{"n": 1, "m": 2}', "schema"), (SCHEMA, '{"n": 1}{"n": 1}', "json"), (SCHEMA, '{"n": 1, "n": 2}', "json"),
        (SCHEMA, '{"n": NaN}', "json"), (SCHEMA, {"n": 3}, 0.9), (SCHEMA, {"n": np.int64(3)}, 0.9), (SCHEMA, [3], "schema"),
        (SCHEMA, {"n": object()}, "error"), (SCHEMA, None, "schema"), (SCHEMA, "", "json"),
        ({"minimum": 0, "maximum": 10}, 4.5, 0.9), ({"minimum": 0, "maximum": 10}, 11, "schema"),
        ({"minimum": 0, "maximum": 10}, float("nan"), "json"), ({"minimum": 0, "maximum": 10}, "7", 0.9),
        ({"items": {"maximum": 3}}, np.array([1, 2]), 0.9), ({"items": {"maximum": 3}}, np.array([[1], [5]])[1], "schema"),
        ("json", GOOD, 0.9), ("json", "nothing", "json"), ("json", 3, "text"),
        ("python", "x = [1, 2]", 0.9), ("python", "x = [1, 2", "python"), ("python", "\0", "python"), ("python", None, "text"),
        ("/[0-9]+ kg/", "12 kg", 0.9), ("/[0-9]+ kg/", "12 kg\n", "pattern"), ("/[0-9]+ kg/", 12, "text"),
        (re.compile("a|b"), "b", 0.9), (re.compile("a|b"), "ab", "pattern"),
        (lambda _: True, "x", 0.9), (lambda _: np.True_, "x", 0.9), (lambda _: 0.5, "x", 0.45), (lambda _: 7, "x", 0.9),
        (lambda _: False, "x", "check"), (lambda _: float("nan"), "x", "check"), (lambda _: None, "x", "error"),
        (lambda _: 1 / 0, "x", "error"), (str.isdigit, "12", 0.9),
    ],
)  # fmt: skip
def test_what_passes(check, value, found):
    """By each kind of check, for texts and values."""
    assert applied(check, value) == (pytest.approx(found) if isinstance(found, float) else found)


@pytest.mark.parametrize("check", ["jsonn", "/(/", 3, (1, 2), {"type": "nothing"}, {"properties": 3}])
def test_what_is_no_check(check):
    """Is refused when the router is made."""
    with pytest.raises(PolicyError, match="check"):
        Router(CallableModel(lambda x: x, check=check))


def test_an_async_function_is_no_check():
    """It would have to be awaited."""

    async def check(_):
        return True

    with pytest.raises(PolicyError, match="plain function"):
        AnswerCheck(check)


@pytest.mark.parametrize(
    "text", ["[" * 10_000 + "]" * 10_000, "[" * 30_000, '"' + "a" * 5_000_000 + '"', "1" * 60_000, '{"a":' * 10_000],
)  # fmt: skip
def test_hostile_texts(text):
    """Those of 10,000 levels or 5 MB take no time, and fail where Python reads no such depth: 3.14 does."""
    assert applied("json", text) in {"json", "text", *([0.9] if sys.version_info >= (3, 14) else [])}
    assert applied(SCHEMA, text) in {"json", "text", "schema"}
    assert applied("python", text) in {"python", "text", 0.9}
    assert applied("/.*/", "x" * (LONGEST + 1)) == "text"


@pytest.mark.parametrize("text", ["(" * 5_000, "-" * 60_000 + "1", "a" + ".a" * 30_000, "1+" * 30_000 + "1", "if 1:\n" * 200])
def test_hostile_programs(text):
    """Whatever Python makes of them, it is an answer or a fault."""
    assert applied("python", text) in {"python", 0.9}


SLOW = "(?:a+)+b"
LONG_TEXT = "a" * (LONGEST - 100)


@pytest.mark.parametrize("driver", [Threads, Tasks])
def test_a_pattern_that_backtracks_holds_no_deadline(driver):
    """`re` would hold the interpreter for ever."""
    edge = CallableModel(lambda _: (LONG_TEXT, 0.9), check=f"/{SLOW}/")
    router = driver(edge, lambda _: "cloud", threshold=0.5, deadline=LONG)
    try:
        assert router.infer(1).value == "cloud"
    finally:
        router.close()


@pytest.mark.parametrize(
    ("schema", "value", "found"),
    [
        ({"pattern": SLOW}, LONG_TEXT, "schema"), ({"pattern": SLOW}, "caab", 0.9), ({"pattern": SLOW}, 3, 0.9),
        ({"patternProperties": {SLOW: False}}, {LONG_TEXT: 1}, 0.9), ({"patternProperties": {SLOW: False}}, {"ab": 1}, "schema"),
        ({"patternProperties": {SLOW: True}, "additionalProperties": False}, {LONG_TEXT: 1}, "schema"),
        ({"patternProperties": {SLOW: True}, "additionalProperties": False}, {"ab": 1}, 0.9),
        ({"patternProperties": {SLOW: False}}, [LONG_TEXT], 0.9),
        ({"patternProperties": {"a": True}, "unevaluatedProperties": False}, {"a": 1}, "schema"),
        ({"pattern": "(a)\\1"}, "aa", "pattern"),
    ],
)  # fmt: skip
def test_patterns_of_a_schema(schema, value, found):
    """Are found without backtracking, in texts and in names."""
    assert applied(schema, json.dumps(value)) == (pytest.approx(found) if isinstance(found, float) else found)


@pytest.mark.parametrize("pattern", [r"(a)\1", r"(a)?(?(1)b|c)", "(?:a{1000}){1000}", re.compile(b"a")])
def test_patterns_that_are_refused(pattern):
    """Where their time has no bound, or they are too large, or match no text."""
    with pytest.raises(PolicyError, match=r"check: .*pattern"):
        AnswerCheck(f"/{pattern}/" if isinstance(pattern, str) else pattern)


def test_a_lookahead_at_each_position_ends():
    """After so many steps it does not match."""
    assert applied("/(?:a(?=.*c))*/", LONG_TEXT) == "pattern"


def drawn_pattern(draw, depth):
    """A pattern of that depth, drawn at random."""
    if not depth or draw.random() < 0.3:
        return draw.choice(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", "[a-c1]", "A", "ß", "^", "$", r"\b", r"\B"])
    part, other = drawn_pattern(draw, depth - 1), drawn_pattern(draw, depth - 1)
    behind = draw.choice(["a", "ab", "[ab]", "a|b"])
    form = draw.choice(
        ["{0}{1}", "(?:{0}|{1})", "({0}|)", "(?i:{0})", "(?={0})", "(?!{0})", "(?<={2})", "(?<!{2})"] + 5 * ["(?:{0}){3}"]
    )
    return form.format(part, other, behind, draw.choice(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "??"]))


def test_patterns_match_as_those_of_python():
    """Of random ones, on random texts."""
    draw = random.Random(7)
    for _ in range(400):
        text, flags = drawn_pattern(draw, 4), draw.choice([0, re.IGNORECASE, re.DOTALL, re.MULTILINE, re.ASCII])
        pattern, linear = re.compile(text, flags), LinearPattern(text, flags)
        for _ in range(5):
            of = "".join(draw.choice("abcA1 \nß") for _ in range(draw.randrange(9)))
            expected = pattern.fullmatch(of) is not None, pattern.search(of) is not None
            assert (linear.fullmatch(of), linear.search(of)) == expected, (text, flags, of)


def test_moves_that_are_too_many_are_dropped(monkeypatch):
    """A pattern does not grow with the texts that it meets."""
    monkeypatch.setattr("edgeroute.edge.answer_structure_checks.STORED", 5)
    pattern = LinearPattern("(?:ab|[^a])*")
    assert pattern.fullmatch("abcdefghij" * 3)
    assert not pattern.fullmatch("ba")


TWICE = {"allOf": [{"$ref": "#/$defs/0"}, {"$ref": "#/$defs/0"}]}
LAUGHS = {"$defs": {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(60)} | {"60": True}, **TWICE}
NAMED = {
    "$defs": {**LAUGHS["$defs"], "0": {**LAUGHS["$defs"]["0"], "$schema": "http://json-schema.org/draft-07/schema#"}},
    **TWICE,
}


@pytest.mark.parametrize("schema", [LAUGHS, *slow(NAMED), {"$ref": "#"}, {"$ref": "#/nothing"}, {"$dynamicRef": "#x"}])
def test_hostile_schemas(schema):
    """One that doubles with each level, refers to itself or to nothing, ends in a fault."""
    assert applied(schema, GOOD) == "schema"


def nested(leaf, keyword="allOf", width=100):
    """A schema in which that one is reached so many times, squared."""
    defs = {"a": {keyword: [{"$ref": "#/$defs/b"}] * width}, "b": {keyword: [leaf] * width}}
    return {**({"$ref": "#/$defs/a"} if keyword == "allOf" else {"not": {"$ref": "#/$defs/a"}}), "$defs": defs}


@pytest.mark.parametrize(
    ("leaf", "keyword", "value"),
    [
        ({"const": LONG_TEXT}, "allOf", LONG_TEXT), ({"maxLength": LONGEST}, "allOf", LONG_TEXT), (True, "allOf", 1), ({}, "allOf", 1),
        ({"enum": [[0] * 500, [0] * 501]}, "allOf", [0] * 501), ({"not": {"const": [0] * 2_000}}, "allOf", 1),
        ({"items": {}}, "allOf", [0] * 900), ({"uniqueItems": True}, "allOf", [*range(900)]), (False, "anyOf", 1),
        ({"type": "null"}, "anyOf", 1),
    ],
)  # fmt: skip
def test_a_schema_takes_steps_by_what_it_compares(leaf, keyword, value):
    """A keyword, a schema, and so many characters are one each; a check that needs too many ends in a fault that says so."""
    found = AnswerCheck(nested(leaf, keyword)).apply(Prediction(json.dumps(value), 0.9, None), None).confidence
    assert isinstance(found, Malformed)
    assert "too many steps" in found.why
    assert applied(nested(leaf, keyword, 1), json.dumps(value)) == 0.9, "once it passes"


def test_a_long_answer_may_take_more_steps():
    """As many as there are to check by an honest schema."""
    row = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "additionalProperties": False}
    assert applied({"type": "array", "items": {"$ref": "#/$defs/row"}, "$defs": {"row": row}}, [{"n": 1}] * 5_000) == 0.9
    assert applied({"items": {"type": "integer", "minimum": 0, "maximum": 9}}, json.dumps([1] * 20_000)) == 0.9


@pytest.mark.parametrize("leaf", [{"type": "null"}, False])
def test_no_errors_with_words_are_kept(leaf):
    """jsonschema keeps those of all alternatives, and each quotes the answer."""
    schema, text = nested(leaf, "anyOf", 10), json.dumps("=" * 10_000 + "\U0001f600", ensure_ascii=False)
    applied(schema, text)
    tracemalloc.start()
    try:
        assert applied(schema, text) == 0.9
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reference", [{"$ref": "#x"}, {"$dynamicRef": "#x"}, {"$id": "y", "$ref": "other#/a"}])
def test_a_schema_is_crawled_once(monkeypatch, reference):
    """However many of its references are to anchors, or come from within a schema with an address of its own."""
    from referencing import Registry

    crawled, crawl = [], Registry.crawl
    monkeypatch.setattr(Registry, "crawl", lambda self: crawled.append(len(self._uncrawled)) or crawl(self))  # private
    defs = {"x": {"$dynamicAnchor": "x"}, "z": {"$id": "other", "a": True}}
    assert applied({"items": reference, "$defs": defs}, [1] * 50) == 0.9
    assert sum(crawled) == 1


def test_unique_items():
    """Are told apart in no more time than it takes to read them: all pairs of 5,000 would take a minute."""
    many = [{"a": i} for i in range(5_000)]
    assert applied({"uniqueItems": True}, many) == 0.9
    assert applied({"uniqueItems": True}, json.dumps([*many[:9], {"a": 3}])) == "schema"
    assert applied({"uniqueItems": False}, "[1, 1]") == applied({"uniqueItems": True}, "3") == 0.9
    for equal in ("[1, 1.0]", "[0, -0.0]", '[{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}]', "[[1], [1e0]]", "[null, null]"):
        assert applied({"uniqueItems": True}, equal) == "schema"
    assert applied({"uniqueItems": True}, '[1, true, "1", [1], [true], 0, false, {}, [], null]') == 0.9


@pytest.mark.parametrize("confidence", [0.9, 0.0, -5.0, -np.inf])
def test_a_share_never_raises_a_confidence(confidence):
    """A negative one, as of a log-probability, falls as well."""
    shares = [applied(lambda _, share=share: share, "x", confidence=confidence) for share in (1e-3, 0.1, 0.5, 1.0)]
    assert shares == sorted(shares)
    assert shares[-1] == confidence
    assert applied(lambda _: 0.5, "x", confidence=2.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"required": ["diagnosis"]}, {"required": ["b"]}), ("/.*diagnosis.*/", "/.*b.*/"),
        (re.compile("diagnosis"), re.compile("diagnosis", re.IGNORECASE)),
        (re.compile("a" * 300 + "diagnosis"), re.compile("a" * 300 + "b")),
    ],
)  # fmt: skip
def test_no_words_of_a_check_are_in_its_identity(a, b):
    """Which is in certificates and reasons: a hash, which differs for another check."""
    identities = [AnswerCheck(check).identity(repr) for check in (a, b)]
    assert identities[0] != identities[1]
    assert "diagnosis" not in identities[0]


def test_an_identity_knows_no_order():
    """The keys of a schema have none; the hash is the same in each process."""
    turned = dict(reversed(SCHEMA.items()))
    assert AnswerCheck(SCHEMA).identity(repr) == AnswerCheck(turned).identity(repr) == " check a13847107258dd15"


def test_nothing_is_fetched():
    """For a schema that refers to an address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        for schema in ({"$ref": url}, {"$schema": url, "$ref": url}, {"$id": url, "$ref": "other.json"}):
            assert applied(schema, GOOD) == "schema"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_recursive_schema():
    """Is one like others; an answer that is nested beyond what Python can follow fails."""
    tree = {"type": "array", "items": {"$ref": "#"}}
    assert applied(tree, "[[], [[]]]") == 0.9
    assert applied(tree, "[[], [3]]") == "schema"
    assert applied(tree, "[" * 900 + "]" * 900) in {"schema", "json"}


def test_a_fault_can_be_pickled():
    """With its code and words, as a prediction may go to another process."""
    fault = pickle.loads(pickle.dumps(Malformed("json", "it is no JSON")))
    assert (fault.code, fault.why, bool(np.isnan(fault))) == ("json", "it is no JSON", True)


def test_a_function_changes_nothing():
    """It gets a copy of the answer."""
    value = {"n": [1]}
    with Router(CallableModel(lambda _: (value, 0.9), check=lambda v: v["n"].clear() or v.clear() or True)) as router:
        assert router.infer("x").value is value
        assert value == {"n": [1]}


def test_no_content_is_logged(caplog):
    """Nor in the reason or the trace: neither of the answer nor of an exception."""

    def check(value):
        raise ValueError(f"bad {value}")

    with Router(CallableModel(lambda _: ("secret", 0.9), check=check), lambda _: "cloud", threshold=0.5) as router:
        answer = router.infer("x")
    assert "secret" not in answer.reason
    with Router(CallableModel(lambda _: ('{"n": "secret"}', 0.9), check=SCHEMA), lambda _: "cloud", threshold=0.5) as router:
        answer = router.infer("x")
    assert "secret" not in answer.reason + json.dumps(answer.trace) + caplog.messages[0].partition("\n")[0]


# --- in calls


@pytest.mark.parametrize("call", CALLS)
def test_a_malformed_answer_defers(made, call):
    """However confident; one that is well-formed stands."""
    router = made()
    answer = ask(router, call, "x")
    assert (answer.value, answer.reason_code, answer.malformed) == ("cloud", "malformed", "")
    event = next(event for event in answer.trace["events"] if event["what"] == "below")
    assert (event["leg"], event["confidence"], event["check"]) == ("edge", None, "json")
    router.text = GOOD
    assert (ask(router, call, "x").source, router.stats().deferral_rate) == ("edge", 0.5)


@pytest.mark.parametrize("call", CALLS)
def test_it_stands_if_all_else_fails(made, call):
    """As degraded, with the code; not with offline="raise". No policy accepts it."""
    for options in ({}, {"options": Options(no_confidence="accept")}, {"mode": "only_edge"}, {"mode": "prefer_cloud"}):
        router = made(cloud=away, **options)
        answer = ask(router, call, "x")
        assert (answer.value, answer.degraded, answer.malformed, answer.confidence) == (BAD, True, "json", None)
        assert pickle.loads(pickle.dumps(answer)).malformed == copy.copy(answer).malformed == "json"
    answer = ask(made(cloud=None), call, "x")
    assert (answer.degraded, answer.reason_code) == (True, "malformed")
    with pytest.raises(NoAnswer):
        ask(made(cloud=away, offline="raise"), call, "x")


def test_nothing_of_it_is_streamed(made):
    """While another leg may answer; what passes is shown in its own pieces."""

    def cloud(_):
        yield from ("clo", "ud")

    router = made(cloud=cloud)
    for options in ({}, {"restart": True}):
        with router.stream("x", **options) as stream:
            assert list(stream) == ["clo", "ud"]
    router.text = GOOD
    with router.stream("x") as stream:
        assert list(stream) == [*GOOD]
    router = made(cloud=away)
    with router.stream("x") as stream:
        assert (list(stream), stream.answer.malformed) == ([BAD], "json")


def test_it_is_no_provisional_answer(made):
    """`refine` shows the cloud's alone."""
    assert [answer.value for answer in made().refine("x")] == ["cloud"]


def test_rows_of_a_batch(made):
    """Are checked one by one."""
    texts = {"a": GOOD, "b": BAD, "c": GOOD}
    with Router(CallableModel(lambda x: (texts[x], 0.9), check="json"), lambda _: "cloud", threshold=0.5) as router:
        assert [answer.value for answer in router.infer_many(["a", "b", "c"])] == [GOOD, "cloud", GOOD]


def test_it_is_not_cached(made):
    """Neither as it is given for want of a better one, nor for another check after a reload."""
    router = made(cloud=away, cache=Cache())
    for _ in range(2):
        assert router.infer("x").source == "edge"
    assert router.stats().cached == 0
    a, b = (edge_backend("e", CallableModel(len, version="1", check=check), "msp") for check in ("json", "python"))
    none = edge_backend("e", CallableModel(len, version="1"), "msp")
    assert len({backend.identity(repr) for backend in (a, b, none)}) == 3


def test_a_ladder_prefers_what_is_well_formed(made):
    """An unsure answer of the smaller model goes before a malformed one of the larger."""
    small, large = CallableModel(lambda _: (GOOD, 0.1), check="json", name="s"), CallableModel(lambda _: (BAD, 0.9), check="json")
    with Router([small, large], away, threshold=0.5) as router:
        for call in CALLS:
            answer = ask(router, call, "x")
            assert (answer.value, answer.degraded, answer.malformed) == (GOOD, True, "")


@pytest.mark.parametrize("call", CALLS)
def test_with_a_score_of_the_input(call):
    """The check is beside it, and made once."""
    seen = []
    edge = CallableModel(lambda _: GOOD, check=lambda v: seen.append(v) or 0.8)
    with Router(edge, lambda _: "cloud", threshold=0.5, score=InputScore(lambda _: 0.75)) as router:
        assert ask(router, call, "x").confidence == pytest.approx(0.6)
    assert seen == [GOOD]


def test_a_passed_check_is_a_confidence():
    """Of an answer that has none; so a check alone decides."""
    with Router(CallableModel(lambda x: x, check="json"), lambda _: "cloud", threshold=0.5) as router:
        assert [router.infer(text).source for text in (GOOD, BAD)] == ["edge", "cloud"]
        assert router.infer(GOOD).confidence == 1


def test_an_awaited_edge():
    """Is checked, too, whole and in pieces."""

    async def edge(text):
        for c in text:
            yield c
        yield Prediction(text, 0.9, None)

    async def run():
        async with AsyncRouter(CallableModel(edge, check="json"), lambda _: "cloud", threshold=0.5) as router:
            found = [(await router.infer(text)).source for text in (GOOD, BAD)]
            for text in (GOOD, BAD):
                async with router.stream(text) as stream:
                    found.append([piece async for piece in stream])
            return found

    assert asyncio.run(run()) == ["edge", "cloud", [*GOOD], ["cloud"]]


def test_a_check_that_hangs_ends_at_the_deadline():
    """As a model does that hangs."""
    leaves = threading.Event()
    edge = CallableModel(lambda _: ("x", 0.9), check=lambda _: leaves.wait(LONG))
    with Router(edge, lambda _: "cloud", threshold=0.5, deadline=0.2) as router:
        with pytest.raises(NoAnswer):
            router.infer("x", mode="only_edge")
        leaves.set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("awaited", [True, False])
def test_a_check_never_blocks_the_loop(awaited, stream):
    """That of an awaited model runs in a thread, as that of a model known to be quick does: other tasks go on.

    A check that goes on after its call was cancelled counts as an abandoned run until it ends.
    """
    begun, leaves, threads = threading.Event(), threading.Event(), set()

    def check(value):
        threads.add(threading.current_thread())
        if value == "waits":
            begun.set()
            leaves.wait(LONG)
        return True

    def plain(x):
        return x, 0.9

    async def edge(x):
        return x, 0.9

    async def call(router, x):
        if not stream:
            return await router.infer(x)
        async with router.stream(x) as pieces:
            return [piece async for piece in pieces]

    async def run():
        async with AsyncRouter(
            CallableModel(edge if awaited else plain, check=check), lambda _: "cloud", threshold=0.5
        ) as router:
            await router.warm(["x"])
            for _ in range(20):  # it is quick
                await call(router, "x")
            task = asyncio.create_task(call(router, "waits"))
            assert await asyncio.to_thread(begun.wait, LONG)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            backend = router.engine.snapshot.backends[0]
            assert backend.abandoned
            leaves.set()
            while backend.abandoned:  # noqa: ASYNC110 - its thread tells nobody
                await asyncio.sleep(0)

    asyncio.run(run())
    assert threading.main_thread() not in threads


def test_which_checks_may_stay_on_the_loop():
    """That of one text that is to be JSON, which is bounded."""
    assert [AnswerCheck(check).blocks("x") for check in (None, "json", "python", "/a/", SCHEMA, len)] == [False] * 2 + [True] * 4
    assert AnswerCheck("json").blocks("xy")
    assert AnswerCheck(None, {}).blocks([ASKED])
    assert not AnswerCheck(None, {}).blocks([{}])


# --- by the request


@pytest.mark.parametrize(
    ("request_", "calls", "found"),
    [
        ({}, [("pay", GOOD)], 0.9), ({}, [("pay", BAD)], "arguments"), ({}, [("pay", "[1]")], "arguments"),
        ({}, [("pay", '{"n": "3"}')], "schema"), ({}, [("steal", GOOD)], "tool"), ({}, [("pay", GOOD), ("pay", BAD)], "arguments"),
        ({}, [("pay", GOOD * 2)], "arguments"), ({}, [("pay", "")], "arguments"), ({}, [("pay", {"n": 3})], "text"), ({}, [], 0.9),
        ({"tool_choice": "required"}, [], "tool"), ({"tool_choice": "none"}, [("pay", GOOD)], "tool"),
        ({"tool_choice": TOOL}, [], "tool"), ({"tool_choice": TOOL}, [("pay", GOOD)], 0.9),
        ({"tool_choice": {"function": {"name": "x"}}}, [("pay", GOOD)], "tool"),
        ({"tools": [{"type": "web_search"}]}, [("pay", GOOD)], "tool"), ({"tools": [3]}, [("pay", GOOD)], "error"),
        ({"tools": [{"type": "function", "function": {"name": "pay"}}]}, [("pay", "{}")], 0.9),
        ({"parallel_tool_calls": False}, [("pay", GOOD)], 0.9), ({"parallel_tool_calls": False}, [("pay", GOOD)] * 2, "tool"),
        ({}, [("pay", GOOD)] * 32, 0.9), ({}, [("pay", GOOD)] * 33, "tool"),
    ],
)  # fmt: skip
def test_calls_of_tools(request_, calls, found):
    """Of the request's tools, with arguments by their schemas."""
    assert requested(request_, *calls) == found


@pytest.mark.parametrize(
    ("request_", "call", "found"),
    [
        (ASKED, ("pay", GOOD), 0.9), (ASKED, ("steal", GOOD), "tool"), (ASKED, ("pay", "{}"), "schema"),
        ({"functions": [TOOL["function"]]}, ("pay", GOOD), 0.9), ({"functions": [TOOL["function"]]}, ("steal", GOOD), "tool"),
        ({"functions": [TOOL["function"]], "function_call": "none"}, ("pay", GOOD), "tool"),
        ({"functions": [TOOL["function"]], "function_call": {"name": "pay"}}, ("pay", GOOD), 0.9),
        ({"functions": [TOOL["function"]], "function_call": {"name": "pay"}}, None, "tool"),
    ],
)  # fmt: skip
def test_calls_of_functions(request_, call, found):
    """As servers and requests had them before there were tools."""
    reply = completion()
    reply["choices"][0]["message"]["function_call"] = call and {"name": call[0], "arguments": call[1]}
    assert applied(None, "", request_, options={}, outputs=reply) == found


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        ({"type": "text"}, "free", 0.9), ("json", "free", 0.9), ({"type": "json_object"}, "{}", 0.9),
        ({"type": "json_object"}, "free", "json"), ({"type": "json_object", "schema": SCHEMA}, "{}", "schema"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, GOOD, 0.9),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "{}", "schema"),
        ({"type": "json_schema", "json_schema": None}, "{}", 0.9), ({"type": "json_object", "schema": True}, "3", 0.9),
        *(({"type": "json_object"}, text, "json") for text in ("3", "null", '"x"', "[1]")),
    ],
)  # fmt: skip
def test_formats_of_answers(form, text, found):
    """Of the request, or of the model's settings."""
    assert requested({"tools": [], "response_format": form}, content=text) == found
    reply = completion(content=text)
    assert applied(None, text, "a text", options={"response_format": form}, outputs=reply) == found


def test_a_server_on_the_device():
    """What it calls of no tool, the cloud is asked for; and nothing is changed for requests without structure."""
    replies = [completion(("steal", GOOD)), completion(("pay", GOOD)), completion(content="free")]
    kind = [("Content-Type", "application/json")]
    server = CannedServer(lambda _: http_reply(json.dumps(replies.pop(0)).encode(), headers=kind))
    with server, Router(LocalServer(f"{server.url}/v1"), lambda _: "cloud", threshold=0.5) as router:
        answer = router.infer(ASKED)
        assert (answer.source, answer.reason_code) == ("cloud", "malformed")
        assert router.infer(ASKED).source == router.infer("hello").source == "edge"


def test_without_the_package(monkeypatch, caplog):
    """A schema of the application is an error; of a request only JSON and names are checked, which is logged."""
    import sys

    monkeypatch.setitem(sys.modules, "jsonschema.validators", None)
    monkeypatch.setattr("edgeroute.system.late_imports_and_plugins._loaded", set())  # private: it was imported before
    with pytest.raises(Exception, match=r"edgeroute\[schema\]"):
        AnswerCheck(SCHEMA)
    assert requested({}, ("pay", "{}")) == 0.9
    assert requested({}, ("pay", BAD)) == "arguments"
    assert "needs jsonschema" in caplog.text


def test_the_gateways_clients_send_no_schema_that_takes_for_ever():
    """Patterns of properties, and keywords whose evaluation nothing counts."""
    has = KEYS["response_format"].has
    assert has({"type": "json_schema", "json_schema": {"schema": SCHEMA}})
    for key, value in (("patternProperties", {}), ("unevaluatedProperties", {}), ("$dynamicRef", "#"), ("$recursiveRef", "#")):
        assert not has({"type": "json_schema", "json_schema": {"schema": {**SCHEMA, key: value}}})
    assert has({"type": "json_schema", "json_schema": {"schema": {"properties": {"$dynamicRef": {"$ref": "#"}}}}})


def test_a_policy_has_it(tmp_path):
    """As a word, a pattern or a table."""
    policy = tmp_path / "policy.toml"
    for check, ok in (('"python"', True), ('"/a+/"', True), ('{ type = "object" }', True), ('"jsonn"', False), ("3", False)):
        policy.write_text(f'mode = "only_edge"\n[edge]\npath = "http://127.0.0.1:1/v1"\ncheck = {check}\n')
        if ok:
            Router.from_policy(policy).close()
        else:
            with pytest.raises(PolicyError, match="check"):
                Router.from_policy(policy)


def test_a_replay_knows_it():
    """The same policy decides the same, and a threshold of 0, or what accepts answers without confidence, no other way."""
    from edgeroute.tools.replay import Setup, collect, replay

    records = []
    edge = CallableModel(lambda text: (text, 0.3 if text == GOOD else 0.9), check="json")
    with Router(edge, lambda _: "cloud", threshold=0.5, trace=records.append) as router:
        for text in (GOOD, BAD, BAD):
            router.infer(text)
        setup = Setup.of(router.engine.snapshot, None)
    assert (replay(collect(records), setup).changed, replay(collect(records), setup).replayed.cloud) == (0, 3)
    targets = tuple(target._replace(threshold=0.0 if target.side == "edge" else None) for target in setup.targets)
    found = replay(collect(records), setup._replace(policy=setup.policy._replace(no_confidence="accept"), targets=targets))
    assert (found.replayed.edge, found.replayed.cloud) == (1, 2)


# --- beside the rest


def test_calibrated_with_a_check():
    """A malformed answer counts as deferred: it is no harm, however confident, and lowers no deferral below its share."""
    rng = np.random.default_rng(5)
    sure = rng.random(600)

    def edge(i):
        malformed, right = i % 5 == 0, sure[i] > 0.2
        return ("{" if malformed else f'{{"n": {i % 7 if right else -1}}}'), float(sure[i]) if not malformed else 0.99

    def cloud(i):
        return f'{{"n": {i % 7}}}'

    labels = [cloud(i) for i in range(600)]
    with Router(CallableModel(edge, check=SCHEMA, version="1"), cloud, threshold=0.5) as router:
        result = router.calibrate(range(600), labels, max_loss=0.05)
        asked = router.calibrate(range(600), label=lambda i: labels[i], max_loss=0.05)
    certificate = result.certificate
    assert certificate.threshold == asked.certificate.threshold < 0.3
    assert 0.2 <= certificate.deferral_rate < 0.45
    with Router(CallableModel(edge, check=SCHEMA, version="1"), cloud, threshold=certificate) as router:
        answers = [router.infer(i) for i in range(100)]
    assert not any(answer.value == "{" for answer in answers)
    assert any(answer.source == "edge" for answer in answers)


def test_a_late_answer_of_the_cloud(made, due):
    """Comes after the malformed one, which was given as degraded."""
    leaves, late = threading.Event(), threading.Event()

    def slow(_):
        assert leaves.wait(LONG)
        return "cloud"

    router = made(cloud=slow)

    @router.on_late
    def note(answer):
        late.value = answer.value
        late.set()

    assert router.infer("x", deadline=due()).malformed == "json"
    leaves.set()
    assert late.wait(LONG)
    assert late.value == "cloud"


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_shows_no_malformed_call(stream):
    """Of a server on the device, while the cloud is there; else the reply says that it is malformed."""
    httpx, starlette = pytest.importorskip("httpx"), pytest.importorskip("starlette")
    assert starlette
    from gateways import serving

    kind = [("Content-Type", "application/json")]
    bad, good = completion(("pay", BAD)), completion(("pay", GOOD))
    with (
        CannedServer(http_reply(json.dumps(bad).encode(), headers=kind)) as local,
        CannedServer(http_reply(json.dumps(good).encode(), headers=kind)) as far,
    ):
        body = {"model": "edgeroute", "stream": stream, **ASKED}
        for cloud, arguments in ((OpenAIChat(far.url, model="m", stream=False), GOOD), (away, BAD)):
            router = AsyncRouter(LocalServer(f"{local.url}/v1"), cloud, threshold=0.5)
            with serving(router) as url:
                text = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=LONG).text
            assert (json.dumps(arguments) in text, json.dumps(GOOD if arguments is BAD else BAD) in text) == (True, False)
            assert ('"malformed":"arguments"' in text) == (arguments is BAD)
