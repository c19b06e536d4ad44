"""The order in which places for a request are tried: one worker for both phases, or two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headway.core.batch_state import Floats
from headway.core.planner.arrival import ClusterView


def places_in_order(
    new: int, view: ClusterView, loads_s: Floats, *, most_loaded_first: bool
) -> Iterator[tuple[int, int]]:
    """Prefill and decode worker of each place, one worker for both phases before two.

    Args:
        new: row of `view.requests`.
        view: all workers.
        loads_s: of each, see `core.planner.probe.load_of`, shape (W,).
        most_loaded_first: else the least loaded worker comes first.
    """
    order = np.argsort(
        _with_own_prefill(new, view, loads_s, most_loaded_first=most_loaded_first), kind="stable"
    )
    if most_loaded_first:
        order = order[::-1]
    prefills, decodes = view.workers["prefills"], view.workers["decodes"]
    for w in order.tolist():
        if prefills[w] and decodes[w] and (view.allowed is None or view.allowed[w, w]):
            yield w, w
    for p in order.tolist():
        if prefills[p] and not decodes[p]:
            for d in order.tolist():
                if decodes[d] and (view.allowed is None or view.allowed[p, d]):
                    yield p, d


def _with_own_prefill(
    new: int, view: ClusterView, loads_s: Floats, *, most_loaded_first: bool
) -> Floats:
    """What workers are ordered by: their load, and what they would have to prefill.

    Where KV of the session is kept, that is less. It is worth going there while no other
    worker is less loaded by more than the prompt it would compute again.
    """
    if view.num_kept_tokens is None or not view.num_kept_tokens.any():
        return loads_s
    num_prompt = view.requests["num_prompt_tokens"][new]
    left = num_prompt - view.num_kept_tokens
    attention = left * (view.num_kept_tokens + 0.5 * left)
    workers = view.workers
    own_s = workers["token_s"] * left + workers["prefill_attention_s"] * attention
    if most_loaded_first:
        own_s = -own_s
    ordered: Floats = loads_s + own_s
    return ordered
