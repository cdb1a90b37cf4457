"""Inspection of a model behind the Open Inference Protocol: its metadata, and its outputs for the user's sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeroute.cloud.oip_tensors import DTYPES
from edgeroute.cloud.openinference import OpenInference
from edgeroute.confidence.output_reader import SEVERAL, Reader
from edgeroute.core.error_codes_and_texts import error_text
from edgeroute.core.policy_egress_and_options import Options
from edgeroute.edge.inputs_constants_and_states import Inputs
from edgeroute.edge.model_card import Card
from edgeroute.errors import CloudError, EdgerouteError
from edgeroute.http.messages_addresses_and_secrets import Reply, Secret
from edgeroute.router.router import Router
from edgeroute.system.quotable_codes_and_secrets import quoted_names
from edgeroute.tools.cli.inputs_labels_and_outputs import by_name, input_at
from edgeroute.tools.cli.inspect_report import Report, SampleAnswer
from edgeroute.tools.inspect.guess_outputs import KIND, NAME, guess_outputs
from edgeroute.tools.inspect.input_guesses_and_trial_tensors import Finding, describe
from edgeroute.types import TensorSpec

# An endpoint that is known only by its metadata; all outputs of its replies are read.


class Described(OpenInference):
    """Endpoint of the Open Inference Protocol whose outputs are all read. No zeros are sent to it.

    Args:
        url: URL of the model.
        boxes: True if its outputs are those of a detector, which have no batch axis.
        address: options of `OpenInference`.
    """

    def __init__(self, url: str, *, boxes: bool = False, **address: Any) -> None:
        super().__init__(url, binary=False, kind="boxes" if boxes else "value", **address)
        self._kinds: dict[str, str] = {}

    @property
    def _all(self) -> bool:
        """True: all outputs are read."""
        return True

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Output specifications, by the server's metadata, after `ping`; empty if it does not describe them."""
        return tuple(TensorSpec(name, self._kinds.get(name, "object"), shape) for name, shape in self.outputs.items())

    def _description(self, reply: Reply) -> dict[str, Any]:
        """Return the parsed metadata, and store the types of the outputs as far as they are valid."""
        description = super()._description(reply)
        with suppress(AttributeError, KeyError, TypeError):  # invalid metadata is refused later
            self._kinds = {str(t["name"]): DTYPES.get(str(t.get("datatype")), "object") for t in description["outputs"]}
        return description


def inspect_url(url: str, sample: Path | None, index: int, seconds: float, key_env: str | None) -> Report:
    """Report everything that the endpoint states about its model. Sends the sample once; without one only requests metadata.

    The report has lines for a policy, and the answer that a router would give for the sample. Names of tensors that may contain
    the key are not shown. Nothing is retried.

    seconds: limit of each request.

    Raises:
        CloudError: it cannot be reached, or does not speak the protocol.
        BadInput: the sample does not fit.
    """
    options: dict[str, Any] = {"retries": 0, "timeout_s": seconds, "api_key": Secret(env=key_env) if key_env else None}
    endpoint = Described(url, name="the endpoint", **options)
    secrets = [value for _, value in endpoint.address.headers()]
    with Router(None, endpoint, mode="only_cloud") as router:
        check = router.check()
    if not check.ok or endpoint.inputs is None:
        raise CloudError(check.lines[0].partition(": ")[2])
    inputs, in_names = _quotable(endpoint.inputs, secrets, "input")
    outs, out_names = _quotable(endpoint.specs, secrets, "output")
    report = Report(endpoint.where, {"protocol": "Open Inference Protocol v2"})
    report.inputs = [(spec, "given") for spec in inputs]
    report.outputs = [(spec, "read") for spec in outs]
    told = endpoint.served_kind, "the server's metadata says so"
    before = guess_outputs(outs, [], *told) if outs else [Finding(KIND, "?", "open", "the server does not describe its outputs")]
    rows: list[dict[str, Any]] = []
    if sample is not None:
        report.sample = str(sample)
        x = _read_sample(sample, inputs, index)
        boxes = any(finding.about == KIND and finding.says == "boxes" for finding in before)
        real = {quoted: name for name, quoted in in_names.items()}
        named_input = {real[name]: array for name, array in x.items()} if isinstance(x, dict) else x
        raw = _outputs_of(Described(url, boxes=boxes, name="the endpoint", **options), named_input, seconds)
        row = {out_names.get(name, "an output that its metadata lacks"): value for name, value in raw.items()}
        rows.append(row)
        outs = outs or [TensorSpec(name, str(value.dtype), (-1, *value.shape)) for name, value in row.items()]
        report.notes.append("the sample was sent, once")
    else:
        report.notes.append("nothing was sent but requests for its readiness and metadata; --sample FILE sends that file")
    about_outputs = guess_outputs(outs, rows, *told) if rows else before
    report.findings = [finding for guess in describe(inputs, []) for finding in guess.findings] + about_outputs
    kind, output = (_finding_of(about_outputs, key) for key in (KIND, NAME))
    entries = {"url": endpoint.where, "output": output, "kind": kind}
    report.policy = {key: value for key, value in entries.items() if value is not None}
    if rows:
        report.shown.append(_read(rows[0], kind, output))
    return report


def _quotable(specs: Sequence[TensorSpec], secrets: Sequence[str], what: str) -> tuple[list[TensorSpec], dict[str, str]]:
    """Return the tensors under names that may be shown, and real name -> shown name.

    A name that contains a secret or is unfit to quote becomes "input 0, whose name is not quoted".
    """
    shown, names = list[TensorSpec](), dict[str, str]()
    for i, spec in enumerate(specs):
        allowed = quoted_names([spec.name], secrets)
        names[spec.name] = spec.name if allowed == spec.name else f"{what} {i}, whose name is not quoted"
        shown.append(spec._replace(name=names[spec.name]))
    return shown, names


def _read_sample(path: Path, specs: Sequence[TensorSpec], index: int) -> Any:
    """Read the sample, and check that it fits the inputs: arrays of an .npz file by the names of several inputs, if it has them.

    Else input `index` of the file.

    Raises:
        BadInput: it cannot be read, or does not fit.
    """
    arrays = by_name(path, [spec.name for spec in specs]) if len(specs) > 1 else {}
    x = arrays or input_at(path, index)
    Inputs(Card(), specs, ()).feed([x], "the endpoint")
    return x


def _outputs_of(endpoint: Described, x: Any, seconds: float) -> Mapping[str, Any]:
    """Send an input, close the endpoint, and return the outputs by name.

    Raises:
        CloudError: there are none.
    """
    with Router(None, endpoint, mode="only_cloud", options=Options(no_confidence="accept")) as router:
        answer = router.infer(x, deadline=seconds)
    if not isinstance(answer.outputs, Mapping):
        raise CloudError(f"{endpoint.where} returned no outputs by name")
    return answer.outputs


def _finding_of(findings: Sequence[Finding], about: str) -> str | None:
    """Return the value of a certain or likely finding about a field; None if there is none."""
    known = (finding for finding in findings if finding.about == about and finding.sure != "open" and finding.says != "?")
    return next((finding.says for finding in known), None)


def _read(row: Mapping[str, Any], kind: str | None, output: str | None) -> SampleAnswer:
    """Return the answer, or error, that a router gives for these outputs. None of kind, output: unknown."""
    try:
        outputs: Any = row[output] if output is not None else row if kind in {*SEVERAL, "boxes"} else next(iter(row.values()))
        answer = Reader(kind=kind, name="the endpoint").read_answer(outputs)
    except (EdgerouteError, LookupError, TypeError, ValueError) as e:
        return SampleAnswer("as it is", error=error_text(e))
    return SampleAnswer("as it is", answer.value, answer.confidence)
