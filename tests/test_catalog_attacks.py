"""Catalogs that lie, are slow, break off or are somebody else's: refused, and the active model answers."""

import json
import shutil

import numpy as np
import pytest
import trustme
from catalogs import SECOND, Publisher, Web, edited

pytest.importorskip("tuf")
pytest.importorskip("cryptography")
pytest.importorskip("httpx")

from edgeroute import CatalogError, PolicyError, Router
from edgeroute.catalog import Catalog
from edgeroute.errors import CatalogAway
from edgeroute.tools.catalog_keys_and_publishing import sign

X = np.array([1, 0, 0, 0], np.float32)
BIG = 1 << 20


@pytest.fixture
def publisher(tmp_path):
    made = Publisher(tmp_path)
    made.publish("1.0")
    return made


@pytest.fixture
def device(publisher):
    """A device with the first version active; another one is published."""
    catalog = publisher.device()
    catalog.pull("doors")
    catalog.activate("doors")
    publisher.publish("1.1", SECOND)
    return catalog


def refused(device, error, says, action=None):
    """The pull, or another action, is refused; what is active is untouched, whole, and answers. -> the message."""
    before = device.path("doors").read_bytes()
    with pytest.raises(error, match=says) as caught:
        (action or (lambda: device.pull("doors")))()
    assert "\n" not in str(caught.value)
    assert device.path("doors").read_bytes() == before
    assert device.verify("doors").version == "1.0"
    assert device.store.versions("doors") == ["1.0"]
    with Router(device.path("doors")) as router:
        assert router.infer(X).value == "a"
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- signatures
def test_the_catalog_of_somebody_else(device, publisher, tmp_path):
    """Who has other keys, and all else right."""
    (tmp_path / "other").mkdir()
    other = Publisher(tmp_path / "other")
    for version in ("1.0", "1.1", "1.2"):
        other.publish(version, SECOND)
    refused(Catalog(publisher.home / "store", other.catalog), CatalogError, "wrong signature")
    stranger = Catalog(publisher.home / "store", publisher.catalog, root=other.root)
    refused(stranger, CatalogError, "not trusted")


@pytest.mark.parametrize("role", ["timestamp", "2.snapshot", "2.targets"])
def test_a_changed_metadata_file(device, publisher, role):
    """A digit is enough."""
    edited(publisher.catalog / "metadata" / f"{role}.json", lambda data: data["signed"].update(expires="2099-01-01T00:00:00Z"))
    refused(device, CatalogError, "not trusted")


@pytest.mark.parametrize("role", ["timestamp", "2.snapshot", "2.targets"])
def test_metadata_without_a_signature(device, publisher, role):
    edited(publisher.catalog / "metadata" / f"{role}.json", lambda data: data.update(signatures=[]))
    refused(device, CatalogError, "not trusted")


def test_new_keys_that_the_old_ones_did_not_sign(device, publisher, tmp_path):
    """Of somebody who has the server, and no key."""
    (tmp_path / "other").mkdir()
    other = Publisher(tmp_path / "other")
    other.publish("1.0")
    root = json.loads((other.catalog / "metadata" / "1.root.json").read_text())
    root["signed"]["version"] = 2
    (publisher.catalog / "metadata" / "2.root.json").write_text(json.dumps(root))
    refused(device, CatalogError, "wrong signature")


def test_an_older_catalog_is_refused(device, publisher):
    """A downgrade: what the server has is signed, and was true last month."""
    old = publisher.home / "old"
    shutil.copytree(publisher.catalog, old)
    publisher.publish("1.2")
    device.refresh()
    refused(Catalog(publisher.home / "store", old), CatalogError, "older than what was seen before")


def test_an_expired_catalog_is_refused(device, publisher):
    """A freeze: nothing new is let through."""
    sign(publisher.catalog, keys=publisher.keys, days=-1)
    assert "edgeroute models sign" in refused(device, CatalogError, "expired")


def test_a_mix_of_two_catalogs_is_refused(device, publisher):
    """The list of one, the snapshot of the other."""
    folder = publisher.catalog / "metadata"
    shutil.copyfile(folder / "1.targets.json", folder / "2.targets.json")
    refused(device, CatalogError, "not trusted")


def test_a_list_that_was_changed(device, publisher):
    """It is not signed itself: its hash is."""
    targets = json.loads((publisher.catalog / "metadata" / "2.targets.json").read_text())["signed"]["targets"]
    path = publisher.catalog / "targets" / f"{targets['catalog.json']['hashes']['sha256']}.catalog.json"
    text = path.read_text()
    path.write_text(text.replace("1.1", "1.2"))
    refused(device, CatalogError, "not trusted")
    path.write_text(text + " " * 10)
    refused(device, CatalogError, "longer than its metadata says")


@pytest.mark.parametrize("lie", ["content", "shorter", "longer", "empty", "gone", "link", "folder"])
def test_a_model_file_that_is_another(device, publisher, lie):
    """By content, size, or as a link to something on the publisher's disk."""
    path = publisher.catalog / "files" / "doors" / "1.1" / "doors.onnx"
    data = path.read_bytes()
    path.unlink()
    if lie == "link":
        path.symlink_to("/etc/passwd")
    elif lie == "folder":
        path.mkdir()
    elif lie != "gone":
        path.write_bytes({"content": data[::-1], "shorter": data[:-9], "longer": data + b"more", "empty": b""}[lie])
    refused(device, CatalogError, "doors.onnx|cannot be read")
    if lie == "folder":
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(data)
    assert device.pull("doors").version == "1.1"  # what was there of it is no trap


def test_a_link_in_the_store_is_no_file_of_a_model(device, publisher):
    """`verify` and `activate` refuse what is not a file of its own."""
    device.pull("doors")
    path = device.store.version("doors", "1.1") / "doors.onnx"
    path.rename(publisher.home / "elsewhere")
    path.symlink_to(publisher.home / "elsewhere")
    with pytest.raises(CatalogError, match="missing"):
        device.activate("doors", "1.1")
    assert device.active("doors").version == "1.0"


# --------------------------------------------------------------------------------------------------------------------- web
@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """(an authority, its file)."""
    made, path = trustme.CA(), tmp_path_factory.mktemp("authority") / "authority.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


@pytest.fixture
def web(publisher, device, authority):
    """The catalog on a server with TLS; the device knows it. -> (server, device)."""
    publisher.publish("1.2", SECOND, pad=BIG)
    server = Web(publisher.catalog, authority[0].issue_cert("127.0.0.1"))
    with server.running(), publisher.device(server.url, verify=authority[1], patience_s=30.0) as remote:
        yield server, remote


def test_a_catalog_over_https(web, publisher):
    """The model comes over TLS; the address and its authority are remembered."""
    server, device = web
    assert device.pull("doors").version == "1.2"
    with Catalog(publisher.home / "store") as again:
        assert again.source().where == server.url
        assert len(again.refresh()) == 3
    device.activate("doors")
    with Router(device.path("doors")) as router:
        assert router.infer(X).value == "c"


def test_a_server_with_the_certificate_of_somebody_else(web, publisher, tmp_path):
    """Is not asked for a byte."""
    server, _ = web
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    for verify in (True, tmp_path / "stranger.pem"):
        with publisher.device(server.url, verify=verify) as device:
            refused(device, CatalogAway, "(?i)certificate")
    assert not server.asked
    with pytest.raises(PolicyError, match="has to be verified"):
        publisher.device(server.url, verify=False).refresh()
    with pytest.raises(PolicyError, match="no authorities"):
        publisher.device(server.url, verify=tmp_path / "none.pem").refresh()


@pytest.mark.parametrize(
    "where", ["http://example.com/models", "ftp://127.0.0.1/", "https://u:p@host/", "https://h/?q=1", "https://"]
)
def test_an_address_that_is_none(tmp_path, where):
    """Or that is not safe; what may be secret in it is not repeated."""
    with pytest.raises(PolicyError) as caught:
        Catalog(tmp_path, where)
    assert "u:p" not in str(caught.value)


def test_a_download_that_breaks_off_goes_on_from_there(web):
    """By a range request with the tag of what is there, at the next attempt and at the next call."""
    server, device = web
    cuts = [BIG // 4, BIG // 4, BIG // 4]

    def behave(handler, path):
        if not path.endswith("beside.bin") or not cuts:
            return False
        server.send(handler, device_path(server, path), most=cuts.pop())
        return True

    server.behave, told = behave, []
    refused(device, CatalogAway, "cannot be read|breaks off")
    assert device.pull("doors", progress=told.append).version == "1.2"
    ranges = [asked for path, asked in server.asked if path.endswith("beside.bin")]
    assert ranges == [None, f"bytes={BIG // 4}-", f"bytes={BIG // 2}-", f"bytes={3 * BIG // 4}-"]
    done = [one.done for one in told]
    assert done == sorted(done)
    assert done[-1] == told[-1].total


def device_path(server, path):
    """Where the server has a file."""
    return server.folder / path


@pytest.mark.parametrize("how", ["no ranges", "another file meanwhile", "no tag"])
def test_a_server_that_does_not_go_on(web, how):
    """Sends the file from its start: what is there is thrown away, and the hash is right in the end."""
    server, device = web
    cut = []

    def behave(handler, path):
        if not path.endswith("beside.bin"):
            return False
        first, tag = not cut, "" if how == "no tag" else '"one"' if not cut or how == "no ranges" else '"two"'
        cut.append(path)
        server.send(handler, device_path(server, path), most=BIG // 2 if first else None, tag=tag, ranges=how != "no ranges")
        return True

    server.behave = behave
    assert device.pull("doors").version == "1.2"
    assert len(cut) == 2


def test_a_server_that_sends_another_part(web):
    """Than was asked for, with the status of the right one."""
    server, device = web
    state = []

    def behave(handler, path):
        if not path.endswith("beside.bin"):
            return False
        state.append(path)
        if len(state) == 1:
            server.send(handler, device_path(server, path), most=BIG // 2)
        else:
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes 0-9/{BIG}")
            handler.send_header("Content-Length", "10")
            handler.end_headers()
            handler.wfile.write(b"0" * 10)
        return True

    server.behave = behave
    refused(device, CatalogError, "another part")


@pytest.mark.parametrize("where", ["timestamp.json", "beside.bin", "catalog.json"])
def test_a_file_without_end(web, where):
    """Is read as far as it may be long, and no further."""
    server, device = web
    sent = []

    def behave(handler, path):
        if not path.endswith(where):
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            for _ in range(10_000):  # 640 MB
                handler.wfile.write(b" " * 65536)
                sent.append(65536)
        except OSError:
            pass
        return True

    server.behave = behave
    refused(device, CatalogError, "longer than|other bytes")
    assert sum(sent) < 64 * BIG


@pytest.mark.parametrize("part", ["head", "body", "nothing"])
def test_a_server_that_drips(web, publisher, authority, part, monkeypatch):
    """A byte now and then is nothing: it counts as away."""
    server, _ = web
    monkeypatch.setattr("edgeroute.catalog.catalog_source_and_verification.CONNECT_S", 0.2)
    ended = []

    def behave(handler, path):
        import threading

        pause = threading.Event()
        try:
            if part == "nothing":
                handler.connection.settimeout(30)
                handler.rfile.read(1)  # until the other side has gone
                return True
            if part == "body":
                handler.send_response(200)
                handler.send_header("Content-Length", "9000")
                handler.end_headers()
            else:
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                handler.wfile.write(b"x")
                handler.wfile.flush()
                pause.wait(0.05)
        except OSError:
            handler.close_connection = True
        finally:
            ended.append(path)
        return True

    server.behave = behave
    with publisher.device(server.url, verify=authority[1], patience_s=0.3) as device:
        refused(device, CatalogAway, "too slow|does not answer|cannot be read")


def test_redirects(web):
    """On the same server they are followed, a few times; to another one they are refused, with its name."""
    server, device = web

    def to(where, only="timestamp.json"):
        def behave(handler, path):
            if not path.endswith(only):
                return False
            handler.send_response(302)
            handler.send_header("Location", where)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True

        return behave

    server.behave = to("https://elsewhere.example/x")
    refused(device, CatalogError, r"redirects to elsewhere\.example")
    server.behave = to(server.url.replace("https://", "http://") + "/metadata/timestamp.json")
    refused(device, CatalogError, "redirects to")
    server.behave = to("/metadata/timestamp.json")
    refused(device, CatalogError, "more than 3 times")
    (server.folder / "moved").mkdir()
    shutil.copyfile(server.folder / "metadata" / "timestamp.json", server.folder / "moved" / "now")
    server.behave = to("/moved/now")
    assert device.pull("doors").version == "1.2"


@pytest.mark.parametrize(("status", "error"), [(500, CatalogAway), (503, CatalogAway), (401, CatalogError), (404, CatalogError)])
def test_what_a_server_may_answer(web, status, error):
    server, device = web

    def behave(handler, path):
        handler.send_error(status)
        return True

    server.behave = behave
    refused(device, error, str(status))


def test_a_compressed_reply_is_refused(web):
    """It was not asked for, and may be a bomb."""
    server, device = web

    def behave(handler, path):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "3")
        handler.end_headers()
        handler.wfile.write(b"abc")
        return True

    server.behave = behave
    refused(device, CatalogError, "compressed")


def test_a_server_that_is_gone(publisher, device):
    """The address is still known; the active model answers."""
    server = Web(publisher.catalog)
    server.server.server_close()
    with publisher.device(server.url) as remote:
        refused(remote, CatalogAway, "cannot be read")
