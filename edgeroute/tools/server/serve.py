"""`serve()`: runs model files as an HTTP server on uvicorn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edgeroute.edge.runtimes import load
from edgeroute.errors import RuntimeMissing
from edgeroute.tools.python_names import is_python_name, python_object
from edgeroute.types import EdgeModel

try:
    from edgeroute.tools.server.serve_app import app, watch
    from edgeroute.tools.server.uvicorn_host import run as host_run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[serve]'") from e


def serve(
    models: Sequence[str | Path | EdgeModel],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int = 1,
    max_batch: int = 32,
    queue: int = 256,
    max_body_bytes: int = 64 << 20,
    max_json_bytes: int = 16 << 20,
    max_bodies_bytes: int = 256 << 20,
    body_timeout_s: float = 30.0,
    metrics: bool = False,
    logs: bool = False,
    on_ready: Callable[[str], object] | None = None,
) -> int:
    """Serve models until SIGTERM or SIGINT; then finish requests in progress for at most 5 s. Blocks.

    Returns the number of that signal; 0 in a thread, which receives no signals. Notifies a service manager, such as systemd, when
    it is ready, alive while its models answer, and stopping.

    Args:
        models: paths of model files, each with its card beside it if there is one; `module:name` of a model or a function in
            Python; or models.
        host: address to listen on; the default accepts only this machine. There is no authentication.
        port: port to listen on; 0 selects a free one.
        threads: threads per run of a model file.
        max_batch: rows of several requests merged into one run.
        queue: requests that may wait for one model.
        max_body_bytes: bytes of a request's body.
        max_json_bytes: bytes of the JSON in it.
        max_bodies_bytes: bytes of all bodies in progress.
        body_timeout_s: time for a request's body to arrive.
        metrics: True serves `/metrics` for Prometheus.
        logs: True logs each inference to `edgeroute.requests`, with the id that its client gave it.
        on_ready: called with the URL once the server listens.

    Raises:
        PolicyError: the address cannot be listened on, a module or name does not exist, or `serve_app.app` refuses a model.
        ModelError: a model cannot be loaded.
    """
    application = app(
        [named_model(model, threads) for model in models],
        max_batch=max_batch, queue=queue, max_body_bytes=max_body_bytes, max_json_bytes=max_json_bytes,
        max_bodies_bytes=max_bodies_bytes, body_timeout_s=body_timeout_s, metrics=metrics, logs=logs,
    )  # fmt: skip
    return host_run(application, host, port, partial(watch, application.state.served.values()), on_ready)


def named_model(model: str | Path | EdgeModel, threads: int = 1) -> EdgeModel:
    """Return the model at a path, or by its name in Python, `module:name`, whose module is imported from this folder, too.

    Raises:
        PolicyError: there is no such module or name.
        ModelError: the model cannot be created.
    """
    if not isinstance(model, str | Path):
        return load(model)
    if is_python_name(str(model)):
        return load(python_object(str(model), "model"))
    return load(model, **({} if threads == 1 else {"threads": threads}))
