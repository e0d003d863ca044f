"""What loads have really taken, kept from one run of the gateway to the next.

All of it is read once, at the start, and answered from memory from then on: the guard asks many times in
one decision. What is learnt later is in memory at once and on the disk a moment after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corral.drivers import clock
from corral.drivers.database import Database
from corral.formats.learned import Learned, LearnedKey

# Far more than anybody has models and flags to try; the oldest make way.
ENTRIES_MAX = 1_000

_NEWEST = (
    "SELECT fingerprint, flags, measured_bytes, predicted_bytes FROM learned"
    f" ORDER BY learned_at DESC LIMIT {ENTRIES_MAX}"
)
_FORGET_OLDER = (
    "DELETE FROM learned WHERE learned_at <"
    f" (SELECT learned_at FROM learned ORDER BY learned_at DESC LIMIT 1 OFFSET {ENTRIES_MAX - 1})"
)
_REMEMBER = "INSERT OR REPLACE INTO learned VALUES (?, ?, ?, ?, ?)"


class LearnedStore:
    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self._known = dict(entry for row in self._database.read(_NEWEST) if (entry := _entry(row)))
        self._database.write(_FORGET_OLDER)

    def all(self) -> dict[LearnedKey, Learned]:
        return dict(self._known)

    def recall(self, key: LearnedKey) -> Learned | None:
        return self._known.get(key)

    def remember(self, key: LearnedKey, learned: Learned) -> None:
        """The latest word on this key. Never waits for the disk, and never fails because of it."""
        self._known[key] = learned
        self._database.write(_REMEMBER, *key, *learned, clock.wall())

    def close(self) -> bool:
        """Write what is left. False if the disk did not take it in time."""
        return self._database.close()


def _entry(row: tuple[Any, ...]) -> tuple[LearnedKey, Learned] | None:
    """SQLite lets any column hold anything, and anybody may write to the file."""
    fingerprint, flags, measured_bytes, predicted_bytes = row
    sizes_are_sound = all(isinstance(size, int) and size >= 0 for size in (measured_bytes, predicted_bytes))
    if not (isinstance(fingerprint, str) and isinstance(flags, str) and sizes_are_sound):
        return None
    return LearnedKey(fingerprint, flags), Learned(measured_bytes, predicted_bytes)
