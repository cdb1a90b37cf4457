"""Tests compare no computed mean, sum or quantile exactly: another processor adds in another order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

COMPUTED = {
    "average", "cumsum", "dot", "fmean", "fsum", "geometric_mean", "harmonic_mean", "mean", "median", "nanmean", "nanmedian", "nanquantile",
    "nansum", "norm", "percentile", "prod", "pstdev", "quantile", "quantiles", "std", "stdev", "sum", "var", "variance",
}  # fmt: skip
TESTS = [*Path(__file__).parent.rglob("*.py"), *(Path(__file__).parents[1] / "examples").glob("*/test_*.py")]


def exact(text):
    """Lines in which an `assert` has `==` or `!=` between something computed and a float, in tuples and lists too."""
    for asserted in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)):
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
    assert list(exact(f"x = 1\nassert {line}")) == [2]
    assert not list(exact("assert x.mean() == pytest.approx(0.5) and (x > 0.1).sum() == 3 and x.mean() < 0.5"))


def test_nothing_computed_is_compared_exactly():
    found = [f"{path}:{line}" for path in TESTS for line in exact(path.read_text(encoding="utf-8"))]
    assert not found, "write pytest.approx(...)"
