"""gRPC channels in place of HTTP connections. A call's path is the method, and its body a serialised message.

A gRPC status becomes an HTTP status, with its name as the code of an error in JSON, so that messages, retries, breaker and
quoting are the same for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import certifi
import grpc
import grpc.aio

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import BadReply, CloudError, PolicyError, TimedOut, Unreachable
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply
from edgeroute.system.contained_calls_and_tasks import start_task_on
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.types import StopToken

LONGEST = (1 << 31) - 1  # maximum bytes of a message: gRPC's own limit
# Least and greatest time between attempts to connect, ms. gRPC's own is up to two minutes, too long for a recovered server.
RECONNECT_MS = (100, 1000)
_CODES = grpc.StatusCode
# gRPC status -> HTTP status; any other is 500.
STATUSES = {
    _CODES.INVALID_ARGUMENT: 400, _CODES.FAILED_PRECONDITION: 400, _CODES.OUT_OF_RANGE: 400, _CODES.UNAUTHENTICATED: 401,
    _CODES.PERMISSION_DENIED: 403, _CODES.NOT_FOUND: 404, _CODES.ALREADY_EXISTS: 409, _CODES.ABORTED: 409,
    _CODES.RESOURCE_EXHAUSTED: 429, _CODES.UNIMPLEMENTED: 501, _CODES.UNAVAILABLE: 503, _CODES.DEADLINE_EXCEEDED: 504,
}  # fmt: skip
_TOO_LONG = "larger than max"
# Beginnings of gRPC's texts for UNAVAILABLE without a connection; and without a reply, which it marks in no other way.
UNCONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed", "empty address list")
LOST = (
    *UNCONNECTED, "Socket closed", "Connection reset", "recvmsg:", "sendmsg:", "Endpoint closing", "Transport closed",
    "Stream removed", "GOAWAY", "Received http2 header",
)  # fmt: skip
# Parts of these texts that may be quoted; the texts may also contain a server's words.
REASONS = (
    "Connection refused", "Connection reset", "No route to host", "Network is unreachable", "Host is down",
    "Domain name not found", "Broken pipe", "Socket closed", "CERTIFICATE_VERIFY_FAILED", "CERTIFICATE_REQUIRED",
    "certificate required", "UNKNOWN_CA", "WRONG_VERSION_NUMBER", "Hostname Verification Check failed", "handshake",
    "Failed parsing HTTP/2", "proxy",
)  # fmt: skip
_TLS = re.compile("certificate|_CA|WRONG_VERSION|handshake|Verification", re.IGNORECASE)
EARLY_S = 0.05  # seconds by which gRPC's time limit may come too early


class _Channels(ForkSafe):
    """Base of both kinds of channels: makes replies from the ends of calls."""

    _calls: dict[str, Any] = per_process(dict)

    def __init__(self, address: Address, longest: int) -> None:
        self._address, self._longest = address, min(longest, LONGEST)

    def _reply(self, body: bytes, trailing: Any, call: Call) -> Reply:
        """Return the reply to a call that succeeded.

        Raises:
            BadReply: the reply is too long.
        """
        limit = self._address.max_reply_bytes if call.max_reply is None else call.max_reply
        if len(body) > limit:
            raise BadReply(f"{self._address.origin} answered more than {limit} bytes: raise max_reply, or ask for less")
        return Reply(200, _headers(trailing), body)

    def _error_reply(self, error: Any, until: float) -> Reply:
        """Return the error that the server answered as a reply, with HTTP's status for gRPC's code, and code and text as JSON.

        A deadline that the server reports before its time is the server's error.

        Raises:
            TimedOut: the deadline has passed.
            Unreachable: the connection was not made, or lost.
            BadReply: the reply was longer than this side takes.
        """
        code, text, origin = error.code(), error.details() or "", self._address.origin
        if code is _CODES.DEADLINE_EXCEEDED and until - monotonic() < EARLY_S:
            raise TimedOut(f"{origin} did not answer in time")
        if code is _CODES.UNAVAILABLE and text.startswith(LOST):
            raise self._lost_call_error(text)
        status = STATUSES.get(code, 500)
        if code is _CODES.RESOURCE_EXHAUSTED and _TOO_LONG in text:
            if f"vs. {self._longest})" in text:  # of this side, which old versions do not say otherwise
                raise BadReply(f"{origin} answered more than {self._longest} bytes: raise max_reply, or ask for less")
            status = 413
        headers = _headers(error.trailing_metadata())
        with contextlib.suppress(KeyError, ValueError):
            headers.setdefault("retry-after", str(float(headers["grpc-retry-pushback-ms"]) / 1000))
        body = json.dumps({"error": {"status": code.name, "message": text}}).encode()
        return Reply(status, {**headers, "content-type": "application/json"}, body)

    def _lost_call_error(self, text: str) -> CloudError:
        """Return the Unreachable for a call without a reply; of gRPC's text it quotes only phrases of `REASONS`.

        It is not retriable if TLS failed or the port speaks no HTTP/2. `unsent` is True if no connection was made.
        """
        why = [reason for reason in REASONS if reason in text]
        hint = " (is this its gRPC port?)" if "Failed parsing HTTP/2" in why else ""
        error = Unreachable(f"{self._address.origin} could not be reached: {', '.join(why) or 'no connection'}{hint}")
        error.unsent = text.startswith(UNCONNECTED)
        if hint or (self._address.https and any(map(_TLS.search, why))):
            error.retriable = False  # it will be the same again
        return error


class Channels(_Channels):
    """gRPC channel to one address, for threads. Calls share its connection; cancelling one affects no other.

    Args:
        address: address of the server; its path is ignored.
        longest: maximum bytes of a reply.
    """

    _channel: grpc.Channel | None = initially(None)  # a child does not close its parent's: that would need the parent's threads
    _first: dict[str, grpc.Channel] = per_process(dict)
    _closed = False
    keeps_time = True  # gRPC's core ends a call by its time limit, whatever the server does

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Send the call and return the reply by the instant `until`; blocks. A stop request ends it, before or during the call.

        An error of the server is a reply with its status.

        Raises:
            CloudError: there is no reply in time, no valid one, or the call was cancelled.
            PolicyError: gRPC cannot send a header.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._address.origin} was not asked: its answer is not needed any more", unsent=True)
        options, failed = _options(self._address, call, until), None
        try:
            method = self._method(call.path)
            if cancel is None:
                body, rpc = method.with_call(call.body, **options)
            else:
                rpc = method.future(call.body, **options)  # a blocking call cannot be cancelled
                try:
                    cancel.on_ask(rpc.cancel)
                    body = rpc.result()
                finally:
                    cancel.on_ask(None)
                    rpc.cancel()  # Ctrl-C ends it; what has ended stays as it is
        except grpc.FutureCancelledError:
            raise Unreachable(f"{self._address.origin}: the call was cancelled: its answer is not needed any more") from None
        except grpc.RpcError as e:
            failed = e
        except ValueError as e:  # the channel was closed meanwhile, or metadata that gRPC does not send
            raise _unsent(self._address, e) from None
        if failed is not None:
            return self._error_reply(failed, until)
        return self._reply(body, rpc.trailing_metadata(), call)

    def _method(self, path: str) -> Any:
        """Return the callable for a method's path, stored per path. Opens the channel for the first one; calls at once share it.

        After `close` a channel that is still opened is closed again.
        """
        method = self._calls.get(path)
        if method is None:
            if self._channel is None:
                method = _open(grpc, self._address, self._longest)
                self._channel = self._first.setdefault("channel", method)  # atomic: calls at once share one
                if self._closed:
                    self.close()
            method = self._calls[path] = self._channel.unary_unary(path)
        return method

    def close(self) -> None:
        """Close the channel, which ends the calls under way."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()


class AsyncChannels(_Channels):
    """gRPC channel to one address, for one event loop at a time."""

    _channel: grpc.aio.Channel | None = initially(None)
    _loop: asyncio.AbstractEventLoop | None = initially(None)

    async def send(self, call: Call, until: float) -> Reply:
        """Send the call and return the reply by the instant `until`; see `Channels.send`, also for its errors.

        Opens the channel at the first call, and for another event loop a new one: the old one is dropped, not closed. Cancelling
        the task cancels the call.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a channel of another loop cannot be used here
            self._loop, self._channel, self._calls = loop, None, {}
        options, failed = _options(self._address, call, until), None
        try:
            method = self._calls.get(call.path)
            if method is None:
                if self._channel is None:
                    self._channel = _open(grpc.aio, self._address, self._longest)
                method = self._calls[call.path] = self._channel.unary_unary(call.path)
            rpc = method(call.body, **options)
            try:
                body = await rpc
            except asyncio.CancelledError:
                rpc.cancel()
                raise
        except grpc.aio.AioRpcError as e:
            failed = e
        except (ValueError, grpc.aio.UsageError) as e:
            raise _unsent(self._address, e) from None
        if failed is not None:
            return self._error_reply(failed, until)
        return self._reply(body, await rpc.trailing_metadata(), call)

    async def close(self) -> None:
        """Close the channel if it belongs to the running loop, which ends the calls under way.

        Otherwise a no-op: `abandon` closes it.
        """
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()

    def abandon(self) -> None:
        """Close the channel on its own loop, without waiting; from outside the loop, or from a thread."""
        channel, self._channel, self._calls = self._channel, None, {}
        if channel is not None and self._loop is not None and self._loop.is_running():
            start_task_on(self._loop, channel.close)


def _open(kind: Any, address: Address, longest: int) -> Any:
    """Return a new channel of `grpc` or `grpc.aio`, with TLS for an https address.

    It connects at the first call, and again by itself after at most a second. gRPC's own retries and compression are off. Raise
    PolicyError if a certificate's file cannot be read.
    """
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", longest),
        ("grpc.enable_retries", 0),  # there is one retry layer, which asks the guard first
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a reply is as long as it is
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ("grpc.primary_user_agent", "edgeroute"),
    ]
    host = f"[{address.host}]" if ":" in address.host else address.host
    target = f"dns:///{host}:{address.port}"
    if not address.https:
        return kind.insecure_channel(target, options=options)
    return kind.secure_channel(target, _credentials(address), options=options)


def _credentials(address: Address) -> Any:
    """Return the TLS credentials of a channel, read from files.

    The authorities are those of certifi and the system, or of the file `verify`; the client's certificate is `cert`, if given.

    Raises:
        PolicyError: a file cannot be read.
    """
    try:
        files: Iterable[Any] = [address.verify]
        if address.verify is True:
            system_file = ssl.get_default_verify_paths().cafile
            files = [certifi.where(), *([system_file] if system_file else [])]
        roots = b"\n".join(Path(file).read_bytes() for file in files)
        chain, key = (None, None) if address.cert is None else (Path(file).read_bytes() for file in address.cert)
    except OSError as e:
        raise PolicyError(f"the certificates for {address.origin} cannot be read: {e}") from e
    return grpc.ssl_channel_credentials(roots, key, chain)


def _options(address: Address, call: Call, until: float) -> dict[str, Any]:
    """Return the keyword arguments with which gRPC makes a call.

    They are the time left in seconds (None: no limit), and as metadata the headers of the call and the address, with secrets.

    Raises:
        TimedOut: no time is left.
    """
    left_s = until - monotonic()
    if left_s <= 0:
        raise TimedOut(f"{address.origin} was not asked: no time was left", unsent=True)
    metadata = [(name.lower(), value) for name, value in (*call.headers, *address.headers())]
    return {"timeout": None if left_s == INF else left_s, "metadata": metadata}


def _unsent(address: Address, error: Exception) -> CloudError | PolicyError:
    """Return the error for a call that gRPC did not send."""
    if "metadata" in str(error).lower():
        return PolicyError("headers has a name or value that gRPC cannot send: it takes lower case letters, digits, - and _")
    return Unreachable(f"{address.origin} was not asked: the channel is closed", unsent=True)


def _headers(metadata: Any) -> dict[str, str]:
    """Return the text metadata of a reply as headers. Binary metadata is left out."""
    return {str(name).lower(): value for name, value in metadata or () if isinstance(value, str)}
