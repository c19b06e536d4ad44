"""When pages must be at a decode worker, and when they may join its batch."""

from __future__ import annotations

import numpy as np
import pytest

from headway.core.batch_state import ARRIVING, DECODE, Records
from headway.core.planner.handover import latest_arrival, may_join
from headway.core.planner.probe import FITS, KV_BLOCKS, LATE
from tests import former_loop
from tests.former_loop import make_requests

ON_THE_WAY = {"phase": ARRIVING, "num_prompt_tokens": 100, "tpot_s": 0.1}
AHEAD = {
    "phase": DECODE,
    "num_prompt_tokens": 100,
    "num_computed_tokens": 100,
    "num_output_tokens": 1,
    "num_blocks": 7,
    "next_due_at_s": 9.0,
    "tpot_s": 0.1,
}


def make_worker(**values: float) -> Records:
    """Its steps take 10 ms."""
    return former_loop.make_worker(
        **{"step_guard_ratio": 1.0, "step_cap_s": np.inf, "decodes": 1, **values}
    )


def latest(
    others: list[dict[str, float]], due_at_s: float, free_at_s: float = 0.0, **values: float
) -> tuple[int, float]:
    requests = make_requests(*others, {**ON_THE_WAY, "next_due_at_s": due_at_s})
    n, worker = len(others), make_worker(busy_until_s=free_at_s, **values)
    found, arrives_at_s = latest_arrival(
        0.0, requests, np.arange(n), n, np.zeros(n, np.int64), worker[0], requests[n]
    )
    return found, arrives_at_s


def test_an_idle_worker_needs_the_time_of_its_step() -> None:
    found, arrives_at_s = latest([], 0.1)
    assert found == FITS
    assert arrives_at_s == pytest.approx(0.09, abs=1e-6)


def test_a_busy_worker_takes_pages_in_when_a_step_starts() -> None:
    # Steps start at 4, 14, ... ms.
    found, arrives_at_s = latest([AHEAD], 0.1, free_at_s=0.004)
    assert found == FITS
    assert arrives_at_s == pytest.approx(0.084, abs=1e-6)


def test_a_worker_that_only_decodes_waits_for_pages() -> None:
    found, arrives_at_s = latest([AHEAD], 0.1, free_at_s=0.004, prefills=0)
    assert found == FITS
    assert arrives_at_s == pytest.approx(0.09, abs=1e-6)


def test_what_cannot_be_in_time_has_no_arrival() -> None:
    assert latest([AHEAD], 0.0139, free_at_s=0.004)[0] == LATE
    assert latest([AHEAD], 0.0141, free_at_s=0.004)[0] == FITS


def test_pages_need_room() -> None:
    assert latest([], 0.1, num_blocks=20, num_free_blocks=7)[0] == FITS
    assert latest([], 0.1, num_blocks=20, num_free_blocks=6)[0] == KV_BLOCKS


def joins(due_at_s: float) -> bool:
    """Best-effort pages, while promised ones come in 4 ms."""
    requests = make_requests(
        {**ON_THE_WAY, "guaranteed": 0, "next_due_at_s": np.inf, "num_blocks": 7},
        {**ON_THE_WAY, "arrives_at_s": 0.004, "next_due_at_s": due_at_s},
    )
    return bool(may_join(0.0, requests, np.arange(2), 2, make_worker()[0], 0))


def test_pages_join_only_where_nobody_is_late_by_it() -> None:
    # Their step ends at 10 ms, the next one at 20.
    assert joins(0.0205)
    assert not joins(0.0195)
