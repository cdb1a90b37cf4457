"""Where a module is looked for that a command line, or a pickle, names: in this folder too, and the import path stays as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeroute import ModelError
from edgeroute.tools.convert_models_to_onnx import convert
from edgeroute.tools.import_by_module_and_name import python_object


def test_a_module_that_extends_the_import_path_keeps_its_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = [*sys.path]
    Path("extends_the_path.py").write_text("import sys\nsys.path.insert(0, 'mine')\nanswer = 42\n")
    assert python_object("extends_the_path:answer", "number") == 42
    assert sys.path == ["mine", *before]
    del sys.modules["extends_the_path"]


def test_a_pickle_leaves_the_import_path_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path, "last"])
    before = [*sys.path]
    (tmp_path / "m.pkl").write_bytes(b"no pickle")
    with pytest.raises(ModelError):
        convert(tmp_path / "m.pkl", trust=True)
    assert sys.path == before
