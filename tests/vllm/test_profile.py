"""`headway profile` on a real engine, of a model with random weights that is small and quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headway.adapters.profile_file import write_profile
from headway.core.perf_model import PerfModel
from headway.profiles import Profile, load_full_profile

MAX_STEP_TOKENS = 512
MAX_NUM_RUNNING = 4
MAX_DRAFTED = 2
NUM_KV_TOKENS = 8192
KV_BYTES_PER_TOKEN = 4 * 2 * 64 * 2 * 4  # layers, KV heads, head size, K and V, float32

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": 4096,
}


def config_at(folder: Path, profile: Path) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    path = folder / "deployment.toml"
    path.write_text(
        f"""
[model]
name = "tiny"
path = {json.dumps(str(folder / "model"))}
[engine]
kind = "vllm"
profile = {json.dumps(str(profile))}
dtype = "float32"
load_format = "dummy"
max_model_len = 1024
max_step_tokens = {MAX_STEP_TOKENS}
max_num_running = {MAX_NUM_RUNNING}
kv_block_size = 32
kv_cache_bytes = {NUM_KV_TOKENS * KV_BYTES_PER_TOKEN}
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


def test_every_designed_step_is_made_and_fitted(tmp_path: Path) -> None:
    config = config_at(tmp_path, tmp_path / "none.toml")
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
    assert (measurement.dtype, measurement.model) == ("float32", "tiny")
    assert profile.draft is not None
    assert profile.perf_model.token_s > 0
    assert out.with_suffix(".svg").read_text().startswith("<?xml")

    steps = [json.loads(line) for line in out.with_suffix(".steps.jsonl").read_text().splitlines()]
    assert [step["held_out"] for step in steps] == [False] * 30 + [True] * 15
    assert max(step["num_tokens"] for step in steps) <= MAX_STEP_TOKENS
    assert max(step["num_decodes"] for step in steps) == MAX_NUM_RUNNING
    assert {step["num_draft_rounds"] for step in steps} == set(range(MAX_DRAFTED + 1))
    assert any(step["num_decodes"] and step["num_chunks"] for step in steps)
    assert max(step["num_decode_context_tokens"] for step in steps) > 1024
    assert all(3 <= len(step["duration_s"]) <= 5 and min(step["duration_s"]) > 0 for step in steps)


def test_a_profile_of_another_machine_is_found_out(tmp_path: Path) -> None:
    a_thousand_times_as_slow = Profile(
        source="a test",
        measured_on="nothing",
        perf_model=PerfModel(4.0, 0.06, 3.0, 0.0, 0.0, 0.0, 0.0),
    )
    write_profile(a_thousand_times_as_slow, tmp_path / "slow.toml")
    config = config_at(tmp_path, tmp_path / "slow.toml")
    done = headway("profile", "--config", str(config), "--check")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "12 steps: measured / predicted is" in done.stdout
    assert "slow.toml does not fit this machine" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--check", "--points=30"])
def test_an_emulated_engine_has_nothing_to_measure(option: str) -> None:
    done = headway("profile", "--config", "configs/emulated.toml", option)
    assert done.returncode == 1
    assert "only an engine of kind vllm has steps to measure" in done.stderr
