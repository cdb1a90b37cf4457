"""Exports for Triton, in a real Triton."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import routes
import tiny
from exports import PICTURE, columns, get, infer_bytes, jpeg, pictures, slow, triton

from edgeroute import OnnxModel, OpenInference, Router
from edgeroute.tools.export.triton_kserve_ray_exports import Batching
from edgeroute.tools.export.triton_kserve_ray_exports import triton as exported

pytestmark = pytest.mark.matrix
SKLEARN = Path(__file__).parent / "exported"


@pytest.fixture(scope="module")
def models(tmp_path_factory, fashion):
    """Name on the server -> file."""
    folder = tmp_path_factory.mktemp("models")
    fixed = pictures(folder / "fixed.onnx", batch=1)
    fixed.with_suffix(".json").write_text(fixed.with_suffix(".json").read_text().replace('"shape": [-1, 3', '"shape": [1, 3'))
    return {
        "fashion": fashion / "cloud.onnx",
        "pictures": pictures(folder / "pictures.onnx"),
        "fixed": fixed,
        "columns": columns(folder / "columns.onnx"),
        "two": tiny.two_inputs(folder / "two.onnx"),
        "labels": SKLEARN / "sk_plain.onnx",
        "texts": SKLEARN / "sk_texts.onnx",
        "slow": slow(folder / "slow.onnx"),
    }


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    exported([*models.values()], folder / "repository", names=[*models], batching=Batching(16, 0.02, queue=16))
    with triton(folder / "repository", folder) as (url, log):
        yield url, log


def rows(model, n):
    rng = np.random.default_rng(1)
    specs = model.inputs

    def one(spec):
        told = model.card.of(spec.name)
        if told is not None and told.preprocess is not None:
            return rng.integers(0, 256, told.preprocess.accepts.shape[1:], np.uint8)
        batch = 0 if told is None else told.batch
        shape = [size for axis, size in enumerate(spec.shape) if axis != batch]
        return rng.integers(0, 255, shape).astype(spec.dtype)

    return [one(specs[0]) if len(specs) == 1 else {spec.name: one(spec) for spec in specs} for _ in range(n)]


@pytest.mark.parametrize("name", ["fashion", "pictures", "fixed", "columns", "two", "labels", "texts"])
def test_the_server_answers_as_the_model_does(name, models, server, tmp_path):
    """Each kind of model, alone and in batches: preprocessing, a fixed batch, another batch axis, constants, several inputs."""
    url, log = server
    assert get(f"{url}/v2/models/{name}/ready")[0] == 200, log.read_text()[-3000:]
    model = OnnxModel(models[name])
    model.load()
    given = rows(model, 5)
    card = log.parent / "repository" / name / "client.json"
    with Router(model) as edge, Router(cloud=OpenInference(f"{url}/v2/models/{name}", card=card), mode="only_cloud") as cloud:
        here = edge.infer_many(given)
        for away in (cloud.infer_many(given, deadline=30), [cloud.infer(x, deadline=30) for x in given]):
            assert [one.source for one in away] == ["cloud"] * 5
            assert [one.value for one in away] == [one.value for one in here]
            if name not in {"labels", "texts"}:  # of which the cloud's first output is read, the label
                assert [one.confidence for one in away] == pytest.approx([one.confidence for one in here])


def test_requests_of_many_callers_are_one_run(models, server):
    """Triton counts fewer executions than inferences, and every caller has the answer to its own input."""
    url, _ = server
    model = OnnxModel(models["fashion"])
    model.load()
    given = rows(model, 64)
    with Router(model) as edge, Router(cloud=OpenInference(f"{url}/v2/models/fashion"), mode="only_cloud") as cloud:
        here = [one.value for one in edge.infer_many(given)]
        for _ in range(20):  # a busy machine may have them one after the other
            with ThreadPoolExecutor(16) as pool:
                away = [one.value for one in pool.map(lambda x: cloud.infer(x, deadline=30), given)]
            assert away == here  # by the labels that the server has
            counts = get(f"{url}/v2/models/fashion/stats")[1]["model_stats"][0]
            if counts["execution_count"] < counts["inference_count"]:
                return
    pytest.fail(f"no batch formed: {counts}")


def test_what_is_more_than_the_queue_is_refused_and_stays_on_the_edge(server):
    """With 503; the callers have their device's answer."""
    cloud = OpenInference(f"{server[0]}/v2/models/slow", timeout_s=60, max_concurrent=64)
    with Router(lambda x: (0, 0.0), cloud=cloud, threshold=0.5) as router, ThreadPoolExecutor(64) as pool:
        assert router.infer(np.ones(1, np.float32), deadline=60).source == "cloud"
        for _ in range(20):  # a busy machine may send them one after the other
            answers = list(pool.map(lambda _: router.infer(np.ones(1, np.float32), deadline=60), range(128)))
            assert {one.value for one in answers} == {0}
            refused = [one for one in answers if one.source == "edge"]
            if any(routes.status(one) == 503 for one in refused):
                return
    pytest.fail(f"nothing was refused: {[one.reason for one in refused][:3]}")


def test_files_of_pictures_are_decoded(models, server):
    """JPEG, PNG, grey and on its side: what the edge makes of a file, the server makes, too."""
    url = f"{server[0]}/v2/models/pictures-encoded"
    turned = pytest.importorskip("PIL.Image").Exif()
    turned[0x112] = 6
    files = [jpeg((40, 20, 3)), jpeg((9, 30, 3), 1, "PNG"), jpeg((30, 30), 2), jpeg((12, 40, 3), 3, exif=turned)]
    here = OnnxModel(models["pictures"]).run(files)
    status, away = infer_bytes(url, "image", files)
    assert (status, list(away)) == (200, ["logits"])
    np.testing.assert_allclose(away["logits"].astype(np.float32), here, rtol=1e-5)  # of another onnxruntime
    status, why = infer_bytes(url, "image", [b"no picture"])
    assert status >= 400
    assert "no picture that can be read" in why
    for codec in ("png", None):  # as a codec sends them, fitted by the card; and a camera's own
        options = {} if codec is None else {"codec": codec, "card": models["pictures"].with_suffix(".json")}
        with Router(cloud=OpenInference(url, **options), mode="only_cloud") as router:
            found = [router.infer(data, deadline=30) for data in files]
            assert {one.source for one in found} == {"cloud"}
            np.testing.assert_allclose(np.vstack([one.outputs for one in found]), here, rtol=1e-5)


def test_labels_are_in_the_metadata(server):
    """As parameters of the configuration, and for Triton's classification extension, of a name that would end any quotes."""
    told = get(f"{server[0]}/v2/models/pictures/config")[1]
    said = {key: one["string_value"] for key, one in told["parameters"].items()}
    assert json.loads(said["labels"]) == PICTURE["labels"]
    assert (said["name"], said["description"], said["kind"]) == (PICTURE["name"], PICTURE["description"], "logits")
