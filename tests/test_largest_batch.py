"""Batches that are larger than the server takes, and batches with an input that the server refuses, over HTTP and gRPC."""

from __future__ import annotations

import json

import numpy as np
import pytest
import routes
from both import Tasks, Threads, unsure
from test_grpc import Server as GrpcServer

from edgeroute import OpenInference, OpenInferenceGrpc
from edgeroute.testing import CannedServer, http_reply

BOTH = pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
METADATA = {"name": "m", "platform": "test", "versions": ["1"], **TENSORS}


class Limited:
    """A model `m` that returns its inputs, takes `most` rows at once, and refuses inputs below zero.

    Attributes:
        sizes: rows of each request.
        config: reply to Triton's request for the configuration; None: 404.
    """

    def __init__(self, most, status=400, platform="test", config=None):
        self.most, self.status, self.config, self.sizes = most, status, config, []
        self.metadata = {**METADATA, "platform": platform}
        self.server = CannedServer(self.reply)
        self.url = f"{self.server.url.rstrip('/')}/v2/models/m"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()

    def reply(self, request):
        """Return the reply to one request."""
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            config = b"/config" in head.split(b"\r\n")[0]
            if config and self.config is None:
                return http_reply(b"{}", status=404)
            return http_reply(json.dumps(self.config if config else self.metadata).encode())
        tensor = json.loads(body)["inputs"][0]
        self.sizes.append(rows := tensor["shape"][0])
        values = np.ravel(tensor["data"]).tolist()
        if rows > self.most or min(values) < 0:
            return http_reply(b'{"error": "no"}', status=self.status)
        outputs = [{"name": "y", "datatype": "FP32", "shape": [rows, 1], "data": values}]
        return http_reply(json.dumps({"model_name": "m", "outputs": outputs}).encode())

    def endpoint(self, **options):
        """Return the endpoint of the model."""
        return OpenInference(self.url, **{"binary": False, "kind": "value", "retries": 0, **options})


def numbers(count):
    return [np.array([i], "float32") for i in range(count)]


def clouds(answers):
    """The value of each answer of the cloud; None for one of the edge."""
    return [float(np.ravel(answer.value)[0]) if answer.source == "cloud" else None for answer in answers]


@BOTH
@pytest.mark.parametrize("status", [400, 413, 422])
def test_rows_above_the_servers_largest_batch_are_all_answered(kind, status):
    """A refused batch is sent in halves. The size that was taken is used from then on, so that nothing is refused again."""
    with Limited(32, status) as server, kind(unsure, server.endpoint(), threshold=0.5) as router:
        assert clouds(router.infer_many(numbers(132))) == list(range(132))
        assert server.sizes[:4] == [132, 66, 33, 16]
        assert max(server.sizes[3:]) == 16
        server.sizes.clear()
        assert clouds(router.infer_many(numbers(33))) == list(range(33))
        assert server.sizes == [16, 16, 1]


@BOTH
def test_triton_says_how_many_rows_it_takes(kind):
    """Its configuration has the number, so that no batch is refused at all."""
    with Limited(32, platform="onnxruntime_onnx", config={"max_batch_size": 32}) as server:
        with kind(unsure, server.endpoint(), threshold=0.5) as router:
            router.infer(numbers(1)[0])
            assert clouds(router.infer_many(numbers(132))) == list(range(132))
        assert server.sizes == [1, 32, 32, 32, 32, 4]


@pytest.mark.parametrize("most", [0, -1, True, "32", None, 1e9, [32]])
def test_odd_numbers_in_a_configuration_are_ignored(most):
    with Limited(200, platform="ensemble", config={"max_batch_size": most}) as server:
        with Threads(unsure, server.endpoint(), threshold=0.5) as router:
            router.infer(numbers(1)[0])
            assert clouds(router.infer_many(numbers(132))) == list(range(132))
        assert server.sizes == [1, 132]


@BOTH
@pytest.mark.parametrize("place", [0, 1, 31, 70, 131])
def test_an_input_that_the_server_refuses_costs_no_other_its_answer(kind, place):
    """It is found by halves; nothing is concluded from it about how many rows the server takes."""
    inputs = numbers(132)
    inputs[place] = np.array([-1], "float32")
    with Limited(1000) as server, kind(unsure, server.endpoint(), threshold=0.5) as router:
        answers = router.infer_many(inputs)
        assert clouds(answers) == [None if i == place else i for i in range(132)]
        assert routes.status(answers[place]) == 400
        assert len(server.sizes) <= 20
        server.sizes.clear()
        router.infer_many(numbers(100))
        assert server.sizes == [100]


def test_a_server_that_refuses_every_input_gets_few_calls():
    """Its refusals are bounded by a number, not by the rows."""
    with Limited(1000) as server, Threads(unsure, server.endpoint(), threshold=0.5) as router:
        answers = router.infer_many([np.array([-1], "float32")] * 1000)
        assert clouds(answers) == [None] * 1000
        assert len(server.sizes) <= 25


def test_each_part_of_a_batch_counts_in_the_limits():
    """Parts are calls: a limit of calls stops them, and the rows that were answered keep their answers."""
    with Limited(8) as server:
        cloud = server.endpoint(calls_per_s=0.001)
        with Threads(unsure, cloud, threshold=0.5) as router:
            answers = router.infer_many(numbers(16))
    assert server.sizes == [16]
    assert clouds(answers) == [None] * 16
    with Limited(8) as server, Threads(unsure, server.endpoint(usd_per_call=1.0), threshold=0.5) as router:
        assert clouds(router.infer_many(numbers(16))) == list(range(16))
        assert router.stats().usd_today == pytest.approx(len(server.sizes))


@BOTH
def test_rows_over_grpc(kind):
    """A message that is too long, or a batch that is too large, is sent in halves."""
    with GrpcServer() as server:
        cloud = OpenInferenceGrpc(server.url, model="m", kind="value", retries=0)
        with kind(unsure, cloud, threshold=0.5) as router:
            answers = router.infer_many([np.array([i, i, i], "float32") for i in range(1000)])
    assert clouds(answers) == [2.0 * i for i in range(1000)]
