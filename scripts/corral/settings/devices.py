"""Which GPUs the surroundings let us see, as CUDA and the container runtimes mean it."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[0-9]{1,4}")
# A UUID may be shortened as long as it is unique; a part of a card (MIG) has one of its own.
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]{1,100}")


def visible_devices(cuda: str | None, nvidia: str | None) -> tuple[str, ...] | None:
    """Numbers and UUIDs of the GPUs that may be used; () is none at all, and None is no limit."""
    if cuda is not None:
        return _as_cuda_reads(cuda)
    return _as_the_runtime_reads(nvidia)


def _as_cuda_reads(text: str) -> tuple[str, ...]:
    """CUDA takes the list up to the first entry that is no device: so -1, like an empty list, is none."""
    devices: list[str] = []
    for word in text.split(","):
        word = word.strip()
        if not (_NUMBER.fullmatch(word) or _UUID.fullmatch(word)) or word in devices:
            break
        devices.append(word)
    return tuple(devices)


def _as_the_runtime_reads(text: str | None) -> tuple[str, ...] | None:
    """Only UUIDs limit us here.

    Numbers name the host's cards, and the runtime has applied them: inside, the card it let through is
    number 0 again. `all` is no limit, and `void` and paths say that cards come by another way.
    """
    if text == "none":
        return ()
    words = [word.strip() for word in text.split(",")] if text else []
    return tuple(words) if words and all(_UUID.fullmatch(word) for word in words) else None
