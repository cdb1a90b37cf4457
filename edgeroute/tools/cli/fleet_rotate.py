"""Command `edgeroute fleet rotate`: a new random id of this device."""

from __future__ import annotations

import json

from edgeroute.errors import BadInput, StoreError
from edgeroute.tools.cli.command_runner import command
from edgeroute.tools.cli.fleet import fleet
from edgeroute.tools.cli.outbox_and_egress import state_folder
from edgeroute.tools.cli.tables_and_options import Json, OptionalPolicy, OptionalState


@command(fleet)
def rotate(*, policy: OptionalPolicy = None, state: OptionalState = None, as_json: Json = False) -> None:
    """Draw a new random id for this device's digests. A day of which there is a digest keeps its id.

    The owner sees a new device. Programs that run take the new id.
    """
    from edgeroute.fleet.daily_digests import new_device
    from edgeroute.stores.sqlite_file import KeyValueStore

    path = state_folder(policy, state) / "state.db"
    if not path.exists():
        raise BadInput(f"{path}: there is no state: no router with this state folder has run, or it was removed")
    store = KeyValueStore(path)
    try:
        device = new_device(store)
        if not store.flush():
            raise StoreError(f"{path} cannot be written now")
    finally:
        store.close()
    print(json.dumps({"device": device}) if as_json else f"this device is {device} from the next day on")
