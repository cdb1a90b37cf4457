"""Core ML models: read on every system, run by a device that executes their programs in numpy, as there is none on Linux."""

import gc
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import mil
import numpy as np
import pytest
from lazily import Later, needs

from edgeroute import BadInput, CoreMLModel, ModelError, ModelMissing, PolicyError, Router, RuntimeMissing, models
from edgeroute import policy as settings
from edgeroute.edge import coreml
from edgeroute.edge.edge_model_members_and_fingerprints import stamps
from edgeroute.edge.model_card import sha256_of
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.testing import edge_contract

logging.getLogger("coremltools").setLevel(logging.ERROR)
needs("coremltools")
ct, parts, proto = Later("coremltools"), Later("coremltools.converters.mil.mil"), Later("coremltools.proto.Model_pb2")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:coremltools")
FASHION = models.fashion().coreml
ROOT = "Data/com.apple.CoreML/model.mlmodel"


class Device:
    """In place of coremltools' binding of Core ML: the package's program, in numpy."""

    made: ClassVar = []

    def __init__(self, path, units, function, hints, asset):
        self.path, self.units = Path(path), units
        self.program = mil.Program(self.path)
        Device.made.append(self)

    @staticmethod
    def maximum_supported_specification_version():
        """As that of a Mac."""
        return 9

    def predict(self, feed, state):
        """As Core ML."""
        return self.program(feed)


@pytest.fixture
def core_ml(monkeypatch):
    """A Mac, as far as edgeroute and coremltools can tell: all but the framework itself is theirs."""
    monkeypatch.setattr("coremltools.models.model._MLModelProxy", Device)  # private: the framework, which is on a Mac alone
    monkeypatch.setattr("edgeroute.edge.coreml.SYSTEM", "Darwin")
    monkeypatch.setattr(Device, "made", [])
    return Device


def framework(monkeypatch, predict):
    """Another one, that does with an input what `predict` says."""

    class Plain(Device):
        def __init__(self, path, units, function, hints, asset):
            self.predict = lambda feed, state: predict(feed)

    monkeypatch.setattr("coremltools.models.model._MLModelProxy", Plain)  # private: likewise
    monkeypatch.setattr("edgeroute.edge.coreml.SYSTEM", "Darwin")


def built(path, sizes=(1, 4), inputs=None):
    """A package: x [n, 4] -> doubled, and its softmax."""
    mb = parts.Builder

    @mb.program(input_specs=[mb.TensorSpec(shape=sizes)], opset_version=ct.target.iOS16)
    def program(x):
        doubled = mb.mul(x=x, y=np.float32(2), name="doubled")
        return doubled, mb.softmax(x=doubled, axis=1, name="share")

    with warnings.catch_warnings():  # coremltools leaves its temporary folders to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        made = ct.convert(
            program, convert_to="mlprogram", inputs=inputs, minimum_deployment_target=ct.target.iOS16, skip_model_load=True
        )
        made.save(str(path))
        del made, program
        gc.collect()
    return path


def described(path, change):
    """A file without a model, with that description."""
    spec = proto.Model()
    spec.specificationVersion = 6
    change(spec.description)
    spec.identity.SetInParent()
    path.write_bytes(spec.SerializeToString())
    return path


def array(feature, shape, dtype="FLOAT32"):
    """Makes an array of a feature."""
    feature.type.multiArrayType.shape.extend(shape)
    feature.type.multiArrayType.dataType = feature.type.multiArrayType.ArrayDataType.Value(dtype)
    return feature.type.multiArrayType


def added(features, name):
    """One more feature."""
    feature = features.add()
    feature.name = name
    return feature


# --- the shipped package


@pytest.mark.slow
def test_the_shipped_package_answers_as_the_onnx_file(core_ml):
    """The same weights, with activations in float16 for int8: logits differ by hundredths, and 2 of 1,000 classes."""
    pair = models.fashion()
    images = pair.images[:60]
    onnx, core = load(pair.edge), load(FASHION)
    wanted, found = onnx.run(list(images)), core.run(list(images))
    assert found.shape == wanted.shape == (60, 10)
    assert found.dtype == wanted.dtype == np.float32
    assert np.abs(found - wanted).mean() < 0.1
    assert np.abs(found - wanted).max() < 0.5  # of logits up to 16
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.95
    assert np.mean(found.argmax(1) == pair.labels[:60]) > 0.9
    assert (core.labels, core.kind, core.name) == (onnx.labels, onnx.kind, onnx.name)


def test_it_keeps_the_contract(core_ml, tmp_path):
    """With what is coremltools' own around the framework."""
    rows = [np.array([1, 0, 0, 0], np.float32), np.array([0, 0, 2, 0], np.float32)]
    edge_contract(
        CoreMLModel(built(tmp_path / "m.mlpackage"), output="doubled"), rows, bad=["text", np.zeros(4, np.int64)[:3]], rtol=1e-2
    )


def test_a_router_runs_it(core_ml, tmp_path):
    """By a policy with its keys."""
    shutil.copytree(FASHION, tmp_path / "edge.mlpackage")
    shutil.copy(FASHION.with_name("edge.mlpackage.json"), tmp_path)
    policy = tmp_path / "p.toml"
    policy.write_text(
        'mode = "only_edge"\nthreshold = 0.1\n[edge]\npath = "edge.mlpackage"\ncompute_units = "cpu_and_ne"\nscore = "margin"\n'
    )
    with Router.from_policy(policy) as router:
        assert router.check().ok
        assert router.infer(models.fashion().images[0]).value == "Ankle boot"
        before = router.fingerprints()
        policy.write_text(policy.read_text().replace("cpu_and_ne", "cpu"))
        router.reload()
        assert router.infer(models.fashion().images[0]).value == "Ankle boot"
        assert router.fingerprints() != before
    assert [one.units for one in core_ml.made] == ["CPU_AND_NE", "CPU_ONLY"]


def test_reading_changes_nothing(core_ml, tmp_path):
    """coremltools writes to a package that it opens, which would make another model of it at each load."""
    path = Path(shutil.copytree(FASHION, tmp_path / "edge.mlpackage"))
    manifest = path / "Manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))  # as another program wrote it
    os.utime(manifest, (1, 1))
    model = CoreMLModel(path)
    before, digest = stamps(model), sha256_of(path)
    model.load()
    assert (stamps(model), sha256_of(path), model.fingerprint) == (before, digest, digest)
    (made,) = core_ml.made
    assert not made.path.exists()  # the copy that coremltools has opened


# --- where there is no Core ML


def test_elsewhere_it_is_read_and_not_run(monkeypatch):
    """`load` says so, and by it `check`; what the model takes and gives is known."""
    monkeypatch.setattr(coreml, "SYSTEM", "Linux")
    model = CoreMLModel(FASHION)
    with pytest.raises(RuntimeMissing, match=r"Core ML runs on macOS alone, and this is Linux: use .*edge\.mlpackage as \.onnx"):
        model.load()
    assert [(spec.dtype, spec.shape) for spec in (*model.inputs, *model.outputs)] == [
        ("float32", (1, 28, 28)),
        ("float32", (1, 10)),
    ]
    with Router(model, lambda x: "Coat", threshold=0.5) as router:
        check = router.check()
        assert not check.ok
        assert "Core ML runs on macOS alone" in check.lines[0]
        assert router.infer(models.fashion().images[0]).value == "Coat"


def test_without_coremltools(monkeypatch):
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeroute\[coreml\]'"):
        CoreMLModel(FASHION).load()


# --- packages that are wrong


def broken(path, change):
    """The shipped package with a change."""
    shutil.copytree(FASHION, path)
    change(path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: (p / "Manifest.json").unlink(), "is no Core ML model: its Manifest.json cannot be read"),
        (lambda p: (p / "Manifest.json").write_text("[]"), "is no Core ML model: its Manifest.json cannot be read"),
        (lambda p: (p / "Manifest.json").write_text("{"), "is no Core ML model: its Manifest.json cannot be read"),
        (
            lambda p: (p / "Manifest.json").write_text(
                (p / "Manifest.json").read_text().replace("com.apple.CoreML/m", "../../../../m")
            ),
            "names a file outside",
        ),
        (lambda p: (p / ROOT).write_bytes((p / ROOT).read_bytes()[:2000]), "is no Core ML model: Error parsing message"),
        (lambda p: (p / ROOT).write_bytes(b""), "is no Core ML model: it has no outputs"),
        (lambda p: (p / ROOT).unlink(), "is no Core ML model: "),
        (lambda p: (p / "Data/com.apple.CoreML/weights/weight.bin").unlink(), "Core ML cannot load"),
    ],
)
def test_a_package_that_is_wrong(core_ml, tmp_path, change, says):
    """It says what is, in one line."""
    with pytest.raises(ModelError, match=says) as e:
        CoreMLModel(broken(tmp_path / "m.mlpackage", change)).load()
    assert "\n" not in str(e.value)


def test_no_package_another_one_and_units_that_there_are_not(core_ml, tmp_path):
    """Each by whose fault it is."""
    with pytest.raises(ModelMissing, match="there is no model at"):
        CoreMLModel(tmp_path / "gone.mlpackage").load()
    other = broken(tmp_path / "m.mlpackage", lambda p: (p / "Data/com.apple.CoreML/weights/weight.bin").write_bytes(b"x"))
    with pytest.raises(ModelError, match="is not the expected model: its sha256 is"):
        CoreMLModel(other, card=FASHION.with_name("edge.mlpackage.json")).load()
    with pytest.raises(PolicyError, match=r'compute_units: did you mean "cpu_and_ne"\?'):
        CoreMLModel(FASHION, compute_units="cpu-and-ne")


def test_a_framework_that_does_not_take_it(core_ml, monkeypatch):
    """A newer specification than the system's, and a failure while it is compiled or run."""
    with monkeypatch.context() as old:
        old.setattr(Device, "maximum_supported_specification_version", staticmethod(lambda: 5))
        with pytest.raises(ModelError, match=r"it needs a newer macOS, its specification is version 7"):
            CoreMLModel(FASHION).load()

    def fails(feed):
        raise RuntimeError("Error Domain=com.apple.CoreML Code=0\nmore")

    framework(monkeypatch, fails)
    with pytest.raises(ModelError, match=r"fashion-edge failed to run: Error Domain=com\.apple\.CoreML Code=0$"):
        CoreMLModel(FASHION).run([models.fashion().images[0]])
    monkeypatch.setattr("coremltools.models.model._MLModelProxy.__init__", lambda *_: fails({}))
    with pytest.raises(ModelError, match=r"Core ML cannot load .*Error Domain"):
        CoreMLModel(FASHION).load()


# --- what there is beside arrays of a fixed shape


def test_several_outputs_and_one_of_them(core_ml, tmp_path):
    """As of every runtime."""
    path = built(tmp_path / "m.mlpackage")
    x = np.array([1, 0, 0, 0], np.float32)
    found = CoreMLModel(path).run([x, x * 2])
    assert {name: rows.shape for name, rows in found.items()} == {"doubled": (2, 4), "share": (2, 4)}
    assert CoreMLModel(path, output="doubled").run_one(x).tolist() == [[2, 0, 0, 0]]
    with pytest.raises(ModelError, match="has no output 'halved', named in policy or card: it has doubled, share"):
        CoreMLModel(path, output="halved").load()


def test_a_batch_of_many(core_ml, tmp_path):
    """Where the package limits them, they are run in parts."""
    inputs = [ct.TensorType(name="x", shape=(ct.RangeDim(1, 8), 4))]
    path = built(tmp_path / "m.mlpackage", (parts.get_new_symbol(), 4), inputs)
    model = CoreMLModel(path, output="doubled")
    rows = list(np.arange(80, dtype=np.float32).reshape(20, 4))
    runs = []
    model.load()
    predict = core_ml.made[-1].program
    core_ml.made[-1].predict = lambda feed, _: runs.append(len(feed["x"])) or predict(feed)
    assert model.run(rows).tolist() == (2 * np.array(rows)).tolist()
    assert runs == [8, 8, 4]
    assert model.inputs[0].shape == (-1, 4)


def test_sizes_that_are_not_listed(monkeypatch, tmp_path):
    """They are the caller's fault, and said as such."""

    def change(description):
        x = array(added(description.input, "x"), (1, 4))
        for size in (4, 8):
            x.enumeratedShapes.shapes.add().shape.extend((1, size))
        y = array(added(description.input, "y"), (1, 4))
        for least, most in ((1, 1), (2, -1)):
            y.shapeRange.sizeRanges.add(lowerBound=least, upperBound=most)
        array(added(description.output, "z"), ())

    framework(monkeypatch, lambda feed: {"z": feed["x"]})
    model = CoreMLModel(described(tmp_path / "m.mlmodel", change))
    feed = {"x": np.ones(8, np.float32), "y": np.ones(3, np.float32)}
    assert model.run_one(feed).tolist() == [[1] * 8]
    with pytest.raises(BadInput, match=r"x: it takes \[1, 4\] or \[1, 8\], got \[1, 5\]"):
        model.run_one({**feed, "x": np.ones(5, np.float32)})
    with pytest.raises(BadInput, match=r"y: it takes \[1, 2 or more\], got \[1, 1\]"):
        model.run_one({**feed, "y": np.ones(1, np.float32)})


def test_pictures_and_numbers(monkeypatch, tmp_path):
    """A picture is an array for the caller, and one of Pillow for coremltools."""
    pytest.importorskip("PIL.Image")

    def change(description):
        picture = added(description.input, "picture").type.imageType
        picture.height, picture.width, picture.colorSpace = 2, 3, picture.ColorSpace.Value("RGB")
        added(description.input, "grey").type.imageType.colorSpace = picture.ColorSpace.Value("GRAYSCALE")
        for axis in ("heightRange", "widthRange"):
            size = getattr(description.input[1].type.imageType.imageSizeRange, axis)
            size.lowerBound, size.upperBound = 1, 4
        added(description.input, "age").type.doubleType.SetInParent()
        added(description.output, "mean").type.doubleType.SetInParent()
        added(description.output, "name").type.stringType.SetInParent()
        added(description.output, "shares").type.dictionaryType.stringKeyType.SetInParent()

    seen = []

    def predict(feed):
        seen.append(feed)
        return {"mean": float(np.mean(feed["picture"])), "name": "cat", "shares": {"cat": 0.75, "dog": 0.25}}

    framework(monkeypatch, predict)
    path = described(tmp_path / "m.mlmodel", change)
    x = {"picture": np.full((2, 3, 3), 7, np.uint8), "grey": np.zeros((4, 1), np.uint8), "age": np.float64(30)}
    model = CoreMLModel(path)
    assert model.run([x])["mean"].tolist() == [7.0]
    assert [(type(seen[0][name]).__name__, seen[0][name].mode, seen[0][name].size) for name in ("picture", "grey")] == [
        ("Image", "RGB", (3, 2)), ("Image", "L", (1, 4)),
    ]  # fmt: skip
    assert seen[0]["age"] == 30.0
    assert type(seen[0]["age"]) is float
    with pytest.raises(BadInput, match=r"grey: it takes \[1, 1 to 4, 1 to 4\], got \[1, 5, 1\]"):
        model.run([{**x, "grey": np.zeros((5, 1), np.uint8)}])
    with Router(CoreMLModel(path, output="shares"), threshold=0.5) as router:
        answer = router.infer(x)
        assert (answer.value, answer.confidence) == ("cat", pytest.approx(0.75))
    with Router(path, threshold=0.5) as router:
        assert router.infer_many([x, x])[1].outputs["name"] == "cat"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda d: added(d.input, "x").type.stringType.SetInParent(),
            "its input x is a stringType: edgeroute runs models that take",
        ),
        (lambda d: array(added(d.input, "x"), (1,), "INVALID_ARRAY_DATA_TYPE"), "x is an array of INVALID_ARRAY_DATA_TYPE"),
        (lambda d: added(d.input, "x").type.imageType.SetInParent(), "a picture of the colour space INVALID_COLOR_SPACE"),
        (
            lambda d: added(d.output, "z").type.imageType.SetInParent(),
            "its output z is a imageType: convert the model with an array",
        ),
        (lambda d: added(d.functions, "f"), "has functions, which edgeroute does not run"),
        (lambda d: added(d.state, "s"), "has state, which edgeroute does not run"),
    ],
)
def test_what_is_not_run_is_refused(monkeypatch, tmp_path, change, says):
    """As the model is loaded, before any input."""

    def all_of_it(description):
        array(added(description.output, "y"), (1, 2))
        change(description)

    framework(monkeypatch, lambda feed: {})
    with pytest.raises(ModelError, match=says):
        CoreMLModel(described(tmp_path / "m.mlmodel", all_of_it)).load()


def test_keys_of_a_policy():
    """Those of the constructor."""
    section = next(
        one
        for one in settings.schema()["properties"]["edge"]["anyOf"][0]["anyOf"]
        if one.get("properties", {}).get("compute_units")
    )
    keys = section["properties"]
    assert keys["compute_units"]["enum"] == ["all", "cpu", "cpu_and_gpu", "cpu_and_ne"]
    assert {"path", "view", "card", "labels", "output", "kind", "score", "sha256", "none_found"} <= {*keys}
