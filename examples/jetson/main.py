"""The AR prototype (examples/ar) by the policy of this folder. Arguments are those of examples/ar/main.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAM = HERE.parent / "ar" / "main.py"

if __name__ == "__main__":
    sys.path.insert(0, str(PROGRAM.parent))
    sys.argv = [str(PROGRAM), "--policy", str(HERE / "policy.toml"), *sys.argv[1:]]
    runpy.run_path(str(PROGRAM), run_name="__main__")
