"""One TOML file describes a deployment; every process reads the same file.

Unknown keys and bad values are refused, at any depth, with their path. Reading the file
imports neither vLLM nor torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headway.core.slo import Slo, StageSlo
from headway.toml_file import Count, Positive, Section, read_toml


class TierConfig(Section):
    """One named class of promise. Neither bound given means a best-effort tier."""

    ttft_s: Positive | None = None
    ttft_slowdown: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    tpot_s: Positive | None = None

    @model_validator(mode="after")
    def _bounds_belong_together(self) -> Self:
        num_ttft = (self.ttft_s is not None) + (self.ttft_slowdown is not None)
        if num_ttft == 2:
            raise ValueError("give ttft_s or ttft_slowdown, not both")
        if (num_ttft == 1) != (self.tpot_s is not None):
            raise ValueError("give a TTFT bound and tpot_s, or neither for a best-effort tier")
        return self

    def slo(self) -> Slo | None:
        """The bounds, or None for a best-effort tier."""
        if self.tpot_s is None:
            return None
        return Slo((StageSlo(self.tpot_s),), self.ttft_s, self.ttft_slowdown)


class ModelConfig(Section):
    """What is served. `path` is a folder in Hugging Face format; relative to the working directory.

    `tokenizer` "model" takes the tokenizer of `path`; "bytes" is one token per UTF-8 byte,
    for the emulated engine.
    """

    name: str
    path: str = ""
    tokenizer: Literal["model", "bytes"] = "model"


class SpeculationConfig(Section):
    """Tokens drafted ahead, and verified in the next step.

    Attributes:
        method: "ngram" finds the last tokens again in the prompt and output; "draft_model" asks
            a smaller model, which takes a part of the memory for KV.
        max_draft_tokens: longest draft; the batch former uses as much of it as pays.
        model: folder of the smaller model.
    """

    method: Literal["ngram", "draft_model"]
    max_draft_tokens: Count = 4
    model: str = ""

    @model_validator(mode="after")
    def _model_belongs_to_method(self) -> Self:
        if (self.method == "draft_model") != bool(self.model):
            raise ValueError('method "draft_model", and only that, needs a model')
        return self


class VllmConfig(Section):
    """Options of a real vLLM engine. Unset values are vLLM's own defaults.

    Attributes:
        device: "cpu" pins each engine to `cores` of its pool and runs it eagerly.
        kv_cache_bytes: memory for KV blocks; unset lets vLLM measure what is free (GPU only).
        load_format: "dummy" gives random weights, for benches.
    """

    kind: Literal["vllm"]
    profile: str
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    max_model_len: Count = 2048
    max_step_tokens: Count = 256
    max_num_running: Count = 32
    kv_block_size: Count | None = None
    kv_cache_bytes: Count | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    prefix_caching: bool = True
    load_format: Literal["auto", "dummy"] = "auto"
    speculation: SpeculationConfig | None = None


class EmulatedConfig(Section):
    """An engine that takes the time a profile says and emits tokens = f(prompt, index).

    Attributes:
        step_time_ratio: steps take so many times what the profile says, as on a device that it
            was not measured on.
    """

    kind: Literal["emulated"]
    profile: str
    max_model_len: Count = 8192
    max_step_tokens: Count = 2048
    max_num_running: Count = 256
    kv_block_size: Count = 16
    num_kv_blocks: Count = 16384
    kv_bytes_per_token: Count = 64
    step_time_ratio: Positive = 1.0
    seed: int = 0


EngineConfig = Annotated[VllmConfig | EmulatedConfig, Field(discriminator="kind")]


class ControllerConfig(Section):
    """Where clients connect, and what may be promised.

    Attributes:
        report_interval_s: how often workers report.
        max_best_effort_queued: beyond it requests are refused.
        guard_ratio: predicted times are multiplied by this before they are promised.
        event_log: file that gets every event and what was done about it, for `headway replay`;
            empty for none.
    """

    listen: str = "127.0.0.1:7400"
    report_interval_s: Positive = 0.2
    max_best_effort_queued: Count = 4096
    max_requests: Count = 8192
    guard_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.15
    event_log: str = ""
    tiers: dict[str, TierConfig]


class PoolConfig(Section):
    """All workers of one role on this machine. `cores[i]` pins worker i; unset pins none."""

    replicas: Annotated[int, Field(ge=0)] = 1
    host: str = "127.0.0.1"
    cores: tuple[tuple[int, ...], ...] = ()
    gpus: tuple[tuple[int, ...], ...] = ()

    @model_validator(mode="after")
    def _one_entry_each(self) -> Self:
        for name in ("cores", "gpus"):
            if getattr(self, name) and len(getattr(self, name)) != self.replicas:
                raise ValueError(f"{name} needs one entry per replica ({self.replicas})")
        return self


class DecodePoolConfig(PoolConfig):
    """The decode workers. Where `prefills` is set, they may also compute prompts themselves."""

    replicas: Count = 1
    prefills: bool = False


class TelemetryConfig(Section):
    """Off unless set. `otlp_endpoint` for example "http://127.0.0.1:4317".

    Attributes:
        prometheus_port: the controller serves /metrics here, on loopback; 0 picks a free one.
    """

    otlp_endpoint: str = ""
    prometheus_port: Annotated[int, Field(ge=0, le=65535)] | None = None


class Config(Section):
    """A whole deployment."""

    model: ModelConfig
    engine: EngineConfig
    controller: ControllerConfig
    prefill: PoolConfig = PoolConfig()
    decode: DecodePoolConfig = DecodePoolConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @model_validator(mode="after")
    def _somebody_prefills(self) -> Self:
        if self.prefill.replicas == 0 and not self.decode.prefills:
            raise ValueError("prefill.replicas may be 0 only if decode.prefills is set")
        return self


def load_config(path: Path) -> Config:
    """Read a deployment.

    Raises:
        ConfigError: one line for each thing wrong, with the key's path.
    """
    return read_toml(path, Config)
