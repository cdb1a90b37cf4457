"""`gateway()`: runs a router as an HTTP server on uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.edge.llama_packages import INSTALL, SERVES_OTHERS
from edgeroute.edge.model_attributes import member
from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.record.prometheus import Prometheus, of_router
from edgeroute.router.policy_snapshot import edges_of
from edgeroute.system.addresses import is_loopback

try:
    from edgeroute.tools.server.access import token_of
    from edgeroute.tools.server.gateway_app import app
    from edgeroute.tools.server.uvicorn_host import notify_alive, run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[serve]'") from e

if TYPE_CHECKING:
    from edgeroute.record.instrument_interface import Instrument
    from edgeroute.router.async_router import AsyncRouter
    from edgeroute.router.policy_snapshot import Snapshot

log = logging.getLogger("edgeroute")
PORT = 8484


def gateway(
    policy: str | Path | AsyncRouter[Any],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_env: str | None = None,
    hosts: Iterable[str] = (),
    names: Iterable[str] = (),
    on_ready: Callable[[str], object] | None = None,
    metrics: bool = False,
    instruments: Sequence[Instrument] = (),
    **limits: Any,
) -> int:
    """Serve a router until SIGTERM or SIGINT; then finish requests in progress for at most 5 s, and close the router.

    Returns the number of that signal; 0 in a thread, which receives no signals. Notifies a service manager, such as systemd, when
    it is ready, alive and stopping. Reloads a policy file that changes.

    Blocks. Logs a warning for each target to which nothing can be sent.

    Args:
        policy: the path of a policy file, whose name without suffix becomes a name of the model; or a router.
        host: address to listen on; the default accepts only this machine. Any other needs a token.
        port: port to listen on; 0 selects a free one.
        token_env: the environment variable with the token that clients send as their API key.
        hosts: names accepted in the header `Host`, beside `localhost` and addresses.
        names: names of the model, beside `edgeroute`.
        on_ready: called with the URL once the server listens.
        metrics: True serves `/metrics` for Prometheus, as does a policy or router with a `Prometheus` instrument.
        instruments: added to those of the policy file.
        limits: passed to `gateway_app.app`.

    Raises:
        PolicyError: the address cannot be listened on, the token is missing, or the policy is invalid.
        ModelError: the policy's model file is missing.
        RuntimeMissing: metrics need the extra `prometheus`, or a GGUF model a package with llama.cpp.
    """
    token = None if token_env is None else token_of(token_env)
    if token is None and not _is_loopback(host):
        raise PolicyError(f"{host} can be reached from other machines: give --token-env NAME, or listen on 127.0.0.1")
    router: Any = policy
    names_all = [*names]
    SERVES_OTHERS.set()
    try:
        if isinstance(policy, str | Path):
            from edgeroute.policy import load

            section = load(Path(policy)).gateway
            limits = {"allow": section.allow if section else (), **limits}
            router = router_of(policy, metrics=metrics, instruments=instruments)
            stem = Path(policy).stem
            names_all += [stem] if stem.isprintable() and not {*"/?#%"} & {*stem} else []
        _check_llama(router.engine.snapshot)
        for line in _unsendable(router.engine.snapshot):  # the gateway still serves: the edge answers without it
            log.warning("%s; start the gateway again once it is", line)
        application = app(
            router, names=names_all, token=token, hosts=hosts, metrics=metrics or of_router(router) is not None, **limits
        )  # fmt: skip
        return run(application, host, port, partial(notify_alive, "serving a router"), on_ready)
    finally:
        SERVES_OTHERS.clear()
        if not isinstance(router, str | Path) and not router.engine.closed:  # the application never started
            asyncio.run(router.close())


def router_of(policy: str | Path, *, metrics: bool = False, instruments: Sequence[Instrument] = ()) -> AsyncRouter[Any]:
    """Build the asyncio router of a policy file, which is reloaded when the file changes.

    Args:
        policy: the path of the file.
        metrics: True adds a `Prometheus` instrument unless the file has one.
        instruments: added to those of the file.

    Raises:
        PolicyError: the policy is invalid.
        ModelError: its model file is missing.
        RuntimeMissing: metrics need the extra `prometheus`.
    """
    from edgeroute.policy import load
    from edgeroute.router.async_router import AsyncRouter

    telemetry = load(Path(policy)).telemetry if metrics else None
    more = [*instruments, *([Prometheus()] if metrics and not (telemetry and telemetry.prometheus) else [])]
    return AsyncRouter.from_policy(policy, watch=True, **({"instruments": more} if more else {}))


def _check_llama(snapshot: Snapshot) -> None:
    """Raise RuntimeMissing if there is a GGUF model and no package with llama.cpp, which only its first run would show."""
    gguf = any(str(member(backend.model, "path")).lower().endswith(".gguf") for _, backend in edges_of(snapshot))
    if gguf and not any(find_spec(package) for package in ("xllamacpp", "llama_cpp")):
        raise RuntimeMissing(INSTALL)


def _unsendable(snapshot: Snapshot) -> list[str]:
    """Return a line for each endpoint that cannot be called, as a secret is not set. Sends nothing."""
    lines = []
    for cloud in snapshot.clouds:
        address: Any = getattr(getattr(cloud, "endpoint", None), "address", None)
        if address is not None:
            try:
                address.headers()
            except PolicyError as e:
                lines.append(f"{cloud.name} cannot be asked: {e}")
    return lines


def _is_loopback(host: str) -> bool:
    """Return True if every address of a host name is a loopback address, or the name does not resolve."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True  # listening there reports the error
    return all(is_loopback(str(address[0])) for *_, address in infos)
