"""Tests compare no computed mean, sum or quantile exactly, as another processor adds in another order; and they read public names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

COMPUTED = {
    "average", "cumsum", "dot", "fmean", "fsum", "geometric_mean", "harmonic_mean", "mean", "median", "nanmean", "nanmedian", "nanquantile",
    "nansum", "norm", "percentile", "prod", "pstdev", "quantile", "quantiles", "std", "stdev", "sum", "var", "variance",
}  # fmt: skip
TESTS = [*Path(__file__).parent.rglob("*.py"), *(Path(__file__).parents[1] / "examples").glob("*/test_*.py")]


def exact(tree):
    """Lines in which an `assert` has `==` or `!=` between something computed and a float, in tuples and lists too."""
    for asserted in (node for node in ast.walk(tree) if isinstance(node, ast.Assert)):
        for compared in (node for node in ast.walk(asserted) if isinstance(node, ast.Compare)):
            sides = [compared.left, *compared.comparators]
            parts = [part for side in sides for part in getattr(side, "elts", [side])]
            floats = [part for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, float)]
            calls = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Call)]
            called = {getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
            if floats and called & COMPUTED and any(isinstance(op, ast.Eq | ast.NotEq) for op in compared.ops):
                yield asserted.lineno


@pytest.mark.parametrize("line", ["x.mean() == 0.5", "0.1 != np.quantile(x, 0.5)", "(n, round(sum(x), 1)) == (1, 0.3)"])
def test_an_exact_comparison_is_found(line):
    assert list(exact(ast.parse(f"x = 1\nassert {line}"))) == [2]
    assert not list(exact(ast.parse("assert x.mean() == pytest.approx(0.5) and (x > 0.1).sum() == 3 and x.mean() < 0.5")))


PUBLIC = {"_asdict", "_exit", "_fields", "_getframe", "_make", "_replace"}
"""Names of named tuples, of `os` and of `sys` that are public in spite of their underscore."""
MOST = 60
"""Private reads that all tests may have together."""


def private(tree):
    """Lines that read, import or replace a private name of something else than `self`."""

    def hidden(name):
        return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in PUBLIC

    for node in ast.walk(tree):
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
    assert list(private(ast.parse(f"x = 1\n{line}"))) == [2]
    assert not list(private(ast.parse("self._y = x._replace(z=1).__class__")))


def test_all_tests_keep_both_rules():
    """Nothing computed is compared exactly; private reads are few, and each line has its reason."""
    inexact, hidden, unexplained = [], 0, []
    for path in TESTS:
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        inexact += [f"{path.name}:{line}" for line in exact(tree)]
        for line in private(tree):
            hidden += 1
            if "# private: " not in lines[line - 1]:
                unexplained.append(f"{path.name}:{line}")
    assert inexact == [], "write pytest.approx(...)"
    assert hidden <= MOST
    assert unexplained == []
