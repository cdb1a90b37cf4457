"""Ray Serve application that serves models by the Open Inference Protocol v2. Copied by `edgeroute export`; needs no edgeroute.

`serve run serve.yaml` in this folder starts it, by `build`. `Ingress` handles HTTP; `Models` runs the models, and scales with the
load.
"""

import asyncio
from math import exp
from pathlib import Path
from time import monotonic
from typing import Any

from by_card import BadInput, Description, Model, pictures
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from oip_messages import LENGTH, read, write
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from weighted_split import arm_of, checked_shares

HERE = Path(__file__).parent / "models"
ENCODED = "-encoded"  # suffix of the model name under which a model takes picture files
ATTEMPTS = 3  # attempts of a request whose replica died: a run changes nothing, and may be repeated
ILL = 10  # failed runs in a row after which a replica is replaced if its model fails on zeros, too
MOST_BODY = 64 << 20  # most bytes of a body
WINDOW_S = 2.0  # time constant of the average of a replica's use, seconds
LOAD = "endpoint-load-metrics"  # the header that reports the load, in ORCA's text form
app = FastAPI()


def descriptions(names: list[str]) -> dict[str, Description]:
    """Read the description of each model, by name, without loading any."""
    return {name: Description(HERE / name) for name in names}


@serve.deployment
class Models:
    """Ray Serve deployment that runs the models; each has its own queue, from which `serve.batch` forms runs.

    Args:
        max_batch: most requests, and most rows, of one run.
        wait_s: time that the first request waits for others, seconds.
        models_per_replica: most models in memory; the least recently used is unloaded.
    """

    def __init__(self, max_batch: int, wait_s: float, models_per_replica: int) -> None:
        self._batch, self._failed = (max_batch, wait_s), 0
        self._ill: Model | None = None
        self._used, self._level, self._at = 0.0, 0.0, monotonic()

        async def load(name: str) -> Any:
            """Load a model and return its request function."""
            return self._request_function(await asyncio.to_thread(Model, HERE / name, most=max_batch))

        self._load = serve.multiplexed(max_num_models_per_replica=models_per_replica)(load)

    def _request_function(self, model: Model) -> Any:
        """Return an async function that answers one request of a model, sharing runs between requests at the same time.

        The function decodes picture files first, and returns (result, size of the batch, seconds of the run): an error of a run
        as its text, that of a bad input with size 0. Bad pictures raise BadInput. Runs set the load, and count those in a row
        that failed as a whole.
        """
        most, wait_s = self._batch

        @serve.batch(max_batch_size=most, batch_wait_timeout_s=wait_s)
        async def run(feeds: list[Any]) -> list[Any]:
            """Run several requests as one batch in a thread; count failures in a row."""
            n, begun = len(feeds), monotonic()
            self._change_level(n / most)
            try:
                results = await asyncio.to_thread(model.run_many, feeds)
            finally:
                self._change_level(-n / most)
            run_s = monotonic() - begun
            ill = [isinstance(result, Exception) and not isinstance(result, BadInput) for result in results]
            self._failed, self._ill = (self._failed + 1, model) if all(ill) else (0, None)
            return [
                (_error_text(result), 0 if isinstance(result, BadInput) else n, run_s)
                if isinstance(result, Exception)
                else (result, n, run_s)
                for result in results
            ]

        specs = {spec["name"]: spec["picture"] for spec in model.inputs}

        async def answer(feed: dict[str, Any]) -> Any:
            """Decode the request's pictures in a thread, then run it."""
            for name, array in feed.items():
                if array.dtype == object and specs[name] is not None:
                    feed = {**feed, name: await asyncio.to_thread(pictures, array, specs[name])}
            return await run(feed)

        return answer

    def _change_level(self, more: float) -> float:
        """Update the average use when runs begin, or end (`more` below 0), that fill so much of a batch; return the average."""
        now = monotonic()
        decay = exp((self._at - now) / WINDOW_S)
        self._used = self._used * decay + min(1.0, self._level) * (1 - decay)
        self._level, self._at = max(0.0, self._level + more), now
        return self._used

    async def infer(self, name: str, feed: dict[str, Any]) -> Any:
        """Load the model if needed; answer a request by (outputs or error text, requests in the run, its seconds, average use).

        Requests in the run are 0 if the caller's input was wrong.
        """
        model = await self._load(name)
        try:
            outputs, n, run_s = await model(feed)
        except BadInput as e:
            outputs, n, run_s = _error_text(e), 0, 0.0
        return outputs, n, run_s, self._change_level(0)

    async def ready(self, name: str) -> bool:
        """Load a model if it is not in memory; return True."""
        await self._load(name)
        return True

    async def check_health(self) -> None:
        """Raise if the model fails on zeros after 10 failed runs in a row; called by Ray, which then replaces the replica.

        Callers alone cannot cause that: zeros must fail as well. If they do not, the count begins again.
        """
        if self._failed >= ILL and self._ill is not None:
            await asyncio.to_thread(self._ill.try_zeros)
            self._failed = 0


def _error_text(error: Exception) -> str:
    """Return an exception's message, cut to 400 characters."""
    return (str(error) or type(error).__name__)[:400]


def _missing_reply(name: str) -> Response:
    """Return the 404 reply for an unknown model."""
    return JSONResponse({"error": f"there is no model {name[:80]!r} here"}, 404)


def _busy_reply(error: Exception) -> Response:
    """Return the 503 reply for an overload or missing replicas; a client answers on its device and tries again later."""
    return JSONResponse(
        {"error": f"overloaded: {type(error).__name__}"}, 503, {"retry-after": "1", LOAD: "TEXT application_utilization=1"}
    )


@serve.deployment
@serve.ingress(app)  # it copies the routes' functions here, with all that they use, which must be defined above
class Ingress:
    """Ray Serve deployment that handles HTTP, and chooses the model for each caller."""

    def __init__(self, models: Any, names: list[str], models_per_replica: int) -> None:
        self._models, self._descriptions = models, descriptions(names)
        # True sends a request to a replica that has its model in memory; otherwise each has all models.
        self._routed = models_per_replica < len(names)
        self._splits: dict[str, dict[str, float]] = {}
        self._key = "x-edgeroute-key"

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Apply `user_config` of the YAML, the shares and the header of their key, so that they change without a restart.

        Raises:
            ValueError: shares do not add up to 1, or name no model.
        """
        self._splits = checked_shares(config.get("splits") or {}, self._descriptions)
        self._key = str(config.get("key_header") or self._key).lower()

    def _find(self, name: str) -> tuple[str, Description] | None:
        """Return a name without its suffix for files, and the description of its model or first arm; None if unknown.

        The suffix is only taken off for a model that takes pictures. An arm is one of the models that share a name.
        """
        plain = name.removesuffix(ENCODED)
        for candidate in dict.fromkeys((name, plain)):
            arm = next(iter(self._splits.get(candidate, {})), candidate)
            if arm in self._descriptions and (
                candidate == name or any(spec["picture"] is not None for spec in self._descriptions[arm].inputs)
            ):
                return candidate, self._descriptions[arm]
        return None

    def _call(self, name: str) -> Any:
        """Return the handle of the models; if not each replica has all of them, of one with the model in memory."""
        return self._models.options(multiplexed_model_id=name) if self._routed else self._models

    @app.get("/v2")
    async def server(self) -> Any:
        """Describe the server."""
        return {"name": "edgeroute-ray", "version": "1", "extensions": ["binary_tensor_data", "model_repository"]}

    @app.get("/v2/health/live")
    async def live(self) -> Any:
        """Answer that this replica is alive."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def all_ready(self) -> Response:
        """Answer whether the first model is ready."""
        return await self.ready(next(iter(self._descriptions)))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/1/ready")
    async def ready(self, name: str) -> Response:
        """Load a model, or all arms (models) that share its name, in a replica, and answer that it is ready; 404 if unknown.

        503 if there is no replica, or it is overloaded.
        """
        match = self._find(name)
        if match is None:
            return _missing_reply(name)
        arms = list(self._splits.get(match[0], {match[0]: 1.0}))
        try:
            for arm in arms:
                await self._call(arm).ready.remote(arm)
        except (RayActorError, BackPressureError, DeploymentUnavailableError) as e:
            return _busy_reply(e)
        return JSONResponse({"name": name, "ready": True})

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/1")
    async def metadata(self, name: str) -> Response:
        """Describe a model, with its labels and the arms (models) that share its name; 404 if unknown.

        Under `NAME-encoded` its pictures are files.
        """
        match = self._find(name)
        if match is None:
            return _missing_reply(name)
        plain, description = match
        about = description.metadata(name)
        if plain != name:
            files = {spec["name"] for spec in description.inputs if spec["picture"] is not None}
            about["inputs"] = [
                {**tensor, "datatype": "BYTES", "shape": [-1, 1]} if tensor["name"] in files else tensor
                for tensor in about["inputs"]
            ]
        if plain in self._splits:
            about["parameters"]["arms"] = self._splits[plain]
        return JSONResponse(about)

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/1/infer")
    async def infer(self, name: str, request: Request) -> Response:
        """Read a request, choose its arm (one of the models that share a name) by the hash of its key, run it, and reply.

        The key is a header, else the request's id, else its body. The reply's headers name the arm, the requests in its run and
        the load. Faults are replies: 400, 404, 413 above 64 MiB, 500, 503.
        """
        match = self._find(name)
        if match is None:
            return _missing_reply(name)
        plain, description = match
        body = await request.body()
        if len(body) > MOST_BODY:
            return JSONResponse({"error": f"a request has at most {MOST_BODY} bytes"}, 413)
        try:
            ask = read(body, request.headers.get(LENGTH), description.inputs, description.outputs)
        except BadInput as e:
            return JSONResponse({"error": str(e)}, 400)
        arm = plain
        if plain in self._splits:
            key = request.headers.get(self._key) or ask.id
            arm = arm_of(plain, self._splits[plain], body if key is None else key.encode())
        begun = monotonic()
        try:
            outputs, batch, run_s, used = await self._run(arm, ask.feed)
        except (RayActorError, BackPressureError, DeploymentUnavailableError) as e:
            return _busy_reply(e)
        if isinstance(outputs, str):
            return JSONResponse({"error": outputs}, 500 if batch else 400)
        queue_s = max(0.0, monotonic() - begun - run_s)
        load = f"TEXT application_utilization={used:.3f}, named_metrics.queue_s={queue_s:.3f}"
        headers, reply = write(ask, outputs, name, **({} if arm == plain else {"arm": arm}))
        return Response(reply, headers={**headers, "x-edgeroute-arm": arm, "x-edgeroute-batch": str(batch), LOAD: load})

    async def _run(self, arm: str, feed: dict[str, Any], left: int = ATTEMPTS) -> Any:
        """Run a request, and return what `Models.infer` returns; repeat it on another replica if one dies, three attempts in all.

        The error of the last attempt is raised, and that of an overload at once.
        """
        try:
            return await self._call(arm).infer.remote(arm, feed)
        except RayActorError:
            if left == 1:
                raise
        return await self._run(arm, feed, left - 1)


def build(args: dict[str, Any]) -> Any:
    """Return the application, bound but not started, from `args` of the YAML; called by `serve run`."""
    names, models_per_replica = [str(name) for name in args["models"]], int(args["models_per_replica"])
    models = Models.bind(int(args["max_batch"]), float(args["wait_s"]), models_per_replica)  # type: ignore[attr-defined]  # a deployment's
    return Ingress.bind(models, names, models_per_replica)  # type: ignore[attr-defined]  # a deployment's
