from __future__ import annotations

import json

from edgeroute.cli.exits import OK


def schema() -> int:
    """Prints the JSON Schema of policy files, for an editor or a validator."""
    from edgeroute import settings

    print(json.dumps(settings.schema(), indent=2))
    return OK
