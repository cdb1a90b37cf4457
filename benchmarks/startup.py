"""Start-up cost: import time, first answer, memory."""

from __future__ import annotations

import statistics

from figures import MODELS, Figure, python, seconds, size, table, timed

BARE = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1; options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.zeros((28, 28), np.uint8)
def run():
    return session.run(["logits"], {"image": x[None]})
"""
ROUTED = """
import sys, numpy as np
from edgeroute import Router
router = Router(edge=sys.argv[1])
x = np.zeros((28, 28), np.uint8)
def run():
    return router.infer(x)
"""
MEMORY = """
for _ in range(int(sys.argv[2])):
    run()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def figures() -> list[Figure]:
    """Return the figures of whole processes, each against its baseline without edgeroute: import, first answer, memory."""
    path = MODELS / "edge.int8.onnx"
    python("import edgeroute, onnxruntime, numpy", path)  # bytecode and page cache are warm for both
    bare, ours, numpy, router = (
        seconds(code, runs=15) for code in ("pass", "import edgeroute", "import numpy", "from edgeroute import Router")
    )
    first_bare, first_ours = seconds(BARE + "run()", path), seconds(ROUTED + "run()", path)
    bare_mib, mib = (
        statistics.median(float(python(code + MEMORY, path, size(2000, 1))) for _ in range(size(3, 1))) / 1024
        for code in (BARE, ROUTED)
    )
    return [
        timed("`import edgeroute`", ours, bare, 30, shown="ms"),
        timed("`from edgeroute import Router`, over `import numpy`", router - bare, numpy - bare, 1.6, shown="ms", by="ratio"),
        timed("first answer of a process", first_ours, first_bare, 1.3, shown="ms", digits=0, by="ratio"),
        Figure("memory of a warm router", f"{mib:.1f} MiB", f"{bare_mib:.1f} MiB", mib - bare_mib, "MiB", 10),
    ]


if __name__ == "__main__":
    print(table(figures()))
