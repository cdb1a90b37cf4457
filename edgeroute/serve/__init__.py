"""A small inference server for one machine: demos, tests, a first hour; not a fleet, no TLS, no authentication.

`run.serve(paths)` runs it; `app.app(models)` is the ASGI application. It speaks the Open Inference Protocol v2, JSON
and binary tensors, and serves the models' raw tensors: whoever calls does the preprocessing.
"""
