"""What our scheduler adds to vLLM's own per step, in a real engine with a tiny model.

    python -m bench.plugin_overhead [--out bench/results]

One vLLM engine in this process, two layers of random weights. 1, 32 and 256 requests decode in
each step; `schedule` and `update_from_output` are timed from outside, first with vLLM's own
scheduler, then with ours forming the same steps of the same requests. Then how long a plan
update takes from another process until the engine's process has it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.tiny_llama import KV_BYTES_PER_TOKEN, write_tiny_llama

NUM_RUNNING = (1, 32, 256)
NUM_STEPS = 300
NUM_UPDATES = 300
PROMPT_TOKENS = 8
BLOCK_SIZE = 32
MAX_MODEL_LEN = 512

# Sends updates, each with the instant it was sent at as its step cap.
SENDER = """
import sys, time
from headway.adapters.vllm_scheduler.plan_socket import PlanSender
from headway.ports.engine import PlanUpdate
sender = PlanSender(sys.argv[1])
for _ in range(int(sys.argv[2])):
    time.sleep(0.01)
    sender.send(PlanUpdate(step_cap_s=time.monotonic()))
"""


def start_engine(folder: Path) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Only now: vLLM and torch read the environment when they are imported.
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    write_tiny_llama(folder)
    num_tokens = max(NUM_RUNNING) * MAX_MODEL_LEN + 2 * BLOCK_SIZE
    arguments = EngineArgs(
        model=str(folder),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=4096,
        max_num_seqs=max(NUM_RUNNING),
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=num_tokens * KV_BYTES_PER_TOKEN,
        skip_tokenizer_init=True,
        scheduler_cls="headway.adapters.vllm_scheduler.scheduler.HeadwayAsyncScheduler",
    )
    return LLMEngine.from_engine_args(arguments, enable_multiprocessing=False)


def ask(engine: Any, num_requests: int, demands: bool) -> list[str]:
    from vllm import SamplingParams  # noqa: PLC0415

    from headway.adapters.vllm_scheduler.demand import DEMAND_KEY, Demand  # noqa: PLC0415
    from headway.core.slo import Promise, StageSlo  # noqa: PLC0415

    ids = [f"request-{index}" for index in range(num_requests)]
    for index, request_id in enumerate(ids):
        extra = {}
        if demands:
            # Due at once, so that each step has all of them: as many as vLLM's own would.
            promise = Promise(1e-3, (StageSlo(1e-3),))
            demand = Demand(request_id, time.monotonic(), promise=promise, tier="chat")
            extra = {DEMAND_KEY: demand.to_wire()}
        params = SamplingParams(
            max_tokens=MAX_MODEL_LEN - PROMPT_TOKENS - 1,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args=extra,
        )
        engine.add_request(request_id, {"prompt_token_ids": [3 + index] * PROMPT_TOKENS}, params)
    return ids


def timed(function: Callable[..., Any], times_s: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        started_at_s = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times_s.append(time.perf_counter() - started_at_s)

    return call


def measure(engine: Any, num_requests: int, demands: bool) -> dict[str, Any]:
    """Times of steps in which `num_requests` decode, in seconds."""
    scheduler = engine.engine_core.engine_core.scheduler
    ids = ask(engine, num_requests, demands)
    while any(not request.num_output_tokens for request in scheduler.requests.values()):
        engine.step()
    schedule_s: list[float] = []
    update_s: list[float] = []
    scheduler.schedule = timed(scheduler.schedule, schedule_s)
    scheduler.update_from_output = timed(scheduler.update_from_output, update_s)
    num_wrong = 0
    for _ in range(NUM_STEPS):
        num_wrong += len(engine.step()) != num_requests
    del scheduler.schedule, scheduler.update_from_output
    engine.abort_request(ids)
    while scheduler.requests or scheduler.has_requests():
        engine.step()
    assert num_wrong == 0, f"{num_wrong} steps without all requests"
    return {"schedule_s": spread(schedule_s), "update_s": spread(update_s)}


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": ordered[len(ordered) // 2], "p90": ordered[int(0.9 * len(ordered))]}


def plan_latency() -> dict[str, float]:
    """From the moment before sending, in another process, until the update is in the queue."""
    from headway.adapters.vllm_scheduler.plan_socket import PlanReceiver  # noqa: PLC0415

    arrived_at_s: list[float] = []
    receiver = PlanReceiver(lambda: arrived_at_s.append(time.monotonic()))
    command = [sys.executable, "-c", SENDER, receiver.address, str(NUM_UPDATES)]
    subprocess.run(command, check=True)
    while len(arrived_at_s) < NUM_UPDATES:
        time.sleep(0.001)
    sent_at_s = [update.step_cap_s for update in receiver.take()]
    receiver.close()
    # The first one meets cold code.
    delays = [a - s for a, s in zip(arrived_at_s, sent_at_s, strict=True) if s is not None][1:]
    return spread(delays) | {"max": max(delays)}


def report(results: dict[str, Any]) -> str:
    def ms(value_s: float) -> str:
        return f"{1e3 * value_s:.3f}"

    lines = [
        "# What our scheduler costs per step",
        "",
        f"`python -m bench.plugin_overhead`, {results['measured_on']}. Milliseconds, median and",
        f"90th percentile of {NUM_STEPS} steps in which all requests decode.",
        "",
        "| running | vLLM's schedule() | ours | added (p50) | vLLM's update | ours | added (p50) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["steps"]:
        cells = [str(row["num_running"])]
        for name in ("schedule_s", "update_s"):
            own, ours = row["vllm"][name], row["headway"][name]
            cells += [f"{ms(side['p50'])} / {ms(side['p90'])}" for side in (own, ours)]
            cells.append(ms(ours["p50"] - own["p50"]))
        lines.append("| " + " | ".join(cells) + " |")
    delay = results["plan_update_s"]
    lines += [
        "",
        f"A plan update from another process is in the engine's queue after {ms(delay['p50'])} ms",
        f"(p90 {ms(delay['p90'])}, longest of {NUM_UPDATES}: {ms(delay['max'])}), and takes effect",
        "at the next step.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    out = parser.parse_args().out
    with TemporaryDirectory() as folder:
        engine = start_engine(Path(folder))
        scheduler = engine.engine_core.engine_core.scheduler
        own = [measure(engine, num, demands=False) for num in NUM_RUNNING]
        # Twice as fast as any machine is with this model: nothing is held back for its time.
        from headway.core.perf_model import PerfModel  # noqa: PLC0415

        scheduler.form_steps(PerfModel(1e-4, 1e-7, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0)
        ours = [measure(engine, num, demands=True) for num in NUM_RUNNING]
        engine.engine_core.shutdown()
    results = {
        "measured_on": f"{os.cpu_count()} CPU cores",
        "num_steps": NUM_STEPS,
        "steps": [
            {"num_running": num, "vllm": plain, "headway": formed}
            for num, plain, formed in zip(NUM_RUNNING, own, ours, strict=True)
        ],
        "plan_update_s": plan_latency(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "plugin_overhead.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    (out / "plugin_overhead.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
