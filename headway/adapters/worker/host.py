"""One worker process: its engine, its server, its link to the controller, and its end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path

import grpc
import uvloop

from headway.adapters.control_link import ControlLink
from headway.adapters.engines import open_engine
from headway.adapters.process import bind_to_cores
from headway.adapters.telemetry import build_telemetry, worker_name
from headway.adapters.worker.slots import Slots
from headway.config import Config, PoolConfig, load_config
from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSpec
from headway.errors import ConfigError, EngineFailed, HeadwayError
from headway.ports.engine import Engine, EngineInfo, EngineLoad
from headway.ports.telemetry import Telemetry
from headway.rpc.server import Server

_log = logging.getLogger(__name__)

# For requests that run when the worker is told to end.
DRAIN_S = 5.0

# Far above any step: an engine that says nothing for so long will not come back.
_ENGINE_SILENT_S = 30.0

# Adds the role's servicer to the server.
AddServicer = Callable[[grpc.aio.Server, Engine, Slots, Telemetry], None]


def main(role: WorkerRole, service_name: str, add_servicer: AddServicer) -> int:
    """Run one worker from the command line; returns the exit code."""
    name = role.value.lower()
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{name}", description=f"Runs one {name} worker of a deployment."
    )
    parser.add_argument("--config", type=Path, required=True, help="the deployment's TOML file")
    parser.add_argument("--replica", type=int, default=0, help="which worker of the pool this is")
    arguments = parser.parse_args()
    worker_id = f"{name}-{arguments.replica}"
    logging.basicConfig(
        format=f"%(asctime)s {worker_id} %(levelname)s %(message)s", level=logging.INFO
    )
    try:
        config = load_config(arguments.config)
        worker = Worker(config, role, arguments.replica, worker_id)
        uvloop.run(worker.run(service_name, add_servicer))
    except ConfigError as error:
        sys.stderr.write(f"{worker_id}: {error}\n")
        return 2
    except HeadwayError as error:
        sys.stderr.write(f"{worker_id}: {error.reason}: {error}\n")
        return 1
    except KeyboardInterrupt:
        # While the engine starts there is nothing to drain.
        return 130
    return 0


class Worker:
    """One worker. Nothing in here decides anything.

    Raises:
        ConfigError: the pool has no such replica.
    """

    def __init__(self, config: Config, role: WorkerRole, replica: int, worker_id: str) -> None:
        self._config = config
        self._role = role
        self._replica = replica
        self._worker_id = worker_id
        self._pool: PoolConfig = config.prefill if role is WorkerRole.PREFILL else config.decode
        if not 0 <= replica < self._pool.replicas:
            raise ConfigError(
                f"--replica {replica}: the {role.value.lower()} pool has replicas 0 to"
                f" {self._pool.replicas - 1}"
            )

    @property
    def _prefills(self) -> bool:
        return self._role is WorkerRole.PREFILL or self._config.decode.prefills

    async def run(self, service_name: str, add_servicer: AddServicer) -> None:
        """Serve until SIGTERM or SIGINT, then let what runs end within `DRAIN_S`.

        Raises:
            HeadwayError: the engine or the server could not start, or the engine failed.
        """
        if self._pool.cores:
            setting = f"{self._role.value.lower()}.cores"
            bind_to_cores(self._pool.cores[self._replica], setting)
        telemetry = build_telemetry(self._config, worker_name(self._role))
        try:
            engine = await open_engine(self._config, self._role, self._replica, self._pool.host)
            try:
                server = Server((service_name,))
                slots = Slots(engine.info.max_num_running, prefills=self._prefills)
                add_servicer(server.grpc, engine, slots, telemetry)
                address = await server.listen(f"{self._pool.host}:0")
                try:
                    spec = self._spec(engine.info, address)
                    await _Duty(
                        config=self._config,
                        spec=spec,
                        engine=engine,
                        server=server,
                        slots=slots,
                        telemetry=telemetry,
                    ).run()
                finally:
                    # Cancels what did not end in time, so that the engine is free of it.
                    await server.stop(0.0)
            finally:
                await engine.close()
        finally:
            telemetry.shutdown()

    def _spec(self, info: EngineInfo, address: str) -> WorkerSpec:
        return WorkerSpec(
            worker_id=self._worker_id,
            incarnation=uuid.uuid4().hex,
            role=self._role,
            address=address,
            model=self._config.model.name,
            max_model_len=info.max_model_len,
            kv_block_size=info.kv_block_size,
            num_kv_blocks=info.num_kv_blocks,
            max_step_tokens=info.max_step_tokens,
            max_num_running=info.max_num_running,
            kv_bytes_per_token=info.kv_bytes_per_token,
            perf_model=info.perf_model,
            forms_steps_by_deadline=info.forms_steps_by_deadline,
            prefills_locally=self._role is WorkerRole.DECODE and self._prefills,
        )


class _Duty:
    """What a worker does between its start and its end."""

    def __init__(
        self,
        *,
        config: Config,
        spec: WorkerSpec,
        engine: Engine,
        server: Server,
        slots: Slots,
        telemetry: Telemetry,
    ) -> None:
        self._worker_id = spec.worker_id
        self._interval_s = config.controller.report_interval_s
        self._engine = engine
        self._server = server
        self._slots = slots
        self._telemetry = telemetry
        self._link = ControlLink(
            spec, config.controller.listen, self._report, self._drain, slots.set_prefills
        )

    async def run(self) -> None:
        """Serve until told to end, and drain.

        Raises:
            EngineFailed: the engine has ended.
        """
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        self._load = await self._load_in_time()
        await self._server.set_serving(True)
        linked = asyncio.create_task(self._link.run())
        try:
            await self._watch_until(stopped.wait(), linked)
            await self._drain()
            try:
                async with asyncio.timeout(DRAIN_S):
                    await self._watch_until(self._slots.wait_empty(), linked)
            except TimeoutError:
                _log.warning("still at work after %g s: cancelling it", DRAIN_S)
        finally:
            linked.cancel()
            await asyncio.gather(linked, return_exceptions=True)

    async def _watch_until(
        self, condition: Coroutine[None, None, object], linked: asyncio.Task[None]
    ) -> None:
        """Keep the load fresh, and notice if the engine ends or the link breaks for good."""
        waiting = asyncio.create_task(condition)
        try:
            while not waiting.done():
                self._load = await self._load_in_time()
                self._telemetry.worker_load(self._worker_id, self._load)
                if linked.done():
                    linked.result()
                await asyncio.wait((waiting,), timeout=self._interval_s)
        finally:
            waiting.cancel()

    async def _load_in_time(self) -> EngineLoad:
        """The engine's load; it answers between two steps, or it hangs."""
        try:
            async with asyncio.timeout(_ENGINE_SILENT_S):
                return await self._engine.load()
        except TimeoutError:
            raise EngineFailed(f"the engine was silent for {_ENGINE_SILENT_S:g} s") from None

    async def _drain(self) -> None:
        self._slots.drain()
        self._link.report_now()
        await self._server.set_serving(False)

    def _report(self) -> WorkerLoad:
        load = self._load
        return WorkerLoad(
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            num_free_kv_blocks=load.num_free_kv_blocks,
            resources=load.resources,
            draining=self._slots.draining,
            step_time_ratio=load.step_time_ratio,
        )
