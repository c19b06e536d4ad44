"""The deployment file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from headway.config import Config, SpeculationConfig, load_config
from headway.core.perf_fit import StepSample, predicted_s
from headway.errors import ConfigError
from headway.profiles import DraftConfig, load_full_profile, load_profile

ROOT = Path(__file__).parents[2]

GOOD = """
[model]
name = "tiny"
tokenizer = "bytes"
[engine]
kind = "emulated"
profile = "profiles/x.toml"
[controller]
listen = "127.0.0.1:0"
[controller.tiers.chat]
ttft_s = 1.0
tpot_s = 0.05
[controller.tiers.batch]
"""


def _load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "stack.toml"
    path.write_text(text)
    return load_config(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    config = _load(tmp_path, GOOD)
    chat = config.controller.tiers["chat"].slo()
    assert chat is not None
    assert (chat.ttft_s, chat.tightest_tpot_s) == (1.0, 0.05)
    assert config.controller.tiers["batch"].slo() is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tpot_s = 0.05", "tpot_s = 0.05\noops = 1", "controller.tiers.chat.oops"),
        ("[engine]", "[engine]\nbatch = 3", "engine.emulated.batch"),
        ("[model]", "[modle]", "modle"),
        ("tpot_s = 0.05", "tpot_s = -1", "controller.tiers.chat.tpot_s"),
        ("tpot_s = 0.05", "tpot_s = nan", "controller.tiers.chat.tpot_s"),
        ("tpot_s = 0.05", "", "controller.tiers.chat"),
        ("ttft_s = 1.0", "ttft_s = 1.0\nttft_slowdown = 3.0", "not both"),
        ('kind = "emulated"', 'kind = "magic"', "engine"),
        ("[model]", "[prefill]\nreplicas = 2\ncores = [[0]]\n[model]", "one entry per replica"),
        ("[model]", "[prefill]\nreplicas = 0\n[model]", "only if decode.prefills"),
        ("[model]", "[decode]\nreplicas = 0\n[model]", "decode.replicas"),
        ("[model]", "[prefill]\nprefills = true\n[model]", "prefill.prefills"),
        ("[model]", "[model", "TOML"),
    ],
)
def test_a_mistake_is_refused_with_its_path(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert said in str(caught.value) or (said == "TOML" and "stack.toml" in str(caught.value))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_config_and_its_profile_can_be_read(path: Path) -> None:
    config = load_config(path)
    assert load_profile(ROOT / config.engine.profile).floor_s > 0
    assert config.controller.tiers


PROFILES = sorted((ROOT / "profiles").glob("*.toml"))
GPU_MEMORY_BYTES = {"h100": 80e9, "h100x2": 160e9, "h200": 141e9, "a100": 80e9}


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.name)
def test_every_shipped_profile_can_be_read(path: Path) -> None:
    profile = load_full_profile(path)
    assert profile.perf_model == load_profile(path)
    is_gpu = path.name.split("-")[0] in GPU_MEMORY_BYTES
    assert (profile.truth is not None, profile.memory is not None) == (is_gpu, is_gpu)
    assert (profile.draft is not None) == (is_gpu or path.stem.endswith("-ngram"))


@pytest.mark.parametrize(
    "path", [path for path in PROFILES if path.name.startswith("cpu-")], ids=lambda p: p.name
)
def test_a_measured_profile_tells_the_steps_it_came_with(path: Path) -> None:
    """Its coefficients, as rounded in the file, against the held-out steps beside it."""
    profile = load_full_profile(path)
    assert profile.measurement is not None
    draft = profile.draft or DraftConfig(floor_s=0.0, sequence_s=0.0)
    lines = path.with_suffix(".steps.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [
        StepSample(
            **{
                name: value
                for name, value in record.items()
                if name not in ("held_out", "duration_s")
            },
            duration_s=float(np.median(record["duration_s"])),
        )
        for record in records
        if record["held_out"]
    ]
    assert len(steps) == profile.measurement.num_held_out
    assert len(records) - len(steps) == profile.measurement.num_fitted
    predictions_s = predicted_s(profile.perf_model, draft.floor_s, draft.sequence_s, steps)
    measured_s = np.array([step.duration_s for step in steps])
    p90 = float(np.quantile(np.abs(predictions_s / measured_s - 1.0), 0.9))
    assert p90 == pytest.approx(profile.measurement.p90_error_ratio, rel=0.02)
    assert p90 <= 0.15
    errors_s = predictions_s - measured_s
    r2 = 1.0 - float(np.sum(errors_s**2) / np.sum((measured_s - measured_s.mean()) ** 2))
    assert r2 == pytest.approx(profile.measurement.r2, abs=0.001)
    assert r2 >= 0.95


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.name)
def test_truth_and_memory_of_a_shipped_profile_make_sense(path: Path) -> None:
    profile = load_full_profile(path)
    if profile.truth is None or profile.memory is None:
        return
    # The planner's model of the matrix products is not far from the measured curve.
    model, tokens = profile.perf_model, np.array(profile.truth.knots)
    roofline_s = np.maximum(model.floor_s, model.token_s * tokens + model.fixed_s)
    assert np.array(profile.truth.times_s) == pytest.approx(roofline_s, rel=0.25)
    # KV is read from memory at between a third and all of its bandwidth.
    kv_bytes_per_s = profile.memory.kv_bytes_per_token / profile.truth.context_token_s
    assert 1e12 * profile.memory.num_gpus < kv_bytes_per_s < 4.8e12 * profile.memory.num_gpus
    kv_bytes = profile.memory.num_kv_tokens * profile.memory.kv_bytes_per_token
    assert kv_bytes < 0.9 * GPU_MEMORY_BYTES[path.name.split("-")[0]]


PROFILE = """
source = "a test"
measured_on = "paper"
[perf_model]
floor_s = 0.01
token_s = 1e-5
fixed_s = 0.002
sequence_s = 0.0
context_token_s = 0.0
prefill_attention_s = 0.0
chunk_s = 0.0
"""
TRUTH = """
[truth]
knots = [1, 64, 256]
times_s = [0.010, 0.011, 0.013]
sequence_s = 1e-6
context_token_s = 2e-8
prefill_attention_s = 0.0
chunk_s = 1e-4
"""


def test_the_simulation_tables_of_a_profile_are_optional(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(PROFILE)
    assert load_full_profile(path).truth is None
    path.write_text(PROFILE + TRUTH)
    truth = load_full_profile(path).truth
    assert truth is not None
    assert (truth.knots, truth.times_s[-1], truth.chunk_s) == ((1, 64, 256), 0.013, 1e-4)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[1, 64, 256]", "[1, 64]", "at least two knots, and times_s for each"),
        ("[1, 64, 256]", "[1, 256, 64]", "knots must ascend"),
        ("[1, 64, 256]", "[0, 64, 256]", "truth.knots.0"),
        ("[0.010, 0.011, 0.013]", "[0.010, 0.011, 0.0]", "truth.times_s.2"),
        ("chunk_s = 1e-4", "chunk_s = -1e-4", "truth.chunk_s"),
        ("chunk_s = 1e-4", "", "truth.chunk_s"),
        ("[truth]", "[memory]\nnum_kv_tokens = 0\n[truth]", "memory.num_kv_tokens"),
        ("[truth]", "[draft]\nfloor_s = inf\n[truth]", "draft.floor_s"),
        ("[truth]", "[truths]", "truths"),
    ],
)
def test_a_mistake_in_a_profile_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "profile.toml"
    assert old in TRUTH
    path.write_text(PROFILE + TRUTH.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        load_full_profile(path)


def test_a_smaller_model_belongs_to_its_method_of_speculation() -> None:
    assert SpeculationConfig(method="ngram").max_draft_tokens == 4
    assert SpeculationConfig(method="draft_model", model="models/small").model == "models/small"
    with pytest.raises(ValidationError, match="needs a model"):
        SpeculationConfig(method="draft_model")
    with pytest.raises(ValidationError, match="needs a model"):
        SpeculationConfig(method="ngram", model="models/small")
