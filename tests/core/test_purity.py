"""The core stays pure, and importing the package stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgeroute

PACKAGE = Path(edgeroute.__file__).parent
ALLOWED = {"__future__", "bisect", "collections.abc", "typing", "math"}


@pytest.mark.parametrize("file", sorted((PACKAGE / "core").glob("*.py")), ids=lambda f: f.name)
def test_core_imports_neither_clock_nor_io_nor_third_party(file):
    """A file of core/ imports core/ and five modules of the standard library that do nothing."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            assert name in ALLOWED or name.startswith("edgeroute.core"), f"{file.name} imports {name}"
        if isinstance(node, ast.Name):
            assert node.id not in {"open", "print", "input", "__import__", "exec", "eval"}


def test_import_is_cheap():
    """`import edgeroute` imports no runtime, no client, no settings and no numpy."""
    code = "import sys, edgeroute; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"onnxruntime", "httpx", "pydantic", "tenacity", "numpy", "asyncio", "ssl"} & set(loaded)


def test_a_router_without_a_cloud_imports_no_client():
    """An edge-only router brings in neither httpx nor tenacity nor pydantic."""
    code = "import sys; from edgeroute import Router; Router(edge=lambda x: (x, 1.0)).infer(1); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"httpx", "tenacity", "pydantic", "asyncio", "ssl", "onnxruntime"} & set(loaded)


def test_public_names():
    """`__all__` begins with those that users need; every name exists, and type checkers know the same; another is an AttributeError."""
    assert edgeroute.__all__[0] == "Router"
    assert len(edgeroute.__all__) <= 72
    assert set(edgeroute.__all__) == set(dir(edgeroute))
    stub = Path(edgeroute.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom) and node.module != "edgeroute"]
    homes = {name.name: str(node.module).removeprefix("edgeroute.") for node in imports for name in node.names}
    assert homes == edgeroute._HOMES  # private: lazy names are listed there alone
    for name in edgeroute.__all__:
        assert getattr(edgeroute, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Ruter'"):
        edgeroute.Ruter  # noqa: B018
