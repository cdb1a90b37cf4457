"""The setting `Trial`, and its checks: an edge model or endpoint beside the one in use, for a share of requests or devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import iscoroutinefunction
from math import fsum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from edgeroute.core.setting_unit_types import Chance, Share
from edgeroute.errors import PolicyError
from edgeroute.system.read_and_check_signatures import check_units

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate

STORED: Final = "trials"  # name in the state folder of the figures of all trials
SHOWN, HIDDEN = 0.1, 0.01  # default share of a trial whose answers callers get, and of a hidden one
# Default margins of the guardrail. Another cloud may differ from the edge because it is better, so that margin is wide.
MARGINS: Final = {
    "edge": {"more_errors": 0.01, "more_deferred": 0.1, "more_differs": 0.02},
    "cloud": {"more_errors": 0.02, "more_deferred": 1.0, "more_differs": 0.1},
}
GIVEN = ("share", *MARGINS["edge"])  # settings whose default depends on the side, or on whether the trial is shown


class Trial(NamedTuple):
    """An edge model or an endpoint on trial, beside the one in use.

    Shown, it answers a stable share of the requests or devices in place of the one in use. Hidden, it answers nobody: it runs,
    or is called, in the background for a share of the requests, and its answers are compared. A hash of the key decides, so a
    key or a device is always in the same arm, also while the share grows.

    Args:
        edge: the model, as in `Router(edge=...)`; it stands beside the only edge model. Either this or `cloud` is given.
        cloud: the endpoint, as in `Router(cloud=...)`; it stands beside those in use.
        shown: callers get its answers. If not, a hidden edge runs on audited requests, and `edgeroute recertify` puts it in force
            once its certificate holds; a hidden cloud is called afterwards, and compared.
        share: share of the requests or devices. None: 10 %, hidden 1 %. Of a hidden edge the audit has it, where there is one.
        threshold: threshold of the edge; None: its own certificate if it came with one, else the number in use; hidden: none yet.
        by: returns the key of an input, as of its camera or user: equal keys are in one arm. None: each request is drawn.
        device: id of this device: all of its requests are in one arm. None: each request is drawn.
        salt: another salt draws other devices.
        more_errors: guardrail: margin by which failures may exceed those of the one in use. None: 1 %, of a cloud 2 %.
        more_deferred: guardrail of an edge: the same for deferred requests. None: 10 %.
        more_differs: guardrail: the same for answers that differ (trials.md). None: 2 %, of a cloud 10 %.
        alpha: probability that the guardrail stops a trial that is not worse, however often it is checked.
    """

    edge: Any = None
    cloud: Any = None
    shown: bool = True
    share: Share | None = None
    threshold: float | Certificate | None = None
    by: Callable[[Any], Any] | None = None
    device: str | None = None
    salt: str = ""
    more_errors: Share | None = None
    more_deferred: Share | None = None
    more_differs: Share | None = None
    alpha: Chance = 0.05

    @property
    def side(self) -> Literal["edge", "cloud"]:
        """Side of the model or endpoint on trial."""
        return "cloud" if self.edge is None else "edge"


def check_trials(given: Trial | Sequence[Trial]) -> tuple[Trial, ...]:
    """Check one trial or several, and return them with their defaults filled in.

    Raises:
        PolicyError: a setting is out of range, or they do not fit together.
    """
    trials = tuple(given) if isinstance(given, list | tuple) and not isinstance(given, Trial) else (given,)
    for trial in trials:
        if not isinstance(trial, Trial):
            raise PolicyError(f"trial= takes an edgeroute.Trial or a list of them, not {type(trial).__name__}")
    trials = tuple(map(_check_trial, trials))
    if sum(trial.side == "edge" for trial in trials) > 1:
        raise PolicyError("trial: one edge model is on trial at a time, and there are several")
    if fsum(trial.share or 0.0 for trial in trials if trial.side == "cloud" and trial.shown) > 1 + 1e-9:
        raise PolicyError("trial: the shares of the endpoints are more than 1 together")
    return trials


def _check_trial(trial: Trial) -> Trial:
    """Check one trial, and return it with its defaults filled in.

    Raises PolicyError if a setting is out of range, or does not fit its side.
    """
    if (trial.edge is None) == (trial.cloud is None):
        raise PolicyError("trial: give either edge=, a model, or cloud=, an endpoint")
    if not isinstance(trial.shown, bool):
        raise PolicyError(f"trial: shown is True or False, not a {type(trial.shown).__name__}")
    defaults: dict[str, Any] = {"share": SHOWN if trial.shown else HIDDEN, **MARGINS[trial.side]}
    trial = trial._replace(**{name: defaults[name] for name in GIVEN if getattr(trial, name) is None})
    check_units(Trial, trial._asdict(), "trial: ")
    if trial.threshold is not None and trial.side == "cloud":
        raise PolicyError("trial: threshold is that of an edge model, and this trial is of a cloud")
    if iscoroutinefunction(trial.by):
        raise PolicyError("trial: by is a function of the input that returns its key, and this one is async: make it a plain def")
    if trial.by is not None and (trial.device is not None or not callable(trial.by)):
        raise PolicyError("trial: by is a function of the input that returns its key, and device is not given beside it")
    return trial
