"""Digests from real servers: an object store (moto) and a broker (mosquitto), reached, away, and with messages of strangers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import fleets
import pytest
from both import LONG
from commands import PYTHON, cli

from edgeroute import StoreError
from edgeroute.fleet.digest_encoding_and_coarsening import encode, path_of
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.fleet.digest_sources import Bucket, signed

pytestmark = pytest.mark.matrix
pytest.importorskip("duckdb")


def free_port():
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def started(command, port):
    """A server as a process of its own, from its first answer on."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 4 * LONG  # moto imports much
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            assert time.monotonic() < until
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The environment in which s3://fleet-test is a bucket of moto, and a client of it."""
    boto3, server, port = pytest.importorskip("boto3"), shutil.which("moto_server"), free_port()
    pytest.importorskip("obstore")
    if server is None:
        pytest.skip("moto_server is not installed")
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret-of-the-bucket", "AWS_DEFAULT_REGION": "us-east-1"}
    with started([server, "-H", "127.0.0.1", "-p", str(port)], port):
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret-of-the-bucket", region_name="us-east-1"
        )
        client.create_bucket(Bucket="fleet-test")
        yield {**os.environ, **keys, "AWS_ENDPOINT_URL": url}, client


def test_an_object_store_is_collected(bucket, tmp_path):
    """Under a prefix; a large object and a strange one are refused; the next run reads what is new alone."""
    env, client = bucket
    digests = list(fleets.random_fleet(30, 2))
    for digest in digests:
        client.put_object(Bucket="fleet-test", Key=f"plant/{path_of(digest)}", Body=encode(digest))
    client.put_object(Bucket="fleet-test", Key=f"plant/{path_of(digests[0]._replace(revision=2))}", Body=bytes(5000))
    client.put_object(Bucket="fleet-test", Key="plant/digests/2026-11-02/readme.txt", Body=b"hello")
    run = ("fleet", "collect", "s3://fleet-test/plant", "--to", tmp_path / "store", "--json")
    code, out, _ = cli(*run, env=env)
    result = json.loads(out)
    assert (code, result["added"]) == (0, len(digests))
    assert {why: n for why, n in result["refused"].items() if n} == {"too_large": 1, "foreign": 1}
    late = digests[3]._replace(revision=2)
    client.put_object(Bucket="fleet-test", Key=f"plant/{path_of(late)}", Body=encode(late))
    assert json.loads(cli(*run, env=env)[1])["added"] == 1
    code, out, _ = cli("fleet", "report", "s3://fleet-test/plant", "--json", env=env)
    assert json.loads(out)["total"]["requests"] == sum(row[2] for d in digests for row in d.requests)


LONG_AGO = "Mon, 02 Nov 2026 00:00:00 GMT"
ODD = [
    "//x",
    "../x",
    "./x",
    "a\x00b",
    "a\x01b",
    "a\rb",
    "L" * 1000,
    "2026-11-02/",
    "%2e%2e/x",
    "\ufffe",
    "\u202ex",
    "a b+c&<>",
]


def test_keys_that_are_no_paths_are_refused_apart(bucket, tmp_path):
    """As foreign and by name: whoever may write to a bucket does not stop the others' digests."""
    env, client = bucket
    client.create_bucket(Bucket="odd-keys")
    digests = list(fleets.random_fleet(8, 2))
    for key, data in [*((path_of(digest), encode(digest)) for digest in digests), *((f"digests/{key}", b"x") for key in ODD)]:
        client.put_object(Bucket="odd-keys", Key=f"plant/{key}", Body=data)
    code, out, _ = cli("fleet", "collect", "s3://odd-keys/plant", "--to", tmp_path / "store", "--json", env=env)
    result = json.loads(out)
    assert (code, result["added"], result["repeated"]) == (0, len(digests), 0)
    assert {why: n for why, n in result["refused"].items() if n} == {"foreign": len(ODD)}
    named = [json.loads(line)["name"] for line in (tmp_path / "store/refused.jsonl").read_text().splitlines()]
    assert {"//x", "../x", "a\x00b", "L" * 200, "\u202ex"} <= {*named}


def test_the_list_of_a_store_comes_in_pages_and_one_object_that_is_refused_stops_no_other(monkeypatch):
    """Each page by a signed request; a store that refuses all is an error."""
    pytest.importorskip("obstore")
    page = "<ListBucketResult><Contents><Key>p/digests/{}</Key>{}</Contents>{}</ListBucketResult>"
    more = "<LastModified>2026-11-02T00:00:00.000Z</LastModified><ETag>1</ETag><Size>1</Size>"

    def reply(request):
        """Two pages of keys, the first with one that is no path; of three objects one is forbidden."""
        line = request.split(b"\r\n")[0].decode()
        if "list-type=2" in line:
            two = "continuation-token=" in line
            end = "" if two else "<NextContinuationToken>a&amp;b=</NextContinuationToken>"
            return http_reply(page.format("two" if two else "/one%20", more, f"<IsTruncated>false</IsTruncated>{end}").encode())
        headers = [("ETag", "1"), ("Last-Modified", LONG_AGO), ("Content-Range", "bytes 0-3/4")]
        return http_reply(b"data", status=403 if "/no" in line else 206, headers=headers)

    with CannedServer(reply) as server:
        for name, value in {"ENDPOINT_URL": server.url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "hidden"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        source = Bucket("s3://bucket/p")
        assert [*source.names()] == ["/one ", "two"]
        assert b"continuation-token=a%26b%3D&encoding-type=url" in server.requests[-1]
        assert b": AWS4-HMAC-SHA256 Credential=key/" in server.requests[-1]
        assert b"hidden" not in b"".join(server.requests)
        assert source.read(["no", "yes", "a//b"]) == ["unread", b"data", "unread"]
        with pytest.raises(StoreError, match="refuses every object"):
            source.read(["no", "no2"])


def test_a_request_is_signed_as_amazon_says(monkeypatch):
    """By the example in its documentation of version 4, for a list of objects."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    monkeypatch.setattr("edgeroute.system.wall_clock.now", lambda: 1369353600.0)
    headers = dict(signed("/", "max-keys=2&prefix=J", "examplebucket.s3.amazonaws.com", "us-east-1"))
    assert headers["authorization"].endswith("=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")


def test_an_object_store_that_is_away_is_an_error(bucket, tmp_path):
    """Of one line without the credentials; so is a bucket that does not exist."""
    env, _ = bucket
    for url, more in (("s3://fleet-test", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}), ("s3://no-such-bucket", {})):
        code, _, err = cli("fleet", "collect", url, "--to", tmp_path / "store", env={**env, **more})
        assert (code, err.count("\n")) == (2, 1)
        assert "secret-of-the-bucket" not in err


@pytest.fixture
def broker(tmp_path):
    """A port on which mosquitto listens, with the settings that the page of fleets asks for."""
    pytest.importorskip("paho.mqtt")
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    page = (Path(__file__).parent.parent / "docs" / "fleet.md").read_text()
    needs = [*re.findall(r"`(max_queued_messages \d+|persistence \w+)`", page), f"persistence_location {tmp_path}/"]
    config.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", "user root", *needs, ""]))
    with started([program, "-c", str(config)], port):
        yield port


def publish(port, messages):
    """Send messages with QoS 1, and wait until the broker has them."""
    from paho.mqtt import client as mqtt

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for topic, data in messages:
        client.publish(topic, data, qos=1).wait_for_publish(LONG)
    client.disconnect()
    client.loop_stop()


@contextlib.contextmanager
def collecting(port, store, *options):
    """`fleet collect` from a topic of the broker, from its connection on."""
    command = [*PYTHON, "fleet", "collect", f"mqtt://127.0.0.1:{port}/plant", "--to", str(store), "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            assert line == "receiving\n", line + process.stderr.read()
            yield process
        finally:
            process.kill()


def rows(store):
    """Requests of the store, and its digests."""
    from edgeroute.tools.fleet.digest_parquet_store import open_store

    with open_store(store) as connection:
        return connection.execute("SELECT (SELECT sum(requests) FROM requests), (SELECT count(*) FROM digests)").fetchone()


def until_there(path, count):
    """Wait until a folder has so many digests."""
    end = time.monotonic() + LONG
    while len([*Path(path).rglob("*.digest")]) < count:
        assert time.monotonic() < end


def collect_all(broker, store, count):
    """Collect for three seconds, and again where a busy machine did not get all in that time."""
    until = time.monotonic() + LONG
    while True:
        with collecting(broker, store, "--for", "3s") as process:
            added = json.loads(process.communicate(timeout=LONG)[0])["added"]
        if rows(store)[1] >= count:
            return
        assert time.monotonic() < until, f"{added} in the last three seconds"


@pytest.mark.usefixtures("interruptible")
def test_a_broker_is_collected_until_ctrl_c(broker, tmp_path):
    """Repeated messages count once; what is no digest is refused; and messages that came while nobody collected are not lost."""
    digests = list(fleets.random_fleet(12, 2))
    messages = [(f"plant/{path_of(digest)}", encode(digest)) for digest in digests]
    store = tmp_path / "store"
    with collecting(broker, store) as process:
        publish(broker, [*messages[:10], *messages[:3], ("plant/hello", b"x"), (f"plant/{path_of(digests[20])}", b"{}")])
        until_there(store / ".inbox", 11)
        process.send_signal(signal.SIGINT)
        result = json.loads(process.communicate(timeout=LONG)[0])
        assert process.returncode == 0
    assert result["added"] == 10
    assert {why: n for why, n in result["refused"].items() if n} == {"foreign": 1, "malformed": 1}
    (store / "refused.jsonl").write_bytes(b"\xff")  # a damaged report of refusals stops no collection
    publish(broker, [("plant/hello", b"x"), *messages])
    collect_all(broker, store, len(digests))
    assert rows(store) == (sum(row[2] for d in digests for row in d.requests), len(digests))


def test_a_broker_holds_a_day_of_many_devices_while_nobody_collects(broker, tmp_path):
    """More than the thousand messages after which it loses them by default, though devices have had its acknowledgement."""
    digests = list(fleets.random_fleet(1_100, 1))
    store = tmp_path / "store"
    with collecting(broker, store):
        pass
    publish(broker, [(f"plant/{path_of(digest)}", encode(digest)) for digest in digests])
    collect_all(broker, store, len(digests))


def test_a_killed_collector_loses_no_message(broker, tmp_path):
    """A message is acknowledged once it is stored: the next run has those that were received, and the broker the others."""
    digests = list(fleets.random_fleet(40, 1))
    store = tmp_path / "store"
    with collecting(broker, store) as process:
        publish(broker, [(f"plant/{path_of(digest)}", encode(digest)) for digest in digests])
        until_there(store / ".inbox", 5)
        process.kill()
    collect_all(broker, store, len(digests))
    assert rows(store)[1] == len(digests)


@pytest.mark.parametrize(
    "url", ["mqtt://broker.example/plant", "mqtts://127.0.0.1:1/plant", "mqtts://127.0.0.1/plant/#", "ftp://x/y"]
)
def test_an_address_that_is_none_is_an_error(tmp_path, url):
    """Of one line: without TLS to another machine, with wildcards, of another kind, and of a broker that is away."""
    pytest.importorskip("paho.mqtt")
    code, _, err = cli("fleet", "collect", url, "--to", tmp_path / "store", "--for", "1s")
    assert code in {1, 2}
    assert err.count("\n") == 1


def test_a_session_has_one_name(tmp_path):
    """It is stored before the broker is asked, through a temporary name that no other collector has."""
    pytest.importorskip("paho.mqtt")
    store = tmp_path / "store"
    (store / ".mqtt-session.new" / "of another").mkdir(parents=True)
    names = []
    for _ in range(2):
        code, _, err = cli("fleet", "collect", f"mqtt://127.0.0.1:{free_port()}/plant", "--to", store, "--for", "1s")
        assert (code, err.count("\n")) == (2, 1)
        assert "does not answer" in err
        names.append((store / ".mqtt-session").read_text())
    assert names[0] == names[1] > ""
