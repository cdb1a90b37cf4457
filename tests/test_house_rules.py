"""Tests compare no computed mean, sum or quantile exactly, as another processor adds in another order; and they read public names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import edgeroute

pytestmark = pytest.mark.slow  # `make check` runs these, as they are rules for who changes the package

COMPUTED = {
    "average", "cumsum", "dot", "fmean", "fsum", "geometric_mean", "harmonic_mean", "mean", "median", "nanmean", "nanmedian", "nanquantile",
    "nansum", "norm", "percentile", "prod", "pstdev", "quantile", "quantiles", "std", "stdev", "sum", "var", "variance",
}  # fmt: skip
TESTS = [*Path(__file__).parent.rglob("*.py"), *(Path(__file__).parents[1] / "examples").glob("*/test_*.py")]


def nodes_of(text):
    """All nodes of a text's syntax tree."""
    return list(ast.walk(ast.parse(text)))


def exact(nodes):
    """Lines in which an `assert` has `==` or `!=` between something computed and a float, in tuples and lists too."""
    for asserted in (node for node in nodes if isinstance(node, ast.Assert)):
        for compared in (node for node in ast.walk(asserted) if isinstance(node, ast.Compare)):
            sides = [compared.left, *compared.comparators]
            parts = [part for side in sides for part in getattr(side, "elts", [side])]
            if not any(isinstance(part, ast.Constant) and isinstance(part.value, float) for part in parts):
                continue
            calls = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Call)]
            called = {getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
            if called & COMPUTED and any(isinstance(op, ast.Eq | ast.NotEq) for op in compared.ops):
                yield asserted.lineno


@pytest.mark.parametrize("line", ["x.mean() == 0.5", "0.1 != np.quantile(x, 0.5)", "(n, round(sum(x), 1)) == (1, 0.3)"])
def test_an_exact_comparison_is_found(line):
    assert list(exact(nodes_of(f"x = 1\nassert {line}"))) == [2]
    assert not list(exact(nodes_of("assert x.mean() == pytest.approx(0.5) and (x > 0.1).sum() == 3 and x.mean() < 0.5")))


PUBLIC = {"_asdict", "_current_frames", "_exit", "_fields", "_getframe", "_make", "_replace"}
"""Names of named tuples, of `os` and of `sys` that are public in spite of their underscore."""
MOST = 60
"""Private reads that all tests may have together."""


def private(nodes):
    """Lines that read, import or replace a private name of something else than `self`."""

    def hidden(name):
        return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in PUBLIC

    for node in nodes:
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            names = [] if own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if (node.module or "").startswith("edgeroute")]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"setattr", "delattr"}:
            names = [getattr(argument, "value", None) for argument in node.args[:2]]
            names = [name.rpartition(".")[2] for name in names if isinstance(name, str)]
        else:
            continue
        if any(map(hidden, names)):
            yield node.lineno


@pytest.mark.parametrize(
    "line", ["x._y", "from edgeroute.core import _y", 'm.setattr(x, "_y", 1)', 'm.setattr("edgeroute.x._y", 1)']
)
def test_a_private_read_is_found(line):
    assert list(private(nodes_of(f"x = 1\n{line}"))) == [2]
    assert not list(private(nodes_of("self._y = x._replace(z=1).__class__")))


def test_all_tests_keep_both_rules():
    """Nothing computed is compared exactly; private reads are few, and each line has its reason."""
    inexact, hidden, unexplained = [], 0, []
    for path in TESTS:
        text = path.read_text(encoding="utf-8")
        nodes, lines = nodes_of(text), text.splitlines()
        inexact += [f"{path.name}:{line}" for line in exact(nodes)]
        for line in private(nodes):
            hidden += 1
            if "# private: " not in lines[line - 1]:
                unexplained.append(f"{path.name}:{line}")
    assert inexact == [], "write pytest.approx(...)"
    assert hidden <= MOST
    assert unexplained == []


PACKAGE = Path(edgeroute.__file__).parent  # of the clone, or of the wheel that is installed
ROOMS = {"catalog", "confidence", "edge", "policy", "tools"}
"""Rooms whose JSON is of others; elsewhere it is the package's own, with checksums, or came over a connection, with bounds."""
OWN = {
    "catalog/model_folder_and_downloads.py": (2, "the tag beside a partial download, written there; a folder, to flush it"),
    "cloud/grpc_calls_as_http_replies.py": (2, "certificates and keys that the operator names, perhaps a pipe of a key store"),
    "edge/answer_structure_checks.py": (
        1,
        "an answer of at most 65,536 characters, in which a key that comes twice is refused",
    ),
    "edge/gguf_format.py": (1, "an open file"),
    "edge/llama_isolated_engine.py": (1, "of the kernel"),
    "http/messages_addresses_and_secrets.py": (1, "the certificate that the operator names"),
    "models.py": (1, "an example that comes with the package"),
    "observe/device/kernel_files_and_cached_commands.py": (1, "files of the kernel, whose sizes are 0, opened without a wait"),
    "stores/json_lines_and_process_locks.py": (3, "its own lock and file, which it writes"),
    "system/untrusted_files.py": (3, "the reader itself"),
    "system/wall_clock.py": (1, "a file of the kernel"),
    "tools/cli/check_decide_sensors_commands.py": (1, "the pages of the package"),
    "tools/cli/command_runner.py": (2, "the null device"),
    "tools/cli/demo.py": (1, "the first line of a process that the demo started"),
    "tools/cli/demo_measurements_and_report.py": (2, "arrays that come with the package"),
    "tools/cli/status_and_trial_arms.py": (1, "values of the state file, which have checksums"),
    "tools/compress/quantize_models.py": (1, "a file that it has just written"),
    "tools/compress/onnx_graphs_and_result_files.py": (1, "a regular file, by its path, since weights may be beside it"),
    "tools/dashboard/dashboard_data_and_tail.py": (1, "a second descriptor of an open file"),
    "tools/dashboard/web_app_and_metrics.py": (1, "the page of the package"),
    "tools/distil_text_classifier.py": (1, "a file that it has just written"),
    "tools/export/models_folders_and_templates.py": (1, "templates of the package"),
    "tools/fleet/untrusted_digest_decoder.py": (
        1,
        "a digest of at most 65,536 bytes, in which a key that comes twice is refused",
    ),
    "tools/measure/threshold_calibration_and_crossfit.py": (1, "what json.dumps has just made"),
    "tools/replay/resumable_edge_results.py": (1, "its own results, which it appends to"),
    "tools/replay/logs/answer_pairs_and_samples.py": (1, "a line of a log, whose numbers each reader of a form checks"),
    "tools/measure/report/report_pages_and_results.py": (1, "the style of the package"),
    "policy/file_and_environment.py": (1, "a text that was read, with bounded keys"),
}
"""File -> number of calls that read by themselves, and why these need no bounds."""


def unguarded(nodes, room):
    """Lines that open or parse a file by something else than `edgeroute.system.untrusted_files`."""
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        name, of = getattr(call.func, "attr", getattr(call.func, "id", "")), getattr(getattr(call.func, "value", None), "id", "")
        texts = {
            argument.value for argument in call.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        }
        opened = bool(call.args) and getattr(call.args[0], "id", "") == "file"
        reads_path = isinstance(call.func, ast.Attribute) and (
            name in {"read_text", "read_bytes"} or (name == "open" and bool(texts & {"r", "rb"}))
        )
        modes = {getattr(argument, "value", None) for argument in call.args[1:]}
        by_name = (
            not isinstance(call.func, ast.Attribute) and name in {"open", "FileIO"} and not modes & {"w", "wb", "x", "a", "ab"}
        )
        parses = of in {"json", "tomllib"} and (name == "load" or (name == "loads" and room in ROOMS))
        loads = (of, name) in {("np", "load"), ("onnx", "load"), ("gzip", "open"), ("mmap", "mmap")} and not opened
        descriptor = (of, name) == ("os", "open") and not any(
            isinstance(node, ast.Attribute) and node.attr in {"O_WRONLY", "O_EXCL"} for node in ast.walk(call)
        )
        if reads_path or by_name or parses or loads or descriptor:
            yield call.lineno


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        'open("x")',
        'path.open("rb")',
        "json.loads(text)",
        "json.load(file)",
        "np.load(path)",
        "os.open(path, os.O_RDONLY)",
    ],
)
def test_an_unguarded_read_is_found(line):
    assert list(unguarded(nodes_of(f"x = 1\n{line}"), "tools")) == [2]
    plain = 'open(0, "w", 1)\npath.open("xb")\nnp.load(file)\nread_json(path)\nos.open(path, os.O_WRONLY)'
    assert not list(unguarded(nodes_of(plain), "tools"))


def makes_thread(nodes):
    """Whether it calls `Thread` of a module."""
    return any(isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "Thread" for node in nodes)


HEADED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def misplaced(nodes):
    """Lines of texts that are statements, but for docstrings."""
    for node in nodes:
        body = node.body if isinstance(getattr(node, "body", None), list) else []
        texts = [part for part in body[isinstance(node, HEADED) :] if isinstance(getattr(part, "value", None), ast.Constant)]
        yield from (part.lineno for part in texts if isinstance(part, ast.Expr) and isinstance(part.value.value, str))


@pytest.fixture(scope="module")
def package():
    """File of the package -> its lines that read unguarded, whether it makes threads, lines of misplaced texts; parsed once."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name, nodes = path.relative_to(PACKAGE), nodes_of(path.read_text(encoding="utf-8"))
        found[name] = [*unguarded(nodes, name.parts[0])], makes_thread(nodes), [*misplaced(nodes)]
    return found


def test_files_of_others_are_read_by_the_guarded_reader(package):
    """No other code opens one, so none waits for a pipe, or believes a size, a depth or a number."""
    lines = {}
    for name, (numbers, _, _) in package.items():
        if numbers and not {"programs", "examples"} & {*name.parts}:  # of exported models, and of users: without the package
            lines[name.as_posix()] = numbers
    assert {name: len(numbers) for name, numbers in lines.items()} == {name: count for name, (count, _) in OWN.items()}, lines


THREADS = {
    "edge/llama_in_process_engines.py": "a generation, which ends",
    "edge/llama_isolated_engine.py": "the reader of a process, which ends with it",
    "observe/device/kernel_files_and_cached_commands.py": "a program, which is waited for",
    "router/live/blocking_iterators.py": "the source of an iterator, whose exception its caller gets",
    "system/late_imports_and_plugins.py": "an import, whose exception its caller gets",
    "system/thread_pool_and_workers.py": "the pool, whose jobs are contained, and the worker itself",
    "tools/cli/inspect_by_runs_and_guessed_card.py": "a run, whose exception its caller gets",
}
"""Files that make threads, and why these are no workers."""


def test_threads_that_live_long_are_workers(package):
    """Made elsewhere, the first exception that nobody thought of would end them without a word."""
    found = {name.as_posix() for name, (_, makes, _) in package.items() if makes}
    assert {name for name in found if not name.startswith(("testing/", "tools/contracts/"))} == {*THREADS}


def test_a_text_stands_where_help_shows_it(package):
    """At the head of a module, class or function: fields are explained in the class's docstring, or by a comment on their line."""
    assert {name.as_posix(): lines for name, (_, _, lines) in package.items() if lines} == {}


def test_the_packages_of_a_users_program_are_pinned():
    """What an index offers tomorrow changes no verdict on this tree: each package of that part has its version."""
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    (part,) = re.findall(r"^part_users\(\) \{.*?^\}", ci, re.MULTILINE | re.DOTALL)
    named = re.findall(r"--no-deps (\S+)", part)
    groups = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    named += re.findall(r'"([^"]+)"', re.search(r"^users = \[(.*?)\]$", groups, re.MULTILINE | re.DOTALL)[1])
    assert len(named) > 10
    assert [name for name in named if "==" not in name] == []
    assert '"$wheel[onnx,serve]" --group users\n' in part, "no package beside them"
