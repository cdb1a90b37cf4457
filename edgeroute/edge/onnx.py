"""ONNX models on ONNX Runtime: their external data, their execution providers, and the model class."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from edgeroute.core.setting_units_and_ranges import Count
from edgeroute.edge.model_card import Array
from edgeroute.edge.onnx_provider_options import CPU, Given, Provider, names_of, parse_providers
from edgeroute.edge.runtime_base import FileOptions, ModelFile, first_line, last_operator
from edgeroute.errors import ModelError, PolicyError
from edgeroute.system.clock_json_and_fork_safety import log
from edgeroute.system.late_imports_and_plugins import import_needed, no_fork
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
    paths: dict[Path, None] = {}
    try:
        with map_file(model) as data:
            for match in _LOCATION.finditer(data):
                name = data[match.end() : match.end() + _number(match[1])]
                path = _file_in_folder(model.parent, name)
                if path is not None:
                    paths[path] = None
    except (OSError, ValueError):  # there is no file, a pipe, or it is empty: `load` reports it
        return []
    return list(paths)


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


def last_operators(model: Path) -> dict[str, str]:
    """Return name of an output -> operator that makes it, read from a model file, as `last_operator` finds it.

    An operator that is no normalisation by the Euclidean norm, as its p is 1, is left empty. {} if the file cannot be read.
    """
    outputs, nodes = list[bytes](), dict[bytes, tuple[str, list[bytes]]]()
    try:
        with map_file(model) as data:
            for _, begin, end in _fields(data, 0, len(data), {7}):  # the graph
                for key, start, stop in _fields(data, begin, end, {1, 12}):  # a node, or an output
                    parts = [(part, data[a:b]) for part, a, b in _fields(data, start, stop, {1, 2, 4, 5} if key == 1 else {1})]
                    if key == 1:
                        operator = next((value for part, value in parts if part == 4), b"").decode()  # noqa: PLR2004 - its type
                        if (5, _NORM_1) in [(part, value[:5]) for part, value in parts]:
                            operator = ""
                        sources = [value for part, value in parts if part == 1]
                        nodes.update({value: (operator, sources) for part, value in parts if part == 2})  # noqa: PLR2004 - an output
                    else:
                        outputs += [value for _, value in parts]
        return {name.decode(): last_operator(name, nodes) for name in outputs}
    except (OSError, ValueError, IndexError):  # `load` reports it
        return {}


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
    """Node of the graph, and the provider that runs it."""

    name: str
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
    for folder in [folder for provider in usable for folder in provider.folders]:
        _make(folder)
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


def _make(folder: Path) -> None:
    """Create a provider's folder, with its parents.

    Raises:
        ModelError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ModelError(f"the folder for what a provider compiles, {folder}, cannot be made: {e.strerror}") from e


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
    return tuple(Node(node.name, node.op_type, part.ep_name) for part in parts for node in part.get_nodes())


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
        self.nodes: tuple[Node, ...] | None = None
        self._used = [*self.providers]
        self._run_options: Any = None
        self._input = ""
        self._prepare: Callable[[Any], Array] | None = None

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
        used = [*self.providers]
        if self.on_downgrade == "record" and [provider.name for provider in used] != [CPU]:
            self.load()
            used = self._used
        return {"runtime": "onnxruntime", "providers": [provider.setting for provider in used], "output": self.output}

    def _open(self) -> Any:
        """Open a session, store its placement and downgrade, and check the types of its tensors. Raises as `load`."""
        ort = runtime()
        result = open_session(ort, self.path, self.providers, threads=self.threads, strict=self.on_downgrade == "error")
        session, self.nodes, self.downgraded = result.session, result.nodes, result.downgraded
        self.placement = None if [provider.name for provider in self.providers] == [CPU] else result.placement()
        self._used = result.used(self.providers) if result.downgraded else [*self.providers]
        self._describe([*map(spec_of, session.get_inputs())], [*map(spec_of, session.get_outputs())])
        self._check_types(session)
        self._input = self.inputs[0].name if self.inputs else ""
        self._prepare = self._plan.one
        self._run_options = ort.RunOptions
        return session

    def _check_types(self, session: Any) -> None:
        """Refuse tensors of types that numpy lacks, whose every run would fail.

        Raises:
            ModelError: an input, or an output that is read, has such a type.
        """
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            for node in nodes:
                known = not node.type.startswith("tensor(") or node.type in _DTYPES or node.type == "tensor(string)"
                if not known and (kind == "input" or node.name in self._names):
                    raise ModelError(
                        f"{self.path}: its {kind} {node.name} is a {node.type}, which numpy does not have: export it with a cast "
                        "to float32 in the graph"
                    )

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
            out = self._execute(session, self._names, {self._input: tensor}, cancel)
            return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))
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
        try:
            if cancel is None:
                return session.run(names, feed)  # type: ignore[no-any-return]
            options = self._run_options()
            cancel.on_ask(lambda: setattr(options, "terminate", True))
            return session.run(names, feed, options)  # type: ignore[no-any-return]
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
