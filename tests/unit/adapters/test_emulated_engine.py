"""The emulated engine: exact content, honest queues, blocks and step times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.adapters.emulated.engine import EmulatedEngine, open_emulated_engine
from headway.adapters.emulated.prefill import PrefillWork
from headway.adapters.emulated.steps import BlockPool
from headway.adapters.kv_grpc.layout import PageLayout
from headway.config import EmulatedConfig
from headway.core.cluster import WorkerRole
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.request import Sampling
from headway.errors import ConfigError, EngineFailed, KvTransferFailed
from headway.ports import DecodeJob, EngineFinished, EngineTokens, KvTarget, PrefillJob
from tests.emulated_workers import emulated_config, write_profile

NOWHERE = KvTarget("127.0.0.1:1", "transfer", b"ticket")
PERF_MODEL = PerfModel(0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_blocks_are_counted_both_ways() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == list(range(5))
    pool.release(first)
    assert (pool.num_free, pool.num_created, pool.num_released) == (2, 5, 2)


# How prompts are batched. Steps are taken by hand: nothing waits for time.


def job(name: str, num_tokens: int, priority: int = 0) -> PrefillJob:
    target = KvTarget("127.0.0.1:1", name, b"")
    return PrefillJob(name, (1,) * num_tokens, target, priority)


@pytest.fixture
async def work() -> AsyncIterator[PrefillWork]:
    engine = EmulatedConfig(
        kind="emulated",
        profile="",
        max_step_tokens=8,
        max_num_running=3,
        kv_block_size=4,
        num_kv_blocks=6,
    )
    work = PrefillWork(engine, PageLayout(2, 32, b""), PERF_MODEL)
    yield work
    await asyncio.to_thread(work.transport.close)


async def submit(work: PrefillWork, *jobs: PrefillJob) -> list[asyncio.Task[object]]:
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(work.prefill(j)) for j in jobs]
    await asyncio.sleep(0)
    return tasks


def step(work: PrefillWork) -> tuple[PrefillChunk, ...]:
    shape = work.begin_step()
    work.end_step()
    return shape.chunks if shape else ()


async def test_a_step_computes_chunks_of_several_prompts(work: PrefillWork) -> None:
    await submit(work, job("a", 5), job("b", 6))
    assert step(work) == (PrefillChunk(5, 0), PrefillChunk(3, 0))
    assert step(work) == (PrefillChunk(3, 3),)
    assert step(work) == ()


async def test_guaranteed_prompts_start_first_but_stop_nobody(work: PrefillWork) -> None:
    best_effort = await submit(work, job("best effort", 12, priority=1))
    step(work)
    later = await submit(work, job("also best effort", 4, 1), job("guaranteed", 4, 0))
    assert step(work) == (PrefillChunk(4, 8), PrefillChunk(4, 0))
    await asyncio.gather(*best_effort, later[1])
    assert not later[0].done()
    assert step(work) == (PrefillChunk(4, 0),)


async def test_a_prompt_waits_for_blocks_and_those_behind_it_too(work: PrefillWork) -> None:
    await submit(work, job("a", 16), job("too large now", 12), job("small", 4))
    assert step(work) == (PrefillChunk(8, 0),)
    assert (work.num_running, work.num_waiting, work.blocks.num_free) == (1, 2, 2)
    assert step(work) == (PrefillChunk(8, 8),)
    assert step(work) == (PrefillChunk(8, 0),)


async def test_a_cancelled_prompt_makes_room_at_once(work: PrefillWork) -> None:
    running, waiting = await submit(work, job("a", 24), job("b", 24))
    step(work)
    running.cancel()
    await asyncio.wait([running])
    assert work.blocks.num_free == 6
    assert step(work) == (PrefillChunk(8, 0),)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (work.num_running, work.num_waiting, work.blocks.num_free) == (0, 0, 6)


async def test_a_prompt_that_vanishes_during_a_step_harms_nobody(work: PrefillWork) -> None:
    first, second = await submit(work, job("a", 4), job("b", 4))
    assert work.begin_step() is not None
    first.cancel()
    await asyncio.wait([first])
    work.end_step()
    await second
    assert work.blocks.num_created == work.blocks.num_released == 2


# How sequences decode


def decode_job(engine: EmulatedEngine, name: str, max_tokens: int) -> DecodeJob:
    prompt = tuple(name.encode())
    return DecodeJob(name, prompt, Sampling(max_tokens), engine.mint_target(name), 0, 30.0)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write_profile(tmp_path / "profile.toml", step_s=0.004)


async def open_engine(profile: Path, role: WorkerRole, **fields: int) -> EmulatedEngine:
    config = emulated_config(profile, max_model_len=256, num_kv_blocks=64, **fields)
    assert isinstance(config.engine, EmulatedConfig)
    return await open_emulated_engine(config, config.engine, role, "127.0.0.1")


@pytest.fixture
async def engines(profile: Path) -> AsyncIterator[tuple[EmulatedEngine, EmulatedEngine]]:
    prefill = await open_engine(profile, WorkerRole.PREFILL)
    decode = await open_engine(profile, WorkerRole.DECODE)
    yield prefill, decode
    await prefill.close()
    await decode.close()


async def generate(
    engines: tuple[EmulatedEngine, EmulatedEngine], name: str, max_tokens: int
) -> list[EngineTokens | EngineFinished]:
    prefill, decode = engines
    job = decode_job(decode, name, max_tokens)
    sending = asyncio.create_task(
        prefill.prefill(PrefillJob(name, job.prompt_token_ids, job.target, 0))
    )
    events = [event async for event in decode.decode(job)]
    await sending
    return events


async def test_a_slow_reader_gets_the_tokens_of_several_steps_at_once(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    prefill, decode = engines
    job = decode_job(decode, "slow", 20)
    events = decode.decode(job)
    sending = asyncio.create_task(
        prefill.prefill(PrefillJob("slow", job.prompt_token_ids, job.target, 0))
    )
    first = await anext(events)
    assert isinstance(first, EngineTokens)
    # Another request of the same length, started later, ends later.
    await generate(engines, "other", 20)
    second = await anext(events)
    assert isinstance(second, EngineTokens)
    assert len(first.token_ids) + len(second.token_ids) == 20
    assert isinstance(await anext(events), EngineFinished)
    await sending


async def test_steps_take_the_time_the_perf_model_says(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    started_at_s = asyncio.get_running_loop().time()
    await generate(engines, "timed", 60)
    elapsed_s = asyncio.get_running_loop().time() - started_at_s
    # One prefill step and sixty decode steps; never less, by more than a timer's grain.
    assert elapsed_s >= 61 * 0.004 - 0.002
    assert (await engines[1].load()).step_time_ratio > 0


async def test_an_engine_that_has_ended_fails_what_it_holds(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    _, decode = engines
    pending = asyncio.create_task(anext(decode.decode(decode_job(decode, "pending", 5))))
    await asyncio.sleep(0)
    await decode.close()
    with pytest.raises(EngineFailed):
        await pending
    with pytest.raises(EngineFailed):
        await decode.load()


async def test_a_prefill_engine_that_has_ended_fails_what_it_holds(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    prefill, _ = engines
    pending = asyncio.create_task(prefill.prefill(PrefillJob("p", (1,), NOWHERE, 0)))
    await asyncio.sleep(0)
    await prefill.close()
    with pytest.raises(EngineFailed):
        await pending


async def test_blocks_that_do_not_become_free_in_time_fail_the_request(profile: Path) -> None:
    engine = await open_engine(profile, WorkerRole.DECODE, max_num_running=1)
    try:
        holder = asyncio.create_task(anext(engine.decode(decode_job(engine, "holder", 5))))
        await asyncio.sleep(0)
        hurried = DecodeJob("hurried", (1,), Sampling(5), engine.mint_target("hurried"), 0, 0.03)
        with pytest.raises(KvTransferFailed, match="no KV blocks"):
            await anext(engine.decode(hurried))
        holder.cancel()
        await asyncio.wait([holder])
        load = await engine.load()
        assert (load.num_waiting, load.num_free_kv_blocks) == (0, 64)
    finally:
        await engine.close()


async def test_a_pool_too_small_for_one_request_is_refused(profile: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.num_kv_blocks"):
        await open_engine(profile, WorkerRole.DECODE, kv_block_size=2)


async def test_decode_steps_are_charged_for_their_context(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    prefill, decode = engines
    num_tokens = 0
    job = decode_job(decode, "charged", 5)
    sending = asyncio.create_task(
        prefill.prefill(PrefillJob("charged", job.prompt_token_ids, job.target, 0))
    )
    async for event in decode.decode(job):
        if isinstance(event, EngineTokens):
            num_tokens += len(event.token_ids)
            shape = decode._work.begin_step()
            expected = StepShape((), 1, len("charged") + num_tokens) if num_tokens < 5 else None
            assert shape == expected
    await sending
