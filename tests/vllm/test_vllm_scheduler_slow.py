"""As test_vllm_scheduler_output, with many prompts, and with steps that overlap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.pair import prompt_of
from tests.vllm.scheduled import ScheduledEngine, demanding, start_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NUM_PROMPTS = 200


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Iterator[None]:
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    yield
    os.sched_setaffinity(0, affinity)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "async"])
def engine(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[ScheduledEngine]:
    engine = start_smollm2(model_dir, is_async=request.param, num_blocks=24)
    engine.form_steps()
    yield engine
    engine.close()


@pytest.mark.parametrize("part", range(4))
def test_many_prompts_come_out_as_vllm_alone_says(engine: ScheduledEngine, part: int) -> None:
    numbers = range(part * NUM_PROMPTS // 4, (part + 1) * NUM_PROMPTS // 4)
    asked = [
        demanding(i, prompt_of(3 + (37 * i) % 90, seed=i), 4 + i % 9, NUM_PROMPTS // 4)
        for i in numbers
    ]
    with engine.not_forming():
        expected = engine.run(asked)
    engine.take_steps()
    assert engine.run(asked) == expected
    steps = engine.take_steps()
    assert any(step.num_held for step in steps)
