"""What llama-server's log says about memory: how much it took, and whether it died for want of it.

Both are read off lines meant for people, so both are looked for anywhere in a line: what stands before
them (time, level, colours, the name of a function) differs from version to version and with flags. The
lines about buffers come at log verbosity 4 and above (`-lv 4`); those about a death come at any.

A line about a buffer names what it lies in: a GPU as `CUDA0`, the host's own memory as `CPU`,
`CPU_REPACK` or `CUDA_Host`, the pages of the model's file as `CPU_Mapped`. What is in no buffer is not
told: a GPU's context with its libraries, the program itself, the weights of a projector.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# The two names in an answer of `buffers` that are no GPU's.
HOST = "CPU"
MAPPED = "CPU_Mapped"

MIB = 1 << 20
# `load_tensors:   CPU_Mapped model buffer size =     0.13 MiB`; old versions leave `model` out.
_BUFFER = re.compile(
    r"(?P<teller>\w{1,99}): +(?P<name>[^\s:]\S{0,99}) +(?:(?P<what>\w[\w ]{0,39}?) +)?"
    r"buffer size = +(?P<mib>\d{1,9}\.\d+) MiB"
)
_NEW_CONTEXT = "constructing llama_context"
# CPU, CPU_REPACK and its like, AMX (weights arranged for Intel's matrix units), CUDA_Host (pinned).
_ON_HOST = re.compile(r"CPU.*|AMX|\w+_Host")

_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # cudaMalloc failed: …, CUDA error: …
    r"|[Uu]nable to allocate"
    r"|[Ff]ailed to allocate"
    r"|insufficient memory"
    r"|bad_alloc"
    r"|Cannot allocate memory"  # mmap failed: …
    r"|[Mm]emory allocation of size \d+ failed|ErrorOutOf(?:Device|Host)Memory"  # Vulkan
    r"|CUBLAS_STATUS_ALLOC_FAILED"
)
# Memory that was wanted and that it did without.
_DISPENSABLE = re.compile(r"mlock|madvise|pinned memory|prompt cache state")
# From here on it had what it needed, so what was said before is not what it died of.
_OVERCOME = re.compile(r"retrying without pipeline parallelism|model loaded|listening on http")
# A GPU that refuses memory for another reason is followed by the same complaints.
_OTHER_REASON = re.compile(r"Malloc failed: (?!out of memory)")
# What the kernel's (and a container's) answer to a want of memory looks like; 137 is a shell's word for it.
_KILLED = (-9, 137)


class _Buffer(NamedTuple):
    teller: str  # the function that tells of it
    name: str
    what: str
    size_bytes: int


def buffers(lines: Iterable[str]) -> dict[str, int]:
    """How many bytes lie in each GPU, in HOST and in MAPPED, as far as the lines of a start tell."""
    sizes: Counter[str] = Counter()
    computing: dict[tuple[str, str], int] = {}
    for line in lines:
        if _NEW_CONTEXT in line:
            # A draft model computes in a context and in buffers of its own.
            _add_up(sizes, computing)
            computing = {}
        elif (buffer := _read_buffer(line)) is not None:
            if buffer.what == "compute":
                # Told again whenever it is reserved anew: still the same buffer, possibly grown.
                same = buffer.teller, buffer.name
                computing[same] = max(computing.get(same, 0), buffer.size_bytes)
            else:
                sizes[_place(buffer.name)] += buffer.size_bytes
    _add_up(sizes, computing)
    return dict(sizes)


def ran_out_of_memory(lines: Iterable[str], exit_code: int) -> bool:
    """Whether a process that nobody told to end died for want of memory, going by its last lines.

    A death by SIGKILL, with nothing said, counts: that is how the kernel ends whoever takes too much.
    """
    if exit_code in _KILLED:
        return True
    wanted = False
    for line in lines:
        if _OTHER_REASON.search(line):
            return False
        if _OVERCOME.search(line):
            wanted = False
        elif _OUT_OF_MEMORY.search(line) and not _DISPENSABLE.search(line):
            wanted = True
    return wanted and exit_code != 0


def _add_up(sizes: Counter[str], computing: Mapping[tuple[str, str], int]) -> None:
    for (_teller, name), size_bytes in computing.items():
        sizes[_place(name)] += size_bytes


def _read_buffer(line: str) -> _Buffer | None:
    found = _BUFFER.search(line) if "buffer size" in line else None
    if found is None:
        return None
    return _Buffer(found["teller"], found["name"], found["what"] or "", round(float(found["mib"]) * MIB))


def _place(name: str) -> str:
    if name.endswith("_Mapped"):
        return MAPPED
    return HOST if _ON_HOST.fullmatch(name) else name


def lost_its_port(lines: Iterable[str]) -> bool:
    """Whether somebody else had its port by the time that it wanted to listen."""
    return any("couldn't bind HTTP server socket" in line for line in lines)
