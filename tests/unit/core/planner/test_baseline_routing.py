"""Where the baselines' routers send requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headway.core.batch_state import ARRIVING, DECODE, PREFILL, REQUEST, WORKER
from headway.core.planner.arrival import Answer, ArrivalPolicy, ClusterView, Verdict
from headway.core.planner.baselines import BASELINES, ROUTERS, routed
from headway.core.planner.baselines.codes import SARATHI
from headway.core.planner.baselines.routing import Router, WithAdmission, power_of_two


def decode(num_tokens: int, tpot_s: float = 0.05, guaranteed: int = 1) -> dict[str, float]:
    return {
        "phase": DECODE,
        "num_prompt_tokens": num_tokens,
        "num_computed_tokens": num_tokens,
        "num_output_tokens": 1,
        "num_output_bound": 100,
        "num_blocks": -(-num_tokens // 16),
        "tpot_s": tpot_s,
        "guaranteed": guaranteed,
        "prefill_due_at_s": -1.0,
    }


def prompt(
    num_tokens: int, tpot_s: float = 0.05, due_at_s: float = 1.0, guaranteed: int = 1
) -> dict[str, float]:
    return {
        "phase": PREFILL,
        "num_prompt_tokens": num_tokens,
        "num_output_bound": 100,
        "tpot_s": tpot_s,
        "guaranteed": guaranteed,
        "prefill_due_at_s": due_at_s,
    }


def make_view(
    new: dict[str, float], *workers: list[dict[str, float]], order: int = 50
) -> ClusterView:
    """Workers with these requests on them; the new request has row 0.

    Steps take 10 ms or 0.1 ms per token, and 1 ms per sequence that decodes.
    """
    rows = [{**new, "order": order}, *(row for listed in workers for row in listed)]
    requests = np.zeros(len(rows), REQUEST)
    for index, row in enumerate(rows):
        for name, value in {"order": index, **row}.items():
            requests[name][index] = value
    requests["later_tpot_s"] = requests["tpot_s"]
    records = np.zeros(len(workers), WORKER)
    for name, value in {
        "floor_s": 0.01,
        "token_s": 1e-4,
        "sequence_s": 0.001,
        "time_ratio": 1.0,
        "block_size": 16,
        "num_blocks": 1000,
        "num_free_blocks": 1000,
        "max_step_tokens": 8192,
        "max_running": 64,
        "token_budget": 512,
        "prefills": 1,
        "decodes": 1,
        "busy_until_s": -1.0,
    }.items():
        records[name] = value
    ids = np.zeros((len(workers), len(rows)), np.int64)
    counts = np.array([len(listed) for listed in workers], np.int64)
    start = 1
    for w, listed in enumerate(workers):
        ids[w, : len(listed)] = np.arange(start, start + len(listed))
        start += len(listed)
    return ClusterView(
        requests=requests,
        ids=ids,
        counts=counts,
        grants=np.zeros_like(ids),
        workers=records,
        link_free_at_s=np.zeros(len(workers)),
        link_bytes_per_s=1e9,
        link_latency_s=0.001,
        kv_bytes_per_token=1e5,
    )


def served(worker: int) -> Answer:
    return Answer(Verdict.SERVE, worker, worker)


def policy(name: str) -> ArrivalPolicy:
    spec = BASELINES[name]
    return spec.router(spec.prefill_former)


@pytest.mark.parametrize(
    ("name", "worker"), [("round-robin", 2), ("least-requests", 1), ("least-tokens", 0)]
)
def test_simple_routers(name: str, worker: int) -> None:
    view = make_view(
        prompt(100), [decode(50), prompt(60)], [decode(500)], [decode(90), decode(90)], order=5
    )
    assert routed(ROUTERS[name])(SARATHI).decide(0, view, 0.0) == served(worker)


def test_power_of_two_draws_two_and_takes_the_shorter_queue() -> None:
    lengths = [9, 7, 5, 3, 1]
    picks = []
    for order in range(200):
        view = make_view(prompt(100), *([decode(50)] * length for length in lengths), order=order)
        picks.append(power_of_two(0, np.arange(5), view))
    # The longest queue never wins; the shortest does whenever drawn, in 4 of 10 draws.
    counts = np.bincount(picks, minlength=5)
    assert counts[0] == 0
    assert 60 <= counts[4] <= 100
    assert (np.diff(counts) > 0).all()
    view = make_view(prompt(100), [], [decode(50)])
    assert power_of_two(0, np.array([1]), view) == 1


def test_distserve_chooses_both_sides_by_their_own_work() -> None:
    arriving = {**prompt(700), "phase": ARRIVING}
    view = make_view(
        prompt(100), [prompt(300)], [prompt(90), prompt(90)], [arriving], [decode(500)]
    )
    view.workers["decodes"][:2] = 0
    view.workers["prefills"][2:] = 0
    assert policy("distserve").decide(0, view, 0.0) == Answer(Verdict.SERVE, 1, 3)


class Test:
    """Admits to one worker only."""

    __test__ = False

    def __init__(self, worker: int) -> None:
        self.worker = worker

    def fits(self, new: int, worker_index: int, view: ClusterView, now_s: float) -> bool:
        return worker_index == self.worker


def with_admission(worker: int) -> WithAdmission:
    router = Router(SARATHI, ROUTERS["least-requests"], ROUTERS["least-requests"])
    return WithAdmission(router, Test(worker))


def test_admission_is_asked_about_the_routers_worker() -> None:
    view = make_view(prompt(100), [decode(50)], [])
    assert with_admission(1).decide(0, view, 0.0) == served(1)
    assert with_admission(0).decide(0, view, 0.0) == Answer(Verdict.DEFER)
    view.workers["decodes"][1] = 0
    # Prefill on worker 1, decode on worker 0: both must agree.
    assert with_admission(1).decide(0, view, 0.0) == Answer(Verdict.DEFER)


def test_deferred_requests_start_one_prompt_at_a_time_where_blocks_are_free() -> None:
    deferred = prompt(100, due_at_s=np.inf, guaranteed=0)
    view = make_view(deferred, [decode(50), decode(50)], [decode(50, guaranteed=0)])
    assert with_admission(-1).place_deferred(0, view, 0.0) == served(1)
    view.workers["num_free_blocks"][1] = 6
    assert with_admission(-1).place_deferred(0, view, 0.0) == Answer(Verdict.DEFER)
    view = make_view(deferred, [decode(50), decode(50)], [prompt(100, guaranteed=0)])
    assert with_admission(-1).place_deferred(0, view, 0.0) == Answer(Verdict.DEFER)


def test_scorpio_refuses_what_would_be_late_everywhere() -> None:
    # 5000 tokens ahead take 0.5 s; later deadlines are not ahead.
    busy = [prompt(5000, due_at_s=0.55)]
    assert policy("scorpio").decide(0, make_view(prompt(900, due_at_s=0.6), busy), 0.0) == served(0)
    late = make_view(prompt(1100, due_at_s=0.6), busy)
    assert policy("scorpio").decide(0, late, 0.0) == Answer(Verdict.REFUSE)
    late = make_view(prompt(1100, due_at_s=0.6), busy, [prompt(5000, due_at_s=0.7)])
    assert policy("scorpio").decide(0, late, 0.0) == served(1)
    # What the running step computes is not counted twice.
    running = make_view(prompt(1100, due_at_s=0.6), busy)
    running.grants[0, 0] = 512
    running.workers["busy_until_s"] = 0.01
    assert policy("scorpio").decide(0, running, 0.0) == served(0)


def test_scorpio_prefers_room_in_the_virtual_batch() -> None:
    # Ten sequences take 20 ms. Worker 0 has fewer requests, but they are tight.
    tight, loose = decode(50, tpot_s=0.02), decode(50, tpot_s=0.2)
    view = make_view(prompt(100, tpot_s=0.02), [tight] * 10, [loose] * 30)
    assert policy("scorpio").decide(0, view, 0.0) == served(1)
    view = make_view(prompt(100, tpot_s=0.02), [tight] * 10)
    assert policy("scorpio").decide(0, view, 0.0) == served(0)


def test_polyserve_packs_a_bin_before_it_grows() -> None:
    loose, tight = decode(50, tpot_s=0.1), decode(50, tpot_s=0.03)
    new = prompt(100, tpot_s=0.1)
    view = make_view(new, [tight], [loose] * 2, [loose] * 5, [])
    assert policy("polyserve").decide(0, view, 0.0) == served(2)
    # Blocks for all outputs at full length: here only for two requests.
    view.workers["num_blocks"][2] = 20
    assert policy("polyserve").decide(0, view, 0.0) == served(1)


def test_polyserve_grows_then_spills_to_the_nearest_tighter_bin() -> None:
    loose, middle, tight = (decode(50, tpot_s=tpot_s) for tpot_s in (0.1, 0.06, 0.03))
    new = prompt(100, tpot_s=0.1)
    # 99 sequences and the chunk fill 100 ms.
    full = [loose] * 64
    assert policy("polyserve").decide(0, make_view(new, full, [tight], []), 0.0) == served(2)
    view = make_view(new, full, [tight] * 3, [middle], [tight])
    assert policy("polyserve").decide(0, view, 0.0) == served(2)
    # A looser bin would be slowed down to its pace: that is the last resort, its own bin first.
    strict = prompt(100, tpot_s=0.03)
    view = make_view(strict, [tight] * 64, [loose])
    assert policy("polyserve").decide(0, view, 0.0) == served(0)
    # A long wait where its bin is: 6000 tokens at about 900 in 100 ms, due in half a second.
    view = make_view(prompt(100, tpot_s=0.1, due_at_s=0.5), [loose, prompt(6000, 0.1, 0.4)], [])
    assert policy("polyserve").decide(0, view, 0.0) == served(1)


def test_policies_change_nothing_in_the_view() -> None:
    def snapshot(view: ClusterView) -> list[NDArray[Any]]:
        return [view.requests.copy(), view.ids.copy(), view.counts.copy(), view.workers.copy()]

    for name in BASELINES:
        view = make_view(prompt(100), [decode(50), prompt(60)], [decode(500)])
        before = snapshot(view)
        assert policy(name).decide(0, view, 0.0) == policy(name).decide(0, view, 0.0)
        assert all(np.array_equal(a, b) for a, b in zip(before, snapshot(view), strict=True))
