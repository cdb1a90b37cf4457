"""Sessions of ONNX Runtime: opened on the providers that are asked for, and compared with those that they really run on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.edge.model_file import first_line
from edgeroute.edge.providers import CPU, Provider, listed
from edgeroute.errors import ModelError
from edgeroute.imports import no_fork

MOST_SHOWN = 5
"""Maximum number of operators named in a line."""


class Node(NamedTuple):
    """A node of the graph, and where it runs."""

    name: str
    operator: str
    provider: str


class Opened(NamedTuple):
    """A session, and what it runs on."""

    session: Any
    running: tuple[str, ...]
    """The providers that it has, in order."""
    nodes: tuple[Node, ...] | None
    """Where each node runs; None: this version of ONNX Runtime does not say."""
    downgraded: str | None
    """How it runs otherwise than it was asked to."""

    def used(self, providers: Sequence[Provider]) -> list[Provider]:
        """Those of the providers that it runs on: that have a node, as far as that is known."""
        on = self.running if self.nodes is None else {node.provider for node in self.nodes}
        return [one for one in providers if one.name in on] or [Provider(CPU)]

    def placement(self) -> str:
        """Where the nodes run, in one line."""
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


def opened(ort: Any, path: Path, providers: Sequence[Provider], *, threads: int, strict: bool) -> Opened:
    """Opens a session on the providers, best first.

    Args:
        ort: the module onnxruntime.
        path: the model file.
        providers: what is asked for.
        threads: for one run.
        strict: to run otherwise than asked is an error: a provider that is not there or cannot be loaded, or a first one that
            takes no node. Else it is recorded, and where a provider cannot run the model the next ones are tried.

    Raises:
        ModelError: it cannot be loaded, or only otherwise than asked.
    """
    there = ort.get_available_providers()
    missing = [one for one in providers if one.name not in there]
    if missing and strict:
        raise ModelError(
            f"{listed(missing)} is not in this onnxruntime, which has {', '.join(there)}. "
            "Install a build that has it, or allow the downgrade with on_downgrade='record'"
        )
    usable = [one for one in providers if one not in missing] or [Provider(CPU)]
    for folder in [folder for one in usable for folder in one.folders]:
        _make(folder)
    while True:
        try:
            session = _session(ort, path, usable, threads)
            break
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            on_cpu = [one.name for one in usable] == [CPU]
            if strict or on_cpu:
                on = "" if on_cpu else f" on {listed(usable)}"
                raise ModelError(f"onnxruntime cannot load {path}{on}: {first_line(e)}") from e
            usable = usable[1:] or [Provider(CPU)]
    running, nodes = tuple(session.get_providers()), _nodes(session)
    downgraded = _downgrade(providers, running, nodes)
    if downgraded and strict:
        raise ModelError(f"{path}: {downgraded}. Allow it with on_downgrade='record', or ask for other providers")
    return Opened(session, running, nodes, downgraded)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ModelError(f"the folder for what a provider compiles, {folder}, cannot be made: {e.strerror}") from e


def _session(ort: Any, path: Path, providers: Sequence[Provider], threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # without its own fallback, which prints, and makes another session in the middle of a run
    with no_fork.lock:
        return ort.InferenceSession(str(path), options, providers=[one.native(threads) for one in providers], enable_fallback=0)


def _nodes(session: Any) -> tuple[Node, ...] | None:
    try:
        parts = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):  # before 1.24; a build without it
        return None
    return tuple(Node(node.name, node.op_type, part.ep_name) for part in parts for node in part.get_nodes())


def _downgrade(providers: Sequence[Provider], running: Sequence[str], nodes: Sequence[Node] | None) -> str | None:
    first = providers[0].name
    if any(one.name not in running for one in providers):
        return f"asked for {listed(providers)}, running on {', '.join(running)}"
    if nodes and first != CPU and not any(node.provider == first for node in nodes):
        on = dict.fromkeys(node.provider for node in nodes)
        return f"asked for {listed(providers)}, and {first} takes none of the {len(nodes)} nodes: running on {', '.join(on)}"
    return None
