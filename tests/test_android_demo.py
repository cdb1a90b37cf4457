"""The app for Android, as far as it runs without a phone: its logic, and its page in a real browser with a real cloud behind it."""

import re
import socket
import sys
import threading
import time
from io import BytesIO

import numpy as np
import phones
import pytest

import edgeroute
from edgeroute import BadInput, MayNotLeave, PolicyError

SURE, UNSURE = 0, 23
"""Test images: an ankle boot both."""

pytestmark = [pytest.mark.matrix, pytest.mark.skipif(not phones.APP.is_dir(), reason="the app is not in the wheel")]
pytest.importorskip("httpx")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def garments():
    """The app's module."""
    pytest.importorskip("tomllib")
    sys.path.insert(0, str(phones.APP))
    try:
        import garments

        yield garments
    finally:
        sys.path.remove(str(phones.APP))


@pytest.fixture(scope="module")
def images():
    return edgeroute.models.fashion().images


@pytest.fixture
def storage(tmp_path, fashion_server):
    """The app's folder, with a policy that knows where the cloud is."""
    phones.settle(tmp_path, fashion_server)
    return tmp_path


@pytest.fixture
def app(garments, storage):
    changed = threading.Event()
    one = garments.Garments(storage, changed=changed.set)
    one.heard = changed
    yield one
    one.close()


def last(app, image, **how):
    *_, shown = app.classify(image, **how)
    return shown


def test_sure_and_unsure(app, images):
    """The phone answers alone where it is sure; else its answer is shown until the cloud's comes."""
    (one,) = app.classify(images[SURE])
    assert (one.label, one.source, one.final, one.degraded) == ("Ankle boot", "edge", True, False)
    first, then = app.classify(images[UNSURE], data_class="product")
    assert (first.source, first.final) == ("edge", False)
    assert (then.source, then.final, then.label) == ("cloud", True, "Ankle boot")
    assert "0.51 < 0.85" in then.reason


def test_offline_and_late(app, images, garments, storage):
    """What the cloud is needed for waits, over a restart too, and is answered late, once."""
    app.offline = True
    shown = last(app, images[UNSURE], data_class="product")
    assert (shown.source, shown.degraded, shown.final) == ("edge", True, False)
    assert [w.data_class for w in app.waiting()] == ["product"]
    app.close()
    again = garments.Garments(storage, changed=app.heard.set)
    try:
        assert app.heard.wait(30)
        (late,) = again.late
        assert (late.id, late.label, late.instead_of) == (shown.id, "Ankle boot", "Ankle boot")
        assert again.waiting() == []
    finally:
        again.close()


def test_switched_on_again(app, images):
    """Without a restart, and after the breaker has opened."""
    app.offline = True
    for i in (UNSURE, 4, 16, 17):
        assert last(app, images[i], data_class="product").degraded
    assert len(app.waiting()) == 4
    app.offline = False
    until = time.monotonic() + 60
    while len(app.late) < 4 and time.monotonic() < until:
        app.heard.wait(1)
        app.heard.clear()
    assert len(app.late) == 4
    assert app.waiting() == []


def test_private_stays(app, images):
    """Whatever the mode; and nothing of it is queued."""
    for mode in (None, "prefer_cloud", "only_edge"):
        shown = last(app, images[UNSURE], mode=mode, data_class="private")
        assert (shown.source, shown.final) == ("edge", True)
    with pytest.raises(MayNotLeave):
        last(app, images[UNSURE], mode="only_cloud", data_class="private")
    app.offline = True
    last(app, images[UNSURE], data_class=None)
    assert app.waiting() == []


def test_modes(app, images):
    """Of one call."""
    assert last(app, images[SURE], mode="prefer_cloud", data_class="product").source == "cloud"
    assert last(app, images[UNSURE], mode="only_edge", data_class="product").source == "edge"


def test_policy(app, images, storage, garments):
    """A change is in force at once; a mistake changes nothing, not even on disk; another cloud is another router."""
    before = app.policy
    assert app.classes() == ["product", "private"]
    assert last(app, images[UNSURE], data_class="product").source == "cloud"
    app.policy = before.replace("threshold = 0.85", "threshold = 0.3")
    assert last(app, images[4], data_class="product").source == "edge"
    now = app.policy
    mistakes = (
        (now.replace("threshold", "treshold"), "threshold"),
        (now + "[", "no TOML"),
        (now.replace('timeout = "30s"', 'timeout = "30s"\nretries = 3'), "cloud.retries"),
        (now.replace('timeout = "30s"', 'timeout = "soon"'), "timeout"),
        (now.replace("http://", "ftp://"), "ftp"),
    )
    for i, (wrong, says) in enumerate(mistakes):
        with pytest.raises(PolicyError, match=says):
            app.policy = wrong
        assert app.policy == now
        assert last(app, images[i]).source == "edge"  # each another one: answers are kept
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        app.policy = re.sub("127.0.0.1:[0-9]+", f"127.0.0.1:{nobody.getsockname()[1]}", before)
        assert last(app, images[7], mode="prefer_cloud", data_class="product").degraded
    assert (storage / "policy.toml").read_text() == app.policy


def test_a_stored_policy_that_is_refused(garments, tmp_path, images):
    """The app starts with its own, and says so."""
    (tmp_path / "policy.toml").write_text("mode = 'sideways'")
    one = garments.Garments(tmp_path)
    try:
        assert "policy.refused" in one.note
        assert last(one, images[SURE]).label == "Ankle boot"
        assert (tmp_path / "policy.refused").read_text() == "mode = 'sideways'"
    finally:
        one.close()


def photo(image, *, size=(900, 1200), ground=235, kind="JPEG", orientation=None):
    """A garment as a phone photographs it: dark, on a light ground, somewhere in a large picture."""
    garment = Image.fromarray(ground - (image.astype(np.float32) * 0.8).astype(np.uint8)).resize((500, 500))
    whole = Image.new("L", size, ground)
    whole.paste(garment, (150, 300))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        whole = whole.transpose(Image.Transpose.ROTATE_90)
    file = BytesIO()
    whole.convert("RGB").save(file, kind, exif=exif)
    return file.getvalue()


def test_photographs(app, garments, images):
    """A photograph is what the model takes: the same label as of the image that it was made of, mostly."""
    same = 0
    for i in range(40):
        picture = garments.prepare(photo(images[i]))
        assert (picture.shape, picture.dtype) == ((28, 28), np.uint8)
        same += last(app, picture, mode="only_edge").label == last(app, images[i], mode="only_edge").label
    assert same >= 32, same
    turned = garments.prepare(photo(images[1], orientation=6))
    upright = garments.prepare(photo(images[1]))
    assert np.abs(turned.astype(int) - upright).mean() < 4
    file = BytesIO()
    Image.fromarray(images[3]).save(file, "PNG")
    assert (garments.prepare(file.getvalue()) == images[3]).all()  # it is as the model takes it


@pytest.mark.parametrize(
    "what",
    [
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        photo(np.zeros((28, 28), np.uint8), kind="PNG"),
        photo(np.eye(28, dtype=np.uint8) * 255)[:2000],
    ],
)
def test_pictures_that_are_none(garments, what):
    with pytest.raises(BadInput, match="picture"):
        garments.prepare(what)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    pytest.importorskip("playwright.sync_api")
    pytest.importorskip("flet_web")
    if phones.BROWSER is None:
        pytest.skip("chromium is not installed")
    with phones.chromium() as one:
        yield one


@pytest.fixture
def url(storage):
    """The app as a process of its own, on a free port."""
    with phones.app(storage) as address:
        yield address


def test_page(browser, url, images):
    """From the first answer through an outage to the late one; as a person sees it, by taps."""
    assert not phones.listens(int(url.rpartition(":")[2].strip("/")), "127.0.0.2")  # only on this machine's own address
    screen = phones.Screen(browser, url)
    screen.shows("label", "Ankle boot")
    screen.shows("source", "edge")
    screen.shows("confidence", "100% sure")
    screen.shows("reason", ">= 0.85")

    screen.tap("Sample 4")  # UNSURE
    screen.shows("source", "cloud")
    screen.shows("reason", "0.51 < 0.85")

    screen.tap("Offline", "switch")
    screen.tap("Sample 5")
    screen.shows("reason", "queued")
    screen.shows("queue", "Waiting for the cloud: 1")
    screen.tap("private", "checkbox")
    screen.shows("reason", "'private'")
    screen.tap("only cloud", "checkbox")
    screen.shows("error", "private")

    screen.tap("Offline", "switch")
    screen.shows("late", "Late answers: 1")
    screen.shows("queue", "Waiting for the cloud: 0")

    screen.tap("by policy", "checkbox")
    with screen.page.expect_file_chooser() as chooser:
        screen.tap("Choose a picture")
    chooser.value.set_files({"name": "boot.jpg", "mimeType": "image/jpeg", "buffer": photo(images[SURE])})
    screen.shows("label", "Ankle boot")
    with screen.page.expect_file_chooser() as chooser:
        screen.tap("Choose a picture")
    chooser.value.set_files({"name": "no.png", "mimeType": "image/png", "buffer": b"none"})
    screen.shows("error", "no picture that can be read")

    screen.tap("Policy")
    screen.type(lambda text: text.replace("prefer_edge", "sideways"))
    screen.tap("Put in force")
    screen.shows("wrong", 'found "sideways"')
    screen.type(lambda text: text.replace("sideways", "only_edge"))
    screen.tap("Put in force")
    screen.tap("product", "checkbox")
    screen.tap("Sample 6")
    screen.shows("reason", "only_edge")
