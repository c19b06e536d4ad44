"""The closed form of what decodes need to the end, against the steps that then run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headway.core.batch_state import DECODE, PREFILL, Records
from headway.core.batching import form_slack
from headway.core.planner.sustain import DECODE_RATE, KV_BLOCKS, SUSTAINED, sustained
from tests.former_loop import Loop, make_requests, make_worker

LENGTH = 200


def decodes(num: int, **values: float) -> Records:
    """Contexts of about a thousand tokens, the next token due one gap from now."""
    rows = []
    for index in range(num):
        row: dict[str, float] = {
            "phase": DECODE,
            "num_prompt_tokens": 900 + 10 * (index % 20),
            "num_output_tokens": 1,
            "num_output_bound": LENGTH,
            "num_stage_tokens_left": -1,
            "tpot_s": 0.05,
        }
        row.update(values)
        row.setdefault("later_tpot_s", row["tpot_s"])
        row["next_due_at_s"] = row["tpot_s"]
        rows.append(row)
    return make_requests(*rows)


def limit_of(requests: Records, workers: Records) -> int:
    return int(sustained(requests, len(requests), workers[0]))


class Late(Loop):
    num_late: int = 0

    def _advance(self, request: Records, grant: int, num_outputs: int) -> None:
        # A prompt's last chunk and every decode yield a token.
        self.num_late += int(self.now_s > request["next_due_at_s"])
        super()._advance(request, grant, num_outputs)


def num_late(requests: Records, workers: Records) -> int:
    loop = Late(form_slack, requests, requests["num_output_bound"].copy(), workers, 0)
    loop.run()
    return loop.num_late


ROOM = {"num_blocks": 1_000_000, "step_guard_ratio": 1.0}
WORKERS: dict[str, dict[str, float]] = {
    "compute": {"token_s": 1e-3, "fixed_s": 2e-3, "context_token_s": 1e-7, **ROOM},
    "memory": {"floor_s": 0.02, "context_token_s": 1e-6, "sequence_s": 1e-4, **ROOM},
    "slow": {"token_s": 1e-3, "context_token_s": 1e-7, "time_ratio": 1.3, **ROOM},
}


def largest(worker: dict[str, float], **values: float) -> int:
    num = 1
    while limit_of(decodes(num + 1, **values), make_worker(**worker)) == SUSTAINED:
        num += 1
    assert num < 500
    return num


@pytest.mark.parametrize("name", WORKERS)
def test_just_below_the_limit_all_are_on_time_and_just_above_not(name: str) -> None:
    worker = WORKERS[name]
    num = largest(worker)
    assert num > 10
    assert limit_of(decodes(num + 1), make_worker(**worker)) == DECODE_RATE
    # The test looks ahead in growing strides, so contexts between two of them may be longer.
    assert num_late(decodes(int(0.97 * num)), make_worker(**worker)) == 0
    assert num_late(decodes(int(1.1 * num) + 1), make_worker(**worker)) > 0


def test_the_guard_keeps_a_margin() -> None:
    worker = WORKERS["memory"]
    assert largest({**worker, "step_guard_ratio": 1.2}) < largest(worker)


def test_a_second_stage_is_looked_at_when_it_comes() -> None:
    worker = WORKERS["compute"]
    num = largest(worker, tpot_s=0.05)
    twice = decodes(int(1.5 * num), tpot_s=0.1)
    assert limit_of(twice, make_worker(**worker)) == SUSTAINED
    # After twenty tokens at 100 ms, 50 ms are asked for.
    twice["num_stage_tokens_left"] = 20
    twice["later_tpot_s"] = 0.05
    assert limit_of(twice, make_worker(**worker)) == DECODE_RATE
    # The other way round it breaks at once.
    twice["tpot_s"], twice["later_tpot_s"] = 0.05, 0.1
    assert limit_of(twice, make_worker(**worker)) == DECODE_RATE


def test_those_that_end_make_room() -> None:
    # Ten each: the contexts of all 200 tokens together would not fit, but half end after 20.
    worker = {"num_blocks": 20 * 62, "step_guard_ratio": 1.0}
    requests = decodes(20)
    requests["num_prompt_tokens"] = requests["num_computed_tokens"] = 900
    requests["num_blocks"] = 57
    assert limit_of(requests, make_worker(**worker)) == KV_BLOCKS
    requests["num_output_bound"][:10] = 20
    assert limit_of(requests, make_worker(**worker)) == SUSTAINED


def test_memory_that_runs_out_late_in_a_long_output_is_seen() -> None:
    # Two outputs of 30,000 tokens at 50 ms: memory for 40,000 is full after 1000 s.
    requests = decodes(2, num_output_bound=30_000)
    for num_tokens, expected in ((40_000, KV_BLOCKS), (64_000, SUSTAINED)):
        workers = make_worker(num_blocks=num_tokens // 16, step_guard_ratio=1.0)
        assert limit_of(requests, workers) == expected


def test_only_promised_decodes_count() -> None:
    worker = WORKERS["compute"]
    requests = decodes(3 * largest(worker))
    assert limit_of(requests, make_worker(**worker)) == DECODE_RATE
    requests["guaranteed"] = 0
    assert limit_of(requests, make_worker(**worker)) == SUSTAINED
    requests["guaranteed"] = 1
    requests["phase"] = PREFILL
    assert limit_of(requests, make_worker(**worker)) == SUSTAINED


def test_mixed_paces_share_a_worker() -> None:
    worker = {"token_s": 1e-3, "fixed_s": 2e-3, **ROOM}
    rng = np.random.default_rng(3)
    paces = rng.choice([0.05, 0.1, 0.2], 300)

    def some(num: int) -> Records:
        requests = decodes(num)
        requests["tpot_s"] = requests["later_tpot_s"] = requests["next_due_at_s"] = paces[:num]
        return requests

    def fits(num: int) -> Any:
        return limit_of(some(num), make_worker(**worker)) == SUSTAINED

    num = 1
    while fits(num + 1):
        num += 1
    assert num_late(some(int(0.9 * num)), make_worker(**worker)) == 0
    assert num_late(some(int(1.1 * num)), make_worker(**worker)) > 0
