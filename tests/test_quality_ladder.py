"""A ladder of codecs: the best quality that is predicted to arrive in time is sent, and what is certified is the floor."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from itertools import pairwise

import numpy as np
import pytest
import routes
from both import LONG, Link, Tasks, Threads, flat, header, running, unsure

from edgeroute import AsyncRouter, Audit, BadInput, Cache, OpenInference, Outbox, PolicyError, Router
from edgeroute.cloud.encoding_and_edge_answers import Ladder, payload_of
from edgeroute.cloud.input_codecs import Coded, codec_of
from edgeroute.cloud.openinference import LENGTH
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.server.serve import app
from edgeroute.types import TensorSpec

pytestmark = pytest.mark.pure

pytest.importorskip("PIL.Image")
BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
RUNGS = ["png", "jpeg:90", "jpeg:10"]
PICTURE = np.random.default_rng(3).integers(0, 255, (40, 40, 3), np.uint8)
SIZES = [len(codec_of(rung).encode(PICTURE).data) for rung in RUNGS]
ABOUT = {
    "name": "m", "versions": ["1"], "platform": "", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 40, 40, 3]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}  # fmt: skip


def media(request):
    """What an infer request has sent: the media type of its files and their number; None: it is another request."""
    length = header(request, LENGTH)
    if b"/infer " not in request.partition(b"\r\n")[0]:
        return None
    body = request.partition(b"\r\n\r\n")[2]
    (tensor,) = json.loads(body if length is None else body[: int(length)])["inputs"]
    return tensor["parameters"]["media_type"], tensor["shape"][0]


def answered(request):
    """A server of the protocol."""
    sent = media(request)
    if sent is None:
        return http_reply(json.dumps(ABOUT).encode())
    output = {"name": "y", "datatype": "FP32", "shape": [sent[1], 1], "data": [0.5] * sent[1]}
    return http_reply(json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode())


def cloud(url, **options):
    return OpenInference(f"{url}/v2/models/m", codec=RUNGS, kind="value", binary=True, **options)


def measured(router, bytes_per_s):
    """The router has seen calls over a link of that speed."""
    (backend,) = router.engine.snapshot.clouds
    link = backend.guard.rules.link
    link.__init__()
    for n in range(200):
        size = 100 * (n % 5 + 1)
        link.add(size, size / bytes_per_s)
    assert link.bytes_per_s == pytest.approx(bytes_per_s, rel=0.01)


def speed(rung):
    """A link over which that rung takes half of `LONG`, and the next better one, if it is twice as large, all of it."""
    return SIZES[rung] / (LONG / 2)


def rung_of(answer):
    """By the trace."""
    return [event["codec"] for event in answer.trace["events"] if "codec" in event][-1]


@BOTH
def test_a_better_rung_that_is_too_large_for_the_server(kind):
    """It is not taken for a refusal of the input: the next call goes by a lower one, and has an answer."""
    seen = []

    def server(request):
        sent = media(request)
        if sent is None:
            return http_reply(json.dumps(ABOUT).encode())
        seen.append(sent[0])
        return answered(request) if sent[0] == "image/jpeg" else http_reply(b"too large", status=413)

    with CannedServer(server) as canned, kind(unsure, cloud(canned.url, retries=0), threshold=0.5, cache=Cache()) as router:
        router.infer(PICTURE)  # asks what the model takes
        measured(router, 1e9)
        answers = [router.infer(PICTURE + n, deadline=LONG) for n in (1, 1, 2)]
    assert [answer.source for answer in answers[1:]] == ["cloud", "cloud"]
    assert seen.count("image/png") <= 2


assert all(large > 1.7 * small for large, small in pairwise(SIZES)), "so that SHARE of a deadline tells them apart"


@BOTH
def test_the_best_that_fits_is_sent(kind):
    """Before a call is known the floor, if there is a deadline, and the best, if there is none; then by the link and the slack."""
    with CannedServer(answered) as server:
        for rung, name in enumerate(RUNGS):
            with kind(unsure, cloud(server.url), threshold=0.5) as router:
                router.infer(PICTURE)  # until then it is not known what the model takes
                router.engine.snapshot.clouds[0].guard.rules.link.__init__()
                assert rung_of(router.infer(PICTURE, deadline=LONG)) == "jpeg:10"
                assert rung_of(router.infer(PICTURE)) == "png"
                measured(router, speed(rung))
                answer = router.infer(PICTURE, deadline=LONG)
                assert (answer.source, rung_of(answer)) == ("cloud", name)
                measured(router, speed(rung))
                rows = router.infer_many([PICTURE] * 2, deadline=LONG)  # together they are twice as large
                assert rung_of(rows[0]) == RUNGS[min(rung + 1, 2)]
                assert rung_of(router.infer(PICTURE)) == "png"
        sent = [media(request)[0] for request in server.requests if media(request) is not None]
        assert sent[0] == "image/jpeg", "the floor"
        assert set(sent) == {"image/png", "image/jpeg"}


@BOTH
def test_certificates_are_of_the_floor(kind, tmp_path):
    """`calibrate` and `evaluate` send the floor, and so do audits; an answer to a better one is not compared, but asked again."""
    audit = {"audit": Audit(share=1), "state": tmp_path}

    def edge(picture):
        return 0.5, 0.1 + float(picture.flat[0]) / 1000

    with CannedServer(answered) as server, kind(edge, cloud(server.url), threshold=0.05, **audit) as router:
        measured(router, 1e9)
        router.infer(PICTURE)
        while router.engine.auditor.jobs.busy:
            threading.Event().wait(0.001)
        router.evaluate([PICTURE] * 3)
        router.calibrate([np.roll(PICTURE, n) for n in range(100)], max_loss=0.9, batch=50)
        kinds = {media(request)[0] for request in server.requests if media(request) is not None}
        assert kinds == {"image/jpeg"}
        size = max(len(request) for request in server.requests if media(request) == ("image/jpeg", 1))
        assert size < SIZES[1]
    with CannedServer(answered) as server, kind(unsure, cloud(server.url), threshold=0.5, **audit) as router:
        router.infer(PICTURE)
        measured(router, 1e9)
        assert rung_of(router.infer(PICTURE)) == "png"
        while router.engine.auditor.jobs.busy:
            threading.Event().wait(0.001)
        assert [media(request)[0] for request in server.requests if media(request)][-2:] == ["image/png", "image/jpeg"]
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert [line["audited"] for line in lines] == ["shadow", "deferred", "deferred"]


def test_shadow_mode_sends_the_floor(tmp_path):
    """What is recorded there is what would be certified, and costs no further call."""
    with CannedServer(answered) as server, Router(unsure, cloud(server.url), mode="shadow", state=tmp_path) as router:
        for _ in range(2):
            assert router.infer(PICTURE).source == "cloud"
        while router.engine.auditor.jobs.busy:
            threading.Event().wait(0.001)
        assert [media(request)[0] for request in server.requests if media(request)] == ["image/jpeg"] * 2


@BOTH
def test_stored_calls_are_as_they_were_sent(kind, tmp_path):
    """The same bytes under the same key, whatever rung would be chosen by then."""
    answers, down = queue.Queue(), []

    def reply(request):
        return http_reply(b"", status=503) if down and media(request) is not None else answered(request)

    with CannedServer(reply) as server, Link("127.0.0.1", server.port) as relay:
        options = {"threshold": 0.5, "offline": "queue", "outbox": Outbox(tmp_path / "outbox", spread_s=0)}
        with kind(unsure, cloud(relay.url, retries=0), **options) as router:
            router.infer(PICTURE)
            measured(router, speed(1))
            down.append(True)
            assert routes.queued(router.infer(PICTURE, deadline=LONG)) == routes.WAITING
            sent = [request for request in server.requests if media(request)][-1]
            relay.down()
        down.clear()
        with Router(unsure, cloud(relay.url, retries=0), **flat(**options)) as router:
            router.on_late(answers.put)
            relay.up(router)
            answers.get(timeout=LONG)
        again = [request for request in server.requests if media(request)][-1]
        assert len(sent) > SIZES[1]
        assert sent.partition(b"\r\n\r\n")[2] == again.partition(b"\r\n\r\n")[2]
        assert header(sent, "Idempotency-Key") == header(again, "Idempotency-Key")


def test_certificates_and_the_cache_are_bound_to_the_ladder():
    """With all its rungs, in order."""

    def prints(codec):
        endpoint = OpenInference("http://127.0.0.1:9/v2/models/m", codec=codec)
        with Router(unsure, endpoint, threshold=0.5) as router:
            return router.fingerprints()["codec"], router.engine.snapshot.clouds[0].identity(str)

    found = {str(codec): prints(codec) for codec in ("jpeg:10", RUNGS, RUNGS[1:], [*RUNGS[:2], "jpeg:11"], RUNGS[::-1])}
    assert len(set(found.values())) == 5
    assert found[str(RUNGS)][0] == "OpenInference:ladder:png>jpeg:90>jpeg:10"


@BOTH
def test_with_the_edges_answer(kind):
    """Both together: each row of a batch has its own, and what a server is probed with has nothing of the caller's."""
    with CannedServer(answered) as server:
        endpoint = OpenInference(f"{server.url}/v2/models/m", codec=RUNGS, kind="value", send_edge=True)
        with kind(lambda x: (int(x.flat[0]), 0.1), endpoint, threshold=0.5) as router:
            pictures = [np.full_like(PICTURE, n) for n in range(3)]
            router.infer(pictures[0])
            assert {answer.source for answer in router.infer_many(pictures)} == {"cloud"}
        said = []
        for request in server.requests:
            if media(request) is not None:
                body, length = request.partition(b"\r\n\r\n")[2], header(request, LENGTH)
                said.append(json.loads(body[: int(length)]).get("parameters", {}).get("edge_answers"))
        probe, first, batch = said
        assert probe is None
        assert json.loads(first) == [{"value": 0, "confidence": 0.1}]
        assert [one["value"] for one in json.loads(batch)] == [0, 1, 2]


@BOTH
def test_a_link_that_became_slow_is_not_believed(kind):
    """Whatever was predicted: after a call that was late by one rung the next one goes by a lower one."""
    gate = threading.Event()

    def stuck(request):
        sent = media(request)
        return None if sent is not None and sent[0] == "image/png" else answered(request)

    with CannedServer(stuck) as server, kind(unsure, cloud(server.url), threshold=0.5) as router:
        router.infer(PICTURE, deadline=LONG)
        measured(router, 1e9)
        (backend,) = router.engine.snapshot.clouds
        answer = router.infer(PICTURE, deadline=3.0)
        assert answer.degraded
        while not backend.endpoint.payload.best():  # the call ends once its connection is cut
            gate.wait(0.001)
        answer = router.infer(PICTURE, deadline=LONG)
        assert (answer.source, rung_of(answer)) == ("cloud", "jpeg:90")


class Rung:
    """A codec of tensors that makes so many bytes of each, and counts."""

    pictures = False

    def __init__(self, name, size, fails=False):
        self.name, self.size, self.fails, self.runs, self.threads = name, size, fails, 0, set()

    def encode(self, x):
        """Some bytes."""
        self.runs += 1
        self.threads.add(threading.current_thread().name)
        if self.fails:
            raise BadInput("not this one")
        return Coded(bytes(self.size), {})


def test_a_rung_is_tried_until_its_size_is_known():
    """Then one encoding is enough, and where that has come out larger than predicted, a lower one takes its place."""
    rungs = [Rung("a", 900), Rung("b", 300), Rung("c", 100)]
    ladder, row = Ladder(rungs), np.zeros(1000, np.uint8)

    def fits(most):
        return lambda sizes: next((i for i, size in enumerate(sizes) if size <= most), 2)

    assert ladder.choose_rung([row], fits(350))[0] == "b"
    assert [rung.runs for rung in rungs] == [1, 1, 0]
    assert ladder.choose_rung([row], fits(350))[0] == "b"
    assert [rung.runs for rung in rungs] == [1, 2, 0]
    rungs[1].size = 500
    name, coded = ladder.choose_rung([row] * 2, fits(700))
    assert (name, [len(one.data) for one in coded]) == ("c", [100, 100])
    assert ladder.choose_rung([row], fits(100), 4 / 3)[0] == "c"
    assert ladder.choose_rung([row], fits(2000))[0] == "a"


def test_what_a_better_rung_cannot_encode_the_next_one_may():
    """The caller's error is the floor's alone."""
    ladder, row = Ladder([Rung("a", 1, fails=True), Rung("b", 1)]), np.zeros(3, np.uint8)
    assert ladder.choose_rung([row], lambda sizes: 0)[0] == "b"
    with pytest.raises(BadInput):
        Ladder([Rung("a", 9), Rung("b", 1, fails=True)]).choose_rung([row], lambda sizes: 1)


def test_inputs_are_encoded_off_the_event_loop():
    """All rungs of a ladder are, but for the very first call's."""
    rungs = [Rung("a", 9), Rung("b", 1)]
    for rung in rungs:
        rung.encode = lambda x, rung=rung: (rung.threads.add(threading.current_thread().name), codec_of("png").encode(x))[1]
        rung.pictures = True

    async def ask(url):
        async with AsyncRouter(unsure, OpenInference(f"{url}/v2/models/m", codec=rungs, kind="value"), threshold=0.5) as router:
            await router.infer(PICTURE)
            for rung in rungs:
                rung.threads.clear()
            answers = [await router.infer(PICTURE), *await router.infer_many([PICTURE] * 2)]
            assert {one.source for one in answers} == {"cloud"}

    with CannedServer(answered) as server:
        asyncio.run(ask(server.url))
    threads = set().union(*(rung.threads for rung in rungs))
    assert threads
    assert threading.current_thread().name not in threads


def test_a_served_model_takes_every_rung():
    """Over `edgeroute serve`, each rung is decoded to what the codec makes of it."""

    class Mean:
        name, inputs = "m", (TensorSpec("x", "uint8", (-1, 40, 40, 3)),)
        outputs = (TensorSpec("y", "float32", (-1, 1)),)

        def run(self, inputs, cancel=None):
            return np.array([[np.mean(one)] for one in inputs], np.float32)

    with running(app([Mean()])) as client:
        url = str(client.base_url).rstrip("/")
        with Router(unsure, cloud(url), threshold=0.5) as router:
            router.infer(PICTURE)
            for rung in range(3):
                measured(router, speed(rung))
                answer = router.infer(PICTURE, deadline=LONG)
                assert rung_of(answer) == RUNGS[rung]
                assert np.ravel(answer.outputs)[0] == pytest.approx(PICTURE.mean(), abs=3)


@pytest.mark.parametrize(
    "codec", [[], ["jpeg"], ["jpeg", "jpeg:95"], ["jpeg", "fp16"], ["gif", "png"], [["png", "jpeg"], "webp"]]
)
def test_ladders_that_are_none(codec):
    """A mistake is told when the endpoint is made."""
    with pytest.raises(PolicyError, match="codec"):
        OpenInference("http://127.0.0.1:9/v2/models/m", codec=codec)
    assert payload_of(RUNGS).floor.name == "jpeg:10"


def test_a_policy_names_the_ladder(tmp_path):
    """As a list of names and tables, best first."""
    path = tmp_path / "policy.toml"
    for said, good in (
        ('["png", "jpeg:85", { name = "jpeg", quality = 50 }]', True),
        ('["png"]', False),
        ('["png", "gif"]', False),
        ('["png", 5]', False),
    ):
        path.write_text(f'mode = "only_edge"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\ncodec = {said}\n'.replace(
            'mode = "only_edge"\n', 'mode = "prefer_cloud"\n'
        ))  # fmt: skip
        if not good:
            with pytest.raises(PolicyError, match="codec"):
                Router.from_policy(path)
            continue
        with Router.from_policy(path) as router:
            assert router.engine.snapshot.clouds[0].endpoint.payload.name == "ladder:png>jpeg:85>jpeg:50"
