#!/usr/bin/env python3
"""Start the gateway: `python3 scripts/gateway.py [-c CONFIG]`.

Reading the program takes longer than anything before it, and a platform may change its mind meanwhile. So
a signal is listened to from the first line on: process 1 of a container does not even notice one that it
has no handler for, and would be killed when patience is over. One that came sooner has been held back by
entrypoint.sh.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def end(_number: int, _frame: FrameType | None) -> None:
    """Nothing has been opened yet, so there is nothing to let go of."""
    os._exit(0)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)  # until the gateway has its own
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    import argparse
    from pathlib import Path

    from corral import app

    parser = argparse.ArgumentParser(description="One OpenAI-compatible gate in front of llama-servers.")
    parser.add_argument("-c", "--config", type=Path, help="the config file (default: ./config.json)")
    # Some platforms start an image with an argument of their own, such as `serve`.
    arguments, _ignored = parser.parse_known_args()
    return app.main(arguments.config)


if __name__ == "__main__":
    sys.exit(main())
