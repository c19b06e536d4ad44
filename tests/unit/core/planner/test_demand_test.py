"""What the demand test says is late, the look-ahead finds late, too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.batch_state import DECODE, Records
from headway.core.planner.demand_test import surely_late
from headway.core.planner.lookahead import ALL_ON_TIME, look_ahead
from tests import former_loop
from tests.former_loop import make_requests


def make_worker(**values: float) -> Records:
    """10 ms at least, and 0.1 ms per token beyond that."""
    return former_loop.make_worker(**{"step_guard_ratio": 1.0, "step_cap_s": 0.05, **values})


def says(requests: Records, workers: Records, row: int, now_s: float = 0.0) -> bool:
    n = len(requests)
    return bool(surely_late(now_s, requests, n, workers, np.zeros(n, np.int64), row))


def finds_late(requests: Records, workers: Records, row: int, now_s: float = 0.0) -> bool:
    n = len(requests)
    late, _, _ = look_ahead(now_s, requests.copy(), n, workers.copy(), np.zeros(n, np.int64), row)
    return bool(late != ALL_ON_TIME)


def due(at_s: float, num_prompt_tokens: float, **values: float) -> dict[str, float]:
    return {
        "prefill_due_at_s": at_s,
        "next_due_at_s": at_s,
        "num_prompt_tokens": num_prompt_tokens,
        **values,
    }


@pytest.mark.parametrize(("at_s", "late"), [(0.099, True), (0.11, False)])
def test_one_prompt_takes_as_long_as_its_tokens(at_s: float, late: bool) -> None:
    requests = make_requests(due(at_s, 1000))
    assert says(requests, make_worker(step_cap_s=np.inf), 0) == late
    assert finds_late(requests, make_worker(step_cap_s=np.inf), 0) == late


def test_prompts_that_are_due_before_come_first() -> None:
    requests = make_requests(due(0.1, 900), due(0.2, 1200))
    assert says(requests, make_worker(), 1)
    assert not says(requests[1:], make_worker(), 0)


def test_a_prompt_that_is_made_late_by_the_new_one_counts() -> None:
    requests = make_requests(due(1.0, 9500), due(0.9, 1000))
    assert says(requests, make_worker(), 1)
    # It was not promised: no matter.
    requests["guaranteed"][0] = 0
    assert not says(requests, make_worker(), 1)


def test_tokens_that_are_due_before_count() -> None:
    decodes = [
        {"phase": DECODE, "next_due_at_s": 0.02, "tpot_s": 0.02, "num_output_bound": 500}
        for _ in range(100)
    ]
    requests = make_requests(due(0.3, 2000), *decodes)
    assert not says(requests[:1], make_worker(), 0)
    # 10 ms of every 20 ms.
    assert says(requests, make_worker(), 0)


def test_the_step_that_runs_now_counts() -> None:
    requests = make_requests(due(0.11, 1000))
    assert not says(requests, make_worker(), 0)
    assert says(requests, make_worker(busy_until_s=0.02), 0)
    half = np.array([500])
    assert not surely_late(0.0, requests, 1, make_worker(busy_until_s=0.02), half, 0)


PROMPT = st.fixed_dictionaries(
    {
        "at_s": st.floats(0.01, 1.5),
        "num_prompt_tokens": st.integers(1, 6000),
        "guaranteed": st.sampled_from([0, 1, 1]),
    }
)
DECODING = st.fixed_dictionaries(
    {
        "next_due_at_s": st.floats(0.0, 0.2),
        "tpot_s": st.sampled_from([0.02, 0.05, 0.1]),
        "later_tpot_s": st.sampled_from([0.02, 0.1]),
        "num_stage_tokens_left": st.integers(-1, 20),
        "num_output_bound": st.integers(2, 60),
        "num_prompt_tokens": st.integers(1, 4000),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    prompts=st.lists(PROMPT, min_size=1, max_size=6),
    decodes=st.lists(DECODING, max_size=40),
    cap_s=st.sampled_from([0.02, 0.05, 0.2]),
    busy_s=st.floats(0.0, 0.05),
)
def test_the_look_ahead_agrees(
    prompts: list[dict[str, float]],
    decodes: list[dict[str, float]],
    cap_s: float,
    busy_s: float,
) -> None:
    requests = make_requests(
        *({"phase": DECODE, **decode} for decode in decodes), *(due(**prompt) for prompt in prompts)
    )
    requests["guaranteed"][-1] = 1
    workers = make_worker(
        step_cap_s=cap_s,
        busy_until_s=busy_s,
        context_token_s=1e-7,
        sequence_s=2e-5,
        prefill_attention_s=1e-8,
        chunk_s=1e-4,
        fixed_s=3e-3,
        max_draft_tokens=0,
    )
    row = len(requests) - 1
    if says(requests, workers, row):
        assert finds_late(requests, workers, row)
