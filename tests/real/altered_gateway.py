"""The gateway's program, with what a test can't have in any other way.

MEMINFO          the file that says how much memory the machine has
IMPATIENT        a process that hangs is killed after one second, not after thirty
FIFO             first come, first served, and the least recently used model makes way
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from corral import program
from corral.drivers import host_memory
from corral.fleet import engines, fleet, watchman
from tests.simulation import fifo

if __name__ == "__main__":
    with ExitStack() as alterations:
        if "MEMINFO" in os.environ:
            alterations.enter_context(patch.object(host_memory, "MEMINFO", Path(os.environ["MEMINFO"])))
        if "IMPATIENT" in os.environ:
            hasty = partial(watchman.Watchman, sample_gap_s=0.2, probation_s=1.0)
            alterations.enter_context(patch.object(fleet, "Watchman", hasty))
            alterations.enter_context(patch.object(engines, "ANSWER_SILENCE_S", 0.3))
        if "FIFO" in os.environ:
            alterations.enter_context(patch.object(fleet, "Scheduler", fifo.Scheduler))
        code = program.main()
    sys.exit(code)
