"""KV kept between the rounds of a session: what is found again, and who loses it first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headway.core.planner.promising import PromisePolicy
from headway.sim.kept_kv import evict, keep, place_on_kept
from headway.sim.options import RunOptions
from headway.sim.simulation import Simulation
from headway.sim.workload import Workload
from tests.simulated import cluster, simulate, watch, workload

BLOCK = 16


def sessions(num: int, num_prompt_tokens: int = 1000, gap_s: float = 0.3) -> Workload:
    """Sessions of two rounds of 20 tokens, all started at once; rounds in a row."""
    asked = workload("tools", 200, load=1.0, num_workers=1, seed=1)
    is_first = np.arange(2 * num) % 2 == 0
    grown = num_prompt_tokens + 20 + 100
    return Workload(
        asked.name,
        asked.tiers,
        arrived_at_s=np.where(is_first, 0.001 * np.arange(2 * num), np.nan),
        num_prompt_tokens=np.where(is_first, num_prompt_tokens, grown),
        num_output_tokens=np.full(2 * num, 20),
        tier=np.zeros(2 * num, np.int64),
        num_thinking_tokens=np.zeros(2 * num, np.int64),
        follows=np.where(is_first, -1, np.arange(2 * num) - 1),
        gap_s=np.where(is_first, 0.0, gap_s),
        num_prefix_tokens=np.where(is_first, 0, num_prompt_tokens + 19),
    )


@pytest.mark.parametrize("policy", ["headway", "vllm-v1"])
def test_the_next_round_computes_only_what_is_new(policy: str) -> None:
    finished = simulate(sessions(1), cluster("colocated-1"), policy, log=True)
    sim, steps = finished.result.sim, finished.result.steps
    # 1019 tokens are left behind; whole blocks of them are found.
    assert sim["num_cached_tokens"].tolist() == [0, 1019 // BLOCK * BLOCK]
    in_prompts = steps["num_tokens"] - steps["num_decodes"]
    assert in_prompts.sum() == 1000 + 1120 - 1019 // BLOCK * BLOCK
    first_s, second_s = sim["first_token_at_s"] - finished.result.arrived_at_s
    assert second_s < 0.5 * first_s


def test_a_prefill_worker_finds_its_prompt_and_not_what_was_decoded_elsewhere() -> None:
    finished = simulate(sessions(1), cluster("disaggregated-1:1"))
    assert finished.result.sim["num_cached_tokens"].tolist() == [0, 1000 // BLOCK * BLOCK]


def test_a_whole_prompt_that_is_found_still_has_a_token_to_compute() -> None:
    asked = sessions(1)
    longer = asked.num_prompt_tokens.copy()
    longer[1] = asked.num_prefix_tokens[1] = 1008
    finished = simulate(replace(asked, num_prompt_tokens=longer), cluster("colocated-1"))
    assert finished.result.sim["num_cached_tokens"].tolist() == [0, 1008 - BLOCK]


def with_kept(blocks: list[int], num_free: int) -> Simulation:
    """A worker that keeps so many blocks of sessions that ended in this order."""
    policy = PromisePolicy()
    simulation = Simulation(sessions(len(blocks)), cluster("colocated-1"), policy, (policy.former,))
    world = simulation.world
    world.workers["num_free_blocks"] = num_free
    for session, num_blocks in enumerate(blocks):
        world.requests["num_computed_tokens"][2 * session] = num_blocks * BLOCK + 5
        keep(world, 0, 2 * session)
    return simulation


def test_what_was_left_longest_ago_goes_first_and_from_its_end() -> None:
    simulation = with_kept([10, 20, 30], num_free=100)
    world = simulation.world
    evict(world, 0)
    assert world.kept[0].tolist() == [10, 20, 30]
    world.workers["num_free_blocks"] = 45
    evict(world, 0)
    assert world.kept[0].tolist() == [0, 15, 30]
    # Session 1 comes back, and is the latest from then on.
    world.requests["num_computed_tokens"][2] = 25 * BLOCK
    keep(world, 0, 2)
    world.workers["num_free_blocks"] = 40
    evict(world, 0)
    assert world.kept[0].tolist() == [0, 25, 15]
    assert world.num_kept[0] == 40


def test_who_waits_for_evicted_blocks_computes_them() -> None:
    simulation = with_kept([10, 20], num_free=100)
    world = simulation.world
    place_on_kept(world, 0, 1, 10 * BLOCK, False)
    assert world.requests["num_computed_tokens"][1] == 10 * BLOCK
    assert world.requests["num_blocks"][1] == 0
    world.workers["num_free_blocks"] = 24
    evict(world, 0)
    assert world.requests["num_computed_tokens"][1] == 4 * BLOCK
    assert world.sim["num_cached_tokens"][1] == 4 * BLOCK


def test_who_holds_them_at_once_keeps_them() -> None:
    simulation = with_kept([10, 20], num_free=100)
    world = simulation.world
    place_on_kept(world, 0, 1, 10 * BLOCK, True)
    assert world.requests["num_blocks"][1] == 10
    assert world.workers["num_free_blocks"][0] == 90
    assert world.kept[0].tolist() == [0, 20]
    world.workers["num_free_blocks"] = 5
    evict(world, 0)
    assert world.requests["num_computed_tokens"][1] == 10 * BLOCK
    assert world.kept[0].tolist() == [0, 5]


@pytest.mark.parametrize("policy", ["headway", "vllm-v1", "sarathi", "niyama+"])
def test_blocks_and_tokens_are_conserved_while_kept_blocks_are_taken(policy: str) -> None:
    asked = workload("tools", 200, load=1.5, num_workers=1, seed=5)
    machines = cluster("colocated-1", num_kv_tokens=30_000)
    watched, finished = watch(asked, machines, policy, log=True)
    sim = finished.result.sim
    num_cached = sim["num_cached_tokens"].sum()
    assert 0 < num_cached < 0.9 * asked.num_prefix_tokens.sum()
    computed = asked.num_prompt_tokens.sum() + (asked.num_output_tokens - 1).sum()
    computed += watched.num_lost_tokens - num_cached
    assert finished.result.steps["num_tokens"].sum() == computed
    assert (sim["num_cached_tokens"] % BLOCK == 0).all()
    assert (sim["num_cached_tokens"] <= asked.num_prefix_tokens).all()


@pytest.mark.parametrize(
    ("roles", "num_kv_tokens"),
    [
        ("colocated-1", 30_000),
        ("colocated-4", 30_000),
        ("disaggregated-2:2", None),
        ("hybrid-2:2", None),
    ],
)
def test_promises_that_count_on_kept_blocks_are_kept(roles: str, num_kv_tokens: int | None) -> None:
    machines = cluster(roles, exact=True, num_kv_tokens=num_kv_tokens)
    asked = workload("tools", 400, load=1.0, num_workers=machines.num_workers, seed=9)
    finished = simulate(asked, machines)
    assert finished.num_broken == 0
    assert finished.result.sim["num_cached_tokens"].sum() > 0
    assert finished.score.promised.mean() > 0.3


def second_round(num_waiting: int) -> tuple[int, int]:
    """Where a session's two rounds go; so many long prompts wait where its KV is."""
    asked = sessions(3)
    policy = PromisePolicy()
    machines = cluster("colocated-4", exact=True)
    simulation = Simulation(
        asked, machines, policy, (policy.former,) * 4, RunOptions(stop_before=1)
    )
    simulation.run()
    world, view = simulation.world, simulation.view
    first = int(world.sim["prefill_worker"][0])
    assert view.num_kept_tokens is not None
    assert np.flatnonzero(view.num_kept_tokens).tolist() == [first]
    others = np.repeat(world.requests[1:2], num_waiting)
    others["num_prompt_tokens"] = 400
    others["prefill_due_at_s"] += 10.0
    others["next_due_at_s"] += 10.0
    world.requests[2 : 2 + num_waiting] = others
    world.ids[first, :num_waiting] = 2 + np.arange(num_waiting)
    world.counts[first] = num_waiting
    now_s = float(world.requests["arrived_at_s"][1])
    return first, policy.decide(1, view, now_s).prefill_worker


def test_a_session_stays_where_its_kv_is_unless_that_costs_more_than_its_prompt() -> None:
    first, second = second_round(2)
    assert second == first
    first, second = second_round(4)
    assert second != first
