"""Try the VRAM guard on many random machines: PYTHONPATH=scripts python -m tests.simulate [SEED] [COUNT]

Prints the seed of the first world in which something goes wrong, and how it goes wrong. That seed with
COUNT 1 shows it again.
"""

from __future__ import annotations

import sys
import traceback

from tests.policy.memory_world import World

COUNT = 10_000


def main(arguments: list[str]) -> int:
    first = int(arguments[0]) if arguments else 1
    count = int(arguments[1]) if len(arguments) > 1 else COUNT
    for seed in range(first, first + count):
        try:
            World(seed).run()
        except Exception:
            traceback.print_exc()
            print(f"SEED={seed} found a fault. Show it again: python -m tests.simulate {seed} 1", flush=True)
            return 1
    print(f"{count} worlds from SEED={first}: no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
