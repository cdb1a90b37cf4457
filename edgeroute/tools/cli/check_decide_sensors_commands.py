"""Commands `check` (readiness), `decide` (route of an input), `docs` (pages), `schema` (of policies, cards) and `sensors`."""

from __future__ import annotations

import json
import re
import sys
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Annotated, Literal

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import nearest
from edgeroute.system.late_imports_and_plugins import docs_folder
from edgeroute.tools.cli.command_runner import FAILED, OK
from edgeroute.tools.cli.example_options_and_routers import DataClass, LabelColumn, edge_columns, looking_router
from edgeroute.tools.cli.tables_and_options import Json, OptionalPolicy, Policy, Whole, table


def check(
    file: Annotated[str | None, typer.Argument(metavar="FILE")] = None, *, policy: OptionalPolicy = None, as_json: Json = False
) -> int:
    """Report what works, what may leave the device and where to, what is missing, and settings that can never work.

    Args:
        file: The policy (for --policy), or a model or hub name.

    Loads the models and pings the endpoints. Of a policy nothing is delivered or written. Returns exit code 1 if something does
    not work.

    Raises:
        typer.BadParameter: not exactly one file is given.
    """
    from edgeroute.edge.runtimes_variants_ensemble import step_of
    from edgeroute.router.router import Router

    if (path := file or policy) is None or (file and policy):
        raise typer.BadParameter("one policy is needed, as in `edgeroute check policy.toml`", param_hint="FILE")
    is_policy = str(path).lower().endswith(".json") or (step_of(str(path)) or "").startswith("expected")
    with looking_router(Path(path)) if is_policy else Router(path, mode="only_edge") as router:
        report = router.check()
    print(json.dumps({"ok": report.ok, "lines": report.lines}) if as_json else printable(str(report)))
    return OK if report.ok else FAILED


def decide(
    path: Annotated[Path, typer.Argument(metavar="INPUT")],
    *,
    policy: Policy,
    index: Whole = 0,
    data_class: DataClass = None,
    label: LabelColumn = None,
    as_json: Json = False,
) -> None:
    """Explain which route an input would take. Runs the edge model; sends nothing.

    Args:
        path: A .npy, .npz, .png, .jpg, .csv or .parquet file, or `-`.
        index: The row of an .npz file or table, or the line of JSON.

    Nothing is written to the state folder. Notes on the file are printed on stderr.

    Raises:
        typer.BadParameter: the file has no input `index`.
        BadInput: it cannot be read.
    """
    from edgeroute.tools.cli.inputs_labels_and_outputs import read_inputs
    from edgeroute.tools.data_classes_of_records import stricter

    def print_note(note: str) -> None:
        """Print a note on stderr, as JSON with --json."""
        print(json.dumps({"note": note}) if as_json else printable(note), file=sys.stderr)

    with looking_router(policy) as router:
        keys, fitted = router.engine.snapshot.views.keys, edge_columns(router)
        items = [*islice(read_inputs(path, keys, print_note, label, fitted), index + 1)]
        if index >= len(items):
            raise typer.BadParameter(f"this file has {len(items)} inputs", param_hint="--index")
        rules = router.engine.snapshot.policy.rules
        decision = router.decide(items[index].x, data_class=stricter(rules, data_class, items[index].data_class))
    if as_json:
        print(json.dumps({"input": items[index].name, "sends_to": decision.sends_to, "steps": decision.steps}))
    else:
        print(printable(str(decision)))
        places = ", then ".join(decision.sends_to)
        print(f"so it would leave the device, to {places}" if places else "so it would stay on the device")


def docs(name: Annotated[str | None, typer.Argument(metavar="PAGE")] = None, *, as_json: Json = False) -> None:
    """Print a page of this version's documentation, as Markdown, or list the pages.

    Args:
        name: Page to print; default: list all.

    The list has each page's heading, and the folder. An unknown name is refused, with the nearest that is known.
    """
    pages = {file.stem: file.read_text(encoding="utf-8") for file in sorted(docs_folder().glob("*.md"))}
    if name is not None:
        if name not in pages:
            raise typer.BadParameter(f"there is no page {name!r}: {nearest(name, pages)}", param_hint="PAGE")
        print(json.dumps({"page": name, "text": pages[name]}) if as_json else pages[name], end="\n" if as_json else "")
    elif as_json:
        print(json.dumps({"pages": [*pages], "folder": str(docs_folder())}))
    else:
        width = max(map(len, pages), default=0)
        for title, text in pages.items():
            heading = re.search(r"^# (.+)", text, re.MULTILINE)
            print(f"{title:{width}}  {heading[1] if heading else ''}")
        print(f"\nin {docs_folder()}")


def schema(what: Literal["policy", "card"] = "policy", *, as_json: Json = False) -> None:
    """Print the JSON Schema of policy files or of model cards, for an editor or a validator; with --json on one line.

    Args:
        what: Schema of policy files, or of model cards.
    """
    if what == "card":
        from edgeroute.edge import model_card as described
    else:
        from edgeroute import policy as described  # type: ignore[no-redef]

    print(json.dumps(described.schema(), indent=None if as_json else 2))


UNITS = {"temperature_c": "{:.1f} C", "power_w": "{:.2f} W"}  # format of a reading; all others are shares
BETWEEN_S = 0.5  # time between the two readings: rates are known only at the second


def sensors(*, root: Annotated[Path, typer.Option(metavar="FOLDER")] = Path("/"), as_json: Json = False) -> None:
    """Show the readings of this device's sensors, and why others are missing: battery, heat, load, memory, power, network.

    Args:
        root: Folder with sysfs and procfs, as in a container that mounts its host's.

    Reads the sensors twice, with a pause between, as loads are differences; waits for the programs that some readings run.
    """
    from edgeroute.observe.device.kernel_files_and_cached_commands import TIMEOUT_S
    from edgeroute.observe.device_sensors_and_sampler import DeviceSensors

    if not root.is_dir():
        raise typer.BadParameter(f"{str(root)!r} is no folder", param_hint="--root")
    device = DeviceSensors(root, fresh_s=0.0)
    device()
    device.commands.wait(TIMEOUT_S)
    sleep(BETWEEN_S)
    device()
    details = device.details()
    if as_json:
        print(json.dumps({name: {"value": value, "by": by} for name, (value, by) in details.items()}, allow_nan=False))
        return
    rows = [(name, _reading_text(name, value), printable(by)) for name, (value, by) in details.items()]
    table(("reading", "value", "from, or why it is not known"), rows, ("reading", "from, or why it is not known"))


def _reading_text(name: str, value: bool | float | None) -> str:
    """Format a reading: yes or no, a number with the unit of that name, else a share in percent; "-" for None (unknown)."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNITS.get(name, "{:.1%}").format(value).replace("%", " %")
