"""Router for threads: `infer`, batches, streams and sessions, its threads, and the pump that drives a call's steps.

What asyncio needs as well is in base_router.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from functools import partial
from queue import Empty
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from edgeroute.confidence.scores import Score
from edgeroute.core.policy_egress_and_options import INF, Mode
from edgeroute.core.walk import Event, Outcome, Start, Wait, walk
from edgeroute.router.base_router import BaseRouter
from edgeroute.router.drivers import Deferrable, Send, Stop, blocking
from edgeroute.router.engine import Engine, batch_steps, decide_alone
from edgeroute.router.engine_assembly import Spawn
from edgeroute.router.leg_execution import LegExecutor, run_first
from edgeroute.router.private_conversations_and_digest_store import SCOPE
from edgeroute.router.request import Request, Shows, checked_batch
from edgeroute.router.steps_and_composed_stages import Block, Join, Pause, Result, Step, Steps, Walk, answer_of
from edgeroute.system.contained_calls_and_tasks import ClosedByWith, set_within
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.system.mailbox import Mailbox
from edgeroute.types import Answer, Batch, V

if TYPE_CHECKING:
    from edgeroute.router.decision_and_check_results import Check, Decision
    from edgeroute.router.live.blocking_iterators import Audio, Frames
    from edgeroute.router.live.frames import Drop, Signature
    from edgeroute.router.live.speech_segments import Vad
    from edgeroute.router.streams_sessions_chats import Conversation, Session, Stream
    from edgeroute.router.warm_up_and_release_checks import Warmed, Warming
    from edgeroute.tools.measure.report.progress_bar import Progress
    from edgeroute.tools.measure.report.report_pages_and_results import CalibrationResult, EvaluationResult

T = TypeVar("T")


class Router(BaseRouter[V], ClosedByWith):
    """Router for threads: runs a model on the edge, and defers to the cloud when its confidence is below the threshold.

    Thread-safe, and usable in a forked child. Close it, or use it in a `with`.
    """

    _awaits = False

    def _spawner(self) -> Spawn:
        """Return a function that executes steps in a thread for clouds."""
        # Steps may hang on a cloud.
        return lambda engine, steps: engine.cloud_threads.submit(lambda: blocking.run_to_end(pump(steps, engine)))

    def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer[V]:
        """Return the answer to one input: an array without batch axis, name -> array, or any value that the callables take.

        Blocks.

        Args:
            x: the input.
            mode: overrides the policy's.
            deadline: seconds from now; overrides the policy's.
            data_class: the kind of data; egress rules decide whether it may leave.
            importance: if the request is queued and the outbox is full, the least important entry is deleted first.

        Raises:
            BadInput: the edge model rejects the input, or it can be read only once: an iterator, an open file.
            NoAnswer: no leg answered, or the cloud was needed and did not, and the policy's offline rule is "raise".
            CloudError, ModelError: the error of the only leg that was called, or the exception of a function.
            PolicyError: an argument is invalid.
        """
        engine = self.engine
        request = engine.request(x, mode, deadline, data_class, importance)
        if engine.plain and request.id not in engine.private.awaited:
            result = _plain(engine, request)
            for ended in engine.ended:
                ended(request, result)
        else:
            (result,) = blocking.run_to_end(pump(engine.steps([request]), engine))
        return result if type(result) is Answer else answer_of(result)

    def refine(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Generator[Answer[V], None, None]:
        """Yield the edge's answer as soon as possible, and then the final one; `answer.final` distinguishes them.

        If the edge is confident enough, its answer is final and the only one. Otherwise the cloud is called while the caller has
        the provisional answer, and the final one is the cloud's, or the edge's again if the cloud failed or the
        deadline came. Closing the generator early cancels the calls in progress.

        Raises:
            BadInput: the edge model cannot take it.
            NoAnswer, CloudError, ModelError, PolicyError: as `infer`.
        """
        return self._refine_steps(x, mode, deadline, data_class)

    def _refine_steps(
        self, x: Any, mode: Mode | None, deadline: float | None, data_class: str | None, ring: Callable[[], object] | None = None
    ) -> Generator[Any, None, None]:
        """Yield the answers of `refine`; with `ring` also each `Wait`, as `drivers.blocking.stream` does."""
        engine = self.engine
        request = engine.request(x, mode, deadline, data_class, shows="provisional")
        (result,) = yield from pump(engine.steps([request]), engine, ring)
        yield answer_of(result)

    def infer_many(
        self, batch: Batch, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> list[Answer[V]]:
        """Return the answers to several inputs, in order; an empty batch gives an empty list. Blocks.

        The edge runs them as one batch, and those below the threshold go to the cloud in one request. A row of a DataFrame is
        as `batch.iloc[i]`, a column's its value.

        Raises:
            BadInput: the edge model rejects an input, or the batch is no sequence.
            NoAnswer, CloudError, ModelError: as `infer`, for the first input without an answer; the others were answered and
                recorded all the same.
            PolicyError: as `infer`.
        """
        rows = checked_batch(batch)
        if not len(rows):
            return []
        engine = self.engine
        return [answer_of(r) for r in blocking.run_to_end(pump(batch_steps(engine, rows, mode, deadline, data_class), engine))]

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
    ) -> Stream:
        """Return the answer in pieces: `with router.stream(x) as stream: for piece in stream: ...`; `stream.answer` is the whole.

        A callable that is a generator function yields pieces, and returns its confidence, if it has one, or yields `Piece`s with
        the log-probabilities of their tokens; language models do so. Any other target gives one piece. A target with a threshold
        is judged once: by the first tokens, if its score is a `Prefix` (`decide_after`), or by its whole answer. It is shown from
        then on; any other is shown as it comes. By `hedge_after` the next target begins meanwhile, and is held back until then.

        Once a piece was shown, no other target continues, and the others are cancelled: if the current one fails, the answer is
        degraded. With `restart` an edge is shown at once, and a target may follow that begins anew: then the stream yields a
        `Restart`, and the pieces before it are void.

        Args:
            x: the input.
            mode: overrides the policy's.
            deadline: seconds from now; overrides the policy's.
            first_token: seconds within which a target has to begin, or the next is called; overrides the policy's.
            restart: the answer may begin anew.
            data_class: the kind of data.

        Raises:
            PolicyError: as `infer`; for an invalid value, raised in the `for`.
        """
        from edgeroute.router.streams_sessions_chats import Stream

        return Stream(self._pieces(x, mode, deadline, first_token, "restarts" if restart else "pieces", data_class, SCOPE.get()))

    def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first: float | None, shows: Shows, kind: str | None, scope: bytes
    ) -> Generator[Any, None, Answer]:
        """Yield the pieces of an answer, each as `Shown`, and return the answer; raises as `infer`.

        An answer without pieces is one piece. Closing it early cancels the call.

        Arguments are those of `stream` in its order, and `SCOPE` as that was called: the `for` may begin within another `within`.
        """
        with set_within(SCOPE, scope):
            request = self.engine.request(x, mode, deadline, kind, shows=shows, first_token=first)
        spoken, pieces = False, pump(self.engine.steps([request]), self.engine)
        try:
            while True:
                yield next(pieces)
                spoken = True
        except StopIteration as end:
            answer = answer_of(end.value[0])
        finally:
            pieces.close()
        if not spoken:  # from the cache, or in place of the cloud's
            from edgeroute.router.streams_sessions_chats import as_one_piece

            yield as_one_piece(answer)
        return answer

    def frames(
        self,
        source: Any,
        *,
        max_in_flight: int = 2,
        drop: Drop = "oldest",
        every: float | None = None,
        stale: float | None = 1.0,
        hold: int = 3,
        margin: float | None = 0.2,
        scene: float | None = 0.03,
        refresh: float | None = 30.0,
        signature: Signature | None = None,
        label: Callable[[Any], Hashable] | None = None,
        busy: float = 1.0,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> Frames:
        """Return an iterator that answers a live source's frames: always the newest, by the edge, and later by the cloud.

        Yields a `FrameUpdate` for each frame that is taken, in their order, with the edge's answer; for some of them another one
        later, with the cloud's, also in their order. A refinement that is there comes before the next frame's answer. Frames are
        not queued: one that comes while another is being answered, or before the program requests the next update, is replaced by
        the next one. The source is read from the first step on; the iterator ends when the router is closed.

        Args:
            source: an iterable of frames, an object with `read() -> (ok, frame)` (`cv2.VideoCapture`), or a function that gives
                the newest frame (None or the same object again: there is none; StopIteration: the end). It is read in one
                thread. Each frame is an object of its own, which is not written to later.
            max_in_flight: maximum frames that the cloud is called about at once; meanwhile others are answered by the edge alone.
            drop: "oldest": a newer frame replaces one that was not taken; "never": the source waits (a recording).
            every: seconds between two frames that are taken, at least; None: as quickly as the edge answers.
            stale: seconds from a frame on within which its refinement is of use; a call that takes longer is cancelled. None:
                no limit. A refinement is also dropped after a newer one, and after the scene.
            hold: another label is shown once it has come for so many frames in a row; 1: at once (no hysteresis).
            margin: or once its confidence exceeds that of the one shown by so much; None: that changes nothing. The cloud's is
                shown at once.
            scene: the largest mean difference of two frames' signatures within a scene. In a scene the cloud is asked once, and
                its answer is that of the frames that follow. None: no scenes.
            refresh: seconds after which the cloud is called about a scene again; None: never.
            signature: a function of a frame that returns some numbers; None: the brightness of an 8 by 8 grid, 0..1, of integers,
                or of floats that are 0..1 or 0..255 (those with one above 8); NaN and infinities count as 0.
            label: a function of an answer's value that returns the label for hysteresis; None: the value, if it is hashable.
            busy: the share of time that the edge may run, more than 0 up to 1: it rests in proportion to its measured latency.
            mode: overrides the policy's.
            deadline: seconds for a frame; overrides the policy's.
            data_class: the kind of data.

        Raises:
            PolicyError, BadInput: an argument, or the source, is invalid.
        """
        from edgeroute.router.live.blocking_iterators import Bell, Frames, live_frames
        from edgeroute.router.live.frames import FrameSettings

        settings = FrameSettings(
            max_in_flight, drop, every, stale, hold, margin, scene, refresh, signature, label, busy, mode, deadline, data_class
        ).check()
        return self._watch(live_frames(self, source, settings, Frames, Bell()))

    def audio(
        self,
        chunks: Any,
        *,
        rate: int = 16_000,
        vad: Vad | None = None,
        window: int | None = None,
        on: float = 0.5,
        off: float = 0.35,
        min_speech: float = 0.1,
        hangover: float = 0.5,
        lead: float = 0.2,
        max_segment: float = 15.0,
        max_in_flight: int = 2,
        drop: Drop = "oldest",
        barge_in: bool | None = None,
        on_barge_in: Callable[[float], object] | None = None,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> Audio:
        """Return an iterator that answers speech: an `Utterance` for each segment with the edge's answer, then with the cloud's.

        The input of the router is a segment, float32 [samples]. First answers come in the order of the segments, and so do final
        ones. `changed` is False if a final answer equals the provisional one. A `BargeIn` comes where speech begins while an
        answer is being consumed (the program has not asked for the next item) or spoken (`Audio.speaking`), or while the cloud is
        being called about an earlier segment: pending answers are cancelled, and the provisional ones stand. The source is
        read from the first step on; the iterator ends when the router is closed.

        Args:
            chunks: an iterable of chunks: float32 from -1 to 1 or int16, [samples] or [samples, channels] (which are mixed), or
                bytes of int16. It is read in one thread.
            rate: samples a second.
            vad: the probability (0..1) of speech in a window, float32 [window]; called in the order of the windows. None: by
                loudness above the noise.
            window: samples of a window; None: 32 ms.
            on: speech begins with windows of at least this probability,
            off: and ends with windows below this one.
            min_speech: seconds of speech with which a segment begins.
            hangover: seconds without speech with which it ends.
            lead: seconds before it that are part of its audio.
            max_segment: seconds of a segment; a longer one is cut, and goes on as the next.
            max_in_flight: maximum segments that the cloud is called about at once.
            drop: "oldest" (a live source): where more than four segments wait, one is dropped, and while the cloud is being asked
                about as many as may be, the edge alone answers; "never" (a recording): the source waits.
            barge_in: True if new speech cancels pending answers; None: True for a live source.
            on_barge_in: called at once, with the position of the speech in seconds, in the thread that reads the source: to stop
                speaking.
            mode: overrides the policy's.
            deadline: seconds for a segment, from when it is taken; overrides the policy's.
            data_class: the kind of data.

        Raises:
            PolicyError, BadInput: an argument, or the source, is invalid.
        """
        from edgeroute.router.live.blocking_iterators import Audio, Bell, live_audio
        from edgeroute.router.live.speech_segments import AudioSettings

        settings = AudioSettings(
            rate, vad, window, on, off, min_speech, hangover, lead, max_segment, max_in_flight, drop, barge_in, on_barge_in, mode,
            deadline, data_class,
        ).check()  # fmt: skip
        return self._watch(live_audio(self, chunks, settings, Audio, Bell()))

    def conversation(self, system: str | None = None) -> Conversation:
        """Return a conversation that stores its messages: `talk.infer("Hello")`. After a turn that may not leave, all stay."""
        from edgeroute.router.streams_sessions_chats import Conversation

        return Conversation(self, system)

    def session(self) -> Session:
        """Return a session, a stream of inputs for models with a state: `with router.session() as s: s.infer(chunk)`."""
        from edgeroute.router.streams_sessions_chats import Session

        return Session(self)

    def decide(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Decision:
        """Return the route that this input would take. Runs the edge; sends nothing.

        Raises:
            BadInput: the edge model cannot take it.
            PolicyError: as `infer`.
        """
        return decide_alone(self.engine, x, mode, deadline, data_class)

    def check(self, *, timeout: float = 5.0) -> Check:
        """Load the models, ping the endpoints, and return their status, what may leave and where to, and what is missing. Blocks.

        Args:
            timeout: seconds for each endpoint.
        """
        return import_tool("inspect.decide_and_check").check(self.engine, timeout)  # type: ignore[no-any-return]

    def warm(self, samples: Sequence[Any] = (), *, progress: Warming | None = None) -> list[Warmed]:
        """Load each model on the device and run it twice, so that the first request is not slow; blocks. Return the timings.

        Nothing is sent, and nothing is counted.

        Args:
            samples: inputs as for `infer`; empty: zeros in the shape that a model declares.
            progress: called as `progress(done, of, name)` before each model, and once at the end with an empty name.

        Raises:
            ModelError: a model cannot be loaded, or does not run on a sample.
            BadInput: a sample is no input of a model.
        """
        from edgeroute.router.warm_up_and_release_checks import models_to_warm, warm_up

        return [warm_up(*model) for model in models_to_warm(self.engine.snapshot, samples, progress)]

    def calibrate(
        self,
        X: Any,  # noqa: N803 - as in scikit-learn
        y: Any = None,
        *,
        label: Callable[[Any], Any] | None = None,
        max_loss: float | None = None,
        max_error: float | None = None,
        max_defer: float | None = None,
        sure: float | None = 0.95,
        per_class: bool = False,
        groups: Any = None,
        score: str | Score | None = None,
        ood: bool = False,
        edge: int | Literal["all"] = 0,
        data_class: str | None = None,
        batch: int = 32,
        every: int = 1,
        progress: Progress = None,
    ) -> CalibrationResult:
        """Find the lowest threshold with a guarantee, on examples that are drawn like future inputs and independent.

        Exactly one of `max_loss`, `max_error` and `max_defer` selects the guarantee. The router does not change: the result
        has the certificate, and the score that it is for. The edge runs every example, and for `max_loss` the cloud is asked
        about each, whatever threshold and mode. Egress rules, consent, limits and ledger hold; half of an endpoint's rate is left
        to other calls. Cache, outbox, audits, deadline and hedges take no part. In `stats()` examples count as bytes and cost.

        Args:
            X: the inputs: an array [n, ...], a sequence of them, a mapping from name to the rows of one of several inputs, a
                DataFrame, whose rows are as `X.iloc[i]`, a table of numbers of Hugging Face, whose rows become arrays, or a data
                set of pairs.
            y: right value for each, as the edge answers, or as class indices (a number that is the name of a class is that
                class); or the name of a table's column. Without it `max_loss` guarantees agreement with the cloud, and
                `max_defer` needs it only to fit a score. With `label`, some may be None, or it is a mapping from index to label.
            label: for `max_loss`: a function that returns the right value for an input, called only where `y` lacks a label that
                the test needs: where edge and cloud differ, from the surest answer down, until the test stops. The threshold is
                that of all labels. Called with lists of inputs if it has an attribute `batched` that is true. None for a label:
                nobody knows it; it counts as if the cloud alone were right, so that the guarantee holds. An exception of the
                function has the labels so far as its attribute `labels`: pass them as `y` to go on.
            max_loss: accuracy of edge and cloud together below that of the cloud alone, at most; 0..1.
            max_error: share of wrong answers among those that the edge gives alone, at most.
            max_defer: share of inputs that are deferred, at most.
            sure: probability that the guarantee holds, over draws of examples; None, for `max_defer`: it holds on average.
            per_class: a threshold for each class that the edge predicts, each with the guarantee, all at once.
            groups: the scene, user or session of each example, [n], where those of one are not independent. Groups are then what
                is drawn, and each counts the same.
            score: another than the one in use: a name or a function; "learned" fits one to the examples, "auto" averages
                its ranks and those of msp, by how much there was to learn from. None: the one in use.
            ood: a fitted score also looks at how foreign an input is.
            edge: index of the edge model, from 0; "all", for `max_loss`: thresholds of all edge models at once, whose guarantee
                is of all together. Each edge then runs every example.
            data_class: data class of the inputs.
            batch: inputs in one request to the cloud.
            every: take each N-th example alone: the frames of a film are too alike to count each.
            progress: a function of (done, total), which may raise to stop; True: a bar, or lines where there is no terminal;
                False: nothing; None: a bar in a terminal or a notebook.

        Raises:
            NotEnough: too few examples for the guarantee; the message has the missing number.
            BadInput: X or y has no valid form, or an input does not fit the edge model.
            PolicyError: the arguments contradict each other or this router.
            MayNotLeave: the data class forbids asking the cloud.
            NoAnswer: the cloud did not answer more than one in a hundred.
            Closed: the router is closed.
        """
        return self._run(  # type: ignore[no-any-return]
            self._calibration(
                X, y, label=label, max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure, groups=groups,
                per_class=per_class, score=score, ood=ood, edge=edge, data_class=data_class, batch=batch, every=every,
                progress=progress,
            )
        )  # fmt: skip

    def evaluate(
        self,
        X: Any,  # noqa: N803 - as in scikit-learn
        y: Any = None,
        *,
        ask_cloud: bool = True,
        edge: int | Literal["all"] | None = None,
        data_class: str | None = None,
        batch: int = 1,
        every: int = 1,
        edge_usd: float | None = None,
        edge_joules: float | None = None,
        progress: Progress = None,
    ) -> EvaluationResult:
        """Evaluate the threshold in use on examples: accuracy, deferrals, latency, cost, and whether its guarantee held.

        Edge and cloud are called for every example, as by `calibrate`, whatever the threshold. Use other examples than for the
        calibration. Without labels, right means equal to the cloud's answer.

        Args:
            X: as for `calibrate`.
            y: as for `calibrate`.
            ask_cloud: False: the edge runs alone, and nothing leaves the device.
            edge: index of the edge model, from 0; "all": all together; None: all if the certificate is about all, else the first.
            data_class: data class of the inputs.
            batch: inputs in one request to the cloud; with more than one its latency is not measured.
            every: take each N-th example alone.
            edge_usd: cost of a run of the edge, in dollars, for the break-even; None: not known.
            edge_joules: energy of a run of the edge, for the break-even; None: not known.
            progress: as for `calibrate`.

        Raises:
            PolicyError: there is no threshold, or an argument is invalid.
            BadInput, MayNotLeave, NoAnswer, Closed: as by `calibrate`.
        """
        return self._run(  # type: ignore[no-any-return]
            self._evaluation(
                X, y, ask_cloud=ask_cloud, edge=edge, data_class=data_class, batch=batch, every=every, edge_usd=edge_usd,
                edge_joules=edge_joules, progress=progress,
            )
        )  # fmt: skip

    def _run(self, steps: Steps[T]) -> T:
        """Execute steps in this thread, and return their result."""
        return blocking.run_to_end(pump(steps, self.engine))

    def close(self) -> None:
        """Stop threads and connections. Never raises."""
        self._close()


def _plain(engine: Engine, request: Request) -> Result:
    """Return the result of one request on the fast path, without optional stages: run its legs, here or in threads; record it."""
    first: Any = run_first(request)
    if type(first) is Outcome:
        return engine.finish(request, first)
    legs, steps = engine.legs([request], first), walk(request.plan, request.begun)
    outcome = (
        blocking.drive_inline(steps, legs.run, first) if request.plan.sequential else blocking.drive(steps, partial(_begin, legs))
    )
    return engine.finish(request, outcome, legs)


def _begin(legs: LegExecutor, start: Start, send: Send) -> Stop | Event | Deferrable:
    """Begin a leg (one call of a target) in a thread; or return a `Deferrable` for a call that ends by its deadline by itself.

    Its caller runs that in its own thread, which saves two handovers and a copy.
    """
    if legs.keeps_time(start):
        return Deferrable(start.leg, legs.until, partial(legs.run, start), partial(legs.begin, start, send))
    return legs.begin(start, send)


def pump(steps: Steps[T], engine: Engine, ring: Callable[[], object] | None = None) -> Generator[Any, None, T]:
    """Execute the steps of a call in this thread; yield the answers or pieces for the caller, and return the result. Blocks.

    Exceptions of a step are thrown into the steps. With `ring` it also yields each `Wait` in place of waiting.
    """
    value: Any = None
    move: Callable[[Any], Step] = steps.send
    try:
        while True:
            step = move(value)
            try:
                value, move = (yield from _execute(step, engine, ring)), steps.send
            except BaseException as e:  # noqa: BLE001 - thrown into the stages, most of which let it pass
                value, move = e, steps.throw
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _execute(step: Step, engine: Engine, ring: Callable[[], object] | None) -> Generator[Any, None, Any]:
    """Execute one step (drive a walk, wait for an equal request, sleep, or call a function), and return its result; blocks.

    Yields the answers or pieces that a walk shows; with `ring` each `Wait`, too. Raises what the step raises.
    """
    if type(step) is Walk:
        legs = step.legs
        if step.show is None and legs.plan.sequential:
            return blocking.drive_inline(step.walk, legs.run)
        begin = partial(legs.begin, streams=step.streams) if step.streams or ring is not None else partial(_begin, legs)
        shown = blocking.stream(step.walk, begin, ring)
        try:
            while True:
                emit = next(shown)
                yield emit if type(emit) is Wait else None if step.show is None else step.show(emit)
        except StopIteration as end:
            return end.value
        finally:
            shown.close()
    if type(step) is Join:
        return step.flight.wait(step.timeout_s)
    if type(step) is Pause:
        return sleep(step.seconds) if step.seconds else None  # threads take turns by themselves
    assert type(step) is Block, "there is no other step"
    return _run_block(step, engine)


def _run_block(step: Block, engine: Engine) -> Any:
    """Call the function of a `Block` and return its result; with a deadline in another thread, which goes on after it.

    Here if it has no deadline, or is needed and no thread takes it. `late` if the time is over, or it is not needed and no thread
    is free. An exception in the other thread is logged, and counts as no result.
    """
    done = Mailbox[Any]()
    threads = engine.local_threads if step.threads is None else step.threads
    submit = threads.submit_later if step.needed else threads.submit
    if step.until == INF or not submit(lambda: done.put(step.call())):
        return step.call() if step.until == INF or step.needed else step.late
    try:
        return done.get(step.until - monotonic())
    except Empty:
        return step.late
