"""Ctrl-C wherever it comes: no lock stays held, so that other threads go on."""

import subprocess
import sys

import pytest
from both import LONG

USES = {
    "the lock of late imports": """
from edgeroute.system.late_imports_and_plugins import no_fork

def use():
    with no_fork.lock:
        return 1
""",
    "a call that is deferred": """
from edgeroute import Router

use = lambda router=Router(lambda x: (x, 0.5), lambda x: (x, 1.0), threshold=0.8): router.infer(1).value
""",
    "a call of the model": """
import numpy as np
from edgeroute import OnnxModel, Router

use = lambda router=Router(OnnxModel("MODEL"), None): router.infer(np.zeros(4, np.float32)).confidence > 0
""",
}
PROGRAM = """
import signal, threading
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
answered = 0
for turn in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + turn * 1e-6)
        while True:
            use()
    except KeyboardInterrupt:
        pass
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(LONG)
    answered += not thread.is_alive()
    if thread.is_alive():
        break
print(answered)
"""


@pytest.mark.parametrize("use", USES)
def test_no_signal_leaves_a_lock_held(use, tmp_path):
    """Python 3.14 leaves a plain one held after a part of these."""
    import tiny

    body = USES[use].replace("MODEL", str(tiny.linear(tmp_path / "m.onnx"))) + PROGRAM.replace("LONG", str(LONG))
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False, timeout=3 * LONG)
    assert (done.stdout.strip(), done.stderr) == ("300", "")
