"""Serves a router to programs in any language: as OpenAI's API, and over the Open Inference Protocol v2.

`run.gateway(router)` runs it; `app.app(router)` is the ASGI application. On the serve room's server, bodies and protocol.
"""
