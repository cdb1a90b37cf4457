"""Digests sent by libraries to real servers: an object store (moto), but not by a presigned address, and a broker (mosquitto)."""

import logging
import shutil
import socket
import subprocess

import pytest
from both import LONG, Threads
from test_fleet_sources import broker, bucket, free_port, started  # noqa: F401 - two are fixtures

from edgeroute import CallableModel, PolicyError, Secret, StoreError
from edgeroute.fleet import digest_destinations
from edgeroute.fleet.device_request_counts import Fleet
from edgeroute.fleet.digest_destinations import destination
from edgeroute.tools.fleet.untrusted_digest_decoder import decode

pytestmark = pytest.mark.matrix
NAME = "digests/2026-11-29/abababababababababababababababab.1.digest"


@pytest.fixture
def store(bucket, monkeypatch):  # noqa: F811
    """Client of moto, whose keys are in the environment of this process."""
    environment, client = bucket
    for name, value in environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return client


def keys(client):
    """Return the names in the bucket."""
    return {item["Key"] for item in client.list_objects_v2(Bucket="fleet-test").get("Contents", ())}


def test_a_bucket_has_the_digests_of_a_device(store, tmp_path):
    """Under the prefix; a second revision is an object of its own."""
    fleet = Fleet("s3://fleet-test/devices/a", key="k")
    fleet.opened = lambda status: None
    with Threads(CallableModel(lambda x: ("edge", 0.9), version="1"), state=tmp_path / "state", parts=[fleet]) as router:
        for _ in range(2):
            router.infer(1)
            assert fleet.tell()
    names = sorted(name for name in keys(store) if name.startswith("devices/a/"))
    assert [name.rsplit(".", 2)[1] for name in names] == ["1", "2"]
    assert names[0].startswith("devices/a/digests/")
    told = decode(store.get_object(Bucket="fleet-test", Key=names[1])["Body"].read(), b"k")
    assert sum(row[2] for row in told.requests) == 2


def test_a_presigned_address_is_refused(store):
    """It is one object's, so a digest would replace that of the day before, and be counted as sent. The signature is not shown."""
    url = store.generate_presigned_url("put_object", Params={"Bucket": "fleet-test", "Key": "one.digest"}, ExpiresIn=600)
    assert "ignature" in url
    with pytest.raises(PolicyError, match=r"write \{name\}") as error:
        destination(url)
    assert "ignature" not in str(error.value)


@pytest.mark.parametrize("away", [True, False], ids=["away", "no such bucket"])
def test_an_object_store_that_takes_nothing(store, monkeypatch, away):
    """The error names the bucket, and has neither key nor signature."""
    if away:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match="took no object") as error:
        destination(f"s3://fleet-test{'' if away else '-missing'}/x").put(NAME, b"one")
    assert "secret-of-the-bucket" not in repr(error.value)


def test_an_object_store_elsewhere_is_spoken_to_by_tls_alone(store, monkeypatch):
    """An endpoint of another device without TLS gets nothing."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.1:9")
    monkeypatch.setattr(digest_destinations, "TIMEOUT_S", 2.0)
    with pytest.raises(StoreError, match="took no object"):
        destination("s3://fleet-test/x").put(NAME, b"one")


def subscriber(port, topic):
    """Return a client that has subscribed, and the list of its messages."""
    from paho.mqtt import client as mqtt

    client, messages = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5), []
    ready = []
    client.on_subscribe = lambda *event: ready.append(event)
    client.on_message = lambda _, __, message: messages.append((message.topic, message.payload))
    client.connect("127.0.0.1", port)
    client.subscribe(topic, qos=1)
    until(client, lambda: ready)
    return client, messages


def until(client, condition):
    """Run a client until something holds."""
    for _ in range(int(10 * LONG)):
        if condition():
            return
        client.loop(0.1)
    raise AssertionError


def test_a_broker_delivers_to_who_subscribed(broker):  # noqa: F811
    """Topic and name; a message that reaches nobody is not stored, and so stays in the spool."""
    there = destination(f"mqtt://127.0.0.1:{broker}/fleet")
    with pytest.raises(StoreError, match="reason code 16"):
        there.put(NAME, b"one")
    client, messages = subscriber(broker, "fleet/#")
    there.put(NAME, b"two")
    until(client, lambda: messages)
    assert messages == [(f"fleet/{NAME}", b"two")]
    client.disconnect()


def test_a_broker_with_a_password(tmp_path, caplog, monkeypatch):
    """A wrong one is an error at once, which shows none."""
    pytest.importorskip("paho.mqtt")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
    passwords = shutil.which("mosquitto_passwd")
    if program is None or passwords is None:
        pytest.skip("mosquitto is not installed")
    port, file = free_port(), tmp_path / "passwords"
    subprocess.run([passwords, "-b", "-c", str(file), "device", "hunter2"], check=True, capture_output=True)
    file.chmod(0o644)
    tmp_path.chmod(0o755)
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {file}\nuser root\n")
    caplog.set_level(logging.DEBUG)
    with started([program, "-c", str(config)], port):
        with pytest.raises(StoreError, match=r"took no message: reason code 13[45]") as error:
            destination(f"mqtt://device:hunter3@127.0.0.1:{port}/fleet").put(NAME, b"one")
        monkeypatch.setenv("FLEET_TO", f"mqtt://device:hunter2@127.0.0.1:{port}/fleet")
        fleet = Fleet(Secret(env="FLEET_TO"))
        fleet.opened = lambda status: None
        with Threads(CallableModel(lambda x: ("edge", 0.9), version="1"), state=tmp_path / "state", parts=[fleet]) as router:
            router.infer(1)
            assert not fleet.tell()
            assert fleet.stats()["error"].endswith("took no message: reason code 16")
    assert "hunter" not in str(error.value) + caplog.text + str(fleet.stats())


def test_a_broker_that_is_away_or_silent(monkeypatch, tmp_path):
    """Each is an error, by the time limit at the latest."""
    pytest.importorskip("paho.mqtt")
    monkeypatch.setattr(digest_destinations, "TIMEOUT_S", 1.0)
    with pytest.raises(StoreError, match="took no message: ConnectionRefusedError"):
        destination(f"mqtt://127.0.0.1:{free_port()}/fleet").put(NAME, b"one")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreError, match="did not acknowledge"):
        destination(f"mqtt://127.0.0.1:{silent.getsockname()[1]}/fleet").put(NAME, b"one")
