"""Some hundred kinds of input, written to once `infer` has returned: what is sent later is the input of the call."""

import contextlib
import ctypes
import io
import random
import threading
import weakref
from array import array
from collections import deque
from dataclasses import dataclass
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
import routes
from both import CALLS, LONG, ask, makes
from input_kinds import KINDS
from PIL import Image

from edgeroute import Audit, Cache, Egress, NoAnswer, Options, Outbox, Trial
from edgeroute.router import leg_inputs_views_and_copies
from edgeroute.router.input_views_and_edge_answers import TargetViews
from edgeroute.router.leg_inputs_views_and_copies import CallInputs
from edgeroute.system.input_copies import copy_input

pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5)
PUBLIC, PRIVATE = 5, 60
MUTABLE = [name for name, kind in KINDS.items() if kind.write is not None]


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_is_of_the_same_type_and_holds_the_same(name):
    """What is written to the input later is not in it; a kind of which there is no copy raises."""
    kind = KINDS[name]
    x = kind.make(PUBLIC)
    expected = kind.read(x)
    if not kind.copies:
        with pytest.raises((TypeError, ValueError)):
            copy_input(x)
        return
    copied = copy_input(x)
    assert type(copied) is type(x)
    if kind.write is not None:
        kind.write(x, PRIVATE)
        assert kind.read(x) == PRIVATE
    assert kind.read(copied) == expected


@pytest.mark.parametrize("name", KINDS)
def test_a_deadline_changes_no_answer_of_the_edge(make, name):
    """Also of a kind that cannot be copied: the edge gets the original then."""
    kind, types = KINDS[name], []

    def edge(x):
        types.append(type(x))
        return kind.read(x), 0.9

    router = make(edge, lambda _: ("cloud", 0.9))
    answers = [router.infer(kind.make(PUBLIC), deadline=deadline) for deadline in (None, LONG)]
    assert answers[0].value == answers[1].value
    assert types[0] is types[1]
    assert {answer.source for answer in answers} == {"edge"}


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.copies])
def test_what_cannot_be_copied_is_sent_from_the_callers_thread_only(make, name, tmp_path):
    """With a deadline the cloud is not asked, and the reason says so; nor is it audited or queued."""
    kind, sent = KINDS[name], []

    def cloud(x):
        sent.append(threading.get_ident())
        return kind.read(x), 0.9

    router = make(lambda _: ("edge", 0.1), cloud)
    answer = router.infer(kind.make(PUBLIC), deadline=LONG)
    assert (answer.value, sent) == ("edge", [])
    assert "cannot be copied" in routes.error(answer)
    router = make(lambda _: ("edge", 0.9), cloud, audit=Audit(share=1))
    assert router.infer(kind.make(PUBLIC)).value == "edge"
    router = make(None, cloud, offline="queue", outbox=Outbox(tmp_path / "outbox.db"))
    with pytest.raises(NoAnswer, match=routes.NOT_STORED):
        router.infer(kind.make(PUBLIC), deadline=LONG)
    router.close()
    assert sent == []


LARGE = {
    "array": lambda n: np.zeros(n, np.float32),
    "list": lambda n: [0.5] * n,
    "objects": lambda n: [{"a": i} for i in range(n)],
    "bytes": lambda n: (bytearray(4 * n),),
    "deque": lambda n: deque([0.5] * n),
    "numbers": lambda n: array("f", [0.5]) * n,
    "channels, reversed": lambda n: np.zeros((n // 5 + 1, 3), np.uint8)[:, ::-1],
    "view of columns": lambda n: memoryview(np.zeros((2, n // 10), np.uint8).T),
    "picture": lambda n: Image.new("RGB", (n // 10, 1)),
    "picture of a file": lambda n: _in_file(Image.new("RGB", (n // 50 + 1, 1))),
    "bytes of a subclass": lambda n: type("Body", (bytes,), {})(2 * n),
    "text of a subclass": lambda n: type("Text", (str,), {})("x" * 2 * n),
    "array of objects": lambda n: np.array([np.zeros(n // 4, np.float32), None], object),
    "numbers of C": lambda n: (ctypes.c_float * n)(),
}


def _in_file(image):
    """The image, as Pillow opens it from a file: nothing is decoded yet."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image.open(file)


@pytest.mark.parametrize("name", LARGE)
def test_what_a_deadline_leaves_no_time_to_copy_costs_no_answer_of_the_edge(make, name, monkeypatch):
    """The edge reads the original, and the cloud is not asked. What is smaller is copied."""
    monkeypatch.setattr(leg_inputs_views_and_copies, "COPIED_BYTES_PER_S", 4e5 / LONG)  # 100 kB in a quarter of the deadline
    read = []
    router = make(lambda x: (read.append(x) or "edge", 0.1), lambda _: ("cloud", 0.9))
    large, small = LARGE[name](100_000), LARGE[name](10)
    answer = router.infer(large, deadline=LONG)
    assert answer.value == "edge"
    assert "cannot be copied" in routes.error(answer)
    assert router.infer(small, deadline=LONG).value == "cloud"
    assert [x is given for x, given in zip(read, (large, small), strict=True)] == [True, False]


@pytest.mark.parametrize("size", [100_000, 10])
def test_a_view_is_copied_within_that_time(monkeypatch, size):
    """What the application's function has made of the input counts as the input does."""
    monkeypatch.setattr(leg_inputs_views_and_copies, "COPIED_BYTES_PER_S", 4e5 / LONG)
    targets = (SimpleNamespace(side="edge", name="edge"),)
    request = SimpleNamespace(inputs=size, id="1", plan=SimpleNamespace(deadline_s=LONG))
    inputs = CallInputs([request], targets, TargetViews({"edge": lambda n: np.zeros(n, np.float32)}, targets))
    (view,) = inputs.of(0)
    assert isinstance(inputs.copy_inputs(0.25), TimeoutError) == (size > 10)
    assert (inputs.of(0)[0] is view) == (size > 10)


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error whose attributes cannot be set."""


class Uncopied:
    """An input whose own way of being copied raises this error, as it handles another one."""

    def __init__(self, error):
        self.error = error

    def __deepcopy__(self, _):
        try:
            int("no copy")
        except ValueError as e:
            raise self.error from (e if self.error is TypeError else None)


@pytest.mark.parametrize("error", [TypeError, KeyError, SystemExit, FrozenError])
def test_the_error_of_a_copy_keeps_no_input(error):
    """Neither once it is dropped, without a search for garbage, nor as a call that has ended left it alone."""
    x, plan = Uncopied(error), SimpleNamespace(deadline_s=LONG)
    alive = weakref.ref(x)
    with contextlib.suppress(error):
        copy_input([x])
    kept = CallInputs([SimpleNamespace(inputs=x, plan=plan)], (), TargetViews({}, ())).copy_inputs(1.0)
    assert isinstance(kept, Exception)
    del x
    assert alive() is None


@pytest.mark.parametrize("name", MUTABLE)
def test_a_redaction_reaches_neither_the_edge_nor_the_caller(make, name):
    """It works in place, on a copy; without one nothing is sent."""
    kind, seen, sent = KINDS[name], Queue(), []
    redacted = threading.Event()

    def redact(x, _):
        kind.write(x, PRIVATE)
        redacted.set()
        return x

    def edge(x):
        redacted.wait(LONG if kind.copies else 0)
        seen.put(kind.read(x))
        return "edge", 0.1

    def cloud(x):
        sent.append(kind.read(x))
        return "cloud", 0.9

    x = kind.make(PUBLIC)
    make(edge, cloud, egress=Egress(redact=redact), deadline=LONG, options=Options(hedge_after=0)).infer(x)
    assert (seen.get(timeout=LONG), kind.read(x)) == (PUBLIC, PUBLIC)
    assert sent == ([PRIVATE] if kind.copies else [])


class Campaign:
    """Routers whose cloud, or edge on trial, reads its input only once the caller has written to it."""

    def __init__(self, make, due, folder):
        self.may, self.begun, self.sent, self.answers = threading.Event(), threading.Event(), Queue(), Queue()
        self.box, self.kind = Outbox(folder / "outbox.db", spread_s=1e6), KINDS["list"]
        options, unsure = Options(views={"cloud": self._view}), lambda _: ("edge", 0.1)
        self.routers = {
            "late": make(unsure, self._cloud, deadline=due(self.begun.is_set), cache=Cache(), options=options),
            "audit": make(lambda _: ("edge", 0.9), self._cloud, audit=Audit(share=1), options=options),
            "trial": make(
                lambda _: ("edge", 0.9),
                lambda _: "cloud",
                trial=Trial(edge=self._trial, shown=False, threshold=0.5),
                audit=Audit(share=1),
            ),
            "queue": make(
                unsure, self._cloud, deadline=due(self.begun.is_set), offline="queue", outbox=self.box, options=options
            ),
        }
        self.routers["late"].on_late(lambda late: self.answers.put(late.value))
        self.routers["queue"].on_late(lambda late: self.answers.put(late.value))

    def _view(self, x):
        self.begun.set()
        assert self.may.wait(LONG)
        return self.kind.read(x)

    def _cloud(self, x):
        self.sent.put(x)
        return x, 0.9

    def _trial(self, x):
        return self._cloud(self._view(x))

    def run(self, way, call, kind, code):
        """One input through one way. Return all codes that were read of it, off the device and in answers."""
        self.kind, x, router = kind, kind.make(code), self.routers[way]
        self.may.clear()
        self.begun.clear()
        answer = ask(router, call, x)
        if answer.source == "cache":
            return {answer.value}
        assert self.begun.wait(LONG)
        kind.write(x, code + PRIVATE)
        self.may.set()
        read = {self.sent.get(timeout=LONG)}
        if way in {"late", "queue"}:
            read.add(self.answers.get(timeout=LONG))
        if way == "late":
            read.add(router.infer(kind.make(code), deadline=LONG).value)  # from the cache, if it can be
        while not self.sent.empty():
            read.add(self.sent.get())
        return read


@pytest.mark.parametrize("draws", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_time_left")
def test_what_is_sent_after_the_call_is_what_the_call_was_about(make, due, tmp_path, draws):
    """By late legs, audits, hidden trials, the outbox and the cache, whatever kind of input and way of asking."""
    runs, dice = Campaign(make, due, tmp_path), random.Random(1)
    names = [name for name in MUTABLE if KINDS[name].copies]
    for _ in range(draws):
        way, call, name, code = dice.choice([*runs.routers]), dice.choice(CALLS), dice.choice(names), dice.randrange(1, PRIVATE)
        assert runs.run(way, call, KINDS[name], code) == {code}, (way, call, name)
