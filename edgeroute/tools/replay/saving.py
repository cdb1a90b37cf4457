"""What would I save? A certified threshold for two models, from a foreign log of requests that both answered."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf, isnan, nan, sqrt
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edgeroute.confidence.certificate import NotEnough
from edgeroute.confidence.exact import Floats
from edgeroute.core.explain import finite
from edgeroute.core.words import clean
from edgeroute.errors import BadInput
from edgeroute.tools.measure.calibration import calibrate
from edgeroute.tools.measure.curve import area_parts, area_share
from edgeroute.tools.replay.logs.lines import Left
from edgeroute.tools.replay.logs.pairs import FORMATS, Pairs, Read, read_pairs

DRAWS: Final = 200
"""Of the bootstrap for the interval of what is saved."""
CHANCE: Final = 1.645
"""Standard errors above a random score's area: a one-sided test at 5 %."""


class Money(NamedTuple):
    """Costs of all paired requests, dollars."""

    cloud: float
    """The cloud answers everything."""
    cascade: float
    """The edge answers everything, and the cloud what is deferred."""
    saved: float
    """Share of the first that the second saves; negative: it costs more."""
    interval: tuple[float, float]
    """Of `saved`, on requests like these; uniform over thresholds, by the bootstrap."""


class Saving(NamedTuple):
    """What a cascade of two recorded models would save, with a guarantee on what it loses."""

    edge_model: str
    cloud_model: str
    n: int
    """Requests that both answered."""
    judged: str
    """`scores` or `agreement`."""
    edge_correct: float
    """Mean over the requests, 0..1; of agreement the share of requests on which they agree."""
    cloud_correct: float | None
    max_loss: float
    sure: float
    threshold: float
    """inf: none can be certified, so that everything is deferred and nothing saved."""
    guarantee: str
    method: str
    deferral: float
    """Share of the requests that the cloud answers, 0..1."""
    deferral_interval: tuple[float, float]
    """On all requests like these, at level `sure`."""
    loss: float
    """On these requests; the threshold was chosen on them."""
    plug_in: float
    """Deferral of the lowest threshold whose loss on these requests is within the limit, without a certificate."""
    least: float
    """Deferral of a perfect score with that loss on these requests."""
    area: float | None
    """Under the deferral curve: 0 chance, 1 a perfect score; None: there is nothing to rank."""
    by_chance: bool
    """The score may rank no better than chance."""
    unscored: float
    """Share of the requests without a confidence, which are deferred."""
    money: Money | None
    """None: not all costs are known."""
    left_out: tuple[Left, ...]
    notes: tuple[str, ...]

    @property
    def certified(self) -> bool:
        """Whether a threshold could be certified."""
        return self.threshold < inf

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`."""
        told = self._asdict() | {"threshold": finite(self.threshold), "certified": self.certified}
        told["money"] = None if self.money is None else self.money._asdict()
        told["left_out"] = [one._asdict() for one in self.left_out]
        return told

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def saving(
    paths: Path | str | Sequence[Path | str],
    kind: str,
    *,
    max_loss: float = 0.01,
    sure: float = 0.95,
    how: Read = Read(),  # noqa: B008 - immutable
) -> Saving:
    """Reads requests that two models answered, and certifies what can be left to the first. Runs no model; sends nothing.

    Args:
        paths: one or more files of the log; `-` is stdin.
        kind: `openai-log`, `litellm-log` or `csv`.
        max_loss: accuracy, or mean score, that may be lost against the cloud, 0..1.
        sure: confidence level of the guarantee.
        how: which models are meant, what they cost, and how their answers are paired and compared.

    Raises:
        BadInput: the log cannot be read, or has no usable pair.
        NotEnough: there are too few pairs for the guarantee.
        PolicyError: an argument is invalid, or all answers have one confidence.
    """
    if kind not in FORMATS:
        raise BadInput(f"no log of the kind {clean(kind)}: expected one of {', '.join(FORMATS)}")
    several = [paths] if isinstance(paths, Path | str) else paths
    return _saving(read_pairs([Path(path) for path in several], kind, how), max_loss, sure)


def _saving(pairs: Pairs, max_loss: float, sure: float) -> Saving:
    score, n = pairs.confidence, len(pairs.edge)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            made = calibrate(score, pairs.edge, pairs.cloud, max_loss=max_loss, sure=sure, name="recorded confidence")
        except NotEnough as e:
            text = f"{e} (requests that both models answered{_left_in_short(pairs.left_out)})"
            raise NotEnough(text, needed=e.needed, missing=e.missing) from e
    cloud = np.ones(n) if pairs.cloud is None else pairs.cloud
    gain = cloud - pairs.edge
    kept = score >= made.threshold
    area, by_chance = _area(score, gain)
    return Saving(
        edge_model=pairs.edge_model,
        cloud_model=pairs.cloud_model,
        n=n,
        judged="agreement" if pairs.cloud is None else "scores",
        edge_correct=float(pairs.edge.mean()),
        cloud_correct=None if pairs.cloud is None else float(pairs.cloud.mean()),
        max_loss=max_loss,
        sure=sure,
        threshold=made.threshold,
        guarantee=made.guarantee,
        method=made.method,
        deferral=float(1 - kept.mean()),
        deferral_interval=made.deferral_interval if kept.any() else (1.0, 1.0),
        loss=float(gain[kept].sum()) / n,
        plug_in=_plug_in(score, gain, max_loss),
        least=_least(gain, max_loss),
        area=None if isnan(area) else area,
        by_chance=by_chance,
        unscored=float(np.isnan(score).mean()),
        money=_money(score, kept, pairs.usd, sure),
        left_out=pairs.left_out,
        notes=tuple(str(one.message) for one in told),
    )


def _blocks(score: Floats) -> tuple[Any, Any]:
    """Indices from the most confident, without NaN, and the last place of each block of equal scores."""
    order = np.argsort(-score, kind="stable")[: np.count_nonzero(~np.isnan(score))]
    s = score[order]
    return order, np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])


def _plug_in(score: Floats, gain: Floats, max_loss: float) -> float:
    order, ends = _blocks(score)
    good = np.flatnonzero(np.cumsum(gain[order])[ends] <= max_loss * len(gain) + 1e-9)
    return 1 - (int(ends[good[-1]]) + 1) / len(gain) if good.size else 1.0


def _least(gain: Floats, max_loss: float) -> float:
    """Deferred by who knows each gain: the largest first, until what is lost is within the limit."""
    largest = np.sort(gain)[::-1]
    lost = largest.sum() - np.append(0, largest.cumsum())
    return int((lost <= max_loss * len(gain) + 1e-9).argmax()) / len(gain)


def _area(score: Floats, gain: Floats) -> tuple[float, bool]:
    """Normalised area, and whether a random order may give as much: by the mean and variance over all orders."""
    s = np.where(np.isnan(score), -inf, score)
    parts, n = area_parts(s, gain), len(gain)
    if not gain.any():
        return nan, True
    _, at, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (0.5 - (np.cumsum(counts) - counts / 2)[at] / n).astype(np.float64)
    error = sqrt(float(np.square(gain - gain.mean()).sum() * np.square(ranks - ranks.mean()).sum()) / max(1, n - 1))
    return area_share(parts, gain), float(parts.sum()) <= CHANCE * error


def _money(score: Floats, kept: Any, usd: tuple[Floats, Floats], sure: float) -> Money | None:
    edge, cloud = usd
    whole = float(cloud.sum())
    if isnan(whole) or np.isnan(edge).any() or whole <= 0:
        return None
    if not kept.any():
        return Money(whole, whole, 0.0, (0.0, 0.0))
    spent = float(edge.sum() + cloud[~kept].sum())
    order, ends = _blocks(score)

    def saved(times: Any) -> Floats:
        """Share saved at each threshold, if each request had come so many times."""
        mine = np.cumsum((times * cloud)[order])[ends] - (times * edge).sum()
        return np.asarray(mine / max((times * cloud).sum(), 1e-300), np.float64)

    rng, n = np.random.default_rng(0), len(cloud)
    here = saved(np.ones(n))
    off = [float(np.abs(saved(np.bincount(rng.integers(0, n, n), minlength=n)) - here).max()) for _ in range(DRAWS)]
    share, spread = 1 - spent / whole, float(np.quantile(off, sure))
    return Money(whole, spent, share, (share - spread, min(1.0, share + spread)))


def _left_in_short(left: Sequence[Left]) -> str:
    return "".join(f"; {one.requests:,} left out: {one.why}" for one in left)


def _share(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def _between(interval: tuple[float, float]) -> str:
    return f"{_share(interval[0])} to {_share(interval[1])}"


def _lines(found: Saving) -> list[str]:
    names = f"{clean(found.edge_model)} (edge) and {clean(found.cloud_model)} (cloud)"
    lines = [f"{found.n:,} requests that both answered: {names}"]
    if found.cloud_correct is None:
        lines.append(f"they agree on {_share(found.edge_correct)}: correct means to give the cloud's answer")
    else:
        lines.append(f"mean score: edge {found.edge_correct:.4f}, cloud {found.cloud_correct:.4f}")
    odds, loss = _share(found.sure), f"{found.max_loss * 100:g} point" + ("" if found.max_loss == 0.01 else "s")  # noqa: PLR2004 - one
    if found.certified:
        where = f"{_share(found.deferral)} go to the cloud ({_between(found.deferral_interval)})"
        lines += [
            f"certified: the edge answers alone from a confidence of {found.threshold:.6g} up, and {where}",
            f"  so {_share(1 - found.deferral)} of its calls are saved",
            f"  {found.guarantee}",
        ]
    else:
        lines += [
            f"NOT CERTIFIED: with these requests no threshold keeps the loss within {loss}, {odds} sure",
            "  everything would go to the cloud, and nothing be saved",
            "  what may help: more requests, a larger --max-loss, a better edge, or another confidence (as a csv)",
        ]
    if found.money is not None:
        cloud, cascade, share, interval = found.money
        how = f"{_share(share)} saved ({_between(interval)})" if found.certified else "nothing saved"
        how += ", since the edge costs more than it spares" if share < 0 else ""
        lines.append(f"money: ${cloud:,.4g} by the cloud alone, ${cascade:,.4g} with the edge: {how}")
    else:
        lines.append("money: not known, since not all requests have a cost (--edge-price, --cloud-price)")
    lines.append(
        f"oracle: a perfect confidence would defer {_share(found.least)}; the threshold that fits these requests best, "
        f"{_share(found.plug_in)}, but on new ones such a threshold often loses more than {loss}"
    )
    if found.area is not None:
        lines.append(f"ranking: {found.area:.2f} of a perfect one's area (0 is chance)")
    if found.by_chance and found.area is not None:
        lines.append(
            "  IT MAY BE NO BETTER THAN CHANCE in telling where the edge is as good as the cloud: try another confidence"
        )
    if found.unscored:
        lines.append(f"without a confidence, and so deferred: {_share(found.unscored)}")
    lines += [
        f"left out, {one.requests:,}: {one.why}" + (f" (first: {one.first})" if one.first else "") for one in found.left_out
    ]
    lines += [f"note: {note}" for note in found.notes]
    return [
        *lines,
        "taken for granted:",
        "  requests to come are like these: if one of the models was asked about some kinds only, the rest may differ",
        "  the edge model answers on the device as in the log: another quantisation is another model",
    ]
