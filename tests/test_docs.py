"""Every snippet of the README and of docs/ runs as it stands, against the shipped models and a real server."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import cli

from edgeroute import AsyncRouter, Router
from edgeroute.policy import load
from edgeroute.testing import CannedServer, chat_events, fresh_runtimes, sse_reply

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
SERVER = "127.0.0.1:8080"
ELSEWHERE = (
    "make ", "pip install ", "git clone ", "cd ", "edgeroute serve ", "edgeroute gateway ", "export ", "edgeroute dashboard ",
    "edgeroute top ", "edgeroute fleet ", "python ",
)  # fmt: skip
"""Run by .ci/run (the first four), by a fixture (the next three), by their own tests, by `make bench`, or as a snippet."""


def snippets(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


PATIENT = "deadline=60.0"
"""In place of the seconds on a page: a busy machine may take longer to import a runtime."""


@pytest.fixture
def desk(tmp_path, monkeypatch, fashion, fashion_server):
    """A folder as a reader has it: the models, a policy, images; the server of the docs, wherever it really is."""
    (tmp_path / "models").symlink_to(fashion.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["snippet.py"])  # not the arguments of pytest
    monkeypatch.setenv("CLOUD_KEY", "a-key-of-the-reader")
    monkeypatch.setattr(sys, "argv", ["first.py"])  # else a page's program would take pytest's arguments for its own
    np.save("image.npy", np.load(fashion / "sample.npz")["images"][0])
    with fresh_runtimes():
        yield lambda text: re.sub(r"\bdeadline=[\d.]+", PATIENT, text.replace(f"http://{SERVER}", fashion_server))


@pytest.fixture
def hosted():
    """Stands for a hosted language model."""
    with CannedServer(sse_reply(chat_events(["Because ", "of Rayleigh ", "scattering."], usage=(12, 6)))) as server:
        yield server


def graded():
    """The policy and the graded prompts of docs/text.md."""
    policy = 'threshold = 0.5\n[edge]\npath = "model.gguf"\ndecide_after = 2\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n'
    Path("policy.toml").write_text(policy)
    lines = []
    for k in range(400):
        logprobs = [-(k % 40) / 20, -(k % 40) / 20]
        edge = {"text": "a", "logprobs": logprobs}
        lines.append({"prompt": f"q {k}", "edge": edge, "cloud": "b", "grade": {"edge": 1 - (k % 40) / 100, "cloud": 1.0}})
    Path("graded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def answered():
    """The cloud's answers to 900 texts of three classes, of docs/compress.md."""
    words = {
        "refund": "money returned charged twice",
        "delivery": "parcel courier late tracking",
        "login": "password account locked",
    }
    others = [
        "please",
        "hello",
        "my",
        "the",
        "order",
        "number",
        "was",
        "about",
        "it",
        "thanks",
        "again",
        "question",
        "team",
        "kind",
    ]
    rng = random.Random(0)
    lines = [f"{' '.join([*rng.sample(words[name].split(), 2), *rng.sample(others, 6)])},{name}" for name in [*words] * 300]
    Path("answers.csv").write_text("text,answer\n" + "\n".join(lines) + "\n")


def logged():
    """The logs of docs/replay.md: of one model, and of two."""
    questions = [[{"role": "user", "content": f"Is mail {i} spam?"}] for i in range(600)]
    lines = [{"messages": messages, "response": "Spam.", "latency_ms": 900} for messages in questions]
    Path("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng, rows = random.Random(7), ["id,confidence,edge_score,cloud_score,edge_usd,cloud_usd"]
    for i in range(2000):
        sure = rng.random()
        right = rng.random() < 0.65 + 0.35 * sure**0.3
        rows.append(f"{i},{sure},{int(right)},{int(rng.random() < 0.95)},0,0.002")
    Path("log.csv").write_text("\n".join(rows) + "\n")


def extended():
    """The packages of docs/extend.md, as they are once they are installed: one is in CONTRIBUTING."""
    (own,) = [text for _, text in snippets(ROOT / "CONTRIBUTING.md") if text.startswith("# sentiment.py")]
    Path("sentiment.py").write_text(own.replace('name="cloud", **address', 'name="cloud", field="text", **address'))
    Path("slow-1.0.dist-info").mkdir()
    Path("slow-1.0.dist-info", "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    points = [text for _, text in snippets(ROOT / "docs" / "extend.md") if text.startswith("[project.entry-points")]
    Path("slow-1.0.dist-info", "entry_points.txt").write_text(points[0].replace("project.entry-points.", "").replace('"', ""))


def gateway(monkeypatch, request):
    """The gateway of docs/gateway.md, begun once its policy is there, and where its reader's programs find it."""
    from gateways import serving
    from openai import OpenAI

    def found(kind, **more):
        if "OPENAI_BASE_URL" not in os.environ:
            with monkeypatch.context() as own:
                own.setenv("EDGEROUTE_CLOUD__URL", "http://127.0.0.1:9/v1")
                router = AsyncRouter.from_policy("policy.toml")
            running = serving(router, names=["policy"])
            url = running.__enter__()
            request.addfinalizer(lambda: running.__exit__(None, None, None))
            monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", "any")
        client = OpenAI(**more)
        request.addfinalizer(client.close)
        return client

    monkeypatch.setattr("openai.OpenAI", partial(found, OpenAI))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.name != "README.md" else [])
        for p in PAGES
        if p.name != "first-day.md"  # each of its jobs by itself: tests/test_first_day.py
    ],
)
def test_snippets_run(page, desk, hosted, monkeypatch, request):
    """In the order of the page: Python in one namespace, and as a module where it has a name; TOML loaded; commands executed."""
    if page.name == "models.md":
        pytest.importorskip("tuf")
        pytest.importorskip("cryptography")
    if page.name == "observe.md":
        pytest.importorskip("prometheus_client")
        pytest.importorskip("opentelemetry.sdk")
    if page.name == "webservice.md":
        pytest.importorskip("fastapi")
        pytest.importorskip("flask")
    namespace: dict[str, object] = {"__name__": "snippet"}
    if page.name in {"llama.md", "chat.md", "gateway.md", "text.md", "tutorial-language.md"}:
        pytest.importorskip("xllamacpp")
        pytest.importorskip("tiny_gguf").write(Path("model.gguf"), context=4096)
    if page.name == "gateway.md":
        pytest.importorskip("openai")
        gateway(monkeypatch, request)
    if page.name == "text.md":
        graded()
    if page.name == "extend.md":
        extended()
    if page.name == "compress.md":
        pytest.importorskip("skl2onnx")
        answered()
        shutil.copy(ROOT / "examples" / "retrain.py", "retrain.py")
    if page.name == "devices.md":
        shutil.copy(ROOT / "examples" / "java_onnx.py", "java_onnx.py")
    if page.name == "replay.md":
        logged()
    for language, text in snippets(page):
        code = desk(text).replace("https://api.example.com/v1", f"{hosted.url}/v1")
        if "\nimport gradio" in code:
            continue  # it brings 50 packages: tests/test_asgi.py runs it in a part of the matrix
        if language == "python":
            if module := re.match(r"# (\S+\.py)\n", code):
                Path(module[1]).write_text(code)
            exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), namespace)
        elif language == "toml":
            name = re.match(r"# (\S+\.toml)", code)
            file = Path(name[1] if name else "snippet.toml")
            file.write_text(code)
            load(file)
        elif language == "sh":
            for line in filter(None, map(str.strip, code.replace("\\\n", " ").splitlines())):
                command = line.partition("  #")[0].strip()
                if command.startswith(ELSEWHERE):
                    continue
                assert command.startswith("edgeroute "), f"{page.name}: who runs {command!r}?"
                code, out, err = cli(*shlex.split(command)[1:])
                assert code == 0, f"{command}\n{out}{err}"
        else:
            assert language in {"text", "json"}, f"{page.name}: a snippet in {language} is run by nobody"
    for thing in namespace.values():
        if isinstance(thing, Router | np.lib.npyio.NpzFile):
            thing.close()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["httpx2", "httpx"])
def test_a_client_of_either_library(library, desk, monkeypatch):
    """The extra `httpx` installs one of them, by the version of Python."""
    pytest.importorskip(library)
    monkeypatch.setitem(sys.modules, {"httpx2": "httpx", "httpx": "httpx2"}[library], None)
    (code,) = [text for _, text in snippets(ROOT / "docs" / "connections.md") if "httpx" in text and "import" in text]
    namespace: dict[str, object] = {}
    exec(compile(desk(code), "connections.md", "exec"), namespace)
    assert namespace["httpx"].__name__ == library


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.name if page in PAGES else page.parent.name)
def test_commands_and_json_are_narrow(page):
    """A phone shows 88 columns: a longer command goes on after a backslash."""
    lines = [line for language, text in snippets(page) if language in {"sh", "json"} for line in text.splitlines()]
    assert [line for line in lines if len(line) > 88] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_source_is_narrow_and_its_comments_stand_above(page):
    """A phone shows 88 columns of Python and TOML at most; a comment is above the line that it explains."""
    lines = [line for language, text in snippets(page) if language in {"python", "toml"} for line in text.splitlines()]
    assert [line for line in lines if len(line) > 88] == []
    assert [line for line in lines if re.search(r"""[^"'\s]\s+# """, line) and not line.lstrip().startswith("#")] == []


def test_quickstart_example(desk, fashion, fashion_server, capsys):
    """examples/quickstart.py routes real images and says what it did."""
    code = compile(desk((ROOT / "examples" / "quickstart.py").read_text()), "quickstart.py", "exec")
    namespace = {"__name__": "example", "__file__": str(ROOT / "examples" / "quickstart.py")}
    exec(code, namespace)
    namespace["main"](f"{fashion_server}/v2/models/fashion-large", fashion)
    said = capsys.readouterr().out
    assert "220 answers" in said
    assert "uncalibrated" in said


@pytest.mark.slow
def test_distil_example(desk, tmp_path, capsys):
    """examples/distil.py writes a student that runs with its card, and agrees with the teacher."""
    pytest.importorskip("skl2onnx")
    exec(compile((ROOT / "examples" / "distil.py").read_text(), "distil.py", "exec"), {"__name__": "example"})
    assert int(re.fullmatch(r"(\d+)% of the teacher's answers\n", capsys.readouterr().out)[1]) > 50
    with Router(tmp_path / "student.onnx") as router:
        assert router.infer(np.zeros((28, 28), np.uint8)).value in json.loads((tmp_path / "student.json").read_text())["labels"]


def test_the_readme_is_one_screen_with_links():
    """At most 700 words; a link to a page of each kind, and the picture of a request."""
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 700
    linked = set(re.findall(r"\]\(docs/([a-z-]+)\.md\)", text))
    assert {
        "install",
        "quickstart",
        "first-hour",
        "calibrate",
        "faults",
        "privacy",
        "limits",
        "policy",
        "threshold",
        "design",
    } <= linked
    assert "](docs/figures/request.svg)" in text


def test_the_first_snippet_runs_anywhere(tmp_path):
    """In an empty folder, with nothing started, it prints what the README shows: accepted, deferred, and with the cloud away."""
    code, shown = (text for language, text in snippets(ROOT / "README.md") if language in {"python", "text"})
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    pattern = re.escape(shown.replace("\n ", " ")).replace(r"\.\.\.", ".*").replace("cloud\\ 0\\ ms", r"cloud\ \d+\ ms")
    assert re.fullmatch(pattern, done.stdout), done.stdout + done.stderr


def test_pages_for_users_have_at_most_55000_words():
    """With the README, counted as `wc -w` does; pages in the tab of internals are not for users."""
    yaml = pytest.importorskip("yaml")
    tabs = {name: pages for tab in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for name, pages in tab.items()}
    pages = [page for page in PAGES if page.name not in {*tabs["Internals"], "CONTRIBUTING.md"}]
    assert sum(len(page.read_text().split()) for page in pages) <= 55_000


def test_the_page_of_models_that_others_made(monkeypatch):
    """Has the table of the tests, as `make docs` writes it."""
    pytest.importorskip("typer")
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    page = (ROOT / "docs" / "foreign-models.md").read_text()
    assert importlib.import_module("reference_pages").pages()["foreign-models.md"] == page


def test_the_page_of_installing_has_each_extra():
    """With the packages and extras that it brings, and no other."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| `([\w-]+)` \| .+ \| (.+) \|$", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {*extras} - {"all"}
    for name, brought in rows:
        lines = [re.fullmatch(r"edgeroute\[(.+)\]", line) or re.match(r"[\w-]+", line) for line in extras[name]]
        words = {word for line in lines for word in line[line.re.groups].split(",")}
        assert {*re.findall(r"[a-z][\w-]+", brought)} - {"or"} == words, name


def test_the_page_of_installing_says_what_all_leaves_out():
    """The extras with a package that `all` does not bring, with the extras that its own have."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def packages(extra):
        named = [re.fullmatch(r"edgeroute\[(.*)\].*", line) or line for line in extras[extra]]
        own = {re.match(r"[\w-]+", line)[0] for line in named if isinstance(line, str)}
        return own.union(*(packages(name) for line in named if not isinstance(line, str) for name in line[1].split(",")))

    (said,) = re.findall(r"^`all` has all but (.*?);", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE | re.DOTALL)
    assert {*re.findall(r"`([\w-]+)`", said)} == {extra for extra in extras if not packages(extra) <= packages("all")}


@pytest.mark.skipif(not (ROOT / "edgeroute").is_dir(), reason="pages of a clone link to its files")
def test_links_lead_somewhere():
    """Each relative link of a page is a file of the project."""
    for page in PAGES + EXAMPLES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [page for page in EXAMPLES if page.parent.name != "examples"], ids=lambda page: page.parent.name)
def test_the_page_of_an_example_ends_with_what_was_seen(page):
    """And with what was not."""
    last = page.read_text().rpartition("\n## ")[2]
    assert re.match(r"What (was|the figures are)\b", last)
    assert re.search(r"\bNot (seen|run|tried|verified)\b", last)


@pytest.mark.parametrize(
    "page", [page for page in EXAMPLES if list(page.parent.glob("requirements.txt")) + list(page.parent.glob("pyproject.toml"))],
    ids=lambda page: page.parent.name,
)  # fmt: skip
def test_the_page_of_an_example_names_what_there_is(page):
    """What its commands do is tested beside it; here, that each target of make, subcommand, option and file that they name is there."""
    folders = {page.parent, ROOT / "examples" / "ar"} if page.parent.name == "jetson" else {page.parent}
    programs = "".join(file.read_text() for folder in folders for file in folder.glob("*.py"))
    lines = [line for language, text in snippets(page) if language == "sh" for line in text.replace("\\\n", " ").splitlines()]
    assert any(line.startswith(f"make example-{page.parent.name}") for line in lines) or page.parent.name == "runtime_openvino"
    for words in filter(None, (shlex.split(line, comments=True) for line in lines)):
        arguments = words[words.index("main.py") + 1 :] if "main.py" in words else []
        if words[0] == "make":
            target, *rest = words[1:]
            assert (ROOT / "examples" / re.fullmatch("(?:test-)?example-(.+)", target)[1] / "requirements.txt").exists(), target
            arguments = shlex.split(rest[0].removeprefix("ARGS=")) if rest else []
        named = [word for word in arguments if word.startswith("--")] + [word for word in arguments[:1] if word.isalpha()]
        assert [word for word in named if f'"{word}"' not in programs] == []
        assert [word for word in words if word.startswith("examples/") and not (ROOT / word).exists()] == []


def test_each_example_is_in_the_index():
    """examples/README.md has a row for each folder and file beside it."""
    index = (ROOT / "examples" / "README.md").read_text()
    there = {one.name for one in (ROOT / "examples").iterdir() if not one.name.startswith(("README", "__", "."))}
    assert there <= set(re.findall(r"\]\(([\w.]+)\)", index))


def test_the_first_page_has_the_figures_of_the_readme():
    """Those of all images, on which the cloud is better; and when and how they were measured."""
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/index.md")]
    for text in pages:
        assert {"93.09 %", "94.32 %", "94.07 %", "7.7 %", "2026-11-24"} <= {*re.findall(r"\d+\.\d+ %|\d{4}-\d\d-\d\d", text)}
        assert "`make demo`" in text


def test_each_promise_names_the_tests_that_hold_it():
    """Each promise of docs/promises.md has a test or more in docs/evidence.md, and each of them exists."""
    words = " ".join((ROOT / "docs" / "evidence.md").read_text().split())
    promises = [
        " ".join(part.split()) for part in (ROOT / "docs" / "promises.md").read_text().split("\n\n") if part.startswith("**")
    ]
    assert len(promises) >= 10
    for promise in promises:
        bold = re.match(r"\*\*.+?\*\*", promise)[0]
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", words.partition(f"* {bold}")[2].partition(" * ")[0])
        assert named, promise
        for file, test in named:
            assert (ROOT / file).exists(), file
            assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"
