"""Commands `edgeroute fleet alarm`, pooled tests of a fleet's store, and `calibrate`, which writes the fleet's certificate."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import BadInput
from edgeroute.tools.cli.calibrate_from_examples_or_audits import certify_audits, proper_share
from edgeroute.tools.cli.command_runner import NOT_READY, OK
from edgeroute.tools.cli.example_options_and_routers import plain_router
from edgeroute.tools.cli.tables_and_options import CERTIFICATE, Json, Name, Policy, Share, check_output, of_share, print_notes

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate
    from edgeroute.tools.fleet.fleet_alarms import FleetAlarms
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store that `fleet collect` writes.")]
Liars = Annotated[float, of_share("Share of the devices that may report anything.", show_default="5%")]
_SHOWN = 20  # suspects printed


def alarm(
    store: Store,
    *,
    learn: Annotated[int, typer.Option(min=7, max=365)] = 14,
    tolerance: Annotated[float, of_share(show_default="10%")] = 0.1,
    liars: Liars = 0.05,
    again: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    as_json: Json = False,
) -> int:
    """Test if more answers differ from the cloud's, more are lost, or more or fewer are deferred than usual at the same hours.

    All devices together, each bounded; to be run as often as one likes: a day is bet on once. At most 5% of fleets have a false
    alarm in a year.

    Exit code 4: there is an alarm. An alarm stays until --again.

    Args:
        learn: Days of the reference, whose rates are the usual ones. Below 14 weekdays are not told apart.
        tolerance: Relative rise above the usual rate that is no change.
        again: After an alarm: begin anew with this model; coming days are its reference.

    Writes the tests' state into the store's folder `alarm`.

    Raises:
        BadInput: `again` names no model of the store.
        typer.BadParameter: `liars` is half or more.
    """
    from edgeroute.tools.fleet.digest_parquet_store import reading
    from edgeroute.tools.fleet.fleet_alarms import FleetAlarms

    with reading(store), closing(FleetAlarms(store, learn=learn, tolerance=tolerance, liars=_few(liars))) as tests:
        report = tests.look()
        if again is not None:
            if not tests.again(again):
                raise BadInput(f"--again {again}: the store has no such model: give NAME, or NAME:DIGEST as the report does")
            report = tests.look()
    if as_json:
        print(json.dumps(report))
    else:
        print("\n".join(map(printable, _lines(report))))
        print_notes(f"{count:,} rows are left out: {reason}" for reason, count in report["left_out"].items())
    return NOT_READY if report["alarm"] else OK


def _few(liars: float) -> float:
    """Return the share of liars (devices whose reports may be false); raise `typer.BadParameter` if it is half or more."""
    if not 0 <= liars < 0.5:  # noqa: PLR2004 - half
        raise typer.BadParameter("the share must be below 50%", param_hint="--liars")
    return liars


def _lines(report: dict[str, Any]) -> list[str]:
    """Return the report of `FleetAlarms.look` in words: for each model and policy if it learns, is as usual or has alarms.

    Suspect devices follow, 20 at most, and after an alarm what to do next.
    """
    lines = [f"days to {report['closed']} are counted" if report["closed"] else "no day of the store is over yet"]
    for stream in report["streams"]:
        name = f"{stream['model']}, policy {stream['policy']}"
        if stream["learning"]:
            lines.append(
                f"{name}: {stream['days']} days so far, of which the usual rates are learnt; no alarm is possible before "
                f"{stream['begins']}: a reference has the days of --learn and 20 events"
            )
        elif not stream["alarms"]:
            lines.append(f"{name}: as usual ({', '.join(stream['tests'])})")
        lines += [f"{name}: ALARM: {_sentence(each)}" for each in stream["alarms"]]
        if stream["suspects"]:
            sites = ", ".join(f"{count} of site {site or '(none)'}" for site, count in stream["sites"].items())
            lines.append(f"{name}: {len(stream['suspects'])} of {stream['compared']:,} devices are suspects: {sites}")
            lines += [
                f"  {row['device']}: {row['ratio']:.1f} times as many answers differ as usual"
                for row in stream["suspects"][:_SHOWN]
            ]
        if stream["alarms"]:
            look = "look at the suspects first; " if stream["suspects"] else ""
            lines.append(
                f"  next: {look}roll the policy back, or make a certificate of newer audits (edgeroute fleet calibrate); then "
                f"edgeroute fleet alarm --again {stream['model']}"
            )
    return lines


def _sentence(alarm: dict[str, Any]) -> str:
    """Return an alarm in words: its kind, how many times the usual number, on how many devices, if liars could have raised it."""
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text

    of_liars = f"{alarm['liars'] * 100:.0f} % of the devices could {'not ' if alarm['broad'] else ''}have raised it falsely"
    since = f" since {alarm['since']}" if alarm["since"] else ""
    return (
        f"{alarm['text']}{since}: {alarm['times']:.2f} times the usual number ({alarm['low']:.2f} to {alarm['high']:.2f}), "
        f"on {count_text(alarm['devices'], 'device')}; {of_liars}"
    )


def calibrate(
    store: Store,
    *,
    policy: Policy,
    max_loss: Share,
    sure: Annotated[float, of_share(show_default="95%")] = 0.95,
    liars: Liars = 0.05,
    model: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    only_policy: Annotated[str | None, typer.Option(metavar="ID")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default="certificate-fleet.json beside the policy")] = None,
    catalog: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    name: Name | None = None,
    version: Annotated[str | None, typer.Option(metavar="VERSION")] = None,
    keys: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    as_json: Json = False,
) -> None:
    """Make one certificate for a model by the audits of all devices, valid however often this is run.

    It holds for a request of the fleet: devices with more requests count more, each up to 32 audits a day. Each device's own test
    goes on beside it. Exit code 5: more audits are needed.

    Args:
        max_loss: Share of answers that may differ from the cloud's, as in 1%.
        sure: Confidence level of the guarantee, over all looks.
        model: The edge model in the store, if the policy has several.
        only_policy: Use the audits under this policy alone, by its identity in `fleet report`.
        out: File for the certificate.
        catalog: Also publish it: the catalog, in which the model is copied as --version.
        name: The model's name in the catalog.
        version: New version in the catalog, with the certificate.
        keys: Keys of the catalog, from `models keygen`.

    Writes the certificate, notes the look in the store, and prints guarantee, weight of possible liars and worst devices.

    Raises:
        BadInput: the store has no audits of the policy's models, or so few devices that all could be liars; or no threshold
            holds, or the catalog has no version with the model's files, and it was to be published.
        NotEnough: there are too few audits.
        typer.BadParameter: only some of the options of the catalog are given.
    """
    from edgeroute.tools.fleet.digest_parquet_store import reading
    from edgeroute.tools.fleet.fleet_alarms import FleetAlarms
    from edgeroute.tools.fleet.fleet_audit_loss_bounds import threshold_index
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text

    given = (catalog, name, version, keys)
    if any(given) and not all(given):
        raise typer.BadParameter("they belong together", param_hint="--catalog, --name, --version and --keys")
    value, risk = proper_share(max_loss, "--max-loss"), 1 - proper_share(sure, "--sure")
    out = out or policy.with_name("certificate-fleet.json")
    check_output(out, CERTIFICATE, "--out")
    with reading(store), closing(FleetAlarms(store)) as tests, plain_router(policy) as router:
        calls, copied = _edge(router, tests, model), None
        if catalog and name:
            from edgeroute.tools.catalog_keys_and_publishing import publish_certificate, version_with

            copied, newest = version_with(catalog, name, calls.runner.model)
        audits = tests.audits(_key(calls), only_policy or "")
        if (part := audits.liars_weight(_few(liars))) == 1:
            raise BadInput(
                f"all the audits, of {count_text(audits.devices, 'device')}, may be those of devices that report anything "
                "(--liars): collect from more devices, or trust all, by --liars 0%"
            )
        certificate = certify_audits(store / "alarm", audits.counts(), calls, value * (1 - part), 1 - risk, remember=True)
        doubts = [*certificate.doubts]
        if unstated := audits.unstated:
            doubts.append(f"{unstated:,} audits are left out: their digests do not state the confidence")
        certificate = certificate._replace(value=value, doubts=tuple(doubts)).sealed()
        if catalog and certificate.threshold == INF:
            raise BadInput(f"no threshold keeps the loss within {value:.3g} by {certificate.n:,} audits: nothing is published")
        certificate.save(out)
        index = threshold_index(certificate.threshold)
        rows, mean = audits.worst(index), audits.mean_bound(index, risk)
    notes = [*certificate.doubts]
    if catalog and copied and version and keys:
        publish_certificate(catalog, copied, version, out, keys=keys)
        if copied != newest:
            notes.append(f"{name} {version} has the model of {copied.version}: devices take it in place of {newest.version}'s")
    result = {
        "certificate": str(out), "guarantee": certificate.guarantee, "threshold": certificate.as_dict()["threshold"],
        "deferral_rate": certificate.deferral_rate, "audits": certificate.n, "devices": audits.devices, "liars": liars,
        "liars_weight": part, "mean_over_devices": mean, "worst": [row._asdict() for row in rows], "published": version,
        "copied": copied and copied.version,
    }  # fmt: skip
    if as_json:
        print(json.dumps(result))
        return
    _show(certificate, result)
    print_notes(notes)


def _show(certificate: Certificate, result: dict[str, Any]) -> None:
    """Print a fleet's guarantee and threshold, its audits and devices, the bound for the mean device, and the worst devices."""
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text

    print(f"{certificate.guarantee} {result['certificate']} has the threshold {certificate.threshold:g}")
    print(
        f"by {result['audits']:,} audits of {count_text(result['devices'], 'device')}; it holds "
        f"though {result['liars'] * 100:.0f} % of them, with {result['liars_weight'] * 100:.0f} % of the weight, report no "
        f"difference; {result['deferral_rate'] * 100:.1f} % are deferred"
    )
    print(f"with each device counted the same, at most {result['mean_over_devices'] * 100:.2f} % of the answers differ")
    for row in result["worst"]:
        share = f"{row['low'] * 100:.2f} % to {row['high'] * 100:.2f} %"
        print(f"  worst: {row['device']}: {share} of its answers, by {row['audited']:,} audits")


def _key(calls: DirectCalls) -> str:
    """Return the identity of a model in a store: 12 characters of the digest of its fingerprints."""
    from edgeroute.confidence.certificate import digest

    return digest(calls.fingerprints())[:12]


def _edge(router: Any, tests: FleetAlarms, model: str | None) -> DirectCalls:
    """Return the calls of the policy's one edge model of which the store has audits, with `model` its name or identity if given.

    Raises:
        BadInput: there is none, or more than one.
    """
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

    edges = sum(target.side == "edge" for target in router.engine.snapshot.targets)
    known = tests.models()
    calls = {_key(each): each for each in (DirectCalls(router.engine, i) for i in range(edges))}
    here = [key for key in calls if key in known and model in {None, key, known[key], known[key].rpartition(":")[0]}]
    if len(here) == 1:
        return calls[here[0]]
    if here:
        names = " or ".join(known[key] for key in here)
        raise BadInput(f"the store has audits of several edge models of the policy: --model {names}")
    names = ", ".join(known.values()) or "no model"
    raise BadInput(
        f"the store has audits of {names}, and the policy's edge models are {', '.join(calls)}: other files, "
        "another cloud, another score or another payload"
    )
