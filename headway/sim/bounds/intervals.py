"""Cuts a recorded stream's time into intervals."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import Floats, Ints


def interval_edges(
    arrived_at_s: Floats, prefill_due_at_s: Floats, last_due_at_s: float, max_intervals: int
) -> Floats:
    """Edges of at most `max_intervals` intervals from the first arrival to the last due time.

    Half of them evenly spaced; between these, arrivals and deadlines of prompts, or an even
    choice of them: windows that end at edges are kept exactly, and a burst gets more edges.
    """
    start_s = float(arrived_at_s.min())
    even = np.linspace(start_s, last_due_at_s, max_intervals // 2 + 1)
    events = np.unique(np.concatenate([arrived_at_s, prefill_due_at_s]))
    stride = -(-len(events) // max(max_intervals - max_intervals // 2, 1))
    return np.unique(np.concatenate([even, events[::stride]]).clip(start_s, last_due_at_s))


def expanded(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Pairs (index, value) for each value from first[index] to last[index], both included."""
    num = last - first + 1
    index = np.repeat(np.arange(len(first)), num)
    offset = np.arange(len(index)) - np.repeat(np.cumsum(num) - num, num)
    return index, first[index] + offset
