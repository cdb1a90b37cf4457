"""A small inference server for one machine: for demos, tests and first steps; no fleet, no TLS, no authentication.

`run.serve(paths)` runs it; `app.app(models)` is the ASGI application. It implements the Open Inference Protocol v2, JSON
and binary tensors, and serves the models' raw tensors: preprocessing is the client's.
"""
