"""Destinations of digests without a library of their own: folders, and addresses that take PUT; none shows a secret."""

import logging
import os
import ssl
import threading

import pytest
from both import DOWN, LONG, Threads

from edgeroute import CallableModel, EdgerouteError, PolicyError, Secret, StoreError
from edgeroute.fleet import digest_destinations
from edgeroute.fleet.device_request_counts import Fleet
from edgeroute.fleet.digest_destinations import Folder, destination
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.fleet.untrusted_digest_decoder import decode

NAME = "digests/2026-11-29/abababababababababababababababab.1.digest"


@pytest.fixture
def server():
    """Server that takes what it is sent."""
    with CannedServer(http_reply()) as server:
        yield server


def test_a_folder_has_whole_files_alone(tmp_path):
    """A later one replaces the first; a folder that is away, or a file in its place, is an error and is not made."""
    Folder(str(tmp_path)).put(NAME, b"one")
    destination(str(tmp_path)).put(NAME, b"two")
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [b"two"]
    with pytest.raises(StoreError, match="there is no such folder now"):
        Folder(str(tmp_path / "away")).put(NAME, b"one")
    assert not (tmp_path / "away").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "digests").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        Folder(str(tmp_path / "full")).put(NAME, b"one")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("pipe", [False, True])
def test_a_link_in_a_shared_folder_is_not_written_through(tmp_path, pipe):
    """Another user of the drive knows the name of the next file: neither a file elsewhere is replaced, nor does the device wait."""
    mine, new = tmp_path / "mine", tmp_path / "shared" / f"{NAME}.new"
    mine.write_bytes(b"mine")
    new.parent.mkdir(parents=True)
    os.mkfifo(new) if pipe else new.symlink_to(mine)
    writer = threading.Thread(target=Folder(str(tmp_path / "shared")).put, args=(NAME, b"one"), daemon=True)
    writer.start()
    writer.join(LONG)
    assert not writer.is_alive()
    assert (mine.read_bytes(), (tmp_path / "shared" / NAME).read_bytes()) == (b"mine", b"one")


@pytest.mark.parametrize(
    ("to", "asked"),
    [
        ("", f"/{NAME}"),
        ("/in/", f"/in/{NAME}"),
        ("/in/{name}?sig=hunter2%2F", f"/in/{NAME}?sig=hunter2%2F"),
        ("/in?as={name}", f"/in?as={NAME}"),
    ],
)
def test_an_address_takes_put(server, to, asked):
    """The name is appended, or stands where {name} is."""
    there = destination(f"http://127.0.0.1:{server.port}{to}")
    there.put(NAME, b"data")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(f"PUT {asked} HTTP/1.1\r\n".encode())
    assert body == b"data"
    assert there.where == f"http://127.0.0.1:{server.port}"


def test_a_user_and_password_are_sent_as_basic(server):
    """With their escapes decoded."""
    destination(f"http://us%40er:hunter2@127.0.0.1:{server.port}/").put(NAME, b"data")
    assert b"Authorization: Basic dXNAZXI6aHVudGVyMg==\r\n" in server.requests[0]


@pytest.mark.parametrize(
    "reply",
    [
        DOWN,
        http_reply(status=403),
        http_reply(status=507),
        http_reply(status=301, headers=[("Location", "http://127.0.0.1:9/elsewhere")]),
        http_reply(status=302, headers=[("Location", "/elsewhere")]),
        http_reply(b"x" * 10, length=99),
        b"no HTTP at all\r\n\r\n",
        None,
        [b"HTTP/1.1 200 OK\r\n", None],
    ],
    ids=["503", "403", "507", "301", "302", "cut", "no HTTP", "silent", "stalled"],
)
def test_what_is_not_stored_is_an_error_without_secrets(monkeypatch, reply):
    """Redirects are not followed; a server that is slow or silent ends by the time limit."""
    monkeypatch.setattr(digest_destinations, "TIMEOUT_S", 0.3)
    with CannedServer(reply, close=reply is not None and b"99" in bytes(str(reply), "ascii")) as server:
        there = destination(f"http://user:hunter2@127.0.0.1:{server.port}/hunter2/{{name}}?hunter2=hunter2")
        with pytest.raises(EdgerouteError) as error:
            there.put(NAME, b"data")
        server.wait_for(lambda: len(server.requests) == 1)
    assert "hunter2" not in repr(error.value) + repr(error.value.__cause__) + there.where


def test_a_certificate_that_is_not_valid_ends_it():
    """Nothing of the request is sent."""
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with CannedServer(http_reply(), tls=context) as server:
        with pytest.raises(EdgerouteError, match=r"127\.0\.0\.1"):
            destination(f"https://127.0.0.1:{server.port}/").put(NAME, b"data")
        assert not server.requests


@pytest.mark.parametrize(
    "to",
    [
        "http://user:hunter2@example.com/",
        "ftp://hunter2",
        "https://[hunter2",
        "s3:///hunter2",
        "mqtts://a/b#hunter2",
        "s3://user:hunter2@bucket/in",
        "S3://user:hunter2@bucket/in",
        " s3://user:hunter2@bucket",
        "https://bucket.example.com/one?X-Amz-Signature=hunter2",
        "http://user:{name}@127.0.0.1/one?sig=hunter2",
    ],
)
def test_other_addresses_are_refused_unquoted(to):
    """Also those without TLS that are not this device's, and those where each digest would replace the one before."""
    with pytest.raises(PolicyError) as error:
        destination(to)
    assert "hunter2" not in str(error.value)


def test_a_prefix_may_have_an_at():
    """It is no user's name."""
    assert destination("s3://bucket/me@site").where == "s3://bucket"


def test_a_destination_that_fails_delays_no_answer_and_keeps_the_digest(tmp_path, caplog, monkeypatch):
    """It hangs, then it fails, then it works: one digest arrives once; nothing that is logged has a secret."""
    monkeypatch.setattr(digest_destinations, "TIMEOUT_S", 9 * LONG)
    caplog.set_level(logging.DEBUG)
    with CannedServer(DOWN) as server:
        server.shut()
        monkeypatch.setenv("FLEET_TO", f"http://user:hunter2@127.0.0.1:{server.port}/a?hunter2={{name}}")
        monkeypatch.setenv("FLEET_KEY", "hunter2")
        fleet = Fleet(Secret(env="FLEET_TO"), key=Secret(env="FLEET_KEY"))
        fleet.opened = lambda status: None
        model = CallableModel(lambda x: ("edge", 0.9), version="1")
        with Threads(model, state=tmp_path / "state", parts=[fleet]) as router:
            router.infer(1)
            upload = threading.Thread(target=fleet.tell)
            upload.start()
            server.wait_for(lambda: server.requests)
            assert router.infer(1).value == "edge"  # while the upload hangs
            server.open()
            upload.join(LONG)
            assert not upload.is_alive()
            assert fleet.stats()["waiting"] == 1
            assert not fleet.tell()
            assert "status 503" in fleet.stats()["error"]
            server.reply = http_reply()
            assert fleet.tell()
            shown = repr(fleet) + repr(vars(fleet)) + str(router.stats())
        last = server.requests[-1].partition(b"\r\n\r\n")[2]
    told = decode(last, b"hunter2")
    assert sum(row[2] for row in told.requests) == 2
    lines = [*read(tmp_path / "state" / "egress.jsonl")]
    assert len(lines) == len(server.requests)
    assert {line["to"] for line in lines} == {f"http://127.0.0.1:{server.port}"}
    assert "hunter2" not in shown + caplog.text + str(lines)
    for path in (tmp_path / "state").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_a_secret_that_is_not_set_leaves_the_digest(tmp_path, monkeypatch):
    """The error names the variable."""
    monkeypatch.delenv("FLEET_TO", raising=False)
    fleet = Fleet(Secret(env="FLEET_TO"))
    fleet.opened = lambda status: None
    with Threads(CallableModel(lambda x: ("edge", 0.9), version="1"), state=tmp_path / "state", parts=[fleet]) as router:
        router.infer(1)
        assert not fleet.tell()
        assert "FLEET_TO" in fleet.stats()["error"]
        assert fleet.stats()["waiting"] == 1
