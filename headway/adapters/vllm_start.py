"""Starts one vLLM engine as a worker's config says, and measures how fast it is."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from headway.adapters.process import MALLOC_ENVIRONMENT
from headway.adapters.telemetry import worker_name
from headway.adapters.vllm_scheduler.symbols import check_symbols
from headway.config import Config, PoolConfig, SpeculationConfig, VllmConfig
from headway.core.cluster import WorkerRole
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.errors import ConfigError, EngineFailed

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def start_engine(
    config: Config, role: WorkerRole, replica: int, host: str, otlp_endpoint: str
) -> AsyncLLM:
    """Start vLLM in a process of its own; blocks until it has loaded the model.

    Must be called on the main thread: the engine dies with the thread that started it.

    Raises:
        ConfigError: the engine cannot run as configured.
        EngineFailed: it did not start.
    """
    engine = config.engine
    assert isinstance(engine, VllmConfig)
    pool = config.prefill if role is WorkerRole.PREFILL else config.decode
    check_engine(config, engine, pool, replica)
    prepare_process(engine, role, pool, replica)
    check_symbols()
    # Only now: vLLM and torch read the environment when they are imported.
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    try:
        arguments = AsyncEngineArgs(**_arguments(config, engine, role, host, otlp_endpoint))
        return AsyncLLM.from_engine_args(arguments)
    except ValueError as error:
        # pydantic's and vLLM's own refusals of an option.
        raise ConfigError(f"vLLM refuses the engine's options: {error}") from error
    except (RuntimeError, OSError) as error:
        raise EngineFailed(f"vLLM did not start: {error}") from error


def check_engine(config: Config, engine: VllmConfig, pool: PoolConfig, replica: int) -> None:
    """Refuse what can be seen to be wrong without starting vLLM.

    Raises:
        ConfigError: it cannot run as configured.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f'vLLM is not installed: pip install "headway[{engine.device}]"')
    if pool.gpus and len(pool.gpus[replica]) != 1:
        raise ConfigError("a vLLM engine runs on exactly one GPU: give one id per replica in gpus")
    if engine.device == "cpu" and engine.kv_cache_bytes is None:
        raise ConfigError("engine.kv_cache_bytes is needed on a CPU")
    if engine.device == "cpu" and not Path(config.model.path, "config.json").is_file():
        raise ConfigError(f"no model in {config.model.path!r}: `headway model` prepares it")


def prepare_process(engine: VllmConfig, role: WorkerRole, pool: PoolConfig, replica: int) -> None:
    """Set what the engine's process inherits: environment and number of threads."""
    os.environ["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    # Also on a GPU, where vLLM would fork: DiesWithParent acts when it is unpickled, and a
    # fork would copy gRPC's threads half-way.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    for name, value in MALLOC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM makes its own spans, under the name OpenTelemetry finds here.
    os.environ.setdefault("OTEL_SERVICE_NAME", worker_name(role))
    if pool.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(pool.gpus[replica][0])
    if engine.device == "cpu":
        os.environ["HF_HUB_OFFLINE"] = "1"
        # The model runs inside the EngineCore process. With a process of its own both of them
        # would busily wait for each other and take a second core.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # vLLM's own binding acts only with that further process, and keeps a core for itself.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        cores = pool.cores[replica] if pool.cores else tuple(sorted(os.sched_getaffinity(0)))
        os.environ["OMP_NUM_THREADS"] = str(len(cores))


def _arguments(
    config: Config, engine: VllmConfig, role: WorkerRole, host: str, otlp_endpoint: str
) -> dict[str, Any]:
    from vllm.config import KVTransferConfig  # noqa: PLC0415

    from headway.adapters.vllm_kv.engine_core import DiesWithParent  # noqa: PLC0415

    is_decode = role is WorkerRole.DECODE
    arguments = engine_arguments(config, engine) | {
        "served_model_name": config.model.name,
        "enable_prefix_caching": engine.prefix_caching,
        "scheduler_cls": "headway.adapters.vllm_scheduler.scheduler.HeadwayAsyncScheduler",
        # A prefill engine neither reads nor writes text.
        "skip_tokenizer_init": not is_decode,
        "kv_transfer_config": KVTransferConfig(
            kv_connector="HeadwayKvConnector",
            kv_connector_module_path="headway.adapters.vllm_kv.connector",
            kv_role="kv_consumer" if is_decode else "kv_producer",
            # A decode engine that computed a prompt would break other requests' promises.
            kv_load_failure_policy="fail",
            kv_connector_extra_config={
                "receive_host": host if is_decode else None,
                "parent": DiesWithParent(),
            },
        ),
    }
    if otlp_endpoint:
        arguments["otlp_traces_endpoint"] = otlp_endpoint
    if engine.speculation is not None and is_decode:
        arguments["speculative_config"] = speculative_config(engine.speculation)
    return arguments


def engine_arguments(config: Config, engine: VllmConfig) -> dict[str, Any]:
    """Options of vLLM that decide how long a step takes and how much KV there is room for."""
    arguments: dict[str, Any] = {
        "model": config.model.path or config.model.name,
        "dtype": engine.dtype,
        "load_format": engine.load_format,
        "max_model_len": engine.max_model_len,
        "max_num_batched_tokens": engine.max_step_tokens,
        "max_num_seqs": engine.max_num_running,
        "use_tqdm_on_load": False,
    }
    optional = {
        "block_size": engine.kv_block_size,
        "kv_cache_memory_bytes": engine.kv_cache_bytes,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    if engine.device == "cpu":
        # Compiling takes a minute at each start and gains a tenth of a step.
        arguments["enforce_eager"] = True
    return arguments


def speculative_config(speculation: SpeculationConfig) -> dict[str, Any]:
    """The same in vLLM's words."""
    options: dict[str, Any] = {
        "method": speculation.method,
        "num_speculative_tokens": speculation.max_draft_tokens,
    }
    if speculation.method == "ngram":
        return options | {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    return options | {"model": speculation.model}


def step_shape(works: Sequence[Sequence[int]]) -> StepShape:
    """A step's shape from [new tokens, context tokens] of each request in it."""
    decodes = [context for tokens, context in works if tokens == 1]
    return StepShape(
        chunks=tuple(PrefillChunk(tokens, context) for tokens, context in works if tokens > 1),
        num_decodes=len(decodes),
        num_decode_context_tokens=sum(decodes),
    )


def step_time_ratios(model: PerfModel, load: Mapping[str, Any]) -> list[float]:
    """Measured / predicted time of each step in an answer of `headway_load`."""
    return [duration_s / model.step_s(step_shape(works)) for duration_s, works in load["steps"]]


async def measure_speed(
    llm: AsyncLLM, engine: VllmConfig, role: WorkerRole, profile: PerfModel
) -> float:
    """Warm the engine up with the work of its role; median of measured / profile's step time.

    A prefill engine computes whole steps of prompt, a decode engine decodes a small batch.
    """
    if role is WorkerRole.PREFILL:
        num_prompt_tokens = min(engine.max_step_tokens, engine.max_model_len - 1)
        rounds, batch, max_tokens = 3, 1, 1
    else:
        num_prompt_tokens, rounds, batch = 32, 2, min(4, engine.max_num_running)
        max_tokens = min(10, engine.max_model_len - num_prompt_tokens)
    ratios: list[float] = []
    for index in range(rounds):
        await llm.engine_core.call_utility_async("headway_load")
        first = 2 + index * batch
        await asyncio.gather(
            *(
                _run(llm, f"warm-up-{start}", [start] * num_prompt_tokens, max_tokens)
                for start in range(first, first + batch)
            )
        )
        load = await llm.engine_core.call_utility_async("headway_load")
        ratios = step_time_ratios(profile, _of_role(load, role)) + (ratios if index > 1 else [])
    await llm.reset_prefix_cache()
    return median(ratios) if ratios else 1.0


def _of_role(load: Mapping[str, Any], role: WorkerRole) -> dict[str, Any]:
    """Only the steps that a worker of this role will do."""
    is_prefill = role is WorkerRole.PREFILL
    return {
        "steps": [
            [duration_s, works]
            for duration_s, works in load["steps"]
            if any(tokens > 1 for tokens, _ in works) == is_prefill
        ]
    }


async def _run(llm: AsyncLLM, request_id: str, token_ids: list[int], max_tokens: int) -> None:
    from vllm import SamplingParams  # noqa: PLC0415

    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, detokenize=False)
    async for _ in llm.generate({"prompt_token_ids": token_ids}, params, request_id):
        pass
