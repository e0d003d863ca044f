"""The step between us and a llama-server: asks the kernel to kill it when we die, then becomes it.

A gateway that is killed outright runs no clean-up, and a llama-server left behind holds gigabytes of
VRAM. Only the kernel can help: PR_SET_PDEATHSIG, set by the child itself after the fork. Running
Python code between fork and exec (`preexec_fn`) is unsafe beside threads, so this tiny program runs
there instead: `python -I -S exec_shim.py PARENT_PID -- PROGRAM ARGUMENT…`. It also gives the program
default signal handling and an empty signal mask; the spawner has already made it a process group.

It imports nothing of Corral and as little as it can: measured, 10 ms from spawn to exec, of which a
bare interpreter takes 6. That is why it uses `_signal`: wrapping the same functions in enums costs the
`signal` module 4 ms more.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub for it
import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
USAGE_EXIT = 2
# What a shell answers when it cannot run a program.
EXEC_FAILED_EXIT = 127


def main(arguments: list[str]) -> int:
    if len(arguments) < 3 or not arguments[0].isdigit() or arguments[1] != "--":
        return complain("usage: exec_shim.py PARENT_PID -- PROGRAM [ARGUMENT…]", USAGE_EXIT)
    if sys.platform == "linux":
        die_with_parent()
        # The parent may have died before the request was made; then nobody would ever kill us.
        if os.getppid() != int(arguments[0]):
            return complain("the parent is gone, so nothing is started", EXEC_FAILED_EXIT)
    reset_signals()
    program = arguments[2:]
    try:
        os.execv(program[0], program)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return complain(f"cannot run {program[0]!r}: {reason}", EXEC_FAILED_EXIT)


def die_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0) != 0:
        complain(f"cannot tie this process to its parent's life: {os.strerror(ctypes.get_errno())}", 0)


def reset_signals() -> None:
    """Ignored signals and the mask survive an exec, and Python itself ignores SIGPIPE and SIGXFSZ."""
    for number in _signal.valid_signals():
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def complain(message: str, exit_code: int) -> int:
    os.write(2, f"exec_shim: {message}\n".encode("utf-8", "backslashreplace"))
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
