"""What is released: the wheel and the source distribution, built as `python -m build` does, and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import edgeroute

for needed in ("build", "hatchling", "twine"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[1]
VERSION = edgeroute.__version__
LARGEST = {"wheel": 7_000_000, "sdist": 20_000_000}
"""Bytes; they were 5.7 and 18.0 million on 2026-11-30: the source has the prototypes' models, photographs and film. What makes one much
larger is decided, and does not come along unseen."""
NOT_RELEASED = (".github/",)
"""Of what git tracks: it is of use in a repository alone."""
JUNK = (
    "edgeroute/core/__pycache__/plan.cpython-311.pyc", "docs/__pycache__/x.pyc", "tests/__pycache__/x.pyc", ".venv/lib/tests/test_x.py",
    "venv/lib/docs/x.md", "venv/lib/edgeroute/x.py", "shared/models/x.onnx", ".env", "android_demo/.flet/storage/data/outbox.db",
    "android_demo/build/apk/app.apk", ".examples/ar/lib/x.py", "build/lib/edgeroute/x.py", "dist/old.whl", ".coverage.host.1",
    ".mypy_cache/3.11/x.json", "models/fashion/.DS_Store", "examples/policies/state/outbox.db", "examples/policies/state/cache-key",
)  # fmt: skip
"""What lies about in a folder that is worked in."""
UNTRACKED = (
    "docs/notes.md", "examples/policies/my device [1].toml", "models/fashion/secret.key", "edgeroute/tools/draft.py", "tests/test_draft.py",
    "edgeroute/drafts/deep/x.py",
)  # fmt: skip
"""What nobody has committed, and no .gitignore names."""


def tracked() -> list[str]:
    """The files of the project, those that git has; without git it skips the test, as in an unpacked source distribution."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: which files are the project's, git knows")
    return subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def run(*command, cwd):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A clone of the project, worked in."""
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked():
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tree, check=True)
    for name in JUNK + UNTRACKED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("junk")
    return tree


@pytest.fixture(scope="module")
def built(tree):
    """The source distribution, and the wheel that is built from it."""
    out = tree / "dist" / "new"
    run("build", "--no-isolation", "--outdir", out, cwd=tree)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built[1]) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return message_from_bytes(wheel[f"edgeroute-{VERSION}.dist-info/METADATA"])


@pytest.mark.slow
def test_the_index_takes_both(built):
    """By twine's checks, with warnings as errors; and they are no larger than they were decided to be."""
    sdist, wheel = built
    assert run("twine", "check", "--strict", sdist, wheel, cwd=sdist.parent).count("PASSED") == 2
    sizes = {"wheel": wheel.stat().st_size, "sdist": sdist.stat().st_size}
    assert all(sizes[what] < LARGEST[what] for what in sizes), sizes


@pytest.mark.slow
def test_the_wheel_is_the_package_and_what_it_reads(wheel):
    """Code, models, pages, policies, licences, and nothing else."""
    info = f"edgeroute-{VERSION}.dist-info"
    names = tracked()
    wanted = {name for name in names if name.startswith("edgeroute/")}
    wanted |= {f"edgeroute/{name}" for name in names if name.startswith(("docs/", "models/fashion/", "examples/policies/"))}
    wanted |= {
        f"edgeroute/{name}"
        for name in (
            "models/README.md",
            "examples/edgeroute.service",
            "examples/grafana.json",
            "examples/distil.py",
            "examples/java_onnx.py",
            "examples/library_clouds.py",
            "examples/retrain.py",
        )
    }
    wanted |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    wanted |= {f"{info}/licenses/models/fashion/LICENSE.fashion-mnist"}
    assert set(wheel) == wanted
    for name in ("edgeroute/py.typed", "edgeroute/docs/quickstart.md", "edgeroute/models/fashion/edge.int8.onnx"):
        assert name in wheel


@pytest.mark.slow
def test_the_source_has_all_that_its_tests_need(built):
    """It is what git has, so that an unpacked one passes `make test`."""
    with tarfile.open(built[0]) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
        assert not [one.name for one in archive if not (one.isfile() or one.isdir())], "links may lead anywhere"
    wanted = {name for name in tracked() if not name.startswith(NOT_RELEASED)}
    assert there - {"PKG-INFO", ""} == wanted
    for name in ("Makefile", "CHANGELOG.md", "tests/test_distribution.py", "android_demo/main.py", "benchmarks/run.py"):
        assert name in wanted


@pytest.mark.slow
def test_a_wheel_of_the_source_is_that_of_the_tree(tree, built):
    """To the byte."""
    again = tree / "dist" / "again"
    run("build", "--no-isolation", "--wheel", "--outdir", again, cwd=tree)
    (one,) = again.glob("*.whl")
    assert one.name == built[1].name
    assert one.read_bytes() == built[1].read_bytes()


@pytest.mark.slow
def test_a_wheel_is_the_same_wherever_and_whenever_it_is_built(tree, tmp_path):
    """From two clones in folders of other names, under other umasks, with files of other times, and in another language and time zone."""
    author = ["-c", "user.name=any", "-c", "user.email=any@example.com"]
    subprocess.run(["git", *author, "commit", "--quiet", "--allow-empty", "--message", "All"], cwd=tree, check=True)
    wheels = []
    for name, mask, hours, more in (
        ("one", 0o022, -20_000, {"TZ": "UTC"}),
        ("an other", 0o077, 3, {"TZ": "Asia/Tokyo", "LC_ALL": "C"}),
    ):
        clone, out = tmp_path / name, tmp_path / f"{name}-out"
        environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"} | more
        subprocess.run(["git", "clone", "--quiet", tree, clone], check=True, umask=mask)
        for file in clone.rglob("*"):
            os.utime(file, (time.time() + hours * 3600,) * 2)
        command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out]
        subprocess.run(command, cwd=clone, env=environment, umask=mask, capture_output=True, timeout=300, check=True)
        wheels += out.glob("*.whl")
    assert len({hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}) == 1
    assert len(wheels) == 2


@pytest.mark.matrix
def test_the_list_of_packages_is_whole():
    """By `make sbom`, which has it validated: each package by name, version and licence, on which others depend, and nothing of this machine."""
    subprocess.run(["make", "--silent", "sbom"], cwd=ROOT, check=True, capture_output=True, timeout=500)
    text = (ROOT / "dist" / f"edgeroute-{VERSION}.cdx.json").read_text()
    listed = json.loads(text)
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    root = listed["metadata"]["component"]
    assert (root["name"], root["version"], root["licenses"][0]["expression"]) == ("edgeroute", VERSION, "Apache-2.0 AND MIT")
    packages = {one["bom-ref"]: one for one in listed["components"]}
    assert {"numpy", "certifi", "tenacity", "onnxruntime", "starlette", "typer"} <= {one["name"] for one in packages.values()}
    assert "edgeroute" not in {one["name"] for one in packages.values()}
    assert all(one["purl"].startswith("pkg:pypi/") and one["purl"].endswith(f"@{one['version']}") for one in packages.values())
    assert {one["name"] for one in packages.values() if not one.get("licenses")} <= {"protobuf"}, "its metadata name none"
    needs = {one["ref"]: one.get("dependsOn", []) for one in listed["dependencies"]}
    assert {"numpy", "certifi"} <= {packages[ref]["name"] for ref in needs[root["bom-ref"]]}
    assert {ref for refs in needs.values() for ref in refs} == packages.keys(), "each is one that something needs"
    assert str(ROOT) not in text
    assert '"timestamp"' not in text


@pytest.fixture
def unpacked(built, tmp_path):
    """The folder of an unpacked source distribution, which has no git."""
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    (folder,) = tmp_path.iterdir()
    return folder


@pytest.mark.slow
def test_ignored_files_are_left_out_where_there_is_no_git(built, unpacked):
    """A wheel is built from an unpacked source distribution, too, in which somebody has tried the policies."""
    state = unpacked / "examples" / "policies" / "state"
    state.mkdir()
    (state / "cache-key").write_text("junk")
    run("build", "--no-isolation", "--wheel", cwd=unpacked)
    (wheel,) = (unpacked / "dist").glob("*.whl")
    assert wheel.read_bytes() == built[1].read_bytes()


@pytest.mark.slow
def test_a_clone_that_git_cannot_read_builds_nothing(unpacked):
    """Which of its files are tracked is not known, and the error gives the next step."""
    (unpacked / ".git").write_text("gitdir: elsewhere\n")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel"]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "git cannot list the untracked files" in done.stdout + done.stderr
    assert not list((unpacked / "dist").glob("*.whl"))


@pytest.mark.slow
def test_an_editable_install_reads_the_clone(tree):
    """Nothing is copied: a wheel of it has a path and the metadata."""
    program = "from hatchling.build import build_editable; print(build_editable('dist/editable'))"
    (tree / "dist" / "editable").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", program], cwd=tree, check=True, capture_output=True, timeout=300)
    (one,) = (tree / "dist" / "editable").glob("*.whl")
    with zipfile.ZipFile(one) as archive:
        (path,) = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert archive.read(path).decode().strip() == str(tree)


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_them(wheel, built):
    """No path of the folder where it was built, or where this test runs."""
    with tarfile.open(built[0]) as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive if one.isfile()}
    here = [str(path).encode() for path in (ROOT, built[0].parent) if len(path.parts) > 2]
    here += [f"{path}/".encode() for path in [Path.home()] if path != Path("/")]  # /root, too, which by itself is in other paths
    found = [name for name, data in {**wheel, **files}.items() if any(path in data for path in here)]
    assert not found, found


@pytest.mark.slow
def test_what_the_index_shows(metadata, wheel):
    """The page is the README. Its links are those of a repository: there is no address yet that they could be made of."""
    assert metadata["Name"] == "edgeroute"
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload(decode=True).decode()
    assert page == (ROOT / "README.md").read_text()
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert b"edgeroute = edgeroute.__main__:main" in wheel[f"edgeroute-{VERSION}.dist-info/entry_points.txt"]


@pytest.mark.slow
def test_there_is_one_version(metadata):
    """In the package; the changelog's newest section and the citation are of the same."""
    assert metadata["Version"] == VERSION
    newest = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None, "the newest section is `## VERSION (unreleased)`, or with a date"
    assert newest[1] == VERSION
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    assert str(citation.get("date-released", "unreleased")) == newest[2]


def test_the_citation_is_one():
    """It has what the format, 1.2.0, asks for, and no other key than it knows."""
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert {"message", "title", "authors"} <= citation.keys()
    assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in citation["authors"])
    known = {
        "cff-version", "type", "message", "title", "abstract", "authors", "version", "date-released", "license", "keywords", "doi", "url",
        "repository-code",
    }  # fmt: skip
    assert citation.keys() <= known
    assert all(isinstance(word, str) for word in citation["keywords"])
