"""Try the policy on many worlds made by chance: python -m tests.simulate [SEED] [COUNT]

Of every seed there is a machine for the VRAM guard alone, and a herd of each kind for all of the policy.
Prints the first seed with which something goes wrong, and how it goes wrong; that seed with COUNT 1 shows
it again.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import partial

from tests.policy.memory_world import World as Machine
from tests.simulation.chance import KINDS
from tests.simulation.world import World as Herds

COUNT = 200


def play(make: Callable[[int], Herds | Machine], seed: int) -> None:
    make(seed).run()


WORLDS = {
    "a machine for the guard": partial(play, Machine),
    **{f"a herd of the kind {kind!r}": partial(play, make) for kind, make in KINDS.items()},
}


def main(arguments: list[str]) -> int:
    first = int(arguments[0]) if arguments else 1
    count = int(arguments[1]) if len(arguments) > 1 else COUNT
    for seed in range(first, first + count):
        for what, run in WORLDS.items():
            try:
                run(seed)
            except Exception:
                traceback.print_exc()
                print(
                    f"SEED={seed} found a fault in {what}. Show it again: make simulate SEED={seed} COUNT=1"
                )
                return 1
        if sys.stderr.isatty():
            print(f"\r{seed - first + 1} of {count} seeds", end="", file=sys.stderr, flush=True)
    print(f"{count} seeds from SEED={first}, {len(WORLDS)} worlds of each: no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
