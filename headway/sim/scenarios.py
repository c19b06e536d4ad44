"""The six scenarios of SLOs-Serve (arXiv 2504.08784), made from public traces.

What each is made of, and how thin some of it is: docs/workloads.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.core.slo import Slo, StageSlo
from headway.sim.arrivals import Trace, pattern, stream
from headway.sim.lengths import Law, Sessions, one_round, plain, thinking, tool_loop
from headway.sim.workload import Tier, Workload

# A stage needs an end; how long each request thinks is in `Workload.num_thinking_tokens`. This
# is about their mean.
MEAN_THINKING_TOKENS = 1050
# Mean rounds per session, and how many sessions fit a cap, are taken from so many.
_NUM_PROBED = 20_000
# Below this share of sessions that fit a cap, what is left is no sample of the scenario.
_MIN_FITTING = 0.01
# Keys of random streams; arrivals have 0 to 2.
_KINDS, _LENGTHS, _PROBE = 3, 4, 5


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of session.

    Attributes:
        law: makes the law of `source`, a file of `data/`.
        tiers: of the last round, and of the rounds before it.
        max_total_tokens: prompt and output of a round have no more, whatever is asked.
        lengths_from_trace: a replayed trace brings this kind's lengths, too.
    """

    law: Callable[[str], Law]
    source: str
    tiers: tuple[Tier, ...]
    max_total_tokens: int | None = None
    lengths_from_trace: bool = False


@dataclass(frozen=True, slots=True)
class ScenarioInfo:
    """What a scenario is.

    Attributes:
        kinds: each has the same share of the requests, all rounds counted.
    """

    description: str
    kinds: tuple[Kind, ...]


def _tier(name: str, ttft_slowdown: float, *tpot_s: float) -> Tier:
    *thinking_s, last_s = tpot_s
    stages = (
        *(StageSlo(stage_s, end_after_tokens=MEAN_THINKING_TOKENS) for stage_s in thinking_s),
        StageSlo(last_s),
    )
    return Tier(name, Slo(stages, ttft_slowdown=ttft_slowdown))


_CHAT = Kind(plain, "azure-chat", (_tier("chat", 5, 0.1),), lengths_from_trace=True)
_CODER = Kind(plain, "azure-code", (_tier("coder", 5, 0.05),), lengths_from_trace=True)
_SUMMARIZER = Kind(plain, "arxiv", (_tier("summarizer", 3, 0.1),))
_TOOLS = Kind(tool_loop, "toolbench", (_tier("tool-answer", 3, 0.1), _tier("tool-call", 3, 0.05)))
_REASONING = Kind(
    thinking, "servegen-r1", (_tier("reasoning", 3, 0.05, 0.1),), max_total_tokens=16_384
)

SCENARIOS: dict[str, ScenarioInfo] = {
    "chat": ScenarioInfo("conversations of Azure's chat trace", (_CHAT,)),
    "coder": ScenarioInfo("completions of Azure's code trace: long prompts, few tokens", (_CODER,)),
    "summarizer": ScenarioInfo("summaries of arXiv papers", (_SUMMARIZER,)),
    "tools": ScenarioInfo("ToolBench sessions: rounds of calls, then an answer", (_TOOLS,)),
    "reasoning": ScenarioInfo(
        "DeepSeek-R1 requests of ServeGen: think, then answer", (_REASONING,)
    ),
    "mixed": ScenarioInfo(
        "a fifth of the requests each of the other five",
        (_CHAT, _CODER, _SUMMARIZER, _TOOLS, _REASONING),
    ),
}


def build(
    name: str,
    *,
    arrivals: str,
    rate: float,
    duration_s: float,
    seed: int,
    trace: Trace | None = None,
    max_total_tokens: int | None = None,
    tpot_scale: float = 1.0,
) -> Workload:
    """The requests of a scenario.

    The i-th session is the same at every rate and for every law of arrivals; at a higher rate
    the same pattern is compressed and more of it fits in. For exactly the same requests at every
    rate, keep `rate * duration_s`.

    Args:
        name: one of `SCENARIOS`.
        arrivals: one of `ARRIVALS`; of the sessions. Later rounds come when they come.
        rate: requests per second in the long run, all rounds counted. A bursty law has more or
            fewer in any one run: divide by `duration_s` to know.
        duration_s: sessions start before this.
        seed: of lengths and arrivals. A trace has its own instants.
        trace: with `arrivals="trace"`. `chat` and `coder` take its lengths, too, the others only
            its instants. A run ends with the trace, even before `duration_s`.
        max_total_tokens: leaves out sessions with a longer round, prompt and output together.
        tpot_scale: 0.5 halves every TPOT.

    Raises:
        ValueError: an argument is none of the above, or hardly a session fits the cap.
    """
    info = SCENARIOS.get(name)
    if info is None:
        raise ValueError(f"scenarios are {', '.join(SCENARIOS)}; there is no {name!r}")
    for argument, value in (("rate", rate), ("duration_s", duration_s), ("tpot_scale", tpot_scale)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{argument} must be positive, got {value}")
    if (trace is None) != (arrivals != "trace"):
        raise ValueError('arrivals="trace" and a trace go together')
    caps = [_cap(kind, max_total_tokens) for kind in info.kinds]
    brings_lengths = trace is not None and all(kind.lengths_from_trace for kind in info.kinds)
    if trace is not None and brings_lengths:
        trace = trace.fitting(max_total_tokens)
        sessions_per_request = np.ones(1)
    else:
        sessions_per_request = np.array(
            [1.0 / _mean_rounds(kind, cap) for kind, cap in zip(info.kinds, caps, strict=True)]
        )
    start_rate = rate * float(sessions_per_request.mean())
    horizon = start_rate * duration_s
    at = pattern(arrivals, seed, horizon) if trace is None else trace.pattern(horizon)
    if trace is not None and brings_lengths:
        kind_of = np.zeros(len(at), dtype=np.int64)
        prompt, output = trace.num_prompt_tokens[: len(at)], trace.num_output_tokens[: len(at)]
        sessions = one_round(prompt, output, np.zeros_like(prompt))
    else:
        kind_of, sessions = _draw(info.kinds, caps, sessions_per_request, len(at), seed)
    return _workload(
        name,
        kinds=info.kinds,
        kind_of=kind_of,
        sessions=sessions,
        started_at_s=at / start_rate,
        tpot_scale=tpot_scale,
    )


def _cap(kind: Kind, max_total_tokens: int | None) -> int | None:
    caps = [cap for cap in (kind.max_total_tokens, max_total_tokens) if cap is not None]
    return min(caps, default=None)


@cache
def _mean_rounds(kind: Kind, cap: int | None) -> float:
    """Rounds per session that fits the cap."""
    law = kind.law(kind.source)
    sessions = law.draw(stream(0, _PROBE).random((_NUM_PROBED, law.num_uniforms)))
    fitting = np.ones(_NUM_PROBED, dtype=bool) if cap is None else sessions.max_total_tokens <= cap
    if fitting.mean() < _MIN_FITTING:
        raise ValueError(
            f"max_total_tokens {cap} leaves {fitting.mean():.2%} of the sessions of {kind.source}"
        )
    return float(sessions.num_rounds[fitting].mean())


def _fitting(kind: Kind, cap: int | None, num: int, seed: int, key: int) -> Sessions:
    """The first `num` sessions of a stream that fit the cap: always the same ones."""
    law = kind.law(kind.source)
    num_candidates = num
    while True:
        uniforms = stream(seed, _LENGTHS, key).random((num_candidates, law.num_uniforms))
        sessions = law.draw(uniforms)
        if cap is not None:
            sessions = sessions.select(sessions.max_total_tokens <= cap)
        if len(sessions) >= num:
            return sessions.select(slice(num))
        num_candidates *= 2


def _draw(
    kinds: tuple[Kind, ...],
    caps: list[int | None],
    sessions_per_request: Floats,
    num: int,
    seed: int,
) -> tuple[Ints, Sessions]:
    """Kind of each of `num` sessions, and the sessions."""
    cumulative = np.cumsum(sessions_per_request)
    uniform = stream(seed, _KINDS).random(num) * cumulative[-1]
    kind_of = np.searchsorted(cumulative, uniform, side="right").astype(np.int64)
    of_kind = [
        _fitting(kind, cap, int((kind_of == number).sum()), seed, number)
        for number, (kind, cap) in enumerate(zip(kinds, caps, strict=True))
    ]
    num_max = max(sessions.num_prompt_tokens.shape[1] for sessions in of_kind)
    # Back from one block per kind to the order in which they start.
    order = np.argsort(np.argsort(kind_of, kind="stable"), kind="stable")
    return kind_of, _concatenated(of_kind, num_max).select(order)


def _concatenated(blocks: list[Sessions], num_max: int) -> Sessions:
    """One after the other, each padded to `num_max` rounds."""
    columns = []
    for name in Sessions.__dataclass_fields__:
        arrays = [getattr(block, name) for block in blocks]
        columns.append(
            np.concatenate(
                [
                    array
                    if array.ndim == 1
                    else np.pad(array, ((0, 0), (0, num_max - array.shape[1])))
                    for array in arrays
                ]
            )
        )
    return Sessions(*columns)


def _workload(
    name: str,
    *,
    kinds: tuple[Kind, ...],
    kind_of: Ints,
    sessions: Sessions,
    started_at_s: Floats,
    tpot_scale: float,
) -> Workload:
    """Rounds in a row: those of a session next to each other, sessions by their start."""
    held = sessions.held
    session, number = np.nonzero(held)
    is_first = number == 0
    is_last = number == sessions.num_rounds[session] - 1
    # Where each kind's tiers start in the workload's, and how far its first rounds' is from there.
    offset = np.cumsum([0, *(len(kind.tiers) for kind in kinds)])[:-1]
    before_last = np.array([len(kind.tiers) - 1 for kind in kinds])
    tier = offset[kind_of[session]] + np.where(is_last, 0, before_last[kind_of[session]])
    return Workload(
        name=name,
        tiers=tuple(_scaled(tier, tpot_scale) for kind in kinds for tier in kind.tiers),
        arrived_at_s=np.where(is_first, started_at_s[session], np.nan),
        num_prompt_tokens=sessions.num_prompt_tokens[held],
        num_output_tokens=sessions.num_output_tokens[held],
        tier=tier.astype(np.int64),
        num_thinking_tokens=sessions.num_thinking_tokens[held],
        follows=np.where(is_first, -1, np.arange(len(session)) - 1),
        gap_s=sessions.gap_s[held],
        num_prefix_tokens=sessions.num_prefix_tokens[held],
    )


def _scaled(tier: Tier, tpot_scale: float) -> Tier:
    stages = tuple(replace(stage, tpot_s=stage.tpot_s * tpot_scale) for stage in tier.slo.stages)
    return replace(tier, slo=replace(tier.slo, stages=stages))
