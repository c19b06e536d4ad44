"""Books of an engine's requests, without the engine."""

from __future__ import annotations

import math

import pytest

from headway.adapters.vllm_scheduler.books import EngineBooks, EngineLimits
from headway.adapters.vllm_scheduler.demand import Demand
from headway.core.batch_state import DECODE, LEAVING, PREFILL
from headway.core.perf_model import PerfModel
from headway.core.slo import DemandLine, Promise, StageSlo

# 1 ms per token, at least 10 ms.
MODEL = PerfModel(0.01, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0)
PROMISE = Promise(1.0, (StageSlo(0.1),))


def books(*, max_draft_tokens: int = 0, num_blocks: int = 64) -> EngineBooks:
    limits = EngineLimits(
        block_size=16,
        num_blocks=num_blocks,
        max_step_tokens=64,
        max_running=8,
        max_model_len=512,
        max_draft_tokens=max_draft_tokens,
    )
    return EngineBooks(MODEL, limits, 1.0)


def add(table: EngineBooks, name: str, demand: Demand, num_prompt: int = 20, num: int = 30) -> None:
    table.add(f"{name}-0f", demand, num_prompt_tokens=num_prompt, max_tokens=num)


def form(table: EngineBooks, now_s: float, num_free: int = 60) -> dict[str, int]:
    return table.form(now_s, num_free, 1.0, 0).grants


def test_a_first_token_that_leaves_early_is_known_to_be_early() -> None:
    table = books()
    add(table, "a", Demand("a", 5.0, promise=PROMISE), num_prompt=4)
    formed = table.form(5.0, 60, 1.0, 0)
    assert formed.grants == {"a-0f": 4}
    table.count(["a-0f"], [4])
    # Due at 6.0, and out with the step.
    assert table.requests["a-0f"]["lead_s"] == pytest.approx(1.0 - formed.predicted_s)


def test_a_request_from_prompt_to_last_token() -> None:
    table = books()
    add(table, "a", Demand("a", 5.0, promise=PROMISE, step_cap_s=0.012), num=3)
    record = table.requests["a-0f"]
    assert record["next_due_at_s"] == record["prefill_due_at_s"] == 6.0
    assert form(table, 5.0) == {"a-0f": 12}
    table.count(["a-0f"], [12])
    assert (record["phase"], record["num_blocks"]) == (PREFILL, 1)
    assert form(table, 5.0) == {"a-0f": 8}
    for step, num_computed in enumerate((20, 21, 22)):
        table.count(["a-0f"], [num_computed])
        assert record["num_output_tokens"] == step + 1
        assert record["next_due_at_s"] == pytest.approx(6.1 + 0.1 * step)
        assert record["num_blocks"] == 2
    # The last token is under way: nothing is left to grant.
    assert record["phase"] == LEAVING
    assert form(table, 5.0) == {}
    table.remove("a-0f")
    assert len(table.requests) == 0
    assert table.demands.id_of("a") is None


def test_grants_are_in_the_order_in_which_tokens_are_due() -> None:
    table = books()
    for name, ttft_s in (("late", 9.0), ("soon", 3.0), ("middle", 6.0)):
        add(table, name, Demand(name, 0.0, promise=Promise(ttft_s, (StageSlo(0.1),))))
        table.count([f"{name}-0f"], [20])
    assert list(form(table, 8.9)) == ["soon-0f", "middle-0f", "late-0f"]
    assert table.due_order(["late-0f", "soon-0f", "middle-0f"]) == [
        "soon-0f",
        "middle-0f",
        "late-0f",
    ]


def test_a_preempted_request_is_a_prompt_due_with_its_next_token() -> None:
    table = books()
    add(table, "a", Demand("a", 0.0, promise=PROMISE))
    table.count(["a-0f"], [20])
    table.count(["a-0f"], [21])
    table.lost_blocks("a-0f", 22)
    record = table.requests["a-0f"]
    assert (record["phase"], record["num_blocks"], record["num_computed_tokens"]) == (PREFILL, 0, 0)
    assert record["prefill_due_at_s"] == record["next_due_at_s"] == pytest.approx(1.2)
    assert form(table, 0.0) == {"a-0f": 22}
    table.count(["a-0f"], [22])
    assert (record["phase"], record["num_output_tokens"]) == (DECODE, 3)


def test_pages_on_their_way_take_room_and_are_left_alone() -> None:
    table = books()
    add(table, "a", Demand("a", 0.0, promise=PROMISE))
    table.awaits_pages("a-0f", 0)
    assert table.ids_without_blocks == ["a-0f"]
    formed = table.form(0.0, 60, 1.0, 1)
    assert formed.grants == {}
    assert table.next_arrivals(60, formed) == (["a-0f"], [])
    table.awaits_pages("a-0f", 2)
    assert (table.num_in_transfer, table.ids_without_blocks) == (1, [])
    assert form(table, 0.0) == {}
    table.pages_arrived("a-0f", 19)
    assert form(table, 0.0) == {"a-0f": 1}


def test_stages_end_with_a_token_or_a_count() -> None:
    thinking = Promise(1.0, (StageSlo(0.5, end_token_id=7), StageSlo(0.1)))
    table = books()
    add(table, "a", Demand("a", 0.0, promise=thinking))
    line = DemandLine(thinking, 0.0)
    record = table.requests["a-0f"]
    output: list[int] = []
    table.count(["a-0f"], [20])
    for index, token_id in enumerate([3, 3, 7, 3, 3]):
        output.append(token_id)
        line.token(token_id, 0.0)
        assert table.demands.with_stages == ["a-0f"]
        table.tokens_came("a-0f", output)
        assert record["next_due_at_s"] == pytest.approx(line.next_due_at_s)
        table.count(["a-0f"], [21 + index])


def test_a_changed_demand_counts_the_tokens_that_left() -> None:
    table = books()
    add(table, "a", Demand("a", 2.0))
    table.count(["a-0f"], [20])
    table.count(["a-0f"], [21])
    record = table.requests["a-0f"]
    assert record["guaranteed"] == 0
    # Of two tokens one has left, and one is under way.
    table.change_demand("a-0f", None, PROMISE, [9])
    assert record["guaranteed"] == 1
    assert record["next_due_at_s"] == pytest.approx(2.0 + 1.0 + 2 * 0.1)
    table.change_demand("a-0f", None, None, [9])
    assert (record["guaranteed"], record["next_due_at_s"]) == (0, math.inf)
    table.change_demand("a-0f", 8.5, None, [9])
    assert (record["guaranteed"], record["prefill_due_at_s"]) == (1, 8.5)


def test_drafts_are_bounded_by_tier_and_what_they_bring_is_learned() -> None:
    table = books(max_draft_tokens=4)
    slow = Promise(1.0, (StageSlo(10.0),))
    for name, tier in (("a", "chat"), ("b", "code")):
        add(table, name, Demand(name, 0.0, promise=slow, tier=tier))
        table.count([f"{name}-0f"], [20])
    for _ in range(100):
        table.drafts_verified({"b-0f": (4, 4)}, {"b-0f": 20}, [])
        table.requests["b-0f"]["num_output_tokens"] = 1
        table.requests["b-0f"]["next_due_at_s"] = 11.0
        table.requests["b-0f"]["phase"] = DECODE
    assert set(table.drafts.learned()) == {"code"}
    assert table.requests["b-0f"]["acceptance"] > table.requests["a-0f"]["acceptance"]
    formed = table.form(10.9, 60, 1.0, 0)
    assert formed.grants == {"a-0f": 5, "b-0f": 5}
    assert formed.draft_length == 4
    table.drafts.cap({"code": 1, "chat": 2})
    formed = table.form(10.9, 60, 1.0, 0)
    assert formed.grants == {"a-0f": 3, "b-0f": 2}
    # 4 of 4 + 1 tokens were kept: three of the draft are not computed again.
    table.count(["b-0f"], [25])
    table.drafts_verified({"b-0f": (4, 1)}, {"b-0f": 22}, [])
    record = table.requests["b-0f"]
    assert (record["num_computed_tokens"], record["num_output_tokens"]) == (22, 3)
    assert record["next_due_at_s"] == pytest.approx(11.0 + 2 * 10.0)
