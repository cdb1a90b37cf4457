from __future__ import annotations

import json

from edgeroute.cli.exits import NOT_READY, OK
from edgeroute.cli.options import Json, Policy
from edgeroute.core.texts import printable


def check(*, policy: Policy, as_json: Json = False) -> int:
    """Reports what works, what may leave the device and where to, and what is missing."""
    from edgeroute.router.router import Router

    with Router.from_policy(policy) as router:
        found = router.check()
    print(json.dumps({"ok": found.ok, "lines": found.lines}) if as_json else printable(str(found)))
    return OK if found.ok else NOT_READY
