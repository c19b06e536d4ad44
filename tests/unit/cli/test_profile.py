"""Whether a profile still fits, and what its plot shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.adapters.vllm_profile.measure import spread
from headway.cli.profile import judge
from headway.cli.profile_plot import plot
from headway.core.perf_fit import StepSample, predicted_s
from headway.core.perf_model import PerfModel
from headway.profiles import DraftConfig, Profile

MODEL = PerfModel(0.048, 0.0021, 0.036, 1e-4, 6e-6, 1e-6, 4e-3)
DRAFT = DraftConfig(floor_s=2e-3, sequence_s=1e-3)
PROFILE = Profile(source="a", measured_on="b", perf_model=MODEL, draft=DRAFT)
SHAPES = [
    StepSample(1.0, 64 * (index + 1), 0, 0, 2048.0 * (index + 1), 1) for index in range(6)
] + [
    StepSample(1.0, 3 * (index + 1), index + 1, 500 * (index + 1), 0.0, 0, 2, 2 * (index + 1))
    for index in range(6)
]


def steps(ratios: list[float]) -> list[StepSample]:
    """As the profile says, times the ratios."""
    expected = predicted_s(MODEL, DRAFT.floor_s, DRAFT.sequence_s, SHAPES)
    return [
        replace(shape, duration_s=float(one_s * ratio))
        for shape, one_s, ratio in zip(SHAPES, expected, ratios, strict=True)
    ]


@pytest.mark.parametrize(
    ("ratios", "fits"),
    [
        ([1.0] * 12, True),
        ([1.2] * 12, True),
        ([1.3] * 12, False),
        ([0.7] * 12, False),
        # One odd step is no news; a phase that is off by half is.
        ([1.0] * 11 + [3.0], True),
        ([1.0] * 7 + [1.5] * 5, False),
    ],
)
def test_verdict(ratios: list[float], fits: bool) -> None:
    verdict = judge(PROFILE, steps(ratios))
    assert verdict.num_steps == 12
    assert verdict.median_ratio == pytest.approx(float(np.median(ratios)))
    assert verdict.fits is fits


def test_drafting_is_part_of_what_is_predicted() -> None:
    without = Profile(source="a", measured_on="b", perf_model=MODEL)
    assert judge(without, steps([1.0] * 12)[6:]).median_ratio > 1.05


def test_plot_shows_each_kind_of_step(tmp_path: Path) -> None:
    mixed = replace(SHAPES[0], num_decodes=1)
    shown = [*steps([1.1] * 12), mixed]
    path = tmp_path / "profile.svg"
    plot(shown, predicted_s(MODEL, 0.0, 0.0, shown), path, "tiny, float32")
    text = path.read_text()
    for label in ("prefill (6)", "decode (6)", "mixed (1)", "tiny, float32"):
        assert label in text


def test_spread_is_relative_to_the_middle_step() -> None:
    repeats = [replace(SHAPES[0], duration_s=duration_s) for duration_s in (0.10, 0.30, 0.11)]
    assert spread(repeats) == pytest.approx(0.20 / 0.11)
    assert spread(repeats[:1]) == spread([]) == 0.0
