"""Commands on the installation: `doctor` (runtimes that work), `policies` (copies of examples) and `service` (systemd units)."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import edgeroute
from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import PolicyError, nearest
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.late_imports_and_plugins import package_folder
from edgeroute.system.untrusted_files import read_text
from edgeroute.tools.cli.command_runner import command
from edgeroute.tools.cli.tables_and_options import Json, table

TRY_S = 60.0  # maximum seconds in which a runtime has to answer
RUNTIMES = {  # runtime -> its module
    "onnxruntime": "onnxruntime", "litert": "ai_edge_litert.interpreter", "tflite": "tflite_runtime.interpreter",
    "llama": "xllamacpp", "coreml": "coremltools.libcoremlpython",
}  # fmt: skip
# Programs of the child processes: a runtime may end its process, or hang.
PROVIDERS = "import onnxruntime; print(*onnxruntime.get_available_providers())"
ANSWER = """
import sys
import numpy
from edgeroute import OnnxModel, models
from edgeroute.errors import ModelError
try:
    model = OnnxModel(models.fashion().edge, providers=[sys.argv[1]])
    model.run([numpy.zeros((28, 28), "uint8")])
except ModelError as e:
    sys.exit("runs no part of the test model" if "takes none of" in str(e) else str(e))
"""
SYSTEM, USER = Path("/etc/systemd/system"), Path("~/.config/systemd/user")
# Settings of a unit that the service manager of a user cannot set.
OF_THE_SYSTEM = r"^(# a Jetson.*|(DynamicUser|IPAddress\w+|Protect\w+|Private\w+|CapabilityBoundingSet)=.*)\n"

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

policies = typer.Typer(name="policies", no_args_is_help=True, help="List and copy the example policies.")
service = typer.Typer(name="service", no_args_is_help=True, help="Run a server as a service of systemd.")


def doctor(*, as_json: Json = False) -> None:
    """Print what a bug report needs: versions, the system, and which runtimes and providers work; runs each in a process."""
    facts = {
        "edgeroute": edgeroute.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {sys.platform})",
        "system": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} processors",
        "variables": " ".join(sorted(name for name in os.environ if name.startswith("EDGEROUTE_"))) or "none",
    }
    versions = {name: (_version(name), sorted(extras)) for name, extras in _packages().items()}
    working = {
        name: _try("import " + module) for name, module in RUNTIMES.items() if name != "coreml" or sys.platform == "darwin"
    }
    working.setdefault("coreml", "runs on macOS alone")  # elsewhere the package can be imported, and describes models
    if not working["onnxruntime"]:
        working |= {f"onnxruntime, {name}": _try(ANSWER, name) for name in _run(PROVIDERS).stdout.split()}
    if as_json:
        packages = {name: version for name, (version, _) in versions.items()}
        print(json.dumps({**facts, "packages": packages, "runtimes": {name: why or "works" for name, why in working.items()}}))
        return
    table(("", ""), list(facts.items()), ("",))
    table(("runtime", ""), [(name, printable(why or "works")) for name, why in working.items()], ("runtime", ""))
    rows = [(name, version or "-", ", ".join(extras)) for name, (version, extras) in versions.items()]
    table(("package", "version", "extras"), rows, ("package", "version", "extras"))


def _version(package: str) -> str | None:
    """Return the version of an installed package; None without one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, set[str]]:
    """Return the packages that the installed edgeroute requires -> the extras that need them (none: edgeroute itself does)."""
    packages: dict[str, set[str]] = {}
    for requirement in metadata.requires("edgeroute") or ():
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)", requirement)
        if name and name[0] != "edgeroute":
            packages.setdefault(name[0].lower(), set()).update({extra[1]} if extra else ())
    return packages


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of this Python. Raises subprocess.TimeoutExpired after `TRY_S` seconds."""
    command = [sys.executable, "-c", program, *arguments]
    quiet = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRY_S, env=quiet)  # noqa: S603 - a constant


def _try(program: str, *arguments: str) -> str:
    """Run Python code in a new process; return "" if it succeeds, else the last line of its stderr, or that it took over 60 s."""
    try:
        done = _run(program, *arguments)
    except subprocess.TimeoutExpired:
        return f"does not answer within {TRY_S:g} s"
    why = [line for line in done.stderr.splitlines() if line.strip()]
    return (why[-1] if why else f"ends with code {done.returncode}") if done.returncode else ""


def _policies() -> dict[str, Path]:
    """Return name -> file of the example policies."""
    return {path.stem: path for path in sorted(package_folder("examples", "policies", has="prefer-edge.toml").glob("*.toml"))}


@command(policies, "list")
def list_policies(*, as_json: Json = False) -> None:
    """List the example policies."""
    rows = [(name, read_text(path).partition("\n")[0].lstrip("# ")) for name, path in _policies().items()]
    print(json.dumps(dict(rows))) if as_json else table(("policy", "for"), rows, ("policy", "for"))


@command(policies, "copy")
def copy_policy(
    name: Annotated[str, typer.Argument(metavar="POLICY")],
    out: Annotated[Path | None, typer.Argument(metavar="OUT")] = None,
    *,
    force: bool = False,
    as_json: Json = False,
) -> None:
    """Copy an example policy to a new file.

    Args:
        name: A name that `edgeroute policies list` shows.
        out: The new file; default: the policy's name, in this folder.
        force: Replace an existing file.

    Raises:
        typer.BadParameter: there is no such policy; the nearest name is told.
        PolicyError: the file exists.
        StoreError, OSError: it cannot be written.
    """
    if name not in (known := _policies()):
        raise typer.BadParameter(f"there is no policy {name!r}: {nearest(name, known)}", param_hint="POLICY")
    _write(new := out or Path(f"{name}.toml"), read_text(known[name]), force=force)
    text = f"{new} is written; `edgeroute check {new}` shows what it needs"
    print(json.dumps({"policy": str(new)}) if as_json else printable(text))


@command(service)
def install(
    server: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    *,
    system: Annotated[bool, typer.Option("--system/--user")] = False,
    name: str = "edgeroute",
    folder: Annotated[Path | None, typer.Option(metavar="FOLDER")] = None,
    force: bool = False,
    as_json: Json = False,
) -> None:
    """Write a systemd unit that runs `edgeroute serve` or `edgeroute gateway`, with the real paths; starts nothing.

    As in `edgeroute service install --system -- serve model.onnx`. A unit of the system runs as a user of its own, which may
    write its state folder alone, and read no home folders but those of these files and of Python.

    Args:
        server: `serve` or `gateway` with its arguments. Relative paths are made absolute.
        system: A unit of the system; default: of this user.
        name: Name of the unit and of its state folder.
        folder: Folder for the unit.
        force: Replace an existing file.

    Prints the command that starts it.

    Raises:
        typer.BadParameter: another command or one with control characters or an address with a user or query, or a name with
            other characters than letters, digits, - and _.
        PolicyError: the file exists.
        StoreError, OSError: it cannot be written.
    """
    if server[0] not in {"serve", "gateway"}:
        raise typer.BadParameter(f"{server[0]!r} is no server: write serve or gateway", param_hint="COMMAND")
    if not re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,60}", name):
        raise typer.BadParameter("a name has letters, digits, - and _", param_hint="--name")
    if CONTROL.search("".join(server)):  # a line break would begin a setting of its own
        raise typer.BadParameter("a unit cannot have control characters", param_hint="COMMAND")
    if any("://" in argument and ("@" in argument or "?" in argument) for argument in server):
        raise typer.BadParameter(
            "an address has a user or a query, which every user of this machine could read in the unit: put the secret in an "
            "environment variable, as the policy's { env = ... }", param_hint="COMMAND",
        )  # fmt: skip
    given = [_absolute(argument) for argument in server[1:]]
    text = read_text(package_folder("examples", has="edgeroute.service") / "edgeroute.service")
    line = " ".join(_quoted(argument) for argument in (sys.executable, "-m", "edgeroute", server[0], *given))
    text = re.sub(r"^ExecStart=.*", lambda _: f"ExecStart={line}", text, flags=re.MULTILINE)
    text = text.replace("StateDirectory=edgeroute\n", f"StateDirectory={name}\n").replace("%S/edgeroute", f"%S/{name}")
    if server[0] == "gateway":  # its clouds are elsewhere
        text = re.sub(r"^IPAddress.*\n", "", text, flags=re.MULTILINE)
    if system:
        if shown := _hidden([sys.prefix, sys.base_prefix, *edgeroute.__path__, *given]):
            text = text.replace("ProtectHome=yes\n", f"ProtectHome=tmpfs\nBindReadOnlyPaths={' '.join(map(_quoted, shown))}\n")
    else:
        text = re.sub(OF_THE_SYSTEM, "", text, flags=re.MULTILINE).replace("multi-user.target", "default.target")
    unit = (folder or (SYSTEM if system else USER.expanduser())) / f"{name}.service"
    _write(unit, text, force=force)
    manager = "systemctl" if system else "systemctl --user"
    after = f"{manager} daemon-reload && {manager} enable --now {name} && {manager} status {name}"
    print(json.dumps({"unit": str(unit), "then": after}) if as_json else f"{unit} is written; start it with:\n\n  {after}")


def _absolute(argument: str) -> str:
    """Return an argument with the path of an existing file made absolute, also after `--option=`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{Path(value).absolute()}" if value and Path(value).exists() else argument


def _quoted(argument: str) -> str:
    """Return an argument as a unit has it: quoted, and without specifiers and variables."""
    plain = argument.replace("%", "%%").replace("$", "$$")
    return plain if re.fullmatch(r"[\w./:=%$@+,-]+", plain) else '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _hidden(arguments: list[str]) -> list[str]:
    """Return the folders that `ProtectHome=` hides, of the existing absolute paths in arguments (`PATH` or `--x=PATH`).

    A model's labels and card are in the folder of its file.
    """
    paths = [Path(argument.partition("=")[2] or argument) for argument in arguments]
    folders = {path.parent if path.is_file() else path for path in paths if path.is_absolute() and path.exists()}
    homes = [Path(home) for home in ("/home", "/root", "/run/user")]
    return sorted(str(folder) for folder in folders if any(home in folder.parents for home in homes))


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a text file, creating its folders, over an existing one only with `force`.

    Raises:
        PolicyError: it exists, and `force` is False.
        StoreError, OSError: it cannot be written.
    """
    if path.exists() and not force:
        raise PolicyError(f"{path} exists: --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
