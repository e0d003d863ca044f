"""Which of the machine's GPUs may be used: what the surroundings allow, and of that what the settings name.

`CUDA_VISIBLE_DEVICES` names devices by number or by UUID, which may be cut short as long as it is
unique; `gpu_devices` counts within what is visible, as CUDA itself would.
"""

from __future__ import annotations

from collections.abc import Sequence


def usable(
    uuids: Sequence[str], visible: Sequence[str] | None, chosen: Sequence[int] | None
) -> tuple[str, ...]:
    """The UUIDs that may be used, out of all of them in the machine's order."""
    seen = list(uuids) if visible is None else [uuid for name in visible if (uuid := _meant(name, uuids))]
    if chosen is None:
        return tuple(seen)
    return tuple(seen[number] for number in chosen if number < len(seen))


def _meant(name: str, uuids: Sequence[str]) -> str | None:
    if name.isdecimal():
        return uuids[int(name)] if int(name) < len(uuids) else None
    return next((uuid for uuid in uuids if uuid.startswith(name)), None)
