"""Who gets KV blocks for pages on their way."""

from __future__ import annotations

import numpy as np

from headway.core.arrivals import next_arrivals
from headway.core.batch_state import ARRIVING, DECODE, REQUEST, Records

BLOCK = 16


def records(*rows: dict[str, float]) -> Records:
    table = np.zeros(len(rows), REQUEST)
    for index, row in enumerate(rows):
        table[index]["order"] = index
        for name, value in row.items():
            table[name][index] = value
    return table


def arriving(num_tokens: int, guaranteed: int) -> dict[str, float]:
    return {"phase": ARRIVING, "num_prompt_tokens": num_tokens, "guaranteed": guaranteed}


def running(num_blocks: int, guaranteed: int) -> dict[str, float]:
    return {
        "phase": DECODE,
        "num_blocks": num_blocks,
        "num_computed_tokens": num_blocks * BLOCK - 1,
        "guaranteed": guaranteed,
    }


def nobody(table: Records) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.zeros(len(table), np.int64)


def test_promised_ones_come_first_then_in_order() -> None:
    table = records(arriving(16, 0), arriving(17, 1), arriving(16, 0))
    assert next_arrivals(table, nobody(table), 3, BLOCK) == ([1, 0], [])


def test_the_first_without_room_keeps_later_ones_waiting() -> None:
    table = records(arriving(160, 0), arriving(16, 0))
    assert next_arrivals(table, nobody(table), 9, BLOCK) == ([], [])


def test_the_last_best_effort_gives_way_and_no_more_than_needed() -> None:
    table = records(running(4, 0), running(4, 1), running(4, 0), arriving(5 * BLOCK, 1))
    assert next_arrivals(table, nobody(table), 1, BLOCK) == ([3], [2])
    assert next_arrivals(table, nobody(table), 0, BLOCK) == ([3], [2, 0])


def test_nobody_is_preempted_in_vain_or_for_best_effort() -> None:
    table = records(running(4, 0), arriving(5 * BLOCK, 1))
    assert next_arrivals(table, nobody(table), 0, BLOCK) == ([], [])
    table = records(running(8, 0), arriving(5 * BLOCK, 0))
    assert next_arrivals(table, nobody(table), 0, BLOCK) == ([], [])


def test_who_is_in_the_step_stays_and_takes_its_blocks_first() -> None:
    table = records(running(4, 0), arriving(4 * BLOCK, 1))
    in_step = np.array([2, 0])
    # Its two tokens need a fifth block.
    assert next_arrivals(table, in_step, 5, BLOCK) == ([1], [])
    assert next_arrivals(table, in_step, 4, BLOCK) == ([], [])


def test_room_that_was_made_for_one_is_counted_for_the_next() -> None:
    table = records(running(9, 0), arriving(4 * BLOCK, 1), arriving(5 * BLOCK, 1))
    assert next_arrivals(table, nobody(table), 0, BLOCK) == ([1, 2], [0])
