"""`headway profile` on a real engine: small steps only, to be quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headway.adapters.profile_file import write_profile
from headway.config import Profile, load_full_profile
from headway.core.perf_model import PerfModel
from tests.vllm.conftest import KV_BYTES_PER_TOKEN

MAX_STEP_TOKENS = 48
MAX_NUM_RUNNING = 4
MAX_DRAFTED = 2
NUM_KV_TOKENS = 4096


def config_at(folder: Path, model_dir: Path, profile: Path) -> Path:
    path = folder / "deployment.toml"
    path.write_text(
        f"""
[model]
name = "smollm2-135m-instruct"
path = {json.dumps(str(model_dir))}
[engine]
kind = "vllm"
profile = {json.dumps(str(profile))}
dtype = "bfloat16"
max_model_len = 512
max_step_tokens = {MAX_STEP_TOKENS}
max_num_running = {MAX_NUM_RUNNING}
kv_block_size = 32
kv_cache_bytes = {NUM_KV_TOKENS * KV_BYTES_PER_TOKEN // 2}
[controller.tiers.best-effort]
"""
    )
    return path


def headway(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from headway.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_designed_step_is_made_and_fitted(tmp_path: Path, model_dir: Path) -> None:
    config = config_at(tmp_path, model_dir, tmp_path / "none.toml")
    out = tmp_path / "measured.toml"
    done = headway(
        *("profile", "--config", str(config), "--out", str(out)),
        *("--points", "30", "--drafts", str(MAX_DRAFTED)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    profile = load_full_profile(out)
    measurement = profile.measurement
    assert measurement is not None
    # None is missing: vLLM made a step of every composition.
    assert (measurement.num_fitted, measurement.num_held_out) == (30, 15)
    assert (measurement.dtype, measurement.model) == ("bfloat16", "smollm2-135m-instruct")
    assert profile.draft is not None
    assert profile.perf_model.token_s > 0
    assert out.with_suffix(".svg").read_text().startswith("<?xml")

    steps = [json.loads(line) for line in out.with_suffix(".steps.jsonl").read_text().splitlines()]
    assert [step["held_out"] for step in steps] == [False] * 30 + [True] * 15
    assert max(step["num_tokens"] for step in steps) <= MAX_STEP_TOKENS
    assert max(step["num_decodes"] for step in steps) == MAX_NUM_RUNNING
    assert {step["num_draft_rounds"] for step in steps} == set(range(MAX_DRAFTED + 1))
    assert any(step["num_decodes"] and step["num_chunks"] for step in steps)
    assert max(step["num_decode_context_tokens"] for step in steps) > 512
    assert all(3 <= len(step["duration_s"]) <= 5 and min(step["duration_s"]) > 0 for step in steps)


def test_a_profile_of_another_machine_is_found_out(tmp_path: Path, model_dir: Path) -> None:
    a_hundred_times_as_fast = Profile(
        source="a test",
        measured_on="nothing",
        perf_model=PerfModel(3e-4, 1e-5, 2e-4, 1e-6, 3e-8, 1e-8, 0.0),
    )
    write_profile(a_hundred_times_as_fast, tmp_path / "fast.toml")
    config = config_at(tmp_path, model_dir, tmp_path / "fast.toml")
    done = headway("profile", "--config", str(config), "--check")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "12 steps: measured / predicted is" in done.stdout
    assert "fast.toml does not fit this machine" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--check", "--points=30"])
def test_an_emulated_engine_has_nothing_to_measure(option: str) -> None:
    done = headway("profile", "--config", "configs/emulated.toml", option)
    assert done.returncode == 1
    assert "only an engine of kind vllm has steps to measure" in done.stderr
