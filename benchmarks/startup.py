"""Start-up cost: import time, first answer, memory."""

from __future__ import annotations

from figures import MODELS, Figure, python, seconds

NUMPY_RUN = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1; options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.zeros((28, 28), np.uint8)
def run():
    return session.run(["logits"], {"image": ((x.astype(np.float32) / 255 - 0.286) / 0.353).reshape(1, 1, 28, 28)})
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
for _ in range(2000):
    run()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def figures() -> list[Figure]:
    """Figures of whole processes, each against its baseline without edgeroute."""
    path = MODELS / "edge.int8.onnx"
    python("import edgeroute, onnxruntime, numpy", path)  # bytecode and page cache are warm for both
    bare, ours = seconds("pass", runs=15), seconds("import edgeroute", runs=15)
    first_bare, first_ours = seconds(NUMPY_RUN + "run()", path), seconds(ROUTED + "run()", path)
    kib = [float(python(code + MEMORY, path)) for code in (NUMPY_RUN, ROUTED) for _ in range(3)]
    mib_bare, mib_ours = sorted(kib[:3])[1] / 1024, sorted(kib[3:])[1] / 1024
    return [
        Figure("`import edgeroute`", f"{ours * 1e3:.1f} ms", f"{bare * 1e3:.1f} ms", (ours - bare) * 1e3, "ms", 30),
        Figure(
            "first answer, from nothing",
            f"{first_ours * 1e3:.0f} ms",
            f"{first_bare * 1e3:.0f} ms",
            first_ours / first_bare,
            "x",
            1.3,
        ),
        Figure("memory of a warm router", f"{mib_ours:.1f} MiB", f"{mib_bare:.1f} MiB", mib_ours - mib_bare, "MiB", 10),
    ]


if __name__ == "__main__":
    from figures import table

    print(table(figures()))
