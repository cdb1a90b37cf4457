"""Savings estimate from a log of two models that answered the same requests (`saving`): certified threshold, costs, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isnan, nan, sqrt
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import Floats
from edgeroute.confidence.certificate import Certificate, NotEnough
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.reason_text_and_trace_record import finite
from edgeroute.errors import BadInput
from edgeroute.tools.measure.deferral_curve import area_parts, area_share
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate, least_deferral
from edgeroute.tools.replay.logs.answer_pairs_and_samples import FORMATS, Left, Pairs, Read, read_pairs

DRAWS: Final = 200  # draws of the bootstrap for the interval of the savings
ASSUMPTIONS: Final = (
    "taken for granted:",
    "  requests to come are like these: if one of the models was asked about some kinds only, the rest may differ",
    "  the edge model answers on the device as in the log: another quantisation is another model",
)
CHANCE: Final = 1.645  # standard errors above a random score's area: a one-sided test at 5 %


class Money(NamedTuple):
    """Costs of all paired requests, dollars."""

    cloud: float  # cost if the cloud answers everything
    cascade: float  # cost if the edge answers everything, and the cloud the deferred requests
    saved: float  # share of `cloud` that `cascade` saves; negative: it costs more
    interval: tuple[float, float]  # interval of `saved`, on requests like these; uniform over thresholds, by the bootstrap


class Saving(NamedTuple):
    """Savings of a cascade of two recorded models, with a guarantee on its loss."""

    edge_model: str
    cloud_model: str
    n: int  # requests that both answered
    judged: str  # `scores` or `agreement`
    edge_correct: float  # mean correctness over the requests, 0..1; of agreement the share of requests on which they agree
    cloud_correct: float | None
    max_loss: float
    sure: float
    threshold: float  # certified threshold; inf: none, so that everything is deferred and nothing saved
    guarantee: str
    method: str
    deferral: float  # share of the requests that the cloud answers, 0..1
    deferral_interval: tuple[float, float]  # interval on all requests like these, at level `sure`
    loss: float  # loss on these requests; the threshold was chosen on them
    plug_in: float  # deferral of the lowest threshold whose loss on these requests is within the limit, without a certificate
    least: float  # deferral of a perfect score with that loss on these requests
    area: float | None  # area under the deferral curve: 0 chance, 1 a perfect score; None: there is nothing to rank
    by_chance: bool  # True if the score may rank no better than chance
    unscored: float  # share of the requests without a confidence, which are deferred
    money: Money | None  # costs; None: not all are known
    left_out: tuple[Left, ...]
    notes: tuple[str, ...]

    @property
    def certified(self) -> bool:
        """True if a threshold could be certified."""
        return self.threshold < inf

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data, and `certified`; an infinite threshold as text."""
        data = self._asdict() | {"threshold": finite(self.threshold), "certified": self.certified}
        data["money"] = None if self.money is None else self.money._asdict()
        data["left_out"] = [reason._asdict() for reason in self.left_out]
        return data

    def __str__(self) -> str:
        return "\n".join([*saving_lines(self), *ASSUMPTIONS])


def saving(
    paths: Path | str | Sequence[Path | str],
    kind: str,
    *,
    max_loss: float = 0.01,
    sure: float = 0.95,
    how: Read = Read(),  # noqa: B008 - immutable
) -> Saving:
    """Read requests that two models answered, and certify which can be left to the first. Runs no model; sends nothing.

    Args:
        paths: one or more files of the log; `-` is stdin.
        kind: one of `FORMATS`: `openai-log`, `litellm-log`, `langfuse-log` or `csv`.
        max_loss: largest loss of accuracy, or mean score, against the cloud, 0..1.
        sure: confidence level of the guarantee.
        how: the models, their prices, and how their answers are paired and compared.

    Raises:
        BadInput: the log cannot be read, or has no usable pair, or there is no such kind of log.
        NotEnough: there are too few pairs for the guarantee.
        PolicyError: an argument is invalid, or all answers have the same confidence.
    """
    if kind not in FORMATS:
        raise BadInput(f"no log of the kind {clean(kind)}: expected one of {', '.join(FORMATS)}")
    several = [paths] if isinstance(paths, Path | str) else paths
    return certified_saving(read_pairs([Path(path) for path in several], kind, how), max_loss, sure)[0]


def certified_saving(
    pairs: Pairs, max_loss: float, sure: float, name: str = "recorded confidence", fingerprints: Mapping[str, str] | None = None
) -> tuple[Saving, Certificate]:
    """Certify the pairs, compute all figures, and return them with the certificate; warnings become the saving's notes.

    That no threshold can be certified is no error: the saving's threshold is then infinite.

    Args:
        pairs: answers of both models.
        max_loss: see `saving`.
        sure: see `saving`.
        name: name of the score.
        fingerprints: see `calibrate`.

    Raises:
        NotEnough: there are too few pairs; the message has the skipped records.
        PolicyError: an argument is invalid, or all answers have the same confidence.
    """
    score, n = pairs.confidence, len(pairs.edge)
    notes: list[str] = []
    try:
        certificate = calibrate(
            score, pairs.edge, pairs.cloud, max_loss=max_loss, sure=sure, name=name, fingerprints=fingerprints, notes=notes
        )
    except NotEnough as e:
        left_out = "".join(f"; {reason.requests:,} left out: {reason.why}" for reason in pairs.left_out)
        text = f"{e} (requests that both models answered{left_out})"
        raise NotEnough(text, needed=e.needed, missing=e.missing) from e
    cloud = np.ones(n) if pairs.cloud is None else pairs.cloud
    gain = cloud - pairs.edge
    accepted = score >= certificate.threshold
    area, by_chance = _area(score, gain)
    result = Saving(
        edge_model=pairs.edge_model,
        cloud_model=pairs.cloud_model,
        n=n,
        judged="agreement" if pairs.cloud is None else "scores",
        edge_correct=float(pairs.edge.mean()),
        cloud_correct=None if pairs.cloud is None else float(pairs.cloud.mean()),
        max_loss=max_loss,
        sure=sure,
        threshold=certificate.threshold,
        guarantee=certificate.guarantee,
        method=certificate.method,
        deferral=float(1 - accepted.mean()),
        deferral_interval=certificate.deferral_interval if accepted.any() else (1.0, 1.0),
        loss=float(gain[accepted].sum()) / n,
        plug_in=_plug_in(score, gain, max_loss),
        least=least_deferral("max_loss", max_loss, pairs.edge, cloud),
        area=None if isnan(area) else area,
        by_chance=by_chance,
        unscored=float(np.isnan(score).mean()),
        money=_money(score, accepted, pairs.usd, sure),
        left_out=pairs.left_out,
        notes=tuple(notes),
    )
    return result, certificate


def _blocks(score: Floats) -> tuple[Any, Any]:
    """Return indices of the scores from the highest, without NaN, and the last place in them of each block of equal scores."""
    order = np.argsort(-score, kind="stable")[: np.count_nonzero(~np.isnan(score))]
    s = score[order]
    return order, np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])


def _plug_in(score: Floats, gain: Floats, max_loss: float) -> float:
    """Return the deferral of the lowest threshold whose loss on these requests is within the limit, uncertified; 1 if none is."""
    order, ends = _blocks(score)
    good = np.flatnonzero(np.cumsum(gain[order])[ends] <= max_loss * len(gain) + 1e-9)
    return 1 - (int(ends[good[-1]]) + 1) / len(gain) if good.size else 1.0


def _area(score: Floats, gain: Floats) -> tuple[float, bool]:
    """Return the area under the deferral curve as a share of a perfect score's, and True if a random order may give as much.

    The area is NaN, with True, if no request gains. The chance is by the mean and the variance over all orders, one-sided at 5 %.
    """
    s = np.where(np.isnan(score), -inf, score)
    parts, n = area_parts(s, gain), len(gain)
    if not gain.any():
        return nan, True
    _, level, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (0.5 - (np.cumsum(counts) - counts / 2)[level] / n).astype(np.float64)
    error = sqrt(float(np.square(gain - gain.mean()).sum() * np.square(ranks - ranks.mean()).sum()) / max(1, n - 1))
    return area_share(parts, gain), float(parts.sum()) <= CHANCE * error


def _money(score: Floats, accepted: Any, usd: tuple[Floats, Floats], sure: float) -> Money | None:
    """Return the costs, with an interval by the bootstrap of a fixed seed; None if any cost is missing, or the cloud's sum is 0.

    With nothing accepted nothing is saved, in an interval of (0, 0).
    """
    edge, cloud = usd
    total = float(cloud.sum())
    if isnan(total) or np.isnan(edge).any() or total <= 0:
        return None
    if not accepted.any():
        return Money(total, total, 0.0, (0.0, 0.0))
    spent = float(edge.sum() + cloud[~accepted].sum())
    order, ends = _blocks(score)

    def saved(times: Any) -> Floats:
        """Return the share saved at each threshold, if each request had come so many times."""
        savings = np.cumsum((times * cloud)[order])[ends] - (times * edge).sum()
        return np.asarray(savings / max((times * cloud).sum(), 1e-300), np.float64)

    rng, n = np.random.default_rng(0), len(cloud)
    here = saved(np.ones(n))
    off = [float(np.abs(saved(np.bincount(rng.integers(0, n, n), minlength=n)) - here).max()) for _ in range(DRAWS)]
    share, spread = 1 - spent / total, float(np.quantile(off, sure))
    return Money(total, spent, share, (share - spread, min(1.0, share + spread)))


def percent(value: float) -> str:
    """Format a share as a percentage with one decimal, as `12.3 %`."""
    return f"{value * 100:.1f} %"


def between(interval: tuple[float, float]) -> str:
    """Format an interval of shares."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def saving_lines(result: Saving) -> list[str]:
    """Return the result as lines of text: models, agreement, certified savings or none, money, oracle, ranking, and caveats."""
    names = f"{clean(result.edge_model)} (edge) and {clean(result.cloud_model)} (cloud)"
    text = [f"{result.n:,} requests that both answered: {names}"]
    if result.cloud_correct is None:
        text.append(f"they agree on {percent(result.edge_correct)}: correct means to give the cloud's answer")
    else:
        text.append(f"mean score: edge {result.edge_correct:.4f}, cloud {result.cloud_correct:.4f}")
    loss = f"{result.max_loss * 100:g} point" + ("" if result.max_loss == 0.01 else "s")  # noqa: PLR2004 - one
    if result.certified:
        where = f"{percent(result.deferral)} go to the cloud ({between(result.deferral_interval)})"
        text += [
            f"certified: the edge answers alone from a confidence of {result.threshold:.6g} up, and {where}",
            f"  so {percent(1 - result.deferral)} of its calls are saved",
            f"  {result.guarantee}",
        ]
    else:
        text += [
            f"NOT CERTIFIED: with these requests no threshold keeps the loss within {loss}, {percent(result.sure)} sure",
            "  everything would go to the cloud, and nothing be saved",
            "  what may help: more requests, a larger --max-loss, a better edge, or another confidence (as a csv)",
        ]
    if result.money is not None:
        cloud, cascade, share, interval = result.money
        how = f"{percent(share)} saved ({between(interval)})" if result.certified else "nothing saved"
        how += ", since the edge costs more than it spares" if share < 0 else ""
        text.append(f"money: ${cloud:,.4g} by the cloud alone, ${cascade:,.4g} with the edge: {how}")
    else:
        text.append("money: not known, since not all requests have a cost (--edge-price, --cloud-price)")
    text.append(
        f"oracle: a perfect confidence would defer {percent(result.least)}; the threshold that fits these requests best, "
        f"{percent(result.plug_in)}, but on new ones such a threshold often loses more than {loss}"
    )
    if result.area is not None:
        text.append(f"ranking: {result.area:.2f} of a perfect one's area (0 is chance)")
    if result.by_chance and result.area is not None:
        text.append("  IT MAY BE NO BETTER THAN CHANCE in telling where the edge is as good as the cloud: try another confidence")
    if result.unscored:
        text.append(f"without a confidence, and so deferred: {percent(result.unscored)}")
    return [*text, *map(str, result.left_out), *(f"note: {note}" for note in result.notes)]
