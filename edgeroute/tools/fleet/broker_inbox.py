"""Digests from an MQTT broker (`Subscription`, `collect_messages`): each message is a file of an inbox, which is then collected.

A message is acknowledged once it is a file.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from ssl import create_default_context
from time import monotonic, sleep
from typing import Any
from urllib.parse import unquote, urlsplit

from edgeroute.catalog.model_folder_and_downloads import replace_durably
from edgeroute.errors import BadInput, StoreError
from edgeroute.fleet.digest_encoding_and_coarsening import MOST_BYTES
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.numeric_loopback_check import is_loopback
from edgeroute.system.untrusted_files import read_text
from edgeroute.tools.fleet.digest_collection import NAME, NAME_SHOWN, Collected, Refusal, Rules, collect, report_refusals
from edgeroute.tools.fleet.digest_sources import FOLDER, TOO_LARGE, Folder

INBOX = ".inbox"
EVERY_S, EVERY = 600.0, 50_000  # seconds, and messages, after which the inbox is collected
SESSION_S = 7 * 86_400  # seconds for which a broker holds messages while nobody collects
MOST_PACKET = 1 << 14  # most bytes of a message; a broker drops larger ones
AWAY_S = 60.0  # seconds for which a broker that went away is tried again
AGAIN_S = 0.5  # seconds between two attempts


class Subscription:
    """Subscription to a topic and all below it, in a session that the broker holds while nobody collects.

    Args:
        url: mqtts://[USER:PASSWORD@]HOST[:PORT]/TOPIC; mqtt:// to this machine alone.
        store: folder of the store, which has the inbox and the session's name.

    Raises:
        BadInput: the address is none, or is mqtt:// to another machine.
        StoreError: the broker does not answer, or refuses.
    """

    def __init__(self, url: str, store: Path) -> None:
        mqtt = import_needed("paho.mqtt.client", "mqtt:// needs paho-mqtt: pip install 'edgeroute[fleet-mqtt]'")
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        to = urlsplit(url)
        host, tls, topic = to.hostname or "", to.scheme == "mqtts", to.path.strip("/")
        if not host or "+" in topic or "#" in topic:
            raise BadInput("write mqtts://HOST/TOPIC, without wildcards: all below TOPIC is collected")
        if not tls and host != "localhost" and not is_loopback(host):
            raise BadInput(f"mqtt:// to {host}: only this machine is reached without TLS: use mqtts://")
        self.where, self._store, self._inbox = f"{to.scheme}://{host}", store, store / INBOX
        self._refused: list[Refusal] = []
        self._closed = ""
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=_session(store), protocol=mqtt.MQTTv5, manual_ack=True
        )  # fmt: skip
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval, properties.MaximumPacketSize = SESSION_S, MOST_PACKET
        if tls:
            client.tls_set_context(create_default_context())
        if to.username:
            client.username_pw_set(unquote(to.username), unquote(to.password or ""))
        client.on_connect = lambda *event: self._connected(client, f"{topic}/#" if topic else "#", event[3])
        client.on_message = lambda _, __, message: self._receive(client, message)
        client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        self._client, self.received, self._subscribed = client, 0, False
        try:
            client.connect(host, to.port or (8883 if tls else 1883), keepalive=30, clean_start=False, properties=properties)
        except (OSError, ValueError) as e:
            raise StoreError(f"{self.where} does not answer: {type(e).__name__}") from None
        until = monotonic() + AWAY_S
        while not (self._subscribed or self._closed) and monotonic() < until and client.loop(AGAIN_S) == 0:
            pass
        if not self._subscribed:
            raise StoreError(f"{self.where} {f'refuses: {self._closed}' if self._closed else 'does not answer'}")

    def receive(self, until: float, most: int = EVERY) -> None:
        """Receive messages into the inbox until a time of the monotonic clock, or until `most` have come. Blocks.

        A broker that goes away is tried again every half second, for `AWAY_S`.

        Raises:
            StoreError: the broker refuses, or does not answer for `AWAY_S`; or a message cannot be stored.
        """
        self.received, away = 0, None
        while monotonic() < until and self.received < most:
            if self._client.loop(min(0.5, max(0.0, until - monotonic()))) == 0:
                away = None
                continue
            if self._closed:
                raise StoreError(f"{self.where} refuses: {self._closed}")
            away = away or monotonic()
            if monotonic() - away > AWAY_S:
                raise StoreError(f"{self.where} does not answer")
            sleep(AGAIN_S)
            with suppress(OSError):
                self._client.reconnect()

    def collect(self, rules: Rules) -> Collected:
        """Collect what has been received into the store's tables, and delete the inbox; takes the store's lock.

        Messages refused on arrival are counted in the result and named in refused.jsonl. Raises as `digest_collection.collect`;
        then the inbox stays.
        """
        refused, self._refused = self._refused, []
        report_refusals(self._store, refused)
        counts = Counter(why for _, why in refused)
        if not (self._inbox / FOLDER).is_dir():
            return Collected(0, (), counts)
        result = collect(Folder(self._inbox), self._store, rules)
        shutil.rmtree(self._inbox)
        return result._replace(refused=result.refused + counts)

    def close(self) -> None:
        """Disconnect; the broker holds the session."""
        self._client.disconnect()
        self._client.loop(0.1)

    def _connected(self, client: Any, topic: str, code: Any) -> None:
        """Subscribe to the topic, or record why the broker refuses, for `receive` to raise."""
        if code.is_failure:
            self._closed = str(code)
        else:
            client.subscribe(topic, qos=1)

    def _receive(self, client: Any, message: Any) -> None:
        """Count a message in `received`, store it as a file of the inbox, and acknowledge it if its QoS is above 0.

        One with a name that is no digest's, or too large, is noted as refused instead, and acknowledged too. Raises StoreError if
        it cannot be stored; it is counted then, and not acknowledged.
        """
        name, self.received = "/".join(message.topic.split("/")[-2:]), self.received + 1
        if not NAME.fullmatch(name):
            self._refused.append(Refusal(f"{self.where}/{message.topic}"[:NAME_SHOWN], "foreign"))
        elif len(message.payload) > MOST_BYTES:
            self._refused.append(Refusal(name, TOO_LARGE))
        else:
            path = self._inbox / FOLDER / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_durably(path, bytes(message.payload))
            except OSError as e:
                raise StoreError(f"{self._inbox} cannot be written: {e.strerror}") from e
        if message.qos:
            client.ack(message.mid, message.qos)


def _session(store: Path) -> str:
    """Return the name of the store's session with brokers, drawn at random and stored, with the folder, at the first call."""
    path = store / ".mqtt-session"
    store.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        replace_file(path, f"edgeroute-{token_hex(8)}")
    return read_text(path, 100).strip()


def collect_messages(
    url: str, store: Path, rules: Callable[[], Rules], *, for_s: float | None = None, ready: Callable[[], object] | None = None
) -> Collected:
    """Collect digests from a broker for some time, or until Ctrl-C; first those that an earlier run has left. Blocks.

    The inbox is collected every ten minutes, and after 50,000 messages. Returns the sums of all collections.

    Args:
        url: as of `Subscription`.
        store: folder of the store.
        rules: returns what a digest must fulfil now.
        for_s: seconds; None: until Ctrl-C.
        ready: called once the broker has confirmed the subscription.

    Raises:
        StoreError: as `Subscription` and `collect`.
    """
    subscription = Subscription(url, store)
    if ready is not None:
        ready()
    end = None if for_s is None else monotonic() + for_s
    total = subscription.collect(rules())
    try:
        while end is None or monotonic() < end:
            pause = monotonic() + EVERY_S
            subscription.receive(pause if end is None else min(pause, end))
            total = total.plus(subscription.collect(rules()))
    except KeyboardInterrupt:
        pass
    finally:
        subscription.close()
    return total.plus(subscription.collect(rules()))
