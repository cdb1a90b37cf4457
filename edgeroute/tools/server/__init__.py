"""HTTP servers for one machine: of model files (`edgeroute serve`) and of a router (`edgeroute gateway`).

`serve.serve(paths)` runs a small inference server, for demos, tests and first steps: no fleet, no TLS, no authentication. It
implements the Open Inference Protocol v2, JSON and binary tensors, and serves the models' raw tensors: preprocessing is the
client's. `gateway.gateway(router)` serves a router to programs in any language, as OpenAI's API and over that protocol.
`serve.app(models)` and `gateway.app(router)` are the ASGI applications.
"""
