"""Looks at a model behind the Open Inference Protocol: its metadata, and what it gives for the person's own sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeroute.cloud.datatypes import DTYPES
from edgeroute.cloud.openinference import OpenInference
from edgeroute.confidence.reader import Reader
from edgeroute.core.policy import Options
from edgeroute.core.words import named
from edgeroute.edge.card import Card
from edgeroute.edge.inputs import Inputs
from edgeroute.errors import BadInput, CloudError, EdgerouteError
from edgeroute.http.messages import Reply, Secret
from edgeroute.router.router import Router
from edgeroute.system.quoting import quoted_names
from edgeroute.tools.cli.inputs import by_name, read_inputs
from edgeroute.tools.cli.inspect_report import Report, Shown
from edgeroute.tools.inspect.guess import KIND, NAME, outputs
from edgeroute.tools.inspect.guess_inputs import Finding, describe
from edgeroute.types import TensorSpec

# An endpoint of which only its metadata is known: what it says of its outputs, and all of them in a reply.


class Described(OpenInference):
    """A model behind the Open Inference Protocol, of which every output is read. No zeros are sent to it.

    Args:
        url: of the model.
        boxes: whether its outputs are those of a detector, which have no batch axis.
        address: as for `OpenInference`.
    """

    def __init__(self, url: str, *, boxes: bool = False, **address: Any) -> None:
        super().__init__(url, binary=False, kind="boxes" if boxes else "value", **address)
        self._all = True
        self._kinds: dict[str, str] = {}

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Of the outputs, by the server's metadata, after `ping`; empty: it does not describe them."""
        return tuple(TensorSpec(name, self._kinds.get(name, "object"), shape) for name, shape in self.outputs.items())

    def _description(self, reply: Reply) -> dict[str, Any]:
        said = super()._description(reply)
        with suppress(AttributeError, KeyError, TypeError):  # what is not the protocol's is refused later
            self._kinds = {str(t["name"]): DTYPES.get(str(t.get("datatype")), "object") for t in said["outputs"]}
        return said


def inspect_url(url: str, sample: Path | None, index: int, seconds: float, key_env: str | None) -> Report:
    """Everything that the endpoint says of its model. Without a sample nothing is sent but the questions for its metadata.

    Raises:
        CloudError: it cannot be reached, or does not speak the protocol.
        BadInput: the sample does not fit.
    """
    options: dict[str, Any] = {"retries": 0, "timeout_s": seconds, "api_key": Secret(env=key_env) if key_env else None}
    endpoint = Described(url, name="the endpoint", **options)
    secrets = [value for _, value in endpoint.address.headers()]
    with Router(None, endpoint, mode="only_cloud") as router:
        found = router.check()
    if not found.ok or endpoint.inputs is None:
        raise CloudError(found.lines[0].partition(": ")[2])
    inputs, in_names = _quotable(endpoint.inputs, secrets, "input")
    outs, out_names = _quotable(endpoint.specs, secrets, "output")
    report = Report(endpoint.where, {"protocol": "Open Inference Protocol v2"})
    report.inputs = [(spec, "given") for spec in inputs]
    report.outputs = [(spec, "read") for spec in outs]
    before = outputs(outs, []) if outs else [Finding(KIND, "?", "open", "the server does not describe its outputs")]
    rows: list[dict[str, Any]] = []
    if sample is not None:
        report.sample = str(sample)
        x = _fitting(sample, inputs, index)
        boxes = any(one.about == KIND and one.says == "boxes" for one in before)
        real = {quoted: name for name, quoted in in_names.items()}
        given = {real[name]: array for name, array in x.items()} if isinstance(x, dict) else x
        raw = _asked(Described(url, boxes=boxes, name="the endpoint", **options), given, seconds)
        row = {out_names.get(name, "an output that its metadata lacks"): value for name, value in raw.items()}
        rows.append(row)
        outs = outs or [TensorSpec(name, str(value.dtype), (-1, *value.shape)) for name, value in row.items()]
        report.notes.append("the sample was sent, once")
    else:
        report.notes.append(
            "nothing was sent but the questions whether it is ready, and what it takes; --sample FILE sends that file"
        )
    about_outputs = outputs(outs, rows) if rows else before
    report.findings = [one for guess in describe(inputs, []) for one in guess.findings] + about_outputs
    kind, output = (_said(about_outputs, key) for key in (KIND, NAME))
    told = {"url": endpoint.where, "output": output, "kind": kind}
    report.policy = {key: value for key, value in told.items() if value is not None}
    if rows:
        report.shown.append(_read(rows[0], kind, output))
    return report


def _quotable(specs: Sequence[TensorSpec], secrets: Sequence[str], what: str) -> tuple[list[TensorSpec], dict[str, str]]:
    """The tensors, under names that may be shown; and for each name the one that is shown."""
    shown, names = list[TensorSpec](), dict[str, str]()
    for i, spec in enumerate(specs):
        said = quoted_names([spec.name], secrets)
        names[spec.name] = spec.name if said == spec.name else f"{what} {i}, whose name is not quoted"
        shown.append(spec._replace(name=names[spec.name]))
    return shown, names


def _fitting(path: Path, specs: Sequence[TensorSpec], index: int) -> Any:
    """The sample, as it is sent; that it fits is found out here.

    Raises:
        BadInput: it does not.
    """
    arrays = by_name(path, [spec.name for spec in specs]) if len(specs) > 1 else {}
    if arrays:
        x: Any = arrays
    else:
        items = read_inputs(path)
        if index >= len(items):
            raise BadInput(f"{path} has {len(items)} inputs: there is none of the number {index}")
        x = items[index].x
    Inputs(Card(), specs, ()).feed([x], "the endpoint")
    return x


def _asked(endpoint: Described, x: Any, seconds: float) -> Mapping[str, Any]:
    """The outputs for this input, by name.

    Raises:
        CloudError: there are none.
    """
    with Router(None, endpoint, mode="only_cloud", options=Options(no_confidence="accept")) as router:
        answer = router.infer(x, deadline=seconds)
    if not isinstance(answer.outputs, Mapping):
        raise CloudError(f"{endpoint.where} gave no outputs by name")
    return answer.outputs


def _said(found: Sequence[Finding], about: str) -> str | None:
    return next((one.says for one in found if one.about == about and one.sure != "open" and one.says != "?"), None)


def _read(row: Mapping[str, Any], kind: str | None, output: str | None) -> Shown:
    """What a router answers for these outputs."""
    try:
        given: Any = (
            row[output] if output is not None else row if kind in {"label+probabilities", "boxes"} else next(iter(row.values()))
        )
        answer = Reader(kind=kind, name="the endpoint").answer(given)
    except (EdgerouteError, LookupError, TypeError, ValueError) as e:
        return Shown("as it is", error=named(e))
    return Shown("as it is", answer.value, answer.confidence)
