"""What is learned about drafts, and how soon it is forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from headway.core.planner.acceptance import (
    MEMORY_DECODES,
    acceptance_of,
    new_acceptances,
    observe_decode,
)

MEMORY = int(MEMORY_DECODES)


def observe(records: np.ndarray, truth: float, num: int, num_drafted: int = 3) -> None:
    """So many decodes, each with a draft."""
    accepted = np.random.default_rng(0).random((num, num_drafted)) < truth
    for row in accepted:
        observe_decode(records[0], num_drafted, int(np.cumprod(row).sum()))


def test_nothing_seen_is_the_prior() -> None:
    assert acceptance_of(new_acceptances(0.7, 2)[1]) == pytest.approx(0.7)


@pytest.mark.parametrize("truth", [0.1, 0.4, 0.9])
def test_it_converges_to_the_probability_of_one_token_and_not_of_the_draft(truth: float) -> None:
    records = new_acceptances(0.7, 1)
    observe(records, truth, MEMORY)
    assert acceptance_of(records[0]) == pytest.approx(truth, abs=0.03)


def test_a_whole_draft_that_is_accepted_is_no_failed_trial() -> None:
    records = new_acceptances(0.5, 1)
    observe_decode(records[0], 3, 3)
    assert records["num_trials"][0] == records["num_good"][0] == 3
    observe_decode(records[0], 3, 1)
    assert records["num_trials"][0] == pytest.approx(5, abs=0.01)
    assert records["num_good"][0] == pytest.approx(4, abs=0.01)


def test_it_follows_a_truth_that_changes() -> None:
    records = new_acceptances(0.7, 1)
    observe(records, 0.9, 3 * MEMORY)
    observe(records, 0.3, 3 * MEMORY)
    assert acceptance_of(records[0]) == pytest.approx(0.3, abs=0.05)


def test_without_drafts_it_returns_to_the_prior() -> None:
    records = new_acceptances(0.7, 1)
    observe(records, 0.1, MEMORY)
    before = acceptance_of(records[0])
    for _ in range(MEMORY):
        observe_decode(records[0], 0, 0)
    assert acceptance_of(records[0]) < before + 0.05
    for _ in range(9 * MEMORY):
        observe_decode(records[0], 0, 0)
    assert acceptance_of(records[0]) == pytest.approx(0.7, abs=0.02)


def test_tiers_are_learned_apart() -> None:
    records = new_acceptances(0.7, 2)
    observe(records, 0.2, 500)
    assert acceptance_of(records[0]) < 0.3
    assert acceptance_of(records[1]) == pytest.approx(0.7)
