"""Exports for Ray Serve, on a real Ray, which is started once."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic

import numpy as np
import pytest
import routes
from exports import get, infer_bytes, jpeg, pictures, ray, slow

from edgeroute import OnnxModel, OpenInference, Router
from edgeroute.core.performance_estimates_and_encoding_choice import FROM
from edgeroute.tools.export.triton_kserve_ray_exports import ray as exported

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.matrix
MODELS, INGRESS = "edgeroute/Models", "edgeroute/Ingress"


@pytest.fixture(scope="module")
def models(tmp_path_factory, fashion):
    """Name on the server -> file."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "large": fashion / "cloud.onnx",
        "small": fashion / "edge.int8.onnx",
        "pictures": pictures(folder / "pictures.onnx"),
        "slow": slow(folder / "slow.onnx"),
    }


@pytest.fixture(scope="module")
def app(models, tmp_path_factory):
    """The application, which shrinks within seconds, and beside it another whose replicas have one model each."""
    out = tmp_path_factory.mktemp("app") / "out"
    splits = {"fashion": {"small": 0.3, "large": 0.7}}
    exported([*models.values()], out, names=[*models], max_batch=4, wait_s=0.02, replicas=(1, 2), splits=splits)
    config = yaml.safe_load((out / "serve.yaml").read_text())
    first = config["applications"][0]
    scaling = first["deployments"][1]["autoscaling_config"]
    scaling.update(look_back_period_s=2.0, upscale_delay_s=1.0, downscale_delay_s=3.0)
    few = {**first, "name": "few", "route_prefix": "/few", "args": {**first["args"], "models_per_replica": 1}}
    narrow = {"max_ongoing_requests": 1, "max_queued_requests": 2}
    few["deployments"] = [
        {"name": "Ingress", "num_replicas": 1, "max_ongoing_requests": 64},
        {"name": "Models", "num_replicas": 1, **narrow},
    ]
    config["applications"].append(few)
    (out / "serve.yaml").write_text(yaml.safe_dump(config))
    return out


@pytest.fixture(scope="module")
def server(app, models):
    with ray(app, models) as running:
        yield running


@pytest.fixture(scope="module")
def images(fashion):
    return list(np.load(fashion / "sample.npz")["images"][:48])


def endpoint(server, app, name, under="", **options):
    return OpenInference(f"{server.url}{under}/v2/models/{name}", card=app / "models" / name / "client.json", **options)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("under", ["", "/few"])
def test_the_server_answers_as_the_models_do(under, binary, server, app, models, images):
    """One by one and in batches, in JSON and binary; also where a replica has one model at a time."""
    for name in ("large", "small"):
        cloud = endpoint(server, app, name, under, binary=binary)
        with Router(OnnxModel(models[name])) as edge, Router(cloud=cloud, mode="only_cloud") as away:
            here = [(one.value, pytest.approx(one.confidence)) for one in edge.infer_many(images[:8])]
            assert [(one.value, one.confidence) for one in away.infer_many(images[:8], deadline=30)] == here
            assert [(one.value, one.confidence) for one in (away.infer(x, deadline=30) for x in images[:8])] == here


def test_files_of_pictures_are_decoded(server, models):
    files = [jpeg((40, 20, 3)), jpeg((9, 30, 3), 1, "PNG")]
    status, away = infer_bytes(f"{server.url}/v2/models/pictures-encoded", "image", files)
    assert status == 200
    np.testing.assert_allclose(away["logits"].astype(np.float32), OnnxModel(models["pictures"]).run(files), rtol=1e-5)
    status, why = infer_bytes(f"{server.url}/v2/models/pictures-encoded", "image", [b"no picture"])
    assert (status, "no picture that can be read" in why) == (400, True)
    card = models["pictures"].with_suffix(".json")
    for name, binary in (("pictures", "auto"), ("pictures", False), ("pictures-encoded", "auto")):  # as a codec sends them
        cloud = OpenInference(f"{server.url}/v2/models/{name}", codec="png", card=card, binary=binary)
        with Router(cloud=cloud, mode="only_cloud") as router:
            found = [router.infer(data, deadline=30) for data in files]
            assert {one.source for one in found} == {"cloud"}
            np.testing.assert_allclose(
                np.vstack([one.outputs for one in found]), OnnxModel(models["pictures"]).run(files), rtol=1e-5
            )


def test_metadata_says_labels_and_shapes(server, models, images):
    said = get(f"{server.url}/v2/models/large")[1]
    assert said["parameters"]["labels"] == list(OnnxModel(models["large"]).labels)
    with Router(cloud=OpenInference(f"{server.url}/v2/models/large"), mode="only_cloud") as router:
        assert router.infer(images[0], deadline=30).value == OnnxModel(models["large"]).labels[9]  # nobody gave labels here
    assert said["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    status, why = get(f"{server.url}/v2/models/nothing")
    assert (status, why) == (404, '{"error":"there is no model \'nothing\' here"}')


def ask(server, name, x, **headers):
    """-> the arm that answered, and how many requests its run was for."""
    body = (
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": %s}]}'
        % str(x.ravel().tolist()).encode()
    )
    request = urllib.request.Request(f"{server.url}/v2/models/{name}/infer", body, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.headers["x-edgeroute-arm"], int(reply.headers["x-edgeroute-batch"])


def test_requests_of_many_callers_are_one_run(server, images):
    for _ in range(20):  # a busy machine may have them one after the other
        with ThreadPoolExecutor(16) as pool:
            runs = [batch for _, batch in pool.map(lambda x: ask(server, "large", x), images)]
        if max(runs) > 1:
            return
    pytest.fail(f"no batch formed: {runs}")


def test_a_caller_stays_in_its_arm(server, images):
    """By the key that it sends, whatever its input; both arms have callers."""
    keys = [str(key) for key in range(24)]
    first = [ask(server, "fashion", images[i], **{"x-edgeroute-key": key})[0] for i, key in enumerate(keys)]
    again = [ask(server, "fashion", images[0], **{"x-edgeroute-key": key})[0] for key in keys]
    assert first == again
    assert set(first) == {"small", "large"}


def test_what_is_more_than_the_queue_is_refused_and_stays_on_the_edge(server, app, models):
    """With 503 and a Retry-After; every caller has an answer, as soon as its own device has it."""
    x = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}'

    def post(_):
        try:
            return urllib.request.urlopen(f"{server.url}/few/v2/models/slow/infer", x, 60).status, None
        except urllib.error.HTTPError as e:
            return e.code, e.headers["retry-after"]

    with ThreadPoolExecutor(16) as pool:
        assert {*pool.map(post, range(32))} == {(200, None), (503, "1")}
    cloud = endpoint(server, app, "slow", "/few", timeout_s=60)
    with Router(lambda x: (0, 0.0), cloud=cloud, threshold=0.5) as router, ThreadPoolExecutor(16) as pool:
        assert router.infer(np.ones(1, np.float32), deadline=60).source == "cloud"
        answers = list(pool.map(lambda _: router.infer(np.ones(1, np.float32), deadline=60), range(48)))
    assert {one.source for one in answers} == {"cloud", "edge"}


@contextmanager
def callers(router, count=24):
    """So many threads that ask one after the other -> what became of all requests, which is whole at the end."""
    ended, answers, failed = threading.Event(), [], []

    def work(i):
        try:
            while not ended.is_set():
                answers.append(router.infer(np.full(1, float(i), np.float32), deadline=120))
                if answers[-1].source == "edge":
                    ended.wait(0.1)  # as a device that has no cloud, but for a while
        except Exception as e:  # noqa: BLE001 - to be shown
            failed.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers, failed
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def spared(answer):
    """Whether the edge gave it for the load of the cloud."""
    return answer.source == "edge" and routes.label(answer) != "uncalibrated" and not answer.degraded


def test_a_loaded_application_says_so_and_more_stays_on_the_edge(server, app, models):
    """What waits there is in its replies; then devices keep what they are surest of, and skip what is optional."""
    cloud = endpoint(server, app, "slow", timeout_s=60)
    with Router(lambda x: (0, 0.79 * float(x[0]) / 24), cloud=cloud, threshold=0.8) as router:
        with callers(router) as (answers, failed):
            while not failed and not any(spared(one) for one in answers):
                threading.Event().wait(0.1)  # it has answers all the time
        assert failed == []
        rules = router.engine.snapshot.clouds[0].guard.rules
        assert rules.load.at(monotonic()) > FROM
        assert router.stats().spared > 0
        assert {one.source for one in answers} == {"cloud", "edge"}
        assert all(0 < one.confidence < 0.8 for one in answers if spared(one))


def test_replicas_follow_the_load_and_one_that_is_killed_loses_no_request(server, app, models):
    """One replica, two under load; one of them and one of the ingress are killed meanwhile; one again without load."""
    server.wait(MODELS, {"RUNNING": 1})
    cloud = endpoint(server, app, "slow", timeout_s=60)
    with Router(lambda x: (0, 0.0), cloud=cloud, threshold=0.5) as router:
        with callers(router) as (answers, failed):
            server.wait(MODELS, {"RUNNING": 2})
            os.kill(server.replicas("edgeroute:Models")[0], signal.SIGKILL)
            os.kill(server.replicas("edgeroute:Ingress")[0], signal.SIGKILL)
            seen = len(answers)
            server.wait(MODELS, {"RUNNING": 2})
            server.wait(INGRESS, {"RUNNING": 2})
            while sum(one.source == "cloud" for one in answers[seen:]) < 24 and not failed:
                threading.Event().wait(0.1)  # it has answers all the time
        assert failed == []
        assert {one.value for one in answers} == {0}
    server.wait(MODELS, {"RUNNING": 1})
