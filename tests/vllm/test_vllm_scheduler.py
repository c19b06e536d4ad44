"""Our scheduler in real vLLM with a tiny model: what the former grants is what the engine does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from headway.adapters.vllm_scheduler import scheduler as scheduler_module
from headway.adapters.vllm_scheduler.formed_step import FormedStep
from headway.adapters.vllm_scheduler.plan_socket import PlanSender
from headway.ports.engine import DemandChange, PlanUpdate
from tests.vllm.pair import prompt_of
from tests.vllm.scheduled import CAP_S, Asked, ScheduledEngine, promise, questions, start_tiny

pytestmark = pytest.mark.timeout(600)

NUM_BLOCKS = 16


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "async"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScheduledEngine]:
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    folder = tmp_path_factory.mktemp("tiny")
    engine = start_tiny(folder, is_async=request.param, num_blocks=NUM_BLOCKS)
    try:
        # Nothing of ours acts yet.
        engine.expected = engine.run(questions())
        assert engine.take_steps() == []
        engine.form_steps()
        yield engine
    finally:
        engine.close()
        os.sched_setaffinity(0, affinity)


def test_decodes_ahead_of_their_line_wait_while_a_prompt_is_due(engine: ScheduledEngine) -> None:
    decodes = [engine.ask(Asked(prompt_of(10, s), 20, promise(30.0, 60.0))) for s in range(3)]
    while any(not engine.internal(i).num_output_tokens for i in decodes):
        engine.step()
    engine.take_steps()
    prompt = engine.ask(Asked(prompt_of(200, 9), 1, promise(9.0, 60.0), step_cap_s=CAP_S))
    before = [engine.internal(i).num_output_tokens for i in decodes]
    while prompt not in engine.outputs:
        engine.step()
    during = engine.take_steps()
    # Most steps were the prompt's alone: its tokens are due hours before theirs.
    alone = [step for step in during if step.num_chunks == 1 and step.num_decodes == 0]
    assert len(alone) > len(during) // 2
    assert all(step.num_held == 3 for step in alone)
    after = [engine.internal(i).num_output_tokens for i in decodes]
    assert sum(after) - sum(before) < len(during) * 3 // 2
    engine.engine.abort_request(decodes)
    engine.finish()


def test_the_earlier_due_prompt_overtakes_one_that_is_under_way(engine: ScheduledEngine) -> None:
    later = engine.ask(Asked(prompt_of(240, 1), 1, promise(100.0, 9.0), step_cap_s=CAP_S))
    engine.step()
    sooner = engine.ask(Asked(prompt_of(120, 2), 1, promise(20.0, 9.0)))
    while sooner not in engine.outputs:
        engine.step()
    assert later not in engine.outputs
    assert 0 < engine.internal(later).num_computed_tokens < 240
    engine.finish()


def test_plans_overtake_requests(engine: ScheduledEngine) -> None:
    sender = PlanSender(engine.address)
    request_id = engine.ask(Asked(prompt_of(200, 4), 40, promise(50.0, 7.0), step_cap_s=CAP_S))
    engine.step()
    internal_id = engine.internal(request_id).request_id

    def follow(update: PlanUpdate) -> None:
        sender.send(update)
        while not engine.scheduler._plans.has_updates:
            time.sleep(0.001)
        engine.step()

    follow(PlanUpdate(step_cap_s=1.0, demands={request_id: DemandChange()}))
    record = engine.scheduler.books.requests[internal_id]
    assert record["guaranteed"] == 0
    assert engine.scheduler.books._worker["step_cap_s"] == 1.0
    while engine.internal(request_id).num_output_tokens < 2:
        engine.step()
    # Promised again, late: its line starts where it was submitted, and its tokens so far count.
    follow(
        PlanUpdate(
            time_ratio=2.5,
            demands={request_id: DemandChange(promise=promise(30.0, 5.0)), "gone": DemandChange()},
        )
    )
    assert engine.scheduler.books.requests[internal_id]["guaranteed"] == 1
    assert engine.scheduler.books.time_ratio == 2.5
    engine.scheduler.books.time_ratio_told = None
    engine.engine.abort_request([request_id])
    engine.finish()
    sender.close()


def test_a_step_that_cannot_be_formed_is_vllms_own(
    engine: ScheduledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = engine.scheduler.books

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    # The next_start of a step needs this; so forming fails before anything was changed.
    monkeypatch.setattr(engine.scheduler.steps, "next_start_at_s", fail)
    assert engine.run(questions(step_cap_s=CAP_S)) == engine.expected
    assert len(broken.requests) == 0


def test_a_refused_allocation_leaves_a_step_to_vllm(
    engine: ScheduledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = engine.scheduler.kv_cache_manager
    allocate = manager.allocate_slots
    refusals = iter([True, False, True, True, False, True])

    def refuse(request: object, *args: object, **options: object) -> object:
        return None if next(refusals, False) else allocate(request, *args, **options)

    monkeypatch.setattr(manager, "allocate_slots", refuse)
    assert engine.run(questions(step_cap_s=CAP_S)) == engine.expected
    assert next(refusals, None) is None


def test_an_engine_that_holds_everything_sleeps_until_a_due_time(
    engine: ScheduledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = FormedStep({}, [], 0.0, num_chunks=0, num_held=1, draft_length=0)
    engine.woken.clear()
    with monkeypatch.context() as patches:
        patches.setattr(engine.scheduler.books, "form", lambda *_: nothing)
        # Only the due time, which is so far off that the step ends before it, may wake it.
        patches.setattr(scheduler_module, "_IDLE_LOOK_S", 3600.0)
        due_at_s = time.monotonic() + 1.0
        request_id = engine.ask(Asked(prompt_of(40, 5), 2, promise(1.0, 1.0)))
        engine.step()
        assert not engine.scheduler.has_requests()
        while not engine.woken:
            time.sleep(0.001)
        assert engine.woken[0] >= due_at_s
        assert engine.scheduler.has_requests()
    engine.woken.clear()
    engine.finish()
    assert len(engine.outputs[request_id]) == 2


def test_a_plan_wakes_an_engine_that_sleeps(
    engine: ScheduledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = FormedStep({}, [], 0.0, num_chunks=0, num_held=1, draft_length=0)
    sender = PlanSender(engine.address)
    with monkeypatch.context() as patches:
        patches.setattr(engine.scheduler.books, "form", lambda *_: nothing)
        patches.setattr(scheduler_module, "_IDLE_LOOK_S", 3600.0)
        request_id = engine.ask(Asked(prompt_of(40, 5), 2))
        engine.step()
        assert not engine.scheduler.has_requests()
        sender.send(PlanUpdate(step_cap_s=1.0))
        while not engine.scheduler.has_requests():
            time.sleep(0.001)
    engine.finish()
    assert len(engine.outputs[request_id]) == 2
    sender.close()
