"""What is decided about frames, step by step in virtual time, with calls that answer when the test says so."""

import contextlib
import threading
from math import inf
from types import SimpleNamespace

import pytest

from edgeroute import DeadlineExceeded, NoAnswer
from edgeroute.router.live import source_reader_mailbox_and_calls as mailboxes
from edgeroute.router.live.frames import FrameFlow, FrameSettings
from edgeroute.router.live.source_reader_mailbox_and_calls import Mailbox


class Call:
    """A call of the router: gives what the test has put into it."""

    def __init__(self, frame, alone, deadline):
        self.frame, self.alone, self.deadline = frame, alone, deadline
        self.until, self.closed, self.mail = inf, False, []

    def poll(self):
        """The next answer."""
        answer = self.mail.pop(0) if self.mail else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        """Is noted."""
        self.closed = True


def edge(value="edge", *, final=False, took_s=0.01, confidence=0.4):
    return SimpleNamespace(value=value, source="edge", final=final, degraded=False, latency_s=took_s, confidence=confidence)


def cloud(value="cloud"):
    return SimpleNamespace(value=value, source="cloud", final=True, latency_s=0.1, confidence=0.9, add_note=lambda *_, **__: None)


class World:
    """A flow, its clock, and the calls that it has begun."""

    def __init__(self, monkeypatch, *, mode="prefer_edge", deadline_s=inf, sides=("edge", "cloud"), **settings):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(mailboxes, "monotonic", lambda: self.now)
        self.box = Mailbox(1, True, lambda: None, threading.Event())
        policy = SimpleNamespace(mode=mode, deadline_s=deadline_s)
        engine = SimpleNamespace(snapshot=SimpleNamespace(policy=policy, targets=[SimpleNamespace(side=side) for side in sides]))
        checked = FrameSettings(**{"scene": None, "signature": lambda frame: [frame], "hold": 1, **settings}).check()
        self.flow = FrameFlow(engine, self.begin, self.box, checked)

    def begin(self, *args):
        """Begins a call."""
        self.calls.append(Call(*args))
        return self.calls[-1]

    def step(self, at=None):
        """What the flow says then."""
        self.now = self.now if at is None else at
        return self.flow.step(self.now)

    def frame(self, frame, answer=None, at=None):
        """Gives a frame, and answers it: its update."""
        self.now = self.now if at is None else at
        self.box.offer(frame)
        self.step()
        self.calls[-1].mail.append(answer or edge())
        return self.step()


@pytest.fixture
def world(monkeypatch):
    return lambda **settings: World(monkeypatch, **settings)


def test_a_new_scene_cancels_what_is_asked_about_the_old_one(world):
    """At once, and its answer would not be shown."""
    w = world(scene=0.1)
    w.frame(0.0, edge(final=True))  # now the edge's time is known, and calls have deadlines
    assert w.frame(0.0).provisional
    assert w.frame(0.0, edge(final=True)).held == "scene"
    assert w.frame(1.0, at=0.1).provisional
    assert [call.closed for call in w.calls] == [False, True, False, False]
    assert (w.flow.stats().outdated, w.flow.stats().scenes) == (1, 2)
    w.calls[3].mail.append(cloud())
    assert w.step().answer.value == "cloud"


def test_a_frame_without_a_signature_is_of_no_scene(world):
    """The cloud is asked about it, whatever it said of the scene; its answer is shown, and is not that of later frames."""

    def signature(frame):
        if frame is None:
            raise ValueError("no such frame")
        return [frame]

    w = world(scene=0.1, signature=signature)
    w.frame(0.0, edge(final=True))
    w.frame(0.0)
    w.calls[1].mail.append(cloud("of the scene"))
    assert w.step().answer.value == "of the scene"
    lost = w.frame(None)
    assert (lost.answer.value, lost.held, lost.provisional) == ("edge", "", True)
    assert w.frame(0.0, edge(final=True)).reused_from == 1
    w.calls[2].mail.append(cloud("of no scene"))
    assert (w.step().answer.value, w.flow.stats().outdated) == ("of no scene", 0)
    assert w.frame(0.0, edge(final=True)).shown.value == "of the scene"
    assert w.flow.stats().scenes == 1


def test_a_frame_of_no_scene_leaves_the_scenes_refinement_alone(world):
    """Which goes on, and is that of the scene's later frames; among those of no scene the newest counts."""

    def signature(frame):
        if frame is None:
            raise ValueError("no such frame")
        return [frame]

    w = world(scene=0.1, signature=signature, max_in_flight=3)
    w.frame(0.0, edge(final=True))
    assert w.frame(0.0).provisional
    for _ in range(2):
        assert w.frame(None).provisional
    w.calls[3].mail.append(cloud("of no scene"))
    assert w.step().answer.value == "of no scene"
    assert [call.closed for call in w.calls] == [False, False, False, False]
    w.calls[2].mail.append(cloud("older, and of no scene"))
    assert w.step() == inf
    assert [call.closed for call in w.calls] == [False, False, True, False]
    w.calls[1].mail.append(cloud("of the scene"))
    assert w.step().answer.value == "of the scene"
    assert w.frame(0.0, edge(final=True)).reused_from == 1
    assert w.flow.stats().outdated == 1


def test_an_answer_to_what_the_edge_no_longer_sees_is_not_shown_for_long(world):
    """The picture looks the same, and something small has gone from it while the cloud was being asked."""
    w = world(scene=0.1)
    assert w.frame(0.0, edge("sign")).provisional
    for _ in range(4):
        assert w.frame(0.0, edge("wall", final=True)).shown.value == "wall"
    w.calls[0].mail.append(cloud("a sign"))
    assert w.step().shown.value == "a sign"
    assert [w.frame(0.0, edge("wall", final=True)).shown.value for _ in range(4)] == ["a sign", "a sign", "wall", "wall"]
    assert w.flow.stats().scenes == 2


def test_a_newer_refinement_cancels_the_older_one(world):
    """Refinements come in the order of their frames."""
    w = world()
    for frame in ("first", "a", "b"):
        w.frame(frame, edge(final=frame == "first"))
    w.calls[2].mail.append(cloud("b"))
    assert w.step().answer.value == "b"
    w.calls[1].mail.append(cloud("a"))
    assert w.step() == inf
    assert [call.closed for call in w.calls] == [False, True, False]
    assert w.flow.stats().outdated == 1


def test_a_refinement_that_is_late_is_dropped(world):
    """The first frame's call is cancelled at that instant; later ones have a deadline about then, and end by themselves."""
    w = world(stale=1.0)
    w.frame("a", edge(took_s=0.25), at=10.0)
    assert w.calls[0].deadline is None
    wake = w.step()
    assert wake == pytest.approx(11.0)
    assert w.step(wake + 0.001) == inf
    assert w.calls[0].closed
    w.frame("b", at=20.0)
    assert 2.0 <= w.calls[1].deadline <= 2.4  # one second, and four times the edge's quarter
    w.calls[1].until = 22.0
    assert w.step(21.5) == 22.0
    assert not w.calls[1].closed
    w.calls[1].mail.append(cloud())
    assert w.step(21.6) == inf
    assert w.flow.stats().outdated == 2
    w.frame("c", at=30.0)
    w.calls[2].mail.append(DeadlineExceeded("late"))
    assert w.step(30.5) == inf  # nobody asked for that deadline


def test_the_shorter_deadline_counts(world):
    """The caller's, or the policy's; passing it is an error, as of `infer`."""
    for given in ({"deadline": 0.5}, {"deadline_s": 0.5}):
        w = world(**given)
        w.frame("a")
        w.frame("b", at=10.0)
        assert [call.deadline for call in w.calls] == [given.get("deadline")] * 2
        w.box.offer("c")
        w.step()
        w.calls[2].mail.append(DeadlineExceeded("late"))
        with pytest.raises(DeadlineExceeded):
            w.step()
        assert type(w.step()) is float


def test_an_edge_that_is_too_slow_for_a_refinement_costs_its_frame_alone(world):
    """The next frame is taken in the same step."""
    w = world()
    w.frame("a")
    w.box.offer("b")
    w.step()
    w.box.offer("c")
    w.calls[1].mail.append(DeadlineExceeded("late"))
    w.step()
    assert w.calls[2].frame == "c"
    assert w.flow.stats().failed == 1


def test_an_old_answer_of_the_edge_is_not_put_over_a_newer_one(world):
    """Where the cloud fails: only the newest frame's final update is given."""
    w = world()
    w.frame("a")
    w.frame("b")
    w.calls[0].mail.append(edge("old", final=True))
    assert type(w.step()) is float
    w.calls[1].mail.append(edge("new", final=True))
    update = w.step()
    assert (update.frame, update.answer.value, update.final) == ("b", "new", True)
    assert w.flow.stats().unrefined == 2


def test_an_error_after_a_provisional_answer(world):
    """It is raised, once; of a frame that does not count any more it is not."""
    w = world()
    w.frame("a")
    w.calls[0].mail.append(NoAnswer("down"))
    with pytest.raises(NoAnswer):
        w.step()
    assert w.step() == inf
    w.frame("b", at=10.0)
    w.calls[1].mail.append(NoAnswer("down"))
    assert w.step(12.0) == inf
    assert w.flow.stats().outdated == 1


def test_frames_are_as_far_apart_as_was_asked(world):
    """`every`, or the rest that the edge's latency asks for: the step says when the next one is due, and the newest is taken."""
    for settings in ({"every": 0.5}, {"busy": 0.5}):
        w = world(**settings)
        w.frame("a", edge(final=True, took_s=0.25))
        w.box.offer("b")
        assert w.step(0.3) == 0.5
        w.box.offer("c")
        assert w.step(0.5) == inf
        assert w.calls[-1].frame == "c"
        assert w.flow.stats().dropped == 1


def test_frames_are_as_far_apart_whoever_answers(world):
    """The cloud, as the edge fails or does not run; nobody; and where a frame has no signature."""
    for frame, answer in ((0.0, cloud()), (0.0, NoAnswer("down")), ("no number", edge(final=True))):
        w = world(every=0.5, scene=0.1)
        with contextlib.suppress(NoAnswer):
            assert w.frame(frame, answer).answer is answer
        w.box.offer(1.0)
        assert w.step(0.1) == 0.5
        assert w.step(0.5) == inf
        assert w.calls[-1].frame == 1.0


def test_a_scene_is_asked_about_again(world):
    """After `refresh`; meanwhile its refined answer goes on being shown."""
    w = world(scene=0.1, refresh=10.0, hold=3)
    w.frame(0.0)
    w.calls[0].mail.append(cloud())
    w.step()
    assert w.frame(0.0, edge(final=True), at=9.0).reused_from == 0
    again = w.frame(0.0, at=11.0)
    assert (again.provisional, again.held, again.shown.value) == (True, "", "cloud")
    assert w.frame(0.0, edge(final=True), at=11.1).reused_from == 0
    w.calls[2].mail.append(cloud("other"))
    assert w.step().shown.value == "other"
    assert w.frame(0.0, edge(final=True), at=11.2).reused_from == 2


def test_a_cloud_alone_has_as_many_frames_as_it_may(world):
    """Each is the whole answer, and frames that wait are replaced."""
    for how in ({"mode": "only_cloud"}, {"sides": ("cloud",)}):
        w = world(max_in_flight=1, stale=None, **how)
        w.box.offer("a")
        assert w.step() == inf
        w.box.offer("b")
        w.box.offer("c")
        assert w.step() == inf
        assert len(w.calls) == 1
        w.calls[0].mail.append(cloud("a"))
        update = w.step()
        assert (update.frame, update.answer.value, update.edge) == ("a", "a", None)
        w.step()
        assert w.calls[1].frame == "c"
        assert not w.calls[1].alone


def test_the_end(world):
    """What is in progress is waited for; closing cancels it."""
    w = world()
    w.frame("a")
    w.box.offer("b")
    w.box.end()
    assert w.step() < inf
    w.calls[1].mail.append(edge(final=True))
    assert w.step().frame == "b"
    assert w.step() < inf
    w.calls[0].mail.append(cloud())
    assert w.step().frame == "a"
    assert w.step() is None
    w = world()
    w.frame("a")
    w.box.offer("b")
    w.step()
    w.flow.close()
    assert [call.closed for call in w.calls] == [True, True]
