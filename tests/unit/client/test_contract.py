"""The rules of a stream, and each way to break them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from headway.client import Event, Tokens, Usage
from headway.client.contract import StreamContract
from headway.errors import HeadwayError, Refused, Unavailable
from tests.unit.client.test_meter import FINISHED, admission

ADMITTED = admission(guaranteed=True)
BEST_EFFORT = replace(admission(guaranteed=False), binding_constraint="KV_BLOCKS")
TOKENS = (Tokens(0, (1,), "a"), Tokens(1, (2, 3), "bc"))
REFUSED = Refused("KV_BLOCKS", "full", 1.0)


def violations(events: Sequence[Event], error: HeadwayError | None = None) -> list[str]:
    contract = StreamContract()
    for event in events:
        contract.event(event)
    contract.ended(error)
    return contract.violations


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([ADMITTED, *TOKENS, FINISHED], None),
        ([BEST_EFFORT, *TOKENS, FINISHED], None),
        # Text that was held back may come without a token.
        ([ADMITTED, *TOKENS, Tokens(3, (), "!"), FINISHED], None),
        # After Finished, the call's status says no more than it did.
        ([ADMITTED, *TOKENS, FINISHED], Unavailable("gone")),
        ([], REFUSED),
        ([], Unavailable("nobody is there")),
    ],
)
def test_these_follow_the_rules(events: list[Event], error: HeadwayError | None) -> None:
    assert violations(events, error) == []


@pytest.mark.parametrize(
    ("events", "error", "named"),
    [
        ([*TOKENS, ADMITTED, FINISHED], None, ["TOKENS_BEFORE_ADMISSION"] * 2),
        ([ADMITTED, ADMITTED, *TOKENS, FINISHED], None, ["SECOND_ADMISSION"]),
        ([replace(ADMITTED, ttft_s=None), *TOKENS, FINISHED], None, ["PROMISE_WITHOUT_BOUNDS"]),
        ([replace(ADMITTED, tpot_s=None), *TOKENS, FINISHED], None, ["PROMISE_WITHOUT_BOUNDS"]),
        (
            [admission(guaranteed=False), *TOKENS, FINISHED],
            None,
            ["BEST_EFFORT_WITHOUT_REASON"],
        ),
        ([ADMITTED, TOKENS[1], FINISHED], None, ["TOKEN_INDEX_GAP"]),
        ([ADMITTED, *TOKENS, TOKENS[1], FINISHED], None, ["TOKEN_INDEX_GAP"]),
        ([ADMITTED, TOKENS[0], FINISHED], None, ["TOKENS_MISCOUNTED"]),
        ([ADMITTED, *TOKENS], None, ["NOT_FINISHED"]),
        ([ADMITTED, *TOKENS], Unavailable("gone"), ["NOT_FINISHED"]),
        ([], None, ["NOT_FINISHED"]),
        ([ADMITTED, *TOKENS, FINISHED, FINISHED], None, ["EVENT_AFTER_FINISHED"]),
        ([ADMITTED, *TOKENS, FINISHED, Tokens(3, (4,), "d")], None, ["EVENT_AFTER_FINISHED"]),
        ([ADMITTED], REFUSED, ["REFUSED_AFTER_ADMISSION"]),
        (
            [replace(FINISHED, usage=Usage(3, 0, 0, 1))],
            None,
            ["FINISHED_BEFORE_ADMISSION"],
        ),
    ],
)
def test_each_breach_is_named(
    events: list[Event], error: HeadwayError | None, named: list[str]
) -> None:
    assert violations(events, error) == named
