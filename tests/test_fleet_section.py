"""The section [fleet] of a policy: its keys, what it refuses, and that no secret of it is shown."""

import numpy as np
import pytest
import tiny

from edgeroute import Options, PolicyError, Router, Secret
from edgeroute.fleet.device_request_counts import Fleet
from edgeroute.policy import load
from edgeroute.tools.fleet.untrusted_digest_decoder import decode

ROW = np.array([0, 2, 1, 5], np.float32)
HEAD = 'mode = "only_edge"\nstate = "state"\n[edge]\npath = "m.onnx"\n[fleet]\n'


@pytest.fixture
def policy(tmp_path):
    """Return a function that writes a policy with keys of [fleet], and returns its path."""
    tiny.linear(tmp_path / "m.onnx")

    def write(keys, head=HEAD):
        (tmp_path / "policy.toml").write_text(head + keys)
        return tmp_path / "policy.toml"

    return write


def test_the_section_makes_the_part(policy, tmp_path):
    """Relative folders start from the policy's; durations are seconds; a router with it has its figures."""
    (tmp_path / "out").mkdir()
    path = policy('to = "out"\nsite = "plant-7"\nkey = { env = "FLEET_KEY" }\nrotate = "90d"\nevery = "1h"\n')
    settings = load(path)
    assert settings.fleet.keys(tmp_path) == {
        "to": str(tmp_path / "out"), "site": "plant-7", "key": Secret(env="FLEET_KEY"), "rotate": 90 * 86_400.0, "every": 3600.0
    }  # fmt: skip
    with Router.from_policy(path) as router:
        assert router.stats().parts["fleet"] == {"waiting": 0, "sent": 0, "dropped": 0, "error": ""}
    assert settings.with_state(None).fleet.keys(tmp_path) == {}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('to = "https://user:hunter2@example.com"', "a secret does not belong in a file"),
        ('to = "https://bucket.example.com/a?X-Amz-Signature=hunter2"', "a secret does not belong in a file"),
        ('to = "out"\nkey = "hunter2"', "a secret does not belong in a file"),
        ('to = "out"\nrotate = 90', "fleet.rotate: expected a duration"),
        ('to = "out"\nsites = "a"', 'did you mean "site"'),
    ],
)
def test_wrong_keys_are_named_without_secrets(policy, keys, words):
    """Each problem has its key; nothing of an address with a user or a query is quoted."""
    with pytest.raises(PolicyError) as error:
        load(policy(keys))
    assert words in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "to", ["ftp://example.com/a", "http://example.com", "mqtt://example.com/a", "s3://", "https://[::1", "https://a:99999/"]
)
def test_other_addresses_are_refused_as_the_router_is_made(policy, to):
    """Schemes that are not known, and addresses without TLS that are not this device's."""
    with pytest.raises(PolicyError, match="fleet: to "):
        Router.from_policy(policy(f'to = "{to}"\n'))


def test_the_section_needs_a_state_folder(policy):
    """A policy says so, and so does a router made in Python."""
    with pytest.raises(PolicyError, match="fleet: needs state"):
        load(policy('to = "out"\n', HEAD.replace('state = "state"\n', "")))
    with pytest.raises(PolicyError, match="fleet needs state"):
        Router(lambda x: x, options=Options(parts=[Fleet("out")]))


def test_requests_after_a_reload_are_of_another_policy(policy, tmp_path, monkeypatch):
    """In one digest; paths and the section itself are no part of the policy's digest."""
    head = 'mode = "only_edge"\ndeadline = "9s"\nstate = "state"\n[edge]\npath = "m.onnx"\n[egress]\nnever_leave = ["a", "b", "c"]\n[fleet]\n'
    monkeypatch.setattr(Fleet, "opened", lambda self, status: None)
    with Router.from_policy(policy('to = "out"\n', HEAD)) as router:
        fleet = router.engine.parts.all[-2]
        router.infer(ROW)
        policy('to = "out"\n', head)
        router.reload()
        router.infer(ROW)
        assert not fleet.tell()
    (path,) = (tmp_path / "state" / "fleet").glob("*.digest")
    told = decode(path.read_bytes())
    assert len({group[1] for group in told.groups}) == 2
    assert len({group[0] for group in told.groups}) == 1
    assert sum(row[2] for row in told.requests) == 2


def test_check_says_where_counts_go(policy, tmp_path):
    """Beside what inputs may do; a folder that is missing is a problem."""
    (tmp_path / "out").mkdir()
    with Router.from_policy(policy('to = "out"')) as router:
        found = router.check()
        assert (found.ok, f"go to {tmp_path / 'out'} (fleet)" in str(found)) == (True, True)
        (tmp_path / "out").rmdir()
        found = router.check()
        assert (found.ok, f"! fleet: there is no folder {tmp_path / 'out'} now" in str(found)) == (False, True)
    with Router.from_policy(policy('to = { env = "FLEET_TO" }')) as router:
        found = router.check()
        assert (found.ok, "go to the address in an environment variable (fleet)" in str(found)) == (True, True)
