"""docs/security.md: each statement has its code and tests in docs/evidence.md, whose bounds are the code's."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from both import LONG

from edgeroute import CloudError, OpenAIChat, OpenInference, PlainJson, Router
from edgeroute.testing import CannedServer, http_reply

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TEXT = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\* (.+?): ([\d,]+)( \w+)?, `([\w.]+)(?:\((\w+)\))?`$", TEXT, re.MULTILINE)
UNITS = {"": 1, " s": 1, " KiB": 1 << 10, " MiB": 1 << 20}


def test_each_statement_names_what_there_is():
    """Files of the code, and tests."""
    for file in re.findall(r"`(edgeroute/[\w/]+\.py)`", TEXT):
        assert (Path(import_module("edgeroute").__file__).parent.parent / file).exists(), file
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"
    claims = re.findall(r"^\* (\*\*Cannot.+?\*\*)", PAGE, re.MULTILINE)
    evidence = TEXT.replace("\n  ", " ")
    assert len(claims) > 10
    assert [claim for claim in claims if f"* {claim}: `" not in evidence] == []


def test_the_list_is_whole():
    """Each line of it is one that the next test reads."""
    bounds = TEXT.split("\n## Bounds\n")[1].split("\n## ")[0]
    assert len(ROWS) == len(re.findall(r"^\*", bounds, re.MULTILINE)) > 20


@pytest.mark.parametrize(("what", "number", "unit", "name", "argument"), ROWS, ids=[row[0] for row in ROWS])
def test_a_bound_is_the_codes(what, number, unit, name, argument):
    """By its name in a module, or as the default of an argument."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    if argument:
        found = inspect.signature(found).parameters[argument].default
    assert found == int(number.replace(",", "")) * UNITS[unit], what


@pytest.mark.parametrize("status", [200, 201, 301, 302, 303, 307, 308, 401, 503])
@pytest.mark.parametrize("kind", ["plain", "openinference", "openai"])
def test_no_url_of_an_answer_is_followed(kind, status):
    """Wherever it stands: the server that it leads to sees no connection, and so no input and no credentials."""
    with CannedServer(http_reply(b"{}")) as elsewhere:
        there = f"{elsewhere.url}/here"
        headers = [
            ("Content-Type", "application/json"), ("Location", there), ("Content-Location", there), ("Refresh", f"0; url={there}"),
            ("Link", f'<{there}>; rel="next"'), ("Alt-Svc", f'h2="{there.removeprefix("http://")}"'), ("Retry-After", "0"),
        ]  # fmt: skip
        text = json.dumps({
            "value": there, "url": there, "next": there, "$ref": there, "error": {"message": there, "url": there},
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"![]({there})"}}],
            "outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": [there]}], "inputs": [], "versions": [there],
        })  # fmt: skip
        with CannedServer(http_reply(text.encode(), status=status, headers=headers)) as far:
            options = {"timeout_s": LONG, "retries": 1, "api_key": "key-of-the-cloud"}
            cloud = {
                "plain": lambda: PlainJson(far.url, **options),
                "openinference": lambda: OpenInference(f"{far.url}/v2/models/m", binary=False, **options),
                "openai": lambda: OpenAIChat(far.url, model="m", **options),
            }[kind]()
            with Router(cloud=cloud) as router, contextlib.suppress(CloudError):
                router.infer("hello" if kind == "openai" else np.zeros(2, np.float32))
            assert far.requests
        assert (elsewhere.connections, elsewhere.requests) == (0, [])
