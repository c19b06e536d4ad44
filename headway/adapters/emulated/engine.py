"""The emulated engine, put together for one role."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

from headway.adapters.emulated import content
from headway.adapters.emulated.decode import DecodeWork
from headway.adapters.emulated.prefill import PrefillWork
from headway.config import Config, EmulatedConfig
from headway.core.cluster import ResourceCounters, WorkerRole
from headway.errors import ConfigError, EngineFailed
from headway.ports.engine import (
    DecodeItem,
    DecodeJob,
    EngineInfo,
    EngineLoad,
    KvTarget,
    PrefillJob,
    PrefillResult,
)
from headway.profiles import load_profile

_log = logging.getLogger(__name__)


async def open_emulated_engine(
    config: Config, engine: EmulatedConfig, role: WorkerRole, host: str
) -> EmulatedEngine:
    """Start one. Args: host: where a decode engine receives pages, on a free port.

    Raises:
        ConfigError: the profile cannot be read, or a longest request would never fit.
    """
    if engine.num_kv_blocks * engine.kv_block_size < engine.max_model_len:
        raise ConfigError(
            f"engine.num_kv_blocks: {engine.num_kv_blocks} blocks of {engine.kv_block_size} tokens"
            f" cannot hold one request of engine.max_model_len ({engine.max_model_len}) tokens"
        )
    perf_model = load_profile(Path(engine.profile))
    layout = content.page_layout(config, engine)
    info = EngineInfo(
        max_model_len=engine.max_model_len,
        kv_block_size=engine.kv_block_size,
        num_kv_blocks=engine.num_kv_blocks,
        max_step_tokens=engine.max_step_tokens,
        max_num_running=engine.max_num_running,
        kv_bytes_per_token=engine.kv_bytes_per_token,
        perf_model=perf_model,
        forms_steps_by_deadline=True,
    )
    guard_ratio = config.controller.guard_ratio
    work: PrefillWork | DecodeWork
    match role:
        case WorkerRole.PREFILL:
            work = PrefillWork(engine, layout, perf_model, guard_ratio)
        case WorkerRole.DECODE:
            work = DecodeWork(engine, layout, perf_model, guard_ratio, host)
    await asyncio.to_thread(work.batch.warm_up)
    return EmulatedEngine(info, work)


class EmulatedEngine:
    """Implements `ports.Engine`. Must be made while its event loop runs."""

    def __init__(self, info: EngineInfo, work: PrefillWork | DecodeWork) -> None:
        self._info = info
        self._work = work
        self._num_slots_created = 0
        self._num_slots_released = 0
        self._closed = False
        self._stepping = asyncio.create_task(self._step(), name="emulated engine")

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def prefill(self, job: PrefillJob) -> PrefillResult:
        assert isinstance(self._work, PrefillWork)
        self._check_alive()
        self._num_slots_created += 1
        try:
            return await self._work.prefill(job)
        finally:
            self._num_slots_released += 1

    def mint_target(self, request_id: str) -> KvTarget:
        assert isinstance(self._work, DecodeWork)
        return self._work.mint_target(request_id)

    async def decode(self, job: DecodeJob) -> AsyncGenerator[DecodeItem]:
        assert isinstance(self._work, DecodeWork)
        self._check_alive()
        self._num_slots_created += 1
        try:
            async with aclosing(self._work.decode(job)) as events:
                async for event in events:
                    yield event
        finally:
            self._num_slots_released += 1

    async def load(self) -> EngineLoad:
        """As `ports.Engine.load`.

        Raises:
            EngineFailed: the step loop has ended.
        """
        self._check_alive()
        work = self._work
        staged = work.transport.counters()
        return EngineLoad(
            num_running=work.num_running,
            num_waiting=work.num_waiting,
            num_free_kv_blocks=work.blocks.num_free,
            resources=ResourceCounters(
                num_slots_created=self._num_slots_created,
                num_slots_released=self._num_slots_released,
                num_kv_blocks_created=work.blocks.num_created,
                num_kv_blocks_released=work.blocks.num_released,
                num_staged_pages_created=staged.num_created,
                num_staged_pages_released=staged.num_released,
            ),
            step_time_ratio=work.steps.step_time_ratio,
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stepping.cancel()
        with suppress(asyncio.CancelledError):
            await self._stepping
        # It joins a thread, which may wait for this event loop's sockets.
        await asyncio.to_thread(self._work.transport.close)

    async def _step(self) -> None:
        try:
            await self._work.steps.run()
        except Exception:  # noqa: BLE001 - the top of a task
            _log.exception("the step loop failed")
        finally:
            self._work.fail("the engine has ended")

    def _check_alive(self) -> None:
        if self._stepping.done():
            raise EngineFailed("the engine has ended")
