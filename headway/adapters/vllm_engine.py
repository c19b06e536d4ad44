"""The real engine: vLLM, unforked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from headway.adapters.kv_grpc.tickets import TicketMint
from headway.adapters.vllm_jobs import decode_params, prefill_params, prefill_result
from headway.adapters.vllm_scheduler.plan_socket import PlanSender
from headway.adapters.vllm_start import measure_speed, start_engine, step_time_ratios
from headway.config import Config, VllmConfig
from headway.core.cluster import ResourceCounters, WorkerRole
from headway.core.request import FinishReason
from headway.errors import EngineFailed, KvTransferFailed
from headway.ports.engine import (
    DecodeItem,
    DecodeJob,
    EngineFinished,
    EngineInfo,
    EngineLoad,
    EngineStep,
    EngineTokens,
    KvTarget,
    KvTransferRecord,
    PlanUpdate,
    PrefillJob,
    PrefillResult,
)
from headway.profiles import load_profile

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
# Steps that `load` takes the median of.
_NUM_RECENT_STEPS = 32
_CLOSE_TIMEOUT_S = 0.5


async def open_vllm_engine(
    config: Config, role: WorkerRole, replica: int, host: str, otlp_endpoint: str
) -> VllmEngine:
    """Start vLLM as a prefill or decode engine; takes tens of seconds and holds up the loop.

    Call it on the main thread. On a CPU this process is bound to the replica's cores from
    then on, as its engine is.

    Args:
        config: the deployment; its engine is a vLLM one.
        role: which pool the worker belongs to.
        replica: which worker of its pool.
        host: where a decode engine listens for KV pages.
        otlp_endpoint: where vLLM sends its own spans; empty for nowhere.

    Raises:
        ConfigError: the engine cannot run as configured.
        EngineFailed: it did not start.
    """
    engine_config = config.engine
    assert isinstance(engine_config, VllmConfig)
    profile = load_profile(Path(engine_config.profile))
    llm = start_engine(config, role, replica, host, otlp_endpoint)
    try:
        facts = await llm.engine_core.call_utility_async("headway_describe")
        ratio = await measure_speed(llm, engine_config, role, profile)
        if role is WorkerRole.DECODE and config.decode.prefills:
            other = await measure_speed(llm, engine_config, WorkerRole.PREFILL, profile)
            ratio = max(ratio, other)
        perf_model = profile.scaled(ratio)
        plan_address = await llm.engine_core.call_utility_async(
            "headway_form_steps", asdict(perf_model), config.controller.guard_ratio
        )
    except BaseException:
        llm.shutdown(timeout=_CLOSE_TIMEOUT_S)
        raise
    info = EngineInfo(
        max_model_len=engine_config.max_model_len,
        kv_block_size=facts["kv_block_size"],
        num_kv_blocks=facts["num_kv_blocks"],
        max_step_tokens=engine_config.max_step_tokens,
        max_num_running=engine_config.max_num_running,
        kv_bytes_per_token=facts["kv_bytes_per_block"] // facts["kv_block_size"],
        perf_model=perf_model,
        forms_steps_by_deadline=True,
    )
    mint = TicketMint(facts["ticket_secret"])
    return VllmEngine(llm, info, facts["receiver_address"], mint, PlanSender(plan_address))


class VllmEngine:
    """Implements `ports.Engine` over vLLM's AsyncLLM."""

    def __init__(
        self,
        llm: AsyncLLM,
        info: EngineInfo,
        receiver_address: str,
        mint: TicketMint,
        plans: PlanSender,
    ) -> None:
        self._llm = llm
        self._info = info
        self._receiver_address = receiver_address
        self._mint = mint
        self._plans = plans
        self._num_slots_created = 0
        self._num_slots_released = 0
        self._ratios: deque[float] = deque(maxlen=_NUM_RECENT_STEPS)

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def prefill(self, job: PrefillJob) -> PrefillResult:
        """See `ports.Engine`."""
        params = prefill_params(job, time.monotonic())
        async with self._outputs(job, params) as outputs:
            output = await anext(outputs)
        if output.outputs[0].finish_reason not in _FINISH_REASONS:
            raise EngineFailed(f"vLLM ended the prompt: {output.outputs[0].finish_reason}")
        return prefill_result(output)

    def mint_target(self, request_id: str) -> KvTarget:
        """See `ports.Engine`."""
        assert self._receiver_address, "only a decode engine can be sent pages"
        transfer_id, ticket = self._mint.mint(request_id)
        return KvTarget(self._receiver_address, transfer_id, ticket)

    async def decode(self, job: DecodeJob) -> AsyncGenerator[DecodeItem]:
        """See `ports.Engine`."""
        if job.target is None:
            async with aclosing(self._decode_here(job)) as items:
                async for item in items:
                    yield item
            return
        transfer_id = job.target.transfer_id
        params = decode_params(job, time.monotonic())
        finish_reason: str | None = None
        watch = asyncio.create_task(self._abort_if_without_blocks(job, transfer_id))
        try:
            async with self._outputs(job, params) as outputs:
                async for output in outputs:
                    watch.cancel()
                    completion = output.outputs[0]
                    finish_reason = completion.finish_reason
                    if completion.token_ids or completion.text:
                        yield EngineTokens(tuple(completion.token_ids), completion.text)
        finally:
            watch.cancel()
        claim = await self._ask("headway_claim", transfer_id)
        if finish_reason not in _FINISH_REASONS:
            if finish_reason == "abort":
                raise KvTransferFailed(f"no KV blocks became free within {job.kv_timeout_s:g} s")
            if claim["error"]:
                raise KvTransferFailed(claim["error"])
            raise EngineFailed(f"vLLM ended the request: {finish_reason}")
        yield EngineFinished(
            finish_reason=_FINISH_REASONS[finish_reason],
            num_prompt_tokens_recomputed=claim["num_prompt_tokens_computed"],
            kv_transfer=KvTransferRecord(**claim["record"]) if claim["record"] else None,
        )

    async def _decode_here(self, job: DecodeJob) -> AsyncGenerator[DecodeItem]:
        """Compute the prompt too: without transfer parameters vLLM does so by itself."""
        params = decode_params(job, time.monotonic())
        finish_reason: str | None = None
        is_first = True
        async with self._outputs(job, params) as outputs:
            async for output in outputs:
                if is_first:
                    is_first = False
                    yield prefill_result(output)
                completion = output.outputs[0]
                finish_reason = completion.finish_reason
                if completion.token_ids or completion.text:
                    yield EngineTokens(tuple(completion.token_ids), completion.text)
        if finish_reason not in _FINISH_REASONS:
            raise EngineFailed(f"vLLM ended the request: {finish_reason}")
        yield EngineFinished(_FINISH_REASONS[finish_reason], 0, None)

    async def load(self) -> EngineLoad:
        """What the engine holds now; waits for the step under way.

        Raises:
            EngineFailed: the engine has ended.
        """
        load = await self._ask("headway_load")
        self._ratios.extend(step_time_ratios(self._info.perf_model, load))
        return EngineLoad(
            num_running=load["num_running"],
            num_waiting=load["num_waiting"],
            num_free_kv_blocks=load["num_free_kv_blocks"],
            resources=ResourceCounters(
                num_slots_created=self._num_slots_created,
                num_slots_released=self._num_slots_released,
                num_kv_blocks_created=load["num_kv_blocks_created"],
                num_kv_blocks_released=load["num_kv_blocks_released"],
                num_staged_pages_created=load["num_staged_pages_created"],
                num_staged_pages_released=load["num_staged_pages_released"],
            ),
            step_time_ratio=median(self._ratios) if self._ratios else 0.0,
            steps=tuple(EngineStep(*step) for step in load["scheduled_steps"]),
            acceptance=load["acceptance"],
        )

    def update_plan(self, update: PlanUpdate) -> None:
        """Have the engine's scheduler do otherwise from its next step on; does not wait.

        Raises:
            EngineFailed: the engine has ended, or has not taken the last updates.
        """
        self._plans.send(update)

    async def close(self) -> None:
        """End the engine's process."""
        self._plans.close()
        # It has nothing to save, and would take seconds to take itself apart.
        self._llm.shutdown(timeout=_CLOSE_TIMEOUT_S)

    @asynccontextmanager
    async def _outputs(
        self, job: PrefillJob | DecodeJob, params: SamplingParams
    ) -> AsyncIterator[AsyncGenerator[RequestOutput]]:
        """One request in vLLM; leaving the block in any way frees all it holds there.

        Raises:
            EngineFailed: the engine ended or refused the request.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # noqa: PLC0415

        outputs = self._llm.generate(
            {"prompt_token_ids": list(job.prompt_token_ids)},
            params,
            job.request_id,
            trace_headers={"traceparent": job.traceparent} if job.traceparent else None,
        )
        self._num_slots_created += 1
        try:
            yield outputs
        except (EngineDeadError, EngineGenerateError, ValueError) as error:
            raise EngineFailed(f"vLLM failed: {error}") from error
        finally:
            self._num_slots_released += 1
            await outputs.aclose()
            # vLLM aborts by itself only a request whose submission it had completed.
            await self._llm.abort(job.request_id)

    async def _abort_if_without_blocks(self, job: DecodeJob, transfer_id: str) -> None:
        """The receiver watches over a transfer only from when the request has its blocks."""
        await asyncio.sleep(job.kv_timeout_s)
        with suppress(EngineFailed):
            if await self._ask("headway_waits_for_blocks", transfer_id):
                await self._llm.abort(job.request_id)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a utility of `vllm_kv.engine_core`.

        Raises:
            EngineFailed: the engine has ended.
        """
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415

        call = asyncio.ensure_future(self._llm.engine_core.call_utility_async(method, *arguments))
        try:
            # vLLM never answers a call that was under way when the engine died.
            while not call.done():
                if self._llm.errored:
                    raise EngineFailed("vLLM's engine process has ended")
                await asyncio.wait({call}, timeout=1.0)
            return call.result()
        except EngineDeadError as error:
            raise EngineFailed("vLLM's engine process has ended") from error
        finally:
            call.cancel()
