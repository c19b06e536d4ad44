"""One request through a whole stack of processes, with every span sent to one collector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from headway.adapters.telemetry import CLIENT, build_telemetry
from headway.cli.stack import running_stack
from headway.client import AsyncClient, Finished
from headway.config import load_config
from tests.deployment import free_port, write_deployment
from tests.otlp_receiver import ReceivedSpan

# What every request's trace looks like: a SERVER span under each CLIENT span, the stages a
# request passes under the process that ran them, and the transfer under the worker that sent.
OUTLINE = """\
headway-client CLIENT headway.v1.InferenceService/Generate
  headway-controller SERVER headway.v1.InferenceService/Generate
    headway-controller CLIENT headway.v1.DecodeService/Decode
      headway-decode SERVER headway.v1.DecodeService/Decode
        headway-decode INTERNAL decode
        headway-decode INTERNAL decode.queue
    headway-controller CLIENT headway.v1.PrefillService/Prefill
      headway-prefill SERVER headway.v1.PrefillService/Prefill
        headway-decode INTERNAL kv.transfer
        headway-prefill INTERNAL prefill.compute
        headway-prefill INTERNAL prefill.queue
    headway-controller INTERNAL slo.admit"""

PROMPT = "One trace tells one story."
NUM_OUTPUT_TOKENS = 8


def emulated_deployment(folder: Path, otlp_endpoint: str = "") -> Path:
    """Write the config of one prefill and one decode worker, emulated; returns its path."""
    more = f"""
[controller.tiers.chat]
ttft_s = 30.0
tpot_s = 5.0
[controller.tiers.impossible]
ttft_s = 0.000001
tpot_s = 5.0
[telemetry]
otlp_endpoint = "{otlp_endpoint}"
prometheus_port = 0
"""
    return write_deployment(folder, f"127.0.0.1:{free_port()}", more, step_s=0.002)


@asynccontextmanager
async def traced_stack(config_path: Path, log_path: Path) -> AsyncIterator[AsyncClient]:
    """Run the deployment, and a client that traces to the same collector.

    When the block has ended every process has handed its spans to the collector.
    """
    config = load_config(config_path)
    telemetry = build_telemetry(config.telemetry, CLIENT)
    try:
        async with (
            running_stack(config_path, config, log_path, lambda _: None),
            AsyncClient(config.controller.listen, telemetry=telemetry) as client,
        ):
            yield client
    finally:
        telemetry.shutdown()


async def run_traced_request(config_path: Path, log_path: Path) -> Finished:
    """Let a deployment of its own serve one request of tier "chat" to its end."""
    async with traced_stack(config_path, log_path) as client:
        events = [
            event
            async for event in client.generate(
                prompt=PROMPT, tier="chat", max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=True
            )
        ]
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished


def of_clients(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
    """Those of traces that a client began; a stack's own first request begins at its controller."""
    begun = {span.trace_id for span in spans if span.kind == "CLIENT" and not span.parent_id}
    return [span for span in spans if span.trace_id in begun]
