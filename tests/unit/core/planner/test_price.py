"""Whom the shadow price turns away."""

from __future__ import annotations

import math

import numpy as np

from headway.core.planner.price import ShadowPrice


def test_nobody_is_turned_away_while_everybody_finds_room() -> None:
    price = ShadowPrice()
    costs = np.random.default_rng(1).lognormal(0.0, 2.0, 5000)
    for cost in costs:
        assert price.is_affordable(float(cost))
        price.found_room(True)
    assert price.limit() == math.inf


def test_one_miss_among_many_turns_away_nobody_but_the_outrageous() -> None:
    price = ShadowPrice()
    for _ in range(500):
        price.is_affordable(1.0)
        price.found_room(True)
    price.found_room(False)
    # The average over the sensitivity times the miss ratio, of one in 200.
    assert 20.0 < price.limit() < 80.0


def test_under_twofold_overload_the_costliest_are_shed() -> None:
    """One unit of work per arrival, five in reserve, and requests of two units on average."""
    rng = np.random.default_rng(2)
    costs = rng.lognormal(0.0, 1.0, 4000)
    costs *= 2.0 / costs.mean()
    price, room = ShadowPrice(), 5.0
    kept: list[float] = []
    shed: list[float] = []
    for cost in costs.tolist():
        room = min(room + 1.0, 5.0)
        if not price.is_affordable(cost):
            shed.append(cost)
            continue
        kept.append(cost)
        price.found_room(room >= cost)
        room -= cost if room >= cost else 0.0
    assert len(shed) > 200
    # The limit moves with the miss ratio, so that the two overlap a little.
    assert np.quantile(shed, 0.05) > np.quantile(kept, 0.9)
    # What is left finds room much more often than half the time.
    assert price.miss_ratio < 0.3


def test_the_price_falls_again_after_an_overload() -> None:
    price = ShadowPrice()
    for _ in range(400):
        price.is_affordable(1.0)
        price.found_room(False)
    assert price.limit() < 0.6
    for _ in range(2000):
        price.is_affordable(1.0)
        price.found_room(True)
    assert price.limit() > 1000.0


def test_only_affordable_requests_count_as_misses() -> None:
    price = ShadowPrice(miss_ratio=0.5, mean_cost=1.0, num_asked=100)
    before = price.miss_ratio
    assert not price.is_affordable(10.0)
    assert price.miss_ratio == before
    assert price.mean_cost > 1.0
