"""Step times of the simulated world."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from headway.core.batch_state import WORKER, Floats
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.planner.step_time import step_s
from headway.profiles import StepTimeConfig
from headway.sim.truth import exact_truth, measured_truth, true_step_s, uniform

# Round numbers, so that expected values can be worked out by hand.
CURVE = StepTimeConfig(
    knots=(1, 16, 32, 64),
    times_s=(0.010, 0.013, 0.012, 0.020),
    sequence_s=0.0004,
    context_token_s=0.00002,
    prefill_attention_s=0.000002,
    chunk_s=0.001,
)
PERF_MODEL = PerfModel(
    floor_s=0.010,
    token_s=0.001,
    fixed_s=0.002,
    sequence_s=0.0005,
    context_token_s=0.00001,
    prefill_attention_s=0.000001,
    chunk_s=0.003,
)

# T, B, C, Q, chunks, draft rounds, drafted tokens.
Terms = tuple[int, int, int, float, int, int, int]
DECODE: Terms = (16, 16, 0, 0.0, 0, 0, 0)


def _worker(time_ratio: float = 1.0) -> Any:
    worker = np.zeros(1, WORKER)
    for name in PERF_MODEL.__dataclass_fields__:
        worker[name] = getattr(PERF_MODEL, name)
    worker["draft_floor_s"], worker["draft_sequence_s"] = 0.0011, 0.0002
    worker["time_ratio"] = time_ratio
    return worker[0]


WORKER_RECORD = _worker()


@dataclass(frozen=True)
class World:
    """A truth with the noise asked for."""

    sigma: float = 0.0
    spike_probability: float = 0.0
    seed: int = 5

    def steps_s(
        self, terms: Terms = DECODE, worker: int = 0, numbers: Iterable[int] = (0,)
    ) -> list[float]:
        truth, knots, times_s = measured_truth(
            CURVE,
            host_s=0.0007,
            sigma=self.sigma,
            spike_probability=self.spike_probability,
            spike_ratio=4.0,
            seed=self.seed,
        )
        return [
            true_step_s(truth[0], knots, times_s, WORKER_RECORD, worker, number, *terms)
            for number in numbers
        ]

    def noise(self, num_steps: int, worker: int = 0) -> Floats:
        """Factors on the noiseless step time."""
        steps_s = self.steps_s(worker=worker, numbers=range(num_steps))
        return np.array(steps_s) / QUIET.steps_s()[0]


QUIET = World()


@pytest.mark.parametrize(
    ("num_tokens", "expected_s"),
    [
        (1, 0.010),
        (6, 0.011),
        (16, 0.013),
        (24, 0.0125),
        (48, 0.016),
        (64, 0.020),
        # As steep as between the last two knots.
        (128, 0.036),
    ],
)
def test_the_curve_is_followed_between_and_beyond_its_knots(
    num_tokens: int, expected_s: float
) -> None:
    (step_s,) = QUIET.steps_s((num_tokens, 0, 0, 0.0, 0, 0, 0))
    assert step_s == pytest.approx(0.0007 + expected_s)


def test_every_other_term_is_linear() -> None:
    expected_s = 0.0004 * 4 + 0.00002 * 300 + 0.000002 * 5000 + 0.001 * 2 + 0.0011 * 3 + 0.0002 * 9
    (step_s,) = QUIET.steps_s((16, 4, 300, 5000.0, 2, 3, 9))
    assert step_s == pytest.approx(0.0007 + 0.013 + expected_s)


def test_an_empty_step_takes_no_time() -> None:
    assert QUIET.steps_s((0, 0, 0, 0.0, 0, 0, 0)) == [0.0]


def test_noise_is_log_normal_with_mean_one() -> None:
    sigma, num_steps = 0.05, 20_000
    noise = World(sigma).noise(num_steps)
    # Five standard errors of the mean, and of the deviation.
    assert noise.mean() == pytest.approx(1.0, abs=5 * sigma / num_steps**0.5)
    logs = np.log(noise)
    assert logs.std() == pytest.approx(sigma, abs=5 * sigma / (2 * num_steps) ** 0.5)
    normal = NormalDist(-(sigma**2) / 2, sigma)
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        below = (logs < normal.inv_cdf(share)).mean()
        assert below == pytest.approx(share, abs=5 * (share * (1 - share) / num_steps) ** 0.5)


def test_neither_steps_nor_workers_nor_seeds_share_noise() -> None:
    first = np.log(World(0.05).noise(5000))
    others = {
        "the next step": np.roll(first, 1),
        "another worker": np.log(World(0.05).noise(5000, worker=1)),
        "another seed": np.log(World(0.05, seed=6).noise(5000)),
    }
    for name, other in others.items():
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / 5000**0.5, name


def test_spikes_come_as_often_and_are_as_long_as_asked() -> None:
    noise = World(spike_probability=0.01).noise(20_000)
    is_spike = noise > 2
    assert noise[is_spike] == pytest.approx(4.0)
    assert noise[~is_spike] == pytest.approx(1.0)
    assert is_spike.sum() == pytest.approx(200, abs=5 * 200**0.5)


def test_a_step_is_repeated_whatever_was_asked_before() -> None:
    world = World(sigma=0.05)
    forwards = world.steps_s(numbers=range(20))
    assert forwards == world.steps_s(numbers=reversed(range(20)))[::-1]
    assert len(set(forwards)) == 20


def test_the_noise_is_the_same_on_every_machine() -> None:
    """Values of the published splitmix64 (state += gamma, then mixed), worked out in integers."""
    mask = (1 << 64) - 1
    gamma = 0x9E3779B97F4A7C15

    def mixed(bits: int) -> int:
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        return bits ^ bits >> 31

    # The generator's first outputs for seed 1234567, as its reference program prints them.
    outputs = [mixed((1234567 + (n + 1) * gamma) & mask) for n in range(2)]
    assert outputs == [6457827717110365317, 3203168211198807973]
    for seed, stream, number in ((0, 0, 0), (1, 2, 3), (2**62, 1 << 41, 10**12)):
        state = mixed(mixed((seed + gamma) & mask) + stream * gamma & mask)
        expected = (mixed((state + (number + 1) * gamma) & mask) >> 11) * 2.0**-53
        assert uniform(seed, stream, number) == expected


def _exact_step_s(worker: Any, number: int, terms: Terms) -> float:
    truth, knots, times_s = exact_truth()
    return true_step_s(truth[0], knots, times_s, worker, 0, number, *terms)


def test_exact_is_what_the_planner_believes() -> None:
    rng = np.random.default_rng(3)
    for number in range(100):
        t, b, c, q, chunks, rounds, drafted = (int(value) for value in rng.integers(1, 200, 7))
        terms = (t, b, c, float(q), chunks, rounds, drafted)
        assert _exact_step_s(WORKER_RECORD, number, terms) == step_s(WORKER_RECORD, *terms)
    chunk = PrefillChunk(num_tokens=30, num_context_tokens=10)
    shape = StepShape(chunks=(chunk,), num_decodes=4, num_decode_context_tokens=900)
    assert _exact_step_s(WORKER_RECORD, 0, (34, 4, 900, 30 * 25.0, 1, 0, 0)) == pytest.approx(
        PERF_MODEL.step_s(shape)
    )


def test_exact_ignores_what_the_planner_learned() -> None:
    assert _exact_step_s(_worker(time_ratio=1.3), 0, DECODE) == pytest.approx(
        _exact_step_s(WORKER_RECORD, 0, DECODE), rel=1e-12
    )
