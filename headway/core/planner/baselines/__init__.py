"""What Headway is compared with: published schedulers and routers, by name.

Each is defined by a batch former (`core.planner.formers`), a router, and the token budgets of
which a comparison keeps the best per scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headway.core.planner.arrival import ArrivalPolicy
from headway.core.planner.baselines.codes import (
    EDF,
    NIYAMA,
    SARATHI,
    SCORPIO,
    VLLM_V0,
    VLLM_V1,
)
from headway.core.planner.baselines.routing import (
    Choice,
    Router,
    least_kv_tokens,
    least_prompt_tokens,
    least_requests,
    least_tokens,
    power_of_two,
    round_robin,
)
from headway.core.planner.baselines.slo_routing import BinRouter, ScorpioGuard

ROUTERS: Mapping[str, Choice] = {
    "round-robin": round_robin,
    "least-requests": least_requests,
    "least-tokens": least_tokens,
    "power-of-two": power_of_two,
}


@dataclass(frozen=True, slots=True)
class BaselineSpec:
    """One baseline.

    Attributes:
        description: what it does.
        prefill_former, decode_former: codes of the batch formers. A worker that does both
            uses the first.
        router: makes the arrival policy for that former.
        token_budgets: of the prefill workers, to try; WORKER.token_budget.
        separate_pools: whether prompts are computed and decoded on different workers.
        prefill_emits_first_token: whether the first token leaves before the KV transfer.
    """

    description: str
    prefill_former: int
    decode_former: int
    router: Callable[[int], ArrivalPolicy]
    token_budgets: tuple[int, ...]
    separate_pools: bool = False
    prefill_emits_first_token: bool = False


def routed(choice: Choice) -> Callable[[int], ArrivalPolicy]:
    """A router that makes the same choice for prefill and decode."""
    return lambda former: Router(former, choice, choice)


def _distserve(former: int) -> ArrivalPolicy:
    return Router(former, least_prompt_tokens, least_kv_tokens)


_CHUNK_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
# Upper bounds of its own choice; the last is Niyama's. Lower ones help short TTFT bounds.
_NIYAMA_BUDGETS = (512, 1024, 2048, 2552)

BASELINES: Mapping[str, BaselineSpec] = {
    "vllm-v0": BaselineSpec(
        "vLLM V0: prompts whole and before decodes, first come first served",
        VLLM_V0,
        VLLM_V0,
        routed(least_tokens),
        (2048, 4096, 8192),
    ),
    "vllm-v1": BaselineSpec(
        "vLLM V1, its default today: running requests first, then waiting ones, in mixed steps",
        VLLM_V1,
        VLLM_V1,
        routed(least_tokens),
        (2048, 8192),
    ),
    "sarathi": BaselineSpec(
        "Sarathi-Serve: decodes first, then chunks of prompts in a fixed token budget",
        SARATHI,
        SARATHI,
        routed(least_tokens),
        _CHUNK_BUDGETS,
    ),
    "distserve": BaselineSpec(
        "DistServe: separate pools, whole prompts up to the saturation length",
        VLLM_V0,
        VLLM_V0,
        _distserve,
        (512, 1024, 2048, 4096, 8192),
        separate_pools=True,
        prefill_emits_first_token=True,
    ),
    "edf": BaselineSpec(
        "QLM for one model: prompts by deadline in chunks, the later deadline is evicted",
        EDF,
        EDF,
        routed(least_tokens),
        _CHUNK_BUDGETS,
    ),
    "niyama": BaselineSpec(
        "Niyama: chunks as long as decodes allow, deadline plus remaining work, relegation",
        NIYAMA,
        NIYAMA,
        routed(least_tokens),
        _NIYAMA_BUDGETS,
    ),
    "scorpio": BaselineSpec(
        "SCORPIO: TTFT guard refuses, TPOT guard lets decodes with loose bounds skip steps",
        SCORPIO,
        SCORPIO,
        ScorpioGuard,
        _CHUNK_BUDGETS,
    ),
    "polyserve": BaselineSpec(
        "PolyServe's bins of equal TPOT over colocated workers, with Niyama's dynamic chunks",
        NIYAMA,
        NIYAMA,
        BinRouter,
        _NIYAMA_BUDGETS,
    ),
}
