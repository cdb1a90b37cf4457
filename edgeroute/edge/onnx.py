"""ONNX models on ONNX Runtime: their external data, their execution providers, and the model class."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from edgeroute.core.setting_unit_types import Count
from edgeroute.edge.model_card import Array
from edgeroute.edge.onnx_provider_options import CPU, Given, Provider, names_of, parse_providers
from edgeroute.edge.quantised_tensors import QUANTISED, Port, Ports
from edgeroute.edge.runtime_base import MOST_PASSED, FileOptions, ModelFile, first_line, last_operator
from edgeroute.errors import ModelError, PolicyError
from edgeroute.system.late_imports_and_plugins import import_needed, no_fork
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.untrusted_files import map_file
from edgeroute.types import StopToken, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

# External data of an ONNX model: files with weights beside it.

# Key of a `StringStringEntryProto` in the encoding of protocol buffers, and the length of its value.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]?[\x00-\x7f])")


def external_data(model: Path) -> list[Path]:
    """Return the files with weights that the model's tensors refer to, in its folder or below; onnxruntime reads no others.

    The model is searched for the encoded key alone, which also matches other metadata called location: only files that exist
    count. None are returned if the model cannot be read.
    """
    try:
        with map_file(model) as data:
            names = (data[match.end() : match.end() + _number(match[1])] for match in _LOCATION.finditer(data))
            paths = (_file_in_folder(model.parent, name) for name in names)
            return list(dict.fromkeys(path for path in paths if path is not None))
    except (OSError, ValueError):  # there is no file, a pipe, or it is empty: `load` reports it
        return []


def _number(varint: bytes) -> int:
    """Return the number that a varint of protocol buffers stands for."""
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(varint))


def _file_in_folder(folder: Path, name: bytes) -> Path | None:
    """Return the path of an existing file in the folder or below; None: there is none of this name, or it lies elsewhere."""
    try:
        path = folder / name.decode()
        inside = path.resolve().is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # it is no name of a file
        return None


_NORM_1 = b"\x0a\x01p\x18\x01"  # attribute p = 1 of `LpNormalization`, which divides by the sum: probabilities may come out
_LARGEST, _TRUE = b"\x0a\x07largest", b"\x18\x01"  # attribute of `TopK`; without a 1 it gives the least


# Numbers of fields in ONNX's messages: of a graph; of a node, whose first are inputs, outputs and operator; of a tensor.
_NODE, _CONSTANT, _OUTPUT = 1, 5, 12
_ATTRIBUTE = 5
_FLOATS, _INTEGERS, _NAME, _RAW = 4, 5, 8, 9
_MOST_VARINT = 10  # most bytes of an integer


class Graph(NamedTuple):
    """Names of a model's outputs, its nodes, and its constants, read from the file."""

    outputs: list[bytes]
    nodes: list[tuple[str, list[bytes], list[bytes]]]  # operator, inputs, outputs
    constants: dict[bytes, dict[int, bytes]]  # name -> first values, by the number of their field in `TensorProto`


def read_graph(model: Path, constants: bool = False) -> Graph:
    """Read the graph of a model file. A norm that is not Euclidean has an empty operator, a `TopK` of the least "TopK least".

    constants: read constants of one number, too.

    Raises:
        OSError, ValueError, IndexError: it cannot be read, or is damaged.
    """
    graph = Graph([], [], {})
    with map_file(model) as data:
        for _, begin, end in _fields(data, 0, len(data), {7}):  # the graph
            for key, start, stop in _fields(data, begin, end, {_NODE, _OUTPUT, *[_CONSTANT] * constants}):
                if key == _CONSTANT:
                    graph.constants.update(_small_tensor(data, start, stop))
                    continue
                parts = [*_fields(data, start, stop, {1, 2, 4, _ATTRIBUTE} if key == _NODE else {1})]
                names = {part: [data[a:b] for which, a, b in parts if which == part] for part in (1, 2, 4)}
                if key == _OUTPUT:
                    graph.outputs.extend(names[1])
                    continue
                operator = "".join(name.decode() for name in names[4][:1])
                attributes = [(a, b) for part, a, b in parts if part == _ATTRIBUTE]
                if operator == "Constant" and constants:
                    for at, until in (place for a, b in attributes for _, *place in _fields(data, a, b, {5})):
                        graph.constants.update(dict.fromkeys(names[2], *_small_tensor(data, at, until).values()))
                begins = [data[a : min(a + 16, b)] for a, b in attributes]
                if any(each.startswith(_NORM_1) for each in begins):
                    operator = ""
                if any(each.startswith(_LARGEST) and not each.startswith(_LARGEST + _TRUE) for each in begins):
                    operator = "TopK least"
                graph.nodes.append((operator, names[1], names[2]))
    return graph


def _small_tensor(data: Any, begin: int, end: int) -> dict[bytes, dict[int, bytes]]:
    """Return {name: field -> its content} of a tensor of at most 10 bytes a field; the name is empty if it has none."""
    parts = _fields(data, begin, end, {_FLOATS, _INTEGERS, _NAME, _RAW})
    fields = {part: data[a:b] for part, a, b in parts if part == _NAME or b - a <= _MOST_VARINT}
    return {fields.pop(_NAME, b""): fields}


def last_operators(model: Path) -> dict[str, str]:
    """Return name of an output -> operator that makes it, read from a model file, as `last_operator` finds it.

    {} if the file cannot be read.
    """
    try:
        graph = read_graph(model)
        nodes = {output: (operator, sources) for operator, sources, outputs in graph.nodes for output in outputs}
        return {name.decode(): last_operator(name, nodes) for name in graph.outputs}
    except (OSError, ValueError, IndexError):  # `load` reports it
        return {}


# Operators that move elements without a change. Operator that gives quantised elements -> input with its scale.
MOVING = ("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
SCALE_OF_OUTPUT = {
    "QuantizeLinear": 1, "QLinearSoftmax": 3, "QLinearSigmoid": 3, "QLinearGlobalAveragePool": 3, "QLinearAveragePool": 3,
    "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QGemm": 7,
}  # fmt: skip
SCALE_OF_INPUT = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")  # behind the elements: scale, zero point


def scales(model: Path, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """Return name of an input or output -> scale and zero point of its elements, where the graph quantises by one constant.

    inputs, outputs: name -> dtype.
    """
    try:
        graph = read_graph(model, constants=True)
        found = {name: _scale_of_input(graph, name.encode(), dtype) for name, dtype in inputs.items()}
        makers = {output: (operator, sources) for operator, sources, made in graph.nodes for output in made}
        for name, dtype in outputs.items():
            operator, sources = makers.get(name.encode(), ("", []))
            for _ in range(MOST_PASSED):
                if operator in MOVING:
                    operator, sources = makers.get(sources[0], ("", []))
            if (at := SCALE_OF_OUTPUT.get(operator)) is not None:
                found[name] = _scale(graph, sources[at : at + 2], dtype)
    except (OSError, ValueError, IndexError):  # it cannot be read, or is damaged
        return {}
    return {name: pair for name, pair in found.items() if pair is not None}


def _scale_of_input(graph: Graph, name: bytes, dtype: str) -> tuple[float, int] | None:
    """Return scale and zero point by which all operators that read an input take its elements; None: unknown, or they differ."""
    moved, pairs = [name], set[tuple[float, int] | None]()
    for operator, sources, made in graph.nodes:  # each after those that make its inputs
        if operator in MOVING and sources[0] in moved:
            moved += made
        elif not set(moved).isdisjoint(sources):
            first = operator in SCALE_OF_INPUT and sources[0] in moved
            pairs.add(_scale(graph, sources[1:3], dtype) if first else None)
    return pairs.pop() if len(pairs) == 1 else None


def _scale(graph: Graph, names: Sequence[bytes], dtype: str) -> tuple[float, int] | None:
    """Return the constants of these names, a float32 scale and a zero point of this dtype, 0 without a name; None: others."""
    raw = (fields := graph.constants.get(names[0], {})).get(_RAW) or fields.get(_FLOATS, b"")
    scale = float(np.frombuffer(raw, "<f4")[0]) if len(raw) == np.dtype("<f4").itemsize else 0.0
    if not 0 < scale < inf:
        return None
    if not any(names[1:]):
        return scale, 0
    fields = graph.constants.get(names[1], {})
    if _INTEGERS in fields:  # each as a varint of 64 bits
        return scale, int(np.uint64(_number(fields[_INTEGERS]) % (1 << 64)).astype(np.int64))
    raw = fields.get(_RAW, b"")
    return (scale, int(np.frombuffer(raw, dtype)[0])) if len(raw) == np.dtype(dtype).itemsize else None


def _fields(data: Any, at: int, end: int, wanted: set[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (number, begin, end) of the wanted fields with a length in a message of protocol buffers.

    Raises:
        IndexError: the message is damaged.
    """

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte: int = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80 or shift > 63:  # noqa: PLR2004 - the last byte, or damage
                return value
            shift += 7

    while at < end:
        key = varint()
        if key & 7 == 2:  # noqa: PLR2004 - a length comes first
            size = varint()
            if size > end - at:
                raise IndexError(at)
            if key >> 3 in wanted:
                yield key >> 3, at, at + size
            at += size
        elif key & 7:
            at += 8 if key & 7 == 1 else 4
        else:
            varint()


# Sessions of ONNX Runtime: opened on the requested providers, and compared with the providers that they really run on.

MOST_SHOWN = 5  # most operators named in a line


class Node(NamedTuple):
    """Operator of a node of the graph, and the provider that runs it."""

    operator: str
    provider: str


class OpenedSession(NamedTuple):
    """Session and the providers that it really runs on."""

    session: Any
    running: tuple[str, ...]  # providers of the session, in order
    nodes: tuple[Node, ...] | None  # nodes with their providers; None: this version of ONNX Runtime does not report them
    downgraded: str | None  # how the session runs otherwise than requested; None: as requested

    def used(self, providers: Sequence[Provider]) -> list[Provider]:
        """Return those of the providers that run a node, as far as this is known; the CPU's if none does."""
        on = self.running if self.nodes is None else {node.provider for node in self.nodes}
        return [provider for provider in providers if provider.name in on] or [Provider(CPU)]

    def placement(self) -> str:
        """Return a line on how many nodes run where, for people."""
        if self.nodes is None:
            return f"on {', '.join(self.running)}; onnxruntime says from 1.24 on which nodes run where"
        counts = Counter(node.provider for node in self.nodes)
        first, *rest = sorted(counts, key=self.running.index) if counts else [self.running[0]]
        parts = [f"{counts[first]} of {len(self.nodes)} nodes on {first}"]
        for name in rest:
            operators = [*dict.fromkeys(node.operator for node in self.nodes if node.provider == name)]
            more = "" if len(operators) <= MOST_SHOWN else ", ..."
            parts.append(f"{counts[name]} on {name} ({', '.join(operators[:MOST_SHOWN])}{more})")
        return ", ".join(parts)


def open_session(ort: Any, path: Path, providers: Sequence[Provider], *, threads: int, strict: bool) -> OpenedSession:
    """Create the providers' folders, and open a session on the providers, best first.

    Each failed attempt drops the first provider; the CPU is the last.

    Args:
        ort: the module onnxruntime.
        path: the model file.
        providers: the requested providers.
        threads: for one run.
        strict: a downgrade is an error: a provider that is missing or cannot be loaded, or a first one that takes no node.
            Otherwise the downgrade is recorded, and where a provider cannot run the model the next ones are tried.

    Raises:
        ModelError: the model cannot be loaded, or not as requested.
    """
    available = ort.get_available_providers()
    missing = [provider for provider in providers if provider.name not in available]
    if missing and strict:
        raise ModelError(
            f"{names_of(missing)} is not in this onnxruntime, which has {', '.join(available)}. "
            "Install a build that has it, or allow the downgrade with on_downgrade='record'"
        )
    usable = [provider for provider in providers if provider not in missing] or [Provider(CPU)]
    try:
        for folder in (folder for provider in usable for folder in provider.folders):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ModelError(f"the folder for what a provider compiles, {folder}, cannot be made: {e.strerror}") from e
    while True:
        try:
            session = _session(ort, path, usable, threads)
            break
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            on_cpu = [provider.name for provider in usable] == [CPU]
            if strict or on_cpu:
                on = "" if on_cpu else f" on {names_of(usable)}"
                raise ModelError(f"onnxruntime cannot load {path}{on}: {first_line(e)}") from e
            usable = usable[1:] or [Provider(CPU)]
    running, nodes = tuple(session.get_providers()), _nodes(session)
    downgraded = _downgrade(providers, running, nodes)
    if downgraded and strict:
        raise ModelError(f"{path}: {downgraded}. Allow it with on_downgrade='record', or ask for other providers")
    return OpenedSession(session, running, nodes, downgraded)


def _session(ort: Any, path: Path, providers: Sequence[Provider], threads: int) -> Any:
    """Open a session of ONNX Runtime on these providers, without its own fallback to others."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # without its own fallback, which prints, and makes another session in the middle of a run
    with no_fork.lock:
        return ort.InferenceSession(
            str(path), options, providers=[provider.native(threads) for provider in providers], enable_fallback=0
        )


def _nodes(session: Any) -> tuple[Node, ...] | None:
    """Return the nodes of a session with their providers; None: this build of ONNX Runtime does not report them."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):  # before 1.24; a build without it
        return None
    return tuple(Node(node.op_type, part.ep_name) for part in parts for node in part.get_nodes())


def _downgrade(providers: Sequence[Provider], running: Sequence[str], nodes: Sequence[Node] | None) -> str | None:
    """Return how a session runs otherwise than requested; None: as requested."""
    first = providers[0].name
    if any(provider.name not in running for provider in providers):
        return f"asked for {names_of(providers)}, running on {', '.join(running)}"
    if nodes and first != CPU and not any(node.provider == first for node in nodes):
        on = dict.fromkeys(node.provider for node in nodes)
        return f"asked for {names_of(providers)}, and {first} takes none of the {len(nodes)} nodes: running on {', '.join(on)}"
    return None


# ONNX's type of an element -> dtype.
DTYPES = {"float": "float32", "double": "float64"} | {
    kind: kind for kind in ("float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
TELEMETRY: Final = "ORT_DISABLE_TELEMETRY"  # variable of the environment; without it 1.29 and later send facts about models
_DTYPES = {f"tensor({kind})": dtype for kind, dtype in DTYPES.items()}


class OnnxModel(ModelFile):
    """Edge model from a .onnx file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    Args:
        path: the model file.
        providers: execution providers, best first: names, such as "cpu" or "tensorrt", or tables with a name and options, such as
            {"name": "tensorrt", "fp16": True} (providers.md).
        threads: threads for one run; more than one slows a busy device down.
        on_downgrade: whether a missing provider, or a first one that takes no node of the model, is an error ("error"), or a note
            in `downgraded` ("record").
        file: arguments of `edgeroute.edge.runtime_base.ModelFile`: sha256, card, output, kind, labels, score, none_found.

    Importing ONNX Runtime sets ORT_DISABLE_TELEMETRY=1 unless the variable is set: ONNX Runtime would write and send by default.

    Raises:
        PolicyError: a provider or an option is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Given | Sequence[Given] = ("cpu",),
        threads: Count = 1,
        on_downgrade: Literal["error", "record"] = "error",
        **file: Unpack[FileOptions],
    ) -> None:
        super().__init__(path, **file)
        try:
            self.providers = parse_providers(providers)
        except PolicyError as e:
            raise PolicyError(f"providers: {e}") from None
        self.threads, self.on_downgrade = threads, on_downgrade
        self.placement: str | None = None
        self._used: Sequence[Provider] = self.providers
        self._run_options: Any = None
        self._input = ""
        self._prepare: Callable[[Any], Array] | None = None
        self.quantised: dict[str, Port] = {}  # inputs and outputs that are quantised

    def _operators(self) -> dict[str, str]:
        """Return name of an output -> operator that makes it."""
        return last_operators(self.path)

    @property
    def files(self) -> list[Path]:
        """The card's path, and the files with weights beside the model."""
        return [*external_data(self.path), *super().files]

    @property
    def settings(self) -> dict[str, Any]:
        """The runtime, the output that is read, and the providers with the options that change outputs, such as a precision.

        Where a downgrade is allowed, reading this loads the model. Threads are not included: they change the order of sums, and
        so the last digits at most.
        """
        if self.on_downgrade == "record" and [provider.name for provider in self.providers] != [CPU]:
            self.load()
        return {"runtime": "onnxruntime", "providers": [provider.setting for provider in self._used], "output": self.output}

    def _open(self) -> Any:
        """Open a session; store its placement, downgrade, inputs and outputs, and check their types. Raises as `load`."""
        ort = runtime()
        result = open_session(ort, self.path, self.providers, threads=self.threads, strict=self.on_downgrade == "error")
        session, self.downgraded = result.session, result.downgraded
        self.placement = None if [provider.name for provider in self.providers] == [CPU] else result.placement()
        self._used = result.used(self.providers) if result.downgraded else self.providers
        inputs, outputs = ([*map(spec_of, nodes)] for nodes in (session.get_inputs(), session.get_outputs()))
        self._describe_ports(inputs, outputs)
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            for node in nodes:  # a type that numpy lacks would fail in every run
                known = not node.type.startswith("tensor(") or node.type in _DTYPES or node.type == "tensor(string)"
                if not known and (kind == "input" or node.name in self._names):
                    raise ModelError(f"{self.path}: numpy has no {node.type} ({kind} {node.name}): add a cast to float32")
        self._input = self.inputs[0].name if self.inputs else ""
        self._prepare = None if self.quantised else self._plan.one
        self._run_options = ort.RunOptions
        return session

    def _describe_ports(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Store the file's inputs and outputs. Quantised ones take and give floats where the file has scale and zero point."""
        dtypes = [{spec.name: spec.dtype for spec in specs if spec.dtype in QUANTISED} for specs in (inputs, outputs)]
        known = scales(self.path, *dtypes) if any(dtypes) else {}

        def port(spec: TensorSpec) -> Port:
            """Return an input or output with its quantisation; a scale of 0: none is known."""
            return Port(spec.name, 0, spec.dtype, spec.shape, spec.shape, *known.get(spec.name, (0.0, 0)))

        ports = Ports([*map(port, inputs)], self.card)
        given, made = ([ports.spec(port(spec)) for spec in specs] for specs in (inputs, outputs))
        self._describe(given, made, ports.preparation)
        self.quantised = {spec.name: port(spec) for spec in (*inputs, *outputs) if spec.name in known}

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Run one input, by a fast path if it is the model's only one; return as `run`. A stop request terminates it.

        Loads the model if need be.

        Raises:
            BadInput: it does not fit.
            ModelError: the model cannot be loaded, or the run failed or was stopped.
        """
        session, prepare = self._session or self.load(), self._prepare
        if prepare is None or type(x) is dict:
            return self.run([x], cancel)
        tensor = prepare(x)
        if cancel is not None:
            return self._by_name(self._execute(session, self._names, {self._input: tensor}, cancel))
        try:  # the usual case, by the short way
            out = session.run(self._names, {self._input: tensor})
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            raise self._run_error(e) from e
        return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))

    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """Run the session on tensors by name; a stop request terminates it.

        Raises:
            ModelError: the run failed, or was stopped.
        """
        options = None
        if cancel is not None:
            options = self._run_options()
            cancel.on_ask(lambda: setattr(options, "terminate", True))
        ports = self.quantised
        feed = {name: ports[name].as_elements(x) if name in ports else x for name, x in feed.items()} if ports else feed
        try:
            out: list[Array] = session.run(names, feed, options)
            return [ports[name].real(x) if name in ports else x for name, x in zip(names, out, strict=True)] if ports else out
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            raise self._run_error(e) from e


def runtime() -> Any:
    """Import and return onnxruntime, with its telemetry disabled by an environment variable.

    A value that is set already stays. If the program has imported onnxruntime before, it is too late for the variable: its events
    are disabled as far as it can, and a warning is logged.

    Raises:
        RuntimeMissing: it is not installed.
    """
    late = TELEMETRY not in os.environ and sys.modules.get("onnxruntime")
    os.environ.setdefault(TELEMETRY, "1")  # read once, at import
    if late:
        late.disable_telemetry_events()  # from 1.29 on it still sends facts about the process and writes below ~/.cache
        log.warning("the program imported onnxruntime first, so it may send telemetry to its maker: set %s=1", TELEMETRY)
    return import_needed("onnxruntime", "onnxruntime is not installed: pip install 'edgeroute[onnx]'")


def spec_of(node: Any) -> TensorSpec:
    """Return name, dtype and shape of an input or output of a session.

    A sequence of mappings counts as float32 [any, any]; unknown types as object; dynamic axes as -1.
    """
    if node.type.startswith("seq(map("):  # scikit-learn's zipmap: a mapping from class to probability for each input
        return TensorSpec(node.name, "float32", (-1, -1))
    shape = tuple(n if isinstance(n, int) and n > 0 else -1 for n in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, "object"), shape)
