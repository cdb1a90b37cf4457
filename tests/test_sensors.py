"""What devices tell, from trees of their files; and trees that lie, hang or change while they are read."""

import json
import os
import re
import sys
import threading
import types
from pathlib import Path

import pytest
from both import LONG
from draws import draws
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeroute import DeviceSensors, Reading
from edgeroute.observe.device import kernel_files_and_cached_commands as sources
from edgeroute.observe.device.android_macos_windows import (
    Android,
    Others,
    parse_pmset_throttling,
)
from edgeroute.observe.device.kernel_files_and_cached_commands import Commands, Files
from edgeroute.observe.device.linux_load_memory_gpu import Load
from edgeroute.observe.device.power_draw_and_batteries import Battery
from edgeroute.observe.device_sensors_and_sampler import read

TREES = Path(__file__).parent / "device_trees"
DEVICES = ("pi4", "pi5", "orin", "laptop")


def tree(device):
    """(its files, what its programs print)."""
    found = json.loads((TREES / f"{device}.json").read_text(encoding="utf-8"))
    return found, found.pop("commands", {})


def plant(root, given):
    """Writes files below a root."""
    for name, text in given.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def device(root, commands=None, **options):
    """Sensors of a tree; a program that it does not have fails."""

    def run(*command):
        try:
            return commands[" ".join(command)]
        except KeyError:
            raise FileNotFoundError from None

    return DeviceSensors(root, run=None if commands is None else run, fresh_s=0, **options)


def settled(sensors):
    """A reading once its programs have answered."""
    sensors()
    sensors.commands.wait(LONG)
    return sensors()


KNOWN = {
    "pi4": Reading(temperature_c=61.342, memory_available=2913045 / 3884060, throttled=True, network=True),
    "pi5": Reading(
        battery=0.62, temperature_c=55.2, mains=True, cpu_pressure=0.0153, memory_pressure=0.0,
        memory_available=1 - (939524096 - 268435456) / 1073741824, throttled=False, power_w=2.17247454, network=True,
    ),
    "orin": Reading(
        temperature_c=58.75, cpu_pressure=0.124, memory_pressure=0.0325, memory_available=0.25, throttled=True, gpu=0.437,
        power_w=6.89472, network=False,
    ),
    "laptop": Reading(
        battery=0.4, temperature_c=52.0, mains=False, cpu_pressure=0.0, memory_pressure=0.0, memory_available=0.6,
        throttled=False, power_w=7.845, network=True, metered=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_what_a_device_tells(name, tmp_path):
    """Each value that it has, and a line for each that it does not have."""
    given, commands = tree(name)
    plant(tmp_path, given)
    sensors = device(tmp_path, commands)
    found = settled(sensors)
    for field, value in KNOWN[name]._asdict().items():
        assert getattr(found, field) == (value if value is None else pytest.approx(value, abs=1e-6)), field
    told = sensors.details()
    assert {field: one.value for field, one in told.items()} == found._asdict()
    for field, one in told.items():
        assert one.source, field
        assert "\n" not in one.source
    assert all(type(value) in {bool, float, type(None)} for value in found)


# ------------------------------------------------------------------------------------------------- battery and mains
def supply(name, **values):
    return {f"sys/class/power_supply/{name}/{key}": str(value) for key, value in values.items()}


def battery(name="BAT0", **values):
    return supply(name, **{"type": "Battery", "capacity": 42, **values})


@pytest.mark.parametrize(
    ("supplies", "charge", "mains"),
    [
        ({}, None, None),
        (battery(), 0.42, None),
        (battery(status="Unknown"), 0.42, None),
        (battery(status="Charging"), 0.42, True),
        (battery(status="Full"), 0.42, True),
        (battery(status="Not charging"), 0.42, True),
        (battery(status="Discharging"), 0.42, False),
        ({**battery(status="Discharging"), **supply("AC", type="Mains", online=1)}, 0.42, False),
        ({**battery(status="Unknown"), **supply("AC", type="Mains", online=1)}, 0.42, True),
        ({**battery(status="Unknown"), **supply("AC", type="Mains", online=0)}, 0.42, False),
        ({**battery(), **supply("A", type="USB", online=0), **supply("B", type="USB", online=1)}, 0.42, True),
        (supply("AC", type="Mains", online=1), None, True),
        (battery(present=0, status="Discharging"), None, None),
        (battery(scope="Device", status="Discharging"), None, None),
        (battery(scope="System"), 0.42, None),
        (battery(capacity=104), 1.0, None),
        (battery(capacity=700), None, None),
        (battery(capacity=-1), None, None),
        ({**battery("A", capacity=50), **battery("B", capacity=100)}, 0.75, None),
        ({**battery("A", capacity=50, energy_full=3e7), **battery("B", capacity=100, energy_full=1e7)}, 0.625, None),
        ({**battery("A", capacity=50, energy_full=3e7), **battery("B", capacity=100)}, 0.75, None),
        ({**battery("A", status="Charging"), **battery("B", status="Discharging")}, 0.42, False),
        (supply("B", type="Battery", energy_now=30, energy_full=40), 0.75, None),
        (supply("B", type="Battery", charge_now=30, charge_full=0), None, None),
        (supply("U", type="UPS", capacity=90, status="Discharging"), 0.9, False),
    ],
)
def test_charge_and_external_power(supplies, charge, mains, tmp_path):
    """Charging, discharging and unknown are told apart; a battery that discharges is not kept by what is plugged in."""
    plant(tmp_path, supplies)
    found = device(tmp_path)()
    assert found.battery == (None if charge is None else pytest.approx(charge))
    assert found.mains is mains


@pytest.mark.parametrize(
    ("values", "watts"),
    [
        ({"power_now": 5_000_000}, 5.0),
        ({"power_now": -5_000_000}, 5.0),
        ({"current_now": -1_000_000, "voltage_now": 12_000_000}, 12.0),
        ({"power_now": 0}, None),
        ({}, None),
    ],
)
def test_power_from_the_battery(values, watts, tmp_path):
    """While it discharges; what charges it is not what the device draws."""
    plant(tmp_path, battery(status="Discharging", **values))
    assert device(tmp_path)().power_w == watts
    plant(tmp_path, battery(status="Charging", **values))
    assert device(tmp_path)().power_w is None


def test_the_command(tmp_path, capsys, monkeypatch):
    """A line for each reading; in JSON null for what is not known."""
    from edgeroute.tools.cli import check_decide_sensors_commands as cli

    monkeypatch.setattr(cli, "BETWEEN_S", 0.0)
    plant(tmp_path, tree("laptop")[0])
    cli.sensors(root=tmp_path)
    printed = capsys.readouterr().out
    for line in (
        "battery .* 40.0 % .* 2 batteries",
        "temperature_c .* 52.0 C",
        "mains .* no ",
        "power_w .* 7.8. W",
        "gpu .* - .* no GPU",
    ):
        assert re.search(line, printed), line
    cli.sensors(root=tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told) == set(Reading._fields)
    assert told["battery"] == {"value": pytest.approx(0.4), "by": "2 batteries"}
    assert told["gpu"]["value"] is None


def test_a_battery_that_comes_later_is_found(tmp_path, monkeypatch):
    """Sensors are looked for again once a minute."""
    monkeypatch.setattr("edgeroute.observe.device_sensors_and_sampler.FIND_S", 0.0)
    sensors = device(tmp_path)
    assert sensors().battery is None
    plant(tmp_path, battery())
    assert sensors().battery == 0.42


# --------------------------------------------------------------------------------------------------- differences
def stat(user, idle, iowait=0, steal=0):
    return {"proc/stat": f"cpu  {user} 0 0 {idle} {iowait} 0 0 {steal} 0 0\ncpu0 1 0 0 1 0 0 0 0 0 0\n"}


def test_load_is_a_difference(tmp_path):
    """Waiting for a disk is idle, stolen time is used; counters that go back begin again."""
    sensors = device(tmp_path)

    def at(*counts):
        plant(tmp_path, stat(*counts))
        return sensors().cpu

    assert at(100, 100) is None
    assert at(175, 125) == 0.75
    assert at(176, 126) == 0.75, "too little time for another value"
    assert at(175 + 30, 125 + 20, 40, 10) == 0.4
    assert at(10, 10) is None
    assert at(20, 10) == 1.0
    plant(tmp_path, {"proc/stat": f"cpu  {'9' * 400} 0 0 1 0 0 0 0 0 0"})  # no float can hold it
    assert sensors().cpu is None
    plant(tmp_path, {"proc/stat": "cpu garbage"})
    assert sensors().cpu is None


def test_energy_of_the_processor_is_a_difference(tmp_path, monkeypatch):
    """The counter wraps around; a core's domain, the platform's and the same package by another interface are not added."""
    clock = [1000.0]
    monkeypatch.setattr("edgeroute.observe.device_sensors_and_sampler.monotonic", lambda: clock[0])
    given, _ = tree("laptop")
    rapl = "sys/class/powercap/intel-rapl:0/energy_uj"
    plant(tmp_path, {name: text for name, text in given.items() if "powercap" in name})
    sensors = device(tmp_path)

    def after(seconds, energy):
        clock[0] += seconds
        plant(tmp_path, {rapl: str(energy)})
        return sensors().power_w

    assert after(0, 262143000000) is None
    assert after(2.0, 262143000000 + 300000) == pytest.approx(0.15)
    assert after(2.0, 19671150) == pytest.approx((28850 + 19671150) / 2e6)
    assert after(3600.0, 5e9) is None, "it may have wrapped around twice"
    assert after(1.0, 5e9 + 7e6) == pytest.approx(7.0)
    (tmp_path / rapl).unlink()
    assert after(0, "") is None
    assert "no value" in sensors.details()["power_w"].source


def test_energy_that_only_root_may_read_is_unknown_and_says_so(tmp_path, monkeypatch):
    """The usual case on a laptop that is plugged in."""
    plant(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0", "sys/class/powercap/intel-rapl:0/energy_uj": "1"})
    really = os.open

    def denied(path, *args, **kwargs):
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return really(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    sensors = device(tmp_path)
    assert sensors().power_w is None
    assert sensors.details()["power_w"].source == "/sys/class/powercap/intel-rapl:0/energy_uj may be read by root alone"


def test_thermal_events_of_the_cores(tmp_path):
    """A counter that rises means throttled, until it rises no more."""
    path = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    sensors = device(tmp_path)
    seen = []
    for count in (17, 17, 19, 19, 3):
        plant(tmp_path, {path: str(count)})
        seen.append(sensors().throttled)
    assert seen == [None, False, True, False, None]


@pytest.mark.parametrize(
    ("bits", "now"), [("0", False), ("50000", False), ("50005", True), ("8", True), ("-1", None), ("x", None)]
)
def test_throttling_of_a_pi(bits, now, tmp_path):
    """The lowest four bits are now, those above since the boot: the line says both."""
    plant(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": bits})
    sensors = device(tmp_path)
    assert sensors().throttled is now
    said = sensors.details()["throttled"].source
    assert ("since the boot: under-voltage, throttled" in said) == bits.startswith("5000")


def test_a_frequency_limit_is_a_hint_and_no_reading(tmp_path):
    """It may be a setting, as nvpmodel's."""
    folder = "sys/devices/system/cpu/cpu0/cpufreq"
    plant(tmp_path, {f"{folder}/cpuinfo_max_freq": "2000000", f"{folder}/scaling_max_freq": "1500000"})
    sensors = device(tmp_path)
    assert sensors().throttled is None
    assert "cpu0 is limited to 75 % of its frequency" in sensors.details()["throttled"].source


# ------------------------------------------------------------------------------------------- power, GPU, heat, memory
def test_rails_without_a_whole_are_added(tmp_path):
    """As on an AGX Orin, which has two monitors. A rail that is not connected does not count, nor one that another one feeds."""
    for i, rails in enumerate((("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("NC", "VDDQ_VDD2_1V8AO", "NC"))):
        path = f"sys/class/hwmon/hwmon{i}"
        plant(tmp_path, {f"{path}/name": "ina3221"})
        for n, rail in enumerate(rails, 1):
            plant(tmp_path, {f"{path}/in{n}_label": rail, f"{path}/in{n}_input": "5000", f"{path}/curr{n}_input": "1000"})
    sensors = device(tmp_path)
    assert sensors().power_w == pytest.approx(15.0)
    assert sensors.details()["power_w"].source == "the sum of the rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"


@pytest.mark.parametrize(
    ("path", "text", "share"),
    [
        ("sys/devices/gpu.0/load", "1000", 1.0),
        ("sys/devices/platform/17000000.ga10b/load", "5", 0.005),
        ("sys/class/drm/card1/device/gpu_busy_percent", "37", 0.37),
        ("sys/class/devfreq/fb000000.gpu/load", "12@800000000Hz", 0.12),
        ("sys/devices/gpu.0/load", "1001", None),
        ("sys/devices/gpu.0/load", "-3", None),
        ("sys/class/devfreq/fb000000.gpu/load", "@800000000Hz", None),
    ],
)
def test_gpu_load(path, text, share, tmp_path):
    """In the units of each driver."""
    plant(tmp_path, {path: text})
    assert device(tmp_path)().gpu == share


def test_heat_by_sensors_where_there_are_no_zones(tmp_path):
    """A zone that is off says -273.2 degrees, or nothing."""
    plant(tmp_path, {"sys/class/hwmon/hwmon3/name": "k10temp", "sys/class/hwmon/hwmon3/temp1_input": "71250"})
    sensors = device(tmp_path)
    assert sensors().temperature_c == 71.25
    assert sensors.details()["temperature_c"].source == "the hottest sensor, k10temp"
    plant(tmp_path, {f"sys/class/thermal/thermal_zone{i}/temp": text for i, text in enumerate(("-273200", "41000", "off"))})
    assert device(tmp_path)().temperature_c == 41.0


def test_the_tightest_limit_of_a_control_group_counts(tmp_path):
    """Of the group and of those it is in; cached files do not count as used."""
    plant(tmp_path, {
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n", "proc/self/cgroup": "1:name=x:/y\n0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "1000", "sys/fs/cgroup/a/memory.current": "700",
        "sys/fs/cgroup/a/memory.stat": "inactive_file 100",
        "sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/b/memory.current": "700",
    })  # fmt: skip
    sensors = device(tmp_path)
    assert sensors().memory_available == pytest.approx(0.4)
    assert sensors.details()["memory_available"].source == "the control group's limit, /sys/fs/cgroup/a/memory.max"
    plant(tmp_path, {"sys/fs/cgroup/a/memory.current": "1500"})
    assert sensors().memory_available == 0.0
    plant(tmp_path, {"proc/self/cgroup": "0::/../../etc"})
    assert device(tmp_path)().memory_available == 0.9


def test_routes(tmp_path):
    """A default route by a link with a carrier, or any other that leads away; neither link-local nor rejected ones."""
    head = "Iface\tDestination\tGateway\tFlags\n"
    route, six, carrier = "proc/net/route", "proc/net/ipv6_route", "sys/class/net/eth0/carrier"
    zeros = "0" * 32

    def network(**given):
        for path in (route, six, carrier):
            (tmp_path / path).unlink(missing_ok=True)
        plant(tmp_path, {{"v4": route, "v6": six, "link": carrier}[name]: text for name, text in given.items()})
        return device(tmp_path)().network

    def six_line(destination, flags, interface):
        return f"{destination} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 {flags} {interface}\n"

    assert network() is None
    assert network(v4=head) is False
    assert network(v4=head + "eth0\t00000000\t0101A8C0\t0003\n") is True
    assert network(v4=head + "eth0\t00000000\t0101A8C0\t0003\n", link="1") is True
    assert network(v4=head + "eth0\t00000000\t0101A8C0\t0003\n", link="0") is False
    assert network(v4=head + "eth0\t00000000\t0101A8C0\t0201\n") is False
    assert network(v4=head + "eth0\t0001A8C0\t00000000\t0001\n") is True
    assert network(v4=head + "eth0\t0000FEA9\t00000000\t0001\n") is False
    assert network(v4=head + "lo\t0000007F\t00000000\t0001\n") is False
    assert (
        network(v6=six_line("fe80" + zeros[4:], "00000001", "eth0") + six_line("ff00" + zeros[4:], "00000001", "eth0")) is False
    )
    assert network(v6=six_line(zeros, "00200200", "lo")) is False
    assert network(v6=six_line("2001" + zeros[4:], "00000001", "eth0")) is True


@pytest.mark.parametrize(
    ("printed", "metered"), [("u 1", True), ("u 3", True), ("u 2", False), ("u 0", None), ("", None), ("s 1", None)]
)
def test_a_metered_link(printed, metered, tmp_path):
    """By NetworkManager, if it runs."""
    given, commands = tree("laptop")
    plant(tmp_path, given)
    assert settled(device(tmp_path, dict.fromkeys(commands, printed))).metered is metered
    assert settled(device(tmp_path)).metered is None, "no program is run for a tree"


# ------------------------------------------------------------------------------------------------------ programs
def test_a_program_that_hangs_holds_up_no_reading(tmp_path):
    """Its values are unknown until it has answered, and it is started once."""
    given, commands = tree("pi5")
    plant(tmp_path, given)
    gate, started = threading.Event(), []

    def run(*command):
        started.append(command)
        assert gate.wait(LONG)
        return commands[" ".join(command)]

    sensors = DeviceSensors(tmp_path, run=run, fresh_s=0)
    try:
        for _ in range(5):
            found = sensors()
            assert (found.throttled, found.power_w, found.temperature_c) == (None, None, 55.2)
    finally:
        gate.set()
    sensors.commands.wait(LONG)
    found = sensors()
    assert found.throttled is False
    assert found.power_w is not None
    assert sorted(started) == [("vcgencmd", "get_throttled"), ("vcgencmd", "pmic_read_adc")]


def test_a_driver_that_hangs_holds_up_no_other_thread(tmp_path, monkeypatch):
    """The last reading is what the others get."""
    monkeypatch.setattr("edgeroute.observe.device_sensors_and_sampler.PATIENCE_S", 0.01)
    plant(tmp_path, battery())
    sensors = device(tmp_path)
    last = sensors()
    gate, began, reads = threading.Event(), threading.Event(), Battery.read

    def hangs(part):
        began.set()
        assert gate.wait(LONG)
        return reads(part)

    monkeypatch.setattr(Battery, "read", hangs)
    thread = threading.Thread(target=sensors)
    thread.start()
    try:
        assert began.wait(LONG)
        assert sensors() is last
        assert sensors.details()["battery"].value == 0.42
    finally:
        gate.set()
        thread.join(LONG)


def test_a_program_that_fails_is_asked_again_later():
    """What it told before is not believed any more."""
    outputs = iter(["one", OSError("away"), "three"])

    def run(*_):
        output = next(outputs)
        if isinstance(output, Exception):
            raise output
        return output

    commands, seen = Commands(run), []
    for now in (0.0, 5.0, 10.0, 20.0):
        seen.append(commands.output("x", every_s=10.0, now=now))
        commands.wait(LONG)
    assert seen == [None, "one", "one", ""]
    assert commands.output("x", every_s=10.0, now=21.0) == "three"
    assert Commands(None).output("x", every_s=1.0, now=0.0) == ""


def test_programs_of_the_system(monkeypatch):
    """A real one; one that is not there, one that fails and one that takes too long are errors of the system."""
    assert sources.run_program("sh", "-c", "echo $LC_ALL") == "C\n"
    with pytest.raises(OSError, match="there is no program"):
        sources.run_program("no-such-program")
    with pytest.raises(OSError, match="exit status 3"):
        sources.run_program("sh", "-c", "exit 3")
    monkeypatch.setattr(sources, "TIMEOUT_S", 0.01)
    with pytest.raises(OSError, match="timed out"):
        sources.run_program("sleep", "30")


# ------------------------------------------------------------------------------------------------- hostile trees
def _nothing(path):
    path.unlink()


def _folder(path):
    path.unlink()
    path.mkdir()


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _loop(path):
    path.unlink()
    path.symlink_to(path.name)


def _zeros(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def _writes(data):
    return lambda path: path.write_bytes(data)


HOSTILE = {
    "vanished": _nothing, "a folder": _folder, "a pipe": _pipe, "a loop of links": _loop, "endless zeros": _zeros,
    "empty": _writes(b""), "garbage": _writes(bytes(range(256)) * 3), "huge": _writes(b"9" * 3_000_000),
    "negative": _writes(b"-7\n"), "nan": _writes(b"nan"), "inf": _writes(b"inf\n"), "zero": _writes(b"0"),
    "many lines": _writes(b"some avg10=\ncpu\n0::/\n\n::\n" * 1000), "words": _writes(b"cpu 1 2\nMemTotal: x kB\nsome avg10=x\n"),
}  # fmt: skip


def plausible(found):
    """Each value is unknown, or one that there can be."""
    for name in ("battery", "cpu", "cpu_pressure", "memory_available", "memory_pressure", "gpu"):
        value = getattr(found, name)
        assert value is None or 0 <= value <= 1, (name, value)
    assert found.temperature_c is None or -60 <= found.temperature_c <= 150
    assert found.power_w is None or 0 <= found.power_w < float("inf")
    assert {found.mains, found.throttled, found.network, found.metered} <= {True, False, None}


def in_time(function):
    """Its result; a reading that waits for something fails the test, and does not hang it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(LONG)
    assert results, "it raised, or it hangs"
    return results[0]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pipes in folders")
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("how", HOSTILE)
def test_a_tree_that_lies(how, name, tmp_path):
    """All files at once, before the first reading and after it: no reading waits or raises."""
    given, commands = tree(name)
    for found_before in (False, True):
        root = tmp_path / str(found_before)
        plant(root, given)
        sensors = device(root, dict.fromkeys(commands, "\0garbage=0x\n"))
        if found_before:
            in_time(sensors)
        for path in given:
            HOSTILE[how](root / path)
        for _ in range(2):
            plausible(in_time(sensors))
        for one in sensors.details().values():
            assert one.source


def test_a_root_that_is_not_there_or_is_no_folder(tmp_path):
    """Everything is unknown."""
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "none", tmp_path / "file", "\0"):
        assert DeviceSensors(root)() == Reading()


def test_a_folder_with_very_many_entries_is_looked_at_in_part(tmp_path, monkeypatch):
    """So looking for sensors is bounded."""
    monkeypatch.setattr(sources, "ENTRIES", 5)
    plant(tmp_path, {f"sys/class/thermal/thermal_zone{i}/temp": "40000" for i in range(30)})
    assert len(Files(tmp_path).match("sys/class/thermal/*")) == 5
    assert device(tmp_path)().temperature_c == 40.0


@settings(max_examples=draws(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_text_in_any_file(tmp_path, data):
    """Random texts, near those that there are: no reading raises, and what it has is plausible."""
    name = data.draw(st.sampled_from(DEVICES))
    given, commands = tree(name)
    root = tmp_path / name
    if not root.exists():
        plant(root, given)
    path = data.draw(st.sampled_from(sorted(given)))
    text = data.draw(st.binary(max_size=60) | st.from_regex(rb"-?[0-9]{1,30}(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
    lines = given[path].encode().split(b" ")
    place = data.draw(st.integers(0, len(lines)))
    (root / path).write_bytes(b" ".join([*lines[:place], text, *lines[place + 1 :]]))
    outputs = {command: data.draw(st.text(max_size=80) | st.just(output)) for command, output in commands.items()}
    try:
        plausible(settled(device(root, outputs)))
    finally:
        (root / path).write_text(given[path])


# -------------------------------------------------------------------------------------------------- other systems
def test_this_machine_tells_something_or_nothing():
    """Whatever it has, reading it does not fail; a reading that is a moment old is returned again."""
    plausible(read())
    sensors = DeviceSensors(fresh_s=1e6)
    assert sensors() is sensors()


def test_psutil_where_there_is_no_sysfs():
    """It has load and memory on every system."""
    pytest.importorskip("psutil")
    others = Others(Commands(None))
    assert others.read(0.0)["cpu"].value is None
    told = others.read(1.0)
    assert 0 <= told["cpu"].value <= 1
    assert 0 < told["memory_available"].value <= 1
    plausible(Reading(**{name: one.value for name, one in told.items()}))


def test_psutil_that_is_missing_or_fails(monkeypatch):
    """Nothing is known then, and the line says what to do."""
    monkeypatch.setattr("edgeroute.observe.device.android_macos_windows.import_late", lambda _: __import__("no_such_module"))
    assert Others(Commands(None)).read(0.0)["cpu"].source == "pip install psutil, which reads it"

    class Broken:
        def sensors_battery(self):
            return types.SimpleNamespace(percent=50, power_plugged=None)

        def cpu_percent(self, _):
            raise OSError("no")

    monkeypatch.setattr("edgeroute.observe.device.android_macos_windows.import_late", lambda _: Broken())
    told = Others(Commands(None)).read(0.0)
    assert (told["battery"].value, told["mains"].value, told["cpu"].source) == (0.5, None, "psutil failed: OSError")


def test_what_macos_prints():
    """Of `pmset -g therm`."""
    assert parse_pmset_throttling("CPU_Speed_Limit \t= 60\n")["throttled"].value is True
    assert parse_pmset_throttling("CPU_Speed_Limit \t= 100\n")["throttled"].value is False
    assert parse_pmset_throttling("Note: No thermal warning level has been recorded\n")["throttled"].value is None


def test_androids_battery(monkeypatch):
    """By Chaquopy's Java, or by Termux."""
    commands = Commands(lambda *_: '{"percentage": 41, "plugged": "UNPLUGGED", "status": "DISCHARGING", "temperature": 28.1}')
    android = Android(commands)
    assert android.read(0.0)["battery"].source == "termux-battery-status has not answered yet"
    commands.wait(LONG)
    told = android.read(1.0)
    assert (told["battery"].value, told["mains"].value) == (0.41, False)
    assert Android(Commands(None)).read(0.0)["battery"].value is None

    class Manager:
        percent = 73

        def getIntProperty(self, which):  # noqa: N802 - Java's name
            return {4: self.percent}[which]

        def isCharging(self):  # noqa: N802 - likewise
            return True

    application = types.SimpleNamespace(getSystemService=lambda name: {"batterymanager": Manager()}[name])
    platform = types.SimpleNamespace(getApplication=lambda: application)
    python = types.ModuleType("com.chaquo.python")
    python.Python = types.SimpleNamespace(getPlatform=lambda: platform)
    for name in ("com", "com.chaquo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "com.chaquo.python", python)
    told = android.read(2.0)
    assert (told["battery"].value, told["mains"].value) == (0.73, True)
    Manager.percent = -(2**31)  # it does not know
    assert android.read(3.0)["battery"].source == "termux-battery-status"


def test_differences_of_many_threads(tmp_path):
    """Readings of one object are taken one after the other."""
    plant(tmp_path, stat(100, 100))
    assert Load(Files(tmp_path)).read()["cpu"].value is None
    sensors, found = device(tmp_path), []

    def many():
        found.extend(sensors() for _ in range(50))

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(found) == 200
