"""Texts of exceptions in functions of the application, which may quote the input: in the log at level DEBUG, and nowhere else."""

from __future__ import annotations

import logging
from queue import SimpleQueue
from threading import Event
from time import monotonic

import pytest
from both import LONG, unsure

from edgeroute import Audit, BadInput, CallableModel, Egress, InputScore, ModelError, NoAnswer, Options, Outbox, Refused
from edgeroute.testing import FakeCloud

pytestmark = pytest.mark.pure

MARK = "patient-4711"


def fails(*_):
    """Fail as code of an application does, with its input in the text, and in that of the cause."""
    try:
        _ = {}[MARK]
    except KeyError as e:
        raise RuntimeError(f"cannot read {MARK}") from e


def cloud(_):
    return "cloud", 0.9


def refuses(*_):
    """Fail by an error of edgeroute's classes, whose text is the application's all the same."""
    raise BadInput(MARK)


def breaks(*_):
    raise ModelError(MARK)


ARGUMENTS = {
    "edge": {"edge": fails, "cloud": cloud},
    "cloud": {"edge": unsure, "cloud": fails},
    "score": {"edge": unsure, "cloud": cloud, "score": fails},
    "view of the edge": {"edge": unsure, "cloud": cloud, "options": Options(views={"edge": fails})},
    "view of the cloud": {"edge": unsure, "cloud": cloud, "options": Options(views={"cloud": fails})},
    "redaction": {"edge": unsure, "cloud": cloud, "egress": Egress(redact=fails)},
    "redaction, by an error of ours": {"edge": unsure, "cloud": cloud, "egress": Egress(redact=refuses)},
    "score, by an error of ours": {"edge": unsure, "cloud": cloud, "score": refuses},
    "score of the input, by an error of ours": {"edge": unsure, "cloud": cloud, "score": InputScore(refuses)},
    "check, by an error of ours": {"edge": CallableModel(unsure, check=breaks), "cloud": cloud},
    "view of the edge, by an error of ours": {"edge": unsure, "cloud": cloud, "options": Options(views={"edge": breaks})},
    "view of the cloud, by an error of ours": {"edge": unsure, "cloud": cloud, "options": Options(views={"cloud": refuses})},
    "audit": {"edge": lambda _: ("edge", 0.9), "cloud": fails, "audit": Audit(share=1.0)},
}


@pytest.mark.parametrize("where", ARGUMENTS)
@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
def test_the_text_is_in_the_log_at_level_debug_alone(kind, caplog, where, level):
    with caplog.at_level(level, "edgeroute"), kind(threshold=0.5, **ARGUMENTS[where]) as router:
        all_answers = [router.infer(1), *router.infer_many([2, 3]), *router.refine(4)]
        with router.stream(5) as pieces:
            list(pieces)
        shown = [[str(answer.reason), repr(answer), str(answer.trace)] for answer in [*all_answers, pieces.answer]]
        shown.append([repr(router.stats())])
    assert MARK not in str(shown)
    if level == logging.DEBUG and not any(
        word in where for word in ("audit", "redaction", "input")
    ):  # a score logs once a minute
        assert MARK in caplog.text
    if level == logging.WARNING:
        assert MARK not in caplog.text
        assert not any(record.exc_info for record in caplog.records if MARK in str(record.exc_info))


def test_the_text_is_not_in_what_is_raised(kind, caplog):
    with kind(fails, fails, threshold=0.5, offline="raise") as router, pytest.raises(NoAnswer) as caught:
        router.infer(1)
    assert MARK not in str(caught.value) + repr(caught.value) + caplog.text


def test_the_text_is_not_in_the_outbox_nor_that_of_a_late_callback(kind, caplog, tmp_path):
    """What a delivery failed with is stored, and a callback that fails is called again later."""
    box, called = Outbox(tmp_path / "outbox.db", spread_s=0.0), SimpleQueue()

    def callback(late):
        called.put(late.id)
        fails(late)

    plan = FakeCloud([Refused("away", status=503), RuntimeError(f"cannot read {MARK}"), ("cloud", 0.9)])
    with kind(unsure, plan, threshold=0.5, offline="queue", outbox=box) as router:
        getattr(router, "router", router).on_late(callback)
        router.infer("x")
        until = monotonic() + LONG
        while not (entries := box.list("dead")):
            assert monotonic() < until
            Event().wait(0.001)
        box.retry()
        assert called.get(timeout=LONG) == entries[0].id
    assert MARK not in repr(entries) + repr(box.list()) + caplog.text
    box.close()


@pytest.mark.parametrize("where", ["edge", "view of the edge"])
def test_the_text_is_not_in_the_steps_of_decide(kind, where):
    """Nor in the error of a warm-up, which runs the same function."""
    with kind(threshold=0.5, **ARGUMENTS[where]) as router:
        done = getattr(router, "wait", lambda result: result)
        steps = str(done(router.decide(1)))
        assert "failed: " in steps
        assert "RuntimeError" in steps
        assert MARK not in steps
        if where == "edge":
            with pytest.raises(ModelError) as caught:
                done(router.warm([1]))
            assert MARK not in str(caught.value)


@pytest.mark.parametrize("where", [name for name in ARGUMENTS if "error of ours" not in name and name != "audit"])
def test_the_attributes_of_an_exception_may_be_anything(kind, caplog, where):
    """It costs no answer, and is logged."""

    class Careless(Exception):
        foreign = False

        def __getattr__(self, name):
            raise KeyError(name)

    class Named(Exception):
        foreign = False

    for error in (Careless, Named):
        caplog.clear()

        def breaks_so(*_, error=error):
            raise error(MARK)

        arguments = {name: breaks_so if given is fails else given for name, given in ARGUMENTS[where].items()}
        if "options" in arguments:
            arguments["options"] = Options(views=dict.fromkeys(arguments["options"].views, breaks_so))
        if "egress" in arguments:
            arguments["egress"] = Egress(redact=breaks_so)
        with kind(**arguments, threshold=0.5) as router:
            assert error.__name__ in str(router.infer("x").reason)
        assert "redaction" in where or error.__name__ in caplog.text
