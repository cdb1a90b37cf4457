"""Places of the digests on this machine: an object store (moto's server), and a broker (mosquitto), or a folder without one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

CREDENTIALS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "example") | {"AWS_REGION": "us-east-1"}
LONG_S = 180.0


def port() -> int:
    """Return a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def reachable(number: int) -> None:
    """Wait until a port takes connections.

    Raises:
        SystemExit: it takes none within 180 s.
    """
    until = time.monotonic() + LONG_S
    with socket.socket() as caller:
        while caller.connect_ex(("127.0.0.1", number)):
            if time.monotonic() > until:
                raise SystemExit(f"nothing answers on port {number}: is moto[server] installed?")
            time.sleep(0.05)


def bucket(stack: ExitStack, home: Path) -> str:
    """Start an object store with a bucket, set this process's environment for its clients, and return the bucket's address.

    `stack` ends it; its log is in `home`.
    """
    number = port()
    log = stack.enter_context((home / "moto.log").open("w"))
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(number)]
    stack.callback(subprocess.Popen(command, stdout=log, stderr=log).terminate)  # noqa: S603 - this Python
    reachable(number)
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{number}")
    urlopen(Request(f"http://127.0.0.1:{number}/fleet", method="PUT"), timeout=LONG_S).close()
    return "s3://fleet/shop"


def broker(stack: ExitStack, home: Path) -> tuple[str, str]:
    """Start mosquitto; return the address that devices send to and the owner collects from, and the broker's name.

    Without mosquitto both are a folder's, which is made. `stack` ends it.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if program is None:
        (home / "inbox").mkdir()
        return str(home / "inbox"), "a folder, since mosquitto is not installed"
    number, quiet = port(), subprocess.DEVNULL
    stack.callback(subprocess.Popen([program, "-p", str(number)], stdout=quiet, stderr=quiet).terminate)  # noqa: S603 - that program
    reachable(number)
    return f"mqtt://127.0.0.1:{number}/shop", "mosquitto"
