"""Ties the life of a process to that of the process which started it. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1

# Loaded here, because between fork and exec nothing may be loaded any more.
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process as soon as its parent has died, however it died.

    Outlives exec, so that it may be called between fork and exec. The kernel watches the
    thread that forked: start children from a thread that lives as long as its process.

    Args:
        parent_pid: id of the process that started this one, as it knows itself.

    Raises:
        OSError: the kernel refuses.
    """
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    # It may have died before the kernel was asked, and then no signal will ever come.
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
