"""Runs a whole deployment on this machine: `python -m services --config FILE`.

Prints one line `ready HOST:PORT` when all workers have registered and, where prompts are computed
on prefill workers only, the KV of a first request has moved. Ends with all that it started: on
Ctrl-C or SIGTERM in good order, and if it is killed at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.adapters.process import MALLOC_ENVIRONMENT, die_with_parent
from headway.config import Config, load_config
from headway.errors import ConfigError, HeadwayError, Unavailable

# Workers let their requests end for 5 s; then engines and telemetry close.
_STOP_S = 10.0
_POLL_S = 0.05
_RPC_TIMEOUT_S = 1.0


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the deployment's TOML file")
    path: Path = parser.parse_args().config
    try:
        config = load_config(path)
        _check_free(config.controller.listen)
    except ConfigError as error:
        _say(str(error))
        return 2
    except Unavailable as error:
        _say(str(error))
        return 1
    # Before any thread exists: a fork would copy the locks that other threads hold.
    stack = Stack(config, path)
    return asyncio.run(stack.run())


@dataclass(frozen=True, slots=True)
class Child:
    """One process of ours."""

    name: str
    process: subprocess.Popen[bytes]

    async def wait(self) -> int:
        """Until it has ended; returns its exit code, negative for a signal."""
        exit_code = self.process.poll()
        if exit_code is not None:
            return exit_code
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self.process.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self.process.wait()

    async def describe_end(self) -> str:
        """Until it has ended; returns what to tell about it."""
        exit_code = await self.wait()
        how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        return f"{self.name} ended unexpectedly ({how}); its last words are above"


class Stack:
    """The processes of one deployment; started by construction."""

    def __init__(self, config: Config, path: Path) -> None:
        self._address = config.controller.listen
        self._must_move_kv = not config.decode.prefills
        self._controller = _start("controller", "controller", path)
        self._workers = [
            _start(f"{role}-{replica}", role, path, "--replica", str(replica))
            for role, pool in (("prefill", config.prefill), ("decode", config.decode))
            for replica in range(pool.replicas)
        ]

    async def run(self) -> int:
        """Say when all is ready, wait for a signal or the end of a child; then stop all."""
        signalled = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, signalled.set)
        children = (self._controller, *self._workers)
        deaths = [asyncio.create_task(child.describe_end()) for child in children]
        stopped = asyncio.create_task(signalled.wait())
        serving = asyncio.create_task(self._serve())
        try:
            await asyncio.wait((stopped, serving, *deaths), return_when=asyncio.FIRST_COMPLETED)
            ended = [death.result() for death in deaths if death.done()]
            if serving.done():
                ended.append(str(serving.exception()))
        finally:
            for task in (stopped, serving, *deaths):
                task.cancel()
            await self._stop()
        for text in ended:
            _say(text)
        return 1 if ended else 0

    async def _serve(self) -> None:
        """Say that all is ready, once it is.

        Raises:
            HeadwayError: it does not work as it should. Otherwise this ends by being cancelled.
        """
        said = ""
        while missing := await self._missing():
            waiting_for = ", ".join(missing)
            if waiting_for != said:
                _say(f"waiting for {waiting_for}")
                said = waiting_for
            await asyncio.sleep(_POLL_S)
        if self._must_move_kv:
            await self._check_split()
        print(f"ready {self._address}", flush=True)
        await asyncio.Event().wait()

    async def _check_split(self) -> None:
        from headway.client import AsyncClient  # noqa: PLC0415
        from services.split_check import check_split  # noqa: PLC0415

        async with AsyncClient(self._address) as client:
            await check_split(client)

    async def _missing(self) -> list[str]:
        """The processes that do not serve yet, in the order of their names."""
        # Imported while the children start, not before: it takes a fifth of a second.
        from headway.client import AsyncClient  # noqa: PLC0415

        # A new client each time: a channel that was refused would wait before it tries again.
        async with AsyncClient(self._address) as client:
            try:
                async with asyncio.timeout(_RPC_TIMEOUT_S):
                    capacity = await client.capacity()
            except (HeadwayError, TimeoutError):
                return [self._controller.name]
        registered = {worker.worker_id for worker in capacity.workers}
        return sorted({worker.name for worker in self._workers} - registered)

    async def _stop(self) -> None:
        # The controller last: it relays what the workers finish.
        await _end(self._workers)
        await _end([self._controller])


def _start(name: str, service: str, path: Path, *arguments: str) -> Child:
    launcher_pid = os.getpid()
    command = [sys.executable, "-m", f"services.{service}", "--config", str(path), *arguments]
    process = subprocess.Popen(  # noqa: S603 - our own modules
        command,
        # Standard output belongs to the line that says ready.
        stdout=sys.stderr.fileno(),
        stdin=subprocess.DEVNULL,
        env=os.environ | MALLOC_ENVIRONMENT,
        # Ctrl-C reaches only us, so that we can end the others in good order.
        process_group=0,
        preexec_fn=lambda: die_with_parent(launcher_pid),  # noqa: PLW1509 - no threads yet
    )
    return Child(name, process)


async def _end(children: Sequence[Child]) -> None:
    """Ask all to end, and kill those that have not within `_STOP_S`."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    waiting = [asyncio.create_task(child.wait()) for child in children]
    await asyncio.wait(waiting, timeout=_STOP_S)
    for child, task in zip(children, waiting, strict=True):
        if not task.done():
            _say(f"{child.name} did not end within {_STOP_S:g} s: killing it")
            child.process.kill()
    await asyncio.gather(*waiting)


def _check_free(address: str) -> None:
    """Find out now, in one clear sentence, whether another deployment is running here.

    Raises:
        ConfigError: workers could not know the port.
        Unavailable: somebody listens there.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) == 0:
        raise ConfigError(f"controller.listen: needs a host and a port other than 0, got {address}")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
