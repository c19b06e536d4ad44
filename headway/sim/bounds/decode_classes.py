"""Groups decode tokens that the fluid bound need not tell apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.sim.bounds.demand import Demand

# Requests of a tier are grouped by how much KV their tokens read.
_NUM_BUCKETS = 6


@dataclass(frozen=True, slots=True)
class DecodeClasses:
    """K groups of decode tokens: requests of one tier and bucket, in one stage.

    `of_request` is (N, 2) by stage. Every token of a class reads at least `context` KV tokens:
    the smallest mean of its requests. What they read beyond is carried separately, in steps
    of any class, which only gives the programme more freedom.
    """

    of_request: Ints
    context: Floats
    tpot_s: Floats
    num_tokens: Ints

    @classmethod
    def of_demand(cls, demand: Demand) -> DecodeClasses:
        num_tokens = demand.num_decode_tokens
        mean = demand.num_context_tokens / np.maximum(num_tokens, 1)
        request_mean = demand.num_context_tokens.sum(axis=1) / np.maximum(num_tokens.sum(axis=1), 1)
        of_request = np.zeros((len(demand.tier), 2), np.int64)
        context: list[float] = []
        tpot_s: list[float] = []
        totals: list[int] = []
        for tier in np.unique(demand.tier):
            members = np.flatnonzero(demand.tier == tier)
            in_order = members[np.argsort(request_mean[members], kind="stable")]
            for bucket in np.array_split(in_order, min(_NUM_BUCKETS, len(members))):
                for stage in (0, 1):
                    of_request[bucket, stage] = len(context)
                    decoding = bucket[num_tokens[bucket, stage] > 0]
                    context.append(float(mean[decoding, stage].min()) if len(decoding) else 0.0)
                    tpot_s.append(float(demand.tpot_s[bucket[0], stage]))
                    totals.append(int(num_tokens[bucket, stage].sum()))
        return cls(of_request, np.array(context), np.array(tpot_s), np.array(totals))
