"""Payloads: inputs as files of pictures and audio, compressed, or as smaller numbers; what sends them, and what takes them."""

from __future__ import annotations

import asyncio
import base64
import importlib
import importlib.util
import io
import json
import queue
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import exports
import numpy as np
import pytest
import routes
from both import LONG, Link, Tasks, Threads, running, unsure

import edgeroute
from edgeroute import (
    AsyncRouter,
    BadInput,
    Egress,
    OnnxModel,
    OpenInference,
    OpenInferenceGrpc,
    Outbox,
    PolicyError,
    Router,
    RuntimeMissing,
)
from edgeroute.cloud.input_codecs import Coded, codec_of, own_zstd
from edgeroute.cloud.openinference import LENGTH
from edgeroute.edge.preprocessing import MOST_SCANS
from edgeroute.tools.server.oip_requests_media_routes import Decoder
from edgeroute.tools.server.serve import app
from edgeroute.types import TensorSpec

PIL = pytest.importorskip("PIL.Image")
BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A model of floats [n, 3, 8, 8], whose card takes pictures of any size."""
    return exports.pictures(tmp_path_factory.mktemp("pictures") / "pictures.onnx", {**exports.PICTURE, "name": "pictures"})


def summed(inputs, _=None):
    """Two numbers of each input: its sum, and its first."""
    return np.array([[np.sum(x, dtype=np.float64), np.ravel(x)[0]] for x in inputs], np.float32)


class Sums:
    """y [n, 2] of x, of any kind of numbers: its sum, and its first."""

    def __init__(self, name, dtype, shape):
        self.name, self.inputs = name, (TensorSpec("x", dtype, shape),)
        self.outputs = (TensorSpec("y", "float32", (-1, 2)),)

    def run_feed(self, feed, _=None):
        """Of each row."""
        return summed(feed["x"])

    def run(self, inputs, cancel=None):
        """Likewise."""
        return summed(inputs)


@pytest.fixture(scope="module")
def server(pictures):
    """`edgeroute serve`'s application with models of all kinds -> its client."""
    sums = [
        Sums("floats", "float32", (-1, 6)), Sums("sound", "int16", (-1, -1)), Sums("halves", "float32", (-1, -1, 2)),
        Sums("bytes", "uint8", (-1, 4)), Sums("colours", "uint8", (-1, 3, 5, 7)), Sums("any", "uint8", (-1, -1, -1, 3)),
    ]  # fmt: skip
    with running(app([OnnxModel(pictures), *sums])) as client:
        yield client


def url_of(client, model):
    return f"{str(client.base_url).rstrip('/')}/v2/models/{model}"


def asked(url, x, kind=Threads, *, many=False, **options):
    """The cloud's outputs for that input."""
    with kind(unsure, OpenInference(url, kind="logits", **options), threshold=0.5) as router:
        answers = router.infer_many(x) if many else [router.infer(x)]
        assert {answer.source for answer in answers} == {"cloud"}, answers[0].reason
        return [answer.value for answer in answers]


def file_of(array, format="PNG", **options):  # noqa: A002 - Pillow's word
    out = io.BytesIO()
    (array if hasattr(array, "save") else PIL.fromarray(array)).save(out, format, **options)
    return out.getvalue()


def infer(client, model, *files, name="image", shape=None, binary=True, **parameters):
    """The reply to files as an input."""
    tensor = {"name": name, "datatype": "BYTES", "shape": [len(files), 1] if shape is None else shape}
    if not binary:
        tensor |= {"data": [base64.b64encode(one).decode() for one in files]}
        tensor["parameters"] = {"content_type": "base64", **parameters}
        return client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    body = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    tensor["parameters"] = {"binary_data_size": len(body), **parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    return client.post(f"/v2/models/{model}/infer", content=head + body, headers={LENGTH: str(len(head))})


def rows_of(reply):
    assert reply.status_code == 200, reply.text
    (output,) = reply.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(("codec", "lost"), [("jpeg", 0.01), ("webp", 0.01), ("png", 0), ("jpeg:10", 0.2)])
def test_the_shipped_cloud_model_takes_pictures(kind, codec, lost, fashion, fashion_server):
    """Photos as files are answered as those as numbers are, but for what a codec loses, over JSON too."""
    found = np.load(fashion / "sample.npz")
    images, plain = found["images"][:100], f"{fashion_server}/v2/models/fashion-large"
    truth = asked(plain, list(images), many=True, timeout_s=LONG)
    for url, binary in ((plain, "auto"), (plain, False), (f"{plain}-encoded", "auto")):
        with kind(unsure, OpenInference(url, codec=codec, binary=binary, timeout_s=LONG), threshold=0.5) as router:
            answers = [router.infer(images[0]), *router.infer_many(list(images[1:]))]
            endpoint = router.engine.snapshot.clouds[0].endpoint
        assert {answer.source for answer in answers} == {"cloud"}, answers[0].reason
        assert np.mean([a.value != b for a, b in zip(answers, truth, strict=True)]) <= lost
        assert endpoint.binary is (binary == "auto")


def test_a_picture_is_much_smaller_than_its_numbers(server):
    """What is sent for a photo is its file, and for zeros of the probe another one of its size."""
    x = np.asarray(PIL.fromarray(RNG.integers(0, 255, (8, 8, 3), np.uint8)).resize((320, 240)))
    for codec, most in ((None, 1.1), ("jpeg:80", 0.1)):
        with Router(unsure, OpenInference(url_of(server, "any"), codec=codec, kind="logits"), threshold=0.5) as router:
            for _ in range(3):
                assert router.infer(x).source == "cloud"
            assert router.engine.snapshot.clouds[0].traffic[0] < most * 4 * x.nbytes


@BOTH
def test_a_card_says_what_the_cloud_reads(kind, pictures, server):
    """A photo is resized and cropped as the card says before it is sent, and the server does the rest."""
    model = OnnxModel(pictures)
    model.load()
    photos = [RNG.integers(0, 255, (n, 40, 3), np.uint8) for n in (9, 40, 31)]
    want = [np.ravel(model.run([x], None)) for x in photos]
    card, url = pictures.with_suffix(".json"), url_of(server, "pictures")
    with kind(unsure, OpenInference(url, codec="png", card=card), threshold=0.5) as router:
        for x, logits in zip(photos, want, strict=True):
            answer = router.infer(x)
            assert answer.source == "cloud", answer.reason
            np.testing.assert_allclose(np.ravel(answer.outputs), logits, rtol=1e-5)
        files = router.infer_many([file_of(x) for x in photos])
        np.testing.assert_allclose([np.ravel(one.outputs) for one in files], want, rtol=1e-5)
        sent = router.engine.snapshot.clouds[0].traffic[0]
    assert sent < 9 * 500


def test_without_a_card_the_shape_says_it(server):
    """Channels first or last, grey or in colour; other sizes are fitted to the shape of the server's tensor."""
    x = RNG.integers(0, 255, (5, 7, 3), np.uint8)
    first, url = float(x[0, 0, 0]), url_of(server, "colours")
    with Router(unsure, OpenInference(url, codec="png", kind="value"), threshold=0.5) as router:
        for given in (x, x.transpose(2, 0, 1), x[None], x.transpose(2, 0, 1)[None], file_of(x), PIL.fromarray(x)):
            np.testing.assert_array_equal(np.ravel(router.infer(given).outputs), [x.sum(dtype=float), first])
        for flat in (x[:3], x[:, :3].transpose(1, 0, 2)):  # three high, and three channels
            assert router.infer(flat).outputs.ravel()[0] == router.infer(file_of(flat)).outputs.ravel()[0]
        half = router.infer(np.repeat(np.repeat(x, 2, 0), 2, 1)).outputs
        assert abs(np.ravel(half)[0] - x.sum(dtype=float)) < 0.02 * x.sum(dtype=float)


def test_metadata_has_a_name_for_pictures(server):
    """`NAME-encoded` takes BYTES, as exports have it; a model that takes no pictures has no such name."""
    assert server.get("/v2/models/pictures").json()["inputs"][0]["datatype"] == "FP32"
    about = server.get("/v2/models/pictures-encoded").json()
    assert (about["name"], about["inputs"]) == ("pictures-encoded", [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}])
    assert server.get("/v2/models/pictures-encoded/ready").status_code == 200
    for name in ("floats-encoded", "nothing-encoded", "pictures-encoded-encoded", "-encoded"):
        assert server.get(f"/v2/models/{name}").status_code == 404
    assert asked(url_of(server, "pictures-encoded"), file_of(np.zeros((9, 9, 3), np.uint8))) == asked(
        url_of(server, "pictures"), np.zeros((9, 9, 3), np.uint8), codec="jpeg"
    )


@pytest.mark.parametrize("binary", [True, False])
def test_the_server_takes_pictures_of_any_mode(server, pictures, binary):
    """Grey, palette, CMYK and transparent ones, and those on their side, are what Pillow makes of them in RGB."""
    model = OnnxModel(pictures)
    model.load()
    photo = PIL.fromarray(RNG.integers(0, 255, (20, 12, 3), np.uint8))
    turned = PIL.Exif()
    turned[0x0112] = 6
    files = {
        "grey": file_of(photo.convert("L")), "palette": file_of(photo.convert("P")), "cmyk": file_of(photo.convert("CMYK"), "JPEG"),
        "rgba": file_of(photo.convert("RGBA")), "1 bit": file_of(photo.convert("1")), "turned": file_of(photo, "JPEG", exif=turned),
        "webp": file_of(photo, "WEBP"), "progressive": file_of(photo, "JPEG", progressive=True),
    }  # fmt: skip
    found = rows_of(infer(server, "pictures", *files.values(), binary=binary))
    np.testing.assert_allclose(found, np.vstack([model.run([data], None) for data in files.values()]), rtol=1e-5)
    np.testing.assert_allclose(
        rows_of(infer(server, "pictures-encoded", files["turned"], shape=[1], media_type="image/jpeg")), found[5:6], rtol=1e-5
    )


def bomb(width, height):
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


GOOD = file_of(np.full((9, 9, 3), 77, np.uint8), "JPEG")
HOSTILE = {
    "nothing": b"", "no picture": b"hello", "truncated": GOOD[: len(GOOD) // 2], "a head alone": GOOD[:20],
    "bomb": bomb(60_000, 60_000), "warned of by Pillow": bomb(10_000, 10_000), "too large": bomb(9_000, 9_000),
    "too small a body": bomb(4000, 4000), "no size": bomb(0, 5), "16 bit": file_of(np.full((9, 9), 999, np.uint16)),
    "another format": file_of(np.zeros((9, 9, 3), np.uint8), "BMP"), "scans": GOOD[:-2] + b"\xff\xda\0\x02" * (MOST_SCANS + 1),
    "segments": GOOD[:2] + b"\xff\xfe\0\x02" * 20_000 + GOOD[2:],
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pictures_are_the_callers_error(server, data):
    """Broken, huge and odd files are refused with 400, alone or among others, and the server goes on."""
    for files in ([data], [GOOD, data]):
        reply = infer(server, "pictures", *files)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"].startswith("bad request: image: ")
    assert rows_of(infer(server, "pictures", GOOD)).shape == (1, 4)


def test_what_follows_a_picture_counts_for_nothing(server):
    """Cameras write films, thumbnails and notes into their files: bytes that look like scans are none there."""
    notes = b"\xff\xe1\x10\x02" + b"\xff\xda" * 2048
    film = b"\xff\xda\0\x02" * 5000
    plain = rows_of(infer(server, "pictures", GOOD))
    np.testing.assert_array_equal(rows_of(infer(server, "pictures", GOOD[:2] + notes + GOOD[2:] + film)), plain)


def test_hostile_requests_are_the_callers_error(server):
    """Lengths, shapes, kinds and texts that are none of the protocol's."""
    bad = [
        infer(server, "pictures", GOOD, shape=[2, 1]), infer(server, "pictures", GOOD, shape=[1, 2]),
        infer(server, "pictures", GOOD, shape=[]), infer(server, "pictures", GOOD, shape="x"),
        infer(server, "pictures", GOOD, shape=[True]), infer(server, "pictures", GOOD, shape=[0]),
        infer(server, "pictures", GOOD, shape=[1 << 40]), infer(server, "pictures", GOOD, media_type="audio/flac"),
        infer(server, "pictures", GOOD, media_type=5), infer(server, "pictures", GOOD, media_type="application/zstd"),
        infer(server, "pictures", GOOD, media_type="text/html"), infer(server, "pictures", GOOD, binary=False, content_type="x"),
        infer(server, "pictures", *[GOOD] * 1025), infer(server, "floats", GOOD, name="x"),
        infer(server, "any", GOOD, GOOD, name="x"), infer(server, "bytes", GOOD, name="x", media_type="image/jpeg"),
    ]  # fmt: skip
    head = {"name": "image", "datatype": "BYTES", "shape": [1]}
    for raw, said in ((b"\xff\xff\xff\xffhello", 9), (b"\1", 1), (b"\1\0\0\0ab", 6), (GOOD, -1), (GOOD, 1 << 70), (GOOD, 4)):
        text = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": said}}]}).encode()
        bad.append(server.post("/v2/models/pictures/infer", content=text + raw, headers={LENGTH: str(len(text))}))
    for data in (["%%%"], [5], "x", None, [["a", 5]], [base64.b64encode(GOOD).decode()] * 2, ["\u2603"]):
        tensor = {**head, "data": data, "parameters": {"content_type": "base64"}}
        bad.append(server.post("/v2/models/pictures/infer", json={"inputs": [tensor]}))
    assert [reply.status_code for reply in bad] == [400] * len(bad)


def test_decoded_pictures_count_as_held(pictures):
    """Many small files that would be large together are refused before any is decoded, and nothing stays counted."""
    application = app([OnnxModel(pictures)], max_bodies_bytes=20_000)
    with running(application) as client:
        tiny = file_of(np.zeros((1, 1, 3), np.uint8))
        assert infer(client, "pictures", *[tiny] * 30).status_code == 413
        for _ in range(5):
            assert infer(client, "pictures", *[tiny] * 10).status_code == 200


def test_without_pillow(pictures, monkeypatch):
    """A server without it says so with 501, and the other way to send an input goes on; a client says it when it is made."""
    with running(app([OnnxModel(pictures)])) as client:
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        reply = infer(client, "pictures", GOOD)
        assert (reply.status_code, "edgeroute[image]" in reply.text) == (501, True)
    monkeypatch.setattr("edgeroute.cloud.input_codecs.find_spec", lambda _: None)
    for codec, package in (("jpeg", "image"), ("zstd", "zstandard"), ({"name": "flac", "rate": 8000}, "soundfile")):
        own_zstd.cache_clear()
        with pytest.raises(RuntimeMissing, match=package):
            codec_of(codec)
    own_zstd.cache_clear()


@BOTH
def test_smaller_numbers(kind, server):
    """float16 and bytes with a scale are the model's floats again on the server, or what the model takes itself."""
    x, floats = np.array([0, 0.25, 0.5, 1, 0.1, 0.9], np.float32), url_of(server, "floats")
    for binary in (True, False):
        for codec, most in (("fp16", 1e-3), ({"name": "uint8", "scale": 1 / 255}, 1 / 255 * 6), ("zstd", 0)):
            if codec == "zstd" and importlib.util.find_spec("zstandard") is None and sys.version_info < (3, 14):
                continue
            with kind(unsure, OpenInference(floats, codec=codec, kind="value", binary=binary), threshold=0.5) as router:
                answer = router.infer(x)
                assert answer.source == "cloud", answer.reason
                assert abs(np.ravel(answer.outputs)[0] - x.sum()) <= most
    with Router(
        unsure,
        OpenInference(url_of(server, "bytes"), codec={"name": "uint8", "scale": 0.5, "offset": -1}, kind="value"),
        threshold=0.5,
    ) as router:
        assert np.ravel(router.infer(np.array([-1, 0, 1, 126.5], np.float32)).outputs).tolist() == [0 + 2 + 4 + 255, 0]


def test_smaller_numbers_need_a_scale(server):
    """Bytes for a model of floats are refused without one: what they are worth is nowhere said."""
    x = {"name": "x", "shape": [1, 6], "datatype": "UINT8", "data": [1] * 6}
    for parameters in ({}, {"scale": "1"}, {"scale": True}, {"scale": 1, "offset": None}, {"scale": 1, "offset": "x"}):
        assert server.post("/v2/models/floats/infer", json={"inputs": [{**x, "parameters": parameters}]}).status_code == 400
    good = server.post("/v2/models/floats/infer", json={"inputs": [{**x, "parameters": {"scale": 2, "offset": 1}}]})
    assert rows_of(good).tolist() == [[18, 3]]


@BOTH
def test_what_cannot_be_encoded_costs_no_answer(kind, server):
    """Floats, NaN, odd shapes and kinds are the caller's error where there is no edge's answer, and never the cloud's."""
    fails = {
        "jpeg": [np.zeros((5, 7, 3), np.float32), np.full((5, 7, 3), np.nan), np.zeros((5, 7, 3), np.int64), "text", None, 5,
                 np.zeros((5, 7), np.uint8), np.zeros((5, 7, 2), np.uint8), np.zeros((0, 7, 3), np.uint8), np.zeros(3, np.uint8),
                 np.zeros((2, 5, 7, 3), np.uint8), b"no picture", np.ma.masked_all((5, 7, 3), np.uint8).astype(float)],
        "fp16": [np.zeros((3, 5, 7), np.uint8)],
    }  # fmt: skip
    for codec, inputs in fails.items():
        with kind(unsure, OpenInference(url_of(server, "colours"), codec=codec, kind="value"), threshold=0.5) as router:
            for x in inputs:
                answer = router.infer(x)
                assert (answer.value, answer.degraded) == ("edge", True)
                with pytest.raises(BadInput):
                    router.infer(x, mode="only_cloud")
            assert router.infer(np.ones((3, 5, 7), np.uint8)).source == ("cloud" if codec == "jpeg" else "edge")
    for codec, x in (("fp16", 1e6), ("fp16", np.nan), ({"name": "uint8", "scale": 1}, 256), ({"name": "uint8", "scale": 1}, -1)):
        with kind(unsure, OpenInference(url_of(server, "floats"), codec=codec, kind="value"), threshold=0.5) as router:
            assert router.infer(np.full(6, x, np.float32)).source == "edge"


def test_odd_arrays_are_encoded_as_what_they_show():
    """Views that are not contiguous, one row high, or big: what comes out of a file without losses is what went in."""
    x = RNG.integers(0, 255, (9, 30, 3), np.uint8)
    codec = codec_of("png")
    for odd in (x[::2, ::-3], x[:1], x[:, :1], x[..., ::-1], x[..., 0], x[..., :1], np.asfortranarray(x), x.transpose(1, 0, 2)):
        found = np.asarray(PIL.open(io.BytesIO(codec.encode(odd).data)))
        np.testing.assert_array_equal(found.reshape(odd.shape), odd)
    for kind in ("jpeg", "webp"):
        with pytest.raises(BadInput, match="cannot be written"):
            codec_of(kind).encode(np.zeros((1, 70_000), np.uint8))
    with pytest.raises(BadInput, match="transparency"):
        codec_of("jpeg").encode(np.zeros((4, 4, 4), np.uint8))


def test_grpc_sends_the_same_files():
    """Over gRPC they are raw BYTES, each with its length before it; parameters are not sent."""
    pytest.importorskip("grpc")
    messages = pytest.importorskip("edgeroute.cloud.grpc").message_classes()
    cloud = OpenInferenceGrpc("http://127.0.0.1:9/v2/models/m", codec="png")
    cloud.recall({"inputs": [["x", "uint8", [-1, 5, 7, 3], "UINT8"]]})
    x = RNG.integers(0, 255, (5, 7, 3), np.uint8)
    said = messages["Request"].FromString(cloud.encode([x, x]).body)
    assert (said.inputs[0].datatype, list(said.inputs[0].shape)) == ("BYTES", [2, 1])
    size = int.from_bytes(said.raw[0][:4], "little")
    assert said.raw[0][4 : 4 + size] == codec_of("png").encode(x).data


@pytest.mark.parametrize("codec", ["gif", "jpeg:0", "jpeg:101", "jpeg:x", "jpeg:-1", "png:5", "uint8", "uint8:1", "flac", "",
                                   {"name": "jpeg", "quality": 1.5}, {"name": "jpeg", "level": 3}, {}, {"quality": 3}, 5, ["jpeg"],
                                   {"name": "uint8", "scale": 0}, {"name": "uint8", "scale": float("nan")}, "zstd:99"])  # fmt: skip
def test_codecs_that_are_none(codec):
    """A mistake is told when the endpoint is made."""
    with pytest.raises(PolicyError, match="codec"):
        OpenInference("http://127.0.0.1:9/v2/models/m", codec=codec)


def test_certificates_and_the_cache_are_bound_to_the_codec(fashion):
    """Another quality is another payload, for certificates and for cached answers; and without a codec all is as it was."""

    def prints(codec):
        cloud = OpenInference("http://127.0.0.1:9/v2/models/m", codec=codec)
        with Router(fashion / "edge.int8.onnx", cloud, threshold=0.5) as router:
            return router.fingerprints()["codec"], router.engine.snapshot.clouds[0].identity(str)

    found = {str(codec): prints(codec) for codec in (None, "jpeg:95", "jpeg:94", "jpeg", "webp:95", "fp16")}
    assert found["jpeg"] == found["jpeg:95"]
    assert len(set(found.values())) == 5
    assert found["None"][0] == "OpenInference"
    assert found["jpeg"][0] == "OpenInference:jpeg:95"


@BOTH
def test_redaction_comes_before_the_codec(kind, server):
    """What is encoded is what the redaction returned."""
    x = np.full((5, 7, 3), 9, np.uint8)
    egress = Egress(redact=lambda x, _: x // 9)
    cloud = OpenInference(url_of(server, "colours"), codec="png", kind="value")
    with kind(unsure, cloud, threshold=0.5, egress=egress) as router:
        for _ in range(2):
            assert np.ravel(router.infer(x).outputs).tolist() == [x.size, 1]


def test_stored_calls_keep_their_payload(server, tmp_path):
    """A request that waits in the outbox is sent as it was encoded, whatever the codec is by then."""
    x, answers = RNG.integers(0, 255, (5, 7, 3), np.uint8), queue.Queue()
    with Link(server.base_url.host, server.base_url.port) as relay:
        options = {"threshold": 0.5, "offline": "queue", "outbox": Outbox(tmp_path / "outbox", spread_s=0)}
        cloud = OpenInference(f"{relay.url}/v2/models/colours", codec="png", kind="value", retries=0)
        with Router(unsure, cloud, **options) as router:
            assert router.infer(x).source == "cloud"
            relay.down()
            assert routes.queued(router.infer(x)) == routes.WAITING
        cloud = OpenInference(f"{relay.url}/v2/models/colours", codec="jpeg:5", kind="value", retries=0)
        with Router(unsure, cloud, **options) as router:
            router.on_late(answers.put)
            relay.up(router)
            late = answers.get(timeout=LONG)
    assert np.ravel(late.value).tolist() == [float(x.sum()), float(x[0, 0, 0])]


def test_the_exports_read_what_is_sent(monkeypatch):
    """The programs that `edgeroute export` writes read the same request: as binary, and as JSON."""
    programs = Path(edgeroute.__file__).parent / "tools" / "export" / "programs"
    monkeypatch.syspath_prepend(str(programs))
    for name in ("by_card", "oip_messages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    oip, by_card = importlib.import_module("oip_messages"), importlib.import_module("by_card")
    picture = {"height": 5, "width": 7, "channels": 3, "resize": None, "crop": None, "filter": "bilinear"}
    spec = {"name": "x", "dtype": "uint8", "shape": [5, 7, 3], "picture": picture}
    x = RNG.integers(0, 255, (5, 7, 3), np.uint8)
    for binary in (True, False):
        cloud = OpenInference("http://127.0.0.1:9/v2/models/m", codec="png", binary=binary)
        cloud.recall({"inputs": [["x", "uint8", [-1, 5, 7, 3]]], "binary": binary})
        call = cloud.encode([x, x[::-1]])
        length = dict(call.headers).get(LENGTH)
        ask = oip.read(call.body, length, [spec], [{"name": "y"}])
        found = [by_card.decode(bytes(one), picture) for one in ask.feed["x"].reshape(-1)]
        np.testing.assert_array_equal(found, [x, x[::-1]])
    for name in ("by_card", "oip_messages"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_policy_names_the_codec(server, tmp_path):
    """By its name, or with options in a table; a mistake is found as the file is read."""
    path = tmp_path / "policy.toml"
    for said, good in (
        ('"jpeg:70"', True),
        ('{ name = "webp", quality = 70 }', True),
        ('"gif"', False),
        ("5", False),
        ("{ }", False),
    ):
        path.write_text(f'mode = "only_cloud"\n[cloud]\nurl = "{url_of(server, "colours")}"\nkind = "value"\ncodec = {said}\n')
        if not good:
            with pytest.raises(PolicyError, match="codec"):
                Router.from_policy(path)
            continue
        with Router.from_policy(path) as router:
            assert router.infer(np.ones((5, 7, 3), np.uint8)).source == "cloud"


class Seen:
    """A codec of an application's own, which remembers its threads."""

    name, pictures = "seen:1", True

    def __init__(self):
        self.threads = []

    def encode(self, x):
        """A PNG."""
        self.threads.append(threading.current_thread().name)
        return Coded(codec_of("png").encode(x).data, {"media_type": "image/png"})


def test_inputs_are_encoded_off_the_event_loop(server):
    """A large photo holds up nobody else: but for the first, until which it is not known how, in a thread of the cloud's."""
    codec = Seen()

    async def ask():
        cloud = OpenInference(url_of(server, "colours"), codec=codec, kind="value")
        async with AsyncRouter(unsure, cloud, threshold=0.5) as router:
            x = np.ones((5, 7, 3), np.uint8)
            first = await router.infer(x)
            codec.threads.clear()
            later = [await router.infer(x), *await router.infer_many([x, x]), await router.infer(x)]
            assert {one.source for one in (first, *later)} == {"cloud"}

    asyncio.run(ask())
    assert len(codec.threads) == 4
    assert threading.current_thread().name not in codec.threads


def test_the_server_decodes_off_its_event_loop(pictures, monkeypatch):
    """While a picture is decoded, others are answered."""
    begun, gate, decode = threading.Event(), threading.Event(), Decoder.__call__

    def slow(self, files):
        begun.set()
        assert gate.wait(LONG)
        return decode(self, files)

    monkeypatch.setattr(Decoder, "__call__", slow)
    with running(app([OnnxModel(pictures)])) as client, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(infer, client, "pictures", GOOD)
        assert begun.wait(LONG)
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
        assert client.post("/v2/models/pictures/infer", json={"inputs": [tensor]}).status_code == 200
        gate.set()
        assert rows_of(reply.result(LONG)).shape == (1, 4)


@pytest.mark.parametrize("codec", ["zstd", "flac"])
def test_compressed_tensors(codec, server):
    """zstd and FLAC lose nothing of integers; what they say of themselves is checked before it is made."""
    pytest.importorskip({"zstd": "compression.zstd" if sys.version_info >= (3, 14) else "zstandard", "flac": "soundfile"}[codec])
    given = {"name": "flac", "rate": 16000} if codec == "flac" else codec
    x = (3000 * np.sin(np.arange(4000) / 20)).astype(np.int16)
    with Router(unsure, OpenInference(url_of(server, "sound"), codec=given, kind="value"), threshold=0.5) as router:
        assert np.ravel(router.infer(x).outputs).tolist() == [float(x.sum()), 0]
        assert router.infer(x).source == "cloud"
        assert router.engine.snapshot.clouds[0].traffic[0] < 3 * x.nbytes
    media = "audio/flac" if codec == "flac" else "application/zstd; datatype=INT16; shape=4000"
    coded = codec_of(given).encode(x).data
    assert rows_of(infer(server, "sound", coded, name="x", media_type=media)).tolist() == [[float(x.sum()), 0]]
    bad = [
        infer(server, "sound", data, name="x", media_type=media) for data in (b"", b"hello", coded[:-9], coded[5:], coded[:40])
    ]
    if codec == "zstd":
        others = ("INT16; shape=3999", "INT16; shape=4001", "INT16; shape=40000000000", "INT16; shape=4000x1", "INT16; shape=",
                  "UINT16; shape=4000", "INT16; shape=0", "FP99; shape=4000")  # fmt: skip
        bad += [infer(server, "sound", coded, name="x", media_type=f"application/zstd; datatype={one}") for one in others]
        huge = codec_of("zstd").encode(np.zeros(1 << 24, np.int16)).data
        bad.append(infer(server, "sound", huge, name="x", media_type=media))
    else:
        bad.append(infer(server, "halves", codec_of(given).encode(x).data, name="x", media_type=media))
    assert [reply.status_code for reply in bad] == [400] * len(bad), [reply.text for reply in bad]


@pytest.mark.parametrize("end", ["/v1/chat/completions", "/chat/completions", "/v1/messages", "/v1/responses"])
def test_an_api_of_chats_takes_no_input_in_json(tmp_path, end):
    """It would answer each call with 400: what to write is in the message, unless there is a body."""
    url = f"http://127.0.0.1:1{end}"
    with pytest.raises(PolicyError, match=r"a url that ends in .*: write protocol = \"openai\".* \(OpenAIChat\), or a body"):
        edgeroute.PlainJson(url)
    with pytest.raises(PolicyError, match=r"pass OpenAIChat\(url, model=\.\.\.\)"):
        Router(cloud=url, mode="only_cloud")
    file = tmp_path / "policy.toml"
    file.write_text(f'mode = "only_cloud"\n[cloud]\nprotocol = "json"\nurl = "{url}"\n')
    with pytest.raises(PolicyError, match=r'policy\.toml: .*write protocol = "openai"'):
        Router.from_policy(file)
    assert edgeroute.PlainJson(url, body={"messages": "{input}"}).where == url
    assert edgeroute.PlainJson(url, encode=lambda x: {"messages": x}).where == url
    assert edgeroute.PlainJson("http://127.0.0.1:1/doors/v1").where.endswith("/v1")
