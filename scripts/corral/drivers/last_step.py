"""The last step of a process, in which its exit code is known and must stay true.

Two things would change it. A loop that closes gives its signals back to the kernel, which kills, and the
interpreter takes some milliseconds more to wind down. And an output that can't be written is flushed once
more at the very end, where a failure makes 120 of any exit code.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def heed_no_signal(loop: asyncio.AbstractEventLoop | None = None) -> None:
    """From now on, for good. `loop` is one that may have handlers of its own, and does not close yet.

    A loop can only take a handler away, and then the kernel has its way until the signal is ignored. For that
    moment this thread holds it back. In the long run that would not do: another thread, one that hangs in a
    driver, would be given it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        if loop is not None:
            loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def drop_what_cannot_be_written() -> None:
    """What an output still holds and nobody can take goes nowhere."""
    for output in (sys.stdout, sys.stderr):
        if output is None:  # it was closed before we came
            continue
        try:
            output.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output.fileno())
            os.close(nowhere)
