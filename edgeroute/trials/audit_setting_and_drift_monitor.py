"""The setting `Audit`, and the drift monitor of one edge model: tests of its guarantee, alarms, and the threshold in effect."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from math import sqrt
from statistics import median
from time import gmtime, strftime
from typing import Any, NamedTuple

from edgeroute.confidence.certificate import BoundCertificate, effective_target
from edgeroute.core.policy_egress_and_options import INF, OnAlarm, Target
from edgeroute.core.sequential_tests import ALARM, Drift, ShareTest
from edgeroute.core.setting_unit_types import Count, Share
from edgeroute.errors import PolicyError
from edgeroute.observe.stats_and_status_types import AuditStats
from edgeroute.system import wall_clock
from edgeroute.system.read_and_check_signatures import check_units

SHOWN = 50  # number of audits that an alarm reports
# Number of stored confidences of audited accepted answers, to whose median an alarm raises the threshold; and of labels.
RECENT = 256
SOON, SOON_TIMES = "soon ", 4  # prefix of the tests that do not wait for the end of a day, and how many times the limit they test
DAY_S = 86_400


class Audit(NamedTuple):
    """Audit of a sample of the edge's answers against the cloud's, with an alarm if the guarantee of a certificate fails.

    Args:
        share: share of all requests; for those that the edge answers, the cloud is called in the background. 0: only deferral
            rates are monitored.
        on_alarm: effect when more answers differ from the cloud's than should. tell: report it in the log, the reasons and
            `stats`. raise: also defer half of what was accepted. defer: also defer everything (audit.md#the-alarm).
        agrees: `f(edge's value, cloud's value)`: True if they agree, else False; None: they are equal, or the same label in
            another form (digits and text, case, white space). With labels also `f(a value, the right one)`, which may be a number
            from 0 to 1 where answers are graded; an edge and a cloud then agree at 1 alone.
        scene: number of successive requests whose inputs may be alike, as frames of one scene are: alarms count requests at least
            so far apart. 1: the inputs are independent, and alike at any time of day.
        labelled: the right values of audited answers are reported (`router.report`): alarms test what the certificate guarantees,
            and not how often the answers differ.
    """

    share: Share = 0.005
    on_alarm: OnAlarm = "tell"
    agrees: Callable[[Any, Any], float] | None = None
    scene: Count = 30
    labelled: bool = False


class Alarm(NamedTuple):
    """Alarm about a guarantee that is no longer trusted."""

    at: float  # seconds since 1970
    what: str
    action: OnAlarm


class DriftMonitor:
    """Drift monitor of one edge model with a threshold: tests, alarms, and the target in effect. Not synchronised; needs a lock.

    Args:
        bound: the certificate of its threshold; None: a plain number, for which there are no alarms.
        audit: the settings.
        counters: values of the two counters (judged, below the threshold) from which `add_totals` counts.

    Attributes:
        at_least: lower bound of the threshold, raised by alarms; -inf: as certified.
    """

    def __init__(self, bound: BoundCertificate | None, audit: Audit, counters: tuple[int, int] = (0, 0)) -> None:
        self.bound, self._audit = bound, audit
        self.audited = self.disagreed = self.labelled = 0
        self.alarm: Alarm | None = None
        self.limit: float | None = None
        self._stands: Target | None = None
        self.at_least = -INF
        self._accepted: deque[float] = deque(maxlen=RECENT)
        self._wrong: deque[bool] = deque(maxlen=SHOWN)
        self._right: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._seen = counters
        self._totals = (0, 0)
        # Tests of the loss if there are labels, else of the share that differs.
        #
        # And "harm", of the share in which the cloud alone is right: at most the limit, and that in which the edge alone is.
        self._audits: dict[str, Drift] = {}
        self._deferrals: ShareTest | None = None
        if bound is not None:
            self.limit = loss_limit(bound) if audit.labelled else limit(bound)
            self._begin()
            self._deferrals = ShareTest(*bound.certificate.deferral_interval, independent=audit.scene == 1)

    def target(self, target: Target) -> Target:
        """Return the target with its effective threshold and label, and store it."""
        self._stands = effective_target(target, self.bound, "" if self.alarm is None else self.alarm.what, self.at_least)
        return self._stands

    @property
    def threshold(self) -> float | None:
        """Confidence from which the edge's answers are accepted now, as certified or raised by an alarm; None: not known yet."""
        return None if self._stands is None else self._stands.threshold

    def add_comparison(self, confidence: float | None, *, agrees: bool, counted: bool) -> bool:
        """Record the comparison of an accepted answer with the cloud's, in totals and tests. Return True if it raises an alarm.

        Where labels are expected it raises none. An alarm may raise the threshold (`at_least`).

        Args:
            confidence: of the edge; None: there is none.
            agrees: True if the cloud's answer is the same.
            counted: False: the tests leave it out, as it may depend on the last one.
        """
        self.audited += 1
        self.disagreed += not agrees
        self._wrong.append(not agrees)
        if confidence is not None:
            self._accepted.append(float(confidence))
        if self._audit.labelled or not self._add_to_test(float(not agrees), counted=counted):
            return False
        self._raise_alarm(
            f"of the last {len(self._wrong)} audited answers {sum(self._wrong)} differ from the cloud's, "
            f"and at most {(self.limit or 0) * 100:.2f} % should"
        )
        return True

    def add_label(self, *, edge: float, cloud: float, counted: bool) -> bool:
        """Record how right (0..1) an audited answer of the edge and the cloud's are. Return True if that raises an alarm.

        An alarm may raise the threshold (`at_least`). False, and nothing recorded, without labels in the settings or without a
        certificate.

        Raises:
            ValueError: a value is NaN or outside 0..1.
        """
        if not (0 <= edge <= 1 and 0 <= cloud <= 1):
            raise ValueError(f"how right an answer is, is a number from 0 to 1, not {edge} or {cloud}")
        if not self._audit.labelled or self.bound is None:
            return False
        self.labelled += 1
        errors = self.bound.certificate.kind == "max_error"
        alarms = self._add_to_test(1 - edge if errors else (1 + cloud - edge) / 2, max(0.0, cloud - edge), counted=counted)
        self._right.append((edge, cloud))
        if not alarms:
            return False
        shown = [*self._right][-SHOWN:]
        of_edge, of_cloud = (sum(side) / len(shown) for side in zip(*shown, strict=True))
        text = f"of the last {len(shown)} audited answers with a label {of_edge * 100:.1f} % are right"
        most = (
            f"at most {(self.limit or 0) * 100:.2f} % may be wrong"
            if errors
            else f"{of_cloud * 100:.1f} % of the cloud's, and {(self.limit or 0) * 100:.2f} % is the most that may be lost"
        )
        self._raise_alarm(f"{text}, {'and ' if errors else ''}{most}")
        return True

    def _add_to_test(self, x: float, harm: float = 0.0, *, counted: bool) -> bool:
        """Add a value to the tests of the audits, and a harm to its own. Return True if that raises an alarm.

        Nothing is added if it is not counted, there is no test, or one has alarmed already. A harm counts for less where more
        answers of the edge alone were right lately than at the calibration.
        """
        if not counted or any(test.alarmed for test in self._audits.values()):
            return False
        if "harm" in self._audits and self.limit is not None:
            # of late wins may be more than at the calibration: as many more harms are no loss
            wins = sum(max(0.0, edge - cloud) for edge, cloud in self._right) / RECENT
            harm *= min(1.0, self._audits["harm"].level / (self.limit + wins + 2 * sqrt(wins / RECENT)))
        day = int(wall_clock.now() // DAY_S)
        for name, test in self._audits.items():
            daily = self._audit.scene > 1 and not name.startswith(SOON)
            test.add(harm if name.endswith("harm") else x, day if daily else None)
        return any(test.alarmed for test in self._audits.values())

    def _begin(self) -> None:
        """Replace the tests of the audits by new ones, named by what they test; none without a limit.

        A loss x of -1..1 is tested as (1 + x) / 2. Beside it the harms, if the certificate bounds the wins: by half of the share
        that differs, less the loss; made without labels, by all of that share. Where the hour matters, means of whole days are
        tested, and a multiple of the limit at once. Each test has its part of the risk.
        """
        self._audits = {}
        if self.limit is None or self.bound is None:
            return
        made, labelled = self.bound.certificate, self._audit.labelled
        halved = labelled and made.kind != "max_error"
        wins = made.disagreement if halved else None
        if wins is not None and not made.agreement:
            loss = (made.accuracy.get("cloud", 0.0) - made.accuracy.get("cascade", 0.0)) / (1 - made.deferral_rate)
            wins = max(0.0, (wins - loss) / 2)
        levels = dict[str, float]()
        for prefix, times in [("", 1), (SOON, SOON_TIMES)][: 1 + (self._audit.scene > 1)]:
            limit = times * self.limit
            levels[prefix + ("loss" if labelled else "disagreement")] = (1 + limit) / 2 if halved else limit
            levels[prefix + "harm"] = 1.0 if wins is None else limit + times * wins
        levels = {name: level for name, level in levels.items() if level < 1}
        self._audits = {name: Drift(level, alarm=ALARM * len(levels)) for name, level in levels.items()}

    def add_totals(self, judged: int, below: int) -> bool:
        """Add what two counters (judged, below the threshold) have grown by since the last call. Return True if they have."""
        more = judged > self._seen[0]
        self._totals = self._totals[0] + judged - self._seen[0], self._totals[1] + below - self._seen[1]
        self._seen = judged, below
        return more

    def add_deferral(self, threshold: float | None, *, below: bool) -> bool:
        """Record whether an answer of the deferral sample was below the threshold.

        Return True if that raises an alarm, the first one. Such an alarm only tells: the threshold stays. Ignored for another
        threshold than the certificate's own, or once an alarm has raised that.
        """
        tests = self._deferrals
        if tests is None or self.bound is None or threshold != self.bound.certificate.threshold or self.at_least > threshold:
            return False  # not the certified threshold, to which the certified rate does not apply
        tests.add(one=below, time_s=wall_clock.now())
        for what, test in tests.tests.items():
            if test.alarmed and self.alarm is None:
                rate = test.ones / test.count
                share, usual = (rate, test.level) if what == "more" else (1 - rate, 1 - test.level)
                self._set_alarm(
                    f"{what} inputs than usual are deferred of late: usual is at {'most' if what == 'more' else 'least'} "
                    f"{usual * 100:.1f} %, and all {test.count:,} of the sample, the earlier ones too, have {share * 100:.1f} %",
                    "tell",
                )
                return True
        return False

    @property
    def reaction(self) -> str:
        """Effect of the alarm in words: nothing, all is deferred, or half of what was accepted."""
        if self.alarm is None or self.alarm.action == "tell":
            return "nothing else was changed (it only tells)"
        return f"{'all' if self.at_least == INF else 'half of what was accepted'} is deferred from now on"

    def stats(self, name: str) -> AuditStats:
        """Return the figures, under `name`: audits, differences and labels so far, the limit, the tests' evidence, the alarm."""
        evidence = sum(test.evidence for test in self._audits.values()) / max(1, len(self._audits))
        alarm_text = "" if self.alarm is None else self.alarm.what
        return AuditStats(name, self.audited, self.disagreed, self.limit, evidence, alarm_text, self.labelled)

    def _raise_alarm(self, what: str) -> None:
        """Record an alarm of the audits, and raise the lower bound of the threshold as the settings say.

        `defer`: to infinity; `raise`: to the next bound, and new tests begin; `tell`, and a certificate of deferrals: not at all.
        """
        defers = self.bound is not None and self.bound.certificate.kind == "max_defer"
        action = "tell" if defers else self._audit.on_alarm
        self._set_alarm(what, action)
        if action == "defer":
            self.at_least = INF
        elif action == "raise":
            # Half of the accepted answers are below it. Not above the highest threshold at which the guarantee was certified,
            # where what is accepted may be worse; if there is an alarm even there, nothing is accepted.
            higher, highest = [c for c in self._accepted if c > self.at_least], highest_certified(self.bound)
            half = median(higher) if len(higher) > 1 else INF
            self.at_least = half if half <= highest else highest if self.at_least < highest else INF
            self._accepted.clear()
            self._begin()

    def _set_alarm(self, what: str, action: OnAlarm) -> None:
        """Set the alarm, with the date."""
        now = wall_clock.now()
        self.alarm = Alarm(now, f"drift alarm of {strftime('%Y-%m-%d', gmtime(now))}: {what}", action)

    def dump(self) -> dict[str, Any]:
        """Return the state for later runs, in JSON types."""
        return {
            "certificate": None if self.bound is None else self.bound.certificate.checksum,
            "date": None if self.bound is None else self.bound.certificate.date,
            "label": "" if self._stands is None else self._stands.label,
            "threshold": None if self._stands is None else str(self._stands.threshold),
            "deferral_interval": None if self.bound is None else self.bound.certificate.deferral_interval,
            "audited": self.audited,
            "disagreed": self.disagreed,
            "labelled": self.labelled,
            "limit": self.limit,
            "alarm": None if self.alarm is None else self.alarm._asdict(),
            "raised": None if self.at_least == -INF else str(self.at_least),
            "accepted": list(self._accepted),
            "drift": {name: test.dump() for name, test in self._tests.items()},
            "judged": self._totals[0],
            "deferred": self._totals[1],
        }

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Restore the state of an earlier run if it had the same certificate. Unreadable parts are skipped."""
        if self.bound is None or dumped.get("certificate") != self.bound.certificate.checksum:
            return
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            self.audited, self.disagreed = int(dumped["audited"]), int(dumped["disagreed"])
            self._accepted.extend(map(float, dumped["accepted"]))
            self._totals = int(dumped["judged"]), int(dumped["deferred"])
            self.labelled = int(dumped.get("labelled", 0))
            alarm = dumped["alarm"]
            self.alarm = None if alarm is None else Alarm(float(alarm["at"]), str(alarm["what"]), alarm["action"])
            self.at_least = -INF if dumped["raised"] is None else float(dumped["raised"])
        for name, test in self._tests.items():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                test.load(dumped["drift"][name])

    @property
    def _tests(self) -> dict[str, Drift | ShareTest]:
        """Tests by their names in a dump."""
        return {**self._audits, **({} if self._deferrals is None else {"deferrals": self._deferrals})}


def highest_certified(bound: BoundCertificate | None) -> float:
    """Return the highest threshold at which the guarantee was certified; inf: it holds at all above the certificate's own."""
    highest = None if bound is None else bound.certificate.highest
    return INF if highest is None else float(highest)


def loss_limit(bound: BoundCertificate) -> float | None:
    """Return the loss, or the error rate, that a certificate allows for each accepted answer; None: it promises neither."""
    certificate = bound.certificate
    if certificate.kind == "max_defer" or not 0 <= certificate.deferral_rate < 1:
        return None
    most = certificate.value if certificate.kind == "max_error" else certificate.value / certificate.accepted
    return most if most < 1 else None


def limit(bound: BoundCertificate) -> float | None:
    """Return the upper limit of the share of accepted answers that differ from the cloud's, by calibration or the guarantee.

    With labels, some of the answers that differ are correct ones of the edge, so that share alone does not measure the loss; but
    more of it than in calibration shows a change. None: calibration did not measure it.
    """
    certificate = bound.certificate
    seen = certificate.disagreement
    if seen is None or not 0 <= certificate.deferral_rate < 1:
        return None
    allowed = certificate.value / certificate.accepted if certificate.kind == "max_loss" else 0.0
    most = max(seen, allowed)
    return most if 0 < most < 1 else None


def check_audit(audit: Audit) -> None:
    """Raise PolicyError if a number is out of range, `labelled` is no bool, or `on_alarm` is not "tell", "raise" or "defer"."""
    check_units(Audit, audit._asdict(), "audit: ")
    if type(audit.labelled) is not bool:
        raise PolicyError(f"audit: labelled is True or False, not {audit.labelled!r}")
    if audit.on_alarm not in {"tell", "raise", "defer"}:
        raise PolicyError(f"audit: on_alarm is 'tell', 'raise' or 'defer', not {audit.on_alarm!r}")
