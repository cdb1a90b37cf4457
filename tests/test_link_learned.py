"""The time of a call and the bandwidth to an endpoint are learned from real calls, shown, and stored for the next run."""

import json

import pytest
from both import GOOD, Tasks, Threads, sure, unsure

from edgeroute import PlainJson
from edgeroute.core.performance_estimates_and_encoding_choice import Link
from edgeroute.testing import CannedServer, Relay
from edgeroute.tools.cli.status_and_trial_arms import status

ONE_WAY_S = 0.01


@pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
def test_calls_tell_what_the_link_is_like(kind, tmp_path, capsys):
    """Nothing is sent for it. A link with a delay takes no less than that."""
    with CannedServer(GOOD) as server, Relay("127.0.0.1", server.port) as relay:
        relay.delay_s = ONE_WAY_S
        url = f"http://127.0.0.1:{relay.port}"
        with kind(unsure, PlainJson(url), threshold=0.5, state=str(tmp_path)) as router:
            edge, cloud = router.stats().legs
            assert (cloud.call_s, cloud.bytes_per_s) == (None, None)
            for _ in range(5):
                assert router.infer([0.5] * 100).source == "cloud"
            edge, cloud = router.stats().legs
            assert (edge.call_s, edge.bytes_per_s) == (None, None)
            assert cloud.call_s >= 2 * ONE_WAY_S
            assert cloud.bytes_per_s is None, "too few calls"
            assert len(server.requests) == 5
            guard = (router.router if kind is Tasks else router).engine.snapshot.clouds[0].guard
            assert guard.rules.link.count == 5
            for _ in range(20):  # as if larger ones had taken longer
                guard.succeeded(1.0, 0)
                guard.succeeded(2.0, 1_000_000)
            told = guard.rules.link.call_s, guard.rules.link.bytes_per_s
            assert told == (pytest.approx(1.0, rel=0.2), pytest.approx(1e6, rel=0.2))
        with kind(sure, PlainJson(url), threshold=0.5, state=str(tmp_path)) as router:
            _, cloud = router.stats().legs
            assert (cloud.call_s, cloud.bytes_per_s) == (pytest.approx(told[0]), pytest.approx(told[1]))
    capsys.readouterr()
    status(state=tmp_path, as_json=True)
    (known,) = json.loads(capsys.readouterr().out)["link"].values()
    assert known == {"call_s": pytest.approx(told[0]), "bytes_per_s": pytest.approx(told[1])}
    status(state=tmp_path)
    assert ", and its bytes go at" in capsys.readouterr().out


@pytest.mark.parametrize("stored", [{"cloud": [1, 2]}, {"cloud": "123456"}, ["cloud"], 7, "cloud", {}])
def test_a_link_that_is_stored_wrongly_is_unknown(stored, tmp_path):
    """As from another version; the router works all the same."""
    from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore

    store = KeyValueStore(tmp_path / "state.db")
    store.put("link", stored)
    store.close()
    with Threads(sure, PlainJson("http://127.0.0.1:9"), threshold=0.5, state=str(tmp_path)) as router:
        assert router.infer(1).source == "edge"
        assert router.stats().legs[1].call_s is None
    status(state=tmp_path, as_json=True)
    assert Link.load(Link().dump()).count == 0
