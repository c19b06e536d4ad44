"""The demo's model, and one prefill and one decode engine of real vLLM, each on its own core.

All in float32: only there is greedy output the same whatever shares a step with a request.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from headway.adapters.model_files import prepare_model
from headway.adapters.vllm_engine import open_vllm_engine
from headway.config import Config
from headway.core.cluster import WorkerRole
from tests.vllm.pair import Pair

ROOT = Path(__file__).parents[2]
MODEL_DIR = ROOT / "models" / "smollm2-135m-instruct"
BLOCK_SIZE = 32
NUM_BLOCKS = 45
KV_BYTES_PER_TOKEN = 30 * 3 * 64 * 2 * 4  # layers, KV heads, head size, K and V, float32


@pytest.fixture(scope="session")
def model_dir() -> Path:
    prepare_model(MODEL_DIR, lambda _what, _ratio: None)
    return MODEL_DIR


@pytest.fixture(scope="session")
def vllm_config(model_dir: Path) -> Config:
    cores = sorted(os.sched_getaffinity(0))
    return Config.model_validate(
        {
            "model": {"name": "smollm2-135m-instruct", "path": str(model_dir)},
            "engine": {
                "kind": "vllm",
                "profile": str(ROOT / "profiles" / "cpu-1core-smollm2-135m-float32.toml"),
                "device": "cpu",
                "dtype": "float32",
                "max_model_len": 1440,
                "max_step_tokens": 128,
                "max_num_running": 16,
                "kv_block_size": BLOCK_SIZE,
                # One more: vLLM never gives out its block 0.
                "kv_cache_bytes": (NUM_BLOCKS + 1) * BLOCK_SIZE * KV_BYTES_PER_TOKEN,
            },
            "controller": {"tiers": {"best-effort": {}}},
            "prefill": {"cores": [[cores[0]]]},
            "decode": {"cores": [[cores[-1]]]},
        }
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(vllm_config: Config) -> AsyncIterator[Pair]:
    affinity = os.sched_getaffinity(0)
    prefill = await open_vllm_engine(vllm_config, WorkerRole.PREFILL, 0, "127.0.0.1", "")
    try:
        decode = await open_vllm_engine(vllm_config, WorkerRole.DECODE, 0, "127.0.0.1", "")
        os.sched_setaffinity(0, affinity)
        try:
            yield Pair(prefill, decode)
        finally:
            await decode.close()
    finally:
        await prefill.close()
