"""What our processes ask of the operating system. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable

from headway.errors import ConfigError

# For processes that move KV pages, read by glibc when they start. Without it every buffer of
# more than 128 KiB is given back to the kernel and the next one touches fresh pages, which is
# very slow in virtual machines.
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}

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


def bind_to_cores(cores: Iterable[int], setting: str) -> None:
    """Run this thread, and those that it starts from now on, on these cores only.

    Args:
        cores: their numbers.
        setting: where they were named, for the error.

    Raises:
        ConfigError: this process may not use one of them.
    """
    wanted, allowed = set(cores), os.sched_getaffinity(0)
    if missing := wanted - allowed:
        raise ConfigError(
            f"{setting}: this process may not use {sorted(missing)}, only {sorted(allowed)}"
        )
    os.sched_setaffinity(0, wanted)
