"""The emulated engine: exact content, honest queues, blocks and step times."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.adapters.emulated.batch import Batch
from headway.adapters.emulated.engine import EmulatedEngine, open_emulated_engine
from headway.adapters.emulated.prefill import PrefillWork
from headway.adapters.emulated.steps import BlockPool
from headway.adapters.kv_grpc.layout import PageLayout
from headway.config import EmulatedConfig
from headway.core.batch_state import DECODE
from headway.core.cluster import WorkerRole
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.request import FinishReason, Sampling
from headway.core.slo import Promise, StageSlo
from headway.errors import ConfigError, EngineFailed, KvTransferFailed
from headway.ports.engine import (
    DecodeItem,
    DecodeJob,
    EngineFinished,
    EngineTokens,
    KvTarget,
    PrefillJob,
    PrefillResult,
)
from tests.emulated_workers import emulated_config, eventually, write_profile

NOWHERE = KvTarget("127.0.0.1:1", "transfer", b"ticket")
PERF_MODEL = PerfModel(0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_blocks_are_counted_both_ways() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == list(range(5))
    pool.release(first)
    assert (pool.num_free, pool.num_created, pool.num_released) == (2, 5, 2)


# How prompts are batched. Steps are taken by hand: nothing waits for time.


def job(name: str, num_tokens: int, due_s: float | None = 60.0) -> PrefillJob:
    target = KvTarget("127.0.0.1:1", name, b"")
    return PrefillJob(name, (1,) * num_tokens, target, due_s)


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
    work = PrefillWork(engine, PageLayout(2, 32, b""), PERF_MODEL, 1.0)
    yield work
    await asyncio.to_thread(work.transport.close)


async def submit(work: PrefillWork, *jobs: PrefillJob) -> list[asyncio.Task[object]]:
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(work.prefill(j)) for j in jobs]
    await asyncio.sleep(0)
    return tasks


def step(work: PrefillWork) -> set[PrefillChunk]:
    shape = work.begin_step()
    work.end_step()
    return set(shape.chunks) if shape else set()


async def test_a_step_computes_chunks_of_several_prompts(work: PrefillWork) -> None:
    await submit(work, job("a", 5, due_s=1.0), job("b", 6, due_s=2.0))
    assert step(work) == {PrefillChunk(5, 0), PrefillChunk(3, 0)}
    assert step(work) == {PrefillChunk(3, 3)}
    assert step(work) == set()


async def test_the_prompt_that_is_due_first_goes_first_even_if_it_comes_last(
    work: PrefillWork,
) -> None:
    (loose,) = await submit(work, job("loose", 12, due_s=60.0))
    assert step(work) == {PrefillChunk(8, 0)}
    (tight,) = await submit(work, job("tight", 8, due_s=1.0))
    assert step(work) == {PrefillChunk(8, 0)}
    await tight
    assert not loose.done()
    assert step(work) == {PrefillChunk(4, 8)}


async def test_best_effort_waits_for_all_that_is_promised(work: PrefillWork) -> None:
    (best_effort,) = await submit(work, job("best effort", 6, due_s=None))
    (promised,) = await submit(work, job("promised", 8))
    assert step(work) == {PrefillChunk(8, 0)}
    await promised
    assert not best_effort.done()
    assert step(work) == {PrefillChunk(6, 0)}


async def test_a_step_is_no_longer_than_its_cap(work: PrefillWork) -> None:
    """A token takes 1 ms here, and a step at least that long."""
    slow = PrefillWork(
        work._engine, PageLayout(2, 32, b""), PerfModel(0.001, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0
    )
    capped = PrefillJob("a", (1,) * 8, NOWHERE, due_s=60.0, step_cap_s=0.0035)
    await submit(slow, capped)
    assert [step(slow), step(slow), step(slow)] == [
        {PrefillChunk(3, 0)},
        {PrefillChunk(3, 3)},
        {PrefillChunk(2, 6)},
    ]
    await asyncio.to_thread(slow.transport.close)


async def test_a_prompt_that_needs_the_blocks_gets_those_of_one_that_is_due_later(
    work: PrefillWork,
) -> None:
    loose = await submit(work, job("loose", 24, due_s=60.0))
    assert [step(work), step(work)] == [{PrefillChunk(8, 0)}, {PrefillChunk(8, 8)}]
    assert work.blocks.num_free == 2
    (tight,) = await submit(work, job("tight", 16, due_s=1.0))
    while not tight.done():
        step(work)
        await asyncio.sleep(0)
    assert not loose[0].done()
    # It starts again from its beginning, and is computed whole.
    while not loose[0].done():
        assert step(work)
        await asyncio.sleep(0)
    assert work.blocks.num_created == work.blocks.num_released > 10


async def test_a_cancelled_prompt_makes_room_at_once(work: PrefillWork) -> None:
    running, waiting = await submit(work, job("a", 24), job("b", 24))
    step(work)
    running.cancel()
    await asyncio.wait([running])
    assert work.blocks.num_free == 6
    assert step(work) == {PrefillChunk(8, 0)}
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


def test_what_is_preempted_computes_its_prompt_and_its_output_again() -> None:
    engine = EmulatedConfig(kind="emulated", profile="", kv_block_size=4, num_kv_blocks=20)
    pool = BlockPool(20)
    batch = Batch(engine, PERF_MODEL, 1.0, pool)
    fields = {"phase": DECODE, "num_prompt_tokens": 10, "num_computed_tokens": 9}
    batch.requests.add("a", {**fields, "next_due_at_s": math.inf, "num_output_bound": 50})
    batch.hold_blocks_for("a", 10)
    outputs = []
    for index in range(9):
        if index in {3, 6}:
            batch.preempt("a")
            assert pool.num_free == 20
        shape = batch.form(0.0, 1.0)
        assert shape is not None
        outputs += [num_outputs for _, num_outputs in batch.compute()]
        if index in {3, 6}:
            # Ten of prompt, and one for each step before this one.
            assert shape.chunks == (PrefillChunk(10 + index, 0),)
    assert outputs == list(range(1, 10))
    assert batch.num_preemptions["a"] == 2
    batch.remove("a")
    assert pool.num_created == pool.num_released


# How sequences decode


def decode_job(engine: EmulatedEngine, name: str, max_tokens: int) -> DecodeJob:
    prompt = tuple(name.encode())
    return DecodeJob(name, prompt, Sampling(max_tokens), engine.mint_target(name), 0, 30.0)


def prefill_job(job: DecodeJob, due_s: float | None = None) -> PrefillJob:
    assert job.target is not None
    return PrefillJob(job.request_id, job.prompt_token_ids, job.target, due_s)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write_profile(tmp_path / "profile.toml", step_s=0.004)


async def open_engine(profile: Path, role: WorkerRole, **fields: int) -> EmulatedEngine:
    config = emulated_config(profile, **{"max_model_len": 256, "num_kv_blocks": 64, **fields})
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
) -> list[DecodeItem]:
    prefill, decode = engines
    job = decode_job(decode, name, max_tokens)
    sending = asyncio.create_task(prefill.prefill(prefill_job(job)))
    events = [event async for event in decode.decode(job)]
    await sending
    return events


async def test_a_slow_reader_gets_the_tokens_of_several_steps_at_once(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    prefill, decode = engines
    job = decode_job(decode, "slow", 20)
    events = decode.decode(job)
    sending = asyncio.create_task(prefill.prefill(prefill_job(job)))
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


async def test_an_engine_that_is_slower_than_its_profile_says_so(profile: Path) -> None:
    prefill = await open_engine(profile, WorkerRole.PREFILL)
    decode = await open_engine(profile, WorkerRole.DECODE, step_time_ratio=5)
    started_at_s = asyncio.get_running_loop().time()
    await generate((prefill, decode), "slow", 20)
    elapsed_s = asyncio.get_running_loop().time() - started_at_s
    ratio = (await decode.load()).step_time_ratio
    await prefill.close()
    await decode.close()
    assert elapsed_s >= (1 + 20 * 5) * 0.004 - 0.002
    assert ratio >= 4.5


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
    pending = asyncio.create_task(prefill.prefill(PrefillJob("p", (1,), NOWHERE)))
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


async def test_a_promised_request_gets_the_blocks_of_best_effort_ones(profile: Path) -> None:
    prefill = await open_engine(profile, WorkerRole.PREFILL)
    # Sixteen blocks of 16 tokens: best effort takes all but one.
    decode = await open_engine(profile, WorkerRole.DECODE, num_kv_blocks=16)
    try:
        bulky = DecodeJob("bulky", (1,) * 225, Sampling(30), decode.mint_target("bulky"), 1, 30.0)
        prompt = (2,) * 40
        promise = Promise(5.0, (StageSlo(1.0),))
        hurried = DecodeJob(
            "hurried", prompt, Sampling(200), decode.mint_target("hurried"), 0, 30.0, promise
        )

        async def run(job: DecodeJob) -> list[DecodeItem]:
            due_s = None if job.promise is None else 5.0
            sending = asyncio.create_task(prefill.prefill(prefill_job(job, due_s)))
            events = [event async for event in decode.decode(job)]
            await sending
            return events

        first = asyncio.create_task(run(bulky))
        await eventually(decode.load, lambda load: load.num_running == 1)
        second = await run(hurried)
        assert isinstance(second[-1], EngineFinished)
        assert second[-1].num_prompt_tokens_recomputed == 1
        finished = (await first)[-1]
        assert isinstance(finished, EngineFinished)
        assert finished.num_prompt_tokens_recomputed >= 1 + 225
        load = await decode.load()
        assert load.num_free_kv_blocks == 16
    finally:
        await prefill.close()
        await decode.close()


async def test_a_pool_too_small_for_one_request_is_refused(profile: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.num_kv_blocks"):
        await open_engine(profile, WorkerRole.DECODE, kv_block_size=2)


async def test_decode_steps_are_charged_for_their_context(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    prefill, decode = engines
    num_tokens = 0
    job = decode_job(decode, "charged", 5)
    sending = asyncio.create_task(prefill.prefill(prefill_job(job)))
    async for event in decode.decode(job):
        if isinstance(event, EngineTokens):
            num_tokens += len(event.token_ids)
            shape = decode._work.begin_step()
            # The step reads the KV of all tokens but the newest, which it computes.
            num_context = len("charged") + num_tokens - 1
            expected = StepShape((), 1, num_context) if num_tokens < 5 else None
            assert shape == expected
    await sending


# Prompts that a decode engine computes itself.


def local_job(name: str, num_tokens: int, max_tokens: int, due_s: float | None = None) -> DecodeJob:
    promise = None if due_s is None else Promise(due_s, (StageSlo(1.0),))
    return DecodeJob(
        name,
        (7,) * num_tokens,
        Sampling(max_tokens),
        None,
        int(promise is None),
        30.0,
        promise,
        prefill_due_s=due_s,
    )


async def items_of(engine: EmulatedEngine, job: DecodeJob) -> list[DecodeItem]:
    return [item async for item in engine.decode(job)]


def tokens_of(items: list[DecodeItem]) -> list[int]:
    return [
        token_id for item in items if isinstance(item, EngineTokens) for token_id in item.token_ids
    ]


async def test_a_prompt_computed_by_the_decode_engine_gives_the_same_tokens(
    engines: tuple[EmulatedEngine, EmulatedEngine],
) -> None:
    moved = await generate(engines, "same", 12)
    decode = engines[1]
    job = DecodeJob("same", tuple(b"same"), Sampling(12), None, 1, 30.0)
    here = await items_of(decode, job)
    assert tokens_of(here) == tokens_of(moved)
    assert isinstance(here[0], PrefillResult)
    assert sum(isinstance(item, PrefillResult) for item in here) == 1
    assert here[-1] == EngineFinished(FinishReason.LENGTH, 0, None)
    load = await decode.load()
    assert load.num_free_kv_blocks == 64
    assert load.resources.num_kv_blocks_created == load.resources.num_kv_blocks_released > 0


async def test_prompts_and_decodes_share_the_steps_of_one_engine(profile: Path) -> None:
    decode = await open_engine(profile, WorkerRole.DECODE, max_step_tokens=8)
    work = decode._work
    try:
        first = asyncio.create_task(items_of(decode, local_job("first", 4, 30, due_s=20.0)))
        await eventually(decode.load, lambda load: load.num_running == 1)
        second = asyncio.create_task(items_of(decode, local_job("second", 40, 2, due_s=10.0)))
        await eventually(decode.load, lambda load: load.num_running == 2)
        assert set(work.batch.grants) <= {"first", "second"}
        result = (await second)[0]
        assert isinstance(result, PrefillResult)
        # At most seven of 40 tokens fit in a step beside the other one's, and each takes 4 ms.
        assert result.computed_s >= 5 * 0.004 - 0.002
        assert not first.done()
        await first
    finally:
        await decode.close()


async def test_a_cancelled_prompt_gives_its_blocks_back(profile: Path) -> None:
    decode = await open_engine(profile, WorkerRole.DECODE, max_step_tokens=8)
    try:
        running = asyncio.create_task(items_of(decode, local_job("long", 200, 5)))
        await eventually(decode.load, lambda load: load.num_free_kv_blocks < 64)
        running.cancel()
        await asyncio.wait([running])
        load = await decode.load()
        assert (load.num_running, load.num_waiting, load.num_free_kv_blocks) == (0, 0, 64)
        assert load.resources.num_slots_created == load.resources.num_slots_released == 1
    finally:
        await decode.close()
