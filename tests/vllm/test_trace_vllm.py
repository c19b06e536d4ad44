"""vLLM's own spans join the trace of the request they belong to."""

from __future__ import annotations

import json
from pathlib import Path

from headway.core.request import RequestState
from tests.deployment import free_port
from tests.otlp_receiver import OtlpReceiver, outline
from tests.traced_request import OUTLINE, run_traced_request

ROOT = Path(__file__).parents[2]
VLLM_SPAN = "llm_request"


def vllm_deployment(folder: Path, otlp_endpoint: str, model_dir: Path) -> Path:
    profile = ROOT / "profiles" / "cpu-1core-smollm2-135m-float32.toml"
    path = folder / "deployment.toml"
    path.write_text(f"""
[model]
name = "smollm2-135m-instruct"
path = {json.dumps(str(model_dir))}
[engine]
kind = "vllm"
profile = {json.dumps(str(profile))}
dtype = "float32"
max_model_len = 256
max_step_tokens = 128
max_num_running = 4
kv_block_size = 32
kv_cache_bytes = {64 << 20}
[controller]
listen = "127.0.0.1:{free_port()}"
[controller.tiers.chat]
ttft_s = 60.0
tpot_s = 10.0
[telemetry]
otlp_endpoint = "{otlp_endpoint}"
""")
    return path


async def test_each_engine_adds_its_span_under_its_workers(tmp_path: Path, model_dir: Path) -> None:
    with OtlpReceiver() as receiver:
        config_path = vllm_deployment(tmp_path, receiver.endpoint, model_dir)
        finished = await run_traced_request(config_path, tmp_path / "stack.log")
        everything = receiver.spans

    (client,) = (span for span in everything if span.kind == "CLIENT" and not span.parent_id)
    # vLLM traces the loading of its model as well, in traces of their own.
    spans = [span for span in everything if span.trace_id == client.trace_id]
    ours = [span for span in spans if span.name != VLLM_SPAN]
    assert finished.state is RequestState.SUCCEEDED
    assert outline(ours) == OUTLINE

    by_id = {span.span_id: span for span in ours}
    parents = [by_id[span.parent_id].label for span in spans if span.name == VLLM_SPAN]
    assert sorted(parents) == [
        "headway-decode SERVER headway.v1.DecodeService/Decode",
        "headway-prefill SERVER headway.v1.PrefillService/Prefill",
    ]
