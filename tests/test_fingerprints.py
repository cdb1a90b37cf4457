"""What a certificate and the cache know a model by: files, card, settings, version; and what is said where nothing tells."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import onnx
import pytest
import routes
from both import flat
from onnx import TensorProto, helper, numpy_helper

from edgeroute import Cache, CallableModel, Ensemble, Function, OnnxModel, Options, PolicyError, Router
from edgeroute.confidence import calibrate
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.edge.edge_model_members_and_fingerprints import fingerprint as of_model
from edgeroute.edge.onnx import external_data
from edgeroute.stores.cache import fingerprint

N = 400


def edge_of(model, cloud=lambda _: "cloud"):
    """The fingerprint of an edge in a router."""
    with Router(model, cloud, threshold=0.5) as router:
        return router.fingerprints()["edge"]


def logits(path, weights, *, external=""):
    """A model of two classes, logits = x * weights, whose weights may be in a file beside it."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.asarray(weights, np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=bool(external), location=external or None, size_threshold=0)
    return path


@pytest.fixture
def model(tmp_path):
    """A model file."""
    return logits(tmp_path / "m.onnx", [1, 2])


class Holds:
    """What has no identity of its own."""

    def predict(self, _):
        """Sure of it."""
        return "a", 0.9


held = Holds()


def holds(x):
    """A function that uses an object."""
    return held.predict(x)


def constant(x):
    """A function of constants."""
    return "a", 0.9


# --- callables


def test_a_function_with_a_number_of_any_length():
    """Python writes no int of more than 4,300 decimal digits."""
    prints = [fingerprint(lambda x, least=least: x > least) for least in (10**5000, 10**5000 + 1, 10**5000)]
    assert prints[0] == prints[2] != prints[1]


def test_a_plain_function_is_known_by_its_code():
    """As it is, in a `CallableModel`, and in each router anew; another one is another."""
    assert edge_of(constant) == edge_of(constant) == edge_of(CallableModel(constant))
    assert UNIDENTIFIED not in edge_of(constant)
    assert edge_of(constant) != edge_of(lambda x: ("b", 0.9))
    assert edge_of(constant) != edge_of(CallableModel(constant, labels=("a", "b")))
    assert edge_of(constant) != edge_of(CallableModel(constant, kind="probabilities"))


def over(kept):
    """A function that uses what may change."""
    return lambda _: (kept[0], 0.9)


UNKNOWN = {
    "a function that uses an object": holds,
    "a bound method": held.predict,
    "an object": functools.partial(holds),
    "a closure over a list": over([1]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_version_identifies_any_callable(name):
    """Without one it is another thing each time; with one it is the same in each router, and a new version is another thing."""
    function = UNKNOWN[name]
    assert edge_of(function) != edge_of(function)
    assert UNIDENTIFIED in edge_of(function)
    one, two = (edge_of(CallableModel(function, version=version)) for version in ("1", "2"))
    assert one == edge_of(CallableModel(function, version="1")) != two
    assert UNIDENTIFIED not in one + two


def test_a_version_is_of_one_function():
    """Two functions in version 1 are two; a function may have it as an attribute, also one that another calls."""
    assert edge_of(CallableModel(holds, version="1")) != edge_of(CallableModel(constant, version="1"))

    def inner(x):
        return held.predict(x)

    def outer(x):
        return inner(x)

    assert UNIDENTIFIED in edge_of(outer)
    inner.version = "1"
    first = edge_of(outer)
    assert first == edge_of(outer)
    assert UNIDENTIFIED not in first
    inner.version = "2"
    assert edge_of(outer) != first


def certificate(router):
    """One that holds for the router's models."""
    score = np.linspace(0, 1, N)
    return calibrate(score, np.ones(N, bool), max_error=0.1, fingerprints=router.fingerprints())


def test_what_a_certificate_says_without_a_version():
    """That the model cannot be identified, and what to give; with versions it applies, until one of them changes."""
    edge, cloud = CallableModel(holds), Function(held.predict)
    with Router(edge, cloud, threshold=0.5) as router:
        made = certificate(router)
    with Router(edge, cloud, threshold=made) as router:
        answer = router.infer(1)
        assert routes.uncalibrated(answer)
        assert 'CallableModel(f, version="1")' in routes.label(answer)
        assert 'Function(f, version="1")' in routes.label(answer)
    with pytest.raises(PolicyError, match="cannot be identified: give version="):
        Router(edge, cloud, threshold=made, options=Options(uncalibrated="error"))
    known = {"edge": CallableModel(holds, version="1"), "cloud": Function(held.predict, version="7")}
    with Router(**flat(**known, threshold=made)) as router:
        assert routes.uncalibrated(router.infer(1))
    with Router(**flat(**known, threshold=0.5)) as router:
        made = certificate(router)
    with Router(**flat(**known, threshold=made, uncalibrated="error")) as router:
        assert routes.label(router.infer(1)) == made.label
    for changed in ({"edge": CallableModel(holds, version="2")}, {"cloud": Function(held.predict, version="8")}):
        with Router(**flat(**{**known, **changed}, threshold=made)) as router:
            assert routes.uncalibrated(router.infer(1))


def test_a_version_is_text():
    """A number would be another version than its text."""
    for make in (lambda: Router(CallableModel(constant, version=1)), lambda: Function(constant, version=1)):
        with pytest.raises(PolicyError, match='version is text, as in version="1", and not a int'):
            make()


class Own:
    """A model of one's own, in memory."""

    name = "own"

    def run(self, inputs, cancel=None):
        """Sure of all."""
        return [("a", 0.9) for _ in inputs]


def test_an_object_has_a_version_or_settings():
    """As members; without either it is not known."""
    bare, versioned, told = Own(), Own(), Own()
    assert UNIDENTIFIED in edge_of(bare)
    versioned.version = "1"
    told.settings = {"gain": 2, "of": [1.5, None, {"b"}, np.float32(1), np.zeros(2)], "by": constant}
    assert edge_of(versioned) == edge_of(versioned)
    assert edge_of(told) == edge_of(told) != edge_of(versioned)
    before = edge_of(told)
    told.settings = {**told.settings, "gain": 3}
    assert edge_of(told) != before
    told.settings = {**told.settings, "client": object()}
    assert edge_of(told) != edge_of(told)
    told.version = "1"
    assert edge_of(told) == edge_of(told)
    told.settings = ["gain"]
    with pytest.raises(PolicyError, match="the edge 'own': settings is a mapping of names to values, and not a list"):
        edge_of(told)


# --- files


def test_the_card_counts_wherever_it_is(model, tmp_path):
    """Beside the model, and explicit: its content, not its place."""
    cards = [{"labels": ["a", "b"]}, {"labels": ["b", "a"]}]
    found = []
    for path in (tmp_path / "m.json", tmp_path / "elsewhere.json"):
        for card in cards:
            path.write_text(json.dumps(card))
            found.append(edge_of(model if path.stem == "m" else OnnxModel(model, card=path)))
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]


def test_a_certificate_notices_another_card(model, tmp_path):
    """Labels in another order are another model."""
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"labels": ["a", "b"]}))
    with Router(OnnxModel(model, card=card), constant, threshold=0.5) as router:
        made = certificate(router)
    with Router(OnnxModel(model, card=card), constant, threshold=made) as router:
        assert routes.label(router.infer(np.array([0, 9], np.float32))) == made.label
    card.write_text(json.dumps({"labels": ["b", "a"]}))
    with Router(OnnxModel(model, card=card), constant, threshold=made) as router:
        assert routes.uncalibrated(router.infer(np.array([0, 9], np.float32)))


@pytest.mark.parametrize("name", ["weights.bin", "deep/weights.bin", "w" * 200])
def test_external_data_counts(tmp_path, name):
    """Weights in a file beside an ONNX model: another file is another model, though the .onnx is the same."""
    (tmp_path / "deep").mkdir()
    path = logits(tmp_path / "m.onnx", [1, 2], external=name)
    before, graph = edge_of(path), path.read_bytes()
    assert external_data(path) == [tmp_path / name]
    (tmp_path / name).write_bytes(np.float32([2, 1]).tobytes())
    assert path.read_bytes() == graph
    assert edge_of(path) != before


@pytest.mark.parametrize("by", ["policy", "argument"])
def test_a_reload_takes_what_a_fingerprint_sees(tmp_path, by):
    """Other weights beside the same .onnx are another model, which is loaded; an unchanged one stays as it is."""
    path = logits(tmp_path / "m.onnx", [1, 2], external="w.bin")
    file = tmp_path / "policy.toml"
    edge, cloud = '[edge]\npath = "m.onnx"\n', '[cloud]\nurl = "http://127.0.0.1:9/v2/models/none"\n'
    file.write_text(edge if by == "policy" else cloud)
    more = {} if by == "policy" else {"edge": path, "threshold": 0}
    x = np.array([2, 3], np.float32)
    with Router.from_policy(file, **more) as router:
        known, backend = router.fingerprints(), router.engine.snapshot.backends[0]
        assert router.infer(x).value == 1
        router.reload()
        assert router.engine.snapshot.backends[0] is backend
        other = tmp_path / "new"
        other.write_bytes(np.float32([2, 1]).tobytes())
        other.replace(tmp_path / "w.bin")
        assert router.fingerprints() != known
        router.reload()
        assert router.infer(x).value == 0


def test_external_data_is_looked_for_beside_the_model_alone(tmp_path):
    """As onnxruntime does; a place in the metadata is none, and no model is no error yet."""
    inner = tmp_path / "inner"
    inner.mkdir()
    path = logits(inner / "m.onnx", [1, 2], external="w.bin")
    (tmp_path / "secret").write_bytes(b"x")
    data = path.read_bytes().replace(b"\x12\x05w.bin", b"\x12\x05../se")
    assert data != path.read_bytes()
    path.write_bytes(data)
    assert external_data(path) == []
    plain = onnx.load(logits(inner / "p.onnx", [1, 2]))
    plain.metadata_props.add(key="location", value="Paris")
    onnx.save(plain, inner / "p.onnx")
    assert external_data(inner / "p.onnx") == []
    assert external_data(inner / "none.onnx") == []
    (inner / "empty.onnx").touch()
    assert external_data(inner / "empty.onnx") == []


def test_a_folder_counts_with_all_that_is_in_it(tmp_path):
    """Names and contents, however deep; where it lies does not count, and a link in a circle ends."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "deep").mkdir(parents=True)
    (one / "deep" / "a").write_bytes(b"a")
    (one / "b").write_bytes(b"b")
    shutil.copytree(one, two)
    assert fingerprint(one) == fingerprint(two)
    seen = {fingerprint(one)}
    (two / "deep" / "a").write_bytes(b"c")
    seen.add(fingerprint(two))
    (two / "deep" / "a").rename(two / "deep" / "z")
    seen.add(fingerprint(two))
    (two / "b").unlink()
    seen.add(fingerprint(two))
    (two / "deep" / "round").symlink_to(two)
    seen.add(fingerprint(two))
    assert len(seen) == 4  # the link adds no file
    made = Own()
    made.path = one
    before = edge_of(made)
    (one / "new").touch()
    assert edge_of(made) != before


def test_providers_count_as_they_are(model):
    """Those that it runs on: a downgrade that is allowed is the provider it ends with. Threads do not count."""
    cpu = edge_of(OnnxModel(model))
    assert edge_of(OnnxModel(model, threads=2)) == cpu
    assert (
        edge_of(OnnxModel(model, providers=["NoneSuchExecutionProvider", "CPUExecutionProvider"], on_downgrade="record")) == cpu
    )
    asked = OnnxModel(model, providers=["NoneSuchExecutionProvider", "CPUExecutionProvider"])
    assert of_model(asked, fingerprint) != cpu


def test_an_ensemble_has_its_models(model, tmp_path):
    """Each with its card; one that cannot be identified is none, unless the ensemble has a version."""
    other = logits(tmp_path / "n.onnx", [3, 4])
    before = edge_of(Ensemble([model, other]))
    (tmp_path / "n.json").write_text(json.dumps({"name": "n"}))
    assert edge_of(Ensemble([model, other])) != before
    unknown = [model, CallableModel(holds)]
    assert UNIDENTIFIED in edge_of(Ensemble(unknown))
    assert edge_of(Ensemble(unknown, version="1")) == edge_of(Ensemble(unknown, version="1"))


# --- the cache


def test_cache_keys_follow(model, tmp_path):
    """A store that outlives a router has the answers of the same model, and none of another."""
    cache, x = Cache(), np.array([0, 9], np.float32)
    for make, sources in (
        (lambda: CallableModel(holds, version="1"), ["edge", "cache"]),
        (lambda: CallableModel(holds, version="2"), ["edge", "cache"]),
        (lambda: CallableModel(holds), ["edge", "edge"]),
        (lambda: OnnxModel(model, card=tmp_path / "c.json"), ["edge", "cache"]),
    ):
        (tmp_path / "c.json").write_text("{}")
        found = []
        for _ in range(2):
            with Router(make(), cache=cache) as router:
                found.append(router.infer(x).source)
        assert found == sources
    (tmp_path / "c.json").write_text(json.dumps({"output": {"kind": "probabilities"}}))
    with Router(OnnxModel(model, card=tmp_path / "c.json"), cache=cache) as router:
        assert router.infer(x).source == "edge"
