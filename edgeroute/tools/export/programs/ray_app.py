"""Models on Ray Serve, behind the Open Inference Protocol v2. Written by `edgeroute export`, which it does not need.

`serve run serve.yaml` in this folder starts it. `Ingress` speaks HTTP; `Models` has the models, and grows with the load.
"""

import asyncio
from math import exp
from pathlib import Path
from time import monotonic
from typing import Any

from arms import arm_of, checked
from by_card import BadInput, Model, Said
from by_card import pictures as decoded
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from oip import LENGTH, read, write
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

HERE = Path(__file__).parent / "models"
ENCODED = "-encoded"
"""What ends the name by which a model takes files of pictures."""
ATTEMPTS = 3
"""Of a request whose replica died: a run changes nothing, and may be repeated."""
ILL = 10
"""After so many runs in a row that fail, a replica whose model fails on zeros, too, is replaced."""
MOST_BODY = 64 << 20
WINDOW_S = 2.0
"""Time over which a replica's use is averaged."""
LOAD = "endpoint-load-metrics"
"""The header that reports the load, in ORCA's text form."""
app = FastAPI()


def served(names: list[str]) -> dict[str, Said]:
    """What is said of each model."""
    return {name: Said(HERE / name) for name in names}


@serve.deployment
class Models:
    """The models; each has a queue of its own, of which `serve.batch` makes runs.

    Args:
        max_batch: requests of one run at most, and rows.
        wait_s: how long the first one waits for others.
        kept: models in memory at most; the one that was not used for longest goes.
    """

    def __init__(self, max_batch: int, wait_s: float, kept: int) -> None:
        self._batch, self._failed = (max_batch, wait_s), 0
        self._ill: Model | None = None
        self._used, self._level, self._at = 0.0, 0.0, monotonic()

        async def load(name: str) -> Any:
            return self._batched(await asyncio.to_thread(Model, HERE / name, most=max_batch))

        self._load = serve.multiplexed(max_num_models_per_replica=kept)(load)

    def _batched(self, model: Model) -> Any:
        """A function that runs the model for one request, and that is one run for several that come together."""
        most, wait_s = self._batch

        @serve.batch(max_batch_size=most, batch_wait_timeout_s=wait_s)
        async def run(feeds: list[Any]) -> list[Any]:
            n, begun = len(feeds), monotonic()
            self._runs(n / most)
            try:
                found = await asyncio.to_thread(model.run_many, feeds)
            finally:
                self._runs(-n / most)
            run_s = monotonic() - begun
            ill = [isinstance(one, Exception) and not isinstance(one, BadInput) for one in found]
            self._failed, self._ill = (self._failed + 1, model) if all(ill) else (0, None)
            return [
                (_wrong(one), 0 if isinstance(one, BadInput) else n, run_s) if isinstance(one, Exception) else (one, n, run_s)
                for one in found
            ]

        pictures = {one["name"]: one["picture"] for one in model.inputs}

        async def answer(feed: dict[str, Any]) -> Any:
            for name, array in feed.items():
                if array.dtype == object and pictures[name] is not None:
                    feed = {**feed, name: await asyncio.to_thread(decoded, array, pictures[name])}
            return await run(feed)

        return answer

    def _runs(self, more: float) -> float:
        """Runs begin or end that fill so much of a batch -> the used share of this replica, averaged."""
        now = monotonic()
        fades = exp((self._at - now) / WINDOW_S)
        self._used = self._used * fades + min(1.0, self._level) * (1 - fades)
        self._level, self._at = max(0.0, self._level + more), now
        return self._used

    async def infer(self, name: str, feed: dict[str, Any]) -> Any:
        """-> the outputs, or what is wrong; how many requests the run was for (0: the caller erred), its seconds; used share."""
        model = await self._load(name)
        try:
            outputs, n, run_s = await model(feed)
        except BadInput as e:
            outputs, n, run_s = _wrong(e), 0, 0.0
        return outputs, n, run_s, self._runs(0)

    async def ready(self, name: str) -> bool:
        """Loads a model."""
        await self._load(name)
        return True

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises. Callers cannot bring that about: zeros have to fail as well."""
        if self._failed >= ILL and self._ill is not None:
            await asyncio.to_thread(self._ill.try_zeros)
            self._failed = 0


def _wrong(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:400]


def _missing(name: str) -> Response:
    return JSONResponse({"error": f"there is no model {name[:80]!r} here"}, 404)


def _busy(error: Exception) -> Response:
    """More than can be queued, or no replica is left: a client keeps it on its device, and comes back later."""
    return JSONResponse(
        {"error": f"overloaded: {type(error).__name__}"}, 503, {"retry-after": "1", LOAD: "TEXT application_utilization=1"}
    )


@serve.deployment
@serve.ingress(app)  # it copies the routes' functions, with what they use, here: that has to be above
class Ingress:
    """The protocol, and which model answers whom."""

    def __init__(self, models: Any, names: list[str], kept: int) -> None:
        self._models, self._said = models, served(names)
        self._routed = kept < len(names)
        """Whether a request goes to a replica that has its model; else each has all of them."""
        self._splits: dict[str, dict[str, float]] = {}
        self._key = "x-edgeroute-key"

    def reconfigure(self, given: dict[str, Any]) -> None:
        """Takes `user_config` of the YAML: shares change while it runs."""
        self._splits = checked(given.get("splits") or {}, self._said)
        self._key = str(given.get("key_header") or self._key).lower()

    def _find(self, name: str) -> tuple[str, Said] | None:
        """The model, or the first arm of a name that several share; without what says that files come."""
        plain = name.removesuffix(ENCODED)
        for one in dict.fromkeys((name, plain)):
            arm = next(iter(self._splits.get(one, {})), one)
            if arm in self._said and (one == name or any(spec["picture"] is not None for spec in self._said[arm].inputs)):
                return one, self._said[arm]
        return None

    def _call(self, name: str) -> Any:
        return self._models.options(multiplexed_model_id=name) if self._routed else self._models

    @app.get("/v2")
    async def server(self) -> Any:
        """Metadata of the server."""
        return {"name": "edgeroute-ray", "version": "1", "extensions": ["binary_tensor_data", "model_repository"]}

    @app.get("/v2/health/live")
    async def live(self) -> Any:
        """This replica is there."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def all_ready(self) -> Response:
        """The first model answers."""
        return await self.ready(next(iter(self._said)))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/1/ready")
    async def ready(self, name: str) -> Response:
        """The model is loaded."""
        found = self._find(name)
        if found is None:
            return _missing(name)
        arms = list(self._splits.get(found[0], {found[0]: 1.0}))
        try:
            for arm in arms:
                await self._call(arm).ready.remote(arm)
        except (RayActorError, BackPressureError, DeploymentUnavailableError) as e:
            return _busy(e)
        return JSONResponse({"name": name, "ready": True})

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/1")
    async def metadata(self, name: str) -> Response:
        """Metadata of a model, with its labels."""
        found = self._find(name)
        if found is None:
            return _missing(name)
        plain, said = found
        about = said.metadata(name)
        if plain != name:
            files = {spec["name"] for spec in said.inputs if spec["picture"] is not None}
            about["inputs"] = [
                {**one, "datatype": "BYTES", "shape": [-1, 1]} if one["name"] in files else one for one in about["inputs"]
            ]
        if plain in self._splits:
            about["parameters"]["arms"] = self._splits[plain]
        return JSONResponse(about)

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/1/infer")
    async def infer(self, name: str, request: Request) -> Response:
        """Answers a request."""
        found = self._find(name)
        if found is None:
            return _missing(name)
        plain, said = found
        body = await request.body()
        if len(body) > MOST_BODY:
            return JSONResponse({"error": f"a request has at most {MOST_BODY} bytes"}, 413)
        try:
            ask = read(body, request.headers.get(LENGTH), said.inputs, said.outputs)
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
            return _busy(e)
        if isinstance(outputs, str):
            return JSONResponse({"error": outputs}, 500 if batch else 400)
        queue_s = max(0.0, monotonic() - begun - run_s)
        load = f"TEXT application_utilization={used:.3f}, named_metrics.queue_s={queue_s:.3f}"
        headers, reply = write(ask, outputs, name, **({} if arm == plain else {"arm": arm}))
        return Response(reply, headers={**headers, "x-edgeroute-arm": arm, "x-edgeroute-batch": str(batch), LOAD: load})

    async def _run(self, arm: str, feed: dict[str, Any], left: int = ATTEMPTS) -> Any:
        """The outputs of a run, by another replica if the first one dies."""
        try:
            return await self._call(arm).infer.remote(arm, feed)
        except RayActorError:
            if left == 1:
                raise
        return await self._run(arm, feed, left - 1)


def build(args: dict[str, Any]) -> Any:
    """The application, by `args` of the YAML."""
    names, kept = [str(name) for name in args["models"]], int(args["models_per_replica"])
    models = Models.bind(int(args["max_batch"]), float(args["wait_s"]), kept)  # type: ignore[attr-defined]  # a deployment's
    return Ingress.bind(models, names, kept)  # type: ignore[attr-defined]  # likewise
