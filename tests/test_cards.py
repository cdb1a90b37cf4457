"""Model cards: what goes into a model is read rightly, or refused with what to write."""

from __future__ import annotations

import importlib
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import tiny
from commands import cli
from onnx import TensorProto, helper
from PIL import Image

from edgeroute import BadInput, ModelError, OnnxModel, OpenInference, PolicyError, Router, RuntimeMissing
from edgeroute.edge import model_card as card_format
from edgeroute.edge.model_card import Card

ROOT = Path(__file__).resolve().parent.parent
RED = np.zeros((4, 5, 3), np.uint8)
RED[..., 0] = 255
value = helper.make_tensor_value_info
OTHER = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}


def same(path, shape, *, dtype="float32", card=None):
    """A model that gives its input x, of that shape, as y; with the card."""
    io_ = value("x", OTHER[dtype], shape), value("y", OTHER[dtype], shape)
    tiny.save(path, [helper.make_node("Identity", ["x"], ["y"])], [io_[0]], [io_[1]])
    if card is not None:
        path.with_suffix(".json").write_text(json.dumps(card))
    return OnnxModel(path)


def colours(path, layout="CHW", **card):
    """x [n, 3, h, w] or [n, h, w, 3] -> its mean colour [n, 3]."""
    shape, axes = (["n", 3, 4, 5], [2, 3]) if layout == "CHW" else (["n", 4, 5, 3], [1, 2])
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=0)]
    tiny.save(path, nodes, [value("x", 1, shape)], [value("m", 1, ["n", 3])])
    data = {"labels": ["red", "green", "blue"], **card}
    data["input"] = {"name": "x", "dtype": "float32", "shape": [-1, *shape[1:]], **data.get("input", {})}
    path.with_suffix(".json").write_text(json.dumps(data))
    return path


# ---------------------------------------------------------------------------------------------------------- the format
@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"preproces": {}}, 'preproces: there is no such key: did you mean "preprocess"?'),
        ({"input": {"name": "x", "shap": [1]}}, 'input.shap: there is no such key: did you mean "shape"?'),
        ({"inputs": [{"name": "x", "batch_axis": 1}]}, 'inputs[0].batch_axis: there is no such key: did you mean "batch"?'),
        ({"output": {"knd": "logits"}}, 'output.knd: there is no such key: did you mean "kind"?'),
        ({"state": [{"input": "h", "out": "h2"}]}, 'state[0].out: there is no such key: did you mean "output"?'),
        ({"state": [{"input": "h"}]}, "state[0].output: is missing"),
        ({"input": {"dtype": "float32"}}, "input.name: is missing"),
        ({"input": {"name": "x", "dtype": "flaot32"}}, 'input.dtype: found "flaot32": did you mean "float32"?'),
        ({"input": {"name": "x", "layout": "NCHW"}}, 'input.layout: found "NCHW": did you mean "CHW"?'),
        ({"input": {"name": "x", "shape": [-1, "three"]}}, 'input.shape[1]: expected another value, found "three"'),
        ({"input": {"name": "x", "shape": [-1, 2.5]}}, "input.shape[1]: expected another value, found 2.5"),
        ({"input": {"name": "x", "shape": [1e999]}}, "input.shape[0]: expected"),
        ({"input": {"name": "x", "shape": [-2]}}, "input.shape[0]: expected"),
        ({"input": {"name": "x", "batch": "first"}}, 'input.batch: expected 0, 1, ... or "none", found "first"'),
        ({"input": {"name": "x", "batch": True}}, "input.batch: expected"),
        ({"input": {"name": "x", "shape": [-1, 3], "batch": 2}}, "input.batch: there is no axis 2 in [-1, 3]"),
        ({"input": {"name": "x", "shape": [-1, 3], "layout": "HW"}}, "input.layout: HW has 2 axes"),
        ({"inputs": [{"name": "x"}, {"name": "x"}]}, "x is there twice"),
        ({"inputs": [{"name": "x"}], "state": [{"input": "x", "output": "y"}]}, "x is there twice"),
        ({"input": {"name": "x"}, "inputs": []}, "inputs: with it there is no input"),
        ({"labels": 3}, "labels: expected a list, found 3"),
        ({"output": {"labels": "ab"}}, 'output.labels: expected a list, found "ab"'),
        ({"labels": ["a"], "output": {"labels": ["b"]}}, "labels: there are others in output"),
        ({"output": {"positive": 0}}, "output.positive: there is no such key"),
        ({"output": {"kind": "logit"}}, 'output.kind: found "logit": did you mean "logits"?'),
        ({"output": {"score": "margins"}}, 'output.score: found "margins": did you mean "margin"?'),
        ({"output": {"none_found": "acept"}}, 'output.none_found: found "acept": did you mean "accept"?'),
        ({"labels": [["a"]]}, 'labels[0]: expected another value, found ["a"]'),
        ({"sha256": 3}, "sha256: expected text, found 3"),
        ({"preprocess": {"dtype": "uint8", "shape": [4]}}, "preprocess: it needs input"),
        ({"input": {"name": "x", "preprocess": {"dtype": "uint8", "shape": [4]}}}, "preprocess needs dtype and shape"),
        ({"input": {"name": "x", "value": 1, "preprocess": {"dtype": "uint8", "shape": [4]}}}, "a constant, value, has no preprocess"),
        ([], "the card: expected an object, found []"),
        ("text", 'the card: expected an object, found "text"'),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_what_to_write(card, message):
    """Every unknown key with the nearest one, every wrong value with what is expected there."""
    with pytest.raises(ModelError) as caught:
        Card(card)
    assert message in str(caught.value)


def test_each_key_of_the_output_counts(tmp_path):
    """Labels there are those at the top; and a detector's rule."""
    output = {"kind": "logits", "labels": ["a", "b", "c"], "score": "margin", "none_found": "accept"}
    model = OnnxModel(tiny.linear(tmp_path / "m.onnx", card={"output": output}))
    assert (model.labels, model.kind, model.score, model.none_found) == (("a", "b", "c"), "logits", "margin", "accept")
    assert Card({"labels": ["a"], "output": {"labels": ["a"]}}).labels == ("a",)


def carded(**preprocess):
    """A card of a picture [n, 3, 4, 5]."""
    return {
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 3, 4, 5], "layout": "CHW"},
        "preprocess": {"dtype": "uint8", "shape": [4, 5, 3], "layout": "HWC", **preprocess},
    }


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"std": 0}, "preprocess.std: expected a positive number, or a list of them, found 0"),
        ({"std": [1, -1, 1]}, "preprocess.std: expected a positive number"),
        ({"mean": []}, "preprocess.mean: expected a number, or a list of numbers, found []"),
        ({"mean": [1, 2]}, "mean has 2 numbers, and [any, 3, 4, 5] not so many channels"),
        ({"scale": "1/255"}, 'preprocess.scale: expected a number, found "1/255"'),
        ({"scale": 1e300}, "too large for float32"),
        ({"shape": [4, 5]}, "layout HWC has not as many axes as [4, 5]"),
        ({"shape": [5, 4, 3]}, "they differ in H, 5 and 4"),
        ({"shape": [4, 5, 4]}, "they differ in C, 4 and 3"),
        ({"layout": None}, 'preprocess: shape [4, 5, 3] needs "layout": "HWC" or "layout": "CHW" beside it'),
        ({"resize": 0}, "preprocess.resize: expected a size, or [height, width], found 0"),
        ({"resize": 256}, 'keeps proportions: write [height, width], or "crop" as well'),
        ({"resize": [4, 6]}, "resize gives [4, 6], not the shape [4, 5, 3]"),
        ({"resize": 8, "crop": 4}, "crop gives [4, 4], not the shape [4, 5, 3]"),
        ({"crop": [4, 5], "layout": "CHW", "shape": [3, 4, 5]}, 'resize and crop need dtype "uint8"'),
        ({"filter": "cubic"}, 'preprocess.filter: found "cubic": did you mean "bicubic"?'),
    ],
)  # fmt: skip
def test_a_mistake_in_preprocess(preprocess, message):
    """The numbers, the axes and the sizes have to go together."""
    with pytest.raises(ModelError) as caught:
        Card(carded(**preprocess))
    assert message in str(caught.value)


def test_several_mistakes_are_told_at_once():
    """Up to five."""
    with pytest.raises(ModelError) as caught:
        Card({f"labels{i}": 1 for i in range(7)})
    assert str(caught.value).count("there is no such key") == 5


def test_a_key_that_is_null_is_one_that_is_not_there():
    """As JSON writers put it."""
    card = Card({"labels": None, "sha256": None, "input": {"name": "x", "dtype": None}, "output": None})
    assert (card.labels, card.sha256, card.kind, card.inputs[0].dtype) == (None, None, None, None)


def test_the_shipped_cards_are_of_the_format(fashion):
    """Nothing is wrong with them."""
    for name in ("edge.int8.json", "cloud.json"):
        assert list(card_format.problems(json.loads((fashion / name).read_text()))) == []


def test_the_schema_says_what_is_read():
    """Every key has a meaning; no object takes another; it is JSON, and of the draft that it names."""
    schema = card_format.schema()
    json.dumps(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["input"]["properties"]["layout"]["enum"] == ["HW", "HWC", "CHW"]

    def walk(one):
        if "properties" in one:
            assert one["additionalProperties"] is False
            for key, each in one["properties"].items():
                assert each["description"], key
                walk(each)
        if "items" in one:
            walk(one["items"])

    walk(schema)


# ----------------------------------------------------------------------------------------------------------- pictures
def test_a_colour_picture_is_transposed(tmp_path):
    """A red picture as Pillow and cameras give it, HWC, is red to a model of CHW, by `run_one`, `run` and the router."""
    card = {"input": {"layout": "CHW"}, "preprocess": {"dtype": "uint8", "shape": [4, 5, 3], "layout": "HWC", "scale": 1 / 255}}
    model = OnnxModel(colours(tmp_path / "c.onnx", **card))
    assert model.run_one(RED).tolist() == [[1, 0, 0]]
    assert model.run([RED, RED[..., ::-1]]).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert model.run_one(RED[None]).tolist() == [[1, 0, 0]]
    assert model.run_one(np.asfortranarray(RED)).tolist() == [[1, 0, 0]]
    with Router(edge=model) as router:
        assert router.infer(RED).value == "red"
        assert router.infer(Image.fromarray(RED)).value == "red"
        assert [a.value for a in router.infer_many([RED, RED[..., [1, 0, 2]]])] == ["red", "green"]


@pytest.mark.parametrize("batch", [0, 3, "none"])
@pytest.mark.parametrize(("a", "b"), [("HWC", "CHW"), ("CHW", "HWC"), ("HWC", "HWC"), ("CHW", "CHW")])
def test_each_layout_becomes_each_other(tmp_path, a, b, batch):
    """Whatever axis counts the inputs: every pixel comes to its place, with its channel's mean and std."""
    picture = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    mean, std = [1.0, 2.0, 3.0], [1.0, 2.0, 4.0]
    turn = {"HWC": lambda x: x, "CHW": lambda x: x.transpose(2, 0, 1)}
    given, expected = turn[a](picture), turn[b]((picture.astype(np.float64) - mean) / std)
    shape = list(expected.shape)
    if batch != "none":
        shape.insert(batch, -1)
    card = {
        "input": {"name": "x", "dtype": "float32", "shape": shape, "layout": b, "batch": batch},
        "preprocess": {"dtype": "uint8", "shape": list(given.shape), "layout": a, "mean": mean, "std": std},
        "output": {"batch": batch},
    }
    model = same(tmp_path / "m.onnx", ["n" if size == -1 else size for size in shape], card=card)
    assert model.run_one(given)[0] == pytest.approx(expected, rel=1e-5)
    assert model.run_one(given[None])[0] == pytest.approx(expected, rel=1e-5), "by the long way"
    assert model.run([given // 2, given])[1] == pytest.approx(expected, rel=1e-5)


def test_a_reshape_that_would_scramble_is_refused(tmp_path):
    """Without layouts [4, 5, 3] is not read as [3, 4, 5]: the card is refused, with the two lines to write."""
    path = colours(tmp_path / "c.onnx", preprocess={"dtype": "uint8", "shape": [4, 5, 3]})
    with pytest.raises(ModelError) as caught:
        Router(edge=path)
    assert 'write "layout": "HWC" into preprocess and "layout": "CHW" into input' in str(caught.value)


@pytest.mark.parametrize(
    ("given", "tensor"),
    [([4, 5], [1, 4, 5]), ([4, 5], [4, 5, 1]), ([4, 5, 1], [1, 4, 5]), ([1, 4, 5], [4, 5]), ([4, 5], [20]), ([20], [1, 4, 5])],
)
def test_axes_of_one_come_and_go_without_a_layout(tmp_path, given, tensor):
    """The order of the numbers stays: so a grey picture needs no layout, nor does one that is given as a row of numbers."""
    card = {
        "input": {"name": "x", "dtype": "float32", "shape": [-1, *tensor]},
        "preprocess": {"dtype": "uint8", "shape": given, "scale": 2},
    }
    model, x = same(tmp_path / "m.onnx", ["n", *tensor], card=card), np.arange(20, dtype=np.uint8).reshape(given)
    assert model.run_one(x).reshape(-1).tolist() == list(range(0, 40, 2))
    assert model.run([x, x])[1].shape == (*tensor,)


def test_any_size(tmp_path):
    """A model for pictures of any size gets each in its own, in the layout of the model; a batch is of one size."""
    card = {
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 3, -1, -1], "layout": "CHW"},
        "preprocess": {"dtype": "uint8", "shape": [-1, -1, 3], "layout": "HWC"},
    }
    model = same(tmp_path / "m.onnx", ["n", 3, "h", "w"], card=card)
    assert (model.run_one(RED)[0] == RED.transpose(2, 0, 1)).all()
    assert model.run_one(RED[:2]).shape == (1, 3, 2, 5)
    with pytest.raises(BadInput, match="differ in shape"):
        model.run([RED, RED[:2]])


def test_pixels_may_stay_pixels(tmp_path):
    """Preprocessing that only transposes is for tensors of integers, too."""
    card = {
        "input": {"name": "x", "dtype": "uint8", "shape": [-1, 3, 4, 5], "layout": "CHW"},
        "preprocess": {"dtype": "uint8", "shape": [4, 5, 3], "layout": "HWC"},
    }
    model = same(tmp_path / "m.onnx", ["n", 3, 4, 5], dtype="uint8", card=card)
    assert (model.run_one(RED)[0] == RED.transpose(2, 0, 1)).all()
    with pytest.raises(ModelError, match="gives floats, the input is uint8"):
        Card({**card, "preprocess": {**card["preprocess"], "scale": 0.5}})


# -------------------------------------------------------------------------------------------------- resize, crop, files
@pytest.fixture(scope="module")
def photo():
    """A picture of 60 x 90 with something in it."""
    rng = np.random.default_rng(1)
    return np.asarray(
        Image.fromarray(rng.integers(0, 255, (6, 9, 3)).astype(np.uint8)).resize((90, 60), Image.Resampling.BICUBIC)
    )


def fitted(tmp_path, **preprocess):
    """A model [n, 8, 8, 3] that gives the picture that it gets."""
    card = {
        "input": {"name": "x", "dtype": "uint8", "shape": [-1, 8, 8, 3], "layout": "HWC"},
        "preprocess": {"dtype": "uint8", "shape": [8, 8, 3], "layout": "HWC", **preprocess},
    }
    return same(tmp_path / "fit.onnx", ["n", 8, 8, 3], dtype="uint8", card=card)


def test_another_size_is_refused_unless_the_card_says_how_to_fit_it(tmp_path, photo):
    """Nothing is resized by itself."""
    with pytest.raises(BadInput, match=r'expected a picture \[8, 8\], got \[60, 90\]; .*"resize" or "crop" in preprocess'):
        fitted(tmp_path).run_one(photo)


def test_resize_and_crop_are_pillows(tmp_path, photo):
    """To the shorter side and then the middle, or to a height and width: the pixels are those that Pillow gives."""
    image = Image.fromarray(photo)
    middle = image.resize((15, 10), Image.Resampling.BILINEAR).crop((4, 1, 12, 9))
    model = fitted(tmp_path, resize=10, crop=8)
    assert (model.run_one(photo)[0] == np.asarray(middle)).all()
    assert (model.run([photo, photo])[1] == np.asarray(middle)).all()
    upright = Image.fromarray(photo.transpose(1, 0, 2).copy()).resize((10, 15), Image.Resampling.BILINEAR).crop((1, 4, 9, 12))
    assert (model.run_one(photo.transpose(1, 0, 2))[0] == np.asarray(upright)).all()
    exactly = fitted(tmp_path, resize=[8, 8], filter="lanczos").run_one(photo)[0]
    assert (exactly == np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS))).all()
    cut = fitted(tmp_path, crop=[8, 8])
    assert (cut.run_one(photo)[0] == photo[26:34, 41:49]).all()
    small = photo[:8, :8].copy()
    assert (model.run_one(small)[0] == small).all(), "a picture of the right size is taken as it is"
    with pytest.raises(BadInput, match=r"\[8, 8\] cannot be cut out of a picture of \[7, 90\]"):
        cut.run_one(photo[:7])
    with pytest.raises(BadInput, match=r"expected \[8, 8, 3\] uint8, got \[60, 90, 3\] float64"):
        model.run_one(photo / 255)
    with pytest.raises(BadInput, match="the picture is empty"):
        model.run_one(photo[:0])
    with pytest.raises(BadInput, match="which is too large"):
        fitted(tmp_path, resize=100_000, crop=8).run_one(photo)


def test_grey_pictures_are_fitted_too(tmp_path):
    """With an axis of one channel, or without."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    half = np.asarray(Image.fromarray(grey).resize((4, 4), Image.Resampling.BILINEAR))
    for given, tensor in (([4, 4], [4, 4]), ([4, 4, 1], [4, 4, 1])):
        card = {
            "input": {"name": "x", "dtype": "uint8", "shape": [-1, *tensor]},
            "preprocess": {"dtype": "uint8", "shape": given, "resize": [4, 4]},
        }
        if len(given) == 3:
            card["input"]["layout"] = card["preprocess"]["layout"] = "HWC"
        model = same(tmp_path / f"g{len(given)}.onnx", ["n", *tensor], dtype="uint8", card=card)
        assert (model.run_one(grey.reshape(8, 8, *given[2:])) == half.reshape(1, *tensor)).all()


def encoded(image, kind, **options):
    """The picture as a file."""
    to = io.BytesIO()
    image.save(to, kind, **options)
    return to.getvalue()


def test_encoded_pictures(tmp_path, photo):
    """Bytes of a PNG or JPEG are decoded, turned the right way up, and brought to the model's colours."""
    model, image = fitted(tmp_path, resize=[8, 8]), Image.fromarray(photo)
    expected = model.run_one(photo)
    assert (model.run_one(encoded(image, "PNG")) == expected).all()
    assert (model.run([bytearray(encoded(image, "PNG")), memoryview(encoded(image, "PNG"))])[1] == expected).all()
    assert (model.run_one(encoded(image.convert("RGBA"), "PNG")) == expected).all()
    assert (model.run_one(image) == expected).all()
    palette = image.quantize(64)
    assert (model.run_one(encoded(palette, "PNG")) == model.run_one(palette.convert("RGB"))).all(), "a palette is no grey picture"
    jpeg = encoded(image, "JPEG", quality=95)
    assert (model.run_one(jpeg) == model.run_one(np.asarray(Image.open(io.BytesIO(jpeg))))).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: to be shown turned by 90 degrees
    upright = image.transpose(Image.Transpose.ROTATE_90)
    assert (model.run_one(encoded(upright, "PNG", exif=turned)) == expected).all()
    opened = Image.open(io.BytesIO(encoded(upright, "PNG", exif=turned)))
    assert (model.run_one(opened) == expected).all(), "an image that Pillow has opened is turned, too"


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a" + b"\0" * 40])
def test_bytes_that_are_no_picture(tmp_path, data):
    """Are the caller's fault, and say so; other formats are not even tried."""
    with pytest.raises(BadInput, match=rf"these {len(data)} bytes are no picture that can be read \(JPEG, PNG, WEBP\)"):
        fitted(tmp_path, resize=[8, 8]).run_one(data)


def test_a_small_file_of_a_large_picture(tmp_path):
    """Is not even decoded."""
    bomb = encoded(Image.new("1", (9000, 9000)), "PNG")
    with pytest.raises(BadInput, match=r"a picture of \[9000, 9000\] is too large"):
        fitted(tmp_path, resize=[8, 8]).run_one(bomb)


def test_a_file_that_is_cut_off(tmp_path, photo):
    """Half a picture is none."""
    data = encoded(Image.fromarray(photo), "PNG")
    with pytest.raises(BadInput, match="no picture"):
        fitted(tmp_path, resize=[8, 8]).run_one(data[: len(data) // 2])


def test_deep_pictures_are_refused(tmp_path):
    """16 bits a channel would be clipped to 8."""
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    for given in (encoded(deep, "PNG"), deep):
        with pytest.raises(BadInput, match="more than 8 bits a channel"):
            fitted(tmp_path).run_one(given)


@pytest.mark.parametrize(("colours", "samples"), [(2, 3), (6, 4), (4, 2)], ids=["RGB", "RGBA", "grey with alpha"])
def test_deep_colours_are_refused(tmp_path, colours, samples):
    """Pillow scales these to 8 bits without a word, and their mode does not tell."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"\x12\x34" * samples * 8
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colours, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    for given in (png, Image.open(io.BytesIO(png))):
        with pytest.raises(BadInput, match="more than 8 bits a channel"):
            fitted(tmp_path).run_one(given)


def test_without_pillow(tmp_path, photo, monkeypatch):
    """A card that resizes needs it, which is said when the model is loaded, with the command; other cards do without."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeroute\[image\]'"):
        fitted(tmp_path, resize=[8, 8]).load()
    plain = fitted(tmp_path)
    assert plain.run_one(photo[:8, :8]).shape == (1, 8, 8, 3)
    with pytest.raises(RuntimeMissing, match="Pillow"):
        plain.run_one(b"\x89PNG")
    with Router(edge=tmp_path / "fit.onnx") as router:
        assert router.check().ok


@pytest.mark.parametrize(
    ("wanted", "given"), [("float32", "uint8"), ("float32", "int64"), ("float32", "bool"), ("uint8", "bool")]
)
def test_a_picture_of_another_kind_of_numbers(tmp_path, wanted, given):
    """Pixels of 0 to 255 where the card has floats of 0 to 1 would be wrong by a factor of 255, as the other way round."""
    card = {"preprocess": {"dtype": wanted, "shape": [4, 5, 3], "layout": "HWC"}, "input": {"layout": "CHW"}}
    model = OnnxModel(colours(tmp_path / "m.onnx", **card))
    picture = np.ones((4, 5, 3))
    assert model.run_one(picture.astype(wanted)).tolist() == [[1, 1, 1]]
    for way in (model.run_one, lambda x: model.run([x, x])):
        with pytest.raises(BadInput, match=rf"x: expected {wanted}, got {given}; convert it, since only you know its scale"):
            way(picture.astype(given))


# -------------------------------------------------------------------------------------- several inputs, axes, constants
def mixed(path, card):
    """x [2, n], k (a scalar), w [3, n] -> y [n, 2] = x.T * k, z [n, 3] = w.T."""
    nodes = [
        helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "kf"], ["xk"]),
        helper.make_node("Transpose", ["xk"], ["y"], perm=[1, 0]),
        helper.make_node("Transpose", ["w"], ["z"], perm=[1, 0]),
    ]
    inputs = [value("x", 1, [2, "n"]), value("k", TensorProto.INT64, []), value("w", 1, [3, "n"])]
    tiny.save(path, nodes, inputs, [value("y", 1, ["n", 2]), value("z", 1, ["n", 3])])
    path.with_suffix(".json").write_text(json.dumps(card))
    return OnnxModel(path)


MIXED = {
    "inputs": [
        {
            "name": "x", "dtype": "float32", "shape": [2, -1], "batch": 1,
            "preprocess": {"dtype": "uint8", "shape": [2], "scale": 0.5, "mean": [1, 2]},
        },
        {"name": "k", "value": 3},
        {"name": "w", "batch": 1},
    ]
}  # fmt: skip


def test_inputs_each_with_its_own_preprocessing_batch_axis_and_constants(tmp_path):
    """The second axis counts the inputs, a scalar is the card's, and one input is scaled."""
    model = mixed(tmp_path / "m.onnx", MIXED)
    row = {"x": np.uint8([4, 6]), "w": np.float32([7, 8, 9])}
    out = model.run_one(row)
    assert (out["y"].tolist(), out["z"].tolist()) == ([[3, 3]], [[7, 8, 9]])
    out = model.run([row, {"x": np.uint8([2, 4]), "w": np.float32([1, 2, 3])}])
    assert (out["y"].tolist(), out["z"].tolist()) == ([[3, 3], [0, 0]], [[7, 8, 9], [1, 2, 3]])
    assert [spec.name for spec in model.inputs] == ["x", "w"]
    with pytest.raises(BadInput, match=r"has 2 inputs: pass a mapping with \['x', 'w'\]"):
        model.run_one(row["x"])
    with pytest.raises(BadInput, match="input 1 of the batch: x: expected"):
        model.run([row, {**row, "x": np.zeros(3, np.uint8)}])


def test_columns_of_a_table_are_inputs(tmp_path):
    """As converters export a pipeline: a row is a mapping, or a named tuple, with a number or text for each column."""
    inputs = [value("age", 1, ["n", 1]), value("n", TensorProto.INT64, ["n", 1]), value("city", TensorProto.STRING, ["n", 1])]
    outputs = [value(f"{spec.name}_out", spec.type.tensor_type.elem_type, ["n", 1]) for spec in inputs]
    nodes = [helper.make_node("Identity", [spec.name], [f"{spec.name}_out"]) for spec in inputs]
    tiny.save(tmp_path / "table.onnx", nodes, inputs, outputs)
    model = OnnxModel(tmp_path / "table.onnx")
    row = {"age": 41.5, "n": 3, "city": "Ulm"}
    named = NamedTuple("Row", [("age", float), ("n", int), ("city", str)])(**row)  # as `itertuples` of pandas gives it
    out = model.run([row, {**row, "age": np.float64(40)}, named])
    assert [out[f"{name}_out"].reshape(-1).tolist() for name in row] == [[41.5, 40, 41.5], [3, 3, 3], ["Ulm"] * 3]
    with pytest.raises(BadInput, match=r"age: expected \[1\] float32, got \[2\]"):
        model.run([{**row, "age": [1.0, 2.0]}])


def test_a_constant_is_what_the_input_takes(tmp_path):
    """Of the input's dtype and shape, or it is refused when the model is loaded."""

    def with_value(given):
        return {"inputs": [*MIXED["inputs"][:1], {"name": "k", "value": given}, MIXED["inputs"][2]]}

    for wrong in (0.5, "three", [1, 2], [[1], [2, 3]], 2**70):
        model = mixed(tmp_path / "m.onnx", with_value(wrong))
        with pytest.raises(ModelError, match=r"the card's value of k is no int64 \[\]"):
            model.load()
    assert mixed(tmp_path / "m.onnx", with_value(2.0)).load()
    lists = same(tmp_path / "l.onnx", [2, 2], card={"input": {"name": "x", "value": [[1, 2], [3, 4.5]]}})
    assert lists.run_feed({}).tolist() == [[1, 2], [3, 4.5]]
    filled = same(tmp_path / "f.onnx", [2, 2], card={"input": {"name": "x", "value": 7}})
    assert filled.run_feed({}).tolist() == [[7, 7], [7, 7]]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"input": {"name": "y"}}, r"its card describes the input 'y', the file has \['x'\]"),
        ({"input": {"name": "x", "dtype": "uint8"}}, "describes the input 'x' as uint8, the file has float32"),
        ({"input": {"name": "x", "shape": [-1, 5]}}, r"describes the input 'x' as \[-1, 5\], the file has \[-1, 4\]"),
        ({"input": {"name": "x", "shape": [4]}}, r"as \[4\], the file has"),
        ({"input": {"name": "x", "batch": 3}}, "there is no axis 3"),
        ({"state": [{"input": "h", "output": "y"}]}, r"its card's state names the input 'h', the file has \['x'\]"),
        ({"state": [{"input": "x", "output": "h"}]}, r"its card's state names the output 'h', the file has \['y'\]"),
        ({"state": [{"input": "x", "output": "y", "shape": [1, 5]}]}, r"the shape of x is \[1, 5\], the file has \[-1, 4\]"),
    ],
)
def test_a_card_of_another_file(tmp_path, card, message):
    """What contradicts the file is refused when the model is loaded."""
    with pytest.raises(ModelError, match=message):
        same(tmp_path / "m.onnx", ["n", 4], card=card).load()


def test_a_model_without_a_batch_axis(tmp_path):
    """A model of one picture at a time runs a batch one after the other, and its output has no such axis either."""
    model = same(tmp_path / "m.onnx", [3, 4], card={"input": {"name": "x", "batch": "none"}})
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert (model.run_one(x) == x[None]).all()
    assert (model.run([x, x + 1]) == np.stack([x, x + 1])).all()
    with pytest.raises(BadInput, match=r"input 1 of the batch: x: expected \[3, 4\]"):
        model.run([x, x[:2]])


def test_an_input_of_unknown_axes(tmp_path):
    """A file may not know how many axes a tensor has: then the card tells."""
    path = tmp_path / "m.onnx"
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value("x", 1, None)], [value("y", 1, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(BadInput, match=r"expected \[\] float32"):
        OnnxModel(path).run_one(np.zeros(4, np.float32))
    path.with_suffix(".json").write_text('{"input": {"name": "x", "dtype": "float32", "shape": [-1, 4]}}')
    with Router(path) as router:
        assert [a.value for a in router.infer_many([np.array([0, 0, 5, 1], np.float32)] * 2)] == [2, 2]


def test_a_batch_axis_that_nobody_tells(tmp_path):
    """[4, any] could be batches of 4, or have its batch axis last: a row of the wrong axis would run, too, and be wrong."""
    path = tmp_path / "m.onnx"
    x, y = value("x", 1, [4, "n"]), value("y", 1, [2, "n"])
    w = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    tiny.save(path, [helper.make_node("MatMul", ["w", "x"], ["y"])], [x], [y], [("w", w)])
    sample = np.array([5, 1, 1, 2], np.float32)
    with Router(path) as router:
        check = router.check()
        assert not check.ok
        assert "[4, any]: its first axis counts the inputs, 4 at a time, or another one does, or none." in str(check)
        for ask in (router.infer, lambda x: router.infer_many([x, x])):
            with pytest.raises(
                ModelError, match=r'Write which into its card: "input": \{"name": "x", "batch": 1\}, or "batch": "none"'
            ):
                ask(sample)
    path.with_suffix(".json").write_text('{"input": {"name": "x", "batch": 1}, "output": {"batch": 1}}')
    with Router(path) as router:
        assert router.check().ok
        assert [a.value for a in router.infer_many([sample, sample[::-1]])] == [0, 1]
    path.with_suffix(".json").write_text('{"input": {"name": "x", "batch": 0}}')
    assert OnnxModel(path).load()


def test_a_batch_axis_of_fixed_size(tmp_path):
    """One, as many exporters write it: one at a time. Any other: so many at once, the last one again where some are missing."""
    one = same(tmp_path / "one.onnx", [1, 4])
    x = [np.full(4, i, np.float32) for i in range(5)]
    assert (one.run(x) == np.stack(x)).all()
    assert one.run_one(x[3]).tolist() == [[3] * 4]
    two = same(tmp_path / "two.onnx", [2, 4])
    assert (two.run(x) == np.stack(x)).all()
    assert two.run_one(x[3]).tolist() == [[3] * 4]
    with pytest.raises(BadInput, match='fixed at 2; if that is no batch axis, its card says so: "batch": "none"'):
        two.run_one(np.zeros((2, 4), np.float32))
    with pytest.raises(BadInput, match="the batch is empty"):
        one.run([])


def test_the_outputs_batch_axis(tmp_path):
    """Where it is not the first, the card says so under output; the answers get their own rows."""
    tiny.save(
        tmp_path / "m.onnx", [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
        [value("x", 1, ["n", 3])], [value("y", 1, [3, "n"])],
    )  # fmt: skip
    (tmp_path / "m.json").write_text('{"output": {"batch": 1}}')
    model, x = OnnxModel(tmp_path / "m.onnx"), [np.float32([1, 2, 3]), np.float32([4, 5, 6])]
    assert model.run(x).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert model.run_one(x[1]).tolist() == [[4, 5, 6]]


def test_an_endpoints_card(tmp_path):
    """Several inputs and constants are prepared for a cloud as for a model; a state is refused."""
    path = tmp_path / "card.json"
    pixels = {"name": "x", "dtype": "float32", "shape": [-1, 2], "preprocess": {"dtype": "uint8", "shape": [2], "scale": 0.5}}
    path.write_text(json.dumps({"inputs": [pixels, {"name": "k", "value": 3}]}))
    endpoint = OpenInference("http://127.0.0.1:9/v2/models/m", card=path, binary=False)
    inputs = [["x", "float32", [-1, 2]], ["k", "int64", []], ["w", "float32", [-1, 3]]]
    endpoint.recall({"inputs": inputs, "binary": False})
    call = endpoint.encode([{"x": np.uint8([4, 6]), "w": np.float32([7, 8, 9])}] * 2)
    sent = {tensor["name"]: (tensor["shape"], tensor["data"]) for tensor in json.loads(call.body)["inputs"]}
    assert sent == {"x": ([2, 2], [2, 3, 2, 3]), "k": ([], [3]), "w": ([2, 3], [7, 8, 9, 7, 8, 9])}
    path.write_text('{"state": [{"input": "h", "output": "h2"}]}')
    with pytest.raises(PolicyError, match="the card of an endpoint has no state"):
        OpenInference("http://127.0.0.1:9/v2/models/m", card=path)


# ------------------------------------------------------------------------------------------------------------ the graph
def test_the_shipped_edge_takes_pixels_and_normalises_them_itself(tmp_path, fashion):
    """Bit for bit as a card's preprocessing does before the same graph without its first nodes."""
    graph = onnx.load(fashion / "edge.int8.onnx")
    folded = [node for node in graph.graph.node if node.name.startswith("image_")]
    assert [node.op_type for node in folded] == ["Reshape", "Cast", "Mul", "Add"]
    for node in folded:
        graph.graph.node.remove(node)
    for node in graph.graph.node:
        node.input[:] = ["image" if name == folded[-1].output[0] else name for name in node.input]
    graph.graph.input[0].CopyFrom(value("image", 1, ["n", 1, 28, 28]))
    onnx.save(graph, tmp_path / "floats.onnx")
    card = {
        "input": {"name": "image", "dtype": "float32", "shape": [-1, 1, 28, 28]},
        "preprocess": {"dtype": "uint8", "shape": [28, 28], "scale": 1 / 255, "mean": 0.286, "std": 0.353},
    }
    (tmp_path / "floats.json").write_text(json.dumps(card))
    images = np.load(fashion / "sample.npz")["images"]
    pixels, floats = OnnxModel(fashion / "edge.int8.onnx"), OnnxModel(tmp_path / "floats.onnx")
    assert pixels.card.preprocess is None
    assert (pixels.run(list(images)) == floats.run(list(images))).all()
    assert (pixels.run_one(images[0]) == floats.run_one(images[0])).all()


def test_a_fast_path_takes_nothing_that_the_long_one_refuses(tmp_path):
    """A model without preprocessing checks its one input all the same: NaN, shape, dtype, byte order."""
    model = same(tmp_path / "m.onnx", ["n", 4])
    x = np.arange(4, dtype=np.float32)
    assert model.run_one(x).tolist() == [x.tolist()]
    assert model.run_one(x.astype(">f4")).tolist() == [x.tolist()]
    assert model.run_one(x.astype(np.float64)).tolist() == [x.tolist()]
    for wrong in (np.float32([1, 2, 3, np.nan]), x[:3], x[None, None], np.array(list("abcd")), [[1], [2, 3]]):
        with pytest.raises(BadInput):
            model.run_one(wrong)


# ------------------------------------------------------------------------------------------------------------- the page
def test_the_page_has_the_tables_of_the_format(monkeypatch):
    """docs/cards.md is what `make docs` writes."""
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    page = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
    assert importlib.import_module("reference_pages").pages()["cards.md"] == page


def test_the_command_prints_either_schema():
    """Of policies by default, and of cards."""
    for arguments, title in (([], "edgeroute policy"), (["card"], "edgeroute model card")):
        code, out, _ = cli("schema", *arguments)
        assert code == 0
        assert json.loads(out)["title"] == title
