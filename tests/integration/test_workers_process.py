"""A worker as its own process: it registers, reports, comes back, drains, and says why it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway.adapters.control_link import ControlLink
from headway.adapters.emulated.engine import EmulatedEngine, open_emulated_engine
from headway.adapters.worker import host
from headway.config import Config, EmulatedConfig, load_config
from headway.core.cluster import WorkerLoad as CoreWorkerLoad
from headway.core.cluster import WorkerRole
from headway.errors import EngineFailed
from headway.rpc.convert import duration_to_pb
from headway.rpc.server import Server, open_channel
from headway.v1 import control_service_pb2 as pb
from headway.v1.control_service_pb2_grpc import (
    ControlServiceServicer,
    add_ControlServiceServicer_to_server,
)
from headway.v1.decode_service_pb2_grpc import DecodeServiceStub
from headway.v1.generation_pb2 import WORKER_ROLE_DECODE, WorkerLoad
from tests.core_objects import worker_spec
from tests.deployment import write_deployment
from tests.emulated_workers import PATIENCE_S, decode_request, reserved

DRAIN = pb.ConnectResponse(drain=pb.Drain())


class ScriptedControl(ControlServiceServicer):
    """Registers every worker, keeps what it hears, and sends what the test gives it."""

    def __init__(self) -> None:
        self.registered: asyncio.Queue[pb.Register] = asyncio.Queue()
        self.loads: asyncio.Queue[WorkerLoad] = asyncio.Queue()
        # None ends the stream.
        self.commands: asyncio.Queue[pb.ConnectResponse | None] = asyncio.Queue()

    async def Connect(self, _: object, context: Any) -> None:  # type: ignore[override]
        first = await context.read()
        await context.write(
            pb.ConnectResponse(registered=pb.Registered(report_interval=duration_to_pb(0.02)))
        )
        self.registered.put_nowait(first.register)
        listening = asyncio.create_task(self._listen(context))
        try:
            while (command := await self.commands.get()) is not None:
                await context.write(command)
        finally:
            listening.cancel()

    async def _listen(self, context: Any) -> None:
        while isinstance(message := await context.read(), pb.ConnectRequest):
            self.loads.put_nowait(message.report)

    async def SetRole(self, request: pb.SetRoleRequest, context: Any) -> pb.SetRoleResponse:
        raise NotImplementedError

    async def next_load(self, *, draining: bool) -> WorkerLoad:
        while (load := await self.loads.get()).draining is not draining:
            pass
        return load


@pytest.fixture
async def control() -> AsyncIterator[tuple[ScriptedControl, str]]:
    control = ScriptedControl()
    server = Server(())
    add_ControlServiceServicer_to_server(control, server.grpc)
    address = await server.listen("127.0.0.1:0")
    async with asyncio.timeout(PATIENCE_S):
        yield control, address
    await server.stop(0.0)


def write_config(folder: Path, controller_address: str, more: str = "") -> Path:
    control = "report_interval_s = 0.02\n[controller.tiers.best-effort]\n"
    pool = "[decode]\nreplicas = 2\n"
    return write_deployment(folder, controller_address, control + pool + more, step_s=0.01)


@asynccontextmanager
async def worker_process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.decode", *arguments, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_worker_registers_as_what_it_is(
    control: tuple[ScriptedControl, str], tmp_path: Path
) -> None:
    scripted, address = control
    config = write_config(tmp_path, address)
    async with worker_process("--config", str(config), "--replica", "1"):
        register = await scripted.registered.get()
        assert register.worker_id == "decode-1"
        assert register.role == WORKER_ROLE_DECODE
        assert register.model == "emulated"
        assert register.perf_model.floor_s == 0.01
        first, second = await scripted.loads.get(), await scripted.loads.get()
        assert (
            first
            == second
            == WorkerLoad(num_free_kv_blocks=register.num_kv_blocks, resources=first.resources)
        )


async def test_a_worker_comes_back_when_the_connection_ends(
    control: tuple[ScriptedControl, str], tmp_path: Path
) -> None:
    scripted, address = control
    async with worker_process("--config", str(write_config(tmp_path, address))):
        first = await scripted.registered.get()
        scripted.commands.put_nowait(None)
        second = await scripted.registered.get()
        assert (first.worker_id, first.incarnation) == (second.worker_id, second.incarnation)


async def test_a_worker_that_is_told_to_drain_says_so_everywhere(
    control: tuple[ScriptedControl, str], tmp_path: Path
) -> None:
    scripted, address = control
    async with worker_process("--config", str(write_config(tmp_path, address))):
        register = await scripted.registered.get()
        async with open_channel(register.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            before = await health.Check(health_pb2.HealthCheckRequest())
            scripted.commands.put_nowait(DRAIN)
            await scripted.next_load(draining=True)
            after = await health.Check(health_pb2.HealthCheckRequest())
    assert before.status == health_pb2.HealthCheckResponse.SERVING
    assert after.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_worker_whose_place_is_taken_does_not_take_it_back(
    control: tuple[ScriptedControl, str],
) -> None:
    scripted, address = control
    drained = asyncio.Event()

    async def drain() -> None:
        drained.set()

    def take_no_role(_prefills: bool) -> None:
        pytest.fail("nobody asked for it")

    spec = worker_spec(WorkerRole.DECODE)
    link = ControlLink(spec, address, CoreWorkerLoad, drain, take_no_role)
    scripted.commands.put_nowait(DRAIN)
    scripted.commands.put_nowait(None)
    await link.run()
    assert drained.is_set()
    assert scripted.registered.qsize() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_that_must_end_finishes_what_runs(
    control: tuple[ScriptedControl, str], tmp_path: Path, number: signal.Signals
) -> None:
    scripted, address = control
    async with worker_process("--config", str(write_config(tmp_path, address))) as process:
        register = await scripted.registered.get()
        async with open_channel(register.address) as channel:
            request = decode_request("a", [1], 5)
            request.kv_timeout.FromMilliseconds(300)
            responses = aiter(DecodeServiceStub(channel).Decode(request))
            await reserved(responses)
            process.send_signal(number)
            await scripted.next_load(draining=True)
            # It was not cut off: it ends as it would have, because no pages came.
            with pytest.raises(grpc.aio.AioRpcError, match="not complete within"):
                await anext(responses)
        assert await process.wait() == 0


async def test_a_bad_config_is_named_with_its_path(tmp_path: Path) -> None:
    config = write_config(tmp_path, "127.0.0.1:1", more="replicass = 2")
    async with worker_process("--config", str(config)) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 2
    assert f"{config}: decode.replicass" in stderr.decode()
    assert "Traceback" not in stderr.decode()


async def test_a_missing_profile_is_named_with_its_path(tmp_path: Path) -> None:
    config = write_config(tmp_path, "127.0.0.1:1")
    (tmp_path / "profile.toml").unlink()
    async with worker_process("--config", str(config)) as process:
        _, stderr = await process.communicate()
    assert process.returncode == 2
    assert f"{tmp_path / 'profile.toml'}: no such file" in stderr.decode()


async def test_a_replica_beyond_the_pool_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "127.0.0.1:1")
    async with worker_process("--config", str(config), "--replica", "2") as process:
        _, stderr = await process.communicate()
    assert process.returncode == 2
    assert "replicas 0 to 1" in stderr.decode()


async def test_a_worker_ends_with_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: asyncio.Queue[EmulatedEngine] = asyncio.Queue()

    async def open_engine(
        config: Config, role: WorkerRole, replica: int, host: str
    ) -> EmulatedEngine:
        assert isinstance(config.engine, EmulatedConfig)
        engine = await open_emulated_engine(config, config.engine, role, host)
        engines.put_nowait(engine)
        return engine

    monkeypatch.setattr(host, "open_engine", open_engine)
    config = load_config(write_config(tmp_path, "127.0.0.1:1"))
    worker = host.Worker(config, WorkerRole.DECODE, 0, "decode-0")
    async with asyncio.timeout(PATIENCE_S):
        running = asyncio.create_task(worker.run("headway.v1.DecodeService", lambda *_: None))
        await (await engines.get()).close()
        with pytest.raises(EngineFailed):
            await running
