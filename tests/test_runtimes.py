"""Runtimes of one's own: registered by suffix or entry point, with their keys in a policy; and what edgeroute reads of a model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib import metadata

import numpy as np
import pytest
from both import LONG

import edgeroute
from edgeroute import CallableModel, ModelError, OnnxModel, PolicyError, Router, RuntimeMissing, StopToken
from edgeroute import policy as settings
from edgeroute.edge import edge_model_members_and_fingerprints as members
from edgeroute.edge import runtimes_variants_ensemble as runtimes
from edgeroute.edge.concurrent_runs import runs_of
from edgeroute.edge.edge_model_members_and_fingerprints import DEFAULTS, EdgeMembers
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.testing import fresh_runtimes
from edgeroute.tools.server.serve import app, named_model
from edgeroute.types import TensorSpec

SOURCE = '''
"""A runtime of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


class Lookup:
    """Answers what its file says.

    Args:
        path: a text.
        threads: of it,
            and so on.
        delegate: what it runs on.
        words: further answers.
    """

    def __init__(self, path, *, threads: int = 1, delegate: Literal["cpu", "gpu"] = "cpu", words: tuple[str, ...] = (),
                 table: str | Path | None = None, session: Session | None = None, scale: float = 1.0, json: bool = False):
        if threads > 8:
            raise ValueError("it has 8 threads at most")
        self.path, self.name, self.given = path, Path(path).stem, (threads, delegate, words, table, scale, json)

    def run(self, inputs, cancel=None):
        return [(Path(self.path).read_text(), 0.9) for _ in inputs]


class Names(Lookup):
    """One that depends on a file beside its own."""

    @property
    def files(self):
        return [Path(self.path).with_name("words.txt")]


class Needs(Lookup):
    """One that needs a key."""

    def __init__(self, path: Path, device: str):
        super().__init__(path)
'''.replace("session: Session | None = None, ", "session: object = None, ")


@pytest.fixture
def lookup(tmp_path, monkeypatch):
    """A module `looks` with runtimes, and none of them registered yet. -> a file for one."""
    (tmp_path / "looks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "looks", raising=False)
    (tmp_path / "m.look").write_text("hello")
    with fresh_runtimes():
        yield tmp_path / "m.look"


@pytest.fixture
def policy(tmp_path):
    """Writes a policy with these lines under [edge], and loads it."""

    def load(text="", model="m.look"):
        path = tmp_path / "policy.toml"
        path.write_text(f'[edge]\npath = "{model}"\n{text}\n')
        return settings.load(path).arguments(tmp_path)

    return load


# --- registration


def test_a_registered_runtime_runs_its_files(lookup):
    """By suffix, capitals or not, as text and as a path; it is imported when the first is to be run."""
    edgeroute.register(".look", "looks:Lookup")
    assert "looks" not in sys.modules
    loud = lookup.with_name("M.LOOK")
    loud.write_text("loud")
    for path, value in ((lookup, "hello"), (str(lookup), "hello"), (loud, "loud")):
        with Router(path) as router:
            assert router.infer(1).value == value
    assert "looks" in sys.modules


def test_the_longest_suffix_counts(lookup):
    """And what is registered goes before what is built in."""
    edgeroute.register(".look", "nowhere:None")
    edgeroute.register(".b.look", "looks:Lookup")
    path = lookup.rename(lookup.with_name("a.b.look"))
    with Router(path) as router:
        assert router.infer(1).value == "hello"
    edgeroute.register(".onnx", "looks:Lookup")
    with Router(path.rename(path.with_name("m.onnx"))) as router:
        assert router.infer(1).value == "hello"


@pytest.mark.parametrize(
    ("suffix", "target", "says"),
    [
        ("look", "looks:Lookup", r"a suffix with its dot, as in \"\.tflite\", not 'look'"),
        (".a/b", "looks:Lookup", "a suffix with its dot"),
        (5, "looks:Lookup", "a suffix with its dot"),
        (".look", "looks.Lookup", r"the class as text, \"package.module:Class\", not 'looks.Lookup'"),
        (".look", OnnxModel, "the class as text"),
    ],
)
def test_what_cannot_be_registered(suffix, target, says):
    """Is refused at once, and says what is to be written."""
    with pytest.raises(PolicyError, match=says):
        edgeroute.register(suffix, target)


def test_a_runtime_that_is_not_there(lookup):
    """Without one the suffixes that have one are named; without its module or class, what is missing."""
    with pytest.raises(
        PolicyError,
        match=r"no runtime for .*m\.look'?: expected a file that ends in .*\.onnx.*; another one is added by edgeroute\.register",
    ):
        Router(lookup)
    edgeroute.register(".look", "looked:Lookup")
    with pytest.raises(
        RuntimeMissing, match=r"the runtime for \.look, looked:Lookup, cannot be imported: No module named 'looked'"
    ):
        Router(lookup)
    edgeroute.register(".look", "looks:Lokup")
    with pytest.raises(PolicyError, match="registered as looks:Lokup, and looks has no class Lokup"):
        Router(lookup)


def dist(folder, name, points):
    """An installed package with entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgeroute.runtimes]\n" + points)


def test_entry_points_of_installed_packages(lookup, tmp_path, monkeypatch):
    """They are looked for when nothing else fits; two for one suffix need a decision."""
    dist(tmp_path, "looks", "look = looks:Lookup\n.other = looks:Needs\n")
    real, looked = metadata.entry_points, []
    monkeypatch.setattr(metadata, "entry_points", lambda **options: looked.append(options) or real(**options))
    assert runtimes.suffix_of("m.onnx") == ".onnx"
    assert looked == []
    with Router(lookup) as router:
        assert router.infer(1).value == "hello"
    assert {".look", ".onnx", ".other"} <= {*runtimes.suffixes()}
    assert looked == [{"group": "edgeroute.runtimes"}]
    dist(tmp_path, "more", "look = more:Lookup\n")
    with fresh_runtimes():
        with pytest.raises(PolicyError, match=r" run \.look: choose by edgeroute\.register\('\.look', "):
            Router(lookup)
        edgeroute.register(".look", "looks:Lookup")
        with Router(lookup) as router:
            assert router.infer(1).value == "hello"


def test_what_is_registered_for_a_block_is_forgotten(lookup):
    """What was registered before is there again, and is not there within."""
    edgeroute.register(".before", "looks:Lookup")
    with fresh_runtimes():
        assert ".before" not in runtimes.suffixes()
        edgeroute.register(".look", "looks:Lookup")
        assert ".look" in runtimes.suffixes()
    assert {".before", ".look"} & {*runtimes.suffixes()} == {".before"}


def test_nothing_of_this_is_imported_early():
    """Neither `import edgeroute` nor a router of a function looks for entry points."""
    code = (
        "import sys, edgeroute\nr = edgeroute.Router(lambda x: ('a', 0.9))\nr.infer(1); r.close()\n"
        "assert 'importlib.metadata' not in sys.modules, 'entry points'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- policies


def test_its_keys_are_its_arguments(lookup, policy):
    """With the types of their annotations; a path starts from the policy's folder; what is not given is the class's own."""
    edgeroute.register(".look", "looks:Lookup")
    assert policy()["edge"].given == (1, "cpu", (), None, 1.0, False)
    model = policy('threads = 2\ndelegate = "gpu"\nwords = ["a", "b"]\ntable = "t/../t.txt"\nscale = 2\njson = true')["edge"]
    assert model.given == (2, "gpu", ("a", "b"), lookup.with_name("t.txt"), 2.0, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thread = 2", 'edge.thread: there is no such key: did you mean "threads"?'),
        (
            "providers = []",
            "edge.providers: there is no such key: expected one of path, view, variant, group, threads, delegate, words, table, ",
        ),
        ('threads = "2"', 'edge.threads: expected a valid integer, found "2"'),
        ('delegate = "gpus"', 'edge.delegate: found "gpus": did you mean "gpu"?'),
        ("words = 5", "edge.words: expected a valid array, found 5"),
        ("words = [5]", "edge.words: expected a valid string, found 5"),
        ("path = 5", "edge.path"),
    ],
)
def test_what_is_wrong_with_a_key(lookup, policy, tmp_path, text, says):
    """Is said as of any key, with its place and the nearest name."""
    edgeroute.register(".look", "looks:Lookup")
    with pytest.raises(PolicyError) as caught:
        policy(text) if not text.startswith("path") else settings.load(_written(tmp_path, f"[edge]\n{text}\n"))
    assert f"policy.toml: {says}" in str(caught.value)


def _written(folder, text):
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_several_at_once(lookup, tmp_path):
    """Mistakes are told together, with those of the rest of the policy, each with its place."""
    edgeroute.register(".look", "looks:Lookup")
    path = _written(tmp_path, 'mod = 1\n[[edge]]\npath = "m.look"\nthread = 2\n[[edge]]\npath = "m.onnx"\ndelegate = "gpu"\n')
    with pytest.raises(PolicyError) as caught:
        settings.load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any(line.startswith(f"{path}: mode: found 1") for line in lines)
    assert any(line.startswith(f'{path}: edge[0].thread: there is no such key: did you mean "threads"') for line in lines)
    assert any(line.startswith(f"{path}: edge[1].delegate: there is no such key") for line in lines)


def test_what_a_class_needs_or_refuses(lookup, policy, tmp_path):
    """A key without a default is required; the class's own refusal is the policy's; a runtime that is not there, too."""
    edgeroute.register(".look", "looks:Needs")
    with pytest.raises(PolicyError, match=r"edge\.device: is missing"):
        policy()
    edgeroute.register(".look", "looks:Lookup")
    with pytest.raises(
        PolicyError, match=r"the runtime for \.look, Lookup, does not take what it is given: it has 8 threads at most"
    ):
        policy("threads = 9")
    edgeroute.register(".look", "looked:Lookup")
    with pytest.raises(PolicyError, match=r"edge\.path: the runtime for \.look, looked:Lookup, cannot be imported"):
        policy()


def test_variables_override_it(lookup, policy, monkeypatch):
    """Those of the runtime that the file's model has."""
    edgeroute.register(".look", "looks:Lookup")
    monkeypatch.setenv("EDGEROUTE_EDGE__DELEGATE", "gpu")
    monkeypatch.setenv("EDGEROUTE_EDGE__THREADS", "3")
    assert policy()["edge"].given[:2] == (3, "gpu")
    monkeypatch.setenv("EDGEROUTE_EDGE__DELEGAT", "gpu")
    with pytest.raises(
        PolicyError, match='EDGEROUTE_EDGE__DELEGAT: there is no such variable: did you mean "EDGEROUTE_EDGE__DELEGATE"'
    ):
        policy()


def test_a_reload_reuses_an_unchanged_model(lookup, policy):
    """Changed settings, or files in a folder, make another."""
    edgeroute.register(".look", "looks:Lookup")
    first = policy("threads = 2")["edge"]
    assert policy("threads = 2")["edge"] is first
    assert policy("threads = 3")["edge"] is not first
    folder = lookup.with_name("f.look")
    (folder / "deep").mkdir(parents=True)
    made = policy(model="f.look")["edge"]
    assert policy(model="f.look")["edge"] is made
    (folder / "deep" / "w").touch()
    assert policy(model="f.look")["edge"] is not made
    (lookup.parent / "elsewhere").mkdir()
    (folder / "linked").symlink_to(lookup.parent / "elsewhere", target_is_directory=True)
    made = policy(model="f.look")["edge"]
    (lookup.parent / "elsewhere" / "v").touch()
    assert policy(model="f.look")["edge"] is not made


def test_a_reload_looks_at_the_files_that_the_model_names(lookup, policy):
    """Those that no key of the policy names, as its fingerprint does."""
    edgeroute.register(".look", "looks:Names")
    made = policy()["edge"]
    assert policy()["edge"] is made
    lookup.with_name("words.txt").write_text("other")
    assert policy()["edge"] is not made


def test_the_schema_knows_them(lookup, capsys):
    """With the texts of the docstring; the reference in the docs has what is built in alone."""
    plain = settings.schema(built_in=True)
    assert plain["properties"]["edge"]["anyOf"][0]["anyOf"][0] == {"$ref": "#/$defs/Edge"}
    edgeroute.register(".look", "looks:Lookup")
    edgeroute.register(".gone", "looked:Lookup")
    one = settings.schema()["properties"]["edge"]["anyOf"][0]
    assert one["anyOf"][0] == {"$ref": "#/$defs/Edge"}
    *runtimes, variants = one["anyOf"][1:]
    assert set(variants["properties"]) == {"variant", "view"}
    (made,) = [own for own in runtimes if "look" in own["properties"]["path"]["pattern"]]
    assert made["properties"]["threads"] == {"type": "integer", "default": 1, "description": "of it, and so on."}
    assert made["properties"]["delegate"]["enum"] == ["cpu", "gpu"]
    assert made["properties"]["path"]["pattern"] == r"(\.look|\.active)$", "a model of a catalog may be one"
    patterns = [own["properties"]["path"]["pattern"] for own in runtimes]
    assert {*(rf"(\.{end}|\.active)$" for end in ("gguf", "tflite", "mlpackage")), "^(http:|https:|unix:)"} <= {*patterns}
    assert "look" not in json.dumps(settings.schema(built_in=True))
    json.dumps(settings.schema())


# --- members


class Recorder:
    """A model that notes which of its members are asked for, and has none but those required."""

    def __init__(self):
        object.__setattr__(self, "asked", set())

    def __getattribute__(self, name):
        if not name.startswith("__") and name != "asked":
            object.__getattribute__(self, "asked").add(name)
        return object.__getattribute__(self, name)

    name = "recorder"

    def run(self, inputs, cancel=None):
        """Sure of all."""
        return [("a", 0.9) for _ in inputs]


def test_no_member_is_read_that_is_not_documented(tmp_path):
    """By a router in all that it does, and by none of the programs on top."""
    model = Recorder()
    with Router(model, lambda _: "cloud", threshold=0.5, state=tmp_path) as router:
        (
            router.infer(1),
            router.infer_many([1, 2]),
            list(router.refine(1)),
            router.decide(1),
            router.check(),
            router.fingerprints(),
            router.stats(),
        )
        with router.stream(1) as stream:
            list(stream)
    documented = {name for kind in EdgeMembers.__mro__ for name in vars(kind) if not name.startswith("_")}
    assert set(DEFAULTS) | {"name", "run"} == documented
    assert model.asked - {"predict", "predict_proba"} <= documented  # whether it is an estimator, which is told what to write


class Plain:
    """A model with nothing but a name."""

    name = "plain"

    def run(self, inputs, cancel=None):
        """Logits."""
        return np.array([[0.0, 5.0]] * len(inputs))


def test_what_is_optional_has_a_default():
    """Logits, the index as the value, no file: and None is as good as missing."""
    model = Plain()
    for name in DEFAULTS:
        with Router(model) as router:
            answer = router.infer(1)
            assert (answer.value, answer.source) == (1, "edge")
            assert router.check().lines[0] == "edge: plain is ready"
        setattr(model, name, None)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"name": ""},
            "Odd has a run but no name: give it one, or pass a model file's path or a function",
        ),
        ({"run_one": 5}, "plain: run_one is a int, and no method"),
        ({"close": "later"}, "plain: close is a str, and no method"),
        ({"parallel": 0}, "plain: parallel= takes a whole number, 1 or more, not 0"),
        ({"parallel": True}, "plain: parallel= takes a whole number, 1 or more, not True"),
        ({"version": 3}, "plain: version is text"),
        ({"kind": "numbers"}, "there is no kind of outputs 'numbers'"),
    ],
)
def test_a_member_of_another_type(changed, says):
    """Is refused when the router is made."""
    odd = type("Odd", (Plain,), changed)()
    with pytest.raises(PolicyError, match=says):
        Router(odd)


def test_a_class_is_no_model():
    """It is to be made first."""
    with pytest.raises(PolicyError, match=r"edge= takes a model, and Plain is a class: pass Plain\(\.\.\.\)"):
        load(Plain)


@pytest.mark.parametrize("edge", [Plain(), len], ids=["model", "function"])
def test_options_of_a_runtime_are_refused_without_a_path(edge):
    """There is none that would take them."""
    with pytest.raises(PolicyError, match="threads: for the runtime of a path, and edge= is no path, but a "):
        load(edge, threads=2)


class Softmax(Plain):
    """Gives probabilities, and does not call them so; its tensors are run by the `run_feed` of a test."""

    inputs = (TensorSpec("x", "float32", (-1, 2)),)
    outputs = (TensorSpec("y", "float32", (-1, 2)),)

    def __init__(self, run_feed):
        self.given = []
        self.run_feed = run_feed.__get__(self)


def alone(self, feed):
    """Takes the tensors alone."""
    self.given.append(feed)
    return np.full((len(feed["x"]), 2), 0.5)


def named_otherwise(self, tensors, token):
    """Takes a stop token, whatever that is called."""
    self.given.append(token)
    return alone(self, tensors)


def with_default(self, feed, cancel=None):
    """Takes one if it is given."""
    return named_otherwise(self, feed, cancel)


@pytest.mark.parametrize("run_feed", [alone, named_otherwise, with_default])
def test_run_feed_takes_a_stop_token_or_none(run_feed):
    """`check` tries zeros by either form, and finds probabilities; `edgeroute serve` runs either."""
    from test_serve import running

    model = Softmax(run_feed)
    model.kind = "logits"
    with Router(model) as router:
        checked = router.check()
    assert not checked.ok
    assert 'kind = "probabilities"' in checked.lines[0]
    *token, feed = model.given
    assert feed["x"].tolist() == [[0, 0]]
    assert [type(one) for one in token] == ([] if run_feed is alone else [StopToken])
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}]}
    with running(app([model])) as client:
        assert client.post("/v2/models/plain/infer", json=body).json()["outputs"][0]["data"] == [0.5, 0.5]
    assert (model.given[-1]["x"].tolist(), model.given[-2]) == ([[3, 4]], feed if run_feed is alone else None)


def test_run_feed_of_a_native_function():
    """One that does not say what it takes is given the tensors alone; what it raises is its own."""
    model = Plain()
    model.run_feed = dict
    assert members.feed_of(model)({"x": 1}, None) == {"x": 1}
    model.run_feed = max  # has no signature
    assert members.feed_of(model)({"x": 1}, None) == "x"
    assert members.feed_of(Plain()) is None


@pytest.mark.parametrize("call", ["infer", "infer_many", "stream"])
def test_parallel_holds_runs_back(call):
    """No more go at a time than it says, in two routers together; a reader of a stream holds its place."""
    running, most, lock = 0, 0, threading.Lock()

    def edge(x):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        yield "a"
        with lock:
            running -= 1
        return 0.9

    model = CallableModel(edge, parallel=2)
    with Router(model) as one, Router(model) as two:

        def ask(router):
            for _ in range(5):
                if call == "stream":
                    with router.stream(1) as stream:
                        assert list(stream) == ["a"]
                else:
                    assert getattr(router, call)(1 if call == "infer" else [1])

        threads = [threading.Thread(target=ask, args=(router,)) for router in (one, two) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert most <= 2


def test_a_stop_ends_the_wait_for_a_turn():
    """At the deadline: the run never began. A run in the thread of another is refused, as it would wait for itself."""
    gate, begun, runs = threading.Event(), threading.Event(), []

    def edge(x):
        runs.append(x)
        if x == "again":
            return router.infer("inner").value, 0.9
        begun.set()
        gate.wait(LONG)
        return x, 0.9

    with Router(CallableModel(edge, parallel=1), lambda x: "cloud", threshold=0.5) as router:
        first = threading.Thread(target=router.infer, args=("first",))
        first.start()
        assert begun.wait(LONG)
        assert router.infer("second", deadline=LONG, mode="prefer_cloud").value == "cloud"
        with pytest.raises(Exception, match="no answer"):
            router.infer("third", deadline=0.5, mode="only_edge")
        gate.set()
        first.join(LONG)
        assert router.infer("again").value == "cloud"
    assert runs.count("third") == 0


def test_a_model_is_closed_after_the_runs_of_all_its_routers():
    """Not under that of another."""
    gate, begun, told = threading.Event(), threading.Event(), []

    class Closes(Plain):
        def run(self, inputs, cancel=None):
            begun.set()
            gate.wait(LONG)
            told.append("ran")
            return super().run(inputs)

        def close(self):
            told.append("closed")

    model = Closes()
    with Router(model) as one:
        thread = threading.Thread(target=one.infer, args=(1,))
        thread.start()
        assert begun.wait(LONG)
        Router(model).close()
        assert told == []
        gate.set()
        thread.join(LONG)
    assert told == ["ran", "closed", "closed"]


# --- serve


def test_any_model_is_served():
    """A callable that says what it takes; what it gives is tried with zeros; one that is awaited; outputs by name."""

    async def awaited(x):
        return x[:2]

    spec = [TensorSpec("x", "float32", (-1, 3))]
    models = [
        CallableModel(lambda x: x * 2, name="double", inputs=spec),
        CallableModel(awaited, name="awaited", inputs=spec),
        CallableModel(lambda x: x["a"] + x["b"], name="sum", inputs=[TensorSpec(name, "float32", (-1, 3)) for name in "ab"]),
        CallableModel(lambda x: x, name="told", inputs=spec, outputs=[TensorSpec("y", "float32", (-1, 3))]),
    ]
    from test_serve import running

    with running(app(models)) as client:
        about = client.get("/v2/models/awaited").json()
        assert about["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 2]}]
        assert about["platform"] == "edgeroute_callablemodel"

        def ask(name, *inputs):
            body = {"inputs": [{"name": n, "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]} for n in inputs]}
            (output,) = client.post(f"/v2/models/{name}/infer", json=body).json()["outputs"]
            return output["name"], output["data"]

        assert ask("double", "x") == ("output", [2, 4, 6, 8, 10, 12])
        assert ask("awaited", "x") == ask("awaited", "x") == ("output", [1, 2, 4, 5])
        assert ask("sum", "a", "b") == ("output", [2, 4, 6, 8, 10, 12])
        assert ask("told", "x") == ("y", [1, 2, 3, 4, 5, 6])


def test_what_cannot_be_served():
    """It is said what to write: inputs, outputs, or an array in place of an answer."""
    spec = [TensorSpec("x", "float32", (-1, 3))]
    for model, error, says in (
        (
            CallableModel(lambda x: x, name="f"),
            PolicyError,
            r"f declares no inputs: declare them, .* as in CallableModel\(f, inputs=\[TensorSpec",
        ),
        (
            CallableModel(lambda x: ("a", 0.9), name="f", inputs=spec),
            ModelError,
            "f returns tuples, and only tensors can be served",
        ),
        (
            CallableModel(lambda x: 1 / 0, name="f", inputs=spec),
            PolicyError,
            "f raised ZeroDivisionError on zeros: division by zero. Declare its outputs",
        ),
    ):
        with pytest.raises(error, match=says):
            app([model])


def test_a_model_in_python_by_its_name(lookup, tmp_path, monkeypatch):
    """A server takes module:name, as `edgeroute serve` does, from the folder where it is called."""
    from test_serve import running

    (tmp_path / "doubling_module.py").write_text(
        "from edgeroute import CallableModel\nfrom edgeroute.types import TensorSpec\n"
        "def double(x):\n    return x * 2\n"
        "model = CallableModel(double, inputs=[TensorSpec('x', 'float32', (-1, 1))])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    model = named_model("doubling_module:model")
    with running(app([model])) as client:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [4]}]}
        reply = client.post("/v2/models/double/infer", json=body).json()
    assert (model.name, reply["outputs"][0]["data"]) == ("double", [8])
    for name, says in (("doubling_module:nothing", "has no attribute 'nothing'"), ("nowhere:model", "No module named 'nowhere'")):
        with pytest.raises(PolicyError, match=f"{name} is no model in Python: .*{says}"):
            named_model(name)
    edgeroute.register(".look", "looks:Lookup")
    assert named_model(lookup, 2).given[0] == 2


def test_runs_are_counted_by_model():
    """They are the same wherever it is used; where nothing limits them they are not counted."""
    plain, one = CallableModel(lambda x: x), CallableModel(lambda x: x, parallel=1)
    assert (members.counts_runs(plain), members.counts_runs(one)) == (False, True)
    kept = runs_of(one)
    assert runs_of(one) is kept
    assert runs_of(CallableModel(lambda x: x, parallel=1)) is not kept
    assert members.is_model(plain)
    assert not members.is_model(lambda x: x)


def test_a_model_that_is_in_no_file(lookup, tmp_path):
    """Is made from a policy: the class knows where its model is, such as in a package."""
    (tmp_path / "nowhere.py").write_text(
        "class Nowhere:\n    def __init__(self, path):\n        self.name = 'nowhere'\n\n"
        "    def run(self, inputs, cancel=None):\n        return [('here', 0.9) for _ in inputs]\n"
    )
    edgeroute.register(".nowhere", "nowhere:Nowhere")
    with Router.from_policy(_written(tmp_path, 'mode = "only_edge"\n[edge]\npath = "any.nowhere"\n')) as router:
        assert router.infer(1).value == "here"
