"""What a calibration promises, of which models, and from how many examples; as a file, one that was edited is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date as day
from datetime import datetime, timezone
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeroute.core.explain import finite
from edgeroute.errors import PolicyError
from edgeroute.system import now

Kind = Literal["max_loss", "max_error", "max_defer"]
INF = float("inf")
VERSION = 2
BOUND_TO = {"edge": "edge model", "cloud": "cloud model", "score": "score", "codec": "payload codec"}
"""What a certificate can be bound to -> in words."""


class NotEnough(PolicyError):
    """There are too few examples for the promise.

    Attributes:
        needed: how many it takes at least.
        missing: how many more than there are.
    """

    def __init__(self, message: str, *, needed: int, missing: int) -> None:
        super().__init__(message)
        self.needed, self.missing = needed, missing


class Certificate(NamedTuple):
    """A threshold, and the promise that comes with it. An answer is accepted on the edge where its score is at least that.

    An answer without a score (NaN) has to be deferred, or the promise does not hold.
    """

    kind: Kind
    """The target: loss against the cloud, error among the accepted, share of the deferred."""
    value: float
    """The most that is promised, 0..1."""
    sure: float | None
    """How likely the promise holds, over calibrations; None: it holds on average over them."""
    method: str
    """CP-harm, LR-BB, D-BB, CP-error, Beta or rank."""
    agreement: bool
    """It was made without labels: right meant "as the cloud says"."""
    n: int
    date: str
    """On which it was made, YYYY-MM-DD (UTC)."""
    threshold: float
    """inf: every input is deferred. With a threshold per class: that of classes that have none of their own."""
    thresholds: Mapping[str, float]
    """Class that the edge predicts, as `str()` writes it -> its threshold; empty: there is one for all."""
    deferral_rate: float
    """The share of the examples that is deferred."""
    deferral_interval: tuple[float, float]
    """Where the rate of all inputs lies, with probability `sure` (95 % where that is None), whatever the labels chose."""
    accuracy: Mapping[str, float]
    """On the examples, of: edge, cloud, cascade (both together), accepted (the edge's own answers); those that are known.

    The threshold was chosen on the same examples, so the last two flatter; the promise is about what was not seen.
    """
    unscored: float
    """The share of the examples that had no score, and is deferred."""
    score: str
    parameters: Mapping[str, Any]
    """Of the score: what JSON can hold."""
    fingerprints: Mapping[str, str]
    """Of what is named in `BOUND_TO`; not all need be there."""
    disagreement: float | None = None
    """The share of accepted answers that differ from the cloud's is at most this, with 95 % confidence; None: not known."""

    @property
    def label(self) -> str:
        """The promise as the reason quotes it."""
        what = {"max_loss": "loss", "max_error": "error", "max_defer": "deferral"}[self.kind]
        each = " in each class" if self.thresholds else ""
        return f"{what} <= {_percent(self.value)}{each}, " + (
            "on average" if self.sure is None else f"{_percent(self.sure)} sure"
        )

    @property
    def guarantee(self) -> str:
        """The promise in a sentence."""
        share = _percent(self.value)
        if self.kind == "max_defer":
            text = f"at most {share} of the inputs are deferred to the cloud"
        elif self.kind == "max_error":
            text = f"at most {share} of the answers that the edge gives alone are wrong"
        elif self.agreement:
            text = (
                f"at most {share} of the inputs get another answer than the cloud's, so at most that much of its accuracy is lost"
            )
        else:
            points = f"{self.value * 100:g} percentage point" + ("" if self.value == 0.01 else "s")  # noqa: PLR2004 - one
            text = f"the accuracy of edge and cloud together is at most {points} below that of the cloud alone"
        if self.thresholds:
            text += ", in each class that the edge predicts, all at once"
        if self.threshold == INF and all(t == INF for t in self.thresholds.values()):
            text += ", since the edge gives no answer alone: no threshold keeps the promise with these examples"
        odds = "On average over calibrations" if self.sure is None else f"With {_percent(self.sure)} confidence"
        return f"{odds}, on inputs drawn like the {self.n:,} examples of {self.date}: {text}."

    def threshold_for(self, label: object) -> float:
        """The threshold for an answer of the edge that says `label`."""
        return self.thresholds.get(str(label), self.threshold)

    def matches(
        self,
        *,
        edge: str | None = None,
        cloud: str | None = None,
        score: str | None = None,
        codec: str | None = None,
        max_age_days: float = INF,
    ) -> str | None:
        """In words, why this certificate says nothing about what is in use; None: it does not differ.

        Args:
            edge: the fingerprint of the edge model in use; None, here and below: not compared.
            cloud: that of the cloud model.
            score: that of the score.
            codec: that of the payload codec.
            max_age_days: how long ago it may have been made.
        """
        differ = []
        for name, used in {"edge": edge, "cloud": cloud, "score": score, "codec": codec}.items():
            made = self.fingerprints.get(name)
            if used is None or used == made:
                continue
            what = BOUND_TO[name]
            if made is None:
                differ.append(f"it does not say for which {what} it was made")
            else:
                differ.append(f"it was made for {what} {_end(made)}, and this is {_end(used)}")
        age = (datetime.fromtimestamp(now(), timezone.utc).date() - day.fromisoformat(self.date)).days
        if age > max_age_days:
            differ.append(f"it is {age} days old, and may be {max_age_days:g}")
        return "; ".join(differ) or None

    @property
    def checksum(self) -> str:
        """Names it: of all that it says."""
        return _checksum(self._data())

    def save(self, path: str | PathLike[str]) -> None:
        """Writes it as JSON. A file that is there is replaced at once or not at all.

        Raises:
            OSError: it cannot be written.
        """
        data, path = self._data(), Path(path)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(data | {"checksum": _checksum(data)}, indent=2) + "\n", encoding="utf-8")
        new.replace(path)

    def _data(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            **self._asdict(),
            "threshold": finite(self.threshold),
            "thresholds": {label: finite(t) for label, t in self.thresholds.items()},
            "guarantee": self.guarantee,
        }

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Certificate:
        """The certificate in that file. Its checksum finds edits and damage; it is no signature.

        Raises:
            PolicyError: there is none, or it is not as it was written.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise PolicyError(f"there is no certificate at {path}") from e
        except OSError as e:
            raise PolicyError(f"{path} cannot be read: {e.strerror}") from e
        except ValueError as e:
            raise PolicyError(f"{path} is not a certificate: {e}") from e
        if not isinstance(data, dict) or "checksum" not in data:
            raise PolicyError(f"{path} is not a certificate: it has no checksum")
        if data.pop("checksum") != _checksum(data):
            raise PolicyError(f"{path} was changed after it was made, so it promises nothing any more: calibrate again")
        if data.get("version") != VERSION:
            raise PolicyError(f"{path} is of version {data.get('version')}, and this edgeroute knows version {VERSION}")
        low, high = data["deferral_interval"]
        data |= {
            "threshold": float(data["threshold"]),
            "thresholds": {label: float(t) for label, t in data["thresholds"].items()},
            "deferral_interval": (low, high),
        }
        return cls(**{name: data[name] for name in cls._fields})


def _checksum(data: Mapping[str, Any]) -> str:
    return sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _percent(share: float) -> str:
    return f"{share * 100:g} %"


def _end(fingerprint: str) -> str:
    """The part that differs, of a text that may begin with a name."""
    return fingerprint if len(fingerprint) <= 16 else f"...{fingerprint[-12:]}"  # noqa: PLR2004 - short enough to read
