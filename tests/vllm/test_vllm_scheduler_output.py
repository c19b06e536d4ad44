"""Our scheduler in real vLLM with the demo's model: whatever it does to steps, output stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.conftest import BLOCK_SIZE
from tests.vllm.pair import prompt_of
from tests.vllm.scheduled import (
    CAP_S,
    LENGTHS,
    SLOW_MODEL,
    Asked,
    ScheduledEngine,
    promise,
    questions,
    start_smollm2,
)

pytestmark = pytest.mark.timeout(900)

NUM_BLOCKS = 16
BEST_EFFORT = Asked(prompt_of(12 * BLOCK_SIZE - 10, seed=1), 20)
# Six blocks, where only three are free.
PROMISED = Asked(prompt_of(6 * BLOCK_SIZE - 10, seed=2), 3, promise(60.0, 10.0), step_cap_s=9.0)


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Iterator[ScheduledEngine]:
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    engine = start_smollm2(model_dir, is_async=False, num_blocks=NUM_BLOCKS)
    try:
        engine.expected = engine.run(questions())
        engine.expected += [engine.run([asked])[0] for asked in (BEST_EFFORT, PROMISED)]
        # Nothing of ours has acted yet.
        assert engine.take_steps() == []
        engine.form_steps()
        yield engine
    finally:
        engine.close()
        os.sched_setaffinity(0, affinity)


def test_output_is_vllms_own_under_caps_holds_and_preemption(engine: ScheduledEngine) -> None:
    asked = questions(step_cap_s=CAP_S)
    # Best effort first: it holds blocks, and is decoding, when the promised ones come.
    ids = {i: engine.ask(one) for i, one in enumerate(asked) if one.promise is None}
    while not any(engine.internal(request_id).num_output_tokens for request_id in ids.values()):
        engine.step()
    ids |= {i: engine.ask(one) for i, one in enumerate(asked) if one.promise is not None}
    engine.finish()
    assert [engine.outputs[ids[i]] for i in range(len(asked))] == engine.expected[:-2]
    steps = engine.take_steps()
    assert sum(step.num_chunks for step in steps) >= sum(LENGTHS) / 30
    assert any(step.num_held for step in steps)
    assert any(step.num_preempted for step in steps)
    # Chunks keep to the cap. Decodes that cannot wait come on top.
    assert all(step.num_tokens - step.num_decodes <= CAP_S / SLOW_MODEL.token_s for step in steps)
    assert engine.scheduler.get_request_counts() == (0, 0)
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == NUM_BLOCKS


def test_best_effort_gives_way_within_one_step_and_resumes(engine: ScheduledEngine) -> None:
    ids = [engine.ask(BEST_EFFORT)]
    victim = engine.internal(ids[0])
    while victim.num_output_tokens < 12:
        engine.step()
    num_tokens = victim.num_tokens
    ids.append(engine.ask(PROMISED))
    engine.step()
    assert victim.num_preemptions == 1
    assert victim.num_tokens >= num_tokens
    assert engine.internal(ids[1]).num_computed_tokens == len(PROMISED.token_ids)
    engine.finish()
    assert [engine.outputs[request_id] for request_id in ids] == engine.expected[-2:]
