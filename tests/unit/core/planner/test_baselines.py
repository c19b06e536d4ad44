"""The contract that every batch former keeps, and what tells each baseline from the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from headway.core.batch_state import DECODE, GONE, PREEMPT, Records
from headway.core.planner.baselines import BASELINES, codes
from headway.core.planner.baselines.chunked import form_edf, form_sarathi
from headway.core.planner.baselines.niyama import form_niyama
from headway.core.planner.baselines.scorpio import form_scorpio
from headway.core.planner.baselines.vllm import form_vllm_v0, form_vllm_v1
from headway.core.planner.formers import form
from tests.former_loop import Former, Loop, make_requests, make_worker

FORMERS: dict[int, Former] = {
    codes.VLLM_V0: form_vllm_v0,
    codes.VLLM_V1: form_vllm_v1,
    codes.SARATHI: form_sarathi,
    codes.EDF: form_edf,
    codes.NIYAMA: form_niyama,
    codes.SCORPIO: form_scorpio,
}
CHUNKED = [form_vllm_v1, form_sarathi, form_edf, form_niyama, form_scorpio]


def grants_of(former: Former, requests: Records, workers: Records, now_s: float = 0.0) -> list[int]:
    n = len(requests)
    grants = np.full(n, 12345)
    former(now_s, requests, np.arange(n), n, workers[0], grants)
    return list(grants)


def crowded(former: Former, seed: int) -> Loop:
    """More than memory holds: 40 requests of two tiers and best effort."""
    rng = np.random.default_rng(7)
    rows = []
    for index in range(40):
        arrived_at_s = index * 0.03
        guaranteed = int(index % 5 != 0)
        due_at_s = arrived_at_s + (0.5 if index % 2 else 3.0) if guaranteed else np.inf
        rows.append(
            {
                "arrived_at_s": arrived_at_s,
                "guaranteed": guaranteed,
                "prefill_due_at_s": due_at_s,
                "next_due_at_s": due_at_s,
                "tpot_s": 0.03 if index % 2 else 0.1,
                "num_prompt_tokens": int(rng.integers(20, 900)),
            }
        )
    worker = make_worker(num_blocks=120, max_step_tokens=600, max_running=12, token_budget=256)
    return Loop(former, make_requests(*rows), rng.integers(1, 200, 40), worker, seed)


@pytest.mark.parametrize("former", FORMERS.values(), ids=lambda former: former.__name__)
def test_every_former_keeps_the_contract_and_finishes_everything(former: Former) -> None:
    loop, shuffled = crowded(former, seed=1), crowded(former, seed=2)
    loop.run()
    assert loop.num_preemptions > 0
    assert loop.worker["num_free_blocks"][0] == 120
    # The arrays' order means nothing.
    shuffled.run()
    assert shuffled.steps == loop.steps


def test_the_number_chooses_the_former() -> None:
    rows: list[Mapping[str, float]] = [
        {"phase": DECODE, "tpot_s": 0.3, "next_due_at_s": 0.02},
        {"phase": DECODE, "tpot_s": 0.1, "next_due_at_s": 0.05},
        {"num_prompt_tokens": 900},
    ]
    for code, former in FORMERS.items():
        expected = grants_of(former, make_requests(*rows), make_worker())
        grants = np.full(3, 12345)
        form(code, 0.0, make_requests(*rows), np.arange(3), 3, make_worker()[0], grants)
        assert list(grants) == expected
    for spec in BASELINES.values():
        assert {spec.prefill_former, spec.decode_former} <= FORMERS.keys()


@pytest.mark.parametrize("former", FORMERS.values(), ids=lambda former: former.__name__)
def test_a_promised_prompt_takes_the_blocks_of_best_effort(former: Former) -> None:
    requests = make_requests(
        {"phase": DECODE, "guaranteed": 0, "next_due_at_s": np.inf}, {"num_prompt_tokens": 48}
    )
    workers = make_worker(num_blocks=9, num_free_blocks=2)
    assert grants_of(former, requests, workers) == [PREEMPT, 48]


@pytest.mark.parametrize("former", FORMERS.values(), ids=lambda former: former.__name__)
def test_the_latest_decode_loses_its_blocks_when_they_run_out(former: Former) -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 32}
    requests = make_requests({**decode, "order": 2}, {**decode, "order": 0}, {**decode, "order": 1})
    workers = make_worker(num_blocks=6, num_free_blocks=0)
    assert grants_of(former, requests, workers) == [PREEMPT, 1, 1]


@pytest.mark.parametrize("former", CHUNKED, ids=lambda former: former.__name__)
def test_a_prompt_starts_only_if_all_of_it_has_room(former: Former) -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 40, "prefill_due_at_s": 0.5}
    # Seven blocks: the prompt begun takes four of them, the next needs four, the last only one.
    requests = make_requests(
        decode,
        {"num_prompt_tokens": 96, "num_computed_tokens": 32, "prefill_due_at_s": 1.0},
        {"num_prompt_tokens": 64, "prefill_due_at_s": 2.0},
        {"num_prompt_tokens": 16, "prefill_due_at_s": 3.0},
    )
    workers = make_worker(num_blocks=12, num_free_blocks=7)
    assert grants_of(former, requests, workers) == [1, 64, 0, 0]


@pytest.mark.parametrize("former", [form_niyama, form_scorpio], ids=lambda former: former.__name__)
def test_the_blocks_a_prompt_begun_still_needs_are_not_given_away(former: Former) -> None:
    requests = make_requests(
        {"num_prompt_tokens": 96, "num_computed_tokens": 32, "prefill_due_at_s": 5.0},
        {"num_prompt_tokens": 64, "prefill_due_at_s": 1.0},
    )
    workers = make_worker(num_blocks=12, num_free_blocks=7)
    assert grants_of(former, requests, workers) == [64, 0]


def test_first_come_first_served_goes_by_order() -> None:
    rows = [{"order": order, "num_prompt_tokens": 200} for order in (3, 0, 2, 1)]
    for former in (form_vllm_v1, form_sarathi):
        assert grants_of(former, make_requests(*rows), make_worker()) == [0, 200, 112, 200]
    assert grants_of(form_vllm_v0, make_requests(*rows), make_worker()) == [0, 200, 0, 200]


def test_vllm_v0_computes_whole_prompts_apart_from_decodes() -> None:
    rows = [{"phase": DECODE}, {"num_prompt_tokens": 200}, {"num_prompt_tokens": 300}]
    assert grants_of(form_vllm_v0, make_requests(*rows), make_worker()) == [0, 200, 300]
    # The longest prompt alone may exceed the budget, as DistServe's saturation length does.
    rows[1]["num_prompt_tokens"] = 700
    assert grants_of(form_vllm_v0, make_requests(*rows), make_worker()) == [0, 700, 0]
    # Two blocks free; one must stay so: 1 % of a hundred.
    requests = make_requests({"phase": DECODE}, {"num_prompt_tokens": 32})
    workers = make_worker(num_blocks=100, num_free_blocks=2)
    assert grants_of(form_vllm_v0, requests, workers) == [1, 0]
    # Best effort does not stall promised decodes, but runs beside them.
    requests = make_requests({"phase": DECODE}, {"guaranteed": 0}, {"phase": DECODE})
    assert grants_of(form_vllm_v0, requests, make_worker()) == [1, 0, 1]


def test_vllm_v1_runs_in_order_and_sarathi_decodes_first() -> None:
    rows: list[Mapping[str, float]] = [
        {"num_prompt_tokens": 500, "num_computed_tokens": 48},
        {"phase": DECODE},
        {"num_prompt_tokens": 500},
    ]
    workers = make_worker(token_budget=64)
    assert grants_of(form_vllm_v1, make_requests(*rows), workers) == [64, 0, 0]
    assert grants_of(form_sarathi, make_requests(*rows), workers) == [63, 1, 0]
    workers = make_worker(token_budget=512)
    assert grants_of(form_vllm_v1, make_requests(*rows), workers) == [452, 1, 59]
    assert grants_of(form_sarathi, make_requests(*rows), workers) == [452, 1, 59]


def test_vllm_v1_starts_nothing_in_a_step_that_preempts() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 32}
    requests = make_requests(decode, decode, {"num_prompt_tokens": 8})
    workers = make_worker(num_blocks=4, num_free_blocks=0)
    assert grants_of(form_vllm_v1, requests, workers) == [1, PREEMPT, 0]


def test_edf_goes_by_deadline_and_evicts_the_later_one() -> None:
    rows = [
        {"num_prompt_tokens": 400, "prefill_due_at_s": 5.0},
        {"num_prompt_tokens": 400, "prefill_due_at_s": 1.0},
    ]
    assert grants_of(form_edf, make_requests(*rows), make_worker()) == [112, 400]
    rows = [
        {"phase": DECODE, "num_prompt_tokens": 400, "prefill_due_at_s": 0.5},
        {"phase": DECODE, "num_prompt_tokens": 400, "prefill_due_at_s": 5.0},
        {"num_prompt_tokens": 400, "prefill_due_at_s": 1.0},
    ]
    workers = make_worker(num_blocks=60, num_free_blocks=10)
    assert grants_of(form_edf, make_requests(*rows), workers) == [1, PREEMPT, 400]
    assert grants_of(form_sarathi, make_requests(*rows), workers) == [1, 1, 0]


def test_niyama_fits_the_step_into_the_least_slack() -> None:
    def step_tokens(next_due_at_s: float, **values: float) -> int:
        rows: list[Mapping[str, float]] = [
            # Its first token was in time.
            {"phase": DECODE, "next_due_at_s": next_due_at_s, "mark": 1.0},
            {"num_prompt_tokens": 5000},
        ]
        workers = make_worker(token_budget=8192, **values)
        return sum(grants_of(form_niyama, make_requests(*rows), workers))

    assert step_tokens(10.0) == 2552
    # 512 tokens take 51.2 ms, which stretched by 1.2 is 61.4 ms.
    assert step_tokens(0.062) == 512
    assert step_tokens(0.061) == 256
    assert step_tokens(-0.01) == 128
    assert step_tokens(10.0, num_blocks=1900) == 512


def test_niyama_moves_the_token_deadlines_with_a_late_first_token() -> None:
    # First token due at 0, next one at 0.05; the first came at 0.2.
    requests = make_requests({"phase": DECODE, "next_due_at_s": 0.05}, {"num_prompt_tokens": 5000})
    workers = make_worker(token_budget=8192)
    # 50 ms of slack: 256 tokens take 30.7 ms with the safety, 512 take 61 ms.
    assert sum(grants_of(form_niyama, requests, workers, now_s=0.2)) == 256
    # The line stays where it was then put: at 0.24, 10 ms are left, for no more than the least.
    assert sum(grants_of(form_niyama, requests, workers, now_s=0.24)) == 128


def test_niyama_relegates_a_hopeless_prompt_once_and_for_good() -> None:
    # 4000 tokens at 8500 per second need 0.47 s; the shorter prompt is due later.
    requests = make_requests(
        {"num_prompt_tokens": 4000, "prefill_due_at_s": 0.4},
        {"num_prompt_tokens": 3000, "prefill_due_at_s": 2.0},
    )
    workers = make_worker(token_budget=8192)
    assert grants_of(form_niyama, requests, workers) == [0, 2552]
    # It stays behind, even where there is time enough again.
    requests["prefill_due_at_s"][0] = 1.0
    assert grants_of(form_niyama, requests, workers) == [0, 2552]
    # Of those with a chance, remaining work counts 8 ms per token against the deadline.
    requests = make_requests(
        {"num_prompt_tokens": 3000, "prefill_due_at_s": 5.0},
        {"num_prompt_tokens": 100, "prefill_due_at_s": 20.0},
    )
    assert grants_of(form_niyama, requests, workers) == [2452, 100]


def test_scorpio_lets_loose_decodes_skip_steps_in_proportion() -> None:
    requests = make_requests(
        {"phase": DECODE, "tpot_s": 0.02},
        {"phase": DECODE, "tpot_s": 0.06},
        {"phase": DECODE, "tpot_s": 0.2},
    )
    workers = make_worker()
    total = np.sum([grants_of(form_scorpio, requests, workers) for _ in range(30)], axis=0)
    assert list(total) == [30, 10, 3]
    # The tightest that is there sets the pace.
    requests["phase"][0] = GONE
    total = np.sum([grants_of(form_scorpio, requests, workers) for _ in range(30)], axis=0)
    assert list(total) == [0, 30, 9]


def test_scorpio_takes_prompts_by_deadline_and_late_ones_last() -> None:
    requests = make_requests(
        {"num_prompt_tokens": 300, "prefill_due_at_s": 0.9},
        {"num_prompt_tokens": 300, "prefill_due_at_s": 3.0},
        {"num_prompt_tokens": 300, "prefill_due_at_s": 2.0},
    )
    assert grants_of(form_scorpio, requests, make_worker(), now_s=1.0) == [0, 212, 300]


def test_scorpio_starts_a_prompt_only_while_the_virtual_batch_keeps_the_tightest_tpot() -> None:
    # Steps of b sequences take 10 ms + 5 ms * b: at 20 ms, two, or more of looser ones.
    workers = make_worker(sequence_s=0.005)
    decode = {"phase": DECODE, "tpot_s": 0.02}
    requests = make_requests(decode, decode, {"tpot_s": 0.02})
    assert grants_of(form_scorpio, requests, workers) == [1, 1, 0]
    requests = make_requests(decode, {"tpot_s": 0.02}, {"tpot_s": 0.02})
    assert grants_of(form_scorpio, requests, workers) == [1, 100, 0]
    loose = {"tpot_s": 0.08}
    requests = make_requests(decode, loose, loose, loose, loose, loose)
    assert grants_of(form_scorpio, requests, workers) == [1, 100, 100, 100, 100, 0]
