"""The gateway as a program: its settings, its loop, and an exit code that says how it ended.

Whoever started it may have given it outputs that can't be written: a full disk, a pipe that nobody reads any
more. What is said there is for people, and no reason not to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from pathlib import Path
from typing import TextIO

from corral import errors, settings, welcome
from corral.app import App
from corral.drivers import descriptors, last_step
from corral.drivers.event_loop import new_event_loop
from corral.settings import Settings
from corral.surroundings import hardware

log = logging.getLogger("corral")

GC_THRESHOLDS = (10_000, 20, 20)


def main(config_path: Path | None = None) -> int:
    """Run the gateway; the exit code. No signal is heeded once it is known."""
    try:
        config = settings.load(config_path=config_path)
    except errors.SettingsError as error:
        say(f"corral: {error}", sys.stderr)
        return 1
    descriptors.raise_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            return runner.run(serve(config))
        finally:
            last_step.heed_no_signal(runner.get_loop())


async def serve(config: Settings) -> int:
    app = App(config)
    try:
        if await app.start():
            settle_down(app)
    except Exception as error:
        expected = isinstance(error, errors.SettingsError)
        reason = f"{error}" if expected else f"the start failed: {error!r}"
        log.critical("%s", reason, exc_info=None if expected else error)
        await app.close()
        say(f"corral: {reason}", sys.stderr)
        return 1
    return await app.until_stopped()


def settle_down(app: App) -> None:
    say(welcome.screen(app.settings, app.catalogue, app.port, hardware(app.gpus)), sys.stdout)
    # What is there now stays: the collector need never look at it again. What comes and goes with requests
    # goes by counting; by default the collector would look for circles in it with every hundredth request.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def say(text: str, output: TextIO) -> None:
    with contextlib.suppress(OSError):
        print(text, file=output, flush=True)
