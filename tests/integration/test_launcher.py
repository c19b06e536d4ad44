"""`python -m services`: one line when ready, and nothing left behind, however it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from headway.client import AsyncClient
from tests.deployment import free_port, write_deployment

# Draining and closing take less; it only ends a test that would hang.
PATIENCE_S = 40.0


def write_config(folder: Path, address: str, more: str = "") -> Path:
    tier = "[controller.tiers.chat]\nttft_s = 5.0\ntpot_s = 1.0\n"
    return write_deployment(folder, address, tier + more, step_s=0.005)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, f"127.0.0.1:{free_port()}")


@asynccontextmanager
async def launcher(config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


def descendants(process: asyncio.subprocess.Process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


async def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended although there was time to."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 10.0)
    return alive


def service_of(process: psutil.Process) -> str:
    return process.cmdline()[2]


async def test_a_stack_serves_once_it_says_ready(config: Path) -> None:
    async with launcher(config) as process:
        word, address = (await ready_line(process)).split()
        assert word == "ready"
        async with AsyncClient(address) as client:
            workers = (await client.capacity()).workers
            assert {worker.worker_id for worker in workers} == {"prefill-0", "decode-0"}
            events = [
                event async for event in client.generate(prompt="Hello", tier="chat", max_tokens=7)
            ]
        assert type(events[0]).__name__ == "Admission"
        assert type(events[-1]).__name__ == "Finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_stack_without_a_trace(config: Path, number: signal.Signals) -> None:
    async with launcher(config) as process:
        await ready_line(process)
        started = descendants(process)
        assert {service_of(child) for child in started} == {
            "services.controller",
            "services.prefill",
            "services.decode",
        }
        process.send_signal(number)
        stdout, stderr = await process.communicate()
        assert process.returncode == 0
        assert stdout == b""
        assert b"Traceback" not in stderr
        assert await still_alive(started) == []


async def test_a_killed_launcher_leaves_nobody(config: Path) -> None:
    async with launcher(config) as process:
        await ready_line(process)
        started = descendants(process)
        process.kill()
        assert await still_alive(started) == []


@pytest.mark.parametrize("service", ["services.controller", "services.decode"])
async def test_the_death_of_a_child_ends_the_stack(config: Path, service: str) -> None:
    async with launcher(config) as process:
        await ready_line(process)
        started = descendants(process)
        next(child for child in started if service_of(child) == service).kill()
        _, stderr = await process.communicate()
        assert process.returncode == 1
        name = {"services.controller": "controller", "services.decode": "decode-0"}[service]
        assert f"{name} ended unexpectedly (SIGKILL)" in stderr.decode()
        assert await still_alive(started) == []


async def test_a_signal_while_starting_ends_it_too(config: Path) -> None:
    async with launcher(config) as process:
        assert process.stderr is not None
        first_words = await process.stderr.readline()
        assert first_words.startswith(b"waiting for")
        started = descendants(process)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
        assert await still_alive(started) == []


async def test_a_second_stack_on_one_port_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with launcher(write_config(tmp_path, address)) as process:
            stdout, stderr = await process.communicate()
    assert process.returncode == 1
    assert stdout == b""
    assert f"cannot listen on {address}" in stderr.decode()


async def test_a_stack_needs_a_port_that_its_workers_know(tmp_path: Path) -> None:
    async with launcher(write_config(tmp_path, "127.0.0.1:0")) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 2
    assert "controller.listen" in stderr.decode()


async def test_a_bad_config_starts_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, "127.0.0.1:1", more="ttft_z = 1")
    async with launcher(config) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 2
    assert f"{config}: controller.tiers.chat.ttft_z" in stderr.decode()
    assert "waiting for" not in stderr.decode()
