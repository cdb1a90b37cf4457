"""The rooms of the package: what each may import, that imports run one way, and how large a file and a class may be.

Every import counts: at the top of a file, inside a function, for types alone, and by a module's name in a string.
"""

from __future__ import annotations

import ast
import functools
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import edgeroute

pytestmark = pytest.mark.slow  # `make check` runs these, as they are rules for who changes the package

PACKAGE = Path(edgeroute.__file__).parent
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
HEADING = "## What each room may import"

LINES = 700
LONG: dict[str, str] = {}
"""Longer files, each with the reason."""
METHODS = 20
LARGE = {
    "cloud/oip_endpoint_base.py ServedModel": "each step of a talk with a model server is a method, which HTTP and gRPC share",
    "cloud/http_backend.py HttpBackend": "each method is a member of the backends' interface, most of one line",
    "stores/outbox/sqlite_queue.py Outbox": "each operation on the queue is a method of its own, and one transaction",
}
"""Classes with more methods, each with the reason."""
LOCKS = {
    "catalog/catalog_client_and_updates.py": "an updater belongs to the process that began it, with its thread",
    "edge/coreml.py": "of a session, which a child sets aside",
    "edge/litert.py": "of an interpreter, which a child sets aside",
    "edge/llama_in_process_engines.py": "of an engine, which a child sets aside",
    "edge/llama_isolated_engine.py": "of an engine, which a child sets aside, and of a process that never forks",
    "router/leg_inputs_views_and_copies.py": "of one call",
    "router/leg_execution.py": "of one call",
    "router/live/source_reader_mailbox_and_calls.py": "of one iterator",
    "router/offline_queue.py": "of one call",
    "system/late_imports_and_plugins.py": "a fork waits for it",
    "system/signal_safe_locks.py": "of a condition, which each process makes for itself",
    "tools/contracts/canned_server.py": "for tests",
    "tools/contracts/scripted_models_and_clouds.py": "for tests",
    "tools/dashboard/dashboard_data_and_tail.py": "a page belongs to the process that serves it",
    "types.py": "of one call",
}
"""Files that make a lock which a forked child takes over, each with the reason."""
TOOL = re.compile(r"edgeroute\.tools\b")
LOOK_UP = "edgeroute.system.late_imports_and_plugins"
"""Its function `import_tool` imports a program of edgeroute/tools/ by its name; nothing else outside that folder does."""
TYPED = {
    "edgeroute.asgi",
    "edgeroute.confidence", "edgeroute.router.async_router", "edgeroute.router.base_router", "edgeroute.router.router", "edgeroute.testing",
}  # fmt: skip
"""Modules that name what the look-up returns for type checkers, where nothing is imported at run time."""


def _module(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module(file): file for file in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "examples" not in file.parents}
"""Module -> its file; without the examples that a wheel has beside them."""


class Facts(NamedTuple):
    """Facts of a module that the tests read. Its syntax tree is dropped at once: hundreds of them slow down the collector."""

    imports: set[str]
    names_tool: bool
    large: list[str]
    makes_lock: bool


def _is_tool(module: str) -> bool:
    return f"{module}.".startswith("edgeroute.tools.")


def _for_types(nodes: list[ast.AST]) -> set[ast.AST]:
    """The imports from edgeroute/tools/ for types alone."""
    blocks = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {node for node in imports if node.module is not None and _is_tool(node.module)}


def _imports(module: str, nodes: list[ast.AST]) -> set[str]:
    """The modules of the package that this one names. `from package import module` names both, but for the top package."""
    found = set[str]()
    typed = _for_types(nodes) if module in TYPED else set()
    for node in nodes:
        if node in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} imports by a relative name"
            assert not node.level, f"{module} imports by a relative name"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= inside
            if node.module != "edgeroute" or len(inside) < len(node.names):
                found.add(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value)
    return found & FILES.keys()


def _is_large(node: ast.ClassDef) -> bool:
    return len({f.name for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}) > METHODS


@functools.cache
def _facts(module: str) -> Facts:
    nodes = list(ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))
    return Facts(
        imports=_imports(module, nodes),
        names_tool=any(
            isinstance(node, ast.Constant) and isinstance(node.value, str) and TOOL.match(node.value) is not None
            for node in nodes
        ),
        large=[node.name for node in nodes if isinstance(node, ast.ClassDef) and _is_large(node)],
        makes_lock=any(
            isinstance(node, ast.Call)
            and ast.unparse(node.func)
            in {"threading.Lock", "threading.RLock", "threading.Condition", "SafeLock", "SafeCondition"}
            for node in nodes
        ),
    )


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> those of the package that it imports."""
    return {module: _facts(module).imports for module in FILES}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _table() -> dict[str, set[str]]:
    """Room -> the rooms that it may import, as docs/design.md has them, from the lowest to the highest."""
    rooms: dict[str, set[str]] = {}
    section = DESIGN.read_text(encoding="utf-8").split(f"\n{HEADING}\n")[1].split("\n## ")[0]
    for room, allowed in re.findall(r"^\| `(\w+)` \| (.*?) *\|$", section, re.MULTILINE):
        assert room not in rooms, f"{room} has two lines"
        rooms[room] = set(rooms) if allowed == "everything above" else set(re.findall(r"`(\w+)`", allowed))
    return rooms


TABLE = _table()


def test_the_rooms_are_those_of_the_design():
    """The package has the rooms of the table in docs/design.md at its top, and nothing else; each is under what uses it."""
    there = {_room(module) for module in FILES}
    assert there == set(TABLE)
    below = set[str]()
    for room, allowed in TABLE.items():
        assert allowed <= below, f"{room} is listed under {sorted(allowed - below)}, which it may import"
        below.add(room)


def test_each_room_imports_only_what_it_may(graph):
    """No import runs up, nor to a room beside that the table does not name."""
    wrong = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if _room(other) not in TABLE[_room(module)] | {_room(module)}
    ]
    assert not wrong, wrong


def test_nothing_imports_the_tools_but_one_look_up(graph):
    """No module outside edgeroute/tools/ imports one of them, or has its name in a string, but for `import_tool`, which imports by name."""
    outside = [module for module in FILES if not _is_tool(module)]
    importers = {module for module in outside if any(map(_is_tool, graph[module]))}
    namers = {module for module in outside if _facts(module).names_tool}
    assert (importers, namers) == (set(), {LOOK_UP})


def test_no_modules_import_each_other_in_a_circle(graph):
    """A package may import its modules, and they import each other, but not through the package."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" > ".join(reversed(e.args[1])))


def test_no_file_is_long():
    """A file has 700 lines at most, unless there is a reason, which goes when it is not needed any more."""
    long = {
        file.relative_to(PACKAGE).as_posix()
        for module, file in FILES.items()
        if len(file.read_text(encoding="utf-8").splitlines()) > LINES
    }
    assert long == set(LONG)


def test_no_class_is_large():
    """A class has 20 methods at most, private ones too, unless there is a reason, which goes when it is not needed any more."""
    large = {f"{FILES[module].relative_to(PACKAGE).as_posix()} {name}" for module in FILES for name in _facts(module).large}
    assert large == set(LARGE)


def test_a_lock_that_outlives_a_call_is_declared():
    """By `per_process`, so that a forked child never waits for one that a thread of its parent holds."""
    made = {FILES[module].relative_to(PACKAGE).as_posix() for module in FILES if _facts(module).makes_lock}
    assert made == {*LOCKS}


def test_locks_that_a_call_takes_are_safe_from_signals():
    """A reentrant lock outside the tools is a `SafeLock`: Ctrl-C leaves a plain one held in Python 3.14."""
    plain = {name for name, path in FILES.items() if not _is_tool(name) and "threading.RLock" in path.read_text("utf-8")}
    assert not plain
