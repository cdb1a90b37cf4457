"""The commands of docs/fleet.md run in their order, on digests of random devices."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import cli
from fleets import put, random_fleet

pytestmark = pytest.mark.matrix
for package in ("duckdb", "pyarrow", "tuf", "securesystemslib"):
    pytest.importorskip(package)
PAGE = Path(__file__).parent.parent / "docs" / "fleet.md"


def test_the_commands_of_the_page(tmp_path, monkeypatch, fashion):
    """Each ends as it should; promote waits, since no device has the policy yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(fashion.parent)
    text = PAGE.read_text()
    (policy,) = re.findall(r"^```toml\n# device.toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    Path("device.toml").write_text(policy)
    put(tmp_path / "digests", random_fleet(20, 3, seed=1))
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    codes = {}
    for line in lines:
        name, *words = shlex.split(line)
        code, out, err = cli(*words)
        assert name == "edgeroute"
        assert code in {0, 5}, f"{line}\n{out}{err}"
        codes[words[1]] = code
    assert codes == {"collect": 0, "report": 0, "alarm": 0, "keygen": 0, "publish": 0, "promote": 5}
    assert Path("report.html").stat().st_size > 1_000
