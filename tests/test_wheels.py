"""Every device of docs/devices.md has wheels of what it installs, by the package index: `TEST_INDEX=1 pytest tests/test_wheels.py`.

Only where that is said, as an index may take minutes; and where it answers.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONG = 600
PI_32 = ("linux_armv7l", "manylinux2014_armv7l", *(f"manylinux_2_{n}_armv7l" for n in (17, 31, 34, 35, 36)))
"""What pip of Raspberry Pi OS 12 takes, whose C library is 2.36."""

pytestmark = pytest.mark.matrix


def program():
    """benchmarks/wheels.py."""
    sys.path.append(str(ROOT / "benchmarks"))  # it imports what is beside it
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "benchmarks" / "wheels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheels"] = module
    spec.loader.exec_module(module)
    return module


wheels = program()


@cache
def unreachable():
    """Why the index is not asked; empty: it is."""
    if not os.environ.get("TEST_INDEX"):
        return "the package index is asked with TEST_INDEX=1"
    if shutil.which("uv") is None and importlib.util.find_spec("uv") is None:
        return "there is no uv"
    try:
        done = subprocess.run(
            [*wheels.UV, "pip", "compile", "--quiet", "--refresh", "--no-header", "-"],
            input="certifi", capture_output=True, text=True, timeout=LONG, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "the package index does not answer"
    return "" if done.returncode == 0 else "the package index cannot be asked"


@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("device", wheels.DEVICES, ids=lambda device: device.name)
def test_a_device_has_wheels_of_all_its_extras(device):
    """All together, and those that others exclude by themselves."""
    if why := unreachable():
        pytest.skip(why)
    there = [extra for extra in wheels.extras() if extra not in device.lacks]
    together = [extra for extra in there if extra not in wheels.ALONE]
    assert wheels.resolves(together, device.platform, device.python) == ""
    for extra in set(there) & wheels.ALONE:
        assert wheels.resolves([extra], device.platform, device.python) == ""


@pytest.mark.timeout(2 * LONG)
def test_a_raspberry_pi_of_32_bits_has_wheels_of_all_but_numpy(tmp_path):
    """numpy's is piwheels'. Each requirement is asked for by itself: pip takes the markers of this machine."""
    if why := unreachable():
        pytest.skip(why)
    requirements = pytest.importorskip("packaging.requirements")
    project = wheels.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["tflite"]]
    environment = {
        "platform_machine": "armv7l",
        "sys_platform": "linux",
        "python_version": "3.11",
        "python_full_version": "3.11.2",
    }
    needed = [one for one in map(requirements.Requirement, listed) if one.marker is None or one.marker.evaluate(environment)]
    names = [f"{one.name}{one.specifier}" for one in needed if one.name != "numpy"]
    assert any(name.startswith("tflite-runtime") for name in names)
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--only-binary", ":all:",
        "--target", str(tmp_path), "--python-version", "3.11", "--implementation", "cp", *(f"--platform={tag}" for tag in PI_32), *names,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_has_these_devices():
    """With the Python and the extras that are tried here."""
    text = (ROOT / "docs" / "devices.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    for device in wheels.DEVICES:
        line = rows[device.name]
        assert device.python in line
        told = set(re.findall(r"`(\w+)`", line))
        assert not told & device.lacks, f"{device.name} has no wheels of {told & device.lacks}"
        assert told <= {*wheels.extras()}
