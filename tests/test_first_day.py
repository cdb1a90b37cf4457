"""docs/first-day.md: each job runs by itself after the lines at the page's beginning, and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
from both import LONG
from commands import PYTHON, cli
from onnx import TensorProto, helper

from edgeroute import Router
from edgeroute.testing import CannedServer, chat_events, fresh_runtimes, sse_reply

PAGE = Path(__file__).parents[1] / "docs" / "first-day.md"
BEGIN, *JOBS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
SERVERS = ("edgeroute serve", "edgeroute gateway", "edgeroute dashboard")
MOST_LINES = 6


def snippets(text):
    """Fenced snippets: pairs of language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def yolo(path):
    """A detector of pictures 64 by 64 with the array of a YOLOv8 of two classes: one cat, whatever the picture."""
    boxes = np.zeros((1, 6, 336), np.float32)
    boxes[0, :, 0] = 30, 30, 20, 20, 0.9, 0
    value, zero = helper.make_tensor_value_info, np.array(0, np.float32)
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes"], ["output0"]),
    ]
    inputs = [value("images", TensorProto.FLOAT, [1, 3, 64, 64])]
    tiny.save(path, nodes, inputs, [value("output0", TensorProto.FLOAT, [1, 6, 336])], [("boxes", boxes), ("zero", zero)])


def iris():
    """A classifier of flowers with its class names, and its rows."""
    datasets, linear_model = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    data = datasets.load_iris()
    rows = data.data.astype(np.float32)
    return (
        linear_model.LogisticRegression(max_iter=1000).fit(rows, data.target_names[data.target]),
        rows,
        data.target_names[data.target],
    )


def iris_file(path):
    """The classifier as ONNX."""
    classifier, rows, _ = iris()
    path.write_bytes(pytest.importorskip("skl2onnx").to_onnx(classifier, rows[:1], options={"zipmap": False}).SerializeToString())


def joblib_file(path):
    """The classifier as scikit-learn's users store it."""
    pytest.importorskip("skl2onnx")
    pytest.importorskip("joblib").dump(iris()[0], path)


def table(path):
    """Three flowers, one of each class."""
    _, rows, names = iris()
    lines = [",".join([*map(str, rows[k].round(1)), names[k]]) for k in (0, 60, 120)]
    path.write_text("\n".join(["sepal_length,sepal_width,petal_length,petal_width,class", *lines]) + "\n")


def photos(path):
    """Clothes, in a folder for each class."""
    image, sample = pytest.importorskip("PIL.Image"), np.load("fashion/sample.npz")
    names = json.loads(Path("fashion/edge.int8.json").read_text())["labels"]
    for k in range(100):
        folder = path / names[sample["labels"][k]].replace("/", " ")
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(sample["images"][k]).save(folder / f"{k}.png")


SPAM = """
import random

def model(messages):
    number = int(messages[-1]["content"].split()[2])
    sure = random.Random(number).random()
    return ("spam" if bool(number % 3) == (sure > 0.2) else "ham"), sure
"""


def log(path):
    """A log of one model that answered everything, and another that is right where it is sure."""
    Path("spam.py").write_text(SPAM)
    lines = []
    for k in range(600):
        request = {"model": "gpt-5", "messages": [{"role": "user", "content": f"Is mail {k} spam?"}]}
        reply = {"model": "gpt-5", "choices": [{"message": {"role": "assistant", "content": "spam" if k % 3 else "ham"}}]}
        lines.append(
            json.dumps({"request": request, "response": {**reply, "usage": {"prompt_tokens": 20, "completion_tokens": 1}}})
        )
    path.write_text("\n".join(lines) + "\n")


def catalog(path):
    """A catalog with two versions of a model, signed by its publisher."""
    pytest.importorskip("tuf")
    pytest.importorskip("cryptography")
    for words in ("keygen", "publish doors fashion/edge.int8.onnx --version 1.0", "sign --days 30"):
        code, out, err = cli("models", *words.split())
        assert code == 0, out + err


def gguf(path):
    """A language model with random weights."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("tiny_gguf").write(path, context=4096)


def sound(path):
    """A second of silence, one of a tone, and another of silence."""
    tone = np.sin(np.arange(16_000) * 0.3).astype(np.float32) / 2
    np.save(path, np.concatenate([np.zeros_like(tone), tone, np.zeros_like(tone)]))


FILES = {
    "sound.npy": sound,
    "model.gguf": gguf, "chat.toml": gguf, "yolo.onnx": yolo, "iris.toml": iris_file, "iris.joblib": joblib_file, "rows.csv": table,
    "photos": photos, "log.jsonl": log, "catalog": catalog,
}  # fmt: skip


MADE = {"chat.toml": "model.gguf", "iris.toml": "iris.onnx"}
"""What a policy needs, in place of the policy."""


NEEDS = {"sklearn": "sklearn", "tflite": "ai_edge_litert", "fastapi": "fastapi", "gateway": "uvicorn", "dashboard": "uvicorn"}
"""Packages without which a job is skipped, by a word of it."""


@pytest.fixture(scope="module")
def hosted():
    """Stands for a hosted language model."""
    with CannedServer(sse_reply(chat_events(["Because ", "of Rayleigh ", "scattering."], usage=(12, 6)))) as server:
        yield f"{server.url}/v1"


def served(command, lines):
    """Starts a command that serves -> its first lines."""
    process = [*PYTHON, *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            return "".join(running.stdout.readline() for _ in range(lines))
        finally:
            running.terminate()
            running.wait(LONG)


def first_result(parts, names):
    """Runs the snippets of a job in order -> what the last one prints."""
    printed = ""
    for language, text in parts:
        if language == "toml":
            Path(re.match(r"# (\S+)", text)[1]).write_text(text)
        elif language == "python":
            if module := re.match(r"# (\S+\.py)\n", text):
                Path(module[1]).write_text(text)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, PAGE.name, "exec"), names)
            printed = out.getvalue()
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith(SERVERS):
                    printed = served(line, 1)
                elif not line.startswith("pip install "):
                    code, out, err = cli(*shlex.split(line)[1:])
                    assert code == 0, out + err
                    printed = out
    return printed


def alike(shown, printed):
    """True if the words are the same in both; numbers may be others, `...` stands for anything, and lines may be broken."""
    pattern = re.escape(" ".join(shown.split())).replace(r"\.\.\.", ".*")
    pattern = re.sub(r"\d+(?:\\?[.,]\d+)*", lambda _: r"\d[\d.,]*", pattern)
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


@pytest.mark.parametrize("job", JOBS, ids=lambda job: "-".join(re.findall(r"[\w-]+", job.partition("\n")[0])))
def test_a_job_prints_what_the_page_shows(job, tmp_path, monkeypatch, fashion_server, hosted):
    """Its files are made beforehand, as a user has them."""
    for word, module in NEEDS.items():
        if word in job:
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-the-reader")

    def here(text):
        return text.replace("http://127.0.0.1:8080", fashion_server).replace("https://api.openai.com/v1", hosted)

    names: dict[str, object] = {"__name__": "snippet"}
    *parts, (language, shown) = [(language, here(text)) for language, text in snippets(job)]
    assert language == "text"
    with fresh_runtimes(), contextlib.ExitStack() as stack:
        stack.callback(lambda: [thing.close() for thing in names.values() if isinstance(thing, Router)])
        first_result([part for part in snippets(here(BEGIN)) if part[0] == "python"], names)
        for name, make in FILES.items():
            if name in job:
                make(Path(MADE.get(name, name)))
        policies = [part for part in snippets(here("".join(JOBS))) if part[1].startswith(("# policy.toml", "# chat.toml"))]
        first_result(policies, {})
        printed = first_result(parts, names)
    assert alike(shown, printed), printed


def test_there_are_thirty_short_jobs():
    """As the title says; a program, policy or command has at most six lines beside its imports and comments."""
    assert len(JOBS) == 30
    for job in JOBS:
        for text in [text for language, text in snippets(job) if language != "text"]:
            own = [line for line in text.splitlines() if line and not line.lstrip().startswith(("#", "import ", "from "))]
            assert 1 <= len(own) <= MOST_LINES, job
