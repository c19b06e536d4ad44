"""One vLLM engine in this process, made to compute one step after another of given shapes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from headway.adapters.process import bind_to_cores
from headway.adapters.vllm_start import check_engine, engine_arguments, prepare_process
from headway.config import Config, VllmConfig
from headway.core.cluster import WorkerRole
from headway.core.perf_fit import StepSample
from headway.core.perf_model import PrefillChunk
from headway.core.step_design import StepLimits, StepPoint
from headway.errors import ConfigError, EngineFailed

if TYPE_CHECKING:
    from headway.adapters.vllm_kv.scheduler_side import MeasuredStep

# That a point's decodes may live through: admission, the measured one, and some where vLLM would
# not take in all chunks at once.
NUM_STEPS = 4
# Single characters in byte-level vocabularies; every model has them.
_FIRST_TOKEN_ID, _NUM_TOKEN_IDS = 32, 95
_NUM_WARM_UP_STEPS = 2


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was measured, in words and versions."""

    vllm_version: str
    torch_version: str
    device: str
    num_cores: int
    dtype: str
    max_drafted: int


class SteppedEngine:
    """Use it as a context manager, or call `close`; there can be one in the life of a process.

    Attributes:
        limits: what a step can have.
        facts: about vLLM and the device.
    """

    limits: StepLimits
    facts: EngineFacts

    def __init__(self, config: Config, max_drafted: int) -> None:
        """Start vLLM in this process, bound to the cores of the deployment's first worker.

        Args:
            config: of the deployment.
            max_drafted: verify drafts of up to so many tokens, and look for them in the text
                (n-gram speculation); 0 for no speculation.

        Raises:
            ConfigError: the engine cannot run as configured.
            EngineFailed: it did not start.
        """
        engine = config.engine
        if not isinstance(engine, VllmConfig):
            raise ConfigError("only an engine of kind vllm has steps to measure")
        pool = config.decode
        check_engine(config, engine, pool, 0)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        prepare_process(engine, WorkerRole.DECODE, pool, 0)
        # The engine runs here, not in a process of its own. Read when vLLM is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if pool.cores:
            bind_to_cores(pool.cores[0], "decode.cores")
        self._llm = _start(engine_arguments(config, engine), max_drafted)
        core = self._llm.engine_core.engine_core
        self._scheduler = core.scheduler
        self._steps = core.scheduler.connector.scheduler_side
        self._ids = count()
        described = core.headway_describe()
        self.limits = StepLimits(
            max_step_tokens=engine.max_step_tokens,
            max_num_running=engine.max_num_running,
            max_model_len=engine.max_model_len,
            num_kv_blocks=described["num_kv_blocks"],
            kv_block_size=described["kv_block_size"],
            max_drafted=max_drafted,
        )
        self.facts = _facts(engine, self._llm.model_config.dtype, max_drafted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine."""
        self._llm.engine_core.shutdown()

    def warm_up(self) -> None:
        """Make the largest decode-only and the largest prefill step some times."""
        for _ in range(_NUM_WARM_UP_STEPS):
            self.measure(StepPoint((), (32,) * self.limits.max_num_running, self._fitting_draft()))
            self.measure(StepPoint((_whole_step(self.limits),), (), 0))

    def _fitting_draft(self) -> int:
        per_decode = self.limits.max_step_tokens // self.limits.max_num_running
        return min(self.limits.max_drafted, per_decode - 1)

    def measure(self, point: StepPoint) -> StepSample | None:
        """Make one step of this shape; None when vLLM would not make it so.

        Raises:
            EngineFailed: vLLM failed.
        """
        decode_ids = {
            self._add(num_context, num_new=1, max_tokens=NUM_STEPS * (1 + point.num_drafted))
            for num_context in point.decode_context_tokens
        }
        try:
            # Their first step takes the requests in, like that of a prompt.
            while self._scheduler.get_request_counts()[1] > 0:
                self._step()
            self._steps.take_steps()
            samples = [_sample(step, decode_ids) for step in self._make(point, decode_ids)]
        finally:
            self._abort(decode_ids)
        return next((sample for sample in samples if _matches(sample, point)), None)

    def _make(self, point: StepPoint, decode_ids: set[str]) -> list[MeasuredStep]:
        for chunk in point.chunks:
            self._add(chunk.num_context_tokens, num_new=chunk.num_tokens, max_tokens=1)
        self._draft(decode_ids, point.num_drafted)
        steps: list[MeasuredStep] = []
        # One step, unless vLLM would not take in all chunks at once.
        while not steps or self._llm.get_num_unfinished_requests() > len(decode_ids):
            self._step()
            steps += self._steps.take_steps()
        return steps

    def _add(self, num_context: int, *, num_new: int, max_tokens: int) -> str:
        from vllm import SamplingParams  # noqa: PLC0415

        from headway.adapters.vllm_profile.connector import NUM_CONTEXT_TOKENS  # noqa: PLC0415

        number = next(self._ids)
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={"kv_transfer_params": {NUM_CONTEXT_TOKENS: num_context}},
        )
        token_ids = [
            _FIRST_TOKEN_ID + (7919 * (index + number) * (index + 1)) % _NUM_TOKEN_IDS
            for index in range(num_context + num_new)
        ]
        request_id: str = self._llm.add_request(
            f"step-{number}", {"prompt_token_ids": token_ids}, params
        )
        return request_id

    def _draft(self, request_ids: Iterable[str], num_drafted: int) -> None:
        """Put drafts of just this length in place of those that were found."""
        for request_id in request_ids:
            request = self._scheduler.requests.get(request_id)
            if request is not None:
                request.spec_token_ids = [_FIRST_TOKEN_ID] * num_drafted

    def _step(self) -> None:
        try:
            self._llm.step()
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(f"vLLM failed: {error}") from error

    def _abort(self, request_ids: Iterable[str]) -> None:
        self._llm.abort_request(list(request_ids), internal=True)
        while self._llm.has_unfinished_requests() or self._scheduler.requests:
            self._step()


def _start(arguments: dict[str, Any], max_drafted: int) -> Any:
    # Only now: vLLM and torch read the environment when they are imported.
    from vllm.config import KVTransferConfig  # noqa: PLC0415
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    arguments |= {
        # Every context shall have blocks of its own.
        "enable_prefix_caching": False,
        "skip_tokenizer_init": True,
        # Else a step would begin before the one before it ends, and its drafts could not be set.
        "async_scheduling": False,
        "kv_transfer_config": KVTransferConfig(
            kv_connector="ContextConnector",
            kv_connector_module_path="headway.adapters.vllm_profile.connector",
            kv_role="kv_producer",
        ),
    }
    if max_drafted:
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": max_drafted,
            "prompt_lookup_min": 2,
            "prompt_lookup_max": 4,
        }
    try:
        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except ValueError as error:
        raise ConfigError(f"vLLM refuses the engine's options: {error}") from error
    except (RuntimeError, OSError) as error:
        raise EngineFailed(f"vLLM did not start: {error}") from error


def _facts(engine: VllmConfig, dtype: Any, max_drafted: int) -> EngineFacts:
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    num_cores = len(os.sched_getaffinity(0))
    return EngineFacts(
        vllm_version=vllm.__version__,
        torch_version=torch.__version__,
        device=(
            f"one {torch.cuda.get_device_name()}"
            if engine.device == "cuda"
            else _cpu_name(num_cores)
        ),
        num_cores=num_cores,
        dtype=str(dtype).removeprefix("torch."),
        max_drafted=max_drafted,
    )


def _cpu_name(num_cores: int) -> str:
    import torch  # noqa: PLC0415

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = f"{next(names, platform.machine())} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{num_cores} {'core' if num_cores == 1 else 'cores'} of {name}"


def _whole_step(limits: StepLimits) -> PrefillChunk:
    return PrefillChunk(min(limits.max_step_tokens, limits.max_model_len - 1), 0)


def _sample(step: MeasuredStep, decode_ids: set[str]) -> StepSample:
    decodes = [work for work in step.works if work.request_id in decode_ids]
    chunks = [work for work in step.works if work.request_id not in decode_ids]
    drafts = [work.num_tokens - 1 for work in decodes]
    return StepSample(
        duration_s=step.duration_s,
        num_tokens=sum(work.num_tokens for work in step.works),
        num_decodes=len(decodes),
        num_decode_context_tokens=sum(work.num_context_tokens for work in decodes),
        attention=sum(
            work.num_tokens * (work.num_context_tokens + work.num_tokens / 2) for work in chunks
        ),
        num_chunks=len(chunks),
        num_draft_rounds=max(drafts, default=0),
        num_drafted=sum(drafts),
    )


def _matches(sample: StepSample, point: StepPoint) -> bool:
    return (sample.num_tokens, sample.num_decodes, sample.num_chunks) == (
        point.num_tokens,
        len(point.decode_context_tokens),
        len(point.chunks),
    )
