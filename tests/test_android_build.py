"""What `flet build apk` reads and installs for the app for Android: its pyproject.toml, and whether pip resolves it for both ABIs.

The second asks the package index, on the app's own Python: `make test-android`.
"""

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeroute

ROOT = Path(__file__).parents[1]
APP = ROOT / "android_demo"
LONG = 600
NATIVE = {
    "msgpack": ("1.1.2", []),
    "numpy": ("2.4.6", ["flet-libcpp-shared>=27"]),
    "onnxruntime": ("1.27.0", ["numpy>=1.21.6", "protobuf", "flatbuffers", "packaging", "flet-libcpp-shared>=27"]),
    "pillow": ("12.2.0", []),
    "pydantic-core": ("2.33.2", ["typing-extensions>=4.6.0,!=4.7.0"]),
}
"""Packages with code of their own -> the version that Flet's index has a recipe for, and what its wheel requires there."""
HOSTS = {**NATIVE, "flet-libcpp-shared": ("27.2.12479018", [])}
PRETEND = """
import platform, sysconfig, types
platform.system = lambda: "Android"
platform.android_ver = lambda: types.SimpleNamespace(api_level=24)  # of Python 3.13 and later; newer versions of pip ask it
sysconfig.get_platform = lambda: {tag!r}
"""
"""What Flet's build puts in pip's way, so that it takes itself for a phone's: sys.platform stays the builder's."""

pytestmark = [pytest.mark.matrix, pytest.mark.skipif(not APP.is_dir(), reason="the app is not in the wheel")]
tomllib = pytest.importorskip("tomllib")
requirements = pytest.importorskip("packaging.requirements")
pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def manifest():
    """The app's pyproject.toml."""
    return tomllib.loads((APP / "pyproject.toml").read_text())


def test_manifest(manifest):
    """Its Python, ABIs and permissions; each package with code of its own is pinned to a version that there is for Android."""
    project, flet = manifest["project"], manifest["tool"]["flet"]
    assert project["requires-python"] == ">=3.12,<3.13"
    assert flet["android"]["target_arch"] == ["arm64-v8a", "x86_64"]
    assert flet["android"]["permission"] == {"android.permission.INTERNET": True, "android.permission.CAMERA": True}
    assert flet["android"]["extract_packages"] == ["edgeroute"]
    assert (APP / flet["dev_packages"]["edgeroute"]).resolve() == ROOT
    listed = {one.name: str(one.specifier) for one in map(requirements.Requirement, project["dependencies"])}
    assert {name: listed[name] for name in NATIVE} == {name: f"=={version}" for name, (version, _) in NATIVE.items()}
    assert listed["flet"] == listed["flet-camera"]
    assert (APP / "assets" / "icon.png").is_file()
    for name in flet["app"]["exclude"]:
        assert name in {".flet", "README.md", "Containerfile", "screenshot.png"}  # nothing that the app reads
    for file in ("main.py", "things.py", "sentences.py", "policy.toml", "models/things.int8.onnx", "photos/cup.jpg"):
        assert (APP / file).is_file()


def test_keys(manifest):
    """Each key of [tool.flet] is one that Flet's command line reads."""
    cli = pytest.importorskip("flet_cli.commands.build_base")
    source = Path(cli.__file__).read_text()

    def leaves(table, path):
        for key, value in table.items():
            if isinstance(value, dict) and key not in {"permission", "feature", "dev_packages"}:
                yield from leaves(value, [*path, key])
            else:
                yield [*path, key]

    for path in leaves(manifest["tool"]["flet"], []):
        tail = path[1:] if path[0] == "android" else path
        names = {".".join(["tool.flet", *path]), ".".join(["tool.flet", *tail]), ".".join(tail)}
        assert any(f'"{name}"' in source for name in names), path


def test_the_wheel_has_what_a_phone_requires():
    """By the markers as Flet's builds have them: no httptools, which has no wheel there, and h11 in its place."""
    listed = [*map(requirements.Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])]
    for platform in ("linux", "darwin", "win32", "android"):  # the builder's, or from Python 3.13 on the phone's
        there = {"platform_system": "Android", "sys_platform": platform, "platform_machine": "x86_64", "python_version": "3.12"}
        needed = {one.name for one in listed if one.marker is None or one.marker.evaluate(there)} - {"filelock"}
        assert needed == {"numpy", "h11", "certifi", "tenacity"}


AS_PACKED = """
import sys
sys.modules["httptools"] = None  # a phone has h11
from pathlib import Path
import edgeroute, things
assert things.__file__.endswith(".pyc") and edgeroute.__file__.endswith(".pyc"), (things, edgeroute)
app = things.Things(Path(sys.argv[1]))
*_, card = app.ask(things.photograph("cup"))
assert (card.label, card.state) == ("cup or mug", "edge"), card
app.close()
"""


def test_compiled(tmp_path):
    """Flet packs no source: edgeroute and the app run from what was compiled of them."""
    packed = tmp_path / "packed"
    package = Path(edgeroute.__file__).parent
    shutil.copytree(package, packed / "edgeroute", ignore=shutil.ignore_patterns("__pycache__", "docs", "examples"))
    shutil.copytree(APP, packed, ignore=shutil.ignore_patterns(".flet", "build", "__pycache__"), dirs_exist_ok=True)
    compileall.compile_dir(packed, quiet=2, legacy=True)
    for file in packed.rglob("*.py"):
        file.unlink()
    environment = {**os.environ, "PYTHONPATH": str(packed)}
    command = [sys.executable, "-W", "error", "-c", AS_PACKED, str(tmp_path / "storage")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def container():
    """The instructions of the Containerfile, as (name, value)."""
    parser = pytest.importorskip("dockerfile_parse")
    with (APP / "Containerfile").open("rb") as file:
        return [(one["instruction"], one["value"]) for one in parser.DockerfileParser(fileobj=file).structure]


def test_the_container_passes_its_linter():
    if (linter := shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")) is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(APP / "Containerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_container_has_the_versions_and_options_of_the_app(container, manifest):
    """Python, Flet and the app's name, and only options that this version of Flet's command line has."""
    pytest.importorskip("flet_cli")
    values = "\n".join(value for _, value in container)
    assert "python:3.12-" in values
    (flet,) = re.findall(r"flet\[cli\]==([0-9.]+)", values)
    assert f"flet=={flet}" in manifest["project"]["dependencies"]
    assert f"{manifest['tool']['flet']['org']}.{manifest['project']['name']}" in values
    (build,) = [value.split() for name, value in container if name == "RUN" and value.startswith("flet build")]
    assert build[:3] == ["flet", "build", "apk"]
    command = [sys.executable, "-m", "flet_cli.cli", "build", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True).stdout
    assert set(build[3:]) <= set(re.findall(r"--[a-z-]+", told))


def test_what_the_container_copies_is_a_whole_package(container, tmp_path):
    """edgeroute's wheel is built from these files alone, and the app is among them."""
    pytest.importorskip("pip")
    for name, value in container:
        *sources, to = [one for one in value.split() if not one.startswith("--")] if name == "COPY" else [""]
        for source in sources if "--from" not in value else ():
            place = tmp_path / "there" / to
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__", ".flet", "build"), dirs_exist_ok=True
                )
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    assert (tmp_path / "there" / "android_demo" / "main.py").is_file()
    if not os.environ.get("TEST_INDEX"):
        return  # hatchling comes from the package index
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(tmp_path / "there")], capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("edgeroute-*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert {"edgeroute/__init__.py", "edgeroute/tools/state_colours_and_marks.py"} <= set(files.namelist())


def stub(folder, name, version, requires, tag):
    """An empty wheel for Android."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-{version}-{tag}.whl", "w") as wheel:
        needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.timeout(2 * LONG)
@pytest.mark.skipif(not os.environ.get("TEST_INDEX"), reason="the package index is asked with TEST_INDEX=1")
@pytest.mark.skipif(sys.version_info[:2] != (3, 12), reason="the app's Python is 3.12")
@pytest.mark.parametrize("abi", ["arm64-v8a", "x86_64"])
def test_resolution(abi, manifest, tmp_path):
    """As Flet calls pip: wheels alone, edgeroute from this folder, and stubs for what only Flet's index has."""
    tag = f"android-24-{abi.replace('-', '_')}"
    python = "cp312-cp312-" + re.sub("[^a-z0-9]", "_", tag)
    for name, (version, requires) in HOSTS.items():
        stub(tmp_path, name, version, requires, python if name in NATIVE else python.replace("cp312-cp312", "py3-none"))
    (tmp_path / "pretend").mkdir()
    (tmp_path / "pretend" / "sitecustomize.py").write_text(PRETEND.format(tag=tag))
    listed = [
        f"edgeroute @ {ROOT.as_uri()}" if one.startswith("edgeroute") else one for one in manifest["project"]["dependencies"]
    ]
    report = tmp_path / "report.json"
    command = [
        sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--upgrade", "--only-binary", ":all:",
        "--find-links", str(tmp_path), "--target", str(tmp_path / "there"), "--dry-run", "--report", str(report), *listed,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "pretend"), "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr
    taken = {one["metadata"]["name"].lower(): one for one in json.loads(report.read_text())["install"]}
    for name, (version, _) in HOSTS.items():
        assert taken[name]["metadata"]["version"] == version
    assert "httptools" not in taken
    assert "h11" in taken
    assert taken["pydantic"]["metadata"]["version"] == "2.11.10"
    for name in set(taken) - set(HOSTS) - {"edgeroute"}:  # all others are pure Python
        assert taken[name]["download_info"]["url"].endswith("-none-any.whl"), name
