"""What llama-server's last words say about its death: did it want for memory, or for its port?

They are lines meant for people, so they are looked for anywhere in a line: what stands before them (time,
level, colours, the name of a function) differs from version to version and with flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
_NOT_BOUND = "couldn't bind HTTP server socket"
# What the kernel's (and a container's) answer to a want of memory looks like; 137 is a shell's word for it.
_KILLED = (-9, 137)


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


def lost_its_port(lines: Iterable[str]) -> bool:
    """Whether somebody else had its port by the time that it wanted to listen."""
    return any(_NOT_BOUND in line for line in lines)


def refused_its_socket(lines: Iterable[str]) -> bool:
    """Whether it could not listen at a socket beside its port.

    One that knows nothing of lists takes the whole list for a name, and says so.
    """
    return any(_NOT_BOUND in line and ".sock" in line for line in lines)
