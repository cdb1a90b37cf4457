"""Destinations of digests: a folder, an object store, an address that takes PUT, a broker. No error shows a secret.

Each sends one digest, blocking, and raises for one that was not stored.
"""

from __future__ import annotations

import os
import ssl
from base64 import b64encode
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from edgeroute.catalog.model_folder_and_downloads import replace_durably
from edgeroute.errors import PolicyError, StoreError
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import SUCCESS, Address, Call, Secret
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.numeric_loopback_check import is_loopback

TIMEOUT_S: Final = 20.0  # maximum seconds of an upload
NO_SUBSCRIBER: Final = 16  # reason code of MQTT 5: the message has reached nobody


class Destination(Protocol):
    """Place where digests are stored."""

    where: str  # address for the ledger and messages, without user, password, path and query

    def put(self, name: str, data: bytes) -> None:
        """Store a digest under a name, replacing an earlier one; blocks up to `TIMEOUT_S`.

        Raises:
            StoreError, CloudError, RuntimeMissing: it is not stored, or that is not known.
        """


class Folder:
    """Folder, such as a network drive; it has to exist, as an empty mount point would be another disk."""

    def __init__(self, path: str) -> None:
        self._path, self.where = Path(path), path

    def put(self, name: str, data: bytes) -> None:
        """Write a file durably, replacing an earlier one, and make its subfolders.

        Raises StoreError, also if the folder itself is missing.
        """
        if not self._path.is_dir():
            raise StoreError(f"{self.where}: there is no such folder now")
        try:
            (self._path / name).parent.mkdir(parents=True, exist_ok=True)
            replace_durably(self._path / name, data)
        except OSError as e:
            raise StoreError(f"{self.where} cannot be written: {e.strerror}") from None


class Web:
    """Address that takes HTTP PUT. `{name}` in it stands for the digest's name; without it that is appended to the path."""

    def __init__(self, to: SplitResult) -> None:
        self._to, host = to, to.netloc.rpartition("@")[2]
        user = f"{unquote(to.username or '')}:{unquote(to.password or '')}"
        headers = {} if "@" not in to.netloc else {"Authorization": Secret(f"Basic {b64encode(user.encode()).decode()}")}
        self._address = Address(f"{to.scheme}://{host}", headers=headers)
        self.where = self._address.origin

    def put(self, name: str, data: bytes) -> None:
        """Send the data with HTTP PUT on a new connection; the name replaces `{name}` in the address, or is appended to its path.

        Redirects are not followed. Raises CloudError, or StoreError for a status other than success.
        """
        path, query = (part.replace("{name}", name) for part in (self._to.path, self._to.query))
        if "{name}" not in self._to.path + self._to.query:
            path = f"{path.rstrip('/')}/{name}"
        with closing(Connections(self._address)) as connections:
            call = Call("PUT", path, [("Content-Type", "application/octet-stream")], data, query=query)
            reply = connections.send(call, monotonic() + TIMEOUT_S)
        if reply.status not in SUCCESS:
            raise StoreError(f"{self.where} answered with HTTP status {reply.status}")


class Bucket:
    """Bucket of an object store with Amazon's interface, s3://BUCKET/PREFIX; credentials, region and endpoint are in AWS_*."""

    def __init__(self, to: SplitResult) -> None:
        self._bucket, self._prefix, self.where = to.netloc, to.path.strip("/"), f"s3://{to.netloc}"

    def put(self, name: str, data: bytes) -> None:
        """Write an object, without a retry; over https unless the endpoint is this device. Credentials are in AWS_*.

        Raises StoreError for every failure, without its text, and RuntimeMissing without obstore.
        """
        stores = import_needed("obstore.store", "[fleet] with s3:// needs obstore: pip install 'edgeroute[fleet-s3]'")
        host = urlsplit(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or "").hostname or ""
        limit = timedelta(seconds=TIMEOUT_S)
        try:
            store = stores.S3Store(
                self._bucket, prefix=self._prefix or None,
                client_options={"timeout": limit, "connect_timeout": limit, "allow_http": _is_here(host)},
                retry_config={"max_retries": 0, "retry_timeout": limit},
            )  # fmt: skip
            store.put(name, data)
        except Exception as e:  # noqa: BLE001 - its text may have a request with its signature
            raise StoreError(f"{self.where} took no object: {type(e).__name__}") from None


class Broker:
    """Broker of MQTT 5. A digest is a message with QoS 1 under TOPIC/NAME; without a subscriber it counts as not stored."""

    def __init__(self, to: SplitResult) -> None:
        self._to, self._tls = to, to.scheme == "mqtts"
        self.where = f"{to.scheme}://{to.netloc.rpartition('@')[2]}"

    def put(self, name: str, data: bytes) -> None:
        """Connect, publish a message with QoS 1, and wait for its acknowledgement, all within about `TIMEOUT_S`; then disconnect.

        Raises StoreError without an acknowledgement, for a refusal, and if there is no subscriber; RuntimeMissing without
        paho-mqtt.
        """
        mqtt = import_needed("paho.mqtt.client", "[fleet] with mqtts:// needs paho-mqtt: pip install 'edgeroute[fleet-mqtt]'")
        client, codes, to = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5), list[Any](), self._to
        client.connect_timeout = TIMEOUT_S
        client.on_connect = lambda *event: codes.append(event[3]) if event[3].is_failure else None
        client.on_publish = lambda *event: codes.append(event[3])
        if self._tls:
            client.tls_set_context(ssl.create_default_context())
        if to.username:
            client.username_pw_set(unquote(to.username), unquote(to.password or ""))
        until = monotonic() + TIMEOUT_S
        try:
            client.connect(to.hostname, to.port or (8883 if self._tls else 1883), keepalive=round(TIMEOUT_S))
            client.publish(f"{to.path.strip('/')}/{name}".lstrip("/"), data, qos=1)
            while not codes and monotonic() < until and client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
                pass
            client.disconnect()
        except (OSError, ValueError) as e:
            raise StoreError(f"{self.where} took no message: {type(e).__name__}") from None
        if not codes:
            raise StoreError(f"{self.where} did not acknowledge a message")
        if codes[0].is_failure or codes[0].value == NO_SUBSCRIBER:
            raise StoreError(f"{self.where} took no message: reason code {codes[0].value}")


_KINDS: dict[str, Any] = {"http": Web, "https": Web, "s3": Bucket, "mqtt": Broker, "mqtts": Broker}


def destination(to: str) -> Destination:
    """Return the destination that a text names: a folder, or an address with http(s)://, s3:// or mqtt(s)://.

    Connects to nothing.

    Raises:
        PolicyError: the text names none, or an address without TLS that is not this device's, or one that is the same for all
            digests, as a presigned one is: each would replace the one before. Quotes nothing of it.
    """
    if "://" not in to:
        return Folder(to)
    try:
        parts = urlsplit(to)
        valid = parts.scheme in _KINDS and bool(parts.hostname) and parts.port != 0 and to.isprintable() and not parts.fragment
    except ValueError:
        valid = False
    if valid and parts.scheme == "s3" and ("@" in parts.netloc or ":" in parts.netloc):
        raise PolicyError("fleet: to has a user or password: those of an object store are in AWS_*")
    if not valid:
        raise PolicyError("fleet: to is a folder, or an address that begins with https://, s3:// or mqtts://")
    if parts.scheme in {"http", "mqtt"} and not _is_here(parts.hostname or ""):
        raise PolicyError(f"fleet: to begins with {parts.scheme}://, which is for this device itself: use {parts.scheme}s://")
    if parts.scheme in {"http", "https"} and parts.query and "{name}" not in parts.path + parts.query:
        raise PolicyError("fleet: to has a query: write {name} where a digest's name goes, or s3:// for one that is presigned")
    return _KINDS[parts.scheme](parts)  # type: ignore[no-any-return]


def _is_here(host: str) -> bool:
    """Return True if a host is this device."""
    return host == "localhost" or is_loopback(host)
