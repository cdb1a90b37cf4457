"""The report of a fleet: its sums against the digests', its intervals against known ones, its page, and hostile names in it."""

from __future__ import annotations

import json
import re
from datetime import date, datetime, timedelta
from html.parser import HTMLParser

import fleets
import numpy as np
import pytest
from both import flat
from commands import cli

from edgeroute import Cache, Function, Router, Trace
from edgeroute.fleet.device_request_counts import Fleet
from edgeroute.tools.fleet.fleet_sums_and_forecast import forecast, low_end, quantile

FIRST = fleets.FIRST


def change(device, day, shares):
    """Device 7 defers nearly all; 9 is degraded often."""
    if device == 7:
        shares["deferral"] = 0.9
    if device == 9:
        shares["degraded"] = 0.1


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A store of 40 devices and 16 days, one of which is silent from the 10th on; its digests, and the folder."""
    pytest.importorskip("duckdb")
    folder = tmp_path_factory.mktemp("fleet") / "store"
    silent, until = fleets.device_id(3), str(FIRST + timedelta(days=9))
    digests = [d for d in fleets.random_fleet(40, 16, change=change) if d.device != silent or d.day < until]
    return digests, fleets.write_store(folder, digests)


def run(folder, *options):
    """`edgeroute fleet report --json` -> the exit code and the report."""
    code, out, err = cli("fleet", "report", folder, "--json", *options)
    assert not err
    return code, json.loads(out)


@pytest.mark.matrix
def test_sums_are_those_of_the_digests(fleet):
    """In total, by model, by day and by week; with --days of the newest days alone."""
    digests, folder = fleet
    _, report = run(folder)
    rows = [(d, d.groups[row[0]], row) for d in digests for row in d.requests]
    assert report["total"]["requests"] == sum(row[2] for *_, row in rows)
    assert report["total"]["usd"] == pytest.approx(sum(row[7] for *_, row in rows) / 1e6)
    models = {part["name"]: part["deferred"] for part in report["parts"]["model"]}
    assert models == {model: sum(row[3] for _, group, row in rows if group[0] == model) for model in fleets.MODELS}
    assert [part["devices"] for part in report["parts"]["week"]] == [40, 40, 39]
    assert sum(part["failed"] for part in report["parts"]["week"]) == sum(day["failed"] for day in report["days"])
    _, newest = run(folder, "--days", 2)
    last = str(FIRST + timedelta(days=14))
    assert newest["total"]["requests"] == sum(row[2] for d, _, row in rows if d.day >= last)


@pytest.mark.matrix
def test_devices_unlike_the_others_are_named(fleet):
    """And a silent one; none of those that are usual for their site."""
    _, report = run(fleet[1])
    assert {(o["device"], o["measure"]) for o in report["worst"]} == {
        (fleets.device_id(7), "deferred"),
        (fleets.device_id(9), "degraded"),
    }
    assert [device for device, *_ in report["missing"]] == [fleets.device_id(3)]


@pytest.mark.matrix
@pytest.mark.parametrize(("budget", "code", "verdict"), [(1e6, 0, "within"), (1, 4, "spent"), (0, 4, "spent")])
def test_the_budget_decides_the_exit_code(fleet, budget, code, verdict):
    """It is compared with the expected end of the month."""
    done, report = run(fleet[1], "--budget", budget)
    assert (done, report["forecast"]["verdict"]) == (code, verdict)


@pytest.mark.matrix
def test_a_day_that_has_not_come_in_does_not_lower_the_forecast(fleet, tmp_path):
    """Its devices have yet to send: it is named, and expected to cost what other days do."""
    digests, folder = fleet
    _, whole = run(folder)
    last = max(d.day for d in digests)
    late = fleets.write_store(tmp_path / "store", [d for i, d in enumerate(digests) if d.day < last or i % 2])
    _, report = run(late)
    assert report["incomplete"] == [last]
    assert report["forecast"]["expected"] == pytest.approx(whole["forecast"]["expected"], rel=0.03)


@pytest.mark.matrix
def test_digests_are_collected_first(tmp_path):
    """So a folder that devices send to is reported as it is; one without any is an error."""
    fleets.put(tmp_path, fleets.random_fleet(3, 2))
    assert run(tmp_path)[1]["total"]["devices"] == 3
    (tmp_path / "empty").mkdir()
    code, _, err = cli("fleet", "report", tmp_path / "empty")
    assert (code, err.count("\n")) == (1, 1)


@pytest.mark.matrix
def test_a_policy_has_the_name_under_which_most_report_it(tmp_path):
    """Not that of the ring which left it for another on the last day: its digests have the new name for all of their hours."""
    digests = [
        d._replace(signed="shop-2" if number >= 14 and number % 7 < 2 else "shop-1")
        for number, d in enumerate(fleets.random_fleet(7, 3))
    ]
    fleets.put(tmp_path, digests)
    assert {part["name"] for part in run(tmp_path)[1]["parts"]["policy"]} == {"shop-1 aaaaaaaaaaaa", "shop-1 bbbbbbbbbbbb"}


@pytest.mark.matrix
def test_a_store_into_which_nothing_comes_is_old(tmp_path, monkeypatch):
    """A collection that stopped is no quiet fleet: the report says how old its newest digest is; by its own days none is missing."""
    digests = list(fleets.random_fleet(3, 4))
    store = fleets.write_store(tmp_path / "store", digests)
    day = datetime.fromisoformat(f"{digests[-1].day}T12:00:00+00:00")
    for later, old in ((1, False), (14, True)):
        monkeypatch.setattr("edgeroute.tools.fleet.fleet_sums_and_forecast.now", (day + timedelta(days=later)).timestamp)
        code, _, err = cli("fleet", "report", store)
        assert (code, "14 days ago" in err) == (0, old), err


@pytest.mark.matrix
def test_traces_and_digests_of_the_same_requests_are_the_same_report(tmp_path):
    """Whatever a request was: kept, deferred, degraded, of the cache or a batch; by model, policy and site; as JSON or Parquet."""
    (tmp_path / "sent").mkdir()

    def cloud(x):
        if x < 0:
            raise OSError("away")
        return "large"

    policy = {"threshold": 0.5, "offline": "edge", "cache": Cache(), "state": tmp_path / "state"}
    told, trace = Fleet(str(tmp_path / "sent"), site="plant-7"), Trace(tmp_path / "traces" / "a.jsonl")
    priced = Function(cloud, usd_per_call=0.25)
    with Router(lambda x: ("small", abs(x)), priced, **flat(parts=[told], trace=trace, **policy)) as router:
        for x in (0.9, 0.8, 0.9, 0.1, 0.2, 0.1, -0.3, 0.7):
            router.infer(x)
        router.infer_many([0.95, 0.3, 0.4])
        router.infer(0.6, data_class="private")
        assert told.tell()
    assert cli("trace", "convert", tmp_path / "traces", tmp_path / "parquet")[0] == 0
    reports = [run(tmp_path / "sent")[1]]
    for folder in ("traces", "parquet"):
        code, out, err = cli("fleet", "report", tmp_path / folder, "--json")
        assert (code, err.count("\n")) == (0, 1), err
        reports.append(json.loads(out))
    parts = [
        {
            (by, part["name"], *(part[key] for key in ("requests", "deferred", "degraded", "usd")))
            for by in report["parts"]
            for part in report["parts"][by]
        }
        for report in reports
    ]
    assert parts[0] == parts[1] == parts[2]
    assert reports[0]["total"]["usd"] == pytest.approx(0.25 * 5)  # a call that failed is paid, too
    assert reports[0]["total"]["latencies"] == reports[1]["total"]["latencies"]
    assert {("site", "plant-7")} == {part[:2] for part in parts[1] if part[0] == "site"}
    assert all(":" in part[1] and part[1][-1] != ":" for part in parts[1] if part[0] == "model")


@pytest.mark.matrix
def test_a_traces_sample_counts_for_all_requests(tmp_path):
    """Of 800 requests about 200 are in the trace, and about 800 in the report, with their costs and times."""
    priced = Function(lambda x: "large", usd_per_call=0.25)
    with Router(lambda x: ("small", x), priced, threshold=0.5, trace=Trace(tmp_path / "in" / "a.jsonl", sample=0.25)) as router:
        for _ in range(200):
            router.infer(0.9)
            router.infer_many([0.1, 0.2, 0.9])
    code, out, err = cli("fleet", "report", tmp_path / "in", "--json")
    assert code == 0, err
    total = json.loads(out)["total"]
    assert 300 < total["requests"] < 1300
    assert total["requests"] % 4 == 0
    assert total["usd"] == pytest.approx(0.25 * total["deferred"])
    assert sum(total["latencies"]) == total["requests"]


@pytest.mark.matrix
@pytest.mark.parametrize("sample", [0.4, 0.7, 1.0])
def test_a_sample_of_a_request_an_hour_counts_for_all(tmp_path, sample):
    """Each record counts as 2.5 or 1.4 requests: rounded hour by hour, 1,000 of them were 1,500, or 1,000."""
    traced = []
    with Router(lambda x: ("small", 0.1), lambda x: "large", threshold=0.5, trace=Trace(traced.append)) as router:
        router.infer(1)
    (record,) = traced
    (tmp_path / "in").mkdir()
    lines = [json.dumps({**record, "at": 1.79e9 + 3600 * i, "sample": sample}) for i in range(1000)]
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = cli("fleet", "report", tmp_path / "in", "--json")
    assert code == 0, err
    total = json.loads(out)["total"]
    assert total["requests"] == pytest.approx(1000 / sample, rel=0.05 * (sample < 1))
    assert total["deferred"] == total["requests"] == sum(total["latencies"])


@pytest.mark.matrix
def test_what_is_wrong_in_traces_is_named_and_in_no_sum(tmp_path):
    """Cut off, of the future, with costs that are none, no records; a folder with nothing else is an error."""
    records = []
    with Router(
        lambda x: ("small", x), Function(lambda x: "large", usd_per_call=0.25), threshold=0.5, trace=records.append
    ) as router:
        for x in (0.9, 0.1, 0.8):
            router.infer(x)
    good = [json.loads(json.dumps(record)) for record in records]

    def put(name, lines):
        path = tmp_path / "traces" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    put("good.jsonl", map(json.dumps, good))
    cut = tmp_path / "traces" / "cut.parquet"
    assert cli("trace", "convert", tmp_path / "traces" / "good.jsonl", cut)[0] == 0
    cut.write_bytes(cut.read_bytes()[:-9])
    costs = [{**good[1]["events"][-1], "usd": usd} for usd in (-1.0, 1e300)]
    odd = [{**good[1], "events": [*good[1]["events"][:-1], cost]} for cost in costs]
    odd += [
        {**good[0], **change}
        for change in (
            {"at": 4e9}, {"at": 3.0}, {"at": None}, {"latency_s": -1.0}, {"plan": 3}, {"sample": 0},
            {"at": 1e30}, {"at": -1e30}, {"latency_s": 1e30},
        )
    ]  # fmt: skip
    put("odd.jsonl", [*map(json.dumps, [*odd, {"note": "no record"}]), "not JSON"])
    code, out, err = cli("fleet", "report", tmp_path / "traces", "--json")
    report = json.loads(out)
    assert (code, report["total"]["requests"], report["total"]["deferred"]) == (0, 3, 1), err
    assert report["total"]["usd"] == pytest.approx(0.25)
    assert [(file, [n for n in ("12 records", "1 lines", "damaged") if n in why]) for file, why in report["refused"]] == [
        ("cut.parquet", ["damaged"]), ("odd.jsonl", ["1 lines"]), ("odd.jsonl", ["12 records"]),
    ]  # fmt: skip
    (tmp_path / "traces" / "good.jsonl").unlink()
    code, _, err = cli("fleet", "report", tmp_path / "traces")
    assert (code, "can be counted" in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.matrix
def test_a_trace_that_is_damaged_after_its_first_rows_is_named_and_the_others_count(tmp_path):
    """With a checksum, as of a disk that wrote other bytes; nor is its part of a huge number an error."""
    arrow = pytest.importorskip("pyarrow.parquet")
    parquet = pytest.importorskip("edgeroute.tools.replay.parquet_trace_format")
    traces, records = tmp_path / "traces", []
    with Router(lambda x: ("small", x), Function(lambda x: "large"), threshold=0.5, trace=records.append) as router:
        for x in (0.9, 0.1):
            router.infer(x)
    record = json.loads(json.dumps(records[0]))
    traces.mkdir()
    (traces / "good.jsonl").write_text(json.dumps(record) + "\n")
    for name, column in (("ids.parquet", "id"), ("shapes.parquet", "shape")):
        path = traces / name
        parquet.write_parquet(path, [{**record, "id": f"{i}" * 300} for i in range(2)])
        table = arrow.read_table(path)
        arrow.write_table(table, path, compression="none", store_schema=False, row_group_size=1, use_dictionary=False)
        group = arrow.read_metadata(path).row_group(1)
        [chunk] = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column]
        data = bytearray(path.read_bytes())
        data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
        path.write_bytes(data)
        parquet.seal(path)
    code, out, err = cli("fleet", "report", traces, "--json")
    assert (code, json.loads(out)["total"]["requests"]) == (0, 1), err
    assert [file for file, why in json.loads(out)["refused"] if "damaged" in why] == ["ids.parquet", "shapes.parquet"]
    (traces / "good.jsonl").unlink()
    code, _, err = cli("fleet", "report", traces)
    assert (code, "ids.parquet is damaged" in err) == (1, True), err
    paid = json.loads(json.dumps(records[1]))
    paid |= {"sample": 1e-6, "events": [*paid["events"][:-1], {**paid["events"][-1], "received_bytes": 9 * 10**14}]}
    (traces / "good.jsonl").write_text(f"{json.dumps(paid)}\n" * 20)
    code, _, err = cli("fleet", "report", traces, "--json")
    assert code == 0, err


class _Tags(HTMLParser):
    """The names of the tags."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


@pytest.mark.matrix
def test_the_page_stands_alone(tmp_path):
    """With figures and without scripts; a site and a version that look like HTML and SQL are text."""
    pytest.importorskip("matplotlib")
    site = "<script>alert(1)</script>'); DROP VIEW requests; --"
    digests = [d._replace(site=site, version="<img>") for d in fleets.random_fleet(12, 8, change=change)]
    fleets.write_store(tmp_path / "store", digests)
    code, out, _ = cli("fleet", "report", tmp_path / "store", "--html", tmp_path / "page.html", "--budget", 50)
    assert code in {0, 4}
    assert site in out
    page = (tmp_path / "page.html").read_text()
    assert not {"script", "img", "link"} & _Tags(page).tags
    assert page.count("<figure>") == 4
    assert "http:" not in page
    assert "https:" not in page


@pytest.mark.matrix
def test_a_month_that_begins_with_an_idle_day_has_its_page(tmp_path):
    """Nothing is spent yet, and the end of the month is forecast all the same."""
    pytest.importorskip("matplotlib")
    digests = list(fleets.random_fleet(3, 8, first=date(2026, 11, 24)))
    idle = [d._replace(requests=(), confidences=(), audits=()) if d.day == "2026-12-01" else d for d in digests]
    fleets.write_store(tmp_path / "store", idle)
    code, out, err = cli("fleet", "report", tmp_path / "store", "--html", tmp_path / "page.html", "--budget", 1e6)
    assert (code, err) == (0, "")
    assert "0.00 USD spent in 2026-12" in out
    assert (tmp_path / "page.html").read_text().count("<figure>") == 4


@pytest.mark.matrix
def test_the_line_of_the_money_ends_at_what_was_spent(tmp_path):
    """Since the month's first day, as its caption says, also where a report has a few days of it alone."""
    pytest.importorskip("matplotlib")
    fleets.write_store(tmp_path / "store", fleets.random_fleet(6, 20))
    ends = []
    for more in ((), ("--days", 4)):
        assert cli("fleet", "report", tmp_path / "store", "--html", tmp_path / "page.html", "--budget", 50, *more)[0] in {0, 4}
        figure = (tmp_path / "page.html").read_text().partition("<h2>Money</h2>")[2]
        spent = re.search(r'<path d="([^"]*)"[^>]*style="fill: none[^"]*stroke-width: 2[^"]*"', figure)
        ends.append(float(spent[1].split()[-1]))
    assert ends[0] == pytest.approx(ends[1], abs=2)


@pytest.mark.matrix
def test_damaged_tables_are_named(fleet, tmp_path):
    """Their rows are in no sum, and the others are."""
    digests, _ = fleet
    folder = fleets.write_store(tmp_path / "store", digests)
    path = folder / "requests" / f"day={FIRST}" / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    _, report = run(folder)
    assert report["refused"] == [[f"requests/day={FIRST}/rows.parquet", "is cut off or is no Parquet file"]]
    expected = sum(row[2] for d in digests for row in d.requests if d.day != str(FIRST))
    assert report["total"]["requests"] == expected


def test_a_quantile_is_a_bucket():
    """Its ends in seconds; the last one has none above."""
    first, second, last = pytest.approx((0.0, 0.005)), pytest.approx((0.005, 0.02)), (5, None)
    assert quantile([1, 0, 0, 0, 0, 0, 0, 0], 0.5) == first
    for share, bucket in ((0.5, first), (0.99, second), (0.999, last)):
        assert quantile([50, 49, 0, 0, 0, 0, 0, 1], share) == bucket
    assert quantile([0] * 8, 0.5) is None


def test_days_that_differ_widen_an_interval():
    """By requests alone 200 of 2,000 is sure; if one of ten days has them all, it is not."""
    even = low_end(200, 2000, 10, 10 * 20**2, 10 * 20 * 200, 10 * 200**2)
    uneven = low_end(200, 2000, 10, 200**2, 200 * 200, 10 * 200**2)
    assert 0.08 < even < 0.1
    assert uneven < 0
    events = [180, 190, 200, 210, 220]
    low = low_end(1000, 50_000, 5, sum(k * k for k in events), sum(k * 10_000 for k in events), 5 * 10_000**2)
    error = (sum((k - 200) ** 2 for k in events) * 5 / 4) ** 0.5 / 50_000
    assert 0.02 - low == pytest.approx(4.604 * error, rel=0.01), "the 99.5 % quantile of Student's t with 4 degrees of freedom"


def test_the_forecast_covers_the_month():
    """Of 200 months with weekends that cost more, and days that follow the day before, about 95 % end in the interval."""
    rng = np.random.default_rng(3)
    first, inside = date(2026, 9, 20), 0
    for _ in range(200):
        noise = np.zeros(110)
        for i in range(1, noise.size):
            noise[i] = 0.3 * noise[i - 1] + rng.normal()
        days = [first + timedelta(days=i) for i in range(72)]
        usd = {day: 10.0 + 4 * (day.weekday() >= 5) + noise[i + 38] for i, day in enumerate(days)}
        last = date(2026, 11, 10)
        result = forecast({day: cost for day, cost in usd.items() if day <= last}, [], last, None)
        inside += result.low <= sum(cost for day, cost in usd.items() if day.month == 11) <= result.high
    assert inside >= 176


def test_a_new_fleet_has_no_forecast():
    """Less than a week of days is no basis: the verdict is unknown, unless the budget is spent already."""
    days = {date(2026, 11, i): 10.0 for i in range(1, 5)}
    assert forecast(days, [], date(2026, 11, 4), 100.0).verdict == "unknown"
    assert forecast(days, [], date(2026, 11, 4), 30.0).verdict == "spent"
