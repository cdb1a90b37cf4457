"""What a new user writes first: the packaged pair by name, the documentation, and arguments that are not there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from both import flat, sure, unsure
from commands import cli

import edgeroute
from edgeroute import AsyncRouter, CallableModel, DeadlineExceeded, OnnxModel, OpenInference, Options, PolicyError, Router, models
from edgeroute.edge.model_card import Card


class Forest:
    """As an estimator of scikit-learn."""

    classes_ = np.array(["ham", "spam"])

    def predict(self, rows):
        """The first class."""
        return self.classes_[[0] * len(rows)]

    def predict_proba(self, rows):
        """Of each class."""
        return np.array([[0.9, 0.1]] * len(rows))


class Regression:
    """Another, without probabilities."""

    def predict(self, rows):
        """A number each."""
        return [1.5 for _ in rows]


REFUSED = [
    ({"deadline": "2s"}, "write deadline=2 "),
    ({"deadline": "300ms"}, "write deadline=0.3 "),
    ({"deadline": "5"}, "write deadline=5"),
    ({"deadline": "soon"}, "deadline= takes seconds, a number of more than 0, not a str"),
    ({"deadline": timedelta(minutes=1)}, "write deadline=60"),
    ({"deadline": True}, "not True"),
    ({"deadline": float("nan")}, "not nan"),
    ({"hedge_after": [1]}, "hedge_after= takes seconds, a number of 0 or more, not a list"),
    ({"first_token": "1s"}, "write first_token=1 "),
    ({"certificate_max_age": "90d"}, "write certificate_max_age=7776000 "),
    ({"score": 42}, "score= takes a name"),
    ({"edge": 42}, "edge= takes a path, a model or a callable, not int"),
    ({"edge": [unsure, 42]}, "edge= takes a path, a model or a callable, not int"),
    ({"edge": Regression()}, "edge= takes no Regression as it is: write edge=lambda x: (model.predict([x])[0], None)"),
    ({"edge": OnnxModel}, "as in edge=OnnxModel(...), not the class OnnxModel"),
    ({"cloud": 42}, "cloud= takes a URL, an endpoint or a callable, not int"),
    ({"cloud": CallableModel(unsure)}, 'write large = Router(model, mode="only_edge"), and cloud=lambda x: large.infer(x).value'),
    ({"cloud": Path("m.onnx")}, 'write large = Router(model, mode="only_edge")'),
    ({"cloud": "m.onnx"}, "cloud= takes no model file: write large = "),
    ({"cloud": "/data/large model.onnx"}, "cloud= takes no model file: write large = "),
    ({"cloud": "./models/large"}, "cloud= takes no model file: write large = "),
    ({"threshold": "cert.json"}, "not 'cert.json': a certificate's file is Certificate.load(path)"),
    ({"threshold": Path("cert.json")}, "a certificate's file is Certificate.load(path)"),
    ({"threshold": "85%"}, "85 % is 0.85"),
    ({"cloud": Regression()}, "write cloud=lambda x: model.predict([x])[0]"),
    ({"cloud": OpenInference}, "as in cloud=OpenInference(...), not the class OpenInference"),
]


@pytest.mark.parametrize("router", [Router, AsyncRouter])
@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_a_wrong_argument_is_refused_with_what_to_write(router, given, said):
    """In one line, when the router is made."""
    with pytest.raises(PolicyError) as told:
        router(**flat(**{"edge": unsure, "cloud": sure, "threshold": 0.5, **given}))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_an_argument_that_is_not_there_is_a_type_error():
    """As it is for any function of Python."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
        Router(unsure, sure, threshold=0.5, timeout=2)


def asked(kind, of, call, **options):
    """What a call with these options raises, of a router of that kind or its session; calls before and after it are answered."""
    x = [1] if call == "infer_many" else 1

    def of_threads():
        with Router(unsure, sure, threshold=0.5) as router:
            with suppress(DeadlineExceeded):  # on a busy machine
                router.infer(1, deadline=1)  # a plan for that is kept, and True is equal to 1
            target = router if of == "router" else router.session()
            try:
                list(getattr(target, call)(x, **options))
            except PolicyError as e:
                assert router.infer(1, deadline=np.float32(20)).source == "cloud"
                return e

    async def of_tasks():
        async with AsyncRouter(unsure, sure, threshold=0.5) as router:
            with suppress(DeadlineExceeded):
                await router.infer(1, deadline=1)
            target = router if of == "router" else router.session()
            try:
                found = getattr(target, call)(x, **options)
                _ = [one async for one in found] if hasattr(found, "__aiter__") else await found
            except PolicyError as e:
                assert (await router.infer(1, deadline=np.float32(20))).source == "cloud"
                return e

    return of_threads() if kind is Router else asyncio.run(of_tasks())


WHO = [(kind, of) for kind in (Router, AsyncRouter) for of in ("router", "session")]
REFUSED_IN_A_CALL = [
    (
        {"deadline": "2s"},
        'deadline= takes seconds, a number of more than 0, not a str: write deadline=2 ("2s" is for policy files)',
    ),
    ({"deadline": timedelta(seconds=2)}, "deadline= takes seconds, a number of more than 0, not a timedelta: write deadline=2"),
    ({"deadline": [2]}, "deadline= takes seconds, a number of more than 0, not a list"),
    ({"deadline": np.array(2)}, "deadline= takes seconds, a number of more than 0, not a ndarray"),
    ({"deadline": True}, "deadline= takes seconds, a number of more than 0, not True"),
    ({"deadline": float("nan")}, "deadline= takes seconds, a number of more than 0, not nan"),
    ({"deadline": -1}, "deadline= takes seconds, a number of more than 0, not -1"),
    ({"mode": ["only_edge"]}, "there is no mode ['only_edge']: did you mean \"only_edge\"?"),
    ({"data_class": ["a"]}, "data_class is a name, not ['a']"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED_IN_A_CALL)
@pytest.mark.parametrize(("kind", "of"), WHO)
def test_a_wrong_argument_of_a_call(kind, of, options, said):
    """Is refused with what to write, by every way of asking, and the next call is answered."""
    for call in ("infer", "refine", "stream", "infer_many", *(["decide"] if of == "router" else [])):
        error = asked(kind, of, call, **options)
        assert str(error) == said


@pytest.mark.parametrize(("kind", "of"), WHO)
def test_a_wrong_first_token_of_a_stream(kind, of):
    """As its deadline."""
    assert "first_token= takes seconds" in str(asked(kind, of, "stream", first_token="1s"))


def test_seconds_of_numpy():
    """Are Python's own from then on: a single-precision instant would be seconds off once a machine has run for long."""
    with Router(
        unsure, sure, threshold=0.5, deadline=np.float32(20), options=Options(hedge_after=np.float32(5), first_token=np.int64(3))
    ) as router:
        policy = router.engine.snapshot.policy
        assert [type(s) for s in (policy.deadline_s, policy.hedge_after, policy.first_token_s)] == [float] * 3
        assert type(router.decide(1, deadline=np.float32(2)).plan.deadline_s) is float
        with router.stream(1, first_token=np.float32(2)) as stream:
            list(stream)
        assert stream.answer.source == "cloud"


def test_an_argument_that_is_not_there_is_refused_before_the_first_piece():
    """By the call itself, also where what it returns has not begun."""
    with Router(unsure, sure, threshold=0.5) as router:
        for target in (router, router.session()):
            for call in (target.refine, target.stream):
                with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
                    call(1, timeout=2)


def test_a_wrong_timeout_of_a_check():
    """In one line, and not as what is wrong with each target."""
    with (
        Router(unsure, sure, threshold=0.5) as router,
        pytest.raises(PolicyError, match=r"timeout= takes seconds.*write timeout=5"),
    ):
        router.check(timeout="5s")


SNIPPET = """
from typing import Any
from edgeroute import Answer, AsyncRouter, CallableModel, Function, OnnxModel, OpenInference, PlainJson, Router

class Own:
    name, labels, kind = "own", None, "logits"
    def run(self, inputs: list[Any], cancel: object = None) -> list[list[float]]:
        return [[1.0] for _ in inputs]

def edge(x: int) -> tuple[str, float]:
    return "cat", 0.4

async def cloud(x: Any) -> Any:
    return "dog"

Router("a.onnx", "http://host/v2/models/a", threshold=0.5)
Router([OnnxModel("a.onnx"), CallableModel(edge), Own(), edge], [OpenInference("http://h", model="m"), PlainJson("http://h")])
Router(edge=edge, cloud=Function(edge), threshold=0.5)
AsyncRouter(edge=Own(), cloud=cloud)

def answers(router: Router) -> list[Answer]:
    return router.infer_many([1])

def word(router: Router[str]) -> str:
    return router.infer(1).value

def number(answer: Answer[float]) -> float:
    return answer.value + 1
"""
WRONG = """
Router(edge=42)  # wrong
Router(edge=["a.onnx", 42])  # wrong
Router("a.onnx", cloud=42)  # wrong
Router("a.onnx", timeout=2)  # wrong
AsyncRouter(edge=42)  # wrong
Router("a.onnx").infer(1, timeout=2)  # wrong
Router("a.onnx").infer(1, deadline="2s")  # wrong
Router("a.onnx").refine(1, timeout=2)  # wrong
Router("a.onnx").stream(1, timeout=2)  # wrong
Router("a.onnx").infer_many([1], timeout=2)  # wrong
Router("a.onnx").decide(1, timeout=2)  # wrong
Router("a.onnx").session().infer(1, timeout=2)  # wrong
AsyncRouter("a.onnx").infer(1, timeout=2)  # wrong
AsyncRouter("a.onnx").session().stream(1, timeout=2)  # wrong

def wrong(router: Router[str]) -> int:
    return router.infer(1).value  # wrong
"""


@pytest.mark.slow
def test_types_tell_a_wrong_argument(tmp_path):
    """mypy takes what works, and refuses the rest, line by line."""
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET + WRONG)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--cache-dir",
        str(tmp_path),
        "--config-file",
        "",
        str(file),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}
    wrong = {i for i, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# wrong")}
    assert found == wrong, done.stdout + done.stderr


def test_the_packaged_pair_by_name():
    """Its files are there, with their cards; the images are what the edge takes."""
    pair = models.fashion()
    assert edgeroute.models is models
    assert all(path.is_file() for path in pair)
    assert (pair.images.shape, pair.images.dtype, len(pair.labels)) == ((1000, 28, 28), np.uint8, 1000)
    assert Card.beside(pair.cloud).name == "fashion-large"
    with Router(pair.edge, threshold=0.5) as router:
        assert router.infer(pair.images[0]).value == "Ankle boot"


def run(*arguments, cwd):
    """The command line, in a folder of its own -> exit code, stdout, stderr."""
    return cli(*arguments, cwd=cwd)


def test_the_cloud_of_the_readme_by_one_command(tmp_path):
    """`edgeroute serve fashion`, in any folder, though a folder there has that name."""
    (tmp_path / "fashion").mkdir()
    command = [sys.executable, "-m", "edgeroute", "serve", "fashion", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = json.loads(process.stdout.readline())
            pair = models.fashion()
            with Router(pair.edge, f"{ready['ready']}/v2/models/{ready['models'][0]}", mode="only_cloud") as router:
                assert router.infer(pair.images[0]).value == "Ankle boot"
        finally:
            process.terminate()
            process.wait(120)


def test_documentation_of_what_is_installed(tmp_path):
    """Its pages are listed, and each is printed as it is; a wrong name is told the nearest."""
    _, listed, _ = run("docs", cwd=tmp_path)
    folder = Path(listed.splitlines()[-1].removeprefix("in "))
    assert {"quickstart", "policy", "first-hour"} <= {line.split()[0] for line in listed.splitlines() if line}
    assert run("docs", "policy", cwd=tmp_path)[1] == (folder / "policy.md").read_text()
    code, _, err = run("docs", "polic", cwd=tmp_path)
    assert code == 2
    assert "policy" in err


def test_without_the_command_line_its_extra_is_named(tmp_path, monkeypatch):
    """The one that the command needs; and the documentation, which needs none."""
    monkeypatch.setitem(sys.modules, "typer", None)
    for asked, extra in ((["serve", "fashion"], "serve"), (["demo"], "demo"), (["check"], "cli"), ([], "cli")):
        code, _, err = run(*asked, cwd=tmp_path)
        assert code == 2
        assert f"pip install 'edgeroute[{extra}]'" in err
        assert (Path(err.strip().split(" is in ")[1]) / "quickstart.md").exists()


@pytest.mark.slow
def test_a_pair_of_scikit_learn_by_the_page_alone(tmp_path):
    """docs/first-hour.md: at most three commands and one file to a right answer, of edge and cloud."""
    page = (Path(__file__).parent.parent / "docs" / "first-hour.md").read_text()
    file = page.split("```python\n")[1].split("```")[0]
    commands = page.split("```sh\n")[1].split("```")[0].strip().splitlines()
    assert len(commands) <= 3
    (tmp_path / "first.py").write_text(file)
    done = subprocess.run([sys.executable, "first.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    right, alone, deferred = (float(word.rstrip("%;")) for word in done.stdout.splitlines()[-1].split() if "%" in word)
    assert right > alone > 90, done.stdout + done.stderr
    assert 5 < deferred < 30
