"""What the gateway says of itself: one document, for the status file and for the probes on its own port.

The file is written on every change, and every few moments without one, so that whoever reads it can tell a
quiet gateway from one that hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os

from corral.drivers import clock, process_facts, status_file
from corral.fleet import Fleet
from corral.formats.status import ModelState, Phase, StatusDocument, ping_code, to_json
from corral.settings import Settings

log = logging.getLogger("corral")

COMING = frozenset({ModelState.STARTING, ModelState.LOADING, ModelState.BACKOFF})


class Bulletin:
    """Knows the gateway's phase, and from when on there is a fleet to speak of."""

    def __init__(self, config: Settings) -> None:
        self.phase = Phase.STARTING
        self.path = str(config.paths.runtime / status_file.FILE_NAME)
        self._instance_id = config.instance_id
        self._has_one_model = config.single_model is not None
        self._began_at = clock.monotonic()
        self._pid_started = process_facts.start_ticks(os.getpid())
        self._fleet: Fleet | None = None
        self._settled = False
        self._ready_told = False
        self._due = False

    def serve(self, fleet: Fleet) -> None:
        """From now on this fleet serves. Its preloads have begun."""
        self.phase = Phase.SERVING
        self._fleet = fleet
        self.write()

    def document(self) -> StatusDocument:
        models = self._fleet.statuses() if self._fleet is not None else {}
        states = {each.state for each in models.values()}
        self._settled = self._settled or self._settles(states)
        return StatusDocument(
            instance=self._instance_id,
            pid=os.getpid(),
            pid_started=self._pid_started,
            written_at=clock.wall(),
            phase=self.phase,
            preload_settled=self._settled,
            single_model_failed=self._has_one_model and ModelState.FAILED in states,
            models=models,
        )

    def _settles(self, states: set[ModelState]) -> bool:
        """Whether all that is loaded at the start is up, or has shown that it won't be; once is enough.

        Where there is one model, one death of it shows nothing yet: a gateway called ready would be sent
        traffic that has nowhere to go.
        """
        if self._fleet is None or not self._fleet.preload_settled:
            return False
        return not self._has_one_model or states.isdisjoint(COMING)

    def changed(self) -> None:
        """Write soon: several changes of one moment make one file."""
        if not self._due and self._fleet is not None:
            self._due = True
            asyncio.get_running_loop().call_soon(self.write)

    def write(self) -> None:
        self._due = False
        document = self.document()
        if not self._ready_told and ping_code(document) == 200:
            # Some platforms wait for this word in the log, so it stays as it is.
            self._ready_told = True
            log.info("READY after %.2f s", clock.monotonic() - self._began_at)
        try:
            status_file.write(self.path, to_json(document))
        except OSError as error:
            log.error("the status file %s cannot be written: %s", self.path, error)
