"""An answer outside the router: copied, pickled, as JSON, printed; and what becomes of an error of a function."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from multiprocessing import get_context
from unittest.mock import Mock

import numpy as np
import pytest
import routes
from both import makes
from pydantic import BaseModel, ConfigDict, TypeAdapter

from edgeroute import Answer, BadInput, Cache, Held, NoAnswer, Refused, Router, Unreachable

pytestmark = pytest.mark.pure

FIELDS = {"id", "value", "source", "leg", "confidence", "degraded", "final", "reason", "latency_s", "malformed"}


make = makes(threshold=0.5)


def broken(x):
    raise ZeroDivisionError("division by zero")


def unsure(x):
    return x, 0.2


def answered(value=1, edge=unsure, cloud=broken, **more):
    """An answer of which much is to be said: the cloud has failed."""
    with Router(edge, cloud, threshold=0.5, **more) as router:
        return router.infer(value)


def same(one, other):
    """Whether they say the same."""
    names = (*FIELDS, "trace")
    return all(repr(getattr(one, name)) == repr(getattr(other, name)) for name in names) and repr(one) == repr(other)


@pytest.mark.parametrize("again", [lambda a: pickle.loads(pickle.dumps(a)), copy.copy, copy.deepcopy])
def test_an_answer_can_be_copied(again):
    """Its route stays readable, twice as well, though the plan and the error behind it are left out."""
    answer = answered(np.arange(3))
    other = again(again(answer))
    assert type(other) is Answer
    assert same(answer, other)
    assert routes.error(other) == "ZeroDivisionError"
    assert other.trace["events"]
    assert (other.outputs[0] == answer.outputs[0]).all()


def test_an_answer_of_the_cache_can_be_copied():
    """It has no plan at all; and one that was noted keeps its note."""
    with Router(lambda x: (x, 0.9), threshold=0.5, cache=Cache()) as router:
        first, second = router.infer(1), router.infer(1)
    assert second.source == "cache"
    for answer in (first, second, first.add_note("a note", final=False)):
        assert same(answer, pickle.loads(pickle.dumps(answer)))
    assert routes.note(pickle.loads(pickle.dumps(first))) == "a note"


def test_errors_come_back_from_another_process():
    """One that cannot be unpickled would leave a pool waiting for ever."""
    errors = [Refused("no", status=404, retry_after_s=2.0), Held("later", code="breaker", again=True), Unreachable("away")]
    for error in (*errors, NoAnswer("none", {"cloud": errors[0]}), BadInput("odd")):
        other = pickle.loads(pickle.dumps(error))
        assert (type(other), str(other)) == (type(error), str(error))
        for name in ("code", "status", "again", "retriable", "retry_after_s"):
            assert getattr(other, name, None) == getattr(error, name, None)


def test_answers_come_back_from_another_process():
    """As `multiprocessing` sends them."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        answer = pool.submit(answered, 7).result(120)
    assert (answer.value, answer.degraded) == (7, True)
    assert routes.error(answer) == "ZeroDivisionError"


VALUES = [
    (np.int64(9), 9),
    (np.float32(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_("cat"), "cat"),
    (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    ({"box": np.float64("nan"), 1: (np.int8(2),)}, {"box": None, "1": [2]}),
    (Decimal("1.5"), "1.5"),
    (None, None),
]


@pytest.mark.parametrize(("value", "plain"), VALUES)
def test_as_dict_is_json(value, plain):
    """Whatever numpy gives; the raw outputs are there if they are asked for."""
    answer = answered(0, edge=lambda _: (value, np.float64(0.2)))
    told = answer.as_dict()
    assert told.keys() == FIELDS
    assert json.loads(json.dumps(told, allow_nan=False))["value"] == plain
    assert dict(answer) == told
    assert {**answer} == told
    whole = answer.as_dict(outputs=True)
    assert json.loads(json.dumps(whole, allow_nan=False))["outputs"] == [plain, 0.2]


def test_an_answer_is_no_sequence():
    """`value, confidence = answer` is a mistake; so is a key that there is not."""
    answer = answered()
    with pytest.raises(TypeError, match="not iterable"):
        _value, _confidence = answer
    with pytest.raises(KeyError):
        answer["outputs"]


def test_pydantic_writes_answers():
    """As FastAPI has it do for an endpoint that returns one, a list of them, or a model with one in it; its schema is there."""

    class Reply(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=False)
        answer: Answer

    answer = answered(np.float32(2))
    told = json.loads(json.dumps(answer.as_dict()))
    assert json.loads(TypeAdapter(Answer).dump_json(answer)) == told
    assert json.loads(TypeAdapter(list[Answer[float]]).dump_json([answer])) == [told]
    assert json.loads(Reply(answer=answer).model_dump_json()) == {"answer": told}
    assert TypeAdapter(Answer).json_schema(mode="serialization")["type"] == "object"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.zeros((1, 84, 840)), "float64 [1, 84, 840]"),
        (np.float32(3), "3.0"),
        ("x" * 10_000, "..."),
        (b"x" * 10_000, "(10,000 bytes)"),
        (list(range(10_000)), "[0, 1, 2, 3, 4, 5, ...]"),
        ({"a": [np.zeros(9)]}, "{'a': [float64 [9]]}"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_repr_is_short(value, shown):
    """One line, whatever the value is."""
    text = repr(answered(value))
    assert shown in text
    assert len(text) < 400
    assert "\n" not in text


def test_a_value_with_any_attribute():
    """A mock has what numpy's values have, too."""
    answer = answered(Mock())
    assert "<Mock" in repr(answer)
    assert answer.as_dict()["value"] == str(answer.value)


def test_repr_of_a_value_that_has_none():
    """A value's own `repr` may raise."""

    class Odd:
        def __repr__(self):
            raise ValueError

    assert "Odd" in repr(answered(0, edge=lambda _: (Odd(), 0.2)))


def score(outputs):
    """Of the edge's answers there is none."""
    if outputs[1] == 0.2:
        raise KeyError("margin")
    return 0.9


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"edge": broken, "cloud": lambda x: "c"}, "ZeroDivisionError"),
        ({"edge": unsure, "cloud": broken}, "ZeroDivisionError"),
        ({"edge": unsure, "cloud": lambda x: ("c", 0.9), "score": score}, "KeyError"),
    ],
)
def test_an_error_of_a_function_is_named_and_logged_once_a_minute(make, caplog, arguments, error):
    """Its type is in every reason; its traceback in the log at first, and again a minute later."""
    router = make(**arguments)
    with caplog.at_level(logging.ERROR, "edgeroute"):
        assert error in router.infer(1).reason
        assert len(caplog.records) == 1
        assert error in router.infer(2).reason
        assert len(caplog.records) == 1
        for backend in router.engine.snapshot.backends:  # a minute later
            backend.failures.due = backend.reader.failures.due = 0.0
        router.infer(5)
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert record.name == "edgeroute"
        assert error in record.getMessage()
        assert "in broken" in record.exc_text or "in score" in record.exc_text


def test_each_row_of_a_batch_may_fail_in_a_function(make, caplog):
    """One that fails alone, while the others are answered, is logged as well."""

    def cloud(x):
        return broken(x) if x == 2 else ("c", 0.9)

    with caplog.at_level(logging.ERROR, "edgeroute"):
        answers = make(unsure, cloud).infer_many([1, 2, 3])
    assert [answer.degraded for answer in answers] == [False, True, False]
    assert routes.error(answers[1]) == "ZeroDivisionError"
    assert len(caplog.records) == 1


def test_what_is_no_error_of_a_function_is_not_logged(make, caplog):
    """An endpoint that is away, and an input that a function refuses: the answer says it."""

    def away(x):
        raise Unreachable("the link is down")

    def picky(x):
        raise BadInput("not that")

    with caplog.at_level(logging.DEBUG, "edgeroute"):
        assert routes.error(make(unsure, away).infer(1)) == "Unreachable: the link is down"
        with pytest.raises(BadInput):
            make(picky, away).infer(1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_exit_in_a_function_is_named(make):
    """`sys.exit` in a function of the cloud, in a thread: its type is said."""
    router = make(unsure, lambda x: sys.exit("enough"), deadline=20)
    assert routes.error(router.infer(1)) == "SystemExit"


def test_ids_of_a_large_fleet_differ():
    """Endpoints take them for idempotency keys. With 48 bits two of 10 million processes would share theirs every few days."""
    first, other = (answered().id.partition("-")[0] for _ in range(2))
    assert first != other
    assert min(map(len, map(bytes.fromhex, (first, other)))) >= 10
