"""docs/peers.md: what it says of edgeroute is what benchmarks/peers.py does here, and of other routers, where they are installed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from edgeroute import RuntimeMissing

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "peers.md").read_text()
KNOWN = re.compile(r".+ \([rsd]\)|\?|-")
"""A cell about another project: how it is known, or that it is not, or that there is nothing to know."""
NUMBER = re.compile(r"\b\d+\b")


def tables():
    """Heading of a table -> row -> column -> cell."""
    found = {}
    for head, body in re.findall(r"^\| ([^|\n]+ \| edgeroute \|.*)\n\| --- .*\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        group, *columns = (cell.strip() for cell in head.strip("| ").split("|"))
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in body.splitlines()]
        found[group] = {row: dict(zip(columns, cells, strict=True)) for row, *cells in rows}
    return found


TABLES = tables()
ROWS = {row: cells for rows in TABLES.values() for row, cells in rows.items()}
OTHERS = [*next(iter(ROWS.values()))][1:]
OWN = {"edgeroute", "peers", "peers_more", "peers_theirs", "peers_nothing"}


@pytest.fixture
def bench(monkeypatch):
    """The benchmark."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers

    return peers


def test_the_page_has_the_rows_of_the_benchmark(bench):
    """In its order, and no others; and each can be filled."""
    assert {group: tuple(rows) for group, rows in TABLES.items()} == bench.GROUPS
    assert {*bench.COLUMNS["edgeroute"]()} == {*ROWS}


@pytest.mark.parametrize("row", ROWS)
def test_edgeroute_does_what_its_column_says(bench, row):
    """By doing it."""
    try:
        cell = bench.COLUMNS["edgeroute"]()[row]()
    except ImportError as e:
        if not of_others(e):
            raise
        pytest.skip(f"{e}")
    assert cell == ROWS[row]["edgeroute"]


def of_others(error):
    """Whether what cannot be imported is an optional package: not edgeroute, nor the benchmark."""
    names, others = [], isinstance(error, RuntimeMissing)
    while error is not None:
        names += [error.name.partition(".")[0]] if isinstance(error, ImportError) and error.name else []
        error = error.__cause__
    return not {*names} & OWN and bool(names or others)


def test_an_import_that_fails_by_its_own_fault_is_no_reason_to_skip():
    """Only what edgeroute can do without."""
    for module in ("edgeroute.nothing", "edgeroute", "peers_nothing"):
        with pytest.raises(ImportError) as told:
            exec(f"from {module} import nothing")
        assert not of_others(told.value)
        within = RuntimeMissing("a runtime")
        within.__cause__ = told.value
        assert not of_others(within)
    assert not of_others(ImportError("by hand"))
    assert of_others(ModuleNotFoundError("x", name="onnx.helper"))
    assert of_others(RuntimeMissing("no runtime is installed"))


@pytest.mark.filterwarnings("ignore")  # of their own imports
@pytest.mark.matrix
@pytest.mark.parametrize(
    ("name", "package"),
    [("LiteLLM", "litellm"), ("pydantic-ai", "pydantic-ai-slim"), ("cascadeflow", "cascadeflow"), ("firstpass", "firstpass")],
)
def test_what_was_run_of_others_is_what_they_do(bench, name, package, monkeypatch):
    """Where they are installed; how many attempts they make differs by one at times, and is not compared."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network as it is imported
    try:
        version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    said = {row: cells[name].removesuffix(" (r)") for row, cells in ROWS.items() if cells[name].endswith(" (r)")}
    found = bench.column(name)
    assert {row: NUMBER.sub("#", cell) for row, cell in found.items()} == {
        row: NUMBER.sub("#", cell) for row, cell in said.items()
    }


def test_each_cell_says_how_it_is_known():
    """Run, read in source, or documented; each project's sources and version are on the page."""
    for row, cells in ROWS.items():
        assert [*cells] == ["edgeroute", *OTHERS], row
        for name in OTHERS:
            assert KNOWN.fullmatch(cells[name]), f"{row}: {name}: {cells[name]!r}"
    for name in OTHERS:
        assert re.search(rf"^\| {re.escape(name)} \| \S", PAGE, re.MULTILINE), name


def test_the_page_says_which_rows_are_looked_up(bench):
    """Of edgeroute's column: what is in the package, where there is nothing to do."""
    from peers_ours import LOOKED_UP

    (listed,) = re.findall(r"Looked up in the package, and not done, are (.*?)\.\n", PAGE, re.DOTALL)
    assert {" ".join(row.split()) for row in re.findall(r"\*([^*]+)\*", listed)} == {*LOOKED_UP}
