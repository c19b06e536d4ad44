"""What a bench asks for, and when: drawn from the laws of a TOML file, or read from a trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from headway.client.events import WhenNotPromised
from headway.errors import ConfigError
from headway.sim import arrivals
from headway.toml_file import Count, Positive, Section, read_toml


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of an open-loop load.

    Attributes:
        at_s: when to send it, from the start of the load.
        num_output_tokens: exactly so many are generated.
    """

    at_s: float
    tier: str
    when_not_promised: WhenNotPromised
    num_prompt_tokens: int
    num_output_tokens: int


class FixedLength(Section):
    law: Literal["fixed"]
    num_tokens: Count

    def draw(self, _generator: np.random.Generator) -> int:
        return self.num_tokens


class UniformLength(Section):
    """All lengths from `min` to `max` alike."""

    law: Literal["uniform"]
    min: Count
    max: Count

    @model_validator(mode="after")
    def _min_first(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not be above max")
        return self

    def draw(self, generator: np.random.Generator) -> int:
        return int(generator.integers(self.min, self.max, endpoint=True))


class LognormalLength(Section):
    """Log-normal, cut to [`min`, `max`]: the usual shape of prompt and output lengths.

    Attributes:
        sigma: of the logarithm; 0.8 puts p90 at 2.8 times the median.
    """

    law: Literal["lognormal"]
    median: Positive
    sigma: Positive
    min: Count = 1
    max: Count

    def draw(self, generator: np.random.Generator) -> int:
        length = round(float(generator.lognormal(np.log(self.median), self.sigma)))
        return min(max(length, self.min), self.max)


Length = Annotated[FixedLength | UniformLength | LognormalLength, Field(discriminator="law")]


class Arrival(Section):
    """Gaps between requests; `cv` is their coefficient of variation: above 1 is bursty."""

    law: Literal["poisson", "gamma"] = "poisson"
    cv: Positive = 1.0

    @model_validator(mode="after")
    def _poisson_has_cv_1(self) -> Self:
        if self.law == "poisson" and self.cv != 1.0:
            raise ValueError('cv is for law = "gamma"; a Poisson process always has cv 1')
        return self

    def gaps_s(self, rate_per_s: float, generator: np.random.Generator) -> Iterator[float]:
        shape = 1.0 / self.cv**2
        while True:
            yield float(generator.gamma(shape, 1.0 / (rate_per_s * shape)))


class Kind(Section):
    """One kind of request in the mix; `weight` is its share relative to the other kinds."""

    tier: str
    weight: Positive
    prompt: Length
    output: Length
    when_not_promised: WhenNotPromised = "best_effort"


class Workload(Section):
    """A mix of requests; the rate is the caller's."""

    arrival: Arrival = Arrival()
    mix: Annotated[tuple[Kind, ...], Field(min_length=1)]

    def requests(self, rate_per_s: float, seed: int) -> Iterator[PlannedRequest]:
        """Endless, the same for the same seed."""
        generator = np.random.default_rng(seed)
        weights = np.array([kind.weight for kind in self.mix])
        shares = weights / weights.sum()
        at_s = 0.0
        for gap_s in self.arrival.gaps_s(rate_per_s, generator):
            at_s += gap_s
            kind = self.mix[int(generator.choice(len(self.mix), p=shares))]
            yield PlannedRequest(
                at_s=at_s,
                tier=kind.tier,
                when_not_promised=kind.when_not_promised,
                num_prompt_tokens=kind.prompt.draw(generator),
                num_output_tokens=kind.output.draw(generator),
            )


def load_workload(path: Path) -> Workload:
    """Read a workload file.

    Raises:
        ConfigError: one line for each thing wrong, with the key's path.
    """
    return read_toml(path, Workload)


def read_trace(path: Path, tier: str, time_scale: float) -> Iterator[PlannedRequest]:
    """Replay a trace in the format of the Azure LLM inference traces (.csv or .csv.gz).

    Args:
        path: has columns TIMESTAMP, ContextTokens, GeneratedTokens, in order of time.
        tier: of every request.
        time_scale: 2 replays twice as fast.

    Raises:
        ConfigError: no such file, not such columns, or fewer than two requests; raised when the
            first row is asked for.
    """
    try:
        trace = arrivals.read_trace(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for at_s, num_prompt_tokens, num_output_tokens in zip(
        trace.at_s.tolist(),
        trace.num_prompt_tokens.tolist(),
        trace.num_output_tokens.tolist(),
        strict=True,
    ):
        yield PlannedRequest(
            at_s=at_s / time_scale,
            tier=tier,
            when_not_promised="best_effort",
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
        )


def prompt_token_ids(num_tokens: int, seed: int) -> list[int]:
    """A prompt of exactly `num_tokens` tokens, unlike any other seed's.

    The ids 32 to 126 are plain single characters in byte-level vocabularies, never special
    tokens, and every served model has them.
    """
    generator = np.random.default_rng(seed)
    ids: list[int] = generator.integers(32, 126, size=num_tokens, endpoint=True).tolist()
    return ids
