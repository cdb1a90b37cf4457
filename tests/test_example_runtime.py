"""examples/runtime_openvino: its entry point is found, and its arguments are keys of a policy. Its own test runs where OpenVINO is."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeroute import RuntimeMissing
from edgeroute import policy as settings
from edgeroute.edge import runtimes_variants_ensemble as runtimes
from edgeroute.testing import fresh_runtimes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = Path(__file__).parents[1] / "examples" / "runtime_openvino"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package, as pip installs it: its module, and its metadata beside it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"edgeroute_openvino-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"][runtimes.GROUP]
    (info / "entry_points.txt").write_text(
        f"[{runtimes.GROUP}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
    )
    (tmp_path / "edgeroute_openvino.py").write_text((EXAMPLE / "edgeroute_openvino.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    with fresh_runtimes():
        yield
    sys.modules.pop("edgeroute_openvino", None)


def test_edgeroute_finds_it(installed, tmp_path):
    """By its suffix, in a policy, with its keys."""
    assert runtimes.suffix_of("edge.xml") == ".xml"
    policy = tmp_path / "p.toml"
    policy.write_text('threshold = 0.8\n[edge]\npath = "edge.xml"\ndevice = "GPU"\nprecision = "f16"\n')
    made = settings.load(policy).arguments(tmp_path)["edge"]
    assert (type(made).__name__, made.device, made.precision) == ("OpenVINOModel", "GPU", "f16")
    assert made.settings == {"runtime": "openvino", "device": "GPU", "precision": "f16"}


@pytest.mark.skipif(find_spec("openvino") is not None, reason="OpenVINO is here")
def test_without_openvino(installed, tmp_path):
    """It says what to install, and not before the model is loaded."""
    (tmp_path / "edge.xml").write_text("<net/>")
    model = runtimes.class_of(".xml")(tmp_path / "edge.xml")
    with pytest.raises(RuntimeMissing, match="pip install openvino"):
        model.load()
