"""Starts a whole deployment on this machine and stops it again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from headway.adapters.process import die_with_parent
from headway.client import AsyncClient
from headway.config import Config
from headway.core.cluster import WorkerRole
from headway.errors import StackFailed, Unavailable

_POLL_S = 0.25
_STOP_S = 30.0
_LOG_LINES_SHOWN = 15


@asynccontextmanager
async def running_stack(
    config_path: Path, config: Config, log_path: Path, tell: Callable[[str], None]
) -> AsyncIterator[int]:
    """Run `python -m services` for as long as the block lasts; yields its process id.

    Entered once every worker of the config is registered with the controller.

    Args:
        config_path: of `config`, for the processes to read.
        config: says who must register, and where.
        log_path: gets what the processes write.
        tell: called with what is being waited for, whenever that changes.

    Raises:
        StackFailed: it ended before it was ready; carries the end of its log.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services",
            "--config",
            str(config_path),
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C is ours to handle: the stack must outlive the requests we cancel.
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        try:
            await _until_ready(process, config, log_path, tell)
            yield process.pid
        finally:
            await _stop(process)


async def _until_ready(
    process: asyncio.subprocess.Process,
    config: Config,
    log_path: Path,
    tell: Callable[[str], None],
) -> None:
    wanted = {
        WorkerRole.PREFILL: config.prefill.replicas,
        WorkerRole.DECODE: config.decode.replicas,
    }
    told = ""
    while True:
        if process.returncode is not None:
            raise StackFailed(
                f"ended with status {process.returncode}; its last lines:\n{_tail(log_path)}"
            )
        missing = await _missing(config.controller.listen, wanted)
        if not missing:
            return
        if missing != told:
            tell(missing)
            told = missing
        await asyncio.sleep(_POLL_S)


async def _missing(address: str, wanted: Mapping[WorkerRole, int]) -> str:
    """What the stack still lacks; empty when it is complete."""
    # A new client each time: a channel that was refused would wait before it tries again.
    async with AsyncClient(address) as client:
        try:
            workers = (await client.capacity()).workers
        except Unavailable:
            return "waiting for the controller"
    present = Counter(worker.role for worker in workers)
    if all(present[role] >= num for role, num in wanted.items()):
        return ""
    counts = (f"{role.lower()} ({present[role]} of {num})" for role, num in wanted.items())
    return f"waiting for workers: {', '.join(counts)} ready"


def _tail(log_path: Path) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask the stack to end; kill what is left of its session when it does not."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
