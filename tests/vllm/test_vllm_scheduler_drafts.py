"""Our scheduler in real vLLM with drafts: they change no output, and are counted tier by tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.adapters.vllm_start import speculative_config
from headway.config import SpeculationConfig
from tests.vllm.pair import prompt_of
from tests.vllm.scheduled import demanding, start_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def repeating(index: int) -> list[int]:
    """A prompt whose tokens come again and again."""
    return prompt_of(7 + index, seed=index) * 4


def test_drafts_change_no_output_and_their_acceptance_is_told(model_dir: Path) -> None:
    speculation = SpeculationConfig(method="ngram", max_draft_tokens=4)
    asked = [demanding(i, repeating(i), 16, 12) for i in range(12)]
    engine = start_smollm2(
        model_dir, is_async=False, speculative_config=speculative_config(speculation)
    )
    try:
        # vLLM alone drafts too; without any, greedy output would be the same.
        expected = engine.run(asked)
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
