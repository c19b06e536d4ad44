"""One plain vLLM engine, greedy, with nothing of ours in it: what our output must equal.

Run as `python -m headway.adapters.plain_vllm`. Standard input is JSON, {"prompt_token_ids":
[[...], ...], "max_tokens": n}; the file --out becomes {"token_ids": [[...], ...]}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--cores", default="", help="Comma-separated; CPU only.")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    # In this process, which starts faster than vLLM's own engine process. Read on import.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = arguments.cores or "nobind"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from vllm import LLM, SamplingParams  # noqa: PLC0415  # must see the environment above

    asked = json.load(sys.stdin)
    engine = LLM(
        model=arguments.model,
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    outputs = engine.generate(
        [{"prompt_token_ids": token_ids} for token_ids in asked["prompt_token_ids"]],
        SamplingParams(
            temperature=0.0, max_tokens=asked["max_tokens"], ignore_eos=True, detokenize=False
        ),
        use_tqdm=False,
    )
    token_ids = [list(output.outputs[0].token_ids) for output in outputs]
    arguments.out.write_text(json.dumps({"token_ids": token_ids}))


if __name__ == "__main__":
    main()
