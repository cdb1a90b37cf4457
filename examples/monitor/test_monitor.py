"""The example on its simulated machine: faults are found in time, and neither a link that flaps nor kill -9 loses anything."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
import xml.etree.ElementTree as ET
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.parse import urlsplit

import live
import loopback
import main
import numpy as np
import page
import pytest
import train
from alarms import LOOKED_AT, RAISED_BY, Alarms
from bands import FEATURES, bands
from chart import svg
from diagnosis import diagnose
from machine import KINDS, Fault, Machine
from monitor import POLICY, Monitor, diagnoses, odds, well
from painted import is_picture_of
from prometheus_client import CollectorRegistry, Gauge
from recorded import motors
from sensor import SAMPLES, Newest, recordings
from simulate import run, served, variable

from edgeroute import Limits, OnnxModel, Outbox, Router
from edgeroute.testing import Relay

HERE = Path(__file__).parent
LONG = 60.0
DAYS = 4


def until(condition, what):
    """Waits until the condition holds."""
    pause = threading.Event()
    for _ in range(int(LONG * 10)):
        if found := condition():
            return found
        pause.wait(0.1)
    raise AssertionError(f"it never came about: {what}")


@pytest.mark.parametrize("wrong", ["--days 0", "--days -1", "--days nan", "--svg {folder}", "--svg {folder}/none/x.svg"])
def test_wrong_arguments_are_refused_at_once(wrong, tmp_path, monkeypatch, capsys):
    """In a line, before anything is simulated."""
    monkeypatch.setattr(main, "run", lambda *_, **__: pytest.fail("it is simulated"))
    monkeypatch.setattr(sys, "argv", ["main.py", *wrong.format(folder=tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert wrong.split()[0] in capsys.readouterr().err


@pytest.fixture(scope="module")
def report():
    """Some simulated days, with a fault of each kind."""
    return run(DAYS, seed=2, compare=False)


def test_every_fault_is_found_before_the_machine_fails(report):
    """And named; the machine is well in between, and no alarm says otherwise."""
    assert sorted(fault.kind for fault in report.faults) == sorted(KINDS[1:])
    ours = report.arms["edgeroute"]
    for fault, found in zip(report.faults, ours.found, strict=True):
        assert found.alarm_h is not None, fault
        assert fault.fails_h - found.alarm_h >= 3, (fault, found)
        assert found.named == fault.kind
    assert ours.false_alarms == 0
    assert report.well_days == pytest.approx(DAYS * 4 / 7)
    assert ours.answered == report.windows == DAYS * 48 * 4


def test_a_link_that_flaps_loses_nothing_and_hands_over_each_late_answer_once(report):
    """What was deferred without a link was queued, and every queued window got its answer, once."""
    assert len(report.outages) >= 3
    assert report.queued > 20
    assert 0 < report.longest <= report.queued
    assert (report.delivered, report.repeated, report.lost) == (report.queued, 0, 0)
    assert 0 < report.deferred < report.windows / 2
    assert 0 < report.arms["edgeroute"].bytes_sent < report.windows * 2048 * 3 * 2 * 0.6


def test_an_answer_that_is_handed_over_twice_is_there_twice(tmp_path):
    """So the report would say so: no key of the application's table hides it."""
    handlers = []
    monitor = Monitor(SimpleNamespace(on_late=handlers.append))
    monitor.waiting = {"one", "other"}
    late = SimpleNamespace(id="one", value="looseness", confidence=0.9, provisional=None, answered_at=1.0)
    for _ in range(2):
        with closing(sqlite3.connect(tmp_path / "outbox.db")) as file, file:
            handlers[0](late, file)
    assert diagnoses(tmp_path) == [("one", "looseness")] * 2
    assert monitor.waiting == {"other"}
    assert not monitor.settled(0)


def test_the_picture(report):
    """It is well-formed, and has each fault and each alarm."""
    drawn = ET.fromstring(svg(report))
    kinds = [part.get("class") for part in drawn.iter()]
    assert (kinds.count("fault"), kinds.count("alarm"), kinds.count("outage")) == (4, len(report.alarms), len(report.outages))
    assert len(drawn.find("{*}polyline").get("points").split()) == DAYS * 48


# ---------------------------------------------------------------------------------------------------------------- the service
@contextmanager
def watching(source, state, url, log):
    """`main.py --live` in a process of its own, and the URL of its metrics."""
    environment = {**os.environ, "EDGEROUTE_CLOUD__URL": url, "EDGEROUTE_STATE": str(state), "EDGEROUTE_OUTBOX__SPREAD": "0s"}
    command = [sys.executable, str(HERE / "main.py"), "--live", "--source", str(source), "--every", "0", "--port", "0"]
    with log.open("w") as errors, subprocess.Popen(command, env=environment, stderr=errors) as process:
        try:
            at = until(lambda: process.poll() is None and re.search(r"http://127\.0\.0\.1:\d+/metrics", log.read_text()), log)
            yield process, at[0]
        finally:
            process.kill()


def scrape(url):
    """The metrics: name with labels -> value."""
    with urllib.request.urlopen(url, timeout=LONG) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain")
        lines = reply.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_kill_9_with_a_queue_and_a_restart(tmp_path):
    """What was queued before the kill is delivered by the next process, each window once; metrics say what happens."""
    pipe, state = tmp_path / "samples", tmp_path / "state"
    os.mkfifo(pipe)
    broken = Machine(faults=[Fault("outer race", -10, 10)])
    with served() as url, Relay("127.0.0.1", urlsplit(url).port) as relay, pipe.open("r+b", buffering=0) as samples:
        relay.refuse = True
        through = f"http://127.0.0.1:{relay.port}{urlsplit(url).path}"
        with watching(pipe, state, through, tmp_path / "first.log") as (process, at):
            for n in range(6):
                samples.write(broken.record(5 + n / 4).tobytes())
                until(lambda: (tmp_path / "first.log").read_text().count('"edgeroute.requests"') >= 4 * n + 4, "answers")  # noqa: B023
            assert (tmp_path / "first.log").read_text().count('"degraded": true') >= 20
            found = scrape(at)
            assert found['edgeroute_outbox_waiting{router=""}'] >= 16
            assert found['edgeroute_degraded_total{router=""}'] >= 16
            assert found['monitor_windows_total{value="fault"}'] >= 12
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        with closing(Outbox(state / "outbox.db")) as outbox:
            stored = outbox.counts()["stored"]
        assert stored >= 20
        assert diagnoses(state) == []
        relay.refuse = False
        with watching(pipe, state, through, tmp_path / "second.log") as (process, at):
            until(lambda: len(diagnoses(state)) >= stored, "late answers")
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0
    handed = diagnoses(state)
    assert len(handed) == len({identity for identity, _ in handed}) == stored
    assert [kind for _, kind in handed].count("outer race") > 0.9 * stored
    lines = [json.loads(line) for line in (tmp_path / "first.log").read_text().splitlines()]
    assert sum(line["logger"] == "edgeroute.requests" for line in lines) >= 20
    assert any(line["message"].startswith("alarm: ") for line in lines)


def test_what_leaves_is_bounded_and_has_a_class(tmp_path):
    """At the limit a day windows wait, and samples of no class do not leave at all."""
    broken = Machine().record(1, severities={"outer race": 1.0})
    options = {"score": well, "state": tmp_path, "outbox": Outbox(tmp_path / "outbox.db"), "limits": Limits(mb_per_day=0.001)}
    with served() as url, variable("EDGEROUTE_CLOUD__URL", url), Router.from_policy(POLICY, **options) as router:
        seen = Monitor(router).see(1, broken)
        assert [answer.final for answer in seen.answers] == [False] * 4
        assert all("mb_per_day" in answer.reason for answer in seen.answers), seen.answers[0].reason
        other = router.infer({"bands": bands(broken)[0], "raw": broken[0]})
        assert (other.source, other.final) == ("edge", True)
        assert router.stats().bytes_sent == 0


def test_the_unit(tmp_path):
    """The service manager finds nothing wrong with it, and it starts what is here."""
    text = (HERE / "edgeroute-monitor.service").read_text()
    program, script = re.search(r"^ExecStart=(\S+) (\S+)/main\.py --live ", text, re.MULTILINE).groups()
    assert re.search(r"^Type=notify$", text, re.MULTILINE)
    assert re.search(r"^Restart=on-failure$", text, re.MULTILINE)  # as which the end of a sensor counts,
    assert re.search(r"^StartLimitIntervalSec=0$", text, re.MULTILINE)  # however long it is away
    assert int(re.search(r"^WatchdogSec=(\d+)$", text, re.MULTILINE)[1]) > 2 * int(re.search(r"--every (\d+)", text)[1])
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / "edgeroute-monitor.service"
    unit.write_text(text.replace(program, sys.executable).replace(script, str(HERE)))
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, timeout=LONG)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "edgeroute" in line]
    assert (done.returncode, told) == (0, [])
    exposure = [analyze, "security", "--offline=true", "--threshold=25", str(unit)]
    assert subprocess.run(exposure, capture_output=True, check=False, timeout=LONG).returncode == 0


# ---------------------------------------------------------------------------------------------------------------- the page
@pytest.fixture
def showing(monkeypatch):
    """The page of a machine that runs, and whose bearing fails within nine seconds."""
    monkeypatch.setattr(page, "BREAKS_H", 0.5)
    ending = threading.Event()
    with page.shown() as (shown, address):
        running = threading.Thread(target=page.watch, args=[shown, ending])
        running.start()
        try:
            yield shown, address
        finally:
            ending.set()
            running.join()


@contextmanager
def opened(address):
    """The page in a headless Chromium; it must have had no error, and asked nobody else."""
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab, wrong, asked = browser.new_page(viewport={"width": 1280, "height": 900}), [], set()
        tab.set_default_timeout(1000 * LONG)
        playwright.expect.set_options(timeout=1000 * LONG)
        tab.on("console", lambda said: wrong.append(said.text) if said.type in {"error", "warning"} else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: asked.add(request.url))
        tab.goto(address)
        yield tab, playwright.expect
        browser.close()
        assert wrong == []
        assert all(url.startswith(address) for url in asked), asked


def test_the_plug_and_the_bearing(showing):
    """Without the plug the page says so, an alarm has no name and windows wait; with it each gets its answer late, once."""
    live_page, address = showing
    with opened(address + "/") as (tab, expect):
        import screenshot

        machine, link = tab.locator("#machine"), tab.locator("#link")

        def press(button):
            tab.get_by_role("button", name=button).click()

        expect(machine).to_contain_text("✓ well")
        expect(link).to_contain_text("✓ up")
        motor = tab.locator("#motors svg").first
        outer, ball = (motor.get_by_text(part, exact=True).bounding_box() for part in ("outer race", "ball"))
        assert ball["x"] - outer["x"] - outer["width"] > 20, "they are read as two words, not as a part that has no such name"
        press("Pull the plug")
        expect(link).to_contain_text("cloud away")
        with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", live_page.link.relay.port), LONG) as way:
            way.recv(1)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", live_page.link.relay.port))
        press("Break the bearing")
        expect(machine).to_contain_text("ALARM: no name yet")
        expect(tab.locator("#waiting")).to_have_text(re.compile(r"○ [1-9]\d"))
        expect(tab).to_have_title("ALARM: no name yet · cloud away")
        tab.set_viewport_size({"width": 1280, "height": screenshot.HEIGHT})
        is_picture_of(HERE / "screenshot.png", tab, {"edge", "waiting", "degraded"})
        queued = len(live_page.monitor.waiting)
        press("Plug in again")
        expect(link).to_contain_text("✓ up")
        expect(machine).to_contain_text("ALARM: outer race")
        expect(tab.locator("#waiting")).to_have_text("○ 0")
        expect(tab.locator("#late")).to_have_text(re.compile(r"^\d+ each once$"))
        seen = live_page.view()
        assert (seen["late"] >= queued, seen["twice"]) == (True, 0)
        press("Replace the bearing")
        expect(machine).to_contain_text("✓ well")
        press("Break the bearing")
        expect(machine).to_contain_text("ALARM: outer race")
        expect(tab.locator("#events li", has_text="ALARM").nth(1)).to_be_attached()  # a moment after the alarm itself
        told = tab.locator("#events li").all_inner_texts()
        assert sum("the plug was pulled" in line for line in told) == 1


def test_an_outage_that_no_button_made(showing):
    """The page says that the cloud does not answer, and that it does again."""
    live_page, _ = showing
    live_page.link.relay.refuse = True
    live_page.link.relay.cut()
    assert live_page.press("/break")
    until(lambda: not live_page.view()["link"]["answers"], "the breaker opens")
    assert live_page.view()["link"]["up"]
    live_page.link.relay.refuse = False
    live_page.monitor.router.link_up()
    until(lambda: live_page.view()["link"]["answers"] and live_page.view()["queue"] == 0, "late answers")
    assert live_page.view()["twice"] == 0


def test_only_the_page_itself_presses_buttons(showing):
    """No page of another site, no link, and not twice."""
    live_page, address = showing

    def status(path, data=b"", **headers):
        try:
            with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=LONG) as reply:
                return reply.status
        except HTTPError as refused:
            refused.close()
            return refused.code

    with urllib.request.urlopen(address, timeout=LONG) as reply:
        assert "frame-ancestors http://127.0.0.1:* http://localhost:*" in reply.headers["Content-Security-Policy"]
    assert status("/cut", Origin="http://evil.example") == 403
    assert status("/cut", Origin="null") == 403
    assert status("/cut", Host="evil.example", Origin="http://evil.example") == 403
    assert status("/cut", None) == 404
    assert status("/now") == status("/none") == 404
    assert live_page.view()["link"]["up"]
    assert [status("/cut", Origin=address) for _ in range(2)] == [200, 200]
    assert status("/mend") == 200
    seen = live_page.view()
    assert (seen["link"]["up"], len(seen["outages"])) == (True, 1)


def test_real_motors():
    """Of each recorded motor the damaged part is named, and it turns as fast as is known of it: 2,500 turns a minute."""
    found = motors()
    assert [motor.named for motor in found] == ["inner race"] * 4
    assert all(motor.turns_hz == pytest.approx(2500 / 60, rel=0.01) for motor in found)
    assert all(motor.knocks["inner race"] > 4 * max(motor.knocks["outer race"], motor.knocks["ball"]) for motor in found)


# ---------------------------------------------------------------------------------------------------------------- the models
def test_the_small_model_is_int8_and_small():
    """It has the card's hash, and weights of 8 bits."""
    path = HERE / "models" / "edge.int8.onnx"
    card = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size <= 50_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert b"DequantizeLinear" in path.read_bytes()


def test_the_small_model_knows_its_machine():
    """It is sure of healthy windows, and calls a fault one; so the confidence falls with severity."""
    model, machine = OnnxModel(HERE / "models" / "edge.int8.onnx"), Machine(seed=9)
    fine = bands(machine.record(40, windows=16))
    assert fine.shape == (16, FEATURES)
    assert np.mean([well(row) > 0.8 for row in model.run(list(fine))]) >= 0.75
    for kind in KINDS[1:]:
        falls = [
            np.median([odds(row) for row in model.run(list(bands(machine.record(40, severities={kind: s}))))])
            for s in (0, 0.3, 1)
        ]
        assert falls[0] < falls[1] < falls[2], kind
        assert falls[2] > 5


def test_the_larger_model_names_faults_of_a_machine_that_it_never_saw():
    """And the small one's answer, sent along, counts for and against `healthy`."""
    machine = Machine(seed=9)
    right = [
        KINDS[diagnose(window, None).argmax()] == kind
        for kind in KINDS
        for window in machine.record(40, severities={kind: 0.3} if kind != "healthy" else {})
    ]
    assert np.mean(right) >= 0.9
    window = machine.record(40)[0]
    plain, sure, unsure = (diagnose(window, edge) for edge in (None, {"outputs": [9, 0, 0]}, {"outputs": [0, 9, 0]}))
    assert unsure[0] < plain[0] < sure[0]
    assert (plain[1:] == sure[1:]).all()


def test_the_small_model_is_trained_on_a_machine_of_ones_own(tmp_path, monkeypatch):
    """By recordings in a file; too few are refused in a line."""
    monkeypatch.setattr(train, "MODELS", tmp_path)
    monkeypatch.setattr(train, "STEPS", 300)
    own = Machine(unit=7)
    np.save(tmp_path / "own.npy", np.concatenate([own.record(-n / 2).reshape(-1, 3) for n in range(1, 61)]))
    train.main(str(tmp_path / "own.npy"))
    model = OnnxModel(tmp_path / "edge.int8.onnx")
    fine, broken = (own.record(40, severities=wrong) for wrong in ({}, {"outer race": 0.5}))
    assert np.median([odds(row) for row in model.run(list(bands(fine)))]) < 0
    assert np.median([odds(row) for row in model.run(list(bands(broken)))]) > 3
    np.save(tmp_path / "few.npy", own.record(1).reshape(-1, 3))
    with pytest.raises(SystemExit, match="has 4 windows: at least 200"):
        train.main(str(tmp_path / "few.npy"))


def test_alarms_take_most_windows_and_late_answers_correct_them():
    """One odd window is no alarm, `attention` is none, and a late answer may raise one."""
    alarms = Alarms()
    for n in range(LOOKED_AT):
        alarms.note(str(n), "fault" if n < RAISED_BY - 1 else "attention")
    assert alarms.look(1) is None
    alarms.correct("15", "looseness")
    alarms.correct("gone", "looseness")
    assert alarms.look(2) == (2, "looseness")
    assert alarms.look(3) is None
    for n in range(LOOKED_AT):
        alarms.note(f"later {n}", "normal")
    assert (alarms.look(4), alarms.now, len(alarms.raised)) == (None, None, 1)


def test_an_alarm_that_went_off_without_a_link_gets_its_name_later(caplog):
    """By late answers and by new ones; it is logged and counted anew, and the report keeps what was known when it went off."""
    registry, alarms = CollectorRegistry(), Alarms()
    gauge = Gauge("alarm", "1 while it is on.", ["kind"], registry=registry)

    def look(at_h):
        before = alarms.now
        alarms.look(at_h)
        live.told(gauge, before, alarms.now)
        return {sample.labels["kind"]: sample.value for family in registry.collect() for sample in family.samples}

    for n in range(LOOKED_AT):
        alarms.note(str(n), "fault")
    assert look(1) == {"unknown": 1}
    assert look(2) == {"unknown": 1}
    alarms.correct("15", "looseness")
    assert look(3) == {"looseness": 1}
    assert (alarms.now, alarms.raised) == ((1, "looseness"), [(1, "unknown")])
    assert look(4) == {"looseness": 1}
    for n in range(LOOKED_AT):
        alarms.note(f"later {n}", "normal")
    assert look(5) == {}
    assert [record.getMessage() for record in caplog.records] == ["alarm: unknown", "alarm: looseness", "the alarm is over"]


def test_metrics_are_for_this_machine(monkeypatch):
    """A name that was made to lead here is refused, and who says nothing does not stay."""
    with live.scraped(None, 0) as url:
        for host, status in (
            ("evil.example", 403),
            ("evil.example:9108", 403),
            ("", 403),
            ("localhost:1", 404),
            ("127.0.0.1", 404),
        ):
            with pytest.raises(HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(url + "/none", headers={"Host": host}), timeout=LONG)
            refused.value.close()
            assert refused.value.code == status, host
    monkeypatch.setattr(loopback, "SILENT_S", 0.1)
    with live.scraped(None, 0) as url, closing(socket.create_connection(("127.0.0.1", urlsplit(url).port), LONG)) as silent:
        assert silent.recv(1) == b""


def test_a_port_that_is_taken_and_one_that_is_none_are_refused_in_a_line():
    """And say what to do."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        for port in (taken.getsockname()[1], 99999):
            with pytest.raises(SystemExit, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*choose another --port"):
                live.scraped(None, port).__enter__()


def test_the_larger_model_ends_with_its_parent():
    """Also with one that is killed."""
    code = "import simulate, time\nwith simulate.served() as url: print(url, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        port = urlsplit(process.stdout.readline().strip()).port
        socket.create_connection(("127.0.0.1", port), LONG).close()
        process.kill()

    def ended():
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) != 0

    until(ended, "its port is free")


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """`live.run` in this process, with a folder of its own and a service manager, whose socket this is."""
    monkeypatch.setattr(live, "logged", lambda: None)
    monkeypatch.setenv("EDGEROUTE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored below nohup
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as one:
        one.bind(str(tmp_path / "notify"))
        one.setblocking(False)
        yield one
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_without_its_source_the_service_is_not_ready(manager):
    """So the service manager sees that its start failed."""
    with pytest.raises(SystemExit, match="cannot be read"):
        live.run("none.npy", port=0)
    with pytest.raises(BlockingIOError):
        manager.recv(99)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP, None])
def test_signals_do_not_break_its_close(manager, monkeypatch, told):
    """Neither a second one, nor one that comes when the source has ended."""
    closed = []

    class Signalled(Router):
        def close(self):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            super().close()
            closed.append(True)

    def source(_):
        yield Machine().record(1)
        if told:
            signal.raise_signal(told)

    monkeypatch.setattr(live, "Router", Signalled)
    monkeypatch.setattr(live, "recordings", source)
    with pytest.raises(SystemExit) if told else nullcontext():
        live.run("", every_s=0, port=0)
    assert closed == [True]
    assert manager.recv(99).startswith(b"READY=1")


# ---------------------------------------------------------------------------------------------------------------- sensors
def test_recordings_of_files_and_pipes(tmp_path):
    """Counts and g, with and without a line of names, are the same recordings; what is no recording is refused in a line."""
    samples = Machine().record(1).reshape(-1, 3)
    np.save(tmp_path / "counts.npy", np.concatenate([samples, samples, samples[:5]]))
    np.savetxt(tmp_path / "g.csv", samples * 0.0039, delimiter=",", header="x,y,z", comments="")
    np.savetxt(tmp_path / "plain.csv", samples * 0.0039, delimiter=",")
    assert [len(list(recordings(str(tmp_path / name)))) for name in ("counts.npy", "g.csv", "plain.csv")] == [2, 1, 1]
    for name in ("counts.npy", "g.csv", "plain.csv"):
        first = next(recordings(str(tmp_path / name)))
        assert (first.dtype, (first.reshape(-1, 3) == samples).all()) == (np.int16, True)
    np.savetxt(tmp_path / "negative.csv", -samples * 0.0039, delimiter=",", encoding="utf-8-sig")
    assert samples[0, 0] > 0
    assert (next(recordings(str(tmp_path / "negative.csv"))).reshape(-1, 3) == -samples).all()

    np.save(tmp_path / "short.npy", samples[:-1])
    np.save(tmp_path / "nan.npy", np.full((SAMPLES, 3), np.nan))
    (tmp_path / "text.csv").write_text("x,y,z\na,b,c\n")
    (tmp_path / "other.wav").write_bytes(b"")
    np.save(tmp_path / "complex.npy", samples.astype(complex))
    np.save(tmp_path / "words.npy", samples.astype(str))
    np.save(tmp_path / "objects.npy", samples.astype(object))
    np.savez(tmp_path / "several.npz", samples)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    (tmp_path / "text.npy").write_text("x,y,z\n1,2,3\n")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savetxt(tmp_path / "semicolons.csv", samples[:9], delimiter=";")
    refused = {
        "short.npy": "8192 or more", "nan.npy": "no numbers", "complex.npy": "type complex128: samples are", "words.npy": "type <U",
        "objects.npy": "cannot be read", "several.npy": "an array by numpy.save", "text.npy": "an array by numpy.save",
        "empty.npy": "an array by numpy.save", "text.csv": "cannot be read", "semicolons.csv": "commas in between",
        "other.wav": "no device", "none.npy": "cannot be read: .*No such file",
    }  # fmt: skip
    for name, text in refused.items():
        with pytest.raises(SystemExit, match=text) as why:
            next(recordings(str(tmp_path / name)))
        assert "allow_pickle" not in str(why.value) or name == "objects.npy"


def test_of_a_pipe_the_newest_recording_is_given_and_its_end_is_an_error(tmp_path):
    """What comes while nobody looks neither waits in the pipe nor ends up beside newer samples."""
    os.mkfifo(pipe := tmp_path / "pipe")
    begun, written, looked = threading.Event(), threading.Event(), threading.Event()

    def uniform(recording):
        assert recording.min() == recording.max(), "it has samples of two recordings"
        return recording.max()

    def write():
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as samples:
            for n in range(1, 21):
                samples.write(np.full((SAMPLES, 3), n, "<i2").tobytes())
                begun.wait(LONG)
            written.set()
            looked.wait(LONG)
            samples.write(b"cut off")

    writer = threading.Thread(target=write)
    writer.start()
    given = recordings(str(pipe))
    assert (next(given) == np.ones((4, 2048, 3))).all()
    begun.set()
    assert written.wait(LONG), "nobody reads while nobody looks"
    values = [uniform(next(given))]
    looked.set()
    with pytest.raises(SystemExit, match="pipe ended: it gives no more samples") as ended:
        values.extend(map(uniform, given))
    assert isinstance(ended.value.code, str)  # with which Python's exit status is 1
    assert values[0] > 10  # all but the one or two that may still be in the pipe were read
    assert values[-1] == 20
    writer.join(LONG)


def test_what_a_device_gathered_before_is_left_out_and_an_error_is_its_end():
    """A kernel's buffer holds a recording of whenever it filled up."""
    one, other = (np.full((SAMPLES, 3), value, "<i2").tobytes() for value in (1, 2))
    assert Newest(io.BytesIO(one), skipped=1).take() is None
    newest = Newest(io.BytesIO(one + other), skipped=1)
    assert (newest.take() == other, newest.take(), newest.why) == (True, None, "")

    class Unplugged(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, _):
            raise OSError(errno.ENODEV, "No such device")

    unplugged = Newest(io.BufferedReader(Unplugged()))
    assert (unplugged.take(), unplugged.why) == (None, " ([Errno 19] No such device)")
