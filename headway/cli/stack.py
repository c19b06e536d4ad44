"""Starts a whole deployment on this machine and stops it again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from headway.adapters.process import die_with_parent
from headway.config import Config
from headway.errors import StackFailed

_STOP_S = 30.0
_CHUNK_BYTES = 1 << 16
_LOG_LINES_SHOWN = 15


@asynccontextmanager
async def running_stack(
    config_path: Path, config: Config, log_path: Path, tell: Callable[[str], None]
) -> AsyncIterator[int]:
    """Run `python -m services` for as long as the block lasts; yields its process id.

    Entered once it says that every worker of the config is registered with its controller.

    Args:
        config_path: of `config`, for the processes to read.
        config: says how many workers there will be.
        log_path: gets what the processes write.
        tell: called once, with what is being waited for.

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
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            # Ctrl-C is ours to handle: the stack must outlive the requests we cancel.
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        assert process.stdout is not None
        try:
            tell(
                f"waiting for the controller, {config.prefill.replicas} prefill "
                f"and {config.decode.replicas} decode workers"
            )
            await _until_ready(process, process.stdout, log_path)
            discarding = asyncio.create_task(_discard(process.stdout))
            try:
                yield process.pid
            finally:
                discarding.cancel()
        finally:
            await _stop(process)


async def _until_ready(
    process: asyncio.subprocess.Process, output: asyncio.StreamReader, log_path: Path
) -> None:
    # Its own word: whoever answers at the address may be somebody else's stack.
    async for line in output:
        if line.startswith(b"ready "):
            return
    status = await process.wait()
    raise StackFailed(f"ended with status {status}; its last lines:\n{_tail(log_path)}")


async def _discard(output: asyncio.StreamReader) -> None:
    """Read to the end, so that the stack never has to wait for room to write."""
    while await output.read(_CHUNK_BYTES):
        pass


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
