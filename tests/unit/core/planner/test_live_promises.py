"""Promises of the live planner, kept in a world where steps take what the perf model says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.batch_state import PREFILL
from headway.core.events import RequestArrived
from headway.core.planner.admission import PlannedAdmission
from tests.core_objects import request, slo
from tests.live_world import Load, World, serve

loads = st.lists(
    st.tuples(
        st.floats(0, 0.2),
        st.integers(1, 6000),
        st.integers(1, 60),
        st.sampled_from([0.1, 0.3, 1.0, 3.0]),
        st.sampled_from([0.02, 0.05, 0.1]),
    ),
    min_size=1,
    max_size=30,
)


# How many prefill and decode workers, and whether those prefill, too.
CLUSTERS = [(1, 1, False), (2, 2, False), (0, 1, True), (0, 2, True), (1, 1, True), (1, 2, True)]


@pytest.mark.parametrize(("num_prefill", "num_decode", "decode_prefills"), CLUSTERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(load=loads, best_effort=st.sets(st.integers(0, 29)))
def test_every_promise_is_kept(
    num_prefill: int, num_decode: int, load: Load, best_effort: set[int], *, decode_prefills: bool
) -> None:
    world = World(num_prefill, num_decode, 5000, decode_prefills=decode_prefills)
    serve(world, load, best_effort)
    assert world.ended.keys() == {str(index) for index in range(len(load))}
    kept = {name for name in world.promised if world.ended[name].timings.slo_attained}
    assert kept == world.promised


@pytest.mark.parametrize(("num_prefill", "num_decode"), [(0, 1), (0, 2), (1, 1)])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(load=loads, best_effort=st.sets(st.integers(0, 29)))
def test_every_promise_is_kept_by_engines_that_pack_prompts_and_decodes(
    num_prefill: int, num_decode: int, load: Load, best_effort: set[int]
) -> None:
    world = World(num_prefill, num_decode, 5000, decode_prefills=True, packs=True)
    serve(world, load, best_effort)
    assert world.ended.keys() == {str(index) for index in range(len(load))}
    kept = {name for name in world.promised if world.ended[name].timings.slo_attained}
    assert kept == world.promised


def test_a_steady_load_is_promised_nearly_whole() -> None:
    """Half of what one prefill worker can compute; promising little would keep promises too."""
    load = [(0.06, 1000, 40, 0.5, 0.05)] * 200
    world = serve(World(1, 1, 5000), load, set())
    assert len(world.promised) > 190
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_one_worker_for_both_phases_is_promised_about_what_it_can_do() -> None:
    load = [(0.06, 1000, 40, 0.5, 0.05)] * 200
    world = serve(World(0, 1, 5000, decode_prefills=True), load, set())
    assert len(world.promised) > 190
    assert world.placed_locally == world.ended.keys()
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_an_engine_that_packs_prompts_and_decodes_is_promised_something() -> None:
    load = [(0.2, 1000, 40, 0.5, 0.05)] * 100
    world = serve(World(0, 1, 5000, decode_prefills=True, packs=True), load, set())
    assert len(world.promised) > 50
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_prompts_go_to_the_prefill_worker_when_the_decode_worker_is_full_of_them() -> None:
    load = [(0.02, 1000, 40, 0.5, 0.05)] * 200
    world = serve(World(1, 1, 5000, decode_prefills=True), load, set())
    alone = serve(World(0, 1, 5000, decode_prefills=True), load, set())
    assert 0 < len(world.promised & world.placed_locally) < len(world.promised)
    assert len(world.promised) > 1.2 * len(alone.promised)
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_a_prompt_is_not_taken_to_have_had_the_time_of_one_that_ended() -> None:
    """The second one goes first, and has left before anybody asks again."""
    world = World(1, 1, 5000)
    arrivals = ((0.0, "a", 6000, 2.0), (0.001, "b", 6000, 1.0), (0.25, "c", 10, 2.0))
    for at_s, name, num_tokens, ttft_s in arrivals:
        world.run_until(at_s)
        asked = request(name, num_prompt_tokens=num_tokens, max_tokens=3, slo=slo(ttft_s, 0.1))
        world.post(RequestArrived(asked, at_s))
    policy = world.controller._policy
    assert isinstance(policy, PlannedAdmission)
    (picture, _) = policy._live._pictures.values()
    (seen,) = picture.requests[picture.requests["phase"] == PREFILL]
    truth = world.engines["prefill-0"].batch.requests["a"]["num_computed_tokens"]
    assert 0 < truth < 2000
    assert seen["num_computed_tokens"] == truth
