"""Watches a machine. Four weeks of a simulated one, in a minute or a few, and what came of it: `python main.py`.

python main.py --live             real time, with metrics; the larger model: edgeroute serve diagnosis:model
python main.py --page             a live page with two buttons: for the link, and for the bearing
python main.py --recorded         what the method finds in recordings of four real motors
python main.py --svg lead.svg     the picture
"""

from __future__ import annotations

import argparse
from pathlib import Path

from simulate import Report, run

LONGEST_S = 86400
DAYS = 0.1, 3650


def main() -> None:
    """Read the options, and run what they name: the weeks and their report, the page, the recorded motors, the live service."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=28, help="simulated days, one fault in each quarter of them; 28")
    parser.add_argument("--seed", type=int, default=0, help="of faults, outages and noise; 0")
    parser.add_argument("--svg", type=Path, help="write the picture there, too")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--page", action="store_true", help="a live page at 200 times real time, until Ctrl-C")
    which.add_argument("--recorded", action="store_true", help="what the method finds in recordings of real motors")
    which.add_argument("--live", action="store_true", help="watch in real time, until Ctrl-C")
    parser.add_argument("--source", default="machine", help="with --live: machine, a .npy or .csv file, a device")
    parser.add_argument("--every", type=float, default=10.0, help="with --live: seconds between recordings; 10")
    parser.add_argument("--port", type=int, help="on loopback, of the metrics (9108) or of the page (a free one)")
    given = parser.parse_args()
    if not 0 <= given.every <= LONGEST_S:
        parser.error(f"--every takes seconds, 0 to {LONGEST_S}")
    if not DAYS[0] <= given.days <= DAYS[1]:
        parser.error(f"--days takes {DAYS[0]:g} to {DAYS[1]:g}")
    if given.svg is not None and (given.svg.is_dir() or not given.svg.parent.is_dir()):
        parser.error(f"--svg takes a file in a folder that is there, not {given.svg}")
    if given.recorded:
        from recorded import show as show_recorded

        show_recorded()
        return
    if given.page:
        from page import run as show_page

        show_page(given.port or 0)
        return
    if given.live:
        from live import run as watch

        watch(given.source, every_s=given.every, port=9108 if given.port is None else given.port)
        return
    report = run(given.days, given.seed, progress=True)
    show(report)
    if given.svg is not None:
        from chart import svg

        given.svg.write_text(svg(report))


def show(report: Report) -> None:
    """Print the report of the simulated weeks: alarms by set-up, false ones, and what became of the queue."""
    down = sum(end - start for start, end in report.outages)
    away = f"{len(report.outages)} outages of the link, {down / 24 / report.days:.0%} of the time"
    print(f"{report.days:g} days, {report.windows:,} windows; {away}")
    weeks = report.well_days / 7
    print(f"the machine was well for {report.well_days:.1f} days ({weeks:.1f} weeks); an alarm in these is a false one\n")
    print(f"{'alarm before failure':22}" + "".join(f"{name:>24}" for name in report.arms))
    for i, fault in enumerate(report.faults):
        cells = []
        for arm in report.arms.values():
            alarm_h, named = arm.found[i]
            cells.append("none" if alarm_h is None else f"{fault.fails_h - alarm_h:.1f} h, {named}")
        print(f"{fault.kind + f', {fault.fails_h - fault.begins_h:.0f} h':22}" + "".join(f"{cell:>24}" for cell in cells))
    arms = report.arms.values()
    print(f"{'false alarms':22}" + "".join(f"{arm.false_alarms:>24}" for arm in arms))
    print(f"{'a week of these':22}" + "".join(f"{arm.false_alarms / weeks:>24.2f}" for arm in arms))
    print(f"{'windows answered':22}" + "".join(f"{arm.answered:>24,}" for arm in arms))
    print(f"{'MB sent':22}" + "".join(f"{arm.bytes_sent / 1e6:>24.2f}" for arm in arms))
    print(f"\nedgeroute: {report.deferred:,} windows deferred ({report.deferred / report.windows:.1%})")
    print(f"{report.queued:,} of them queued, at most {report.longest:,} at a time")
    print(f"{report.delivered:,} late answers handed over, {report.repeated} of them repeated, and {report.lost} lost")


if __name__ == "__main__":
    main()
