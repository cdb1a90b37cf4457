"""Prints, as a line of JSON whenever it changes, what Ray Serve's controller says: application and deployment -> replicas by state."""

from __future__ import annotations

import json
from time import sleep

import ray
from ray import serve

ray.init(address="127.0.0.1:6379", namespace="serve", log_to_driver=False, logging_level="ERROR")
last = None
while True:
    said = {
        f"{name}/{deployment}": {
            getattr(state, "value", str(state)): count for state, count in found.replica_states.items() if count
        }
        for name, application in serve.status().applications.items()
        for deployment, found in application.deployments.items()
    }
    if said != last:
        print(json.dumps(said), flush=True)
        last = said
    sleep(0.2)  # between looks at a controller
