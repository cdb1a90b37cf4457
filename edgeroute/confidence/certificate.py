"""Certificate: a calibrated threshold, its guarantee, and the models and score it is bound to; a JSON file with a checksum.

`Certificate` is loaded, saved and renewed here, and says which setting it no longer fits.

Also here: the comparison of a certificate with the setup in use, and the threshold in force.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date as day
from datetime import datetime, timezone
from itertools import groupby
from math import ceil
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.core.policy_egress_and_options import INF, Target
from edgeroute.core.reason_text_and_trace_record import finite
from edgeroute.errors import PolicyError
from edgeroute.system.files_and_lock_waits import replace_file, sha256
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.untrusted_files import named_errors, read_json
from edgeroute.system.wall_clock import now

Kind = Literal["max_loss", "max_error", "max_defer"]
VERSION = 2  # version of the file's format
# Things that a certificate can be bound to -> name in messages.
BOUND_TO = {
    "edge": "edge model", "cloud": "cloud model", "score": "score", "codec": "payload codec",
    "earlier": "edge models before it", "served": "model on the server",
}  # fmt: skip
# Thing -> how to give it a version, for one that cannot be identified otherwise.
_VERSION = {
    "edge": 'CallableModel(f, version="1")', "cloud": 'Function(f, version="1")',
    "score": 'f.version = "1"', "codec": 'f.version = "1"', "earlier": 'CallableModel(f, version="1")',
}  # fmt: skip
# Reason why no certificate applies to an edge model that is a function or an estimator, without a version.
UNVERSIONED = f"the edge model cannot be identified: give version=, as in {_VERSION['edge']}"
# Reason why a certificate about several edge models together does not apply.
OTHERS = "the other edge models, their thresholds or their order are not those that it was made for"


class NotEnough(PolicyError):
    """There are too few examples for the requested guarantee.

    Attributes:
        needed: minimum number of examples.
        missing: number of examples that are missing.
    """

    def __init__(self, message: str, *, needed: int, missing: int) -> None:
        super().__init__(message)
        self.needed, self.missing = needed, missing


class Certificate(NamedTuple):
    """Threshold with its statistical guarantee. An edge answer is accepted if its score is at least the threshold.

    An answer without a score (NaN) has to be deferred, or the guarantee does not hold.

    Attributes:
        kind: controlled quantity: accuracy loss against the cloud, error rate among accepted answers, or deferral rate.
        value: guaranteed upper limit of that quantity, 0..1.
        sure: confidence level of the guarantee over calibrations, 0..1; None: it holds on average over them.
        method: test used: CP-harm, LR-BB, D-BB, CP-error, each perhaps dithered, betting, Beta or rank.
        agreement: True if calibrated without labels: correct then means "agrees with the cloud".
        n: number of examples.
        date: date of the calibration, YYYY-MM-DD (UTC).
        threshold: minimum score of an accepted answer; inf: every input is deferred. With per-class thresholds: for classes
            without one.
        thresholds: predicted class (its `str()`) -> its threshold; empty: one threshold for all.
        deferral_rate: deferral rate on the examples, 0..1.
        deferral_interval: confidence interval of the deferral rate on all inputs, at level `sure` (95 % if None). Not jointly
            with the guarantee. Uniform over thresholds, so that it holds though the threshold was chosen on the same examples.
        accuracy: name -> accuracy on the examples, 0..1: edge, cloud, cascade (edge and cloud together), accepted (accepted edge
            answers). Only those that are known. The threshold was chosen on the same examples, so the last two are optimistic;
            the guarantee is about new inputs.
        unscored: share of the examples without a score, which are deferred, 0..1.
        score: name of the confidence score that the threshold applies to.
        parameters: parameters of the score, JSON-serialisable; by counts of audits, the time since which these are counted.
        fingerprints: keys of `BOUND_TO` -> fingerprint; keys may be missing.
        disagreement: upper 95 % confidence bound of the share of accepted answers that differ from the cloud's, for a fixed
            threshold. This threshold was chosen on the same examples, so the bound is a limit for alarms and no guarantee. None:
            unknown.
        metric: name of the metric of an answer's correctness, 0..1; empty: answers are right or wrong.
        groups: number of groups that were drawn independently, each counted the same; None: the examples were drawn
            independently.
        highest: highest certified threshold, in each class; None: no limit. Beyond it the guarantee may not hold.
        area: normalised area under the score's deferral curve, 0 random and 1 an oracle, and its 95 % interval; None: unknown.
        examples: sketch of the examples, by which overlap with others is found (`edgeroute.confidence.sketch`).
        doubts: warnings about the cloud as the reference of the guarantee, labels or audits, one line each.
        reach: share of the examples that reach the edge model, 0..1; less for a later one of a ladder.
        ladder: fields of each edge model, as in the file, of a guarantee about several edge models together; empty: it is about
            one.
        seal: hash of the limit, its confidence and the thresholds that were tested, from `sealed`; empty: not known.
    """

    kind: Kind
    value: float
    sure: float | None
    method: str
    agreement: bool
    n: int
    date: str
    threshold: float
    thresholds: Mapping[str, float]
    deferral_rate: float
    deferral_interval: tuple[float, float]
    accuracy: Mapping[str, float]
    unscored: float
    score: str
    parameters: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    disagreement: float | None = None
    metric: str = ""
    groups: int | None = None
    highest: float | None = None
    area: tuple[float, float, float] | None = None
    examples: str = ""
    doubts: tuple[str, ...] = ()
    reach: float = 1.0
    ladder: tuple[Mapping[str, Any], ...] = ()
    seal: str = ""

    def sealed(self) -> Certificate:
        """Return the certificate with the seal of its fields, by which later changes of threshold or limit are noticed."""
        thresholds = sorted(self.thresholds.items())
        thresholds += [("", each.get("threshold", INF)) for each in self.ladder or [self._asdict()]]
        tested = self.kind, float(self.value), self.sure, [(label, float(t)) for label, t in thresholds]
        return self._replace(seal=checksum_of({"tested": tested}))

    def of_edge(self, i: int, count: int) -> Certificate:
        """Return the certificate with the threshold, fingerprints and other own fields of edge model number `i` of `count`.

        Itself if it is about one edge model.

        Raises:
            PolicyError: the guarantee is about another number of edge models together.
        """
        if not self.ladder:
            return self
        if len(self.ladder) != count:
            raise PolicyError(f"the certificate is about {len(self.ladder)} edge models together, not {count}: calibrate again")
        low, high = self.ladder[i]["deferral_interval"]
        own = {"threshold": float(self.ladder[i]["threshold"]), "deferral_interval": (low, high)}
        return self._replace(**{**self.ladder[i], **own})

    @property
    def accepted(self) -> float:
        """Share of the examples that the edge model answers alone, 0..1."""
        return self.reach * (1 - self.deferral_rate)

    @property
    def label(self) -> str:
        """Short form of the guarantee, as quoted in an answer's reason, e.g. `loss <= 1 %, 95 % sure`."""
        what = {"max_loss": "loss", "max_error": "error", "max_defer": "deferral"}[self.kind]
        most = _percent(self.value)
        if self.metric and self.kind != "max_defer":
            what, most = f"{self.metric} {what}", f"{self.value:g}"
        each = " in each class" if self.thresholds else " of all edge models together" if self.ladder else ""
        return f"{what} <= {most}{each}, " + ("on average" if self.sure is None else f"{_percent(self.sure)} sure")

    @property
    def guarantee(self) -> str:
        """Guarantee in one sentence, with its confidence level and the examples on which it rests."""
        text = self._main_clause
        if self.thresholds:
            text += ", in each class that the edge predicts, all at once"
        if self.threshold == INF and all(t == INF for t in self.thresholds.values()):
            text += ", since the edge gives no answer alone: no threshold keeps the guarantee with these examples"
        odds = "On average over calibrations" if self.sure is None else f"With {_percent(self.sure)} confidence"
        like = f"inputs drawn independently and like the {self.n:,} examples of {self.date}"
        if self.groups is not None:
            like = (
                f"inputs of groups drawn independently and like the {self.groups:,} groups of the {self.n:,} examples of "
                f"{self.date}, each counted the same"
            )
        deferred = ", and that the edge models before it defer" if self.fingerprints.get("earlier") else ""
        if self.ladder:
            deferred, text = "", f"with {len(self.ladder)} edge models together, {text}"
        return f"{odds}, on {like}{deferred}: {text}."

    @property
    def _main_clause(self) -> str:
        """Main clause of the guarantee, by kind, metric and agreement."""
        share = _percent(self.value)
        if self.kind == "max_defer":
            return f"at most {share} of the inputs are deferred to the cloud"
        if self.metric:
            if self.kind == "max_error":
                return f"the mean {self.metric} of the answers that the edge gives alone is at least {1 - self.value:g}"
            if self.agreement:
                return f"the mean {self.metric} of the answers against the cloud's own is at least {1 - self.value:g}"
            return f"the mean {self.metric} of edge and cloud together is at most {self.value:g} below that of the cloud alone"
        if self.kind == "max_error":
            return f"at most {share} of the answers that the edge gives alone are wrong"
        if self.agreement:
            return f"at most {share} of the inputs get another answer than the cloud's, so at most that much accuracy is lost"
        points = f"{self.value * 100:g} percentage point" + ("" if self.value == 0.01 else "s")  # noqa: PLR2004 - one
        return f"the accuracy of edge and cloud together is at most {points} below that of the cloud alone"

    def raised(self, at_least: float, label: str = "") -> float:
        """Return the threshold of a class, or of all, raised to `at_least`, but not above `highest`. inf: defer everything."""
        most = INF if at_least == INF or self.highest is None else self.highest
        return max(self.thresholds.get(label, self.threshold), min(at_least, most))

    def matches(
        self, *, edge: str | None = None, cloud: str | None = None, score: str | None = None, codec: str | None = None,
        earlier: str | None = None, served: str | None = None, max_age_days: float = INF
    ) -> str | None:  # fmt: skip
        """Compare the certificate with the setup in use. Return in words why it does not apply; None if it applies.

        Args:
            edge: fingerprint of the edge model in use; None, here and below: not compared.
            cloud: fingerprint of the cloud model.
            score: fingerprint of the score.
            codec: fingerprint of the payload codec.
            earlier: fingerprint of the edge models before it and their thresholds; empty: there are none.
            served: models that the cloud's servers report; a server that reported none, then or now, is not compared.
            max_age_days: maximum age of the calibration, days.
        """
        differ = [] if served is None else _served_differs(self.fingerprints.get("served", ""), served)
        if self.seal and self.seal != self.sealed().seal:
            differ.append("its threshold or limit is not the one that was tested")
        for name, used in {"edge": edge, "cloud": cloud, "score": score, "codec": codec, "earlier": earlier}.items():
            calibrated = self.fingerprints.get(name, "" if name == "earlier" else None)
            if used is None or used == calibrated:
                continue
            what = "other edge models" if name == "earlier" and self.ladder else BOUND_TO[name]
            if UNIDENTIFIED in used:
                differ.append(f"the {what} cannot be identified: give version=, as in {_VERSION[name]}")
            elif name == "earlier":
                differ.append(OTHERS if self.ladder else _inputs_differ(calibrated or "", used))
            elif calibrated is None:
                differ.append(f"it does not say for which {what} it was made")
            elif UNIDENTIFIED in calibrated:
                differ.append(f"the {what} had no version= then, as in {_VERSION[name]}: calibrate again")
            else:
                then, here = _differing_parts(calibrated, used)
                differ.append(f"it was made for {what} {then}, and this is {here}")
        age = (datetime.fromtimestamp(now(), timezone.utc).date() - day.fromisoformat(self.date)).days
        if age > max_age_days:
            differ.append(f"it is {age} days old, and may be {max_age_days:g}")
        return "; ".join(differ) or None

    @property
    def checksum(self) -> str:
        """SHA-256 of the contents, hex: identifies the certificate."""
        return checksum_of(self._data())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the certificate as JSON, replacing an existing file atomically.

        Raises:
            StoreError: the file cannot be written.
        """
        replace_file(Path(path), json.dumps(self.as_dict(), indent=2) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """Return the certificate in JSON types, as in its file."""
        data = self._data()
        return data | {"checksum": checksum_of(data)}

    def _data(self) -> dict[str, Any]:
        """Return the file's contents without the checksum; of a file without a seal they stay as they are."""
        thresholds = {label: finite(t) for label, t in self.thresholds.items()}
        fields = to_json_types(self._asdict() | {"threshold": finite(self.threshold), "thresholds": thresholds})
        if not self.seal:
            del fields["seal"]
        return {"version": VERSION, **fields, "guarantee": self.guarantee}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Certificate:
        """Read a certificate file. The checksum detects edits and damage; it is not a signature.

        Raises:
            PolicyError: the file is missing, unreadable, of another version, or was modified.
        """
        with named_errors(path, PolicyError(f"there is no certificate at {path}"), PolicyError, "is not a certificate: %s"):
            data = read_json(path)
        if not isinstance(data, dict) or "checksum" not in data:
            raise PolicyError(f"{path} is not a certificate: it has no checksum")
        if data.pop("checksum") != checksum_of(data):
            raise PolicyError(f"{path} was changed after it was made, so its guarantee is void: calibrate again")
        if data.get("version") != VERSION:
            raise PolicyError(f"{path} is of version {data.get('version')}, and this edgeroute knows version {VERSION}")
        try:
            low, high = data["deferral_interval"]
            data |= {
                "threshold": float(data["threshold"]),
                "thresholds": {label: float(t) for label, t in data["thresholds"].items()},
                "deferral_interval": (low, high),
                "area": None if data.get("area") is None else tuple(data["area"]),
            }
            data["doubts"] = tuple(map(str, data.get("doubts", ())))
            data["ladder"] = tuple(data.get("ladder", ()))
            made = cls(**{name: data[name] for name in cls._fields if name in data or name not in cls._field_defaults})
            for i in range(len(made.ladder)):
                made.of_edge(i, len(made.ladder))
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as e:
            raise PolicyError(f"{path} is not a certificate: {type(e).__name__}: {e}") from e
        return made


def checksum_of(data: Mapping[str, Any]) -> str:
    """Return SHA-256, hex, of a certificate file's contents without the checksum, as JSON."""
    return sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _inputs_differ(calibrated: str, used: str) -> str:
    """Return why the inputs that reach an edge model differ from those of the certificate."""
    if not calibrated:
        return "it was made for all inputs, and only those that the edge models before it defer reach this one"
    if not used:
        return "it was made for what the edge models before it defer, and there are none"
    return "the edge models before it, or their thresholds, are not those that it was made for"


def _served_differs(calibrated: str, used: str) -> list[str]:
    """Compare the models that servers report with those at the calibration; return the difference in words, or nothing.

    An unknown version, or another number of servers, counts as no difference.
    """
    then, here = calibrated.split(" "), used.split(" ")
    if len(then) != len(here):  # other clouds, of which `cloud` tells; or an older certificate, which does not say
        return []
    differ = [
        pair
        for pair in zip(then, here, strict=True)
        if not any(word.endswith(":?") for word in pair) and not _names(pair[1]) <= _names(pair[0])
    ]
    if not differ:
        return []
    versions = [(a.partition(":")[2], ",".join(sorted(_names(b) - _names(a)))) for a, b in differ if a.startswith("version:")]
    difference = " and ".join(f"version {b}, and not {a}" for a, b in versions) or "another name, platform, inputs or outputs"
    return [f"the server has another model than it was made for: {difference}"]


def _names(word: str) -> set[str]:
    """Return the models that a word such as `version:a,b` names: a hosted one's replies may come from several in turn."""
    return {*word.partition(":")[2].split(",")}


def _percent(share: float) -> str:
    """Return a share as text in per cent."""
    return f"{share * 100:.12g} %"  # 99.99999 % are not 100 %


def _differing_parts(calibrated: str, used: str) -> tuple[str, str]:
    """Return the parts in which two fingerprints differ: without the words that both begin or end with, each cut to its end.

    All words if one has only words added, and the whole fingerprints if these parts look the same.
    """
    words = [text.split(" ") for text in (calibrated, used)]
    for end in (0, -1):
        while min(map(len, words)) > 1 and words[0][end] == words[1][end]:
            for part in words:
                part.pop(end)
    if any(words[0][end] == words[1][end] for end in (0, -1)):
        words = [text.split(" ") for text in (calibrated, used)]
    shorter = ([word if len(word) <= 16 else f"...{word[-12:]}" for word in part] for part in words)  # noqa: PLR2004 - to be read
    then, here = map(" ".join, shorter)
    return (then, here) if then != here else (calibrated, used)


# A certificate with the models, score and codec in use, and the threshold and label in force.


class BoundCertificate(NamedTuple):
    """Certificate with the fingerprints of the setup in use."""

    certificate: Certificate
    used: Mapping[str, str]  # fingerprints of the edge model, cloud, score and codec in use, by the keys of `BOUND_TO`
    max_age_days: float  # maximum age of the calibration, days
    served: Callable[[], str] | None = None  # returns the models that the cloud's servers report now; None: as in `used`
    # Returns why models in memory are not those of `used`: a file was replaced before it was loaded. Empty: they are.
    moved: Callable[[], str] | None = None

    def broken(self) -> str | None:
        """Return in words why the certificate is not valid for this setup or at this time; None if it is valid.

        Calls `served` and `moved`, and compares the age with the present date.
        """
        used = self.used if self.served is None else {**self.used, "served": self.served()}
        differs = self.certificate.matches(**used, max_age_days=self.max_age_days)
        return differs or (self.moved and self.moved()) or None


def digest(used: Mapping[str, str]) -> str:
    """Return one hash of the fingerprints, 32 hex digits of SHA-256; without `served`, which is not known at every start."""
    fingerprints = {name: fingerprint for name, fingerprint in used.items() if name != "served"}
    return sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()[:32]


def effective_target(target: Target, bound: BoundCertificate | None, alarm: str = "", at_least: float = -INF) -> Target:
    """Return the target with the threshold and label currently in force.

    A broken certificate keeps its threshold; only the label turns to `uncalibrated`.

    Args:
        target: target with any threshold and label.
        bound: certificate that the threshold comes from; None: a plain number, left unchanged.
        alarm: why a drift alarm invalidates the certificate; empty: no alarm.
        at_least: lower bound of all thresholds, which raises none above the highest that is certified. inf: defer everything.
    """
    if bound is None:
        return target
    certificate, broken = bound.certificate, alarm or bound.broken()
    return target._replace(
        threshold=certificate.raised(at_least),
        thresholds={label: certificate.raised(at_least, label) for label in certificate.thresholds},
        label=certificate.label if broken is None else f"uncalibrated: {broken}",
        moved=bound.moved,
    )


def ladder_targets(targets: Sequence[Target], bounds: Sequence[BoundCertificate | None]) -> list[Target]:
    """Return the targets with labels about all edge models together, where several may answer: a copy.

    Each certificate bounds the loss on inputs that reach its edge model. The whole loses at most the sum of these bounds, each
    times the share of inputs that reaches the model: the upper bounds of the deferral rates before it, multiplied. All of this
    holds jointly with a risk of at most the sum of the risks. If a model has no such certificate that holds, the labels of the
    others say that they are about one model alone. Labels of one certificate about all together stay, or if it is broken for one
    edge model, all say so.

    Args:
        targets: targets in the order in which they are tried, as `effective_target` returns them.
        bounds: certificate of each.
    """
    edges = [(target, bound) for target, bound in zip(targets, bounds, strict=True) if target.side == "edge"]
    # of a group one takes the other's place
    steps = [[pair for _, pair in step] for _, step in groupby(enumerate(edges), lambda edge: edge[1][0].group or edge[0])]
    together = [target for target, bound in edges if bound is not None and bound.certificate.ladder]
    if together:  # one guarantee for all: where it is broken at one, it holds of none
        broken = next((target.label for target in together if target.label.startswith("uncalibrated")), "")
        return [target._replace(label=broken) if broken and target in together else target for target in targets]
    by_loss = [target for target, bound in edges if _is_loss(target, bound)]
    if len(steps) < 2 or not by_loss:  # noqa: PLR2004 - a ladder
        return list(targets)
    loss, reach, risk = 0.0, 1.0, 0.0
    metrics = set[str]()
    for step in steps if len(by_loss) == len(edges) else ():
        certificates = [bound.certificate for _, bound in step if bound is not None]
        metrics |= {certificate.metric for certificate in certificates}
        loss += reach * max(certificate.value for certificate in certificates)
        reach *= max(certificate.deferral_interval[1] for certificate in certificates)
        times = 1 if step is steps[-1] else 2  # its loss, and its deferral rate
        risk += times * sum(1 - (certificate.sure or 0) for certificate in certificates)
    if len(metrics) == 1 and risk < 1:
        (metric,) = metrics
        bound = ceil(loss * 1e4 - 1e-6) / 1e4
        most = f"{metric} loss <= {bound:g}" if metric else f"loss <= {_percent(bound)}"
        label = f"{most} of all edge models together, {_percent(1 - risk)} sure"
        return [target._replace(label=label) if target in by_loss else target for target in targets]
    return [t._replace(label=f"{t.label}, of this edge model alone") if t in by_loss else t for t in targets]


def _is_loss(target: Target, bound: BoundCertificate | None) -> bool:
    """Return True if a target's label is about a loss, and holds."""
    return bound is not None and bound.certificate.kind == "max_loss" and target.label == bound.certificate.label
