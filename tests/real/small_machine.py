"""The gateway's program, on a machine that has as much memory as the file MEMINFO says."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from corral import app
from corral.drivers import host_memory

if __name__ == "__main__":
    host_memory.MEMINFO = Path(os.environ["MEMINFO"])
    sys.exit(app.main())
