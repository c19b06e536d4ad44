"""What `profiles/*.toml` say: how long the steps of a model take on a device."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import model_validator

from headway.core.perf_model import PerfModel
from headway.toml_file import Count, NonNegative, Positive, Section, read_toml


class StepTimeConfig(Section):
    """Step time by a measured curve over the step's new tokens instead of a roofline.

    Attributes:
        knots: numbers of new tokens, ascending.
        times_s: of a step with so many tokens, before the other terms of `PerfModel`.
        sequence_s, context_token_s, prefill_attention_s, chunk_s: as in `PerfModel`.
    """

    knots: tuple[Count, ...]
    times_s: tuple[Positive, ...]
    sequence_s: NonNegative
    context_token_s: NonNegative
    prefill_attention_s: NonNegative
    chunk_s: NonNegative

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.knots) < 2 or len(self.knots) != len(self.times_s):
            raise ValueError("give at least two knots, and times_s for each")
        if any(left >= right for left, right in pairwise(self.knots)):
            raise ValueError("knots must ascend")
        return self


class DraftConfig(Section):
    """What drafting adds to a step: once per round, and per drafted token of a sequence."""

    floor_s: NonNegative
    sequence_s: NonNegative


class MemoryConfig(Section):
    """Room for KV on the GPUs of one worker together."""

    num_kv_tokens: Count
    kv_bytes_per_token: Count
    num_gpus: Count


class MeasurementConfig(Section):
    """How `headway profile` came to a perf model, and how far it is off.

    Attributes:
        command: measures it again.
        num_fitted, num_held_out: steps that the model was fitted to, and checked on.
        p50_spread_ratio: by how much steps of one shape differed, (longest - shortest) / median.
        r2: of the held-out steps, as are the relative errors |predicted / measured - 1|.
    """

    date: str
    command: str
    model: str
    dtype: str
    vllm: str
    torch: str
    num_cores: Count
    num_fitted: Count
    num_held_out: Count
    p50_spread_ratio: NonNegative
    r2: float
    mean_error_ratio: NonNegative
    p50_error_ratio: NonNegative
    p90_error_ratio: NonNegative
    p99_error_ratio: NonNegative


class Profile(Section):
    """A perf model with where it comes from, and what a simulation needs; see profiles/."""

    source: str
    measured_on: str
    perf_model: PerfModel
    truth: StepTimeConfig | None = None
    draft: DraftConfig | None = None
    memory: MemoryConfig | None = None
    measurement: MeasurementConfig | None = None


def load_profile(path: Path) -> PerfModel:
    """Read the perf model of `profiles/*.toml`.

    Raises:
        ConfigError: one line for each thing wrong, with the key's path.
    """
    return load_full_profile(path).perf_model


def load_full_profile(path: Path) -> Profile:
    """Read all of `profiles/*.toml`.

    Raises:
        ConfigError: as `load_config`.
    """
    return read_toml(path, Profile)
