"""Settings of a router that can never work, or only on a condition, which `check` reports: limits, times, thresholds, targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeroute.cloud.json_api import PlainJson
from edgeroute.cloud.openai import OpenAIChat
from edgeroute.confidence.detector_boxes import RAW, before_anchors
from edgeroute.confidence.output_forms_labels_and_comparison import SLACK, label_and_probabilities
from edgeroute.confidence.output_reader import CLASSES, MANY, SHARES, bounded
from edgeroute.core.endpoint_breaker_and_limits import price
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.spending_limits import Cost, Limits, up_against
from edgeroute.edge.callable_model import CallableModel
from edgeroute.edge.edge_backend import EdgeBackend, InputScoredBackend
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.edge.fitted_estimator_as_function import Estimator
from edgeroute.edge.input_checks_and_stacking import row_shape
from edgeroute.edge.inputs_constants_and_states import batch_axis_problem
from edgeroute.edge.onnx import last_operators
from edgeroute.errors import BadInput, BadReply
from edgeroute.router.policy_snapshot import Snapshot
from edgeroute.tools.inspect.input_guesses_and_trial_tensors import describe, state_problem
from edgeroute.types import Escalated, TensorSpec

# Limit -> the terms of an endpoint that count under it.
PRICES = {
    "usd_per_day": ("usd_per_call", "usd_per_mb", "usd_per_million_input_tokens", "usd_per_million_output_tokens"),
    "joules_per_hour": ("joules_per_call", "joules_per_mb"),
}
LEAST_MB = 1e-6  # size of the smallest call: one byte, in million bytes
SHORTEST = "a"  # input whose call counts as the smallest, if the inputs of the edge are not known
BOX_AND_SCORE = 5  # fewest columns of boxes with scores
JUDGED = {"prefer_edge", "shadow"}  # modes in which an edge's confidence is compared with its threshold


def problems(
    snapshot: Snapshot, limits: Limits, edge_j: float = 0.0, refused: str = "", unsure: Callable[[str], int] = lambda _: 0
) -> Iterator[str]:
    """Yield a line for each setting that can never work, with what to write in its place. Nothing is sent.

    Call it after the models were loaded and the endpoints pinged: what these told is compared.

    Args:
        snapshot: policy in force.
        limits: limits of spending in force.
        edge_j: energy of a run of the edge, joules; 0: not known.
        refused: error of the last reload of the policy; empty: none.
        unsure: returns the number of an edge's answers so far if none had a confidence, else 0.
    """
    if refused:
        yield f"the policy on disk was refused, and the one before is in force: {refused}"
    edges = [backend for backend in snapshot.backends if isinstance(backend, EdgeBackend)]
    clouds: list[Any] = snapshot.clouds
    inputs = [x for edge in edges if (x := _zeros(edge)) is not None]
    yield from _times(snapshot)
    for edge in edges:
        card, *specs = (member(edge.model, name) or () for name in ("card", "inputs", "outputs"))
        if card and not batch_axis_problem(card, *specs) and (text := state_problem(card, *specs)):  # else it is not ready
            yield f"{edge.name}: {text}"
    if clouds and snapshot.policy.mode != "only_edge":
        yield from _limits(clouds, limits, edge_j, inputs or [SHORTEST])
        if snapshot.policy.rules.nothing and (not edges or snapshot.policy.mode == "only_cloud"):
            yield "nothing may leave this device by its rules, and only a cloud may answer: write may_leave, or an edge"
        yield from _unlike(snapshot, edges, clouds)
    for judged in filter(None, (snapshot, snapshot.shown)):
        if judged.policy.mode in JUDGED:
            yield from _thresholds(judged, unsure)


def settings_to_confirm(snapshot: Snapshot, limits: Limits) -> Iterator[str]:
    """Yield a line for each setting that is right only if something holds that the user alone can confirm.

    These are limits without a cloud, or where some endpoints have a price and others none, and inputs that are colour pictures of
    floats whose scale no card states.
    """
    for name in limits._fields if not snapshot.clouds else ():
        if getattr(limits, name) < INF and name != "joules_per_hour":  # an edge's runs take energy
            yield f"{name} = {getattr(limits, name):g} never applies: there is no cloud"
    for name, terms in PRICES.items() if snapshot.policy.mode != "only_edge" else ():
        free = [cloud.name for cloud in snapshot.clouds if not any(getattr(cloud.terms, term) for term in terms)]
        if getattr(limits, name) < INF and 0 < len(free) < len(snapshot.clouds):
            yield (
                f"{name} = {getattr(limits, name):g} does not count calls of {', '.join(free)}, without a price, while others "
                f"have one: write {terms[0]} beside the url, unless they are free"
            )
        for cloud in snapshot.clouds if getattr(limits, name) < INF else ():
            has_price = [bool(getattr(cloud.terms, term)) for term in terms[-2:]]
            if has_price == [True, False] and "tokens" in terms[-1]:
                yield f"{name} does not count the tokens of {cloud.name}'s answers: write {terms[-1]} too, unless they are free"
    edges = [backend for backend in snapshot.backends if isinstance(backend, EdgeBackend)]
    for edge, card in [(edge, card) for edge in edges if (card := member(edge.model, "card")) is not None]:
        for guess in describe(member(edge.model, "inputs"), []):
            entry, shape = card.of(guess.spec.name), guess.spec.shape
            colours = guess.layout is not None and 3 in (shape[1:2] + shape[-1:]) and len(guess.preparations) > 1  # noqa: PLR2004
            if colours and (entry is None or entry.preprocess is None):
                yield (
                    f"{edge.name}: {clean(guess.spec.name)} takes a colour picture as floats, and no preprocess in its card says "
                    "how pixels are scaled: they are passed unchanged, bytes as 0 to 255"
                )


def _times(snapshot: Snapshot) -> Iterator[str]:
    """Yield a line for `hedge_after` and for `first_token` if it is not shorter than the deadline."""
    policy = snapshot.policy
    for name, value in (("hedge_after", policy.hedge_after), ("first_token", policy.first_token_s)):
        if not isinstance(value, str) and policy.deadline_s <= value < INF:
            yield f"{name} = {value:g} s never applies: the deadline is {policy.deadline_s:g} s. Write less, or a longer deadline"


def _limits(clouds: list[Any], limits: Limits, edge_j: float, inputs: list[Any]) -> Iterator[str]:
    """Yield a line for each limit that nothing counts under, and for each that refuses every call of an endpoint.

    Args:
        clouds: the endpoints.
        limits: limits in force.
        edge_j: energy of a run of the edge, joules.
        inputs: inputs to measure the smallest call by.
    """
    for name, terms in PRICES.items():
        limit = getattr(limits, name)
        if limit < INF and not any(
            getattr(cloud.terms, term) for cloud in clouds for term in terms if hasattr(cloud, "endpoint") or "_mb" not in term
        ):  # a function's bytes are unknown
            by_tokens = "tokens" in terms[-1] and any(
                isinstance(getattr(cloud, "endpoint", None), OpenAIChat) for cloud in clouds
            )
            wanted = f"{terms[-2]} and {terms[-1]} beside its url" if by_tokens else f"one beside its url, such as {terms[0]}"
            yield f"{name} = {limit:g} never applies: no endpoint has a price. Write {wanted}, or leave {name} out"
    for cloud in clouds:
        cost = smallest_cost(cloud, inputs)
        for name, limit, asked in zip(Limits._fields, up_against(limits, cost, edge_j), cost, strict=True):
            if asked > limit:
                least = f"at least {asked:.3g}" if asked > LEAST_MB or name == "usd_per_day" else "more"
                yield f"{cloud.name} is never called: a call takes {least}, and {name} = {limit:g}. Write more, or no {name}"


def _call(cloud: Any, x: Any) -> Any:
    """Return an endpoint's call (HTTP request) for an input, without sending it; None: made by a function of the application.

    Raises as `encode`.
    """
    endpoint = getattr(cloud, "endpoint", None)
    if isinstance(endpoint, PlainJson) and not endpoint.prompt:  # by encode=
        return None
    return cloud.encode(Escalated(x, None) if cloud.sends_edge else x)


def smallest_cost(cloud: Any, inputs: list[Any]) -> Cost:
    """Return the least bytes, money and other costs that calls of these inputs take; sends and books nothing.

    An input that the endpoint cannot encode, by any error, counts as one byte.
    """
    costs = []
    for x in inputs:
        size, usd = LEAST_MB if hasattr(cloud, "endpoint") else 0.0, 0.0
        try:
            if (call := _call(cloud, x)) is not None:
                size, usd = len(call.body) * 1e-6, 0.0 if call.tokens is None else price(cloud.terms, call.tokens)
        except Exception:  # noqa: BLE001, S110 - an input that does not fit is another line
            pass
        cost: Cost = cloud.guard.rules.cost(size, 1)
        costs.append(cost._replace(usd=cost.usd + usd))
    return Cost(*map(min, zip(*costs, strict=True)))


def _thresholds(snapshot: Snapshot, unsure: Callable[[str], int]) -> Iterator[str]:
    """Yield a line for each edge whose answers all pass its threshold, or never do, if there is a target after it.

    Also for an edge without confidences, or whose output is read as classes by its form alone.
    """
    last = [target.group or target.name for target in snapshot.targets][-1:]
    for target, backend in zip(snapshot.targets, snapshot.backends, strict=True):
        final = not snapshot.clouds and [target.group or target.name] == last  # variants of one model are one step
        if not isinstance(backend, EdgeBackend) or target.threshold is None or final:
            continue
        levels, unit = [target.threshold, *target.thresholds.values()], bounded(backend.reader.score)
        scored_before = isinstance(backend, InputScoredBackend)
        if min(levels) > 1 + SLACK if unit and not scored_before else min(levels) == INF:
            why = "confidences are at most 1" if min(levels) < INF else "it defers all"
            what = "calibrate anew, with more examples or a looser guarantee" if target.certified else "write a lower one"
            yield (
                f"no answer of {target.name} reaches its threshold, {min(levels):g} ({why}), so each input goes on: "
                f'{what}, or mode = "only_cloud"'
            )
        elif snapshot.policy.no_confidence == "defer" and not scored_before and _unsure(backend):
            known = backend.reader.kind in {"value", "top"}
            kind = "" if known else "kind in its card if its output has a number for each class, "
            row: Any = None if known or backend.on_zeros is None else backend.on_zeros.outputs
            if text := before_anchors(row):
                yield f"{target.name} {text}"
                continue
            if kind and isinstance(row, dict) and len(row) > 1:
                kind = f"output and kind in its card if one of {clean(', '.join(row))} has a number for each class, "
            elif kind and (axes := sum(size > 1 for size in np.shape(row))) > 1:
                kind = 'kind = "ctc" in its card if its output has a number for each step and class, ' if axes == 2 else ""  # noqa: PLR2004
                if backend.reader.kind is None and _may_be_boxes(row):
                    kind = f'kind = "boxes" and labels in its card if its output has boxes and scores, {kind}'
            yield (
                f"{target.name} gives no confidence, so each input goes on: write {kind}score=, a function of its outputs, or "
                'no_confidence = "accept", which takes each answer'
            )
        elif snapshot.policy.no_confidence == "defer" and (count := unsure(target.name)):
            yield (
                f"{target.name} has given {count} answers, all without a confidence, so that each input went on: return "
                '(value, confidence), or write no_confidence = "accept", which takes each answer'
            )
        elif _ends_in_branches(backend) and snapshot.policy.no_confidence == "defer":
            yield (
                f"{target.name} ends in an If, which does not tell what its output is, and it is read as a logit for each class, "
                'by its form alone: write "output": {"kind": "logits"} in its card, or the kind that `edgeroute inspect` finds'
            )
        elif _from_0_to_1(backend) and snapshot.policy.no_confidence == "defer":
            yield f"{target.name} gives {SHARES}"
        elif (doubt := _doubt(backend)) and snapshot.policy.no_confidence == "defer":
            yield f"{target.name} gives {doubt}"
        elif (names := _unnamed(backend)) and snapshot.policy.no_confidence == "defer":
            yield (
                f"{target.name} has {len(names)} outputs, of which {clean(names[0])} is read as a number for each class, by its "
                "form alone: write output and kind in its card, as `edgeroute inspect` finds them"
            )
        elif not target.certified and max(levels) <= (floor := -INF if scored_before or not unit else _least(backend)):
            classes = f"with {round(1 / floor)} classes " if 0 < floor < 0.5 else ""  # noqa: PLR2004 - of two, or of each decision
            least = f": {classes}a confidence is at least {floor:.3g}" if floor > 0 else ""
            yield (
                f"every answer of {target.name} passes its threshold, {max(levels):g}{least}. No input goes on unless it fails: "
                'write a higher one, as `edgeroute calibrate` finds it, or mode = "only_edge"'
            )


def _unsure(backend: EdgeBackend) -> bool:
    """Return True if the edge's answers have no confidence, by its kind or by its run on zeros; no custom score is tried."""
    reader, answer = backend.reader, backend.on_zeros
    if callable(reader.score):
        return False
    plain = answer is not None and answer.confidence is None and not isinstance(answer.value, list)  # which are boxes: none found
    return reader.kind in {"value", "top"} or plain


def _may_be_boxes(row: Any) -> bool:
    """Return True if the first output has the form of a detector's boxes before suppression, beside a score for each."""
    first = next(iter(row.values()), None) if isinstance(row, dict) else row
    shape = [n for n in np.shape(first) if n > 1] if isinstance(first, np.ndarray) else []
    return len(shape) == 2 and max(shape) >= RAW and min(shape) >= BOX_AND_SCORE  # noqa: PLR2004 - boxes and columns


def _read_by_form(backend: EdgeBackend) -> Any:
    """Return the edge's outputs for zeros if they are read as logits by their form alone; None if not, or if unknown."""
    answer, reader = backend.on_zeros, backend.reader
    named = reader.kind is not None or "logit" in reader.output_name().lower()
    return None if named or answer is None or answer.confidence is None or type(answer.value) is list else answer.outputs


def _ends_in_branches(backend: EdgeBackend) -> bool:
    """Return True if a row of an ONNX file's output is read as logits by its form alone, and an `If` makes the output."""
    path = member(backend.model, "path")
    operators = last_operators(path) if _read_by_form(backend) is not None and str(path).lower().endswith(".onnx") else {}
    return operators.get(member(backend.model, "output") or next(iter(operators), "")) == "If"


def _from_0_to_1(backend: EdgeBackend) -> bool:
    """Return True if several numbers between 0 and 1, as sigmoids give them for zeros, are read as logits by their form alone."""
    row = None if callable(backend.reader.score) else _read_by_form(backend)
    return isinstance(row, np.ndarray) and row.size > 1 and row.dtype.kind == "f" and bool(((row > 0) & (row < 1)).all())


def _doubt(backend: EdgeBackend) -> str:
    """Return why numbers that are read as logits by their form alone may be none: those of an answer, or of a file for zeros."""
    row = None if callable(backend.reader.score) or backend.reader.labels is not None else _read_by_form(backend)
    if backend.reader.doubt or not (isinstance(row, np.ndarray) and row.size > 1 and row.dtype.kind == "f"):
        return backend.reader.doubt
    return f"{row.size} numbers, which are {MANY}"


def _unnamed(backend: EdgeBackend) -> list[str]:
    """Return the names of several outputs of which the first is read as classes though nothing says so; [] for others."""
    answer, reader = backend.on_zeros, backend.reader
    if answer is None or answer.confidence is None or member(backend.model, "kind") is not None or reader.labels is not None:
        return []
    several = isinstance(answer.outputs, dict) and type(answer.value) is int and label_and_probabilities(answer.outputs) is None
    return list(answer.outputs) if several else []


def _least(backend: EdgeBackend) -> float:
    """Return the least confidence that the edge's outputs can have: 1 / classes for `msp`, 0.5 for decisions; else 0."""
    reader, answer = backend.reader, backend.on_zeros
    by_form = reader.kind is None and answer is not None and type(answer.value) is list
    boxes = (reader.kind == "boxes" or by_form) and reader.none_found != "defer"
    if (boxes or reader.kind == "multilabel") and not callable(reader.score):
        return 0.5
    if reader.score != "msp" or reader.kind not in {None, *CLASSES, "label+probabilities"}:
        return 0.0
    row = None if answer is None or answer.confidence is None else answer.outputs
    if isinstance(row, Mapping) and (parts := label_and_probabilities(row)) is not None:
        row = parts[1] if isinstance(parts[1], np.ndarray) else np.array([*parts[1].values()])
    if isinstance(row, np.ndarray) and row.dtype.kind == "f" and row.size == max(row.shape, default=0):
        return 1 / max(2, row.size)
    named = _names(backend) if reader.kind is not None or _estimator(backend) is not None else ()
    return 1 / max(2, len(named)) if len(named) else 0.0


def _estimator(backend: EdgeBackend) -> Estimator | None:
    """Return the function of a fitted classifier; None for other models."""
    model = backend.model
    return model.function if isinstance(model, CallableModel) and isinstance(model.function, Estimator) else None


def _names(backend: EdgeBackend) -> Sequence[Any]:
    """Return the labels of the edge's classes; of a fitted classifier without labels, its own; empty: unknown."""
    fitted = _estimator(backend)
    return backend.reader.labels or ([] if fitted is None else [*getattr(fitted.estimator, "classes_", ())])


def _zeros(edge: EdgeBackend, endpoint: Any = None) -> Any:
    """Return an input of zeros as the caller gives it to the edge, or None if its inputs are not known.

    An input is an array, or a text for a tensor of one text; several are a mapping by name.

    Args:
        edge: the edge.
        endpoint: where the input goes: an axis of any size has the size that is taken there, if that is clear, else 1.
    """
    if (fitted := _estimator(edge)) is not None:
        size = getattr(fitted.estimator, "n_features_in_", None)
        return None if size is None or fitted.columns is not None else np.zeros(size)
    card, inputs = member(edge.model, "card"), dict[str, Any]()
    sizes = {len(spec.shape) - 1: spec.shape[1:] for spec in getattr(endpoint, "inputs", None) or ()}
    for spec in member(edge.model, "inputs") or ():
        entry = None if card is None else card.of(spec.name)
        if entry is not None and entry.preprocess is not None:
            accepts: TensorSpec = entry.preprocess.accepts
            shape = accepts.shape[1:]
        else:
            accepts, shape = spec, row_shape(spec, (0 if spec.shape else None) if entry is None else entry.batch)
        if (
            -1 in shape
            and endpoint is not None
            and (getattr(getattr(endpoint, "card", None), "path", None) or getattr(endpoint, "payload", None))
        ):
            return None
        there = sizes.get(len(shape), shape)
        sized = [max(1, other) if size == -1 else size for size, other in zip(shape, there, strict=True)]
        texts = accepts.dtype == "object"
        inputs[spec.name] = "text" if texts and {*sized} <= {1} else np.full(sized, "" if texts else 0, accepts.dtype)
    return None if not inputs else inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _unlike(snapshot: Snapshot, edges: list[EdgeBackend], clouds: list[Any]) -> Iterator[str]:
    """Yield a line for each endpoint that cannot encode zeros of an edge's inputs, or whose labels or outputs are not the edge's.

    Also for labels that are not those of its server. Inputs are not compared where a redactor or views change them. Labels differ
    if they are as many, and none is shared.

    Args:
        snapshot: policy in force.
        edges: the edges.
        clouds: the endpoints.
    """
    for cloud in clouds:
        yield from _unread(cloud)
        endpoint = getattr(cloud, "endpoint", None)
        own = cloud.reader.labels or getattr(endpoint, "served_labels", None)
        for edge in edges:
            names = _names(edge)
            if own and len(own) == len(names) and not {*map(_plain, own)} & {*map(_plain, names)}:  # else they answer otherwise
                yield f"{cloud.name} and {edge.name} have no label in common, so they never agree: give one of them labels="
            if snapshot.egress.redact is not None or snapshot.views.given:  # functions of the application make other inputs
                continue
            try:
                if (x := _zeros(edge, endpoint)) is not None:
                    _call(cloud, x)
            except BadInput as e:
                yield f"{cloud.name} cannot read what {edge.name} reads: {e}"
            except Exception:  # noqa: BLE001, S112 - zeros need not be a good input
                continue


def _unread(cloud: Any) -> Iterator[str]:
    """Yield a line if the labels by which an endpoint's outputs are read are not its server's, or not as many as its outputs."""
    reader, endpoint = cloud.reader, getattr(cloud, "endpoint", None)
    served, outputs = getattr(endpoint, "served_labels", None), getattr(endpoint, "outputs", None) or {}
    if served is None and getattr(endpoint, "served_kind", None) is None:
        try:
            reader.check_embedding()
        except BadReply as e:
            yield str(e)
    if reader.labels is None or reader.kind not in {None, *CLASSES}:
        return
    there, here = [*map(_plain, served or ())], [*map(_plain, reader.labels)]
    if served is not None and there != here:
        moved = sorted(there) == sorted(here)
        if moved or len(there) != len(here) or getattr(endpoint, "labels", None) is None:  # else the application names them anew
            how = "in another order" if moved else f"{len(there)} of its own"
            yield f"{cloud.name} has the labels {how}, not those by which its outputs are read: give the endpoint labels="
        return
    name = getattr(endpoint, "output", None) or next(iter(outputs), "")
    shape = outputs.get(name, ())
    if len(outputs) == 1 and len(shape) == 2 and shape[-1] > 1 and shape[-1] != len(reader.labels):  # noqa: PLR2004 - rows, classes
        yield f"{cloud.name} gives {shape[-1]} numbers, and there are {len(reader.labels)} labels: give the endpoint labels="


def _plain(label: object) -> str:
    """Return a label as it is compared: without case and white space at its ends."""
    return str(label).strip().casefold()
