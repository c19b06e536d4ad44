"""As test_vllm_scheduler, with many prompts, and with drafts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.adapters.vllm_start import speculative_config
from headway.config import SpeculationConfig
from tests.vllm.pair import prompt_of
from tests.vllm.scheduled import Asked, promise, start_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NUM_PROMPTS = 200
CAP_S = 0.8


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    yield
    os.sched_setaffinity(0, affinity)


def demanding(index: int, token_ids: list[int], num_tokens: int) -> Asked:
    promised = promise(5.0 + 1.5 * index, 0.5 + index % 5) if index % 4 else None
    return Asked(token_ids, num_tokens, promised, f"tier-{index % 2}", CAP_S)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_many_prompts_come_out_as_vllm_alone_says(model_dir: Path, is_async: bool) -> None:
    engine = start_smollm2(model_dir, is_async=is_async, num_blocks=24)
    try:
        asked = [
            demanding(i, prompt_of(3 + (37 * i) % 90, seed=i), 4 + i % 9)
            for i in range(NUM_PROMPTS)
        ]
        expected = engine.run(asked)
        engine.form_steps()
        assert engine.run(asked) == expected
        steps = engine.take_steps()
        assert any(step.num_held for step in steps)
        assert any(step.num_preempted for step in steps)
    finally:
        engine.close()


def repeating(index: int) -> list[int]:
    """A prompt whose tokens come again and again."""
    return prompt_of(7 + index, seed=index) * 4


def test_drafts_change_no_output_and_their_acceptance_is_told(model_dir: Path) -> None:
    speculation = SpeculationConfig(method="ngram", max_draft_tokens=4)
    asked = [demanding(i, repeating(i), 16) for i in range(12)]
    plain = start_smollm2(model_dir, is_async=False)
    try:
        expected = plain.run(asked)
    finally:
        plain.close()
    engine = start_smollm2(
        model_dir, is_async=False, speculative_config=speculative_config(speculation)
    )
    try:
        engine.form_steps()
        assert engine.run(asked) == expected
        scheduler = engine.scheduler
        assert set(scheduler.books.drafts.learned()) == {"tier-0", "tier-1"}
        assert all(0 < value < 1 for value in scheduler.books.drafts.learned().values())
        # Without drafts for one tier, none of its requests has any.
        scheduler.books.drafts.cap({"tier-0": 0})
        drafted: set[str] = set()

        def note_drafts(scheduled: object, model_output: object) -> object:
            drafted.update(scheduled.scheduled_spec_decode_tokens)  # type: ignore[attr-defined]
            return update(scheduled, model_output)

        update, scheduler.update_from_output = scheduler.update_from_output, note_drafts
        assert engine.run(asked) == expected
        numbers = [int(request_id.split("-")[1]) - len(asked) - 1 for request_id in drafted]
        assert numbers
        assert all(number % 2 == 1 for number in numbers)
    finally:
        engine.close()
