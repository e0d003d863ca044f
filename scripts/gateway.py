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
    """Until then files are all that is open, and no process has been started: the kernel closes them."""
    os._exit(0)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)  # until the gateway has its own
    # It asks for keys to be read again, and they have not been read yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    import argparse
    from pathlib import Path

    from corral import program
    from corral.drivers import last_step

    parser = argparse.ArgumentParser(description="One OpenAI-compatible gate in front of llama-servers.")
    parser.add_argument("-c", "--config", type=Path, help="the config file (default: ./config.json)")
    # Some platforms start an image with an argument of their own, such as `serve`.
    arguments, _ignored = parser.parse_known_args()
    code = program.main(arguments.config)
    last_step.heed_no_signal()
    last_step.drop_what_cannot_be_written()
    return code


if __name__ == "__main__":
    sys.exit(main())
