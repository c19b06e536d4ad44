"""Acceptance of drafts, learned."""

from __future__ import annotations

import random

import pytest

from headway.core.acceptance import Acceptance


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_probability_of_a_token_is_found_whatever_the_length(probability: float) -> None:
    source = random.Random(7)
    found = Acceptance()
    for _ in range(2000):
        length = source.randint(1, 6)
        num_right = 0
        while num_right < length and source.random() < probability:
            num_right += 1
        found.verified(length, num_right)
    assert found.probability == pytest.approx(probability, abs=0.06)


def test_what_changes_is_followed_and_empty_drafts_say_nothing() -> None:
    found = Acceptance()
    for _ in range(400):
        found.verified(4, 4)
    assert found.probability > 0.98
    for _ in range(400):
        found.verified(4, 0)
    assert found.probability < 0.3
    before = found.probability
    found.verified(0, 0)
    assert found.probability == before
    assert found.num_verified == 800
