"""A measured profile written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.adapters.profile_file import write_profile
from headway.core.perf_model import PerfModel
from headway.profiles import (
    DraftConfig,
    MeasurementConfig,
    MemoryConfig,
    Profile,
    load_full_profile,
)

PROFILE = Profile(
    source='60 steps of "vLLM"\\0.32, µs and\nanother line',
    measured_on="one core",
    perf_model=PerfModel(0.04729, 0.002079, 0.0377, 0.0, 6.151e-06, 1.234e-09, 0.003),
    draft=DraftConfig(floor_s=0.0, sequence_s=0.001034),
    measurement=MeasurementConfig(
        date="2026-01-31",
        command="headway profile --config a.toml",
        model="tiny",
        dtype="float32",
        vllm="0.32.0",
        torch="2.13.0+cpu",
        num_cores=1,
        num_fitted=60,
        num_held_out=30,
        p50_spread_ratio=0.1,
        r2=1.0,
        mean_error_ratio=0.05,
        p50_error_ratio=0.04,
        p90_error_ratio=0.12,
        p99_error_ratio=0.2,
    ),
)


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.toml"
    write_profile(PROFILE, path)
    assert load_full_profile(path) == PROFILE


def test_optional_tables_are_left_out(tmp_path: Path) -> None:
    bare = Profile(source="a", measured_on="b", perf_model=PROFILE.perf_model)
    write_profile(bare, tmp_path / "bare.toml")
    assert load_full_profile(tmp_path / "bare.toml") == bare


def test_numbers_have_no_more_digits_than_they_deserve(tmp_path: Path) -> None:
    third = PROFILE.model_copy(update={"draft": DraftConfig(floor_s=1 / 3, sequence_s=2 / 3e6)})
    write_profile(third, tmp_path / "third.toml")
    assert load_full_profile(tmp_path / "third.toml").draft == DraftConfig(
        floor_s=0.3333, sequence_s=6.667e-07
    )


def test_tables_that_nobody_measured_are_not_written(tmp_path: Path) -> None:
    memory = MemoryConfig(num_kv_tokens=1, kv_bytes_per_token=1, num_gpus=1)
    with pytest.raises(ValueError, match="neither truth nor memory"):
        write_profile(PROFILE.model_copy(update={"memory": memory}), tmp_path / "x.toml")
