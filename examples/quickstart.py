"""Routes real images between the shipped edge model and a server on this machine.

In one terminal:   edgeroute serve models/fashion/cloud.onnx
In another:        python examples/quickstart.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgeroute import Router

FASHION = Path(__file__).resolve().parent.parent / "models" / "fashion"
URL = "http://127.0.0.1:8080/v2/models/fashion-large"


def main(url: str = URL, models: Path = FASHION) -> None:
    """Answers twenty images one by one, then two hundred at once."""
    images = np.load(models / "sample.npz")["images"]  # uint8 [1000, 28, 28]

    with Router(edge=models / "edge.int8.onnx", cloud=url, threshold=0.85, deadline=2.0) as router:
        print(router.check(), end="\n\n")
        for image in images[:20]:
            answer = router.infer(image)
            print(f"{answer.value:12} {answer.latency_s * 1e3:6.2f} ms  {answer.reason}")
        router.infer_many(images[20:220])
        stats = router.stats()
        print(f"\n{stats.requests} answers, {stats.deferral_rate:.0%} deferred, {stats.bytes_sent:,} bytes sent")


if __name__ == "__main__":
    main(*sys.argv[1:2])
