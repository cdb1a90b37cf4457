"""The live page: the simulated machine at 200 times real time, with two buttons, for its link and for its bearing."""

from __future__ import annotations

import json
import signal
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from alarms import UNKNOWN, Alarm
from bands import bands
from chart import THRESHOLD
from loopback import Reply, answering
from machine import GROWTH, LSB, RATE, WINDOW, Machine
from monitor import Monitor, diagnoses, odds
from recorded import ORDERS, motors
from simulate import Link, opened, served, variable

from edgeroute import Answer, OnnxModel
from edgeroute.testing import Relay
from edgeroute.tools.state_colours_and_marks import STATES, StateName, answer_state, css, svg_hatches

HERE = Path(__file__).parent
SPEED = 200
"""So many times faster than real time."""
EVERY_S = 0.5
"""Real seconds between recordings."""
BEGINS_H = 8.0
"""The hour at which it begins: Monday at eight."""
BREAKS_H = 2.0
"""Hours in which a bearing that has begun to fail fails."""
SHOWN_H = 6.0
"""Hours that the page shows: 108 s."""
LINES = 160
"""Of the spectrum that is drawn."""
FIRST = 8
"""Recordings whose mean is the spectrum to compare with."""
MOST = 50
"""Events, outages and alarms that are kept."""
PER_S = 25
"""Late answers that are fetched in a second at most, so that one sees the queue become shorter."""
DAYS = "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"
WINDOW_BYTES = 2 * 3 * WINDOW
_HANN = np.hanning(WINDOW)
RULES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors http://127.0.0.1:* http://localhost:*"
}


class Point(NamedTuple):
    """A recording as the page shows it."""

    at_h: float
    score: float
    """The median of the windows' log-odds by the small model."""
    queue: int
    windows: list[tuple[str, StateName]]
    """Ids, and states when they were answered."""


@dataclass
class Span:
    """A time from one hour to another, or until now."""

    begin_h: float
    end_h: float | None = None


class Live:
    """The machine, its link and what the page shows of them.

    Args:
        monitor: watches the machine.
        link: leads to the larger model.
        state: folder with the outbox.
        seed: of the machine's noise.
    """

    def __init__(self, monitor: Monitor, link: Link, state: Path, seed: int = 0) -> None:
        self.monitor, self.link = monitor, link
        self._state, self._machine, self._begun = state, Machine(seed=seed), monotonic()
        self._small = OnnxModel(HERE / "models" / "edge.int8.onnx")
        self._lock = Lock()
        self._points: deque[Point] = deque(maxlen=round(SHOWN_H * 3600 / SPEED / EVERY_S))
        self._outages: deque[Span] = deque(maxlen=MOST)
        self._alarms: deque[Span] = deque(maxlen=MOST)
        self._events: deque[tuple[float, str]] = deque(maxlen=MOST)
        self._cracked_h: float | None = None
        self._alarm_worn, self._windows, self._averaged = 0.0, 0, 0
        self._answered = Counter[StateName]()
        self._spectrum, self._usual = np.zeros(LINES), np.zeros(LINES)
        self._note("the machine runs, and is well")

    def now_h(self) -> float:
        """Return the hour of the simulation."""
        return BEGINS_H + (monotonic() - self._begun) * SPEED / 3600

    def worn(self) -> float:
        """Return what part of the failure the bearing has come to: 1 is the failure."""
        since = self._cracked_h
        return 0.0 if since is None else min(1.0, max(0.0, (self.now_h() - since) / BREAKS_H) ** GROWTH)

    def step(self) -> None:
        """Record the machine now, have it answered, and note score, waiting windows, spectrum and alarms for the page."""
        at_h, worn = self.now_h(), self.worn()
        windows = self._machine.record(at_h, severities={"outer race": worn} if worn else {})
        before = self.monitor.alarms.now
        answers = self.monitor.see(at_h, windows).answers
        scores = [odds(row) for row in self._small.run([bands(window) for window in windows])]
        states = [(answer.id, _state(answer)) for answer in answers]
        with self._lock:
            self._windows += len(windows)
            self._answered.update(name for _, name in states)
            self._points.append(Point(at_h, float(np.median(scores)), len(self.monitor.waiting), states))
            self._spectrum = spectrum(windows)
            if self._averaged < FIRST:
                self._usual += (self._spectrum - self._usual) / (averaged := self._averaged + 1)
                self._averaged = averaged
            self._tell(before, self.monitor.alarms.now, worn)

    def press(self, button: str) -> bool:
        """Cut or mend the link, break or repair the bearing, and note it; return False if there is no such button.

        A button that changes nothing does nothing.
        """
        with self._lock:
            up, at_h = self.link.up, self.now_h()
            if button == "/cut" and up:
                self.link.set(up=False)
                self.link.relay.cut()
                self._outages.append(Span(at_h))
                self._note("the plug was pulled: the cloud is away, and what has to be asked waits on disk")
            elif button == "/mend" and not up:
                self.link.set(up=True)
                self.monitor.router.link_up()
                self._outages[-1].end_h = at_h
                self._note(f"plugged in again: {_windows(len(self.monitor.waiting))} that waited are asked")
            elif button == "/break" and self._cracked_h is None:
                self._cracked_h = at_h
                self._note(f"the bearing has a crack, and fails in {BREAKS_H:g} h ({BREAKS_H * 3600 / SPEED:.0f} s here)")
            elif button == "/repair" and self._cracked_h is not None:
                self._cracked_h = None
                self._note("the bearing was replaced")
            return button in {"/cut", "/mend", "/break", "/repair"}

    def view(self) -> dict[str, Any]:
        """Return what the page shows, as JSON values."""
        waiting, handed = set(self.monitor.waiting), [identity for identity, _ in diagnoses(self._state)]
        stats = self.monitor.router.stats()
        with self._lock:
            now_h, worn = self.now_h(), self.worn()
            alarm = self.monitor.alarms.now
            begin = self._points[0].at_h if self._points else now_h
            return {
                "now": clock(now_h),
                "at_h": now_h,
                "from_h": begin,
                "to_h": max(now_h, begin + SHOWN_H / 3),
                "alarm": alarm and {"kind": alarm.kind, "since": clock(alarm.at_h), "worn": self._alarm_worn},
                "broken": self._cracked_h is not None,
                "worn": worn,
                "link": {
                    "up": self.link.up,
                    "answers": stats.legs[-1].breaker == "closed",
                    "since": clock(self._outages[-1].begin_h) if self._outages else "",
                },
                "queue": len(waiting),
                "late": len(handed),
                "twice": len(handed) - len(set(handed)),
                "states": {
                    "edge": self._answered["edge"],
                    "cloud": self._answered["cloud"] + len(set(handed)),
                    "waiting": len(waiting),
                    **{name: self._answered[name] for name in ("cache", "degraded") if self._answered[name]},
                },
                "sent": stats.bytes_sent,
                "everything": self._windows * WINDOW_BYTES,
                "points": [
                    [
                        round(point.at_h, 4),
                        round(point.score, 2),
                        point.queue,
                        [_now(window, waiting) for window in point.windows],
                    ]
                    for point in self._points
                ],
                "spectrum": [round(value, 1) for value in self._spectrum],
                "usual": [round(value, 1) for value in self._usual],
                "outages": [[span.begin_h, span.end_h] for span in self._outages],
                "alarms": [[span.begin_h, span.end_h] for span in self._alarms],
                "events": [[clock(hour), text] for hour, text in sorted(self._events, key=lambda event: event[0], reverse=True)],
            }

    def _note(self, text: str, at_h: float | None = None) -> None:
        self._events.append((self.now_h() if at_h is None else at_h, text))

    def _tell(self, before: Alarm | None, now: Alarm | None, worn: float) -> None:
        """Note an alarm that went off, ended, or has a name now."""
        if before is None and now is not None:
            self._alarms.append(Span(now.at_h))
            self._alarm_worn = worn
            named = "a fault that the device cannot name" if now.kind == UNKNOWN else now.kind
            self._note(f"ALARM: {named}, at {100 * worn:.0f} % of what breaks the machine", now.at_h)
        elif before is not None and now is None:
            self._alarms[-1].end_h = self.now_h()
            self._note("the alarm is over")
        elif before is not None and now is not None and before.kind != now.kind:
            self._note(f"the alarm has a name: {now.kind}")


def _state(answer: Answer[str]) -> StateName:
    return answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final)


def _now(window: tuple[str, StateName], waiting: set[str]) -> str:
    """Return a window's state on the page: "late" once its late answer has come."""
    identity, state = window
    return "late" if state == "waiting" and identity not in waiting else state


def _windows(count: int) -> str:
    return f"{count} window" if count == 1 else f"{count} windows"


def clock(at_h: float) -> str:
    """Return an hour of the simulation as a person says it."""
    minutes = int(at_h * 60)
    return f"{DAYS[minutes // 1440 % 7]} {minutes // 60 % 24:02}:{minutes % 60:02}"


def spectrum(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the highest of each LINES lines, dB of 1 g: windows int16 [windows, 2048, 3], the first axis of the sensor."""
    g = windows[:, :, 0] * LSB
    lines = np.abs(np.fft.rfft((g - g.mean(1, keepdims=True)) * _HANN, axis=1)).mean(0) * 4 / WINDOW
    parts = np.array_split(lines[2:], LINES)
    return 20 * np.log10(np.array([part.max() for part in parts]) + 1e-6)


def html() -> bytes:
    """Return the page as bytes: page.html with the palette, and what does not change."""
    states = {name: {"mark": state.mark, "word": state.word, "meaning": state.meaning} for name, state in STATES.items()}
    real = [{"turns": motor.turns_hz, "knocks": motor.knocks, "named": motor.named, "lines": motor.lines} for motor in motors()]
    fixed = {"states": states, "threshold": THRESHOLD, "hz": RATE / 2, "speed": SPEED, "motors": real, "orders": ORDERS}
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for place, filling in {
        "/*palette*/": css(),
        "<!--hatches-->": svg_hatches(),
        "/*fixed*/": f"const FIXED = {json.dumps(fixed, ensure_ascii=False)};",
    }.items():
        text = text.replace(place, filling)
    return text.encode()


@contextmanager
def shown(port: int = 0, seed: int = 0) -> Iterator[tuple[Live, str]]:
    """Serve the larger model, a link to it, and the page; yield what is shown, and the page's address. Ends all of it after.

    Raises:
        SystemExit: the port is taken, or the server of the larger model does not start.
    """
    with ExitStack() as stack:
        state = Path(stack.enter_context(TemporaryDirectory()))
        url = urlsplit(stack.enter_context(served()))
        relay = stack.enter_context(Relay("127.0.0.1", url.port or 80))
        stack.enter_context(variable("EDGEROUTE_CLOUD__URL", f"http://127.0.0.1:{relay.port}{url.path}"))
        router = stack.enter_context(opened(state, SPEED, rate_per_s=PER_S))  # a day lasts one 200th of a day
        live = Live(Monitor(router), Link(relay, held=True), state, seed)
        page = html()

        def get(path: str, _: Message) -> Reply | None:
            if path == "/now":
                return Reply(json.dumps(live.view(), ensure_ascii=False).encode(), "application/json")
            return Reply(page, "text/html; charset=utf-8", RULES) if path == "/" else None

        def post(path: str, _: Message) -> Reply | None:
            return Reply(b"{}", "application/json") if live.press(path) else None

        yield live, stack.enter_context(answering(port, get, post))


def watch(live: Live, ending: Event) -> None:
    """Record and answer each 0.5 s until it is to end; what comes too late is left out."""
    began, steps = monotonic(), 0
    while not ending.is_set():
        live.step()
        steps = max(steps + 1, int((monotonic() - began) / EVERY_S))
        ending.wait(max(0.0, began + steps * EVERY_S - monotonic()))


def run(port: int = 0) -> None:
    """Show the page until Ctrl-C, SIGTERM or SIGHUP; blocks."""
    ending = Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as it is below nohup
            signal.signal(number, lambda *_: ending.set())
    with shown(port) as (live, address):
        print(f"the monitor's page, at {SPEED} times real time: {address}/\nCtrl-C ends it", flush=True)
        watch(live, ending)
