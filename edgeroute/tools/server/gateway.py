"""Runs the gateway on uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.record.prometheus import Prometheus, of_router
from edgeroute.router.preflight import unsendable

try:
    from edgeroute.tools.server.gateway_app import app
    from edgeroute.tools.server.guard import token_of
    from edgeroute.tools.server.host import run
    from edgeroute.tools.server.notify import BEATS
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[serve]'") from e

if TYPE_CHECKING:
    from edgeroute.record.instruments import Instrument
    from edgeroute.router.aio import AsyncRouter
    from edgeroute.tools.server.notify import Notify

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
    """Serves a router until SIGTERM or SIGINT, then finishes requests in progress, for at most 5 s.

    Returns the number of that signal; 0 in a thread, which hears of none. A service manager, such as systemd, is told when it is
    ready, that it is alive, and that it stops. A policy file that changes is read again while it runs.

    Args:
        policy: the path of a policy file, whose name without suffix is a name of the model; or a router, which it closes.
        host: to listen on; the default accepts only this machine. Another one takes a token.
        port: 0 selects a free one.
        token_env: the environment variable with the token that clients send as their API key.
        hosts: names in the header `Host`, beside `localhost` and addresses.
        names: of the model, beside `edgeroute`.
        on_ready: called with the URL, once it is listening.
        metrics: whether there is `/metrics` for Prometheus; also where the policy or the router has `Prometheus`.
        instruments: of a router that is made of a policy file, beside those of the file.
        limits: as of `app`.

    Raises:
        PolicyError: it cannot listen there, there is no token, or the policy is invalid.
        ModelError: the policy's model is not there.
        RuntimeMissing: metrics need the extra `prometheus`.
    """
    token = None if token_env is None else token_of(token_env)
    if token is None and not _is_loopback(host):
        raise PolicyError(f"{host} can be reached from other machines: give --token-env NAME, or listen on 127.0.0.1")
    router: Any = policy
    called = [*names]
    if isinstance(policy, str | Path):
        router = router_of(policy, metrics=metrics, instruments=instruments)
        stem = Path(policy).stem
        called += [stem] if stem.isprintable() and not {*"/?#%"} & {*stem} else []
    try:
        for line in unsendable(router.engine.snapshot):  # no reason not to serve: the edge answers without it
            log.warning("%s; start the gateway again once it is", line)
        application = app(
            router, names=called, token=token, hosts=hosts, metrics=metrics or of_router(router) is not None, **limits
        )  # fmt: skip
        return run(application, host, port, _alive, on_ready)
    finally:
        if not router.engine.closed:  # it did not get as far as to run
            asyncio.run(router.close())


def router_of(policy: str | Path, *, metrics: bool = False, instruments: Sequence[Instrument] = ()) -> AsyncRouter[Any]:
    """The router of a policy file, which is read again when it changes.

    Args:
        policy: the path of the file.
        metrics: whether it has a `Prometheus`; the file's own is kept, with the router's name.
        instruments: beside those of the file.

    Raises:
        PolicyError: the policy is invalid.
        ModelError: its model is not there.
        RuntimeMissing: metrics need the extra `prometheus`.
    """
    from edgeroute.router.aio import AsyncRouter
    from edgeroute.router.reload import has_metrics

    more = [*instruments, *([Prometheus()] if metrics and not has_metrics(Path(policy)) else [])]
    return AsyncRouter.from_policy(policy, watch=True, **({"instruments": more} if more else {}))


async def _alive(notify: Notify) -> None:
    """The event loop answers."""
    notify.ready("serving a router")
    while notify.watchdog_s is not None:
        notify.alive()
        await asyncio.sleep(notify.watchdog_s / BEATS)


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True  # listening there says what is wrong
    return all(ip_address(str(at[0]).partition("%")[0]).is_loopback for *_, at in found)
