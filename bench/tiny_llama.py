"""A model for what has nothing to do with models: two layers, random weights, a step in 4 ms."""

from __future__ import annotations

import json
from pathlib import Path

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

KV_BYTES_PER_TOKEN = 2 * 2 * 32 * 2 * 4  # layers, KV heads, head size, K and V, float32


def write_tiny_llama(folder: Path) -> None:
    """Make `folder` a model that vLLM loads with `load_format="dummy"`."""
    (folder / "config.json").write_text(json.dumps(_CONFIG))
